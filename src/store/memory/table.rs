//! One counter's totals in one stripe: ordered by key if keys have several parts, else a hash
//! table, whose keys are 64-bit words if every key of the counter fits one.

use std::collections::BTreeMap;
use std::ops::RangeBounds as _;

use hashbrown::HashTable;

use crate::counter::key_range::KeyRange;
use crate::key::{KeyBuf, KeyParts};

/// Totals by key; none of them is 0.
#[derive(Debug)]
pub(super) enum Table {
    /// Keys of a fixed length of at most eight bytes: 16 bytes an entry, half as much as `Long`.
    Short { len: usize, totals: HashTable<(u64, i64)> },
    /// All other keys of one part.
    Long(HashTable<(KeyBuf, i64)>),
    /// Keys of several parts, which are read by range: a child's memberships, an artist's days.
    Ordered(BTreeMap<KeyBuf, i64>),
}

impl Table {
    pub(super) fn new(parts: KeyParts) -> Self {
        match parts.fixed_len() {
            _ if parts.len() > 1 => Self::Ordered(BTreeMap::new()),
            Some(len @ 0..=8) => Self::Short { len, totals: HashTable::new() },
            _ => Self::Long(HashTable::new()),
        }
    }

    /// Adds to one total and removes it if it becomes 0. Returns the new total; or `None`, with
    /// nothing changed, if it would leave 64 bits or be further from 0 than `most`.
    #[inline(always)]
    #[allow(clippy::inline_always)] // measured: a separate call costs a tenth of a large batch
    pub(super) fn add(&mut self, hash: u64, key: &KeyBuf, delta: i64, most: u64) -> Option<i64> {
        match self {
            Self::Short { len, totals } => {
                let word = key.word();
                let len = *len;
                let rehash = |(word, _): &(u64, i64)| KeyBuf::from_word(*word, len).hash64();
                add(
                    totals,
                    hash,
                    |(known, _)| *known == word,
                    (delta, most),
                    || (word, delta),
                    rehash,
                )
            }
            Self::Long(totals) => {
                let rehash = |(key, _): &(KeyBuf, i64)| key.hash64();
                add(
                    totals,
                    hash,
                    |(known, _)| known == key,
                    (delta, most),
                    || (key.clone(), delta),
                    rehash,
                )
            }
            Self::Ordered(totals) => add_ordered(totals, key, delta, most),
        }
    }

    #[inline]
    pub(super) fn has(&self, hash: u64, key: &KeyBuf) -> bool {
        match self {
            Self::Short { totals, .. } => {
                let word = key.word();
                totals.find(hash, |(known, _)| *known == word).is_some()
            }
            Self::Long(totals) => totals.find(hash, |(known, _)| known == key).is_some(),
            Self::Ordered(totals) => totals.contains_key(key),
        }
    }

    /// Makes room for this many more totals.
    pub(super) fn reserve(&mut self, more: usize) {
        match self {
            Self::Short { len, totals } => {
                totals.reserve(more, |(word, _)| KeyBuf::from_word(*word, *len).hash64());
            }
            Self::Long(totals) => totals.reserve(more, |(key, _)| key.hash64()),
            Self::Ordered(_) => {}
        }
    }

    pub(super) fn get(&self, hash: u64, key: &KeyBuf) -> i64 {
        let total = match self {
            Self::Short { totals, .. } => {
                let word = key.word();
                totals.find(hash, |(known, _)| *known == word).map(|(_, total)| *total)
            }
            Self::Long(totals) => {
                totals.find(hash, |(known, _)| known == key).map(|(_, total)| *total)
            }
            Self::Ordered(totals) => totals.get(key).copied(),
        };
        total.unwrap_or(0)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Short { totals, .. } => totals.len(),
            Self::Long(totals) => totals.len(),
            Self::Ordered(totals) => totals.len(),
        }
    }

    /// Calls `each` with every total, unordered.
    pub(super) fn for_each(&self, mut each: impl FnMut(&KeyBuf, i64)) {
        match self {
            Self::Short { len, totals } => {
                for (word, total) in totals {
                    each(&KeyBuf::from_word(*word, *len), *total);
                }
            }
            Self::Long(totals) => {
                for (key, total) in totals {
                    each(key, *total);
                }
            }
            Self::Ordered(totals) => {
                for (key, total) in totals {
                    each(key, *total);
                }
            }
        }
    }

    /// Calls `each` with the totals of a range: in key order, until it returns `false`, if the
    /// table is ordered; otherwise unordered, with all of them.
    pub(super) fn visit(&self, range: &KeyRange, mut each: impl FnMut(&KeyBuf, i64) -> bool) {
        let Some(bounds) = range.as_bytes() else { return };
        match self {
            Self::Ordered(totals) => {
                totals.range(bounds).all(|(key, total)| each(key, *total));
            }
            _ => self.for_each(|key, total| {
                if bounds.contains(key) {
                    each(key, total);
                }
            }),
        }
    }

    /// Removes the totals for which `keep` returns `false`.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&KeyBuf) -> bool) {
        match self {
            Self::Short { len, totals } => {
                totals.retain(|(word, _)| keep(&KeyBuf::from_word(*word, *len)));
                give_back(totals, |(word, _)| KeyBuf::from_word(*word, *len).hash64());
            }
            Self::Long(totals) => {
                totals.retain(|(key, _)| keep(key));
                give_back(totals, |(key, _)| key.hash64());
            }
            Self::Ordered(totals) => totals.retain(|key, _| keep(key)),
        }
    }
}

/// Like [`add`], for an ordered table.
fn add_ordered(
    totals: &mut BTreeMap<KeyBuf, i64>,
    key: &KeyBuf,
    delta: i64,
    most: u64,
) -> Option<i64> {
    let Some(total) = totals.get_mut(key) else {
        if delta != 0 {
            totals.insert(key.clone(), delta);
        }
        return Some(delta);
    };
    let sum = total.checked_add(delta).filter(|sum| sum.unsigned_abs() <= most)?;
    *total = sum;
    if sum == 0 {
        totals.remove(key);
    }
    Some(sum)
}

#[inline]
fn add<K>(
    totals: &mut HashTable<(K, i64)>,
    hash: u64,
    is: impl Fn(&(K, i64)) -> bool,
    (delta, most): (i64, u64),
    fresh: impl FnOnce() -> (K, i64),
    rehash: impl Fn(&(K, i64)) -> u64,
) -> Option<i64> {
    let Some((_, total)) = totals.find_mut(hash, &is) else {
        if delta != 0 {
            totals.insert_unique(hash, fresh(), rehash);
        }
        return Some(delta);
    };
    let sum = total.checked_add(delta).filter(|sum| sum.unsigned_abs() <= most)?;
    *total = sum;
    if sum == 0 {
        remove(totals, hash, is, rehash);
    }
    Some(sum)
}

#[cold]
fn remove<K>(
    totals: &mut HashTable<(K, i64)>,
    hash: u64,
    is: impl Fn(&(K, i64)) -> bool,
    rehash: impl Fn(&(K, i64)) -> u64,
) {
    if let Ok(found) = totals.find_entry(hash, is) {
        found.remove();
    }
    give_back(totals, rehash);
}

/// Releases memory if a table has shrunk much: the removals have paid for the cost.
fn give_back<K>(totals: &mut HashTable<(K, i64)>, rehash: impl Fn(&(K, i64)) -> u64) {
    if totals.capacity() > ROOM_KEPT && totals.len() < totals.capacity() / 8 {
        totals.shrink_to(totals.len() * 2, rehash);
    }
}

/// Room for this many totals is never released.
const ROOM_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::Counter;

    /// Its memory used to stay at the most totals that it ever held.
    #[test]
    fn a_table_gives_room_back_when_its_totals_go() {
        let key = |n: i64, parts: KeyParts| match parts.fixed_len() {
            Some(_) => KeyBuf::of::<i64>(n),
            None => KeyBuf::of::<String>(format!("user {n}")),
        };
        for parts in
            [Counter::<i64>::new("a").id().parts(), Counter::<String>::new("a").id().parts()]
        {
            let capacity = |table: &Table| match table {
                Table::Short { totals, .. } => totals.capacity(),
                Table::Long(totals) => totals.capacity(),
                Table::Ordered(_) => 0,
            };
            let mut table = Table::new(parts);
            let add = |table: &mut Table, n: i64, delta: i64| {
                let key = key(n, parts);
                table.add(key.hash64(), &key, delta, u64::MAX);
            };
            (0..100_000).for_each(|n| add(&mut table, n, n + 1));
            assert!(capacity(&table) >= 100_000);
            (0..99_990).for_each(|n| add(&mut table, n, -n - 1));
            assert!(table.len() == 10 && capacity(&table) <= 2 * ROOM_KEPT, "{}", capacity(&table));
            for n in 99_990..100_000 {
                let key = key(n, parts);
                assert_eq!(table.get(key.hash64(), &key), n + 1);
            }
            (0..100_000).for_each(|n| add(&mut table, n, 1));
            table.retain(|_| false);
            assert!(table.len() == 0 && capacity(&table) <= 2 * ROOM_KEPT, "{}", capacity(&table));
        }
    }
}
