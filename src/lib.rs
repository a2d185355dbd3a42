// README links to files of the repository. Markdown takes the first definition of a link, so these
// lead to modules instead.
#![doc = "[guide]: docs::guide"]
#![doc = "[monitoring]: docs::guide#monitor"]
#![doc = "[vocabulary]: docs::vocabulary"]
#![doc = "[guarantees]: docs::guarantees"]
#![doc = "[every mode]: docs::guarantees#in-every-mode"]
#![doc = "[by mode]: docs::guarantees#by-mode"]
#![doc = "[preconditions]: docs::guarantees#preconditions-and-what-happens-without-them"]
#![doc = "[after a failure]: docs::guarantees#after-a-failure"]
#![doc = "[deploy]: docs::deploy"]
#![doc = "[libraries]: docs::libraries"]
#![doc = "[performance]: docs::performance"]
#![doc = "[testing]: docs::testing"]
#![doc = "[design]: docs::design"]
#![doc = ""]
#![doc = include_str!("../README.md")]
// Without its feature, a type leads to the table of features.
#![cfg_attr(feature = "memory", doc = "[`MemoryStore`]: MemoryStore")]
#![cfg_attr(feature = "memory", doc = "[`MemoryLeaderboard`]: MemoryLeaderboard")]
#![cfg_attr(feature = "memory", doc = "[`Snapshot`]: Snapshot")]
#![cfg_attr(feature = "memory", doc = "[`PendingWrite`]: PendingWrite")]
#![cfg_attr(feature = "concert", doc = "[`concert`]: mod@concert")]
#![cfg_attr(feature = "conformance", doc = "[`conformance`]: mod@conformance")]
#![cfg_attr(feature = "sqlite", doc = "[`SqliteStore`]: SqliteStore")]
#![cfg_attr(feature = "sqlite", doc = "[`SqliteAudit`]: reconcile::SqliteAudit")]
#![cfg_attr(feature = "postgres", doc = "[`PostgresStore`]: PostgresStore")]
#![cfg_attr(feature = "postgres", doc = "[`PostgresAudit`]: reconcile::PostgresAudit")]
#![cfg_attr(feature = "sql", doc = "[`Sweep`]: Sweep")]
#![cfg_attr(feature = "sql", doc = "[`Executor`]: executor::Executor")]
#![doc = "[`MemoryStore`]: docs::guide#features"]
#![doc = "[`MemoryLeaderboard`]: docs::guide#features"]
#![doc = "[`Snapshot`]: docs::guide#features"]
#![doc = "[`PendingWrite`]: docs::guide#features"]
#![doc = "[`concert`]: docs::guide#features"]
#![doc = "[`conformance`]: docs::guide#features"]
#![doc = "[`SqliteStore`]: docs::guide#features"]
#![doc = "[`SqliteAudit`]: docs::guide#features"]
#![doc = "[`PostgresStore`]: docs::guide#features"]
#![doc = "[`PostgresAudit`]: docs::guide#features"]
#![doc = "[`Sweep`]: docs::guide#features"]
#![doc = "[`Executor`]: docs::guide#features"]
//!
//! # Concepts
//!
//! | type | what it is | page |
//! | --- | --- | --- |
//! | [`Counter`] | a typed `const` handle: a name, a version and a key type | [declare](docs::guide#declare-counters) |
//! | [`Key`], [`KeyBuf`] | what a counter is grouped by, and its encoding, which sorts as the key does | [keys](docs::guide#keys) |
//! | [`counters!`], [`Schema`] | every counter and leaderboard of an application | [declare](docs::guide#declare-counters) |
//! | [`Record`], [`Tally`] | a row that counts, and where it says what it adds | [tally](docs::guide#write-the-tally) |
//! | [`Batch`] | the hooks `insert`, `update` and `delete`, and the sums that they collect | [hooks](docs::guide#hook-the-writes) |
//! | [`Store`], [`AsyncStore`] | apply a batch, read totals | [read](docs::guide#read-totals) |
//! | [`MemoryStore`] | totals in memory, shared between threads | [memory](docs::guide#keep-totals-in-memory) |
//! | [`SqliteStore`], [`PostgresStore`] | totals in tables next to your rows | [hooks](docs::guide#hook-the-writes) |
//! | [`Snapshot`], [`PendingWrite`] | all totals as of one moment; a write that a store knows of before its rows are visible | [memory](docs::guide#keep-totals-in-memory) |
//! | [`Rollup`](backend::Rollup) | what a counter is the sum of: a base counter, along a membership | [rollups](docs::guide#roll-up) |
//! | [`CounterRange`], [`Date`] | a range of keys; a day, as a key | [ranges](docs::guide#sum-over-a-range) |
//! | [`Leaderboard`], [`MemoryLeaderboard`] | keys in the order of a score made of totals | [leaderboards](docs::guide#rank) |
//! | [`HalfLife`], [`Decayed`] | amounts that weigh half after some time, and their exact sums | [decay](docs::guide#decay) |
//! | [`Sweep`] | removes rows of totals that are 0 | [retention](docs::guide#retention) |
//! | [`StreamRange`] | which events of a stream a batch stands for | [idempotent apply](docs::guide#apply-each-event-once) |
//! | [`verify`](reconcile::verify), [`repair`](reconcile::repair), [`backfill`](reconcile::backfill) | the usual runs, in one expression | [repair](docs::guide#verify-and-repair) |
//! | [`Reconciler`](reconcile::Reconciler) | the state machine that verifies and repairs, without I/O | [repair](docs::guide#verify-and-repair) |
//! | [`Audit`](reconcile::Audit), [`SqliteAudit`], [`PostgresAudit`] | rows and totals, read in one snapshot | [repair](docs::guide#verify-and-repair) |
//! | [`Freshness`](reconcile::Freshness), [`observe`] | the age of the last clean verification; metrics and events | [monitor](docs::guide#monitor) |
//! | [`Schedule`](job::Schedule) | work every interval, on a thread | [jobs](docs::guide#run-it-as-a-job) |
//! | [`sql`], [`RollupUpdate`](backend::RollupUpdate) | statements as text, for your own driver | [libraries] |
//! | [`Executor`] | the I/O of SQL stores: what a driver does | [design] |
//! | [`Error`], [`Recovery`] | what went wrong, and what you do next | [after a failure] |
//! | [`conformance`] | the test suite for a store of your own | [testing] |
//! | [`concert`] | ready-made counters for artists, shows, setlists and votes | [example](docs::guide#the-example) |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]
// Batches, keys and leaderboards have parts that only stores in memory use.
#![cfg_attr(not(feature = "memory"), allow(dead_code))]

pub mod backend;
mod batch;
#[cfg(feature = "memory")]
mod clock;
#[cfg(feature = "concert")]
pub mod concert;
#[cfg(feature = "conformance")]
pub mod conformance;
mod counter;
mod cutoff;
mod date;
mod decay;
#[cfg(any(doc, doctest))]
pub mod docs;
#[cfg(feature = "sql")]
mod drivers;
#[cfg(feature = "sql")]
mod engine;
mod error;
#[cfg(feature = "sql")]
pub mod executor;
pub mod job;
mod key;
mod leaderboard;
#[cfg(feature = "memory")]
mod locks;
#[cfg(feature = "memory")]
mod memory_leaderboard;
#[doc(hidden)]
pub mod nondeterminism;
pub mod observe;
#[cfg(feature = "postgres")]
mod postgres;
pub mod reconcile;
mod rollup_update;
mod schema;
pub mod sql;
#[cfg(feature = "sql")]
mod sql_store;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod stream_range;

pub use batch::{Batch, Record, Tally};
pub use counter::key_range::CounterRange;
pub use counter::{Counter, CounterId};
pub use date::{Date, NoDate};
pub use decay::{Decayed, HalfLife};
#[cfg(feature = "postgres")]
pub use drivers::tokio_postgres::PreparedStatements;
pub use error::{Cause, Error, Recovery, Result};
pub use key::{AsKey, Key, KeyBuf, KeyError};
pub use leaderboard::{Leaderboard, Ranked, Score, Standing};
#[cfg(feature = "memory")]
pub use memory_leaderboard::MemoryLeaderboard;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use schema::Schema;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{Applied, AsyncStore, Store};
#[cfg(feature = "memory")]
pub use store::{MemoryStore, PendingWrite, Snapshot};
#[cfg(feature = "sql")]
pub use store::{Sweep, Swept};
pub use stream_range::StreamRange;
