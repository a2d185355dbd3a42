//! How drift is found and mended, and what is not ready until it was: the machine in virtual time, its audits in memory and on SQLite, the job that
//! runs it, and releases that need it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod brackets;
mod deploy;
mod job;
mod lost;
mod machine;
mod model;
mod readiness;
mod sources;
mod sqlite;
#[path = "../support/mod.rs"]
mod support;
