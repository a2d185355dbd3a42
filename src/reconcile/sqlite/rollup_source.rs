//! The truth of a rollup in SQLite: the stored totals that it sums, joined with their memberships, in the rollup's key order.

use std::collections::BTreeMap;
use std::ops::Bound;

use rusqlite::{Connection, Row, params_from_iter};

use crate::counter::{CounterId, Rollup};
use crate::engine::failed_on;
use crate::engine::rows::read_key;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageRequest, Recount};
use crate::reconcile::rollup_join::RollupJoin;
use crate::reconcile::spans::{KeyColumns, MAX_LOOK_UPS, Plan, Span, bound};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Value};

/// One rollup's pairs of membership and base total: each with the rollup's key, and by parent.
pub(super) struct RollupSource {
    counter: CounterId,
    columns: KeyColumns,
    /// The memberships alone, and joined with base totals: what is behind FROM, up to conditions on the key.
    memberships: String,
    pairs: String,
}

/// What the pairs of one key add up to, and how many they are.
type Sum = (i128, u64);

impl RollupSource {
    /// Read from the index of the memberships by parent, so that no pair is sorted.
    pub(super) fn of(schema: &Schema, counter: CounterId, rollup: &Rollup) -> Result<Self> {
        let RollupJoin { membership, base, joins, parent, suffix } = RollupJoin::of(schema, rollup)?;
        let on = if joins.is_empty() { "1".to_owned() } else { joins.join(" AND ") };
        let (table, index, bases) = (membership.table_name(), sql::by_parent(membership), base.table_name());
        let table = format!(r#""{table}" AS l INDEXED BY "{index}""#);
        let memberships = format!(r#"{table} WHERE l."total" <> 0"#);
        let pairs = format!(r#"{table} CROSS JOIN "{bases}" AS f ON {on} WHERE l."total" <> 0 AND f."total" <> 0"#);
        let columns = KeyColumns { dialect: Dialect::Sqlite, counter, parent, suffix };
        Ok(Self { counter, columns, memberships, pairs })
    }

    /// The sums of the next page, and where it ends, if that is planned. What it reads of a parent at each child ends where the page does: at its last stored total, where that is the same
    /// parent's; else where `plan` says.
    pub(super) fn page(
        &self,
        conn: &Connection,
        plan: &mut Option<Plan>,
        ask: &PageRequest,
        totals: &[(KeyBuf, i64)],
    ) -> Result<(Vec<Recount>, Option<KeyBuf>)> {
        let until = bound(ask, totals);
        let end = match &ask.after {
            Some(after) => self.planned(conn, plan, (after, until), ask.keys)?,
            None => None,
        };
        let until = until.into_iter().chain(&end).chain(&ask.until).min();
        let spans = self.columns.spans(ask.after.as_ref(), until)?;
        let recounts = self.recounts(conn, &spans, ask.keys.saturating_add(1))?;
        if recounts.len() > ask.keys && matches!(spans.first(), Some(Span::Within { until: None, .. })) {
            // More has come than was planned for.
            *plan = None;
        }
        Ok((recounts, end))
    }

    /// Where a page ends in the parent that it begins in, if no stored total says it.
    fn planned(
        &self,
        conn: &Connection,
        plan: &mut Option<Plan>,
        (after, until): (&KeyBuf, Option<&KeyBuf>),
        keys: usize,
    ) -> Result<Option<KeyBuf>> {
        let bounded = until.map_or(Ok(false), |until| self.columns.is_same_parent(after, until))?;
        if bounded || self.columns.suffix.is_empty() {
            return Ok(None);
        }
        let plan = match plan {
            Some(plan) if plan.is_of(&self.columns, after)? => plan,
            plan => {
                let rest = Span::Within { of: after, from: Bound::Excluded(after), until: None };
                let mut ends = Vec::new();
                let (conditions, values) = self.conditions(&rest)?;
                let text = self.columns.every_step(&format!("{}{conditions}", self.pairs));
                self.read(conn, &text, &values, |row| {
                    ends.push(read_key(&self.counter, row, 0)?);
                    Ok(true)
                })?;
                plan.insert(Plan::new(&self.columns, after, ends)?)
            }
        };
        Ok(plan.end(after, keys).cloned())
    }

    /// The sums of the first keys of some stretches, at most `limit`. Keeps `limit` keys of a parent.
    fn recounts(&self, conn: &Connection, spans: &[Span<'_>], limit: usize) -> Result<Vec<Recount>> {
        let mut done = Vec::new();
        for span in spans {
            if done.len() >= limit {
                break;
            }
            let (mut parent, mut sums) = (None, BTreeMap::new());
            self.read_pairs(conn, span, |key, product| {
                let its_parent = self.columns.parent_of(&key)?;
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
        }
        Ok(done)
    }

    /// Whether nothing is summed at any key.
    pub(super) fn is_empty(&self, conn: &Connection) -> Result<bool> {
        let mut empty = true;
        self.read(conn, &format!("SELECT 1 FROM {} LIMIT 1", self.pairs), &[], |_| {
            empty = false;
            Ok(false)
        })?;
        Ok(empty)
    }

    /// Adds to the sum of a key; of more keys than there is room for, the last goes.
    fn add(&self, sums: &mut BTreeMap<KeyBuf, Sum>, key: KeyBuf, product: i128, room: usize) -> Result<()> {
        if sums.len() >= room && sums.last_key_value().is_some_and(|(last, _)| key > *last) {
            return Ok(());
        }
        let overflow = Error::overflow(&self.counter, &key, "recount");
        let sum = sums.entry(key).or_default();
        *sum = (sum.0.checked_add(product).ok_or(overflow)?, sum.1 + 1);
        if sums.len() > room {
            sums.pop_last();
        }
        Ok(())
    }

    /// The sums of some keys; those without pairs are left out.
    pub(super) fn recount(&self, conn: &Connection, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        let mut totals = BTreeMap::new();
        for group in self.columns.by_parent(keys)? {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let most = MAX_LOOK_UPS / group.len() as u64;
            if group.len() > 1 && self.has_more_children(conn, first, most)? {
                let span = Span::Within { of: first, from: Bound::Included(first), until: Some(last) };
                self.sum_into(conn, &span, &group, &mut totals)?;
                continue;
            }
            for key in group {
                let span = Span::Within { of: key, from: Bound::Included(key), until: Some(key) };
                self.sum_into(conn, &span, &[key], &mut totals)?;
            }
        }
        Ok(totals)
    }

    /// Whether the parent of a key has more memberships than so many.
    fn has_more_children(&self, conn: &Connection, key: &KeyBuf, most: u64) -> Result<bool> {
        let of_parent = Span::Within { of: key, from: Bound::Unbounded, until: None };
        let (conditions, mut values) = self.conditions(&of_parent)?;
        values.push(Value::Integer(i64::try_from(most).unwrap_or(i64::MAX)));
        let (memberships, offset) = (&self.memberships, values.len());
        let mut more = false;
        self.read(conn, &format!("SELECT 1 FROM {memberships}{conditions} LIMIT 1 OFFSET ?{offset}"), &values, |_| {
            more = true;
            Ok(false)
        })?;
        Ok(more)
    }

    /// Sums the pairs of a stretch that are of some keys, in key order.
    fn sum_into(
        &self,
        conn: &Connection,
        span: &Span<'_>,
        keys: &[&KeyBuf],
        totals: &mut BTreeMap<KeyBuf, i64>,
    ) -> Result<()> {
        let mut sums: BTreeMap<KeyBuf, Option<i128>> = BTreeMap::new();
        self.read_pairs(conn, span, |key, product| {
            if keys.binary_search(&&key).is_ok() {
                let sum = sums.entry(key).or_insert(Some(0));
                *sum = sum.and_then(|sum| sum.checked_add(product));
            }
            Ok(true)
        })?;
        for (key, sum) in sums {
            let total = sum.and_then(|sum| i64::try_from(sum).ok());
            let total = total.ok_or_else(|| Error::overflow(&self.counter, &key, "recount"))?;
            totals.insert(key, total);
        }
        Ok(())
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

    fn conditions<'k>(&self, span: &Span<'k>) -> Result<(String, Vec<Value<'k>>)> {
        let mut values = Vec::new();
        let (parents, suffixes) = self.columns.conditions(span, &mut values)?;
        Ok((parents + &suffixes, values))
    }

    /// Calls `each` with every pair's key and product, by parent, until it says no.
    fn read_pairs(
        &self,
        conn: &Connection,
        span: &Span<'_>,
        mut each: impl FnMut(KeyBuf, i128) -> Result<bool>,
    ) -> Result<()> {
        let (conditions, values) = self.conditions(span)?;
        let keys = &self.columns;
        let columns =
            keys.parent.iter().chain(&keys.suffix).map(String::as_str).chain([r#"l."total""#, r#"f."total""#]);
        let columns = columns.collect::<Vec<_>>().join(", ");
        let order = match span {
            Span::Parents { .. } if !keys.parent.is_empty() => format!(" ORDER BY {}", keys.parent.join(", ")),
            _ => String::new(),
        };
        let at = keys.parent.len() + keys.suffix.len();
        self.read(conn, &format!("SELECT {columns} FROM {}{conditions}{order}", self.pairs), &values, |row| {
            let failed = |error| failed_on("recounting", &self.counter, error);
            let total = |at: usize| row.get::<_, i64>(at).map(i128::from).map_err(failed);
            each(read_key(&self.counter, row, 0)?, total(at)? * total(at + 1)?)
        })
    }

    /// Calls `each` with every row until it says no.
    fn read(
        &self,
        conn: &Connection,
        text: &str,
        values: &[Value<'_>],
        mut each: impl FnMut(&Row<'_>) -> Result<bool>,
    ) -> Result<()> {
        let failed = |error| failed_on("recounting", &self.counter, error);
        let mut statement = conn.prepare_cached(text).map_err(failed)?;
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if !each(row)? {
                break;
            }
        }
        Ok(())
    }
}
