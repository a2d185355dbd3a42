//! What is so, whatever the totals say: committed rows, transactions under way, the journal of each
//! stream; and how far each total may be off, by all that was planted.

use std::collections::BTreeMap;
use std::rc::Rc;

use keepcount::{Batch, Snapshot};

use super::domain::{
    Name, Row, RowId, Tables, Totals, add, add_all, add_row, at, is_pruned, sums_of,
};

pub const STREAMS: usize = 2;
pub const STREAM_NAMES: [&str; STREAMS] = ["votes", "tours"];

pub type TxId = u64;
/// The last event of each stream that a store applied.
pub type Offsets = [u64; STREAMS];

/// What a transaction writes, and what its hooks say.
#[derive(Debug, Default)]
pub struct Change {
    pub writes: Vec<(RowId, Option<Row>)>,
    /// Old and new rows, as the writer knows them.
    pub hooked: Vec<(Option<Row>, Option<Row>)>,
    /// What the hooks add up to.
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

/// What facts that [`Facts::drift`] depends on are told apart by.
pub type Version = (u64, u64, i64, Vec<(TxId, bool, bool, bool)>);

/// A transaction, as the database and the oracles see it.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each may be so without the others
pub struct Tx {
    pub change: Rc<Change>,
    pub stream: Option<usize>,
    /// Its number in the stream, once it is committed.
    pub event: Option<u64>,
    pub visible: bool,
    pub applied: bool,
    pub fate: Fate,
    /// Nobody will apply it: from when it is visible it is drift.
    pub left: bool,
    /// When its pending write was dropped and nothing has been begun instead: until when somebody
    /// may still begin.
    pub deadline: Option<u64>,
    /// Its writer died in a crash.
    pub orphaned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Open,
    /// The commit was sent, and its answer lost.
    Limbo {
        at: u64,
        commits: bool,
    },
    Decided,
}

/// A committed transaction of a stream, with what its hooks said.
#[derive(Debug)]
pub struct Event {
    pub change: Rc<Change>,
    /// Nobody will apply it: the offset passes it with an empty batch.
    pub left: bool,
}

/// The last snapshot, and what drift a store has that is restored from it and caught up with the
/// streams.
pub struct Disk {
    pub snapshot: Snapshot,
    pub offsets: Offsets,
    pub expected: Totals,
    pub cutoff: i64,
}

pub struct Facts {
    pub rows: Rc<Tables>,
    /// What a replica that lags has of them.
    pub replica: Rc<Tables>,
    /// The sums of the rows, kept along.
    pub actual: Totals,
    pub locks: BTreeMap<RowId, TxId>,
    pub txs: BTreeMap<TxId, Tx>,
    pub journal: [Vec<Event>; STREAMS],
    /// How far each total is off, once all that is under way is applied; of a rollup, from the
    /// level below as that is stored.
    pub expected: Totals,
    /// What `expected` was, and from which moment on.
    history: BTreeMap<Name, Vec<(u64, i64)>>,
    pub moment: u64,
    /// The moment of the last restart.
    restarted: u64,
    /// How often rows were written.
    writes: u64,
    /// When a pending write over a key was last dropped.
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
            left: false,
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

    /// Commits: all at once its rows are to be seen, its event has a number, and its locks are
    /// free.
    pub fn commit(&mut self, id: TxId) {
        self.unlock(id);
        let Some(tx) = self.txs.get_mut(&id) else { return };
        tx.fate = Fate::Decided;
        tx.visible = true;
        let (change, stream, left) = (Rc::clone(&tx.change), tx.stream, tx.left);
        if let Some(stream) = stream {
            self.journal[stream].push(Event { change: Rc::clone(&change), left });
            tx.event = Some(self.journal[stream].len() as u64);
        }
        self.write(&change.writes);
        if stream.is_none() {
            self.shift_disk(&change.deltas, -1);
        }
        if left {
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

    /// Decides that nobody applies a transaction any more: what it adds is left to a repair.
    pub fn leave(&mut self, id: TxId, offsets: Offsets) {
        let Some(tx) = self.txs.get_mut(&id) else { return };
        tx.deadline = None;
        if let (Some(stream), Some(event)) = (tx.stream, tx.event) {
            if offsets[stream] >= event {
                return; // somebody else has applied it
            }
            self.journal[stream][event as usize - 1].left = true;
        }
        tx.left = true;
        if tx.visible {
            let change = Rc::clone(&tx.change);
            self.shift(&change.deltas, -1);
        }
    }

    /// Rows that change behind the hooks' back.
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

    /// Moves the expected drift of some keys.
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

    /// From this moment on a key is off by this.
    pub fn expect(&mut self, name: &Name, drift: i64) {
        self.moment += 1;
        self.history.entry(name.clone()).or_default().push((self.moment, drift));
        if drift == 0 {
            self.expected.remove(name);
        } else {
            self.expected.insert(name.clone(), drift);
        }
    }

    /// What a key was off by at some moments from this one on, in this life of the process.
    pub fn since<'f>(&'f self, name: &Name, moment: u64) -> impl Iterator<Item = i64> + 'f {
        let moment = moment.max(self.restarted);
        let history = self.history.get(name).map_or(&[][..], Vec::as_slice);
        let later = history.partition_point(|(at, _)| *at <= moment);
        let before = later.checked_sub(1).map_or(0, |at| history[at].1);
        std::iter::once(before).chain(history[later..].iter().map(|(_, drift)| *drift))
    }

    pub fn version(&self) -> Version {
        let txs = self.txs.iter().map(|(id, tx)| (*id, tx.visible, tx.applied, tx.left)).collect();
        (self.moment, self.writes, self.cutoff, txs)
    }

    /// What those will apply who have not yet, less what they have applied too early.
    fn owed(&self, offsets: Offsets) -> Totals {
        let mut owed = Totals::new();
        for (deltas, sign) in self.owed_unguarded() {
            add_all(&mut owed, deltas, sign);
        }
        for (events, offset) in self.journal.iter().zip(offsets) {
            for event in events.iter().skip(offset as usize).filter(|event| !event.left) {
                add_all(&mut owed, &event.change.deltas, 1);
            }
        }
        owed
    }

    /// Of transactions of no stream.
    fn owed_unguarded(&self) -> impl Iterator<Item = (&Totals, i64)> {
        let unguarded = self.txs.values().filter(|tx| tx.stream.is_none() && !tx.left);
        unguarded.map(|tx| (&tx.change.deltas, i64::from(tx.visible) - i64::from(tx.applied)))
    }

    /// How far each total is off, once what is owed is applied.
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
        // Who replays a stream knows nothing of those who left an event alone.
        for (events, offset) in self.journal.iter().zip(offsets) {
            for event in events.iter().skip(offset as usize).filter(|event| event.left) {
                add_all(&mut expected, &event.change.deltas, 1);
            }
        }
        expected.retain(|name, _| !is_pruned(name, self.cutoff));
        self.disk = Disk { snapshot, offsets, expected, cutoff: self.cutoff };
    }

    /// The process is gone, and a new one has the last snapshot: whose rows are not committed are
    /// rolled back, but for those whose commit is on its way.
    pub fn restart(&mut self) {
        self.writes += 1;
        self.txs.retain(|_, tx| matches!(tx.fate, Fate::Limbo { .. }));
        for tx in self.txs.values_mut() {
            (tx.deadline, tx.orphaned, tx.left) = (None, true, tx.stream.is_none());
        }
        self.locks.retain(|_, holder| self.txs.contains_key(holder));
        self.dropped.clear();
        self.cutoff = self.disk.cutoff;
        for (events, offset) in self.journal.iter_mut().zip(self.disk.offsets) {
            events.iter_mut().skip(offset as usize).for_each(|event| event.left = false);
        }
        let names: Vec<Name> =
            self.expected.keys().chain(self.disk.expected.keys()).cloned().collect();
        for name in names {
            self.expect(&name, self.disk.expected.get(&name).copied().unwrap_or(0));
        }
        self.restarted = self.moment;
    }

    /// Takes the rollups' drift as it is: somebody wrote into the snapshot.
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

    /// Whether the journals are applied to their ends, and nothing from before a crash can come
    /// into them.
    pub fn is_caught_up(&self, offsets: Offsets) -> bool {
        let behind =
            self.journal.iter().zip(offsets).any(|(events, offset)| offset < events.len() as u64);
        !behind && !self.txs.values().any(|tx| tx.orphaned && tx.stream.is_some())
    }
}

/// Only what rows drive.
pub fn is_base(name: &Name) -> bool {
    name.0 < at::BASE
}
