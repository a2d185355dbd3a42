//! Writers in pending writes beside an audit: what it finds is there, and what it repairs is right,
//! whoever came between.

use std::collections::BTreeMap;

use keepcount::reconcile::{Mode, Report};
use keepcount::{Error, KeyBuf, StreamRange};

use super::threads::{check, thread};
use super::world::{Keys, VOTES, World, grace_period, keys, rows, unsettled, with_batch};

/// What is left of planted drift: all of it at keys that were left alone, nothing elsewhere.
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
fn a_repair_beside_writers_repairs_what_was_planted_and_nothing_else() {
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

/// A row that becomes visible while its page is read makes up for a total that is too high: what is
/// read looks right, and is not.
#[test]
fn a_drift_is_found_although_a_writer_hides_it() {
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

/// While one audit reads, another begins to, and a third ends: none forgets the notes of the
/// others.
#[test]
fn a_drift_is_found_by_each_of_two_audits_although_a_writer_hides_it() {
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

/// A hook that had looked how many audits there were, and wrote that down when there was one more,
/// once made the last one forget that another hook had run without a pending write.
#[test]
fn a_hook_without_a_pending_write_is_noticed_beside_others() {
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

/// A verify lists what is wrong, and nothing that only looked so.
#[test]
fn a_verify_beside_writers_finds_nothing_where_nothing_is_wrong() {
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
fn pending_writes_that_are_aborted_count_nothing_and_hide_nothing() {
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

/// As a consumer of a queue does it: the rows are there once, and each delivery has a pending write
/// of its own.
#[test]
fn events_that_are_delivered_again_are_counted_once_beside_a_repair() {
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
fn two_repairs_beside_a_writer_repair_once() {
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
            // A key is left to the other only where that one holds its gate all the while, which
            // none does for an hour.
            assert_eq!(reports.iter().flat_map(unsettled).count(), 0);
            assert_eq!(reports.iter().map(|report| report.counters[0].corrected).sum::<u64>(), 2);
            assert_repaired(&world, &reports[0], &[]);
        });
    }
}

/// A repair of a total to the end of 64 bits, beside a batch that has room before it and none
/// behind it: the batch once looked whether any total was so large, then the repair came, then the
/// batch went on over the end.
#[test]
fn a_repair_to_the_end_of_64_bits_leaves_a_batch_whole_or_refused() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let world = World::new();
        world.show(&rows([(here, i64::MAX)])); // written behind the hooks' back
        let applied = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (rows, mut batch) = with_batch([(there, 1), (here, 1)]);
                let pending_write = world.begin(&mut batch);
                // The other row is no use: with it the recount leaves 64 bits.
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
