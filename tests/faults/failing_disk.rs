//! A disk that fails at any write of what a SQLite file has: in its log, in its journal, in itself.
//! Each error says what became of the call; what nobody knows the outcome of is delivered again
//! with the same offset, and ends applied once.

use std::fs;
use std::path::Path;

use crate::support::crash::child::{Phase, Running, limited, words};
use crate::support::crash::writer::{FEED, Failure, Writer};
use crate::support::crash::{
    Hits, Journal, Model, Random, Site, Totals, assert_exact, check_writer, drift, offsets, repair,
    rounds, settle,
};
use crate::support::test_of;
use keepcount::{Error, Recovery};
use rusqlite::ErrorCode;

/// How many children fail, where nobody says.
const ROUNDS: u64 = 12;

/// What a process of its own runs, whose files are limited.
#[test]
fn a_child_whose_files_are_limited() {
    let Some(words) = words() else { return };
    let [what, seed, dir] = words.as_slice() else { panic!("{words:?}") };
    let (dir, seed) = (Path::new(dir), seed.parse().unwrap());
    if what == "alone" {
        return apply_until_it_fails(dir, seed);
    }
    let mut starved = Starved { dir, hits: Vec::new(), off: Totals::new() };
    starved.work(seed);
    fs::write(starved.dir.join("hits"), starved.hits.join("\n")).unwrap();
}

/// Half of them say that what is beside a write may be damaged by it: then a log goes on behind a
/// commit, up to the next sector. Where that fails, so does the call, but the commit stands there,
/// and counts for whoever reads the log after a crash.
fn start(dir: &Path, seed: u64) -> rusqlite::Result<Writer> {
    Writer::start_at(
        format!("file:{}/site.db?psow={}", dir.display(), seed % 2).into(),
        dir,
        1,
        seed,
    )
}

/// Ends at the first error as if it were killed: nothing is closed.
fn apply_until_it_fails(dir: &Path, seed: u64) {
    let mut writer = start(dir, seed).unwrap();
    writer.conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    let failure = (0..100).find_map(|_| writer.totals_alone().err());
    assert!(matches!(failure, Some(Failure::Ours(Error::Indeterminate { .. }))), "{failure:?}");
    std::mem::forget(writer);
}

/// A writer, and repairs of drift that it plants, while writing fails every so often.
struct Starved<'a> {
    dir: &'a Path,
    /// What each error was.
    hits: Vec<String>,
    off: Totals,
}

impl Starved<'_> {
    /// Works for a while, or until not even reading is possible.
    fn work(&mut self, seed: u64) {
        let Ok(mut writer) = start(self.dir, seed) else { return self.hit("opening") };
        for _ in 0..40 {
            let turned =
                if writer.random.below(5) == 0 { self.repair(&mut writer) } else { writer.turn() };
            let Err(failure) = turned else { continue };
            let operation = judge(&writer, &failure);
            self.hit(&operation);
            if writer.random.below(4) == 0 {
                // The process ends here, and closes nothing.
                std::mem::forget(writer);
                return;
            }
            if !writer.conn.is_autocommit() && writer.conn.execute_batch("ROLLBACK").is_err() {
                return self.hit("rolling back");
            }
            let Ok(found) = drift(&writer.conn) else { return self.hit("reading") };
            assert!(
                found.iter().all(|(name, drift)| self.off.get(name) == Some(drift)),
                "{operation}: {found:?} {:?}",
                self.off
            );
            self.off = found;
        }
    }

    fn hit(&mut self, what: &str) {
        self.hits.push(what.to_owned());
    }

    /// Breaks a total, and repairs.
    fn repair(&mut self, writer: &mut Writer) -> std::result::Result<(), Failure> {
        writer.told.at(Phase::Between);
        let one =
            format!("(SELECT key FROM setlist_votes LIMIT 1 OFFSET {})", writer.random.below(30));
        let broken = writer.conn.execute(
            &format!("UPDATE setlist_votes SET total = total + 1000 WHERE key = {one}"),
            (),
        );
        self.off = drift(&writer.conn)?;
        broken?;
        writer.told.at(Phase::Repair);
        repair(&writer.conn)?;
        self.off.clear();
        Ok(())
    }
}

/// What an error says is what became of the call. A read may end the caller's transaction too:
/// pages that the transaction has changed are written to make room for what it reads. Where that
/// failed, the error was an ordinary one, and whoever went on wrote without a transaction.
fn judge(writer: &Writer, failure: &Failure) -> String {
    let phase = writer.told.phase();
    let says = match failure {
        Failure::Driver(error) => {
            let failing = [Some(ErrorCode::SystemIoFailure), Some(ErrorCode::DiskFull)];
            assert!(failing.contains(&error.sqlite_error_code()), "{phase:?}: {error}");
            "the application's own statement"
        }
        Failure::Ours(error) => {
            let text = error.to_string();
            assert!(
                text.contains("disk I/O error") || text.contains("full"),
                "{phase:?}: {error:?}"
            );
            match error {
                Error::TransactionLost { .. } => {
                    assert!(writer.conn.is_autocommit(), "{phase:?}: {error}");
                    "TransactionLost"
                }
                Error::Indeterminate { .. } => {
                    assert!(
                        phase != Phase::Apply && error.recovery() == Recovery::Indeterminate,
                        "{phase:?}: {error}"
                    );
                    "Unknown"
                }
                Error::Database { .. } => {
                    let lost = phase == Phase::Apply && writer.conn.is_autocommit();
                    assert!(
                        !lost,
                        "the transaction is gone, and the error does not say so: {error}"
                    );
                    assert_eq!(error.recovery(), Recovery::Permanent);
                    "Database"
                }
                other => panic!("{phase:?}: {other:?}"),
            }
        }
    };
    format!("{phase:?}: {says}")
}

fn disks_that_fail(journal: Journal) {
    let rounds = rounds(ROUNDS);
    let (mut random, mut hits, mut unknown) = (Random(70 + journal as u64), Hits::default(), 0);
    for round in 0..rounds {
        let site = Site::new(journal);
        let mut writer = Writer::start(site.dir.path(), 1, round).unwrap();
        writer.conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
        (0..10 + random.below(60)).for_each(|_| writer.turn().unwrap());
        drop(writer);
        // From what a log needs that is often taken into the file, to about as much as the file
        // will have.
        let half_pages = fs::metadata(site.path()).unwrap().len() / 512;
        let blocks = 66
            + random.below(if journal == Journal::Wal && round % 2 == 0 { 60 } else { half_pages });
        let seed = random.below(1_u64 << 40).to_string();
        Running::start(limited(
            &test_of(module_path!(), "a_child_whose_files_are_limited"),
            &["all", &seed],
            site.dir.path(),
            blocks,
        ))
        .finish();
        for hit in fs::read_to_string(site.dir.path().join("hits")).unwrap().lines() {
            hits.note(hit);
        }

        let (conn, mut model) = (site.open_quickly(), Model::default());
        unknown += u64::from(check_writer(&conn, &site, 1, &mut model).contains("committed"));
        model.assert_in(&conn);
        settle(&conn);
        // What nobody knows the outcome of is delivered again, with the same offsets.
        let mut writer = Writer::start(site.dir.path(), 1, round).unwrap();
        (0..12).for_each(|_| writer.turn().unwrap());
        check_writer(&conn, &site, 1, &mut model);
        model.assert_in(&conn);
        assert_exact(&conn);
    }
    hits.end(
        &format!(
            "failing disk, {journal:?}, {rounds} rounds, {unknown} committed though they failed"
        ),
        &[],
    );
}

#[test]
fn a_disk_that_fails_under_a_log_leaves_every_total_exact_or_says_so() {
    disks_that_fail(Journal::Wal);
}

#[test]
fn a_disk_that_fails_under_a_journal_leaves_every_total_exact_or_says_so() {
    disks_that_fail(Journal::Delete);
}

/// The limit moves on by half a page, so that it falls before a commit in the log, into it, and
/// behind it.
#[test]
fn a_commit_that_failed_may_stand_and_is_delivered_again_with_its_offset() {
    let (mut stands, mut gone) = (0, 0);
    for blocks in 70..100 {
        let site = Site::new(Journal::Wal);
        let words = ["alone", "0"];
        Running::start(limited(
            &test_of(module_path!(), "a_child_whose_files_are_limited"),
            &words,
            site.dir.path(),
            blocks,
        ))
        .finish();
        let conn = site.open_quickly();
        let at = check_writer(&conn, &site, 1, &mut Model::default());
        *(if at.contains("committed") { &mut stands } else { &mut gone }) += 1;
        assert_exact(&conn);
        let mut writer = Writer::start(site.dir.path(), 1, 0).unwrap();
        let tried = writer.told.tried(FEED);
        assert!(tried > writer.told.known(FEED), "its outcome is not known");
        writer.totals_alone().unwrap();
        assert_eq!((writer.told.known(FEED), offsets(&conn, 1)[FEED]), (tried, tried));
        assert_exact(&conn);
    }
    println!("failing commits: {stands} stand, {gone} are gone");
    assert!(stands > 0 && gone > 0, "{stands} commits stand, {gone} are gone");
}
