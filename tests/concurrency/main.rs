//! What threads do to one memory store at once: writers, pending writes, gates, audits, snapshots,
//! prunes. Every body is written once and run twice: natively, on the machine's threads, some
//! hundred times; and under a model checker (shuttle), which runs the threads one at a time and
//! chooses, at every lock and atomic, who is next: `just concurrency`.
//!
//! The checker explores interleavings that are sequentially consistent, and no others: it says
//! nothing of weaker orders of atomics. Where the code counts on an order, the comment there argues
//! for it (`src/store/memory/stripe.rs`, `audited.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod barriers;
mod dropped;
#[cfg(keepcount_shuttle)]
mod faults;
mod futures;
mod levels;
mod pending_writes;
mod ready;
mod threads;
mod world;
mod writers;
