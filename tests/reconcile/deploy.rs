//! The procedure of docs/deploy.md with processes on one file. Old and new processes write side by
//! side, a job that is killed repeatedly backfills the new counters, and at the end the old ones
//! are dropped. Meanwhile every read is exact or refused.

use crate::support::full_test_name;
use crate::support::random::Random;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use keepcount::reconcile::{
    Columns, Mode, Options, Reconciler, SqliteAudit, SqliteRows, SystemRuntime, Token, run,
};
use keepcount::{Batch, Counter, Error, Leaderboard, Record, Schema, SqliteStore, Store, Tally};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow};

// An application in three releases. The first counts votes. The second also counts their weights,
// sums those by show, and ranks the shows. The third no longer has the first counter.

const VOTES: Counter<i64> = Counter::new("setlist.votes");
/// The weights of votes that are not spam.
const VOTES_2: Counter<i64> = VOTES.version(2);
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES_2, MEMBERSHIP);
const RANK: Leaderboard<i64> =
    Leaderboard::new("show.board", [SHOWS]).by(|[votes]| (votes != 0).then_some(votes));

const FIRST: Schema = Schema::new(&[VOTES.table()]);
const SECOND: Schema =
    Schema::new(&[VOTES.table(), VOTES_2.table(), MEMBERSHIP.table(), SHOWS.table()])
        .leaderboards(&[RANK.id()]);
const THIRD: Schema =
    Schema::new(&[VOTES_2.table(), MEMBERSHIP.table(), SHOWS.table()]).leaderboards(&[RANK.id()]);
const RELEASES: [&Schema; 3] = [&FIRST, &SECOND, &THIRD];

#[derive(Debug, Clone, Copy)]
enum Row<const RELEASE: usize> {
    Vote { setlist: i64, weight: i64, spam: bool },
    Setlist { id: i64, show: i64 },
}

impl<const RELEASE: usize> Record for Row<RELEASE> {
    fn tally(&self, to: &mut Tally<'_>) {
        match *self {
            Self::Vote { setlist, weight, spam } => {
                if RELEASE < 3 {
                    to.add(VOTES, setlist, 1);
                }
                if RELEASE > 1 && !spam {
                    to.add(VOTES_2, setlist, weight);
                }
            }
            Self::Setlist { id, show } if RELEASE > 1 => to.add(MEMBERSHIP, (id, show), 1),
            Self::Setlist { .. } => {}
        }
    }
}

fn vote<const RELEASE: usize>(row: &SqlRow<'_>) -> rusqlite::Result<Row<RELEASE>> {
    Ok(Row::Vote { setlist: row.get(0)?, weight: row.get(1)?, spam: row.get(2)? })
}

fn setlist<const RELEASE: usize>(row: &SqlRow<'_>) -> rusqlite::Result<Row<RELEASE>> {
    Ok(Row::Setlist { id: row.get(0)?, show: row.get(1)? })
}

const TABLES: &str = "PRAGMA journal_mode = WAL;
    CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER NOT NULL, weight INTEGER NOT NULL, spam INTEGER NOT NULL);
    CREATE INDEX votes_by_setlist ON votes (setlist, weight, spam);
    CREATE TABLE setlists (id INTEGER PRIMARY KEY, show INTEGER NOT NULL);
    CREATE INDEX setlists_by_id ON setlists (id, show)";
const SETLISTS: i64 = 300;
const SHOW_COUNT: i64 = 20;

fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(30)).unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    conn
}

// The processes.

const ROLE: &str = "KEEPCOUNT_DEPLOY_ROLE";

/// The entry point of a spawned process: this test, with its role in the environment.
#[test]
fn spawned_process_runs_its_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.splitn(3, ' ').collect();
    let (number, path) = (words[1].parse().unwrap(), Path::new(words[2]));
    match words[0] {
        "writer-1" => write::<1>(path, number),
        "writer-2" => write::<2>(path, number),
        "writer-3" => write::<3>(path, number),
        "job" => job(path),
        other => panic!("{other}"),
    }
}

/// A file beside the database that tells the writers of a release to end.
fn stop_file(path: &Path, release: usize) -> PathBuf {
    path.with_extension(format!("stop-{release}"))
}

/// A file beside the database that a writer creates once it has written.
fn begun_file(path: &Path, number: u64) -> PathBuf {
    path.with_extension(format!("begun-{number}"))
}

/// Creates the tables as an application does at its start, and writes until it is told to end.
fn write<const RELEASE: usize>(path: &Path, seed: u64) {
    let (conn, mut random) = (open(path), Random(seed));
    SqliteStore::new(&conn, RELEASES[RELEASE - 1]).create().unwrap();
    let stop = stop_file(path, RELEASE);
    for turn in 0.. {
        if turn == 20 {
            fs::write(begun_file(path, seed), "").unwrap();
        }
        assert!(turn < 60_000, "the writer was not told to end");
        if stop.exists() {
            return;
        }
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut batch = Batch::new();
        for _ in 0..=random.below(3) {
            change::<RELEASE>(&conn, &mut random, &mut batch);
        }
        SqliteStore::new(&conn, RELEASES[RELEASE - 1]).apply(&mut batch).unwrap();
        conn.execute_batch(if random.below(8) == 0 { "ROLLBACK" } else { "COMMIT" }).unwrap();
        thread::sleep(Duration::from_micros(500 + random.below(2_000)));
    }
}

/// Runs a random statement on the rows and its hooks. Old values come from the statement itself or
/// from a read in its transaction.
fn change<const RELEASE: usize>(conn: &Connection, random: &mut Random, batch: &mut Batch) {
    let (id, weight, spam) = (random.below(SETLISTS), random.below(7) - 2, random.below(4) == 0);
    match random.below(10) {
        0..6 => {
            conn.execute(
                "INSERT INTO votes (setlist, weight, spam) VALUES (?1, ?2, ?3)",
                (id, weight, spam),
            )
            .unwrap();
            batch.insert(&Row::<RELEASE>::Vote { setlist: id, weight, spam });
        }
        6 | 7 => {
            let one = "DELETE FROM votes WHERE id = (SELECT min(id) FROM votes WHERE setlist >= ?1) RETURNING setlist, weight, spam";
            let deleted = conn.query_row(one, [id], vote::<RELEASE>).optional().unwrap();
            batch.delete(&deleted);
        }
        8 => {
            let select = "SELECT setlist, weight, spam FROM votes WHERE setlist = ?1";
            let old: Vec<_> = conn
                .prepare(select)
                .unwrap()
                .query_map([id], vote::<RELEASE>)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            conn.execute("UPDATE votes SET spam = NOT spam WHERE setlist = ?1", [id]).unwrap();
            let new: Vec<_> = conn
                .prepare(select)
                .unwrap()
                .query_map([id], vote::<RELEASE>)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            batch.update(&old, &new);
        }
        _ => {
            let old = conn
                .query_row("SELECT id, show FROM setlists WHERE id = ?1", [id], setlist::<RELEASE>)
                .unwrap();
            let show = random.below(SHOW_COUNT);
            conn.execute("UPDATE setlists SET show = ?2 WHERE id = ?1", (id, show)).unwrap();
            batch.update(&old, &Row::Setlist { id, show });
        }
    }
}

fn audit<'a>(conn: &'a Connection, schema: &'a Schema) -> SqliteAudit<'a> {
    let mut audit = SqliteAudit::new(conn, schema).unwrap();
    let votes = SqliteRows::of("votes", |row| Ok(vote::<2>(row)?)).columns("setlist, weight, spam");
    audit
        .add(votes.key(VOTES_2, Columns::of(["setlist"]).sum("weight").filter("NOT spam")))
        .unwrap();
    let setlists = SqliteRows::of("setlists", |row| Ok(setlist::<2>(row)?)).columns("id, show");
    audit.add(setlists.key(MEMBERSHIP, Columns::of(["id", "show"]).count())).unwrap();
    audit
}

/// The file in which a job keeps its token.
fn token_file(path: &Path) -> PathBuf {
    path.with_extension("token")
}

/// Backfills the counters that are not ready, in legs of one page. The process may be killed at any
/// moment.
fn job(path: &Path) {
    let conn = open(path);
    let unready = SqliteStore::new(&conn, &SECOND).unready().unwrap();
    let leg = Options::default().max_pages(1);
    let mut backfill = match fs::read_to_string(token_file(path)) {
        Ok(token) => {
            Reconciler::resume(Mode::Backfill, &SECOND, &token.parse().unwrap(), leg).unwrap()
        }
        Err(_) => Reconciler::scoped(Mode::Backfill, &SECOND, &unready, leg.page(4)).unwrap(),
    };
    let mut audit = audit(&conn, &SECOND);
    while let Some(token) = run(&mut backfill, &mut audit, &mut SystemRuntime::new()).unwrap().token
    {
        store_token(path, &token);
        thread::sleep(Duration::from_millis(2));
        backfill = Reconciler::resume(Mode::Backfill, &SECOND, &token, leg).unwrap();
    }
}

/// Stores the token. A process that is killed here leaves the old token or the new one.
fn store_token(path: &Path, token: &Token) {
    let beside = path.with_extension("token-new");
    fs::write(&beside, token.to_string()).unwrap();
    fs::rename(beside, token_file(path)).unwrap();
}

/// The site: its database file and its writer processes, which are killed when it is dropped.
struct Site {
    path: PathBuf,
    writers: Vec<(usize, Child)>,
    started: u64,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = crate::support::temp_dir();
        let path = dir.path().join("site.db");
        let conn = open(&path);
        conn.execute_batch(TABLES).unwrap();
        let fill =
            "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < ?1 - 1)
                    INSERT INTO setlists SELECT n, n % ?2 FROM n";
        conn.execute(fill, [SETLISTS, SHOW_COUNT]).unwrap();
        Self { path, writers: Vec::new(), started: 0, _dir: dir }
    }

    fn spawn(&mut self, role: &str) -> Child {
        self.started += 1;
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                &full_test_name(module_path!(), "spawned_process_runs_its_role"),
                "--quiet",
            ])
            .env(ROLE, format!("{role} {} {}", self.started, self.path.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts a writer, and waits until it has written.
    fn start(&mut self, release: usize) {
        let writer = self.spawn(&format!("writer-{release}"));
        self.writers.push((release, writer));
        let begun = begun_file(&self.path, self.started);
        for _ in 0..10_000 {
            if begun.exists() {
                return;
            }
            self.assert_writers_run();
            thread::sleep(Duration::from_millis(3));
        }
        panic!("a writer of release {release} did not begin");
    }

    /// Ends the writers of a release, and asserts that none failed.
    fn end(&mut self, release: usize) {
        fs::write(stop_file(&self.path, release), "").unwrap();
        for (_, mut writer) in self.writers.extract_if(.., |(of, _)| *of == release) {
            assert!(writer.wait().unwrap().success(), "a writer of release {release} failed");
        }
        fs::remove_file(stop_file(&self.path, release)).unwrap();
    }

    fn assert_writers_run(&mut self) {
        for (release, writer) in &mut self.writers {
            let ended: Option<ExitStatus> = writer.try_wait().unwrap();
            assert!(ended.is_none(), "a writer of release {release} ended: {ended:?}");
        }
    }

    /// Reads snapshots repeatedly and asserts that no writer has ended.
    fn watch(&mut self, times: u32, mut look: impl FnMut(&Moment<'_>)) {
        let conn = open(&self.path);
        for _ in 0..times {
            look(&Moment::of(&conn));
            self.assert_writers_run();
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (_, writer) in &mut self.writers {
            let _ = writer.kill();
            let _ = writer.wait();
        }
    }
}

// The totals that are read, and the true ones.

type Totals = BTreeMap<i64, i64>;

/// One snapshot of rows and totals.
struct Moment<'c>(&'c Connection);

impl<'c> Moment<'c> {
    fn of(conn: &'c Connection) -> Self {
        conn.execute_batch("BEGIN").unwrap();
        Self(conn)
    }

    fn rows(&self, text: &str) -> Totals {
        let mut statement = self.0.prepare_cached(text).unwrap();
        let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).filter(|(_, total)| *total != 0).collect()
    }

    fn recount_first(&self) -> Totals {
        self.rows("SELECT setlist, count(*) FROM votes GROUP BY setlist")
    }

    fn recount_second(&self) -> Totals {
        self.rows("SELECT setlist, sum(weight) FROM votes WHERE NOT spam GROUP BY setlist")
    }

    fn recount_shows(&self) -> Totals {
        self.rows(
            "SELECT s.show, sum(v.weight) FROM votes AS v JOIN setlists AS s ON s.id = v.setlist WHERE NOT v.spam GROUP BY s.show",
        )
    }

    fn read(&self, schema: &Schema, counter: Counter<i64>) -> Option<Totals> {
        match SqliteStore::new(self.0, schema).totals(counter) {
            Err(Error::NotReady { .. }) => None,
            totals => Some(totals.unwrap().into_iter().collect()),
        }
    }

    /// Asserts that the counter of the first release is exact.
    fn assert_first_exact(&self, schema: &Schema) {
        assert_eq!(self.read(schema, VOTES), Some(self.recount_first()));
    }

    /// Asserts that each counter of the second release is exact if it can be read. Returns which of
    /// them can be.
    fn assert_second_exact_if_ready(&self, schema: &Schema) -> [bool; 2] {
        let known = [(VOTES_2, self.recount_second()), (SHOWS, self.recount_shows())];
        known.map(|(counter, expected)| {
            self.read(schema, counter).is_some_and(|totals| {
                assert_eq!(totals, expected, "the totals of {counter:?} are readable and wrong");
                true
            })
        })
    }
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        let _ = self.0.execute_batch("COMMIT");
    }
}

#[test]
fn rolling_deploy_of_a_version_a_rollup_and_a_leaderboard_reads_exact_totals() {
    let mut site = Site::new();
    // Only the first release runs.
    site.start(1);
    site.start(1);
    site.watch(80, |moment| moment.assert_first_exact(&FIRST));

    // The second release starts process by process. Meanwhile a process of the first release may
    // restart.
    site.start(2);
    site.start(1);
    site.watch(100, |moment| {
        moment.assert_first_exact(&FIRST);
        moment.assert_first_exact(&SECOND);
        assert_eq!(moment.assert_second_exact_if_ready(&SECOND), [false, false]);
    });
    site.start(2);
    site.end(1);

    // Every writer now runs the new hooks. The backfill runs beside them and is killed at random
    // moments.
    let killed = backfill_with_killed_jobs(&mut site);
    println!("the job was killed {killed} times");
    assert!(killed >= 3, "killed {killed} times");
    site.watch(50, |moment| {
        moment.assert_first_exact(&SECOND);
        assert_eq!(moment.assert_second_exact_if_ready(&SECOND), [true, true]);
    });

    // The leaderboard is rebuilt once every process updates it.
    let conn = open(&site.path);
    let mut second = SqliteStore::new(&conn, &SECOND);
    assert!(matches!(second.top(RANK, 1), Err(Error::NotReady { counter: "show.board", .. })));
    second.rebuild(RANK).unwrap();
    // From now on the first release cannot start.
    assert!(
        !site.spawn("writer-1").wait().unwrap().success(),
        "the first release would not update the rollup"
    );

    // The third release does not have the first counter. The second one still writes both.
    site.start(3);
    site.start(3);
    site.watch(80, |moment| {
        assert_eq!(moment.assert_second_exact_if_ready(&THIRD), [true, true]);
    });
    site.end(2);
    let mut third = SqliteStore::new(&conn, &THIRD);
    assert_eq!(third.orphaned().unwrap(), ["setlist.votes"]);
    third.drop_counter("setlist.votes").unwrap();
    site.watch(40, |moment| {
        assert_eq!(moment.assert_second_exact_if_ready(&THIRD), [true, true]);
    });
    site.end(3);
    assert_final_totals_exact(&conn);
}

/// Returns how often the job was killed: each time after it has stored another token and run for a
/// random time.
fn backfill_with_killed_jobs(site: &mut Site) -> u32 {
    let (conn, mut random) = (open(&site.path), Random(41));
    let place = |site: &Site| fs::read(token_file(&site.path)).ok();
    let (mut killed, mut ready) = (0, [false, false]);
    loop {
        let (before, mut job) = (place(site), site.spawn("job"));
        // The number of checks until the job is killed.
        let mut doomed: Option<u64> = None;
        let ended = loop {
            if let Some(ended) = job.try_wait().unwrap() {
                break Some(ended);
            }
            match &mut doomed {
                Some(0) => break None,
                Some(looks) => *looks -= 1,
                None if killed < 25 && place(site) != before => doomed = Some(random.below(20)),
                None => {}
            }
            let now = Moment::of(&conn).assert_second_exact_if_ready(&SECOND);
            assert!(now >= ready, "a ready counter is no longer ready");
            ready = now;
            site.assert_writers_run();
            thread::sleep(Duration::from_millis(2));
        };
        if let Some(ended) = ended {
            assert!(ended.success(), "the job failed after {killed} kills");
            return killed;
        }
        job.kill().unwrap();
        job.wait().unwrap();
        killed += 1;
    }
}

fn assert_final_totals_exact(conn: &Connection) {
    let mut third = SqliteStore::new(conn, &THIRD);
    third.check().unwrap();
    assert_eq!((third.orphaned().unwrap(), third.unready().unwrap()), (vec![], vec![]));
    let moment = Moment::of(conn);
    assert_eq!(moment.assert_second_exact_if_ready(&THIRD), [true, true]);
    let mut wanted: Vec<(i64, i64)> = moment.recount_shows().into_iter().collect();
    wanted.sort_by_key(|(show, votes)| (-votes, *show));
    let ranked = third.top(RANK, usize::MAX).unwrap();
    assert_eq!(ranked.iter().map(|line| (line.key, line.score)).collect::<Vec<_>>(), wanted);
    assert!(moment.recount_second().len() > 100, "too few totals to compare");
    drop(moment);
    let mut verify = Reconciler::new(Mode::Verify, &THIRD, Options::default()).unwrap();
    let report = run(&mut verify, &mut audit(conn, &THIRD), &mut SystemRuntime::new()).unwrap();
    assert!(report.complete() && report.drift() == 0, "{}", report.table());
}
