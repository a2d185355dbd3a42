//! An application on PostgreSQL that writes with SeaORM, and keeps its counters in the same
//! transactions.

mod app;
#[path = "../../votes/counters.rs"]
pub mod counters;
mod entities;

pub use app::App;

/// Any error rolls the transaction back.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;
