//! The command line: its words, and which part of the application each calls.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use keepcount::reconcile::Mode;
use keepcount::{SqliteStore, Store as _};

use crate::audit::{self, Scope};
use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::progress::Progress;
use crate::schema::{self, C};
use crate::text::number;
use crate::{demo, replay};

/// A concert site whose counters are kept by keepcount. Without a command: the demonstration.
#[derive(Debug, Parser)]
#[command(name = "concert", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Demonstrate on these events instead of a season made for the purpose
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every event with its hooks; goes on where an earlier replay of the same stream ended
    Replay {
        /// Events, one JSON object a line, plain or gzip
        #[arg(value_name = "EVENTS.jsonl[.gz]")]
        events: PathBuf,
        /// The database; made when absent
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
        /// The name under which the position is kept [default: the events file's name without .gz]
        #[arg(long, value_name = "NAME")]
        stream: Option<String>,
    },
    /// Print a counter: key TAB total, in key order, zeros left out
    Totals {
        /// For example setlist.score
        counter: String,
        /// A database that replay has made
        #[arg(long, value_name = "FILE")]
        db: PathBuf,
    },
    /// Compare totals with the rows that they count
    Verify {
        #[command(flatten)]
        audit: AuditArgs,
    },
    /// Compare totals with the rows that they count, and mend those that differ
    Repair {
        #[command(flatten)]
        audit: AuditArgs,
        /// Repair even if a table of rows is empty while many totals are not 0
        #[arg(long, conflicts_with = "resume")]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// A database that replay has made
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// A counter, as often as wanted [default: all counters]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    counter: Vec<String>,
    /// Keys a page, 1 to 100000 [default: as many as suit the machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "resume")]
    page: Option<u32>,
    /// Stop after this many pages, counted over all counters [default: go to the end]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_pages: Option<u64>,
    /// How many keys that differ are listed for each counter [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    samples: Option<u32>,
    /// Go on where a stopped run ended; the token knows counters, page, samples and force
    #[arg(long, value_name = "TOKEN")]
    resume: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    Clean,
    /// A verify found totals that differ.
    Drift,
    /// A run stopped at a limit.
    Stopped,
}

impl Cli {
    pub fn run(self) -> Result<Outcome> {
        let mut out = BufWriter::new(io::stdout().lock());
        let outcome = match self.command {
            None => demo::run(&mut out, self.events.as_deref()).map(|()| Outcome::Clean),
            Some(Command::Replay { events, db, stream }) => {
                replay_file(&mut out, &events, &db, stream).map_err(|error| error.in_file(&db))
            }
            Some(Command::Totals { counter, db }) => {
                totals(&mut out, &counter, &db).map_err(|error| error.in_file(&db))
            }
            Some(Command::Verify { audit }) => run_audit(&mut out, Mode::Verify, audit, false),
            Some(Command::Repair { audit, force }) => run_audit(&mut out, Mode::Repair, audit, force),
        }?;
        out.flush()?;
        Ok(outcome)
    }
}

fn replay_file(out: &mut impl Write, events: &Path, db: &Path, stream: Option<String>) -> Result<Outcome> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream_name(events)?,
    };
    let mut progress = Progress::new();
    // Before the database: one is not to be made for events that cannot be read.
    let mut lines = Lines::open(events, &mut progress)?;
    let mut conn = schema::create(db)?;
    let done = replay::replay(&mut conn, &stream, &mut lines, &mut progress)?;
    writeln!(
        out,
        "stream {stream}: {} events applied in {} commits, {} statements on totals; {} lines were applied before",
        number(done.events),
        number(done.commits),
        number(done.statements),
        number(done.lines_before),
    )?;
    Ok(Outcome::Clean)
}

/// The last component of a path, without `.gz`.
fn stream_name(events: &Path) -> Result<String> {
    let name = events.file_name().ok_or_else(|| Error::said(format!("{}: not a file's name", events.display())))?;
    let name = name.to_string_lossy();
    Ok(name.strip_suffix(".gz").unwrap_or(&name).to_owned())
}

fn totals(out: &mut impl Write, counter: &str, db: &Path) -> Result<Outcome> {
    const PAGE: usize = 4096;
    let counter = C::LAYOUT.find(counter)?;
    let conn = schema::open_to_read(db)?;
    let cut = conn.unchecked_transaction()?; // all pages show one moment
    let mut store = SqliteStore::new(&cut, &C::LAYOUT);
    let mut after = None;
    loop {
        let page = store.page(counter, after.as_ref(), PAGE)?;
        for (key, total) in page.iter().filter(|(_, total)| *total != 0) {
            writeln!(out, "{}\t{total}", counter.show(key))?;
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => after = Some(key.clone()),
            _ => return Ok(Outcome::Clean),
        }
    }
}

fn run_audit(out: &mut impl Write, mode: Mode, args: AuditArgs, force: bool) -> Result<Outcome> {
    let scope = Scope {
        counters: args.counter,
        page: args.page,
        max_pages: args.max_pages,
        samples: args.samples,
        force,
        resume: args.resume,
    };
    let conn = match mode {
        Mode::Verify => schema::open_to_read(&args.db)?,
        Mode::Repair => schema::open(&args.db)?,
    };
    let report = audit::run(&conn, mode, &scope).map_err(|error| error.in_file(&args.db))?;
    audit::print(out, &report, args.json)?;
    Ok(audit::outcome(mode, &report))
}
