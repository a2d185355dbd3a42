//! Writes that update a rollup beside repairs of its base, its membership and itself, and prunes
//! beside a repair.

use keepcount::reconcile::{MemoryAudit, Mode, Options, Reconciler, Report, run};
use keepcount::{Batch, Counter, CounterId, MemoryStore, Record, Schema, Snapshot, Tally};

use super::threads::{Mutex, check, once, thread};
use super::world::{World, grace_period, unsettled};

const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
const SHOW_DAYS: Counter<(i64, i64)> = Counter::new("show.days");
const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_SHOW.table(),
    SHOW_VOTES.table(),
    SHOW_DAYS.table().prunable(),
]);

/// A vote for a setlist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_VOTES, self.0, 1);
    }
}

/// A setlist of a show.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Setlist(i64, i64);

impl Record for Setlist {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_SHOW, (self.0, self.1), 1);
    }
}

/// A row for one day of a show.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Day(i64, i64);

impl Record for Day {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_DAYS, (self.0, self.1), 1);
    }
}

#[derive(Default)]
struct Rows {
    votes: Vec<Vote>,
    setlists: Vec<Setlist>,
    days: Vec<Day>,
}

struct Levels {
    store: MemoryStore,
    rows: Mutex<Rows>,
    world: World,
}

impl Levels {
    fn new(rows: Rows, planted: impl FnOnce(&mut Batch)) -> Self {
        let levels = Self {
            store: MemoryStore::new(&SCHEMA),
            rows: Mutex::new(Rows::default()),
            world: World::new(),
        };
        let mut batch = Batch::new();
        batch.insert(rows.votes.as_slice());
        batch.insert(rows.setlists.as_slice());
        batch.insert(rows.days.as_slice());
        planted(&mut batch);
        levels.store.apply(&mut batch).unwrap();
        *levels.rows.lock() = rows;
        levels
    }

    /// Begins a pending write, changes the rows, and commits.
    fn write(&self, change: impl FnOnce(&mut Rows), hooks: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        hooks(&mut batch);
        let pending_write = self.store.begin(&mut batch).unwrap();
        change(&mut self.rows.lock());
        pending_write.commit().unwrap();
    }

    fn vote(&self, setlist: i64) {
        self.write(|rows| rows.votes.push(Vote(setlist)), |batch| batch.insert(&Vote(setlist)));
    }

    fn move_setlist(&self, setlist: i64, from: i64, to: i64) {
        let (old, new) = (Setlist(setlist, from), Setlist(setlist, to));
        self.write(
            |rows| rows.setlists.iter_mut().filter(|row| **row == old).for_each(|row| *row = new),
            |batch| batch.update(&old, &new),
        );
    }

    fn sorted<R: Ord + Copy>(&self, of: impl Fn(&Rows) -> &Vec<R>) -> Vec<R> {
        let mut rows = of(&self.rows.lock()).clone();
        rows.sort_unstable();
        rows
    }

    fn add_rows<'a>(&'a self, audit: &mut MemoryAudit<'a>) {
        audit.add(SETLIST_VOTES, |_| self.sorted(|rows| &rows.votes)).unwrap();
        audit.add(SETLIST_SHOW, |_| self.sorted(|rows| &rows.setlists)).unwrap();
        audit.add(SHOW_DAYS, |_| self.sorted(|rows| &rows.days)).unwrap();
    }

    fn run(&self, mode: Mode, counters: &[CounterId], tries: u32) -> Report {
        let mut audit = MemoryAudit::live(&self.store, grace_period(tries), self.world.waits());
        self.add_rows(&mut audit);
        let mut reconciler =
            Reconciler::scoped(mode, &SCHEMA, counters, Options::default().page(2)).unwrap();
        run(&mut reconciler, &mut audit, &mut self.world.waits()).unwrap()
    }

    /// Repairs a counter and the counters that it sums.
    fn repair(&self, counter: CounterId, tries: u32) {
        let report = self.run(Mode::Repair, &[counter], tries);
        assert!(report.complete(), "{report}");
        assert_eq!(unsettled(&report), [], "{report}");
    }

    /// Asserts that no total differs from its rows. Call it only while nothing writes.
    #[track_caller]
    fn assert_exact(&self) {
        let report = self.run(Mode::Verify, &SCHEMA.by_name(), 0);
        assert_eq!((report.drift(), unsettled(&report)), (0, vec![]), "{}", report.table());
        let rows = self.rows.lock();
        for show in [70, 71] {
            let of_show = |vote: &&Vote| rows.setlists.contains(&Setlist(vote.0, show));
            let votes = rows.votes.iter().filter(of_show).count();
            assert_eq!(
                self.store.total(SHOW_VOTES, show).unwrap(),
                i64::try_from(votes).unwrap(),
                "show {show}"
            );
        }
    }
}

/// Two setlists of one show, with a vote each, and drift at every level.
fn levels_with_drift() -> Levels {
    let rows = Rows {
        votes: vec![Vote(1), Vote(2)],
        setlists: vec![Setlist(1, 70), Setlist(2, 70)],
        days: Vec::new(),
    };
    Levels::new(rows, |batch| {
        batch.add(SETLIST_VOTES, 1, 5);
        batch.add(SETLIST_SHOW, (2, 70), 1);
    })
}

#[test]
fn votes_reach_their_rollup_beside_a_repair_of_all_levels() {
    check(|| {
        let levels = levels_with_drift();
        thread::scope(|scope| {
            scope.spawn(|| levels.vote(1));
            scope.spawn(|| levels.vote(2));
            levels.repair(SHOW_VOTES.id(), 1);
        });
        levels.assert_exact();
    });
}

#[test]
fn moved_setlist_beside_a_repair_of_all_levels_stays_exact() {
    check(|| {
        let levels = levels_with_drift();
        thread::scope(|scope| {
            scope.spawn(|| levels.move_setlist(1, 70, 71));
            scope.spawn(|| levels.vote(1));
            levels.repair(SHOW_VOTES.id(), 1);
        });
        levels.assert_exact();
    });
}

/// A snapshot in which one total of the rollup itself is wrong.
fn snapshot_with_a_wrong_rollup() -> Snapshot {
    once(|| {
        let mut json = serde_json::to_value(levels_with_drift().store.snapshot()).unwrap();
        let rollup = json["counters"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .find(|counter| counter["name"] == "show.votes");
        rollup.unwrap()["totals"][0][1] = 99.into();
        serde_json::from_value(json).unwrap()
    })
}

#[test]
fn rollup_is_repaired_beside_repairs_of_its_base_and_membership() {
    let broken = snapshot_with_a_wrong_rollup();
    check(move || {
        let levels = Levels {
            store: MemoryStore::restore(&SCHEMA, &broken).unwrap(),
            ..levels_with_drift()
        };
        thread::scope(|scope| {
            scope.spawn(|| levels.repair(SETLIST_VOTES.id(), 1));
            scope.spawn(|| levels.repair(SETLIST_SHOW.id(), 1));
            scope.spawn(|| levels.vote(2));
            levels.repair(SHOW_VOTES.id(), 1);
        });
        levels.assert_exact();
    });
}

/// Each repair compares as of a moment of its own. The second one adds nothing that the first one
/// has added.
#[test]
fn two_repairs_of_one_rollup_repair_it_once() {
    let broken = snapshot_with_a_wrong_rollup();
    check(move || {
        let levels = Levels {
            store: MemoryStore::restore(&SCHEMA, &broken).unwrap(),
            ..levels_with_drift()
        };
        thread::scope(|scope| {
            scope.spawn(|| levels.repair(SHOW_VOTES.id(), 1));
            scope.spawn(|| levels.move_setlist(1, 70, 71));
            levels.repair(SHOW_VOTES.id(), 1);
        });
        levels.assert_exact();
    });
}

#[test]
fn prune_beside_a_repair_and_writers_removes_only_totals_before_the_cutoff() {
    check(|| {
        let rows = Rows { days: vec![Day(7, 10), Day(7, 20)], ..Rows::default() };
        let levels = Levels::new(rows, |batch| {
            batch.add(SHOW_DAYS, (7, 10), 4);
            batch.add(SHOW_DAYS, (7, 20), 4);
        });
        let day = |day| {
            levels.write(|rows| rows.days.push(Day(7, day)), |batch| batch.insert(&Day(7, day)));
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                day(10);
                day(20);
            });
            scope.spawn(|| levels.store.prune(SHOW_DAYS, 15).unwrap());
            levels.repair(SHOW_DAYS.id(), 1);
        });
        levels.assert_exact();
        assert_eq!(levels.store.totals(SHOW_DAYS).unwrap(), [((7, 20), 2)]);
    });
}
