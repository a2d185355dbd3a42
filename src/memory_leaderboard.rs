//! Keeps a leaderboard in memory, which follows what stores apply.

mod order_statistic_tree;
mod score_index;

use std::fmt;

use self::score_index::ScoreIndex;
use crate::counter::CounterId;
use crate::counter::key_range::KeyRange;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::leaderboard::{Cell, Leaderboard, LeaderboardId, Ranked, Score, Standing};
use crate::store::Store;

/// A [`Leaderboard`] in memory: filled from totals, then updated after each commit with the deltas
/// that the apply returns.
///
/// It does not follow changes of totals without an apply, which are the repairs of
/// [`MemoryAudit`](crate::reconcile::MemoryAudit) and
/// [`MemoryStore::prune`](crate::MemoryStore::prune). Call [`rebuild`](Self::rebuild) after them.
///
/// A change costs O(log keys), plus a read of the changed key's totals. Memory holds its keys and
/// scores twice. If several threads write, share it behind a lock. The order of arrival does not
/// matter: scores are read from the store inside [`follow`](Self::follow), so the last call reads
/// what all before it have applied.
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, Leaderboard, MemoryLeaderboard};
///
/// const VOTES: Counter<i64> = Counter::new("song.votes");
/// const SONGS: Leaderboard<i64> = Leaderboard::new("song.board", [VOTES]).by(|[votes]| (votes > 0).then_some(votes));
///
/// let mut songs = MemoryLeaderboard::new(SONGS);
/// songs.set(7_i64, Some(2));
/// songs.set(8_i64, Some(5));
/// let (second, last) = (songs.rank(7)?, songs.rank(9)?);
/// assert_eq!((second.rank, second.score), (2, Some(2)));
/// assert_eq!((last.rank, last.score), (3, None)); // it is not listed
/// # Ok::<(), keepcount::Error>(())
/// ```
pub struct MemoryLeaderboard<K, S = i64> {
    leaderboard: Leaderboard<K, S>,
    standings: ScoreIndex<S>,
}

impl<K: Key, S: Score> MemoryLeaderboard<K, S> {
    /// An empty leaderboard.
    #[must_use]
    pub fn new(leaderboard: Leaderboard<K, S>) -> Self {
        Self { leaderboard, standings: ScoreIndex::new() }
    }

    /// Recomputes every score from a store's totals.
    ///
    /// Call it at the start, and after totals changed without being followed. Costs a pass over the
    /// totals of the leaderboard's counters, and a read of each key's totals.
    ///
    /// # Errors
    ///
    /// The store's errors. The leaderboard is then unchanged.
    pub fn rebuild(&mut self, mut store: impl Store) -> Result<()> {
        let id = self.leaderboard.id();
        let mut listed = Vec::new();
        each_key(&id, &mut store, |totals, key| {
            listed
                .extend(score(&id, totals, &key)?.and_then(S::from_cell).map(|score| (key, score)));
            Ok(())
        })?;
        self.standings = listed.into_iter().collect();
        Ok(())
    }

    /// Takes in the changes of an apply, [`Applied::deltas`](crate::Applied::deltas), and returns
    /// how many scores changed.
    ///
    /// # Errors
    ///
    /// The store's errors. You must then [`rebuild`](Self::rebuild) the leaderboard.
    pub fn follow<'a>(
        &mut self,
        mut store: impl Store,
        deltas: impl Iterator<Item = (CounterId, &'a KeyBuf, i128)>,
    ) -> Result<u64> {
        let id = self.leaderboard.id();
        let mut changed = 0;
        for key in id.changed(deltas)? {
            let now = score(&id, &mut store, &key)?.and_then(S::from_cell);
            changed += u64::from(self.standings.set(key, now));
        }
        Ok(changed)
    }

    /// Gives a key a score that you computed, or removes it.
    ///
    /// Returns whether that changed anything.
    pub fn set(&mut self, key: impl AsKey<K>, score: Option<S>) -> bool {
        self.standings.set(KeyBuf::of::<K>(key), score)
    }

    /// The first lines.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] if a key does not decode to the leaderboard's key type.
    pub fn top(&self, limit: usize) -> Result<Vec<Ranked<K, S>>> {
        self.page(1, limit)
    }

    /// The lines from a rank on.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn page(&self, first_rank: u64, limit: usize) -> Result<Vec<Ranked<K, S>>> {
        self.standings
            .page(first_rank, limit)
            .into_iter()
            .map(|(rank, key, score)| self.line(rank, key, score))
            .collect()
    }

    /// Where a key stands; behind all listed keys if it is not listed.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn rank(&self, key: impl AsKey<K>) -> Result<Standing<K, S>> {
        let raw = KeyBuf::of::<K>(key);
        let rank = self.standings.rank(&raw).unwrap_or(self.standings.len() as u64 + 1);
        Ok(Standing { rank, key: self.typed(&raw)?, score: self.standings.score(&raw).cloned() })
    }

    /// The number of listed keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.standings.len()
    }

    /// Whether no key is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn line(&self, rank: u64, key: &KeyBuf, score: &S) -> Result<Ranked<K, S>> {
        Ok(Ranked { rank, key: self.typed(key)?, score: score.clone() })
    }

    fn typed(&self, key: &KeyBuf) -> Result<K> {
        key.decode().map_err(|cause| Error::key(self.leaderboard.id().counter_id(), key, cause))
    }
}

impl<K, S> fmt::Debug for MemoryLeaderboard<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLeaderboard")
            .field("leaderboard", &self.leaderboard)
            .finish_non_exhaustive()
    }
}

/// A key's score, computed from its totals.
fn score(leaderboard: &LeaderboardId, store: &mut dyn Store, key: &KeyBuf) -> Result<Option<Cell>> {
    let mut totals = Vec::with_capacity(leaderboard.counters().len());
    for counter in leaderboard.counters() {
        if leaderboard.has_epochs() {
            totals.extend(store.read_range(*counter, &KeyRange::under(key.clone()), usize::MAX)?);
        } else {
            let total = store.read_keys(*counter, std::slice::from_ref(key))?;
            totals.extend(total.into_iter().map(|total| (key.clone(), total)));
        }
    }
    leaderboard.score_of(key, &totals)
}

/// How many totals a rebuild reads at once.
const KEYS_PAGE: usize = 1024;

/// Calls `each` with every key that has a total in one of the counters. A key may come several
/// times.
fn each_key(
    leaderboard: &LeaderboardId,
    store: &mut dyn Store,
    mut each: impl FnMut(&mut dyn Store, KeyBuf) -> Result<()>,
) -> Result<()> {
    for counter in leaderboard.counters() {
        let mut range = KeyRange::ALL;
        let mut before = None;
        loop {
            let page = store.read_range(*counter, &range, KEYS_PAGE)?;
            for (key, _) in &page {
                let key = leaderboard.key_of(counter, key)?;
                if before.as_ref() != Some(&key) {
                    each(store, key.clone())?;
                    before = Some(key);
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == KEYS_PAGE => range = range.behind(last),
                _ => break,
            }
        }
    }
    Ok(())
}
