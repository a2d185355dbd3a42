//! The store trait for asynchronous stores: [`Store`](super::Store) for a database behind a
//! connection.

use std::future::Future;

use super::{Applied, TOTALS_PAGE, behind};
use crate::batch::Batch;
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::offset::{self, StreamRange};
use crate::range::KeyRange;

/// An asynchronous store of totals, for example behind a connection.
///
/// [`Store`](super::Store) specifies each method and its errors. Run
/// [`conformance`](crate::conformance) on your own store.
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
        async move { offset::replay_from(stream, self.offset(stream).await?, end) }
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// # Errors
    ///
    /// As [`Store::read`](super::Store::read).
    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> impl Future<Output = Result<Vec<i64>>> + Send;

    /// Returns the first totals of a range, in key order, at most `limit`. Totals of 0 may be among
    /// them.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(KeyBuf, i64)>>> + Send;

    /// Returns the sum of the totals in a range. Costs one scan of the range.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`](super::Store::sum).
    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> impl Future<Output = Result<i64>> + Send;

    /// Returns the next totals after a key, in key order, at most `limit`; the first ones if
    /// `after` is `None`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn page(
        &mut self,
        counter: CounterId,
        after: Option<&KeyBuf>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(KeyBuf, i64)>>> + Send {
        let range = behind(&counter, after);
        async move { self.range(counter, &range?, limit).await }
    }

    /// Returns the total of one key; 0 if it has none.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn total<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>) -> impl Future<Output = Result<i64>> + Send {
        let (id, key) = (counter.id(), [KeyBuf::of::<K>(key)]);
        async move { Ok(self.read(id, &key).await?.first().copied().unwrap_or(0)) }
    }

    /// Returns all totals other than 0, in key order.
    ///
    /// It holds all of them in memory: use it for small counters and tests.
    ///
    /// # Errors
    ///
    /// As [`page`](Self::page).
    fn totals<K: Key + Send>(&mut self, counter: Counter<K>) -> impl Future<Output = Result<Vec<(K, i64)>>> + Send {
        let id = counter.id();
        async move {
            let mut all = Vec::new();
            let mut after = None;
            loop {
                let page = self.page(id, after.as_ref(), TOTALS_PAGE).await?;
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
}
