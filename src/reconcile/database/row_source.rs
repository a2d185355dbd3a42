//! Reads the rows of one counter: pages of sums, sums of some keys, and the samples whose counts in
//! SQL are checked against their `tally`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use super::source_statements::{Statements, Target};
use super::{MEASURING, Opening, Page};
use crate::batch::Batch;
use crate::counter::CounterId;
use crate::engine::rows::{read_key, read_total};
use crate::engine::{failed_on, read};
use crate::error::{Error, Result, chain};
use crate::executor::{Column, ErrorKind, Executor, Failure, Reader, Row, Stopped};
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageRequest, Recount};
use crate::reconcile::recount::{
    KeySum, SAMPLE, SumsByKey, mismatch, of_row, same_key, sample_of_key, share_of,
};
use crate::sql::own_catalogue;
use crate::sql::{self, Dialect, Query, Value};

/// One counter's rows, ready to be read.
pub(in crate::reconcile) struct RowSource {
    dialect: Dialect,
    pub(in crate::reconcile) counter: CounterId,
    pub(in crate::reconcile) target: Target,
    pub(in crate::reconcile) by_tally: bool,
    pub(in crate::reconcile) reader: Arc<Reader>,
    pub(in crate::reconcile) statements: Statements,
    /// The cutoff that the statements know.
    cutoff: Option<KeyBuf>,
    /// How a transaction that reads these rows begins.
    pub(in crate::reconcile) opening: Opening,
    /// What must not change from before a page's snapshot until after it, for the page to be
    /// believed.
    pub(in crate::reconcile) watch: Option<Query<'static>>,
}

impl fmt::Debug for RowSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowSource")
            .field("counter", &self.counter)
            .field("target", &self.target)
            .field("by_tally", &self.by_tally)
            .finish_non_exhaustive()
    }
}

/// The error of reading a source: of the source, if its SQL or its rows are at fault.
pub(in crate::reconcile) fn source_failed(
    what: &str,
    counter: &CounterId,
    error: Failure,
) -> Error {
    match error.fault {
        Some(fault) => Error::source_of(counter, format!("{what}: {fault}"), error.cause),
        None => failed_on(what, counter, error),
    }
}

/// The error of queries of a source that were stopped.
pub(super) fn source_stopped(what: &str, counter: &CounterId) -> impl FnOnce(Stopped) -> Error {
    move |stopped| stopped.or(|_, error| source_failed(what, counter, error))
}

impl RowSource {
    /// `target` must have passed its check, and name schemas that were found.
    pub(in crate::reconcile) fn of(
        dialect: Dialect,
        counter: CounterId,
        target: Target,
        by_tally: bool,
        reader: Arc<Reader>,
    ) -> Result<Self> {
        let statements = target.statements(dialect, &counter, None)?;
        let opening = Opening::default();
        Ok(Self {
            dialect,
            counter,
            target,
            by_tally,
            reader,
            statements,
            cutoff: None,
            opening,
            watch: None,
        })
    }

    /// Makes other statements if the counter was pruned further.
    pub(super) fn cutoff_at(&mut self, cutoff: Option<KeyBuf>) -> Result<()> {
        if self.cutoff != cutoff {
            let value = cutoff
                .as_ref()
                .map(|cutoff| own_catalogue::suffix_value(self.dialect, &self.counter, cutoff));
            self.statements =
                self.target.statements(self.dialect, &self.counter, value.transpose()?.as_ref())?;
            self.cutoff = cutoff;
        }
        Ok(())
    }

    /// The statement of a page from the first key on, or after a key.
    pub(in crate::reconcile) const fn page_text(&self, is_behind: bool) -> &String {
        let statements = &self.statements;
        match (self.by_tally, is_behind) {
            (true, false) => &statements.rows_first,
            (true, true) => &statements.rows_next,
            (false, false) => &statements.sums_first,
            (false, true) => &statements.sums_next,
        }
    }

    /// The query of the next keys' sums, one more than a page holds, or of the rows that they are
    /// summed from. None after the only key of `()`.
    fn next<'k>(&self, ask: &'k PageRequest) -> Result<Option<Query<'k>>> {
        if self.counter.parts().is_empty() && ask.after.is_some() {
            return Ok(None);
        }
        let mut values =
            ask.after.as_ref().map_or(Ok(Vec::new()), |after| self.key_values(after))?;
        let text = self.page_text(!values.is_empty()).clone();
        if !self.by_tally {
            values.push(limit(ask.keys.saturating_add(1)));
        }
        Ok(Some(Query::new(text, values)))
    }

    /// The next totals and the next sums; `totals` is the query of those.
    pub(super) async fn page<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        totals: Query<'_>,
        ask: &PageRequest,
    ) -> Result<Page> {
        let counter = &self.counter;
        let keys = ask.keys.saturating_add(1);
        let Some(next) = self.next(ask)? else {
            let totals = read::keyed_totals(executor, counter, &totals, MEASURING).await?;
            return Ok(Page { totals, recounts: Vec::new(), end: None });
        };
        if self.by_tally {
            let totals = read::keyed_totals(executor, counter, &totals, MEASURING).await?;
            let recounts = self.sums_by_tally(executor, &next, ask.after.as_ref(), keys).await?;
            return Ok(Page { totals, recounts, end: None });
        }
        let (mut all, mut recounts) = (Vec::new(), Vec::new());
        let queries = [totals, next];
        let read = executor
            .fetch(&queries, &mut |at, row| {
                match at {
                    0 => all.push(read_total(counter, row)?),
                    _ => recounts.extend(self.sum(row)?),
                }
                Ok(())
            })
            .await;
        match read {
            Ok(()) => Ok(Page { totals: all, recounts, end: None }),
            Err(Stopped::Failed { query: 1, error, .. }) if error.kind == ErrorKind::Overflow => {
                Err(self.overflowing_key(executor, ask, keys, error).await)
            }
            Err(stopped) => Err(stopped.or(|at, error| match at {
                0 => failed_on(MEASURING, counter, error),
                _ => source_failed("recounting", counter, error),
            })),
        }
    }

    /// Sums rows in key order, up to `limit` keys.
    async fn sums_by_tally<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        query: &Query<'_>,
        after: Option<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<Recount>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut sums = SumsByKey::new(&self.counter, from, limit);
        self.shares(executor, query, |share| sums.add(share)).await?;
        sums.finish()
    }

    /// Calls `each` with what every row adds by its tally, until it says no.
    async fn shares<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        query: &Query<'_>,
        mut each: impl FnMut(Option<(KeyBuf, i64)>) -> Result<bool> + Send,
    ) -> Result<()> {
        let (counter, mut scratch) = (&self.counter, Batch::new());
        let read = executor
            .scan(query, &mut |row| {
                let key = read_key(counter, row, row.len().saturating_sub(counter.parts().len()))?;
                let share = self
                    .share(row, &mut scratch)
                    .map_err(|error| of_row(error, counter, Some(&key)))?;
                each(same_key(counter, share, &key)?)
            })
            .await;
        read.map_err(source_stopped("reading rows", counter))
    }

    /// What a row adds by its tally.
    fn share(&self, row: &dyn Row, scratch: &mut Batch) -> Result<Option<(KeyBuf, i64)>> {
        scratch.clear();
        let counter = &self.counter;
        row.read(&self.reader, scratch).map_err(|cause| {
            let reason = format!("reading a row: {}", chain(&*cause));
            Error::source_of(counter, reason, cause)
        })?;
        share_of(counter, scratch)
    }

    /// The sums of these keys' rows; those without rows may be left out.
    pub(super) async fn recount<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        keys: &[KeyBuf],
    ) -> Result<BTreeMap<KeyBuf, i64>> {
        let counter = &self.counter;
        if self.by_tally {
            let mut sums: BTreeMap<KeyBuf, KeySum> = BTreeMap::new();
            let query = self.of_keys(&self.statements.rows_of_keys, keys)?;
            self.shares(executor, &query, |share| {
                if let Some((key, amount)) = share {
                    sums.entry(key).or_default().add(amount);
                }
                Ok(true)
            })
            .await?;
            let sums = sums.into_iter().map(|(key, sum)| sum.of(counter, key));
            return sums.map(|sum| sum.map(|sum| (sum.key, sum.total))).collect();
        }
        let mut sums: BTreeMap<KeyBuf, i64> = BTreeMap::new();
        let query = [self.of_keys(&self.statements.sums_of_keys, keys)?];
        let read = executor
            .fetch(&query, &mut |_, row| {
                sums.extend(self.sum(row)?.map(|sum| (sum.key, sum.total)));
                Ok(())
            })
            .await;
        match read {
            Ok(()) => Ok(sums),
            Err(Stopped::Failed { row, error, .. })
                if self.dialect == Dialect::Sqlite && error.kind == ErrorKind::Overflow =>
            {
                Err(keys.get(row).map_or_else(
                    || source_failed("recounting", counter, error),
                    |key| Error::overflow(counter, key, "recount"),
                ))
            }
            Err(stopped) => Err(source_stopped("recounting", counter)(stopped)),
        }
    }

    /// A query of some keys: in SQLite executed for each, in PostgreSQL with arrays.
    fn of_keys<'k>(&self, text: &str, keys: &'k [KeyBuf]) -> Result<Query<'k>> {
        let width = self.counter.parts().len();
        if width == 0 {
            return Ok(Query::new(text, Vec::new()));
        }
        Ok(sql::of_rows(
            self.dialect,
            text.to_owned(),
            sql::key_rows(self.dialect, &self.counter, keys)?,
            width,
        ))
    }

    /// Says which sum left 64 bits, where the database does not: asks for each key of a page alone.
    #[cold]
    async fn overflowing_key<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        ask: &PageRequest,
        keys: usize,
        error: Failure,
    ) -> Error {
        let mut after = ask.after.clone();
        for _ in 0..keys {
            let Ok(Some(key)) = self.key_behind(executor, after.as_ref()).await else { break };
            if let Err(error) = self.recount(executor, std::slice::from_ref(&key)).await {
                return error;
            }
            after = Some(key);
        }
        source_failed("recounting", &self.counter, error)
    }

    async fn key_behind<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        after: Option<&KeyBuf>,
    ) -> Result<Option<KeyBuf>> {
        let values = after.map_or(Ok(Vec::new()), |after| self.key_values(after))?;
        let text =
            if values.is_empty() { &self.statements.key_first } else { &self.statements.key_next };
        let (query, mut key) = ([Query::new(text.clone(), values)], None);
        let read = executor
            .fetch(&query, &mut |_, row| {
                key = Some(read_key(&self.counter, row, 0)?);
                Ok(())
            })
            .await;
        read.map_err(source_stopped("recounting", &self.counter))?;
        Ok(key)
    }

    /// Reads a key, how many rows were added up, and, if they do not all add 1, their sum. `None`
    /// if no row was: a query without key columns returns one row even then.
    fn sum(&self, row: &dyn Row) -> Result<Option<Recount>> {
        let counter = &self.counter;
        let at = counter.parts().len();
        let Column::Integer(rows) = row.column(at) else {
            return Err(Error::source(
                counter,
                None,
                format!("{} rows were added up", row.column(at)),
            ));
        };
        if rows == 0 {
            return Ok(None);
        }
        let key = read_key(counter, row, 0)?;
        let total = if self.target.amount.is_some() {
            read_sum(self.dialect, counter, &key, row, at + 1)?
        } else {
            rows
        };
        Ok(Some(Recount { key, total, rows: rows.unsigned_abs() }))
    }

    /// The keys among some sums whose last parts name no row of the parents' table, in key order.
    pub(super) async fn dangling<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        sums: &[Recount],
    ) -> Result<Vec<KeyBuf>> {
        let Some(text) = &self.statements.parent else { return Ok(Vec::new()) };
        let keys: Vec<KeyBuf> =
            sums.iter().filter(|sum| sum.total != 0).map(|sum| sum.key.clone()).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (counter, query, mut dangling) =
            (&self.counter, [self.of_keys(text, &keys)?], Vec::new());
        let read = executor
            .fetch(&query, &mut |_, row| {
                dangling.push(read_key(counter, row, 0)?);
                Ok(())
            })
            .await;
        read.map_err(source_stopped("looking for parents", counter))?;
        dangling.sort_unstable();
        Ok(dangling)
    }

    /// Whether no row counts.
    pub(super) async fn is_empty<E: Executor + ?Sized>(&self, executor: &mut E) -> Result<bool> {
        if self.by_tally {
            let query = Query::new(self.statements.rows_first.clone(), Vec::new());
            return Ok(self.sums_by_tally(executor, &query, None, 1).await?.is_empty());
        }
        let any = read::any(executor, &Query::new(self.statements.any.clone(), Vec::new())).await;
        Ok(!any.map_err(source_stopped("looking for rows", &self.counter))?)
    }

    /// A key as the parameters of this source's statements: one for each of its columns, so none
    /// for `()`.
    fn key_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        if self.counter.parts().is_empty() {
            Ok(Vec::new())
        } else {
            sql::key_values(self.dialect, &self.counter, key)
        }
    }

    /// Checks a sample of the whole source against the rows' `tally`: its first rows, its last, and
    /// some without a key. If the rows are recounted by `tally` anyway, only those without a key,
    /// which no page lists.
    pub(super) async fn check_sample<E: Executor + ?Sized>(&self, executor: &mut E) -> Result<()> {
        let edge_samples = [&self.statements.sample_first, &self.statements.sample_last];
        let edge_samples = edge_samples.into_iter().filter(|_| !self.by_tally);
        let texts = edge_samples.chain(&self.statements.sample_without_key);
        let queries: Vec<_> =
            texts.map(|text| Query::new(text.clone(), vec![limit(SAMPLE)])).collect();
        self.check_rows(executor, &queries).await
    }

    /// Checks rows of some keys against their `tally`.
    pub(super) async fn check_keys<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        keys: &[KeyBuf],
    ) -> Result<()> {
        if self.by_tally {
            return Ok(());
        }
        let (most, mut values) = (sample_of_key(keys.len()), Vec::new());
        for key in keys {
            values.append(&mut self.key_values(key)?);
            values.push(limit(most));
        }
        let width = self.counter.parts().len() + 1;
        self.check_rows(
            executor,
            &[Query::of_rows(self.statements.sample_of_key.clone(), values, width)],
        )
        .await
    }

    async fn check_rows<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        samples: &[Query<'_>],
    ) -> Result<()> {
        let mut scratch = Batch::new();
        let read = executor.fetch(samples, &mut |_, row| self.check_row(row, &mut scratch)).await;
        read.map_err(source_stopped("reading a sample", &self.counter))
    }

    /// What is wrong with rows, an error each, up to so many.
    pub(super) async fn faults<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        most: usize,
    ) -> Result<Vec<Error>> {
        let (mut faults, mut scratch) = (Vec::new(), Batch::new());
        let query = Query::new(self.statements.sample_all.clone(), Vec::new());
        let read = executor
            .scan(&query, &mut |row| {
                faults.extend(self.check_row(row, &mut scratch).err());
                Ok(faults.len() < most)
            })
            .await;
        let read = read.map_err(source_stopped("reading a sample", &self.counter));
        match read {
            // No row can be read after it.
            Err(error) if error.is_of_rows() => faults.push(error),
            read => read?,
        }
        Ok(faults)
    }

    fn check_row(&self, row: &dyn Row, scratch: &mut Batch) -> Result<()> {
        let tally = self.share(row, scratch).map_err(|error| self.of_row(error, row))?;
        if self.by_tally {
            let (at, parts) = (self.sampled_key(row), self.counter.parts().len());
            if (at..at + parts).any(|at| row.column(at) == Column::Null) {
                // No page lists it, so it must add nothing.
                return tally
                    .map_or(Ok(()), |tally| Err(mismatch(&self.counter, Some(&tally), None)));
            }
            let key = read_key(&self.counter, row, at)?;
            return same_key(&self.counter, tally, &key).map(drop);
        }
        let sql = self.share_in_sql(row)?;
        if tally == sql {
            Ok(())
        } else {
            Err(mismatch(&self.counter, tally.as_ref(), sql.as_ref()))
        }
    }

    /// Where a sample has its key; the amount follows, and whether the row counts.
    fn sampled_key(&self, row: &dyn Row) -> usize {
        row.len().saturating_sub(self.counter.parts().len() + 2)
    }

    /// The error of a row of a sample that could not be read as a record: of its key, if that is
    /// why.
    #[cold]
    fn of_row(&self, error: Error, row: &dyn Row) -> Error {
        let key_at = self.sampled_key(row);
        let mut columns = key_at..key_at + self.counter.parts().len();
        if columns.any(|at| row.column(at) == Column::Null) {
            return error;
        }
        match read_key(&self.counter, row, key_at) {
            Ok(key) => of_row(error, &self.counter, Some(&key)),
            Err(error) => error,
        }
    }

    /// What a row of a sample adds by its SQL.
    fn share_in_sql(&self, row: &dyn Row) -> Result<Option<(KeyBuf, i64)>> {
        let (counter, key_at) = (&self.counter, self.sampled_key(row));
        let amount_at = key_at + counter.parts().len();
        let counts = !matches!(row.column(amount_at + 1), Column::Integer(0) | Column::Null);
        let amount = row.column(amount_at);
        if !counts || amount == Column::Null {
            return Ok(None);
        }
        let key = || read_key(counter, row, key_at);
        match integer(self.dialect, &amount) {
            Some(0) => Ok(None),
            Some(amount) => Ok(Some((key()?, amount))),
            None => {
                let reason = format!("a row's amount is {amount}, not an integer of 64 bits");
                Err(Error::source(counter, Some(&key()?), reason))
            }
        }
    }
}

fn limit(rows: usize) -> Value<'static> {
    Value::Integer(i64::try_from(rows).unwrap_or(i64::MAX))
}

/// An amount as a sample has it: PostgreSQL gives its text, of whatever type it is.
fn integer(dialect: Dialect, amount: &Column<'_>) -> Option<i64> {
    match (dialect, amount) {
        (Dialect::Sqlite, Column::Integer(amount)) => Some(*amount),
        (Dialect::Postgres, Column::Text(amount)) => amount.parse().ok(),
        _ => None,
    }
}

/// Reads a sum of amounts at a column, and refuses one that is not of integers. SQLite gives how
/// many amounts are not, and the sum; PostgreSQL the sum as text.
fn read_sum(
    dialect: Dialect,
    counter: &CounterId,
    key: &KeyBuf,
    row: &dyn Row,
    at: usize,
) -> Result<i64> {
    let of_other = |others: &Column<'_>| {
        Err(Error::source(counter, Some(key), format!("{others} of its amounts are not integers")))
    };
    match (dialect, row.column(at)) {
        (Dialect::Sqlite, others) => match row.column(at + 1) {
            Column::Integer(sum) if others == Column::Integer(0) => Ok(sum),
            // All amounts are null.
            Column::Null => Ok(0),
            _ => of_other(&others),
        },
        (Dialect::Postgres, Column::Null) => Ok(0),
        (Dialect::Postgres, Column::Text(sum)) => {
            let digits = sum.strip_prefix('-').unwrap_or(&sum);
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(Error::source(
                    counter,
                    Some(key),
                    format!("its amounts add up to {sum}, not to an integer"),
                ));
            }
            sum.parse().map_err(|_| Error::overflow(counter, key, "recount"))
        }
        (Dialect::Postgres, other) => of_other(&other),
    }
}
