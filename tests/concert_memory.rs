//! Verify and repair need little memory however much there is: over 2 million votes, and over 300,000 orphan totals where there are no
//! rows, their peak stays within 30 MB above that of a process that has hardly anything to do.
#![cfg(target_os = "linux")] // where a process's peak can be read
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::fs;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use serde_json::Value;

mod concert_common;

use concert_common::{LONGEST, Ran, Site, binary, finish, now, number, start};

const MOST_ABOVE_IDLE: u64 = 30_000_000;
const VOTES: usize = 2_000_000;
const ORPHANS: usize = 300_000;

/// The peak of a process's resident memory in bytes, none when it is over.
fn peak(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().unwrap();
    Some(kilobytes * 1_024)
}

/// Runs a command to its end and says its peak: the last that was read before it ended, at most a millisecond earlier.
fn run(site: &Site, words: &str) -> (Ran, u64) {
    let mut command = Command::new(binary());
    command.args(words.split(' ')).args(["--db", "site.db"]).current_dir(site.dir());
    let started = now();
    let mut child = start(&mut command);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < LONGEST, "{words} comes to no end");
        most = most.max(peak(&child).unwrap_or(0));
        thread::sleep(Duration::from_micros(if started.elapsed().as_millis() < 50 { 20 } else { 1_000 }));
    }
    let ran = finish(child, LONGEST);
    println!("{words}: {:.1} MB at its peak, {:.1?}", megabytes(most), started.elapsed());
    (ran, most)
}

#[allow(clippy::cast_precision_loss)] // shown only
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Of several, because so short a process may end between two looks at it. What is missed makes the test stricter.
fn idle(site: &Site) -> u64 {
    let peaks = (0..100).map(|_| run(site, "totals artist.shows")).map(|(ran, peak)| (ran.exits(0), peak).1);
    peaks.filter(|peak| *peak > 0).take(5).max().expect("an idle process's memory could be read")
}

#[track_caller]
fn stays_small(site: &Site, words: &str, idle: u64, code: i32) -> Value {
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

fn orphans(table: &str, key: &str) -> String {
    format!(
        "INSERT INTO {table} WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {ORPHANS})
         SELECT format('{key}', n), 1 + n % 9 FROM n;"
    )
}

/// Makes a great many rows in a few seconds; the file is not to outlive a crash.
const FAST: &str = "PRAGMA journal_mode = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -200000; \
                    PRAGMA temp_store = MEMORY; BEGIN;";

#[test]
fn two_million_votes_are_verified_in_little_memory() {
    let site = Site::with(&[]);
    let idle = idle(&site);
    let started = now();
    // One setlist has a quarter of all votes; the others, and the users, are many.
    let votes = format!(
        "{FAST}
         CREATE TEMP TABLE indices AS SELECT name, sql FROM sqlite_schema WHERE tbl_name = 'votes' AND sql IS NOT NULL AND type = 'index';
         DROP INDEX votes_by_setlist; DROP INDEX votes_by_user;
         INSERT INTO votes WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {VOTES})
         SELECT format('vo%07d', n), iif(n % 4, 'se' || (1000000 + n % 60000), 'se1030000'),
                'us' || (1000000 + n % 400000), iif(n % 5, 'up', 'down'), n FROM n;
         INSERT INTO setlists SELECT DISTINCT setlist_id, NULL FROM votes;"
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
         COMMIT",
    )
    .unwrap();
    assert_eq!(number(&conn, "SELECT count(*) FROM votes"), VOTES);
    let setlists = number(&conn, "SELECT count(DISTINCT setlist_id) FROM votes");
    println!("{VOTES} votes over {setlists} setlists, made in {:.1?}", started.elapsed());
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    drop(conn);

    let report = stays_small(&site, "verify --json", idle, 0);
    assert_eq!(counter(&report, "setlist.votes")["keys"], setlists);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000);
    // The largest page that may be asked for is large; it is still one page.
    let report = stays_small(&site, "verify --json --page 100000", idle, 0);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000);

    // Orphans in the midst of the range of rows, where no rows are.
    site.sql(&format!("{FAST} {} COMMIT; PRAGMA journal_mode = WAL", orphans("user_votes", "us1200000 %06d")));
    let report = stays_small(&site, "verify --json", idle, 2);
    assert_eq!(counter(&report, "user.votes")["orphan"], ORPHANS);
    assert_eq!(counter(&report, "user.votes")["keys"], 400_000 + ORPHANS);
}

#[test]
fn orphans_without_any_rows_are_verified_and_mended_in_little_memory() {
    let site = Site::with(&[]);
    let idle = idle(&site);
    site.sql(&format!("{FAST} {} COMMIT; PRAGMA journal_mode = WAL", orphans("user_votes", "user %06d")));
    let report = stays_small(&site, "verify --json", idle, 2);
    assert_eq!(counter(&report, "user.votes")["orphan"], ORPHANS);
    site.run("repair").fails(&["user.votes"]);
    let report = stays_small(&site, "repair --force --json", idle, 0);
    assert_eq!(counter(&report, "user.votes")["corrected"], ORPHANS);
    assert_eq!(number(&site.open(), "SELECT count(*) FROM user_votes"), 0);
    site.run("verify").exits(0);
}
