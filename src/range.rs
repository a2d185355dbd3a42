//! Ranges of keys: two bounds, each a key or a prefix of one.

use std::cmp::Ordering;
use std::ops::{Bound, RangeBounds};

use crate::key::{AsKey, Key, KeyBuf};

/// A range of a counter's keys.
///
/// A bound may be a prefix of a key, with fewer parts; then it stands for all keys with this
/// prefix. [`Counter`](crate::Counter) makes the typed ranges: [`under`](crate::Counter::under),
/// [`suffixes`](crate::Counter::suffixes), [`prefixes`](crate::Counter::prefixes).
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, KeyBuf};
///
/// const VISITS: Counter<(String, i64)> = Counter::new("page.visits");
/// let range = VISITS.suffixes("home", 10..20);
/// assert!(range.contains(&KeyBuf::of::<(String, i64)>(("home", 10))));
/// assert!(!range.contains(&KeyBuf::of::<(String, i64)>(("home", 20))));
/// ```
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
        Self { start: key.cloned().map_or(Bound::Unbounded, Bound::Excluded), end: Bound::Unbounded }
    }

    /// The keys with this encoded prefix; one key if the prefix has all of its parts.
    #[must_use]
    pub fn under(prefix: KeyBuf) -> Self {
        Self { start: Bound::Included(prefix.clone()), end: Bound::Included(prefix) }
    }

    /// The keys in a range; `K` is the counter's key, or the first of its parts.
    #[must_use]
    pub fn of<K: Key, X: AsKey<K>>(keys: impl RangeBounds<X>) -> Self {
        let bound = |bound: Bound<&X>| bound.map(KeyBuf::of::<K>);
        Self { start: bound(keys.start_bound()), end: bound(keys.end_bound()) }
    }

    pub(crate) fn suffixes<H: Key, T: Key, X: AsKey<T>>(
        prefix: &impl AsKey<H>,
        suffixes: &impl RangeBounds<X>,
    ) -> Self {
        let prefix = KeyBuf::of::<H>(prefix);
        let whole = |suffix: &X| {
            let mut key = prefix.clone();
            suffix.encode(&mut key);
            key
        };
        let bound = |bound: Bound<&X>| match bound.map(whole) {
            Bound::Unbounded => Bound::Included(prefix.clone()),
            bound => bound,
        };
        Self { start: bound(suffixes.start_bound()), end: bound(suffixes.end_bound()) }
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
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
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
            (Bound::Included(one) | Bound::Excluded(one), Bound::Included(two) | Bound::Excluded(two)) => {
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
        let bound = |prefix: &KeyBuf| [Bound::Included(prefix.clone()), Bound::Excluded(prefix.clone())];
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
                for key in [pair(-128, 0), pair(-1, 0), pair(-1, 1), pair(0, 126), pair(0, 127), pair(1, 0)] {
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
