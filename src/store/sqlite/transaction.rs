//! How a transaction begins and ends, and what a statement that failed has done. After every error the connection is asked, never the error's code:
//! SQLite asks a progress handler once more when a statement is through, and returns `SQLITE_INTERRUPT` for one whose effect stands; and it returns the
//! error of a WAL hook, which runs behind a commit.

use rusqlite::{CachedStatement, Connection, Params, Statement};

use super::failed;
use crate::error::{Error, Result};

/// Runs `work` in a transaction with the write lock from its start, and commits it. The connection is in none.
pub(crate) fn commit_after<T>(conn: &Connection, doing: String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = Transaction::begin(conn, doing)?;
    match work() {
        Ok(done) => own.commit().map(|()| done),
        Err(error) => Err(own.roll_back(error)),
    }
}

/// Runs `work`, which only reads, while nobody writes any file of this connection. The connection is in no transaction.
pub(crate) fn under_lock<T>(conn: &Connection, doing: String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = Transaction::begin(conn, doing)?;
    let done = work();
    own.end(done)
}

/// Runs `work`, whose reads of the database's own file see one snapshot. The connection is in no transaction, and is in none in between: an open
/// cursor holds the snapshot, which needs no end that could fail.
pub(crate) fn in_snapshot<T>(conn: &Connection, doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |error| failed(doing, error);
    let mut first = conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").map_err(failed)?;
    let mut rows = first.query(()).map_err(failed)?;
    rows.next().map_err(failed)?;
    work()
}

/// Executes a statement that writes, in a transaction; gives how many rows it changed. One that was stopped when it was through has done what it does, and
/// so has one that returns a row (`PRAGMA count_changes`), which the driver takes for an error.
pub(crate) fn write(conn: &Connection, statement: &mut Statement<'_>, params: impl Params) -> rusqlite::Result<usize> {
    let before = conn.total_changes();
    statement.execute(params).or_else(|error| {
        let through = matches!(error, rusqlite::Error::ExecuteReturnedResults) || conn.total_changes() != before;
        if through && !conn.is_autocommit() { Ok(changed(conn)) } else { Err(error) }
    })
}

fn changed(conn: &Connection) -> usize {
    usize::try_from(conn.changes()).unwrap_or(usize::MAX)
}

/// Rolls the caller's transaction back, of which some cannot stay; the error says so where that fails.
#[cold]
pub(crate) fn give_up(conn: &Connection, error: Error) -> Error {
    let mut begin = conn.prepare_cached(BEGIN);
    if rolled_back(conn, begin.as_deref_mut().ok()) { error } else { still_open(error) }
}

/// A transaction that was begun here.
struct Transaction<'c> {
    conn: &'c Connection,
    /// What it is for, for errors.
    doing: String,
    begin: CachedStatement<'c>,
    open: bool,
}

const BEGIN: &str = "BEGIN IMMEDIATE";

impl<'c> Transaction<'c> {
    fn begin(conn: &'c Connection, doing: String) -> Result<Self> {
        let mut begin = conn.prepare_cached(BEGIN).map_err(|error| failed(&doing, error))?;
        match begin.execute(()) {
            Err(error) if conn.is_autocommit() => Err(failed(&doing, error)),
            // Also where it was stopped when it had begun.
            _ => Ok(Self { conn, doing, begin, open: true }),
        }
    }

    /// A commit that fails and leaves the transaction open, as one that meets a lock, did nothing. Of one that ends the transaction nobody can say: SQLite may have
    /// been stopped behind it; a WAL hook may have failed; a disk that fails, or is full, may do so behind a commit that stands in the log: with `psow=0` SQLite
    /// writes on, up to the next sector.
    fn commit(mut self) -> Result<()> {
        let Err(error) = self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute(())) else {
            self.open = false;
            return Ok(());
        };
        if self.conn.is_autocommit() {
            self.open = false;
            return Err(Error::Unknown { doing: std::mem::take(&mut self.doing), cause: error.into() });
        }
        let error = failed(&self.doing, error);
        Err(self.roll_back(error))
    }

    /// Gives the error for which it is rolled back, or one that says that it is open still.
    #[cold]
    fn roll_back(mut self, error: Error) -> Error {
        self.open = false;
        if rolled_back(self.conn, Some(&mut self.begin)) { error } else { still_open(error) }
    }

    /// Ends it where nothing was written.
    fn end<T>(mut self, done: Result<T>) -> Result<T> {
        self.open = false;
        if rolled_back(self.conn, Some(&mut self.begin)) {
            return done;
        }
        let doing = std::mem::take(&mut self.doing);
        Err(still_open(match done {
            Ok(_) => Error::Database { doing, cause: "its reads are done".into() },
            Err(error) => error,
        }))
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // A panic passes through; it is all that can be said then.
        if self.open {
            rolled_back(self.conn, Some(&mut self.begin));
        }
    }
}

/// How often a rollback is tried: a handler may stop the first, before it did anything or when it was through.
const ROLLBACKS: usize = 8;

/// Ends the open transaction, if SQLite has not done so by itself, as it does when a disk is full or fails, or a statement that writes is stopped.
///
/// A handler that stops every statement stops ROLLBACK too, before it did anything. BEGIN IMMEDIATE counts as a statement that writes: SQLite rolls the
/// transaction back when it is stopped, and when it is not, it is an error that changes nothing.
fn rolled_back(conn: &Connection, mut begin: Option<&mut Statement<'_>>) -> bool {
    for _ in 0..ROLLBACKS {
        if conn.is_autocommit() {
            return true;
        }
        let _ = conn.prepare_cached("ROLLBACK").and_then(|mut roll_back| roll_back.execute(()));
        if let (false, Some(begin)) = (conn.is_autocommit(), &mut begin) {
            let _ = begin.execute(());
        }
    }
    conn.is_autocommit()
}

fn still_open(error: Error) -> Error {
    match error {
        Error::Database { doing, cause } | Error::Busy { doing, cause, .. } => Error::TransactionOpen { doing, cause },
        other => Error::TransactionOpen { doing: "writing totals".to_owned(), cause: other.into() },
    }
}
