//! The executor over a library that runs one statement at a time and says in a call of its own how
//! a transaction begins and ends: what such a library does, and all that follows from it.

use super::{
    Connect, Driver, Each, EachOf, ErrorKind, Executor, Failure, NotCommitted, Reading, Reply, Row,
    Stopped,
};
use crate::error::{Cause, Error, Result};
use crate::sql::{Dialect, Query, Value};

/// A library that runs one statement at a time, over one connection or transaction of the
/// application. [`OneByOne`] makes an executor of it.
///
/// A library that blocks answers with [`Reply::now`].
pub trait Statements: Sized + Send {
    /// The library.
    type Driver: Driver;
    /// Its connection, as the application lends it.
    type Connection;

    /// Over a connection. Does no I/O.
    fn over(connection: Self::Connection) -> Self;

    /// The dialect of SQL that it runs.
    fn dialect(&self) -> Dialect;

    /// What an error of the library's means, as the cause of one of keepcount's.
    fn kind_of(&self, cause: &Cause) -> ErrorKind;

    /// Whether the connection was in a transaction of the caller when it was lent.
    fn is_callers(&self) -> bool;

    /// Whether [`begin`](Self::begin) sets a savepoint in the caller's transaction. Without, a
    /// failure there is one of the whole transaction.
    fn has_savepoints(&self) -> bool;

    /// Runs a statement and passes each row to `each`, until that returns `false`. Returns whether
    /// it never did. `keep` says whether the statement may stay prepared.
    ///
    /// # Errors
    ///
    /// The library's, and those of `each`.
    fn fetch<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [Value<'_>],
        keep: bool,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<bool, Halted>>;

    /// Runs a statement, and returns how many rows it wrote.
    ///
    /// # Errors
    ///
    /// The library's.
    fn execute<'x>(
        &'x mut self,
        text: &'x str,
        values: &'x [Value<'_>],
        keep: bool,
    ) -> Reply<'x, Result<u64, Failure>>;

    /// Runs statements without parameters.
    ///
    /// # Errors
    ///
    /// The library's.
    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>>;

    /// Begins a transaction; a savepoint in the caller's.
    ///
    /// # Errors
    ///
    /// The library's.
    fn begin(&mut self, beginning: Beginning) -> Reply<'_, Result<(), Failure>>;

    /// As [`Executor::commit`].
    ///
    /// # Errors
    ///
    /// As that.
    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>>;

    /// Rolls back what was begun, and says what became of it.
    fn roll_back(&mut self) -> Reply<'_, RolledBack>;

    /// Rolls back what was begun, without waiting for that. `is_begun` says whether the library has
    /// answered that it began; its future may have been dropped before.
    fn start_rollback(&mut self, is_begun: bool);

    /// As [`Executor::is_idle`], of a connection that is not [the caller's](Self::is_callers), in
    /// PostgreSQL. In SQLite a transaction that cannot begin says so.
    ///
    /// # Errors
    ///
    /// The library's.
    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::now(Ok(true))
    }

    /// Forgets the prepared statements, which the server has forgotten, and returns whether it did.
    fn forget(&mut self) -> Reply<'_, bool> {
        Reply::now(false)
    }
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Beginning {
    /// It may write.
    Write,
    /// It reads one snapshot.
    Read,
}

/// What became of a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolledBack {
    /// What was begun is over.
    Over,
    /// It is still open.
    Open,
    /// The caller's transaction is gone, and the savepoint with it.
    Lost,
}

/// Why a statement halted.
#[derive(Debug)]
pub enum Halted {
    /// It failed.
    Failed(Failure),
    /// The engine refused a row.
    Refused(Error),
}

impl From<Failure> for Halted {
    fn from(error: Failure) -> Self {
        Self::Failed(error)
    }
}

impl Halted {
    fn at(self, query: usize, row: usize) -> Stopped {
        match self {
            Self::Failed(error) => Stopped::Failed { query, row, error },
            Self::Refused(error) => Stopped::Refused(error),
        }
    }
}

/// An executor over a library that runs one statement at a time.
#[derive(Debug)]
pub struct OneByOne<S> {
    statements: S,
    /// What was begun and did not end.
    open: Option<Beginning>,
    /// Whether the library has answered that it began.
    is_begun: bool,
    /// Whether the caller's transaction is gone.
    is_lost: bool,
    /// Whether the reason of the last failure was put right.
    recovered: bool,
}

/// The number of rows that a cursor returns at a time.
pub(crate) const MAX_FETCH: usize = 2_000;
/// The cursor of a scan.
pub(crate) const CURSOR: &str = "keepcount_scan";

impl<S: Statements> Connect for OneByOne<S> {
    type Driver = S::Driver;
    type Connection = S::Connection;

    fn over(connection: S::Connection) -> Self {
        Self {
            statements: S::over(connection),
            open: None,
            is_begun: false,
            is_lost: false,
            recovered: false,
        }
    }
}

impl<S: Statements> OneByOne<S> {
    async fn fetch_all(
        &mut self,
        queries: &[Query<'_>],
        begun: &mut bool,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        // The statements of an audit are long and rare.
        let keep = self.open != Some(Beginning::Read);
        for (query, of) in queries.iter().enumerate() {
            for (row, values) in of.rows().enumerate() {
                let mut one = |fetched: &dyn Row| {
                    *begun = true;
                    each(query, fetched).map(|()| !of.is_single())
                };
                let read = self.statements.fetch(&of.text, values, keep, &mut one).await;
                read.map_err(|halted| halted.at(query, row))?;
            }
        }
        Ok(())
    }

    /// Fetches. In SQLite, a query that is single and those after it need a snapshot.
    async fn fetch_once(
        &mut self,
        queries: &[Query<'_>],
        begun: &mut bool,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        let wants_snapshot =
            self.dialect() == Dialect::Sqlite && queries.iter().any(Query::is_single);
        if !wants_snapshot || self.statements.is_callers() || self.open.is_some() {
            return self.fetch_all(queries, begun, each).await;
        }
        // It fails in a transaction that the library does not know of, which has a snapshot.
        let is_begun = self.begin_with(Beginning::Write, Beginning::Read).await.is_ok();
        if !is_begun {
            self.open = None;
        }
        let fetched = self.fetch_all(queries, begun, each).await;
        if is_begun {
            self.end().await;
        }
        fetched
    }

    async fn execute_all(&mut self, queries: &[Query<'_>]) -> Result<Vec<u64>, Stopped> {
        let mut all = Vec::with_capacity(queries.len());
        for (query, of) in queries.iter().enumerate() {
            let mut sum = 0;
            for (row, values) in of.rows().enumerate() {
                let written = self.statements.execute(&of.text, values, true).await;
                let written = written.map_err(|error| Halted::from(error).at(query, row))?;
                if of.is_skipped(values, written) {
                    return Err(Stopped::Skipped { query, row });
                }
                sum += written;
            }
            all.push(sum);
        }
        Ok(all)
    }

    async fn scan_all(&mut self, query: &Query<'_>, each: &mut Each<'_>) -> Result<(), Stopped> {
        for (row, values) in query.rows().enumerate() {
            let all = if query.is_bounded() || self.dialect() == Dialect::Sqlite {
                self.statements.fetch(&query.text, values, false, each).await
            } else {
                self.scan_by_cursor(query, values, each).await
            };
            if !all.map_err(|halted| halted.at(0, row))? {
                break;
            }
        }
        Ok(())
    }

    /// A cursor: a library may read all of an answer at once, or read a rest that nobody wants.
    /// FETCH returns other columns for another cursor, so it must not stay prepared.
    async fn scan_by_cursor(
        &mut self,
        query: &Query<'_>,
        values: &[Value<'_>],
        each: &mut Each<'_>,
    ) -> Result<bool, Halted> {
        let declare = format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR {}", query.text);
        self.statements.execute(&declare, values, false).await?;
        let next = format!("FETCH {MAX_FETCH} FROM {CURSOR}");
        let mut is_whole = true;
        loop {
            let mut rows = 0;
            let mut one = |row: &dyn Row| {
                rows += 1;
                is_whole = is_whole && each(row)?;
                Ok(true)
            };
            self.statements.fetch(&next, &[], false, &mut one).await?;
            if !is_whole || rows < MAX_FETCH {
                break;
            }
        }
        self.statements.run(&format!("CLOSE {CURSOR}")).await?;
        Ok(is_whole)
    }

    /// Begins as `beginning` says, for what `open` says.
    async fn begin_with(&mut self, open: Beginning, beginning: Beginning) -> Result<(), Failure> {
        (self.open, self.is_begun) = (Some(open), false);
        self.statements.begin(beginning).await?;
        self.is_begun = true;
        Ok(())
    }

    /// Has the library prepare anew what the server has forgotten.
    async fn recover<T>(&mut self, done: &Result<T, Stopped>) {
        if let Err(Stopped::Failed { error, .. }) = done
            && error.kind == ErrorKind::FORGOTTEN
        {
            self.recovered = self.statements.forget().await;
        }
    }

    async fn end(&mut self) -> bool {
        if self.is_nested() {
            // Aborts the caller's transaction: a commit of it now rolls it back.
            let _ = self.statements.run("SELECT 1 / 0").await;
            return true;
        }
        // A savepoint that was not set must not roll back what is around it.
        let rolled_back = if self.statements.is_callers() && !self.is_begun {
            RolledBack::Over
        } else {
            self.statements.roll_back().await
        };
        self.is_lost |= rolled_back == RolledBack::Lost;
        if rolled_back != RolledBack::Open {
            (self.open, self.is_begun) = (None, false);
        }
        rolled_back != RolledBack::Open
    }
}

impl<S: Statements> Executor for OneByOne<S> {
    fn dialect(&self) -> Dialect {
        self.statements.dialect()
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        self.statements.kind_of(cause)
    }

    fn is_nested(&self) -> bool {
        self.statements.is_callers() && !self.statements.has_savepoints()
    }

    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(async move {
            let mut begun = false;
            let read = self.fetch_once(queries, &mut begun, each).await;
            self.recover(&read).await;
            // Outside a transaction, nothing is left of what failed.
            let may_run_again = !begun && self.open.is_none() && !self.statements.is_callers();
            if may_run_again && std::mem::take(&mut self.recovered) {
                return self.fetch_once(queries, &mut begun, each).await;
            }
            read
        })
    }

    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(self.scan_all(query, each))
    }

    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>> {
        Reply::later(async move {
            let done = self.execute_all(queries).await;
            self.recover(&done).await;
            done
        })
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        self.statements.run(script)
    }

    fn begin(&mut self) -> Reply<'_, Result<(), Failure>> {
        Reply::later(self.begin_with(Beginning::Write, Beginning::Write))
    }

    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>> {
        // The first read fixes the snapshot. In PostgreSQL it must come after the script.
        const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_schema)";
        Reply::later(async move {
            let how = if reading.is_locked { Beginning::Write } else { Beginning::Read };
            self.begin_with(Beginning::Read, how).await?;
            let look = self.dialect() == Dialect::Sqlite;
            self.statements.run(if look { LOOK } else { reading.script }).await
        })
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        if self.statements.is_callers() {
            return Reply::now(Ok(false));
        }
        if self.dialect() == Dialect::Postgres {
            return self.statements.is_idle();
        }
        Reply::later(async move {
            match self.begin_with(Beginning::Read, Beginning::Read).await {
                Ok(()) => {
                    self.end().await;
                    Ok(true)
                }
                // It is refused as a statement, not by a lock or a disk.
                Err(Failure { fault: Some(_), .. }) => {
                    self.open = None;
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        })
    }

    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        Reply::later(async move {
            self.statements.commit().await?;
            (self.open, self.is_begun) = (None, false);
            Ok(())
        })
    }

    fn roll_back(&mut self) -> Reply<'_, bool> {
        Reply::later(self.end())
    }

    fn may_run_again(&mut self) -> bool {
        std::mem::take(&mut self.recovered) && !self.is_nested()
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn finish(&mut self) {
        let is_begun = std::mem::take(&mut self.is_begun);
        if self.open.take().is_some() {
            self.statements.start_rollback(is_begun);
        }
        self.recovered = false;
    }
}
