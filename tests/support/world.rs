//! A runtime with a manual clock, and traces of the statements that SQLite ran.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keepcount::Schema;
use keepcount::reconcile::{Audit, Mode, Options, Reconciler, Report, Runtime, Token, run};
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, StatementStatus};

/// A clock that stands still until a test advances it. Clones share the time.
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

/// A runtime without a real clock: a wait advances the clock and is recorded.
#[derive(Debug, Default)]
pub struct World {
    pub clock: Clock,
    pub waits: Vec<(u64, String)>,
    /// The throttle's answers, one for each page. When they are used up, the answer is `shut`.
    pub throttles: VecDeque<Option<&'static str>>,
    /// The throttle's answer when `throttles` is used up. None lets pages through.
    pub shut: Option<&'static str>,
    /// Stops the run once it has asked this many times whether to stop.
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

impl Runtime for World {
    fn now(&mut self) -> Duration {
        self.clock.now()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        assert!(self.waits.len() < 10_000, "the run waits without end");
        self.waits.push((u64::try_from(time.as_millis()).unwrap(), reason.to_owned()));
        self.clock.pass(time);
    }

    fn stopped(&mut self) -> bool {
        self.asked += 1;
        self.stop_at.is_some_and(|at| self.asked > at)
    }

    fn throttle(&mut self) -> Option<String> {
        self.throttles.pop_front().unwrap_or(self.shut).map(str::to_owned)
    }
}

/// A whole run: its report, or its error.
pub fn run_whole(
    mode: Mode,
    schema: &Schema,
    options: Options,
    audit: &mut impl Audit,
) -> keepcount::Result<Report> {
    let mut reconciler = Reconciler::new(mode, schema, options)?;
    run(&mut reconciler, audit, &mut World::default())
}

/// The token as a later process gets it: formatted and parsed.
pub fn through_text(token: &Token) -> Token {
    token.to_string().parse().unwrap()
}

/// The text of every statement that a connection starts.
#[derive(Debug, Clone, Default)]
pub struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    pub fn on(conn: &mut Connection) -> Self {
        let trace = Self::default();
        let texts = Arc::clone(&trace.0);
        let note = move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(_, text) = event {
                texts.lock().unwrap().push(text.to_owned());
            }
        };
        conn.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note)).unwrap();
        trace
    }

    /// The statements since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// The statements since the last call by kind: reads, writes, and those that begin and end
    /// transactions.
    pub fn kinds(&self) -> Kinds {
        let mut kinds = Kinds::default();
        for text in self.take() {
            match text.split([' ', ';']).next().unwrap() {
                "SELECT" => kinds.reads += 1,
                "INSERT" | "UPDATE" | "DELETE" => kinds.writes += 1,
                _ => kinds.others.push(text),
            }
        }
        kinds
    }
}

/// The work of a connection's statements, in steps of SQLite's virtual machine. It is the same in
/// every run, and serves as a clock.
#[derive(Debug, Clone, Default)]
pub struct Work(Arc<Mutex<(u64, HashMap<String, u64>)>>);

impl Work {
    pub fn on(conn: &mut Connection) -> Self {
        let work = Self::default();
        let done = Arc::clone(&work.0);
        let note = move |event: TraceEvent<'_>| {
            if let TraceEvent::Profile(statement, _) = event {
                let steps = u64::try_from(statement.get_status(StatementStatus::VmStep)).unwrap();
                let mut done = done.lock().unwrap();
                let before = done.1.insert(statement.sql().into_owned(), steps).unwrap_or(0);
                // A statement's count restarts when it is prepared again.
                done.0 += steps.checked_sub(before).unwrap_or(steps);
            }
        };
        conn.trace_v2(TraceEventCodes::SQLITE_TRACE_PROFILE, Some(note)).unwrap();
        work
    }

    /// All steps so far.
    pub fn steps(&self) -> u64 {
        self.0.lock().unwrap().0
    }
}

/// The clock shows the work done, at about the time that it takes.
impl Runtime for Work {
    fn now(&mut self) -> Duration {
        Duration::from_nanos(self.steps() * 20)
    }

    fn wait(&mut self, _: Duration, _: &str) {}
}

/// Numbers of statements by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kinds {
    pub reads: usize,
    pub writes: usize,
    pub others: Vec<String>,
}
