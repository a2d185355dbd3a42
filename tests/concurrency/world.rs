//! What the test bodies share: a store, the rows that it counts in place of a database, writers and
//! audits of them, and keys of one stripe and of different ones.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keepcount::reconcile::{
    GracePeriod, MemoryAudit, Mode, Options, Reconciler, Report, Runtime, run,
};
use keepcount::{Batch, Counter, KeyBuf, MemoryStore, PendingWrite, Record, Result, Schema, Tally};

use super::threads::{Mutex, once, thread};

pub const VOTES: Counter<i64> = Counter::new("votes");
pub const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

/// A row that adds an amount to one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub key: i64,
    pub amount: i64,
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.key, self.amount);
    }
}

/// The rows of these keys and amounts, in the given order.
pub fn rows<const N: usize>(of: [(i64, i64); N]) -> [Row; N] {
    of.map(|(key, amount)| Row { key, amount })
}

pub fn batch(rows: &[Row]) -> Batch {
    let mut batch = Batch::new();
    batch.insert(rows);
    batch
}

/// A store and its rows.
pub struct World {
    pub store: MemoryStore,
    visible: Mutex<Vec<Row>>,
    clock: Clock,
}

/// The clock of the store and of runs. It advances only by [`World::pass`]; a run that waits adds
/// the time of its own waits.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// How long keys of dropped pending writes are not repaired.
pub const GRACE: Duration = Duration::from_secs(3600);
/// The time at which the clock starts: one day. A pending write that is dropped then is older than
/// the grace period after [`World::pass`].
const BEGIN: u64 = 24 * 3600;

impl World {
    pub fn new() -> Self {
        let clock = Clock::default();
        clock.0.store(BEGIN, Ordering::SeqCst);
        let store = MemoryStore::new(&SCHEMA).with_clock({
            let clock = clock.clone();
            move || clock.now()
        });
        Self { store, visible: Mutex::new(Vec::new()), clock }
    }

    /// A world without rows, in which these totals are drift.
    pub fn planted<const N: usize>(drifts: [(i64, i64); N]) -> Self {
        let world = Self::new();
        world.store.apply(&mut batch(&rows(drifts))).unwrap();
        world
    }

    pub fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    /// Makes rows visible to every recount from now on.
    pub fn show(&self, rows: &[Row]) {
        self.visible.lock().extend_from_slice(rows);
    }

    /// Writes correctly: begins a pending write, makes the rows visible, and commits.
    pub fn write<const N: usize>(&self, of: [(i64, i64); N]) {
        let (rows, mut batch) = with_batch(of);
        let pending_write = self.begin(&mut batch);
        self.show(&rows);
        pending_write.commit().unwrap();
    }

    pub fn begin<'a>(&'a self, batch: &'a mut Batch) -> PendingWrite<'a> {
        self.store.begin(batch).unwrap()
    }

    /// The rows from a key on that are visible now, in key order.
    pub fn read(&self, from: Bound<i64>) -> Vec<Row> {
        let mut rows: Vec<Row> = self.visible.lock().clone();
        rows.retain(|row| match from {
            Bound::Unbounded => true,
            Bound::Included(from) => row.key >= from,
            Bound::Excluded(from) => row.key > from,
        });
        rows.sort_unstable();
        rows
    }

    /// A live audit without sources.
    pub fn audit(&self, grace_period: GracePeriod) -> MemoryAudit<'_> {
        MemoryAudit::live(&self.store, grace_period, self.waits())
    }

    pub fn waits(&self) -> Waits {
        Waits { clock: self.clock.clone(), waited: Duration::ZERO }
    }

    /// Runs a live audit to its end. It tries `tries` times to find no open pending write before it
    /// shuts a barrier.
    pub fn run(&self, mode: Mode, tries: u32) -> Result<Report> {
        let mut audit = self.audit(grace_period(tries));
        audit.add(VOTES, |from| self.read(from))?;
        self.run_of(mode, &mut audit)
    }

    pub fn run_of(&self, mode: Mode, audit: &mut MemoryAudit<'_>) -> Result<Report> {
        let mut reconciler = Reconciler::new(mode, &SCHEMA, Options::default().page(2))?;
        run(&mut reconciler, audit, &mut self.waits())
    }

    pub fn repair(&self, tries: u32) -> Report {
        self.run(Mode::Repair, tries).unwrap()
    }

    /// The differences between totals and rows. Call it only while nothing writes.
    pub fn drifts(&self) -> BTreeMap<i64, i64> {
        let mut drifts: BTreeMap<i64, i64> =
            self.store.totals(VOTES).unwrap().into_iter().collect();
        for row in self.read(Bound::Unbounded) {
            *drifts.entry(row.key).or_default() -= row.amount;
        }
        drifts.retain(|_, drift| *drift != 0);
        drifts
    }
}

pub fn with_batch<const N: usize>(of: [(i64, i64); N]) -> ([Row; N], Batch) {
    let rows = rows(of);
    let batch = batch(&rows);
    (rows, batch)
}

/// A grace period with this number of tries before a barrier is shut. A barrier may stay shut for
/// as long as every pending write needs to end.
pub fn grace_period(tries: u32) -> GracePeriod {
    GracePeriod::after(GRACE).barrier_time(GRACE).tries(tries)
}

/// A runtime whose time passes by its own waits. A wait lets other threads run.
pub struct Waits {
    clock: Clock,
    waited: Duration,
}

impl Runtime for Waits {
    fn now(&mut self) -> Duration {
        self.clock.now() + self.waited
    }

    fn wait(&mut self, time: Duration, _: &str) {
        self.waited += time;
        thread::yield_now();
    }
}

/// The keys of all counters that a run left unsettled.
pub fn unsettled(report: &Report) -> Vec<KeyBuf> {
    report.counters.iter().flat_map(|counter| counter.unsettled_keys.clone()).collect()
}

/// Three keys; their names do not say their order.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    pub here: i64,
    /// A key in the stripe of `here`.
    pub beside: i64,
    /// A key in another stripe.
    pub there: i64,
}

/// Finds keys by their stripe. The hash that spreads keys over stripes is seeded by the process, so
/// this shuts the barrier of one key and tries to begin at the others.
pub fn keys() -> Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    *KEYS.get_or_init(|| once(find_keys))
}

fn find_keys() -> Keys {
    const HERE: i64 = 1;
    const MAX: i64 = 20_000;
    let world = World::planted([(HERE, 1)]);
    let waits = |key| {
        let mut batch = batch(&rows([(key, 1)]));
        let begun = world.store.try_begin(&mut batch).unwrap();
        begun.map(PendingWrite::abort).is_none()
    };
    let (mut found, mut calls) = (None, 0);
    let mut audit = world.audit(grace_period(0));
    audit
        .add(VOTES, |_| {
            calls += 1;
            // The first call reads the page. The second one recounts its differing key while the
            // barrier is shut.
            if calls == 2 {
                let other = |is: bool| (HERE + 1..MAX).find(|key| waits(*key) == is).unwrap();
                found = Some(Keys { here: HERE, beside: other(true), there: other(false) });
            }
            Vec::<Row>::new()
        })
        .unwrap();
    world.run_of(Mode::Verify, &mut audit).unwrap();
    drop(audit);
    found.unwrap()
}
