//! Tests the application's write paths with sqlx, on private PostgreSQL servers.
#![cfg(unix)]

#[path = "../../../tests/support/postgres/mod.rs"]
mod postgres;
#[path = "../../votes/write_paths.rs"]
mod write_paths;

use keepcount::{AsyncStore as _, Batch, Schema};
use keepcount_sqlx::PostgresStore;
use keepcount_with_sqlx::{App, counters};
use sqlx::{Connection as _, PgConnection};

/// Applies a batch in a transaction of its own, as an application does.
async fn apply(url: &str, schema: &Schema, batch: &Batch) {
    let mut conn = PgConnection::connect(url).await.unwrap();
    let mut tx = conn.begin().await.unwrap();
    PostgresStore::new(&mut tx, schema).apply(&mut batch.clone()).await.unwrap();
    tx.commit().await.unwrap();
}
