//! Totals of one process, in lock-striped hash tables.

mod audited;
mod bracket;
mod marks;
mod read;
mod snapshot;
mod stripe;
mod table;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::time::Duration;

pub(crate) use self::audited::{Before, Lone, Reading, RollupCut};

pub use self::bracket::Bracket;
use self::marks::Marks;
pub use self::snapshot::Snapshot;
pub(crate) use self::stripe::Shut;
use self::stripe::{Held, Stripe, Tables};
use self::table::Table;
use super::{Applied, Store, steps};
use crate::batch::{Batch, Entry};
use crate::clock::Clock;
use crate::counter::{Counter, Def, Placed};
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::layout::Layout;
use crate::mark::{self, Mark};
use crate::observe;
use crate::prune;
use crate::range::KeyRange;
use crate::replay;
use crate::rollup;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, RwLock};

/// Totals in memory, shared between threads; every method takes `&self`.
///
/// Kept over a restart by [`snapshot`](Self::snapshot), or recounted at start.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Layout, MemoryStore};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
/// static TOTALS: std::sync::LazyLock<MemoryStore> = std::sync::LazyLock::new(|| MemoryStore::new(&LAYOUT));
///
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 1);
/// TOTALS.apply(&mut batch)?;
/// assert_eq!(TOTALS.total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    layout: Layout,
    /// What tells it from every other store, also from one that is restored from its snapshot.
    identity: u64,
    /// One for each counter, in the layout's order.
    places: Box<[Place]>,
    /// A power of two of them, so that some bits of a hash choose one.
    stripes: Box<[Stripe]>,
    /// Shared by batches that go from stripe to stripe; exclusive for whoever must see none of them half done, and for every batch that
    /// changes a link.
    gate: RwLock<Cuts>,
    /// Whether some total left [`ROOMY`], so that a batch may overflow in its middle. Never reset.
    wide: AtomicBool,
    marks: Marks,
    /// Whether each counter is ready, in the layout's order.
    ready: Box<[AtomicBool]>,
    /// How many are not: what reading looks at first.
    unready: AtomicU64,
    /// How many audits are reading just now: brackets note their keys for them. Changed behind `reading`.
    watched: AtomicU64,
    reading: Mutex<()>,
    /// How many audits were made that count on brackets; and how many there were when a hook last ran without one.
    audits: AtomicU64,
    bare: AtomicU64,
    /// How often a mend, or a prune, has moved totals that rollups are made of.
    moved: AtomicU64,
    /// When a bracket is dropped, this says when that was.
    clock: Clock,
}

/// What a store does with one counter.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Where keys have several parts, how many of them choose the stripe: totals that are read together are in one.
    head: Option<usize>,
    /// Whether it is written as the batch says: it feeds no rollup and is not prunable.
    plain: bool,
    /// Whether it is the link of a rollup.
    link: bool,
    /// Whether it is a rollup.
    rollup: bool,
}

/// Totals by key, in no order.
type Totals = Vec<(KeyBuf, i64)>;

/// The cut-off of each counter that was pruned, in the layout's order: the encoded last part of its keys.
type Cuts = Box<[Option<KeyBuf>]>;

/// Stripes for each processor, so that writers seldom meet; and their bounds.
const STRIPES_EACH: usize = 16;
const STRIPES_LEAST: usize = 64;
const STRIPES_MOST: usize = 1024;
/// While every total is within this, deltas up to [`SMALL`] cannot overflow: not even 2^21 of them on one total.
const ROOMY: u64 = 1 << 62;
const SMALL: u64 = 1 << 40;
/// Tables up to this many totals stay in the processor's nearest caches.
const NEAR: usize = 1024;

impl MemoryStore {
    /// An empty store for these counters.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let stripes = replay::stripes().unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
            (processors * STRIPES_EACH).next_power_of_two().clamp(STRIPES_LEAST, STRIPES_MOST)
        });
        let tables = || layout.counters().iter().map(|placed| Table::new(placed.def().parts())).collect();
        Self {
            layout: *layout,
            identity: RandomState::new().hash_one(()),
            places: layout.counters().iter().map(|placed| Place::of(layout, placed)).collect(),
            stripes: (0..stripes).map(|_| Stripe::new(tables())).collect(),
            gate: RwLock::new(vec![None; layout.counters().len()].into_boxed_slice()),
            wide: AtomicBool::new(false),
            marks: Marks::default(),
            ready: layout.counters().iter().map(|_| AtomicBool::new(true)).collect(),
            unready: AtomicU64::new(0),
            watched: AtomicU64::new(0),
            reading: Mutex::new(()),
            audits: AtomicU64::new(0),
            bare: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            clock: Clock::default(),
        }
    }

    /// The same store with a clock of the caller's, which gives the time since some moment; by default the process's own.
    /// It must not jump ahead, as a wall clock may: keys of dropped brackets would be settled too early. Where it goes back, they are settled later.
    /// It is asked when a [`Bracket`] is dropped, and by audits for how long ago that was.
    #[must_use]
    pub fn with_clock(mut self, now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(now);
        self
    }

    /// An empty store for counters of rows that are there already: it counts, and what it counts can be read when a
    /// backfill has made it whole.
    #[must_use]
    pub fn over_rows(layout: &Layout) -> Self {
        let store = Self::new(layout);
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
        self.note_bare();
        let began = observe::begin(observe::Place::Memory, batch);
        if let Some((counter, entry, hash)) = batch.single(SMALL) {
            let position = self.layout.position_in(counter)?;
            let spread = self.spread(position, &entry.key, hash);
            if let Some(totals) = self.apply_one((position, spread), entry, hash, 0) {
                let applied = Applied::new(totals, 0);
                observe::stored(observe::Place::Memory, began, batch, &applied);
                batch.spend();
                return Ok(applied);
            }
        }
        let applied = self.apply_many(batch, || ())?;
        observe::stored(observe::Place::Memory, began, batch, &applied);
        batch.spend();
        Ok(applied)
    }

    /// Adds a batch's deltas once for the events that it stands for; appliers of one stream take turns.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_once`].
    pub fn apply_once(&self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        self.note_bare();
        self.apply_marked(batch, mark)
    }

    fn apply_marked(&self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        let began = observe::begin(observe::Place::Memory, batch);
        let turn = self.marks.turn(mark.stream());
        if !mark.follows(turn.last())? {
            batch.spend();
            return Ok(Applied::skipped());
        }
        let applied = self.apply_many(batch, || turn.set(mark.last()))?;
        // Before anybody is told: what a recorder of metrics does is not known here.
        drop(turn);
        observe::stored(observe::Place::Memory, began, batch, &applied);
        batch.spend();
        Ok(applied)
    }

    /// The last event of a stream that was applied; 0 where there was none.
    #[must_use]
    pub fn mark(&self, stream: &str) -> u64 {
        self.marks.last(stream)
    }

    /// The first event of a stream that is to be delivered after a start, where the last one that its log has is `end`: the one behind the
    /// [mark](Self::mark). Ask before the first event is delivered, for every stream with a mark, and for those whose log is gone with an `end` of 0.
    ///
    /// A log that loses its last events (it was not synced when the power went) and a store that keeps them do not fit: events that come next get
    /// numbers that were applied, and would be skipped one by one, without an error. So a log must be on the disk before what names its position is.
    ///
    /// # Errors
    ///
    /// [`Error::LogCut`](crate::Error::LogCut) when the mark is ahead of the log's end.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, Layout, Mark, MemoryStore};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    ///
    /// let mut log = vec![7, 7, 8]; // a show a vote, numbered from 1 on
    /// let store = MemoryStore::new(&LAYOUT);
    /// let mut batch = Batch::new();
    /// log.iter().for_each(|show| batch.add(SHOW_VOTES, *show, 1));
    /// store.apply_once(&mut batch, &Mark::new("votes", 1, 3)?)?;
    /// let snapshot = store.snapshot();
    ///
    /// let store = MemoryStore::restore(&LAYOUT, &snapshot)?;
    /// assert_eq!(store.replay_from("votes", log.len() as u64)?, 4);
    /// log.truncate(1); // the disk had no more of it
    /// assert!(matches!(store.replay_from("votes", log.len() as u64), Err(Error::LogCut { applied: 3, end: 1, .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn replay_from(&self, stream: &str, end: u64) -> Result<u64> {
        mark::replay_from(stream, self.mark(stream), end)
    }

    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    #[must_use]
    pub fn marks(&self, after: Option<&str>, limit: usize) -> Vec<(String, u64)> {
        self.marks.page(after, limit)
    }

    /// Forgets the mark of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are. Whoever applies the stream just now
    /// is waited for.
    ///
    /// A store without a mark takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Layout, Mark, MemoryStore};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    ///
    /// let store = MemoryStore::new(&LAYOUT);
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// store.apply_once(&mut batch, &Mark::new("import 2026-11", 1, 1)?)?;
    /// assert_eq!(store.marks(None, 100), [("import 2026-11".to_owned(), 1)]);
    /// assert_eq!(store.forget_mark("import 2026-11"), 1);
    /// assert_eq!((store.mark("import 2026-11"), store.total(SHOW_VOTES, 7)?), (0, 1));
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn forget_mark(&self, stream: &str) -> u64 {
        let turn = self.marks.turn(stream);
        // A snapshot that is taken meanwhile has it or has it not.
        let _shared = self.gate.read();
        turn.forget()
    }

    /// Remembers that a hook ran without a bracket since the last audit was made that counts on them. Writes only where that is new, and never goes
    /// back: another hook may have seen a later audit meanwhile.
    #[inline]
    fn note_bare(&self) {
        let audits = self.audits.load(Ordering::Relaxed);
        if self.bare.load(Ordering::Relaxed) < audits {
            self.bare.fetch_max(audits, Ordering::Relaxed);
        }
    }

    /// A batch of one small delta, and the end of so many brackets over it: one lock. None, and nothing is done, where its total is not roomy or its
    /// counter feeds others.
    #[inline]
    fn apply_one(&self, (position, spread): (usize, u64), entry: &Entry, hash: u64, ends: u64) -> Option<u64> {
        self.places.get(position).filter(|place| place.plain)?;
        let delta = narrow(entry.delta);
        // Where keys have one part, the hash that chooses the stripe is the table's too.
        let mut held = self.stripe(spread)?.lock();
        held.tables.get_mut(position)?.add(hash, &entry.key, delta, ROOMY)?;
        held.ended += ends;
        Some(u64::from(delta != 0))
    }

    /// Any batch; `then` runs once all of it is applied, before anybody who holds the gate alone can see it.
    #[inline(never)]
    fn apply_many(&self, batch: &Batch, then: impl Fn()) -> Result<Applied> {
        if batch.entries().is_empty() {
            let _shared = self.gate.read();
            then();
            return Ok(Applied::default());
        }
        batch.check_declared()?;
        let positions = Positions::of(&self.layout, batch)?;
        let is = |what: fn(&Place) -> bool| positions.iter().any(|at| self.places.get(at).is_some_and(what));
        if is(|place| !place.plain) {
            self.layout.check_batch(batch)?;
            return self.apply_climbing(batch, is(|place| place.link), then);
        }
        if batch.bulk() <= SMALL {
            let cuts = self.gate.read();
            if let Some(totals) = self.apply_by_stripe(&cuts, &positions, batch) {
                then();
                return Ok(Applied::new(totals, 0));
            }
        }
        let _alone = self.gate.write();
        let totals = self.apply_exclusively(&mut self.hold(), &positions, batch)?;
        then();
        Ok(Applied::new(totals, 0))
    }

    /// A batch with counters that feed rollups, or are prunable.
    ///
    /// Links change only while the gate is held alone. So a batch without links climbs beside others: what it asks for, links, stays as it
    /// is until it has been applied, and adding commutes. One with links also asks for finer totals, and needs them to stay: alone.
    fn apply_climbing(&self, batch: &Batch, links: bool, then: impl Fn()) -> Result<Applied> {
        if !links {
            let shared = self.gate.read();
            if let Some(applied) = self.climb_behind(&shared, batch, false)? {
                then();
                return Ok(applied);
            }
        }
        let alone = self.gate.write();
        let applied = self.climb_behind(&alone, batch, true)?;
        then();
        Ok(applied.unwrap_or_default())
    }

    /// Climbs and applies while the gate is shared, or held alone. None, and nothing is done, where only somebody alone may go on. Whoever is
    /// alone needs no stripe for climbing: what a climb asks for is written by nobody who passes the gate by.
    fn climb_behind(&self, cuts: &Cuts, batch: &Batch, alone: bool) -> Result<Option<Applied>> {
        let kept = self.above_cuts(cuts, batch);
        let climbed = rollup::climb(&self.layout, kept, |question, each| self.answer(question, each))?;
        let positions = Positions::of(&self.layout, &climbed)?;
        let small = climbed.bulk() <= SMALL;
        let mut totals = if small { self.apply_by_stripe(cuts, &positions, &climbed) } else { None };
        if alone && totals.is_none() {
            totals = Some(self.apply_exclusively(&mut self.hold(), &positions, &climbed)?);
        }
        Ok(totals.map(|totals| Applied::new(totals, 0).of(climbed)))
    }

    /// The batch without what is below a cut.
    fn above_cuts(&self, cuts: &Cuts, batch: &Batch) -> Batch {
        if cuts.iter().all(Option::is_none) {
            return batch.clone();
        }
        batch.filtered(|counter, key| {
            let cut = self.layout.position(counter).ok().and_then(|at| cuts.get(at)?.as_ref());
            cut.is_none_or(|cut| prune::keeps(counter, key, cut))
        })
    }

    /// Forgets the totals of a counter, and of the rollups by its tail, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cut-off never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) when the counter is not placed as [`prunable`](Placed::prunable), or `T` has several parts,
    /// [`Error::Rollup`](crate::Error::Rollup) for a rollup, and as [`total`](Self::total).
    pub fn prune<H: Key, T: Key>(&self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let (cut, mut gone) = (KeyBuf::of::<T>(before), 0);
        let family = prune::family(&self.layout, &counter.def(), T::PARTS)?;
        let mut cuts = self.gate.write();
        let mut held = self.hold();
        for def in family {
            let position = self.layout.position(&def)?;
            let Some(known) = cuts.get_mut(position).filter(|known| known.as_ref() < Some(&cut)) else { continue };
            *known = Some(cut.clone());
            for table in held.iter_mut().filter_map(|held| held.tables.get_mut(position)) {
                let before = table.len();
                table.retain(|key| prune::keeps(&def, key, &cut));
                gone += (before - table.len()) as u64;
            }
        }
        self.moved.fetch_add(1, Ordering::Release);
        Ok(gone)
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) const fn identity(&self) -> u64 {
        self.identity
    }

    /// The encoded last part below which a counter was pruned.
    pub(crate) fn cut(&self, position: usize) -> Option<KeyBuf> {
        self.gate.read().get(position).cloned().flatten()
    }

    /// All stripes, in their order.
    fn hold(&self) -> Vec<MutexGuard<'_, Held>> {
        self.stripes.iter().map(Stripe::lock).collect()
    }

    /// A batch of small deltas while all totals are roomy: one stripe at a time is locked, from the first entry's on and around, so that
    /// writers seldom meet. None, and nothing is done, where that is not so.
    ///
    /// Nothing can overflow in the middle: when the batch began, `wide` was false and every total within [`ROOMY`]. Until it ends it keeps
    /// its share of the gate, so only small deltas are added, alone up to `ROOMY` or by batches as this one, each of which began before it
    /// could see `wide` become true: 2^21 of them would have to be under way at once.
    fn apply_by_stripe(&self, _behind_the_gate: &Cuts, positions: &Positions, batch: &Batch) -> Option<u64> {
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
            let mut held = stripe.lock();
            make_room(positions, &mut held.tables, deltas());
            for (entry, hash) in deltas() {
                let Some(table) = positions.table(&mut held.tables, entry) else { continue };
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
        held: &mut [MutexGuard<'_, Held>],
        positions: &Positions,
        batch: &Batch,
    ) -> Result<u64> {
        self.apply_steps(held, positions, batch, false)
    }

    /// With `far`, deltas beyond 64 bits are added in steps.
    fn apply_steps(
        &self,
        held: &mut [MutexGuard<'_, Held>],
        positions: &Positions,
        batch: &Batch,
        far: bool,
    ) -> Result<u64> {
        let hashes = self.spread_all(positions, batch);
        let mut add = |entry: &Entry, hash: u64, delta: i128| {
            let held = held.get_mut(self.stripe_of(hash))?;
            let table = positions.table(&mut held.tables, entry)?;
            steps(delta).try_fold(0, |_, step| table.add(hash, &entry.key, step, u64::MAX))
        };
        let deltas = || batch.entries().iter().zip(hashes.iter());
        for (done, (entry, hash)) in deltas().enumerate() {
            let fits = far || i64::try_from(entry.delta).is_ok();
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
        let (place, placed) = (self.places.get(position), self.layout.counters().get(position));
        let (Some(Place { head: Some(head), .. }), Some(placed)) = (place, placed) else { return hash };
        let bytes = key.as_bytes();
        let head = placed.def().parts().head_len(bytes, *head).and_then(|len| bytes.get(..len));
        head.map_or(hash, |head| KeyBuf::from_bytes(head).hash64())
    }

    /// [`spread`](Self::spread) of every entry.
    fn spread_all<'b>(&self, positions: &Positions, batch: &'b Batch) -> Cow<'b, [u64]> {
        let ordered = |at: usize| self.places.get(at).is_some_and(|place| place.head.is_some());
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
        for (place, hash) in (0_u32..).zip(hashes) {
            if let Some(next) = next.get_mut(self.stripe_of(*hash))
                && let Some(slot) = order.get_mut(*next as usize)
            {
                *slot = (*hash, place);
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

    fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        Self::apply_once(self, batch, mark)
    }

    fn mark(&mut self, stream: &str) -> Result<u64> {
        Ok(Self::mark(self, stream))
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        Self::read(self, counter, keys)
    }

    fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        Self::range(self, counter, range, limit)
    }

    fn sum(&mut self, counter: Def, range: &KeyRange) -> Result<i64> {
        Self::sum(self, counter, range)
    }
}

impl Store for &MemoryStore {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        MemoryStore::apply(self, batch)
    }

    fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        MemoryStore::apply_once(self, batch, mark)
    }

    fn mark(&mut self, stream: &str) -> Result<u64> {
        Ok(MemoryStore::mark(self, stream))
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        MemoryStore::read(self, counter, keys)
    }

    fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        MemoryStore::range(self, counter, range, limit)
    }

    fn sum(&mut self, counter: Def, range: &KeyRange) -> Result<i64> {
        MemoryStore::sum(self, counter, range)
    }
}

impl Place {
    fn of(layout: &Layout, placed: &Placed) -> Self {
        let def = placed.def();
        // Where several rollups split its keys, the shortest child is a head of all.
        let child = |feeds: &Placed| {
            let rollup = feeds.rollup()?;
            let splits = rollup.link().same(&def) || (rollup.keeps_tail() && rollup.finer().same(&def));
            splits.then_some(rollup.child_parts())
        };
        let head = layout.rollups_of(&def).filter_map(child).min().unwrap_or(1);
        Self {
            head: (def.parts().len() > 1).then_some(head),
            plain: placed.rollup().is_none() && !placed.is_prunable() && layout.rollups_of(&def).next().is_none(),
            link: layout.child_parts(&def).is_some(),
            rollup: placed.rollup().is_some(),
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
    fn of(layout: &Layout, batch: &Batch) -> Result<Self> {
        if let [one] = batch.counters() {
            return layout.position_in(one).map(Self::One);
        }
        batch.counters().iter().map(|counter| layout.position_in(counter)).collect::<Result<_>>().map(Self::Many)
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
    const LAYOUT: Layout = Layout::new(&[VOTES.table()]);

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
            let store = MemoryStore::new(&LAYOUT);
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
        let store = MemoryStore::over_rows(&LAYOUT);
        store.set_ready(0, false);
        assert!(store.total(VOTES, 1).is_err());
        assert_eq!(store.unready.load(Ordering::Relaxed), 1);
        for _ in 0..2 {
            store.set_ready(0, true);
            assert_eq!((store.total(VOTES, 1).unwrap(), store.unready.load(Ordering::Relaxed)), (0, 0));
        }
    }
}
