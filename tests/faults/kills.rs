//! Processes killed at any moment of their work on a SQLite file, in both journal modes, with every
//! commit synced to disk: writers, repairs of planted drift beside a writer, and backfills beside
//! one. After each kill, rows, totals of every level, offsets and leaderboards agree with a recount
//! in plain SQL; then the work continues. `just crash` runs thousands of rounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::support::crash::child::{
    ChildProgress, Phase, Running, command, now, unfinished, words,
};
use crate::support::crash::writer::{Writer, progress_file};
use crate::support::crash::{
    Hits, Journal, Model, Random, SCHEMA, SHOWS, Site, Totals, assert_exact, assert_ready_exact,
    audit, check_writer, drift, drift_inside, open, rounds,
};
use crate::support::full_test_name;
use keepcount::SqliteStore;
use keepcount::reconcile::audit::{
    Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use keepcount::reconcile::{Audit, Mode, Options, Reconciler, Report, SystemRuntime, Token, run};
use rusqlite::Connection;

/// The default number of rounds of each test.
const ROUNDS: u64 = 20;
/// A test of at least this many rounds must hit every kind of moment.
const ROUNDS_MANY: u64 = 600;
/// Rounds on one file, before a new one is created.
const ROUNDS_A_SITE: u64 = 30;
/// The turns of a child that runs until it is killed.
const FOR_EVER: u64 = 1_000_000;

/// Body of the child process, which does what its arguments say.
#[test]
fn a_child_that_is_killed() {
    let Some(words) = words() else { return };
    let [role, who, seed, turns, dir] = words.as_slice() else { panic!("{words:?}") };
    let (seed, turns, dir) = (seed.parse().unwrap(), turns.parse().unwrap(), Path::new(dir));
    match role.as_str() {
        "write" => write(dir, who.parse().unwrap(), seed, turns, Duration::ZERO),
        // SQLite polls for a lock at intervals: a waiting process gets it only if the other one
        // releases it for a while.
        "write-beside" => write(dir, who.parse().unwrap(), seed, turns, Duration::from_millis(3)),
        "repair" => reconcile(Mode::Repair, dir, seed, turns),
        _ => reconcile(Mode::Backfill, dir, seed, turns),
    }
}

fn child(role: &str, who: i64, seed: u64, turns: u64, site: &Site) -> Running {
    let dir = site.dir.path();
    let told =
        if role.starts_with("write") { progress_file(dir, who) } else { reconciler_told(dir) };
    ChildProgress::open(&told).at(Phase::Starting);
    let words = [role, &who.to_string(), &seed.to_string(), &turns.to_string()];
    Running::start(command(&full_test_name(module_path!(), "a_child_that_is_killed"), &words, dir))
}

fn write(dir: &Path, who: i64, seed: u64, turns: u64, rest: Duration) {
    let mut writer = Writer::start(dir, who, seed).unwrap();
    for _ in 0..turns {
        writer.turn().unwrap();
        thread::sleep(rest);
    }
}

/// A random duration, shorter than `most`.
fn moment(random: &mut Random, most: Duration) -> Duration {
    Duration::from_micros(random.below(u64::try_from(most.as_micros()).unwrap()))
}

/// Waits until a child ends by itself, and returns how long it took.
fn finish_and_time(running: Running, since: std::time::Instant) -> Duration {
    running.finish();
    now() - since
}

fn kill_writers(journal: Journal, wanted: &[&str]) {
    let (rounds, mut random, mut hits) = (rounds(ROUNDS), Random(journal as u64), Hits::default());
    let mut takes = Duration::MAX;
    for seed in 0..3 {
        let (site, since) = (Site::new(journal), now());
        takes = takes.min(finish_and_time(child("write", 1, seed, 30, &site), since));
        assert_exact(&site.open());
    }
    let (mut site, mut model, mut applied) = (Site::new(journal), Model::default(), 0);
    for round in 0..rounds {
        if round % ROUNDS_A_SITE == 0 {
            (site, model) = (Site::new(journal), Model::default());
        }
        let writers: Vec<i64> =
            if random.below(3) == 0 { vec![1, 2] } else { vec![1 + random.int(0, 2)] };
        let running: Vec<Running> = writers
            .iter()
            .map(|who| child("write", *who, random.below(1 << 40), FOR_EVER, &site))
            .collect();
        for one in running {
            thread::sleep(moment(&mut random, takes));
            one.kill();
        }
        if let Some(left) = unfinished(&site.path()) {
            hits.note(left);
        }
        let conn = site.open();
        for who in writers {
            let before = model.events(who);
            hits.note(check_writer(&conn, &site, who, &mut model));
            applied += model.events(who) - before;
        }
        assert_exact(&conn);
        model.assert_in(&conn);
    }
    assert!(applied > rounds, "too few events were written: {applied} events in {rounds} rounds");
    let what = format!(
        "writers, {journal:?}, {applied} events, killed within {takes:.0?}, {rounds} rounds"
    );
    hits.end(&what, if rounds < ROUNDS_MANY { &[] } else { wanted });
}

const HIT_IN_WRITERS: [&str; 9] = [
    "Starting",
    "Between",
    "Rows",
    "Apply",
    "Commit",
    "Commit, committed",
    "Alone",
    "Alone, committed",
    "Prune",
];

#[test]
fn killed_writers_lose_nothing_and_leave_every_level_exact_with_a_log() {
    let more = ["Checkpoint", "Reopen", "a log without a commit at its end"];
    kill_writers(Journal::Wal, &[&HIT_IN_WRITERS[..], &more].concat());
}

#[test]
fn killed_writers_lose_nothing_and_leave_every_level_exact_with_a_journal() {
    kill_writers(Journal::Delete, &[&HIT_IN_WRITERS[..], &["a hot journal"]].concat());
}

// Repairs.

/// An audit that records its current phase.
struct Telling<'a, A> {
    audit: A,
    told: &'a mut ChildProgress,
}

impl<A: Audit> Audit for Telling<'_, A> {
    fn identity(&mut self) -> keepcount::Result<u64> {
        self.audit.identity()
    }

    fn probe(&mut self, ask: &Probe) -> keepcount::Result<ProbeResult> {
        self.told.at(Phase::Compare);
        self.audit.probe(ask)
    }

    fn compare(&mut self, ask: &PageRequest) -> keepcount::Result<PageDiff> {
        self.told.at(Phase::Compare);
        self.audit.compare(ask)
    }

    fn repair(&mut self, ask: &RepairRequest) -> keepcount::Result<Repaired> {
        self.told.at(Phase::Repair);
        self.audit.repair(ask)
    }

    fn recall(&mut self, token: &Token) -> keepcount::Result<Option<Token>> {
        self.audit.recall(token)
    }

    fn keep(&mut self, ask: &Keep) -> keepcount::Result<Kept> {
        self.audit.keep(ask)
    }

    fn ready(&mut self, ask: &Ready) -> keepcount::Result<Kept> {
        self.told.at(Phase::Ready);
        self.audit.ready(ask)
    }
}

fn token_in(dir: &Path) -> PathBuf {
    dir.join("token")
}

/// One leg of a run, as a scheduled job does it: resumes from the token if there is one, and writes
/// the next token, or removes the old one if the run is complete.
fn leg(
    mode: Mode,
    conn: &Connection,
    dir: &Path,
    told: &mut ChildProgress,
    options: Options,
) -> Report {
    let token = fs::read_to_string(token_in(dir))
        .ok()
        .map(|text| text.parse::<Token>().expect("the token is complete"));
    let audit = audit(conn).unwrap();
    let mut leg = match &token {
        Some(token) => Reconciler::resume(mode, &SCHEMA, token, options),
        None => Reconciler::scoped(mode, &SCHEMA, &audit.counters(), options.page(24)),
    }
    .unwrap();
    let report = run(&mut leg, &mut Telling { audit, told }, &mut SystemRuntime::new()).unwrap();
    told.at(Phase::Token);
    match &report.token {
        Some(token) => {
            let beside = dir.join("token.new");
            fs::write(&beside, token.to_string()).unwrap();
            fs::rename(beside, token_in(dir)).unwrap();
        }
        None if token.is_some() => fs::remove_file(token_in(dir)).unwrap(),
        None => {}
    }
    report
}

fn reconciler_told(dir: &Path) -> PathBuf {
    dir.join("reconciler.told")
}

/// Repairs or backfills in legs of a few pages, `times` times from the first key to the last.
fn reconcile(mode: Mode, dir: &Path, seed: u64, times: u64) {
    let mut told = ChildProgress::open(&reconciler_told(dir));
    let (conn, mut random, mut complete) = (open(&dir.join("site.db")).unwrap(), Random(seed), 0);
    while complete < times {
        let report =
            leg(mode, &conn, dir, &mut told, Options::default().max_pages(1 + random.below(6)));
        complete += u64::from(report.complete());
        told.at(Phase::Between);
    }
}

/// Tables of totals in which drift is planted, with their key columns: all but the feed's, whose
/// counter has no rows.
const PLANTED: [(&str, &str); 7] = [
    ("setlist_votes", "key"),
    ("setlist_days", "key_1, key_2"),
    ("setlist_show", "key_1, key_2"),
    ("show_artist", "key_1, key_2"),
    ("show_votes", "key"),
    ("show_days", "key_1, key_2"),
    ("artist_votes", "key"),
];

/// Damages some totals under the write lock, and records in `off` exactly how far each key is off.
/// Returns how many keys were repaired before.
fn plant(conn: &Connection, random: &mut Random, off: &mut Totals) -> usize {
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let repaired = check_drift(&drift_inside(conn).unwrap(), off);
    for _ in 0..6 {
        let (table, key) = PLANTED[usize::try_from(random.below(7)).unwrap()];
        let all: i64 =
            conn.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).unwrap();
        let one = format!("SELECT {key} FROM {table} LIMIT 1 OFFSET {}", random.int(0, all.max(1)));
        let text = match random.below(4) {
            0 => format!("DELETE FROM {table} WHERE ({key}) = ({one})"),
            1 if key == "key" => {
                format!("INSERT OR REPLACE INTO {table} VALUES ({}, 7)", 90_000 + random.int(0, 40))
            }
            1 => format!(
                "INSERT OR REPLACE INTO {table} VALUES ({}, 80000, 7)",
                90_000 + random.int(0, 40)
            ),
            2 if table.ends_with("votes") => {
                format!("UPDATE {table} SET total = -total - 1 WHERE ({key}) = ({one})")
            }
            _ => format!("UPDATE {table} SET total = total + 3 WHERE ({key}) = ({one})"),
        };
        conn.execute(&text, ()).unwrap();
    }
    *off = drift_inside(conn).unwrap();
    conn.execute_batch("COMMIT").unwrap();
    repaired
}

/// Asserts that a key that was off is off by the same amount or repaired, and that no other key is
/// off. Returns how many were repaired.
#[track_caller]
fn check_drift(found: &Totals, off: &mut Totals) -> usize {
    for (name, drift) in found {
        assert_eq!(off.get(name), Some(drift), "{name:?} was repaired in part, or damaged");
    }
    let repaired = off.len() - found.len();
    off.clone_from(found);
    repaired
}

/// Runs repairs beside a writer, and kills one or both in each round.
fn kill_repairs(journal: Journal, wanted: &[&str]) {
    let (rounds, mut random, mut hits) =
        (rounds(ROUNDS), Random(40 + journal as u64), Hits::default());
    let (mut repaired, mut resumed) = (0, 0);
    for first in (0..rounds).step_by(usize::try_from(ROUNDS_A_SITE).unwrap()) {
        let site = Site::new(journal);
        let dir = site.dir.path();
        write(dir, 1, first, 60, Duration::ZERO);
        let (conn, mut model, mut off) = (site.open(), Model::default(), Totals::new());
        repaired += plant(&conn, &mut random, &mut off);
        let since = now();
        let takes = finish_and_time(child("repair", 0, 0, 1, &site), since);
        repaired += check_drift(&drift(&conn).unwrap(), &mut off);
        assert_eq!(off, Totals::new(), "a complete repair leaves no drift");

        let mut children =
            [("repair", 0), ("write-beside", 1)].map(|(role, who)| (role, who, None));
        for _ in first..rounds.min(first + ROUNDS_A_SITE) {
            repaired += plant(&conn, &mut random, &mut off);
            for (role, who, running) in &mut children {
                if running.is_none() {
                    *running = Some(child(role, *who, random.below(1 << 40), FOR_EVER, &site));
                }
            }
            thread::sleep(moment(&mut random, takes));
            let dies = 1 + random.below(3);
            for (at, (_, _, running)) in children.iter_mut().enumerate() {
                if dies >> at & 1 == 1 {
                    running.take().unwrap().kill();
                }
            }
            if dies == 3
                && let Some(left) = unfinished(&site.path())
            {
                hits.note(left);
            }
            repaired += check_drift(&drift(&conn).unwrap(), &mut off);
            if dies & 1 == 1 {
                let told = ChildProgress::open(&reconciler_told(dir));
                hits.note(format!("repair: {:?}", told.phase()));
                resumed += u64::from(token_in(dir).exists());
            }
            if dies & 2 == 2 {
                hits.note(check_writer(&conn, &site, 1, &mut model));
            }
        }
        for (_, _, running) in &mut children {
            running.take().into_iter().for_each(Running::kill);
        }
        // Drift before the position of the last token is repaired by the run after it.
        let mut told = ChildProgress::open(&reconciler_told(dir));
        (0..3).for_each(|_| drop(leg(Mode::Repair, &conn, dir, &mut told, Options::default())));
        repaired += check_drift(&drift(&conn).unwrap(), &mut off);
        assert_eq!(off, Totals::new());
        // Planted drift bypassed the hooks: the leaderboard lacks it, or still lists it.
        SqliteStore::new(&conn, &SCHEMA).rebuild(SHOWS).unwrap();
        hits.note(check_writer(&conn, &site, 1, &mut model));
        assert_exact(&conn);
        model.assert_in(&conn);
    }
    assert!(repaired > 0 && resumed > 0, "{repaired} keys repaired, {resumed} repairs resumed");
    let what = format!(
        "repairs, {journal:?}, {repaired} keys repaired, {resumed} resumed from a token, {rounds} rounds"
    );
    hits.end(&what, if rounds < ROUNDS_MANY { &[] } else { wanted });
}

const HIT_IN_REPAIRS: [&str; 8] = [
    "repair: Starting",
    "repair: Compare",
    "repair: Repair",
    "repair: Token",
    "Apply",
    "Commit",
    "Commit, committed",
    "Alone",
];

#[test]
fn killed_repairs_beside_a_writer_leave_totals_unchanged_or_exact_with_a_log() {
    kill_repairs(Journal::Wal, &HIT_IN_REPAIRS);
}

#[test]
fn killed_repairs_beside_a_writer_leave_totals_unchanged_or_exact_with_a_journal() {
    kill_repairs(Journal::Delete, &HIT_IN_REPAIRS);
}

// Backfills.

/// The number of events that the older application wrote.
const OLDER: u64 = 700;

/// Runs a backfill beside a writer, and kills it again and again until every counter is ready. In
/// each round the writer may be killed too.
fn kill_backfills(journal: Journal, wanted: &[&str]) {
    let (rounds, mut random, mut hits) =
        (rounds(ROUNDS), Random(90 + journal as u64), Hits::default());
    let (mut round, mut sites, mut resumed) = (0, 0, 0);
    while round < rounds {
        let site = Site::pending_backfill(journal, OLDER);
        let (dir, conn, mut model) = (site.dir.path(), site.open(), Model::default());
        model.apply_up_to(2, OLDER);
        // Counters below a rollup are backfilled first. Each repair adds its correction to the
        // rollup too, so the rollup stays as far off as it was, which is not at all.
        let mut off = drift(&conn).unwrap();
        assert!(
            off.len() > 100
                && off
                    .keys()
                    .all(|(table, _)| !["show_votes", "show_days", "artist_votes"].contains(table))
        );
        let takes = {
            let twin = Site::pending_backfill(journal, OLDER);
            let since = now();
            finish_and_time(child("backfill", 0, 0, 1, &twin), since)
        };
        let (mut ready, mut writer) = (0, None);
        // All counters but the feed's, which has no rows.
        while ready < SCHEMA.counters().len() - 1 {
            round += 1;
            assert!(round < rounds + 1_000, "the backfill does not end: {ready} are ready");
            let filler = child("backfill", 0, random.below(1 << 40), FOR_EVER, &site);
            let written = writer.take().unwrap_or_else(|| {
                child("write-beside", 1, random.below(1 << 40), FOR_EVER, &site)
            });
            thread::sleep(moment(&mut random, takes / 2));
            filler.kill();
            let dies = random.below(3) == 0;
            if dies {
                written.kill();
            } else {
                writer = Some(written);
            }
            check_drift(&drift(&conn).unwrap(), &mut off);
            let now_ready = assert_ready_exact(&conn);
            assert!(now_ready >= ready, "a ready counter became unready");
            ready = now_ready;
            if dies {
                hits.note(check_writer(&conn, &site, 1, &mut model));
            }
            hits.note(format!(
                "backfill: {:?}",
                ChildProgress::open(&reconciler_told(dir)).phase()
            ));
            resumed += u64::from(token_in(dir).exists());
        }
        writer.into_iter().for_each(Running::kill);
        assert_eq!(off, Totals::new(), "all are ready, and there is drift");
        SqliteStore::new(&conn, &SCHEMA).rebuild(SHOWS).unwrap();
        hits.note(check_writer(&conn, &site, 1, &mut model));
        assert_exact(&conn);
        model.assert_in(&conn);
        sites += 1;
    }
    assert!(resumed > 0, "no backfill resumed from a token");
    let what = format!(
        "backfills, {journal:?}, {sites} made ready, {resumed} resumed from a token, {round} rounds"
    );
    hits.end(&what, if rounds < ROUNDS_MANY { &[] } else { wanted });
}

const HIT_IN_BACKFILLS: [&str; 5] = [
    "backfill: Starting",
    "backfill: Compare",
    "backfill: Repair",
    "backfill: Ready",
    "backfill: Token",
];

#[test]
fn killed_backfills_beside_a_writer_resume_until_ready_and_exact_with_a_log() {
    kill_backfills(Journal::Wal, &HIT_IN_BACKFILLS);
}

#[test]
fn killed_backfills_beside_a_writer_resume_until_ready_and_exact_with_a_journal() {
    kill_backfills(Journal::Delete, &HIT_IN_BACKFILLS);
}
