//! The surroundings of a run, the only part with a clock and waits: what every runtime has, and the
//! blocking one.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::progress::Progress;

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

/// The surroundings of an asynchronous run, as [`Runtime`] is of a blocking one. A throttle may
/// query a database.
pub trait AsyncRuntime: Send {
    /// As [`Runtime::now`].
    fn now(&mut self) -> Duration;

    /// As [`Runtime::wait`].
    fn wait(&mut self, time: Duration, reason: &str) -> impl Future<Output = ()> + Send;

    /// As [`Runtime::stopped`].
    fn stopped(&mut self) -> bool {
        false
    }

    /// As [`Runtime::throttle`].
    fn throttle(&mut self) -> impl Future<Output = Option<String>> + Send {
        async { None }
    }

    /// As [`Runtime::progress`].
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }
}

/// What both runtimes have: a clock, a stop flag, throttles of type `T`, and a progress callback.
pub(super) struct Surroundings<'a, T, P: ?Sized> {
    clock: fn() -> Instant,
    started: Option<Instant>,
    pub(super) stop: Option<&'a AtomicBool>,
    pub(super) throttles: Vec<T>,
    pub(super) on_progress: Option<Box<P>>,
}

/// A stop flag is noticed within this time.
pub(super) const WAIT_SLICE: Duration = Duration::from_millis(50);

impl<T, P: FnMut(&Progress) + ?Sized> Surroundings<'_, T, P> {
    pub(super) const fn new(clock: fn() -> Instant) -> Self {
        Self { clock, started: None, stop: None, throttles: Vec::new(), on_progress: None }
    }

    pub(super) fn now(&mut self) -> Duration {
        let now = (self.clock)();
        now.saturating_duration_since(*self.started.get_or_insert(now))
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Returns the next slice of a wait that ends at `until`; `None` if that is over, or the run is
    /// to stop. Sleep one slice before you call it, also when stopped: the work in progress may
    /// still have to wait for its retry.
    pub(super) fn slice(&mut self, until: Duration) -> Option<Duration> {
        let left = if self.stopped() { Duration::ZERO } else { until.saturating_sub(self.now()) };
        (!left.is_zero()).then(|| left.min(WAIT_SLICE))
    }

    pub(super) fn progress(&mut self, progress: &Progress) {
        if let Some(show) = &mut self.on_progress {
            show(progress);
        }
    }
}

impl<T, P: ?Sized> fmt::Debug for Surroundings<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings")
            .field("stop", &self.stop)
            .field("throttles", &self.throttles.len())
            .finish_non_exhaustive()
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
#[derive(Debug)]
pub struct SystemRuntime<'a>(Surroundings<'a, Throttle<'a>, dyn FnMut(&Progress) + 'a>);

type Throttle<'a> = Box<dyn FnMut() -> Option<String> + 'a>;

impl Default for SystemRuntime<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> SystemRuntime<'a> {
    /// Creates a runtime with the system clock, no stop flag and no throttle.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the runtime is where the clock is
    pub const fn new() -> Self {
        Self(Surroundings::new(Instant::now))
    }

    /// Stops the run before its next page once `flag` is true; a wait then ends within 50 ms.
    #[must_use]
    pub const fn stop_flag(mut self, flag: &'a AtomicBool) -> Self {
        self.0.stop = Some(flag);
        self
    }

    /// Calls `throttle` before each page: a reason delays the run, for at most
    /// [`Options::stall_after`](super::Options::stall_after).
    ///
    /// You can add several throttles.
    #[must_use]
    pub fn throttle(mut self, throttle: impl FnMut() -> Option<String> + 'a) -> Self {
        self.0.throttles.push(Box::new(throttle));
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
        self.0.on_progress = Some(Box::new(show));
        self
    }
}

impl Runtime for SystemRuntime<'_> {
    fn now(&mut self) -> Duration {
        self.0.now()
    }

    fn wait(&mut self, time: Duration, _: &str) {
        let until = self.now().saturating_add(time);
        let mut slice = Some(time.min(WAIT_SLICE));
        while let Some(time) = slice {
            std::thread::sleep(time);
            slice = self.0.slice(until);
        }
    }

    fn stopped(&mut self) -> bool {
        self.0.stopped()
    }

    fn throttle(&mut self) -> Option<String> {
        self.0.throttles.iter_mut().find_map(|throttle| throttle())
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.progress(progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what every runtime must have.
    struct Plain;

    impl Runtime for Plain {
        fn now(&mut self) -> Duration {
            Duration::ZERO
        }

        fn wait(&mut self, _: Duration, _: &str) {}
    }

    impl AsyncRuntime for Plain {
        fn now(&mut self) -> Duration {
            Duration::ZERO
        }

        async fn wait(&mut self, _: Duration, _: &str) {}
    }

    #[test]
    fn runtime_without_stop_flag_or_throttle_neither_stops_nor_delays() {
        assert!(!Runtime::stopped(&mut Plain) && !AsyncRuntime::stopped(&mut Plain));
        assert_eq!(Runtime::throttle(&mut Plain), None);
        assert_eq!(crate::engine::now(AsyncRuntime::throttle(&mut Plain)), None);
    }
}
