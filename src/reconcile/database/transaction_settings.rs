//! PostgreSQL's settings for the transactions of an audit. SQLite needs none.

use std::time::Duration;

use super::Limits;
use crate::sql::{Dialect, Query};

/// The server refuses to leave out rows that a policy of row security hides, so that they are not
/// taken for absent.
const ALL_ROWS: (&str, &str) = ("row_security", "off");
/// Pages are read from the index that has their order, whatever the planner thinks of small tables,
/// or of large ones that it knows nothing of.
const PAGE: &[(&str, &str)] = &[
    ALL_ROWS,
    ("enable_sort", "off"),
    ("enable_incremental_sort", "off"),
    ("enable_hashagg", "off"),
    ("enable_bitmapscan", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];
/// Keys are looked up one after the other, from an index.
const LOOK_UP: &[(&str, &str)] =
    &[("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
/// The index of memberships has parents in order; the keys of one parent are sorted.
const SORT_SUFFIXES: &[(&str, &str)] = &[("enable_incremental_sort", "on")];

/// A script that makes settings until the transaction ends, and takes no snapshot.
fn set(settings: &[(&str, &str)]) -> String {
    settings.iter().flat_map(|(name, value)| ["SET LOCAL ", name, " = ", value, "; "]).collect()
}

/// For pages of rows.
pub(in crate::reconcile) fn of_page() -> String {
    set(PAGE)
}

/// For pages of a rollup.
pub(super) fn of_rollup_page(dialect: Dialect, keeps_suffix: bool) -> String {
    match dialect {
        Dialect::Sqlite => String::new(),
        Dialect::Postgres if keeps_suffix => set(&[PAGE, LOOK_UP, SORT_SUFFIXES].concat()),
        Dialect::Postgres => set(&[PAGE, LOOK_UP].concat()),
    }
}

/// For a repair. If single keys are not found by an index, nothing here knows how a query is best
/// planned.
pub(super) fn of_repair(dialect: Dialect, limits: Limits, is_indexed: bool) -> String {
    if dialect == Dialect::Sqlite {
        return String::new();
    }
    let statement = millis(limits.statement);
    let more = [ALL_ROWS, ("statement_timeout", &statement)];
    writing(limits) + &set(&more) + &set(if is_indexed { LOOK_UP } else { &[] })
}

/// For the end of a backfill.
pub(super) fn of_ready(dialect: Dialect, limits: Limits) -> String {
    if dialect == Dialect::Sqlite { String::new() } else { writing(limits) }
}

/// Each statement sees what was committed when it began, whatever the session's defaults are. SET
/// TRANSACTION would leave a mark in the session, which a pooler gives to others.
fn writing(limits: Limits) -> String {
    set(&[
        ("transaction_isolation", "'read committed'"),
        ("transaction_read_only", "off"),
        ("lock_timeout", &millis(limits.lock)),
    ])
}

/// A time as these settings have it. 0 would be without end.
fn millis(time: Duration) -> String {
    time.as_millis().clamp(1, i32::MAX.unsigned_abs().into()).to_string()
}

/// Returns the query for the reason why nothing can be written, if there is one.
pub(super) fn read_only(dialect: Dialect) -> Option<Query<'static>> {
    let text = "SELECT CASE
        WHEN pg_is_in_recovery()
            THEN 'the server is a replica; it can verify, and a repair or backfill is for its primary'
        WHEN current_setting('transaction_read_only')::boolean
            THEN 'its transactions are read-only; it can verify, and a repair or backfill writes'
        ELSE '' END";
    (dialect == Dialect::Postgres).then(|| Query::new(text, Vec::new()))
}
