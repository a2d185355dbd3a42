//! Reading one counter's source: pages of sums, sums of some keys, and the sample that is held against the rows' `tally`.

use std::collections::BTreeMap;
use std::ops::Bound;

use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{GenericClient, Row, Transaction};

use super::sight::source_failed;
use super::source::TypedPostgresSource;
use crate::batch::Batch;
use crate::counter::CounterId;
use crate::drivers::tokio_postgres::{Postgres, params, typed};
use crate::engine::failed_on;
use crate::engine::rows::read_key;
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyPart};
use crate::reconcile::audit::{PageRequest, Recount};
use crate::reconcile::recount::{SAMPLE, SumsByKey, mismatch, of_row, same_key, sample_of_key};
use crate::reconcile::statements::Statements;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::catalogue;

/// One counter's source, ready to be read.
#[derive(Debug)]
pub(super) struct RowSource<'a> {
    pub(super) counter: CounterId,
    pub(super) source: TypedPostgresSource<'a>,
    pub(super) statements: Statements,
    /// The cutoff that the statements know.
    pub(super) cutoff: Option<KeyBuf>,
    /// What a transaction that reads rows begins with: it locks the tables before its snapshot, which does not see what TRUNCATE, a partition that comes or goes,
    /// or a table that is written anew does to it later.
    pub(super) opening: String,
    /// Whether tables of this database have partitions or children, which come without waiting for who reads.
    pub(super) parted: bool,
}

/// Rows that are read one by one come so many at a time.
const ROWS: i32 = 2_000;

impl RowSource<'_> {
    /// Makes the statements anew where the counter was pruned further.
    pub(super) fn cutoff_at(&mut self, cutoff: Option<KeyBuf>) -> Result<()> {
        if self.cutoff != cutoff {
            let value = cutoff
                .as_ref()
                .map(|cutoff| catalogue::suffix_value(Dialect::Postgres, &self.counter, cutoff))
                .transpose()?;
            self.statements = self.source.target.statements(Dialect::Postgres, &self.counter, value.as_ref())?;
            self.cutoff = cutoff;
        }
        Ok(())
    }

    /// Finds what PostgreSQL cannot prepare, and columns of other types than the key and amounts are of, before anything is run.
    pub(super) async fn check(&self, tx: &Transaction<'_>) -> Result<()> {
        let (counter, statements) = (&self.counter, &self.statements);
        let kinds: Vec<Type> = some_key(counter).iter().map(Value::kind).collect();
        let arrays: Vec<Type> = some_keys(counter).iter().map(Value::kind).collect();
        let limited = [kinds.as_slice(), &[Type::INT8]].concat();
        let prepare = async |text: &str, kinds: &[Type]| {
            let prepared = tx.prepare_typed(text, kinds).await;
            prepared.map_err(|error| source_failed("preparing its SQL", counter, error))
        };
        let sample = prepare(&statements.sample_first, &[Type::INT8]).await?;
        let (parts, columns) = (counter.parts(), sample.columns());
        let key_at = columns.len().saturating_sub(parts.len() + 2);
        for (part, column) in parts.as_slice().iter().zip(columns.iter().skip(key_at)) {
            if !fits(*part, column.type_()) {
                let reason = format!("a key of {part} cannot be read from a column of type {}", column.type_());
                return Err(Error::source(counter, None, reason));
            }
        }
        if self.source.by_tally {
            prepare(&statements.rows_next, &kinds).await?;
            prepare(&statements.rows_of_keys, &arrays).await?;
        } else {
            prepare(&statements.sums_next, &limited).await?;
            prepare(&statements.sums_of_keys, &arrays).await?;
            if let Some(amount) = &statements.amount {
                let amount = prepare(amount, &[]).await?;
                let kind = amount.columns().first().map(|column| column.type_().clone());
                check_amount(counter, kind.as_ref())?;
            }
        }
        if let Some(parent) = &statements.parent {
            prepare(parent, &arrays).await?;
        }
        prepare(&statements.sample_of_key, &limited).await?;
        Ok(())
    }

    /// The plan of the first page, a line a row, with each expression and the schema of each table.
    pub(super) fn explain_first(&self) -> Query<'static> {
        self.explain("EXPLAIN (VERBOSE)", false, Vec::new())
    }

    /// The plan of a page behind a key.
    pub(super) fn explain_next(&self) -> Query<'static> {
        self.explain("EXPLAIN", true, some_key(&self.counter))
    }

    fn explain(&self, how: &str, behind: bool, mut values: Vec<Value<'static>>) -> Query<'static> {
        if !self.source.by_tally {
            values.push(Value::Integer(1024));
        }
        Query::new(format!("{how} {}", self.page(behind)), values)
    }

    /// What a page is read by, from the first key or behind another.
    fn page(&self, behind: bool) -> &str {
        let statements = &self.statements;
        match (self.source.by_tally, behind) {
            (true, false) => &statements.rows_first,
            (true, true) => &statements.rows_next,
            (false, false) => &statements.sums_first,
            (false, true) => &statements.sums_next,
        }
    }

    /// The query of the next keys' sums, one more than a page holds, or of the rows that they are summed from; none behind the only key of `()`.
    pub(super) fn next<'k>(&self, ask: &'k PageRequest) -> Result<Option<Query<'k>>> {
        if self.counter.parts().is_empty() && ask.after.is_some() {
            return Ok(None);
        }
        let mut values = ask.after.as_ref().map_or(Ok(Vec::new()), |after| self.key_values(after))?;
        let text = self.page(!values.is_empty()).to_owned();
        if !self.source.by_tally {
            values.push(Value::Integer(i64::try_from(ask.keys.saturating_add(1)).unwrap_or(i64::MAX)));
        }
        Ok(Some(Query::new(text, values)))
    }

    /// Reads a sum as it came.
    pub(super) fn sum(&self, row: &Row) -> Result<Option<Recount>> {
        read_sum(&self.counter, row, self.source.target.amount.is_some())
    }

    /// Sums rows in key order, up to `limit` keys.
    pub(super) async fn sums_by_tally(
        &self,
        tx: &Transaction<'_>,
        query: &Query<'_>,
        after: Option<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<Recount>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut sums = SumsByKey::new(&self.counter, from, limit);
        self.shares(tx, query, |share| sums.add(share)).await?;
        Ok(sums.sums)
    }

    /// Calls `each` with what every row adds by its tally, until it says no.
    async fn shares(
        &self,
        tx: &Transaction<'_>,
        query: &Query<'_>,
        mut each: impl FnMut(Option<(KeyBuf, i64)>) -> Result<bool> + Send,
    ) -> Result<()> {
        let counter = &self.counter;
        let failed = |error| source_failed("reading rows", counter, error);
        let kinds: Vec<Type> = query.values.iter().map(Value::kind).collect();
        let statement = tx.prepare_typed(&query.text, &kinds).await.map_err(failed)?;
        let portal = tx.bind(&statement, &params(&query.values)).await.map_err(failed)?;
        let mut scratch = Batch::new();
        loop {
            let rows = tx.query_portal(&portal, ROWS).await.map_err(failed)?;
            for row in &rows {
                let key = read_key(counter, row, row.len().saturating_sub(counter.parts().len()))?;
                let share = (self.source.share)(counter, row, &mut scratch);
                let share = share.map_err(|error| of_row(error, counter, Some(&key)))?;
                if !each(same_key(counter, share, &key)?)? {
                    return Ok(());
                }
            }
            if rows.len() < ROWS as usize {
                return Ok(());
            }
        }
    }

    /// The sums of these keys' rows, in one statement; those without rows are left out.
    pub(super) async fn recount(&self, tx: &Transaction<'_>, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        let counter = &self.counter;
        let (statements, values) = (&self.statements, self.key_arrays(keys)?);
        if !self.source.by_tally {
            let query = Query::new(statements.sums_of_keys.clone(), values);
            let rows = query_in(tx, &query).await.map_err(|error| source_failed("recounting", counter, error))?;
            return by_key(rows.iter().map(|row| self.sum(row)));
        }
        let mut sums: BTreeMap<KeyBuf, i64> = BTreeMap::new();
        let query = Query::new(statements.rows_of_keys.clone(), values);
        self.shares(tx, &query, |share| {
            if let Some((key, amount)) = share {
                let overflow = Error::overflow(counter, &key, "recount");
                let sum = sums.entry(key).or_default();
                *sum = sum.checked_add(amount).ok_or(overflow)?;
            }
            Ok(true)
        })
        .await?;
        Ok(sums)
    }

    /// The keys among some sums whose last parts name no row of the parents' table.
    pub(super) async fn dangling<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        sums: &[Recount],
    ) -> Result<Vec<KeyBuf>> {
        let Some(text) = &self.statements.parent else { return Ok(Vec::new()) };
        let keys: Vec<KeyBuf> = sums.iter().filter(|sum| sum.total != 0).map(|sum| sum.key.clone()).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let query = Query::new(text.clone(), self.key_arrays(&keys)?);
        let rows = session.query(&query).await;
        let rows = rows.map_err(|error| source_failed("looking for parents", &self.counter, error))?;
        let mut dangling = rows.iter().map(|row| read_key(&self.counter, row, 0)).collect::<Result<Vec<KeyBuf>>>()?;
        dangling.sort_unstable();
        Ok(dangling)
    }

    /// Whether no row counts.
    pub(super) async fn is_empty(&self, tx: &Transaction<'_>) -> Result<bool> {
        if self.source.by_tally {
            let query = Query::new(self.statements.rows_first.clone(), Vec::new());
            return Ok(self.sums_by_tally(tx, &query, None, 1).await?.is_empty());
        }
        let any = query_in(tx, &Query::new(self.statements.any.clone(), Vec::new())).await;
        Ok(any.map_err(|error| source_failed("looking for rows", &self.counter, error))?.is_empty())
    }

    /// A key as the parameters of this source's statements: one for each of its columns, so none for `()`.
    fn key_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        if self.counter.parts().is_empty() {
            Ok(Vec::new())
        } else {
            sql::key_values(Dialect::Postgres, &self.counter, key)
        }
    }

    fn key_arrays<'k>(&self, keys: &'k [KeyBuf]) -> Result<Vec<Value<'k>>> {
        key_arrays(&self.counter, keys)
    }

    /// Holds a sample of the whole source against the rows' `tally`: its first rows, its last, and some without a key. Where the rows are
    /// recounted by `tally` anyway, only those without a key, which no page lists.
    pub(super) async fn check_sample<C: GenericClient + Send + Sync>(&self, session: &Postgres<'_, C>) -> Result<()> {
        let edge_samples = [&self.statements.sample_first, &self.statements.sample_last];
        let edge_samples =
            edge_samples.into_iter().filter(|_| !self.source.by_tally).chain(&self.statements.sample_without_key);
        let query = |text: &String| Query::new(text.clone(), vec![limit(SAMPLE)]);
        self.check_mismatch(session, &edge_samples.map(query).collect::<Vec<_>>()).await
    }

    /// Holds rows of some keys against their `tally`.
    pub(super) async fn check_keys<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        keys: &[KeyBuf],
    ) -> Result<()> {
        if self.source.by_tally {
            return Ok(());
        }
        let most = sample_of_key(keys.len());
        let query = |key| {
            let mut values = self.key_values(key)?;
            values.push(limit(most));
            Ok(Query::new(self.statements.sample_of_key.clone(), values))
        };
        self.check_mismatch(session, &keys.iter().map(query).collect::<Result<Vec<_>>>()?).await
    }

    /// Holds rows as SQL counts them against their `tally`.
    async fn check_mismatch<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        samples: &[Query<'_>],
    ) -> Result<()> {
        let counter = &self.counter;
        let rows = session.query_all(samples).await;
        let rows = rows.map_err(|(_, error)| source_failed("reading a sample", counter, error))?;
        let mut scratch = Batch::new();
        rows.iter().flatten().try_for_each(|row| self.check_row(row, &mut scratch))
    }

    fn check_row(&self, row: &Row, scratch: &mut Batch) -> Result<()> {
        let counter = &self.counter;
        let tally = (self.source.share)(counter, row, scratch).map_err(|error| self.of_row(error, row))?;
        let sql = self.share_in_sql(row)?;
        if tally == sql { Ok(()) } else { Err(mismatch(counter, tally.as_ref(), sql.as_ref())) }
    }

    /// What is wrong with rows, an error each, up to so many.
    pub(super) async fn faults(&self, tx: &Transaction<'_>, most: usize) -> Result<Vec<Error>> {
        let failed = |error| source_failed("reading a sample", &self.counter, error);
        let statement = tx.prepare(&self.statements.sample_all).await.map_err(failed)?;
        let portal = tx.bind(&statement, &[]).await.map_err(failed)?;
        let (mut faults, mut scratch) = (Vec::new(), Batch::new());
        loop {
            let rows = match tx.query_portal(&portal, ROWS).await.map_err(failed) {
                Ok(rows) => rows,
                // What no row can be read behind.
                Err(error) if error.is_of_rows() => {
                    faults.push(error);
                    return Ok(faults);
                }
                Err(error) => return Err(error),
            };
            for row in &rows {
                faults.extend(self.check_row(row, &mut scratch).err());
                if faults.len() >= most {
                    return Ok(faults);
                }
            }
            if rows.len() < ROWS as usize {
                return Ok(faults);
            }
        }
    }

    /// The error of a row of a sample that could not be read as a record: of its key, where that is why.
    #[cold]
    fn of_row(&self, error: Error, row: &Row) -> Error {
        let parts = self.counter.parts().len();
        let key_at = row.len().saturating_sub(parts + 2);
        if (key_at..key_at + parts).any(|at| matches!(row.try_get::<_, Option<Any>>(at), Ok(None))) {
            return error;
        }
        match read_key(&self.counter, row, key_at) {
            Ok(key) => of_row(error, &self.counter, Some(&key)),
            Err(error) => error,
        }
    }

    /// What a row of a sample adds by its SQL.
    fn share_in_sql(&self, row: &Row) -> Result<Option<(KeyBuf, i64)>> {
        let counter = &self.counter;
        let failed = |error| failed_on("reading the source", counter, error);
        let (amount_at, counts_at) = (row.len().saturating_sub(2), row.len().saturating_sub(1));
        if !row.try_get::<_, bool>(counts_at).map_err(failed)? {
            return Ok(None);
        }
        let Some(amount) = row.try_get::<_, Option<String>>(amount_at).map_err(failed)? else { return Ok(None) };
        let key = read_key(counter, row, amount_at.saturating_sub(counter.parts().len()))?;
        let amount = integer(&amount).ok_or_else(|| {
            Error::source(counter, Some(&key), format!("a row's amount is {amount}, not an integer of 64 bits"))
        })?;
        Ok((amount != 0).then_some((key, amount)))
    }
}

/// A value of any type.
struct Any;

impl FromSql<'_> for Any {
    fn from_sql(_: &Type, _: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn limit(rows: usize) -> Value<'static> {
    Value::Integer(i64::try_from(rows).unwrap_or(i64::MAX))
}

fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// Keys as parameters, an array for each part, so none for `()`.
pub(super) fn key_arrays<'k>(counter: &CounterId, keys: &'k [KeyBuf]) -> Result<Vec<Value<'k>>> {
    if counter.parts().is_empty() { Ok(Vec::new()) } else { sql::key_arrays(counter, keys) }
}

/// Runs one query in a transaction.
pub(super) async fn query_in(tx: &Transaction<'_>, query: &Query<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
    tx.query_typed(&query.text, &typed(&query.values)).await
}

/// Reads a key, how many rows were added up, and, where they do not all add 1, their sum as text. None where no row was added up: a query without key
/// columns gives one row even then.
pub(super) fn read_sum(counter: &CounterId, row: &Row, has_sum: bool) -> Result<Option<Recount>> {
    let failed = |error| failed_on("recounting", counter, error);
    let at = counter.parts().len();
    let added: i64 = row.try_get(at).map_err(failed)?;
    if added == 0 {
        return Ok(None);
    }
    let key = read_key(counter, row, 0)?;
    let total = if has_sum {
        // All amounts are null.
        let sum = row.try_get::<_, Option<String>>(at + 1).map_err(failed)?.unwrap_or_else(|| "0".to_owned());
        let digits = sum.strip_prefix('-').unwrap_or(&sum);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            let reason = format!("its amounts add up to {sum}, not to an integer");
            return Err(Error::source(counter, Some(&key), reason));
        }
        integer(&sum).ok_or_else(|| Error::overflow(counter, &key, "recount"))?
    } else {
        added
    };
    Ok(Some(Recount { key, total, rows: added.unsigned_abs() }))
}

/// The sums of rows, by key.
pub(super) fn by_key(sums: impl Iterator<Item = Result<Option<Recount>>>) -> Result<BTreeMap<KeyBuf, i64>> {
    sums.filter_map(Result::transpose).map(|sum| sum.map(|sum| (sum.key, sum.total))).collect()
}

/// A key as parameters, of the right types.
fn some_key(counter: &CounterId) -> Vec<Value<'static>> {
    let value = |part: &KeyPart| match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => Value::Integer(0),
        KeyPart::Text => Value::Text("".into()),
        KeyPart::Uuid => Value::Uuid([0; 16]),
        _ => Value::Blob([0; 16]),
    };
    counter.parts().as_slice().iter().map(value).collect()
}

fn some_keys(counter: &CounterId) -> Vec<Value<'static>> {
    some_key(counter).into_iter().map(Value::into_column).collect()
}

/// Whether a column of this type holds such a part of a key, and compares as it does.
fn fits(part: KeyPart, kind: &Type) -> bool {
    match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => matches!(*kind, Type::INT2 | Type::INT4 | Type::INT8),
        KeyPart::Text => matches!(*kind, Type::TEXT | Type::VARCHAR),
        KeyPart::Uuid => *kind == Type::UUID,
        _ => *kind == Type::BYTEA,
    }
}

fn check_amount(counter: &CounterId, kind: Option<&Type>) -> Result<()> {
    match kind {
        Some(&(Type::INT2 | Type::INT4 | Type::INT8 | Type::NUMERIC)) => Ok(()),
        kind => {
            let kind = kind.map_or("nothing", Type::name);
            Err(Error::source(counter, None, format!("its amounts are of type {kind}, and are to be integers")))
        }
    }
}
