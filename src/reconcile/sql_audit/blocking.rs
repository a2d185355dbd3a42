//! The audit over a blocking executor.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::super::audit::{
    Audit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use super::super::database::{Database, Rows, Unfound};
use super::super::token::Token;
use crate::counter::CounterId;
use crate::engine::now;
use crate::error::{Error, Result};
use crate::executor::{Blocking, Connect, call};
use crate::schema::Schema;

/// A database's rows and totals, over a library that blocks.
///
/// Each library has a name for its own: [`SqliteAudit`](crate::reconcile::SqliteAudit) is the one
/// of rusqlite. Like its store, it derefs to the same audit over any executor.
pub struct SqlAudit<'a, E: ?Sized> {
    database: Database<'a>,
    executor: E,
}

impl<E: ?Sized> fmt::Debug for SqlAudit<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlAudit").field("database", &self.database).finish_non_exhaustive()
    }
}

impl<'a, E: Connect + Blocking + 'a> SqlAudit<'a, E> {
    /// Creates an audit without sources, and checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the connection is inside a transaction, and the errors of a store's
    /// `check`.
    pub fn new(connection: E::Connection, schema: &'a Schema) -> Result<Self> {
        let mut executor = E::over(connection);
        let database = opened(&mut executor, schema)?;
        Ok(Self { database, executor })
    }

    /// Adds the rows of a record. A counter that was added before gets this source instead.
    ///
    /// If one of the counters is refused, none is added.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if the table is absent. [`Error::Source`] if the key has another
    /// number of columns; if the rows of a table do not come out of an index in key order; if a
    /// bare name stands for tables of several schemas; or if the database refuses the SQL.
    ///
    /// In SQLite also if rows are in an attached file that can only be read, in WAL mode. In
    /// PostgreSQL also if columns are of other types than the key's, or amounts are not integers;
    /// and if not all rows can be seen in one snapshot with the totals: a policy of row security,
    /// or a view's condition on the role, hides some; or a table is on another server, or a
    /// materialized view. During a run the server refuses to leave out what a policy hides.
    pub fn add(&mut self, rows: Rows<E::Driver>) -> Result<()> {
        let sources = rows.sources(self.database.schema())?;
        (**self).add_sources(sources)
    }
}

fn opened<'x, 'a: 'x>(
    executor: &'x mut (dyn Blocking + 'x),
    schema: &'a Schema,
) -> Result<Database<'a>> {
    now(Database::of(&mut *call(executor), schema))
}

impl<'a, E: Blocking + 'a> Deref for SqlAudit<'a, E> {
    type Target = SqlAudit<'a, dyn Blocking + 'a>;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl<'a, E: Blocking + 'a> DerefMut for SqlAudit<'a, E> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self
    }
}

impl<'a> SqlAudit<'a, dyn Blocking + 'a> {
    fn add_sources(&mut self, sources: Vec<Unfound>) -> Result<()> {
        now(self.database.add(&mut *call(&mut self.executor), sources))
    }

    /// Lists the rows of a counter's source that cannot be counted, or that SQL counts differently
    /// from their tally: one error for each, which names the key and the reason, up to `most`. Use
    /// it to repair such rows by hand. It reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::NoSource`] if the counter has no source, and errors of the database. A rollup has
    /// no rows, so its list is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Columns, SqliteAudit, SqliteRows};
    /// use keepcount::{Counter, Record, Schema, SqliteStore, Tally};
    ///
    /// const VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[VOTES.table()]);
    ///
    /// struct Vote(i64);
    /// # impl Record for Vote {
    /// #     fn tally(&self, to: &mut Tally<'_>) { to.add(VOTES, self.0, 1); }
    /// # }
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show); CREATE INDEX i ON votes (show); INSERT INTO votes VALUES (7), (x'07'), ('7')")?;
    /// SqliteStore::new(&conn, &SCHEMA).create()?;
    /// let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
    /// audit.add(SqliteRows::of("votes", |row| Ok(Vote(row.get(0)?))).key(VOTES, Columns::of(["show"]).count()))?;
    /// for row in audit.faulty_rows(VOTES.id(), 100)? {
    ///     eprintln!("{row}");
    /// }
    /// # assert_eq!(audit.faulty_rows(VOTES.id(), 100)?.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn faulty_rows(&mut self, counter: CounterId, most: usize) -> Result<Vec<Error>> {
        now(self.database.faulty_rows(&mut *call(&mut self.executor), &counter, most))
    }

    /// Returns the counters that have a source, and the rollups of them, for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        self.database.counters()
    }
}

impl<'a> Audit for SqlAudit<'a, dyn Blocking + 'a> {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.database.identity())
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        now(self.database.probe(&mut *call(&mut self.executor), ask))
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        now(self.database.compare(&mut *call(&mut self.executor), ask))
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        now(self.database.repair(&mut *call(&mut self.executor), ask))
    }

    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        now(self.database.recall(&mut *call(&mut self.executor), token))
    }

    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        now(self.database.keep(&mut *call(&mut self.executor), ask))
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        now(self.database.ready(&mut *call(&mut self.executor), ask))
    }
}

impl<'a, E: Blocking + 'a> Audit for SqlAudit<'a, E> {
    fn identity(&mut self) -> Result<u64> {
        (**self).identity()
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        (**self).probe(ask)
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        (**self).compare(ask)
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        (**self).repair(ask)
    }

    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        (**self).recall(token)
    }

    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        (**self).keep(ask)
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        (**self).ready(ask)
    }
}
