//! Compares memory apply with hashbrown on one thread and with dashmap, in ns a delta: batches of
//! 1,024 and single deltas, one and two threads, a thousand and a million integer keys.
//!
//! Each round draws 1,024 random keys and builds the batches outside the timing; then all threads
//! start at once. So batches, and the keys of the peers, are as warm in the caches as right after
//! they were built.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::Duration;

use common::{Peers, batch, time_rounds};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement,
};
use keepcount::Batch;

const DELTAS: u64 = 1024;
/// Single deltas a round: few, so that their batches are as warm in the caches as one that was just
/// built.
const SINGLES: u64 = 32;

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, measurement::WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(300));
    group
}

fn memory(c: &mut Criterion) {
    for keys in [1_000_u64, 1_000_000] {
        let Peers { store, dash, map } = Peers::filled(keys);
        let mut group = group(c, &format!("memory, {keys} keys"));
        group.throughput(Throughput::Elements(DELTAS));
        group.bench_function(BenchmarkId::new("hashbrown", 1), |b| {
            b.iter_custom(|count| {
                time_rounds(
                    1,
                    count,
                    |random| random.keys(DELTAS, keys),
                    |list| {
                        let mut map = map.lock();
                        for key in list {
                            *map.entry(*key).or_insert(0) += 1;
                        }
                    },
                )
            });
        });
        for threads in [1, 2] {
            for (name, count) in [("dashmap", DELTAS), ("dashmap, 32 a round", SINGLES)] {
                group.throughput(Throughput::Elements(count * threads));
                group.bench_function(BenchmarkId::new(name, threads), |b| {
                    b.iter_custom(|times| {
                        time_rounds(
                            threads,
                            times,
                            |random| random.keys(count, keys),
                            |list| {
                                for key in list {
                                    *dash.entry(*key).or_insert(0) += 1;
                                }
                            },
                        )
                    });
                });
            }
            group.throughput(Throughput::Elements(DELTAS * threads));
            group.bench_function(BenchmarkId::new("keepcount, a batch", threads), |b| {
                b.iter_custom(|times| {
                    time_rounds(
                        threads,
                        times,
                        |random| batch(&random.keys(DELTAS, keys)),
                        |batch| {
                            store.apply(batch).unwrap();
                        },
                    )
                });
            });
            group.throughput(Throughput::Elements(SINGLES * threads));
            group.bench_function(BenchmarkId::new("keepcount, 32 single deltas", threads), |b| {
                b.iter_custom(|times| {
                    let singles = |random: &mut common::Random| -> Vec<Batch> {
                        random.keys(SINGLES, keys).iter().map(|key| batch(&[*key])).collect()
                    };
                    time_rounds(threads, times, singles, |singles| {
                        for single in singles {
                            store.apply(single).unwrap();
                        }
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, memory);
criterion_main!(benches);
