//! Where the rows of a memory audit come from, and their sums by key.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds as _};

use super::super::audit::Recount;
use super::super::recount::sum_by_key;
use crate::counter::CounterId;
use crate::cutoff;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::store::MemoryStore;

#[derive(Default)]
pub(super) struct Sources<'a> {
    counters: Vec<(CounterId, Source<'a>)>,
    scans: Vec<Scan<'a>>,
}

enum Source<'a> {
    Sorted(Sorted<'a>),
    /// The positions of the scans whose rows drive the counter.
    Scanned(Vec<usize>),
}

/// Rows in key order: returns what each row adds, from a key on.
pub(super) type Sorted<'a> = Box<dyn FnMut(Bound<&KeyBuf>) -> Result<Shares<'a>> + 'a>;
pub(super) type Shares<'a> = Box<dyn Iterator<Item = Result<Option<(KeyBuf, i64)>>> + 'a>;

/// All rows of one record type, in any order: visits what they add to a counter, until the visitor
/// returns false.
pub(super) type Scan<'a> = Box<dyn FnMut(&CounterId, &mut Visitor<'_>) -> Result<()> + 'a>;
pub(super) type Visitor<'v> = dyn FnMut(&KeyBuf, i128) -> Result<bool> + 'v;

/// A key's sum so far, and its number of rows.
type Sum = (i128, u64);

impl<'a> Sources<'a> {
    /// Takes the place of what the counter had before.
    pub(super) fn set(&mut self, counter: CounterId, sorted: Sorted<'a>) {
        self.counters.retain(|(known, _)| *known != counter);
        self.counters.push((counter, Source::Sorted(sorted)));
    }

    /// Adds rows to what is scanned for these counters already, or takes the place of sorted rows.
    pub(super) fn scan(&mut self, counters: impl IntoIterator<Item = CounterId>, scan: Scan<'a>) {
        let position = self.scans.len();
        self.scans.push(scan);
        for counter in counters {
            match self.counters.iter_mut().find(|(known, _)| *known == counter) {
                // A counter that is named twice is counted once.
                Some((_, Source::Scanned(scans))) => {
                    if scans.last() != Some(&position) {
                        scans.push(position);
                    }
                }
                Some((_, source)) => *source = Source::Scanned(vec![position]),
                None => self.counters.push((counter, Source::Scanned(vec![position]))),
            }
        }
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.counters.iter().map(|(counter, _)| counter.name()).collect()
    }

    /// Returns whether every recount of this counter reads all of its rows.
    pub(super) fn reads_all(&self, counter: &CounterId) -> bool {
        self.counters
            .iter()
            .any(|(known, source)| known == counter && matches!(source, Source::Scanned(_)))
    }

    /// Returns the first keys' sums, of rows that are not below the counter's cutoff.
    pub(super) fn page(
        &mut self,
        store: &MemoryStore,
        counter: &CounterId,
        from: Bound<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<Recount>> {
        let kept = kept(store, counter)?;
        match self.of(counter)? {
            (Source::Sorted(rows), _) => {
                let rows = rows(from)?.map(|share| Ok(share?.filter(|(key, _)| kept(key))));
                sum_by_key(counter, from, limit, rows)
            }
            (Source::Scanned(positions), scans) => {
                let wanted = |key: &KeyBuf| (from, Bound::Unbounded).contains(key);
                let mut first = BTreeMap::new();
                visit(scans, positions, counter, &mut |key, amount| {
                    if wanted(key) && kept(key) {
                        add_to_first(&mut first, limit, counter, key, amount)?;
                    }
                    Ok(true)
                })?;
                first.into_iter().map(|(key, sum)| recount(counter, key, sum)).collect()
            }
        }
    }

    /// Returns the sums of these keys, in their order: of scanned rows by one scan for all.
    pub(super) fn keys(
        &mut self,
        store: &MemoryStore,
        counter: &CounterId,
        keys: &[&KeyBuf],
    ) -> Result<Vec<Recount>> {
        if !self.reads_all(counter) {
            return keys.iter().map(|key| self.sorted_key(store, counter, key)).collect();
        }
        let kept = kept(store, counter)?;
        let mut sums: BTreeMap<&KeyBuf, Sum> = keys.iter().map(|key| (*key, (0, 0))).collect();
        if let (Source::Scanned(positions), scans) = self.of(counter)? {
            visit(scans, positions, counter, &mut |key, amount| {
                if let Some(sum) = sums.get_mut(key).filter(|_| kept(key)) {
                    add(sum, counter, key, amount)?;
                }
                Ok(true)
            })?;
        }
        let sum_of = |key: &KeyBuf| sums.get(key).copied().unwrap_or_default();
        keys.iter().map(|key| recount(counter, (*key).clone(), sum_of(key))).collect()
    }

    /// Returns one key's sum.
    pub(super) fn key(
        &mut self,
        store: &MemoryStore,
        counter: &CounterId,
        key: &KeyBuf,
    ) -> Result<Recount> {
        Ok(self.keys(store, counter, &[key])?.pop().unwrap_or_else(|| nothing(key)))
    }

    fn sorted_key(
        &mut self,
        store: &MemoryStore,
        counter: &CounterId,
        key: &KeyBuf,
    ) -> Result<Recount> {
        let first = self.page(store, counter, Bound::Included(key), 1)?.into_iter().next();
        Ok(first.filter(|recount| recount.key == *key).unwrap_or_else(|| nothing(key)))
    }

    /// Returns whether no row counts for any key.
    pub(super) fn is_empty(&mut self, store: &MemoryStore, counter: &CounterId) -> Result<bool> {
        if !self.reads_all(counter) {
            return Ok(self.page(store, counter, Bound::Unbounded, 1)?.is_empty());
        }
        let kept = kept(store, counter)?;
        let mut empty = true;
        if let (Source::Scanned(positions), scans) = self.of(counter)? {
            visit(scans, positions, counter, &mut |key, _| {
                empty &= !kept(key);
                Ok(empty)
            })?;
        }
        Ok(empty)
    }

    fn of(&mut self, counter: &CounterId) -> Result<(&mut Source<'a>, &mut Vec<Scan<'a>>)> {
        let found = self.counters.iter_mut().find(|(known, _)| known == counter);
        let (_, source) = found.ok_or_else(|| Error::no_source(counter))?;
        Ok((source, &mut self.scans))
    }
}

/// Returns whether a key is not below the counter's cutoff, as it is now.
fn kept(store: &MemoryStore, counter: &CounterId) -> Result<impl Fn(&KeyBuf) -> bool + use<>> {
    let (counter, cutoff) = (*counter, store.cutoff(store.schema().position(counter)?));
    Ok(move |key: &KeyBuf| {
        cutoff.as_ref().is_none_or(|cutoff| cutoff::keeps(&counter, key, cutoff))
    })
}

/// Visits the rows of some scans, until the visitor returns false.
fn visit(
    scans: &mut [Scan<'_>],
    positions: &[usize],
    counter: &CounterId,
    each: &mut Visitor<'_>,
) -> Result<()> {
    let mut go_on = true;
    for position in positions {
        if let Some(scan) = scans.get_mut(*position).filter(|_| go_on) {
            scan(counter, &mut |key, amount| {
                go_on = each(key, amount)?;
                Ok(go_on)
            })?;
        }
    }
    Ok(())
}

/// Adds to the sum of a key that may be among the first `limit` ones. A key that is put out has
/// `limit` keys before it for good, so it never comes back without what was added before.
fn add_to_first(
    first: &mut BTreeMap<KeyBuf, Sum>,
    limit: usize,
    counter: &CounterId,
    key: &KeyBuf,
    amount: i128,
) -> Result<()> {
    if let Some(sum) = first.get_mut(key) {
        return add(sum, counter, key, amount);
    }
    let full = first.len() >= limit;
    if !full || first.last_key_value().is_some_and(|(last, _)| key < last) {
        first.insert(key.clone(), (amount, 1));
        if full {
            first.pop_last();
        }
    }
    Ok(())
}

fn add(sum: &mut Sum, counter: &CounterId, key: &KeyBuf, amount: i128) -> Result<()> {
    sum.0 = sum.0.checked_add(amount).ok_or_else(|| Error::overflow(counter, key, "recount"))?;
    sum.1 += 1;
    Ok(())
}

fn recount(counter: &CounterId, key: KeyBuf, (sum, rows): Sum) -> Result<Recount> {
    match i64::try_from(sum) {
        Ok(total) => Ok(Recount { key, total, rows }),
        Err(_) => Err(Error::overflow(counter, &key, "recount")),
    }
}

fn nothing(key: &KeyBuf) -> Recount {
    Recount { key: key.clone(), total: 0, rows: 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Counter;

    #[test]
    fn first_keys_of_rows_in_any_order_have_their_whole_sums() {
        let id = Counter::<i64>::new("votes").id();
        // Every order of five keys, twice over: a key that is put out must not come back.
        let mut orders = vec![Vec::new()];
        for key in 0..5_i64 {
            orders = orders.iter().flat_map(|order| inserted(order, key)).collect();
        }
        assert_eq!(orders.len(), 120);
        for order in orders {
            for limit in 0..7 {
                let mut first = BTreeMap::new();
                for key in order.iter().chain(order.iter().rev()) {
                    add_to_first(&mut first, limit, &id, &KeyBuf::of::<i64>(key), 3).unwrap();
                }
                let sums: Vec<(i64, Sum)> =
                    first.iter().map(|(key, sum)| (key.decode().unwrap(), *sum)).collect();
                let wanted: Vec<(i64, Sum)> = (0..5).take(limit).map(|key| (key, (6, 2))).collect();
                assert_eq!(sums, wanted, "{order:?}, {limit}");
            }
        }
    }

    fn inserted(order: &[i64], key: i64) -> Vec<Vec<i64>> {
        (0..=order.len()).map(|at| [&order[..at], &[key], &order[at..]].concat()).collect()
    }
}
