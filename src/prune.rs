//! Totals that nobody asks for any more: the cut-off below which hooks and audits leave a counter alone.

use std::ops::Bound;

use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyParts};
use crate::layout::Layout;
use crate::range::KeyRange;

/// Whether a key's last part is at the cut or behind it; a key that cannot be read is kept, and refused elsewhere.
pub(crate) fn keeps(counter: &Def, key: &KeyBuf, cut: &KeyBuf) -> bool {
    let bytes = key.as_bytes();
    let tail = counter.parts().head_len(bytes, counter.parts().len().saturating_sub(1)).and_then(|at| bytes.get(at..));
    tail.is_none_or(|tail| tail >= cut.as_bytes())
}

/// Refuses a range of which some was pruned: its sum would be a guess.
pub(crate) fn check_range(counter: &Def, range: &KeyRange, cut: Option<&KeyBuf>) -> Result<()> {
    let Some(cut) = cut else { return Ok(()) };
    let head = counter.parts().head_len(range.shared(), counter.parts().len().saturating_sub(1));
    let behind_the_cut = match range.start() {
        // Under one head, everything is behind the start.
        Bound::Included(start) | Bound::Excluded(start) => {
            head.is_some_and(|head| start.as_bytes().get(head..).is_some_and(|tail| tail >= cut.as_bytes()))
        }
        Bound::Unbounded => false,
    };
    if behind_the_cut {
        return Ok(());
    }
    let last = counter.parts().as_slice().last().map(|part| KeyParts::one(*part));
    let cut = last.and_then(|part| Some(part.values(cut).ok()?.first()?.to_string())).unwrap_or_default();
    Err(Error::Pruned { counter: counter.name(), cut })
}

/// The counters that are pruned together: a counter that rows drive, and all rollups of it.
///
/// # Errors
///
/// [`Error::Rollup`] for a rollup, which follows what it sums; [`Error::Setting`] for a counter that is not prunable, or a time of several
/// parts.
pub(crate) fn family(layout: &Layout, counter: &Def, time: KeyParts) -> Result<Vec<Def>> {
    let placed = layout.placed(counter)?;
    if time.len() != 1 {
        let reason =
            format!("the time of counter {} has {} parts, and a cut is of one", counter.full_name(), time.len());
        return Err(Error::setting("prune", reason));
    }
    if let Some(rollup) = placed.rollup() {
        let reason = format!("it is pruned with what it sums, {}", rollup.finer().full_name());
        return Err(Error::Rollup { counter: counter.name(), reason });
    }
    if !placed.is_prunable() {
        return Err(Error::setting("prune", format!("counter {} is not placed as prunable", counter.full_name())));
    }
    // A rollup stands behind what it sums.
    let mut family = vec![*counter];
    for placed in layout.counters() {
        let sums_one = placed.rollup().is_some_and(|rollup| family.iter().any(|known| known.same(&rollup.finer())));
        if sums_one {
            family.push(Placed::def(placed));
        }
    }
    Ok(family)
}
