//! The registry: which counters an application has, and where their totals live.

use crate::batch::{Batch, Named};
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
/// Two counters that would share a name and version, a name's hash or a table do not compile:
///
/// ```compile_fail
/// # use keepcount::{Counter, Layout};
/// const ONE: Counter<i64> = Counter::new("show.votes");
/// const TWO: Counter<i64> = Counter::new("show_votes");
/// const LAYOUT: Layout = Layout::new(&[ONE.table(), TWO.table()]);
/// ```
///
/// Versions of one name stand side by side, each once, and none in the table of another counter:
///
/// ```compile_fail
/// # use keepcount::{Counter, Layout};
/// const VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[VOTES.table(), VOTES.version(2).table(), VOTES.version(2).table()]);
/// ```
///
/// ```compile_fail
/// # use keepcount::{Counter, Layout};
/// const VOTES: Counter<i64> = Counter::new("show.votes");
/// const OTHER: Counter<i64> = Counter::new("show.votes.v2");
/// const LAYOUT: Layout = Layout::new(&[VOTES.version(2).table(), OTHER.table()]);
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
///
/// Rollups are at most 64 levels high ([`Counter::sum_of`](crate::Counter::sum_of)).
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
    /// When two counters share a name and a version, a name's hash or a table, or a table's name is reserved (`keepcount_..`,
    /// `sqlite_..`, `pg_..`), or there are more than 4,096; when what a rollup sums does not stand before it, declared as the rollup has it, its link
    /// is itself a rollup, or prunable totals are summed without their time. In a `const`, where layouts belong, that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn new(placed: &'static [Placed]) -> Self {
        assert!(placed.len() <= COUNTERS_MOST, "a layout has at most 4,096 counters");
        let (mut names, mut tables) = (Index::new(), Index::new());
        let (mut one, mut plain) = (0, true);
        while one < placed.len() {
            let def = placed[one].def();
            let table = Table::of(&def);
            assert!(!table.is_reserved(), "a counter's table may not start with keepcount_, sqlite_ or pg_");
            if let Some(rollup) = placed[one].rollup() {
                plain = false;
                check_rollup(placed, &names, rollup, placed[one].is_prunable());
            }
            plain = plain && !placed[one].is_prunable();
            // Those of one hash alone are compared: a layout of a thousand counters would take the compiler minutes.
            let mut slot = Index::first(def.id());
            while let Some(other) = names.at(slot) {
                let other = placed[other].def();
                assert!(
                    def.id() != other.id() || is_same(def.name(), other.name()),
                    "two counters of a layout share a name's hash"
                );
                assert!(
                    def.id() != other.id() || def.version() != other.version(),
                    "two counters of a layout share a name and a version"
                );
                slot = Index::next(slot);
            }
            names.put(slot, one);
            slot = Index::first(table.hash());
            while let Some(other) = tables.at(slot) {
                assert!(
                    !table.is(Table::of(&placed[other].def())),
                    "two counters of a layout share a table: their names differ in dots, underscores and versions only"
                );
                slot = Index::next(slot);
            }
            tables.put(slot, one);
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
            let (table, index) = (Table::of_board(board, ""), Table::of_board(board, "_order"));
            assert!(!table.is_reserved(), "a board's table may not start with keepcount_, sqlite_ or pg_");
            let mut other = 0;
            while other < self.placed.len() {
                let taken = Table::of(&self.placed[other].def());
                assert!(!table.is(taken), "a board and a counter of a layout share a table");
                assert!(!index.is(taken), "a counter's table has the name of a board's index");
                other += 1;
            }
            other = 0;
            while other < boards.len() {
                let taken = Table::of_board(&boards[other], "");
                assert!(other == at || !table.is(taken), "two boards of a layout share a table");
                assert!(!index.is(taken), "a board's table has the name of another's index");
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

    /// These counters and all rollups above them; each once.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) fn with_fed(&self, mut all: Vec<Def>) -> Vec<Def> {
        // A rollup stands behind what it sums.
        for placed in self.placed {
            let fed = placed.rollup().is_some_and(|rollup| {
                all.iter().any(|known| known.same(&rollup.finer()) || known.same(&rollup.link()))
            });
            if fed && !all.iter().any(|known| known.same(&placed.def())) {
                all.push(placed.def());
            }
        }
        all
    }

    /// How many levels of rollups are below a counter: 0 for one that rows drive, at most 64.
    #[must_use]
    pub fn level(&self, def: &Def) -> usize {
        let placed = self.placed.iter().find(|placed| placed.def().same(def));
        placed.and_then(Placed::rollup).map_or(0, Rollup::level)
    }

    /// The counters and their places, in the order of writing.
    #[must_use]
    pub const fn counters(&self) -> &'static [Placed] {
        self.placed
    }

    /// The counters in the order of their names, versions of one name in theirs: the order of runs and reports.
    #[must_use]
    pub fn by_name(&self) -> Vec<Def> {
        let mut defs: Vec<Def> = self.placed.iter().map(Placed::def).collect();
        defs.sort_unstable_by_key(Def::order);
        defs
    }

    /// The counter of this [full name](Def::full_name), or else the highest version of this plain one.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when there is none.
    pub fn find(&self, name: &str) -> Result<Def> {
        let all = || self.placed.iter().map(Placed::def);
        let exact = all().find(|def| def.full_name() == name);
        let found = exact.or_else(|| all().filter(|def| def.name() == name).max_by_key(Def::version));
        found.ok_or_else(|| Error::UnknownCounter { counter: name.to_owned(), record: None })
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

    /// As [`position`](Self::position), of a counter of a batch.
    #[inline]
    pub(crate) fn position_in(&self, counter: &Named) -> Result<usize> {
        self.position(counter).map_err(|error| counter.blame(error))
    }

    /// What every store refuses before it looks at a total: for a store of your own, which need not if it lets [`Climb::run`](crate::Climb::run)
    /// find what it writes.
    ///
    /// # Errors
    ///
    /// [`Error::Undeclared`] where a record's `tally` added to a counter that the record does not list, what [`position`](Self::position) says
    /// of a counter that the layout does not have, and [`Error::Rollup`] for one that is a rollup: nothing is added to it by hand.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, Layout};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    ///
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// LAYOUT.check_batch(&batch)?;
    /// batch.add(SHOW_VOTES.version(2), 7, 1);
    /// assert!(matches!(LAYOUT.check_batch(&batch), Err(Error::Conflict { counter: "show.votes", .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn check_batch(&self, batch: &Batch) -> Result<()> {
        batch.check_declared()?;
        for counter in batch.counters() {
            let placed = self.placed(counter).map_err(|error| counter.blame(error))?;
            if let Some(rollup) = placed.rollup() {
                let (counter, finer) = (counter.name(), rollup.finer().full_name());
                return Err(Error::Rollup {
                    counter,
                    reason: format!("nothing is added to it: it is the sum of {finer}"),
                });
            }
        }
        Ok(())
    }

    #[cold]
    fn absent(&self, def: &Def) -> Error {
        let same_name = self.placed.iter().map(Placed::def).filter(|known| known.id() == def.id());
        let wanted: Vec<String> = same_name.map(|known| format!("{known:?}")).collect();
        if wanted.is_empty() {
            return Error::UnknownCounter { counter: def.full_name().into_owned(), record: None };
        }
        Error::Conflict { counter: def.name(), found: format!("{def:?}"), wanted: wanted.join(" and "), record: None }
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

/// How many counters a layout has at most.
const COUNTERS_MOST: usize = 4096;
const SLOTS: usize = 2 * COUNTERS_MOST;

/// Positions of counters by a hash, as the compiler can keep them: each in the first free slot from its hash's on.
struct Index([u16; SLOTS]);

impl Index {
    const fn new() -> Self {
        Self([u16::MAX; SLOTS])
    }

    #[allow(clippy::cast_possible_truncation)] // what is cut off is not counted on
    const fn first(hash: u64) -> usize {
        hash as usize % SLOTS
    }

    const fn next(slot: usize) -> usize {
        (slot + 1) % SLOTS
    }

    /// The position in a slot; half of all slots are free.
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn at(&self, slot: usize) -> Option<usize> {
        match self.0[slot] {
            u16::MAX => None,
            at => Some(at as usize),
        }
    }

    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // at most 4,096
    const fn put(&mut self, slot: usize, at: usize) {
        self.0[slot] = at as u16;
    }

    /// The counter declared as `def`, of those that are here by their names' hashes.
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn find(&self, placed: &'static [Placed], def: &Def) -> Option<&'static Placed> {
        let mut slot = Self::first(def.id());
        while let Some(at) = self.at(slot) {
            if placed[at].def().same(def) {
                return Some(&placed[at]);
            }
            slot = Self::next(slot);
        }
        None
    }
}

/// `before` has the counters that stand before the rollup.
const fn check_rollup(placed: &'static [Placed], before: &Index, rollup: &Rollup, prunable: bool) {
    let (finer, link) = (before.find(placed, &rollup.finer()), before.find(placed, &rollup.link()));
    let (Some(finer), Some(link)) = (finer, link) else {
        panic!("what a rollup sums and its link stand before it in a layout; two that sum each other cannot be listed")
    };
    assert!(!rollup.finer().same(&rollup.link()), "a link is not what is summed along it");
    assert!(link.rollup().is_none(), "a link is tallied by rows; it is no rollup");
    assert!(!link.is_prunable(), "a link is not prunable: what it joins would be lost");
    assert!(
        finer.is_prunable() == prunable && (rollup.keeps_tail() || !prunable),
        "a rollup is prunable exactly where what it sums is, and keeps its time (sum_of_tail)"
    );
    let below = match finer.rollup() {
        Some(finer) => finer.level(),
        None => 0,
    };
    assert!(rollup.level() == below + 1, "a rollup is declared with the counter that it sums as the layout lists it");
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

/// The name of a table or index as the compiler can compare it: a name with underscores for dots, its version, and what an index adds.
#[derive(Clone, Copy)]
struct Table {
    name: &'static [u8],
    version: u32,
    ending: &'static [u8],
}

impl Table {
    const fn of(counter: &Def) -> Self {
        Self { name: counter.name().as_bytes(), version: counter.version(), ending: b"" }
    }

    /// A board's name has no version in it.
    const fn of_board(board: &BoardDef, ending: &'static str) -> Self {
        Self { name: board.name().as_bytes(), version: 1, ending: ending.as_bytes() }
    }

    /// How many bytes the version adds: `_v` and its digits.
    const fn version_len(self) -> usize {
        match self.version.checked_ilog10() {
            _ if self.version == 1 => 0,
            None => 3,
            Some(log) => 3 + log as usize,
        }
    }

    const fn len(self) -> usize {
        self.name.len() + self.version_len() + self.ending.len()
    }

    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn byte(self, at: usize) -> u8 {
        let (name, version) = (self.name.len(), self.version_len());
        if at >= name + version {
            return self.ending[at - name - version];
        }
        match at.checked_sub(name) {
            None if self.name[at] == b'.' => b'_',
            None => self.name[at],
            Some(0) => b'_',
            Some(1) => b'v',
            Some(at) => {
                let mut left = self.version;
                let mut behind = version - 1 - at;
                while behind > 0 {
                    left /= 10;
                    behind -= 1;
                }
                b"0123456789"[(left % 10) as usize]
            }
        }
    }

    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn starts_with(self, prefix: &[u8]) -> bool {
        let mut at = 0;
        while at < prefix.len() {
            if at == self.len() || self.byte(at) != prefix[at] {
                return false;
            }
            at += 1;
        }
        true
    }

    /// A hash of the name as it is spelt.
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn hash(self) -> u64 {
        let (mut hash, mut at) = (FNV_OFFSET, 0);
        while at < self.name.len() {
            hash = fnv1a(hash, &[if self.name[at] == b'.' { b'_' } else { self.name[at] }]);
            at += 1;
        }
        while at < self.len() {
            hash = fnv1a(hash, &[self.byte(at)]);
            at += 1;
        }
        hash
    }

    const fn is_reserved(self) -> bool {
        self.starts_with(b"keepcount_") || self.starts_with(b"sqlite_") || self.starts_with(b"pg_")
    }

    const fn is(self, other: Self) -> bool {
        let mut at = 0;
        while at < self.len() && self.len() == other.len() {
            if self.byte(at) != other.byte(at) {
                return false;
            }
            at += 1;
        }
        self.len() == other.len()
    }
}

#[allow(clippy::indexing_slicing)] // const fn: no iterators
const fn is_same(one: &str, two: &str) -> bool {
    let (one, two) = (one.as_bytes(), two.as_bytes());
    let mut at = 0;
    while at < one.len() && one.len() == two.len() {
        if one[at] != two[at] {
            return false;
        }
        at += 1;
    }
    one.len() == two.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    #[test]
    fn the_compiler_spells_a_table_as_its_statements_do() {
        for version in [0, 1, 2, 9, 10, 99, 100, 2026, 4_294_967_295] {
            for name in ["a", "a.b_c.v2", "show.votes"] {
                let def = Counter::<i64>::new(name).version(version).def();
                for ending in ["", "_by_parent"] {
                    let table = Table { ending: ending.as_bytes(), ..Table::of(&def) };
                    let spelt: Vec<u8> = (0..table.len()).map(|at| table.byte(at)).collect();
                    assert_eq!(table.hash(), fnv1a(FNV_OFFSET, &spelt));
                    assert_eq!(String::from_utf8(spelt).unwrap(), format!("{}{ending}", def.table_name()));
                }
            }
        }
    }

    #[test]
    fn names_are_the_same_byte_by_byte() {
        for (one, two) in [("", ""), ("a", "a"), ("ab", "ab")] {
            assert!(is_same(one, two), "{one} {two}");
        }
        for (one, two) in [("", "a"), ("a", "b"), ("a", "ab"), ("ab", "a"), ("ab", "ac"), ("bb", "ab")] {
            assert!(!is_same(one, two), "{one} {two}");
        }
    }

    #[test]
    fn what_counters_feed_is_each_listed_once_behind_them() {
        const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
        const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
        const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
        const SHOW_ARTIST: Counter<(i64, i64)> = Counter::new("show.artist");
        const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
        const OTHER: Counter<i64> = Counter::new("other");
        const LAYOUT: Layout = Layout::new(&[
            SETLIST_VOTES.table(),
            SETLIST_SHOW.table(),
            OTHER.table(),
            SHOW_VOTES.table(),
            SHOW_ARTIST.table(),
            ARTIST_VOTES.table(),
        ]);
        let fed = |of: &[Def]| LAYOUT.with_fed(of.to_vec()).iter().map(Def::name).collect::<Vec<_>>();
        assert_eq!(fed(&[OTHER.def()]), ["other"]);
        for leg in [SETLIST_VOTES.def(), SETLIST_SHOW.def()] {
            assert_eq!(fed(&[leg]), [leg.name(), "show.votes", "artist.votes"]);
        }
        assert_eq!(fed(&[SHOW_VOTES.def(), OTHER.def()]), ["show.votes", "other", "artist.votes"]);
        let every = [SETLIST_VOTES.def(), SHOW_VOTES.def(), ARTIST_VOTES.def()];
        assert_eq!(fed(&every), ["setlist.votes", "show.votes", "artist.votes"]);
    }
}
