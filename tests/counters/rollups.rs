//! Rollups of three levels equal a recount of rows by nested loops, in both stores: after moves,
//! cascades and savepoints. A verify reports the drift of every level, and a repair removes it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::rollups::cases::{Case, Op, act, case, change, op, write};
use crate::support::rollups::shapes::{Shape, check_shape};
use crate::support::rollups::subjects::{Memory, Sqlite, Subject, dump, update_by_hand};
use crate::support::rollups::{
    self, ARTIST_DAYS, Change, Found, Model, Name, Part, Row, Rows, SCHEMA, SETLIST_VOTES,
    SHOW_VOTES, add_by_name, batch_of, billing, membership, totals_of, votes,
};
use crate::support::world::through_text;
use keepcount::backend::{CounterSpec, RollupUpdate};
use keepcount::reconcile::{Mode, Options, Reconciler, Report};
use keepcount::sql::{self, Dialect};
use keepcount::{
    Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, Schema, Snapshot, SqliteStore, Store,
};
use proptest::collection::vec;
use proptest::prelude::*;
use rusqlite::Connection;

const ROLLUPS: [&str; 4] = ["show.votes", "show.days", "artist.votes", "artist.days"];

fn check_hooks<S: Subject>(case: &Case) {
    let (mut subject, mut model) = (S::new(), Model::default());
    for op in &case.ops {
        act(op, &mut subject, &mut model);
        assert_eq!(subject.totals(), model.rows.recount(), "after {op:?}");
    }
    let verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default().page(case.page));
    let report = subject.reconcile(&mut verify.unwrap(), case.by_tally);
    assert_eq!((report.drift(), report.complete()), (0, true), "{report}");
}

fn found(report: &Report) -> Vec<Found> {
    report.counters.iter().map(Found::of).collect()
}

fn expected(model: &Model, counters: &[CounterId], samples: usize) -> Vec<Found> {
    counters.iter().map(|id| model.expected(id.name(), samples)).collect()
}

/// What a repair of these counters must find: each counter is compared after the levels below it
/// were repaired.
fn repaired(model: &mut Model, scope: &[CounterId], samples: usize) -> Vec<Found> {
    let mut in_order = scope.to_vec();
    in_order.sort_by_key(|id| (SCHEMA.level(id), id.name()));
    let mut all: Vec<Found> = in_order
        .iter()
        .map(|id| {
            let found = model.expected(id.name(), samples);
            model.repair(id.name());
            found
        })
        .collect();
    all.sort_by_key(|found| found.counter);
    all
}

/// A repair of everything finds each level's drift after the levels below it are right. A scoped
/// repair includes the levels below and leaves the other counters.
fn check_whole<S: Subject>(case: &Case) {
    let (mut subject, mut model) = planted::<S>(case);
    let options = Options::default().page(case.page).samples(case.samples);
    let all = SCHEMA.by_name();
    let report = subject
        .reconcile(&mut Reconciler::new(Mode::Verify, &SCHEMA, options).unwrap(), case.by_tally);
    assert_eq!(found(&report), expected(&model, &all, case.samples), "a verify of everything");

    let rollup = SCHEMA.find(ROLLUPS[case.scope]).unwrap();
    let mut scope = vec![rollup];
    let mut at = 0;
    while let Some(id) = scope.get(at) {
        let sums = SCHEMA.spec(id).unwrap().rollup();
        scope.extend(sums.into_iter().flat_map(|rollup| [rollup.base(), rollup.membership()]));
        at += 1;
    }
    let mut verify = Reconciler::scoped(Mode::Verify, &SCHEMA, &[rollup], options).unwrap();
    let report = subject.reconcile(&mut verify, case.by_tally);
    let in_scope: Vec<CounterId> = all.iter().filter(|id| scope.contains(id)).copied().collect();
    assert_eq!(
        found(&report),
        expected(&model, &in_scope, case.samples),
        "a verify of a rollup and what is below it"
    );
    let clean = report.counters.iter().find(|found| found.counter == rollup).unwrap().clean;
    assert_eq!(clean, report.drift() == 0, "a rollup is clean if all that it sums is clean");
    assert_eq!(subject.totals(), model.stored, "a verify writes nothing");
    let repair = Reconciler::scoped(Mode::Repair, &SCHEMA, &[rollup], options);
    let report = subject.reconcile(&mut repair.unwrap(), case.by_tally);
    assert_eq!(
        found(&report),
        repaired(&mut model, &scope, case.samples),
        "a repair of a rollup and what is below it"
    );
    assert_eq!(subject.totals(), model.stored, "a scoped repair leaves the others' drift");
    let true_totals = model.rows.recount();
    for (name, drift) in rollups::difference(&model.stored, &true_totals) {
        assert!(
            scope.iter().all(|id| id.name() != name.0),
            "{name:?} is off the rows by {drift} after its repair"
        );
    }

    let report = subject
        .reconcile(&mut Reconciler::new(Mode::Repair, &SCHEMA, options).unwrap(), !case.by_tally);
    assert_eq!(found(&report), repaired(&mut model, &all, case.samples), "a repair of everything");
    assert_eq!(
        report.counters.iter().map(|counter| counter.corrected).sum::<u64>(),
        report.drift()
    );
    assert_eq!(subject.totals(), true_totals, "every level equals the rows");
}

fn planted<S: Subject>(case: &Case) -> (S, Model) {
    let (mut subject, mut model) = (S::new(), Model::default());
    for op in &case.ops {
        let drift = model.drift();
        act(op, &mut subject, &mut model);
        assert_eq!(subject.totals(), model.stored, "after {op:?}");
        if matches!(op, Op::Write { .. } | Op::Nested { .. }) {
            assert_eq!(model.drift(), drift, "{op:?} changed the drift");
        }
    }
    (subject, model)
}

/// A repair that stops after some pages and resumes by its token, again and again, with hooked
/// writes in between.
fn check_in_legs<S: Subject>(case: &Case) {
    let (mut subject, mut model) = planted::<S>(case);
    let drifting = model.drift().len() as u64;
    let limits = Options::default().max_pages(case.leg);
    let mut reconciler = Reconciler::new(Mode::Repair, &SCHEMA, limits.page(case.page)).unwrap();
    let (mut drift, mut corrected, mut between) = (0, 0, case.between.iter());
    loop {
        let report = subject.reconcile(&mut reconciler, case.by_tally);
        drift += report.drift();
        corrected += report.counters.iter().map(|counter| counter.corrected).sum::<u64>();
        assert_eq!(report.complete(), report.token.is_none(), "{report}");
        let Some(token) = report.token else { break };
        if let Some(changes) = between.next() {
            act(&Op::Write { changes: changes.clone(), commit: true }, &mut subject, &mut model);
        }
        reconciler =
            Reconciler::resume(Mode::Repair, &SCHEMA, &through_text(&token), limits).unwrap();
    }
    assert_eq!(
        (drift, corrected),
        (drifting, drifting),
        "each key with drift is reported and repaired once"
    );
    assert_eq!(subject.totals(), model.rows.recount(), "every level equals the rows");
    let verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default());
    assert_eq!(subject.reconcile(&mut verify.unwrap(), !case.by_tally).drift(), 0);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn on_sqlite_every_level_equals_the_rows_after_every_write(case in case(write())) {
        check_hooks::<Sqlite>(&case);
    }

    #[test]
    fn in_memory_every_level_equals_the_rows_after_every_write(case in case(write())) {
        check_hooks::<Memory>(&case);
    }

    #[test]
    fn on_sqlite_drift_at_every_level_is_reported_as_defined_and_repaired(case in case(op())) {
        check_whole::<Sqlite>(&case);
    }

    #[test]
    fn in_memory_drift_at_every_level_is_reported_as_defined_and_repaired(case in case(op())) {
        check_whole::<Memory>(&case);
    }

    #[test]
    fn on_sqlite_repair_in_legs_with_writes_between_makes_every_level_exact(case in case(op())) {
        check_in_legs::<Sqlite>(&case);
    }

    #[test]
    fn in_memory_repair_in_legs_with_writes_between_makes_every_level_exact(case in case(op())) {
        check_in_legs::<Memory>(&case);
    }

    #[test]
    fn rollup_update_driven_by_hand_leaves_the_same_tables_as_the_store(case in case(op())) {
        let (mut subject, mut rows) = (Sqlite::new(), Rows::default());
        let other = Connection::open_in_memory().unwrap();
        for text in sql::ddl(Dialect::Sqlite, &SCHEMA) {
            other.execute_batch(&text).unwrap();
        }
        for op in &case.ops {
            let mut batch = Batch::new();
            match op {
                Op::Write { changes, .. } => {
                    for change in changes {
                        let (old, new) = rows.change(change);
                        batch.update(&old, &new);
                    }
                }
                Op::Plant(
                    Name("show.votes" | "show.days" | "artist.votes" | "artist.days", _),
                    _,
                ) => continue,
                Op::Plant(name, total) => add_by_name(&mut batch, name, total.unwrap_or(-1)),
                _ => continue,
            }
            subject.store().apply(&mut batch.clone()).unwrap();
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            update_by_hand(&other, &batch);
            other.execute_batch("COMMIT").unwrap();
            prop_assert_eq!(dump(&subject.0), dump(&other), "after {:?}", op);
        }
        prop_assert_eq!(subject.totals(), totals_of(&mut SqliteStore::new(&other, &SCHEMA)));
    }

    #[test]
    fn memory_store_with_rollups_survives_a_snapshot_and_restore(
        case in case(op()), more in vec(change(), 0..6)
    ) {
        let (mut subject, mut model) = planted::<Memory>(&case);
        let json = serde_json::to_string(&subject.store.snapshot()).unwrap();
        let snapshot = serde_json::from_str::<Snapshot>(&json).unwrap();
        let restored = MemoryStore::restore(&SCHEMA, &snapshot).unwrap();
        prop_assert_eq!(restored.snapshot(), subject.store.snapshot());
        subject.store = restored;
        prop_assert_eq!(&subject.totals(), &model.stored);
        act(&Op::Write { changes: more, commit: true }, &mut subject, &mut model);
        prop_assert_eq!(&subject.totals(), &model.stored);
    }
}

/// Runs a check on fresh stores: in memory, in SQLite, and in SQLite inside a caller's transaction.
fn on_both(
    schema: &'static Schema,
    check: impl Fn(&mut dyn FnMut(&mut Batch) -> keepcount::Result<()>, &dyn Fn() -> Vec<i64>),
    reads: &[(CounterId, KeyBuf)],
) {
    let memory = MemoryStore::new(schema);
    let read = |store: &mut dyn FnMut(CounterId, &KeyBuf) -> i64| {
        reads.iter().map(|(id, key)| store(*id, key)).collect()
    };
    check(&mut |batch| memory.apply(batch).map(drop), &|| {
        read(&mut |id, key| (&memory).read_keys(id, std::slice::from_ref(key)).unwrap()[0])
    });
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, schema).create().unwrap();
    let read_all = || {
        read(&mut |id, key| {
            SqliteStore::new(&conn, schema).read_keys(id, std::slice::from_ref(key)).unwrap()[0]
        })
    };
    check(&mut |batch| SqliteStore::new(&conn, schema).apply(batch).map(drop), &read_all);
    // Inside a caller's transaction, which goes on after a refusal.
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, schema).create().unwrap();
    conn.execute_batch("BEGIN").unwrap();
    let read_all = || {
        read(&mut |id, key| {
            SqliteStore::new(&conn, schema).read_keys(id, std::slice::from_ref(key)).unwrap()[0]
        })
    };
    check(&mut |batch| SqliteStore::new(&conn, schema).apply(batch).map(drop), &read_all);
    conn.execute_batch("COMMIT").unwrap();
}

/// A description, the deltas, and the counter and the amount that leave 64 bits.
type Refused = (&'static str, Vec<(Name, i64)>, &'static str, &'static str);

#[test]
fn overflow_at_a_higher_level_refuses_the_whole_batch() {
    let most = i64::MAX;
    let base = [
        (votes(1), most - 5),
        (votes(2), 5),
        (membership(1, "a"), 1),
        (membership(2, "b"), 1),
        (billing("a", 7), 1),
    ];
    let refused: [Refused; 6] = [
        ("a sum at level 2", vec![(billing("b", 7), 2)], "artist.votes", "total"),
        ("the same by votes", vec![(votes(1), 6)], "setlist.votes", "total"),
        ("a product at level 1", vec![(membership(1, "b"), 3)], "show.votes", "delta"),
        ("a product at level 2", vec![(billing("a", 8), -3)], "artist.votes", "delta"),
        ("a sum at level 1", vec![(membership(2, "a"), 2)], "show.votes", "total"),
        (
            "both sides at once",
            vec![(votes(3), 1 << 40), (membership(3, "c"), 1 << 40)],
            "show.votes",
            "delta",
        ),
    ];
    let reads: Vec<(CounterId, KeyBuf)> = [
        votes(1),
        votes(2),
        votes(3),
        votes(9),
        membership(1, "a"),
        membership(2, "a"),
        membership(3, "c"),
        membership(9, "z"),
        billing("b", 7),
        billing("a", 8),
    ]
    .into_iter()
    .chain(["a", "b", "c", "z"].map(|show| Name("show.votes", vec![Part::Text(show.to_owned())])))
    .chain([7, 8].map(|artist| Name("artist.votes", vec![Part::Int(artist)])))
    .map(|name| (SCHEMA.find(name.0).unwrap(), name.key()))
    .collect();
    for (what, changes, counter, sum) in &refused {
        on_both(
            &SCHEMA,
            |apply, read| {
                apply(&mut batch_of(&base)).unwrap();
                let before = read();
                // Other deltas of the batch are written before the refused one, and would
                // propagate.
                let others = [(votes(9), 4), (membership(9, "z"), 1), (billing("z", 8), 2)];
                let whole = [&others, changes.as_slice()].concat();
                for batch in [batch_of(changes), batch_of(&whole)] {
                    match apply(&mut batch.clone()) {
                        Err(Error::Overflow { counter: of, what: left, .. }) => {
                            assert_eq!((of, left), (*counter, *sum), "{what}");
                        }
                        other => panic!("{what}: {other:?}"),
                    }
                    assert_eq!(read(), before, "{what}");
                }
                apply(&mut batch_of(&others)).unwrap();
                apply(&mut batch_of(&others.clone().map(|(name, amount)| (name, -amount))))
                    .unwrap();
                assert_eq!(read(), before, "{what}: afterwards");
            },
            &reads,
        );
    }
}

#[test]
fn partial_sums_beyond_128_bits_never_give_a_wrong_total() {
    // 3 * 2^126 up and 3 * 2^126 down at one show: exactly 0, or refused.
    let least = i64::MIN;
    let memberships: Vec<(Name, i64)> = (0..9).map(|at| (membership(at, "a"), least)).collect();
    let up = (0..3).map(|at| (votes(at), least));
    let votes: Vec<(Name, i64)> = up.chain((3..9).map(|at| (votes(at), 1 << 62))).collect();
    let show = (SHOW_VOTES.id(), KeyBuf::of::<String>("a"));
    on_both(
        &SCHEMA,
        |apply, read| {
            apply(&mut batch_of(&memberships)).unwrap();
            let refused = apply(&mut batch_of(&votes));
            assert!(matches!(refused, Ok(()) | Err(Error::Overflow { .. })), "{refused:?}");
            assert_eq!(read(), [0]);
        },
        std::slice::from_ref(&show),
    );
    // 2 * 2^126 up, and as much down.
    let votes: Vec<(Name, i64)> =
        votes.into_iter().filter(|(name, _)| !matches!(name.1[0], Part::Int(2 | 7 | 8))).collect();
    on_both(
        &SCHEMA,
        |apply, read| {
            apply(&mut batch_of(&memberships)).unwrap();
            drop(apply(&mut batch_of(&votes)));
            assert_eq!(read(), [0]);
        },
        &[show],
    );
}

/// 2 * 2^126 above 0 and as much below, of which each half alone leaves 127 bits.
fn check_recount_beyond_128_bits<S: Subject>() {
    let mut subject = S::new();
    for at in 0..6 {
        subject.plant(&membership(at, "a"), Some(i64::MIN));
        subject.plant(&votes(at), Some(if at < 2 { i64::MIN } else { 1 << 62 }));
    }
    let mut verify =
        Reconciler::scoped(Mode::Verify, &SCHEMA, &[SHOW_VOTES.id()], Options::default()).unwrap();
    // An error is allowed, a report with a wrong total is not.
    if let Ok(report) = catch_unwind(AssertUnwindSafe(|| subject.reconcile(&mut verify, false))) {
        let rollup = report.counters.iter().find(|found| found.counter == SHOW_VOTES.id()).unwrap();
        assert_eq!(rollup.drift(), 0, "{}", report.table());
    }
}

#[test]
fn in_memory_recount_with_partial_sums_beyond_128_bits_is_never_wrong() {
    check_recount_beyond_128_bits::<Memory>();
}

#[test]
fn on_sqlite_recount_with_partial_sums_beyond_128_bits_is_never_wrong() {
    check_recount_beyond_128_bits::<Sqlite>();
}

/// A repair whose propagation overflows either fails and changes no total, or makes every total
/// right.
fn check_repair_that_overflows<S: Subject>() {
    let show = Name("show.votes", vec![Part::Text("a".to_owned())]);
    let (mut subject, mut model) = (S::new(), Model::default());
    let rows = [
        Change::Put(1, Row::Vote { setlist: Some(1), weight: i64::MAX, day: None }),
        Change::Put(1, Row::Setlist { id: 1, show: Some("a".to_owned()) }),
    ];
    act(&Op::Write { changes: rows.to_vec(), commit: true }, &mut subject, &mut model);
    // The repair of the base total takes two steps of 64 bits. The first step still fits at the
    // level above.
    for (name, total) in [(votes(1), i64::MIN), (show, 0)] {
        subject.plant(&name, Some(total));
        model.set_total(&name, Some(total));
    }
    let mut repair = Reconciler::new(Mode::Repair, &SCHEMA, Options::default()).unwrap();
    let run = catch_unwind(AssertUnwindSafe(|| subject.reconcile(&mut repair, false)));
    if run.is_err() {
        assert_eq!(subject.totals(), model.stored, "a failed repair changed totals");
    } else {
        assert_eq!(subject.totals(), model.rows.recount());
    }
}

#[test]
fn in_memory_repair_that_overflows_at_a_higher_level_is_all_or_nothing() {
    check_repair_that_overflows::<Memory>();
}

#[test]
fn on_sqlite_repair_that_overflows_at_a_higher_level_is_all_or_nothing() {
    check_repair_that_overflows::<Sqlite>();
}

#[test]
fn add_to_a_rollup_is_refused() {
    for amount in [1, 0] {
        let mut batch = Batch::new();
        batch.add(SETLIST_VOTES, 1, 1);
        batch.add(ARTIST_DAYS, (1_i16, 2_i8), amount);
        on_both(
            &SCHEMA,
            |apply, read| {
                assert!(matches!(
                    apply(&mut batch.clone()),
                    Err(Error::Rollup { counter: "artist.days", .. })
                ));
                assert_eq!(read(), [0]);
            },
            &[(SETLIST_VOTES.id(), KeyBuf::of::<i64>(1))],
        );
        assert!(matches!(
            sql::apply(Dialect::Sqlite, &SCHEMA, &batch),
            Err(Error::Rollup { counter: "artist.days", .. })
        ));
        assert!(matches!(
            RollupUpdate::new(&SCHEMA, &batch),
            Err(Error::Rollup { counter: "artist.days", .. })
        ));
    }
    for feeds in [votes(1), membership(1, "a"), billing("a", 1)] {
        let batch = batch_of(&[(feeds.clone(), 1)]);
        let refused = sql::apply(Dialect::Sqlite, &SCHEMA, &batch);
        assert!(
            matches!(refused, Err(Error::Rollup { counter, .. }) if counter == feeds.0),
            "{refused:?}"
        );
    }
    assert_eq!(sql::apply(Dialect::Sqlite, &SCHEMA, &Batch::new()).unwrap(), []);
}

#[test]
fn schemas_with_invalid_rollups_panic() {
    const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("link");
    const A: Counter<i64> = Counter::new("a");
    const B: Counter<i64> = Counter::new("b").sum_of(A, MEMBERSHIP);
    let refuses = |what: &str, spec: Vec<CounterSpec>, says: &str| {
        let panic =
            catch_unwind(|| Schema::new(Box::leak(spec.into_boxed_slice()))).expect_err(what);
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .unwrap_or_else(|| panic.downcast_ref::<String>().unwrap());
        assert!(text.contains(says), "{what}: {text}");
    };
    let before = "membership before it";
    refuses("before its base", vec![MEMBERSHIP.table(), B.table(), A.table()], before);
    refuses("before its membership", vec![A.table(), B.table(), MEMBERSHIP.table()], before);
    refuses("without its membership", vec![A.table(), B.table()], before);
    let circle = Counter::<i64>::new("a").sum_of(B, MEMBERSHIP);
    refuses("a circle", vec![MEMBERSHIP.table(), circle.table(), B.table()], before);
    refuses("a circle, the other way", vec![MEMBERSHIP.table(), B.table(), circle.table()], before);
    let own = Counter::<i64>::new("a").sum_of(A, MEMBERSHIP);
    refuses("a sum of itself", vec![MEMBERSHIP.table(), own.table()], before);
    refuses(
        "another version of its base",
        vec![MEMBERSHIP.table(), A.version(2).table(), B.table()],
        before,
    );
    let summed = Counter::<(i64, i64)>::new("link")
        .sum_of_suffix(Counter::<(i64, i64)>::new("pairs"), Counter::new("other"));
    let other = Counter::<(i64, i64)>::new("other").table();
    let pairs = Counter::<(i64, i64)>::new("pairs").table();
    refuses(
        "a membership that is a rollup",
        vec![A.table(), pairs, other, summed.table(), B.table()],
        "cannot be a rollup",
    );
    let twice = "share a name";
    refuses("two of one name", vec![MEMBERSHIP.table(), A.table(), B.table(), B.table()], twice);
    refuses(
        "two definitions of one name",
        vec![MEMBERSHIP.table(), A.table(), Counter::<i64>::new("b").table(), B.table()],
        twice,
    );
    refuses(
        "two that fold alike",
        vec![Counter::<i64>::new("a.b").table(), Counter::<i64>::new("a_b").table()],
        "share a table",
    );
    refuses(
        "a prunable membership",
        vec![A.table(), MEMBERSHIP.table().prunable(), B.table()],
        "cannot be prunable",
    );
    refuses(
        "a prunable base without its time",
        vec![
            MEMBERSHIP.table(),
            pairs.prunable(),
            Counter::<i64>::new("s")
                .sum_of(
                    Counter::<(i64, i64)>::new("pairs"),
                    Counter::<((i64, i64), i64)>::new("far"),
                )
                .table(),
        ],
        before,
    );
}

const NUMBERS: [i64; 2] = [-1, 5];
const TEXTS: [&str; 2] = ["a", "a\0\u{1}"];

#[test]
fn child_and_parent_of_several_parts_are_summed() {
    const BASE: Counter<(i64, String)> = Counter::new("finer");
    const MEMBERSHIP: Counter<((i64, String), (String, i64))> = Counter::new("link");
    const SUM: Counter<(String, i64)> = Counter::new("sum").sum_of(BASE, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[BASE.table(), MEMBERSHIP.table(), SUM.table()]);
    check_shape(&Shape {
        schema: SCHEMA,
        rollup: SUM.id(),
        base: |batch, child, _, amount| batch.add(BASE, (NUMBERS[0], TEXTS[child]), amount),
        membership: |batch, child, parent, amount| {
            batch.add(
                MEMBERSHIP,
                ((NUMBERS[0], TEXTS[child]), (TEXTS[0], NUMBERS[parent])),
                amount,
            );
        },
        key: |parent, _| KeyBuf::of::<(String, i64)>((TEXTS[0], NUMBERS[parent])),
        sizes: [2, 2, 1],
    });
}

#[test]
fn suffix_of_several_parts_is_summed() {
    const BASE: Counter<(String, (i64, String))> = Counter::new("finer");
    const MEMBERSHIP: Counter<(String, i64)> = Counter::new("link");
    const SUM: Counter<(i64, (i64, String))> = Counter::new("sum").sum_of_suffix(BASE, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[MEMBERSHIP.table(), BASE.table(), SUM.table()]);
    check_shape(&Shape {
        schema: SCHEMA,
        rollup: SUM.id(),
        base: |batch, child, suffix, amount| {
            batch.add(BASE, (TEXTS[child], (NUMBERS[0], TEXTS[suffix])), amount);
        },
        membership: |batch, child, parent, amount| {
            batch.add(MEMBERSHIP, (TEXTS[child], NUMBERS[parent]), amount);
        },
        key: |parent, suffix| {
            KeyBuf::of::<(i64, (i64, String))>((NUMBERS[parent], (NUMBERS[0], TEXTS[suffix])))
        },
        sizes: [2, 2, 2],
    });
}

#[test]
fn a_parent_of_no_parts_is_the_grand_total() {
    const BASE: Counter<i64> = Counter::new("finer");
    const MEMBERSHIP: Counter<(i64, ())> = Counter::new("link");
    const SUM: Counter<()> = Counter::new("sum").sum_of(BASE, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[BASE.table(), MEMBERSHIP.table(), SUM.table()]);
    check_shape(&Shape {
        schema: SCHEMA,
        rollup: SUM.id(),
        base: |batch, child, _, amount| batch.add(BASE, NUMBERS[child], amount),
        membership: |batch, child, _, amount| batch.add(MEMBERSHIP, (NUMBERS[child], ()), amount),
        key: |_, _| KeyBuf::of::<()>(()),
        sizes: [2, 1, 1],
    });
}

#[test]
fn child_of_no_parts_is_summed() {
    const BASE: Counter<()> = Counter::new("finer");
    const MEMBERSHIP: Counter<((), i64)> = Counter::new("link");
    const SUM: Counter<i64> = Counter::new("sum").sum_of(BASE, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[BASE.table(), MEMBERSHIP.table(), SUM.table()]);
    check_shape(&Shape {
        schema: SCHEMA,
        rollup: SUM.id(),
        base: |batch, _, _, amount| batch.add(BASE, (), amount),
        membership: |batch, _, parent, amount| batch.add(MEMBERSHIP, ((), NUMBERS[parent]), amount),
        key: |parent, _| KeyBuf::of::<i64>(NUMBERS[parent]),
        sizes: [1, 2, 1],
    });
}

#[test]
fn membership_that_is_also_the_base_of_a_rollup_is_summed_along() {
    const BASE: Counter<(String, i64)> = Counter::new("finer");
    const MEMBERSHIP: Counter<(String, i64)> = Counter::new("link");
    const COUNT: Counter<(String, i64)> =
        Counter::new("count").sum_of_suffix(MEMBERSHIP, Counter::new("other"));
    const OTHER: Counter<(String, String)> = Counter::new("other");
    const SUM: Counter<(i64, i64)> = Counter::new("sum").sum_of_suffix(BASE, MEMBERSHIP);
    const SCHEMA: Schema =
        Schema::new(&[BASE.table(), MEMBERSHIP.table(), OTHER.table(), COUNT.table(), SUM.table()]);
    check_shape(&Shape {
        schema: SCHEMA,
        rollup: SUM.id(),
        base: |batch, child, suffix, amount| {
            batch.add(BASE, (TEXTS[child], NUMBERS[suffix]), amount);
            batch.add(OTHER, (TEXTS[child], TEXTS[suffix]), amount);
        },
        membership: |batch, child, parent, amount| {
            batch.add(MEMBERSHIP, (TEXTS[child], NUMBERS[parent]), amount);
        },
        key: |parent, suffix| KeyBuf::of::<(i64, i64)>((NUMBERS[parent], NUMBERS[suffix])),
        sizes: [2, 2, 2],
    });
}

#[test]
fn a_membership_summed_along_itself_is_right_or_refused() {
    const MEMBERSHIP: Counter<(String, i64)> = Counter::new("link");
    // How many children two parents share.
    const SUM: Counter<(i64, i64)> = Counter::new("sum").sum_of_suffix(MEMBERSHIP, MEMBERSHIP);
    let Ok(schema) =
        catch_unwind(|| Schema::new(Box::leak(Box::new([MEMBERSHIP.table(), SUM.table()]))))
    else {
        return;
    };
    let store = MemoryStore::new(&schema);
    let mut batch = Batch::new();
    batch.add(MEMBERSHIP, ("a", 1_i64), 1);
    batch.add(MEMBERSHIP, ("a", 2_i64), 1);
    if store.apply(&mut batch).is_ok() {
        assert_eq!(
            store.totals(SUM).unwrap(),
            [((1, 1), 1), ((1, 2), 1), ((2, 1), 1), ((2, 2), 1)]
        );
    }
}

/// The compiler gives up on a constant that takes more than two million steps. The check of a
/// schema compared each counter with each other one, byte by byte.
#[test]
fn a_schema_of_hundreds_of_counters_compiles() {
    macro_rules! row {
        ($first:literal: $($second:literal)*) => {
            [$(Counter::<i64>::new(concat!("counter.", $first, ".", $second)).table()),*]
        };
    }
    macro_rules! rows {
        ($($first:literal)*) => {
            [$(row!(
                $first: "a" "b" "c" "d" "e" "f" "g" "h" "i" "j"
                "k" "l" "m" "n" "o" "p" "q" "r" "s" "t"
            )),*]
        };
    }
    static ROWS: [[CounterSpec; 20]; 20] =
        rows!("a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m" "n" "o" "p" "q" "r" "s" "t");
    const LARGE: Schema = Schema::new(ROWS.as_flattened());
    assert_eq!(LARGE.counters().len(), 400);
    assert_eq!(LARGE.position(&Counter::<i64>::new("counter.t.t").id()).unwrap(), 399);
}

fn leaked(name: String) -> &'static str {
    Box::leak(name.into_boxed_str())
}

type Link = Counter<(i64, i64)>;

/// A chain of this many rollups, each along a membership of its own.
fn chain(levels: usize) -> (Schema, Vec<Counter<i64>>, Vec<Link>) {
    let mut votes = vec![Counter::<i64>::new("votes.0")];
    let (mut memberships, mut spec) = (Vec::new(), vec![votes[0].table()]);
    for level in 1..=levels {
        let membership = Link::new(leaked(format!("membership.{level}")));
        let rollup =
            Counter::new(leaked(format!("votes.{level}"))).sum_of(votes[level - 1], membership);
        spec.extend([membership.table(), rollup.table()]);
        memberships.push(membership);
        votes.push(rollup);
    }
    (Schema::new(Box::leak(spec.into_boxed_slice())), votes, memberships)
}

/// A chain of 400 levels took half a minute to compile, and 149 ms for each vote.
#[test]
fn chain_of_64_levels_propagates_and_a_longer_one_is_refused() {
    let (schema, votes, memberships) = chain(64);
    assert_eq!((schema.level(&votes[0].id()), schema.level(&memberships[63].id())), (0, 0));
    assert_eq!((schema.level(&votes[1].id()), schema.level(&votes[64].id())), (1, 64));
    let conn = Connection::open_in_memory().unwrap();
    let (memory, mut sqlite) = (MemoryStore::new(&schema), SqliteStore::new(&conn, &schema));
    sqlite.create().unwrap();
    let mut batch = Batch::new();
    batch.add(votes[0], 1, 5);
    for membership in &memberships {
        batch.add(*membership, (1_i64, 1_i64), 1);
    }
    memory.apply(&mut batch.clone()).unwrap();
    sqlite.apply(&mut batch).unwrap();
    for counter in &votes {
        assert_eq!(
            (memory.total(*counter, 1).unwrap(), sqlite.total(*counter, 1).unwrap()),
            (5, 5)
        );
    }
    let panic = catch_unwind(|| chain(65)).expect_err("a chain of 65 levels");
    let text = panic.downcast_ref::<&str>().unwrap();
    assert_eq!(*text, "a rollup has at most 64 levels: its base is at level 64 already");
}

/// A rollup's handle knows its level. A handle of the same name that sums nothing is another
/// declaration.
#[test]
fn rollup_of_a_handle_that_differs_from_the_schema_is_refused() {
    const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("link");
    let (a, b) = (Counter::<i64>::new("a"), Counter::<i64>::new("b"));
    let spec = [
        MEMBERSHIP.table(),
        a.table(),
        b.sum_of(a, MEMBERSHIP).table(),
        Counter::<i64>::new("c").sum_of(b, MEMBERSHIP).table(),
    ];
    let panic = catch_unwind(|| Schema::new(Box::leak(Box::new(spec)))).expect_err("a bare handle");
    assert!(panic.downcast_ref::<&str>().unwrap().contains("as the rollup declares it"));
}
