//! A writer: locks rows, writes them, and guards its transaction with a pending write. The
//! transaction can be committed, rolled back, cut off, or of unknown outcome.

use std::rc::Rc;

use keepcount::{Batch, Error, PendingWrite, StreamRange};

use super::domain::{Tables, show_all};
use super::facts::{Change, Fate, STREAM_NAMES, STREAMS, Tx, TxId};
use super::intent::Intent;
use super::variant::Variant;
use super::world::World;

pub struct Writer<'a> {
    slot: usize,
    state: State<'a>,
}

enum State<'a> {
    Idle,
    /// Waits for its locks. `seen` are the rows before it has them.
    Locking {
        tx: TxId,
        intent: Intent,
        seen: Rc<Tables>,
        tries: u32,
    },
    /// Has written. The rows are not visible yet.
    Written(Work<'a>),
    Begun(Work<'a>, PendingWrite<'a>),
    /// The rows are visible, and not in the totals. Only a variant has no pending write here.
    Visible(Work<'a>, Option<PendingWrite<'a>>),
    /// The pending write was dropped. It is to be begun again from this time on.
    Lost(Work<'a>, u64),
    Again(Work<'a>, PendingWrite<'a>),
    /// Abandoned. The stream's offset must still move past its event.
    Passing(Work<'a>),
    /// A variant: applied to the totals before its rows are committed.
    Early(Work<'a>),
}

#[derive(Clone)]
struct Work<'a> {
    tx: TxId,
    change: Rc<Change>,
    batch: &'a Batch,
}

impl<'a> Writer<'a> {
    pub fn new(slot: usize) -> Self {
        Self { slot, state: State::Idle }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub fn die(&mut self) {
        self.state = State::Idle;
    }

    pub fn step(&mut self, world: &Rc<World<'a>>) {
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle if world.draining.get() => State::Idle,
            State::Idle => self.plan(world),
            State::Locking { tx, intent, seen, tries } => self.lock(world, tx, intent, seen, tries),
            State::Written(work) => self.begin(world, work),
            State::Begun(work, pending_write) => self.send_commit(world, work, pending_write),
            State::Visible(work, pending_write) => self.finish(world, work, pending_write),
            State::Lost(work, again_at) => self.begin_again(world, work, again_at),
            State::Again(work, pending_write) => self.await_outcome(world, work, pending_write),
            State::Passing(work) => self.skip_event(world, work),
            State::Early(work) => self.commit_late(world, &work),
        };
    }

    fn note(&self, world: &World<'a>, tx: TxId, what: &str) {
        world.note(&format!("writer {} tx {tx}: {what}", self.slot));
    }

    fn plan(&self, world: &World<'a>) -> State<'a> {
        let stream =
            (world.below(100) < world.setup.streamed).then(|| world.below(STREAMS as u64) as usize);
        let intent = Intent::any(world);
        let mut facts = world.facts.borrow_mut();
        let (tx, seen) = (facts.begin(stream), Rc::clone(&facts.rows));
        self.note(world, tx, &format!("{intent:?}, stream {stream:?}"));
        State::Locking { tx, intent, seen, tries: 0 }
    }

    fn lock(
        &self,
        world: &World<'a>,
        tx: TxId,
        intent: Intent,
        seen: Rc<Tables>,
        tries: u32,
    ) -> State<'a> {
        let mut facts = world.facts.borrow_mut();
        let ids = intent.ids(&facts.rows);
        if !facts.lock(tx, &ids) && tries < 8 {
            world.count("locks waited for");
            return State::Locking { tx, intent, seen, tries: tries + 1 };
        }
        let has_all = ids.iter().all(|id| facts.locks.get(id) == Some(&tx));
        let rows = Rc::clone(&facts.rows);
        let old = if world.is(Variant::OldFromEarlierRead) { &seen } else { &rows };
        let change = Rc::new(intent.change(&ids, &rows, old));
        if !has_all || change.hooked.is_empty() {
            facts.roll_back(tx);
            facts.txs.remove(&tx);
            self.note(world, tx, "nothing to do");
            return State::Idle;
        }
        if let Some(known) = facts.txs.get_mut(&tx) {
            known.change = Rc::clone(&change);
        }
        let mut batch = Batch::new();
        change.hook_into(&mut batch);
        self.note(world, tx, &format!("has written {}", show_all(&change.deltas)));
        State::Written(Work { tx, change, batch: world.batch(batch) })
    }

    fn begin(&self, world: &World<'a>, work: Work<'a>) -> State<'a> {
        let streamed = with_tx(world, &work, |tx| tx.stream.is_some());
        let has_hooks = world.rolled_out.get() && !world.is(Variant::BackfillBeforeHooks);
        if self.slot == 0 && !streamed && world.setup.pending_backfill && !has_hooks {
            self.commit_rows(world, &work);
            if !world.rolled_out.get() {
                // A writer without hooks applies nothing. The backfill counts its rows.
                let offsets = world.offsets();
                world.facts.borrow_mut().abandon(work.tx, offsets);
            }
            return self.done(world, &work);
        }
        let is_unguarded = world.is(Variant::UnguardedWriter) && self.slot == 0;
        if is_unguarded || (world.is(Variant::BeginAfterVisible) && world.one_in(2)) {
            self.commit_rows(world, &work);
            return State::Visible(work, None);
        }
        let Some(pending_write) = world.try_begin(work.batch) else { return State::Written(work) };
        self.note(world, work.tx, "begins");
        State::Begun(work, pending_write)
    }

    fn commit_rows(&self, world: &World<'a>, work: &Work<'a>) {
        world.facts.borrow_mut().commit(work.tx);
        self.note(world, work.tx, "rows committed");
        world.count("rows committed");
    }

    /// Rolls back, and ends the transaction.
    fn give_up(&self, world: &World<'a>, work: &Work<'a>) -> State<'a> {
        let mut facts = world.facts.borrow_mut();
        facts.roll_back(work.tx);
        facts.txs.remove(&work.tx);
        self.note(world, work.tx, "rolled back");
        world.count("rolled back");
        State::Idle
    }

    fn send_commit(
        &self,
        world: &World<'a>,
        work: Work<'a>,
        pending_write: PendingWrite<'a>,
    ) -> State<'a> {
        let streamed = with_tx(world, &work, |tx| tx.stream.is_some());
        if world.is(Variant::CommitBeforeRows) && !streamed && world.one_in(2) {
            pending_write.commit().unwrap();
            with_tx(world, &work, |tx| tx.applied = true);
            self.note(world, work.tx, "commits its pending write early");
            return State::Early(work);
        }
        match world.below(100) {
            0..78 => {
                self.commit_rows(world, &work);
                State::Visible(work, Some(pending_write))
            }
            78..86 => {
                pending_write.abort();
                self.give_up(world, &work)
            }
            86..89 => {
                world.drop_pending_write(pending_write, &work.change.deltas);
                self.give_up(world, &work)
            }
            _ if world.setup.unknowns => {
                let (at, commits) =
                    (world.now() + world.below(world.setup.settle / 2), !world.one_in(3));
                with_tx(world, &work, |tx| tx.fate = Fate::Limbo { at, commits });
                self.note(world, work.tx, "does not know whether it is committed");
                if world.is(Variant::AbortThoughCommits) && world.one_in(2) {
                    pending_write.abort();
                    with_tx(world, &work, |tx| tx.orphaned = true);
                    return State::Idle;
                }
                self.cut_off(world, work, pending_write)
            }
            _ => State::Begun(work, pending_write),
        }
    }

    /// Drops the pending write. The writer begins it again in time, or abandons the transaction.
    fn cut_off(
        &self,
        world: &World<'a>,
        work: Work<'a>,
        pending_write: PendingWrite<'a>,
    ) -> State<'a> {
        world.drop_pending_write(pending_write, &work.change.deltas);
        self.note(world, work.tx, "is cut off");
        if world.one_in(3) { Self::abandon(world, work) } else { Self::plan_return(world, work) }
    }

    /// The writer begins the dropped pending write again before a deadline.
    fn plan_return(world: &World<'a>, work: Work<'a>) -> State<'a> {
        let settle = world.setup.settle;
        if world.is(Variant::ResolvedTooLate) {
            let late = settle + world.below(settle);
            return State::Lost(work, world.now() + late);
        }
        let deadline = world.now() + settle;
        with_tx(world, &work, |tx| tx.deadline = Some(deadline));
        let again_at = world.now() + world.below(settle / 2);
        State::Lost(work, again_at)
    }

    fn abandon(world: &World<'a>, work: Work<'a>) -> State<'a> {
        world.count("left to a repair");
        let offsets = world.offsets();
        world.facts.borrow_mut().abandon(work.tx, offsets);
        end_abandoned(world, work)
    }

    /// The rows are visible: applies them.
    fn finish(
        &self,
        world: &World<'a>,
        work: Work<'a>,
        pending_write: Option<PendingWrite<'a>>,
    ) -> State<'a> {
        let (stream, event) = with_tx(world, &work, |tx| (tx.stream, tx.event));
        let position =
            stream.zip(event).map(|(stream, event)| (world.offsets()[stream], stream, event));
        let Some(pending_write) = pending_write else {
            return self.finish_without(world, work, position);
        };
        if world.setup.unknowns && world.one_in(20) {
            return self.cut_off(world, work, pending_write);
        }
        let applied = match position {
            None => pending_write.commit(),
            // An earlier event is missing, so the writer waits. One time in 30 it does not check.
            Some((offset, _, event)) if offset + 1 < event && !world.one_in(30) => {
                world.count("turns waited for");
                return State::Visible(work, Some(pending_write));
            }
            Some((_, stream, event)) => pending_write
                .commit_idempotent(&StreamRange::new(STREAM_NAMES[stream], event, event).unwrap()),
        };
        match applied {
            Ok(applied) => {
                world.count(if applied.skipped {
                    "events skipped"
                } else {
                    "pending writes committed"
                });
                self.done(world, &work)
            }
            Err(Error::Gap { .. }) => {
                world.count("events behind a gap");
                world.note_dropped(&work.change.deltas);
                self.note(world, work.tx, "is behind a gap");
                Self::plan_return(world, work)
            }
            Err(error) => {
                world.fail(&format!("a pending write's commit fails: {error}"));
                State::Idle
            }
        }
    }

    /// The same for variants: without a pending write, or with one that begins now.
    fn finish_without(
        &self,
        world: &World<'a>,
        work: Work<'a>,
        position: Option<(u64, usize, u64)>,
    ) -> State<'a> {
        if world.is(Variant::BeginAfterVisible) {
            let pending_write = world.try_begin(work.batch);
            return State::Visible(work, pending_write);
        }
        match position {
            None => drop(world.store().apply(&mut work.batch.clone()).unwrap()),
            Some((offset, _, event)) if offset + 1 < event => {
                return State::Visible(work, None);
            }
            Some((_, stream, event)) => {
                let stream_range = StreamRange::new(STREAM_NAMES[stream], event, event).unwrap();
                world.store().apply_idempotent(&mut work.batch.clone(), &stream_range).unwrap();
            }
        }
        self.done(world, &work)
    }

    fn done(&self, world: &World<'a>, work: &Work<'a>) -> State<'a> {
        world.facts.borrow_mut().txs.remove(&work.tx);
        self.note(world, work.tx, "applied");
        State::Idle
    }

    fn begin_again(&self, world: &World<'a>, work: Work<'a>, again_at: u64) -> State<'a> {
        let (fate, visible, abandoned) =
            with_tx(world, &work, |tx| (tx.fate, tx.visible, tx.abandoned));
        if abandoned {
            return end_abandoned(world, work);
        }
        if fate == Fate::Decided && !visible {
            return self.give_up(world, &work);
        }
        if world.now() < again_at {
            return State::Lost(work, again_at);
        }
        let Some(pending_write) = world.try_begin(work.batch) else {
            return State::Lost(work, again_at);
        };
        with_tx(world, &work, |tx| tx.deadline = None);
        self.note(world, work.tx, "begins anew");
        world.count("pending writes begun anew");
        State::Again(work, pending_write)
    }

    fn await_outcome(
        &self,
        world: &World<'a>,
        work: Work<'a>,
        pending_write: PendingWrite<'a>,
    ) -> State<'a> {
        let (fate, visible) = with_tx(world, &work, |tx| (tx.fate, tx.visible));
        match fate {
            Fate::Decided if visible => State::Visible(work, Some(pending_write)),
            Fate::Decided => {
                pending_write.abort();
                self.give_up(world, &work)
            }
            Fate::Open | Fate::Limbo { .. } => State::Again(work, pending_write),
        }
    }

    /// Moves the stream's offset past the event with an empty batch, so that later events need not
    /// wait.
    fn skip_event(&self, world: &World<'a>, work: Work<'a>) -> State<'a> {
        let (fate, stream, event) = with_tx(world, &work, |tx| (tx.fate, tx.stream, tx.event));
        if fate != Fate::Decided {
            return State::Passing(work);
        }
        if let Some((stream, event)) = stream.zip(event) {
            let offset = world.offsets()[stream];
            if offset + 1 < event {
                return State::Passing(work);
            }
            if offset + 1 == event {
                let stream_range = StreamRange::new(STREAM_NAMES[stream], event, event).unwrap();
                world
                    .store()
                    .begin(&mut Batch::new())
                    .unwrap()
                    .commit_idempotent(&stream_range)
                    .unwrap();
                self.note(world, work.tx, "is skipped by its stream");
            }
        }
        world.facts.borrow_mut().txs.remove(&work.tx);
        State::Idle
    }

    fn commit_late(&self, world: &World<'a>, work: &Work<'a>) -> State<'a> {
        if world.one_in(4) {
            return self.give_up(world, work);
        }
        self.commit_rows(world, work);
        self.done(world, work)
    }
}

/// Accesses the facts' entry of a transaction.
fn with_tx<T>(world: &World<'_>, work: &Work<'_>, of: impl FnOnce(&mut Tx) -> T) -> T {
    of(world.facts.borrow_mut().txs.get_mut(&work.tx).unwrap())
}

/// Ends an abandoned transaction. If it has an event, the offset moves past it first.
fn end_abandoned<'a>(world: &World<'a>, work: Work<'a>) -> State<'a> {
    if with_tx(world, &work, |tx| tx.stream.is_some()) {
        return State::Passing(work);
    }
    let mut facts = world.facts.borrow_mut();
    // A commit that was sent arrives without its writer.
    match facts.txs.get_mut(&work.tx) {
        Some(tx) if matches!(tx.fate, Fate::Limbo { .. }) => tx.orphaned = true,
        _ => drop(facts.txs.remove(&work.tx)),
    }
    State::Idle
}
