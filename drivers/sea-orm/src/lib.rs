//! [`keepcount`] over SeaORM: a store in the application's own transactions.
//!
//! ```no_run
//! use keepcount::{AsyncStore, Batch};
//! use keepcount_sea_orm::SeaOrmStore;
//! use sea_orm::{ConnectionTrait, TransactionTrait};
//!
//! keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
//!
//! # async fn vote(db: sea_orm::DatabaseConnection) -> Result<(), Box<dyn std::error::Error>> {
//! let tx = db.begin().await?;
//! tx.execute_unprepared("INSERT INTO votes (show_id) VALUES (7)").await?;
//! let mut batch = Batch::new();
//! batch.add(SHOW_VOTES, 7, 1);
//! SeaOrmStore::new(&tx, &SCHEMA).apply(&mut batch).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! If an apply fails in PostgreSQL, the transaction commits nothing. In SQLite each apply has a
//! savepoint, so a batch that fails leaves the transaction as it was. If you drop a future, roll
//! the transaction back. Run nothing else on the transaction until a call returns.
//!
//! The job runs on the same pool: SeaORM's pool is sqlx's, so take `PostgresAudit` or `SqliteAudit`
//! of keepcount-sqlx over a connection of `get_postgres_connection_pool` or
//! `get_sqlite_connection_pool`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use keepcount::backend::AsyncSqlStore;
use keepcount::executor::{
    Beginning, Column, Driver, Each, ErrorKind, Failure, Halted, NotCommitted, OneByOne, Reader,
    Reply, RolledBack, Row, Statements,
};
use keepcount::sql::{self, Dialect};
use keepcount::{Batch, Cause};
use keepcount_sqlx::Library;
use sea_orm::prelude::Uuid;
use sea_orm::{
    ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, QueryResult, RuntimeErr,
    Statement, Value,
};

/// Totals in tables next to the application's rows, within a transaction of SeaORM.
pub type SeaOrmStore<'c> = AsyncSqlStore<'c, OneByOne<SeaOrm<'c>>>;

/// A transaction of SeaORM, as keepcount uses it.
pub struct SeaOrm<'c> {
    tx: &'c DatabaseTransaction,
    /// The name of its savepoint in SQLite: other stores over the transaction have others.
    savepoint: String,
}

/// The rows of SeaORM.
#[derive(Debug)]
pub enum SeaOrmRow {}

impl Driver for SeaOrmRow {
    type Row<'r> = QueryResult;
}

struct Fetched<'r>(&'r QueryResult);

impl Row for Fetched<'_> {
    fn len(&self) -> usize {
        self.0.column_names().len()
    }

    fn column(&self, index: usize) -> Column<'_> {
        #[cfg(feature = "postgres")]
        if let Some(row) = self.0.try_as_pg_row() {
            return sqlx::Postgres::column(row, index);
        }
        #[cfg(feature = "sqlite")]
        if let Some(row) = self.0.try_as_sqlite_row() {
            return sqlx::Sqlite::column(row, index);
        }
        Column::Other(format!("{index} of another database").into())
    }

    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause> {
        reader.read::<SeaOrmRow>(self.0, to)
    }
}

impl fmt::Debug for SeaOrm<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeaOrm(..)")
    }
}

impl SeaOrm<'_> {
    fn failure(&self, error: DbErr) -> Failure {
        let (kind, fault) = self.meaning(&error);
        Failure { kind, fault, cause: error.into() }
    }

    /// What an error means, and what is wrong with a statement or its rows, if it is about those.
    fn meaning(&self, error: &DbErr) -> (ErrorKind, Option<String>) {
        match (self.tx.get_database_backend(), of_sqlx(error)) {
            #[cfg(feature = "postgres")]
            (DbBackend::Postgres, Some(error)) => {
                let kind = match sqlx::Postgres::kind(error) {
                    ErrorKind::FORGOTTEN => ErrorKind::Busy(FORGOTTEN),
                    kind => kind,
                };
                (kind, sqlx::Postgres::fault(error))
            }
            #[cfg(feature = "sqlite")]
            (DbBackend::Sqlite, Some(error)) => {
                (sqlx::Sqlite::kind(error), sqlx::Sqlite::fault(error))
            }
            _ => (ErrorKind::Other, None),
        }
    }

    /// Refuses a database that keepcount does not know.
    fn check(&self) -> Result<(), Failure> {
        let backend = self.tx.get_database_backend();
        let is_known = cfg!(feature = "postgres") && backend == DbBackend::Postgres
            || cfg!(feature = "sqlite") && backend == DbBackend::Sqlite;
        if !is_known {
            let cause = format!("keepcount-sea-orm has no support for {backend:?} switched on");
            return Err(Failure { kind: ErrorKind::Other, fault: None, cause: cause.into() });
        }
        Ok(())
    }

    fn statement(&self, text: &str, values: &[sql::Value<'_>]) -> Result<Statement, Failure> {
        self.check()?;
        let backend = self.tx.get_database_backend();
        Ok(Statement::from_sql_and_values(
            backend,
            text,
            values.iter().map(|it| bound(it, backend)),
        ))
    }

    async fn script(&self, script: &str) -> Result<(), Failure> {
        self.check()?;
        let done = self.tx.execute_unprepared(script).await;
        done.map(drop).map_err(|error| self.failure(error))
    }
}

fn bound(value: &sql::Value<'_>, backend: DbBackend) -> Value {
    match value {
        sql::Value::Integer(number) => Value::from(*number),
        sql::Value::Text(text) => Value::from(text.as_ref()),
        sql::Value::Blob(bytes) => Value::from(bytes.to_vec()),
        sql::Value::Bytes(bytes) => Value::from(bytes.to_vec()),
        sql::Value::Uuid(bytes) if backend == DbBackend::Sqlite => Value::from(bytes.to_vec()),
        sql::Value::Uuid(bytes) => Value::from(Uuid::from_bytes(*bytes)),
        #[cfg(feature = "postgres")]
        sql::Value::Integers(column) => Value::from(column.clone()),
        #[cfg(feature = "postgres")]
        sql::Value::Texts(column) => {
            Value::from(column.iter().map(ToString::to_string).collect::<Vec<String>>())
        }
        #[cfg(feature = "postgres")]
        sql::Value::Blobs(column) => {
            Value::from(column.iter().map(|bytes| bytes.to_vec()).collect::<Vec<Vec<u8>>>())
        }
        #[cfg(feature = "postgres")]
        sql::Value::Uuids(column) => {
            Value::from(column.iter().copied().map(Uuid::from_bytes).collect::<Vec<Uuid>>())
        }
        #[cfg(not(feature = "postgres"))]
        _ => unreachable!("only PostgreSQL has arrays"),
    }
}

/// SeaORM has no call that forgets prepared statements.
#[cfg(feature = "postgres")]
const FORGOTTEN: &str = "the server has forgotten a prepared statement; close the connection, and try the whole transaction again";

fn of_sqlx(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

impl<'c> Statements for SeaOrm<'c> {
    type Driver = SeaOrmRow;
    type Connection = &'c DatabaseTransaction;

    fn over(tx: &'c DatabaseTransaction) -> Self {
        static STORES: AtomicU64 = AtomicU64::new(0);
        let savepoint = format!("keepcount_{}", STORES.fetch_add(1, Ordering::Relaxed));
        Self { tx, savepoint }
    }

    fn dialect(&self) -> Dialect {
        match self.tx.get_database_backend() {
            DbBackend::Sqlite => Dialect::Sqlite,
            _ => Dialect::Postgres,
        }
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        cause.downcast_ref().map_or(ErrorKind::Other, |error| self.meaning(error).0)
    }

    fn is_callers(&self) -> bool {
        true
    }

    fn has_savepoints(&self) -> bool {
        self.dialect() == Dialect::Sqlite
    }

    fn fetch<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [sql::Value<'_>],
        _: bool,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<bool, Halted>> {
        Reply::later(async move {
            let rows = self.tx.query_all_raw(self.statement(text, values)?).await;
            for row in rows.map_err(|error| self.failure(error))? {
                if !each(&Fetched(&row)).map_err(Halted::Refused)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    fn execute<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [sql::Value<'_>],
        _: bool,
    ) -> Reply<'x, Result<u64, Failure>> {
        Reply::later(async move {
            let done = self.tx.execute_raw(self.statement(text, values)?).await;
            Ok(done.map_err(|error| self.failure(error))?.rows_affected())
        })
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        Reply::later(self.script(script))
    }

    fn begin(&mut self, _: Beginning) -> Reply<'_, Result<(), Failure>> {
        Reply::later(async move { self.script(&format!("SAVEPOINT {}", self.savepoint)).await })
    }

    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        Reply::later(async move {
            let released = self.script(&format!("RELEASE {}", self.savepoint)).await;
            released.map_err(NotCommitted::Refused)
        })
    }

    /// A savepoint that cannot be rolled back takes the transaction with it, whose commit then
    /// fails.
    fn roll_back(&mut self) -> Reply<'_, RolledBack> {
        Reply::later(async move {
            let name = &self.savepoint;
            if self.script(&format!("ROLLBACK TO {name}; RELEASE {name}")).await.is_ok() {
                return RolledBack::Over;
            }
            let _ = self.script("ROLLBACK").await;
            RolledBack::Lost
        })
    }

    /// SeaORM has no call for it: the caller rolls the transaction back.
    fn start_rollback(&mut self, _: bool) {}
}
