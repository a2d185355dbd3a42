//! The blocking driver: it runs a reconciler's steps on an audit, and is the only part with a clock
//! and waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::audit::{Audit, Kept, PageDiff, ProbeResult, Repaired};
use super::progress::Progress;
use super::reconciler::{Reconciler, Step};
use super::report::Report;
use super::token::Token;
use crate::counter::CounterId;
use crate::error::Result;
use crate::observe;

/// The surroundings of a run: time, waits, a stop request, throttles, and a receiver of its
/// progress. [`SystemRuntime`] is the default; tests pass their own.
pub trait Runtime {
    /// Returns the time since some fixed moment; it never goes back.
    fn now(&mut self) -> Duration;

    /// Waits about this long, or until the run is to stop.
    fn wait(&mut self, time: Duration, reason: &str);

    /// Returns whether the run is to stop before its next page.
    fn stopped(&mut self) -> bool {
        false
    }

    /// Returns a reason not to compare a page now, if there is one, such as load or replication
    /// lag.
    fn throttle(&mut self) -> Option<String> {
        None
    }

    /// Receives how far the run has come: after each page compared, after each repair, and after a
    /// backfill made a counter ready.
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// Runs a reconciler's steps until it ends.
///
/// # Errors
///
/// The first error that no retry fixes; [`Reconciler::report`] then says how far the run came and
/// where to resume.
pub fn run(
    run: &mut Reconciler,
    audit: &mut (impl Audit + ?Sized),
    runtime: &mut (impl Runtime + ?Sized),
) -> Result<Report> {
    let _span = observe::run(run.mode());
    loop {
        if runtime.stopped() {
            run.stop();
        }
        let step = run.next(runtime.now());
        let counter = counter_of(&step);
        let answer = match step {
            Step::Identify => audit.identity().map(Answer::Identity),
            Step::Recall(token) => audit.recall(&token).map(Answer::Recalled),
            Step::Probe(probe) => audit.probe(&probe).map(Answer::Probed),
            Step::Compare(ask) => {
                if let Some(reason) = runtime.throttle() {
                    run.throttled(reason, runtime.now());
                    continue;
                }
                run.passed(runtime.now());
                audit.compare(&ask).map(Answer::Compared)
            }
            Step::Repair(repair) => audit.repair(&repair).map(Answer::Repaired),
            Step::Ready(ready) => audit.ready(&ready).map(Answer::Ready),
            Step::Keep(keep) => audit.keep(&keep).map(Answer::Kept),
            Step::Wait(time, reason) => {
                runtime.wait(time, &reason);
                continue;
            }
            Step::End => return Ok(ended(run)),
        };
        match take(run, counter, answer, runtime.now()) {
            Ok(progress) => progress.iter().for_each(|progress| runtime.progress(progress)),
            Err(error) => {
                // So that the token resumes from what was found. If this fails, it resumes all the
                // same.
                if let Some(keep) = run.keep_now()
                    && let Ok(kept) = audit.keep(&keep)
                {
                    run.kept_now(keep, kept);
                }
                return Err(error);
            }
        }
    }
}

/// An audit's answer to a step.
pub(super) enum Answer {
    Identity(u64),
    Recalled(Option<Token>),
    Probed(ProbeResult),
    Compared(PageDiff),
    Repaired(Repaired),
    Ready(Kept),
    Kept(Kept),
}

/// Passes an answer, or an error instead of one, to the run; returns the progress to report, if
/// there is any.
pub(super) fn take(
    run: &mut Reconciler,
    counter: Option<CounterId>,
    answer: Result<Answer>,
    now: Duration,
) -> Result<Option<Progress>> {
    let error = match answer.and_then(|answer| hand(run, counter, answer, now)) {
        Ok(tells) => return Ok(tells.then(|| run.progress(now))),
        Err(error) => error,
    };
    let (kind, recovery) = (observe::kind(&error), error.recovery());
    let retried = run.failed(error, now);
    observe::failed(counter, kind, recovery, retried.is_err());
    retried.inspect_err(|_| observe::ended(&run.report()))?;
    Ok(None)
}

/// Returns whether the run made progress.
fn hand(run: &mut Reconciler, counter: Option<CounterId>, answer: Answer, now: Duration) -> Result<bool> {
    match (answer, counter) {
        (Answer::Compared(diff), Some(counter)) => {
            observe::compared(&counter, &diff);
            run.compared(diff, now).map(|()| true)
        }
        (Answer::Repaired(repaired), Some(counter)) => {
            observe::repaired(&counter, &repaired);
            run.repaired(&repaired, now);
            Ok(true)
        }
        (Answer::Ready(kept), Some(counter)) => {
            if kept != Kept::Lost {
                observe::readied(&counter);
            }
            run.readied(kept, now);
            Ok(true)
        }
        (Answer::Probed(looked), _) => run.probed(looked, now).map(|()| false),
        (Answer::Identity(identity), _) => run.identified(identity).map(|()| false),
        (Answer::Recalled(found), _) => {
            run.recalled(found, now);
            Ok(false)
        }
        (Answer::Kept(kept), _) => {
            run.kept(kept, now);
            Ok(false)
        }
        (Answer::Compared(_) | Answer::Repaired(_) | Answer::Ready(_), None) => {
            debug_assert!(false, "a step about no counter");
            Ok(false)
        }
    }
}

/// Returns the report of a run that has ended.
pub(super) fn ended(run: &Reconciler) -> Report {
    let report = run.report();
    observe::ended(&report);
    report
}

/// Returns the counter that a step is about, for the log.
pub(super) const fn counter_of(step: &Step) -> Option<CounterId> {
    match step {
        Step::Probe(probe) => Some(probe.counter),
        Step::Compare(ask) => Some(ask.counter),
        Step::Repair(repair) => Some(repair.counter),
        Step::Ready(ready) => Some(ready.counter),
        Step::Identify | Step::Recall(_) | Step::Keep(_) | Step::Wait(..) | Step::End => None,
    }
}

/// The default runtime: system clock, with optional stop flag, throttles and progress callback.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::AtomicBool;
/// use keepcount::reconcile::SystemRuntime;
///
/// static STOP: AtomicBool = AtomicBool::new(false); // set by a signal handler
/// let mut runtime = SystemRuntime::new().stop_flag(&STOP).throttle(|| None);
/// # let _ = &mut runtime;
/// ```
#[derive(Default)]
pub struct SystemRuntime<'a> {
    started: Option<Instant>,
    stop: Option<&'a AtomicBool>,
    throttles: Vec<Box<dyn FnMut() -> Option<String> + 'a>>,
    on_progress: Option<Show<'a>>,
}

type Show<'a> = Box<dyn FnMut(&Progress) + 'a>;

/// A stop flag is noticed within this time.
pub(super) const WAIT_SLICE: Duration = Duration::from_millis(50);

impl<'a> SystemRuntime<'a> {
    /// Creates a runtime with the system clock, no stop flag and no throttle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the run before its next page once `flag` is true; a wait then ends within 50 ms.
    #[must_use]
    pub fn stop_flag(mut self, flag: &'a AtomicBool) -> Self {
        self.stop = Some(flag);
        self
    }

    /// Calls `throttle` before each page: a reason delays the run, for at most
    /// [`Options::stall_after`](super::Options::stall_after).
    ///
    /// You can add several throttles.
    #[must_use]
    pub fn throttle(mut self, throttle: impl FnMut() -> Option<String> + 'a) -> Self {
        self.throttles.push(Box::new(throttle));
        self
    }

    /// Calls `show` after each page compared, after each repair, and after a counter became ready.
    ///
    /// It should be quick, or print only every so often. A second call replaces the first callback.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::SystemRuntime;
    ///
    /// let mut runtime = SystemRuntime::new().on_progress(|progress| eprintln!("{progress}"));
    /// # let _ = &mut runtime;
    /// ```
    #[must_use]
    pub fn on_progress(mut self, show: impl FnMut(&Progress) + 'a) -> Self {
        self.on_progress = Some(Box::new(show));
        self
    }
}

impl std::fmt::Debug for SystemRuntime<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SystemRuntime")
            .field("stop", &self.stop)
            .field("throttles", &self.throttles.len())
            .finish_non_exhaustive()
    }
}

impl Runtime for SystemRuntime<'_> {
    #[allow(clippy::disallowed_methods)] // the driver is where the clock is
    fn now(&mut self) -> Duration {
        self.started.get_or_insert_with(Instant::now).elapsed()
    }

    fn wait(&mut self, time: Duration, _: &str) {
        let until = self.now() + time;
        let mut left = time;
        // At least one slice, also when stopped: the work in progress may still have to wait for
        // its retry.
        while !left.is_zero() {
            std::thread::sleep(left.min(WAIT_SLICE));
            left = if self.stopped() { Duration::ZERO } else { until.saturating_sub(self.now()) };
        }
    }

    fn stopped(&mut self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    fn throttle(&mut self) -> Option<String> {
        self.throttles.iter_mut().find_map(|throttle| throttle())
    }

    fn progress(&mut self, progress: &Progress) {
        if let Some(show) = &mut self.on_progress {
            show(progress);
        }
    }
}
