//! Reads totals (checked for readiness or not), and ranges and sums of them.

use std::collections::BTreeMap;

use super::readiness::{self, Subject};
use super::rows::{integer, last_total, read_total};
use super::{OrFailed as _, after_reads, prune};
use crate::counter::CounterId;
use crate::counter::key_range::KeyRange;
use crate::cutoff::check_range;
use crate::error::{Error, Result};
use crate::executor::{Column, ErrorKind, Executor, Row, Stopped};
use crate::key::KeyBuf;
use crate::schema::Schema;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::pages::Sum;
use crate::store::{TOTALS_PAGE, sum_overflow};

/// The totals of these keys, in their order; 0 for a key without one.
pub(crate) async fn read<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
    keys: &[KeyBuf],
) -> Result<Vec<i64>> {
    let query = of_keys(executor.dialect(), schema, &counter, keys)?;
    let mut totals = Totals::of(&counter, keys);
    readiness::fetch(executor, Subject::Counter(schema, counter), vec![query], |_, row| {
        totals.take(row)
    })
    .await?;
    Ok(totals.in_order())
}

/// The same, without the check for readiness.
pub(crate) async fn read_unchecked<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    keys: &[KeyBuf],
) -> Result<Vec<i64>> {
    let query = of_keys(executor.dialect(), schema, counter, keys)?;
    let mut totals = Totals::of(counter, keys);
    let read = executor.fetch(&[query], &mut |_, row| totals.take(row)).await;
    read.or_failed_on("reading totals", counter)?;
    Ok(totals.in_order())
}

fn of_keys<'k>(
    dialect: Dialect,
    schema: &Schema,
    counter: &CounterId,
    keys: &'k [KeyBuf],
) -> Result<Query<'k>> {
    let spec = schema.spec(counter)?;
    if let [key] = keys {
        return Ok(Query::new(sql::read(dialect, spec), sql::key_values(dialect, counter, key)?));
    }
    let table = spec.table_name();
    sql::read_keys(dialect, &table, counter, "total", keys)
}

/// Collects totals that arrive in any order, and returns them in the order of their keys.
pub(crate) struct Totals<'k> {
    counter: &'k CounterId,
    keys: &'k [KeyBuf],
    one: i64,
    many: BTreeMap<KeyBuf, i64>,
}

impl<'k> Totals<'k> {
    pub(crate) const fn of(counter: &'k CounterId, keys: &'k [KeyBuf]) -> Self {
        Self { counter, keys, one: 0, many: BTreeMap::new() }
    }

    pub(crate) fn take(&mut self, row: &dyn Row) -> Result<()> {
        if self.keys.len() == 1 {
            self.one = last_total(self.counter, row)?;
        } else {
            let (key, total) = read_total(self.counter, row)?;
            self.many.insert(key, total);
        }
        Ok(())
    }

    pub(crate) fn in_order(&self) -> Vec<i64> {
        if self.keys.len() == 1 {
            return vec![self.one];
        }
        self.keys.iter().map(|key| self.many.get(key).copied().unwrap_or(0)).collect()
    }
}

/// The first totals of a range, in key order.
pub(crate) async fn range<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
    range: &KeyRange,
    limit: usize,
) -> Result<Vec<(KeyBuf, i64)>> {
    let query = sql::range(executor.dialect(), schema.spec(&counter)?, range, limit)?;
    let mut page = Vec::new();
    readiness::fetch(executor, Subject::Counter(schema, counter), vec![query], |_, row| {
        page.push(read_total(&counter, row)?);
        Ok(())
    })
    .await?;
    Ok(page)
}

/// The same, without the check for readiness.
pub(crate) async fn range_unchecked<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    range: &KeyRange,
    limit: usize,
) -> Result<Vec<(KeyBuf, i64)>> {
    let query = sql::range(executor.dialect(), schema.spec(counter)?, range, limit)?;
    keyed_totals(executor, counter, &query, "reading totals").await
}

/// The keys and totals that a query returns.
pub(crate) async fn keyed_totals<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    query: &Query<'_>,
    what: &str,
) -> Result<Vec<(KeyBuf, i64)>> {
    let mut totals = Vec::new();
    let read = executor
        .fetch(std::slice::from_ref(query), &mut |_, row| {
            totals.push(read_total(counter, row)?);
            Ok(())
        })
        .await;
    read.or_failed_on(what, counter)?;
    Ok(totals)
}

/// Whether a query returns a row.
pub(crate) async fn any<E: Executor + ?Sized>(
    executor: &mut E,
    query: &Query<'_>,
) -> Result<bool, Stopped> {
    let mut any = false;
    executor
        .fetch(std::slice::from_ref(query), &mut |_, _| {
            any = true;
            Ok(())
        })
        .await?;
    Ok(any)
}

/// The sum of the totals of a range.
pub(crate) async fn sum<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
    range: &KeyRange,
) -> Result<i64> {
    let query = sql::sum(executor.dialect(), schema.spec(&counter)?, range)?;
    let mut sum = None;
    let summed =
        readiness::fetch(executor, Subject::Counter(schema, counter), vec![query], |_, row| {
            sum = Some(match row.column(0) {
                Column::Null => 0,
                Column::Integer(sum) => sum,
                Column::Text(text) => text.parse().map_err(|_| sum_overflow(&counter))?,
                other => {
                    return Err(Error::Database {
                        operation: format!("summing totals of counter {}", counter.full_name()),
                        cause: format!("the sum is {other}").into(),
                    });
                }
            });
            Ok(())
        })
        .await;
    let sum = match summed {
        Ok(()) => sum.unwrap_or(0),
        // Only an intermediate sum may have left 64 bits.
        Err(Error::Database { cause, .. }) if executor.kind_of(&cause) == ErrorKind::Overflow => {
            sum_by_pages(executor, schema, counter, range).await?
        }
        Err(error) => return Err(error),
    };
    // Read the cutoffs afterwards: a cutoff never goes back, so totals that it spares now were
    // spared during the sum.
    let nested = executor.is_nested();
    let cutoffs = prune::cutoffs(executor, schema, &[counter], false).await;
    let cutoffs = after_reads(executor, nested, cutoffs)?;
    check_range(&counter, range, cutoffs.first().map(|(_, cutoff)| cutoff))?;
    Ok(sum)
}

async fn sum_by_pages<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
    over: &KeyRange,
) -> Result<i64> {
    let mut sum = Sum::of(counter, over);
    while let Some(over) = sum.ask() {
        let page = range(executor, schema, counter, over, TOTALS_PAGE).await?;
        sum.take(&page);
    }
    sum.sum()
}

/// How many totals are not 0, counted up to `most`.
pub(crate) async fn count_non_zero<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: &CounterId,
    most: u64,
) -> Result<u64> {
    let text = sql::count_non_zero(executor.dialect(), schema.spec(counter)?);
    let query = Query::new(text, vec![Value::Integer(i64::try_from(most).unwrap_or(i64::MAX))]);
    let mut count = 0;
    let read = executor
        .fetch(&[query], &mut |_, row| {
            count = integer(row, 0, &counter.table_name())?;
            Ok(())
        })
        .await;
    read.or_failed_on("counting totals", counter)?;
    Ok(count.unsigned_abs())
}
