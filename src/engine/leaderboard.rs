//! Leaderboards in SQL: one table and one index each, written in the transaction that changes their
//! counters, many keys at a time.

use std::collections::{BTreeMap, BTreeSet};

use super::readiness::{self, Subject};
use super::rows::{integer, read_parts, read_total};
use super::{OrFailed as _, Whose, failed, failed_on, of_catalogue, read, tables, transact};
use crate::batch::Batch;
use crate::counter::key_range::KeyRange;
use crate::counter::{CounterId, CounterSpec};
use crate::decay::Decayed;
use crate::error::{Error, Result};
use crate::executor::{Column, Executor, Row};
use crate::key::{AsKey, Key, KeyBuf};
use crate::leaderboard::{Cell, Leaderboard, LeaderboardId, Ranked, Score, Standing};
use crate::schema::Schema;
use crate::sql::own_catalogue::CatalogueRow;
use crate::sql::{self, Dialect, Query, Value};

/// How many keys are scored at once.
const KEYS_PAGE: usize = 1024;

/// The keys of each leaderboard that a batch may move, without the leaderboards that it cannot
/// move. The order is the same for processes with different schemas.
pub(crate) type Moved = Vec<(&'static LeaderboardId, BTreeSet<KeyBuf>)>;

pub(crate) fn moved(schema: &Schema, batch: &Batch) -> Result<Moved> {
    let mut moved = Vec::new();
    for leaderboard in schema.leaderboard_ids() {
        let keys = leaderboard.changed(batch.deltas())?;
        if !keys.is_empty() {
            moved.push((leaderboard, keys));
        }
    }
    moved.sort_unstable_by_key(|(leaderboard, _): &(&LeaderboardId, _)| leaderboard.name());
    Ok(moved)
}

/// Refuses a leaderboard that the schema does not list as the call declares it: this store's writes
/// would not keep its lines.
fn check_listed(schema: &Schema, leaderboard: &LeaderboardId) -> Result<()> {
    let known = schema.leaderboard_ids().iter().find(|known| known.name() == leaderboard.name());
    let reason = match known {
        Some(known)
            if known.counter_id() == leaderboard.counter_id()
                && known.counters() == leaderboard.counters() =>
        {
            return Ok(());
        }
        Some(known) => {
            let [given, known] = [leaderboard, known].map(CatalogueRow::of_leaderboard);
            format!("the call's is {given}, the schema's {known}")
        }
        None => format!(
            "{} is not in this store's schema, so the store does not keep its lines; list it with Schema::leaderboards",
            leaderboard.name()
        ),
    };
    Err(Error::invalid_use("leaderboard", reason))
}

/// The first lines of a leaderboard: one range of its index.
pub(crate) async fn top<E: Executor + ?Sized, K: Key, S: Score>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &Leaderboard<K, S>,
    limit: usize,
) -> Result<Vec<Ranked<K, S>>> {
    let query = lines(executor.dialect(), &leaderboard.id(), "", Vec::new(), limit);
    ranked(executor, schema, leaderboard, 0, vec![query], limit).await
}

/// The lines after a line that was read before.
pub(crate) async fn top_after<E: Executor + ?Sized, K: Key + AsKey<K>, S: Score>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &Leaderboard<K, S>,
    after: &Ranked<K, S>,
    limit: usize,
) -> Result<Vec<Ranked<K, S>>> {
    let id = leaderboard.id();
    let (key, score) = (KeyBuf::of::<K>(&after.key), score_value(&after.score.to_cell()));
    // First the lines with its score after its key, then those with lower scores: each is a range
    // of the index.
    let mut values = vec![score.clone()];
    values.extend(sql::key_values(executor.dialect(), id.counter_id(), &key)?);
    let (own, params) = own_keys(executor.dialect(), &id, 2);
    let first = executor.dialect().param(1);
    let tied = format!(r#"WHERE t."score" = {first} AND ({own}) > ({params})"#);
    let lower = format!(r#"WHERE t."score" < {first}"#);
    let queries = vec![
        lines(executor.dialect(), &id, &tied, values, limit),
        lines(executor.dialect(), &id, &lower, vec![score], limit),
    ];
    ranked(executor, schema, leaderboard, after.rank, queries, limit).await
}

/// Where a key stands. Counts the lines before it, which are all lines if it is not listed.
pub(crate) async fn rank<E: Executor + ?Sized, K: Key, S: Score>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &Leaderboard<K, S>,
    key: &KeyBuf,
) -> Result<Standing<K, S>> {
    let id = leaderboard.id();
    check_listed(schema, &id)?;
    let (own, params) = own_keys(executor.dialect(), &id, 1);
    let (keys, table) = (own.replace("t.", "s."), id.table_name());
    let text = format!(
        r#"SELECT s."score", (SELECT count(*) FROM "{table}" AS t WHERE t."score" > s."score")
            + (SELECT count(*) FROM "{table}" AS t WHERE t."score" = s."score" AND ({own}) < ({params}))
        FROM "{table}" AS s WHERE ({keys}) = ({params})
        UNION ALL
        SELECT NULL, (SELECT count(*) FROM "{table}")
        WHERE NOT EXISTS (SELECT 1 FROM "{table}" AS s WHERE ({keys}) = ({params}))"#
    );
    let query = Query::new(text, sql::key_values(executor.dialect(), id.counter_id(), key)?);
    let (mut before, mut listed) = (0, None);
    readiness::fetch(executor, Subject::Leaderboard(schema, &id), vec![query], |_, row| {
        before = integer(row, 1, &table)?.unsigned_abs();
        listed = match row.column(0) {
            Column::Null => None,
            _ => Some(cell(row, 0).ok_or_else(|| foreign(&id))?),
        };
        Ok(())
    })
    .await?;
    let score = listed.map(|cell| S::from_cell(cell).ok_or_else(|| foreign(&id))).transpose()?;
    let key = key.decode().map_err(|cause| Error::key(id.counter_id(), key, cause))?;
    Ok(Standing { rank: before + 1, key, score })
}

fn line<K: Key, S: Score>(
    leaderboard: &Leaderboard<K, S>,
    rank: u64,
    raw: &KeyBuf,
    score: Cell,
) -> Result<Ranked<K, S>> {
    let id = leaderboard.id();
    let key = raw.decode().map_err(|cause| Error::key(id.counter_id(), raw, cause))?;
    Ok(Ranked { rank, key, score: S::from_cell(score).ok_or_else(|| foreign(&id))? })
}

/// How many keys a leaderboard lists.
pub(crate) async fn listed<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &LeaderboardId,
) -> Result<u64> {
    check_listed(schema, leaderboard)?;
    let table = leaderboard.table_name();
    let query = Query::new(format!(r#"SELECT count(*) FROM "{table}""#), Vec::new());
    let mut count = 0;
    readiness::fetch(executor, Subject::Leaderboard(schema, leaderboard), vec![query], |_, row| {
        count = integer(row, 0, &table)?.unsigned_abs();
        Ok(())
    })
    .await?;
    Ok(count)
}

/// The query of a leaderboard's lines under a condition, whose parameters are `values`.
fn lines<'a>(
    dialect: Dialect,
    leaderboard: &LeaderboardId,
    condition: &str,
    mut values: Vec<Value<'a>>,
    limit: usize,
) -> Query<'a> {
    let own = own_keys(dialect, leaderboard, 1).0;
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let text = format!(
        r#"SELECT {own}, t."score" FROM "{}" AS t {condition} ORDER BY t."score" DESC, {own} LIMIT {}"#,
        leaderboard.table_name(),
        dialect.param(values.len())
    );
    Query::new(text, values)
}

async fn ranked<E: Executor + ?Sized, K: Key, S: Score>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &Leaderboard<K, S>,
    rank: u64,
    queries: Vec<Query<'_>>,
    limit: usize,
) -> Result<Vec<Ranked<K, S>>> {
    let id = leaderboard.id();
    check_listed(schema, &id)?;
    let mut ranked: Vec<(KeyBuf, Cell)> = Vec::new();
    readiness::fetch(executor, Subject::Leaderboard(schema, &id), queries, |_, row| {
        if ranked.len() < limit {
            let key = read_parts(id.name(), id.parts().as_slice(), row, 0)?;
            ranked.push((key, cell(row, row.len().saturating_sub(1)).ok_or_else(|| foreign(&id))?));
        }
        Ok(())
    })
    .await?;
    let ranks = rank + 1..;
    ranks.zip(ranked).map(|(rank, (raw, cell))| line(leaderboard, rank, &raw, cell)).collect()
}

/// Recomputes every score from the totals and marks the leaderboard ready. Returns how many lines
/// were wrong.
pub(crate) async fn rebuild<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &LeaderboardId,
) -> Result<u64> {
    check_listed(schema, leaderboard)?;
    let operation = format!("rebuilding leaderboard {}", leaderboard.name());
    transact!(executor, &operation, rebuild_in(executor, schema, leaderboard, &operation))
}

async fn rebuild_in<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &LeaderboardId,
    operation: &str,
) -> Result<u64> {
    // Before the tables, as a prune does.
    tables::lock_catalogue(executor, "ROW EXCLUSIVE").await?;
    lock(executor, schema, &[*leaderboard]).await?;
    let changed = rescore_all(executor, schema, leaderboard).await?;
    let enlisted = executor
        .execute(&[Query::new(sql::leaderboard::enlist_anew(leaderboard, true), Vec::new())])
        .await;
    let enlisted = enlisted.or_failed(of_catalogue(), operation)?;
    let named = ("leaderboard", leaderboard.name());
    tables::check_updated(executor, &enlisted, named, leaderboard.table_name()).await?;
    Ok(changed)
}

/// Blocks writers of these leaderboards' counters until the transaction ends. In SQLite all writers
/// wait anyway.
pub(crate) async fn lock<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboards: &[LeaderboardId],
) -> Result<()> {
    if leaderboards.is_empty() || executor.dialect() != Dialect::Postgres {
        return Ok(());
    }
    // In the order in which batches write them.
    let is_of = |id: &CounterId| {
        leaderboards.iter().any(|leaderboard| leaderboard.counters().iter().any(|of| of.same(id)))
    };
    let counters =
        schema.counters().iter().map(CounterSpec::id).filter(is_of).map(|id| id.table_name());
    let mut lines: Vec<String> = leaderboards.iter().map(LeaderboardId::table_name).collect();
    lines.sort_unstable();
    for table in counters.chain(lines) {
        let lock = format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", sql::quote(&table));
        let locked = executor.run(&lock).await;
        locked.map_err(|error| failed(Whose::Table(&table), "locking leaderboards", error))?;
    }
    Ok(())
}

/// Scores every key that has a total or a line, a page at a time. The leaderboard must be locked.
pub(crate) async fn rescore_all<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &LeaderboardId,
) -> Result<u64> {
    // Lines first: those without totals are found only there.
    let mut changed = 0;
    let mut after: Option<KeyBuf> = None;
    loop {
        let page = listed_keys(executor, leaderboard, after.as_ref()).await?;
        let full = page.len() == KEYS_PAGE;
        changed += rescore(executor, schema, leaderboard, &page).await?;
        after = page.into_iter().next_back();
        if !full {
            break;
        }
    }
    for counter in leaderboard.counters() {
        let mut range = KeyRange::ALL;
        loop {
            let page = read::range_unchecked(executor, schema, counter, &range, KEYS_PAGE).await?;
            let keys = page
                .iter()
                .map(|(key, _)| leaderboard.key_of(counter, key))
                .collect::<Result<BTreeSet<_>>>()?;
            changed += rescore(executor, schema, leaderboard, &Vec::from_iter(keys)).await?;
            match page.last() {
                Some((last, _)) if page.len() == KEYS_PAGE => range = KeyRange::after(Some(last)),
                _ => break,
            }
        }
    }
    Ok(changed)
}

async fn listed_keys<E: Executor + ?Sized>(
    executor: &mut E,
    leaderboard: &LeaderboardId,
    after: Option<&KeyBuf>,
) -> Result<Vec<KeyBuf>> {
    let (own, params) = own_keys(executor.dialect(), leaderboard, 1);
    let behind =
        if after.is_some() { format!("WHERE ({own}) > ({params})") } else { String::new() };
    let table = leaderboard.table_name();
    let text =
        format!(r#"SELECT {own} FROM "{table}" AS t {behind} ORDER BY {own} LIMIT {KEYS_PAGE}"#);
    let values = after.map_or(Ok(Vec::new()), |after| {
        sql::key_values(executor.dialect(), leaderboard.counter_id(), after)
    })?;
    let mut keys = Vec::new();
    let read = executor
        .fetch(&[Query::new(text, values)], &mut |_, row| {
            keys.push(read_parts(leaderboard.name(), leaderboard.parts().as_slice(), row, 0)?);
            Ok(())
        })
        .await;
    read.or_failed(Whose::Table(&table), &reading(leaderboard))?;
    Ok(keys)
}

/// Updates leaderboards after a batch was written, whose keys are locked. Returns how many lines
/// changed.
pub(crate) async fn follow<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    moved: &Moved,
) -> Result<u64> {
    let mut changed = 0;
    for (leaderboard, keys) in moved {
        let keys: Vec<KeyBuf> = keys.iter().cloned().collect();
        for keys in keys.chunks(KEYS_PAGE) {
            changed += rescore(executor, schema, leaderboard, keys).await?;
        }
    }
    Ok(changed)
}

/// Compares stored scores with the scores computed from totals, and writes those that differ.
async fn rescore<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    leaderboard: &LeaderboardId,
    keys: &[KeyBuf],
) -> Result<u64> {
    if keys.is_empty() {
        return Ok(0);
    }
    let table = leaderboard.table_name();
    let prefixes: Vec<&KeyBuf> = keys.iter().collect();
    let mut queries =
        vec![sql::read_keys(executor.dialect(), &table, leaderboard.counter_id(), "score", keys)?];
    for counter in leaderboard.counters() {
        queries.push(sql::read_under(
            executor.dialect(),
            schema.spec(counter)?,
            leaderboard.parts().len(),
            &prefixes,
        )?);
    }
    // A cell that does not decode as a score of this leaderboard is `None` here and is overwritten.
    let mut lines: BTreeMap<KeyBuf, Option<Cell>> = BTreeMap::new();
    let mut totals: Vec<BTreeMap<KeyBuf, i64>> =
        vec![BTreeMap::new(); leaderboard.counters().len()];
    let read = executor
        .fetch(&queries, &mut |at, row| {
            let counter = at
                .checked_sub(1)
                .and_then(|at| leaderboard.counters().get(at).zip(totals.get_mut(at)));
            if let Some((counter, totals)) = counter {
                let (key, total) = read_total(counter, row)?;
                totals.insert(key, total);
            } else {
                let key = read_parts(leaderboard.name(), leaderboard.parts().as_slice(), row, 0)?;
                lines.insert(key, cell(row, row.len().saturating_sub(1)));
            }
            Ok(())
        })
        .await;
    read.map_err(|stopped| {
        stopped.or(|at, error| {
            match at.checked_sub(1).and_then(|at| leaderboard.counters().get(at)) {
                Some(counter) => failed_on("reading totals", counter, error),
                None => failed(Whose::Table(&table), &reading(leaderboard), error),
            }
        })
    })?;
    let (mut written, mut gone) = (Vec::new(), Vec::new());
    for key in keys {
        let score = leaderboard.score_of(key, &totals_at(leaderboard, key, &totals))?;
        match (score, lines.get(key)) {
            (Some(score), Some(Some(line))) if score == *line => {}
            (Some(score), _) => written.push((key, score)),
            (None, Some(_)) => gone.push(key.clone()),
            (None, None) => {}
        }
    }
    write_lines(executor, leaderboard, &written, &gone).await?;
    Ok((written.len() + gone.len()) as u64)
}

async fn write_lines<E: Executor + ?Sized>(
    executor: &mut E,
    leaderboard: &LeaderboardId,
    written: &[(&KeyBuf, Cell)],
    gone: &[KeyBuf],
) -> Result<()> {
    let (table, parts) = (leaderboard.table_name(), leaderboard.parts());
    let width = sql::key_columns(parts).len();
    let mut queries = Vec::new();
    if !written.is_empty() {
        let mut rows = Vec::with_capacity(written.len() * (width + 1));
        for (key, score) in written {
            rows.extend(sql::key_values(executor.dialect(), leaderboard.counter_id(), key)?);
            rows.push(score_value(score));
        }
        let column = ("score", sql::leaderboard::score_column(executor.dialect(), leaderboard));
        let text =
            sql::write_keys(executor.dialect(), &table, parts, column, r#"excluded."score""#);
        queries.push(sql::of_rows(executor.dialect(), text, rows, width + 1));
    }
    if !gone.is_empty() {
        let rows = sql::key_rows(executor.dialect(), leaderboard.counter_id(), gone)?;
        queries.push(sql::of_rows(
            executor.dialect(),
            sql::delete_keys(executor.dialect(), &table, parts),
            rows,
            width,
        ));
    }
    if queries.is_empty() {
        return Ok(());
    }
    let done = executor.execute(&queries).await;
    let operation = format!("writing leaderboard {}", leaderboard.name());
    done.map(drop).or_failed(Whose::Table(&table), &operation)
}

/// The totals that a key's score is computed from.
fn totals_at(
    leaderboard: &LeaderboardId,
    key: &KeyBuf,
    totals: &[BTreeMap<KeyBuf, i64>],
) -> Vec<(KeyBuf, i64)> {
    if leaderboard.has_epochs() {
        let under = totals.iter().flat_map(|totals| totals.range(key.clone()..));
        let under = under.take_while(|(whole, _)| whole.as_bytes().starts_with(key.as_bytes()));
        return under.map(|(whole, total)| (whole.clone(), *total)).collect();
    }
    totals.iter().map(|totals| (key.clone(), totals.get(key).copied().unwrap_or(0))).collect()
}

/// The key columns, qualified with their table's alias, and parameters for them from `first` on.
fn own_keys(dialect: Dialect, leaderboard: &LeaderboardId, first: usize) -> (String, String) {
    let columns = sql::own_key_columns(leaderboard.parts());
    let params: Vec<String> = (first..first + columns.len()).map(|at| dialect.param(at)).collect();
    (columns.join(", "), params.join(", "))
}

fn score_value(score: &Cell) -> Value<'static> {
    match score {
        Cell::Integer(score) => Value::Integer(*score),
        Cell::Decayed(score) => Value::Bytes(score.to_bytes().into()),
    }
}

/// A score; `None` if the column is not a valid score.
fn cell(row: &dyn Row, index: usize) -> Option<Cell> {
    match row.column(index) {
        Column::Integer(score) => Some(Cell::Integer(score)),
        Column::Bytes(bytes) => Decayed::from_bytes(&bytes).map(Cell::Decayed),
        _ => None,
    }
}

fn foreign(leaderboard: &LeaderboardId) -> Error {
    Error::SchemaMismatch {
        table: leaderboard.table_name(),
        reason: "it has a score that this leaderboard cannot give; rebuild it".to_owned(),
    }
}

fn reading(leaderboard: &LeaderboardId) -> String {
    format!("reading leaderboard {}", leaderboard.name())
}
