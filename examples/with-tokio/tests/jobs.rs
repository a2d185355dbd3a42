//! Tests both processes, each on its own database with planted drift: they repair in parts, over a
//! restart, until totals equal rows.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rusqlite::Connection;

const PROCESSES: [&str; 2] = [env!("CARGO_BIN_EXE_interval"), env!("CARGO_BIN_EXE_scheduler")];

/// Runs the check for each process in its own thread, with the path of a database that does not
/// exist yet.
fn for_each(check: impl Fn(&str, &Path) + Sync) {
    thread::scope(|threads| {
        for process in PROCESSES {
            threads.spawn(|| {
                let folder = tempfile::tempdir().unwrap();
                check(process, &folder.path().join("votes.db"));
            });
        }
    });
}

fn start(process: &str, db: &Path, rounds: &str) -> Child {
    let mut command = Command::new(process);
    command.arg(db).arg(rounds).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the process to end; returns its exit code, the lines of stdout, and stderr.
fn wait(process: Child) -> (Option<i32>, Vec<String>, String) {
    let output = process.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    (output.status.code(), lines, String::from_utf8(output.stderr).unwrap())
}

fn token_path(db: &Path) -> PathBuf {
    db.with_added_extension("token")
}

/// Returns the shows whose total is not the number of their votes.
fn wrong_shows(db: &Path) -> Vec<i64> {
    let conn = Connection::open(db).unwrap();
    let sql =
        "SELECT key FROM (SELECT show_id AS key, 1 AS votes FROM votes UNION ALL SELECT key, -total FROM show_votes)
               GROUP BY key HAVING sum(votes) <> 0 ORDER BY key";
    let mut wrong = conn.prepare(sql).unwrap();
    wrong.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[test]
fn drift_is_repaired_in_parts_over_a_restart() {
    for_each(|process, db| {
        let (code, lines, errors) = wait(start(process, db, "2"));
        assert_eq!((code, lines.len(), errors.as_str()), (Some(0), 2, ""));
        assert!(
            lines[0].contains("1 corrected; 2 pages") && lines[0].ends_with("limit of pages"),
            "{lines:?}"
        );
        // On a busy machine the scheduler may have begun a third part.
        assert!(wrong_shows(db).ends_with(&[1000]));
        assert!(token_path(db).exists());

        let (code, lines, errors) = wait(start(process, db, "2"));
        assert_eq!((code, lines.len(), errors.as_str()), (Some(0), 2, ""));
        assert!(lines.iter().any(|line| line.ends_with("complete")), "{lines:?}");
        assert_eq!(wrong_shows(db), [0; 0]);
    });
}

#[test]
fn unusable_token_is_an_error_and_is_kept() {
    for_each(|process, db| {
        let other = db.with_file_name("other.db");
        wait(start(process, &other, "1"));
        wait(start(process, db, "1"));
        let stale = fs::read_to_string(token_path(&other)).unwrap();
        for (token, reason) in
            [(stale.as_str(), "another database"), ("", "corrupt"), (&stale[1..], "corrupt")]
        {
            fs::write(token_path(db), token).unwrap();
            let (code, lines, errors) = wait(start(process, db, "9"));
            assert_eq!((code, lines.len()), (Some(1), 0), "{errors}");
            assert!(
                errors.contains(reason) && errors.contains("votes.db.token cannot be used; delete"),
                "{errors}"
            );
            assert_eq!(fs::read_to_string(token_path(db)).unwrap(), token);
        }
    });
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_process_and_keeps_its_token() {
    for_each(|process, db| {
        let mut running = start(process, db, "1000000");
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap(); // it handles Ctrl-C by now
        Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(0));
        assert!(token_path(db).exists());
        wait(start(process, db, "4"));
        assert_eq!(wrong_shows(db), [0; 0]);
    });
}
