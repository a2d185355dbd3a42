//! The concert example, run as its users run it: as processes of its binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod cli;
mod crash;
mod formulas;
mod memory;
mod postgres;
mod replay;
#[path = "../support/mod.rs"]
mod support;
