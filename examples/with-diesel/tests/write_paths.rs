//! Tests the application's write paths with diesel, on private PostgreSQL servers.
#![cfg(unix)]

#[path = "../../../tests/support/postgres/mod.rs"]
mod postgres;
#[path = "../../votes/write_paths.rs"]
mod write_paths;

use diesel_async::{AsyncConnection as _, AsyncPgConnection};
use keepcount::{Batch, Schema};
use keepcount_with_diesel::{App, counters, totals};

/// Applies a batch in a transaction of its own, as an application does.
async fn apply(url: &str, schema: &Schema, batch: &Batch) {
    let mut conn = AsyncPgConnection::establish(url).await.unwrap();
    conn.transaction(async |conn| totals::apply(conn, schema, batch).await).await.unwrap();
}
