//! A metrics recorder that panics. Stores call it after they have applied a batch: what was applied
//! stays applied once, and a pending write that was committed has ended.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use keepcount::reconcile::{
    GracePeriod, MemoryAudit, Mode, Options, Reconciler, Report, SystemRuntime, run,
};
use keepcount::{Batch, Error, MemoryStore, PendingWrite, Record, Result, StreamRange, Tally};
use metrics::{Key, KeyName, Metadata, Recorder, SharedString, Unit};

keepcount::counters! { SCHEMA { VOTES: i64 = "show.votes"; } }

struct Panics;

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> metrics::Counter {
        resume_unwind(Box::new("no counter"))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> metrics::Gauge {
        resume_unwind(Box::new("no gauge"))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        resume_unwind(Box::new("no histogram"))
    }
}

/// Asserts that work reports to the recorder, whose panic is contained, as a job contains it.
pub(super) fn assert_recorder_panics<T>(work: impl FnOnce() -> T) {
    let caught = metrics::with_local_recorder(&Panics, || {
        catch_unwind(AssertUnwindSafe(work)).map(drop).is_err()
    });
    assert!(caught, "nothing was reported");
}

/// A row of a show.
#[derive(Clone, Copy)]
struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, 1);
    }
}

fn batch(rows: &[Vote]) -> Batch {
    let mut batch = Batch::new();
    batch.insert(rows);
    batch
}

fn events() -> StreamRange<'static> {
    StreamRange::new("votes", 1, 1).unwrap()
}

/// A live audit over these rows, which are in key order.
fn audit(store: &MemoryStore, mode: Mode, rows: &[Vote]) -> Result<Report> {
    let grace_period = GracePeriod::after(Duration::from_secs(3600)).barrier_time(Duration::ZERO);
    let mut audit = MemoryAudit::live(store, grace_period, SystemRuntime::new());
    audit.add(VOTES, |_| rows.to_vec())?;
    let mut reconciler = Reconciler::new(mode, &SCHEMA, Options::default().retries(0))?;
    run(&mut reconciler, &mut audit, &mut SystemRuntime::new())
}

const ONE: &[Vote] = &[Vote(7)];
const TWO: &[Vote] = &[Vote(7), Vote(8)];

/// A commit that had applied its batch unwound, and its pending write was ended a second time. From
/// then on, an open pending write looked like none: a live repair counted its row, and its commit
/// counted the row again. Without an open one, every audit was busy for ever.
#[test]
fn pending_write_ends_once_if_the_recorder_panics() {
    let commit = |pending_write: PendingWrite<'_>, is_idempotent: bool| {
        if is_idempotent {
            pending_write.commit_idempotent(&events())
        } else {
            pending_write.commit()
        }
    };
    for rows in [ONE, TWO] {
        for is_idempotent in [false, true] {
            let store = MemoryStore::new(&SCHEMA);
            let mut written = batch(rows);
            assert_recorder_panics(|| commit(store.begin(&mut written).unwrap(), is_idempotent));

            // Another write is open, and its row is visible.
            let visible = [ONE, rows].concat();
            let mut open = batch(ONE);
            let pending_write = store.begin(&mut open).unwrap();
            let repair = audit(&store, Mode::Repair, &visible);
            assert!(
                matches!(&repair, Err(Error::Busy { reason, .. }) if reason.contains("stayed open")),
                "{repair:?}"
            );
            pending_write.commit().unwrap();
            assert_eq!(store.total(VOTES, 7).unwrap(), 2);
            let report = audit(&store, Mode::Verify, &visible).unwrap();
            assert!(report.counters[0].clean, "{report}");
            assert!(written.is_empty(), "it was applied");
        }
    }
}

/// A batch that had been applied kept its deltas, as a refused one does. Whoever applied it again
/// counted it twice.
#[test]
fn batch_that_a_memory_store_applied_is_empty_if_the_recorder_panics() {
    for rows in [ONE, TWO] {
        let store = MemoryStore::new(&SCHEMA);
        let mut applied = batch(rows);
        assert_recorder_panics(|| store.apply(&mut applied));
        assert!(applied.is_empty());
        store.apply(&mut applied).unwrap();
        assert_eq!(store.total(VOTES, 7).unwrap(), 1);

        let mut applied = batch(rows);
        assert_recorder_panics(|| store.apply_idempotent(&mut applied, &events()));
        assert!(applied.is_empty());
        assert_eq!((store.total(VOTES, 7).unwrap(), store.offset("votes")), (2, 1));
    }
}
