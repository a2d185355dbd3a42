//! What a store, a driver, or statements of your own need besides what every user needs: keys,
//! ranges and counters without their types, what a batch means for rollups, and stores and audits
//! over any executor.
//!
//! An application that counts and reads names nothing of this. The module `executor` has what the
//! drivers of SQL stores implement, and [`reconcile::audit`](crate::reconcile::audit) for an audit.

pub use crate::counter::key_range::{KeyBounds, KeyRange};
pub use crate::counter::{CounterSpec, Rollup};
pub use crate::key::{KeyPart, KeyParts, KeyValue};
pub use crate::leaderboard::{LeaderboardId, Unscored};
#[cfg(feature = "sql")]
pub use crate::reconcile::database::Rows;
#[cfg(feature = "sql")]
pub use crate::reconcile::sql_audit::{AsyncSqlAudit, SqlAudit};
pub use crate::rollup_update::{RollupUpdate, TotalsRequest};
#[cfg(feature = "sql")]
pub use crate::sql_store::{Any, AsyncSqlStore, SqlStore};
