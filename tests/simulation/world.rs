//! The world of one seed: a clock that steps and waits advance, a scheduler that picks the next
//! step, and the check of every total after every step.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keepcount::backend::{CounterSpec, KeyRange};
use keepcount::reconcile::Mode;
use keepcount::{Batch, KeyBuf, MemoryStore, PendingWrite, Snapshot, Store, StreamRange};
use serde_json::Value;

use super::courier::Courier;
use super::domain::{Name, SCHEMA, Totals, at, is_pruned, recount, show};
use super::facts::{Facts, Fate, Offsets, STREAM_NAMES, STREAMS, TxId, Version};
use super::jobs::Slot;
use super::setup::Setup;
use super::support::random::Random;
use super::variant::Variant;
use super::writer::Writer;

/// Values that live as long as the world, added through a shared reference.
pub struct Arena<T> {
    slots: Vec<OnceCell<T>>,
    used: Cell<usize>,
}

impl<T> Arena<T> {
    pub fn of(most: usize) -> Self {
        Self {
            slots: std::iter::repeat_with(OnceCell::new).take(most).collect(),
            used: Cell::new(0),
        }
    }

    pub fn put(&self, value: T) -> &T {
        let at = self.used.get();
        self.used.set(at + 1);
        self.slots[at].get_or_init(|| value)
    }
}

pub struct World<'a> {
    pub setup: Setup,
    stores: &'a Arena<MemoryStore>,
    batches: &'a Arena<Batch>,
    /// A batch for each pending write to borrow.
    lent: RefCell<std::slice::IterMut<'a, Batch>>,
    store: Cell<&'a MemoryStore>,
    clock: Arc<AtomicU64>,
    random: Cell<u64>,
    pub facts: RefCell<Facts>,
    pub writers: RefCell<Vec<Writer<'a>>>,
    pub couriers: RefCell<Vec<Courier<'a>>>,
    /// A job that is running further up the stack is not in its slot.
    pub jobs: RefCell<Vec<Option<Slot<'a>>>>,
    /// The keys that are being repaired, for each open repair.
    pub repairing: RefCell<Vec<Vec<Name>>>,
    /// The state that was checked last.
    checked: RefCell<(Pages, Offsets, Version)>,
    steps: Cell<u32>,
    pub depth: Cell<u32>,
    /// How often the process was restarted.
    pub life: Cell<u64>,
    /// Restarted, and not caught up with the streams yet.
    pub recovering: Cell<bool>,
    /// The process is dying, and all that is under way fails.
    pub dying: Cell<bool>,
    /// Nobody begins anything new.
    pub draining: Cell<bool>,
    /// Every writer has hooks.
    pub rolled_out: Cell<bool>,
    failure: RefCell<Option<String>>,
    pub trace: RefCell<Vec<String>>,
    pub counts: RefCell<BTreeMap<&'static str, u64>>,
}

type Pages = Vec<Vec<(KeyBuf, i64)>>;

/// Steps nest: a repair waits, meanwhile another job compares, and while that reads a writer acts.
const MAX_DEPTH: u32 = 4;
/// The maximum number of rounds that a world takes to come to rest.
const MAX_RESTS: u32 = 2_000;

#[derive(Debug, Clone, Copy)]
enum Act {
    Write(usize),
    Deliver(usize),
    Audit(usize),
    PlantRow,
    PlantTotal,
    Save,
    Crash,
    Prune,
    Replicate,
    RollOut,
    Pass,
}

impl<'a> World<'a> {
    pub fn new(
        setup: Setup,
        stores: &'a Arena<MemoryStore>,
        batches: &'a Arena<Batch>,
        lent: &'a mut [Batch],
    ) -> Rc<Self> {
        let clock = Arc::new(AtomicU64::new(0));
        let store = if setup.pending_backfill {
            MemoryStore::pending_backfill(&SCHEMA)
        } else {
            MemoryStore::new(&SCHEMA)
        };
        let store = stores.put(clocked(store, &clock));
        let facts = Facts::new(store.snapshot());
        let world = Rc::new(Self {
            stores,
            batches,
            lent: RefCell::new(lent.iter_mut()),
            store: Cell::new(store),
            clock,
            random: Cell::new(setup.seed ^ 0x5eed),
            facts: RefCell::new(facts),
            writers: RefCell::new((0..setup.writers).map(Writer::new).collect()),
            couriers: RefCell::new((0..STREAMS).map(Courier::new).collect()),
            jobs: RefCell::new((0..setup.jobs).map(|_| Some(Slot::Idle)).collect()),
            repairing: RefCell::default(),
            checked: RefCell::default(),
            steps: Cell::new(0),
            depth: Cell::new(0),
            life: Cell::new(0),
            recovering: Cell::new(false),
            dying: Cell::new(false),
            draining: Cell::new(false),
            failure: RefCell::default(),
            trace: RefCell::default(),
            counts: RefCell::default(),
            rolled_out: Cell::new(!setup.pending_backfill),
            setup,
        });
        if world.setup.pending_backfill {
            (0..30).for_each(|_| world.plant_row());
        }
        world
    }

    pub fn store(&self) -> &'a MemoryStore {
        self.store.get()
    }

    pub fn batch(&self, batch: Batch) -> &'a Batch {
        self.batches.put(batch)
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn below(&self, most: u64) -> u64 {
        let mut random = Random(self.random.get());
        let drawn = random.below(most);
        self.random.set(random.0);
        drawn
    }

    /// True with probability 1 in `times`.
    pub fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn is(&self, variant: Variant) -> bool {
        self.setup.is(variant)
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_insert(0) += 1;
    }

    pub fn note(&self, line: &str) {
        let (now, depth) = (self.now(), self.depth.get() as usize);
        self.trace.borrow_mut().push(format!("{now:>7} {:depth$}{line}", ""));
    }

    /// Records a failed check. The first one counts, and ends the seed.
    pub fn fail(&self, what: &str) {
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            self.note(&format!("FAILED: {what}"));
            *failure = Some(what.to_owned());
        }
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }

    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub fn trace_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.trace.borrow().iter().for_each(|line| hasher.write(line.as_bytes()));
        hasher.finish()
    }

    pub fn offsets(&self) -> Offsets {
        STREAM_NAMES.map(|stream| self.store().offset(stream))
    }

    /// The totals of the store, counter by counter.
    fn pages(&self) -> Pages {
        let counters = SCHEMA.counters().iter();
        let read = |spec: &CounterSpec| {
            Store::read_range(&mut self.store(), spec.id(), &KeyRange::ALL, usize::MAX)
        };
        counters.map(read).collect::<keepcount::Result<_>>().unwrap_or_else(|_| {
            // Reads of a counter that is not ready are refused, so they come from a snapshot.
            let mut json = serde_json::to_value(self.store().snapshot()).unwrap();
            let counters = json["counters"].as_array_mut().unwrap().iter_mut();
            counters
                .map(|counter| serde_json::from_value(counter["totals"].take()).unwrap())
                .collect()
        })
    }

    fn stored(&self) -> Totals {
        let named = self.pages().into_iter().enumerate();
        named
            .flat_map(|(counter, page)| {
                page.into_iter().map(move |(key, total)| ((counter, key), total))
            })
            .collect()
    }

    /// None at a barrier: the caller tries again later.
    pub fn try_begin(&self, batch: &'a Batch) -> Option<PendingWrite<'a>> {
        let lent = self.lent.borrow_mut().next().expect("enough batches for all pending writes");
        lent.clone_from(batch);
        let pending_write = self.store().try_begin(lent).unwrap();
        if pending_write.is_none() {
            self.count("barriers met");
            self.note("a barrier is met");
        }
        pending_write
    }

    /// Drops a pending write, so that its keys are unresolved.
    pub fn drop_pending_write(&self, pending_write: PendingWrite<'a>, deltas: &Totals) {
        drop(pending_write);
        self.note_dropped(deltas);
    }

    pub fn note_dropped(&self, deltas: &Totals) {
        self.count("pending writes dropped");
        let now = self.now();
        self.facts.borrow_mut().dropped.extend(deltas.keys().map(|name| (name.clone(), now)));
    }

    /// Advances the clock, and does what falls due: commits arrive, and transactions whose deadline
    /// passes are abandoned.
    pub fn pass(&self, time: u64) {
        let until = self.now() + time;
        while let Some((at, id, is_deadline)) = self.next_due(until) {
            self.clock.fetch_max(at, Ordering::Relaxed);
            let offsets = self.offsets();
            let mut facts = self.facts.borrow_mut();
            if is_deadline {
                facts.abandon(id, offsets);
                self.note(&format!("tx {id} is abandoned"));
                continue;
            }
            let Some(tx) = facts.txs.get(&id) else { continue };
            let (commits, orphaned) =
                (matches!(tx.fate, Fate::Limbo { commits: true, .. }), tx.orphaned);
            if commits {
                facts.commit(id);
            } else {
                facts.roll_back(id);
            }
            if orphaned {
                facts.txs.remove(&id);
            }
            self.note(&format!(
                "tx {id} {}",
                if commits { "turns out committed" } else { "turns out rolled back" }
            ));
            drop(facts);
            self.count(if commits { "unknown: committed" } else { "unknown: rolled back" });
        }
        self.clock.store(until, Ordering::Relaxed);
    }

    fn next_due(&self, until: u64) -> Option<(u64, TxId, bool)> {
        let facts = self.facts.borrow();
        let due = facts.txs.iter().flat_map(|(id, tx)| {
            let limbo =
                if let Fate::Limbo { at, .. } = tx.fate { Some((at, *id, false)) } else { None };
            limbo.into_iter().chain(tx.deadline.map(|at| (at, *id, true)))
        });
        due.filter(|(at, ..)| *at <= until).min()
    }

    /// One random step, and the check after it. Does nothing if no more steps are allowed.
    pub fn step(self: &Rc<Self>) {
        let over = self.steps.get() >= self.setup.steps || self.draining.get();
        if over || self.dying.get() || self.has_failed() || self.depth.get() >= MAX_DEPTH {
            return;
        }
        self.steps.set(self.steps.get() + 1);
        self.depth.set(self.depth.get() + 1);
        let act = self.pick();
        self.act(act);
        self.check();
        self.depth.set(self.depth.get() - 1);
        self.pass(self.below(40));
    }

    /// Runs all steps.
    pub fn run(self: &Rc<Self>) {
        while self.steps.get() < self.setup.steps && !self.has_failed() {
            self.step();
            if self.dying.get() {
                self.crash_and_restart();
            }
            if self.recovering.get() && self.facts.borrow().is_caught_up(self.offsets()) {
                self.note("caught up");
                self.recovering.set(false);
            }
            self.check_quiet();
        }
    }

    /// Ends all work without beginning any. Then a repair must make every total right, and a verify
    /// must confirm it.
    pub fn come_to_rest(self: &Rc<Self>) {
        self.draining.set(true);
        self.rolled_out.set(true);
        self.jobs.borrow_mut().iter_mut().for_each(|job| *job = Some(Slot::Idle));
        for _ in 0..MAX_RESTS {
            if self.is_at_rest() || self.has_failed() {
                break;
            }
            (0..self.setup.writers).for_each(|slot| self.act(Act::Write(slot)));
            (0..STREAMS).for_each(|stream| self.act(Act::Deliver(stream)));
            self.check();
            self.pass(1_000);
        }
        if self.has_failed() {
            return;
        }
        if !self.is_at_rest() {
            return self.fail("the world does not come to rest");
        }
        self.recovering.set(false);
        self.check_quiet();
        self.pass(self.setup.settle);
        for mode in
            [if self.setup.pending_backfill { Mode::Backfill } else { Mode::Repair }, Mode::Verify]
        {
            let Some(report) = self.run_alone(mode) else { return };
            self.note(&format!("at rest: {report}"));
            let unsettled: u64 = report.counters.iter().map(|counter| counter.unsettled).sum();
            if unsettled > 0 || (mode == Mode::Verify && report.drift() > 0) {
                self.fail(&format!("at rest: {report}"));
            }
        }
        if !self.facts.borrow().expected.is_empty() {
            self.fail("a repair at rest leaves drift");
        }
        let is_ready = |spec: &CounterSpec| self.store().is_ready(spec.id()).unwrap();
        if !SCHEMA.counters().iter().all(is_ready) {
            self.fail("a backfill at rest leaves a counter that is not ready");
        }
        self.check_quiet();
    }

    fn is_at_rest(&self) -> bool {
        let facts = self.facts.borrow();
        self.writers.borrow().iter().all(Writer::is_idle)
            && self.couriers.borrow().iter().all(Courier::is_idle)
            && facts.txs.is_empty()
            && facts.is_caught_up(self.offsets())
    }

    /// Breaks the reference cycle between the world and its jobs.
    pub fn clear(&self) {
        self.jobs.borrow_mut().clear();
    }

    fn pick(&self) -> Act {
        let Setup { plants, crashes, prunes, .. } = self.setup;
        let top = self.depth.get() == 1;
        let mut acts: Vec<(u64, Act)> = vec![(12, Act::Pass), (2, Act::Save)];
        acts.extend((0..self.setup.writers).map(|slot| (30, Act::Write(slot))));
        let hurries = self.recovering.get() && !self.is(Variant::RepairBeforeCaughtUp);
        let deliveries = if hurries { 40 } else { 6 };
        acts.extend(
            (0..STREAMS)
                .filter(|_| self.setup.streamed > 0)
                .map(|stream| (deliveries, Act::Deliver(stream))),
        );
        for (slot, job) in self.jobs.borrow().iter().enumerate() {
            if job.as_ref().is_some_and(|job| job.is_due(self.now())) {
                acts.push((if top { 30 } else { 8 }, Act::Audit(slot)));
            }
        }
        if plants {
            // Changes of rows during an audit need pending writes, so rows are planted only at the
            // top of the stack.
            acts.push((if top { 2 } else { 0 }, Act::PlantRow));
            acts.push((1, Act::PlantTotal));
        }
        acts.push((u64::from(crashes), Act::Crash));
        acts.push((u64::from(prunes), Act::Prune));
        acts.push((if self.rolled_out.get() { 0 } else { 4 }, Act::RollOut));
        acts.push((if self.is(Variant::StaleReplica) { 20 } else { 0 }, Act::Replicate));
        let mut at = self.below(acts.iter().map(|(weight, _)| weight).sum());
        for (weight, act) in acts {
            match at.checked_sub(weight) {
                Some(left) => at = left,
                None => return act,
            }
        }
        Act::Pass
    }

    fn act(self: &Rc<Self>, act: Act) {
        match act {
            Act::Write(slot) => self.writers.borrow_mut()[slot].step(self),
            Act::Deliver(stream) => self.couriers.borrow_mut()[stream].step(self),
            Act::Audit(slot) => self.audit(slot),
            Act::PlantRow => self.plant_row(),
            Act::PlantTotal => self.plant_total(),
            Act::Save => self.save(),
            Act::Crash if self.one_in(3) => {
                self.note("the process dies");
                self.dying.set(true);
            }
            Act::Crash => {}
            Act::Prune => self.prune(),
            Act::Replicate => {
                let mut facts = self.facts.borrow_mut();
                facts.replica = Rc::clone(&facts.rows);
            }
            Act::RollOut => {
                self.note("every writer has hooks");
                self.rolled_out.set(true);
            }
            Act::Pass => {
                let most = [2_000, 2_000, 10_000, 50_000][self.below(4) as usize];
                let time = self.below(most);
                self.pass(time);
                self.count("time passes");
            }
        }
    }

    fn save(&self) {
        let (snapshot, offsets) = (self.store().snapshot(), self.offsets());
        self.facts.borrow_mut().save(snapshot, offsets);
        self.note(&format!("a snapshot, offsets {offsets:?}"));
        self.count("snapshots");
    }

    fn prune(&self) {
        let cutoff = self.facts.borrow().cutoff + 1;
        if cutoff < super::domain::DAYS as i64 - 2 {
            self.store().prune(super::domain::SETLIST_DAYS, cutoff).unwrap();
            self.facts.borrow_mut().prune(cutoff);
            self.note(&format!("days before {cutoff} are pruned"));
            self.count("prunes");
        }
    }

    /// Crashes at the top of the stack, where everything that was under way has failed.
    pub fn crash_and_restart(self: &Rc<Self>) {
        self.count("crashes");
        for slot in self.jobs.borrow_mut().iter_mut() {
            *slot = slot.take().map(Slot::die);
        }
        self.writers.borrow_mut().iter_mut().for_each(Writer::die);
        self.couriers.borrow_mut().iter_mut().for_each(Courier::die);
        let lost_offsets = self.offsets();
        let tampered = self.setup.plants && self.one_in(2) && self.tamper();
        let mut facts = self.facts.borrow_mut();
        if self.is(Variant::SnapshotWithoutOffsets) {
            facts.disk.snapshot =
                edited(&facts.disk.snapshot, |json| json["offsets"] = serde_json::json!({}));
        }
        let store = MemoryStore::restore(&SCHEMA, &facts.disk.snapshot).unwrap();
        let store = self.stores.put(clocked(store, &self.clock));
        self.store.set(store);
        if self.is(Variant::OffsetsApart) {
            move_offsets(store, lost_offsets);
        }
        facts.restart();
        if tampered {
            let drift = facts.drift(&self.stored(), self.offsets());
            facts.adopt_rollups(&drift);
        }
        drop(facts);
        self.dying.set(false);
        self.life.set(self.life.get() + 1);
        self.recovering.set(true);
        self.note(&format!(
            "restarted, offsets {:?}{}",
            self.offsets(),
            if tampered { ", tampered with" } else { "" }
        ));
        self.check();
    }

    /// Changes a rollup in the snapshot on the disk, without hooks.
    fn tamper(&self) -> bool {
        let mut facts = self.facts.borrow_mut();
        let rollup = at::BASE + self.below((SCHEMA.counters().len() - at::BASE) as u64) as usize;
        let mut has = false;
        facts.disk.snapshot = edited(&facts.disk.snapshot, |json| {
            let totals = json["counters"][rollup]["totals"].as_array_mut().unwrap();
            has = !totals.is_empty();
            if has {
                let at = self.below(totals.len() as u64) as usize;
                totals[at][1] = (totals[at][1].as_i64().unwrap() + 1 + self.below(3) as i64).into();
            }
        });
        if has {
            self.count("snapshots tampered with");
        }
        has
    }

    /// Checks every total against the facts. Its drift may change by what was planted, or become 0
    /// during its repair.
    pub fn check(&self) {
        if self.has_failed() {
            return;
        }
        let seen = (self.pages(), self.offsets(), self.facts.borrow().version());
        if *self.checked.borrow() == seen {
            return;
        }
        self.checked.replace(seen);
        let stored = self.stored();
        let mut facts = self.facts.borrow_mut();
        let cutoff = facts.cutoff;
        if let Some(name) = stored.keys().find(|name| is_pruned(name, cutoff)) {
            self.fail(&format!("{} is before the cutoff {cutoff}", show(name)));
        }
        let drift = facts.drift(&stored, self.offsets());
        if drift == facts.expected {
            return;
        }
        let names: BTreeSet<Name> = drift.keys().chain(facts.expected.keys()).cloned().collect();
        for name in names {
            let of = |totals: &Totals| totals.get(&name).copied().unwrap_or(0);
            let (is, was) = (of(&drift), of(&facts.expected));
            if is == was {
                continue;
            }
            let repaired = is == 0
                && self.repairing.borrow().iter().any(|repairing| repairing.contains(&name));
            if !repaired {
                self.fail(&format!("{} has drift {is}, expected {was}", show(&name)));
                return;
            }
            if self.is_fresh(&facts, &name) {
                self.fail(&format!(
                    "{} was repaired before its grace period had passed",
                    show(&name)
                ));
            }
            self.note(&format!("{} is repaired, its drift was {was}", show(&name)));
            self.count(if super::facts::is_base(&name) { "mends" } else { "repairs of rollups" });
            facts.expect(&name, 0);
        }
    }

    /// Whether a pending write for a key was dropped less than the grace period ago.
    pub fn is_fresh(&self, facts: &Facts, name: &Name) -> bool {
        facts.dropped.get(name).is_some_and(|since| since + self.setup.audit_grace() > self.now())
    }

    /// If nothing is open or unknown, compares every total with a recount.
    pub fn check_quiet(&self) {
        let facts = self.facts.borrow();
        let open = self.writers.borrow().iter().any(|writer| !writer.is_idle())
            || self.couriers.borrow().iter().any(|courier| !courier.is_idle());
        if self.has_failed() || open || !facts.txs.is_empty() || self.recovering.get() {
            return;
        }
        self.count("quiet points");
        let (stored, recounted) = (self.stored(), recount(&facts.rows));
        let names: BTreeSet<&Name> = stored.keys().chain(recounted.keys()).collect();
        for name in names.into_iter().filter(|name| !is_pruned(name, facts.cutoff)) {
            let of = |totals: &Totals| totals.get(name).copied().unwrap_or(0);
            let planted = of(&facts.expected);
            // A rollup is defined by the level below. It equals the rows only if there is no drift.
            let comparable = super::facts::is_base(name) || facts.expected.is_empty();
            if comparable && of(&stored) - of(&recounted) != planted {
                self.fail(&format!(
                    "at rest {} is {}, a recount gives {}, and {planted} was planted",
                    show(name),
                    of(&stored),
                    of(&recounted)
                ));
            }
        }
    }
}

fn clocked(store: MemoryStore, clock: &Arc<AtomicU64>) -> MemoryStore {
    let clock = Arc::clone(clock);
    store.with_clock(move || Duration::from_micros(clock.load(Ordering::Relaxed)))
}

/// Moves a store's offsets forward to these.
fn move_offsets(store: &MemoryStore, offsets: Offsets) {
    for (stream, offset) in STREAM_NAMES.iter().zip(offsets) {
        let known = store.offset(stream);
        if offset > known {
            store
                .apply_idempotent(
                    &mut Batch::new(),
                    &StreamRange::new(stream, known + 1, offset).unwrap(),
                )
                .unwrap();
        }
    }
}

fn edited(snapshot: &Snapshot, edit: impl FnOnce(&mut Value)) -> Snapshot {
    let mut json = serde_json::to_value(snapshot).unwrap();
    edit(&mut json);
    serde_json::from_value(json).unwrap()
}
