//! The last event of each stream that a memory store applied.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, RwLock};

/// Streams by name.
#[derive(Debug, Default)]
pub(super) struct Marks(RwLock<BTreeMap<Box<str>, Arc<Stream>>>);

/// One stream, whose appliers take turns.
#[derive(Debug, Default)]
pub(super) struct Stream {
    turn: Mutex<()>,
    /// Written by whose turn it is, behind the store's gate; so whoever holds the gate alone reads it in one cut with the totals.
    last: AtomicU64,
}

/// An applier's turn at a stream.
pub(super) struct Turn<'s> {
    stream: &'s Stream,
    _turn: MutexGuard<'s, ()>,
}

impl Marks {
    /// The stream of this name; made where there was none.
    pub(super) fn stream(&self, name: &str) -> Arc<Stream> {
        if let Some(known) = self.0.read().get(name) {
            return Arc::clone(known);
        }
        Arc::clone(self.0.write().entry(name.into()).or_default())
    }

    pub(super) fn last(&self, name: &str) -> u64 {
        self.0.read().get(name).map_or(0, |stream| stream.last.load(Ordering::Acquire))
    }

    /// Every stream of which something was applied; to be asked behind the store's gate, alone.
    pub(super) fn all(&self) -> BTreeMap<String, u64> {
        let streams = self.0.read();
        let lasts = streams.iter().map(|(name, stream)| (name.to_string(), stream.last.load(Ordering::Acquire)));
        lasts.filter(|(_, last)| *last > 0).collect()
    }
}

impl Stream {
    /// Waits for the turn.
    pub(super) fn turn(&self) -> Turn<'_> {
        Turn { stream: self, _turn: self.turn.lock() }
    }
}

impl Turn<'_> {
    pub(super) fn last(&self) -> u64 {
        self.stream.last.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, last: u64) {
        self.stream.last.store(last, Ordering::Release);
    }
}
