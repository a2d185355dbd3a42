//! Measures SQLite transactions of 1, 100 and 10,000 votes without counters, with hooks, and with a
//! trigger that keeps the same counters; and compares one counter's verification with one GROUP BY
//! over the same index.

#![allow(missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::Duration;

use common::{KEEPERS, Votes, is_test_run};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keepcount::reconcile::Options;

fn transactions(c: &mut Criterion) {
    for size in [1_u64, 100, 10_000] {
        let Ok(folder) = tempfile::tempdir() else { return };
        let mut group = c.benchmark_group(format!("sqlite, transactions of {size}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(200));
        group.throughput(Throughput::Elements(size));
        for (keeper, name) in KEEPERS {
            let mut votes = Votes::open(folder.path(), keeper);
            group.bench_function(name, |b| b.iter(|| votes.transaction(size)));
        }
        group.finish();
    }
}

fn verification(c: &mut Criterion) {
    let rows = if is_test_run() { 20_000 } else { 2_000_000 };
    let Ok(folder) = tempfile::tempdir() else { return };
    let votes = Votes::filled(folder.path(), rows, 100);
    let mut group = c.benchmark_group(format!("verify, {rows} votes"));
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_millis(200));
    group.throughput(Throughput::Elements(rows));
    group.bench_function("one GROUP BY", |b| b.iter(|| votes.group_by()));
    group.bench_function("verify, adapting pages", |b| b.iter(|| votes.verify(Options::default())));
    for page in [100, 1_000, 10_000] {
        group.bench_function(BenchmarkId::new("verify, pages of", page), |b| {
            b.iter(|| votes.verify(Options::default().page(page)));
        });
    }
    group.finish();
}

criterion_group!(benches, transactions, verification);
criterion_main!(benches);
