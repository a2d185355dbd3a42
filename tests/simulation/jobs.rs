//! Jobs: live audits that are driven step by step, read rows while others act, and can be dropped
//! and resumed anywhere; and the checks of what they report.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use keepcount::reconcile::audit::{Kept, PageDiff, PageRequest, Ready, RepairRequest, Repaired};
use keepcount::reconcile::step::{Answer, Request, Step};
use keepcount::reconcile::{
    Audit, GracePeriod, MemoryAudit, Mode, Options, Reconciler, Report, Runtime, Token,
};
use keepcount::{Cause, Counter, Error, Key, KeyBuf};

use super::domain::{self, Name, Row, RowId, SCHEMA, Tables, id, of_counter, share, show};
use super::variant::Variant;
use super::world::World;

/// The state of a job.
pub enum Slot<'a> {
    Idle,
    Running(Box<Job<'a>>),
    /// Stopped. The next job of this slot resumes from here.
    Stopped(Mode, Box<Token>, Pass),
}

pub struct Job<'a> {
    audit: MemoryAudit<'a>,
    run: Reconciler,
    mode: Mode,
    wake: u64,
    pass: Pass,
}

/// The comparison of one counter from its first key to its last, by one job or by several that
/// resume each other.
#[derive(Default)]
pub struct Pass {
    counter: usize,
    /// The moment when it began.
    since: u64,
    /// Keys that were reported with drift, or as unsettled.
    reported: BTreeSet<Name>,
    unsettled: bool,
    /// The life of the process in which it began.
    life: u64,
}

const MODES: [Mode; 3] = [Mode::Verify, Mode::Repair, Mode::Backfill];
const READ_FAILED: &str = "the connection is gone";

impl Slot<'_> {
    /// The process died. The job's token is on the disk.
    pub fn die(self) -> Self {
        match self {
            Self::Running(job) => job
                .run
                .token()
                .map_or(Self::Idle, |token| Self::Stopped(job.mode, token.into(), job.pass)),
            stopped => stopped,
        }
    }

    pub fn is_due(&self, now: u64) -> bool {
        if let Self::Running(job) = self { job.wake <= now } else { true }
    }
}

impl<'a> World<'a> {
    /// One step of a job.
    pub fn audit(self: &Rc<Self>, at: usize) {
        let too_early = (self.recovering.get() && !self.is(Variant::RepairBeforeCaughtUp))
            || (!self.rolled_out.get() && !self.is(Variant::BackfillBeforeHooks));
        if too_early {
            return;
        }
        let Some(slot) = self.jobs.borrow_mut()[at].take() else { return };
        let next = match slot {
            Slot::Running(job) => self.advance(at, job),
            // Starts only some of the time, so that other steps come between.
            Slot::Idle | Slot::Stopped(..) if self.one_in(3) => self.start(at, slot),
            slot => slot,
        };
        self.jobs.borrow_mut()[at] = Some(next);
    }

    fn start(self: &Rc<Self>, at: usize, slot: Slot<'a>) -> Slot<'a> {
        let page = 1 + self.below(9) as usize;
        let mut options = Options::default().page(page).samples(1000).retries(2);
        if self.one_in(3) {
            options = options.max_pages(1 + self.below(6));
        }
        let run = if let Slot::Stopped(mode, token, pass) = slot {
            self.count("jobs resumed");
            Reconciler::resume(mode, &SCHEMA, &token, options).map(|run| (mode, run, pass))
        } else {
            let mode =
                if self.rolled_out.get() { MODES[self.below(3) as usize] } else { Mode::Backfill };
            self.rolled_out.set(true); // starting a backfill states this
            let mut scope = SCHEMA.by_name();
            if self.one_in(2) {
                let counters = SCHEMA.counters().len() as u64;
                scope = (0..3).map(|_| id(self.below(counters) as usize)).collect();
            }
            Reconciler::scoped(mode, &SCHEMA, &scope, options)
                .map(|run| (mode, run, self.first_pass()))
        };
        let (mode, run, pass) = run.unwrap();
        self.note(&format!("job {at}: {mode}, pages of {page}"));
        Slot::Running(Box::new(Job::new(self, mode, run, pass)))
    }

    fn advance(self: &Rc<Self>, at: usize, mut job: Box<Job<'a>>) -> Slot<'a> {
        if self.one_in(60) {
            self.count("jobs stopped");
            self.note(&format!("job {at} is stopped"));
            return job
                .run
                .token()
                .map_or(Slot::Idle, |token| Slot::Stopped(job.mode, token.into(), job.pass));
        }
        match job.step(self, at) {
            Ok(None) => Slot::Running(job),
            Ok(Some(report)) => {
                self.count(if report.complete() { "jobs complete" } else { "jobs at a limit" });
                self.note(&format!("job {at}: {report}"));
                match report.token {
                    Some(token) if self.one_in(2) => {
                        Slot::Stopped(job.mode, token.into(), job.pass)
                    }
                    None if self.one_in(2) => {
                        // Reuses the audit for another run.
                        job.run =
                            Reconciler::new(job.mode, &SCHEMA, Options::default().page(4)).unwrap();
                        Slot::Running(job)
                    }
                    _ => Slot::Idle,
                }
            }
            Err(error) => {
                self.note(&format!("job {at} fails: {error}"));
                let known = match &error {
                    Error::Busy { .. } => "jobs too busy",
                    Error::Database { .. } => "jobs whose reads failed",
                    Error::InvalidUse { .. } if self.is(Variant::UnguardedWriter) => "jobs refused",
                    Error::Token { .. } if job.pass.life != self.life.get() => {
                        self.count("tokens of another life");
                        return Slot::Idle;
                    }
                    _ => return Slot::Idle.fail_with(self, &error),
                };
                self.count(known);
                // A run that is driven again continues where the error occurred.
                if self.one_in(2) { Slot::Running(job) } else { Slot::Idle }
            }
        }
    }

    /// Runs to the end while nobody else acts.
    pub fn run_alone(self: &Rc<Self>, mode: Mode) -> Option<Report> {
        let run = Reconciler::new(mode, &SCHEMA, Options::default().page(5).samples(1000)).unwrap();
        let mut job = Job::new(self, mode, run, self.first_pass());
        for _ in 0..2000 {
            match job.step(self, usize::MAX) {
                Ok(Some(report)) => return Some(report),
                Ok(None) => self.pass(job.wake.saturating_sub(self.now())),
                Err(Error::Database { .. }) => {}
                Err(error) => {
                    self.fail(&format!("the last {mode} fails: {error}"));
                    return None;
                }
            }
            if self.has_failed() {
                return None;
            }
        }
        self.fail(&format!("the last {mode} does not end"));
        None
    }

    fn first_pass(&self) -> Pass {
        Pass { life: self.life.get(), ..Pass::default() }
    }

    fn now_as_time(&self) -> Duration {
        Duration::from_micros(self.now())
    }
}

impl Slot<'_> {
    fn fail_with(self, world: &World<'_>, error: &Error) -> Self {
        world.fail(&format!("a job fails: {error}"));
        self
    }
}

impl<'a> Job<'a> {
    fn new(world: &Rc<World<'a>>, mode: Mode, run: Reconciler, pass: Pass) -> Self {
        let grace_period = GracePeriod::after(Duration::from_micros(world.setup.audit_grace()))
            .barrier_time(Duration::from_micros(world.setup.barrier_time))
            .tries(world.setup.tries);
        let mut audit = MemoryAudit::live(world.store(), grace_period, Waiting(Rc::clone(world)));
        let old = Rc::clone(&world.facts.borrow().rows);
        if world.setup.scans {
            let (world, old) = (Rc::clone(world), Rc::clone(&old));
            audit.rows_fallible(&domain::DRIVEN, move || scan(&world, &old)).unwrap();
        } else {
            let mut reads = Reads { world, old: &old, audit: &mut audit };
            reads.add(domain::SETLIST_VOTES);
            reads.add(domain::SETLIST_DAYS);
            reads.add(domain::SETLIST_SHOW);
            reads.add(domain::SHOW_ARTIST);
            reads.add(domain::USER_SPENT);
            reads.add(domain::ALL_VOTES);
            reads.add(domain::SHOW_SETLISTS);
        }
        world.count("jobs started");
        Self { audit, run, mode, wake: 0, pass }
    }

    /// One step of the run, with its checks. Returns the report when the run ends.
    fn step(&mut self, world: &Rc<World<'a>>, at: usize) -> Result<Option<Report>, Error> {
        let mut step = self.run.next(world.now_as_time());
        if step == Step::Throttle {
            self.run.handle(Answer::Throttled(None), world.now_as_time())?;
            step = self.run.next(world.now_as_time());
        }
        let request = match step {
            Step::Ask(request) => request,
            Step::Wait(time, _) => {
                self.wake = world.now() + time.as_micros() as u64;
                world.check();
                return Ok(None);
            }
            Step::Throttle | Step::End => return Ok(Some(self.run.report())),
        };
        let answer = match &request {
            Request::Compare(ask) => {
                self.compare(world, at, ask).map_or_else(Answer::Failed, Answer::Compared)
            }
            Request::Repair(repair) => {
                self.repair(world, at, repair).map_or_else(Answer::Failed, Answer::Repaired)
            }
            Request::Ready(ready) => {
                self.ready(world, at, ready).map_or_else(Answer::Failed, Answer::Readied)
            }
            Request::Probe(probe) => {
                world.note(&format!("job {at} looks at {}", probe.counter.name()));
                self.audit.answer(&request)
            }
            Request::Identify | Request::Recall(_) | Request::Keep(_) => {
                self.audit.answer(&request)
            }
        };
        world.check();
        self.run.handle(answer, world.now_as_time())?;
        // A token from before a crash must be refused, because the repairs made then are lost.
        if request == Request::Identify && self.pass.life != world.life.get() {
            world.fail("a token of lost totals is accepted");
        }
        Ok(None)
    }

    fn compare(
        &mut self,
        world: &Rc<World<'a>>,
        at: usize,
        ask: &PageRequest,
    ) -> keepcount::Result<PageDiff> {
        let counter = SCHEMA.position(&ask.counter)?;
        world.note(&format!("job {at} measures {} behind {:?}", ask.counter.name(), ask.after));
        let moment = world.facts.borrow().moment;
        if ask.after.is_none() {
            self.pass = Pass { counter, since: moment, life: self.pass.life, ..Pass::default() };
        }
        assert_eq!(self.pass.counter, counter, "a resumed run continues with its counter");
        let began = world.now();
        let diff = self.audit.compare(ask)?;
        world.count("pages measured");
        world.check();
        if world.setup.variant.is_none() {
            // A variant's reports are not checked: it must fail by a wrong total.
            self.check_report(world, &diff, began);
        }
        Ok(diff)
    }

    /// Checks a report: each reported drift was there at some moment of the pass, and each key that
    /// drifted all the while is reported.
    fn check_report(&mut self, world: &World<'a>, diff: &PageDiff, began: u64) {
        let facts = world.facts.borrow();
        let Pass { counter, since, ref mut reported, ref mut unsettled, .. } = self.pass;
        for drift in &diff.drifts {
            let name = (counter, drift.key.clone());
            let found = drift.stored - drift.expected;
            world.note(&format!("found drift {found} of {}", show(&name)));
            if !facts.since(&name, since).any(|was| was == found) {
                let was: Vec<i64> = facts.since(&name, since).collect();
                world.fail(&format!(
                    "{} is reported with drift {found}, and had drift {was:?}",
                    show(&name)
                ));
            }
            if world.is_fresh(&facts, &name)
                && facts.dropped.get(&name).is_some_and(|at| *at < began)
            {
                world.fail(&format!(
                    "{} is compared before its grace period has passed",
                    show(&name)
                ));
            }
            world.count("drifts found");
            reported.insert(name);
        }
        for key in &diff.unsettled {
            world.note(&format!("unsettled {}", show(&(counter, key.clone()))));
            world.count("keys unsettled");
            reported.insert((counter, key.clone()));
            *unsettled = true;
        }
        if diff.next.is_none() {
            let missed = of_counter(&facts.expected, counter).find(|(name, _)| {
                !reported.contains(*name) && facts.since(name, since).all(|was| was != 0)
            });
            if let Some((name, drift)) = missed {
                world.fail(&format!(
                    "{} had drift all the while, now {drift}, and is not reported",
                    show(name)
                ));
            }
            world.count("passes complete");
        }
    }

    fn repair(
        &mut self,
        world: &Rc<World<'a>>,
        at: usize,
        repair: &RepairRequest,
    ) -> keepcount::Result<Repaired> {
        let counter = SCHEMA.position(&repair.counter)?;
        let names: Vec<Name> = repair.keys.iter().map(|key| (counter, key.clone())).collect();
        let shown: Vec<String> = names.iter().map(show).collect();
        world.note(&format!("job {at} repairs {}", shown.join(" ")));
        let since = world.facts.borrow().moment;
        world.repairing.borrow_mut().push(names.clone());
        let repaired = self.audit.repair(repair);
        world.check();
        // Repairs nest like calls, so this one is the last.
        world.repairing.borrow_mut().pop();
        let repaired = repaired?;
        let facts = world.facts.borrow();
        for name in names.iter().filter(|name| !repaired.unsettled.contains(&name.1)) {
            if facts.since(name, since).all(|was| was != 0) {
                world.fail(&format!("{} is reported as repaired, and is not", show(name)));
            }
        }
        repaired.unsettled.iter().for_each(|_| world.count("repairs unsettled"));
        self.pass.unsettled |= !repaired.unsettled.is_empty();
        drop(facts);
        Ok(repaired)
    }

    /// Makes a counter ready. Fails unless each key was right at some moment since its comparison
    /// began.
    fn ready(
        &mut self,
        world: &Rc<World<'a>>,
        at: usize,
        ready: &Ready,
    ) -> keepcount::Result<Kept> {
        let counter = ready.counter;
        let facts = world.facts.borrow();
        let Pass { counter: position, since, unsettled, .. } = self.pass;
        if position != SCHEMA.position(&counter)? || unsettled {
            world.fail(&format!("{} becomes ready with unsettled keys", counter.name()));
        }
        let wrong = of_counter(&facts.expected, position)
            .find(|(name, _)| facts.since(name, since).all(|was| was != 0));
        if let Some((name, drift)) = wrong {
            world.fail(&format!(
                "{} becomes ready, and {} has drift {drift}",
                counter.name(),
                show(name)
            ));
        }
        drop(facts);
        let kept = self.audit.ready(ready)?;
        world.note(&format!("job {at}: {} is ready", counter.name()));
        world.count("counters ready");
        Ok(kept)
    }
}

/// The runtime of an audit: while it waits, others act.
struct Waiting<'a>(Rc<World<'a>>);

impl Runtime for Waiting<'_> {
    fn now(&mut self) -> Duration {
        self.0.now_as_time()
    }

    fn wait(&mut self, time: Duration, reason: &str) {
        let Self(world) = self;
        world.count(if reason == "a barrier" {
            "waits for a barrier"
        } else {
            "tries that were not quiet"
        });
        world.check();
        let until = world.now() + time.as_micros() as u64;
        for _ in 0..world.below(4) {
            world.step();
        }
        world.pass(until.saturating_sub(world.now()));
    }
}

/// Adds the sources of counters to an audit.
struct Reads<'w, 'a> {
    world: &'w Rc<World<'a>>,
    old: &'w Rc<Tables>,
    audit: &'w mut MemoryAudit<'a>,
}

impl<'a> Reads<'_, 'a> {
    fn add<K: Key + keepcount::AsKey<K> + 'a>(&mut self, counter: Counter<K>) {
        let at = SCHEMA.position(&counter.id()).unwrap();
        let (world, old) = (Rc::clone(self.world), Rc::clone(self.old));
        let rows =
            move |from: Bound<K>| read(&world, &old, at, from.map(|key| KeyBuf::of::<K>(key)));
        self.audit.add_fallible::<K, Row, _>(counter, rows).unwrap();
    }
}

type Place = (Option<KeyBuf>, RowId);

/// Rows in key order, read one by one, while others act.
struct Reading<'a> {
    world: Rc<World<'a>>,
    counter: usize,
    /// None if each row is read as it is when its turn comes.
    at_once: Option<Rc<Tables>>,
    rest: std::vec::IntoIter<(Place, Row)>,
    after: Option<Place>,
    failed: bool,
}

/// The rows that a read sees which begins now.
fn rows(world: &Rc<World<'_>>, old: &Rc<Tables>) -> Rc<Tables> {
    world.check();
    for _ in 0..world.below(3) {
        world.step();
    }
    let facts = world.facts.borrow();
    match world.setup.variant {
        Some(Variant::OldRead) => Rc::clone(old),
        Some(Variant::StaleReplica) => Rc::clone(&facts.replica),
        _ => Rc::clone(&facts.rows),
    }
}

/// All rows in descending order of ids, read one by one, while others act.
struct Scanning<'a> {
    world: Rc<World<'a>>,
    /// None if each row is read as it is when its turn comes.
    at_once: Option<Rc<Tables>>,
    before: Option<RowId>,
    failed: bool,
}

fn scan<'a>(world: &Rc<World<'a>>, old: &Rc<Tables>) -> Scanning<'a> {
    let rows = rows(world, old);
    world.count("scans");
    let cursor = world.setup.cursors && world.setup.variant.is_none();
    Scanning {
        world: Rc::clone(world),
        at_once: (!cursor).then_some(rows),
        before: None,
        failed: false,
    }
}

impl Iterator for Scanning<'_> {
    type Item = Result<Row, Cause>;

    fn next(&mut self) -> Option<Self::Item> {
        self.failed |= step_others(&self.world);
        if self.failed {
            return Some(Err(READ_FAILED.into()));
        }
        let rows =
            self.at_once.clone().unwrap_or_else(|| Rc::clone(&self.world.facts.borrow().rows));
        let before = self.before.map_or(Bound::Unbounded, Bound::Excluded);
        let (id, row) = rows.range((Bound::Unbounded, before)).next_back()?;
        self.before = Some(*id);
        Some(Ok(*row))
    }
}

/// May let others act between two rows. Returns whether the read fails.
fn step_others(world: &Rc<World<'_>>) -> bool {
    if world.one_in(8) {
        world.step();
    }
    let breaks = world.setup.read_errors && !world.draining.get() && world.one_in(200);
    breaks || world.dying.get() || world.has_failed()
}

fn read<'a>(
    world: &Rc<World<'a>>,
    old: &Rc<Tables>,
    counter: usize,
    from: Bound<KeyBuf>,
) -> Reading<'a> {
    let rows = rows(world, old);
    if let Bound::Included(_) = from {
        world.count("keys read alone");
    }
    // A source may begin before the key that was asked for.
    let from = if world.one_in(4) { Bound::Unbounded } else { from };
    let cursor = world.setup.cursors && world.setup.variant.is_none();
    let rest = if cursor { Vec::new() } else { ordered(&rows, counter, &from) };
    let after = match from {
        Bound::Included(key) => Some((Some(key), RowId::Show(i64::MIN))),
        Bound::Excluded(key) => Some((Some(key), RowId::Vote(i64::MAX))),
        Bound::Unbounded => None,
    };
    let reading = Reading {
        world: Rc::clone(world),
        counter,
        at_once: (!cursor).then_some(rows),
        rest: rest.into_iter(),
        after,
        failed: false,
    };
    for _ in 0..world.below(2) {
        world.step();
    }
    reading
}

/// The rows from a key on, by the key that they count for. Rows that do not count come first.
fn ordered(rows: &Tables, counter: usize, from: &Bound<KeyBuf>) -> Vec<(Place, Row)> {
    let placed =
        rows.iter().map(|(id, row)| ((share(row, counter).map(|(key, _)| key), *id), *row));
    let wanted = placed.filter(|((key, _), _)| match (key, from) {
        (Some(key), Bound::Included(from)) => key >= from,
        (Some(key), Bound::Excluded(from)) => key > from,
        _ => true,
    });
    let mut wanted: Vec<(Place, Row)> = wanted.collect();
    wanted.sort_by(|(one, _), (two, _)| one.cmp(two));
    wanted
}

impl Iterator for Reading<'_> {
    type Item = Result<Row, Cause>;

    fn next(&mut self) -> Option<Self::Item> {
        let world = Rc::clone(&self.world);
        self.failed |= step_others(&world);
        if self.failed {
            return Some(Err(READ_FAILED.into()));
        }
        if self.at_once.is_some() {
            return self.rest.next().map(|(_, row)| Ok(row));
        }
        let facts = world.facts.borrow();
        let next = ordered(&facts.rows, self.counter, &Bound::Unbounded);
        let next = next
            .into_iter()
            .find(|(place, _)| self.after.as_ref().is_none_or(|after| place > after));
        let (place, row) = next?;
        self.after = Some(place);
        Some(Ok(row))
    }
}
