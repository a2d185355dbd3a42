//! What stops a command, in words that name the thing concerned.

use std::fmt;
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// An event that does not fit the rows: nothing of it was applied.
    Refused(String),
    /// The application's own SQL failed.
    Sql(rusqlite::Error),
    /// The same, on PostgreSQL.
    Postgres(tokio_postgres::Error),
    /// keepcount failed.
    Count(keepcount::Error),
    /// A table has the name of one of the application's, and is another's.
    Foreign(String),
    /// Results could not be printed.
    Stdout(io::Error),
    /// Anything else, and what has got its file's name.
    Said(String),
}

impl Error {
    pub fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    /// Names the database in an error that comes from it.
    pub fn in_db(self, db: impl fmt::Display) -> Self {
        match self {
            Self::Sql(_) | Self::Postgres(_) | Self::Count(_) | Self::Foreign(_) => Self::Said(format!("{db}: {self}")),
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) | Self::Foreign(text) | Self::Said(text) => f.write_str(text),
            Self::Sql(error) => error.fmt(f),
            // The driver says what it did; what went wrong stands behind it.
            Self::Postgres(error) => match (error.as_db_error(), std::error::Error::source(error)) {
                (Some(said), _) => said.fmt(f),
                (None, Some(source)) => write!(f, "{error}: {source}"),
                (None, None) => error.fmt(f),
            },
            Self::Count(error) => error.fmt(f),
            Self::Stdout(error) => write!(f, "stdout: {error}"),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<keepcount::Error> for Error {
    fn from(error: keepcount::Error) -> Self {
        Self::Count(error)
    }
}

/// Only printing uses `?` on I/O; readers name their file themselves.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Stdout(error)
    }
}
