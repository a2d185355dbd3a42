//! The batch: what one transaction adds to which totals, as coalesced deltas.
//!
//! Adding is pure and cannot fail.

mod record;

use std::ops::Deref;
use std::ptr;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

pub use self::record::{Record, Tally};
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};

/// The deltas of one transaction, one per counter and key.
///
/// Call its hooks, [`insert`](Batch::insert), [`update`](Batch::update) and
/// [`delete`](Batch::delete), for each row that you write. Give a savepoint its own batch:
/// [`merge`](Batch::merge) it when the savepoint is released, drop it when the savepoint is rolled
/// back.
///
/// Adding a delta costs O(1). Memory grows with the number of distinct keys, about 64 bytes each.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 1);
/// batch.add(SHOW_VOTES, 7, 2);
/// assert_eq!(batch.len(), 1);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Batch {
    counters: Vec<Named>,
    /// `key.hash64()` of each entry, computed once. This batch's index uses it, and so do the
    /// stripes and buckets of a memory store, which scan all hashes before they look at an entry.
    hashes: Vec<u64>,
    entries: Vec<Entry>,
    /// Positions in `entries`; empty while a linear search is faster.
    index: HashTable<u32>,
    /// An upper bound of every delta's size: the sum of all amounts without their signs, saturating
    /// at 2^64 - 1. It is `u64::MAX` when the batch was applied or must be refused. Stores read it
    /// only on their careful paths, which batches that large take.
    bulk: u64,
    /// Why no store accepts the batch, and of which counter, as its position in `counters`.
    refusal: Option<(u32, Refusal)>,
    /// Whether the entries were applied, so that the batch counts as empty. The next addition
    /// discards them; until then [`Applied::deltas`](crate::Applied::deltas) reads them.
    spent: bool,
}

/// What is wrong with a counter of a batch, whatever store it is applied to.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    /// The tallies of two record types added to it; this is the second one.
    TwoRecords(&'static Driver),
    /// A key does not decode.
    Key,
}

/// A counter of a batch and the record type that adds to it; `None` if all of it was added by hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named {
    id: CounterId,
    by: Option<&'static Driver>,
}

impl Deref for Named {
    type Target = CounterId;

    fn deref(&self) -> &CounterId {
        &self.id
    }
}

impl Named {
    /// Adds the record that adds to this counter to the error that a schema does not have the
    /// counter.
    pub(crate) fn blame(&self, mut error: Error) -> Error {
        if let (
            Error::UnknownCounter { record, .. } | Error::DefinitionConflict { record, .. },
            Some(by),
        ) = (&mut error, self.by)
        {
            *record = Some((by.name)());
        }
        error
    }
}

/// What a record type states about itself; one static value for each type.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) name: fn() -> &'static str,
}

impl Driver {
    /// Whether both are one record type, as far as names tell: a generic type has one name whatever
    /// it is made of, and a trait object may be any type.
    fn is_same(&self, other: &Self) -> bool {
        let [one, two] = [self, other].map(|driver| (driver.name)());
        let generic = |name: &'static str| name.split('<').next();
        generic(one) == generic(two) || [one, two].iter().any(|name| name.starts_with("dyn "))
    }
}

/// The sum for one counter and key.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: KeyBuf,
    /// Has room for 2^64 amounts of 64 bits.
    pub(crate) delta: i128,
    /// Position in `Batch::counters`.
    pub(crate) counter: u32,
}

/// Below this number of entries, a linear search is used instead of the index.
const LINEAR: usize = 8;

impl Batch {
    /// An empty batch.
    ///
    /// Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counters: Vec::new(),
            hashes: Vec::new(),
            entries: Vec::new(),
            index: HashTable::new(),
            bulk: 0,
            refusal: None,
            spent: false,
        }
    }

    /// Adds `amount` to the total of `key` by hand.
    ///
    /// For rows, use the hooks instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter};
    ///
    /// const STOCK: Counter<String> = Counter::new("article.stock");
    /// let mut batch = Batch::new();
    /// batch.add(STOCK, "guitar", 5);
    /// batch.add(STOCK, "guitar", -5);
    /// assert!(batch.is_empty());
    /// ```
    #[inline]
    pub fn add<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, amount: i64) {
        self.add_key(counter, key, i128::from(amount));
    }

    /// Moves the contents of `other`, the batch of a released savepoint, into this batch and leaves
    /// `other` empty.
    pub fn merge(&mut self, other: &mut Self) {
        if self.spent {
            self.clear();
        }
        if !other.spent {
            for (entry, hash) in other.entries.iter_mut().zip(&other.hashes) {
                if let Some(from) = other.counters.get(entry.counter as usize) {
                    let counter = self.counter_index(from.id);
                    self.add_hashed(counter, &mut entry.key, *hash, entry.delta);
                    if let Some(by) = from.by {
                        self.drive(counter, by);
                    }
                }
            }
            if let Some((counter, why)) = other.refusal
                && let Some(Named { id, .. }) = other.counters.get(counter as usize)
            {
                let counter = self.counter_index(*id);
                self.refuse(counter, why);
            }
        }
        other.clear();
    }

    /// Discards the contents and keeps the memory, so that a writer that reuses its batch allocates
    /// nothing.
    pub fn clear(&mut self) {
        self.counters.clear();
        self.hashes.clear();
        self.entries.clear();
        self.index.clear();
        self.bulk = 0;
        self.refusal = None;
        self.spent = false;
    }

    /// Marks the batch as applied: it is empty from then on and keeps its memory.
    ///
    /// Call it in your own store, or after you ran the statements through another library and their
    /// transaction is committed. The stores of this crate call it themselves. Until something is
    /// added, [`Applied::deltas`](crate::Applied::deltas) still returns the deltas that were
    /// applied.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// batch.spend();
    /// assert!(batch.is_empty());
    /// ```
    pub const fn spend(&mut self) {
        self.spent = true;
        self.bulk = u64::MAX;
    }

    /// Whether applying this batch would change no total.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().iter().all(|entry| entry.delta == 0)
    }

    /// How many totals applying this batch would change.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries().iter().filter(|entry| entry.delta != 0).count()
    }

    /// The deltas other than zero, in the order in which their keys were first added.
    ///
    /// For your own store.
    pub fn deltas(&self) -> impl Iterator<Item = (CounterId, &KeyBuf, i128)> {
        self.deltas_of(self.entries())
    }

    /// The deltas that were applied; with `spent`, a store has emptied the batch since.
    pub(crate) fn applied_deltas(
        &self,
        spent: bool,
    ) -> impl Iterator<Item = (CounterId, &KeyBuf, i128)> {
        self.deltas_of(if spent { &self.entries } else { self.entries() })
    }

    fn deltas_of<'b>(
        &'b self,
        entries: &'b [Entry],
    ) -> impl Iterator<Item = (CounterId, &'b KeyBuf, i128)> {
        entries.iter().filter(|entry| entry.delta != 0).filter_map(|entry| {
            self.counters
                .get(entry.counter as usize)
                .map(|counter| (counter.id, &entry.key, entry.delta))
        })
    }

    /// The same deltas without those for which `keep` returns false.
    pub(crate) fn filtered(&self, mut keep: impl FnMut(&CounterId, &KeyBuf) -> bool) -> Self {
        let mut kept = Self::new();
        for (counter, key, delta) in self.deltas() {
            if keep(&counter, key) {
                kept.add_raw(counter, &mut key.clone(), delta);
            }
        }
        kept
    }

    /// The error for a delta, or the total that it leads to, outside `i64`.
    #[cold]
    pub(crate) fn overflow(&self, entry: &Entry, what: &'static str) -> Error {
        let counter = self.counters.get(entry.counter as usize);
        counter.map_or_else(
            || Error::UnknownCounter { counter: String::new(), record: None },
            |counter| Error::overflow(counter, &entry.key, what),
        )
    }

    /// An upper bound of every delta's size.
    pub(crate) const fn bulk(&self) -> u64 {
        self.bulk
    }

    /// The only entry with its counter and its hash, if its delta's size is at most `most`, which
    /// is below 2^64 - 1. The one comparison with `bulk` also shows that the batch was neither
    /// applied nor must be refused.
    #[inline]
    pub(crate) fn single(&self, most: u64) -> Option<(&Named, &Entry, u64)> {
        match (&*self.counters, &*self.entries, &*self.hashes) {
            ([counter], [entry], [hash]) if self.bulk <= most => Some((counter, entry, *hash)),
            _ => None,
        }
    }

    pub(crate) fn counters(&self) -> &[Named] {
        if self.spent { &[] } else { &self.counters }
    }

    /// The counters that this batch adds to.
    #[cfg(feature = "sql")]
    pub(crate) fn ids(&self) -> Vec<CounterId> {
        self.counters().iter().map(|counter| counter.id).collect()
    }

    /// Refuses the batch if the tallies of two record types added to one counter, or a key does not
    /// decode.
    pub(crate) fn check_records(&self) -> Result<()> {
        let Some((counter, why)) = self.refusal.filter(|_| !self.spent) else { return Ok(()) };
        match (self.counters.get(counter as usize), why) {
            (Some(Named { id, by: Some(first) }), Refusal::TwoRecords(second)) => {
                Err(Error::TwoRecords {
                    counter: id.name(),
                    first: (first.name)(),
                    second: (second.name)(),
                })
            }
            (Some(Named { id, .. }), Refusal::Key) => {
                self.entries.iter().filter(|entry| entry.counter == counter).try_for_each(
                    |Entry { key, .. }| {
                        id.parts().check(key).map_err(|cause| Error::key(id, key, cause))
                    },
                )
            }
            _ => Ok(()),
        }
    }

    /// The hashes of [`entries`](Self::entries).
    pub(crate) fn hashes(&self) -> &[u64] {
        if self.spent { &[] } else { &self.hashes }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        if self.spent { &[] } else { &self.entries }
    }

    #[inline]
    pub(crate) fn add_key<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, delta: i128) {
        self.add_encoded(counter, key, delta);
    }

    /// Returns the counter's position in this batch. A key that does not decode refuses the batch:
    /// a store could take it for another key.
    #[inline]
    fn add_encoded<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, delta: i128) -> u32 {
        let mut raw = KeyBuf::new();
        key.encode(&mut raw);
        let is_key = key.is_trusted() || K::PARTS.check(&raw).is_ok();
        let counter = self.add_raw(counter.id(), &mut raw, delta);
        if !is_key {
            self.refuse(counter, Refusal::Key);
        }
        counter
    }

    /// Like [`add_key`](Self::add_key), for a record's `tally`.
    #[inline]
    pub(crate) fn add_driven<K: Key>(
        &mut self,
        counter: Counter<K>,
        key: impl AsKey<K>,
        delta: i128,
        by: &'static Driver,
    ) {
        let counter = self.add_encoded(counter, key, delta);
        // A record type has one driver, usually at one address; a driver at another address is
        // compared by its name.
        if self
            .counters
            .get(counter as usize)
            .is_none_or(|known| !known.by.is_some_and(|known| ptr::eq(known, by)))
        {
            self.drive(counter, by);
        }
    }

    /// Notes the record type that adds to a counter. A second type refuses the batch.
    #[inline(never)]
    fn drive(&mut self, counter: u32, by: &'static Driver) {
        let Some(known) = self.counters.get_mut(counter as usize) else { return };
        match known.by {
            Some(first) if !first.is_same(by) => self.refuse(counter, Refusal::TwoRecords(by)),
            _ => known.by = Some(by),
        }
    }

    #[cold]
    fn refuse(&mut self, counter: u32, why: Refusal) {
        self.refusal.get_or_insert((counter, why));
        self.bulk = u64::MAX;
    }

    /// Adds to one delta, and takes the key if it is new. The key is borrowed so that it is hashed
    /// and compared where it was written: bytes that were just moved are slow to read back.
    #[inline]
    pub(crate) fn add_raw(&mut self, counter: CounterId, key: &mut KeyBuf, delta: i128) -> u32 {
        if self.spent {
            self.clear();
        }
        let hash = key.hash64();
        let counter = self.counter_index(counter);
        self.add_hashed(counter, key, hash, delta);
        counter
    }

    /// The position of a counter in this batch. A record tallies its counters in the same order
    /// each time, so the counter after the last entry's is tried first.
    #[inline]
    fn counter_index(&mut self, counter: CounterId) -> u32 {
        if let Some(last) = self.entries.last().map(|entry| entry.counter as usize) {
            for guess in [last + 1, last, 0] {
                if self.counters.get(guess).is_some_and(|known| known.same(&counter)) {
                    return narrow(guess);
                }
            }
        }
        self.counter_search(counter)
    }

    fn counter_search(&mut self, counter: CounterId) -> u32 {
        let found = self.counters.iter().position(|known| known.same(&counter));
        narrow(found.unwrap_or_else(|| {
            self.counters.push(Named { id: counter, by: None });
            self.counters.len() - 1
        }))
    }

    #[inline]
    fn add_hashed(&mut self, counter: u32, key: &mut KeyBuf, hash: u64, delta: i128) {
        self.bulk =
            self.bulk.saturating_add(u64::try_from(delta.unsigned_abs()).unwrap_or(u64::MAX));
        let (entries, hashes) = (&self.entries, &self.hashes);
        let is = |entry: &Entry| entry.counter == counter && entry.key == *key;
        let found = if entries.len() < LINEAR {
            hashes.iter().zip(entries).position(|(known, entry)| *known == hash && is(entry))
        } else {
            let found = self.index.entry(
                mix(hash, counter),
                |at| entries.get(*at as usize).is_some_and(is),
                |at| mixed_at(entries, hashes, *at),
            );
            match found {
                Slot::Occupied(at) => Some(*at.get() as usize),
                Slot::Vacant(slot) => {
                    slot.insert(narrow(entries.len()));
                    None
                }
            }
        };
        match found.and_then(|at| self.entries.get_mut(at)) {
            // Amounts cannot overflow this. Batches merged with themselves could; no store accepts
            // such a delta.
            Some(entry) => entry.delta = entry.delta.saturating_add(delta),
            None => self.push(Entry { key: std::mem::take(key), delta, counter }, hash),
        }
    }

    #[inline]
    fn push(&mut self, entry: Entry, hash: u64) {
        self.entries.push(entry);
        self.hashes.push(hash);
        if self.entries.len() == LINEAR {
            self.index_all();
        }
    }

    /// Builds the index once a linear search would be slower.
    #[cold]
    fn index_all(&mut self) {
        let (entries, hashes) = (&self.entries, &self.hashes);
        for at in (0..entries.len()).map(narrow) {
            self.index.insert_unique(mixed_at(entries, hashes, at), at, |at| {
                mixed_at(entries, hashes, *at)
            });
        }
    }
}

/// The index hash of the entry at a position.
fn mixed_at(entries: &[Entry], hashes: &[u64], at: u32) -> u64 {
    let found = entries.get(at as usize).zip(hashes.get(at as usize));
    found.map_or(0, |(entry, hash)| mix(*hash, entry.counter))
}

/// Mixes the counter into the hash, so that one key under several counters does not fall into one
/// bucket.
#[inline]
fn mix(hash: u64, counter: u32) -> u64 {
    hash ^ u64::from(counter).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A position in 32 bits: 2^32 keys of 64 bytes would take 256 GiB.
#[inline]
#[allow(clippy::expect_used)]
fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("a batch holds fewer than 2^32 keys")
}

/// Divides a change of a total from one `i64` to another into changes that each fit `i64`: one, or
/// two if it is larger. In between, the total stays between the two.
pub(crate) fn steps(mut change: i128) -> impl Iterator<Item = i64> {
    std::iter::from_fn(move || {
        let within = change.clamp(i64::MIN.into(), i64::MAX.into());
        let step = i64::try_from(within).unwrap_or_default();
        change -= i128::from(step);
        (step != 0).then_some(step)
    })
}
