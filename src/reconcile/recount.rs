//! Recounts by `tally`: what one row adds to a counter, and rows in key order summed by key.

use std::ops::Bound;

use crate::batch::Batch;
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::record::Record;

use super::audit::Recount;

/// What a row adds to one counter, by its `tally`: nothing, or an amount at one key.
///
/// `scratch` is any batch; it is cleared first, so that one serves for many rows.
pub(super) fn share<R: Record + ?Sized>(counter: &Def, row: &R, scratch: &mut Batch) -> Result<Option<(KeyBuf, i64)>> {
    scratch.clear();
    scratch.insert(row);
    let mut deltas = scratch.deltas().filter(|(def, ..)| def == counter);
    let Some((_, key, amount)) = deltas.next() else { return Ok(None) };
    if deltas.next().is_some() {
        let reason = "its tally adds to several keys of this counter; let the source give one row for each of them";
        return Err(Error::source(counter, Some(key), reason));
    }
    let amount = i64::try_from(amount).map_err(|_| Error::overflow(counter, key, "recount"))?;
    Ok(Some((key.clone(), amount)))
}

/// Refuses a record type that does not drive the counter.
pub(super) fn check_driven<R: Record>(counter: &Def) -> Result<()> {
    if R::COUNTERS.contains(counter) {
        return Ok(());
    }
    let reason = format!("records of type {} do not drive it: it is not in their COUNTERS", std::any::type_name::<R>());
    Err(Error::source(counter, None, reason))
}

/// Sums rows in key order up to `limit` keys; stops reading at the first row of the next. Rows before `from` are passed over, so
/// that a source may start too early.
pub(super) fn sum_by_key(
    counter: &Def,
    from: Bound<&KeyBuf>,
    limit: usize,
    rows: impl Iterator<Item = Result<Option<(KeyBuf, i64)>>>,
) -> Result<Vec<Recount>> {
    let mut sums: Vec<Recount> = Vec::new();
    let mut before: Option<KeyBuf> = None;
    for row in rows {
        let Some((key, amount)) = row? else { continue };
        if before.as_ref().is_some_and(|before| key < *before) {
            return Err(Error::source(counter, Some(&key), "the rows come out of key order"));
        }
        let early = match from {
            Bound::Unbounded => false,
            Bound::Included(from) => key < *from,
            Bound::Excluded(from) => key <= *from,
        };
        let full = sums.len() == limit;
        match sums.last_mut() {
            _ if early => {}
            Some(sum) if sum.key == key => {
                sum.total = sum.total.checked_add(amount).ok_or_else(|| Error::overflow(counter, &key, "recount"))?;
                sum.rows += 1;
            }
            _ if full => break,
            _ => sums.push(Recount { key: key.clone(), total: amount, rows: 1 }),
        }
        before = Some(key);
    }
    Ok(sums)
}
