//! Totals in SQLite tables, over the caller's own connection, transaction or savepoint: the engine's blocking face.

use rusqlite::Connection;

use crate::batch::Batch;
use crate::counter::{Counter, CounterId};
use crate::drivers::rusqlite::Rusqlite;
use crate::engine::{self, now};
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::leaderboard::{Leaderboard, Ranked, Score};
use crate::offset::StreamRange;
use crate::range::KeyRange;
use crate::schema::Schema;
use crate::store::{Applied, Store, Sweep, Swept};

/// Totals in tables beside the application's rows; borrows its connection, so it is made where it is used.
///
/// In a transaction, totals commit or roll back with the rows; a batch that fails in the middle is taken back, and the transaction
/// may go on. Outside one, apply is a transaction (`BEGIN IMMEDIATE`). Statements are prepared once a connection, as long as its statement
/// cache has room: `Connection::set_prepared_statement_cache_capacity` should exceed the number of counters and
/// statements in use.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Schema, SqliteStore, Store};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
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
#[derive(Debug, Clone, Copy)]
pub struct SqliteStore<'c> {
    conn: &'c Connection,
    schema: &'c Schema,
}

impl<'c> SqliteStore<'c> {
    /// The store of these counters over a connection; a transaction or savepoint is one too. Does no I/O: call
    /// [`check`](Self::check) once at start.
    #[must_use]
    pub const fn new(conn: &'c Connection, schema: &'c Schema) -> Self {
        Self { conn, schema }
    }

    const fn executor(&self) -> Rusqlite<'c> {
        Rusqlite::new(self.conn)
    }

    /// Makes the catalogue and the tables that are not there yet, and checks those that are.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no rows yet; where there are, call
    /// [`create_pending_backfill`](Self::create_pending_backfill). Where the catalogue is there already, a counter that comes new is not ready: there may be
    /// rows from before, and processes that do not know it may still write. From now on it counts, and once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A leaderboard that comes new is empty and not ready until it is
    /// [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] when a table of a counter's name is there and is not in the catalogue, or is not what the schema
    /// wants; nothing is made then, unless the caller is in a transaction, which is to be rolled back.
    pub fn create(&self) -> Result<()> {
        now(engine::schema::create(&mut self.executor(), self.schema, false))
    }

    /// As [`create`](Self::create), for counters of rows that are there already: no counter that comes new is ready, in a database without a
    /// catalogue either.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, Schema, SqliteStore, Store};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show_id INTEGER NOT NULL); INSERT INTO votes VALUES (7), (7), (8)")?;
    /// let mut store = SqliteStore::new(&conn, &SCHEMA);
    /// store.create_pending_backfill()?;
    /// assert!(!store.is_ready(SHOW_VOTES.id())?);
    /// assert!(matches!(store.total(SHOW_VOTES, 7), Err(Error::NotReady { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_pending_backfill(&self) -> Result<()> {
        now(engine::schema::create(&mut self.executor(), self.schema, true))
    }

    /// Compares catalogue and tables with the schema.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`], naming the table, when one is absent, has other columns, is not STRICT or not WITHOUT ROWID, has a trigger, sorts
    /// texts otherwise than by bytes, or holds another version or key than the schema says; [`Error::InvalidUse`] when the connection keeps no
    /// journal (`PRAGMA journal_mode = OFF`), without which nothing can be rolled back.
    pub fn check(&self) -> Result<()> {
        now(engine::schema::check(&mut self.executor(), self.schema))
    }

    /// The counters and leaderboards of this database that the schema does not have, by their full names: those that an older schema had, and, seen from
    /// an older schema, those that are new. Nobody who writes by this schema keeps their totals.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn orphaned(&self) -> Result<Vec<String>> {
        now(engine::schema::lost(&mut self.executor(), self.schema))
    }

    /// Drops the table of a counter or leaderboard that is [lost](Self::orphaned), and its row in the catalogue, in one transaction. A process that still has
    /// it fails from then on with each write to it: call it by hand, once the last of them is gone.
    ///
    /// # Errors
    ///
    /// [`UnknownCounter`](crate::Error::UnknownCounter) when the database has none of this name, [`InvalidUse`](crate::Error::InvalidUse) when the schema
    /// has it, or a rollup or leaderboard is made of it, which is to be dropped first; and what the database says. Nothing is dropped then; inside a caller's
    /// transaction it is to be rolled back.
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
    /// let store = SqliteStore::new(&conn, &NOW);
    /// store.create()?;
    /// assert_eq!(store.orphaned()?, ["show.votes"]);
    /// store.drop_counter("show.votes")?;
    /// assert!(store.orphaned()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drop_counter(&self, name: &str) -> Result<()> {
        now(engine::schema::forget(&mut self.executor(), self.schema, name))
    }

    /// Whether a counter may be read: it, and all that it sums, are ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::DefinitionConflict`] for a counter that is not the schema's, and what the database says.
    pub fn is_ready(&self, counter: CounterId) -> Result<bool> {
        now(engine::readiness::is_ready(&mut self.executor(), self.schema, counter))
    }

    /// The counters of the schema that are to be backfilled, in the order of names; for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped). A rollup above them may be ready itself, and is refused to readers
    /// until they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn unready(&self) -> Result<Vec<CounterId>> {
        now(engine::readiness::unready(&mut self.executor(), self.schema))
    }

    /// Forgets the totals of a counter, and of the rollups by its suffix, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cutoff never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// One transaction, whose cost grows with the counter's totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] when the counter is not placed as [`prunable`](CounterSpec::prunable), or `T` has several parts, [`Error::Rollup`] for a rollup, and what the
    /// database says; inside a caller's transaction, which is then to be rolled back.
    pub fn prune<H: Key, T: Key>(&self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let cutoff = KeyBuf::of::<T>(before);
        now(engine::retention::prune(&mut self.executor(), self.schema, counter.id(), T::PARTS, &cutoff))
    }

    /// Removes rows of totals that are 0, a bounded part a call, beside writers: they read as absent totals do, so no total, leaderboard or report changes.
    /// Call it from the job that repairs until it is [complete](Swept::complete).
    ///
    /// Reads a page without the write lock, and takes that only where there is something to remove: one transaction a page. In the caller's
    /// transaction all is part of that.
    ///
    /// # Errors
    ///
    /// What the database says, [`Error::Busy`](crate::Error::Busy) while another connection writes; what was removed before stays removed, and the
    /// next call goes on there.
    pub fn sweep(&self, sweep: &mut Sweep) -> Result<Swept> {
        now(engine::sweep::sweep(&mut self.executor(), self.schema, sweep))
    }

    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    ///
    /// # Errors
    ///
    /// What the database says, and [`Error::SchemaMismatch`](crate::Error::SchemaMismatch) for an offset that somebody else wrote.
    pub fn offsets(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>> {
        now(engine::read::offsets(&mut self.executor(), after, limit))
    }

    /// Forgets the offset of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are.
    ///
    /// A store without an offset takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`offsets`](Self::offsets); the offset stays then.
    pub fn forget_offset(&self, stream: &str) -> Result<u64> {
        now(engine::sweep::forget_offset(&mut self.executor(), stream))
    }

    /// The first lines of a leaderboard: one range of its index.
    ///
    /// # Errors
    ///
    /// What the database says; [`Error::Key`] for a key that is none of the leaderboard's type; [`Error::NotReady`] while the leaderboard came new and is
    /// not [rebuilt](Self::rebuild), or a counter that it is made of is not ready.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Leaderboard, Schema, SqliteStore, Store};
    ///
    /// const VOTES: Counter<i64> = Counter::new("song.votes");
    /// const SONGS: Leaderboard<i64> = Leaderboard::new("song.board", &[VOTES.id()], |totals| totals.first().copied().filter(|votes| *votes > 0));
    /// const SCHEMA: Schema = Schema::new(&[VOTES.table()]).leaderboards(&[SONGS.id()]);
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
    /// assert_eq!(store.rank(SONGS, 7_i64)?.map(|line| line.rank), Some(2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn top<K: Key, S: Score>(&self, leaderboard: Leaderboard<K, S>, limit: usize) -> Result<Vec<Ranked<K, S>>> {
        now(engine::leaderboard::top(&mut self.executor(), self.schema, leaderboard, limit))
    }

    /// The lines behind one that was read before: ranks go on from its rank, whatever has changed meanwhile.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn top_after<K: Key + AsKey<K>, S: Score>(
        &self,
        leaderboard: Leaderboard<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        now(engine::leaderboard::top_after(&mut self.executor(), self.schema, leaderboard, after, limit))
    }

    /// The line of one key; none where it is not listed. Counts the lines before it: costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn rank<K: Key, S: Score>(
        &self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> Result<Option<Ranked<K, S>>> {
        now(engine::leaderboard::rank(&mut self.executor(), self.schema, leaderboard, &KeyBuf::of::<K>(key)))
    }

    /// How many keys a leaderboard lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn listed<K: Key, S: Score>(&self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        now(engine::leaderboard::listed(&mut self.executor(), self.schema, &leaderboard.id()))
    }

    /// Makes every score of a leaderboard anew from totals, in one transaction, and the leaderboard ready to be read; says how many lines were not as they should
    /// be. Needed once for a leaderboard that came new to a database, after a leaderboard's version was raised, which it writes into the catalogue, and after
    /// totals were changed behind keepcount's back.
    ///
    /// Whoever calls it states that every process which writes has this leaderboard in its schema by now: one that has not leaves lines as they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn rebuild<K: Key, S: Score>(&self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        now(engine::leaderboard::rebuild(&mut self.executor(), self.schema, &leaderboard.id()))
    }
}

impl Store for SqliteStore<'_> {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        now(engine::write::apply(&mut self.executor(), self.schema, batch, None))
    }

    fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        now(engine::write::apply(&mut self.executor(), self.schema, batch, Some(stream_range)))
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        now(engine::read::offset(&mut self.executor(), stream))
    }

    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        now(engine::read::read(&mut self.executor(), self.schema, counter, keys))
    }

    fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        now(engine::read::range(&mut self.executor(), self.schema, counter, range, limit))
    }

    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        now(engine::read::sum(&mut self.executor(), self.schema, counter, range))
    }
}
