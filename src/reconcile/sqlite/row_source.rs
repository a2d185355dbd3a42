//! Reading one counter's source: pages of sums, sums of single keys, and the sample that is held against the rows' `tally`.

use std::ops::Bound;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params_from_iter};

use super::sight::source_failed;
use super::source::TypedSource;
use crate::batch::Batch;
use crate::counter::CounterId;
use crate::engine::rows::read_key;
use crate::error::{Error, Result};
use crate::executor::{DriverError as _, ErrorKind, Row as _};
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageRequest, Recount};
use crate::reconcile::recount::{SAMPLE, mismatch, of_row, same_key, sample_of_key, sum_by_key};
use crate::reconcile::statements::Statements;
use crate::sql::{self, Dialect, Value};
use crate::store::catalogue;

/// One counter's source, ready to be read.
#[derive(Debug)]
pub(super) struct RowSource<'a> {
    pub(super) counter: CounterId,
    pub(super) source: TypedSource<'a>,
    pub(super) statements: Statements,
    /// Whether all rows are in the file of the totals.
    pub(super) own_file: bool,
    /// The cutoff that the statements know.
    pub(super) cutoff: Option<KeyBuf>,
}

impl RowSource<'_> {
    /// Makes the statements anew where the counter was pruned further.
    pub(super) fn cutoff_at(&mut self, cutoff: Option<KeyBuf>) -> Result<()> {
        if self.cutoff != cutoff {
            let value = cutoff
                .as_ref()
                .map(|cutoff| catalogue::suffix_value(Dialect::Sqlite, &self.counter, cutoff))
                .transpose()?;
            self.statements = self.source.target.statements(Dialect::Sqlite, &self.counter, value.as_ref())?;
            self.cutoff = cutoff;
        }
        Ok(())
    }

    /// The next keys' sums, one more than a page holds.
    pub(super) fn recounts(&self, conn: &Connection, ask: &PageRequest) -> Result<Vec<Recount>> {
        let limit = ask.keys.saturating_add(1);
        if self.counter.parts().is_empty() && ask.after.is_some() {
            return Ok(Vec::new());
        }
        let mut values = ask.after.as_ref().map_or(Ok(Vec::new()), |after| self.key_values(after))?;
        if self.source.by_tally {
            let text = if values.is_empty() { &self.statements.rows_first } else { &self.statements.rows_next };
            return self.sums_by_tally(conn, text, &values, limit);
        }
        let text = if values.is_empty() { &self.statements.sums_first } else { &self.statements.sums_next };
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let sums = self.sums(conn, text, &values);
        sums.map_err(|failure| self.recount_failed(failure, |error| self.overflowing_key(conn, ask, limit, error)))
    }

    /// The error of a recount, with what it is if a sum left 64 bits.
    fn recount_failed(&self, failure: Failure, overflow: impl FnOnce(rusqlite::Error) -> Error) -> Error {
        match failure {
            Failure::Sqlite(error) if error.kind() == ErrorKind::Overflow => overflow(error),
            Failure::Sqlite(error) => source_failed("recounting", &self.counter, error),
            Failure::Known(error) => error,
        }
    }

    fn sums(&self, conn: &Connection, text: &str, values: &[Value<'_>]) -> Result<Vec<Recount>, Failure> {
        let mut statement = conn.prepare_cached(text)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut sums = Vec::new();
        while let Some(row) = rows.next()? {
            let recount = self.recount(row)?;
            // Without a key's columns there is no group to be absent: one row of nothing.
            if recount.rows > 0 {
                sums.push(recount);
            }
        }
        Ok(sums)
    }

    /// Reads `key .., rows`, where every row adds 1; else `key .., rows, amounts that are no integers, sum`.
    fn recount(&self, row: &Row<'_>) -> Result<Recount, Failure> {
        let key = read_key(&self.counter, row, 0)?;
        let at = self.counter.parts().len();
        let rows: i64 = row.get(at)?;
        if self.source.target.amount.is_none() {
            return Ok(Recount { key, total: rows, rows: rows.unsigned_abs() });
        }
        let others: Option<i64> = row.get(at + 1)?;
        match row.get_ref(at + 2)? {
            ValueRef::Integer(total) if others == Some(0) => Ok(Recount { key, total, rows: rows.unsigned_abs() }),
            // All amounts are null, or there is no row.
            ValueRef::Null => Ok(Recount { key, total: 0, rows: rows.unsigned_abs() }),
            _ => {
                let reason = format!("{} of its amounts are not integers", others.unwrap_or(0));
                Err(Error::source(&self.counter, Some(&key), reason).into())
            }
        }
    }

    fn sums_by_tally(&self, conn: &Connection, text: &str, values: &[Value<'_>], limit: usize) -> Result<Vec<Recount>> {
        let counter = &self.counter;
        let failed = |error| source_failed("reading rows", counter, error);
        let mut statement = conn.prepare_cached(text).map_err(failed)?;
        let key_at = statement.column_count() - counter.parts().len();
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        let mut scratch = Batch::new();
        let shares = std::iter::from_fn(|| {
            let row = match rows.next() {
                Ok(row) => row?,
                Err(error) => return Some(Err(failed(error))),
            };
            let mut share = || {
                let key = read_key(counter, row, key_at)?;
                let share = (self.source.share)(counter, row, &mut scratch);
                same_key(counter, share.map_err(|error| of_row(error, counter, Some(&key)))?, &key)
            };
            Some(share())
        });
        sum_by_key(counter, Bound::Unbounded, limit, shares)
    }

    /// The sum of one key's rows.
    pub(super) fn recount_one(&self, conn: &Connection, key: &KeyBuf) -> Result<i64> {
        let values = self.key_values(key)?;
        let sums = if self.source.by_tally {
            self.sums_by_tally(conn, &self.statements.rows_of_keys, &values, 1)?
        } else {
            let sums = self.sums(conn, &self.statements.sums_of_keys, &values);
            sums.map_err(|failure| self.recount_failed(failure, |_| Error::overflow(&self.counter, key, "recount")))?
        };
        Ok(sums.first().map_or(0, |sum| sum.total))
    }

    /// SQLite says that a sum left 64 bits, and not which: asks for each key of the page alone.
    #[cold]
    fn overflowing_key(&self, conn: &Connection, ask: &PageRequest, limit: usize, error: rusqlite::Error) -> Error {
        let mut after = ask.after.clone();
        for _ in 0..limit {
            let Ok(Some(key)) = self.key_behind(conn, after.as_ref()) else { break };
            if let Err(error) = self.recount_one(conn, &key) {
                return error;
            }
            after = Some(key);
        }
        source_failed("recounting", &self.counter, error)
    }

    fn key_behind(&self, conn: &Connection, after: Option<&KeyBuf>) -> Result<Option<KeyBuf>> {
        let values = after.map_or(Ok(Vec::new()), |after| self.key_values(after))?;
        let text = if values.is_empty() { &self.statements.key_first } else { &self.statements.key_next };
        let read = || -> Result<Option<KeyBuf>, Failure> {
            let mut statement = conn.prepare(text)?;
            let mut rows = statement.query(params_from_iter(values))?;
            Ok(rows.next()?.map(|row| read_key(&self.counter, row, 0)).transpose()?)
        };
        read().map_err(|error| error.known(&self.counter))
    }

    /// The keys among some sums whose last parts name no row of the parents' table.
    pub(super) fn dangling(&self, conn: &Connection, sums: &[Recount]) -> Result<Vec<KeyBuf>> {
        let Some(text) = &self.statements.parent else { return Ok(Vec::new()) };
        let failed = |error| source_failed("looking for parents", &self.counter, error);
        let mut statement = conn.prepare_cached(text).map_err(failed)?;
        let mut dangling = Vec::new();
        for sum in sums.iter().filter(|sum| sum.total != 0) {
            let values = self.key_values(&sum.key)?;
            let parent = values.len().saturating_sub(statement.parameter_count());
            if !statement.exists(params_from_iter(values.into_iter().skip(parent))).map_err(failed)? {
                dangling.push(sum.key.clone());
            }
        }
        Ok(dangling)
    }

    /// Whether any row counts.
    pub(super) fn is_empty(&self, conn: &Connection) -> Result<bool> {
        if self.source.by_tally {
            return Ok(self.sums_by_tally(conn, &self.statements.rows_first, &[], 1)?.is_empty());
        }
        let exists = conn.prepare(&self.statements.any).and_then(|mut any| any.exists(()));
        Ok(!exists.map_err(|error| source_failed("looking for rows", &self.counter, error))?)
    }

    /// A key as the parameters of this source's statements: one for each of its columns, so none for `()`.
    fn key_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        if self.counter.parts().is_empty() {
            Ok(Vec::new())
        } else {
            sql::key_values(Dialect::Sqlite, &self.counter, key)
        }
    }

    /// Holds a sample of the whole source against the rows' `tally`: its first rows, its last, and some without a key. Where the rows are
    /// recounted by `tally` anyway, only those without a key, which no page lists.
    pub(super) fn check_sample(&self, conn: &Connection) -> Result<()> {
        let edge_samples = [&self.statements.sample_first, &self.statements.sample_last];
        let edge_samples = edge_samples.into_iter().filter(|_| !self.source.by_tally);
        edge_samples
            .chain(&self.statements.sample_without_key)
            .try_for_each(|text| self.check_mismatch(conn, text, Vec::new(), SAMPLE))
    }

    /// Holds rows of some keys against their `tally`.
    pub(super) fn check_keys(&self, conn: &Connection, keys: &[KeyBuf]) -> Result<()> {
        if self.source.by_tally {
            return Ok(());
        }
        let most = sample_of_key(keys.len());
        keys.iter()
            .try_for_each(|key| self.check_mismatch(conn, &self.statements.sample_of_key, self.key_values(key)?, most))
    }

    /// Holds rows as SQL counts them against their `tally`.
    fn check_mismatch(&self, conn: &Connection, text: &str, mut values: Vec<Value<'_>>, most: usize) -> Result<()> {
        values.push(Value::Integer(i64::try_from(most).unwrap_or(i64::MAX)));
        self.check_rows(conn, text, &values, Err)
    }

    /// What is wrong with rows, an error each, up to so many.
    pub(super) fn faults(&self, conn: &Connection, most: usize) -> Result<Vec<Error>> {
        let mut faults = Vec::new();
        let read = self.check_rows(conn, &self.statements.sample_all, &[], |error| {
            faults.push(error);
            Ok(faults.len() < most)
        });
        // What no row can be read behind.
        match read {
            Err(error) if error.is_of_rows() => faults.push(error),
            read => read?,
        }
        Ok(faults)
    }

    /// Checks rows one by one, as long as `wrong` says so of what is wrong.
    fn check_rows(
        &self,
        conn: &Connection,
        text: &str,
        values: &[Value<'_>],
        mut wrong: impl FnMut(Error) -> Result<bool>,
    ) -> Result<()> {
        let failed = |error| source_failed("reading a sample", &self.counter, error);
        let mut statement = conn.prepare_cached(text).map_err(failed)?;
        let key_at = statement.column_count() - self.counter.parts().len() - 2;
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        let mut scratch = Batch::new();
        while let Some(row) = rows.next().map_err(failed)? {
            if let Err(error) = self.check_row(row, key_at, &mut scratch)
                && !wrong(error)?
            {
                break;
            }
        }
        Ok(())
    }

    fn check_row(&self, row: &Row<'_>, key_at: usize, scratch: &mut Batch) -> Result<()> {
        let counter = &self.counter;
        let failed = |error| source_failed("reading a sample", counter, error);
        let tally = (self.source.share)(counter, row, scratch).map_err(|error| self.of_row(error, row, key_at))?;
        let width = counter.parts().len();
        let included: bool = row.get(key_at + width + 1).map_err(failed)?;
        let sql = match row.get_ref(key_at + width).map_err(failed)? {
            _ if !included => None,
            ValueRef::Null | ValueRef::Integer(0) => None,
            ValueRef::Integer(amount) => Some((read_key(counter, row, key_at)?, amount)),
            _ => {
                let key = read_key(counter, row, key_at)?;
                let reason = format!("a row's amount is {}, not an integer", row.column(key_at + width));
                return Err(Error::source(counter, Some(&key), reason));
            }
        };
        if tally == sql { Ok(()) } else { Err(mismatch(counter, tally.as_ref(), sql.as_ref())) }
    }

    /// The error of a row that could not be read as a record: of its key, where that is why.
    #[cold]
    fn of_row(&self, error: Error, row: &Row<'_>, key_at: usize) -> Error {
        let mut columns = key_at..key_at + self.counter.parts().len();
        if columns.any(|at| matches!(row.get_ref(at), Ok(ValueRef::Null))) {
            return error;
        }
        match read_key(&self.counter, row, key_at) {
            Ok(key) => of_row(error, &self.counter, Some(&key)),
            Err(error) => error,
        }
    }
}

/// Either this crate's error, or SQLite's, whose meaning depends on who asked.
enum Failure {
    Known(Error),
    Sqlite(rusqlite::Error),
}

impl Failure {
    fn known(self, counter: &CounterId) -> Error {
        match self {
            Self::Known(error) => error,
            Self::Sqlite(error) => source_failed("reading a sample", counter, error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}
