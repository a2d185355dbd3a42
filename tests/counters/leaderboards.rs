//! Leaderboards equal a full sort, in memory and in SQLite: after random changes, rollbacks,
//! failures, repairs and damage. Decayed ones are checked against exact arithmetic with big
//! integers.
#![allow(clippy::cast_possible_wrap)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::support::random::Random;
use crate::support::world::{Trace, run_whole};
use crate::support::{full_test_name, standings};
use keepcount::backend::{CounterSpec, LeaderboardId};
use keepcount::reconcile::{Columns, Mode, Options, SqliteAudit, SqliteRows};
use keepcount::{
    AsKey, Batch, Counter, Decayed, Error, HalfLife, Key, Leaderboard, MemoryLeaderboard,
    MemoryStore, Ranked, Record, Schema, Score, SqliteStore, Store, Tally,
};
use num_bigint::BigInt;
use rusqlite::types::Value;
use rusqlite::{Connection, Row};

// The leaderboard of most tests: songs, with keys of two parts, ranked by three counters.

type Id = (i16, String);

const LISTED: Counter<Id> = Counter::new("song.listed");
const UP: Counter<Id> = Counter::new("song.up");
const DOWN: Counter<Id> = Counter::new("song.down");
const SONGS: Leaderboard<Id> = Leaderboard::new("song.board", [LISTED, UP, DOWN]).by(net);
/// Not in the order of the leaderboard's counters.
const SPEC: &[CounterSpec] = &[UP.table(), LISTED.table(), DOWN.table()];
const BARE: Schema = Schema::new(SPEC);
const SCHEMA: Schema = Schema::new(SPEC).leaderboards(&[SONGS.id()]);

fn net([listed, up, down]: [i64; 3]) -> Option<i64> {
    (listed > 0).then(|| up.saturating_sub(down))
}

fn unlisted(_: [i64; 1]) -> Option<i64> {
    None
}

/// The same as `net`, computed in another way.
fn wanted_net([listed, up, down]: [i64; 3]) -> Option<i64> {
    let exact = i128::from(up) - i128::from(down);
    let score = i64::try_from(exact).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX });
    (listed > 0).then_some(score)
}

/// Names that are prefixes of each other, that sort by bytes and not by letters, or that are longer
/// than a key holds inline.
fn songs() -> Vec<Id> {
    const NAMES: [&str; 16] = [
        "",
        "a",
        "a ",
        "a!",
        "aa",
        "ab",
        "A",
        "Z",
        "z",
        "\u{1}",
        "\u{e9}",
        "\u{7f}",
        "\u{ffff}",
        "\u{10000}",
        "%_'\"",
        "a name longer than a key holds inline, so that it is elsewhere",
    ];
    let numbers = (-10..10).chain([i16::MIN, i16::MAX, 255, 256, -256]);
    numbers.flat_map(|number| NAMES.map(|name| (number, name.to_owned()))).collect()
}

/// Totals, and the leaderboard sorted without the crate.
#[derive(Clone, Default)]
struct Model {
    totals: BTreeMap<Id, [i64; 3]>,
    sorted: Vec<(Reverse<i64>, Id)>,
}

type Line<K, S = i64> = (u64, K, S);

impl Model {
    /// Sets a total. Returns whether the score changed.
    fn put(&mut self, key: &Id, counter: usize, total: i64) -> bool {
        let totals = self.totals.entry(key.clone()).or_default();
        let before = wanted_net(*totals);
        totals[counter] = total;
        let after = wanted_net(*totals);
        if before == after {
            return false;
        }
        if let Some(score) = before {
            let at = self.sorted.binary_search(&(Reverse(score), key.clone())).unwrap();
            self.sorted.remove(at);
        }
        if let Some(score) = after {
            let at = self.sorted.binary_search(&(Reverse(score), key.clone())).unwrap_err();
            self.sorted.insert(at, (Reverse(score), key.clone()));
        }
        true
    }

    fn page(&self, first: usize, limit: usize) -> Vec<Line<Id>> {
        let entries = self.sorted.iter().enumerate().skip(first - 1).take(limit);
        entries.map(|(at, (Reverse(score), key))| (at as u64 + 1, key.clone(), *score)).collect()
    }

    fn rank(&self, key: &Id) -> Option<Line<Id>> {
        let score = wanted_net(*self.totals.get(key)?)?;
        let at = self.sorted.binary_search(&(Reverse(score), key.clone())).unwrap();
        Some((at as u64 + 1, key.clone(), score))
    }

    /// The whole leaderboard, sorted from the totals.
    fn sort_all(&self) -> Vec<Line<Id>> {
        let mut all: Vec<(Id, i64)> = self
            .totals
            .iter()
            .filter_map(|(key, totals)| Some((key.clone(), wanted_net(*totals)?)))
            .collect();
        all.sort_by(|(one, first), (two, second)| second.cmp(first).then_with(|| one.cmp(two)));
        (1..).zip(all).map(|(rank, (key, score))| (rank, key, score)).collect()
    }

    /// Draws a change that keeps totals and deltas within 64 bits. Returns the key, the counter,
    /// the delta, and the total after it.
    fn draw(&self, random: &mut Random, keys: &[Id], leaving: usize) -> (Id, usize, i64, i64) {
        loop {
            let key = random.pick(keys).clone();
            let counter = random.below(3);
            let now = self.totals.get(&key).map_or(0, |totals| totals[counter]);
            let total = match (counter, random.below(24)) {
                (0, 0) => -1,
                (0, 1) => 2,
                (0, _) => i64::from(random.below(10) >= leaving),
                (_, 0) => i64::MAX,
                (_, 1) => i64::MIN,
                (_, 2) => i64::MAX - 1,
                (_, 3) => random.next().cast_signed(),
                (_, 4..9) => 0,
                _ => random.below(7) - 3,
            };
            if let Some(delta) = total.checked_sub(now).filter(|delta| *delta != 0) {
                return (key, counter, delta, total);
            }
        }
    }
}

fn add(batch: &mut Batch, key: &Id, counter: usize, delta: i64) {
    batch.add([LISTED, UP, DOWN][counter], key, delta);
}

fn plain<K, S>(lines: Vec<Ranked<K, S>>) -> Vec<Line<K, S>> {
    lines.into_iter().map(|line| (line.rank, line.key, line.score)).collect()
}

fn one<K, S>(line: Option<Ranked<K, S>>) -> Option<Line<K, S>> {
    line.map(|line| (line.rank, line.key, line.score))
}

#[test]
fn listed_key_has_its_rank_and_unlisted_key_ranks_after_all_listed() {
    let (memory, conn) = (MemoryStore::new(&standings::SCHEMA), database(&standings::SCHEMA));
    let mut sqlite = SqliteStore::new(&conn, &standings::SCHEMA);
    let mut songs = MemoryLeaderboard::new(standings::SONGS);
    for step in standings::STEPS {
        let mut batch = step.batch();
        sqlite.apply(&mut batch.clone()).unwrap();
        let applied = memory.apply(&mut batch).unwrap();
        songs.follow(&memory, applied.deltas(&batch)).unwrap();
        for (at, (song, ..)) in step.stand.iter().enumerate() {
            step.check("in memory", at, &songs.rank(song).unwrap());
            step.check("in SQLite", at, &sqlite.rank(standings::SONGS, song).unwrap());
        }
    }
}

// In memory.

#[test]
fn in_memory_leaderboard_equals_a_full_sort_after_each_of_100_000_changes() {
    let (random, keys) = (&mut Random(1), songs());
    let store = MemoryStore::new(&SCHEMA);
    let (mut model, mut ranking) = (Model::default(), MemoryLeaderboard::new(SONGS));
    let mut batch = Batch::new();
    let (mut least, mut most, mut moved) = (usize::MAX, 0, 0);
    for change in 0..100_000 {
        // The leaderboard grows and shrinks in turn.
        let leaving = if change / 5_000 % 2 == 0 { 2 } else { 8 };
        let (key, counter, delta, total) = model.draw(random, &keys, leaving);
        batch.clear();
        add(&mut batch, &key, counter, delta);
        let applied = store.apply(&mut batch).unwrap();
        let changed = ranking.follow(&store, applied.deltas(&batch)).unwrap();
        assert_eq!(changed, u64::from(model.put(&key, counter, total)), "change {change}");
        moved += changed;

        assert_eq!(plain(ranking.top(10).unwrap()), model.page(1, 10), "change {change}");
        let asked = random.pick(&keys);
        assert_eq!(one(ranking.rank(asked).unwrap().line()), model.rank(asked), "change {change}");
        let (first, limit) = (1 + random.below(keys.len()), random.below(12));
        assert_eq!(
            plain(ranking.page(first as u64, limit).unwrap()),
            model.page(first, limit),
            "change {change}"
        );
        assert_eq!(ranking.len(), model.sorted.len());
        if change % 1_000 == 999 {
            let all = plain(ranking.top(usize::MAX).unwrap());
            assert_eq!(all, model.sort_all(), "change {change}");
            let mut anew = MemoryLeaderboard::new(SONGS);
            anew.rebuild(&store).unwrap();
            assert_eq!(plain(anew.top(usize::MAX).unwrap()), all, "change {change}");
            (least, most) = (least.min(all.len()), most.max(all.len()));
        }
    }
    println!("{least} to {most} listed, {moved} scores changed");
    assert!(least < 150 && most > 300 && moved > 40_000);
    // A rebuild from a store that has only the totals.
    let restored = MemoryStore::new(&SCHEMA);
    for (key, totals) in &model.totals {
        for (counter, total) in totals.iter().enumerate() {
            batch.clear();
            add(&mut batch, key, counter, *total);
            restored.apply(&mut batch.clone()).unwrap();
        }
    }
    ranking.rebuild(&restored).unwrap();
    assert_eq!(plain(ranking.top(usize::MAX).unwrap()), model.sort_all());
}

#[test]
fn leaderboard_ignores_foreign_deltas_and_deltas_of_refused_batches() {
    let other: Counter<Id> = Counter::new("song.other");
    let (store, mut ranking) = (MemoryStore::new(&SCHEMA), MemoryLeaderboard::new(SONGS));
    let mut batch = Batch::new();
    batch.add(other, (1, "a"), 5);
    assert!(matches!(store.apply(&mut batch.clone()), Err(Error::UnknownCounter { .. })));
    assert_eq!(ranking.follow(&store, batch.deltas()).unwrap(), 0);
    batch.clear();
    batch.add(LISTED, (1, "a"), 1);
    batch.add(UP, (1, "a"), i64::MAX);
    assert_eq!(
        ranking.follow(&store, store.apply(&mut batch.clone()).unwrap().deltas(&batch)).unwrap(),
        1
    );
    batch.clear();
    batch.add(LISTED, (2, "b"), 1);
    batch.add(UP, (1, "a"), 1);
    assert!(matches!(store.apply(&mut batch.clone()), Err(Error::Overflow { .. })));
    // Deltas of a batch that was not applied change nothing: scores are read from the store.
    assert_eq!(ranking.follow(&store, batch.deltas()).unwrap(), 0);
    assert_eq!(plain(ranking.top(9).unwrap()), [(1, (1, "a".to_owned()), i64::MAX)]);
}

#[test]
fn leaderboard_that_follows_several_writers_equals_the_totals() {
    const WRITERS: u64 = 4;
    let keys = songs();
    let (store, ranking) = (MemoryStore::new(&SCHEMA), Mutex::new(MemoryLeaderboard::new(SONGS)));
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (store, ranking, keys) = (&store, &ranking, &keys[..60]);
            scope.spawn(move || {
                let random = &mut Random(writer);
                let mut batch = Batch::new();
                for _ in 0..5_000 {
                    batch.clear();
                    for _ in 0..=random.below(3) {
                        add(&mut batch, random.pick(keys), random.below(3), random.below(5) - 2);
                    }
                    let applied = store.apply(&mut batch).unwrap();
                    if random.below(8) == 0 {
                        thread::yield_now(); // so that others arrive first
                    }
                    ranking.lock().unwrap().follow(&*store, applied.deltas(&batch)).unwrap();
                }
            });
        }
    });
    let mut model = Model::default();
    for (at, counter) in [LISTED, UP, DOWN].into_iter().enumerate() {
        for (key, total) in store.totals(counter).unwrap() {
            model.put(&key, at, total);
        }
    }
    let ranking = ranking.into_inner().unwrap();
    assert!(model.sorted.len() > 10);
    assert_eq!(plain(ranking.top(usize::MAX).unwrap()), model.sort_all());
}

// In SQLite.

fn open(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(20)).unwrap();
    conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    conn
}

fn database(schema: &Schema) -> Connection {
    let conn = open(Path::new(":memory:"));
    SqliteStore::new(&conn, schema).create().unwrap();
    conn
}

fn sql(conn: &Connection, text: &str) {
    conn.execute_batch(text).unwrap_or_else(|error| panic!("{error}: {text}"));
}

fn number(conn: &Connection, text: &str) -> i64 {
    conn.query_row(text, (), |row| row.get(0)).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn dump(conn: &Connection, table: &str) -> Vec<Vec<Value>> {
    let mut all = conn.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
    let width = all.column_count();
    let rows = all.query_map((), |row| (0..width).map(|at| row.get(at)).collect()).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[track_caller]
fn assert_sqlite_equals(conn: &Connection, model: &Model, random: &mut Random, keys: &[Id]) {
    let mut store = SqliteStore::new(conn, &SCHEMA);
    assert_eq!(plain(store.top(SONGS, 10).unwrap()), model.page(1, 10));
    let asked = random.pick(keys);
    let line = store.rank(SONGS, asked).unwrap().line();
    assert_eq!(one(line.clone()), model.rank(asked));
    if let Some(line) = line {
        let (first, limit) = (usize::try_from(line.rank).unwrap() + 1, random.below(20));
        assert_eq!(plain(store.top_after(SONGS, &line, limit).unwrap()), model.page(first, limit));
    }
}

/// Applies random changes of different totals in one batch, and returns their number. If `bad`, a
/// change in the middle leaves 64 bits: nothing is applied, and the leaderboard must stay as it
/// was.
fn apply(
    conn: &Connection,
    model: &mut Model,
    random: &mut Random,
    keys: &[Id],
    size: usize,
    bad: bool,
) -> usize {
    let (mut batch, mut after, mut touched) = (Batch::new(), model.clone(), BTreeSet::new());
    let full: Id = (0, "full".to_owned());
    let leaving = if model.sorted.len() > 250 { 8 } else { 3 };
    for change in 0..size {
        let (key, counter, delta, total) = after.draw(random, keys, leaving);
        if touched.insert((key.clone(), counter)) {
            add(&mut batch, &key, counter, delta);
            after.put(&key, counter, total);
        }
        if bad && change == size / 2 {
            add(&mut batch, &full, 1, 1);
        }
    }
    let mut store = SqliteStore::new(conn, &SCHEMA);
    if bad {
        let (in_transaction, before) = (!conn.is_autocommit(), dump(conn, "song_board"));
        let error = store.apply(&mut batch.clone()).unwrap_err();
        assert!(matches!(error, Error::Overflow { .. }), "{error}");
        assert_eq!(dump(conn, "song_board"), before);
        assert_eq!(!conn.is_autocommit(), in_transaction);
        return 0;
    }
    store.apply(&mut batch.clone()).unwrap();
    *model = after;
    touched.len()
}

#[test]
fn in_sqlite_leaderboard_equals_a_full_sort_after_100_000_changes() {
    const SIZES: [usize; 7] = [1, 1, 2, 5, 20, 90, 260];
    let (random, keys) = (&mut Random(2), songs());
    let conn = database(&SCHEMA);
    let mut model = Model::default();
    let mut full = Batch::new();
    full.add(LISTED, (0, "full"), 1);
    full.add(UP, (0, "full"), i64::MAX);
    SqliteStore::new(&conn, &SCHEMA).apply(&mut full.clone()).unwrap();
    model.put(&(0, "full".to_owned()), 0, 1);
    model.put(&(0, "full".to_owned()), 1, i64::MAX);

    let (mut changes, mut undone, mut transactions) = (0, 0, 0);
    while changes < 100_000 {
        transactions += 1;
        let size = *random.pick(&SIZES);
        match random.below(6) {
            0 => {
                apply(&conn, &mut model, random, &keys, size, true);
            }
            1 | 2 => changes += apply(&conn, &mut model, random, &keys, size, false),
            3 => {
                sql(&conn, "BEGIN IMMEDIATE");
                for _ in 0..random.below(4) {
                    changes += apply(&conn, &mut model, random, &keys, size, false);
                    assert_sqlite_equals(&conn, &model, random, &keys);
                }
                apply(&conn, &mut model, random, &keys, size, true);
                assert_sqlite_equals(&conn, &model, random, &keys);
                changes += apply(&conn, &mut model, random, &keys, size, false);
                sql(&conn, "COMMIT");
            }
            4 => {
                // Changes inside a savepoint are rolled back, changes around it stay.
                sql(&conn, "BEGIN; SAVEPOINT kept");
                changes += apply(&conn, &mut model, random, &keys, size, false);
                let before = model.clone();
                sql(&conn, "SAVEPOINT taken_back");
                undone += apply(&conn, &mut model, random, &keys, size, false);
                apply(&conn, &mut model, random, &keys, size, true);
                sql(&conn, "ROLLBACK TO taken_back; RELEASE taken_back");
                model = before;
                assert_sqlite_equals(&conn, &model, random, &keys);
                changes += apply(&conn, &mut model, random, &keys, size, false);
                sql(&conn, "RELEASE kept; COMMIT");
            }
            _ => {
                let before = model.clone();
                sql(&conn, "BEGIN IMMEDIATE");
                undone += apply(&conn, &mut model, random, &keys, size.min(90), false);
                sql(&conn, "ROLLBACK");
                model = before;
            }
        }
        assert_sqlite_equals(&conn, &model, random, &keys);
        if transactions % 50 == 0 {
            let mut store = SqliteStore::new(&conn, &SCHEMA);
            assert_eq!(plain(store.top(SONGS, usize::MAX).unwrap()), model.sort_all());
            assert_eq!(store.listed(SONGS).unwrap(), model.sorted.len() as u64);
        }
    }
    println!("{changes} changes in {transactions} transactions, {undone} more rolled back");
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    assert_eq!(plain(store.top(SONGS, usize::MAX).unwrap()), model.sort_all());
    assert_eq!(store.rebuild(SONGS).unwrap(), 0, "nothing is left to repair");
    // Page by page, each after the last line of the page before.
    let mut all = store.top(SONGS, 7).unwrap();
    loop {
        let more = store.top_after(SONGS, all.last().unwrap(), 7).unwrap();
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    assert_eq!(plain(all), model.sort_all());
    assert_eq!(store.top(SONGS, 0).unwrap(), []);
}

#[test]
fn score_that_does_not_change_writes_nothing_to_the_leaderboard() {
    let mut conn = database(&SCHEMA);
    let trace = Trace::on(&mut conn);
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let mut apply = |changes: &[(Counter<Id>, i64)]| {
        let mut batch = Batch::new();
        for (counter, delta) in changes {
            batch.add(*counter, (7, "seven"), *delta);
        }
        let rows = conn.total_changes();
        trace.take();
        let applied = store.apply(&mut batch).unwrap();
        let wrote = |text: &&String| {
            text.contains("\"song_board\"")
                && ["INSERT", "DELETE", "UPDATE"].iter().any(|word| text.starts_with(word))
        };
        let leaderboards = trace.take().iter().filter(wrote).count();
        (conn.total_changes() - rows, applied.totals, applied.statements, leaderboards)
    };
    // Rows written, totals, statements, statements that write the leaderboard.
    assert_eq!(apply(&[(UP, 4), (DOWN, 1)]), (2, 2, 2, 0), "not listed");
    assert_eq!(apply(&[(LISTED, 1)]), (2, 1, 2, 1), "listed");
    assert_eq!(apply(&[(LISTED, 1)]), (1, 1, 1, 0), "listed twice");
    assert_eq!(apply(&[(UP, 5), (DOWN, 5)]), (2, 2, 2, 0), "both");
    assert_eq!(apply(&[(UP, 1)]), (2, 1, 2, 1), "up");
    assert_eq!(apply(&[(UP, i64::MAX - 10)]), (2, 1, 2, 1), "far up");
    assert_eq!(apply(&[(DOWN, i64::MIN)]), (2, 1, 2, 1), "to the end of 64 bits");
    assert_eq!(apply(&[(DOWN, -1)]), (1, 1, 1, 0), "the end stays the end");
    assert_eq!(apply(&[(LISTED, -2)]), (2, 1, 2, 1), "gone");
    assert_eq!(apply(&[(LISTED, -1), (UP, -1)]), (2, 2, 2, 0), "gone before");
    assert_eq!(apply(&[]), (0, 0, 0, 0));
}

/// If the write of a leaderboard fails, its batch is taken back, and nothing else.
#[test]
fn failed_write_of_a_leaderboard_leaves_totals_and_leaderboards_unchanged() {
    for (raise, lost) in [("ABORT", false), ("FAIL", false), ("ROLLBACK", true)] {
        let conn = database(&SCHEMA);
        let mut store = SqliteStore::new(&conn, &SCHEMA);
        let listed = |entries: &[(&str, i64)]| {
            let mut batch = Batch::new();
            for (name, up) in entries {
                batch.add(LISTED, (1, *name), 1);
                batch.add(UP, (1, *name), *up);
            }
            batch
        };
        store.apply(&mut listed(&[("a", 1), ("m", 2)])).unwrap();
        let totals = || {
            [LISTED, UP].map(|counter| SqliteStore::new(&conn, &SCHEMA).totals(counter).unwrap())
        };
        sql(
            &conn,
            &format!(
                "CREATE TEMP TRIGGER no BEFORE INSERT ON song_board WHEN NEW.score = 13 BEGIN SELECT RAISE({raise}, 'not 13'); END"
            ),
        );
        let mut bad = listed(&[("a", 5), ("b", 6), ("n", 13), ("z", 7)]);
        let before = (totals(), dump(&conn, "song_board"));
        assert!(store.apply(&mut bad.clone()).is_err());
        assert_eq!(
            (totals(), dump(&conn, "song_board")),
            before,
            "{raise} in a transaction of its own"
        );

        sql(&conn, "BEGIN");
        store.apply(&mut listed(&[("a", 1), ("c", 3)])).unwrap();
        let within = (totals(), dump(&conn, "song_board"));
        let error = store.apply(&mut bad.clone()).unwrap_err();
        assert_eq!(matches!(error, Error::TransactionLost { .. }), lost, "{raise}: {error}");
        if lost {
            assert!(conn.is_autocommit());
            assert_eq!(
                (totals(), dump(&conn, "song_board")),
                before,
                "{raise} in the caller's transaction"
            );
        } else {
            assert_eq!(
                (totals(), dump(&conn, "song_board")),
                within,
                "{raise} in the caller's transaction"
            );
            sql(&conn, "COMMIT; DROP TRIGGER temp.no");
            assert_eq!(store.rebuild(SONGS).unwrap(), 0);
            store.apply(&mut bad).unwrap();
            assert_eq!(store.top(SONGS, 1).unwrap()[0].score, 13);
        }
    }
}

fn check_pages<K: Key + AsKey<K>, S: Score>(
    store: &mut SqliteStore<'_>,
    leaderboard: Leaderboard<K, S>,
) where
    for<'a> &'a K: AsKey<K>,
{
    let top = store.top(leaderboard, 3).unwrap();
    assert_eq!(top.len(), 3);
    assert_eq!(store.top_after(leaderboard, &top[2], 5).unwrap().len(), 5);
    assert!(store.top_after(leaderboard, &top[2], 5_000).unwrap().len() > 10);
    assert!(store.rank(leaderboard, &top[2].key).unwrap().score.is_some());
}

#[test]
fn pages_are_ranges_of_the_index_without_a_sort() {
    let mut conn = database(&MIXED);
    let trace = Trace::on(&mut conn);
    let mut store = SqliteStore::new(&conn, &MIXED);
    let mut batch = Batch::new();
    for (number, name) in songs() {
        batch.add(LISTED, (number, &name), 1);
        batch.add(UP, (number, &name), i64::from(number) % 3);
        batch.add(TUNE_UP, i64::from(number), 1);
        batch.add(TREND, (name, i64::from(number)), 1);
    }
    SqliteStore::new(&conn, &MIXED).apply(&mut batch).unwrap();
    trace.take();
    check_pages(&mut store, SONGS);
    check_pages(&mut store, TUNES);
    check_pages(&mut store, TRENDING);
    let mut texts = trace.take();
    texts.sort();
    texts.dedup();
    let ordered = texts.iter().filter(|text| text.contains("ORDER BY")).count();
    // For each leaderboard: from the first line on, lines tied with a line, lines below it.
    assert!(ordered == 9, "{texts:#?}");
    for text in &texts {
        let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
        let mut rows = explain.raw_query();
        let mut plan = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            plan.push(row.get::<_, String>(3).unwrap());
        }
        let plan = plan.join("; ");
        println!("{plan}   {text}");
        assert!(!plan.contains("TEMP B-TREE"), "{text}: {plan}");
        if text.contains("score\" DESC") {
            assert!(
                plan.contains("USING COVERING INDEX") && plan.contains("_order"),
                "{text}: {plan}"
            );
            // Only the first page starts at the beginning of the index.
            assert_eq!(plan.contains("SCAN"), !text.contains("WHERE"), "{text}: {plan}");
        } else {
            // Only the count of all lines, for an unlisted key, may scan. It has no alias `t`.
            let scans =
                plan.split("; ").any(|step| step == "SCAN t" || step.starts_with("SCAN t "));
            assert!(!scans, "{text}: {plan}");
        }
    }
}

// Another leaderboard, whose counters have source rows.

const TUNE_UP: Counter<i64> = Counter::new("tune.up");
const TUNE_DOWN: Counter<i64> = Counter::new("tune.down");
const TUNES: Leaderboard<i64> =
    Leaderboard::new("tune.board", [TUNE_UP, TUNE_DOWN]).by(|totals| match totals {
        [0, 0] => None,
        [up, down] => Some(up - down),
    });
const TREND: Counter<(String, i64)> = Counter::new("tune.trend");
const TRENDING: Leaderboard<String, Decayed> = Leaderboard::decayed("tune.trending", TREND);
const MIXED: Schema = Schema::new(&[
    UP.table(),
    LISTED.table(),
    DOWN.table(),
    TUNE_UP.table(),
    TUNE_DOWN.table(),
    TREND.table().prunable(),
])
.leaderboards(&[SONGS.id(), TUNES.id(), TRENDING.id()]);

#[derive(Debug, Clone)]
struct Tune {
    id: i64,
    up: i64,
    down: i64,
    epoch: i64,
}

impl Record for Tune {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(TUNE_UP, self.id, self.up);
        to.add(TUNE_DOWN, self.id, self.down);
        to.add(TREND, (format!("t{}", self.id), self.epoch), self.up - self.down);
    }
}

fn read_tune(row: &Row<'_>) -> rusqlite::Result<Tune> {
    Ok(Tune { id: row.get(0)?, up: row.get(1)?, down: row.get(2)?, epoch: row.get(3)? })
}

/// Checks the leaderboards over source rows against plain SQL and exact arithmetic.
#[track_caller]
fn assert_tunes_exact(conn: &Connection) {
    let mut store = SqliteStore::new(conn, &MIXED);
    let text = "SELECT id, sum(up) - sum(down) FROM tunes GROUP BY id HAVING sum(up) <> 0 OR sum(down) <> 0 ORDER BY 2 DESC, 1";
    let mut all = conn.prepare(text).unwrap();
    let rows = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let wanted: Vec<(i64, i64)> = rows.collect::<Result<_, _>>().unwrap();
    let found = store.top(TUNES, usize::MAX).unwrap();
    assert_eq!(found.into_iter().map(|line| (line.key, line.score)).collect::<Vec<_>>(), wanted);
    let mut exact: BTreeMap<String, BigInt> = BTreeMap::new();
    let mut all = conn.prepare("SELECT id, up, down, epoch FROM tunes").unwrap();
    for tune in all.query_map((), read_tune).unwrap().map(Result::unwrap) {
        *exact.entry(format!("t{}", tune.id)).or_default() +=
            BigInt::from(tune.up - tune.down) << tune.epoch;
    }
    let found = store
        .top(TRENDING, usize::MAX)
        .unwrap()
        .into_iter()
        .map(|line| line.key)
        .collect::<Vec<_>>();
    assert_eq!(found, sorted(&exact).into_iter().map(|(key, _)| key).collect::<Vec<_>>());
}

/// All sums that are not 0, the highest first, ties by key.
fn sorted<K: Ord + Clone>(sums: &BTreeMap<K, BigInt>) -> Vec<(K, BigInt)> {
    let zero = BigInt::default();
    let mut all: Vec<_> = sums
        .iter()
        .filter(|(_, sum)| **sum != zero)
        .map(|(key, sum)| (key.clone(), sum.clone()))
        .collect();
    all.sort_by(|(one, first), (two, second)| second.cmp(first).then_with(|| one.cmp(two)));
    all
}

fn tunes() -> Connection {
    let conn = database(&MIXED);
    sql(
        &conn,
        "CREATE TABLE tunes (row INTEGER PRIMARY KEY, id INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL, epoch INTEGER NOT NULL,
         name TEXT GENERATED ALWAYS AS ('t' || id) STORED);
         CREATE INDEX tunes_by_id ON tunes (id, up, down);
         CREATE INDEX tunes_by_name ON tunes (name, epoch)",
    );
    let (random, mut batch) = (&mut Random(3), Batch::new());
    for _ in 0..900 {
        let tune = Tune {
            id: random.below(120) - 60,
            up: random.below(9),
            down: random.below(9),
            epoch: random.below(3_000),
        };
        conn.execute(
            "INSERT INTO tunes (id, up, down, epoch) VALUES (?1, ?2, ?3, ?4)",
            (tune.id, tune.up, tune.down, tune.epoch),
        )
        .unwrap();
        batch.insert(&tune);
    }
    SqliteStore::new(&conn, &MIXED).apply(&mut batch.clone()).unwrap();
    assert_tunes_exact(&conn);
    conn
}

fn repair(conn: &Connection, page: usize) -> u64 {
    let mut audit = SqliteAudit::new(conn, &MIXED).unwrap();
    let tunes = SqliteRows::of("tunes", |row| Ok(read_tune(row)?))
        .columns("id, up, down, epoch")
        .key(TUNE_UP, Columns::of(["id"]).sum("up"))
        .key(TUNE_DOWN, Columns::of(["id"]).sum("down"))
        .key(TREND, Columns::of(["name", "epoch"]).sum("up - down"));
    audit.add(tunes).unwrap();
    let none = SqliteRows::query("SELECT 0 AS a, '' AS b WHERE 0", |_| Ok(Song));
    let columns = || Columns::of(["a", "b"]).count();
    audit.add(none.key(LISTED, columns()).key(UP, columns()).key(DOWN, columns())).unwrap();
    let report =
        run_whole(Mode::Repair, &MIXED, Options::default().page(page), &mut audit).unwrap();
    report.counters.iter().map(|counter| counter.corrected).sum()
}

/// The record of a source without rows.
struct Song;

impl Record for Song {
    fn tally(&self, _: &mut Tally<'_>) {}
}

#[test]
fn repair_updates_leaderboards_with_their_totals() {
    for page in [1, 7, 1_000] {
        let conn = tunes();
        // Rows are written without hooks: totals and leaderboards are wrong together.
        sql(
            &conn,
            "UPDATE tunes SET up = up + 3 WHERE row % 11 = 0; DELETE FROM tunes WHERE id % 13 = 0;
             INSERT INTO tunes (id, up, down, epoch) VALUES (1000, 5, 0, 2999), (1001, 0, 7, 2998)",
        );
        assert!(repair(&conn, page) > 30);
        assert_tunes_exact(&conn);
        // Totals are changed without the leaderboards, which are still right. Hooked writes then
        // propagate some of the drift to the leaderboards.
        sql(
            &conn,
            "UPDATE tune_up SET total = total + 5 WHERE key % 3 = 0; DELETE FROM tune_down WHERE key % 7 = 0;
             UPDATE tune_trend SET total = total - 4 WHERE key_2 % 5 = 0; INSERT INTO tune_up VALUES (5000, 3)",
        );
        assert_tunes_exact(&conn);
        let mut batch = Batch::new();
        for id in -60..60 {
            let tune = Tune { id, up: 2, down: 1, epoch: 3_000 + id };
            conn.execute(
                "INSERT INTO tunes (id, up, down, epoch) VALUES (?1, 2, 1, ?2)",
                (id, tune.epoch),
            )
            .unwrap();
            batch.insert(&tune);
        }
        SqliteStore::new(&conn, &MIXED).apply(&mut batch).unwrap();
        assert!(repair(&conn, page) > 30);
        assert_tunes_exact(&conn);
        let mut store = SqliteStore::new(&conn, &MIXED);
        assert_eq!((store.rebuild(TUNES).unwrap(), store.rebuild(TRENDING).unwrap()), (0, 0));
        assert_eq!(repair(&conn, page), 0);
    }
}

#[test]
fn rebuild_repairs_planted_lines_and_returns_their_number() {
    let conn = tunes();
    let mut store = SqliteStore::new(&conn, &MIXED);
    assert_eq!(store.rebuild(TUNES).unwrap(), 0);
    let lines = store.listed(TUNES).unwrap();
    let changed = number(&conn, "SELECT count(*) FROM tune_board WHERE key % 5 = 0");
    let removed =
        number(&conn, "SELECT count(*) FROM tune_board WHERE key % 7 = 0 AND key % 5 <> 0");
    sql(
        &conn,
        "UPDATE tune_board SET score = score + 1 WHERE key % 5 = 0; DELETE FROM tune_board WHERE key % 7 = 0 AND key % 5 <> 0;
         INSERT INTO tune_board VALUES (9223372036854775807, 5), (-9223372036854775808, -5), (777, 0);
         INSERT INTO tune_up VALUES (888, 0); INSERT INTO tune_board VALUES (888, 1)",
    );
    // In the caller's transaction, a rebuild rolls back with it.
    sql(&conn, "BEGIN");
    assert_eq!(store.rebuild(TUNES).unwrap().cast_signed(), changed + removed + 4);
    assert_tunes_exact(&conn);
    sql(&conn, "ROLLBACK");
    assert_eq!(store.rebuild(TUNES).unwrap().cast_signed(), changed + removed + 4);
    assert_tunes_exact(&conn);
    assert_eq!((store.listed(TUNES).unwrap(), store.rebuild(TUNES).unwrap()), (lines, 0));

    // Cells that do not hold a score: reads return an error that names the table, until a rebuild
    // overwrites the cells.
    let damage = [
        ("x''", 1),
        ("x'00'", 1),
        ("x'0101'", 1),
        ("x'02800000000000000080000000' || x'01'", 1), // a digit of 0
        ("zeroblob(100000)", 1),
    ];
    for (cell, wrong) in damage {
        sql(
            &conn,
            &format!("UPDATE tune_trending SET score = CAST({cell} AS BLOB) WHERE key = 't5'"),
        );
        for error in
            [store.top(TRENDING, usize::MAX).unwrap_err(), store.rank(TRENDING, "t5").unwrap_err()]
        {
            assert!(
                matches!(&error, Error::SchemaMismatch { table, .. } if table == "tune_trending"),
                "{cell}: {error}"
            );
        }
        assert_eq!(store.rebuild(TRENDING).unwrap(), wrong, "{cell}");
        assert_tunes_exact(&conn);
    }
    // A hooked write of the key repairs the cell too. A write of another key is not affected.
    sql(&conn, "UPDATE tune_trending SET score = x'00' WHERE key = 't5'");
    let mut batch = Batch::new();
    for id in [6, 5] {
        let tune = Tune { id, up: 1, down: 0, epoch: 10 };
        conn.execute("INSERT INTO tunes (id, up, down, epoch) VALUES (?1, 1, 0, 10)", [id])
            .unwrap();
        batch.insert(&tune);
        SqliteStore::new(&conn, &MIXED).apply(&mut batch.clone()).unwrap();
        batch.clear();
    }
    assert_tunes_exact(&conn);
    let trending = store.listed(TRENDING).unwrap();
    sql(&conn, "DELETE FROM tune_trending; DELETE FROM tune_board");
    assert_eq!(store.rebuild(TRENDING).unwrap(), trending);
    assert_eq!(store.rebuild(TUNES).unwrap(), store.listed(TUNES).unwrap());
    assert_tunes_exact(&conn);
}

/// More lines and keys than one read returns.
#[test]
fn rebuild_repairs_thousands_of_lines() {
    let conn = database(&MIXED);
    let mut store = SqliteStore::new(&conn, &MIXED);
    let mut batch = Batch::new();
    for id in 0..5_000 {
        batch.add(TUNE_UP, id, 1 + id % 10);
        batch.add(TUNE_DOWN, id, 3);
    }
    store.apply(&mut batch).unwrap();
    let before = dump(&conn, "tune_board");
    sql(
        &conn,
        "DELETE FROM tune_board WHERE key % 2; UPDATE tune_board SET score = 100000 + key; INSERT INTO tune_board SELECT -1 - key, 1 FROM tune_up",
    );
    assert_eq!(store.rebuild(TUNES).unwrap(), 10_000);
    assert_eq!(dump(&conn, "tune_board"), before);
    assert_eq!(before.len(), 5_000);
}

#[test]
fn prune_leaves_leaderboards_of_the_totals_that_are_kept() {
    let conn = tunes();
    let mut store = SqliteStore::new(&conn, &MIXED);
    let memory = MemoryStore::new(&MIXED);
    let mut ranking = MemoryLeaderboard::new(TRENDING);
    let mut batch = Batch::new();
    let mut all = conn.prepare("SELECT id, up, down, epoch FROM tunes").unwrap();
    all.query_map((), read_tune).unwrap().for_each(|tune| batch.insert(&tune.unwrap()));
    ranking.follow(&memory, memory.apply(&mut batch.clone()).unwrap().deltas(&batch)).unwrap();
    assert_eq!(
        plain(ranking.top(usize::MAX).unwrap()),
        plain(store.top(TRENDING, usize::MAX).unwrap())
    );
    for cutoff in [500_i64, 2_000, 2_995] {
        assert!(store.prune(TREND, cutoff).unwrap() > 0);
        sql(&conn, &format!("DELETE FROM tunes WHERE epoch < {cutoff}"));
        let kept: BTreeSet<String> =
            store.top(TRENDING, usize::MAX).unwrap().into_iter().map(|line| line.key).collect();
        let mut exact: BTreeMap<String, BigInt> = BTreeMap::new();
        for tune in conn
            .prepare("SELECT id, up, down, epoch FROM tunes")
            .unwrap()
            .query_map((), read_tune)
            .unwrap()
        {
            let tune = tune.unwrap();
            *exact.entry(format!("t{}", tune.id)).or_default() +=
                BigInt::from(tune.up - tune.down) << tune.epoch;
        }
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), {
            let mut keys: Vec<String> = sorted(&exact).into_iter().map(|(key, _)| key).collect();
            keys.sort();
            keys
        });
        assert_eq!(store.rebuild(TRENDING).unwrap(), 0);
        memory.prune(TREND, cutoff).unwrap();
        ranking.rebuild(&memory).unwrap();
        assert_eq!(
            plain(ranking.top(usize::MAX).unwrap()),
            plain(store.top(TRENDING, usize::MAX).unwrap())
        );
        // A delete below the cutoff changes nothing.
        let before = dump(&conn, "tune_trending");
        batch.clear();
        batch.delete(&Tune { id: 5, up: 8, down: 1, epoch: cutoff - 1 });
        SqliteStore::new(&conn, &MIXED).apply(&mut batch.clone()).unwrap();
        assert_eq!(dump(&conn, "tune_trending"), before);
    }
}

#[test]
fn leaderboard_added_to_existing_totals_is_filled_by_a_rebuild() {
    let (random, keys) = (&mut Random(4), songs());
    let conn = database(&BARE);
    let mut model = Model::default();
    for _ in 0..500 {
        let (key, counter, delta, total) = model.draw(random, &keys, 3);
        let mut batch = Batch::new();
        add(&mut batch, &key, counter, delta);
        SqliteStore::new(&conn, &BARE).apply(&mut batch).unwrap();
        model.put(&key, counter, total);
    }
    let (mut unguarded, mut store) =
        (SqliteStore::new(&conn, &BARE), SqliteStore::new(&conn, &SCHEMA));
    let error = store.check().unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, reason } if table == "song_board" && reason.contains("create")),
        "{error}"
    );
    unguarded.check().unwrap();
    // A rebuild also works in a transaction that is rolled back.
    sql(&conn, "BEGIN");
    store.create().unwrap();
    assert_eq!(store.rebuild(SONGS).unwrap(), model.sort_all().len() as u64);
    assert_eq!(plain(store.top(SONGS, usize::MAX).unwrap()), model.sort_all());
    sql(&conn, "ROLLBACK");
    assert!(store.check().is_err());
    store.create().unwrap();
    store.check().unwrap();
    // The leaderboard cannot be read yet, and stores that do not know it may still write.
    unguarded.check().unwrap();
    let batch = |delta| {
        let mut batch = Batch::new();
        add(&mut batch, &keys[0], 0, delta);
        batch
    };
    unguarded.apply(&mut batch(1)).unwrap();
    unguarded.apply(&mut batch(-1)).unwrap();
    let refused = store.top(SONGS, usize::MAX).unwrap_err();
    assert!(
        matches!(&refused, Error::NotReady { counter: "song.board", unready } if unready == "song.board"),
        "{refused}"
    );
    assert_eq!(store.rebuild(SONGS).unwrap(), model.sort_all().len() as u64);
    assert_eq!(plain(store.top(SONGS, usize::MAX).unwrap()), model.sort_all());
    store.create().unwrap();
    assert_eq!(store.rebuild(SONGS).unwrap(), 0);
    // A store that does not know the leaderboard would not keep it up to date.
    let error = unguarded.check().unwrap_err().to_string();
    assert!(error.contains("song.board") || error.contains("song_board"), "{error}");
}

#[test]
fn a_leaderboard_of_another_version_or_kind_is_refused() {
    const OTHERS: [(&str, Schema); 4] = [
        ("v2", Schema::new(SPEC).leaderboards(&[SONGS.version(2).id()])),
        (
            "leaderboard of song.up",
            Schema::new(SPEC)
                .leaderboards(&[Leaderboard::<Id>::new("song.board", [UP]).by(unlisted).id()]),
        ),
        (
            "leaderboard of song.up, song.listed",
            Schema::new(SPEC).leaderboards(&[Leaderboard::<Id>::new(
                "song.board",
                [UP, LISTED, DOWN],
            )
            .by(net)
            .id()]),
        ),
        (
            "table",
            Schema::new(&[
                UP.table(),
                LISTED.table(),
                DOWN.table(),
                Counter::<Id>::new("song.board").table(),
            ]),
        ),
    ];
    let conn = database(&SCHEMA);
    for (naming, schema) in &OTHERS {
        let mut store = SqliteStore::new(&conn, schema);
        for error in [store.check().unwrap_err(), store.create().unwrap_err()] {
            let Error::SchemaMismatch { table, reason } = &error else { panic!("{error}") };
            assert!(table == "song_board" && reason.contains(naming), "{error}");
        }
        SqliteStore::new(&conn, &SCHEMA).check().unwrap();
    }
    // `check` inspects the table, the index and the columns of a leaderboard.
    for (damage, naming) in [
        ("DROP INDEX song_board_order", "song_board_order"),
        ("DROP TABLE song_board", "absent"),
        ("ALTER TABLE song_board ADD COLUMN more ANY", "columns"),
        (
            "DROP TABLE song_board; CREATE TABLE song_board (key_1 INTEGER, key_2 TEXT, score INTEGER NOT NULL, PRIMARY KEY (key_1, key_2)) STRICT",
            "WITHOUT ROWID",
        ),
        ("CREATE TRIGGER t AFTER INSERT ON song_board BEGIN SELECT 1; END", "trigger"),
        (
            "CREATE TEMP TABLE song_board (key_1 INTEGER NOT NULL, key_2 TEXT NOT NULL, score INTEGER NOT NULL, PRIMARY KEY (key_1, key_2)) STRICT, WITHOUT ROWID",
            "hides",
        ),
    ] {
        let conn = database(&SCHEMA);
        sql(&conn, damage);
        let error = SqliteStore::new(&conn, &SCHEMA).check().unwrap_err();
        assert!(
            matches!(&error, Error::SchemaMismatch { table, reason } if table == "song_board" && reason.contains(naming)),
            "{damage}: {error}"
        );
    }
    // A write, and a rebuild, say what they read.
    let conn = database(&SCHEMA);
    sql(&conn, "DROP TABLE song_board");
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let mut batch = Batch::new();
    batch.add(LISTED, (1, "a"), 1);
    for error in [store.apply(&mut batch).unwrap_err(), store.rebuild(SONGS).unwrap_err()] {
        assert!(
            matches!(&error, Error::SchemaMismatch { table, reason } if table == "song_board" && reason.contains("leaderboard song.board")),
            "{error}"
        );
    }
    // A foreign table of that name.
    let conn = open(Path::new(":memory:"));
    sql(&conn, "CREATE TABLE song_board (a)");
    let error = SqliteStore::new(&conn, &SCHEMA).create().unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "song_board"),
        "{error}"
    );
    assert_eq!(number(&conn, "SELECT count(*) FROM sqlite_schema"), 1, "nothing is created");
}

#[test]
fn two_connections_and_another_process_read_the_same_leaderboard() {
    let dir = crate::support::temp_dir();
    let path = dir.path().join("app.db");
    let (one, two) = (open(&path), open(&path));
    sql(&one, "PRAGMA journal_mode = WAL");
    SqliteStore::new(&one, &SCHEMA).create().unwrap();
    let (random, keys) = (&mut Random(5), songs());
    let mut model = Model::default();
    for turn in 0..600 {
        let (writer, reader) = if turn % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let size = 1 + random.below(20);
        sql(writer, "BEGIN IMMEDIATE");
        let before = model.clone();
        apply(writer, &mut model, random, &keys, size, false);
        assert_sqlite_equals(writer, &model, random, &keys);
        assert_sqlite_equals(reader, &before, random, &keys);
        if random.below(4) == 0 {
            sql(writer, "ROLLBACK");
            model = before;
        } else {
            sql(writer, "COMMIT");
        }
        assert_sqlite_equals(reader, &model, random, &keys);
    }
    // Both write at once, each in its own transactions.
    thread::scope(|scope| {
        for (seed, conn) in [(6, one), (7, two)] {
            let keys = &keys[..80];
            scope.spawn(move || {
                let random = &mut Random(seed);
                for _ in 0..400 {
                    let mut batch = Batch::new();
                    for _ in 0..=random.below(5) {
                        // Small deltas, which leave 64 bits only at a total that is at the end of
                        // the range.
                        add(&mut batch, random.pick(keys), 0, random.below(3) - 1);
                        batch.add(DOWN, (300, random.pick(keys).1.as_str()), random.below(9) - 4);
                        batch.add(LISTED, (300, random.pick(keys).1.as_str()), 1);
                    }
                    SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
                }
            });
        }
    });
    let conn = open(&path);
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let mut model = Model::default();
    for (at, counter) in [LISTED, UP, DOWN].into_iter().enumerate() {
        for (key, total) in store.totals(counter).unwrap() {
            model.put(&key, at, total);
        }
    }
    assert!(model.sorted.len() > 30);
    assert_eq!(plain(store.top(SONGS, usize::MAX).unwrap()), model.sort_all());

    // Another process reads the same.
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &full_test_name(module_path!(), "prints_a_leaderboard_for_another_test"),
            "--nocapture",
        ])
        .env(PRINT, &path)
        .output()
        .unwrap();
    let out = String::from_utf8(child.stdout).unwrap();
    let printed: Vec<&str> =
        out.lines().filter_map(|line| line.split_once("line: ").map(|(_, line)| line)).collect();
    let wanted: Vec<String> = model.sort_all().iter().map(|line| format!("{line:?}")).collect();
    assert_eq!(printed, wanted, "{out}");
}

const PRINT: &str = "KEEPCOUNT_TEST_PRINTS_BOARD_OF";

/// The child process of [`two_connections_and_another_process_read_the_same_leaderboard`] runs this
/// test with a file. Without a file it does nothing.
#[test]
fn prints_a_leaderboard_for_another_test() {
    let Some(path) = std::env::var_os(PRINT) else { return };
    let conn = open(Path::new(&path));
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    store.check().unwrap();
    for line in plain(store.top(SONGS, usize::MAX).unwrap()) {
        println!("\nline: {line:?}");
    }
}

// Over rollups, in both stores.

const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
const SETLIST_SHOW: Counter<(i64, String)> = Counter::new("setlist.show");
const SHOW_ARTIST: Counter<(String, i16)> = Counter::new("show.artist");
const SHOW_VOTES: Counter<String> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
const ARTIST_VOTES: Counter<i16> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
const ARTIST_BONUS: Counter<i16> = Counter::new("artist.bonus");
const SHOWS: Leaderboard<String> =
    Leaderboard::new("show.board", [SHOW_VOTES]).by(|[votes]| (votes != 0).then_some(votes));
const ARTISTS: Leaderboard<i16> = Leaderboard::new("artist.board", [ARTIST_BONUS, ARTIST_VOTES])
    .by(|[bonus, votes]| {
        let sum = bonus + votes;
        (sum > 0).then_some(sum)
    });
const ROLLED: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_SHOW.table(),
    SHOW_ARTIST.table(),
    SHOW_VOTES.table(),
    ARTIST_BONUS.table(),
    ARTIST_VOTES.table(),
])
.leaderboards(&[ARTISTS.id(), SHOWS.id()]);

fn ranked<K: Ord + Clone, S: Ord + Clone>(
    scores: impl IntoIterator<Item = (K, S)>,
) -> Vec<Line<K, S>> {
    let mut all: Vec<(K, S)> = scores.into_iter().collect();
    all.sort_by(|(one, first), (two, second)| second.cmp(first).then_with(|| one.cmp(two)));
    (1..).zip(all).map(|(rank, (key, score))| (rank, key, score)).collect()
}

#[test]
fn leaderboards_over_rollups_equal_a_full_sort_after_each_of_10_000_changes() {
    const SETLISTS: usize = 60;
    const SHOWS_THERE: usize = 18;
    let (random, conn) = (&mut Random(8), database(&ROLLED));
    let memory = MemoryStore::new(&ROLLED);
    let (mut shows, mut artists) = (MemoryLeaderboard::new(SHOWS), MemoryLeaderboard::new(ARTISTS));
    let name = |show: usize| format!("show {show}");
    let mut votes = [0_i64; SETLISTS];
    let mut of: [Option<usize>; SETLISTS] = [None; SETLISTS];
    let mut by: [Option<i16>; SHOWS_THERE] = [None; SHOWS_THERE];
    let mut bonus = [0_i64; 7];
    let mut moves = 0;
    for change in 0..10_000 {
        let mut batch = Batch::new();
        for _ in 0..=random.below(2) {
            match random.below(12) {
                0 | 1 => {
                    // A setlist moves, is added, or is removed.
                    let setlist = random.below(SETLISTS);
                    let to = (random.below(4) > 0).then(|| random.below(SHOWS_THERE));
                    let id = setlist as i64;
                    if let Some(show) = of[setlist] {
                        batch.add(SETLIST_SHOW, (id, name(show)), -1);
                    }
                    if let Some(show) = to {
                        batch.add(SETLIST_SHOW, (id, name(show)), 1);
                    }
                    of[setlist] = to;
                    moves += 1;
                }
                2 => {
                    let show = random.below(SHOWS_THERE);
                    let to =
                        (random.below(4) > 0).then(|| i16::try_from(random.below(6)).unwrap() - 3);
                    if let Some(artist) = by[show] {
                        batch.add(SHOW_ARTIST, (name(show), artist), -1);
                    }
                    if let Some(artist) = to {
                        batch.add(SHOW_ARTIST, (name(show), artist), 1);
                    }
                    by[show] = to;
                    moves += 1;
                }
                3 => {
                    let (artist, amount) = (random.below(7), random.below(5) - 2);
                    batch.add(ARTIST_BONUS, i16::try_from(artist).unwrap() - 3, amount);
                    bonus[artist] += amount;
                }
                _ => {
                    let (setlist, amount) = (random.below(SETLISTS), random.below(7) - 3);
                    batch.add(SETLIST_VOTES, setlist as i64, amount);
                    votes[setlist] += amount;
                }
            }
        }
        let applied = memory.apply(&mut batch.clone()).unwrap();
        shows.follow(&memory, applied.deltas(&batch)).unwrap();
        artists.follow(&memory, applied.deltas(&batch)).unwrap();
        SqliteStore::new(&conn, &ROLLED).apply(&mut batch).unwrap();

        let mut of_shows = [0; SHOWS_THERE];
        for (votes, show) in votes.iter().zip(of) {
            if let Some(show) = show {
                of_shows[show] += votes;
            }
        }
        let mut of_artists = bonus;
        for (votes, artist) in of_shows.iter().zip(by) {
            if let Some(artist) = artist {
                of_artists[usize::try_from(artist + 3).unwrap()] += votes;
            }
        }
        let scored = of_shows.iter().enumerate().filter(|(_, votes)| **votes != 0);
        let wanted = ranked(scored.map(|(show, votes)| (name(show), *votes)));
        let mut store = SqliteStore::new(&conn, &ROLLED);
        assert_eq!(plain(shows.top(100).unwrap()), wanted, "change {change}");
        assert_eq!(plain(store.top(SHOWS, 100).unwrap()), wanted, "change {change}");
        let scored = (-3_i16..).zip(of_artists).filter(|(_, sum)| *sum > 0);
        let wanted = ranked(scored);
        assert_eq!(plain(artists.top(100).unwrap()), wanted, "change {change}");
        assert_eq!(plain(store.top(ARTISTS, 100).unwrap()), wanted, "change {change}");
    }
    assert!(moves > 1_000);
}

// Decayed leaderboards.

const HALF_LIFE: HalfLife = HalfLife::hours(6);
const SETLIST_TREND: Counter<(i64, i64)> = Counter::new("setlist.trend");
const SHOW_TREND: Counter<(String, i64)> =
    Counter::<(String, i64)>::new("show.trend").sum_of_suffix(SETLIST_TREND, SETLIST_SHOW);
const SETLISTS_TRENDING: Leaderboard<i64, Decayed> =
    Leaderboard::decayed("setlist.trending", SETLIST_TREND);
const SHOWS_TRENDING: Leaderboard<String, Decayed> =
    Leaderboard::decayed("show.trending", SHOW_TREND);
const DECAYING: Schema =
    Schema::new(&[SETLIST_TREND.table(), SETLIST_SHOW.table(), SHOW_TREND.table()])
        .leaderboards(&[SETLISTS_TRENDING.id(), SHOWS_TRENDING.id()]);

/// The first epoch of the votes, and the number of epochs that they span.
const MIN: i64 = -4_000;
const SPAN: u32 = 9_000;

/// Totals by epoch, and their exact sum times 2^-MIN.
#[derive(Clone, Default)]
struct Sum {
    epochs: BTreeMap<i64, i64>,
    exact: BigInt,
}

impl Sum {
    fn add(&mut self, epoch: i64, amount: i64) {
        *self.epochs.entry(epoch).or_default() += amount;
        self.exact += BigInt::from(amount) << (epoch - MIN);
    }

    fn add_all(&mut self, other: &Self, sign: i64) {
        other
            .epochs
            .iter()
            .for_each(|(epoch, amount)| *self.epochs.entry(*epoch).or_default() += sign * amount);
        self.exact += &other.exact * sign;
    }

    fn decayed(&self) -> Decayed {
        Decayed::sum(self.epochs.iter().map(|(epoch, total)| (*epoch, *total)))
    }
}

/// All sums that are not 0, sorted by their exact values. Each has the score that the crate
/// computes from the same totals in one step.
fn sorted_sums<'a, K: Ord + Clone + 'a>(
    sums: impl IntoIterator<Item = (K, &'a Sum)>,
) -> Vec<Line<K, Decayed>> {
    let zero = BigInt::default();
    let mut all: Vec<(K, &Sum)> = sums.into_iter().filter(|(_, sum)| sum.exact != zero).collect();
    all.sort_by(|(one, first), (two, second)| {
        second.exact.cmp(&first.exact).then_with(|| one.cmp(two))
    });
    (1..).zip(all).map(|(rank, (key, sum))| (rank, key, sum.decayed())).collect()
}

/// The value must be floor(sum x 1000 / 2^(epoch + 30) + 1/2), exact to 50 bits.
#[track_caller]
fn check_value(sum: &Sum, score: &Decayed, epoch: i64) {
    let shift = usize::try_from(epoch + 30 - MIN).unwrap();
    let wanted: BigInt = ((&sum.exact * 1_000) + (BigInt::from(1) << (shift - 1))) >> shift;
    let found = score.at(HALF_LIFE, epoch * HALF_LIFE.as_seconds(), 1_000);
    assert_eq!(found, sum.decayed().at(HALF_LIFE, epoch * HALF_LIFE.as_seconds(), 1_000));
    match found {
        Some(found) => {
            let off: BigInt = BigInt::from(found) - &wanted;
            let allowed: BigInt = BigInt::from(wanted.magnitude().clone()) >> 50_usize;
            assert!(off.magnitude() <= allowed.magnitude(), "{found} for {wanted}");
        }
        None => assert!(wanted.bits() > 120, "{wanted}"),
    }
}

#[test]
fn decayed_leaderboards_equal_exact_comparison_over_thousands_of_epochs() {
    const SETLISTS: usize = 40;
    const SHOWS_THERE: usize = 12;
    const CHANGES: usize = 4_000;
    let (random, conn) = (&mut Random(9), database(&DECAYING));
    let memory = MemoryStore::new(&DECAYING);
    let (mut setlists, mut shows) =
        (MemoryLeaderboard::new(SETLISTS_TRENDING), MemoryLeaderboard::new(SHOWS_TRENDING));
    let name = |show: usize| format!("show {show:02}");
    let mut of_setlists = vec![Sum::default(); SETLISTS];
    let mut of_shows = vec![Sum::default(); SHOWS_THERE];
    let mut of: [Option<usize>; SETLISTS] = [None; SETLISTS];
    let mut given: Vec<(usize, i64, i64)> = Vec::new();
    let (mut earliest, mut latest) = (i64::MAX, i64::MIN);
    let mut batch = Batch::new();
    let mut held = 0;
    for change in 0..CHANGES {
        let mut vote =
            |batch: &mut Batch, of: &[Option<usize>], (setlist, at, amount): (usize, i64, i64)| {
                let (epoch, weight) = (at.div_euclid(21_600), HALF_LIFE.weight(at));
                batch.add(SETLIST_TREND, (setlist as i64, HALF_LIFE.epoch(at)), amount * weight);
                of_setlists[setlist].add(epoch, amount * weight);
                if let Some(show) = of[setlist] {
                    of_shows[show].add(epoch, amount * weight);
                }
                (earliest, latest) = (earliest.min(epoch), latest.max(epoch));
            };
        match random.below(10) {
            0 | 1 => {
                let setlist = random.below(SETLISTS);
                let to = (random.below(5) > 0).then(|| random.below(SHOWS_THERE));
                for (show, sign) in
                    of[setlist].map(|show| (show, -1)).into_iter().chain(to.map(|show| (show, 1)))
                {
                    batch.add(SETLIST_SHOW, (setlist as i64, name(show)), sign);
                    of_shows[show].add_all(&of_setlists[setlist], sign);
                }
                of[setlist] = to;
            }
            2 | 3 if !given.is_empty() => {
                // A vote is taken back at the time at which it was given.
                let (setlist, at, amount) = given.swap_remove(random.below(given.len()));
                vote(&mut batch, &of, (setlist, at, -amount));
            }
            kind => {
                // In one of three late epochs; at an end of the span or near 0; or in any epoch. A
                // third of the votes are at an epoch's first second. A vote at the end of the span
                // outweighs most others.
                let epoch = match kind {
                    4 => 4_000 + random.below(3),
                    5 => *random.pick(&[MIN, MIN + i64::from(SPAN) - 1, 0, -1]),
                    _ => MIN + random.below(i64::from(SPAN)),
                };
                let within = if random.below(3) == 0 { 0 } else { random.below(21_600) };
                let one = (
                    random.below(SETLISTS),
                    epoch * HALF_LIFE.as_seconds() + within,
                    *random.pick(&[1, 1, 1, 1, -1, 2]),
                );
                given.push(one);
                vote(&mut batch, &of, one);
            }
        }
        // Several changes may share a batch.
        held += 1;
        if random.below(4) == 0 && change + 1 < CHANGES {
            continue;
        }
        let applied = memory.apply(&mut batch.clone()).unwrap();
        setlists.follow(&memory, applied.deltas(&batch)).unwrap();
        shows.follow(&memory, applied.deltas(&batch)).unwrap();
        let mut store = SqliteStore::new(&conn, &DECAYING);
        if random.below(6) == 0 {
            sql(&conn, "BEGIN");
            store.apply(&mut batch.clone()).unwrap();
            sql(&conn, "ROLLBACK");
        }
        store.apply(&mut batch.clone()).unwrap();
        batch.clear();

        let wanted = sorted_sums((0..).zip(&of_setlists));
        assert!(plain(setlists.top(100).unwrap()) == wanted, "change {change}: setlists in memory");
        assert!(
            plain(store.top(SETLISTS_TRENDING, 100).unwrap()) == wanted,
            "change {change}: setlists in SQLite"
        );
        let wanted = sorted_sums(of_shows.iter().enumerate().map(|(show, sum)| (name(show), sum)));
        assert!(plain(shows.top(100).unwrap()) == wanted, "change {change}: shows in memory");
        assert!(
            plain(store.top(SHOWS_TRENDING, 100).unwrap()) == wanted,
            "change {change}: shows in SQLite"
        );
        if !wanted.is_empty() {
            let line = random.pick(&wanted).clone();
            assert_eq!(one(shows.rank(&line.1).unwrap().line()), Some(line.clone()));
            let found = store.rank(SHOWS_TRENDING, &line.1).unwrap().line().unwrap();
            let rest = store.top_after(SHOWS_TRENDING, &found, 100).unwrap();
            assert_eq!(plain(rest), &wanted[usize::try_from(line.0).unwrap()..]);
            let sum = &of_shows[line.1[5..].parse::<usize>().unwrap()];
            check_value(sum, &found.score, MIN + random.below(i64::from(SPAN)));
            check_value(sum, &found.score, latest);
            let at = random.below(1 << 30) - (1 << 29);
            assert_eq!(
                found.score.at(HALF_LIFE, at, 1_000),
                sum.decayed().at(HALF_LIFE, at, 1_000)
            );
        }
    }
    assert_eq!((held, earliest), (CHANGES, MIN));
    assert!(latest - earliest >= 8_000 && given.len() > 1_000);
    let mut store = SqliteStore::new(&conn, &DECAYING);
    assert_eq!(
        (store.rebuild(SETLISTS_TRENDING).unwrap(), store.rebuild(SHOWS_TRENDING).unwrap()),
        (0, 0)
    );
    // All votes are taken back, in another order: no key is listed.
    for _ in 0..given.len() {
        let (setlist, at, amount) = given.swap_remove(random.below(given.len()));
        batch.add(
            SETLIST_TREND,
            (setlist as i64, HALF_LIFE.epoch(at)),
            -amount * HALF_LIFE.weight(at),
        );
    }
    let applied = memory.apply(&mut batch.clone()).unwrap();
    setlists.follow(&memory, applied.deltas(&batch)).unwrap();
    shows.follow(&memory, applied.deltas(&batch)).unwrap();
    SqliteStore::new(&conn, &DECAYING).apply(&mut batch).unwrap();
    assert!(setlists.is_empty() && shows.is_empty());
    assert_eq!(
        (store.listed(SETLISTS_TRENDING).unwrap(), store.listed(SHOWS_TRENDING).unwrap()),
        (0, 0)
    );
}

#[test]
fn epochs_at_both_ends_of_64_bits_are_ranked_in_order() {
    let conn = database(&DECAYING);
    let mut ranking = MemoryLeaderboard::new(SETLISTS_TRENDING);
    let memory = MemoryStore::new(&DECAYING);
    let mut batch = Batch::new();
    for (setlist, epoch, amount) in [
        (1, i64::MIN, i64::MAX),
        (2, i64::MAX, 1),
        (3, i64::MAX, -1),
        (4, i64::MIN, -1),
        (5, i64::MAX, 1), // less than 2 by a tiny amount
        (5, i64::MIN, -1),
        (6, 0, i64::MIN),
        (7, 1, -(1 << 62)), // ties with 6
        (8, i64::MAX, i64::MAX),
        (8, i64::MAX - 1, i64::MAX),
    ] {
        batch.add(SETLIST_TREND, (setlist, epoch), amount);
    }
    ranking.follow(&memory, memory.apply(&mut batch.clone()).unwrap().deltas(&batch)).unwrap();
    SqliteStore::new(&conn, &DECAYING).apply(&mut batch).unwrap();
    let order = |lines: Vec<Ranked<i64, Decayed>>| {
        lines.into_iter().map(|line| line.key).collect::<Vec<_>>()
    };
    assert_eq!(order(ranking.top(9).unwrap()), [8, 2, 5, 1, 4, 6, 7, 3]);
    assert_eq!(
        order(SqliteStore::new(&conn, &DECAYING).top(SETLISTS_TRENDING, 9).unwrap()),
        [8, 2, 5, 1, 4, 6, 7, 3]
    );
}

// Invalid leaderboards.

#[test]
fn invalid_leaderboards_and_schemas_are_refused() {
    const BY: [Counter<Id>; 3] = [LISTED, UP, DOWN];
    /// Drops the value: only the panic matters.
    fn discard<T>(_: T) {}
    const NUMBERS: Counter<i64> = Counter::new("song.numbers");
    const TWO_ONE_TABLE: &[LeaderboardId] =
        &[SONGS.id(), Leaderboard::<Id>::new("song_board", BY).by(net).id()];
    const TWO_ONE_NAME: &[LeaderboardId] =
        &[SONGS.id(), Leaderboard::<Id>::new("song.board", [UP]).by(unlisted).id()];
    const OF_A_COUNTER: &[LeaderboardId] = &[Leaderboard::<Id>::new("song.up", BY).by(net).id()];
    const OF_A_COUNTERS_TABLE: &[LeaderboardId] =
        &[Leaderboard::<Id>::new("song_up", BY).by(net).id()];
    const RESERVED: &[LeaderboardId] =
        &[Leaderboard::<Id>::new("keepcount.board", BY).by(net).id()];
    const SQLITES: &[LeaderboardId] = &[Leaderboard::<Id>::new("sqlite_board", BY).by(net).id()];
    const ABSENT: &[LeaderboardId] =
        &[Leaderboard::<i64>::new("song.board", [NUMBERS]).by(unlisted).id()];
    const OTHER_VERSION: &[LeaderboardId] =
        &[Leaderboard::<Id>::new("song.board", [UP.version(2)]).by(unlisted).id()];
    const JUST_SONGS: &[LeaderboardId] = &[SONGS.id()];
    const DECAYED_ABSENT: &[LeaderboardId] = &[TRENDING.id()];
    let cases: [(&str, fn(), &str); 15] = [
        (
            "two of a table",
            || discard(Schema::new(SPEC).leaderboards(TWO_ONE_TABLE)),
            "share a table",
        ),
        (
            "two of a name",
            || discard(Schema::new(SPEC).leaderboards(TWO_ONE_NAME)),
            "share a table",
        ),
        (
            "a counter's name",
            || discard(Schema::new(SPEC).leaderboards(OF_A_COUNTER)),
            "share a table",
        ),
        (
            "a counter's table",
            || discard(Schema::new(SPEC).leaderboards(OF_A_COUNTERS_TABLE)),
            "share a table",
        ),
        ("keepcount's own", || discard(Schema::new(SPEC).leaderboards(RESERVED)), "may not start"),
        ("SQLite's own", || discard(Schema::new(SPEC).leaderboards(SQLITES)), "may not start"),
        ("counter absent", || discard(Schema::new(SPEC).leaderboards(ABSENT)), "not in the schema"),
        (
            "counter of another version",
            || discard(Schema::new(SPEC).leaderboards(OTHER_VERSION)),
            "not in the schema",
        ),
        (
            "epochs absent",
            || discard(Schema::new(SPEC).leaderboards(DECAYED_ABSENT)),
            "not in the schema",
        ),
        ("no counter", || discard(Leaderboard::<Id>::new("b", [])), "1 to 8 counters"),
        ("nine counters", || discard(Leaderboard::<Id>::new("b", [UP; 9])), "1 to 8 counters"),
        ("no name", || discard(Leaderboard::<Id>::new("", BY).by(net).id()), "1 to 48"),
        (
            "a name with a space",
            || discard(Leaderboard::<Id>::new("song leaderboard", BY).by(net).id()),
            "consists of",
        ),
        (
            "a long name",
            || {
                discard(
                    Leaderboard::<Id>::new(
                        "a.name.of.more.than.forty-eight.characters.is.none",
                        BY,
                    )
                    .by(net)
                    .id(),
                );
            },
            "1 to 48",
        ),
        (
            "a decayed one",
            || discard(Leaderboard::<String, Decayed>::decayed("Trend", TREND).id()),
            "consists of",
        ),
    ];
    for (case, make, naming) in cases {
        let panic = catch_unwind(make).expect_err(case);
        let said = panic.downcast_ref::<&str>().map_or_else(String::new, |said| (*said).to_owned());
        assert!(said.contains(naming), "{case}: {said:?}");
    }
    assert_eq!(Schema::new(SPEC).leaderboards(JUST_SONGS).leaderboard_ids().len(), 1);
}

/// A store whose schema did not list a leaderboard does not keep its lines. It made the leaderboard
/// ready all the same, and read lines that its own writes had left behind.
#[test]
fn leaderboard_that_the_schema_does_not_list_is_neither_read_nor_rebuilt() {
    const JUST_UP: Leaderboard<Id> = Leaderboard::new("song.board", [UP]).by(unlisted);
    let conn = database(&BARE);
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    let before = dump(&conn, "keepcount_counters");
    for (schema, leaderboard, says) in [
        (&BARE, SONGS, "song.board"),
        (&SCHEMA, SONGS.version(2), "song.board v2"),
        (&SCHEMA, JUST_UP, "leaderboard of song.up"),
    ] {
        let mut store = SqliteStore::new(&conn, schema);
        let errors = [
            store.rebuild(leaderboard).unwrap_err(),
            store.top(leaderboard, 1).unwrap_err(),
            store.rank(leaderboard, (1, "a")).unwrap_err(),
            store.listed(leaderboard).unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(&error, Error::InvalidUse { what: "leaderboard", reason } if reason.contains(says)),
                "{error:?}"
            );
        }
        assert_eq!(dump(&conn, "keepcount_counters"), before);
    }
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    assert!(matches!(store.top(SONGS, 1), Err(Error::NotReady { .. })));
    store.rebuild(SONGS).unwrap();
    let mut batch = Batch::new();
    batch.add(LISTED, (1, "a"), 1);
    SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap();
    let top = store.top(SONGS, 1).unwrap();
    let after = SqliteStore::new(&conn, &BARE).top_after(SONGS, &top[0], 1).unwrap_err();
    assert!(matches!(after, Error::InvalidUse { what: "leaderboard", .. }), "{after:?}");
}

#[test]
fn rebuild_of_a_leaderboard_that_the_catalogue_lacks_is_an_error() {
    let conn = database(&SCHEMA);
    sql(&conn, "DELETE FROM keepcount_counters WHERE name = 'song.board'");
    let error = SqliteStore::new(&conn, &SCHEMA).rebuild(SONGS).unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, reason } if table == "song_board" && reason.contains("not in the catalogue")),
        "{error:?}"
    );
}

#[test]
fn leaderboard_missing_from_the_database_is_an_error_that_names_it() {
    let conn = database(&BARE);
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let mut batch = Batch::new();
    batch.add(UP, (1, "a"), 1);
    let errors = [
        store.top(SONGS, 1).unwrap_err(),
        store.rank(SONGS, (1, "a")).unwrap_err(),
        store.rebuild(SONGS).unwrap_err(),
        store.listed(SONGS).unwrap_err(),
        SqliteStore::new(&conn, &SCHEMA).apply(&mut batch).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(&error, Error::SchemaMismatch { table, .. } if table == "song_board"),
            "{error:?}"
        );
    }
    assert_eq!(SqliteStore::new(&conn, &BARE).total(UP, (1, "a")).unwrap(), 0);
    assert!(conn.is_autocommit());
}
