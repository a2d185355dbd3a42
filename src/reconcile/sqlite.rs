//! The audit of a SQLite database over rusqlite.

use super::database::Rows;
use super::sql_audit::SqlAudit;
use crate::drivers::rusqlite::{Rusqlite, Sqlite};

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
pub type SqliteRows = Rows<Sqlite>;

/// A SQLite database's rows and totals.
///
/// A page is compared in one snapshot, and in WAL mode blocks nobody. If rows are in another file,
/// which is attached, comparing a page takes the write locks of all files instead, since each file
/// has a snapshot of its own. A repair takes the write lock, recounts its keys, adds the
/// differences, and commits.
pub type SqliteAudit<'a> = SqlAudit<'a, Rusqlite<'a>>;
