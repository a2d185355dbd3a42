//! `MemoryStore` between threads and across restarts. Totals are exact, batches are seen whole or
//! not at all, a snapshot is one moment, and damaged snapshots are refused.
#![allow(clippy::disallowed_methods)]

use crate::support::random::Random;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use keepcount::backend::KeyRange;
use keepcount::{
    Batch, Counter, Error, KeyBuf, MemoryStore, Recovery, Schema, Snapshot, Store, StreamRange,
};
use serde_json::{Value, json};

const VOTES: Counter<i64> = Counter::new("show.votes");
const USES: Counter<String> = Counter::new("tag.uses");
const SCHEMA: Schema = Schema::new(&[VOTES.table(), USES.table()]);

fn batch(deltas: impl IntoIterator<Item = (i64, i64)>) -> Batch {
    let mut batch = Batch::new();
    deltas.into_iter().for_each(|(key, delta)| batch.add(VOTES, key, delta));
    batch
}

fn votes(store: &MemoryStore) -> Vec<(i64, i64)> {
    store.totals(VOTES).unwrap()
}

fn restored(snapshot: &Snapshot) -> MemoryStore {
    MemoryStore::restore(&SCHEMA, snapshot).unwrap()
}

#[test]
fn threads_that_share_keys_lose_no_delta() {
    for (size, rounds) in [(1, 20_000), (6, 5_000), (1_024, 60)] {
        let store = MemoryStore::new(&SCHEMA);
        let write = |seed: u64| {
            let mut random = Random(seed);
            let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
            for _ in 0..rounds {
                let deltas: Vec<_> =
                    (0..size).map(|_| (random.below(size * 3), random.below(7) - 3)).collect();
                let mut batch = batch(deltas.iter().copied());
                for (key, delta) in &deltas {
                    batch.add(USES, key.to_string(), -delta);
                }
                let written = batch.len() as u64;
                assert_eq!(store.apply(&mut batch).unwrap().totals, written);
                for (key, delta) in deltas {
                    *sums.entry(key).or_default() += delta;
                }
            }
            sums
        };
        let sums = thread::scope(|scope| {
            let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(move || write(seed))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).fold(
                BTreeMap::<i64, i64>::new(),
                |mut all, (key, sum)| {
                    *all.entry(key).or_default() += sum;
                    all
                },
            )
        });
        let expected: Vec<_> = sums.into_iter().filter(|(_, sum)| *sum != 0).collect();
        assert!(!expected.is_empty());
        assert_eq!(votes(&store), expected, "batches of {size}");
        let mirrored =
            expected.iter().map(|(key, sum)| (key.to_string(), -sum)).collect::<BTreeMap<_, _>>();
        assert_eq!(store.totals(USES).unwrap(), mirrored.into_iter().collect::<Vec<_>>());
    }
}

/// What happens beside the transfers of [`a_snapshot_sees_batches_whole_or_not_at_all`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    /// No batch overflows.
    Calm,
    /// One total is at `i64::MAX` from the start, and batches are refused in their middle.
    Full,
    /// That total reaches `i64::MAX` while the others are writing.
    Fills,
}

/// Each batch moves amounts between keys, so at every moment all totals sum to 0. Meanwhile batches
/// are refused in their middle, and no snapshot may see any part of them.
fn check_snapshots(beside: Beside) {
    const FULL: i64 = -1;
    let store = MemoryStore::new(&SCHEMA);
    let start = if beside == Beside::Full { i64::MAX } else { 1 };
    store.apply(&mut batch([(FULL, start)])).unwrap();
    let done = AtomicBool::new(false);

    let transfer = |seed, rounds, pairs| {
        let mut random = Random(seed);
        for _ in 0..rounds {
            let mut deltas = Vec::new();
            for _ in 0..pairs {
                let amount = 1 + random.below(9);
                deltas.extend([(random.below(500), amount), (random.below(500), -amount)]);
            }
            store.apply(&mut batch(deltas)).unwrap();
        }
    };
    let refused = |rounds| {
        if beside == Beside::Calm {
            return;
        }
        for round in 0..rounds {
            if beside == Beside::Fills && round == rounds / 3 {
                store.apply(&mut batch([(FULL, i64::MAX - 1)])).unwrap();
            }
            let mut deltas = batch((0..400).map(|key| (key, 1 + round % 3)));
            deltas.add(VOTES, FULL, if round < rounds / 3 { i64::MAX } else { 1 });
            (400..500).for_each(|key| deltas.add(VOTES, key, 5));
            assert!(matches!(store.apply(&mut deltas), Err(Error::Overflow { what: "total", .. })));
        }
    };
    let observe = || {
        let mut moments = 0_u32;
        while !done.load(Ordering::Relaxed) || moments == 0 {
            let seen = votes(&restored(&store.snapshot()));
            assert_eq!(seen[0].0, FULL);
            assert_eq!(
                seen[1..].iter().map(|(_, total)| total).sum::<i64>(),
                0,
                "a batch was seen in half: {beside:?}"
            );
            moments += 1;
        }
        moments
    };

    let moments = thread::scope(|scope| {
        let observer = scope.spawn(observe);
        let writers =
            [scope.spawn(|| transfer(7, 20_000, 1)), scope.spawn(|| transfer(11, 400, 100))];
        let refused = scope.spawn(|| refused(300));
        writers.into_iter().chain([refused]).for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        observer.join().unwrap()
    });
    assert!(moments > 5, "only {moments} snapshots were taken while writers wrote");
    assert_eq!(
        store.total(VOTES, FULL).unwrap(),
        if beside == Beside::Calm { 1 } else { i64::MAX }
    );
}

#[test]
fn a_snapshot_sees_batches_whole_or_not_at_all() {
    for beside in [Beside::Calm, Beside::Full, Beside::Fills] {
        check_snapshots(beside);
    }
}

#[test]
fn refused_batches_leave_nothing_beside_writers() {
    const FULL: [i64; 2] = [5_000, 5_001];
    let store = MemoryStore::new(&SCHEMA);
    store.apply(&mut batch([(FULL[0], i64::MAX), (FULL[1], i64::MIN)])).unwrap();
    let write = |seed| {
        let mut random = Random(seed);
        for round in 0..100 {
            let mut large = batch((0..1_024).map(|key| (key, 1)));
            store.apply(&mut large.clone()).unwrap();
            // The same again, with one key in the middle that overflows.
            large.clear();
            let middle = random.below(1_024);
            for key in 0..1_024 {
                large.add(VOTES, key, if round % 2 == 0 { -1 } else { 1_000 });
                if key == middle {
                    large.add(VOTES, FULL[0], i64::from(round % 2 == 0));
                    large.add(VOTES, FULL[1], -i64::from(round % 2 != 0));
                }
            }
            let refused = store.apply(&mut large).unwrap_err();
            let key = FULL[usize::from(round % 2 != 0)];
            assert_eq!(
                refused.to_string(),
                format!("counter show.votes, key {key}: the total leaves 64 bits")
            );
            assert_eq!(refused.recovery(), Recovery::Permanent);
        }
    };
    thread::scope(|scope| {
        for seed in 1..=3 {
            scope.spawn(move || write(seed));
        }
    });
    let expected =
        (0..1_024).map(|key| (key, 300)).chain([(FULL[0], i64::MAX), (FULL[1], i64::MIN)]);
    assert_eq!(votes(&store), expected.collect::<Vec<_>>());
}

#[test]
fn totals_of_zero_are_removed_from_memory() {
    let store = MemoryStore::new(&SCHEMA);
    let len = || store.len(VOTES.id()).unwrap();
    store.apply(&mut batch((0..1_000).map(|key| (key, 3)))).unwrap();
    assert_eq!(len(), 1_000);
    store.apply(&mut batch([(1, -3)])).unwrap();
    assert_eq!(len(), 999);
    store.apply(&mut batch((2..1_000).map(|key| (key, -3)))).unwrap();
    assert_eq!(len(), 1);
    // A refused batch creates no totals, not even of 0.
    store.apply(&mut batch([(0, i64::MAX - 3)])).unwrap();
    assert!(store.apply(&mut batch((0..500).map(|key| (key, 1)))).is_err());
    assert_eq!(len(), 1);
    assert_eq!(store.len(USES.id()).unwrap(), 0);
    assert!(matches!(
        store.len(VOTES.version(2).id()),
        Err(Error::DefinitionConflict { counter: "show.votes", .. })
    ));
}

fn sample() -> MemoryStore {
    let store = MemoryStore::new(&SCHEMA);
    let mut batch = batch([(7, 1), (-7, -2), (i64::MIN, i64::MAX), (i64::MAX, i64::MIN)]);
    for tag in ["", "\0", "\u{1}", "a long text that lives on the heap", "\u{10ffff}"] {
        batch.add(USES, tag, 5);
    }
    store.apply(&mut batch).unwrap();
    store
}

#[test]
fn snapshot_survives_a_round_trip_through_json() {
    let store = sample();
    let snapshot = store.snapshot();
    let json = serde_json::to_string(&snapshot).unwrap();
    let read: Snapshot = serde_json::from_str(&json).unwrap();
    assert_eq!(read, snapshot);
    let back = restored(&read);
    assert_eq!(back.snapshot(), snapshot);
    assert_eq!(votes(&back), [(i64::MIN, i64::MAX), (-7, -2), (7, 1), (i64::MAX, i64::MIN)]);
    assert_eq!(back.total(USES, "\0").unwrap(), 5);
    assert_eq!(restored(&MemoryStore::new(&SCHEMA).snapshot()).len(VOTES.id()).unwrap(), 0);
    // A snapshot is a copy: what is written later is not in it.
    store.apply(&mut batch([(7, 1)])).unwrap();
    assert_ne!(store.snapshot(), snapshot);
}

#[test]
fn equal_stores_give_equal_snapshots() {
    let (one, two) = (MemoryStore::new(&SCHEMA), MemoryStore::new(&SCHEMA));
    one.apply(&mut batch((0..2_000).map(|key| (key, key)))).unwrap();
    for key in (0..2_000).rev() {
        two.apply(&mut batch([(key, key + 1)])).unwrap();
    }
    two.apply(&mut batch((0..2_000).map(|key| (key, -1)).chain([(9_999, 1)]))).unwrap();
    two.apply(&mut batch([(9_999, -1)])).unwrap();
    assert_eq!(one.snapshot(), two.snapshot());
    assert_eq!(
        serde_json::to_string(&one.snapshot()).unwrap(),
        serde_json::to_string(&two.snapshot()).unwrap()
    );
}

/// A snapshot after a change of its JSON, or `None` if it cannot be read.
fn changed(change: impl FnOnce(&mut Value)) -> Option<Snapshot> {
    let mut json = serde_json::to_value(sample().snapshot()).unwrap();
    change(&mut json);
    serde_json::from_value(json).ok()
}

#[track_caller]
fn assert_refused(change: impl FnOnce(&mut Value), names: &[&str]) {
    let restored = MemoryStore::restore(&SCHEMA, &changed(change).expect("it can be read"));
    let error = restored.err().unwrap_or_else(|| {
        panic!("a snapshot was restored, without an error that names {names:?}")
    });
    assert!(matches!(error, Error::Snapshot { .. }), "{error:?}");
    assert_eq!(error.recovery(), Recovery::Permanent);
    for name in names {
        assert!(error.to_string().contains(name), "{error} does not name {name}");
    }
}

const REORDERED: Schema = Schema::new(&[USES.table(), VOTES.table()]);

/// Format 1 had a hash of the schema in place of each counter's declaration, and no offsets.
#[test]
fn snapshots_of_another_format_are_refused() {
    assert!(MemoryStore::restore(&SCHEMA, &changed(|_| {}).unwrap()).is_ok());
    let old =
        json!({ "format": 1, "schema": 5, "counters": [{ "name": "show.votes", "totals": [] }] });
    for text in [old.to_string(), serde_json::to_string_pretty(&old).unwrap()] {
        let error = serde_json::from_str::<Snapshot>(&text).unwrap_err();
        assert!(error.to_string().contains("its format is 1, not 2"), "{error}");
    }
    for format in [0, 1, 3] {
        let mut json = serde_json::to_value(sample().snapshot()).unwrap();
        json["format"] = json!(format);
        let error = serde_json::from_value::<Snapshot>(json).unwrap_err();
        assert!(error.to_string().contains(&format!("its format is {format}, not 2")), "{error}");
    }
    for field in ["format", "counters", "offsets"] {
        assert!(
            changed(|json| drop(json.as_object_mut().unwrap().remove(field))).is_none(),
            "{field}"
        );
    }
    // The order of declarations is not part of a schema's meaning.
    assert_eq!(
        MemoryStore::restore(&REORDERED, &sample().snapshot()).unwrap().total(VOTES, -7).unwrap(),
        -2
    );
}

#[test]
fn duplicate_key_or_counter_is_refused() {
    let twice = |json: &mut Value| {
        let totals = json["counters"][0]["totals"].as_array_mut().unwrap();
        totals.push(totals[1].clone());
    };
    assert_refused(twice, &["show.votes", "twice"]);
    let counter_twice = |json: &mut Value| {
        let counters = json["counters"].as_array_mut().unwrap();
        counters.push(counters[0].clone());
    };
    assert_refused(counter_twice, &["show.votes", "twice"]);
}

#[test]
fn key_that_does_not_fit_its_counter_is_refused() {
    let key = |counter: usize, hex: &'static str| {
        move |json: &mut Value| json["counters"][counter]["totals"][0][0] = json!(hex)
    };
    assert_refused(key(0, "00"), &["show.votes", "0x00", "malformed"]);
    assert_refused(key(0, "80000000000000000000"), &["show.votes", "malformed"]);
    assert_refused(key(0, ""), &["show.votes", "malformed"]);
    for text in ["61", "610061", "0103", "ff00"] {
        assert_refused(key(1, text), &["tag.uses", text, "malformed"]);
    }
    for unreadable in ["0", "xy", "8000000000000g00", "\u{e9}\u{e9}"] {
        assert!(
            changed(|json| json["counters"][0]["totals"][0][0] = json!(unreadable)).is_none(),
            "{unreadable}"
        );
    }
}

/// A snapshot that lacked a counter was restored with zeros, which passed for totals. Such a
/// snapshot must be restorable, since applications add counters. But the counter cannot be read
/// before it is backfilled.
#[test]
fn counter_missing_from_a_snapshot_is_not_ready() {
    let lacking = changed(|json| drop(json["counters"].as_array_mut().unwrap().pop())).unwrap();
    let store = restored(&lacking);
    assert!(store.is_ready(VOTES.id()).unwrap() && !store.is_ready(USES.id()).unwrap());
    let refused = store.total(USES, "\0").unwrap_err();
    assert!(
        matches!(&refused, Error::NotReady { unready, .. } if unready == "tag.uses"),
        "{refused}"
    );
    assert_eq!((votes(&store).len(), store.len(USES.id()).unwrap()), (4, 0));
    // A counter that is not ready stays so through the next snapshot.
    let again = restored(&store.snapshot());
    assert!(again.is_ready(VOTES.id()).unwrap() && !again.is_ready(USES.id()).unwrap());
}

#[test]
fn offsets_are_restored_with_the_totals() {
    let store = MemoryStore::new(&SCHEMA);
    for (stream, first, last) in [("a", 1, 3), ("b", 1, 9), ("a", 4, 4)] {
        store
            .apply_idempotent(&mut batch([(7, 1)]), &StreamRange::new(stream, first, last).unwrap())
            .unwrap();
    }
    store.apply_idempotent(&mut batch([]), &StreamRange::new("of nothing", 1, 2).unwrap()).unwrap();
    assert!(
        store.apply_idempotent(&mut batch([]), &StreamRange::new("ahead", 2, 2).unwrap()).is_err()
    );
    let json = serde_json::to_value(store.snapshot()).unwrap();
    assert_eq!(json["offsets"], json!({ "a": 4, "b": 9, "of nothing": 2 }));
    let back = restored(&serde_json::from_value(json).unwrap());
    assert_eq!(["a", "b", "of nothing", "ahead"].map(|stream| back.offset(stream)), [4, 9, 2, 0]);
    assert!(
        back.apply_idempotent(&mut batch([(7, 1)]), &StreamRange::new("a", 3, 4).unwrap())
            .unwrap()
            .skipped
    );
    assert!(matches!(
        back.apply_idempotent(&mut batch([]), &StreamRange::new("b", 11, 11).unwrap()),
        Err(Error::Gap { .. })
    ));
    assert_eq!(back.total(VOTES, 7).unwrap(), 3);

    for (stream, last) in [("", 1), ("a", 0), ("a", u64::MAX), (&"s".repeat(300), 1)] {
        assert_refused(|json| json["offsets"] = json!({ stream: last }), &["stream range"]);
    }
}

/// Keys are passed as bytes, so a caller may ask for a key of another type. It has no total, and
/// must not be mistaken for a key that has one.
#[test]
fn keys_of_another_width_match_no_stored_key() {
    let store = MemoryStore::new(&SCHEMA);
    store.apply(&mut batch([(0, 5), (0x100, 6)])).unwrap();
    let zero = KeyBuf::of::<i64>(0);
    for cutoff in 0..zero.as_bytes().len() {
        let mut short = KeyBuf::new();
        short.push(&zero.as_bytes()[..cutoff]);
        let mut long = KeyBuf::new();
        long.push(&vec![0; 8 - cutoff]);
        long.push(zero.as_bytes());
        for foreign in [short, long, KeyBuf::of::<(i64, u8)>((0, 0)), KeyBuf::of::<i128>(0)] {
            match Store::read_keys(&mut &store, VOTES.id(), std::slice::from_ref(&foreign)) {
                Ok(totals) => assert_eq!(totals, [0], "{foreign:?}"),
                Err(error) => {
                    assert!(matches!(error, Error::Key { counter: "show.votes", .. }), "{error}");
                }
            }
            if let Ok(page) =
                Store::read_range(&mut &store, VOTES.id(), &KeyRange::after(Some(&foreign)), 10)
            {
                // A prefix stands for all keys that begin with it.
                let behind = |key: &KeyBuf| {
                    *key > foreign && !key.as_bytes().starts_with(foreign.as_bytes())
                };
                let all = [(zero.clone(), 5), (KeyBuf::of::<i64>(0x100), 6)];
                assert_eq!(
                    page,
                    all.into_iter().filter(|(key, _)| behind(key)).collect::<Vec<_>>(),
                    "{foreign:?}"
                );
            }
        }
    }
}

/// A chosen first half of a key made its hash 0 in every process, whatever the seed, so each such
/// key was compared with all others.
#[test]
fn keys_chosen_to_collide_in_the_hash_cost_no_more_than_others() {
    const IDS: Counter<[u8; 16]> = Counter::new("ids");
    const SCHEMA: Schema = Schema::new(&[IDS.table()]);
    let known = 0x082e_fa98_ec4e_6c89_u64.rotate_right(16).to_le_bytes();
    let time = |first: [u8; 8]| {
        let began = Instant::now();
        let store = MemoryStore::new(&SCHEMA);
        let mut batch = Batch::new();
        for n in 0..30_000_u64 {
            let key: [u8; 16] = [first, n.to_be_bytes()].concat().try_into().unwrap();
            batch.add(IDS, key, 1);
        }
        store.apply(&mut batch).unwrap();
        assert_eq!(store.len(IDS.id()).unwrap(), 30_000);
        began.elapsed()
    };
    let (chosen, other) = (time(known), time(*b"anything"));
    println!("{chosen:?} for chosen keys, {other:?} for others");
    assert!(chosen < other * 20 + std::time::Duration::from_millis(100), "{chosen:?}, {other:?}");
}

/// The process's memory in bytes, or 0 if the system does not report it.
fn resident_bytes() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u32>().ok()).unwrap_or(0);
    f64::from(pages) * 4096.0
}

/// Figures for docs/performance.md: `KEEPCOUNT_STREAMS=1000000 cargo test --test counters
/// many_streams -- --nocapture`.
#[test]
fn many_streams_are_kept_listed_and_forgotten() {
    let streams: u32 =
        std::env::var("KEEPCOUNT_STREAMS").map_or(100_000, |streams| streams.parse().unwrap());
    let name = |stream: u32| format!("device {stream:012}");
    let (store, before) = (MemoryStore::new(&SCHEMA), resident_bytes());
    let began = Instant::now();
    for stream in 0..streams {
        store
            .apply_idempotent(&mut Batch::new(), &StreamRange::new(&name(stream), 1, 1).unwrap())
            .unwrap();
    }
    println!("{:?} for the offsets of {streams} streams", began.elapsed());
    println!("{:.0} bytes a stream", (resident_bytes() - before) / f64::from(streams));
    let (began, mut listed) = (Instant::now(), Vec::new());
    loop {
        let page =
            store.offsets(listed.last().map(|(last, _): &(String, u64)| last.as_str()), 1_000);
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    println!("{:?} to list them by pages of 1,000", began.elapsed());
    assert!(listed.into_iter().eq((0..streams).map(|stream| (name(stream), 1))));
    assert!((0..streams).all(|stream| store.forget_offset(&name(stream)) == 1));
    assert_eq!(store.offsets(None, 1), []);
}
