//! PostgreSQL for tests: private servers that end with the test's process, a database for each
//! test, and connections.
//!
//! A test begins with `let Some(server) = shared() else { return };`, or with a server of its own
//! that it may stop: `Server::with(DURABLE)`. Both are `None`, and say so, where PostgreSQL is not
//! installed; with `KEEPCOUNT_REQUIRE_SERVERS=1` they panic.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // each test file uses a part

pub mod installed;
mod replica;
mod server;

use std::sync::OnceLock;
use std::time::Duration;

#[allow(unused_imports)] // each test file uses a part
pub use replica::Replica;
#[allow(unused_imports)]
pub use server::{DURABLE, Server};
use tokio_postgres::{Client, Config, NoTls};

/// The one server of a test's process, for all that does not stop it.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Server> = OnceLock::new();
    // Each test says that it is skipped, not only the first.
    installed::found()?;
    Some(SHARED.get_or_init(|| Server::new().expect("it was found")))
}

/// A connection, which ends with its client.
pub async fn connect(to: &Config) -> Client {
    let (client, connection) =
        to.connect(NoTls).await.unwrap_or_else(|why| panic!("{to:?}: {why}"));
    // Its error is the error of every later call of the client.
    tokio::spawn(connection);
    client
}

/// Whether anybody waits for a lock in this database: a query for [`wait_until`].
pub const A_LOCK_IS_WAITED_FOR: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Waits until `query`, which gives one boolean, gives true.
pub async fn wait_until(client: &Client, query: &str) {
    for _ in 0..3_000 {
        if client.query_one(query, &[]).await.unwrap().get(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 30 seconds: {query}");
}
