//! Barriers that audits shut over stripes of a store. A thread that waits holds no lock, every shut
//! barrier is opened again, and keys whose barrier could not be shut are not repaired.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keepcount::reconcile::{GracePeriod, Mode};
use keepcount::{PendingWrite, Recovery};

use super::pending_writes::assert_repaired;
use super::threads::{check, once, thread};
use super::world::{GRACE, Keys, Row, VOTES, World, grace_period, keys, unsettled, with_batch};

/// Both pending writes span both stripes. Each repair shuts the barrier of one stripe while the
/// other repair shuts that of the other.
#[test]
fn pending_writes_over_two_stripes_pass_two_barriers() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let planted = [(here, 1), (there, 1)];
        let world = World::planted(planted);
        let reports = thread::scope(|scope| {
            let other = scope.spawn(|| world.repair(0));
            scope.spawn(|| world.write([(here, 1), (there, 1)]));
            scope.spawn(|| world.write([(there, 1), (here, 1)]));
            [world.repair(0), other.join().unwrap()]
        });
        for report in &reports {
            assert_repaired(&world, report, &[]);
        }
    });
}

/// While a barrier is shut, `try_begin` returns at once. It begins on every stripe of its batch or
/// on none, and works on stripes whose barrier is open.
#[test]
fn try_begin_does_not_wait_for_a_barrier() {
    let Keys { here, beside, there } = keys();
    once(move || {
        let world = World::planted([(here, 1)]);
        let begins = |keys: [i64; 2]| {
            let (_, mut batch) = with_batch(keys.map(|key| (key, 1)));
            let pending_write = world.store.try_begin(&mut batch).unwrap();
            pending_write.map(PendingWrite::abort).is_some()
        };
        let shut = Cell::new(0);
        let mut audit = world.audit(grace_period(0));
        audit
            .add(VOTES, |_| {
                if !begins([beside, beside]) {
                    shut.set(shut.get() + 1);
                    assert!(begins([there, there]));
                    assert!(!begins([there, here]));
                    assert!(begins([there, there]), "nothing stays begun on the first stripe");
                }
                Vec::<Row>::new()
            })
            .unwrap();
        let report = world.run_of(Mode::Repair, &mut audit).unwrap();
        drop(audit);
        assert_repaired(&world, &report, &[]);
        // For the comparison of `here`, for its repair, and for the comparison of `beside`, over
        // which a pending write began while the page was read.
        assert_eq!(shut.get(), 3);
    });
}

#[test]
fn source_that_panics_while_a_barrier_is_shut_opens_it() {
    let Keys { here, beside, there } = keys();
    check(move || {
        let planted = [(here, 1), (there, 1)];
        let world = World::planted(planted);
        let caught = thread::scope(|scope| {
            scope.spawn(|| world.write([(beside, 1), (there, 1)]));
            let mut reads = 0;
            let mut audit = world.audit(grace_period(0));
            audit
                .add(VOTES, |from| {
                    reads += 1;
                    // The first read is for the probe, the second for the page, and all others are
                    // behind a barrier.
                    if reads > 2 {
                        std::panic::resume_unwind(Box::new("no rows"));
                    }
                    world.read(from)
                })
                .unwrap();
            catch_unwind(AssertUnwindSafe(|| world.run_of(Mode::Repair, &mut audit))).is_err()
        });
        assert!(caught);
        world.write([(here, 1)]);
        let report = world.repair(0);
        assert_repaired(&world, &report, &[]);
        assert_eq!(unsettled(&report), []);
    });
}

/// With a barrier time of zero, an audit tries a barrier once. If a pending write is open in both
/// stripes at that moment, the run fails as busy and the next repair corrects everything. In most
/// runs the repair succeeds.
#[test]
fn zero_barrier_time_repairs_no_key_of_an_open_pending_write() {
    static REPAIRED: AtomicBool = AtomicBool::new(false);
    let Keys { here, there, .. } = keys();
    check(move || {
        let planted = [(here, 1), (there, -1)];
        let world = World::planted(planted);
        let result = thread::scope(|scope| {
            scope.spawn(|| world.write([(here, 1), (there, 1)]));
            let mut audit =
                world.audit(GracePeriod::after(GRACE).barrier_time(Duration::ZERO).tries(0));
            audit.add(VOTES, |from| world.read(from)).unwrap();
            world.run_of(Mode::Repair, &mut audit)
        });
        match result {
            Ok(report) => {
                REPAIRED.store(true, Ordering::Relaxed);
                assert_repaired(&world, &report, &planted);
            }
            Err(error) => {
                assert_eq!(error.recovery(), Recovery::Retry, "{error}");
                assert_repaired(&world, &world.repair(0), &[]);
            }
        }
    });
    assert!(REPAIRED.load(Ordering::Relaxed), "every repair was refused");
}
