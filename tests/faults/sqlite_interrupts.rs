//! Interrupted statements: by a progress handler (the usual way to give a query a deadline) or by
//! `sqlite3_interrupt`, at every step at which SQLite checks, in every call. SQLite can return an
//! error for a statement whose effect stands; what a call reports must be true all the same.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use crate::support::crash::{
    FEED_SUM, Hits, Journal, Row, SCHEMA, SETLIST_DAYS, SETLIST_VOTES, SHOW_ARTIST, SHOWS, Site,
    Totals, assert_exact, assert_ready_exact, audit, drift, dump, feed, stream_range,
};
use keepcount::backend::{CounterSpec, KeyRange};
use keepcount::reconcile::audit::{PageRequest, Probe, Ready, RepairRequest};
use keepcount::reconcile::{Audit as _, Mode, Options, Reconciler, SystemRuntime, run};
use keepcount::{
    Batch, Counter, Error, KeyBuf, Recovery, Result, Schema, SqliteStore, Store as _, Sweep,
};
use rusqlite::Connection;
use rusqlite::hooks::Wal;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use tempfile::TempDir;

// What stops statements.

/// How statements are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The handler stops one statement.
    Once,
    /// The handler stops that statement and all that follow.
    On,
    /// The handler calls `sqlite3_interrupt`, which stops all statements until none runs any more.
    Flag,
    /// The handler stops a statement whenever it was called that many times more.
    Each,
}

/// A progress handler that stops nothing before it is armed.
#[derive(Clone)]
struct Brake(Arc<Asked>);

#[derive(Default)]
struct Asked {
    times: AtomicU64,
    /// The call at which it stops a statement; 0 is never.
    at: AtomicU64,
}

impl Brake {
    /// Installs a handler, which SQLite calls after every `every` operations.
    fn on(conn: &mut Connection, way: Way, every: i32) -> Self {
        let brake = Self(Arc::default());
        let (asked, handle) = (Arc::clone(&brake.0), conn.get_interrupt_handle());
        let stops = move || {
            let at = asked.at.load(Ordering::Relaxed);
            if at == 0 {
                return false;
            }
            let time = asked.times.fetch_add(1, Ordering::Relaxed) + 1;
            match way {
                Way::Once => time == at,
                Way::On => time >= at,
                Way::Each => time.is_multiple_of(at),
                Way::Flag => {
                    if time == at {
                        handle.interrupt();
                    }
                    false
                }
            }
        };
        conn.progress_handler(every, Some(stops)).unwrap();
        brake
    }

    fn arm(&self, at: u64) {
        self.0.times.store(0, Ordering::Relaxed);
        self.0.at.store(at, Ordering::Relaxed);
    }

    /// Stops nothing any more. Returns whether it has stopped something, and how often it was
    /// called.
    fn release(&self) -> (bool, u64) {
        let at = self.0.at.swap(0, Ordering::Relaxed);
        let times = self.0.times.load(Ordering::Relaxed);
        (times >= at, times)
    }
}

// The calls that are stopped.

/// A call. It arms the brake where the part begins that may be stopped.
type Run<'a> = &'a dyn Fn(&Connection, &dyn Fn()) -> Result<()>;

/// What a failed call leaves in the caller's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Nothing: the transaction may go on.
    Nothing,
    /// Part of the call: the transaction must be rolled back.
    Some,
    /// The call is not allowed in a transaction.
    Outside,
}

struct Call {
    name: &'static str,
    /// Arms the brake where the part begins that may be stopped.
    run: fn(&Connection, &dyn Fn()) -> Result<()>,
    rest: Rest,
    /// Whether the call fails even if it is not stopped.
    fails: bool,
}

impl Call {
    const fn new(
        name: &'static str,
        rest: Rest,
        run: fn(&Connection, &dyn Fn()) -> Result<()>,
    ) -> Self {
        Self { name, run, rest, fails: false }
    }
}

const PLAIN: Schema = Schema::new(&[FEED_SUM.table()]);

const NEW: Counter<(i64, String)> = Counter::new("new.a");
const MORE: [CounterSpec; 9] = [
    SCHEMA.counters()[0],
    SCHEMA.counters()[1],
    SCHEMA.counters()[2],
    SCHEMA.counters()[3],
    SCHEMA.counters()[4],
    SCHEMA.counters()[5],
    SCHEMA.counters()[6],
    SCHEMA.counters()[7],
    NEW.table(),
];
const WIDER: Schema = Schema::new(&MORE).leaderboards(&[SHOWS.id()]);
const FEWER: [CounterSpec; 7] = [
    SCHEMA.counters()[0],
    SCHEMA.counters()[1],
    SCHEMA.counters()[2],
    SCHEMA.counters()[3],
    SCHEMA.counters()[4],
    SCHEMA.counters()[5],
    SCHEMA.counters()[7],
];
const NARROWER: Schema = Schema::new(&FEWER).leaderboards(&[SHOWS.id()]);

/// Moves a setlist to another show, and adds a vote.
fn move_and_vote() -> Batch {
    let mut batch = Batch::new();
    batch.update(&Row::Setlist { id: 2, show: 1 }, &Row::Setlist { id: 2, show: 3 });
    batch.insert(&Row::Vote { setlist: 2, stars: 5, day: 20 });
    batch
}

/// Calls that are applied whole or not at all.
const WHOLE: [Call; 18] = [
    Call::new("apply", Rest::Nothing, |conn, arm| {
        let mut batch = Batch::new();
        (1..=3).for_each(|key| batch.add(FEED_SUM, key, 10 * key));
        arm();
        SqliteStore::new(conn, &PLAIN).apply(&mut batch).map(drop)
    }),
    Call::new("apply, climbing", Rest::Nothing, |conn, arm| {
        arm();
        SqliteStore::new(conn, &SCHEMA).apply(&mut move_and_vote()).map(drop)
    }),
    Call {
        fails: true,
        ..Call::new("apply that leaves 64 bits", Rest::Nothing, |conn, arm| {
            let mut batch = Batch::new();
            for (key, delta) in [(1, 7), (2, 7), (3, 7), (7, i64::MAX)] {
                batch.add(FEED_SUM, key, delta);
            }
            arm();
            SqliteStore::new(conn, &PLAIN).apply(&mut batch).map(drop)
        })
    },
    Call {
        fails: true,
        ..Call::new("apply that leaves 64 bits, climbing", Rest::Nothing, |conn, arm| {
            let mut batch = move_and_vote();
            batch.add(FEED_SUM, 7, i64::MAX);
            arm();
            SqliteStore::new(conn, &SCHEMA).apply(&mut batch).map(drop)
        })
    },
    Call::new("apply once", Rest::Nothing, |conn, arm| {
        arm();
        SqliteStore::new(conn, &PLAIN)
            .apply_idempotent(&mut feed(1, 4, 5), &stream_range("feed 1", 4, 5))
            .map(drop)
    }),
    Call::new("apply once, a new stream, climbing", Rest::Nothing, |conn, arm| {
        arm();
        SqliteStore::new(conn, &SCHEMA)
            .apply_idempotent(&mut move_and_vote(), &stream_range("moves", 1, 2))
            .map(drop)
    }),
    Call::new("sweep", Rest::Nothing, |conn, arm| {
        arm();
        SqliteStore::new(conn, &PLAIN)
            .sweep(&mut Sweep::new())
            .map(|swept| assert_eq!(swept.totals, 1))
    }),
    Call::new("forget an offset", Rest::Nothing, |conn, arm| {
        arm();
        SqliteStore::new(conn, &SCHEMA).forget_offset("feed 1").map(|last| assert_eq!(last, 3))
    }),
    Call::new("prune", Rest::Some, |conn, arm| {
        arm();
        SqliteStore::new(conn, &SCHEMA).prune(SETLIST_DAYS, 20_i64).map(drop)
    }),
    Call::new("rebuild", Rest::Some, |conn, arm| {
        arm();
        SqliteStore::new(conn, &SCHEMA).rebuild(SHOWS).map(drop)
    }),
    Call::new("create", Rest::Some, |conn, arm| {
        arm();
        SqliteStore::new(conn, &WIDER).create()
    }),
    Call::new("create, pending a backfill", Rest::Some, |conn, arm| {
        arm();
        SqliteStore::new(conn, &WIDER).create_pending_backfill()
    }),
    Call::new("transaction", Rest::Outside, |conn, arm| {
        let own = |error: rusqlite::Error| Error::Database {
            operation: "the application's own".to_owned(),
            cause: error.into(),
        };
        arm();
        let done = SqliteStore::new(conn, &SCHEMA).transaction(|conn, batch| {
            conn.execute_batch("INSERT INTO events VALUES ('own', 1)").map_err(own)?;
            batch.merge(&mut move_and_vote());
            Ok(())
        });
        // The lost transaction is the call's own, and nothing of it stays.
        done.map_err(|error| match error {
            Error::TransactionLost { operation, cause } => Error::Database { operation, cause },
            other => other,
        })
    }),
    Call::new("forget", Rest::Some, |conn, arm| {
        arm();
        SqliteStore::new(conn, &NARROWER).drop_counter("artist.votes")
    }),
    Call::new("repair", Rest::Outside, |conn, arm| {
        let keys = (0..5).map(KeyBuf::of::<i64>).collect();
        let mut audit = audit(conn)?;
        arm();
        audit.repair(&RepairRequest { counter: SETLIST_VOTES.id(), keys }).map(drop)
    }),
    Call::new("end of a backfill", Rest::Outside, |conn, arm| {
        let mut audit = audit(conn)?;
        arm();
        audit.ready(&Ready { counter: SHOW_ARTIST.id(), run: 1, kept: None }).map(drop)
    }),
    Call::new("look and measure", Rest::Outside, |conn, arm| {
        let mut audit = audit(conn)?;
        arm();
        audit.probe(&Probe { counter: SETLIST_VOTES.id(), totals: 9 })?;
        audit
            .compare(&PageRequest {
                counter: SETLIST_VOTES.id(),
                after: None,
                until: None,
                keys: 3,
            })
            .map(drop)
    }),
    Call::new("reads", Rest::Nothing, |conn, arm| {
        let mut store = SqliteStore::new(conn, &SCHEMA);
        arm();
        store.total(SETLIST_VOTES, 1)?;
        store.sum(SETLIST_VOTES.all())?;
        store.read_range(SETLIST_VOTES.id(), &KeyRange::after(None), 9)?;
        store.offset("feed 1")?;
        store.top(SHOWS, 3)?;
        store.rank(SHOWS, 1_i64)?;
        store.orphaned()?;
        store.check()
    }),
];

/// A run, which is several transactions.
fn reconcile(conn: &Connection, mode: Mode, arm: &dyn Fn()) -> Result<()> {
    let mut audit = audit(conn)?;
    let mut reconciler =
        Reconciler::scoped(mode, &SCHEMA, &audit.counters(), Options::default().page(3))?;
    arm();
    run(&mut reconciler, &mut audit, &mut SystemRuntime::new()).map(drop)
}

// Files.

/// A database file with some rows and totals, in few pages: with drift in two counters, a wrong
/// line of the leaderboard, a total to which `i64::MAX` cannot be added, and one counter that is
/// not ready.
fn ready_file(rows_first: bool) -> Vec<u8> {
    let site = if rows_first {
        Site::pending_backfill(Journal::Delete, 40)
    } else {
        Site::new(Journal::Delete)
    };
    let conn = site.open_quickly();
    if !rows_first {
        let mut rows = Vec::new();
        rows.extend((1..=3).map(|id| Row::Show { id, artist: 1 + id / 3 }));
        rows.extend((1..=4).map(|id| Row::Setlist { id, show: 1 + id / 3 }));
        rows.extend((1..=8).map(|id| Row::Vote {
            setlist: 1 + id % 4,
            stars: id,
            day: 18 + id % 4,
        }));
        let mut batch = Batch::new();
        conn.execute_batch("BEGIN").unwrap();
        for (id, row) in (1_i64..).zip(rows) {
            batch.insert(&row);
            match row {
                Row::Show { id, artist } => {
                    conn.execute("INSERT INTO shows VALUES (?1, ?2)", [id, artist])
                }
                Row::Setlist { id, show } => {
                    conn.execute("INSERT INTO setlists VALUES (?1, ?2)", [id, show])
                }
                Row::Vote { setlist, stars, day } => conn.execute(
                    "INSERT INTO votes VALUES (?1, ?2, ?3, ?4)",
                    [id, setlist, stars, day],
                ),
            }
            .unwrap();
        }
        let mut store = SqliteStore::new(&conn, &SCHEMA);
        store.apply(&mut batch).unwrap();
        store.apply_idempotent(&mut feed(1, 1, 3), &stream_range("feed 1", 1, 3)).unwrap();
        conn.execute_batch("COMMIT").unwrap();
        assert_exact(&conn);
        conn.execute_batch(
            "UPDATE setlist_votes SET total = total + 1000 WHERE key = 1; DELETE FROM show_artist WHERE key_1 = 2;
             UPDATE show_board SET score = 77 WHERE key = 2; INSERT INTO feed_sum VALUES (7, 9), (8, 0);
             UPDATE keepcount_counters SET ready = 0 WHERE name = 'show.artist'",
        )
        .unwrap();
    }
    conn.execute_batch("VACUUM").unwrap();
    fs::read(site.path()).unwrap()
}

static READY: LazyLock<Vec<u8>> = LazyLock::new(|| ready_file(false));
static PENDING_BACKFILL: LazyLock<Vec<u8>> = LazyLock::new(|| ready_file(true));

/// A folder in which the file is restored for each point.
struct Place {
    dir: TempDir,
    journal: Journal,
    file: &'static [u8],
}

impl Place {
    fn new(journal: Journal, file: &'static [u8]) -> Self {
        Self { dir: crate::support::temp_dir(), journal, file }
    }

    fn open(&self) -> Connection {
        let conn = Connection::open(self.dir.path().join("site.db")).unwrap();
        conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA busy_timeout = 0").unwrap();
        conn
    }

    /// Restores the file. Returns the connection to stop, and another that observes it.
    fn renew(&self) -> (Connection, Connection) {
        for name in ["site.db-wal", "site.db-shm", "site.db-journal"] {
            let _ = fs::remove_file(self.dir.path().join(name));
        }
        fs::write(self.dir.path().join("site.db"), self.file).unwrap();
        let other = self.open();
        if self.journal == Journal::Wal {
            other.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();
        }
        (self.open(), other)
    }
}

// Points.

/// The caller's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Around {
    Nothing,
    Transaction,
    Savepoints,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    way: Way,
    around: Around,
    /// Whether the application has a cursor open.
    cursor: bool,
    /// The operations between two calls of the handler.
    every: i32,
    /// The capacity of the connection's statement cache.
    cached: usize,
    pragma: &'static str,
}

const PLAINLY: Point = Point {
    way: Way::Once,
    around: Around::Nothing,
    cursor: false,
    every: 1,
    cached: 64,
    pragma: "",
};

impl Point {
    /// Every way, with and without an open cursor of the application.
    fn all(around: Around) -> impl Iterator<Item = Self> {
        [Way::Once, Way::On, Way::Flag].into_iter().flat_map(move |way| {
            [false, true].map(|cursor| Self { way, around, cursor, ..PLAINLY })
        })
    }

    fn begin(&self, conn: &Connection) {
        conn.execute_batch(match self.around {
            Around::Nothing => return,
            Around::Transaction => "BEGIN IMMEDIATE; INSERT INTO events VALUES ('around', 1)",
            Around::Savepoints => {
                "SAVEPOINT a; INSERT INTO events VALUES ('around', 1); SAVEPOINT b; INSERT INTO events VALUES ('around', 2)"
            }
        })
        .unwrap();
    }

    fn commit(&self, conn: &Connection) {
        conn.execute_batch(match self.around {
            Around::Nothing => return,
            Around::Transaction => "COMMIT",
            Around::Savepoints => "RELEASE b; RELEASE a",
        })
        .unwrap();
    }

    /// Runs a call that is stopped at the moment `at`. Returns its result, whether it reached that
    /// moment, and how many moments there were.
    fn run(&self, conn: &mut Connection, at: u64, call: Run<'_>) -> (Result<()>, bool, u64) {
        conn.set_prepared_statement_cache_capacity(self.cached);
        conn.execute_batch(self.pragma).unwrap();
        let brake = Brake::on(conn, self.way, self.every);
        self.begin(conn);
        let mut cursor = conn.prepare("SELECT id FROM votes").unwrap();
        let mut rows = cursor.raw_query();
        if self.cursor {
            rows.next().unwrap();
        }
        let done = call(conn, &|| brake.arm(at));
        let (reached, moments) = brake.release();
        drop(rows);
        drop(cursor);
        (done, reached, moments)
    }
}

/// How a call ended at a point, or what is wrong.
type Says = std::result::Result<&'static str, String>;

fn ensure(holds: bool, what: &str) -> std::result::Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// Checks that two dumps are equal.
fn ensure_same(found: &[String], wanted: &[String], what: &str) -> std::result::Result<(), String> {
    let lacks = wanted.iter().filter(|line| !found.contains(line)).collect::<Vec<_>>();
    let more = found.iter().filter(|line| !wanted.contains(line)).collect::<Vec<_>>();
    ensure(found == wanted, &format!("{what}: lacks {lacks:?}, has {more:?}"))
}

/// How the calls ended, by call.
#[derive(Default)]
struct Points {
    ended: BTreeMap<String, Hits>,
    count: u64,
    wrong: Vec<String>,
}

impl Points {
    fn note(&mut self, call: &str, around: Around, says: Says, context: &str) {
        self.count += 1;
        let hits = self.ended.entry(format!("{call}, {around:?}")).or_default();
        hits.note("points");
        hits.note(says.as_ref().map_or("WRONG", |says| says));
        if let Err(wrong) = says {
            self.wrong.push(format!("{context}: {wrong}"));
        }
    }

    #[track_caller]
    fn end(&self, test: &str) {
        for (call, hits) in &self.ended {
            hits.end(&format!("{test}: {call}"), &[]);
        }
        println!("{test}: {} points, {} wrong", self.count, self.wrong.len());
        assert!(
            self.wrong.is_empty(),
            "{} of {} wrong, first {:#?}",
            self.wrong.len(),
            self.count,
            &self.wrong[..1]
        );
    }
}

/// Dumps of a call that is not stopped: before it, in the transaction around it, and after its end.
struct Stages {
    before: Vec<String>,
    begun: Vec<String>,
    after: Vec<String>,
}

impl Stages {
    fn of(place: &Place, call: &Call, point: &Point) -> Self {
        let (conn, other) = place.renew();
        conn.execute_batch(point.pragma).unwrap();
        let before = dump(&other);
        point.begin(&conn);
        let begun = dump(&conn);
        let done = (call.run)(&conn, &|| ());
        assert_eq!(done.is_err(), call.fails, "{}: {done:?}", call.name);
        point.commit(&conn);
        Self { before, begun, after: dump(&other) }
    }

    fn check_alone(&self, conn: &Connection, other: &Connection, done: &Result<()>) -> Says {
        ensure(conn.is_autocommit(), "a transaction was left behind")?;
        let found = dump(other);
        match done {
            Ok(()) => ensure_same(&found, &self.after, "its effect is missing").map(|()| "done"),
            Err(error) if error.recovery() == Recovery::Indeterminate && found == self.before => {
                Ok("unknown, not there")
            }
            Err(error) if error.recovery() == Recovery::Indeterminate => {
                ensure_same(&found, &self.after, "part of its effect is there")
                    .map(|()| "unknown, there")
            }
            Err(error) => {
                ensure(
                    !matches!(error, Error::TransactionLost { .. }),
                    "the lost transaction was its own",
                )?;
                ensure_same(&found, &self.before, "its effect is there").map(|()| "an error")
            }
        }
    }

    fn check_inside(
        &self,
        conn: &Connection,
        other: &Connection,
        done: &Result<()>,
        call: &Call,
        point: &Point,
    ) -> Says {
        ensure_same(&dump(other), &self.before, "the caller's transaction was committed")?;
        match done {
            Ok(()) => {
                ensure(!conn.is_autocommit(), "the transaction is gone")?;
                point.commit(conn);
                ensure_same(&dump(other), &self.after, "its effect is missing").map(|()| "done")
            }
            Err(error) if conn.is_autocommit() => {
                let says = matches!(error, Error::TransactionLost { .. });
                ensure(says, "the transaction is gone").map(|()| "transaction lost")
            }
            Err(error) => {
                ensure(
                    !matches!(error, Error::TransactionLost { .. } | Error::Indeterminate { .. }),
                    "the transaction is still open",
                )?;
                let left = if call.rest == Rest::Nothing {
                    ensure_same(&dump(conn), &self.begun, "part of its effect is there")
                } else {
                    Ok(())
                };
                conn.execute_batch("ROLLBACK").unwrap();
                left.map(|()| "an error")
            }
        }
    }
}

/// The default number of moments at which a call is stopped. A call that has more is stopped at
/// some of them.
const MOMENTS: u64 = 8;

/// The moments at which a call is stopped: all, or a selection that differs by kind of point.
fn moments(call: Run<'_>, point: &Point, place: &Place) -> impl Iterator<Item = u64> + use<> {
    let most = std::env::var("KEEPCOUNT_MOMENTS").map_or(MOMENTS, |most| most.parse().unwrap());
    let (mut conn, _) = place.renew();
    let (_, _, all) = point.run(&mut conn, u64::MAX, call);
    let step = if all <= 2 * most { 1 } else { all.div_ceil(most) };
    let first =
        1 + (point.way as u64 * 2 + u64::from(point.cursor) + point.around as u64 * 5) % step;
    (first..=all).filter(move |at| (at - first).is_multiple_of(step)).chain([all + 1])
}

/// Stops a call at every moment. Checks that its result says what became of it, and that the
/// connection still works.
fn stop_everywhere(place: &Place, call: &Call, point: Point, points: &mut Points) {
    let stages = Stages::of(place, call, &point);
    for at in moments(&call.run, &point, place) {
        let (mut conn, other) = place.renew();
        let (done, reached, _) = point.run(&mut conn, at, &call.run);
        let says = if point.around == Around::Nothing {
            stages.check_alone(&conn, &other, &done)
        } else {
            stages.check_inside(&conn, &other, &done, call, &point)
        };
        let says = says.and_then(|says| ensure_usable(&conn, &other).map(|()| says));
        let context = format!("{}, {point:?}, stopped at {at}: {done:?}", call.name);
        points.note(call.name, point.around, says, &context);
        assert!(reached || done.is_err() == call.fails, "{context}: nothing stopped it");
    }
}

/// Checks that the next apply succeeds, and that others see it and may write.
fn ensure_usable(conn: &Connection, other: &Connection) -> std::result::Result<(), String> {
    let mut batch = Batch::new();
    batch.add(FEED_SUM, 99, 1);
    SqliteStore::new(conn, &PLAIN)
        .apply(&mut batch)
        .map_err(|error| format!("the next apply: {error}"))?;
    let seen =
        other.query_row("SELECT sum(total) FROM feed_sum WHERE key = 99", (), |row| row.get(0));
    ensure(seen == Ok(Some(1)), "the next apply succeeded, and others do not see it")?;
    ensure(
        other.execute("INSERT INTO events VALUES ('other', 1)", ()) == Ok(1),
        "writers are refused",
    )
}

/// The points at which a call can be stopped. SQLite does not drop a table while a cursor is open.
fn points_of(call: &Call, around: Around) -> impl Iterator<Item = Point> + use<> {
    let below_cursors = call.name != "forget";
    Point::all(around).filter(move |point| below_cursors || !point.cursor)
}

#[test]
fn every_call_stopped_at_every_step_says_what_became_of_it() {
    let mut points = Points::default();
    let place = Place::new(Journal::Wal, &READY);
    for call in &WHOLE {
        for point in points_of(call, Around::Nothing) {
            stop_everywhere(&place, call, point, &mut points);
        }
    }
    points.end("its own transaction");
}

#[test]
fn every_call_stopped_in_the_callers_transaction_says_what_became_of_it() {
    let mut points = Points::default();
    let place = Place::new(Journal::Wal, &READY);
    for call in WHOLE.iter().filter(|call| call.rest != Rest::Outside) {
        for around in [Around::Transaction, Around::Savepoints] {
            for point in points_of(call, around) {
                stop_everywhere(&place, call, point, &mut points);
            }
        }
    }
    points.end("the caller's transaction");
}

/// A handler is usually called after more than one operation. Statements outside the cache are
/// prepared, which can be stopped too. A rollback journal ends transactions in another way. With
/// `count_changes` each statement that writes returns a row, which the driver takes for an error.
#[test]
fn calls_stopped_under_other_settings_say_what_became_of_them() {
    let mut points = Points::default();
    let pragma = "PRAGMA count_changes = ON";
    for journal in [Journal::Wal, Journal::Delete] {
        let place = Place::new(journal, &READY);
        for call in WHOLE
            .iter()
            .filter(|call| !["create", "look and measure", "reads"].contains(&call.name))
        {
            for around in [Around::Nothing, Around::Transaction] {
                let plainly = Point { around, ..PLAINLY };
                let others = [
                    Point { way: Way::On, every: 2, ..plainly },
                    Point { way: Way::On, every: 3, ..plainly },
                    Point { way: Way::Each, every: 10, ..plainly },
                    Point { way: Way::On, cached: 0, ..plainly },
                    Point { way: Way::Flag, cached: 0, ..plainly },
                    Point { way: Way::Once, pragma, ..plainly },
                    Point { way: Way::On, pragma, ..plainly },
                ];
                let may_be = call.rest != Rest::Outside || around == Around::Nothing;
                // With a rollback journal, one of them is enough.
                for point in others
                    .into_iter()
                    .skip(if journal == Journal::Wal { 0 } else { 6 })
                    .filter(|_| may_be)
                {
                    stop_everywhere(&place, call, point, &mut points);
                }
            }
        }
    }
    points.end("other settings");
}

/// Stops a run at every moment. A run is several transactions: each is applied whole or not at all,
/// and a token or a repeat continues from there.
fn stop_run_everywhere(name: &str, mode: Mode) {
    let mut points = Points::default();
    let place =
        Place::new(Journal::Wal, if mode == Mode::Backfill { &PENDING_BACKFILL } else { &READY });
    let call = move |conn: &Connection, arm: &dyn Fn()| reconcile(conn, mode, arm);
    let (before, planted) = {
        let (_, untouched) = place.renew();
        (dump(&untouched), drift(&untouched).unwrap())
    };
    for point in Point::all(Around::Nothing) {
        for at in moments(&call, &point, &place) {
            let (mut conn, other) = place.renew();
            let (done, reached, _) = point.run(&mut conn, at, &call);
            let context = format!("{name}, {point:?}, stopped at {at}: {done:?}");
            assert!(reached || done.is_ok(), "{context}: nothing stopped it");
            let says = || {
                ensure(conn.is_autocommit(), "a transaction was left behind")?;
                let off = drift(&other).unwrap();
                ensure(
                    off.iter().all(|(key, off)| planted.get(key) == Some(off)),
                    &format!("{off:?}"),
                )?;
                if mode == Mode::Verify {
                    ensure_same(&dump(&other), &before, "the verify wrote")?;
                }
                if mode == Mode::Backfill {
                    assert_ready_exact(&other);
                }
                reconcile(&conn, mode, &|| ()).map_err(|error| format!("the next run: {error}"))?;
                if mode != Mode::Verify {
                    let mut off = drift(&other).unwrap();
                    off.retain(|(table, _), _| *table != "feed_sum");
                    ensure(off == Totals::new(), &format!("not repaired: {off:?}"))?;
                }
                ensure_usable(&conn, &other)
                    .map(|()| if done.is_ok() { "done" } else { "an error" })
            };
            points.note(name, point.around, says(), &context);
        }
    }
    points.end(name);
}

#[test]
fn verify_stopped_at_every_step_writes_nothing() {
    stop_run_everywhere("verify", Mode::Verify);
}

#[test]
fn repair_stopped_at_every_step_leaves_every_page_unchanged_or_repaired() {
    stop_run_everywhere("repair", Mode::Repair);
}

#[test]
fn backfill_stopped_at_every_step_is_not_ready_before_its_last_key() {
    stop_run_everywhere("backfill", Mode::Backfill);
}

// Single cases.

/// A BEGIN that was stopped after it had begun used to count as failed. The next apply joined that
/// transaction, returned Ok, and was never committed: of 20,000 that returned Ok, another
/// connection saw 13,300. A COMMIT that had committed was reported as having done nothing.
#[test]
fn applies_under_a_deadline_are_visible_as_often_as_reported() {
    let place = Place::new(Journal::Wal, &READY);
    let (mut conn, other) = place.renew();
    let brake = Brake::on(&mut conn, Way::Each, 10);
    brake.arm(7);
    let (mut done, mut unknown, mut refused) = (0, 0, 0);
    for _ in 0..3_000 {
        let mut batch = Batch::new();
        batch.add(FEED_SUM, 50, 1);
        match SqliteStore::new(&conn, &PLAIN).apply(&mut batch) {
            Ok(_) => done += 1,
            Err(error) if error.recovery() == Recovery::Indeterminate => unknown += 1,
            Err(_) => refused += 1,
        }
        assert!(conn.is_autocommit());
    }
    brake.release();
    let seen = "SELECT total FROM feed_sum WHERE key = 50";
    let seen: i32 = other.query_row(seen, (), |row| row.get(0)).unwrap();
    println!("a deadline: {done} done, {unknown} unknown, {refused} refused; {seen} seen");
    assert!((done..=done + unknown).contains(&seen), "{done} done, {unknown} unknown, {seen} seen");
    assert!(done > 100 && refused > 100);
}

/// A call of unknown outcome is delivered again with its offset, and counts once, wherever its
/// commit was stopped.
#[test]
fn an_unknown_commit_delivered_again_with_its_offset_counts_once() {
    let place = Place::new(Journal::Wal, &READY);
    let mut unknown = 0;
    for at in 1..200 {
        let (mut conn, other) = place.renew();
        let apply = |conn: &Connection| {
            SqliteStore::new(conn, &PLAIN)
                .apply_idempotent(&mut feed(1, 4, 5), &stream_range("feed 1", 4, 5))
        };
        let (done, ..) = Point { ..PLAINLY }.run(&mut conn, at, &|conn, arm| {
            arm();
            apply(conn).map(drop)
        });
        unknown += u64::from(done.is_err_and(|error| error.recovery() == Recovery::Indeterminate));
        apply(&conn).unwrap();
        assert_eq!(
            other.query_row("SELECT total FROM feed_sum WHERE key = 1", (), |row| row.get(0)),
            Ok(15),
            "{at}"
        );
    }
    assert!(unknown > 0);
}

/// A WAL hook runs after the commit, and COMMIT returns its error. A hook whose checkpoint met a
/// reader used to make every commit "busy, try again".
#[test]
fn commit_whose_wal_hook_fails_has_an_unknown_outcome() {
    let place = Place::new(Journal::Wal, &READY);
    let (mut conn, other) = place.renew();
    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    conn.wal_hook(Some(move |_: &mut Wal, _| Err(rusqlite::Error::SqliteFailure(busy, None))))
        .unwrap();
    let mut batch = Batch::new();
    batch.add(FEED_SUM, 50, 1);
    let error = SqliteStore::new(&conn, &PLAIN).apply(&mut batch).unwrap_err();
    assert_eq!(error.recovery(), Recovery::Indeterminate, "{error:?}");
    assert!(error.to_string().contains("counter feed.sum"), "{error}");
    assert_eq!(
        other.query_row("SELECT total FROM feed_sum WHERE key = 50", (), |row| row.get(0)),
        Ok(1)
    );
}

/// Stops each statement for which `stops` returns true.
fn stop_statements(conn: &mut Connection, stops: fn(&str) -> bool) {
    let now = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&now);
    let note = move |event: TraceEvent<'_>| {
        if let TraceEvent::Stmt(_, text) = event {
            now.store(stops(text), Ordering::Relaxed);
        }
    };
    conn.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note)).unwrap();
    conn.progress_handler(1, Some(move || stopped.load(Ordering::Relaxed))).unwrap();
}

/// Only a handler that knows which statement runs can stop every rollback. The error then says that
/// the transaction is open, and the connection works after a rollback.
#[test]
fn transaction_that_cannot_be_rolled_back_is_reported_open() {
    let place = Place::new(Journal::Wal, &READY);
    let (mut conn, other) = place.renew();
    let before = dump(&other);
    let overflows = |conn: &Connection| {
        let mut batch = Batch::new();
        batch.add(FEED_SUM, 1, 1);
        batch.add(FEED_SUM, 7, i64::MAX);
        SqliteStore::new(conn, &PLAIN).apply(&mut batch).unwrap_err()
    };
    assert!(matches!(overflows(&conn), Error::Overflow { .. }));
    stop_statements(&mut conn, |text| text == "ROLLBACK");
    let error = overflows(&conn);
    assert!(
        matches!(error, Error::TransactionOpen { .. }) && error.recovery() == Recovery::Permanent,
        "{error:?}"
    );
    let text = error.to_string();
    assert!(
        text.contains("feed.sum, key 7") && text.contains("still open: roll it back"),
        "{text}"
    );
    assert!(!conn.is_autocommit());
    conn.progress_handler(0, None::<fn() -> bool>).unwrap();
    conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(dump(&other), before);
    ensure_usable(&conn, &other).unwrap();
}

/// A batch that fails in the caller's transaction is undone. If that is stopped too, the
/// transaction is rolled back, or reported open.
#[test]
fn batch_that_cannot_be_undone_loses_its_transaction_or_reports_it_open() {
    let reads_leaderboard: fn(&str) -> bool =
        |text| text.starts_with("SELECT") && text.contains("t.\"score\"");
    let rollback_too: fn(&str) -> bool =
        |text| text == "ROLLBACK" || text.starts_with("SELECT") && text.contains("t.\"score\"");
    for (stops, open) in [(reads_leaderboard, false), (rollback_too, true)] {
        let place = Place::new(Journal::Wal, &READY);
        let (mut conn, other) = place.renew();
        let before = dump(&other);
        stop_statements(&mut conn, stops);
        conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO events VALUES ('around', 1)").unwrap();
        let error = SqliteStore::new(&conn, &SCHEMA).apply(&mut move_and_vote()).unwrap_err();
        assert_eq!(matches!(error, Error::TransactionOpen { .. }), open, "{error:?}");
        assert_eq!(matches!(error, Error::TransactionLost { .. }), !open, "{error:?}");
        assert_eq!(conn.is_autocommit(), !open);
        conn.progress_handler(0, None::<fn() -> bool>).unwrap();
        if open {
            conn.execute_batch("ROLLBACK").unwrap();
        }
        assert_eq!(dump(&other), before);
        ensure_usable(&conn, &other).unwrap();
    }
}

/// Without a journal SQLite cannot roll back: a write that failed in part stays, or damages the
/// file.
#[test]
fn a_connection_without_a_journal_is_refused() {
    let place = Place::new(Journal::Delete, &READY);
    let (conn, other) = place.renew();
    let before = dump(&other);
    conn.query_row("PRAGMA journal_mode = OFF", (), |_| Ok(())).unwrap();
    let mut store = SqliteStore::new(&conn, &WIDER);
    for error in
        [store.check().unwrap_err(), store.create().unwrap_err(), audit(&conn).unwrap_err()]
    {
        assert!(matches!(error, Error::InvalidUse { what: "journal_mode", .. }), "{error:?}");
    }
    assert_eq!(dump(&other), before, "no table is made");
    conn.query_row("PRAGMA journal_mode = MEMORY", (), |_| Ok(())).unwrap();
    store.create().unwrap();
}
