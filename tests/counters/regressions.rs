//! Bugs that reviews and the simulation found, one test each; every test opens with the bug's
//! story.

use std::cell::{Cell, RefCell};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keepcount::reconcile::audit::{
    PageDiff, PageRequest, Probe, ProbeResult, Recount, RepairRequest, Repaired, merge,
};
use keepcount::reconcile::step::{Answer, Request, Step};
use keepcount::reconcile::{
    Audit, Columns, GracePeriod, MemoryAudit, Mode, Options, Outcome, Reconciler, Report, Runtime,
    SqliteAudit, SqliteRows, SystemRuntime, run,
};
use keepcount::{
    Batch, Counter, Error, KeyBuf, Leaderboard, MemoryStore, Record, Result, Schema, SqliteStore,
    Store, Tally,
};
use rusqlite::{Connection, TransactionBehavior};

const VOTES: Counter<i64> = Counter::new("show.votes");
const ALL: Counter<()> = Counter::new("all.votes");
const SCHEMA: Schema = Schema::new(&[VOTES.table(), ALL.table()]);

#[derive(Debug, Clone)]
struct Vote {
    show: i64,
    amount: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.show, self.amount);
        to.add(ALL, (), 1);
    }
}

fn vote(show: i64) -> Vote {
    Vote { show, amount: 1 }
}

/// A clock that advances only in waits, and by a set time in each throttle.
#[derive(Default)]
struct Virtual {
    now: Duration,
    waits: Vec<String>,
    throttle_takes: Duration,
}

impl Runtime for Virtual {
    fn now(&mut self) -> Duration {
        self.now
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        self.now += time;
        self.waits.push(reason.to_owned());
    }

    fn throttle(&mut self) -> Option<String> {
        self.now += self.throttle_takes;
        None
    }
}

fn filled(shows: i64) -> MemoryStore {
    let store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    batch.insert(&(0..shows).map(vote).collect::<Vec<_>>());
    store.apply(&mut batch).unwrap();
    store
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("CREATE TABLE votes (show_id INTEGER, amount INTEGER); CREATE INDEX by_show ON votes (show_id)")
        .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn
}

fn scoped<K: keepcount::Key>(mode: Mode, counter: Counter<K>, options: Options) -> Reconciler {
    Reconciler::scoped(mode, &SCHEMA, &[counter.id()], options).unwrap()
}

fn repair_in<K: keepcount::Key>(
    conn: &Connection,
    counter: Counter<K>,
    columns: Columns,
    by_tally: bool,
) -> Result<Report> {
    let mut audit = SqliteAudit::new(conn, &SCHEMA)?;
    let votes = SqliteRows::of("votes", |row| {
        Ok(Vote { show: row.get::<_, Option<i64>>(0)?.unwrap_or(0), amount: row.get(1)? })
    });
    audit.add(votes.key(counter, if by_tally { columns.by_tally() } else { columns }))?;
    run(&mut scoped(Mode::Repair, counter, Options::default()), &mut audit, &mut Virtual::default())
}

/// The key `()` has a column in the table of totals and none in the table of rows. A repair gave
/// the rows' statement one parameter too many, so such a counter could be verified but never
/// repaired.
#[test]
fn a_counter_with_a_single_total_is_repaired_in_sqlite() {
    for by_tally in [false, true] {
        let conn = database();
        conn.execute_batch("INSERT INTO votes VALUES (1, 1), (2, 1)").unwrap();
        let report = repair_in(&conn, ALL, Columns::of([]).count(), by_tally).unwrap();
        assert_eq!((report.counters[0].missing, report.counters[0].corrected), (1, 1));
        assert_eq!(SqliteStore::new(&conn, &SCHEMA).total(ALL, ()).unwrap(), 2);
        conn.execute_batch("DELETE FROM votes").unwrap();
        let report = repair_in(&conn, ALL, Columns::of([]).count(), by_tally).unwrap();
        assert_eq!((report.counters[0].orphan, report.counters[0].corrected), (1, 1));
    }
}

/// The guard against an emptied source counted the orphans of one page only. With pages under 100
/// keys, a source that was emptied in the middle of a run zeroed every total.
#[test]
fn source_emptied_during_a_run_is_detected_at_any_page_size() {
    for page in [1, 7, 50, 99, 1000] {
        let mut store = filled(1000);
        let reads = Cell::new(0);
        let rows: Vec<Vote> = (0..1000).map(vote).collect();
        let mut audit = MemoryAudit::new(&mut store);
        audit
            .add(VOTES, |_| {
                reads.set(reads.get() + 1);
                if reads.get() == 1 { rows.clone() } else { Vec::new() }
            })
            .unwrap();
        let mut repair = scoped(Mode::Repair, VOTES, Options::default().page(page));
        let error = run(&mut repair, &mut audit, &mut Virtual::default()).unwrap_err();
        assert!(
            matches!(error, Error::SourceEmpty { counter: "show.votes", totals: 100 }),
            "{error}"
        );
        assert_eq!(repair.report().outcome, Outcome::Refused);
        drop(audit);
        assert!(
            store.len(VOTES.id()).unwrap() > 900,
            "page {page}: {} left",
            store.len(VOTES.id()).unwrap()
        );
    }
}

/// Rows without a key are on no page. In a recount by tally, the amounts that such rows count for
/// were taken for drift, and the repair removed them.
#[test]
fn rows_that_count_without_a_key_are_refused_by_sql_and_by_tally() {
    for by_tally in [false, true] {
        let conn = database();
        conn.execute_batch("INSERT INTO votes VALUES (NULL, 1), (NULL, 1), (3, 1)").unwrap();
        let mut batch = Batch::new();
        batch.insert(&[vote(0), vote(0), vote(3)][..]);
        SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
        let error =
            repair_in(&conn, VOTES, Columns::of(["show_id"]).sum("amount"), by_tally).unwrap_err();
        assert!(
            matches!(error, Error::DefinitionMismatch { counter: "show.votes", .. }),
            "{error}"
        );
        assert_eq!(SqliteStore::new(&conn, &SCHEMA).total(VOTES, 0).unwrap(), 2);
    }
}

/// A verify began a transaction of the connection's default kind. With IMMEDIATE as the default it
/// took the write lock.
#[test]
fn verify_takes_no_write_lock_if_the_connection_defaults_to_immediate() {
    let folder = crate::support::temp_dir();
    let file = folder.path().join("votes.db");
    let mut conn = Connection::open(&file).unwrap();
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE votes (show_id INTEGER); CREATE INDEX i ON votes (show_id)",
    )
    .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn.busy_timeout(Duration::ZERO).unwrap();
    conn.set_transaction_behavior(TransactionBehavior::Immediate);
    let writer = Connection::open(&file).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
    let votes = SqliteRows::of("votes", |row| Ok(vote(row.get(0)?)));
    audit.add(votes.key(VOTES, Columns::of(["show_id"]).count())).unwrap();
    let report = run(
        &mut scoped(Mode::Verify, VOTES, Options::default()),
        &mut audit,
        &mut Virtual::default(),
    )
    .unwrap();
    assert!(report.complete());
}

/// The run waited for its pace before it checked its limit, so a run of one page slept for nothing.
#[test]
fn run_at_its_limit_ends_without_a_wait() {
    let mut store = filled(100);
    let rows: Vec<Vote> = (0..100).map(vote).collect();
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(VOTES, |_| rows.iter()).unwrap();
    let mut runtime = Virtual::default();
    let options = Options::default().page(50).max_pages(1).rows_per_second(1);
    let report = run(&mut scoped(Mode::Verify, VOTES, options), &mut audit, &mut runtime).unwrap();
    assert_eq!((report.outcome, runtime.waits.len()), (Outcome::Limit("pages"), 0));
}

/// A time limit included the probes. A repair whose probes took longer than the limit ended without
/// a page, however often it was run.
#[test]
fn run_with_a_time_limit_compares_at_least_one_page() {
    let options = Options::default().max_time(Duration::from_secs(10));
    let mut repair = scoped(Mode::Repair, VOTES, options);
    assert_eq!(repair.next(Duration::ZERO), Step::Ask(Request::Identify));
    repair.handle(Answer::Identified(0), Duration::ZERO).unwrap();
    assert!(matches!(repair.next(Duration::ZERO), Step::Ask(Request::Probe(_))));
    repair
        .handle(Answer::Probed(ProbeResult { empty: false, totals: 0 }), Duration::from_secs(11))
        .unwrap();
    assert_eq!(repair.next(Duration::from_secs(11)), Step::Throttle);
    repair.handle(Answer::Throttled(None), Duration::from_secs(11)).unwrap();
    assert!(matches!(repair.next(Duration::from_secs(11)), Step::Ask(Request::Compare(_))));
    assert!(Reconciler::new(Mode::Verify, &SCHEMA, Options::default().max_rows(0)).is_err());
}

/// A run that was stopped before its first step had no token, although it was not complete.
#[test]
fn a_run_that_is_stopped_before_it_begins_can_be_resumed() {
    let mut store = filled(3);
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(VOTES, |_| [vote(0), vote(1), vote(2)]).unwrap();
    let stop = AtomicBool::new(true);
    let mut verify = scoped(Mode::Verify, VOTES, Options::default());
    let report = run(&mut verify, &mut audit, &mut SystemRuntime::new().stop_flag(&stop)).unwrap();
    assert_eq!((&report.outcome, report.pages), (&Outcome::Stopped, 0));
    let mut rest =
        Reconciler::resume(Mode::Verify, &SCHEMA, &report.token.unwrap(), Options::default())
            .unwrap();
    assert!(run(&mut rest, &mut audit, &mut Virtual::default()).unwrap().complete());
}

/// An audit with one missing key. Its repairs always fail with a lock, and the first one sets the
/// stop flag.
struct Locked<'a>(&'a AtomicBool);

impl Audit for Locked<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(0)
    }

    fn probe(&mut self, _: &Probe) -> Result<ProbeResult> {
        Ok(ProbeResult { empty: false, totals: 0 })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        merge(ask, vec![Recount { key: KeyBuf::of::<i64>(1), total: 1, rows: 1 }], Vec::new())
    }

    fn repair(&mut self, _: &RepairRequest) -> Result<Repaired> {
        self.0.store(true, Ordering::Relaxed);
        Err(Error::Busy { operation: "repairing".into(), reason: "locked", cause: "test".into() })
    }
}

/// After a stop while a repair waited for its retry, the driver asked for the same wait again and
/// again without sleeping.
#[test]
fn stop_during_the_wait_before_a_retry_does_not_spin() {
    struct Counted<'a>(SystemRuntime<'a>, u32);
    impl Runtime for Counted<'_> {
        fn now(&mut self) -> Duration {
            self.0.now()
        }

        fn wait(&mut self, time: Duration, reason: &str) {
            self.1 += 1;
            self.0.wait(time, reason);
        }

        fn stopped(&mut self) -> bool {
            self.0.stopped()
        }
    }
    let stop = AtomicBool::new(false);
    let mut runtime = Counted(SystemRuntime::new().stop_flag(&stop), 0);
    let mut repair = scoped(Mode::Repair, VOTES, Options::default().retries(2));
    assert!(run(&mut repair, &mut Locked(&stop), &mut runtime).is_err());
    assert!(runtime.1 < 20, "{} waits", runtime.1);
}

/// The time that a throttle took to answer counted as time of the comparison, and shrank the pages.
#[test]
fn slow_throttle_does_not_shrink_the_pages() {
    let mut store = filled(5000);
    let rows: Vec<Vote> = (0..5000).map(vote).collect();
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(VOTES, |_| rows.iter()).unwrap();
    let mut runtime = Virtual { throttle_takes: Duration::from_secs(1), ..Virtual::default() };
    let report =
        run(&mut scoped(Mode::Verify, VOTES, Options::default()), &mut audit, &mut runtime)
            .unwrap();
    assert_eq!(report.pages, 3, "1,024, 2,048, and the rest");
}

/// The search for the key whose sum leaves 64 bits also visited keys that do not count, and gave up
/// among them.
#[test]
fn sum_beyond_64_bits_is_named_after_keys_that_do_not_count() {
    let conn = database();
    conn.execute_batch(
        "INSERT INTO votes VALUES (1, 0), (2, 0), (3, 0), (4, 9223372036854775807), (4, 1)",
    )
    .unwrap();
    let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
    let votes = SqliteRows::of("votes", |row| Ok(Vote { show: row.get(0)?, amount: row.get(1)? }));
    audit
        .add(votes.key(VOTES, Columns::of(["show_id"]).sum("amount").filter("amount <> 0")))
        .unwrap();
    let mut verify = scoped(Mode::Verify, VOTES, Options::default().page(1));
    let error = run(&mut verify, &mut audit, &mut Virtual::default()).unwrap_err();
    assert_eq!(error.to_string(), "counter show.votes, key 4: the recount leaves 64 bits");
}

/// A third-party audit whose pages did not advance made the run endless.
#[test]
fn a_page_that_ends_where_it_began_is_an_error() {
    /// Every page ends at the same key.
    struct Stuck;

    impl Audit for Stuck {
        fn identity(&mut self) -> Result<u64> {
            Ok(0)
        }

        fn probe(&mut self, _: &Probe) -> Result<ProbeResult> {
            unreachable!("a verify does not probe")
        }

        fn compare(&mut self, _: &PageRequest) -> Result<PageDiff> {
            Ok(PageDiff {
                keys: 1,
                rows: 1,
                next: Some(KeyBuf::of::<i64>(5)),
                ..PageDiff::default()
            })
        }

        fn repair(&mut self, _: &RepairRequest) -> Result<Repaired> {
            unreachable!("a verify does not repair")
        }
    }

    let mut verify = scoped(Mode::Verify, VOTES, Options::default());
    let stuck = run(&mut verify, &mut Stuck, &mut Virtual::default());
    assert!(matches!(stuck, Err(Error::Source { .. })));
    assert_eq!(verify.report().pages, 1);
}

/// Repeated merges of a batch with its copy left 128 bits: a panic, or a wrong sum.
#[test]
fn repeated_merges_do_not_overflow_and_apply_is_refused() {
    let mut batch = Batch::new();
    batch.add(VOTES, 1, i64::MAX);
    for _ in 0..80 {
        let mut same = batch.clone();
        batch.merge(&mut same);
    }
    assert!(matches!(
        MemoryStore::new(&SCHEMA).apply(&mut batch),
        Err(Error::Overflow { what: "delta", .. })
    ));
}

/// A repair compared with their tally only 64 rows of a key, and only 16 of its keys. If SQL counts
/// a row that the tally does not, later in a hot key or in another key, the repair changed right
/// totals to wrong ones.
#[test]
fn every_row_of_the_keys_to_be_repaired_is_compared_with_its_tally() {
    // Show 5 has 1,000 votes, one of them of amount 0, which the tally does not count, but count(*)
    // does; the total is right.
    for odd in [1, 500, 1000] {
        let conn = database();
        let fill =
            "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 1000)
                    INSERT INTO votes SELECT 5, iif(n = ?1, 0, 1) FROM n";
        conn.execute(fill, [odd]).unwrap();
        conn.execute_batch(
            "INSERT INTO votes SELECT n.value, 1 FROM (SELECT 1 AS value UNION SELECT 9) AS n, votes LIMIT 200",
        )
        .unwrap();
        conn.execute_batch(
            "INSERT INTO show_votes SELECT show_id, sum(amount) FROM votes GROUP BY show_id",
        )
        .unwrap();
        let error = repair_in(&conn, VOTES, Columns::of(["show_id"]).count(), false).unwrap_err();
        assert!(matches!(&error, Error::DefinitionMismatch { key, .. } if key == "5"), "{error}");
        assert_eq!(SqliteStore::new(&conn, &SCHEMA).total(VOTES, 5).unwrap(), 999);
    }
}

/// Amounts of type text were summed as the numbers that they look like.
#[test]
fn amount_that_is_not_an_integer_is_an_error_that_names_its_key() {
    for amount in ["'5'", "'x'", "1.5", "x'01'"] {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "CREATE TABLE votes (show_id INTEGER, amount); CREATE INDEX by_show ON votes (show_id)",
        )
        .unwrap();
        conn.execute_batch(&format!("INSERT INTO votes VALUES (1, 1), (2, 3), (2, {amount})"))
            .unwrap();
        SqliteStore::new(&conn, &SCHEMA).create().unwrap();
        let mut audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
        let votes = SqliteRows::of("votes", |row| Ok(vote(row.get(0)?)));
        audit.add(votes.key(VOTES, Columns::of(["show_id"]).sum("amount"))).unwrap();
        let mut verify = scoped(Mode::Verify, VOTES, Options::default());
        let error = run(&mut verify, &mut audit, &mut Virtual::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "source of counter show.votes, key 2: 1 of its amounts are not integers"
        );
        assert_eq!(verify.report().outcome, Outcome::Failed);
    }
}

/// A runtime that runs a function in its first wait.
struct Meanwhile<F>(Option<F>);

impl<F: FnOnce()> Runtime for Meanwhile<F> {
    fn now(&mut self) -> Duration {
        Duration::ZERO
    }

    fn wait(&mut self, _: Duration, _: &str) {
        if let Some(action) = self.0.take() {
            action();
        }
    }
}

/// A repair checked once whether a key's pending write had been dropped, before it waited for the
/// key's stripe. A pending write that was open then, and dropped during the wait, did not hold the
/// repair. The repair added its row. The writer, who found out in time that the row was committed,
/// added it again.
#[test]
fn pending_write_dropped_while_a_repair_waits_for_it_leaves_the_key_unsettled() {
    for tries in [8, 0] {
        let (store, votes) = (filled(1), RefCell::new(vec![vote(0)]));
        let mut batch = Batch::new();
        batch.insert(&vote(0));
        let mut written = batch.clone();
        let pending_write = store.begin(&mut written).unwrap();
        let cut_off = Meanwhile(Some(|| {
            votes.borrow_mut().push(vote(0));
            drop(pending_write);
        }));
        let grace_period = GracePeriod::after(Duration::from_secs(3600)).tries(tries);
        let mut audit = MemoryAudit::live(&store, grace_period, cut_off);
        audit.add(VOTES, |_| votes.borrow().clone()).unwrap();
        let key = KeyBuf::of::<i64>(0);
        let repaired =
            audit.repair(&RepairRequest { counter: VOTES.id(), keys: vec![key.clone()] }).unwrap();
        assert_eq!(repaired, Repaired { corrected: 0, unsettled: vec![key] });
        store.begin(&mut batch).unwrap().commit().unwrap();
        assert_eq!(store.total(VOTES, 0).unwrap(), 2);
    }
}

/// Keys whose pending writes were dropped long ago are compared before their page. If the page
/// could not be read after that, only the error was returned, and the next attempt did not report
/// these keys. They were taken for reported, and their counter for clean.
#[test]
fn drift_of_dropped_pending_writes_is_reported_again_after_an_error() {
    let (store, votes) = (filled(3), vec![vote(0), vote(1), vote(2), vote(2)]);
    let mut audit =
        MemoryAudit::live(&store, GracePeriod::after(Duration::ZERO), SystemRuntime::new());
    let mut failures = 1;
    let rows = move |from: Bound<i64>| {
        let fails = matches!(from, Bound::Excluded(_)) && failures > 0;
        failures -= i32::from(fails);
        let failed = fails.then(|| Err("the connection is gone".into()));
        failed.into_iter().chain(votes.clone().into_iter().map(Ok))
    };
    audit.add_fallible::<i64, Vote, _>(VOTES, rows).unwrap();
    let next = audit
        .compare(&PageRequest { counter: VOTES.id(), after: None, until: None, keys: 1 })
        .unwrap()
        .next;
    let mut batch = Batch::new();
    batch.insert(&vote(2));
    drop(store.begin(&mut batch).unwrap());
    let ask = PageRequest { counter: VOTES.id(), after: next, until: None, keys: 10 };
    assert!(matches!(audit.compare(&ask), Err(Error::Database { .. })));
    let found = audit.compare(&ask).unwrap().drifts;
    let keys: Vec<i64> = found.iter().map(|drift| drift.key.decode().unwrap()).collect();
    assert_eq!((keys, found[0].stored, found[0].expected), (vec![2], 1, 2));
}

const RANKED: Schema = Schema::new(&[VOTES.table()]).leaderboards(&[SHOWS.id()]);
const SHOWS: Leaderboard<i64> = Leaderboard::new("show.board", [VOTES]).by(|[total]| Some(total));

/// SQLite rolls a transaction back by itself when the disk is full or fails, even in a statement
/// that only reads. Only writes of totals reported this. If it happened while a leaderboard was
/// rebuilt in the caller's transaction, or an offset was read, the error was an ordinary one. A
/// caller that went on then wrote the rest of the transaction outside of it.
#[test]
fn transaction_lost_during_a_leaderboard_rebuild_is_reported() {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("CREATE TABLE votes (show)").unwrap();
    let mut store = SqliteStore::new(&conn, &RANKED);
    store.create().unwrap();
    let mut batch = Batch::new();
    (0..2_000).for_each(|show| batch.add(VOTES, show, 1));
    store.apply(&mut batch).unwrap();
    conn.execute_batch("DELETE FROM show_board; VACUUM").unwrap();
    let pages: i64 = conn.query_row("PRAGMA page_count", (), |row| row.get(0)).unwrap();
    let limit = |pages| {
        conn.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(())).unwrap();
    };
    limit(pages + 1);
    conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
    let error = store.rebuild(SHOWS).unwrap_err();
    assert!(conn.is_autocommit(), "SQLite rolls back by itself");
    assert!(matches!(error, Error::TransactionLost { .. }), "{error:?}");
    limit(1 << 30);
    assert_eq!(store.rebuild(SHOWS).unwrap(), 2_000);
    assert_eq!(conn.query_row("SELECT count(*) FROM votes", (), |row| row.get(0)), Ok(0));
}

/// A store that was restored from an older snapshot accepted the token of a run on the original
/// store. What the run had repaired was not in that snapshot. A verify that resumed there called
/// the counter clean, and a backfill made it ready.
#[test]
fn a_token_of_a_store_is_refused_by_one_restored_from_its_snapshot() {
    let votes = [vote(0), vote(1)];
    let store = MemoryStore::pending_backfill(&SCHEMA);
    let snapshot = store.snapshot();
    let leg = |store: &MemoryStore, mut backfill: Reconciler| {
        let mut audit =
            MemoryAudit::live(store, GracePeriod::after(Duration::ZERO), SystemRuntime::new());
        audit.add(VOTES, |_| votes.iter()).unwrap();
        run(&mut backfill, &mut audit, &mut SystemRuntime::new()).map(|report| report.token)
    };
    let token = leg(&store, scoped(Mode::Backfill, VOTES, Options::default().page(1).max_pages(1)))
        .unwrap()
        .unwrap();
    let rest = || Reconciler::resume(Mode::Backfill, &SCHEMA, &token, Options::default()).unwrap();

    let restored = MemoryStore::restore(&SCHEMA, &snapshot).unwrap();
    assert!(matches!(leg(&restored, rest()), Err(Error::Token { .. })));
    assert!(!restored.is_ready(VOTES.id()).unwrap());

    assert_eq!(leg(&store, rest()).unwrap(), None);
    assert_eq!((store.total(VOTES, 0).unwrap(), store.total(VOTES, 1).unwrap()), (1, 1));
}
