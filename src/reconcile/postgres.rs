//! The audit of a PostgreSQL database, live: rows and totals in one snapshot, repairs under the locks of their totals.

mod rollup_source;
mod row_source;
mod sight;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::{join, join3};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, IsolationLevel, SimpleQueryMessage, Transaction};

use self::rollup_source::RollupSource;
use self::row_source::RowSource;
use self::sight::source_failed;
pub use self::source::{PostgresSource, TypedPostgresSource};
use super::audit::{
    self, AsyncAudit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, Recount, RepairRequest, Repaired,
};
use super::spans::{Plan, merge_up_to};
use super::token::Token;
use crate::counter::{Counter, CounterId};
use crate::drivers::tokio_postgres::{Postgres, commit_failed, settled};
use crate::engine::rows::read_total;
use crate::engine::{self, Whose, failed, failed_on, read, retention, write};
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Query};

/// A PostgreSQL database's rows and totals, over a client of its own.
///
/// A measure reads both in one snapshot and blocks nobody, on a hot standby too. A repair holds its keys' totals, measures the keys again in a statement
/// that begins after that, adds what they lack, and commits: a writer waits for the repair of a key that it wants, and no other. See
/// [`PostgresSource`] for an example.
pub struct PostgresAudit<'a> {
    client: &'a mut Client,
    schema: &'a Schema,
    identity: u64,
    sources: Vec<RowSource<'a>>,
    /// Of the rollup whose pages are compared just now.
    plan: Option<Plan>,
    lock_timeout: Duration,
    statement_timeout: Duration,
}

impl fmt::Debug for PostgresAudit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresAudit")
            .field("schema", &self.schema)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl<'a> PostgresAudit<'a> {
    /// An audit without sources; checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] when the client is inside a transaction, and what [`PostgresStore::check`](crate::PostgresStore::check) finds.
    pub async fn new(client: &'a mut Client, schema: &'a Schema) -> Result<Self> {
        refuse_transaction(client).await?;
        let mut executor = Postgres::own(&*client, None);
        engine::schema::check(&mut executor, schema).await?;
        let identity = engine::schema::identity(&mut executor, schema).await?;
        drop(executor);
        let (lock_timeout, statement_timeout) = (Duration::from_secs(5), Duration::from_secs(60));
        Ok(Self { client, schema, identity, sources: Vec::new(), plan: None, lock_timeout, statement_timeout })
    }

    /// How long a repair waits for a total that a writer holds; 5 seconds by default. Then it is [`Error::Busy`], and the run tries again, as
    /// often as [`Options::retries`](super::Options::retries) says.
    #[must_use]
    pub const fn lock_timeout(mut self, time: Duration) -> Self {
        self.lock_timeout = time;
        self
    }

    /// How long one statement of a repair may take, and so writers may wait for it; a minute by default. Then it is [`Error::Busy`] too.
    #[must_use]
    pub const fn statement_timeout(mut self, time: Duration) -> Self {
        self.statement_timeout = time;
        self
    }

    /// Where a counter's rows are; a second call for one counter takes the first's place.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] when the table is absent. [`Error::Source`] when records of this type do not drive the counter, the key has another number of columns
    /// or columns of other types, amounts are no integers, the rows of a table do not come out of an index in key order, or the server refuses the SQL;
    /// when several schemas of `search_path` have the table; and when not all rows can be seen in one snapshot with the totals: where a policy of row security, or a
    /// view's condition on who asks, hides some from this role, and in tables of other servers and materialized views. While a run goes on, the server refuses to
    /// leave out what a policy hides.
    pub async fn add<K: Key>(&mut self, counter: Counter<K>, source: TypedPostgresSource<'a>) -> Result<()> {
        self.add_id(counter.id(), source).await
    }

    async fn add_id(&mut self, counter: CounterId, mut source: TypedPostgresSource<'a>) -> Result<()> {
        source.target.check(self.schema, &counter, source.by_tally)?;
        (source.check_driven)(&counter)?;
        let tx = snapshot(self.client, &counter).await?;
        let session = Postgres::within(&tx, None);
        for name in source.target.names() {
            sight::find(&session, &counter, name).await?;
        }
        let statements = source.target.statements(Dialect::Postgres, &counter, None)?;
        let mut row_source =
            RowSource { counter, source, statements, cutoff: None, opening: settings(PAGE), parted: false };
        tx.batch_execute(&row_source.opening)
            .await
            .map_err(|error| failed_on("reading the source", &counter, error))?;
        row_source.check(&tx).await?;
        let plans = session.query_all(&[row_source.explain_first(), row_source.explain_next()]).await;
        let plans = plans.map_err(|(_, error)| source_failed("planning the source", &counter, error))?;
        let line = |row: &tokio_postgres::Row| row.try_get::<_, String>(0).unwrap_or_default();
        let mut plans = plans.iter().map(|plan| plan.iter().map(line).collect::<Vec<String>>());
        // The first page is not cut down to some partitions by its key.
        sight::refuse_part(&session, &counter, &plans.next().unwrap_or_default()).await?;
        let next = plans.next().unwrap_or_default();
        if let Some(index) = row_source.source.target.wanted_index(Dialect::Postgres, &counter)
            && next.iter().any(|line| sorts(line))
        {
            let reason =
                format!("its rows do not come out of an index in key order; make one: CREATE INDEX .. ON {index}");
            return Err(Error::source(&counter, None, reason));
        }
        row_source.parted = !sight::kinship(&session, &counter).await?.is_empty();
        let names: Vec<String> = row_source.source.target.names().map(|name| name.quoted()).collect();
        if !names.is_empty() {
            let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            match tx.batch_execute(&lock).await {
                Ok(()) => row_source.opening = format!("{lock}; {}", row_source.opening),
                // Who may read some columns only locks nothing.
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                Err(error) => return Err(source_failed("locking the source", &counter, error)),
            }
        }
        drop(session);
        drop(tx);
        self.sources.retain(|known| known.counter != counter);
        self.sources.push(row_source);
        Ok(())
    }

    /// The rows of a counter's source that cannot be counted, or that SQL counts otherwise than their tally: an error each, which names the key and what is the
    /// matter, up to `most`; to repair them by hand. Reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when the counter has no source, and what the database says.
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
    pub async fn faulty_rows(&mut self, counter: CounterId, most: usize) -> Result<Vec<Error>> {
        let opening = opening(&self.sources, &counter);
        let tx = snapshot(self.client, &counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, &counter, async {
            match expected(&mut session, self.schema, &mut self.sources, &counter, false).await? {
                Expected::Rows(row_source) => row_source.faults(&tx, most).await,
                Expected::Totals(_) => Ok(Vec::new()),
            }
        })
        .await
    }

    /// The counters that have a source, and the rollups of them, for [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        audit::with_rollups(self.schema, self.sources.iter().map(|row_source| row_source.counter).collect())
    }
}

/// What a counter is recounted from: its rows, or the totals that a rollup sums.
enum Expected<'s, 'a> {
    Rows(&'s RowSource<'a>),
    Totals(Box<RollupSource>),
}

/// What a counter is recounted from, as far as it was pruned; with `hold`, it is pruned no further until the transaction ends.
async fn expected<'s, 'a, C: GenericClient + Send + Sync>(
    session: &mut Postgres<'_, C>,
    schema: &Schema,
    sources: &'s mut [RowSource<'a>],
    counter: &CounterId,
    lock: bool,
) -> Result<Expected<'s, 'a>> {
    // What a repair lets climb must not be pruned meanwhile either.
    let watched = if lock { retention::read_with(schema, vec![*counter]) } else { vec![*counter] };
    let cutoff =
        retention::cutoffs(session, schema, &watched, lock).await?.into_iter().find(|(id, _)| id.same(counter));
    if let Some(rollup) = schema.spec(counter)?.rollup() {
        return Ok(Expected::Totals(Box::new(RollupSource::of(schema, *counter, rollup)?)));
    }
    let found = sources.iter_mut().find(|row_source| row_source.counter == *counter);
    let row_source = found.ok_or_else(|| Error::no_source(counter))?;
    row_source.cutoff_at(cutoff.map(|(_, cutoff)| cutoff))?;
    Ok(Expected::Rows(row_source))
}

impl Expected<'_, '_> {
    /// The next keys' sums and the next totals, and where the page ends, if there may be more of both behind.
    async fn page(
        &self,
        tx: &Transaction<'_>,
        schema: &Schema,
        plan: &mut Option<Plan>,
        ask: &PageRequest,
    ) -> Result<(Vec<Recount>, Totals, Option<KeyBuf>)> {
        let (session, counter, limit) = (Postgres::within(tx, None), &ask.counter, ask.keys.saturating_add(1));
        let failed = |error| failed_on("measuring totals", counter, error);
        let of_rows = |error| source_failed("measuring rows", counter, error);
        let range = crate::store::behind(counter, ask.after.as_ref())?;
        let totals = sql::range(Dialect::Postgres, schema.spec(counter)?, &range, limit)?;
        let (settings, next) = match self {
            // Their opening has made them.
            Self::Rows(row_source) if row_source.source.by_tally => (String::new(), None),
            Self::Rows(row_source) => (String::new(), row_source.next(ask)?),
            Self::Totals(rollup_source) if rollup_source.has_suffix() => {
                (settings(&[PAGE, LOOK_UP, SORT_SUFFIXES].concat()), None)
            }
            Self::Totals(_) => (settings(&[PAGE, LOOK_UP].concat()), None),
        };
        let settings = async {
            let made = if settings.is_empty() { Ok(()) } else { tx.batch_execute(&settings).await };
            made.map_err(failed)
        };
        let totals = session.read(&totals, failed, |row| read_total(counter, row).map(Some));
        let sums = async {
            match (self, next) {
                (Self::Rows(row_source), Some(next)) => session.read(&next, of_rows, |row| row_source.sum(row)).await,
                _ => Ok(Vec::new()),
            }
        };
        // Sent in this order, as none waits for anything before; the first that failed is why the others did.
        let (settings, totals, sums) = join3(settings, totals, sums).await;
        settings?;
        let (totals, sums) = (totals?, sums?);
        let (recounts, end) = match self {
            Self::Rows(row_source) if row_source.source.by_tally => match row_source.next(ask)? {
                Some(query) => (row_source.sums_by_tally(tx, &query, ask.after.as_ref(), limit).await?, None),
                None => (Vec::new(), None),
            },
            Self::Rows(_) => (sums, None),
            Self::Totals(rollup_source) => rollup_source.page(&session, plan, ask, &totals).await?,
        };
        Ok((recounts, totals, end))
    }

    /// Whether single keys are found by an index: how the joins of a query are best planned, nobody knows here.
    fn has_index(&self) -> bool {
        match self {
            Self::Rows(row_source) => row_source.source.target.is_indexed(),
            Self::Totals(_) => true,
        }
    }

    async fn recount(&self, tx: &Transaction<'_>, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        match self {
            Self::Rows(row_source) => row_source.recount(tx, keys).await,
            Self::Totals(rollup_source) => rollup_source.recount(&Postgres::within(tx, None), keys).await,
        }
    }

    async fn is_empty(&self, tx: &Transaction<'_>) -> Result<bool> {
        match self {
            Self::Rows(row_source) => row_source.is_empty(tx).await,
            Self::Totals(rollup_source) => rollup_source.is_empty(&Postgres::within(tx, None)).await,
        }
    }
}

type Totals = Vec<(KeyBuf, i64)>;

impl AsyncAudit for PostgresAudit<'_> {
    async fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    async fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        let (counter, schema) = (&ask.counter, self.schema);
        refuse_transaction(self.client).await?;
        refuse_read_only(&Postgres::own(&*self.client, None)).await?;
        let opening = opening(&self.sources, counter);
        let tx = snapshot(self.client, counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, counter, async {
            let expected = expected(&mut session, self.schema, &mut self.sources, counter, false).await?;
            if let Expected::Rows(row_source) = &expected {
                row_source.check_sample(&session).await?;
            }
            let empty = expected.is_empty(&tx).await?;
            let totals = if empty { read::count_non_zero(&mut session, schema, counter, ask.totals).await? } else { 0 };
            Ok(ProbeResult { empty, totals })
        })
        .await
    }

    async fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        let (counter, schema) = (&ask.counter, self.schema);
        let opening = opening(&self.sources, counter);
        // A counter's first page begins anew.
        let mut plan = self.plan.take().filter(|_| ask.after.is_some());
        let tx = snapshot(self.client, counter).await?;
        let mut session = Postgres::within(&tx, None);
        let read = behind(&tx, &opening, counter, async {
            // The first query fixes the snapshot that the others read too.
            let expected = expected(&mut session, self.schema, &mut self.sources, counter, false).await?;
            let (recounts, totals, end) = expected.page(&tx, schema, &mut plan, ask).await?;
            let listed = recounts.get(..ask.keys).unwrap_or(&recounts);
            let dangling = match &expected {
                Expected::Rows(row_source) => row_source.dangling(&session, listed).await?,
                Expected::Totals(_) => Vec::new(),
            };
            let diff = merge_up_to(ask, end, recounts, totals)?;
            let kin = match &expected {
                Expected::Rows(row_source) if row_source.parted && !diff.drifts.is_empty() => {
                    Some(sight::kinship(&session, counter).await?)
                }
                _ => None,
            };
            Ok((diff, dangling, kin))
        });
        let (mut diff, mut dangling, kin) = read.await?;
        self.plan = plan;
        drop(session);
        drop(tx);
        if let Some(kin) = kin {
            let tx = snapshot(self.client, counter).await?;
            sight::refuse_change(&Postgres::within(&tx, None), counter, &kin).await?;
        }
        dangling.retain(|key| diff.next.as_ref().or(ask.until.as_ref()).is_none_or(|last| key <= last));
        diff.dangling = dangling;
        Ok(diff)
    }

    async fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        let (counter, schema) = (&ask.counter, self.schema);
        self.check_keys(ask).await?;
        let timeouts = [("lock_timeout", self.lock_timeout), ("statement_timeout", self.statement_timeout)];
        let failed = |error| failed_on("repairing totals", counter, error);
        // At READ COMMITTED a statement sees what was committed when it began: after the totals are held, nobody else changes them.
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let tx = begin.start().await.map_err(failed)?;
        let mut session = Postgres::within(&tx, None);
        session.query(&set_repairing(timeouts)).await.map_err(failed)?;
        let expected = expected(&mut session, schema, &mut self.sources, counter, true).await?;
        if expected.has_index() {
            session.query(&set(LOOK_UP)).await.map_err(failed)?;
        }
        write::lock_above(&mut session, schema, counter, &ask.keys).await?;
        let stored = write::lock_totals(&mut session, schema, counter, &ask.keys).await?;
        let expected_all = expected.recount(&tx, &ask.keys).await?;
        let repaired =
            engine::audit::repair(&mut session, schema, counter, (&ask.keys, &stored), &expected_all).await?;
        drop(session);
        let operation = format!("repairing totals of counter {}", counter.full_name());
        if let Err(error) = tx.commit().await {
            return Err(settled(&*self.client, &operation, commit_failed(&operation, error)).await);
        }
        Ok(repaired)
    }

    async fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        refuse_transaction(self.client).await?;
        engine::audit::kept_of(&mut Postgres::own(&*self.client, None), token.run()).await
    }

    async fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        refuse_transaction(self.client).await?;
        engine::audit::keep(&mut Postgres::own(&*self.client, None), ask).await
    }

    async fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        let counter = &ask.counter;
        let failed = |error| failed_on("ending the backfill", counter, error);
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let tx = begin.start().await.map_err(failed)?;
        let mut session = Postgres::within(&tx, None);
        session.query(&set_repairing([("lock_timeout", self.lock_timeout)])).await.map_err(failed)?;
        let kept = engine::audit::ready_in(&mut session, ask).await?;
        drop(session);
        // Whether it came through or not, it may be said again.
        match tx.commit().await {
            Err(error) => Err(settled(&*self.client, "ending the backfill", failed(error)).await),
            Ok(()) => Ok(kept),
        }
    }
}

impl PostgresAudit<'_> {
    /// Holds rows of the keys that are about to be repaired against their `tally`.
    async fn check_keys(&mut self, ask: &RepairRequest) -> Result<()> {
        let opening = opening(&self.sources, &ask.counter);
        let tx = snapshot(self.client, &ask.counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, &ask.counter, async {
            match expected(&mut session, self.schema, &mut self.sources, &ask.counter, false).await? {
                Expected::Rows(row_source) => row_source.check_keys(&session, &ask.keys).await,
                Expected::Totals(_) => Ok(()),
            }
        })
        .await
    }
}

/// What a transaction that reads a counter's rows begins with; nothing for a rollup.
fn opening(sources: &[RowSource<'_>], counter: &CounterId) -> String {
    sources
        .iter()
        .find(|row_source| row_source.counter == *counter)
        .map(|row_source| row_source.opening.clone())
        .unwrap_or_default()
}

/// Sends `opening` before anything that `reading` asks, and waits for both at once.
async fn behind<T>(
    tx: &Transaction<'_>,
    opening: &str,
    counter: &CounterId,
    reading: impl Future<Output = Result<T>>,
) -> Result<T> {
    let opening = async { if opening.is_empty() { Ok(()) } else { tx.batch_execute(opening).await } };
    let (opened, read) = join(opening, reading).await;
    opened.map_err(|error| source_failed("opening the source", counter, error))?;
    read
}

/// A transaction that reads, at any time, what was committed when its first query began; locks and settings come before. Dropped, it ends.
async fn snapshot<'c>(client: &'c mut Client, counter: &CounterId) -> Result<Transaction<'c>> {
    let begin = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    begin.start().await.map_err(|error| failed_on("reading totals and rows", counter, error))
}

/// What a policy of row security would leave out is refused by the server, and not taken for what is not there.
const ALL_ROWS: (&str, &str) = ("row_security", "off");
/// How pages are read, and planned: from the index that has their order, whatever the planner thinks of small tables, or of large ones that it knows nothing of.
const PAGE: &[(&str, &str)] = &[
    ALL_ROWS,
    ("enable_sort", "off"),
    ("enable_incremental_sort", "off"),
    ("enable_hashagg", "off"),
    ("enable_bitmapscan", "off"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
];
/// How keys are looked up one after the other, from an index.
const LOOK_UP: &[(&str, &str)] = &[("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];
/// The index of memberships has parents in order; the keys of one parent are sorted.
const SORT_SUFFIXES: &[(&str, &str)] = &[("enable_incremental_sort", "on")];

/// Makes settings until the transaction ends, and takes no snapshot.
fn settings(settings: &[(&str, &str)]) -> String {
    settings.iter().flat_map(|(name, value)| ["SET LOCAL ", name, " = ", value, "; "]).collect()
}

/// Makes settings until the transaction ends.
fn set(settings: &[(&str, &str)]) -> Query<'static> {
    let settings = settings.iter().map(|(name, value)| format!("set_config('{name}', '{value}', true)"));
    Query::new(format!("SELECT {}", settings.collect::<Vec<_>>().join(", ")), Vec::new())
}

/// What a transaction that repairs begins with.
fn set_repairing<const N: usize>(timeouts: [(&str, Duration); N]) -> Query<'static> {
    // 0 would be without end.
    let millis = |time: Duration| time.as_millis().clamp(1, i32::MAX.unsigned_abs().into()).to_string();
    let timeouts = timeouts.map(|(name, time)| (name, millis(time)));
    let timeouts = timeouts.iter().map(|(name, time)| (*name, time.as_str()));
    set(&timeouts.chain([ALL_ROWS]).collect::<Vec<_>>())
}

/// Whether a line of a plan says that rows are sorted, or come in no order.
fn sorts(line: &str) -> bool {
    let node = line.trim_start().trim_start_matches("->").trim_start();
    // Of a merge of partitions too there is a line "Sort Key".
    ["Sort  (", "Incremental Sort  (", "HashAggregate  ("].iter().any(|name| node.starts_with(name))
}

/// Outside a transaction a statement begins when its transaction does.
async fn refuse_transaction(client: &Client) -> Result<()> {
    let inside = || Err(Error::invalid_use("client", "it is inside a transaction; an audit needs a client of its own"));
    match client.simple_query("SELECT now() = statement_timestamp()").await {
        Ok(answer) => {
            let outside = |message: &SimpleQueryMessage| match message {
                SimpleQueryMessage::Row(row) => row.get(0) == Some("t"),
                _ => false,
            };
            if answer.iter().any(outside) { Ok(()) } else { inside() }
        }
        Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => inside(),
        Err(error) => Err(failed(Whose::Connection, "looking at the connection", error)),
    }
}

async fn refuse_read_only<C: GenericClient + Send + Sync>(session: &Postgres<'_, C>) -> Result<()> {
    let text = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean".to_owned();
    let operation = |error| failed(Whose::Connection, "looking whether the server takes writes", error);
    let rows = session.query(&Query::new(text, Vec::new())).await.map_err(operation)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let reason = match (row.try_get(0).map_err(operation)?, row.try_get(1).map_err(operation)?) {
        (true, _) => "the server is a replica; it can verify, and a repair or backfill is for its primary",
        (false, true) => "its transactions are read-only; it can verify, and a repair or backfill writes",
        (false, false) => return Ok(()),
    };
    Err(Error::invalid_use("client", reason))
}
