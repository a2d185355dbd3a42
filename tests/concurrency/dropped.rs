//! Pending writes that are dropped: until the grace period is over nobody repairs their keys, or
//! calls them clean; then they are seen to first.

use keepcount::reconcile::Mode;

use super::pending_writes::assert_repaired;
use super::threads::{check, thread};
use super::world::{GRACE, Keys, VOTES, World, keys, unsettled, with_batch};

/// Whoever dropped a pending write finds out that its row is there, and counts it in a new one: had
/// a repair repaired it meanwhile, it would count twice. It once did, where the pending write was
/// dropped after the repair had looked for unresolved keys and before it had the key to itself.
#[test]
fn a_pending_write_that_is_dropped_and_made_good_counts_once() {
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

/// The row becomes visible long after its pending write was dropped: the commit was under way.
#[test]
fn a_row_that_comes_after_its_pending_write_was_dropped_is_repaired_when_it_is_settled() {
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
        assert_eq!(before, 0, "repaired before it was settled");
        // Seen before the pending write began or left alone, and never clean behind it.
        let verify = world.run(Mode::Verify, 1).unwrap();
        assert_eq!(unsettled(&verify).len(), 2, "{verify}");
        world.pass(2 * GRACE);
        let report = world.repair(1);
        assert_repaired(&world, &report, &[]);
        assert_eq!(unsettled(&report), []);
    });
}
