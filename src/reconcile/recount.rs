//! Recounts by `tally`: what one row adds to a counter, and the sums by key of rows in key order.

use std::cmp::Ordering;
use std::ops::Bound;

use crate::batch::Batch;
use crate::batch::Record;
use crate::counter::CounterId;
#[cfg(feature = "sql")]
use crate::error::shortened;
use crate::error::{Error, Result};
use crate::key::KeyBuf;

use super::audit::Recount;

/// Returns what a row adds to one counter by its `tally`: nothing, or an amount at one key.
///
/// `scratch` is any batch. It is cleared first, so that one serves for many rows.
pub(super) fn share<R: Record + ?Sized>(
    counter: &CounterId,
    row: &R,
    scratch: &mut Batch,
) -> Result<Option<(KeyBuf, i64)>> {
    tally(row, scratch)?;
    share_of(counter, scratch)
}

/// Returns what the only row of a batch adds to one counter, as [`share`] does.
pub(super) fn share_of(counter: &CounterId, tallied: &Batch) -> Result<Option<(KeyBuf, i64)>> {
    let mut deltas = tallied.deltas().filter(|(id, ..)| id == counter);
    let Some((_, key, amount)) = deltas.next() else { return Ok(None) };
    if deltas.next().is_some() {
        let reason = "its tally adds to several keys of this counter; make the source give one row for each of them";
        return Err(Error::source(counter, Some(key), reason));
    }
    let amount = i64::try_from(amount).map_err(|_| Error::overflow(counter, key, "recount"))?;
    Ok(Some((key.clone(), amount)))
}

/// Puts what a row adds by its `tally` into `scratch`, instead of what was there.
pub(super) fn tally<R: Record + ?Sized>(row: &R, scratch: &mut Batch) -> Result<()> {
    scratch.clear();
    scratch.insert(row);
    scratch.check_records()
}

/// Adds the row's key to an error, now that it is known.
#[cfg(feature = "sql")]
pub(super) fn of_row(error: Error, counter: &CounterId, row: Option<&KeyBuf>) -> Error {
    match error {
        Error::Source { counter: name, key: None, reason, cause } => Error::Source {
            counter: name,
            key: row.map(|row| shortened(&counter.show(row))),
            reason,
            cause,
        },
        other => other,
    }
}

/// Sums rows in key order, up to `limit` keys, and stops reading at the first row of the next key.
/// Rows before `from` are skipped, so that a source may start too early.
pub(super) fn sum_by_key(
    counter: &CounterId,
    from: Bound<&KeyBuf>,
    limit: usize,
    rows: impl Iterator<Item = Result<Option<(KeyBuf, i64)>>>,
) -> Result<Vec<Recount>> {
    let mut sums = SumsByKey::new(counter, from, limit);
    for row in rows {
        if !sums.add(row?)? {
            break;
        }
    }
    sums.finish()
}

/// The sum of a key's rows so far. In 128 bits, because the rows may come in an order in which it
/// leaves 64 bits and returns.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeySum {
    total: i128,
    rows: u64,
}

impl KeySum {
    pub(super) fn add(&mut self, amount: i64) {
        self.total = self.total.saturating_add(amount.into());
        self.rows += 1;
    }

    /// The whole sum, once every row of the key was added.
    pub(super) fn of(self, counter: &CounterId, key: KeyBuf) -> Result<Recount> {
        match i64::try_from(self.total) {
            Ok(total) => Ok(Recount { key, total, rows: self.rows }),
            Err(_) => Err(Error::overflow(counter, &key, "recount")),
        }
    }
}

/// Sums rows that come in key order; see [`sum_by_key`].
pub(super) struct SumsByKey<'k> {
    counter: &'k CounterId,
    from: Bound<&'k KeyBuf>,
    limit: usize,
    /// The last row's key.
    before: Option<KeyBuf>,
    /// The sum of its rows, unless the key is before `from`.
    sum: Option<KeySum>,
    sums: Vec<Recount>,
}

impl<'k> SumsByKey<'k> {
    pub(super) const fn new(counter: &'k CounterId, from: Bound<&'k KeyBuf>, limit: usize) -> Self {
        Self { counter, from, limit, before: None, sum: None, sums: Vec::new() }
    }

    /// Adds one row's share; returns whether there is room for the next row.
    pub(super) fn add(&mut self, share: Option<(KeyBuf, i64)>) -> Result<bool> {
        let Some((key, amount)) = share else { return Ok(true) };
        match self.before.as_ref().map(|before| key.cmp(before)) {
            Some(Ordering::Less) => {
                let reason = "the rows are not in key order";
                return Err(Error::source(self.counter, Some(&key), reason));
            }
            Some(Ordering::Equal) => {}
            Some(Ordering::Greater) | None => {
                self.end_key()?;
                let is_early = match self.from {
                    Bound::Unbounded => false,
                    Bound::Included(from) => key < *from,
                    Bound::Excluded(from) => key <= *from,
                };
                if !is_early && self.sums.len() == self.limit {
                    return Ok(false);
                }
                self.sum = (!is_early).then(KeySum::default);
                self.before = Some(key);
            }
        }
        if let Some(sum) = &mut self.sum {
            sum.add(amount);
        }
        Ok(true)
    }

    fn end_key(&mut self) -> Result<()> {
        if let (Some(sum), Some(key)) = (self.sum.take(), self.before.take()) {
            self.sums.push(sum.of(self.counter, key)?);
        }
        Ok(())
    }

    /// The sums of all keys whose rows were added.
    pub(super) fn finish(mut self) -> Result<Vec<Recount>> {
        self.end_key()?;
        Ok(self.sums)
    }
}

/// Returns the error for a row that SQL counts differently from its tally.
#[cfg(feature = "sql")]
pub(super) fn mismatch(
    counter: &CounterId,
    tally: Option<&(KeyBuf, i64)>,
    sql: Option<&(KeyBuf, i64)>,
) -> Error {
    let show = |key: &KeyBuf| shortened(&counter.show(key));
    let key = tally.or(sql).map_or_else(String::new, |(key, _)| show(key));
    let text = |share: Option<&(KeyBuf, i64)>| match share {
        Some((key, amount)) => format!("{amount} to key {}", show(key)),
        None => "nothing".to_owned(),
    };
    Error::DefinitionMismatch { counter: counter.name(), key, sql: text(sql), tally: text(tally) }
}

/// Refuses a row that a source lists under another key than its tally gives.
#[cfg(feature = "sql")]
pub(super) fn same_key(
    counter: &CounterId,
    tally: Option<(KeyBuf, i64)>,
    listed: &KeyBuf,
) -> Result<Option<(KeyBuf, i64)>> {
    match tally {
        Some((key, _)) if key != *listed => Err(Error::source(
            counter,
            Some(&key),
            "the source lists the row under another key than its tally",
        )),
        tally => Ok(tally),
    }
}

/// `SAMPLE` is how many rows at each end of a source are checked against their `tally`.
/// `SAMPLE_OF_REPAIR` is the budget of rows for the keys of a repair: all rows of each key, or each
/// key's share of the budget, but no fewer than `SAMPLE`.
#[cfg(feature = "sql")]
pub(super) const SAMPLE: usize = 64;
#[cfg(feature = "sql")]
const SAMPLE_OF_REPAIR: usize = 10_000;

/// Returns how many rows of each key of a repair are checked against their `tally`, for this many
/// keys.
#[cfg(feature = "sql")]
pub(super) fn sample_of_key(keys: usize) -> usize {
    SAMPLE.max(SAMPLE_OF_REPAIR / keys.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Counter;

    #[test]
    fn no_row_is_read_behind_the_first_of_a_key_too_many() {
        let id = Counter::<i64>::new("votes").id();
        let mut read = Vec::new();
        let rows = [1_i64, 1, 2, 3, 3, 4, 5].into_iter().map(|key| {
            read.push(key);
            Ok(Some((KeyBuf::of::<i64>(key), 1)))
        });
        let sums = sum_by_key(&id, Bound::Excluded(&KeyBuf::of::<i64>(1)), 2, rows).unwrap();
        let sums: Vec<(i64, i64)> =
            sums.iter().map(|sum| (sum.key.decode().unwrap(), sum.total)).collect();
        assert_eq!((sums, read), (vec![(2, 1), (3, 2)], vec![1, 1, 2, 3, 3, 4]));
    }

    #[cfg(feature = "sql")]
    #[test]
    fn a_repair_of_many_keys_looks_at_few_rows_of_each() {
        assert_eq!(
            [0, 1, 10, 156, 157, 256].map(sample_of_key),
            [10_000, 10_000, 1_000, 64, SAMPLE, SAMPLE]
        );
    }
}
