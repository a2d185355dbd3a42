#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]

mod batch;
mod clock;
pub mod concert;
pub mod conformance;
mod counter;
mod date;
mod decay;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod drivers;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod engine;
mod error;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod executor;
pub mod job;
mod key;
mod leaderboard;
pub mod observe;
mod offset;
#[cfg(feature = "postgres")]
mod postgres;
mod range;
pub mod reconcile;
mod record;
#[doc(hidden)]
pub mod replay;
mod retention;
mod rollup_update;
mod schema;
pub mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod sync;

pub use batch::Batch;
pub use counter::{Counter, CounterId, CounterSpec, Rollup};
pub use date::{Date, NoDate};
pub use decay::{Decayed, HalfLife, SCALE_BITS};
#[cfg(feature = "postgres")]
pub use drivers::tokio_postgres::PreparedStatements;
pub use error::{Cause, Error, Recovery, Result};
pub use key::{AsKey, Key, KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};
pub use leaderboard::{Leaderboard, LeaderboardId, MemoryLeaderboard, Ranked, Score};
pub use offset::StreamRange;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use range::KeyRange;
pub use record::{Record, Tally};
pub use rollup_update::{RollupUpdate, TotalsRequest};
pub use schema::Schema;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{Applied, AsyncStore, MemoryStore, PendingWrite, Snapshot, Store};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use store::{Sweep, Swept};

/// The example in docs/deploy.md is a test.
#[cfg(doctest)]
#[doc = include_str!("../docs/deploy.md")]
mod deploy {}
