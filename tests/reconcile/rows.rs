//! Rows of a memory audit in any order, added once for all counters that they count in.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::random::Random;
use crate::support::world::{World, run_whole};
use keepcount::reconcile::{
    GracePeriod, MemoryAudit, Mode, Options, Outcome, Report, SystemRuntime, repair, verify,
};
use keepcount::{Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, Record, Schema, Tally};

const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
const USER_STARS: Counter<String> = Counter::new("user.stars");
const TAG_SHOWS: Counter<String> = Counter::new("tag.shows");
const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table(), USER_STARS.table(), TAG_SHOWS.table()]);

/// The counters that votes add to, and those of shows.
const OF_VOTES: [CounterId; 2] = [SHOW_VOTES.id(), USER_STARS.id()];
const OF_SHOWS: [CounterId; 2] = [SHOW_VOTES.id(), TAG_SHOWS.id()];

#[derive(Debug, Clone)]
struct Vote {
    show: i64,
    user: String,
    stars: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
        to.add(USER_STARS, &self.user, self.stars);
    }
}

/// A show adds 1 to each of its tags and a vote to itself.
#[derive(Debug, Clone)]
struct Show(i64, &'static [&'static str]);

impl Record for Show {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.0, 1);
        for tag in self.1 {
            to.add(TAG_SHOWS, *tag, 1);
        }
    }
}

fn votes(random: &mut Random, count: u64) -> Vec<Vote> {
    let mut vote = |_| Vote {
        show: random.below(40_i64) - 20,
        user: format!("user {}", random.below(60)),
        stars: random.below(9_i64) - 4,
    };
    (0..count).map(&mut vote).collect()
}

fn shows() -> [Show; 3] {
    [Show(3, &["rock", "live"]), Show(-9, &[]), Show(100, &["live"])]
}

/// A store in which some totals are wrong, missing or orphans.
fn drifted(random: &mut Random, votes: &[Vote]) -> MemoryStore {
    let store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    votes.iter().filter(|_| random.below(5) > 0).for_each(|vote| batch.insert(vote));
    batch.add(SHOW_VOTES, 1_000, 4);
    batch.add(USER_STARS, "nobody", 1);
    store.begin(&mut batch).unwrap().commit().unwrap();
    store
}

/// An audit of the same rows in key order, with one source for each counter.
fn sorted<'a>(store: &'a mut MemoryStore, votes: &'a [Vote]) -> MemoryAudit<'a> {
    let (mut by_show, mut by_user) = (votes.to_vec(), votes.to_vec());
    by_show.extend(shows().map(|show| Vote { show: show.0, user: "not read".into(), stars: 0 }));
    by_show.sort_by_key(|vote| vote.show);
    by_user.sort_by_key(|vote| KeyBuf::of::<String>(&vote.user));
    let mut by_tag: Vec<Show> =
        shows().iter().flat_map(|show| show.1.chunks(1).map(|tag| Show(show.0, tag))).collect();
    by_tag.sort_by_key(|show| show.1);
    let mut audit = MemoryAudit::new(store);
    audit.add(SHOW_VOTES, move |_| by_show.clone()).unwrap();
    audit.add(USER_STARS, move |_| by_user.clone()).unwrap();
    audit.add(TAG_SHOWS, move |_| by_tag.clone()).unwrap();
    audit
}

fn add_rows<'a>(audit: &mut MemoryAudit<'a>, votes: &'a [Vote]) {
    audit.rows(&OF_VOTES, || votes.iter()).unwrap();
    audit.rows(&OF_SHOWS, shows).unwrap();
}

/// Beside writers, a repair reads the keys of one counter together and those of the other alone.
#[test]
fn sorted_rows_of_one_counter_and_rows_in_any_order_of_another_are_repaired_side_by_side() {
    let votes = votes(&mut Random(1), 150);
    let store = drifted(&mut Random(1), &votes);
    let mut by_show = votes.clone();
    by_show.sort_by_key(|vote| vote.show);
    let grace_period = GracePeriod::after(Duration::from_secs(10));
    let audit = &mut MemoryAudit::live(&store, grace_period, SystemRuntime::new());
    audit.add(SHOW_VOTES, |_| by_show.iter()).unwrap();
    audit.rows(&[USER_STARS.id()], || votes.iter()).unwrap();
    repair(&SCHEMA).counters(&OF_VOTES).run(audit).unwrap();
    let mut right = Batch::new();
    right.insert(&votes);
    let exact = MemoryStore::new(&SCHEMA);
    exact.apply(&mut right).unwrap();
    assert_eq!(store.totals(SHOW_VOTES).unwrap(), exact.totals(SHOW_VOTES).unwrap());
    assert_eq!(store.totals(USER_STARS).unwrap(), exact.totals(USER_STARS).unwrap());
}

#[test]
fn rows_in_any_order_are_reported_and_repaired_as_sorted_ones_are() {
    for seed in 0..20 {
        let random = &mut Random(seed);
        let votes = votes(random, 150);
        for page in [1, 2, 7, 1_000] {
            for mode in [Mode::Verify, Mode::Repair] {
                let options = Options::default().page(page).samples(1_000);
                let mut store = drifted(&mut Random(seed), &votes);
                let wanted: Report =
                    run_whole(mode, &SCHEMA, options, &mut sorted(&mut store, &votes)).unwrap();
                let totals = store.totals(SHOW_VOTES).unwrap();
                let check = |kind: &str, report: Report, store: &MemoryStore| {
                    let what = format!("seed {seed}, page {page}, {mode}, {kind}");
                    assert!(wanted.drift() > 3, "{what}");
                    // A show is one row here, and one row for each of its tags in the sorted
                    // source.
                    let without_rows = |report: &Report| {
                        report.table().to_string().split("; ").next().map(str::to_owned)
                    };
                    assert_eq!(without_rows(&report), without_rows(&wanted), "{what}");
                    assert_eq!(
                        (report.outcome, report.pages),
                        (Outcome::Complete, wanted.pages),
                        "{what}"
                    );
                    assert_eq!(store.totals(SHOW_VOTES).unwrap(), totals, "{what}");
                };
                let mut alone = drifted(&mut Random(seed), &votes);
                let mut audit = MemoryAudit::new(&mut alone);
                add_rows(&mut audit, &votes);
                let report = run_whole(mode, &SCHEMA, options, &mut audit).unwrap();
                drop(audit);
                check("alone", report, &alone);
                let beside = drifted(&mut Random(seed), &votes);
                let grace_period = GracePeriod::after(Duration::from_secs(1));
                let mut audit = MemoryAudit::live(&beside, grace_period, SystemRuntime::new());
                add_rows(&mut audit, &votes);
                check("live", run_whole(mode, &SCHEMA, options, &mut audit).unwrap(), &beside);
                if mode == Mode::Verify {
                    let mut audit =
                        MemoryAudit::watching(&beside, Duration::from_secs(1), World::default());
                    add_rows(&mut audit, &votes);
                    check(
                        "watching",
                        run_whole(mode, &SCHEMA, options, &mut audit).unwrap(),
                        &beside,
                    );
                }
            }
        }
    }
}

#[test]
fn rows_are_read_once_for_each_page_and_once_for_each_repair_of_256_keys() {
    let votes: Vec<Vote> = (0..600).map(|show| Vote { show, user: "u".into(), stars: 1 }).collect();
    for live in [false, true] {
        // A repair probes both counters, which reads up to the first row. Then it compares 600 keys
        // in pages of 300, repairs each page in two requests, and compares and repairs one key.
        for (mode, beyond_pages) in [(Mode::Verify, 0), (Mode::Repair, 2 + 4 + 1)] {
            let (mut alone, beside) = (MemoryStore::new(&SCHEMA), MemoryStore::new(&SCHEMA));
            let reads = Cell::new(0);
            let mut audit = if live {
                MemoryAudit::live(
                    &beside,
                    GracePeriod::after(Duration::from_secs(1)),
                    SystemRuntime::new(),
                )
            } else {
                MemoryAudit::new(&mut alone)
            };
            let rows = || {
                reads.set(reads.get() + 1);
                votes.iter().rev()
            };
            audit.rows(&OF_VOTES, rows).unwrap();
            let of = keepcount::reconcile::Run::new(mode, &SCHEMA).counters(&OF_VOTES);
            let report = of.options(Options::default().page(300)).run(&mut audit).unwrap();
            assert_eq!((report.pages, report.drift()), (3, 601));
            // A live audit compares the differing keys of a page again, all in one read.
            let again = if live { 3 } else { 0 };
            assert_eq!(reads.get(), report.pages + beyond_pages + again, "{mode}, live: {live}");
        }
    }
}

#[test]
fn rows_of_several_records_add_up_and_a_sorted_source_replaces_them() {
    let mut store = MemoryStore::new(&SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit.rows(&OF_VOTES, || [Vote { show: 3, user: "u".into(), stars: 2 }]).unwrap();
    audit.rows(&OF_SHOWS, shows).unwrap();
    let expected = |audit: &mut MemoryAudit<'_>| -> BTreeMap<String, i64> {
        let report = verify(&SCHEMA).run(audit).unwrap();
        let samples = report.counters.iter().flat_map(|counter| &counter.samples);
        samples.map(|sample| (sample.key_text(), sample.expected)).collect()
    };
    let texts =
        |pairs: &[(&str, i64)]| pairs.iter().map(|(key, sum)| ((*key).to_owned(), *sum)).collect();
    assert_eq!(
        expected(&mut audit),
        texts(&[("-9", 1), ("100", 1), ("3", 2), ("live", 2), ("rock", 1), ("u", 2)])
    );
    audit.add(SHOW_VOTES, |_| [Show(5, &[])]).unwrap();
    assert_eq!(expected(&mut audit), texts(&[("5", 1), ("live", 2), ("rock", 1), ("u", 2)]));
    audit.rows(&OF_SHOWS, || [Show(6, &["live"])]).unwrap();
    assert_eq!(expected(&mut audit), texts(&[("6", 1), ("live", 3), ("rock", 1), ("u", 2)]));
    repair(&SCHEMA).run(&mut audit).unwrap();
    drop(audit);
    assert_eq!(store.total(TAG_SHOWS, "live").unwrap(), 3);
}

#[test]
fn rows_of_unknown_counters_and_unreadable_rows_are_errors() {
    const OTHER: Schema = Schema::new(&[TAG_SHOWS.table()]);
    const NEWER: Schema = Schema::new(&[SHOW_VOTES.version(2).table(), USER_STARS.table()]);
    let no_votes = Vec::<Vote>::new;
    let mut store = MemoryStore::new(&OTHER);
    let refused = MemoryAudit::new(&mut store).rows(&[], no_votes).unwrap_err();
    assert!(
        matches!(refused, Error::InvalidUse { .. }) && refused.to_string().contains("Vote"),
        "{refused}"
    );
    let refused = MemoryAudit::new(&mut store).rows(&OF_VOTES, no_votes).unwrap_err();
    assert!(matches!(refused, Error::UnknownCounter { .. }), "{refused}");
    let mut store = MemoryStore::new(&NEWER);
    let refused = MemoryAudit::new(&mut store).rows(&OF_VOTES, no_votes).unwrap_err();
    assert!(matches!(refused, Error::DefinitionConflict { .. }), "{refused}");

    let mut store = MemoryStore::new(&SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit
        .rows_fallible(&OF_SHOWS, || [Ok(shows()[0].clone()), Err("the line is not JSON".into())])
        .unwrap();
    let error = verify(&SCHEMA).counters(&[TAG_SHOWS.id()]).run(&mut audit).unwrap_err();
    assert_eq!(error.to_string(), "reading rows of counter tag.shows: the line is not JSON");
    // An intermediate sum leaves the range of `i64`, and the final sum is back inside it: only the
    // final sum matters.
    let big = |stars| Vote { show: 1, user: "u".into(), stars };
    audit.rows(&OF_VOTES, move || [big(i64::MAX), big(1), big(-2)]).unwrap();
    let report = verify(&SCHEMA).counters(&[USER_STARS.id()]).run(&mut audit).unwrap();
    assert_eq!(report.counters[0].samples[0].expected, i64::MAX - 1);
    audit.rows(&OF_VOTES, move || [big(2)]).unwrap();
    let error = verify(&SCHEMA).counters(&[USER_STARS.id()]).run(&mut audit).unwrap_err();
    assert!(matches!(error, Error::Overflow { what: "recount", .. }), "{error}");
}

#[test]
fn counter_named_twice_is_counted_once() {
    let mut store = MemoryStore::new(&SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit.rows(&[TAG_SHOWS.id(), TAG_SHOWS.id()], shows).unwrap();
    let report = verify(&SCHEMA).counters(&[TAG_SHOWS.id()]).run(&mut audit).unwrap();
    let sums: Vec<_> = report.counters[0]
        .samples
        .iter()
        .map(|sample| (sample.key_text(), sample.expected))
        .collect();
    assert_eq!(sums, [("live".to_owned(), 2), ("rock".to_owned(), 1)]);
}
