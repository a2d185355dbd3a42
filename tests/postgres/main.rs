//! Counters in PostgreSQL, on private servers: one for all that does not stop it, a database for
//! each test.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod audit;
mod conformance;
mod crash;
mod races;
mod repairs;
mod server;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod write;
