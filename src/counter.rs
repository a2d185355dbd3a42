//! A counter's handle: typed as `Counter<K>`, without its type as `Def`, with its place as `Placed`.

use std::fmt;
use std::marker::PhantomData;

use crate::key::{Key, KeyBuf, KeyParts};

/// A counter grouped by keys of type `K`: a name, and nothing else at run time.
///
/// # Examples
///
/// ```
/// use keepcount::Counter;
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// assert_eq!(SHOW_VOTES.def().name(), "show.votes");
/// ```
///
/// A name that is none does not compile:
///
/// ```compile_fail
/// # use keepcount::Counter;
/// const SHOW_VOTES: Counter<i64> = Counter::new("Show Votes");
/// ```
pub struct Counter<K> {
    def: Def,
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
        self.def.fmt(f)
    }
}

impl<K: Key> Counter<K> {
    /// A counter of this name, version 1. A name has 1 to 48 of the characters `a-z 0-9 _ .`
    ///
    /// # Panics
    ///
    /// When the name is none; in a `const`, where counters belong, that is a compile error.
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
        let (id, parts) = (fnv1a(FNV_OFFSET, name.as_bytes()), K::PARTS);
        Self { def: Def { name, id, version: 1, parts, code: parts.code() }, key: PhantomData }
    }

    /// The same counter with another version; raise it when the meaning of the tally changes, since code cannot be
    /// compared.
    #[must_use]
    pub const fn version(mut self, version: u32) -> Self {
        self.def.version = version;
        self
    }

    /// The counter without its key's type.
    #[must_use]
    pub const fn def(self) -> Def {
        self.def
    }

    /// This counter, placed in a table of its own, for a [`Layout`](crate::Layout).
    #[must_use]
    pub const fn table(self) -> Placed {
        Placed { def: self.def }
    }
}

/// What identifies a counter: its name, version, and the parts of its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Def {
    name: &'static str,
    id: u64,
    version: u32,
    parts: KeyParts,
    /// `parts.code()`.
    code: u64,
}

impl Def {
    /// The counter's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// A 64-bit hash of the name, the same in every process; a [`Layout`](crate::Layout) refuses two names with one hash.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The version that the counter's author gave it.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The parts of the counter's key.
    #[must_use]
    pub const fn parts(&self) -> KeyParts {
        self.parts
    }

    /// The name of its table: its own, with underscores for dots.
    pub(crate) fn table_name(&self) -> String {
        self.name.replace('.', "_")
    }

    /// Whether both are one counter, declared alike; as `==`, without comparing names.
    #[inline]
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.id == other.id && self.version == other.version && self.code == other.code
    }

    /// A key as text for people: parts joined by commas, `()` for the empty key. Tabs, newlines and backslashes are
    /// escaped; bytes that are no key of this counter are shown in hexadecimal.
    #[must_use]
    pub fn show(&self, key: &KeyBuf) -> String {
        match self.parts.values(key) {
            Ok(values) if values.is_empty() => "()".to_owned(),
            Ok(values) => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            Err(_) => format!("0x{key:?}"),
        }
    }
}

impl fmt::Debug for Def {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({})", self.name, self.version, self.parts)
    }
}

/// A counter and the place of its totals, made by [`Counter::table`](crate::Counter::table).
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    def: Def,
}

impl Placed {
    /// The counter.
    #[must_use]
    pub const fn def(&self) -> Def {
        self.def
    }

    /// Where the totals live, as the catalogue and the fingerprint say it.
    #[must_use]
    pub const fn place(&self) -> &'static str {
        "table"
    }

    /// The table's name: the counter's, with underscores for dots.
    #[must_use]
    pub fn table_name(&self) -> String {
        self.def.table_name()
    }
}

pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits (Fowler, Noll, Vo): for names and fingerprints, which nobody attacks and which must never change.
pub(crate) const fn fnv1a(mut hash: u64, mut bytes: &[u8]) -> u64 {
    while let [first, rest @ ..] = bytes {
        hash = (hash ^ *first as u64).wrapping_mul(0x0100_0000_01b3);
        bytes = rest;
    }
    hash
}
