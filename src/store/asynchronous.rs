//! The store trait for asynchronous stores: [`Store`](super::Store) for a database behind a
//! connection.

use std::future::Future;

use super::{Applied, TOTALS_PAGE, encoded, pages};
use crate::batch::Batch;
use crate::counter::key_range::{CounterRange, KeyRange};
use crate::counter::{Counter, CounterId};
use crate::error::Result;
use crate::key::{AsKey, Key, KeyBuf};
use crate::stream_range::{self, StreamRange};

/// An asynchronous store of totals, for example behind a connection.
///
/// [`Store`](super::Store) specifies each method and its errors. Run
/// `conformance` on your own store.
///
/// If you drop a future before it is ready, its effect is unknown, as with a commit whose answer
/// was lost: it may have been applied or not. You can retry
/// [`apply_idempotent`](Self::apply_idempotent) unchanged. Inside your own transaction, a part may
/// have been applied: roll that transaction back.
pub trait AsyncStore: Send {
    /// Adds a batch's deltas, and the rollup deltas that follow from them, to the totals: all or
    /// nothing.
    ///
    /// An empty batch changes nothing. The batch is empty afterwards. After an error, or if the
    /// future is dropped, the batch is unchanged.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`](super::Store::apply).
    fn apply(&mut self, batch: &mut Batch) -> impl Future<Output = Result<Applied>> + Send;

    /// Applies the batch like [`apply`](Self::apply), but once only for the events that it stands
    /// for.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_idempotent`](super::Store::apply_idempotent).
    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> impl Future<Output = Result<Applied>> + Send;

    /// Returns the last applied event of a stream; 0 if none was applied.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn offset(&mut self, stream: &str) -> impl Future<Output = Result<u64>> + Send;

    /// Returns the first event of a stream to deliver after a start, given `end`, the last event in
    /// its log.
    ///
    /// # Errors
    ///
    /// As [`Store::replay_from`](super::Store::replay_from).
    fn replay_from(&mut self, stream: &str, end: u64) -> impl Future<Output = Result<u64>> + Send {
        async move { stream_range::replay_from(stream, self.offset(stream).await?, end) }
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// Write it in a store of your own. To read, use [`total`](Self::total) and
    /// [`totals_of`](Self::totals_of).
    ///
    /// # Errors
    ///
    /// As [`Store::read_keys`](super::Store::read_keys).
    fn read_keys(
        &mut self,
        counter: CounterId,
        keys: &[KeyBuf],
    ) -> impl Future<Output = Result<Vec<i64>>> + Send;

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
    ) -> impl Future<Output = Result<Vec<(KeyBuf, i64)>>> + Send;

    /// Returns the sum of the totals in a range, read page by page.
    ///
    /// Write it in a store of your own that can do better. To read, use [`sum`](Self::sum).
    ///
    /// # Errors
    ///
    /// As [`Store::sum`](super::Store::sum).
    fn sum_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
    ) -> impl Future<Output = Result<i64>> + Send {
        let mut sum = pages::Sum::of(counter, range);
        async move {
            while let Some(range) = sum.ask() {
                let page = self.read_range(counter, range, TOTALS_PAGE).await?;
                sum.take(&page);
            }
            sum.sum()
        }
    }

    /// Returns the total of one key; 0 if it has none.
    ///
    /// # Errors
    ///
    /// As [`Store::total`](super::Store::total).
    fn total<K: Key>(
        &mut self,
        counter: Counter<K>,
        key: impl AsKey<K>,
    ) -> impl Future<Output = Result<i64>> + Send {
        let (id, key) = (counter.id(), [KeyBuf::of::<K>(key)]);
        async move { Ok(self.read_keys(id, &key).await?.first().copied().unwrap_or(0)) }
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    fn totals_of<K: Key>(
        &mut self,
        counter: Counter<K>,
        keys: impl IntoIterator<Item: AsKey<K>>,
    ) -> impl Future<Output = Result<Vec<i64>>> + Send {
        let (id, keys) = (counter.id(), encoded(keys));
        async move { self.read_keys(id, &keys).await }
    }

    /// Returns the first totals of a range, in key order, at most `limit`. Totals of 0 may be among
    /// them.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    fn range<K: Key>(
        &mut self,
        range: CounterRange<K>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(K, i64)>>> + Send {
        async move {
            let page = self.read_range(*range.counter(), range.keys(), limit).await?;
            pages::typed(range.counter(), &page).collect()
        }
    }

    /// Returns the sum of the totals in a range. Costs one scan of the range.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`](super::Store::sum).
    fn sum<K: Key>(&mut self, range: CounterRange<K>) -> impl Future<Output = Result<i64>> + Send {
        async move { self.sum_range(*range.counter(), range.keys()).await }
    }

    /// Returns all totals other than 0, in key order.
    ///
    /// It holds all of them in memory: use it for small counters and tests.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    fn totals<K: Key + Send>(
        &mut self,
        counter: Counter<K>,
    ) -> impl Future<Output = Result<Vec<(K, i64)>>> + Send {
        let mut totals = pages::Totals::of(counter.id());
        async move {
            while let Some(range) = totals.ask() {
                let page = self.read_range(counter.id(), range, TOTALS_PAGE).await?;
                totals.take(&page)?;
            }
            Ok(totals.all)
        }
    }
}

/// The methods of a store that derefs to another one.
macro_rules! forward_async_store {
    () => {
        fn apply(&mut self, batch: &mut Batch) -> impl Future<Output = Result<Applied>> + Send {
            (**self).apply(batch)
        }

        fn apply_idempotent(
            &mut self,
            batch: &mut Batch,
            stream_range: &StreamRange<'_>,
        ) -> impl Future<Output = Result<Applied>> + Send {
            (**self).apply_idempotent(batch, stream_range)
        }

        fn offset(&mut self, stream: &str) -> impl Future<Output = Result<u64>> + Send {
            (**self).offset(stream)
        }

        fn read_keys(
            &mut self,
            counter: CounterId,
            keys: &[KeyBuf],
        ) -> impl Future<Output = Result<Vec<i64>>> + Send {
            (**self).read_keys(counter, keys)
        }

        fn read_range(
            &mut self,
            counter: CounterId,
            range: &KeyRange,
            limit: usize,
        ) -> impl Future<Output = Result<Vec<(KeyBuf, i64)>>> + Send {
            (**self).read_range(counter, range, limit)
        }

        fn sum_range(
            &mut self,
            counter: CounterId,
            range: &KeyRange,
        ) -> impl Future<Output = Result<i64>> + Send {
            (**self).sum_range(counter, range)
        }
    };
}
#[cfg(feature = "sql")]
pub(crate) use forward_async_store;

impl<S: AsyncStore + ?Sized> AsyncStore for &mut S {
    forward_async_store!();
}
