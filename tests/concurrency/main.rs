//! Threads on one memory store: writers, pending writes, barriers, audits, snapshots and prunes.
//! Every body is written once and run in two ways. Natively, it runs some hundred times on real
//! threads. Under a model checker (shuttle, `just concurrency`), one thread runs at a time, and the
//! checker chooses the next thread at every lock and atomic.
//!
//! The checker explores sequentially consistent interleavings only. It says nothing about weaker
//! memory orders of atomics: where the code depends on one, a comment there argues for it
//! (`src/store/memory/stripe.rs`, `audited.rs`).
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
