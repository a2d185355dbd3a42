//! Measures what rollups cost: votes with the counters of their own rows, with rollups over two
//! levels, and with everything that a concert site keeps (votes that decay at three levels, and
//! leaderboards), with one half-life and with three; in memory, and in SQLite transactions of 1,
//! 100 and 10,000 votes. It also measures reads.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;

use std::time::Duration;

use common::{Random, is_test_run};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use keepcount::concert::{Concert, Setlist, Show, Status, Trend, Trends, Vote};
use keepcount::{Batch, Date, Key, MemoryStore, Record, Schema, SqliteStore, Store, Tally};
use rusqlite::{Connection, TransactionBehavior};

type C = Concert<i64>;

struct ThreeHalfLives;

impl<K: Key> Trends<K> for ThreeHalfLives {
    const TRENDS: &'static [Trend<K>] = &[Trend::HOURS_6, Trend::DAY, Trend::WEEK];
}

const OWN: Schema = Schema::new(&[
    C::SETLIST_VOTES.table(),
    C::SETLIST_UPVOTES.table(),
    C::SETLIST_SCORE.table(),
    C::USER_VOTES.table(),
]);
const ROLLED_UP: Schema = Schema::new(&[
    C::SETLIST_SHOW.table(),
    C::SHOW_ARTIST.table(),
    C::SETLIST_VOTES.table(),
    C::SETLIST_UPVOTES.table(),
    C::SETLIST_SCORE.table(),
    C::USER_VOTES.table(),
    C::SHOW_VOTES.table(),
    C::ARTIST_VOTES.table(),
]);
const SCHEMAS: [(&str, &Schema); 4] = [
    ("own counters", &OWN),
    ("and two rollups", &ROLLED_UP),
    ("all of a concert site", &C::SCHEMA),
    ("with three half-lives", &Concert::<i64, ThreeHalfLives>::SCHEMA),
];

const SETLISTS: u64 = 2_000;
const SHOWS: u64 = 500;
const ARTISTS: u64 = 50;

/// A vote (schema, setlist, user, time) that tallies only the counters of the schema.
struct CountedVote<'l>(&'l Schema, i64, i64, i64);

impl Record for CountedVote<'_> {
    fn tally(&self, to: &mut Tally<'_>) {
        let Self(schema, setlist, user, at) = *self;
        if schema.position(&Trend::<i64>::DAY.setlists.id()).is_ok() {
            Vote::stored(Some(setlist), Some(user), true, at)
                .decaying::<ThreeHalfLives>()
                .tally(to);
        } else if schema.position(&Trend::<i64>::WEEK.setlists.id()).is_ok() {
            Vote::stored(Some(setlist), Some(user), true, at).tally(to);
        } else {
            to.add(C::SETLIST_VOTES, setlist, 1);
            to.add(C::SETLIST_UPVOTES, setlist, 1);
            to.add(C::SETLIST_SCORE, setlist, 1);
            to.add(C::USER_VOTES, user, 1);
        }
    }
}

fn votes(schema: &Schema, random: &mut Random, count: u64) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..count {
        // Setlists with low numbers are hot; the votes are spread over five weeks.
        let setlist = (random.next() % SETLISTS) * (random.next() % SETLISTS) / SETLISTS;
        let at = 1_750_000_000 + (random.next() % 3_000_000).cast_signed();
        batch.insert(&CountedVote(
            schema,
            setlist.cast_signed(),
            (random.next() % 10_000).cast_signed(),
            at,
        ));
    }
    batch
}

/// Returns the memberships of all setlists and shows; empty if the schema has none.
fn memberships(schema: &Schema) -> Batch {
    let mut batch = Batch::new();
    if schema.position(&C::SETLIST_SHOW.id()).is_err() {
        return batch;
    }
    let mut all = Batch::new();
    for show in 0..SHOWS.cast_signed() {
        let date = Date::from_days(20_600).unwrap();
        all.insert(&Show::new(show, Some(show % ARTISTS.cast_signed()), date, Status::Upcoming));
    }
    for setlist in 0..SETLISTS.cast_signed() {
        all.insert(&Setlist::new(setlist, Some(setlist % SHOWS.cast_signed())));
    }
    for (counter, key, delta) in
        all.deltas().filter(|(counter, ..)| schema.position(counter).is_ok())
    {
        let delta = i64::try_from(delta).unwrap();
        if counter == C::SETLIST_SHOW.id() {
            batch.add(C::SETLIST_SHOW, key.decode::<(i64, i64)>().unwrap(), delta);
        } else if counter == C::SHOW_ARTIST.id() {
            batch.add(C::SHOW_ARTIST, key.decode::<(i64, i64)>().unwrap(), delta);
        }
    }
    batch
}

fn memory(c: &mut Criterion) {
    for size in [1_u64, 100] {
        let mut group = c.benchmark_group(format!("memory, batches of {size} votes"));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(300));
        group.throughput(Throughput::Elements(size));
        for (name, schema) in SCHEMAS {
            let store = MemoryStore::new(schema);
            store.apply(&mut memberships(schema)).unwrap();
            let mut random = Random(3);
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_batched(
                    || votes(schema, &mut random, size),
                    |mut batch| store.apply(&mut batch).unwrap(),
                    criterion::BatchSize::SmallInput,
                );
            });
        }
        group.finish();
    }
}

fn sqlite(c: &mut Criterion) {
    for size in [1_u64, 100, 10_000] {
        let Ok(folder) = tempfile::tempdir() else { return };
        let mut group = c.benchmark_group(format!("sqlite, transactions of {size} votes"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(200));
        group.throughput(Throughput::Elements(size));
        for (at, (name, schema)) in (0..).zip(SCHEMAS) {
            let mut conn = Connection::open(folder.path().join(format!("{at}.db"))).unwrap();
            conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
            conn.set_prepared_statement_cache_capacity(512);
            SqliteStore::new(&conn, schema).create().unwrap();
            SqliteStore::new(&conn, schema).apply(&mut memberships(schema)).unwrap();
            let mut random = Random(5);
            let mut filled = votes(schema, &mut random, if is_test_run() { 100 } else { 20_000 });
            SqliteStore::new(&conn, schema).apply(&mut filled).unwrap();
            let one =
                SqliteStore::new(&conn, schema).apply(&mut votes(schema, &mut random, 1)).unwrap();
            println!(
                "{name}: one vote writes {} totals by {} statements, leaderboards included",
                one.totals, one.statements
            );
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| {
                    let mut batch = votes(schema, &mut random, size);
                    let tx =
                        conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
                    SqliteStore::new(&tx, schema).apply(&mut batch).unwrap();
                    tx.commit().unwrap();
                });
            });
        }
        group.finish();
    }
}

/// Measures what a page view reads of a concert site, with each statement in its own transaction,
/// and with all in one.
fn reads(c: &mut Criterion) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let conn = Connection::open(folder.path().join("site.db")).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.set_prepared_statement_cache_capacity(512);
    let mut store = SqliteStore::new(&conn, &C::SCHEMA);
    store.create().unwrap();
    store.apply(&mut memberships(&C::SCHEMA)).unwrap();
    let mut random = Random(5);
    store
        .apply(&mut votes(&C::SCHEMA, &mut random, if is_test_run() { 100 } else { 20_000 }))
        .unwrap();
    for (name, begin, end) in [("of its own", "", ""), ("around all", "BEGIN", "COMMIT")] {
        let mut group = c.benchmark_group(format!("sqlite, reads in a transaction {name}"));
        group
            .sample_size(50)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(300));
        conn.execute_batch(begin).unwrap();
        let mut key = || (random.next() % SHOWS).cast_signed();
        group.bench_function("a total", |b| {
            b.iter(|| store.total(C::SETLIST_VOTES, key()).unwrap());
        });
        group.bench_function("a rollup's total", |b| {
            b.iter(|| store.total(C::SHOW_VOTES, key()).unwrap());
        });
        group.bench_function("100 totals", |b| {
            b.iter(|| store.totals_of(C::SETLIST_VOTES, 0..100).unwrap());
        });
        group.bench_function("first 10 of a leaderboard", |b| {
            b.iter(|| store.top(Trend::<i64>::WEEK.leaderboard, 10).unwrap());
        });
        group.finish();
        conn.execute_batch(end).unwrap();
    }
}

criterion_group!(benches, memory, sqlite, reads);
criterion_main!(benches);
