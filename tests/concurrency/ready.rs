//! Counters that become ready beside writers and readers: a counter that can be read includes all
//! of its rows.

use keepcount::reconcile::{MemoryAudit, Mode, Options, Reconciler, run};
use keepcount::{Batch, Counter, Error, MemoryStore, Record, Schema, Tally};

use super::threads::{Mutex, check, thread};
use super::world::{World, grace_period, unsettled};

const VOTES: Counter<i64> = Counter::new("show.votes");
const FANS: Counter<i64> = Counter::new("artist.fans");
const SCHEMA: Schema = Schema::new(&[VOTES.table(), FANS.table()]);

/// A vote, which adds to both counters.
#[derive(Clone, Copy)]
struct Vote;

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, 1, 1);
        to.add(FANS, 2, 1);
    }
}

#[test]
fn two_counters_become_ready_concurrently_beside_a_writer_and_a_reader() {
    const BEFORE: usize = 3;
    check(|| {
        let (world, store, rows) =
            (World::new(), MemoryStore::pending_backfill(&SCHEMA), Mutex::new(vec![Vote; BEFORE]));
        let backfill = |counter: Counter<i64>| {
            let mut audit = MemoryAudit::live(&store, grace_period(1), world.waits());
            audit.add(counter, |_| rows.lock().clone()).unwrap();
            let mut backfill = Reconciler::scoped(
                Mode::Backfill,
                &SCHEMA,
                &[counter.id()],
                Options::default().page(2),
            )
            .unwrap();
            let report = run(&mut backfill, &mut audit, &mut world.waits()).unwrap();
            assert_eq!((report.complete(), unsettled(&report)), (true, vec![]), "{report}");
        };
        let read = |counter: Counter<i64>, key| match store.total(counter, key) {
            Ok(total) => assert!(total >= 3, "{total} of 3 or more"),
            Err(error) => assert!(matches!(error, Error::NotReady { .. }), "{error}"),
        };
        thread::scope(|scope| {
            scope.spawn(|| backfill(VOTES));
            scope.spawn(|| backfill(FANS));
            scope.spawn(|| {
                let mut batch = Batch::new();
                batch.insert(&Vote);
                let pending_write = store.begin(&mut batch).unwrap();
                rows.lock().push(Vote);
                pending_write.commit().unwrap();
            });
            read(VOTES, 1);
            read(FANS, 2);
        });
        assert_eq!([store.total(VOTES, 1).unwrap(), store.total(FANS, 2).unwrap()], [4, 4]);
        assert!([VOTES, FANS].iter().all(|counter| store.is_ready(counter.id()).unwrap()));
    });
}
