//! Gates that audits shut: who waits holds nothing, whoever shuts one opens it again, and what
//! could not be had is left alone.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keepcount::reconcile::{GracePeriod, Mode};
use keepcount::{PendingWrite, Recovery};

use super::pending_writes::assert_repaired;
use super::threads::{check, once, thread};
use super::world::{GRACE, Keys, Row, VOTES, World, grace_period, keys, unsettled, with_batch};

/// The pending writes are over both stripes, and each repairer shuts the gate of one of them while
/// the other has the other.
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

/// While a gate is shut `try_begin` says so at once, on every stripe of its batch or on none, and
/// leaves the others alone.
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
                    assert!(begins([there, there]), "backed out of where it had begun");
                }
                Vec::<Row>::new()
            })
            .unwrap();
        let report = world.run_of(Mode::Repair, &mut audit).unwrap();
        drop(audit);
        assert_repaired(&world, &report, &[]);
        // To measure and to repair it, and to measure the other, over which a pending write began
        // while the page was read.
        assert_eq!(shut.get(), 3);
    });
}

#[test]
fn rows_that_panic_while_a_barrier_is_shut_open_it() {
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
                    // Once to look, once for the page, then behind a gate.
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

/// No barrier time: a gate is looked at once. Where a pending write is open in both stripes for as
/// long as that, nothing is measured, and the next repair has it all; mostly it is not.
#[test]
fn without_time_for_barriers_nothing_is_repaired_that_is_open() {
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
    assert!(REPAIRED.load(Ordering::Relaxed), "no repair came through");
}
