//! Keeps the progress of a run next to the totals, and ends a backfill.

use super::progress_statements;
use crate::engine::rows::text;
use crate::engine::{OrFailed as _, Whose, readiness, tables, transact};
use crate::error::{Error, Result};
use crate::executor::{ErrorKind, Executor};
use crate::reconcile::audit::{Keep, Kept, Ready};
use crate::reconcile::token::Token;
use crate::sql::{self, Query};

/// The kept token of a run, if any.
pub(super) async fn kept_of<E: Executor + ?Sized>(
    executor: &mut E,
    run: u64,
) -> Result<Option<Token>> {
    let mut kept = None;
    let recall = [progress_statements::recall(executor.dialect(), run)];
    let read = executor
        .fetch(&recall, &mut |_, row| {
            kept = text(row, 0, sql::RUNS)?;
            Ok(())
        })
        .await;
    let operation = "reading the progress of a run";
    read.or_failed(Whose::Table(sql::RUNS), operation)?;
    Ok(progress_statements::read(kept))
}

/// Keeps the progress of a run.
pub(super) async fn keep_run<E: Executor + ?Sized>(executor: &mut E, ask: &Keep) -> Result<Kept> {
    let Some(keep) = progress_statements::keep(executor.dialect(), ask) else {
        return Ok(Kept::Here);
    };
    let operation = "storing the progress of a run";
    match transact!(executor, operation, keep_in(executor, ask, &keep, operation)) {
        // A replica, or a user who may only read: it can still verify, and its token then says
        // less.
        Err(Error::Database { cause, .. }) if executor.kind_of(&cause) == ErrorKind::ReadOnly => {
            Ok(Kept::Nowhere)
        }
        kept => kept,
    }
}

async fn keep_in<E: Executor + ?Sized>(
    executor: &mut E,
    ask: &Keep,
    keep: &Query<'_>,
    operation: &str,
) -> Result<Kept> {
    let kept = executor.execute(std::slice::from_ref(keep)).await;
    let kept = kept.or_failed(Whose::Connection, operation)?;
    if kept.first() == Some(&0) {
        // It may have been stored by an earlier answer to the same request. That an absent row was
        // removed by one cannot be known: totals from before the run have none either.
        let is_stored = ask.to.is_some() && kept_of(executor, ask.run).await? == ask.to;
        return Ok(if is_stored { Kept::Here } else { Kept::Lost });
    }
    if ask.from.is_none() {
        let forgotten = executor.execute(&[progress_statements::forget(executor.dialect())]).await;
        forgotten.or_failed(Whose::Connection, operation)?;
    }
    Ok(Kept::Here)
}

/// Records that a backfill has reached its last key, in the current transaction.
pub(super) async fn ready_in<E: Executor + ?Sized>(executor: &mut E, ask: &Ready) -> Result<Kept> {
    tables::lock_catalogue(executor, "EXCLUSIVE").await?;
    if ask.kept.is_some() && kept_of(executor, ask.run).await? != ask.kept {
        return Ok(Kept::Lost);
    }
    readiness::set_ready(executor, &ask.counter).await?;
    Ok(Kept::Here)
}
