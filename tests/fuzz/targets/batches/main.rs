//! Batches: any script of hooks, savepoints, applies, marks, brackets, prunes, snapshots and repairs leaves a memory store with what a naive
//! model says, or is refused as it says, and nothing of it is done.
#![no_main]
#![allow(clippy::unwrap_used)]

#[path = "../layouts.rs"]
mod layouts;
mod model;
mod repair;
mod store;

use arbitrary::{Arbitrary, Unstructured};
use keepcount::reconcile::Mode;
use keepcount::{Applied, Batch, Counter, Error, Mark, MemoryStore, Result, Snapshot};
use libfuzzer_sys::fuzz_target;

use layouts::{ROLLED, SET_DAYS, SET_VOTES};
use model::{Cell, Day, Id, Model, Pending, Verdict};
use store::Row;

#[derive(Debug, Arbitrary)]
enum Op {
    /// What the old row added, and what the new one adds.
    Update(Vec<(Cell, Amount)>, Vec<(Cell, Amount)>),
    /// Another name, or another version of a name that is there.
    Foreign {
        version: bool,
    },
    Savepoint,
    Release,
    RollBack,
    Clear,
    Apply,
    ApplyOnce(Events),
    Bracket(End),
    Prune(Day),
    /// From a day on, of one set.
    Sum(Id, Option<Day>),
    /// A restart, with or without a counter.
    Restore(Option<u8>),
    Reconcile(Run, Vec<(Cell, Amount)>, u8),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Run {
    Verify,
    Repair,
    Backfill,
}

#[derive(Debug, Arbitrary)]
enum End {
    Commit,
    CommitOnce(Events),
    Abort,
    Drop,
}

/// The next events of a stream, or others near them.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Events {
    other_stream: bool,
    #[arbitrary(with = |input: &mut Unstructured<'_>| input.int_in_range(-2..=2))]
    beside: i64,
    #[arbitrary(with = |input: &mut Unstructured<'_>| input.int_in_range(0..=3))]
    more: u64,
}

/// Small, or near an edge that the store knows.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Amount {
    Small(i8),
    /// Up to which one stripe at a time is locked.
    Bulk(i8),
    /// Up to which totals are roomy.
    Roomy(i8),
    Most(u8),
    Least(u8),
    Any(i64),
}

const OPS_MOST: usize = 40;
const NESTED_MOST: usize = 4;

impl Amount {
    fn value(self) -> i64 {
        match self {
            Self::Small(small) => small.into(),
            Self::Bulk(more) => (1 << 40) + i64::from(more),
            Self::Roomy(more) => (1 << 62) + i64::from(more),
            Self::Most(less) => i64::MAX - i64::from(less),
            Self::Least(more) => i64::MIN + i64::from(more),
            Self::Any(any) => any,
        }
    }
}

struct Script {
    store: MemoryStore,
    model: Model,
    /// What is being collected, and the savepoints within it.
    batches: Vec<(Batch, Pending)>,
}

fuzz_target!(|ops: Vec<Op>| {
    let (store, model) = (MemoryStore::new(&ROLLED), Model::default());
    let mut script = Script { store, model, batches: vec![<(Batch, Pending)>::default()] };
    for op in ops.iter().take(OPS_MOST) {
        if !script.run(op) {
            break;
        }
    }
});

impl Script {
    /// False where it is not known any more what the store has.
    fn run(&mut self, op: &Op) -> bool {
        match op {
            Op::Apply => self.accept(None, self.store.apply(&mut self.batch().clone())),
            Op::ApplyOnce(events) => {
                let mark = self.mark(events);
                self.accept(Some(mark), self.store.apply_once(&mut self.batch().clone(), &mark));
            }
            Op::Bracket(end) => self.bracket(end),
            Op::Prune(before) => {
                let gone = self.store.prune(SET_DAYS, before.0).unwrap();
                assert_eq!(gone, self.model.prune(*before) as u64);
            }
            Op::Sum(set, from) => store::check_sum(&self.store, &self.model, *set, *from),
            Op::Restore(without) => self.restore(*without),
            Op::Reconcile(run, rows, page) => {
                let rows = rows.iter().map(|(cell, amount)| (*cell, amount.value()));
                let mode = match run {
                    Run::Verify => Mode::Verify,
                    Run::Repair => Mode::Repair,
                    Run::Backfill => Mode::Backfill,
                };
                if !repair::run(&mut self.store, &mut self.model, rows, mode, usize::from(*page) % 8 + 1) {
                    return false;
                }
            }
            _ => {
                self.collect(op);
                return true;
            }
        }
        store::check(&self.store, &self.model);
        true
    }

    fn batch(&self) -> &Batch {
        &self.batches.last().unwrap().0
    }

    /// What writes to batches alone.
    fn collect(&mut self, op: &Op) {
        const OTHER: Counter<u8> = Counter::new("other");
        let nested = self.batches.len();
        let (batch, pending) = self.batches.last_mut().unwrap();
        match op {
            Op::Update(old, new) => {
                let row = |cells: &[(Cell, Amount)]| Row(cells.iter().map(|(cell, by)| (*cell, by.value())).collect());
                let (old, new) = (row(old), row(new));
                batch.update(&old, &new);
                old.0.iter().for_each(|(cell, amount)| pending.add(*cell, -i128::from(*amount)));
                new.0.iter().for_each(|(cell, amount)| pending.add(*cell, i128::from(*amount)));
            }
            Op::Foreign { version } => {
                batch.add(if *version { SET_VOTES.version(2) } else { OTHER }, 0, 1);
                pending.foreign = true;
            }
            Op::Clear => {
                batch.clear();
                *pending = Pending::default();
            }
            Op::Savepoint if nested < NESTED_MOST => self.batches.push(Default::default()),
            Op::Release | Op::RollBack if nested > 1 => {
                let (mut inner, added) = self.batches.pop().unwrap();
                if matches!(op, Op::Release) {
                    let (batch, pending) = self.batches.last_mut().unwrap();
                    batch.merge(&mut inner);
                    pending.merge(&added);
                }
            }
            _ => {}
        }
    }

    fn mark(&self, events: &Events) -> Mark<'static> {
        let stream = if events.other_stream { "b" } else { "a" };
        let next = self.model.mark(stream) + 1;
        let first = next.saturating_add_signed(events.beside).max(1);
        Mark::new(stream, first, first + events.more).unwrap()
    }

    fn bracket(&mut self, end: &End) {
        let (batch, pending) = self.batches.last().unwrap();
        let refused = matches!(self.model.judge(pending), Verdict::Foreign { .. } | Verdict::Rollup);
        let mut applied = batch.clone();
        let begun = self.store.begin(&mut applied);
        assert_eq!(begun.is_err(), refused, "what no end of it could apply");
        let (mark, found) = match (begun, end) {
            (Err(error), _) => (None, Err(error)),
            (Ok(bracket), End::Commit) => (None, bracket.commit()),
            (Ok(bracket), End::CommitOnce(events)) => {
                let mark = self.mark(events);
                (Some(mark), bracket.commit_once(&mark))
            }
            (Ok(bracket), End::Abort) => return bracket.abort(),
            (Ok(bracket), End::Drop) => return drop(bracket),
        };
        self.accept(mark, found);
    }

    /// What came of the batch is what the model says.
    fn accept(&mut self, mark: Option<Mark<'_>>, found: Result<Applied>) {
        let (batch, pending) = self.batches.last().unwrap();
        if let Some(mark) = mark {
            let known = self.model.mark(mark.stream());
            let refused = match &found {
                Ok(applied) if applied.skipped => {
                    assert!(mark.last() <= known && applied.totals == 0 && applied.deltas(batch).count() == 0);
                    true
                }
                Err(Error::Gap { applied, .. }) => {
                    assert!(*applied == known && mark.first() > known + 1);
                    true
                }
                Err(Error::Overlap { applied, .. }) => {
                    assert!(*applied == known && mark.first() <= known && mark.last() > known);
                    true
                }
                _ => false,
            };
            if refused {
                return;
            }
            assert_eq!(mark.first(), known + 1);
        }
        match (self.model.judge(pending), found) {
            (Verdict::Applied { totals, .. }, Ok(applied)) => {
                let changes = self.model.changes(&totals);
                assert!(!applied.skipped && applied.totals == changes.len() as u64, "{applied:?}");
                assert_eq!(store::cells(applied.deltas(batch)), changes);
                self.model.totals = totals;
                self.model.marks.extend(mark.map(|mark| (mark.stream().to_owned(), mark.last())));
                self.collect(&Op::Clear);
            }
            (Verdict::Applied { far: true, .. } | Verdict::Overflow, Err(Error::Overflow { .. }))
            | (Verdict::Rollup | Verdict::Foreign { rollup: true }, Err(Error::Rollup { .. }))
            | (Verdict::Foreign { .. }, Err(Error::UnknownCounter { .. } | Error::Conflict { .. })) => {}
            (verdict, found) => panic!("{verdict:?}, but {found:?}"),
        }
    }

    /// A restart, from bytes or from JSON: what a snapshot keeps is all that there is.
    fn restore(&mut self, without: Option<u8>) {
        let mut snapshot = self.store.snapshot();
        assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap(), snapshot);
        assert_eq!(serde_json::from_value::<Snapshot>(serde_json::to_value(&snapshot).unwrap()).unwrap(), snapshot);
        if let Some(at) = without {
            let all = ROLLED.counters();
            let counter = all[usize::from(at) % all.len()].def().name();
            snapshot.forget(counter).unwrap();
            self.model.forget(counter);
        }
        self.store = MemoryStore::restore(&ROLLED, &snapshot).unwrap();
        assert!(without.is_some() || self.store.snapshot() == snapshot);
    }
}
