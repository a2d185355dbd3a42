//! What audits need from a memory store while writers go on: the keys touched meanwhile, one key
//! probed and repaired, and a rollup with its base and membership in one snapshot.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use super::stripe::{Shut, StripeState};
use super::{Cutoffs, MemoryStore, Positions, ROOMY};
use crate::batch::Batch;
use crate::batch::steps;
use crate::counter::key_range::KeyRange;
use crate::counter::{CounterId, Rollup};
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::locks::Ordering;
use crate::rollup_update::{self, TotalsRequest};

/// While it exists, pending writes note their keys.
#[derive(Debug)]
pub(crate) struct Noting<'s> {
    store: &'s MemoryStore,
    number: u64,
}

/// The notings of a store. Several audits may have one each.
#[derive(Debug, Default)]
pub(super) struct Notings {
    /// How many ever began; also the number of the newest.
    begun: u64,
    /// How many exist.
    existing: u64,
}

/// The state of a key's stripe before the key's rows were recounted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Before {
    /// No pending write was open, and this many had begun.
    Quiet(u64),
    /// No pending write was open, and the barrier is shut.
    Shut,
}

/// A key of a counter.
#[derive(Debug)]
pub(crate) struct CounterKey<'k> {
    pub(crate) counter: CounterId,
    pub(crate) position: usize,
    pub(crate) key: &'k KeyBuf,
}

impl MemoryStore {
    /// Counts one more audit that relies on pending writes; returns its number, for
    /// [`ran_unguarded_since`](Self::ran_unguarded_since).
    pub(crate) fn count_audit(&self) -> u64 {
        self.audits.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns whether a hook ran without a pending write since this audit was counted.
    pub(crate) fn ran_unguarded_since(&self, audit: u64) -> bool {
        self.unguarded.load(Ordering::Relaxed) >= audit
    }

    /// Returns the time of the store's clock.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// From now on pending writes note their keys, until what this returns is dropped.
    pub(crate) fn note_writes(&self) -> Noting<'_> {
        let mut notings = self.notings.lock();
        if notings.existing == 0 {
            self.stripes.iter().for_each(|stripe| stripe.lock().noted.clear());
        }
        notings.begun += 1;
        notings.existing += 1;
        self.noting.store(notings.begun, Ordering::SeqCst);
        Noting { store: self, number: notings.begun }
    }

    /// Returns a key's total; its counter need not be ready.
    pub(crate) fn stored(&self, of: &CounterKey<'_>) -> i64 {
        self.get(of.position, of.key)
    }

    pub(crate) fn stripe_count(&self) -> usize {
        self.stripes.len()
    }

    /// Returns the stripe of a key.
    pub(crate) fn stripe_at(&self, of: &CounterKey<'_>) -> usize {
        self.stripe_of(self.spread(of.position, of.key, of.key.hash64()))
    }

    /// Returns the stripe's present state, if no pending write is open over it.
    pub(crate) fn quiet(&self, stripe: usize) -> Option<Before> {
        let stripe = self.stripes.get(stripe)?;
        stripe.quiet(&stripe.lock()).map(Before::Quiet)
    }

    /// Makes new pending writes over a stripe wait until the guard is dropped; `None` if another
    /// audit does so already.
    pub(crate) fn shut(&self, stripe: usize) -> Option<Shut<'_>> {
        self.stripes.get(stripe)?.shut()
    }

    /// Compares a key's total with `expected`, recounted since `before`, and if `repair` adds the
    /// difference; returns the total from before the repair.
    ///
    /// Returns `None` and does nothing if a pending write began since `before`, or if a prune moved
    /// the cutoff below which the recount left rows out.
    pub(crate) fn compare(
        &self,
        of: &CounterKey<'_>,
        before: Before,
        (expected, cutoff): (i64, Option<&KeyBuf>),
        repair: bool,
    ) -> Result<Option<i64>> {
        let hash = of.key.hash64();
        let Some(stripe) = self.stripe(self.spread(of.position, of.key, hash)) else {
            return Ok(None);
        };
        let unchanged = |state: &_| match before {
            Before::Quiet(begun) => stripe.quiet(state) == Some(begun),
            Before::Shut => true,
        };
        let plain = self.plans.get(of.position).is_some_and(|plan| plan.plain);
        if plain && expected.unsigned_abs() <= ROOMY {
            let mut state = stripe.lock();
            if !unchanged(&state) {
                return Ok(None);
            }
            let Some(table) = state.tables.get_mut(of.position) else { return Ok(None) };
            let stored = table.get(hash, of.key);
            if repair && stored != expected {
                for step in steps(i128::from(expected) - i128::from(stored)) {
                    table.add(hash, of.key, step, u64::MAX);
                }
            }
            return Ok(Some(stored));
        }
        // A total that feeds rollups changes only under the batch lock, and a batch in progress from
        // stripe to stripe relies on roomy totals until it ends. A single delta of a plain counter
        // takes its stripe's lock alone: so the total is read under the lock that shows that nothing
        // began. What is written after that lock is released comes on top of the difference.
        let cutoffs = self.batch_lock.write();
        if cutoffs.get(of.position).and_then(Option::as_ref) != cutoff {
            return Ok(None);
        }
        let state = stripe.lock();
        if !unchanged(&state) {
            return Ok(None);
        }
        let stored = state.tables.get(of.position).map_or(0, |table| table.get(hash, of.key));
        drop(state);
        if repair && stored != expected {
            let mut lacking = Batch::new();
            lacking.add_raw(
                of.counter,
                &mut of.key.clone(),
                i128::from(expected) - i128::from(stored),
            );
            self.correct(&cutoffs, lacking)?;
        }
        Ok(Some(stored))
    }

    /// Like [`apply`](Self::apply), for the differences that a repair adds: also to rollups, and
    /// outside `i64`. The batch lock is held exclusively.
    fn correct(&self, _alone: &Cutoffs, batch: Batch) -> Result<()> {
        let answer = |request: &TotalsRequest, each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>| {
            self.answer(request, each)
        };
        let total =
            |counter: CounterId, key: &KeyBuf| Ok(self.get(self.schema.position(&counter)?, key));
        let expanded = rollup_update::update_where_room(&self.schema, batch, answer, total)?;
        let positions = Positions::of(&self.schema, &expanded)?;
        self.moved.fetch_add(1, Ordering::Release);
        // The difference of one total may need two steps.
        self.apply_steps(&mut self.lock_all(), &positions, &expanded, true).map(drop)
    }

    /// Returns whether a key's pending write was dropped after the time `settled`.
    pub(crate) fn is_unresolved(&self, of: &CounterKey<'_>, settled: Option<Duration>) -> bool {
        let stripe = self.stripes.get(self.stripe_at(of));
        stripe.is_some_and(|stripe| stripe.lock().unresolved.is_fresh(of.position, of.key, settled))
    }

    /// Returns whether so many pending writes were dropped after `settled` that not all of their
    /// keys are known.
    pub(crate) fn are_unresolved_lost(&self, settled: Option<Duration>) -> bool {
        self.stripes.iter().any(|stripe| stripe.lock().unresolved.are_lost(settled))
    }

    /// Returns the keys of a counter whose pending writes were dropped, after `after` and up to
    /// `until`, in order.
    pub(crate) fn unresolved(
        &self,
        position: usize,
        after: Option<&KeyBuf>,
        until: Option<&KeyBuf>,
    ) -> Vec<KeyBuf> {
        let inside = |key: &&KeyBuf| Some(*key) > after && until.is_none_or(|until| *key <= until);
        self.sorted(|stripe| {
            stripe.unresolved.of(position).map(|(key, _)| key).filter(inside).cloned().collect()
        })
    }

    /// Returns the keys of a counter whose pending writes were dropped at `settled` or before, in
    /// order.
    pub(crate) fn due_unresolved(&self, position: usize, settled: Option<Duration>) -> Vec<KeyBuf> {
        let due = |(key, since): (&KeyBuf, Duration)| (Some(since) <= settled).then(|| key.clone());
        self.sorted(|stripe| stripe.unresolved.of(position).filter_map(due).collect())
    }

    fn sorted(&self, of: impl Fn(&StripeState) -> Vec<KeyBuf>) -> Vec<KeyBuf> {
        let mut keys: Vec<KeyBuf> =
            self.stripes.iter().flat_map(|stripe| of(&stripe.lock())).collect();
        keys.sort_unstable();
        keys
    }

    /// Forgets that a key's pending write was dropped, unless that was after `settled`.
    pub(crate) fn clear_unresolved(&self, of: &CounterKey<'_>, settled: Option<Duration>) {
        if let Some(stripe) = self.stripes.get(self.stripe_at(of)) {
            stripe.lock().unresolved.clear(of.position, of.key, settled);
        }
    }

    /// Copies a rollup's totals, and what they should be, at one moment.
    ///
    /// It takes memory for all keys of the rollup, its base and its membership. Writers of these
    /// wait during the copy.
    pub(crate) fn rollup_snapshot(
        &self,
        counter: &CounterId,
        rollup: &Rollup,
    ) -> Result<RollupSnapshot> {
        let copy = |id: &CounterId| {
            let mut totals = BTreeMap::new();
            self.visit(self.schema.position(id)?, &KeyRange::after(None), |key, total| {
                totals.insert(key.clone(), total);
                true
            });
            Ok::<_, Error>(totals)
        };
        let alone = self.batch_lock.write();
        let moved = self.moved.load(Ordering::Acquire);
        let (memberships, base, totals) =
            (copy(&rollup.membership())?, copy(&rollup.base())?, copy(counter)?);
        drop(alone);
        Ok(RollupSnapshot {
            counter: *counter,
            sums: sums(rollup, &memberships, &base)?,
            totals,
            moved,
        })
    }

    /// Adds the differences that a snapshot showed to some totals of a rollup; returns the number
    /// that differed. Returns `None` and does nothing if a repair or a prune came after the
    /// snapshot.
    pub(crate) fn repair_rollup(
        &self,
        snapshot: &mut RollupSnapshot,
        keys: &[KeyBuf],
    ) -> Result<Option<u64>> {
        let alone = self.batch_lock.write();
        if self.moved.load(Ordering::Acquire) != snapshot.moved {
            return Ok(None);
        }
        let mut lacking = Batch::new();
        for key in keys {
            let (expected, stored) =
                (snapshot.expected(key)?, snapshot.totals.get(key).copied().unwrap_or(0));
            lacking.add_raw(
                snapshot.counter,
                &mut key.clone(),
                i128::from(expected) - i128::from(stored),
            );
            snapshot.totals.insert(key.clone(), expected);
        }
        let corrected = lacking.len() as u64;
        self.correct(&alone, lacking)?;
        snapshot.moved = self.moved.load(Ordering::Acquire);
        Ok(Some(corrected))
    }
}

impl Noting<'_> {
    /// Returns the keys of a counter, in order, over which pending writes began since this noting
    /// did, after `after` and up to `until`. `None` if there were too many to note; begin a new
    /// noting then, which has room again.
    pub(crate) fn touched(
        &self,
        position: usize,
        after: Option<&KeyBuf>,
        until: Option<&KeyBuf>,
    ) -> Option<Vec<KeyBuf>> {
        let mut touched = Vec::new();
        for stripe in &self.store.stripes {
            let state = stripe.lock();
            if state.noted.lost >= self.number {
                drop(state);
                self.discard();
                return None;
            }
            let behind = state.noted.behind(position, after);
            touched
                .extend(behind.take_while(|key| until.is_none_or(|until| *key <= until)).cloned());
        }
        touched.sort_unstable();
        Some(touched)
    }

    /// Discards the notes of the stripes that had room: they are about as full. A newer noting that
    /// needs them begins anew too.
    fn discard(&self) {
        let notings = self.store.notings.lock();
        for stripe in &self.store.stripes {
            let mut state = stripe.lock();
            if state.noted.lost < self.number {
                state.noted.discard(notings.begun);
            }
        }
    }
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        let mut notings = self.store.notings.lock();
        notings.existing -= 1;
        if notings.existing == 0 {
            // Nothing reads the notes any more.
            self.store.noting.store(0, Ordering::SeqCst);
            self.store.stripes.iter().for_each(|stripe| stripe.lock().noted.clear());
        }
    }
}

/// A rollup's totals and what they should be, at one moment. Their difference stays the same while
/// hooks run and their deltas update the rollup.
#[derive(Debug)]
pub(crate) struct RollupSnapshot {
    counter: CounterId,
    sums: Sums,
    totals: BTreeMap<KeyBuf, i64>,
    moved: u64,
}

/// For each key, the sum over its pairs of membership and base total (`None` if it left 128 bits),
/// and the number of pairs.
type Sums = BTreeMap<KeyBuf, (Option<i128>, u64)>;

impl RollupSnapshot {
    pub(crate) fn is_of(&self, counter: &CounterId) -> bool {
        self.counter == *counter
    }

    /// Returns the first totals after a key.
    pub(crate) fn totals(&self, after: Option<&KeyBuf>, limit: usize) -> Vec<(KeyBuf, i64)> {
        let totals = self.totals.range::<KeyBuf, _>((behind(after), Bound::Unbounded));
        totals
            .filter(|(_, total)| **total != 0)
            .take(limit)
            .map(|(key, total)| (key.clone(), *total))
            .collect()
    }

    /// Returns what the first totals after a key should be, and the number of pairs in each sum.
    pub(crate) fn expected_all(
        &self,
        after: Option<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64, u64)>> {
        let sums = self.sums.range::<KeyBuf, _>((behind(after), Bound::Unbounded)).take(limit);
        sums.map(|(key, (_, pairs))| Ok((key.clone(), self.expected(key)?, *pairs))).collect()
    }

    fn expected(&self, key: &KeyBuf) -> Result<i64> {
        let Some((sum, _)) = self.sums.get(key) else { return Ok(0) };
        let sum = sum.and_then(|sum| i64::try_from(sum).ok());
        sum.ok_or_else(|| Error::overflow(&self.counter, key, "recount"))
    }
}

fn behind(after: Option<&KeyBuf>) -> Bound<&KeyBuf> {
    after.map_or(Bound::Unbounded, Bound::Excluded)
}

fn sums(
    rollup: &Rollup,
    memberships: &BTreeMap<KeyBuf, i64>,
    base: &BTreeMap<KeyBuf, i64>,
) -> Result<Sums> {
    let mut sums = Sums::new();
    for (key, weight) in memberships {
        let (child, parent) = rollup
            .membership()
            .split(key, rollup.child_parts())
            .map_err(|cause| Error::key(&rollup.membership(), key, cause))?;
        let range = KeyRange::under(child.clone());
        let of_child = base.range(child.clone()..).take_while(|(key, _)| range.contains(key));
        for (fine, total) in of_child {
            let mut key = parent.clone();
            key.push(fine.as_bytes().get(child.as_bytes().len()..).unwrap_or_default());
            let product = i128::from(*weight) * i128::from(*total);
            let sum = sums.entry(key).or_insert((Some(0), 0));
            *sum = (sum.0.and_then(|sum| sum.checked_add(product)), sum.1 + 1);
        }
    }
    Ok(sums)
}
