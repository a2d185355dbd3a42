#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]

mod batch;
mod board;
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
mod layout;
mod mark;
pub mod observe;
#[cfg(feature = "postgres")]
mod postgres;
mod prune;
mod range;
pub mod reconcile;
mod record;
#[doc(hidden)]
pub mod replay;
mod rollup;
pub mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod sync;

pub use batch::Batch;
pub use board::{Board, BoardDef, Ranked, Ranking, Score};
pub use counter::{Counter, Def, Placed, Rollup};
pub use date::{Date, NoDate};
pub use decay::{Decayed, HalfLife, SCALE_BITS};
#[cfg(feature = "postgres")]
pub use drivers::tokio_postgres::PreparedStatements;
pub use error::{Cause, Error, Next, Result};
pub use key::{AsKey, Key, KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};
pub use layout::Layout;
pub use mark::Mark;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
pub use range::KeyRange;
pub use record::{Record, Tally};
pub use rollup::{Climb, Question};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{Applied, AsyncStore, Bracket, MemoryStore, Snapshot, Store};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use store::{Sweep, Swept};

/// The example in docs/deploy.md is a test.
#[cfg(doctest)]
#[doc = include_str!("../docs/deploy.md")]
mod deploy {}
