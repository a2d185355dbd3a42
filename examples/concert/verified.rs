//! When a run last found each counter clean, as a table of the application for display: verify and
//! repair write it, watch reads it.
//!
//! For alerts, use `keepcount::reconcile::Freshness`, which also knows when runs began, and what
//! other runs found meanwhile.

use std::collections::HashMap;

use keepcount::reconcile::Report;
use rusqlite::{Connection, params};

use crate::error::Result;

pub const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS verifications (
        counter TEXT NOT NULL PRIMARY KEY,
        at INTEGER NOT NULL
    ) STRICT;
";

/// Returns whether a run found counters clean, which is what [`note`] writes.
pub fn has_clean_counters(report: &Report) -> bool {
    report.counters.iter().any(|counter| counter.clean)
}

/// Notes every counter that a run found clean from its first key to its last, at a time in seconds
/// since 1970.
pub fn note(conn: &Connection, report: &Report, now: i64) -> Result<()> {
    let tx = conn.unchecked_transaction()?;
    for counter in report.counters.iter().filter(|counter| counter.clean) {
        let text = "INSERT INTO verifications (counter, at) VALUES (?1, ?2)
                    ON CONFLICT (counter) DO UPDATE SET at = max(at, excluded.at)";
        tx.prepare_cached(text)?.execute(params![counter.counter.name(), now])?;
    }
    tx.commit()?;
    Ok(())
}

/// Returns the noted times, by counter.
pub fn read(conn: &Connection) -> Result<HashMap<String, i64>> {
    let mut find = conn.prepare_cached("SELECT counter, at FROM verifications")?;
    let times = find
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(times)
}
