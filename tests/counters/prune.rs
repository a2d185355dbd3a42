//! Prunes and sweeps, in both stores. Totals below a cutoff are removed and do not come back.
//! Totals at or above it equal a plain recount: after hooks, audits, snapshots and reopening, and
//! beside concurrent writers.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::thread;

use crate::support::world::run_whole;
use keepcount::backend::KeyRange;
use keepcount::reconcile::{Columns, MemoryAudit, Mode, Options, Report, SqliteAudit, SqliteRows};
use keepcount::{
    Batch, Counter, Error, KeyBuf, Leaderboard, MemoryLeaderboard, MemoryStore, Record, Recovery,
    Schema, Snapshot, SqliteStore, Store, Sweep, Swept, Tally,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use rusqlite::{Connection, params};

const SETLIST_DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_DAYS: Counter<(i64, i64)> =
    Counter::new("show.days").sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
const TRENDING: Leaderboard<i64, keepcount::Decayed> =
    Leaderboard::decayed("show.trending", SHOW_DAYS);
const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_DAYS.table().prunable(),
])
.leaderboards(&[TRENDING.id()]);

#[derive(Debug, Clone, PartialEq)]
enum Row {
    Vote { setlist: i64, day: i64, amount: i64 },
    Setlist { id: i64, show: i64 },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match self {
            Self::Vote { setlist, day, amount } => {
                to.add(SETLIST_VOTES, setlist, *amount);
                to.add(SETLIST_DAYS, (setlist, day), *amount);
            }
            Self::Setlist { id, show } => to.add(SETLIST_SHOW, (id, show), 1),
        }
    }
}

/// Totals by counter, first part of the key, and day if the key has one.
type Totals = BTreeMap<(&'static str, i64, Option<i64>), i64>;

/// Rows in plain maps.
#[derive(Debug, Clone, Default)]
struct Rows {
    votes: BTreeMap<i64, Row>,
    setlists: BTreeMap<i64, Row>,
}

impl Rows {
    /// The totals of every counter, without those below the cutoff.
    fn recount(&self, cutoff: Option<i64>) -> Totals {
        let mut totals = Totals::new();
        let mut add = |name, prefix, suffix, amount| {
            *totals.entry((name, prefix, suffix)).or_insert(0) += amount;
        };
        for row in self.votes.values() {
            let Row::Vote { setlist, day, amount } = row else { continue };
            add("setlist.votes", *setlist, None, *amount);
            if cutoff.is_some_and(|cutoff| *day < cutoff) {
                continue;
            }
            add("setlist.days", *setlist, Some(*day), *amount);
            for row in self.setlists.values() {
                match row {
                    Row::Setlist { id, show } if id == setlist => {
                        add("show.days", *show, Some(*day), *amount);
                    }
                    _ => {}
                }
            }
        }
        for row in self.setlists.values() {
            let Row::Setlist { id, show } = row else { continue };
            add("setlist.show", *id, Some(*show), 1);
        }
        totals.retain(|_, total| *total != 0);
        totals
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Votes and setlists put, moved or dropped in one transaction.
    Write(Vec<(i64, Option<Row>)>),
    Prune(i64),
    /// The store is restored from its snapshot, or its file is opened again.
    Reopen,
    /// Totals at and above the cutoff are changed without a hook.
    Break,
}

fn day() -> impl Strategy<Value = i64> {
    prop_oneof![5 => -3..6_i64, 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

fn op() -> impl Strategy<Value = Op> {
    let vote = (0..4_i64, day(), -2..4_i64).prop_map(|(setlist, day, amount)| Row::Vote {
        setlist,
        day,
        amount,
    });
    let put = prop_oneof![
        3 => (0..8_i64, weighted(0.75, vote)).prop_map(|(id, row)| (id, row)),
        // Negative ids are setlists.
        2 => (0..4_i64, weighted(0.8, 0..3_i64))
            .prop_map(|(id, show)| (-1 - id, show.map(|show| Row::Setlist { id, show }))),
    ];
    prop_oneof![
        6 => vec(put, 0..6).prop_map(Op::Write),
        2 => day().prop_map(Op::Prune),
        1 => Just(Op::Reopen),
        1 => Just(Op::Break),
    ]
}

trait Subject {
    fn new() -> Self;
    /// Puts or deletes the row of an id. Returns the row that was there.
    fn put(&mut self, id: i64, row: Option<&Row>) -> Option<Row>;
    fn apply(&mut self, batch: &Batch);
    fn prune(&mut self, before: i64) -> u64;
    fn reopen(&mut self);
    fn store(&mut self) -> Box<dyn Store + '_>;
    fn reconcile(&mut self, mode: Mode, options: Options, other: bool) -> Report;
    /// The leaderboard as it is stored, and after a rebuild.
    fn leaderboards(&mut self) -> [Vec<(u64, i64)>; 2];
}

fn totals(store: &mut dyn Store) -> Totals {
    let mut totals = Totals::new();
    for spec in SCHEMA.counters() {
        let id = spec.id();
        for (key, total) in store.read_range(id, &KeyRange::ALL, 10_000).unwrap() {
            let name = if id == SETLIST_VOTES.id() {
                (id.name(), key.decode::<i64>().unwrap(), None)
            } else {
                let (prefix, suffix) = key.decode::<(i64, i64)>().unwrap();
                (id.name(), prefix, Some(suffix))
            };
            totals.insert(name, total);
        }
    }
    totals.retain(|_, total| *total != 0);
    totals
}

struct Memory {
    store: MemoryStore,
    rows: Rows,
}

impl Subject for Memory {
    fn new() -> Self {
        Self { store: MemoryStore::new(&SCHEMA), rows: Rows::default() }
    }

    fn put(&mut self, id: i64, row: Option<&Row>) -> Option<Row> {
        let table = if id < 0 { &mut self.rows.setlists } else { &mut self.rows.votes };
        match row {
            Some(row) => table.insert(id, row.clone()),
            None => table.remove(&id),
        }
    }

    fn apply(&mut self, batch: &Batch) {
        self.store.apply(&mut batch.clone()).unwrap();
    }

    fn prune(&mut self, before: i64) -> u64 {
        self.store.prune(SETLIST_DAYS, before).unwrap()
    }

    fn reopen(&mut self) {
        let json = serde_json::to_string(&self.store.snapshot()).unwrap();
        self.store =
            MemoryStore::restore(&SCHEMA, &serde_json::from_str::<Snapshot>(&json).unwrap())
                .unwrap();
    }

    fn store(&mut self) -> Box<dyn Store + '_> {
        Box::new(&self.store)
    }

    fn reconcile(&mut self, mode: Mode, options: Options, _: bool) -> Report {
        let mut votes: Vec<Row> = self.rows.votes.values().cloned().collect();
        votes.sort_by_key(|row| {
            if let Row::Vote { setlist, day, .. } = row { (*setlist, *day) } else { (0, 0) }
        });
        let setlists: Vec<Row> = self.rows.setlists.values().rev().cloned().collect();
        let mut audit = MemoryAudit::new(&mut self.store);
        audit.add(SETLIST_VOTES, |_: Bound<i64>| votes.clone()).unwrap();
        audit.add(SETLIST_DAYS, |_: Bound<(i64, i64)>| votes.clone()).unwrap();
        audit.add(SETLIST_SHOW, |_: Bound<(i64, i64)>| setlists.clone()).unwrap();
        run_whole(mode, &SCHEMA, options, &mut audit).unwrap()
    }

    fn leaderboards(&mut self) -> [Vec<(u64, i64)>; 2] {
        let mut ranking = MemoryLeaderboard::new(TRENDING);
        ranking.rebuild(&self.store).unwrap();
        let lines: Vec<(u64, i64)> =
            ranking.top(9).unwrap().iter().map(|line| (line.rank, line.key)).collect();
        [lines.clone(), lines]
    }
}

struct Sqlite {
    conn: Connection,
    dir: tempfile::TempDir,
}

impl Sqlite {
    fn open(dir: &tempfile::TempDir) -> Connection {
        let conn = Connection::open(dir.path().join("totals.db")).unwrap();
        conn.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF").unwrap();
        conn
    }
}

impl Subject for Sqlite {
    fn new() -> Self {
        let dir = crate::support::temp_dir();
        let conn = Self::open(&dir);
        conn.execute_batch(
            "CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER, day INTEGER, amount INTEGER);
             CREATE INDEX votes_by_day ON votes (setlist, day);
             CREATE TABLE setlists (number INTEGER PRIMARY KEY, id INTEGER, show INTEGER);
             CREATE INDEX setlists_by_id ON setlists (id, show);",
        )
        .unwrap();
        SqliteStore::new(&conn, &SCHEMA).create().unwrap();
        Self { conn, dir }
    }

    fn put(&mut self, id: i64, row: Option<&Row>) -> Option<Row> {
        let delete = if id < 0 {
            "DELETE FROM setlists WHERE number = ?1 RETURNING id, show, NULL"
        } else {
            "DELETE FROM votes WHERE id = ?1 RETURNING setlist, day, amount"
        };
        let mut delete = self.conn.prepare_cached(delete).unwrap();
        let old = delete.query_map([id], |row| {
            let amount: Option<i64> = row.get(2)?;
            Ok(match amount {
                Some(amount) => Row::Vote { setlist: row.get(0)?, day: row.get(1)?, amount },
                None => Row::Setlist { id: row.get(0)?, show: row.get(1)? },
            })
        });
        let old = old.unwrap().next().transpose().unwrap();
        match row {
            Some(Row::Vote { setlist, day, amount }) => {
                self.conn
                    .execute(
                        "INSERT INTO votes VALUES (?1, ?2, ?3, ?4)",
                        params![id, setlist, day, amount],
                    )
                    .unwrap();
            }
            Some(Row::Setlist { id: setlist, show }) => {
                self.conn
                    .execute("INSERT INTO setlists VALUES (?1, ?2, ?3)", params![id, setlist, show])
                    .unwrap();
            }
            None => {}
        }
        old
    }

    fn apply(&mut self, batch: &Batch) {
        SqliteStore::new(&self.conn, &SCHEMA).apply(&mut batch.clone()).unwrap();
    }

    fn prune(&mut self, before: i64) -> u64 {
        SqliteStore::new(&self.conn, &SCHEMA).prune(SETLIST_DAYS, before).unwrap()
    }

    fn reopen(&mut self) {
        self.conn = Self::open(&self.dir);
        SqliteStore::new(&self.conn, &SCHEMA).create().unwrap();
    }

    fn store(&mut self) -> Box<dyn Store + '_> {
        Box::new(SqliteStore::new(&self.conn, &SCHEMA))
    }

    fn reconcile(&mut self, mode: Mode, options: Options, other: bool) -> Report {
        let amounts = |columns: Columns| if other { columns } else { columns.sum("amount") };
        let votes = SqliteRows::of("votes", |row| {
            Ok(Row::Vote {
                setlist: row.get("setlist")?,
                day: row.get("day")?,
                amount: row.get("amount")?,
            })
        });
        let setlists = SqliteRows::of("setlists", |row| {
            Ok(Row::Setlist { id: row.get("id")?, show: row.get("show")? })
        });
        let mut audit = SqliteAudit::new(&self.conn, &SCHEMA).unwrap();
        let votes = votes.key(SETLIST_VOTES, amounts(Columns::of(["setlist"])));
        audit.add(votes.key(SETLIST_DAYS, amounts(Columns::of(["setlist", "day"])))).unwrap();
        audit.add(setlists.key(SETLIST_SHOW, Columns::of(["id", "show"]).count())).unwrap();
        run_whole(mode, &SCHEMA, options, &mut audit).unwrap()
    }

    fn leaderboards(&mut self) -> [Vec<(u64, i64)>; 2] {
        let mut store = SqliteStore::new(&self.conn, &SCHEMA);
        let lines = |store: &mut SqliteStore<'_>| {
            store.top(TRENDING, 9).unwrap().iter().map(|line| (line.rank, line.key)).collect()
        };
        let kept = lines(&mut store);
        assert_eq!(
            store.rebuild(TRENDING).unwrap(),
            0,
            "lines of the leaderboard that a prune left behind"
        );
        [kept, lines(&mut store)]
    }
}

fn check<S: Subject>(ops: &[Op], page: usize, other: bool) {
    let (mut subject, mut rows, mut cutoff) = (S::new(), Rows::default(), None::<i64>);
    let options = Options::default().page(page).samples(100);
    for op in ops {
        match op {
            Op::Write(changes) => {
                let mut batch = Batch::new();
                for (id, row) in changes {
                    let old = subject.put(*id, row.as_ref());
                    batch.update(&old, row);
                    let table = if *id < 0 { &mut rows.setlists } else { &mut rows.votes };
                    match row {
                        Some(row) => table.insert(*id, row.clone()),
                        None => table.remove(id),
                    };
                }
                subject.apply(&batch);
            }
            Op::Prune(before) => {
                let below = |name: &(&str, i64, Option<i64>)| {
                    name.0.ends_with("days") && name.2 < Some(*before)
                };
                let going = rows.recount(cutoff).keys().filter(|name| below(name)).count() as u64;
                let gone = subject.prune(*before);
                // In SQLite, rows of totals that are 0 may be removed too.
                assert!(
                    gone >= going && (cutoff < Some(*before) || gone == 0),
                    "{op:?} removed {gone} totals, not {going}"
                );
                cutoff = cutoff.max(Some(*before));
                assert_eq!(subject.prune(*before), 0, "a second prune removes nothing");
            }
            Op::Reopen => subject.reopen(),
            Op::Break => {
                let mut batch = Batch::new();
                for (name, prefix, suffix) in rows.recount(cutoff).keys() {
                    if let ("setlist.days", Some(day)) = (*name, suffix) {
                        batch.add(SETLIST_DAYS, (prefix, day), 3);
                    }
                }
                subject.apply(&batch);
                let drift = subject.reconcile(Mode::Verify, options, other).drift();
                assert_eq!(
                    drift,
                    batch.len() as u64,
                    "deltas that propagate from a wrong total are no drift of their own"
                );
                let repair = subject.reconcile(Mode::Repair, options, other);
                assert_eq!(repair.drift(), drift, "{repair}");
            }
        }
        assert_eq!(
            totals(&mut *subject.store()),
            rows.recount(cutoff),
            "with cutoff {cutoff:?}, after {op:?}"
        );
        for prefix in 0..4 {
            let from = cutoff.unwrap_or(i64::MIN);
            let sum: i64 = rows
                .recount(None)
                .iter()
                .filter(|(name, _)| {
                    name.0 == "show.days" && name.1 == prefix && name.2 >= Some(from)
                })
                .map(|(_, total)| total)
                .sum();
            assert_eq!(
                subject
                    .store()
                    .sum_range(SHOW_DAYS.id(), SHOW_DAYS.suffixes(prefix, from..).keys())
                    .unwrap(),
                sum
            );
        }
        let [kept, anew] = subject.leaderboards();
        assert_eq!(kept, anew, "after {op:?}");
    }
    for mode in [Mode::Verify, Mode::Repair] {
        let report = subject.reconcile(mode, options, other);
        assert_eq!((report.drift(), report.complete()), (0, true), "{}", report.table());
    }
    assert_eq!(totals(&mut *subject.store()), rows.recount(cutoff), "audits change no total");
    assert_eq!(subject.put(0, None), rows.votes.get(&0).cloned(), "audits change no row");
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 60,
        failure_persistence: None,
        max_shrink_iters: 2_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn in_memory_totals_below_a_cutoff_stay_pruned_and_the_others_are_exact(
        ops in vec(op(), 0..14), page in prop_oneof![Just(1_usize), Just(2), Just(1000)]
    ) {
        check::<Memory>(&ops, page, false);
    }

    #[test]
    fn on_sqlite_totals_below_a_cutoff_stay_pruned_and_the_others_are_exact(
        ops in vec(op(), 0..14),
        page in prop_oneof![Just(1_usize), Just(2), Just(1000)],
        other in any::<bool>()
    ) {
        check::<Sqlite>(&ops, page, other);
    }
}

#[test]
fn prune_of_a_rollup_or_a_counter_that_is_not_prunable_is_refused() {
    let memory = MemoryStore::new(&SCHEMA);
    let sqlite = Sqlite::new();
    let mut store = SqliteStore::new(&sqlite.conn, &SCHEMA);
    for refused in [memory.prune(SHOW_DAYS, 3), store.prune(SHOW_DAYS, 3)] {
        assert!(matches!(refused, Err(Error::Rollup { counter: "show.days", .. })), "{refused:?}");
    }
    for refused in [memory.prune(SETLIST_SHOW, 3), store.prune(SETLIST_SHOW, 3)] {
        assert!(matches!(refused, Err(Error::InvalidUse { what: "prune", .. })), "{refused:?}");
    }
    let unknown = Counter::<(i64, i64)>::new("unknown");
    for refused in [memory.prune(unknown, 3), store.prune(unknown, 3)] {
        assert!(matches!(refused, Err(Error::UnknownCounter { .. })), "{refused:?}");
    }
}

#[test]
fn row_moved_across_the_cutoff_counts_only_at_or_above_it() {
    let memory = MemoryStore::new(&SCHEMA);
    let sqlite = Sqlite::new();
    let mut store = SqliteStore::new(&sqlite.conn, &SCHEMA);
    let vote = |day| Row::Vote { setlist: 1, day, amount: 5 };
    let mut steps: Vec<(Batch, i64)> = Vec::new();
    let mut step = |old: Option<Row>, new: Option<Row>, left: i64| {
        let mut batch = Batch::new();
        batch.update(&old, &new);
        steps.push((batch, left));
    };
    step(None, Some(Row::Setlist { id: 1, show: 7 }), 0);
    step(None, Some(vote(9)), 0);
    step(Some(vote(9)), Some(vote(10)), 5);
    step(Some(vote(10)), Some(vote(9)), 0);
    step(Some(vote(9)), None, 0);
    step(None, Some(vote(11)), 5);
    step(Some(vote(11)), None, 0);
    memory.prune(SETLIST_DAYS, 10).unwrap();
    store.prune(SETLIST_DAYS, 10).unwrap();
    for (batch, left) in &steps {
        let applied =
            [memory.apply(&mut batch.clone()).unwrap(), store.apply(&mut batch.clone()).unwrap()];
        for applied in &applied {
            let below = applied.deltas(batch).filter(|(id, key, _)| {
                *id == SETLIST_DAYS.id() && key.decode::<(i64, i64)>().unwrap().1 < 10
            });
            assert_eq!(below.count(), 0, "no total below the cutoff is written");
        }
        let left_days = SHOW_DAYS.suffixes(7, 10..);
        let sums = [memory.sum(left_days.clone()), store.sum(left_days)];
        assert_eq!(sums.map(Result::unwrap), [*left, *left]);
        // The sum of a range that reaches below the cutoff would be incomplete.
        for range in [
            SHOW_DAYS.under(7),
            SHOW_DAYS.suffixes(7, 9..),
            SHOW_DAYS.suffixes(7, ..20),
            SHOW_DAYS.prefixes(7..=7),
            SHOW_DAYS.all(),
        ] {
            for refused in [memory.sum(range.clone()), store.sum(range.clone())] {
                assert!(
                    matches!(refused, Err(Error::Pruned { counter: "show.days", .. })),
                    "{range:?}: {refused:?}"
                );
            }
        }
    }
}

/// A key whose time has two parts: a day and an hour.
#[test]
fn cutoff_of_two_key_parts_means_the_same_in_both_stores() {
    const HOURS: Counter<(i64, (i64, i64))> = Counter::new("hours");
    const SCHEMA: Schema = Schema::new(&[HOURS.table().prunable()]);
    let memory = MemoryStore::new(&SCHEMA);
    let conn = Connection::open_in_memory().unwrap();
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    store.create().unwrap();
    let mut batch = Batch::new();
    for (day, hour) in [(1, 20), (2, 5), (2, 6), (2, 7), (3, 1)] {
        batch.add(HOURS, (1_i64, (day, hour)), 1);
    }
    memory.apply(&mut batch.clone()).unwrap();
    store.apply(&mut batch).unwrap();
    let pruned = [memory.prune(HOURS, (2_i64, 6_i64)), store.prune(HOURS, (2_i64, 6_i64))];
    let left = |store: &mut dyn Store| -> Vec<(i64, i64)> {
        let page = store.read_range(HOURS.id(), &KeyRange::ALL, 9).unwrap();
        page.iter().map(|(key, _)| key.decode::<(i64, (i64, i64))>().unwrap().1).collect()
    };
    let mut in_memory = &memory;
    for (pruned, left) in pruned.into_iter().zip([left(&mut in_memory), left(&mut store)]) {
        match pruned {
            Ok(gone) => assert_eq!((gone, left), (2, vec![(2, 6), (2, 7), (3, 1)])),
            // A store may also refuse such a cutoff. Then it must change nothing.
            Err(error) => assert_eq!(left, [(1, 20), (2, 5), (2, 6), (2, 7), (3, 1)], "{error}"),
        }
    }
}

/// Plants a total below the cutoff without a hook. The crate itself never writes there.
#[test]
fn both_audits_report_a_total_planted_below_the_cutoff_alike() {
    let (mut memory, mut sqlite) = (Memory::new(), Sqlite::new());
    let options = Options::default();
    let mut found = Vec::new();
    for mode in [Mode::Verify, Mode::Repair, Mode::Verify] {
        if mode == Mode::Verify && found.is_empty() {
            memory.prune(10);
            sqlite.prune(10);
            let mut json = serde_json::to_value(memory.store.snapshot()).unwrap();
            let counter = json["counters"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .find(|known| known["name"] == "setlist.days");
            counter.unwrap()["totals"] =
                serde_json::json!([[KeyBuf::of::<(i64, i64)>((1_i64, 3_i64)), 9]]);
            memory.store =
                MemoryStore::restore(&SCHEMA, &serde_json::from_value::<Snapshot>(json).unwrap())
                    .unwrap();
            sqlite.conn.execute("INSERT INTO setlist_days VALUES (1, 3, 9)", ()).unwrap();
        }
        let reports =
            [memory.reconcile(mode, options, false), sqlite.reconcile(mode, options, false)];
        assert_eq!(reports[0].to_string(), reports[1].to_string());
        assert_eq!(totals(&mut *memory.store()), totals(&mut *sqlite.store()));
        found.push(reports[0].drift());
    }
    assert_eq!(found[2], 0, "a repair leaves nothing that a verify reports: {found:?}");
}

/// A repair recounted the rows of its key without the cutoff, while the comparison leaves out rows
/// below it. A total planted there, where rows still are, came back with each repair.
#[test]
fn on_sqlite_repair_removes_a_total_planted_below_the_cutoff_beside_its_rows() {
    for by_tally in [false, true] {
        let mut sqlite = Sqlite::new();
        let vote = Row::Vote { setlist: 1, day: 3, amount: 4 };
        let mut batch = Batch::new();
        batch.insert(&vote);
        sqlite.put(7, Some(&vote));
        sqlite.apply(&batch);
        assert_eq!(sqlite.prune(10), 1);
        sqlite.conn.execute("INSERT INTO setlist_days VALUES (1, 3, 9)", ()).unwrap();
        assert_eq!(sqlite.reconcile(Mode::Repair, Options::default(), by_tally).drift(), 1);
        assert_eq!(sqlite.reconcile(Mode::Verify, Options::default(), by_tally).drift(), 0);
    }
}

/// A prune never runs while a batch is half applied, and no total comes back below the cutoff.
#[test]
fn in_memory_a_prune_beside_writers_leaves_nothing_below_its_cutoff() {
    let store = MemoryStore::new(&SCHEMA);
    let threads = 4_i64;
    thread::scope(|scope| {
        for at in 0..threads {
            let store = &store;
            scope.spawn(move || {
                let mut batch = Batch::new();
                for turn in 0..400_i64 {
                    batch.clear();
                    for day in 0..20 {
                        batch.insert(&Row::Vote { setlist: day % 3, day, amount: 1 });
                    }
                    if turn % 40 == 0 {
                        // Each thread's own setlist belongs to one show, then to another.
                        let (from, to) = (turn / 40 % 2, (turn / 40 + 1) % 2);
                        let moved = |show| Row::Setlist { id: 10 + at, show };
                        batch.update(&(turn > 0).then(|| moved(from)), &Some(moved(to)));
                    }
                    store.apply(&mut batch.clone()).unwrap();
                }
            });
        }
        for cutoff in 0..15 {
            store.prune(SETLIST_DAYS, cutoff).unwrap();
            thread::yield_now();
        }
    });
    let found = totals(&mut &store);
    assert!(
        found.keys().all(|(name, _, day)| *name != "setlist.days" || *day >= Some(14)),
        "{found:?}"
    );
    for day in 14..20 {
        assert_eq!(found[&("setlist.days", day % 3, Some(day))], threads * 400);
    }
}

/// Opens a database file in this folder for several writers, which wait for each other.
fn shared_file(folder: &Path) -> Connection {
    let conn = Connection::open(folder.join("totals.db")).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
    conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = WAL").unwrap();
    conn
}

#[test]
fn on_sqlite_a_prune_beside_writers_leaves_nothing_below_its_cutoff() {
    let dir = crate::support::temp_dir();
    let open = || shared_file(dir.path());
    let conn = open();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    let mut memberships = Batch::new();
    memberships.insert(
        &[
            Row::Setlist { id: 0, show: 5 },
            Row::Setlist { id: 1, show: 5 },
            Row::Setlist { id: 2, show: 6 },
        ][..],
    );
    SqliteStore::new(&conn, &SCHEMA).apply(&mut memberships).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let conn = open();
                let mut batch = Batch::new();
                for day in 0..20 {
                    batch.insert(&Row::Vote { setlist: day % 3, day, amount: 1 });
                }
                for _ in 0..40 {
                    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
                    SqliteStore::new(&conn, &SCHEMA).apply(&mut batch.clone()).unwrap();
                    conn.execute_batch("COMMIT").unwrap();
                }
            });
        }
        for cutoff in 0..15 {
            SqliteStore::new(&conn, &SCHEMA).prune(SETLIST_DAYS, cutoff).unwrap();
        }
    });
    let found = totals(&mut SqliteStore::new(&conn, &SCHEMA));
    let wanted: BTreeMap<i64, i64> = (14..20).map(|day| (day, 120)).collect();
    for counter in ["setlist.days", "show.days"] {
        let days: BTreeMap<i64, i64> = found
            .iter()
            .filter(|((name, ..), _)| *name == counter)
            .map(|((_, _, day), total)| (day.unwrap(), *total))
            .collect();
        assert_eq!(days, wanted, "{counter}");
    }
    let key = KeyBuf::of::<(i64, i64)>((5_i64, 15_i64));
    assert_eq!(SqliteStore::new(&conn, &SCHEMA).read_keys(SHOW_DAYS.id(), &[key]).unwrap(), [120]);
}

const ALL_VOTES: Counter<()> = Counter::new("all.votes");
const USER_SHOW: Counter<(String, i64)> = Counter::new("user.show");
const SMALL: Counter<i8> = Counter::new("small");
const FORUM: Schema = Schema::new(&[
    ALL_VOTES.table(),
    SETLIST_VOTES.table(),
    USER_SHOW.table(),
    SMALL.table(),
    SETLIST_DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_DAYS.table().prunable(),
])
.leaderboards(&[TRENDING.id()]);

/// Adds to totals and subtracts again, so that most totals end at 0.
fn write_rounds(store: &mut SqliteStore<'_>) {
    for round in 0..60_i64 {
        for delta in [1, if round % 5 == 0 { 0 } else { -1 }] {
            let mut batch = Batch::new();
            batch.add(ALL_VOTES, (), delta);
            batch.add(SETLIST_VOTES, round, delta);
            batch.add(USER_SHOW, (format!("user {}", round % 7), round), delta * 2);
            batch.add(SMALL, i8::try_from(round - 30).unwrap(), delta);
            batch.add(SETLIST_DAYS, (round % 4, round), delta);
            batch.add(SETLIST_SHOW, (round % 4, round % 2), delta);
            store.apply(&mut batch).unwrap();
        }
    }
}

/// The number of rows in each table of totals: all, and those whose total is 0.
fn row_counts(conn: &Connection) -> Vec<(i64, i64)> {
    let count = |table: String| {
        let text = format!("SELECT count(*), count(*) FILTER (WHERE total = 0) FROM {table}");
        conn.query_row(&text, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    FORUM.counters().iter().map(|spec| count(spec.table_name())).collect()
}

/// Everything that can be read, as text.
fn read_everything(store: &mut SqliteStore<'_>) -> String {
    let days = store.totals(SETLIST_DAYS).unwrap();
    let users = store.totals(USER_SHOW).unwrap();
    let (votes, all) = (store.totals(SETLIST_VOTES).unwrap(), store.totals(ALL_VOTES).unwrap());
    let (small, shows) = (store.totals(SMALL).unwrap(), store.totals(SHOW_DAYS).unwrap());
    let top = store.top(TRENDING, 100).unwrap();
    format!("{days:?} {users:?} {votes:?} {all:?} {small:?} {shows:?} {top:?}")
}

/// Rows of totals that had become 0 again stayed forever.
#[test]
fn sweep_removes_a_bounded_number_of_totals_of_0_and_changes_no_read() {
    for rows in [1, 7, 1_000] {
        let conn = Connection::open_in_memory().unwrap();
        let mut store = SqliteStore::new(&conn, &FORUM);
        store.create().unwrap();
        write_rounds(&mut store);
        let (before, read) = (row_counts(&conn), read_everything(&mut store));
        let zeros: i64 = before.iter().map(|(_, zeros)| zeros).sum();
        assert!(zeros > 200, "{before:?}");
        let (mut sweep, mut gone, mut calls) = (Sweep::new().rows(rows), 0, 0);
        loop {
            let swept = store.sweep(&mut sweep).unwrap();
            assert!(
                swept.looked <= rows as u64 && swept.totals <= swept.looked && swept.locks == 0,
                "{swept:?}"
            );
            (gone, calls) = (gone + swept.totals, calls + 1);
            if swept.complete {
                break;
            }
        }
        assert_eq!((gone, calls > 1), (zeros.cast_unsigned(), rows < 1_000));
        let after: Vec<_> = before.iter().map(|(all, zeros)| (all - zeros, 0)).collect();
        assert_eq!(row_counts(&conn), after);
        assert_eq!(read_everything(&mut store), read);
        // The next sweep starts at the first row again, and removes totals that became 0 since.
        write_rounds(&mut store);
        while !store.sweep(&mut sweep).unwrap().complete {}
        assert!(row_counts(&conn).iter().all(|(_, zeros)| *zeros == 0));
    }
}

#[test]
fn sweep_takes_the_write_lock_only_if_there_are_rows_to_remove() {
    let dir = crate::support::temp_dir();
    let open = || Connection::open(dir.path().join("totals.db")).unwrap();
    let (conn, other) = (open(), open());
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    let mut store = SqliteStore::new(&conn, &FORUM);
    store.create().unwrap();
    let mut batch = Batch::new();
    (0..20_i64).for_each(|key| batch.add(SETLIST_VOTES, key, 1));
    store.apply(&mut batch).unwrap();
    conn.execute_batch("INSERT INTO small VALUES (1, 0), (2, 5)").unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut sweep = Sweep::new().rows(20);
    // A page without a total of 0.
    assert_eq!(store.sweep(&mut sweep).unwrap().totals, 0);
    let error = store.sweep(&mut sweep).unwrap_err();
    assert_eq!(error.recovery(), Recovery::Retry, "{error}");
    assert!(error.to_string().starts_with("removing totals of 0 of counter small: "), "{error}");
    other.execute_batch("COMMIT").unwrap();
    let swept = store.sweep(&mut sweep).unwrap();
    assert_eq!((swept.looked, swept.totals, swept.complete), (2, 1, true));
    // In the caller's transaction, a sweep rolls back with it.
    conn.execute_batch("UPDATE small SET total = 0; BEGIN").unwrap();
    assert_eq!(store.sweep(&mut Sweep::new()).unwrap().totals, 1);
    conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(row_counts(&conn)[3], (1, 1));
    let swept: Swept = store.sweep(&mut Sweep::new().rows(0)).unwrap();
    assert_eq!(swept.looked, 1, "at least one row a call");
}

/// Four writers change totals to 0 and back while a sweep removes those of 0.
#[test]
fn sweep_beside_writers_loses_no_total() {
    let dir = crate::support::temp_dir();
    let open = || shared_file(dir.path());
    let conn = open();
    SqliteStore::new(&conn, &FORUM).create().unwrap();
    let mut gone = 0;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4_i64)
            .map(|writer| {
                let open = &open;
                scope.spawn(move || {
                    let conn = open();
                    for round in 0..150_i64 {
                        let mut batch = Batch::new();
                        for key in 0..10 {
                            batch.add(
                                SETLIST_VOTES,
                                key,
                                if (round + writer + key) % 2 == 0 { 1 } else { -1 },
                            );
                        }
                        batch.add(ALL_VOTES, (), 1);
                        SqliteStore::new(&conn, &FORUM).apply(&mut batch).unwrap();
                    }
                })
            })
            .collect();
        let mut sweep = Sweep::new();
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            gone += SqliteStore::new(&conn, &FORUM).sweep(&mut sweep).unwrap().totals;
        }
    });
    let mut store = SqliteStore::new(&conn, &FORUM);
    assert_eq!(store.totals(SETLIST_VOTES).unwrap(), []);
    assert_eq!(store.total(ALL_VOTES, ()).unwrap(), 600);
    println!("{gone} totals of 0 were removed beside writers");
}

/// It used to prune nothing and to record no cutoff, without an error.
#[test]
fn prune_of_a_counter_that_the_catalogue_lacks_is_an_error() {
    const BEFORE: Schema = Schema::new(&[SETLIST_DAYS.table().prunable()]);
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, &BEFORE).create().unwrap();
    // The database has the counter, and not the rollup that is pruned with it.
    let error = SqliteStore::new(&conn, &SCHEMA).prune(SETLIST_DAYS, 10).unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, reason } if table == "show_days" && reason.contains("not in the catalogue")),
        "{error:?}"
    );
    let mut store = SqliteStore::new(&conn, &BEFORE);
    for _ in 0..2 {
        // A cutoff that is set already is no error.
        assert_eq!(store.prune(SETLIST_DAYS, 10).unwrap(), 0);
    }
    conn.execute_batch("DELETE FROM keepcount_counters").unwrap();
    let error = store.prune(SETLIST_DAYS, 10).unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "setlist_days"),
        "{error:?}"
    );
}
