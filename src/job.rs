//! Work that is done every interval, on a thread of its own that sleeps until it is due: a repair, say, or a
//! [backfill](crate::reconcile::Mode::Backfill) of counters that came new (docs/deploy.md has a job that does either).
//!
//! A [`Schedule`] says when work is due, without clock or thread; [`Schedule::spawn`] starts the thread, and the
//! [`Job`] that it gives stops, wakes and watches it. An application that has a scheduler does without this module.
//!
//! # Examples
//!
//! A repair that does a hundred pages every ten minutes, keeps its place between them, and ends between two pages when
//! the job is stopped:
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use std::time::Duration;
//!
//! use keepcount::job::Schedule;
//! use keepcount::reconcile::{Mode, Options, Outcome, Reconciler, Source, SqliteAudit, SystemRuntime, run};
//! # use keepcount::{Counter, CounterId, Record, Schema, SqliteStore, Tally};
//! # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
//! # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
//! # struct Vote { show: i64 }
//! # impl Record for Vote {
//! #     const COUNTERS: &'static [CounterId] = &[SHOW_VOTES.id()];
//! #     fn tally(&self, to: &mut Tally<'_>) { to.add(SHOW_VOTES, self.show, 1); }
//! # }
//! # let conn = rusqlite::Connection::open_in_memory()?;
//! # conn.execute_batch("CREATE TABLE votes (show_id INTEGER); CREATE INDEX votes_by_show ON votes (show_id)")?;
//! # SqliteStore::new(&conn, &SCHEMA).create()?;
//!
//! let mut place = None;
//! let job = Schedule::every(Duration::from_secs(10 * 60)).jitter_percent(10).spawn("repair", move |stop| {
//!     let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
//!     let votes = Source::table("votes", ["show_id"]);
//!     audit.add(SHOW_VOTES, votes.rows("show_id", |row| Ok(Vote { show: row.get(0)? })))?;
//!     let options = Options::default().max_pages(100);
//!     let mut repair = match &place {
//!         Some(token) => Reconciler::resume(Mode::Repair, &SCHEMA, token, options)?,
//!         None => Reconciler::new(Mode::Repair, &SCHEMA, options)?,
//!     };
//!     let done = run(&mut repair, &mut audit, &mut SystemRuntime::new().stop_flag(stop));
//!     place = repair.token(); // also after an error: the pages before it are done
//!     let report = done?;
//!     println!("{}", report.table());
//!     // Rows of some counter cannot be counted.
//!     if report.outcome == Outcome::Incomplete { Err(report.to_string().into()) } else { Ok(()) }
//! })?;
//!
//! job.run_now(); // say, because an operator asked
//! let status = job.join(); // at the process's end
//! assert_eq!(status.last_error, None);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Cause, Error, Result, chain};

/// When work is due: a first time, then every interval, each moved by a jitter that a seed makes.
///
/// Due times are counted from 0 and measured from the moment at which the job is spawned. They do not shift: a run that
/// takes long or begins late moves none of those that follow.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use keepcount::job::Schedule;
///
/// let hourly = Schedule::every(Duration::from_secs(3600));
/// assert_eq!(hourly.due(0), Duration::ZERO);
/// assert_eq!(hourly.due(3), Duration::from_secs(3 * 3600));
///
/// // A run of two and a half hours: what was due meanwhile is skipped.
/// assert_eq!(hourly.next_after(Duration::from_secs(150 * 60)), 3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: Duration,
    first: Duration,
    jitter_percent: u8,
    seed: u64,
    slow_after: u32,
}

/// So that two due times are never nearer than half an interval.
const MAX_JITTER: u8 = 50;
/// A job that keeps panicking takes one due time of this many.
const SLOWED: u64 = 10;
const SECOND: u128 = 1_000_000_000; // in nanoseconds

impl Schedule {
    /// Work that is due every `interval`, at first at once, without jitter.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self { interval, first: Duration::ZERO, jitter_percent: 0, seed: 0, slow_after: 10 }
    }

    /// Makes the first run due so long after the job was spawned; zero by default, so that a process that is restarted
    /// more often than its interval gets its work done all the same.
    #[must_use]
    pub const fn first_after(mut self, delay: Duration) -> Self {
        self.first = delay;
        self
    }

    /// Moves each due time, the first too, to a later one by up to this share of the interval, 0 to 50; 0 by default.
    ///
    /// Processes that start together then do not work together, where their [`seed`](Self::seed) differs.
    #[must_use]
    pub const fn jitter_percent(mut self, percent: u8) -> Self {
        self.jitter_percent = percent;
        self
    }

    /// What the jitter is made of; 0 by default. Processes need seeds that differ: a process id, a hash of the host's
    /// name.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// From this many panics in a row on, takes only every tenth due time until a run does not panic, so that logs are
    /// not flooded; 10 by default.
    #[must_use]
    pub const fn slow_after(mut self, panics: u32) -> Self {
        self.slow_after = panics;
        self
    }

    /// The due time of this number, from 0 on, since the job was spawned.
    #[must_use]
    pub fn due(&self, number: u64) -> Duration {
        let interval = self.interval_nanos();
        let latest = interval.saturating_mul(u128::from(self.jitter_percent.min(MAX_JITTER))) / 100;
        let jitter = share_of(latest, splitmix64(self.seed, number));
        let nanos = self.first.as_nanos().saturating_add(interval.saturating_mul(number.into())).saturating_add(jitter);
        u64::try_from(nanos / SECOND)
            .map_or(Duration::MAX, |seconds| Duration::new(seconds, u32::try_from(nanos % SECOND).unwrap_or_default()))
    }

    /// The number of the first due time that is later than this moment.
    #[must_use]
    pub fn next_after(&self, moment: Duration) -> u64 {
        let Some(since_first) = moment.checked_sub(self.first) else { return 0 };
        // The jitter is half an interval at most, so only this one and the next can be the first that is later.
        let number = u64::try_from(since_first.as_nanos() / self.interval_nanos()).unwrap_or(u64::MAX);
        if self.due(number) > moment { number } else { number.saturating_add(1) }
    }

    /// Starts a thread of this name that does the work whenever it is due, one run at a time, until the job is stopped.
    ///
    /// The flag that the work is handed becomes true when the job is to stop: it is what
    /// [`SystemRuntime::stop_flag`](crate::reconcile::SystemRuntime::stop_flag) takes, and work that takes long should look at it. Work
    /// that sets it ends its own job. An error or a panic is kept in the [`Status`], and the work is done again when it
    /// is next due; where panics abort, the process ends as it would anywhere.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] when the interval is zero, the jitter is over 50 percent, the name has a NUL in it, or the
    /// system gives no thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::time::Duration;
    ///
    /// use keepcount::job::Schedule;
    ///
    /// let (done, dones) = mpsc::channel();
    /// let job = Schedule::every(Duration::from_millis(1)).spawn("count", move |_| Ok(done.send(())?))?;
    /// for _ in 0..3 {
    ///     dones.recv()?;
    /// }
    /// assert!(job.join().runs >= 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn(
        self,
        name: impl Into<String>,
        work: impl FnMut(&AtomicBool) -> Result<(), Cause> + Send + 'static,
    ) -> Result<Job> {
        self.check()?;
        let name = name.into();
        if name.contains('\0') {
            return Err(Error::invalid_use("job name", "it has a NUL in it"));
        }
        let shared = Arc::new(Shared {
            schedule: self,
            #[allow(clippy::disallowed_methods)] // the thread is where the clock is
            spawned: Instant::now(),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            woken: Condvar::new(),
        });
        let threads = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name).spawn(move || threads.run(work));
        let thread = thread.map_err(|error| Error::invalid_use("job", format!("it gets no thread: {error}")))?;
        Ok(Job { shared, thread: Some(thread) })
    }

    fn check(&self) -> Result<()> {
        if self.interval.is_zero() {
            return Err(Error::invalid_use("interval", "it is zero"));
        }
        if self.jitter_percent > MAX_JITTER {
            let reason = format!("{} is not within 0 to {MAX_JITTER}", self.jitter_percent);
            return Err(Error::invalid_use("jitter percent", reason));
        }
        Ok(())
    }

    /// Never zero, which only `spawn` refuses.
    fn interval_nanos(&self) -> u128 {
        self.interval.as_nanos().max(1)
    }
}

/// A job's thread, as its owner sees it; dropping it stops the thread and waits for it, as [`join`](Self::join) does.
///
/// So no work is under way when its owner is gone, and a run that does not look at its stop flag holds up the drop. In
/// async code, join it where blocking is allowed.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use keepcount::job::Schedule;
///
/// let hour = Duration::from_secs(3600);
/// let job = Schedule::every(hour).first_after(hour).spawn("nothing", |_| Ok(()))?;
/// assert_eq!(job.status().next_due, Some(hour));
/// assert_eq!(job.join().runs, 0); // at once: it sleeps
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    /// None once it was joined.
    thread: Option<JoinHandle<()>>,
}

impl Job {
    /// Tells the thread to end, after the run that is under way, and does not wait; a thread that sleeps ends at once.
    pub fn stop(&self) {
        // Under the lock: else a thread that has just looked at the flag would miss the call, and sleep.
        let state = self.shared.state.lock();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.shared.woken.notify_one();
    }

    /// Stops the job, waits for its thread, and says how it went; called by the work itself, it cannot wait.
    #[must_use = "`stop` alone does not wait, and dropping the job does"]
    pub fn join(mut self) -> Status {
        self.end();
        self.status()
    }

    /// Has the work done now, before it is due; due times stay where they are. While a run is under way, one more
    /// follows it, however often this is called. A job that is stopped runs no more.
    pub fn run_now(&self) {
        self.shared.state.lock().asked = true;
        self.shared.woken.notify_one();
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.shared.state.lock();
        let stopped = self.shared.stop.load(Ordering::Relaxed);
        Status {
            next_due: (!stopped).then(|| self.shared.schedule.due(self.shared.next_number(&state))),
            age: self.shared.spawned.elapsed(),
            ..state.status.clone()
        }
    }

    fn end(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take()
            // The work may own its job; a thread that waits for itself waits for ever.
            && thread.thread().id() != thread::current().id()
        {
            // The work's panics are contained; one of its drop has been printed, and there is nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a job goes: counts and times of its runs, times since it was spawned.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use keepcount::job::Status;
///
/// /// For a health check: the last run failed, or none has ended for two hours.
/// fn is_ill(status: &Status) -> bool {
///     let quiet = status.age.saturating_sub(status.last_ended.unwrap_or_default());
///     status.failing || quiet > Duration::from_secs(2 * 3600)
/// }
/// assert!(!is_ill(&Status::default()));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Runs that have ended, in whatever way.
    pub runs: u64,
    /// Those of them that ended in an error.
    pub failures: u64,
    /// Those of them that ended in a panic.
    pub panics: u64,
    /// Due times that passed while a run was under way, or that a job that keeps panicking let pass.
    pub skipped: u64,
    /// What the latest error said, with its causes, or the latest panic; it stays when later runs end well.
    pub last_error: Option<String>,
    /// Whether the last run ended in an error or a panic.
    pub failing: bool,
    /// Whether a run is under way.
    pub running: bool,
    /// When the last run started.
    pub last_started: Option<Duration>,
    /// When the last run that has ended did.
    pub last_ended: Option<Duration>,
    /// When the next run is due; none when the job is stopped.
    pub next_due: Option<Duration>,
    /// How long ago the job was spawned.
    pub age: Duration,
}

/// What the thread and its job share.
#[derive(Debug)]
struct Shared {
    schedule: Schedule,
    spawned: Instant,
    stop: AtomicBool,
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Whether somebody wants a run before it is due.
    asked: bool,
    /// The number of the first due time that was neither taken nor skipped.
    next: u64,
    panics_in_a_row: u32,
    status: Status,
}

/// How a run ended.
#[derive(Debug)]
enum Outcome {
    Well,
    Failed(String),
    Panicked(String),
}

impl Shared {
    /// The thread: one loop, so that no run ever overlaps another.
    fn run(&self, mut work: impl FnMut(&AtomicBool) -> Result<(), Cause>) {
        while self.begin() {
            // The error's text is made, and the error dropped, where a panic of either is contained too.
            let ended = catch_unwind(AssertUnwindSafe(|| work(&self.stop).map_err(|error| chain(&*error))));
            self.report(match ended {
                Ok(Ok(())) => Outcome::Well,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic_text(panic)),
            });
        }
    }

    /// Sleeps until a run is due or asked for; false when there is to be none.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let (now, due) = (self.spawned.elapsed(), self.schedule.due(self.next_number(&state)));
            if now >= due || state.asked {
                // A run that was asked for takes no due time, unless it has come.
                state.next = state.next.saturating_add(u64::from(now >= due));
                state.asked = false;
                state.status.running = true;
                state.status.last_started = Some(now);
                return true;
            }
            self.woken.wait_for(&mut state, due.saturating_sub(now));
        }
    }

    /// The number of the due time that the job sleeps for.
    fn next_number(&self, state: &State) -> u64 {
        let slowed = state.panics_in_a_row >= self.schedule.slow_after.max(1);
        state.next.saturating_add(if slowed { SLOWED - 1 } else { 0 })
    }

    /// Takes down how a run ended, and lets pass what was due meanwhile.
    fn report(&self, outcome: Outcome) {
        let mut state = self.state.lock();
        let now = self.spawned.elapsed();
        let panicked = matches!(outcome, Outcome::Panicked(_));
        state.panics_in_a_row = if panicked { state.panics_in_a_row.saturating_add(1) } else { 0 };
        let passed = self.schedule.next_after(now).saturating_sub(state.next);
        state.next += passed;

        let status = &mut state.status;
        status.runs += 1;
        status.skipped += passed;
        status.running = false;
        status.last_ended = Some(now);
        status.failing = !matches!(outcome, Outcome::Well);
        match outcome {
            Outcome::Well => {}
            Outcome::Failed(error) => {
                status.failures += 1;
                status.last_error = Some(error);
            }
            Outcome::Panicked(message) => {
                status.panics += 1;
                status.last_error = Some(format!("panic: {message}"));
            }
        }
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let other = match panic.downcast::<&str>() {
        Ok(text) => return (*text).to_owned(),
        Err(other) => other,
    };
    match other.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => {
            // Its drop might panic as well, and end the thread.
            std::mem::forget(other);
            "something that is no text".to_owned()
        }
    }
}

/// A share of 0 to `most`, as `random` is one of 0 to the largest number.
fn share_of(most: u128, random: u64) -> u128 {
    // Whole and rest apart: the product of a long time would leave 128 bits.
    let (whole, rest) = (most >> 64, most & u128::from(u64::MAX));
    let random = u128::from(random);
    whole * random + ((rest * random) >> 64)
}

/// Steele, Lea, Flood: the `number`th output for this seed, without those before it.
fn splitmix64(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
