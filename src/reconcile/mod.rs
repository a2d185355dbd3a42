//! The reconciler: compares totals with the source rows page by page, and repairs drift by adding,
//! while writes go on.
//!
//! [`verify`], [`repair`] and [`backfill`] are the usual runs. [`run`] drives a [`Reconciler`],
//! which decides what to do, on an [`Audit`], which has the rows and totals.
//!
//! # Examples
//!
//! ```
//! use keepcount::{Batch, Counter, MemoryStore, Record, Schema, Tally};
//! use keepcount::reconcile::{MemoryAudit, repair};
//!
//! const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
//! const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
//!
//! struct Vote(i64);
//!
//! impl Record for Vote {
//!     fn tally(&self, to: &mut Tally<'_>) {
//!         to.add(SHOW_VOTES, self.0, 1);
//!     }
//! }
//!
//! let votes = [Vote(1), Vote(1), Vote(2)]; // in key order
//! let mut store = MemoryStore::new(&SCHEMA);
//!
//! let mut audit = MemoryAudit::new(&mut store);
//! audit.add(SHOW_VOTES, |_| votes.iter())?;
//! let report = repair(&SCHEMA).run(&mut audit)?;
//! assert_eq!(report.to_string(), "repair: 1 counter, 2 keys: 0 wrong, 2 missing, 0 orphan; 2 corrected; 1 page, 3 rows; complete");
//! drop(audit);
//! assert_eq!(store.total(SHOW_VOTES, 1)?, 2);
//! # Ok::<(), keepcount::Error>(())
//! ```

mod active_runs;
pub mod audit;
#[cfg(feature = "sql")]
pub(crate) mod database;
mod facade;
mod freshness;
#[cfg(feature = "memory")]
mod memory;
mod options;
mod page_length;
#[cfg(feature = "postgres")]
mod postgres;
mod progress;
mod reconciler;
mod recount;
mod report;
mod run_loop;
mod runtime;
mod scope;
#[cfg(feature = "postgres")]
mod server_throttles;
#[cfg(feature = "sql")]
pub(crate) mod sql_audit;
#[cfg(feature = "sqlite")]
mod sqlite;
pub mod step;
pub(crate) mod token;
#[cfg(feature = "tokio")]
mod tokio_runtime;

pub use audit::{AsyncAudit, Audit};
#[cfg(feature = "sql")]
pub use database::Columns;
pub use facade::{Run, backfill, repair, verify};
pub use freshness::Freshness;
#[cfg(feature = "memory")]
pub use memory::{GracePeriod, MemoryAudit};
pub use options::{Mode, Options};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresAudit, PostgresRows};
pub use progress::Progress;
pub use reconciler::Reconciler;
pub use report::{CounterReport, Outcome, Overlap, Report, Sample};
pub use run_loop::{run, run_async};
pub use runtime::{AsyncRuntime, Runtime, SystemRuntime};
#[cfg(feature = "postgres")]
pub use server_throttles::{active_connections, replay_lag, replay_lag_bytes};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteAudit, SqliteRows};
pub use token::Token;
#[cfg(feature = "tokio")]
pub use tokio_runtime::TokioRuntime;
