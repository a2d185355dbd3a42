//! The truth of a rollup in PostgreSQL: the stored totals that it sums, joined with their memberships, in the rollup's key order.

use std::collections::BTreeMap;
use std::ops::Bound;

use tokio_postgres::{GenericClient, Row};

use super::row_source::{by_key, key_arrays, read_sum};
use crate::counter::{CounterId, Rollup};
use crate::drivers::tokio_postgres::Postgres;
use crate::engine::failed_on;
use crate::engine::rows::read_key;
use crate::error::Result;
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageRequest, Recount};
use crate::reconcile::rollup_join::RollupJoin;
use crate::reconcile::spans::{KeyColumns, MAX_LOOK_UPS, Plan, Span, bound};
use crate::reconcile::statements::of_each_key;
use crate::schema::Schema;
use crate::sql::{Dialect, Query, Value};

/// One rollup's sums over pairs of membership and base total.
pub(super) struct RollupSource {
    counter: CounterId,
    columns: KeyColumns,
    memberships: String,
    bases: String,
    /// That both are of one child.
    joins: String,
}

const SUMS: &str = r#"count(*), sum(l."total"::numeric * f."total")::text"#;

impl RollupSource {
    pub(super) fn of(schema: &Schema, counter: CounterId, rollup: &Rollup) -> Result<Self> {
        let RollupJoin { membership, base, joins, parent, suffix } = RollupJoin::of(schema, rollup)?;
        let joins: Vec<String> = joins.iter().map(|join| format!(" AND {join}")).collect();
        let (memberships, bases) =
            (format!(r#""{}" AS l"#, membership.table_name()), format!(r#""{}" AS f"#, base.table_name()));
        let columns = KeyColumns { dialect: Dialect::Postgres, counter, parent, suffix };
        Ok(Self { counter, columns, memberships, bases, joins: joins.concat() })
    }

    /// Whether a page's keys are sorted within each parent, of which the index gives the order.
    pub(super) const fn has_suffix(&self) -> bool {
        !self.columns.suffix.is_empty()
    }

    /// The sums of the next page, and where it ends, if that is planned. What it reads of a parent at each child ends where the page does: at its last stored total, where that is the same
    /// parent's; else where `plan` says.
    pub(super) async fn page<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        plan: &mut Option<Plan>,
        ask: &PageRequest,
        totals: &[(KeyBuf, i64)],
    ) -> Result<(Vec<Recount>, Option<KeyBuf>)> {
        let until = bound(ask, totals);
        let end = match &ask.after {
            Some(after) => self.planned(session, plan, (after, until), ask.keys).await?,
            None => None,
        };
        let until = until.into_iter().chain(&end).chain(&ask.until).min();
        let spans = self.columns.spans(ask.after.as_ref(), until)?;
        let limit = ask.keys.saturating_add(1);
        let mut recounts: Vec<Recount> = Vec::new();
        for span in &spans {
            if recounts.len() < limit {
                recounts.extend(self.sums(session, span, limit - recounts.len(), |_| true).await?);
            }
        }
        if recounts.len() > ask.keys && matches!(spans.first(), Some(Span::Within { until: None, .. })) {
            // More has come than was planned for.
            *plan = None;
        }
        Ok((recounts, end))
    }

    /// Where a page ends in the parent that it begins in, if no stored total says it.
    async fn planned<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        plan: &mut Option<Plan>,
        (after, until): (&KeyBuf, Option<&KeyBuf>),
        keys: usize,
    ) -> Result<Option<KeyBuf>> {
        let bounded = until.map_or(Ok(false), |until| self.columns.is_same_parent(after, until))?;
        if bounded || !self.has_suffix() {
            return Ok(None);
        }
        let plan = match plan {
            Some(plan) if plan.is_of(&self.columns, after)? => plan,
            plan => {
                let rest = Span::Within { of: after, from: Bound::Excluded(after), until: None };
                let (pairs, values) = self.pairs(&rest, usize::MAX)?;
                let query = Query::new(self.columns.every_step(&pairs), values);
                let failed = |error| failed_on("planning pages", &self.counter, error);
                let ends = session.read(&query, failed, |row| read_key(&self.counter, row, 0).map(Some)).await?;
                plan.insert(Plan::new(&self.columns, after, ends)?)
            }
        };
        Ok(plan.end(after, keys).cloned())
    }

    /// The pairs of a stretch, of each child the first `limit`: what is behind FROM, and its parameters.
    ///
    /// With a suffix, a child's totals are a query of their own, so that no plan reads all of them from the other end.
    fn pairs<'k>(&self, span: &Span<'k>, limit: usize) -> Result<(String, Vec<Value<'k>>)> {
        let mut values = Vec::new();
        let (parents, suffixes) = self.columns.conditions(span, &mut values)?;
        let Self { memberships, bases, joins, .. } = self;
        if !self.has_suffix() {
            let pairs = format!(r#"{memberships}, {bases} WHERE l."total" <> 0 AND f."total" <> 0{joins}{parents}"#);
            return Ok((pairs, values));
        }
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let (suffix, limit) = (self.columns.suffix.join(", "), Dialect::Postgres.param(values.len()));
        let of_child = format!(
            r#"SELECT {suffix}, f."total" FROM {bases} WHERE f."total" <> 0{joins}{suffixes} ORDER BY {suffix} LIMIT {limit}"#
        );
        let pairs = format!(r#"{memberships}, LATERAL ({of_child}) AS f WHERE l."total" <> 0{parents}"#);
        Ok((pairs, values))
    }

    /// The first sums of a stretch, of keys that are wanted.
    async fn sums<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        span: &Span<'_>,
        limit: usize,
        wanted: impl Fn(&KeyBuf) -> bool,
    ) -> Result<Vec<Recount>> {
        let (pairs, mut values) = self.pairs(span, limit)?;
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        let (listed, at) = (self.columns.listed(), Dialect::Postgres.param(values.len()));
        let text = if listed.is_empty() {
            format!("SELECT {SUMS} FROM {pairs} LIMIT {at}")
        } else {
            format!("SELECT {listed}, {SUMS} FROM {pairs} GROUP BY {listed} ORDER BY {listed} LIMIT {at}")
        };
        let failed = |error| failed_on("recounting", &self.counter, error);
        let read = |row: &Row| {
            let key = read_key(&self.counter, row, 0)?;
            if wanted(&key) { read_sum(&self.counter, row, true) } else { Ok(None) }
        };
        session.read(&Query::new(text, values), failed, read).await
    }

    /// Whether nothing is summed at any key.
    pub(super) async fn is_empty<C: GenericClient + Send + Sync>(&self, session: &Postgres<'_, C>) -> Result<bool> {
        let (pairs, values) = self.pairs(&Span::Parents { after: None, until: None, through: true }, 1)?;
        let query = Query::new(format!("SELECT 1 FROM {pairs} LIMIT 1"), values);
        let any = session.query(&query).await;
        Ok(any.map_err(|error| failed_on("looking for totals", &self.counter, error))?.is_empty())
    }

    /// The sums of these keys; those without pairs are left out.
    pub(super) async fn recount<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        keys: &[KeyBuf],
    ) -> Result<BTreeMap<KeyBuf, i64>> {
        let (mut alone, mut sums) = (Vec::new(), Vec::new());
        for group in self.columns.by_parent(keys)? {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let most = MAX_LOOK_UPS / group.len() as u64;
            if group.len() == 1 || !self.has_more_children(session, first, most).await? {
                alone.extend(group.into_iter().cloned());
                continue;
            }
            let span = Span::Within { of: first, from: Bound::Included(first), until: Some(last) };
            sums.extend(self.sums(session, &span, usize::MAX, |key| group.binary_search(&key).is_ok()).await?);
        }
        let mut totals: BTreeMap<KeyBuf, i64> = sums.into_iter().map(|sum| (sum.key, sum.total)).collect();
        if !alone.is_empty() {
            totals.extend(self.each(session, &alone).await?);
        }
        Ok(totals)
    }

    /// Whether the parent of a key has more memberships than so many.
    async fn has_more_children<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        key: &KeyBuf,
        most: u64,
    ) -> Result<bool> {
        let mut values = Vec::new();
        let of_parent = Span::Within { of: key, from: Bound::Unbounded, until: None };
        let (parents, _) = self.columns.conditions(&of_parent, &mut values)?;
        values.push(Value::Integer(i64::try_from(most).unwrap_or(i64::MAX)));
        let (memberships, at) = (&self.memberships, Dialect::Postgres.param(values.len()));
        let text = format!(r#"SELECT 1 FROM {memberships} WHERE l."total" <> 0{parents} OFFSET {at} LIMIT 1"#);
        let more = session.query(&Query::new(text, values)).await;
        Ok(!more.map_err(|error| failed_on("recounting", &self.counter, error))?.is_empty())
    }

    /// The sums of these keys, each looked up at every child of its parent, in one statement.
    async fn each<C: GenericClient + Send + Sync>(
        &self,
        session: &Postgres<'_, C>,
        keys: &[KeyBuf],
    ) -> Result<BTreeMap<KeyBuf, i64>> {
        let Self { memberships, bases, joins, .. } = self;
        let columns = self.columns.parent.iter().chain(&self.columns.suffix);
        let same: Vec<String> = columns.zip(1..).map(|(column, at)| format!(" AND {column} = k.k_{at}")).collect();
        let sums = format!(
            r#"SELECT {SUMS} FROM {memberships}, {bases} WHERE l."total" <> 0 AND f."total" <> 0{joins}{}"#,
            same.concat()
        );
        let parts = self.counter.parts();
        let text = if parts.is_empty() { sums } else { of_each_key(parts, "k.*, o.*", &sums) };
        let query = Query::new(text, key_arrays(&self.counter, keys)?);
        let rows = session.query(&query).await.map_err(|error| failed_on("recounting", &self.counter, error))?;
        by_key(rows.iter().map(|row| read_sum(&self.counter, row, true)))
    }
}
