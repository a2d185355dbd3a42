//! Batches. After any script of hooks, savepoints, applies, offsets, pending writes, prunes,
//! snapshots and repairs, a memory store has the totals of a naive model; or an operation is
//! refused as the model says, and changes nothing.
#![no_main]
#![allow(clippy::unwrap_used)]

mod model;
mod repair;
#[path = "../schemas.rs"]
mod schemas;
mod store;

use arbitrary::{Arbitrary, Unstructured};
use keepcount::reconcile::Mode;
use keepcount::{Applied, Batch, Counter, Error, MemoryStore, Result, Snapshot, StreamRange};
use libfuzzer_sys::fuzz_target;

use model::{Cell, Day, Id, Model, Pending, Verdict};
use schemas::{ROLLED, SET_DAYS, SET_VOTES};
use store::Row;

#[derive(Debug, Arbitrary)]
enum Op {
    /// What the old row adds, and what the new one adds.
    Update(Vec<(Cell, Amount)>, Vec<(Cell, Amount)>),
    /// Adds to a counter with another name, or with another version of a known name.
    Foreign {
        version: bool,
    },
    Savepoint,
    Release,
    RollBack,
    Clear,
    Apply,
    ApplyIdempotent(Events),
    PendingWrite(End),
    Prune(Day),
    /// Sums the days of one set, from a day on.
    Sum(Id, Option<Day>),
    /// Restarts from a snapshot, with or without a counter.
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
    CommitIdempotent(Events),
    Abort,
    Drop,
}

/// The next events of a stream, or a range near them.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Events {
    other_stream: bool,
    #[arbitrary(with = |input: &mut Unstructured<'_>| input.int_in_range(-2..=2))]
    beside: i64,
    #[arbitrary(with = |input: &mut Unstructured<'_>| input.int_in_range(0..=3))]
    more: u64,
}

/// Small, or near a limit at which the store behaves differently.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Amount {
    Small(i8),
    /// Up to this amount, one stripe at a time is locked.
    Bulk(i8),
    /// Up to this amount, totals are stored with room to spare.
    Roomy(i8),
    Most(u8),
    Least(u8),
    Any(i64),
}

const MAX_OPS: usize = 40;
const MAX_NESTED: usize = 4;

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
    /// The batch being collected, and those of the savepoints within it.
    batches: Vec<(Batch, Pending)>,
}

fuzz_target!(|ops: Vec<Op>| {
    let (store, model) = (MemoryStore::new(&ROLLED), Model::default());
    let mut script = Script { store, model, batches: vec![<(Batch, Pending)>::default()] };
    for op in ops.iter().take(MAX_OPS) {
        if !script.run(op) {
            break;
        }
    }
});

impl Script {
    /// Returns false if the state of the store is not known any more.
    fn run(&mut self, op: &Op) -> bool {
        match op {
            Op::Apply => self.check_result(None, self.store.apply(&mut self.batch().clone())),
            Op::ApplyIdempotent(events) => {
                let stream_range = self.stream_range(events);
                self.check_result(
                    Some(stream_range),
                    self.store.apply_idempotent(&mut self.batch().clone(), &stream_range),
                );
            }
            Op::PendingWrite(end) => self.pending_write(end),
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
                if !repair::run(
                    &mut self.store,
                    &mut self.model,
                    rows,
                    mode,
                    usize::from(*page) % 8 + 1,
                ) {
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

    /// Does the operations that change batches alone.
    fn collect(&mut self, op: &Op) {
        const OTHER: Counter<u8> = Counter::new("other");
        let nested = self.batches.len();
        let (batch, pending) = self.batches.last_mut().unwrap();
        match op {
            Op::Update(old, new) => {
                let row = |cells: &[(Cell, Amount)]| {
                    Row(cells.iter().map(|(cell, by)| (*cell, by.value())).collect())
                };
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
            Op::Savepoint if nested < MAX_NESTED => self.batches.push(Default::default()),
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

    fn stream_range(&self, events: &Events) -> StreamRange<'static> {
        let stream = if events.other_stream { "b" } else { "a" };
        let next = self.model.offset(stream) + 1;
        let first = next.saturating_add_signed(events.beside).max(1);
        StreamRange::new(stream, first, first + events.more).unwrap()
    }

    fn pending_write(&mut self, end: &End) {
        let (batch, pending) = self.batches.last().unwrap();
        let refused =
            matches!(self.model.judge(pending), Verdict::Foreign { .. } | Verdict::Rollup);
        let mut applied = batch.clone();
        let begun = self.store.begin(&mut applied);
        assert_eq!(begun.is_err(), refused, "begin refuses exactly what no commit could apply");
        let (stream_range, found) = match (begun, end) {
            (Err(error), _) => (None, Err(error)),
            (Ok(pending_write), End::Commit) => (None, pending_write.commit()),
            (Ok(pending_write), End::CommitIdempotent(events)) => {
                let stream_range = self.stream_range(events);
                (Some(stream_range), pending_write.commit_idempotent(&stream_range))
            }
            (Ok(pending_write), End::Abort) => return pending_write.abort(),
            (Ok(pending_write), End::Drop) => return drop(pending_write),
        };
        self.check_result(stream_range, found);
    }

    /// Compares the result of an apply with the model's.
    fn check_result(&mut self, stream_range: Option<StreamRange<'_>>, found: Result<Applied>) {
        let (batch, pending) = self.batches.last().unwrap();
        let verdict = self.model.judge(pending);
        // A batch that no store accepts is refused whatever its events are.
        let is_invalid = matches!(verdict, Verdict::Foreign { .. } | Verdict::Rollup);
        if let Some(stream_range) = stream_range.filter(|_| !is_invalid) {
            let known = self.model.offset(stream_range.stream());
            let refused = match &found {
                Ok(applied) if applied.skipped => {
                    assert!(
                        stream_range.last() <= known
                            && applied.totals == 0
                            && applied.deltas(batch).count() == 0
                    );
                    true
                }
                Err(Error::Gap { applied, .. }) => {
                    assert!(*applied == known && stream_range.first() > known + 1);
                    true
                }
                Err(Error::Overlap { applied, .. }) => {
                    assert!(
                        *applied == known
                            && stream_range.first() <= known
                            && stream_range.last() > known
                    );
                    true
                }
                _ => false,
            };
            if refused {
                return;
            }
            assert_eq!(stream_range.first(), known + 1);
        }
        match (verdict, found) {
            (Verdict::Applied { totals, .. }, Ok(applied)) => {
                let changes = self.model.changes(&totals);
                assert!(!applied.skipped && applied.totals == changes.len() as u64, "{applied:?}");
                assert_eq!(store::cells(applied.deltas(batch)), changes);
                self.model.totals = totals;
                self.model.offsets.extend(
                    stream_range.map(|stream_range| {
                        (stream_range.stream().to_owned(), stream_range.last())
                    }),
                );
                self.collect(&Op::Clear);
            }
            (
                Verdict::Applied { split: true, .. } | Verdict::Overflow,
                Err(Error::Overflow { .. }),
            )
            | (Verdict::Rollup | Verdict::Foreign { rollup: true }, Err(Error::Rollup { .. }))
            | (
                Verdict::Foreign { .. },
                Err(Error::UnknownCounter { .. } | Error::DefinitionConflict { .. }),
            ) => {}
            (verdict, found) => panic!("expected {verdict:?}, found {found:?}"),
        }
    }

    /// Restarts, from bytes or from JSON. What the snapshot holds is all that is kept.
    fn restore(&mut self, without: Option<u8>) {
        let mut snapshot = self.store.snapshot();
        assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap(), snapshot);
        assert_eq!(
            serde_json::from_value::<Snapshot>(serde_json::to_value(&snapshot).unwrap()).unwrap(),
            snapshot
        );
        if let Some(at) = without {
            let all = ROLLED.counters();
            let counter = all[usize::from(at) % all.len()].id().name();
            snapshot.drop_counter(counter).unwrap();
            self.model.drop_counter(counter);
        }
        self.store = MemoryStore::restore(&ROLLED, &snapshot).unwrap();
        assert!(without.is_some() || self.store.snapshot() == snapshot);
    }
}
