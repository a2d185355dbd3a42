//! Pending writes that are used wrongly, each in one point: the checker finds what comes of it, so
//! it would find it in the store too.

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
    // An audit that notices refuses: that is no failure.
    if let Ok(report) = report {
        assert_repaired(&world, &report, &[]);
    }
}

#[test]
fn a_pending_write_that_begins_after_its_rows_are_visible() {
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
fn a_pending_write_that_is_committed_before_its_rows_are_visible() {
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
fn a_pending_write_that_is_aborted_although_its_rows_become_visible() {
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

/// The audit notices it, unless the hook runs between its last look and its repair.
#[test]
fn a_hook_without_a_pending_write() {
    let Keys { here, .. } = keys();
    finds(move || {
        repair_beside(|world| {
            let (rows, mut batch) = with_batch([(here, 1)]);
            world.show(&rows);
            world.store.apply(&mut batch).unwrap();
        });
    });
}

/// A replica that lags: rows as they were before they were asked for.
#[test]
fn rows_that_were_read_before_they_were_asked_for() {
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

/// A grace period that is over before it is known what became of the rows: whoever finds out, and
/// counts them, counts them twice.
#[test]
fn a_dropped_pending_write_that_is_made_good_after_the_settle_time() {
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
