//! Monitoring: what stores and the reconciler report to the crates `metrics` and `tracing`,
//! features that are off by default.
//!
//! No label and no event ever contains a key, or the text of an error, which may name one: keys may
//! be personal data. Find them in the report and in the error that the caller gets.
//!
//! # Metrics
//!
//! | name | kind | labels | what it counts |
//! | --- | --- | --- | --- |
//! | `keepcount_deltas_applied_total` | counter | `counter` | totals changed by applying batches, rollups included |
//! | `keepcount_batches_applied_total` | counter | `store` | applied batches that changed a total |
//! | `keepcount_apply_seconds` | histogram | `store` | the time that applying a batch took |
//! | `keepcount_pages_verified_total` | counter | `counter` | pages compared with their rows |
//! | `keepcount_keys_verified_total` | counter | `counter` | keys compared |
//! | `keepcount_rows_verified_total` | counter | `counter` | rows summed for that |
//! | `keepcount_drift_total` | counter | `counter`, `kind` | keys that differed: `wrong`, `missing` or `orphan` |
//! | `keepcount_repairs_total` | counter | `counter` | totals repaired |
//! | `keepcount_verification_age_seconds` | gauge | `counter` | the age of the last complete clean verification: **alert on this**, see [`Freshness`](crate::reconcile::Freshness) |
//!
//! `counter` is a counter's [full name](CounterId::full_name). `store` is `memory`, `sqlite` or
//! `postgres`, whatever library is used: if you apply a batch with the statements of
//! [`sql`](crate::sql), report it with
//! [`observe_applied`](crate::backend::RollupUpdate::observe_applied). A batch counts when it is
//! applied; whether the surrounding transaction then commits, only the application knows. In
//! memory, a single delta takes less time than reading the clock, so only one in 64 of them is
//! timed on each thread, the first included. All other batches are timed.
//! A reconciler reports its pages, repairs and end itself, whatever drives it.
//!
//! # Events
//!
//! All events have the target `keepcount`. Those of a run that
//! [`run`](crate::reconcile::run) or [`run_async`](crate::reconcile::run_async) drives are in its
//! span `reconcile`, whose field `mode` is `verify`, `repair` or `backfill`.
//!
//! | level | event | fields |
//! | --- | --- | --- |
//! | trace | a batch was applied | `store`, `totals`, `statements` |
//! | debug | a page was compared | `counter`, `keys`, `rows`, `drift` |
//! | warn | a page had drift | `counter`, `wrong`, `missing`, `orphan` |
//! | info | totals were repaired | `counter`, `corrected` |
//! | info | a counter is ready | `counter` |
//! | warn | a step failed | `counter`, `error` (its kind), `recovery` (`retry`, `permanent` or `indeterminate`), `ends` (whether the run does) |
//! | info | a run ended | `outcome`, `pages`, `keys`, `rows`, `drift`, `corrected` |
//!
//! # Examples
//!
//! ```
//! // Once at start, after an exporter was installed. Does nothing without the feature `metrics`.
//! keepcount::observe::describe();
//! ```

// Only this file knows these features. Without them the functions are empty and their arguments
// unused.
#![cfg_attr(
    not(all(feature = "metrics", feature = "tracing")),
    allow(unused_variables, clippy::missing_const_for_fn)
)]

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use crate::batch::Batch;
use crate::counter::CounterId;
use crate::error::{Error, Recovery};
use crate::key::KeyBuf;

/// Code that exists only with the feature `metrics`.
macro_rules! metric {
    ($($code:tt)*) => {
        #[cfg(feature = "metrics")]
        { $($code)*; }
    };
}

/// An event that exists only with the feature `tracing`.
macro_rules! event {
    ($level:ident, $($field:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::event!(target: "keepcount", tracing::Level::$level, $($field)*)
    };
}

/// Describes each metric and its unit to the metrics recorder.
///
/// Does nothing without the feature `metrics`.
///
/// Exporters show the descriptions as help texts. Call it once, after the exporter was installed.
pub fn describe() {
    metric!(counts::describe());
}

/// The kind of store that applied a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "sqlite", feature = "postgres")), allow(dead_code))]
pub(crate) enum Backend {
    Memory,
    Sqlite,
    Postgres,
}

/// When an apply began, if it is timed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    #[cfg(feature = "metrics")]
    at: Option<std::time::Instant>,
}

/// Call before a batch is applied.
#[inline]
pub(crate) fn begin(backend: Backend, batch: &Batch) -> Began {
    Began {
        #[cfg(feature = "metrics")]
        at: counts::begin(backend, batch),
    }
}

/// Call after a store applied a batch, with the deltas that it wrote.
#[inline]
pub(crate) fn stored<'a, D: Iterator<Item = (CounterId, &'a KeyBuf, i128)>>(
    backend: Backend,
    began: Began,
    (totals, statements): (u64, u64),
    deltas: impl FnOnce() -> D,
) {
    let _ = (backend, began, statements, &deltas);
    if totals > 0 {
        metric!(counts::applied(backend, began.at.map(|at| at.elapsed()), deltas()));
        event!(TRACE, store = backend.name(), totals, statements, "a batch was applied");
    }
}

/// Call after somebody else's library ran the statements of a batch.
pub(crate) fn applied(
    backend: Backend,
    took: Duration,
    batch: &Batch,
    statements: impl FnOnce() -> usize,
) {
    let _ = (backend, took, &statements);
    let totals = batch.len();
    if totals > 0 {
        metric!(counts::applied(backend, Some(took), batch.deltas()));
        event!(
            TRACE,
            store = backend.name(),
            totals,
            statements = statements(),
            "a batch was applied"
        );
    }
}

/// A run that is being driven. Its events are in its span until this is dropped.
pub(crate) struct Run {
    #[cfg(feature = "tracing")]
    _span: tracing::span::EnteredSpan,
}

pub(crate) fn run(mode: impl Display) -> Run {
    let _ = &mode;
    Run {
        #[cfg(feature = "tracing")]
        _span: span(mode).entered(),
    }
}

/// An async run. Its events are in its span, which is entered whenever the run is polled.
pub(crate) async fn run_async<F: Future>(mode: impl Display, run: F) -> F::Output {
    let _ = &mode;
    #[cfg(feature = "tracing")]
    let run = tracing::Instrument::instrument(run, span(mode));
    run.await
}

#[cfg(feature = "tracing")]
fn span(mode: impl Display) -> tracing::Span {
    tracing::info_span!(target: "keepcount", "reconcile", %mode)
}

/// Call after a page was compared, with its keys and rows, and how many keys were wrong, missing
/// and orphaned. One warning for each page states the drift, however much it is.
pub(crate) fn compared(
    counter: &CounterId,
    (keys, rows): (u64, u64),
    [wrong, missing, orphan]: [u64; 3],
) {
    metric!(counts::compared(counter, (keys, rows), [wrong, missing, orphan]));
    let (name, drift) = (counter.full_name(), wrong + missing + orphan);
    event!(DEBUG, counter = &*name, keys, rows, drift, "a page was compared");
    if drift > 0 {
        event!(WARN, counter = &*name, wrong, missing, orphan, "a page had drift");
    }
}

/// Call after a repair.
pub(crate) fn repaired(counter: &CounterId, corrected: u64) {
    if corrected > 0 {
        metric!(counts::repaired(counter, corrected));
        event!(INFO, counter = &*counter.full_name(), corrected, "totals were repaired");
    }
}

/// Call after a backfill made a counter ready to be read.
pub(crate) fn readied(counter: &CounterId) {
    event!(INFO, counter = &*counter.full_name(), "a counter is ready");
}

/// Call after a step failed, whether it is retried or not. The error's text is left out: it may
/// contain a key.
pub(crate) fn failed(
    counter: Option<CounterId>,
    error: &'static str,
    recovery: Recovery,
    ends: bool,
) {
    let counter = counter.map_or(Cow::Borrowed(""), |counter| counter.full_name());
    let recovery = match recovery {
        Recovery::Permanent => "permanent",
        Recovery::Retry => "retry",
        Recovery::Indeterminate => "indeterminate",
    };
    event!(WARN, counter = &*counter, error, recovery, ends, "a step failed");
}

/// The numbers of a run that ended.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
pub(crate) struct Ended<O> {
    pub(crate) outcome: O,
    pub(crate) pages: u64,
    pub(crate) keys: u64,
    pub(crate) rows: u64,
    pub(crate) drift: u64,
    pub(crate) corrected: u64,
}

/// Call after the last step of a run.
pub(crate) fn ended(run: &Ended<impl Display>) {
    let Ended { outcome, pages, keys, rows, drift, corrected } = run;
    let _ = (outcome, pages, keys, rows, drift, corrected);
    event!(INFO, outcome = %outcome, pages, keys, rows, drift, corrected, "a run ended");
}

/// The age of a counter's last complete clean verification; infinite if there was none.
pub(crate) fn verification_age(counter: &str, age: Option<Duration>) {
    metric!(counts::verification_age(counter, age));
}

/// The kind of an error, without what it is about.
pub(crate) const fn kind(error: &Error) -> &'static str {
    match error {
        Error::Overflow { .. } => "overflow",
        Error::Key { .. } => "key",
        Error::UnknownCounter { .. } => "unknown counter",
        Error::TwoRecords { .. } => "two records of a counter",
        Error::DefinitionConflict { .. } => "definition conflict",
        Error::Rollup { .. } => "rollup",
        Error::Pruned { .. } => "pruned",
        Error::SchemaMismatch { .. } => "schema mismatch",
        Error::Source { .. } => "source",
        Error::NoSource { .. } => "no source",
        Error::DefinitionMismatch { .. } => "definition mismatch",
        Error::SourceEmpty { .. } => "source empty",
        Error::DriftLimit { .. } => "drift limit",
        Error::Token { .. } => "token",
        Error::Snapshot { .. } => "snapshot",
        Error::InvalidUse { .. } => "invalid use",
        Error::Busy { .. } => "busy",
        Error::Database { .. } => "database",
        Error::TransactionLost { .. } => "transaction lost",
        Error::TransactionOpen { .. } => "transaction open",
        Error::Indeterminate { .. } => "indeterminate",
        Error::NotReady { .. } => "not ready",
        Error::Gap { .. } => "gap",
        Error::Overlap { .. } => "overlap",
        Error::LogTruncated { .. } => "log truncated",
    }
}

#[cfg(feature = "tracing")]
impl Backend {
    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

#[cfg(feature = "metrics")]
mod counts {
    use std::cell::{Cell, RefCell};
    use std::time::{Duration, Instant};

    use foldhash::HashMap;
    use metrics::{
        Key, Label, Level, Metadata, Unit, counter, describe_counter, describe_gauge,
        describe_histogram, gauge, histogram, with_recorder,
    };

    use super::Backend;
    use crate::batch::Batch;
    use crate::counter::CounterId;
    use crate::key::KeyBuf;

    const DELTAS: &str = "keepcount_deltas_applied_total";
    const BATCHES: &str = "keepcount_batches_applied_total";
    const SECONDS: &str = "keepcount_apply_seconds";
    const PAGES: &str = "keepcount_pages_verified_total";
    const KEYS: &str = "keepcount_keys_verified_total";
    const ROWS: &str = "keepcount_rows_verified_total";
    const DRIFT: &str = "keepcount_drift_total";
    const REPAIRS: &str = "keepcount_repairs_total";
    const AGE: &str = "keepcount_verification_age_seconds";

    /// One out of this many single deltas in memory is timed.
    const TIMED: u8 = 64;

    thread_local! {
        static SINGLES: Cell<u8> = const { Cell::new(0) };
        /// The key of [`DELTAS`] for each counter, by name and version: making it allocates.
        static DELTA_KEYS: RefCell<HashMap<(&'static str, u32), Key>> = RefCell::default();
    }

    pub(super) fn describe() {
        describe_counter!(
            DELTAS,
            Unit::Count,
            "Totals changed by applying batches, those of rollups included."
        );
        describe_counter!(BATCHES, Unit::Count, "Batches applied that changed a total.");
        describe_histogram!(
            SECONDS,
            Unit::Seconds,
            "How long applying a batch took; of single deltas in memory, one in 64 is timed."
        );
        describe_counter!(PAGES, Unit::Count, "Pages of totals compared with their rows.");
        describe_counter!(KEYS, Unit::Count, "Keys compared with their rows.");
        describe_counter!(ROWS, Unit::Count, "Rows added up for comparing.");
        describe_counter!(
            DRIFT,
            Unit::Count,
            "Keys whose total differed from their rows, by kind."
        );
        describe_counter!(REPAIRS, Unit::Count, "Totals repaired.");
        describe_gauge!(
            AGE,
            Unit::Seconds,
            "Age of the last complete clean verification; infinite when there was none."
        );
    }

    #[allow(clippy::disallowed_methods)] // only measured, never decided upon
    pub(super) fn begin(backend: Backend, batch: &Batch) -> Option<Instant> {
        let single = backend == Backend::Memory && batch.entries().len() == 1;
        let timed = !single || SINGLES.with(|count| count.replace((count.get() + 1) % TIMED)) == 0;
        timed.then(Instant::now)
    }

    pub(super) fn applied<'a>(
        backend: Backend,
        took: Option<Duration>,
        deltas: impl Iterator<Item = (CounterId, &'a KeyBuf, i128)>,
    ) {
        match backend {
            Backend::Memory => counter!(BATCHES, "store" => "memory"),
            Backend::Sqlite => counter!(BATCHES, "store" => "sqlite"),
            Backend::Postgres => counter!(BATCHES, "store" => "postgres"),
        }
        .increment(1);
        if let Some(took) = took {
            match backend {
                Backend::Memory => histogram!(SECONDS, "store" => "memory"),
                Backend::Sqlite => histogram!(SECONDS, "store" => "sqlite"),
                Backend::Postgres => histogram!(SECONDS, "store" => "postgres"),
            }
            .record(took);
        }
        let mut deltas = deltas.map(|(counter, ..)| counter).peekable();
        let Some(first) = deltas.next() else { return };
        if deltas.peek().is_none() {
            return add_deltas(&first, 1);
        }
        let mut counted = HashMap::from_iter([(first.order(), (first, 1))]);
        deltas.for_each(|counter| counted.entry(counter.order()).or_insert((counter, 0)).1 += 1);
        for (counter, count) in counted.into_values() {
            add_deltas(&counter, count);
        }
    }

    fn add_deltas(counter: &CounterId, count: u64) {
        static METADATA: Metadata<'_> =
            Metadata::new("keepcount", Level::INFO, Some(module_path!()));
        let add = |key: &Key| {
            with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(count));
        };
        let key = || Key::from_parts(DELTAS, vec![Label::new("counter", counter.full_name())]);
        DELTA_KEYS.with(|keys| match keys.try_borrow_mut() {
            Ok(mut keys) => add(keys.entry(counter.order()).or_insert_with(key)),
            // The recorder itself applies batches.
            Err(_) => add(&key()),
        });
    }

    pub(super) fn compared(
        counter: &CounterId,
        (keys, rows): (u64, u64),
        [wrong, missing, orphan]: [u64; 3],
    ) {
        let name = || counter.full_name();
        counter!(PAGES, "counter" => name()).increment(1);
        counter!(KEYS, "counter" => name()).increment(keys);
        counter!(ROWS, "counter" => name()).increment(rows);
        // Also at 0: an alert on an increase needs the series to exist before it increases.
        for (kind, count) in [("wrong", wrong), ("missing", missing), ("orphan", orphan)] {
            counter!(DRIFT, "counter" => name(), "kind" => kind).increment(count);
        }
    }

    pub(super) fn repaired(counter: &CounterId, corrected: u64) {
        counter!(REPAIRS, "counter" => counter.full_name()).increment(corrected);
    }

    pub(super) fn verification_age(counter: &str, age: Option<Duration>) {
        let seconds = age.map_or(f64::INFINITY, |age| age.as_secs_f64());
        gauge!(AGE, "counter" => counter.to_owned()).set(seconds);
    }
}
