//! How drift is found and repaired, and how counters become ready: the reconciler in virtual time,
//! its audits in memory and on SQLite, the job that runs it, and deploys that need it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod audits;
mod deploy;
mod job;
mod keys;
mod machine;
mod model;
mod orphans;
mod overlap;
mod pending_writes;
mod readiness;
mod rows;
mod sources;
mod sqlite;
#[path = "../support/mod.rs"]
mod support;
mod unchecked;
mod usual;
