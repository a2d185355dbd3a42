//! The runtime of a run in tokio: its clock, a stop flag, and throttles that may query a database.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::progress::Progress;
use super::runtime::{AsyncRuntime, Surroundings, WAIT_SLICE};

/// The future answer of a throttle: a reason not to compare a page now, if there is one.
pub(super) type ThrottleAnswer<'a> = Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>>;

type Throttle<'a> = Box<dyn FnMut() -> ThrottleAnswer<'a> + Send + 'a>;

/// The runtime for [`run_async`](super::run_async): tokio's clock, with optional stop flag,
/// throttles and progress callback.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::AtomicBool;
/// use keepcount::reconcile::TokioRuntime;
///
/// static STOP: AtomicBool = AtomicBool::new(false); // set by a signal handler
/// # async fn is_busy() -> bool { false }
/// let mut runtime = TokioRuntime::new()
///     .stop_flag(&STOP)
///     .throttle(|| async { is_busy().await.then(|| "the machine is busy".to_owned()) })
///     .on_progress(|progress| eprintln!("{progress}"));
/// # let _ = &mut runtime;
/// ```
#[derive(Debug)]
pub struct TokioRuntime<'a>(Surroundings<'a, Throttle<'a>, dyn FnMut(&Progress) + Send + 'a>);

impl Default for TokioRuntime<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> TokioRuntime<'a> {
    /// Creates a runtime with tokio's clock, no stop flag and no throttle.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // the runtime is where the clock is
    pub const fn new() -> Self {
        Self(Surroundings::new(|| Instant::now().into_std()))
    }

    /// As [`SystemRuntime::stop_flag`](super::SystemRuntime::stop_flag).
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
    pub fn throttle<F: Future<Output = Option<String>> + Send + 'a>(
        mut self,
        mut throttle: impl FnMut() -> F + Send + 'a,
    ) -> Self {
        self.0.throttles.push(Box::new(move || Box::pin(throttle())));
        self
    }

    /// As [`SystemRuntime::on_progress`](super::SystemRuntime::on_progress).
    #[must_use]
    pub fn on_progress(mut self, show: impl FnMut(&Progress) + Send + 'a) -> Self {
        self.0.on_progress = Some(Box::new(show));
        self
    }
}

impl AsyncRuntime for TokioRuntime<'_> {
    fn now(&mut self) -> Duration {
        self.0.now()
    }

    async fn wait(&mut self, time: Duration, _: &str) {
        let until = self.now().saturating_add(time);
        let mut slice = Some(time.min(WAIT_SLICE));
        while let Some(time) = slice {
            sleep(time).await;
            slice = self.0.slice(until);
        }
    }

    fn stopped(&mut self) -> bool {
        self.0.stopped()
    }

    async fn throttle(&mut self) -> Option<String> {
        for throttle in &mut self.0.throttles {
            if let Some(reason) = throttle().await {
                return Some(reason);
            }
        }
        None
    }

    fn progress(&mut self, progress: &Progress) {
        self.0.progress(progress);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_as_long_as_it_says_unless_it_is_stopped() {
        let stop = AtomicBool::new(false);
        let mut live = TokioRuntime::new().stop_flag(&stop);
        let begun = Instant::now();
        live.wait(Duration::from_secs(3), "duty cycle").await;
        assert_eq!((begun.elapsed(), live.now()), (Duration::from_secs(3), Duration::from_secs(3)));
        stop.store(true, Ordering::Relaxed);
        live.wait(Duration::from_secs(3), "duty cycle").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3) + WAIT_SLICE);
        live.wait(Duration::MAX, "duty cycle").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3) + 2 * WAIT_SLICE);
    }
}
