//! Drivers: what the engine asks of a database, over the connection of one library each.

#[cfg(feature = "sqlite")]
pub(crate) mod rusqlite;
#[cfg(feature = "postgres")]
pub(crate) mod tokio_postgres;
