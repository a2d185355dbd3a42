//! The store over tokio-postgres, and its writes of rows and totals in one message.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Transaction};

use crate::batch::Batch;
use crate::drivers::tokio_postgres::{
    Postgres, PreparedStatements, commit_failed, end_transaction, write_in_own,
};
use crate::engine;
use crate::error::{Error, Result};
use crate::executor::call;
use crate::observe;
use crate::schema::Schema;
use crate::sql_store::AsyncSqlStore;
use crate::store::{Applied, AsyncStore as _, Sweep, Swept};
use crate::stream_range::StreamRange;

/// Totals in tables next to the application's rows.
///
/// It borrows its client or transaction, so make it where you use it.
///
/// - [`new`](Self::new) takes a client, and begins a transaction for each apply.
/// - [`in_transaction`](Self::in_transaction) takes a transaction of yours, and applies directly in
///   it. If an apply fails, or its future is dropped before it is ready, roll the transaction back.
/// - [`with_savepoints`](Self::with_savepoints) takes a transaction of yours, and sets a savepoint
///   for each apply, which costs two more round trips. A batch that fails leaves the transaction as
///   it was, unless the end of the savepoint is cancelled too: then the transaction is aborted and
///   commits nothing.
///
/// Apply once in each transaction, as its last statement before the commit. Then rows are locked
/// for the shortest time, in one order for all, and keepcount's tables do not deadlock.
///
/// It works at any isolation level. Above READ COMMITTED, a transaction whose snapshot is older
/// than a row that it meets fails to serialize ([`Error::Busy`]) and never causes drift.
///
/// # Examples
///
/// ```no_run
/// use keepcount::{AsyncStore, Batch, PostgresStore};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// # async fn vote(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// PostgresStore::new(&mut client, &SCHEMA).create().await?;
///
/// let tx = client.transaction().await?;
/// let mut batch = Batch::new();
/// tx.execute("INSERT INTO votes (show_id) VALUES (7)", &[]).await?;
/// batch.add(SHOW_VOTES, 7, 1);
/// PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await?;
/// tx.commit().await?;
///
/// assert_eq!(PostgresStore::new(&mut client, &SCHEMA).total(SHOW_VOTES, 7).await?, 1);
/// # Ok(())
/// # }
/// ```
pub type PostgresStore<'c> = AsyncSqlStore<'c, Postgres<'c>>;

impl<'c> PostgresStore<'c> {
    /// A store of these counters within a transaction: what you apply commits or rolls back with
    /// it.
    ///
    /// Does no I/O.
    #[must_use]
    pub fn in_transaction(tx: &'c Transaction<'_>, schema: &'c Schema) -> Self {
        Self { schema, executor: Postgres::in_transaction(tx) }
    }

    /// A store of these counters within a transaction, with a savepoint for each apply.
    ///
    /// Does no I/O.
    #[must_use]
    pub fn with_savepoints(tx: &'c mut Transaction<'_>, schema: &'c Schema) -> Self {
        Self { schema, executor: Postgres::with_savepoints(tx) }
    }

    /// Keeps prepared statements in `prepared`, which belongs to the connection.
    #[must_use]
    pub const fn prepared(mut self, prepared: &'c PreparedStatements) -> Self {
        self.executor.prepared = Some(prepared);
        self
    }
}

/// Why a transaction is rolled back.
enum Failed<E> {
    Work(E),
    Ours(Error),
}

impl<E: From<Error>> Failed<E> {
    fn into_error(self) -> E {
        match self {
            Self::Work(error) => error,
            Self::Ours(error) => error.into(),
        }
    }
}

impl PostgresStore<'_> {
    /// The client, unless the store is in a transaction of the caller.
    fn client(&mut self, function: &'static str) -> Result<&mut Client> {
        self.executor.own_client().ok_or_else(|| {
            let reason = "it begins a transaction, but the store is in one already";
            Error::invalid_use(function, reason)
        })
    }

    /// Applies a batch as the last statement of the transaction.
    fn apply_last<'s>(
        &'s mut self,
        batch: &'s mut Batch,
    ) -> impl Future<Output = Result<()>> + Send {
        Box::pin(async move {
            if batch.is_empty() {
                // A commit of an aborted transaction rolls it back without an error.
                let operation = "running a transaction";
                let checked = self.executor.client().batch_execute("SELECT 1").await;
                checked
                    .map_err(|error| engine::failed(engine::Whose::Connection, operation, error))?;
            }
            self.apply(batch).await.map(drop)
        })
    }

    /// Runs `work` in a transaction, applies the batch that it fills, and commits.
    ///
    /// So no batch is forgotten, none is applied whose rows are not committed, and each is applied
    /// once, as the last statement before the commit. `work` writes the rows on the transaction
    /// that it is given and calls the hooks next to them. Lock what you read before you write it
    /// (`SELECT .. FOR UPDATE`).
    ///
    /// If `work` fails or panics, or the batch or the commit fails, nothing is committed. If you
    /// drop the future, nothing is committed, unless the commit was sent. `work` must not end the
    /// transaction itself: nothing notices it, and the batch is then applied in parts that are
    /// committed one by one.
    ///
    /// # Errors
    ///
    /// Those of `work`. As [`apply`](crate::AsyncStore::apply), with [`Error::Indeterminate`] if it is not
    /// known whether the commit happened. [`Error::InvalidUse`] for a store in a
    /// transaction of yours. [`Error::TransactionOpen`] if the transaction could not be rolled
    /// back.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::PostgresStore;
    /// # keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    /// # async fn vote(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// PostgresStore::new(client, &SCHEMA)
    ///     .transaction(async |tx, batch| {
    ///         tx.execute("INSERT INTO votes (show_id) VALUES (7)", &[]).await?;
    ///         batch.add(SHOW_VOTES, 7, 1);
    ///         Ok::<_, Box<dyn std::error::Error>>(())
    ///     })
    ///     .await
    /// # }
    /// ```
    pub async fn transaction<T, E: From<Error>>(
        &mut self,
        work: impl AsyncFnOnce(&mut Transaction<'_>, &mut Batch) -> Result<T, E>,
    ) -> Result<T, E> {
        const OPERATION: &str = "running a transaction";
        let failed = |error| engine::failed(engine::Whose::Connection, OPERATION, error);
        let (schema, prepared) = (self.schema, self.executor.prepared);
        let client = self.client("transaction")?;
        let mut tx = client.transaction().await.map_err(failed)?;
        // Dropped, it rolls back.
        let mut batch = Batch::new();
        let done = match work(&mut tx, &mut batch).await {
            Ok(value) => {
                let mut store = PostgresStore::in_transaction(&tx, schema);
                store.executor.prepared = prepared;
                store.apply_last(&mut batch).await.map(|()| value).map_err(Failed::Ours)
            }
            Err(error) => Err(Failed::Work(error)),
        };
        let failed = match done {
            Ok(value) => match tx.commit().await {
                Ok(()) => return Ok(value),
                Err(error) => Failed::Ours(commit_failed(OPERATION, error)),
            },
            Err(failed) => {
                // A ROLLBACK can be cancelled like any statement, and then it has done nothing.
                if tx.rollback().await.is_ok() {
                    return Err(failed.into_error());
                }
                failed
            }
        };
        // What may be open now is this transaction, which must not take in later statements.
        let client: &Client = client;
        if end_transaction(client).await.is_ok() || client.is_closed() {
            return Err(failed.into_error());
        }
        let error = match failed {
            Failed::Work(_) => engine::work_failed(OPERATION),
            Failed::Ours(error) => error,
        };
        Err(engine::still_open(OPERATION, error).into())
    }

    /// Writes the application's rows and applies their batch in one transaction, and returns how
    /// many rows each statement wrote.
    ///
    /// With [`prepared`](Self::prepared) statements that are already known it takes one or two
    /// round trips, if no total must be read first: the schema must have no rollup, leaderboard or
    /// prunable counter. So totals are locked no longer than the commit takes.
    ///
    /// It is one round trip with a single message of up to a mebibyte if all values are booleans,
    /// integers, floats, texts, bytes, dates and timestamps from the year 1 to 9999, UUIDs, JSON,
    /// enums, or arrays of these without nulls. The values are then literals of that message, so
    /// they appear in the server's log of a statement that fails;
    /// [`PreparedStatements::by_parameters`] avoids that. Otherwise BEGIN is answered before
    /// anything else is sent.
    ///
    /// The client must not be in a transaction that was begun by a literal `BEGIN`: this write
    /// would be part of it, committed or not.
    ///
    /// Use it for writes whose batch is known before they run, such as inserts; an update or delete
    /// must first learn from the database what was there. Each statement must fail if it does not
    /// write what was counted: an `INSERT .. ON CONFLICT DO NOTHING` may write no row, and its
    /// total is counted anyway.
    ///
    /// # Errors
    ///
    /// As [`apply`](crate::AsyncStore::apply), and those of the database for the rows. Nothing is written
    /// then, unless it is [`Error::Indeterminate`]. [`Error::InvalidUse`] for a store in a
    /// transaction of yours.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, PostgresStore, PreparedStatements};
    /// # keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    /// # async fn vote(client: &mut tokio_postgres::Client, prepared: &PreparedStatements) -> Result<(), Box<dyn std::error::Error>> {
    /// let insert = "INSERT INTO votes (show_id) VALUES ($1)";
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// PostgresStore::new(client, &SCHEMA).prepared(prepared).write(&[(insert, &[&7_i64])], &mut batch).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
    ) -> Result<(Vec<u64>, Applied)> {
        self.write_with("write", rows, batch, None).await
    }

    /// Like [`write`](Self::write), and advances a stream's offset in the same transaction: events
    /// that were applied before write neither rows nor totals.
    ///
    /// So you may repeat a write whose outcome is [unknown](Error::Indeterminate) as it is: it is
    /// written or [skipped](Applied::skipped). It takes two more round trips, because the offset is
    /// checked first.
    ///
    /// # Errors
    ///
    /// As [`apply_idempotent`](crate::AsyncStore::apply_idempotent), and those of the database for the
    /// rows. Nothing is written then, unless it is [`Error::Indeterminate`]. [`Error::InvalidUse`]
    /// for a store in a transaction of yours.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, Error, PostgresStore, StreamRange};
    /// # keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    /// # async fn vote(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// let rows: [(&str, &[&(dyn tokio_postgres::types::ToSql + Sync)]); 1] =
    ///     [("INSERT INTO votes (show_id) VALUES ($1)", &[&7_i64])];
    /// let stream_range = StreamRange::new("votes", 1, 1)?;
    /// let (_, applied) = PostgresStore::new(client, &SCHEMA).write_idempotent(&rows, &mut batch, &stream_range).await?;
    /// println!("{}", if applied.skipped { "it was there" } else { "written" });
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write_idempotent(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<(Vec<u64>, Applied)> {
        self.write_with("write_idempotent", rows, batch, Some(stream_range)).await
    }

    fn write_with<'s>(
        &'s mut self,
        function: &'static str,
        rows: &'s [(&'s str, &'s [&'s (dyn ToSql + Sync)])],
        batch: &'s mut Batch,
        stream_range: Option<&'s StreamRange<'s>>,
    ) -> impl Future<Output = Result<(Vec<u64>, Applied)>> + Send {
        Box::pin(async move {
            self.schema.check_batch(batch)?;
            let client = self.client(function)?;
            if client.is_closed() {
                // Nothing was sent, so the outcome is certain.
                let reason = "the connection was lost before; open another";
                let cause = "connection closed".into();
                return Err(Error::Busy {
                    operation: engine::write::operation(batch, stream_range),
                    reason,
                    cause,
                });
            }
            let began = observe::begin(observe::Backend::Postgres, batch);
            let (written, applied) =
                write_in_own(&mut call(&mut self.executor), self.schema, rows, batch, stream_range)
                    .await?;
            // First, since the application's recorder may panic.
            batch.spend();
            if !applied.skipped {
                applied.observe(observe::Backend::Postgres, began, batch);
            }
            Ok((written, applied))
        })
    }

    /// As [`AsyncSqlStore::sweep`].
    ///
    /// # Errors
    ///
    /// As that; [`Error::InvalidUse`] for a store in a transaction of yours, with savepoints too.
    pub fn sweep<'x>(
        &'x mut self,
        sweep: &'x mut Sweep,
    ) -> impl Future<Output = Result<Swept>> + Send {
        let refused = self.client("sweep").err();
        async move {
            match refused {
                Some(error) => Err(error),
                None => (**self).sweep(sweep).await,
            }
        }
    }
}
