//! Nothing is counted twice and nothing is repaired wrongly when processes are killed at any
//! moment, and when a writer and repairs work on one file at once.
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

/// How many rounds there are, where `KEEPCOUNT_CRASH_ROUNDS` does not say.
fn rounds() -> usize {
    std::env::var("KEEPCOUNT_CRASH_ROUNDS").map_or(12, |rounds| rounds.parse().unwrap())
}

const SIGKILL: i32 = 9;

/// Kills a process after so long; true when it was still running.
fn kill_after(mut child: Child, time: Duration) -> bool {
    thread::sleep(time);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        status.signal() == Some(SIGKILL) || status.code() == Some(0),
        "it failed by itself: {status}"
    );
    status.signal() == Some(SIGKILL)
}

fn below(random: &mut Random, most: Duration) -> Duration {
    Duration::from_micros(random.below(usize::try_from(most.as_micros()).unwrap().max(1)) as u64)
}

#[test]
fn replays_that_are_killed_at_random_go_on_and_count_nothing_twice() {
    let mut writer = Writer::new(1842, "k");
    let events = writer.lines(5_000);
    let takes = shortest(|| {
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
        // Kills before the first commit and after the last are not counted, though they are
        // checked.
        while kills < wanted && tries < 50 {
            tries += 1;
            let killed = kill_after(site.spawn("replay events.jsonl"), below(&mut random, takes));
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
        writer.model.is_in(&site.open());
        site.is_exact();
    }
    println!(
        "replay (whole: {takes:.0?}): {hit} kills hit in {rounds} rounds, {inside} of them between commits; {missed} too late",
        rounds = rounds()
    );
}

/// How long this takes where nothing else is in the way.
fn shortest(mut run: impl FnMut()) -> Duration {
    let times = (0..3).map(|_| {
        let started = now();
        run();
        started.elapsed()
    });
    times.min().unwrap()
}

/// What is in the file after a kill is what the events up to its position make of it, no more and
/// no less. True when that is a part of the events.
fn check_prefix(site: &Site, events: &[String]) -> bool {
    let conn = site.open();
    // It may have been killed before there were tables.
    if number(&conn, "SELECT count(*) FROM sqlite_schema WHERE name = 'keepcount_offsets'") == 0 {
        return false;
    }
    let applied = number(&conn, "SELECT coalesce(max(last), 0) FROM keepcount_offsets");
    Model::of(&events[..applied]).is_in(&conn);
    (1..events.len()).contains(&applied)
}

/// Thousands of totals that are wrong, missing or orphans, in every kind of counter: of rows, of
/// memberships, of rollups.
fn break_much(conn: &Connection) {
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
            // A number that depends on the key alone.
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

/// Rows and totals, right: shows, their setlists, and votes over them.
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

/// Truth minus stored of every key that differs; the truth of a rollup is the sum of the base level
/// as it is stored. So no hooked write changes it, and no repair of another key either, whose climb
/// changes a rollup as it changes its truth.
type Lacks = BTreeMap<(&'static str, Key), i64>;

fn lacks(conn: &Connection) -> Lacks {
    lacks_of(&recount(conn), &stored(conn))
}

fn lacks_of(rows: &Totals, stored: &Totals) -> Lacks {
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
fn repairs_that_are_killed_at_random_leave_each_total_as_it_was_or_right() {
    let broken = voted_site();
    let rows_before = rows(&broken.open());
    break_much(&broken.open());
    let planted = lacks(&broken.open());
    let takes = shortest(|| {
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
            let time = below(&mut random, takes / u32::try_from(tries).unwrap());
            if !kill_after(site.spawn(&format!("repair {page}")), time) {
                missed += 1;
                if lacks(&site.open()).is_empty() {
                    site.sql(&restore(&broken));
                }
                continue;
            }
            kills += 1;
            let left = lacks(&site.open());
            for (key, lack) in &left {
                assert_eq!(planted.get(key), Some(lack), "{key:?} was repaired by half, or broken");
            }
            inside += usize::from(!left.is_empty() && left.len() < planted.len());
        }
        assert!(kills > 0, "no kill hit a running repair in {tries} tries");
        hit += kills;
        let left = lacks(&site.open()).len();
        assert_eq!(
            corrected(&site.run("repair --json").exits(0).json()),
            left,
            "what is left, and nothing else"
        );
        assert_eq!(rows(&site.open()), rows_before, "a repair has written rows");
        site.is_exact();
    }
    println!(
        "repair of {} totals (whole: {takes:.0?}): {hit} kills hit in {} rounds, {inside} of them between repairs; {missed} too late",
        planted.len(),
        rounds()
    );
    assert!(inside > 0, "no kill came between the first repair and the last");
}

/// Statements that bring the totals of another site back.
fn restore(broken: &Site) -> String {
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

// A writer and repairs at once.

#[test]
fn a_repair_over_and_over_repairs_nothing_wrongly_while_a_writer_replays() {
    let repairs: usize = (0..4).map(|seed| write_and_repair(seed, 1, false).runs).sum();
    // A writer that hardly ever lets go of the lock may keep one round's repair waiting to its end,
    // but not every round's.
    assert!(repairs > 1, "the writer was too quick: {repairs} repairs");
}

#[test]
fn two_repairs_at_once_repair_each_total_once_while_a_writer_replays() {
    let repairs: usize = (10..12).map(|seed| write_and_repair(seed, 2, false).runs).sum();
    assert!(repairs > 0, "the writer was too quick: {repairs} repairs");
}

#[test]
fn repairs_that_are_killed_while_a_writer_replays_repair_nothing_wrongly() {
    // Whether a kill hits a repair at work is up to the machine: over all rounds some do.
    let rounds: Vec<Beside> = (20..23).map(|seed| write_and_repair(seed, 2, true)).collect();
    assert!(rounds.iter().any(|round| round.kills > 0), "no repair was killed at work");
    let repairs: usize = rounds.iter().map(|round| round.runs + round.kills).sum();
    assert!(repairs > 2, "the writer was too quick: {repairs} repairs");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many repairs there were beside a writer, whole and killed.
struct Beside {
    runs: usize,
    kills: usize,
}

/// What one repairer did.
#[derive(Default)]
struct Repaired {
    runs: usize,
    kills: usize,
    corrected: usize,
}

/// A writer replays thousands of votes in one process. Others repair without pause until it has
/// ended. All the while, the test breaks totals by known amounts, each key once: then at any moment
/// what a key lacks is that amount or nothing, whatever is written, and every one of them is
/// repaired exactly once. A repair that is wrong by one would show in the middle and at the end.
fn write_and_repair(seed: u64, repairers: usize, kill: bool) -> Beside {
    let site = voted_site();
    let setlists: Vec<String> = (0..400).map(|at| format!("se{at}")).collect();
    let mut events = votes(100 + seed, &setlists, 30_000);
    // Shows come and go and move in between.
    let mut others = Writer::new(seed, "w").lines(2_000).into_iter();
    events = events.into_iter().flat_map(|event| [Some(event), others.next()]).flatten().collect();
    site.write("more.jsonl", &events);
    let mut model = {
        let base = std::fs::read_to_string(site.path("base.jsonl")).unwrap();
        Model::of(&base.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    model.apply_lines(&events);

    break_much(&site.open());
    let mut planted = lacks(&site.open());
    let mut random = Random(seed);
    let (mut looks, mut seen_drift) = (0, 0);

    let writer = site.spawn("replay more.jsonl");
    let until = now() + LONGEST;
    let done = AtomicBool::new(false);
    let repaired: Vec<Repaired> = thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for the repairers.
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
            let found = lacks(&snapshot);
            drop(snapshot);
            for (key, lack) in &found {
                assert_eq!(
                    planted.get(key),
                    Some(lack),
                    "seed {seed}: {key:?} lacks what nobody took"
                );
            }
            looks += 1;
            seen_drift += found.len();
            plant(&site, &mut random, &mut planted);
        }
        let ran = writer.join().unwrap();
        println!("seed {seed}: {}", ran.out.trim());
        drop(ended);
        repairers.into_iter().map(|repairer| repairer.join().unwrap()).collect()
    });

    // What the last repairs have not reached is still what was planted.
    let left = lacks(&site.open());
    for (key, lack) in &left {
        assert_eq!(planted.get(key), Some(lack), "seed {seed}: {key:?}");
    }
    let last = corrected(&site.run("repair --json").exits(0).json());
    assert_eq!(last, left.len());
    let sum = |count: fn(&Repaired) -> usize| repaired.iter().map(count).sum::<usize>();
    let (runs, kills, repaired) =
        (sum(|one| one.runs), sum(|one| one.kills), sum(|one| one.corrected) + last);
    println!(
        "seed {seed}: {runs} repairs and {kills} kills beside the writer, {looks} looks at {seen_drift} lacking totals; \
         {} planted, {repaired} reported as repaired",
        planted.len()
    );
    if kill {
        // A repair that is killed does not tell what it has repaired.
        assert!(repaired <= planted.len(), "seed {seed}: a total was repaired twice");
    } else {
        assert_eq!(repaired, planted.len(), "seed {seed}: each total is repaired once");
    }
    assert!(looks > 0);
    model.is_in(&site.open());
    site.is_exact();
    Beside { runs, kills }
}

fn repair_until(site: &Site, done: &AtomicBool, seed: u64, kill: bool) -> Repaired {
    let mut random = Random(seed);
    let mut all = Repaired::default();
    while !done.load(Ordering::SeqCst) {
        // Pages of all sizes, so that rows change between a measure and its repair.
        let page = *random.pick_skewed(&["", "--page 50", "--page 7"]);
        let repair = site.spawn(&format!("repair --json {page}"));
        if kill && random.one_in(2) {
            all.kills +=
                usize::from(kill_after(repair, below(&mut random, Duration::from_millis(150))));
        } else {
            all.corrected += corrected(&finish(repair, LONGEST).exits(0).json());
            all.runs += 1;
        }
    }
    all
}

/// What is broken while a writer is at work: counters of rows, base levels, memberships, rollups in
/// the middle and at the top.
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

/// Breaks some totals that were not broken before, under the write lock, so that what they lack is
/// known; and what the rollups above them lack then, which were not broken before either.
fn plant(site: &Site, random: &mut Random, planted: &mut Lacks) {
    let mut conn = site.open();
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let (rows, mut totals) = (recount(&tx), stored(&tx));
    let mut before = lacks_of(&rows, &totals);
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
        let after = lacks_of(&rows, &broken);
        let changed: Lacks = after
            .iter()
            .filter(|(key, lack)| before.get(*key) != Some(*lack))
            .map(|(key, lack)| (key.clone(), *lack))
            .collect();
        // Each key is broken once: also what is above a membership, which is one key for each
        // epoch.
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

/// Which totals sum this one, one level up: the truth of those changes with it.
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
