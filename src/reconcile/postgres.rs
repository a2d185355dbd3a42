//! The audit of a PostgreSQL database, live: rows and totals in one snapshot, mends under the locks of their totals.

mod declared;
mod joined;
mod sight;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures_util::future::{join, join3};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient, IsolationLevel, SimpleQueryMessage, Transaction};

use self::declared::Declared;
use self::joined::Joined;
use self::sight::source_failed;
pub use self::source::{PostgresSource, TypedPostgresSource};
use super::asynchronous::AsyncAudit;
use super::audit::{self, Ask, Keep, Kept, Look, Looked, Measured, Mend, Mended, Ready, Recount};
use super::spans::{Plan, merge_up_to};
use super::token::Token;
use crate::counter::{Counter, Def};
use crate::drivers::tokio_postgres::{Postgres, commit_failed, settled};
use crate::engine::rows::read_total;
use crate::engine::{self, Whose, failed, failed_on, read, retention, write};
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf};
use crate::layout::Layout;
use crate::sql::{self, Dialect, Query};

/// A PostgreSQL database's rows and totals, over a client of its own.
///
/// A measure reads both in one snapshot and blocks nobody, on a hot standby too. A mend holds its keys' totals, measures the keys again in a statement
/// that begins after that, adds what they lack, and commits: a writer waits for the mend of a key that it wants, and no other. See
/// [`PostgresSource`] for an example.
pub struct PostgresAudit<'a> {
    client: &'a mut Client,
    layout: &'a Layout,
    identity: u64,
    sources: Vec<Declared<'a>>,
    /// Of the rollup whose pages are compared just now.
    plan: Option<Plan>,
    lock_timeout: Duration,
    statement_timeout: Duration,
}

impl fmt::Debug for PostgresAudit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresAudit")
            .field("layout", &self.layout)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl<'a> PostgresAudit<'a> {
    /// An audit without sources; checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when the client is inside a transaction, and what [`PostgresStore::check`] finds.
    pub async fn new(client: &'a mut Client, layout: &'a Layout) -> Result<Self> {
        refuse_transaction(client).await?;
        let mut executor = Postgres::own(&*client, None);
        engine::schema::check(&mut executor, layout).await?;
        let identity = engine::schema::identity(&mut executor, layout).await?;
        drop(executor);
        let (lock_timeout, statement_timeout) = (Duration::from_secs(5), Duration::from_secs(60));
        Ok(Self { client, layout, identity, sources: Vec::new(), plan: None, lock_timeout, statement_timeout })
    }

    /// How long a mend waits for a total that a writer holds; 5 seconds by default. Then it is [`Error::Busy`], and the run tries again, as
    /// often as [`Options::retries`](super::Options::retries) says.
    #[must_use]
    pub const fn lock_timeout(mut self, time: Duration) -> Self {
        self.lock_timeout = time;
        self
    }

    /// How long one statement of a mend may take, and so writers may wait for it; a minute by default. Then it is [`Error::Busy`] too.
    #[must_use]
    pub const fn statement_timeout(mut self, time: Duration) -> Self {
        self.statement_timeout = time;
        self
    }

    /// Where a counter's rows are; a second call for one counter takes the first's place.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] when the table is absent. [`Error::Source`] when records of this type do not drive the counter, the key has another number of columns
    /// or columns of other types, amounts are no integers, the rows of a table do not come out of an index in key order, or the server refuses the SQL;
    /// when several schemas of `search_path` have the table; and when not all rows can be seen in one snapshot with the totals: where a policy of row security, or a
    /// view's condition on who asks, hides some from this role, and in tables of other servers and materialized views. While a run goes on, the server refuses to
    /// leave out what a policy hides.
    pub async fn add<K: Key>(&mut self, counter: Counter<K>, source: TypedPostgresSource<'a>) -> Result<()> {
        self.add_def(counter.def(), source).await
    }

    async fn add_def(&mut self, counter: Def, mut source: TypedPostgresSource<'a>) -> Result<()> {
        source.target.check(self.layout, &counter, source.by_tally)?;
        (source.check_driven)(&counter)?;
        let tx = snapshot(self.client, &counter).await?;
        let session = Postgres::within(&tx, None);
        for name in source.target.names() {
            sight::find(&session, &counter, name).await?;
        }
        let statements = source.target.statements(Dialect::Postgres, &counter, None)?;
        let mut declared = Declared { counter, source, statements, cut: None, opening: settings(PAGE), parted: false };
        tx.batch_execute(&declared.opening).await.map_err(|error| failed_on("reading the source", &counter, error))?;
        declared.check(&tx).await?;
        let plans = session.query_all(&[declared.explain_first(), declared.explain_next()]).await;
        let plans = plans.map_err(|(_, error)| source_failed("planning the source", &counter, error))?;
        let line = |row: &tokio_postgres::Row| row.try_get::<_, String>(0).unwrap_or_default();
        let mut plans = plans.iter().map(|plan| plan.iter().map(line).collect::<Vec<String>>());
        // The first page is not cut down to some partitions by its key.
        sight::refuse_part(&session, &counter, &plans.next().unwrap_or_default()).await?;
        let next = plans.next().unwrap_or_default();
        if let Some(index) = declared.source.target.wanted_index(Dialect::Postgres, &counter)
            && next.iter().any(|line| sorts(line))
        {
            let reason =
                format!("its rows do not come out of an index in key order; make one: CREATE INDEX .. ON {index}");
            return Err(Error::source(&counter, None, reason));
        }
        declared.parted = !sight::kinship(&session, &counter).await?.is_empty();
        let names: Vec<String> = declared.source.target.names().map(|name| name.quoted()).collect();
        if !names.is_empty() {
            let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
            match tx.batch_execute(&lock).await {
                Ok(()) => declared.opening = format!("{lock}; {}", declared.opening),
                // Who may read some columns only locks nothing.
                Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                Err(error) => return Err(source_failed("locking the source", &counter, error)),
            }
        }
        drop(session);
        drop(tx);
        self.sources.retain(|known| known.counter != counter);
        self.sources.push(declared);
        Ok(())
    }

    /// The rows of a counter's source that cannot be counted, or that SQL counts otherwise than their tally: an error each, which names the key and what is the
    /// matter, up to `most`; to mend them by hand. Reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when the counter has no source, and what the database says.
    ///
    /// # Examples
    ///
    /// ```
    /// # use keepcount::Def;
    /// # use keepcount::reconcile::PostgresAudit;
    /// # async fn list(audit: &mut PostgresAudit<'_>, votes: Def) -> keepcount::Result<()> {
    /// for row in audit.faulty_rows(votes, 100).await? {
    ///     eprintln!("{row}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn faulty_rows(&mut self, counter: Def, most: usize) -> Result<Vec<Error>> {
        let opening = opening(&self.sources, &counter);
        let tx = snapshot(self.client, &counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, &counter, async {
            match truth(&mut session, self.layout, &mut self.sources, &counter, false).await? {
                Truth::Rows(declared) => declared.faults(&tx, most).await,
                Truth::Totals(_) => Ok(Vec::new()),
            }
        })
        .await
    }

    /// The counters that have a source, and the rollups of them, for [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<Def> {
        audit::with_rollups(self.layout, self.sources.iter().map(|declared| declared.counter).collect())
    }
}

/// What a counter is recounted from: its rows, or the totals that a rollup sums.
enum Truth<'s, 'a> {
    Rows(&'s Declared<'a>),
    Totals(Box<Joined>),
}

/// What a counter is recounted from, as far as it was pruned; with `hold`, it is pruned no further until the transaction ends.
async fn truth<'s, 'a, C: GenericClient + Send + Sync>(
    session: &mut Postgres<'_, C>,
    layout: &Layout,
    sources: &'s mut [Declared<'a>],
    counter: &Def,
    hold: bool,
) -> Result<Truth<'s, 'a>> {
    // What a mend lets climb must not be pruned meanwhile either.
    let watched = if hold { retention::read_with(layout, vec![*counter]) } else { vec![*counter] };
    let cut = retention::cuts(session, layout, &watched, hold).await?.into_iter().find(|(def, _)| def.same(counter));
    if let Some(rollup) = layout.placed(counter)?.rollup() {
        return Ok(Truth::Totals(Box::new(Joined::of(layout, *counter, rollup)?)));
    }
    let found = sources.iter_mut().find(|declared| declared.counter == *counter);
    let declared = found.ok_or_else(|| Error::source(counter, None, "there is none: add it to the audit"))?;
    declared.cut_at(cut.map(|(_, cut)| cut))?;
    Ok(Truth::Rows(declared))
}

impl Truth<'_, '_> {
    /// The next keys' sums and the next totals, and where the page ends, if there may be more of both behind.
    async fn page(
        &self,
        tx: &Transaction<'_>,
        layout: &Layout,
        plan: &mut Option<Plan>,
        ask: &Ask,
    ) -> Result<(Vec<Recount>, Totals, Option<KeyBuf>)> {
        let (session, counter, limit) = (Postgres::within(tx, None), &ask.counter, ask.keys.saturating_add(1));
        let failed = |error| failed_on("measuring totals", counter, error);
        let of_rows = |error| source_failed("measuring rows", counter, error);
        let range = crate::store::behind(counter, ask.after.as_ref())?;
        let totals = sql::range(Dialect::Postgres, layout.placed(counter)?, &range, limit)?;
        let (settings, next) = match self {
            // Their opening has made them.
            Self::Rows(declared) if declared.source.by_tally => (String::new(), None),
            Self::Rows(declared) => (String::new(), declared.next(ask)?),
            Self::Totals(joined) if joined.has_suffix() => (settings(&[PAGE, LOOK_UP, SORT_TAILS].concat()), None),
            Self::Totals(_) => (settings(&[PAGE, LOOK_UP].concat()), None),
        };
        let settings = async {
            let made = if settings.is_empty() { Ok(()) } else { tx.batch_execute(&settings).await };
            made.map_err(failed)
        };
        let totals = session.read(&totals, failed, |row| read_total(counter, row).map(Some));
        let sums = async {
            match (self, next) {
                (Self::Rows(declared), Some(next)) => session.read(&next, of_rows, |row| declared.sum(row)).await,
                _ => Ok(Vec::new()),
            }
        };
        // Sent in this order, as none waits for anything before; the first that failed is why the others did.
        let (settings, totals, sums) = join3(settings, totals, sums).await;
        settings?;
        let (totals, sums) = (totals?, sums?);
        let (recounts, end) = match self {
            Self::Rows(declared) if declared.source.by_tally => match declared.next(ask)? {
                Some(query) => (declared.sums_by_tally(tx, &query, ask.after.as_ref(), limit).await?, None),
                None => (Vec::new(), None),
            },
            Self::Rows(_) => (sums, None),
            Self::Totals(joined) => joined.page(&session, plan, ask, &totals).await?,
        };
        Ok((recounts, totals, end))
    }

    /// Whether single keys are found by an index: how the joins of a query are best planned, nobody knows here.
    fn has_index(&self) -> bool {
        match self {
            Self::Rows(declared) => declared.source.target.is_indexed(),
            Self::Totals(_) => true,
        }
    }

    async fn recount(&self, tx: &Transaction<'_>, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        match self {
            Self::Rows(declared) => declared.recount(tx, keys).await,
            Self::Totals(joined) => joined.recount(&Postgres::within(tx, None), keys).await,
        }
    }

    async fn is_empty(&self, tx: &Transaction<'_>) -> Result<bool> {
        match self {
            Self::Rows(declared) => declared.is_empty(tx).await,
            Self::Totals(joined) => joined.is_empty(&Postgres::within(tx, None)).await,
        }
    }
}

type Totals = Vec<(KeyBuf, i64)>;

impl AsyncAudit for PostgresAudit<'_> {
    async fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    async fn look(&mut self, ask: &Look) -> Result<Looked> {
        let (counter, layout) = (&ask.counter, self.layout);
        refuse_transaction(self.client).await?;
        refuse_read_only(&Postgres::own(&*self.client, None)).await?;
        let opening = opening(&self.sources, counter);
        let tx = snapshot(self.client, counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, counter, async {
            let truth = truth(&mut session, self.layout, &mut self.sources, counter, false).await?;
            if let Truth::Rows(declared) = &truth {
                declared.check_sample(&session).await?;
            }
            let empty = truth.is_empty(&tx).await?;
            let totals = if empty { read::count_non_zero(&mut session, layout, counter, ask.totals).await? } else { 0 };
            Ok(Looked { empty, totals })
        })
        .await
    }

    async fn measure(&mut self, ask: &Ask) -> Result<Measured> {
        let (counter, layout) = (&ask.counter, self.layout);
        let opening = opening(&self.sources, counter);
        // A counter's first page begins anew.
        let mut plan = self.plan.take().filter(|_| ask.after.is_some());
        let tx = snapshot(self.client, counter).await?;
        let mut session = Postgres::within(&tx, None);
        let read = behind(&tx, &opening, counter, async {
            // The first query fixes the snapshot that the others read too.
            let truth = truth(&mut session, self.layout, &mut self.sources, counter, false).await?;
            let (recounts, totals, end) = truth.page(&tx, layout, &mut plan, ask).await?;
            let listed = recounts.get(..ask.keys).unwrap_or(&recounts);
            let dangling = match &truth {
                Truth::Rows(declared) => declared.dangling(&session, listed).await?,
                Truth::Totals(_) => Vec::new(),
            };
            let measured = merge_up_to(ask, end, recounts, totals)?;
            let kin = match &truth {
                Truth::Rows(declared) if declared.parted && !measured.drifts.is_empty() => {
                    Some(sight::kinship(&session, counter).await?)
                }
                _ => None,
            };
            Ok((measured, dangling, kin))
        });
        let (mut measured, mut dangling, kin) = read.await?;
        self.plan = plan;
        drop(session);
        drop(tx);
        if let Some(kin) = kin {
            let tx = snapshot(self.client, counter).await?;
            sight::refuse_change(&Postgres::within(&tx, None), counter, &kin).await?;
        }
        dangling.retain(|key| measured.next.as_ref().or(ask.until.as_ref()).is_none_or(|last| key <= last));
        measured.dangling = dangling;
        Ok(measured)
    }

    async fn mend(&mut self, ask: &Mend) -> Result<Mended> {
        let (counter, layout) = (&ask.counter, self.layout);
        self.check_keys(ask).await?;
        let timeouts = [("lock_timeout", self.lock_timeout), ("statement_timeout", self.statement_timeout)];
        let failed = |error| failed_on("mending totals", counter, error);
        // At READ COMMITTED a statement sees what was committed when it began: after the totals are held, nobody else changes them.
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let tx = begin.start().await.map_err(failed)?;
        let mut session = Postgres::within(&tx, None);
        session.query(&set_mending(timeouts)).await.map_err(failed)?;
        let truth = truth(&mut session, layout, &mut self.sources, counter, true).await?;
        if truth.has_index() {
            session.query(&set(LOOK_UP)).await.map_err(failed)?;
        }
        write::lock_above(&mut session, layout, counter, &ask.keys).await?;
        let stored = write::lock_totals(&mut session, layout, counter, &ask.keys).await?;
        let truths = truth.recount(&tx, &ask.keys).await?;
        let mended = engine::audit::mend(&mut session, layout, counter, (&ask.keys, &stored), &truths).await?;
        drop(session);
        let doing = format!("mending totals of counter {}", counter.full_name());
        if let Err(error) = tx.commit().await {
            return Err(settled(&*self.client, &doing, commit_failed(&doing, error)).await);
        }
        Ok(mended)
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
        session.query(&set_mending([("lock_timeout", self.lock_timeout)])).await.map_err(failed)?;
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
    /// Holds rows of the keys that are about to be mended against their `tally`.
    async fn check_keys(&mut self, ask: &Mend) -> Result<()> {
        let opening = opening(&self.sources, &ask.counter);
        let tx = snapshot(self.client, &ask.counter).await?;
        let mut session = Postgres::within(&tx, None);
        behind(&tx, &opening, &ask.counter, async {
            match truth(&mut session, self.layout, &mut self.sources, &ask.counter, false).await? {
                Truth::Rows(declared) => declared.check_keys(&session, &ask.keys).await,
                Truth::Totals(_) => Ok(()),
            }
        })
        .await
    }
}

/// What a transaction that reads a counter's rows begins with; nothing for a rollup.
fn opening(sources: &[Declared<'_>], counter: &Def) -> String {
    sources
        .iter()
        .find(|declared| declared.counter == *counter)
        .map(|declared| declared.opening.clone())
        .unwrap_or_default()
}

/// Sends `opening` before anything that `reading` asks, and waits for both at once.
async fn behind<T>(
    tx: &Transaction<'_>,
    opening: &str,
    counter: &Def,
    reading: impl Future<Output = Result<T>>,
) -> Result<T> {
    let opening = async { if opening.is_empty() { Ok(()) } else { tx.batch_execute(opening).await } };
    let (opened, read) = join(opening, reading).await;
    opened.map_err(|error| source_failed("opening the source", counter, error))?;
    read
}

/// A transaction that reads, at any time, what was committed when its first query began; locks and settings come before. Dropped, it ends.
async fn snapshot<'c>(client: &'c mut Client, counter: &Def) -> Result<Transaction<'c>> {
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
/// The index of links has parents in order; the keys of one parent are sorted.
const SORT_TAILS: &[(&str, &str)] = &[("enable_incremental_sort", "on")];

/// Makes settings until the transaction ends, and takes no snapshot.
fn settings(settings: &[(&str, &str)]) -> String {
    settings.iter().flat_map(|(name, value)| ["SET LOCAL ", name, " = ", value, "; "]).collect()
}

/// Makes settings until the transaction ends.
fn set(settings: &[(&str, &str)]) -> Query<'static> {
    let settings = settings.iter().map(|(name, value)| format!("set_config('{name}', '{value}', true)"));
    Query::new(format!("SELECT {}", settings.collect::<Vec<_>>().join(", ")), Vec::new())
}

/// What a transaction that mends begins with.
fn set_mending<const N: usize>(timeouts: [(&str, Duration); N]) -> Query<'static> {
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
    let inside = || Err(Error::setting("client", "it is inside a transaction; an audit needs a client of its own"));
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
    let doing = |error| failed(Whose::Connection, "looking whether the server takes writes", error);
    let rows = session.query(&Query::new(text, Vec::new())).await.map_err(doing)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let reason = match (row.try_get(0).map_err(doing)?, row.try_get(1).map_err(doing)?) {
        (true, _) => "the server is a replica; it can verify, and a repair or backfill is for its primary",
        (false, true) => "its transactions are read-only; it can verify, and a repair or backfill writes",
        (false, false) => return Ok(()),
    };
    Err(Error::setting("client", reason))
}
