#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]

mod batch;
pub mod concert;
pub mod conformance;
mod counter;
mod error;
mod key;
mod layout;
pub mod reconcile;
mod record;
pub mod sql;
mod store;

pub use batch::Batch;
pub use counter::{Counter, Def, Placed};
pub use error::{Cause, Error, Next, Result};
pub use key::{AsKey, Key, KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};
pub use layout::Layout;
pub use record::{Record, Tally};
#[cfg(feature = "sqlite")]
pub use store::SqliteStore;
pub use store::{Applied, MemoryStore, Snapshot, Store};
