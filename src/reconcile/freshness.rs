//! How long ago each counter was last found clean: the one figure to alert on.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::report::{CounterReport, Report};
use crate::counter::{CounterId, CounterSpec};
use crate::observe;
use crate::schema::Schema;

/// When each counter of a schema was last verified from its first key to its last without a
/// difference.
///
/// **The one figure to alert on.** Its age grows when drift is found, when the job stops running,
/// when its runs fail or stall, and when they never reach a counter's end: whatever the cause, the
/// counter was not recently seen to be right. A repair that had to repair something is not a clean
/// verification; the next run over that counter is, if it finds nothing. A rollup is clean only
/// together with all that it sums.
///
/// Drift outlives every run that began before it was found, whichever run found it and whichever
/// ends later. A leg that resumes a run counts for the time at which that run began the counter. If
/// that time is unknown, because this value was lost, for example, the leg counts for nothing.
///
/// You pass the time in, in Unix seconds. A verification that is more than a minute ahead of the
/// clock has no age, because one of the two clocks was wrong; nor has a run that began ahead of the
/// clock. Save the value over restarts with serde, in a format that names its fields, such as JSON,
/// and apply it to the schema again with [`resume`](Self::resume).
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Freshness, Report};
/// # use keepcount::reconcile::{MemoryAudit, Mode, Options, Reconciler, SystemRuntime, run};
/// # use keepcount::{Counter, MemoryStore, Record, Schema, Tally};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
/// # struct Vote;
/// # impl Record for Vote {
/// #     fn tally(&self, _: &mut Tally<'_>) {}
/// # }
///
/// /// After each run; `saved` is what the last one gave.
/// fn after(report: &Report, saved: Option<&str>, now: i64) -> serde_json::Result<String> {
///     let mut freshness = match saved {
///         Some(json) => Freshness::resume(&SCHEMA, &serde_json::from_str(json)?),
///         None => Freshness::new(&SCHEMA),
///     };
///     freshness.observe(report, now);
///     freshness.publish(now);
///     serde_json::to_string(&freshness)
/// }
/// # let mut store = MemoryStore::new(&SCHEMA);
/// # let mut audit = MemoryAudit::new(&mut store);
/// # audit.add(SHOW_VOTES, |_| [].iter() as std::slice::Iter<'_, Vote>)?;
/// # let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// # let report = run(&mut verify, &mut audit, &mut SystemRuntime::new())?;
///
/// let json = after(&report, None, 1_764_000_000)?;
/// assert!(json.starts_with(r#"[{"counter":"show.votes","version":1,"key":"i64","storage_clause":"table","clean_at":1764000000"#));
/// # assert_eq!(after(&verify.report(), Some(&json), 1_764_000_000)?, json);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # An alert
///
/// [`publish`](Self::publish) sets the gauge `keepcount_verification_age_seconds`, which is
/// infinite for a counter that never was clean. Call it regularly, every minute for example, and
/// not only after runs: between two calls a gauge stands still. For Prometheus, if each counter is
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

/// One counter by its full name, with everything whose change makes an old verification worthless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    counter: String,
    version: u32,
    key: String,
    storage_clause: String,
    /// When the first key was compared of the counter's last clean verification.
    clean_at: Option<i64>,
    /// The same time for each run that has found no drift in the counter so far, the latest run
    /// last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    begun: Vec<(u64, i64)>,
    /// When drift was last found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drift_at: Option<i64>,
}

/// The most runs whose beginning is remembered; one more removes the oldest.
const MAX_RUNS: usize = 16;
/// How far two clocks may be apart.
const MISMATCH_SECONDS: i64 = 60;

impl Freshness {
    /// Creates an entry for every counter of the schema, none of them verified yet.
    #[must_use]
    pub fn new(schema: &Schema) -> Self {
        let mut spec: Vec<&CounterSpec> = schema.counters().iter().collect();
        spec.sort_unstable_by_key(|spec| spec.id().order());
        Self(spec.into_iter().map(Entry::new).collect())
    }

    /// Restores a saved value for the present schema.
    ///
    /// A counter that left the schema is dropped. A counter that is new, or has a different
    /// version, key or storage clause, counts as never verified.
    #[must_use]
    pub fn resume(schema: &Schema, saved: &Self) -> Self {
        let mut entries = Self::new(schema);
        for entry in &mut entries.0 {
            if let Some(known) = saved.0.iter().find(|known| known.is_declared_as(entry)) {
                let runs = known
                    .begun
                    .get(known.begun.len().saturating_sub(MAX_RUNS)..)
                    .unwrap_or_default();
                (entry.clean_at, entry.begun, entry.drift_at) =
                    (known.clean_at, runs.to_vec(), known.drift_at);
            }
        }
        entries
    }

    /// Records a report at the end of its run, in Unix seconds.
    ///
    /// The counters that it calls [clean](super::CounterReport::clean) were clean when their first
    /// key was compared, by this run or by the first leg of the run that it resumes; a rollup when
    /// the first key of all that it sums was.
    ///
    /// Pass every report, also those of runs that were stopped or ended by an error
    /// ([`Reconciler::report`](super::Reconciler::report)): a counter that several legs did between
    /// them is clean if all of its parts were.
    pub fn observe(&mut self, report: &Report, now: i64) {
        self.0.iter_mut().for_each(|entry| entry.set_back(now));
        for counter in &report.counters {
            if let Some(entry) = self.0.iter_mut().find(|entry| entry.is(&counter.counter)) {
                entry.learn(counter, report.run, now);
            }
        }
        for counter in report.counters.iter().filter(|counter| counter.clean) {
            let since = self.since(counter, report.run);
            if let Some(entry) = self.0.iter_mut().find(|entry| entry.is(&counter.counter)) {
                entry.clean_at = entry.clean_at.max(since);
            }
        }
    }

    /// Returns when this run began the counter, or the first of what it sums; `None` if that is
    /// unknown for one of them.
    fn since(&self, counter: &CounterReport, run: u64) -> Option<i64> {
        let begun = |id: &CounterId| {
            let entry = self.0.iter().find(|entry| entry.is(id))?;
            entry.begun.iter().find(|(known, _)| *known == run).map(|(_, at)| *at)
        };
        let all = std::iter::once(&counter.counter).chain(&counter.sums).map(begun);
        all.collect::<Option<Vec<i64>>>()?.into_iter().min()
    }

    /// Returns how long ago a counter was found clean; `None` if it never was, or is not in the
    /// schema.
    #[must_use]
    pub fn age(&self, counter: &CounterId, now: i64) -> Option<Duration> {
        self.0.iter().find(|entry| entry.is(counter))?.age(now)
    }

    /// Returns the counter that was clean longest ago, and how long ago; one that never was comes
    /// first. `None` if the schema is empty.
    #[must_use]
    pub fn oldest(&self, now: i64) -> Option<(&str, Option<Duration>)> {
        let first = self.0.iter().min_by_key(|entry| entry.age(now).map(Reverse))?;
        Some((&first.counter, first.age(now)))
    }

    /// Returns every counter in name order, with the Unix second at which it was last found clean.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<i64>)> {
        self.0.iter().map(|entry| (entry.counter.as_str(), entry.clean_at))
    }

    /// Sets the gauge `keepcount_verification_age_seconds` of each counter; without the feature
    /// `metrics` it does nothing.
    pub fn publish(&self, now: i64) {
        for entry in &self.0 {
            observe::verification_age(&entry.counter, entry.age(now));
        }
    }
}

impl Entry {
    fn new(spec: &CounterSpec) -> Self {
        let id = spec.id();
        Self {
            counter: id.full_name().into_owned(),
            version: id.version(),
            key: id.parts().to_string(),
            storage_clause: spec.storage_clause(),
            clean_at: None,
            begun: Vec::new(),
            drift_at: None,
        }
    }

    fn is_declared_as(&self, other: &Self) -> bool {
        let declared = |entry: &Self| {
            (entry.counter.clone(), entry.version, entry.key.clone(), entry.storage_clause.clone())
        };
        declared(self) == declared(other)
    }

    /// Forgets times that are later than now: the clock that gave them was wrong by an unknown
    /// amount. The time of drift is kept, set back to now.
    fn set_back(&mut self, now: i64) {
        let latest = now.saturating_add(MISMATCH_SECONDS);
        self.clean_at = self.clean_at.filter(|at| *at <= latest);
        self.begun.retain(|(_, at)| *at <= latest);
        self.drift_at = self.drift_at.map(|at| at.min(now));
    }

    /// Records what a run found of the counter, before it may be called clean.
    fn learn(&mut self, found: &CounterReport, run: u64, now: i64) {
        if found.drift() > 0 {
            self.drift_at = Some(now);
            // Every run that began before is removed: it may have passed the key while that was
            // still right.
            self.begun.clear();
        } else if found.begun {
            let whole = i64::try_from(found.begun_ago.as_secs()).unwrap_or(i64::MAX);
            let at = now.saturating_sub(whole);
            // The report's times lose their fractions: a run that began in the second in which
            // drift was found may have begun before it.
            let least = at.saturating_sub(i64::from(found.begun_ago.subsec_nanos() > 0));
            if self.drift_at.is_none_or(|drift| least > drift) {
                self.begun.retain(|(known, _)| *known != run);
                self.begun.push((run, at));
                let over = self.begun.len().saturating_sub(MAX_RUNS);
                self.begun.drain(..over);
            }
        }
    }

    fn is(&self, id: &CounterId) -> bool {
        self.counter == id.full_name()
            && self.version == id.version()
            && self.key == id.parts().to_string()
    }

    fn age(&self, now: i64) -> Option<Duration> {
        let at = self.clean_at.filter(|at| *at <= now.saturating_add(MISMATCH_SECONDS))?;
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
        const SCHEMA: Schema = Schema::new(&[C.table(), A.table(), B.table()]);
        let mut saved = Freshness::new(&SCHEMA);
        let begun = |runs: u64| (0..runs).map(|run| (run, 9)).collect::<Vec<_>>();
        for (entry, times) in
            saved.0.iter_mut().zip([(Some(5), 1, None), (Some(7), 0, Some(6)), (None, 16, Some(8))])
        {
            (entry.clean_at, entry.begun, entry.drift_at) = (times.0, begun(times.1), times.2);
        }
        assert_eq!(Freshness::resume(&SCHEMA, &saved), saved);
        let seconds = |counter: Counter<i64>| saved.age(&counter.id(), 10).map(|age| age.as_secs());
        assert_eq!([A, B, C, B.version(1)].map(seconds), [Some(5), Some(3), None, None]);
    }

    const A: Counter<i64> = Counter::new("a");
    const ONE: Schema = Schema::new(&[A.table()]);

    /// What a run found of the counter that began to compare it so long ago, with this much drift.
    fn found(begun_ago: u64, wrong: u64) -> CounterReport {
        let begun_ago = Duration::from_millis(begun_ago);
        CounterReport { begun: true, begun_ago, wrong, ..CounterReport::new(A.id(), Vec::new()) }
    }

    #[test]
    fn run_that_may_have_begun_before_drift_was_found_in_the_same_second_counts_for_nothing() {
        for (begun_ago, counts) in [(1_000, true), (1_001, false), (1_999, false), (2_000, false)] {
            let entry = &mut Freshness::new(&ONE).0[0];
            entry.learn(&found(0, 1), 1, 100);
            entry.learn(&found(begun_ago, 0), 2, 102);
            assert_eq!(!entry.begun.is_empty(), counts, "{begun_ago} ms");
        }
    }

    #[test]
    fn run_that_begins_a_counter_again_takes_the_place_of_itself_and_of_no_other() {
        let entry = &mut Freshness::new(&ONE).0[0];
        for (run, now) in [(1, 10), (2, 20), (1, 30)] {
            entry.learn(&found(0, 0), run, now);
        }
        assert_eq!(entry.begun, [(2, 20), (1, 30)]);
    }
}
