//! Measures how long writes to one hot key take, and the longest of them, at 1,000 writes a second
//! while repairs run without a pause.
//!
//! Rows are in an SQLite file (WAL). With totals in memory, a write begins a pending write, commits
//! the row, and commits the pending write. The peer has its totals in SQLite, and writes row and
//! total in one transaction, under the same repairs. Each is measured without and with repairs, in
//! turns within one run. This is a plain program without a bench harness, because the longest wait
//! matters, not a mean.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::disallowed_methods, missing_docs)]

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use keepcount::reconcile::{
    self, Audit, Columns, GracePeriod, MemoryAudit, Options, SqliteAudit, SqliteRows, SystemRuntime,
};
use keepcount::{Batch, Counter, MemoryStore, Record, Schema, SqliteStore, Store, Tally};
use rusqlite::{Connection, TransactionBehavior};

const VOTES: Counter<i64> = Counter::new("show.votes");
const SCHEMA: Schema = Schema::new(&[VOTES.table()]);
const SHOWS: i64 = 1_000;
const HOT: i64 = 500;
const PAGE: u16 = 100;
const PERIOD: Duration = Duration::from_millis(1);

/// A show and its votes: one for a row, or as many as SQL counted.
struct Votes(i64, i64);

impl Record for Votes {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, self.1);
    }
}

fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(10)).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL").unwrap();
    conn
}

fn fill(path: &Path, store: &MemoryStore) {
    let mut conn = open(path);
    conn.execute_batch("CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL); CREATE INDEX votes_by_show ON votes (show_id)")
        .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let mut batch = Batch::new();
    for show in 0..SHOWS {
        for _ in 0..10 {
            tx.execute("INSERT INTO votes (show_id) VALUES (?1)", [show]).unwrap();
            batch.insert(&Votes(show, 1));
        }
    }
    let mut same = batch.clone();
    SqliteStore::new(&tx, &SCHEMA).apply(&mut same).unwrap();
    tx.commit().unwrap();
    store.begin(&mut batch).unwrap().commit().unwrap();
}

/// The times of all writes.
struct Waits {
    /// Of the whole write.
    whole: Vec<Duration>,
    /// Of the calls that begin and commit its pending write, which wait for a barrier and a stripe.
    totals: Vec<Duration>,
}

/// Writes to the hot key once a [`PERIOD`], for `time`.
fn write(conn: &mut Connection, time: Duration, memory: Option<&MemoryStore>) -> Waits {
    let mut waits = Waits { whole: Vec::new(), totals: Vec::new() };
    let started = Instant::now();
    let mut due = started;
    let mut batch = Batch::new();
    while started.elapsed() < time {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += PERIOD;
        batch.clear();
        batch.insert(&Votes(HOT, 1));
        let begun = Instant::now();
        let pending_write = match memory {
            Some(store) => Ok(store.begin(&mut batch).unwrap()),
            None => Err(&mut batch),
        };
        let entered = begun.elapsed();
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        tx.prepare_cached("INSERT INTO votes (show_id) VALUES (?1)")
            .unwrap()
            .execute([HOT])
            .unwrap();
        let pending_write =
            pending_write.map_err(|batch| SqliteStore::new(&tx, &SCHEMA).apply(batch).unwrap());
        tx.commit().unwrap();
        let committed = Instant::now();
        if let Ok(pending_write) = pending_write {
            pending_write.commit().unwrap();
        }
        waits.whole.push(begun.elapsed());
        waits.totals.push(entered + committed.elapsed());
    }
    waits
}

/// Repairs without a pause until `done`. Before each repair it inserts a vote without a hook, so
/// that each repair finds drift on the hot key.
fn repair(path: &Path, memory: Option<&MemoryStore>, done: &AtomicBool, repaired: &AtomicU64) {
    let (conn, rows) = (open(path), open(path));
    while !done.load(Ordering::Relaxed) {
        let uncounted = rows.execute("INSERT INTO votes (show_id) VALUES (?1)", [HOT]);
        let mut audit: Box<dyn Audit + '_> = if let Some(store) = memory {
            let mut audit = MemoryAudit::live(
                store,
                GracePeriod::after(Duration::from_secs(10)),
                SystemRuntime::new(),
            );
            audit.add(VOTES, |from| read_votes(&conn, from)).unwrap();
            Box::new(audit)
        } else {
            let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
            let votes = SqliteRows::of("votes", |row| Ok(Votes(row.get(0)?, 1))).columns("show_id");
            audit.add(votes.key(VOTES, Columns::of(["show_id"]).count())).unwrap();
            Box::new(audit)
        };
        let options = Options::default().page(PAGE.into());
        let report = reconcile::repair(&SCHEMA).options(options).run(audit.as_mut()).unwrap();
        repaired.fetch_add(report.counters[0].corrected, Ordering::Relaxed);
        assert!(uncounted.is_ok());
    }
}

/// Reads the votes of the next shows in one statement: a page of shows, and one more.
fn read_votes(conn: &Connection, from: Bound<i64>) -> Vec<Votes> {
    let from = match from {
        Bound::Unbounded => i64::MIN,
        Bound::Included(show) => show,
        Bound::Excluded(show) => show + 1,
    };
    let text = "SELECT show_id, count(*) FROM votes WHERE show_id >= ?1 GROUP BY show_id LIMIT ?2";
    let mut statement = conn.prepare_cached(text).unwrap();
    let rows = statement
        .query_map((from, i64::from(PAGE) + 1), |row| Ok(Votes(row.get(0)?, row.get(1)?)))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

fn print_percentiles(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let at = (times.len() as f64 * share) as usize;
        times[at.min(times.len() - 1)]
    };
    println!("{name:46} p50 {:>9.1?}  p99 {:>9.1?}  longest {:>9.1?}", at(0.5), at(0.99), at(1.0));
}

fn main() {
    let quick = env::args().any(|argument| argument == "--test");
    let (rounds, time) =
        if quick { (1, Duration::from_millis(200)) } else { (3, Duration::from_secs(5)) };
    let folder = tempfile::tempdir().unwrap();
    for (kind, in_memory) in [("memory", true), ("SQLite", false)] {
        let path = folder.path().join(format!("{kind}.db"));
        let store = MemoryStore::new(&SCHEMA);
        fill(&path, &store);
        let memory = in_memory.then_some(&store);
        let repaired = AtomicU64::new(0);
        let mut with = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for _ in 0..rounds {
            for beside in [0, 1] {
                let done = AtomicBool::new(beside == 0);
                let waits = thread::scope(|scope| {
                    scope.spawn(|| repair(&path, memory, &done, &repaired));
                    let waits = write(&mut open(&path), time, memory);
                    done.store(true, Ordering::Relaxed);
                    waits
                });
                with[beside].0.extend(waits.whole);
                with[beside].1.extend(waits.totals);
            }
        }
        let [alone, beside] = with;
        println!(
            "{kind}: {} writes, {} repairs of the hot key",
            alone.0.len() + beside.0.len(),
            repaired.into_inner()
        );
        print_percentiles("  a write, no repair", alone.0);
        print_percentiles("  a write, repairs beside it", beside.0);
        if in_memory {
            print_percentiles("    of that pending write and totals, no repair", alone.1);
            print_percentiles("    of that pending write and totals, repairs", beside.1);
        }
    }
}
