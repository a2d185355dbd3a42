//! Pending writes: a writer marks when its rows may become visible and when their deltas are
//! applied, so that totals can be audited meanwhile.

use super::stripe::{Stripe, StripeState};
use super::{MemoryStore, Positions, SMALL};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::locks::Ordering;
use crate::observe;
use crate::store::Applied;
use crate::stream_range::StreamRange;

/// A write in progress: [`MemoryStore::begin`] makes it before its rows can become visible, and you
/// end it after they are.
///
/// - [`commit`](Self::commit), once the rows are committed: applies the batch, which is empty
///   afterwards. In every other case the batch is unchanged.
/// - [`abort`](Self::abort), once it is certain that the rows will never be committed.
/// - Drop it if the outcome is unknown: nothing is applied, and audits ignore the batch's keys
///   until their grace period has passed. If you find out earlier what became of the rows, begin a
///   new pending write.
///
/// Begin it just before the rows' transaction commits, or before that takes its first lock. Never
/// begin it while another pending write of the same task is open: an audit may be waiting for that
/// one. You can hold it across an `.await`, move it between threads, and drop it with a future.
///
/// It costs one atomic addition for each stripe that the batch's keys are in, and memory for these
/// if there are several.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, MemoryStore};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// # fn insert_vote_and_commit() -> Result<(), &'static str> { Ok(()) }
/// let store = MemoryStore::new(&SCHEMA);
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 1);
///
/// let pending_write = store.begin(&mut batch)?;
/// match insert_vote_and_commit() {
///     Ok(()) => drop(pending_write.commit()?),
///     Err("rolled back") => pending_write.abort(),
///     Err(_) => drop(pending_write), // the outcome is not known
/// }
/// assert_eq!(store.total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
#[must_use = "a pending write that is dropped is a write whose outcome is not known"]
#[derive(Debug)]
pub struct PendingWrite<'a> {
    store: &'a MemoryStore,
    batch: &'a mut Batch,
    over: Over,
    open: bool,
}

/// The stripes that a pending write covers.
#[derive(Debug)]
enum Over {
    /// The stripe of the only delta, and its counter's position.
    One {
        position: usize,
        hash: u64,
    },
    Many(Box<[usize]>),
}

impl MemoryStore {
    /// Begins a pending write over a batch's keys. Call it before the rows become visible.
    ///
    /// It waits while an audit has shut the barrier of one of these keys: as long as the recount of
    /// one key takes, plus at most the time that the audit may wait for open pending writes.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`](crate::Error::UnknownCounter),
    /// [`Error::DefinitionConflict`](crate::Error::DefinitionConflict) and
    /// [`Error::Rollup`](crate::Error::Rollup) as [`apply`](Self::apply), before anything is
    /// written. [`Error::InvalidUse`](crate::Error::InvalidUse) if it would wait for itself: if a
    /// source, a runtime or a clock of the audit that has shut the barrier calls it on the audit's
    /// thread.
    #[inline]
    pub fn begin<'a>(&'a self, batch: &'a mut Batch) -> Result<PendingWrite<'a>> {
        let over = self.over(batch)?;
        while let Err(shut) = self.enter(batch, &over) {
            if !shut.wait() {
                return Err(reentered());
            }
        }
        Ok(PendingWrite { store: self, batch, over, open: true })
    }

    /// Begins a pending write like [`begin`](Self::begin), but returns `None` instead of waiting
    /// while a barrier is shut. An asynchronous task sleeps for a millisecond and tries again.
    ///
    /// # Errors
    ///
    /// As [`begin`](Self::begin).
    #[inline]
    pub fn try_begin<'a>(&'a self, batch: &'a mut Batch) -> Result<Option<PendingWrite<'a>>> {
        let over = self.over(batch)?;
        let entered = self.enter(batch, &over).is_ok();
        Ok(entered.then(|| PendingWrite { store: self, batch, over, open: true }))
    }

    #[inline]
    fn over(&self, batch: &Batch) -> Result<Over> {
        if let Some((counter, entry, hash)) = batch.single(SMALL) {
            let position = self.schema.position_in(counter)?;
            if self.plans.get(position).is_some_and(|plan| !plan.rollup) {
                return Ok(Over::One { position, hash: self.spread(position, &entry.key, hash) });
            }
        }
        self.over_many(batch)
    }

    #[inline(never)]
    fn over_many(&self, batch: &Batch) -> Result<Over> {
        self.schema.check_batch(batch)?;
        let positions = Positions::of(&self.schema, batch)?;
        let mut stripes: Vec<usize> =
            self.spread_all(&positions, batch).iter().map(|hash| self.stripe_of(*hash)).collect();
        stripes.sort_unstable();
        stripes.dedup();
        Ok(Over::Many(stripes.into()))
    }

    /// Begins on every stripe; or on none, and returns the stripe whose barrier is shut: a writer
    /// that waits must not be waited for.
    #[inline]
    fn enter(&self, batch: &Batch, over: &Over) -> Result<(), &Stripe> {
        match over {
            Over::One { hash, .. } => {
                let Some(stripe) = self.stripe(*hash) else { return Ok(()) };
                if !stripe.begin() {
                    return Err(stripe);
                }
            }
            Over::Many(stripes) => {
                let stripes = || stripes.iter().filter_map(|at| self.stripes.get(*at));
                if let Some((done, shut)) =
                    stripes().enumerate().find(|(_, stripe)| !stripe.begin())
                {
                    stripes().take(done).for_each(Stripe::back_out);
                    return Err(shut);
                }
            }
        }
        // Check this after the stripes have counted the pending write: an audit that begins to read
        // a page announces it first, and then checks for open ones.
        if self.noting.load(Ordering::SeqCst) > 0 {
            // Load the number under the stripe's lock: no noting with notes in it is newer.
            self.each_key(batch, |position, key, state| {
                state.noted.add(position, key, self.noting.load(Ordering::SeqCst));
            });
        }
        Ok(())
    }

    /// Applies and empties the batch of a pending write, and ends the pending write, if that
    /// succeeds. Nothing of the application runs in between.
    #[inline]
    fn commit(&self, batch: &mut Batch, over: &Over) -> Result<Applied> {
        if let (Over::One { position, hash }, Some((_, entry, of_key))) =
            (over, batch.single(SMALL))
            && let Some(totals) = self.apply_one((*position, *hash), entry, of_key, 1)
        {
            batch.spend();
            return Ok(Applied::new(totals, 0));
        }
        let applied = self.apply_many(batch, || ())?;
        self.end(over);
        batch.spend();
        Ok(applied)
    }

    fn end(&self, over: &Over) {
        match over {
            Over::One { hash, .. } => {
                self.stripe(*hash).into_iter().for_each(|stripe| stripe.lock().ended += 1);
            }
            Over::Many(stripes) => {
                for stripe in stripes.iter().filter_map(|at| self.stripes.get(*at)) {
                    stripe.lock().ended += 1;
                }
            }
        }
    }

    /// Calls `each` with every key of a batch and the state that its stripe's lock protects.
    fn each_key(&self, batch: &Batch, mut each: impl FnMut(usize, &KeyBuf, &mut StripeState)) {
        // A pending write has only counters of the schema.
        let Ok(positions) = Positions::of(&self.schema, batch) else { return };
        let spread = self.spread_all(&positions, batch);
        for (entry, hash) in batch.entries().iter().zip(spread.iter()) {
            if let (Some(position), Some(stripe)) = (positions.at(entry), self.stripe(*hash)) {
                each(position, &entry.key, &mut stripe.lock());
            }
        }
    }

    /// Ends a pending write whose outcome is unknown: its keys become unresolved before it ends.
    #[cold]
    fn lose(&self, batch: &Batch, over: &Over) {
        let now = self.clock.now();
        self.each_key(batch, |position, key, state| state.unresolved.add(position, key, now));
        self.end(over);
    }
}

#[cold]
fn reentered() -> Error {
    let reason = "an audit that waits for the writers of these keys calls it on its own thread; write on another thread, and do not wait for that";
    Error::invalid_use("begin", reason)
}

impl PendingWrite<'_> {
    /// Applies the batch, whose rows are committed, and ends the pending write.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`](crate::Error::Overflow) as [`MemoryStore::apply`]. Then nothing is
    /// applied, and the pending write ends as if you had dropped it: the totals lack these rows
    /// until a repair.
    #[inline]
    pub fn commit(mut self) -> Result<Applied> {
        let began = observe::begin(observe::Backend::Memory, self.batch);
        let applied = self.store.commit(self.batch, &self.over)?;
        // Before the observer runs: if that panics, the pending write must not end a second time.
        self.open = false;
        applied.observe(observe::Backend::Memory, began, self.batch);
        Ok(applied)
    }

    /// Commits like [`commit`](Self::commit), but once only for the events that the batch stands
    /// for: if all of them were applied before, nothing is applied.
    ///
    /// The rows are committed by then. If you could write the rows of an event twice, check
    /// [`MemoryStore::offset`] before you commit them, and [`abort`](Self::abort) if the event was
    /// applied.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit) and [`Store::apply_idempotent`](crate::Store::apply_idempotent).
    pub fn commit_idempotent(mut self, stream_range: &StreamRange<'_>) -> Result<Applied> {
        let began = observe::begin(observe::Backend::Memory, self.batch);
        let applied = self.store.apply_range(self.batch, stream_range)?;
        self.open = false;
        self.store.end(&self.over);
        applied.observe(observe::Backend::Memory, began, self.batch);
        Ok(applied)
    }

    /// Ends the pending write of rows that were rolled back or never written.
    pub fn abort(mut self) {
        self.open = false;
        self.store.end(&self.over);
    }
}

impl Drop for PendingWrite<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.open {
            self.store.lose(self.batch, &self.over);
        }
    }
}
