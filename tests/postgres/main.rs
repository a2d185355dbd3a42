//! The PostgreSQL store on private servers: one server with a database for each test, and servers
//! of their own for tests that stop them.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod audit;
mod conformance;
mod crash;
mod races;
mod repairs;
mod rollbacks;
mod server;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod write;
