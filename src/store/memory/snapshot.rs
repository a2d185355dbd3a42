//! All totals and offsets of a memory store at one moment: taken while writers go on, and restored
//! into a store.

mod atomic_file;
#[cfg(test)]
mod disk_fault_tests;
mod file;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{MemoryStore, ROOMY, Stripe, Totals};
use crate::counter::{CounterId, CounterSpec, Rollup, without_prunable};
use crate::error::{Error, Result, shortened};
use crate::key::{KeyBuf, KeyParts};
use crate::locks::Ordering;
use crate::schema::Schema;
use crate::stream_range::StreamRange;

/// All totals and offsets of a [`MemoryStore`] at one moment.
///
/// [`save`](Self::save) and [`load`](Self::load) keep it in a file. serde also reads and writes it,
/// with keys as hexadecimal strings in human-readable formats.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, MemoryStore, Snapshot, StreamRange};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// let store = MemoryStore::new(&SCHEMA);
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 3);
/// store.apply_idempotent(&mut batch, &StreamRange::new("votes", 1, 3)?)?;
///
/// let json = serde_json::to_string(&store.snapshot())?;
/// let restored = MemoryStore::restore(&SCHEMA, &serde_json::from_str::<Snapshot>(&json)?)?;
/// assert_eq!((restored.total(SHOW_VOTES, 7)?, restored.offset("votes")), (3, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    format: Format,
    counters: Vec<CounterTotals>,
    /// The last event of each stream.
    offsets: BTreeMap<String, u64>,
}

/// One counter: its declaration as text, and its totals in key order.
///
/// Fields that format 1 lacked default to empty, so that a snapshot of that format is refused
/// because of its format. No counter has an empty storage clause, so
/// [`restore`](MemoryStore::restore) would refuse it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CounterTotals {
    /// The full name: another version is another counter.
    name: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    storage_clause: String,
    #[serde(default)]
    ready: bool,
    /// The encoded last part below which the counter was pruned.
    #[serde(default)]
    cutoff: Option<KeyBuf>,
    totals: Totals,
}

/// The format of what follows; a read refuses another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Format;

impl Format {
    /// Format 1 had a hash of the whole schema instead of each counter's declaration, and no
    /// offsets; it was never written to a file.
    const NUMBER: u32 = 2;
}

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        Format::NUMBER
    }
}

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        if number == Self::NUMBER {
            Ok(Self)
        } else {
            Err(format!("its format is {number}, not {}", Self::NUMBER))
        }
    }
}

impl MemoryStore {
    /// Returns all totals and offsets at one moment.
    ///
    /// Writers wait during the copy, at most until all totals are copied; sorting comes afterwards.
    /// Equal stores give equal snapshots.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.moment();
        for counter in &mut snapshot.counters {
            counter.totals.sort_unstable();
        }
        snapshot
    }

    /// Returns everything at one moment, unordered. The moment is when the last stripe is locked.
    ///
    /// No batch is half applied then. A batch that goes from stripe to stripe keeps the batch lock,
    /// shared or exclusive, until all of it is applied and its offset has moved, and this function
    /// takes the batch lock exclusively. Any other batch is one total, changed under its stripe's
    /// lock. Cutoffs also change under the batch lock, so they and the offsets are of that moment.
    /// A counter that is seen as ready was made so by totals that are present.
    ///
    /// From then on the batch lock may be released. A stripe stays locked until it is copied, so
    /// the copy has its state of that moment. A write to it comes later, whatever is written
    /// meanwhile to stripes that were copied before.
    ///
    /// No thread waits for a stripe while it holds another, except under the batch lock and in the
    /// stripes' order, as here. So this cannot deadlock.
    fn moment(&self) -> Snapshot {
        let spec = self.schema.counters().iter();
        let mut counters: Vec<CounterTotals> = spec.map(|spec| self.room_for(spec)).collect();
        let cutoffs = self.batch_lock.write();
        let locked = self.lock_all();
        for ((counter, cutoff), ready) in counters.iter_mut().zip(cutoffs.iter()).zip(&self.ready) {
            (counter.cutoff, counter.ready) = (cutoff.clone(), ready.load(Ordering::Acquire));
        }
        let offsets = self.offsets.all();
        drop(cutoffs);
        // Each lock is released once its stripe is copied.
        for stripe in locked {
            for (counter, table) in counters.iter_mut().zip(stripe.tables.iter()) {
                table.for_each(|key, total| counter.totals.push((key.clone(), total)));
            }
        }
        Snapshot { format: Format, counters, offsets }
    }

    /// Returns a counter with room for its totals, and for some more that may come before the copy.
    ///
    /// The room is written to in advance: a page of memory that is touched for the first time costs
    /// several times what it costs to copy totals into it, and writers wait during the copy.
    fn room_for(&self, spec: &CounterSpec) -> CounterTotals {
        let len = self.len(spec.id()).unwrap_or_default();
        let mut totals = vec![(KeyBuf::new(), 0); len + len / 16];
        totals.clear();
        CounterTotals { totals, ..CounterTotals::of(spec) }
    }

    /// Creates a store with the totals and offsets of a snapshot.
    ///
    /// A counter that the snapshot lacks, because it is new or its version was raised, starts empty
    /// and is not [ready](Self::is_ready): backfill its past. The same holds for a rollup of such a
    /// counter, because what it sums is still empty. A counter may have become
    /// [`prunable`](crate::backend::CounterSpec::prunable), or stopped being so if it was never
    /// pruned. The order of the schema does not matter.
    ///
    /// Before you deliver events, call [`replay_from`](Self::replay_from) for each of the
    /// [`offsets`](Self::offsets): a log that was truncated, for example by a power failure, does
    /// not match a snapshot that has events which the log lost.
    ///
    /// An audit of this store refuses a [`Token`](crate::reconcile::Token) of the store that the
    /// snapshot was taken of: the snapshot lacks what was repaired after it.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if a counter has a different key or storage clause in the schema, or is
    /// not in it ([`Snapshot::drop_counter`] drops its totals); for an invalid key, cutoff or
    /// offset; and for a key or counter that comes twice.
    pub fn restore(schema: &Schema, snapshot: &Snapshot) -> Result<Self> {
        snapshot.check(schema)?;
        let mut store = Self::new(schema);
        for (position, spec) in schema.counters().iter().enumerate() {
            let made_of = schema.with_bases(&[spec.id()])?;
            let is_whole = made_of.iter().all(|id| snapshot.find(id).is_some());
            let kept = snapshot.find(&spec.id()).filter(|_| is_whole);
            store.set_ready(position, kept.is_some_and(|counter| counter.ready));
            let cutoff = if let Some(counter) = kept {
                store.put(position, spec, counter)?;
                counter.cutoff.clone()
            } else {
                // Its base may already be pruned, and comes before it in the schema.
                let base = spec.rollup().filter(|_| spec.is_prunable()).map(Rollup::base);
                base.and_then(|base| store.cutoff(schema.position(&base).ok()?))
            };
            if let Some(known) = store.batch_lock.get_mut().get_mut(position) {
                *known = cutoff;
            }
        }
        for (stream, last) in &snapshot.offsets {
            let stream_range = StreamRange::new(stream, *last, *last)
                .map_err(|error| failed(error.to_string()))?;
            store.offsets.turn(stream_range.stream()).set(stream_range.last());
        }
        Ok(store)
    }

    /// Puts one counter's totals into an empty store unchanged, without updating rollups.
    fn put(&mut self, position: usize, spec: &CounterSpec, counter: &CounterTotals) -> Result<()> {
        let id = spec.id();
        let refused = |key: &KeyBuf, why: &str| {
            Err(failed(format!(
                "counter {}, key {}: {why}",
                counter.name,
                shortened(&id.show(key))
            )))
        };
        for (key, total) in &counter.totals {
            if let Err(cause) = id.parts().values(key) {
                return refused(key, &cause.to_string());
            }
            let hash = key.hash64();
            let locked = self.stripe(self.spread(position, key, hash)).map(Stripe::lock);
            let Some(mut locked) = locked else { continue };
            let Some(table) = locked.tables.get_mut(position) else { continue };
            if table.has(hash, key) {
                return refused(key, "it comes twice");
            }
            if table
                .add(hash, key, *total, u64::MAX)
                .is_none_or(|total| total.unsigned_abs() > ROOMY)
            {
                self.wide.store(true, Ordering::Release);
            }
        }
        if let Some(cutoff) = &counter.cutoff {
            let parts = id.parts();
            let last = parts.as_slice().last().filter(|_| spec.is_prunable());
            if last.is_none_or(|last| KeyParts::one(*last).values(cutoff).is_err()) {
                let reason = format!(
                    "counter {} was pruned at 0x{cutoff:?}, which is not a time of this counter",
                    counter.name
                );
                return Err(failed(reason));
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// Returns the counters that the schema no longer has, by their full names.
    ///
    /// [`MemoryStore::restore`] refuses a snapshot with such counters, because their totals would
    /// be lost unnoticed.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, MemoryStore, Schema};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SHOW_LIKES: Counter<i64> = Counter::new("show.likes");
    /// const OLD: Schema = Schema::new(&[SHOW_VOTES.table(), SHOW_LIKES.table()]);
    /// const NEW: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// let mut snapshot = MemoryStore::new(&OLD).snapshot();
    /// assert!(MemoryStore::restore(&NEW, &snapshot).is_err());
    /// for lost in snapshot.orphaned(&NEW) {
    ///     println!("{lost} is given up");
    ///     snapshot.drop_counter(&lost)?;
    /// }
    /// assert!(MemoryStore::restore(&NEW, &snapshot).is_ok());
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[must_use]
    pub fn orphaned(&self, schema: &Schema) -> Vec<String> {
        let lost = self.counters.iter().filter(|counter| counter.spec(schema).is_none());
        lost.map(|counter| counter.name.clone()).collect()
    }

    /// Drops the totals of a counter, named as [`orphaned`](Self::orphaned) names it. If the schema
    /// has the counter, it and its rollups then start empty and not ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] if the snapshot does not have it.
    pub fn drop_counter(&mut self, counter: &str) -> Result<()> {
        let before = self.counters.len();
        self.counters.retain(|known| known.name != counter);
        if self.counters.len() == before {
            return Err(Error::UnknownCounter { counter: counter.to_owned(), record: None });
        }
        Ok(())
    }

    fn find(&self, id: &CounterId) -> Option<&CounterTotals> {
        self.counters.iter().find(|counter| counter.is(id))
    }

    /// Refuses counters that come twice, are not in the schema, or are declared differently there.
    fn check(&self, schema: &Schema) -> Result<()> {
        let mut seen = BTreeSet::new();
        for counter in &self.counters {
            let refused = |reason: String| {
                let name = shortened(&counter.name);
                Err(failed(format!(
                    "counter {name} {reason}; to give up its totals, call `Snapshot::drop_counter`"
                )))
            };
            let Some(spec) = counter.spec(schema) else {
                return refused("is not in the schema".to_owned());
            };
            if !seen.insert(&counter.name) {
                return Err(failed(format!("counter {} comes twice", counter.name)));
            }
            let here = CounterTotals::of(spec);
            if counter.key != here.key {
                return refused(format!(
                    "has the key {}, and {} in the schema",
                    shortened(&counter.key),
                    here.key
                ));
            }
            if without_prunable(&counter.storage_clause) != without_prunable(&here.storage_clause) {
                let there = shortened(&counter.storage_clause);
                return refused(format!(
                    "is stored as {there:?}, and as {:?} in the schema",
                    here.storage_clause
                ));
            }
        }
        Ok(())
    }
}

impl CounterTotals {
    /// Returns a counter as declared, without totals.
    fn of(spec: &CounterSpec) -> Self {
        let id = spec.id();
        Self {
            name: id.full_name().into_owned(),
            key: format!("({})", id.parts()),
            storage_clause: spec.storage_clause(),
            ready: false,
            cutoff: None,
            totals: Totals::new(),
        }
    }

    fn is(&self, id: &CounterId) -> bool {
        self.name == id.full_name()
    }

    fn spec(&self, schema: &Schema) -> Option<&'static CounterSpec> {
        schema.counters().iter().find(|spec| self.is(&spec.id()))
    }
}

fn failed(reason: String) -> Error {
    Error::Snapshot { reason }
}
