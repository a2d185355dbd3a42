//! Background jobs: work that a thread does every interval, sleeping until it is due.
//!
//! The work can be a repair, or a [backfill](crate::reconcile::Mode::Backfill) of new counters
//! (docs/deploy.md has a job that does either).
//!
//! A [`Schedule`] computes when work is due, without clock or thread. [`Schedule::spawn`] starts
//! the thread, and the [`Job`] that it returns stops, wakes and watches it. If your application has
//! a scheduler, you do not need this module.
//!
//! # Examples
//!
//! A repair that does a hundred pages every ten minutes, resumes where it stopped, and ends between
//! two pages when the job is stopped:
//!
//! ```
//! # #[cfg(feature = "sqlite")] {
//! use std::time::Duration;
//!
//! use keepcount::job::Schedule;
//! use keepcount::reconcile::{
//!     Columns, Options, Outcome, SqliteAudit, SqliteRows, SystemRuntime, repair, run,
//! };
//! # use keepcount::{Record, SqliteStore, Tally};
//! # keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
//! # struct Vote { show: i64 }
//! # impl Record for Vote {
//! #     fn tally(&self, to: &mut Tally<'_>) { to.add(SHOW_VOTES, self.show, 1); }
//! # }
//! # let conn = rusqlite::Connection::open_in_memory()?;
//! # conn.execute_batch("CREATE TABLE votes (show_id INTEGER); CREATE INDEX votes_by_show ON votes (show_id)")?;
//! # SqliteStore::new(&conn, &SCHEMA).create()?;
//!
//! let mut place = None;
//! let job = Schedule::every(Duration::from_secs(10 * 60)).jitter_percent(10).spawn("repair", move |stop| {
//!     let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
//!     let votes = SqliteRows::of("votes", |row| Ok(Vote { show: row.get("show_id")? }));
//!     audit.add(votes.key(SHOW_VOTES, Columns::of(["show_id"]).count()))?;
//!     let options = Options::default().max_pages(100);
//!     let mut part = repair(&SCHEMA).options(options).resume(place.as_ref()).reconciler()?;
//!     let done = run(&mut part, &mut audit, &mut SystemRuntime::new().stop_flag(stop));
//!     place = part.token(); // also after an error: the pages before it are done
//!     let report = done?;
//!     println!("{}", report.table());
//!     match report.outcome {
//!         // Rows of some counter cannot be counted, or it has no source.
//!         Outcome::Incomplete | Outcome::Unchecked => Err(report.to_string().into()),
//!         _ => Ok(()),
//!     }
//! })?;
//!
//! job.run_now(); // for instance, because an operator asked
//! let status = job.join(); // at the end of the process
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

/// When work is due: a first time, then every interval, each moved by a jitter computed from a
/// seed.
///
/// Due times are counted from 0 and measured from the moment at which the job is spawned. They do
/// not shift: a run that takes long or begins late does not move the later ones.
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
/// // A run of two and a half hours: the due times in between are skipped.
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

/// The maximum jitter in percent: two due times are never closer than half an interval.
const MAX_JITTER: u8 = 50;
/// A job that keeps panicking takes one due time out of this many.
const SLOWED: u64 = 10;
const SECOND: u128 = 1_000_000_000; // in nanoseconds

impl Schedule {
    /// Work that is due every `interval`, for the first time at once, without jitter.
    #[must_use]
    pub const fn every(interval: Duration) -> Self {
        Self { interval, first: Duration::ZERO, jitter_percent: 0, seed: 0, slow_after: 10 }
    }

    /// Delays the first run by this much after the job is spawned.
    ///
    /// Zero by default, so that a process that restarts more often than its interval still gets its
    /// work done.
    #[must_use]
    pub const fn first_after(mut self, delay: Duration) -> Self {
        self.first = delay;
        self
    }

    /// Moves each due time, the first included, later by up to this share of the interval, 0 to 50;
    /// 0 by default.
    ///
    /// Processes that start together then do not work at the same time, if their
    /// [`seed`](Self::seed)s differ.
    #[must_use]
    pub const fn jitter_percent(mut self, percent: u8) -> Self {
        self.jitter_percent = percent;
        self
    }

    /// The seed that the jitter is computed from; 0 by default.
    ///
    /// Give each process a different one, for instance its process id or a hash of the host's name.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The number of panics in a row after which only every tenth due time is taken, until a run
    /// does not panic; 10 by default.
    ///
    /// It keeps logs from being flooded.
    #[must_use]
    pub const fn slow_after(mut self, panics: u32) -> Self {
        self.slow_after = panics;
        self
    }

    /// The due time with this number, from 0 on, measured from the moment the job is spawned.
    #[must_use]
    pub fn due(&self, number: u64) -> Duration {
        let interval = self.interval_nanos();
        let latest = interval.saturating_mul(u128::from(self.jitter_percent.min(MAX_JITTER))) / 100;
        let jitter = share_of(latest, splitmix64(self.seed, number));
        let nanos = self
            .first
            .as_nanos()
            .saturating_add(interval.saturating_mul(number.into()))
            .saturating_add(jitter);
        u64::try_from(nanos / SECOND).map_or(Duration::MAX, |seconds| {
            Duration::new(seconds, u32::try_from(nanos % SECOND).unwrap_or_default())
        })
    }

    /// The number of the first due time later than this moment.
    #[must_use]
    pub fn next_after(&self, moment: Duration) -> u64 {
        let Some(since_first) = moment.checked_sub(self.first) else { return 0 };
        // The jitter is at most half an interval, so the first later one is this one or the next.
        let number =
            u64::try_from(since_first.as_nanos() / self.interval_nanos()).unwrap_or(u64::MAX);
        if self.due(number) > moment { number } else { number.saturating_add(1) }
    }

    /// Starts a thread with this name that does the work whenever it is due, one run at a time,
    /// until the job is stopped.
    ///
    /// The flag that the work receives becomes true when the job must stop. Pass it to
    /// [`SystemRuntime::stop_flag`](crate::reconcile::SystemRuntime::stop_flag); long work should
    /// check it. Work that sets the flag ends its own job. An error or a panic is kept in the
    /// [`Status`], and the work is done again when it is next due. Where panics abort, the process
    /// ends as usual.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the interval is zero, the jitter is over 50 percent, the name
    /// contains a NUL, or the system cannot start a thread.
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
            #[allow(clippy::disallowed_methods)] // the real clock of the job
            spawned: Instant::now(),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            woken: Condvar::new(),
        });
        let threads = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name).spawn(move || threads.run(work));
        let thread = thread.map_err(|error| {
            Error::invalid_use("job", format!("its thread could not be started: {error}"))
        })?;
        Ok(Job { shared, thread: Some(thread) })
    }

    fn check(&self) -> Result<()> {
        if self.interval.is_zero() {
            return Err(Error::invalid_use("interval", "it is zero"));
        }
        if self.jitter_percent > MAX_JITTER {
            let reason = format!("{} is not between 0 and {MAX_JITTER}", self.jitter_percent);
            return Err(Error::invalid_use("jitter percent", reason));
        }
        Ok(())
    }

    /// Never zero; a zero interval is refused only by `spawn`.
    fn interval_nanos(&self) -> u128 {
        self.interval.as_nanos().max(1)
    }
}

/// The handle of a job's thread.
///
/// Dropping it stops the thread and waits for it, as [`join`](Self::join) does.
///
/// So no work is running when its owner is gone, and a run that does not check its stop flag delays
/// the drop. In async code, join it where blocking is allowed.
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
    /// `None` once it was joined.
    thread: Option<JoinHandle<()>>,
}

impl Job {
    /// Tells the thread to end after the current run, without waiting.
    ///
    /// A sleeping thread ends at once.
    pub fn stop(&self) {
        // Under the lock: otherwise a thread that has just checked the flag would miss the wake-up
        // and sleep.
        let state = self.shared.state.lock();
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(state);
        self.shared.woken.notify_one();
    }

    /// Stops the job, waits for its thread, and returns its final status.
    ///
    /// If the work itself calls it, it cannot wait.
    #[must_use = "`stop` alone does not wait, and dropping the job does"]
    pub fn join(mut self) -> Status {
        self.end();
        self.status()
    }

    /// Runs the work now, before it is due; due times do not move.
    ///
    /// During a run, one more run follows it, however often you call this. A stopped job does not
    /// run again.
    pub fn run_now(&self) {
        self.shared.state.lock().asked = true;
        self.shared.woken.notify_one();
    }

    /// The current status.
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
            // The work may own its job, and a thread that waits for itself waits forever.
            && thread.thread().id() != thread::current().id()
        {
            // Panics of the work are contained. A panic of its drop has been printed, and there is
            // nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.end();
    }
}

/// The status of a job: counts and times of its runs.
///
/// Times are measured from the moment it was spawned.
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
    /// The number of runs that have ended, in whatever way.
    pub runs: u64,
    /// The number of runs that ended in an error.
    pub failures: u64,
    /// The number of runs that ended in a panic.
    pub panics: u64,
    /// The number of due times that passed during a run, or that a job that keeps panicking
    /// skipped.
    pub skipped: u64,
    /// The text of the latest error with its causes, or of the latest panic. It stays when later
    /// runs succeed.
    pub last_error: Option<String>,
    /// Whether the last run ended in an error or a panic.
    pub failing: bool,
    /// Whether a run is in progress.
    pub running: bool,
    /// When the last run started.
    pub last_started: Option<Duration>,
    /// When the last run that has ended did so.
    pub last_ended: Option<Duration>,
    /// When the next run is due; `None` if the job is stopped.
    pub next_due: Option<Duration>,
    /// The time since the job was spawned.
    pub age: Duration,
}

/// The state that the thread and its handle share.
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
    /// Whether a run before it is due was requested.
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
    /// The thread: one loop, so that runs never overlap.
    fn run(&self, mut work: impl FnMut(&AtomicBool) -> Result<(), Cause>) {
        while self.begin() {
            // The error's text is made, and the error dropped, inside, so that a panic of either is
            // contained too.
            let ended =
                catch_unwind(AssertUnwindSafe(|| work(&self.stop).map_err(|error| chain(&*error))));
            self.report(match ended {
                Ok(Ok(())) => Outcome::Well,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic_text(panic)),
            });
        }
    }

    /// Sleeps until a run is due or requested; returns false when the job must end.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let (now, due) = (self.spawned.elapsed(), self.schedule.due(self.next_number(&state)));
            if now >= due || state.asked {
                // A requested run takes a due time only if that has come.
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

    /// Records how a run ended, and skips the due times that passed during it.
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
            // Its drop might panic too, and end the thread.
            std::mem::forget(other);
            "a value that is not text".to_owned()
        }
    }
}

/// Scales `random` from 0..=`u64::MAX` to a share from 0 to `most`.
fn share_of(most: u128, random: u64) -> u128 {
    // The high and low half separately: the product of a long time would leave 128 bits.
    let (whole, rest) = (most >> 64, most & u128::from(u64::MAX));
    let random = u128::from(random);
    whole * random + ((rest * random) >> 64)
}

/// Steele, Lea, Flood: the `number`th output for this seed, without computing those before it.
fn splitmix64(seed: u64, number: u64) -> u64 {
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
