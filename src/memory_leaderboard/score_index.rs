//! An index of keys by score: the highest first, equal scores by key.

use std::cmp::Reverse;
use std::fmt;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::order_statistic_tree::OrderStatisticTree;
use crate::key::KeyBuf;

/// Keys with scores, each with a rank.
///
/// The table and the tree contain the same keys with the same scores.
#[derive(Clone)]
pub struct ScoreIndex<S> {
    scores: HashTable<(KeyBuf, S)>,
    order: OrderStatisticTree<(Reverse<S>, KeyBuf)>,
}

impl<S: Ord + Clone> ScoreIndex<S> {
    pub const fn new() -> Self {
        Self { scores: HashTable::new(), order: OrderStatisticTree::new() }
    }

    pub const fn len(&self) -> usize {
        self.order.len()
    }

    /// Gives a key a score, or removes the key.
    ///
    /// Returns whether that changed anything.
    pub fn set(&mut self, key: KeyBuf, score: Option<S>) -> bool {
        match score {
            Some(score) => self.put(key, score),
            None => self.take(key),
        }
    }

    pub fn score(&self, key: &KeyBuf) -> Option<&S> {
        self.scores.find(key.hash64(), |(known, _)| known == key).map(|(_, score)| score)
    }

    /// The key's rank, from 1 on.
    pub fn rank(&self, key: &KeyBuf) -> Option<u64> {
        let score = self.score(key)?;
        let position = self.order.position(&(Reverse(score.clone()), key.clone())).ok()?;
        Some(position as u64 + 1)
    }

    /// At most `limit` keys from a rank on, with their ranks.
    pub fn page(&self, first_rank: u64, limit: usize) -> Vec<(u64, &KeyBuf, &S)> {
        let first_rank = first_rank.max(1);
        let skip = usize::try_from(first_rank - 1).unwrap_or(usize::MAX);
        let entries = self.order.iter_from(skip).take(limit);
        let mut page = Vec::with_capacity(limit.min(self.len().saturating_sub(skip)));
        page.extend(
            (first_rank..=u64::MAX)
                .zip(entries)
                .map(|(rank, (Reverse(score), key))| (rank, key, score)),
        );
        page
    }

    /// All keys and scores by rank.
    pub fn iter(&self) -> impl Iterator<Item = (&KeyBuf, &S)> {
        self.order.iter_from(0).map(|(Reverse(score), key)| (key, score))
    }

    fn put(&mut self, key: KeyBuf, score: S) -> bool {
        match self.scores.entry(
            key.hash64(),
            |(known, _)| *known == key,
            |(known, _)| known.hash64(),
        ) {
            Entry::Vacant(free) => {
                free.insert((key.clone(), score.clone()));
                self.order.insert((Reverse(score), key))
            }
            Entry::Occupied(known) if known.get().1 == score => false,
            Entry::Occupied(mut known) => {
                let old = std::mem::replace(&mut known.get_mut().1, score.clone());
                let mut entry = (Reverse(old), key);
                self.order.remove(&entry);
                entry.0 = Reverse(score);
                self.order.insert(entry)
            }
        }
    }

    fn take(&mut self, key: KeyBuf) -> bool {
        let Ok(known) = self.scores.find_entry(key.hash64(), |(known, _)| *known == key) else {
            return false;
        };
        let ((_, score), _) = known.remove();
        self.order.remove(&(Reverse(score), key))
    }
}

/// O(n log n), and faster than key by key. The last of a key's scores counts.
impl<S: Ord + Clone> FromIterator<(KeyBuf, S)> for ScoreIndex<S> {
    fn from_iter<I: IntoIterator<Item = (KeyBuf, S)>>(scores: I) -> Self {
        let mut table: HashTable<(KeyBuf, S)> = HashTable::new();
        for (key, score) in scores {
            table
                .entry(key.hash64(), |(known, _)| *known == key, |(known, _)| known.hash64())
                .and_modify(|(_, known)| known.clone_from(&score))
                .or_insert((key, score));
        }
        let order =
            table.iter().map(|(key, score)| (Reverse(score.clone()), key.clone())).collect();
        Self { scores: table, order }
    }
}

/// Keys and scores by rank.
impl<S: Ord + Clone + fmt::Debug> fmt::Debug for ScoreIndex<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn key(number: u64) -> KeyBuf {
        KeyBuf::of::<u64>(number)
    }

    /// A page's keys and scores, with their ranks.
    fn plain(page: Vec<(u64, &KeyBuf, &i64)>) -> Vec<(u64, u64, i64)> {
        page.into_iter()
            .map(|(rank, key, score)| (rank, key.decode::<u64>().unwrap(), *score))
            .collect()
    }

    #[test]
    fn the_highest_score_is_first_and_equal_scores_stand_by_key() {
        let mut ranking = ScoreIndex::new();
        for (number, score) in [(1, 5), (2, 9), (3, 5), (4, -1)] {
            assert!(ranking.set(key(number), Some(score)));
        }
        assert_eq!(plain(ranking.page(1, 10)), [(1, 2, 9), (2, 1, 5), (3, 3, 5), (4, 4, -1)]);
        assert_eq!(plain(ranking.page(2, 2)), [(2, 1, 5), (3, 3, 5)]);
        assert_eq!(ranking.rank(&key(3)), Some(3));
        assert_eq!(ranking.score(&key(4)), Some(&-1));
        assert_eq!(format!("{:?}", ranking.page(4, 1)), "[(4, 0000000000000004, -1)]");
    }

    #[test]
    fn set_says_whether_it_changed_anything() {
        let mut ranking = ScoreIndex::new();
        assert!(!ranking.set(key(1), None));
        assert!(ranking.set(key(1), Some(3)));
        assert!(!ranking.set(key(1), Some(3)));
        assert!(ranking.set(key(1), Some(4)));
        assert_eq!((ranking.len(), ranking.rank(&key(1))), (1, Some(1)));
        assert!(ranking.set(key(1), None));
        assert!(!ranking.set(key(1), None));
        assert_eq!((ranking.len(), ranking.rank(&key(1)), ranking.score(&key(1))), (0, None, None));
    }

    #[test]
    fn pages_outside_the_ranking_are_short_or_empty() {
        let ranking: ScoreIndex<i64> = (0..5).map(|number| (key(number), 0)).collect();
        assert_eq!(plain(ranking.page(0, 1)), plain(ranking.page(1, 1)));
        assert_eq!(ranking.page(5, usize::MAX).len(), 1);
        assert_eq!(ranking.page(6, 10), []);
        assert_eq!(ranking.page(u64::MAX, usize::MAX), []);
        assert_eq!(ranking.page(1, 0), []);
        assert_eq!(ScoreIndex::<i64>::new().page(1, 10), []);
    }

    #[test]
    fn a_ranking_built_at_once_is_one_built_key_by_key() {
        let scores = (0..5_000_u64)
            .map(|number| (key(number % 3_000), number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 100));
        let mut single = ScoreIndex::new();
        for (key, score) in scores.clone() {
            single.set(key, Some(score));
        }
        let built: ScoreIndex<u64> = scores.collect();
        assert!(built.iter().eq(single.iter()));
        assert_eq!(built.len(), 3_000);
        assert!(built.iter().all(|(key, score)| built.score(key) == Some(score)));
    }

    #[test]
    fn long_keys_are_ranked_too() {
        let name = |number: u64| {
            KeyBuf::of::<String>(format!("a name longer than a key holds inline, {number:05}"))
        };
        let mut ranking = ScoreIndex::new();
        for number in 0..1_000 {
            ranking.set(name(number), Some(number / 10));
        }
        assert!(
            (0..1_000).all(|number| ranking.rank(&name(number))
                == Some(990 - number / 10 * 10 + number % 10 + 1))
        );
    }

    /// SplitMix64 (Steele, Lea, Flood).
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % bound
        }
    }

    /// Scores by key, and the same sorted, kept by other means than the index's.
    #[derive(Default)]
    struct Model {
        scores: BTreeMap<u64, i64>,
        sorted: BTreeSet<(Reverse<i64>, u64)>,
    }

    impl Model {
        fn set(&mut self, number: u64, score: Option<i64>) -> bool {
            let old = match score {
                Some(score) => self.scores.insert(number, score),
                None => self.scores.remove(&number),
            };
            if let Some(old) = old {
                self.sorted.remove(&(Reverse(old), number));
            }
            if let Some(score) = score {
                self.sorted.insert((Reverse(score), number));
            }
            old != score
        }

        fn page(&self, first_rank: u64, limit: usize) -> Vec<(u64, u64, i64)> {
            let entries =
                self.sorted.iter().skip(usize::try_from(first_rank - 1).unwrap()).take(limit);
            (first_rank..)
                .zip(entries)
                .map(|(rank, (Reverse(score), number))| (rank, *number, *score))
                .collect()
        }

        fn rank(&self, number: u64) -> Option<u64> {
            let score = self.scores.get(&number)?;
            Some(self.sorted.range(..=(Reverse(*score), number)).count() as u64)
        }

        fn sorted_anew(&self) -> Vec<(u64, i64)> {
            let mut all: Vec<_> =
                self.scores.iter().map(|(number, score)| (*number, *score)).collect();
            all.sort_by_key(|(number, score)| (Reverse(*score), *number));
            all
        }
    }

    #[test]
    fn a_hundred_thousand_changes_leave_every_page_and_rank_right() {
        let random = &mut Random(1);
        let mut ranking = ScoreIndex::new();
        let mut model = Model::default();
        for change in 0..100_000_u64 {
            // Grows to about 500 keys, shrinks to about 100, and so on, so that nodes are split and
            // joined.
            let out = if change / 2_000 % 2 == 0 { 3 } else { 7 };
            let number = random.below(700);
            let score =
                (random.below(10) >= out).then(|| i64::try_from(random.below(200)).unwrap() - 100);
            assert_eq!(
                ranking.set(key(number), score),
                model.set(number, score),
                "change {change}"
            );
            assert_eq!(plain(ranking.page(1, 10)), model.page(1, 10), "change {change}");
            let asked = random.below(700);
            assert_eq!(ranking.rank(&key(asked)), model.rank(asked), "change {change}");
            let first = 1 + random.below(700);
            assert_eq!(plain(ranking.page(first, 7)), model.page(first, 7), "change {change}");
            if change % 1_000 == 0 {
                let all = ranking.iter().map(|(key, score)| (key.decode::<u64>().unwrap(), *score));
                assert_eq!(all.collect::<Vec<_>>(), model.sorted_anew(), "change {change}");
                assert_eq!(ranking.len(), model.scores.len());
            }
        }
    }
}
