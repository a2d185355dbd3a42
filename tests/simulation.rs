//! Many seeds of a world in which writers, deliveries, audits, crashes and planted drift interleave, one step at a time, over a memory store and the
//! crate's own reconciler; each seed replays to the same trace. And one variant of that world for each documented precondition, which must fail.
//!
//! `KEEPCOUNT_SIM_SEED=7 cargo test --test simulation replay -- --nocapture` prints the trace of a seed, of `KEEPCOUNT_SIM_VARIANT=OldRead` too;
//! `just simulate` goes on until it is stopped or a seed fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::needless_for_each, // a line each
    clippy::explicit_iter_loop,
    clippy::filter_next, // `find` would borrow for longer
    clippy::needless_pass_by_value,
    clippy::option_option, // none: no change; some none: a row that goes
    clippy::single_match_else,
    clippy::struct_excessive_bools, // what a row's transaction has been through
    clippy::unnested_or_patterns,
    clippy::unused_self
)]

#[path = "simulation/courier.rs"]
mod courier;
#[path = "simulation/domain.rs"]
mod domain;
#[path = "simulation/facts.rs"]
mod facts;
#[path = "simulation/intent.rs"]
mod intent;
#[path = "simulation/jobs.rs"]
mod jobs;
#[path = "simulation/setup.rs"]
mod setup;
#[path = "simulation/variant.rs"]
mod variant;
#[path = "simulation/world.rs"]
mod world;
#[path = "simulation/writer.rs"]
mod writer;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use keepcount::replay;

use setup::Setup;
use variant::Variant;
use world::{Arena, World};

/// What became of a seed.
struct Outcome {
    failure: Option<String>,
    trace: Vec<String>,
    hash: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// Few, so that keys share them.
const STRIPES: usize = 8;

fn simulate(seed: u64, variant: Option<Variant>) -> Outcome {
    // True once in a process.
    replay::fix(STRIPES);
    let (stores, batches) = (Arena::of(64), Arena::of(4096));
    let world = World::new(Setup::of(seed, variant), &stores, &batches);
    world.run();
    world.rest();
    let outcome = Outcome {
        failure: world.failure(),
        hash: world.trace_hash(),
        trace: world.trace.take(),
        counts: world.counts.take(),
    };
    world.clear();
    outcome
}

fn report(seed: u64, variant: Option<Variant>, outcome: &Outcome) -> String {
    let last = outcome.trace.len().saturating_sub(60);
    let failure = outcome.failure.as_deref().unwrap_or_default();
    let variant = variant.map_or_else(String::new, |variant| format!("KEEPCOUNT_SIM_VARIANT={variant:?} "));
    let command = format!("KEEPCOUNT_SIM_SEED={seed} {variant}cargo test --test simulation replay -- --nocapture");
    format!("seed {seed}: {failure}\n{}\nthe whole trace: {command}", outcome.trace[last..].join("\n"))
}

/// The seeds that `cargo test` runs.
const SEEDS: u64 = 400;
/// A variant fails within so many of them.
const VARIANT_SEEDS: u64 = 60;

#[test]
fn writers_audits_and_crashes_in_any_order_leave_every_key_right() {
    let mut counts = BTreeMap::new();
    for seed in 0..SEEDS {
        let outcome = simulate(seed, None);
        assert!(outcome.failure.is_none(), "{}", report(seed, None, &outcome));
        outcome.counts.iter().for_each(|(what, times)| *counts.entry(*what).or_insert(0) += times);
    }
    println!("{SEEDS} seeds: {counts:#?}");
    for what in [
        "brackets dropped",
        "counters ready",
        "crashes",
        "events applied",
        "events behind a gap",
        "events skipped",
        "events that overlap",
        "gates met",
        "jobs resumed",
        "keys unsettled",
        "mends",
        "mends of rollups",
        "planted rows",
        "planted totals",
        "prunes",
        "rolled back",
        "snapshots",
        "tries that were not quiet",
        "waits for a gate",
    ] {
        assert!(counts.get(what).is_some_and(|times| *times > 10), "too few: {what}, in {counts:#?}");
    }
}

#[test]
fn whoever_drops_a_precondition_goes_wrong() {
    for variant in Variant::ALL {
        let failing = (0..VARIANT_SEEDS).find_map(|seed| Some((seed, simulate(seed, Some(variant)).failure?)));
        println!("{variant:?}: {failing:?}");
        assert!(failing.is_some(), "{variant:?} does no harm in {VARIANT_SEEDS} seeds");
    }
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in 0..20 {
        let (one, two) = (simulate(seed, None), simulate(seed, None));
        assert_eq!((one.hash, one.trace), (two.hash, two.trace), "seed {seed}");
    }
}

#[test]
fn replay() {
    let Ok(seed) = std::env::var("KEEPCOUNT_SIM_SEED") else { return };
    let variant = std::env::var("KEEPCOUNT_SIM_VARIANT").ok();
    let variant = variant.map(|name| *Variant::ALL.iter().find(|known| format!("{known:?}") == name).unwrap());
    let outcome = simulate(seed.parse().unwrap(), variant);
    println!("{}\n{:#?}\ntrace {:016x}", outcome.trace.join("\n"), outcome.counts, outcome.hash);
    assert!(outcome.failure.is_none(), "{}", outcome.failure.unwrap_or_default());
}

/// Seeds that nobody has seen, on every processor, until one fails: for `KEEPCOUNT_SIM_SECONDS` seconds, or for ever where these are 0.
#[test]
#[allow(clippy::disallowed_methods)] // it is told how long to go on
fn hunt() {
    let Ok(seconds) = std::env::var("KEEPCOUNT_SIM_SECONDS") else { return };
    let (seconds, began) = (seconds.parse::<u64>().unwrap(), Instant::now());
    let first = std::env::var("KEEPCOUNT_SIM_FROM")
        .map_or_else(|_| RandomState::new().hash_one(0) >> 16, |from| from.parse().unwrap());
    println!("from seed {first} on");
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let totals = Mutex::new(BTreeMap::new());
    let is_over = || failed.load(Relaxed) || (seconds > 0 && began.elapsed().as_secs() >= seconds);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                while !is_over() {
                    let seed = next.fetch_add(1, Relaxed);
                    let outcome = simulate(seed, None);
                    if outcome.failure.is_some() {
                        failed.store(true, Relaxed);
                        println!("{}", report(seed, None, &outcome));
                    }
                    let mut totals = totals.lock().unwrap();
                    outcome.counts.iter().for_each(|(what, times)| *totals.entry(*what).or_insert(0) += times);
                    if (seed + 1 - first).is_multiple_of(100_000) {
                        println!("{} seeds, {} s", seed + 1 - first, began.elapsed().as_secs());
                    }
                }
            });
        }
    });
    println!(
        "{} seeds, {} s: {:#?}",
        next.into_inner() - first,
        began.elapsed().as_secs(),
        totals.into_inner().unwrap()
    );
    assert!(!failed.into_inner(), "a seed failed: it is printed above");
}
