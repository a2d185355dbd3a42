//! The audit of a PostgreSQL database: an asynchronous face of [`Database`], whose futures are
//! boxed as those of [`PostgresStore`](crate::PostgresStore) are.

mod source_check;

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_postgres::Client;

use super::audit::{
    AsyncAudit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest,
    Repaired,
};
use super::database::{Database, Rows};
use super::token::Token;
use crate::counter::CounterId;
use crate::drivers::tokio_postgres::{Postgres, Scope, TokioPostgres};
use crate::error::{Error, Result};
use crate::schema::Schema;

/// The rows of a record in PostgreSQL.
///
/// A key of integers is read from columns of any of PostgreSQL's three widths, texts from `text` or
/// `varchar`, UUIDs from `uuid`, all else from `bytea`. Amounts are integers, or `numeric` without
/// a fraction.
///
/// # Examples
///
/// ```no_run
/// use keepcount::reconcile::{
///     Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, TokioRuntime, run_async,
/// };
/// use keepcount::{Counter, CounterId, PostgresStore, Record, Schema, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const SCHEMA: Schema = Schema::new(&[SHOW_SCORE.table()]);
///
/// struct Vote { show: i64, stars: i32, spam: bool }
///
/// impl Record for Vote {
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_SCORE, self.show, self.stars.into());
///         }
///     }
/// }
///
/// # async fn verify(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// client.batch_execute(
///     "CREATE TABLE votes (show_id BIGINT, stars INT, spam BOOLEAN);
///      CREATE INDEX votes_by_show ON votes (show_id)",
/// ).await?;
/// PostgresStore::new(&mut client, &SCHEMA).create().await?;
///
/// let votes = PostgresRows::of("votes", |row| {
///     Ok(Vote { show: row.try_get("show_id")?, stars: row.try_get("stars")?, spam: row.try_get("spam")? })
/// });
/// let mut audit = PostgresAudit::new(&mut client, &SCHEMA).await?;
/// audit.add(votes.key(SHOW_SCORE, Columns::of(["show_id"]).sum("stars").filter("NOT spam"))).await?;
/// let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// let report = run_async(&mut verify, &mut audit, &mut TokioRuntime::new()).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
pub type PostgresRows<'a> = Rows<'a, TokioPostgres>;

/// A PostgreSQL database's rows and totals, over a client of its own.
///
/// A page is compared in one snapshot, which blocks nobody, on a hot standby too. A repair locks
/// the totals of its keys, recounts the keys in a statement that begins after that, adds the
/// differences, and commits: a writer waits for the repair of a key that it writes, and for no
/// other. See [`PostgresRows`] for an example.
pub struct PostgresAudit<'a> {
    client: &'a mut Client,
    database: Database<'a, TokioPostgres>,
}

impl std::fmt::Debug for PostgresAudit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresAudit").field("database", &self.database).finish_non_exhaustive()
    }
}

impl<'a> PostgresAudit<'a> {
    /// Creates an audit without sources, and checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the client is inside a transaction, and the errors of
    /// [`PostgresStore::check`](crate::PostgresStore::check).
    pub fn new(
        client: &'a mut Client,
        schema: &'a Schema,
    ) -> impl Future<Output = Result<Self>> + Send {
        async move {
            let database = Database::of(&mut executor(client), schema).await?;
            Ok(Self { client, database })
        }
        .boxed()
    }

    /// Sets how long a repair waits for a total that a writer has locked; the default is 5 seconds.
    ///
    /// After that it is [`Error::Busy`], and the run tries again, as often as
    /// [`Options::retries`](super::Options::retries) says.
    #[must_use]
    pub const fn lock_timeout(mut self, time: Duration) -> Self {
        self.database.limits.lock = time;
        self
    }

    /// Sets how long one statement of a repair may take, which is also how long writers may wait
    /// for it; the default is a minute. After that it is [`Error::Busy`] too.
    #[must_use]
    pub const fn statement_timeout(mut self, time: Duration) -> Self {
        self.database.limits.statement = time;
        self
    }

    /// Adds the rows of a record. A counter that was added before gets this source instead.
    ///
    /// If one of the counters is refused, none is added.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] if the table is absent. [`Error::Source`] if the key has another
    /// number of columns, or columns of other types; if amounts are not integers; if the rows of a
    /// table do not come out of an index in key order; if several schemas of `search_path` have the
    /// table; or if the server refuses the SQL. It is the same error if not all rows can be seen in
    /// one snapshot with the totals: a policy of row security, or a view's condition on the role,
    /// hides some; or a table is on another server, or a materialized view. During a run the server
    /// refuses to leave out what a policy hides.
    pub fn add(&mut self, rows: PostgresRows<'a>) -> impl Future<Output = Result<()>> + Send {
        async move {
            let mut found = Vec::new();
            for source in rows.sources(self.database.schema())? {
                found.push(source_check::look(&mut executor(self.client), source).await?);
            }
            self.database.put(found);
            Ok(())
        }
        .boxed()
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
        async move { self.database.faulty_rows(&mut executor(self.client), &counter, most).await }
            .boxed()
    }

    /// Returns the counters that have a source, and the rollups of them, for
    /// [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        self.database.counters()
    }
}

const fn executor(client: &Client) -> Postgres<'_> {
    Postgres::new(client, Scope::Own, None)
}

/// The audit's calls, boxed.
impl PostgresAudit<'_> {
    fn probe_boxed<'s>(&'s mut self, ask: &'s Probe) -> BoxFuture<'s, Result<ProbeResult>> {
        async move { self.database.probe(&mut executor(self.client), ask).await }.boxed()
    }

    fn compare_boxed<'s>(&'s mut self, ask: &'s PageRequest) -> BoxFuture<'s, Result<PageDiff>> {
        async move { self.database.compare(&mut executor(self.client), ask).await }.boxed()
    }

    fn repair_boxed<'s>(&'s mut self, ask: &'s RepairRequest) -> BoxFuture<'s, Result<Repaired>> {
        async move { self.database.repair(&mut executor(self.client), ask).await }.boxed()
    }

    fn keep_boxed<'s>(&'s mut self, ask: &'s Keep) -> BoxFuture<'s, Result<Kept>> {
        async move { self.database.keep(&mut executor(self.client), ask).await }.boxed()
    }

    fn ready_boxed<'s>(&'s mut self, ask: &'s Ready) -> BoxFuture<'s, Result<Kept>> {
        async move { self.database.ready(&mut executor(self.client), ask).await }.boxed()
    }
}

impl AsyncAudit for PostgresAudit<'_> {
    async fn identity(&mut self) -> Result<u64> {
        Ok(self.database.identity())
    }

    async fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        self.probe_boxed(ask).await
    }

    async fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        self.compare_boxed(ask).await
    }

    async fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.repair_boxed(ask).await
    }

    async fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        self.database.recall(&mut executor(self.client), token).await
    }

    async fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        self.keep_boxed(ask).await
    }

    async fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        self.ready_boxed(ask).await
    }
}
