//! Compares two ways to apply the batch of a hook in memory, in ns each: bare (`apply`), and
//! bracketed (`begin` and `commit` of a pending write). Batches have one delta, on one and two
//! threads, or 16 deltas; there are a thousand or a million integer keys.
//!
//! Each round builds its batches outside the timing, as `memory` does. No audit runs: with one,
//! pending writes also note their keys.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::Duration;

use common::{Peers, batch, time_rounds};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keepcount::{Batch, MemoryStore};

/// Hooks a round: few, so that their batches are as warm in the caches as one that was just built.
const HOOKS: u64 = 32;

fn apply(store: &MemoryStore, batch: &mut Batch) {
    store.apply(batch).unwrap();
}

fn begin_and_commit(store: &MemoryStore, batch: &mut Batch) {
    store.begin(batch).unwrap().commit().unwrap();
}

fn pending_writes(c: &mut Criterion) {
    for keys in [1_000_u64, 1_000_000] {
        let Peers { store, .. } = Peers::filled(keys);
        let mut group = c.benchmark_group(format!("pending writes, {keys} keys"));
        group
            .sample_size(30)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(300));
        for (threads, deltas) in [(1, 1), (2, 1), (1, 16)] {
            group.throughput(Throughput::Elements(HOOKS * threads));
            for (name, hook) in
                [("bare", apply as fn(&MemoryStore, &mut Batch)), ("bracketed", begin_and_commit)]
            {
                group.bench_function(
                    BenchmarkId::new(format!("{name}, {deltas} deltas"), threads),
                    |b| {
                        b.iter_custom(|times| {
                            time_rounds(
                                threads,
                                times,
                                |random| {
                                    (0..HOOKS)
                                        .map(|_| batch(&random.keys(deltas, keys)))
                                        .collect::<Vec<_>>()
                                },
                                |batches| batches.iter_mut().for_each(|batch| hook(&store, batch)),
                            )
                        });
                    },
                );
            }
        }
        group.finish();
    }
}

criterion_group!(benches, pending_writes);
criterion_main!(benches);
