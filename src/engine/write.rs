//! A write: filters out what is pruned, propagates to rollups, writes totals in order, updates
//! leaderboards, and advances the offset.
//!
//! In PostgreSQL all locks are taken in one order: the stream's offset, cutoffs, the children of
//! rollups by level and membership, the keys of leaderboards, then totals by counter and key. So
//! transactions that apply once never deadlock with each other. In SQLite one lock covers the whole
//! database.

use std::borrow::Cow;

use super::leaderboard::Moved;
use super::rows::read_total;
use super::{
    OrFailed as _, Whose, begin, end, failed, failed_on, leaderboard, offsets, prune, read,
    run_again,
};
use crate::batch::{Batch, steps};
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::executor::{ErrorKind, Executor, Stopped, skipped};
use crate::key::KeyBuf;
use crate::leaderboard::LeaderboardId;
use crate::observe;
use crate::rollup_update::{self, RollupUpdate, TotalsRequest};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::Applied;
use crate::stream_range::StreamRange;

/// Why nothing was written.
pub(crate) enum Failed {
    Known(Error),
    /// A total of this counter would leave 64 bits; PostgreSQL does not report which of many. The
    /// batch includes its rollup deltas.
    Overflow(CounterId, Box<Batch>),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

impl Failed {
    /// The error without a search for the key: within the caller's failed transaction nothing can
    /// be read.
    pub(crate) fn unnamed(self) -> Error {
        match self {
            Self::Known(error) => error,
            Self::Overflow(counter, batch) => {
                let keys: Vec<&KeyBuf> = of_counter(&batch, &counter).map(|(key, _)| key).collect();
                match keys.as_slice() {
                    [key] => Error::overflow(&counter, key, "total"),
                    [first, ..] => {
                        let key = format!("{} or another of {}", counter.show(first), keys.len());
                        Error::Overflow { counter: counter.name(), key, what: "total" }
                    }
                    [] => Error::Overflow {
                        counter: counter.name(),
                        key: String::new(),
                        what: "total",
                    },
                }
            }
        }
    }
}

fn of_counter<'b>(
    batch: &'b Batch,
    counter: &CounterId,
) -> impl Iterator<Item = (&'b KeyBuf, i128)> {
    let counter = *counter;
    batch.deltas().filter(move |(of, ..)| of.same(&counter)).map(|(_, key, delta)| (key, delta))
}

/// The operation of applying a batch, for error messages.
pub(crate) fn operation(batch: &Batch, stream_range: Option<&StreamRange<'_>>) -> String {
    match stream_range {
        Some(stream_range) if batch.is_empty() => moving(stream_range),
        _ => {
            let mut names: Vec<_> =
                batch.deltas().map(|(counter, ..)| counter.full_name()).collect();
            names.sort_unstable();
            names.dedup();
            format!("writing totals of counter {}", names.join(", "))
        }
    }
}

fn moving(stream_range: &StreamRange<'_>) -> String {
    format!("moving the offset of stream {}", stream_range.stream())
}

/// Applies a batch, once for the events of a stream range, and empties it.
pub(crate) async fn apply<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &mut Batch,
    stream_range: Option<&StreamRange<'_>>,
) -> Result<Applied> {
    schema.check_batch(batch)?;
    if batch.is_empty() && stream_range.is_none() {
        batch.spend();
        return Ok(Applied::default());
    }
    let began = observe::begin(executor.dialect().backend(), batch);
    let applied = run_again!(executor, apply_whole(executor, schema, batch, stream_range).await)?;
    // First, since the application's recorder may panic.
    batch.spend();
    if !applied.skipped {
        applied.observe(executor.dialect().backend(), began, batch);
    }
    Ok(applied)
}

async fn apply_whole<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
) -> Result<Applied> {
    // Refuse what cannot be written before a transaction begins.
    let writes = if is_plain(schema) {
        Some(Writes::of(executor.dialect(), schema, batch, false)?)
    } else {
        None
    };
    let operation = || operation(batch, stream_range);
    let nested = begin(executor, operation).await?;
    let done = write(executor, schema, batch, stream_range, writes).await;
    finish(executor, schema, nested, operation, done).await
}

/// Ends the transaction of a write. If a total overflowed and the database did not name it, finds
/// it afterwards.
pub(crate) async fn finish<E: Executor + ?Sized, T>(
    executor: &mut E,
    schema: &Schema,
    nested: bool,
    operation: impl FnOnce() -> String,
    done: Result<T, Failed>,
) -> Result<T> {
    match done {
        Ok(done) => end(executor, nested, operation, Ok(done)).await,
        Err(Failed::Overflow(counter, batch)) if !nested => {
            if executor.roll_back().await {
                return Err(find_overflow(executor, schema, &counter, &batch).await);
            }
            let error = Failed::Overflow(counter, batch).unnamed();
            Err(super::still_open(&operation(), error))
        }
        Err(failed) => end(executor, nested, operation, Err(failed.unnamed())).await,
    }
}

/// Whether a batch is all that is written: no counter is a rollup or prunable, and there is no
/// leaderboard.
pub(crate) const fn is_plain(schema: &Schema) -> bool {
    schema.is_plain() && schema.leaderboard_ids().is_empty()
}

/// Writes a batch in the current transaction; does nothing if its events were applied before. The
/// offset is checked first, because the rollup deltas of a batch that is delivered again may be
/// beyond 64 bits by now.
async fn write<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
    writes: Option<Writes<'_>>,
) -> Result<Applied, Failed> {
    if let Some(stream_range) = stream_range
        && !follows(executor, batch, stream_range).await?
    {
        return Ok(Applied::skipped());
    }
    write_following(executor, schema, batch, stream_range, writes).await
}

/// Whether the events of a stream range come next, and were not applied before. In PostgreSQL,
/// transactions that apply the same stream wait here for each other, and then see what was applied.
pub(crate) async fn follows<E: Executor + ?Sized>(
    executor: &mut E,
    batch: &Batch,
    stream_range: &StreamRange<'_>,
) -> Result<bool> {
    let text = match executor.dialect() {
        Dialect::Sqlite => sql::read_offset(Dialect::Sqlite),
        Dialect::Postgres => sql::lock_offset(),
    };
    let query = Query::new(text, vec![Value::Text(stream_range.stream().into())]);
    let last = offsets::offset_by(
        executor,
        query,
        stream_range.stream(),
        &operation(batch, Some(stream_range)),
    )
    .await?;
    stream_range.follows(last)
}

/// Writes a batch whose events come next. `writes` are its statements, if it is all that is
/// written.
pub(crate) async fn write_following<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
    writes: Option<Writes<'_>>,
) -> Result<Applied, Failed> {
    if let Some(writes) = writes {
        return write_all(executor, schema, batch, stream_range, (writes, &Vec::new())).await;
    }
    let kept = prune::above_cutoffs(executor, schema, batch).await?;
    let expanded = update_rollups(executor, schema, kept).await?;
    let applied = write_with_rollups(executor, schema, &expanded, stream_range, false).await?;
    Ok(applied.of(expanded))
}

async fn write_with_rollups<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    expanded: &Batch,
    stream_range: Option<&StreamRange<'_>>,
    split: bool,
) -> Result<Applied, Failed> {
    let moved = leaderboard::moved(schema, expanded)?;
    let mut writes = Writes::of(executor.dialect(), schema, expanded, split)?;
    writes.lock_first(leaderboard_locks(executor.dialect(), &moved));
    write_all(executor, schema, expanded, stream_range, (writes, &moved)).await
}

/// Writes a batch that includes its rollup deltas: takes the locks of leaderboards, writes totals,
/// then leaderboards, and the offset last. So a failure before the end has only totals to take
/// back.
async fn write_all<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
    (mut writes, moved): (Writes<'_>, &Moved),
) -> Result<Applied, Failed> {
    let set_offset = stream_range.map(|range| set_offset(executor.dialect(), range));
    let together = moved.is_empty();
    if together {
        writes.queries.extend(set_offset.clone());
    }
    let written = executor.execute(&writes.queries).await;
    let error = match written {
        Ok(written) => {
            match follow(
                executor,
                schema,
                batch,
                (stream_range, set_offset.filter(|_| !together)),
                moved,
            )
            .await
            {
                Ok(lines) => {
                    let statements = writes.statements(&written) + lines;
                    return Ok(Applied::new(batch.len() as u64, statements));
                }
                Err(error) => {
                    take_back(executor, schema, &writes, (usize::MAX, 0), moved, error).await
                }
            }
        }
        Err(stopped) => {
            let reached = reached(&stopped);
            match writes.failed(batch, stream_range, stopped) {
                Failed::Known(error) => {
                    take_back(executor, schema, &writes, reached, moved, error).await
                }
                overflow @ Failed::Overflow(..) => return Err(overflow),
            }
        }
    };
    Err(error.into())
}

/// Writes what follows totals: leaderboards and the offset.
async fn follow<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: &Batch,
    (stream_range, set_offset): (Option<&StreamRange<'_>>, Option<Query<'_>>),
    moved: &Moved,
) -> Result<u64> {
    let lines = leaderboard::follow(executor, schema, moved).await?;
    if let Some(set) = set_offset {
        let set = executor.execute(&[set]).await;
        set.map_err(|stopped| offset_failed(batch, stream_range, stopped))?;
    }
    Ok(lines)
}

fn set_offset<'m>(dialect: Dialect, stream_range: &StreamRange<'m>) -> Query<'m> {
    let last = i64::try_from(stream_range.last()).unwrap_or(i64::MAX); // `new` refuses more
    let values = vec![Value::Text(stream_range.stream().into()), Value::Integer(last)];
    Query::new(sql::set_offset(dialect), values).exact()
}

fn offset_failed(batch: &Batch, stream_range: Option<&StreamRange<'_>>, stopped: Stopped) -> Error {
    match stopped {
        Stopped::Skipped { .. } => skipped(sql::OFFSETS.to_owned()),
        stopped => stopped.or(|_, error| {
            let operation = stream_range.map_or_else(|| operation(batch, None), moving);
            failed(Whose::Table(sql::OFFSETS), &operation, error)
        }),
    }
}

/// The query, and its row of parameters, at which the statements stopped.
const fn reached(stopped: &Stopped) -> (usize, usize) {
    match stopped {
        Stopped::Failed { query, row, .. } | Stopped::Skipped { query, row } => (*query, *row),
        Stopped::Refused(_) => (usize::MAX, 0),
    }
}

/// Makes sure that nothing remains of a batch that failed within the caller's transaction.
/// PostgreSQL has aborted that transaction, or does it now. In SQLite it may go on: what was
/// written so far is subtracted again. That is as exact as a savepoint, and avoids the copy that a
/// savepoint makes of every page that a batch touches, which made batches of a few hundred totals
/// slower than triggers. If that fails too, the transaction is rolled back.
#[cold]
async fn take_back<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    writes: &Writes<'_>,
    (query, row): (usize, usize),
    moved: &Moved,
    error: Error,
) -> Error {
    if !executor.is_nested() {
        return error;
    }
    if executor.dialect() == Dialect::Sqlite {
        let queries = writes.queries.iter().enumerate().take(query.saturating_add(1));
        let undo: Vec<Query<'_>> = queries
            .filter(|(at, _)| writes.totals_of(*at).is_some_and(|totals| totals.adds))
            .map(|(at, done)| inverse(done, if at == query { row } else { usize::MAX }))
            .filter(|undo| !undo.values.is_empty())
            .collect();
        let mut undone = executor.execute(&undo).await.is_ok();
        if undone && executor.is_nested() {
            undone = leaderboard::follow(executor, schema, moved).await.is_ok();
        }
        if undone || !executor.is_nested() {
            return error;
        }
    }
    if executor.roll_back().await { error } else { super::still_open("writing totals", error) }
}

/// Subtracts what the first `rows` rows of an upsert added.
fn inverse<'v>(done: &Query<'v>, rows: usize) -> Query<'v> {
    let mut values = Vec::new();
    let mut width = 1;
    for row in done.rows().take(rows) {
        let Some((Value::Integer(delta), key)) = row.split_last() else { continue };
        width = row.len();
        for step in steps(-i128::from(*delta)) {
            values.extend(key.iter().cloned().chain([Value::Integer(step)]));
        }
    }
    Query::of_rows(done.text.clone(), values, width).exact()
}

/// Statements that write totals, with those that come before and after them.
pub(crate) struct Writes<'b> {
    pub(crate) queries: Vec<Query<'b>>,
    /// How many queries come before those of totals.
    before: usize,
    totals: Vec<Totals>,
}

/// A statement on a table of totals.
struct Totals {
    counter: CounterId,
    /// Whether it adds to totals; otherwise it removes zeros.
    adds: bool,
}

impl<'b> Writes<'b> {
    /// The statements that write a batch's totals.
    pub(crate) fn of(
        dialect: Dialect,
        schema: &Schema,
        batch: &'b Batch,
        split: bool,
    ) -> Result<Self> {
        let statements = sql::statements(dialect, schema, batch, split)?;
        let totals = statements
            .iter()
            .map(|statement| Totals { counter: statement.counter, adds: statement.adds });
        let totals = totals.collect();
        let queries = statements.into_iter().map(sql::Statement::into_query).collect();
        Ok(Self { queries, before: 0, totals })
    }

    fn lock_first(&mut self, locks: Vec<Query<'b>>) {
        self.before = locks.len();
        self.queries.splice(0..0, locks);
    }

    fn totals_of(&self, query: usize) -> Option<&Totals> {
        query.checked_sub(self.before).and_then(|at| self.totals.get(at))
    }

    /// How many executions wrote totals.
    fn statements(&self, written: &[u64]) -> u64 {
        let of_totals = self.queries.iter().zip(written).skip(self.before).take(self.totals.len());
        of_totals.map(|(query, _)| query.rows().len() as u64).sum()
    }

    pub(crate) fn failed(
        &self,
        batch: &Batch,
        stream_range: Option<&StreamRange<'_>>,
        stopped: Stopped,
    ) -> Failed {
        let (query, row) = reached(&stopped);
        match (self.totals_of(query), stopped) {
            (Some(totals), Stopped::Failed { error, .. }) if error.kind == ErrorKind::Overflow => {
                match self.key_of(query, row, &totals.counter) {
                    Some(key) => Error::overflow(&totals.counter, &key, "total").into(),
                    None => Failed::Overflow(totals.counter, Box::new(batch.clone())),
                }
            }
            (Some(totals), Stopped::Skipped { .. }) => skipped(totals.counter.table_name()).into(),
            (Some(totals), stopped) => {
                stopped.or(|_, error| failed_on("writing totals", &totals.counter, error)).into()
            }
            (None, Stopped::Failed { error, .. }) if query < self.before => {
                failed(Whose::Table(sql::LOCKS), &operation(batch, stream_range), error).into()
            }
            (None, stopped) => offset_failed(batch, stream_range, stopped).into(),
        }
    }

    /// The key of a row of parameters, if the row is of one key.
    fn key_of(&self, query: usize, row: usize, counter: &CounterId) -> Option<KeyBuf> {
        let row = self.queries.get(query)?.rows().nth(row)?;
        let mut key = KeyBuf::new();
        for (part, value) in counter.parts().as_slice().iter().zip(row) {
            sql::push_key_part(*part, value, &mut key).ok()?;
        }
        Some(key)
    }
}

/// In PostgreSQL, transactions that score the same key of a leaderboard wait for each other: its
/// score depends on totals that they change.
fn leaderboard_locks<'m>(
    dialect: Dialect,
    moved: &'m [(&'static LeaderboardId, std::collections::BTreeSet<KeyBuf>)],
) -> Vec<Query<'m>> {
    if dialect != Dialect::Postgres {
        return Vec::new();
    }
    let lock =
        |(leaderboard, keys): &'m (&'static LeaderboardId, std::collections::BTreeSet<KeyBuf>)| {
            sql::lock(
                leaderboard.name(),
                0,
                keys.iter().map(|key| Cow::Borrowed(key.as_bytes())).collect(),
            )
        };
    moved.iter().map(lock).collect()
}

/// Propagates a batch to rollups. In PostgreSQL, each child whose memberships or base totals change
/// is locked first and read in a later statement, so that what was read does not change until the
/// transaction ends.
pub(crate) async fn update_rollups<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    batch: Batch,
) -> Result<Batch> {
    if schema.is_plain() || schema.first_fed(&batch).is_none() {
        return Ok(batch);
    }
    let mut update = RollupUpdate::of(schema, batch);
    loop {
        let requests = update.next_all()?;
        let Some(first) = requests.first() else { return Ok(update.into_batch()) };
        let asked = asked(executor.dialect(), schema, &requests)?;
        let mut queries = Vec::with_capacity(asked.len() + 1);
        if executor.dialect() == Dialect::Postgres {
            let mut children: Vec<&KeyBuf> =
                requests.iter().map(|request| &request.child).collect();
            children.dedup();
            let children = children.iter().map(|child| Cow::Borrowed(child.as_bytes())).collect();
            queries.push(sql::lock(&first.membership.full_name(), first.level, children));
        }
        let locks = queries.len();
        let (counters, reads): (Vec<CounterId>, Vec<Query<'_>>) = asked.into_iter().unzip();
        queries.extend(reads);
        let of = |at: usize| at.checked_sub(locks).and_then(|at| counters.get(at));
        let read = executor
            .fetch(&queries, &mut |at, row| match of(at) {
                Some(counter) => {
                    let (key, total) = read_total(counter, row)?;
                    update.take_of(counter, &key, total)
                }
                None => Ok(()),
            })
            .await;
        read.map_err(|stopped| {
            stopped.or(|at, error| match of(at) {
                Some(counter) => failed_on("reading totals for rollups", counter, error),
                None => failed(Whose::Table(sql::LOCKS), "locking children of rollups", error),
            })
        })?;
    }
}

/// One query for each requested counter.
fn asked<'q>(
    dialect: Dialect,
    schema: &Schema,
    requests: &'q [TotalsRequest],
) -> Result<Vec<(CounterId, Query<'q>)>> {
    let mut counters: Vec<(CounterId, Vec<&'q KeyBuf>)> = Vec::new();
    for request in requests {
        match counters.iter_mut().find(|(counter, _)| counter.same(&request.counter)) {
            Some((_, children)) => children.push(&request.child),
            None => counters.push((request.counter, vec![&request.child])),
        }
    }
    let query = |(counter, children): (CounterId, Vec<&'q KeyBuf>)| {
        let parts = requests.first().map_or(0, |request| request.child_parts);
        Ok((counter, sql::read_under(dialect, schema.spec(&counter)?, parts, &children)?))
    };
    counters.into_iter().map(query).collect()
}

/// In PostgreSQL, takes the locks that a change of each of these keys would take on the levels
/// above, before any total is locked.
pub(crate) async fn lock_above<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    keys: &[KeyBuf],
) -> Result<()> {
    if executor.dialect() != Dialect::Postgres {
        return Ok(());
    }
    let mut any = Batch::new();
    for key in keys {
        any.add_raw(*counter, &mut key.clone(), 1);
    }
    let expanded = match update_rollups(executor, schema, any.clone()).await {
        // There is no room above, so the repair will not propagate either.
        Err(Error::Overflow { .. }) => any,
        expanded => expanded?,
    };
    let moved = leaderboard::moved(schema, &expanded)?;
    let locked = executor.execute(&leaderboard_locks(executor.dialect(), &moved)).await;
    let operation = format!("repairing totals of counter {}", counter.full_name());
    locked.map(drop).or_failed(Whose::Table(sql::LOCKS), &operation)
}

/// Locks these totals until the transaction ends, in key order, and returns them. In PostgreSQL,
/// absent ones are created.
pub(crate) async fn lock_totals<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    keys: &[KeyBuf],
) -> Result<Vec<i64>> {
    if executor.dialect() != Dialect::Postgres {
        return read::read_unchecked(executor, schema, counter, keys).await;
    }
    let query = sql::lock_totals(schema.spec(counter)?, keys)?;
    let mut totals = read::Totals::of(counter, keys);
    let locked = executor.fetch(&[query], &mut |_, row| totals.take(row)).await;
    locked.or_failed_on("locking totals", counter)?;
    Ok(totals.in_order())
}

/// Writes differences to totals. Unlike an apply it also writes rollups, keys below a cutoff, and
/// deltas beyond 64 bits.
pub(crate) async fn repair<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    lacking: &Batch,
) -> Result<()> {
    let expanded = match update_rollups(executor, schema, lacking.clone()).await {
        Err(Error::Overflow { .. }) => lacking.clone(),
        expanded => with_room(executor, schema, expanded?, lacking).await?,
    };
    write_with_rollups(executor, schema, &expanded, None, true)
        .await
        .map(drop)
        .map_err(Failed::unnamed)
}

/// The repair with its rollup deltas, or the repair alone if a rollup has no room for them. That
/// rollup then still differs from what it sums, and is repaired at its own level.
async fn with_room<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    expanded: Batch,
    lacking: &Batch,
) -> Result<Batch> {
    let above: Vec<(CounterId, KeyBuf, i128)> = expanded
        .deltas()
        .skip(lacking.len())
        .map(|(counter, key, delta)| (counter, key.clone(), delta))
        .collect();
    for run in above.chunk_by(|a, b| a.0.same(&b.0)) {
        let Some((counter, ..)) = run.first() else { continue };
        let keys: Vec<KeyBuf> = run.iter().map(|(_, key, _)| key.clone()).collect();
        let totals = read::read_unchecked(executor, schema, counter, &keys).await?;
        if totals
            .into_iter()
            .zip(run)
            .any(|(total, (.., delta))| !rollup_update::has_room(total, *delta))
        {
            return Ok(lacking.clone());
        }
    }
    Ok(expanded)
}

/// Removes those of these locked totals that are 0.
pub(crate) async fn remove_zeros<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    keys: &[KeyBuf],
) -> Result<()> {
    let spec = schema.spec(counter)?;
    let rows = sql::key_rows(executor.dialect(), counter, keys)?;
    let width = sql::key_columns(counter.parts()).len();
    let query =
        sql::of_rows(executor.dialect(), sql::remove_zeros(executor.dialect(), spec), rows, width);
    let removed = executor.execute(&[query]).await;
    removed.map(drop).or_failed_on("writing totals", counter)
}

/// The error for the total of a counter that a batch would bring beyond 64 bits, as far as it can
/// be found now.
pub(crate) async fn find_overflow<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    batch: &Batch,
) -> Error {
    let mut deltas: Vec<(KeyBuf, i128)> =
        of_counter(batch, counter).map(|(key, delta)| (key.clone(), delta)).collect();
    deltas.sort_unstable();
    let keys: Vec<KeyBuf> = deltas.iter().map(|(key, _)| key.clone()).collect();
    let totals = match read::read_unchecked(executor, schema, counter, &keys).await {
        Ok(totals) => totals,
        Err(error) => return error,
    };
    let beyond = deltas
        .iter()
        .zip(totals)
        .find(|((_, delta), total)| !rollup_update::has_room(*total, *delta));
    match beyond.map(|((key, _), _)| key).or_else(|| keys.first()) {
        Some(key) => Error::overflow(counter, key, "total"),
        None => Error::Overflow { counter: counter.name(), key: String::new(), what: "total" },
    }
}
