//! Measures building batches of 1, 100 and 10,000 deltas: ns a delta, next to the hash map that any
//! coalescing needs.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{Random, VoteRow};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hashbrown::HashMap;
use keepcount::concert::Vote;
use keepcount::{Batch, Counter};

const NUMBERS: Counter<u64> = Counter::new("bench.numbers");
const TEXTS: Counter<String> = Counter::new("bench.texts");

fn building(c: &mut Criterion) {
    for size in [1_u64, 100, 10_000] {
        let mut random = Random(1);
        let numbers = random.keys(size, size.max(10));
        let texts: Vec<String> = numbers.iter().map(|number| format!("se{number:06}")).collect();
        let mut group = c.benchmark_group(format!("batch of {size}"));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(1))
            .warm_up_time(Duration::from_millis(300));
        group.throughput(Throughput::Elements(size));
        let mut map: HashMap<u64, i64, foldhash::fast::RandomState> = HashMap::default();
        group.bench_function("hash map of integers, reused", |b| {
            b.iter(|| {
                map.clear();
                for key in &numbers {
                    *map.entry(*key).or_insert(0) += 1;
                }
                black_box(&map);
            });
        });
        group.bench_function("integers, new", |b| {
            b.iter(|| {
                let mut batch = Batch::new();
                for key in &numbers {
                    batch.add(NUMBERS, key, 1);
                }
                black_box(batch)
            });
        });
        let mut batch = Batch::new();
        group.bench_function("integers, reused", |b| {
            b.iter(|| {
                batch.clear();
                for key in &numbers {
                    batch.add(NUMBERS, key, 1);
                }
                black_box(&batch);
            });
        });
        group.bench_function("texts of 8 bytes, reused", |b| {
            b.iter(|| {
                batch.clear();
                for key in &texts {
                    batch.add(TEXTS, key, 1);
                }
                black_box(&batch);
            });
        });
        let vote = |text: &String| VoteRow {
            id: String::new(),
            setlist_id: text.clone(),
            user_id: text.clone(),
            up: true,
        };
        let votes: Vec<VoteRow> = texts.iter().map(vote).collect();
        group.bench_function(BenchmarkId::new("votes with four counters, reused", size), |b| {
            b.iter(|| {
                batch.clear();
                for vote in &votes {
                    batch.insert(vote);
                }
                black_box(&batch);
            });
        });
        group.bench_function(
            BenchmarkId::new("votes of a concert site, which decay three ways, reused", size),
            |b| {
                b.iter(|| {
                    batch.clear();
                    for (text, at) in texts.iter().zip(1_750_000_000..) {
                        batch.insert(&Vote::stored(
                            Some(text.as_str()),
                            Some(text.as_str()),
                            true,
                            at,
                        ));
                    }
                    black_box(&batch);
                });
            },
        );
        group.finish();
    }
}

criterion_group!(benches, building);
criterion_main!(benches);
