//! The errors that stop a command. Their texts name the row, table, file or database concerned.

use std::fmt;
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// An event that does not fit the rows: nothing of it was applied.
    Refused(String),
    /// The application's own SQL failed.
    Sql(rusqlite::Error),
    /// The application's own SQL failed on PostgreSQL.
    Postgres(tokio_postgres::Error),
    /// keepcount failed.
    Count(keepcount::Error),
    /// A table of another application has the name of one of this application's tables.
    Foreign(String),
    /// Results could not be printed.
    Stdout(io::Error),
    /// Anything else, and errors that already name their file.
    Said(String),
}

impl Error {
    pub fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    /// Names the database in an error that comes from it.
    pub fn in_db(self, db: impl fmt::Display) -> Self {
        match self {
            Self::Sql(_) | Self::Postgres(_) | Self::Count(_) | Self::Foreign(_) => {
                Self::Said(format!("{db}: {self}"))
            }
            other => other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(text) | Self::Foreign(text) | Self::Said(text) => f.write_str(text),
            Self::Sql(error) => error.fmt(f),
            Self::Postgres(error) => with_causes(error, f),
            Self::Count(error) => with_causes(error, f),
            Self::Stdout(error) => write!(f, "stdout: {error}"),
        }
    }
}

/// Formats an error with its causes: a driver's error names the operation, and its source the
/// reason.
fn with_causes(error: &dyn std::error::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    f.write_str(&text)
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

/// Only printing applies `?` to an I/O error. Readers make errors that name their file.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Stdout(error)
    }
}
