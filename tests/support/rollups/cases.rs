//! Random writes to the rows, drift planted at every level, and the parameters of the runs that
//! check it.

use keepcount::Batch;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

use super::subjects::Subject;
use super::{Change, Model, Name, Part, Row, Rows};

#[derive(Debug, Clone)]
pub enum Op {
    Write {
        changes: Vec<Change>,
        commit: bool,
    },
    /// A write with a savepoint that has its own batch, which is merged, applied inside the
    /// savepoint, or dropped.
    Nested {
        outer: Vec<Change>,
        inner: Vec<Change>,
        early: bool,
        release: bool,
        commit: bool,
    },
    /// Changes rows without hooks.
    Sabotage(Change),
    /// Sets a total of any level without a hook. None deletes its row.
    Plant(Name, Option<i64>),
}

#[derive(Debug, Clone)]
pub struct Case {
    pub ops: Vec<Op>,
    pub page: usize,
    pub samples: usize,
    /// The number of pages of one run.
    pub leg: u64,
    /// Hooked writes between the runs of a repair.
    pub between: Vec<Vec<Change>>,
    pub by_tally: bool,
    /// The rollup that a scoped run names.
    pub scope: usize,
}

fn setlist() -> impl Strategy<Value = i64> {
    prop_oneof![4 => 0..3_i64, 1 => Just(-1), 1 => Just(i64::MIN)]
}

fn show() -> impl Strategy<Value = String> {
    prop_oneof!["a", "", "a\0", "\u{1}"].prop_map(|show: String| show.clone())
}

fn artist() -> impl Strategy<Value = i16> {
    prop_oneof![4 => 0..2_i16, 1 => Just(i16::MIN), 1 => Just(-1)]
}

fn day() -> impl Strategy<Value = i8> {
    prop_oneof![Just(i8::MIN), Just(-1), Just(0), Just(3)]
}

fn amount() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -2..=3_i64, 1 => Just(1 << 40), 1 => Just(-(1 << 41))]
}

fn row() -> impl Strategy<Value = (i64, Row)> {
    prop_oneof![
        3 => (0..6_i64, weighted(0.9, setlist()), amount(), weighted(0.8, day()))
            .prop_map(|(id, setlist, weight, day)| (id, Row::Vote { setlist, weight, day })),
        3 => (setlist(), weighted(0.8, show())).prop_map(|(id, show)| (id, Row::Setlist { id, show })),
        3 => (0..5_i64, show(), weighted(0.8, artist()), prop_oneof![4 => Just(1_i64), 1 => -1..=2_i64])
            .prop_map(|(id, show, artist, share)| (id, Row::Billing { show, artist, share })),
    ]
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        9 => row().prop_map(|(id, row)| Change::Put(id, row)),
        2 => (0..6_i64).prop_map(Change::DropVote),
        1 => setlist().prop_map(Change::DropSetlist),
        1 => (0..5_i64).prop_map(Change::DropBilling),
        1 => show().prop_map(Change::DropShow),
        1 => artist().prop_map(Change::DropArtist),
        1 => (setlist(), weighted(0.8, setlist())).prop_map(|(from, to)| Change::MoveVotes(from, to)),
        1 => (show(), weighted(0.8, show())).prop_map(|(from, to)| Change::MoveSetlists(from, to)),
        1 => (artist(), weighted(0.8, artist())).prop_map(|(from, to)| Change::MoveBillings(from, to)),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    let int = |value: i64| Part::Int(value);
    prop_oneof![
        setlist().prop_map(move |id| Name("setlist.votes", vec![int(id)])),
        (setlist(), day())
            .prop_map(move |(id, day)| Name("setlist.days", vec![int(id), int(day.into())])),
        (setlist(), show())
            .prop_map(move |(id, show)| Name("setlist.show", vec![int(id), Part::Text(show)])),
        (show(), artist()).prop_map(move |(show, by)| Name(
            "show.artist",
            vec![Part::Text(show), int(by.into())]
        )),
        show().prop_map(|show| Name("show.votes", vec![Part::Text(show)])),
        (show(), day()).prop_map(move |(show, day)| Name(
            "show.days",
            vec![Part::Text(show), int(day.into())]
        )),
        artist().prop_map(move |by| Name("artist.votes", vec![int(by.into())])),
        (artist(), day())
            .prop_map(move |(by, day)| Name("artist.days", vec![int(by.into()), int(day.into())])),
    ]
}

pub fn write() -> impl Strategy<Value = Op> {
    let changes = || vec(change(), 0..6);
    prop_oneof![
        3 => (changes(), weighted(0.8, Just(()))).prop_map(|(changes, commit)| Op::Write { changes, commit: commit.is_some() }),
        2 => (changes(), changes(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(outer, inner, early, release, commit)| Op::Nested { outer, inner, early, release, commit }),
    ]
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => write(),
        1 => change().prop_map(Op::Sabotage),
        // Includes memberships of 2 and -1, and memberships and totals without rows.
        3 => (name(), weighted(0.8, -1..=2_i64), any::<bool>()).prop_map(|(name, total, split)| {
            let split = split && !matches!(name.0, "setlist.show" | "show.artist");
            Op::Plant(name, total.map(|total| if split { total << 40 } else { total }))
        }),
    ]
}

pub fn case(op: impl Strategy<Value = Op>) -> impl Strategy<Value = Case> {
    let page = prop_oneof![Just(1_usize), Just(3), Just(1000)];
    (
        vec(op, 0..12),
        page,
        0..6_usize,
        1..5_u64,
        vec(vec(change(), 0..3), 0..6),
        any::<bool>(),
        0..4_usize,
    )
        .prop_map(|(ops, page, samples, leg, between, by_tally, scope)| Case {
            ops,
            page,
            samples,
            leg,
            between,
            by_tally,
            scope,
        })
}

fn apply_to(rows: &mut Rows, changes: &[Change]) {
    for change in changes {
        rows.change(change);
    }
}

pub fn act(op: &Op, subject: &mut impl Subject, model: &mut Model) {
    match op {
        Op::Write { changes, commit } => {
            let (mut batch, mut rows) = (Batch::new(), model.rows.clone());
            subject.begin();
            subject.write(changes, &mut batch);
            apply_to(&mut rows, changes);
            subject.end(&batch, *commit);
            if *commit {
                model.hooked(rows);
            }
        }
        Op::Nested { outer, inner, early, release, commit } => {
            let (mut batch, mut inside, mut rows) =
                (Batch::new(), Batch::new(), model.rows.clone());
            subject.begin();
            subject.write(outer, &mut batch);
            apply_to(&mut rows, outer);
            subject.savepoint();
            subject.write(inner, &mut inside);
            let applied = *early && subject.apply_inside(&inside);
            subject.leave_savepoint(*release);
            if *release {
                apply_to(&mut rows, inner);
                if !applied {
                    batch.merge(&mut inside);
                }
            }
            subject.end(&batch, *commit);
            if *commit {
                model.hooked(rows);
            }
        }
        Op::Sabotage(change) => {
            subject.change(change);
            model.rows.change(change);
        }
        Op::Plant(name, total) => {
            subject.plant(name, *total);
            model.set_total(name, *total);
        }
    }
}
