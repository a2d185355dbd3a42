//! The driver: carries a reconciler's steps to an audit; the only place with a clock and a wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::audit::{Audit, Kept, Looked, Measured, Mended};
use super::machine::{Reconciler, Step};
use super::progress::Progress;
use super::report::Report;
use super::token::Token;
use crate::counter::Def;
use crate::error::Result;
use crate::observe;

/// The world around a run: time, waiting, stopping, gates, and who is told of its progress. [`Live`] is the real one; a test hands in its own.
pub trait Control {
    /// The time since some moment; never goes back.
    fn now(&mut self) -> Duration;

    /// Waits about this long, or until the run is to stop.
    fn wait(&mut self, time: Duration, reason: &str);

    /// Whether the run is to stop before its next page.
    fn stopped(&mut self) -> bool {
        false
    }

    /// Why no page may be measured just now, if so: a load, a lag.
    fn gate(&mut self) -> Option<String> {
        None
    }

    /// Told how far the run has come, after each page that was compared, after each mend, and when a backfill has made a counter ready.
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// Does a run's steps until it ends.
///
/// # Errors
///
/// The first error that no retry mends; [`Reconciler::report`] then says how far the run came, and from where to go on.
pub fn run(
    run: &mut Reconciler,
    audit: &mut (impl Audit + ?Sized),
    control: &mut (impl Control + ?Sized),
) -> Result<Report> {
    let _span = observe::run(run.mode());
    loop {
        if control.stopped() {
            run.stop();
        }
        let step = run.next(control.now());
        let counter = counter_of(&step);
        let answer = match step {
            Step::Identify => audit.identity().map(Answer::Identity),
            Step::Recall(token) => audit.recall(&token).map(Answer::Recalled),
            Step::Look(look) => audit.look(&look).map(Answer::Looked),
            Step::Measure(ask) => {
                if let Some(reason) = control.gate() {
                    run.held(reason, control.now());
                    continue;
                }
                run.passed(control.now());
                audit.measure(&ask).map(Answer::Measured)
            }
            Step::Mend(mend) => audit.mend(&mend).map(Answer::Mended),
            Step::Ready(ready) => audit.ready(&ready).map(Answer::Ready),
            Step::Keep(keep) => audit.keep(&keep).map(Answer::Kept),
            Step::Wait(time, reason) => {
                control.wait(time, &reason);
                continue;
            }
            Step::End => return Ok(ended(run)),
        };
        match take(run, counter, answer, control.now()) {
            Ok(progress) => progress.iter().for_each(|progress| control.progress(progress)),
            Err(error) => {
                // So that the token goes on from what was found; without it, it goes on all the same.
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

/// What an audit answers to a step.
pub(super) enum Answer {
    Identity(u64),
    Recalled(Option<Token>),
    Looked(Looked),
    Measured(Measured),
    Mended(Mended),
    Ready(Kept),
    Kept(Kept),
}

/// Hands an answer, or the error instead of one, to the run; gives what its control is told then.
pub(super) fn take(
    run: &mut Reconciler,
    counter: Option<Def>,
    answer: Result<Answer>,
    now: Duration,
) -> Result<Option<Progress>> {
    let error = match answer.and_then(|answer| hand(run, counter, answer, now)) {
        Ok(tells) => return Ok(tells.then(|| run.progress(now))),
        Err(error) => error,
    };
    let (kind, next) = (observe::kind(&error), error.next());
    let retried = run.failed(error, now);
    observe::failed(counter, kind, next, retried.is_err());
    retried.inspect_err(|_| observe::ended(&run.report()))?;
    Ok(None)
}

/// Gives whether the run has come further.
fn hand(run: &mut Reconciler, counter: Option<Def>, answer: Answer, now: Duration) -> Result<bool> {
    match (answer, counter) {
        (Answer::Measured(measured), Some(counter)) => {
            observe::measured(&counter, &measured);
            run.measured(measured, now).map(|()| true)
        }
        (Answer::Mended(mended), Some(counter)) => {
            observe::mended(&counter, &mended);
            run.mended(&mended, now);
            Ok(true)
        }
        (Answer::Ready(kept), Some(counter)) => {
            if kept != Kept::Lost {
                observe::readied(&counter);
            }
            run.readied(kept, now);
            Ok(true)
        }
        (Answer::Looked(looked), _) => run.looked(looked, now).map(|()| false),
        (Answer::Identity(identity), _) => run.identified(identity).map(|()| false),
        (Answer::Recalled(found), _) => {
            run.recalled(found, now);
            Ok(false)
        }
        (Answer::Kept(kept), _) => {
            run.kept(kept, now);
            Ok(false)
        }
        (Answer::Measured(_) | Answer::Mended(_) | Answer::Ready(_), None) => {
            debug_assert!(false, "a step about no counter");
            Ok(false)
        }
    }
}

/// The report of a run that has ended.
pub(super) fn ended(run: &Reconciler) -> Report {
    let report = run.report();
    observe::ended(&report);
    report
}

/// The counter that a step is about, for the log.
pub(super) const fn counter_of(step: &Step) -> Option<Def> {
    match step {
        Step::Look(look) => Some(look.counter),
        Step::Measure(ask) => Some(ask.counter),
        Step::Mend(mend) => Some(mend.counter),
        Step::Ready(ready) => Some(ready.counter),
        Step::Identify | Step::Recall(_) | Step::Keep(_) | Step::Wait(..) | Step::End => None,
    }
}

/// The real clock, with a stop flag, gates, and somebody who is shown the progress, where they are wanted.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::AtomicBool;
/// use keepcount::reconcile::Live;
///
/// static STOP: AtomicBool = AtomicBool::new(false); // set by a signal handler
/// let mut control = Live::new().stop_flag(&STOP).gate(|| None);
/// # let _ = &mut control;
/// ```
#[derive(Default)]
pub struct Live<'a> {
    started: Option<Instant>,
    stop: Option<&'a AtomicBool>,
    gates: Vec<Box<dyn FnMut() -> Option<String> + 'a>>,
    on_progress: Option<Show<'a>>,
}

type Show<'a> = Box<dyn FnMut(&Progress) + 'a>;

/// A stop flag is seen within this time.
pub(super) const WAIT_SLICE: Duration = Duration::from_millis(50);

impl<'a> Live<'a> {
    /// The real clock, no stop flag, no gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the run before its next page once `flag` is true; waits end within 50 ms then.
    #[must_use]
    pub fn stop_flag(mut self, flag: &'a AtomicBool) -> Self {
        self.stop = Some(flag);
        self
    }

    /// Asks `gate` before each page: a reason holds the run, [`Options::stall_after`](super::Options::stall_after) at most. May be called
    /// several times.
    #[must_use]
    pub fn gate(mut self, gate: impl FnMut() -> Option<String> + 'a) -> Self {
        self.gates.push(Box::new(gate));
        self
    }

    /// Calls `show` after each page that was compared, after each mend, and after a counter became ready: it should be quick, or show every so often only. A
    /// second call replaces the first.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::Live;
    ///
    /// let mut control = Live::new().on_progress(|progress| eprintln!("{progress}"));
    /// # let _ = &mut control;
    /// ```
    #[must_use]
    pub fn on_progress(mut self, show: impl FnMut(&Progress) + 'a) -> Self {
        self.on_progress = Some(Box::new(show));
        self
    }
}

impl std::fmt::Debug for Live<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("stop", &self.stop).field("gates", &self.gates.len()).finish_non_exhaustive()
    }
}

impl Control for Live<'_> {
    #[allow(clippy::disallowed_methods)] // the driver is where the clock is
    fn now(&mut self) -> Duration {
        self.started.get_or_insert_with(Instant::now).elapsed()
    }

    fn wait(&mut self, time: Duration, _: &str) {
        let until = self.now() + time;
        let mut left = time;
        // A slice at least, also when stopped: what is under way may still have to wait for its retry.
        while !left.is_zero() {
            std::thread::sleep(left.min(WAIT_SLICE));
            left = if self.stopped() { Duration::ZERO } else { until.saturating_sub(self.now()) };
        }
    }

    fn stopped(&mut self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    fn gate(&mut self) -> Option<String> {
        self.gates.iter_mut().find_map(|gate| gate())
    }

    fn progress(&mut self, progress: &Progress) {
        if let Some(show) = &mut self.on_progress {
            show(progress);
        }
    }
}
