//! When each counter was last found clean, on PostgreSQL.

use std::collections::HashMap;

use keepcount::reconcile::Report;
use tokio_postgres::{Client, Transaction};

use crate::error::Result;

/// Notes every counter that a run found clean from its first key to its last, at a time in seconds
/// since 1970.
pub async fn note(client: &mut Client, report: &Report, now: i64) -> Result<()> {
    // In the same order for every process, so that they do not deadlock.
    let mut clean: Vec<&str> = report
        .counters
        .iter()
        .filter(|counter| counter.clean)
        .map(|counter| counter.counter.name())
        .collect();
    clean.sort_unstable();
    let text = "INSERT INTO verifications AS v (counter, at) SELECT name, $2 FROM unnest($1::text[]) AS name
                ON CONFLICT (counter) DO UPDATE SET at = greatest(v.at, excluded.at)";
    client.execute(text, &[&clean, &now]).await?;
    Ok(())
}

/// Returns the noted times, by counter.
pub async fn read(tx: &Transaction<'_>) -> Result<HashMap<String, i64>> {
    let rows = tx.query("SELECT counter, at FROM verifications", &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, tokio_postgres::Error>>()?)
}
