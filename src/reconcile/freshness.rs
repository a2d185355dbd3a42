//! How long ago each counter was last found clean: the one figure to alert on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report::Report;
use crate::counter::{Def, Placed};
use crate::layout::Layout;
use crate::observe;

/// When each counter of a layout was last verified from its first key to its last without a difference.
///
/// **The one figure to alert on.** Its age grows when drift is found, when the job stops running, when its runs fail or stall, and when
/// they never get to a counter's end: whatever is wrong, nobody has lately seen that the counter is right. A repair that had to
/// mend something is no clean verification; the next run over that counter is, if it finds nothing. A rollup is compared with
/// the finer level as that is stored, so alert on every counter, or on [`oldest`](Self::oldest), not on the rollup alone.
///
/// Time is handed in, in Unix seconds; where the clock has gone back, an age is 0. Keep the value over restarts by serde, and give it
/// back to the layout by [`resume`](Self::resume).
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Freshness, Report};
/// # use keepcount::reconcile::{Live, MemoryAudit, Mode, Options, Reconciler, run};
/// # use keepcount::{Counter, Def, Layout, MemoryStore, Record, Tally};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
/// # struct Vote;
/// # impl Record for Vote {
/// #     const COUNTERS: &'static [Def] = &[SHOW_VOTES.def()];
/// #     fn tally(&self, _: &mut Tally<'_>) {}
/// # }
///
/// /// After each run; `saved` is what the last one gave.
/// fn after(report: &Report, saved: Option<&str>, now: i64) -> serde_json::Result<String> {
///     let mut freshness = match saved {
///         Some(json) => Freshness::resume(&LAYOUT, &serde_json::from_str(json)?),
///         None => Freshness::new(&LAYOUT),
///     };
///     freshness.observe(report, now);
///     freshness.publish(now);
///     serde_json::to_string(&freshness)
/// }
/// # let mut store = MemoryStore::new(&LAYOUT);
/// # let mut audit = MemoryAudit::new(&mut store);
/// # audit.add(SHOW_VOTES, |_| [].iter() as std::slice::Iter<'_, Vote>)?;
/// # let mut verify = Reconciler::new(Mode::Verify, &LAYOUT, Options::default())?;
/// # let report = run(&mut verify, &mut audit, &mut Live::new())?;
///
/// let json = after(&report, None, 1_764_000_000)?;
/// assert_eq!(
///     json,
///     r#"[{"counter":"show.votes","version":1,"key":"i64","place":"table","clean_at":1764000000}]"#
/// );
/// # assert_eq!(after(&verify.report(), Some(&json), 1_764_000_000)?, json);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # An alert
///
/// [`publish`](Self::publish) sets the gauge `keepcount_verification_age_seconds`, infinite for a counter that never was clean. Call it every
/// minute, say, not after runs only: between two calls a gauge stands still. For Prometheus, where each counter is
/// verified once a day:
///
/// ```yaml
/// - alert: TotalsNotVerified
///   expr: keepcount_verification_age_seconds > 2 * 86400
///   for: 15m
///   annotations:
///     summary: "{{ $labels.counter }} was not found clean for two days"
/// - alert: TotalsNotWatched
///   expr: absent(keepcount_verification_age_seconds)
///   for: 15m
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Freshness(Vec<Entry>);

/// One counter, by its full name, with all that makes an old verification worthless when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    counter: String,
    version: u32,
    key: String,
    place: String,
    /// When the run ended that compared the first key of what was found clean.
    clean_at: Option<i64>,
    /// The same of the comparison that is under way, over several runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun_at: Option<i64>,
}

impl Freshness {
    /// Every counter of the layout, none of them ever verified.
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        let mut placed: Vec<&Placed> = layout.counters().iter().collect();
        placed.sort_unstable_by_key(|placed| placed.def().order());
        Self(placed.into_iter().map(Entry::new).collect())
    }

    /// What was saved, for the layout as it is now: a counter that left it is forgotten; one that is new, or has another version, key or
    /// place, was never verified.
    #[must_use]
    pub fn resume(layout: &Layout, saved: &Self) -> Self {
        let mut entries = Self::new(layout);
        for entry in &mut entries.0 {
            let as_new = |known: &&Entry| Entry { clean_at: None, begun_at: None, ..(*known).clone() } == *entry;
            if let Some(known) = saved.0.iter().find(as_new) {
                (entry.clean_at, entry.begun_at) = (known.clean_at, known.begun_at);
            }
        }
        entries
    }

    /// Takes a report at the end of its run, in Unix seconds: the counters that it calls [clean](super::CounterReport::clean) are so from then on
    /// when their first key was compared: for one that several runs did between them, that is the end of the first.
    ///
    /// Give it every report, also of runs that were stopped, and of those that an error ended
    /// ([`Reconciler::report`](super::Reconciler::report)): a counter that several runs did between them is clean when all of its parts were.
    pub fn observe(&mut self, report: &Report, now: i64) {
        for counter in &report.counters {
            let Some(entry) = self.0.iter_mut().find(|entry| entry.is(&counter.counter)) else { continue };
            if counter.begun {
                entry.begun_at = Some(now);
            }
            if counter.clean {
                entry.clean_at = entry.begun_at.or(Some(now));
            }
            if counter.complete {
                entry.begun_at = None;
            }
        }
    }

    /// How long ago a counter was found clean; none when it never was, or is not of the layout.
    #[must_use]
    pub fn age(&self, counter: &Def, now: i64) -> Option<Duration> {
        self.0.iter().find(|entry| entry.is(counter))?.age(now)
    }

    /// The counter that was clean longest ago, and how long: one that never was comes first. None where the layout is empty.
    #[must_use]
    pub fn oldest(&self, now: i64) -> Option<(&str, Option<Duration>)> {
        let first = self.0.iter().min_by_key(|entry| entry.clean_at)?;
        Some((&first.counter, first.age(now)))
    }

    /// Every counter in the order of names, and the Unix second at which it was last found clean.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<i64>)> {
        self.0.iter().map(|entry| (entry.counter.as_str(), entry.clean_at))
    }

    /// Sets the gauge `keepcount_verification_age_seconds` of each counter; without the feature `metrics` it does nothing.
    pub fn publish(&self, now: i64) {
        for entry in &self.0 {
            observe::verification_age(&entry.counter, entry.age(now));
        }
    }
}

impl Entry {
    fn new(placed: &Placed) -> Self {
        let def = placed.def();
        Self {
            counter: def.full_name().into_owned(),
            version: def.version(),
            key: def.parts().to_string(),
            place: placed.place(),
            clean_at: None,
            begun_at: None,
        }
    }

    fn is(&self, def: &Def) -> bool {
        self.counter == def.full_name() && self.version == def.version() && self.key == def.parts().to_string()
    }

    fn age(&self, now: i64) -> Option<Duration> {
        let at = self.clean_at?;
        Some(Duration::from_secs(if now > at { now.abs_diff(at) } else { 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    #[test]
    fn what_was_saved_comes_back_for_each_counter_also_of_a_comparison_under_way() {
        const A: Counter<i64> = Counter::new("a");
        const B: Counter<i64> = Counter::new("b").version(2);
        const C: Counter<i64> = Counter::new("c");
        const LAYOUT: Layout = Layout::new(&[C.table(), A.table(), B.table()]);
        let mut saved = Freshness::new(&LAYOUT);
        for (entry, times) in saved.0.iter_mut().zip([(Some(5), Some(9)), (Some(7), None), (None, Some(8))]) {
            (entry.clean_at, entry.begun_at) = times;
        }
        assert_eq!(Freshness::resume(&LAYOUT, &saved), saved);
        let seconds = |counter: Counter<i64>| saved.age(&counter.def(), 10).map(|age| age.as_secs());
        assert_eq!([A, B, C, B.version(1)].map(seconds), [Some(5), Some(3), None, None]);
    }
}
