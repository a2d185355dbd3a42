//! Reads that take several pages, as state machines: [`Store`](super::Store),
//! [`AsyncStore`](super::AsyncStore) and the SQL engine ask a store what `ask` says and hand each
//! answer to `take`.

use super::{TOTALS_PAGE, sum_overflow};
use crate::counter::CounterId;
use crate::counter::key_range::KeyRange;
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf};

/// What is left to read of a range.
struct Pages(Option<KeyRange>);

impl Pages {
    /// Takes note of a page: one that is not full is the last.
    fn take(&mut self, page: &[(KeyBuf, i64)]) {
        let last = page.last().filter(|_| page.len() == TOTALS_PAGE);
        self.0 = last.and_then(|(last, _)| self.0.take().map(|range| range.behind(last)));
    }
}

/// The sum of a range's totals.
pub(crate) struct Sum {
    counter: CounterId,
    pages: Pages,
    so_far: i128,
}

impl Sum {
    pub(crate) fn of(counter: CounterId, range: &KeyRange) -> Self {
        Self { counter, pages: Pages(Some(range.clone())), so_far: 0 }
    }

    /// The range whose first [`TOTALS_PAGE`] totals to read next; `None` at the end.
    pub(crate) const fn ask(&self) -> Option<&KeyRange> {
        self.pages.0.as_ref()
    }

    pub(crate) fn take(&mut self, page: &[(KeyBuf, i64)]) {
        self.so_far += page.iter().map(|(_, total)| i128::from(*total)).sum::<i128>();
        self.pages.take(page);
    }

    pub(crate) fn sum(&self) -> Result<i64> {
        i64::try_from(self.so_far).map_err(|_| sum_overflow(&self.counter))
    }
}

/// A range's totals other than 0.
pub(crate) struct Totals<K> {
    counter: CounterId,
    pages: Pages,
    pub(crate) all: Vec<(K, i64)>,
}

impl<K: Key> Totals<K> {
    pub(crate) const fn of(counter: CounterId) -> Self {
        Self { counter, pages: Pages(Some(KeyRange::ALL)), all: Vec::new() }
    }

    /// As [`Sum::ask`].
    pub(crate) const fn ask(&self) -> Option<&KeyRange> {
        self.pages.0.as_ref()
    }

    pub(crate) fn take(&mut self, page: &[(KeyBuf, i64)]) -> Result<()> {
        let counts = page.iter().filter(|(_, total)| *total != 0);
        self.all.extend(typed(&self.counter, counts).collect::<Result<Vec<_>>>()?);
        self.pages.take(page);
        Ok(())
    }
}

/// Decodes the keys of totals.
pub(crate) fn typed<'a, K: Key>(
    counter: &'a CounterId,
    totals: impl IntoIterator<Item = &'a (KeyBuf, i64)> + 'a,
) -> impl Iterator<Item = Result<(K, i64)>> + 'a {
    totals.into_iter().map(move |(key, total)| {
        let decoded = key.decode().map_err(|cause| Error::key(counter, key, cause))?;
        Ok((decoded, *total))
    })
}
