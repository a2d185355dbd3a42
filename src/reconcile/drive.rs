//! The driver: carries a reconciler's steps to an audit; the only place with a clock and a wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::audit::Audit;
use super::machine::{Reconciler, Step};
use super::report::Report;
use crate::error::Result;

/// The world around a run: time, waiting, stopping, and gates. [`Live`] is the real one; a test hands in its own.
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
    loop {
        if control.stopped() {
            run.stop();
        }
        let done = match run.next(control.now()) {
            Step::Identify => audit.identity().and_then(|identity| run.identified(identity)),
            Step::Look(look) => audit.look(&look).and_then(|looked| run.looked(looked, control.now())),
            Step::Measure(ask) => {
                if let Some(reason) = control.gate() {
                    run.held(reason, control.now());
                    continue;
                }
                run.passed(control.now());
                audit.measure(&ask).and_then(|measured| run.measured(measured, control.now()))
            }
            Step::Mend(mend) => audit.mend(&mend).map(|mended| run.mended(mended, control.now())),
            Step::Wait(time, reason) => {
                control.wait(time, &reason);
                Ok(())
            }
            Step::End => return Ok(run.report()),
        };
        if let Err(error) = done {
            run.failed(error, control.now())?;
        }
    }
}

/// The real clock, with a stop flag and gates where they are wanted.
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
}

/// A stop flag is seen within this time.
const WAIT_SLICE: Duration = Duration::from_millis(50);

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
}
