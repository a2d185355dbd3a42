//! Every way in which an application writes rows, on SQLite with the ready-made concert counters: totals stay exact, and no statement
//! is run that is not needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use common::{Kinds, Trace, run_whole};
use keepcount::concert::{Concert, Setlist, Show, Status, Vote};
use keepcount::reconcile::{Mode, Options, Source, SqliteAudit};
use keepcount::{Applied, Batch, Counter, Def, Error, Layout, MemoryStore, Next, Record, SqliteStore, Store, Tally};
use rusqlite::{Connection, OptionalExtension, Row};
use tempfile::TempDir;

type C = Concert<i64>;

const TABLES: &str = "
    CREATE TABLE artists (id INTEGER PRIMARY KEY);
    CREATE TABLE shows (id INTEGER PRIMARY KEY, artist INTEGER REFERENCES artists, status TEXT NOT NULL, title TEXT);
    CREATE INDEX shows_by_artist ON shows (artist);
    CREATE TABLE setlists (id INTEGER PRIMARY KEY, show INTEGER REFERENCES shows);
    CREATE INDEX setlists_by_show ON setlists (show);
    CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER REFERENCES setlists, user INTEGER, up INTEGER NOT NULL);
    CREATE INDEX votes_by_setlist ON votes (setlist);
";

/// Each counter once more, in plain SQL that knows nothing of the crate.
const RECOUNTS: [(&str, &str); 7] = [
    ("artist_shows", "SELECT artist, 1 FROM shows WHERE artist IS NOT NULL"),
    ("artist_upcoming_shows", "SELECT artist, 1 FROM shows WHERE artist IS NOT NULL AND status = 'upcoming'"),
    ("show_setlists", "SELECT show, 1 FROM setlists WHERE show IS NOT NULL"),
    ("setlist_votes", "SELECT setlist, 1 FROM votes WHERE setlist IS NOT NULL"),
    ("setlist_upvotes", "SELECT setlist, 1 FROM votes WHERE setlist IS NOT NULL AND up"),
    ("setlist_score", "SELECT setlist, iif(up, 1, -1) FROM votes WHERE setlist IS NOT NULL"),
    ("user_votes", "SELECT user, 1 FROM votes WHERE user IS NOT NULL"),
];

fn open(path: &PathBuf) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(20)).unwrap();
    prepared(conn)
}

fn prepared(conn: Connection) -> Connection {
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    conn
}

fn tables(conn: &Connection) {
    conn.execute_batch(TABLES).unwrap();
    store(conn).create().unwrap();
}

fn database() -> Connection {
    let conn = prepared(Connection::open_in_memory().unwrap());
    tables(&conn);
    conn
}

fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let conn = open(&path);
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    tables(&conn);
    drop(conn);
    (dir, path)
}

fn store(conn: &Connection) -> SqliteStore<'_> {
    SqliteStore::new(conn, &C::LAYOUT)
}

/// What differs between totals and rows.
fn drift(conn: &Connection) -> Vec<String> {
    let differing = |(table, rows): &(&str, &str)| {
        let text = format!(
            "SELECT '{table} of ' || key || ' is off by ' || sum(n) FROM
             (SELECT key, total AS n FROM {table} UNION ALL SELECT column1, -column2 FROM
              (SELECT NULL AS column1, NULL AS column2 WHERE 0 UNION ALL {rows}))
             GROUP BY key HAVING sum(n) <> 0"
        );
        let mut statement = conn.prepare(&text).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().collect::<rusqlite::Result<Vec<String>>>().unwrap()
    };
    RECOUNTS.iter().flat_map(differing).collect()
}

#[track_caller]
fn exact(conn: &Connection) {
    assert_eq!(drift(conn), Vec::<String>::new());
}

fn total(conn: &Connection, counter: Counter<i64>, key: i64) -> i64 {
    store(conn).total(counter, key).unwrap()
}

/// A transaction of the application: its writes, then apply as its last statement.
fn write(conn: &Connection, writes: impl FnOnce(&mut Batch)) -> Applied {
    let mut batch = Batch::new();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    writes(&mut batch);
    let applied = store(conn).apply(&batch).unwrap();
    conn.execute_batch("COMMIT").unwrap();
    applied
}

type ShowRow = (Option<i64>, String);
type VoteRow = (Option<i64>, Option<i64>, bool);

fn show(row: &ShowRow) -> Show<i64> {
    Show::new(row.0, row.1.parse().unwrap())
}

fn vote(row: VoteRow) -> Vote<i64> {
    Vote::new(row.0, row.1, row.2)
}

fn read_vote(row: &Row<'_>) -> rusqlite::Result<VoteRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn insert_show(conn: &Connection, batch: &mut Batch, id: i64, artist: Option<i64>, status: Status) {
    conn.execute("INSERT INTO shows VALUES (?1, ?2, ?3, '')", (id, artist, status.as_str())).unwrap();
    batch.insert(&Show::new(artist, status));
}

fn insert_setlist(conn: &Connection, batch: &mut Batch, id: i64, of: Option<i64>) {
    conn.execute("INSERT INTO setlists VALUES (?1, ?2)", (id, of)).unwrap();
    batch.insert(&Setlist::new(of));
}

fn insert_vote(conn: &Connection, batch: &mut Batch, id: i64, row: VoteRow) {
    conn.execute("INSERT INTO votes VALUES (?1, ?2, ?3, ?4)", (id, row.0, row.1, row.2)).unwrap();
    batch.insert(&vote(row));
}

fn update_show(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let old: ShowRow = conn.query_row("SELECT artist, status FROM shows WHERE id = ?1", [id], read).unwrap();
    let text = format!("UPDATE shows SET {set} WHERE id = ?1 RETURNING artist, status");
    let new: ShowRow = conn.query_row(&text, [id], read).unwrap();
    batch.update(&show(&old), &show(&new));
}

fn update_vote(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let old = conn.query_row("SELECT setlist, user, up FROM votes WHERE id = ?1", [id], read_vote).unwrap();
    let text = format!("UPDATE votes SET {set} WHERE id = ?1 RETURNING setlist, user, up");
    let new = conn.query_row(&text, [id], read_vote).unwrap();
    batch.update(&vote(old), &vote(new));
}

/// Whether there was such a vote.
fn delete_vote(conn: &Connection, batch: &mut Batch, id: i64) -> bool {
    let text = "DELETE FROM votes WHERE id = ?1 RETURNING setlist, user, up";
    let gone = conn.query_row(text, [id], read_vote).optional().unwrap();
    batch.delete(&gone.map(vote));
    gone.is_some()
}

/// Two artists, a show of each, two setlists of the first show, three votes.
fn fill(conn: &Connection) {
    write(conn, |batch| {
        conn.execute_batch("INSERT INTO artists VALUES (1), (2)").unwrap();
        insert_show(conn, batch, 10, Some(1), Status::Upcoming);
        insert_show(conn, batch, 11, Some(2), Status::Completed);
        insert_setlist(conn, batch, 100, Some(10));
        insert_setlist(conn, batch, 101, Some(10));
        insert_vote(conn, batch, 1, (Some(100), Some(7), true));
        insert_vote(conn, batch, 2, (Some(100), Some(8), false));
        insert_vote(conn, batch, 3, (Some(101), Some(7), true));
    });
    exact(conn);
}

#[test]
fn inserts_and_deletes_count_up_and_down() {
    let conn = database();
    fill(&conn);
    assert_eq!(total(&conn, C::SETLIST_VOTES, 100), 2);
    assert_eq!(total(&conn, C::SETLIST_SCORE, 100), 0);
    assert_eq!(total(&conn, C::ARTIST_UPCOMING_SHOWS, 2), 0);
    for id in [3, 2, 1] {
        write(&conn, |batch| assert!(delete_vote(&conn, batch, id)));
        exact(&conn);
    }
    assert_eq!(store(&conn).totals(C::USER_VOTES).unwrap(), []);
    assert_eq!(total(&conn, C::SHOW_SETLISTS, 10), 2);
}

#[test]
fn an_update_of_any_column_moves_what_it_must() {
    for set in [
        "artist = 2",
        "status = 'completed'",
        "status = 'cancelled'",
        "artist = NULL",
        // Condition and parent in one update, both ways.
        "artist = 2, status = 'completed'",
        "artist = NULL, status = 'cancelled'",
        "id = 99",
        "artist = 2, title = 'x'",
    ] {
        for show in [10, 11] {
            let conn = database();
            conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            fill(&conn);
            write(&conn, |batch| update_show(&conn, batch, show, set));
            exact(&conn);
        }
    }
    for set in ["up = 1 - up", "setlist = 101", "user = 9", "setlist = 101, user = 9, up = 1 - up", "id = 50"] {
        for id in [1, 2, 3] {
            let conn = database();
            fill(&conn);
            write(&conn, |batch| update_vote(&conn, batch, id, set));
            exact(&conn);
        }
    }
}

#[test]
fn condition_and_parent_change_in_one_update() {
    let conn = database();
    fill(&conn);
    let applied = write(&conn, |batch| update_show(&conn, batch, 10, "artist = 2, status = 'completed'"));
    // Shows of both artists, and the upcoming shows of the old one only.
    assert_eq!(applied, Applied::new(3, 3));
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_SHOWS, artist)), [0, 2]);
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_UPCOMING_SHOWS, artist)), [0, 0]);
    let applied = write(&conn, |batch| update_show(&conn, batch, 10, "artist = 1, status = 'upcoming'"));
    assert_eq!(applied, Applied::new(3, 3));
    exact(&conn);
}

#[test]
fn a_parent_may_come_from_null_and_go_to_null() {
    let conn = database();
    fill(&conn);
    let applied = write(&conn, |batch| insert_vote(&conn, batch, 4, (None, None, true)));
    assert_eq!(applied, Applied::default(), "a vote on nothing of nobody");
    for (set, totals) in [
        ("setlist = 101", 3),
        ("user = 7", 1),
        ("setlist = NULL, up = 0", 3),
        ("setlist = 100, user = NULL", 3),
        ("setlist = NULL", 2), // it is a vote down
        ("user = 8", 1),
    ] {
        let applied = write(&conn, |batch| update_vote(&conn, batch, 4, set));
        assert_eq!(applied.totals, totals, "{set}");
        exact(&conn);
    }
    write(&conn, |batch| update_show(&conn, batch, 10, "artist = NULL"));
    exact(&conn);
    assert_eq!(total(&conn, C::ARTIST_SHOWS, 1), 0);
    write(&conn, |batch| update_show(&conn, batch, 10, "artist = 2"));
    exact(&conn);
}

#[test]
fn a_cascade_writes_one_total_for_each_counter_of_the_dead_and_none_for_each_child() {
    let mut conn = database();
    let trace = Trace::on(&mut conn);
    let votes = 300;
    write(&conn, |batch| {
        conn.execute_batch("INSERT INTO artists VALUES (1)").unwrap();
        insert_show(&conn, batch, 10, Some(1), Status::Upcoming);
        insert_setlist(&conn, batch, 100, Some(10));
        insert_setlist(&conn, batch, 101, Some(10));
        for id in 0..votes {
            insert_vote(&conn, batch, id, (Some(100 + id % 2), Some(id % 3), id % 5 > 0));
        }
    });
    exact(&conn);
    trace.take();
    let applied = write(&conn, |batch| {
        // The parent is locked by BEGIN IMMEDIATE; then children first, each delete saying what it removed.
        let mut gone = 0;
        let mut delete = conn
            .prepare(
                "DELETE FROM votes WHERE setlist IN (SELECT id FROM setlists WHERE show = 10) RETURNING setlist, user, up",
            )
            .unwrap();
        for row in delete.query_map((), read_vote).unwrap() {
            batch.delete(&vote(row.unwrap()));
            gone += 1;
        }
        assert_eq!(gone, votes);
        let mut delete = conn.prepare("DELETE FROM setlists WHERE show = 10 RETURNING show").unwrap();
        for row in delete.query_map((), |row| row.get(0)).unwrap() {
            batch.delete(&Setlist::<i64>::new(row.unwrap()));
        }
        let gone: ShowRow = conn
            .query_row("DELETE FROM shows WHERE id = 10 RETURNING artist, status", (), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        batch.delete(&show(&gone));
    });
    // Three counters of each of two setlists, one of the show, two of the artist, one of each of three users.
    assert_eq!(applied, Applied::new(12, 12));
    // Beside the application's three deletes.
    assert_eq!(trace.kinds().writes, 12 + 3);
    exact(&conn);
    for (table, _) in RECOUNTS {
        let left = format!("SELECT count(*) FROM {table} WHERE total <> 0");
        assert_eq!(conn.query_row(&left, (), |row| row.get(0)), Ok(0), "{table}");
    }
}

#[test]
fn one_row_deleted_by_two_connections_counts_once() {
    let (_dir, path) = file();
    let conn = open(&path);
    fill(&conn);
    write(&conn, |batch| (0..40).for_each(|id| insert_vote(&conn, batch, 1000 + id, (Some(101), Some(id % 5), true))));
    let worker = || {
        let conn = open(&path);
        (0..40)
            .filter(|id| {
                let mut found = false;
                let applied = write(&conn, |batch| found = delete_vote(&conn, batch, 1000 + id));
                assert_eq!(applied.totals, if found { 4 } else { 0 });
                found
            })
            .count()
    };
    let deleted: usize = thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(deleted, 40);
    exact(&conn);
    assert_eq!(total(&conn, C::SETLIST_VOTES, 101), 1);

    // One after the other, so that it is certain that both tried.
    let other = open(&path);
    write(&conn, |batch| assert!(delete_vote(&conn, batch, 3)));
    write(&other, |batch| assert!(!delete_vote(&other, batch, 3)));
    exact(&other);
    assert_eq!(total(&other, C::SETLIST_VOTES, 101), 0);
}

/// Runs no statement at all on a total: SQLite's own trace says so.
#[track_caller]
fn touches_no_total(conn: &mut Connection, batch: &Batch) {
    let changes = conn.total_changes();
    let trace = Trace::on(conn);
    assert!(batch.is_empty());
    assert_eq!(store(conn).apply(batch).unwrap(), Applied::default());
    assert_eq!(trace.take(), Vec::<String>::new());
    assert_eq!(conn.total_changes(), changes);
}

#[test]
fn an_update_of_what_nobody_counts_runs_no_statement() {
    let mut conn = database();
    fill(&conn);
    for set in ["title = 'encore'", "artist = 1", "id = id", "title = NULL, status = 'upcoming'"] {
        let mut batch = Batch::new();
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        update_show(&conn, &mut batch, 10, set);
        touches_no_total(&mut conn, &batch);
        conn.execute_batch("COMMIT").unwrap();
        exact(&conn);
    }
    // Completed to cancelled: neither is counted.
    let mut batch = Batch::new();
    update_show(&conn, &mut batch, 11, "status = 'cancelled'");
    touches_no_total(&mut conn, &batch);
}

#[test]
fn plus_one_and_minus_one_in_one_transaction_run_no_statement() {
    let mut conn = database();
    fill(&conn);
    let mut batch = Batch::new();
    insert_vote(&conn, &mut batch, 4, (Some(100), Some(7), false));
    assert!(delete_vote(&conn, &mut batch, 4));
    touches_no_total(&mut conn, &batch);

    // A move, and back again.
    let mut batch = Batch::new();
    update_vote(&conn, &mut batch, 1, "setlist = 101, up = 0");
    update_vote(&conn, &mut batch, 1, "setlist = 100, up = 1");
    touches_no_total(&mut conn, &batch);
    exact(&conn);
}

/// Not even a lock: another connection holds it meanwhile.
#[test]
fn an_empty_batch_waits_for_nobody() {
    let (_dir, path) = file();
    let (conn, writer) = (open(&path), open(&path));
    conn.busy_timeout(Duration::ZERO).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store(&conn).apply(&Batch::new()).unwrap(), Applied::default());
    let mut one = Batch::new();
    one.add(C::USER_VOTES, 7, 1);
    assert_eq!(store(&conn).apply(&one).unwrap_err().next(), Next::Retry);
}

#[test]
fn a_rollback_takes_rows_and_totals_back_together() {
    let conn = database();
    fill(&conn);
    let before = store(&conn).totals(C::SETLIST_VOTES).unwrap();
    let mut batch = Batch::new();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    insert_vote(&conn, &mut batch, 4, (Some(100), Some(7), true));
    assert!(delete_vote(&conn, &mut batch, 3));
    assert_eq!(store(&conn).apply(&batch).unwrap().totals, 6);
    exact(&conn);
    conn.execute_batch("ROLLBACK").unwrap();
    exact(&conn);
    assert_eq!(store(&conn).totals(C::SETLIST_VOTES).unwrap(), before);
}

#[test]
fn a_savepoint_has_a_batch_of_its_own_dropped_with_it_or_merged() {
    for release in [false, true] {
        for early in [false, true] {
            let conn = database();
            fill(&conn);
            write(&conn, |batch| {
                insert_vote(&conn, batch, 4, (Some(100), Some(7), true));
                conn.execute_batch("SAVEPOINT trial").unwrap();
                let mut trial = Batch::new();
                assert!(delete_vote(&conn, &mut trial, 4));
                insert_vote(&conn, &mut trial, 5, (Some(101), Some(9), false));
                if early {
                    store(&conn).apply(&trial).unwrap();
                }
                if release {
                    conn.execute_batch("RELEASE trial").unwrap();
                    if !early {
                        batch.merge(&trial);
                    }
                } else {
                    conn.execute_batch("ROLLBACK TO trial; RELEASE trial").unwrap();
                }
            });
            exact(&conn);
            assert_eq!(total(&conn, C::SETLIST_VOTES, 100), if release { 2 } else { 3 });
            assert_eq!(total(&conn, C::USER_VOTES, 9), i64::from(release));
        }
    }
}

#[test]
fn apply_leaves_the_last_insert_rowid_alone() {
    let conn = database();
    fill(&conn);
    let mut batch = Batch::new();
    insert_vote(&conn, &mut batch, 4711, (Some(100), Some(5), true));
    assert_eq!(conn.last_insert_rowid(), 4711);
    store(&conn).apply(&batch).unwrap();
    assert_eq!(conn.last_insert_rowid(), 4711, "several totals, some of them new");
    let mut one = Batch::new();
    one.add(C::USER_VOTES, 99, 1);
    store(&conn).apply(&one).unwrap();
    assert_eq!(conn.last_insert_rowid(), 4711, "one new total");
}

#[test]
fn several_records_of_one_transaction_write_each_total_once() {
    let mut conn = database();
    fill(&conn);
    let trace = Trace::on(&mut conn);
    let mut batch = Batch::new();
    for at in 0..500_i64 {
        batch.insert(&Vote::new(Some(200 + at % 4), Some(at % 5), at % 2 == 0));
        batch.insert(&Setlist::new(Some(10 + at % 3)));
    }
    // Setlists 200 and 202 have votes up only, whose score and upvotes are both not 0; 201 and 203 have no upvotes.
    let keys = 4 + 2 + 4 + 5 + 3;
    assert_eq!(batch.len(), keys);
    let distinct = Applied::new(keys as u64, keys as u64);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    trace.take();
    assert_eq!(store(&conn).apply(&batch).unwrap(), distinct);
    assert_eq!(trace.kinds(), Kinds { writes: keys, ..Kinds::default() }, "in a transaction: the writes, nothing else");
    conn.execute_batch("ROLLBACK").unwrap();
    trace.take();

    assert_eq!(store(&conn).apply(&batch).unwrap(), distinct);
    let own = |writes| Kinds { writes, reads: 0, others: vec!["BEGIN IMMEDIATE".into(), "COMMIT".into()] };
    assert_eq!(trace.kinds(), own(keys), "outside one: one of its own");

    let mut one = Batch::new();
    one.add(C::USER_VOTES, 1, 1);
    one.add(C::USER_VOTES, 1, 1);
    assert_eq!(store(&conn).apply(&one).unwrap(), Applied::new(1, 1));
    assert_eq!(trace.kinds(), own(1));
}

/// In the layout's order, and in key order: so that two writers on a server's tables never wait for each other in a circle.
#[test]
fn totals_are_written_in_layout_and_key_order() {
    let mut conn = database();
    let trace = Trace::on(&mut conn);
    let mut batch = Batch::new();
    for user in [9, -3, 4, i64::MIN, 0] {
        batch.insert(&Vote::new(Some(-user.saturating_add(1)), Some(user), user > 0));
        batch.insert(&Show::new(Some(user), Status::Upcoming));
    }
    store(&conn).apply(&batch).unwrap();
    let tables: Vec<String> = trace
        .take()
        .iter()
        .filter(|text| text.starts_with("INSERT"))
        .map(|text| text.split('"').nth(1).unwrap().to_owned())
        .collect();
    let layout: Vec<String> = C::LAYOUT.counters().iter().map(keepcount::Placed::table_name).collect();
    let positions: Vec<usize> = tables.iter().map(|table| layout.iter().position(|t| t == table).unwrap()).collect();
    assert!(positions.is_sorted() && positions.len() == batch.len(), "{tables:?}");
    let statements = keepcount::sql::apply(keepcount::sql::Dialect::Sqlite, &C::LAYOUT, &batch).unwrap();
    for statement in &statements {
        let keys: Vec<i64> = statement
            .rows()
            .map(|row| match row[0] {
                keepcount::sql::Value::Integer(key) => key,
                ref other => panic!("{other:?}"),
            })
            .collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}

// Overflow.

const FIRST: Counter<i64> = Counter::new("a.first");
const MIDDLE: Counter<(i64, String)> = Counter::new("b.middle");
const LAST: Counter<i64> = Counter::new("c.last");
const THREE: Layout = Layout::new(&[FIRST.table(), MIDDLE.table(), LAST.table()]);

fn three() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    SqliteStore::new(&conn, &THREE).create().unwrap();
    conn
}

type All = (Vec<(i64, i64)>, Vec<((i64, String), i64)>, Vec<(i64, i64)>);

fn all(conn: &Connection) -> All {
    let mut store = SqliteStore::new(conn, &THREE);
    (store.totals(FIRST).unwrap(), store.totals(MIDDLE).unwrap(), store.totals(LAST).unwrap())
}

#[track_caller]
fn assert_overflow(error: &Error, wanted_counter: Counter<impl keepcount::Key>, wanted_key: &str, wanted_what: &str) {
    match error {
        Error::Overflow { counter, key, what } => {
            assert_eq!((*counter, key.as_str(), *what), (wanted_counter.def().name(), wanted_key, wanted_what));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.next(), Next::Fix);
    let text = error.to_string();
    assert!(text.contains(wanted_counter.def().name()) && text.contains(wanted_key), "{text}");
}

/// The same batch, refused in a transaction that goes on and commits, and outside one.
fn refused(stored: i64, delta: i64, before_it: &[(i64, i64)]) {
    for in_transaction in [true, false] {
        let conn = three();
        let mut start = Batch::new();
        start.add(MIDDLE, (5, "e"), stored);
        for (key, delta) in before_it {
            start.add(FIRST, key, if *delta < 0 { i64::MAX } else { 3 });
        }
        SqliteStore::new(&conn, &THREE).apply(&start).unwrap();
        let before = all(&conn);

        let mut batch = Batch::new();
        batch.add(LAST, 1, 1);
        batch.add(MIDDLE, (9, "z"), 1);
        batch.add(MIDDLE, (5, "e"), delta);
        batch.add(MIDDLE, (1, "a"), 1);
        for (key, delta) in before_it {
            batch.add(FIRST, key, *delta);
        }
        if in_transaction {
            conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO notes VALUES (1, 'kept')").unwrap();
        }
        let error = SqliteStore::new(&conn, &THREE).apply(&batch).unwrap_err();
        assert_overflow(&error, MIDDLE, "5,e", "total");
        assert_eq!(all(&conn), before, "{stored} {delta} {before_it:?}");
        assert_eq!(conn.is_autocommit(), !in_transaction);
        if in_transaction {
            let mut fits = Batch::new();
            fits.add(MIDDLE, (5, "e"), -delta.signum());
            SqliteStore::new(&conn, &THREE).apply(&fits).unwrap();
            conn.execute_batch("COMMIT").unwrap();
            assert_eq!(conn.query_row("SELECT text FROM notes", (), |row| row.get(0)), Ok("kept".to_owned()));
            let moved = SqliteStore::new(&conn, &THREE).total(MIDDLE, (5, "e")).unwrap();
            assert_eq!(moved, stored - delta.signum());
        }
    }
}

#[test]
fn a_total_beyond_64_bits_is_refused_with_the_whole_batch_and_the_transaction_goes_on() {
    for (stored, delta) in [
        (i64::MAX, 1),
        (i64::MAX, i64::MAX),
        (1, i64::MAX),
        (i64::MIN, -1),
        (i64::MIN, i64::MIN),
        (-1, i64::MIN),
        (i64::MIN + 4, -5),
    ] {
        refused(stored, delta, &[]);
        refused(stored, delta, &[(1, 1), (2, -7)]);
        // A delta without an opposite of 64 bits, done before the one that fails.
        refused(stored, delta, &[(1, i64::MIN), (2, i64::MAX - 3), (3, 1)]);
    }
}

#[test]
fn in_memory_too_a_total_beyond_64_bits_is_refused_with_the_whole_batch() {
    for (stored, delta) in [(i64::MAX, 1), (i64::MIN, -1), (-1, i64::MIN), (1, i64::MAX)] {
        let mut store = MemoryStore::new(&THREE);
        let mut start = Batch::new();
        start.add(MIDDLE, (5, "e"), stored);
        start.add(FIRST, 2, i64::MAX);
        store.apply(&start).unwrap();
        let mut batch = Batch::new();
        for (key, delta) in [(1, i64::MIN), (2, -7), (3, i64::MAX)] {
            batch.add(FIRST, key, delta);
        }
        batch.add(MIDDLE, (5, "e"), delta);
        batch.add(LAST, 1, 1);
        assert_overflow(&store.apply(&batch).unwrap_err(), MIDDLE, "5,e", "total");
        assert_eq!(Store::totals(&mut store, FIRST).unwrap(), [(2, i64::MAX)]);
        assert_eq!(Store::totals(&mut store, MIDDLE).unwrap(), [((5, "e".to_owned()), stored)]);
        assert_eq!(Store::totals(&mut store, LAST).unwrap(), []);
    }
}

/// Each of these fits alone; their sum does not.
#[test]
fn a_coalesced_delta_beyond_64_bits_is_refused_before_anything_is_written() {
    for amounts in [[i64::MAX, 1], [i64::MIN, -1], [i64::MIN, i64::MIN]] {
        let mut conn = three();
        let mut batch = Batch::new();
        batch.add(FIRST, 1, 1);
        for amount in amounts {
            batch.add(MIDDLE, (5, "e\t"), amount);
        }
        let trace = Trace::on(&mut conn);
        let error = SqliteStore::new(&conn, &THREE).apply(&batch).unwrap_err();
        assert_overflow(&error, MIDDLE, "5,e\\t", "delta");
        assert_eq!(trace.take(), Vec::<String>::new());
        assert_eq!(all(&conn), All::default());
    }
    // And back again before it is applied.
    let conn = three();
    let mut batch = Batch::new();
    for amount in [i64::MAX, i64::MAX, -i64::MAX] {
        batch.add(LAST, 1, amount);
    }
    SqliteStore::new(&conn, &THREE).apply(&batch).unwrap();
    assert_eq!(SqliteStore::new(&conn, &THREE).total(LAST, 1).unwrap(), i64::MAX);
}

#[test]
fn totals_reach_both_ends_of_64_bits_and_come_back() {
    let conn = three();
    for (delta, total) in [(i64::MAX, i64::MAX), (i64::MIN, -1), (i64::MIN + 1, i64::MIN), (i64::MAX, -1), (1, 0)] {
        let mut batch = Batch::new();
        batch.add(LAST, 1, delta);
        batch.add(FIRST, 1, 1);
        SqliteStore::new(&conn, &THREE).apply(&batch).unwrap();
        assert_eq!(SqliteStore::new(&conn, &THREE).total(LAST, 1).unwrap(), total);
    }
}

/// Outside a transaction of the caller's, a batch is one of its own: whole or not at all, also for other connections.
#[test]
fn apply_outside_a_transaction_is_atomic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let conn = Connection::open(&path).unwrap();
    SqliteStore::new(&conn, &THREE).create().unwrap();
    let mut batch = Batch::new();
    (0..50).for_each(|key| batch.add(FIRST, key, 1));
    (0..50).for_each(|key| batch.add(LAST, key, -1));
    SqliteStore::new(&conn, &THREE).apply(&batch).unwrap();
    assert!(conn.is_autocommit());
    let before = all(&conn);
    batch.add(LAST, 49, i64::MIN + 1);
    assert!(SqliteStore::new(&conn, &THREE).apply(&batch).is_err());
    assert!(conn.is_autocommit());
    drop(conn);
    assert_eq!(all(&Connection::open(&path).unwrap()), before);
}

struct Payment(i64, i64);

impl Record for Payment {
    const COUNTERS: &'static [Def] = &[FIRST.def()];

    fn tally(&self, to: &mut Tally<'_>) {
        to.add(FIRST, self.0, self.1);
    }
}

#[test]
fn totals_below_zero_are_kept_and_reported_where_they_are_wrong() {
    let conn = three();
    conn.execute_batch(
        "CREATE TABLE payments (account INTEGER, cents INTEGER); CREATE INDEX by_account ON payments (account)",
    )
    .unwrap();
    let mut batch = Batch::new();
    for payment in [Payment(1, -30), Payment(1, 5), Payment(2, 8)] {
        conn.execute("INSERT INTO payments VALUES (?1, ?2)", (payment.0, payment.1)).unwrap();
        batch.insert(&payment);
    }
    // A delete whose insert was never counted.
    batch.delete(&Payment(3, 4));
    batch.delete(&Payment(2, 10));
    SqliteStore::new(&conn, &THREE).apply(&batch).unwrap();
    assert_eq!(all(&conn).0, [(1, -25), (2, -2), (3, -4)]);

    let mut audit = SqliteAudit::new(&conn, &THREE).unwrap();
    let read = |row: &Row<'_>| Ok(Payment(row.get(0)?, row.get(1)?));
    let source = Source::table("payments", ["account"]).amount("cents");
    audit.add(FIRST, source.rows("account, cents", read)).unwrap();
    audit.add(MIDDLE, Source::query("SELECT 1 AS a, '' AS b WHERE 0", ["a", "b"]).rows("a", |_| Ok(Nothing))).unwrap();
    audit.add(LAST, Source::query("SELECT 1 AS a WHERE 0", ["a"]).rows("a", |_| Ok(Nothing))).unwrap();
    let report = run_whole(Mode::Verify, &THREE, Options::default(), &mut audit).unwrap();
    let first = &report.counters[0];
    assert_eq!((first.keys, first.wrong, first.missing, first.orphan), (3, 1, 0, 1), "{}", report.table());
    let samples: Vec<(i64, i64)> = first.samples.iter().map(|sample| (sample.stored, sample.truth)).collect();
    assert_eq!(samples, [(-2, 8), (-4, 0)]);
    assert_eq!(all(&conn).0, [(1, -25), (2, -2), (3, -4)], "nothing is clamped");
    run_whole(Mode::Repair, &THREE, Options::default(), &mut audit).unwrap();
    assert_eq!(all(&conn).0, [(1, -25), (2, 8)]);
}

/// Drives the two counters that have no rows here.
struct Nothing;

impl Record for Nothing {
    const COUNTERS: &'static [Def] = &[MIDDLE.def(), LAST.def()];

    fn tally(&self, _: &mut Tally<'_>) {}
}
