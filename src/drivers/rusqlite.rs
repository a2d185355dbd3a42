//! The driver over rusqlite, which blocks.
//!
//! After every error the driver asks the connection what became of the statement, and never relies
//! on the error's code. SQLite calls a progress handler once more when a statement has finished,
//! and then returns `SQLITE_INTERRUPT` although the statement's effect stands. It also returns the
//! error of a WAL hook, which runs after a commit.

use std::fmt;
use std::mem::ManuallyDrop;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, Params, Statement, params_from_iter};

use crate::batch::Batch;
use crate::error::{Cause, Result, chain};
use crate::executor::{
    Blocking, Column, Connect, Driver, Each, EachOf, ErrorKind, Executor, Failure, NotCommitted,
    Reader, Reading, Reply, Row, Stopped,
};
use crate::sql::{Dialect, Query, Value};

/// rusqlite's connection, and the transaction that keepcount began on it.
pub struct Rusqlite<'c> {
    pub(crate) conn: &'c Connection,
    /// The statement that began the transaction, while it is open. It can end the transaction when
    /// a handler stops every statement.
    begun: Kept<CachedStatement<'c>>,
    /// The open cursor that holds the snapshot being read. The snapshot ends with the statement,
    /// which takes no call that could fail.
    snapshot: Kept<Statement<'c>>,
}

/// A statement until a call [finishes](Executor::finish). It is not dropped by itself, so that a
/// store does not use its connection any more when it goes out of scope.
type Kept<T> = Option<ManuallyDrop<T>>;

const BEGIN: &str = "BEGIN IMMEDIATE";

impl fmt::Debug for Rusqlite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rusqlite").field("conn", self.conn).finish_non_exhaustive()
    }
}

impl Rusqlite<'_> {
    /// Runs queries. After a query that is single, its cursor stays open while the following
    /// queries run, so that all of them read one snapshot.
    fn each_row(
        &self,
        queries: &[Query<'_>],
        first: usize,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        for (at, query) in queries.iter().enumerate() {
            let failed = |row| move |error| failed_at(first + at, row, error);
            let mut statement = self.conn.prepare_cached(&query.text).map_err(failed(0))?;
            for (row_at, params) in query.rows().enumerate() {
                let failed = failed(row_at);
                let mut rows = statement.query(params_from_iter(params)).map_err(failed)?;
                if query.is_single() {
                    if let Some(row) = rows.next().map_err(failed)? {
                        each(first + at, row).map_err(Stopped::Refused)?;
                    }
                    return self.each_row(
                        queries.get(at + 1..).unwrap_or_default(),
                        first + at + 1,
                        each,
                    );
                }
                while let Some(row) = rows.next().map_err(failed)? {
                    each(first + at, row).map_err(Stopped::Refused)?;
                }
            }
        }
        Ok(())
    }

    fn scan_rows(&self, query: &Query<'_>, each: &mut Each<'_>) -> Result<(), Stopped> {
        let failed = |row| move |error| failed_at(0, row, error);
        let mut statement = self.conn.prepare_cached(&query.text).map_err(failed(0))?;
        for (row_at, params) in query.rows().enumerate() {
            let failed = failed(row_at);
            let mut rows = statement.query(params_from_iter(params)).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                if !each(row).map_err(Stopped::Refused)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn lock(&mut self) -> rusqlite::Result<()> {
        let mut begin = self.conn.prepare_cached(BEGIN)?;
        let done = begin.execute(());
        // The transaction is also open if the statement was stopped after it had begun it.
        if done.is_ok() || !self.conn.is_autocommit() {
            self.begun = Some(ManuallyDrop::new(begin));
            return Ok(());
        }
        done.map(drop)
    }

    fn open_snapshot(&mut self) -> rusqlite::Result<()> {
        let mut first = self.conn.prepare("SELECT EXISTS (SELECT 1 FROM sqlite_schema)")?;
        let mut rows = first.raw_query();
        rows.next()?;
        // Dropped, it would reset the statement, and so end the snapshot.
        std::mem::forget(rows);
        self.snapshot = Some(ManuallyDrop::new(first));
        Ok(())
    }

    fn write_rows(&self, query: &Query<'_>, at: usize) -> Result<u64, Stopped> {
        let failed = |row| move |error| failed_at(at, row, error);
        let mut statement = self.conn.prepare_cached(&query.text).map_err(failed(0))?;
        let mut all = 0;
        for (row, params) in query.rows().enumerate() {
            let written = write(self.conn, &mut statement, params_from_iter(params))
                .map_err(failed(row))? as u64;
            if query.is_skipped(params, written) {
                return Err(Stopped::Skipped { query: at, row });
            }
            all += written;
        }
        Ok(all)
    }
}

fn failed_at(query: usize, row: usize, error: rusqlite::Error) -> Stopped {
    Stopped::Failed { query, row, error: error.into() }
}

/// rusqlite, as a driver.
#[derive(Debug)]
pub enum Sqlite {}

impl Driver for Sqlite {
    type Row<'r> = rusqlite::Row<'r>;
}

impl<'c> Connect for Rusqlite<'c> {
    type Driver = Sqlite;
    type Connection = &'c Connection;

    fn over(conn: &'c Connection) -> Self {
        Self { conn, begun: None, snapshot: None }
    }
}

impl Blocking for Rusqlite<'_> {}

impl Executor for Rusqlite<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        cause.downcast_ref().map_or(ErrorKind::Other, kind)
    }

    fn is_nested(&self) -> bool {
        self.begun.is_none() && !self.conn.is_autocommit()
    }

    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::now(self.each_row(queries, 0, each))
    }

    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::now(self.scan_rows(query, each))
    }

    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>> {
        let all = queries.iter().enumerate();
        Reply::now(all.map(|(at, query)| self.write_rows(query, at)).collect())
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        Reply::now(self.conn.execute_batch(script).map_err(Into::into))
    }

    /// Takes the write lock.
    fn begin(&mut self) -> Reply<'_, Result<(), Failure>> {
        Reply::now(self.lock().map_err(Into::into))
    }

    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>> {
        let begun = if reading.is_locked { self.lock() } else { self.open_snapshot() };
        Reply::now(begun.map_err(Into::into))
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::now(Ok(self.conn.is_autocommit()))
    }

    /// A commit that fails and leaves the transaction open, for instance because of a lock, did
    /// nothing. If it failed and ended the transaction, its outcome is unknown: SQLite may have
    /// been stopped after the commit, or a WAL hook may have failed. A disk error or a full disk
    /// can also follow a commit that stands in the log: with `psow=0` SQLite writes on, up to the
    /// next sector.
    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        let committed =
            self.conn.prepare_cached("COMMIT").and_then(|mut commit| commit.execute(()));
        let is_over = self.conn.is_autocommit();
        if is_over {
            self.begun.take().map(ManuallyDrop::into_inner);
        }
        Reply::now(committed.map(drop).map_err(|error| {
            let error = Failure::from(error);
            if is_over { NotCommitted::Unknown(error) } else { NotCommitted::Refused(error) }
        }))
    }

    fn roll_back(&mut self) -> Reply<'_, bool> {
        if self.snapshot.take().map(ManuallyDrop::into_inner).is_some() {
            return Reply::now(true);
        }
        let kept = self.begun.take().map(ManuallyDrop::into_inner);
        let mut begin = kept.or_else(|| self.conn.prepare_cached(BEGIN).ok());
        Reply::now(rolled_back(self.conn, begin.as_deref_mut()))
    }

    fn finish(&mut self) {
        self.snapshot.take().map(ManuallyDrop::into_inner);
        if let Some(mut begin) = self.begun.take().map(ManuallyDrop::into_inner) {
            rolled_back(self.conn, Some(&mut begin));
        }
    }
}

/// Executes a statement that writes, in a transaction, and returns how many rows it changed. A
/// statement that was stopped after it had finished counts as done. So does one that returns a row
/// (`PRAGMA count_changes`), which rusqlite takes for an error.
fn write(
    conn: &Connection,
    statement: &mut Statement<'_>,
    params: impl Params,
) -> rusqlite::Result<usize> {
    let before = conn.total_changes();
    statement.execute(params).or_else(|error| {
        let through = matches!(error, rusqlite::Error::ExecuteReturnedResults)
            || conn.total_changes() != before;
        let changed = || usize::try_from(conn.changes()).unwrap_or(usize::MAX);
        if through && !conn.is_autocommit() { Ok(changed()) } else { Err(error) }
    })
}

/// How often a rollback is tried. A handler may stop the first one, before it did anything or after
/// it finished.
const ROLLBACKS: usize = 8;

/// Ends the open transaction, unless SQLite has already done so. SQLite does it when a disk is full
/// or fails, or when a statement that writes is stopped. Returns whether no transaction is open.
///
/// A handler that stops every statement also stops ROLLBACK before it does anything. BEGIN
/// IMMEDIATE counts as a statement that writes: if it is stopped, SQLite rolls the transaction
/// back; if it is not stopped, it fails and changes nothing.
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

impl Row for rusqlite::Row<'_> {
    fn len(&self) -> usize {
        AsRef::<Statement<'_>>::as_ref(self).column_count()
    }

    fn column(&self, index: usize) -> Column<'_> {
        match self.get_ref(index) {
            Ok(ValueRef::Integer(value)) => Column::Integer(value),
            Ok(ValueRef::Real(value)) => Column::Real(value),
            Ok(ValueRef::Text(bytes)) => {
                let text = std::str::from_utf8(bytes);
                text.map_or_else(|_| Column::NoText(bytes.into()), |text| Column::Text(text.into()))
            }
            Ok(ValueRef::Blob(bytes)) => Column::Bytes(bytes.into()),
            Ok(ValueRef::Null) | Err(_) => Column::Null,
        }
    }

    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause> {
        reader.read::<Sqlite>(self, to)
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Integer(value) => ValueRef::Integer(*value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) | Self::Uuid(bytes) => ValueRef::Blob(bytes),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
            Self::Integers(_) | Self::Texts(_) | Self::Blobs(_) | Self::Uuids(_) => {
                return Err(rusqlite::Error::ToSqlConversionFailure(
                    "only PostgreSQL has arrays".into(),
                ));
            }
        }))
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self { kind: kind(&error), fault: fault(&error), cause: error.into() }
    }
}

fn kind(error: &rusqlite::Error) -> ErrorKind {
    let code = error.sqlite_error().map(|error| error.extended_code);
    ErrorKind::of_sqlite(code, &error.to_string())
}

/// Without a code, rusqlite itself refused a column or a text of SQL; and an error of SQL has a
/// code that has no name of its own.
fn fault(error: &rusqlite::Error) -> Option<String> {
    let is_of_statement = matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    );
    is_of_statement.then(|| chain(error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::engine::now;

    const NEVER: u32 = u32::MAX;

    /// A database, and after how many steps a handler stops the statement that runs then.
    fn database() -> (Connection, Arc<AtomicU32>) {
        let mut conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE votes (show)").unwrap();
        let left = Arc::new(AtomicU32::new(NEVER));
        let stops = Arc::clone(&left);
        conn.progress_handler(1, Some(move || stops.fetch_sub(1, Ordering::Relaxed) == 1)).unwrap();
        (conn, left)
    }

    #[test]
    fn queries_behind_single_ones_keep_their_positions() {
        let (conn, _) = database();
        let query = |text: &str| Query::new(text, Vec::new());
        let queries = [
            query("SELECT 1").single(),
            query("SELECT 2"),
            query("SELECT 3").single(),
            query("SELECT 4"),
            query("SELECT 5 UNION ALL SELECT 6"),
            query("SELECT * FROM nothing"),
        ];
        let mut read = Vec::new();
        let stopped = now(Rusqlite::over(&conn).fetch(&queries, &mut |at, row| {
            read.push((at, row.column(0).into_owned()));
            Ok(())
        }));
        assert!(matches!(stopped, Err(Stopped::Failed { query: 5, .. })), "{stopped:?}");
        let wanted = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6)];
        assert_eq!(read, wanted.map(|(at, value)| (at, Column::Integer(value))));
    }

    #[test]
    fn begin_that_is_stopped_has_failed_or_has_begun_a_transaction_that_can_be_ended() {
        let (mut failed, mut begun) = (0, 0);
        for call in 1..20 {
            let (conn, left) = database();
            let mut executor = Rusqlite::over(&conn);
            conn.prepare_cached(BEGIN).unwrap();
            left.store(call, Ordering::Relaxed);
            let done = now(executor.begin());
            left.store(NEVER, Ordering::Relaxed);
            assert_eq!(done.is_ok(), !conn.is_autocommit(), "{call}: {done:?}");
            *if done.is_ok() { &mut begun } else { &mut failed } += 1;
            executor.finish();
            assert!(conn.is_autocommit());
        }
        assert!(failed > 0 && begun > 0);
    }

    #[test]
    fn statement_that_is_stopped_changed_nothing_or_counts_the_rows_that_it_changed() {
        let (mut failed, mut done) = (0, 0);
        for call in 1..40 {
            let (conn, left) = database();
            let mut executor = Rusqlite::over(&conn);
            now(executor.begin()).unwrap();
            let insert = [Query::new("INSERT INTO votes VALUES (1), (2)", Vec::new())];
            conn.prepare_cached(&insert[0].text).unwrap();
            left.store(call, Ordering::Relaxed);
            let written = now(executor.execute(&insert));
            left.store(NEVER, Ordering::Relaxed);
            let rows: i64 =
                conn.query_row("SELECT count(*) FROM votes", (), |row| row.get(0)).unwrap();
            *if written.is_ok() { &mut done } else { &mut failed } += 1;
            assert_eq!(rows.cast_unsigned(), written.map_or(0, |written| written[0]), "{call}");
            executor.finish();
        }
        assert!(failed > 0 && done > 0);
    }
}
