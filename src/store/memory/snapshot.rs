//! All totals of a memory store at one moment, for serde.

use serde::{Deserialize, Serialize};

use super::MemoryStore;
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::layout::Layout;

/// All totals of a [`MemoryStore`] at one moment; serde reads and writes it, with keys as hexadecimal strings.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Layout, MemoryStore, Snapshot};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// let store = MemoryStore::new(&LAYOUT);
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 3);
/// store.apply(&batch)?;
///
/// let json = serde_json::to_string(&store.snapshot())?;
/// let restored = MemoryStore::restore(&LAYOUT, &serde_json::from_str::<Snapshot>(&json)?)?;
/// assert_eq!(restored.total(SHOW_VOTES, 7)?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    format: u32,
    layout: u64,
    counters: Vec<CounterTotals>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CounterTotals {
    name: String,
    totals: Vec<(KeyBuf, i64)>,
    /// The encoded last part below which it was pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cut: Option<KeyBuf>,
}

const FORMAT: u32 = 1;

impl MemoryStore {
    /// All totals at one moment, with every writer held while they are copied; sorted, so that equal stores give equal snapshots.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let names = self.layout.counters().iter().map(|placed| placed.def().name().to_owned());
        let counters = names.zip(self.all_totals()).map(|(name, (mut totals, cut))| {
            totals.sort_unstable();
            CounterTotals { name, totals, cut }
        });
        Snapshot { format: FORMAT, layout: self.layout.fingerprint(), counters: counters.collect() }
    }

    /// A store with the totals of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] when the snapshot has another format or layout, a key that is none of its counter's, or one key or counter twice.
    pub fn restore(layout: &Layout, snapshot: &Snapshot) -> Result<Self> {
        let failed = |reason: String| Err(Error::Snapshot { reason });
        if snapshot.format != FORMAT {
            return failed(format!("its format is {}, not {FORMAT}", snapshot.format));
        }
        if snapshot.layout != layout.fingerprint() {
            return failed("it was taken with another layout".to_owned());
        }
        for counter in &snapshot.counters {
            layout.find(&counter.name)?;
        }
        for placed in layout.counters() {
            let name = placed.def().name();
            let times = snapshot.counters.iter().filter(|counter| counter.name == name).count();
            if times > 1 {
                return failed(format!("counter {name} comes twice"));
            }
            if times == 0 {
                return failed(format!("counter {name} is missing"));
            }
        }
        let mut store = Self::new(layout);
        let mut batch = Batch::new();
        for counter in &snapshot.counters {
            let def = layout.find(&counter.name)?;
            for (key, total) in &counter.totals {
                if let Err(cause) = def.parts().values(key) {
                    return failed(format!("counter {}, key {}: {cause}", def.name(), def.show(key)));
                }
                batch.add_raw(def, &mut key.clone(), i128::from(*total));
            }
            if batch.entries().len() != counter.totals.len() {
                return failed(format!("counter {} has a key twice", def.name()));
            }
            store.put(&def, &batch, counter.cut.clone())?;
            batch.clear();
        }
        Ok(store)
    }
}
