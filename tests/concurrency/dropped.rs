//! Dropped pending writes: until the grace period is over, their keys are neither repaired nor
//! called clean. Then they are compared first.

use keepcount::reconcile::Mode;

use super::pending_writes::assert_repaired;
use super::threads::{check, thread};
use super::world::{GRACE, Keys, VOTES, World, keys, unsettled, with_batch};

/// The writer that dropped a pending write finds that its row is visible, and counts the row with a
/// new pending write. A repair in between would make the row count twice. It once did: the pending
/// write was dropped after the repair had checked for unresolved keys and before it had exclusive
/// access to the key.
#[test]
fn dropped_pending_write_that_is_counted_by_a_new_one_counts_once() {
    let Keys { here, there, .. } = keys();
    for tries in [2, 0] {
        check(move || {
            let planted = [(here, 7), (there, 7)];
            let world = World::planted(planted);
            let (rows, mut batch) = with_batch([(here, 1), (there, 1)]);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let pending_write = world.begin(&mut batch);
                    world.show(&rows);
                    drop(pending_write);
                    world.begin(&mut batch).commit().unwrap();
                });
                scope.spawn(|| world.repair(tries));
            });
            let drifts = world.drifts();
            for key in [here, there] {
                assert!([None, Some(&7)].contains(&drifts.get(&key)), "{drifts:?}");
            }
            world.pass(2 * GRACE);
            let report = world.repair(tries);
            assert_repaired(&world, &report, &[]);
            assert_eq!(unsettled(&report), []);
        });
    }
}

/// The row becomes visible after its pending write was dropped, because the commit was still in
/// progress.
#[test]
fn row_visible_after_its_pending_write_was_dropped_waits_for_the_grace_period() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let planted = [(there, 1)];
        let world = World::planted(planted);
        let (rows, mut batch) = with_batch([(here, 1), (there, 1)]);
        let (before, report) = thread::scope(|scope| {
            scope.spawn(|| {
                drop(world.begin(&mut batch));
                world.show(&rows);
            });
            let report = world.repair(1);
            (world.store.total(VOTES, here).unwrap(), report)
        });
        assert!(report.complete());
        assert_eq!(before, 0, "repaired during the grace period");
        // The repair may have compared the keys before the pending write began, or left them
        // unsettled. A later verify leaves both unsettled.
        let verify = world.run(Mode::Verify, 1).unwrap();
        assert_eq!(unsettled(&verify).len(), 2, "{verify}");
        world.pass(2 * GRACE);
        let report = world.repair(1);
        assert_repaired(&world, &report, &[]);
        assert_eq!(unsettled(&report), []);
    });
}
