//! Cases of audits: rows, what was written without hooks, a run, and what it must find and leave.
//! Every store runs the same cases. What a run must find and leave comes from a naive recount
//! (`recount.rs`), which knows nothing of keepcount.

mod cases;
mod recount;
pub mod sql;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use keepcount::backend::CounterSpec;
use keepcount::reconcile::{CounterReport, Mode, Options, Outcome, Reconciler, Report, Run};
use keepcount::{Batch, CounterId, Error, Record, Result, Tally};

use self::cases::{CASES, setlist, show, vote};
pub use self::recount::Totals;
use self::recount::{
    Name, at, expected, names, not_0, plus, recount, standing, totals, with_bases,
};

keepcount::counters! {
    /// Neither in the order of names nor of levels.
    pub SCHEMA {
        pub SONG_DAYS: (String, i64) = "song.days";
        pub SETLIST_SHOW: (i64, i64) = "setlist.show";
        pub SETLIST_STARS: i64 = "setlist.stars";
        pub SHOW_STARS: i64 = "show.stars".sum_of(SETLIST_STARS, SETLIST_SHOW);
        pub prunable SETLIST_DAYS: (i64, i64) = "setlist.days";
        pub prunable SHOW_DAYS: (i64, i64) = "show.days".sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
        pub ALL_STARS: () = "all.stars";
        pub SHOW_ARTIST: (i64, String) = "show.artist";
        pub SHOW_TOUR: (i64, ()) = "show.tour";
        pub ARTIST_STARS: String = "artist.stars".sum_of(SHOW_STARS, SHOW_ARTIST);
        pub prunable ARTIST_DAYS: (String, i64) =
            "artist.days".sum_of_suffix(SHOW_DAYS, SHOW_ARTIST);
        pub TOUR_STARS: () = "tour.stars".sum_of(SHOW_STARS, SHOW_TOUR);
    }
}

#[derive(Debug, Clone)]
pub enum Row {
    Vote { setlist: Option<i64>, song: Cow<'static, str>, day: i64, stars: i64, spam: bool },
    Setlist { id: i64, show: Option<i64> },
    Show { id: i64, artist: Option<Cow<'static, str>> },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match self {
            Self::Vote { spam: true, .. } | Self::Setlist { show: None, .. } => {}
            Self::Vote { setlist, song, day, stars, .. } => {
                to.add(SONG_DAYS, (&**song, *day), 1);
                to.add(ALL_STARS, (), *stars);
                if let Some(setlist) = setlist {
                    to.add(SETLIST_STARS, setlist, *stars);
                    to.add(SETLIST_DAYS, (setlist, *day), *stars);
                }
            }
            Self::Setlist { id, show: Some(show) } => to.add(SETLIST_SHOW, (id, show), 1),
            Self::Show { id, artist } => {
                to.add(SHOW_TOUR, (id, ()), 1);
                if let Some(artist) = artist {
                    to.add(SHOW_ARTIST, (id, &**artist), 1);
                }
            }
        }
    }
}

/// A counter's name, a key as text, and an amount by which its total is off.
pub type Amount = (&'static str, &'static str, i128);

pub struct Case {
    /// Thing, condition, result.
    pub name: &'static str,
    /// Rows that were written with their hooks.
    pub rows: fn() -> Vec<Row>,
    /// Rows that were written without hooks.
    pub unhooked: fn() -> Vec<Row>,
    /// Which of `rows` were deleted without hooks.
    pub deleted: fn(&Row) -> bool,
    /// What was added to totals, and to no rollup of them.
    pub planted: &'static [Amount],
    /// Days before this one were pruned.
    pub cutoff: Option<i64>,
    pub source: Source,
    pub mode: Mode,
    pub scope: Scope,
    pub force: bool,
    pub max_wrong_percent: Option<u8>,
    pub pages: &'static [usize],
    /// Whether each page is a run of its own, which resumes from the token of the one before.
    pub legs: bool,
    pub finds: Finds,
    pub ends: Ends,
}

/// What a run finds. It is compared with the naive recount, as what keepcount finds is.
#[derive(Clone, Copy)]
pub enum Finds {
    /// What was planted, and nothing else.
    Planted,
    These(&'static [Amount]),
    /// What the naive recount says: it is long, or the run fails.
    Naive,
}

#[derive(Debug, Clone, Copy)]
pub enum Scope {
    All,
    /// These, and all that they sum.
    Counters(&'static [&'static str]),
    Keys(&'static str, &'static [&'static str]),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ends {
    Complete,
    /// These counters fail, each with a reason that contains this text; the others are compared.
    Incomplete(&'static [(&'static str, &'static str)]),
    /// With this error, and all totals unchanged.
    Fails(&'static str),
}

/// The amount and the filter by which SQL counts stars by setlist.
pub type Source = (&'static str, &'static str);

/// The source that says what the tally says.
pub const RIGHT: Source = ("stars", "NOT spam");

/// A store with its rows.
pub trait Backend {
    /// Begins a case: without rows, and with counters that are ready or pending their backfill.
    fn begin(&mut self, pending: bool);
    /// Writes rows without their hooks.
    fn write(&mut self, rows: &[Row]);
    fn hook(&mut self, batch: &mut Batch);
    fn prune(&mut self, cutoff: i64);
    /// Writes one total and nothing else.
    fn plant(&mut self, counter: CounterId, key: &str, total: i64);
    /// All totals, those of 0 too, and which counters are not ready.
    fn stored(&mut self) -> (Totals, BTreeSet<&'static str>);
    /// Runs it, with stars by setlist counted as `source` says.
    fn run(&mut self, run: &mut Reconciler, source: Source) -> Result<Report>;

    /// Whether a source can say where parents are, so that dangling memberships are reported.
    fn knows_parents(&self) -> bool {
        false
    }

    /// Whether the database counts, so that its SQL can differ from the tally.
    fn counts_by_sql(&self) -> bool {
        false
    }
}

/// Checks every case, and then says which ones failed.
pub fn check(backend: &mut impl Backend, name: &str) {
    let all = SCHEMA.counters().iter().map(|spec| spec.id().name());
    assert_eq!(all.collect::<BTreeSet<_>>(), names().collect());
    let (by_sql, mut count, mut failed) = (backend.counts_by_sql(), 0, Vec::new());
    for case in CASES.iter().filter(|case| case.source == RIGHT || by_sql) {
        for page in case.pages {
            count += 1;
            if catch_unwind(AssertUnwindSafe(|| case.check(backend, *page))).is_err() {
                failed.push(format!("{name}, pages of {page}: {}", case.name));
                eprintln!("failed: {}", failed[failed.len() - 1]);
            }
        }
    }
    assert!(failed.is_empty(), "{} of {count} failed: {failed:#?}", failed.len());
}

impl Case {
    fn check(&self, backend: &mut impl Backend, page: usize) {
        let hooked = (self.rows)();
        let mut rows = hooked.clone();
        rows.retain(|row| !(self.deleted)(row));
        rows.extend((self.unhooked)());
        backend.begin(self.mode == Mode::Backfill);
        backend.write(&rows);
        let mut batch = Batch::new();
        batch.insert(&hooked);
        backend.hook(&mut batch);
        self.cutoff.into_iter().for_each(|cutoff| backend.prune(cutoff));
        let mut stored = standing(&recount(&hooked, self.cutoff), &Totals::new());
        for &(counter, key, amount) in self.planted {
            let total = stored.entry((counter, key.to_owned())).or_default();
            *total += amount;
            backend.plant(id(counter), key, i64::try_from(*total).unwrap());
        }
        let (stored, truth) = (not_0(stored), recount(&rows, self.cutoff));
        assert_eq!(not_0(backend.stored().0), stored, "before the run");
        self.check_finds(&truth, &stored);

        let check = &mut Check { case: self, backend, page, rows: &rows, truth: &truth };
        let repairs = self.mode != Mode::Verify;
        if repairs && !matches!(self.ends, Ends::Fails(_)) {
            check.run(Mode::Verify, false, &stored);
        }
        let after = check.run(self.mode, self.legs, &stored);
        if !repairs || self.ends != Ends::Complete {
            return;
        }
        assert!(self.run_over(self.mode, &truth, &after).drifts.is_empty());
        check.run(self.mode, false, &after);
        // Hooks keep what is exact, and what a repair of other counters left as far off.
        let more = [vote(2, "a", 9, 3), setlist(2, Some(73)), show(2, Some("c"))];
        backend.write(&more);
        batch.insert(&more[..]);
        backend.hook(&mut batch);
        let drift = plus(after.clone(), &expected(&truth, &after), -1);
        rows.extend(more);
        let wanted = standing(&recount(&rows, self.cutoff), &drift);
        assert_eq!(not_0(backend.stored().0), wanted, "after one more write");
    }

    /// Compares what the case says that a run finds with the naive recount.
    fn check_finds(&self, truth: &Totals, stored: &Totals) {
        let finds = match self.finds {
            Finds::These(finds) => totals(finds),
            Finds::Planted => not_0(totals(self.planted)),
            Finds::Naive => return,
        };
        if self.source == RIGHT {
            let drifts = self.run_over(self.mode, truth, stored).drifts;
            let drifts =
                drifts.into_iter().map(|(name, (stored, expected))| (name, stored - expected));
            assert_eq!(drifts.collect::<Totals>(), finds, "the naive recount, and the case");
        }
    }

    /// The counters of a run.
    fn scope(&self) -> BTreeSet<&'static str> {
        match self.scope {
            Scope::All => names().collect(),
            Scope::Counters(counters) => with_bases(counters),
            Scope::Keys(counter, _) => BTreeSet::from([counter]),
        }
    }

    /// What the failure of a counter names, if it fails.
    fn failure(&self, counter: &str) -> Option<&'static str> {
        let Ends::Incomplete(failed) = self.ends else { return None };
        failed.iter().find(|(name, _)| *name == counter).map(|(_, names)| *names)
    }

    /// Whether a run compares this key.
    fn compares(&self, (counter, key): &Name) -> bool {
        let is_meant = match self.scope {
            Scope::Keys(_, keys) => keys.contains(&key.as_str()),
            _ => true,
        };
        is_meant && self.scope().contains(counter) && self.failure(counter).is_none()
    }

    /// Goes through the counters as a run does, each after what it sums. A rollup is compared with
    /// what is stored a level below; a repair there moves it, and not how far it is off.
    fn run_over(&self, mode: Mode, truth: &Totals, stored: &Totals) -> Expected {
        let mut off = plus(stored.clone(), &expected(truth, stored), -1);
        let mut run = Expected { stored: stored.clone(), ..Expected::default() };
        for counter in names() {
            let is_mine = |name: &&Name| name.0 == counter;
            let keys: BTreeSet<_> = run.stored.keys().chain(off.keys()).filter(is_mine).collect();
            run.keys.insert(counter, keys.len() as u64);
            let before = run.drifts.len();
            for name in off.keys().filter(is_mine).filter(|name| self.compares(name)) {
                let stored = at(&run.stored, name);
                run.drifts.insert(name.clone(), (stored, stored - at(&off, name)));
            }
            if mode != Mode::Verify && run.drifts.len() > before {
                off.retain(|name, _| !run.drifts.contains_key(name));
                run.stored = standing(truth, &off);
            }
        }
        run
    }
}

/// What a run must find and leave.
#[derive(Default)]
struct Expected {
    /// The stored and the true total, when the run comes to the key.
    drifts: BTreeMap<Name, (i128, i128)>,
    /// How many keys each counter has, when the run comes to it.
    keys: BTreeMap<&'static str, u64>,
    stored: Totals,
}

/// A case at one size of pages, in one store.
struct Check<'a, B> {
    case: &'a Case,
    backend: &'a mut B,
    page: usize,
    rows: &'a [Row],
    truth: &'a Totals,
}

impl<B: Backend> Check<'_, B> {
    /// Checks a run over totals that are as `stored`, and returns what it leaves.
    fn run(&mut self, mode: Mode, in_legs: bool, stored: &Totals) -> Totals {
        let (case, before) = (self.case, self.backend.stored());
        let reports = match (self.reports(mode, in_legs), case.ends) {
            (Err(error), Ends::Fails(wanted)) => {
                assert_eq!(kind(&error), wanted);
                assert_eq!(self.backend.stored(), before);
                return stored.clone();
            }
            (Ok(reports), Ends::Fails(wanted)) => panic!("no {wanted}: {reports:?}"),
            (reports, _) => reports.unwrap(),
        };
        let (after, found) = (self.backend.stored(), found(&reports));
        if case.source != RIGHT {
            // A verify trusts the source, which is as wrong as the totals.
            assert_eq!((mode, found.len(), after), (Mode::Verify, 0, before));
            return stored.clone();
        }
        let wanted = case.run_over(mode, self.truth, stored);
        assert_eq!(found, wanted.drifts, "{mode}");
        self.check_reports(mode, &reports, &wanted);
        if mode == Mode::Verify {
            assert_eq!(after, before);
            return wanted.stored;
        }
        let is_0_left = |name: &&Name| after.0.get(*name) == Some(&0);
        assert_eq!(found.keys().find(is_0_left), None, "a repair leaves no total of 0");
        let is_gone = |(name, total): &(&Name, &i128)| **total == 0 && !after.0.contains_key(*name);
        let gone = before.0.iter().filter(|(name, _)| !found.contains_key(*name)).find(is_gone);
        assert_eq!(gone, None, "nor does it touch one that has no drift");
        let mut unready = before.1;
        if mode == Mode::Backfill {
            let made_ready =
                |name: &&str| case.scope().contains(name) && case.failure(name).is_none();
            unready.retain(|name| !made_ready(name));
        }
        assert_eq!((not_0(after.0), after.1), (wanted.stored.clone(), unready), "after the {mode}");
        wanted.stored
    }

    /// One report, or that of each leg.
    fn reports(&mut self, mode: Mode, in_legs: bool) -> Result<Vec<Report>> {
        let case = self.case;
        let mut options = Options::default().page(self.page).samples(1_000).force(case.force);
        if let Some(percent) = case.max_wrong_percent {
            options = options.max_wrong_percent(percent);
        }
        if in_legs {
            options = options.max_pages(1);
        }
        let run = Run::new(mode, &SCHEMA).options(options);
        let run = match case.scope {
            Scope::All => run,
            Scope::Counters(names) => {
                run.counters(&names.iter().map(|name| id(name)).collect::<Vec<_>>())
            }
            Scope::Keys(counter, keys) => {
                keys.iter().fold(run, |run, key| run.key_text(&id(counter), *key))
            }
        };
        let (mut leg, mut reports) = (run.reconciler()?, Vec::new());
        loop {
            let report = self.backend.run(&mut leg, case.source)?;
            if let Some(token) = &report.token {
                assert!(in_legs && report.outcome == Outcome::Limit("pages"), "{report}");
                leg = Reconciler::resume(
                    mode,
                    &SCHEMA,
                    &token.to_string().parse().unwrap(),
                    options,
                )?;
            }
            let is_last = report.token.is_none();
            reports.push(report);
            if is_last {
                return Ok(reports);
            }
        }
    }

    fn check_reports(&self, mode: Mode, reports: &[Report], wanted: &Expected) {
        let outcome = match self.case.ends {
            Ends::Incomplete(_) => Outcome::Incomplete,
            _ => Outcome::Complete,
        };
        assert_eq!(reports[reports.len() - 1].outcome, outcome);
        let mut counters: BTreeMap<&'static str, Vec<&CounterReport>> = BTreeMap::new();
        for report in reports {
            let keys: u64 = report.counters.iter().map(|counter| counter.keys).sum();
            assert!(keys <= 2 * self.page as u64 * report.pages, "a page of rows and totals");
            assert_eq!(report.overlap, None);
            for counter in &report.counters {
                counters.entry(counter.counter.name()).or_default().push(counter);
            }
        }
        assert_eq!(counters.keys().copied().collect::<BTreeSet<_>>(), self.case.scope());
        for (counter, legs) in counters {
            self.check_counter(mode, counter, &legs, wanted);
        }
    }

    fn check_counter(
        &self,
        mode: Mode,
        counter: &'static str,
        legs: &[&CounterReport],
        wanted: &Expected,
    ) {
        let (case, is_of_keys) = (self.case, matches!(self.case.scope, Scope::Keys(..)));
        let is = |what: fn(&CounterReport) -> bool| legs.iter().any(|leg| what(leg));
        let sum = |what: fn(&CounterReport) -> u64| legs.iter().map(|leg| what(leg)).sum::<u64>();
        let is_off = |counter: &str| {
            case.failure(counter).is_some() || wanted.drifts.keys().any(|name| name.0 == counter)
        };
        let is_complete = !is_of_keys && case.failure(counter).is_none();
        let is_clean = is_complete && !with_bases(&[counter]).into_iter().any(is_off);
        assert_eq!(
            (counter, is(|leg| leg.complete), is(|leg| leg.clean), is(|leg| leg.unchecked)),
            (counter, is_complete, is_clean, false)
        );
        let failure = legs.iter().find_map(|leg| leg.failure.as_deref());
        if let Some(names) = case.failure(counter) {
            let failure = failure.unwrap();
            assert!(failure.contains(counter) && failure.contains(names), "{failure}");
            return;
        }
        assert_eq!((counter, failure), (counter, None));
        let drifts = || wanted.drifts.iter().filter(|(name, _)| name.0 == counter);
        let count =
            |is: fn(&(i128, i128)) -> bool| drifts().filter(|(_, drift)| is(drift)).count() as u64;
        let corrected = if mode == Mode::Verify { 0 } else { drifts().count() as u64 };
        assert_eq!(
            (counter, sum(|leg| leg.missing), sum(|leg| leg.orphan), sum(CounterReport::drift)),
            (counter, count(|drift| drift.0 == 0), count(|drift| drift.1 == 0), count(|_| true))
        );
        assert_eq!(
            (counter, sum(|leg| leg.corrected), sum(|leg| leg.unsettled)),
            (counter, corrected, 0)
        );
        if is_complete {
            assert_eq!((counter, sum(|leg| leg.keys)), (counter, wanted.keys[counter]));
        }
        assert!(legs.iter().all(|leg| leg.dangling_keys.is_sorted()));
        let dangling = legs.iter().flat_map(|leg| &leg.dangling_keys);
        let dangling: BTreeSet<String> = dangling.map(|key| id(counter).show(key)).collect();
        assert_eq!((counter, &dangling), (counter, &self.dangling(counter)));
        assert_eq!(sum(|leg| leg.dangling), dangling.len() as u64);
    }

    /// The memberships whose show has no row.
    fn dangling(&self, counter: &'static str) -> BTreeSet<String> {
        let exists = |show: &i64| {
            self.rows.iter().any(|row| matches!(row, Row::Show { id, .. } if id == show))
        };
        let dangling = self.rows.iter().filter_map(|row| match row {
            Row::Setlist { id, show: Some(show) } if !exists(show) => Some(format!("{id},{show}")),
            _ => None,
        });
        let is_told = self.backend.knows_parents() && counter == "setlist.show";
        dangling.filter(|key| is_told && self.case.compares(&(counter, key.clone()))).collect()
    }
}

/// The counter of this name.
pub fn id(name: &str) -> CounterId {
    SCHEMA.counters().iter().map(CounterSpec::id).find(|id| id.name() == name).unwrap()
}

/// The drifts of some reports, each key once and in order.
fn found(reports: &[Report]) -> BTreeMap<Name, (i128, i128)> {
    let mut all = BTreeMap::new();
    for report in reports.iter().flat_map(|report| &report.counters) {
        assert!(report.samples.is_sorted_by(|one, next| one.key < next.key), "{report:?}");
        for sample in &report.samples {
            let name = (report.counter.name(), sample.key_text());
            let drift = (sample.stored.into(), sample.expected.into());
            assert_eq!(all.insert(name, drift), None, "{sample:?} comes twice");
        }
    }
    all
}

fn kind(error: &Error) -> String {
    match error {
        Error::SourceEmpty { counter, totals } => format!("SourceEmpty {counter} {totals}"),
        Error::DriftLimit { counter, .. } => format!("DriftLimit {counter}"),
        Error::Overflow { counter, key, what } => format!("Overflow {counter} {key} {what}"),
        Error::DefinitionMismatch { counter, key, .. } => {
            format!("DefinitionMismatch {counter} {key}")
        }
        other => format!("{other:?}"),
    }
}
