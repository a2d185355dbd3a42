//! The driver over tokio-postgres: runs statements on the caller's client or transaction, one by
//! one or many in one round trip.

mod literal;
mod prepared;
mod rows_and_totals;
#[cfg(test)]
mod tests;
mod values;

use std::error::Error as _;
use std::fmt;
use std::pin::pin;

use futures_util::future::{join, try_join_all};
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::{Type, WrongType};
use tokio_postgres::{Client, Row, RowStream, SimpleQueryMessage, Statement, Transaction};

pub use self::prepared::PreparedStatements;
pub(crate) use self::rows_and_totals::write_in_own;
pub(crate) use self::values::{kind_of, params, typed};
use crate::engine::{Whose, failed};
use crate::error::{Cause, Error, Result, of_db_error};
use crate::executor::{
    CURSOR, Connect, Driver, Each, EachOf, ErrorKind, Executor, Failure, MAX_FETCH, NotCommitted,
    Reading, Reply, Stopped, fault_of_sqlstate,
};
use crate::sql::{Dialect, Query, Value};

/// tokio-postgres's client, and the transaction or savepoint that keepcount began on it.
pub struct Postgres<'c> {
    conn: Conn<'c>,
    pub(crate) prepared: Option<&'c PreparedStatements>,
    is_open: bool,
    /// Whether the reason of the last failure was put right.
    recovered: bool,
    /// Whether the server had forgotten what was prepared. A pooler may hand out another connection
    /// for each message, so statements are now prepared in the transaction that runs them.
    was_forgotten: bool,
}

/// The client, and whose transaction the statements belong to.
enum Conn<'c> {
    /// One that this driver begins.
    Own(&'c mut Client),
    /// The caller's, in a savepoint that this driver sets.
    Savepoint(&'c Client),
    /// The caller's.
    Callers(&'c Client),
}

impl fmt::Debug for Postgres<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

/// The maximum number of statements in one pipeline. The server runs them one after the other.
const MAX_PIPELINE: usize = 16;
/// The savepoint of a write within the caller's transaction.
const SAVEPOINT: &str = "keepcount";

/// One execution of a query: its position, the number of its row of parameters, and those
/// parameters.
#[derive(Clone, Copy)]
struct Execution<'q> {
    query: usize,
    row: usize,
    of: &'q Query<'q>,
    values: &'q [Value<'q>],
}

/// The executions of some queries, in order.
fn executions<'q>(queries: &'q [Query<'q>]) -> Vec<Execution<'q>> {
    let all = queries.iter().enumerate();
    all.flat_map(|(query, of)| {
        of.rows().enumerate().map(move |(row, values)| Execution { query, row, of, values })
    })
    .collect()
}

impl Execution<'_> {
    fn failed(&self, error: tokio_postgres::Error) -> Stopped {
        Stopped::Failed { query: self.query, row: self.row, error: error.into() }
    }

    /// Refuses a number of written rows that differs from the number it must write.
    fn check(&self, written: u64) -> Result<(), Stopped> {
        if self.of.is_skipped(self.values, written) {
            return Err(Stopped::Skipped { query: self.query, row: self.row });
        }
        Ok(())
    }
}

impl<'c> Postgres<'c> {
    const fn new(conn: Conn<'c>) -> Self {
        Self { conn, prepared: None, is_open: false, recovered: false, was_forgotten: false }
    }

    /// Within the caller's transaction.
    pub(crate) fn in_transaction(tx: &'c Transaction<'_>) -> Self {
        Self::new(Conn::Callers(tx.client()))
    }

    /// Within the caller's transaction, with a savepoint for each call that writes.
    pub(crate) fn with_savepoints(tx: &'c Transaction<'_>) -> Self {
        Self::new(Conn::Savepoint(tx.client()))
    }

    pub(crate) const fn client(&self) -> &Client {
        match &self.conn {
            Conn::Own(client) => client,
            Conn::Savepoint(client) | Conn::Callers(client) => client,
        }
    }

    /// The client, unless it is in a transaction of the caller.
    pub(crate) const fn own_client(&mut self) -> Option<&mut Client> {
        match &mut self.conn {
            Conn::Own(client) => Some(client),
            Conn::Savepoint(_) | Conn::Callers(_) => None,
        }
    }

    const fn is_own(&self) -> bool {
        matches!(self.conn, Conn::Own(_))
    }

    async fn prepare_all(&self, all: &[Execution<'_>]) -> Result<(), Stopped> {
        let Some(prepared) = self.prepared else { return Ok(()) };
        for execution in all {
            let text = &execution.of.text;
            if prepared.known(text).is_none() && prepared.has_room() {
                let kinds: Vec<Type> = execution.values.iter().map(kind_of).collect();
                let statement = self.client().prepare_typed(text, &kinds).await;
                prepared.keep(text, statement.map_err(|error| execution.failed(error))?);
            }
        }
        Ok(())
    }

    /// The statement for a text of the application: the known one, or one prepared now.
    async fn statement(&self, text: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(known) = self.prepared.and_then(|prepared| prepared.known(text)) {
            return Ok(known);
        }
        let statement = self.client().prepare(text).await?;
        if let Some(prepared) = self.prepared.filter(|prepared| prepared.has_room()) {
            prepared.keep(text, statement.clone());
        }
        Ok(statement)
    }

    /// The statement of a query, if it was prepared.
    fn known(&self, query: &Query<'_>) -> Option<Statement> {
        self.prepared.and_then(|prepared| prepared.known(&query.text))
    }

    /// Sends an execution, and waits for the first of its rows.
    async fn open(&self, execution: Execution<'_>) -> Result<RowStream, Stopped> {
        let rows = match self.known(execution.of) {
            Some(statement) => self.client().query_raw(&statement, params(execution.values)).await,
            None => {
                self.client().query_typed_raw(&execution.of.text, typed(execution.values)).await
            }
        };
        rows.map_err(|error| execution.failed(error))
    }

    async fn written_by(&self, execution: Execution<'_>) -> Result<u64, tokio_postgres::Error> {
        match self.known(execution.of) {
            Some(statement) => self.client().execute(&statement, &params(execution.values)).await,
            None => self.client().execute_typed(&execution.of.text, &typed(execution.values)).await,
        }
    }

    async fn written_by_all(&self, all: &[Execution<'_>]) -> Result<Vec<u64>, Stopped> {
        self.prepare_all(all).await?;
        let mut done = Vec::with_capacity(all.len());
        for chunk in all.chunks(MAX_PIPELINE) {
            let sent = chunk.iter().map(|execution| async {
                self.written_by(*execution).await.map_err(|error| execution.failed(error))
            });
            done.extend(try_join_all(sent).await?);
        }
        Ok(done)
    }

    /// Passes the rows of each execution to `each` as they arrive: the server works on meanwhile,
    /// and the rows are never all in memory. Says in `begun` whether any has arrived.
    async fn read_all(
        &self,
        all: &[Execution<'_>],
        begun: &mut bool,
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        self.prepare_all(all).await?;
        for chunk in all.chunks(MAX_PIPELINE) {
            // All are sent before the first is answered.
            let mut answers: FuturesOrdered<_> = FuturesOrdered::new();
            for execution in chunk {
                answers.push_back(self.open(*execution));
            }
            for execution in chunk {
                let Some(rows) = answers.next().await else { break };
                let mut rows = pin!(rows?);
                while let Some(row) =
                    rows.try_next().await.map_err(|error| execution.failed(error))?
                {
                    *begun = true;
                    each(execution.query, &row).map_err(Stopped::Refused)?;
                }
            }
        }
        Ok(())
    }

    /// Passes the rows of one execution to `each`. Returns whether all were wanted.
    async fn scan_bounded(
        &self,
        execution: Execution<'_>,
        each: &mut Each<'_>,
    ) -> Result<bool, Stopped> {
        let mut rows = pin!(self.open(execution).await?);
        while let Some(row) = rows.try_next().await.map_err(|error| execution.failed(error))? {
            if !each(&row).map_err(Stopped::Refused)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The same, some rows at a time.
    async fn scan_by_cursor(
        &self,
        execution: Execution<'_>,
        each: &mut Each<'_>,
    ) -> Result<bool, Stopped> {
        let failed = |error| execution.failed(error);
        let declare = format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR {}", execution.of.text);
        let values = typed(execution.values);
        let next = format!("FETCH {MAX_FETCH} FROM {CURSOR}");
        // Both are sent before either is answered.
        let (declared, rows) = join(
            self.client().execute_typed(&declare, &values),
            self.client().query_typed(&next, &[]),
        )
        .await;
        declared.map_err(failed)?;
        let mut rows = rows.map_err(failed)?;
        let is_whole = 'read: loop {
            for row in &rows {
                if !each(row).map_err(Stopped::Refused)? {
                    break 'read false;
                }
            }
            if rows.len() < MAX_FETCH {
                break true;
            }
            rows = self.client().query_typed(&next, &[]).await.map_err(failed)?;
        };
        self.client().batch_execute(&format!("CLOSE {CURSOR}")).await.map_err(failed)?;
        Ok(is_whole)
    }

    /// Begins with this text. If a dropped future, or a ROLLBACK that was cancelled, left the
    /// client in an aborted transaction, that one is ended first.
    async fn begin_with(&mut self, text: &str) -> Result<(), tokio_postgres::Error> {
        self.is_open = true;
        let begun = self.client().batch_execute(text).await;
        if begun.as_ref().is_err_and(is_aborted)
            && self.is_own()
            && end_transaction(self.client()).await.is_ok()
        {
            return self.client().batch_execute(text).await;
        }
        begun
    }

    /// Puts right why a statement failed, if it can: it drops prepared statements that the server
    /// has forgotten, and ends an aborted transaction in which a dropped future left the client.
    async fn recover(&mut self, error: &Cause) {
        let Some(error) = error.downcast_ref() else { return };
        if let Some(prepared) = self.prepared.filter(|_| is_forgotten(error)) {
            prepared.forget();
            (self.recovered, self.was_forgotten) = (true, true);
        } else if !self.is_open && is_aborted(error) && self.is_own() {
            self.recovered = end_transaction(self.client()).await.is_ok();
        }
    }

    /// Like [`recover`](Self::recover), for an error caused by a driver's error.
    async fn recover_from(&mut self, error: &Error) {
        if let Error::Busy { cause, .. } = error {
            self.recover(cause).await;
        }
    }
}

/// tokio-postgres, as a driver.
#[derive(Debug)]
pub enum TokioPostgres {}

impl Driver for TokioPostgres {
    type Row<'r> = Row;
}

impl<'c> Connect for Postgres<'c> {
    type Driver = TokioPostgres;
    type Connection = &'c mut Client;

    fn over(client: &'c mut Client) -> Self {
        Self::new(Conn::Own(client))
    }
}

impl Postgres<'_> {
    async fn fetch_all(
        &mut self,
        queries: &[Query<'_>],
        each: &mut EachOf<'_>,
    ) -> Result<(), Stopped> {
        let all = executions(queries);
        let mut begun = false;
        let read = self.read_all(&all, &mut begun, each).await;
        let Err(Stopped::Failed { error, .. }) = &read else { return read };
        self.recover(&error.cause).await;
        // On a client the queries were their own transaction, of which nothing is left.
        if !begun && !self.is_open && self.is_own() && std::mem::take(&mut self.recovered) {
            return self.read_all(&all, &mut begun, each).await;
        }
        read
    }

    async fn execute_all(&mut self, queries: &[Query<'_>]) -> Result<Vec<u64>, Stopped> {
        let all = executions(queries);
        let done = self.written_by_all(&all).await;
        if let Err(Stopped::Failed { error, .. }) = &done {
            self.recover(&error.cause).await;
        }
        let mut written = vec![0; queries.len()];
        for (execution, rows) in all.iter().zip(done?) {
            execution.check(rows)?;
            if let Some(written) = written.get_mut(execution.query) {
                *written += rows;
            }
        }
        Ok(written)
    }

    /// Outside a transaction, a statement begins when its transaction does.
    async fn asks_whether_idle(&self) -> Result<bool, tokio_postgres::Error> {
        match self.client().simple_query("SELECT now() = statement_timestamp()").await {
            Ok(answer) => Ok(answer.iter().any(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
                _ => false,
            })),
            Err(error) if is_aborted(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn end(&mut self) -> bool {
        match self.conn {
            Conn::Callers(_) => {
                // Aborts the caller's transaction: a commit of it now rolls it back.
                let _ = self.client().batch_execute("SELECT 1 / 0").await;
                true
            }
            Conn::Savepoint(_) => {
                // The caller's transaction is left to the caller. If the rollback to the savepoint
                // fails, it is aborted.
                let _ = self.client().batch_execute(&roll_back_to_savepoint()).await;
                self.is_open = false;
                true
            }
            Conn::Own(_) => {
                let ended = end_transaction(self.client()).await.is_ok();
                self.is_open = false;
                ended || self.client().is_closed()
            }
        }
    }
}

impl Executor for Postgres<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        cause.downcast_ref().map_or(ErrorKind::Other, kind)
    }

    fn is_nested(&self) -> bool {
        matches!(self.conn, Conn::Callers(_))
    }

    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(self.fetch_all(queries, each))
    }

    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::later(async move {
            for execution in executions(std::slice::from_ref(query)) {
                let all = if query.is_bounded() {
                    self.scan_bounded(execution, each).await?
                } else {
                    self.scan_by_cursor(execution, each).await?
                };
                if !all {
                    break;
                }
            }
            Ok(())
        })
    }

    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>> {
        Reply::later(self.execute_all(queries))
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        Reply::later(async move { self.client().batch_execute(script).await.map_err(Into::into) })
    }

    fn begin(&mut self) -> Reply<'_, Result<(), Failure>> {
        Reply::later(async move {
            let text =
                if self.is_own() { "BEGIN".to_owned() } else { format!("SAVEPOINT {SAVEPOINT}") };
            self.begin_with(&text).await.map_err(Into::into)
        })
    }

    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>> {
        Reply::later(async move {
            let text =
                format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", reading.script);
            self.begin_with(&text).await.map_err(Into::into)
        })
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::later(async move { self.asks_whether_idle().await.map_err(Into::into) })
    }

    /// The outcome is unknown unless the server itself reports that it rolled the transaction back.
    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        Reply::later(async move {
            let text = if self.is_own() {
                "COMMIT".to_owned()
            } else {
                format!("RELEASE SAVEPOINT {SAVEPOINT}")
            };
            match self.client().batch_execute(&text).await {
                Ok(()) => {
                    self.is_open = false;
                    Ok(())
                }
                Err(error) if is_refused(&error) => Err(NotCommitted::Refused(error.into())),
                Err(error) => Err(NotCommitted::Unknown(error.into())),
            }
        })
    }

    fn roll_back(&mut self) -> Reply<'_, bool> {
        Reply::later(self.end())
    }

    fn may_run_again(&mut self) -> bool {
        std::mem::take(&mut self.recovered) && !self.is_nested()
    }

    fn finish(&mut self) {
        if std::mem::take(&mut self.is_open) {
            let text = if self.is_own() { "ROLLBACK".to_owned() } else { roll_back_to_savepoint() };
            // The message is sent at the first poll.
            let _ = self.client().batch_execute(&text).now_or_never();
        }
        (self.recovered, self.was_forgotten) = (false, false);
    }
}

fn roll_back_to_savepoint() -> String {
    format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}")
}

/// How often a ROLLBACK that is cancelled is tried.
const MAX_ROLLBACKS: u32 = 8;

/// Ends any transaction that a client was left in.
pub(crate) async fn end_transaction(client: &Client) -> Result<(), tokio_postgres::Error> {
    let mut ended = client.batch_execute("ROLLBACK").await;
    for _ in 1..MAX_ROLLBACKS {
        // A ROLLBACK can be cancelled like any statement, and then it has done nothing.
        if !ended.as_ref().is_err_and(is_refused) {
            break;
        }
        ended = client.batch_execute("ROLLBACK").await;
    }
    ended
}

/// Whether an earlier error has aborted the transaction, so that nothing more is done in it.
fn is_aborted(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// Whether the server does not know a prepared statement, under the driver's name (s and a number)
/// or under its name in SQL.
fn is_forgotten(error: &tokio_postgres::Error) -> bool {
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = |word: &str| {
        word.starts_with(prepared::NAME) || word.strip_prefix('s').is_some_and(is_number)
    };
    // Behind a pooler, another connection may also have one with the same name.
    let codes = [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];
    let said = error.as_db_error().filter(|db| codes.contains(db.code()));
    said.is_some_and(|db| {
        db.message().split(|c: char| !c.is_alphanumeric() && c != '_').any(is_ours)
    })
}

/// The error of a failed commit: its outcome is unknown unless the server itself reports that it
/// rolled the transaction back.
pub(crate) fn commit_failed(operation: &str, error: tokio_postgres::Error) -> Error {
    if is_refused(&error) {
        failed(Whose::Connection, operation, error)
    } else {
        unknown(operation, error)
    }
}

/// An error after which it is unknown whether the operation was applied.
fn unknown(operation: &str, error: impl Into<Failure>) -> Error {
    Error::Indeterminate { operation: operation.to_owned(), cause: error.into().cause }
}

/// Whether the server itself reported the error and keeps the connection. Then it rolls back what
/// the statement belongs to.
fn is_refused(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.parsed_severity() == Some(Severity::Error))
}

fn is_refused_by(cause: &Cause) -> bool {
    cause.downcast_ref().is_some_and(is_refused)
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let said = error.as_db_error();
        let fault = said.and_then(|db| fault_of_sqlstate(db.code().code(), &of_db_error(db)));
        Self { kind: kind(&error), fault, cause: error.into() }
    }
}

fn kind(error: &tokio_postgres::Error) -> ErrorKind {
    if is_forgotten(error) {
        return ErrorKind::FORGOTTEN;
    }
    if let Some(db) = error.as_db_error() {
        let is_fatal = matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        let code = db.code().code();
        return if is_fatal { ErrorKind::of_fatal(code) } else { ErrorKind::of_sqlstate(code) };
    }
    match error.source() {
        _ if error.is_closed() => ErrorKind::LOST,
        Some(source) if source.is::<std::io::Error>() => ErrorKind::LOST,
        // A column has another type than the driver's parameter.
        Some(source) if source.is::<WrongType>() => ErrorKind::Misfit,
        _ => ErrorKind::Other,
    }
}
