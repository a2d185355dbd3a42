//! The schema: which counters an application has, and the storage of their totals.

use crate::batch::{Batch, Named};
use crate::counter::{CounterId, CounterSpec, FNV_OFFSET, Rollup, fnv1a};
use crate::error::{Error, Result};
use crate::leaderboard::LeaderboardId;

/// Declares counters and the schema that lists them, each once.
///
/// Each line is a counter: its constant, its key type, its name, and what else
/// [`Counter`](crate::Counter) says about it ([`version`](crate::Counter::version),
/// [`sum_of`](crate::Counter::sum_of), [`sum_of_suffix`](crate::Counter::sum_of_suffix)).
/// `prunable` before the constant makes it [prunable](crate::backend::CounterSpec::prunable). The
/// schema lists the counters in this order, and then the leaderboards.
///
/// # Examples
///
/// ```
/// use keepcount::{Date, Leaderboard};
///
/// keepcount::counters! {
///     /// All counters of this application.
///     pub SCHEMA {
///         /// Votes on a show.
///         pub SHOW_VOTES: i64 = "show.votes";
///         USER_VOTES: String = "user.votes".version(2);
///         SHOW_ARTIST: (i64, i64) = "show.artist";
///         pub ARTIST_VOTES: i64 = "artist.votes".sum_of(SHOW_VOTES, SHOW_ARTIST);
///         pub(crate) prunable ARTIST_DATES: (i64, Date) = "artist.dates";
///     }
///     leaderboards [ARTISTS]
/// }
///
/// const ARTISTS: Leaderboard<i64> = Leaderboard::new("artist.board", [ARTIST_VOTES]).by(|[votes]| (votes > 0).then_some(votes));
///
/// assert_eq!(SCHEMA.counters().len(), 5);
/// assert_eq!(USER_VOTES.id().full_name(), "user.votes.v2");
/// assert!(SCHEMA.spec(&ARTIST_DATES.id())?.is_prunable());
/// assert_eq!(SCHEMA.leaderboard_ids().len(), 1);
/// # Ok::<(), keepcount::Error>(())
/// ```
///
/// It is the same as this:
///
/// ```
/// use keepcount::{Counter, Schema};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
/// ```
#[macro_export]
macro_rules! counters {
    (@counter [$($meta:tt)*] $vis:vis prunable $counter:ident: $key:ty = $value:expr) => {
        $($meta)* $vis const $counter: $crate::Counter<$key> = $value;
    };
    (@counter [$($meta:tt)*] $vis:vis $counter:ident: $key:ty = $value:expr) => {
        $($meta)* $vis const $counter: $crate::Counter<$key> = $value;
    };
    (@spec $vis:vis prunable $counter:ident) => {
        $counter.table().prunable()
    };
    (@spec $vis:vis $counter:ident) => {
        $counter.table()
    };
    (
        $(#[$about:meta])* $vis:vis $schema:ident {
            $(
                $(#[$meta:meta])*
                $($word:ident $(($($within:tt)*))?)+: $key:ty = $name:literal $(.$method:ident $arguments:tt)*;
            )*
        }
        $(leaderboards [$($leaderboard:expr),* $(,)?])?
    ) => {
        $(
            $crate::counters! {
                @counter [$(#[$meta])*] $($word $(($($within)*))?)+:
                    $key = $crate::Counter::new($name)$(.$method $arguments)*
            }
        )*
        $(#[$about])*
        $vis const $schema: $crate::Schema =
            $crate::Schema::new(&[$($crate::counters!(@spec $($word $(($($within)*))?)+)),*])
                $(.leaderboards(&[$($leaderboard.id()),*]))?;
    };
}

/// All counters of an application, as one `const`; [`counters!`](crate::counters) declares it.
///
/// # Examples
///
/// ```
/// keepcount::counters! {
///     SCHEMA {
///         SHOW_VOTES: i64 = "show.votes";
///         SHOW_SETLISTS: i64 = "show.setlists";
///     }
/// }
/// assert_eq!(SCHEMA.counters().len(), 2);
/// ```
///
/// Two counters that share a name and version, a name's hash or a table are a compile error:
///
/// ```compile_fail
/// # use keepcount::{Counter, Schema};
/// const ONE: Counter<i64> = Counter::new("show.votes");
/// const TWO: Counter<i64> = Counter::new("show_votes");
/// const SCHEMA: Schema = Schema::new(&[ONE.table(), TWO.table()]);
/// ```
///
/// Versions of one name may be listed together, each once, and none in the table of another
/// counter:
///
/// ```compile_fail
/// # use keepcount::{Counter, Schema};
/// const VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[VOTES.table(), VOTES.version(2).table(), VOTES.version(2).table()]);
/// ```
///
/// ```compile_fail
/// # use keepcount::{Counter, Schema};
/// const VOTES: Counter<i64> = Counter::new("show.votes");
/// const OTHER: Counter<i64> = Counter::new("show.votes.v2");
/// const SCHEMA: Schema = Schema::new(&[VOTES.version(2).table(), OTHER.table()]);
/// ```
///
/// A rollup comes after what it sums, so two rollups that sum each other cannot be listed at all:
///
/// ```compile_fail
/// # use keepcount::{Counter, Schema};
/// const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("a.b");
/// const A: Counter<i64> = Counter::new("a").sum_of(Counter::<i64>::new("b"), MEMBERSHIP);
/// const B: Counter<i64> = Counter::new("b").sum_of(A, MEMBERSHIP);
/// const SCHEMA: Schema = Schema::new(&[MEMBERSHIP.table(), A.table(), B.table()]);
/// ```
///
/// Rollups have at most 64 levels ([`Counter::sum_of`](crate::Counter::sum_of)).
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    specs: &'static [CounterSpec],
    leaderboards: &'static [LeaderboardId],
    /// Whether no counter is a rollup or prunable.
    plain: bool,
}

impl Schema {
    /// A schema of these counters.
    ///
    /// Batches are written in this order, reports are in the order of names.
    ///
    /// List the counters in the order in which the application's transactions reach them.
    ///
    /// # Panics
    ///
    /// If two counters share a name and a version, a name's hash or a table; if a table's name is
    /// reserved (`keepcount_..`, `sqlite_..`, `pg_..`); if there are more than 4,096 counters; if a
    /// rollup does not come after its base counter and its membership, declared as the rollup has
    /// them; if a membership is itself a rollup or prunable; if a rollup is prunable and its base
    /// counter is not, or the other way round; or if prunable totals are summed without their time.
    /// In a `const`, where schemas belong, that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn new(specs: &'static [CounterSpec]) -> Self {
        assert!(specs.len() <= MAX_COUNTERS, "a schema has at most 4,096 counters");
        let (mut names, mut tables) = (Index::new(), Index::new());
        let (mut one, mut plain) = (0, true);
        while one < specs.len() {
            let id = specs[one].id();
            let table = Table::of(&id);
            assert!(
                !table.is_reserved(),
                "a counter's table may not start with keepcount_, sqlite_ or pg_"
            );
            if let Some(rollup) = specs[one].rollup() {
                plain = false;
                check_rollup(specs, &names, rollup, specs[one].is_prunable());
            }
            plain = plain && !specs[one].is_prunable();
            // Only those with the same hash are compared: otherwise a schema of a thousand counters
            // would take the compiler minutes.
            let mut slot = Index::first(id.name_hash());
            while let Some(other) = names.at(slot) {
                let other = specs[other].id();
                assert!(
                    id.name_hash() != other.name_hash() || is_same(id.name(), other.name()),
                    "two counters of a schema share a name's hash"
                );
                assert!(
                    id.name_hash() != other.name_hash() || id.version() != other.version(),
                    "two counters of a schema share a name and a version"
                );
                slot = Index::next(slot);
            }
            names.put(slot, one);
            slot = Index::first(table.hash());
            while let Some(other) = tables.at(slot) {
                assert!(
                    !table.is(Table::of(&specs[other].id())),
                    "two counters of a schema share a table: their names differ in dots, underscores and versions only"
                );
                slot = Index::next(slot);
            }
            tables.put(slot, one);
            one += 1;
        }
        Self { specs, leaderboards: &[], plain }
    }

    /// The same schema with leaderboards.
    ///
    /// SQL stores keep them in tables, written in the transaction that changes their counters.
    ///
    /// # Panics
    ///
    /// If a leaderboard shares a table or an index name with another table, its table's name is
    /// reserved, or a counter of it is not in the schema. In a `const` that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    pub const fn leaderboards(mut self, leaderboards: &'static [LeaderboardId]) -> Self {
        let mut at = 0;
        while at < leaderboards.len() {
            let leaderboard = &leaderboards[at];
            let (table, index) = (
                Table::of_leaderboard(leaderboard, ""),
                Table::of_leaderboard(leaderboard, "_order"),
            );
            assert!(
                !table.is_reserved(),
                "a leaderboard's table may not start with keepcount_, sqlite_ or pg_"
            );
            let mut other = 0;
            while other < self.specs.len() {
                let taken = Table::of(&self.specs[other].id());
                assert!(!table.is(taken), "a leaderboard and a counter of a schema share a table");
                assert!(
                    !index.is(taken),
                    "a counter's table has the name of a leaderboard's index"
                );
                other += 1;
            }
            other = 0;
            while other < leaderboards.len() {
                let taken = Table::of_leaderboard(&leaderboards[other], "");
                assert!(
                    other == at || !table.is(taken),
                    "two leaderboards of a schema share a table"
                );
                assert!(!index.is(taken), "a leaderboard's table has the name of another's index");
                other += 1;
            }
            other = 0;
            while other < leaderboard.counters().len() {
                assert!(
                    listed(self.specs, &leaderboard.counters()[other]),
                    "a leaderboard's counter is not in the schema"
                );
                other += 1;
            }
            at += 1;
        }
        self.leaderboards = leaderboards;
        self
    }

    /// The leaderboards that SQL stores keep.
    #[must_use]
    pub const fn leaderboard_ids(&self) -> &'static [LeaderboardId] {
        self.leaderboards
    }

    /// Whether no counter is a rollup or prunable. Then a batch is exactly what is written.
    pub(crate) const fn is_plain(&self) -> bool {
        self.plain
    }

    /// The counter with its storage.
    ///
    /// # Errors
    ///
    /// As [`position`](Self::position).
    pub fn spec(&self, id: &CounterId) -> Result<&'static CounterSpec> {
        let at = self.position(id)?;
        self.specs.get(at).ok_or_else(|| self.absent(id))
    }

    /// A counter of the batch that feeds a rollup, and the rollup.
    pub(crate) fn first_fed(&self, batch: &Batch) -> Option<(CounterId, CounterId)> {
        batch.counters().iter().find_map(|counter| {
            let rollup = self.rollups_of(counter).next()?;
            Some((**counter, rollup.id()))
        })
    }

    /// The rollups that this counter feeds, as their base or as their membership.
    pub fn rollups_of<'a>(
        &'a self,
        id: &'a CounterId,
    ) -> impl Iterator<Item = &'static CounterSpec> + 'a {
        self.specs.iter().filter(|spec| {
            spec.rollup()
                .is_some_and(|rollup| rollup.base().same(id) || rollup.membership().same(id))
        })
    }

    /// The number of key parts that are the child, if the counter is the membership of a rollup.
    pub(crate) fn child_parts(&self, id: &CounterId) -> Option<usize> {
        let memberships = self
            .specs
            .iter()
            .filter_map(CounterSpec::rollup)
            .filter(|rollup| rollup.membership().same(id));
        memberships.map(Rollup::child_parts).next()
    }

    /// These counters and everything that they sum, memberships included, down to those that rows
    /// add to; each once.
    ///
    /// # Errors
    ///
    /// As [`position`](Self::position).
    pub(crate) fn with_bases(&self, counters: &[CounterId]) -> Result<Vec<CounterId>> {
        let mut all: Vec<CounterId> = Vec::with_capacity(counters.len());
        let mut queue = counters.to_vec();
        while let Some(counter) = queue.pop() {
            if !all.iter().any(|known| known.same(&counter)) {
                queue.extend(
                    self.spec(&counter)?
                        .rollup()
                        .into_iter()
                        .flat_map(|rollup| [rollup.base(), rollup.membership()]),
                );
                all.push(counter);
            }
        }
        Ok(all)
    }

    /// These counters and all rollups above them; each once.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) fn with_fed(&self, mut all: Vec<CounterId>) -> Vec<CounterId> {
        // A rollup comes after what it sums.
        for spec in self.specs {
            let fed = spec.rollup().is_some_and(|rollup| {
                all.iter()
                    .any(|known| known.same(&rollup.base()) || known.same(&rollup.membership()))
            });
            if fed && !all.iter().any(|known| known.same(&spec.id())) {
                all.push(spec.id());
            }
        }
        all
    }

    /// The number of rollup levels up to a counter: 0 for one that rows add to, at most 64.
    #[must_use]
    pub fn level(&self, id: &CounterId) -> usize {
        let spec = self.specs.iter().find(|spec| spec.id().same(id));
        spec.and_then(CounterSpec::rollup).map_or(0, Rollup::level)
    }

    /// The counters and their storage, in the order of writing.
    #[must_use]
    pub const fn counters(&self) -> &'static [CounterSpec] {
        self.specs
    }

    /// The counters in the order of their names and versions: the order of runs and reports.
    #[must_use]
    pub fn by_name(&self) -> Vec<CounterId> {
        let mut ids: Vec<CounterId> = self.specs.iter().map(CounterSpec::id).collect();
        ids.sort_unstable_by_key(CounterId::order);
        ids
    }

    /// The counter with this [full name](CounterId::full_name), or else the highest version with
    /// this plain name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] if there is none.
    pub fn find(&self, name: &str) -> Result<CounterId> {
        let all = || self.specs.iter().map(CounterSpec::id);
        let exact = all().find(|id| id.full_name() == name);
        let found =
            exact.or_else(|| all().filter(|id| id.name() == name).max_by_key(CounterId::version));
        found.ok_or_else(|| Error::UnknownCounter { counter: name.to_owned(), record: None })
    }

    /// The position of a counter in [`counters`](Self::counters).
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] if the schema has no counter with this name,
    /// [`Error::DefinitionConflict`] if it has it with another key or version.
    #[inline]
    pub fn position(&self, id: &CounterId) -> Result<usize> {
        let found = self.specs.iter().position(|spec| spec.id().same(id));
        found.ok_or_else(|| self.absent(id))
    }

    /// Like [`position`](Self::position), for a counter of a batch.
    #[inline]
    pub(crate) fn position_in(&self, counter: &Named) -> Result<usize> {
        self.position(counter).map_err(|error| counter.blame(error))
    }

    /// Refuses a batch that every store must refuse before it reads a total.
    ///
    /// Call it in your own store: before you look at the offset of a batch's events, and before you
    /// write a batch, unless [`RollupUpdate::run`](crate::backend::RollupUpdate::run) computes what
    /// you write.
    ///
    /// # Errors
    ///
    /// [`Error::TwoRecords`] if the tallies of two record types added to one counter;
    /// [`Error::Key`] for a key that does not decode; those of
    /// [`position`](Self::position) for a counter that the schema does not have; [`Error::Rollup`]
    /// for a rollup, since nothing may be added to one.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, Counter, Error, Schema};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// SCHEMA.check_batch(&batch)?;
    /// batch.add(SHOW_VOTES.version(2), 7, 1);
    /// assert!(matches!(SCHEMA.check_batch(&batch), Err(Error::DefinitionConflict { counter: "show.votes", .. })));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn check_batch(&self, batch: &Batch) -> Result<()> {
        batch.check_records()?;
        for counter in batch.counters() {
            let spec = self.spec(counter).map_err(|error| counter.blame(error))?;
            if let Some(rollup) = spec.rollup() {
                let (counter, base) = (counter.name(), rollup.base().full_name());
                return Err(Error::Rollup {
                    counter,
                    reason: format!("nothing can be added to it: it is the sum of {base}"),
                });
            }
        }
        Ok(())
    }

    #[cold]
    fn absent(&self, id: &CounterId) -> Error {
        let same_name = self
            .specs
            .iter()
            .map(CounterSpec::id)
            .filter(|known| known.name_hash() == id.name_hash());
        let wanted: Vec<String> = same_name.map(|known| format!("{known:?}")).collect();
        if wanted.is_empty() {
            return Error::UnknownCounter { counter: id.full_name().into_owned(), record: None };
        }
        Error::DefinitionConflict {
            counter: id.name(),
            found: format!("{id:?}"),
            wanted: wanted.join(" and "),
            record: None,
        }
    }

    /// A hash of every counter's name, key, version and storage, in the order of names.
    ///
    /// Tokens contain it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut lines: Vec<String> = self
            .specs
            .iter()
            .map(|spec| format!("{:?} {}\n", spec.id(), spec.storage_clause()))
            .collect();
        lines.sort_unstable();
        lines.iter().fold(FNV_OFFSET, |hash, line| fnv1a(hash, line.as_bytes()))
    }
}

/// The maximum number of counters of a schema.
const MAX_COUNTERS: usize = 4096;
const SLOTS: usize = 2 * MAX_COUNTERS;

/// A hash index of counters that works at compile time: each position is in the first free slot
/// from its hash's slot on.
struct Index([u16; SLOTS]);

impl Index {
    const fn new() -> Self {
        Self([u16::MAX; SLOTS])
    }

    #[allow(clippy::cast_possible_truncation)] // a slot needs only the low bits
    const fn first(hash: u64) -> usize {
        hash as usize % SLOTS
    }

    const fn next(slot: usize) -> usize {
        (slot + 1) % SLOTS
    }

    /// The position in a slot. At least half of all slots are free.
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn at(&self, slot: usize) -> Option<usize> {
        match self.0[slot] {
            u16::MAX => None,
            at => Some(at as usize),
        }
    }

    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // at most 4,096
    const fn put(&mut self, slot: usize, index: usize) {
        self.0[slot] = index as u16;
    }

    /// The counter declared as `id`, among those indexed by their names' hashes.
    #[allow(clippy::indexing_slicing)] // const fn: no iterators
    const fn find(
        &self,
        specs: &'static [CounterSpec],
        id: &CounterId,
    ) -> Option<&'static CounterSpec> {
        let mut slot = Self::first(id.name_hash());
        while let Some(at) = self.at(slot) {
            if specs[at].id().same(id) {
                return Some(&specs[at]);
            }
            slot = Self::next(slot);
        }
        None
    }
}

/// Checks a rollup; `before` has the counters that come before it.
const fn check_rollup(
    specs: &'static [CounterSpec],
    before: &Index,
    rollup: &Rollup,
    prunable: bool,
) {
    let (base, membership) =
        (before.find(specs, &rollup.base()), before.find(specs, &rollup.membership()));
    let (Some(base), Some(membership)) = (base, membership) else {
        panic!(
            "a schema must list a rollup's base and membership before it, so two rollups cannot sum each other"
        )
    };
    assert!(!rollup.base().same(&rollup.membership()), "a counter cannot be summed along itself");
    assert!(
        membership.rollup().is_none(),
        "a membership must be tallied by rows; it cannot be a rollup"
    );
    assert!(
        !membership.is_prunable(),
        "a membership cannot be prunable: its rollups would lose their parents"
    );
    assert!(
        base.is_prunable() == prunable && (rollup.keeps_suffix() || !prunable),
        "a rollup must be prunable exactly if its base is, and must keep the base's time (sum_of_suffix)"
    );
    let below = match base.rollup() {
        Some(base) => base.level(),
        None => 0,
    };
    assert!(
        rollup.level() == below + 1,
        "the schema must list a rollup's base as the rollup declares it"
    );
}

#[allow(clippy::indexing_slicing)] // const fn: no iterators
const fn listed(specs: &[CounterSpec], id: &CounterId) -> bool {
    let mut at = 0;
    while at < specs.len() {
        if specs[at].id().same(id) {
            return true;
        }
        at += 1;
    }
    false
}

/// The name of a table or index in a form that can be compared at compile time: a name with
/// underscores for dots, its version, and what an index appends.
#[derive(Clone, Copy)]
struct Table {
    name: &'static [u8],
    version: u32,
    ending: &'static [u8],
}

impl Table {
    const fn of(counter: &CounterId) -> Self {
        Self { name: counter.name().as_bytes(), version: counter.version(), ending: b"" }
    }

    /// A leaderboard's table name does not include its version.
    const fn of_leaderboard(leaderboard: &LeaderboardId, ending: &'static str) -> Self {
        Self { name: leaderboard.name().as_bytes(), version: 1, ending: ending.as_bytes() }
    }

    /// The number of bytes that the version adds: `_v` and its digits.
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
    const fn byte(self, index: usize) -> u8 {
        let (name, version) = (self.name.len(), self.version_len());
        if index >= name + version {
            return self.ending[index - name - version];
        }
        match index.checked_sub(name) {
            None if self.name[index] == b'.' => b'_',
            None => self.name[index],
            Some(0) => b'_',
            Some(1) => b'v',
            Some(index) => {
                let mut left = self.version;
                let mut behind = version - 1 - index;
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
const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && a.len() == b.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    #[test]
    fn the_compiler_spells_a_table_as_its_statements_do() {
        for version in [0, 1, 2, 9, 10, 99, 100, 2026, 4_294_967_295] {
            for name in ["a", "a.b_c.v2", "show.votes"] {
                let id = Counter::<i64>::new(name).version(version).id();
                for ending in ["", "_by_parent"] {
                    let table = Table { ending: ending.as_bytes(), ..Table::of(&id) };
                    let spelt: Vec<u8> = (0..table.len()).map(|at| table.byte(at)).collect();
                    assert_eq!(table.hash(), fnv1a(FNV_OFFSET, &spelt));
                    assert_eq!(
                        String::from_utf8(spelt).unwrap(),
                        format!("{}{ending}", id.table_name())
                    );
                }
            }
        }
    }

    #[test]
    fn names_are_the_same_byte_by_byte() {
        for (one, two) in [("", ""), ("a", "a"), ("ab", "ab")] {
            assert!(is_same(one, two), "{one} {two}");
        }
        for (one, two) in
            [("", "a"), ("a", "b"), ("a", "ab"), ("ab", "a"), ("ab", "ac"), ("bb", "ab")]
        {
            assert!(!is_same(one, two), "{one} {two}");
        }
    }

    #[test]
    fn what_counters_feed_is_each_listed_once_behind_them() {
        const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
        const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
        const SHOW_VOTES: Counter<i64> =
            Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
        const SHOW_ARTIST: Counter<(i64, i64)> = Counter::new("show.artist");
        const ARTIST_VOTES: Counter<i64> =
            Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
        const OTHER: Counter<i64> = Counter::new("other");
        const SCHEMA: Schema = Schema::new(&[
            SETLIST_VOTES.table(),
            SETLIST_SHOW.table(),
            OTHER.table(),
            SHOW_VOTES.table(),
            SHOW_ARTIST.table(),
            ARTIST_VOTES.table(),
        ]);
        let fed = |of: &[CounterId]| {
            SCHEMA.with_fed(of.to_vec()).iter().map(CounterId::name).collect::<Vec<_>>()
        };
        assert_eq!(fed(&[OTHER.id()]), ["other"]);
        for leg in [SETLIST_VOTES.id(), SETLIST_SHOW.id()] {
            assert_eq!(fed(&[leg]), [leg.name(), "show.votes", "artist.votes"]);
        }
        assert_eq!(fed(&[SHOW_VOTES.id(), OTHER.id()]), ["show.votes", "other", "artist.votes"]);
        let every = [SETLIST_VOTES.id(), SHOW_VOTES.id(), ARTIST_VOTES.id()];
        assert_eq!(fed(&every), ["setlist.votes", "show.votes", "artist.votes"]);
    }
}
