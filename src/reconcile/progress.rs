//! How far a run has come, how fast it goes, and when it may be done.

use std::fmt;
use std::time::Duration;

use super::options::Mode;
use super::report::Overlap;
use crate::counter::CounterId;

/// How far a run has come, from [`Reconciler::progress`](super::Reconciler::progress). Counts cover
/// this run alone, not the runs that it resumes.
///
/// Its `Display` is one line for logs. It contains no key.
///
/// # Examples
///
/// A line every ten seconds, with the keys of the last complete report as the expectation:
///
/// ```
/// use std::time::Duration;
/// use keepcount::reconcile::{Audit, Mode, Options, Reconciler, Report, SystemRuntime, run};
/// # use keepcount::{Counter, Schema};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn nightly(audit: &mut impl Audit, last: &Report) -> keepcount::Result<Report> {
///     let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
///     for counter in &last.counters {
///         verify.expect(&counter.counter, counter.keys);
///     }
///     let mut shown = Duration::ZERO;
///     let mut runtime = SystemRuntime::new().on_progress(|progress| {
///         if progress.elapsed >= shown + Duration::from_secs(10) {
///             eprintln!("{progress}");
///             shown = progress.elapsed;
///         }
///     });
///     run(&mut verify, audit, &mut runtime)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Verify, repair or backfill.
    pub mode: Mode,
    /// The current counter; `None` when all are done.
    pub counter: Option<CounterId>,
    /// Counters done, including those done by the runs before this one.
    pub counters_done: usize,
    /// Counters in scope.
    pub counters: usize,
    /// Pages compared.
    pub pages: u64,
    /// Keys compared.
    pub keys: u64,
    /// Rows added up.
    pub rows: u64,
    /// Keys that differed, of every kind.
    pub drift: u64,
    /// Totals repaired.
    pub corrected: u64,
    /// Another run that is at work on the same counters; see [`Overlap`].
    pub overlap: Option<Overlap>,
    /// The time since the run's first step.
    pub elapsed: Duration,
    /// The recent rate of keys compared a second, waits included: what was done a minute ago counts
    /// a tenth of what is done now. 0 until a page took time.
    pub keys_per_second: f64,
    /// The recent rate of rows added up a second; as [`keys_per_second`](Self::keys_per_second).
    pub rows_per_second: f64,
    /// The share of the keys compared, if every counter that is not done has an
    /// [expectation](super::Reconciler::expect).
    ///
    /// It never goes back unless an expectation is raised, and is 1 only when the run is complete.
    pub fraction: Option<f64>,
    /// The time left at this rate, if the fraction is known; `None` if there were more keys than
    /// expected.
    pub eta: Option<Duration>,
}

/// One line, for logs.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.mode)?;
        if let Some(counter) = self.counter {
            write!(f, "{}, ", counter.full_name())?;
        }
        write!(
            f,
            "{} of {} counters done; {} pages, {} keys, {} rows; {} differ, {} corrected; {}; {:.0} keys/s, {:.0} rows/s",
            self.counters_done,
            self.counters,
            self.pages,
            self.keys,
            self.rows,
            self.drift,
            self.corrected,
            Clock(self.elapsed),
            self.keys_per_second,
            self.rows_per_second,
        )?;
        if let Some(fraction) = self.fraction {
            // Rounded down: 100% means done.
            write!(f, "; {}%", (fraction * 100.0).floor())?;
        }
        if let Some(eta) = self.eta.filter(|eta| !eta.is_zero()) {
            write!(f, ", {} left", Clock(eta))?;
        }
        self.overlap.map_or(Ok(()), |overlap| write!(f, "; {overlap}"))
    }
}

/// A time in whole seconds, as `h:mm:ss`.
struct Clock(Duration);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        write!(f, "{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// The recent rate of keys and rows a second: a mean over all time in which each moment weighs e
/// times less than the one [`MEMORY`] later.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When the first page was handed out, and the time up to which pages are in the sums.
    began: Option<Duration>,
    upto: Duration,
    /// The rates of the time between the two, weighted and integrated.
    keys: f64,
    rows: f64,
    /// What was done at `upto`, before the clock moved on.
    waiting: (u64, u64),
}

/// Chosen so that what was done a minute ago weighs a tenth.
const MEMORY: Duration = Duration::from_secs(26);

impl Pace {
    /// Records a page that was handed out at `issued` and is done.
    pub(super) fn page(&mut self, issued: Duration, now: Duration, keys: u64, rows: u64) {
        if self.began.is_none() {
            (self.began, self.upto) = (Some(issued), issued);
        }
        self.waiting = (self.waiting.0 + keys, self.waiting.1 + rows);
        if now > self.upto {
            *self = self.at(now);
        }
    }

    /// Returns keys and rows a second.
    pub(super) fn per_second(&self, now: Duration) -> (f64, f64) {
        let pace = if now > self.upto { self.at(now) } else { *self };
        let weight = pace.began.map_or(0.0, |began| weight(pace.upto.saturating_sub(began)));
        if weight > 0.0 { (pace.keys / weight, pace.rows / weight) } else { (0.0, 0.0) }
    }

    /// Spreads `waiting` over the time since `upto`.
    #[allow(clippy::cast_precision_loss)] // a rate for people
    fn at(&self, now: Duration) -> Self {
        let passed = now.saturating_sub(self.upto);
        let weight = weight(passed);
        let fade = 1.0 - weight / MEMORY.as_secs_f64();
        let added = |done: u64| done as f64 / passed.as_secs_f64() * weight;
        Self {
            began: self.began,
            upto: now,
            keys: self.keys * fade + added(self.waiting.0),
            rows: self.rows * fade + added(self.waiting.1),
            waiting: (0, 0),
        }
    }
}

/// Returns the weight of the last `time`, in seconds: the integral of e^(-t / MEMORY).
fn weight(time: Duration) -> f64 {
    let memory = MEMORY.as_secs_f64();
    -(-time.as_secs_f64() / memory).exp_m1() * memory
}

/// Returns the share that is done, and the time for the rest at this rate.
#[allow(clippy::cast_precision_loss)] // an estimate
pub(super) fn estimate(
    done: u64,
    left: u64,
    complete: bool,
    per_second: f64,
) -> (f64, Option<Duration>) {
    if complete {
        return (1.0, Some(Duration::ZERO));
    }
    // Having passed an expectation that was too low does not mean that the run is done.
    let fraction =
        if done == 0 { 0.0 } else { (done as f64 / (done as f64 + left as f64)).min(NEARLY) };
    let eta = (left > 0 && per_second > 0.0)
        .then(|| Duration::try_from_secs_f64(left as f64 / per_second).ok());
    (fraction, eta.flatten())
}

/// The largest fraction of a run that is not complete.
const NEARLY: f64 = 0.999;

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn near(found: f64, wanted: f64) {
        assert!((found - wanted).abs() <= wanted.abs() * 1e-9, "{found} is not {wanted}");
    }

    #[test]
    fn a_steady_pace_is_its_rate_whatever_the_pages() {
        let mut pace = Pace::default();
        assert_eq!(pace.per_second(secs(5.0)), (0.0, 0.0));
        let mut now = 100.0;
        for (took, keys) in
            [(0.01, 5), (0.5, 250), (3.0, 1_500), (40.0, 20_000), (600.0, 300_000), (0.02, 10)]
        {
            pace.page(secs(now), secs(now + took), keys, 2 * keys);
            now += took;
            let (keys, rows) = pace.per_second(secs(now));
            near(keys, 500.0);
            near(rows, 1000.0);
        }
    }

    #[test]
    fn a_new_rate_wins_within_a_minute_or_two() {
        let mut pace = Pace::default();
        for second in 0..1000_u32 {
            pace.page(secs(second.into()), secs((second + 1).into()), 100, 100);
        }
        for second in 1000..1060_u32 {
            pace.page(secs(second.into()), secs((second + 1).into()), 1000, 0);
        }
        let (keys, rows) = pace.per_second(secs(1060.0));
        assert!((900.0..920.0).contains(&keys) && (8.0..11.0).contains(&rows), "{keys}, {rows}");
        let (later, _) = pace.per_second(secs(1120.0));
        assert!((80.0..100.0).contains(&later), "a minute without a page counts: {later}");
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_divides_by_nothing() {
        let mut pace = Pace::default();
        pace.page(secs(1.0), secs(1.0), 10, 10);
        assert_eq!(pace.per_second(secs(1.0)), (0.0, 0.0));
        pace.page(secs(1.0), secs(1.0), 10, 10);
        pace.page(secs(1.0), secs(0.5), 10, 10);
        assert_eq!(pace.per_second(secs(0.0)), (0.0, 0.0));
        near(pace.per_second(secs(2.0)).0, 30.0);
    }

    #[test]
    fn only_what_is_complete_is_whole() {
        assert_eq!(estimate(0, 0, false, 10.0), (0.0, None));
        assert_eq!(estimate(0, 50, false, 0.0), (0.0, None));
        assert_eq!(estimate(50, 150, false, 10.0), (0.25, Some(secs(15.0))));
        assert_eq!(estimate(50, 0, false, 10.0), (NEARLY, None));
        assert_eq!(estimate(u64::MAX, u64::MAX, false, 1e-300), (0.5, None));
        assert_eq!(estimate(0, 0, true, 0.0), (1.0, Some(Duration::ZERO)));
    }
}
