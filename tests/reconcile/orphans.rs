//! Counters and leaderboards that are in the database and not in the schema. Those that the schema
//! lost are listed, and dropped on demand. Those of a newer schema decide whether an older one may
//! start.

use crate::support::world::run_whole;
use keepcount::backend::LeaderboardId;
use keepcount::reconcile::{Columns, Mode, Options, SqliteAudit, SqliteRows};
use keepcount::{
    Batch, Counter, Error, Leaderboard, Record, Recovery, Schema, SqliteStore, Store, Tally,
};
use rusqlite::Connection;

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const VOTES_2: Counter<i64> = VOTES.version(2);
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
const SHOW_DAYS: Counter<(i64, i64)> = Counter::new("show.days").sum_of_suffix(DAYS, MEMBERSHIP);
/// Counters whose names are words of the catalogue's placement clauses.
const ALONG: Counter<i64> = Counter::new("along");
const OF: Counter<(i64, i64)> = Counter::new("of");
const SUM: Counter<i64> = Counter::new("sum").sum_of(ALONG, OF);
const RANK: LeaderboardId =
    Leaderboard::<i64>::new("show.board", [SHOWS, VOTES_2]).by(|_| None).id();

const ALL: Schema = Schema::new(&[
    VOTES.table(),
    VOTES_2.table(),
    MEMBERSHIP.table(),
    SHOWS.table(),
    DAYS.table().prunable(),
    SHOW_DAYS.table().prunable(),
    ALONG.table(),
    OF.table(),
    SUM.table(),
])
.leaderboards(&[RANK]);
const NONE: Schema = Schema::new(&[]);
const OLD: Schema = Schema::new(&[VOTES.table()]);

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, &ALL).create().unwrap();
    conn
}

/// All tables, indexes and catalogue rows of a database.
fn dump(conn: &Connection) -> Vec<String> {
    let list = |text: &str| -> Vec<String> {
        conn.prepare(text)
            .unwrap()
            .query_map((), |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    let mut all = list("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY name");
    all.extend(list("SELECT name || ready || identity FROM keepcount_counters ORDER BY name"));
    all
}

#[test]
fn orphaned_lists_what_the_schema_lost() {
    let conn = database();
    assert!(SqliteStore::new(&conn, &ALL).orphaned().unwrap().is_empty());
    let lost = SqliteStore::new(&conn, &OLD).orphaned().unwrap();
    assert_eq!(
        lost,
        [
            "along",
            "of",
            "setlist.days",
            "setlist.show",
            "setlist.votes.v2",
            "show.board",
            "show.days",
            "show.votes",
            "sum"
        ]
    );
    assert_eq!(SqliteStore::new(&conn, &NONE).orphaned().unwrap().len(), 10);
}

#[test]
fn counter_is_dropped_only_after_the_rollups_and_leaderboards_over_it() {
    let conn = database();
    let mut none = SqliteStore::new(&conn, &NONE);
    let made_of = [
        ("setlist.votes", "show."),
        ("setlist.votes.v2", "show.board"),
        ("setlist.show", "show."),
        ("show.votes", "show.board"),
        ("setlist.days", "show.days"),
        ("along", "sum"),
        ("of", "sum"),
    ];
    for (name, of) in made_of {
        let before = dump(&conn);
        let error = none.drop_counter(name).unwrap_err();
        let Error::InvalidUse { what: "drop_counter", reason } = &error else { panic!("{error}") };
        assert!(
            reason.starts_with(of)
                && reason.contains(name)
                && error.recovery() == Recovery::Permanent,
            "{error}"
        );
        assert_eq!(dump(&conn), before);
    }
    let tops_down = ["show.board", "show.days", "show.votes", "sum"];
    let below = made_of.map(|(name, _)| name).into_iter().filter(|name| !tops_down.contains(name));
    for name in tops_down.into_iter().chain(below) {
        let (rows, tables) = (none.orphaned().unwrap().len(), dump(&conn).len());
        none.drop_counter(name).unwrap();
        assert_eq!(none.orphaned().unwrap().len(), rows - 1);
        assert!(dump(&conn).len() < tables - 1, "its table and its row are gone");
        assert!(
            matches!(none.drop_counter(name), Err(Error::UnknownCounter { counter, .. }) if counter == name)
        );
    }
    let left: Vec<String> = dump(&conn)
        .into_iter()
        .filter(|text| text.contains("setlist") || text.contains("show"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // All of them can be created again, as new counters.
    SqliteStore::new(&conn, &ALL).create().unwrap();
    assert_eq!(SqliteStore::new(&conn, &ALL).unready().unwrap().len(), 9);
}

#[test]
fn counter_that_is_in_the_schema_is_not_dropped() {
    let conn = database();
    let mut all = SqliteStore::new(&conn, &ALL);
    let before = dump(&conn);
    for name in ["setlist.votes", "setlist.votes.v2", "sum", "show.board"] {
        let error = all.drop_counter(name).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidUse { what: "drop_counter", reason } if reason.contains(name)),
            "{error}"
        );
    }
    let mut old = SqliteStore::new(&conn, &OLD);
    let bad = [
        "",
        "setlist.votes.v3",
        "SETLIST.SHOW",
        "setlist_show",
        "keepcount_counters",
        "sqlite_schema",
        "a\"; DROP TABLE x; --",
    ];
    for name in bad {
        assert!(
            matches!(old.drop_counter(name), Err(Error::UnknownCounter { counter, .. }) if counter == name),
            "{name}"
        );
    }
    assert_eq!(dump(&conn), before);
}

#[test]
fn counter_is_dropped_whole_or_not_at_all() {
    let conn = database();
    let mut none = SqliteStore::new(&conn, &NONE);
    let before = dump(&conn);
    // In the caller's transaction.
    conn.execute_batch("BEGIN").unwrap();
    none.drop_counter("sum").unwrap();
    assert_eq!(none.orphaned().unwrap().len(), 9);
    conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(dump(&conn), before);
    // The counter's table is a view, and then it is missing.
    conn.execute_batch("DROP TABLE sum; CREATE VIEW sum AS SELECT 1 AS a").unwrap();
    let error = none.drop_counter("sum").unwrap_err();
    assert!(
        matches!(error, Error::Database { .. }) && error.to_string().contains("dropping sum"),
        "{error}"
    );
    assert!(conn.is_autocommit() && none.orphaned().unwrap().contains(&"sum".to_owned()));
    conn.execute_batch("DROP VIEW sum").unwrap();
    none.drop_counter("sum").unwrap();
    // A database without a catalogue.
    let empty = Connection::open_in_memory().unwrap();
    let mut empty = SqliteStore::new(&empty, &NONE);
    for error in [empty.orphaned().unwrap_err(), empty.drop_counter("sum").unwrap_err()] {
        assert!(
            matches!(&error, Error::SchemaMismatch { table, .. } if table == "keepcount_counters"),
            "{error}"
        );
    }
}

#[test]
fn hand_written_name_in_the_catalogue_is_not_run_as_a_statement() {
    let conn = database();
    let name = "x\" ; DROP TABLE setlist_votes; --";
    conn.execute(
        "INSERT INTO keepcount_counters (name, key, version, placement) VALUES (?1, 'i64', 1, 'board of , table, sum of')",
        [name],
    )
    .unwrap();
    let mut none = SqliteStore::new(&conn, &NONE);
    none.drop_counter(name).unwrap();
    SqliteStore::new(&conn, &ALL).check().unwrap();
}

// An older schema beside a newer one.

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, 1);
        to.add(VOTES_2, self.0, 1);
        to.add(MEMBERSHIP, (self.0, 1), 1);
    }
}

const SUMMED: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SHOWS.table()]);
const RANKED: LeaderboardId = Leaderboard::<i64>::new("setlist.board", [VOTES]).by(|_| None).id();

fn create_votes_table(conn: &Connection) {
    conn.execute_batch(
        "CREATE TABLE votes (setlist INTEGER, show INTEGER); CREATE INDEX by_setlist ON votes (setlist, show)",
    )
    .unwrap();
}

fn backfill(conn: &Connection, schema: &Schema) {
    let mut audit = SqliteAudit::new(conn, schema).unwrap();
    let votes = SqliteRows::of("votes", |row| Ok(Vote(row.get(0)?)))
        .columns("setlist")
        .key(VOTES, Columns::of(["setlist"]).count())
        .key(MEMBERSHIP, Columns::of(["setlist", "show"]).count());
    audit.add(votes).unwrap();
    assert!(run_whole(Mode::Backfill, schema, Options::default(), &mut audit).unwrap().complete());
}

#[test]
fn older_schema_starts_beside_a_newer_rollup_until_that_is_ready() {
    let conn = Connection::open_in_memory().unwrap();
    create_votes_table(&conn);
    let mut old = SqliteStore::new(&conn, &OLD);
    old.create().unwrap();
    SqliteStore::new(&conn, &SUMMED).create().unwrap();
    old.check().unwrap();
    old.create().unwrap();
    assert_eq!(
        old.orphaned().unwrap(),
        ["setlist.show", "show.votes"],
        "the older schema lists the new counters as lost"
    );
    backfill(&conn, &SUMMED);
    for error in [old.check().unwrap_err(), old.create().unwrap_err()] {
        let Error::SchemaMismatch { table, reason } = &error else { panic!("{error}") };
        assert_eq!(table, "show_votes");
        for part in ["show.votes", "setlist.votes feeds it", "ready", "drop_counter"] {
            assert!(reason.contains(part), "{error}");
        }
    }
    // A ready counter without rollups does not stop an older schema: whether every writer runs its
    // hooks is for the operator to know.
    SqliteStore::new(&conn, &SUMMED).check().unwrap();
    old.drop_counter("show.votes").unwrap();
    old.check().unwrap();
}

#[test]
fn older_schema_starts_beside_a_newer_leaderboard_until_that_is_rebuilt() {
    const LEADERBOARD: Leaderboard<i64> =
        Leaderboard::new("setlist.board", [VOTES]).by(|[total]| Some(total));
    const NEWER: Schema = Schema::new(&[VOTES.table()]).leaderboards(&[RANKED]);
    let conn = Connection::open_in_memory().unwrap();
    let mut old = SqliteStore::new(&conn, &OLD);
    old.create().unwrap();
    let mut newer = SqliteStore::new(&conn, &NEWER);
    newer.create().unwrap();
    old.check().unwrap();
    newer.rebuild(LEADERBOARD).unwrap();
    let error = old.check().unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "setlist_board"),
        "{error}"
    );
}

#[test]
fn older_schema_starts_beside_a_newer_version_until_that_is_ready() {
    const NEWER: Schema = Schema::new(&[VOTES.table(), VOTES_2.table()]);
    const LATER: Schema = Schema::new(&[VOTES_2.table()]);
    /// Not a version of the counter, although the name begins like one.
    const OTHER: Schema = Schema::new(&[Counter::<i64>::new("setlist").table()]);
    let conn = Connection::open_in_memory().unwrap();
    let mut old = SqliteStore::new(&conn, &OLD);
    old.create().unwrap();
    let mut newer = SqliteStore::new(&conn, &NEWER);
    newer.create().unwrap();
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    old.apply(&mut batch.clone()).unwrap();
    batch.add(VOTES_2, 1, 1);
    newer.apply(&mut batch.clone()).unwrap();
    old.check().unwrap();
    assert_eq!((old.total(VOTES, 1).unwrap(), newer.total(VOTES, 1).unwrap()), (2, 2));
    assert!(matches!(newer.sum(VOTES_2.all()), Err(Error::NotReady { .. })));
    assert!(
        matches!(old.apply(&mut batch), Err(Error::DefinitionConflict { .. })),
        "the older schema has one version only"
    );

    conn.execute_batch("UPDATE keepcount_counters SET ready = 1").unwrap();
    for error in [old.check().unwrap_err(), old.create().unwrap_err()] {
        let Error::SchemaMismatch { table, reason } = &error else { panic!("{error}") };
        assert!(table == "setlist_votes_v2" && reason.contains("later version"), "{error}");
    }
    newer.check().unwrap();
    SqliteStore::new(&conn, &LATER).check().unwrap();
    SqliteStore::new(&conn, &OTHER).create().unwrap();
}
