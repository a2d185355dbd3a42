//! Counts the statements of keepcount as SQLite itself reports them: every statement on a table of
//! totals or of a leaderboard, and its rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use crate::error::Result;
use crate::replaced::Cost;
use crate::schema::C;

/// The counts of one trace.
#[derive(Debug, Clone, Default)]
pub struct Traced {
    /// On totals and leaderboards.
    pub all: Cost,
    /// Of these, on leaderboards.
    pub leaderboards: Cost,
    /// Every statement, including the application's.
    pub statements: u64,
}

/// What SQLite reports: statements and each row that they find, or statements alone, which takes
/// less time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    Rows,
    Statements,
}

/// Calls `run` with the connection, and counts the statements of keepcount in it.
pub fn trace<R>(
    conn: &mut Connection,
    detail: Detail,
    run: impl FnOnce(&mut Connection) -> Result<R>,
) -> Result<(R, Traced)> {
    let counted = Arc::new(Mutex::new(Traced::default()));
    let counts = Arc::clone(&counted);
    let mut known: HashMap<String, Option<Statement>> = HashMap::new();
    let count = move |event: TraceEvent<'_>| {
        let (text, begins) = match &event {
            TraceEvent::Stmt(_, text) => ((*text).into(), true),
            TraceEvent::Row(statement) => (statement.sql(), false),
            _ => return,
        };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.statements += u64::from(begins);
        let statement = match known.get(&*text) {
            Some(statement) => *statement,
            None => *known.entry(text.to_string()).or_insert_with(|| Statement::of(&text)),
        };
        let Some(statement) = statement else { return };
        let cost = match (begins, statement.writes) {
            (false, _) => Cost { rows_read: 1, ..Cost::default() },
            (true, false) => Cost { statements: 1, ..Cost::default() },
            // A write of keepcount writes one row, which it first reads.
            (true, true) => {
                Cost { statements: 1, rows_read: 1, rows_written: 1, ..Cost::default() }
            }
        };
        counts.all = counts.all.plus(&cost);
        if statement.of_leaderboard {
            counts.leaderboards = counts.leaderboards.plus(&cost);
        }
    };
    let events = match detail {
        Detail::Rows => TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_ROW,
        Detail::Statements => TraceEventCodes::SQLITE_TRACE_STMT,
    };
    conn.trace_v2(events, Some(count))?;
    let done = run(conn);
    conn.trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent<'_>)>)?;
    let counts = counted.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((done?, counts))
}

/// A statement of keepcount.
#[derive(Debug, Clone, Copy)]
struct Statement {
    writes: bool,
    of_leaderboard: bool,
}

impl Statement {
    /// Returns `None` for a statement of the application. keepcount quotes the names of its tables,
    /// and the application does not.
    fn of(text: &str) -> Option<Self> {
        let names = |table: &str| text.contains(&format!("\"{table}\""));
        let of_leaderboard = C::SCHEMA
            .leaderboard_ids()
            .iter()
            .any(|leaderboard| names(&leaderboard.name().replace('.', "_")));
        let total = C::SCHEMA.counters().iter().any(|spec| names(&spec.table_name()));
        let is_keepcount = of_leaderboard || total || names("keepcount_counters");
        is_keepcount.then(|| Self { writes: !text.starts_with("SELECT"), of_leaderboard })
    }
}
