//! The true state, independent of the totals: committed rows, open transactions, the journal of
//! each stream; and the drift that each total may have because of what was planted.

use std::collections::BTreeMap;
use std::rc::Rc;

use keepcount::{Batch, Snapshot};

use super::domain::{
    Name, Row, RowId, Tables, Totals, add, add_all, add_row, at, is_pruned, sums_of,
};

pub const STREAMS: usize = 2;
pub const STREAM_NAMES: [&str; STREAMS] = ["votes", "tours"];

pub type TxId = u64;
/// The last event of each stream that a store has applied.
pub type Offsets = [u64; STREAMS];

/// The rows that a transaction writes, and the old and new rows that it passes to the hooks.
#[derive(Debug, Default)]
pub struct Change {
    pub writes: Vec<(RowId, Option<Row>)>,
    /// Old and new rows, as the writer knows them.
    pub hooked: Vec<(Option<Row>, Option<Row>)>,
    /// The sum of what the hooks add.
    pub deltas: Totals,
}

impl Change {
    pub fn new(writes: Vec<(RowId, Option<Row>)>, hooked: Vec<(Option<Row>, Option<Row>)>) -> Self {
        let mut deltas = Totals::new();
        for (old, new) in &hooked {
            add_row(&mut deltas, old.as_ref(), -1);
            add_row(&mut deltas, new.as_ref(), 1);
        }
        Self { writes, hooked, deltas }
    }

    pub fn hook_into(&self, batch: &mut Batch) {
        for (old, new) in &self.hooked {
            match (old, new) {
                (Some(old), Some(new)) => batch.update(old, new),
                (old, new) => {
                    batch.delete(old);
                    batch.insert(new);
                }
            }
        }
    }
}

/// Changes whenever a fact that [`Facts::drift`] depends on does.
pub type Version = (u64, u64, i64, Vec<(TxId, bool, bool, bool)>);

/// A transaction, as the database and the checks see it.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // they are independent
pub struct Tx {
    pub change: Rc<Change>,
    pub stream: Option<usize>,
    /// Its number in the stream, once it is committed.
    pub event: Option<u64>,
    pub visible: bool,
    pub applied: bool,
    pub fate: Fate,
    /// Nobody will apply it. As soon as its rows are visible, it is drift.
    pub abandoned: bool,
    /// The time until which somebody may still begin a pending write for it, after the first was
    /// dropped.
    pub deadline: Option<u64>,
    /// Its writer died in a crash.
    pub orphaned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Open,
    /// The commit was sent, and its answer was lost.
    Limbo {
        at: u64,
        commits: bool,
    },
    Decided,
}

/// A committed transaction of a stream, with what its hooks added.
#[derive(Debug)]
pub struct Event {
    pub change: Rc<Change>,
    /// Nobody will apply it. The offset moves past it with an empty batch.
    pub abandoned: bool,
}

/// The last snapshot, and the drift of a store that is restored from it and has caught up with the
/// streams.
pub struct Disk {
    pub snapshot: Snapshot,
    pub offsets: Offsets,
    pub expected: Totals,
    pub cutoff: i64,
}

pub struct Facts {
    pub rows: Rc<Tables>,
    /// The rows as a lagging replica has them.
    pub replica: Rc<Tables>,
    /// The sums of the rows, kept up to date.
    pub actual: Totals,
    pub locks: BTreeMap<RowId, TxId>,
    pub txs: BTreeMap<TxId, Tx>,
    pub journal: [Vec<Event>; STREAMS],
    /// The drift of each total once all open transactions are applied. For a rollup, relative to
    /// the level below as stored.
    pub expected: Totals,
    /// The earlier values of `expected`, each with the moment from which it held.
    history: BTreeMap<Name, Vec<(u64, i64)>>,
    pub moment: u64,
    /// The moment of the last restart.
    restarted: u64,
    /// The number of writes to rows.
    writes: u64,
    /// When a pending write for a key was last dropped.
    pub dropped: BTreeMap<Name, u64>,
    pub cutoff: i64,
    pub disk: Disk,
    next_tx: TxId,
}

impl Facts {
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            rows: Rc::default(),
            replica: Rc::default(),
            actual: Totals::new(),
            locks: BTreeMap::new(),
            txs: BTreeMap::new(),
            journal: Default::default(),
            expected: Totals::new(),
            history: BTreeMap::new(),
            moment: 0,
            restarted: 0,
            writes: 0,
            dropped: BTreeMap::new(),
            cutoff: 0,
            disk: Disk { snapshot, offsets: [0; STREAMS], expected: Totals::new(), cutoff: 0 },
            next_tx: 1,
        }
    }

    pub fn begin(&mut self, stream: Option<usize>) -> TxId {
        let id = self.next_tx;
        self.next_tx += 1;
        let (change, fate) = (Rc::default(), Fate::Open);
        let tx = Tx {
            change,
            stream,
            event: None,
            visible: false,
            applied: false,
            fate,
            abandoned: false,
            deadline: None,
            orphaned: false,
        };
        self.txs.insert(id, tx);
        id
    }

    /// Locks rows for a transaction: all of them or none.
    pub fn lock(&mut self, tx: TxId, ids: &[RowId]) -> bool {
        let free = ids.iter().all(|id| self.locks.get(id).is_none_or(|holder| *holder == tx));
        if free {
            self.locks.extend(ids.iter().map(|id| (*id, tx)));
        }
        free
    }

    fn unlock(&mut self, tx: TxId) {
        self.locks.retain(|_, holder| *holder != tx);
    }

    /// Commits: at once its rows are visible, its event has a number, and its locks are released.
    pub fn commit(&mut self, id: TxId) {
        self.unlock(id);
        let Some(tx) = self.txs.get_mut(&id) else { return };
        tx.fate = Fate::Decided;
        tx.visible = true;
        let (change, stream, abandoned) = (Rc::clone(&tx.change), tx.stream, tx.abandoned);
        if let Some(stream) = stream {
            self.journal[stream].push(Event { change: Rc::clone(&change), abandoned });
            tx.event = Some(self.journal[stream].len() as u64);
        }
        self.write(&change.writes);
        if stream.is_none() {
            self.shift_disk(&change.deltas, -1);
        }
        if abandoned {
            self.shift(&change.deltas, -1);
        }
    }

    pub fn roll_back(&mut self, id: TxId) {
        self.unlock(id);
        if let Some(tx) = self.txs.get_mut(&id) {
            tx.fate = Fate::Decided;
            tx.deadline = None;
        }
    }

    /// Decides that nobody applies a transaction any more: its amounts are left to a repair.
    pub fn abandon(&mut self, id: TxId, offsets: Offsets) {
        let Some(tx) = self.txs.get_mut(&id) else { return };
        tx.deadline = None;
        if let (Some(stream), Some(event)) = (tx.stream, tx.event) {
            if offsets[stream] >= event {
                return; // it was applied by somebody else
            }
            self.journal[stream][event as usize - 1].abandoned = true;
        }
        tx.abandoned = true;
        if tx.visible {
            let change = Rc::clone(&tx.change);
            self.shift(&change.deltas, -1);
        }
    }

    /// Changes rows without hooks.
    pub fn write_unguarded(&mut self, change: &Change) {
        self.write(&change.writes);
        self.shift(&change.deltas, -1);
        self.shift_disk(&change.deltas, -1);
    }

    pub fn write(&mut self, writes: &[(RowId, Option<Row>)]) {
        self.writes += 1;
        let rows = Rc::make_mut(&mut self.rows);
        for (id, new) in writes {
            add_row(&mut self.actual, rows.get(id), -1);
            add_row(&mut self.actual, new.as_ref(), 1);
            match new {
                Some(new) => drop(rows.insert(*id, *new)),
                None => drop(rows.remove(id)),
            }
        }
    }

    /// Changes the expected drift of some keys.
    pub fn shift(&mut self, deltas: &Totals, sign: i64) {
        for (name, delta) in deltas {
            if !is_pruned(name, self.cutoff) {
                self.expect(name, self.expected.get(name).copied().unwrap_or(0) + sign * delta);
            }
        }
    }

    fn shift_disk(&mut self, deltas: &Totals, sign: i64) {
        for (name, delta) in deltas.iter().filter(|(name, _)| !is_pruned(name, self.disk.cutoff)) {
            add(&mut self.disk.expected, name, sign * delta);
        }
    }

    /// Sets the expected drift of a key from this moment on.
    pub fn expect(&mut self, name: &Name, drift: i64) {
        self.moment += 1;
        self.history.entry(name.clone()).or_default().push((self.moment, drift));
        if drift == 0 {
            self.expected.remove(name);
        } else {
            self.expected.insert(name.clone(), drift);
        }
    }

    /// The expected drifts of a key from this moment on, in the current life of the process.
    pub fn since<'f>(&'f self, name: &Name, moment: u64) -> impl Iterator<Item = i64> + 'f {
        let moment = moment.max(self.restarted);
        let history = self.history.get(name).map_or(&[][..], Vec::as_slice);
        let later = history.partition_point(|(at, _)| *at <= moment);
        let before = later.checked_sub(1).map_or(0, |at| history[at].1);
        std::iter::once(before).chain(history[later..].iter().map(|(_, drift)| *drift))
    }

    pub fn version(&self) -> Version {
        let txs =
            self.txs.iter().map(|(id, tx)| (*id, tx.visible, tx.applied, tx.abandoned)).collect();
        (self.moment, self.writes, self.cutoff, txs)
    }

    /// What is still to be applied, less what was applied too early.
    fn owed(&self, offsets: Offsets) -> Totals {
        let mut owed = Totals::new();
        for (deltas, sign) in self.owed_unguarded() {
            add_all(&mut owed, deltas, sign);
        }
        for (events, offset) in self.journal.iter().zip(offsets) {
            for event in events.iter().skip(offset as usize).filter(|event| !event.abandoned) {
                add_all(&mut owed, &event.change.deltas, 1);
            }
        }
        owed
    }

    /// The same for transactions that belong to no stream.
    fn owed_unguarded(&self) -> impl Iterator<Item = (&Totals, i64)> {
        let unguarded = self.txs.values().filter(|tx| tx.stream.is_none() && !tx.abandoned);
        unguarded.map(|tx| (&tx.change.deltas, i64::from(tx.visible) - i64::from(tx.applied)))
    }

    /// The drift of each total, once what is owed is applied.
    pub fn drift(&self, stored: &Totals, offsets: Offsets) -> Totals {
        let mut drift = self.owed(offsets);
        add_all(&mut drift, stored, 1);
        add_all(&mut drift, &self.actual, -1);
        add_all(&mut drift, &sums_of(stored), -1);
        drift.retain(|name, _| !is_pruned(name, self.cutoff));
        drift
    }

    pub fn prune(&mut self, cutoff: i64) {
        self.cutoff = cutoff;
        let gone: Vec<Name> =
            self.expected.keys().filter(|name| is_pruned(name, cutoff)).cloned().collect();
        for name in gone {
            self.expect(&name, 0);
        }
    }

    pub fn save(&mut self, snapshot: Snapshot, offsets: Offsets) {
        let mut expected = self.expected.clone();
        for (deltas, sign) in self.owed_unguarded() {
            add_all(&mut expected, deltas, -sign);
        }
        // A replay of a stream does not know which events were abandoned, so it applies them.
        for (events, offset) in self.journal.iter().zip(offsets) {
            for event in events.iter().skip(offset as usize).filter(|event| event.abandoned) {
                add_all(&mut expected, &event.change.deltas, 1);
            }
        }
        expected.retain(|name, _| !is_pruned(name, self.cutoff));
        self.disk = Disk { snapshot, offsets, expected, cutoff: self.cutoff };
    }

    /// Replaces the process by one that has the last snapshot. Open transactions are rolled back,
    /// unless their commit was sent.
    pub fn restart(&mut self) {
        self.writes += 1;
        self.txs.retain(|_, tx| matches!(tx.fate, Fate::Limbo { .. }));
        for tx in self.txs.values_mut() {
            (tx.deadline, tx.orphaned, tx.abandoned) = (None, true, tx.stream.is_none());
        }
        self.locks.retain(|_, holder| self.txs.contains_key(holder));
        self.dropped.clear();
        self.cutoff = self.disk.cutoff;
        for (events, offset) in self.journal.iter_mut().zip(self.disk.offsets) {
            events.iter_mut().skip(offset as usize).for_each(|event| event.abandoned = false);
        }
        let names: Vec<Name> =
            self.expected.keys().chain(self.disk.expected.keys()).cloned().collect();
        for name in names {
            self.expect(&name, self.disk.expected.get(&name).copied().unwrap_or(0));
        }
        self.restarted = self.moment;
    }

    /// Accepts the rollups' drift as expected, after the snapshot was tampered with.
    pub fn adopt_rollups(&mut self, drift: &Totals) {
        let names = self.expected.keys().chain(drift.keys()).filter(|name| !is_base(name)).cloned();
        for name in names.collect::<Vec<Name>>() {
            let amount = drift.get(&name).copied().unwrap_or(0);
            self.expect(&name, amount);
            self.disk.expected.remove(&name);
            add(&mut self.disk.expected, &name, amount);
        }
        self.restarted = self.moment;
    }

    /// Whether the journals are applied to their ends, and no transaction from before a crash can
    /// still be added to them.
    pub fn is_caught_up(&self, offsets: Offsets) -> bool {
        let behind =
            self.journal.iter().zip(offsets).any(|(events, offset)| offset < events.len() as u64);
        !behind && !self.txs.values().any(|tx| tx.orphaned && tx.stream.is_some())
    }
}

/// Whether rows drive the counter.
pub fn is_base(name: &Name) -> bool {
    name.0 < at::BASE
}
