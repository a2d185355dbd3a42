//! Measures what a snapshot of a million totals costs: a writer's longest wait for it, the time to
//! take, encode, save, load and restore it, and the size of its file.
//!
//! It prints one line for each form of table, after a line with the cost of filling it: time and
//! memory a total, and the time of a verify. Set `KEEPCOUNT_KEYS=10000000` for more totals.
//!
//! A writer adds to random keys without a pause, one total and two totals in turn, since only the
//! second takes the batch lock. Each round records its longest wait while one snapshot is taken,
//! and its longest wait in as much time without one.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    missing_docs
)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Random, is_test_run};
use keepcount::backend::KeyRange;
use keepcount::reconcile::{self, MemoryAudit};
use keepcount::{Batch, Counter, MemoryStore, Record, Schema, Snapshot, Store, Tally};

const NUMBERS: Counter<u64> = Counter::new("bench.numbers");
const TEXTS: Counter<String> = Counter::new("bench.texts");
const PAIRS: Counter<(u64, u32)> = Counter::new("bench.pairs");
const SCHEMA: Schema = Schema::new(&[NUMBERS.table(), TEXTS.table(), PAIRS.table()]);

fn add_number(batch: &mut Batch, key: u64) {
    batch.add(NUMBERS, key, 1);
}

fn add_text(batch: &mut Batch, key: u64) {
    batch.add(TEXTS, format!("setlist-{key}"), 1);
}

fn add_pair(batch: &mut Batch, key: u64) {
    batch.add(PAIRS, (key / 30, u32::try_from(key % 30).unwrap()), 1);
}

/// The longest apply of a writer since the last `take`, in nanoseconds.
#[derive(Default)]
struct LongestApply(AtomicU64);

impl LongestApply {
    fn take(&self) -> Duration {
        Duration::from_nanos(self.0.swap(0, Ordering::Relaxed))
    }
}

fn write(
    store: &MemoryStore,
    keys: u64,
    add: fn(&mut Batch, u64),
    longest: &LongestApply,
    done: &AtomicBool,
) {
    let mut random = Random(7);
    let mut batch = Batch::new();
    while !done.load(Ordering::Relaxed) {
        for totals in [1, 2] {
            batch.clear();
            (0..totals).for_each(|_| add(&mut batch, random.next() % keys));
            let took = timed(|| drop(store.apply(&mut batch).unwrap()));
            longest.0.fetch_max(u64::try_from(took.as_nanos()).unwrap(), Ordering::Relaxed);
        }
    }
}

fn timed(what: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    what();
    begun.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ns_per_key(time: Duration, keys: u64) -> f64 {
    time.as_secs_f64() * 1e9 / keys as f64
}

/// Returns the memory of this process; 0 if it is unknown.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

struct Number(u64);
struct Text(String);
struct Pair(u64, u32);

impl Record for Number {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(NUMBERS, self.0, 1);
    }
}

impl Record for Text {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(TEXTS, &self.0, 1);
    }
}

impl Record for Pair {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(PAIRS, (self.0, self.1), 1);
    }
}

/// Verifies the store: its only counter with totals has the keys below `keys`, each with one row.
fn verify(store: &mut MemoryStore, keys: u64) {
    let [numbers, texts, pairs] = [NUMBERS.id(), TEXTS.id(), PAIRS.id()]
        .map(|counter| !Store::read_range(store, counter, &KeyRange::ALL, 1).unwrap().is_empty());
    let mut names: Vec<String> =
        if texts { (0..keys).map(|key| format!("setlist-{key}")).collect() } else { Vec::new() };
    names.sort_unstable();
    let mut audit = MemoryAudit::new(store);
    audit
        .add(NUMBERS, move |from| {
            let first = match from {
                Bound::Unbounded => 0,
                Bound::Included(key) => key,
                Bound::Excluded(key) => key + 1,
            };
            (first..if numbers { keys } else { 0 }).map(Number)
        })
        .unwrap();
    audit
        .add(TEXTS, move |from: Bound<String>| {
            let first = match &from {
                Bound::Unbounded => 0,
                Bound::Included(key) => names.partition_point(|name| name < key),
                Bound::Excluded(key) => names.partition_point(|name| name <= key),
            };
            names.get(first..).unwrap_or_default().iter().cloned().map(Text).collect::<Vec<_>>()
        })
        .unwrap();
    audit
        .add(PAIRS, move |from| {
            let at = |(prefix, suffix): (u64, u32)| prefix * 30 + u64::from(suffix);
            let first = match from {
                Bound::Unbounded => 0,
                Bound::Included(key) => at(key),
                Bound::Excluded(key) => at(key) + 1,
            };
            (first..if pairs { keys } else { 0 })
                .map(|key| Pair(key / 30, u32::try_from(key % 30).unwrap()))
        })
        .unwrap();
    let report = reconcile::verify(&SCHEMA).run(&mut audit).unwrap();
    assert_eq!(
        (report.drift(), report.counters.iter().map(|counter| counter.keys).sum::<u64>()),
        (0, keys),
        "{report}"
    );
}

fn measure(form: &str, keys: u64, rounds: usize, add: fn(&mut Batch, u64)) {
    let before = resident_bytes();
    let mut store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    let filled = timed(|| {
        for first in (0..keys).step_by(1_024) {
            (first..keys.min(first + 1_024)).for_each(|key| add(&mut batch, key));
            store.apply(&mut batch).unwrap();
        }
    });
    drop(batch);
    let held = resident_bytes().saturating_sub(before);
    let verified = timed(|| verify(&mut store, keys));
    println!(
        "{keys} totals, {form}: filled by batches of 1,024 in {:.0} ns each, {} bytes each; verified in {:.0} ns each",
        ns_per_key(filled, keys),
        held / keys,
        ns_per_key(verified, keys),
    );

    let (longest, done) = (LongestApply::default(), AtomicBool::new(false));
    let (mut waits, mut idle, mut takes) = (Vec::new(), Vec::new(), Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| write(&store, keys, add, &longest, &done));
        for _ in 0..rounds {
            thread::sleep(Duration::from_millis(20));
            longest.take();
            let mut snapshot = None;
            let took = timed(|| snapshot = Some(store.snapshot()));
            waits.push(longest.take());
            takes.push(took);
            drop(snapshot);
            thread::sleep(Duration::from_millis(20));
            longest.take();
            thread::sleep(took);
            idle.push(longest.take());
        }
        done.store(true, Ordering::Relaxed);
    });
    let worst = waits.iter().max().copied().unwrap_or_default();
    let snapshot = store.snapshot();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("totals");
    let time = |what: &dyn Fn()| median((0..rounds.min(9)).map(|_| timed(what)).collect());
    let encode = time(&|| drop(snapshot.to_bytes().unwrap()));
    let save = time(&|| snapshot.save(&path).unwrap());
    let load = time(&|| drop(Snapshot::load(&path).unwrap()));
    let restore = time(&|| drop(MemoryStore::restore(&SCHEMA, &snapshot).unwrap()));
    println!(
        "{keys} totals, {form}: a writer waits {:.1?} (median of the longest; worst {worst:.1?}; without a snapshot {:.1?}); \
         snapshot {:.0?}, encode {encode:.0?}, save {save:.0?}, load {load:.0?}, restore {restore:.0?}; {} KB",
        median(waits),
        median(idle),
        median(takes),
        path.metadata().unwrap().len() / 1_000,
    );
}

fn main() {
    let many = std::env::var("KEEPCOUNT_KEYS").map_or(1_000_000, |keys| keys.parse().unwrap());
    let (keys, rounds) = if is_test_run() { (10_000, 3) } else { (many, 25) };
    measure("numbers", keys, rounds, add_number);
    measure("texts", keys, rounds, add_text);
    measure("pairs", keys, rounds, add_pair);
}
