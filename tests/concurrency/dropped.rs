//! Brackets that are dropped: until the settle time is over nobody mends their keys, or calls them clean; then they are seen to first.

use keepcount::reconcile::Mode;

use super::brackets::assert_mended;
use super::threads::{check, thread};
use super::world::{Keys, SETTLE, VOTES, World, keys, unsettled, with_batch};

/// Whoever dropped a bracket finds out that its row is there, and counts it in a new one: had a repair mended it meanwhile, it would count twice. It
/// once did, where the bracket was dropped after the repair had looked for suspects and before it had the key to itself.
#[test]
fn a_bracket_that_is_dropped_and_made_good_counts_once() {
    let Keys { here, there, .. } = keys();
    for tries in [2, 0] {
        check(move || {
            let planted = [(here, 7), (there, 7)];
            let world = World::planted(planted);
            let (rows, mut batch) = with_batch([(here, 1), (there, 1)]);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let bracket = world.begin(&mut batch);
                    world.show(&rows);
                    drop(bracket);
                    world.begin(&mut batch).commit().unwrap();
                });
                scope.spawn(|| world.repair(tries));
            });
            let drifts = world.drifts();
            for key in [here, there] {
                assert!([None, Some(&7)].contains(&drifts.get(&key)), "{drifts:?}");
            }
            world.pass(2 * SETTLE);
            let report = world.repair(tries);
            assert_mended(&world, &report, &[]);
            assert_eq!(unsettled(&report), []);
        });
    }
}

/// The row becomes visible long after its bracket was dropped: the commit was under way.
#[test]
fn a_row_that_comes_after_its_bracket_was_dropped_is_mended_when_it_is_settled() {
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
        assert_eq!(before, 0, "mended before it was settled");
        // Seen before the bracket began or left alone, and never clean behind it.
        let verify = world.run(Mode::Verify, 1).unwrap();
        assert_eq!(unsettled(&verify).len(), 2, "{verify}");
        world.pass(2 * SETTLE);
        let report = world.repair(1);
        assert_mended(&world, &report, &[]);
        assert_eq!(unsettled(&report), []);
    });
}
