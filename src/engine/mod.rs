//! What SQL stores do, once for every database and driver: over an [`Executor`], which is all the I/O there is.
//!
//! Everything is written as if the database had to be waited for. A driver that blocks is ready at once, so a store over it polls once.

pub(crate) mod audit;
pub(crate) mod leaderboard;
pub(crate) mod read;
pub(crate) mod readiness;
pub(crate) mod retention;
pub(crate) mod rows;
pub(crate) mod schema;
pub(crate) mod sweep;
pub(crate) mod write;

#[cfg(test)]
mod scripted;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::counter::CounterId;
use crate::error::{Error, Result, chain};
use crate::executor::{DriverError, ErrorKind, Executor, NotCommitted, Stopped};

/// The result of a future whose driver blocks: it is ready when it is polled.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("a driver that blocks is never waited for"),
    }
}

/// Whose statement failed: that says what a name belongs to which the database does not know.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    /// The connection's: BEGIN, COMMIT, a setting.
    Connection,
    /// keepcount's, over this table.
    Table(&'a str),
    /// The application's own, of those that a write was given, from 0.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Row(usize),
}

/// What a driver's error means to the caller, other than one of a commit.
pub(crate) fn failed<E: DriverError>(whose: Whose<'_>, operation: &str, error: E) -> Error {
    let operation = match whose {
        Whose::Row(at) => format!("{operation}, statement {} of the application's own", at + 1),
        _ => operation.to_owned(),
    };
    let (kind, cause) = (error.kind(), error.into_cause());
    let said = chain(&*cause);
    let absent = |table: String| Error::SchemaMismatch {
        table,
        reason: format!("it is absent ({operation}: {said}); the store's create() makes the tables of totals"),
    };
    match (whose, kind) {
        (_, ErrorKind::Busy(reason)) => Error::Busy { operation, reason, cause },
        (Whose::Table(_), ErrorKind::NoTable(Some(table))) => absent(table),
        // In whatever language a message is, a name is in it as it is.
        (Whose::Table(table), ErrorKind::NoTable(None)) if said.contains(table) => absent(table.to_owned()),
        (Whose::Table(table), ErrorKind::Misfit) => {
            Error::SchemaMismatch { table: table.to_owned(), reason: format!("{said} ({operation})") }
        }
        _ => Error::Database { operation, cause },
    }
}

/// What a driver's error means to the caller, who was doing something to the totals of a counter.
pub(crate) fn failed_on<E: DriverError>(what: &str, counter: &CounterId, error: E) -> Error {
    failed(Whose::Table(&counter.table_name()), &format!("{what} of counter {}", counter.full_name()), error)
}

impl<E: DriverError> Stopped<E> {
    /// The error of what did not come to its end, where `failed` says what the driver's means, with the position of the query.
    pub(crate) fn or(self, failed: impl FnOnce(usize, E) -> Error) -> Error {
        match self {
            Self::Failed { query, error, .. } => failed(query, error),
            Self::Skipped { .. } => skipped("of the store's".to_owned()),
            Self::Refused(error) => error,
        }
    }
}

/// The error of a write that wrote nothing.
pub(crate) fn skipped(table: String) -> Error {
    let reason = "a write to it was skipped; it must have no triggers or rules".to_owned();
    Error::SchemaMismatch { table, reason }
}

/// Begins a transaction, unless one of the caller's is open; gives whether one is.
pub(crate) async fn begin<E: Executor>(executor: &mut E, operation: &str) -> Result<bool> {
    if executor.is_nested() {
        return Ok(true);
    }
    match executor.begin().await {
        Ok(()) => Ok(false),
        Err(error) => {
            let error = failed(Whose::Connection, operation, error);
            Err(if executor.roll_back().await { error } else { still_open(operation, error) })
        }
    }
}

/// Ends what was begun, with a commit where it is done. In a transaction of the caller's it only looks whether that is still there.
pub(crate) async fn end<E: Executor, T>(
    executor: &mut E,
    is_nested: bool,
    operation: &str,
    done: Result<T>,
) -> Result<T> {
    if is_nested {
        return done.map_err(|error| if executor.is_nested() { error } else { lost(error) });
    }
    let error = match done {
        Err(error) => error,
        Ok(done) => match executor.commit().await {
            Ok(()) => return Ok(done),
            Err(NotCommitted::Refused(error)) => failed(Whose::Connection, operation, error),
            Err(NotCommitted::Unknown(error)) => {
                let error = Error::Indeterminate { operation: operation.to_owned(), cause: error.into_cause() };
                executor.roll_back().await;
                return Err(error);
            }
        },
    };
    Err(if executor.roll_back().await { error } else { still_open(operation, error) })
}

/// Looks, after reads that failed, whether the caller's transaction went with them: SQLite rolls back by itself when a disk is full or fails, also
/// under a statement that only reads, since pages that were changed may have to be written to make room for what it reads.
pub(crate) fn after_reads<E: Executor, T>(executor: &E, was_nested: bool, done: Result<T>) -> Result<T> {
    done.map_err(|error| if was_nested && !executor.is_nested() { lost(error) } else { error })
}

/// An error after which the caller's transaction is gone.
fn lost(error: Error) -> Error {
    match error {
        Error::Database { operation, cause } | Error::Busy { operation, cause, .. } => {
            Error::TransactionLost { operation, cause }
        }
        lost @ (Error::TransactionLost { .. } | Error::TransactionOpen { .. }) => lost,
        other => Error::TransactionLost { operation: "writing totals".to_owned(), cause: other.into() },
    }
}

/// An error after which a transaction that was begun here is open still.
pub(crate) fn still_open(operation: &str, error: Error) -> Error {
    match error {
        Error::Database { operation, cause } | Error::Busy { operation, cause, .. } => {
            Error::TransactionOpen { operation, cause }
        }
        unknown @ Error::Indeterminate { .. } => unknown,
        other => Error::TransactionOpen { operation: operation.to_owned(), cause: other.into() },
    }
}
