//! Totals of one process, in lock-striped hash tables.

mod marks;
mod snapshot;
mod table;

use std::borrow::Cow;
use std::collections::BinaryHeap;
use std::num::NonZero;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use self::marks::Marks;
pub use self::snapshot::Snapshot;
use self::table::Table;
use super::{Applied, Store, behind, steps, sum_overflow};
use crate::batch::{Batch, Entry};
use crate::counter::{Counter, Def, Placed};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::layout::Layout;
use crate::mark::Mark;
use crate::observe;
use crate::prune;
use crate::range::KeyRange;
use crate::rollup::{self, Question};

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
/// TOTALS.apply(&batch)?;
/// assert_eq!(TOTALS.total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    layout: Layout,
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
    /// Whether all are: what reading looks at first.
    all_ready: AtomicBool,
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
}

/// Totals by key, in no order.
type Totals = Vec<(KeyBuf, i64)>;

/// The cut-off of each counter that was pruned, in the layout's order: the encoded last part of its keys.
type Cuts = Box<[Option<KeyBuf>]>;

/// A lock on cache lines of its own: neighbours must not slow each other.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe(Mutex<Tables>);

/// One table for each counter, in the layout's order.
type Tables = Box<[Table]>;

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
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let stripes = (processors * STRIPES_EACH).next_power_of_two().clamp(STRIPES_LEAST, STRIPES_MOST);
        let tables = || layout.counters().iter().map(|placed| Table::new(placed.def().parts())).collect();
        Self {
            layout: *layout,
            places: layout.counters().iter().map(|placed| Place::of(layout, placed)).collect(),
            stripes: (0..stripes).map(|_| Stripe(Mutex::new(tables()))).collect(),
            gate: RwLock::new(vec![None; layout.counters().len()].into_boxed_slice()),
            wide: AtomicBool::new(false),
            marks: Marks::default(),
            ready: layout.counters().iter().map(|_| AtomicBool::new(true)).collect(),
            all_ready: AtomicBool::new(true),
        }
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

    /// Whether a counter may be read: it, and all that it sums, are ready.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total), but for [`Error::NotReady`](crate::Error::NotReady).
    pub fn is_ready(&self, counter: Def) -> Result<bool> {
        Ok(self.first_unready(self.layout.position(&counter)?)?.is_none())
    }

    pub(crate) fn set_ready(&self, position: usize, is: bool) {
        if let Some(ready) = self.ready.get(position) {
            ready.store(is, Ordering::Release);
        }
        self.all_ready.store(self.ready.iter().all(|ready| ready.load(Ordering::Acquire)), Ordering::Release);
    }

    /// The position of a counter that is to be read.
    fn readable(&self, counter: &Def) -> Result<usize> {
        let position = self.layout.position(counter)?;
        if self.all_ready.load(Ordering::Acquire) {
            return Ok(position);
        }
        match self.first_unready(position)? {
            None => Ok(position),
            Some(unready) => Err(Error::NotReady { counter: counter.name(), unready: unready.name() }),
        }
    }

    /// What is not ready of all that a counter is made of.
    fn first_unready(&self, position: usize) -> Result<Option<Def>> {
        let Some(placed) = self.layout.counters().get(position) else { return Ok(None) };
        let is_ready = |def: &Def| {
            let at = self.layout.position(def).ok();
            at.and_then(|at| self.ready.get(at)).is_none_or(|ready| ready.load(Ordering::Acquire))
        };
        Ok(self.layout.with_finer(&[placed.def()])?.into_iter().find(|def| !is_ready(def)))
    }

    /// Adds a batch's deltas to the totals, all or nothing. Who reads several keys meanwhile may see some of a batch before the others; a
    /// snapshot sees all or none.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    #[inline]
    pub fn apply(&self, batch: &Batch) -> Result<Applied> {
        let began = observe::begin(observe::Place::Memory, batch);
        if let ([counter], [entry], [hash], ..=SMALL) =
            (batch.counters(), batch.entries(), batch.hashes(), batch.bulk())
        {
            let position = self.layout.position(counter)?;
            if let Some(totals) = self.apply_one(position, entry, *hash) {
                let applied = Applied::new(totals, 0);
                observe::applied(observe::Place::Memory, began, batch, &applied);
                return Ok(applied);
            }
        }
        let applied = self.apply_many(batch, || ())?;
        observe::applied(observe::Place::Memory, began, batch, &applied);
        Ok(applied)
    }

    /// Adds a batch's deltas once for the events that it stands for; appliers of one stream take turns.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_once`].
    pub fn apply_once(&self, batch: &Batch, mark: &Mark<'_>) -> Result<Applied> {
        let began = observe::begin(observe::Place::Memory, batch);
        let stream = self.marks.stream(mark.stream());
        let turn = stream.turn();
        if !mark.follows(turn.last())? {
            return Ok(Applied::skipped());
        }
        let applied = self.apply_many(batch, || turn.set(mark.last()))?;
        observe::applied(observe::Place::Memory, began, batch, &applied);
        Ok(applied)
    }

    /// The last event of a stream that was applied; 0 where there was none.
    #[must_use]
    pub fn mark(&self, stream: &str) -> u64 {
        self.marks.last(stream)
    }

    /// A batch of one small delta: one lock. None, and nothing is done, where its total is not roomy or its counter feeds others.
    #[inline]
    fn apply_one(&self, position: usize, entry: &Entry, hash: u64) -> Option<u64> {
        let place = self.places.get(position).filter(|place| place.plain)?;
        let delta = narrow(entry.delta);
        let hash = if place.head.is_some() { self.spread(position, &entry.key, hash) } else { hash };
        let mut tables = self.tables(hash)?;
        tables.get_mut(position)?.add(hash, &entry.key, delta, ROOMY).map(|_| u64::from(delta != 0))
    }

    /// Any batch; `then` runs once all of it is applied, before anybody who holds the gate alone can see it.
    #[inline(never)]
    fn apply_many(&self, batch: &Batch, then: impl Fn()) -> Result<Applied> {
        if batch.entries().is_empty() {
            let _shared = self.gate.read();
            then();
            return Ok(Applied::default());
        }
        let positions = Positions::of(&self.layout, batch)?;
        let is = |what: fn(&Place) -> bool| positions.iter().any(|at| self.places.get(at).is_some_and(what));
        if is(|place| !place.plain) {
            rollup::refuse_rollups(&self.layout, batch)?;
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

    /// As [`apply`](Self::apply), for what keys lack: also of rollups, and beyond 64 bits.
    pub(crate) fn correct(&mut self, batch: Batch) -> Result<()> {
        let answer =
            |question: &Question, each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>| self.answer(question, each);
        let total = |counter: Def, key: &KeyBuf| Ok(self.get(self.layout.position(&counter)?, key));
        let climbed = rollup::climb_where_room(&self.layout, batch, answer, total)?;
        let positions = Positions::of(&self.layout, &climbed)?;
        // What one total lacks may be two steps away.
        self.apply_steps(&mut self.hold(), &positions, &climbed, true).map(drop)
    }

    /// Every total of a climb's question: one key, or what is under a child, which is in one stripe.
    fn answer(&self, question: &Question, each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()> {
        let position = self.layout.position(&question.counter)?;
        let key = KeyBuf::from_bytes(question.range.shared());
        if question.counter.parts().values(&key).is_ok() {
            let total = self.get(position, &key);
            return if total == 0 { Ok(()) } else { each(&key, total) };
        }
        let mut done = Ok(());
        self.visit(position, &question.range, |key, total| {
            done = each(key, total);
            done.is_ok()
        });
        done
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
            for table in held.iter_mut().filter_map(|tables| tables.get_mut(position)) {
                let before = table.len();
                table.retain(|key| prune::keeps(&def, key, &cut));
                gone += (before - table.len()) as u64;
            }
        }
        Ok(gone)
    }

    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The encoded last part below which a counter was pruned.
    pub(crate) fn cut(&self, position: usize) -> Option<KeyBuf> {
        self.gate.read().get(position).cloned().flatten()
    }

    /// All stripes, in their order.
    fn hold(&self) -> Vec<MutexGuard<'_, Tables>> {
        self.stripes.iter().map(|stripe| stripe.0.lock()).collect()
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
            let mut tables = stripe.0.lock();
            make_room(positions, &mut tables, deltas());
            for (entry, hash) in deltas() {
                let Some(table) = positions.table(&mut tables, entry) else { continue };
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
        held: &mut [MutexGuard<'_, Tables>],
        positions: &Positions,
        batch: &Batch,
    ) -> Result<u64> {
        self.apply_steps(held, positions, batch, false)
    }

    /// With `far`, deltas beyond 64 bits are added in steps.
    fn apply_steps(
        &self,
        held: &mut [MutexGuard<'_, Tables>],
        positions: &Positions,
        batch: &Batch,
        far: bool,
    ) -> Result<u64> {
        let hashes = self.spread_all(positions, batch);
        let mut add = |entry: &Entry, hash: u64, delta: i128| {
            let tables = held.get_mut(self.stripe_of(hash))?;
            let table = positions.table(tables, entry)?;
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
    fn tables(&self, hash: u64) -> Option<MutexGuard<'_, Tables>> {
        self.stripes.get(self.stripe_of(hash)).map(|stripe| stripe.0.lock())
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

    /// The total of one key; 0 where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`](crate::Error::UnknownCounter), [`Error::Conflict`](crate::Error::Conflict), and
    /// [`Error::NotReady`](crate::Error::NotReady).
    pub fn total<K: Key>(&self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64> {
        Ok(self.get(self.readable(&counter.def())?, &KeyBuf::of::<K>(key)))
    }

    fn get(&self, position: usize, key: &KeyBuf) -> i64 {
        let hash = key.hash64();
        let tables = self.tables(self.spread(position, key, hash));
        tables.map_or(0, |tables| tables.get(position).map_or(0, |table| table.get(hash, key)))
    }

    /// The totals of these keys, in their order; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn read(&self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let position = self.readable(&counter)?;
        Ok(keys.iter().map(|key| self.get(position, key)).collect())
    }

    /// The first totals of a range, in key order, at most `limit`. Costs memory for `limit` keys, and where keys have one part, a pass over the
    /// counter's totals; where they have several, O(log totals) a stripe and the keys read, of one stripe for a range under one head.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn range(&self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        self.readable(&counter)?;
        self.range_unready(&counter, range, limit)
    }

    /// As [`range`](Self::range), of a counter that need not be ready.
    pub(crate) fn range_unready(&self, counter: &Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        let position = self.layout.position(counter)?;
        check_bounds(counter, range)?;
        let in_order = self.places.get(position).is_some_and(|place| place.head.is_some());
        let mut smallest: BinaryHeap<(KeyBuf, i64)> = BinaryHeap::new();
        if limit > 0 {
            self.visit(position, range, |key, total| {
                if smallest.len() < limit {
                    smallest.push((key.clone(), total));
                    return true;
                }
                match smallest.peek_mut() {
                    Some(mut largest) if *key < largest.0 => {
                        *largest = (key.clone(), total);
                        true
                    }
                    // Of a stripe in order, what follows is larger still.
                    _ => !in_order,
                }
            });
        }
        Ok(smallest.into_sorted_vec())
    }

    /// The sum of the totals of a range; costs as [`range`](Self::range), without the memory.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`].
    pub fn sum(&self, counter: Def, range: &KeyRange) -> Result<i64> {
        let position = self.readable(&counter)?;
        check_bounds(&counter, range)?;
        let mut sum = 0_i128;
        self.visit(position, range, |_, total| {
            sum += i128::from(total);
            true
        });
        // Afterwards: a cut never goes back, so what it spares now was spared all along.
        if self.places.get(position).is_some_and(|place| !place.plain) {
            prune::check_range(&counter, range, self.cut(position).as_ref())?;
        }
        i64::try_from(sum).map_err(|_| sum_overflow(&counter))
    }

    /// Calls `each` with the totals of a range, stripe by stripe; no is for what is left of a stripe.
    fn visit(&self, position: usize, range: &KeyRange, mut each: impl FnMut(&KeyBuf, i64) -> bool) {
        let stripes = match self.stripe_of_range(position, range) {
            Some(at) => self.stripes.get(at..=at),
            None => self.stripes.get(..),
        };
        for stripe in stripes.unwrap_or_default() {
            if let Some(table) = stripe.0.lock().get(position) {
                table.visit(range, &mut each);
            }
        }
    }

    /// The stripe that holds all of a range, where its keys have a head in common.
    fn stripe_of_range(&self, position: usize, range: &KeyRange) -> Option<usize> {
        let (place, placed) = (self.places.get(position)?, self.layout.counters().get(position)?);
        let shared = range.shared();
        let head = shared.get(..placed.def().parts().head_len(shared, place.head?)?)?;
        Some(self.stripe_of(KeyBuf::from_bytes(head).hash64()))
    }

    /// The next totals after a key, in key order, at most `limit`; costs as [`range`](Self::range).
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn page(&self, counter: Def, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        self.range(counter, &behind(&counter, after)?, limit)
    }

    /// All totals other than 0, in key order; takes memory for all of them.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn totals<K: Key>(&self, counter: Counter<K>) -> Result<Vec<(K, i64)>> {
        Store::totals(&mut &*self, counter)
    }

    /// How many totals other than 0 a counter has.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn len(&self, counter: Def) -> Result<usize> {
        let position = self.layout.position(&counter)?;
        let len = |stripe: &Stripe| stripe.0.lock().get(position).map_or(0, Table::len);
        Ok(self.stripes.iter().map(len).sum())
    }
}

impl Store for MemoryStore {
    fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        Self::apply(self, batch)
    }

    fn apply_once(&mut self, batch: &Batch, mark: &Mark<'_>) -> Result<Applied> {
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
    fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        MemoryStore::apply(self, batch)
    }

    fn apply_once(&mut self, batch: &Batch, mark: &Mark<'_>) -> Result<Applied> {
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
        }
    }
}

/// Refuses a bound that is no key of the counter, nor the first parts of one.
fn check_bounds(counter: &Def, range: &KeyRange) -> Result<()> {
    for bound in [range.start(), range.end()] {
        if let Bound::Included(head) | Bound::Excluded(head) = bound {
            counter.parts().values_of_head(head).map_err(|cause| Error::key(counter, head, cause))?;
        }
    }
    Ok(())
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
            return layout.position(one).map(Self::One);
        }
        batch.counters().iter().map(|counter| layout.position(counter)).collect::<Result<_>>().map(Self::Many)
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
