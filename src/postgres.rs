//! Totals in PostgreSQL tables, over the caller's own client or transaction: the engine's async
//! interface.
//!
//! The futures of all but plain reads are boxed here, so that the engine is compiled in this crate.
//! An `async fn` would be compiled in each crate that awaits it, with all of the engine.

use std::fmt;

use futures_util::FutureExt as _;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Transaction};

use crate::batch::Batch;
use crate::counter::key_range::KeyRange;
use crate::counter::{Counter, CounterId};
use crate::drivers::tokio_postgres::{
    Postgres, PreparedStatements, Scope, commit_failed, end_transaction, write_in_own,
};
use crate::engine;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf, KeyParts};
use crate::leaderboard::{Leaderboard, LeaderboardId, Ranked, Score, Standing};
use crate::observe;
use crate::schema::Schema;
use crate::store::{Applied, AsyncStore, Sweep, Swept};
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
pub struct PostgresStore<'c> {
    conn: Conn<'c>,
    schema: &'c Schema,
    prepared: Option<&'c PreparedStatements>,
}

enum Conn<'c> {
    /// Begins its own transactions.
    Own(&'c mut Client),
    /// Applies in the caller's transaction.
    Callers(&'c Client),
    /// Applies in savepoints of the caller's transaction.
    Savepoints(&'c Client),
}

impl fmt::Debug for PostgresStore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl<'c> PostgresStore<'c> {
    /// A store of these counters over a client, with a transaction for each apply.
    ///
    /// Does no I/O: call [`check`](Self::check) once at start.
    ///
    /// Do not pass a client on which you executed a literal `BEGIN`: the driver cannot see that
    /// transaction, and the store would commit it.
    #[must_use]
    pub const fn new(client: &'c mut Client, schema: &'c Schema) -> Self {
        Self { conn: Conn::Own(client), schema, prepared: None }
    }

    /// A store of these counters within a transaction: what you apply commits or rolls back with
    /// it.
    ///
    /// Does no I/O.
    #[must_use]
    pub fn in_transaction(tx: &'c Transaction<'_>, schema: &'c Schema) -> Self {
        Self { conn: Conn::Callers(tx.client()), schema, prepared: None }
    }

    /// A store of these counters within a transaction, with a savepoint for each apply.
    ///
    /// Does no I/O.
    #[must_use]
    pub fn with_savepoints(tx: &'c mut Transaction<'_>, schema: &'c Schema) -> Self {
        Self { conn: Conn::Savepoints(tx.client()), schema, prepared: None }
    }

    /// Keeps prepared statements in `prepared`, which belongs to the connection.
    #[must_use]
    pub const fn prepared(mut self, prepared: &'c PreparedStatements) -> Self {
        self.prepared = Some(prepared);
        self
    }

    const fn executor(&self) -> Postgres<'_> {
        match &self.conn {
            Conn::Own(client) => Postgres::new(client, Scope::Own, self.prepared),
            Conn::Callers(client) => Postgres::new(client, Scope::Callers, self.prepared),
            Conn::Savepoints(client) => Postgres::new(client, Scope::Savepoint, self.prepared),
        }
    }

    /// Creates the catalogue and the missing tables in the first schema of the search path, and
    /// checks the existing ones.
    ///
    /// Concurrent calls wait for each other.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no
    /// rows yet. If there are rows, call
    /// [`create_pending_backfill`](Self::create_pending_backfill). If the catalogue already exists,
    /// a new counter is not ready: there may be rows from before, and processes that do not know it
    /// may still write. It counts from now on. Once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A new leaderboard is empty and
    /// not ready until it is [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// A counter with many totals that becomes a membership gets its index while its writers wait.
    /// To avoid that, first create it CONCURRENTLY, with the statement in
    /// [`sql::ddl`](crate::sql::ddl).
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if a table with a counter's name exists but is not in the
    /// catalogue, a table does not match the schema, a name is too long for PostgreSQL, or the
    /// catalogue is in another schema than the first of `search_path`. Nothing is created then.
    pub fn create(&mut self) -> impl Future<Output = Result<()>> + Send {
        async move { engine::tables::create(&mut self.executor(), self.schema, false).await }
            .boxed()
    }

    /// Like [`create`](Self::create), for counters of rows that already exist: no new counter is
    /// ready, even in a database without a catalogue.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_pending_backfill(&mut self) -> impl Future<Output = Result<()>> + Send {
        async move { engine::tables::create(&mut self.executor(), self.schema, true).await }.boxed()
    }

    /// Compares the catalogue and the tables with the schema.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`], naming the table, if a table is absent, has other columns or
    /// another primary key, has triggers, rules, row security or children, is temporary or unlogged
    /// or in another schema than the catalogue, does not sort texts by bytes, or has another
    /// version or key than the schema.
    pub fn check(&mut self) -> impl Future<Output = Result<()>> + Send {
        async move { engine::tables::check(&mut self.executor(), self.schema).await }.boxed()
    }

    /// The counters and leaderboards of this database that the schema does not have, by their full
    /// names.
    ///
    /// They come from an older schema or, if this schema is the older one, from a newer. No process
    /// that writes with this schema maintains their totals.
    ///
    /// # Errors
    ///
    /// The database's errors.
    pub fn orphaned(&mut self) -> impl Future<Output = Result<Vec<String>>> + Send {
        async move { engine::tables::orphaned(&mut self.executor(), self.schema).await }.boxed()
    }

    /// Drops the table of an [orphaned](Self::orphaned) counter or leaderboard, and its row in the
    /// catalogue, in one transaction.
    ///
    /// Call it by hand, once no process has the counter in its schema: each write to it would fail
    /// from then on.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] if the database has nothing with this name; [`Error::InvalidUse`]
    /// if the schema has it, or if a rollup or leaderboard is made of it, which you must drop
    /// first; and those of the database. Nothing is dropped then.
    pub fn drop_counter<'s>(
        &'s mut self,
        name: &'s str,
    ) -> impl Future<Output = Result<()>> + Send {
        async move { engine::tables::drop_counter(&mut self.executor(), self.schema, name).await }
            .boxed()
    }

    /// Whether a counter may be read: the database has it and everything that it sums, and all of
    /// it is ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::DefinitionConflict`] for a counter that the schema
    /// does not have, [`Error::SchemaMismatch`] in a database without keepcount's tables, and those
    /// of the database.
    pub async fn is_ready(&mut self, counter: impl Into<CounterId>) -> Result<bool> {
        self.is_ready_id(counter.into()).await
    }

    fn is_ready_id(&mut self, counter: CounterId) -> impl Future<Output = Result<bool>> + Send {
        async move { engine::readiness::is_ready(&mut self.executor(), self.schema, counter).await }
            .boxed()
    }

    /// The counters of the schema that need a backfill, in the order of names, for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped).
    ///
    /// A rollup above them may itself be ready; reading it is refused until they are.
    ///
    /// # Errors
    ///
    /// The database's errors.
    pub fn unready(&mut self) -> impl Future<Output = Result<Vec<CounterId>>> + Send {
        async move { engine::readiness::unready(&mut self.executor(), self.schema).await }.boxed()
    }

    /// Drops the totals of a counter, and of its rollups by suffix, whose last key part is before
    /// `before`, and returns how many were dropped.
    ///
    /// From now on hooks and audits ignore such keys. The cutoff never goes back: an earlier one
    /// changes nothing. It takes one transaction, whose cost grows with the counter's totals.
    /// Writers of the counter wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the counter is not declared as
    /// [`prunable`](crate::backend::CounterSpec::prunable) or `T` has several parts,
    /// [`Error::Rollup`] for a rollup, and those of the database.
    pub async fn prune<H: Key, T: Key>(
        &mut self,
        counter: Counter<(H, T)>,
        before: impl AsKey<T>,
    ) -> Result<u64> {
        self.prune_id(counter.id(), T::PARTS, KeyBuf::of::<T>(before)).await
    }

    fn prune_id(
        &mut self,
        counter: CounterId,
        parts: KeyParts,
        before: KeyBuf,
    ) -> impl Future<Output = Result<u64>> + Send {
        async move {
            engine::prune::prune(&mut self.executor(), self.schema, counter, parts, &before).await
        }
        .boxed()
    }

    /// At most `limit` streams after `after`, in the order of their names' bytes, each with its
    /// last applied event.
    ///
    /// `None` starts at the first stream.
    ///
    /// # Errors
    ///
    /// The database's errors, and [`Error::SchemaMismatch`](crate::Error::SchemaMismatch) for an
    /// offset that somebody else wrote.
    pub fn offsets<'s>(
        &'s mut self,
        after: Option<&'s str>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(String, u64)>>> + Send {
        async move { engine::offsets::offsets(&mut self.executor(), after, limit).await }.boxed()
    }

    /// Drops the offset of a stream that ended, and returns it; 0 if there was none.
    ///
    /// Totals do not change. It waits for a transaction that is applying the stream. Without an
    /// offset, a store takes every event as new: if the stream is ever delivered again, from the
    /// first event on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`offsets`](Self::offsets). The offset stays then.
    pub fn forget_offset<'s>(
        &'s mut self,
        stream: &'s str,
    ) -> impl Future<Output = Result<u64>> + Send {
        async move { engine::offsets::forget_offset(&mut self.executor(), stream).await }.boxed()
    }

    /// The first lines of a leaderboard: one range of its index.
    ///
    /// # Errors
    ///
    /// The database's errors; [`Error::Key`] if a key does not decode to the leaderboard's key
    /// type; [`Error::NotReady`] if the leaderboard is new and not yet [rebuilt](Self::rebuild), or
    /// a counter that it is made of is not ready; [`Error::InvalidUse`] if the schema does not list
    /// this leaderboard.
    pub async fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        engine::leaderboard::top(&mut self.executor(), self.schema, &leaderboard, limit).await
    }

    /// The lines after a line that was read before.
    ///
    /// Ranks continue from its rank, whatever has changed in between.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn top_after<K: Key + AsKey<K>, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        engine::leaderboard::top_after(
            &mut self.executor(),
            self.schema,
            &leaderboard,
            after,
            limit,
        )
        .await
    }

    /// Where a key stands; behind all listed keys if it is not listed.
    ///
    /// Counts the lines before it, so it costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> Result<Standing<K, S>> {
        let key = KeyBuf::of::<K>(key);
        engine::leaderboard::rank(&mut self.executor(), self.schema, &leaderboard, &key).await
    }

    /// How many keys a leaderboard lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn listed<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
    ) -> Result<u64> {
        engine::leaderboard::listed(&mut self.executor(), self.schema, &leaderboard.id()).await
    }

    /// Recomputes every score of a leaderboard from totals, marks it ready to be read, and returns
    /// how many lines were wrong.
    ///
    /// Call it once for a leaderboard that is new in a database, after you raised a leaderboard's
    /// version (which it writes into the catalogue), and after totals were changed without the
    /// hooks. It takes one transaction; writers of the leaderboard's counters wait for it.
    ///
    /// Call it only after every process that writes has this leaderboard in its schema: nothing can
    /// check that for you, and a process without it does not update the lines.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the schema does not list this leaderboard,
    /// [`Error::SchemaMismatch`] if the database does not have it, and
    /// those of the database.
    pub async fn rebuild<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
    ) -> Result<u64> {
        self.rebuild_id(leaderboard.id()).await
    }

    fn rebuild_id(
        &mut self,
        leaderboard: LeaderboardId,
    ) -> impl Future<Output = Result<u64>> + Send {
        async move {
            engine::leaderboard::rebuild(&mut self.executor(), self.schema, &leaderboard).await
        }
        .boxed()
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
        match &mut self.conn {
            Conn::Own(client) => Ok(client),
            Conn::Callers(_) | Conn::Savepoints(_) => Err(Error::invalid_use(
                function,
                "it begins a transaction, but the store is in one already",
            )),
        }
    }

    fn apply_once<'s>(
        &'s mut self,
        batch: &'s mut Batch,
        stream_range: Option<&'s StreamRange<'s>>,
    ) -> impl Future<Output = Result<Applied>> + Send {
        async move {
            engine::write::apply(&mut self.executor(), self.schema, batch, stream_range).await
        }
        .boxed()
    }

    /// Applies a batch as the last statement of the transaction.
    fn apply_last<'s>(
        &'s mut self,
        batch: &'s mut Batch,
    ) -> impl Future<Output = Result<()>> + Send {
        async move {
            if batch.is_empty()
                && let Conn::Callers(client) = &self.conn
            {
                // A commit of an aborted transaction rolls it back without an error.
                let operation = "running a transaction";
                let checked = client.batch_execute("SELECT 1").await;
                checked
                    .map_err(|error| engine::failed(engine::Whose::Connection, operation, error))?;
            }
            self.apply(batch).await.map(drop)
        }
        .boxed()
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
    /// Those of `work`. As [`apply`](AsyncStore::apply), with [`Error::Indeterminate`] if it is not
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
        let (schema, prepared) = (self.schema, self.prepared);
        let client = self.client("transaction")?;
        let mut tx = client.transaction().await.map_err(failed)?;
        // Dropped, it rolls back.
        let mut batch = Batch::new();
        let done = match work(&mut tx, &mut batch).await {
            Ok(value) => {
                let mut store = PostgresStore::in_transaction(&tx, schema);
                store.prepared = prepared;
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
    /// As [`apply`](AsyncStore::apply), and those of the database for the rows. Nothing is written
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
    /// As [`apply_idempotent`](AsyncStore::apply_idempotent), and those of the database for the
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
        async move {
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
                write_in_own(&mut self.executor(), self.schema, rows, batch, stream_range).await?;
            // First, since the application's recorder may panic.
            batch.spend();
            if !applied.skipped {
                applied.observe(observe::Backend::Postgres, began, batch);
            }
            Ok((written, applied))
        }
        .boxed()
    }

    /// Removes totals that are 0, and lock rows of children and of leaderboards' keys, a bounded
    /// part for each call, while writers go on.
    ///
    /// No total, leaderboard or report changes, because a removed total reads as 0. Call it from
    /// the job that repairs, until it is [complete](Swept::complete).
    ///
    /// It takes one transaction for each page. That waits for no row that another transaction has
    /// locked, and leaves it for a later sweep, so it cannot cause a deadlock. It also leaves rows
    /// that the oldest running transaction may not have seen, one that reads in this database or
    /// writes in any database of the server: a transaction above READ COMMITTED that is older than
    /// a row's last change must find the row when it writes. While a transaction stays open for
    /// hours, or is prepared and forgotten, nothing that changed since is removed.
    ///
    /// # Errors
    ///
    /// The database's errors. What was removed before stays removed, and the next call continues
    /// there. [`Error::InvalidUse`] for a store in a transaction of yours.
    pub fn sweep<'s>(
        &'s mut self,
        sweep: &'s mut Sweep,
    ) -> impl Future<Output = Result<Swept>> + Send {
        async move {
            self.client("sweep")?;
            engine::sweep_zeros::sweep(&mut self.executor(), self.schema, sweep).await
        }
        .boxed()
    }
}

impl AsyncStore for PostgresStore<'_> {
    async fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        self.apply_once(batch, None).await
    }

    async fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        self.apply_once(batch, Some(stream_range)).await
    }

    async fn offset(&mut self, stream: &str) -> Result<u64> {
        engine::offsets::offset(&mut self.executor(), stream).await
    }

    async fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        engine::read::read(&mut self.executor(), self.schema, counter, keys).await
    }

    async fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        engine::read::range(&mut self.executor(), self.schema, counter, range, limit).await
    }

    async fn sum_range(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        engine::read::sum(&mut self.executor(), self.schema, counter, range).await
    }
}
