//! SQLite errors at every call that writes: another connection's lock or commit, a full disk, a
//! file that is read-only, moved or damaged. The error says what became of the call. Nothing is
//! applied in part and nothing is lost; once the fault is gone, calls succeed and totals are exact.

use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

use crate::support::crash::writer::Writer;
use crate::support::crash::{
    Hits, Journal, Random, Row, SCHEMA, SETLIST_DAYS, SETLIST_VOTES, SHOWS, Site, assert_exact,
    audit, drift, dump, repair, rounds, settle, stream_range,
};
use keepcount::backend::CounterSpec;
use keepcount::reconcile::audit::RepairRequest;
use keepcount::reconcile::{Audit as _, Mode, Options, Reconciler, SystemRuntime, run};
use keepcount::{
    Batch, Counter, Error, KeyBuf, Leaderboard, Recovery, Result, Schema, SqliteStore, Store as _,
};
use rusqlite::{Connection, ErrorCode, OpenFlags};

// The calls.

/// One call of a store, and the rows of the application that belong to it.
struct Call {
    /// What its errors name.
    names: &'static str,
    rows: fn(&Connection),
    run: fn(&Connection) -> Result<()>,
    /// Whether it may be called in the caller's transaction.
    inside: bool,
}

const CALLS: [Call; 6] = [
    Call {
        names: "totals of counter",
        rows: |conn| write_crowd(conn, 1),
        run: |conn| SqliteStore::new(conn, &SCHEMA).apply(&mut crowd(1)).map(drop),
        inside: true,
    },
    Call {
        names: "totals of counter",
        rows: |conn| write_crowd(conn, 2),
        run: |conn| {
            let applied = SqliteStore::new(conn, &SCHEMA)
                .apply_idempotent(&mut crowd(2), &stream_range("crowd", 1, 9))?;
            assert!(!applied.skipped, "it was not applied before");
            Ok(())
        },
        inside: true,
    },
    Call {
        names: "counter setlist.days",
        rows: |_| (),
        run: |conn| SqliteStore::new(conn, &SCHEMA).prune(SETLIST_DAYS, 20_i64).map(drop),
        inside: true,
    },
    Call {
        names: "making tables",
        rows: |_| (),
        run: |conn| SqliteStore::new(conn, &WIDER).create(),
        inside: true,
    },
    Call {
        names: "leaderboard show.board",
        rows: |_| (),
        run: |conn| SqliteStore::new(conn, &SCHEMA).rebuild(SHOWS).map(drop),
        inside: true,
    },
    Call {
        names: "totals of counter setlist.votes",
        rows: |_| (),
        run: |conn| {
            let keys = (0..MANY).map(KeyBuf::of::<i64>).collect();
            let repaired =
                audit(conn)?.repair(&RepairRequest { counter: SETLIST_VOTES.id(), keys })?;
            assert_eq!(repaired.corrected, 200, "every wrong total");
            Ok(())
        },
        inside: false,
    },
];

/// The number of ids of a crowd. Each is a show with one setlist and one vote: enough for some
/// pages of each table.
const MANY: i64 = 200;

/// The ids of a crowd of rows. Those of writers begin after them.
fn ids(crowd: i64) -> Range<i64> {
    crowd * MANY..(crowd + 1) * MANY
}

fn rows_of(id: i64) -> [Row; 3] {
    [
        Row::Show { id, artist: id % 5 },
        Row::Setlist { id, show: id },
        Row::Vote { setlist: id, stars: 3, day: 18 + id % 5 },
    ]
}

fn crowd(crowd: i64) -> Batch {
    let mut batch = Batch::new();
    ids(crowd).for_each(|id| batch.insert(rows_of(id).as_slice()));
    batch
}

fn write_crowd(conn: &Connection, crowd: i64) {
    let Range { start, end } = ids(crowd);
    let text = format!(
        "WITH RECURSIVE n (id) AS (SELECT {start} UNION ALL SELECT id + 1 FROM n WHERE id + 1 < {end})
         INSERT INTO TABLE SELECT * FROM n;"
    );
    for (table, columns) in
        [("shows", "id, id % 5"), ("setlists", "id, id"), ("votes", "id, id, 3, 18 + id % 5")]
    {
        conn.execute_batch(&text.replace("TABLE", table).replace('*', columns)).unwrap();
    }
}

const NEW: [Counter<(i64, String)>; 4] =
    [Counter::new("new.a"), Counter::new("new.b"), Counter::new("new.c"), Counter::new("new.d")];
const MORE: [CounterSpec; 12] = [
    SCHEMA.counters()[0],
    SCHEMA.counters()[1],
    SCHEMA.counters()[2],
    SCHEMA.counters()[3],
    SCHEMA.counters()[4],
    SCHEMA.counters()[5],
    SCHEMA.counters()[6],
    SCHEMA.counters()[7],
    NEW[0].table(),
    NEW[1].table(),
    NEW[2].table(),
    NEW[3].table(),
];
const NEW_LEADERBOARD: Leaderboard<(i64, String)> =
    Leaderboard::new("new.board", [NEW[0]]).by(|[total]| Some(total));
/// The schema of a newer application.
const WIDER: Schema = Schema::new(&MORE).leaderboards(&[SHOWS.id(), NEW_LEADERBOARD.id()]);

/// A database file in which each call has much to do: a crowd without totals, a leaderboard without
/// lines, votes on days that are to be pruned. No page is free.
fn ready_file() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let site = Site::new(Journal::Delete);
        let mut writer = Writer::start(site.dir.path(), 1, 5).unwrap();
        writer.conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
        (0..150).for_each(|_| writer.turn().unwrap());
        let conn = site.open();
        write_crowd(&conn, 0);
        SqliteStore::new(&conn, &SCHEMA).apply(&mut crowd(0)).unwrap();
        assert_exact(&conn);
        conn.execute_batch(
            "DELETE FROM setlist_votes WHERE key < 200; DELETE FROM show_board; VACUUM",
        )
        .unwrap();
        fs::read(site.path()).unwrap()
    })
}

fn ready_site(journal: Journal) -> Site {
    let site = Site { dir: crate::support::temp_dir(), journal };
    fs::write(site.path(), ready_file()).unwrap();
    if journal == Journal::Wal {
        site.open().query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();
    }
    site
}

/// Makes a call with its rows, and asserts that it succeeds.
#[track_caller]
fn call(conn: &Connection, call: &Call, inside: bool) {
    if inside {
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        (call.rows)(conn);
        (call.run)(conn).unwrap();
        conn.execute_batch("COMMIT").unwrap();
    } else {
        (call.run)(conn).unwrap();
        (call.rows)(conn);
    }
}

/// Each call, on its own and, if it is allowed there, in the caller's transaction.
fn calls() -> impl Iterator<Item = (&'static Call, bool)> {
    CALLS
        .iter()
        .flat_map(|call| [(call, false), (call, true)])
        .filter(|(call, inside)| call.inside || !inside)
}

#[track_caller]
fn assert_busy(error: &Error, call: &Call, says: &str) {
    let text = error.to_string();
    assert!(
        matches!(error, Error::Busy { .. }) && error.recovery() == Recovery::Retry,
        "{error:?}"
    );
    assert!(text.contains(says), "{text}");
    // A call that reads before it writes names what it reads.
    assert!(
        text.contains(call.names) || text.contains("offset of stream") || text.contains("reading"),
        "{text}"
    );
}

// Other connections.

#[test]
fn lock_of_another_connection_refuses_every_call_and_a_repeat_succeeds() {
    let mut hits = Hits::default();
    for journal in [Journal::Wal, Journal::Delete] {
        for lock in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
            let site = ready_site(journal);
            let (conn, other) = (site.open_quickly(), site.open_quickly());
            for (it, inside) in calls() {
                let before = dump(&conn);
                other.execute_batch(lock).unwrap();
                if inside {
                    conn.execute_batch("BEGIN").unwrap();
                }
                assert_busy(&(it.run)(&conn).unwrap_err(), it, "is locked by another connection");
                hits.note(format!("{journal:?}, {lock}"));
                assert_eq!(conn.is_autocommit(), !inside, "the caller's transaction stays");
                if inside {
                    conn.execute_batch("ROLLBACK").unwrap();
                }
                other.execute_batch("ROLLBACK").unwrap();
                assert_eq!(dump(&conn), before);
            }
            for it in &CALLS {
                call(&conn, it, false);
            }
            settle(&conn);
        }
    }
    hits.end("busy", &[]);
}

/// With a rollback journal, a commit waits for readers.
#[test]
fn reader_makes_the_commit_of_every_call_busy_and_a_repeat_succeeds() {
    let mut hits = Hits::default();
    for (it, inside) in calls() {
        let site = ready_site(Journal::Delete);
        let (conn, other) = (site.open_quickly(), site.open_quickly());
        let before = dump(&conn);
        other.execute_batch("BEGIN; SELECT count(*) FROM votes").unwrap();
        if inside {
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            (it.rows)(&conn);
            (it.run)(&conn).unwrap();
            let error = conn.execute_batch("COMMIT").unwrap_err();
            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
            assert_eq!(dump(&other), before);
            other.execute_batch("ROLLBACK").unwrap();
            conn.execute_batch("COMMIT").unwrap();
        } else {
            assert_busy(&(it.run)(&conn).unwrap_err(), it, "is locked by another connection");
            assert!(conn.is_autocommit());
            assert_eq!(dump(&conn), before);
            other.execute_batch("ROLLBACK").unwrap();
            call(&conn, it, false);
        }
        hits.note(if inside { "the caller's commit" } else { "the call's own" });
        settle(&conn);
    }
    hits.end("busy at the commit", &[]);
}

#[test]
fn overtaken_transaction_refuses_every_call_until_it_is_rolled_back() {
    let mut hits = Hits::default();
    for (it, _) in calls().filter(|(_, inside)| *inside) {
        let site = ready_site(Journal::Wal);
        let (conn, other) = (site.open_quickly(), site.open_quickly());
        conn.execute_batch("BEGIN; SELECT count(*) FROM votes").unwrap();
        other.execute_batch("INSERT INTO events VALUES ('other', 1)").unwrap();
        let before = dump(&other);
        for _ in 0..2 {
            assert_busy(&(it.run)(&conn).unwrap_err(), it, "roll it back and repeat it whole");
            hits.note("overtaken");
            assert!(!conn.is_autocommit());
        }
        conn.execute_batch("ROLLBACK").unwrap();
        assert_eq!(dump(&conn), before);
        call(&conn, it, true);
        settle(&conn);
    }
    hits.end("busy snapshot", &[]);
}

// Disks.

fn pages(conn: &Connection) -> i64 {
    conn.query_row("PRAGMA page_count", (), |row| row.get(0)).unwrap()
}

fn allow_pages(conn: &Connection, pages: i64) {
    conn.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(())).unwrap();
}

/// Makes a call on a disk with room for a few more pages: from none up to as many as the call
/// needs.
fn fill_the_disk(journal: Journal, it: &Call, inside: bool, hits: &mut Hits) {
    // The steps grow with the room. They are smaller if the environment sets the rounds.
    let part = if rounds(0) == 0 { 2 } else { 4 };
    let rooms = std::iter::successors(Some(0), |room| Some(room + 1 + room / part))
        .take_while(|room| *room < 100);
    for room in rooms {
        let site = ready_site(journal);
        let conn = site.open_quickly();
        let before = dump(&conn);
        if inside {
            conn.execute_batch("BEGIN IMMEDIATE").unwrap();
            (it.rows)(&conn);
        }
        allow_pages(&conn, pages(&conn) + room);
        let Err(error) = (it.run)(&conn) else {
            if inside {
                conn.execute_batch("COMMIT").unwrap();
                allow_pages(&conn, 1 << 30);
            } else {
                allow_pages(&conn, 1 << 30);
                (it.rows)(&conn);
            }
            settle(&conn);
            hits.note(format!("enough: {room} pages"));
            return;
        };
        assert!(
            error.to_string().contains("full") && error.recovery() == Recovery::Permanent,
            "{error:?}"
        );
        match error {
            Error::Database { .. } if !inside => {
                hits.note("alone");
                assert!(conn.is_autocommit());
                assert_eq!(dump(&conn), before);
            }
            Error::Database { .. } => {
                hits.note("in a transaction that stays");
                assert!(
                    !conn.is_autocommit(),
                    "the transaction is gone, and the error does not say so: {error}"
                );
                conn.execute_batch("ROLLBACK").unwrap();
                assert_eq!(dump(&conn), before);
            }
            Error::TransactionLost { .. } if inside => {
                hits.note("transaction lost");
                assert!(conn.is_autocommit());
                assert_eq!(dump(&conn), before);
            }
            other => panic!("{other:?}"),
        }
        allow_pages(&conn, 1 << 30);
        call(&conn, it, inside);
        settle(&conn);
    }
    panic!("100 pages are not enough");
}

#[test]
fn full_disk_at_any_page_refuses_every_call_and_a_repeat_with_room_succeeds() {
    let mut hits = Hits::default();
    for journal in [Journal::Wal, Journal::Delete] {
        for (it, inside) in calls() {
            fill_the_disk(journal, it, inside, &mut hits);
        }
    }
    hits.end("full disk", &["alone", "transaction lost"]);
}

#[test]
fn read_only_connection_refuses_every_call_and_can_verify() {
    let mut hits = Hits::default();
    for journal in [Journal::Wal, Journal::Delete] {
        let site = ready_site(journal);
        let by_pragma = site.open_quickly();
        by_pragma.execute_batch("PRAGMA query_only = ON").unwrap();
        let by_flag =
            Connection::open_with_flags(site.path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        for conn in [by_pragma, by_flag] {
            let before = dump(&conn);
            for (it, inside) in calls() {
                if inside {
                    conn.execute_batch("BEGIN").unwrap();
                }
                let error = (it.run)(&conn).unwrap_err();
                assert!(
                    matches!(error, Error::Database { .. })
                        && error.recovery() == Recovery::Permanent,
                    "{error:?}"
                );
                assert!(error.to_string().contains("readonly"), "{error}");
                hits.note(format!("{journal:?}"));
                assert_eq!(conn.is_autocommit(), !inside);
                if inside {
                    conn.execute_batch("ROLLBACK").unwrap();
                }
            }
            let mut audit = audit(&conn).unwrap();
            let verify =
                Reconciler::scoped(Mode::Verify, &SCHEMA, &audit.counters(), Options::default());
            let report = run(&mut verify.unwrap(), &mut audit, &mut SystemRuntime::new());
            assert!(report.unwrap().drift() >= 200);
            assert_eq!(dump(&conn), before);
        }
    }
    hits.end("read-only", &[]);
}

/// SQLite notices a moved or replaced file where it would write a journal beside the wrong one.
#[test]
fn moved_file_refuses_every_call_and_its_replacement_is_not_touched() {
    let mut hits = Hits::default();
    for replaced in [false, true] {
        for (it, inside) in calls() {
            let site = ready_site(Journal::Delete);
            let conn = site.open_quickly();
            let before = dump(&conn);
            let aside = site.dir.path().join("aside.db");
            fs::rename(site.path(), &aside).unwrap();
            if replaced {
                fs::write(site.path(), ready_file()).unwrap();
            }
            if inside {
                conn.execute_batch("BEGIN").unwrap();
            }
            let error = (it.run)(&conn).unwrap_err();
            assert!(
                matches!(error, Error::Database { .. }) && error.recovery() == Recovery::Permanent,
                "{error:?}"
            );
            assert!(error.to_string().contains("readonly"), "{error}");
            hits.note(if replaced { "replaced" } else { "gone" });
            assert_eq!(conn.is_autocommit(), !inside);
            if inside {
                conn.execute_batch("ROLLBACK").unwrap();
            }
            assert_eq!(dump(&conn), before);
            assert_eq!(site.path().exists(), replaced);
            assert!(!replaced || fs::read(site.path()).unwrap() == ready_file());
            // Once the file is moved back, calls succeed.
            fs::rename(&aside, site.path()).unwrap();
            call(&conn, it, inside);
            settle(&conn);
        }
    }
    hits.end("moved away", &[]);
}

// A file that is damaged.

const DAMAGES: u64 = 20;

/// Changes some bytes in a random page of a table.
fn damage(site: &Site, table: &str, random: &mut Random) {
    let conn = site.open();
    let mut pages = conn.prepare("SELECT pageno FROM dbstat WHERE name = ?1").unwrap();
    let pages = pages
        .query_map([table], |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<Vec<u32>>>()
        .unwrap();
    let page = pages[usize::try_from(random.below(pages.len() as u64)).unwrap()];
    let mut file = fs::read(site.path()).unwrap();
    for _ in 0..=random.below(6) {
        let at = u64::from(page - 1) * 1024 + random.below(1024);
        file[usize::try_from(at).unwrap()] ^= u8::try_from(1 + random.below(255)).unwrap();
    }
    fs::write(site.path(), file).unwrap();
}

/// The tables of rollups that sum this one, directly or not.
fn rollups_above(table: &str) -> &'static [&'static str] {
    match table {
        "setlist_votes" => &["show_votes", "artist_votes"],
        "setlist_days" => &["show_days"],
        "setlist_show" => &["show_votes", "show_days", "artist_votes"],
        "show_votes" | "show_artist" => &["artist_votes"],
        _ => &[],
    }
}

#[test]
fn damaged_totals_are_repaired_exactly_or_reported_as_an_error() {
    let (mut random, mut hits) = (Random(8), Hits::default());
    for round in 0..rounds(DAMAGES) {
        let site = ready_site(Journal::Delete);
        let table = SCHEMA.counters()[usize::try_from(round % 7).unwrap()].table_name();
        damage(&site, &table, &mut random);
        let conn = site.open_quickly();
        let found: String = conn.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
        let off = drift(&conn);
        let repaired = repair(&conn);
        hits.note(match (found == "ok", &repaired) {
            (true, Ok(_)) => "not seen by SQLite: repaired",
            (true, Err(error)) => panic!("{error}"),
            (false, Ok(_)) => "seen by SQLite, not where a repair looked: repaired",
            (false, Err(_)) => "an error",
        });
        if found == "ok" {
            settle(&conn);
            continue;
        }
        if let Err(error) = &repaired {
            assert_eq!(error.recovery(), Recovery::Permanent, "{found}: {error:?}");
        }
        if let (Ok(off), Ok(left)) = (off, drift(&conn)) {
            // Rollups over a table that cannot be searched are as wrong as that table.
            for (name, drift) in left
                .iter()
                .filter(|(name, _)| name.0 != table && !rollups_above(&table).contains(&name.0))
            {
                assert_eq!(
                    off.get(name),
                    Some(drift),
                    "{name:?} was repaired wrongly; {found}, {repaired:?}"
                );
            }
        }
        // A table that is created again works again.
        let made = "SELECT sql FROM sqlite_schema WHERE name = ?1";
        let made: String = conn.query_row(made, [&table], |row| row.get(0)).unwrap();
        if conn.execute_batch(&format!("BEGIN; DROP TABLE {table}; {made}; COMMIT")).is_ok() {
            hits.note("made anew");
            SqliteStore::new(&conn, &SCHEMA).create().unwrap();
            settle(&conn);
        }
    }
    hits.end("damaged totals", &["an error", "made anew", "not seen by SQLite: repaired"]);
}
