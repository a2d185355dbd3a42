//! What the integration tests share: a clock that is turned by hand, and the number of times that SQLite ran a statement.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // each test file uses a part

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use keepcount::Layout;
use keepcount::reconcile::{Audit, Control, Mode, Options, Reconciler, Report, SqliteAudit, Token, run};
use keepcount::sql::{self, Dialect};
use rusqlite::{Connection, StatementStatus};

/// A clock that stands still until somebody turns it; clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct Clock(Rc<Cell<Duration>>);

impl Clock {
    pub fn now(&self) -> Duration {
        self.0.get()
    }

    pub fn pass(&self, time: Duration) {
        self.0.set(self.0.get() + time);
    }
}

/// The world around a run, without a real clock: a wait turns the clock and is written down.
#[derive(Debug, Default)]
pub struct World {
    pub clock: Clock,
    pub waits: Vec<(u64, String)>,
    /// What the gate says, one answer a page; open when they are used up.
    pub gates: VecDeque<Option<&'static str>>,
    /// The gate's answer when `gates` is used up.
    pub shut: Option<&'static str>,
    /// Stop when this many steps have been asked for.
    pub stop_at: Option<u32>,
    pub asked: u32,
}

impl World {
    pub fn at(clock: &Clock) -> Self {
        Self { clock: clock.clone(), ..Self::default() }
    }

    /// The waits in milliseconds.
    pub fn waited(&self) -> Vec<u64> {
        self.waits.iter().map(|(millis, _)| *millis).collect()
    }
}

impl Control for World {
    fn now(&mut self) -> Duration {
        self.clock.now()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        assert!(self.waits.len() < 10_000, "a run that waits for ever");
        self.waits.push((u64::try_from(time.as_millis()).unwrap(), reason.to_owned()));
        self.clock.pass(time);
    }

    fn stopped(&mut self) -> bool {
        self.asked += 1;
        self.stop_at.is_some_and(|at| self.asked > at)
    }

    fn gate(&mut self) -> Option<String> {
        self.gates.pop_front().unwrap_or(self.shut).map(str::to_owned)
    }
}

/// A whole run, or its error.
pub fn run_whole(
    mode: Mode,
    layout: &Layout,
    options: Options,
    audit: &mut impl Audit,
) -> keepcount::Result<Report> {
    let mut reconciler = Reconciler::new(mode, layout, options)?;
    run(&mut reconciler, audit, &mut World::default())
}

/// The token as a later process gets it: through its text.
pub fn through_text(token: &Token) -> Token {
    token.to_string().parse().unwrap()
}

/// How often a statement was run on this connection, as SQLite counts it; 0 for one that is not in the connection's cache, so its
/// capacity must exceed the number of statements in use.
pub fn runs(conn: &Connection, text: &str) -> i32 {
    conn.prepare_cached(text).unwrap().get_status(StatementStatus::Run)
}

/// How often totals were written by apply or mend.
pub fn writes(conn: &Connection, layout: &Layout) -> i32 {
    let upsert = |placed| runs(conn, &sql::upsert(Dialect::Sqlite, placed));
    let remove = |placed| runs(conn, &sql::remove_zero(Dialect::Sqlite, placed));
    layout.counters().iter().map(|placed| upsert(placed) + remove(placed)).sum()
}

/// The SQL of an audit's sources, in the order in which they were added: what `name` calls, one for each source.
///
/// The texts are private; the audit's Debug shows them, and with them SQLite can be asked what it did.
pub fn source_statements(audit: &SqliteAudit<'_>, name: &str) -> Vec<String> {
    let shown = format!("{audit:?}");
    let mark = format!(" {name}: \"");
    let texts: Vec<String> = shown
        .match_indices(&mark)
        .map(|(at, _)| {
            let rest = &shown[at + mark.len() - 1..];
            serde_json::Deserializer::from_str(rest).into_iter::<String>().next().unwrap().unwrap()
        })
        .collect();
    assert!(!texts.is_empty(), "no statement {name} in {shown}");
    texts
}
