//! Tests of counters and stores: keys, ranges, dates, decayed values; batches, offsets, rollups,
//! leaderboards, prunes; in memory, in snapshots, and in SQLite.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod bad_input;
mod conformance;
mod dates;
mod decay;
mod keys;
mod leaderboards;
mod memory_store;
mod offset_races;
mod offsets;
mod prune;
mod ranges;
mod regressions;
mod restore;
mod rollup_races;
mod rollups;
mod snapshot_file;
#[path = "../support/mod.rs"]
mod support;
mod transactions;
mod versions;
mod write_paths;
