//! The audit of a SQL database, live: rows and totals in one snapshot, repairs under the locks of
//! their totals. Written once, over an executor.

mod progress_statements;
mod record_source;
mod rollup_source;
mod rollup_spans;
mod rollup_tables;
mod row_source;
mod run_progress;
mod source_check;
mod source_statements;
mod transaction_settings;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub(super) use self::record_source::Unfound;
pub use self::record_source::{Columns, Rows};
use self::rollup_source::RollupSource;
use self::rollup_spans::{Plan, merge_up_to};
use self::row_source::{RowSource, source_failed, source_stopped};
use self::run_progress::{keep_run, kept_of, ready_in};
use super::audit::{
    self, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, Recount, RepairRequest,
    Repaired,
};
use super::token::Token;
use crate::batch::Batch;
use crate::counter::CounterId;
use crate::engine::{self, OrFailed as _, Whose, failed, prune, read, still_open, transact, write};
use crate::error::{Error, Result};
use crate::executor::{Column, Executor, Reading};
use crate::key::KeyBuf;
use crate::schema::Schema;
use crate::sql::{self, Dialect, Query};

/// Runs `work` in one snapshot, which is ended whatever comes of it. A macro for the reason that
/// [`transact`] has.
macro_rules! in_snapshot {
    ($executor:expr, $reading:expr, $counter:expr, $work:expr) => {
        match begin_read($executor, $reading, $counter).await {
            Ok(()) => {
                let done = $work.await;
                end_read($executor, $counter, done).await
            }
            Err(error) => Err(error),
        }
    };
}

/// What an audit knows of its database, apart from the connection.
#[derive(Debug)]
pub(super) struct Database<'a> {
    dialect: Dialect,
    schema: &'a Schema,
    identity: u64,
    sources: Vec<RowSource>,
    /// Of the rollup whose pages are being compared.
    plan: Option<Plan>,
    pub(super) limits: Limits,
}

/// How long a repair may wait, and make others wait. In PostgreSQL alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) lock: Duration,
    pub(super) statement: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lock: Duration::from_secs(5), statement: Duration::from_secs(60) }
    }
}

impl<'a> Database<'a> {
    /// Checks the tables of totals.
    pub(super) async fn of<E: Executor + ?Sized>(
        executor: &mut E,
        schema: &'a Schema,
    ) -> Result<Self> {
        refuse_transaction(executor).await?;
        engine::tables::check(executor, schema).await?;
        let identity = engine::tables::identity(executor, schema).await?;
        Ok(Self {
            dialect: executor.dialect(),
            schema,
            identity,
            sources: Vec::new(),
            plan: None,
            limits: Limits::default(),
        })
    }

    pub(super) const fn schema(&self) -> &'a Schema {
        self.schema
    }

    pub(super) const fn identity(&self) -> u64 {
        self.identity
    }

    /// Adds counters' sources, or replaces them.
    pub(super) async fn add<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        sources: Vec<Unfound>,
    ) -> Result<()> {
        let mut found = Vec::new();
        for source in sources {
            found.push(source_check::look(executor, source).await?);
        }
        for source in found {
            self.sources.retain(|known| known.counter != source.counter);
            self.sources.push(source);
        }
        Ok(())
    }

    /// The counters that have a source, and the rollups of them.
    pub(super) fn counters(&self) -> Vec<CounterId> {
        audit::with_rollups(self.schema, self.sources.iter().map(|source| source.counter).collect())
    }

    pub(super) async fn faulty_rows<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        counter: &CounterId,
        most: usize,
    ) -> Result<Vec<Error>> {
        let opening = self.opening(counter);
        in_snapshot!(executor, opening.reading(), counter, async {
            match self.expected(executor, counter, false).await? {
                Expected::Rows(source) => source.faults(executor, most).await,
                Expected::Totals(_) => Ok(Vec::new()),
            }
        })
    }

    pub(super) async fn probe<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        ask: &Probe,
    ) -> Result<ProbeResult> {
        refuse_transaction(executor).await?;
        refuse_read_only(executor).await?;
        let (counter, schema) = (&ask.counter, self.schema);
        let opening = self.opening(counter);
        in_snapshot!(executor, opening.reading(), counter, async {
            let expected = self.expected(executor, counter, false).await?;
            if let Expected::Rows(source) = &expected {
                source.check_sample(executor).await?;
            }
            let empty = expected.is_empty(executor).await?;
            let totals = if empty {
                read::count_non_zero(executor, schema, counter, ask.totals).await?
            } else {
                0
            };
            Ok(ProbeResult { empty, totals })
        })
    }

    pub(super) async fn compare<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        ask: &PageRequest,
    ) -> Result<PageDiff> {
        let counter = &ask.counter;
        // The first page of a counter needs a new plan.
        let mut plan = self.plan.take().filter(|_| ask.after.is_some());
        let opening = self.opening_of_page(counter)?;
        let compared = in_snapshot!(
            executor,
            opening.reading(),
            counter,
            self.compare_in(executor, &mut plan, ask)
        );
        let (diff, watched) = compared?;
        self.plan = plan;
        if let Some((watch, before)) = watched {
            let now = in_snapshot!(
                executor,
                Reading::default(),
                counter,
                answer(executor, counter, &watch)
            )?;
            if now != before {
                let reason = "a table's partitions or children changed meanwhile; try again";
                let operation = format!("comparing rows of counter {}", counter.full_name());
                return Err(Error::Busy { operation, reason, cause: reason.into() });
            }
        }
        Ok(diff)
    }

    /// Compares a page, in a snapshot. Returns also what must still be so after it, if keys differ.
    async fn compare_in<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        plan: &mut Option<Plan>,
        ask: &PageRequest,
    ) -> Result<(PageDiff, Option<Watched>)> {
        let (counter, schema) = (&ask.counter, self.schema);
        // The first query fixes the snapshot that the others read too.
        let expected = self.expected(executor, counter, false).await?;
        let (range, limit) =
            (crate::store::behind(counter, ask.after.as_ref())?, ask.keys.saturating_add(1));
        let totals = sql::range(executor.dialect(), schema.spec(counter)?, &range, limit)?;
        let Page { totals, recounts, end } = match &expected {
            Expected::Rows(source) => source.page(executor, totals, ask).await?,
            Expected::Totals(source) => {
                let totals = read::keyed_totals(executor, counter, &totals, MEASURING).await?;
                let (recounts, end) = source.page(executor, plan, ask, &totals).await?;
                Page { totals, recounts, end }
            }
        };
        let (mut dangling, mut watched) = (Vec::new(), None);
        if let Expected::Rows(source) = &expected {
            dangling =
                source.dangling(executor, recounts.get(..ask.keys).unwrap_or(&recounts)).await?;
        }
        let mut diff = merge_up_to(ask, end, recounts, totals)?;
        if let Expected::Rows(RowSource { watch: Some(watch), .. }) = &expected
            && !diff.drifts.is_empty()
        {
            watched = Some((watch.clone(), answer(executor, counter, watch).await?));
        }
        dangling
            .retain(|key| diff.next.as_ref().or(ask.until.as_ref()).is_none_or(|last| key <= last));
        diff.dangling = dangling;
        Ok((diff, watched))
    }

    pub(super) async fn repair<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        ask: &RepairRequest,
    ) -> Result<Repaired> {
        refuse_nested(executor)?;
        let counter = &ask.counter;
        if self.source(counter).is_some_and(|source| !source.by_tally) {
            let opening = self.opening(counter);
            in_snapshot!(executor, opening.reading(), counter, async {
                match self.expected(executor, counter, false).await? {
                    Expected::Rows(source) => source.check_keys(executor, &ask.keys).await,
                    Expected::Totals(_) => Ok(()),
                }
            })?;
        }
        let operation = format!("repairing totals of counter {}", counter.full_name());
        transact!(executor, operation, self.repair_in(executor, ask, &operation))
    }

    /// Locks the totals of keys, recounts them, and adds the differences. In PostgreSQL, each
    /// statement sees what was committed when it began, so that nobody changes the locked totals
    /// before they are recounted.
    async fn repair_in<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        ask: &RepairRequest,
        operation: &str,
    ) -> Result<Repaired> {
        let (counter, schema) = (&ask.counter, self.schema);
        let is_indexed = self.source(counter).is_none_or(|source| source.target.is_indexed());
        let settings = transaction_settings::of_repair(executor.dialect(), self.limits, is_indexed);
        set(executor, &settings, operation).await?;
        let expected = self.expected(executor, counter, true).await?;
        write::lock_above(executor, schema, counter, &ask.keys).await?;
        let stored = write::lock_totals(executor, schema, counter, &ask.keys).await?;
        let expected_all = expected.recount(executor, &ask.keys).await?;
        add_differences(executor, schema, counter, (&ask.keys, &stored), &expected_all).await
    }

    pub(super) async fn recall<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        token: &Token,
    ) -> Result<Option<Token>> {
        refuse_transaction(executor).await?;
        kept_of(executor, token.run()).await
    }

    pub(super) async fn keep<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        ask: &Keep,
    ) -> Result<Kept> {
        refuse_transaction(executor).await?;
        keep_run(executor, ask).await
    }

    /// Ends a backfill. Whether the commit came through or not, it may be said again.
    pub(super) async fn ready<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        ask: &Ready,
    ) -> Result<Kept> {
        refuse_nested(executor)?;
        let operation = format!("ending the backfill of counter {}", ask.counter.full_name());
        let settings = transaction_settings::of_ready(executor.dialect(), self.limits);
        transact!(executor, operation, async {
            set(executor, &settings, &operation).await?;
            ready_in(executor, ask).await
        })
    }

    fn source(&self, counter: &CounterId) -> Option<&RowSource> {
        self.sources.iter().find(|source| source.counter == *counter)
    }

    /// How a counter's rows are read; a rollup has none.
    fn opening(&self, counter: &CounterId) -> Opening {
        self.source(counter).map(|source| source.opening.clone()).unwrap_or_default()
    }

    /// The same for a page, where a rollup is read by settings of its own.
    fn opening_of_page(&self, counter: &CounterId) -> Result<Opening> {
        let script = match self.schema.spec(counter)?.rollup() {
            Some(rollup) => {
                transaction_settings::of_rollup_page(self.dialect, rollup.keeps_suffix())
            }
            None => return Ok(self.opening(counter)),
        };
        Ok(Opening { script, is_locked: false })
    }

    /// What a counter is recounted from, down to its cutoff. With `lock`, it is not pruned further
    /// until the transaction ends, nor is what a repair propagates to.
    async fn expected<E: Executor + ?Sized>(
        &mut self,
        executor: &mut E,
        counter: &CounterId,
        lock: bool,
    ) -> Result<Expected<'_>> {
        let schema = self.schema;
        let watched = if lock { prune::read_with(schema, vec![*counter]) } else { vec![*counter] };
        let cutoffs = prune::cutoffs(executor, schema, &watched, lock).await?;
        if let Some(rollup) = schema.spec(counter)?.rollup() {
            let source = RollupSource::of(schema, executor.dialect(), *counter, rollup)?;
            return Ok(Expected::Totals(Box::new(source)));
        }
        let found = self.sources.iter_mut().find(|source| source.counter == *counter);
        let source = found.ok_or_else(|| Error::no_source(counter))?;
        source.cutoff_at(
            cutoffs.into_iter().find(|(id, _)| id.same(counter)).map(|(_, cutoff)| cutoff),
        )?;
        Ok(Expected::Rows(source))
    }
}

/// What a counter is recounted from: its rows, or the totals that a rollup sums.
enum Expected<'s> {
    Rows(&'s RowSource),
    Totals(Box<RollupSource>),
}

impl Expected<'_> {
    /// The sums of these keys; those without any may be left out.
    async fn recount<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        keys: &[KeyBuf],
    ) -> Result<BTreeMap<KeyBuf, i64>> {
        match self {
            Self::Rows(source) => source.recount(executor, keys).await,
            Self::Totals(source) => source.recount(executor, keys).await,
        }
    }

    async fn is_empty<E: Executor + ?Sized>(&self, executor: &mut E) -> Result<bool> {
        match self {
            Self::Rows(source) => source.is_empty(executor).await,
            Self::Totals(source) => source.is_empty(executor).await,
        }
    }
}

/// What a page compares.
struct Page {
    totals: Vec<(KeyBuf, i64)>,
    recounts: Vec<Recount>,
    /// Where it ends, if there may be more of both after that.
    end: Option<KeyBuf>,
}

/// What reads the stored totals of a page, for errors.
const MEASURING: &str = "measuring totals";

/// A query, and what it answered in the snapshot of a page.
type Watched = (Query<'static>, Vec<Column<'static>>);

/// How a transaction that reads a counter's rows begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Opening {
    pub(super) script: String,
    pub(super) is_locked: bool,
}

impl Opening {
    fn reading(&self) -> Reading<'_> {
        Reading { script: &self.script, is_locked: self.is_locked }
    }
}

pub(super) async fn begin_read<E: Executor + ?Sized>(
    executor: &mut E,
    reading: Reading<'_>,
    counter: &CounterId,
) -> Result<()> {
    refuse_nested(executor)?;
    let Err(error) = executor.begin_read(reading).await else { return Ok(()) };
    let error = source_failed("opening the source", counter, error);
    Err(if executor.roll_back().await { error } else { still_open("opening the source", error) })
}

pub(super) async fn end_read<E: Executor + ?Sized, T>(
    executor: &mut E,
    counter: &CounterId,
    done: Result<T>,
) -> Result<T> {
    if executor.roll_back().await {
        return done;
    }
    let operation = format!("measuring counter {}", counter.full_name());
    let reads_done =
        || Error::Database { operation: operation.clone(), cause: "its reads are done".into() };
    Err(still_open(&operation, done.err().unwrap_or_else(reads_done)))
}

/// Makes settings until the transaction ends.
async fn set<E: Executor + ?Sized>(
    executor: &mut E,
    settings: &str,
    operation: &str,
) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    executor.run(settings).await.map_err(|error| failed(Whose::Connection, operation, error))
}

/// All columns that a query returns.
async fn answer<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    query: &Query<'_>,
) -> Result<Vec<Column<'static>>> {
    let mut columns = Vec::new();
    let read = executor
        .fetch(std::slice::from_ref(query), &mut |_, row| {
            columns.extend((0..row.len()).map(|at| row.column(at).into_owned()));
            Ok(())
        })
        .await;
    let what = "inspecting the tables of the source";
    read.or_failed_on(what, counter)?;
    Ok(columns)
}

/// Adds to these locked totals the difference to the expected ones, and removes those that are
/// then 0.
async fn add_differences<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    (keys, stored): (&[KeyBuf], &[i64]),
    expected_all: &BTreeMap<KeyBuf, i64>,
) -> Result<Repaired> {
    let (mut lacking, mut gone) = (Batch::new(), Vec::new());
    for (key, stored) in keys.iter().zip(stored) {
        let expected = expected_all.get(key).copied().unwrap_or(0);
        lacking.add_raw(*counter, &mut key.clone(), i128::from(expected) - i128::from(*stored));
        gone.extend((expected == 0).then(|| key.clone()));
    }
    // An ordinary batch, which propagates to rollups like any other.
    write::repair(executor, schema, &lacking).await?;
    write::remove_zeros(executor, schema, counter, &gone).await?;
    Ok(Repaired { corrected: lacking.len() as u64, unsettled: Vec::new() })
}

/// An audit begins transactions of its own. This asks the database.
async fn refuse_transaction<E: Executor + ?Sized>(executor: &mut E) -> Result<()> {
    match executor.is_idle().await {
        Ok(true) => Ok(()),
        Ok(false) => Err(inside_transaction()),
        Err(error) => Err(failed(Whose::Connection, "inspecting the connection", error)),
    }
}

/// The same, as far as the driver knows it without asking.
fn refuse_nested<E: Executor + ?Sized>(executor: &E) -> Result<()> {
    if executor.is_nested() { Err(inside_transaction()) } else { Ok(()) }
}

fn inside_transaction() -> Error {
    let reason = "it is inside a transaction; an audit needs a connection of its own";
    Error::invalid_use("connection", reason)
}

/// A replica, and a role that may only read, can verify and nothing else.
async fn refuse_read_only<E: Executor + ?Sized>(executor: &mut E) -> Result<()> {
    let Some(query) = transaction_settings::read_only(executor.dialect()) else { return Ok(()) };
    let mut reason = None;
    let read = executor
        .fetch(std::slice::from_ref(&query), &mut |_, row| {
            if let Column::Text(text) = row.column(0) {
                reason = Some(text.into_owned());
            }
            Ok(())
        })
        .await;
    let operation = "asking whether the server accepts writes";
    read.or_failed(Whose::Connection, operation)?;
    match reason.as_deref() {
        Some("") => Ok(()),
        Some(reason) => Err(Error::invalid_use("connection", reason)),
        None => {
            Err(Error::Database { operation: operation.to_owned(), cause: "it did not say".into() })
        }
    }
}
