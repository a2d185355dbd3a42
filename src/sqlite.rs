//! The store over rusqlite.

use rusqlite::Connection;

use crate::batch::Batch;
use crate::drivers::rusqlite::Rusqlite;
use crate::engine::{self, now};
use crate::error::{Error, Result};
use crate::executor::{Executor as _, call};
use crate::sql_store::SqlStore;
use crate::store::Store as _;

/// Totals in tables next to the application's rows.
///
/// It borrows its connection, so make it where you use it.
///
/// In a transaction, totals commit or roll back with the rows. A batch that fails midway is taken
/// back, and the transaction may go on. Outside one, each apply is its own transaction
/// (`BEGIN IMMEDIATE`). Statements are prepared once for each connection, as long as its statement
/// cache has room: `Connection::set_prepared_statement_cache_capacity` should exceed the number of
/// counters and statements in use.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, SqliteStore, Store};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// let mut conn = rusqlite::Connection::open_in_memory()?;
/// conn.execute_batch("CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL)")?;
/// SqliteStore::new(&conn, &SCHEMA).create()?;
///
/// let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
/// let mut batch = Batch::new();
/// tx.execute("INSERT INTO votes (show_id) VALUES (7)", ())?;
/// batch.add(SHOW_VOTES, 7, 1);
/// SqliteStore::new(&tx, &SCHEMA).apply(&mut batch)?;
/// tx.commit()?;
///
/// assert_eq!(SqliteStore::new(&conn, &SCHEMA).total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type SqliteStore<'c> = SqlStore<'c, Rusqlite<'c>>;

impl<'c> SqliteStore<'c> {
    /// Runs `work` in a transaction, applies the batch that it fills, and commits.
    ///
    /// So no batch is forgotten, and none is applied whose rows are not committed. `work` writes
    /// the rows on the connection that it is given and calls the hooks next to them. The
    /// transaction begins with `BEGIN IMMEDIATE`, so what `work` reads stays true until it commits.
    ///
    /// If `work` fails or panics, or the batch or the commit fails, nothing is committed. `work`
    /// must not end the transaction itself.
    ///
    /// # Errors
    ///
    /// Those of `work`. As [`apply`](crate::Store::apply), with [`Busy`](crate::Error::Busy) if another
    /// connection writes and [`Indeterminate`](crate::Error::Indeterminate) if it is not known
    /// whether the commit happened. [`InvalidUse`](crate::Error::InvalidUse) if the connection is
    /// in a transaction: apply a batch in that yourself.
    /// [`TransactionLost`](crate::Error::TransactionLost) if the transaction was over before the
    /// batch could be applied, or SQLite rolled it back while it was, and
    /// [`TransactionOpen`](crate::Error::TransactionOpen) if it could not be rolled back.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{SqliteStore, Store};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL)")?;
    /// let mut store = SqliteStore::new(&conn, &SCHEMA);
    /// store.create()?;
    /// let id = store.transaction(|conn, batch| {
    ///     conn.execute("INSERT INTO votes (show_id) VALUES (7)", ())?;
    ///     batch.add(SHOW_VOTES, 7, 1);
    ///     Ok::<_, Box<dyn std::error::Error>>(conn.last_insert_rowid())
    /// })?;
    /// assert_eq!((id, store.total(SHOW_VOTES, 7)?), (1, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transaction<T, E: From<Error>>(
        &mut self,
        work: impl FnOnce(&'c Connection, &mut Batch) -> Result<T, E>,
    ) -> Result<T, E> {
        const OPERATION: &str = "running a transaction";
        let conn = self.executor.conn;
        if !conn.is_autocommit() {
            let reason =
                "the connection is in a transaction already; call apply with the batch in that";
            return Err(Error::invalid_use("transaction", reason).into());
        }
        // Dropped in a panic, it rolls back.
        let mut executor = call(&mut self.executor);
        now(engine::begin(&mut *executor, || OPERATION.to_owned()))?;
        let mut batch = Batch::new();
        let value = match work(conn, &mut batch) {
            Ok(value) => value,
            Err(error) => {
                if now(executor.roll_back()) {
                    return Err(error);
                }
                return Err(engine::still_open(OPERATION, engine::work_failed(OPERATION)).into());
            }
        };
        let applied = if conn.is_autocommit() {
            let cause = "it ended before its batch was applied".into();
            Err(Error::TransactionLost { operation: OPERATION.to_owned(), cause })
        } else {
            // For another executor, the transaction is the caller's.
            Self::new(conn, self.schema).apply(&mut batch)
        };
        let done = applied.map(|_| value);
        Ok(now(engine::end(&mut *executor, false, || OPERATION.to_owned(), done))?)
    }
}
