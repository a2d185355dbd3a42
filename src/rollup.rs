//! What a batch means for rollups: asks for the totals it needs, and adds what climbs. No I/O; every store answers it alike.

use std::collections::VecDeque;
use std::ops::Range;

use crate::batch::Batch;
use crate::counter::{Def, Rollup};
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::layout::Layout;
use crate::range::KeyRange;
use crate::sql::{self, Dialect, Statement};

/// Carries a batch up to the rollups that its counters feed.
///
/// A rollup is the sum over its links of link times finer total. A batch that changes some of both changes it, for each child, by
/// `(link + d link) (finer + d finer) - link finer`; so the totals from before the batch are asked for: of each child whose finer total
/// changes all links, of each child with a link that changes the finer totals. What comes out for one level is the finer level's change
/// for the next. Asks one range a child and level; memory for one batch.
///
/// Stores do this by themselves. An application that runs the statements through a library of its own drives it, in the transaction that
/// writes the rows and under its lock:
///
/// # Examples
///
/// ```
/// use keepcount::sql::Dialect;
/// use keepcount::{Batch, Climb, Counter, KeyBuf, Layout};
///
/// const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
/// const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
/// const LAYOUT: Layout = Layout::new(&[SETLIST_VOTES.table(), SETLIST_SHOW.table(), SHOW_VOTES.table()]);
///
/// let mut batch = Batch::new();
/// batch.add(SETLIST_VOTES, 1, 3);
/// let mut climb = Climb::new(&LAYOUT, &batch)?;
/// while let Some(question) = climb.next()? {
///     // Run `question.query(..)`, and give every row that it returns:
///     climb.take(&KeyBuf::of::<(i64, i64)>((1_i64, 70_i64)), 1)?;
/// }
/// assert_eq!(climb.statements(Dialect::Sqlite)?.len(), 2); // setlist.votes and show.votes
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct Climb<'l> {
    layout: &'l Layout,
    /// The caller's deltas, and those that have climbed.
    batch: Batch,
    /// The rollups that are not asked for yet, bottom-up: those of one level along one link together.
    groups: VecDeque<Group>,
    asks: VecDeque<Ask>,
    /// What was asked last, in the order of children.
    asked: Vec<Ask>,
    /// What the answers are multiplied by, child by child.
    factors: Vec<Factor>,
}

/// Totals that a climb needs to know: all of this range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The counter.
    pub counter: Def,
    /// The range of its keys: all of one child.
    pub range: KeyRange,
    /// The child's lock: of its links, for rollups of this level.
    pub(crate) link: Def,
    pub(crate) level: usize,
    pub(crate) child: KeyBuf,
    /// How many parts the child has.
    pub(crate) child_parts: usize,
}

impl Question {
    /// The question as SQL: the key's columns and the total, in key order.
    ///
    /// # Errors
    ///
    /// As [`sql::range`].
    pub fn query(&self, dialect: Dialect, layout: &Layout) -> Result<sql::Query<'_>> {
        sql::range(dialect, layout.placed(&self.counter)?, &self.range, usize::MAX)
    }

    /// What is to be run before the question in PostgreSQL: it holds the child until the transaction ends, so that neither its links nor its totals
    /// change meanwhile. None in SQLite, where the whole database is held.
    #[must_use]
    pub fn lock(&self, dialect: Dialect) -> Option<sql::Query<'_>> {
        let child = std::borrow::Cow::Borrowed(self.child.as_bytes());
        (dialect == Dialect::Postgres).then(|| sql::lock(&self.link.full_name(), self.level, vec![child]))
    }
}

/// The rollups of one level along one link.
#[derive(Debug)]
struct Group {
    level: usize,
    link: Def,
    rollups: Vec<(Def, &'static Rollup)>,
}

/// A question, and what each total of its answer is multiplied by.
#[derive(Debug)]
struct Ask {
    question: Question,
    side: Side,
    /// Some of `Climb::factors`.
    factors: Range<usize>,
}

/// A change of the other side of a rollup than the one that is asked for.
#[derive(Debug)]
struct Factor {
    child: KeyBuf,
    /// What the totals are that it is multiplied by.
    side: Side,
    /// The counter to ask; all changes of one child that need the same answer are neighbours.
    asked: Def,
    rollup: Def,
    /// What is behind the child in the key that changed: the tail of a finer key, or a link's parent.
    rest: KeyBuf,
    delta: i128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The child's links, to be multiplied by changes of its finer totals.
    Links,
    /// The child's finer totals, to be multiplied by changes of its links.
    Finer,
}

impl<'l> Climb<'l> {
    /// Begins with what the application's hooks have collected.
    ///
    /// # Errors
    ///
    /// As [`Layout::check_batch`].
    pub fn new(layout: &'l Layout, batch: &Batch) -> Result<Self> {
        layout.check_batch(batch)?;
        Ok(Self::of(layout, batch.clone()))
    }

    /// As [`new`](Self::new), also with what a mend adds to a rollup.
    pub(crate) fn of(layout: &'l Layout, batch: Batch) -> Self {
        let groups = groups(layout, &batch);
        Self { layout, batch, groups, asks: VecDeque::new(), asked: Vec::new(), factors: Vec::new() }
    }

    /// The next question: answer it by [`take`](Self::take) before the one after. None when there is nothing left to ask.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] when a rollup's delta leaves 128 bits on the way.
    #[allow(clippy::should_implement_trait)] // its answers are given in between, and it can fail
    pub fn next(&mut self) -> Result<Option<Question>> {
        let begun = self.begin()?;
        self.asked = if begun { self.asks.pop_front().into_iter().collect() } else { Vec::new() };
        Ok(self.asked.first().map(|ask| ask.question.clone()))
    }

    /// As [`next`](Self::next), all questions that can be asked together: of one level and one link, in the order of children.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn next_all(&mut self) -> Result<Vec<Question>> {
        self.begin()?;
        self.asked = std::mem::take(&mut self.asks).into();
        Ok(self.asked.iter().map(|ask| ask.question.clone()).collect())
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
        let Some(counter) = self.asked.first().map(|ask| ask.question.counter) else { return Ok(()) };
        self.take_of(&counter, key, total)
    }

    /// Takes one total of the answer to one of the last questions, which was about this counter.
    pub(crate) fn take_of(&mut self, counter: &Def, key: &KeyBuf, total: i64) -> Result<()> {
        let Some(first) = self.asked.first() else { return Ok(()) };
        let (child, rest) = split(counter, key, first.question.child_parts)?;
        let from = self.asked.partition_point(|ask| ask.question.child < child);
        let of_child = self.asked.iter().skip(from).take_while(|ask| ask.question.child == child);
        let Some(ask) = of_child.into_iter().find(|ask| ask.question.counter.same(counter)) else { return Ok(()) };
        for factor in self.factors.get(ask.factors.clone()).unwrap_or_default() {
            let (parent, tail) = if ask.side == Side::Links { (&rest, &factor.rest) } else { (&factor.rest, &rest) };
            let delta = i128::from(total).checked_mul(factor.delta);
            climb_to(&mut self.batch, factor.rollup, parent, tail, delta)?;
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
        layout: &Layout,
        batch: &Batch,
        mut read: impl FnMut(&Question) -> Result<Vec<(KeyBuf, i64)>>,
    ) -> Result<Batch> {
        layout.check_batch(batch)?;
        climb(layout, batch.clone(), |question, each| {
            read(question)?.iter().try_for_each(|(key, total)| each(key, *total))
        })
    }

    /// The statements of the batch and of what has climbed, for the end of the transaction.
    ///
    /// # Errors
    ///
    /// As [`sql::apply`].
    pub fn statements(&self, dialect: Dialect) -> Result<Vec<Statement<'_>>> {
        sql::check_text_alone(self.layout, &self.batch)?;
        sql::statements(dialect, self.layout, &self.batch, false)
    }

    /// The caller's deltas, and those that have climbed.
    pub(crate) const fn batch(&self) -> &Batch {
        &self.batch
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }

    /// Collects what is to be asked for some rollups: for several of them, a child's links are asked once.
    fn begin_group(&mut self, group: &Group) -> Result<()> {
        let Some((_, first)) = group.rollups.first() else { return Ok(()) };
        self.factors.clear();
        self.collect(first, &group.rollups)?;
        self.ask(first.child_parts(), group);
        Ok(())
    }

    /// Finds what the batch changes of the group's links and finer totals; where it changes both of one child, adds the product.
    fn collect(&mut self, first: &Rollup, group: &[(Def, &'static Rollup)]) -> Result<()> {
        let (link, parts) = (first.link(), first.child_parts());
        for (counter, key, delta) in self.batch.deltas() {
            let is_link = counter.same(&link);
            for (rollup, of) in group.iter().filter(|(_, of)| is_link || of.finer().same(&counter)) {
                let (child, rest) = split(&counter, key, parts)?;
                let (side, asked) = if is_link { (Side::Finer, of.finer()) } else { (Side::Links, link) };
                self.factors.push(Factor { child, side, asked, rollup: *rollup, rest, delta });
            }
        }
        let order = |factor: &Factor| (factor.side == Side::Finer, factor.asked.id(), factor.asked.version());
        self.factors.sort_unstable_by(|one, two| one.child.cmp(&two.child).then_with(|| order(one).cmp(&order(two))));
        if self.factors.iter().all(|factor| factor.side == Side::Links) {
            return Ok(());
        }
        for of_child in self.factors.chunk_by(|one, two| one.child == two.child) {
            let (finer, links) = of_child.split_at(of_child.partition_point(|factor| factor.side == Side::Links));
            for (finer, link) in finer.iter().flat_map(|finer| links.iter().map(move |link| (finer, link))) {
                if finer.rollup.same(&link.rollup) {
                    let delta = link.delta.checked_mul(finer.delta);
                    climb_to(&mut self.batch, link.rollup, &link.rest, &finer.rest, delta)?;
                }
            }
        }
        Ok(())
    }

    /// One question for each child and counter.
    fn ask(&mut self, child_parts: usize, group: &Group) {
        let mut start = 0;
        let alike = |one: &Factor, two: &Factor| one.asked.same(&two.asked) && one.child == two.child;
        for run in self.factors.chunk_by(alike) {
            let factors = start..start + run.len();
            start = factors.end;
            if let Some(Factor { child, side, asked, .. }) = run.first() {
                let (range, level) = (KeyRange::under(child.clone()), group.level);
                let question =
                    Question { counter: *asked, range, link: group.link, level, child: child.clone(), child_parts };
                self.asks.push_back(Ask { question, side: *side, factors });
            }
        }
    }
}

/// The rollups that a batch may change, by level and link.
fn groups(layout: &Layout, batch: &Batch) -> VecDeque<Group> {
    let mut groups: Vec<Group> = Vec::new();
    // A rollup stands behind what it sums.
    let mut reached: Vec<Def> = batch.counters().iter().map(|counter| **counter).collect();
    for placed in layout.counters() {
        let Some(rollup) = placed.rollup() else { continue };
        let (finer, link, level) = (rollup.finer(), rollup.link(), rollup.level());
        if !reached.iter().any(|def| def.same(&finer) || def.same(&link)) {
            continue;
        }
        reached.push(placed.def());
        match groups.iter_mut().find(|group| group.level == level && group.link.same(&link)) {
            Some(group) => group.rollups.push((placed.def(), rollup)),
            None => groups.push(Group { level, link, rollups: vec![(placed.def(), rollup)] }),
        }
    }
    // By names: an older process has the same order, whatever its layout lists between.
    groups.sort_by_key(|group| (group.level, group.link.order()));
    groups.into()
}

/// Adds to a rollup's delta at (parent, tail).
fn climb_to(batch: &mut Batch, rollup: Def, parent: &KeyBuf, tail: &KeyBuf, delta: Option<i128>) -> Result<()> {
    let mut key = parent.clone();
    key.push(tail.as_bytes());
    match delta.filter(|delta| delta.unsigned_abs() <= CLIMB_MOST) {
        Some(delta) => {
            batch.add_raw(rollup, &mut key, delta);
            Ok(())
        }
        None => Err(Error::overflow(&rollup, &key, "delta")),
    }
}

/// The most that climbs from one child to one key at once: a batch's 2^32 entries of it stay within 128 bits, and so are refused, if they must
/// be, for what they add up to.
const CLIMB_MOST: u128 = 1 << 94;

/// A key's first parts, a child say, and what is behind them.
pub(crate) fn split(counter: &Def, key: &KeyBuf, child_parts: usize) -> Result<(KeyBuf, KeyBuf)> {
    let malformed = || Error::key(counter, key, crate::KeyError::Malformed);
    let bytes = key.as_bytes();
    let at = counter.parts().head_len(bytes, child_parts).ok_or_else(malformed)?;
    let (child, rest) = bytes.split_at_checked(at).ok_or_else(malformed)?;
    Ok((KeyBuf::from_bytes(child), KeyBuf::from_bytes(rest)))
}

/// A counter of the batch that feeds a rollup, and the rollup.
pub(crate) fn first_fed(layout: &Layout, batch: &Batch) -> Option<(Def, Def)> {
    batch.counters().iter().find_map(|counter| {
        let rollup = layout.rollups_of(counter).next()?;
        Some((**counter, rollup.def()))
    })
}

/// Climbs with totals that `read` gives: all of a question's, each to the closure. The batch alone where it feeds no rollup.
pub(crate) fn climb(
    layout: &Layout,
    batch: Batch,
    mut read: impl FnMut(&Question, &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()>,
) -> Result<Batch> {
    if layout.is_plain() || first_fed(layout, &batch).is_none() {
        return Ok(batch);
    }
    let mut climb = Climb::of(layout, batch);
    while let Some(question) = climb.next()? {
        read(&question, &mut |key, total| climb.take(key, total))?;
    }
    Ok(climb.into_batch())
}

/// As [`climb`], for a mend: where a rollup has no room for what climbs, nothing does. It then differs from what it sums, as it did, and is mended
/// on its own level. `total` reads one total.
pub(crate) fn climb_where_room(
    layout: &Layout,
    batch: Batch,
    read: impl FnMut(&Question, &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()>,
    mut total: impl FnMut(Def, &KeyBuf) -> Result<i64>,
) -> Result<Batch> {
    let climbed = match climb(layout, batch.clone(), read) {
        Err(Error::Overflow { .. }) => return Ok(batch),
        climbed => climbed?,
    };
    for (counter, key, delta) in climbed.deltas().skip(batch.len()) {
        if !has_room(total(counter, key)?, delta) {
            return Ok(batch);
        }
    }
    Ok(climbed)
}

/// Whether a total stays within 64 bits.
pub(crate) fn has_room(total: i64, delta: i128) -> bool {
    delta.checked_add(total.into()).is_some_and(|sum| i64::try_from(sum).is_ok())
}
