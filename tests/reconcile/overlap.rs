//! Two runs over the same counters: the second one reports the overlap, and neither is refused.

use crate::support::world::{World, through_text};
use keepcount::reconcile::step::{Answer, Request, Step};
use keepcount::reconcile::{
    Audit, Columns, MemoryAudit, Mode, Options, Overlap, Reconciler, Report, Run, Runtime,
    SqliteAudit, SqliteRows, SystemRuntime, repair, run, verify,
};
use keepcount::{Counter, MemoryStore, Record, Result, Schema, SqliteStore, Tally};
use rusqlite::Connection;
use std::time::Duration;

const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const USER_VOTES: Counter<i64> = Counter::new("user.votes");
const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table(), USER_VOTES.table()]);

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0 / 2, 1);
        to.add(USER_VOTES, self.0, 1);
    }
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "CREATE TABLE votes (id INTEGER PRIMARY KEY, show INTEGER AS (id / 2) STORED);
         CREATE INDEX by_show ON votes (show);
         WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 19) INSERT INTO votes (id) SELECT n FROM n",
    )
    .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn
}

fn audit(conn: &Connection) -> SqliteAudit<'_> {
    let mut audit = SqliteAudit::new(conn, &SCHEMA).unwrap();
    let votes = SqliteRows::of("votes", |row| Ok(Vote(row.get(0)?)));
    let (shows, users) = (Columns::of(["show"]).count(), Columns::of(["id"]).count());
    audit.add(votes.key(SHOW_VOTES, shows).key(USER_VOTES, users)).unwrap();
    audit
}

/// A runtime in which another run completes before the first page.
struct Meanwhile<F: FnMut() -> Report>(F, Vec<Report>);

impl<F: FnMut() -> Report> Runtime for Meanwhile<F> {
    fn now(&mut self) -> Duration {
        Duration::ZERO
    }

    fn wait(&mut self, _: Duration, _: &str) {}

    fn throttle(&mut self) -> Option<String> {
        if self.1.is_empty() {
            self.1.push((self.0)());
        }
        None
    }
}

#[test]
fn run_reports_an_overlap_with_a_run_over_shared_totals_in_its_process() {
    let (conn, other) = (database(), database());
    let shows = [SHOW_VOTES.id()];
    let users = [USER_VOTES.id()];
    let all: [(&Connection, Run<'_>, bool); 7] = [
        (&conn, repair(&SCHEMA).counters(&shows), true),
        (&conn, verify(&SCHEMA), true),
        (&conn, verify(&SCHEMA).counters(&users), false),
        (&conn, verify(&SCHEMA).key(SHOW_VOTES, 3), false),
        (&other, repair(&SCHEMA).counters(&shows), false),
        (&conn, verify(&SCHEMA).counters(&shows).options(Options::default().max_pages(1)), true),
        (&conn, repair(&SCHEMA).counters(&shows), true),
    ];
    for (at, (conn_of_second, second, overlaps)) in all.into_iter().enumerate() {
        let mut meanwhile =
            Meanwhile(|| second.run(&mut audit(conn_of_second)).unwrap(), Vec::new());
        let first =
            repair(&SCHEMA).counters(&shows).run_with(&mut audit(&conn), &mut meanwhile).unwrap();
        assert!(
            first.complete() && first.overlap.is_none(),
            "{at}: the first run reports no overlap"
        );
        let second = &meanwhile.1[0];
        assert_eq!(second.overlap, overlaps.then_some(Overlap::InProcess), "{at}: {second}");
        assert_eq!(
            second.to_string().ends_with("; another run was at work in this process"),
            overlaps,
            "{at}"
        );
        assert_eq!(
            serde_json::to_value(second).unwrap().get("overlap").is_some(),
            overlaps,
            "{at}"
        );
    }
    // No run is registered any more.
    assert_eq!(verify(&SCHEMA).run(&mut audit(&conn)).unwrap().overlap, None);
}

#[test]
fn failed_or_dropped_run_causes_no_overlap() {
    let mut store = MemoryStore::new(&SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit
        .rows_fallible(&[SHOW_VOTES.id(), USER_VOTES.id()], || [Ok(Vote(1)), Err("gone".into())])
        .unwrap();
    let mut failed = verify(&SCHEMA).reconciler().unwrap();
    assert!(run(&mut failed, &mut audit, &mut World::default()).is_err());
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut stops = SystemRuntime::new().throttle(|| panic!("the run is dropped"));
        verify(&SCHEMA).run_with(&mut audit, &mut stops)
    }));
    assert!(panics.is_err());
    audit.rows(&[SHOW_VOTES.id(), USER_VOTES.id()], || (0..20).map(Vote)).unwrap();
    audit.add(SHOW_VOTES, |_| (0..20).map(Vote)).unwrap();
    audit.add(USER_VOTES, |_| (0..20).map(Vote)).unwrap();
    let mut shown = Vec::new();
    let mut runtime = SystemRuntime::new().on_progress(|progress| shown.push(progress.overlap));
    let report = repair(&SCHEMA).run_with(&mut audit, &mut runtime).unwrap();
    drop(runtime);
    assert_eq!((report.overlap, shown.iter().flatten().count()), (None, 0));
    assert!(shown.len() > 2);
}

fn run_leg(token: &Report, conn: &Connection) -> Result<Report> {
    let token = through_text(token.token.as_ref().unwrap());
    let leg = verify(&SCHEMA).options(Options::default().max_pages(1)).resume(Some(&token));
    leg.run_with(&mut audit(conn), &mut World::default())
}

#[test]
fn token_used_by_another_leg_reports_an_overlap_unless_that_leg_was_killed() {
    let conn = database();
    let first = verify(&SCHEMA).options(Options::default().page(4).max_pages(1));
    let first = first.run_with(&mut audit(&conn), &mut World::default()).unwrap();
    // A killed leg stores nothing, so the next leg continues as if the killed one had not run.
    let token = first.token.clone().unwrap();
    let mut killed = Reconciler::resume(Mode::Verify, &SCHEMA, &token, Options::default()).unwrap();
    let mut audit = audit(&conn);
    for _ in 0..4 {
        let answer = match killed.next(Duration::ZERO) {
            Step::Ask(request) => keepcount::reconcile::Audit::answer(&mut audit, &request),
            _ => Answer::Throttled(None),
        };
        killed.handle(answer, Duration::ZERO).unwrap();
    }
    assert!(killed.report().pages > 0);
    drop(killed);
    let second = run_leg(&first, &conn).unwrap();
    assert_eq!(second.overlap, None, "{second}");
    assert_eq!(run_leg(&second, &conn).unwrap().overlap, None);
    // Both tokens were used before.
    for used in [&first, &second] {
        let again = run_leg(used, &conn).unwrap();
        assert_eq!(again.overlap, Some(Overlap::TakenOver), "{again}");
        assert!(again.counters.iter().all(|counter| !counter.clean), "{again}");
    }
}

/// Two legs resume from one token at once. The one that stores its progress last claims nothing. In
/// a backfill it goes on from the other's position.
#[test]
fn leg_whose_progress_another_stored_meanwhile_reports_an_overlap() {
    for mode in [Mode::Verify, Mode::Repair, Mode::Backfill] {
        let conn = database();
        if mode == Mode::Backfill {
            conn.execute_batch("UPDATE keepcount_counters SET ready = 0").unwrap();
        }
        let options = Options::default().page(4).max_pages(1);
        let first = Run::new(mode, &SCHEMA).options(options);
        let first = first.run_with(&mut audit(&conn), &mut World::default()).unwrap();
        let token = through_text(first.token.as_ref().unwrap());
        let leg =
            |pages| Reconciler::resume(mode, &SCHEMA, &token, options.max_pages(pages)).unwrap();

        let (mut late, mut audit) = (leg(1), audit(&conn));
        let asked = loop {
            let answer = match late.next(Duration::ZERO) {
                Step::Ask(Request::Keep(asked)) => break asked,
                Step::Ask(request) => audit.answer(&request),
                _ => Answer::Throttled(None),
            };
            late.handle(answer, Duration::ZERO).unwrap();
        };
        let other = run(&mut leg(2), &mut audit, &mut World::default()).unwrap();
        assert_eq!((other.pages, other.overlap), (2, None), "{other}");
        let kept = audit.keep(&asked).unwrap();
        late.handle(Answer::Kept(kept), Duration::ZERO).unwrap();
        let late = run(&mut late, &mut audit, &mut World::default()).unwrap();
        assert_eq!(late.overlap, Some(Overlap::TakenOver), "{late}");
        assert!(late.counters.iter().all(|counter| !counter.clean), "{late}");
        let same = late.token == other.token;
        assert_eq!(same, mode == Mode::Backfill, "{mode}: {:?}, {:?}", late.token, other.token);

        let end = Run::new(mode, &SCHEMA).resume(late.token.as_ref()).run(&mut audit).unwrap();
        assert!(end.complete(), "{end}");
        assert_eq!(SqliteStore::new(&conn, &SCHEMA).unready().unwrap(), []);
        if mode != Mode::Verify {
            assert_eq!(verify(&SCHEMA).run(&mut audit).unwrap().drift(), 0);
        }
    }
}

/// Runs in legs, and stores the progress of each leg this many times. Returns each leg's report.
fn legs(mode: Mode, times: usize) -> Vec<Report> {
    let conn = database();
    match mode {
        Mode::Backfill => {
            conn.execute_batch("UPDATE keepcount_counters SET ready = 0").unwrap();
        }
        Mode::Verify => drop(repair(&SCHEMA).run(&mut audit(&conn)).unwrap()),
        Mode::Repair => {}
    }
    let options = Options::default().page(4).max_pages(2);
    let (mut audit, mut reports) = (audit(&conn), Vec::<Report>::new());
    loop {
        let mut leg = match reports.last().map(|report| report.token.as_ref()) {
            None => Reconciler::new(mode, &SCHEMA, options).unwrap(),
            Some(Some(token)) => {
                Reconciler::resume(mode, &SCHEMA, &through_text(token), options).unwrap()
            }
            Some(None) => return reports,
        };
        loop {
            let answer = match leg.next(Duration::ZERO) {
                Step::Ask(request) => {
                    if matches!(&request, Request::Keep(keep) if keep.to.is_some()) {
                        for _ in 1..times {
                            audit.answer(&request);
                        }
                    }
                    audit.answer(&request)
                }
                Step::Throttle => Answer::Throttled(None),
                Step::Wait(..) => continue,
                Step::End => break,
            };
            leg.handle(answer, Duration::ZERO).unwrap();
        }
        reports.push(leg.report());
    }
}

/// A driver that was stopped after an answer had taken effect asks the same again. What the run
/// itself had stored looked like the work of another process.
#[test]
fn progress_that_is_stored_twice_reports_no_overlap() {
    let clean = |reports: &[Report]| -> Vec<Vec<bool>> {
        let each = reports.iter();
        each.map(|leg| leg.counters.iter().map(|counter| counter.clean).collect()).collect()
    };
    for mode in [Mode::Verify, Mode::Repair, Mode::Backfill] {
        let [once, twice] = [1, 2].map(|times| legs(mode, times));
        assert!(twice.len() > 2 && twice.iter().all(|leg| leg.overlap.is_none()), "{twice:?}");
        assert_eq!(clean(&twice), clean(&once), "{mode}");
        if mode == Mode::Verify {
            assert!(clean(&twice).concat().contains(&true), "{twice:?}");
        }
    }
}
