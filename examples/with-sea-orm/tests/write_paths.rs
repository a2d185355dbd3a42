//! Tests the application's write paths with SeaORM, on private PostgreSQL servers.
#![cfg(unix)]

#[path = "../../../tests/support/postgres/mod.rs"]
mod postgres;
#[path = "../../votes/write_paths.rs"]
mod write_paths;

use keepcount::{AsyncStore as _, Batch, Schema};
use keepcount_sea_orm::SeaOrmStore;
use keepcount_with_sea_orm::{App, counters};
use sea_orm::{Database, TransactionTrait as _};

/// Applies a batch in a transaction of its own, as an application does.
async fn apply(url: &str, schema: &Schema, batch: &Batch) {
    let pool = Database::connect(url).await.unwrap();
    let tx = pool.begin().await.unwrap();
    SeaOrmStore::new(&tx, schema).apply(&mut batch.clone()).await.unwrap();
    tx.commit().await.unwrap();
}
