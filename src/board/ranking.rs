//! A board in memory, which follows what stores apply.

use std::fmt;

use super::standings::Standings;
use super::{Board, Ranked, Score};
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::store::Store;

/// A [`Board`] in memory: filled from totals, then fed with what each apply reports, after its commit.
///
/// What changes totals without an apply, [`MemoryAudit`](crate::reconcile::MemoryAudit)'s mends and
/// [`MemoryStore::prune`](crate::MemoryStore::prune), is not followed: [`rebuild`](Self::rebuild) after it.
///
/// A change costs O(log keys), besides reading the changed key's totals; memory is that of its keys and scores, twice. Where several threads
/// write, share it behind a lock: scores are read from the store inside [`follow`](Self::follow), so whoever comes last reads
/// what all before have applied, and the order of arrival does not matter.
///
/// # Examples
///
/// ```
/// use keepcount::{Board, Counter, Ranking};
///
/// const VOTES: Counter<i64> = Counter::new("song.votes");
/// const SONGS: Board<i64> = Board::new("song.board", &[VOTES.def()], |totals| totals.first().copied().filter(|votes| *votes > 0));
///
/// let mut songs = Ranking::new(SONGS);
/// songs.set(7_i64, Some(2));
/// songs.set(8_i64, Some(5));
/// assert_eq!(songs.rank(7_i64)?.map(|line| line.rank), Some(2));
/// # Ok::<(), keepcount::Error>(())
/// ```
pub struct Ranking<K, S = i64> {
    board: Board<K, S>,
    standings: Standings<S>,
}

impl<K: Key, S: Score> Ranking<K, S> {
    /// An empty ranking.
    #[must_use]
    pub fn new(board: Board<K, S>) -> Self {
        Self { board, standings: Standings::new() }
    }

    /// Makes every score anew from a store's totals: at start, or after totals changed without being followed. Costs a pass over the totals of the
    /// board's counters, and a read of each key's.
    ///
    /// # Errors
    ///
    /// What the store says; the ranking then stays as it was.
    pub fn rebuild(&mut self, store: &mut impl Store) -> Result<()> {
        let def = self.board.def();
        let mut listed = Vec::new();
        def.each_key(store, |totals, key| {
            listed.extend(def.score(totals, &key)?.and_then(S::from_cell).map(|score| (key, score)));
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
        deltas: impl Iterator<Item = (Def, &'a KeyBuf, i128)>,
    ) -> Result<u64> {
        let def = self.board.def();
        let mut changed = 0;
        for key in def.changed(deltas)? {
            let now = def.score(store, &key)?.and_then(S::from_cell);
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
    /// [`Error::Key`] for a key that is none of the board's type.
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
        let typed = key.decode().map_err(|cause| Error::key(self.board.def().id(), key, cause))?;
        Ok(Ranked { rank, key: typed, score: score.clone() })
    }
}

impl<K, S> fmt::Debug for Ranking<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranking").field("board", &self.board).finish_non_exhaustive()
    }
}
