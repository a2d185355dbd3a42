//! The report of a run: one line, a table for people, JSON by serde.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::audit::{Drift, PageDiff};
use super::options::Mode;
use super::token::Token;
use crate::counter::CounterId;
use crate::key::KeyBuf;
use crate::observe::{self, Ended};

/// What a run found and did. Counts cover this run alone, not the runs that it resumed.
///
/// Serde writes `{"counters": [..], "pages", "complete", "resume"}`, and `overlap` if there was
/// one. A counter has `dangling` if it has dangling memberships, `unsettled` if some keys were
/// skipped, `failure` if it could not be compared, and `unchecked` if it has no source.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Verify, repair or backfill.
    pub mode: Mode,
    /// Every counter in scope, in name order, reached or not.
    pub counters: Vec<CounterReport>,
    /// Pages compared.
    pub pages: u64,
    /// Rows added up.
    pub rows: u64,
    /// How the run ended.
    pub outcome: Outcome,
    /// Whether another run was at work on the same counters, as far as this run could see.
    pub overlap: Option<Overlap>,
    /// Where to resume; `None` if complete.
    pub token: Option<Token>,
    /// The number of the run, the same in all of its legs.
    pub(super) run: u64,
}

/// Another run over the same counters. It does no harm, and both do the same work: it says that two
/// jobs are set up where one was meant.
///
/// Not every other run is seen: a run in another process is noticed only if it continues this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlap {
    /// When this run began, this process was driving another one over one of its counters, with the
    /// same totals. Parts and runs over single keys are not meant.
    InProcess,
    /// What was [kept](super::Audit::keep) of this run is not what it left: another process went on
    /// from its token, or the totals are older than the token.
    TakenOver,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProcess => "another run was at work in this process",
            Self::TakenOver => "another process went on from this token, or the totals are older",
        })
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It has not ended: there is more to do.
    Running,
    /// Everything in scope was compared.
    Complete,
    /// Nothing is left to do, but not everything was compared: [`failure`](CounterReport::failure)
    /// gives the reason for some counters.
    Incomplete,
    /// Nothing is left to do, and every counter that has a source was compared; some have none
    /// ([`unchecked`](CounterReport::unchecked)).
    Unchecked,
    /// It reached the limit of this name.
    Limit(&'static str),
    /// It was asked to stop.
    Stopped,
    /// A throttle delayed it too long, for this reason.
    Stalled(String),
    /// It refused to repair, for the reason in the run's error.
    Refused,
    /// An error ended it. Driven again, it continues where the error occurred, provided that what
    /// was [kept](super::Audit::keep) confirms that these are still the totals that it knows.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Complete => f.write_str("complete"),
            Self::Incomplete => f.write_str("incomplete"),
            Self::Unchecked => f.write_str("complete for what has a source"),
            Self::Limit(limit) => write!(f, "stopped at the limit of {limit}"),
            Self::Stopped => f.write_str("stopped"),
            Self::Stalled(reason) => write!(f, "stalled: {reason}"),
            Self::Refused => f.write_str("refused to repair"),
            Self::Failed => f.write_str("failed"),
        }
    }
}

/// What a run found for one counter; for a rollup, its difference from the stored totals of its
/// base.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(clippy::struct_excessive_bools)] // each says one thing about the counter, apart from the others
pub struct CounterReport {
    /// The counter.
    pub counter: CounterId,
    /// Keys compared whose total or sum of rows is not 0.
    pub keys: u64,
    /// Keys whose total and true total are both not 0, and differ.
    pub wrong: u64,
    /// Keys whose true total is not 0 but whose stored total is absent or 0.
    pub missing: u64,
    /// Keys whose stored total is not 0 but whose true total is 0.
    pub orphan: u64,
    /// Totals repaired.
    pub corrected: u64,
    /// The first keys that differ, in the order in which they were found: in key order, but an
    /// audit that runs next to writers compares unresolved keys first.
    pub samples: Vec<Sample>,
    /// Keys of a membership whose parent does not exist, if the source says where parents are. They
    /// are not drift: the total matches the rows, but is summed under a parent that no reader will
    /// read.
    pub dangling: u64,
    /// The first of them in key order, as many as there may be samples.
    pub dangling_keys: Vec<KeyBuf>,
    /// Keys that were skipped because writers kept them busy or the outcome of a write was unknown.
    /// The next run compares them.
    pub unsettled: u64,
    /// The first of them, as many as there may be samples.
    pub unsettled_keys: Vec<KeyBuf>,
    /// Why it was not compared to its end, if its own rows or totals are the reason; other counters
    /// were compared.
    pub failure: Option<String>,
    /// Whether it was not checked, because the audit has no source for it and the run does not name
    /// it. Nothing is known of its totals, nor of rollups above it: none of them is clean.
    pub unchecked: bool,
    /// Whether this run, and not one that it resumed, compared its first key.
    pub begun: bool,
    /// If so: how long before this report.
    pub(super) begun_ago: Duration,
    /// What a rollup sums, and its memberships, down to counters that rows feed.
    pub(super) sums: Vec<CounterId>,
    /// Whether the run reached its last key.
    pub complete: bool,
    /// Whether the run reached its last key and no key differed or was unsettled, in the runs that
    /// it resumed either. A rollup is clean only if all that it sums is.
    pub clean: bool,
}

/// A key whose total differs from its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    counter: CounterId,
    /// The key.
    pub key: KeyBuf,
    /// Its stored total.
    pub stored: i64,
    /// The sum of its rows.
    pub expected: i64,
}

impl Sample {
    /// Returns the key as text for people, as [`CounterId::show`] formats it.
    #[must_use]
    pub fn key_text(&self) -> String {
        self.counter.show(&self.key)
    }
}

impl CounterReport {
    pub(super) const fn new(counter: CounterId, sums: Vec<CounterId>) -> Self {
        Self {
            counter,
            sums,
            begun_ago: Duration::ZERO,
            keys: 0,
            wrong: 0,
            missing: 0,
            orphan: 0,
            corrected: 0,
            samples: Vec::new(),
            dangling: 0,
            dangling_keys: Vec::new(),
            unsettled: 0,
            unsettled_keys: Vec::new(),
            failure: None,
            unchecked: false,
            begun: false,
            complete: false,
            clean: false,
        }
    }

    pub(super) fn add(&mut self, diff: &PageDiff, samples: usize) {
        self.keys += diff.keys;
        for drift in &diff.drifts {
            *match drift {
                Drift { stored: 0, .. } => &mut self.missing,
                Drift { expected: 0, .. } => &mut self.orphan,
                _ => &mut self.wrong,
            } += 1;
        }
        self.dangling += diff.dangling.len() as u64;
        let room = samples.saturating_sub(self.dangling_keys.len());
        self.dangling_keys.extend(diff.dangling.iter().take(room).cloned());
        self.leave_alone(&diff.unsettled, samples);
        let room = samples.saturating_sub(self.samples.len());
        let counter = self.counter;
        self.samples.extend(diff.drifts.iter().take(room).map(|drift| Sample {
            counter,
            key: drift.key.clone(),
            stored: drift.stored,
            expected: drift.expected,
        }));
    }

    /// Records keys that are unsettled.
    pub(super) fn leave_alone(&mut self, keys: &[KeyBuf], samples: usize) {
        self.unsettled += keys.len() as u64;
        let room = samples.saturating_sub(self.unsettled_keys.len());
        self.unsettled_keys.extend(keys.iter().take(room).cloned());
    }

    /// Returns the number of keys that differ, of every kind.
    pub const fn drift(&self) -> u64 {
        self.wrong + self.missing + self.orphan
    }

    /// Returns whether the run passed over it, or over the rest of it.
    pub(super) const fn is_left_out(&self) -> bool {
        self.failure.is_some() || self.unchecked
    }

    /// Returns whether every key compared so far was right.
    pub(super) const fn is_clean(&self) -> bool {
        self.drift() == 0 && self.unsettled == 0
    }
}

impl Report {
    /// Reports the end of the run to metrics and events.
    pub(super) fn observe_end(&self) {
        observe::ended(&Ended {
            outcome: &self.outcome,
            pages: self.pages,
            keys: self.counters.iter().map(|counter| counter.keys).sum(),
            rows: self.rows,
            drift: self.drift(),
            corrected: self.counters.iter().map(|counter| counter.corrected).sum(),
        });
    }

    /// Returns the number of keys that differ, of every kind and counter.
    pub fn drift(&self) -> u64 {
        self.counters.iter().map(CounterReport::drift).sum()
    }

    /// Returns whether everything in scope was compared.
    pub fn complete(&self) -> bool {
        self.outcome == Outcome::Complete
    }

    /// Returns the report as a table with its samples, for people.
    pub const fn table(&self) -> impl fmt::Display + '_ {
        Table(self)
    }

    fn sum(&self, count: impl Fn(&CounterReport) -> u64) -> u64 {
        self.counters.iter().map(count).sum()
    }
}

/// One line, for logs.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = |count: u64, one: &str| {
            if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
        };
        write!(
            f,
            "{}: {}, {}: {} wrong, {} missing, {} orphan; {} corrected; {}, {}; {}",
            self.mode,
            many(self.counters.len() as u64, "counter"),
            many(self.sum(|counter| counter.keys), "key"),
            self.sum(|counter| counter.wrong),
            self.sum(|counter| counter.missing),
            self.sum(|counter| counter.orphan),
            self.sum(|counter| counter.corrected),
            many(self.pages, "page"),
            many(self.rows, "row"),
            self.outcome
        )?;
        for (keys, what) in [
            (self.sum(|counter| counter.dangling), "dangling membership"),
            (self.sum(|counter| counter.unsettled), "unsettled key"),
            (self.sum(|counter| counter.failure.is_some().into()), "failed counter"),
            (self.sum(|counter| counter.unchecked.into()), "unchecked counter"),
        ] {
            if keys > 0 {
                write!(f, "; {}", many(keys, what))?;
            }
        }
        self.overlap.map_or(Ok(()), |overlap| write!(f, "; {overlap}"))
    }
}

/// A report as a table, made by [`Report::table`].
#[derive(Debug, Clone, Copy)]
struct Table<'a>(&'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_width = self
            .0
            .counters
            .iter()
            .map(|counter| counter.counter.full_name().len())
            .max()
            .unwrap_or(0)
            .max(7);
        writeln!(
            f,
            "{:name_width$} {:>9} {:>7} {:>7} {:>7} {:>9}",
            "counter", "keys", "wrong", "missing", "orphan", "corrected"
        )?;
        for counter in &self.0.counters {
            writeln!(
                f,
                "{:name_width$} {:>9} {:>7} {:>7} {:>7} {:>9}",
                counter.counter.full_name(),
                counter.keys,
                counter.wrong,
                counter.missing,
                counter.orphan,
                counter.corrected
            )?;
        }
        for counter in &self.0.counters {
            let name = counter.counter.full_name();
            for sample in &counter.samples {
                let key = sample.key_text();
                writeln!(
                    f,
                    "  {name} of {key}: stored {}, true {}",
                    sample.stored, sample.expected
                )?;
            }
            for key in &counter.dangling_keys {
                let key = counter.counter.show(key);
                writeln!(
                    f,
                    "  {name} of {key}: a membership that dangles: its parent is not there"
                )?;
            }
            for key in &counter.unsettled_keys {
                let key = counter.counter.show(key);
                writeln!(
                    f,
                    "  {name} of {key}: unsettled: a write was under way, or its outcome is not known"
                )?;
            }
            if let Some(failure) = &counter.failure {
                writeln!(f, "  {name} failed, and was not compared to its end: {failure}")?;
            }
            if counter.unchecked {
                writeln!(f, "  {name} was not checked: the audit has no source for it")?;
            }
            if counter.drift() > counter.samples.len() as u64 && !counter.samples.is_empty() {
                writeln!(f, "  {name}: {} more", counter.drift() - counter.samples.len() as u64)?;
            }
        }
        write!(f, "{}", self.0)
    }
}

/// What a report writes. A field that is skipped is not counted either, as formats need it that
/// write the number of fields first.
#[derive(Serialize)]
#[serde(rename = "Report")]
struct ReportFields<'a> {
    counters: &'a [CounterReport],
    pages: u64,
    complete: bool,
    resume: &'a Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlap: Option<String>,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = ReportFields {
            counters: &self.counters,
            pages: self.pages,
            complete: self.complete(),
            resume: &self.token,
            overlap: self.overlap.map(|overlap| overlap.to_string()),
        };
        fields.serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename = "CounterReport")]
struct CounterFields<'a> {
    name: Cow<'a, str>,
    keys: u64,
    wrong: u64,
    missing: u64,
    orphan: u64,
    corrected: u64,
    samples: &'a [Sample],
    #[serde(skip_serializing_if = "Option::is_none")]
    dangling: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsettled: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unchecked: Option<bool>,
}

impl Serialize for CounterReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = CounterFields {
            name: self.counter.full_name(),
            keys: self.keys,
            wrong: self.wrong,
            missing: self.missing,
            orphan: self.orphan,
            corrected: self.corrected,
            samples: &self.samples,
            dangling: Some(self.dangling).filter(|keys| *keys > 0),
            unsettled: Some(self.unsettled).filter(|keys| *keys > 0),
            failure: self.failure.as_deref(),
            unchecked: Some(self.unchecked).filter(|is| *is),
        };
        fields.serialize(serializer)
    }
}

#[derive(Serialize)]
#[serde(rename = "Sample")]
struct SampleFields<'a> {
    key: SampleKey<'a>,
    stored: i64,
    #[serde(rename = "true")]
    expected: i64,
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields =
            SampleFields { key: SampleKey(self), stored: self.stored, expected: self.expected };
        fields.serialize(serializer)
    }
}

/// Serializes a key of one part as its value, a tuple as a list, and `()` as null.
struct SampleKey<'a>(&'a Sample);

impl Serialize for SampleKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Sample { counter, key, .. } = self.0;
        match counter.parts().values(key).as_deref() {
            Ok([]) => serializer.serialize_unit(),
            Ok([one]) => one.serialize(serializer),
            Ok(many) => {
                let mut list = serializer.serialize_seq(Some(many.len()))?;
                many.iter().try_for_each(|value| list.serialize_element(value))?;
                list.end()
            }
            Err(_) => serializer.collect_str(&counter.show(key)),
        }
    }
}
