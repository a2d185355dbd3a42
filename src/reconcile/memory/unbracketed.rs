//! Verifying beside hooks without brackets: a difference counts when it is seen twice, further apart than a hook can take.

use std::time::Duration;

use super::super::audit::{Ask, Drift, Measured};
use super::super::drive::Control;
use super::Sources;
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::store::MemoryStore;
use crate::store::memory::Lone;

pub(super) struct Unbracketed<'a> {
    longest_delay: Duration,
    control: Box<dyn Control + 'a>,
}

/// A wait that is cut short is gone on with this often.
const WAITS_MOST: u32 = 1000;

impl<'a> Unbracketed<'a> {
    pub(super) fn new(longest_delay: Duration, control: Box<dyn Control + 'a>) -> Self {
        Self { longest_delay, control }
    }

    /// Looks once more at what differed; keys that differ otherwise by now are unsettled.
    pub(super) fn look_again(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        ask: &Ask,
        mut once: Measured,
    ) -> Result<Measured> {
        if once.drifts.is_empty() {
            return Ok(once);
        }
        if !self.wait() {
            once.unsettled = once.drifts.drain(..).map(|drift| drift.key).collect();
            return Ok(once);
        }
        let position = store.layout().position(&ask.counter)?;
        for first in std::mem::take(&mut once.drifts) {
            let of = Lone { counter: ask.counter, position, key: &first.key };
            let again = sources.recount_one(store, &of)?;
            let stored = store.stored(&of);
            let drift = |stored: i64, truth: i64| i128::from(stored) - i128::from(truth);
            if drift(stored, again.total) == drift(first.stored, first.truth) {
                once.drifts.push(Drift { key: again.key, stored, truth: again.total, rows: again.rows });
            } else if stored != again.total {
                once.unsettled.push(first.key);
            }
        }
        Ok(once)
    }

    /// Lets every hook that was under way come to its end; false where the waits end too early.
    fn wait(&mut self) -> bool {
        let until = self.control.now() + self.longest_delay;
        for _ in 0..WAITS_MOST {
            let now = self.control.now();
            if now > until {
                return true;
            }
            self.control.wait(until.saturating_sub(now) + Duration::from_millis(1), "hooks under way");
        }
        false
    }
}

pub(super) fn refuse_mending(counter: &Def) -> Error {
    let reason = format!(
        "counter {}: hooks run without brackets, so it is verified only; see MemoryAudit::live",
        counter.name()
    );
    Error::setting("audit", reason)
}
