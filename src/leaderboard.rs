//! Declares leaderboards: what is ranked, and by which score.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use crate::counter::{Counter, CounterId};
use crate::decay::Decayed;
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf, KeyParts};

/// A leaderboard: keys in the order of their scores, the highest first, ties by key.
///
/// A score is a function of totals only. If a column matters to it, tally the column as an amount;
/// if keys without any other total must be listed, tally a counter of members. So a leaderboard can
/// be rebuilt from totals, and is written only where a score changes.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Leaderboard, MemoryLeaderboard, MemoryStore};
///
/// keepcount::counters! {
///     SCHEMA {
///         UPVOTES: String = "song.upvotes";
///         DOWNVOTES: String = "song.downvotes";
///     }
/// }
/// const SONGS: Leaderboard<String> =
///     Leaderboard::new("song.board", [UPVOTES, DOWNVOTES]).by(|[up, down]| (up + down > 0).then_some(up - down));
///
/// let store = MemoryStore::new(&SCHEMA);
/// let mut songs = MemoryLeaderboard::new(SONGS);
/// let mut batch = Batch::new();
/// batch.add(UPVOTES, "encore", 3);
/// batch.add(DOWNVOTES, "opener", 1);
/// let applied = store.apply(&mut batch)?;
/// songs.follow(&store, applied.deltas(&batch))?;
/// let top = songs.top(10)?;
/// assert_eq!((top[0].rank, top[0].key.as_str(), top[0].score), (1, "encore", 3));
/// # Ok::<(), keepcount::Error>(())
/// ```
///
/// A score of another number of totals, or a counter with another key, is a compile error:
///
/// ```compile_fail
/// # use keepcount::{Counter, Leaderboard};
/// const VOTES: Counter<i64> = Counter::new("song.votes");
/// const SONGS: Leaderboard<i64> = Leaderboard::new("song.board", [VOTES]).by(|[up, down]| Some(up - down));
/// ```
///
/// ```compile_fail
/// # use keepcount::{Counter, Leaderboard};
/// const VOTES: Counter<i64> = Counter::new("song.votes");
/// const SONGS: Leaderboard<String> = Leaderboard::new("song.board", [VOTES]).by(|[votes]| Some(votes));
/// ```
pub struct Leaderboard<K, S = i64> {
    id: LeaderboardId,
    types: PhantomData<fn() -> (K, S)>,
}

impl<K, S> Clone for Leaderboard<K, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, S> Copy for Leaderboard<K, S> {}

impl<K, S> fmt::Debug for Leaderboard<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl<K: Key> Leaderboard<K, i64> {
    /// A leaderboard by an integer computed from the totals of these counters, 1 to 8 of them;
    /// [`by`](Unscored::by) says how.
    ///
    /// # Panics
    ///
    /// If the name is not valid for a counter, or there are no counters or more than 8. In a
    /// `const` that is a compile error.
    #[must_use]
    #[allow(clippy::new_ret_no_self)] // the score makes it whole
    pub const fn new<const N: usize>(
        name: &'static str,
        counters: [Counter<K>; N],
    ) -> Unscored<K, N> {
        assert!(N > 0 && N <= MOST, "a leaderboard has 1 to 8 counters");
        Unscored { counter: Counter::<K>::new(name).id(), counters }
    }
}

/// A [`Leaderboard`] that lacks its score, made by [`Leaderboard::new`].
#[derive(Debug, Clone, Copy)]
pub struct Unscored<K, const N: usize> {
    counter: CounterId,
    counters: [Counter<K>; N],
}

/// The maximum number of counters that one score is computed from.
const MOST: usize = 8;

macro_rules! scores {
    ($($by:ident: $counters:literal),*) => {
        /// How a leaderboard's scores are computed, without the number of counters in its type.
        #[derive(Clone, Copy)]
        enum Scores {
            /// The decayed sum of all epochs of a key.
            Epochs,
            $($by(fn([i64; $counters]) -> Option<i64>)),*
        }

        impl Scores {
            /// The score of these totals, one of each counter.
            fn of(&self, totals: &[i64]) -> Option<i64> {
                match self {
                    Self::Epochs => None,
                    $(Self::$by(score) => totals.first_chunk().copied().and_then(score)),*
                }
            }
        }

        $(
            impl<K: Key> Unscored<K, $counters> {
                /// The leaderboard by this score, which is computed from the totals at one key, one
                /// of each counter in their order.
                ///
                /// A key without a score is not listed. Totals that are all 0 must have no score:
                /// nothing lists the keys that have no total.
                #[must_use]
                pub const fn by(self, score: fn([i64; $counters]) -> Option<i64>) -> Leaderboard<K> {
                    Leaderboard::of(LeaderboardId::new(self.counter, &self.counters, Scores::$by(score)))
                }
            }
        )*
    };
}

scores!(One: 1, Two: 2, Three: 3, Four: 4, Five: 5, Six: 6, Seven: 7, Eight: 8);

impl<K: Key> Leaderboard<K, Decayed> {
    /// A leaderboard by a counter keyed (key, epoch) of decayed amounts: each key has its exact
    /// decayed sum as score, the same at any time.
    ///
    /// A key whose sum is 0 is not listed. A change costs a read of all epochs of its key, so prune
    /// old ones.
    ///
    /// # Panics
    ///
    /// If the name is not valid for a counter. In a `const` that is a compile error.
    #[must_use]
    pub const fn decayed(name: &'static str, counter: Counter<(K, i64)>) -> Self {
        Self::of(LeaderboardId::new(Counter::<K>::new(name).id(), &[counter], Scores::Epochs))
    }
}

impl<K: Key, S> Leaderboard<K, S> {
    const fn of(id: LeaderboardId) -> Self {
        Self { id, types: PhantomData }
    }

    /// The same leaderboard with another version.
    ///
    /// Raise it when the meaning of its score changes, and rebuild the leaderboard.
    ///
    /// Unlike versions of a counter, versions of a leaderboard share one table, so processes with
    /// different versions cannot run side by side. If you need that, give the leaderboard another
    /// name.
    #[must_use]
    pub const fn version(mut self, version: u32) -> Self {
        self.id.counter = Counter::<K>::new(self.id.counter.name()).version(version).id();
        self
    }

    /// The leaderboard without its types, for a [`Schema`](crate::Schema).
    #[must_use]
    pub const fn id(self) -> LeaderboardId {
        self.id
    }
}

/// What identifies a leaderboard, and computes its scores.
#[derive(Clone, Copy)]
pub struct LeaderboardId {
    /// Its name, version and key, in the form of a counter.
    counter: CounterId,
    /// The counters that scores are computed from, and then anything.
    counters: [CounterId; MOST],
    /// The number of these counters.
    of: usize,
    scores: Scores,
}

impl fmt::Debug for LeaderboardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaderboard {:?}", self.counter)
    }
}

impl LeaderboardId {
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn new<K: Key>(counter: CounterId, counters: &[Counter<K>], scores: Scores) -> Self {
        let mut all = [counter; MOST];
        let mut of = 0;
        while of < counters.len() {
            all[of] = counters[of].id();
            of += 1;
        }
        Self { counter, counters: all, of, scores }
    }

    /// The leaderboard's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.counter.name()
    }

    /// The counters that its scores are computed from.
    #[must_use]
    pub const fn counters(&self) -> &[CounterId] {
        self.counters.split_at(self.of).0
    }

    pub(crate) const fn counter_id(&self) -> &CounterId {
        &self.counter
    }

    pub(crate) const fn parts(&self) -> KeyParts {
        self.counter.parts()
    }

    /// The name of its table: its own name, with underscores for dots. It does not depend on the
    /// version, because a leaderboard is rebuilt instead of kept in two versions.
    pub(crate) fn table_name(&self) -> String {
        self.name().replace('.', "_")
    }

    /// The leaderboard's key within a key of one of its counters.
    pub(crate) fn key_of(&self, counter: &CounterId, key: &KeyBuf) -> Result<KeyBuf> {
        let split = counter.split(key, self.parts().len());
        split.map(|(own, _)| own).map_err(|cause| Error::key(counter, key, cause))
    }

    /// The keys whose scores some deltas may change.
    pub(crate) fn changed<'a>(
        &self,
        deltas: impl Iterator<Item = (CounterId, &'a KeyBuf, i128)>,
    ) -> Result<BTreeSet<KeyBuf>> {
        let ours =
            deltas.filter(|(counter, ..)| self.counters().iter().any(|known| known.same(counter)));
        ours.map(|(counter, key, _)| self.key_of(&counter, key)).collect()
    }

    /// Whether scores are computed from all epochs of a key instead of the key's own totals.
    pub(crate) const fn has_epochs(&self) -> bool {
        matches!(self.scores, Scores::Epochs)
    }

    /// A key's score, computed from these totals: one of each counter in their order, or those of
    /// all epochs.
    pub(crate) fn score_of(&self, key: &KeyBuf, totals: &[(KeyBuf, i64)]) -> Result<Option<Cell>> {
        if !self.has_epochs() {
            let totals: Vec<i64> = totals.iter().map(|(_, total)| *total).collect();
            return Ok(self.scores.of(&totals).map(Cell::Integer));
        }
        let mut epochs = Vec::new();
        for (whole, total) in totals {
            let (_, suffix) =
                whole.as_bytes().split_at_checked(key.as_bytes().len()).unwrap_or_default();
            let decoded = KeyBuf::from_bytes(suffix).decode();
            let counter = self.counters().first().unwrap_or(&self.counter);
            let epoch: i64 = decoded.map_err(|cause| Error::key(counter, whole, cause))?;
            epochs.push((epoch, *total));
        }
        let sum = Decayed::sum(epochs);
        Ok((!sum.is_zero()).then_some(Cell::Decayed(sum)))
    }
}

/// A score as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// An integer.
    Integer(i64),
    /// An exact decayed sum.
    Decayed(Decayed),
}

/// A type of score: `i64` or [`Decayed`].
pub trait Score: Ord + Clone + sealed::Sealed {
    #[doc(hidden)]
    fn from_cell(cell: Cell) -> Option<Self>;
    #[doc(hidden)]
    fn to_cell(&self) -> Cell;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for i64 {}
    impl Sealed for super::Decayed {}
}

impl Score for i64 {
    fn from_cell(cell: Cell) -> Option<Self> {
        if let Cell::Integer(score) = cell { Some(score) } else { None }
    }

    fn to_cell(&self) -> Cell {
        Cell::Integer(*self)
    }
}

impl Score for Decayed {
    fn from_cell(cell: Cell) -> Option<Self> {
        if let Cell::Decayed(score) = cell { Some(score) } else { None }
    }

    fn to_cell(&self) -> Cell {
        Cell::Decayed(self.clone())
    }
}

/// Where a key stands on a leaderboard, listed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing<K, S> {
    /// The rank, from 1 on. A key that is not listed stands behind all that are: its rank is one
    /// more than their number, and every such key has it.
    pub rank: u64,
    /// The key.
    pub key: K,
    /// The score; `None` if the key is not listed.
    pub score: Option<S>,
}

impl<K, S> Standing<K, S> {
    /// The key's line; `None` if it is not listed.
    ///
    /// The SQL stores' `top_after` reads the lines after it.
    #[must_use]
    pub fn line(self) -> Option<Ranked<K, S>> {
        let Self { rank, key, score } = self;
        score.map(|score| Ranked { rank, key, score })
    }
}

/// A line of a leaderboard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ranked<K, S> {
    /// The rank, from 1 on. No two keys share one.
    pub rank: u64,
    /// The ranked key.
    pub key: K,
    /// The score.
    pub score: S,
}
