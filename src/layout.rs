//! The registry: which counters an application has, and where their totals live.

use crate::counter::{Def, FNV_OFFSET, Placed, fnv1a};
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
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    placed: &'static [Placed],
}

impl Layout {
    /// A layout of these counters; writes go in this order, reports in the order of names. Order them as the
    /// application's transactions reach them.
    ///
    /// # Panics
    ///
    /// When two counters share a name, a name's hash or a table, or a table's name is reserved (`keepcount_..`,
    /// `sqlite_..`, `pg_..`), or there are more than 4,096; in a `const`, where layouts belong, that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn new(placed: &'static [Placed]) -> Self {
        assert!(placed.len() <= 4096, "a layout has at most 4,096 counters");
        let mut one = 0;
        while one < placed.len() {
            let name = placed[one].def().name().as_bytes();
            assert!(
                !folds_to_prefix(name, b"keepcount_")
                    && !folds_to_prefix(name, b"sqlite_")
                    && !folds_to_prefix(name, b"pg_"),
                "a counter's table may not start with keepcount_, sqlite_ or pg_"
            );
            let mut two = one + 1;
            while two < placed.len() {
                let other = placed[two].def();
                assert!(placed[one].def().id() != other.id(), "two counters of a layout share a name or a name's hash");
                assert!(
                    name.len() != other.name().len() || !folds_to_prefix(name, other.name().as_bytes()),
                    "two counters of a layout share a table: their names differ in dots and underscores only"
                );
                two += 1;
            }
            one += 1;
        }
        Self { placed }
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

    /// A hash of every counter's name, key, version and place, in the order of names: tokens and snapshots carry it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut lines: Vec<String> =
            self.placed.iter().map(|placed| format!("{:?} {}\n", placed.def(), placed.place())).collect();
        lines.sort_unstable();
        lines.iter().fold(FNV_OFFSET, |hash, line| fnv1a(hash, line.as_bytes()))
    }
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
