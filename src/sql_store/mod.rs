//! The stores over an [`Executor`](crate::executor::Executor): the faces of the engine, one that
//! blocks and one that does not.

mod asynchronous;
mod blocking;

pub use self::asynchronous::{Any, AsyncSqlStore};
pub use self::blocking::SqlStore;
