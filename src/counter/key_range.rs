//! Ranges of keys: two bounds, each a key or a prefix of one.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{
    Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive,
};

use crate::counter::{Counter, CounterId};
use crate::key::{AsKey, Key, KeyBuf};

/// A range of a counter's keys, with the counter: what [`Store::range`](crate::Store::range) and
/// [`Store::sum`](crate::Store::sum) read.
///
/// [`Counter`] makes it: [`all`](Counter::all) and [`keys`](Counter::keys); and for a key that is a
/// pair, [`under`](Counter::under), [`suffixes`](Counter::suffixes) and
/// [`prefixes`](Counter::prefixes).
///
/// # Examples
///
/// ```
/// use keepcount::Counter;
///
/// const VISITS: Counter<(String, i64)> = Counter::new("page.visits");
/// let range = VISITS.suffixes("home", 10..20);
/// assert!(range.contains(("home", 10)));
/// assert!(!range.contains(("home", 20)));
/// ```
pub struct CounterRange<K> {
    counter: CounterId,
    keys: KeyRange,
    key: PhantomData<fn() -> K>,
}

impl<K> Clone for CounterRange<K> {
    fn clone(&self) -> Self {
        Self { keys: self.keys.clone(), ..*self }
    }
}

impl<K> fmt::Debug for CounterRange<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CounterRange")
            .field("counter", &self.counter)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<K: Key> CounterRange<K> {
    pub(crate) const fn new(counter: &Counter<K>, keys: KeyRange) -> Self {
        Self { counter: counter.id(), keys, key: PhantomData }
    }

    /// The counter without its key type.
    #[must_use]
    pub const fn counter(&self) -> &CounterId {
        &self.counter
    }

    /// The range without its key type.
    #[must_use]
    pub const fn keys(&self) -> &KeyRange {
        &self.keys
    }

    /// The same range without the keys up to this one: for the next page.
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
    /// (0..5).for_each(|show| batch.add(SHOW_VOTES, show, 1));
    /// store.apply(&mut batch)?;
    ///
    /// let (mut range, mut shows) = (SHOW_VOTES.all(), Vec::new());
    /// loop {
    ///     let page = store.range(range.clone(), 2)?;
    ///     let Some((last, _)) = page.last() else { break };
    ///     range = range.after(last);
    ///     shows.extend(page.iter().map(|(show, _)| *show));
    /// }
    /// assert_eq!(shows, [0, 1, 2, 3, 4]);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[must_use]
    pub fn after(self, key: impl AsKey<K>) -> Self {
        Self { keys: self.keys.behind(&KeyBuf::of::<K>(key)), ..self }
    }

    /// Whether a key is in the range.
    #[must_use]
    pub fn contains(&self, key: impl AsKey<K>) -> bool {
        self.keys.contains(&KeyBuf::of::<K>(key))
    }
}

/// A range of values of type `K`: `..`, `a..b`, `a..=b`, `a..`, `..b`, `..=b`, or a pair of
/// [`Bound`]s.
///
/// `..` needs no type, unlike [`RangeBounds`].
pub trait KeyBounds<K> {
    /// The lower and the upper bound, encoded.
    fn encoded(self) -> (Bound<KeyBuf>, Bound<KeyBuf>);
}

impl<K> KeyBounds<K> for RangeFull {
    fn encoded(self) -> (Bound<KeyBuf>, Bound<KeyBuf>) {
        (Bound::Unbounded, Bound::Unbounded)
    }
}

macro_rules! bounds {
    ($($range:ty),*) => {
        $(
            impl<K: Key, X: AsKey<K>> KeyBounds<K> for $range {
                fn encoded(self) -> (Bound<KeyBuf>, Bound<KeyBuf>) {
                    (self.start_bound().map(KeyBuf::of::<K>), self.end_bound().map(KeyBuf::of::<K>))
                }
            }
        )*
    };
}

bounds!(
    Range<X>,
    RangeInclusive<X>,
    RangeFrom<X>,
    RangeTo<X>,
    RangeToInclusive<X>,
    (Bound<X>, Bound<X>)
);

/// A range of keys without their type, for a store of your own.
///
/// A bound may be a prefix of a key, with fewer parts; then it stands for all keys with this
/// prefix. [`CounterRange`] is the typed range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    start: Bound<KeyBuf>,
    end: Bound<KeyBuf>,
}

impl KeyRange {
    /// All keys.
    pub const ALL: Self = Self { start: Bound::Unbounded, end: Bound::Unbounded };

    /// The keys after this one; all keys for `None`.
    #[must_use]
    pub fn after(key: Option<&KeyBuf>) -> Self {
        Self {
            start: key.cloned().map_or(Bound::Unbounded, Bound::Excluded),
            end: Bound::Unbounded,
        }
    }

    /// The keys with this encoded prefix; one key if the prefix has all of its parts.
    #[must_use]
    pub fn under(prefix: KeyBuf) -> Self {
        Self { start: Bound::Included(prefix.clone()), end: Bound::Included(prefix) }
    }

    /// The keys in a range; `K` is the counter's key, or the first of its parts.
    #[must_use]
    pub fn of<K>(keys: impl KeyBounds<K>) -> Self {
        let (start, end) = keys.encoded();
        Self { start, end }
    }

    pub(crate) fn suffixes<T>(prefix: &KeyBuf, suffixes: impl KeyBounds<T>) -> Self {
        let whole = |suffix: KeyBuf| {
            let mut key = prefix.clone();
            key.push(suffix.as_bytes());
            key
        };
        let bound = |bound: Bound<KeyBuf>| match bound.map(whole) {
            Bound::Unbounded => Bound::Included(prefix.clone()),
            bound => bound,
        };
        let (start, end) = suffixes.encoded();
        Self { start: bound(start), end: bound(end) }
    }

    /// The same range without the keys up to this one: for the next page.
    #[must_use]
    pub fn behind(mut self, key: &KeyBuf) -> Self {
        if !self.starts_after(key) {
            self.start = Bound::Excluded(key.clone());
        }
        self
    }

    /// The same range without the keys after this one, which is a whole key.
    #[cfg(feature = "sql")]
    pub(crate) fn up_to(mut self, last: &KeyBuf) -> Self {
        self.end = Bound::Included(last.clone());
        self
    }

    /// Whether a key is in the range.
    #[must_use]
    pub fn contains(&self, key: &KeyBuf) -> bool {
        let begins = |bound: &KeyBuf| prefix_cmp(key, bound);
        !self.starts_after(key)
            && match &self.end {
                Bound::Unbounded => true,
                Bound::Included(end) => begins(end) != Ordering::Greater,
                Bound::Excluded(end) => begins(end) == Ordering::Less,
            }
    }

    fn starts_after(&self, key: &KeyBuf) -> bool {
        match &self.start {
            Bound::Unbounded => false,
            Bound::Included(start) => prefix_cmp(key, start) == Ordering::Less,
            Bound::Excluded(start) => prefix_cmp(key, start) != Ordering::Greater,
        }
    }

    /// The lower bound.
    #[must_use]
    pub const fn start(&self) -> &Bound<KeyBuf> {
        &self.start
    }

    /// The upper bound.
    #[must_use]
    pub const fn end(&self) -> &Bound<KeyBuf> {
        &self.end
    }

    /// The same range as encodings: from the first one on, up to but excluding the last. `None` if
    /// it is empty.
    pub(crate) fn as_bytes(&self) -> Option<(Bound<KeyBuf>, Bound<KeyBuf>)> {
        let start = match &self.start {
            Bound::Unbounded => Bound::Unbounded,
            Bound::Included(start) => Bound::Included(start.clone()),
            Bound::Excluded(start) => Bound::Included(successor(start)?),
        };
        let end = match &self.end {
            Bound::Excluded(end) => Bound::Excluded(end.clone()),
            Bound::Included(end) => successor(end).map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded => Bound::Unbounded,
        };
        match (&start, &end) {
            (Bound::Included(start), Bound::Excluded(end)) if start >= end => None,
            _ => Some((start, end)),
        }
    }

    /// The bytes with which every key of the range begins, as far as both bounds agree.
    pub(crate) fn shared(&self) -> &[u8] {
        match (&self.start, &self.end) {
            (
                Bound::Included(one) | Bound::Excluded(one),
                Bound::Included(two) | Bound::Excluded(two),
            ) => {
                let (one, two) = (one.as_bytes(), two.as_bytes());
                let same = one.iter().zip(two).take_while(|(one, two)| one == two).count();
                one.get(..same).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

/// Compares the bound with as many first bytes of the key as it has.
fn prefix_cmp(key: &KeyBuf, bound: &KeyBuf) -> Ordering {
    let (key, bound) = (key.as_bytes(), bound.as_bytes());
    key.get(..bound.len()).unwrap_or(key).cmp(bound)
}

/// The first encoding after all that begin with these bytes; `None` if there is none.
fn successor(key: &KeyBuf) -> Option<KeyBuf> {
    let bytes = key.as_bytes();
    let last = bytes.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut next = bytes.get(..=last)?.to_vec();
    if let Some(byte) = next.last_mut() {
        *byte += 1;
    }
    Some(KeyBuf::from_bytes(&next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: i8, b: i8) -> KeyBuf {
        KeyBuf::of::<(i8, i8)>((a, b))
    }

    fn bounds() -> Vec<Bound<KeyBuf>> {
        let mut prefixes = vec![KeyBuf::new()];
        for one in [-128, -1, 0, 127] {
            prefixes.push(KeyBuf::of::<i8>(one));
            prefixes.extend([-128, 0, 127].map(|two| pair(one, two)));
        }
        let bound =
            |prefix: &KeyBuf| [Bound::Included(prefix.clone()), Bound::Excluded(prefix.clone())];
        prefixes.iter().flat_map(bound).chain([Bound::Unbounded]).collect()
    }

    #[test]
    fn whole_encodings_say_the_same_as_the_bounds() {
        let keys: Vec<KeyBuf> = [-128, -127, -1, 0, 1, 126, 127]
            .iter()
            .flat_map(|one| [-128, -1, 0, 127].map(|two| pair(*one, two)))
            .collect();
        for start in bounds() {
            for end in bounds() {
                let range = KeyRange { start: start.clone(), end: end.clone() };
                let bytes = range.as_bytes();
                for key in &keys {
                    let inside = bytes.as_ref().is_some_and(|bounds| bounds.contains(key));
                    assert_eq!(inside, range.contains(key), "{range:?} {key:?}");
                    if inside {
                        assert!(key.as_bytes().starts_with(range.shared()), "{range:?} {key:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn behind_leaves_what_is_behind() {
        for start in bounds() {
            let range = KeyRange { start, end: Bound::Included(KeyBuf::of::<i8>(0)) };
            for before in [pair(-128, -128), pair(-1, 0), pair(0, 127), pair(127, 0)] {
                let behind = range.clone().behind(&before);
                for key in [
                    pair(-128, 0),
                    pair(-1, 0),
                    pair(-1, 1),
                    pair(0, 126),
                    pair(0, 127),
                    pair(1, 0),
                ] {
                    assert_eq!(
                        behind.contains(&key),
                        range.contains(&key) && key > before,
                        "{range:?} {before:?} {key:?}"
                    );
                }
            }
        }
    }
}
