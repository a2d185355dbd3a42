//! The executor over a connection of sqlx: statements one after the other, and transactions by
//! sqlx's own count of them.

use std::fmt;
use std::marker::PhantomData;

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use keepcount::executor::{
    Column, Connect, Driver, Each, EachOf, ErrorKind, Executor, Failure, NotCommitted, Reader,
    Reading, Reply, Row, Stopped,
};
use keepcount::sql::{Dialect, Query, Value};
use keepcount::{Batch, Cause};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};
use sqlx_core::database::Database;
use sqlx_core::transaction::TransactionManager;

type Result<T, E = sqlx::Error> = std::result::Result<T, E>;

/// A database of sqlx: PostgreSQL or SQLite.
pub trait Library: Database {
    /// Its dialect of SQL.
    const DIALECT: Dialect;
    /// Begins a transaction that may write.
    const BEGIN: &'static str;
    /// Begins a transaction that reads one snapshot.
    const BEGIN_READ: &'static str;
    /// Fixes the snapshot.
    const LOOK: &'static str;
    /// Whether a batch in the caller's transaction has a savepoint. Otherwise that transaction
    /// commits nothing if a batch fails.
    const HAS_SAVEPOINTS: bool;

    /// Adds a parameter.
    ///
    /// # Errors
    ///
    /// If the database has no such values.
    fn bind(to: &mut Self::Arguments, value: &Value<'_>) -> Result<(), Cause>;
    /// A column of a row.
    fn column(row: &Self::Row, index: usize) -> Column<'_>;
    /// What an error means.
    fn kind(error: &sqlx::Error) -> ErrorKind;
    /// What is wrong with a statement or its rows, if an error is about those.
    fn fault(error: &sqlx::Error) -> Option<String>;
    /// Runs a statement that returns rows. `keep` says whether it stays prepared.
    fn fetch<'e>(
        conn: &'e mut Self::Connection,
        text: &str,
        arguments: Self::Arguments,
        keep: bool,
    ) -> BoxStream<'e, Result<Self::Row>>;
    /// Runs a statement, and returns how many rows it wrote.
    fn execute<'e>(
        conn: &'e mut Self::Connection,
        text: &str,
        arguments: Self::Arguments,
        keep: bool,
    ) -> BoxFuture<'e, Result<u64>>;
    /// Runs statements without parameters.
    fn run<'e>(conn: &'e mut Self::Connection, script: &str) -> BoxFuture<'e, Result<()>>;
    /// Whether no transaction is open, of which sqlx counts none.
    fn is_idle(conn: &mut Self::Connection) -> BoxFuture<'_, Result<bool>>;
    /// What became of a commit that failed.
    fn not_committed(
        conn: &mut Self::Connection,
        error: sqlx::Error,
    ) -> BoxFuture<'_, NotCommitted>;
    /// Makes a rollback possible that failed. Returns `false` if there is nothing to roll back.
    fn roll_back_again(conn: &mut Self::Connection, error: sqlx::Error) -> BoxFuture<'_, bool>;
    /// Forgets all prepared statements.
    fn forget(conn: &mut Self::Connection) -> BoxFuture<'_, Result<()>>;
}

/// The statements of the macro are the same for each database; sqlx's traits say so for each alone.
macro_rules! statements {
    () => {
        fn fetch<'e>(
            conn: &'e mut Self::Connection,
            text: &str,
            arguments: Self::Arguments,
            keep: bool,
        ) -> BoxStream<'e, sqlx::Result<Self::Row>> {
            let text = sqlx::AssertSqlSafe(text.to_owned());
            sqlx::query_with(text, arguments).persistent(keep).fetch(conn)
        }

        fn execute<'e>(
            conn: &'e mut Self::Connection,
            text: &str,
            arguments: Self::Arguments,
            keep: bool,
        ) -> BoxFuture<'e, sqlx::Result<u64>> {
            let text = sqlx::AssertSqlSafe(text.to_owned());
            let done = sqlx::query_with(text, arguments).persistent(keep).execute(conn);
            Box::pin(async move { Ok(done.await?.rows_affected()) })
        }

        fn run<'e>(
            conn: &'e mut Self::Connection,
            script: &str,
        ) -> BoxFuture<'e, sqlx::Result<()>> {
            let script = sqlx::AssertSqlSafe(script.to_owned());
            Box::pin(async move { sqlx::raw_sql(script).execute(conn).await.map(drop) })
        }

        fn forget(conn: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<()>> {
            Box::pin(sqlx::Connection::clear_cached_statements(conn))
        }
    };
}
pub(crate) use statements;

/// A connection of sqlx, and the transaction or savepoint that keepcount began on it.
pub struct Sqlx<'c, L: Library> {
    conn: &'c mut L::Connection,
    /// Whether it was in a transaction of the caller when it was given.
    is_callers: bool,
    open: Option<Open>,
    /// Whether the reason of the last failure was put right.
    recovered: bool,
}

/// What keepcount began and did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Write,
    /// A snapshot, read by statements that nobody runs often.
    Read,
}

/// The rows of a database of sqlx.
pub struct SqlxRow<L>(PhantomData<L>);

impl<L: Library> Driver for SqlxRow<L> {
    type Row<'r> = L::Row;
}

struct Fetched<'r, L: Library>(&'r L::Row);

impl<L: Library> Row for Fetched<'_, L> {
    fn len(&self) -> usize {
        sqlx::Row::len(self.0)
    }

    fn column(&self, index: usize) -> Column<'_> {
        L::column(self.0, index)
    }

    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause> {
        reader.read::<SqlxRow<L>>(self.0, to)
    }
}

impl<L: Library> fmt::Debug for Sqlx<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlx").field("is_callers", &self.is_callers).finish_non_exhaustive()
    }
}

impl<'c, L: Library> Connect for Sqlx<'c, L> {
    type Driver = SqlxRow<L>;
    type Connection = &'c mut L::Connection;

    fn over(conn: &'c mut L::Connection) -> Self {
        let is_callers = L::TransactionManager::get_transaction_depth(conn) > 0;
        Self { conn, is_callers, open: None, recovered: false }
    }
}

fn failure<L: Library>(error: sqlx::Error) -> Failure {
    Failure { kind: L::kind(&error), fault: L::fault(&error), cause: error.into() }
}

/// The number of rows that a scan reads at a time.
const MAX_FETCH: usize = 2_000;
/// The cursor of a scan.
const CURSOR: &str = "keepcount_scan";
/// How often a rollback that fails is tried.
const MAX_ROLLBACKS: u32 = 8;

impl<L: Library> Sqlx<'_, L> {
    /// Passes the rows of one execution to `each` as they arrive, until it says no. `keep` says
    /// whether the statement stays prepared: not in an audit, whose statements are long and rare.
    async fn rows(
        &mut self,
        text: &str,
        values: &[Value<'_>],
        keep: bool,
        each: &mut Each<'_>,
    ) -> Result<bool, At> {
        let mut rows = L::fetch(self.conn, text, arguments::<L>(values)?, keep);
        while let Some(row) = rows.try_next().await.map_err(failure::<L>)? {
            if !each(&Fetched::<L>(&row)).map_err(At::Refused)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn fetch_all(
        &mut self,
        queries: &[Query<'_>],
        begun: &mut bool,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        for (query, of) in queries.iter().enumerate() {
            for (row, values) in of.rows().enumerate() {
                let mut one = |fetched: &dyn Row| {
                    *begun = true;
                    each(query, fetched).map(|()| !of.is_single())
                };
                let read =
                    self.rows(&of.text, values, self.open != Some(Open::Read), &mut one).await;
                read.map_err(|at| at.stopped(query, row))?;
            }
        }
        Ok(())
    }

    /// Fetches, in a snapshot if that is wanted and there is none.
    async fn fetch_once(
        &mut self,
        queries: &[Query<'_>],
        begun: &mut bool,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        let wants_snapshot = L::HAS_SAVEPOINTS && queries.iter().any(Query::is_single);
        if !wants_snapshot || self.is_callers || self.open.is_some() {
            return self.fetch_all(queries, begun, each).await;
        }
        // It fails in a transaction that sqlx does not know of, which has a snapshot.
        let is_begun = self.begin_with(Open::Write, L::BEGIN_READ).await.is_ok();
        if !is_begun {
            self.open = None;
        }
        let fetched = self.fetch_all(queries, begun, each).await;
        if is_begun {
            self.end().await;
        }
        fetched
    }

    async fn execute_all(&mut self, queries: &[Query<'_>]) -> Result<Vec<u64>, Stopped> {
        let mut all = Vec::with_capacity(queries.len());
        for (query, of) in queries.iter().enumerate() {
            let mut sum = 0;
            for (row, values) in of.rows().enumerate() {
                let written = self.written(&of.text, values, true).await;
                let written = written.map_err(|at| at.stopped(query, row))?;
                if of.is_skipped(values, written) {
                    return Err(Stopped::Skipped { query, row });
                }
                sum += written;
            }
            all.push(sum);
        }
        Ok(all)
    }

    async fn written(&mut self, text: &str, values: &[Value<'_>], keep: bool) -> Result<u64, At> {
        let arguments = arguments::<L>(values)?;
        Ok(L::execute(self.conn, text, arguments, keep).await.map_err(failure::<L>)?)
    }

    /// A cursor, since a stream that is not read to its end is read to its end later. FETCH returns
    /// other columns for another cursor, so it must not stay prepared.
    async fn scan_by_cursor(
        &mut self,
        query: &Query<'_>,
        values: &[Value<'_>],
        each: &mut Each<'_>,
    ) -> Result<bool, At> {
        let declare = format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR {}", query.text);
        self.written(&declare, values, false).await?;
        let next = format!("FETCH {MAX_FETCH} FROM {CURSOR}");
        let mut is_whole = true;
        loop {
            let mut rows = 0;
            let mut one = |row: &dyn Row| {
                rows += 1;
                is_whole = is_whole && each(row)?;
                Ok(true)
            };
            self.rows(&next, &[], false, &mut one).await?;
            if !is_whole || rows < MAX_FETCH {
                break;
            }
        }
        L::run(self.conn, &format!("CLOSE {CURSOR}")).await.map_err(failure::<L>)?;
        Ok(is_whole)
    }

    async fn begin_with(&mut self, open: Open, statement: &'static str) -> Result<()> {
        self.open = Some(open);
        // In the caller's transaction it is a savepoint.
        let statement = (!self.is_callers).then(|| AssertSqlSafe(statement).into_sql_str());
        L::TransactionManager::begin(self.conn, statement).await
    }

    /// Prepares what the server has forgotten anew, the next time.
    async fn recover<T>(&mut self, done: &Result<T, Stopped>) {
        if let Err(Stopped::Failed { error, .. }) = done
            && error.kind == ErrorKind::FORGOTTEN
        {
            self.recovered = L::forget(self.conn).await.is_ok();
        }
    }

    async fn end(&mut self) -> bool {
        if self.is_nested() {
            // Aborts the caller's transaction: a commit of it now rolls it back.
            let _ = L::run(self.conn, "SELECT 1 / 0").await;
            return true;
        }
        for _ in 0..MAX_ROLLBACKS {
            let is_over = match L::TransactionManager::rollback(self.conn).await {
                Ok(()) => true,
                Err(error) => !L::roll_back_again(self.conn, error).await,
            };
            if is_over {
                self.open = None;
                return true;
            }
        }
        false
    }
}

/// Why one execution stopped.
enum At {
    Failed(Failure),
    Refused(keepcount::Error),
}

impl From<Failure> for At {
    fn from(error: Failure) -> Self {
        Self::Failed(error)
    }
}

impl At {
    fn stopped(self, query: usize, row: usize) -> Stopped {
        match self {
            Self::Failed(error) => Stopped::Failed { query, row, error },
            Self::Refused(error) => Stopped::Refused(error),
        }
    }
}

fn arguments<L: Library>(values: &[Value<'_>]) -> Result<L::Arguments, Failure> {
    let mut arguments = L::Arguments::default();
    for value in values {
        L::bind(&mut arguments, value).map_err(|cause| Failure {
            kind: ErrorKind::Other,
            fault: None,
            cause,
        })?;
    }
    Ok(arguments)
}

impl<L: Library> Executor for Sqlx<'_, L> {
    fn dialect(&self) -> Dialect {
        L::DIALECT
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        cause.downcast_ref().map_or(ErrorKind::Other, L::kind)
    }

    fn is_nested(&self) -> bool {
        self.is_callers && !L::HAS_SAVEPOINTS
    }

    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(async move {
            let mut begun = false;
            let read = self.fetch_once(queries, &mut begun, each).await;
            self.recover(&read).await;
            // Outside a transaction, nothing is left of what failed.
            let may_run_again = !begun && self.open.is_none() && !self.is_callers;
            if may_run_again && std::mem::take(&mut self.recovered) {
                return self.fetch_once(queries, &mut begun, each).await;
            }
            read
        })
    }

    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(async move {
            for (row, values) in query.rows().enumerate() {
                let all = if query.is_bounded() || L::DIALECT == Dialect::Sqlite {
                    self.rows(&query.text, values, false, each).await
                } else {
                    self.scan_by_cursor(query, values, each).await
                };
                if !all.map_err(|at| at.stopped(0, row))? {
                    break;
                }
            }
            Ok(())
        })
    }

    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>> {
        Reply::later(async move {
            let done = self.execute_all(queries).await;
            self.recover(&done).await;
            done
        })
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        Reply::later(async move { L::run(self.conn, script).await.map_err(failure::<L>) })
    }

    fn begin(&mut self) -> Reply<'_, Result<(), Failure>> {
        Reply::later(
            async move { self.begin_with(Open::Write, L::BEGIN).await.map_err(failure::<L>) },
        )
    }

    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>> {
        Reply::later(async move {
            let begun = async {
                let statement = if reading.is_locked { L::BEGIN } else { L::BEGIN_READ };
                self.begin_with(Open::Read, statement).await?;
                L::run(self.conn, &format!("{}{}", reading.script, L::LOOK)).await
            };
            begun.await.map_err(failure::<L>)
        })
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::later(async move {
            if self.is_callers {
                return Ok(false);
            }
            L::is_idle(self.conn).await.map_err(failure::<L>)
        })
    }

    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        Reply::later(async move {
            match L::TransactionManager::commit(self.conn).await {
                Ok(()) => {
                    self.open = None;
                    Ok(())
                }
                Err(error) => Err(L::not_committed(self.conn, error).await),
            }
        })
    }

    fn roll_back(&mut self) -> Reply<'_, bool> {
        Reply::later(self.end())
    }

    fn may_run_again(&mut self) -> bool {
        std::mem::take(&mut self.recovered) && !self.is_nested()
    }

    fn finish(&mut self) {
        if self.open.take().is_some() {
            L::TransactionManager::start_rollback(self.conn);
        }
        self.recovered = false;
    }
}

/// A failure as sqlx's error, for [`NotCommitted`].
pub(crate) fn not_committed<L: Library>(error: sqlx::Error, is_certain: bool) -> NotCommitted {
    let error = failure::<L>(error);
    if is_certain { NotCommitted::Refused(error) } else { NotCommitted::Unknown(error) }
}
