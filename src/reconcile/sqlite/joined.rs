//! The truth of a rollup in SQLite: the stored totals that it sums, joined with their links, in the rollup's key order.

use std::collections::BTreeMap;

use rusqlite::{Connection, params_from_iter};

use crate::counter::{Def, Rollup};
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::layout::Layout;
use crate::reconcile::audit::Recount;
use crate::reconcile::ends::Ends;
use crate::rollup;
use crate::sql::{self, Dialect, Value};
use crate::store::sqlite::{failed_on, read_key};

/// One rollup's pairs of link and finer total: each with the rollup's key, and by parent.
pub(super) struct Joined {
    counter: Def,
    /// The join, up to its conditions.
    select: String,
    /// The columns of the rollup's key: the link's parent, and the finer counter's tail.
    parent: Vec<String>,
    tail: Vec<String>,
}

/// What the pairs of one key add up to, and how many they are.
type Sum = (i128, u64);

impl Joined {
    /// Read from the index of the links by parent, so that nothing is sorted.
    pub(super) fn of(layout: &Layout, counter: Def, rollup: &Rollup) -> Result<Self> {
        let Ends { link, finer, joins, parent, tail } = Ends::of(layout, rollup)?;
        let on = if joins.is_empty() { "1".to_owned() } else { joins.join(" AND ") };
        let columns: Vec<&str> = parent.iter().chain(&tail).map(String::as_str).collect();
        let columns = columns.into_iter().chain([r#"l."total""#, r#"f."total""#]).collect::<Vec<_>>().join(", ");
        let (links, index, finers) = (link.table_name(), sql::by_parent(link), finer.table_name());
        let select = format!(
            r#"SELECT {columns} FROM "{links}" AS l INDEXED BY "{index}" CROSS JOIN "{finers}" AS f ON {on} WHERE l."total" <> 0 AND f."total" <> 0"#
        );
        Ok(Self { counter, select, parent, tail })
    }

    /// The sums of the next keys, at most `limit`, and none of a parent behind that of `until`. Reads the totals of a parent's children whole, and
    /// keeps `limit` keys of them.
    pub(super) fn recounts(
        &self,
        conn: &Connection,
        after: Option<&KeyBuf>,
        until: Option<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<Recount>> {
        let (mut done, mut sums) = (Vec::new(), BTreeMap::new());
        if let Some(after) = after
            && !self.tail.is_empty()
        {
            // What is left of the parent that the page before ended in.
            let mut query = Query::of(self);
            query.compare(&self.parent, "=", self.parent_values(after)?);
            query.compare(&self.tail, ">", self.tail_values(after)?);
            query.read(conn, |key, product| {
                self.add(&mut sums, key, product, limit)?;
                Ok(true)
            })?;
            self.flush(&mut sums, limit, &mut done)?;
        }
        if done.len() >= limit {
            return Ok(done);
        }
        let mut query = Query::of(self);
        if let Some(after) = after {
            query.compare(&self.parent, ">", self.parent_values(after)?);
        }
        if let Some(until) = until {
            query.compare(&self.parent, "<=", self.parent_values(until)?);
        }
        let mut parent: Option<KeyBuf> = None;
        query.by_parent().read(conn, |key, product| {
            let its_parent = self.parent_of(&key)?;
            if parent.as_ref() != Some(&its_parent) {
                self.flush(&mut sums, limit, &mut done)?;
                parent = Some(its_parent);
                if done.len() >= limit {
                    return Ok(false);
                }
            }
            self.add(&mut sums, key, product, limit - done.len())?;
            Ok(true)
        })?;
        self.flush(&mut sums, limit, &mut done)?;
        Ok(done)
    }

    fn parent_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        let mut values = sql::head_values(Dialect::Sqlite, &self.counter, key)?;
        values.truncate(self.parent.len());
        Ok(values)
    }

    fn tail_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        Ok(sql::head_values(Dialect::Sqlite, &self.counter, key)?.split_off(self.parent.len()))
    }

    /// Adds to the sum of a key; of more keys than there is room for, the last goes.
    fn add(&self, sums: &mut BTreeMap<KeyBuf, Sum>, key: KeyBuf, product: i128, room: usize) -> Result<()> {
        let overflow = Error::overflow(&self.counter, &key, "recount");
        let sum = sums.entry(key).or_default();
        *sum = (sum.0.checked_add(product).ok_or(overflow)?, sum.1 + 1);
        if sums.len() > room {
            sums.pop_last();
        }
        Ok(())
    }

    /// The sum of one key.
    pub(super) fn recount_one(&self, conn: &Connection, key: &KeyBuf) -> Result<i64> {
        let mut query = Query::of(self);
        query.compare(&self.parent, "=", self.parent_values(key)?);
        query.compare(&self.tail, "=", self.tail_values(key)?);
        let mut sum = Some(0_i128);
        query.read(conn, |_, product| {
            sum = sum.and_then(|sum| sum.checked_add(product));
            Ok(true)
        })?;
        sum.and_then(|sum| i64::try_from(sum).ok()).ok_or_else(|| Error::overflow(&self.counter, key, "recount"))
    }

    /// Moves the keys of a parent, which are all known now, to those that are done.
    fn flush(&self, sums: &mut BTreeMap<KeyBuf, Sum>, limit: usize, done: &mut Vec<Recount>) -> Result<()> {
        for (key, (sum, rows)) in std::mem::take(sums) {
            if done.len() < limit {
                let total = i64::try_from(sum).map_err(|_| Error::overflow(&self.counter, &key, "recount"))?;
                done.push(Recount { key, total, rows });
            }
        }
        Ok(())
    }

    fn parent_of(&self, key: &KeyBuf) -> Result<KeyBuf> {
        rollup::split(&self.counter, key, self.parent.len()).map(|(parent, _)| parent)
    }
}

/// A join with its conditions and their parameters.
struct Query<'j, 'v> {
    joined: &'j Joined,
    text: String,
    values: Vec<Value<'v>>,
}

impl<'j, 'v> Query<'j, 'v> {
    fn of(joined: &'j Joined) -> Self {
        Self { joined, text: joined.select.clone(), values: Vec::new() }
    }

    /// Compares some columns with values; without columns, nothing is equal to nothing.
    fn compare(&mut self, columns: &[String], operator: &str, values: Vec<Value<'v>>) {
        if columns.is_empty() {
            self.text.push_str(if operator.contains('=') { "" } else { " AND 0" });
            return;
        }
        let first = self.values.len() + 1;
        let params: Vec<String> = (first..first + columns.len()).map(|at| format!("?{at}")).collect();
        self.text.extend([" AND (", &columns.join(", "), ") ", operator, " (", &params.join(", "), ")"]);
        self.values.extend(values);
    }

    fn by_parent(mut self) -> Self {
        if !self.joined.parent.is_empty() {
            self.text.extend([" ORDER BY ", &self.joined.parent.join(", ")]);
        }
        self
    }

    /// Calls `each` with every pair's key and product until it says no.
    fn read(&self, conn: &Connection, mut each: impl FnMut(KeyBuf, i128) -> Result<bool>) -> Result<()> {
        let counter = &self.joined.counter;
        let failed = |error| failed_on("recounting", counter, error);
        let mut statement = conn.prepare_cached(&self.text).map_err(failed)?;
        let width = statement.column_count();
        let mut rows = statement.query(params_from_iter(&self.values)).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let total = |at: usize| row.get::<_, i64>(at).map(i128::from).map_err(failed);
            let product = total(width - 2)? * total(width - 1)?;
            if !each(read_key(counter, row, 0)?, product)? {
                break;
            }
        }
        Ok(())
    }
}
