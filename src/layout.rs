//! The registry: which counters an application has, and where their totals live.

use crate::board::BoardDef;
use crate::counter::{Def, FNV_OFFSET, Placed, Rollup, fnv1a};
use crate::error::{Error, Result};

/// All counters of an application, as one `const`.
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, Layout};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SHOW_SETLISTS: Counter<i64> = Counter::new("show.setlists");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table(), SHOW_SETLISTS.table()]);
/// assert_eq!(LAYOUT.counters().len(), 2);
/// ```
///
/// Two counters that would share a name, a name's hash or a table do not compile:
///
/// ```compile_fail
/// # use keepcount::{Counter, Layout};
/// const ONE: Counter<i64> = Counter::new("show.votes");
/// const TWO: Counter<i64> = Counter::new("show_votes");
/// const LAYOUT: Layout = Layout::new(&[ONE.table(), TWO.table()]);
/// ```
///
/// A rollup stands behind what it sums, so that two that sum each other cannot be listed at all:
///
/// ```compile_fail
/// # use keepcount::{Counter, Layout};
/// const LINK: Counter<(i64, i64)> = Counter::new("a.b");
/// const A: Counter<i64> = Counter::new("a").sum_of(Counter::<i64>::new("b"), LINK);
/// const B: Counter<i64> = Counter::new("b").sum_of(A, LINK);
/// const LAYOUT: Layout = Layout::new(&[LINK.table(), A.table(), B.table()]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    placed: &'static [Placed],
    boards: &'static [BoardDef],
    /// Whether any counter is a rollup, or prunable.
    plain: bool,
}

impl Layout {
    /// A layout of these counters; writes go in this order, reports in the order of names. Order them as the
    /// application's transactions reach them.
    ///
    /// # Panics
    ///
    /// When two counters share a name, a name's hash or a table, or a table's name is reserved (`keepcount_..`,
    /// `sqlite_..`, `pg_..`), or there are more than 4,096; when what a rollup sums does not stand before it, its link is itself a rollup,
    /// or prunable totals are summed without their time. In a `const`, where layouts belong, that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn new(placed: &'static [Placed]) -> Self {
        assert!(placed.len() <= 4096, "a layout has at most 4,096 counters");
        let (mut one, mut plain) = (0, true);
        while one < placed.len() {
            let name = placed[one].def().name().as_bytes();
            assert!(!is_reserved(name), "a counter's table may not start with keepcount_, sqlite_ or pg_");
            if let Some(rollup) = placed[one].rollup() {
                plain = false;
                let (before, _) = placed.split_at(one);
                check_rollup(before, rollup, placed[one].is_prunable());
            }
            plain = plain && !placed[one].is_prunable();
            let mut two = one + 1;
            while two < placed.len() {
                let other = placed[two].def();
                assert!(placed[one].def().id() != other.id(), "two counters of a layout share a name or a name's hash");
                assert!(
                    !folds_alike(name, other.name().as_bytes()),
                    "two counters of a layout share a table: their names differ in dots and underscores only"
                );
                two += 1;
            }
            one += 1;
        }
        Self { placed, boards: &[], plain }
    }

    /// The same layout with boards: SQL stores keep them in tables, in the transaction that changes their counters.
    ///
    /// # Panics
    ///
    /// When a board's table is another's, or a counter of it is not in the layout; in a `const` that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn boards(mut self, boards: &'static [BoardDef]) -> Self {
        let mut at = 0;
        while at < boards.len() {
            let board = &boards[at];
            let name = board.name().as_bytes();
            assert!(!is_reserved(name), "a board's table may not start with keepcount_, sqlite_ or pg_");
            let mut other = 0;
            while other < self.placed.len() {
                let taken = self.placed[other].def().name().as_bytes();
                assert!(!folds_alike(name, taken), "a board and a counter of a layout share a table");
                let index = folds_to_prefix(taken, name) && folds_alike(taken.split_at(name.len()).1, b"_order");
                assert!(!index, "a counter's table has the name of a board's index");
                other += 1;
            }
            other = at + 1;
            while other < boards.len() {
                assert!(!folds_alike(name, boards[other].name().as_bytes()), "two boards of a layout share a table");
                other += 1;
            }
            other = 0;
            while other < board.counters().len() {
                assert!(listed(self.placed, &board.counters()[other]), "a board's counter is not in the layout");
                other += 1;
            }
            at += 1;
        }
        self.boards = boards;
        self
    }

    /// The boards that SQL stores keep.
    #[must_use]
    pub const fn board_defs(&self) -> &'static [BoardDef] {
        self.boards
    }

    /// Whether no counter is a rollup or prunable: then a batch is what is written.
    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    /// The counter's place.
    ///
    /// # Errors
    ///
    /// As [`position`](Self::position).
    pub fn placed(&self, def: &Def) -> Result<&'static Placed> {
        let at = self.position(def)?;
        self.placed.get(at).ok_or_else(|| self.absent(def))
    }

    /// The rollups that this counter feeds, as what is summed or as the link.
    pub fn rollups_of<'a>(&'a self, def: &'a Def) -> impl Iterator<Item = &'static Placed> + 'a {
        self.placed
            .iter()
            .filter(|placed| placed.rollup().is_some_and(|rollup| rollup.finer().same(def) || rollup.link().same(def)))
    }

    /// Where a counter is the link of a rollup: how many parts of its key are the child.
    pub(crate) fn child_parts(&self, def: &Def) -> Option<usize> {
        let links = self.placed.iter().filter_map(Placed::rollup).filter(|rollup| rollup.link().same(def));
        links.map(Rollup::child_parts).next()
    }

    /// These counters and all that they sum, links included, down to those that rows drive; each once.
    ///
    /// # Errors
    ///
    /// As [`position`](Self::position).
    pub(crate) fn with_finer(&self, counters: &[Def]) -> Result<Vec<Def>> {
        let mut all: Vec<Def> = Vec::with_capacity(counters.len());
        let mut queue = counters.to_vec();
        while let Some(counter) = queue.pop() {
            if !all.iter().any(|known| known.same(&counter)) {
                queue.extend(
                    self.placed(&counter)?.rollup().into_iter().flat_map(|rollup| [rollup.finer(), rollup.link()]),
                );
                all.push(counter);
            }
        }
        Ok(all)
    }

    /// How many levels of rollups are below a counter: 0 for one that rows drive.
    #[must_use]
    pub fn level(&self, def: &Def) -> usize {
        let mut level = 0;
        let mut def = *def;
        while let Some(rollup) = self.placed.iter().find(|placed| placed.def().same(&def)).and_then(Placed::rollup) {
            level += 1;
            def = rollup.finer();
        }
        level
    }

    /// The counters and their places, in the order of writing.
    #[must_use]
    pub const fn counters(&self) -> &'static [Placed] {
        self.placed
    }

    /// The counters in the order of their names: the order of runs and reports.
    #[must_use]
    pub fn by_name(&self) -> Vec<Def> {
        let mut defs: Vec<Def> = self.placed.iter().map(Placed::def).collect();
        defs.sort_unstable_by_key(Def::name);
        defs
    }

    /// The counter of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when there is none.
    pub fn find(&self, name: &str) -> Result<Def> {
        let found = self.placed.iter().find(|placed| placed.def().name() == name);
        found.map(Placed::def).ok_or_else(|| Error::UnknownCounter { counter: name.to_owned() })
    }

    /// The position of a counter in [`counters`](Self::counters).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when the layout has no counter of this name, [`Error::Conflict`] when it has it with
    /// another key or version.
    #[inline]
    pub fn position(&self, def: &Def) -> Result<usize> {
        let found = self.placed.iter().position(|placed| placed.def().same(def));
        found.ok_or_else(|| self.absent(def))
    }

    #[cold]
    fn absent(&self, def: &Def) -> Error {
        match self.placed.iter().find(|placed| placed.def().id() == def.id()) {
            Some(placed) => Error::Conflict {
                counter: def.name(),
                found: format!("{def:?}"),
                wanted: format!("{:?}", placed.def()),
            },
            None => Error::UnknownCounter { counter: def.name().to_owned() },
        }
    }

    /// A hash of every counter's name, key, version and place, in the order of names: tokens carry it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut lines: Vec<String> =
            self.placed.iter().map(|placed| format!("{:?} {}\n", placed.def(), placed.place())).collect();
        lines.sort_unstable();
        lines.iter().fold(FNV_OFFSET, |hash, line| fnv1a(hash, line.as_bytes()))
    }
}

#[allow(clippy::indexing_slicing)] // const fn: no iterators
const fn check_rollup(before: &[Placed], rollup: &Rollup, prunable: bool) {
    assert!(
        listed(before, &rollup.finer()) && listed(before, &rollup.link()),
        "what a rollup sums and its link stand before it in a layout; two that sum each other cannot be listed"
    );
    assert!(!rollup.finer().same(&rollup.link()), "a link is not what is summed along it");
    let mut at = 0;
    while at < before.len() {
        let placed = &before[at];
        if placed.def().same(&rollup.link()) {
            assert!(placed.rollup().is_none(), "a link is tallied by rows; it is no rollup");
            assert!(!placed.is_prunable(), "a link is not prunable: what it joins would be lost");
        }
        if placed.def().same(&rollup.finer()) {
            assert!(
                placed.is_prunable() == prunable && (rollup.keeps_tail() || !prunable),
                "a rollup is prunable exactly where what it sums is, and keeps its time (sum_of_tail)"
            );
        }
        at += 1;
    }
}

#[allow(clippy::indexing_slicing)] // const fn: no iterators
const fn listed(placed: &[Placed], def: &Def) -> bool {
    let mut at = 0;
    while at < placed.len() {
        if placed[at].def().same(def) {
            return true;
        }
        at += 1;
    }
    false
}

const fn is_reserved(name: &[u8]) -> bool {
    folds_to_prefix(name, b"keepcount_") || folds_to_prefix(name, b"sqlite_") || folds_to_prefix(name, b"pg_")
}

const fn folds_alike(one: &[u8], two: &[u8]) -> bool {
    one.len() == two.len() && folds_to_prefix(one, two)
}

/// Whether `name`, with underscores for dots, starts with `prefix`, folded alike.
#[allow(clippy::indexing_slicing)] // const fn: no iterators
const fn folds_to_prefix(name: &[u8], prefix: &[u8]) -> bool {
    if name.len() < prefix.len() {
        return false;
    }
    let mut at = 0;
    while at < prefix.len() {
        if fold(name[at]) != fold(prefix[at]) {
            return false;
        }
        at += 1;
    }
    true
}

const fn fold(byte: u8) -> u8 {
    if byte == b'.' { b'_' } else { byte }
}
