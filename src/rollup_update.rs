//! What a batch means for rollups: asks for the totals it needs, and adds what climbs. No I/O; every store answers it alike.

use std::collections::VecDeque;
use std::ops::Range;

use crate::batch::Batch;
use crate::counter::{CounterId, Rollup};
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::range::KeyRange;
use crate::schema::Schema;
use crate::sql::{self, Dialect, Statement};

/// Carries a batch up to the rollups that its counters feed.
///
/// A rollup is the sum over its memberships of membership times base total. A batch that changes some of both changes it, for each child, by
/// `(membership + d membership) (base + d base) - membership base`; so the totals from before the batch are asked for: of each child whose base total
/// changes all memberships, of each child with a membership that changes the base totals. What comes out for one level is the base level's change
/// for the next. Asks one range a child and level; memory for one batch.
///
/// Stores do this by themselves. An application that runs the statements through a library of its own drives it, in the transaction that
/// writes the rows and under its lock:
///
/// # Examples
///
/// ```
/// use keepcount::sql::Dialect;
/// use keepcount::{Batch, Counter, KeyBuf, RollupUpdate, Schema};
///
/// const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
/// const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
/// const SCHEMA: Schema = Schema::new(&[SETLIST_VOTES.table(), SETLIST_SHOW.table(), SHOW_VOTES.table()]);
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
    /// The caller's deltas, and those that have climbed.
    batch: Batch,
    /// The rollups that are not asked for yet, bottom-up: those of one level along one membership together.
    groups: VecDeque<Group>,
    asks: VecDeque<Pending>,
    /// What was asked last, in the order of children.
    asked: Vec<Pending>,
    /// What the answers are multiplied by, child by child.
    factors: Vec<Factor>,
}

/// Totals that a climb needs to know: all of this range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalsRequest {
    /// The counter.
    pub counter: CounterId,
    /// The range of its keys: all of one child.
    pub range: KeyRange,
    /// The child's lock: of its memberships, for rollups of this level.
    pub(crate) membership: CounterId,
    pub(crate) level: usize,
    pub(crate) child: KeyBuf,
    /// How many parts the child has.
    pub(crate) child_parts: usize,
}

impl TotalsRequest {
    /// The question as SQL: the key's columns and the total, in key order.
    ///
    /// # Errors
    ///
    /// As [`sql::range`].
    pub fn query(&self, dialect: Dialect, schema: &Schema) -> Result<sql::Query<'_>> {
        sql::range(dialect, schema.spec(&self.counter)?, &self.range, usize::MAX)
    }

    /// What is to be run before the question in PostgreSQL: it holds the child until the transaction ends, so that neither its memberships nor its totals
    /// change meanwhile. None in SQLite, where the whole database is held.
    #[must_use]
    pub fn lock(&self, dialect: Dialect) -> Option<sql::Query<'_>> {
        let child = std::borrow::Cow::Borrowed(self.child.as_bytes());
        (dialect == Dialect::Postgres).then(|| sql::lock(&self.membership.full_name(), self.level, vec![child]))
    }
}

/// The rollups of one level along one membership.
#[derive(Debug)]
struct Group {
    level: usize,
    membership: CounterId,
    rollups: Vec<(CounterId, &'static Rollup)>,
}

/// A question, and what each total of its answer is multiplied by.
#[derive(Debug)]
struct Pending {
    request: TotalsRequest,
    side: Side,
    /// Some of `RollupUpdate::factors`.
    factors: Range<usize>,
}

/// A change of the other side of a rollup than the one that is asked for.
#[derive(Debug)]
struct Factor {
    child: KeyBuf,
    /// What the totals are that it is multiplied by.
    side: Side,
    /// The counter to ask; all changes of one child that need the same answer are neighbours.
    asked: CounterId,
    rollup: CounterId,
    /// What is behind the child in the key that changed: the suffix of a base key, or a membership's parent.
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
    /// Begins with what the application's hooks have collected.
    ///
    /// # Errors
    ///
    /// As [`Schema::check_batch`].
    pub fn new(schema: &'l Schema, batch: &Batch) -> Result<Self> {
        schema.check_batch(batch)?;
        Ok(Self::of(schema, batch.clone()))
    }

    /// As [`new`](Self::new), also with what a repair adds to a rollup.
    pub(crate) fn of(schema: &'l Schema, batch: Batch) -> Self {
        let groups = groups(schema, &batch);
        Self { schema, batch, groups, asks: VecDeque::new(), asked: Vec::new(), factors: Vec::new() }
    }

    /// The next question: answer it by [`take`](Self::take) before the one after. None when there is nothing left to ask.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] when a rollup's delta leaves 128 bits on the way.
    #[allow(clippy::should_implement_trait)] // its answers are given in between, and it can fail
    pub fn next(&mut self) -> Result<Option<TotalsRequest>> {
        let begun = self.begin()?;
        self.asked = if begun { self.asks.pop_front().into_iter().collect() } else { Vec::new() };
        Ok(self.asked.first().map(|ask| ask.request.clone()))
    }

    /// As [`next`](Self::next), all questions that can be asked together: of one level and one membership, in the order of children.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn next_all(&mut self) -> Result<Vec<TotalsRequest>> {
        self.begin()?;
        self.asked = std::mem::take(&mut self.asks).into();
        Ok(self.asked.iter().map(|ask| ask.request.clone()).collect())
    }

    /// Begins groups until there is something to ask; false where nothing is.
    fn begin(&mut self) -> Result<bool> {
        while self.asks.is_empty() {
            let Some(group) = self.groups.pop_front() else { return Ok(false) };
            self.begin_group(&group)?;
        }
        Ok(true)
    }

    /// Takes one total of the answer to the last question.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] when a rollup's delta leaves 128 bits on the way, [`Error::Key`] when the key is none of the question's counter.
    pub fn take(&mut self, key: &KeyBuf, total: i64) -> Result<()> {
        let Some(counter) = self.asked.first().map(|ask| ask.request.counter) else { return Ok(()) };
        self.take_of(&counter, key, total)
    }

    /// Takes one total of the answer to one of the last questions, which was about this counter.
    pub(crate) fn take_of(&mut self, counter: &CounterId, key: &KeyBuf, total: i64) -> Result<()> {
        let Some(first) = self.asked.first() else { return Ok(()) };
        let (child, rest) = split(counter, key, first.request.child_parts)?;
        let from = self.asked.partition_point(|ask| ask.request.child < child);
        let of_child = self.asked.iter().skip(from).take_while(|ask| ask.request.child == child);
        let Some(ask) = of_child.into_iter().find(|ask| ask.request.counter.same(counter)) else { return Ok(()) };
        for factor in self.factors.get(ask.factors.clone()).unwrap_or_default() {
            let (parent, suffix) =
                if ask.side == Side::Memberships { (&rest, &factor.rest) } else { (&factor.rest, &rest) };
            let delta = i128::from(total).checked_mul(factor.delta);
            add_to_rollup(&mut self.batch, factor.rollup, parent, suffix, delta)?;
        }
        Ok(())
    }

    /// Climbs to the end with totals that `read` gives, all of a question's range: for a store of your own, which then writes the
    /// batch that comes out.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), [`next`](Self::next) and [`take`](Self::take), and what `read` says.
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

    /// The statements of the batch and of what has climbed, for the end of the transaction.
    ///
    /// # Errors
    ///
    /// As [`sql::apply`].
    pub fn statements(&self, dialect: Dialect) -> Result<Vec<Statement<'_>>> {
        sql::check_text_alone(self.schema, &self.batch)?;
        sql::statements(dialect, self.schema, &self.batch, false)
    }

    /// The caller's deltas, and those that have climbed.
    pub(crate) const fn batch(&self) -> &Batch {
        &self.batch
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }

    /// Collects what is to be asked for some rollups: for several of them, a child's memberships are asked once.
    fn begin_group(&mut self, group: &Group) -> Result<()> {
        let Some((_, first)) = group.rollups.first() else { return Ok(()) };
        self.factors.clear();
        self.collect(first, &group.rollups)?;
        self.ask(first.child_parts(), group);
        Ok(())
    }

    /// Finds what the batch changes of the group's memberships and base totals; where it changes both of one child, adds the product.
    fn collect(&mut self, first: &Rollup, group: &[(CounterId, &'static Rollup)]) -> Result<()> {
        let (membership, parts) = (first.membership(), first.child_parts());
        for (counter, key, delta) in self.batch.deltas() {
            let is_membership = counter.same(&membership);
            for (rollup, of) in group.iter().filter(|(_, of)| is_membership || of.base().same(&counter)) {
                let (child, rest) = split(&counter, key, parts)?;
                let (side, asked) =
                    if is_membership { (Side::Base, of.base()) } else { (Side::Memberships, membership) };
                self.factors.push(Factor { child, side, asked, rollup: *rollup, rest, delta });
            }
        }
        let order = |factor: &Factor| (factor.side == Side::Base, factor.asked.name_hash(), factor.asked.version());
        self.factors.sort_unstable_by(|a, b| a.child.cmp(&b.child).then_with(|| order(a).cmp(&order(b))));
        if self.factors.iter().all(|factor| factor.side == Side::Memberships) {
            return Ok(());
        }
        for of_child in self.factors.chunk_by(|a, b| a.child == b.child) {
            let (base, memberships) =
                of_child.split_at(of_child.partition_point(|factor| factor.side == Side::Memberships));
            for (base, membership) in
                base.iter().flat_map(|base| memberships.iter().map(move |membership| (base, membership)))
            {
                if base.rollup.same(&membership.rollup) {
                    let delta = membership.delta.checked_mul(base.delta);
                    add_to_rollup(&mut self.batch, membership.rollup, &membership.rest, &base.rest, delta)?;
                }
            }
        }
        Ok(())
    }

    /// One question for each child and counter.
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
    // A rollup stands behind what it sums.
    let mut reached: Vec<CounterId> = batch.counters().iter().map(|counter| **counter).collect();
    for spec in schema.counters() {
        let Some(rollup) = spec.rollup() else { continue };
        let (base, membership, level) = (rollup.base(), rollup.membership(), rollup.level());
        if !reached.iter().any(|id| id.same(&base) || id.same(&membership)) {
            continue;
        }
        reached.push(spec.id());
        match groups.iter_mut().find(|group| group.level == level && group.membership.same(&membership)) {
            Some(group) => group.rollups.push((spec.id(), rollup)),
            None => groups.push(Group { level, membership, rollups: vec![(spec.id(), rollup)] }),
        }
    }
    // By names: an older process has the same order, whatever its schema lists between.
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

/// The most that climbs from one child to one key at once: a batch's 2^32 entries of it stay within 128 bits, and so are refused, if they must
/// be, for what they add up to.
const MAX_PRODUCT: u128 = 1 << 94;

/// A key's first parts, a child say, and what is behind them.
pub(crate) fn split(counter: &CounterId, key: &KeyBuf, child_parts: usize) -> Result<(KeyBuf, KeyBuf)> {
    let malformed = || Error::key(counter, key, crate::KeyError::Malformed);
    let bytes = key.as_bytes();
    let at = counter.parts().prefix_len(bytes, child_parts).ok_or_else(malformed)?;
    let (child, rest) = bytes.split_at_checked(at).ok_or_else(malformed)?;
    Ok((KeyBuf::from_bytes(child), KeyBuf::from_bytes(rest)))
}

/// A counter of the batch that feeds a rollup, and the rollup.
pub(crate) fn first_fed(schema: &Schema, batch: &Batch) -> Option<(CounterId, CounterId)> {
    batch.counters().iter().find_map(|counter| {
        let rollup = schema.rollups_of(counter).next()?;
        Some((**counter, rollup.id()))
    })
}

/// Climbs with totals that `read` gives: all of a question's, each to the closure. The batch alone where it feeds no rollup.
pub(crate) fn expand(
    schema: &Schema,
    batch: Batch,
    mut read: impl FnMut(&TotalsRequest, &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()>,
) -> Result<Batch> {
    if schema.is_plain() || first_fed(schema, &batch).is_none() {
        return Ok(batch);
    }
    let mut update = RollupUpdate::of(schema, batch);
    while let Some(request) = update.next()? {
        read(&request, &mut |key, total| update.take(key, total))?;
    }
    Ok(update.into_batch())
}

/// As [`update`], for a repair: where a rollup has no room for what climbs, nothing does. It then differs from what it sums, as it did, and is repaired
/// on its own level. `total` reads one total.
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
