//! What fails beneath a store on SQLite: processes, disks, locks, files, statements that are
//! stopped.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod failing_disk;
mod kills;
mod sqlite_faults;
mod sqlite_interrupts;
#[path = "../support/mod.rs"]
mod support;
