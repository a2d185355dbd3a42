//! A disk that fails at any write of SQLite: to its log, to its journal, or to the database file.
//! Each error says what became of the call. A call of unknown outcome is delivered again with the
//! same offset, and is applied once.

use std::fs;
use std::path::Path;

use crate::support::crash::child::{Phase, Running, command_with_file_limit, words};
use crate::support::crash::writer::{FEED, Failure, Writer};
use crate::support::crash::{
    Hits, Journal, Model, Random, Site, Totals, assert_exact, check_writer, drift, offsets, repair,
    rounds, settle,
};
use crate::support::full_test_name;
use keepcount::{Error, Recovery};
use rusqlite::ErrorCode;

/// The default number of children whose disk fails.
const ROUNDS: u64 = 12;

/// Body of the child process, whose file sizes are limited.
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

/// Opens a writer, for half of the seeds with `psow=0`: a write may then damage what is beside it.
/// So SQLite pads the log after a commit, up to the next sector. If the padding fails, the call
/// fails too, but the commit is in the log and counts for a process that reads the log after a
/// crash.
fn start(dir: &Path, seed: u64) -> rusqlite::Result<Writer> {
    Writer::start_at(
        format!("file:{}/site.db?psow={}", dir.display(), seed % 2).into(),
        dir,
        1,
        seed,
    )
}

/// Applies until the first error, and then ends as if the process were killed: nothing is closed.
fn apply_until_it_fails(dir: &Path, seed: u64) {
    let mut writer = start(dir, seed).unwrap();
    writer.conn.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
    let failure = (0..100).find_map(|_| writer.totals_alone().err());
    assert!(matches!(failure, Some(Failure::Ours(Error::Indeterminate { .. }))), "{failure:?}");
    std::mem::forget(writer);
}

/// A writer that also plants drift and repairs it, while some of its writes fail.
struct Starved<'a> {
    dir: &'a Path,
    /// A description of each error.
    hits: Vec<String>,
    off: Totals,
}

impl Starved<'_> {
    /// Works for a while, or until even reads fail.
    fn work(&mut self, seed: u64) {
        let Ok(mut writer) = start(self.dir, seed) else { return self.hit("opening") };
        for _ in 0..40 {
            let turned =
                if writer.random.below(5) == 0 { self.repair(&mut writer) } else { writer.turn() };
            let Err(failure) = turned else { continue };
            let operation = assert_error_is_true(&writer, &failure);
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

    /// Damages a total, and repairs it.
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

/// Asserts that an error says what became of the call, and returns a description. A read may end
/// the caller's transaction too: SQLite writes changed pages to make room for what it reads. If
/// that write failed, the error used to be an ordinary one, and a caller that continued wrote
/// without a transaction.
fn assert_error_is_true(writer: &Writer, failure: &Failure) -> String {
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

fn run_on_failing_disks(journal: Journal) {
    let rounds = rounds(ROUNDS);
    let (mut random, mut hits, mut unknown) = (Random(70 + journal as u64), Hits::default(), 0);
    for round in 0..rounds {
        let site = Site::new(journal);
        let mut writer = Writer::start(site.dir.path(), 1, round).unwrap();
        writer.conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
        (0..10 + random.below(60)).for_each(|_| writer.turn().unwrap());
        drop(writer);
        // The limit is between what a log needs that is often checkpointed, and about the final
        // size of the file.
        let half_pages = fs::metadata(site.path()).unwrap().len() / 512;
        let blocks = 66
            + random.below(if journal == Journal::Wal && round % 2 == 0 { 60 } else { half_pages });
        let seed = random.below(1_u64 << 40).to_string();
        Running::start(command_with_file_limit(
            &full_test_name(module_path!(), "a_child_whose_files_are_limited"),
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
        // Calls of unknown outcome are delivered again, with the same offsets.
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
fn failing_disk_with_a_log_leaves_totals_exact_or_says_so() {
    run_on_failing_disks(Journal::Wal);
}

#[test]
fn failing_disk_with_a_journal_leaves_totals_exact_or_says_so() {
    run_on_failing_disks(Journal::Delete);
}

/// The limit moves by half a page from child to child, so that it falls before, within and after a
/// commit in the log.
#[test]
fn failed_commit_may_stand_and_counts_once_when_delivered_again() {
    let (mut stands, mut gone) = (0, 0);
    for blocks in 70..100 {
        let site = Site::new(Journal::Wal);
        let words = ["alone", "0"];
        Running::start(command_with_file_limit(
            &full_test_name(module_path!(), "a_child_whose_files_are_limited"),
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
        assert!(tried > writer.told.known(FEED), "the outcome of the last try is unknown");
        writer.totals_alone().unwrap();
        assert_eq!((writer.told.known(FEED), offsets(&conn, 1)[FEED]), (tried, tried));
        assert_exact(&conn);
    }
    println!("failing commits: {stands} stand, {gone} are gone");
    assert!(stands > 0 && gone > 0, "{stands} commits stand, {gone} are gone");
}
