//! A counter's handles: `Counter<K>` with its key type, `CounterId` without it, `CounterSpec` with
//! its storage, and `Rollup` for what it sums.

pub(crate) mod key_range;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use self::key_range::{CounterRange, KeyBounds, KeyRange};
use crate::key::{AsKey, Key, KeyBuf, KeyError, KeyParts};

/// A counter grouped by keys of type `K`.
///
/// At run time it is a name and nothing else.
///
/// # Examples
///
/// ```
/// use keepcount::Counter;
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// assert_eq!(SHOW_VOTES.id().name(), "show.votes");
/// ```
///
/// An invalid name is a compile error:
///
/// ```compile_fail
/// # use keepcount::Counter;
/// const SHOW_VOTES: Counter<i64> = Counter::new("Show Votes");
/// ```
pub struct Counter<K> {
    id: CounterId,
    rollup: Option<Rollup>,
    key: PhantomData<fn() -> K>,
}

impl<K> Clone for Counter<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Counter<K> {}

impl<K> fmt::Debug for Counter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl<K> From<Counter<K>> for CounterId {
    fn from(counter: Counter<K>) -> Self {
        counter.id
    }
}

impl<K: Key> Counter<K> {
    /// A counter with this name, version 1.
    ///
    /// A name has 1 to 48 of the characters `a-z 0-9 _ .`
    ///
    /// # Panics
    ///
    /// When the name is invalid. In a `const`, where counters belong, that is a compile error.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(!name.is_empty() && name.len() <= 48, "a counter's name has 1 to 48 characters");
        let mut rest = name.as_bytes();
        while let [first, more @ ..] = rest {
            assert!(
                matches!(first, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.'),
                "a counter's name consists of a-z, 0-9, _ and ."
            );
            rest = more;
        }
        let (name_hash, parts) = (fnv1a(FNV_OFFSET, name.as_bytes()), K::PARTS);
        Self {
            id: CounterId { name, name_hash, version: 1, parts, code: parts.code() },
            rollup: None,
            key: PhantomData,
        }
    }

    /// The same counter with another version.
    ///
    /// Raise it when the meaning of the tally changes, since code cannot be compared.
    ///
    /// Versions of one name are separate counters, each with its own totals. While both are listed
    /// in a [`Schema`](crate::Schema), records tally to both, and the new one is backfilled while
    /// the old one is still read (docs/deploy.md).
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, Schema};
    ///
    /// const OLD: Counter<i64> = Counter::new("show.votes");
    /// const NEW: Counter<i64> = OLD.version(2);
    /// const SCHEMA: Schema = Schema::new(&[OLD.table(), NEW.table()]);
    /// assert_eq!(NEW.id().full_name(), "show.votes.v2");
    /// assert_eq!(NEW.table().table_name(), "show_votes_v2");
    /// ```
    #[must_use]
    pub const fn version(mut self, version: u32) -> Self {
        self.id.version = version;
        self
    }

    /// The same counter as a rollup: the total of each parent is the sum of `base` over its
    /// children.
    ///
    /// `membership` links children to parents. It is an ordinary counter keyed (child, parent) that
    /// the child's record tallies with 1; with 2 the child would count twice. A rollup's total is
    /// always the sum of the *stored* totals of the base counter, so verify and repair it after its
    /// base counter. You never add to a rollup: each change of the base counter or of the
    /// membership changes it in the same apply. A change of the base counter costs a read of the
    /// child's memberships and a write for each parent. A change of a membership costs a read of
    /// the child's total and a write for its parent.
    ///
    /// # Panics
    ///
    /// When `base` already has 64 levels of rollups below it. In a `const` that is a compile error.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore};
    ///
    /// keepcount::counters! {
    ///     SCHEMA {
    ///         SETLIST_VOTES: i64 = "setlist.votes";
    ///         SETLIST_SHOW: (i64, i64) = "setlist.show";
    ///         SHOW_VOTES: i64 = "show.votes".sum_of(SETLIST_VOTES, SETLIST_SHOW);
    ///     }
    /// }
    ///
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// batch.add(SETLIST_SHOW, (1_i64, 70_i64), 1); // from the tally of setlist 1
    /// batch.add(SETLIST_VOTES, 1_i64, 5);
    /// store.apply(&mut batch)?;
    /// assert_eq!(store.total(SHOW_VOTES, 70)?, 5);
    ///
    /// batch.clear();
    /// batch.add(SETLIST_SHOW, (1_i64, 70_i64), -1); // it moves to show 80
    /// batch.add(SETLIST_SHOW, (1_i64, 80_i64), 1);
    /// store.apply(&mut batch)?;
    /// assert_eq!((store.total(SHOW_VOTES, 70)?, store.total(SHOW_VOTES, 80)?), (0, 5));
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[must_use]
    pub const fn sum_of<C: Key>(mut self, base: Counter<C>, membership: Counter<(C, K)>) -> Self {
        self.rollup = Some(Rollup::over(base, membership.id, C::PARTS.len(), false));
        self
    }

    /// All keys.
    #[must_use]
    pub const fn all(self) -> CounterRange<K> {
        CounterRange::new(&self, KeyRange::ALL)
    }

    /// The keys in this range.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// (0..5).for_each(|show| batch.add(SHOW_VOTES, show, 10 + show));
    /// store.apply(&mut batch)?;
    /// assert_eq!(store.range(SHOW_VOTES.keys(3..), 10)?, [(3, 13), (4, 14)]);
    /// assert_eq!(store.sum(SHOW_VOTES.keys(..=1))?, 21);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[must_use]
    pub fn keys(self, keys: impl KeyBounds<K>) -> CounterRange<K> {
        CounterRange::new(&self, KeyRange::of::<K>(keys))
    }

    /// The counter without its key type.
    #[must_use]
    pub const fn id(self) -> CounterId {
        self.id
    }

    /// This counter with its own table, for a [`Schema`](crate::Schema).
    #[must_use]
    pub const fn table(self) -> CounterSpec {
        CounterSpec { id: self.id, rollup: self.rollup, prunable: false }
    }
}

/// Ranges of a counter whose key is a pair: the keys under one prefix, often over a period of time.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Date, MemoryStore};
///
/// keepcount::counters! { SCHEMA { ARTIST_DATES: (i64, Date) = "artist.dates"; } }
///
/// let store = MemoryStore::new(&SCHEMA);
/// let mut batch = Batch::new();
/// for date in ["2026-05-01", "2026-06-01", "2026-06-02"] {
///     batch.add(ARTIST_DATES, (7_i64, date.parse::<Date>()?), 1);
/// }
/// store.apply(&mut batch)?;
/// let today: Date = "2026-06-01".parse()?;
/// assert_eq!(store.sum(ARTIST_DATES.suffixes(7, today..))?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl<H: Key, T: Key> Counter<(H, T)> {
    /// The same counter as a rollup that keeps the suffix of the key: the total of each parent and
    /// suffix is the sum of `base` over the parent's children.
    ///
    /// Use it for totals by day or by epoch. Otherwise it behaves as [`sum_of`](Self::sum_of). A
    /// change of a membership moves all totals of its child.
    ///
    /// # Panics
    ///
    /// As [`sum_of`](Self::sum_of).
    #[must_use]
    pub const fn sum_of_suffix<C: Key>(
        mut self,
        base: Counter<(C, T)>,
        membership: Counter<(C, H)>,
    ) -> Self {
        self.rollup = Some(Rollup::over(base, membership.id, C::PARTS.len(), true));
        self
    }

    /// All keys with this prefix.
    #[must_use]
    pub fn under(self, prefix: impl AsKey<H>) -> CounterRange<(H, T)> {
        CounterRange::new(&self, KeyRange::under(KeyBuf::of::<H>(prefix)))
    }

    /// The keys with this prefix whose suffix is in this range.
    #[must_use]
    pub fn suffixes(
        self,
        prefix: impl AsKey<H>,
        suffixes: impl KeyBounds<T>,
    ) -> CounterRange<(H, T)> {
        CounterRange::new(&self, KeyRange::suffixes::<T>(&KeyBuf::of::<H>(prefix), suffixes))
    }

    /// The keys whose prefix is in this range.
    #[must_use]
    pub fn prefixes(self, prefixes: impl KeyBounds<H>) -> CounterRange<(H, T)> {
        CounterRange::new(&self, KeyRange::of::<H>(prefixes))
    }
}

/// What a rollup sums: a base counter along a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rollup {
    base: CounterId,
    membership: CounterId,
    child: usize,
    suffix: bool,
    level: usize,
}

/// The maximum number of rollup levels above rows. Each change of a row propagates through all of
/// them, with a read and a write at each.
const MAX_LEVELS: usize = 64;

impl Rollup {
    const fn over<F: Key>(
        base: Counter<F>,
        membership: CounterId,
        child: usize,
        suffix: bool,
    ) -> Self {
        let below = match &base.rollup {
            Some(rollup) => rollup.level,
            None => 0,
        };
        assert!(
            below < MAX_LEVELS,
            "a rollup has at most 64 levels: its base is at level 64 already"
        );
        Self { base: base.id, membership, child, suffix, level: below + 1 }
    }

    /// The number of rollup levels up to this one, this one included.
    pub(crate) const fn level(&self) -> usize {
        self.level
    }

    /// The counter that is summed.
    #[must_use]
    pub const fn base(&self) -> CounterId {
        self.base
    }

    /// The counter keyed (child, parent).
    #[must_use]
    pub const fn membership(&self) -> CounterId {
        self.membership
    }

    /// How many parts of the membership's key are the child.
    #[must_use]
    pub const fn child_parts(&self) -> usize {
        self.child
    }

    /// Whether the suffix of the base counter's key, after the child, is also the suffix of the
    /// rollup's key.
    #[must_use]
    pub const fn keeps_suffix(&self) -> bool {
        self.suffix
    }
}

/// What identifies a counter: its name, its version and the parts of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CounterId {
    name: &'static str,
    name_hash: u64,
    version: u32,
    parts: KeyParts,
    /// `parts.code()`.
    code: u64,
}

impl CounterId {
    /// The counter's name.
    ///
    /// All its versions share it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The name that is unique within a schema: the counter's name for version 1 (`show.votes`),
    /// otherwise with the version appended (`show.votes.v2`).
    ///
    /// The catalogue, reports and metrics use it.
    #[must_use]
    pub fn full_name(&self) -> Cow<'static, str> {
        match self.version {
            1 => Cow::Borrowed(self.name),
            version => Cow::Owned(format!("{}.v{version}", self.name)),
        }
    }

    /// A 64-bit hash of the name, the same in every process.
    ///
    /// A [`Schema`](crate::Schema) refuses two names with the same hash.
    #[must_use]
    pub const fn name_hash(&self) -> u64 {
        self.name_hash
    }

    /// The version that you gave the counter.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The parts of the counter's key.
    #[must_use]
    pub const fn parts(&self) -> KeyParts {
        self.parts
    }

    /// The name of its table: its full name, with underscores for dots.
    pub(crate) fn table_name(&self) -> String {
        self.full_name().replace('.', "_")
    }

    /// Splits a key into its first parts, a child for instance, and the rest.
    pub(crate) fn split(&self, key: &KeyBuf, parts: usize) -> Result<(KeyBuf, KeyBuf), KeyError> {
        let bytes = key.as_bytes();
        let at = self.parts.prefix_len(bytes, parts).ok_or(KeyError::Malformed)?;
        let (first, rest) = bytes.split_at_checked(at).ok_or(KeyError::Malformed)?;
        Ok((KeyBuf::from_bytes(first), KeyBuf::from_bytes(rest)))
    }

    /// The sort key for lists of counters.
    pub(crate) const fn order(&self) -> (&'static str, u32) {
        (self.name, self.version)
    }

    /// Whether both are the same counter with the same key parts. Like `==`, without comparing
    /// names.
    #[inline]
    pub(crate) const fn same(&self, other: &Self) -> bool {
        self.name_hash == other.name_hash
            && self.version == other.version
            && self.code == other.code
    }

    /// Parses a key from the text that [`show`](Self::show) gives: an operator's input, for
    /// example.
    ///
    /// A key with several text parts must have no comma in any of them.
    ///
    /// # Errors
    ///
    /// [`KeyError`] if the text is no key of this counter.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, KeyBuf};
    ///
    /// const SETLIST_SONGS: Counter<(i64, String)> = Counter::new("setlist.songs");
    /// let key = KeyBuf::of::<(i64, String)>((7, "encore"));
    /// assert_eq!(SETLIST_SONGS.id().parse_key("7,encore")?, key);
    /// # Ok::<(), keepcount::KeyError>(())
    /// ```
    pub fn parse_key(&self, text: &str) -> Result<KeyBuf, KeyError> {
        self.parts.parse(text)
    }

    /// A key as human-readable text: parts joined by commas, `()` for the empty key.
    ///
    /// Tabs, newlines and backslashes are escaped. Bytes that do not decode to a key of this
    /// counter are shown in hexadecimal.
    #[must_use]
    pub fn show(&self, key: &KeyBuf) -> String {
        match self.parts.values(key) {
            Ok(values) if values.is_empty() => "()".to_owned(),
            Ok(values) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Err(_) => format!("0x{key:?}"),
        }
    }
}

impl fmt::Debug for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({})", self.name, self.version, self.parts)
    }
}

/// A counter and the storage of its totals, made by [`Counter::table`](crate::Counter::table).
#[derive(Debug, Clone, Copy)]
pub struct CounterSpec {
    id: CounterId,
    rollup: Option<Rollup>,
    prunable: bool,
}

impl CounterSpec {
    /// The counter.
    #[must_use]
    pub const fn id(&self) -> CounterId {
        self.id
    }

    /// The same counter, whose totals before a day or epoch `prune` can drop.
    ///
    /// Its key must end in that time.
    ///
    /// Costs one read for each apply in SQL.
    ///
    /// # Panics
    ///
    /// When the key has fewer than two parts. In a `const` that is a compile error.
    #[must_use]
    pub const fn prunable(mut self) -> Self {
        assert!(
            self.id.parts.len() > 1,
            "a prunable counter needs a key of at least two parts, of which the last is the time"
        );
        self.prunable = true;
        self
    }

    /// Whether `prune` can drop its oldest totals.
    #[must_use]
    pub const fn is_prunable(&self) -> bool {
        self.prunable
    }

    /// What it sums, if it is a rollup.
    #[must_use]
    pub const fn rollup(&self) -> Option<&Rollup> {
        self.rollup.as_ref()
    }

    /// The storage of the totals and what feeds them, as the catalogue and the fingerprint spell
    /// it.
    #[must_use]
    pub fn storage_clause(&self) -> String {
        let prunable = if self.prunable { ", prunable" } else { "" };
        match &self.rollup {
            None => format!("table{prunable}"),
            Some(Rollup { base, membership, suffix, .. }) => {
                let suffixes = if *suffix { " by suffix" } else { "" };
                format!(
                    "table, sum{suffixes} of {} along {}{prunable}",
                    base.full_name(),
                    membership.full_name()
                )
            }
        }
    }

    /// Whether only being prunable distinguishes it from what had this storage clause: that affects
    /// only what an apply looks up.
    pub(crate) fn only_became_prunable(&self, before: &str) -> bool {
        self.prunable && without_prunable(&self.storage_clause()) == before
    }

    /// The table's name: the counter's [full name](CounterId::full_name), with underscores for
    /// dots.
    #[must_use]
    pub fn table_name(&self) -> String {
        self.id.table_name()
    }
}

/// A storage clause without the mark that the counter is prunable: that may change until the counter
/// is pruned.
pub(crate) fn without_prunable(storage_clause: &str) -> &str {
    storage_clause.strip_suffix(", prunable").unwrap_or(storage_clause)
}

pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits (Fowler, Noll, Vo): for names and fingerprints, which nobody attacks and which
/// must never change.
pub(crate) const fn fnv1a(mut hash: u64, mut bytes: &[u8]) -> u64 {
    while let [first, rest @ ..] = bytes {
        hash = (hash ^ *first as u64).wrapping_mul(0x0100_0000_01b3);
        bytes = rest;
    }
    hash
}
