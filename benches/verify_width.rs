//! Measures verifying a rollup by suffix against the number of keys of one parent: with ten
//! children of the same days, with one child, and with as many children as keys; and compares it
//! with one GROUP BY of the same.
//!
//! It runs on SQLite, and on a private PostgreSQL server (tests/support/postgres) if that is
//! installed.

#![allow(clippy::unwrap_used, clippy::cast_precision_loss, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;
#[cfg(unix)]
#[path = "../tests/support/postgres/mod.rs"]
mod servers;

use std::time::Duration;

use common::is_test_run;
use keepcount::reconcile::{Mode, Options, Reconciler, Report, SqliteAudit, SystemRuntime, run};
use keepcount::{Counter, Schema, SqliteStore};
use rusqlite::Connection;

const CHILD_DAYS: Counter<(i64, i64)> = Counter::new("child.days");
const CHILD_PARENT: Counter<(i64, i64)> = Counter::new("child.parent");
const PARENT_DAYS: Counter<(i64, i64)> =
    Counter::new("parent.days").sum_of_suffix(CHILD_DAYS, CHILD_PARENT);
const SCHEMA: Schema =
    Schema::new(&[CHILD_DAYS.table(), CHILD_PARENT.table(), PARENT_DAYS.table()]);

const GROUP_BY: &str =
    "SELECT l.key_2, f.key_2, sum(l.total * f.total) FROM child_parent AS l JOIN child_days AS f ON f.key_1 = l.key_1
                        GROUP BY l.key_2, f.key_2";

/// How a parent gets its keys.
struct Shape {
    name: &'static str,
    /// Returns, for a number of keys, the number of children and the number of days of each.
    children_and_days: fn(i64) -> (i64, i64),
    /// The first day of child `c`, in SQL.
    first_day: &'static str,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "ten children of the same days",
        children_and_days: |keys| (10, keys),
        first_day: "0",
    },
    Shape { name: "one child", children_and_days: |keys| (1, keys), first_day: "0" },
    Shape { name: "as many children as keys", children_and_days: |keys| (keys, 1), first_day: "c" },
];

fn widths() -> Vec<i64> {
    if is_test_run() { vec![1_000] } else { vec![15_000, 25_000, 100_000, 400_000] }
}

fn reconciler() -> Reconciler {
    Reconciler::scoped(Mode::Verify, &SCHEMA, &[PARENT_DAYS.id()], Options::default()).unwrap()
}

fn check(report: &Report, keys: i64) {
    // The counters that the rollup sums have no rows here, so the run leaves them out.
    let rollup = report.counters.last().unwrap();
    let found = (rollup.counter, rollup.complete, rollup.drift(), rollup.keys);
    assert_eq!(found, (PARENT_DAYS.id(), true, 0, keys.unsigned_abs()), "{report}");
}

/// Calls `work` three times, or once in a test run; returns the shortest time.
fn shortest(mut work: impl FnMut() -> Duration) -> Duration {
    (0..if is_test_run() { 1 } else { 3 }).map(|_| work()).min().unwrap()
}

fn print_line(shape: &Shape, keys: i64, verify: Duration, pages: u64, group_by: Duration) {
    let (verify, group_by) = (verify.as_secs_f64() * 1e3, group_by.as_secs_f64() * 1e3);
    println!(
        "  {:32} {keys:>8} keys: verify {verify:>9.1} ms in {pages:>4} pages, GROUP BY {group_by:>8.1} ms, {:>5.2} times",
        shape.name,
        verify / group_by
    );
}

#[allow(clippy::disallowed_methods)]
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = std::time::Instant::now();
    let done = work();
    (begun.elapsed(), done)
}

fn sqlite() {
    println!("\nSQLite");
    for shape in &SHAPES {
        for keys in widths() {
            let folder = tempfile::tempdir().unwrap();
            let conn = Connection::open(folder.path().join("width.db")).unwrap();
            conn.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536",
            )
            .unwrap();
            SqliteStore::new(&conn, &SCHEMA).create().unwrap();
            let (children, days) = (shape.children_and_days)(keys);
            let (last_child, last_day) = (children - 1, days - 1);
            let series = |name: &str, last: i64| {
                format!(
                    "{name} ({name}) AS (VALUES (0) UNION ALL SELECT {name} + 1 FROM {name} WHERE {name} < {last})"
                )
            };
            let text = format!(
                "INSERT INTO child_parent WITH RECURSIVE {} SELECT c, 1, 1 FROM c;
                 INSERT INTO child_days WITH RECURSIVE {}, {} SELECT c, {} + n, 1 FROM c CROSS JOIN n;
                 INSERT INTO parent_days {GROUP_BY}",
                series("c", last_child),
                series("c", last_child),
                series("n", last_day),
                shape.first_day
            );
            conn.execute_batch(&text).unwrap();
            let mut pages = 0;
            let verify = shortest(|| {
                let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
                let (time, report) = timed(|| {
                    run(&mut reconciler(), &mut audit, &mut SystemRuntime::new()).unwrap()
                });
                check(&report, keys);
                pages = report.pages;
                time
            });
            let group_by = shortest(|| {
                let mut statement = conn.prepare_cached(GROUP_BY).unwrap();
                timed(|| {
                    statement.query_map((), |row| row.get::<_, i64>(2)).unwrap().for_each(drop);
                })
                .0
            });
            print_line(shape, keys, verify, pages, group_by);
        }
    }
}

#[cfg(unix)]
mod postgres {
    use keepcount::PostgresStore;
    use keepcount::reconcile::{PostgresAudit, TokioRuntime, run_async};
    use tokio::runtime::Builder;

    use super::servers::{Server, connect};
    use super::{GROUP_BY, SCHEMA, SHAPES, check, print_line, reconciler, shortest, timed, widths};

    pub fn main() {
        let Some(server) = Server::with(&[("shared_buffers", "512MB"), ("work_mem", "64MB")])
        else {
            return;
        };
        println!("\nPostgreSQL");
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for shape in &SHAPES {
            for keys in widths() {
                let mut client =
                    runtime.block_on(async { connect(&server.database().await).await });
                let (children, days) = (shape.children_and_days)(keys);
                let text = format!(
                    "INSERT INTO child_parent SELECT c, 1, 1 FROM generate_series(0, {children} - 1) AS c;
                     INSERT INTO child_days SELECT c, {} + n, 1 FROM generate_series(0, {children} - 1) AS c, generate_series(0, {days} - 1) AS n;
                     INSERT INTO parent_days {GROUP_BY}; ANALYZE; SET jit = off",
                    shape.first_day
                );
                runtime.block_on(async {
                    PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
                    client.batch_execute(&text).await.unwrap();
                });
                let mut pages = 0;
                let verify = shortest(|| {
                    let (time, report) = timed(|| {
                        runtime.block_on(async {
                            let mut audit = PostgresAudit::new(&mut client, &SCHEMA).await.unwrap();
                            run_async(&mut reconciler(), &mut audit, &mut TokioRuntime::new())
                                .await
                                .unwrap()
                        })
                    });
                    check(&report, keys);
                    pages = report.pages;
                    time
                });
                let count = format!("SELECT count(*) FROM ({GROUP_BY}) AS sums");
                let group_by = shortest(|| {
                    timed(|| runtime.block_on(client.query_one(&count, &[])).unwrap()).0
                });
                print_line(shape, keys, verify, pages, group_by);
            }
        }
    }
}

fn main() {
    sqlite();
    #[cfg(unix)]
    postgres::main();
}
