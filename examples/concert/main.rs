//! A concert site on an SQLite file or on PostgreSQL, whose counters keepcount keeps. This file
//! maps the outcome of a command to its exit code.
//!
//! Read `rows.rs` (what counts), `app.rs` (the write paths with their hooks), `sqlite.rs` (rows,
//! totals and the offset in one transaction), `audit.rs` (verify and repair) and `lists.rs` (top
//! and rank), in this order; then what differs in `postgres/`.

mod app;
mod audit;
mod cli;
mod clock;
mod columns;
mod costs;
mod days;
mod demo;
mod error;
mod event;
mod figures;
mod lines;
mod lists;
mod position;
mod postgres;
mod progress;
mod replaced;
mod replay;
mod rows;
mod schema;
mod season;
mod site;
mod sqlite;
mod text;
mod totals;
mod traced;
mod verified;
mod watch;
mod worked;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Outcome};
use error::Error;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => {
            // If the usage cannot be printed, nothing else can be.
            let _ = usage.print();
            return if usage.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    match cli.run() {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Drift) => ExitCode::from(2),
        Ok(Outcome::Stopped) => ExitCode::from(3),
        // As in `totals | head`: the reader closed the pipe.
        Err(Error::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(1)
        }
    }
}
