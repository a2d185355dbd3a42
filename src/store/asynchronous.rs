//! The store trait for stores that wait: what `Store` is, for a database that is asked over a connection.

use std::future::Future;

use super::{Applied, TOTALS_PAGE, behind};
use crate::batch::Batch;
use crate::counter::{Counter, CounterId};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::offset::{self, StreamRange};
use crate::range::KeyRange;

/// A place where totals live that is asked over a connection; [`Store`](super::Store) says what each method does and how it fails.
///
/// Run [`conformance`](crate::conformance) over a store of your own. A future that is dropped before it is ready may have applied or not, as a
/// commit whose answer was lost; [`apply_idempotent`](Self::apply_idempotent) may be tried again as it is. Within a caller's transaction it may have applied a part: roll that back.
pub trait AsyncStore: Send {
    /// Adds a batch's deltas to the totals, and what climbs from them to rollups, all or nothing. An empty batch touches nothing. The batch is empty afterwards;
    /// after an error, and where the future is dropped, it is as it was.
    ///
    /// # Errors
    ///
    /// As [`Store::apply`](super::Store::apply).
    fn apply(&mut self, batch: &mut Batch) -> impl Future<Output = Result<Applied>> + Send;

    /// As [`apply`](Self::apply), once for the events that the batch stands for.
    ///
    /// # Errors
    ///
    /// As [`Store::apply_idempotent`](super::Store::apply_idempotent).
    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> impl Future<Output = Result<Applied>> + Send;

    /// The last event of a stream that was applied; 0 where there was none.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn offset(&mut self, stream: &str) -> impl Future<Output = Result<u64>> + Send;

    /// The first event of a stream that is to be delivered after a start, where the last one that its log has is `end`.
    ///
    /// # Errors
    ///
    /// As [`Store::replay_from`](super::Store::replay_from).
    fn replay_from(&mut self, stream: &str, end: u64) -> impl Future<Output = Result<u64>> + Send {
        async move { offset::replay_from(stream, self.offset(stream).await?, end) }
    }

    /// The totals of these keys, in their order; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`Store::read`](super::Store::read).
    fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> impl Future<Output = Result<Vec<i64>>> + Send;

    /// The first totals of a range, in key order, at most `limit` of them. Totals of 0 may be among them.
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

    /// The sum of the totals of a range. Costs a pass over the range.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`](super::Store::sum).
    fn sum(&mut self, counter: CounterId, range: &KeyRange) -> impl Future<Output = Result<i64>> + Send;

    /// The next totals after a key, in key order, at most `limit` of them; from the first when `after` is none.
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

    /// The total of one key; 0 where there is none.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn total<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>) -> impl Future<Output = Result<i64>> + Send {
        let (id, key) = (counter.id(), [KeyBuf::of::<K>(key)]);
        async move { Ok(self.read(id, &key).await?.first().copied().unwrap_or(0)) }
    }

    /// All totals other than 0, in key order; for small counters and tests: it takes memory for all of them.
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
