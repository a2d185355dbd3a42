//! Verify and repair on PostgreSQL: the sources that `audit.rs` declares, and a run over them.

use keepcount::reconcile::{
    Columns, PostgresAudit, PostgresRows, Reconciler, Report, TokioRuntime, run_async,
};
use tokio_postgres::Client;

use super::columns::ReadRow as _;
use crate::audit::{declare_sources, finish};
use crate::error::Result;
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};
use crate::schema::C;

/// Drives a run over all sources.
pub async fn run(client: &mut Client, run: &mut Reconciler) -> Result<Report> {
    let mut audit = PostgresAudit::new(client, &C::SCHEMA).await?;
    declare_sources!(audit, PostgresRows, read_row, C::TRENDS, await);
    let result = run_async(run, &mut audit, &mut TokioRuntime::new()).await;
    finish(run, result)
}
