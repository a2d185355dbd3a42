//! Compares and repairs exactly next to guarded writers: key by key, if a page's keys were written
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::super::audit::{Drift, PageDiff, PageRequest, RepairRequest, Repaired, merge};
use super::super::runtime::Runtime;
use super::{GracePeriod, Sources, WINDOWS, Window};
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::store::MemoryStore;
use crate::store::memory::{Before, CounterKey, Noting, Shut};

pub(super) struct Guarded<'a> {
    grace_period: GracePeriod,
    /// This audit's number, to notice hooks without pending writes.
    audit: u64,
    runtime: Box<dyn Runtime + 'a>,
    /// Exists as long as the window of totals that was fetched after it began.
    noting: Option<Noting<'a>>,
    /// Unresolved keys of the current counter that were compared before their pages.
    early: BTreeSet<KeyBuf>,
    /// Keys whose barrier was shut in vain, and until when they are skipped.
    left_alone: BTreeMap<(usize, KeyBuf), Duration>,
}

const MIN_WAIT: Duration = Duration::from_micros(100);
const MAX_WAIT: Duration = Duration::from_millis(2);
/// The most waits for one barrier, whatever the clock says.
const MAX_BARRIER_WAITS: u32 = 100_000;
/// Behind a shut barrier only a prune can interfere, and there are few of those.
const MAX_PRUNES: u32 = 8;
/// The most skipped keys that are remembered.
const MAX_LEFT_ALONE: usize = 10_000;

impl<'a> Guarded<'a> {
    pub(super) fn new(
        store: &MemoryStore,
        grace_period: GracePeriod,
        runtime: Box<dyn Runtime + 'a>,
    ) -> Self {
        let audit = store.count_audit();
        Self {
            grace_period,
            audit,
            runtime,
            noting: None,
            early: BTreeSet::new(),
            left_alone: BTreeMap::new(),
        }
    }

    pub(super) fn compare(
        &mut self,
        store: &'a MemoryStore,
        sources: &mut Sources<'_>,
        window: &mut Window,
        ask: &PageRequest,
    ) -> Result<PageDiff> {
        self.refuse_unguarded_hooks(store, &ask.counter)?;
        let position = store.schema().position(&ask.counter)?;
        if ask.after.is_none() {
            self.early.clear();
        }
        let mut diff = PageDiff::default();
        let mut early = BTreeSet::new();
        early.extend(store.due_unresolved(position, self.settled(store)));
        early.retain(|key| !self.early.contains(key));
        let mut compared =
            self.probe_all(store, sources, (&ask.counter, position), &early, &mut diff)?;
        let (page, touched) = self.read_page(store, sources, window, ask)?;
        let mut unresolved: BTreeSet<KeyBuf> = touched.into_iter().collect();
        unresolved.extend(page.drifts.into_iter().map(|drift| drift.key));
        unresolved.extend(store.unresolved(position, ask.after.as_ref(), page.next.as_ref()));
        unresolved.retain(|key| !self.early.contains(key) && !early.contains(key));
        let more =
            self.probe_all(store, sources, (&ask.counter, position), &unresolved, &mut diff)?;
        compared.extend(more);
        // Only now that everything has succeeded: after an error, the caller asks again, and has not
        // received what was found.
        self.early.append(&mut early);
        for (key, settled) in &compared {
            let of = CounterKey { counter: ask.counter, position, key };
            store.clear_unresolved(&of, *settled);
        }
        (diff.keys, diff.rows, diff.next) = (page.keys, page.rows, page.next);
        if diff.next.is_none() {
            self.noting = None;
        }
        Ok(diff)
    }

    pub(super) fn repair(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        ask: &RepairRequest,
    ) -> Result<Repaired> {
        let position = store.schema().position(&ask.counter)?;
        let mut repaired = Repaired::default();
        let mut found =
            self.settle_together(store, sources, (&ask.counter, position), &ask.keys, true)?;
        for key in &ask.keys {
            self.refuse_unguarded_hooks(store, &ask.counter)?;
            let of = CounterKey { counter: ask.counter, position, key };
            match found
                .remove(key)
                .map_or_else(|| self.settle(store, sources, &of, true), |found| Ok(Some(found)))?
            {
                Some(found) => repaired.corrected += u64::from(found.stored != found.expected),
                None => repaired.unsettled.push(key.clone()),
            }
        }
        Ok(repaired)
    }

    /// Returns the time such that what was dropped at it or before is resolved by now.
    fn settled(&self, store: &MemoryStore) -> Option<Duration> {
        store.now().checked_sub(self.grace_period.time)
    }

    /// Returns whether a key's pending write was dropped and the fate of its rows may still be
    /// unknown.
    fn is_unresolved(&self, store: &MemoryStore, of: &CounterKey<'_>) -> bool {
        store.is_unresolved(of, self.settled(store))
    }

    fn refuse_unguarded_hooks(&self, store: &MemoryStore, counter: &CounterId) -> Result<()> {
        if !store.ran_unguarded_since(self.audit) {
            return Ok(());
        }
        let reason = "a hook ran without a pending write after the audit was made; such totals can only be verified, with MemoryAudit::watching";
        Err(Error::invalid_use("audit", format!("counter {}: {reason}", counter.name())))
    }

    /// Compares a page of rows with totals that were read after all earlier pending writes had
    /// ended; also returns the keys touched since.
    fn read_page(
        &mut self,
        store: &'a MemoryStore,
        sources: &mut Sources<'_>,
        window: &mut Window,
        ask: &PageRequest,
    ) -> Result<(PageDiff, Vec<KeyBuf>)> {
        let position = store.schema().position(&ask.counter)?;
        let wanted = ask.keys.saturating_add(1);
        for more in [store.len(ask.counter)? / WINDOWS, 0] {
            if self.noting.is_none() || !window.has(ask, wanted) || more == 0 {
                self.begin_noting(store, &ask.counter)?;
                window.fetch(store, ask, wanted + more)?;
            }
            let from = ask.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let recounts = sources.page(store, &ask.counter, from, wanted)?;
            let page = merge(ask, recounts, window.totals.iter().take(wanted).cloned().collect())?;
            let touched = self.noting.as_ref().and_then(|noting| {
                let after = ask.after.as_ref();
                noting.touched(position, after, page.next.as_ref())
            });
            if let Some(touched) = touched {
                // Check this after the notes: a pending write that is not among them was dropped
                // before.
                if store.are_unresolved_lost(self.settled(store)) {
                    let reason =
                        "the outcome of too many writes is not known; wait for the grace period";
                    return Err(busy(&ask.counter, reason));
                }
                return Ok((page, touched));
            }
        }
        // Drop it, so that nobody notes keys in vain until the page is asked for again.
        self.noting = None;
        Err(busy(&ask.counter, "too many writes began while a page was read; make pages smaller"))
    }

    /// Makes pending writes note their keys from now on; those that began before have ended when
    /// this returns.
    fn begin_noting(&mut self, store: &'a MemoryStore, counter: &CounterId) -> Result<()> {
        // Drop the old noting first: notes stay while any noting exists, and the old notes are of
        // totals that are fetched again.
        self.noting = None;
        let noting = store.note_writes();
        for stripe in 0..store.stripe_count() {
            if !self.wait_for_quiet(store, stripe) && self.shut(store, stripe).is_none() {
                return Err(busy(
                    counter,
                    "a pending write stayed open for longer than the barrier time; end it, or raise the barrier time",
                ));
            }
        }
        self.noting = Some(noting);
        Ok(())
    }

    /// Compares keys one by one. Returns those that were compared, each with the time such that
    /// what was dropped at it or before was resolved by then.
    fn probe_all(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        (counter, position): (&CounterId, usize),
        keys: &BTreeSet<KeyBuf>,
        into: &mut PageDiff,
    ) -> Result<Vec<(KeyBuf, Option<Duration>)>> {
        let mut compared = Vec::new();
        let before = self.settled(store);
        let mut found = self.settle_together(store, sources, (counter, position), keys, false)?;
        for key in keys {
            let of = CounterKey { counter: *counter, position, key };
            let (settled, found) = match found.remove(key) {
                Some(found) => (before, Some(found)),
                None => (self.settled(store), self.settle(store, sources, &of, false)?),
            };
            match found {
                Some(found) => {
                    compared.push((key.clone(), settled));
                    into.drifts.extend((found.stored != found.expected).then_some(found));
                }
                None => into.unsettled.push(key.clone()),
            }
        }
        Ok(compared)
    }

    /// Compares keys by one recount of all of them, where each recount reads all rows, and repairs
    /// them if `repair`. Leaves those out that a writer is in the way of, for
    /// [`settle`](Self::settle): a key is compared here under the same conditions as there.
    fn settle_together<'k>(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        (counter, position): (&CounterId, usize),
        keys: impl IntoIterator<Item = &'k KeyBuf>,
        repair: bool,
    ) -> Result<BTreeMap<KeyBuf, Drift>> {
        let mut found = BTreeMap::new();
        if !sources.reads_all(counter) {
            return Ok(found);
        }
        self.refuse_unguarded_hooks(store, counter)?;
        let of = |key: &'k KeyBuf| CounterKey { counter: *counter, position, key };
        let mut quiet = Vec::new();
        for key in keys {
            let left_alone = self.left_alone.contains_key(&(position, key.clone()));
            let before = store.quiet(store.stripe_at(&of(key)));
            // Check this after `quiet`, as `settle` does.
            if let Some(before) =
                before.filter(|_| !left_alone && !self.is_unresolved(store, &of(key)))
            {
                quiet.push((key, before));
            }
        }
        if quiet.is_empty() {
            return Ok(found);
        }
        let cutoff = store.cutoff(position);
        let keys: Vec<&KeyBuf> = quiet.iter().map(|(key, _)| *key).collect();
        let recounts = sources.keys(store, counter, &keys)?;
        self.refuse_unguarded_hooks(store, counter)?;
        for ((key, before), recount) in quiet.into_iter().zip(recounts) {
            let stored =
                store.compare(&of(key), before, (recount.total, cutoff.as_ref()), repair)?;
            found.extend(stored.map(|stored| {
                let drift =
                    Drift { key: recount.key, stored, expected: recount.total, rows: recount.rows };
                (key.clone(), drift)
            }));
        }
        Ok(found)
    }

    /// Compares a key with its rows while no pending write is open over it, and repairs it if
    /// `repair`. Returns `None` if there was no such moment, or if a pending write over it was
    /// dropped less than the grace period ago.
    fn settle(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        of: &CounterKey<'_>,
        repair: bool,
    ) -> Result<Option<Drift>> {
        let (stripe, now) = (store.stripe_at(of), self.runtime.now());
        self.left_alone.retain(|_, until| *until > now);
        if self.left_alone.contains_key(&(of.position, of.key.clone()))
            || self.is_unresolved(store, of)
        {
            return Ok(None);
        }
        let mut wait = MIN_WAIT;
        for _ in 0..self.grace_period.tries {
            if let Some(before) = store.quiet(stripe) {
                // Check this after `quiet`: a pending write that was open until then may have been
                // dropped.
                if self.is_unresolved(store, of) {
                    return Ok(None);
                }
                if let Some(found) = attempt(store, sources, of, before, repair)? {
                    return Ok(Some(found));
                }
            }
            self.runtime.wait(wait, "a key's writers");
            wait = (wait * 2).min(MAX_WAIT);
        }
        if let Some(_shut) = self.shut(store, stripe) {
            if self.is_unresolved(store, of) {
                return Ok(None);
            }
            for _ in 0..=MAX_PRUNES {
                if let Some(found) = attempt(store, sources, of, Before::Shut, repair)? {
                    return Ok(Some(found));
                }
            }
        }
        if self.left_alone.len() < MAX_LEFT_ALONE {
            let until = self.runtime.now().saturating_add(self.grace_period.time);
            self.left_alone.insert((of.position, of.key.clone()), until);
        }
        Ok(None)
    }

    /// Returns whether there was a moment with no pending write open over a stripe.
    fn wait_for_quiet(&mut self, store: &MemoryStore, stripe: usize) -> bool {
        let mut wait = MIN_WAIT;
        for _ in 0..self.grace_period.tries {
            if store.quiet(stripe).is_some() {
                return true;
            }
            self.runtime.wait(wait, "a key's writers");
            wait = (wait * 2).min(MAX_WAIT);
        }
        store.quiet(stripe).is_some()
    }

    /// Shuts a stripe's barrier and waits for the open pending writes. Returns `None` if they do
    /// not end in time, or if another audit keeps the barrier shut.
    fn shut<'s>(&mut self, store: &'s MemoryStore, stripe: usize) -> Option<Shut<'s>> {
        let since = self.runtime.now();
        let mut shut = store.shut(stripe);
        for _ in 0..MAX_BARRIER_WAITS {
            if shut.is_some() && store.quiet(stripe).is_some() {
                return shut;
            }
            if self.runtime.now().saturating_sub(since) >= self.grace_period.barrier_time {
                break;
            }
            self.runtime.wait(MIN_WAIT, "a barrier");
            shut = shut.or_else(|| store.shut(stripe));
        }
        None
    }
}

/// Recounts a key's rows and compares; `None` if a writer or a prune interfered.
fn attempt(
    store: &MemoryStore,
    sources: &mut Sources<'_>,
    of: &CounterKey<'_>,
    before: Before,
    repair: bool,
) -> Result<Option<Drift>> {
    // The recount reads the cutoff itself, later: if it is a different one, it still differs when
    // the total is compared.
    let cutoff = store.cutoff(of.position);
    let recount = sources.key(store, &of.counter, of.key)?;
    let stored = store.compare(of, before, (recount.total, cutoff.as_ref()), repair)?;
    Ok(stored.map(|stored| Drift {
        key: recount.key,
        stored,
        expected: recount.total,
        rows: recount.rows,
    }))
}

fn busy(counter: &CounterId, reason: &'static str) -> Error {
    Error::Busy {
        operation: format!("measuring counter {}", counter.name()),
        reason,
        cause: "writers are in the way".into(),
    }
}
