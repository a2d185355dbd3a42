//! Every way in which an application writes rows, on SQLite with the ready-made concert counters.
//! Totals stay exact, and no unnecessary statement runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::support::world::{Kinds, Trace, run_whole};
use keepcount::backend::RollupUpdate;
use keepcount::concert::{Artist, Concert, Decaying, Setlist, Show, Status, Trend, Trends, Vote};
use keepcount::reconcile::{Columns, Mode, Options, SqliteAudit, SqliteRows};
use keepcount::sql::{Dialect, Value};
use keepcount::{
    Applied, Batch, Counter, CounterId, Date, Error, HalfLife, Key, MemoryStore, Record, Recovery,
    Schema, SqliteStore, Store, StreamRange, Tally,
};
use rusqlite::{Connection, OptionalExtension, Row};
use tempfile::TempDir;

type C = Concert<i64, HalfLives>;

/// More half-lives than the one of the default.
struct HalfLives;

impl<K: Key> Trends<K> for HalfLives {
    const TRENDS: &'static [Trend<K>] = &[Trend::HOURS_6, Trend::DAY, Trend::WEEK];
}

const TABLES: &str = "
    CREATE TABLE artists (id INTEGER PRIMARY KEY, followers INTEGER NOT NULL, popularity INTEGER NOT NULL, name TEXT);
    CREATE TABLE shows (id INTEGER PRIMARY KEY, artist INTEGER REFERENCES artists, status TEXT NOT NULL, date TEXT NOT NULL, title TEXT);
    CREATE INDEX shows_by_artist ON shows (artist);
    CREATE TABLE setlists (id INTEGER PRIMARY KEY, show INTEGER REFERENCES shows);
    CREATE INDEX setlists_by_show ON setlists (show);
    CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER REFERENCES setlists, user INTEGER, up INTEGER NOT NULL, at INTEGER NOT NULL);
    CREATE INDEX votes_by_setlist ON votes (setlist);
";

/// A recount of each counter in plain SQL, independent of the crate: its table, and a query of each
/// row's key and amount. A row whose key has a null part does not count.
const RECOUNTS: [(&str, &str); 15] = [
    ("artist_listed", "SELECT id, 1 FROM artists"),
    ("artist_fame", "SELECT id, followers / 1000000 + popularity / 10 FROM artists"),
    ("artist_shows", "SELECT artist, 1 FROM shows"),
    ("artist_upcoming_shows", "SELECT artist, 1 FROM shows WHERE status = 'upcoming'"),
    ("artist_shows_ahead", "SELECT artist, date, 1 FROM shows"),
    ("show_upcoming", "SELECT date, id, 1 FROM shows WHERE status = 'upcoming'"),
    ("show_artist", "SELECT id, artist, 1 FROM shows"),
    ("show_setlists", "SELECT show, 1 FROM setlists"),
    ("setlist_show", "SELECT id, show, 1 FROM setlists"),
    ("setlist_votes", "SELECT setlist, 1 FROM votes"),
    ("setlist_upvotes", "SELECT setlist, 1 FROM votes WHERE up"),
    ("setlist_score", "SELECT setlist, iif(up, 1, -1) FROM votes"),
    ("user_votes", "SELECT user, 1 FROM votes"),
    ("show_votes", "SELECT show, 1 FROM votes JOIN setlists ON setlists.id = setlist"),
    (
        "artist_votes",
        "SELECT artist, 1 FROM votes JOIN setlists ON setlists.id = setlist JOIN shows ON shows.id = show",
    ),
];

/// Decayed votes: the key and the time of each vote, at each level. Amounts are summed in Rust,
/// since SQL has no powers of two.
const TRENDS: [(&str, &str); 3] = [
    ("setlist_trend", "SELECT setlist, at FROM votes"),
    ("show_trend", "SELECT show, at FROM votes JOIN setlists ON setlists.id = setlist"),
    (
        "artist_trend",
        "SELECT artist, at FROM votes JOIN setlists ON setlists.id = setlist JOIN shows ON shows.id = show",
    ),
];

const HALF_LIVES: [(&str, HalfLife); 3] =
    [("6h", HalfLife::hours(6)), ("1d", HalfLife::days(1)), ("7d", HalfLife::days(7))];

/// The time at which the tests' votes are given, and the time that `Vote::new` takes for now.
const AT: i64 = 1_750_000_000;
const NOW: i64 = AT + 40 * 86_400;
/// The first second of a week after `AT`. A day and an epoch of six hours begin there too.
const AT_WEEK: i64 = 2_894 * 7 * 86_400;

fn open(path: &PathBuf) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(20)).unwrap();
    prepared(conn)
}

fn prepared(conn: Connection) -> Connection {
    conn.set_prepared_statement_cache_capacity(512);
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
    let dir = crate::support::temp_dir();
    let path = dir.path().join("app.db");
    let conn = open(&path);
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    tables(&conn);
    drop(conn);
    (dir, path)
}

fn store(conn: &Connection) -> SqliteStore<'_> {
    SqliteStore::new(conn, &C::SCHEMA)
}

type Totals = BTreeMap<Vec<String>, i128>;

/// The sums of a query's rows. The last column is the amount, the columns before it are the key.
fn sums(conn: &Connection, query: &str) -> Totals {
    let mut statement = conn.prepare(query).unwrap();
    let width = statement.column_count() - 1;
    let mut rows = statement.query(()).unwrap();
    let mut totals = Totals::new();
    while let Some(row) = rows.next().unwrap() {
        let part = |at: usize| {
            row.get::<_, rusqlite::types::Value>(at).map(|part| match part {
                rusqlite::types::Value::Null => None,
                rusqlite::types::Value::Integer(part) => Some(part.to_string()),
                rusqlite::types::Value::Text(part) => Some(part),
                other => panic!("{other:?}"),
            })
        };
        if let Some(key) = (0..width).map(|at| part(at).unwrap()).collect() {
            *totals.entry(key).or_default() += i128::from(row.get::<_, i64>(width).unwrap());
        }
    }
    totals.retain(|_, total| *total != 0);
    totals
}

/// The decayed totals of a level, from its votes.
fn decayed_totals(conn: &Connection, query: &str, half_life: HalfLife) -> Totals {
    let mut totals = Totals::new();
    let mut statement = conn.prepare(query).unwrap();
    let rows = statement
        .query_map((), |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, i64>(1)?)))
        .unwrap();
    for (id, at) in rows.map(Result::unwrap) {
        if let Some(id) = id {
            let epoch = at.div_euclid(half_life.as_seconds());
            *totals.entry(vec![id.to_string(), epoch.to_string()]).or_default() +=
                i128::from(half_life.weight(at));
        }
    }
    totals
}

/// Every table of totals, with the totals that it must hold.
fn recounts(conn: &Connection) -> Vec<(String, Totals)> {
    let mut all: Vec<(String, Totals)> =
        RECOUNTS.iter().map(|(table, rows)| ((*table).to_owned(), sums(conn, rows))).collect();
    for (table, votes) in TRENDS {
        all.extend(HALF_LIVES.map(|(name, half_life)| {
            (format!("{table}_{name}"), decayed_totals(conn, votes, half_life))
        }));
    }
    assert_eq!(all.len(), C::SCHEMA.counters().len());
    all
}

/// The differences between stored and expected totals.
fn drift(conn: &Connection) -> Vec<String> {
    let differing = |(table, expected): (String, Totals)| {
        let stored = sums(conn, &format!("SELECT * FROM {table}"));
        let keys: std::collections::BTreeSet<Vec<String>> =
            expected.keys().chain(stored.keys()).cloned().collect();
        let total = |of: &Totals, key: &Vec<String>| of.get(key).copied().unwrap_or(0);
        keys.into_iter()
            .filter(|key| total(&stored, key) != total(&expected, key))
            .map(|key| {
                format!(
                    "{table} of {key:?}: {} for {}",
                    total(&stored, &key),
                    total(&expected, &key)
                )
            })
            .collect::<Vec<_>>()
    };
    recounts(conn).into_iter().flat_map(differing).collect()
}

#[track_caller]
fn assert_exact(conn: &Connection) {
    assert_eq!(drift(conn), Vec::<String>::new());
}

fn total(conn: &Connection, counter: Counter<i64>, key: i64) -> i64 {
    store(conn).total(counter, key).unwrap()
}

/// Runs a transaction of the application: its writes, then `apply` as the last statement.
fn write(conn: &Connection, writes: impl FnOnce(&mut Batch)) -> Applied {
    let mut batch = Batch::new();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    writes(&mut batch);
    let applied = store(conn).apply(&mut batch).unwrap();
    conn.execute_batch("COMMIT").unwrap();
    applied
}

/// Id, artist, status, date.
type ShowRow = (i64, Option<i64>, String, String);
/// Setlist, user, up, and when.
type VoteRow = (Option<i64>, Option<i64>, bool, i64);

const SHOW: &str = "id, artist, status, date";
const VOTE: &str = "setlist, user, up, at";

fn day(text: &str) -> Date {
    text.parse().unwrap()
}

fn artist(row: (i64, i64, i64)) -> Artist<i64> {
    Artist::new(row.0, row.1, row.2)
}

fn show(row: &ShowRow) -> Show<i64> {
    Show::new(row.0, row.1, day(&row.3), row.2.parse().unwrap())
}

/// A vote as it is stored. The application writes votes with `Vote::new`.
fn vote(row: VoteRow) -> Decaying<i64, HalfLives> {
    Vote::stored(row.0, row.1, row.2, row.3).decaying()
}

fn new_vote(row: VoteRow) -> Decaying<i64, HalfLives> {
    Vote::new(row.0, row.1, row.2, row.3, NOW).unwrap().decaying()
}

fn read_artist(row: &Row<'_>) -> rusqlite::Result<(i64, i64, i64)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn read_show(row: &Row<'_>) -> rusqlite::Result<ShowRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn read_setlist(row: &Row<'_>) -> rusqlite::Result<(i64, Option<i64>)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn read_vote(row: &Row<'_>) -> rusqlite::Result<VoteRow> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn insert_artist(conn: &Connection, batch: &mut Batch, id: i64, followers: i64, popularity: i64) {
    conn.execute("INSERT INTO artists VALUES (?1, ?2, ?3, '')", (id, followers, popularity))
        .unwrap();
    batch.insert(&Artist::new(id, followers, popularity));
}

fn insert_show(conn: &Connection, batch: &mut Batch, id: i64, artist: Option<i64>, status: Status) {
    conn.execute(
        "INSERT INTO shows VALUES (?1, ?2, ?3, '2025-06-01', '')",
        (id, artist, status.as_str()),
    )
    .unwrap();
    batch.insert(&Show::new(id, artist, day("2025-06-01"), status));
}

fn insert_setlist(conn: &Connection, batch: &mut Batch, id: i64, of: Option<i64>) {
    conn.execute("INSERT INTO setlists VALUES (?1, ?2)", (id, of)).unwrap();
    batch.insert(&Setlist::new(id, of));
}

fn insert_vote(
    conn: &Connection,
    batch: &mut Batch,
    id: i64,
    row: (Option<i64>, Option<i64>, bool),
) {
    insert_vote_at(conn, batch, id, (row.0, row.1, row.2, AT));
}

fn insert_vote_at(conn: &Connection, batch: &mut Batch, id: i64, row: VoteRow) {
    conn.execute("INSERT INTO votes VALUES (?1, ?2, ?3, ?4, ?5)", (id, row.0, row.1, row.2, row.3))
        .unwrap();
    batch.insert(&new_vote(row));
}

fn update_artist(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let find = "SELECT id, followers, popularity FROM artists WHERE id = ?1";
    let old = conn.query_row(find, [id], read_artist).unwrap();
    let text =
        format!("UPDATE artists SET {set} WHERE id = ?1 RETURNING id, followers, popularity");
    let new = conn.query_row(&text, [id], read_artist).unwrap();
    batch.update(&artist(old), &artist(new));
}

fn update_show(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let old = conn
        .query_row(&format!("SELECT {SHOW} FROM shows WHERE id = ?1"), [id], read_show)
        .unwrap();
    let text = format!("UPDATE shows SET {set} WHERE id = ?1 RETURNING {SHOW}");
    let new = conn.query_row(&text, [id], read_show).unwrap();
    batch.update(&show(&old), &show(&new));
}

fn update_setlist(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let old =
        conn.query_row("SELECT id, show FROM setlists WHERE id = ?1", [id], read_setlist).unwrap();
    let text = format!("UPDATE setlists SET {set} WHERE id = ?1 RETURNING id, show");
    let new = conn.query_row(&text, [id], read_setlist).unwrap();
    batch.update(&Setlist::new(old.0, old.1), &Setlist::new(new.0, new.1));
}

fn update_vote(conn: &Connection, batch: &mut Batch, id: i64, set: &str) {
    let old = conn
        .query_row(&format!("SELECT {VOTE} FROM votes WHERE id = ?1"), [id], read_vote)
        .unwrap();
    let text = format!("UPDATE votes SET {set} WHERE id = ?1 RETURNING {VOTE}");
    let new = conn.query_row(&text, [id], read_vote).unwrap();
    batch.update(&vote(old), &new_vote(new));
}

/// Deletes a vote. Returns whether it existed.
fn delete_vote(conn: &Connection, batch: &mut Batch, id: i64) -> bool {
    let text = format!("DELETE FROM votes WHERE id = ?1 RETURNING {VOTE}");
    let gone = conn.query_row(&text, [id], read_vote).optional().unwrap();
    batch.delete(&gone.map(vote));
    gone.is_some()
}

/// Deletes these rows with their hooks. Returns their number.
fn delete_all<R: Record>(
    conn: &Connection,
    batch: &mut Batch,
    rest: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<R>,
) -> i64 {
    let mut gone = 0;
    let mut delete = conn.prepare(&format!("DELETE FROM {rest}")).unwrap();
    for row in delete.query_map((), |row| read(row)).unwrap() {
        batch.delete(&row.unwrap());
        gone += 1;
    }
    gone
}

/// Deletes a show with its setlists and their votes, children first. Returns the number of votes.
fn delete_show(conn: &Connection, batch: &mut Batch, id: i64) -> i64 {
    let votes = format!(
        "votes WHERE setlist IN (SELECT id FROM setlists WHERE show = {id}) RETURNING {VOTE}"
    );
    let gone = delete_all(conn, batch, &votes, |row| read_vote(row).map(vote));
    delete_all(conn, batch, &format!("setlists WHERE show = {id} RETURNING id, show"), |row| {
        read_setlist(row).map(|row| Setlist::new(row.0, row.1))
    });
    let shows = format!("shows WHERE id = {id} RETURNING {SHOW}");
    assert_eq!(delete_all(conn, batch, &shows, |row| read_show(row).map(|row| show(&row))), 1);
    gone
}

/// Two artists, a show of each, two setlists of the first show, three votes.
fn fill(conn: &Connection) {
    write(conn, |batch| {
        insert_artist(conn, batch, 1, 3_500_000, 47);
        insert_artist(conn, batch, 2, 999_999, 9);
        insert_show(conn, batch, 10, Some(1), Status::Upcoming);
        insert_show(conn, batch, 11, Some(2), Status::Completed);
        insert_setlist(conn, batch, 100, Some(10));
        insert_setlist(conn, batch, 101, Some(10));
        insert_vote(conn, batch, 1, (Some(100), Some(7), true));
        insert_vote(conn, batch, 2, (Some(100), Some(8), false));
        insert_vote(conn, batch, 3, (Some(101), Some(7), true));
    });
    assert_exact(conn);
}

#[test]
fn inserts_and_deletes_count_up_and_down() {
    let conn = database();
    fill(&conn);
    assert_eq!(total(&conn, C::SETLIST_VOTES, 100), 2);
    assert_eq!(total(&conn, C::SETLIST_SCORE, 100), 0);
    assert_eq!(total(&conn, C::ARTIST_UPCOMING_SHOWS, 2), 0);
    assert_eq!([10, 11].map(|show| total(&conn, C::SHOW_VOTES, show)), [3, 0]);
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_VOTES, artist)), [3, 0]);
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_FAME, artist)), [7, 0]);
    for id in [3, 2, 1] {
        write(&conn, |batch| assert!(delete_vote(&conn, batch, id)));
        assert_exact(&conn);
    }
    assert_eq!(store(&conn).totals(C::USER_VOTES).unwrap(), []);
    assert_eq!(store(&conn).totals(C::SHOW_VOTES).unwrap(), []);
    assert_eq!(store(&conn).totals(Trend::<i64>::WEEK.artists).unwrap(), []);
    assert_eq!(total(&conn, C::SHOW_SETLISTS, 10), 2);
}

#[test]
fn update_of_any_column_keeps_totals_exact() {
    for set in [
        "artist = 2",
        "status = 'completed'",
        "status = 'cancelled'",
        "artist = NULL",
        // Condition and parent in one update, in both directions.
        "artist = 2, status = 'completed'",
        "artist = NULL, status = 'cancelled'",
        "id = 99",
        "artist = 2, title = 'x'",
        "date = '2025-06-02'",
        "date = '2024-02-29', artist = 2, status = 'upcoming', id = 98",
    ] {
        for show in [10, 11] {
            let conn = database();
            conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            fill(&conn);
            write(&conn, |batch| update_show(&conn, batch, show, set));
            assert_exact(&conn);
        }
    }
    for set in ["show = 11", "show = NULL", "id = 150", "id = 150, show = 11"] {
        for setlist in [100, 101] {
            let conn = database();
            conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            fill(&conn);
            write(&conn, |batch| update_setlist(&conn, batch, setlist, set));
            // An application that changes a row's id moves its children too.
            let renamed =
                format!("setlist = {}", if set.starts_with("id") { 150 } else { setlist });
            let votes: Vec<i64> = if setlist == 100 { vec![1, 2] } else { vec![3] };
            write(&conn, |batch| {
                for id in &votes {
                    update_vote(&conn, batch, *id, &renamed);
                }
            });
            assert_exact(&conn);
        }
    }
    for set in [
        "followers = 0",
        "popularity = popularity + 50",
        "followers = 9223372036854775807, popularity = 100",
    ] {
        let conn = database();
        fill(&conn);
        write(&conn, |batch| update_artist(&conn, batch, 1, set));
        assert_exact(&conn);
    }
    for set in [
        "up = 1 - up",
        "setlist = 101",
        "user = 9",
        "setlist = 101, user = 9, up = 1 - up",
        "id = 50",
        "at = at - 21600",
        "at = -1",
        "at = at + 40 * 86400, setlist = 100",
    ] {
        for id in [1, 2, 3] {
            let conn = database();
            fill(&conn);
            write(&conn, |batch| update_vote(&conn, batch, id, set));
            assert_exact(&conn);
        }
    }
}

#[test]
fn update_of_condition_and_parent_at_once_moves_both_counts() {
    let conn = database();
    fill(&conn);
    let applied =
        write(&conn, |batch| update_show(&conn, batch, 10, "artist = 2, status = 'completed'"));
    // Totals of both artists: shows, shows by date, membership, votes, three trends. Also the
    // upcoming shows of the old artist, and the show's entry by date. Two more statements remove
    // the old membership and update the old artist's line on the leaderboard.
    assert_eq!(applied, Applied::new(2 * 7 + 2, 2 * 7 + 2 + 1 + 1));
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_SHOWS, artist)), [0, 2]);
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_UPCOMING_SHOWS, artist)), [0, 0]);
    assert_eq!([1, 2].map(|artist| total(&conn, C::ARTIST_VOTES, artist)), [0, 3]);
    let applied =
        write(&conn, |batch| update_show(&conn, batch, 10, "artist = 1, status = 'upcoming'"));
    assert_eq!(applied, Applied::new(16, 18));
    assert_exact(&conn);
}

#[test]
fn parent_may_change_from_null_and_to_null() {
    let conn = database();
    fill(&conn);
    let applied = write(&conn, |batch| insert_vote(&conn, batch, 4, (None, None, true)));
    assert_eq!(applied, Applied::default(), "a vote without a setlist and a user");
    // An upvote changes votes, upvotes, score and three trends of the setlist; votes and three
    // trends of the show; and the same of the artist.
    let up = 6 + 4 + 4;
    for (set, totals) in [
        ("setlist = 101", up),
        ("user = 7", 1),
        ("setlist = NULL, up = 0", up),
        ("setlist = 100, user = NULL", up - 1 + 1), // a downvote now, and it loses its user
        ("setlist = NULL", up - 1),
        ("user = 8", 1),
    ] {
        let applied = write(&conn, |batch| update_vote(&conn, batch, 4, set));
        assert_eq!(applied.totals, totals, "{set}");
        assert_exact(&conn);
    }
    write(&conn, |batch| update_show(&conn, batch, 10, "artist = NULL"));
    assert_exact(&conn);
    assert_eq!([total(&conn, C::ARTIST_SHOWS, 1), total(&conn, C::ARTIST_VOTES, 1)], [0, 0]);
    write(&conn, |batch| update_show(&conn, batch, 10, "artist = 2"));
    assert_exact(&conn);
    assert_eq!(total(&conn, C::ARTIST_VOTES, 2), 3);
    write(&conn, |batch| update_setlist(&conn, batch, 100, "show = NULL"));
    assert_exact(&conn);
    assert_eq!([total(&conn, C::SHOW_VOTES, 10), total(&conn, C::ARTIST_VOTES, 2)], [1, 1]);
    write(&conn, |batch| update_setlist(&conn, batch, 100, "show = 10"));
    assert_exact(&conn);
}

#[test]
fn a_vote_from_the_future_is_refused_before_it_counts() {
    let refused = Vote::new(Some(100), Some(7), true, AT + 1, AT).unwrap_err();
    assert_eq!((refused.created_at, refused.now), (AT + 1, AT));
    assert_eq!(refused.to_string(), format!("created_at is {}, later than now, {AT}", AT + 1));
    assert_eq!(
        Vote::new(Some(100), Some(7), true, AT, AT),
        Ok(Vote::stored(Some(100), Some(7), true, AT))
    );
    // A vote from the future that is stored already can be deleted exactly.
    let conn = database();
    fill(&conn);
    write(&conn, |batch| {
        conn.execute("INSERT INTO votes VALUES (9, 100, 7, 1, ?1)", [NOW + 1]).unwrap();
        batch.insert(&vote((Some(100), Some(7), true, NOW + 1)));
    });
    assert_exact(&conn);
    write(&conn, |batch| assert!(delete_vote(&conn, batch, 9)));
    assert_exact(&conn);
}

/// The cost of a write path: totals written, statements that wrote (totals, memberships removed,
/// lines of leaderboards), statements that read.
type Cost = (u64, u64, usize);

/// The write amplification of each path, on a site of two artists with a show each. A trend has a
/// total for each epoch, so a move of votes in several epochs writes each of them.
#[test]
fn each_write_path_costs_fixed_numbers_of_totals_statements_and_reads() {
    type Do = fn(&Connection, &mut Batch);
    let paths: [(&str, Do, Cost); 25] = [
        // Totals: votes, upvotes, score and three trends of the setlist; the user's votes; votes
        // and three trends of show and artist. Then three leaderboards. Reads: the memberships of
        // the setlist and of the show; for each leaderboard the show's epochs and its line.
        ("vote up", |c, b| insert_vote(c, b, 9, (Some(100), Some(7), true)), (15, 18, 8)),
        ("vote down", |c, b| insert_vote(c, b, 9, (Some(100), Some(7), false)), (14, 17, 8)),
        (
            "vote on a setlist of no show",
            |c, b| insert_vote(c, b, 9, (Some(102), Some(7), true)),
            (7, 7, 1),
        ),
        ("vote flipped", |c, b| update_vote(c, b, 1, "up = 0"), (2, 2, 0)),
        ("vote of another user", |c, b| update_vote(c, b, 1, "user = 8"), (2, 2, 0)),
        (
            "vote given again 6 hours later",
            |c, b| update_vote(c, b, 1, "at = at + 21600"),
            (12, 15, 8),
        ),
        ("vote moved within a show", |c, b| update_vote(c, b, 1, "setlist = 101"), (12, 12, 2)),
        (
            "vote moved to another artist's show",
            |c, b| update_vote(c, b, 1, "setlist = 103"),
            (28, 34, 16),
        ),
        ("vote deleted", |c, b| assert!(delete_vote(c, b, 1)), (15, 18, 8)),
        ("setlist posted", |c, b| insert_setlist(c, b, 109, Some(10)), (2, 2, 4)),
        ("setlist without votes moved", |c, b| update_setlist(c, b, 104, "show = 11"), (4, 5, 4)),
        // One membership is removed and one is added. Votes and three trends propagate to both
        // shows and both artists. Reads: the setlist's votes and three trends, the shows'
        // memberships, the leaderboards.
        ("setlist with 2 votes moved", |c, b| update_setlist(c, b, 100, "show = 11"), (20, 27, 18)),
        // 50 votes in 40 epochs of 6 hours, 10 of a day, 2 of a week: 1 + 40 + 10 + 2 totals of
        // each of two shows and two artists.
        (
            "setlist with 50 votes over 10 days moved",
            |c, b| update_setlist(c, b, 105, "show = 11"),
            (216, 223, 18),
        ),
        ("show announced", |c, b| insert_show(c, b, 19, Some(1), Status::Upcoming), (5, 6, 9)),
        (
            "show of nobody announced",
            |c, b| insert_show(c, b, 19, None, Status::Upcoming),
            (1, 1, 0),
        ),
        ("show completed", |c, b| update_show(c, b, 10, "status = 'completed'"), (2, 3, 5)),
        ("show put off", |c, b| update_show(c, b, 10, "date = '2025-07-01'"), (4, 4, 1)),
        ("show renamed", |c, b| update_show(c, b, 10, "title = 'x'"), (0, 0, 0)),
        ("show without votes moved", |c, b| update_show(c, b, 12, "artist = 2"), (8, 10, 13)),
        // Totals of both artists: shows, upcoming shows, shows by date, membership, votes, and
        // trends of 41, 11 and 3 epochs.
        ("show with 53 votes moved", |c, b| update_show(c, b, 10, "artist = 2"), (120, 122, 13)),
        ("artist signed", |c, b| insert_artist(c, b, 9, 1_000_000, 0), (2, 3, 4)),
        (
            "artist's followers grow",
            |c, b| update_artist(c, b, 1, "followers = followers + 1000"),
            (0, 0, 0),
        ),
        ("artist's fame grows", |c, b| update_artist(c, b, 1, "followers = 4000000"), (1, 2, 4)),
        // A cascade. Rows feed 84 totals: 2 (the score was 0), 3 and 3 of three setlists, with
        // trends of 3, 3 and 52 epochs; 8 of users; 4 memberships and the show's setlists; 5 of the
        // show. Rollups add 56 of the show and 56 of its artist. Five memberships and three lines
        // of the show are removed, one line changes.
        (
            "show with 53 votes deleted",
            |c, b| assert_eq!(delete_show(c, b, 10), 53),
            (196, 205, 35),
        ),
        ("show without votes deleted", |c, b| assert_eq!(delete_show(c, b, 12), 0), (5, 7, 9)),
    ];
    for (name, path, cost) in paths {
        let mut conn = database();
        fill(&conn);
        write(&conn, |batch| {
            insert_setlist(&conn, batch, 102, None);
            insert_setlist(&conn, batch, 103, Some(11));
            insert_setlist(&conn, batch, 104, Some(10));
            insert_setlist(&conn, batch, 105, Some(10));
            insert_show(&conn, batch, 12, Some(1), Status::Upcoming);
            for id in 0..50 {
                insert_vote_at(
                    &conn,
                    batch,
                    1000 + id,
                    (Some(105), Some(id % 6), true, AT_WEEK + id / 5 * 86_400 + id % 4 * 21_600),
                );
            }
        });
        let trace = Trace::on(&mut conn);
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut batch = Batch::new();
        path(&conn, &mut batch);
        trace.take();
        let applied = store(&conn).apply(&mut batch).unwrap();
        let ran = trace.kinds();
        conn.execute_batch("COMMIT").unwrap();
        assert_exact(&conn);
        println!(
            "{name:45} {:4} totals {:4} statements {:3} reads",
            applied.totals, applied.statements, ran.reads
        );
        assert_eq!((applied.totals, applied.statements, ran.reads), cost, "{name}");
        assert_eq!(
            (ran.writes as u64, ran.others),
            (applied.statements, vec![]),
            "{name}: the reported statements are those that ran"
        );
    }
}

/// Each half-life costs a vote three totals and a line of a leaderboard. The default is one
/// half-life.
#[test]
fn vote_without_a_choice_of_half_lives_decays_with_one_half_life() {
    type One = Concert<i64>;
    let mut conn = Connection::open_in_memory().unwrap();
    let trace = Trace::on(&mut conn);
    let mut store = SqliteStore::new(&conn, &One::SCHEMA);
    store.create().unwrap();
    assert_eq!((One::SCHEMA.counters().len(), C::SCHEMA.counters().len()), (18, 24));
    let tables = One::SCHEMA.counters().iter().map(keepcount::backend::CounterSpec::table_name);
    let trends: Vec<String> = tables.filter(|table| table.contains("trend")).collect();
    assert_eq!(trends, ["setlist_trend_7d", "show_trend_7d", "artist_trend_7d"]);
    let leaderboards: Vec<&str> =
        One::SCHEMA.leaderboard_ids().iter().map(keepcount::backend::LeaderboardId::name).collect();
    assert_eq!(leaderboards, ["artist.board", "show.trending_7d"]);

    let mut batch = Batch::new();
    batch.insert(&Show::new(10_i64, Some(1), day("2025-06-01"), Status::Upcoming));
    batch.insert(&Setlist::new(100_i64, Some(10)));
    batch.insert(&Vote::stored(Some(100_i64), Some(7), true, AT));
    store.apply(&mut batch).unwrap();
    trace.take();
    batch.insert(&Vote::stored(Some(100_i64), Some(8), true, AT));
    let applied = store.apply(&mut batch).unwrap();
    // Totals: votes, upvotes, score and a trend of the setlist; the user's votes; votes and a trend
    // of show and artist. Then one leaderboard. Reads: two memberships, the show's epochs and its
    // line.
    assert_eq!((applied, trace.kinds().reads), (Applied::new(9, 10), 4));
    let week = HalfLife::days(7);
    assert_eq!(
        store.total(Trend::<i64>::WEEK.artists, (1_i64, week.epoch(AT))).unwrap(),
        2 * week.weight(AT)
    );
    assert_eq!(store.top(Trend::<i64>::WEEK.leaderboard, 9).unwrap()[0].key, 10);
    batch.insert(&vote((Some(100), Some(9), true, AT)));
    assert!(
        matches!(store.apply(&mut batch), Err(Error::UnknownCounter { .. })),
        "half-lives that the schema lacks"
    );
}

#[test]
fn cascade_writes_each_total_once_however_many_children_are_deleted() {
    let mut conn = database();
    let trace = Trace::on(&mut conn);
    let votes = 300;
    write(&conn, |batch| {
        insert_artist(&conn, batch, 1, 3_500_000, 47);
        insert_show(&conn, batch, 10, Some(1), Status::Upcoming);
        insert_setlist(&conn, batch, 100, Some(10));
        insert_setlist(&conn, batch, 101, Some(10));
        for id in 0..votes {
            insert_vote(&conn, batch, id, (Some(100 + id % 2), Some(id % 3), id % 5 > 0));
        }
    });
    assert_exact(&conn);
    trace.take();
    let applied = write(&conn, |batch| {
        // BEGIN IMMEDIATE locks the parent. Children are deleted first, and each delete returns the
        // rows that it removed.
        assert_eq!(delete_show(&conn, batch, 10), votes);
    });
    // Three counters, three trends and the membership of each of two setlists; setlists, votes,
    // three trends, membership and entry by date of the show; shows, upcoming shows, shows by date,
    // votes and three trends of the artist; one total of each of three users.
    let totals = 2 * 7 + 7 + 7 + 3;
    // The memberships and the show's line on three leaderboards are removed. The artist's line on a
    // fourth changes.
    let statements = totals + 3 + 4;
    assert_eq!(applied, Applied::new(totals, statements));
    // The application's three deletes are counted too.
    assert_eq!(trace.kinds().writes as u64, statements + 3);
    assert_exact(&conn);
    for (table, _) in recounts(&conn) {
        let left = format!("SELECT count(*) FROM {table} WHERE total <> 0");
        // The artist is not deleted.
        let artist = i64::from(["artist_listed", "artist_fame"].contains(&table.as_str()));
        assert_eq!(conn.query_row(&left, (), |row| row.get(0)), Ok(artist), "{table}");
    }
    for membership in ["setlist_show", "show_artist"] {
        // A removed membership leaves no row, not even one of 0.
        assert_eq!(
            conn.query_row(&format!("SELECT count(*) FROM {membership}"), (), |row| row.get(0)),
            Ok(0),
            "{membership}"
        );
    }
}

#[test]
fn one_row_deleted_by_two_connections_counts_once() {
    let (_dir, path) = file();
    let conn = open(&path);
    fill(&conn);
    write(&conn, |batch| {
        (0..40)
            .for_each(|id| insert_vote(&conn, batch, 1000 + id, (Some(101), Some(id % 5), true)));
    });
    let worker = || {
        let conn = open(&path);
        (0..40)
            .filter(|id| {
                let mut found = false;
                let applied = write(&conn, |batch| found = delete_vote(&conn, batch, 1000 + id));
                assert_eq!(applied.totals, if found { 15 } else { 0 });
                found
            })
            .count()
    };
    let deleted: usize = thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(deleted, 40);
    assert_exact(&conn);
    assert_eq!(total(&conn, C::SETLIST_VOTES, 101), 1);

    // One after the other, so that both certainly try.
    let other = open(&path);
    write(&conn, |batch| assert!(delete_vote(&conn, batch, 3)));
    write(&other, |batch| assert!(!delete_vote(&other, batch, 3)));
    assert_exact(&other);
    assert_eq!(total(&other, C::SETLIST_VOTES, 101), 0);
}

/// Checks in SQLite's trace that applying this batch runs no statement.
#[track_caller]
fn assert_runs_no_statement(conn: &mut Connection, batch: &Batch) {
    let changes = conn.total_changes();
    let trace = Trace::on(conn);
    assert!(batch.is_empty());
    assert_eq!(store(conn).apply(&mut batch.clone()).unwrap(), Applied::default());
    assert_eq!(trace.take(), Vec::<String>::new());
    assert_eq!(conn.total_changes(), changes);
}

#[test]
fn update_of_columns_that_no_counter_uses_runs_no_statement() {
    let mut conn = database();
    fill(&conn);
    for set in [
        "title = 'encore'",
        "artist = 1",
        "id = id",
        "title = NULL, status = 'upcoming'",
        "date = '2025-06-01'",
    ] {
        let mut batch = Batch::new();
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        update_show(&conn, &mut batch, 10, set);
        assert_runs_no_statement(&mut conn, &batch);
        conn.execute_batch("COMMIT").unwrap();
        assert_exact(&conn);
    }
    // Changes of less than a million followers or ten points of popularity leave the fame as it is.
    for set in
        ["followers = followers + 1", "popularity = 40, followers = 3000000", "name = 'other'"]
    {
        let mut batch = Batch::new();
        update_artist(&conn, &mut batch, 1, set);
        assert_runs_no_statement(&mut conn, &batch);
    }
    let mut batch = Batch::new();
    update_setlist(&conn, &mut batch, 100, "show = 10");
    assert_runs_no_statement(&mut conn, &batch);
    // Completed to cancelled: neither is counted.
    let mut batch = Batch::new();
    update_show(&conn, &mut batch, 11, "status = 'cancelled'");
    assert_runs_no_statement(&mut conn, &batch);
}

#[test]
fn deltas_that_cancel_in_one_transaction_run_no_statement() {
    let mut conn = database();
    fill(&conn);
    let mut batch = Batch::new();
    insert_vote(&conn, &mut batch, 4, (Some(100), Some(7), false));
    assert!(delete_vote(&conn, &mut batch, 4));
    assert_runs_no_statement(&mut conn, &batch);

    // A move and its reversal.
    let mut batch = Batch::new();
    update_vote(&conn, &mut batch, 1, "setlist = 101, up = 0");
    update_vote(&conn, &mut batch, 1, "setlist = 100, up = 1");
    assert_runs_no_statement(&mut conn, &batch);
    assert_exact(&conn);
}

/// Another connection holds the write lock meanwhile.
#[test]
fn apply_of_an_empty_batch_takes_no_lock() {
    let (_dir, path) = file();
    let (conn, writer) = (open(&path), open(&path));
    conn.busy_timeout(Duration::ZERO).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store(&conn).apply(&mut Batch::new()).unwrap(), Applied::default());
    let mut one = Batch::new();
    one.add(C::USER_VOTES, 7, 1);
    assert_eq!(store(&conn).apply(&mut one).unwrap_err().recovery(), Recovery::Retry);
}

#[test]
fn rollback_undoes_rows_and_totals_together() {
    let conn = database();
    fill(&conn);
    let before = store(&conn).totals(C::SETLIST_VOTES).unwrap();
    let mut batch = Batch::new();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    insert_vote(&conn, &mut batch, 4, (Some(100), Some(7), true));
    assert!(delete_vote(&conn, &mut batch, 3));
    // Votes, upvotes, score and three trends of both setlists; user, show and artist have as many
    // votes as before.
    assert_eq!(store(&conn).apply(&mut batch).unwrap().totals, 12);
    assert_exact(&conn);
    conn.execute_batch("ROLLBACK").unwrap();
    assert_exact(&conn);
    assert_eq!(store(&conn).totals(C::SETLIST_VOTES).unwrap(), before);
}

#[test]
fn batch_of_a_savepoint_is_dropped_with_it_or_merged() {
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
                    store(&conn).apply(&mut trial.clone()).unwrap();
                }
                if release {
                    conn.execute_batch("RELEASE trial").unwrap();
                    if !early {
                        batch.merge(&mut trial.clone());
                    }
                } else {
                    conn.execute_batch("ROLLBACK TO trial; RELEASE trial").unwrap();
                }
            });
            assert_exact(&conn);
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
    store(&conn).apply(&mut batch).unwrap();
    assert_eq!(conn.last_insert_rowid(), 4711, "several totals, some of them new");
    let mut one = Batch::new();
    one.add(C::USER_VOTES, 99, 1);
    store(&conn).apply(&mut one.clone()).unwrap();
    assert_eq!(conn.last_insert_rowid(), 4711, "one new total");
}

#[test]
fn several_records_of_one_transaction_write_each_total_once() {
    let mut conn = database();
    fill(&conn);
    let trace = Trace::on(&mut conn);
    let mut batch = Batch::new();
    for at in 0..500_i64 {
        batch.insert(&vote((Some(200 + at % 4), Some(at % 5), at % 2 == 0, AT)));
        batch.insert(&Setlist::new(300 + at % 3, Some(10 + at % 3)));
    }
    // Votes of four setlists; upvotes of two, because 201 and 203 have none; four scores; three
    // trends of each; five users; setlists of three shows, and their memberships.
    let keys = 4 + 2 + 4 + 3 * 4 + 5 + 3 + 3;
    assert_eq!(batch.len(), keys);
    let distinct = Applied::new(keys as u64, keys as u64);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    trace.take();
    assert_eq!(store(&conn).apply(&mut batch.clone()).unwrap(), distinct);
    // The memberships of four setlists; votes and three trends of the three others, since their
    // memberships change. Nothing propagates.
    let reads = 4 + 3 * 4;
    assert_eq!(
        trace.kinds(),
        Kinds { writes: keys, reads, others: vec![] },
        "in a transaction: none that begins or ends"
    );
    conn.execute_batch("ROLLBACK").unwrap();
    trace.take();

    assert_eq!(store(&conn).apply(&mut batch).unwrap(), distinct);
    let own = |writes, reads| Kinds {
        writes,
        reads,
        others: vec!["BEGIN IMMEDIATE".into(), "COMMIT".into()],
    };
    assert_eq!(trace.kinds(), own(keys, reads), "outside one: one of its own");

    let mut one = Batch::new();
    one.add(C::USER_VOTES, 1, 1);
    one.add(C::USER_VOTES, 1, 1);
    assert_eq!(store(&conn).apply(&mut one).unwrap(), Applied::new(1, 1));
    assert_eq!(trace.kinds(), own(1, 0));
}

/// Without rollups and leaderboards, a transaction runs only the writes.
#[test]
fn schema_without_rollups_and_leaderboards_reads_nothing() {
    let mut conn = three();
    let mut batch = Batch::new();
    for at in 0..500_i64 {
        batch.add(FIRST, at % 7, 1);
        batch.add(MIDDLE, (at % 3, "x"), -1);
        batch.add(LAST, at % 2, 1);
        batch.add(LAST, at % 2, -1);
    }
    let trace = Trace::on(&mut conn);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    trace.take();
    assert_eq!(
        SqliteStore::new(&conn, &THREE).apply(&mut batch.clone()).unwrap(),
        Applied::new(10, 10)
    );
    assert_eq!(trace.kinds(), Kinds { writes: 10, ..Kinds::default() });
    conn.execute_batch("COMMIT").unwrap();
    trace.take();
    SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap();
    let others = vec!["BEGIN IMMEDIATE".into(), "COMMIT".into()];
    assert_eq!(trace.kinds(), Kinds { writes: 10, reads: 0, others });
}

/// The concert counters without leaderboards and without prunable counters.
const LEADERBOARDLESS: Schema = Schema::new(&[
    C::ARTIST_SHOWS.table(),
    C::ARTIST_UPCOMING_SHOWS.table(),
    C::ARTIST_SHOWS_AHEAD.table(),
    C::SHOW_UPCOMING.table(),
    C::SHOW_ARTIST.table(),
    C::SHOW_SETLISTS.table(),
    C::SETLIST_SHOW.table(),
    C::SETLIST_VOTES.table(),
    C::SETLIST_UPVOTES.table(),
    C::SETLIST_SCORE.table(),
    Trend::<i64>::HOURS_6.setlists.table(),
    Trend::<i64>::DAY.setlists.table(),
    Trend::<i64>::WEEK.setlists.table(),
    C::USER_VOTES.table(),
    C::SHOW_VOTES.table(),
    Trend::<i64>::HOURS_6.shows.table(),
    Trend::<i64>::DAY.shows.table(),
    Trend::<i64>::WEEK.shows.table(),
    C::ARTIST_VOTES.table(),
    Trend::<i64>::HOURS_6.artists.table(),
    Trend::<i64>::DAY.artists.table(),
    Trend::<i64>::WEEK.artists.table(),
]);

/// Totals are written in the schema's order, then in key order, so that two writers on a server
/// never deadlock.
#[test]
fn totals_are_written_in_schema_and_key_order() {
    let mut conn = database();
    let trace = Trace::on(&mut conn);
    let mut batch = Batch::new();
    for user in [9, -3, 4, i64::MIN, 0] {
        let setlist = -user.saturating_add(1);
        batch.insert(&vote((Some(setlist), Some(user), user > 0, AT + user.signum() * 86_400)));
        batch.insert(&Setlist::new(setlist, Some(user)));
        batch.insert(&Show::new(
            user,
            Some(user),
            day("2025-06-01").plus(i32::from(user > 0)).unwrap(),
            Status::Upcoming,
        ));
    }
    let applied = store(&conn).apply(&mut batch.clone()).unwrap();
    // Votes and three trends propagated to five shows and five artists.
    assert_eq!(applied.totals, batch.len() as u64 + 2 * 4 * 5);
    let mut tables: Vec<String> = trace
        .take()
        .iter()
        .filter(|text| text.starts_with("INSERT"))
        .map(|text| text.split('"').nth(1).unwrap().to_owned())
        .collect();
    // Leaderboards come last: five shows on three of them, and no artist, since none is listed.
    let lines = tables.split_off(tables.len() - 3 * 5);
    assert!(lines.iter().all(|table| table.starts_with("show_trending_")), "{lines:?}");
    let schema: Vec<String> =
        C::SCHEMA.counters().iter().map(keepcount::backend::CounterSpec::table_name).collect();
    let positions: Vec<usize> =
        tables.iter().map(|table| schema.iter().position(|t| t == table).unwrap()).collect();
    assert!(positions.is_sorted() && positions.len() as u64 == applied.totals, "{tables:?}");

    // An application that runs the statements itself gets them in the same order, from a schema
    // without leaderboards.
    let mut update = RollupUpdate::new(&LEADERBOARDLESS, &batch).unwrap();
    while update.next().unwrap().is_some() {} // there was nothing before
    let statements = update.statements(Dialect::Sqlite).unwrap();
    let rows: usize = statements.iter().map(|statement| statement.rows().len()).sum();
    assert_eq!(rows as u64, applied.totals);
    let position = |counter: &CounterId| {
        LEADERBOARDLESS.counters().iter().position(|spec| spec.id() == *counter).unwrap()
    };
    assert!(statements.iter().map(|statement| position(&statement.counter)).is_sorted());
    for statement in &statements {
        let part = |part: &Value<'_>| match part {
            Value::Integer(part) => (*part, String::new()),
            Value::Text(part) => (0, part.to_string()),
            other => panic!("{other:?}"),
        };
        let key = |row: &[Value<'_>]| row[..row.len() - 1].iter().map(part).collect::<Vec<_>>();
        let keys: Vec<_> = statement.rows().map(key).collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }
}

// Overflow.

const FIRST: Counter<i64> = Counter::new("a.first");
const MIDDLE: Counter<(i64, String)> = Counter::new("b.middle");
const LAST: Counter<i64> = Counter::new("c.last");
const THREE: Schema = Schema::new(&[FIRST.table(), MIDDLE.table(), LAST.table()]);

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
fn assert_overflow(
    error: &Error,
    wanted_counter: Counter<impl keepcount::Key>,
    wanted_key: &str,
    wanted_what: &str,
) {
    match error {
        Error::Overflow { counter, key, what } => {
            assert_eq!(
                (*counter, key.as_str(), *what),
                (wanted_counter.id().name(), wanted_key, wanted_what)
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.recovery(), Recovery::Permanent);
    let text = error.to_string();
    assert!(text.contains(wanted_counter.id().name()) && text.contains(wanted_key), "{text}");
}

/// Checks that a batch is refused, both in a transaction that goes on and commits, and outside one.
fn check_refused(stored: i64, delta: i64, before_it: &[(i64, i64)]) {
    for in_transaction in [true, false] {
        let conn = three();
        let mut start = Batch::new();
        start.add(MIDDLE, (5, "e"), stored);
        for (key, delta) in before_it {
            start.add(FIRST, key, if *delta < 0 { i64::MAX } else { 3 });
        }
        SqliteStore::new(&conn, &THREE).apply(&mut start).unwrap();
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
        let error = SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap_err();
        assert_overflow(&error, MIDDLE, "5,e", "total");
        assert_eq!(all(&conn), before, "{stored} {delta} {before_it:?}");
        assert_eq!(conn.is_autocommit(), !in_transaction);
        if in_transaction {
            let mut fits = Batch::new();
            fits.add(MIDDLE, (5, "e"), -delta.signum());
            SqliteStore::new(&conn, &THREE).apply(&mut fits).unwrap();
            conn.execute_batch("COMMIT").unwrap();
            assert_eq!(
                conn.query_row("SELECT text FROM notes", (), |row| row.get(0)),
                Ok("kept".to_owned())
            );
            let moved = SqliteStore::new(&conn, &THREE).total(MIDDLE, (5, "e")).unwrap();
            assert_eq!(moved, stored - delta.signum());
        }
    }
}

#[test]
fn total_beyond_64_bits_refuses_the_batch_and_the_transaction_goes_on() {
    for (stored, delta) in [
        (i64::MAX, 1),
        (i64::MAX, i64::MAX),
        (1, i64::MAX),
        (i64::MIN, -1),
        (i64::MIN, i64::MIN),
        (-1, i64::MIN),
        (i64::MIN + 4, -5),
    ] {
        check_refused(stored, delta, &[]);
        check_refused(stored, delta, &[(1, 1), (2, -7)]);
        // A delta whose negation exceeds 64 bits is applied before the delta that fails.
        check_refused(stored, delta, &[(1, i64::MIN), (2, i64::MAX - 3), (3, 1)]);
    }
}

#[test]
fn in_memory_total_beyond_64_bits_refuses_the_batch() {
    for (stored, delta) in [(i64::MAX, 1), (i64::MIN, -1), (-1, i64::MIN), (1, i64::MAX)] {
        let mut store = MemoryStore::new(&THREE);
        let mut start = Batch::new();
        start.add(MIDDLE, (5, "e"), stored);
        start.add(FIRST, 2, i64::MAX);
        store.apply(&mut start).unwrap();
        let mut batch = Batch::new();
        for (key, delta) in [(1, i64::MIN), (2, -7), (3, i64::MAX)] {
            batch.add(FIRST, key, delta);
        }
        batch.add(MIDDLE, (5, "e"), delta);
        batch.add(LAST, 1, 1);
        assert_overflow(&store.apply(&mut batch).unwrap_err(), MIDDLE, "5,e", "total");
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
        let error = SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap_err();
        assert_overflow(&error, MIDDLE, "5,e\\t", "delta");
        assert_eq!(trace.take(), Vec::<String>::new());
        assert_eq!(all(&conn), All::default());
    }
    // A sum that returns to 64 bits before the batch is applied is accepted.
    let conn = three();
    let mut batch = Batch::new();
    for amount in [i64::MAX, i64::MAX, -i64::MAX] {
        batch.add(LAST, 1, amount);
    }
    SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap();
    assert_eq!(SqliteStore::new(&conn, &THREE).total(LAST, 1).unwrap(), i64::MAX);
}

#[test]
fn totals_reach_both_ends_of_64_bits_and_come_back() {
    let conn = three();
    for (delta, total) in
        [(i64::MAX, i64::MAX), (i64::MIN, -1), (i64::MIN + 1, i64::MIN), (i64::MAX, -1), (1, 0)]
    {
        let mut batch = Batch::new();
        batch.add(LAST, 1, delta);
        batch.add(FIRST, 1, 1);
        SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap();
        assert_eq!(SqliteStore::new(&conn, &THREE).total(LAST, 1).unwrap(), total);
    }
}

/// Outside a transaction, a batch is applied in its own transaction: whole or not at all, also for
/// other connections.
#[test]
fn apply_outside_a_transaction_is_atomic() {
    let dir = crate::support::temp_dir();
    let path = dir.path().join("app.db");
    let conn = Connection::open(&path).unwrap();
    SqliteStore::new(&conn, &THREE).create().unwrap();
    let mut batch = Batch::new();
    (0..50).for_each(|key| batch.add(FIRST, key, 1));
    (0..50).for_each(|key| batch.add(LAST, key, -1));
    SqliteStore::new(&conn, &THREE).apply(&mut batch.clone()).unwrap();
    assert!(conn.is_autocommit());
    let before = all(&conn);
    batch.add(LAST, 49, i64::MIN + 1);
    assert!(SqliteStore::new(&conn, &THREE).apply(&mut batch).is_err());
    assert!(conn.is_autocommit());
    drop(conn);
    assert_eq!(all(&Connection::open(&path).unwrap()), before);
}

struct Payment(i64, i64);

impl Record for Payment {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(FIRST, self.0, self.1);
    }
}

#[test]
fn negative_totals_are_kept_and_reported_as_drift_if_wrong() {
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
    SqliteStore::new(&conn, &THREE).apply(&mut batch).unwrap();
    assert_eq!(all(&conn).0, [(1, -25), (2, -2), (3, -4)]);

    let mut audit = SqliteAudit::new(&conn, &THREE).unwrap();
    let payments = SqliteRows::of("payments", |row| Ok(Payment(row.get(0)?, row.get(1)?)));
    audit.add(payments.key(FIRST, Columns::of(["account"]).sum("cents"))).unwrap();
    let none = SqliteRows::query("SELECT 1 AS a, '' AS b WHERE 0", |_| Ok(Nothing));
    audit
        .add(
            none.key(MIDDLE, Columns::of(["a", "b"]).count()).key(LAST, Columns::of(["a"]).count()),
        )
        .unwrap();
    let report = run_whole(Mode::Verify, &THREE, Options::default(), &mut audit).unwrap();
    let first = &report.counters[0];
    assert_eq!(
        (first.keys, first.wrong, first.missing, first.orphan),
        (3, 1, 0, 1),
        "{}",
        report.table()
    );
    let samples: Vec<(i64, i64)> =
        first.samples.iter().map(|sample| (sample.stored, sample.expected)).collect();
    assert_eq!(samples, [(-2, 8), (-4, 0)]);
    assert_eq!(all(&conn).0, [(1, -25), (2, -2), (3, -4)], "nothing is clamped");
    run_whole(Mode::Repair, &THREE, Options::default(), &mut audit).unwrap();
    assert_eq!(all(&conn).0, [(1, -25), (2, 8)]);
}

/// The record of the two counters that have no rows here.
struct Nothing;

impl Record for Nothing {
    fn tally(&self, _: &mut Tally<'_>) {}
}

const TAG_USES: Counter<i64> = Counter::new("tag.uses");
const TAG_POSTS: Counter<i64> = Counter::new("tag.posts");
const POST_TAGS: Counter<i64> = Counter::new("post.tags");
const TAGS: Schema = Schema::new(&[TAG_USES.table(), TAG_POSTS.table()]);

/// A record whose `tally` adds to its own counter, to one that posts add to, or to one that no
/// store has.
#[derive(Clone, Copy)]
enum Use {
    Own,
    OfAnother,
    Unknown,
}

impl Record for Use {
    fn tally(&self, to: &mut Tally<'_>) {
        match self {
            Self::Own => to.add(TAG_USES, 7, 1),
            Self::OfAnother => to.add(TAG_POSTS, 7, 1),
            Self::Unknown => to.add(POST_TAGS, 7, 1),
        }
    }
}

struct Post;

impl Record for Post {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(TAG_POSTS, 7, 1);
    }
}

/// The same rows in two representations of one generic type.
struct Titled<T>(T);

impl<T: AsRef<str>> Record for Titled<T> {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(TAG_POSTS, i64::from(!self.0.as_ref().is_empty()), 1);
    }
}

/// A record that tallies as the post that it wraps.
struct Draft(Post);

impl Record for Draft {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(&self.0);
    }
}

/// A recount sums the rows of one record type. If another type added to the same counter, each hook
/// would cause drift, and each repair would remove it again.
#[test]
fn tallies_of_two_record_types_on_one_counter_are_refused_with_both_names() {
    let (memory, conn) = (MemoryStore::new(&TAGS), Connection::open_in_memory().unwrap());
    let mut sqlite = SqliteStore::new(&conn, &TAGS);
    sqlite.create().unwrap();
    let mut inserted = Batch::new();
    inserted.insert(&Post);
    inserted.insert(&Use::OfAnother);
    // Other deltas of the same total do not help, nor does a sum of 0.
    let mut undone = Batch::new();
    undone.add(TAG_POSTS, 7, 5);
    undone.insert(&Use::Own);
    undone.insert(&vec![Some(Use::OfAnother), None]);
    undone.delete(&vec![Some(Use::OfAnother), None]);
    undone.insert(&[&Post][..]);
    undone.delete(&Some(Post));
    undone.add(TAG_POSTS, 7, -5);
    // Each batch alone is valid; their merge is not.
    let (mut released, mut savepoint) = (Batch::new(), Batch::new());
    released.insert(&Draft(Post));
    savepoint.insert(&Use::OfAnother);
    released.merge(&mut savepoint);
    assert!(savepoint.is_empty());
    let (mut passed_on, mut savepoint) = (Batch::new(), inserted.clone());
    passed_on.insert(&Use::Own);
    passed_on.merge(&mut savepoint);
    let mut unknown = Batch::new();
    unknown.update(&Use::Own, &Use::Unknown);
    for (mut batch, words) in [
        (inserted, &["tag.posts", "Use", "Post"][..]),
        (undone, &["tag.posts", "Use", "Post"]),
        (released, &["tag.posts", "Use", "Post"]),
        (passed_on, &["tag.posts", "Use", "Post"]),
        (unknown, &["post.tags", "Use"]),
    ] {
        let stream_range = keepcount::StreamRange::new("imports", 1, 1).unwrap();
        for refused in [
            memory.apply(&mut batch).map(drop),
            memory.apply_idempotent(&mut batch, &stream_range).map(drop),
            memory.begin(&mut batch).map(drop),
            sqlite.apply(&mut batch).map(drop),
            sqlite.apply_idempotent(&mut batch, &stream_range).map(drop),
            keepcount::sql::apply(Dialect::Postgres, &TAGS, &batch).map(drop),
            RollupUpdate::new(&TAGS, &batch).map(drop),
            RollupUpdate::run(&TAGS, &batch, |_| unreachable!()).map(drop),
        ] {
            let error = refused.unwrap_err();
            assert_eq!(error.recovery(), Recovery::Permanent);
            let says = error.to_string();
            assert!(words.iter().all(|word| says.contains(word)), "{says}");
            assert_eq!(
                words.len() == 3,
                matches!(error, Error::TwoRecords { counter: "tag.posts", .. }),
                "{says}"
            );
        }
    }
    assert_eq!((memory.offset("imports"), sqlite.offset("imports").unwrap()), (0, 0));
    // A batch that was refused may be used again once it is cleared.
    let mut batch = Batch::new();
    batch.insert(&Post);
    batch.insert(&Use::OfAnother);
    batch.clear();
    // A counter that is added to by hand belongs to no record type, so a record may add to it too.
    // A wrapper counts as the type that it wraps.
    batch.add(TAG_POSTS, 7, 1);
    batch.add(TAG_USES, 7, 1);
    batch.insert(&&Use::Own);
    batch.insert(&Some(Use::Own));
    batch.insert(&vec![Post]);
    batch.insert(&Draft(Post));
    batch.insert(&Post);
    batch.insert(&Post as &dyn Record);
    assert_eq!(sqlite.apply(&mut batch.clone()).unwrap().totals, 2);
    assert_eq!(memory.apply(&mut batch).unwrap().totals, 2);
    assert_eq!((memory.total(TAG_USES, 7).unwrap(), sqlite.total(TAG_POSTS, 7).unwrap()), (3, 5));
    batch.insert(&Titled("a"));
    batch.update(&Titled("a".to_owned()), &Titled(String::new()));
    assert_eq!(memory.apply(&mut batch).unwrap().totals, 1);
}

trait Apply {
    fn apply_event(&mut self, batch: &mut Batch, number: u64) -> Applied;
}

impl<S: Store> Apply for S {
    fn apply_event(&mut self, batch: &mut Batch, number: u64) -> Applied {
        self.apply_idempotent(batch, &StreamRange::new("votes", number, number).unwrap()).unwrap()
    }
}

/// A writer reused one batch. If it added nothing since, the result reported the earlier deltas
/// once more.
#[test]
fn reused_batch_without_new_deltas_reports_none() {
    const VOTES: Counter<i64> = Counter::new("votes");
    const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("link");
    const SUM: Counter<i64> = Counter::new("sum").sum_of(VOTES, MEMBERSHIP);
    const ROLLUP_WRITES: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SUM.table()]);
    const PLAIN: Schema = Schema::new(&[VOTES.table()]);
    for schema in [&PLAIN, &ROLLUP_WRITES] {
        let conn = Connection::open_in_memory().unwrap();
        SqliteStore::new(&conn, schema).create().unwrap();
        let (mut sqlite, mut memory) = (SqliteStore::new(&conn, schema), MemoryStore::new(schema));
        let stores: [&mut dyn Apply; 2] = [&mut sqlite, &mut memory];
        for store in stores {
            let mut batch = Batch::new();
            batch.add(VOTES, 1, 3);
            let told = [1, 2, 3].map(|number| {
                let applied = store.apply_event(&mut batch, number);
                (applied.totals, applied.deltas(&batch).count())
            });
            assert_eq!(told, [(1, 1), (0, 0), (0, 0)]);
        }
    }
}
