//! The in-memory store: the totals of one process, in lock-striped hash tables.

mod audit_access;
mod pending_write;
mod read;
mod snapshot;
mod stream_offsets;
mod stripe;
mod table;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::time::Duration;

pub(crate) use self::audit_access::{Before, CounterKey, Noting, RollupSnapshot};

use self::audit_access::Notings;
pub use self::pending_write::PendingWrite;
pub use self::snapshot::Snapshot;
use self::stream_offsets::Offsets;
pub(crate) use self::stripe::Shut;
use self::stripe::{Stripe, StripeState, Tables};
use self::table::Table;
use super::{Applied, Store};
use crate::batch::{Batch, Entry, steps};
use crate::clock::Clock;
use crate::counter::key_range::KeyRange;
use crate::counter::{Counter, CounterId, CounterSpec};
use crate::cutoff;
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::locks::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, RwLock};
use crate::nondeterminism;
use crate::observe;
use crate::rollup_update;
use crate::schema::Schema;
use crate::stream_range::{self, StreamRange};

/// Stores totals in memory, shared between threads; every method takes `&self`.
///
/// To keep the totals over a restart, take a [`snapshot`](Self::snapshot); or recount them at
/// start.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, MemoryStore};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
/// static TOTALS: std::sync::LazyLock<MemoryStore> = std::sync::LazyLock::new(|| MemoryStore::new(&SCHEMA));
///
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 1);
/// TOTALS.apply(&mut batch)?;
/// assert_eq!(TOTALS.total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    schema: Schema,
    /// Distinguishes this store from every other one, also from one restored from its snapshot.
    identity: u64,
    /// One for each counter, in the schema's order.
    plans: Box<[WritePlan]>,
    /// The number of stripes is a power of two, so that some bits of a hash choose one.
    stripes: Box<[Stripe]>,
    /// Shared by batches that go from stripe to stripe. Exclusive for whatever must not see a batch
    /// half applied, and for every batch that changes a membership.
    batch_lock: RwLock<Cutoffs>,
    /// Whether a total was ever outside [`ROOMY`], so that a batch may overflow halfway. Never
    /// reset.
    wide: AtomicBool,
    offsets: Offsets,
    /// Whether each counter is ready, in the schema's order.
    ready: Box<[AtomicBool]>,
    /// The number of counters that are not ready; a read checks it first.
    unready: AtomicU64,
    /// The number of the newest noting, while any exists; else 0. Pending writes note their keys
    /// while it is not 0. Changed under the lock `notings`.
    noting: AtomicU64,
    notings: Mutex<Notings>,
    /// `audits` is the number of audits so far that rely on pending writes; `unguarded` is the
    /// value it had when a hook last ran without a pending write.
    audits: AtomicU64,
    unguarded: AtomicU64,
    /// How often a repair or a prune changed totals that rollups are computed from.
    moved: AtomicU64,
    /// Gives the time at which a pending write is dropped.
    clock: Clock,
}

/// How a store writes one counter.
#[derive(Debug, Clone, Copy)]
struct WritePlan {
    /// If keys have several parts, the number of parts that choose the stripe: totals that are read
    /// together are in one stripe.
    prefix: Option<usize>,
    /// Whether deltas are written as the batch has them: the counter is no rollup, feeds none and
    /// is not prunable.
    plain: bool,
    /// Whether it is the membership of a rollup.
    membership: bool,
    /// Whether it is a rollup.
    rollup: bool,
}

/// Totals by key, unordered.
type Totals = Vec<(KeyBuf, i64)>;

/// The cutoff of each pruned counter, in the schema's order: the encoded last part of its keys.
type Cutoffs = Box<[Option<KeyBuf>]>;

/// Stripes for each processor, so many that writers rarely meet, and the bounds of their total
/// number.
const STRIPES_EACH: usize = 16;
const MIN_STRIPES: usize = 64;
const MAX_STRIPES: usize = 1024;
/// While every total is within `ROOMY`, deltas up to [`SMALL`] cannot overflow: not even 2^21 of
/// them on one total.
const ROOMY: u64 = 1 << 62;
const SMALL: u64 = 1 << 40;
/// Tables up to this many totals stay in the processor's nearest caches.
const NEAR: usize = 1024;

impl MemoryStore {
    /// Creates an empty store for these counters.
    #[must_use]
    pub fn new(schema: &Schema) -> Self {
        let stripes = nondeterminism::stripes().unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
            (processors * STRIPES_EACH).next_power_of_two().clamp(MIN_STRIPES, MAX_STRIPES)
        });
        let tables =
            || schema.counters().iter().map(|spec| Table::new(spec.id().parts())).collect();
        Self {
            schema: *schema,
            identity: RandomState::new().hash_one(()),
            plans: schema.counters().iter().map(|spec| WritePlan::of(schema, spec)).collect(),
            stripes: (0..stripes).map(|_| Stripe::new(tables())).collect(),
            batch_lock: RwLock::new(vec![None; schema.counters().len()].into_boxed_slice()),
            wide: AtomicBool::new(false),
            offsets: Offsets::default(),
            ready: schema.counters().iter().map(|_| AtomicBool::new(true)).collect(),
            unready: AtomicU64::new(0),
            noting: AtomicU64::new(0),
            notings: Mutex::new(Notings::default()),
            audits: AtomicU64::new(0),
            unguarded: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            clock: Clock::default(),
        }
    }

    /// Replaces the store's clock with yours, which returns the time since some fixed moment; the
    /// default is the process's clock.
    ///
    /// It must not jump ahead, as a wall clock may: keys of dropped pending writes would then count
    /// as resolved too early. If it goes back, they count as resolved later. The store reads it
    /// when a [`PendingWrite`] is dropped, and audits read it to see how long ago that was.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// Creates an empty store for counters whose rows exist already.
    ///
    /// It counts from now on; a counter can be read once a backfill has completed it.
    #[must_use]
    pub fn pending_backfill(schema: &Schema) -> Self {
        let store = Self::new(schema);
        for position in 0..store.ready.len() {
            store.set_ready(position, false);
        }
        store
    }

    pub(crate) fn set_ready(&self, position: usize, is: bool) {
        // Adjust the number by the change of this one flag: a thread that counted all the flags
        // could overwrite what another changed meanwhile.
        match self.ready.get(position).map(|ready| ready.swap(is, Ordering::AcqRel)) {
            Some(false) if is => {
                self.unready.fetch_sub(1, Ordering::Release);
            }
            Some(true) if !is => {
                self.unready.fetch_add(1, Ordering::Release);
            }
            _ => {}
        }
    }

    /// Adds a batch's deltas to the totals: all or nothing.
    ///
    /// A reader of several keys may meanwhile see some of the batch's totals before others. A
    /// snapshot sees all of them or none.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    #[inline]
    pub fn apply(&self, batch: &mut Batch) -> Result<Applied> {
        self.note_unguarded();
        let began = observe::begin(observe::Backend::Memory, batch);
        if let Some((counter, entry, hash)) = batch.single(SMALL) {
            let position = self.schema.position_in(counter)?;
            let spread = self.spread(position, &entry.key, hash);
            if let Some(totals) = self.apply_one((position, spread), entry, hash, 0) {
                let applied = Applied::new(totals, 0);
                // Before the observer runs: if that panics, the batch must not look unapplied.
                batch.spend();
                applied.observe(observe::Backend::Memory, began, batch);
                return Ok(applied);
            }
        }
        let applied = self.apply_many(batch, || ())?;
        batch.spend();
        applied.observe(observe::Backend::Memory, began, batch);
        Ok(applied)
    }

    /// Adds a batch's deltas once only for the events that it stands for. Appliers of one stream
    /// take turns.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_idempotent`].
    pub fn apply_idempotent(
        &self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        self.note_unguarded();
        let began = observe::begin(observe::Backend::Memory, batch);
        let applied = self.apply_range(batch, stream_range)?;
        applied.observe(observe::Backend::Memory, began, batch);
        Ok(applied)
    }

    /// Applies and empties the batch. The caller reports it afterwards, when the stream's turn has
    /// ended: what an observer does is unknown.
    fn apply_range(&self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        // As in SQL, a batch that no store accepts is refused whatever its events are.
        self.schema.check_batch(batch)?;
        let turn = self.offsets.turn(stream_range.stream());
        if !stream_range.follows(turn.last())? {
            batch.spend();
            return Ok(Applied::skipped());
        }
        let applied = self.apply_many(batch, || turn.set(stream_range.last()))?;
        batch.spend();
        Ok(applied)
    }

    /// Returns the last applied event of a stream; 0 if none was applied.
    #[must_use]
    pub fn offset(&self, stream: &str) -> u64 {
        self.offsets.last(stream)
    }

    /// Returns the first event of a stream to deliver after a start, given `end`, the last event in
    /// its log.
    ///
    /// It is the event after the [offset](Self::offset). Call it before you deliver the first
    /// event: for every stream with an offset, and with an `end` of 0 for a stream whose log is
    /// gone.
    ///
    /// A log can lose its last events, for example if it was not synced when the power failed. If
    /// the store keeps them, the two do not match: new events get numbers that were applied
    /// already, and each would be skipped without an error. So sync the log to disk before anything
    /// that records a position in it.
    ///
    /// # Errors
    ///
    /// [`Error::LogTruncated`](crate::Error::LogTruncated) if the offset is ahead of the log's end.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Error, MemoryStore, StreamRange};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let mut log = vec![7, 7, 8]; // a show a vote, numbered from 1 on
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// log.iter().for_each(|show| batch.add(SHOW_VOTES, *show, 1));
    /// store.apply_idempotent(&mut batch, &StreamRange::new("votes", 1, 3)?)?;
    /// let snapshot = store.snapshot();
    ///
    /// let store = MemoryStore::restore(&SCHEMA, &snapshot)?;
    /// assert_eq!(store.replay_from("votes", log.len() as u64)?, 4);
    /// log.truncate(1); // the disk had no more of it
    /// assert!(matches!(store.replay_from("votes", log.len() as u64), Err(Error::LogTruncated { applied: 3, end: 1, .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn replay_from(&self, stream: &str, end: u64) -> Result<u64> {
        stream_range::replay_from(stream, self.offset(stream), end)
    }

    /// Returns streams with their last applied events, in the byte order of their names: at most
    /// `limit`, after `after`, or from the first if it is `None`.
    #[must_use]
    pub fn offsets(&self, after: Option<&str>, limit: usize) -> Vec<(String, u64)> {
        self.offsets.page(after, limit)
    }

    /// Removes the offset of a finished stream and returns it; 0 if it had none.
    ///
    /// Totals stay. If another thread is applying the stream, this waits for it.
    ///
    /// A store without an offset treats every event as new: if the stream is ever delivered again
    /// from its first event, it counts again.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore, StreamRange};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// store.apply_idempotent(&mut batch, &StreamRange::new("import 2026-11", 1, 1)?)?;
    /// assert_eq!(store.offsets(None, 100), [("import 2026-11".to_owned(), 1)]);
    /// assert_eq!(store.forget_offset("import 2026-11"), 1);
    /// assert_eq!((store.offset("import 2026-11"), store.total(SHOW_VOTES, 7)?), (0, 1));
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn forget_offset(&self, stream: &str) -> u64 {
        let turn = self.offsets.turn(stream);
        // A concurrent snapshot either has the offset or lacks it.
        let _shared = self.batch_lock.read();
        turn.forget()
    }

    /// Records that a hook ran without a pending write since the last audit that relies on them
    /// began.
    ///
    /// It writes only if that is new, and never goes back: another hook may have seen a later audit
    /// meanwhile.
    #[inline]
    fn note_unguarded(&self) {
        let audits = self.audits.load(Ordering::Relaxed);
        if self.unguarded.load(Ordering::Relaxed) < audits {
            self.unguarded.fetch_max(audits, Ordering::Relaxed);
        }
    }

    /// Applies a batch of one small delta, and ends `ends` pending writes over its key, under one
    /// lock.
    ///
    /// Returns `None` and does nothing if the total is not roomy or the counter is not plain.
    #[inline]
    fn apply_one(
        &self,
        (position, spread): (usize, u64),
        entry: &Entry,
        hash: u64,
        ends: u64,
    ) -> Option<u64> {
        self.plans.get(position).filter(|plan| plan.plain)?;
        let delta = narrow(entry.delta);
        // For keys of one part, the hash that chooses the stripe is also the table's.
        let mut state = self.stripe(spread)?.lock();
        state.tables.get_mut(position)?.add(hash, &entry.key, delta, ROOMY)?;
        state.ended += ends;
        Some(u64::from(delta != 0))
    }

    /// Applies any batch. `then` runs after all of it is applied and before any exclusive holder of
    /// the batch lock can see it.
    #[inline(never)]
    fn apply_many(&self, batch: &Batch, then: impl Fn()) -> Result<Applied> {
        if batch.entries().is_empty() {
            let _shared = self.batch_lock.read();
            then();
            return Ok(Applied::default());
        }
        batch.check_records()?;
        let positions = Positions::of(&self.schema, batch)?;
        let is = |what: fn(&WritePlan) -> bool| {
            positions.iter().any(|at| self.plans.get(at).is_some_and(what))
        };
        if is(|plan| !plan.plain) {
            self.schema.check_batch(batch)?;
            return self.apply_with_rollups(batch, is(|plan| plan.membership), then);
        }
        if batch.bulk() <= SMALL {
            let cutoffs = self.batch_lock.read();
            if let Some(totals) = self.apply_by_stripe(&cutoffs, &positions, batch) {
                then();
                return Ok(Applied::new(totals, 0));
            }
        }
        let _alone = self.batch_lock.write();
        let totals = self.apply_exclusively(&mut self.lock_all(), &positions, batch)?;
        then();
        Ok(Applied::new(totals, 0))
    }

    /// Applies a batch with counters that feed rollups or are prunable.
    ///
    /// Memberships change only under the exclusive batch lock. So a batch without memberships can
    /// update rollups next to others: the memberships that it reads stay until it is applied, and
    /// addition commutes. A batch with memberships also reads base totals and needs them to stay,
    /// so it takes the lock exclusively.
    fn apply_with_rollups(
        &self,
        batch: &Batch,
        memberships: bool,
        then: impl Fn(),
    ) -> Result<Applied> {
        if !memberships {
            let shared = self.batch_lock.read();
            if let Some(applied) = self.update_behind(&shared, batch, false)? {
                then();
                return Ok(applied);
            }
        }
        let alone = self.batch_lock.write();
        let applied = self.update_behind(&alone, batch, true)?;
        then();
        Ok(applied.unwrap_or_default())
    }

    /// Computes the rollup deltas and applies the batch, under the shared or the exclusive batch
    /// lock.
    ///
    /// Returns `None` and does nothing if only an exclusive holder may continue. An exclusive
    /// holder needs no stripe lock to read for rollups: nothing that bypasses the batch lock writes
    /// the totals that it reads.
    fn update_behind(
        &self,
        cutoffs: &Cutoffs,
        batch: &Batch,
        alone: bool,
    ) -> Result<Option<Applied>> {
        let kept = self.above_cutoffs(cutoffs, batch);
        let expanded =
            rollup_update::expand(&self.schema, kept, |request, each| self.answer(request, each))?;
        let positions = Positions::of(&self.schema, &expanded)?;
        let small = expanded.bulk() <= SMALL;
        let mut totals =
            if small { self.apply_by_stripe(cutoffs, &positions, &expanded) } else { None };
        if alone && totals.is_none() {
            totals = Some(self.apply_exclusively(&mut self.lock_all(), &positions, &expanded)?);
        }
        Ok(totals.map(|totals| Applied::new(totals, 0).of(expanded)))
    }

    /// Returns the batch without the keys below a cutoff.
    fn above_cutoffs(&self, cutoffs: &Cutoffs, batch: &Batch) -> Batch {
        if cutoffs.iter().all(Option::is_none) {
            return batch.clone();
        }
        batch.filtered(|counter, key| {
            let cutoff =
                self.schema.position(counter).ok().and_then(|at| cutoffs.get(at)?.as_ref());
            cutoff.is_none_or(|cutoff| cutoff::keeps(counter, key, cutoff))
        })
    }

    /// Removes the totals of a counter, and of its rollups by suffix, whose last key part is before
    /// `before`.
    ///
    /// From then on, hooks and audits ignore such keys. The cutoff never goes back: an earlier one
    /// has no effect. Returns the number of totals removed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`](crate::Error::InvalidUse) if the counter is not
    /// [`prunable`](CounterSpec::prunable) or `T` has several parts,
    /// [`Error::Rollup`](crate::Error::Rollup) for a rollup, and as [`total`](Self::total).
    pub fn prune<H: Key, T: Key>(
        &self,
        counter: Counter<(H, T)>,
        before: impl AsKey<T>,
    ) -> Result<u64> {
        let (cutoff, mut gone) = (KeyBuf::of::<T>(before), 0);
        let family = cutoff::family(&self.schema, &counter.id(), T::PARTS)?;
        let mut cutoffs = self.batch_lock.write();
        let mut state = self.lock_all();
        for id in family {
            let position = self.schema.position(&id)?;
            let Some(known) =
                cutoffs.get_mut(position).filter(|known| known.as_ref() < Some(&cutoff))
            else {
                continue;
            };
            *known = Some(cutoff.clone());
            for table in state.iter_mut().filter_map(|state| state.tables.get_mut(position)) {
                let before = table.len();
                table.retain(|key| cutoff::keeps(&id, key, &cutoff));
                gone += (before - table.len()) as u64;
            }
        }
        self.moved.fetch_add(1, Ordering::Release);
        Ok(gone)
    }

    pub(crate) const fn schema(&self) -> &Schema {
        &self.schema
    }

    pub(crate) const fn identity(&self) -> u64 {
        self.identity
    }

    /// Returns the cutoff of a counter: the encoded last part below which it was pruned.
    pub(crate) fn cutoff(&self, position: usize) -> Option<KeyBuf> {
        self.batch_lock.read().get(position).cloned().flatten()
    }

    /// Locks all stripes, in order.
    fn lock_all(&self) -> Vec<MutexGuard<'_, StripeState>> {
        self.stripes.iter().map(Stripe::lock).collect()
    }

    /// Applies a batch of small deltas while all totals are roomy, with one stripe locked at a
    /// time.
    ///
    /// It starts at the first entry's stripe and wraps around, so that writers rarely meet. Returns
    /// `None` and does nothing if a total may not be roomy.
    ///
    /// Nothing can overflow halfway. When the batch began, `wide` was false and every total was
    /// within [`ROOMY`]. Until it ends, it keeps its share of the batch lock, so only small deltas
    /// are added: single ones up to `ROOMY`, and those of other batches like this one. Each of
    /// these began before it could see `wide` become true, so 2^21 of them would have to be in
    /// progress at once.
    fn apply_by_stripe(
        &self,
        _behind_the_lock: &Cutoffs,
        positions: &Positions,
        batch: &Batch,
    ) -> Option<u64> {
        if self.wide.load(Ordering::Acquire) {
            return None;
        }
        let entries = batch.entries();
        let hashes = self.spread_all(positions, batch);
        let (order, starts) = self.by_stripe(&hashes);
        let first = hashes.first().map_or(0, |hash| self.stripe_of(*hash));
        let mut applied = 0;
        for at in (first..self.stripes.len()).chain(0..first) {
            let run = match starts.get(at..at + 2) {
                Some(&[start, end]) => order.get(start as usize..end as usize).unwrap_or_default(),
                _ => &[],
            };
            let (Some(stripe), false) = (self.stripes.get(at), run.is_empty()) else { continue };
            let deltas =
                || run.iter().filter_map(|(hash, at)| Some((entries.get(*at as usize)?, hash)));
            let mut state = stripe.lock();
            make_room(positions, &mut state.tables, deltas());
            for (entry, hash) in deltas() {
                let Some(table) = positions.table(&mut state.tables, entry) else { continue };
                let delta = narrow(entry.delta);
                let total = table.add(*hash, &entry.key, delta, u64::MAX);
                debug_assert!(total.is_some(), "a small delta on a roomy total");
                applied += u64::from(delta != 0);
                if total.is_none_or(|total| total.unsigned_abs() > ROOMY) {
                    self.wide.store(true, Ordering::Release);
                }
            }
        }
        Some(applied)
    }

    /// Applies any batch with all stripes locked until the end. On overflow, it subtracts what was
    /// added, under the same locks.
    #[cold]
    fn apply_exclusively(
        &self,
        state: &mut [MutexGuard<'_, StripeState>],
        positions: &Positions,
        batch: &Batch,
    ) -> Result<u64> {
        self.apply_steps(state, positions, batch, false)
    }

    /// Applies a batch with all stripes locked. If `split`, a delta outside `i64` is added in
    /// steps.
    fn apply_steps(
        &self,
        state: &mut [MutexGuard<'_, StripeState>],
        positions: &Positions,
        batch: &Batch,
        split: bool,
    ) -> Result<u64> {
        let hashes = self.spread_all(positions, batch);
        let mut add = |entry: &Entry, hash: u64, delta: i128| {
            let state = state.get_mut(self.stripe_of(hash))?;
            let table = positions.table(&mut state.tables, entry)?;
            steps(delta).try_fold(0, |_, step| table.add(hash, &entry.key, step, u64::MAX))
        };
        let deltas = || batch.entries().iter().zip(hashes.iter());
        for (done, (entry, hash)) in deltas().enumerate() {
            let fits = split || i64::try_from(entry.delta).is_ok();
            let total = if fits { add(entry, *hash, entry.delta) } else { None };
            let Some(total) = total else {
                for (entry, hash) in deltas().take(done) {
                    let undone = add(entry, *hash, -entry.delta);
                    debug_assert!(undone.is_some(), "a total returns to where it was");
                }
                return Err(batch.overflow(entry, if fits { "total" } else { "delta" }));
            };
            if total.unsigned_abs() > ROOMY {
                self.wide.store(true, Ordering::Release);
            }
        }
        Ok(batch.len() as u64)
    }

    /// Returns the hash that chooses a key's stripe: that of its prefix, if keys have several
    /// parts.
    fn spread(&self, position: usize, key: &KeyBuf, hash: u64) -> u64 {
        let (plan, spec) = (self.plans.get(position), self.schema.counters().get(position));
        let (Some(WritePlan { prefix: Some(prefix), .. }), Some(spec)) = (plan, spec) else {
            return hash;
        };
        let bytes = key.as_bytes();
        let prefix = spec.id().parts().prefix_len(bytes, *prefix).and_then(|len| bytes.get(..len));
        prefix.map_or(hash, |prefix| KeyBuf::from_bytes(prefix).hash64())
    }

    /// Returns the [`spread`](Self::spread) of every entry.
    fn spread_all<'b>(&self, positions: &Positions, batch: &'b Batch) -> Cow<'b, [u64]> {
        let ordered = |at: usize| self.plans.get(at).is_some_and(|plan| plan.prefix.is_some());
        if !positions.iter().any(ordered) {
            return Cow::Borrowed(batch.hashes());
        }
        let entries = batch.entries().iter().zip(batch.hashes());
        entries
            .map(|(entry, hash)| {
                positions.at(entry).map_or(*hash, |at| self.spread(at, &entry.key, *hash))
            })
            .collect()
    }

    /// Chooses the stripe by the bits from 48 on: the table inside takes its bucket from the lowest
    /// bits and its tag from the highest.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // masked
    fn stripe_of(&self, hash: u64) -> usize {
        (hash >> 48) as usize & (self.stripes.len() - 1)
    }

    #[inline]
    fn stripe(&self, hash: u64) -> Option<&Stripe> {
        self.stripes.get(self.stripe_of(hash))
    }

    /// Returns the positions of the hashes, sorted by stripe, and where each stripe's run begins.
    /// It is a counting sort, in time proportional to the number of hashes.
    fn by_stripe(&self, hashes: &[u64]) -> (Vec<(u64, u32)>, Vec<u32>) {
        let mut starts = vec![0_u32; self.stripes.len() + 1];
        for hash in hashes {
            if let Some(count) = starts.get_mut(self.stripe_of(*hash) + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut next = starts.clone();
        let mut order = vec![(0, 0); hashes.len()];
        for (plan, hash) in (0_u32..).zip(hashes) {
            if let Some(next) = next.get_mut(self.stripe_of(*hash))
                && let Some(slot) = order.get_mut(*next as usize)
            {
                *slot = (*hash, plan);
                *next += 1;
            }
        }
        (order, starts)
    }
}

/// A store is shared, so a reference to one is as good as its owner.
macro_rules! store {
    ($($store:ty),*) => {$(
        impl Store for $store {
            fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
                MemoryStore::apply(self, batch)
            }

            fn apply_idempotent(
                &mut self,
                batch: &mut Batch,
                stream_range: &StreamRange<'_>,
            ) -> Result<Applied> {
                MemoryStore::apply_idempotent(self, batch, stream_range)
            }

            fn offset(&mut self, stream: &str) -> Result<u64> {
                Ok(MemoryStore::offset(self, stream))
            }

            fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
                MemoryStore::read(self, counter, keys)
            }

            fn read_range(
                &mut self,
                counter: CounterId,
                range: &KeyRange,
                limit: usize,
            ) -> Result<Vec<(KeyBuf, i64)>> {
                MemoryStore::read_range(self, counter, range, limit)
            }

            fn sum_range(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
                MemoryStore::sum_range(self, counter, range)
            }
        }
    )*};
}

store!(MemoryStore, &MemoryStore);

impl WritePlan {
    fn of(schema: &Schema, spec: &CounterSpec) -> Self {
        let id = spec.id();
        // If several rollups split its keys, the shortest child is a prefix of all of them.
        let child = |feeds: &CounterSpec| {
            let rollup = feeds.rollup()?;
            let splits =
                rollup.membership().same(&id) || (rollup.keeps_suffix() && rollup.base().same(&id));
            splits.then_some(rollup.child_parts())
        };
        let prefix = schema.rollups_of(&id).filter_map(child).min().unwrap_or(1);
        Self {
            prefix: (id.parts().len() > 1).then_some(prefix),
            plain: spec.rollup().is_none()
                && !spec.is_prunable()
                && schema.rollups_of(&id).next().is_none(),
            membership: schema.child_parts(&id).is_some(),
            rollup: spec.rollup().is_some(),
        }
    }
}

/// The positions of a batch's counters in every stripe's tables.
enum Positions {
    One(usize),
    Many(Vec<usize>),
}

impl Positions {
    #[inline]
    fn of(schema: &Schema, batch: &Batch) -> Result<Self> {
        if let [one] = batch.counters() {
            return schema.position_in(one).map(Self::One);
        }
        batch
            .counters()
            .iter()
            .map(|counter| schema.position_in(counter))
            .collect::<Result<_>>()
            .map(Self::Many)
    }

    #[inline]
    fn at(&self, entry: &Entry) -> Option<usize> {
        match self {
            Self::One(position) => Some(*position),
            Self::Many(positions) => positions.get(entry.counter as usize).copied(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let positions = match self {
            Self::One(position) => std::slice::from_ref(position),
            Self::Many(positions) => positions.as_slice(),
        };
        positions.iter().copied()
    }

    #[inline]
    fn table<'t>(&self, tables: &'t mut Tables, entry: &Entry) -> Option<&'t mut Table> {
        tables.get_mut(self.at(entry)?)
    }
}

/// Returns a delta of a batch whose bulk is small.
#[inline]
#[allow(clippy::cast_possible_truncation)] // at most SMALL
fn narrow(delta: i128) -> i64 {
    debug_assert!(delta.unsigned_abs() <= u128::from(SMALL));
    delta as i64
}

/// Looks up where a run of deltas will go, and reserves room for the new keys.
///
/// In a table beyond the processor's nearest caches, the lookups of this loop are independent, so
/// it waits for many cache lines at once. Adding waits for one after the other.
#[inline]
fn make_room<'d>(
    positions: &Positions,
    tables: &mut Tables,
    deltas: impl Iterator<Item = (&'d Entry, &'d u64)>,
) {
    let Positions::One(position) = positions else { return };
    let Some(table) = tables.get_mut(*position).filter(|table| table.len() > NEAR) else { return };
    let fresh = deltas.filter(|(entry, hash)| !table.has(**hash, &entry.key)).count();
    table.reserve(fresh);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const VOTES: Counter<i64> = Counter::new("votes");
    const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

    fn add(store: &MemoryStore, deltas: &[(i64, i64)]) {
        let mut batch = Batch::new();
        for (key, delta) in deltas {
            batch.add(VOTES, *key, *delta);
        }
        store.apply(&mut batch).unwrap();
    }

    /// By batches of all three kinds: one delta under one lock, several stripe by stripe, large
    /// ones exclusively.
    #[test]
    fn a_total_that_may_overflow_in_the_middle_of_a_batch_is_noticed_once_it_is_there() {
        let roomy = ROOMY.cast_signed();
        for (steps, wide) in [
            (&[roomy][..], false),
            (&[roomy, 0], false),
            (&[-roomy], false),
            (&[roomy + 1], true),
            (&[-roomy - 1], true),
            (&[roomy - 1, 1], false),
            (&[roomy, 1], true),
            (&[-roomy, -1], true),
        ] {
            let store = MemoryStore::new(&SCHEMA);
            add(&store, &[(1, 1), (2, 1)]);
            assert!(!store.wide.load(Ordering::Relaxed));
            for step in steps {
                add(&store, &[(7, *step), (8, 1)]);
            }
            assert_eq!(store.wide.load(Ordering::Relaxed), wide, "{steps:?}");
            assert_eq!(store.total(VOTES, 7).unwrap(), steps.iter().sum::<i64>());
        }
    }

    #[test]
    fn what_is_said_twice_of_a_counter_counts_once() {
        let store = MemoryStore::pending_backfill(&SCHEMA);
        store.set_ready(0, false);
        assert!(store.total(VOTES, 1).is_err());
        assert_eq!(store.unready.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            store.set_ready(0, true);
            assert_eq!(
                (store.total(VOTES, 1).unwrap(), store.unready.load(Ordering::Relaxed)),
                (0, 0)
            );
        }
    }
}
