//! Concurrent writers of one store beside readers: every delta counts once, and a batch and its
//! offset are visible together or not at all.

use std::collections::BTreeMap;

use keepcount::{Error, MemoryStore, Snapshot, StreamRange};

use super::threads::{check, check_all, thread};
use super::world::{Keys, SCHEMA, VOTES, batch, keys, rows};

/// A store with the state of a snapshot.
fn restored(snapshot: &Snapshot) -> MemoryStore {
    MemoryStore::restore(&SCHEMA, snapshot).unwrap()
}

fn totals(store: &MemoryStore) -> BTreeMap<i64, i64> {
    store.totals(VOTES).unwrap().into_iter().collect()
}

#[test]
fn two_writers_of_one_key_count_both() {
    check_all(|| {
        let store = MemoryStore::new(&SCHEMA);
        let write = || store.apply(&mut batch(&rows([(1, 1)]))).unwrap();
        thread::scope(|scope| {
            scope.spawn(write);
            scope.spawn(write);
        });
        assert_eq!(totals(&store), [(1, 2)].into());
    });
}

#[test]
fn three_writers_over_two_stripes_lose_no_delta() {
    let Keys { here, beside, there } = keys();
    check(move || {
        let store = MemoryStore::new(&SCHEMA);
        let write = |of: &[_]| {
            store.apply(&mut batch(of)).unwrap();
            store.apply(&mut batch(of)).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(|| write(&rows([(here, 1)])));
            scope.spawn(|| write(&rows([(there, 10), (here, 10)])));
            scope.spawn(|| write(&rows([(here, 100), (beside, 100), (there, 100)])));
        });
        assert_eq!(totals(&store), [(here, 222), (beside, 200), (there, 220)].into());
    });
}

#[test]
fn a_batch_over_two_stripes_is_seen_whole_or_not_at_all() {
    let Keys { here, there, .. } = keys();
    check(move || {
        let store = MemoryStore::new(&SCHEMA);
        let write =
            |amount| store.apply(&mut batch(&rows([(here, amount), (there, -amount)]))).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| write(1));
            scope.spawn(|| write(-10));
            scope.spawn(|| {
                for _ in 0..2 {
                    let seen = totals(&restored(&store.snapshot()));
                    assert_eq!(
                        seen.values().sum::<i64>(),
                        0,
                        "a part of a batch is visible: {seen:?}"
                    );
                }
            });
        });
        assert_eq!(totals(&store), [(here, -9), (there, 9)].into());
    });
}

#[test]
fn batch_that_overflows_in_its_middle_changes_nothing() {
    let Keys { here, beside, there } = keys();
    check(move || {
        let store = MemoryStore::new(&SCHEMA);
        store.apply(&mut batch(&rows([(beside, i64::MAX)]))).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let refused =
                    store.apply(&mut batch(&rows([(here, 1), (there, 1), (beside, 1), (here, 5)])));
                assert!(matches!(refused, Err(Error::Overflow { .. })), "{refused:?}");
            });
            scope.spawn(|| store.apply(&mut batch(&rows([(here, 10), (there, -10)]))).unwrap());
            scope.spawn(|| {
                let seen = totals(&restored(&store.snapshot()));
                let sum: i128 = seen.values().map(|total| i128::from(*total)).sum();
                assert_eq!(sum, i64::MAX.into(), "a part of a batch is visible: {seen:?}");
            });
        });
        assert_eq!(totals(&store), [(here, 10), (beside, i64::MAX), (there, -10)].into());
    });
}

/// One batch raises a total to `i64::MAX`, beyond the range in which no batch can overflow. The
/// batches beside it have begun while the total was within that range.
#[test]
fn concurrent_batches_that_fill_a_total_to_the_largest_i64_lose_no_delta() {
    const ROOM: i64 = 1 << 62;
    let Keys { here, there, .. } = keys();
    check(move || {
        let store = MemoryStore::new(&SCHEMA);
        store.apply(&mut batch(&rows([(here, ROOM)]))).unwrap();
        let write = |of: &[_]| store.apply(&mut batch(of)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| write(&rows([(here, 2), (there, 2)])));
            scope.spawn(|| write(&rows([(there, 3), (here, 3)])));
            scope.spawn(|| {
                write(&rows([(here, 5)]));
                write(&rows([(here, ROOM - 11), (there, 1)]));
            });
        });
        assert_eq!(totals(&store), [(here, i64::MAX), (there, 6)].into());
    });
}

#[test]
fn appliers_of_one_stream_count_each_event_once_and_keep_its_offset_consistent() {
    const EVENTS: u64 = 2;
    let Keys { here, there, .. } = keys();
    check(move || {
        let store = MemoryStore::new(&SCHEMA);
        let deliver = || {
            for event in 1..=EVENTS {
                // Each event is delivered twice, by both threads.
                for _ in 0..2 {
                    store
                        .apply_idempotent(
                            &mut batch(&rows([(here, 1), (there, 1)])),
                            &StreamRange::new("s", event, event).unwrap(),
                        )
                        .unwrap();
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(deliver);
            scope.spawn(deliver);
            scope.spawn(|| {
                let moment = restored(&store.snapshot());
                // The offset and the totals of a snapshot are of the same moment.
                let events = moment.offset("s");
                let each = i64::try_from(events).unwrap();
                let expected = [(here, each), (there, each)].into_iter().filter(|_| events > 0);
                assert_eq!(totals(&moment), expected.collect(), "event {events}");
            });
        });
        assert_eq!(totals(&store), [(here, 2), (there, 2)].into());
        assert_eq!(store.offset("s"), EVENTS);
    });
}

/// One event counts nothing and one can be refused for a gap, beside others of their stream.
#[test]
fn stream_continues_after_events_that_count_nothing_or_leave_a_gap() {
    check(|| {
        let store = MemoryStore::new(&SCHEMA);
        let apply = |of: &[_], first, last| {
            store.apply_idempotent(&mut batch(of), &StreamRange::new("s", first, last).unwrap())
        };
        thread::scope(|scope| {
            scope.spawn(|| apply(&[], 1, 1).unwrap());
            scope.spawn(|| match apply(&rows([(1, 1)]), 2, 3) {
                Ok(_) => assert_eq!(store.offset("s"), 3),
                Err(error) => assert!(matches!(error, Error::Gap { applied: 0, .. }), "{error}"),
            });
        });
        let applied = apply(&rows([(1, 1)]), 2, 3).unwrap();
        assert_eq!(totals(&store), [(1, 1)].into(), "{applied:?}");
        assert_eq!(store.offset("s"), 3);
    });
}
