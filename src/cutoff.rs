//! Retention: the cutoff below which hooks and audits ignore the keys of a counter.

use std::ops::Bound;

use crate::counter::key_range::KeyRange;
use crate::counter::{CounterId, CounterSpec};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyParts};
use crate::schema::Schema;

/// Whether a key's last part is at or after the cutoff. A key that does not decode is kept here,
/// and refused elsewhere.
pub(crate) fn keeps(counter: &CounterId, key: &KeyBuf, cutoff: &KeyBuf) -> bool {
    let bytes = key.as_bytes();
    let suffix = counter
        .parts()
        .prefix_len(bytes, counter.parts().len().saturating_sub(1))
        .and_then(|at| bytes.get(at..));
    suffix.is_none_or(|suffix| suffix >= cutoff.as_bytes())
}

/// Refuses a range of which a part was pruned: its sum would be a guess.
pub(crate) fn check_range(
    counter: &CounterId,
    range: &KeyRange,
    cutoff: Option<&KeyBuf>,
) -> Result<()> {
    let Some(cutoff) = cutoff else { return Ok(()) };
    let prefix =
        counter.parts().prefix_len(range.shared(), counter.parts().len().saturating_sub(1));
    let behind_the_cutoff = match range.start() {
        // The range is under one prefix, so all of it is at or after the start.
        Bound::Included(start) | Bound::Excluded(start) => prefix.is_some_and(|prefix| {
            start.as_bytes().get(prefix..).is_some_and(|suffix| suffix >= cutoff.as_bytes())
        }),
        Bound::Unbounded => false,
    };
    if behind_the_cutoff {
        return Ok(());
    }
    let last = counter.parts().as_slice().last().map(|part| KeyParts::one(*part));
    let cutoff = last
        .and_then(|part| Some(part.values(cutoff).ok()?.first()?.to_string()))
        .unwrap_or_default();
    Err(Error::Pruned { counter: counter.name(), cutoff })
}

/// The counters that are pruned together: a counter that rows add to, and all rollups of it.
///
/// # Errors
///
/// [`Error::Rollup`] for a rollup, which is pruned with what it sums; [`Error::InvalidUse`] for a
/// counter that is not prunable, or a time of several parts.
pub(crate) fn family(
    schema: &Schema,
    counter: &CounterId,
    time: KeyParts,
) -> Result<Vec<CounterId>> {
    let spec = schema.spec(counter)?;
    if time.len() != 1 {
        let reason = format!(
            "the time of counter {} has {} parts, and a cutoff has one",
            counter.full_name(),
            time.len()
        );
        return Err(Error::invalid_use("prune", reason));
    }
    if let Some(rollup) = spec.rollup() {
        let reason = format!("it is pruned together with its base, {}", rollup.base().full_name());
        return Err(Error::Rollup { counter: counter.name(), reason });
    }
    if !spec.is_prunable() {
        return Err(Error::invalid_use(
            "prune",
            format!("counter {} is not prunable in the schema", counter.full_name()),
        ));
    }
    // A rollup comes after what it sums.
    let mut family = vec![*counter];
    for spec in schema.counters() {
        let sums_one = spec
            .rollup()
            .is_some_and(|rollup| family.iter().any(|known| known.same(&rollup.base())));
        if sums_one {
            family.push(CounterSpec::id(spec));
        }
    }
    Ok(family)
}
