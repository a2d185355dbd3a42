//! The steps of a run, in virtual time and over a scripted audit, and its tokens and reports.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::support::world::{Clock, World, run_whole, through_text};
use keepcount::reconcile::audit::{
    Kept, PageDiff, PageRequest, Probe, ProbeResult, Recount, RepairRequest, Repaired, merge,
};
use keepcount::reconcile::step::{Answer, Request, Step};
use keepcount::reconcile::{
    Audit, Freshness, MemoryAudit, Mode, Options, Outcome, Reconciler, Report, SystemRuntime,
    Token, run,
};
use keepcount::{
    Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, Record, Recovery, Result, Schema, Tally,
};
use serde_json::json;
use uuid::Uuid;

const A: Counter<i64> = Counter::new("a.votes");
const B: Counter<i64> = Counter::new("b.votes");
/// Not in the order of names.
const TWO: Schema = Schema::new(&[B.table(), A.table()]);
const ONE: Schema = Schema::new(&[A.table()]);
const PARENT: Counter<(i64, i64)> = Counter::new("a.parent");
const SUM: Counter<i64> = Counter::new("sum.votes").sum_of(A, PARENT);
const LEVELS: Schema = Schema::new(&[A.table(), PARENT.table(), SUM.table()]);

/// The rows of one counter, by key: their sum and their number. Its totals, by key.
#[derive(Debug, Clone, Default)]
struct Side {
    rows: BTreeMap<i64, (i64, u64)>,
    totals: BTreeMap<i64, i64>,
}

/// An audit over maps. It logs every request, takes the configured time, and fails with the
/// configured errors.
#[derive(Debug, Default)]
struct Fake {
    clock: Clock,
    sides: BTreeMap<&'static str, Side>,
    log: Vec<String>,
    measure_takes: Duration,
    repair_takes: Duration,
    /// The result of each call, in order; calls beyond the list succeed.
    errors: VecDeque<Option<Error>>,
    /// The answer of every probe of a counter from the second on.
    later: Option<ProbeResult>,
    /// Keys that every page reports as dangling, and as unsettled.
    suspect: Vec<i64>,
    identity: u64,
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn busy() -> Error {
    Error::Busy {
        operation: "repairing".to_owned(),
        reason: "somebody holds it",
        cause: "locked".into(),
    }
}

fn broken() -> Error {
    Error::Database { operation: "measuring".to_owned(), cause: "disk".into() }
}

impl Fake {
    /// Counters with the keys `0..keys`, each with two rows and a total of 2.
    fn clean(keys: i64) -> Self {
        let side = Side {
            rows: (0..keys).map(|key| (key, (2, 2))).collect(),
            totals: (0..keys).map(|key| (key, 2)).collect(),
        };
        Self {
            sides: ["a.votes", "b.votes"].map(|name| (name, side.clone())).into(),
            ..Self::default()
        }
    }

    fn wrong(mut self, counter: Counter<i64>, keys: impl IntoIterator<Item = i64>) -> Self {
        self.side(&counter.id()).totals.extend(keys.into_iter().map(|key| (key, 1)));
        self
    }

    fn orphans(mut self, counter: Counter<i64>, count: i64) -> Self {
        self.side(&counter.id()).totals.extend((0..count).map(|key| (1_000 + key, 1)));
        self
    }

    fn emptied(mut self, counter: Counter<i64>) -> Self {
        self.side(&counter.id()).rows.clear();
        self
    }

    fn side(&mut self, counter: &CounterId) -> &mut Side {
        self.sides.get_mut(counter.name()).unwrap()
    }

    fn begin(&mut self, line: String) -> Result<()> {
        self.log.push(line);
        self.errors.pop_front().flatten().map_or(Ok(()), Err)
    }

    fn count(&self, what: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with(what)).count()
    }
}

fn number(key: &KeyBuf) -> i64 {
    key.decode().unwrap()
}

impl Audit for Fake {
    fn identity(&mut self) -> Result<u64> {
        self.begin("identify".to_owned())?;
        Ok(self.identity)
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        self.begin(format!("look {}", ask.counter.name()))?;
        let seen = self.count(&format!("look {}", ask.counter.name()));
        if let (Some(later), 2..) = (self.later, seen) {
            return Ok(later);
        }
        let side = self.side(&ask.counter);
        let empty = side.rows.is_empty();
        Ok(ProbeResult {
            empty,
            totals: if empty { ask.totals.min(side.totals.len() as u64) } else { 0 },
        })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        let after = ask.after.as_ref().map(number);
        let from = after.map_or_else(|| "the start".to_owned(), |key| key.to_string());
        self.begin(format!("measure {} {} behind {from}", ask.counter.name(), ask.keys))?;
        self.clock.pass(self.measure_takes);
        let side = self.side(&ask.counter);
        let behind = |key: i64| after.is_none_or(|after| key > after);
        let rows = side.rows.iter().filter(|(key, _)| behind(**key)).take(ask.keys + 1);
        let rows = rows.map(|(key, (total, rows))| Recount {
            key: KeyBuf::of::<i64>(key),
            total: *total,
            rows: *rows,
        });
        let totals = side.totals.iter().filter(|(key, _)| behind(**key)).take(ask.keys + 1);
        let totals = totals.map(|(key, total)| (KeyBuf::of::<i64>(key), *total)).collect();
        let mut diff = merge(ask, rows.collect(), totals)?;
        diff.dangling.extend(self.suspect.iter().map(KeyBuf::of::<i64>));
        diff.unsettled.extend(self.suspect.iter().map(KeyBuf::of::<i64>));
        Ok(diff)
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.begin(format!("repair {} of {}", ask.keys.len(), ask.counter.name()))?;
        self.clock.pass(self.repair_takes);
        let side = self.side(&ask.counter);
        let mut corrected = 0;
        for key in ask.keys.iter().map(number) {
            let expected = side.rows.get(&key).map_or(0, |(total, _)| *total);
            corrected += u64::from(side.totals.insert(key, expected).unwrap_or(0) != expected);
        }
        Ok(Repaired { corrected, unsettled: Vec::new() })
    }
}

fn reconciler(mode: Mode, options: Options) -> Reconciler {
    Reconciler::new(mode, &TWO, options).unwrap()
}

/// Runs the fake with a world that shares its clock.
fn run_fake(fake: &mut Fake, mode: Mode, options: Options) -> (Result<Report>, World, Reconciler) {
    let mut world = World::at(&fake.clock);
    let mut reconciler = reconciler(mode, options);
    (run(&mut reconciler, fake, &mut world), world, reconciler)
}

fn options() -> Options {
    Options::default()
}

#[test]
fn verify_compares_counters_in_the_order_of_names_and_repairs_nothing() {
    let mut fake = Fake::clean(3).wrong(A, [1]);
    let report = run_fake(&mut fake, Mode::Verify, options().page(2)).0.unwrap();
    assert_eq!(
        fake.log,
        [
            "identify",
            "measure a.votes 2 behind the start",
            "measure a.votes 2 behind 1",
            "measure b.votes 2 behind the start",
            "measure b.votes 2 behind 1",
        ]
    );
    assert_eq!((report.pages, report.rows, report.drift(), report.complete()), (4, 12, 1, true));
    assert_eq!(report.counters.iter().map(|counter| counter.corrected).sum::<u64>(), 0);
}

#[test]
fn repair_probes_all_counters_before_its_first_page_and_repairs_page_by_page() {
    let mut fake = Fake::clean(3).wrong(A, [0, 1, 2]).wrong(B, [2]);
    let report = run_fake(&mut fake, Mode::Repair, options().page(2)).0.unwrap();
    assert_eq!(
        fake.log,
        [
            "identify",
            "look a.votes",
            "look b.votes",
            "measure a.votes 2 behind the start",
            "repair 2 of a.votes",
            "measure a.votes 2 behind 1",
            "repair 1 of a.votes",
            "measure b.votes 2 behind the start",
            "measure b.votes 2 behind 1",
            "repair 1 of b.votes",
        ]
    );
    assert_eq!(report.counters.iter().map(|counter| counter.corrected).collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn scoped_run_handles_each_counter_of_its_scope_once_and_no_others() {
    const UNKNOWN: Counter<i64> = Counter::new("c.votes");

    let mut fake = Fake::clean(1);
    let mut scoped = Reconciler::scoped(Mode::Repair, &TWO, &[B.id(), B.id()], options()).unwrap();
    let report = run(&mut scoped, &mut fake, &mut World::default()).unwrap();
    assert_eq!(fake.log, ["identify", "look b.votes", "measure b.votes 1024 behind the start"]);
    assert_eq!(report.counters.len(), 1);

    let mut none = Reconciler::scoped(Mode::Repair, &TWO, &[], options()).unwrap();
    let report = run(&mut none, &mut fake, &mut World::default()).unwrap();
    assert!(report.complete() && report.token.is_none() && report.counters.is_empty());
    let unknown = Reconciler::scoped(Mode::Verify, &TWO, &[UNKNOWN.id()], options());
    assert!(matches!(unknown, Err(Error::UnknownCounter { .. })));
    let other = Reconciler::scoped(Mode::Verify, &TWO, &[A.version(2).id()], options());
    assert!(matches!(other, Err(Error::DefinitionConflict { .. })));
}

// Limits.

#[test]
fn run_whose_last_page_is_the_last_allowed_one_is_complete() {
    for (limit, pages, outcome) in [
        (1, 1, Outcome::Limit("pages")),
        (3, 3, Outcome::Limit("pages")),
        (4, 4, Outcome::Complete),
        (5, 4, Outcome::Complete),
    ] {
        let mut fake = Fake::clean(4);
        let report =
            run_fake(&mut fake, Mode::Verify, options().page(2).max_pages(limit)).0.unwrap();
        assert_eq!((report.pages, &report.outcome), (pages, &outcome));
        assert_eq!(report.token.is_none(), report.complete());
        assert_eq!(fake.count("measure"), usize::try_from(pages).unwrap());
        assert_eq!(report.counters.len(), 2, "all counters are reported, reached or not");
    }
}

#[test]
fn limits_of_rows_and_time_end_a_run_at_the_end_of_a_page() {
    // A page of two keys has four rows.
    for (rows, pages) in [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)] {
        let report = run_fake(&mut Fake::clean(8), Mode::Verify, options().page(2).max_rows(rows))
            .0
            .unwrap();
        assert_eq!((report.pages, report.outcome), (pages, Outcome::Limit("rows")), "{rows}");
    }
    for (time, pages) in [(1, 1), (10, 1), (11, 2), (30, 3)] {
        let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(8) };
        fake.clock.pass(millis(12_345));
        let report =
            run_fake(&mut fake, Mode::Verify, options().page(2).max_time(millis(time))).0.unwrap();
        assert_eq!((report.pages, report.outcome), (pages, Outcome::Limit("time")), "{time}");
    }
    let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(4) };
    let report =
        run_fake(&mut fake, Mode::Verify, options().page(2).max_time(millis(40)).max_rows(16))
            .0
            .unwrap();
    assert!(report.complete(), "limits that the last page reaches stop nothing: {report}");
}

#[test]
fn stop_takes_effect_after_the_current_page() {
    // The stop is checked before each step: identify, probe, probe, throttle, compare, repair,
    // throttle, compare, and so on.
    for (stop_at, log) in [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5), (8, 7)] {
        let mut fake = Fake::clean(6).wrong(A, 0..6);
        let mut world = World { stop_at: Some(stop_at), ..World::at(&fake.clock) };
        let mut repair = reconciler(Mode::Repair, options().page(2));
        let report = run(&mut repair, &mut fake, &mut world).unwrap();
        assert_eq!(report.outcome, Outcome::Stopped);
        assert_eq!(fake.log.len(), log, "stopped at {stop_at}: {:?}", fake.log);
        assert_eq!(report.counters[0].corrected, report.pages * 2);
        let token = through_text(&report.token.unwrap());
        let mut rest = Reconciler::resume(Mode::Repair, &TWO, &token, options()).unwrap();
        let rest = run(&mut rest, &mut fake, &mut World::default()).unwrap();
        assert_eq!(rest.counters[0].corrected, 6 - report.counters[0].corrected);
        assert!(rest.complete());
    }
}

// Pace.

#[test]
fn duty_cycle_waits_in_proportion_to_the_work_of_a_page() {
    for (duty, waits) in [(25, [30; 3]), (50, [10; 3]), (10, [90; 3])] {
        let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(4) };
        let (report, world, _) =
            run_fake(&mut fake, Mode::Verify, options().page(2).duty_percent(duty));
        assert!(report.unwrap().complete());
        assert_eq!(world.waited(), waits, "no wait after the last page");
        assert!(world.waits.iter().all(|(_, reason)| reason == "duty cycle"));
    }
    let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(4) };
    assert!(run_fake(&mut fake, Mode::Verify, options().page(2)).1.waits.is_empty());
    // A repair counts as work too.
    let mut fake =
        Fake { measure_takes: millis(10), repair_takes: millis(7), ..Fake::clean(4).wrong(A, [2]) };
    let (_, world, _) = run_fake(&mut fake, Mode::Repair, options().page(2).duty_percent(25));
    assert_eq!(world.waited(), [30, 51, 30]);
}

#[test]
fn row_rate_limit_holds_on_average() {
    let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(4) };
    fake.clock.pass(millis(777));
    // A page has four rows, so one may begin every 40 ms.
    let (_, world, _) = run_fake(&mut fake, Mode::Verify, options().page(2).rows_per_second(100));
    assert_eq!(world.waits, vec![(30, "rows per second".to_owned()); 3]);
    // Of two waits, the longer one applies.
    let mut fake = Fake { measure_takes: millis(10), ..Fake::clean(4) };
    let (_, world, _) =
        run_fake(&mut fake, Mode::Verify, options().page(2).rows_per_second(100).duty_percent(50));
    assert_eq!(world.waited(), [30; 3]);
    let mut fake = Fake { measure_takes: millis(20), ..Fake::clean(4) };
    let (_, world, _) =
        run_fake(&mut fake, Mode::Verify, options().page(2).rows_per_second(100).duty_percent(25));
    assert_eq!(world.waited(), [60; 3]);
    // A slow page needs no wait after it.
    let mut fake = Fake { measure_takes: millis(70), ..Fake::clean(4) };
    assert!(
        run_fake(&mut fake, Mode::Verify, options().page(2).rows_per_second(100))
            .1
            .waits
            .is_empty()
    );
}

#[test]
fn closed_throttle_delays_the_run_and_gives_its_reason() {
    let mut fake = Fake::clean(4);
    let mut world = World::at(&fake.clock);
    world.throttles = [None, Some("load 9"), Some("lag 3 s"), None, Some("load 8")].into();
    let report =
        run(&mut reconciler(Mode::Verify, options().page(2)), &mut fake, &mut world).unwrap();
    assert!(report.complete());
    assert_eq!(report.pages, 4);
    let wait = |reason: &str| (250, reason.to_owned());
    assert_eq!(world.waits, [wait("load 9"), wait("lag 3 s"), wait("load 8")]);
}

#[test]
fn throttle_that_stays_closed_ends_the_run_as_stalled() {
    let mut fake = Fake::clean(4);
    let mut world = World::at(&fake.clock);
    // An open throttle in between restarts the stall time.
    world.throttles = [Some("lag"), Some("lag"), Some("lag"), None].into();
    world.shut = Some("load");
    let stall = options().page(2).stall_after(millis(1_000));
    let report = run(&mut reconciler(Mode::Verify, stall), &mut fake, &mut world).unwrap();
    assert_eq!(report.outcome, Outcome::Stalled("load".to_owned()));
    assert_eq!(world.waited(), [250; 3 + 4]);
    assert_eq!(report.pages, 1);
    let token = report.token.unwrap();
    let mut rest = Reconciler::resume(Mode::Verify, &TWO, &token, options()).unwrap();
    assert!(run(&mut rest, &mut fake, &mut World::default()).unwrap().complete());
}

#[test]
fn busy_step_is_retried_after_doubling_waits_and_then_fails() {
    let doubling = [50, 100, 200, 400, 800, 1_000, 1_000];
    // Identify, probe, probe, compare, repair: any of these steps may fail.
    for before in 0..5 {
        for retries in [0, 1, 5, 7] {
            let mut fake = Fake::clean(4).wrong(A, [0, 2]);
            fake.errors =
                (0..before).map(|_| None).chain((0..=retries).map(|_| Some(busy()))).collect();
            let (result, world, repair) =
                run_fake(&mut fake, Mode::Repair, options().page(2).retries(retries));
            let error = result.unwrap_err();
            assert_eq!(error.recovery(), Recovery::Retry);
            assert_eq!(world.waited(), doubling[..retries as usize], "after {before} steps");
            assert!(
                world.waits.iter().all(|(_, reason)| reason.contains("somebody holds it")),
                "{:?}",
                world.waits
            );
            assert_eq!(fake.log.len(), before + 1 + retries as usize);
            assert_eq!(repair.report().outcome, Outcome::Failed);
        }
    }
    // As many failures as retries are tolerated, and a success resets the count and the wait.
    let mut fake = Fake::clean(4);
    fake.errors =
        [Some(busy()), Some(busy()), None, Some(busy()), None, Some(busy()), Some(busy())].into();
    let (result, world, _) = run_fake(&mut fake, Mode::Verify, options().page(2).retries(2));
    assert!(result.unwrap().complete());
    assert_eq!(world.waited(), [50, 100, 50, 50, 100]);
}

#[test]
fn permanent_error_ends_the_run_and_leaves_a_report_and_a_token() {
    let mut fake = Fake::clean(6).wrong(A, 0..6);
    fake.errors = (0..6).map(|_| None).chain([Some(broken())]).collect();
    let (result, world, mut repair) = run_fake(&mut fake, Mode::Repair, options().page(2));
    assert_eq!(result.unwrap_err().to_string(), "measuring: disk");
    assert!(world.waits.is_empty());
    let report = repair.report();
    assert_eq!(
        (report.pages, report.counters[0].corrected, &report.outcome),
        (2, 2, &Outcome::Failed)
    );
    // The page whose repair failed is compared again, by this run or by one that resumes it.
    let token = through_text(&report.token.unwrap());
    let mut copy = Fake { clock: Clock::default(), sides: fake.sides.clone(), ..Fake::default() };
    let mut rest = Reconciler::resume(Mode::Repair, &TWO, &token, options()).unwrap();
    let rest = run(&mut rest, &mut copy, &mut World::default()).unwrap();
    assert_eq!(copy.log[3], "measure a.votes 2 behind 1");
    assert_eq!((rest.counters[0].corrected, rest.complete()), (4, true));
    let report = run(&mut repair, &mut fake, &mut World::default()).unwrap();
    assert_eq!((report.counters[0].corrected, report.complete()), (6, true));
}

/// A failed probe leaves out a counter that is not the first one to compare.
#[test]
fn counter_whose_rows_cannot_be_read_is_left_out_and_the_others_are_compared() {
    let (look_a, look_b) = ("look a.votes", "look b.votes");
    let measure_a = "measure a.votes 3 behind the start";
    let measure_b = "measure b.votes 3 behind the start";
    for (mode, before, left_out, steps) in [
        (Mode::Verify, 1, 0, &[measure_a, measure_b][..]),
        (Mode::Verify, 2, 1, &[measure_a, measure_b]),
        (Mode::Repair, 1, 0, &[look_a, look_b, measure_b]),
        (Mode::Repair, 2, 1, &[look_a, look_b, measure_a]),
        (Mode::Repair, 3, 0, &[look_a, look_b, measure_a, measure_b]),
    ] {
        let mut fake = Fake::clean(2);
        let (counter, reason) = (["a.votes", "b.votes"][left_out], "a row is torn".to_owned());
        let unreadable = Error::Source { counter, key: None, reason, cause: None };
        fake.errors = (0..before).map(|_| None).chain([Some(unreadable)]).collect();
        let report = run_fake(&mut fake, mode, options().page(3)).0.unwrap();
        assert_eq!(fake.log[1..], *steps, "{mode} after {before}");
        assert_eq!(report.outcome, Outcome::Incomplete);
        let compared = report.counters.iter().map(|counter| counter.complete).collect::<Vec<_>>();
        assert_eq!(compared, [left_out != 0, left_out != 1]);
        assert!(report.counters[left_out].failure.as_ref().unwrap().contains("torn"));
    }
}

/// The page sizes of a run whose comparisons take this long.
fn page_sizes(options: Options, took: Duration, count: usize) -> Vec<usize> {
    let mut verify = reconciler(Mode::Verify, options);
    let mut now = Duration::ZERO;
    let mut pages = Vec::new();
    while pages.len() < count {
        let answer = match verify.next(now) {
            Step::Ask(Request::Identify) => Answer::Identified(0),
            Step::Throttle => Answer::Throttled(None),
            Step::Ask(Request::Compare(ask)) => {
                pages.push(ask.keys);
                now += took;
                let next = Some(KeyBuf::of::<i64>(i64::try_from(pages.len()).unwrap()));
                Answer::Compared(PageDiff { keys: 1, rows: 1, next, ..PageDiff::default() })
            }
            other => panic!("{other:?}"),
        };
        verify.handle(answer, now).unwrap();
    }
    pages
}

#[test]
fn page_size_adapts_to_the_page_time_within_bounds() {
    assert_eq!(page_sizes(options(), Duration::ZERO, 6), [1024, 2048, 4096, 8192, 8192, 8192]);
    assert_eq!(page_sizes(options(), millis(50), 3), [1024, 1024, 1024]);
    assert_eq!(page_sizes(options(), millis(40), 3), [1024, 1280, 1600]);
    assert_eq!(page_sizes(options(), millis(1), 3), [1024, 2048, 4096]);
    assert_eq!(page_sizes(options(), millis(80), 3), [1024, 640, 400]);
    assert_eq!(page_sizes(options(), millis(60_000), 8), [1024, 512, 256, 128, 64, 32, 16, 16]);
    assert_eq!(page_sizes(options().page_time(millis(100)), millis(50), 2), [1024, 2048]);
    assert_eq!(
        page_sizes(options().page_time(Duration::ZERO), millis(1), 8),
        [1024, 512, 256, 128, 64, 32, 16, 16]
    );
    assert_eq!(page_sizes(options().page(7), millis(60_000), 3), [7, 7, 7]);
}

// Guards.

#[test]
fn emptied_source_refuses_the_whole_repair_before_its_first_page() {
    // The source of the second counter is empty. The first counter has drift.
    let fake = || Fake::clean(100).wrong(A, [1]).emptied(B);
    let mut refused = fake();
    let (result, _, mut repair) = run_fake(&mut refused, Mode::Repair, options());
    match result.unwrap_err() {
        Error::SourceEmpty { counter, totals } => assert_eq!((counter, totals), ("b.votes", 100)),
        other => panic!("{other:?}"),
    }
    assert_eq!(refused.log, ["identify", "look a.votes", "look b.votes"]);
    assert_eq!(repair.report().pages, 0);
    // A run that is driven again or resumed is refused too.
    let report = run(&mut repair, &mut refused, &mut World::default()).unwrap();
    assert_eq!((report.outcome, report.pages), (Outcome::Refused, 0));
    let mut resumed =
        Reconciler::resume(Mode::Repair, &TWO, &report.token.unwrap(), options()).unwrap();
    assert!(matches!(
        run(&mut resumed, &mut refused, &mut World::default()),
        Err(Error::SourceEmpty { .. })
    ));
    assert_eq!(refused.count("me"), 0, "{:?}", refused.log);

    let mut forced = fake();
    let report = run_fake(&mut forced, Mode::Repair, options().force(true)).0.unwrap();
    assert_eq!((report.counters[1].orphan, report.counters[1].corrected), (100, 100));
    let report = run_fake(&mut fake(), Mode::Verify, options()).0.unwrap();
    assert_eq!(report.counters[1].orphan, 100, "a verify is not refused");

    let mut few = Fake::clean(99).emptied(B);
    assert_eq!(run_fake(&mut few, Mode::Repair, options()).0.unwrap().counters[1].corrected, 99);
}

#[test]
fn source_is_probed_again_before_a_page_of_many_orphans_is_repaired() {
    let again = |orphans: i64, later: ProbeResult, force: bool| {
        let mut fake = Fake { later: Some(later), ..Fake::clean(2).orphans(A, orphans) };
        let result = run_fake(&mut fake, Mode::Repair, options().force(force)).0;
        let looks = fake.count("look a.votes");
        (result, looks, fake.count("repair"))
    };
    let full = ProbeResult { empty: false, totals: 0 };
    let empty = ProbeResult { empty: true, totals: 100 };
    let (result, looks, repairs) = again(99, empty, false);
    assert_eq!((result.unwrap().counters[0].corrected, looks, repairs), (99, 1, 1));
    let (result, looks, repairs) = again(100, full, false);
    assert_eq!((result.unwrap().counters[0].corrected, looks, repairs), (100, 2, 1));
    let (result, looks, repairs) = again(100, empty, false);
    assert!(matches!(result, Err(Error::SourceEmpty { counter: "a.votes", totals: 100 })));
    assert_eq!((looks, repairs), (2, 0));
    let (result, looks, repairs) = again(100, empty, true);
    assert_eq!((result.unwrap().counters[0].corrected, looks, repairs), (100, 1, 1));
}

#[test]
fn base_and_membership_of_a_rollup_are_probed_and_the_rollup_is_not() {
    let mut fake = Fake::clean(2);
    fake.sides.extend([("a.parent", Side::default()), ("sum.votes", Side::default())]);
    // As if all children had lost their parents. The repair follows the totals of the membership,
    // whose source was probed.
    let mut fake = fake.orphans(SUM, 150);
    let mut run_of_all = Reconciler::new(Mode::Repair, &LEVELS, options()).unwrap();
    let mut world = World::at(&fake.clock);
    let report = run(&mut run_of_all, &mut fake, &mut world).unwrap();
    assert_eq!((report.counters[2].corrected, fake.count("repair 150 of sum.votes")), (150, 1));
    let looks: Vec<_> = fake.log.iter().filter(|line| line.starts_with("look")).collect();
    assert_eq!(looks, ["look a.parent", "look a.votes"]);

    // A run that resumes in the middle of the rollup does not probe it either.
    let mut fake = fake.orphans(SUM, 150);
    let part = options().page(100);
    let mut first = Reconciler::new(Mode::Repair, &LEVELS, part.max_pages(3)).unwrap();
    let token = run(&mut first, &mut fake, &mut world).unwrap().token.unwrap();
    fake.log.clear();
    let mut rest = Reconciler::resume(Mode::Repair, &LEVELS, &token, options()).unwrap();
    assert_eq!(run(&mut rest, &mut fake, &mut world).unwrap().counters[2].corrected, 50);
    assert_eq!(
        fake.log,
        ["identify", "measure sum.votes 100 behind 1099", "repair 50 of sum.votes"]
    );
}

#[test]
fn parts_compare_and_repair_only_their_own_keys() {
    let key = |key: i64| Some(KeyBuf::of::<i64>(key));
    for page in [1, 2, 3, 100] {
        let mut fake = Fake::clean(10).wrong(A, 0..10).orphans(A, 2);
        let parts = [
            (None, key(3), 4),
            (key(3), key(6), 3),
            (key(6), key(6), 0),
            (key(6), key(1_000), 4),
            (key(1_000), None, 1),
        ];
        for (done, (after, until, keys)) in (1..).zip(parts) {
            let (after, until) = (after.as_ref(), until.as_ref());
            let mut part =
                Reconciler::part(Mode::Repair, &TWO, A.id(), after, until, options().page(page))
                    .unwrap();
            let mut world = World::at(&fake.clock);
            let report = run(&mut part, &mut fake, &mut world).unwrap();
            let own = &report.counters[0];
            assert_eq!(
                (own.keys, own.drift(), own.corrected),
                (keys, keys, keys),
                "part {done} with pages of {page}"
            );
            assert!(report.complete() && report.counters.len() == 1);
        }
        assert_eq!(fake.count("look b.votes"), 0);
        assert!(fake.side(&A.id()).totals.values().all(|total| *total == 2 || *total == 0));
    }
}

#[test]
fn part_of_a_backfill_a_rollup_or_with_a_wrong_key_is_refused() {
    let part = |mode, counter: Counter<i64>, until: &KeyBuf| {
        Reconciler::part(mode, &LEVELS, counter.id(), None, Some(until), options())
    };
    let key = KeyBuf::of::<i64>(7);
    for (mode, counter) in [(Mode::Backfill, A), (Mode::Repair, SUM), (Mode::Verify, SUM)] {
        let error = part(mode, counter, &key).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidUse { what: "part", reason } if reason.contains(counter.id().name())),
            "{error}"
        );
    }
    part(Mode::Verify, A, &key).unwrap();
    let error = part(Mode::Verify, A, &KeyBuf::of::<String>("seven")).unwrap_err();
    assert!(matches!(error, Error::Key { .. }), "{error}");
    part(Mode::Repair, A, &key).unwrap();
    let unknown = Reconciler::part(Mode::Verify, &LEVELS, B.id(), None, None, options());
    assert!(matches!(unknown, Err(Error::UnknownCounter { .. })));
}

/// A page of one text key may contain keys before it.
#[test]
fn run_over_keys_reports_only_those_as_dangling_or_unsettled() {
    let mut fake = Fake { suspect: vec![3, 4, 5, 6], ..Fake::clean(10) };
    let wanted = [4, 6].map(|key: i64| KeyBuf::of::<i64>(key));
    let mut keys = Reconciler::keys(Mode::Verify, &TWO, A.id(), &wanted, options()).unwrap();
    let report = run(&mut keys, &mut fake, &mut World::default()).unwrap();
    let counter = &report.counters[0];
    assert_eq!((counter.dangling, &counter.dangling_keys[..]), (2, &wanted[..]));
    assert_eq!((counter.unsettled, &counter.unsettled_keys[..]), (2, &wanted[..]));
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "it is a debug assertion")]
#[should_panic(expected = "is no answer to")]
fn throttles_answer_to_a_page_request_is_a_mistake_of_the_driver() {
    let mut reconciler = reconciler(Mode::Verify, options());
    loop {
        let answer = match reconciler.next(Duration::ZERO) {
            Step::Ask(Request::Compare(_)) => Answer::Throttled(None),
            Step::Ask(request) => Fake::clean(1).answer(&request),
            _ => Answer::Throttled(None),
        };
        reconciler.handle(answer, Duration::ZERO).unwrap();
    }
}

/// It would be compared although a throttle is closed.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "it is a debug assertion")]
#[should_panic(expected = "is no answer to")]
fn page_in_answer_to_the_throttles_is_a_mistake_of_the_driver() {
    let mut reconciler = reconciler(Mode::Verify, options());
    loop {
        let answer = match reconciler.next(Duration::ZERO) {
            Step::Ask(request) => Fake::clean(1).answer(&request),
            Step::Throttle => Answer::Compared(PageDiff::default()),
            Step::Wait(..) | Step::End => return,
        };
        reconciler.handle(answer, Duration::ZERO).unwrap();
    }
}

#[test]
fn page_beyond_the_limit_of_wrong_keys_is_not_repaired() {
    let limited = |keys, wrong, mode, options: Options| {
        let mut fake = Fake::clean(keys).wrong(B, 0..wrong);
        let result = run_fake(&mut fake, mode, options.max_wrong_percent(10)).0;
        (result, fake.count("repair"))
    };
    let (result, repairs) = limited(100, 11, Mode::Repair, options());
    let error = result.unwrap_err();
    assert!(
        matches!(error, Error::DriftLimit { counter: "b.votes", wrong: 11, keys: 100, limit: 10 }),
        "{error:?}"
    );
    assert_eq!((repairs, error.recovery()), (0, Recovery::Permanent));
    assert_eq!(
        error.to_string(),
        "counter b.votes: 11 of 100 keys are wrong, over the limit of 10%; the page was not repaired"
    );
    for (keys, wrong, options) in
        [(100, 10, options()), (99, 99, options()), (100, 100, options().force(true))]
    {
        let (result, repairs) = limited(keys, wrong, Mode::Repair, options);
        assert_eq!(
            (result.unwrap().counters[1].corrected, repairs),
            (u64::try_from(wrong).unwrap(), 1),
            "{keys} {wrong}"
        );
    }
    assert_eq!(limited(100, 100, Mode::Verify, options()).0.unwrap().drift(), 100);
    // A limit of zero percent allows no wrong key. All pages of the run count together.
    let mut fake = Fake::clean(150).wrong(A, [149]);
    let result = run_fake(&mut fake, Mode::Repair, options().max_wrong_percent(0).page(60)).0;
    assert!(matches!(result, Err(Error::DriftLimit { wrong: 1, keys: 150, .. })), "{result:?}");
}

#[test]
fn repair_request_has_a_bounded_number_of_keys_and_rows() {
    let mut fake = Fake::clean(600).wrong(A, 0..600);
    let report = run_fake(&mut fake, Mode::Repair, options()).0.unwrap();
    let repairs: Vec<_> = fake.log.iter().filter(|line| line.starts_with("repair")).collect();
    assert_eq!(repairs, ["repair 256 of a.votes", "repair 256 of a.votes", "repair 88 of a.votes"]);
    assert_eq!((report.pages, report.counters[0].corrected), (2, 600));

    // Each of the first keys has 60,000 rows: a repair takes two, because it takes no other key
    // once it has 100,000 rows. A key with more rows than that ends its repair.
    let mut fake = Fake::clean(7);
    let big = [60_000, 60_000, 60_000, 99_999, 1, 10_000_000, 5];
    fake.side(&A.id()).rows = (0..).zip(big).map(|(key, rows)| (key, (1, rows))).collect();
    let report = run_fake(&mut fake, Mode::Repair, options()).0.unwrap();
    let repairs: Vec<_> = fake.log.iter().filter(|line| line.starts_with("repair")).collect();
    assert_eq!(
        repairs,
        [
            "repair 2 of a.votes",
            "repair 2 of a.votes",
            "repair 2 of a.votes",
            "repair 1 of a.votes"
        ]
    );
    assert_eq!(report.counters[0].corrected, 7);

    let mut fake = Fake::clean(3);
    fake.side(&A.id()).rows =
        (0..).zip([60_000, 40_000, 1]).map(|(key, rows)| (key, (1, rows))).collect();
    run_fake(&mut fake, Mode::Repair, options()).0.unwrap();
    assert_eq!((fake.count("repair 2 of a.votes"), fake.count("repair 1 of a.votes")), (1, 1));
}

#[test]
fn stop_flag_ends_the_run_even_while_a_throttle_is_closed() {
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut live = SystemRuntime::new().stop_flag(&stop).throttle(|| None).throttle(|| {
        stop.store(asked.fetch_add(1, Ordering::Relaxed) == 2, Ordering::Relaxed);
        None
    });
    let mut fake = Fake::clean(50);
    let report =
        run(&mut reconciler(Mode::Verify, options().page(2)), &mut fake, &mut live).unwrap();
    assert_eq!(
        (report.pages, &report.outcome),
        (2, &Outcome::Stopped),
        "the flag is set before the third page"
    );

    let stop = AtomicBool::new(false);
    let mut live = SystemRuntime::new().stop_flag(&stop).throttle(|| {
        stop.store(true, Ordering::Relaxed);
        Some("load".to_owned())
    });
    let report = run(&mut reconciler(Mode::Verify, options()), &mut fake, &mut live).unwrap();
    assert_eq!((report.pages, report.outcome), (0, Outcome::Stopped));
}

/// State that a memory audit keeps between pages must not affect another run, which begins at the
/// first key.
#[test]
fn memory_audit_serves_several_runs() {
    const SCHEMA: Schema = Schema::new(&[A.table(), PARENT.table(), B.table(), SUM.table()]);
    struct Vote(i64);
    impl Record for Vote {
        fn tally(&self, to: &mut Tally<'_>) {
            to.add(A, self.0, 1);
            to.add(B, self.0, 1);
        }
    }
    struct Link(i64);
    impl Record for Link {
        fn tally(&self, to: &mut Tally<'_>) {
            to.add(PARENT, (self.0, self.0 / 4), 1);
        }
    }
    let keys = 0..40_i64;
    let mut store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    for key in keys.clone() {
        batch.add(B, key, 1);
        batch.add(PARENT, (key, key / 4), 1);
    }
    store.apply(&mut batch).unwrap();
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(A, |_| keys.clone().map(Vote).collect::<Vec<_>>()).unwrap();
    audit.add(B, |_| keys.clone().map(Vote).collect::<Vec<_>>()).unwrap();
    audit.add(PARENT, |_| keys.clone().map(Link).collect::<Vec<_>>()).unwrap();
    let mut of = |mode, counter: Counter<i64>, page| {
        let mut run_of_one =
            Reconciler::scoped(mode, &SCHEMA, &[counter.id()], options().page(page)).unwrap();
        let report = run(&mut run_of_one, &mut audit, &mut World::default()).unwrap();
        let found = report.counters.iter().find(|found| found.counter == counter.id()).unwrap();
        // The rows of a rollup are the pairs of membership and base total that it sums. They are
        // counted when the rollup is compared.
        let below = if counter.id() == SUM.id() { 80 } else { 0 };
        assert_eq!(report.rows, below + if below > 0 && found.keys == 0 { 0 } else { 40 });
        (found.keys, found.drift(), found.corrected)
    };
    for page in [1, 3, 39, 40, 1_000] {
        for _ in 0..2 {
            assert_eq!(of(Mode::Verify, B, page), (40, 0, 0));
        }
        assert_eq!(of(Mode::Verify, A, page), (40, 40, 0));
        assert_eq!(of(Mode::Verify, SUM, page), (0, 0, 0));
    }
    // The rollup follows the repair of its base, although the audit compared the rollup before.
    assert_eq!(of(Mode::Repair, A, 7), (40, 40, 40));
    assert_eq!(of(Mode::Verify, SUM, 7), (10, 0, 0));
    assert_eq!((of(Mode::Verify, A, 7), of(Mode::Verify, B, 7)), ((40, 0, 0), (40, 0, 0)));
}

#[test]
fn options_out_of_bounds_are_refused_with_their_name() {
    for (bad, name) in [
        (options().page(0), "page: 0 is not within 1 to 100000"),
        (options().page(100_001), "page: 100001 is not within 1 to 100000"),
        (options().samples(100_001), "samples"),
        (options().duty_percent(0), "duty percent"),
        (options().duty_percent(101), "duty percent"),
        (options().max_wrong_percent(101), "max wrong percent"),
        (options().max_pages(0), "max pages: 0 is not 1 or more"),
        (options().rows_per_second(0), "rows per second"),
    ] {
        let error = Reconciler::new(Mode::Verify, &TWO, bad).unwrap_err();
        assert!(
            matches!(error, Error::InvalidUse { .. }) && error.to_string().contains(name),
            "{error}"
        );
        assert_eq!(error.recovery(), Recovery::Permanent);
    }
    for good in [
        options().page(1),
        options().page(100_000),
        options().samples(0),
        options().max_wrong_percent(0),
    ] {
        Reconciler::new(Mode::Verify, &TWO, good).unwrap();
    }
}

// Tokens.

/// The token of a run that was stopped after one page.
fn token_after_one_page(mode: Mode, options: Options) -> Token {
    run_fake(&mut Fake { identity: 5, ..Fake::clean(6).wrong(B, [3]) }, mode, options.max_pages(1))
        .0
        .unwrap()
        .token
        .unwrap()
}

#[track_caller]
fn assert_token_refused(result: Result<Reconciler>, reason: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Token { .. }) && error.to_string().contains(reason), "{error}");
    assert_eq!(error.recovery(), Recovery::Permanent);
}

#[test]
fn token_of_another_mode_or_of_other_counters_is_refused() {
    const NEWER: Schema = Schema::new(&[B.table(), A.version(2).table()]);
    const OTHER_KEY: Schema = Schema::new(&[Counter::<i32>::new("a.votes").table(), B.table()]);
    const ORDERED: Schema = Schema::new(&[A.table(), B.table()]);

    let (verify, repair) = (
        token_after_one_page(Mode::Verify, options()),
        token_after_one_page(Mode::Repair, options()),
    );
    assert_token_refused(
        Reconciler::resume(Mode::Repair, &TWO, &verify, options()),
        "it belongs to a verify, and this run is not one",
    );
    assert_token_refused(
        Reconciler::resume(Mode::Verify, &TWO, &repair, options()),
        "it belongs to a repair, and this run is not one",
    );
    for schema in [&ONE, &NEWER, &OTHER_KEY] {
        assert_token_refused(
            Reconciler::resume(Mode::Verify, schema, &verify, options()),
            "other counters, or other versions",
        );
    }
    Reconciler::resume(Mode::Verify, &ORDERED, &verify, options()).unwrap();
}

#[test]
fn a_token_of_another_database_is_refused_before_anything_is_read() {
    let token = token_after_one_page(Mode::Repair, options().page(2));
    let mut resumed = Reconciler::resume(Mode::Repair, &TWO, &token, options()).unwrap();
    let mut other = Fake { identity: 6, ..Fake::clean(6) };
    let error = run(&mut resumed, &mut other, &mut World::default()).unwrap_err();
    assert!(
        matches!(error, Error::Token { .. }) && error.to_string().contains("another database"),
        "{error}"
    );
    assert_eq!(other.log, ["identify"]);
    let mut resumed = Reconciler::resume(Mode::Repair, &TWO, &token, options()).unwrap();
    let mut same = Fake { identity: 5, ..Fake::clean(6) };
    assert!(run(&mut resumed, &mut same, &mut World::default()).unwrap().complete());
}

#[test]
fn a_corrupt_token_is_refused() {
    let text = token_after_one_page(Mode::Verify, options().page(2)).to_string();
    assert!(text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase()), "{text}");
    assert!(text.len() < 110, "{text}");
    for at in 0..text.len() {
        let mut changed = text.clone().into_bytes();
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        let error = String::from_utf8(changed).unwrap().parse::<Token>().unwrap_err();
        assert!(matches!(error, Error::Token { .. }), "{error}");
        assert!(text[..at].parse::<Token>().is_err());
    }
    for bad in [
        "",
        "resume",
        &text.to_uppercase(),
        &format!(" {text}"),
        &format!("{text}\n"),
        &text.repeat(2),
    ] {
        assert!(bad.parse::<Token>().is_err(), "{bad:?}");
    }
}

/// Page size, samples and force come from the token. Limits and pace come from the new options.
#[test]
fn token_keeps_page_samples_force_and_scope() {
    let mut fake = Fake::clean(300).wrong(A, 0..300).emptied(B);
    let settings = options().page(3).samples(2).force(true);
    let mut first =
        Reconciler::scoped(Mode::Repair, &TWO, &[B.id()], settings.max_pages(1)).unwrap();
    let token = run(&mut first, &mut fake, &mut World::default()).unwrap().token.unwrap();
    fake.log.clear();
    let beside = options().page(50).samples(9).force(false).max_pages(2).retries(1);
    let mut rest = Reconciler::resume(Mode::Repair, &TWO, &through_text(&token), beside).unwrap();
    let report = run(&mut rest, &mut fake, &mut World::default()).unwrap();
    let wanted = [
        "identify",
        "look b.votes",
        "measure b.votes 3 behind 2",
        "repair 3 of b.votes",
        "measure b.votes 3 behind 5",
    ];
    assert_eq!(fake.log[..5], wanted);
    assert_eq!((report.pages, report.outcome), (2, Outcome::Limit("pages")));
    assert_eq!(
        (report.counters.len(), report.counters[0].samples.len(), report.counters[0].orphan),
        (1, 2, 6)
    );

    // An adaptive page size stays adaptive.
    let token = run_fake(&mut Fake::clean(3_000), Mode::Verify, options().max_pages(1))
        .0
        .unwrap()
        .token
        .unwrap();
    let mut fake = Fake::clean(3_000);
    let mut rest = Reconciler::resume(Mode::Verify, &TWO, &token, options().page(5)).unwrap();
    run(&mut rest, &mut fake, &mut World::default()).unwrap();
    assert_eq!(fake.log[1], "measure a.votes 1024 behind 1023");
}

#[test]
fn token_used_twice_repairs_each_key_once() {
    let mut fake = Fake::clean(6).wrong(A, 0..6);
    let token =
        run_fake(&mut fake, Mode::Repair, options().page(2).max_pages(1)).0.unwrap().token.unwrap();
    for corrected in [4, 0] {
        let mut rest = Reconciler::resume(Mode::Repair, &TWO, &token, options()).unwrap();
        let report = run(&mut rest, &mut fake, &mut World::default()).unwrap();
        assert_eq!(report.counters[0].corrected, corrected);
    }
}

#[test]
fn resumed_run_whose_audit_keeps_nothing_reports_no_overlap() {
    let mut fake = Fake::clean(6);
    let limited = options().page(2).max_pages(1);
    let token = run_fake(&mut fake, Mode::Verify, limited).0.unwrap().token.unwrap();
    let mut rest = Reconciler::resume(Mode::Verify, &TWO, &token, options()).unwrap();
    let report = run(&mut rest, &mut fake, &mut World::default()).unwrap();
    assert_eq!((report.outcome, report.overlap), (Outcome::Complete, None));
}

#[test]
fn backfill_goes_on_from_what_was_kept_of_it_and_not_of_another_run() {
    let token = || token_after_one_page(Mode::Backfill, options().page(2));
    let (own, other) = (token(), token());
    for (kept, after) in [(&own, Some(KeyBuf::of::<i64>(1))), (&other, None)] {
        let mut rest = Reconciler::resume(Mode::Backfill, &TWO, &own, options()).unwrap();
        let mut fake = Fake { identity: 5, ..Fake::clean(6) };
        let first = loop {
            let answer = match rest.next(Duration::ZERO) {
                Step::Ask(Request::Compare(ask)) => break ask,
                Step::Ask(Request::Recall(_)) => Answer::Recalled(Some(kept.clone())),
                Step::Ask(request) => fake.answer(&request),
                Step::Throttle => Answer::Throttled(None),
                end => panic!("{end:?}"),
            };
            rest.handle(answer, Duration::ZERO).unwrap();
        };
        assert_eq!((first.counter, first.after), (A.id(), after));
    }
}

/// Its progress was stored by another run, or its totals are older than it.
#[test]
fn verify_whose_progress_is_lost_at_its_end_calls_nothing_clean() {
    for (kept, clean) in [(Kept::Here, true), (Kept::Nowhere, true), (Kept::Lost, false)] {
        let mut fake = Fake::clean(2);
        let mut verify = reconciler(Mode::Verify, options().max_pages(1));
        loop {
            let answer = match verify.next(Duration::ZERO) {
                Step::Ask(Request::Keep(_)) => Answer::Kept(kept),
                Step::Ask(request) => fake.answer(&request),
                Step::Throttle => Answer::Throttled(None),
                Step::Wait(..) | Step::End => break,
            };
            verify.handle(answer, Duration::ZERO).unwrap();
        }
        let report = verify.report();
        assert_eq!(report.outcome, Outcome::Limit("pages"));
        assert_eq!(
            (report.counters[0].complete, report.counters[0].clean),
            (true, clean),
            "{kept:?}"
        );
    }
}

// Reports.

/// Between the first page of a counter and the end of its run, drift may arise.
#[test]
fn counter_is_as_fresh_as_its_first_page_and_not_as_the_end_of_its_run() {
    let mut fake = Fake { measure_takes: millis(100_000), ..Fake::clean(4) };
    let report = run_fake(&mut fake, Mode::Verify, options().page(2)).0.unwrap();
    let mut freshness = Freshness::new(&TWO);
    freshness.observe(&report, 1_000);
    let age = |counter: Counter<i64>| freshness.age(&counter.id(), 1_000);
    assert_eq!([A, B].map(age), [Some(millis(400_000)), Some(millis(200_000))]);
}

#[test]
fn report_is_printed_as_a_line_a_table_and_json() {
    let mut fake = Fake::clean(4).wrong(A, [1]).orphans(A, 2);
    fake.side(&A.id()).totals.remove(&2);
    fake.side(&B.id()).totals.insert(3, 0);
    let report = run_fake(&mut fake, Mode::Verify, options().samples(2)).0.unwrap();
    assert_eq!(
        report.to_string(),
        "verify: 2 counters, 10 keys: 1 wrong, 2 missing, 2 orphan; 0 corrected; 2 pages, 16 rows; complete"
    );
    let wanted = "\
counter      keys   wrong missing  orphan corrected
a.votes         6       1       1       2         0
b.votes         4       0       1       0         0
  a.votes of 1: stored 1, true 2
  a.votes of 2: stored 0, true 2
  a.votes: 2 more
  b.votes of 3: stored 0, true 2
verify: 2 counters, 10 keys: 1 wrong, 2 missing, 2 orphan; 0 corrected; 2 pages, 16 rows; complete";
    assert_eq!(report.table().to_string(), wanted);
    let wanted = json!({
        "counters": [
            {"name": "a.votes", "keys": 6, "wrong": 1, "missing": 1, "orphan": 2, "corrected": 0, "samples": [
                {"key": 1, "stored": 1, "true": 2}, {"key": 2, "stored": 0, "true": 2},
            ]},
            {"name": "b.votes", "keys": 4, "wrong": 0, "missing": 1, "orphan": 0, "corrected": 0, "samples": [
                {"key": 3, "stored": 0, "true": 2},
            ]},
        ],
        "pages": 2, "complete": true, "resume": null,
    });
    assert_eq!(serde_json::to_value(&report).unwrap(), wanted);
    // The same in a format that writes the number of fields first.
    let packed = rmp_serde::to_vec_named(&report).unwrap();
    assert_eq!(rmp_serde::from_slice::<serde_json::Value>(&packed).unwrap(), wanted);
    // The fields have this order, for people who read the JSON.
    assert!(
        serde_json::to_string(&report)
            .unwrap()
            .starts_with(r#"{"counters":[{"name":"a.votes","keys":6,"wrong":1,"#)
    );

    let report = run_fake(&mut fake, Mode::Repair, options().page(1).max_pages(2)).0.unwrap();
    assert_eq!(
        report.to_string(),
        "repair: 2 counters, 2 keys: 1 wrong, 0 missing, 0 orphan; 1 corrected; 2 pages, 4 rows; stopped at the limit of pages"
    );
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&value["complete"], &value["pages"], &value["counters"][1]["keys"]),
        (&json!(false), &json!(2), &json!(0))
    );
    assert_eq!(value["resume"].as_str().unwrap().parse::<Token>().unwrap(), report.token.unwrap());

    let mut fake = Fake::clean(1);
    let mut one = Reconciler::scoped(Mode::Verify, &TWO, &[A.id()], options()).unwrap();
    let report = run(&mut one, &mut fake, &mut World::default()).unwrap();
    assert_eq!(
        report.to_string(),
        "verify: 1 counter, 1 key: 0 wrong, 0 missing, 0 orphan; 0 corrected; 1 page, 2 rows; complete"
    );
}

#[test]
fn samples_are_the_first_in_key_order_over_all_pages() {
    for (page, samples) in [(1, 20), (7, 20), (1_000, 20), (3, 0), (1_000, 0), (4, 5)] {
        let mut fake = Fake::clean(30).wrong(A, 5..30);
        let report =
            run_fake(&mut fake, Mode::Verify, options().page(page).samples(samples)).0.unwrap();
        let keys: Vec<i64> =
            report.counters[0].samples.iter().map(|sample| number(&sample.key)).collect();
        assert_eq!(keys, (5..).take(samples).collect::<Vec<_>>());
        assert_eq!(report.counters[0].wrong, 25);
    }
    let report = run_fake(&mut Fake::clean(30).wrong(A, 0..30), Mode::Verify, options()).0.unwrap();
    assert_eq!(report.counters[0].samples.len(), 20, "the default number of samples");
}

#[test]
fn keys_are_json_numbers_texts_lists_or_null() {
    const UNIT: Counter<()> = Counter::new("a.unit");
    const TEXT: Counter<String> = Counter::new("b.text");
    const PAIR: Counter<(i64, String)> = Counter::new("c.pair");
    const ID: Counter<Uuid> = Counter::new("d.id");
    const BYTES: Counter<[u8; 16]> = Counter::new("e.bytes");
    const WIDE: Counter<u64> = Counter::new("f.wide");
    const WIDER: Counter<i128> = Counter::new("g.wider");
    const NARROW: Counter<i8> = Counter::new("h.narrow");
    const SINGLE: Counter<(String,)> = Counter::new("i.single");
    const SCHEMA: Schema = Schema::new(&[
        UNIT.table(),
        TEXT.table(),
        PAIR.table(),
        ID.table(),
        BYTES.table(),
        WIDE.table(),
        WIDER.table(),
        NARROW.table(),
        SINGLE.table(),
    ]);
    struct Any;
    impl Record for Any {
        fn tally(&self, _: &mut Tally<'_>) {}
    }
    let mut store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    batch.add(UNIT, (), 1);
    batch.add(TEXT, "a\tb\\\u{e9}\0", 1);
    batch.add(PAIR, (-7, "x\n"), 1);
    batch.add(ID, Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef), 1);
    batch.add(BYTES, [255; 16], 1);
    batch.add(WIDE, u64::MAX, 1);
    batch.add(WIDER, i128::MIN, 1);
    batch.add(NARROW, -3_i8, i64::MIN);
    batch.add(SINGLE, ("s",), 1);
    store.apply(&mut batch).unwrap();
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(UNIT, |_| Vec::<Any>::new()).unwrap();
    audit.add(TEXT, |_| Vec::<Any>::new()).unwrap();
    audit.add(PAIR, |_| Vec::<Any>::new()).unwrap();
    audit.add(ID, |_| Vec::<Any>::new()).unwrap();
    audit.add(BYTES, |_| Vec::<Any>::new()).unwrap();
    audit.add(WIDE, |_| Vec::<Any>::new()).unwrap();
    audit.add(WIDER, |_| Vec::<Any>::new()).unwrap();
    audit.add(NARROW, |_| Vec::<Any>::new()).unwrap();
    audit.add(SINGLE, |_| Vec::<Any>::new()).unwrap();
    let report = run_whole(Mode::Verify, &SCHEMA, options(), &mut audit).unwrap();
    let value = serde_json::to_value(&report).unwrap();
    let keys: Vec<_> = value["counters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["samples"][0]["key"].clone())
        .collect();
    assert_eq!(
        json!(keys),
        json!([
            null,
            "a\tb\\\u{e9}\0",
            [-7, "x\n"],
            "01234567-89ab-cdef-0123-456789abcdef",
            "ffffffffffffffffffffffffffffffff",
            u64::MAX,
            "-170141183460469231731687303715884105728",
            -3,
            "s",
        ])
    );
    assert_eq!(value["counters"][7]["samples"][0]["stored"], json!(i64::MIN));
    let table = report.table().to_string();
    for line in [
        "a.unit of (): stored 1, true 0",
        "b.text of a\\tb\\\\\u{e9}",
        "c.pair of -7,x\\n: stored 1",
    ] {
        assert!(table.contains(line), "{table}");
    }
}
