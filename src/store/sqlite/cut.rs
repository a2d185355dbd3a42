//! What a prunable counter needs in SQL: where its cut is kept, and what the cut removes.

use crate::counter::Placed;
use crate::sql;

/// The cut of a counter, `?1`: null where it was not pruned.
pub(crate) const READ_CUT: &str = r#"SELECT c."cut" FROM "keepcount_counters" AS c WHERE c."name" = ?1"#;
/// Sets the cut of a counter, `?2`.
pub(crate) const SET_CUT: &str = r#"UPDATE "keepcount_counters" AS c SET "cut" = ?1 WHERE c."name" = ?2"#;

/// Removes the totals whose last key column is before `?1`.
pub(crate) fn prune(placed: &Placed) -> String {
    let last = sql::own_key_columns(placed.def().parts()).pop().unwrap_or_default();
    format!(r#"DELETE FROM "{}" AS t WHERE {last} < ?1"#, placed.table_name())
}
