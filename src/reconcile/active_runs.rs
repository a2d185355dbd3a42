//! The runs that this process drives at the moment, so that a second one over the same counter can
//! say so.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::reconciler::Reconciler;
use super::report::Overlap;
use crate::counter::CounterId;

static RUNNING: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static NUMBERS: AtomicU64 = AtomicU64::new(0);

struct Entry {
    number: u64,
    /// The identity of the totals.
    totals: u64,
    counters: Vec<CounterId>,
}

/// A run that is being driven; it is listed from when its totals are known until this is dropped.
pub(super) struct Driven(Option<u64>);

impl Driven {
    pub(super) const fn new() -> Self {
        Self(None)
    }

    /// Lists the run, once; tells it of a run that is listed already and has one of its counters.
    pub(super) fn list(&mut self, run: &mut Reconciler) {
        if self.0.is_some() {
            return;
        }
        let Some((totals, counters)) = run.claims() else { return };
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut running = RUNNING.lock();
        let meets = |entry: &Entry| {
            entry.totals == totals && entry.counters.iter().any(|id| counters.contains(id))
        };
        let met = running.iter().any(meets);
        running.push(Entry { number, totals, counters });
        drop(running);
        self.0 = Some(number);
        if met {
            run.meet(Overlap::InProcess);
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            RUNNING.lock().retain(|entry| entry.number != number);
        }
    }
}
