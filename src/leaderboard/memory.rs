//! A leaderboard in memory, which follows what stores apply.

use std::fmt;

use super::score_index::ScoreIndex;
use super::{Leaderboard, Ranked, Score};
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::store::Store;

/// A [`Leaderboard`] in memory: filled from totals, then fed with what each apply reports, after its commit.
///
/// What changes totals without an apply, [`MemoryAudit`](crate::reconcile::MemoryAudit)'s repairs and
/// [`MemoryStore::prune`](crate::MemoryStore::prune), is not followed: [`rebuild`](Self::rebuild) after it.
///
/// A change costs O(log keys), besides reading the changed key's totals; memory is that of its keys and scores, twice. Where several threads
/// write, share it behind a lock: scores are read from the store inside [`follow`](Self::follow), so whoever comes last reads
/// what all before have applied, and the order of arrival does not matter.
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, Leaderboard, MemoryLeaderboard};
///
/// const VOTES: Counter<i64> = Counter::new("song.votes");
/// const SONGS: Leaderboard<i64> = Leaderboard::new("song.board", &[VOTES.id()], |totals| totals.first().copied().filter(|votes| *votes > 0));
///
/// let mut songs = MemoryLeaderboard::new(SONGS);
/// songs.set(7_i64, Some(2));
/// songs.set(8_i64, Some(5));
/// assert_eq!(songs.rank(7_i64)?.map(|line| line.rank), Some(2));
/// # Ok::<(), keepcount::Error>(())
/// ```
pub struct MemoryLeaderboard<K, S = i64> {
    leaderboard: Leaderboard<K, S>,
    standings: ScoreIndex<S>,
}

impl<K: Key, S: Score> MemoryLeaderboard<K, S> {
    /// An empty ranking.
    #[must_use]
    pub fn new(leaderboard: Leaderboard<K, S>) -> Self {
        Self { leaderboard, standings: ScoreIndex::new() }
    }

    /// Makes every score anew from a store's totals: at start, or after totals changed without being followed. Costs a pass over the totals of the
    /// leaderboard's counters, and a read of each key's.
    ///
    /// # Errors
    ///
    /// What the store says; the ranking then stays as it was.
    pub fn rebuild(&mut self, store: &mut impl Store) -> Result<()> {
        let id = self.leaderboard.id();
        let mut listed = Vec::new();
        id.each_key(store, |totals, key| {
            listed.extend(id.score(totals, &key)?.and_then(S::from_cell).map(|score| (key, score)));
            Ok(())
        })?;
        self.standings = listed.into_iter().collect();
        Ok(())
    }

    /// Takes in what an apply has changed: [`Applied::deltas`](crate::Applied::deltas). Says how many scores are not what they were.
    ///
    /// # Errors
    ///
    /// What the store says; the ranking is then to be rebuilt.
    pub fn follow<'a>(
        &mut self,
        store: &mut impl Store,
        deltas: impl Iterator<Item = (CounterId, &'a KeyBuf, i128)>,
    ) -> Result<u64> {
        let id = self.leaderboard.id();
        let mut changed = 0;
        for key in id.changed(deltas)? {
            let now = id.score(store, &key)?.and_then(S::from_cell);
            changed += u64::from(self.standings.set(key, now));
        }
        Ok(changed)
    }

    /// Gives a key a score of the caller's own making, or takes it out; says whether that changed anything.
    pub fn set(&mut self, key: impl AsKey<K>, score: Option<S>) -> bool {
        self.standings.set(KeyBuf::of::<K>(key), score)
    }

    /// The first lines.
    ///
    /// # Errors
    ///
    /// [`Error::Key`] for a key that is none of the leaderboard's type.
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

    /// The line of one key; none where it is not listed.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub fn rank(&self, key: impl AsKey<K>) -> Result<Option<Ranked<K, S>>> {
        let key = KeyBuf::of::<K>(key);
        let line = self.standings.rank(&key).zip(self.standings.score(&key));
        line.map(|(rank, score)| self.line(rank, &key, score)).transpose()
    }

    /// How many keys are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.standings.len()
    }

    /// Whether nobody is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn line(&self, rank: u64, key: &KeyBuf, score: &S) -> Result<Ranked<K, S>> {
        let typed = key.decode().map_err(|cause| Error::key(self.leaderboard.id().counter_id(), key, cause))?;
        Ok(Ranked { rank, key: typed, score: score.clone() })
    }
}

impl<K, S> fmt::Debug for MemoryLeaderboard<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLeaderboard").field("board", &self.leaderboard).finish_non_exhaustive()
    }
}
