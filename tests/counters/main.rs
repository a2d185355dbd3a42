//! What is counted, and how it is kept and read: keys, ranges, dates, decayed values; batches, marks, rollups, boards, prunes; in memory, in
//! snapshots of it, and in SQLite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod bad_input;
mod boards;
mod conformance;
mod dates;
mod decay;
mod keys;
mod mark_races;
mod marks;
mod memory_store;
mod prune;
mod ranges;
mod regressions;
mod restore;
mod rollup_races;
mod rollups;
mod snapshot_file;
#[path = "../support/mod.rs"]
mod support;
mod versions;
mod write_paths;
