//! What the bodies share: a store, and the rows that it counts in what stands for a database; who
//! writes them and who audits them; and keys that meet in one stripe, or do not.

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

/// Rows of these keys and amounts, in key order.
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

/// The time of the store and of those who wait: it stands still but for [`World::pass`], and for
/// whoever waits.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst))
    }
}

/// Keys of dropped pending writes are left alone for so long.
pub const GRACE: Duration = Duration::from_secs(3600);
/// A day after the clock began: what was dropped then is older than the grace period, by
/// [`World::pass`].
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

    /// A world in which some totals differ from their rows, of which there are none.
    pub fn planted<const N: usize>(drifts: [(i64, i64); N]) -> Self {
        let world = Self::new();
        world.store.apply(&mut batch(&rows(drifts))).unwrap();
        world
    }

    pub fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(time.as_secs(), Ordering::SeqCst);
    }

    /// Makes rows visible to whoever recounts from now on.
    pub fn show(&self, rows: &[Row]) {
        self.visible.lock().extend_from_slice(rows);
    }

    /// Begins, makes rows visible, commits: as it should be.
    pub fn write<const N: usize>(&self, of: [(i64, i64); N]) {
        let (rows, mut batch) = with_batch(of);
        let pending_write = self.begin(&mut batch);
        self.show(&rows);
        pending_write.commit().unwrap();
    }

    pub fn begin<'a>(&'a self, batch: &'a mut Batch) -> PendingWrite<'a> {
        self.store.begin(batch).unwrap()
    }

    /// The rows from a key on, as visible now.
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

    /// An audit beside writers, without rows.
    pub fn audit(&self, grace_period: GracePeriod) -> MemoryAudit<'_> {
        MemoryAudit::live(&self.store, grace_period, self.waits())
    }

    pub fn waits(&self) -> Waits {
        Waits { clock: self.clock.clone(), waited: Duration::ZERO }
    }

    /// A whole run of an audit beside writers, which tries so often before it shuts a gate.
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

    /// By how much totals differ from the rows, while nobody writes.
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

/// So many tries before a gate is shut, which then stays shut for as long as it takes.
pub fn grace_period(tries: u32) -> GracePeriod {
    GracePeriod::after(GRACE).barrier_time(GRACE).tries(tries)
}

/// Time that passes for whoever waits, who lets the others go on.
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

/// How many keys of the votes a run left alone.
pub fn unsettled(report: &Report) -> Vec<KeyBuf> {
    report.counters.iter().flat_map(|counter| counter.unsettled_keys.clone()).collect()
}

/// Three keys, in order of nothing.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    pub here: i64,
    /// In the stripe of `here`.
    pub beside: i64,
    /// In another.
    pub there: i64,
}

/// Keys are spread by a hash that is seeded by the process; so a gate is shut for one, and the
/// others are tried.
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
            // First for the page; then for its one suspect, while the gate is shut.
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
