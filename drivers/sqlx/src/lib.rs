//! [`keepcount`] over sqlx: stores and audits on an application's own connections and
//! transactions.
//!
//! A store is made where it is used. Over a `Transaction` it applies in that; over a connection, in
//! transactions of its own.
//!
//! ```no_run
//! use keepcount::{AsyncStore, Batch};
//! use keepcount_sqlx::PostgresStore;
//!
//! keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
//!
//! # async fn vote(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! let mut tx = pool.begin().await?;
//! sqlx::query("INSERT INTO votes (show_id) VALUES ($1)").bind(7_i64).execute(&mut *tx).await?;
//! let mut batch = Batch::new();
//! batch.add(SHOW_VOTES, 7, 1);
//! PostgresStore::new(&mut tx, &SCHEMA).apply(&mut batch).await?;
//! tx.commit().await?;
//! # Ok(())
//! # }
//! ```
//!
//! If an apply fails in a transaction in PostgreSQL, the transaction commits nothing. In SQLite
//! each apply has a savepoint, so a batch that fails leaves the transaction as it was. If you drop
//! a future, roll the transaction back.
//!
//! Drop no future of a call that begins a transaction of its own in PostgreSQL while it waits for
//! `BEGIN`: sqlx 0.9.0 forgets that transaction, and the pool hands the connection out in it.

mod executor;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use executor::{Library, Sqlx, SqlxRow};
use keepcount::backend::{AsyncSqlAudit, AsyncSqlStore, Rows};
use keepcount::executor::OneByOne;

/// Totals in PostgreSQL, over sqlx.
#[cfg(feature = "postgres")]
pub type PostgresStore<'c> = AsyncSqlStore<'c, OneByOne<Sqlx<'c, sqlx::Postgres>>>;
/// The audit of a PostgreSQL database, over a connection of sqlx of its own.
#[cfg(feature = "postgres")]
pub type PostgresAudit<'c> = AsyncSqlAudit<'c, OneByOne<Sqlx<'c, sqlx::Postgres>>>;
/// The rows of a record in PostgreSQL: `PostgresRows::of("votes", |row| Ok(Vote::from_row(row)?))`.
#[cfg(feature = "postgres")]
pub type PostgresRows = Rows<SqlxRow<sqlx::Postgres>>;

/// Totals in SQLite, over sqlx.
#[cfg(feature = "sqlite")]
pub type SqliteStore<'c> = AsyncSqlStore<'c, OneByOne<Sqlx<'c, sqlx::Sqlite>>>;
/// The audit of a SQLite database, over a connection of sqlx of its own.
#[cfg(feature = "sqlite")]
pub type SqliteAudit<'c> = AsyncSqlAudit<'c, OneByOne<Sqlx<'c, sqlx::Sqlite>>>;
/// The rows of a record in SQLite: `SqliteRows::of("votes", |row| Ok(Vote::from_row(row)?))`.
#[cfg(feature = "sqlite")]
pub type SqliteRows = Rows<SqlxRow<sqlx::Sqlite>>;
