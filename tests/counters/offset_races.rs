//! Many deliverers of the same streams. They deliver in chunks of their own, repeatedly, too early,
//! and again after an unknown outcome. Threads and processes share one SQLite file, some processes
//! are killed, and threads share one memory store beside snapshots. Each event is applied once.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::full_test_name;
use crate::support::offsets::{
    File, PLAIN, RISING, Random, SUM, assert_applied, assert_applied_in, events, open, rows,
    stored_offset, stream_range, write_rows,
};
use keepcount::{Applied, Error, MemoryStore, Recovery, Result, Schema, SqliteStore, Store};
use rusqlite::Connection;

/// Every chunk of events ends on a multiple of this, so that an offset does too.
const GRID: u64 = 5;
/// More turns than any deliverer needs.
const MAX_TURNS: u64 = 100_000;

/// The results of the chunks of one deliverer.
#[derive(Debug, Default, Clone, Copy)]
struct Delivered {
    applied: u64,
    skipped: u64,
    gaps: u64,
    overlaps: u64,
    /// Busy, or with an unknown outcome.
    again: u64,
}

impl Delivered {
    fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().fold(Self::default(), |sum, one| Self {
            applied: sum.applied + one.applied,
            skipped: sum.skipped + one.skipped,
            gaps: sum.gaps + one.gaps,
            overlaps: sum.overlaps + one.overlaps,
            again: sum.again + one.again,
        })
    }
}

/// Delivers all events of all streams, in random chunks, until each event was applied by this
/// deliverer or by another. It delivers some chunks again and some too early, and repeats chunks
/// that failed for a transient reason.
fn deliver_all(
    streams: &[&str],
    count: u64,
    random: &mut Random,
    mut apply: impl FnMut(&str, u64, u64, &mut Random) -> Result<Applied>,
) -> Delivered {
    let mut done = Delivered::default();
    let mut next = vec![1; streams.len()];
    for _ in 0..MAX_TURNS {
        let left: Vec<usize> = (0..streams.len()).filter(|at| next[*at] <= count).collect();
        if left.is_empty() {
            return done;
        }
        let at = left[usize::try_from(random.below(left.len() as u64)).unwrap()];
        let first: u64 = match random.below(8) {
            0 => next[at].saturating_sub(GRID * random.below(6)).max(1),
            1 => next[at] + GRID * random.below(3),
            _ => next[at],
        };
        let last = (first - 1 + GRID * (1 + random.below(4))).min(count);
        if first > last {
            continue;
        }
        match apply(streams[at], first, last, random) {
            Ok(applied) => {
                *(if applied.skipped { &mut done.skipped } else { &mut done.applied }) += 1;
                next[at] = next[at].max(last + 1);
            }
            Err(Error::Gap { applied, .. }) => {
                assert_eq!(applied % GRID, 0, "half a chunk was applied");
                done.gaps += 1;
                next[at] = applied + 1;
            }
            Err(Error::Overlap { applied, .. }) => {
                assert_eq!(applied % GRID, 0, "half a chunk was applied");
                done.overlaps += 1;
                next[at] = applied + 1;
            }
            Err(error) if error.recovery() != Recovery::Permanent => done.again += 1,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no end of events after {MAX_TURNS} turns: {done:?}");
}

const STREAMS: [&str; 3] = ["votes", "totals alone", "votes of others"];

/// The driver's busy error as an error that a retry may resolve.
fn busy(error: rusqlite::Error) -> Error {
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{error}");
    Error::Busy {
        operation: "the application's own statement".to_owned(),
        reason: "locked",
        cause: error.into(),
    }
}

/// Applies events in a transaction of the application, in one of several ways. For one in five, the
/// outcome is reported as unknown.
fn apply_in_sqlite(
    conn: &Connection,
    schema: &Schema,
    stream: &str,
    first: u64,
    last: u64,
    random: &mut Random,
) -> Result<Applied> {
    let mut store = SqliteStore::new(conn, schema);
    let (batch, stream_range) = (events(stream, first, last), stream_range(stream, first, last));
    if stream == STREAMS[1] {
        return store.apply_idempotent(&mut batch.clone(), &stream_range);
    }
    let way = random.below(3);
    let begin = if way == 0 { "BEGIN DEFERRED" } else { "BEGIN IMMEDIATE" };
    conn.execute_batch(begin).map_err(busy)?;
    let mut write = || {
        // A deferred transaction may read an outdated offset. It is busy then.
        if way < 2 && !stream_range.follows(store.offset(stream)?)? {
            return Ok(Applied::skipped());
        }
        write_rows(conn, stream, first, last).map_err(busy)?;
        store.apply_idempotent(&mut batch.clone(), &stream_range)
    };
    let mut applied = write();
    let (forgotten, mut commits) =
        (random.below(5) == 0, applied.as_ref().is_ok_and(|applied| !applied.skipped));
    if forgotten && applied.is_ok() {
        commits &= random.coin();
        applied = Err(Error::Indeterminate {
            operation: "committing".to_owned(),
            cause: "the outcome is unknown".into(),
        });
    }
    if commits && let Err(error) = conn.execute_batch("COMMIT").map_err(busy) {
        applied = Err(error);
    }
    if !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK").unwrap();
    }
    applied
}

fn deliver_in_sqlite(
    path: &Path,
    schema: &Schema,
    streams: &[&str],
    count: u64,
    seed: u64,
) -> Delivered {
    let (conn, mut random) = (open(path, Duration::from_millis(2)), Random(seed));
    deliver_all(streams, count, &mut random, |stream, first, last, random| {
        apply_in_sqlite(&conn, schema, stream, first, last, random)
    })
}

/// Checks that rows and totals are those of all events, each once.
fn assert_all_applied(path: &Path, schema: &Schema, streams: &[&str], count: u64) {
    let conn = open(path, Duration::ZERO);
    assert_applied_in(
        &conn,
        schema,
        &streams.iter().map(|stream| (*stream, count)).collect::<Vec<_>>(),
    );
    let with_rows = streams.iter().filter(|stream| **stream != STREAMS[1]);
    let all =
        with_rows.map(|stream| ((*stream).to_owned(), count.cast_signed(), count.cast_signed()));
    assert_eq!(rows(&conn), all.collect::<Vec<_>>());
    let twice =
        "SELECT count(*) FROM (SELECT 1 FROM votes GROUP BY stream, event HAVING count(*) > 1)";
    assert_eq!(conn.query_row(twice, (), |row| row.get::<_, i64>(0)), Ok(0));
}

#[test]
fn threads_that_deliver_the_same_streams_apply_each_event_once() {
    for (schema, streams, count) in [
        (&PLAIN, &STREAMS[..], 1_200),
        (&RISING, &STREAMS[..], 1_200),
        // All deliver the same stream, each chunk in a transaction of the store's own.
        (&PLAIN, &STREAMS[1..2], 20_000),
        (&RISING, &STREAMS[1..2], 20_000),
    ] {
        let file = File::new(schema);
        let delivered = thread::scope(|scope| {
            let path = &file.path;
            let one =
                |seed| scope.spawn(move || deliver_in_sqlite(path, schema, streams, count, seed));
            let all: Vec<_> = (1..=4).map(one).collect();
            Delivered::sum(all.into_iter().map(|one| one.join().unwrap()))
        });
        println!("{delivered:?}");
        assert!(delivered.skipped > 0 && delivered.gaps > 0 && delivered.overlaps > 0);
        assert_all_applied(&file.path, schema, streams, count);
    }
}

const DELIVERER: &str = "KEEPCOUNT_MARK_DELIVERER";
const COUNT_OF_PROCESSES: u64 = 30_000;

/// The child processes of
/// [`processes_that_deliver_the_same_streams_and_are_killed_apply_each_event_once`] run this test
/// with a file and a seed. Without them it does nothing.
#[test]
fn a_deliverer_in_a_process_of_its_own() {
    let Ok(what) = std::env::var(DELIVERER) else { return };
    let (seed, path) = what.split_once(' ').unwrap();
    deliver_in_sqlite(
        Path::new(path),
        &RISING,
        &STREAMS,
        COUNT_OF_PROCESSES,
        seed.parse().unwrap(),
    );
}

#[test]
fn processes_that_deliver_the_same_streams_and_are_killed_apply_each_event_once() {
    let file = File::new(&RISING);
    let spawn = |seed: u64| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &full_test_name(module_path!(), "a_deliverer_in_a_process_of_its_own"),
                "--quiet",
            ])
            .env(DELIVERER, format!("{seed} {}", file.path.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (mut random, conn) = (Random(11), open(&file.path, Duration::from_secs(10)));
    let mut others: Vec<Child> = (100..103).map(spawn).collect();
    // Processes are killed at any moment, also in the middle of a commit, whose outcome is unknown
    // then.
    let (mut kills, mut at) = (0, BTreeSet::new());
    for seed in 0..50 {
        let mut one = spawn(seed);
        thread::sleep(Duration::from_millis(random.below(40)));
        kills += u64::from(one.try_wait().unwrap().is_none());
        one.kill().unwrap();
        one.wait().unwrap();
        at.insert(stored_offset(&conn, STREAMS[0]));
    }
    assert!(others.iter_mut().all(|other| other.wait().unwrap().success()));
    println!("{kills} deliverers were killed at work, at events {at:?}");
    assert!(
        kills > 0 && at.iter().any(|last| (1..COUNT_OF_PROCESSES).contains(last)),
        "none was killed at work"
    );
    assert_all_applied(&file.path, &RISING, &STREAMS, COUNT_OF_PROCESSES);
}

// In memory.

const COUNT_IN_MEMORY: u64 = 40_000;

/// How many events of a stream are in these totals.
fn count_in(store: &MemoryStore, stream: &str) -> u64 {
    let sum = store.total(SUM, stream).unwrap().unsigned_abs();
    let count = (0..=COUNT_IN_MEMORY).find(|count| count * (count + 1) / 2 >= sum).unwrap();
    assert_eq!(count * (count + 1) / 2, sum, "the events of {stream} are not the first ones");
    count
}

#[test]
fn threads_in_memory_apply_each_event_once_and_offsets_match_the_totals() {
    let mut moments = 0;
    for (schema, streams) in
        [(&PLAIN, &STREAMS[..1]), (&RISING, &STREAMS[..1]), (&PLAIN, &STREAMS), (&RISING, &STREAMS)]
    {
        let store = MemoryStore::new(schema);
        let (done, all_here) = (AtomicBool::new(false), Barrier::new(4));
        let (delivered, looks) = thread::scope(|scope| {
            let deliverers: Vec<_> = (1..=3)
                .map(|seed| {
                    let (store, all_here) = (&store, &all_here);
                    scope.spawn(move || {
                        all_here.wait();
                        deliver_all(
                            streams,
                            COUNT_IN_MEMORY,
                            &mut Random(seed),
                            |stream, first, last, random| {
                                let applied = store.apply_idempotent(
                                    &mut events(stream, first, last),
                                    &stream_range(stream, first, last),
                                )?;
                                if random.below(5) == 0 {
                                    return Err(Error::Indeterminate {
                                        operation: "applying".to_owned(),
                                        cause: "the outcome is unknown".into(),
                                    });
                                }
                                Ok(applied)
                            },
                        )
                    })
                })
                .collect();
            let looker = scope.spawn(|| {
                let mut looks = BTreeSet::new();
                all_here.wait();
                while !done.load(Ordering::Relaxed) {
                    let before: Vec<u64> =
                        streams.iter().map(|stream| store.offset(stream)).collect();
                    let snapshot = store.snapshot();
                    let after: Vec<u64> =
                        streams.iter().map(|stream| store.offset(stream)).collect();
                    let seen = MemoryStore::restore(schema, &snapshot).unwrap();
                    for ((stream, before), after) in streams.iter().zip(before).zip(after) {
                        let count = count_in(&seen, stream);
                        assert!(
                            (before..=after).contains(&count),
                            "{stream}: {before} {count} {after}"
                        );
                        looks.insert(count);
                    }
                }
                looks
            });
            let delivered = Delivered::sum(deliverers.into_iter().map(|one| one.join().unwrap()));
            done.store(true, Ordering::Relaxed);
            (delivered, looker.join().unwrap())
        });
        println!("{delivered:?}, {} different moments seen", looks.len());
        moments += looks.len();
        assert!(delivered.skipped > 0 && delivered.again > 0);
        let all: Vec<(&str, u64)> =
            streams.iter().map(|stream| (*stream, COUNT_IN_MEMORY)).collect();
        assert_applied(&store, schema, &all);
    }
    assert!(moments > 3, "{moments} different moments seen");
}
