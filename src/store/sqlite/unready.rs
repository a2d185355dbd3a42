//! The same store for whoever makes totals ready: reads them whether they are or not.

use rusqlite::{OptionalExtension, params_from_iter};

use super::{SqliteStore, failed_on, overflowed, read_key};
use crate::batch::Batch;
use crate::counter::Def;
use crate::error::Result;
use crate::key::KeyBuf;
use crate::mark::Mark;
use crate::prune;
use crate::range::KeyRange;
use crate::sql::{self, Dialect};
use crate::store::{Applied, Store, sum_by_pages};

/// A store whose totals can be read although rows may be missing in them: for audits, mends and the scoring of boards.
pub(crate) struct Unready<'c>(pub(crate) SqliteStore<'c>);

impl Store for Unready<'_> {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        self.0.apply(batch)
    }

    fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        self.0.apply_once(batch, mark)
    }

    fn mark(&mut self, stream: &str) -> Result<u64> {
        self.0.mark(stream)
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let text = sql::read(Dialect::Sqlite, self.0.layout.placed(&counter)?);
        let doing = |error| failed_on("reading totals", &counter, error);
        let mut statement = self.0.conn.prepare_cached(&text).map_err(doing)?;
        keys.iter()
            .map(|key| {
                let values = sql::key_values(Dialect::Sqlite, &counter, key)?;
                let total = statement.query_row(params_from_iter(values), |row| row.get(0)).optional();
                Ok(total.map_err(doing)?.unwrap_or(0))
            })
            .collect()
    }

    fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        let query = sql::range(Dialect::Sqlite, self.0.layout.placed(&counter)?, range, limit)?;
        let doing = |error| failed_on("reading totals", &counter, error);
        let mut statement = self.0.conn.prepare_cached(&query.text).map_err(doing)?;
        let width = statement.column_count() - 1;
        let mut rows = statement.query(params_from_iter(query.values)).map_err(doing)?;
        let mut page = Vec::new();
        while let Some(row) = rows.next().map_err(doing)? {
            let key = read_key(&counter, row, 0)?;
            page.push((key, row.get(width).map_err(doing)?));
        }
        Ok(page)
    }

    fn sum(&mut self, counter: Def, range: &KeyRange) -> Result<i64> {
        let query = sql::sum(Dialect::Sqlite, self.0.layout.placed(&counter)?, range)?;
        let sum = self.0.conn.prepare_cached(&query.text).and_then(|mut statement| {
            statement.query_row(params_from_iter(query.values), |row| row.get::<_, Option<i64>>(0))
        });
        let sum = match sum {
            Ok(sum) => sum.unwrap_or(0),
            // It may have left 64 bits on the way only.
            Err(error) if overflowed(&error) => sum_by_pages(self, counter, range)?,
            Err(error) => return Err(failed_on("summing totals", &counter, error)),
        };
        // Afterwards: a cut never goes back, so what it spares now was spared all along.
        prune::check_range(&counter, range, self.0.cut(&counter)?.as_ref())?;
        Ok(sum)
    }
}
