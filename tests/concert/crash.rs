//! Processes that are killed at any moment count nothing twice and repair nothing wrongly. Nor do a
//! writer and repairs that work on one file at once.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use crate::support::concert::{
    self, Key, LEADERBOARD_TABLES, LONGEST, Model, Part, ROLLUPS, Random, Site, Totals, Writer,
    drifts_of, dump, finish, non_zero, now, number, recount, stored, total_tables, votes,
};

/// The number of rounds: `KEEPCOUNT_CRASH_ROUNDS`, or 6.
fn rounds() -> usize {
    std::env::var("KEEPCOUNT_CRASH_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap())
}

/// How many votes are replayed beside repairs, for each round.
const VOTES_A_ROUND: usize = 2_500;
const SIGKILL: i32 = 9;

/// Kills a process after this time. Returns whether it was still running.
fn kill_after(mut child: Child, time: Duration) -> bool {
    thread::sleep(time);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        status.signal() == Some(SIGKILL) || status.code() == Some(0),
        "it failed before the kill: {status}"
    );
    status.signal() == Some(SIGKILL)
}

fn random_time_below(random: &mut Random, most: Duration) -> Duration {
    Duration::from_micros(random.below(usize::try_from(most.as_micros()).unwrap().max(1)) as u64)
}

#[test]
fn killed_replays_resume_and_count_nothing_twice() {
    let mut writer = Writer::new(1842, "k");
    let events = writer.lines(5_000);
    let takes = shortest_time(|| {
        let whole = Site::new();
        whole.write("events.jsonl", &events);
        whole.run("replay events.jsonl").exits(0);
    });

    let mut random = Random(9);
    let (mut hit, mut missed, mut inside) = (0, 0, 0);
    for _ in 0..rounds() {
        let mut site = Site::new();
        site.write("events.jsonl", &events);
        let wanted = 1 + random.below(3);
        let (mut kills, mut tries) = (0, 0);
        // Kills before the first commit and after the last are checked, but do not count towards
        // `wanted`.
        while kills < wanted && tries < 50 {
            tries += 1;
            let killed = kill_after(
                site.spawn("replay events.jsonl"),
                random_time_below(&mut random, takes),
            );
            hit += usize::from(killed);
            missed += usize::from(!killed);
            let is_inside = check_prefix(&site, &events);
            kills += usize::from(killed && is_inside);
            if !is_inside {
                site = Site::new();
                site.write("events.jsonl", &events);
            }
        }
        assert!(kills > 0, "no kill hit a replay between its commits in {tries} tries");
        inside += kills;
        site.run("replay events.jsonl").exits(0);
        writer.model.assert_in(&site.open());
        site.assert_exact();
    }
    println!(
        "replay (whole: {takes:.0?}): {hit} kills hit in {rounds} rounds, {inside} of them between commits; {missed} too late",
        rounds = rounds()
    );
}

/// The shortest of three runs: the time without interference.
fn shortest_time(mut run: impl FnMut()) -> Duration {
    let times = (0..3).map(|_| {
        let started = now();
        run();
        started.elapsed()
    });
    times.min().unwrap()
}

/// Fails unless the file has exactly the rows and totals of the events up to its offset. Returns
/// whether these are some of the events, but not all.
fn check_prefix(site: &Site, events: &[String]) -> bool {
    let conn = site.open();
    // It may have been killed before it created the tables.
    if number(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'keepcount_offsets'") == 0 {
        return false;
    }
    let applied = number(&conn, "SELECT coalesce(max(last), 0) FROM keepcount_offsets");
    Model::of(&events[..applied]).assert_in(&conn);
    (1..events.len()).contains(&applied)
}

/// Makes thousands of totals wrong, missing or orphans, in every kind of counter: of rows, of
/// memberships, of rollups.
fn break_many_totals(conn: &Connection) {
    conn.execute_batch(
        "UPDATE setlist_votes SET total = total + 3;
         UPDATE setlist_score SET total = total - 5 WHERE rowid_of(key) % 3 = 0;
         DELETE FROM user_votes WHERE rowid_of(key) % 2 = 0;
         UPDATE user_votes SET total = 0 WHERE rowid_of(key) % 5 = 0;
         UPDATE artist_shows SET total = -total;
         DELETE FROM show_setlists WHERE rowid_of(key) % 4 = 0;
         INSERT INTO artist_upcoming_shows
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 900) SELECT 'nobody ' || n, n FROM n;
         INSERT INTO setlist_upvotes
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 900) SELECT 'nothing ' || n, -n FROM n;
         DELETE FROM show_votes WHERE rowid_of(key) % 3 = 0;
         UPDATE artist_votes SET total = total * 2 WHERE rowid_of(key) % 2 = 0;
         INSERT INTO artist_votes VALUES ('nobody voted', -4);
         UPDATE setlist_trend_1d SET total = total + 6 WHERE rowid_of(key_1) % 7 = 0;
         DELETE FROM show_trend_7d WHERE rowid_of(key_1) % 9 = 0;
         DELETE FROM setlist_show WHERE rowid_of(key_1) % 11 = 0;
         UPDATE show_artist SET total = 2 WHERE rowid_of(key_1) % 13 = 0;
         UPDATE artist_shows_ahead SET total = total - 1 WHERE rowid_of(key_1) % 6 = 0;
         DELETE FROM show_upcoming WHERE rowid_of(key_2) % 5 = 0;
         UPDATE artist_fame SET total = 7;"
            // Replaces the placeholders by a number that depends on the key alone.
            .replace("rowid_of(key)", &rowid_of("key"))
            .replace("rowid_of(key_1)", &rowid_of("key_1"))
            .replace("rowid_of(key_2)", &rowid_of("key_2"))
            .as_str(),
    )
    .unwrap();
}

fn rowid_of(key: &str) -> String {
    format!("(length({key}) + unicode(substr({key}, -1)) + unicode(substr({key}, -2)))")
}

/// A site with correct totals: shows, their setlists, and votes for them.
fn voted_site() -> Site {
    let mut events = Vec::new();
    for at in 0..40 {
        events.push(concert::artist(&format!("ar{at}")).to_string());
    }
    for at in 0..400 {
        let (show, by) = (format!("sh{at}"), format!("ar{}", at % 40));
        events.push(
            concert::show(&show, Some(&by), if at % 3 == 0 { "upcoming" } else { "completed" })
                .to_string(),
        );
        events.push(concert::setlist(&format!("se{at}"), Some(&show)).to_string());
    }
    let setlists: Vec<String> = (0..400).map(|at| format!("se{at}")).collect();
    events.extend(votes(1, &setlists, 3_000));
    Site::with(&events)
}

/// True minus stored, of every key that differs. The true total of a rollup is the sum of its base
/// as stored. So no hooked write changes a deficit, and no repair of another key does: a repair
/// changes a rollup by as much as it changes the rollup's true total.
type Deficits = BTreeMap<(&'static str, Key), i64>;

fn deficits(conn: &Connection) -> Deficits {
    deficits_of(&recount(conn), &stored(conn))
}

fn deficits_of(rows: &Totals, stored: &Totals) -> Deficits {
    let drifts = drifts_of(rows, stored).into_iter();
    drifts
        .flat_map(|(counter, drifts)| {
            drifts
                .into_iter()
                .map(move |(key, stored, expected)| ((counter, key), expected - stored))
        })
        .collect()
}

#[test]
fn killed_repairs_leave_each_total_unchanged_or_correct() {
    let broken = voted_site();
    let rows_before = rows(&broken.open());
    break_many_totals(&broken.open());
    let planted = deficits(&broken.open());
    let takes = shortest_time(|| {
        let report = broken.copy().run("repair --json").exits(0).json();
        assert_eq!(corrected(&report), planted.len());
    });

    let mut random = Random(10);
    let (mut hit, mut missed, mut inside) = (0, 0, 0);
    for round in 0..rounds() {
        let site = broken.copy();
        site.sql("PRAGMA journal_mode = WAL");
        let page = ["", "--page 7", "--page 100"][round % 3];
        let wanted = 1 + random.below(3);
        let (mut kills, mut tries) = (0, 0);
        while kills < wanted && tries < 20 {
            tries += 1;
            let time = random_time_below(&mut random, takes / u32::try_from(tries).unwrap());
            if !kill_after(site.spawn(&format!("repair {page}")), time) {
                missed += 1;
                if deficits(&site.open()).is_empty() {
                    site.sql(&restore_sql(&broken));
                }
                continue;
            }
            kills += 1;
            let left = deficits(&site.open());
            for (key, deficit) in &left {
                assert_eq!(
                    planted.get(key),
                    Some(deficit),
                    "{key:?} was repaired in part, or broken"
                );
            }
            inside += usize::from(!left.is_empty() && left.len() < planted.len());
        }
        assert!(kills > 0, "no kill hit a running repair in {tries} tries");
        hit += kills;
        let left = deficits(&site.open()).len();
        assert_eq!(
            corrected(&site.run("repair --json").exits(0).json()),
            left,
            "the last repair corrects exactly what is left"
        );
        assert_eq!(rows(&site.open()), rows_before, "a repair wrote rows");
        site.assert_exact();
    }
    println!(
        "repair of {} totals (whole: {takes:.0?}): {hit} kills hit in {} rounds, {inside} of them between repairs; {missed} too late",
        planted.len(),
        rounds()
    );
    assert!(inside > 0, "no kill came between the first repair and the last");
}

/// Statements that restore the totals of the broken site.
fn restore_sql(broken: &Site) -> String {
    let tables = total_tables().chain(LEADERBOARD_TABLES.map(str::to_owned));
    let copies = tables.map(|table| {
        format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM broken.{table};")
    });
    format!(
        "ATTACH '{}' AS broken; {}",
        broken.path("site.db").display(),
        copies.collect::<String>()
    )
}

fn rows(conn: &Connection) -> Vec<String> {
    let tables =
        ["artists:", "shows:", "setlists:", "votes:", "replay_prefix:", "keepcount_offsets:"];
    dump(conn).into_iter().filter(|row| tables.iter().any(|table| row.starts_with(table))).collect()
}

fn corrected(report: &serde_json::Value) -> usize {
    let counters = report["counters"].as_array().unwrap().iter();
    counters.map(|counter| usize::try_from(counter["corrected"].as_u64().unwrap()).unwrap()).sum()
}

// A writer and repairs at the same time.

#[test]
fn repeated_repairs_during_a_replay_correct_each_drift_once() {
    let repairs: usize = (0..4).map(|seed| write_and_repair(seed, 1, false).runs).sum();
    // The writer rarely releases the lock. In one round the repair may wait until the writer ends,
    // but not in every round.
    assert!(repairs > 1, "the writer ended too early: {repairs} repairs");
}

#[test]
fn two_concurrent_repairs_during_a_replay_correct_each_drift_once() {
    let repairs: usize = (10..12).map(|seed| write_and_repair(seed, 2, false).runs).sum();
    assert!(repairs > 0, "the writer ended too early: {repairs} repairs");
}

#[test]
fn killed_repairs_during_a_replay_corrupt_no_total() {
    // Whether a kill hits a repair at work depends on the machine. Over all rounds some do.
    let rounds: Vec<RepairCounts> = (20..23).map(|seed| write_and_repair(seed, 2, true)).collect();
    assert!(rounds.iter().any(|round| round.kills > 0), "no repair was killed at work");
    let repairs: usize = rounds.iter().map(|round| round.runs + round.kills).sum();
    assert!(repairs > 2, "the writer ended too early: {repairs} repairs");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many repairs ran beside a writer: to their end, and until they were killed.
struct RepairCounts {
    runs: usize,
    kills: usize,
}

/// What one thread of repairs did.
#[derive(Default)]
struct Repaired {
    runs: usize,
    kills: usize,
    corrected: usize,
}

/// One process replays thousands of votes. Others repair without pause until it has ended.
/// Meanwhile the test breaks totals by known amounts, each key at most once. So at any moment,
/// whatever is written, a key's deficit is that amount or 0, and each is repaired exactly once. A
/// repair that is wrong by 1 shows in the checks during the replay and at the end.
fn write_and_repair(seed: u64, repairers: usize, kill: bool) -> RepairCounts {
    let site = voted_site();
    let setlists: Vec<String> = (0..400).map(|at| format!("se{at}")).collect();
    let mut events = votes(100 + seed, &setlists, rounds() * VOTES_A_ROUND);
    // Shows are inserted, deleted and moved in between.
    let mut others = Writer::new(seed, "w").lines(2_000).into_iter();
    events = events.into_iter().flat_map(|event| [Some(event), others.next()]).flatten().collect();
    site.write("more.jsonl", &events);
    let mut model = {
        let base = std::fs::read_to_string(site.path("base.jsonl")).unwrap();
        Model::of(&base.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    model.apply_lines(&events);

    break_many_totals(&site.open());
    let mut planted = deficits(&site.open());
    let mut random = Random(seed);
    let (mut checks, mut seen_drift) = (0, 0);

    let writer = site.spawn("replay more.jsonl");
    let until = now() + LONGEST;
    let done = AtomicBool::new(false);
    let repaired: Vec<Repaired> = thread::scope(|scope| {
        // Sets the flag even if an assertion fails, because the scope waits for the repairing
        // threads.
        let ended = SetOnDrop(&done);
        let repairers: Vec<_> = (0..repairers)
            .map(|at| {
                let (site, done) = (&site, &done);
                scope.spawn(move || repair_until(site, done, seed * 10 + at as u64, kill))
            })
            .collect();
        let writer = scope.spawn(|| finish(writer, LONGEST).exits(0));
        let conn = site.open();
        while !writer.is_finished() && now() < until {
            let snapshot = conn.unchecked_transaction().unwrap();
            let found = deficits(&snapshot);
            drop(snapshot);
            for (key, deficit) in &found {
                assert_eq!(
                    planted.get(key),
                    Some(deficit),
                    "seed {seed}: {key:?} has a deficit that was not planted"
                );
            }
            checks += 1;
            seen_drift += found.len();
            plant_drift(&site, &mut random, &mut planted);
        }
        let ran = writer.join().unwrap();
        println!("seed {seed}: {}", ran.out.trim());
        drop(ended);
        repairers.into_iter().map(|repairer| repairer.join().unwrap()).collect()
    });

    // What the last repairs did not reach is still as planted.
    let left = deficits(&site.open());
    for (key, deficit) in &left {
        assert_eq!(planted.get(key), Some(deficit), "seed {seed}: {key:?}");
    }
    let last = corrected(&site.run("repair --json").exits(0).json());
    assert_eq!(last, left.len());
    let sum = |count: fn(&Repaired) -> usize| repaired.iter().map(count).sum::<usize>();
    let (runs, kills, repaired) =
        (sum(|one| one.runs), sum(|one| one.kills), sum(|one| one.corrected) + last);
    println!(
        "seed {seed}: {runs} repairs and {kills} kills beside the writer, {checks} checks of {seen_drift} deficits; \
         {} planted, {repaired} reported as repaired",
        planted.len()
    );
    if kill {
        // A killed repair does not report what it has repaired.
        assert!(repaired <= planted.len(), "seed {seed}: a total was repaired twice");
    } else {
        assert_eq!(repaired, planted.len(), "seed {seed}: each total is repaired once");
    }
    assert!(checks > 0);
    model.assert_in(&site.open());
    site.assert_exact();
    RepairCounts { runs, kills }
}

fn repair_until(site: &Site, done: &AtomicBool, seed: u64, kill: bool) -> Repaired {
    let mut random = Random(seed);
    let mut all = Repaired::default();
    while !done.load(Ordering::SeqCst) {
        // Pages of all sizes, so that rows change between a comparison and its repair.
        let page = *random.pick_skewed(&["", "--page 50", "--page 7"]);
        let repair = site.spawn(&format!("repair --json {page}"));
        if kill && random.one_in(2) {
            all.kills += usize::from(kill_after(
                repair,
                random_time_below(&mut random, Duration::from_millis(150)),
            ));
        } else {
            all.corrected += corrected(&finish(repair, LONGEST).exits(0).json());
            all.runs += 1;
        }
    }
    all
}

/// The counters that are broken during the replay: counters of rows, bases, memberships, rollups of
/// the middle and the top level.
const PLANTED: [&str; 9] = [
    "setlist.votes",
    "setlist.score",
    "user.votes",
    "artist.shows",
    "setlist.trend_1d",
    "setlist.show",
    "show.votes",
    "artist.votes",
    "artist.trend_7d",
];

/// Breaks some totals that were not broken before. It holds the write lock, so that their deficits
/// are known, and also those that the rollups above get from it, none of which were broken before.
fn plant_drift(site: &Site, random: &mut Random, planted: &mut Deficits) {
    let mut conn = site.open();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let (rows, mut totals) = (recount(&tx), stored(&tx));
    let mut before = deficits_of(&rows, &totals);
    for _ in 0..6 {
        let counter = PLANTED[random.below(PLANTED.len())];
        let fresh: Vec<Key> = non_zero(&totals)[counter]
            .keys()
            .filter(|key| !planted.contains_key(&(counter, (*key).clone())))
            .filter(|key| {
                parents(counter, key, &totals).iter().all(|above| !planted.contains_key(above))
            })
            .cloned()
            .collect();
        if fresh.is_empty() {
            continue;
        }
        let key = &fresh[random.below(fresh.len())];
        let mut broken = totals.clone();
        let change = if random.one_in(3) {
            broken.get_mut(counter).unwrap().remove(key);
            "DELETE FROM"
        } else {
            *broken.get_mut(counter).unwrap().get_mut(key).unwrap() += 9;
            "UPDATE"
        };
        let after = deficits_of(&rows, &broken);
        let changed: Deficits = after
            .iter()
            .filter(|(key, deficit)| before.get(*key) != Some(*deficit))
            .map(|(key, deficit)| (key.clone(), *deficit))
            .collect();
        // Each key is broken at most once. A broken membership changes one key of each rollup for
        // each epoch.
        if before.keys().any(|key| !after.contains_key(key))
            || changed.keys().any(|key| planted.contains_key(key))
        {
            continue;
        }
        let table = counter.replace('.', "_");
        let set = if change == "UPDATE" { " SET total = total + 9" } else { "" };
        let columns = if key.len() == 1 {
            vec!["key".to_owned()]
        } else {
            vec!["key_1".to_owned(), "key_2".to_owned()]
        };
        let is: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(at, column)| format!("{column} = ?{}", at + 1))
            .collect();
        let values = key.iter().map(|part| match part {
            Part::Int(value) => rusqlite::types::Value::Integer(*value),
            Part::Text(text) => rusqlite::types::Value::Text(text.clone()),
        });
        let done = tx.execute(
            &format!("{change} {table}{set} WHERE {}", is.join(" AND ")),
            rusqlite::params_from_iter(values),
        );
        assert_eq!(done, Ok(1));
        planted.extend(changed);
        (totals, before) = (broken, after);
    }
    tx.commit().unwrap();
}

/// The totals one level up that sum this one: their true totals change with it.
fn parents(counter: &str, key: &Key, totals: &Totals) -> Vec<(&'static str, Key)> {
    let above = ROLLUPS.iter().filter(|(_, base, _)| *base == counter);
    above
        .flat_map(|(rollup, _, membership)| {
            let memberships =
                totals[membership].keys().filter(|membership| membership[0] == key[0]);
            memberships.map(|membership| (*rollup, [&membership[1..], &key[1..]].concat()))
        })
        .collect()
}
