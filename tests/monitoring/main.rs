//! What metrics and tracing receive, and that they never receive keys. Freshness over stopped runs
//! and restarts. Progress in virtual time.
//!
//! Needs the features `metrics` and `tracing`: `cargo test --all-features --test monitoring`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod panics;
#[path = "../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use keepcount::backend::RollupUpdate;
use keepcount::reconcile::audit::{
    PageDiff, PageRequest, Probe, ProbeResult, Recount, RepairRequest, Repaired, merge,
};
use keepcount::reconcile::{
    Audit, Columns, Freshness, MemoryAudit, Mode, Options, Outcome, Progress, Reconciler, Report,
    Runtime, SqliteAudit, SqliteRows, SystemRuntime, Token, run,
};
use keepcount::sql::{Dialect, Value};
use keepcount::{
    AsyncStore, Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, PostgresStore, Record,
    Result, Schema, SqliteStore, Store, StreamRange, Tally,
};
use metrics::{HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use panics::assert_recorder_panics;
use rusqlite::Connection;
use support::world::{Clock, World, run_whole, through_text};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};

const USER_VOTES: Counter<String> = Counter::new("user.votes");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const SCHEMA: Schema = Schema::new(&[USER_VOTES.table(), SHOW_VOTES.table()]);

/// Part of every key in the tests of metrics and events, and of nothing else.
const SECRET: &str = "7340033";

struct Vote {
    user: String,
    show: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(USER_VOTES, &self.user, 1);
        to.add(SHOW_VOTES, self.show, 1);
    }
}

fn user(name: &str) -> String {
    format!("{name}-{SECRET}")
}

fn show(number: i64) -> i64 {
    SECRET.parse::<i64>().unwrap() * 10 + number
}

fn vote(name: &str, number: i64) -> Vote {
    Vote { user: user(name), show: show(number) }
}

fn verify(audit: &mut impl Audit) -> Report {
    run_whole(Mode::Verify, &SCHEMA, Options::default(), audit).unwrap()
}

fn repair(audit: &mut impl Audit) -> Report {
    run_whole(Mode::Repair, &SCHEMA, Options::default(), audit).unwrap()
}

// The recorder and the subscriber.

/// Everything that was recorded, each metric as `name{label="value"}`.
#[derive(Debug, Default)]
struct Metrics {
    counts: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    gauges: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    times: Mutex<BTreeMap<String, Arc<Times>>>,
    described: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Times(Mutex<Vec<f64>>);

impl HistogramFn for Times {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn series(key: &Key) -> String {
    let labels: Vec<String> =
        key.labels().map(|label| format!("{}={:?}", label.key(), label.value())).collect();
    format!("{}{{{}}}", key.name(), labels.join(","))
}

impl Metrics {
    fn describe(&self, kind: &str, name: &KeyName, unit: Option<Unit>) {
        let line = format!("{kind} {} {}", name.as_str(), unit.unwrap().as_str());
        self.described.lock().unwrap().push(line);
    }

    /// Every series with its value. The value of a histogram is the number of its samples.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (name, count) in &*self.counts.lock().unwrap() {
            lines.push(format!("{name} {}", count.load(Ordering::Relaxed)));
        }
        for (name, gauge) in &*self.gauges.lock().unwrap() {
            lines.push(format!("{name} {}", f64::from_bits(gauge.load(Ordering::Relaxed))));
        }
        for (name, times) in &*self.times.lock().unwrap() {
            let times = times.0.lock().unwrap();
            assert!(times.iter().all(|seconds| (0.0..60.0).contains(seconds)), "{times:?}");
            lines.push(format!("{name} {}", times.len()));
        }
        lines.sort();
        lines
    }

    fn count(&self, name: &str) -> u64 {
        self.counts.lock().unwrap().get(name).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe("counter", &name, unit);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe("gauge", &name, unit);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
        self.describe("histogram", &name, unit);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
        let mut counts = self.counts.lock().unwrap();
        metrics::Counter::from_arc(Arc::clone(counts.entry(series(key)).or_default()))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        let mut gauges = self.gauges.lock().unwrap();
        metrics::Gauge::from_arc(Arc::clone(gauges.entry(series(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        let mut times = self.times.lock().unwrap();
        metrics::Histogram::from_arc(Arc::clone(times.entry(series(key)).or_default()))
    }
}

/// Writes every event as a line, with the span that contains it, to a log of each thread. There is
/// one subscriber for the process: tracing caches for each call site whether a subscriber is
/// interested, and caches wrong answers if each test thread sets its own.
#[derive(Debug)]
struct Events;

#[derive(Debug, Default)]
struct Log {
    spans: Vec<String>,
    within: Vec<usize>,
    lines: Vec<String>,
}

thread_local! {
    static LOG: RefCell<Log> = RefCell::default();
}

impl Events {
    fn listen() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| tracing::subscriber::set_global_default(Self).unwrap());
        Self::take();
    }

    /// Returns the events of this thread since the last call.
    fn take() -> Vec<String> {
        LOG.with_borrow_mut(|log| std::mem::take(&mut log.lines))
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            write!(self.message, "{value:?}").unwrap();
        } else {
            write!(self.others, " {}={value:?}", field.name()).unwrap();
        }
    }
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "keepcount"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields::default();
        span.record(&mut fields);
        LOG.with_borrow_mut(|log| {
            log.spans.push(format!("{}{{{}}} ", span.metadata().name(), fields.others.trim()));
            Id::from_u64(log.spans.len() as u64)
        })
    }

    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        LOG.with_borrow_mut(|log| {
            let span = log.within.last().map_or("", |at| log.spans[*at].as_str());
            let level = event.metadata().level();
            log.lines.push(format!("{level} {span}{}:{}", fields.message, fields.others));
        });
    }

    fn enter(&self, span: &Id) {
        let at = usize::try_from(span.into_u64()).unwrap() - 1;
        LOG.with_borrow_mut(|log| log.within.push(at));
    }

    fn exit(&self, _: &Id) {
        LOG.with_borrow_mut(|log| log.within.pop());
    }
}

/// Returns what `work` reported to metrics and tracing.
fn observed<T>(work: impl FnOnce() -> T) -> (T, Metrics, Vec<String>) {
    Events::listen();
    let metrics = Metrics::default();
    let done = metrics::with_local_recorder(&metrics, work);
    (done, metrics, Events::take())
}

fn assert_without_keys(metrics: &Metrics, events: &[String]) {
    let lines = metrics.lines();
    for line in lines.iter().chain(events) {
        assert!(!line.contains(SECRET), "the line contains a key: {line}");
    }
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "CREATE TABLE votes (id INTEGER PRIMARY KEY, user TEXT NOT NULL, show INTEGER NOT NULL);
         CREATE INDEX votes_by_user ON votes (user);
         CREATE INDEX votes_by_show ON votes (show);",
    )
    .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn
}

fn insert(conn: &Connection, votes: &[Vote]) -> Result<()> {
    let mut batch = Batch::new();
    for vote in votes {
        conn.execute("INSERT INTO votes (user, show) VALUES (?1, ?2)", (&vote.user, vote.show))
            .unwrap();
        batch.insert(vote);
    }
    SqliteStore::new(conn, &SCHEMA).apply(&mut batch).map(drop)
}

/// The votes as a source, with the columns that count them for users.
fn votes(of_users: Columns) -> SqliteRows {
    SqliteRows::of("votes", |row| Ok(Vote { user: row.get("user")?, show: row.get("show")? }))
        .key(USER_VOTES, of_users)
        .key(SHOW_VOTES, Columns::of(["show"]).count())
}

fn sqlite_audit(conn: &Connection) -> SqliteAudit<'_> {
    let mut audit = SqliteAudit::new(conn, &SCHEMA).unwrap();
    audit.add(votes(Columns::of(["user"]).count())).unwrap();
    audit
}

#[test]
fn sqlite_run_is_counted_by_counter_and_never_by_key() {
    let conn = database();
    let ((), metrics, events) = observed(|| {
        insert(&conn, &[vote("ann", 1), vote("bob", 1), vote("cid", 2)]).unwrap();
        insert(&conn, &[vote("ann", 2)]).unwrap();
        insert(&conn, &[]).unwrap();
        // One wrong, one missing, one orphan.
        conn.execute("UPDATE user_votes SET total = 5 WHERE key = ?1", [user("ann")]).unwrap();
        conn.execute("DELETE FROM user_votes WHERE key = ?1", [user("bob")]).unwrap();
        conn.execute("INSERT INTO user_votes VALUES (?1, 3)", [user("eve")]).unwrap();

        let mut freshness = Freshness::new(&SCHEMA);
        freshness.observe(&repair(&mut sqlite_audit(&conn)), 1_000);
        freshness.publish(1_060);
        assert_eq!(verify(&mut sqlite_audit(&conn)).drift(), 0);
    });
    assert_eq!(
        metrics.lines(),
        [
            r#"keepcount_apply_seconds{store="sqlite"} 2"#,
            r#"keepcount_batches_applied_total{store="sqlite"} 2"#,
            r#"keepcount_deltas_applied_total{counter="show.votes"} 3"#,
            r#"keepcount_deltas_applied_total{counter="user.votes"} 4"#,
            r#"keepcount_drift_total{counter="show.votes",kind="missing"} 0"#,
            r#"keepcount_drift_total{counter="show.votes",kind="orphan"} 0"#,
            r#"keepcount_drift_total{counter="show.votes",kind="wrong"} 0"#,
            r#"keepcount_drift_total{counter="user.votes",kind="missing"} 1"#,
            r#"keepcount_drift_total{counter="user.votes",kind="orphan"} 1"#,
            r#"keepcount_drift_total{counter="user.votes",kind="wrong"} 1"#,
            r#"keepcount_keys_verified_total{counter="show.votes"} 4"#,
            r#"keepcount_keys_verified_total{counter="user.votes"} 7"#,
            r#"keepcount_pages_verified_total{counter="show.votes"} 2"#,
            r#"keepcount_pages_verified_total{counter="user.votes"} 2"#,
            r#"keepcount_repairs_total{counter="user.votes"} 3"#,
            r#"keepcount_rows_verified_total{counter="show.votes"} 8"#,
            r#"keepcount_rows_verified_total{counter="user.votes"} 8"#,
            r#"keepcount_verification_age_seconds{counter="show.votes"} 60"#,
            r#"keepcount_verification_age_seconds{counter="user.votes"} inf"#,
        ]
    );
    assert_eq!(
        events,
        [
            r#"TRACE a batch was applied: store="sqlite" totals=5 statements=5"#,
            r#"TRACE a batch was applied: store="sqlite" totals=2 statements=2"#,
            r#"DEBUG reconcile{mode=repair} a page was compared: counter="show.votes" keys=2 rows=4 drift=0"#,
            r#"DEBUG reconcile{mode=repair} a page was compared: counter="user.votes" keys=4 rows=4 drift=3"#,
            r#"WARN reconcile{mode=repair} a page had drift: counter="user.votes" wrong=1 missing=1 orphan=1"#,
            r#"INFO reconcile{mode=repair} totals were repaired: counter="user.votes" corrected=3"#,
            r"INFO reconcile{mode=repair} a run ended: outcome=complete pages=2 keys=6 rows=8 drift=3 corrected=3",
            r#"DEBUG reconcile{mode=verify} a page was compared: counter="show.votes" keys=2 rows=4 drift=0"#,
            r#"DEBUG reconcile{mode=verify} a page was compared: counter="user.votes" keys=3 rows=4 drift=0"#,
            r"INFO reconcile{mode=verify} a run ended: outcome=complete pages=2 keys=5 rows=8 drift=0 corrected=0",
        ]
    );
    assert_without_keys(&metrics, &events);
}

/// A setlist has votes and belongs to a show. The show's total is the sum over its setlists.
const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_SUM: Counter<i64> = Counter::new("show.sum").sum_of(SETLIST_VOTES, SETLIST_SHOW);
const LEVELS: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_SHOW.table(),
    SHOW_SUM.table(),
    SHOW_VOTES.table(),
]);

#[test]
fn memory_batches_are_counted_with_their_rollup_updates() {
    let ((), metrics, events) = observed(|| {
        let store = MemoryStore::new(&LEVELS);
        let mut batch = Batch::new();
        batch.add(SETLIST_SHOW, (show(1), show(2)), 1);
        batch.add(SETLIST_VOTES, show(1), 3);
        store.apply(&mut batch.clone()).unwrap();
        batch.clear();
        store.apply(&mut batch.clone()).unwrap();
        batch.add(SHOW_VOTES, show(1), 1);
        batch.add(SHOW_VOTES, show(1), -1);
        store.apply(&mut batch.clone()).unwrap(); // nothing is left of it
    });
    assert_eq!(
        metrics.lines(),
        [
            r#"keepcount_apply_seconds{store="memory"} 1"#,
            r#"keepcount_batches_applied_total{store="memory"} 1"#,
            r#"keepcount_deltas_applied_total{counter="setlist.show"} 1"#,
            r#"keepcount_deltas_applied_total{counter="setlist.votes"} 1"#,
            r#"keepcount_deltas_applied_total{counter="show.sum"} 1"#,
        ]
    );
    assert_eq!(events, [r#"TRACE a batch was applied: store="memory" totals=3 statements=0"#]);
    assert_without_keys(&metrics, &events);
}

/// Batches that another library applied were not reported. Their statements are now reported as the
/// store reports its own.
#[test]
fn batch_applied_by_another_library_is_reported_as_the_store_reports_it() {
    let mut batch = Batch::new();
    batch.add(SETLIST_SHOW, (show(1), show(2)), 1);
    batch.add(SETLIST_VOTES, show(1), 3);
    let applied = |by_store: bool| {
        let conn = Connection::open_in_memory().unwrap();
        SqliteStore::new(&conn, &LEVELS).create().unwrap();
        observed(|| {
            if by_store {
                return drop(SqliteStore::new(&conn, &LEVELS).apply(&mut batch.clone()).unwrap());
            }
            for batch in [&batch, &Batch::new()] {
                let mut update = RollupUpdate::new(&LEVELS, batch).unwrap();
                while update.next().unwrap().is_some() {} // no total was there before
                for statement in update.statements(Dialect::Sqlite).unwrap() {
                    for row in statement.rows() {
                        let values = row.iter().map(|value| match value {
                            Value::Integer(number) => *number,
                            other => panic!("{other:?}"),
                        });
                        conn.execute(&statement.text, rusqlite::params_from_iter(values)).unwrap();
                    }
                }
                update.observe_applied(Dialect::Sqlite, Duration::from_millis(3));
            }
            assert_eq!(SqliteStore::new(&conn, &LEVELS).total(SHOW_SUM, show(2)).unwrap(), 3);
        })
    };
    let ((), wanted, wanted_events) = applied(true);
    let ((), metrics, events) = applied(false);
    assert_eq!((metrics.lines(), &events), (wanted.lines(), &wanted_events));
    assert!(metrics.lines().len() == 5 && events.len() == 1, "{events:?}");
    assert_without_keys(&metrics, &events);
}

struct Newer(i64);

impl Record for Newer {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
        to.add(SHOW_VOTES.version(2), self.0, 2);
    }
}

#[test]
fn backfill_reports_full_names_of_counters_and_which_became_ready() {
    const BOTH: Schema = Schema::new(&[SHOW_VOTES.table(), SHOW_VOTES.version(2).table()]);
    let rows = || [Newer(show(1)), Newer(show(2))];
    let mut store = MemoryStore::pending_backfill(&BOTH);
    let ((), metrics, events) = observed(|| {
        let mut batch = Batch::new();
        batch.insert(&rows()[0]);
        store.apply(&mut batch).unwrap();
        let mut audit = MemoryAudit::new(&mut store);
        audit.add(SHOW_VOTES, |_| rows()).unwrap();
        audit.add(SHOW_VOTES.version(2), |_| rows()).unwrap();
        let mut backfill = Reconciler::new(Mode::Backfill, &BOTH, Options::default()).unwrap();
        assert!(run(&mut backfill, &mut audit, &mut World::default()).unwrap().complete());
    });
    for counter in ["show.votes", "show.votes.v2"] {
        for metric in ["deltas_applied", "pages_verified", "repairs"] {
            assert_eq!(
                metrics.count(&format!(r#"keepcount_{metric}_total{{counter="{counter}"}}"#)),
                1,
                "{metric}"
            );
        }
        let missing = format!(r#"keepcount_drift_total{{counter="{counter}",kind="missing"}}"#);
        assert_eq!(metrics.count(&missing), 1);
        let ready =
            format!(r#"INFO reconcile{{mode=backfill}} a counter is ready: counter="{counter}""#);
        assert_eq!(events.iter().filter(|event| **event == ready).count(), 1, "{events:#?}");
    }
    assert_without_keys(&metrics, &events);
}

#[test]
fn every_single_delta_in_memory_is_counted_and_one_in_64_is_timed() {
    let ((), metrics, _) = observed(|| {
        let store = MemoryStore::new(&LEVELS);
        let mut batch = Batch::new();
        batch.add(SHOW_VOTES, show(1), 1);
        for _ in 0..129 {
            store.apply(&mut batch.clone()).unwrap();
        }
    });
    assert_eq!(
        metrics.lines(),
        [
            r#"keepcount_apply_seconds{store="memory"} 3"#,
            r#"keepcount_batches_applied_total{store="memory"} 129"#,
            r#"keepcount_deltas_applied_total{counter="show.votes"} 129"#,
        ]
    );
}

#[test]
fn batches_that_fail_are_not_counted() {
    let ((), metrics, events) = observed(|| {
        let mut batch = Batch::new();
        batch.add(SHOW_VOTES, show(1), i64::MAX);
        batch.add(USER_VOTES, user("ann"), 1);
        let (memory, conn) = (MemoryStore::new(&SCHEMA), database());
        memory.apply(&mut batch.clone()).unwrap();
        SqliteStore::new(&conn, &SCHEMA).apply(&mut batch.clone()).unwrap();
        assert!(matches!(memory.apply(&mut batch.clone()), Err(Error::Overflow { .. })));
        assert!(matches!(
            SqliteStore::new(&conn, &SCHEMA).apply(&mut batch),
            Err(Error::Overflow { .. })
        ));
    });
    for store in ["memory", "sqlite"] {
        assert_eq!(
            metrics.count(&format!(r#"keepcount_batches_applied_total{{store="{store}"}}"#)),
            1
        );
    }
    assert_eq!(metrics.count(r#"keepcount_deltas_applied_total{counter="user.votes"}"#), 2);
    assert_eq!(events.len(), 2);
    assert_without_keys(&metrics, &events);
}

/// Runs on this thread only, because the recorder is local to the thread.
#[cfg(unix)]
#[test]
fn batches_in_postgresql_are_counted_once_for_their_events() {
    let Some(server) = support::postgres::shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ((), metrics, events) = observed(|| {
        runtime.block_on(async {
            let mut client = support::postgres::connect(&server.database().await).await;
            let mut store = PostgresStore::new(&mut client, &SCHEMA);
            store.create().await.unwrap();
            let (mut batch, stream_range) =
                (Batch::new(), StreamRange::new("votes", 1, 1).unwrap());
            batch.add(SHOW_VOTES, show(1), 1);
            for skipped in [false, true] {
                assert_eq!(
                    store
                        .apply_idempotent(&mut batch.clone(), &stream_range)
                        .await
                        .unwrap()
                        .skipped,
                    skipped
                );
            }
            store.write(&[], &mut batch.clone()).await.unwrap();
            batch.add(SHOW_VOTES, show(1), i64::MAX - 1);
            assert!(
                store.apply(&mut batch.clone()).await.is_err()
                    && store.write(&[], &mut batch.clone()).await.is_err()
            );
        });
    });
    assert_eq!(metrics.count(r#"keepcount_batches_applied_total{store="postgres"}"#), 2);
    assert_eq!(metrics.count(r#"keepcount_deltas_applied_total{counter="show.votes"}"#), 2);
    let applied = r#"TRACE a batch was applied: store="postgres" totals=1 statements=1"#;
    assert_eq!(events.iter().filter(|event| *event == applied).count(), 2, "{events:?}");
    assert_without_keys(&metrics, &events);
}

/// The batch was full although it was committed, and counted twice if its caller applied it again.
#[test]
fn batch_is_empty_after_its_commit_even_if_the_recorder_panics() {
    let conn = database();
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let mut batch = Batch::new();
    batch.add(SHOW_VOTES, show(1), 1);
    assert_recorder_panics(|| drop(store.apply(&mut batch)));
    assert!(batch.is_empty() && conn.is_autocommit());
    store.apply(&mut batch).unwrap();
    assert_eq!(store.total(SHOW_VOTES, show(1)).unwrap(), 1);
}

/// The same in PostgreSQL.
#[cfg(unix)]
#[test]
fn batch_in_postgresql_is_empty_after_its_commit_even_if_the_recorder_panics() {
    let Some(server) = support::postgres::shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut client = runtime.block_on(async {
        let mut client = support::postgres::connect(&server.database().await).await;
        PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
        client
    });
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    for is_write in [false, true] {
        let mut batch = Batch::new();
        batch.add(SHOW_VOTES, show(1), 1);
        assert_recorder_panics(|| {
            runtime.block_on(async {
                if is_write {
                    drop(store.write(&[], &mut batch).await);
                } else {
                    drop(store.apply(&mut batch).await);
                }
            });
        });
        assert!(batch.is_empty(), "{is_write}");
    }
    assert_eq!(runtime.block_on(store.total(SHOW_VOTES, show(1))).unwrap(), 2);
}

#[test]
fn every_metric_is_described_by_its_name_and_unit() {
    let ((), metrics, _) = observed(keepcount::observe::describe);
    assert_eq!(
        *metrics.described.lock().unwrap(),
        [
            "counter keepcount_deltas_applied_total count",
            "counter keepcount_batches_applied_total count",
            "histogram keepcount_apply_seconds seconds",
            "counter keepcount_pages_verified_total count",
            "counter keepcount_keys_verified_total count",
            "counter keepcount_rows_verified_total count",
            "counter keepcount_drift_total count",
            "counter keepcount_repairs_total count",
            "gauge keepcount_verification_age_seconds seconds",
        ]
    );
}

#[test]
fn errors_are_reported_by_kind_without_the_key_that_they_name() {
    let conn = database();
    insert(&conn, &[vote("ann", 1), vote("bob", 2)]).unwrap();
    conn.execute("UPDATE user_votes SET total = 5 WHERE key = ?1", [user("ann")]).unwrap();
    let ((), metrics, events) = observed(|| {
        // A source whose amount differs from the record's tally.
        let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
        audit.add(votes(Columns::of(["user"]).sum("2"))).unwrap();
        let error = run_whole(Mode::Repair, &SCHEMA, Options::default(), &mut audit).unwrap_err();
        assert!(matches!(error, Error::DefinitionMismatch { .. }));
        assert!(error.to_string().contains(SECRET), "the error names the key: {error}");
        // A database that is locked.
        let mut audit = Busy(3);
        run_whole(Mode::Verify, &SCHEMA, Options::default(), &mut audit).unwrap();
    });
    assert_eq!(
        events,
        [
            r#"WARN reconcile{mode=repair} a step failed: counter="user.votes" error="definition mismatch" recovery="permanent" ends=true"#,
            r"INFO reconcile{mode=repair} a run ended: outcome=failed pages=0 keys=0 rows=0 drift=0 corrected=0",
            r#"WARN reconcile{mode=verify} a step failed: counter="" error="busy" recovery="retry" ends=false"#,
            r#"WARN reconcile{mode=verify} a step failed: counter="show.votes" error="busy" recovery="retry" ends=false"#,
            r#"WARN reconcile{mode=verify} a step failed: counter="show.votes" error="busy" recovery="retry" ends=false"#,
            r#"DEBUG reconcile{mode=verify} a page was compared: counter="show.votes" keys=0 rows=0 drift=0"#,
            r#"DEBUG reconcile{mode=verify} a page was compared: counter="user.votes" keys=0 rows=0 drift=0"#,
            r"INFO reconcile{mode=verify} a run ended: outcome=complete pages=2 keys=0 rows=0 drift=0 corrected=0",
        ]
    );
    assert_without_keys(&metrics, &events);
}

/// An audit without rows that fails as busy this many times: the third last time and those before
/// it when it is asked which totals these are, the others when it compares.
struct Busy(u32);

impl Busy {
    fn fail(&mut self, above: u32) -> Result<()> {
        if self.0 <= above {
            return Ok(());
        }
        self.0 -= 1;
        let operation = format!("measuring {}", user("ann"));
        Err(Error::Busy { operation, reason: "somebody holds it", cause: "locked".into() })
    }
}

impl Audit for Busy {
    fn identity(&mut self) -> Result<u64> {
        self.fail(2)?;
        Ok(0)
    }

    fn probe(&mut self, _: &Probe) -> Result<ProbeResult> {
        Ok(ProbeResult { empty: false, totals: 0 })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        self.fail(0)?;
        merge(ask, vec![], vec![])
    }

    fn repair(&mut self, _: &RepairRequest) -> Result<Repaired> {
        Ok(Repaired::default())
    }
}

// Freshness.

const ONE: Schema = Schema::new(&[SHOW_VOTES.table()]);

struct Show(i64);

impl Record for Show {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
    }
}

/// Ten shows, each of one vote.
const SHOWS: [Show; 10] =
    [Show(0), Show(1), Show(2), Show(3), Show(4), Show(5), Show(6), Show(7), Show(8), Show(9)];

fn shows() -> MemoryStore {
    let store = MemoryStore::new(&ONE);
    let mut batch = Batch::new();
    for show in &SHOWS {
        batch.insert(show);
    }
    store.apply(&mut batch).unwrap();
    store
}

fn add(store: &MemoryStore, show: i64, amount: i64) {
    let mut batch = Batch::new();
    batch.add(SHOW_VOTES, show, amount);
    store.apply(&mut batch).unwrap();
}

/// One leg: three pages of two keys, from the token on.
fn run_leg(mode: Mode, store: &mut MemoryStore, token: Option<&Token>) -> Report {
    let mut audit = MemoryAudit::new(store);
    audit.add(SHOW_VOTES, |_| SHOWS.iter()).unwrap();
    let options = Options::default().page(2).max_pages(3);
    let mut reconciler = match token {
        Some(token) => Reconciler::resume(mode, &ONE, &through_text(token), options).unwrap(),
        None => Reconciler::new(mode, &ONE, options).unwrap(),
    };
    run(&mut reconciler, &mut audit, &mut World::default()).unwrap()
}

fn verify_of(schema: &Schema, audit: &mut impl Audit) -> Report {
    let mut verify = Reconciler::new(Mode::Verify, schema, Options::default()).unwrap();
    run(&mut verify, audit, &mut World::default()).unwrap()
}

fn age(freshness: &Freshness, now: i64) -> Option<u64> {
    freshness.age(&SHOW_VOTES.id(), now).map(|age| age.as_secs())
}

#[test]
fn counter_verified_in_legs_is_clean_if_every_leg_was() {
    let mut store = shows();
    let mut freshness = Freshness::new(&ONE);
    let first = run_leg(Mode::Verify, &mut store, None);
    freshness.observe(&first, 100);
    assert_eq!(age(&freshness, 100), None, "the run has not ended");
    let second = run_leg(Mode::Verify, &mut store, first.token.as_ref());
    assert!(second.complete());
    freshness.observe(&second, 200);
    assert_eq!(age(&freshness, 260), Some(160), "the age counts from the first leg, not the last");

    // Drift in the keys of the first leg, removed before the second leg.
    add(&store, 1, 1);
    let first = run_leg(Mode::Verify, &mut store, None);
    add(&store, 1, -1);
    let second = run_leg(Mode::Verify, &mut store, first.token.as_ref());
    assert!(second.complete() && second.drift() == 0);
    freshness.observe(&first, 300);
    freshness.observe(&second, 400);
    assert_eq!(age(&freshness, 400), Some(300), "the first leg was not clean");

    // Drift in the keys of the second leg.
    let first = run_leg(Mode::Verify, &mut store, None);
    add(&store, 9, 1);
    let second = run_leg(Mode::Verify, &mut store, first.token.as_ref());
    freshness.observe(&second, 500);
    assert_eq!(age(&freshness, 500), Some(400));
}

#[test]
fn repaired_counter_is_clean_after_the_next_run() {
    let mut store = shows();
    let mut freshness = Freshness::new(&ONE);
    let whole = |store: &mut MemoryStore, freshness: &mut Freshness, now| {
        let first = run_leg(Mode::Repair, store, None);
        freshness.observe(&first, now);
        freshness.observe(&run_leg(Mode::Repair, store, first.token.as_ref()), now);
    };
    add(&store, 1, 1);
    whole(&mut store, &mut freshness, 100);
    assert_eq!(age(&freshness, 100), None);
    assert_eq!(freshness.oldest(100), Some(("show.votes", None)));
    whole(&mut store, &mut freshness, 200);
    assert_eq!(age(&freshness, 200), Some(0), "a repair without drift verifies the counter");
}

/// Another audit ran between two legs and found drift. Its result was discarded when the legs
/// completed, because the stopped leg did not know of that audit.
#[test]
fn drift_found_by_another_run_outlives_legs_that_began_before_it() {
    let mut store = shows();
    let mut freshness = Freshness::new(&ONE);
    let first = run_leg(Mode::Verify, &mut store, None);
    freshness.observe(&first, 100);
    add(&store, 1, 1); // a key that the first leg has passed
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(SHOW_VOTES, |_| SHOWS.iter()).unwrap();
    let beside = verify_of(&ONE, &mut audit);
    assert_eq!(beside.drift(), 1);
    drop(audit);
    freshness.observe(&beside, 150);
    let second = run_leg(Mode::Verify, &mut store, first.token.as_ref());
    assert!(second.complete() && second.drift() == 0);
    freshness.observe(&second, 200);
    assert_eq!(age(&freshness, 200), None, "the counter is known to have drift");
}

/// A token that was resumed every day reported every day that the counter was clean.
#[test]
fn replayed_token_gives_the_age_since_its_first_leg() {
    let mut store = shows();
    let mut freshness = Freshness::new(&ONE);
    let first = run_leg(Mode::Verify, &mut store, None);
    freshness.observe(&first, 100);
    for day in 1..5 {
        let again = run_leg(Mode::Verify, &mut store, first.token.as_ref());
        assert!(again.complete());
        freshness.observe(&again, 100 + day * 86_400);
        assert_eq!(age(&freshness, 100 + day * 86_400), Some(day.unsigned_abs() * 86_400));
    }
}

/// After the saved value was lost, the last leg was taken for a whole run.
#[test]
fn legs_with_an_unknown_beginning_give_no_age() {
    let mut store = shows();
    let first = run_leg(Mode::Verify, &mut store, None);
    let mut lost = Freshness::new(&ONE);
    let second = run_leg(Mode::Verify, &mut store, first.token.as_ref());
    lost.observe(&second, 200);
    assert_eq!(age(&lost, 200), None);
}

/// One setlist of one show, and its votes.
enum Leaf {
    Setlist,
    Vote,
}

impl Record for Leaf {
    fn tally(&self, to: &mut Tally<'_>) {
        match self {
            Self::Setlist => to.add(SETLIST_SHOW, (1_i64, 7_i64), 1),
            Self::Vote => to.add(SETLIST_VOTES, 1_i64, 1),
        }
    }
}

fn leaves(store: &mut MemoryStore, votes: usize) -> MemoryAudit<'_> {
    let mut audit = MemoryAudit::new(store);
    audit.add(SETLIST_SHOW, |_| [Leaf::Setlist]).unwrap();
    audit.add(SETLIST_VOTES, move |_| std::iter::repeat_with(|| Leaf::Vote).take(votes)).unwrap();
    audit
}

/// A verify of a rollup alone compared it with its base, which lacked the same votes, and called it
/// clean.
#[test]
fn rollup_is_clean_only_if_its_base_and_membership_are() {
    let mut store = MemoryStore::new(&LEVELS);
    let mut batch = Batch::new();
    batch.insert(&Leaf::Setlist);
    store.apply(&mut batch).unwrap();
    let mut freshness = Freshness::new(&LEVELS);
    let verify = |store: &mut MemoryStore, votes| {
        let mut verify =
            Reconciler::scoped(Mode::Verify, &LEVELS, &[SHOW_SUM.id()], Options::default())
                .unwrap();
        run(&mut verify, &mut leaves(store, votes), &mut World::default()).unwrap()
    };
    let report = verify(&mut store, 500); // 500 votes were written without hooks
    let found: Vec<_> = report
        .counters
        .iter()
        .map(|found| (found.counter.name(), found.drift(), found.clean))
        .collect();
    assert_eq!(
        found,
        [("setlist.show", 0, true), ("setlist.votes", 1, false), ("show.sum", 0, false)]
    );
    freshness.observe(&report, 100);
    assert_eq!(
        freshness.age(&SHOW_SUM.id(), 100),
        None,
        "the rollup is 0 and its true total is 500"
    );
    let report = verify(&mut store, 0);
    assert!(report.counters.iter().all(|found| found.clean));
    freshness.observe(&report, 200);
    assert_eq!(freshness.age(&SHOW_SUM.id(), 200), Some(Duration::ZERO));
    assert_eq!(freshness.age(&SETLIST_VOTES.id(), 200), Some(Duration::ZERO));

    // The same in legs: the drift is in a level that an earlier leg has compared.
    let legs = Options::default().max_pages(1);
    let mut leg = Reconciler::scoped(Mode::Verify, &LEVELS, &[SHOW_SUM.id()], legs).unwrap();
    loop {
        let report = run(&mut leg, &mut leaves(&mut store, 500), &mut World::default()).unwrap();
        assert!(report.counters.iter().all(|found| found.counter != SHOW_SUM.id() || !found.clean));
        let Some(token) = report.token else { break };
        leg = Reconciler::resume(Mode::Verify, &LEVELS, &through_text(&token), legs).unwrap();
    }
}

#[test]
fn freshness_survives_a_restart_and_follows_the_schema() {
    const LATER: Schema =
        Schema::new(&[SHOW_VOTES.version(2).table(), SETLIST_VOTES.table(), USER_VOTES.table()]);

    let conn = database();
    insert(&conn, &[vote("ann", 1)]).unwrap();
    let mut freshness = Freshness::new(&SCHEMA);
    let scoped = |counter: &CounterId| {
        let mut verify =
            Reconciler::scoped(Mode::Verify, &SCHEMA, &[*counter], Options::default()).unwrap();
        run(&mut verify, &mut sqlite_audit(&conn), &mut World::default()).unwrap()
    };
    freshness.observe(&scoped(&USER_VOTES.id()), -50);
    freshness.observe(&scoped(&SHOW_VOTES.id()), 1_000);
    assert_eq!(freshness.oldest(1_000), Some(("user.votes", Some(Duration::from_secs(1_050)))));

    let json = serde_json::to_string(&freshness).unwrap();
    // After `begun` follow the random numbers of the counter's runs and the times at which they
    // began.
    for entry in [
        r#"{"counter":"show.votes","version":1,"key":"i64","storage_clause":"table","clean_at":1000,"begun":["#,
        r#"{"counter":"user.votes","version":1,"key":"text","storage_clause":"table","clean_at":-50,"begun":["#,
    ] {
        assert!(json.contains(entry), "{json}");
    }
    let saved: Freshness = serde_json::from_str(&json).unwrap();
    assert_eq!(Freshness::resume(&SCHEMA, &saved), freshness);

    let later = Freshness::resume(&LATER, &saved);
    let all: Vec<_> = later.iter().collect();
    assert_eq!(all, [("setlist.votes", None), ("show.votes.v2", None), ("user.votes", Some(-50))]);
    assert_eq!(later.oldest(0), Some(("setlist.votes", None)));
    assert_eq!(later.age(&SHOW_VOTES.id(), 2_000), None, "not a counter of this schema");
    assert_eq!(Freshness::resume(&ONE, &later).iter().collect::<Vec<_>>(), [("show.votes", None)]);
}

/// A clock that was days ahead had left its date behind. The age was then 0 until the clock reached
/// that date.
#[test]
fn clock_that_jumps_makes_no_counter_fresh() {
    const AHEAD: i64 = 10_000_000;
    let mut store = shows();
    let whole = |store: &mut MemoryStore| {
        let mut audit = MemoryAudit::new(store);
        audit.add(SHOW_VOTES, |_| SHOWS.iter()).unwrap();
        verify_of(&ONE, &mut audit)
    };
    // The clock is ahead and is then set back: there is no age. When the clock reaches the old
    // date, the age is that of the run after the correction.
    let mut freshness = Freshness::new(&ONE);
    freshness.observe(&whole(&mut store), AHEAD);
    assert_eq!((age(&freshness, AHEAD), age(&freshness, AHEAD - 60)), (Some(0), Some(0)));
    assert_eq!(age(&freshness, 1_000), None);
    freshness.observe(&whole(&mut store), 2_000);
    assert_eq!(
        (age(&freshness, 2_000), age(&freshness, AHEAD)),
        (Some(0), Some(AHEAD.unsigned_abs() - 2_000))
    );
    // The beginning of legs that began while the clock was ahead is unknown.
    let mut freshness = Freshness::new(&ONE);
    let first = run_leg(Mode::Verify, &mut store, None);
    freshness.observe(&first, AHEAD);
    freshness.observe(&run_leg(Mode::Verify, &mut store, first.token.as_ref()), 3_000);
    assert_eq!((age(&freshness, 3_000), age(&freshness, AHEAD)), (None, None));
    // The clock is set back and then jumps ahead again: the age is the difference that the clock
    // shows.
    freshness.observe(&whole(&mut store), 4_000);
    assert_eq!(age(&freshness, 4_000 + 86_400), Some(86_400));
    // Drift that was found while the clock was ahead still counts at the corrected time. A clean
    // run one second later ends it.
    add(&store, 1, 1);
    freshness.observe(&whole(&mut store), AHEAD);
    add(&store, 1, -1);
    freshness.observe(&whole(&mut store), 5_000);
    assert_eq!(age(&freshness, 5_000), Some(1_000));
    freshness.observe(&whole(&mut store), 5_001);
    assert_eq!(age(&freshness, 5_001), Some(0));
}

#[test]
fn freshness_does_not_panic_at_any_time() {
    let mut store = shows();
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(SHOW_VOTES, |_| SHOWS.iter()).unwrap();
    let report = verify_of(&ONE, &mut audit);
    let times = [i64::MIN, -1, 0, 1, i64::MAX];
    for at in times {
        for now in times {
            let mut freshness = Freshness::new(&ONE);
            freshness.observe(&report, at);
            let ((), metrics, _) = observed(|| freshness.publish(now));
            assert_eq!(metrics.lines().len(), 1);
            // A date more than a minute ahead of the clock means that the clock was wrong once.
            let wanted = now >= at || at.abs_diff(now) <= 60;
            assert_eq!(
                age(&freshness, now),
                wanted.then_some(if now > at { now.abs_diff(at) } else { 0 })
            );
        }
    }
    assert_eq!(Freshness::new(&Schema::new(&[])).oldest(0), None);
}

// Progress.

const A: Counter<i64> = Counter::new("a.votes");
const B: Counter<i64> = Counter::new("b.votes");
const TWO: Schema = Schema::new(&[A.table(), B.table()]);

/// Two counters of `keys` keys with two rows each. A page takes time in proportion to its keys. One
/// key in a hundred is wrong.
struct Slow {
    clock: Clock,
    keys: i64,
    millis_a_key: u64,
}

impl Slow {
    fn new(keys: i64, millis_a_key: u64) -> Self {
        Self { clock: Clock::default(), keys, millis_a_key }
    }
}

impl Audit for Slow {
    fn identity(&mut self) -> Result<u64> {
        Ok(0)
    }

    fn probe(&mut self, _: &Probe) -> Result<ProbeResult> {
        Ok(ProbeResult { empty: false, totals: 0 })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        let first = ask.after.as_ref().map_or(0, |key| key.decode::<i64>().unwrap() + 1);
        let keys = || (first..self.keys).take(ask.keys + 1);
        let wrong = |key: i64| i64::from(key % 100 == 50);
        let rows = keys().map(|key| Recount { key: KeyBuf::of::<i64>(key), total: 2, rows: 2 });
        let totals = keys().map(|key| (KeyBuf::of::<i64>(key), 2 + wrong(key)));
        let diff = merge(ask, rows.collect(), totals.collect())?;
        self.clock.pass(Duration::from_millis(self.millis_a_key * diff.keys));
        Ok(diff)
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.clock.pass(Duration::from_millis(1));
        Ok(Repaired { corrected: ask.keys.len() as u64, unsettled: Vec::new() })
    }
}

/// A runtime that records the progress of a run.
struct Watcher {
    world: World,
    told: Vec<Progress>,
}

impl Runtime for Watcher {
    fn now(&mut self) -> Duration {
        self.world.now()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        self.world.wait(time, reason);
    }

    fn progress(&mut self, progress: &Progress) {
        self.told.push(*progress);
    }
}

fn watch(reconciler: &mut Reconciler, audit: &mut Slow) -> Vec<Progress> {
    let mut watcher = Watcher { world: World::at(&audit.clock), told: Vec::new() };
    run(reconciler, audit, &mut watcher).unwrap();
    watcher.told
}

fn reconciler(mode: Mode, options: Options) -> Reconciler {
    Reconciler::new(mode, &TWO, options).unwrap()
}

fn assert_near(found: f64, wanted: f64) {
    assert!((found - wanted).abs() <= wanted.abs() * 1e-6, "{found} is not {wanted}");
}

fn assert_never_decreases(told: &[Progress]) {
    for two in told.windows(2) {
        assert!(two[0].fraction <= two[1].fraction && two[0].elapsed <= two[1].elapsed, "{two:?}");
        assert!(
            (two[0].pages, two[0].keys, two[0].rows) <= (two[1].pages, two[1].keys, two[1].rows),
            "{two:?}"
        );
    }
}

#[test]
fn progress_is_reported_after_each_page_with_rate_fraction_and_eta() {
    let mut audit = Slow::new(1_000, 10);
    audit.clock.pass(Duration::from_secs(77)); // the clock may start at any time
    let mut verify = reconciler(Mode::Verify, Options::default().page(100));
    verify.expect(&A.id(), 1_000);
    verify.expect(&B.id(), 1_000);
    verify.expect(&SHOW_VOTES.id(), 5); // not in scope
    let told = watch(&mut verify, &mut audit);
    assert_eq!(told.len(), 20);
    assert_never_decreases(&told);
    for (at, progress) in (1_u32..).zip(&told) {
        assert_near(progress.keys_per_second, 100.0);
        assert_near(progress.rows_per_second, 200.0);
        assert_near(progress.fraction.unwrap(), f64::from(at) / 20.0);
        assert_near(progress.eta.unwrap().as_secs_f64(), f64::from(20 - at));
        assert_eq!(progress.elapsed, Duration::from_secs(at.into()));
        assert_eq!(
            (progress.keys, progress.drift, progress.corrected),
            (u64::from(at) * 100, u64::from(at), 0)
        );
        assert_eq!(
            progress.counters_done,
            if at < 10 {
                0
            } else if at < 20 {
                1
            } else {
                2
            }
        );
    }
    assert_eq!(
        told[4].to_string(),
        "verify: a.votes, 0 of 2 counters done; 5 pages, 500 keys, 1000 rows; 5 differ, 0 corrected; 0:00:05; \
         100 keys/s, 200 rows/s; 25%, 0:00:15 left"
    );
    let last = told[19];
    assert_eq!((last.counter, last.fraction, last.eta), (None, Some(1.0), Some(Duration::ZERO)));
    assert_eq!(
        last.to_string(),
        "verify: 2 of 2 counters done; 20 pages, 2000 keys, 4000 rows; 20 differ, 0 corrected; 0:00:20; \
         100 keys/s, 200 rows/s; 100%"
    );
}

#[test]
fn fraction_needs_an_expectation_for_every_remaining_counter() {
    let mut verify = reconciler(Mode::Verify, Options::default().page(100));
    verify.expect(&B.id(), 500);
    assert_eq!(verify.progress(Duration::from_secs(9)).fraction, None);
    assert_eq!(
        verify.progress(Duration::from_secs(9)).elapsed,
        Duration::ZERO,
        "the run has not begun"
    );
    let told = watch(&mut verify, &mut Slow::new(500, 10));
    assert!(told[..4].iter().all(|progress| progress.fraction.is_none() && progress.eta.is_none()));
    assert_near(told[4].fraction.unwrap(), 0.5);
    assert_eq!(told[9].fraction, Some(1.0));
    assert!(!told[3].to_string().contains('%'), "{}", told[3]);
}

#[test]
fn fraction_of_a_wrong_expectation_neither_completes_early_nor_decreases() {
    for expected in [0, 1, 350, 5_000] {
        let mut verify = reconciler(Mode::Verify, Options::default().page(100));
        verify.expect(&A.id(), expected);
        verify.expect(&B.id(), expected);
        let told = watch(&mut verify, &mut Slow::new(1_000, 10));
        assert_never_decreases(&told);
        let (last, before) = told.split_last().unwrap();
        assert!(before.iter().all(|progress| progress.fraction.unwrap() < 1.0));
        assert_eq!((last.fraction, last.eta), (Some(1.0), Some(Duration::ZERO)));
        if expected == 350 {
            assert_eq!(told[18].eta, None, "more keys came than were expected");
        }
    }
}

#[test]
fn rate_includes_waits_and_repairs_and_a_repair_is_reported_too() {
    let mut repair = reconciler(Mode::Repair, Options::default().page(100).duty_percent(50));
    let told = watch(&mut repair, &mut Slow::new(1_000, 10));
    assert_eq!(told.len(), 40);
    assert_never_decreases(&told);
    assert_eq!((told[39].pages, told[39].drift, told[39].corrected), (20, 20, 20));
    let rate = told[38].keys_per_second;
    assert!((48.0..55.0).contains(&rate), "half of the time is waits: {rate}");
}

#[test]
fn resumed_run_reports_its_own_work_and_the_fraction_of_the_remaining_keys() {
    let mut audit = Slow::new(1_000, 10);
    let mut first = reconciler(Mode::Verify, Options::default().page(100).max_pages(15));
    watch(&mut first, &mut audit);
    let token = first.token().unwrap();
    let mut second =
        Reconciler::resume(Mode::Verify, &TWO, &through_text(&token), Options::default()).unwrap();
    second.expect(&B.id(), 500);
    let told = watch(&mut second, &mut audit);
    assert_eq!(told.len(), 5);
    for (at, progress) in (1_u32..).zip(&told) {
        assert_near(progress.fraction.unwrap(), f64::from(at) / 5.0);
        assert_eq!(
            (progress.keys, progress.counters_done),
            (u64::from(at) * 100, if at < 5 { 1 } else { 2 })
        );
    }
}

#[test]
fn system_runtime_reports_progress() {
    let mut lines = Vec::new();
    let mut verify = reconciler(Mode::Verify, Options::default().page(100));
    let mut runtime = SystemRuntime::new().on_progress(|progress| lines.push(progress.to_string()));
    let report = run(&mut verify, &mut Slow::new(100, 10), &mut runtime).unwrap();
    drop(runtime);
    assert_eq!(report.outcome, Outcome::Complete);
    assert_eq!(lines.len(), 2);
    assert!(lines[1].starts_with("verify: 2 of 2 counters done; 2 pages, 200 keys"), "{lines:?}");
}
