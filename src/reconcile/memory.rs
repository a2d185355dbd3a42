//! The audit of a memory store, while nobody writes: rows come from closures of the application.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::Bound;

use super::audit::{Ask, Audit, Look, Looked, Measured, Mend, Mended, Recount, merge};
use super::recount::{check_driven, share, sum_by_key};
use crate::batch::Batch;
use crate::counter::{Counter, Def, Rollup};
use crate::error::{Cause, Error, Result};
use crate::key::{Key, KeyBuf, KeyError};
use crate::prune;
use crate::range::KeyRange;
use crate::record::Record;
use crate::store::MemoryStore;

/// A [`MemoryStore`] and the rows it counts.
///
/// The store is borrowed for itself alone: no hook runs until the audit is dropped.
pub struct MemoryAudit<'a> {
    store: &'a mut MemoryStore,
    sources: Vec<(Def, Rows<'a>)>,
    window: Window,
    /// What the rollup that is compared just now should be: made once, since nobody else writes.
    truth: Option<(Def, Sums)>,
}

/// What the pairs of link and finer total add up to at each key, none where that left 128 bits, and how many they are.
type Sums = BTreeMap<KeyBuf, (Option<i128>, u64)>;

/// What each row adds, from a key on.
type Rows<'a> = Box<dyn FnMut(Bound<&KeyBuf>) -> Result<Shares<'a>> + 'a>;
type Shares<'a> = Box<dyn Iterator<Item = Result<Option<(KeyBuf, i64)>>> + 'a>;

/// The next totals in key order, fetched many pages at once: finding the smallest keys of a hash table costs a pass over all of it.
#[derive(Debug, Default)]
struct Window {
    counter: Option<Def>,
    after: Option<KeyBuf>,
    totals: VecDeque<(KeyBuf, i64)>,
    whole: bool,
}

/// A window holds this share of a counter's totals beside a page's: so a run makes about that many passes at most.
const WINDOWS: usize = 16;
/// Links that a rollup's recount reads at once.
const LINKS_PAGE: usize = 4096;

impl<'a> MemoryAudit<'a> {
    /// An audit without sources; add one for each counter in scope.
    pub fn new(store: &'a mut MemoryStore) -> Self {
        Self { store, sources: Vec::new(), window: Window::default(), truth: None }
    }

    /// Where a counter's rows come from: anything iterable, in key order, each row adding to one key at most.
    ///
    /// `rows` is told from which key on rows are wanted, and may start earlier, even at the first row; it is called once a page and
    /// once a mended key.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when records of this type do not drive the counter.
    pub fn add<K, R, I>(&mut self, counter: Counter<K>, mut rows: impl FnMut(Bound<K>) -> I + 'a) -> Result<()>
    where
        K: Key,
        R: Record + 'a,
        I: IntoIterator<Item = R>,
        I::IntoIter: 'a,
    {
        self.add_fallible::<K, R, _>(counter, move |from| rows(from).into_iter().map(Ok))
    }

    /// As [`add`](Self::add), for rows that are read from where reading can fail.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_fallible<K, R, I>(&mut self, counter: Counter<K>, mut rows: impl FnMut(Bound<K>) -> I + 'a) -> Result<()>
    where
        K: Key,
        R: Record + 'a,
        I: IntoIterator<Item = Result<R, Cause>>,
        I::IntoIter: 'a,
    {
        let def = counter.def();
        if let Some(rollup) = self.store.layout().placed(&def)?.rollup() {
            let reason = format!("it is the sum of {}, and has no rows of its own", rollup.finer().name());
            return Err(Error::source(&def, None, reason));
        }
        check_driven::<R>(&def)?;
        let shares = move |from: Bound<&KeyBuf>| {
            let from = match from {
                Bound::Unbounded => Bound::Unbounded,
                Bound::Included(key) => Bound::Included(decode(&def, key)?),
                Bound::Excluded(key) => Bound::Excluded(decode(&def, key)?),
            };
            let mut scratch = Batch::new();
            let shares = rows(from).into_iter().map(move |row| match row {
                Ok(row) => share(&def, &row, &mut scratch),
                Err(cause) => Err(Error::Database { doing: format!("reading rows of counter {}", def.name()), cause }),
            });
            Ok(Box::new(shares) as Shares<'a>)
        };
        self.sources.retain(|(known, _)| *known != def);
        self.sources.push((def, Box::new(shares)));
        Ok(())
    }

    fn recount(&mut self, counter: &Def, from: Bound<&KeyBuf>, limit: usize) -> Result<Vec<Recount>> {
        if let Some(rollup) = self.store.layout().placed(counter)?.rollup() {
            return self.recount_rollup(counter, rollup, from, limit);
        }
        let cut = self.store.cut(self.store.layout().position(counter)?);
        let source = self.sources.iter_mut().find(|(known, _)| known == counter);
        let (_, rows) = source.ok_or_else(|| Error::source(counter, None, "there is none: add it to the audit"))?;
        let kept = |share: Option<(KeyBuf, i64)>| {
            share.filter(|(key, _)| cut.as_ref().is_none_or(|cut| prune::keeps(counter, key, cut)))
        };
        sum_by_key(counter, from, limit, rows(from)?.map(|share| share.map(kept)))
    }

    /// From the stored totals that a rollup sums: takes memory for all of the rollup's keys.
    fn recount_rollup(
        &mut self,
        counter: &Def,
        rollup: &Rollup,
        from: Bound<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<Recount>> {
        let truth = match self.truth.take() {
            Some((known, truth)) if known == *counter => truth,
            _ => self.sum_rollup(rollup)?,
        };
        let recounts = truth.range::<KeyBuf, _>((from, Bound::Unbounded)).take(limit).map(|(key, (sum, rows))| {
            let total = sum.and_then(|sum| i64::try_from(sum).ok());
            let total = total.ok_or_else(|| Error::overflow(counter, key, "recount"))?;
            Ok(Recount { key: key.clone(), total, rows: *rows })
        });
        let recounts = recounts.collect();
        self.truth = Some((*counter, truth));
        recounts
    }

    fn sum_rollup(&self, rollup: &Rollup) -> Result<Sums> {
        let (link, finer) = (rollup.link(), rollup.finer());
        let malformed = |key: &KeyBuf| Error::key(&link, key, KeyError::Malformed);
        let mut sums = Sums::new();
        let mut after = None;
        loop {
            let links = self.store.page(link, after.as_ref(), LINKS_PAGE)?;
            for (key, weight) in &links {
                let bytes = key.as_bytes();
                let split = link.parts().head_len(bytes, rollup.child_parts());
                let (child, parent) = split.and_then(|at| bytes.split_at_checked(at)).ok_or_else(|| malformed(key))?;
                let child = KeyBuf::from_bytes(child);
                let fine = if rollup.keeps_tail() {
                    self.store.range(finer, &KeyRange::under(child.clone()), usize::MAX)?
                } else {
                    let total = self.store.read(finer, std::slice::from_ref(&child))?;
                    total.into_iter().map(|total| (child.clone(), total)).collect()
                };
                for (fine, total) in fine.iter().filter(|(_, total)| *total != 0) {
                    let mut key = KeyBuf::from_bytes(parent);
                    key.push(fine.as_bytes().get(child.as_bytes().len()..).unwrap_or_default());
                    let product = i128::from(*weight) * i128::from(*total);
                    let sum = sums.entry(key).or_insert((Some(0), 0));
                    *sum = (sum.0.and_then(|sum| sum.checked_add(product)), sum.1 + 1);
                }
            }
            match links.last() {
                Some((last, _)) if links.len() == LINKS_PAGE => after = Some(last.clone()),
                _ => return Ok(sums),
            }
        }
    }

    fn totals(&mut self, ask: &Ask) -> Result<Vec<(KeyBuf, i64)>> {
        let wanted = ask.keys.saturating_add(1);
        let window = &mut self.window;
        window.pass(&ask.counter, ask.after.as_ref());
        if window.counter != Some(ask.counter) || (!window.whole && window.totals.len() < wanted) {
            let size = wanted + self.store.len(ask.counter)? / WINDOWS;
            window.totals = self.store.page(ask.counter, ask.after.as_ref(), size)?.into();
            window.whole = window.totals.len() < size;
            window.counter = Some(ask.counter);
            window.after.clone_from(&ask.after);
        }
        Ok(window.totals.iter().take(wanted).cloned().collect())
    }
}

impl Window {
    /// Drops what is not behind `after`; whoever goes back, or to another counter, finds no window.
    fn pass(&mut self, counter: &Def, after: Option<&KeyBuf>) {
        if self.counter != Some(*counter) || self.after.as_ref() > after {
            self.counter = None;
            return;
        }
        while self.totals.front().is_some_and(|(key, _)| Some(key) <= after) {
            self.totals.pop_front();
        }
        self.after = after.cloned();
    }
}

impl Audit for MemoryAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(0)
    }

    fn look(&mut self, ask: &Look) -> Result<Looked> {
        let empty = self.recount(&ask.counter, Bound::Unbounded, 1)?.is_empty();
        let totals = if empty { self.store.len(ask.counter)? as u64 } else { 0 };
        Ok(Looked { empty, totals: totals.min(ask.totals) })
    }

    fn measure(&mut self, ask: &Ask) -> Result<Measured> {
        let from = ask.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let recounts = self.recount(&ask.counter, from, ask.keys.saturating_add(1))?;
        let totals = self.totals(ask)?;
        merge(ask, recounts, totals)
    }

    fn mend(&mut self, ask: &Mend) -> Result<Mended> {
        let stored = self.store.read(ask.counter, &ask.keys)?;
        let mut lacking = Batch::new();
        for (key, stored) in ask.keys.iter().zip(stored) {
            let from_key = self.recount(&ask.counter, Bound::Included(key), 1)?;
            let truth = from_key.first().filter(|recount| recount.key == *key).map_or(0, |recount| recount.total);
            lacking.add_raw(ask.counter, &mut key.clone(), i128::from(truth) - i128::from(stored));
        }
        let corrected = lacking.len() as u64;
        self.store.correct(lacking)?;
        if self.truth.as_ref().is_some_and(|(rollup, _)| *rollup != ask.counter) {
            self.truth = None;
        }
        self.window.pass(&ask.counter, ask.keys.last());
        Ok(Mended { corrected })
    }
}

fn decode<K: Key>(counter: &Def, key: &KeyBuf) -> Result<K> {
    key.decode().map_err(|cause| Error::key(counter, key, cause))
}

impl fmt::Debug for MemoryAudit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources: Vec<&str> = self.sources.iter().map(|(counter, _)| counter.name()).collect();
        f.debug_struct("MemoryAudit").field("sources", &sources).finish_non_exhaustive()
    }
}
