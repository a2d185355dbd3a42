//! The update of rollups for a batch: requests the totals it needs, and adds the rollups' deltas.
//!
//! It does no I/O, so it works the same for every store.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use crate::batch::Batch;
use crate::counter::key_range::KeyRange;
use crate::counter::{CounterId, Rollup};
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::observe;
use crate::schema::Schema;
use crate::sql::{self, Dialect, Statement};

/// Propagates a batch to the rollups that its counters feed.
///
/// A rollup is the sum over its memberships of membership times base total. For each child, a batch
/// changes it by `(membership + d membership) (base + d base) - membership base`. So it requests
/// the totals from before the batch: all memberships of each child whose base total changes, and
/// the base totals of each child with a membership that changes. The result for one level is the
/// change of the base for the next level. It requests one range for each child and level, and takes
/// memory for one batch.
///
/// Stores do this by themselves. If you run the statements through another library, drive it in the
/// transaction that writes the rows, under its lock:
///
/// # Examples
///
/// ```
/// use keepcount::sql::Dialect;
/// use keepcount::backend::RollupUpdate;
/// use keepcount::{Batch, KeyBuf};
///
/// keepcount::counters! {
///     SCHEMA {
///         SETLIST_VOTES: i64 = "setlist.votes";
///         SETLIST_SHOW: (i64, i64) = "setlist.show";
///         SHOW_VOTES: i64 = "show.votes".sum_of(SETLIST_VOTES, SETLIST_SHOW);
///     }
/// }
///
/// let mut batch = Batch::new();
/// batch.add(SETLIST_VOTES, 1, 3);
/// let mut update = RollupUpdate::new(&SCHEMA, &batch)?;
/// while let Some(request) = update.next()? {
///     // Run `request.query(..)`, and give every row that it returns:
///     update.take(&KeyBuf::of::<(i64, i64)>((1_i64, 70_i64)), 1)?;
/// }
/// assert_eq!(update.statements(Dialect::Sqlite)?.len(), 2); // setlist.votes and show.votes
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct RollupUpdate<'l> {
    schema: &'l Schema,
    /// The caller's deltas, and the rollups' deltas so far.
    batch: Batch,
    /// The rollups whose totals are not requested yet, bottom-up. Those of one level along one
    /// membership are together.
    groups: VecDeque<Group>,
    asks: VecDeque<Pending>,
    /// The last requests, in the order of children.
    asked: Vec<Pending>,
    /// The factors that the answers are multiplied by, child by child.
    factors: Vec<Factor>,
}

/// Totals that a rollup update needs: all those in this range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalsRequest {
    /// The counter.
    pub counter: CounterId,
    /// The range of its keys: all keys of one child.
    pub range: KeyRange,
    /// The child's lock: that of its memberships, for rollups of this level.
    pub(crate) membership: CounterId,
    pub(crate) level: usize,
    pub(crate) child: KeyBuf,
    /// The number of parts of the child.
    pub(crate) child_parts: usize,
}

impl TotalsRequest {
    /// The request as SQL. It returns the key's columns and the total, in key order.
    ///
    /// # Errors
    ///
    /// As [`sql::range`].
    pub fn query(&self, dialect: Dialect, schema: &Schema) -> Result<sql::Query<'_>> {
        sql::range(dialect, schema.spec(&self.counter)?, &self.range, usize::MAX)
    }

    /// The statement to run before the request in PostgreSQL; `None` in SQLite, where the whole
    /// database is locked.
    ///
    /// It locks the child until the transaction ends, so that neither its memberships nor its
    /// totals change meanwhile.
    #[must_use]
    pub fn lock(&self, dialect: Dialect) -> Option<sql::Query<'_>> {
        let child = std::borrow::Cow::Borrowed(self.child.as_bytes());
        (dialect == Dialect::Postgres)
            .then(|| sql::lock(&self.membership.full_name(), self.level, vec![child]))
    }
}

/// The rollups of one level along one membership.
#[derive(Debug)]
struct Group {
    level: usize,
    membership: CounterId,
    rollups: Vec<(CounterId, &'static Rollup)>,
}

/// A request, and the factors that each total of its answer is multiplied by.
#[derive(Debug)]
struct Pending {
    request: TotalsRequest,
    side: Side,
    /// A range of `RollupUpdate::factors`.
    factors: Range<usize>,
}

/// A change on the side of a rollup that is not requested.
#[derive(Debug)]
struct Factor {
    child: KeyBuf,
    /// The side of the totals that the change is multiplied by.
    side: Side,
    /// The counter to request. All changes of one child that need the same answer are neighbours.
    asked: CounterId,
    rollup: CounterId,
    /// The rest of the changed key after the child: the suffix of a base key, or a membership's
    /// parent.
    rest: KeyBuf,
    delta: i128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The child's memberships, to be multiplied by changes of its base totals.
    Memberships,
    /// The child's base totals, to be multiplied by changes of its memberships.
    Base,
}

impl<'l> RollupUpdate<'l> {
    /// Starts with the deltas that the application's hooks have collected.
    ///
    /// # Errors
    ///
    /// As [`Schema::check_batch`].
    pub fn new(schema: &'l Schema, batch: &Batch) -> Result<Self> {
        schema.check_batch(batch)?;
        Ok(Self::of(schema, batch.clone()))
    }

    /// Like [`new`](Self::new), but also accepts what a repair adds to a rollup.
    pub(crate) fn of(schema: &'l Schema, batch: Batch) -> Self {
        let groups = groups(schema, &batch);
        Self {
            schema,
            batch,
            groups,
            asks: VecDeque::new(),
            asked: Vec::new(),
            factors: Vec::new(),
        }
    }

    /// The next request; `None` when there are no more.
    ///
    /// Answer it with [`take`](Self::take) before you call this again.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if one product that a rollup's delta is summed from exceeds 2^94.
    #[allow(clippy::should_implement_trait)] // answers come in between, and it can fail
    pub fn next(&mut self) -> Result<Option<TotalsRequest>> {
        let begun = self.begin()?;
        self.asked = if begun { self.asks.pop_front().into_iter().collect() } else { Vec::new() };
        Ok(self.asked.first().map(|ask| ask.request.clone()))
    }

    /// Like [`next`](Self::next), for all requests that can be made together: those of one level
    /// and one membership, in the order of children.
    #[cfg(feature = "sql")]
    pub(crate) fn next_all(&mut self) -> Result<Vec<TotalsRequest>> {
        self.begin()?;
        self.asked = std::mem::take(&mut self.asks).into();
        Ok(self.asked.iter().map(|ask| ask.request.clone()).collect())
    }

    /// Begins groups until there is a request; returns false if there is none.
    fn begin(&mut self) -> Result<bool> {
        while self.asks.is_empty() {
            let Some(group) = self.groups.pop_front() else { return Ok(false) };
            self.begin_group(&group)?;
        }
        Ok(true)
    }

    /// Takes one total of the answer to the last request.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] if one product that a rollup's delta is summed from exceeds 2^94,
    /// [`Error::Key`] if the key does not belong to the requested counter.
    pub fn take(&mut self, key: &KeyBuf, total: i64) -> Result<()> {
        let Some(counter) = self.asked.first().map(|ask| ask.request.counter) else {
            return Ok(());
        };
        self.take_of(&counter, key, total)
    }

    /// Takes one total of the answer to one of the last requests, the one for this counter.
    pub(crate) fn take_of(&mut self, counter: &CounterId, key: &KeyBuf, total: i64) -> Result<()> {
        let Some(first) = self.asked.first() else { return Ok(()) };
        let (child, rest) = counter
            .split(key, first.request.child_parts)
            .map_err(|cause| Error::key(counter, key, cause))?;
        let from = self.asked.partition_point(|ask| ask.request.child < child);
        let of_child = self.asked.iter().skip(from).take_while(|ask| ask.request.child == child);
        let Some(ask) = of_child.into_iter().find(|ask| ask.request.counter.same(counter)) else {
            return Ok(());
        };
        for factor in self.factors.get(ask.factors.clone()).unwrap_or_default() {
            let (parent, suffix) = if ask.side == Side::Memberships {
                (&rest, &factor.rest)
            } else {
                (&factor.rest, &rest)
            };
            let delta = i128::from(total).checked_mul(factor.delta);
            add_to_rollup(&mut self.batch, factor.rollup, parent, suffix, delta)?;
        }
        Ok(())
    }

    /// Runs the update to its end with totals that `read` returns, all those in a request's range.
    ///
    /// For your own store, which then writes the returned batch.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), [`next`](Self::next) and [`take`](Self::take), and those of `read`.
    pub fn run(
        schema: &Schema,
        batch: &Batch,
        mut read: impl FnMut(&TotalsRequest) -> Result<Vec<(KeyBuf, i64)>>,
    ) -> Result<Batch> {
        schema.check_batch(batch)?;
        expand(schema, batch.clone(), |request, each| {
            read(request)?.iter().try_for_each(|(key, total)| each(key, *total))
        })
    }

    /// The statements of the batch and of the rollups' deltas, for the end of the transaction.
    ///
    /// # Errors
    ///
    /// As [`sql::apply`].
    pub fn statements(&self, dialect: Dialect) -> Result<Vec<Statement<'_>>> {
        sql::check_text_alone(self.schema, &self.batch)?;
        sql::statements(dialect, self.schema, &self.batch, false)
    }

    /// Reports that you ran the [statements](Self::statements) through another library, and the
    /// time they took, to [`observe`](crate::observe), as stores report theirs.
    ///
    /// Call it once after the last statement. Does nothing without the
    /// features `metrics` and `tracing`.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::backend::RollupUpdate;
    /// use keepcount::sql::Dialect;
    /// use keepcount::Batch;
    ///
    /// keepcount::counters! { SCHEMA { VOTES: i64 = "votes"; } }
    ///
    /// let mut batch = Batch::new();
    /// batch.add(VOTES, 1, 3);
    /// let began = std::time::Instant::now();
    /// let update = RollupUpdate::new(&SCHEMA, &batch)?;
    /// for statement in update.statements(Dialect::Postgres)? {
    ///     // Run it, once for each of its rows.
    /// }
    /// update.observe_applied(Dialect::Postgres, began.elapsed());
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn observe_applied(&self, dialect: Dialect, took: Duration) {
        let statements = || {
            self.statements(dialect).map_or(0, |all| all.iter().map(|one| one.rows().count()).sum())
        };
        observe::applied(dialect.backend(), took, &self.batch, statements);
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }

    /// Collects the requests of a group of rollups: a child's memberships are requested once for
    /// all of them.
    fn begin_group(&mut self, group: &Group) -> Result<()> {
        let Some((_, first)) = group.rollups.first() else { return Ok(()) };
        self.factors.clear();
        self.collect(first, &group.rollups)?;
        self.ask(first.child_parts(), group);
        Ok(())
    }

    /// Finds the batch's changes of the group's memberships and base totals. For a child with both,
    /// adds their product.
    fn collect(&mut self, first: &Rollup, group: &[(CounterId, &'static Rollup)]) -> Result<()> {
        let (membership, parts) = (first.membership(), first.child_parts());
        for (counter, key, delta) in self.batch.deltas() {
            let is_membership = counter.same(&membership);
            for (rollup, of) in
                group.iter().filter(|(_, of)| is_membership || of.base().same(&counter))
            {
                let (child, rest) =
                    counter.split(key, parts).map_err(|cause| Error::key(&counter, key, cause))?;
                let (side, asked) = if is_membership {
                    (Side::Base, of.base())
                } else {
                    (Side::Memberships, membership)
                };
                self.factors.push(Factor { child, side, asked, rollup: *rollup, rest, delta });
            }
        }
        let order = |factor: &Factor| {
            (factor.side == Side::Base, factor.asked.name_hash(), factor.asked.version())
        };
        self.factors
            .sort_unstable_by(|a, b| a.child.cmp(&b.child).then_with(|| order(a).cmp(&order(b))));
        if self.factors.iter().all(|factor| factor.side == Side::Memberships) {
            return Ok(());
        }
        for of_child in self.factors.chunk_by(|a, b| a.child == b.child) {
            let (base, memberships) = of_child
                .split_at(of_child.partition_point(|factor| factor.side == Side::Memberships));
            for (base, membership) in base
                .iter()
                .flat_map(|base| memberships.iter().map(move |membership| (base, membership)))
            {
                if base.rollup.same(&membership.rollup) {
                    let delta = membership.delta.checked_mul(base.delta);
                    add_to_rollup(
                        &mut self.batch,
                        membership.rollup,
                        &membership.rest,
                        &base.rest,
                        delta,
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Makes one request for each child and counter.
    fn ask(&mut self, child_parts: usize, group: &Group) {
        let mut start = 0;
        let alike = |a: &Factor, b: &Factor| a.asked.same(&b.asked) && a.child == b.child;
        for run in self.factors.chunk_by(alike) {
            let factors = start..start + run.len();
            start = factors.end;
            if let Some(Factor { child, side, asked, .. }) = run.first() {
                let (range, level) = (KeyRange::under(child.clone()), group.level);
                let request = TotalsRequest {
                    counter: *asked,
                    range,
                    membership: group.membership,
                    level,
                    child: child.clone(),
                    child_parts,
                };
                self.asks.push_back(Pending { request, side: *side, factors });
            }
        }
    }
}

/// The rollups that a batch may change, by level and membership.
fn groups(schema: &Schema, batch: &Batch) -> VecDeque<Group> {
    let mut groups: Vec<Group> = Vec::new();
    // A rollup comes after what it sums.
    let mut reached: Vec<CounterId> = batch.counters().iter().map(|counter| **counter).collect();
    for spec in schema.counters() {
        let Some(rollup) = spec.rollup() else { continue };
        let (base, membership, level) = (rollup.base(), rollup.membership(), rollup.level());
        if !reached.iter().any(|id| id.same(&base) || id.same(&membership)) {
            continue;
        }
        reached.push(spec.id());
        match groups
            .iter_mut()
            .find(|group| group.level == level && group.membership.same(&membership))
        {
            Some(group) => group.rollups.push((spec.id(), rollup)),
            None => groups.push(Group { level, membership, rollups: vec![(spec.id(), rollup)] }),
        }
    }
    // By names: an older process has the same order, whatever other counters its schema lists.
    groups.sort_by_key(|group| (group.level, group.membership.order()));
    groups.into()
}

/// Adds to a rollup's delta at (parent, suffix).
fn add_to_rollup(
    batch: &mut Batch,
    rollup: CounterId,
    parent: &KeyBuf,
    suffix: &KeyBuf,
    delta: Option<i128>,
) -> Result<()> {
    let mut key = parent.clone();
    key.push(suffix.as_bytes());
    match delta.filter(|delta| delta.unsigned_abs() <= MAX_PRODUCT) {
        Some(delta) => {
            batch.add_raw(rollup, &mut key, delta);
            Ok(())
        }
        None => Err(Error::overflow(&rollup, &key, "delta")),
    }
}

/// The maximum product that one child adds to one key at once. A batch's 2^32 entries of it stay
/// within 128 bits, so a batch is refused only for what its products add up to.
const MAX_PRODUCT: u128 = 1 << 94;

/// Runs the update with totals that `read` passes to the closure, all those of a request. Returns
/// the batch unchanged if it feeds no rollup.
pub(crate) fn expand(
    schema: &Schema,
    batch: Batch,
    mut read: impl FnMut(&TotalsRequest, &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()>,
) -> Result<Batch> {
    if schema.is_plain() || schema.first_fed(&batch).is_none() {
        return Ok(batch);
    }
    let mut update = RollupUpdate::of(schema, batch);
    while let Some(request) = update.next()? {
        read(&request, &mut |key, total| update.take(key, total))?;
    }
    Ok(update.into_batch())
}

/// Like [`expand`], for a repair: if a rollup has no room for its delta, returns the batch without
/// rollup deltas. That rollup then still differs from what it sums, and is repaired at its own
/// level. `total` reads one total.
pub(crate) fn update_where_room(
    schema: &Schema,
    batch: Batch,
    read: impl FnMut(&TotalsRequest, &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()>,
    mut total: impl FnMut(CounterId, &KeyBuf) -> Result<i64>,
) -> Result<Batch> {
    let expanded = match expand(schema, batch.clone(), read) {
        Err(Error::Overflow { .. }) => return Ok(batch),
        expanded => expanded?,
    };
    for (counter, key, delta) in expanded.deltas().skip(batch.len()) {
        if !has_room(total(counter, key)?, delta) {
            return Ok(batch);
        }
    }
    Ok(expanded)
}

/// Whether a total stays within 64 bits.
pub(crate) fn has_room(total: i64, delta: i128) -> bool {
    delta.checked_add(total.into()).is_some_and(|sum| i64::try_from(sum).is_ok())
}
