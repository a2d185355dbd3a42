//! The only I/O of SQL stores: what a driver does for the engine, over one connection or
//! transaction of the application.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll};

mod failure;
mod one_by_one;

pub use self::failure::{ErrorKind, Failure, fault_of_sqlstate};
pub use self::one_by_one::{Beginning, Halted, OneByOne, RolledBack, Statements};
#[cfg(feature = "postgres")]
pub(crate) use self::one_by_one::{CURSOR, MAX_FETCH};
use crate::batch::Batch;
pub use crate::error::server_text;
use crate::error::{Cause, Error, Result, shortened};
use crate::sql::{Dialect, Query};

/// One connection or transaction of the application, as the engine uses it.
///
/// A driver only executes. Which statements run, in which order, and what their errors mean is
/// decided by the engine.
///
/// A store or an audit has one, and tells it where each of its calls [ends](Self::finish).
pub trait Executor {
    /// The dialect of SQL that it runs.
    fn dialect(&self) -> Dialect;

    /// What an error of the library's means, as the cause of one of keepcount's.
    fn kind_of(&self, cause: &Cause) -> ErrorKind;

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
    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>>;

    /// Runs one query and passes each row to `each`, until that returns `false`.
    ///
    /// The answer may be as long as a table, unless it [is bounded](Query::is_bounded): the driver
    /// reads only some rows ahead. It runs after [`begin_read`](Self::begin_read) or
    /// [`begin`](Self::begin), and one at a time.
    ///
    /// # Errors
    ///
    /// The first failure.
    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>>;

    /// Runs statements in their order, each once for each of its rows of parameters, and returns
    /// how many rows each wrote.
    ///
    /// # Errors
    ///
    /// The first statement that failed or [was skipped](Query::is_skipped). In SQLite nothing after
    /// it ran.
    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>>;

    /// Runs a script of statements without parameters.
    ///
    /// # Errors
    ///
    /// The driver's error.
    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>>;

    /// Begins a transaction that may write, or a savepoint, if it [is not nested](Self::is_nested).
    ///
    /// # Errors
    ///
    /// The driver's error. The engine then still calls [`roll_back`](Self::roll_back).
    fn begin(&mut self) -> Reply<'_, Result<(), Failure>>;

    /// Makes what follows read one snapshot, until [`roll_back`](Self::roll_back). The connection
    /// must be [idle](Self::is_idle).
    ///
    /// # Errors
    ///
    /// The driver's error. The engine then still calls [`roll_back`](Self::roll_back).
    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>>;

    /// Whether the connection is in no transaction, neither the caller's nor its own.
    ///
    /// # Errors
    ///
    /// The driver's error.
    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>>;

    /// Commits what was begun.
    ///
    /// # Errors
    ///
    /// The driver's error, and whether it is certain that nothing was committed. The engine then
    /// still calls [`roll_back`](Self::roll_back).
    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>>;

    /// Ends what was begun, whatever its state is, and returns whether it is over.
    ///
    /// Within the caller's transaction, it makes sure that nothing of that can be committed.
    fn roll_back(&mut self) -> Reply<'_, bool>;

    /// Whether a rollback has found that the caller's transaction is gone.
    fn is_lost(&self) -> bool {
        false
    }

    /// Whether the failed call was rolled back completely and would not fail again in the same way,
    /// because the driver has removed the cause: prepared statements that the server has forgotten.
    ///
    /// Asking resets it.
    fn may_run_again(&mut self) -> bool {
        false
    }

    /// Ends a call of the store.
    ///
    /// A transaction that is still open then was begun by the executor, and the call's future was
    /// dropped, or a panic unwinds: it is rolled back, without waiting for that. Nothing can be
    /// reported.
    fn finish(&mut self);
}

/// Receives the rows of an answer, until it returns `false`.
pub type Each<'e> = dyn FnMut(&dyn Row) -> Result<bool> + Send + 'e;

/// Receives the rows of several answers, each with the position of its query.
pub type EachOf<'e> = dyn FnMut(usize, &dyn Row) -> Result<()> + Send + 'e;

/// What an executor answers: now, or later.
pub enum Reply<'x, T> {
    /// A driver that blocks has the answer when its call returns. `None` once it was taken.
    Now(Option<T>),
    /// The answer of a future.
    Later(Pin<Box<dyn Future<Output = T> + Send + 'x>>),
}

impl<'x, T> Reply<'x, T> {
    /// The answer of a driver that blocks.
    pub const fn now(answer: T) -> Self {
        Self::Now(Some(answer))
    }

    /// The answer of a future.
    pub fn later(answer: impl Future<Output = T> + Send + 'x) -> Self {
        Self::Later(Box::pin(answer))
    }
}

impl<T> fmt::Debug for Reply<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Now(_)) { "Now(..)" } else { "Later(..)" })
    }
}

impl<T: Unpin> Future for Reply<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            Self::Now(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later(answer) => answer.as_mut().poll(context),
        }
    }
}

/// An executor of one library: what a store or an audit is made over.
pub trait Connect: Executor + Sized {
    /// The library.
    type Driver: Driver;
    /// Its connection, as the application lends it.
    type Connection;

    /// An executor over a connection, in the caller's transaction if the library knows of one. Does
    /// no I/O.
    fn over(connection: Self::Connection) -> Self;
}

/// An executor whose [replies](Reply) are all there when its calls return.
pub trait Blocking: Executor {}

/// A library, by its rows.
pub trait Driver: 'static {
    /// A row of an answer, as the library gives it.
    type Row<'r>;
}

/// A call of a store or an audit: [finishes](Executor::finish) when it is dropped.
pub(crate) struct Call<'e, E: Executor + ?Sized>(&'e mut E);

/// Begins a call.
pub(crate) const fn call<E: Executor + ?Sized>(executor: &mut E) -> Call<'_, E> {
    Call(executor)
}

impl<E: Executor + ?Sized> Deref for Call<'_, E> {
    type Target = E;

    fn deref(&self) -> &E {
        self.0
    }
}

impl<E: Executor + ?Sized> DerefMut for Call<'_, E> {
    fn deref_mut(&mut self) -> &mut E {
        self.0
    }
}

impl<E: Executor + ?Sized> Drop for Call<'_, E> {
    fn drop(&mut self) {
        self.0.finish();
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
pub enum Stopped {
    /// A query failed.
    Failed {
        /// The position of the query.
        query: usize,
        /// The number of its row of parameters.
        row: usize,
        /// The driver's error.
        error: Failure,
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

impl Stopped {
    /// The error of queries that were stopped; `failed` translates the driver's error, given the
    /// position of the query.
    pub(crate) fn or(self, failed: impl FnOnce(usize, Failure) -> Error) -> Error {
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
pub enum NotCommitted {
    /// Nothing was committed.
    Refused(Failure),
    /// The outcome is unknown.
    Unknown(Failure),
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

    /// Has the row read as a record: calls [`Reader::read`] with the row as the library gives it.
    ///
    /// # Errors
    ///
    /// Those of the reader.
    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause>;
}

/// The application's way to read a row as a record and to tally that, for the rows of one library.
pub struct Reader(Box<dyn Any + Send + Sync>);

type Read<D> = Box<dyn Fn(&<D as Driver>::Row<'_>, &mut Batch) -> Result<(), Cause> + Send + Sync>;

impl Reader {
    pub(crate) fn new<D: Driver>(
        read: impl Fn(&D::Row<'_>, &mut Batch) -> Result<(), Cause> + Send + Sync + 'static,
    ) -> Self {
        let read: Read<D> = Box::new(read);
        Self(Box::new(read))
    }

    /// Reads a row, and tallies it to a batch.
    ///
    /// # Errors
    ///
    /// Those of the application, and one for the row of another library.
    pub fn read<D: Driver>(&self, row: &D::Row<'_>, to: &mut Batch) -> Result<(), Cause> {
        let read = self.0.downcast_ref::<Read<D>>();
        read.ok_or("the row is of another library than its reader")?(row, to)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader(..)")
    }
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
