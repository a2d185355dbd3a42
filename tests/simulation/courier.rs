//! Delivers a stream's events to the store: in order after a restart, otherwise late, twice, or out
//! of order.

use std::rc::Rc;

use keepcount::{Batch, Error, PendingWrite, StreamRange};

use super::domain::{Row, RowId, Totals, add_all};
use super::facts::{Change, STREAM_NAMES};
use super::variant::Variant;
use super::world::World;

pub struct Courier<'a> {
    stream: usize,
    /// Events that were applied before, in a pending write that is still open.
    held: Option<Delivery<'a>>,
}

struct Delivery<'a> {
    pending_write: PendingWrite<'a>,
    first: u64,
    last: u64,
    deltas: Totals,
}

impl<'a> Courier<'a> {
    pub fn new(stream: usize) -> Self {
        Self { stream, held: None }
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_none()
    }

    pub fn die(&mut self) {
        self.held = None;
    }

    pub fn step(&mut self, world: &Rc<World<'a>>) {
        if let Some(held) = self.held.take() {
            self.commit(world, held);
            return;
        }
        let (offset, length) =
            (world.offsets()[self.stream], world.facts.borrow().journal[self.stream].len() as u64);
        if length == 0 {
            return;
        }
        if offset < length && (world.recovering.get() || world.draining.get() || world.one_in(2)) {
            let last = length.min(offset + 1 + world.below(3));
            self.deliver(world, offset + 1, last);
        } else if !world.draining.get() {
            let first = 1 + world.below(length);
            let last = length.min(first + world.below(3));
            if last <= offset && world.one_in(4) {
                self.write_rows_again(world, first);
            } else {
                self.deliver(world, first, last);
            }
        }
    }

    /// Applies some events to the store. Abandoned events add nothing.
    fn deliver(&mut self, world: &Rc<World<'a>>, first: u64, last: u64) {
        let (mut batch, mut deltas) = (Batch::new(), Totals::new());
        for event in &world.facts.borrow().journal[self.stream][first as usize - 1..last as usize] {
            if !event.abandoned {
                event.change.hook_into(&mut batch);
                add_all(&mut deltas, &event.change.deltas, 1);
            }
        }
        let known = last <= world.offsets()[self.stream];
        let unguarded =
            world.recovering.get() && !world.is(Variant::RepairBeforeCaughtUp) && world.one_in(2);
        if unguarded {
            // No audit runs yet, so no pending write is needed.
            let found = world
                .store()
                .apply_idempotent(&mut batch, &self.stream_range(first, last))
                .map(|applied| applied.skipped);
            self.note(world, first, last, &found);
            return;
        }
        let Some(pending_write) = world.try_begin(world.batch(batch)) else { return };
        if known && world.is(Variant::DuplicateByApply) {
            pending_write.commit().unwrap();
        } else if known && world.one_in(2) {
            self.held = Some(Delivery { pending_write, first, last, deltas });
        } else {
            self.commit(world, Delivery { pending_write, first, last, deltas });
        }
    }

    fn commit(&self, world: &World<'a>, delivery: Delivery<'a>) {
        let Delivery { pending_write, first, last, deltas } = delivery;
        let found = pending_write
            .commit_idempotent(&self.stream_range(first, last))
            .map(|applied| applied.skipped);
        self.note(world, first, last, &found);
        if found.is_err() {
            world.note_dropped(&deltas);
        }
    }

    fn stream_range(&self, first: u64, last: u64) -> StreamRange<'static> {
        StreamRange::new(STREAM_NAMES[self.stream], first, last).unwrap()
    }

    fn note(&self, world: &World<'a>, first: u64, last: u64, found: &keepcount::Result<bool>) {
        let what = match found {
            Ok(false) => "events applied",
            Ok(true) => "events skipped",
            Err(Error::Gap { .. }) => "events behind a gap",
            Err(Error::Overlap { .. }) => "events that overlap",
            Err(error) => return world.fail(&format!("a delivery fails: {error}")),
        };
        world.count(what);
        world.note(&format!("{} {first}..={last}: {what}", STREAM_NAMES[self.stream]));
    }

    /// An event is delivered again to a consumer that writes its rows. Before it commits them, it
    /// learns that the store has applied the event.
    fn write_rows_again(&self, world: &World<'a>, event: u64) {
        let change =
            Rc::clone(&world.facts.borrow().journal[self.stream][event as usize - 1].change);
        let mut inserted =
            change.hooked.iter().filter_map(|(old, new)| new.filter(|_| old.is_none()));
        let Some(vote) = inserted.rfind(|row| matches!(row, Row::Vote { .. })) else { return };
        let id = RowId::Vote(1_000_000 + world.below(1_000_000) as i64);
        let again = Change::new(vec![(id, Some(vote))], vec![(None, Some(vote))]);
        let mut batch = Batch::new();
        again.hook_into(&mut batch);
        let Some(pending_write) = world.try_begin(world.batch(batch)) else { return };
        world.count("events written again");
        if world.is(Variant::SkippedRowsKept) {
            world.facts.borrow_mut().write(&again.writes);
            self.commit(
                world,
                Delivery { pending_write, first: event, last: event, deltas: again.deltas },
            );
        } else {
            pending_write.abort();
        }
    }
}
