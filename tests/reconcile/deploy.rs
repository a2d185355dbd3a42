//! docs/deploy.md acted out by processes on one file: old and new ones write side by side, the new
//! counters are backfilled by a job that is killed again and again, and at the end the old ones are
//! dropped. Whoever reads meanwhile reads what is exact, or is refused.

use crate::support::random::Random;
use crate::support::test_of;
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

// An application in three releases. The first counts votes. The second counts them in another way
// as well, and sums that by show, which it ranks. The third has left the first way behind.

const VOTES: Counter<i64> = Counter::new("setlist.votes");
/// Weights, without spam.
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

/// What a process of its own runs: this test, with what it is to be.
#[test]
fn a_process_of_the_application() {
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

/// Beside the database, for the processes of one release: end.
fn stop_file(path: &Path, release: usize) -> PathBuf {
    path.with_extension(format!("stop-{release}"))
}

/// Beside it too: this writer has begun.
fn begun_file(path: &Path, number: u64) -> PathBuf {
    path.with_extension(format!("begun-{number}"))
}

/// Starts as an application does, and writes until it is told to end.
fn write<const RELEASE: usize>(path: &Path, seed: u64) {
    let (conn, mut random) = (open(path), Random(seed));
    SqliteStore::new(&conn, RELEASES[RELEASE - 1]).create().unwrap();
    let stop = stop_file(path, RELEASE);
    for turn in 0.. {
        if turn == 20 {
            fs::write(begun_file(path, seed), "").unwrap();
        }
        assert!(turn < 60_000, "nobody ends it");
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

/// A statement on the rows, and its hooks; old values are of the statement itself.
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

/// Where a job keeps its place.
fn token_file(path: &Path) -> PathBuf {
    path.with_extension("token")
}

/// Backfills what is not ready, a page a leg; may be killed anywhere.
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
        keep(path, &token);
        thread::sleep(Duration::from_millis(2));
        backfill = Reconciler::resume(Mode::Backfill, &SECOND, &token, leg).unwrap();
    }
}

/// Whoever is killed leaves the old place or the new one.
fn keep(path: &Path, token: &Token) {
    let beside = path.with_extension("token-new");
    fs::write(&beside, token.to_string()).unwrap();
    fs::rename(beside, token_file(path)).unwrap();
}

/// The site: its file, and its processes, which end with it.
struct Site {
    path: PathBuf,
    writers: Vec<(usize, Child)>,
    started: u64,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
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
            .args(["--exact", &test_of(module_path!(), "a_process_of_the_application"), "--quiet"])
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
            self.running();
            thread::sleep(Duration::from_millis(3));
        }
        panic!("a writer of release {release} does not begin");
    }

    /// Ends the writers of a release, none of which may have failed.
    fn end(&mut self, release: usize) {
        fs::write(stop_file(&self.path, release), "").unwrap();
        for (_, mut writer) in self.writers.extract_if(.., |(of, _)| *of == release) {
            assert!(writer.wait().unwrap().success(), "a writer of release {release} failed");
        }
        fs::remove_file(stop_file(&self.path, release)).unwrap();
    }

    fn running(&mut self) {
        for (release, writer) in &mut self.writers {
            let ended: Option<ExitStatus> = writer.try_wait().unwrap();
            assert!(ended.is_none(), "a writer of release {release} ended: {ended:?}");
        }
    }

    /// Reads again and again.
    fn watch(&mut self, times: u32, mut look: impl FnMut(&Moment<'_>)) {
        let conn = open(&self.path);
        for _ in 0..times {
            look(&Moment::of(&conn));
            self.running();
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

// What is read, and what is true.

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

    fn true_first(&self) -> Totals {
        self.rows("SELECT setlist, count(*) FROM votes GROUP BY setlist")
    }

    fn true_second(&self) -> Totals {
        self.rows("SELECT setlist, sum(weight) FROM votes WHERE NOT spam GROUP BY setlist")
    }

    fn true_shows(&self) -> Totals {
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

    /// What was counted all along is exact at any moment.
    fn first_is_exact(&self, schema: &Schema) {
        assert_eq!(self.read(schema, VOTES), Some(self.true_first()));
    }

    /// What came new is refused, or exact; says which of the two.
    fn second_is_exact_if_ready(&self, schema: &Schema) -> [bool; 2] {
        let known = [(VOTES_2, self.true_second()), (SHOWS, self.true_shows())];
        known.map(|(counter, expected)| {
            self.read(schema, counter).is_some_and(|totals| {
                assert_eq!(totals, expected, "{counter:?} is read, and wrong");
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
fn a_rolling_deploy_of_counters_a_version_a_rollup_and_a_leaderboard() {
    let mut site = Site::new();
    // The first release, for a while.
    site.start(1);
    site.start(1);
    site.watch(80, |moment| moment.first_is_exact(&FIRST));

    // The second comes, process by process; an old one that restarts meanwhile may start.
    site.start(2);
    site.start(1);
    site.watch(100, |moment| {
        moment.first_is_exact(&FIRST);
        moment.first_is_exact(&SECOND);
        assert_eq!(moment.second_is_exact_if_ready(&SECOND), [false, false]);
    });
    site.start(2);
    site.end(1);

    // Every writer runs the new hooks by now: the backfill, beside them, killed wherever it is.
    let killed = backfill_by_a_job_that_is_killed(&mut site);
    println!("the job was killed {killed} times");
    assert!(killed >= 3, "killed {killed} times");
    site.watch(50, |moment| {
        moment.first_is_exact(&SECOND);
        assert_eq!(moment.second_is_exact_if_ready(&SECOND), [true, true]);
    });

    // The leaderboard is made when all processes keep it.
    let conn = open(&site.path);
    let second = SqliteStore::new(&conn, &SECOND);
    assert!(matches!(second.top(RANK, 1), Err(Error::NotReady { counter: "show.board", .. })));
    second.rebuild(RANK).unwrap();
    // From here on the first release cannot come back.
    assert!(!site.spawn("writer-1").wait().unwrap().success(), "it would not let votes climb");

    // The third release leaves the first way of counting out; the second still counts both.
    site.start(3);
    site.start(3);
    site.watch(80, |moment| {
        assert_eq!(moment.second_is_exact_if_ready(&THIRD), [true, true]);
    });
    site.end(2);
    let third = SqliteStore::new(&conn, &THIRD);
    assert_eq!(third.orphaned().unwrap(), ["setlist.votes"]);
    third.drop_counter("setlist.votes").unwrap();
    site.watch(40, |moment| {
        assert_eq!(moment.second_is_exact_if_ready(&THIRD), [true, true]);
    });
    site.end(3);
    the_end_is_exact(&conn);
}

/// Gives how often the job was killed: each time once it has noted another place, and worked on for
/// a while.
fn backfill_by_a_job_that_is_killed(site: &mut Site) -> u32 {
    let (conn, mut random) = (open(&site.path), Random(41));
    let place = |site: &Site| fs::read(token_file(&site.path)).ok();
    let (mut killed, mut ready) = (0, [false, false]);
    loop {
        let (before, mut job) = (place(site), site.spawn("job"));
        // How many more looks it lives.
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
            let now = Moment::of(&conn).second_is_exact_if_ready(&SECOND);
            assert!(now >= ready, "what is ready stays so");
            ready = now;
            site.running();
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

fn the_end_is_exact(conn: &Connection) {
    let third = SqliteStore::new(conn, &THIRD);
    third.check().unwrap();
    assert_eq!((third.orphaned().unwrap(), third.unready().unwrap()), (vec![], vec![]));
    let moment = Moment::of(conn);
    assert_eq!(moment.second_is_exact_if_ready(&THIRD), [true, true]);
    let mut wanted: Vec<(i64, i64)> = moment.true_shows().into_iter().collect();
    wanted.sort_by_key(|(show, votes)| (-votes, *show));
    let ranked = third.top(RANK, usize::MAX).unwrap();
    assert_eq!(ranked.iter().map(|line| (line.key, line.score)).collect::<Vec<_>>(), wanted);
    assert!(moment.true_second().len() > 100, "there is much to compare");
    drop(moment);
    let mut verify = Reconciler::new(Mode::Verify, &THIRD, Options::default()).unwrap();
    let report = run(&mut verify, &mut audit(conn, &THIRD), &mut SystemRuntime::new()).unwrap();
    assert!(report.complete() && report.drift() == 0, "{}", report.table());
}
