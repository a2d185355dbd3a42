//! Tests with a disk that fails at every step in every way, and crashes at every step with unsynced
//! data lost, kept, or partly kept: afterwards the file is exactly the old snapshot or exactly the
//! new one.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::atomic_file::{Disk, load, save};
use super::{MemoryStore, Snapshot};
use crate::batch::Batch;
use crate::counter::Counter;
use crate::error::{Error, Result};
use crate::schema::Schema;

/// What happens to one call instead of what it requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// An error, and nothing is done.
    Fails,
    /// The disk is full: a write writes half of what it could, and the next one fails. Any other
    /// call fails at once.
    Full,
    /// An error after half of a write was done, or after all of any other call except a rename.
    Torn,
    /// A write of one byte.
    Short,
    /// A write of no bytes.
    Nothing,
    /// A call that a signal interrupted, to be repeated.
    Interrupted,
    /// The process dies before the call.
    Dies,
    /// The process dies during the call: half of a write is done.
    DiesHalfway,
    /// The process dies after the call.
    DiesAfter,
}

const FAULTS: [Fault; 9] = [
    Fault::Fails,
    Fault::Full,
    Fault::Torn,
    Fault::Short,
    Fault::Nothing,
    Fault::Interrupted,
    Fault::Dies,
    Fault::DiesHalfway,
    Fault::DiesAfter,
];

/// The calls to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Sweep,
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Remove,
    Open,
    Read,
}

/// A file's bytes.
#[derive(Debug, Clone, Default)]
struct Node {
    written: Vec<u8>,
    /// The bytes that survive a crash.
    synced: Vec<u8>,
    /// A sync failed: the bytes at that moment are reported as written and never will be, whatever
    /// a later sync returns.
    dropped: bool,
    held: bool,
}

/// A change of names that is not synced yet.
#[derive(Debug, Clone)]
enum Named {
    Created(PathBuf, usize),
    Renamed(PathBuf, PathBuf, usize),
    Removed(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<Named>,
    /// The number of calls so far, and the faults planned by call.
    calls: usize,
    plan: Vec<(usize, Fault)>,
    hit: Vec<(Call, Fault)>,
    full: bool,
    dead: bool,
    random: u64,
    /// A complete other save, and the call before which it happens.
    beside: Option<(usize, Vec<u8>)>,
}

/// The most bytes of one write or read, so that a snapshot takes several.
const CHUNK: usize = 100;

/// What a crash of the machine does to unsynced bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unsynced {
    Lost,
    Kept,
    Half,
    /// The length is kept, and the bytes are zeros.
    Zeros,
}

const UNSYNCED: [Unsynced; 4] = [Unsynced::Lost, Unsynced::Kept, Unsynced::Half, Unsynced::Zeros];

impl State {
    fn error(kind: ErrorKind) -> io::Error {
        io::Error::new(kind, format!("planned: {kind}"))
    }

    /// Returns the fault of this call; an error if the call does nothing.
    fn call(&mut self, call: Call) -> io::Result<Option<Fault>> {
        if self.dead {
            return Err(Self::error(ErrorKind::Other));
        }
        let fault = self.plan.iter().find(|(at, _)| *at == self.calls).map(|(_, fault)| *fault);
        self.calls += 1;
        let writes = matches!(call, Call::Write | Call::Read);
        let fault = fault.filter(|fault| match fault {
            Fault::Short | Fault::Interrupted => writes,
            Fault::Nothing | Fault::DiesHalfway => call == Call::Write,
            Fault::Torn => call != Call::Rename,
            _ => true,
        });
        self.hit.extend(fault.map(|fault| (call, fault)));
        if call == Call::Write && self.full {
            return Err(Self::error(ErrorKind::StorageFull));
        }
        match fault {
            Some(Fault::Fails) => Err(Self::error(ErrorKind::Other)),
            Some(Fault::Interrupted) => Err(Self::error(ErrorKind::Interrupted)),
            Some(Fault::Full) if call != Call::Write => Err(Self::error(ErrorKind::StorageFull)),
            Some(Fault::Dies) => {
                self.dead = true;
                Err(Self::error(ErrorKind::Other))
            }
            fault => Ok(fault),
        }
    }

    /// Ends a call that did something.
    fn end<T>(&mut self, fault: Option<Fault>, done: T) -> io::Result<T> {
        self.dead |= matches!(fault, Some(Fault::DiesHalfway | Fault::DiesAfter));
        self.full |= fault == Some(Fault::Full);
        if self.dead || fault == Some(Fault::Torn) {
            Err(Self::error(ErrorKind::Other))
        } else {
            Ok(done)
        }
    }

    /// Returns the disk after a crash that kept these of the unsynced name changes, in their order,
    /// and did this to the bytes.
    fn after_crash(&self, kept: u32, bytes: Unsynced) -> Self {
        let mut names = self.synced_names.clone();
        for (at, named) in self.unsynced.iter().enumerate() {
            if kept >> at & 1 == 0 {
                continue;
            }
            match named.clone() {
                Named::Created(path, node) => drop(names.insert(path, node)),
                Named::Renamed(from, to, node) => {
                    names.remove(&from);
                    names.insert(to, node);
                }
                Named::Removed(path) => drop(names.remove(&path)),
            }
        }
        let mut nodes = self.nodes.clone();
        for node in &mut nodes {
            let all = node.written.len();
            match bytes {
                Unsynced::Lost => node.written = node.synced.clone(),
                Unsynced::Kept if node.dropped => node.written = node.synced.clone(),
                Unsynced::Kept => {}
                Unsynced::Half => node.written.truncate(node.synced.len().midpoint(all)),
                Unsynced::Zeros => {
                    node.written = node.synced.clone();
                    node.written.resize(all, 0);
                }
            }
            node.synced = node.written.clone();
            (node.dropped, node.held) = (false, false);
        }
        Self { nodes, synced_names: names.clone(), names, random: self.random, ..Self::default() }
    }

    /// Returns every disk that a crash may leave now.
    fn after_crashes(&self) -> impl Iterator<Item = Self> {
        let kept = 0..1 << self.unsynced.len();
        kept.flat_map(move |kept| UNSYNCED.map(|bytes| self.after_crash(kept, bytes)))
    }
}

/// A disk, shared by its open files.
#[derive(Debug, Clone, Default)]
struct Faulty(Rc<RefCell<State>>);

impl Faulty {
    fn of(state: State) -> Self {
        Self(Rc::new(RefCell::new(state)))
    }

    /// Returns the same disk with another plan of faults.
    fn planned(&self, plan: &[(usize, Fault)]) -> Self {
        let state = self.state();
        Self::of(State { calls: 0, plan: plan.to_vec(), hit: Vec::new(), full: false, ..state })
    }

    fn state(&self) -> State {
        self.0.borrow().clone()
    }

    /// Returns the state for the next call; another save may come before it.
    fn next(&self) -> RefMut<'_, State> {
        let mut state = self.0.borrow_mut();
        let calls = state.calls;
        if let Some((_, bytes)) = state.beside.take_if(|(at, _)| *at == calls) {
            drop(state);
            save(self, Path::new(PATH), &bytes).unwrap();
            return self.0.borrow_mut();
        }
        state
    }

    fn load(&self) -> Result<Snapshot> {
        load(&self.planned(&[]), Path::new(PATH))
    }

    fn names(&self) -> usize {
        self.0.borrow().names.len()
    }
}

/// An open file, and how much of it was read.
#[derive(Debug)]
struct Handle {
    disk: Faulty,
    node: usize,
    read: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.0.borrow_mut().nodes[self.node].held = false;
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.next();
        let fault = state.call(Call::Write)?;
        let most = bytes.len().min(CHUNK);
        let len = match fault {
            Some(Fault::Nothing) => 0,
            Some(Fault::Short) => 1,
            Some(Fault::Full | Fault::Torn | Fault::DiesHalfway) => most.div_ceil(2),
            _ => most,
        };
        state.nodes[self.node].written.extend_from_slice(&bytes[..len]);
        state.end(fault, len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Handle {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.next();
        let fault = state.call(Call::Read)?;
        let rest = &state.nodes[self.node].written[self.read..];
        let len = rest.len().min(to.len()).min(if fault == Some(Fault::Short) { 1 } else { CHUNK });
        to[..len].copy_from_slice(&rest[..len]);
        self.read += len;
        state.end(fault, len)
    }
}

impl Disk for Faulty {
    type File = Handle;

    fn sweep(&self, folder: &Path, wanted: impl Fn(&OsStr) -> bool) -> io::Result<()> {
        let mut state = self.next();
        let fault = state.call(Call::Sweep)?;
        let is_left = |(path, node): &(&PathBuf, &usize)| {
            path.parent() == Some(folder)
                && wanted(path.file_name().unwrap())
                && !state.nodes[**node].held
        };
        let left: Vec<PathBuf> =
            state.names.iter().filter(is_left).map(|(path, _)| path.clone()).collect();
        state.end(fault, ())?;
        drop(state);
        left.iter().try_for_each(|path| self.remove(path))
    }

    fn create(&self, name: impl Fn(u64) -> PathBuf) -> io::Result<(PathBuf, Handle)> {
        let mut state = self.next();
        let fault = state.call(Call::Create)?;
        state.random += 1;
        let (path, node) = (name(state.random), state.nodes.len());
        assert!(!state.names.contains_key(&path), "a temporary file of another");
        state.nodes.push(Node { held: true, ..Node::default() });
        state.names.insert(path.clone(), node);
        state.unsynced.push(Named::Created(path.clone(), node));
        state.end(fault, ())?;
        drop(state);
        Ok((path, Handle { disk: self.clone(), node, read: 0 }))
    }

    fn sync(&self, file: &mut Handle) -> io::Result<()> {
        let mut state = self.next();
        let called = state.call(Call::Sync);
        let node = &mut state.nodes[file.node];
        match called {
            Err(_) | Ok(Some(Fault::Torn)) => node.dropped = true,
            Ok(_) if !node.dropped => node.synced = node.written.clone(),
            Ok(_) => {}
        }
        state.end(called?, ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.next();
        let fault = state.call(Call::Rename)?;
        let node = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), node);
        state.unsynced.push(Named::Renamed(from.to_owned(), to.to_owned(), node));
        state.end(fault, ())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.next();
        let fault = state.call(Call::SyncFolder)?;
        if fault != Some(Fault::Torn) {
            state.synced_names = state.names.clone();
            state.unsynced.clear();
        }
        state.end(fault, ())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.next();
        let fault = state.call(Call::Remove)?;
        state.names.remove(path).ok_or(ErrorKind::NotFound)?;
        state.unsynced.push(Named::Removed(path.to_owned()));
        state.end(fault, ())
    }

    fn open(&self, path: &Path) -> io::Result<impl Read> {
        let mut state = self.next();
        let fault = state.call(Call::Open)?;
        let node = *state.names.get(path).ok_or(ErrorKind::NotFound)?;
        state.end(fault, ())?;
        Ok(Handle { disk: self.clone(), node, read: 0 })
    }
}

const PATH: &str = "totals/site.snapshot";
const VOTES: Counter<String> = Counter::new("show.votes");
const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

/// Returns a snapshot of this many totals.
fn snapshot(totals: i64) -> Snapshot {
    let store = MemoryStore::new(&SCHEMA);
    let mut batch = Batch::new();
    (0..totals).for_each(|key| batch.add(VOTES, format!("show-{key}"), totals));
    store.apply(&mut batch).unwrap();
    store.snapshot()
}

/// Returns a disk with the old snapshot, fully synced, or without one; and with a leftover of a
/// killed process.
fn disk(old: Option<&Snapshot>) -> Faulty {
    let disk = Faulty::default();
    if let Some(old) = old {
        save(&disk, Path::new(PATH), &old.to_bytes().unwrap()).unwrap();
    }
    drop(disk.create(|_| "totals/.site.snapshot.keepcount-00000000000000aa.tmp".into()).unwrap());
    disk.sync_folder(Path::new("totals")).unwrap();
    disk
}

/// Returns whether a disk has the new snapshot. Otherwise it must have the old one, or none if
/// there was no old one.
fn is_new(disk: &Faulty, old: Option<&Snapshot>, new: &Snapshot) -> bool {
    match disk.load() {
        Ok(found) if found == *new => true,
        Ok(found) => {
            assert_eq!(Some(&found), old, "a snapshot that nobody saved");
            false
        }
        Err(error) => {
            assert!(
                old.is_none() && error.to_string().contains("entity not found"),
                "refused: {error}"
            );
            false
        }
    }
}

/// Saves with these faults, and compares the file with what the save returned, now and after every
/// crash.
fn check(old: Option<&Snapshot>, new: &Snapshot, plan: &[(usize, Fault)]) -> Vec<(Call, Fault)> {
    let disk = disk(old).planned(plan);
    let saved = save(&disk, Path::new(PATH), &new.to_bytes().unwrap());
    let state = disk.state();
    let now = is_new(&Faulty::of(State { dead: false, ..state.clone() }), old, new);
    // A call that did its work and then failed may also leave a file.
    let may_leave = |hit: &(Call, Fault)| {
        matches!(hit, (Call::Remove | Call::Sweep, _) | (Call::Create, Fault::Torn))
    };
    let excused = state.hit.iter().any(may_leave);
    for crashed in state.after_crashes().map(Faulty::of) {
        let then = is_new(&crashed, old, new);
        match &saved {
            Ok(()) => assert!(now && then, "it was saved: {plan:?}"),
            Err(_) if state.dead => {}
            Err(Error::Indeterminate { .. }) => assert!(now, "{plan:?}"),
            Err(error) => {
                assert!(
                    matches!(error, Error::Database { .. }) && error.to_string().contains(PATH),
                    "{error}"
                );
                assert!(!now && !then, "the old file was to stay: {plan:?}");
            }
        }
        if plan.len() == 1 {
            // The next process saves, and no other file is left.
            let newer = snapshot(9);
            save(&crashed, Path::new(PATH), &newer.to_bytes().unwrap()).unwrap();
            assert_eq!(crashed.load().unwrap(), newer);
            assert_eq!(crashed.names(), 1, "{:?}", crashed.state().names);
        }
    }
    let left = disk.names() - usize::from(now || old.is_some());
    assert!(state.dead || excused || left == 0, "a temporary file is left: {plan:?}");
    state.hit
}

/// Returns the number of calls of one save, plus a few.
fn calls(old: Option<&Snapshot>, new: &Snapshot) -> usize {
    let disk = disk(old).planned(&[]);
    save(&disk, Path::new(PATH), &new.to_bytes().unwrap()).unwrap();
    disk.state().calls + 3
}

/// One fault at every call, and then two at any two of them.
#[test]
fn whatever_fails_the_file_is_the_old_one_or_the_new_one() {
    let (one, two) = (snapshot(3), snapshot(12));
    let mut hits: BTreeMap<(Call, Fault), usize> = BTreeMap::new();
    for (old, new) in [(None, &one), (Some(&one), &two), (Some(&two), &one)] {
        let calls = calls(old, new);
        for first in 0..calls {
            for fault in FAULTS {
                let mut hit = check(old, new, &[(first, fault)]);
                for second in first + 1..calls {
                    for then in FAULTS {
                        hit.extend(check(old, new, &[(first, fault), (second, then)]));
                    }
                }
                for hit in hit {
                    *hits.entry(hit).or_default() += 1;
                }
            }
        }
    }
    println!("faults that were met: {hits:?}");
    for call in [
        Call::Sweep,
        Call::Create,
        Call::Write,
        Call::Sync,
        Call::Rename,
        Call::SyncFolder,
        Call::Remove,
    ] {
        for fault in FAULTS {
            let applies = match fault {
                Fault::Short | Fault::Nothing | Fault::Interrupted | Fault::DiesHalfway => {
                    call == Call::Write
                }
                Fault::Torn => call != Call::Rename,
                _ => true,
            };
            assert_eq!(hits.contains_key(&(call, fault)), applies, "{call:?} {fault:?}");
        }
    }
}

#[test]
fn whatever_fails_a_load_gives_the_snapshot_or_says_why_not() {
    let whole = snapshot(12);
    let disk = disk(Some(&whole));
    let (mut given, mut refused) = (0, 0);
    for at in 0..20 {
        for fault in FAULTS {
            match load(&disk.planned(&[(at, fault)]), Path::new(PATH)) {
                Ok(found) => {
                    assert_eq!(found, whole);
                    given += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Database { .. }), "{error}");
                    assert!(
                        error
                            .to_string()
                            .starts_with("loading snapshot totals/site.snapshot: planned"),
                        "{error}"
                    );
                    refused += 1;
                }
            }
        }
    }
    assert!(given > 20 && refused > 20, "{given} {refused}");
}

/// Before each call of a save, another save writes the same file: the last to rename wins, and
/// nothing is left of the other.
#[test]
fn two_saves_at_once_never_mix() {
    let (old, one, two) = (snapshot(1), snapshot(3), snapshot(12));
    let mut won = [0, 0];
    for at in 0..calls(Some(&old), &one) {
        let disk = disk(Some(&old)).planned(&[]);
        disk.0.borrow_mut().beside = Some((at, two.to_bytes().unwrap()));
        save(&disk, Path::new(PATH), &one.to_bytes().unwrap()).unwrap();
        let state = disk.state();
        if state.beside.is_some() {
            continue;
        }
        let found = disk.load().unwrap();
        won[usize::from(found == two)] += 1;
        assert!(found == one || found == two);
        assert_eq!(disk.names(), 1);
        assert!(state.after_crashes().all(|crashed| Faulty::of(crashed).load().unwrap() == found));
    }
    // The second save renames after the first only if it begins between the first one's last two
    // calls.
    assert!(won[0] > 5 && won[1] == 1, "{won:?}");
}
