//! Totals of one process, in lock-striped hash tables.

use std::collections::BinaryHeap;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::{Applied, Store};
use crate::batch::{Batch, Entry};
use crate::counter::{Counter, Def};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::layout::Layout;

/// How many locks there are: a power of two, so that its logarithm's bits of a hash choose one.
const STRIPES: usize = 64;

/// Totals in memory, shared between threads; every method takes `&self`.
///
/// A batch is seen whole or not at all. Kept over a restart by [`snapshot`](Self::snapshot), or recounted at start.
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
    stripes: Box<[Stripe]>,
}

/// A lock on cache lines of its own: neighbours must not slow each other.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe(Mutex<Tables>);

/// One table for each counter, in the layout's order. No total in it is 0.
type Tables = Box<[HashTable<(KeyBuf, i64)>]>;

impl MemoryStore {
    /// An empty store for these counters.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let tables = || layout.counters().iter().map(|_| HashTable::new()).collect();
        Self { layout: *layout, stripes: (0..STRIPES).map(|_| Stripe(Mutex::new(tables()))).collect() }
    }

    /// Adds a batch's deltas to the totals, all or nothing; waits for other writers of the same stripes only.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`].
    pub fn apply(&self, batch: &Batch) -> Result<Applied> {
        let applied = match batch.entries() {
            [] => 0,
            [one] => self.apply_one(batch, one)?,
            many => self.apply_many(batch, many)?,
        };
        Ok(Applied { totals: applied, statements: 0 })
    }

    fn apply_one(&self, batch: &Batch, entry: &Entry) -> Result<u64> {
        let Some(counter) = batch.counters().first() else { return Ok(0) };
        let position = self.layout.position(counter)?;
        if entry.delta == 0 {
            return Ok(0);
        }
        let Some(stripe) = self.stripes.get(stripe_of(entry.hash)) else { return Ok(0) };
        match add(&mut stripe.0.lock(), position, entry) {
            Ok(()) => Ok(1),
            Err(what) => Err(Error::overflow(counter, &entry.key, what)),
        }
    }

    /// Entries sorted by stripe, stripes locked in ascending order and held to the end: no deadlock, and nobody sees half
    /// a batch. On overflow, what was added is taken back under the same locks.
    fn apply_many(&self, batch: &Batch, entries: &[Entry]) -> Result<u64> {
        let positions =
            batch.counters().iter().map(|counter| self.layout.position(counter)).collect::<Result<Vec<usize>>>()?;
        let order = by_stripe(entries);
        let mut held: Vec<(usize, MutexGuard<'_, Tables>)> = Vec::with_capacity(STRIPES.min(order.len()));
        for (done, entry) in order.iter().enumerate() {
            let at = stripe_of(entry.hash);
            if held.last().is_none_or(|(last, _)| *last != at)
                && let Some(stripe) = self.stripes.get(at)
            {
                held.push((at, stripe.0.lock()));
            }
            let (Some((_, tables)), Some(position)) = (held.last_mut(), positions.get(entry.counter as usize)) else {
                continue;
            };
            if let Err(what) = add(tables, *position, entry) {
                take_back(&mut held, &positions, order.get(..done).unwrap_or_default());
                let counter = batch.counters().get(entry.counter as usize);
                return Err(counter.map_or_else(
                    || Error::UnknownCounter { counter: String::new() },
                    |counter| Error::overflow(counter, &entry.key, what),
                ));
            }
        }
        Ok(order.len() as u64)
    }

    /// The total of one key; 0 where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::Conflict`].
    pub fn total<K: Key>(&self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64> {
        Ok(self.get(self.layout.position(&counter.def())?, &KeyBuf::of::<K>(key)))
    }

    fn get(&self, position: usize, key: &KeyBuf) -> i64 {
        let hash = key.hash64();
        let Some(stripe) = self.stripes.get(stripe_of(hash)) else { return 0 };
        let tables = stripe.0.lock();
        let found = tables.get(position).and_then(|table| table.find(hash, |(known, _)| known == key));
        found.map_or(0, |(_, total)| *total)
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

    /// The next totals after a key, in key order, at most `limit`. Costs one pass over the counter's totals, whatever the
    /// limit, and memory for `limit` keys.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn page(&self, counter: Def, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        let position = self.layout.position(&counter)?;
        let mut smallest: BinaryHeap<(KeyBuf, i64)> = BinaryHeap::new();
        for stripe in &self.stripes {
            let tables = stripe.0.lock();
            for (key, total) in tables.get(position).into_iter().flatten() {
                if after.is_some_and(|after| key <= after) {
                    continue;
                }
                if smallest.len() < limit {
                    smallest.push((key.clone(), *total));
                } else if let Some(mut largest) = smallest.peek_mut()
                    && *key < largest.0
                {
                    *largest = (key.clone(), *total);
                }
            }
        }
        Ok(smallest.into_sorted_vec())
    }

    /// How many totals other than 0 a counter has.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn len(&self, counter: Def) -> Result<usize> {
        let position = self.layout.position(&counter)?;
        let len = |stripe: &Stripe| stripe.0.lock().get(position).map_or(0, HashTable::len);
        Ok(self.stripes.iter().map(len).sum())
    }

    /// All totals at one moment, with every stripe held while they are copied; sorted, so that equal stores give equal snapshots.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let held: Vec<MutexGuard<'_, Tables>> = self.stripes.iter().map(|stripe| stripe.0.lock()).collect();
        let mut counters: Vec<CounterSnapshot> = self
            .layout
            .counters()
            .iter()
            .enumerate()
            .map(|(position, placed)| CounterSnapshot {
                name: placed.def().name().to_owned(),
                totals: held.iter().filter_map(|tables| tables.get(position)).flatten().cloned().collect(),
            })
            .collect();
        drop(held);
        for counter in &mut counters {
            counter.totals.sort_unstable();
        }
        Snapshot { format: SNAPSHOT_FORMAT, layout: self.layout.fingerprint(), counters }
    }

    /// A store with the totals of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] when the snapshot has another format or layout, a key that is none of its counter's, or one key twice.
    pub fn restore(layout: &Layout, snapshot: &Snapshot) -> Result<Self> {
        let failed = |reason: String| Err(Error::Snapshot { reason });
        if snapshot.format != SNAPSHOT_FORMAT {
            return failed(format!("format {} is not {SNAPSHOT_FORMAT}", snapshot.format));
        }
        if snapshot.layout != layout.fingerprint() {
            return failed("it was taken with another layout".to_owned());
        }
        let store = Self::new(layout);
        let mut batch = Batch::new();
        for counter in &snapshot.counters {
            let def = layout.find(&counter.name)?;
            for (key, total) in &counter.totals {
                if let Err(cause) = def.parts().values(key) {
                    return failed(format!("counter {}, key {}: {cause}", def.name(), def.show(key)));
                }
                batch.add_raw(def, key.clone(), i128::from(*total));
            }
            let distinct = batch.entries().len();
            if distinct != counter.totals.len() || store.len(def)? != 0 {
                return failed(format!("counter {} has a key twice", def.name()));
            }
            store.apply(&batch)?;
            batch.clear();
        }
        Ok(store)
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

/// All totals of a [`MemoryStore`] at one moment; serde reads and writes it, with keys as hexadecimal strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    format: u32,
    layout: u64,
    counters: Vec<CounterSnapshot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CounterSnapshot {
    name: String,
    totals: Vec<(KeyBuf, i64)>,
}

const SNAPSHOT_FORMAT: u32 = 1;

/// The stripe is chosen by bits 48 to 53: the table below takes its bucket from the lowest and its tag from the highest.
#[inline]
fn stripe_of(hash: u64) -> usize {
    #[allow(clippy::cast_possible_truncation)] // masked
    {
        (hash >> 48) as usize & (STRIPES - 1)
    }
}

/// The entries that change something, sorted by stripe: a counting sort, in time proportional to their number.
fn by_stripe(entries: &[Entry]) -> Vec<&Entry> {
    let changing = || entries.iter().filter(|entry| entry.delta != 0);
    let mut starts = [0_usize; STRIPES];
    for entry in changing() {
        if let Some(count) = starts.get_mut(stripe_of(entry.hash)) {
            *count += 1;
        }
    }
    let mut len = 0;
    for start in &mut starts {
        let count = *start;
        *start = len;
        len += count;
    }
    let Some(filler) = entries.first() else { return Vec::new() };
    let mut order = vec![filler; len];
    for entry in changing() {
        if let Some(at) = starts.get_mut(stripe_of(entry.hash))
            && let Some(place) = order.get_mut(*at)
        {
            *place = entry;
            *at += 1;
        }
    }
    order
}

/// Adds one entry's delta to its total.
#[inline]
fn add(tables: &mut Tables, position: usize, entry: &Entry) -> Result<(), &'static str> {
    if i64::try_from(entry.delta).is_err() {
        return Err("delta");
    }
    add_to(tables, position, entry, entry.delta)
}

/// Adds to one total and keeps zeros out; on overflow nothing changes.
#[inline]
fn add_to(tables: &mut Tables, position: usize, entry: &Entry, delta: i128) -> Result<(), &'static str> {
    let Some(table) = tables.get_mut(position) else { return Ok(()) };
    let sum = |total: i64| i64::try_from(i128::from(total) + delta).map_err(|_| "total");
    match table.entry(entry.hash, |(key, _)| *key == entry.key, |(key, _)| key.hash64()) {
        Slot::Occupied(mut slot) => match sum(slot.get().1)? {
            0 => {
                slot.remove();
            }
            total => slot.get_mut().1 = total,
        },
        Slot::Vacant(slot) => {
            slot.insert((entry.key.clone(), sum(0)?));
        }
    }
    Ok(())
}

/// Subtracts entries that were just added, under the locks that have been held since: each total returns to a value
/// that it had, so nothing can overflow.
#[cold]
fn take_back(held: &mut [(usize, MutexGuard<'_, Tables>)], positions: &[usize], done: &[&Entry]) {
    for entry in done {
        let at = stripe_of(entry.hash);
        let tables = held.iter_mut().find(|(stripe, _)| *stripe == at);
        if let (Some((_, tables)), Some(position)) = (tables, positions.get(entry.counter as usize)) {
            let undone = add_to(tables, *position, entry, -entry.delta);
            debug_assert!(undone.is_ok(), "a total returns to where it was");
        }
    }
}
