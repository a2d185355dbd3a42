//! A stripe: the totals of a share of the keys behind one lock, and how many pending writes began
//! and ended over them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::table::Table;
use crate::key::KeyBuf;
use crate::locks::{AtomicU64, Mutex, MutexGuard, Ordering, ThreadId, current};

/// One table for each counter, in the schema's order.
pub(super) type Tables = Box<[Table]>;

/// Aligned to its own cache lines, so that neighbours do not slow each other.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Stripe {
    /// The number of pending writes that began, less those that backed out; plus [`SHUT`] while the
    /// barrier is shut.
    begun: AtomicU64,
    state: Mutex<StripeState>,
    /// Held while the barrier is shut, by the audit that shut it; writers that find it shut wait
    /// for it.
    barrier: Mutex<()>,
    /// The thread that shut the barrier: it must not wait for itself.
    keeper: Mutex<Option<ThreadId>>,
}

/// The state that a stripe's lock protects.
#[derive(Debug)]
pub(super) struct StripeState {
    pub(super) tables: Tables,
    /// The number of pending writes that ended.
    pub(super) ended: u64,
    pub(super) noted: Noted,
    pub(super) unresolved: UnresolvedKeys,
}

/// The bit of `begun` that marks the barrier as shut.
const SHUT: u64 = 1 << 63;
/// Keys that a stripe notes while pages are read. If there are more, the pages are read again.
const MAX_NOTED: usize = 16_384;
/// Unresolved keys that a stripe remembers. If there are more, all of its keys are unresolved for a
/// while.
const MAX_UNRESOLVED: usize = 4096;

impl Stripe {
    pub(super) fn new(tables: Tables) -> Self {
        let state = StripeState {
            tables,
            ended: 0,
            noted: Noted::default(),
            unresolved: UnresolvedKeys::default(),
        };
        Self {
            begun: AtomicU64::new(0),
            state: Mutex::new(state),
            barrier: Mutex::new(()),
            keeper: Mutex::new(None),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, StripeState> {
        self.state.lock()
    }

    /// Begins a pending write. Returns `false` and begins nothing if the barrier is shut.
    ///
    /// The addition comes before the check, in one order that all threads see. So if an audit shuts
    /// the barrier and then sees no open pending write, every later `begin` sees the barrier shut.
    #[inline]
    pub(super) fn begin(&self) -> bool {
        let begun = self.begun.fetch_add(1, Ordering::SeqCst);
        if begun & SHUT != 0 {
            self.back_out();
        }
        begun & SHUT == 0
    }

    /// Undoes the begin of a pending write that has done nothing yet.
    pub(super) fn back_out(&self) {
        self.begun.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits while the barrier is shut: for the recount of one key, and a bounded time before that.
    /// Returns `false` without waiting if this thread shut it.
    #[cold]
    pub(super) fn wait(&self) -> bool {
        if *self.keeper.lock() == Some(current().id()) {
            return false;
        }
        drop(self.barrier.lock());
        true
    }

    /// Returns how many pending writes began, if none is open.
    pub(super) fn quiet(&self, state: &StripeState) -> Option<u64> {
        let begun = self.begun.load(Ordering::SeqCst) & !SHUT;
        (begun == state.ended).then_some(begun)
    }

    /// Shuts the barrier until the guard is dropped; `None` if another has shut it.
    pub(super) fn shut(&self) -> Option<Shut<'_>> {
        let turn = self.barrier.try_lock()?;
        *self.keeper.lock() = Some(current().id());
        self.begun.fetch_or(SHUT, Ordering::SeqCst);
        Some(Shut { stripe: self, _turn: turn })
    }
}

/// A shut barrier.
pub(crate) struct Shut<'s> {
    stripe: &'s Stripe,
    /// Released after the bit is cleared.
    _turn: MutexGuard<'s, ()>,
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.stripe.begun.fetch_and(!SHUT, Ordering::SeqCst);
        *self.stripe.keeper.lock() = None;
    }
}

/// Keys over which pending writes began while pages were read, by counter.
#[derive(Debug, Default)]
pub(super) struct Noted {
    keys: BTreeSet<(usize, KeyBuf)>,
    /// The newest noting that lacks keys, because there was no room; all older ones lack them too.
    /// 0 if no noting lacks any.
    pub(super) lost: u64,
}

impl Noted {
    /// Notes a key. If there is no room, all keys are discarded: every noting up to the `newest`
    /// must begin anew, so that nobody needs them.
    pub(super) fn add(&mut self, position: usize, key: &KeyBuf, newest: u64) {
        self.keys.insert((position, key.clone()));
        if self.keys.len() > MAX_NOTED {
            self.discard(newest);
        }
    }

    /// Discards the keys, which every noting up to the `newest` then lacks.
    pub(super) fn discard(&mut self, newest: u64) {
        self.keys.clear();
        self.lost = self.lost.max(newest);
    }

    /// Returns the keys of one counter, from its first one on or after `after`.
    pub(super) fn behind<'n>(
        &'n self,
        position: usize,
        after: Option<&KeyBuf>,
    ) -> impl Iterator<Item = &'n KeyBuf> {
        let start = match after {
            Some(after) => Bound::Excluded((position, after.clone())),
            None => Bound::Included((position, KeyBuf::new())),
        };
        let keys =
            self.keys.range((start, Bound::Unbounded)).take_while(move |(at, _)| *at == position);
        keys.map(|(_, key)| key)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Keys of pending writes whose outcome is unknown, by counter, with the time of the last one.
#[derive(Debug, Default)]
pub(super) struct UnresolvedKeys {
    keys: BTreeMap<(usize, KeyBuf), Duration>,
    /// When there was last no room for a key.
    all: Option<Duration>,
}

impl UnresolvedKeys {
    pub(super) fn add(&mut self, position: usize, key: &KeyBuf, now: Duration) {
        let room = self.keys.len() < MAX_UNRESOLVED;
        match self.keys.get_mut(&(position, key.clone())) {
            Some(since) => *since = now,
            None if room => drop(self.keys.insert((position, key.clone()), now)),
            None => self.all = Some(now),
        }
    }

    /// Returns whether a key's pending write was dropped after the time `settled`.
    pub(super) fn is_fresh(
        &self,
        position: usize,
        key: &KeyBuf,
        settled: Option<Duration>,
    ) -> bool {
        let since = if self.keys.is_empty() {
            None
        } else {
            self.keys.get(&(position, key.clone())).copied()
        };
        since.is_some_and(|since| Some(since) > settled) || self.are_lost(settled)
    }

    /// Returns whether there was no room for a key that came after `settled`.
    pub(super) fn are_lost(&self, settled: Option<Duration>) -> bool {
        self.all.is_some_and(|since| Some(since) > settled)
    }

    /// Returns the keys of one counter, in order, each with the time when the last pending write
    /// over it was dropped.
    pub(super) fn of(&self, position: usize) -> impl Iterator<Item = (&KeyBuf, Duration)> {
        let of_counter = self
            .keys
            .range((position, KeyBuf::new())..)
            .take_while(move |((at, _), _)| *at == position);
        of_counter.map(|((_, key), since)| (key, *since))
    }

    /// Forgets a key unless it is fresh.
    pub(super) fn clear(&mut self, position: usize, key: &KeyBuf, settled: Option<Duration>) {
        let at = (position, key.clone());
        if self.keys.get(&at).is_some_and(|since| Some(*since) <= settled) {
            self.keys.remove(&at);
        }
        self.all = self.all.filter(|since| Some(*since) > settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_an_unresolved_key_found_no_room_every_key_is_one_until_that_has_settled() {
        let key = |n: usize| KeyBuf::of::<i64>(i64::try_from(n).unwrap_or(0));
        let at = |seconds| Some(Duration::from_secs(seconds));
        let mut unresolved = UnresolvedKeys::default();
        for n in 0..MAX_UNRESOLVED {
            unresolved.add(0, &key(n), Duration::from_secs(10));
        }
        assert!(!unresolved.are_lost(None) && !unresolved.is_fresh(0, &key(MAX_UNRESOLVED), None));
        unresolved.add(0, &key(MAX_UNRESOLVED), Duration::from_secs(20));
        for settled in [None, at(10), at(19)] {
            assert!(
                unresolved.are_lost(settled) && unresolved.is_fresh(1, &key(7), settled),
                "{settled:?}"
            );
        }
        for settled in [at(20), at(21)] {
            assert!(
                !unresolved.are_lost(settled) && !unresolved.is_fresh(0, &key(7), settled),
                "{settled:?}"
            );
        }
        // A known key needs no room.
        unresolved.add(0, &key(7), Duration::from_secs(30));
        assert!(unresolved.is_fresh(0, &key(7), at(20)) && !unresolved.are_lost(at(20)));
        unresolved.clear(0, &key(8), at(19));
        assert!(unresolved.are_lost(None));
        unresolved.clear(0, &key(7), at(20));
        assert!(!unresolved.are_lost(None) && unresolved.is_fresh(0, &key(7), at(20)));
        assert!(unresolved.is_fresh(0, &key(9), None) && !unresolved.is_fresh(0, &key(8), None));
    }
}
