//! Totals of one process, in lock-striped hash tables.

mod audited;
mod offsets;
mod pending_write;
mod read;
mod snapshot;
mod stripe;
mod table;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::time::Duration;

pub(crate) use self::audited::{Before, Lone, Reading, RollupSnapshot};

use self::offsets::Offsets;
pub use self::pending_write::PendingWrite;
pub use self::snapshot::Snapshot;
pub(crate) use self::stripe::Shut;
use self::stripe::{Stripe, StripeState, Tables};
use self::table::Table;
use super::{Applied, Store, steps};
use crate::batch::{Batch, Entry};
use crate::clock::Clock;
use crate::counter::{Counter, CounterId, CounterSpec};
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::observe;
use crate::offset::{self, StreamRange};
use crate::range::KeyRange;
use crate::replay;
use crate::retention;
use crate::rollup_update;
use crate::schema::Schema;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, RwLock};

/// Totals in memory, shared between threads; every method takes `&self`.
///
/// Kept over a restart by [`snapshot`](Self::snapshot), or recounted at start.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, MemoryStore, Schema};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
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
    /// What tells it from every other store, also from one that is restored from its snapshot.
    identity: u64,
    /// One for each counter, in the schema's order.
    plans: Box<[WritePlan]>,
    /// A power of two of them, so that some bits of a hash choose one.
    stripes: Box<[Stripe]>,
    /// Shared by batches that go from stripe to stripe; exclusive for whoever must see none of them half done, and for every batch that
    /// changes a membership.
    batch_lock: RwLock<Cutoffs>,
    /// Whether some total left [`ROOMY`], so that a batch may overflow in its middle. Never reset.
    wide: AtomicBool,
    offsets: Offsets,
    /// Whether each counter is ready, in the schema's order.
    ready: Box<[AtomicBool]>,
    /// How many are not: what reading looks at first.
    unready: AtomicU64,
    /// How many audits are reading just now: pending writes note their keys for them. Changed behind `reading`.
    watched: AtomicU64,
    reading: Mutex<()>,
    /// How many audits were made that count on pending writes; and how many there were when a hook last ran without one.
    audits: AtomicU64,
    unguarded: AtomicU64,
    /// How often a repair, or a prune, has moved totals that rollups are made of.
    moved: AtomicU64,
    /// When a pending write is dropped, this says when that was.
    clock: Clock,
}

/// What a store does with one counter.
#[derive(Debug, Clone, Copy)]
struct WritePlan {
    /// Where keys have several parts, how many of them choose the stripe: totals that are read together are in one.
    prefix: Option<usize>,
    /// Whether it is written as the batch says: it feeds no rollup and is not prunable.
    plain: bool,
    /// Whether it is the membership of a rollup.
    membership: bool,
    /// Whether it is a rollup.
    rollup: bool,
}

/// Totals by key, in no order.
type Totals = Vec<(KeyBuf, i64)>;

/// The cutoff of each counter that was pruned, in the schema's order: the encoded last part of its keys.
type Cutoffs = Box<[Option<KeyBuf>]>;

/// Stripes for each processor, so that writers seldom meet; and their bounds.
const STRIPES_EACH: usize = 16;
const MIN_STRIPES: usize = 64;
const MAX_STRIPES: usize = 1024;
/// While every total is within this, deltas up to [`SMALL`] cannot overflow: not even 2^21 of them on one total.
const ROOMY: u64 = 1 << 62;
const SMALL: u64 = 1 << 40;
/// Tables up to this many totals stay in the processor's nearest caches.
const NEAR: usize = 1024;

impl MemoryStore {
    /// An empty store for these counters.
    #[must_use]
    pub fn new(schema: &Schema) -> Self {
        let stripes = replay::stripes().unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
            (processors * STRIPES_EACH).next_power_of_two().clamp(MIN_STRIPES, MAX_STRIPES)
        });
        let tables = || schema.counters().iter().map(|spec| Table::new(spec.id().parts())).collect();
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
            watched: AtomicU64::new(0),
            reading: Mutex::new(()),
            audits: AtomicU64::new(0),
            unguarded: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            clock: Clock::default(),
        }
    }

    /// The same store with a clock of the caller's, which gives the time since some moment; by default the process's own.
    /// It must not jump ahead, as a wall clock may: keys of dropped pending writes would be settled too early. Where it goes back, they are settled later.
    /// It is asked when a [`PendingWrite`] is dropped, and by audits for how long ago that was.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// An empty store for counters of rows that are there already: it counts, and what it counts can be read when a
    /// backfill has made it whole.
    #[must_use]
    pub fn pending_backfill(schema: &Schema) -> Self {
        let store = Self::new(schema);
        for position in 0..store.ready.len() {
            store.set_ready(position, false);
        }
        store
    }

    pub(crate) fn set_ready(&self, position: usize, is: bool) {
        // By how each changes: whoever looked at all of them could write down what another has changed meanwhile.
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

    /// Adds a batch's deltas to the totals, all or nothing. Who reads several keys meanwhile may see some of a batch before the others; a
    /// snapshot sees all or none.
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
                observe::stored(observe::Backend::Memory, began, batch, &applied);
                batch.spend();
                return Ok(applied);
            }
        }
        let applied = self.apply_many(batch, || ())?;
        observe::stored(observe::Backend::Memory, began, batch, &applied);
        batch.spend();
        Ok(applied)
    }

    /// Adds a batch's deltas once for the events that it stands for; appliers of one stream take turns.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_idempotent`].
    pub fn apply_idempotent(&self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        self.note_unguarded();
        self.apply_range(batch, stream_range)
    }

    fn apply_range(&self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        let began = observe::begin(observe::Backend::Memory, batch);
        let turn = self.offsets.turn(stream_range.stream());
        if !stream_range.follows(turn.last())? {
            batch.spend();
            return Ok(Applied::skipped());
        }
        let applied = self.apply_many(batch, || turn.set(stream_range.last()))?;
        // Before anybody is told: what a recorder of metrics does is not known here.
        drop(turn);
        observe::stored(observe::Backend::Memory, began, batch, &applied);
        batch.spend();
        Ok(applied)
    }

    /// The last event of a stream that was applied; 0 where there was none.
    #[must_use]
    pub fn offset(&self, stream: &str) -> u64 {
        self.offsets.last(stream)
    }

    /// The first event of a stream that is to be delivered after a start, where the last one that its log has is `end`: the one behind the
    /// [offset](Self::offset). Ask before the first event is delivered, for every stream with an offset, and for those whose log is gone with an `end` of 0.
    ///
    /// A log that loses its last events (it was not synced when the power went) and a store that keeps them do not fit: events that come next get
    /// numbers that were applied, and would be skipped one by one, without an error. So a log must be on the disk before what names its position is.
    ///
    /// # Errors
    ///
    /// [`Error::LogTruncated`](crate::Error::LogTruncated) when the offset is ahead of the log's end.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, MemoryStore, Schema, StreamRange};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
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
        offset::replay_from(stream, self.offset(stream), end)
    }

    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    #[must_use]
    pub fn offsets(&self, after: Option<&str>, limit: usize) -> Vec<(String, u64)> {
        self.offsets.page(after, limit)
    }

    /// Forgets the offset of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are. Whoever applies the stream just now
    /// is waited for.
    ///
    /// A store without an offset takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, MemoryStore, Schema, StreamRange};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
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
        // A snapshot that is taken meanwhile has it or has it not.
        let _shared = self.batch_lock.read();
        turn.forget()
    }

    /// Remembers that a hook ran without a pending write since the last audit was made that counts on them. Writes only where that is new, and never goes
    /// back: another hook may have seen a later audit meanwhile.
    #[inline]
    fn note_unguarded(&self) {
        let audits = self.audits.load(Ordering::Relaxed);
        if self.unguarded.load(Ordering::Relaxed) < audits {
            self.unguarded.fetch_max(audits, Ordering::Relaxed);
        }
    }

    /// A batch of one small delta, and the end of so many pending writes over it: one lock. None, and nothing is done, where its total is not roomy or its
    /// counter feeds others.
    #[inline]
    fn apply_one(&self, (position, spread): (usize, u64), entry: &Entry, hash: u64, ends: u64) -> Option<u64> {
        self.plans.get(position).filter(|plan| plan.plain)?;
        let delta = narrow(entry.delta);
        // Where keys have one part, the hash that chooses the stripe is the table's too.
        let mut state = self.stripe(spread)?.lock();
        state.tables.get_mut(position)?.add(hash, &entry.key, delta, ROOMY)?;
        state.ended += ends;
        Some(u64::from(delta != 0))
    }

    /// Any batch; `then` runs once all of it is applied, before anybody who holds the batch lock alone can see it.
    #[inline(never)]
    fn apply_many(&self, batch: &Batch, then: impl Fn()) -> Result<Applied> {
        if batch.entries().is_empty() {
            let _shared = self.batch_lock.read();
            then();
            return Ok(Applied::default());
        }
        batch.check_declared()?;
        let positions = Positions::of(&self.schema, batch)?;
        let is = |what: fn(&WritePlan) -> bool| positions.iter().any(|at| self.plans.get(at).is_some_and(what));
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

    /// A batch with counters that feed rollups, or are prunable.
    ///
    /// Links change only while the batch lock is held alone. So a batch without memberships climbs beside others: what it asks for, memberships, stays as it
    /// is until it has been applied, and adding commutes. One with memberships also asks for base totals, and needs them to stay: alone.
    fn apply_with_rollups(&self, batch: &Batch, memberships: bool, then: impl Fn()) -> Result<Applied> {
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

    /// Climbs and applies while the batch lock is shared, or held alone. None, and nothing is done, where only somebody alone may go on. Whoever is
    /// alone needs no stripe for climbing: what a climb asks for is written by nobody who passes the batch lock by.
    fn update_behind(&self, cutoffs: &Cutoffs, batch: &Batch, alone: bool) -> Result<Option<Applied>> {
        let kept = self.above_cutoffs(cutoffs, batch);
        let expanded = rollup_update::expand(&self.schema, kept, |request, each| self.answer(request, each))?;
        let positions = Positions::of(&self.schema, &expanded)?;
        let small = expanded.bulk() <= SMALL;
        let mut totals = if small { self.apply_by_stripe(cutoffs, &positions, &expanded) } else { None };
        if alone && totals.is_none() {
            totals = Some(self.apply_exclusively(&mut self.lock_all(), &positions, &expanded)?);
        }
        Ok(totals.map(|totals| Applied::new(totals, 0).of(expanded)))
    }

    /// The batch without what is below a cutoff.
    fn above_cutoffs(&self, cutoffs: &Cutoffs, batch: &Batch) -> Batch {
        if cutoffs.iter().all(Option::is_none) {
            return batch.clone();
        }
        batch.filtered(|counter, key| {
            let cutoff = self.schema.position(counter).ok().and_then(|at| cutoffs.get(at)?.as_ref());
            cutoff.is_none_or(|cutoff| retention::keeps(counter, key, cutoff))
        })
    }

    /// Forgets the totals of a counter, and of the rollups by its suffix, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cutoff never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`](crate::Error::InvalidUse) when the counter is not placed as [`prunable`](CounterSpec::prunable), or `T` has several parts,
    /// [`Error::Rollup`](crate::Error::Rollup) for a rollup, and as [`total`](Self::total).
    pub fn prune<H: Key, T: Key>(&self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let (cutoff, mut gone) = (KeyBuf::of::<T>(before), 0);
        let family = retention::family(&self.schema, &counter.id(), T::PARTS)?;
        let mut cutoffs = self.batch_lock.write();
        let mut state = self.lock_all();
        for id in family {
            let position = self.schema.position(&id)?;
            let Some(known) = cutoffs.get_mut(position).filter(|known| known.as_ref() < Some(&cutoff)) else {
                continue;
            };
            *known = Some(cutoff.clone());
            for table in state.iter_mut().filter_map(|state| state.tables.get_mut(position)) {
                let before = table.len();
                table.retain(|key| retention::keeps(&id, key, &cutoff));
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

    /// The encoded last part below which a counter was pruned.
    pub(crate) fn cutoff(&self, position: usize) -> Option<KeyBuf> {
        self.batch_lock.read().get(position).cloned().flatten()
    }

    /// All stripes, in their order.
    fn lock_all(&self) -> Vec<MutexGuard<'_, StripeState>> {
        self.stripes.iter().map(Stripe::lock).collect()
    }

    /// A batch of small deltas while all totals are roomy: one stripe at a time is locked, from the first entry's on and around, so that
    /// writers seldom meet. None, and nothing is done, where that is not so.
    ///
    /// Nothing can overflow in the middle: when the batch began, `wide` was false and every total within [`ROOMY`]. Until it ends it keeps
    /// its share of the batch lock, so only small deltas are added, alone up to `ROOMY` or by batches as this one, each of which began before it
    /// could see `wide` become true: 2^21 of them would have to be under way at once.
    fn apply_by_stripe(&self, _behind_the_lock: &Cutoffs, positions: &Positions, batch: &Batch) -> Option<u64> {
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
            let deltas = || run.iter().filter_map(|(hash, at)| Some((entries.get(*at as usize)?, hash)));
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

    /// Any batch: alone, with all stripes held to the end. On overflow, what was added is taken back under the same locks.
    #[cold]
    fn apply_exclusively(
        &self,
        state: &mut [MutexGuard<'_, StripeState>],
        positions: &Positions,
        batch: &Batch,
    ) -> Result<u64> {
        self.apply_steps(state, positions, batch, false)
    }

    /// With `split`, deltas beyond 64 bits are added in steps.
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

    /// The hash that chooses a key's stripe: its head's, where keys have several parts.
    fn spread(&self, position: usize, key: &KeyBuf, hash: u64) -> u64 {
        let (plan, spec) = (self.plans.get(position), self.schema.counters().get(position));
        let (Some(WritePlan { prefix: Some(prefix), .. }), Some(spec)) = (plan, spec) else { return hash };
        let bytes = key.as_bytes();
        let prefix = spec.id().parts().prefix_len(bytes, *prefix).and_then(|len| bytes.get(..len));
        prefix.map_or(hash, |prefix| KeyBuf::from_bytes(prefix).hash64())
    }

    /// [`spread`](Self::spread) of every entry.
    fn spread_all<'b>(&self, positions: &Positions, batch: &'b Batch) -> Cow<'b, [u64]> {
        let ordered = |at: usize| self.plans.get(at).is_some_and(|plan| plan.prefix.is_some());
        if !positions.iter().any(ordered) {
            return Cow::Borrowed(batch.hashes());
        }
        let entries = batch.entries().iter().zip(batch.hashes());
        entries
            .map(|(entry, hash)| positions.at(entry).map_or(*hash, |at| self.spread(at, &entry.key, *hash)))
            .collect()
    }

    /// The stripe is chosen by bits from 48 on: the table below takes its bucket from the lowest and its tag from the highest.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // masked
    fn stripe_of(&self, hash: u64) -> usize {
        (hash >> 48) as usize & (self.stripes.len() - 1)
    }

    #[inline]
    fn stripe(&self, hash: u64) -> Option<&Stripe> {
        self.stripes.get(self.stripe_of(hash))
    }

    /// The places of hashes, sorted by stripe, and where each stripe's begin: a counting sort, in time proportional to their number.
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

impl Store for MemoryStore {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        Self::apply(self, batch)
    }

    fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        Self::apply_idempotent(self, batch, stream_range)
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        Ok(Self::offset(self, stream))
    }

    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        Self::read(self, counter, keys)
    }

    fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        Self::range(self, counter, range, limit)
    }

    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        Self::sum(self, counter, range)
    }
}

impl Store for &MemoryStore {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        MemoryStore::apply(self, batch)
    }

    fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        MemoryStore::apply_idempotent(self, batch, stream_range)
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        Ok(MemoryStore::offset(self, stream))
    }

    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        MemoryStore::read(self, counter, keys)
    }

    fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        MemoryStore::range(self, counter, range, limit)
    }

    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        MemoryStore::sum(self, counter, range)
    }
}

impl WritePlan {
    fn of(schema: &Schema, spec: &CounterSpec) -> Self {
        let id = spec.id();
        // Where several rollups split its keys, the shortest child is a head of all.
        let child = |feeds: &CounterSpec| {
            let rollup = feeds.rollup()?;
            let splits = rollup.membership().same(&id) || (rollup.keeps_suffix() && rollup.base().same(&id));
            splits.then_some(rollup.child_parts())
        };
        let prefix = schema.rollups_of(&id).filter_map(child).min().unwrap_or(1);
        Self {
            prefix: (id.parts().len() > 1).then_some(prefix),
            plain: spec.rollup().is_none() && !spec.is_prunable() && schema.rollups_of(&id).next().is_none(),
            membership: schema.child_parts(&id).is_some(),
            rollup: spec.rollup().is_some(),
        }
    }
}

/// Where the tables of a batch's counters are in every stripe.
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
        batch.counters().iter().map(|counter| schema.position_in(counter)).collect::<Result<_>>().map(Self::Many)
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

/// A delta of a batch whose bulk is small.
#[inline]
#[allow(clippy::cast_possible_truncation)] // at most SMALL
fn narrow(delta: i128) -> i64 {
    debug_assert!(delta.unsigned_abs() <= u128::from(SMALL));
    delta as i64
}

/// Looks where a run of deltas will go, and makes room for those that are new. In a table beyond the processor's nearest caches this
/// loop, which depends on nothing, waits for many of its lines at once, where adding waits for one after the other.
#[inline]
fn make_room<'d>(positions: &Positions, tables: &mut Tables, deltas: impl Iterator<Item = (&'d Entry, &'d u64)>) {
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

    /// By batches of all three kinds: one delta under a lock, several stripe by stripe, large ones alone.
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
            assert_eq!((store.total(VOTES, 1).unwrap(), store.unready.load(Ordering::Relaxed)), (0, 0));
        }
    }
}
