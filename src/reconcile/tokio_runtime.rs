//! The runtime of a run in tokio: its clock, a stop flag, throttles that may query a database, and
//! ready-made ones.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

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
/// ```no_run
/// use std::sync::atomic::AtomicBool;
/// use std::time::Duration;
/// use keepcount::reconcile::{TokioRuntime, active_connections, replay_lag};
///
/// static STOP: AtomicBool = AtomicBool::new(false); // set by a signal handler
/// # fn runtime(client: &tokio_postgres::Client) {
/// let mut runtime = TokioRuntime::new()
///     .stop_flag(&STOP)
///     .throttle(replay_lag(client, Duration::from_secs(2)))
///     .throttle(active_connections(client, 50))
///     .on_progress(|progress| eprintln!("{progress}"));
/// # let _ = &mut runtime;
/// # }
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

/// Creates a throttle that is closed while a replica of this server replays more than `most` behind
/// it.
///
/// Give it its own connection, to the primary. Its role needs `pg_monitor`: it is also closed if it
/// cannot see something.
pub fn replay_lag<'a>(
    client: &'a Client,
    most: Duration,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const LAG: &str = "SELECT coalesce(bool_or(state IS NULL), false),
        coalesce(max(extract(epoch FROM replay_lag) * 1000), 0)::bigint FROM pg_stat_replication";
    move || {
        let reason = move |millis: u64| {
            format!(
                "a replica replays {millis} ms behind, over the bound of {} ms",
                most.as_millis()
            )
        };
        Box::pin(async move { over(client, LAG, millis(most), reason).await })
    }
}

/// Creates a throttle that is closed while a replica of this server has more than `most` bytes of
/// the log to replay; see [`replay_lag`].
pub fn replay_lag_bytes<'a>(
    client: &'a Client,
    most: u64,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const LAG: &str = "SELECT coalesce(bool_or(state IS NULL), false), coalesce(max(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, replay_lsn)), 0)::bigint
        FROM pg_stat_replication";
    move || {
        let reason = move |bytes: u64| {
            format!("a replica has {bytes} bytes to replay, over the bound of {most}")
        };
        Box::pin(async move { over(client, LAG, most, reason).await })
    }
}

/// Creates a throttle that is closed while more than `most` connections of this server are active,
/// not counting its own.
///
/// Give it its own connection. Its role needs `pg_monitor`: it is also closed if it cannot see
/// something.
pub fn active_connections<'a>(
    client: &'a Client,
    most: u64,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const ACTIVE: &str =
        "SELECT coalesce(bool_or(state IS NULL), false), count(*) FILTER (WHERE state = 'active')
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    move || {
        let reason = move |active: u64| {
            format!("{active} connections are at work, over the bound of {most}")
        };
        Box::pin(async move { over(client, ACTIVE, most, reason).await })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Queries whether something is hidden, and a number that must be at most `most`.
async fn over(
    client: &Client,
    text: &str,
    most: u64,
    reason: impl Fn(u64) -> String,
) -> Option<String> {
    const NONE: &[&(dyn ToSql + Sync)] = &[];
    let read = |row: Row| Ok((row.try_get::<_, bool>(0)?, row.try_get::<_, i64>(1)?));
    match client.query_one(text, NONE).await.and_then(read) {
        Ok((true, _)) => Some(
            "the throttle cannot see what other roles do; grant its role pg_monitor".to_owned(),
        ),
        Ok((false, number)) => {
            let number = u64::try_from(number).unwrap_or(0);
            (number > most).then(|| reason(number))
        }
        Err(error) => Some(format!("the throttle's query failed: {error}")),
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
