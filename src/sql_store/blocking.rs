//! The store over a blocking executor: the engine's calls, each polled once.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::batch::Batch;
use crate::counter::key_range::KeyRange;
use crate::counter::{Counter, CounterId};
use crate::engine::{self, now};
use crate::error::Result;
use crate::executor::{Blocking, Connect, call};
use crate::key::{AsKey, Key, KeyBuf};
use crate::leaderboard::{Leaderboard, Ranked, Score, Standing};
use crate::schema::Schema;
use crate::store::{Applied, Store, Sweep, Swept, forward_store};
use crate::stream_range::StreamRange;

/// Totals in tables next to the application's rows, over a library that blocks.
///
/// Each library has a name for its own: [`SqliteStore`](crate::SqliteStore) is the one of rusqlite.
/// It derefs to the same store over any executor, which has the calls, as [`AsyncSqlStore`] does.
///
/// [`AsyncSqlStore`]: super::AsyncSqlStore
pub struct SqlStore<'s, E: ?Sized> {
    pub(crate) schema: &'s Schema,
    pub(crate) executor: E,
}

impl<E: ?Sized> fmt::Debug for SqlStore<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl<'s, E: Connect + Blocking> SqlStore<'s, E> {
    /// A store of these counters over a connection, in the transaction that is open on it, if any.
    ///
    /// Does no I/O: call [`check`](SqlStore::check) once at start.
    pub fn new(connection: E::Connection, schema: &'s Schema) -> Self {
        Self { schema, executor: E::over(connection) }
    }
}

impl<'s, E: Blocking + 's> Deref for SqlStore<'s, E> {
    type Target = SqlStore<'s, dyn Blocking + 's>;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl<'s, E: Blocking + 's> DerefMut for SqlStore<'s, E> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self
    }
}

impl<'s> SqlStore<'s, dyn Blocking + 's> {
    /// Creates the catalogue and the missing tables, and checks the existing ones.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no
    /// rows yet. If there are rows, call
    /// [`create_pending_backfill`](Self::create_pending_backfill). If the catalogue already exists,
    /// a new counter is not ready: there may be rows from before, and processes that do not know it
    /// may still write. It counts from now on. Once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A new leaderboard is empty and
    /// not ready until it is [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// # Errors
    ///
    /// [`SchemaMismatch`](crate::Error::SchemaMismatch) if a table with a counter's name exists but
    /// is not in the catalogue, or a table does not match the schema. Nothing is created then; if
    /// you are in a transaction, you must roll it back.
    pub fn create(&mut self) -> Result<()> {
        now(engine::tables::create(&mut *call(&mut self.executor), self.schema, false))
    }

    /// Like [`create`](Self::create), for counters of rows that already exist: no new counter is
    /// ready, even in a database without a catalogue.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Error, SqliteStore, Store};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show_id INTEGER NOT NULL); INSERT INTO votes VALUES (7), (7), (8)")?;
    /// let mut store = SqliteStore::new(&conn, &SCHEMA);
    /// store.create_pending_backfill()?;
    /// assert!(!store.is_ready(SHOW_VOTES)?);
    /// assert!(matches!(store.total(SHOW_VOTES, 7), Err(Error::NotReady { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_pending_backfill(&mut self) -> Result<()> {
        now(engine::tables::create(&mut *call(&mut self.executor), self.schema, true))
    }

    /// Compares the catalogue and the tables with the schema.
    ///
    /// # Errors
    ///
    /// [`SchemaMismatch`](crate::Error::SchemaMismatch), naming the table, if a table is absent,
    /// has other columns, is not STRICT or not WITHOUT ROWID, has a trigger, does not sort texts by
    /// bytes, or has another version or key than the schema.
    /// [`InvalidUse`](crate::Error::InvalidUse) if the connection keeps no journal
    /// (`PRAGMA journal_mode = OFF`), without which nothing can be rolled back.
    pub fn check(&mut self) -> Result<()> {
        now(engine::tables::check(&mut *call(&mut self.executor), self.schema))
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
    pub fn orphaned(&mut self) -> Result<Vec<String>> {
        now(engine::tables::orphaned(&mut *call(&mut self.executor), self.schema))
    }

    /// Drops the table of an [orphaned](Self::orphaned) counter or leaderboard, and its row in the
    /// catalogue, in one transaction.
    ///
    /// Call it by hand, once no process has the counter in its schema: each write to it would fail
    /// from then on.
    ///
    /// # Errors
    ///
    /// [`UnknownCounter`](crate::Error::UnknownCounter) if the database has nothing with this name;
    /// [`InvalidUse`](crate::Error::InvalidUse) if the schema has it, or if a rollup or leaderboard
    /// is made of it, which you must drop first; and those of the database. Nothing is dropped
    /// then; if you are in a transaction, you must roll it back.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, Schema, SqliteStore};
    ///
    /// const VOTES: Counter<i64> = Counter::new("show.votes");
    /// const BEFORE: Schema = Schema::new(&[VOTES.table()]);
    /// const NOW: Schema = Schema::new(&[VOTES.version(2).table()]);
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// SqliteStore::new(&conn, &BEFORE).create()?;
    /// let mut store = SqliteStore::new(&conn, &NOW);
    /// store.create()?;
    /// assert_eq!(store.orphaned()?, ["show.votes"]);
    /// store.drop_counter("show.votes")?;
    /// assert!(store.orphaned()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drop_counter(&mut self, name: &str) -> Result<()> {
        now(engine::tables::drop_counter(&mut *call(&mut self.executor), self.schema, name))
    }

    /// Whether a counter may be read: the database has it and everything that it sums, and all of
    /// it is ready.
    ///
    /// # Errors
    ///
    /// [`UnknownCounter`](crate::Error::UnknownCounter) and
    /// [`DefinitionConflict`](crate::Error::DefinitionConflict) for a counter that the schema does
    /// not have, [`SchemaMismatch`](crate::Error::SchemaMismatch) in a database without keepcount's
    /// tables, and those of the database.
    pub fn is_ready(&mut self, counter: impl Into<CounterId>) -> Result<bool> {
        now(engine::readiness::is_ready(
            &mut *call(&mut self.executor),
            self.schema,
            counter.into(),
        ))
    }

    /// The counters of the schema that need a backfill, in the order of names, for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped).
    ///
    /// A rollup above them may itself be ready; reading it is refused until they are.
    ///
    /// # Errors
    ///
    /// The database's errors.
    pub fn unready(&mut self) -> Result<Vec<CounterId>> {
        now(engine::readiness::unready(&mut *call(&mut self.executor), self.schema))
    }

    /// Drops the totals of a counter, and of its rollups by suffix, whose last key part is before
    /// `before`, and returns how many were dropped.
    ///
    /// From now on hooks and audits ignore such keys. The cutoff never goes back: an earlier one
    /// changes nothing. It takes one transaction, whose cost grows with the counter's totals.
    ///
    /// # Errors
    ///
    /// [`InvalidUse`](crate::Error::InvalidUse) if the counter is not declared as
    /// [`prunable`](crate::backend::CounterSpec::prunable) or `T` has several parts,
    /// [`Rollup`](crate::Error::Rollup) for a rollup, and those of the database. If you are in a
    /// transaction, you must then roll it back.
    pub fn prune<H: Key, T: Key>(
        &mut self,
        counter: Counter<(H, T)>,
        before: impl AsKey<T>,
    ) -> Result<u64> {
        let cutoff = KeyBuf::of::<T>(before);
        now(engine::prune::prune(
            &mut *call(&mut self.executor),
            self.schema,
            counter.id(),
            T::PARTS,
            &cutoff,
        ))
    }

    /// Removes totals that are 0, a bounded part for each call, while writers go on.
    ///
    /// No total, leaderboard or report changes, because a removed total reads as 0. Call it from
    /// the job that repairs, until it is [complete](Swept::complete).
    ///
    /// It reads a page without the write lock, and takes the lock only if there is something to
    /// remove, in one transaction for each page. In the caller's transaction everything is part of
    /// that.
    ///
    /// # Errors
    ///
    /// The database's errors, [`Busy`](crate::Error::Busy) while another connection writes. What
    /// was removed before stays removed, and the next call continues there.
    pub fn sweep(&mut self, sweep: &mut Sweep) -> Result<Swept> {
        now(engine::sweep_zeros::sweep(&mut *call(&mut self.executor), self.schema, sweep))
    }

    /// At most `limit` streams after `after`, in the order of their names' bytes, each with its
    /// last applied event.
    ///
    /// `None` starts at the first stream.
    ///
    /// # Errors
    ///
    /// The database's errors, and [`SchemaMismatch`](crate::Error::SchemaMismatch) for an offset
    /// that somebody else wrote.
    pub fn offsets(&mut self, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>> {
        now(engine::offsets::offsets(&mut *call(&mut self.executor), after, limit))
    }

    /// Drops the offset of a stream that ended, and returns it; 0 if there was none.
    ///
    /// Totals do not change. Without an offset, a store takes every event as new: if the stream is
    /// ever delivered again, from the first event on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`offsets`](Self::offsets). The offset stays then.
    pub fn forget_offset(&mut self, stream: &str) -> Result<u64> {
        now(engine::offsets::forget_offset(&mut *call(&mut self.executor), stream))
    }

    /// The first lines of a leaderboard: one range of its index.
    ///
    /// # Errors
    ///
    /// The database's errors; [`Key`](crate::Error::Key) if a key does not decode to the
    /// leaderboard's key type; [`NotReady`](crate::Error::NotReady) if the leaderboard is new and
    /// not yet [rebuilt](Self::rebuild), or a counter that it is made of is not ready;
    /// [`InvalidUse`](crate::Error::InvalidUse) if the schema does not list this leaderboard.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Leaderboard, SqliteStore, Store};
    ///
    /// keepcount::counters! { SCHEMA { VOTES: i64 = "song.votes"; } leaderboards [SONGS] }
    /// const SONGS: Leaderboard<i64> = Leaderboard::new("song.board", [VOTES]).by(|[votes]| (votes > 0).then_some(votes));
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// let mut store = SqliteStore::new(&conn, &SCHEMA);
    /// store.create()?;
    /// let mut batch = Batch::new();
    /// batch.add(VOTES, 7_i64, 2);
    /// batch.add(VOTES, 8_i64, 5);
    /// store.apply(&mut batch)?;
    /// let top = store.top(SONGS, 10)?;
    /// assert_eq!(top.iter().map(|line| (line.rank, line.key, line.score)).collect::<Vec<_>>(), [(1, 8, 5), (2, 7, 2)]);
    /// assert_eq!(store.rank(SONGS, 7)?.rank, 2);
    /// assert_eq!(store.rank(SONGS, 9)?.score, None); // it is not listed
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        now(engine::leaderboard::top(
            &mut *call(&mut self.executor),
            self.schema,
            &leaderboard,
            limit,
        ))
    }

    /// The lines after a line that was read before.
    ///
    /// Ranks continue from its rank, whatever has changed in between.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn top_after<K: Key + AsKey<K>, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        now(engine::leaderboard::top_after(
            &mut *call(&mut self.executor),
            self.schema,
            &leaderboard,
            after,
            limit,
        ))
    }

    /// Where a key stands; behind all listed keys if it is not listed.
    ///
    /// Counts the lines before it, so it costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> Result<Standing<K, S>> {
        now(engine::leaderboard::rank(
            &mut *call(&mut self.executor),
            self.schema,
            &leaderboard,
            &KeyBuf::of::<K>(key),
        ))
    }

    /// How many keys a leaderboard lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn listed<K: Key, S: Score>(&mut self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        now(engine::leaderboard::listed(
            &mut *call(&mut self.executor),
            self.schema,
            &leaderboard.id(),
        ))
    }

    /// Recomputes every score of a leaderboard from totals, marks it ready to be read, and returns
    /// how many lines were wrong.
    ///
    /// Call it once for a leaderboard that is new in a database, after you raised a leaderboard's
    /// version (which it writes into the catalogue), and after totals were changed without the
    /// hooks. It takes one transaction.
    ///
    /// Call it only after every process that writes has this leaderboard in its schema: nothing can
    /// check that for you, and a process without it does not update the lines.
    ///
    /// # Errors
    ///
    /// [`InvalidUse`](crate::Error::InvalidUse) if the schema does not list this leaderboard,
    /// [`SchemaMismatch`](crate::Error::SchemaMismatch) if the database does not have it, and
    /// those of the database.
    pub fn rebuild<K: Key, S: Score>(&mut self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        now(engine::leaderboard::rebuild(
            &mut *call(&mut self.executor),
            self.schema,
            &leaderboard.id(),
        ))
    }
}

impl<'s> Store for SqlStore<'s, dyn Blocking + 's> {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        now(engine::write::apply(&mut *call(&mut self.executor), self.schema, batch, None))
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        now(engine::write::apply(
            &mut *call(&mut self.executor),
            self.schema,
            batch,
            Some(stream_range),
        ))
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        now(engine::offsets::offset(&mut *call(&mut self.executor), stream))
    }

    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        now(engine::read::read(&mut *call(&mut self.executor), self.schema, counter, keys))
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        now(engine::read::range(&mut *call(&mut self.executor), self.schema, counter, range, limit))
    }

    fn sum_range(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        now(engine::read::sum(&mut *call(&mut self.executor), self.schema, counter, range))
    }
}

impl<'s, E: Blocking + 's> Store for SqlStore<'s, E> {
    forward_store!();
}
