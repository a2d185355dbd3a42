//! Failures below a store on SQLite: killed processes, failing disks, locks, damaged files and
//! interrupted statements.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod failing_disk;
mod kills;
mod sqlite_faults;
mod sqlite_interrupts;
#[path = "../support/mod.rs"]
mod support;
