//! Versions of one name side by side: which schemas allow them, and that no version is taken for
//! another, in memory and in SQLite.

use std::collections::BTreeMap;
use std::panic::catch_unwind;

use crate::support::random::Random;
use crate::support::world::{run_whole, through_text};
use keepcount::backend::{CounterSpec, LeaderboardId, RollupUpdate};
use keepcount::reconcile::{
    Columns, CounterReport, Freshness, MemoryAudit, Mode, Options, Reconciler, Report, SqliteAudit,
    SqliteRows, SystemRuntime, run,
};
use keepcount::{
    Batch, Counter, CounterId, Error, Leaderboard, MemoryStore, Record, Recovery, Schema,
    SqliteStore, Store, Tally, sql,
};
use rusqlite::Connection;

// Valid and invalid schemas.

#[test]
fn two_counters_are_refused_exactly_if_they_share_a_table() {
    const NAMES: [&str; 10] =
        ["a", "a.v2", "a_v2", "a.v2.v3", "a.v23", "a.b", "a_b", "a.v", "b", "a.v2.v2"];
    let counters: Vec<CounterSpec> = NAMES
        .iter()
        .flat_map(|name| {
            [0, 1, 2, 3, 23].map(|version| Counter::<i64>::new(name).version(version).table())
        })
        .collect();
    let mut refused = 0;
    for one in &counters {
        for two in &counters {
            let made = catch_unwind(|| Schema::new(Box::leak(Box::new([*one, *two]))));
            let suffix = |id: CounterId| {
                if id.version() == 1 { String::new() } else { format!("_v{}", id.version()) }
            };
            let table = |id: CounterId| id.name().replace('.', "_") + &suffix(id);
            let shared = table(one.id()) == table(two.id());
            assert_eq!(made.is_err(), shared, "{one:?} and {two:?}");
            assert_eq!(one.table_name(), table(one.id()));
            refused += u32::from(shared);
        }
    }
    assert!(refused > 60, "{refused} pairs share a table");
}

fn alone(name: &'static str, version: u32) -> Schema {
    Schema::new(Box::leak(Box::new([Counter::<i64>::new(name).version(version).table()])))
}

const BOTH: &[CounterSpec] = &[VOTES.table(), VOTES_2.table()];
const fn leaderboard(name: &'static str) -> LeaderboardId {
    Leaderboard::<i64>::new(name, [VOTES_2]).by(|_| None).id()
}

#[test]
fn version_is_part_of_the_name_for_reserved_names_and_leaderboards() {
    const TAKEN: &[LeaderboardId] = &[leaderboard("setlist.votes.v2")];
    const INDEX: &[LeaderboardId] = &[leaderboard("rank"), leaderboard("rank.order")];
    const THIRD: &[LeaderboardId] =
        &[Leaderboard::<i64>::new("rank", [VOTES.version(3)]).by(|_| None).id()];
    const FREE: &[LeaderboardId] = &[leaderboard("rank")];
    let fails = |what: &str, schema: fn() -> Schema, says: &str| {
        let panic = catch_unwind(schema).expect_err(what);
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .unwrap_or_else(|| panic.downcast_ref::<String>().unwrap());
        assert!(text.contains(says), "{what}: {text}");
    };
    for name in ["keepcount", "sqlite", "pg"] {
        let reserved = catch_unwind(|| alone(name, 2)).is_err();
        assert!(reserved, "version 2 of {name} has the table {name}_v2");
        assert_eq!(alone(name, 1).counters()[0].table_name(), name);
    }
    fails("a counter's table", || Schema::new(BOTH).leaderboards(TAKEN), "share a table");
    fails("another leaderboard's index", || Schema::new(BOTH).leaderboards(INDEX), "index");
    fails(
        "of a version that is not there",
        || Schema::new(BOTH).leaderboards(THIRD),
        "not in the schema",
    );
    fails(
        "one version twice",
        || Schema::new(Box::leak(Box::new([VOTES_2.table(), VOTES_2.table()]))),
        "a name and a version",
    );
    assert_eq!(Schema::new(BOTH).leaderboards(FREE).leaderboard_ids().len(), 1);
}

// Votes of setlists of shows; version 2 leaves spam out and weighs the rest.

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const VOTES_2: Counter<i64> = VOTES.version(2);
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const SHOWS_2: Counter<i64> = Counter::new("show.votes").version(2).sum_of(VOTES_2, MEMBERSHIP);
const DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
const DAYS_2: Counter<(i64, i64)> = DAYS.version(2);
/// Not in the order of names or versions.
const SCHEMA: Schema = Schema::new(&[
    DAYS_2.table().prunable(),
    VOTES_2.table(),
    MEMBERSHIP.table(),
    VOTES.table(),
    SHOWS_2.table(),
    SHOWS.table(),
    DAYS.table().prunable(),
]);

#[derive(Debug, Clone, Copy)]
enum Row {
    Vote { setlist: i64, weight: i64, spam: bool, day: i64 },
    Setlist { id: i64, show: i64 },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match *self {
            Self::Vote { setlist, weight, spam, day } => {
                to.add(VOTES, setlist, 1);
                to.add(DAYS, (setlist, day), 1);
                if !spam {
                    to.add(VOTES_2, setlist, weight);
                    to.add(DAYS_2, (setlist, day), weight);
                }
            }
            Self::Setlist { id, show } => to.add(MEMBERSHIP, (id, show), 1),
        }
    }
}

/// The totals of every counter that is keyed by one number, by its full name.
type Totals = BTreeMap<(String, i64), i64>;

fn totals_of(store: &mut impl Store) -> Totals {
    let mut all = Totals::new();
    for counter in [VOTES, VOTES_2, SHOWS, SHOWS_2] {
        let name = counter.id().full_name();
        all.extend(
            store
                .totals(counter)
                .unwrap()
                .into_iter()
                .map(|(key, total)| ((name.to_string(), key), total)),
        );
    }
    all
}

fn recount(rows: &[Row]) -> Totals {
    let mut all = Totals::new();
    let mut add = |name: &str, key: i64, amount: i64| {
        *all.entry((name.to_owned(), key)).or_default() += amount;
    };
    for row in rows {
        let Row::Vote { setlist, weight, spam, .. } = *row else { continue };
        let weight = if spam { 0 } else { weight };
        add("setlist.votes", setlist, 1);
        add("setlist.votes.v2", setlist, weight);
        for row in rows {
            if let Row::Setlist { id, show } = row
                && *id == setlist
            {
                add("show.votes", *show, 1);
                add("show.votes.v2", *show, weight);
            }
        }
    }
    all.retain(|_, total| *total != 0);
    all
}

fn row(random: &mut Random) -> Row {
    if random.below(4) == 0 {
        return Row::Setlist { id: random.below(6), show: random.below(3) };
    }
    let (setlist, weight) = (random.below(6), random.below(5) - 1);
    Row::Vote { setlist, weight, spam: random.below(3) == 0, day: random.below(4) }
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn.execute_batch(
        "CREATE TABLE votes (setlist INTEGER, weight INTEGER, spam INTEGER, day INTEGER);
         CREATE INDEX votes_by_setlist ON votes (setlist, day);
         CREATE TABLE setlists (id INTEGER, show INTEGER);
         CREATE INDEX setlists_by_id ON setlists (id, show)",
    )
    .unwrap();
    conn
}

#[test]
fn each_version_keeps_its_own_totals_at_every_level_in_both_stores() {
    for seed in 1..6 {
        let mut random = Random(seed);
        let (memory, conn) = (MemoryStore::new(&SCHEMA), database());
        let mut rows = Vec::new();
        for _ in 0..150 {
            let mut batch = Batch::new();
            for _ in 0..=random.below(3) {
                match random.below(5) {
                    0 if !rows.is_empty() => {
                        let at = usize::try_from(random.below(i64::try_from(rows.len()).unwrap()))
                            .unwrap();
                        batch.delete(&rows.swap_remove(at));
                    }
                    1 if !rows.is_empty() => {
                        let row = row(&mut random);
                        batch.update(&rows[0], &row);
                        rows[0] = row;
                    }
                    _ => {
                        let row = row(&mut random);
                        batch.insert(&row);
                        rows.push(row);
                    }
                }
            }
            memory.apply(&mut batch.clone()).unwrap();
            SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
        }
        let wanted = recount(&rows);
        assert!(wanted.len() > 12, "{wanted:?}");
        assert_eq!(totals_of(&mut &memory), wanted);
        assert_eq!(totals_of(&mut SqliteStore::new(&conn, &SCHEMA)), wanted);
    }
}

/// Two versions have the same hash. Sorted by the hash alone, the changes of a child that moves
/// alternated between the versions, and each was requested again.
#[test]
fn rollup_update_requests_each_version_once() {
    let mut batch = Batch::new();
    batch.update(&Row::Setlist { id: 1, show: 10 }, &Row::Setlist { id: 1, show: 20 });
    let mut update = RollupUpdate::new(&SCHEMA, &batch).unwrap();
    let mut asked = Vec::new();
    while let Some(request) = update.next().unwrap() {
        asked.push(request.counter.full_name());
    }
    asked.sort();
    assert_eq!(asked, ["setlist.votes", "setlist.votes.v2"]);
}

#[test]
fn each_version_is_pruned_alone() {
    let mut batch = Batch::new();
    for day in 0..4 {
        batch.insert(&Row::Vote { setlist: 1, weight: 5, spam: false, day });
    }
    let memory = MemoryStore::new(&SCHEMA);
    memory.apply(&mut batch.clone()).unwrap();
    assert_eq!(memory.prune(DAYS_2, 3_i64).unwrap(), 3);
    assert_eq!((memory.len(DAYS.id()).unwrap(), memory.len(DAYS_2.id()).unwrap()), (4, 1));

    let conn = database();
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    store.apply(&mut batch).unwrap();
    assert_eq!(store.prune(DAYS_2, 3_i64).unwrap(), 3);
    for _ in 0..2 {
        assert_eq!(
            (store.totals(DAYS).unwrap().len(), store.totals(DAYS_2).unwrap()),
            (4, vec![((1, 3), 5)])
        );
        let mut late = Batch::new();
        late.insert(&Row::Vote { setlist: 1, weight: 5, spam: false, day: 0 });
        late.delete(&Row::Vote { setlist: 1, weight: 5, spam: false, day: 1 });
        store.apply(&mut late.clone()).unwrap();
        late.clear();
        late.delete(&Row::Vote { setlist: 1, weight: 5, spam: false, day: 0 });
        late.insert(&Row::Vote { setlist: 1, weight: 5, spam: false, day: 1 });
        store.apply(&mut late).unwrap();
    }
    assert_eq!(store.prune(DAYS, 1_i64).unwrap(), 1);
}

// Names.

fn names(counters: &[CounterId]) -> Vec<String> {
    counters.iter().map(|id| id.full_name().into_owned()).collect()
}

const ORDER: [&str; 7] = [
    "setlist.days",
    "setlist.days.v2",
    "setlist.show",
    "setlist.votes",
    "setlist.votes.v2",
    "show.votes",
    "show.votes.v2",
];

#[test]
fn a_counter_is_found_by_its_full_name_or_else_as_the_highest_version() {
    const LATER: Schema =
        Schema::new(&[VOTES.version(12).table(), VOTES.version(3).table(), VOTES_2.table()]);
    assert_eq!(names(&SCHEMA.by_name()), ORDER);
    for name in ORDER {
        assert_eq!(SCHEMA.find(name).unwrap().full_name(), name);
    }
    assert_eq!(
        names(&LATER.by_name()),
        ["setlist.votes.v2", "setlist.votes.v3", "setlist.votes.v12"]
    );
    assert_eq!(LATER.find("setlist.votes").unwrap(), VOTES.version(12).id());
    assert_eq!(LATER.find("setlist.votes.v3").unwrap(), VOTES.version(3).id());
    for name in ["setlist.votes.v1", "setlist.votes.v4", "setlist", "setlist.votes.v", ""] {
        assert!(
            matches!(LATER.find(name), Err(Error::UnknownCounter { counter, .. }) if counter == name)
        );
    }
}

#[test]
fn unknown_version_is_a_conflict_that_names_the_known_versions() {
    let (mut memory, conn) = (MemoryStore::new(&SCHEMA), database());
    let mut sqlite = SqliteStore::new(&conn, &SCHEMA);
    for store in [&mut memory as &mut dyn Store, &mut sqlite] {
        let mut batch = Batch::new();
        batch.add(VOTES.version(3), 1, 1);
        let error = store.apply(&mut batch).unwrap_err();
        assert!(
            matches!(error, Error::DefinitionConflict { counter: "setlist.votes", .. }),
            "{error}"
        );
        for part in ["setlist.votes v3 (i64)", "setlist.votes v1 (i64)", "setlist.votes v2 (i64)"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(error.recovery(), Recovery::Permanent);
    }
}

#[test]
fn catalogue_tables_and_statements_have_the_full_names() {
    let conn = database();
    let list = |text: &str| -> Vec<String> {
        conn.prepare(text)
            .unwrap()
            .query_map((), |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    assert_eq!(list("SELECT name FROM keepcount_counters ORDER BY name"), ORDER);
    let places = list(
        "SELECT placement FROM keepcount_counters WHERE name LIKE 'show.votes%' ORDER BY name",
    );
    assert_eq!(
        places,
        [
            "table, sum of setlist.votes along setlist.show",
            "table, sum of setlist.votes.v2 along setlist.show"
        ]
    );
    let texts = sql::upsert(sql::Dialect::Sqlite, SCHEMA.spec(&VOTES_2.id()).unwrap());
    assert!(texts.starts_with(r#"INSERT INTO "setlist_votes_v2" "#), "{texts}");

    // The DDL of the schema creates the same tables.
    let other = Connection::open_in_memory().unwrap();
    other.execute_batch(&sql::ddl(sql::Dialect::Sqlite, &SCHEMA).join(";\n")).unwrap();
    SqliteStore::new(&other, &SCHEMA).check().unwrap();
}

// Reports.

fn sqlite_audit(conn: &Connection) -> SqliteAudit<'_> {
    let votes = SqliteRows::of("votes", |row| {
        Ok(Row::Vote {
            setlist: row.get(0)?,
            weight: row.get(1)?,
            spam: row.get(2)?,
            day: row.get(3)?,
        })
    });
    let setlists =
        SqliteRows::of("setlists", |row| Ok(Row::Setlist { id: row.get(0)?, show: row.get(1)? }));
    let votes = votes
        .columns("setlist, weight, spam, day")
        .key(VOTES, Columns::of(["setlist"]).count())
        .key(VOTES_2, Columns::of(["setlist"]).sum("weight").filter("NOT spam"))
        .key(DAYS, Columns::of(["setlist", "day"]).count())
        .key(DAYS_2, Columns::of(["setlist", "day"]).sum("weight").filter("NOT spam"));
    let mut audit = SqliteAudit::new(conn, &SCHEMA).unwrap();
    audit.add(votes).unwrap();
    audit
        .add(setlists.columns("id, show").key(MEMBERSHIP, Columns::of(["id", "show"]).count()))
        .unwrap();
    audit
}

fn insert_rows(conn: &Connection) {
    conn.execute_batch(
        "INSERT INTO votes VALUES (1, 5, 0, 0), (1, 7, 1, 0), (2, 3, 0, 1); INSERT INTO setlists VALUES (1, 10), (2, 20)",
    )
    .unwrap();
}

fn counters_with_drift(report: &Report) -> Vec<(String, u64)> {
    let differs =
        |counter: &CounterReport| (counter.counter.full_name().into_owned(), counter.drift());
    report.counters.iter().map(differs).filter(|(_, drift)| *drift > 0).collect()
}

#[test]
fn reports_and_tokens_tell_versions_apart() {
    let conn = database();
    insert_rows(&conn);
    let whole =
        run_whole(Mode::Repair, &SCHEMA, Options::default(), &mut sqlite_audit(&conn)).unwrap();
    assert_eq!(
        names(&whole.counters.iter().map(|counter| counter.counter).collect::<Vec<_>>()),
        ORDER
    );
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    assert_eq!(store.totals(SHOWS).unwrap(), [(10, 2), (20, 1)]);
    assert_eq!(store.totals(SHOWS_2).unwrap(), [(10, 5), (20, 3)]);

    conn.execute_batch("UPDATE setlist_votes_v2 SET total = 6 WHERE key = 1").unwrap();
    let mut verify =
        Reconciler::new(Mode::Verify, &SCHEMA, Options::default().page(1).max_pages(1)).unwrap();
    let mut all = Vec::new();
    for leg in 0.. {
        assert!(leg < 40, "the legs do not end");
        let report = run(&mut verify, &mut sqlite_audit(&conn), &mut SystemRuntime::new()).unwrap();
        all.extend(counters_with_drift(&report));
        let Some(token) = report.token else { break };
        verify = Reconciler::resume(
            Mode::Verify,
            &SCHEMA,
            &through_text(&token),
            Options::default().max_pages(1),
        )
        .unwrap();
    }
    assert_eq!(all, [("setlist.votes.v2".to_owned(), 1), ("show.votes.v2".to_owned(), 1)]);

    let report =
        run_whole(Mode::Verify, &SCHEMA, Options::default(), &mut sqlite_audit(&conn)).unwrap();
    let table = report.table().to_string();
    assert!(table.contains("\n  setlist.votes.v2 of 1: stored 6, true 5\n"), "{table}");
    assert!(table.lines().any(|line| line.starts_with("setlist.votes.v2 ")), "{table}");
    let json = serde_json::to_value(&report).unwrap();
    let listed: Vec<&str> = json["counters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|counter| counter["name"].as_str().unwrap())
        .collect();
    assert_eq!(listed, ORDER);
}

#[test]
fn each_version_has_its_own_freshness() {
    let conn = database();
    let mut freshness = Freshness::new(&SCHEMA);
    let mut verify =
        Reconciler::scoped(Mode::Verify, &SCHEMA, &[VOTES_2.id()], Options::default()).unwrap();
    freshness.observe(
        &run(&mut verify, &mut sqlite_audit(&conn), &mut SystemRuntime::new()).unwrap(),
        100,
    );
    assert_eq!(
        (freshness.age(&VOTES.id(), 100), freshness.age(&VOTES_2.id(), 100).unwrap().as_secs()),
        (None, 0)
    );
    let saved: Freshness =
        serde_json::from_str(&serde_json::to_string(&freshness).unwrap()).unwrap();
    let resumed = Freshness::resume(&SCHEMA, &saved);
    let clean: Vec<_> = resumed.iter().filter(|(_, at)| at.is_some()).collect();
    assert_eq!(clean, [("setlist.votes.v2", Some(100))]);
}

#[test]
fn repair_of_one_version_in_memory_leaves_the_other_alone() {
    let rows = [
        Row::Vote { setlist: 1, weight: 5, spam: false, day: 0 },
        Row::Setlist { id: 1, show: 10 },
    ];
    let mut store = MemoryStore::new(&SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(VOTES, |_| rows).unwrap();
    audit.add(VOTES_2, |_| rows).unwrap();
    audit.add(MEMBERSHIP, |_| rows).unwrap();
    let scope = [SHOWS_2.id()];
    let mut repair = Reconciler::scoped(Mode::Repair, &SCHEMA, &scope, Options::default()).unwrap();
    let report = run(&mut repair, &mut audit, &mut SystemRuntime::new()).unwrap();
    let scope: Vec<CounterId> = report.counters.iter().map(|counter| counter.counter).collect();
    assert_eq!(names(&scope), ["setlist.show", "setlist.votes.v2", "show.votes.v2"]);
    drop(audit);
    assert_eq!((store.total(SHOWS_2, 10).unwrap(), store.total(SHOWS, 10).unwrap()), (5, 0));
    assert_eq!((store.total(VOTES_2, 1).unwrap(), store.total(VOTES, 1).unwrap()), (5, 0));
}
