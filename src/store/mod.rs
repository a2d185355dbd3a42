//! Where totals live: the trait that every store implements, and the stores.

mod asynchronous;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) mod catalogue;
pub(crate) mod memory;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) mod sweep;

pub use asynchronous::AsyncStore;
pub use memory::{MemoryStore, PendingWrite, Snapshot};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use sweep::{Sweep, Swept};

use crate::batch::Batch;
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::offset::{self, StreamRange};
use crate::range::KeyRange;

/// A place where totals live.
///
/// Five methods are to be implemented; run [`conformance`](crate::conformance) over a store of your own, and let [`RollupUpdate::run`](crate::RollupUpdate::run)
/// find what a batch means for rollups.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, MemoryStore, Schema, Store};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn vote(store: &mut impl Store, show: i64) -> keepcount::Result<i64> {
///     let mut batch = Batch::new();
///     batch.add(SHOW_VOTES, show, 1);
///     store.apply(&mut batch)?;
///     store.total(SHOW_VOTES, show)
/// }
/// assert_eq!(vote(&mut MemoryStore::new(&SCHEMA), 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
pub trait Store {
    /// Adds a batch's deltas to the totals, and what climbs from them to rollups, all or nothing. An empty batch touches nothing. Costs O(1) a
    /// delta in memory, O(log totals) in a table or where keys have several parts; for each rollup more, as
    /// [`sum_of`](Counter::sum_of) says.
    ///
    /// The batch is empty afterwards, so that it is not applied twice; after an error it is as it was, and may be applied again. If the
    /// transaction that it was applied in is rolled back, build it again.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::DefinitionConflict`] for a counter that is not this store's; [`Error::Rollup`] for a delta on a rollup;
    /// [`Error::Overflow`] when a delta or a total would leave 64 bits; [`Error::Key`] for a key that the store cannot hold; and what its
    /// database says. [`Error::recovery`] tells them apart.
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied>;

    /// As [`apply`](Self::apply), once for the events that the batch stands for: where all of them were applied before, it does nothing
    /// and says [`skipped`](Applied::skipped), and the caller rolls back the rows that it wrote for them too; the batch is empty then too. The offset moves in the same
    /// transaction as the totals, also with a batch that counts nothing; so an outcome that is not known can always be tried again.
    ///
    /// A caller whose rows cannot be written twice asks [`offset`](Self::offset) before it writes them, under the same lock: in SQLite, in a
    /// transaction that began with BEGIN IMMEDIATE.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply), and [`Error::Gap`] and [`Error::Overlap`] as [`StreamRange::follows`] says; nothing is applied then, and the offset
    /// stays. Where several apply one stream, a gap may be what another is just about to fill.
    fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied>;

    /// The last event of a stream that was applied; 0 where there was none.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn offset(&mut self, stream: &str) -> Result<u64>;

    /// The first event of a stream that is to be delivered after a start, where the last one that its log has is `end`: the one behind the
    /// [offset](Self::offset). Ask before the first event is delivered, for every stream with an offset, and for those whose log is gone with an `end` of 0.
    ///
    /// A log that loses its last events (it was not synced when the power went) and a store that keeps them do not fit: events that come next get
    /// numbers that were applied, and would be skipped one by one, without an error. So a log must be on the disk before what names its position is.
    ///
    /// # Errors
    ///
    /// [`Error::LogTruncated`] when the offset is ahead of the log's end, and as [`offset`](Self::offset).
    fn replay_from(&mut self, stream: &str, end: u64) -> Result<u64> {
        offset::replay_from(stream, self.offset(stream)?, end)
    }

    /// The totals of these keys, in their order; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply), without overflow; [`Error::NotReady`] while the counter, or one that it sums, is to be backfilled.
    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>>;

    /// The first totals of a range, in key order, at most `limit` of them. Totals of 0 may be among them.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>>;

    /// The next totals after a key, in key order, at most `limit` of them; from the first when `after` is none. Totals of 0
    /// may be among them.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn page(&mut self, counter: CounterId, after: Option<&KeyBuf>, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        self.range(counter, &behind(&counter, after)?, limit)
    }

    /// The sum of the totals of a range: how many shows an artist has from a day on, for one. Costs a pass over the range.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), [`Error::Overflow`] where the sum leaves 64 bits, and [`Error::Pruned`] where some of the range was pruned.
    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        sum_by_pages(self, counter, range)
    }

    /// The total of one key; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn total<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64>
    where
        Self: Sized,
    {
        Ok(self.read(counter.id(), &[KeyBuf::of::<K>(key)])?.first().copied().unwrap_or(0))
    }

    /// All totals other than 0, in key order; for small counters and tests: it takes memory for all of them.
    ///
    /// # Errors
    ///
    /// As [`page`](Self::page).
    fn totals<K: Key>(&mut self, counter: Counter<K>) -> Result<Vec<(K, i64)>>
    where
        Self: Sized,
    {
        let id = counter.id();
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.page(id, after.as_ref(), TOTALS_PAGE)?;
            let full = page.len() == TOTALS_PAGE;
            after = page.last().map(|(key, _)| key.clone());
            for (key, total) in page.iter().filter(|(_, total)| *total != 0) {
                all.push((key.decode().map_err(|cause| Error::key(&id, key, cause))?, *total));
            }
            if !full {
                return Ok(all);
            }
        }
    }
}

impl<S: Store + ?Sized> Store for &mut S {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        (**self).apply(batch)
    }

    fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        (**self).apply_idempotent(batch, stream_range)
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        (**self).offset(stream)
    }

    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        (**self).read(counter, keys)
    }

    fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        (**self).range(counter, range, limit)
    }

    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        (**self).sum(counter, range)
    }
}

pub(crate) const TOTALS_PAGE: usize = 4096;

/// The keys behind one, which must be a whole key: a beginning would stand for all that begin so.
pub(crate) fn behind(counter: &CounterId, after: Option<&KeyBuf>) -> Result<KeyRange> {
    if let Some(after) = after {
        counter.parts().values(after).map_err(|cause| Error::key(counter, after, cause))?;
    }
    Ok(KeyRange::after(after))
}

/// By the counts.
impl PartialEq for Applied {
    fn eq(&self, other: &Self) -> bool {
        (self.totals, self.statements, self.skipped) == (other.totals, other.statements, other.skipped)
    }
}

impl Eq for Applied {}

fn sum_by_pages(store: &mut (impl Store + ?Sized), counter: CounterId, range: &KeyRange) -> Result<i64> {
    let mut sum = 0_i128;
    let mut range = range.clone();
    loop {
        let page = store.range(counter, &range, TOTALS_PAGE)?;
        sum += page.iter().map(|(_, total)| i128::from(*total)).sum::<i128>();
        match page.last() {
            Some((last, _)) if page.len() == TOTALS_PAGE => range = range.behind(last),
            _ => return i64::try_from(sum).map_err(|_| sum_overflow(&counter)),
        }
    }
}

pub(crate) fn sum_overflow(counter: &CounterId) -> Error {
    Error::Overflow { counter: counter.name(), key: "of a range".to_owned(), what: "sum" }
}

/// What an apply did.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Applied {
    /// Totals that were written, those of rollups included.
    pub totals: u64,
    /// Statements on tables of totals that wrote, once for each total in SQLite and each counter in PostgreSQL, and lines of leaderboards; 0 in memory.
    pub statements: u64,
    /// Whether the batch's events were applied before, so that nothing was done now; the caller's rows of them are to be rolled back.
    pub skipped: bool,
    /// What was written, where that is more or less than the batch.
    expanded: Option<Box<Batch>>,
}

impl Applied {
    /// So many totals by so many statements: for a store of your own.
    #[must_use]
    pub const fn new(totals: u64, statements: u64) -> Self {
        Self { totals, statements, skipped: false, expanded: None }
    }

    /// Nothing, because the batch's events were applied before: for a store of your own.
    #[must_use]
    pub fn skipped() -> Self {
        Self { skipped: true, expanded: Some(Box::default()), ..Self::default() }
    }

    /// The same, where more than the caller's batch was written, or less: what climbed to rollups, what was pruned before.
    #[must_use]
    pub fn of(mut self, written: Batch) -> Self {
        self.expanded = Some(Box::new(written));
        self
    }

    /// Every delta that was added when this batch was applied: its own, and what climbed to rollups. A ranking follows them. Ask before
    /// anything is added to the batch, or it is cleared.
    pub fn deltas<'a>(&'a self, batch: &'a Batch) -> impl Iterator<Item = (CounterId, &'a KeyBuf, i128)> {
        let (written, spent) = self.expanded.as_deref().map_or((batch, true), |expanded| (expanded, false));
        // Where nothing was written, what the batch holds was told by an apply before.
        let most = if self.totals == 0 { 0 } else { usize::MAX };
        written.applied_deltas(spent).take(most)
    }
}

/// A change of a total from one 64-bit integer to another, as changes of 64 bits each: one, or two where the way is longer. On the
/// way the total stays between the two.
pub(crate) fn steps(mut change: i128) -> impl Iterator<Item = i64> {
    std::iter::from_fn(move || {
        let step = i64::try_from(change).unwrap_or(if change < 0 { i64::MIN } else { i64::MAX });
        change -= i128::from(step);
        (step != 0).then_some(step)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::Schema;

    const VOTES: Counter<i64> = Counter::new("votes");
    const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

    /// A store that has nothing but what every store must: totals of 1, and how many pages of them were read.
    struct Plain(BTreeMap<KeyBuf, i64>, usize);

    impl Plain {
        fn of(totals: usize) -> Self {
            let keys = (0_i64..).take(totals).map(KeyBuf::of::<i64>);
            Self(keys.map(|key| (key, 1)).collect(), 0)
        }
    }

    impl Store for Plain {
        fn apply(&mut self, _: &mut Batch) -> Result<Applied> {
            unreachable!("nobody writes")
        }

        fn apply_idempotent(&mut self, _: &mut Batch, _: &StreamRange<'_>) -> Result<Applied> {
            unreachable!("nobody writes")
        }

        fn offset(&mut self, _: &str) -> Result<u64> {
            Ok(0)
        }

        fn read(&mut self, _: CounterId, _: &[KeyBuf]) -> Result<Vec<i64>> {
            unreachable!("only ranges are read")
        }

        fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
            SCHEMA.position(&counter)?;
            self.1 += 1;
            let inside = self.0.iter().filter(|(key, _)| range.contains(key));
            Ok(inside.take(limit).map(|(key, total)| (key.clone(), *total)).collect())
        }
    }

    #[test]
    fn what_is_not_read_in_one_page_is_summed_and_listed_whole() {
        for (totals, pages) in [(0, 1), (1, 1), (TOTALS_PAGE - 1, 1), (TOTALS_PAGE, 2), (2 * TOTALS_PAGE + 7, 3)] {
            let mut store = Plain::of(totals);
            assert_eq!(store.sum(VOTES.id(), &KeyRange::after(None)).unwrap(), i64::try_from(totals).unwrap());
            assert_eq!(store.1, pages);
            let listed = store.totals(VOTES).unwrap();
            assert!(listed.into_iter().eq((0..).take(totals).map(|key| (key, 1))));
            assert_eq!(store.1, 2 * pages);
        }
    }

    #[test]
    fn what_applies_did_is_compared_by_its_counts() {
        let one = Applied::new(3, 2);
        assert_eq!(one, one.clone().of(Batch::new()));
        for other in [Applied::new(4, 2), Applied::new(3, 1), Applied { skipped: true, ..one.clone() }] {
            assert_ne!(one, other);
        }
    }
}
