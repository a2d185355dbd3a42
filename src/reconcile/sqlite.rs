//! The audit of a SQLite database: a face of [`Database`] that blocks.

mod source_check;

use rusqlite::Connection;

use super::audit::{
    Audit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use super::database::{Database, Rows};
use super::token::Token;
use crate::counter::CounterId;
use crate::drivers::rusqlite::{Rusqlite, Sqlite};
use crate::engine::now;
use crate::error::{Error, Result};
use crate::schema::Schema;

/// The rows of a record in SQLite.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Columns, Mode, Options, Reconciler, SqliteAudit, SqliteRows, SystemRuntime, run};
/// use keepcount::{Counter, Record, Schema, SqliteStore, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const USER_VOTES: Counter<String> = Counter::new("user.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_SCORE.table(), USER_VOTES.table()]);
///
/// struct Vote { show: i64, user: String, stars: i64, spam: bool }
///
/// impl Record for Vote {
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_SCORE, self.show, self.stars);
///             to.add(USER_VOTES, &self.user, 1);
///         }
///     }
/// }
///
/// let conn = rusqlite::Connection::open_in_memory()?;
/// conn.execute_batch(
///     "CREATE TABLE votes (show_id INTEGER, user TEXT, stars INTEGER, spam INTEGER);
///      CREATE INDEX votes_by_show ON votes (show_id);
///      CREATE INDEX votes_by_user ON votes (user);
///      INSERT INTO votes VALUES (7, 'ann', 5, 0), (7, 'bob', 3, 0), (7, 'bob', 1, 1)",
/// )?;
/// SqliteStore::new(&conn, &SCHEMA).create()?;
///
/// let votes = SqliteRows::of("votes", |row| {
///     Ok(Vote { show: row.get("show_id")?, user: row.get("user")?, stars: row.get("stars")?, spam: row.get("spam")? })
/// });
/// let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
/// audit.add(votes
///     .key(USER_VOTES, ["user"]) // by its tally
///     .key(SHOW_SCORE, Columns::of(["show_id"]).sum("stars").filter("NOT spam")))?; // by SQL
/// let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// let report = run(&mut verify, &mut audit, &mut SystemRuntime::new())?;
/// assert_eq!((report.drift(), report.counters[0].samples[0].expected), (3, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type SqliteRows<'a> = Rows<'a, Sqlite>;

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

    /// Adds the rows of a record. A counter that was added before gets this source instead.
    ///
    /// If one of the counters is refused, none is added.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if the table is absent. [`Error::Source`] if the key has another
    /// number of columns; if the rows of a table do not come out of an index in key order; if
    /// several schemas have the table, for instance because a temporary one hides it; if rows are
    /// in an attached file that can only be read, in WAL mode; or if SQLite refuses the SQL.
    pub fn add(&mut self, rows: SqliteRows<'a>) -> Result<()> {
        let mut found = Vec::new();
        for mut source in rows.sources(self.database.schema())? {
            let counter = source.counter;
            source
                .target
                .names()
                .try_for_each(|name| source_check::find(self.conn, &counter, name))?;
            let mut source = source.found()?;
            source_check::check(self.conn, &mut source)?;
            found.push(source);
        }
        self.database.put(found);
        Ok(())
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
