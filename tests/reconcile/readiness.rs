//! Counters that are new to a database or a memory store with rows: writes count, and reads are
//! refused until a backfill has completed the totals.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::world::{Trace, World, run_whole, through_text};
use keepcount::backend::KeyRange;
use keepcount::reconcile::audit::{
    Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use keepcount::reconcile::step::{Answer, Request, Step};
use keepcount::reconcile::{
    Audit, Columns, GracePeriod, MemoryAudit, Mode, Options, Outcome, Reconciler, SqliteAudit,
    SqliteRows, SystemRuntime, Token, run,
};
use keepcount::{
    Batch, Counter, CounterId, Error, Key, KeyBuf, Leaderboard, MemoryStore, Record, Recovery,
    Result, Schema, SqliteStore, Store, StreamRange, Tally, sql,
};
use rusqlite::Connection;

use crate::support::random::Random;

// The older schema counts the votes of setlists. The newer one also sums them by show and ranks the
// shows.

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const RANK: Leaderboard<i64> =
    Leaderboard::new("show.board", [SHOWS]).by(|[votes]| (votes != 0).then_some(votes));
const OLD: Schema = Schema::new(&[VOTES.table()]);
const SUMS: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SHOWS.table()]);
const NEW: Schema = SUMS.leaderboards(&[RANK.id()]);

#[derive(Debug, Clone, Copy)]
enum Row {
    Vote { setlist: i64, weight: i64 },
    Setlist { id: i64, show: i64 },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match *self {
            Self::Vote { setlist, weight } => to.add(VOTES, setlist, weight),
            Self::Setlist { id, show } => to.add(MEMBERSHIP, (id, show), 1),
        }
    }
}

const TABLES: &str = "CREATE TABLE votes (setlist INTEGER NOT NULL, weight INTEGER NOT NULL);
    CREATE INDEX votes_by_setlist ON votes (setlist, weight);
    CREATE TABLE setlists (id INTEGER NOT NULL, show INTEGER NOT NULL);
    CREATE INDEX setlists_by_id ON setlists (id, show)";

/// A database of twelve setlists of four shows and their votes, without totals.
fn rows() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(TABLES).unwrap();
    conn.execute_batch(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 12)
         INSERT INTO setlists SELECT n, n % 4 FROM n;
         INSERT INTO votes SELECT id, id + show FROM setlists UNION ALL SELECT id, 1 FROM setlists WHERE id > 5",
    )
    .unwrap();
    conn
}

/// The same database with the totals of the older schema.
fn counted() -> Connection {
    let conn = rows();
    store(&conn, &OLD).create().unwrap();
    conn.execute_batch(
        "INSERT INTO setlist_votes SELECT setlist, sum(weight) FROM votes GROUP BY setlist",
    )
    .unwrap();
    conn
}

fn store<'c>(conn: &'c Connection, schema: &'c Schema) -> SqliteStore<'c> {
    SqliteStore::new(conn, schema)
}

/// Writes a row and its hooks in one transaction.
fn write(conn: &Connection, schema: &Schema, row: &Row) {
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut batch = Batch::new();
    match *row {
        Row::Vote { setlist, weight } => {
            conn.execute("INSERT INTO votes VALUES (?1, ?2)", (setlist, weight))
        }
        Row::Setlist { id, show } => {
            conn.execute("INSERT INTO setlists VALUES (?1, ?2)", (id, show))
        }
    }
    .unwrap();
    batch.insert(row);
    let known = batch.deltas().all(|(counter, ..)| schema.position(&counter).is_ok());
    if known {
        store(conn, schema).apply(&mut batch).unwrap();
    }
    conn.execute_batch("COMMIT").unwrap();
}

fn audit<'a>(conn: &'a Connection, schema: &'a Schema) -> SqliteAudit<'a> {
    let mut audit = SqliteAudit::new(conn, schema).unwrap();
    let votes =
        SqliteRows::of("votes", |row| Ok(Row::Vote { setlist: row.get(0)?, weight: row.get(1)? }));
    audit
        .add(votes.columns("setlist, weight").key(VOTES, Columns::of(["setlist"]).sum("weight")))
        .unwrap();
    if schema.position(&MEMBERSHIP.id()).is_ok() {
        let setlists = SqliteRows::of("setlists", |row| {
            Ok(Row::Setlist { id: row.get(0)?, show: row.get(1)? })
        });
        audit
            .add(setlists.columns("id, show").key(MEMBERSHIP, Columns::of(["id", "show"]).count()))
            .unwrap();
    }
    audit
}

/// The true votes of each show, by plain SQL.
fn votes_of_shows(conn: &Connection) -> Vec<(i64, i64)> {
    let text = "SELECT s.show, sum(v.weight) FROM votes AS v JOIN setlists AS s ON s.id = v.setlist
                GROUP BY s.show HAVING sum(v.weight) <> 0 ORDER BY s.show";
    let mut statement = conn.prepare(text).unwrap();
    statement
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(rusqlite::Result::unwrap)
        .collect()
}

fn assert_exact(conn: &Connection) {
    let mut store = store(conn, &SUMS);
    assert_eq!(store.totals(SHOWS).unwrap(), votes_of_shows(conn));
    let report =
        run_whole(Mode::Verify, &SUMS, Options::default(), &mut audit(conn, &SUMS)).unwrap();
    assert!(report.complete() && report.drift() == 0, "{}", report.table());
}

/// Asserts that a read of `asked` was refused because one of these counters is not ready.
#[track_caller]
fn assert_not_ready<T: std::fmt::Debug>(answer: Result<T>, asked: &str, of: &[&str]) {
    let error = answer.expect_err("a counter that is not ready was read");
    let Error::NotReady { counter, unready } = &error else { panic!("{error}") };
    assert!(*counter == asked && of.contains(&unready.as_str()), "{error}");
    assert!(
        error.recovery() == Recovery::Permanent && error.to_string().contains(unready.as_str()),
        "{error}"
    );
}

fn backfill(conn: &Connection, schema: &Schema) {
    let report =
        run_whole(Mode::Backfill, schema, Options::default(), &mut audit(conn, schema)).unwrap();
    assert!(report.complete(), "{report}");
}

// Which counters are ready.

#[test]
fn counters_of_a_new_database_are_ready_and_later_ones_are_not() {
    let conn = counted();
    assert_eq!(store(&conn, &OLD).unready().unwrap(), []);
    assert_eq!(store(&conn, &OLD).total(VOTES, 12).unwrap(), 13);
    for _ in 0..2 {
        let mut new = store(&conn, &NEW);
        new.create().unwrap();
        assert_eq!(new.unready().unwrap(), [MEMBERSHIP.id(), SHOWS.id()]);
        assert_eq!(
            [VOTES.id(), MEMBERSHIP.id(), SHOWS.id()].map(|id| new.is_ready(id).unwrap()),
            [true, false, false]
        );
        assert_eq!(
            new.total(VOTES, 12).unwrap(),
            13,
            "counters that were ready are still readable"
        );
        assert_not_ready(new.total(SHOWS, 0), "show.votes", &["show.votes", "setlist.show"]);
        assert_not_ready(new.total(MEMBERSHIP, (1, 1)), "setlist.show", &["setlist.show"]);
    }
    let unknown = Counter::<i64>::new("show.comments").id();
    assert!(matches!(store(&conn, &NEW).is_ready(unknown), Err(Error::UnknownCounter { .. })));
    assert!(matches!(
        store(&conn, &NEW).is_ready(VOTES.version(2).id()),
        Err(Error::DefinitionConflict { .. })
    ));

    // In a new database all counters of the newer schema are ready, also by its DDL statements.
    for by_hand in [false, true] {
        let conn = Connection::open_in_memory().unwrap();
        if by_hand {
            conn.execute_batch(&sql::ddl(sql::Dialect::Sqlite, &NEW).join(";\n")).unwrap();
        } else {
            store(&conn, &NEW).create().unwrap();
        }
        assert_eq!(store(&conn, &NEW).unready().unwrap(), []);
        assert_eq!(store(&conn, &NEW).top(RANK, 3).unwrap(), []);
    }
}

#[test]
fn create_pending_backfill_makes_no_counter_of_a_new_database_ready() {
    let conn = rows();
    conn.execute_batch("BEGIN").unwrap();
    store(&conn, &OLD).create_pending_backfill().unwrap();
    conn.execute_batch("ROLLBACK").unwrap();
    let mut old = store(&conn, &OLD);
    old.create_pending_backfill().unwrap();
    old.create().unwrap();
    assert_eq!(old.unready().unwrap(), [VOTES.id()]);
    assert_not_ready(old.total(VOTES, 1), "setlist.votes", &["setlist.votes"]);
    write(&conn, &OLD, &Row::Vote { setlist: 1, weight: 100 });
    backfill(&conn, &OLD);
    assert_eq!((old.unready().unwrap(), old.total(VOTES, 1).unwrap()), (vec![], 102));
    // A counter that is ready stays ready.
    old.create_pending_backfill().unwrap();
    assert_eq!(old.total(VOTES, 1).unwrap(), 102);
}

#[test]
fn ready_rollup_is_not_read_while_its_base_or_membership_is_not_ready() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    backfill(&conn, &SUMS);
    for (name, id) in [("setlist.votes", VOTES.id()), ("setlist.show", MEMBERSHIP.id())] {
        let set = |ready: u8| {
            conn.execute("UPDATE keepcount_counters SET ready = ?1 WHERE name = ?2", (ready, name))
                .unwrap();
        };
        set(0);
        assert_not_ready(store(&conn, &SUMS).total(SHOWS, 1), "show.votes", &[name]);
        assert_eq!(store(&conn, &SUMS).unready().unwrap(), [id]);
        set(1);
    }
    assert_exact(&conn);
}

// What works before a counter is ready.

#[test]
fn counter_that_is_not_ready_is_written_and_audited_but_not_read() {
    let conn = counted();
    let mut new = store(&conn, &NEW);
    new.create().unwrap();
    let (asked, of) = ("show.votes", &["show.votes", "setlist.show"][..]);
    assert_not_ready(new.total(SHOWS, 1), asked, of);
    assert_not_ready(new.totals(SHOWS), asked, of);
    assert_not_ready(new.read_keys(SHOWS.id(), &[]), asked, of);
    assert_not_ready(new.read_range(SHOWS.id(), &KeyRange::ALL, 1), asked, of);
    assert_not_ready(new.read_range(SHOWS.id(), &KeyRange::ALL, 1), asked, of);
    assert_not_ready(new.sum(SHOWS.all()), asked, of);
    assert_not_ready(new.sum(MEMBERSHIP.under(1)), "setlist.show", &["setlist.show"]);
    // In the caller's transaction too.
    conn.execute_batch("BEGIN").unwrap();
    assert_not_ready(new.total(SHOWS, 1), asked, of);
    conn.execute_batch("COMMIT").unwrap();

    // Writes are counted, including the rollup.
    let mut batch = Batch::new();
    batch.insert(&Row::Setlist { id: 100, show: 9 });
    batch.insert(&Row::Vote { setlist: 100, weight: 7 });
    let applied =
        new.apply_idempotent(&mut batch, &StreamRange::new("site", 1, 1).unwrap()).unwrap();
    assert_eq!((applied.totals, new.offset("site").unwrap()), (3, 1));
    conn.execute_batch("INSERT INTO setlists VALUES (100, 9); INSERT INTO votes VALUES (100, 7)")
        .unwrap();
    let stored: i64 =
        conn.query_row("SELECT total FROM show_votes WHERE key = 9", (), |row| row.get(0)).unwrap();
    assert_eq!(stored, 7);

    // Verify and repair audit the counter as it is. Only a backfill makes it ready.
    let verified =
        run_whole(Mode::Verify, &NEW, Options::default(), &mut audit(&conn, &NEW)).unwrap();
    assert_eq!(
        verified.counters.iter().map(|counter| counter.missing).collect::<Vec<_>>(),
        [12, 0, 0]
    );
    let repaired =
        run_whole(Mode::Repair, &NEW, Options::default(), &mut audit(&conn, &NEW)).unwrap();
    assert_eq!(repaired.counters.iter().map(|counter| counter.corrected).sum::<u64>(), 12);
    assert_not_ready(new.total(SHOWS, 1), asked, of);
    let filled =
        run_whole(Mode::Backfill, &NEW, Options::default(), &mut audit(&conn, &NEW)).unwrap();
    assert_eq!(
        filled.to_string(),
        "backfill: 3 counters, 31 keys: 0 wrong, 0 missing, 0 orphan; 0 corrected; 3 pages, 46 rows; complete"
    );
    assert_eq!(new.total(SHOWS, 9).unwrap(), 7);
    assert_exact(&conn);
}

#[test]
fn read_checks_readiness_with_one_statement_and_no_transaction() {
    let mut conn = counted();
    store(&conn, &NEW).create().unwrap();
    backfill(&conn, &NEW);
    store(&conn, &NEW).rebuild(RANK).unwrap();
    let trace = Trace::on(&mut conn);
    let mut new = store(&conn, &NEW);
    let mut reads = |what: &str, read: &mut dyn FnMut(&mut SqliteStore<'_>), wanted: usize| {
        read(&mut new);
        let kinds = trace.kinds();
        assert_eq!((kinds.reads, kinds.writes, kinds.others.len()), (1 + wanted, 0, 0), "{what}");
    };
    reads("a total", &mut |new| assert_eq!(new.total(VOTES, 12).unwrap(), 13), 1);
    reads("a rollup's total", &mut |new| assert!(new.total(SHOWS, 1).unwrap() > 0), 1);
    let keys: Vec<KeyBuf> = (0..7).map(KeyBuf::of::<i64>).collect();
    reads(
        "seven totals",
        &mut |new| assert_eq!(new.read_keys(VOTES.id(), &keys).unwrap().len(), 7),
        7,
    );
    reads("a sum", &mut |new| assert!(new.sum(VOTES.all()).unwrap() > 0), 1);
    reads(
        "a page",
        &mut |new| assert_eq!(new.read_range(VOTES.id(), &KeyRange::ALL, 3).unwrap().len(), 3),
        1,
    );
    reads("a leaderboard", &mut |new| assert_eq!(new.top(RANK, 2).unwrap().len(), 2), 1);
    reads("is_ready", &mut |new| assert!(new.is_ready(SHOWS.id()).unwrap()), 0);
    let plan = format!("EXPLAIN QUERY PLAN {}", sql::unready(sql::Dialect::Sqlite));
    let plan: String = conn.query_row(&plan, (), |row| row.get(3)).unwrap();
    assert!(
        plan.contains("keepcount_unready"),
        "not the index of unready counters, which is usually empty: {plan}"
    );
    trace.take();
    // Writes do not check readiness.
    let mut batch = Batch::new();
    batch.insert(&Row::Vote { setlist: 1, weight: 1 });
    new.apply(&mut batch).unwrap();
    assert!(trace.take().iter().all(|text| !text.contains("ready")));
}

// Leaderboards.

#[test]
fn leaderboard_is_read_once_it_is_rebuilt_and_its_counters_are_ready() {
    let refused = |conn: &Connection, of: &[&str]| {
        let mut new = store(conn, &NEW);
        assert_not_ready(new.top(RANK, 10), "show.board", of);
        assert_not_ready(new.rank(RANK, 1), "show.board", of);
        assert_not_ready(new.listed(RANK), "show.board", of);
    };
    for rebuilt_first in [false, true] {
        let conn = counted();
        store(&conn, &NEW).create().unwrap();
        let all = ["show.board", "show.votes", "setlist.show"];
        refused(&conn, &all);
        if rebuilt_first {
            // No show has a total yet. The repairs of the backfill also update the leaderboard.
            assert_eq!(store(&conn, &NEW).rebuild(RANK).unwrap(), 0);
            refused(&conn, &all[1..]);
            backfill(&conn, &NEW);
        } else {
            backfill(&conn, &NEW);
            refused(&conn, &all[..1]);
            // The repairs of the backfill have already added every line.
            assert_eq!(store(&conn, &NEW).rebuild(RANK).unwrap(), 0);
        }
        let mut wanted = votes_of_shows(&conn);
        wanted.sort_by_key(|(show, votes)| (-votes, *show));
        let mut new = store(&conn, &NEW);
        let top = new.top(RANK, 10).unwrap();
        assert_eq!(top.iter().map(|line| (line.key, line.score)).collect::<Vec<_>>(), wanted);
        assert_eq!(new.top_after(RANK, &top[1], 10).unwrap(), top[2..]);
        assert_eq!(
            (new.rank(RANK, top[2].key).unwrap().line().unwrap(), new.listed(RANK).unwrap()),
            (top[2].clone(), 4)
        );
    }
}

// The backfill.

#[test]
fn backfill_in_legs_is_exact_despite_writes_and_lost_tokens_between_them() {
    for page in [1, 2, 5, 1000] {
        let (conn, mut random) = (counted(), Random(page as u64 + 7));
        store(&conn, &SUMS).create().unwrap();
        let leg = Options::default().max_pages(1).max_wrong_percent(0);
        let mut token: Option<Token> = None;
        for legs in 0.. {
            assert!(legs < 500, "the backfill does not end");
            let mut run_of = match &token {
                Some(token) => {
                    Reconciler::resume(Mode::Backfill, &SUMS, &through_text(token), leg).unwrap()
                }
                None => Reconciler::new(Mode::Backfill, &SUMS, leg.page(page)).unwrap(),
            };
            let report = run(&mut run_of, &mut audit(&conn, &SUMS), &mut World::default()).unwrap();
            let ready =
                [MEMBERSHIP.id(), SHOWS.id()].map(|id| store(&conn, &SUMS).is_ready(id).unwrap());
            assert_eq!(ready[1], report.complete(), "the rollup is the last counter, by level");
            if report.complete() {
                break;
            }
            assert_not_ready(
                store(&conn, &SUMS).totals(SHOWS),
                "show.votes",
                &["show.votes", "setlist.show"],
            );
            // One leg in four is killed before its token is stored.
            if random.below(4) > 0 {
                token = report.token;
            }
            // Every writer runs the new hooks. Votes and setlists are written before and after the
            // position of the backfill.
            let setlist = random.below(14);
            write(&conn, &SUMS, &Row::Vote { setlist, weight: 3 });
            if random.below(5) == 0 {
                let show = random.below(6);
                write(&conn, &SUMS, &Row::Setlist { id: setlist, show });
            }
        }
        assert_eq!(store(&conn, &SUMS).unready().unwrap(), []);
        assert_exact(&conn);
    }
}

/// A backfill requires that every writer runs the hooks: a writer without them changes keys that
/// the run has already compared.
#[test]
fn backfill_beside_a_writer_without_the_hooks_ends_with_wrong_totals() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let mut first =
        Reconciler::new(Mode::Backfill, &SUMS, Options::default().page(1).max_pages(3)).unwrap();
    let report = run(&mut first, &mut audit(&conn, &SUMS), &mut World::default()).unwrap();
    assert_eq!(
        report.counters[0].keys, 3,
        "the memberships of the first three setlists are compared"
    );
    // The older schema has no membership and no rollup, so its writes update neither.
    write(&conn, &OLD, &Row::Setlist { id: 1, show: 3 });
    write(&conn, &OLD, &Row::Vote { setlist: 2, weight: 50 });
    let token = report.token.unwrap();
    let mut rest = Reconciler::resume(Mode::Backfill, &SUMS, &token, Options::default()).unwrap();
    assert!(run(&mut rest, &mut audit(&conn, &SUMS), &mut World::default()).unwrap().complete());
    // Another write of the older schema after the backfill.
    write(&conn, &OLD, &Row::Vote { setlist: 4, weight: 1000 });
    assert_eq!(store(&conn, &SUMS).unready().unwrap(), []);
    let read: BTreeMap<i64, i64> = store(&conn, &SUMS).totals(SHOWS).unwrap().into_iter().collect();
    let expected: BTreeMap<i64, i64> = votes_of_shows(&conn).into_iter().collect();
    assert_ne!(read, expected, "the totals are readable and wrong");
    assert_eq!(expected[&0] - read[&0], 1000);
    assert_eq!(expected[&3] - read[&3], 2, "the votes of the setlist without a membership");
    let report =
        run_whole(Mode::Repair, &SUMS, Options::default(), &mut audit(&conn, &SUMS)).unwrap();
    assert!(report.drift() > 0, "a repair finds it");
    assert_exact(&conn);
}

/// An audit that logs requests, and fails or leaves keys unsettled as configured.
struct Noted<'a> {
    audit: SqliteAudit<'a>,
    notes: RefCell<Vec<String>>,
    /// Errors of the next calls of `ready`, the last first.
    fails: Vec<Error>,
    /// Errors of the next calls of `keep`, the last first.
    places: Vec<Error>,
    /// The numbers of membership keys that the first comparison and the first repair leave
    /// unsettled.
    unsettled: (Cell<usize>, Cell<usize>),
}

impl<'a> Noted<'a> {
    fn of(conn: &'a Connection) -> Self {
        let unsettled = (Cell::new(0), Cell::new(0));
        Self {
            audit: audit(conn, &SUMS),
            notes: RefCell::default(),
            fails: Vec::new(),
            places: Vec::new(),
            unsettled,
        }
    }

    fn note(&self, what: &str, counter: &CounterId) {
        self.notes.borrow_mut().push(format!("{what} {}", counter.name()));
    }
}

/// Returns that many keys, once, and for the membership only.
fn unsettled_keys(counter: &CounterId, keys: &Cell<usize>) -> Vec<KeyBuf> {
    let keys = if *counter == MEMBERSHIP.id() { keys.take() } else { 0 };
    (0..keys).map(|_| KeyBuf::of::<(i64, i64)>((1_i64, 1_i64))).collect()
}

impl Audit for Noted<'_> {
    fn identity(&mut self) -> Result<u64> {
        self.audit.identity()
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        self.audit.probe(ask)
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        self.note("measure", &ask.counter);
        let unsettled = unsettled_keys(&ask.counter, &self.unsettled.0);
        Ok(PageDiff { unsettled, ..self.audit.compare(ask)? })
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.note("repair", &ask.counter);
        let unsettled = unsettled_keys(&ask.counter, &self.unsettled.1);
        Ok(Repaired { unsettled, ..self.audit.repair(ask)? })
    }

    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        self.audit.recall(token)
    }

    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        self.places.pop().map_or_else(|| self.audit.keep(ask), Err)
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        self.note("ready", &ask.counter);
        self.fails.pop().map_or_else(|| self.audit.ready(ask), Err)
    }
}

fn busy() -> Error {
    Error::Busy { operation: "a test".to_owned(), reason: "it is busy", cause: "busy".into() }
}

fn failed() -> Error {
    Error::Database { operation: "a test".to_owned(), cause: "the disk is gone".into() }
}

#[test]
fn counter_becomes_ready_after_its_last_page_and_before_the_next_counter_begins() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let mut noted = Noted::of(&conn);
    let report = run_whole(Mode::Backfill, &SUMS, Options::default().page(6), &mut noted).unwrap();
    assert!(report.complete());
    let diff = |counter: &str| {
        [format!("measure {counter}"), format!("measure {counter}"), format!("ready {counter}")]
    };
    let repaired = |counter: &str| {
        let [one, two, ready] = diff(counter);
        [one, format!("repair {counter}"), two, format!("repair {counter}"), ready].to_vec()
    };
    // The rollup followed the repairs of its base, so it needs none.
    let rollup = ["measure show.votes", "ready show.votes"].map(str::to_owned).to_vec();
    let wanted = [repaired("setlist.show"), diff("setlist.votes").to_vec(), rollup].concat();
    assert_eq!(*noted.notes.borrow(), wanted);
}

#[test]
fn run_killed_before_a_counter_is_ready_resumes_at_that_counter() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let zero = Duration::ZERO;
    let mut killed = Reconciler::new(Mode::Backfill, &SUMS, Options::default().page(5)).unwrap();
    let mut sources = audit(&conn, &SUMS);
    let counter = loop {
        let answer = match killed.next(zero) {
            Step::Ask(Request::Ready(ready)) => break ready.counter,
            Step::Ask(request) => sources.answer(&request),
            Step::Throttle => Answer::Throttled(None),
            step => panic!("{step:?}"),
        };
        killed.handle(answer, zero).unwrap();
    };
    assert_eq!(counter, MEMBERSHIP.id());
    // A run that is stopped now or has reached a limit still takes this step, because it belongs to
    // the page.
    killed.stop();
    let next = killed.next(zero);
    assert!(
        matches!(next, Step::Ask(Request::Ready(Ready { counter, .. })) if counter == MEMBERSHIP.id())
    );
    assert!(!killed.report().counters[0].complete, "it is not complete before it is ready");
    let token = through_text(&killed.token().unwrap());
    drop(killed);
    assert!(!store(&conn, &SUMS).is_ready(MEMBERSHIP.id()).unwrap());

    let mut noted = Noted::of(&conn);
    let mut resumed =
        Reconciler::resume(Mode::Backfill, &SUMS, &token, Options::default().max_pages(1)).unwrap();
    let report = run(&mut resumed, &mut noted, &mut World::default()).unwrap();
    assert_eq!(
        *noted.notes.borrow(),
        ["measure setlist.show", "ready setlist.show"],
        "only its last page is compared again"
    );
    assert!(report.counters[0].complete && store(&conn, &SUMS).is_ready(MEMBERSHIP.id()).unwrap());
}

#[test]
fn failed_ready_step_is_retried() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let mut noted = Noted::of(&conn);
    // The step is busy twice, then fails with an error that ends the run, then succeeds.
    noted.fails = vec![failed(), busy(), busy()];
    let mut backfill = Reconciler::new(Mode::Backfill, &SUMS, Options::default()).unwrap();
    let mut world = World::default();
    let error = run(&mut backfill, &mut noted, &mut world).unwrap_err();
    assert!(matches!(error, Error::Database { .. }), "{error}");
    assert_eq!((world.waited(), backfill.report().outcome), (vec![50, 100], Outcome::Failed));
    assert!(
        !store(&conn, &SUMS).is_ready(MEMBERSHIP.id()).unwrap()
            && !backfill.report().counters[0].complete
    );
    assert!(run(&mut backfill, &mut noted, &mut world).unwrap().complete());
    let calls = noted.notes.borrow().iter().filter(|note| *note == "ready setlist.show").count();
    assert_eq!(calls, 4);
    assert_exact(&conn);
}

#[test]
fn counter_with_unsettled_keys_is_not_made_ready() {
    for (diff, repaired) in [(2, 0), (0, 1)] {
        for max_pages in [1, 1000] {
            let conn = counted();
            store(&conn, &SUMS).create().unwrap();
            let leg = Options::default().page(4).max_pages(max_pages);
            let mut backfill = Reconciler::new(Mode::Backfill, &SUMS, leg).unwrap();
            let mut noted = Noted::of(&conn);
            noted.unsettled = (Cell::new(diff), Cell::new(repaired));
            // Also if other processes run the first and the last page.
            while let Some(token) =
                run(&mut backfill, &mut noted, &mut World::default()).unwrap().token
            {
                backfill =
                    Reconciler::resume(Mode::Backfill, &SUMS, &through_text(&token), leg).unwrap();
            }
            let readied = noted
                .notes
                .take()
                .into_iter()
                .filter(|note| note.starts_with("ready"))
                .collect::<Vec<_>>();
            assert_eq!(readied, ["ready setlist.votes", "ready show.votes"]);
            assert_eq!(store(&conn, &SUMS).unready().unwrap(), [MEMBERSHIP.id()]);
            assert_not_ready(store(&conn, &SUMS).total(SHOWS, 1), "show.votes", &["setlist.show"]);
            // Another backfill settles the keys.
            self::backfill(&conn, &SUMS);
            assert_exact(&conn);
        }
    }
}

#[test]
fn backfill_refuses_an_emptied_source_and_ignores_the_limit_of_wrong_keys() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    conn.execute_batch(
        "INSERT INTO setlists SELECT s.id + 100 * t.id, s.show FROM setlists AS s, setlists AS t",
    )
    .unwrap();
    let limited = Options::default().page(150).max_wrong_percent(1);
    let refused = run_whole(Mode::Repair, &SUMS, limited, &mut audit(&conn, &SUMS)).unwrap_err();
    assert!(matches!(refused, Error::DriftLimit { counter: "setlist.show", .. }), "{refused}");
    assert!(
        run_whole(Mode::Backfill, &SUMS, limited, &mut audit(&conn, &SUMS)).unwrap().complete()
    );
    assert_exact(&conn);
    conn.execute_batch("DELETE FROM setlists").unwrap();
    let refused =
        run_whole(Mode::Backfill, &SUMS, Options::default(), &mut audit(&conn, &SUMS)).unwrap_err();
    assert!(matches!(refused, Error::SourceEmpty { counter: "setlist.show", .. }), "{refused}");
}

#[test]
fn a_token_of_another_mode_is_refused() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let modes = [Mode::Verify, Mode::Repair, Mode::Backfill];
    for mode in modes {
        let options = Options::default().max_pages(1).page(2);
        let mut first = Reconciler::new(mode, &SUMS, options).unwrap();
        let token = run(&mut first, &mut audit(&conn, &SUMS), &mut World::default())
            .unwrap()
            .token
            .unwrap();
        for other in modes {
            let resumed = Reconciler::resume(other, &SUMS, &through_text(&token), options);
            if other == mode {
                resumed.unwrap();
                continue;
            }
            let error = resumed.unwrap_err();
            assert!(
                matches!(error, Error::Token { .. })
                    && error.to_string().contains(&mode.to_string()),
                "{error}"
            );
        }
    }
}

#[test]
fn ready_step_that_meets_a_lock_is_busy_and_succeeds_when_repeated() {
    let dir = crate::support::temp_dir();
    let path = dir.path().join("site.db");
    let open = || {
        let conn = Connection::open(&path).unwrap();
        conn.busy_timeout(Duration::ZERO).unwrap();
        conn
    };
    let (conn, other) = (open(), open());
    conn.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    conn.execute_batch(TABLES).unwrap();
    store(&conn, &SUMS).create_pending_backfill().unwrap();
    // Nothing needs a repair, so the first write is the one to the catalogue.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut backfill =
        Reconciler::new(Mode::Backfill, &SUMS, Options::default().retries(2)).unwrap();
    let mut sources = audit(&conn, &SUMS);
    let error = run(&mut backfill, &mut sources, &mut World::default()).unwrap_err();
    assert!(
        error.recovery() == Recovery::Retry && error.to_string().contains("setlist.show"),
        "{error}"
    );
    other.execute_batch("COMMIT").unwrap();
    assert!(run(&mut backfill, &mut sources, &mut World::default()).unwrap().complete());
    assert_eq!(store(&conn, &SUMS).unready().unwrap(), []);
    // As in every step, a connection inside a transaction is refused.
    conn.execute_batch("BEGIN").unwrap();
    assert!(matches!(
        sources.ready(&Ready { counter: MEMBERSHIP.id(), run: 1, kept: None }),
        Err(Error::InvalidUse { .. })
    ));
}

/// The backfill ended as if the counter were ready, and nobody could read it.
#[test]
fn end_of_a_backfill_of_a_counter_that_the_catalogue_lacks_is_an_error() {
    let conn = rows();
    store(&conn, &SUMS).create_pending_backfill().unwrap();
    let mut sources = audit(&conn, &SUMS);
    conn.execute_batch("DELETE FROM keepcount_counters WHERE name = 'setlist.show'").unwrap();
    let error = sources.ready(&Ready { counter: MEMBERSHIP.id(), run: 1, kept: None }).unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, reason } if table == "setlist_show" && reason.contains("not in the catalogue")),
        "{error:?}"
    );
}

// In memory.

fn of<K: Key>(counter: Counter<K>, rows: &[Row]) -> Vec<Row> {
    let of = |row: &&Row| match row {
        Row::Vote { .. } => counter.id() == VOTES.id(),
        Row::Setlist { .. } => counter.id() == MEMBERSHIP.id(),
    };
    let mut rows: Vec<Row> = rows.iter().filter(of).copied().collect();
    rows.sort_by_key(|row| match *row {
        Row::Vote { setlist, .. } => (setlist, 0),
        Row::Setlist { id, show } => (id, show),
    });
    rows
}

#[test]
fn memory_store_over_rows_is_backfilled_by_exclusive_and_live_audits() {
    let rows: Vec<Row> = (0..40)
        .flat_map(|id| [Row::Setlist { id, show: id % 3 }, Row::Vote { setlist: id, weight: id }])
        .collect();
    for live in [false, true] {
        let mut store = MemoryStore::pending_backfill(&SUMS);
        let mut batch = Batch::new();
        batch.insert(&Row::Vote { setlist: 1, weight: 1 });
        batch.delete(&Row::Vote { setlist: 1, weight: 1 });
        store.apply(&mut batch).unwrap();
        assert_not_ready(store.total(VOTES, 1), "setlist.votes", &["setlist.votes"]);
        assert_not_ready(
            store.totals(SHOWS),
            "show.votes",
            &["show.votes", "setlist.show", "setlist.votes"],
        );
        let mut token: Option<Token> = None;
        for leg in 0.. {
            assert!(leg < 100, "the backfill does not end");
            let options = Options::default().page(7).max_pages(1);
            let mut run_of = match &token {
                Some(token) => Reconciler::resume(Mode::Backfill, &SUMS, token, options).unwrap(),
                None => Reconciler::new(Mode::Backfill, &SUMS, options).unwrap(),
            };
            let mut audit = if live {
                MemoryAudit::live(&store, GracePeriod::after(Duration::ZERO), SystemRuntime::new())
            } else {
                MemoryAudit::new(&mut store)
            };
            audit.add(VOTES, |_| of(VOTES, &rows)).unwrap();
            audit.add(MEMBERSHIP, |_| of(MEMBERSHIP, &rows)).unwrap();
            let report = run(&mut run_of, &mut audit, &mut World::default()).unwrap();
            drop(audit);
            if report.complete() {
                break;
            }
            assert!(!store.is_ready(SHOWS.id()).unwrap());
            token = report.token;
        }
        let sum = |show: i64| (0..40).filter(|id| id % 3 == show).sum::<i64>();
        assert_eq!(store.totals(SHOWS).unwrap(), [(0, sum(0)), (1, sum(1)), (2, sum(2))]);
    }
}

#[test]
fn watching_audit_makes_no_counter_ready() {
    let store = MemoryStore::pending_backfill(&OLD);
    let mut audit = MemoryAudit::watching(&store, Duration::ZERO, SystemRuntime::new());
    audit.add(VOTES, |_| Vec::<Row>::new()).unwrap();
    let error = run_whole(Mode::Backfill, &OLD, Options::default(), &mut audit).unwrap_err();
    assert!(matches!(error, Error::InvalidUse { what: "audit", .. }), "{error}");
    drop(audit);
    assert!(!store.is_ready(VOTES.id()).unwrap());
}

// DDL text for the application's own migrations.

const RAISED: Schema = Schema::new(&[VOTES.table(), VOTES.version(2).table(), MEMBERSHIP.table()]);
/// The shared counters are in another order. The membership was a plain counter before, so it gets
/// its index.
const APART: Schema = Schema::new(&[MEMBERSHIP.table(), VOTES.table()]);
const OTHERS: Schema = Schema::new(&[MEMBERSHIP.table()]);
const PRUNED: Schema = Schema::new(&[MEMBERSHIP.table().prunable(), VOTES.table()]);

/// Tables, indexes and catalogue, without the random columns.
fn dump(conn: &Connection) -> Vec<String> {
    let of = |text: &str| -> Vec<String> {
        let mut statement = conn.prepare(text).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().map(rusqlite::Result::unwrap).collect()
    };
    let mut all = of(
        "SELECT name || ' ' || ifnull(sql, '') FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name",
    );
    all.extend(of(
        "SELECT concat_ws(' ', name, key, version, placement, cutoff, ready) FROM keepcount_counters ORDER BY name",
    ));
    all
}

fn run_in_transaction(conn: &Connection, statements: &[String]) {
    conn.execute_batch(&format!("BEGIN; {}; COMMIT", statements.join(";\n"))).unwrap();
}

/// `sql::ddl` was once the text for every migration, and made each counter ready. A counter that a
/// release added over existing rows was then read without them.
#[test]
fn counters_created_from_ddl_text_are_ready_only_in_a_new_database() {
    let text = sql::Dialect::Sqlite;
    let conn = rows();
    run_in_transaction(&conn, &sql::ddl_pending_backfill(text, &OLD));
    store(&conn, &OLD).check().unwrap();
    assert_not_ready(store(&conn, &OLD).total(VOTES, 1), "setlist.votes", &["setlist.votes"]);
    backfill(&conn, &OLD);
    assert_eq!(store(&conn, &OLD).total(VOTES, 1).unwrap(), 2);

    run_in_transaction(&conn, &sql::migration(text, &NEW, &OLD).unwrap().statements);
    store(&conn, &NEW).check().unwrap();
    assert_eq!(store(&conn, &NEW).unready().unwrap(), [MEMBERSHIP.id(), SHOWS.id()]);
    assert_eq!(store(&conn, &NEW).total(VOTES, 1).unwrap(), 2, "a ready counter stays ready");
    assert_not_ready(
        store(&conn, &NEW).total(SHOWS, 0),
        "show.votes",
        &["show.votes", "setlist.show"],
    );
    backfill(&conn, &NEW);
    assert_not_ready(store(&conn, &NEW).top(RANK, 3), "show.board", &["show.board"]);
    assert_exact(&conn);
    store(&conn, &NEW).rebuild(RANK).unwrap();
    assert_eq!(store(&conn, &NEW).top(RANK, 9).unwrap().len(), votes_of_shows(&conn).len());
    // Run again, the migration fails and changes nothing.
    let before = dump(&conn);
    for statement in sql::migration(text, &NEW, &OLD).unwrap().statements {
        let _ = conn.execute_batch(&statement);
    }
    assert_eq!(dump(&conn), before);
}

#[test]
fn ddl_text_makes_the_same_tables_as_create_and_drop_counter() {
    let text = sql::Dialect::Sqlite;
    for (before, after) in [
        (OLD, NEW),
        (OLD, SUMS),
        (SUMS, NEW),
        (NEW, OLD),
        (OLD, RAISED),
        (RAISED, OLD),
        (APART, SUMS),
        (APART, PRUNED),
        (NEW, NEW),
    ] {
        let (by_text, by_create) = (rows(), rows());
        run_in_transaction(&by_text, &sql::ddl(text, &before));
        store(&by_create, &before).create().unwrap();
        assert_eq!(dump(&by_text), dump(&by_create));
        let migration = sql::migration(text, &after, &before).unwrap();
        run_in_transaction(&by_text, &migration.statements);
        store(&by_create, &after)
            .create_pending_backfill()
            .unwrap_or_else(|error| assert!(matches!(error, Error::SchemaMismatch { .. })));
        if dump(&by_text) != dump(&by_create) {
            // An older schema beside a newer rollup or version is refused, and its migration
            // creates nothing.
            assert!(migration.statements.is_empty() && !migration.drops.is_empty());
        }
        let mut lost: Vec<_> = migration.drops.iter().map(|gone| gone.name.clone()).collect();
        for gone in &migration.drops {
            run_in_transaction(&by_text, &gone.statements);
            store(&by_create, &after).drop_counter(&gone.name).unwrap();
            assert_eq!(dump(&by_text), dump(&by_create), "{}", gone.name);
        }
        lost.sort_unstable();
        assert_eq!(
            store(&by_text, &after).orphaned().unwrap(),
            Vec::<String>::new(),
            "the schema lost {lost:?}"
        );
        store(&by_text, &after).check().unwrap();
    }
    let other = Schema::new(const { &[Counter::<(i64, i64)>::new("setlist.votes").table()] });
    assert!(matches!(
        sql::migration(text, &other, &OLD),
        Err(Error::DefinitionConflict { counter: "setlist.votes", .. })
    ));
    let conn = rows();
    run_in_transaction(&conn, &sql::ddl_pending_backfill(text, &OLD));
    let by_create = rows();
    store(&by_create, &OLD).create_pending_backfill().unwrap();
    assert_eq!(dump(&conn), dump(&by_create));
}

/// In any order and any number of times, also if the caller continues after an error.
#[test]
fn ddl_text_for_a_new_database_makes_nothing_ready_in_one_with_tables() {
    let statements = sql::ddl(sql::Dialect::Sqlite, &NEW);
    let conn = counted();
    assert!(conn.execute_batch(&format!("BEGIN; {}; COMMIT", statements.join(";\n"))).is_err());
    conn.execute_batch("ROLLBACK").unwrap();
    for _ in 0..2 {
        let failed =
            statements.iter().filter(|statement| conn.execute_batch(statement).is_err()).count();
        assert!(failed >= 2, "the statements of the catalogue and of the existing table fail");
        assert_not_ready(
            store(&conn, &NEW).total(SHOWS, 0),
            "show.votes",
            &["show.votes", "setlist.show"],
        );
        assert_not_ready(
            store(&conn, &NEW).top(RANK, 3),
            "show.board",
            &["show.board", "show.votes", "setlist.show"],
        );
        assert_eq!(store(&conn, &NEW).total(VOTES, 12).unwrap(), 13);
    }
    // The same if the existing tables have other names.
    let conn = Connection::open_in_memory().unwrap();
    for statement in
        sql::ddl(sql::Dialect::Sqlite, &OLD).iter().chain(&sql::ddl(sql::Dialect::Sqlite, &OTHERS))
    {
        let _ = conn.execute_batch(statement);
    }
    assert_eq!(store(&conn, &OLD).unready().unwrap(), []);
    assert_eq!(store(&conn, &OTHERS).unready().unwrap(), [MEMBERSHIP.id()]);
    // Stopped after any statement, and run again.
    for ran in 0..statements.len() {
        let conn = Connection::open_in_memory().unwrap();
        for statement in statements.iter().take(ran).chain(&statements) {
            let _ = conn.execute_batch(statement);
        }
        store(&conn, &NEW).check().unwrap();
        assert_eq!(store(&conn, &NEW).unready().unwrap(), []);
    }
}

/// A copy of the current database in a file of its own.
fn backup(conn: &Connection) -> (tempfile::TempDir, Connection) {
    let folder = crate::support::temp_dir();
    let file = folder.path().join("backup");
    conn.execute("VACUUM INTO ?1", [file.to_str().unwrap()]).unwrap();
    let restored = Connection::open(file).unwrap();
    (folder, restored)
}

/// The position of a backfill was in its token only. Resumed on a backup from before the leg, it
/// never filled the first keys, which were then read as 0.
#[test]
fn a_backfill_resumed_on_a_restored_backup_fills_what_the_backup_lacks() {
    let leg = Options::default().page(1).max_pages(5);
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    let mut backups = vec![backup(&conn)];
    let mut backfill = Reconciler::new(Mode::Backfill, &SUMS, leg).unwrap();
    loop {
        let token =
            run(&mut backfill, &mut audit(&conn, &SUMS), &mut World::default()).unwrap().token;
        let Some(token) = token else { break };
        for (_folder, restored) in backups.drain(..) {
            let mut rest = Reconciler::resume(
                Mode::Backfill,
                &SUMS,
                &through_text(&token),
                Options::default(),
            )
            .unwrap();
            assert!(
                run(&mut rest, &mut audit(&restored, &SUMS), &mut World::default())
                    .unwrap()
                    .complete()
            );
            assert_eq!(store(&restored, &SUMS).unready().unwrap(), []);
            assert_exact(&restored);
        }
        backups = vec![backup(&conn)];
        backfill = Reconciler::resume(Mode::Backfill, &SUMS, &through_text(&token), leg).unwrap();
    }
    assert_exact(&conn);
}

/// A standby takes over during the run, and its totals are older.
#[test]
fn backfill_continued_over_older_totals_starts_at_their_position() {
    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    for pages in [0, 3] {
        let mut noted = Noted::of(&conn);
        noted.fails = vec![failed()];
        let leg = Options::default().page(2).max_pages(pages.max(1));
        let mut backfill = Reconciler::new(Mode::Backfill, &SUMS, leg).unwrap();
        let token = run(&mut backfill, &mut audit(&conn, &SUMS), &mut World::default())
            .unwrap()
            .token
            .unwrap();
        let (_folder, older) = backup(&conn);
        conn.execute_batch("DELETE FROM setlist_show; DELETE FROM show_votes").unwrap();
        older
            .execute_batch(
                "DELETE FROM setlist_show; DELETE FROM show_votes; DELETE FROM keepcount_runs",
            )
            .unwrap();
        let mut rest =
            Reconciler::resume(Mode::Backfill, &SUMS, &token, Options::default().page(2)).unwrap();
        let error = run(&mut rest, &mut noted, &mut World::default()).unwrap_err();
        assert!(matches!(error, Error::Database { .. }), "{error}");
        assert!(
            run(&mut rest, &mut audit(&older, &SUMS), &mut World::default()).unwrap().complete()
        );
        assert_exact(&older);
        assert_eq!(store(&older, &SUMS).unready().unwrap(), []);
    }
}

/// A run that was driven again after an error stored its position beside totals that lacked the
/// page before it: a standby had taken over in between.
#[test]
fn run_driven_again_after_an_error_reads_the_position_from_the_totals() {
    let leg = Options::default().page(2).max_pages(1);
    for pages in [0, 1] {
        let conn = counted();
        store(&conn, &SUMS).create().unwrap();
        let mut backfill =
            Reconciler::new(Mode::Backfill, &SUMS, Options::default().page(2)).unwrap();
        if pages > 0 {
            let mut first = Reconciler::new(Mode::Backfill, &SUMS, leg).unwrap();
            let token = run(&mut first, &mut audit(&conn, &SUMS), &mut World::default())
                .unwrap()
                .token
                .unwrap();
            backfill =
                Reconciler::resume(Mode::Backfill, &SUMS, &token, Options::default()).unwrap();
        }
        let (_folder, older) = backup(&conn);
        let mut noted = Noted::of(&conn);
        noted.places = vec![failed()];
        run(&mut backfill, &mut noted, &mut World::default()).unwrap_err();
        assert!(
            run(&mut backfill, &mut audit(&older, &SUMS), &mut World::default())
                .unwrap()
                .complete()
        );
        assert_eq!(store(&older, &SUMS).unready().unwrap(), []);
        assert_exact(&older);
    }

    let conn = counted();
    store(&conn, &SUMS).create().unwrap();
    run_whole(Mode::Repair, &SUMS, Options::default(), &mut audit(&conn, &SUMS)).unwrap();
    let (_folder, older) = backup(&conn);
    older
        .execute_batch(
            "DELETE FROM setlist_show WHERE key_1 = (SELECT min(key_1) FROM setlist_show)",
        )
        .unwrap();
    for (totals, clean) in [(&older, false), (&conn, false)] {
        let mut noted = Noted::of(&conn);
        noted.places = vec![failed()];
        let mut verify = Reconciler::new(Mode::Verify, &SUMS, leg).unwrap();
        run(&mut verify, &mut noted, &mut World::default()).unwrap_err();
        let token = run(&mut verify, &mut audit(totals, &SUMS), &mut World::default())
            .unwrap()
            .token
            .unwrap();
        let mut rest = Reconciler::resume(Mode::Verify, &SUMS, &token, Options::default()).unwrap();
        let report = run(&mut rest, &mut audit(totals, &SUMS), &mut World::default()).unwrap();
        assert_eq!(
            (report.complete(), report.counters[0].clean),
            (true, clean),
            "the first page may be of other totals"
        );
    }
}

/// Legs of a verify called a counter clean although they had compared its first keys before the
/// backup was restored.
#[test]
fn counter_is_clean_only_if_its_database_kept_the_position_of_earlier_legs() {
    let conn = rows();
    store(&conn, &OLD).create().unwrap();
    let (_folder, older) = backup(&conn); // in which all totals are missing
    assert!(
        run_whole(Mode::Repair, &OLD, Options::default(), &mut audit(&conn, &OLD))
            .unwrap()
            .complete()
    );
    let leg = |conn: &Connection, token: Option<&Token>, pages| {
        let options = Options::default().page(4).max_pages(pages);
        let mut leg = match token {
            Some(token) => {
                Reconciler::resume(Mode::Verify, &OLD, &through_text(token), options).unwrap()
            }
            None => Reconciler::new(Mode::Verify, &OLD, options).unwrap(),
        };
        run(&mut leg, &mut audit(conn, &OLD), &mut World::default()).unwrap()
    };
    let kept = |conn: &Connection| -> i64 {
        conn.query_row("SELECT count(*) FROM keepcount_runs", (), |row| row.get(0)).unwrap()
    };
    let first = leg(&conn, None, 1).token.unwrap();
    let second = leg(&conn, Some(&first), 1).token.unwrap();
    assert_eq!(kept(&conn), 1);
    // In the backup, the last keys are right and the first ones are missing.
    older
        .execute_batch("INSERT INTO setlist_votes SELECT setlist, sum(weight) FROM votes WHERE setlist > 4 GROUP BY 1")
        .unwrap();
    for token in [&first, &second] {
        let restored = leg(&older, Some(token), 100);
        assert!(restored.complete() && restored.drift() == 0 && !restored.counters[0].clean);
    }
    assert!(
        !leg(&conn, Some(&first), 100).counters[0].clean,
        "another leg continued from this token"
    );
    let last = leg(&conn, Some(&second), 100);
    assert!(last.complete() && last.counters[0].clean);
    assert!(!leg(&conn, Some(&second), 100).counters[0].clean, "the token was used before");
    assert_eq!(kept(&conn), 0, "a complete run is not kept");

    // If nothing can be written, a run in one leg may call the counter clean, and a run in several
    // legs may not.
    conn.execute_batch("PRAGMA query_only = 1").unwrap();
    assert!(leg(&conn, None, 100).counters[0].clean);
    let first = leg(&conn, None, 1).token.unwrap();
    let last = leg(&conn, Some(&first), 100);
    assert!(last.complete() && !last.counters[0].clean);
}

/// Runs that are never resumed do not accumulate.
#[test]
fn no_more_than_256_runs_are_kept() {
    let conn = counted();
    for _ in 0..300 {
        let mut first =
            Reconciler::new(Mode::Verify, &OLD, Options::default().page(4).max_pages(1)).unwrap();
        run(&mut first, &mut audit(&conn, &OLD), &mut World::default()).unwrap();
    }
    let kept: i64 =
        conn.query_row("SELECT count(*) FROM keepcount_runs", (), |row| row.get(0)).unwrap();
    assert_eq!(kept, 256);
}
