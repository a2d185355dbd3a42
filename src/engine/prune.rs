//! Retention: drops totals before a cutoff, and filters out of a batch what is below one.

use super::rows::text;
use super::{OrFailed as _, leaderboard, of_catalogue, tables, transact};
use crate::batch::Batch;
use crate::counter::{CounterId, CounterSpec};
use crate::cutoff;
use crate::error::{Error, Result};
use crate::executor::{Column, Executor};
use crate::key::{KeyBuf, KeyParts};
use crate::leaderboard::LeaderboardId;
use crate::schema::Schema;
use crate::sql::own_catalogue;
use crate::sql::{self, Dialect, Query, Value};

/// The cutoffs of these counters: the encoded last key parts below which they were pruned. With
/// `lock`, locks them against pruning until the transaction ends.
pub(crate) async fn cutoffs<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counters: &[CounterId],
    lock: bool,
) -> Result<Vec<(CounterId, KeyBuf)>> {
    let prunable = counters.iter().filter(|id| schema.spec(id).is_ok_and(CounterSpec::is_prunable));
    let prunable: Vec<CounterId> = prunable.copied().collect();
    if prunable.is_empty() {
        return Ok(Vec::new());
    }
    let dialect = executor.dialect();
    let query =
        sql::read_cutoffs(dialect, prunable.iter().map(CounterId::full_name).collect(), lock);
    let mut cutoffs = Vec::new();
    let read = executor
        .fetch(&[query], &mut |_, row| {
            let name = text(row, 0, sql::CATALOGUE)?;
            let Some(id) = prunable.iter().find(|id| name.as_deref() == Some(&*id.full_name()))
            else {
                return Ok(());
            };
            let cutoff = match row.column(1) {
                Column::Null => return Ok(()),
                Column::Bytes(cutoff) => KeyBuf::from_bytes(&cutoff),
                other => {
                    let reason = format!(
                        "the cutoff of {} is {other}, which keepcount did not write",
                        id.full_name()
                    );
                    return Err(Error::SchemaMismatch { table: sql::CATALOGUE.to_owned(), reason });
                }
            };
            // A cutoff that is not a valid last part would keep everything, or nothing.
            own_catalogue::suffix_value(dialect, id, &cutoff)?;
            cutoffs.push((*id, cutoff));
            Ok(())
        })
        .await;
    read.or_failed(of_catalogue(), "reading cutoffs")?;
    Ok(cutoffs)
}

/// These counters, all that they feed, and the other counters of the leaderboards that they move.
pub(crate) fn read_with(schema: &Schema, counters: Vec<CounterId>) -> Vec<CounterId> {
    let mut all = schema.with_fed(counters);
    let is_moved = |leaderboard: &&LeaderboardId| {
        leaderboard.counters().iter().any(|of| all.iter().any(|id| id.same(of)))
    };
    let moved: Vec<CounterId> = schema
        .leaderboard_ids()
        .iter()
        .filter(is_moved)
        .flat_map(|leaderboard| leaderboard.counters().to_vec())
        .collect();
    all.extend(moved);
    all
}

/// The batch without deltas below a cutoff. Reads nothing if the batch reaches no prunable counter.
/// In PostgreSQL it also locks the cutoffs of the counters that the batch feeds: a membership that
/// moves takes totals along, and they must not be pruned meanwhile.
pub(crate) async fn above_cutoffs<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
) -> Result<Batch> {
    let own = batch.ids();
    let counters =
        if executor.dialect() == Dialect::Postgres { read_with(schema, own) } else { own };
    let cutoffs = cutoffs(executor, schema, &counters, true).await?;
    if cutoffs.is_empty() {
        return Ok(batch.clone());
    }
    let cutoff_of = |counter: &CounterId| {
        cutoffs.iter().find(|(known, _)| known.same(counter)).map(|(_, cutoff)| cutoff)
    };
    Ok(batch.filtered(|counter, key| {
        cutoff_of(counter).is_none_or(|cutoff| cutoff::keeps(counter, key, cutoff))
    }))
}

/// Drops the totals of a counter, and of its rollups by suffix, whose last part is before a cutoff.
/// Returns how many were dropped.
pub(crate) async fn prune<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
    time: KeyParts,
    cutoff: &KeyBuf,
) -> Result<u64> {
    let family = cutoff::family(schema, &counter, time)?;
    let operation = format!("pruning counter {}", counter.full_name());
    transact!(executor, &operation, prune_family(executor, schema, &family, cutoff))
}

async fn prune_family<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    family: &[CounterId],
    cutoff: &KeyBuf,
) -> Result<u64> {
    tables::lock_catalogue(executor, "EXCLUSIVE").await?;
    let mut moved = Vec::new();
    for id in family {
        // Checks that the cutoff is a valid last part of this counter's key.
        own_catalogue::suffix_value(executor.dialect(), id, cutoff)?;
        let set = Query::new(
            sql::set_cutoff(executor.dialect()),
            vec![Value::Bytes(cutoff.as_bytes().into()), Value::Text(id.full_name())],
        );
        let operation = format!("pruning totals of counter {}", id.full_name());
        let set = executor.execute(&[set]).await;
        let set = set.or_failed(of_catalogue(), &operation)?;
        let (name, table) = (id.full_name(), id.table_name());
        tables::check_updated(executor, &set, ("counter", &name), table).await?;
        if set.first() > Some(&0) {
            moved.push(*id);
        }
    }
    let is_made_of = |leaderboard: &&LeaderboardId| {
        leaderboard.counters().iter().any(|of| moved.iter().any(|id| id.same(of)))
    };
    let leaderboards: Vec<LeaderboardId> =
        schema.leaderboard_ids().iter().filter(is_made_of).copied().collect();
    leaderboard::lock(executor, schema, &leaderboards).await?;
    let mut gone = 0;
    for id in &moved {
        let last = vec![own_catalogue::suffix_value(executor.dialect(), id, cutoff)?];
        let delete = Query::new(sql::prune(executor.dialect(), schema.spec(id)?), last);
        let deleted = executor.execute(&[delete]).await;
        let deleted = deleted.or_failed_on("pruning totals", id)?;
        gone += deleted.first().copied().unwrap_or(0);
    }
    for leaderboard in &leaderboards {
        leaderboard::rescore_all(executor, schema, leaderboard).await?;
    }
    Ok(gone)
}
