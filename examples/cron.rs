//! A process for cron: each call repairs or verifies some pages, and saves its token in a file for
//! the next call.
//!
//! ```text
//! cargo run --example cron                    the demonstration: calls itself until done
//! */10 * * * *  cron --db votes.db            repairs 100 pages every ten minutes, and starts
//!                                             again when it is complete
//! 0 3 * * 0     cron --db votes.db --verify   only verifies; its token is in another file
//! * * * * *     cron --db votes.db --backfill fills new counters, once every writer runs their
//!                                             hooks (docs/deploy.md)
//! ```
//!
//! Exit codes: 0 complete and clean, or repaired; 1 an error; 2 a verify found drift, whether it
//! was complete or not; 3 stopped at the limit: call it again.

use std::error::Error;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use keepcount::reconcile::{
    Columns, Mode, Options, Outcome, Reconciler, Report, SqliteAudit, SqliteRows, SystemRuntime,
    Token, run,
};
use keepcount::{Record, SqliteStore, Sweep, Tally};
use rusqlite::Connection;

keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
    }
}

/// Repairs the counters of votes, a bounded number of pages a call.
#[derive(Parser)]
struct Cli {
    /// The database; if it does not exist, it is made with votes and drift. Without it: the
    /// demonstration, in a temporary folder.
    #[arg(long)]
    db: Option<PathBuf>,
    /// The file that keeps the token between two calls; by default in the database's folder.
    #[arg(long)]
    token: Option<PathBuf>,
    /// Pages of one call.
    #[arg(long, default_value_t = 100)]
    pages: u64,
    /// Only verify.
    #[arg(long)]
    verify: bool,
    /// Repair, and make each counter ready that was compared to its end: every writer must run the
    /// hooks by now.
    #[arg(long, conflicts_with = "verify")]
    backfill: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap would exit with 2 for wrong usage, which is the exit code for drift here.
        Err(usage) => {
            return ExitCode::from(u8::from(usage.print().is_err() || usage.use_stderr()));
        }
    };
    let code = if let Some(db) = &cli.db { call(&cli, db) } else { demonstration(cli) };
    ExitCode::from(code.unwrap_or_else(|error| {
        eprintln!("{error}");
        1
    }))
}

/// Repeats calls until one ends with another exit code than 3.
fn demonstration(mut cli: Cli) -> Result<u8, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    (cli.pages, cli.token) = (2, None);
    loop {
        let code = call(&cli, &folder.path().join("votes.db"))?;
        println!("exit code {code}");
        if code != 3 {
            return Ok(code);
        }
    }
}

/// Runs one call; returns its exit code.
fn call(cli: &Cli, db: &Path) -> Result<u8, Box<dyn Error>> {
    let mode = match cli {
        Cli { verify: true, .. } => Mode::Verify,
        Cli { backfill: true, .. } => Mode::Backfill,
        _ => Mode::Repair,
    };
    let token_path = cli.token.clone().unwrap_or_else(|| with_suffix(db, &format!("{mode}-token")));
    // Held until this call ends. Two calls at once would not harm totals, but only one of their
    // tokens could be saved.
    let lock = File::create(with_suffix(&token_path, "lock"))?;
    lock.try_lock().map_err(|error| format!("another call is at work: {error}"))?;

    let conn = if db.exists() { Connection::open(db)? } else { create_example(db)? };
    let report = run_pages(&conn, mode, cli.pages, &token_path).map_err(|error| {
        match error.downcast_ref() {
            // Do not silently start from the beginning: a run that always starts again never
            // reaches the end.
            Some(keepcount::Error::Token { .. }) => format!(
                "{error}\nthe token in {} cannot be used; delete the file to start again",
                token_path.display()
            )
            .into(),
            _ => error,
        }
    })?;
    println!("{}", report.table());
    if report.outcome == Outcome::Incomplete {
        return Err(
            "rows of some counters cannot be counted; the table names them, SqliteAudit::faulty_rows lists them".into(),
        );
    }
    if mode == Mode::Repair && report.complete() {
        // Removes totals that are 0, a page at a time, while writers go on.
        let mut sweep = Sweep::new();
        while !SqliteStore::new(&conn, &SCHEMA).sweep(&mut sweep)?.complete {}
    }
    Ok(match mode {
        // Check this before the limit: later calls do not report the drift that this one found.
        Mode::Verify if report.drift() > 0 => 2,
        _ if !report.complete() => 3,
        _ => 0,
    })
}

/// Runs a bounded number of pages from the saved token on, and saves the new token.
fn run_pages(
    conn: &Connection,
    mode: Mode,
    pages: u64,
    token_path: &Path,
) -> Result<Report, Box<dyn Error>> {
    let mut audit = SqliteAudit::new(conn, &SCHEMA)?;
    let votes = SqliteRows::of("votes", |row| Ok(Vote(row.get("show_id")?)));
    audit.add(votes.key(SHOW_VOTES, Columns::of(["show_id"]).count()))?;
    // Pages this small are for the demonstration only.
    let options = Options::default().page(4).max_pages(pages);
    let mut reconciler = match fs::read(token_path) {
        Ok(text) => Reconciler::resume(
            mode,
            &SCHEMA,
            &String::from_utf8_lossy(&text).parse::<Token>()?,
            options,
        )?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Reconciler::new(mode, &SCHEMA, options)?
        }
        Err(error) => return Err(error.into()),
    };
    let result = run(&mut reconciler, &mut audit, &mut SystemRuntime::new());
    if !matches!(result, Err(keepcount::Error::Token { .. })) {
        // Save it also after an error: the pages before the error are done.
        save_token(token_path, reconciler.token())?;
    }
    Ok(result?)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Writes the token to a file next to the old one and renames it, so that a process that is killed
/// leaves the old token or the new one. Removes the file if there is no token.
fn save_token(path: &Path, token: Option<Token>) -> std::io::Result<()> {
    let Some(token) = token else {
        return if path.exists() { fs::remove_file(path) } else { Ok(()) };
    };
    let new_path = with_suffix(path, "new");
    let mut file = File::create(&new_path)?;
    file.write_all(token.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(new_path, path)
}

/// Creates thirty shows with votes. One total is wrong, one is missing, and one belongs to no show.
fn create_example(path: &Path) -> Result<Connection, Box<dyn Error>> {
    let conn = Connection::open(path)?;
    conn.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE votes (show_id INTEGER NOT NULL);
         CREATE INDEX votes_by_show ON votes (show_id)",
    )?;
    SqliteStore::new(&conn, &SCHEMA).create()?;
    conn.execute_batch(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300)
         INSERT INTO votes SELECT n % 30 FROM n;
         INSERT INTO show_votes SELECT show_id, 10 + (show_id = 7) FROM votes WHERE show_id <> 20 GROUP BY show_id;
         INSERT INTO show_votes VALUES (1000, 5)",
    )?;
    Ok(conn)
}
