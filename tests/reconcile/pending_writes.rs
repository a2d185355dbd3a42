//! Pending writes, and audits beside writers: what is compared and repaired while writes are in
//! progress, which keys stay unsettled, and what is refused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use keepcount::reconcile::audit::PageRequest;
use keepcount::reconcile::{
    Audit, GracePeriod, MemoryAudit, Mode, Options, Reconciler, Report, Runtime, SystemRuntime, run,
};
use keepcount::{
    Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, PendingWrite, Record, Result, Schema,
    StreamRange, Tally,
};

use crate::support::random::Random;

const VOTES: Counter<i64> = Counter::new("show.votes");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("show.artist");
const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(VOTES, MEMBERSHIP);
const SCHEMA: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), ARTIST_VOTES.table()]);
const PLAIN: Schema = Schema::new(&[VOTES.table()]);
const GRACE: Duration = Duration::from_secs(10);

/// The votes of a show, as one row.
#[derive(Clone, Copy)]
struct Votes(i64, i64);

impl Record for Votes {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, self.1);
    }
}

/// A show and its artist.
#[derive(Clone, Copy)]
struct Show(i64, i64);

impl Record for Show {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(MEMBERSHIP, (self.0, self.1), 1);
    }
}

/// The committed rows, in place of a database.
#[derive(Default)]
struct Rows(Mutex<BTreeMap<i64, i64>>);

impl Rows {
    fn add(&self, show: i64, votes: i64) {
        *self.0.lock().unwrap().entry(show).or_default() += votes;
    }

    fn votes(&self, from: Bound<i64>) -> Vec<Votes> {
        let rows = self.0.lock().unwrap();
        rows.range((from, Bound::Unbounded)).map(|(show, votes)| Votes(*show, *votes)).collect()
    }
}

/// A clock that advances only by waits.
struct Clock<'a>(&'a AtomicU64);

impl Runtime for Clock<'_> {
    fn now(&mut self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn wait(&mut self, time: Duration, _: &str) {
        self.0.fetch_add(u64::try_from(time.as_micros()).unwrap(), Ordering::Relaxed);
    }
}

static NEVER: AtomicU64 = AtomicU64::new(0);

fn votes(show: i64, amount: i64) -> Batch {
    let mut batch = Batch::new();
    batch.add(VOTES, show, amount);
    batch
}

fn run_over(audit: &mut MemoryAudit<'_>, mode: Mode, counters: &[CounterId]) -> Result<Report> {
    let schema = if counters.contains(&MEMBERSHIP.id()) { SCHEMA } else { PLAIN };
    run(
        &mut Reconciler::scoped(mode, &schema, counters, Options::default().page(3)).unwrap(),
        audit,
        &mut SystemRuntime::new(),
    )
}

fn live_audit<'a>(store: &'a MemoryStore, rows: &'a Rows) -> MemoryAudit<'a> {
    let mut audit = MemoryAudit::live(store, GracePeriod::after(GRACE), Clock(&NEVER));
    audit.add(VOTES, |from| rows.votes(from)).unwrap();
    audit
}

fn verify(store: &MemoryStore, rows: &Rows) -> Report {
    run_over(&mut live_audit(store, rows), Mode::Verify, &[VOTES.id()]).unwrap()
}

fn repair(store: &MemoryStore, rows: &Rows) -> Report {
    run_over(&mut live_audit(store, rows), Mode::Repair, &[VOTES.id()]).unwrap()
}

#[test]
fn pending_write_applies_on_commit_and_not_on_abort_or_drop() {
    let store = MemoryStore::new(&PLAIN);
    let mut batch = votes(1, 3);
    let pending_write = store.begin(&mut batch).unwrap();
    assert_eq!(store.total(VOTES, 1).unwrap(), 0);
    assert_eq!(pending_write.commit().unwrap().totals, 1);
    assert_eq!(store.total(VOTES, 1).unwrap(), 3);
    assert!(batch.is_empty());
    batch.insert(&Votes(1, 3));
    store.begin(&mut batch).unwrap().abort();
    drop(store.begin(&mut batch).unwrap());
    assert_eq!(batch.len(), 1, "a batch that was not applied can begin again");
    drop(store.try_begin(&mut batch).unwrap().unwrap().commit().unwrap());
    assert!(batch.is_empty());
    assert_eq!(store.total(VOTES, 1).unwrap(), 6);
}

#[test]
fn begin_refuses_batches_that_apply_would_refuse() {
    let store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    batch.add(Counter::<i64>::new("unknown"), 1, 1);
    assert!(
        matches!(store.begin(&mut batch), Err(Error::UnknownCounter { counter, .. }) if counter == "unknown")
    );
    batch.clear();
    batch.add(VOTES.version(2), 1, 1);
    assert!(matches!(
        store.try_begin(&mut batch),
        Err(Error::DefinitionConflict { counter: "show.votes", .. })
    ));
    batch.clear();
    batch.add(ARTIST_VOTES, 1, 1);
    assert!(matches!(store.begin(&mut batch), Err(Error::Rollup { counter: "artist.votes", .. })));
    batch.add(VOTES, 1, 1);
    assert!(matches!(store.begin(&mut batch), Err(Error::Rollup { counter: "artist.votes", .. })));
}

#[test]
fn refused_commit_leaves_its_keys_unresolved() {
    let store = MemoryStore::new(&PLAIN).with_clock(|| Duration::from_secs(100));
    let rows = Rows::default();
    store.begin(&mut votes(1, i64::MAX)).unwrap().commit().unwrap();
    let mut one = votes(1, 1);
    assert!(matches!(
        store.begin(&mut one).unwrap().commit(),
        Err(Error::Overflow { counter: "show.votes", .. })
    ));
    assert_eq!(store.total(VOTES, 1).unwrap(), i64::MAX);
    let report = verify(&store, &rows);
    assert_eq!(report.counters[0].unsettled, 1);
    assert_eq!(serde_json::to_value(&report).unwrap()["counters"][0]["unsettled"], 1);
}

#[test]
fn live_repair_without_writers_repairs_every_kind_of_drift() {
    let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
    for (show, counted, there) in
        [(1, 2, 2), (2, 0, 3), (3, 4, 0), (4, 5, 1), (5, -1, 0), (6, 1, 1)]
    {
        store.begin(&mut votes(show, counted)).unwrap().commit().unwrap();
        rows.add(show, there);
    }
    let found = verify(&store, &rows).to_string();
    assert_eq!(
        found,
        "verify: 1 counter, 6 keys: 1 wrong, 1 missing, 2 orphan; 0 corrected; 2 pages, 4 rows; complete"
    );
    assert!(
        repair(&store, &rows).to_string().contains("1 wrong, 1 missing, 2 orphan; 4 corrected")
    );
    assert_eq!(store.totals(VOTES).unwrap(), [(1, 2), (2, 3), (4, 1), (6, 1)]);
    assert!(verify(&store, &rows).counters[0].clean);
}

/// An audit whose source calls `interrupt` before it returns rows, so that a test can write while a
/// page is read.
fn interrupted_audit<'a>(
    store: &'a MemoryStore,
    rows: &'a Rows,
    clock: &'a AtomicU64,
    interrupt: impl FnMut() + 'a,
) -> MemoryAudit<'a> {
    let mut audit = MemoryAudit::live(store, GracePeriod::after(GRACE), Clock(clock));
    let interrupt = RefCell::new(interrupt);
    audit
        .add(VOTES, move |from| {
            (interrupt.borrow_mut())();
            rows.votes(from)
        })
        .unwrap();
    audit
}

#[test]
fn drift_hidden_by_a_pending_write_is_unsettled_until_its_commit_and_then_found() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(0));
    // The stored total of show 2 is one too high. While the page is read, a vote for it is visible
    // and not yet counted.
    store.begin(&mut votes(2, 3)).unwrap().commit().unwrap();
    rows.add(2, 2);
    let (mut one, reads) = (votes(2, 1), Cell::new(0));
    let (one, open) = (RefCell::new(Some(&mut one)), RefCell::new(None));
    let mut audit = interrupted_audit(&store, &rows, &clock, || {
        reads.set(reads.get() + 1);
        match reads.get() {
            1 => {
                *open.borrow_mut() = Some(store.try_begin(one.take().unwrap()).unwrap().unwrap());
                rows.add(2, 1);
            }
            2 => panic!("the key was recounted while its pending write was open"),
            _ => {}
        }
    });
    let ask = |audit: &mut MemoryAudit<'_>| run_over(audit, Mode::Verify, &[VOTES.id()]).unwrap();
    let report = ask(&mut audit);
    assert_eq!(
        (report.drift(), report.counters[0].unsettled, report.counters[0].clean),
        (0, 1, false)
    );
    assert!(clock.load(Ordering::Relaxed) >= 100_000, "the audit waited at the barrier");
    drop(audit);
    drop(open.borrow_mut().take().unwrap().commit().unwrap());
    let report = verify(&store, &rows);
    assert_eq!((report.drift(), report.counters[0].samples[0].stored), (1, 4));
}

#[test]
fn write_between_recount_and_comparison_is_noticed() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(0));
    store.begin(&mut votes(1, 5)).unwrap().commit().unwrap();
    rows.add(1, 2);
    let reads = Cell::new(0);
    let mut audit = interrupted_audit(&store, &rows, &clock, || {
        reads.set(reads.get() + 1);
        if reads.get() < 6 {
            let mut one = votes(1, 1);
            let pending_write = store.begin(&mut one).unwrap();
            rows.add(1, 1);
            pending_write.commit().unwrap();
        }
    });
    let report = run_over(&mut audit, Mode::Repair, &[VOTES.id()]).unwrap();
    assert_eq!((report.drift(), report.counters[0].corrected), (1, 1));
    drop(audit);
    assert_eq!(store.total(VOTES, 1).unwrap(), 7);
    assert!(verify(&store, &rows).counters[0].clean);
}

#[test]
fn keys_of_dropped_pending_writes_wait_a_grace_period_and_are_then_compared_first() {
    static NOW: AtomicU64 = AtomicU64::new(50);
    let store =
        MemoryStore::new(&PLAIN).with_clock(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
    let rows = Rows::default();
    for show in 1..=9 {
        store.begin(&mut votes(show, 1)).unwrap().commit().unwrap();
        rows.add(show, 1);
    }
    // Two clients disconnect. The row of the first is committed, that of the second is not.
    drop(store.begin(&mut votes(9, 1)).unwrap());
    rows.add(9, 1);
    drop(store.begin(&mut votes(4, 1)).unwrap());
    let report = repair(&store, &rows);
    assert_eq!(
        (report.drift(), report.counters[0].unsettled, report.counters[0].corrected),
        (0, 2, 0)
    );
    assert_eq!(report.to_string().split("; ").last(), Some("2 unsettled keys"));
    assert!(report.table().to_string().contains("show.votes of 4: unsettled"));

    NOW.store(50 + GRACE.as_secs(), Ordering::Relaxed);
    let (asked, clock) = (RefCell::new(Vec::new()), AtomicU64::new(0));
    let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), Clock(&clock));
    audit
        .add(VOTES, |from| {
            asked.borrow_mut().push(from);
            rows.votes(from)
        })
        .unwrap();
    let report = run_over(&mut audit, Mode::Repair, &[VOTES.id()]).unwrap();
    assert_eq!(
        (report.drift(), report.counters[0].unsettled, report.counters[0].corrected),
        (1, 0, 1)
    );
    // The probe, then both unresolved keys, then the first page.
    assert_eq!(asked.borrow()[1..4], [Bound::Included(4), Bound::Included(9), Bound::Unbounded]);
    // The next run treats them as any other key.
    asked.borrow_mut().clear();
    let report = run_over(&mut audit, Mode::Repair, &[VOTES.id()]).unwrap();
    assert!(report.counters[0].clean, "{report}");
    assert_eq!(asked.borrow()[1..3], [Bound::Unbounded, Bound::Excluded(3)]);
    drop(audit);
    assert_eq!(store.total(VOTES, 9).unwrap(), 2);
}

/// A wall clock goes back when an operator sets it. Some keys then stay unsettled for longer than
/// the grace period, and none is repaired before its row's outcome is known.
#[test]
fn clock_that_goes_back_delays_repairs_of_dropped_pending_writes() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000);
    let store =
        MemoryStore::new(&PLAIN).with_clock(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
    let rows = Rows::default();
    let drop_one = |show: i64| drop(store.begin(&mut votes(show, 1)).unwrap());
    drop_one(1);
    NOW.store(0, Ordering::Relaxed); // less than a grace period
    drop_one(2);
    NOW.store(500_000, Ordering::Relaxed);
    drop_one(3);
    // Each row becomes visible after its pending write was dropped, so its key must not be repaired
    // before.
    let found = |seconds: u64| {
        NOW.store(seconds, Ordering::Relaxed);
        let report = repair(&store, &rows);
        (report.counters[0].unsettled, report.counters[0].corrected)
    };
    let settle = GRACE.as_secs();
    assert_eq!([found(0), found(settle - 1)], [(3, 0), (3, 0)]);
    (1..=3).for_each(|show| rows.add(show, 1));
    assert_eq!([found(0), found(settle), found(3)], [(3, 0), (2, 1), (2, 0)]);
    assert_eq!([found(500_000 + settle), found(1_000_000 + settle - 1)], [(1, 1), (1, 0)]);
    assert_eq!(found(1_000_000 + settle), (0, 1));
    assert!(verify(&store, &rows).counters[0].clean);
}

#[test]
fn audit_is_busy_for_a_grace_period_after_too_many_dropped_pending_writes() {
    static NOW: AtomicU64 = AtomicU64::new(50);
    let store =
        MemoryStore::new(&PLAIN).with_clock(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
    let rows = Rows::default();
    store.begin(&mut votes(1, 1)).unwrap().commit().unwrap();
    rows.add(1, 1);
    // More keys than any stripe has room for.
    let mut many = Batch::new();
    (2..400_000).for_each(|show| many.add(VOTES, show, 1));
    drop(store.begin(&mut many).unwrap());
    let (mut audit, clock) = (live_audit(&store, &rows), AtomicU64::new(0));
    let report = run(
        &mut Reconciler::new(Mode::Verify, &PLAIN, Options::default()).unwrap(),
        &mut audit,
        &mut Clock(&clock),
    );
    assert!(
        matches!(&report, Err(Error::Busy { reason, .. }) if reason.contains("not known")),
        "{report:?}"
    );
    NOW.store(50 + GRACE.as_secs(), Ordering::Relaxed);
    let report = verify(&store, &rows);
    assert!(report.counters[0].clean, "{report}");
}

#[test]
fn barrier_opens_again_although_a_pending_write_stays_open() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(0));
    rows.add(1, 1);
    let mut one = votes(1, 1);
    let mut other = one.clone();
    let open = store.begin(&mut other).unwrap();
    let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), Clock(&clock));
    audit.add(VOTES, |from| rows.votes(from)).unwrap();
    let mut verify = Reconciler::new(Mode::Verify, &PLAIN, Options::default().retries(0)).unwrap();
    let error = run(&mut verify, &mut audit, &mut SystemRuntime::new()).unwrap_err();
    assert!(
        matches!(&error, Error::Busy { reason, .. } if reason.contains("barrier time")),
        "{error}"
    );
    assert!(store.try_begin(&mut one).unwrap().is_some(), "the barrier is open again");
    open.commit().unwrap();
}

#[test]
fn live_audit_fails_after_a_hook_without_a_pending_write() {
    let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
    store.apply(&mut votes(1, 1)).unwrap();
    rows.add(1, 2);
    let mut audit = live_audit(&store, &rows);
    store.apply(&mut votes(2, 1)).unwrap();
    for mode in [Mode::Verify, Mode::Repair] {
        let error = run_over(&mut audit, mode, &[VOTES.id()]).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidUse { what: "audit", reason } if reason.contains("show.votes")),
            "{error}"
        );
    }
    drop(audit);
    rows.add(2, 1);
    assert_eq!(repair(&store, &rows).counters[0].corrected, 1);
    store.apply_idempotent(&mut votes(1, 1), &StreamRange::new("s", 1, 1).unwrap()).unwrap();
    assert_eq!(verify(&store, &rows).drift(), 1);
}

/// Notes of touched keys were kept from a counter's first page to its last. After some 16,000 keys
/// of one stripe, every page was refused as too busy, however small, until the run gave up.
#[test]
fn long_run_beside_many_writes_completes() {
    let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
    (0..60).for_each(|show| rows.add(show, 1));
    let (touched, pages) = (Cell::new(1_000_000), Cell::new(0));
    let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), SystemRuntime::new());
    audit
        .add(VOTES, |from| {
            // The first eleven of twelve pages touch more keys than all stripes have room for.
            if !matches!(from, Bound::Included(_)) && pages.get() < 11 {
                pages.set(pages.get() + 1);
                for _ in 0..110_000 {
                    touched.set(touched.get() + 1);
                    store.begin(&mut votes(touched.get(), 1)).unwrap().abort();
                }
            }
            rows.votes(from)
        })
        .unwrap();
    let options = Options::default().page(5).retries(1);
    let report = run(
        &mut Reconciler::new(Mode::Verify, &PLAIN, options).unwrap(),
        &mut audit,
        &mut SystemRuntime::new(),
    )
    .unwrap();
    assert!(report.complete() && report.drift() == 60, "{report}");
}

/// Two audits took pages in turn, so that one of them was always reading. The notes of touched keys
/// were then kept from the first page to the last, and both audits were refused as too busy.
#[test]
fn two_long_runs_beside_many_writes_complete() {
    let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
    (0..60).for_each(|show| rows.add(show, 1));
    let touched = Cell::new(1_000_000);
    let audit = || {
        let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), SystemRuntime::new());
        let (touched, store, rows) = (&touched, &store, &rows);
        audit
            .add(VOTES, move |from| {
                // All pages together touch more keys than all stripes have room for, one page does
                // not.
                if !matches!(from, Bound::Included(_)) {
                    for _ in 0..60_000 {
                        touched.set(touched.get() + 1);
                        store.begin(&mut votes(touched.get(), 1)).unwrap().abort();
                    }
                }
                rows.votes(from)
            })
            .unwrap();
        audit
    };
    let mut audits = [audit(), audit()];
    let mut drifts = [0, 0];
    for page in 0..12 {
        for (audit, drifts) in audits.iter_mut().zip(&mut drifts) {
            let after = (page > 0).then(|| KeyBuf::of::<i64>(page * 5 - 1));
            let ask = PageRequest { counter: VOTES.id(), after, until: None, keys: 5 };
            *drifts += audit.compare(&ask).unwrap().drifts.len();
        }
    }
    assert_eq!(drifts, [60, 60]);
}

/// A repair had passed a key whose pending write was dropped. The grace period ended, the next page
/// compared the key first, and then failed. When the page was asked for again, the key was no longer
/// remembered, and the drift stayed.
#[test]
fn drift_of_a_settled_key_is_found_again_after_its_page_failed() {
    static NOW: AtomicU64 = AtomicU64::new(50);
    for scanned in [false, true] {
        NOW.store(50, Ordering::Relaxed);
        let store = MemoryStore::new(&PLAIN)
            .with_clock(|| Duration::from_secs(NOW.load(Ordering::Relaxed)));
        let rows = Rows::default();
        for show in 1..=9 {
            store.begin(&mut votes(show, 1)).unwrap().commit().unwrap();
            rows.add(show, 1);
        }
        let fails = Cell::new(false);
        let result = |all: Vec<Votes>, fails: bool| {
            let end = fails.then(|| Err("the connection is lost".into()));
            all.into_iter().map(Ok).chain(end).collect::<Vec<_>>()
        };
        let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), Clock(&NEVER));
        if scanned {
            let calls = Cell::new(0);
            audit.rows_fallible(&[VOTES.id()], {
                let (rows, fails) = (&rows, &fails);
                move || {
                    // The first scan recounts the settled key, the second one is the page's.
                    calls.set(if fails.get() { calls.get() + 1 } else { 0 });
                    result(rows.votes(Bound::Unbounded), calls.get() == 2)
                }
            })
        } else {
            audit.add_fallible(VOTES, |from| {
                let is_page = matches!(from, Bound::Excluded(_));
                result(rows.votes(from), fails.get() && is_page)
            })
        }
        .unwrap();
        let ask = |after: Option<i64>| PageRequest {
            counter: VOTES.id(),
            after: after.map(KeyBuf::of::<i64>),
            until: None,
            keys: 4,
        };
        assert_eq!(audit.compare(&ask(None)).unwrap().drifts, []);

        drop(store.begin(&mut votes(2, 1)).unwrap());
        rows.add(2, 1);
        NOW.store(50 + GRACE.as_secs(), Ordering::Relaxed);
        fails.set(true);
        let failed = audit.compare(&ask(Some(4))).unwrap_err();
        assert!(failed.to_string().contains("the connection is lost"), "{failed}");
        fails.set(false);
        let found = audit.compare(&ask(Some(4))).unwrap();
        let found: Vec<_> =
            found.drifts.iter().map(|drift| (drift.stored, drift.expected)).collect();
        assert_eq!(found, [(1, 2)], "scanned: {scanned}");
        // It is reported once.
        assert_eq!(audit.compare(&ask(Some(8))).unwrap().drifts, []);
    }
}

/// Time that an audit adds to the clock could leave what a `Duration` holds, and the audit panicked.
/// A key's barrier is shut in vain here, and it is skipped for the grace period.
#[test]
fn busy_key_is_unsettled_in_the_longest_grace_period() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(1));
    rows.add(2, 3);
    let (mut one, open) = (votes(2, 1), RefCell::new(None));
    let one = RefCell::new(Some(&mut one));
    let longest = GracePeriod::after(Duration::MAX);
    let mut audit = MemoryAudit::live(&store, longest, Clock(&clock));
    audit
        .add(VOTES, |from| {
            if let Some(one) = one.take() {
                *open.borrow_mut() = store.try_begin(one).unwrap();
            }
            rows.votes(from)
        })
        .unwrap();
    let report = run_over(&mut audit, Mode::Verify, &[VOTES.id()]).unwrap();
    assert_eq!((report.drift(), report.counters[0].unsettled), (0, 1), "{report}");
}

/// A clock that notes how long and for what it waited.
struct Waits<'a>(Clock<'a>, &'a RefCell<Vec<(u128, String)>>);

impl Runtime for Waits<'_> {
    fn now(&mut self) -> Duration {
        self.0.now()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        self.0.wait(time, reason);
        self.1.borrow_mut().push((time.as_micros(), reason.to_owned()));
    }
}

/// The waits for a key's writers before the barrier is shut, in microseconds.
const DOUBLING: [u128; 8] = [100, 200, 400, 800, 1_600, 2_000, 2_000, 2_000];

/// Its barrier is shut in vain. Until the grace period is over, no writer waits there again.
#[test]
fn busy_key_is_skipped_for_the_grace_period_and_then_compared() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(1));
    rows.add(2, 3);
    let (mut one, open, waits) = (votes(2, 1), RefCell::new(None), RefCell::default());
    let one = RefCell::new(Some(&mut one));
    let runtime = Waits(Clock(&clock), &waits);
    let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), runtime);
    audit
        .add(VOTES, |from| {
            if let Some(one) = one.take() {
                *open.borrow_mut() = store.try_begin(one).unwrap();
            }
            rows.votes(from)
        })
        .unwrap();
    let mut found = || {
        let report = run_over(&mut audit, Mode::Verify, &[VOTES.id()]).unwrap();
        (report.drift(), report.counters[0].unsettled)
    };
    assert_eq!(found(), (0, 1));
    let all = waits.take();
    let (of_writers, of_barrier): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, reason)| reason == "a key's writers");
    let of_writers: Vec<u128> = of_writers.into_iter().map(|(micros, _)| micros).collect();
    assert_eq!(of_writers, DOUBLING);
    assert_eq!(of_barrier.iter().map(|(micros, _)| micros).sum::<u128>(), 100_000);
    open.take().unwrap().commit().unwrap();
    let grace = u64::try_from(GRACE.as_micros()).unwrap();
    let skipped_at = clock.load(Ordering::Relaxed);
    for (passed, wanted) in [(0, (0, 1)), (grace - 1, (0, 1)), (grace, (1, 0))] {
        clock.store(skipped_at + passed, Ordering::Relaxed);
        assert_eq!(found(), wanted, "{passed}");
        assert_eq!(waits.take(), []);
    }
}

#[test]
fn audit_waits_for_the_writes_that_are_open_when_it_begins_before_it_shuts_a_barrier() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(0));
    let mut one = votes(1, 1);
    let (open, waits) = (store.begin(&mut one).unwrap(), RefCell::default());
    let runtime = Waits(Clock(&clock), &waits);
    let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), runtime);
    audit.add(VOTES, |from| rows.votes(from)).unwrap();
    let ask = PageRequest { counter: VOTES.id(), after: None, until: None, keys: 3 };
    assert!(matches!(audit.compare(&ask), Err(Error::Busy { .. })));
    let waits: Vec<_> = waits.take().into_iter().take(DOUBLING.len() + 1).collect();
    let writers = DOUBLING.map(|micros| (micros, "a key's writers".to_owned()));
    assert_eq!(waits[..DOUBLING.len()], writers);
    assert_eq!(waits[DOUBLING.len()].1, "a barrier");
    drop(open);
}

/// A clock that the longest wait advances to the largest time.
struct Ages(Duration);

impl Runtime for Ages {
    fn now(&mut self) -> Duration {
        self.0
    }

    fn wait(&mut self, time: Duration, _: &str) {
        self.0 = self.0.saturating_add(time);
    }
}

#[test]
fn key_that_differs_is_unsettled_while_hooks_may_take_for_ever() {
    let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
    rows.add(2, 3);
    let runtime = Ages(Duration::from_secs(1));
    let mut audit = MemoryAudit::watching(&store, Duration::MAX, runtime);
    audit.add(VOTES, |from| rows.votes(from)).unwrap();
    let report = run_over(&mut audit, Mode::Verify, &[VOTES.id()]).unwrap();
    assert_eq!((report.drift(), report.counters[0].unsettled), (0, 1), "{report}");
}

#[test]
fn longest_wait_of_a_system_runtime_ends_when_it_is_stopped() {
    let stop = AtomicBool::new(true);
    let mut runtime = SystemRuntime::new().stop_flag(&stop);
    runtime.now();
    runtime.wait(Duration::MAX, "duty cycle");
    assert!(runtime.now() < Duration::from_secs(20));
}

#[test]
fn commit_idempotent_applies_the_events_of_a_range_once() {
    let store = MemoryStore::new(&PLAIN);
    let mut batch = votes(1, 2);
    let stream_range = StreamRange::new("queue", 1, 2).unwrap();
    assert!(!store.begin(&mut batch).unwrap().commit_idempotent(&stream_range).unwrap().skipped);
    assert!(store.begin(&mut batch).unwrap().commit_idempotent(&stream_range).unwrap().skipped);
    let later = StreamRange::new("queue", 4, 4).unwrap();
    assert!(matches!(
        store.begin(&mut batch).unwrap().commit_idempotent(&later),
        Err(Error::Gap { first: 4, applied: 2, .. })
    ));
    assert_eq!((store.total(VOTES, 1).unwrap(), store.offset("queue")), (2, 2));
}

/// Without pending writes, a row is visible before its total changes, but for less than this.
const DELAY: Duration = Duration::from_millis(5);

/// A wait lets the hook of show 3 finish, which was in progress when the page was read. Show 4 gets
/// one more vote that is not counted.
struct Hooks<'a>(Clock<'a>, &'a MemoryStore, &'a Rows);

impl Runtime for Hooks<'_> {
    fn now(&mut self) -> Duration {
        self.0.now()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        assert!(time > DELAY && reason.contains("hooks"));
        self.0.wait(time, reason);
        self.1.apply(&mut votes(3, 1)).unwrap();
        self.2.add(4, 1);
    }
}

#[test]
fn watching_audit_reports_only_keys_that_differ_twice() {
    let (store, rows, clock) = (MemoryStore::new(&PLAIN), Rows::default(), AtomicU64::new(0));
    for (show, counted, there) in [(1, 1, 1), (2, 3, 1), (3, 0, 1), (4, 0, 1)] {
        store.apply(&mut votes(show, counted)).unwrap();
        rows.add(show, there);
    }
    let mut audit = MemoryAudit::watching(&store, DELAY, Hooks(Clock(&clock), &store, &rows));
    audit.add(VOTES, |from| rows.votes(from)).unwrap();
    let mut verify = Reconciler::new(Mode::Verify, &PLAIN, Options::default()).unwrap();
    let report = run(&mut verify, &mut audit, &mut SystemRuntime::new()).unwrap();
    let found = &report.counters[0];
    assert_eq!(
        (found.drift(), found.samples[0].key.decode::<i64>().unwrap(), found.unsettled),
        (1, 2, 1)
    );
    assert_eq!(found.unsettled_keys, [KeyBuf::of::<i64>(4)]);
    let error = run_over(&mut audit, Mode::Repair, &[VOTES.id()]).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidUse { what: "audit", reason } if reason.contains("pending writes")),
        "{error}"
    );
}

#[test]
fn rollup_repairs_are_exact_while_memberships_and_base_change() {
    let (store, rows, done) = (MemoryStore::new(&SCHEMA), Rows::default(), AtomicBool::new(false));
    // Writers lock rows against each other only. Readers do not take this lock.
    let row_locks = Mutex::new(());
    let shows = Mutex::new(
        (0..20).map(|show| (show, Show(show, show % 4))).collect::<BTreeMap<i64, Show>>(),
    );
    let mut batch = Batch::new();
    shows.lock().unwrap().values().for_each(|show| batch.insert(show));
    store.begin(&mut batch).unwrap().commit().unwrap();
    // Drift in both inputs of the rollup: votes that were never counted, and a membership that is
    // counted twice.
    (0..20).for_each(|show| rows.add(show, show));
    let mut broken = Batch::new();
    broken.add(MEMBERSHIP, (3_i64, 3_i64), 1);
    store.begin(&mut broken).unwrap().commit().unwrap();

    let corrected = thread::scope(|scope| {
        for seed in 0..3 {
            let (store, rows, row_locks, shows, done) = (&store, &rows, &row_locks, &shows, &done);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    let show = random.below(20);
                    let mut batch = Batch::new();
                    if random.below(3) == 0 {
                        // The old row is read under the writers' lock.
                        let lock = row_locks.lock().unwrap();
                        let old = shows.lock().unwrap()[&show];
                        let new = Show(show, random.below(4));
                        batch.update(&old, &new);
                        let pending_write = store.begin(&mut batch).unwrap();
                        shows.lock().unwrap().insert(show, new);
                        drop(lock);
                        pending_write.commit().unwrap();
                    } else {
                        batch.insert(&Votes(show, 1));
                        let pending_write = store.begin(&mut batch).unwrap();
                        rows.add(show, 1);
                        pending_write.commit().unwrap();
                    }
                }
            });
        }
        let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE), SystemRuntime::new());
        audit.add(VOTES, |from| rows.votes(from)).unwrap();
        audit
            .add(MEMBERSHIP, |_| shows.lock().unwrap().values().copied().collect::<Vec<_>>())
            .unwrap();
        let corrected: Vec<u64> = (0..20)
            .map(|_| {
                let report = run_over(
                    &mut audit,
                    Mode::Repair,
                    &[VOTES.id(), MEMBERSHIP.id(), ARTIST_VOTES.id()],
                )
                .unwrap();
                assert!(report.complete(), "{report}");
                report.counters.iter().map(|counter| counter.corrected).sum()
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        corrected
    });
    assert!(corrected[0] >= 20, "{corrected:?}");
    assert_eq!(
        corrected[1..].iter().sum::<u64>(),
        0,
        "later repairs found drift again: {corrected:?}"
    );
    let mut artists = BTreeMap::new();
    for (show, votes) in rows.0.lock().unwrap().iter() {
        *artists.entry(shows.lock().unwrap()[show].1).or_insert(0) += votes;
    }
    artists.retain(|_, votes| *votes != 0);
    assert_eq!(store.totals(ARTIST_VOTES).unwrap(), artists.into_iter().collect::<Vec<_>>());
}

/// Runs work that could deadlock on a thread of its own, and panics if it does not end in time.
fn run_with_timeout<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, dones) = std::sync::mpsc::channel();
    thread::spawn(move || drop(done.send(work())));
    dones.recv_timeout(Duration::from_secs(20)).expect("the work hangs")
}

/// A source that began a pending write over a key whose barrier its own audit had shut waited for
/// itself.
#[test]
fn begin_in_a_source_at_its_audits_barrier_is_refused_and_does_not_hang() {
    for (tries, mode) in
        [(0, Mode::Verify), (0, Mode::Repair), (3, Mode::Verify), (3, Mode::Repair)]
    {
        run_with_timeout(move || {
            let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
            rows.add(1, 5);
            let refused = RefCell::new(Vec::new());
            let clock = AtomicU64::new(0);
            let mut audit =
                MemoryAudit::live(&store, GracePeriod::after(GRACE).tries(tries), Clock(&clock));
            audit
                .add_fallible(VOTES, |from| {
                    let begun = store.begin(&mut votes(1, 1)).map(PendingWrite::abort);
                    let found = begun.map_err(|error| refused.borrow_mut().push(error.to_string()));
                    let rows = rows.votes(from).into_iter().map(Ok);
                    rows.chain(found.is_err().then(|| Err("no pending write could begin".into())))
                })
                .unwrap();
            let error = run_over(&mut audit, mode, &[VOTES.id()]).unwrap_err();
            assert!(error.to_string().ends_with("no pending write could begin"), "{error}");
            drop(audit);
            let refused = refused.into_inner();
            assert!(
                refused.iter().all(|error| error.starts_with("begin: an audit that waits for"))
            );
            assert!(!refused.is_empty());
            // The barrier is open again.
            store.begin(&mut votes(1, 1)).unwrap().commit().unwrap();
            assert_eq!(store.total(VOTES, 1).unwrap(), 1);
        });
    }
}

/// A runtime that begins a pending write while its audit waits at a barrier.
struct Busybody<'a>(&'a MemoryStore, &'a Cell<u32>);

impl Runtime for Busybody<'_> {
    fn now(&mut self) -> Duration {
        Duration::ZERO
    }

    fn wait(&mut self, _: Duration, _: &str) {
        match self.0.begin(&mut votes(1, 1)) {
            Ok(pending_write) => pending_write.abort(),
            Err(_) => self.1.set(self.1.get() + 1),
        }
    }
}

#[test]
fn begin_in_a_runtime_at_its_audits_barrier_is_refused_and_does_not_hang() {
    run_with_timeout(|| {
        let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
        rows.add(1, 5);
        let (refused, mut open) = (Cell::new(0), votes(1, 2));
        let (batch, pending_write) = (RefCell::new(Some(&mut open)), RefCell::new(None));
        let runtime = Busybody(&store, &refused);
        let mut audit = MemoryAudit::live(&store, GracePeriod::after(GRACE).tries(0), runtime);
        audit
            .add(VOTES, |from| {
                // The pending write begins while the page is read, so the audit waits for it at the
                // barrier.
                if let Some(batch) = batch.borrow_mut().take() {
                    *pending_write.borrow_mut() = Some(store.begin(batch).unwrap());
                }
                rows.votes(from)
            })
            .unwrap();
        let report = run_over(&mut audit, Mode::Verify, &[VOTES.id()]).unwrap();
        assert_eq!(report.counters[0].unsettled, 1, "{report}");
        assert!(refused.get() > 0);
    });
}

#[test]
fn source_may_read_copy_and_audit_its_store_during_an_audit() {
    for tries in [0, 3] {
        let report = run_with_timeout(move || {
            let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
            rows.add(1, 5);
            let (clock, depth) = (AtomicU64::new(0), Cell::new(0));
            let mut audit =
                MemoryAudit::live(&store, GracePeriod::after(GRACE).tries(tries), Clock(&clock));
            audit
                .add(VOTES, |from| {
                    assert_eq!(store.total(VOTES, 1).unwrap(), 0);
                    assert_eq!(store.range(VOTES.all(), 9).unwrap(), []);
                    assert_eq!(store.sum(VOTES.all()).unwrap(), 0);
                    let _ = store.snapshot();
                    store.forget_offset("votes");
                    drop(store.try_begin(&mut Batch::new()).unwrap());
                    if depth.replace(1) == 0 {
                        // The inner audit finds the barrier shut and leaves the key unsettled.
                        let inner = GracePeriod::after(GRACE).tries(tries);
                        let mut inner = MemoryAudit::live(&store, inner, Clock(&clock));
                        inner.add(VOTES, |from| rows.votes(from)).unwrap();
                        let _ = run_over(&mut inner, Mode::Verify, &[VOTES.id()]);
                    }
                    rows.votes(from)
                })
                .unwrap();
            run_over(&mut audit, Mode::Verify, &[VOTES.id()]).unwrap().to_string()
        });
        assert!(report.starts_with("verify: 1 counter, 1 key: 0 wrong, 1 missing"), "{report}");
    }
    // The audit notices a hook without a pending write, and fails.
    let error = run_with_timeout(|| {
        let (store, rows) = (MemoryStore::new(&PLAIN), Rows::default());
        rows.add(1, 5);
        let clock = AtomicU64::new(0);
        let mut audit =
            MemoryAudit::live(&store, GracePeriod::after(GRACE).tries(0), Clock(&clock));
        audit
            .add(VOTES, |from| {
                store.apply(&mut votes(1, 0)).unwrap();
                rows.votes(from)
            })
            .unwrap();
        run_over(&mut audit, Mode::Repair, &[VOTES.id()]).unwrap_err().to_string()
    });
    assert!(
        error.contains("a hook ran without a pending write after the audit was made"),
        "{error}"
    );
}
