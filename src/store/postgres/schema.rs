//! Makes the catalogue and the tables of totals, compares them with the layout, and drops what it lost.

use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::{AsyncWork, Failed, PostgresStore, Session, Whose, failed};
use crate::board::{self, BoardDef};
use crate::error::{Error, Result, chain};
use crate::key::KeyParts;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::catalogue::{self, CatalogueRow, Known};

/// The longest name of a table or index; PostgreSQL cuts longer ones.
const NAME_MOST: usize = 63;

impl<C: GenericClient + Send + Sync> PostgresStore<'_, C> {
    /// Makes the catalogue and the tables that are not there yet, and checks those that are; in the first schema of the search path. Processes that
    /// call it at once come one after the other.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no rows yet; where there are, call
    /// [`create_over_rows`](Self::create_over_rows). Where the catalogue is there already, a counter that comes new is not ready: there may be
    /// rows from before, and processes that do not know it may still write. (A counter with many totals that becomes a link gets its index while its writers
    /// wait; make it CONCURRENTLY before, by the statement in [`Layout::ddl`](crate::Layout::ddl).) From now on it counts, and once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A board that comes new is empty and not ready until it is
    /// [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] when a table of a counter's name is there and is not in the catalogue, or is not what the layout
    /// wants, or a name is longer than PostgreSQL's, or the catalogue is in another schema than the first of `search_path`; nothing is made then.
    pub async fn create(&mut self) -> Result<()> {
        self.transact(|| "making tables".to_owned(), Create { rows: false }).await
    }

    /// As [`create`](Self::create), for counters of rows that are there already: no counter that comes new is ready, in a database without a
    /// catalogue either.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn create_over_rows(&mut self) -> Result<()> {
        self.transact(|| "making tables".to_owned(), Create { rows: true }).await
    }

    /// Compares catalogue and tables with the layout.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`], naming the table, when one is absent, has other columns or another primary key, has triggers, rules, row security or children, is
    /// temporary or unlogged or in another schema than the catalogue, sorts texts otherwise than by bytes, or holds another version or key than the layout says.
    pub async fn check(&mut self) -> Result<()> {
        self.session().check().await
    }

    /// The counters and boards of this database that the layout does not have, by their full names: those that an older layout had, and, seen from
    /// an older layout, those that are new. Nobody who writes by this layout keeps their totals.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn lost(&mut self) -> Result<Vec<String>> {
        let known = self.session().catalogue().await?.into_iter().map(|known| known.row.name);
        Ok(known.filter(|name| !catalogue::has(self.layout, name)).collect())
    }

    /// Drops the table of a counter or board that is [lost](Self::lost), and its row in the catalogue, in one transaction. A process that still has
    /// it fails from then on with each write to it: call it by hand, once the last of them is gone.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when the database has none of this name, [`Error::Setting`] when the layout has it, or a rollup or board is made of
    /// it, which is to be dropped first; and what the database says. Nothing is dropped then.
    pub async fn forget(&mut self, name: &str) -> Result<()> {
        self.transact(|| format!("forgetting {name}"), Forget { name: name.to_owned() }).await
    }
}

struct Create {
    rows: bool,
}

impl AsyncWork<()> for Create {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<(), Failed> {
        Ok(session.create_all(self.rows).await?)
    }
}

struct Forget {
    name: String,
}

impl AsyncWork<()> for Forget {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<(), Failed> {
        let known = session.catalogue().await?;
        let table = catalogue::lost(session.layout, &known, &self.name)?.table_name();
        session.run_ddl(&format!("DROP TABLE IF EXISTS {}", sql::quote(&table))).await?;
        let text = format!(r#"DELETE FROM "{}" AS c WHERE c."name" = $1"#, sql::CATALOGUE);
        let gone = session.execute(&Query { text, values: vec![Value::Text(self.name.as_str().into())] }).await;
        let doing = format!("forgetting {}", self.name);
        gone.map_err(|error| failed(Whose::Table(sql::CATALOGUE), &doing, error))?;
        Ok(())
    }
}

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Also for `rows` that are there already.
    async fn create_all(&self, rows: bool) -> Result<()> {
        self.check_names()?;
        // "IF NOT EXISTS" of two transactions at once fails in the second; one number for all that keepcount makes.
        self.run_ddl("SELECT pg_advisory_xact_lock(7809644625271157621)").await?;
        let fresh = self.kind_of(sql::CATALOGUE).await?.is_none();
        if let Some(reason) = self.texts(ELSEWHERE, sql::CATALOGUE).await?.into_iter().next() {
            return match self.check().await {
                Err(Error::Schema { .. }) => Err(Error::Schema { table: sql::CATALOGUE.to_owned(), reason }),
                nothing_is_missing => nothing_is_missing,
            };
        }
        let first =
            [sql::create_catalogue, sql::create_marks, sql::create_runs].map(|create| create(Dialect::Postgres));
        for text in first.into_iter().chain(sql::create_locks(Dialect::Postgres)) {
            self.run_ddl(&text).await?;
        }
        let known = self.catalogue().await?;
        self.run_ddl(&sql::create_unready(Dialect::Postgres)).await?;
        for placed in self.layout.counters() {
            if let Some(known) = known.iter().find(|known| known.row.name == placed.def().full_name()) {
                if format!("{}, prunable", known.row.placement) == placed.place() {
                    // Only what apply looks for is new.
                    self.run_ddl(&sql::replace(placed)).await?;
                }
                continue;
            }
            self.refuse_foreign(&placed.table_name(), "counter").await?;
            self.run_ddl(&sql::create(Dialect::Postgres, placed)).await?;
            self.run_ddl(&sql::enlist(placed, fresh && !rows)).await?;
            if let Some(text) = sql::take_over_cut(placed) {
                self.run_ddl(&text).await?;
            }
        }
        for placed in self.layout.counters() {
            // Also of a counter that was there before it became a link.
            // Where it is there, not even to look: that alone would make writers wait for one another.
            let child = self.layout.child_parts(&placed.def());
            if let (Some(child), None) = (child, self.kind_of(&sql::by_parent(placed)).await?) {
                self.run_ddl(&sql::create_by_parent(Dialect::Postgres, placed, child)).await?;
            }
        }
        for board in self.layout.board_defs() {
            if known.iter().any(|known| known.row.name == board.name()) {
                continue;
            }
            self.refuse_foreign(&board.table_name(), "board").await?;
            for text in board::ddl(Dialect::Postgres, board, fresh) {
                self.run_ddl(&text).await?;
            }
        }
        self.check().await
    }

    async fn run_ddl(&self, text: &str) -> Result<()> {
        self.client.batch_execute(text).await.map_err(|error| failed(Whose::Connection, "making tables", error))
    }

    async fn refuse_foreign(&self, table: &str, whose: &str) -> Result<()> {
        match self.kind_of(table).await? {
            None => Ok(()),
            Some(_) => Err(Error::Schema {
                table: table.to_owned(),
                reason: format!("it is there already, and is not one of keepcount's; rename it or the {whose}"),
            }),
        }
    }

    /// Refuses names that PostgreSQL would cut: two of them could become one.
    fn check_names(&self) -> Result<()> {
        let counters = self.layout.counters().iter().map(|placed| match self.layout.child_parts(&placed.def()) {
            Some(_) => sql::by_parent(placed),
            None => placed.table_name(),
        });
        let boards = self.layout.board_defs().iter().map(|board| format!("{}_order", board.table_name()));
        let long = counters.chain(boards).find(|name| name.len() > NAME_MOST);
        long.map_or(Ok(()), |table| {
            let reason = format!("its name has {} bytes, PostgreSQL's have at most {NAME_MOST}", table.len());
            Err(Error::Schema { table, reason })
        })
    }

    async fn check(&self) -> Result<()> {
        self.check_names()?;
        if self.kind_of(sql::CATALOGUE).await?.is_none() {
            return Err(Error::Schema {
                table: sql::CATALOGUE.to_owned(),
                reason:
                    "it is absent: this database has no keepcount tables yet; make them with PostgresStore::create or \
                         the statements of Layout::ddl"
                        .to_owned(),
            });
        }
        self.refuse_faults(sql::CATALOGUE).await?;
        let known = self.catalogue().await?;
        for placed in self.layout.counters() {
            let def = placed.def();
            let table = placed.table_name();
            check_row(&known, &CatalogueRow::of(placed), &table)?;
            self.check_table(&table, &keyed(def.parts(), "total bigint NOT NULL")).await?;
            let index = sql::by_parent(placed);
            if self.layout.child_parts(&def).is_some() && self.kind_of(&index).await?.as_deref() != Some("i") {
                let reason = format!("its index {index} is absent; PostgresStore::create makes it");
                return Err(Error::Schema { table, reason });
            }
        }
        let text = |name: &str| format!("{name} text COLLATE \"C\" NOT NULL");
        let marks = [text("stream") + " PRIMARY KEY 1", "last bigint NOT NULL".to_owned()];
        self.check_table(sql::MARKS, &marks).await?;
        let number = |name: &str| format!("{name} bigint NOT NULL");
        let runs = [number("run") + " PRIMARY KEY 1", text("token"), number("turn")];
        self.check_table(sql::RUNS, &runs).await?;
        let locks = [
            text("of") + " PRIMARY KEY 1",
            "level bigint NOT NULL PRIMARY KEY 2".to_owned(),
            "key bytea NOT NULL PRIMARY KEY 3".to_owned(),
            "turns bigint NOT NULL".to_owned(),
        ];
        self.check_table(sql::LOCKS, &locks).await?;
        catalogue::check_others(self.layout, &known, "PostgresStore::forget")?;
        for board in self.layout.board_defs() {
            self.check_board(&known, board).await?;
        }
        Ok(())
    }

    async fn check_board(&self, known: &[Known], board: &BoardDef) -> Result<()> {
        let table = board.table_name();
        check_row(known, &CatalogueRow::of_board(board), &table)?;
        let score = format!("score {} NOT NULL", board::score_column(Dialect::Postgres, board).to_lowercase());
        self.check_table(&table, &keyed(board.parts(), &score)).await?;
        let index = format!("{table}_order");
        if self.kind_of(&index).await?.as_deref() != Some("i") {
            return Err(Error::Schema { table, reason: format!("its index {index} is absent") });
        }
        Ok(())
    }

    /// What tells this database's totals from another's.
    pub(crate) async fn identity(&self) -> Result<u64> {
        Ok(catalogue::identity(self.layout, &self.catalogue().await?))
    }

    /// Refuses a table that has not just these columns, or that could write otherwise than it is told.
    async fn check_table(&self, table: &str, wanted: &[String]) -> Result<()> {
        let schema = |reason: String| Err(Error::Schema { table: table.to_owned(), reason });
        match self.kind_of(table).await?.as_deref() {
            Some("r" | "p") => {}
            Some(_) => return schema("it is not a table".to_owned()),
            None => return schema("it is absent; PostgresStore::create makes it".to_owned()),
        }
        let columns = self.texts(COLUMNS, table).await?;
        if columns != wanted {
            return schema(format!("its columns are ({}), not ({})", columns.join(", "), wanted.join(", ")));
        }
        self.refuse_faults(table).await
    }

    async fn refuse_faults(&self, table: &str) -> Result<()> {
        match self.texts(FAULTS, table).await?.into_iter().next() {
            Some(reason) => Err(Error::Schema { table: table.to_owned(), reason }),
            None => Ok(()),
        }
    }

    async fn texts(&self, text: &str, table: &str) -> Result<Vec<String>> {
        let query = Query { text: text.to_owned(), values: vec![Value::Text(sql::quote(table).into())] };
        let rows = self.query(&query).await.map_err(|error| failed(Whose::Connection, "reading the schema", error))?;
        let text = |row: &tokio_postgres::Row| row.try_get::<_, String>(0);
        rows.iter()
            .map(text)
            .collect::<Result<_, _>>()
            .map_err(|error| failed(Whose::Connection, "reading the schema", error))
    }

    /// What the name stands for, as `pg_class.relkind` says it, if anything.
    async fn kind_of(&self, name: &str) -> Result<Option<String>> {
        let kinds = self.texts("SELECT relkind::text FROM pg_class WHERE oid = to_regclass($1)", name).await?;
        Ok(kinds.into_iter().next())
    }

    /// The catalogue's rows, in the order of names.
    pub(super) async fn catalogue(&self) -> Result<Vec<Known>> {
        let text = format!(
            r#"SELECT c."name", c."key", c."version", c."placement", c."identity", c."ready" FROM "{}" AS c ORDER BY c."name""#,
            sql::CATALOGUE
        );
        let rows = self.query(&Query { text, values: Vec::new() }).await;
        let foreign = |error: tokio_postgres::Error| Error::Schema {
            table: sql::CATALOGUE.to_owned(),
            reason: format!("it is not keepcount's catalogue: {}", chain(&error)),
        };
        let rows = rows.map_err(|error| match error.code() {
            Some(&SqlState::UNDEFINED_COLUMN) => foreign(error),
            _ => failed(Whose::Table(sql::CATALOGUE), "reading the catalogue", error),
        })?;
        let known = |row: &tokio_postgres::Row| {
            let (name, key, version) = (row.try_get(0)?, row.try_get(1)?, row.try_get::<_, i64>(2)?);
            // A version that is no u32 is nobody's.
            let version = u32::try_from(version).unwrap_or(u32::MAX);
            let declared = CatalogueRow { name, key, version, placement: row.try_get(3)? };
            Ok(Known { row: declared, identity: row.try_get(4)?, ready: row.try_get::<_, i64>(5)? != 0 })
        };
        rows.iter().map(known).collect::<Result<_, _>>().map_err(foreign)
    }
}

/// Compares what the catalogue says of a counter or board with what the layout says.
fn check_row(known: &[Known], wanted: &CatalogueRow, table: &str) -> Result<()> {
    let schema = |reason: String| Err(Error::Schema { table: table.to_owned(), reason });
    match known.iter().find(|known| known.row.name == wanted.name) {
        None => {
            schema(format!("{} is not in the catalogue {}; PostgresStore::create adds it", wanted.name, sql::CATALOGUE))
        }
        Some(Known { row, .. }) if row != wanted => schema(format!("the catalogue says {row}, the layout {wanted}")),
        Some(_) => Ok(()),
    }
}

/// The columns of the table of a counter or board, as [`COLUMNS`] says them.
fn keyed(parts: KeyParts, last: &str) -> Vec<String> {
    let column = |(at, (name, kind)): (usize, (String, &str))| {
        let kind = kind.split_once(' ').map_or_else(|| kind.to_lowercase(), |_| r#"text COLLATE "C""#.to_owned());
        format!("{} {kind} NOT NULL PRIMARY KEY {}", name.replace('"', ""), at + 1)
    };
    let keys = sql::columns(Dialect::Postgres, parts).into_iter().enumerate().map(column);
    keys.chain([last.to_owned()]).collect()
}

/// Each column of the table `$1`: its name, type, collation, and place in the primary key.
const COLUMNS: &str = "SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    || coalesce((SELECT ' COLLATE \"' || c.collname || '\"' FROM pg_collation AS c WHERE c.oid = a.attcollation), '')
    || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
    || coalesce((SELECT ' PRIMARY KEY ' || array_position(i.indkey::int2[], a.attnum) + 1 FROM pg_index AS i
                 WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)), '')
    FROM pg_attribute AS a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// What could skip or change what is written to the table `$1`.
const FAULTS: &str = "SELECT 'its trigger ' || t.tgname || ' could skip or change what is written; it must have none'
    FROM pg_trigger AS t WHERE t.tgrelid = to_regclass($1) AND NOT t.tgisinternal
    UNION ALL SELECT 'its rule ' || r.rulename || ' could skip or change what is written; it must have none'
    FROM pg_rewrite AS r WHERE r.ev_class = to_regclass($1)
    UNION ALL SELECT 'it has row security, which could hide totals'
    FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relrowsecurity
    UNION ALL SELECT CASE c.relpersistence WHEN 't' THEN 'it is temporary, so that other sessions do not see its totals'
                     ELSE 'it is unlogged, so that its totals would be gone after a crash, and their rows not' END
    FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relpersistence <> 'p'
    UNION ALL SELECT 'it has children, whose rows would be read as its totals'
    FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid)
    UNION ALL SELECT 'it is in schema ' || c.relnamespace::regnamespace || ', and keepcount_counters in ' || k.relnamespace::regnamespace
    FROM pg_class AS c, pg_class AS k WHERE c.oid = to_regclass($1) AND k.oid = to_regclass('keepcount_counters') AND c.relnamespace <> k.relnamespace";

/// That the catalogue `$1` is in another schema than the first of the search path, where tables would be made.
const ELSEWHERE: &str = "SELECT 'it is in schema ' || n.nspname || ', and what is missing would be made in ' || current_schema()
    || ', the first of search_path; put ' || n.nspname || ' there for this call'
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1) AND n.nspname <> current_schema()";
