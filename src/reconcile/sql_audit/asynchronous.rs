//! The audit over an asynchronous executor.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use super::super::audit::{
    AsyncAudit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest,
    Repaired,
};
use super::super::database::{Database, Rows, Unfound};
use super::super::token::Token;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::executor::{Connect, Executor, call};
use crate::schema::Schema;
use crate::sql_store::Any;

/// A database's rows and totals, over a library that does not block.
///
/// Each library has a name for its own: [`PostgresAudit`](crate::reconcile::PostgresAudit) is the
/// one of tokio-postgres. Like its store, it derefs to the same audit over any executor.
pub struct AsyncSqlAudit<'a, E: ?Sized> {
    database: Database<'a>,
    executor: E,
}

impl<E: ?Sized> fmt::Debug for AsyncSqlAudit<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncSqlAudit").field("database", &self.database).finish_non_exhaustive()
    }
}

impl<'a, E: Connect + Send + 'a> AsyncSqlAudit<'a, E> {
    /// Creates an audit without sources, and checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the connection is inside a transaction, and the errors of a store's
    /// `check`.
    pub async fn new(connection: E::Connection, schema: &'a Schema) -> Result<Self> {
        let mut executor = E::over(connection);
        let database = opened(&mut executor, schema).await?;
        Ok(Self { database, executor })
    }

    /// Adds the rows of a record. A counter that was added before gets this source instead.
    ///
    /// If one of the counters is refused, none is added.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if the table is absent. [`Error::Source`] if the key has another
    /// number of columns; if the rows of a table do not come out of an index in key order; if a
    /// bare name stands for tables of several schemas; or if the database refuses the SQL.
    ///
    /// In SQLite also if rows are in an attached file that can only be read, in WAL mode. In
    /// PostgreSQL also if columns are of other types than the key's, or amounts are not integers;
    /// and if not all rows can be seen in one snapshot with the totals: a policy of row security,
    /// or a view's condition on the role, hides some; or a table is on another server, or a
    /// materialized view. During a run the server refuses to leave out what a policy hides.
    pub async fn add(&mut self, rows: Rows<E::Driver>) -> Result<()> {
        let sources = rows.sources(self.database.schema())?;
        (**self).add_sources(sources).await
    }

    /// Sets how long a repair in PostgreSQL waits for a total that a writer has locked; the default
    /// is 5 seconds.
    ///
    /// After that it is [`Error::Busy`], and the run tries again, as often as
    /// [`Options::retries`](crate::reconcile::Options::retries) says. In SQLite a connection's busy
    /// timeout decides.
    #[must_use]
    pub fn lock_timeout(mut self, time: Duration) -> Self {
        self.database.limits.lock = time;
        self
    }

    /// Sets how long one statement of a repair in PostgreSQL may take, which is also how long
    /// writers may wait for it; the default is a minute. After that it is [`Error::Busy`] too.
    #[must_use]
    pub fn statement_timeout(mut self, time: Duration) -> Self {
        self.database.limits.statement = time;
        self
    }
}

fn opened<'x, 'a: 'x>(
    executor: &'x mut Any<'x>,
    schema: &'a Schema,
) -> impl Future<Output = Result<Database<'a>>> + Send + 'x {
    Box::pin(async move { Database::of(&mut *call(executor), schema).await })
}

impl<'a, E: Executor + Send + 'a> Deref for AsyncSqlAudit<'a, E> {
    type Target = AsyncSqlAudit<'a, Any<'a>>;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl<'a, E: Executor + Send + 'a> DerefMut for AsyncSqlAudit<'a, E> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self
    }
}

impl<'a> AsyncSqlAudit<'a, Any<'a>> {
    fn add_sources(&mut self, sources: Vec<Unfound>) -> impl Future<Output = Result<()>> + Send {
        Box::pin(async move { self.database.add(&mut *call(&mut self.executor), sources).await })
    }

    /// Lists the rows of a counter's source that cannot be counted, or that SQL counts differently
    /// from their tally: one error for each, which names the key and the reason, up to `most`. Use
    /// it to repair such rows by hand. It reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::NoSource`] if the counter has no source, and errors of the database. A rollup has
    /// no rows, so its list is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # use keepcount::CounterId;
    /// # use keepcount::reconcile::PostgresAudit;
    /// # async fn list(audit: &mut PostgresAudit<'_>, votes: CounterId) -> keepcount::Result<()> {
    /// for row in audit.faulty_rows(votes, 100).await? {
    ///     eprintln!("{row}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn faulty_rows(
        &mut self,
        counter: CounterId,
        most: usize,
    ) -> impl Future<Output = Result<Vec<Error>>> + Send {
        Box::pin(async move {
            self.database.faulty_rows(&mut *call(&mut self.executor), &counter, most).await
        })
    }

    /// Returns the counters that have a source, and the rollups of them, for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        self.database.counters()
    }
}

impl<'a> AsyncAudit for AsyncSqlAudit<'a, Any<'a>> {
    async fn identity(&mut self) -> Result<u64> {
        Ok(self.database.identity())
    }

    fn probe(&mut self, ask: &Probe) -> impl Future<Output = Result<ProbeResult>> + Send {
        Box::pin(async move { self.database.probe(&mut *call(&mut self.executor), ask).await })
    }

    fn compare(&mut self, ask: &PageRequest) -> impl Future<Output = Result<PageDiff>> + Send {
        Box::pin(async move { self.database.compare(&mut *call(&mut self.executor), ask).await })
    }

    fn repair(&mut self, ask: &RepairRequest) -> impl Future<Output = Result<Repaired>> + Send {
        Box::pin(async move { self.database.repair(&mut *call(&mut self.executor), ask).await })
    }

    fn recall(&mut self, token: &Token) -> impl Future<Output = Result<Option<Token>>> + Send {
        Box::pin(async move { self.database.recall(&mut *call(&mut self.executor), token).await })
    }

    fn keep(&mut self, ask: &Keep) -> impl Future<Output = Result<Kept>> + Send {
        Box::pin(async move { self.database.keep(&mut *call(&mut self.executor), ask).await })
    }

    fn ready(&mut self, ask: &Ready) -> impl Future<Output = Result<Kept>> + Send {
        Box::pin(async move { self.database.ready(&mut *call(&mut self.executor), ask).await })
    }
}

impl<'a, E: Executor + Send + 'a> AsyncAudit for AsyncSqlAudit<'a, E> {
    fn identity(&mut self) -> impl Future<Output = Result<u64>> + Send {
        (**self).identity()
    }

    fn probe(&mut self, ask: &Probe) -> impl Future<Output = Result<ProbeResult>> + Send {
        (**self).probe(ask)
    }

    fn compare(&mut self, ask: &PageRequest) -> impl Future<Output = Result<PageDiff>> + Send {
        (**self).compare(ask)
    }

    fn repair(&mut self, ask: &RepairRequest) -> impl Future<Output = Result<Repaired>> + Send {
        (**self).repair(ask)
    }

    fn recall(&mut self, token: &Token) -> impl Future<Output = Result<Option<Token>>> + Send {
        (**self).recall(token)
    }

    fn keep(&mut self, ask: &Keep) -> impl Future<Output = Result<Kept>> + Send {
        (**self).keep(ask)
    }

    fn ready(&mut self, ask: &Ready) -> impl Future<Output = Result<Kept>> + Send {
        (**self).ready(ask)
    }
}
