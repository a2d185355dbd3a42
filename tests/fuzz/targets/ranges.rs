//! Ranges of keys. Bounds of every length are compared with plain values, in a range itself and in
//! a store that reads and sums it. With any bytes as bounds, a store and SQL both accept the range
//! or both refuse it.
#![no_main]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Bound;

use arbitrary::{Arbitrary, Unstructured};
use keepcount::backend::{KeyParts, KeyRange};
use keepcount::sql::{self, Dialect};
use keepcount::{AsKey, Batch, Counter, Error, Key, KeyBuf, KeyError, MemoryStore, Schema, Store};
use libfuzzer_sys::fuzz_target;

/// Kept in key order by a memory store.
const PLACES: Counter<(i8, String, u8)> = Counter::new("places");
/// Kept in no order.
const NAMES: Counter<String> = Counter::new("names");
const SCHEMA: Schema = Schema::new(&[PLACES.table(), NAMES.table()]);

#[derive(Debug, Arbitrary)]
struct Input {
    totals: Vec<(Place, i64)>,
    start: Bound<Head>,
    end: Bound<Head>,
    behind: Place,
    limit: u8,
    raw: (Bound<Vec<u8>>, Bound<Vec<u8>>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Arbitrary)]
struct Place(i8, Text, u8);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Text(String);

/// One character for each byte, so that characters that an encoding treats specially are frequent.
impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(Vec::<u8>::arbitrary(input)?.into_iter().map(char::from).collect()))
    }
}

/// The first parts of a place.
#[derive(Debug, Clone, Arbitrary)]
struct Head {
    of: Place,
    parts: u8,
}

/// A part of a key without the crate's types.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(i64),
    Text(String),
}

/// A key, or its first parts, as values and as the crate encodes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Both(Vec<Part>, KeyBuf);

impl Place {
    fn prefix(&self, parts: usize) -> Both {
        let Self(place, Text(name), floor) = self;
        let all = [
            Part::Number((*place).into()),
            Part::Text(name.clone()),
            Part::Number((*floor).into()),
        ];
        let encoded = match parts {
            0 => KeyBuf::new(),
            1 => KeyBuf::of::<i8>(place),
            2 => KeyBuf::of::<(i8, String)>((place, name)),
            _ => KeyBuf::of::<(i8, String, u8)>((place, name, floor)),
        };
        Both(all.into_iter().take(parts).collect(), encoded)
    }

    fn name(&self) -> Both {
        Both(vec![Part::Text(self.1.0.clone())], KeyBuf::of::<String>(&self.1.0))
    }
}

/// Bytes that pass for an encoded key.
struct Raw<'a>(&'a [u8]);
struct AnyKey;

impl Key for AnyKey {
    const PARTS: KeyParts = KeyParts::NONE;

    fn decode(_: &mut &[u8]) -> Result<Self, KeyError> {
        Err(KeyError::Malformed)
    }
}

impl AsKey<AnyKey> for Raw<'_> {
    fn encode(&self, to: &mut KeyBuf) {
        to.push(self.0);
    }
}

fn range_of(start: Bound<&[u8]>, end: Bound<&[u8]>) -> KeyRange {
    KeyRange::of::<AnyKey>((start.map(Raw), end.map(Raw)))
}

fuzz_target!(|input: Input| {
    let store = MemoryStore::new(&SCHEMA);
    let (mut places, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (place, total) in &input.totals {
        // Added to an existing total, it may overflow.
        let mut batch = Batch::new();
        batch.add(PLACES, (place.0, &place.1.0, place.2), *total);
        if store.apply(&mut batch.clone()).is_ok() {
            *places.entry(place.prefix(3)).or_insert(0) += total;
        }
        batch.clear();
        batch.add(NAMES, &place.1.0, *total);
        if store.apply(&mut batch).is_ok() {
            *names.entry(place.name()).or_insert(0) += total;
        }
    }
    let limit = input.limit.into();
    let [start, end] = [&input.start, &input.end]
        .map(|bound| bound.as_ref().map(|prefix| prefix.of.prefix(usize::from(prefix.parts) % 4)));
    let range = Range { start, end, behind: input.behind.prefix(3) };
    range.check(&store, PLACES, &places, limit);
    let [start, end] =
        [&input.start, &input.end].map(|bound| bound.as_ref().map(|prefix| prefix.of.name()));
    Range { start, end, behind: input.behind.name() }.check(&store, NAMES, &names, limit);
    check_raw(
        &store,
        &range_of(input.raw.0.as_ref().map(Vec::as_slice), input.raw.1.as_ref().map(Vec::as_slice)),
    );
});

struct Range {
    start: Bound<Both>,
    end: Bound<Both>,
    behind: Both,
}

impl Range {
    /// A bound is compared with as many parts of a key as it has.
    fn contains(&self, Both(key, _): &Both) -> bool {
        let prefix = |bound: &Both| key.get(..bound.0.len()).unwrap().cmp(&bound.0);
        let starts = match &self.start {
            Bound::Unbounded => true,
            Bound::Included(start) => prefix(start).is_ge(),
            Bound::Excluded(start) => prefix(start).is_gt(),
        };
        starts
            && match &self.end {
                Bound::Unbounded => true,
                Bound::Included(end) => prefix(end).is_le(),
                Bound::Excluded(end) => prefix(end).is_lt(),
            }
    }

    fn check<K: Key>(
        &self,
        store: &MemoryStore,
        counter: Counter<K>,
        totals: &BTreeMap<Both, i64>,
        limit: usize,
    ) {
        let bytes =
            |bound: &Bound<Both>| bound.as_ref().map(|Both(_, key)| key.as_bytes().to_vec());
        let (start, end) = (bytes(&self.start), bytes(&self.end));
        let range = range_of(start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
        let behind = range.clone().behind(&self.behind.1);
        for key in totals.keys().chain([&self.behind]) {
            assert_eq!(range.contains(&key.1), self.contains(key), "{range:?} {key:?}");
            assert_eq!(
                behind.contains(&key.1),
                self.contains(key) && *key > self.behind,
                "{behind:?} {key:?}"
            );
        }
        let inside = || totals.iter().filter(|(key, total)| **total != 0 && self.contains(key));
        read(
            store,
            counter,
            &range,
            &inside().map(|(key, total)| (key.1.clone(), *total)).collect::<Vec<_>>(),
            limit,
        );
        let rest = inside().filter(|(key, _)| **key > self.behind);
        read(
            store,
            counter,
            &behind,
            &rest.map(|(key, total)| (key.1.clone(), *total)).collect::<Vec<_>>(),
            limit,
        );
    }
}

/// A store must read and sum what is inside.
fn read<K: Key>(
    store: &MemoryStore,
    counter: Counter<K>,
    range: &KeyRange,
    inside: &[(KeyBuf, i64)],
    limit: usize,
) {
    let id = counter.id();
    assert_eq!(
        Store::read_range(&mut &*store, id, range, limit).unwrap(),
        inside.get(..limit).unwrap_or(inside),
        "{range:?}"
    );
    let sum: i128 = inside.iter().map(|(_, total)| i128::from(*total)).sum();
    match Store::sum_range(&mut &*store, id, range) {
        Ok(found) => assert_eq!(i128::from(found), sum, "{range:?}"),
        Err(Error::Overflow { counter, what: "sum", .. }) => {
            assert!(counter == id.name() && i64::try_from(sum).is_err(), "{range:?}");
        }
        Err(other) => panic!("{other}"),
    }
}

/// A bound that is not the beginning of a key is refused by every read, and by SQL.
fn check_raw(store: &MemoryStore, range: &KeyRange) {
    for spec in SCHEMA.counters() {
        let found = Store::read_range(&mut &*store, spec.id(), range, usize::MAX);
        let summed = Store::sum_range(&mut &*store, spec.id(), range);
        let query = sql::range(Dialect::Sqlite, spec, range, 1);
        let Ok(found) = found else {
            assert!(
                matches!(found, Err(Error::Key { cause: KeyError::Malformed, .. })),
                "{found:?}"
            );
            assert!(
                matches!(summed, Err(Error::Key { cause: KeyError::Malformed, .. })),
                "{summed:?}"
            );
            assert!(
                matches!(query, Err(Error::Key { cause: KeyError::Malformed, .. })),
                "{query:?}"
            );
            continue;
        };
        assert!(found.iter().all(|(key, _)| range.contains(key)), "{range:?} {found:?}");
        let too_long = matches!(query, Err(Error::Key { cause: KeyError::TooLong { .. }, .. }));
        assert!(query.is_ok() || too_long, "{query:?}");
    }
}
