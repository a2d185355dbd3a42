//! The audits of a database over an [`Executor`](crate::executor::Executor): faces of
//! [`Database`](super::database), one that blocks and one that does not.

mod asynchronous;
mod blocking;

pub use self::asynchronous::AsyncSqlAudit;
pub use self::blocking::SqlAudit;
