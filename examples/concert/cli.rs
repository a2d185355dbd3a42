//! The command line: its arguments, and which part of the application each command calls.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use keepcount::reconcile::{Mode, Report};
use keepcount::{Date, HalfLife};

use crate::audit::{self, Scope};
use crate::clock::seconds_now;
use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::lists::{self, Line, List};
use crate::postgres::Url;
use crate::progress::Progress;
use crate::schema::C;
use crate::site::{Database, Moment as _, Site as _};
use crate::sqlite::File;
use crate::text::number;
use crate::{demo, position, totals, verified, watch};

/// A concert site whose counters keepcount keeps. Without a command: the demonstration.
#[derive(Debug, Parser)]
#[command(name = "concert", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Demonstrate on these events instead of a generated season
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply every event with its hooks; resumes where an earlier replay of the same stream ended
    Replay {
        /// Events, one JSON object a line, plain or gzip
        #[arg(value_name = "EVENTS.jsonl[.gz]")]
        events: PathBuf,
        /// The database: an SQLite file, made if it does not exist, or
        /// postgres://USER:PASSWORD@HOST:PORT/DATABASE, where tables are made
        #[arg(long, value_name = "FILE|URL")]
        db: PathBuf,
        /// The name under which the last applied line is kept, 1 to 256 bytes [default: the events
        /// file's name without .gz]
        #[arg(long, value_name = "NAME")]
        stream: Option<String>,
    },
    /// Print a counter: key TAB total, in key order, without zeros
    Totals {
        /// For example setlist.score
        counter: String,
        /// A database that replay has made
        #[arg(long, value_name = "FILE|URL")]
        db: PathBuf,
        /// Only for artist.shows_ahead, and required there: count the shows on this day and later
        #[arg(long, value_name = "DATE")]
        at: Option<Date>,
    },
    /// Print the first lines of a list: rank TAB id TAB score
    Top {
        #[command(flatten)]
        list: ListArgs,
        /// How many lines
        #[arg(long, value_name = "N", default_value = "10", allow_negative_numbers = true)]
        limit: usize,
    },
    /// Print the line of one id as top would print it; exit code 1 if it is not listed
    Rank {
        #[command(flatten)]
        list: ListArgs,
        /// The id as it is in the events, not escaped
        id: String,
    },
    /// Show counters, rates, lists and the last verifications while others write; on a terminal,
    /// until interrupted
    Watch {
        /// A database that replay has made
        #[arg(long, value_name = "FILE|URL")]
        db: PathBuf,
        /// The day, YYYY-MM-DD, at which shows and trending are listed [default: today in UTC]
        #[arg(long, value_name = "DATE")]
        at: Option<Date>,
    },
    /// Compare totals with the rows that they count
    Verify {
        #[command(flatten)]
        audit: AuditArgs,
    },
    /// Compare totals with the rows that they count, and repair those that differ
    Repair {
        #[command(flatten)]
        audit: AuditArgs,
        /// Repair even if a table of rows is empty while many totals are not 0
        #[arg(long, conflicts_with = "resume")]
        force: bool,
    },
    /// Fill new counters from the rows and make them ready to be read; every process that writes
    /// must run their hooks by now
    Backfill {
        #[command(flatten)]
        audit: AuditArgs,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Which list
    #[arg(value_name = "LIST")]
    name: lists::Name,
    /// A database that replay has made
    #[arg(long, value_name = "FILE|URL")]
    db: PathBuf,
    /// The day, YYYY-MM-DD, at which shows are listed, and at whose end in UTC trending is; artists
    /// are listed as they are now
    #[arg(long, value_name = "DATE")]
    at: Date,
    /// For trending: the time after which a vote weighs half; 6h, 1d or 7d [default: 7d]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    half_life: Option<HalfLife>,
}

#[derive(Debug, Args)]
struct AuditArgs {
    /// A database that replay has made
    #[arg(long, value_name = "FILE|URL")]
    db: PathBuf,
    /// A counter; may be repeated [default: all counters]
    #[arg(long, value_name = "NAME", conflicts_with = "resume")]
    counter: Vec<String>,
    /// Keys a page, 1 to 100000 [default: adapted to the machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), conflicts_with = "resume")]
    page: Option<u32>,
    /// Stop after this many pages, counted over all counters [default: go to the end]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_pages: Option<u64>,
    /// How many keys that differ are listed for each counter [default: 20]
    #[arg(long, value_name = "N", conflicts_with = "resume")]
    samples: Option<u32>,
    /// Resume where a stopped run ended; the token contains counters, page, samples and force
    #[arg(long, value_name = "TOKEN")]
    resume: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a command ended that did not fail: it decides the exit code.
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
            Some(command) => command.run(&mut out),
        }?;
        out.flush()?;
        Ok(outcome)
    }
}

impl Command {
    fn db(&self) -> &Path {
        match self {
            Self::Replay { db, .. } | Self::Totals { db, .. } | Self::Watch { db, .. } => db,
            Self::Top { list, .. } | Self::Rank { list, .. } => &list.db,
            Self::Verify { audit } | Self::Repair { audit, .. } | Self::Backfill { audit } => {
                &audit.db
            }
        }
    }

    /// The only place that chooses between the databases.
    fn run(self, out: &mut impl Write) -> Result<Outcome> {
        if let Some(url) = Url::of(self.db())? {
            return self.run_on(out, &url);
        }
        let file = File(self.db().to_owned());
        self.run_on(out, &file)
    }

    fn run_on(self, out: &mut impl Write, db: &impl Database) -> Result<Outcome> {
        let result = match self {
            Self::Replay { events, stream, .. } => replay_file(out, &events, db, stream),
            Self::Totals { counter, at, .. } => print_totals(out, &counter, db, at),
            Self::Top { list, limit } => top(out, db, &list, limit),
            Self::Rank { list, id } => rank(out, db, &list, &id),
            Self::Watch { at, .. } => watch_db(out, db, at),
            Self::Verify { audit } => run_audit(out, Mode::Verify, db, audit, false),
            Self::Repair { audit, force } => run_audit(out, Mode::Repair, db, audit, force),
            Self::Backfill { audit } => run_audit(out, Mode::Backfill, db, audit, false),
        };
        result.map_err(|error| error.in_db(db))
    }
}

fn replay_file(
    out: &mut impl Write,
    events: &Path,
    db: &impl Database,
    stream: Option<String>,
) -> Result<Outcome> {
    let stream = match stream {
        Some(stream) => stream,
        None => stream_name(events)?,
    };
    position::check_name(&stream)?;
    let mut progress = Progress::new();
    // Open the events before the database: events that cannot be read must not create a database.
    let mut lines = Lines::open(events, &mut progress)?;
    let done = db.create()?.replay(&stream, &mut lines, &mut progress)?;
    writeln!(
        out,
        "stream {stream}: {} events applied in {} commits, {} statements on totals and boards; {} lines were applied before",
        number(done.events),
        number(done.commits),
        number(done.statements),
        number(done.lines_before),
    )?;
    Ok(Outcome::Clean)
}

/// Returns the last component of a path, without `.gz`.
fn stream_name(events: &Path) -> Result<String> {
    let name = events
        .file_name()
        .ok_or_else(|| Error::said(format!("{}: not a file's name", events.display())))?;
    let name = name.to_string_lossy();
    Ok(name.strip_suffix(".gz").unwrap_or(&name).to_owned())
}

fn print_totals(
    out: &mut impl Write,
    counter: &str,
    db: &impl Database,
    at: Option<Date>,
) -> Result<Outcome> {
    let counter = C::SCHEMA.find(counter)?;
    let mut site = db.open_to_read()?;
    totals::print(out, &mut site.moment()?.store(), counter, at)?;
    Ok(Outcome::Clean)
}

fn top(out: &mut impl Write, db: &impl Database, args: &ListArgs, limit: usize) -> Result<Outcome> {
    let list = List::new(args.name, args.half_life)?;
    let mut site = db.open_to_read()?;
    for line in list.top(&mut site.moment()?.store(), args.at, limit)? {
        print_line(out, &line)?;
    }
    Ok(Outcome::Clean)
}

fn rank(out: &mut impl Write, db: &impl Database, args: &ListArgs, id: &str) -> Result<Outcome> {
    let list = List::new(args.name, args.half_life)?;
    let mut site = db.open_to_read()?;
    let line = list.rank(&mut site.moment()?.store(), args.at, id)?;
    let line = line.ok_or_else(|| {
        Error::said(format!("{} {id:?} is not listed on {}", list.what(), args.at))
    })?;
    print_line(out, &line)?;
    Ok(Outcome::Clean)
}

fn print_line(out: &mut impl Write, line: &Line) -> Result<()> {
    Ok(writeln!(out, "{}\t{}\t{}", line.rank, line.id, line.score)?)
}

fn watch_db(out: &mut impl Write, db: &impl Database, at: Option<Date>) -> Result<Outcome> {
    watch::run(out, &mut db.open_to_read()?, db, at)?;
    Ok(Outcome::Clean)
}

fn run_audit(
    out: &mut impl Write,
    mode: Mode,
    db: &impl Database,
    args: AuditArgs,
    force: bool,
) -> Result<Outcome> {
    let scope = Scope {
        counters: args.counter,
        page: args.page,
        max_pages: args.max_pages,
        samples: args.samples,
        force,
        resume: args.resume,
    };
    let mut site = match mode {
        Mode::Verify => db.open_to_read()?,
        Mode::Repair | Mode::Backfill => db.open()?,
    };
    let report = audit::run(&mut site, mode, &scope)?;
    note(db, &report);
    audit::print(out, &report, args.json)?;
    audit::outcome(mode, &report)
}

/// Notes which counters were found clean, over another connection, because a verify's own is
/// read-only. If this fails, it prints a warning: the result of the run does not depend on it.
fn note(db: &impl Database, report: &Report) {
    if verified::has_clean_counters(report) {
        let noted = db.open_to_note().and_then(|mut site| site.note(report, seconds_now()));
        if let Err(error) = noted.map_err(|error| error.in_db(db)) {
            let _ =
                writeln!(io::stderr(), "{error}; it is not noted when counters were found clean");
        }
    }
}
