//! What the two processes share: a repair that does a few pages at a time, and saves its token in a
//! file next to the database in between.
//!
//! `src/bin/interval.rs` runs it by `tokio::time::interval`, `src/bin/scheduler.rs` by a cron
//! scheduler.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keepcount::reconcile::{
    Columns, Mode, Options, Reconciler, Report, SqliteAudit, SqliteRows, SystemRuntime, Token, run,
};
use keepcount::{Cause, Error, Record, SqliteStore, Tally};
use rusqlite::Connection;

keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
    }
}

/// The repair of one database; clones share one stop flag.
#[derive(Debug, Clone)]
pub struct Repair {
    db: PathBuf,
    token_path: PathBuf,
    stop: Arc<AtomicBool>,
}

/// The pages of one part: few, so that the demonstration takes several parts.
const PAGES: u64 = 2;
/// The keys of one page.
const PAGE_KEYS: usize = 4;

impl Repair {
    /// Creates the repair of this database; if it does not exist, creates a demonstration with
    /// votes and drift.
    pub fn open(db: &Path) -> Result<Self, Cause> {
        if !db.exists() {
            create_example(&Connection::open(db)?)?;
        }
        let token_path = db.with_added_extension("token");
        Ok(Self { db: db.to_owned(), token_path, stop: Arc::default() })
    }

    /// Runs the next pages. It blocks its thread. Make one call at a time, because there is one
    /// token.
    pub fn run_part(&self) -> Result<Report, Cause> {
        self.resume().map_err(|error| match error.downcast_ref() {
            // Do not silently start from the beginning: a run that always starts again never
            // reaches the end.
            Some(Error::Token { .. }) => {
                let path = self.token_path.display();
                format!(
                    "{error}\nthe token in {path} cannot be used; delete the file to start again"
                )
                .into()
            }
            _ => error,
        })
    }

    fn resume(&self) -> Result<Report, Cause> {
        let conn = Connection::open(&self.db)?;
        let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
        let votes = SqliteRows::of("votes", |row| Ok(Vote(row.get("show_id")?)));
        audit.add(votes.key(SHOW_VOTES, Columns::of(["show_id"]).count()))?;
        let options = Options::default().page(PAGE_KEYS).max_pages(PAGES);
        let mut repair = match fs::read(&self.token_path) {
            Ok(text) => {
                let token: Token = String::from_utf8_lossy(&text).parse()?;
                Reconciler::resume(Mode::Repair, &SCHEMA, &token, options)?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Reconciler::new(Mode::Repair, &SCHEMA, options)?
            }
            Err(error) => return Err(error.into()),
        };
        let result = run(&mut repair, &mut audit, &mut SystemRuntime::new().stop_flag(&self.stop));
        if !matches!(result, Err(Error::Token { .. })) {
            // Save it also after an error: the pages before the error are done.
            self.save_token(repair.token())?;
        }
        Ok(result?)
    }

    /// Writes the token to a file next to the old one and renames it, so that a process that is
    /// killed leaves the old token or the new one. Removes the file if there is no token.
    fn save_token(&self, token: Option<Token>) -> std::io::Result<()> {
        let Some(token) = token else {
            return if self.token_path.exists() {
                fs::remove_file(&self.token_path)
            } else {
                Ok(())
            };
        };
        let new_path = self.token_path.with_added_extension("new");
        let mut file = File::create(&new_path)?;
        file.write_all(token.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(new_path, &self.token_path)
    }

    /// Ends the running part after its current page. A part that begins later does nothing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The command line of a process: `[DB [ROUNDS]]`.
#[derive(Debug)]
pub struct Arguments {
    /// The repair of the database.
    pub repair: Repair,
    /// The number of parts after which it ends; unlimited by default, and four for the
    /// demonstration.
    pub rounds: usize,
    /// The demonstration's folder, kept until the process ends.
    _folder: Option<tempfile::TempDir>,
}

impl Arguments {
    /// Reads the arguments of this process.
    pub fn from_env() -> Result<Self, Cause> {
        let mut words = std::env::args_os().skip(1);
        let Some(db) = words.next() else {
            let folder = tempfile::tempdir()?;
            let repair = Repair::open(&folder.path().join("votes.db"))?;
            return Ok(Self { repair, rounds: 4, _folder: Some(folder) });
        };
        let rounds = words.next().map(|word| word.to_string_lossy().parse()).transpose()?;
        Ok(Self {
            repair: Repair::open(Path::new(&db))?,
            rounds: rounds.unwrap_or(usize::MAX),
            _folder: None,
        })
    }
}

/// Prints the error, if any, and returns the exit code.
pub fn exit_code(result: Result<(), Cause>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Creates thirty shows with votes. One total is wrong, one is missing, and one belongs to no show.
fn create_example(conn: &Connection) -> Result<(), Cause> {
    conn.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE votes (show_id INTEGER NOT NULL);
         CREATE INDEX votes_by_show ON votes (show_id)",
    )?;
    SqliteStore::new(conn, &SCHEMA).create()?;
    conn.execute_batch(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300)
         INSERT INTO votes SELECT n % 30 FROM n;
         INSERT INTO show_votes SELECT show_id, 10 + (show_id = 7) FROM votes WHERE show_id <> 20 GROUP BY show_id;
         INSERT INTO show_votes VALUES (1000, 5)",
    )?;
    Ok(())
}
