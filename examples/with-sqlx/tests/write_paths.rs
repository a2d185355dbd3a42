//! Tests the application's write paths with sqlx, on private PostgreSQL servers.
#![cfg(unix)]

#[path = "../../../tests/support/postgres/mod.rs"]
mod postgres;
#[path = "../../votes/write_paths.rs"]
mod write_paths;

use keepcount::{Batch, Schema};
use keepcount_with_sqlx::{App, counters, totals};
use sqlx::{Connection as _, PgConnection};

/// Applies a batch in a transaction of its own, as an application does.
async fn apply(url: &str, schema: &Schema, batch: &Batch) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    totals::apply(&mut tx, schema, batch).await.unwrap();
    tx.commit().await.unwrap();
}
