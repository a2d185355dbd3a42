//! The reconciler's decisions: a state machine without I/O, clock or thread.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::audit::{
    Drift, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use super::options::{Mode, Options};
use super::page_length::Pages;
use super::progress::{Pace, Progress, estimate};
use super::report::{CounterReport, Outcome, Overlap, Report};
use super::scope::{Scope, ScopedCounter};
use super::step::{Answer, Request, Step};
use super::token::{Part, Token};
use crate::counter::CounterId;
use crate::error::{Error, Recovery, Result};
use crate::key::KeyBuf;
use crate::observe;
use crate::schema::Schema;

/// A run of verification, repair or backfill: it decides what to do next, and receives the results.
///
/// [`run`](super::run) drives it; [`Run`](super::Run) makes one and runs it, which is the usual
/// case. A driver of your own calls [`next`](Self::next) until it returns [`Step::End`], does each
/// step, and passes the answer to [`handle`](Self::handle). `now` comes from any clock that never
/// goes back.
///
/// # Examples
///
/// A driver of your own, without waits and throttles:
///
/// ```
/// use keepcount::reconcile::{Audit, Mode, Options, Reconciler, Report};
/// use keepcount::reconcile::step::{Answer, Step};
/// # use keepcount::{Counter, Schema};
/// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// fn verified(audit: &mut impl Audit) -> keepcount::Result<Report> {
///     let started = std::time::Instant::now();
///     let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default().retries(0))?;
///     loop {
///         let answer = match verify.next(started.elapsed()) {
///             Step::Ask(request) => audit.answer(&request),
///             Step::Throttle => Answer::Throttled(None),
///             Step::Wait(..) => continue,
///             Step::End => return Ok(verify.report()),
///         };
///         verify.handle(answer, started.elapsed())?;
///     }
/// }
/// ```
///
/// # The order of work
///
/// A repair first probes every remaining counter that rows feed. Then it compares and repairs
/// counter by counter, ordered by level and then by name, page by page in key order. A backfill
/// works like a repair, and makes a counter ready at its end, before it continues with the next.
/// Limits, stop requests and waits take effect between pages.
///
/// A run that resumes another first reads what was kept of it in the totals' database, and trusts
/// that over the token: the token may be newer than the totals if a backup was restored. So does a
/// run that is driven again after an error: its connection may now lead to a standby that took
/// over.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each says one thing about the run, apart from the others
pub struct Reconciler {
    mode: Mode,
    options: Options,
    schema: u64,
    /// The identity of the totals according to the resumed token; later according to the audit.
    identity: Option<u64>,
    /// The same in all legs of the run, as long as each continues the one before.
    run: u64,
    /// What is kept of the run in the totals' database, as far as this run knows.
    kept: Option<Token>,
    scope: Scope,
    /// Set if not all keys of a counter are compared.
    part: Option<Part>,
    /// In a run over single keys: those that are left, the current one last.
    only: Vec<KeyBuf>,
    state: State,
    /// The state that an error interrupted, kept while the run asks again which totals these are
    /// and how far it has come in them.
    interrupted: Option<State>,
    wait: Option<(Duration, String)>,
    stop: bool,
    /// Whether the throttles were asked about the next page, and none is closed.
    open: bool,
    page: Pages,
    /// When the current step was handed out, and the work done on the current page so far.
    issued: Duration,
    worked: Duration,
    started: Option<Duration>,
    /// The last time that the clock gave.
    seen: Duration,
    failures: u32,
    throttled_since: Option<Duration>,
    pages: u64,
    rows: u64,
    pace: Pace,
    outcome: Outcome,
    overlap: Option<Overlap>,
    /// Whether its end was reported to metrics and tracing.
    told: bool,
}

#[derive(Debug)]
enum State {
    Identify,
    /// Reads what is kept of the run.
    Recall,
    /// Probes the counters from this one on, before the first page.
    Probe(usize),
    Compare,
    /// Probes again before the next repair: so many orphans were found since the last probe that
    /// the source may have been emptied meanwhile.
    ProbeAgain(Page),
    Repair(Page),
    /// A backfill has compared the last key of the current counter. The position moves on once the
    /// counter is ready, so that a run that ends here comes back to it.
    Ready,
    /// Stores how far the run has come, and then does this.
    Keep(Then),
}

#[derive(Debug)]
enum Then {
    /// Compares the next page, after this wait.
    GoOn(Option<(Duration, String)>),
    End(Outcome),
    /// Ends the run with this error, which came in this state.
    Fail(Box<Failure>),
}

#[derive(Debug)]
struct Failure {
    error: Error,
    outcome: Outcome,
    /// The state that the run continues from if it is driven again.
    state: State,
}

/// What is left to do of a compared page.
#[derive(Debug)]
struct Page {
    drifts: VecDeque<Drift>,
    next: Option<KeyBuf>,
}

/// A repair refuses an empty source if at least this many totals are not 0.
const EMPTY_SOURCE_TOTALS: u64 = 100;
/// A repair locks at most this many keys, and starts no other key after this many rows: so writers
/// wait for no more than that.
const REPAIR_KEYS: usize = 256;
const REPAIR_ROWS: u64 = 100_000;
/// The page of a run over single keys: the key, and few that may come between it and the one
/// before.
const KEYS_OF_ONE: usize = 16;
/// Keys to compare before a share of wrong ones means anything.
const SHARE_KEYS: u64 = 100;
const MIN_RETRY_WAIT: Duration = Duration::from_millis(50);
const MAX_RETRY_WAIT: Duration = Duration::from_secs(1);
const THROTTLE_WAIT: Duration = Duration::from_millis(250);

impl Reconciler {
    /// Creates a run over every counter of the schema.
    ///
    /// A counter that the audit has no source for is not checked, and the report says so
    /// ([`CounterReport::unchecked`]); if none has a source, that is an error.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if an option is out of its bounds.
    pub fn new(mode: Mode, schema: &Schema, options: Options) -> Result<Self> {
        Self::over(mode, schema, &schema.by_name(), &[], options)
    }

    /// Creates a run over some counters; one that you name twice is compared once. Each of them
    /// must have a source, or be a rollup.
    ///
    /// A rollup is compared with the stored totals of its base, so a run over a rollup includes its
    /// base counters and their memberships too.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and [`Error::UnknownCounter`] or [`Error::DefinitionConflict`] for a
    /// counter that is not in the schema.
    pub fn scoped(
        mode: Mode,
        schema: &Schema,
        counters: &[CounterId],
        options: Options,
    ) -> Result<Self> {
        for counter in counters {
            schema.position(counter)?;
        }
        Self::over(mode, schema, &schema.with_bases(counters)?, counters, options)
    }

    /// Creates a run over `wanted`, of which the caller names some.
    fn over(
        mode: Mode,
        schema: &Schema,
        wanted: &[CounterId],
        named: &[CounterId],
        options: Options,
    ) -> Result<Self> {
        options.check()?;
        let scope = Scope::new(schema, wanted, named)?;
        Ok(Self {
            mode,
            options,
            schema: schema.fingerprint(),
            identity: None,
            run: new_run(),
            kept: None,
            outcome: if scope.is_done() { Outcome::Complete } else { Outcome::Running },
            scope,
            part: None,
            only: Vec::new(),
            state: State::Identify,
            interrupted: None,
            wait: None,
            stop: false,
            open: false,
            page: Pages::new(options.page.unwrap_or(1024)),
            issued: Duration::ZERO,
            worked: Duration::ZERO,
            started: None,
            seen: Duration::ZERO,
            failures: 0,
            throttled_since: None,
            pages: 0,
            rows: 0,
            pace: Pace::default(),
            overlap: None,
            told: false,
        })
    }

    /// Creates a run over the keys of one counter after `after` up to and including `until`; `None`
    /// means from the first key, or to the last.
    ///
    /// Several processes, each with one part, finish a large counter in less time. A report of a
    /// part never calls the counter [complete](CounterReport::complete).
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::Key`] for a bound that is not a key of the counter;
    /// [`Error::InvalidUse`] for a backfill, which must be one run from the first key to the last,
    /// and for a rollup, whose run includes what it sums.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Mode, Options, Reconciler};
    /// use keepcount::{Counter, KeyBuf, Schema};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// let middle = KeyBuf::of::<i64>(50_000);
    /// let options = Options::default();
    /// let one = Reconciler::part(Mode::Repair, &SCHEMA, SHOW_VOTES.id(), None, Some(&middle), options)?;
    /// let other = Reconciler::part(Mode::Repair, &SCHEMA, SHOW_VOTES.id(), Some(&middle), None, options)?;
    /// # let _ = (one, other);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn part(
        mode: Mode,
        schema: &Schema,
        counter: CounterId,
        after: Option<&KeyBuf>,
        until: Option<&KeyBuf>,
        options: Options,
    ) -> Result<Self> {
        let refused = |reason: &str| {
            Err(Error::invalid_use("part", format!("counter {}: {reason}", counter.full_name())))
        };
        if mode == Mode::Backfill {
            return refused("a backfill goes from the first key to the last");
        }
        let mut run = Self::scoped(mode, schema, &[counter], options)?;
        if run.scope.len() > 1 {
            return refused(
                "a run over a rollup includes its base counters, so it cannot be a part",
            );
        }
        for key in after.iter().chain(&until) {
            counter.parts().values(key).map_err(|cause| Error::key(&counter, key, cause))?;
        }
        run.scope.place.after = after.cloned();
        run.part = Some(Part { until: until.cloned() });
        Ok(run)
    }

    /// Creates a run over some keys of one counter.
    ///
    /// A key of a rollup is compared with the stored totals that it sums, and these are not
    /// compared. The guards of a repair are those of a whole run. Its report never calls the
    /// counter [complete](CounterReport::complete), and it has no token: if it is stopped, run it
    /// again.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::UnknownCounter`] or [`Error::DefinitionConflict`] for a
    /// counter that is not in the schema; [`Error::Key`] for bytes that are not a key of the
    /// counter; [`Error::InvalidUse`] without keys, and for a backfill, which must be one run from
    /// the first key to the last.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Mode, Options, Reconciler};
    /// use keepcount::{Counter, KeyBuf, Schema};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// let keys = [KeyBuf::of::<i64>(7)];
    /// let repair = Reconciler::keys(Mode::Repair, &SCHEMA, SHOW_VOTES.id(), &keys, Options::default())?;
    /// # let _ = repair;
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn keys(
        mode: Mode,
        schema: &Schema,
        counter: CounterId,
        keys: &[KeyBuf],
        options: Options,
    ) -> Result<Self> {
        let refused = |reason: &str| {
            Err(Error::invalid_use("keys", format!("counter {}: {reason}", counter.full_name())))
        };
        if mode == Mode::Backfill {
            return refused("a backfill goes from the first key to the last");
        }
        if keys.is_empty() {
            return refused("there are none");
        }
        schema.position(&counter)?;
        for key in keys {
            counter.parts().values(key).map_err(|cause| Error::key(&counter, key, cause))?;
        }
        let mut run = Self::over(mode, schema, &[counter], &[counter], options)?;
        run.only = keys.to_vec();
        run.only.sort_unstable_by(|one, next| next.cmp(one));
        run.only.dedup();
        run.page = Pages::new(KEYS_OF_ONE);
        run.options.page = Some(KEYS_OF_ONE);
        run.go_to_key();
        Ok(run)
    }

    /// Resumes a stopped run. Mode, scope, page, samples and force come from the token; `options`
    /// gives limits and pace.
    ///
    /// # Errors
    ///
    /// [`Error::Token`] if the token is of another mode or schema, and [`Error::InvalidUse`] as for
    /// [`new`](Self::new).
    pub fn resume(mode: Mode, schema: &Schema, token: &Token, options: Options) -> Result<Self> {
        let refused = |reason| Err(Error::Token { reason });
        if token.mode != mode {
            return refused(match token.mode {
                Mode::Verify => "it belongs to a verify, and this run is not one",
                Mode::Repair => "it belongs to a repair, and this run is not one",
                Mode::Backfill => "it belongs to a backfill, and this run is not one",
            });
        }
        if token.schema != schema.fingerprint() {
            return refused("it was made with other counters, or other versions of them");
        }
        let names = schema.by_name();
        let scope = token
            .scope
            .iter()
            .map(|at| names.get(usize::from(*at)).copied())
            .collect::<Option<Vec<CounterId>>>();
        let Some(scope) = scope else { return refused("it names counters that are not there") };
        let page = (token.page != 0).then_some(token.page as usize);
        let options =
            Options { page, samples: token.samples as usize, force: token.force, ..options };
        let mut run = Self::scoped(mode, schema, &scope, options)?;
        run.identity = Some(token.identity);
        run.run = token.run;
        run.part.clone_from(&token.part);
        run.scope.check(token).map_err(|reason| Error::Token { reason })?;
        run.scope.name(token);
        run.go_to(token);
        Ok(run)
    }

    /// Continues from a token of this run, which is kept in the totals' database.
    fn go_to(&mut self, token: &Token) {
        self.scope.go_to(token);
        self.kept = Some(token.clone());
    }

    /// Goes to the next key of a run over single keys.
    fn go_to_key(&mut self) {
        if let (Some(key), Some(counter)) = (self.only.last(), self.scope.id(self.scope.at())) {
            self.scope.place.after = counter.parts().before(key);
            self.part = Some(Part { until: Some(key.clone()) });
        }
    }

    /// Gives up what the runs before this one found: nothing confirms that it holds for these
    /// totals as they are now.
    fn disown(&mut self) {
        (self.run, self.kept) = (new_run(), None);
        self.scope.disown();
    }

    /// Returns what to do next.
    #[must_use]
    pub fn next(&mut self, now: Duration) -> Step {
        let started = *self.started.get_or_insert(now);
        if self.outcome == Outcome::Failed {
            // A run that is driven again after an error continues where that occurred. The
            // connection may be another one now, to a standby that took over and lost some totals.
            (self.outcome, self.told) = (Outcome::Running, false);
            match std::mem::replace(&mut self.state, State::Identify) {
                State::Identify | State::Recall => {}
                state => self.interrupted = Some(state),
            }
        }
        if self.outcome != Outcome::Running {
            return self.ended();
        }
        self.seen = self.seen.max(now);
        let limit = self.limit_reached(now.saturating_sub(started));
        match self.state {
            State::Probe(_) | State::Compare if self.stop => self.end(Outcome::Stopped),
            State::Compare => {
                if let Some(limit) = limit {
                    self.end(Outcome::Limit(limit));
                }
            }
            _ => {}
        }
        if self.outcome != Outcome::Running {
            return self.ended();
        }
        if let Some((until, reason)) = &self.wait {
            if now < *until {
                return Step::Wait(until.saturating_sub(now), reason.clone());
            }
            self.wait = None;
        }
        if matches!(self.state, State::Compare) && !self.open {
            return Step::Throttle;
        }
        // After the throttles: the time that they took is not the page's.
        self.issued = now;
        self.request().map_or(Step::End, Step::Ask)
    }

    fn ended(&mut self) -> Step {
        if !std::mem::replace(&mut self.told, true) {
            self.report().observe_end();
        }
        Step::End
    }

    /// Takes the answer to the step that [`next`](Self::next) returned last. Returns how far the
    /// run has come, if the answer moved it: after each page compared, after each repair, and after
    /// a backfill made a counter ready.
    ///
    /// After an [`Answer::Failed`], the step comes again after a wait if a retry helps and retries
    /// are left. An error that is caused by one counter's own rows ([`Error::Source`],
    /// [`Error::Key`], an [`Error::Overflow`] of a recount) ends only that counter, if the run has
    /// others: its report has the reason ([`CounterReport::failure`]), it is neither complete nor
    /// clean, and the run continues with the next counter. Any other error ends the run, once it
    /// has stored how far it came.
    ///
    /// # Errors
    ///
    /// The error that ends the run; [`report`](Self::report) then says how far it came. Besides the
    /// errors of answers:
    ///
    /// - [`Error::Token`] if the run resumes one on other totals.
    /// - [`Error::SourceEmpty`] if a source is empty while 100 or more totals are not 0, unless the
    ///   run is forced, and [`Error::DriftLimit`] if a repair has found a larger share of wrong
    ///   keys than its options allow; the run ends as refused.
    /// - [`Error::Source`] if a page does not end after the key that it was asked to begin after.
    ///
    /// # Panics
    ///
    /// In a debug build, if the answer is to another step.
    pub fn handle(&mut self, answer: Answer, now: Duration) -> Result<Option<Progress>> {
        match std::mem::replace(&mut self.state, State::Identify) {
            State::Keep(Then::Fail(failure)) => {
                let kept = if let Answer::Kept(kept) = answer { Some(kept) } else { None };
                return self.fail(*failure, kept);
            }
            state => self.state = state,
        }
        let counter = self.counter();
        let error = match self.take(answer, counter, now) {
            Ok(moved) => return Ok(moved.then(|| self.progress(now))),
            Err(error) => error,
        };
        let (kind, recovery) = (observe::kind(&error), error.recovery());
        let fatal = self.retry(error, now);
        observe::failed(counter, kind, recovery, fatal.is_some());
        fatal.map_or(Ok(None), |error| self.end_by(error))
    }

    /// Returns the counter that the current step is about.
    fn counter(&self) -> Option<CounterId> {
        match self.state {
            State::Identify | State::Recall | State::Keep(_) => None,
            _ => self.scope.id(self.asked()),
        }
    }

    /// Returns the index of that counter.
    const fn asked(&self) -> usize {
        if let State::Probe(at) = self.state { at } else { self.scope.at() }
    }

    /// Returns whether the answer moved the run.
    fn take(&mut self, answer: Answer, counter: Option<CounterId>, now: Duration) -> Result<bool> {
        let open = std::mem::take(&mut self.open);
        match (&self.state, answer, counter) {
            (_, Answer::Failed(error), _) => return Err(error),
            (State::Compare, Answer::Throttled(reason), _) if !open => self.throttled(reason, now),
            (State::Identify, Answer::Identified(identity), _) => self.identified(identity)?,
            (State::Recall, Answer::Recalled(found), _) => self.recalled(found, now),
            (State::Probe(_) | State::ProbeAgain(_), Answer::Probed(looked), _) => {
                self.probed(looked, now)?;
            }
            (State::Compare, Answer::Compared(diff), Some(counter)) if open => {
                observe::compared(&counter, (diff.keys, diff.rows), diff.kinds());
                self.compared(diff, now)?;
                return Ok(true);
            }
            (State::Repair(_), Answer::Repaired(repaired), Some(counter)) => {
                observe::repaired(&counter, repaired.corrected);
                self.repaired(&repaired, now);
                return Ok(true);
            }
            (State::Ready, Answer::Readied(kept), Some(counter)) => {
                if kept != Kept::Lost {
                    observe::readied(&counter);
                }
                self.readied(kept, now);
                return Ok(true);
            }
            (State::Keep(_), Answer::Kept(kept), _) => self.kept(kept, now),
            (state, answer, _) => debug_assert!(false, "{answer:?} is no answer to {state:?}"),
        }
        Ok(false)
    }

    /// Ends the run before its last key. First it stores what it has found, so that the next run
    /// may rely on it.
    fn end(&mut self, outcome: Outcome) {
        if self.has_to_keep() {
            self.wait = None;
            self.state = State::Keep(Then::End(outcome));
        } else {
            self.outcome = outcome;
        }
    }

    /// Returns whether there is something to store if the run ends here. A backfill has stored it
    /// already, and a part claims nothing.
    fn has_to_keep(&self) -> bool {
        let asks = self.mode != Mode::Backfill && self.part.is_none() && self.pages > 0;
        // Nothing is claimed of these totals before it is known what was kept of them.
        let keeping = matches!(self.state, State::Identify | State::Recall | State::Keep(_));
        asks && !keeping && self.kept != self.token()
    }

    fn keep(&self) -> Keep {
        Keep { run: self.run, from: self.kept.clone(), to: self.token() }
    }

    /// Returns the last key to compare, if that is not the counter's last.
    fn until(&self) -> Option<&KeyBuf> {
        self.part.as_ref().and_then(|part| part.until.as_ref())
    }

    fn ask(&self, counter: CounterId) -> PageRequest {
        PageRequest {
            counter,
            after: self.scope.place.after.clone(),
            until: self.until().cloned(),
            keys: self.page.keys,
        }
    }

    fn request(&self) -> Option<Request> {
        let counter = self.counter();
        Some(match &self.state {
            State::Identify => Request::Identify,
            State::Recall => Request::Recall(self.kept.clone().or_else(|| self.token())?),
            State::Keep(_) => Request::Keep(self.keep()),
            State::Probe(_) | State::ProbeAgain(_) => {
                Request::Probe(Probe { counter: counter?, totals: EMPTY_SOURCE_TOTALS })
            }
            State::Compare => Request::Compare(self.ask(counter?)),
            State::Repair(page) => {
                let keys = chunk(&page.drifts).map(|drift| drift.key.clone()).collect();
                Request::Repair(RepairRequest { counter: counter?, keys })
            }
            State::Ready => {
                Request::Ready(Ready { counter: counter?, run: self.run, kept: self.kept.clone() })
            }
        })
    }

    fn limit_reached(&self, elapsed: Duration) -> Option<&'static str> {
        let Options { max_pages, max_rows, max_time, .. } = self.options;
        if self.pages == 0 {
            // Every run compares at least one page; otherwise a run whose probes take too long
            // would never advance.
            None
        } else if max_pages.is_some_and(|most| self.pages >= most) {
            Some("pages")
        } else if max_rows.is_some_and(|most| self.rows >= most) {
            Some("rows")
        } else if max_time.is_some_and(|most| elapsed >= most) {
            Some("time")
        } else {
            None
        }
    }

    fn identified(&mut self, identity: u64) -> Result<()> {
        if self.identity.is_some_and(|known| known != identity) {
            return Err(Error::Token { reason: "it belongs to another database" });
        }
        self.identity = Some(identity);
        self.failures = 0;
        // A part never calls its counter clean.
        if (self.kept.is_some() || self.pages > 0) && self.part.is_none() {
            self.state = State::Recall;
        } else {
            self.begin();
        }
        Ok(())
    }

    fn begin(&mut self) {
        let at = self.scope.at();
        let probe = self.mode.repairs() && self.scope.is_driven_by_rows(at);
        let first = if probe { State::Probe(at) } else { State::Compare };
        self.state = self.interrupted.take().unwrap_or(first);
    }

    /// A backfill continues from what was kept, or begins again if nothing is. A verify or repair
    /// continues from its token; it calls nothing clean that was compared before, unless the token
    /// is what was kept.
    fn recalled(&mut self, found: Option<Token>, now: Duration) {
        self.answered(now);
        if self.mode == Mode::Backfill {
            // What was repaired of a page and is not stored yet may be lost.
            self.interrupted = None;
            if let Some(token) = found.filter(|token| self.is_of_this(token)) {
                self.go_to(&token);
            } else {
                self.scope.back_to(0);
                (self.run, self.kept) = (new_run(), None);
            }
        } else if found.is_some() && found == self.token() {
            self.kept = found;
        } else {
            if found.is_some() && found != self.kept {
                self.meet(Overlap::TakenOver);
            }
            self.disown();
        }
        self.begin();
    }

    /// Returns whether a token is of this run, whatever its position.
    fn is_of_this(&self, token: &Token) -> bool {
        self.scope.check(token).is_ok()
            && (token.mode, token.run, token.schema) == (self.mode, self.run, self.schema)
            && Some(token.identity) == self.identity
    }

    fn kept(&mut self, kept: Kept, now: Duration) {
        self.answered(now);
        let State::Keep(then) = std::mem::replace(&mut self.state, State::Compare) else { return };
        let lost = kept == Kept::Lost;
        if lost {
            self.meet(Overlap::TakenOver);
        }
        if lost && self.mode == Mode::Backfill && !self.scope.is_done() {
            // These totals are older than those that were repaired, for example on another server.
            // Ask what was kept of them.
            self.state = State::Recall;
            return;
        }
        if lost && self.mode != Mode::Backfill {
            self.disown();
        }
        self.kept = self.token().filter(|_| kept == Kept::Here);
        match then {
            Then::GoOn(wait) => self.wait = wait,
            Then::End(outcome) => self.outcome = outcome,
            Then::Fail(_) => {}
        }
    }

    /// Continues with the next counter's probe, or with the first page.
    fn probed(&mut self, looked: ProbeResult, now: Duration) -> Result<()> {
        self.answered(now);
        let (at, then) = match std::mem::replace(&mut self.state, State::Compare) {
            State::Probe(at) => (at, self.after_probe(at)),
            State::ProbeAgain(page) => (self.scope.at(), State::Repair(page)),
            _ => return Ok(()),
        };
        self.state = then;
        self.scope.place.orphans = 0;
        if matches!(self.state, State::Compare) {
            self.begin_comparing();
        }
        if looked.empty && looked.totals >= EMPTY_SOURCE_TOTALS && !self.options.force {
            let counter = self.scope.id(at).map_or("", |counter| counter.name());
            return Err(Error::SourceEmpty { counter, totals: looked.totals });
        }
        Ok(())
    }

    fn compared(&mut self, mut diff: PageDiff, now: Duration) -> Result<()> {
        if let Some(only) = self.only.last() {
            // There may be keys between the one that the page begins after and the wanted one.
            diff.drifts.retain(|drift| drift.key == *only);
            diff.dangling.retain(|key| key == only);
            diff.unsettled.retain(|key| key == only);
        }
        let took = now.saturating_sub(self.issued);
        self.answered(now);
        let begins = self.scope.place.after.is_none() && self.part.is_none();
        let goes_on = diff.next.is_none() || diff.next > self.scope.place.after;
        let Some(counter) = self.scope.current_mut() else { return Ok(()) };
        if !goes_on {
            return Err(Error::source(
                &counter.report.counter,
                diff.next.as_ref(),
                "a page did not end after the key that it began after",
            ));
        }
        self.pages += 1;
        self.rows += diff.rows;
        self.pace.page(self.issued, now, diff.keys, diff.rows);
        if begins {
            counter.report.begun = true;
            counter.begun = Some(self.issued);
        }
        counter.report.add(&diff, self.options.samples);
        if self.options.page.is_none() {
            self.page.adapt(diff.keys + diff.rows, took, self.options.page_time);
        }
        if !self.mode.repairs() || diff.drifts.is_empty() {
            self.page_done(diff.next, now);
            return Ok(());
        }
        self.check_share()?;
        self.repair_next(Page { drifts: diff.drifts.into(), next: diff.next }, now);
        Ok(())
    }

    fn repaired(&mut self, repaired: &Repaired, now: Duration) {
        self.answered(now);
        let State::Repair(mut page) = std::mem::replace(&mut self.state, State::Compare) else {
            return;
        };
        if let Some(counter) = self.scope.current_mut() {
            counter.report.corrected += repaired.corrected;
            counter.report.leave_alone(&repaired.unsettled, self.options.samples);
        }
        let done = chunk(&page.drifts).count();
        self.scope.place.orphans +=
            page.drifts.drain(..done).filter(|drift| drift.expected == 0).count() as u64;
        self.repair_next(page, now);
    }

    /// Continues with a page that may have drifts left to repair; probes the source again if the
    /// repairs remove many totals.
    fn repair_next(&mut self, page: Page, now: Duration) {
        if page.drifts.is_empty() {
            self.page_done(page.next, now);
            return;
        }
        let orphans = chunk(&page.drifts).filter(|drift| drift.expected == 0).count() as u64;
        // Not for rollups: what a rollup sums are totals that were probed and repaired one level
        // below.
        let probe = self.scope.place.orphans + orphans >= EMPTY_SOURCE_TOTALS
            && !self.options.force
            && self.scope.is_driven_by_rows(self.scope.at());
        self.state = if probe { State::ProbeAgain(page) } else { State::Repair(page) };
    }

    fn readied(&mut self, kept: Kept, now: Duration) {
        self.answered(now);
        if kept == Kept::Lost {
            self.meet(Overlap::TakenOver);
            self.state = State::Recall;
        } else {
            self.move_on(None, now);
        }
    }

    /// Continues in spite of an error, now or after a wait; returns the error if it ends the run.
    fn retry(&mut self, error: Error, now: Duration) -> Option<Error> {
        if self.is_of_one(&error) || self.is_unchecked(&error) {
            self.leave_out(&error, now);
            return None;
        }
        if error.recovery() != Recovery::Retry || self.failures >= self.options.retries {
            return Some(error);
        }
        let wait = MIN_RETRY_WAIT.saturating_mul(1 << self.failures.min(8)).min(MAX_RETRY_WAIT);
        self.failures += 1;
        self.wait = Some((now + wait, error.to_string()));
        None
    }

    /// Ends the run by an error, once it has stored how far it came.
    fn end_by(&mut self, error: Error) -> Result<Option<Progress>> {
        let refused = matches!(error, Error::SourceEmpty { .. } | Error::DriftLimit { .. });
        let outcome = if refused { Outcome::Refused } else { Outcome::Failed };
        let keeps = self.has_to_keep();
        let failure =
            Failure { error, outcome, state: std::mem::replace(&mut self.state, State::Identify) };
        if keeps {
            self.state = State::Keep(Then::Fail(Box::new(failure)));
            return Ok(None);
        }
        self.fail(failure, None)
    }

    /// Ends the run by an error. If it could not be stored how far it came, its token resumes it
    /// all the same.
    fn fail(&mut self, failure: Failure, kept: Option<Kept>) -> Result<Option<Progress>> {
        if let Some(kept) = kept {
            self.kept = self.token().filter(|_| kept == Kept::Here);
        }
        (self.outcome, self.state) = (failure.outcome, failure.state);
        self.ended();
        Err(failure.error)
    }

    /// Returns whether an error concerns the rows of one counter, in a run over several. That
    /// counter must be fed by rows.
    fn is_of_one(&self, error: &Error) -> bool {
        let asks = matches!(
            self.state,
            State::Probe(_) | State::ProbeAgain(_) | State::Compare | State::Repair(_)
        );
        error.is_of_rows()
            && asks
            && self.scope.is_driven_by_rows(self.scope.at())
            && self.scope.len() > 1
    }

    /// Returns whether an error says that the current counter has no source, in a run that does not
    /// name it and has another counter to check.
    fn is_unchecked(&self, error: &Error) -> bool {
        matches!(error, Error::NoSource { .. }) && self.scope.may_lack_source(self.asked())
    }

    /// Continues after the counter that the current step is about.
    fn leave_out(&mut self, error: &Error, now: Duration) {
        self.answered(now);
        let at = self.asked();
        if let Some(counter) = self.scope.get_mut(at) {
            match error {
                Error::NoSource { .. } => counter.report.unchecked = true,
                _ => counter.report.failure = Some(error.to_string()),
            }
        }
        if !matches!(self.state, State::Probe(_)) {
            self.move_on(None, now);
            return;
        }
        self.state = self.after_probe(at);
        if matches!(self.state, State::Compare) {
            self.begin_comparing();
        }
    }

    /// Returns what follows the probe of a counter: that of the next one that rows feed, or the
    /// first page.
    const fn after_probe(&self, at: usize) -> State {
        let more = self.scope.is_driven_by_rows(at + 1);
        if more { State::Probe(at + 1) } else { State::Compare }
    }

    /// Compares next, and skips counters whose probe failed.
    fn begin_comparing(&mut self) {
        self.state = State::Compare;
        self.scope.skip_left_out();
        if self.scope.is_done() {
            self.finish();
        }
    }

    /// Continues with the page if no throttle is closed; otherwise asks again after a wait, or ends
    /// the run as stalled.
    fn throttled(&mut self, reason: Option<String>, now: Duration) {
        let Some(reason) = reason else {
            (self.open, self.throttled_since) = (true, None);
            return;
        };
        let since = *self.throttled_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.options.stall_after {
            self.end(Outcome::Stalled(reason));
        } else {
            self.wait = Some((now + THROTTLE_WAIT, reason));
        }
    }

    /// Ends the run before its next page.
    pub const fn stop(&mut self) {
        self.stop = true;
    }

    /// Sets about how many keys of a counter this run will compare: take it from the last complete
    /// report, or count its totals.
    ///
    /// A run that resumes another compares what is left of them. This changes only the fraction and
    /// the ETA of [`progress`](Self::progress); a counter that is not in scope is ignored.
    pub fn expect(&mut self, counter: &CounterId, keys: u64) {
        self.scope.expect(counter, keys);
    }

    /// Returns how far the run has come at this moment, for display, without its findings.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let sum = |count: fn(&CounterReport) -> u64| self.scope.reports().map(count).sum();
        let keys = sum(|report| report.keys);
        let left = self.scope.iter().skip(self.scope.at());
        let left = left
            .map(|counter| counter.expected.map(|keys| keys.saturating_sub(counter.report.keys)));
        let left = left.sum::<Option<u64>>();
        let (keys_per_second, rows_per_second) = self.pace.per_second(now);
        let estimate = left.map(|left| estimate(keys, left, self.scope.is_done(), keys_per_second));
        Progress {
            mode: self.mode,
            counter: self.scope.id(self.scope.at()),
            counters_done: self.scope.at(),
            counters: self.scope.len(),
            pages: self.pages,
            keys,
            rows: self.rows,
            drift: sum(CounterReport::drift),
            corrected: sum(|report| report.corrected),
            overlap: self.overlap,
            elapsed: self.started.map_or(Duration::ZERO, |started| now.saturating_sub(started)),
            keys_per_second,
            rows_per_second,
            fraction: estimate.map(|(fraction, _)| fraction),
            eta: estimate.and_then(|(_, eta)| eta),
        }
    }

    /// Returns the totals and counters that no other run is expected to work on; `None` before the
    /// totals are known, and for parts, which are meant to run side by side.
    pub(super) fn claims(&self) -> Option<(u64, Vec<CounterId>)> {
        let identity = self.identity.filter(|identity| *identity != 0 && self.part.is_none());
        let counters = || self.scope.reports().map(|report| report.counter).collect();
        identity.map(|identity| (identity, counters()))
    }

    /// Records that another run is at work.
    pub(super) fn meet(&mut self, overlap: Overlap) {
        self.overlap.get_or_insert(overlap);
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns what the run has found and done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let report = |counter: &ScopedCounter| {
            let ago = |begun| self.seen.saturating_sub(begun);
            let begun_ago = counter.begun.map_or(Duration::ZERO, ago);
            CounterReport { begun_ago, ..counter.report.clone() }
        };
        let mut counters: Vec<CounterReport> = self.scope.iter().map(report).collect();
        counters.sort_unstable_by_key(|report| report.counter.order());
        Report {
            mode: self.mode,
            counters,
            pages: self.pages,
            rows: self.rows,
            outcome: self.outcome.clone(),
            overlap: self.overlap,
            token: self.token(),
            run: self.run,
        }
    }

    /// Returns where to resume, after the last page that is completely done; `None` if the run is
    /// complete, or before the totals' identity is known.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        let identity = self.identity.filter(|_| self.only.is_empty())?;
        (!self.scope.is_done()).then(|| Token {
            mode: self.mode,
            force: self.options.force,
            page: self.options.page.map_or(0, |page| u32::try_from(page).unwrap_or(u32::MAX)),
            samples: u32::try_from(self.options.samples).unwrap_or(u32::MAX),
            schema: self.schema,
            identity,
            run: self.run,
            scope: self.scope.positions(),
            unclean: self.scope.unclean(),
            failed: self.scope.reported(|report| report.failure.is_some()),
            unchecked: self.scope.reported(|report| report.unchecked),
            named: self.scope.named(),
            at: u16::try_from(self.scope.at()).unwrap_or(u16::MAX),
            after: self.scope.place.after.clone(),
            part: self.part.clone(),
            dirty: self.scope.is_dirty(),
            unsettled: self.scope.is_unsettled(),
        })
    }

    fn answered(&mut self, now: Duration) {
        self.seen = self.seen.max(now);
        self.worked += now.saturating_sub(self.issued);
        self.failures = 0;
    }

    /// Continues with the next page. At a counter's end, a backfill first makes it ready.
    ///
    /// The counter was compared from its first key on, by this run or by those that it resumes,
    /// because every token of a backfill is of a run that began there. If keys were skipped,
    /// another backfill must make it ready.
    fn page_done(&mut self, next: Option<KeyBuf>, now: Duration) {
        if next.is_none() && self.mode == Mode::Backfill && !self.scope.is_unsettled() {
            self.state = State::Ready;
        } else {
            self.move_on(next, now);
        }
    }

    fn move_on(&mut self, next: Option<KeyBuf>, now: Duration) {
        self.state = State::Compare;
        let is_left_out = self.scope.current().is_some_and(|counter| counter.report.is_left_out());
        if next.is_none() && self.only.len() > 1 && !is_left_out {
            self.only.pop();
            self.go_to_key();
            self.wait_for_pace(now);
            return;
        }
        if next.is_some() {
            self.scope.place.after = next;
        } else {
            self.scope.close(self.part.is_none());
            if self.options.page.is_none() {
                self.page.next_counter();
            }
        }
        self.begin_comparing();
        if self.scope.is_done() {
            return;
        }
        self.wait_for_pace(now);
        if self.mode == Mode::Backfill {
            // Before the wait, because a run may be stopped while it waits.
            self.state = State::Keep(Then::GoOn(self.wait.take()));
        }
    }

    /// Waits before the next page, as the options say.
    fn wait_for_pace(&mut self, now: Duration) {
        let duty = u32::from(self.options.duty_percent.clamp(1, 100));
        let rest = self.worked * (100 - duty) / duty;
        self.worked = Duration::ZERO;
        if !rest.is_zero() {
            self.wait_until(now + rest, "duty cycle");
        }
        if let (Some(rate), Some(started)) = (self.options.rows_per_second, self.started) {
            let due = started + Duration::from_millis(self.rows.saturating_mul(1000) / rate.max(1));
            if due > now {
                self.wait_until(due, "rows per second");
            }
        }
    }

    /// Ends a complete run: what was kept of it is no longer needed.
    fn finish(&mut self) {
        let outcome = if self.scope.reports().any(|report| report.failure.is_some()) {
            Outcome::Incomplete
        } else if self.scope.reports().any(|report| report.unchecked) {
            Outcome::Unchecked
        } else {
            Outcome::Complete
        };
        if self.kept.is_some() && self.part.is_none() {
            self.state = State::Keep(Then::End(outcome));
        } else {
            self.outcome = outcome;
        }
    }

    fn wait_until(&mut self, until: Duration, reason: &str) {
        if self.wait.as_ref().is_none_or(|(known, _)| *known < until) {
            self.wait = Some((until, reason.to_owned()));
        }
    }

    fn check_share(&self) -> Result<()> {
        let (Some(limit), Some(counter)) = (self.options.max_wrong_percent, self.scope.current())
        else {
            return Ok(());
        };
        let report = &counter.report;
        let (wrong, keys) = (report.drift(), report.keys);
        let counts = self.mode == Mode::Repair && !self.options.force;
        if keys >= SHARE_KEYS && counts && wrong * 100 > keys * u64::from(limit) {
            return Err(Error::DriftLimit { counter: report.counter.name(), wrong, keys, limit });
        }
        Ok(())
    }
}

/// Returns a number that no other run has.
fn new_run() -> u64 {
    RandomState::new().hash_one(())
}

/// Returns the drifts that the next repair takes: at least one, and so few that no writer waits
/// long.
fn chunk(drifts: &VecDeque<Drift>) -> impl Iterator<Item = &Drift> {
    let mut rows = 0;
    drifts.iter().take(REPAIR_KEYS).take_while(move |drift| {
        let room = rows < REPAIR_ROWS;
        rows += drift.rows;
        room
    })
}
