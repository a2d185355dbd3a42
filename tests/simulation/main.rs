//! Many seeds of a simulated world in which writers, deliveries, audits, crashes and planted drift
//! interleave, one step at a time, over a memory store and the crate's own reconciler. Each seed
//! replays to the same trace. For each documented precondition, a variant of that world drops it
//! and must fail.
//!
//! `just simulate` runs until it is stopped or a seed fails. To print a seed's trace, also of a
//! variant: `KEEPCOUNT_SIM_SEED=7 KEEPCOUNT_SIM_VARIANT=OldRead cargo test --test simulation replay
//! -- --ignored --nocapture`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod courier;
mod domain;
mod facts;
mod intent;
mod jobs;
mod setup;
#[path = "../support/mod.rs"]
mod support;
mod variant;
mod world;
mod writer;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use keepcount::{Batch, nondeterminism};

use setup::Setup;
use variant::Variant;
use world::{Arena, World};

/// The result of a seed.
struct Outcome {
    failure: Option<String>,
    trace: Vec<String>,
    hash: u64,
    counts: BTreeMap<&'static str, u64>,
}

/// Few stripes, so that keys share them.
const STRIPES: usize = 8;

fn simulate(seed: u64, variant: Option<Variant>) -> Outcome {
    // Sets it once; later calls in the process do nothing.
    nondeterminism::fix(STRIPES);
    let (stores, batches) = (Arena::of(64), Arena::of(4096));
    let mut lent = vec![Batch::new(); 16_384];
    let world = World::new(Setup::of(seed, variant), &stores, &batches, &mut lent);
    world.run();
    world.come_to_rest();
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
    let variant =
        variant.map_or_else(String::new, |variant| format!("KEEPCOUNT_SIM_VARIANT={variant:?} "));
    let command = format!(
        "KEEPCOUNT_SIM_SEED={seed} {variant}cargo test --test simulation replay -- --ignored --nocapture"
    );
    format!(
        "seed {seed}: {failure}\n{}\nthe whole trace: {command}",
        outcome.trace[last..].join("\n")
    )
}

/// The seeds that `cargo test` runs.
const SEEDS: u64 = 400;
/// Every variant fails within this many seeds.
const VARIANT_SEEDS: u64 = 300;

/// What must happen over these seeds, and at least how often: a world without conflicts would prove
/// nothing.
const HAPPENS: [(&str, u64); 37] = [
    ("rows committed", 10_000),
    ("pending writes committed", 10_000),
    ("rolled back", 1_000),
    ("pending writes dropped", 1_000),
    ("unknown: committed", 500),
    ("unknown: rolled back", 200),
    ("pending writes begun anew", 300),
    ("left to a repair", 300),
    ("locks waited for", 1_000),
    ("turns waited for", 300),
    ("events applied", 1_000),
    ("events skipped", 1_000),
    ("events behind a gap", 20),
    ("events that overlap", 20),
    ("events written again", 500),
    ("barriers met", 3_000),
    ("tries that were not quiet", 5_000),
    ("waits for a barrier", 5_000),
    ("keys read alone", 5_000),
    ("scans", 5_000),
    ("keys unsettled", 500),
    ("repairs unsettled", 50),
    ("drifts found", 3_000),
    ("mends", 3_000),
    ("repairs of rollups", 30),
    ("passes complete", 5_000),
    ("counters ready", 300),
    ("jobs complete", 200),
    ("jobs at a limit", 100),
    ("jobs resumed", 200),
    ("jobs too busy", 10),
    ("jobs whose reads failed", 200),
    ("tokens of another life", 100),
    ("crashes", 300),
    ("snapshots tampered with", 20),
    ("prunes", 300),
    ("quiet points", 2_000),
];

#[test]
fn random_order_of_writers_audits_and_crashes_keeps_every_total_correct() {
    let mut counts = BTreeMap::new();
    for seed in 0..SEEDS {
        let outcome = simulate(seed, None);
        assert!(outcome.failure.is_none(), "{}", report(seed, None, &outcome));
        outcome.counts.iter().for_each(|(what, times)| *counts.entry(*what).or_insert(0) += times);
    }
    println!("{SEEDS} seeds: {counts:#?}");
    for (what, least) in HAPPENS {
        let times = counts.get(what).copied().unwrap_or(0);
        assert!(times >= least, "{what}: {times} times, expected at least {least}");
    }
}

#[test]
fn every_variant_that_drops_a_precondition_fails() {
    for variant in Variant::ALL {
        let failing = (0..VARIANT_SEEDS)
            .find_map(|seed| Some((seed, simulate(seed, Some(variant)).failure?)));
        let (seed, failure) =
            failing.unwrap_or_else(|| panic!("{variant:?}: none of {VARIANT_SEEDS} seeds fails"));
        println!("{variant:?}: seed {seed}: {failure}");
    }
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    for seed in [3, 8, 71] {
        let (first, second) = (simulate(seed, None), simulate(seed, None));
        assert_eq!(first.trace, second.trace);
        let mut other = Command::new(std::env::current_exe().unwrap());
        other
            .args(["--exact", "replay", "--ignored", "--nocapture"])
            .env("KEEPCOUNT_SIM_SEED", seed.to_string());
        let out = String::from_utf8(other.output().unwrap().stdout).unwrap();
        assert!(out.contains(&format!("trace {:016x}", first.hash)), "{out}");
    }
}

#[test]
#[ignore = "prints one seed's trace: KEEPCOUNT_SIM_SEED"]
fn replay() {
    let seed = std::env::var("KEEPCOUNT_SIM_SEED").map_or(0, |seed| seed.parse().unwrap());
    let name = std::env::var("KEEPCOUNT_SIM_VARIANT").ok();
    let of_name =
        |name: &String| *Variant::ALL.iter().find(|known| format!("{known:?}") == *name).unwrap();
    let outcome = simulate(seed, name.as_ref().map(of_name));
    println!("{}\n{:#?}\ntrace {:016x}", outcome.trace.join("\n"), outcome.counts, outcome.hash);
    assert!(outcome.failure.is_none(), "{}", outcome.failure.unwrap_or_default());
}

/// Runs new seeds, or those from `KEEPCOUNT_SIM_FROM` on, on every processor.
#[test]
#[ignore = "runs for KEEPCOUNT_SIM_SECONDS, or without end if 0, or until a seed fails"]
#[allow(clippy::disallowed_methods)] // it measures how long it has run
fn hunt() {
    let seconds: u64 =
        std::env::var("KEEPCOUNT_SIM_SECONDS").map_or(10, |seconds| seconds.parse().unwrap());
    let any = || RandomState::new().hash_one(()) >> 24;
    let first =
        std::env::var("KEEPCOUNT_SIM_FROM").map_or_else(|_| any(), |from| from.parse().unwrap());
    println!("from seed {first} on");
    let began = Instant::now();
    let (next, failed, totals) =
        (AtomicU64::new(first), AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    let is_over = || failed.load(Relaxed) || (seconds > 0 && began.elapsed().as_secs() >= seconds);
    let work = || {
        while !is_over() {
            let seed = next.fetch_add(1, Relaxed);
            let outcome = simulate(seed, None);
            if outcome.failure.is_some() {
                failed.store(true, Relaxed);
                println!("{}", report(seed, None, &outcome));
            }
            let mut totals = totals.lock().unwrap();
            outcome
                .counts
                .iter()
                .for_each(|(what, times)| *totals.entry(*what).or_insert(0) += times);
            if (seed + 1 - first).is_multiple_of(10_000) {
                println!("{} seeds, {} s", seed + 1 - first, began.elapsed().as_secs());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(work);
        }
    });
    println!(
        "{} seeds, {} s: {:#?}",
        next.load(Relaxed) - first,
        began.elapsed().as_secs(),
        totals.lock().unwrap()
    );
    assert!(!failed.load(Relaxed), "a seed failed; its trace is printed above");
}
