//! The only I/O of SQL stores: what a driver does for the engine, over one connection or
//! transaction of the application.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Cause, Error, Result, shortened};
use crate::sql::{Dialect, Query};

/// What the executors of one library have in common, whatever they borrow.
pub trait Driver: 'static {
    /// The dialect of SQL.
    const DIALECT: Dialect;
    /// A row of an answer.
    type Row<'r>: Row;
    /// The library's own error.
    type Error: DriverError;
}

/// The error of an executor's driver.
pub type ErrorOf<E> = <<E as Executor>::Driver as Driver>::Error;

/// A row of an executor's answer.
pub type RowOf<'r, E> = <<E as Executor>::Driver as Driver>::Row<'r>;

/// One connection or transaction of the application, as the engine uses it.
///
/// A driver only executes. Which statements run, in which order, and what their errors mean is
/// decided by the engine. A blocking driver does its work inside the call and returns a future that
/// is ready.
///
/// An executor is made for one call of a store and dropped after it. If it is dropped in a
/// transaction that it began, because the future that used it was dropped, it rolls that
/// transaction back.
pub trait Executor {
    /// What its connections speak.
    type Driver: Driver;

    /// The dialect of SQL that it runs.
    const DIALECT: Dialect = <Self::Driver as Driver>::DIALECT;

    /// Whether statements belong to a transaction of the caller, which the caller ends.
    fn is_nested(&self) -> bool;

    /// Runs queries in their order, and passes each row to `each` with the position of its query.
    ///
    /// Outside a transaction they need not read one snapshot, except those after a query that [is
    /// single](Query::is_single), which read that query's snapshot.
    ///
    /// # Errors
    ///
    /// The first failure.
    fn fetch(
        &mut self,
        queries: &[Query<'_>],
        each: impl FnMut(usize, &RowOf<'_, Self>) -> Result<()> + Send,
    ) -> impl Future<Output = Result<(), Stopped<ErrorOf<Self>>>> + Send;

    /// Runs one query and passes each row to `each`, until that returns `false`.
    ///
    /// The answer may be as long as a table, unless it [is bounded](Query::is_bounded): the driver
    /// reads only some rows ahead. It runs after [`begin_read`](Self::begin_read) or
    /// [`begin`](Self::begin), and one at a time.
    ///
    /// # Errors
    ///
    /// The first failure.
    fn scan(
        &mut self,
        query: &Query<'_>,
        each: impl FnMut(&RowOf<'_, Self>) -> Result<bool> + Send,
    ) -> impl Future<Output = Result<(), Stopped<ErrorOf<Self>>>> + Send;

    /// Runs statements in their order, each once for each of its rows of parameters, and returns
    /// how many rows each wrote.
    ///
    /// # Errors
    ///
    /// The first statement that failed or [was skipped](Query::is_skipped). In SQLite nothing after
    /// it ran.
    fn execute(
        &mut self,
        queries: &[Query<'_>],
    ) -> impl Future<Output = Result<Vec<u64>, Stopped<ErrorOf<Self>>>> + Send;

    /// Runs a script of statements without parameters.
    ///
    /// # Errors
    ///
    /// The driver's error.
    fn run(&mut self, script: &str) -> impl Future<Output = Result<(), ErrorOf<Self>>> + Send;

    /// Begins a transaction that may write, or a savepoint, if it [is not nested](Self::is_nested).
    ///
    /// # Errors
    ///
    /// The driver's error. The engine then still calls [`roll_back`](Self::roll_back).
    fn begin(&mut self) -> impl Future<Output = Result<(), ErrorOf<Self>>> + Send;

    /// Makes what follows read one snapshot, until [`roll_back`](Self::roll_back). The connection
    /// must be [idle](Self::is_idle).
    ///
    /// # Errors
    ///
    /// The driver's error. The engine then still calls [`roll_back`](Self::roll_back).
    fn begin_read(
        &mut self,
        reading: Reading<'_>,
    ) -> impl Future<Output = Result<(), ErrorOf<Self>>> + Send;

    /// Whether the connection is in no transaction, neither the caller's nor its own.
    ///
    /// # Errors
    ///
    /// The driver's error.
    fn is_idle(&mut self) -> impl Future<Output = Result<bool, ErrorOf<Self>>> + Send;

    /// Commits what was begun.
    ///
    /// # Errors
    ///
    /// The driver's error, and whether it is certain that nothing was committed. The engine then
    /// still calls [`roll_back`](Self::roll_back).
    fn commit(&mut self) -> impl Future<Output = Result<(), NotCommitted<ErrorOf<Self>>>> + Send;

    /// Ends what was begun, whatever its state is, and returns whether it is over.
    ///
    /// Within the caller's transaction, it makes sure that nothing of that can be committed.
    fn roll_back(&mut self) -> impl Future<Output = bool> + Send;

    /// Whether the failed call was rolled back completely and would not fail again in the same way,
    /// because the driver has removed the cause: prepared statements that the server has forgotten.
    ///
    /// Asking resets it.
    fn may_run_again(&mut self) -> bool {
        false
    }
}

/// How [`begin_read`](Executor::begin_read) begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reading<'a> {
    /// A script to run first, before the snapshot is taken. Not in SQLite.
    pub script: &'a str,
    /// Whether nobody may write meanwhile, because the files that are read have a snapshot each.
    /// In SQLite alone.
    pub is_locked: bool,
}

/// Why [`fetch`](Executor::fetch), [`scan`](Executor::scan) or [`execute`](Executor::execute)
/// stopped early.
#[derive(Debug)]
pub enum Stopped<E> {
    /// A query failed.
    Failed {
        /// The position of the query.
        query: usize,
        /// The number of its row of parameters.
        row: usize,
        /// The driver's error.
        error: E,
    },
    /// A statement wrote another number of rows than it must.
    Skipped {
        /// The position of the statement.
        query: usize,
        /// The number of its row of parameters.
        row: usize,
    },
    /// The engine refused a row.
    Refused(Error),
}

impl<E> Stopped<E> {
    /// The error of queries that were stopped; `failed` translates the driver's error, given the
    /// position of the query.
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

/// Why [`commit`](Executor::commit) did not succeed.
#[derive(Debug)]
pub enum NotCommitted<E> {
    /// Nothing was committed.
    Refused(E),
    /// The outcome is unknown.
    Unknown(E),
}

/// A row of an answer.
pub trait Row {
    /// The number of columns.
    fn len(&self) -> usize;

    /// Whether it has no columns.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The column at an index, from 0 on; [`Column::Null`] if there is none.
    fn column(&self, index: usize) -> Column<'_>;
}

/// A column of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Column<'r> {
    /// No value.
    Null,
    /// An integer.
    Integer(i64),
    /// A number that is not an integer.
    Real(f64),
    /// A text.
    Text(Cow<'r, str>),
    /// A text that is not UTF-8, which some databases allow.
    NoText(Cow<'r, [u8]>),
    /// Bytes.
    Bytes(Cow<'r, [u8]>),
    /// A UUID.
    Uuid([u8; 16]),
    /// A value of another type, by the type's name.
    Other(Cow<'r, str>),
}

impl Column<'_> {
    /// The same column, with nothing borrowed from its row.
    #[must_use]
    pub fn into_owned(self) -> Column<'static> {
        match self {
            Self::Null => Column::Null,
            Self::Integer(value) => Column::Integer(value),
            Self::Real(value) => Column::Real(value),
            Self::Text(text) => Column::Text(text.into_owned().into()),
            Self::NoText(bytes) => Column::NoText(bytes.into_owned().into()),
            Self::Bytes(bytes) => Column::Bytes(bytes.into_owned().into()),
            Self::Uuid(bytes) => Column::Uuid(bytes),
            Self::Other(kind) => Column::Other(kind.into_owned().into()),
        }
    }
}

/// As a message shows it. Anything that is not text is shown as its bytes.
impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| {
            shortened(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
        };
        match self {
            Self::Null => f.write_str("null"),
            Self::Integer(value) => value.fmt(f),
            Self::Real(value) => value.fmt(f),
            Self::Text(text) => f.write_str(&shortened(&text.escape_debug().to_string())),
            Self::NoText(bytes) => write!(f, "a text of the bytes {}", hex(bytes)),
            Self::Bytes(bytes) => write!(f, "a blob of {} bytes, {}", bytes.len(), hex(bytes)),
            Self::Uuid(bytes) => crate::key::KeyValue::Uuid(*bytes).fmt(f),
            Self::Other(kind) => write!(f, "a column of type {kind}"),
        }
    }
}

/// A driver's error.
pub trait DriverError: std::error::Error + Send + Sync + Sized + 'static {
    /// What the error means.
    fn kind(&self) -> ErrorKind;

    /// The error as a cause.
    fn into_cause(self) -> Cause;

    /// What is wrong with the statement itself, or with the rows that it reads, if the error is
    /// about those: the source of a counter is then at fault, and not the database.
    fn fault(&self) -> Option<String> {
        None
    }
}

/// What a driver's error means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing was done, and the whole transaction may be tried again, for this reason.
    Busy(&'static str),
    /// A sum left 64 bits.
    Overflow,
    /// A table is absent: this one, or one that the database did not name separately.
    NoTable(Option<String>),
    /// A table is not as the statement expects.
    Misfit,
    /// The database can only be read now.
    ReadOnly,
    /// Anything else.
    Other,
}
