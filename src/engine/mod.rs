//! The engine: what SQL stores do, written once for every database and driver over an [`Executor`],
//! which does all I/O.
//!
//! All functions are async. A blocking driver's futures are ready at once, so a store over it polls
//! only once.

pub(crate) mod leaderboard;
pub(crate) mod offsets;
pub(crate) mod prune;
pub(crate) mod read;
pub(crate) mod readiness;
pub(crate) mod rows;
pub(crate) mod sweep_zeros;
pub(crate) mod tables;
pub(crate) mod write;

#[cfg(test)]
pub(crate) mod scripted;

use crate::counter::CounterId;
use crate::error::{Error, Result, chain};
use crate::executor::{ErrorKind, Executor, Failure, NotCommitted, Stopped};
use crate::sql;

/// Runs a call that is all of a transaction, and runs it once more if the driver has put right why
/// it failed.
macro_rules! run_again {
    ($executor:expr, $call:expr) => {{
        let mut done = $call;
        if done.is_err() && $executor.may_run_again() {
            done = $call;
        }
        done
    }};
}
pub(crate) use run_again;

/// Runs `work` in the caller's transaction, or in one that is begun here, and ends that one. It is
/// a macro since a function could not say that the future of a closure is `Send`.
macro_rules! transact {
    ($executor:expr, $operation:expr, $work:expr) => {
        $crate::engine::run_again!(
            $executor,
            match $crate::engine::begin($executor, || $operation.to_string()).await {
                Ok(nested) => {
                    let done = $work.await;
                    $crate::engine::end($executor, nested, || $operation.to_string(), done).await
                }
                Err(error) => Err(error),
            }
        )
    };
}
pub(crate) use transact;

/// The result of a future whose driver blocks: it is ready at the first poll.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => unreachable!("a driver that blocks is never waited for"),
    }
}

/// The owner of a failed statement. It tells what an unknown name in the error belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    /// The connection: BEGIN, COMMIT, a setting.
    Connection,
    /// keepcount, over this table.
    Table(&'a str),
    /// The application: the index of the statement among those that a write was given.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Row(usize),
}

/// Translates a driver's error for the caller. Not for errors of a commit.
pub(crate) fn failed(whose: Whose<'_>, operation: &str, error: impl Into<Failure>) -> Error {
    let operation = match whose {
        Whose::Row(at) => format!("{operation}, statement {} of the application's own", at + 1),
        _ => operation.to_owned(),
    };
    let Failure { kind, cause, .. } = error.into();
    let said = chain(&*cause);
    let absent = |table: String| Error::SchemaMismatch {
        table,
        reason: format!(
            "it is absent ({operation}: {said}); the store's create() makes the tables of totals"
        ),
    };
    match (whose, kind) {
        (_, ErrorKind::Busy(reason)) => Error::Busy { operation, reason, cause },
        (Whose::Table(_), ErrorKind::NoTable(Some(table))) => absent(table),
        // A message may be in any language, but it contains the table's name unchanged.
        (Whose::Table(table), ErrorKind::NoTable(None)) if said.contains(table) => {
            absent(table.to_owned())
        }
        (Whose::Table(table), ErrorKind::Misfit) => Error::SchemaMismatch {
            table: table.to_owned(),
            reason: format!("{said} ({operation})"),
        },
        _ => Error::Database { operation, cause },
    }
}

/// Translates a driver's error of an operation on the totals of a counter.
pub(crate) fn failed_on(what: &str, counter: &CounterId, error: Failure) -> Error {
    failed(
        Whose::Table(&counter.table_name()),
        &format!("{what} of counter {}", counter.full_name()),
        error,
    )
}

/// Translates why queries stopped for the caller.
pub(crate) trait OrFailed<T> {
    /// A driver's error is one of statements of this owner.
    fn or_failed(self, whose: Whose<'_>, operation: &str) -> Result<T>;

    /// A driver's error is one of an operation on the totals of a counter.
    fn or_failed_on(self, what: &str, counter: &CounterId) -> Result<T>;
}

impl<T> OrFailed<T> for Result<T, Stopped> {
    fn or_failed(self, whose: Whose<'_>, operation: &str) -> Result<T> {
        self.map_err(|stopped| stopped.or(|_, error| failed(whose, operation, error)))
    }

    fn or_failed_on(self, what: &str, counter: &CounterId) -> Result<T> {
        self.map_err(|stopped| stopped.or(|_, error| failed_on(what, counter, error)))
    }
}

/// The owner of statements over the catalogue.
pub(crate) const fn of_catalogue() -> Whose<'static> {
    Whose::Table(sql::CATALOGUE)
}

/// Begins a transaction unless the caller's is open. Returns whether the caller's is open.
pub(crate) async fn begin<E: Executor + ?Sized>(
    executor: &mut E,
    operation: impl FnOnce() -> String,
) -> Result<bool> {
    if executor.is_nested() {
        return Ok(true);
    }
    match executor.begin().await {
        Ok(()) => Ok(false),
        Err(error) => {
            let operation = operation();
            let error = failed(Whose::Connection, &operation, error);
            Err(if executor.roll_back().await { error } else { still_open(&operation, error) })
        }
    }
}

/// Ends what [`begin`] began, with a commit if `done` is `Ok`. Within the caller's transaction it
/// only checks whether that is still open.
pub(crate) async fn end<E: Executor + ?Sized, T>(
    executor: &mut E,
    is_nested: bool,
    operation: impl FnOnce() -> String,
    done: Result<T>,
) -> Result<T> {
    if is_nested {
        return done.map_err(|error| if executor.is_nested() { error } else { lost(error) });
    }
    let (operation, error) = match done {
        Err(error) => (operation(), error),
        Ok(done) => match executor.commit().await {
            Ok(()) => return Ok(done),
            Err(NotCommitted::Refused(error)) => {
                let operation = operation();
                let error = failed(Whose::Connection, &operation, error);
                (operation, error)
            }
            Err(NotCommitted::Unknown(error)) => {
                executor.roll_back().await;
                return Err(Error::Indeterminate { operation: operation(), cause: error.cause });
            }
        },
    };
    Err(match executor.roll_back().await {
        true if executor.is_lost() => lost(error),
        true => error,
        false => still_open(&operation, error),
    })
}

/// After failed reads, checks whether the caller's transaction was lost with them. SQLite rolls
/// back by itself when a disk is full or fails. A statement that only reads can cause it too, since
/// changed pages may have to be written to make room for what it reads.
pub(crate) fn after_reads<E: Executor + ?Sized, T>(
    executor: &E,
    was_nested: bool,
    done: Result<T>,
) -> Result<T> {
    done.map_err(|error| if was_nested && !executor.is_nested() { lost(error) } else { error })
}

/// The error when the caller's transaction is gone.
fn lost(error: Error) -> Error {
    match error {
        Error::Database { operation, cause } | Error::Busy { operation, cause, .. } => {
            Error::TransactionLost { operation, cause }
        }
        lost @ (Error::TransactionLost { .. } | Error::TransactionOpen { .. }) => lost,
        other => {
            Error::TransactionLost { operation: "writing totals".to_owned(), cause: other.into() }
        }
    }
}

/// The error for the failure of an application's work in a transaction. The work's own error is
/// the application's.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn work_failed(operation: &str) -> Error {
    Error::Database { operation: operation.to_owned(), cause: "its work failed".into() }
}

/// The error when a transaction that was begun here is still open.
pub(crate) fn still_open(operation: &str, error: Error) -> Error {
    match error {
        Error::Database { operation, cause } | Error::Busy { operation, cause, .. } => {
            Error::TransactionOpen { operation, cause }
        }
        unknown @ Error::Indeterminate { .. } => unknown,
        other => Error::TransactionOpen { operation: operation.to_owned(), cause: other.into() },
    }
}
