//! Counters that an audit has no source for: a run checks the others, and reports the unchecked
//! ones.

use std::time::Duration;

use crate::support::world::{World, through_text};
use keepcount::reconcile::{
    Audit, Columns, CounterReport, Freshness, MemoryAudit, Mode, Options, Outcome, Reconciler,
    Report, SqliteAudit, SqliteRows, run,
};
use keepcount::{
    Batch, Counter, CounterId, Error, Key, MemoryStore, Record, Result, Schema, SqliteStore, Store,
    Tally,
};
use rusqlite::Connection;

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const STARS: Counter<i64> = Counter::new("setlist.stars");
const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, MEMBERSHIP);
const SCHEMA: Schema =
    Schema::new(&[VOTES.table(), STARS.table(), MEMBERSHIP.table(), SHOW_VOTES.table()]);
/// The counters that rows feed.
const ALL: [CounterId; 3] = [MEMBERSHIP.id(), STARS.id(), VOTES.id()];

#[derive(Debug, Clone, Copy)]
struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, 1);
        to.add(STARS, self.0, 1);
    }
}

#[derive(Debug, Clone, Copy)]
struct Setlist(i64);

impl Record for Setlist {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(MEMBERSHIP, (self.0, 70_i64), 1);
    }
}

fn counted() -> Batch {
    let mut batch = Batch::new();
    for setlist in 0..6 {
        batch.insert(&Setlist(setlist));
        batch.insert(&Vote(setlist));
    }
    batch
}

/// Calls `each` with an audit of every kind that has these sources. No total has drift.
fn with_each_audit(sources: &[CounterId], mut each: impl FnMut(&str, &mut dyn Audit)) {
    let has = |counter: CounterId| sources.contains(&counter);
    let mut store = MemoryStore::new(&SCHEMA);
    store.apply(&mut counted()).unwrap();
    let mut memory = MemoryAudit::new(&mut store);
    for counter in [VOTES, STARS] {
        if has(counter.id()) {
            memory.add(counter, |_| (0..6).map(Vote)).unwrap();
        }
    }
    if has(MEMBERSHIP.id()) {
        memory.add(MEMBERSHIP, |_| (0..6).map(Setlist)).unwrap();
    }
    each("memory", &mut memory);

    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "CREATE TABLE votes (setlist INTEGER); CREATE INDEX by_setlist ON votes (setlist);
         CREATE TABLE setlists (id INTEGER, show INTEGER); CREATE INDEX by_id ON setlists (id, show);
         WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 5) INSERT INTO votes SELECT n FROM n;
         INSERT INTO setlists SELECT setlist, 70 FROM votes",
    )
    .unwrap();
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    store.create().unwrap();
    store.apply(&mut counted()).unwrap();
    let mut sqlite = SqliteAudit::new(&conn, &SCHEMA).unwrap();
    for counter in [VOTES, STARS] {
        if has(counter.id()) {
            let votes = SqliteRows::of("votes", |row| Ok(Vote(row.get(0)?)));
            sqlite.add(votes.key(counter, Columns::of(["setlist"]).count())).unwrap();
        }
    }
    if has(MEMBERSHIP.id()) {
        let setlists = SqliteRows::of("setlists", |row| Ok(Setlist(row.get(0)?)));
        sqlite.add(setlists.key(MEMBERSHIP, Columns::of(["id", "show"]).count())).unwrap();
    }
    each("SQLite", &mut sqlite);
}

fn options() -> Options {
    Options::default().page(4)
}

fn run_counters(
    mode: Mode,
    counters: Option<&[CounterId]>,
    audit: &mut dyn Audit,
) -> Result<Report> {
    let mut reconciler = match counters {
        Some(counters) => Reconciler::scoped(mode, &SCHEMA, counters, options())?,
        None => Reconciler::new(mode, &SCHEMA, options())?,
    };
    run(&mut reconciler, audit, &mut World::default())
}

fn report_of<K: Key>(report: &Report, counter: Counter<K>) -> &CounterReport {
    report.counters.iter().find(|found| found.counter == counter.id()).unwrap()
}

#[test]
fn schema_with_a_missing_source_checks_the_others_and_is_not_complete() {
    for mode in [Mode::Verify, Mode::Repair, Mode::Backfill] {
        for (missing, unchecked_id) in ALL.into_iter().enumerate() {
            let sources: Vec<CounterId> =
                (0..ALL.len()).filter(|at| *at != missing).map(|at| ALL[at]).collect();
            with_each_audit(&sources, |kind, audit| {
                let report = run_counters(mode, None, audit).unwrap();
                let what = format!("{mode}, {kind}, {missing}: {}", report.table());
                assert_eq!(
                    (&report.outcome, report.complete()),
                    (&Outcome::Unchecked, false),
                    "{what}"
                );
                assert!(report.token.is_none() && what.contains("1 unchecked counter"), "{what}");
                assert!(what.contains("was not checked: the audit has no source for it"), "{what}");
                for counter in &report.counters {
                    let unchecked = counter.counter == unchecked_id;
                    let rollup = counter.counter == SHOW_VOTES.id();
                    assert_eq!(
                        (counter.unchecked, counter.complete),
                        (unchecked, !unchecked),
                        "{what}"
                    );
                    // The rollup sums the votes along the memberships. It does not depend on the
                    // stars.
                    let clean = if rollup { unchecked_id == STARS.id() } else { !unchecked };
                    assert_eq!((counter.clean, counter.failure.as_ref()), (clean, None), "{what}");
                }
                let json = serde_json::to_value(&report).unwrap();
                let counters = json["counters"].as_array().unwrap();
                assert_eq!(
                    counters.iter().filter(|counter| counter["unchecked"] == true).count(),
                    1,
                    "{json}"
                );
                assert_eq!(json["complete"], false);
            });
        }
    }
}

#[test]
fn named_counter_without_a_source_is_an_error() {
    for mode in [Mode::Verify, Mode::Repair] {
        with_each_audit(&[VOTES.id(), MEMBERSHIP.id()], |kind, audit| {
            let error = run_counters(mode, Some(&[VOTES.id(), STARS.id()]), audit).unwrap_err();
            assert!(
                matches!(error, Error::NoSource { counter: "setlist.stars" }),
                "{kind}: {error}"
            );
            assert!(run_counters(mode, Some(&[VOTES.id()]), audit).unwrap().complete(), "{kind}");
        });
        // The rollup is named, and its base and membership are not.
        with_each_audit(&[VOTES.id()], |kind, audit| {
            let report = run_counters(mode, Some(&[SHOW_VOTES.id()]), audit).unwrap();
            assert_eq!(report.outcome, Outcome::Unchecked, "{kind}");
            let rollup = report_of(&report, SHOW_VOTES);
            assert!(
                report_of(&report, MEMBERSHIP).unchecked && rollup.complete && !rollup.clean,
                "{kind}"
            );
            let error =
                run_counters(mode, Some(&[SHOW_VOTES.id(), MEMBERSHIP.id()]), audit).unwrap_err();
            assert!(matches!(error, Error::NoSource { .. }), "{kind}: {error}");
        });
    }
}

#[test]
fn schema_of_one_counter_without_a_source_is_an_error() {
    const ONE: Schema = Schema::new(&[VOTES.table()]);
    let mut store = MemoryStore::new(&ONE);
    let mut verify = Reconciler::new(Mode::Verify, &ONE, options()).unwrap();
    let error =
        run(&mut verify, &mut MemoryAudit::new(&mut store), &mut World::default()).unwrap_err();
    assert!(matches!(error, Error::NoSource { .. }), "{error}");
}

#[test]
fn run_in_legs_remembers_unchecked_and_named_counters() {
    with_each_audit(&[VOTES.id(), MEMBERSHIP.id()], |kind, audit| {
        for named in [false, true] {
            let legs = options().max_pages(1);
            let mut leg = if named {
                Reconciler::scoped(Mode::Verify, &SCHEMA, &[MEMBERSHIP.id(), STARS.id()], legs)
                    .unwrap()
            } else {
                Reconciler::new(Mode::Verify, &SCHEMA, legs).unwrap()
            };
            let last = loop {
                match run(&mut leg, audit, &mut World::default()) {
                    Ok(report) if report.token.is_some() => {
                        let token = through_text(&report.token.unwrap());
                        leg = Reconciler::resume(Mode::Verify, &SCHEMA, &token, legs).unwrap();
                    }
                    done => break done,
                }
            };
            if named {
                assert!(
                    matches!(last, Err(Error::NoSource { counter: "setlist.stars" })),
                    "{kind}"
                );
            } else {
                let last = last.unwrap();
                assert_eq!(
                    (&last.outcome, report_of(&last, STARS).unchecked),
                    (&Outcome::Unchecked, true),
                    "{kind}"
                );
                assert!(
                    report_of(&last, SHOW_VOTES).clean,
                    "{kind}: the rollup does not depend on the stars"
                );
            }
        }
    });
}

#[test]
fn freshness_of_an_unchecked_counter_does_not_move() {
    with_each_audit(&[STARS.id(), MEMBERSHIP.id()], |kind, audit| {
        let mut freshness = Freshness::new(&SCHEMA);
        freshness.observe(&run_counters(Mode::Verify, None, audit).unwrap(), 1_000);
        let ages = [VOTES.id(), STARS.id(), MEMBERSHIP.id(), SHOW_VOTES.id()]
            .map(|id| freshness.age(&id, 1_000));
        assert_eq!(ages, [None, Some(Duration::ZERO), Some(Duration::ZERO), None], "{kind}");
    });
}
