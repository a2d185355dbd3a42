//! Rollups under concurrent writes: setlists and shows move, parents are deleted with their
//! children, votes come in between. Threads write to one memory store; threads and processes write
//! to one SQLite file, beside repairs of drift that is planted meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::full_test_name;
use crate::support::rollups::subjects::{
    BILLING, SETLIST, TABLES, VOTE, audit, change_in_sqlite, rows_of,
};
use crate::support::rollups::{
    Change, Model, Name, Random, Row, Rows, SCHEMA, Totals, difference, totals_of,
};
use keepcount::reconcile::{Mode, Options, Reconciler, SystemRuntime, run};
use keepcount::{Batch, MemoryStore, SqliteStore, Store as _};
use rusqlite::Connection;

const ROLLUPS: [&str; 4] = ["artist.days", "artist.votes", "show.days", "show.votes"];

fn show(random: &mut Random) -> String {
    ["a", "b", "a\0", ""][usize::try_from(random.below(4)).unwrap()].to_owned()
}

fn artist(random: &mut Random) -> i16 {
    i16::try_from(random.below(3)).unwrap()
}

/// A random change. This writer puts rows with ids from `first` on.
fn change(random: &mut Random, first: i64) -> Change {
    let setlist = random.int(0, 6);
    match random.below(24) {
        0..12 => {
            let (weight, day) = (random.int(-2, 4), i8::try_from(random.int(-1, 3)).ok());
            Change::Put(
                first + random.int(0, 12),
                Row::Vote { setlist: Some(setlist), weight, day },
            )
        }
        12..15 => Change::DropVote(first + random.int(0, 12)),
        15..18 => {
            let show = (random.below(5) > 0).then(|| show(random));
            Change::Put(setlist, Row::Setlist { id: setlist, show })
        }
        18 | 19 => {
            let artist = (random.below(5) > 0).then(|| artist(random));
            Change::Put(
                first + random.int(0, 4),
                Row::Billing { show: show(random), artist, share: random.int(1, 3) },
            )
        }
        20 => Change::MoveSetlists(show(random), Some(show(random))),
        21 => Change::MoveBillings(artist(random), Some(artist(random))),
        22 if random.below(3) == 0 => Change::DropArtist(artist(random)),
        22 => Change::DropShow(show(random)),
        _ => Change::MoveVotes(setlist, Some(random.int(0, 6))),
    }
}

/// The drift of the rollups against the stored totals that they sum.
fn rollup_drift(stored: Totals) -> Totals {
    let model = Model { rows: Rows::default(), stored };
    let mut drift = model.drift();
    drift.retain(|name, _| ROLLUPS.contains(&name.0));
    drift
}

#[test]
fn threads_on_one_memory_store_leave_every_level_exact() {
    let store = MemoryStore::new(&SCHEMA);
    let done = AtomicBool::new(false);
    let rows: Vec<Rows> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let store = &store;
                scope.spawn(move || {
                    let (mut random, mut rows, mut batch) =
                        (Random(seed), Rows::default(), Batch::new());
                    for turn in 0..1_500 {
                        batch.clear();
                        for _ in 0..=random.below(3) {
                            // Mostly votes alone, which are applied in parallel. Memberships are
                            // applied one after the other.
                            let change = change(&mut random, 0);
                            let membership = !matches!(
                                change,
                                Change::Put(_, Row::Vote { .. }) | Change::DropVote(_)
                            );
                            if membership && turn % 3 > 0 {
                                continue;
                            }
                            let (old, new) = rows.change(&change);
                            batch.update(&old, &new);
                        }
                        store.apply(&mut batch.clone()).unwrap();
                    }
                    rows
                })
            })
            .collect();
        let looker = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                // A snapshot sees each batch at all levels, or at none.
                let mut seen = MemoryStore::restore(&SCHEMA, &store.snapshot()).unwrap();
                assert_eq!(rollup_drift(totals_of(&mut seen)), Totals::new());
                looks += 1;
            }
            looks
        });
        let rows = writers.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>();
        done.store(true, Ordering::Relaxed);
        assert!(looker.join().unwrap() > 0);
        rows.into_iter().map(Result::unwrap).collect()
    });
    let mut all = Rows::default();
    for (first, rows) in (0..).step_by(1_000).zip(rows) {
        all.votes.extend(rows.votes.into_iter().map(|(id, row)| (first + id, row)));
        all.setlists.extend(rows.setlists.into_iter().map(|(id, row)| (first + id, row)));
        all.billings.extend(rows.billings.into_iter().map(|(id, row)| (first + id, row)));
    }
    assert_eq!(totals_of(&store), all.recount());
    assert!(all.recount().len() > 40, "enough totals are left to compare");
}

fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(30)).unwrap();
    conn.set_prepared_statement_cache_capacity(128);
    conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    conn
}

fn create(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let path = dir.path().join("site.db");
    let conn = open(&path);
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.execute_batch(TABLES).unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    path
}

/// Runs many transactions of an application, of which some are rolled back.
fn write(path: &Path, seed: u64, turns: usize) {
    let (conn, mut random) = (open(path), Random(seed));
    let first = i64::try_from(seed).unwrap() * 1_000;
    for _ in 0..turns {
        let mut batch = Batch::new();
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..=random.below(3) {
            let (old, new) = change_in_sqlite(&conn, &change(&mut random, first));
            batch.update(&old, &new);
        }
        SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
        conn.execute_batch(if random.below(8) == 0 { "ROLLBACK" } else { "COMMIT" }).unwrap();
        if random.below(4) == 0 {
            thread::sleep(Duration::from_micros(random.below(800)));
        }
    }
}

/// The rows and the totals of one moment.
fn load(conn: &Connection) -> Model {
    load_inside(&conn.unchecked_transaction().unwrap())
}

/// All values that the drift of each key has had after drift was planted.
type Planted = BTreeMap<Name, BTreeSet<i64>>;

/// A key's drift changes only when drift is planted, or by a repair, to 0. Neither a hook nor its
/// propagation to rollups changes it.
fn assert_planted(drift: &Totals, planted: &Planted) {
    for (name, drift) in drift {
        assert!(
            planted.get(name).is_some_and(|known| known.contains(drift)),
            "{name:?} is off by {drift}: {planted:?}"
        );
    }
}

/// Changes a total of any level without a hook, under the write lock.
fn plant(conn: &Connection, random: &mut Random, planted: &mut Planted) {
    let counter = SCHEMA.counters()[usize::try_from(random.below(8)).unwrap()];
    let (table, membership) =
        (counter.table_name(), ["setlist.show", "show.artist"].contains(&counter.id().name()));
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = load_inside(conn);
    assert_planted(&before.drift(), planted);
    let change = match random.below(3) {
        0 if !membership => format!("UPDATE {table} SET total = total + 1000"),
        0 => format!("UPDATE {table} SET total = total + 1"),
        1 => format!("DELETE FROM {table}"),
        _ => format!("UPDATE {table} SET total = -total"),
    };
    let key = if table.ends_with("votes") { "key" } else { "(key_1, key_2)" };
    let columns = key.trim_matches(['(', ')']);
    let one = format!(
        "SELECT {columns} FROM {table} ORDER BY {columns} LIMIT 1 OFFSET {}",
        random.below(4)
    );
    conn.execute(&format!("{change} WHERE {key} = ({one})"), ()).unwrap();
    for (name, drift) in load_inside(conn).drift() {
        planted.entry(name).or_default().insert(drift);
    }
    conn.execute_batch("COMMIT").unwrap();
}

fn load_inside(conn: &Connection) -> Model {
    let table = |columns: &str, table: &str| -> BTreeMap<i64, Row> {
        (0..).zip(rows_of(conn, &format!("SELECT {columns} FROM {table}"), ())).collect()
    };
    let rows = Rows {
        votes: table(VOTE, "votes"),
        setlists: table(SETLIST, "setlists"),
        billings: table(BILLING, "billings"),
    };
    Model { rows, stored: totals_of(&mut SqliteStore::new(conn, &SCHEMA)) }
}

fn repair(conn: &Connection, page: usize) -> u64 {
    let mut repair =
        Reconciler::new(Mode::Repair, &SCHEMA, Options::default().page(page).force(true)).unwrap();
    let report = run(&mut repair, &mut audit(conn, page == 3), &mut SystemRuntime::new()).unwrap();
    assert!(report.complete(), "{report}");
    report.counters.iter().map(|counter| counter.corrected).sum()
}

/// Drift is planted on more keys than this.
const MIN_PLANTED: usize = 8;

/// Repairs again and again, while drift is planted, until the writers have ended. Then repairs the
/// rest, and checks every level.
fn repair_during_writes(path: &Path, planting: bool, mut writing: impl FnMut() -> bool) {
    let done = AtomicBool::new(false);
    let mut planted = Planted::new();
    let (repairs, corrected) = thread::scope(|scope| {
        let repairer = scope.spawn(|| {
            let conn = open(path);
            let (mut repairs, mut corrected) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                corrected += repair(&conn, [1, 3, 1000][repairs % 3]);
                repairs += 1;
            }
            (repairs, corrected)
        });
        let ended = SetOnDrop(&done);
        let (conn, mut random) = (open(path), Random(77));
        // On a busy machine the writers may end before much is planted.
        while writing() || (planting && planted.len() <= MIN_PLANTED) {
            assert_planted(&load(&conn).drift(), &planted);
            if planting {
                plant(&conn, &mut random, &mut planted);
            }
            thread::sleep(Duration::from_millis(3));
        }
        drop(ended);
        repairer.join().unwrap()
    });
    println!("{repairs} repairs repaired {corrected} of {} planted keys", planted.len());
    let conn = open(path);
    let end = load(&conn);
    assert_planted(&end.drift(), &planted);
    assert!(repairs > 0);
    if planting {
        assert!(
            corrected > 0 && planted.len() > MIN_PLANTED,
            "{repairs} repairs of {} keys",
            planted.len()
        );
        assert_eq!(repair(&conn, 3), end.drift().len() as u64);
    } else {
        assert_eq!(corrected, 0, "there was nothing to repair");
    }
    let end = load(&conn);
    assert_eq!(
        difference(&end.stored, &end.rows.recount()),
        Totals::new(),
        "every level equals the rows"
    );
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write_in_threads_during_repairs(planting: bool, turns: usize) {
    let dir = crate::support::temp_dir();
    let path = create(&dir);
    thread::scope(|scope| {
        let writers: Vec<_> = (1..4)
            .map(|seed| {
                scope.spawn({
                    let path = &path;
                    move || write(path, seed, turns)
                })
            })
            .collect();
        repair_during_writes(&path, planting, || {
            !writers.iter().all(thread::ScopedJoinHandle::is_finished)
        });
    });
}

#[test]
fn threads_on_one_file_leave_every_level_exact_and_repairs_find_no_drift() {
    write_in_threads_during_repairs(false, 400);
}

#[test]
fn threads_on_one_file_and_repairs_of_planted_drift_leave_every_level_exact() {
    write_in_threads_during_repairs(true, 400);
}

const WRITER: &str = "KEEPCOUNT_ROLLUP_WRITER";

/// The child processes of
/// [`processes_on_one_file_and_repairs_of_planted_drift_leave_every_level_exact`] run this test
/// with a file and a seed. Without them it does nothing.
#[test]
fn a_writer_in_a_process_of_its_own() {
    let Ok(what) = std::env::var(WRITER) else { return };
    let (seed, path) = what.split_once(' ').unwrap();
    write(Path::new(path), seed.parse().unwrap(), 400);
}

#[test]
fn processes_on_one_file_and_repairs_of_planted_drift_leave_every_level_exact() {
    let dir = crate::support::temp_dir();
    let path = create(&dir);
    let spawn = |seed: u64| {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &full_test_name(module_path!(), "a_writer_in_a_process_of_its_own"),
                "--quiet",
            ])
            .env(WRITER, format!("{seed} {}", path.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut writers: Vec<Child> = (4..7).map(spawn).collect();
    repair_during_writes(&path, true, || {
        let ended = writers.iter_mut().map(|writer| writer.try_wait().unwrap()).collect::<Vec<_>>();
        assert!(ended.iter().flatten().all(ExitStatus::success), "a writer failed: {ended:?}");
        ended.iter().any(Option::is_none)
    });
}
