//! The truth of a rollup in PostgreSQL: the stored totals that it sums, joined with their links, in the rollup's key order.

use std::collections::BTreeMap;

use tokio_postgres::{Row, Transaction};

use super::declared::{by_key, key_arrays, query_in, read_sum};
use crate::counter::{Def, Rollup};
use crate::error::Result;
use crate::key::KeyBuf;
use crate::layout::Layout;
use crate::reconcile::audit::Recount;
use crate::reconcile::ends::Ends;
use crate::reconcile::statements::of_each_key;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::postgres::failed_on;

/// One rollup's sums over pairs of link and finer total.
pub(super) struct Joined {
    counter: Def,
    /// The join with its conditions.
    from: String,
    /// The columns of the rollup's key: the link's parent, and the finer counter's tail.
    parent: Vec<String>,
    tail: Vec<String>,
}

const SUMS: &str = r#"count(*), sum(l."total"::numeric * f."total")::text"#;

impl Joined {
    pub(super) fn of(layout: &Layout, counter: Def, rollup: &Rollup) -> Result<Self> {
        let Ends { link, finer, joins, parent, tail } = Ends::of(layout, rollup)?;
        let joins: Vec<String> = joins.iter().map(|join| format!(" AND {join}")).collect();
        let from = format!(
            r#""{}" AS l, "{}" AS f WHERE l."total" <> 0 AND f."total" <> 0{}"#,
            link.table_name(),
            finer.table_name(),
            joins.concat()
        );
        Ok(Self { counter, from, parent, tail })
    }

    /// Whether a page's keys are sorted within each parent, of which the index gives the order.
    pub(super) const fn has_tail(&self) -> bool {
        !self.tail.is_empty()
    }

    /// The query of the next keys' sums, at most `limit`, and none of a parent behind that of `until`; none behind the only key of `()`. Reads the
    /// totals of a parent's children whole.
    pub(super) fn next<'k>(
        &self,
        after: Option<&'k KeyBuf>,
        until: Option<&'k KeyBuf>,
        limit: usize,
    ) -> Result<Option<Query<'k>>> {
        let columns = [self.parent.as_slice(), &self.tail].concat();
        if columns.is_empty() && after.is_some() {
            return Ok(None);
        }
        let mut values = Vec::new();
        let mut conditions = String::new();
        let mut compare = |columns: &[String], operator: &str, given: Vec<Value<'k>>| {
            if columns.is_empty() {
                return;
            }
            let at = values.len() + 1;
            let params: Vec<String> = (at..at + columns.len()).map(|at| Dialect::Postgres.param(at)).collect();
            conditions.extend([" AND (", &columns.join(", "), ") ", operator, " (", &params.join(", "), ")"]);
            values.extend(given);
        };
        if let Some(after) = after {
            if self.has_tail() {
                // What the index of links can do of the next condition.
                compare(&self.parent, ">=", self.parent_values(after)?);
            }
            compare(&columns, ">", sql::key_values(Dialect::Postgres, &self.counter, after)?);
        }
        if let Some(until) = until {
            compare(&self.parent, "<=", self.parent_values(until)?);
        }
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let (listed, from, at) = (columns.join(", "), &self.from, Dialect::Postgres.param(values.len()));
        let text = if columns.is_empty() {
            format!("SELECT {SUMS} FROM {from} LIMIT {at}")
        } else {
            format!("SELECT {listed}, {SUMS} FROM {from}{conditions} GROUP BY {listed} ORDER BY {listed} LIMIT {at}")
        };
        Ok(Some(Query { text, values }))
    }

    fn parent_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        let mut values = sql::head_values(Dialect::Postgres, &self.counter, key)?;
        values.truncate(self.parent.len());
        Ok(values)
    }

    /// Reads a sum as it came.
    pub(super) fn sum(&self, row: &Row) -> Result<Option<Recount>> {
        read_sum(&self.counter, row, true)
    }

    /// The sums of these keys, in one statement; those without pairs are left out.
    pub(super) async fn recount(&self, tx: &Transaction<'_>, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        let columns = self.parent.iter().chain(&self.tail);
        let same: Vec<String> = columns.zip(1..).map(|(column, at)| format!(" AND {column} = k.k_{at}")).collect();
        let sums = format!("SELECT {SUMS} FROM {}{}", self.from, same.concat());
        let parts = self.counter.parts();
        let text = if parts.is_empty() { sums } else { of_each_key(parts, "k.*, o.*", &sums) };
        let query = Query { text, values: key_arrays(&self.counter, keys)? };
        let rows = query_in(tx, &query).await.map_err(|error| failed_on("recounting", &self.counter, error))?;
        by_key(rows.iter().map(|row| self.sum(row)))
    }
}
