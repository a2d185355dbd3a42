//! Totals of one process, in lock-striped hash tables.

mod snapshot;
mod table;

use std::collections::BinaryHeap;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

pub use self::snapshot::Snapshot;
use self::table::Table;
use super::{Applied, Store, steps};
use crate::batch::{Batch, Entry};
use crate::counter::{Counter, Def};
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::layout::Layout;

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
    /// A power of two of them, so that some bits of a hash choose one.
    stripes: Box<[Stripe]>,
    /// Shared by batches that go from stripe to stripe; exclusive for whoever must see none of them half done.
    gate: RwLock<()>,
    /// Whether some total left [`ROOMY`], so that a batch may overflow in its middle. Never reset.
    wide: AtomicBool,
}

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
            stripes: (0..stripes).map(|_| Stripe(Mutex::new(tables()))).collect(),
            gate: RwLock::new(()),
            wide: AtomicBool::new(false),
        }
    }

    /// Adds a batch's deltas to the totals, all or nothing. Who reads several keys meanwhile may see some of a batch before the others; a
    /// snapshot sees all or none.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    #[inline]
    pub fn apply(&self, batch: &Batch) -> Result<Applied> {
        if let ([counter], [entry], [hash], ..=SMALL) =
            (batch.counters(), batch.entries(), batch.hashes(), batch.bulk())
        {
            let position = self.layout.position(counter)?;
            if let Some(totals) = self.apply_one(position, entry, *hash) {
                return Ok(Applied { totals, statements: 0 });
            }
        }
        self.apply_many(batch)
    }

    /// A batch of one small delta: one lock. None, and nothing is done, where its total is not roomy.
    #[inline]
    fn apply_one(&self, position: usize, entry: &Entry, hash: u64) -> Option<u64> {
        let delta = narrow(entry.delta);
        let mut tables = self.tables(hash)?;
        tables.get_mut(position)?.add(hash, &entry.key, delta, ROOMY).map(|_| u64::from(delta != 0))
    }

    #[inline(never)]
    fn apply_many(&self, batch: &Batch) -> Result<Applied> {
        if batch.entries().is_empty() {
            return Ok(Applied::default());
        }
        let positions = Positions::of(&self.layout, batch)?;
        let roomy = batch.bulk() <= SMALL;
        let applied = if roomy { self.apply_by_stripe(&positions, batch.entries(), batch.hashes()) } else { None };
        let totals = applied.map_or_else(|| self.apply_exclusively(&positions, batch), Ok)?;
        Ok(Applied { totals, statements: 0 })
    }

    /// A batch of small deltas while all totals are roomy: one stripe at a time is locked, from the first entry's on and around, so that
    /// writers seldom meet. None, and nothing is done, where that is not so.
    ///
    /// Nothing can overflow in the middle: when the batch began, `wide` was false and every total within [`ROOMY`]. Until it ends it keeps
    /// its share of the gate, so only small deltas are added, alone up to `ROOMY` or by batches as this one, each of which began before it
    /// could see `wide` become true: 2^21 of them would have to be under way at once.
    fn apply_by_stripe(&self, positions: &Positions, entries: &[Entry], hashes: &[u64]) -> Option<u64> {
        let _shared = self.gate.read();
        if self.wide.load(Ordering::Acquire) {
            return None;
        }
        let (order, starts) = self.by_stripe(hashes);
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
    fn apply_exclusively(&self, positions: &Positions, batch: &Batch) -> Result<u64> {
        let _alone = self.gate.write();
        let mut held: Vec<_> = self.stripes.iter().map(|stripe| stripe.0.lock()).collect();
        let mut add = |entry: &Entry, hash: u64, delta: i128| {
            let tables = held.get_mut(self.stripe_of(hash))?;
            let table = positions.table(tables, entry)?;
            steps(delta).try_fold(0, |_, step| table.add(hash, &entry.key, step, u64::MAX))
        };
        let deltas = || batch.entries().iter().zip(batch.hashes());
        for (done, (entry, hash)) in deltas().enumerate() {
            let fits = i64::try_from(entry.delta).is_ok();
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
    /// [`Error::UnknownCounter`](crate::Error::UnknownCounter) and [`Error::Conflict`](crate::Error::Conflict).
    pub fn total<K: Key>(&self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64> {
        Ok(self.get(self.layout.position(&counter.def())?, &KeyBuf::of::<K>(key)))
    }

    fn get(&self, position: usize, key: &KeyBuf) -> i64 {
        let hash = key.hash64();
        self.tables(hash).map_or(0, |tables| tables.get(position).map_or(0, |table| table.get(hash, key)))
    }

    /// The totals of these keys, in their order; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn read(&self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let position = self.layout.position(&counter)?;
        Ok(keys.iter().map(|key| self.get(position, key)).collect())
    }

    /// The next totals after a key, in key order, at most `limit`. Costs one pass over the counter's totals, whatever the limit, and memory
    /// for `limit` keys.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn page(&self, counter: Def, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        let position = self.layout.position(&counter)?;
        let mut smallest: BinaryHeap<(KeyBuf, i64)> = BinaryHeap::new();
        let mut consider = |key: &KeyBuf, total: i64| {
            if after.is_some_and(|after| key <= after) {
                return;
            }
            if smallest.len() < limit {
                smallest.push((key.clone(), total));
            } else if let Some(mut largest) = smallest.peek_mut()
                && *key < largest.0
            {
                *largest = (key.clone(), total);
            }
        };
        for stripe in &self.stripes {
            if let Some(table) = stripe.0.lock().get(position) {
                table.for_each(&mut consider);
            }
        }
        Ok(smallest.into_sorted_vec())
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

    /// The totals of each counter in the layout's order, all at one moment.
    fn all_totals(&self) -> Vec<Vec<(KeyBuf, i64)>> {
        let _alone = self.gate.write();
        let held: Vec<_> = self.stripes.iter().map(|stripe| stripe.0.lock()).collect();
        let totals_at = |position: usize| {
            let mut totals = Vec::new();
            for table in held.iter().filter_map(|tables| tables.get(position)) {
                table.for_each(|key, total| totals.push((key.clone(), total)));
            }
            totals
        };
        (0..self.layout.counters().len()).map(totals_at).collect()
    }
}

impl Store for MemoryStore {
    fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        Self::apply(self, batch)
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        Self::read(self, counter, keys)
    }

    fn page(&mut self, counter: Def, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        Self::page(self, counter, after, limit)
    }
}

impl Store for &MemoryStore {
    fn apply(&mut self, batch: &Batch) -> Result<Applied> {
        MemoryStore::apply(self, batch)
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        MemoryStore::read(self, counter, keys)
    }

    fn page(&mut self, counter: Def, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        MemoryStore::page(self, counter, after, limit)
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
            return layout.position(one).map(Self::One);
        }
        batch.counters().iter().map(|counter| layout.position(counter)).collect::<Result<_>>().map(Self::Many)
    }

    #[inline]
    fn table<'t>(&self, tables: &'t mut Tables, entry: &Entry) -> Option<&'t mut Table> {
        let position = match self {
            Self::One(position) => *position,
            Self::Many(positions) => *positions.get(entry.counter as usize)?,
        };
        tables.get_mut(position)
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
