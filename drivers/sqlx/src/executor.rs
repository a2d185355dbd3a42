//! The executor over a connection of sqlx: statements one after the other, and transactions by
//! sqlx's own count of them.

use std::fmt;
use std::marker::PhantomData;

use futures_util::TryStreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use keepcount::executor::{
    Beginning, Column, Driver, Each, ErrorKind, Failure, Halted, NotCommitted, Reader, Reply,
    RolledBack, Row, Statements,
};
use keepcount::sql::{Dialect, Value};
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
    /// In PostgreSQL, whether no transaction is open, of which sqlx counts none.
    #[must_use]
    fn is_idle(_: &mut Self::Connection) -> BoxFuture<'_, Result<bool>> {
        Box::pin(std::future::ready(Ok(true)))
    }
    /// What became of a commit that failed.
    fn not_committed(
        conn: &mut Self::Connection,
        error: sqlx::Error,
    ) -> BoxFuture<'_, NotCommitted>;
    /// What became of a rollback that failed. It is tried again if it is still open.
    fn roll_back_failed(
        conn: &mut Self::Connection,
        error: sqlx::Error,
    ) -> BoxFuture<'_, RolledBack>;
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

/// A connection of sqlx, as keepcount uses it.
pub struct Sqlx<'c, L: Library> {
    conn: &'c mut L::Connection,
    /// How many transactions and savepoints of the caller it was in when it was lent.
    depth: usize,
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
        f.debug_struct("Sqlx").field("depth", &self.depth).finish_non_exhaustive()
    }
}

/// How often a rollback that fails is tried.
const MAX_ROLLBACKS: u32 = 8;

impl<'c, L: Library> Statements for Sqlx<'c, L> {
    type Driver = SqlxRow<L>;
    type Connection = &'c mut L::Connection;

    fn over(conn: &'c mut L::Connection) -> Self {
        let depth = L::TransactionManager::get_transaction_depth(conn);
        Self { conn, depth }
    }

    fn dialect(&self) -> Dialect {
        L::DIALECT
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        cause.downcast_ref().map_or(ErrorKind::Other, L::kind)
    }

    fn is_callers(&self) -> bool {
        self.depth > 0
    }

    fn has_savepoints(&self) -> bool {
        L::HAS_SAVEPOINTS
    }

    fn fetch<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [Value<'_>],
        keep: bool,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<bool, Halted>> {
        Reply::later(async move {
            let mut rows = L::fetch(self.conn, text, arguments::<L>(values)?, keep);
            while let Some(row) = rows.try_next().await.map_err(failure::<L>)? {
                if !each(&Fetched::<L>(&row)).map_err(Halted::Refused)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn execute<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [Value<'_>],
        keep: bool,
    ) -> Reply<'x, Result<u64, Failure>> {
        Reply::later(async move {
            let done = L::execute(self.conn, text, arguments::<L>(values)?, keep).await;
            done.map_err(failure::<L>)
        })
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        Reply::later(async move { L::run(self.conn, script).await.map_err(failure::<L>) })
    }

    fn begin(&mut self, beginning: Beginning) -> Reply<'_, Result<(), Failure>> {
        let statement = if beginning == Beginning::Read { L::BEGIN_READ } else { L::BEGIN };
        // In the caller's transaction it is a savepoint, whose statement sqlx knows.
        let statement = (self.depth == 0).then(|| AssertSqlSafe(statement).into_sql_str());
        Reply::later(async move {
            L::TransactionManager::begin(self.conn, statement).await.map_err(failure::<L>)
        })
    }

    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        Reply::later(async move {
            match L::TransactionManager::commit(self.conn).await {
                Ok(()) => Ok(()),
                Err(error) => Err(L::not_committed(self.conn, error).await),
            }
        })
    }

    fn roll_back(&mut self) -> Reply<'_, RolledBack> {
        Reply::later(async move {
            for _ in 0..MAX_ROLLBACKS {
                let Err(error) = L::TransactionManager::rollback(self.conn).await else {
                    return RolledBack::Over;
                };
                let failed = L::roll_back_failed(self.conn, error).await;
                if failed != RolledBack::Open {
                    return failed;
                }
            }
            RolledBack::Open
        })
    }

    /// In SQLite, a savepoint whose answer nobody receives is rolled back by sqlx itself. In
    /// another order of events its answer came: then sqlx counts it.
    fn start_rollback(&mut self, is_begun: bool) {
        let is_counted = L::TransactionManager::get_transaction_depth(self.conn) > self.depth;
        if is_begun || is_counted || self.depth == 0 {
            L::TransactionManager::start_rollback(self.conn);
        }
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::later(async move { L::is_idle(self.conn).await.map_err(failure::<L>) })
    }

    fn forget(&mut self) -> Reply<'_, bool> {
        Reply::later(async move { L::forget(self.conn).await.is_ok() })
    }
}

fn failure<L: Library>(error: sqlx::Error) -> Failure {
    Failure { kind: L::kind(&error), fault: L::fault(&error), cause: error.into() }
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

/// A commit that failed; `is_certain` says whether nothing was committed.
pub(crate) fn not_committed<L: Library>(error: sqlx::Error, is_certain: bool) -> NotCommitted {
    let error = failure::<L>(error);
    if is_certain { NotCommitted::Refused(error) } else { NotCommitted::Unknown(error) }
}
