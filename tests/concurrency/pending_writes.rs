//! Writers with pending writes beside audits: an audit reports only drift that exists, and a repair
//! leaves exact totals, whatever was written in between.

use std::collections::BTreeMap;

use keepcount::reconcile::{Mode, Report};
use keepcount::{Error, KeyBuf, StreamRange};

use super::threads::{check, thread};
use super::world::{Keys, VOTES, World, grace_period, keys, rows, unsettled, with_batch};

/// Asserts that the remaining drift is the planted drift of the unsettled keys, and nothing else.
#[track_caller]
pub fn assert_repaired(world: &World, report: &Report, planted: &[(i64, i64)]) {
    assert!(report.complete(), "{report}");
    let alone = unsettled(report);
    let is_alone = |key: i64| alone.contains(&KeyBuf::of::<i64>(key));
    let left: BTreeMap<i64, i64> =
        planted.iter().copied().filter(|(key, _)| is_alone(*key)).collect();
    assert_eq!(world.drifts(), left, "{report}");
}

#[test]
fn repair_beside_writers_repairs_only_planted_drift() {
    let Keys { here, beside, there } = keys();
    for tries in [2, 0] {
        check(move || {
            let planted = [(here, 1), (beside, -2)];
            let world = World::planted(planted);
            let report = thread::scope(|scope| {
                scope.spawn(|| {
                    world.write([(here, 1)]);
                    world.write([(here, -2), (beside, 5)]);
                });
                scope.spawn(|| world.write([(here, 1), (there, 1)]));
                world.repair(tries)
            });
            assert_repaired(&world, &report, &planted);
            assert_eq!(unsettled(&report), []);
        });
    }
}

/// A row that becomes visible while its page is read hides a total that is too high: stored total
/// and recount agree, and the total is wrong.
#[test]
fn drift_that_a_writer_hides_is_found() {
    let Keys { here, .. } = keys();
    check(move || {
        let world = World::planted([(here, 1)]);
        let report = thread::scope(|scope| {
            scope.spawn(|| world.write([(here, 1)]));
            world.run(Mode::Verify, 2).unwrap()
        });
        let found: Vec<i64> =
            report.counters[0].samples.iter().map(|found| found.stored - found.expected).collect();
        assert_eq!((found, unsettled(&report)), (vec![1], vec![]), "{report}");
    });
}

/// One audit reads, a second one begins, and a third one ends: none of them discards the touched
/// keys that another one needs.
#[test]
fn drift_that_a_writer_hides_is_found_by_each_of_two_audits() {
    let Keys { here, beside, .. } = keys();
    check(move || {
        let world = World::planted([(here, 1)]);
        let reports = thread::scope(|scope| {
            let other = scope.spawn(|| world.run(Mode::Verify, 2).unwrap());
            scope.spawn(|| {
                world.write([(beside, 1)]);
                world.write([(here, 1)]);
            });
            [world.run(Mode::Verify, 2).unwrap(), other.join().unwrap()]
        });
        for report in reports {
            assert_eq!((report.drift(), unsettled(&report)), (1, vec![]), "{report}");
        }
    });
}

/// A hook read the number of audits, and stored its note after one more audit had begun. The newest
/// audit once missed another hook without a pending write for that reason.
#[test]
fn hook_without_a_pending_write_is_noticed_beside_another_hook() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let world = World::new();
        let early = world.audit(grace_period(1));
        let noticed = thread::scope(|scope| {
            scope.spawn(|| world.store.apply(&mut with_batch([(there, 1)]).1).unwrap());
            let mut late = world.audit(grace_period(1));
            late.add(VOTES, |from| world.read(from)).unwrap();
            world.store.apply(&mut with_batch([(here, 1)]).1).unwrap();
            world.run_of(Mode::Verify, &mut late)
        });
        drop(early);
        assert!(matches!(noticed, Err(Error::InvalidUse { what: "audit", .. })), "{noticed:?}");
    });
}

/// A verify reports drift only. A key that looked wrong while a write was in progress is not
/// reported.
#[test]
fn verify_beside_writers_finds_no_drift_where_there_is_none() {
    let Keys { here, beside, there } = keys();
    check(move || {
        let world = World::new();
        world.write([(here, 3), (there, 3)]);
        let report = thread::scope(|scope| {
            scope.spawn(|| world.write([(here, -3), (beside, 3)]));
            scope.spawn(|| world.write([(there, 1), (here, 1)]));
            world.run(Mode::Verify, 1).unwrap()
        });
        assert_eq!((report.drift(), unsettled(&report)), (0, vec![]), "{report}");
    });
}

#[test]
fn aborted_pending_writes_count_nothing_and_hide_no_drift() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let planted = [(here, 1), (there, 1)];
        let world = World::planted(planted);
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                let (_, mut batch) = with_batch([(here, -1), (there, -1)]);
                world.begin(&mut batch).abort();
                world.begin(&mut batch).abort();
            });
            scope.spawn(|| world.write([(there, -1)]));
            world.repair(1)
        });
        assert_repaired(&world, &report, &planted);
        assert_eq!(unsettled(&report), []);
    });
}

/// As a queue consumer works: the rows are written once, and each delivery has a pending write of
/// its own.
#[test]
fn events_delivered_twice_are_counted_once_beside_a_repair() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let planted = [(here, 1)];
        let world = World::planted(planted);
        let deliver = |is_first: bool| {
            let (rows, mut batch) = with_batch([(here, 1), (there, 1)]);
            let pending_write = world.begin(&mut batch);
            if is_first {
                world.show(&rows);
            }
            pending_write.commit_idempotent(&StreamRange::new("s", 1, 1).unwrap()).unwrap()
        };
        let report = thread::scope(|scope| {
            scope.spawn(|| {
                deliver(true);
                assert!(deliver(false).skipped);
            });
            world.repair(1)
        });
        assert_repaired(&world, &report, &planted);
        assert_eq!(world.store.offset("s"), 1);
    });
}

#[test]
fn two_repairs_beside_a_writer_repair_each_key_once() {
    let Keys { here, there, .. } = keys();
    for tries in [1, 0] {
        check(move || {
            let planted = [(here, 5), (there, -5)];
            let world = World::planted(planted);
            let reports = thread::scope(|scope| {
                let other = scope.spawn(|| world.repair(tries));
                scope.spawn(|| world.write([(there, 1), (here, 1)]));
                [world.repair(tries), other.join().unwrap()]
            });
            // A repair leaves a key to the other one only if that one holds the barrier for the
            // whole barrier time of an hour, which neither does.
            assert_eq!(reports.iter().flat_map(unsettled).count(), 0);
            assert_eq!(reports.iter().map(|report| report.counters[0].corrected).sum::<u64>(), 2);
            assert_repaired(&world, &reports[0], &[]);
        });
    }
}

/// A repair reads and corrects a total beyond 2^62 under other locks than a smaller one. It once
/// read the total after it had let go of the lock under which it had checked that nothing was
/// written. It then took away what a writer of this one key had added in between.
#[test]
fn repair_of_a_total_beyond_2_to_the_62_keeps_what_a_writer_of_its_key_adds() {
    let Keys { here, .. } = keys();
    for tries in [2, 0] {
        check(move || {
            let world = World::new();
            world.show(&rows([(here, (1 << 62) + 5)])); // without a hook
            let report = thread::scope(|scope| {
                scope.spawn(|| {
                    world.write([(here, 1)]);
                    world.write([(here, -3)]);
                });
                world.repair(tries)
            });
            assert_repaired(&world, &report, &[]);
            assert_eq!(unsettled(&report), []);
        });
    }
}

/// In the same window, a verify reported what the writer added as drift.
#[test]
fn verify_of_a_total_beyond_2_to_the_62_reports_only_drift_beside_a_writer_of_its_key() {
    let Keys { here, .. } = keys();
    check(move || {
        let world = World::planted([(here, 1)]);
        world.write([(here, (1 << 62) + 5)]);
        let report = thread::scope(|scope| {
            scope.spawn(|| world.write([(here, -9)]));
            world.run(Mode::Verify, 1).unwrap()
        });
        let found: Vec<i64> =
            report.counters[0].samples.iter().map(|found| found.stored - found.expected).collect();
        assert_eq!((found, unsettled(&report)), (vec![1], vec![]), "{report}");
    });
}

/// The repair raises a total to `i64::MAX`. The batch fits before the repair and overflows after
/// it. The batch once checked that no total was that large, then the repair ran, and then the batch
/// was added and overflowed.
#[test]
fn repair_to_the_largest_i64_leaves_a_batch_whole_or_refused() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let world = World::new();
        world.show(&rows([(here, i64::MAX)])); // without a hook
        let applied = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (rows, mut batch) = with_batch([(there, 1), (here, 1)]);
                let pending_write = world.begin(&mut batch);
                // The second row is not shown: with it, the recount would overflow.
                world.show(&rows[..1]);
                pending_write.commit().is_ok()
            });
            world.repair(1);
            writer.join().unwrap()
        });
        let is = [here, there].map(|key| world.store.total(VOTES, key).unwrap());
        assert_eq!(is, [i64::MAX, i64::from(applied)]);
    });
}
