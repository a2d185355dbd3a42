//! Recounts a rollup: the stored totals that it sums, joined with their memberships, in the order
//! of the rollup's keys.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::rollup_spans::{KeyColumns, MAX_LOOK_UPS, Plan, Span, bound};
use super::rollup_tables::RollupJoin;
use super::source_statements::of_each_key;
use crate::counter::{CounterId, Rollup};
use crate::engine::rows::read_key;
use crate::engine::{failed_on, read};
use crate::error::{Error, Result};
use crate::executor::{Column, Executor, Row, Stopped};
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageRequest, Recount};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Query, Value};

/// One rollup's pairs of membership and base total: each with the rollup's key, and by parent.
///
/// PostgreSQL sums the pairs of each key. SQLite returns them, since its products and sums would
/// leave 64 bits; they come by parent, and only the keys of one parent are in memory.
pub(super) struct RollupSource {
    dialect: Dialect,
    counter: CounterId,
    columns: KeyColumns,
    memberships: String,
    bases: String,
    /// The conditions that both are of one child.
    joins: String,
}

/// How many pairs there are, and their sum, in PostgreSQL.
const SUMS: &str = r#"count(*), sum(l."total"::numeric * f."total")::text"#;

/// A key, what some of its pairs add up to, and how many they are.
type Part = (KeyBuf, i128, u64);

impl RollupSource {
    pub(super) fn of(
        schema: &Schema,
        dialect: Dialect,
        counter: CounterId,
        rollup: &Rollup,
    ) -> Result<Self> {
        let RollupJoin { membership, base, joins, parent, suffix } =
            RollupJoin::of(schema, rollup)?;
        let by_parent = match dialect {
            // So that no pair is sorted.
            Dialect::Sqlite => format!(r#" INDEXED BY "{}""#, sql::by_parent(membership)),
            Dialect::Postgres => String::new(),
        };
        Ok(Self {
            dialect,
            counter,
            columns: KeyColumns { dialect, counter, parent, suffix },
            memberships: format!(r#""{}" AS l{by_parent}"#, membership.table_name()),
            bases: format!(r#""{}" AS f"#, base.table_name()),
            joins: joins.iter().flat_map(|join| [" AND ", join]).collect(),
        })
    }

    const fn has_suffix(&self) -> bool {
        !self.columns.suffix.is_empty()
    }

    /// The sums of the next page, and where it ends, if that is planned. What it reads of a parent
    /// at each child ends where the page does: at its last stored total, if that is of the same
    /// parent; else where `plan` says.
    pub(super) async fn page<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        plan: &mut Option<Plan>,
        ask: &PageRequest,
        totals: &[(KeyBuf, i64)],
    ) -> Result<(Vec<Recount>, Option<KeyBuf>)> {
        let until = bound(ask, totals);
        let end = match &ask.after {
            Some(after) => self.planned(executor, plan, (after, until), ask.keys).await?,
            None => None,
        };
        let until = until.into_iter().chain(&end).chain(&ask.until).min();
        let spans = self.columns.spans(ask.after.as_ref(), until)?;
        let mut sums = PageSums::of(self, ask.keys.saturating_add(1));
        for span in &spans {
            if sums.has_room() {
                let query = self.parts(span, sums.room())?;
                self.scan(executor, &query, &mut |part| sums.add(part)).await?;
                sums.end_parent()?;
            }
        }
        if sums.done.len() > ask.keys
            && matches!(spans.first(), Some(Span::Within { until: None, .. }))
        {
            // There was more than was planned for.
            *plan = None;
        }
        Ok((sums.done, end))
    }

    /// Where a page ends in the parent that it begins in, if no stored total says it.
    async fn planned<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        plan: &mut Option<Plan>,
        (after, until): (&KeyBuf, Option<&KeyBuf>),
        keys: usize,
    ) -> Result<Option<KeyBuf>> {
        let is_bounded =
            until.map_or(Ok(false), |until| self.columns.is_same_parent(after, until))?;
        if is_bounded || !self.has_suffix() {
            return Ok(None);
        }
        let plan = match plan {
            Some(plan) if plan.is_of(&self.columns, after)? => plan,
            plan => {
                let rest = Span::Within { of: after, from: Bound::Excluded(after), until: None };
                let (pairs, values) = self.pairs(&rest, usize::MAX)?;
                let (query, mut ends) =
                    ([Query::new(self.columns.every_step(&pairs), values)], Vec::new());
                let read = executor
                    .fetch(&query, &mut |_, row| {
                        ends.push(read_key(&self.counter, row, 0)?);
                        Ok(())
                    })
                    .await;
                read.map_err(|stopped| self.failed("planning pages", stopped))?;
                plan.insert(Plan::new(&self.columns, after, ends)?)
            }
        };
        Ok(plan.end(after, keys).cloned())
    }

    /// The pairs of a span, in PostgreSQL the first `limit` of each child: what follows FROM, and
    /// its parameters.
    ///
    /// With a suffix, PostgreSQL reads a child's totals by a query of their own, so that no plan
    /// reads all of them from the other end.
    fn pairs<'k>(&self, span: &Span<'k>, limit: usize) -> Result<(String, Vec<Value<'k>>)> {
        let mut values = Vec::new();
        let (parents, suffixes) = self.columns.conditions(span, &mut values)?;
        let Self { memberships, bases, joins, .. } = self;
        let pairs = match self.dialect {
            Dialect::Sqlite => format!(
                r#"{memberships} CROSS JOIN {bases} WHERE l."total" <> 0 AND f."total" <> 0{joins}{parents}{suffixes}"#
            ),
            Dialect::Postgres if self.has_suffix() => {
                values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
                let (suffix, limit) =
                    (self.columns.suffix.join(", "), self.dialect.param(values.len()));
                let of_child = format!(
                    r#"SELECT {suffix}, f."total" FROM {bases} WHERE f."total" <> 0{joins}{suffixes} ORDER BY {suffix} LIMIT {limit}"#
                );
                format!(r#"{memberships}, LATERAL ({of_child}) AS f WHERE l."total" <> 0{parents}"#)
            }
            Dialect::Postgres => {
                format!(
                    r#"{memberships}, {bases} WHERE l."total" <> 0 AND f."total" <> 0{joins}{parents}"#
                )
            }
        };
        Ok((pairs, values))
    }

    /// The query of the parts of a span's sums, by parent; in PostgreSQL of its first `limit` keys.
    fn parts<'k>(&self, span: &Span<'k>, limit: usize) -> Result<Query<'k>> {
        let (pairs, mut values) = self.pairs(span, limit)?;
        let columns = self.part_columns();
        if self.dialect == Dialect::Sqlite {
            let order = match span {
                Span::Parents { .. } if !self.columns.parent.is_empty() => {
                    format!(" ORDER BY {}", self.columns.parent.join(", "))
                }
                _ => String::new(),
            };
            return Ok(Query::new(format!("SELECT {columns} FROM {pairs}{order}"), values));
        }
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let (listed, at) = (self.columns.listed(), self.dialect.param(values.len()));
        let group = if listed.is_empty() {
            String::new()
        } else {
            format!(" GROUP BY {listed} ORDER BY {listed}")
        };
        Ok(Query::new(format!("SELECT {columns} FROM {pairs}{group} LIMIT {at}"), values).bounded())
    }

    /// The columns of a part: the key, and one pair's totals, or how many pairs and their sum.
    fn part_columns(&self) -> String {
        let sums = match self.dialect {
            Dialect::Sqlite => r#"l."total", f."total""#,
            Dialect::Postgres => SUMS,
        };
        let listed = self.columns.listed();
        if listed.is_empty() { sums.to_owned() } else { format!("{listed}, {sums}") }
    }

    /// Reads a part; `None` if it has no pairs, as a sum without key columns may.
    fn part(&self, row: &dyn Row) -> Result<Option<Part>> {
        let at = self.counter.parts().len();
        let foreign =
            || Error::source(&self.counter, None, "a total that it sums is not an integer");
        let (sum, pairs) = match (self.dialect, row.column(at), row.column(at + 1)) {
            (Dialect::Sqlite, Column::Integer(membership), Column::Integer(base)) => {
                (i128::from(membership) * i128::from(base), 1)
            }
            (Dialect::Postgres, Column::Integer(0), _) => return Ok(None),
            (Dialect::Postgres, Column::Integer(pairs), Column::Text(sum)) => {
                let key = || read_key(&self.counter, row, 0);
                let sum = sum
                    .parse()
                    .or_else(|_| Err(Error::overflow(&self.counter, &key()?, "recount")))?;
                (sum, pairs.unsigned_abs())
            }
            _ => return Err(foreign()),
        };
        Ok(Some((read_key(&self.counter, row, 0)?, sum, pairs)))
    }

    /// Calls `each` with every part, until it says no.
    async fn scan<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        query: &Query<'_>,
        mut each: impl FnMut(Part) -> Result<bool> + Send,
    ) -> Result<()> {
        let read =
            executor.scan(query, &mut |row| self.part(row)?.map_or(Ok(true), &mut each)).await;
        read.map_err(|stopped| self.failed("recounting", stopped))
    }

    /// Whether nothing is summed at any key.
    pub(super) async fn is_empty<E: Executor + ?Sized>(&self, executor: &mut E) -> Result<bool> {
        let (pairs, values) =
            self.pairs(&Span::Parents { after: None, until: None, through: true }, 1)?;
        let any =
            read::any(executor, &Query::new(format!("SELECT 1 FROM {pairs} LIMIT 1"), values))
                .await;
        Ok(!any.map_err(|stopped| self.failed("looking for totals", stopped))?)
    }

    /// The sums of these keys; those without pairs are left out.
    pub(super) async fn recount<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        keys: &[KeyBuf],
    ) -> Result<BTreeMap<KeyBuf, i64>> {
        let (mut alone, mut sums) = (Vec::new(), BTreeMap::new());
        for group in self.columns.by_parent(keys)? {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let most = MAX_LOOK_UPS / group.len() as u64;
            if group.len() == 1 || !self.has_more_children(executor, first, most).await? {
                alone.extend(group.into_iter().cloned());
                continue;
            }
            let span = Span::Within { of: first, from: Bound::Included(first), until: Some(last) };
            let query = self.parts(&span, usize::MAX)?;
            self.scan(executor, &query, |part| {
                if group.binary_search(&&part.0).is_ok() {
                    self.add(&mut sums, part)?;
                }
                Ok(true)
            })
            .await?;
        }
        if !alone.is_empty() {
            let query = self.parts_of(&alone)?;
            let add = |part| self.add(&mut sums, part).map(|()| true);
            self.scan(executor, &query, add).await?;
        }
        sums.into_iter()
            .map(|(key, sum)| self.total(key, sum).map(|sum| (sum.key, sum.total)))
            .collect()
    }

    /// The query of the parts of these keys, each looked up at every child of its parent.
    fn parts_of<'k>(&self, keys: &'k [KeyBuf]) -> Result<Query<'k>> {
        let Self { memberships, bases, joins, dialect, .. } = self;
        let columns = self.columns.parent.iter().chain(&self.columns.suffix).zip(1..);
        let is_key = |value: &dyn Fn(usize) -> String| -> String {
            let terms =
                columns.clone().map(|(column, at)| format!(" AND {column} = {}", value(at)));
            terms.collect::<Vec<_>>().concat()
        };
        let from = |tables: &str, key: &str| {
            format!(r#"FROM {tables} WHERE l."total" <> 0 AND f."total" <> 0{joins}{key}"#)
        };
        let (parts, width) = (self.counter.parts(), self.counter.parts().len());
        let text = match dialect {
            Dialect::Sqlite => {
                let from = from(
                    &format!("{memberships} CROSS JOIN {bases}"),
                    &is_key(&|at| dialect.param(at)),
                );
                format!("SELECT {} {from}", self.part_columns())
            }
            Dialect::Postgres => {
                let sums = format!(
                    "SELECT {SUMS} {}",
                    from(&format!("{memberships}, {bases}"), &is_key(&|at| format!("k.k_{at}")))
                );
                if width == 0 { sums } else { of_each_key(parts, "k.*, o.*", &sums) }
            }
        };
        if width == 0 {
            return Ok(Query::new(text, Vec::new()).bounded());
        }
        Ok(sql::of_rows(*dialect, text, sql::key_rows(*dialect, &self.counter, keys)?, width)
            .bounded())
    }

    /// Whether the parent of a key has more memberships than so many.
    async fn has_more_children<E: Executor + ?Sized>(
        &self,
        executor: &mut E,
        key: &KeyBuf,
        most: u64,
    ) -> Result<bool> {
        let mut values = Vec::new();
        let of_parent = Span::Within { of: key, from: Bound::Unbounded, until: None };
        let (parents, _) = self.columns.conditions(&of_parent, &mut values)?;
        values.push(Value::Integer(i64::try_from(most).unwrap_or(i64::MAX)));
        let (memberships, at) = (&self.memberships, self.dialect.param(values.len()));
        let text = format!(
            r#"SELECT 1 FROM {memberships} WHERE l."total" <> 0{parents} LIMIT 1 OFFSET {at}"#
        );
        let any = read::any(executor, &Query::new(text, values)).await;
        any.map_err(|stopped| self.failed("recounting", stopped))
    }

    fn add(&self, sums: &mut BTreeMap<KeyBuf, Sum>, (key, product, pairs): Part) -> Result<()> {
        let overflow = Error::overflow(&self.counter, &key, "recount");
        let sum = sums.entry(key).or_default();
        *sum = (sum.0.checked_add(product).ok_or(overflow)?, sum.1 + pairs);
        Ok(())
    }

    fn total(&self, key: KeyBuf, (sum, rows): Sum) -> Result<Recount> {
        let total =
            i64::try_from(sum).map_err(|_| Error::overflow(&self.counter, &key, "recount"))?;
        Ok(Recount { key, total, rows })
    }

    fn failed(&self, what: &str, stopped: Stopped) -> Error {
        stopped.or(|_, error| failed_on(what, &self.counter, error))
    }
}

/// What the pairs of one key add up to, and how many they are.
type Sum = (i128, u64);

/// The sums of a page, from parts that come by parent: at most `limit`, in key order.
struct PageSums<'s> {
    source: &'s RollupSource,
    limit: usize,
    parent: Option<KeyBuf>,
    /// Of the keys of one parent, the first for which there is room.
    sums: BTreeMap<KeyBuf, Sum>,
    done: Vec<Recount>,
}

impl<'s> PageSums<'s> {
    const fn of(source: &'s RollupSource, limit: usize) -> Self {
        Self { source, limit, parent: None, sums: BTreeMap::new(), done: Vec::new() }
    }

    const fn room(&self) -> usize {
        self.limit.saturating_sub(self.done.len())
    }

    const fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Adds a part to its key's sum; returns whether more are wanted. If there are more keys than
    /// there is room for, the last goes.
    fn add(&mut self, part: Part) -> Result<bool> {
        let its_parent = self.source.columns.parent_of(&part.0)?;
        if self.parent.as_ref() != Some(&its_parent) {
            self.end_parent()?;
            self.parent = Some(its_parent);
            if !self.has_room() {
                return Ok(false);
            }
        }
        let room = self.room();
        if self.sums.len() >= room
            && self.sums.last_key_value().is_some_and(|(last, _)| part.0 > *last)
        {
            return Ok(true);
        }
        self.source.add(&mut self.sums, part)?;
        if self.sums.len() > room {
            self.sums.pop_last();
        }
        Ok(true)
    }

    /// Moves the keys of a parent, which are all known now, to those that are done.
    fn end_parent(&mut self) -> Result<()> {
        self.parent = None;
        for (key, sum) in std::mem::take(&mut self.sums) {
            if self.has_room() {
                self.done.push(self.source.total(key, sum)?);
            }
        }
        Ok(())
    }
}
