//! What a prunable counter needs in SQL: where its cut is kept, and what the cut removes.

use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyParts};
use crate::sql::{self, Value};

/// The cut of a counter, `?1`: null where it was not pruned.
pub(crate) const READ_CUT: &str = r#"SELECT c."cut" FROM "keepcount_counters" AS c WHERE c."name" = ?1"#;
/// Sets the cut of a counter, `?2`.
pub(crate) const SET_CUT: &str = r#"UPDATE "keepcount_counters" AS c SET "cut" = ?1 WHERE c."name" = ?2"#;

/// Removes the totals whose last key column is before `?1`.
pub(crate) fn prune(placed: &Placed) -> String {
    let last = sql::own_key_columns(placed.def().parts()).pop().unwrap_or_default();
    format!(r#"DELETE FROM "{}" AS t WHERE {last} < ?1"#, placed.table_name())
}

/// The value of an encoded last part.
pub(crate) fn tail_value<'a>(counter: &Def, tail: &'a KeyBuf) -> Result<Value<'a>> {
    let failed = |cause| Error::key(counter, tail, cause);
    let parts = counter.parts();
    let part = parts.as_slice().last().ok_or_else(|| failed(KeyError::Malformed))?;
    let mut values = KeyParts::one(*part).values(tail).map_err(failed)?;
    sql::column_value(*part, values.pop().ok_or_else(|| failed(KeyError::Malformed))?).map_err(failed)
}

/// Writes where a counter lives anew into the catalogue.
pub(crate) fn replace(placed: &Placed) -> String {
    let (place, name) = (placed.place(), placed.def().full_name());
    format!(r#"UPDATE "keepcount_counters" AS c SET "placement" = '{place}' WHERE c."name" = '{name}'"#)
}
