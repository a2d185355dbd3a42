//! The reconciler: compares totals with the source rows page by page, and repairs drift by adding,
//! while writes go on.
//!
//! [`run`] drives a [`Reconciler`], which decides what to do, on an [`Audit`], which has the rows
//! and totals.
//!
//! # Examples
//!
//! ```
//! use keepcount::reconcile::{MemoryAudit, Mode, Options, Reconciler, SystemRuntime, run};
//! use keepcount::{Batch, Counter, MemoryStore, Record, Schema, Tally};
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
//! let mut repair = Reconciler::new(Mode::Repair, &SCHEMA, Options::default())?;
//! let report = run(&mut repair, &mut audit, &mut SystemRuntime::new())?;
//! assert_eq!(report.to_string(), "repair: 1 counter, 2 keys: 0 wrong, 2 missing, 0 orphan; 2 corrected; 1 page, 3 rows; complete");
//! drop(audit);
//! assert_eq!(store.total(SHOW_VOTES, 1)?, 2);
//! # Ok::<(), keepcount::Error>(())
//! ```

mod asynchronous;
pub mod audit;
mod driver;
mod freshness;
#[cfg(feature = "memory")]
mod memory;
mod options;
mod pages;
#[cfg(feature = "postgres")]
mod postgres;
mod progress;
mod reconciler;
mod recount;
mod report;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod rollup_join;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) mod runs;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod source;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod spans;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod statements;
pub(crate) mod token;
#[cfg(feature = "postgres")]
mod tokio_runtime;

pub use asynchronous::{AsyncAudit, AsyncRuntime, run_async};
pub use audit::Audit;
pub use driver::{Runtime, SystemRuntime, run};
pub use freshness::Freshness;
#[cfg(feature = "memory")]
pub use memory::{GracePeriod, MemoryAudit};
pub use options::{Mode, Options};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresAudit, PostgresSource, TypedPostgresSource};
pub use progress::Progress;
pub use reconciler::{Reconciler, Step};
pub use report::{CounterReport, Outcome, Report, Sample, Table};
#[cfg(feature = "sqlite")]
pub use sqlite::{Source, SqliteAudit, TypedSource};
pub use token::Token;
#[cfg(feature = "postgres")]
pub use tokio_runtime::{ThrottleAnswer, TokioRuntime, active_connections, replay_lag, replay_lag_bytes};
