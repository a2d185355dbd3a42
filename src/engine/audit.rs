//! What audits write: repairs of totals, the progress of a run, and the end of a backfill.

use std::collections::BTreeMap;

use super::rows::text;
use super::{Whose, failed, is_kind, readiness, retention, transact, write};
use crate::batch::Batch;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::executor::{ErrorKind, Executor};
use crate::key::KeyBuf;
use crate::reconcile::audit::{Keep, Kept, Ready, Repaired};
use crate::reconcile::runs;
use crate::reconcile::token::Token;
use crate::schema::Schema;
use crate::sql::{self, Query};

/// Adds to these locked totals the difference to the expected ones, and removes those that are
/// then 0.
pub(crate) async fn repair<E: Executor>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    (keys, stored): (&[KeyBuf], &[i64]),
    expected_all: &BTreeMap<KeyBuf, i64>,
) -> Result<Repaired> {
    let (mut lacking, mut gone) = (Batch::new(), Vec::new());
    for (key, stored) in keys.iter().zip(stored) {
        let expected = expected_all.get(key).copied().unwrap_or(0);
        lacking.add_raw(*counter, &mut key.clone(), i128::from(expected) - i128::from(*stored));
        gone.extend((expected == 0).then(|| key.clone()));
    }
    // An ordinary batch, which propagates to rollups like any other.
    write::repair(executor, schema, &lacking).await?;
    write::remove_zeros(executor, schema, counter, &gone).await?;
    Ok(Repaired { corrected: lacking.len() as u64, unsettled: Vec::new() })
}

/// The kept token of a run, if any.
pub(crate) async fn kept_of<E: Executor>(executor: &mut E, run: u64) -> Result<Option<Token>> {
    let mut kept = None;
    let recall = [runs::recall(E::DIALECT, run)];
    let read = executor
        .fetch(&recall, |_, row| {
            kept = text(row, 0, sql::RUNS)?;
            Ok(())
        })
        .await;
    let operation = "reading how far a run has come";
    read.map_err(|stopped| stopped.or(|_, error| failed(Whose::Table(sql::RUNS), operation, error)))?;
    Ok(runs::read(kept))
}

/// Keeps the progress of a run.
pub(crate) async fn keep<E: Executor>(executor: &mut E, ask: &Keep) -> Result<Kept> {
    let Some(keep) = runs::keep(E::DIALECT, ask) else { return Ok(Kept::Here) };
    let operation = "keeping how far a run has come";
    match transact!(executor, operation, keep_in(executor, ask, &keep, operation)) {
        // A replica, or a user who may only read: it can still verify, and its token then says
        // less.
        Err(Error::Database { cause, .. }) if is_kind::<E>(&cause, &ErrorKind::ReadOnly) => Ok(Kept::Nowhere),
        kept => kept,
    }
}

async fn keep_in<E: Executor>(executor: &mut E, ask: &Keep, keep: &Query<'_>, operation: &str) -> Result<Kept> {
    let failed = |error| failed(Whose::Connection, operation, error);
    let kept =
        executor.execute(std::slice::from_ref(keep)).await.map_err(|stopped| stopped.or(|_, error| failed(error)))?;
    if kept.first() == Some(&0) {
        return Ok(Kept::Lost);
    }
    if ask.from.is_none() {
        let forgotten = executor.execute(&[runs::forget(E::DIALECT)]).await;
        forgotten.map_err(|stopped| stopped.or(|_, error| failed(error)))?;
    }
    Ok(Kept::Here)
}

/// Records that a backfill has reached its last key, in the current transaction.
pub(crate) async fn ready_in<E: Executor>(executor: &mut E, ask: &Ready) -> Result<Kept> {
    retention::lock_catalogue(executor).await?;
    if ask.kept.is_some() && kept_of(executor, ask.run).await? != ask.kept {
        return Ok(Kept::Lost);
    }
    readiness::set_ready(executor, &ask.counter).await?;
    Ok(Kept::Here)
}
