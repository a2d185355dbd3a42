//! The store over an asynchronous executor: the engine's calls, each in a box.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::batch::Batch;
use crate::counter::key_range::KeyRange;
use crate::counter::{Counter, CounterId};
use crate::engine;
use crate::error::{Error, Result};
use crate::executor::{Connect, Executor, call};
use crate::key::{AsKey, Key, KeyBuf, KeyParts};
use crate::leaderboard::{Leaderboard, LeaderboardId, Ranked, Score, Standing};
use crate::schema::Schema;
use crate::sql::Dialect;
use crate::store::{Applied, AsyncStore, Sweep, Swept, forward_async_store};
use crate::stream_range::StreamRange;

/// Totals in tables next to the application's rows, over a library that does not block.
///
/// Each library has a name for its own: [`PostgresStore`](crate::PostgresStore) is the one of
/// tokio-postgres. It derefs to the same store over [any executor](Any), which has the calls: so
/// the engine is compiled once, in this crate. An application that awaited it with an executor of
/// its own would compile all of it.
pub struct AsyncSqlStore<'s, E: ?Sized> {
    pub(crate) schema: &'s Schema,
    pub(crate) executor: E,
}

/// Any executor whose futures may move between threads.
pub type Any<'s> = dyn Executor + Send + 's;

impl<E: ?Sized> fmt::Debug for AsyncSqlStore<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncSqlStore").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl<'s, E: Connect> AsyncSqlStore<'s, E> {
    /// A store of these counters over a connection; in a transaction of yours, if the library knows
    /// that the connection is in one.
    ///
    /// Does no I/O: call [`check`](AsyncSqlStore::check) once at start.
    ///
    /// Do not pass a connection on which you executed a literal `BEGIN`: no library knows of that
    /// transaction, and the store would commit it.
    pub fn new(connection: E::Connection, schema: &'s Schema) -> Self {
        Self { schema, executor: E::over(connection) }
    }
}

impl<'s, E: Executor + Send + 's> Deref for AsyncSqlStore<'s, E> {
    type Target = AsyncSqlStore<'s, Any<'s>>;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl<'s, E: Executor + Send + 's> DerefMut for AsyncSqlStore<'s, E> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self
    }
}

impl<'s> AsyncSqlStore<'s, Any<'s>> {
    /// Creates the catalogue and the missing tables, in PostgreSQL in the first schema of the
    /// search path, and checks the existing ones.
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
        Box::pin(async move {
            engine::tables::create(&mut *call(&mut self.executor), self.schema, false).await
        })
    }

    /// Like [`create`](Self::create), for counters of rows that already exist: no new counter is
    /// ready, even in a database without a catalogue.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub fn create_pending_backfill(&mut self) -> impl Future<Output = Result<()>> + Send {
        Box::pin(async move {
            engine::tables::create(&mut *call(&mut self.executor), self.schema, true).await
        })
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
        Box::pin(
            async move { engine::tables::check(&mut *call(&mut self.executor), self.schema).await },
        )
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
        Box::pin(async move {
            engine::tables::orphaned(&mut *call(&mut self.executor), self.schema).await
        })
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
    pub fn drop_counter<'x>(
        &'x mut self,
        name: &'x str,
    ) -> impl Future<Output = Result<()>> + Send {
        Box::pin(async move {
            engine::tables::drop_counter(&mut *call(&mut self.executor), self.schema, name).await
        })
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
        Box::pin(async move {
            engine::readiness::is_ready(&mut *call(&mut self.executor), self.schema, counter).await
        })
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
        Box::pin(async move {
            engine::readiness::unready(&mut *call(&mut self.executor), self.schema).await
        })
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
        Box::pin(async move {
            engine::prune::prune(
                &mut *call(&mut self.executor),
                self.schema,
                counter,
                parts,
                &before,
            )
            .await
        })
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
    pub fn offsets<'x>(
        &'x mut self,
        after: Option<&'x str>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(String, u64)>>> + Send {
        Box::pin(async move {
            engine::offsets::offsets(&mut *call(&mut self.executor), after, limit).await
        })
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
    pub fn forget_offset<'x>(
        &'x mut self,
        stream: &'x str,
    ) -> impl Future<Output = Result<u64>> + Send {
        Box::pin(async move {
            engine::offsets::forget_offset(&mut *call(&mut self.executor), stream).await
        })
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
        engine::leaderboard::top(&mut *call(&mut self.executor), self.schema, &leaderboard, limit)
            .await
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
            &mut *call(&mut self.executor),
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
        engine::leaderboard::rank(&mut *call(&mut self.executor), self.schema, &leaderboard, &key)
            .await
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
        engine::leaderboard::listed(&mut *call(&mut self.executor), self.schema, &leaderboard.id())
            .await
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
        Box::pin(async move {
            engine::leaderboard::rebuild(&mut *call(&mut self.executor), self.schema, &leaderboard)
                .await
        })
    }

    /// Removes totals that are 0, and in PostgreSQL lock rows of children and of leaderboards'
    /// keys, a bounded part for each call, while writers go on.
    ///
    /// No total, leaderboard or report changes, because a removed total reads as 0. Call it from
    /// the job that repairs, until it is [complete](Swept::complete).
    ///
    /// It takes one transaction for each page. In PostgreSQL, that waits for no row that another
    /// transaction has locked, and leaves it for a later sweep, so it cannot cause a deadlock. It
    /// also leaves rows that the oldest running transaction may not have seen, one that reads in
    /// this database or writes in any database of the server: a transaction above READ COMMITTED
    /// that is older than a row's last change must find the row when it writes. While a transaction
    /// stays open for hours, or is prepared and forgotten, nothing that changed since is removed.
    ///
    /// # Errors
    ///
    /// The database's errors. What was removed before stays removed, and the next call continues
    /// there. In PostgreSQL, [`Error::InvalidUse`] for a store in a transaction of yours.
    pub fn sweep<'x>(
        &'x mut self,
        sweep: &'x mut Sweep,
    ) -> impl Future<Output = Result<Swept>> + Send {
        Box::pin(async move {
            if self.executor.is_nested() && self.executor.dialect() == Dialect::Postgres {
                let reason = "it begins a transaction, but the store is in one already";
                return Err(Error::invalid_use("sweep", reason));
            }
            engine::sweep_zeros::sweep(&mut *call(&mut self.executor), self.schema, sweep).await
        })
    }
}

impl<'s> AsyncStore for AsyncSqlStore<'s, Any<'s>> {
    fn apply(&mut self, batch: &mut Batch) -> impl Future<Output = Result<Applied>> + Send {
        Box::pin(async move {
            engine::write::apply(&mut *call(&mut self.executor), self.schema, batch, None).await
        })
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> impl Future<Output = Result<Applied>> + Send {
        Box::pin(async move {
            let mut executor = call(&mut self.executor);
            engine::write::apply(&mut *executor, self.schema, batch, Some(stream_range)).await
        })
    }

    fn offset(&mut self, stream: &str) -> impl Future<Output = Result<u64>> + Send {
        Box::pin(
            async move { engine::offsets::offset(&mut *call(&mut self.executor), stream).await },
        )
    }

    fn read_keys(
        &mut self,
        counter: CounterId,
        keys: &[KeyBuf],
    ) -> impl Future<Output = Result<Vec<i64>>> + Send {
        Box::pin(async move {
            engine::read::read(&mut *call(&mut self.executor), self.schema, counter, keys).await
        })
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(KeyBuf, i64)>>> + Send {
        Box::pin(async move {
            let mut executor = call(&mut self.executor);
            engine::read::range(&mut *executor, self.schema, counter, range, limit).await
        })
    }

    fn sum_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
    ) -> impl Future<Output = Result<i64>> + Send {
        Box::pin(async move {
            engine::read::sum(&mut *call(&mut self.executor), self.schema, counter, range).await
        })
    }
}

impl<'s, E: Executor + Send + 's> AsyncStore for AsyncSqlStore<'s, E> {
    forward_async_store!();
}
