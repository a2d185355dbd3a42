//! PostgreSQL for tests: private servers that end with the test's process, a database for each
//! test, and connections.
//!
//! A test begins with `let Some(server) = shared() else { return };`, or with its own server that
//! it may stop: `Server::with(DURABLE)`. If PostgreSQL is not installed, both return `None` and
//! print that the test is skipped; with `KEEPCOUNT_REQUIRE_SERVERS=1` they panic.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // each test file uses a part

pub mod installed;
mod replica;
mod server;

use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

#[allow(unused_imports)] // each test file uses a part
pub use replica::Replica;
#[allow(unused_imports)]
pub use server::{DURABLE, Server};
use tokio_postgres::{Client, Config, NoTls};

/// The server that all tests of a process share. A test that stops its server starts its own.
pub fn shared() -> Option<&'static Server> {
    static SHARED: OnceLock<Server> = OnceLock::new();
    // Every test prints that it is skipped, not only the first.
    installed::find_programs()?;
    Some(SHARED.get_or_init(|| Server::new().expect("it was found")))
}

/// A connection that ends when its client is dropped. Boxed, since every test that awaits a future
/// compiles it.
pub fn connect(to: &Config) -> Pin<Box<dyn Future<Output = Client> + Send + '_>> {
    Box::pin(async move {
        let (client, connection) =
            to.connect(NoTls).await.unwrap_or_else(|why| panic!("{to:?}: {why}"));
        // An error of the connection is returned by every later call of the client.
        tokio::spawn(connection);
        client
    })
}

/// A query for [`wait_until`]: whether a session in this database waits for a lock.
pub const LOCK_WAIT_EXISTS: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Waits until `query`, which returns one boolean, returns true.
pub async fn wait_until(client: &Client, query: &str) {
    for _ in 0..3_000 {
        if client.query_one(query, &[]).await.unwrap().get(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not true within 30 seconds: {query}");
}
