//! The audit of a SQLite database: a face of [`Database`] that blocks.

mod sight;
mod source;

use rusqlite::Connection;

pub use self::source::{Source, TypedSource};
use super::audit::{Audit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired};
use super::database::{Database, RowSource};
use super::token::Token;
use crate::counter::{Counter, CounterId};
use crate::drivers::rusqlite::{Rusqlite, Sqlite};
use crate::engine::now;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::schema::Schema;

/// A SQLite database's rows and totals.
///
/// A page is compared in one snapshot, and in WAL mode blocks nobody. If rows are in another file,
/// which is attached, comparing a page takes the write locks of all files instead, since each file
/// has a snapshot of its own. A repair takes the write lock, recounts its keys, adds the
/// differences, and commits.
#[derive(Debug)]
pub struct SqliteAudit<'a> {
    conn: &'a Connection,
    database: Database<'a, Sqlite>,
}

impl<'a> SqliteAudit<'a> {
    /// Creates an audit without sources, and checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the connection is inside a transaction, and the errors of
    /// [`SqliteStore::check`](crate::SqliteStore::check).
    pub fn new(conn: &'a Connection, schema: &'a Schema) -> Result<Self> {
        Ok(Self { conn, database: now(Database::of(&mut Rusqlite::new(conn), schema))? })
    }

    /// Adds the rows of a counter. A second call for one counter replaces the first.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if the table is absent. [`Error::Source`] if records of this type
    /// do not drive the counter; if the key has another number of columns; if the rows of a table
    /// do not come out of an index in key order; if several schemas have the table, for instance
    /// because a temporary one hides it; if rows are in an attached file that can only be read, in
    /// WAL mode; or if SQLite refuses the SQL.
    pub fn add<K: Key>(&mut self, counter: Counter<K>, mut source: TypedSource<'a>) -> Result<()> {
        let counter = counter.id();
        source.target.check(self.database.schema(), &counter, source.by_tally)?;
        (source.check_driven)(&counter)?;
        source.target.names().try_for_each(|name| sight::find(self.conn, &counter, name))?;
        let mut source = RowSource::<Sqlite>::of(counter, source.target, source.by_tally, source.reader)?;
        sight::check(self.conn, &mut source)?;
        self.database.put(source);
        Ok(())
    }

    /// Lists the rows of a counter's source that cannot be counted, or that SQL counts differently
    /// from their tally: one error for each, which names the key and the reason, up to `most`. Use
    /// it to repair such rows by hand. It reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] if the counter has no source, and errors of the database.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Source, SqliteAudit};
    /// use keepcount::{Counter, CounterId, Record, Schema, SqliteStore, Tally};
    ///
    /// const VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[VOTES.table()]);
    ///
    /// struct Vote(i64);
    /// # impl Record for Vote {
    /// #     const COUNTERS: &'static [CounterId] = &[VOTES.id()];
    /// #     fn tally(&self, to: &mut Tally<'_>) { to.add(VOTES, self.0, 1); }
    /// # }
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show); CREATE INDEX i ON votes (show); INSERT INTO votes VALUES (7), (x'07'), ('7')")?;
    /// SqliteStore::new(&conn, &SCHEMA).create()?;
    /// let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
    /// audit.add(VOTES, Source::table("votes", ["show"]).rows("show", |row| Ok(Vote(row.get(0)?))))?;
    /// for row in audit.faulty_rows(VOTES.id(), 100)? {
    ///     eprintln!("{row}");
    /// }
    /// # assert_eq!(audit.faulty_rows(VOTES.id(), 100)?.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn faulty_rows(&mut self, counter: CounterId, most: usize) -> Result<Vec<Error>> {
        now(self.database.faulty_rows(&mut Rusqlite::new(self.conn), &counter, most))
    }

    /// Returns the counters that have a source, and the rollups of them, for
    /// [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        self.database.counters()
    }
}

impl Audit for SqliteAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.database.identity())
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        now(self.database.probe(&mut Rusqlite::new(self.conn), ask))
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        now(self.database.compare(&mut Rusqlite::new(self.conn), ask))
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        now(self.database.repair(&mut Rusqlite::new(self.conn), ask))
    }

    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        now(self.database.recall(&mut Rusqlite::new(self.conn), token))
    }

    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        now(self.database.keep(&mut Rusqlite::new(self.conn), ask))
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        now(self.database.ready(&mut Rusqlite::new(self.conn), ask))
    }
}
