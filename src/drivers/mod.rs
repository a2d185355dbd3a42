//! The drivers: what the engine asks of a database, each over the connection type of one library.

#[cfg(feature = "sqlite")]
pub(crate) mod rusqlite;
#[cfg(feature = "postgres")]
pub(crate) mod tokio_postgres;
