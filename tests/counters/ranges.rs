//! Ranges of keys and their sums equal those of a filtered map of plain keys, in both stores: for
//! all kinds of bounds, key prefixes, limits, and sums beyond 64 bits. SQLite reads a range from
//! its index without a sort.

use std::collections::BTreeMap;
use std::ops::Bound;

use keepcount::backend::KeyRange;
use keepcount::sql::{self, Dialect, Value};
use keepcount::{
    Batch, Counter, CounterId, CounterRange, Error, KeyBuf, KeyError, MemoryStore, Schema,
    SqliteStore, Store,
};
use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::{Connection, params_from_iter};

const ONE: Counter<i16> = Counter::new("one");
const WORD: Counter<String> = Counter::new("word");
const TWO: Counter<(String, i64)> = Counter::new("two");
const THREE: Counter<(i8, (String, i64))> = Counter::new("three");
const FAR: Counter<((i8, String), i64)> = Counter::new("far");
const ALL: Counter<()> = Counter::new("all");
const SCHEMA: Schema =
    Schema::new(&[ONE.table(), WORD.table(), TWO.table(), THREE.table(), FAR.table(), ALL.table()]);

/// A part of a key, without the crate's types. It has the order that the crate must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Int(i64),
    Text(String),
}

type Parts = Vec<Part>;
type Ends = (Bound<Parts>, Bound<Parts>);

/// Whether a key is within these bounds. A bound may be a prefix, which stands for all keys that
/// begin with it.
fn within(key: &Parts, (start, end): &Ends) -> bool {
    let prefix = |bound: &Parts| key[..bound.len()].cmp(bound.as_slice());
    let starts = match start {
        Bound::Unbounded => true,
        Bound::Included(bound) => prefix(bound).is_ge(),
        Bound::Excluded(bound) => prefix(bound).is_gt(),
    };
    let ends = match end {
        Bound::Unbounded => true,
        Bound::Included(bound) => prefix(bound).is_le(),
        Bound::Excluded(bound) => prefix(bound).is_lt(),
    };
    starts && ends
}

fn int(part: &Part) -> i64 {
    if let Part::Int(value) = part { *value } else { panic!("{part:?}") }
}

fn text(part: &Part) -> &str {
    if let Part::Text(text) = part { text } else { panic!("{part:?}") }
}

fn small<T: TryFrom<i64>>(part: &Part) -> T {
    T::try_from(int(part)).ok().unwrap()
}

/// The key, or the prefix of one, as the crate encodes it.
fn encoded(counter: CounterId, parts: &[Part]) -> KeyBuf {
    match (counter.name(), parts) {
        (_, []) => KeyBuf::new(),
        ("one", [one]) => KeyBuf::of::<i16>(small::<i16>(one)),
        ("word" | "two", [one]) => KeyBuf::of::<String>(text(one)),
        ("two", [one, two]) => KeyBuf::of::<(String, i64)>((text(one), int(two))),
        (_, [one]) => KeyBuf::of::<i8>(small::<i8>(one)),
        (_, [one, two]) => KeyBuf::of::<(i8, String)>((small::<i8>(one), text(two))),
        (_, [one, two, three]) => {
            KeyBuf::of::<(i8, (String, i64))>((small::<i8>(one), (text(two), int(three))))
        }
        _ => panic!("{parts:?}"),
    }
}

fn texts() -> impl Strategy<Value = Part> {
    prop_oneof![
        "",
        "\0",
        "\0\0",
        "\u{1}",
        "\u{1}\0",
        "a",
        "a\0",
        "a\u{1}",
        "a\0\0b",
        "ab",
        "\u{7f}",
        "\u{10ffff}",
        "far longer than inline"
    ]
    .prop_map(|text: String| Part::Text(text))
}

fn ints(bounds: &'static [i64]) -> impl Strategy<Value = Part> {
    (0..bounds.len()).prop_map(|at| Part::Int(bounds[at]))
}

const WIDE: &[i64] = &[i64::MIN, i64::MIN + 1, -256, -1, 0, 1, 255, 256, i64::MAX - 1, i64::MAX];

/// A whole key of a counter.
fn key(counter: CounterId) -> BoxedStrategy<Parts> {
    match counter.name() {
        "one" => ints(&[-32768, -32767, -256, -1, 0, 1, 255, 32766, 32767])
            .prop_map(|one| vec![one])
            .boxed(),
        "word" => texts().prop_map(|one| vec![one]).boxed(),
        "two" => (texts(), ints(WIDE)).prop_map(|(one, two)| vec![one, two]).boxed(),
        "all" => Just(Vec::new()).boxed(),
        _ => (ints(&[-128, -1, 0, 127]), texts(), ints(WIDE))
            .prop_map(|(one, two, three)| vec![one, two, three])
            .boxed(),
    }
}

fn bound(counter: CounterId) -> impl Strategy<Value = Bound<Parts>> {
    (key(counter), 0..4_usize, 0..5_u8).prop_map(|(mut key, parts, kind)| {
        key.truncate(parts.max(usize::from(kind < 3)));
        match kind {
            0 | 3 => Bound::Included(key),
            1 | 4 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        }
    })
}

fn ends(counter: CounterId) -> impl Strategy<Value = Ends> {
    // Often both bounds have one prefix, as in ranges over time.
    let prefixes = (key(counter), key(counter), 0..3_usize, 0..5_u8, 0..5_u8).prop_map(
        |(one, mut two, same, start, end)| {
            let same = same.min(one.len());
            two[..same].clone_from_slice(&one[..same]);
            let bound = |key: &Parts, kind: u8| match kind {
                0 => Bound::Included(key.clone()),
                1 => Bound::Excluded(key.clone()),
                2 => Bound::Included(key[..same].to_vec()),
                3 => Bound::Excluded(key[..same].to_vec()),
                _ => Bound::Included(key[..key.len().min(same + 1)].to_vec()),
            };
            (bound(&one, start), bound(&two, end))
        },
    );
    prop_oneof![(bound(counter), bound(counter)), prefixes]
}

fn range_of(counter: CounterId, ends: &Ends) -> KeyRange {
    // `KeyRange::of` takes a key type. `Raw` passes bytes that are encoded already.
    let raw = |bound: &Bound<Parts>| bound.clone().map(|parts| Raw(encoded(counter, &parts)));
    KeyRange::of::<Raw>((raw(&ends.0), raw(&ends.1)))
}

/// Encoded parts of a key.
#[derive(Debug, Clone)]
struct Raw(KeyBuf);

impl keepcount::Key for Raw {
    const PARTS: keepcount::backend::KeyParts = keepcount::backend::KeyParts::NONE;

    fn decode(_: &mut &[u8]) -> Result<Self, KeyError> {
        Err(KeyError::Malformed)
    }
}

impl keepcount::AsKey<Self> for Raw {
    fn encode(&self, to: &mut KeyBuf) {
        to.push(self.0.as_bytes());
    }
}

struct Stores {
    memory: MemoryStore,
    conn: Connection,
}

impl Stores {
    fn new() -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.set_prepared_statement_cache_capacity(128);
        SqliteStore::new(&conn, &SCHEMA).create().unwrap();
        Self { memory: MemoryStore::new(&SCHEMA), conn }
    }

    fn apply(&self, batch: &Batch) {
        self.memory.apply(&mut batch.clone()).unwrap();
        SqliteStore::new(&self.conn, &SCHEMA).apply(&mut batch.clone()).unwrap();
    }

    /// Runs a check on both stores.
    fn each(&self, mut check: impl FnMut(&str, &mut dyn Store)) {
        check("in memory", &mut &self.memory);
        check("in SQLite", &mut SqliteStore::new(&self.conn, &SCHEMA));
    }
}

fn add(batch: &mut Batch, counter: CounterId, key: &Parts, amount: i64) {
    match (counter.name(), key.as_slice()) {
        ("one", [one]) => batch.add(ONE, small::<i16>(one), amount),
        ("word", [one]) => batch.add(WORD, text(one), amount),
        ("two", [one, two]) => batch.add(TWO, (text(one), int(two)), amount),
        ("three", [one, two, three]) => {
            batch.add(THREE, (small::<i8>(one), (text(two), int(three))), amount);
        }
        ("far", [one, two, three]) => {
            batch.add(FAR, ((small::<i8>(one), text(two)), int(three)), amount);
        }
        _ => batch.add(ALL, (), amount),
    }
}

#[derive(Debug, Clone)]
struct Case {
    counter: CounterId,
    totals: Vec<(Parts, i64)>,
    asks: Vec<(Ends, usize)>,
}

fn case() -> impl Strategy<Value = Case> {
    let counters = [ONE.id(), WORD.id(), TWO.id(), THREE.id(), FAR.id(), ALL.id()];
    (0..counters.len()).prop_flat_map(move |at| {
        let counter = counters[at];
        let limit = prop_oneof![0..5_usize, Just(1000), Just(usize::MAX)];
        (vec((key(counter), -9..=9_i64), 0..20), vec((ends(counter), limit), 1..12))
            .prop_map(move |(totals, asks)| Case { counter, totals, asks })
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn ranges_and_sums_equal_a_filtered_map_in_both_stores(
        Case { counter, totals, asks } in case()
    ) {
        let stores = Stores::new();
        let mut map: BTreeMap<Parts, i64> = BTreeMap::new();
        let mut batch = Batch::new();
        for (key, amount) in &totals {
            add(&mut batch, counter, key, *amount);
            *map.entry(key.clone()).or_insert(0) += amount;
        }
        stores.apply(&batch);
        map.retain(|_, total| *total != 0);
        for (ends, limit) in &asks {
            let range = range_of(counter, ends);
            let wanted: Vec<(KeyBuf, i64)> = map
                .iter()
                .filter(|(key, _)| within(key, ends))
                .map(|(key, total)| (encoded(counter, key), *total))
                .collect();
            let sum: i64 = wanted.iter().map(|(_, total)| total).sum();
            stores.each(|store_is, store| {
                let all = store.read_range(counter, &range, usize::MAX).unwrap();
                let page = store.read_range(counter, &range, *limit).unwrap();
                assert_eq!(
                    page, all[..all.len().min(*limit)],
                    "{store_is}: {ends:?} up to {limit}"
                );
                let found: Vec<(KeyBuf, i64)> =
                    all.into_iter().filter(|(_, total)| *total != 0).collect();
                assert_eq!(found, wanted, "{store_is}: {ends:?}");
                assert_eq!(store.sum_range(counter, &range).unwrap(), sum, "{store_is}: {ends:?}");
            });
            for (key, _) in &totals {
                prop_assert_eq!(
                    range.contains(&encoded(counter, key)), within(key, ends),
                    "{:?} in {:?}", key, ends
                );
            }
        }
    }
}

/// Stores with totals of 1 in [`TWO`], and the sorted keys of these.
fn pairs() -> (Stores, Vec<(String, i64)>) {
    let stores = Stores::new();
    let mut batch = Batch::new();
    let mut keys = Vec::new();
    for prefix in ["", "\0", "a", "a\0", "a\0\u{1}", "a\u{1}", "b"] {
        for suffix in WIDE {
            batch.add(TWO, (prefix, *suffix), 1);
            keys.push((prefix.to_owned(), *suffix));
        }
    }
    stores.apply(&batch);
    keys.sort();
    (stores, keys)
}

fn check_pairs(range: &CounterRange<(String, i64)>, is: impl Fn(&str, i64) -> bool) {
    let (stores, keys) = pairs();
    let wanted: Vec<(String, i64)> =
        keys.into_iter().filter(|(prefix, suffix)| is(prefix, *suffix)).collect();
    stores.each(|store_is, mut store| {
        let found: Vec<(String, i64)> = Store::range(&mut store, range.clone(), usize::MAX)
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(found, wanted, "{store_is}: {range:?}");
        assert_eq!(
            Store::sum(&mut store, range.clone()).unwrap(),
            i64::try_from(wanted.len()).unwrap(),
            "{store_is}: {range:?}"
        );
    });
}

#[test]
fn typed_ranges_contain_exactly_their_keys() {
    check_pairs(&TWO.under("a"), |prefix, _| prefix == "a");
    check_pairs(&TWO.under("a\0"), |prefix, _| prefix == "a\0");
    check_pairs(&TWO.under("not there"), |_, _| false);
    check_pairs(&TWO.suffixes("a", 0..), |prefix, suffix| prefix == "a" && suffix >= 0);
    check_pairs(&TWO.suffixes("a", ..0), |prefix, suffix| prefix == "a" && suffix < 0);
    check_pairs(&TWO.suffixes("a", ..=0), |prefix, suffix| prefix == "a" && suffix <= 0);
    check_pairs(&TWO.suffixes("a", -1..=1), |prefix, suffix| {
        prefix == "a" && (-1..=1).contains(&suffix)
    });
    check_pairs(&TWO.suffixes("a", i64::MIN..=i64::MAX), |prefix, _| prefix == "a");
    check_pairs(&TWO.suffixes("a", i64::MIN..i64::MAX), |prefix, suffix| {
        prefix == "a" && suffix != i64::MAX
    });
    check_pairs(&TWO.suffixes("", ..), |prefix, _| prefix.is_empty());
    let after = (Bound::Excluded(i64::MAX), Bound::Unbounded);
    check_pairs(&TWO.suffixes("a", after), |_, _| false);
    let between = (Bound::Excluded(-256), Bound::Excluded(255));
    check_pairs(&TWO.suffixes("b", between), |prefix, suffix| {
        prefix == "b" && -256 < suffix && suffix < 255
    });
    #[allow(clippy::reversed_empty_ranges)]
    check_pairs(&TWO.suffixes("a", 1..0), |_, _| false);
    check_pairs(&TWO.suffixes("a", 1..1), |_, _| false);
    check_pairs(&TWO.prefixes("a".."b"), |prefix, _| ("a".."b").contains(&prefix));
    check_pairs(&TWO.prefixes("a"..="a\0"), |prefix, _| prefix == "a" || prefix == "a\0");
    check_pairs(&TWO.prefixes("a\u{1}"..), |prefix, _| prefix >= "a\u{1}");
    check_pairs(&TWO.prefixes(..), |_, _| true);
    let behind: (Bound<&str>, Bound<&str>) = (Bound::Excluded("a"), Bound::Unbounded);
    check_pairs(&TWO.prefixes(behind), |prefix, _| prefix > "a");
    check_pairs(&TWO.all(), |_, _| true);
}

#[test]
fn range_after_the_last_key_reads_page_by_page() {
    let (stores, keys) = pairs();
    let start = TWO.prefixes("\0"..="a\0");
    let wanted: Vec<&(String, i64)> =
        keys.iter().filter(|(prefix, _)| ("\0"..="a\0").contains(&prefix.as_str())).collect();
    stores.each(|store_is, mut store| {
        let (mut range, mut found) = (start.clone(), Vec::new());
        loop {
            let page = Store::range(&mut store, range.clone(), 3).unwrap();
            let Some((last, _)) = page.last() else { break };
            range = range.after(last);
            found.extend(page.into_iter().map(|(key, _)| key));
        }
        assert_eq!(found.iter().collect::<Vec<_>>(), wanted, "{store_is}");
    });
}

#[test]
fn bound_that_is_not_a_key_prefix_is_refused() {
    let stores = Stores::new();
    let no_text = KeyBuf::of::<u16>(0x6162_u16);
    let too_many = KeyBuf::of::<((String, i64), i64)>((("a", 1_i64), 2_i64));
    for prefix in [no_text, too_many] {
        for range in [KeyRange::under(prefix.clone()), KeyRange::after(Some(&prefix))] {
            stores.each(|store_is, store| {
                let refused = store.read_range(TWO.id(), &range, 9);
                assert!(
                    matches!(refused, Err(Error::Key { counter: "two", .. })),
                    "{store_is}: {refused:?}"
                );
                let refused = store.sum_range(TWO.id(), &range);
                assert!(
                    matches!(refused, Err(Error::Key { counter: "two", .. })),
                    "{store_is}: {refused:?}"
                );
            });
        }
    }
    let unknown = Counter::<i64>::new("unknown").id();
    stores.each(|store_is, store| {
        let refused = store.sum_range(unknown, &KeyRange::ALL);
        assert!(matches!(refused, Err(Error::UnknownCounter { .. })), "{store_is}: {refused:?}");
    });
}

fn sums(totals: &[i64]) -> Vec<keepcount::Result<i64>> {
    let stores = Stores::new();
    let mut batch = Batch::new();
    for (at, total) in (0..).zip(totals) {
        batch.add(TWO, ("a", at), *total);
    }
    batch.add(TWO, ("b", 0), 1);
    stores.apply(&batch);
    let mut sums = Vec::new();
    stores.each(|_, mut store| sums.push(Store::sum(&mut store, TWO.under("a"))));
    sums
}

#[test]
fn a_sum_that_leaves_64_bits_is_an_error() {
    for totals in [&[i64::MAX, 1][..], &[i64::MIN, -1], &[i64::MAX; 3]] {
        for sum in sums(totals) {
            assert!(
                matches!(sum, Err(Error::Overflow { counter: "two", what: "sum", .. })),
                "{totals:?}: {sum:?}"
            );
        }
    }
    for totals in [&[i64::MAX - 1, 1][..], &[i64::MIN + 1, -1], &[i64::MIN, i64::MAX]] {
        for sum in sums(totals) {
            assert_eq!(sum.unwrap(), totals.iter().sum::<i64>());
        }
    }
}

#[test]
fn sum_with_partial_sums_beyond_64_bits_is_the_same_in_both_stores() {
    for totals in [[i64::MAX, 1, -5], [i64::MIN, -1, 7], [i64::MAX, i64::MAX, i64::MIN]] {
        let shown: Vec<String> = sums(&totals).iter().map(|sum| format!("{sum:?}")).collect();
        assert_eq!(shown[0], shown[1], "{totals:?}: in memory and in SQLite");
    }
}

#[test]
fn sum_of_an_empty_range_is_zero() {
    let stores = Stores::new();
    stores.each(|store_is, store| {
        for counter in [ONE.id(), WORD.id(), TWO.id(), THREE.id(), ALL.id()] {
            assert_eq!(store.sum_range(counter, &KeyRange::ALL).unwrap(), 0, "{store_is}");
            assert_eq!(store.read_range(counter, &KeyRange::ALL, 9).unwrap(), [], "{store_is}");
        }
    });
}

fn plan(counter: CounterId, range: &KeyRange) -> [String; 2] {
    let stores = Stores::new();
    let spec = SCHEMA.spec(&counter).unwrap();
    [
        sql::range(Dialect::Sqlite, spec, range, 10).unwrap(),
        sql::sum(Dialect::Sqlite, spec, range).unwrap(),
    ]
    .map(|query| {
        let mut plan = stores.conn.prepare(&format!("EXPLAIN QUERY PLAN {}", query.text)).unwrap();
        let values = query.values.iter().map(|value| match value {
            Value::Integer(value) => rusqlite::types::Value::Integer(*value),
            Value::Text(text) => rusqlite::types::Value::Text(text.clone().into_owned()),
            Value::Blob(bytes) | Value::Uuid(bytes) => rusqlite::types::Value::Blob(bytes.to_vec()),
            arrays => panic!("{arrays:?} in SQLite"),
        });
        let lines =
            plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        lines.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ")
    })
}

#[test]
fn sqlite_searches_the_index_for_a_range_and_sorts_nothing() {
    for (counter, range, searched) in [
        (TWO.id(), TWO.under("a").keys().clone(), "(key_1=?)"),
        (TWO.id(), TWO.suffixes("a", 3..).keys().clone(), "(key_1=? AND key_2>?)"),
        (TWO.id(), TWO.suffixes("a", ..9).keys().clone(), "(key_1=? AND key_2<?)"),
        (TWO.id(), TWO.suffixes("a", 3..=9).keys().clone(), "(key_1=? AND key_2>? AND key_2<?)"),
        (
            TWO.id(),
            TWO.suffixes("a", 3..9).after(("a", 4)).keys().clone(),
            "(key_1=? AND key_2>? AND key_2<?)",
        ),
        (TWO.id(), TWO.prefixes("a".."b").keys().clone(), "(key_1>? AND key_1<?)"),
        (
            FAR.id(),
            FAR.suffixes((1_i8, "a"), 3..).keys().clone(),
            "(key_1=? AND key_2=? AND key_3>?)",
        ),
        (FAR.id(), FAR.under((1_i8, "a")).keys().clone(), "(key_1=? AND key_2=?)"),
        (THREE.id(), THREE.under(1_i8).keys().clone(), "(key_1=?)"),
        (ONE.id(), ONE.keys(3..9).keys().clone(), "(key>? AND key<?)"),
    ] {
        for plan in plan(counter, &range) {
            assert!(plan.contains("SEARCH") && plan.contains(searched), "{range:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{range:?}: {plan}");
        }
    }
    for plan in plan(TWO.id(), &KeyRange::ALL) {
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }
}

#[test]
fn totals_of_many_keys_come_in_the_order_asked() {
    fn read(mut store: impl Store, batch: &Batch) -> [Vec<i64>; 2] {
        store.apply(&mut batch.clone()).unwrap();
        let two = [("b", 2), ("a", 9), ("b", 2)];
        [store.totals_of(ONE, [7, -1, 3, 7]).unwrap(), store.totals_of(TWO, two).unwrap()]
    }

    let mut batch = Batch::new();
    batch.add(ONE, 3, 30);
    batch.add(ONE, 7, 70);
    batch.add(TWO, ("b", 2), 5);
    let conn = Connection::open_in_memory().unwrap();
    let mut sqlite = SqliteStore::new(&conn, &SCHEMA);
    sqlite.create().unwrap();
    let memory = MemoryStore::new(&SCHEMA);
    let expected = [vec![70, 0, 30, 70], vec![5, 0, 5]];
    assert_eq!(read(&mut sqlite, &batch), expected);
    assert_eq!(read(&memory, &batch), expected);
    assert_eq!(memory.totals_of(ONE, [7, -1, 3, 7]).unwrap(), expected[0]);
}
