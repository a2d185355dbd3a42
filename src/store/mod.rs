//! The trait that every store of totals implements, and the stores.

mod asynchronous;
#[cfg(feature = "memory")]
pub(crate) mod memory;
pub(crate) mod pages;
#[cfg(feature = "sql")]
pub(crate) mod sweep_zeros;

pub use asynchronous::AsyncStore;
#[cfg(feature = "sql")]
pub(crate) use asynchronous::forward_async_store;
#[cfg(feature = "memory")]
pub use memory::{MemoryStore, PendingWrite, Snapshot};
#[cfg(feature = "sql")]
pub use sweep_zeros::{Sweep, Swept};

use crate::batch::Batch;
use crate::counter::key_range::{CounterRange, KeyRange};
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::observe::{self, Backend, Began};
use crate::stream_range::{self, StreamRange};

/// A store of totals.
///
/// A store of your own implements five methods. Run `conformance` on it, and let
/// [`RollupUpdate::run`](crate::backend::RollupUpdate::run) compute what a batch means for rollups.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, MemoryStore, Store};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// fn vote(mut store: impl Store, show: i64) -> keepcount::Result<i64> {
///     let mut batch = Batch::new();
///     batch.add(SHOW_VOTES, show, 1);
///     store.apply(&mut batch)?;
///     store.total(SHOW_VOTES, show)
/// }
/// assert_eq!(vote(&MemoryStore::new(&SCHEMA), 7)?, 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
pub trait Store {
    /// Adds a batch's deltas, and the rollup deltas that follow from them, to the totals: all or
    /// nothing.
    ///
    /// An empty batch changes nothing. A delta costs O(1) in memory, and O(log totals) in a table
    /// or if keys have several parts. Each rollup adds to that, as [`sum_of`](Counter::sum_of)
    /// says.
    ///
    /// The batch is empty afterwards, so that you cannot apply it twice. After an error it is
    /// unchanged, and you may apply it again. If the transaction that it was applied in is rolled
    /// back, build the batch again.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::DefinitionConflict`] for a counter that this store
    /// does not have; [`Error::Rollup`] for a delta on a rollup; [`Error::Overflow`] if a delta or
    /// a total would leave 64 bits; [`Error::Key`] for a key that the store cannot hold; and errors
    /// of the database. [`Error::recovery`] tells them apart.
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied>;

    /// Applies the batch like [`apply`](Self::apply), but once only for the events that it stands
    /// for.
    ///
    /// If all of them were applied before, it does nothing and returns
    /// [`skipped`](Applied::skipped); the batch is empty then too. Roll back the rows that you
    /// wrote for them. The offset moves in the same transaction as the totals, also for a batch
    /// that counts nothing. So you can always retry after an unknown outcome.
    ///
    /// A batch that [`check_batch`](crate::Schema::check_batch) refuses is refused first, whatever
    /// its events are.
    ///
    /// If your rows cannot be written twice, read the [`offset`](Self::offset) before you write
    /// them, under the same lock: in SQLite, in a transaction that began with BEGIN IMMEDIATE.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply), and [`Error::Gap`] and [`Error::Overlap`] as
    /// [`StreamRange::follows`] says; then nothing is applied and the offset stays. If several
    /// processes apply one stream, another may be about to fill a gap.
    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied>;

    /// Returns the last applied event of a stream; 0 if none was applied.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn offset(&mut self, stream: &str) -> Result<u64>;

    /// Returns the first event of a stream to deliver after a start, given `end`, the last event in
    /// its log.
    ///
    /// It is the event after the [offset](Self::offset). Call it before you deliver the first
    /// event: for every stream with an offset, and with an `end` of 0 for a stream whose log is
    /// gone.
    ///
    /// A log can lose its last events, for example if it was not synced when the power failed. If
    /// the store keeps them, the two do not match: new events get numbers that were applied
    /// already, and each would be skipped without an error. So sync the log to disk before anything
    /// that records a position in it.
    ///
    /// # Errors
    ///
    /// [`Error::LogTruncated`] if the offset is ahead of the log's end, and as
    /// [`offset`](Self::offset).
    fn replay_from(&mut self, stream: &str, end: u64) -> Result<u64> {
        stream_range::replay_from(stream, self.offset(stream)?, end)
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// Write it in a store of your own. To read, use [`total`](Self::total) and
    /// [`totals_of`](Self::totals_of).
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply), without overflow; [`Error::NotReady`] while a backfill of the
    /// counter, or of one that it sums, is pending.
    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>>;

    /// Returns the first totals of a range, in key order, at most `limit`. Totals of 0 may be among
    /// them.
    ///
    /// Write it in a store of your own. To read, use [`range`](Self::range).
    ///
    /// # Errors
    ///
    /// As [`read_keys`](Self::read_keys).
    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>>;

    /// Returns the sum of the totals in a range, read page by page.
    ///
    /// Write it in a store of your own that can do better. To read, use [`sum`](Self::sum).
    ///
    /// # Errors
    ///
    /// As [`sum`](Self::sum).
    fn sum_range(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        let mut sum = pages::Sum::of(counter, range);
        while let Some(range) = sum.ask() {
            let page = self.read_range(counter, range, TOTALS_PAGE)?;
            sum.take(&page);
        }
        sum.sum()
    }

    /// Returns the total of one key; 0 if it has none.
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply), without overflow; [`Error::NotReady`] while a backfill of the
    /// counter, or of one that it sums, is pending.
    fn total<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64>
    where
        Self: Sized,
    {
        Ok(self.read_keys(counter.id(), &[KeyBuf::of::<K>(key)])?.first().copied().unwrap_or(0))
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore, Store};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let mut store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// store.apply(&mut batch)?;
    /// assert_eq!(store.totals_of(SHOW_VOTES, [8, 7])?, [0, 1]);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    fn totals_of<K: Key>(
        &mut self,
        counter: Counter<K>,
        keys: impl IntoIterator<Item: AsKey<K>>,
    ) -> Result<Vec<i64>>
    where
        Self: Sized,
    {
        self.read_keys(counter.id(), &encoded(keys))
    }

    /// Returns the first totals of a range, in key order, at most `limit`. Totals of 0 may be among
    /// them.
    ///
    /// [`CounterRange::after`] gives the range of the next page.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    fn range<K: Key>(&mut self, range: CounterRange<K>, limit: usize) -> Result<Vec<(K, i64)>>
    where
        Self: Sized,
    {
        let page = self.read_range(*range.counter(), range.keys(), limit)?;
        pages::typed(range.counter(), &page).collect()
    }

    /// Returns the sum of the totals in a range, for example an artist's shows from one day on.
    /// Costs one scan of the range.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total), [`Error::Overflow`] if the sum leaves 64 bits, and
    /// [`Error::Pruned`] if a part of the range was pruned.
    fn sum<K: Key>(&mut self, range: CounterRange<K>) -> Result<i64>
    where
        Self: Sized,
    {
        self.sum_range(*range.counter(), range.keys())
    }

    /// Returns all totals other than 0, in key order.
    ///
    /// It holds all of them in memory: use it for small counters and tests.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    fn totals<K: Key>(&mut self, counter: Counter<K>) -> Result<Vec<(K, i64)>>
    where
        Self: Sized,
    {
        let mut totals = pages::Totals::of(counter.id());
        while let Some(range) = totals.ask() {
            let page = self.read_range(counter.id(), range, TOTALS_PAGE)?;
            totals.take(&page)?;
        }
        Ok(totals.all)
    }
}

/// The methods of a store that derefs to another one.
macro_rules! forward_store {
    () => {
        fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
            (**self).apply(batch)
        }

        fn apply_idempotent(
            &mut self,
            batch: &mut Batch,
            stream_range: &StreamRange<'_>,
        ) -> Result<Applied> {
            (**self).apply_idempotent(batch, stream_range)
        }

        fn offset(&mut self, stream: &str) -> Result<u64> {
            (**self).offset(stream)
        }

        fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
            (**self).read_keys(counter, keys)
        }

        fn read_range(
            &mut self,
            counter: CounterId,
            range: &KeyRange,
            limit: usize,
        ) -> Result<Vec<(KeyBuf, i64)>> {
            (**self).read_range(counter, range, limit)
        }

        fn sum_range(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
            (**self).sum_range(counter, range)
        }
    };
}
#[cfg(feature = "sql")]
pub(crate) use forward_store;

impl<S: Store + ?Sized> Store for &mut S {
    forward_store!();
}

/// How many totals are read at once.
pub(crate) const TOTALS_PAGE: usize = 4096;

/// Returns the range of keys after one, which must be a whole key: a prefix would stand for all
/// keys that begin with it.
pub(crate) fn behind(counter: &CounterId, after: Option<&KeyBuf>) -> Result<KeyRange> {
    if let Some(after) = after {
        counter.parts().values(after).map_err(|cause| Error::key(counter, after, cause))?;
    }
    Ok(KeyRange::after(after))
}

/// Compares the counts only.
impl PartialEq for Applied {
    fn eq(&self, other: &Self) -> bool {
        (self.totals, self.statements, self.skipped)
            == (other.totals, other.statements, other.skipped)
    }
}

impl Eq for Applied {}

fn encoded<K: Key>(keys: impl IntoIterator<Item: AsKey<K>>) -> Vec<KeyBuf> {
    keys.into_iter().map(KeyBuf::of::<K>).collect()
}

pub(crate) fn sum_overflow(counter: &CounterId) -> Error {
    Error::Overflow { counter: counter.name(), key: "of a range".to_owned(), what: "sum" }
}

/// The result of an apply.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Applied {
    /// Totals written, including those of rollups.
    pub totals: u64,
    /// Statements that wrote: on tables of totals, one for each total in SQLite and one for each
    /// counter in PostgreSQL; and on rows of leaderboards. 0 in memory.
    pub statements: u64,
    /// Whether the batch's events were applied before, so that nothing was done now. Roll back the
    /// rows that you wrote for them.
    pub skipped: bool,
    /// What was written, if that is more or less than the batch.
    expanded: Option<Box<Batch>>,
}

impl Applied {
    /// Reports the numbers of totals and statements, for a store of your own.
    #[must_use]
    pub const fn new(totals: u64, statements: u64) -> Self {
        Self { totals, statements, skipped: false, expanded: None }
    }

    /// Reports that nothing was done because the batch's events were applied before, for a store of
    /// your own.
    #[must_use]
    pub fn skipped() -> Self {
        Self { skipped: true, expanded: Some(Box::default()), ..Self::default() }
    }

    /// Reports this apply of a batch.
    #[inline]
    pub(crate) fn observe(&self, backend: Backend, began: Began, batch: &Batch) {
        observe::stored(backend, began, (self.totals, self.statements), || self.deltas(batch));
    }

    /// Adds what was written, if it is more or less than the caller's batch: deltas of rollups were
    /// added, or keys below a cutoff left out.
    #[must_use]
    pub fn of(mut self, written: Batch) -> Self {
        self.expanded = Some(Box::new(written));
        self
    }

    /// Returns every delta that this batch's apply added: its own and those of rollups. A
    /// leaderboard follows them.
    ///
    /// Call it before you add anything to the batch or clear it.
    pub fn deltas<'a>(
        &'a self,
        batch: &'a Batch,
    ) -> impl Iterator<Item = (CounterId, &'a KeyBuf, i128)> {
        let (written, spent) =
            self.expanded.as_deref().map_or((batch, true), |expanded| (expanded, false));
        // If nothing was written, the batch's deltas were reported by an earlier apply.
        let most = if self.totals == 0 { 0 } else { usize::MAX };
        written.applied_deltas(spent).take(most)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::Schema;

    const VOTES: Counter<i64> = Counter::new("votes");
    const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

    /// A store with nothing but what every store must have: totals of 1, and the number of pages
    /// read.
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

        fn read_keys(&mut self, _: CounterId, _: &[KeyBuf]) -> Result<Vec<i64>> {
            unreachable!("only ranges are read")
        }

        fn read_range(
            &mut self,
            counter: CounterId,
            range: &KeyRange,
            limit: usize,
        ) -> Result<Vec<(KeyBuf, i64)>> {
            SCHEMA.position(&counter)?;
            self.1 += 1;
            let inside = self.0.iter().filter(|(key, _)| range.contains(key));
            Ok(inside.take(limit).map(|(key, total)| (key.clone(), *total)).collect())
        }
    }

    #[test]
    fn what_is_not_read_in_one_page_is_summed_and_listed_whole() {
        for (totals, pages) in
            [(0, 1), (1, 1), (TOTALS_PAGE - 1, 1), (TOTALS_PAGE, 2), (2 * TOTALS_PAGE + 7, 3)]
        {
            let mut store = Plain::of(totals);
            assert_eq!(store.sum(VOTES.all()).unwrap(), i64::try_from(totals).unwrap());
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
        for other in
            [Applied::new(4, 2), Applied::new(3, 1), Applied { skipped: true, ..one.clone() }]
        {
            assert_ne!(one, other);
        }
    }
}
