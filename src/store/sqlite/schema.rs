//! Makes the catalogue and the tables of totals, and compares them with the layout.

use std::fmt;

use rusqlite::{ErrorCode, OptionalExtension};

use super::{Scope, SqliteStore, cut, failed};
use crate::board::{self, BoardDef};
use crate::counter::Placed;
use crate::error::{Error, Result};
use crate::key::{KeyPart, KeyParts};
use crate::sql::{self, Dialect};

impl SqliteStore<'_> {
    /// Makes the catalogue and the tables that are not there yet, and checks those that are.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] when a table of a counter's name is there and is not in the catalogue, or is not what the layout
    /// wants; nothing is made then, unless the caller is in a transaction, which is to be rolled back.
    pub fn create(&self) -> Result<()> {
        if !self.conn.is_autocommit() {
            return self.create_all();
        }
        let scope = Scope::open(self.conn, "making tables".to_owned())?;
        self.create_all()?;
        scope.commit()
    }

    fn create_all(&self) -> Result<()> {
        self.run_ddl(&sql::create_catalogue(Dialect::Sqlite))?;
        self.run_ddl(&sql::create_marks(Dialect::Sqlite))?;
        let columns = self.rows("SELECT name FROM pragma_table_xinfo(?1)", sql::CATALOGUE)?;
        if columns.iter().any(|name| name == "identity") && !columns.iter().any(|name| name == "cut") {
            // A catalogue from before counters could be pruned.
            self.run_ddl(&format!(r#"ALTER TABLE "{}" ADD COLUMN "cut" ANY"#, sql::CATALOGUE))?;
        }
        let known = self.catalogue()?;
        for placed in self.layout.counters() {
            if let Some((row, _)) = known.iter().find(|(row, _)| row.name == placed.def().name()) {
                if format!("{}, prunable", row.placement) == placed.place() {
                    // Only what apply looks for is new.
                    self.run_ddl(&cut::replace(placed))?;
                }
                continue;
            }
            let table = placed.table_name();
            if self.object(&table)?.is_some() {
                let reason = "it is there already, and is not one of keepcount's; rename it or the counter";
                return Err(Error::Schema { table, reason: reason.to_owned() });
            }
            self.run_ddl(&sql::create(Dialect::Sqlite, placed))?;
            self.run_ddl(&sql::enlist(placed))?;
        }
        for placed in self.layout.counters() {
            // Also of a counter that was there before it became a link.
            if let Some(child) = self.layout.child_parts(&placed.def()) {
                self.run_ddl(&sql::create_by_parent(Dialect::Sqlite, placed, child))?;
            }
        }
        for board in self.layout.board_defs() {
            if known.iter().any(|(row, _)| row.name == board.name()) {
                continue;
            }
            let table = board.table_name();
            if self.object(&table)?.is_some() {
                let reason = "it is there already, and is not one of keepcount's; rename it or the board";
                return Err(Error::Schema { table, reason: reason.to_owned() });
            }
            for text in board::ddl(Dialect::Sqlite, board) {
                self.run_ddl(&text)?;
            }
            self.rescore_all(board)?;
        }
        self.check()
    }

    fn run_ddl(&self, text: &str) -> Result<()> {
        self.conn.execute_batch(text).map_err(|error| failed("making tables", error))
    }

    /// Compares catalogue and tables with the layout.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`], naming the table, when one is absent, has other columns, is not STRICT or not WITHOUT ROWID, has a trigger, sorts
    /// texts otherwise than by bytes, or holds another version or key than the layout says.
    pub fn check(&self) -> Result<()> {
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
            let Some((row, _)) = known.iter().find(|(row, _)| row.name == def.name()) else {
                return schema(format!(
                    "counter {} is not in the catalogue {}; SqliteStore::create adds it",
                    def.name(),
                    sql::CATALOGUE
                ));
            };
            let wanted = CatalogueRow::of(placed);
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
        self.check_marks()?;
        self.check_others(&known)?;
        self.check_boards(&known)
    }

    fn check_marks(&self) -> Result<()> {
        let wanted = ["stream TEXT NOT NULL PRIMARY KEY 1".to_owned(), "last INTEGER NOT NULL".to_owned()];
        let fault = match self.object(sql::MARKS)? {
            // Of a database from before there were marks.
            None => Some("it is absent; SqliteStore::create makes it".to_owned()),
            Some(_) => self.table_fault(sql::MARKS, &wanted, true)?,
        };
        fault.map_or(Ok(()), |reason| Err(Error::Schema { table: sql::MARKS.to_owned(), reason }))
    }

    /// Refuses a database where somebody else's rollup or board is fed by a counter of this layout, which would not keep it: an older
    /// version of the application, say.
    fn check_others(&self, known: &[(CatalogueRow, i64)]) -> Result<()> {
        let ours = |name: &str| self.layout.counters().iter().any(|placed| placed.def().name() == name);
        let board = |name: &str| self.layout.board_defs().iter().any(|board| board.name() == name);
        for (row, _) in known.iter().filter(|(row, _)| !ours(&row.name) && !board(&row.name)) {
            let mut words = row.placement.split([' ', ',']);
            let derived = words.any(|word| matches!(word, "sum" | "board"));
            if let Some(counter) = words.find(|word| derived && ours(word)) {
                let reason = format!(
                    "{} is a {} and counter {counter} feeds it, but this layout does not have it and would not keep it; if nobody has, drop its \
                     table and its row in {}",
                    row.name,
                    row.placement,
                    sql::CATALOGUE
                );
                return Err(Error::Schema { table: row.name.replace('.', "_"), reason });
            }
        }
        Ok(())
    }

    fn check_boards(&self, known: &[(CatalogueRow, i64)]) -> Result<()> {
        for board in self.layout.board_defs() {
            let table = board.table_name();
            let schema = |reason: String| Err(Error::Schema { table: table.clone(), reason });
            let Some((row, _)) = known.iter().find(|(row, _)| row.name == board.name()) else {
                return schema(format!("board {} is not in the catalogue; SqliteStore::create makes it", board.name()));
            };
            let wanted = CatalogueRow::of_board(board);
            if *row != wanted {
                return schema(format!("the catalogue says {row}, the layout {wanted}"));
            }
            let score = format!("score {} NOT NULL", board::score_column(board));
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
        let ours = |name: &str| self.layout.counters().iter().any(|placed| placed.def().name() == name);
        let rows = self.catalogue()?;
        Ok(rows.iter().filter(|(row, _)| ours(&row.name)).fold(0, |all, (_, identity)| all ^ identity.cast_unsigned()))
    }

    /// What is wrong with the table of a counter or board, if anything.
    fn keyed_fault(&self, table: &str, parts: KeyParts, last: &str) -> Result<Option<String>> {
        let mut wanted: Vec<String> = sql::columns(parts)
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

    /// The catalogue's rows, each with its identity.
    fn catalogue(&self) -> Result<Vec<(CatalogueRow, i64)>> {
        let text = format!(
            r#"SELECT c."name", c."key", c."version", c."placement", c."identity", c."cut" FROM "{}" AS c"#,
            sql::CATALOGUE
        );
        let read = || -> rusqlite::Result<Vec<(CatalogueRow, i64)>> {
            let mut statement = self.conn.prepare(&text)?;
            let rows = statement.query_map((), |row| {
                let (name, key) = (row.get(0)?, row.get(1)?);
                let row_as_declared = CatalogueRow { name, key, version: row.get(2)?, placement: row.get(3)? };
                Ok((row_as_declared, row.get(4)?))
            })?;
            rows.collect()
        };
        read().map_err(|error| match (&error, error.sqlite_error_code()) {
            // A column that is not there, or holds something else; what the database says of itself is none of this.
            (_, None | Some(ErrorCode::Unknown)) => Error::Schema {
                table: sql::CATALOGUE.to_owned(),
                reason: format!("it is not keepcount's catalogue: {error}"),
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
        "SELECT 'the database is encoded in ' || encoding || ', where texts do not sort as UTF-8'
         FROM pragma_encoding WHERE encoding <> 'UTF-8' AND ?1 IS NOT NULL",
    ),
];

/// What the catalogue says of a counter.
#[derive(PartialEq, Eq)]
struct CatalogueRow {
    name: String,
    key: String,
    version: u32,
    placement: String,
}

impl CatalogueRow {
    fn of(placed: &Placed) -> Self {
        let def = placed.def();
        Self {
            name: def.name().to_owned(),
            key: def.parts().to_string(),
            version: def.version(),
            placement: placed.place(),
        }
    }

    fn of_board(board: &BoardDef) -> Self {
        let id = board.id();
        Self {
            name: id.name().to_owned(),
            key: id.parts().to_string(),
            version: id.version(),
            placement: board::place(board),
        }
    }
}

impl fmt::Display for CatalogueRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({}) in a {}", self.name, self.version, self.key, self.placement)
    }
}
