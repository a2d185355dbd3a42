//! Makes the catalogue and the tables of totals, and compares them with the layout.

use rusqlite::{ErrorCode, OptionalExtension};

use super::{SqliteStore, failed};
use crate::board;
use crate::error::{Error, Result};
use crate::key::{KeyPart, KeyParts};
use crate::sql::{self, Dialect};
use crate::store::catalogue::{self, CatalogueRow, Known};

impl SqliteStore<'_> {
    /// Makes the catalogue and the tables that are not there yet, and checks those that are.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no rows yet; where there are, call
    /// [`create_over_rows`](Self::create_over_rows). Where the catalogue is there already, a counter that comes new is not ready: there may be
    /// rows from before, and processes that do not know it may still write. From now on it counts, and once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A board that comes new is empty and not ready until it is
    /// [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] when a table of a counter's name is there and is not in the catalogue, or is not what the layout
    /// wants; nothing is made then, unless the caller is in a transaction, which is to be rolled back.
    pub fn create(&self) -> Result<()> {
        self.create_for(false)
    }

    /// As [`create`](Self::create), for counters of rows that are there already: no counter that comes new is ready, in a database without a
    /// catalogue either.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, Layout, SqliteStore, Store};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show_id INTEGER NOT NULL); INSERT INTO votes VALUES (7), (7), (8)")?;
    /// let mut store = SqliteStore::new(&conn, &LAYOUT);
    /// store.create_over_rows()?;
    /// assert!(!store.is_ready(SHOW_VOTES.def())?);
    /// assert!(matches!(store.total(SHOW_VOTES, 7), Err(Error::NotReady { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_over_rows(&self) -> Result<()> {
        self.create_for(true)
    }

    fn create_for(&self, rows: bool) -> Result<()> {
        self.or_lost(|| self.check_journal())?;
        self.transact(|| "making tables".to_owned(), |_| self.create_all(rows))
    }

    /// Also for `rows` that are there already.
    fn create_all(&self, rows: bool) -> Result<()> {
        let fresh = self.object(sql::CATALOGUE)?.is_none();
        self.run_ddl(&sql::create_catalogue(Dialect::Sqlite))?;
        self.run_ddl(&sql::create_marks(Dialect::Sqlite))?;
        self.run_ddl(&sql::create_runs(Dialect::Sqlite))?;
        let columns = self.rows("SELECT name FROM pragma_table_xinfo(?1)", sql::CATALOGUE)?;
        for (column, kind) in [("cut", "ANY"), ("ready", "INTEGER NOT NULL DEFAULT 1")] {
            // A catalogue from before counters could be pruned, or came new.
            if columns.iter().any(|name| name == "identity") && !columns.iter().any(|name| name == column) {
                self.run_ddl(&format!(r#"ALTER TABLE "{}" ADD COLUMN "{column}" {kind}"#, sql::CATALOGUE))?;
            }
        }
        let known = self.catalogue()?;
        self.run_ddl(&sql::create_unready(Dialect::Sqlite))?;
        for placed in self.layout.counters() {
            if let Some(known) = known.iter().find(|known| known.row.name == placed.def().full_name()) {
                if format!("{}, prunable", known.row.placement) == placed.place() {
                    // Only what apply looks for is new.
                    self.run_ddl(&sql::replace(placed))?;
                }
                continue;
            }
            let table = placed.table_name();
            if self.object(&table)?.is_some() {
                let reason = "it is there already, and is not one of keepcount's; rename it or the counter";
                return Err(Error::Schema { table, reason: reason.to_owned() });
            }
            self.run_ddl(&sql::create(Dialect::Sqlite, placed))?;
            self.run_ddl(&sql::enlist(placed, fresh && !rows))?;
            sql::take_over_cut(placed).map_or(Ok(()), |text| self.run_ddl(&text))?;
        }
        for placed in self.layout.counters() {
            // Also of a counter that was there before it became a link.
            if let Some(child) = self.layout.child_parts(&placed.def()) {
                self.run_ddl(&sql::create_by_parent(Dialect::Sqlite, placed, child))?;
            }
        }
        for board in self.layout.board_defs() {
            if known.iter().any(|known| known.row.name == board.name()) {
                continue;
            }
            let table = board.table_name();
            if self.object(&table)?.is_some() {
                let reason = "it is there already, and is not one of keepcount's; rename it or the board";
                return Err(Error::Schema { table, reason: reason.to_owned() });
            }
            for text in board::ddl(Dialect::Sqlite, board, fresh) {
                self.run_ddl(&text)?;
            }
        }
        self.check_all()
    }

    fn run_ddl(&self, text: &str) -> Result<()> {
        self.conn.execute_batch(text).map_err(|error| failed("making tables", error))
    }

    /// Compares catalogue and tables with the layout.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`], naming the table, when one is absent, has other columns, is not STRICT or not WITHOUT ROWID, has a trigger, sorts
    /// texts otherwise than by bytes, or holds another version or key than the layout says; [`Error::Setting`] when the connection keeps no
    /// journal (`PRAGMA journal_mode = OFF`), without which nothing can be rolled back.
    pub fn check(&self) -> Result<()> {
        self.or_lost(|| self.check_all())
    }

    fn check_all(&self) -> Result<()> {
        self.check_journal()?;
        if self.object(sql::CATALOGUE)?.is_none() {
            return Err(Error::Schema {
                table: sql::CATALOGUE.to_owned(),
                reason:
                    "it is absent: this database has no keepcount tables yet; make them with SqliteStore::create or \
                         the statements of Layout::ddl"
                        .to_owned(),
            });
        }
        let known = self.catalogue()?;
        for placed in self.layout.counters() {
            let def = placed.def();
            let table = placed.table_name();
            let schema = |reason: String| Err(Error::Schema { table: table.clone(), reason });
            let wanted = CatalogueRow::of(placed);
            let Some(Known { row, .. }) = known.iter().find(|known| known.row.name == wanted.name) else {
                return schema(format!(
                    "counter {} is not in the catalogue {}; SqliteStore::create adds it",
                    wanted.name,
                    sql::CATALOGUE
                ));
            };
            if *row != wanted {
                return schema(format!("the catalogue says {row}, the layout {wanted}"));
            }
            if let Some(reason) = self.keyed_fault(&table, def.parts(), "total INTEGER NOT NULL")? {
                return schema(reason);
            }
            let index = sql::by_parent(placed);
            if self.layout.child_parts(&def).is_some() && self.object(&index)?.as_deref() != Some("index") {
                return schema(format!("its index {index} is absent; SqliteStore::create makes it"));
            }
        }
        let marks = ["stream TEXT NOT NULL PRIMARY KEY 1", "last INTEGER NOT NULL"];
        self.check_own(sql::MARKS, &marks)?;
        let runs = ["run INTEGER NOT NULL PRIMARY KEY 1", "token TEXT NOT NULL", "turn INTEGER NOT NULL"];
        self.check_own(sql::RUNS, &runs)?;
        catalogue::check_others(self.layout, &known, "SqliteStore::forget")?;
        self.check_boards(&known)
    }

    /// Refuses a connection that cannot roll back: a batch that fails in its middle would stay half applied, or damage the file.
    fn check_journal(&self) -> Result<()> {
        let mode = self.conn.query_row("PRAGMA main.journal_mode", (), |row| row.get::<_, String>(0));
        if mode.map_err(|error| failed("reading the journal mode", error))?.eq_ignore_ascii_case("off") {
            let reason = "it is OFF, so that nothing can be rolled back; choose another before this connection writes";
            return Err(Error::setting("journal_mode", reason));
        }
        Ok(())
    }

    /// Compares a table of keepcount's own with what it should be.
    fn check_own(&self, table: &str, wanted: &[&str]) -> Result<()> {
        let wanted: Vec<String> = wanted.iter().map(|column| (*column).to_owned()).collect();
        let fault = match self.object(table)? {
            // Of a database from before there were marks, or runs were kept.
            None => Some("it is absent; SqliteStore::create makes it".to_owned()),
            Some(_) => self.table_fault(table, &wanted, true)?,
        };
        fault.map_or(Ok(()), |reason| Err(Error::Schema { table: table.to_owned(), reason }))
    }

    fn check_boards(&self, known: &[Known]) -> Result<()> {
        for board in self.layout.board_defs() {
            let table = board.table_name();
            let schema = |reason: String| Err(Error::Schema { table: table.clone(), reason });
            let Some(Known { row, .. }) = known.iter().find(|known| known.row.name == board.name()) else {
                return schema(format!("board {} is not in the catalogue; SqliteStore::create makes it", board.name()));
            };
            let wanted = CatalogueRow::of_board(board);
            if *row != wanted {
                return schema(format!("the catalogue says {row}, the layout {wanted}"));
            }
            let score = format!("score {} NOT NULL", board::score_column(Dialect::Sqlite, board));
            if let Some(reason) = self.keyed_fault(&table, board.parts(), &score)? {
                return schema(reason);
            }
            let index = format!("{table}_order");
            if self.object(&index)?.as_deref() != Some("index") {
                return schema(format!("its index {index} is absent"));
            }
        }
        Ok(())
    }

    /// What tells this database's totals from another's.
    pub(crate) fn identity(&self) -> Result<u64> {
        Ok(catalogue::identity(self.layout, &self.catalogue()?))
    }

    /// What is wrong with the table of a counter or board, if anything.
    fn keyed_fault(&self, table: &str, parts: KeyParts, last: &str) -> Result<Option<String>> {
        let mut wanted: Vec<String> = sql::columns(Dialect::Sqlite, parts)
            .iter()
            .enumerate()
            .map(|(at, (name, kind))| format!("{} {kind} NOT NULL PRIMARY KEY {}", name.replace('"', ""), at + 1))
            .collect();
        wanted.push(last.to_owned());
        self.table_fault(table, &wanted, parts.as_slice().contains(&KeyPart::Text))
    }

    /// What is wrong with a table that should have these columns and no more, if anything.
    fn table_fault(&self, table: &str, wanted: &[String], texts: bool) -> Result<Option<String>> {
        match self.object(table)?.as_deref() {
            Some("table") => {}
            Some(other) => return Ok(Some(format!("it is a {other}, not a table"))),
            None => return Ok(Some("it is absent".to_owned())),
        }
        let columns = self.rows(
            "SELECT name || ' ' || type || iif(\"notnull\" OR pk > 0, ' NOT NULL', '') || iif(pk > 0, ' PRIMARY KEY ' || pk, '')
             FROM pragma_table_xinfo(?1) ORDER BY cid",
            table,
        )?;
        if columns != wanted {
            return Ok(Some(format!("its columns are ({}), not ({})", columns.join(", "), wanted.join(", "))));
        }
        for (only_texts, text) in FAULTS {
            if *only_texts && !texts {
                continue;
            }
            if let Some(fault) = self.rows(text, table)?.into_iter().next() {
                return Ok(Some(fault));
            }
        }
        Ok(None)
    }

    fn rows(&self, text: &str, table: &str) -> Result<Vec<String>> {
        let run =
            || self.conn.prepare(text)?.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<Vec<_>>>();
        run().map_err(|error| failed("reading the schema", error))
    }

    /// The type of the schema's object of this name; names fold case.
    fn object(&self, name: &str) -> Result<Option<String>> {
        let text = "SELECT type FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
        let found = self.conn.query_row(text, [name], |row| row.get(0)).optional();
        found.map_err(|error| failed("reading the schema", error))
    }

    /// The catalogue's rows, in the order of names.
    pub(super) fn catalogue(&self) -> Result<Vec<Known>> {
        let text = format!(
            r#"SELECT c."name", c."key", c."version", c."placement", c."identity", c."ready", c."cut" FROM "{}" AS c ORDER BY c."name""#,
            sql::CATALOGUE
        );
        let read = || -> rusqlite::Result<Vec<Known>> {
            let mut statement = self.conn.prepare(&text)?;
            let rows = statement.query_map((), |row| {
                let (name, key) = (row.get(0)?, row.get(1)?);
                let declared = CatalogueRow { name, key, version: row.get(2)?, placement: row.get(3)? };
                Ok(Known { row: declared, identity: row.get(4)?, ready: row.get(5)? })
            })?;
            rows.collect()
        };
        read().map_err(|error| match (&error, error.sqlite_error_code()) {
            // A column that is not there, or holds something else; what the database says of itself is none of this.
            (_, None | Some(ErrorCode::Unknown)) => Error::Schema {
                table: sql::CATALOGUE.to_owned(),
                reason: format!(
                    "it is not keepcount's catalogue: {error}; one of an older keepcount is brought up to date by SqliteStore::create"
                ),
            },
            _ => failed("reading the catalogue", error),
        })
    }
}

/// Statements that find a fault of the table `?1` and say it; some concern tables with text keys only.
const FAULTS: &[(bool, &str)] = &[
    (
        false,
        "SELECT 'it is not STRICT, so a total beyond 64 bits would turn into a float'
         FROM pragma_table_list(?1) WHERE schema = 'main' AND NOT strict",
    ),
    (
        false,
        "SELECT 'it is not WITHOUT ROWID, so writing totals would change last_insert_rowid()'
         FROM pragma_table_list(?1) WHERE schema = 'main' AND NOT wr",
    ),
    (
        false,
        "SELECT 'its trigger ' || name || ' could skip or change what is written; it must have none'
         FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE",
    ),
    (
        false,
        "SELECT 'a temporary ' || type || ' of its name hides it'
         FROM sqlite_temp_schema WHERE name = ?1 COLLATE NOCASE",
    ),
    (
        true,
        "SELECT 'its key is collated ' || x.coll || ', not BINARY'
         FROM pragma_index_list(?1) AS l, pragma_index_xinfo(l.name) AS x
         WHERE l.origin = 'pk' AND x.key AND x.coll <> 'BINARY'",
    ),
    (
        true,
        // Streams and runs are looked up and not sorted.
        "SELECT 'the database is encoded in ' || encoding || ', where texts do not sort as UTF-8'
         FROM pragma_encoding WHERE encoding <> 'UTF-8' AND ?1 NOT IN ('keepcount_marks', 'keepcount_runs')",
    ),
];
