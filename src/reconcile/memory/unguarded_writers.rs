//! Verifies next to hooks without pending writes: a difference counts if it is seen twice, further
//! apart than a hook can take.

use std::time::Duration;

use super::super::audit::{Drift, PageDiff, PageRequest};
use super::super::runtime::Runtime;
use super::Sources;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::store::MemoryStore;
use crate::store::memory::CounterKey;

pub(super) struct Unguarded<'a> {
    longest_delay: Duration,
    runtime: Box<dyn Runtime + 'a>,
}

/// How often a wait that was cut short is continued.
const MAX_WAITS: u32 = 1000;

impl<'a> Unguarded<'a> {
    pub(super) fn new(longest_delay: Duration, runtime: Box<dyn Runtime + 'a>) -> Self {
        Self { longest_delay, runtime }
    }

    /// Checks the differences once more; keys that differ by another amount now are unsettled.
    pub(super) fn look_again(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        ask: &PageRequest,
        mut once: PageDiff,
    ) -> Result<PageDiff> {
        if once.drifts.is_empty() {
            return Ok(once);
        }
        if !self.wait() {
            once.unsettled = once.drifts.drain(..).map(|drift| drift.key).collect();
            return Ok(once);
        }
        let position = store.schema().position(&ask.counter)?;
        let drifts = std::mem::take(&mut once.drifts);
        // One by one, so that a total is read soon after its rows; but all at once where each
        // recount reads all rows.
        let together = if sources.reads_all(&ask.counter) { drifts.len() } else { 1 };
        for firsts in drifts.chunks(together) {
            let keys: Vec<&KeyBuf> = firsts.iter().map(|first| &first.key).collect();
            for (first, again) in firsts.iter().zip(sources.keys(store, &ask.counter, &keys)?) {
                let stored =
                    store.stored(&CounterKey { counter: ask.counter, position, key: &first.key });
                let drift = |stored: i64, expected: i64| i128::from(stored) - i128::from(expected);
                if drift(stored, again.total) == drift(first.stored, first.expected) {
                    once.drifts.push(Drift {
                        key: again.key,
                        stored,
                        expected: again.total,
                        rows: again.rows,
                    });
                } else if stored != again.total {
                    once.unsettled.push(first.key.clone());
                }
            }
        }
        Ok(once)
    }

    /// Waits until every hook that was in progress has ended; returns `false` if the waits end too
    /// early.
    fn wait(&mut self) -> bool {
        let until = self.runtime.now().saturating_add(self.longest_delay);
        for _ in 0..MAX_WAITS {
            let now = self.runtime.now();
            if now > until {
                return true;
            }
            let left = until.saturating_sub(now).saturating_add(Duration::from_millis(1));
            self.runtime.wait(left, "hooks under way");
        }
        false
    }
}

pub(super) fn refuse_repairing(counter: &CounterId) -> Error {
    let reason = format!(
        "counter {}: hooks run without pending writes, so it can only be verified; see MemoryAudit::live",
        counter.name()
    );
    Error::invalid_use("audit", reason)
}
