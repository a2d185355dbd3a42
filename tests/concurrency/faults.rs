//! Pending writes with one mistake each. The checker finds the wrong totals that follow, so it
//! would also find such a mistake in the store.

use std::ops::Bound;

use keepcount::reconcile::Mode;

use super::pending_writes::assert_repaired;
use super::threads::{finds, thread};
use super::world::{GRACE, Keys, VOTES, World, grace_period, keys, with_batch};

/// A repair beside one writer.
fn repair_beside(write: impl Fn(&World) + Sync) {
    let Keys { here, .. } = keys();
    let world = World::planted([(here, 1)]);
    let report = thread::scope(|scope| {
        scope.spawn(|| write(&world));
        world.run(Mode::Repair, 1)
    });
    // An audit that notices the mistake refuses the run. That is not a failure.
    if let Ok(report) = report {
        assert_repaired(&world, &report, &[]);
    }
}

#[test]
fn checker_finds_a_pending_write_that_begins_after_its_rows_are_visible() {
    let Keys { here, .. } = keys();
    finds(move || {
        repair_beside(|world| {
            let (rows, mut batch) = with_batch([(here, 1)]);
            world.show(&rows);
            world.begin(&mut batch).commit().unwrap();
        });
    });
}

#[test]
fn checker_finds_a_pending_write_committed_before_its_rows_are_visible() {
    let Keys { here, .. } = keys();
    finds(move || {
        repair_beside(|world| {
            let (rows, mut batch) = with_batch([(here, 1)]);
            world.begin(&mut batch).commit().unwrap();
            world.show(&rows);
        });
    });
}

#[test]
fn checker_finds_a_pending_write_aborted_although_its_rows_become_visible() {
    let Keys { here, .. } = keys();
    finds(move || {
        repair_beside(|world| {
            let (rows, mut batch) = with_batch([(here, 1)]);
            world.begin(&mut batch).abort();
            world.show(&rows);
            world.store.begin(&mut batch).unwrap().commit().unwrap();
        });
    });
}

/// The audit notices the hook, unless it runs between the last check and the repair.
#[test]
fn checker_finds_a_hook_without_a_pending_write() {
    let Keys { here, .. } = keys();
    finds(move || {
        repair_beside(|world| {
            let (rows, mut batch) = with_batch([(here, 1)]);
            world.show(&rows);
            world.store.apply(&mut batch).unwrap();
        });
    });
}

/// A replica that lags: the source returns the rows of an earlier moment than the audit's call.
#[test]
fn checker_finds_rows_read_before_the_audit_asked_for_them() {
    let Keys { here, .. } = keys();
    finds(move || {
        let world = World::planted([(here, 1)]);
        let report = thread::scope(|scope| {
            scope.spawn(|| world.write([(here, 1)]));
            let mut audit = world.audit(grace_period(1));
            let stale = world.read(Bound::Unbounded);
            audit.add(VOTES, move |_| stale.clone()).unwrap();
            world.run_of(Mode::Repair, &mut audit).unwrap()
        });
        assert_repaired(&world, &report, &[]);
    });
}

/// The grace period is over before the writer knows what became of the rows. The repair counts
/// them, and so does the writer: they count twice.
#[test]
fn checker_finds_a_dropped_pending_write_counted_after_the_grace_period() {
    let Keys { here, .. } = keys();
    finds(move || {
        let world = World::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (rows, mut batch) = with_batch([(here, 1)]);
                let pending_write = world.begin(&mut batch);
                world.show(&rows);
                drop(pending_write);
                world.pass(2 * GRACE);
                world.begin(&mut batch).commit().unwrap();
            });
            world.repair(1)
        });
        assert_eq!(world.drifts(), [].into());
    });
}
