//! The last event of each stream that a memory store applied.

use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;

use crate::key::KeyBuf;
use crate::locks::{Mutex, MutexGuard, RwLock};

/// Streams by name, divided into shares. A stream of which nothing was applied takes no space.
#[derive(Debug)]
pub(super) struct Offsets(Box<[Share; SHARES]>);

/// Some of the streams. Their appliers take turns: appliers of one stream must, and those of two
/// streams in one share rarely meet.
#[derive(Debug, Default)]
struct Share {
    turn: Mutex<()>,
    /// Written by the holder of the turn, under the store's batch lock. So an exclusive holder of
    /// the batch lock reads it in one snapshot with the totals. Names up to 22 bytes are stored in
    /// the map itself.
    lasts: RwLock<BTreeMap<KeyBuf, u64>>,
}

/// An applier's turn at a stream.
pub(super) struct Turn<'s> {
    lasts: &'s RwLock<BTreeMap<KeyBuf, u64>>,
    stream: KeyBuf,
    _guard: MutexGuard<'s, ()>,
}

const SHARES: usize = 256;

impl Default for Offsets {
    fn default() -> Self {
        Self(Box::new(std::array::from_fn(|_| Share::default())))
    }
}

impl Offsets {
    /// Waits for the turn at a stream.
    pub(super) fn turn(&self, stream: &str) -> Turn<'_> {
        let stream = KeyBuf::from_bytes(stream.as_bytes());
        let share = self.share(&stream);
        Turn { lasts: &share.lasts, stream, _guard: share.turn.lock() }
    }

    pub(super) fn last(&self, stream: &str) -> u64 {
        let stream = KeyBuf::from_bytes(stream.as_bytes());
        self.share(&stream).lasts.read().get(&stream).copied().unwrap_or(0)
    }

    /// Returns the streams after `after`, in order, at most `limit`.
    pub(super) fn page(&self, after: Option<&str>, limit: usize) -> Vec<(String, u64)> {
        let after = after.map(|after| KeyBuf::from_bytes(after.as_bytes()));
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut first: BinaryHeap<(KeyBuf, u64)> = BinaryHeap::new();
        for share in self.0.iter() {
            for (stream, last) in share.lasts.read().range::<KeyBuf, _>((start, Bound::Unbounded)) {
                if first.len() >= limit {
                    // All that follows in this share is larger too.
                    let Some(mut largest) = first.peek_mut().filter(|largest| *stream < largest.0)
                    else {
                        break;
                    };
                    *largest = (stream.clone(), *last);
                } else {
                    first.push((stream.clone(), *last));
                }
            }
        }
        first.into_sorted_vec().into_iter().map(|(stream, last)| (name(&stream), last)).collect()
    }

    /// Returns every stream of which something was applied. Call it under the exclusive batch lock
    /// of the store.
    pub(super) fn all(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        for share in self.0.iter() {
            all.extend(share.lasts.read().iter().map(|(stream, last)| (name(stream), *last)));
        }
        all
    }

    #[allow(clippy::cast_possible_truncation, clippy::indexing_slicing)] // below their number
    fn share(&self, stream: &KeyBuf) -> &Share {
        &self.0[(stream.hash64() >> 48) as usize % SHARES]
    }
}

fn name(stream: &KeyBuf) -> String {
    String::from_utf8_lossy(stream.as_bytes()).into_owned()
}

impl Turn<'_> {
    pub(super) fn last(&self) -> u64 {
        self.lasts.read().get(&self.stream).copied().unwrap_or(0)
    }

    pub(super) fn set(&self, last: u64) {
        let mut lasts = self.lasts.write();
        match lasts.get_mut(&self.stream) {
            Some(known) => *known = last,
            None => drop(lasts.insert(self.stream.clone(), last)),
        }
    }

    /// Returns the previous value.
    pub(super) fn forget(&self) -> u64 {
        self.lasts.write().remove(&self.stream).unwrap_or(0)
    }
}
