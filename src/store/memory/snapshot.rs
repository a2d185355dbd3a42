//! All totals and marks of a memory store at one moment: taken while writers go on, and a store made of them again.

mod disk;
#[cfg(test)]
mod faults;
mod file;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{MemoryStore, ROOMY, Stripe, Totals};
use crate::counter::{Def, Placed, Rollup};
use crate::error::{Error, Result, brief};
use crate::key::{KeyBuf, KeyParts};
use crate::layout::Layout;
use crate::mark::Mark;
use crate::sync::Ordering;

/// All totals and marks of a [`MemoryStore`] at one moment.
///
/// [`save`](Self::save) and [`load`](Self::load) keep it in a file. serde reads and writes it too, with keys as hexadecimal strings where
/// the format is one for people.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Layout, Mark, MemoryStore, Snapshot};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// let store = MemoryStore::new(&LAYOUT);
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 3);
/// store.apply_once(&mut batch, &Mark::new("votes", 1, 3)?)?;
///
/// let json = serde_json::to_string(&store.snapshot())?;
/// let restored = MemoryStore::restore(&LAYOUT, &serde_json::from_str::<Snapshot>(&json)?)?;
/// assert_eq!((restored.total(SHOW_VOTES, 7)?, restored.mark("votes")), (3, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    format: Format,
    counters: Vec<CounterTotals>,
    /// The last event of each stream.
    marks: BTreeMap<String, u64>,
}

/// One counter, its declaration as text, and its totals in key order.
///
/// What format 1 did not have is read as nothing, so that its format is what a snapshot of then is refused for. No counter has no place, so
/// [`restore`](MemoryStore::restore) refuses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CounterTotals {
    /// The full name: another version is another counter.
    name: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    place: String,
    #[serde(default)]
    ready: bool,
    /// The encoded last part below which it was pruned.
    #[serde(default)]
    cut: Option<KeyBuf>,
    totals: Totals,
}

/// The form of what follows; another one is refused when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
struct Format;

impl Format {
    /// 1 had a hash of the whole layout instead of each counter's declaration, and no marks; it was never in a file.
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
        if number == Self::NUMBER { Ok(Self) } else { Err(format!("its format is {number}, not {}", Self::NUMBER)) }
    }
}

impl MemoryStore {
    /// All totals and marks at one moment. A writer waits while totals are copied, at most for all of them; sorting comes after. Equal stores
    /// give equal snapshots.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.moment();
        for counter in &mut snapshot.counters {
            counter.totals.sort_unstable();
        }
        snapshot
    }

    /// Everything at one moment, in no order. The moment is when the last of the stripes is locked.
    ///
    /// No batch is half done then: one that goes from stripe to stripe keeps its share of the gate, or holds it alone, until all of it is
    /// applied and its mark has moved, and the gate is held alone here; any other is one total, changed under its stripe's lock. Cuts change
    /// behind the gate too, so they and the marks are of that moment; and what is seen to be ready was made so by totals that are there.
    /// From then on the gate may be open: a stripe stays locked until it is copied, so what is copied is what it held at that moment, and
    /// who writes to it comes after, whatever was written meanwhile to stripes that were copied before.
    ///
    /// Nobody waits for a stripe while holding another, but behind the gate and in the stripes' order, as here: so all of this comes to an end.
    fn moment(&self) -> Snapshot {
        let placed = self.layout.counters().iter();
        let mut counters: Vec<CounterTotals> = placed.map(|placed| self.room_for(placed)).collect();
        let cuts = self.gate.write();
        let held = self.hold();
        for ((counter, cut), ready) in counters.iter_mut().zip(cuts.iter()).zip(&self.ready) {
            (counter.cut, counter.ready) = (cut.clone(), ready.load(Ordering::Acquire));
        }
        let marks = self.marks.all();
        drop(cuts);
        // Each lock goes when its stripe has been copied.
        for stripe in held {
            for (counter, table) in counters.iter_mut().zip(stripe.tables.iter()) {
                table.for_each(|key, total| counter.totals.push((key.clone(), total)));
            }
        }
        Snapshot { format: Format, counters, marks }
    }

    /// A counter with room for its totals, and for some that come until they are copied. The room is written to, because a page of memory
    /// that is touched for the first time costs several times what it costs to copy totals there, and later writers wait.
    fn room_for(&self, placed: &Placed) -> CounterTotals {
        let len = self.len(placed.def()).unwrap_or_default();
        let mut totals = vec![(KeyBuf::new(), 0); len + len / 16];
        totals.clear();
        CounterTotals { totals, ..CounterTotals::of(placed) }
    }

    /// A store with the totals and marks of a snapshot.
    ///
    /// A counter that the snapshot lacks, because it is new or its version was raised, comes up empty and is not [ready](Self::is_ready): its
    /// past is to be backfilled. So does a rollup of such a counter, because what it sums is nothing yet. A counter may have become
    /// [`prunable`](crate::Placed::prunable), or ceased to be where it was never pruned. The order of the layout does not matter.
    ///
    /// Ask [`replay_from`](Self::replay_from) for each of its [`marks`](Self::marks) before events are delivered: a log that was cut, by a power loss say, does not
    /// fit a snapshot that knows what it lost.
    ///
    /// A [`Token`](crate::reconcile::Token) of the store that the snapshot was taken of is refused by an audit of this one: what was mended after the
    /// snapshot is not in it.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] when a counter has another key or place in the layout, or is not in it
    /// ([`Snapshot::forget`] drops its totals); for a key or cut that is none of its counter's, a mark that is none, and a key or counter that
    /// comes twice.
    pub fn restore(layout: &Layout, snapshot: &Snapshot) -> Result<Self> {
        snapshot.check(layout)?;
        let mut store = Self::new(layout);
        for (position, placed) in layout.counters().iter().enumerate() {
            let made_of = layout.with_finer(&[placed.def()])?;
            let is_whole = made_of.iter().all(|def| snapshot.find(def).is_some());
            let kept = snapshot.find(&placed.def()).filter(|_| is_whole);
            store.set_ready(position, kept.is_some_and(|counter| counter.ready));
            let cut = if let Some(counter) = kept {
                store.put(position, placed, counter)?;
                counter.cut.clone()
            } else {
                // What it sums may be pruned already, and stands before it.
                let finer = placed.rollup().filter(|_| placed.is_prunable()).map(Rollup::finer);
                finer.and_then(|finer| store.cut(layout.position(&finer).ok()?))
            };
            if let Some(known) = store.gate.get_mut().get_mut(position) {
                *known = cut;
            }
        }
        for (stream, last) in &snapshot.marks {
            let mark = Mark::new(stream, *last, *last).map_err(|error| failed(error.to_string()))?;
            store.marks.turn(mark.stream()).set(mark.last());
        }
        Ok(store)
    }

    /// Puts one counter's totals into an empty store as they are: nothing climbs.
    fn put(&mut self, position: usize, placed: &Placed, counter: &CounterTotals) -> Result<()> {
        let def = placed.def();
        let refused = |key: &KeyBuf, why: &str| {
            Err(failed(format!("counter {}, key {}: {why}", counter.name, brief(&def.show(key)))))
        };
        for (key, total) in &counter.totals {
            if let Err(cause) = def.parts().values(key) {
                return refused(key, &cause.to_string());
            }
            let hash = key.hash64();
            let held = self.stripe(self.spread(position, key, hash)).map(Stripe::lock);
            let Some(mut held) = held else { continue };
            let Some(table) = held.tables.get_mut(position) else { continue };
            if table.has(hash, key) {
                return refused(key, "it comes twice");
            }
            if table.add(hash, key, *total, u64::MAX).is_none_or(|total| total.unsigned_abs() > ROOMY) {
                self.wide.store(true, Ordering::Release);
            }
        }
        if let Some(cut) = &counter.cut {
            let parts = def.parts();
            let last = parts.as_slice().last().filter(|_| placed.is_prunable());
            if last.is_none_or(|last| KeyParts::one(*last).values(cut).is_err()) {
                let reason = format!("counter {} was pruned at 0x{cut:?}, and cannot be so here", counter.name);
                return Err(failed(reason));
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// The counters that the layout does not have any more, by their full names: a snapshot with them is not
    /// restored, because their totals would be lost unnoticed.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, Layout, MemoryStore};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SHOW_LIKES: Counter<i64> = Counter::new("show.likes");
    /// const OLD: Layout = Layout::new(&[SHOW_VOTES.table(), SHOW_LIKES.table()]);
    /// const NEW: Layout = Layout::new(&[SHOW_VOTES.table()]);
    ///
    /// let mut snapshot = MemoryStore::new(&OLD).snapshot();
    /// assert!(MemoryStore::restore(&NEW, &snapshot).is_err());
    /// for lost in snapshot.lost(&NEW) {
    ///     println!("{lost} is given up");
    ///     snapshot.forget(&lost)?;
    /// }
    /// assert!(MemoryStore::restore(&NEW, &snapshot).is_ok());
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[must_use]
    pub fn lost(&self, layout: &Layout) -> Vec<String> {
        let lost = self.counters.iter().filter(|counter| counter.placed(layout).is_none());
        lost.map(|counter| counter.name.clone()).collect()
    }

    /// Drops the totals of a counter, named as [`lost`](Self::lost) does. One that the layout has comes up empty then, and is not ready;
    /// and so do its rollups.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when the snapshot does not have it.
    pub fn forget(&mut self, counter: &str) -> Result<()> {
        let before = self.counters.len();
        self.counters.retain(|known| known.name != counter);
        if self.counters.len() == before {
            return Err(Error::UnknownCounter { counter: counter.to_owned(), record: None });
        }
        Ok(())
    }

    fn find(&self, def: &Def) -> Option<&CounterTotals> {
        self.counters.iter().find(|counter| counter.is(def))
    }

    /// Refuses counters that come twice, that the layout lost, or declares otherwise.
    fn check(&self, layout: &Layout) -> Result<()> {
        let mut seen = BTreeSet::new();
        for counter in &self.counters {
            let refused = |reason: String| {
                let name = brief(&counter.name);
                Err(failed(format!("counter {name} {reason}; `Snapshot::forget` gives its totals up")))
            };
            let Some(placed) = counter.placed(layout) else {
                return refused("is not in the layout".to_owned());
            };
            if !seen.insert(&counter.name) {
                return Err(failed(format!("counter {} comes twice", counter.name)));
            }
            let here = CounterTotals::of(placed);
            if counter.key != here.key {
                return refused(format!("has the key {}, and {} in the layout", brief(&counter.key), here.key));
            }
            if unpruned(&counter.place) != unpruned(&here.place) {
                let there = brief(&counter.place);
                return refused(format!("is placed as {there:?}, and as {:?} in the layout", here.place));
            }
        }
        Ok(())
    }
}

impl CounterTotals {
    /// A counter as it is declared, with nothing in it.
    fn of(placed: &Placed) -> Self {
        let def = placed.def();
        Self {
            name: def.full_name().into_owned(),
            key: format!("({})", def.parts()),
            place: placed.place(),
            ready: false,
            cut: None,
            totals: Totals::new(),
        }
    }

    fn is(&self, def: &Def) -> bool {
        self.name == def.full_name()
    }

    fn placed(&self, layout: &Layout) -> Option<&'static Placed> {
        layout.counters().iter().find(|placed| self.is(&placed.def()))
    }
}

/// A place without whether it may be pruned: that may change until it is.
fn unpruned(place: &str) -> &str {
    place.strip_suffix(", prunable").unwrap_or(place)
}

fn failed(reason: String) -> Error {
    Error::Snapshot { reason }
}
