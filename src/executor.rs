//! The only I/O of SQL stores: what a driver does for the engine, over one connection or transaction of the application's.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Cause, Error, Result, shortened};
use crate::sql::{Dialect, Query};

/// One connection or transaction of the application's, as the engine uses it.
///
/// A driver does what it is told and judges nothing: which statements run, in which order and what their errors mean is the engine's
/// to say. A driver that blocks does its work inside the call and returns a future that is ready.
///
/// An executor is made for one call of a store and dropped behind it. One that is dropped in a transaction of its own, since the future
/// that used it was dropped, rolls that transaction back.
pub trait Executor {
    /// Whose SQL it runs.
    const DIALECT: Dialect;
    /// A row of an answer.
    type Row<'r>: Row;
    /// The driver's own error.
    type Error: DriverError;

    /// Whether what is executed belongs to a transaction of the caller's, which the caller ends.
    fn is_nested(&self) -> bool;

    /// Runs queries in their order, and gives each row to `each`, with the position of its query. Outside a transaction they need not
    /// be of one snapshot, but for those behind one that [is single](Query::is_single), which are of that one's.
    ///
    /// # Errors
    ///
    /// The first that failed.
    fn fetch(
        &mut self,
        queries: &[Query<'_>],
        each: impl FnMut(usize, &Self::Row<'_>) -> Result<()> + Send,
    ) -> impl Future<Output = Result<(), Stopped<Self::Error>>> + Send;

    /// Runs statements in their order, each once for each of its rows of parameters; gives how many rows each wrote.
    ///
    /// # Errors
    ///
    /// The first that failed, or [was skipped](Query::is_skipped). In SQLite nothing behind it ran.
    fn execute(&mut self, queries: &[Query<'_>])
    -> impl Future<Output = Result<Vec<u64>, Stopped<Self::Error>>> + Send;

    /// Runs a script of statements without parameters.
    ///
    /// # Errors
    ///
    /// What the driver says.
    fn run(&mut self, script: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Begins a transaction that may write, or a savepoint, where it [is not nested](Self::is_nested).
    ///
    /// # Errors
    ///
    /// What the driver says; [`roll_back`](Self::roll_back) is called then too.
    fn begin(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Commits what was begun.
    ///
    /// # Errors
    ///
    /// What the driver says, and whether it is known that nothing was committed; [`roll_back`](Self::roll_back) is called then too.
    fn commit(&mut self) -> impl Future<Output = Result<(), NotCommitted<Self::Error>>> + Send;

    /// Ends what was begun, whatever became of it; gives whether it is over. In a transaction of the caller's it makes sure that nothing of
    /// that can be committed.
    fn roll_back(&mut self) -> impl Future<Output = bool> + Send;

    /// Whether what failed was taken back whole and would not fail again in the same way, since the driver has put right why it did:
    /// statements that were prepared and that the server has forgotten. Asked once.
    fn may_run_again(&mut self) -> bool {
        false
    }
}

/// Why [`fetch`](Executor::fetch) or [`execute`](Executor::execute) did not come to their end.
#[derive(Debug)]
pub enum Stopped<E> {
    /// A query failed.
    Failed {
        /// The position of the query.
        query: usize,
        /// Which of its rows of parameters.
        row: usize,
        /// What the driver says.
        error: E,
    },
    /// A statement did not write as many rows as it was to write.
    Skipped {
        /// The position of the statement.
        query: usize,
        /// Which of its rows of parameters.
        row: usize,
    },
    /// The engine had enough of it.
    Refused(Error),
}

/// Why [`commit`](Executor::commit) did not succeed.
#[derive(Debug)]
pub enum NotCommitted<E> {
    /// Nothing was committed.
    Refused(E),
    /// Nobody knows.
    Unknown(E),
}

/// A row of an answer.
pub trait Row {
    /// How many columns it has.
    fn len(&self) -> usize;

    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A column, from 0 on; [`Column::Null`] where there is none.
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
    /// A text that is not UTF-8, as a database may hold.
    NoText(Cow<'r, [u8]>),
    /// Bytes.
    Bytes(Cow<'r, [u8]>),
    /// A UUID.
    Uuid([u8; 16]),
    /// A value of another type, by the type's name.
    Other(Cow<'r, str>),
}

/// As a message shows it: what is no text as its bytes.
impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex =
            |bytes: &[u8]| shortened(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
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

/// The error of a driver.
pub trait DriverError: std::error::Error + Send + Sync + Sized + 'static {
    /// What it means.
    fn kind(&self) -> ErrorKind;

    /// The error as a cause.
    fn into_cause(self) -> Cause;
}

/// What the error of a driver means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing was done, and the whole transaction may be tried again, for this reason.
    Busy(&'static str),
    /// A sum left 64 bits.
    Overflow,
    /// A table is absent: this one, or one that the database did not name apart.
    NoTable(Option<String>),
    /// A table is not what the statement takes it for.
    Misfit,
    /// What the database may not be asked now: it can only be read.
    ReadOnly,
    /// Anything else.
    Other,
}
