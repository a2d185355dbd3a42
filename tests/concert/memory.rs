//! Verify and repair use a bounded amount of memory. Over half a million votes with their rollups
//! and trends, and over 300,000 orphan totals without rows, the peak of the process stays within 30
//! MB above that of a process that does almost nothing. `KEEPCOUNT_VOTES` raises the number of votes
//! (`just memory` takes 2 million): the bound stays.
#![cfg(target_os = "linux")] // its /proc has the peak memory of a process

use std::fs;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use keepcount::HalfLife;
use rusqlite::Connection;
use serde_json::Value;

use crate::support::concert::{Ran, Site, binary, finish, now, number, start};

const MOST_ABOVE_IDLE: u64 = 30_000_000;
/// All rows are read three times, in the profile of the tests.
const LONGEST: Duration = Duration::from_secs(15 * 60);
const ORPHANS: usize = 300_000;

/// The peak of a process's resident memory in bytes. None if the process has ended.
fn peak_memory(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().unwrap();
    Some(kilobytes * 1_024)
}

/// Runs a command to its end. Returns its peak memory as last read, at most a millisecond before
/// the end.
fn run(site: &Site, words: &str) -> (Ran, u64) {
    let mut command = Command::new(binary());
    command.args(words.split(' ')).args(["--db", "site.db"]).current_dir(site.dir());
    let started = now();
    let mut child = start(&mut command);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < LONGEST, "{words} does not end");
        most = most.max(peak_memory(&child).unwrap_or(0));
        thread::sleep(Duration::from_micros(if started.elapsed().as_millis() < 50 {
            20
        } else {
            1_000
        }));
    }
    let ran = finish(child, LONGEST);
    println!("{words}: {:.1} MB at its peak, {:.1?}", megabytes(most), started.elapsed());
    (ran, most)
}

#[allow(clippy::cast_precision_loss)] // shown only
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The highest of several peaks, because so short a process may end between two reads. A missed
/// peak makes the test stricter.
fn idle_peak(site: &Site) -> u64 {
    let peaks = (0..100)
        .map(|_| run(site, "totals artist.shows"))
        .map(|(ran, peak)| (ran.exits(0), peak).1);
    peaks.filter(|peak| *peak > 0).take(5).max().expect("the memory of an idle process can be read")
}

#[track_caller]
fn assert_small_peak(site: &Site, words: &str, idle: u64, code: i32) -> Value {
    let (ran, peak) = run(site, words);
    assert!(peak > idle / 2, "{words} ended before its memory could be read");
    let above = peak.saturating_sub(idle);
    println!("{words}: {:.1} MB above the idle process", megabytes(above));
    assert!(above <= MOST_ABOVE_IDLE, "{words}: {above} bytes above the idle process's {idle}");
    ran.exits(code).json()
}

fn counter<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["counters"].as_array().unwrap().iter().find(|counter| counter["name"] == name).unwrap()
}

fn orphans_sql(table: &str, key: &str) -> String {
    format!(
        "INSERT INTO {table} WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {ORPHANS})
         SELECT format('{key}', n), 1 + n % 9 FROM n;"
    )
}

/// Inserts millions of rows in a few seconds. The file need not survive a crash.
const FAST: &str = "PRAGMA journal_mode = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -200000; \
                    PRAGMA temp_store = MEMORY; BEGIN;";

/// The first second of 2025.
const SINCE: i64 = 1_735_689_600;

/// Inserts the decayed votes of setlists, shows and artists. SQL has no powers of two, so the
/// weights come from a table.
fn insert_trends(conn: &Connection) {
    for (name, half_life) in
        [("6h", HalfLife::hours(6)), ("1d", HalfLife::days(1)), ("7d", HalfLife::days(7))]
    {
        conn.execute_batch(
            "CREATE TEMP TABLE weights (at INTEGER PRIMARY KEY, epoch INTEGER, weight INTEGER)",
        )
        .unwrap();
        for at in (0..4).map(|day| SINCE + day * 86_400) {
            let epoch = at.div_euclid(half_life.as_seconds());
            conn.execute(
                "INSERT INTO weights VALUES (?1, ?2, ?3)",
                (at, epoch, half_life.weight(at)),
            )
            .unwrap();
        }
        conn.execute_batch(&format!(
            "INSERT INTO setlist_trend_{name} SELECT setlist_id, epoch, sum(weight) FROM votes JOIN weights ON at = created_at GROUP BY 1, 2;
             INSERT INTO show_trend_{name} SELECT l.key_2, t.key_2, sum(t.total) FROM setlist_show AS l JOIN setlist_trend_{name} AS t USING (key_1) GROUP BY 1, 2;
             INSERT INTO artist_trend_{name} SELECT l.key_2, t.key_2, sum(t.total) FROM show_artist AS l JOIN show_trend_{name} AS t USING (key_1) GROUP BY 1, 2;
             DROP TABLE weights;"
        ))
        .unwrap();
    }
}

#[test]
fn verify_of_many_votes_stays_within_30_mb() {
    let many_votes = std::env::var("KEEPCOUNT_VOTES");
    let many_votes: usize = many_votes.map_or(500_000, |votes| votes.parse().unwrap());
    let site = Site::with(&[]);
    let idle = idle_peak(&site);
    let started = now();
    // One setlist has a quarter of all votes, and one show a third of all setlists. The other
    // setlists and the users are many. All votes are at four moments, each on another day.
    let votes = format!(
        "{FAST}
         CREATE TEMP TABLE indices AS SELECT name, sql FROM sqlite_schema WHERE tbl_name = 'votes' AND sql IS NOT NULL AND type = 'index';
         DROP INDEX votes_by_setlist; DROP INDEX votes_by_user;
         INSERT INTO votes WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {many_votes})
         SELECT format('vo%07d', n), iif(n % 4, 'se' || (1000000 + n % 60000), 'se1030000'),
                'us' || (1000000 + n % 400000), iif(n % 5, 'up', 'down'), {SINCE} + n % 4 * 86400 FROM n;
         INSERT INTO artists WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 9) SELECT 'ar' || n, 'n', n * 1000000, 9 FROM n;
         INSERT INTO shows WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 4999)
         SELECT 'sh' || n, 'ar' || (n % 10), '2025-06-01', 'completed' FROM n;
         INSERT INTO setlists SELECT setlist_id, 'sh' || iif(n % 3, n % 5000, 7) FROM
         (SELECT DISTINCT setlist_id, CAST(substr(setlist_id, 3) AS INTEGER) - 1000000 AS n FROM votes);"
    );
    let conn = site.open();
    conn.execute_batch(&votes).unwrap();
    let indices: Vec<String> = {
        let mut all = conn.prepare("SELECT sql FROM indices").unwrap();
        all.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(indices.len(), 2);
    conn.execute_batch(&indices.join(";")).unwrap();
    conn.execute_batch(
        "INSERT INTO setlist_votes SELECT setlist_id, count(*) FROM votes GROUP BY 1;
         INSERT INTO setlist_upvotes SELECT setlist_id, count(*) FROM votes WHERE kind = 'up' GROUP BY 1;
         INSERT INTO setlist_score SELECT setlist_id, sum(iif(kind = 'up', 1, -1)) FROM votes GROUP BY 1;
         INSERT INTO user_votes SELECT user_id, count(*) FROM votes GROUP BY 1;
         INSERT INTO setlist_show SELECT id, show_id, 1 FROM setlists;
         INSERT INTO show_setlists SELECT show_id, count(*) FROM setlists GROUP BY 1;
         INSERT INTO show_artist SELECT id, artist_id, 1 FROM shows;
         INSERT INTO artist_shows SELECT artist_id, count(*) FROM shows GROUP BY 1;
         INSERT INTO artist_shows_ahead SELECT artist_id, date, count(*) FROM shows GROUP BY 1, 2;
         INSERT INTO artist_listed SELECT id, 1 FROM artists;
         INSERT INTO artist_fame SELECT id, followers / 1000000 FROM artists;
         INSERT INTO show_votes SELECT key_2, sum(v.total) FROM setlist_show JOIN setlist_votes AS v ON v.key = key_1 GROUP BY 1;
         INSERT INTO artist_votes SELECT key_2, sum(v.total) FROM show_artist JOIN show_votes AS v ON v.key = key_1 GROUP BY 1;",
    )
    .unwrap();
    insert_trends(&conn);
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(number(&conn, "SELECT count(*) FROM votes"), many_votes);
    let setlists = number(&conn, "SELECT count(DISTINCT setlist_id) FROM votes");
    println!("{many_votes} votes over {setlists} setlists, made in {:.1?}", started.elapsed());
    let shows = number(&conn, "SELECT count(DISTINCT show_id) FROM setlists");
    let artist_days = number(
        &conn,
        "SELECT count(DISTINCT artist_id || ' ' || created_at) FROM votes JOIN setlists ON setlists.id = setlist_id JOIN shows ON shows.id = show_id",
    );
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    drop(conn);

    let report = assert_small_peak(&site, "verify --json", idle, 0);
    assert_eq!(counter(&report, "setlist.votes")["keys"], setlists);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000);
    assert_eq!(counter(&report, "show.votes")["keys"], shows);
    assert_eq!(counter(&report, "artist.trend_1d")["keys"], artist_days);
    assert!(counter(&report, "setlist.trend_6h")["keys"].as_u64().unwrap() > 40_000);
    // The largest page size that is accepted.
    let report = assert_small_peak(&site, "verify --json --page 100000", idle, 0);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000);

    // Orphans between the keys of rows.
    site.sql(&format!(
        "{FAST} {} COMMIT; PRAGMA journal_mode = WAL",
        orphans_sql("user_votes", "us1200000 %06d")
    ));
    let report = assert_small_peak(
        &site,
        "verify --json --counter user.votes --counter show.votes",
        idle,
        2,
    );
    assert_eq!(counter(&report, "user.votes")["orphan"], ORPHANS);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000 + ORPHANS);
    // Orphans of a rollup: totals of shows that do not exist.
    site.sql(&format!(
        "{FAST} {} COMMIT; PRAGMA journal_mode = WAL",
        orphans_sql("show_votes", "sh2 %06d")
    ));
    let report = assert_small_peak(
        &site,
        "verify --json --counter show.votes --counter artist.votes",
        idle,
        2,
    );
    assert_eq!(counter(&report, "show.votes")["orphan"], ORPHANS);
    assert_eq!(counter(&report, "artist.votes")["wrong"], 0, "no membership refers to them");
}

#[test]
fn verify_and_repair_of_orphans_stay_within_30_mb() {
    let site = Site::with(&[]);
    let idle = idle_peak(&site);
    site.sql(&format!(
        "{FAST} {} COMMIT; PRAGMA journal_mode = WAL",
        orphans_sql("user_votes", "user %06d")
    ));
    let report = assert_small_peak(&site, "verify --json", idle, 2);
    assert_eq!(counter(&report, "user.votes")["orphan"], ORPHANS);
    site.run("repair").fails(&["user.votes"]);
    let report = assert_small_peak(&site, "repair --force --json", idle, 0);
    assert_eq!(counter(&report, "user.votes")["corrected"], ORPHANS);
    assert_eq!(number(&site.open(), "SELECT count(*) FROM user_votes"), 0);
    site.run("verify").exits(0);
}
