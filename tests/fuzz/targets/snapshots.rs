//! Snapshots. Bytes, or JSON, are a snapshot or are refused with a reason, with memory in
//! proportion to their length. A damaged snapshot is refused. A forged one with a valid checksum is
//! restored on any schema to a working store, or is refused with a reason.
#![no_main]
#![allow(clippy::unwrap_used)]

mod schemas;

use std::alloc::System;

use cap::Cap;
use keepcount::{Batch, Error, MemoryStore, Schema, Snapshot};
use libfuzzer_sys::fuzz_target;

use schemas::{SCHEMAS, SET_DAYS, SET_SHOW, SET_VOTES, WORDS};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// The memory that reading may take: so much for each byte, because two bytes can be a total; and
/// what serde reserves before it has read any.
const MEMORY_EACH: usize = 64;
const MEMORY_FREE: usize = 4 << 20;

const MAGIC: &[u8] = b"keepcount totals";

fuzz_target!(|data: &[u8]| {
    if let Some(snapshot) = read(data, Snapshot::from_bytes) {
        assert_eq!(snapshot.to_bytes().unwrap(), data);
    }
    if let Some(snapshot) = read(&with_checksum(data), Snapshot::from_bytes) {
        check(&snapshot);
        check_damaged(&snapshot.to_bytes().unwrap(), data);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(snapshot) = within_memory(text.len(), || serde_json::from_str::<Snapshot>(text))
    {
        check(&snapshot);
    }
});

/// Reads within memory in proportion to the bytes.
fn read(bytes: &[u8], read: impl Fn(&[u8]) -> keepcount::Result<Snapshot>) -> Option<Snapshot> {
    match within_memory(bytes.len(), || read(bytes)) {
        Ok(snapshot) => Some(snapshot),
        Err(Error::Snapshot { reason }) => {
            assert!(!reason.is_empty());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// Runs with a memory limit. More memory aborts the process.
fn within_memory<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    MEMORY.set_limit(MEMORY.allocated() + bytes * MEMORY_EACH + MEMORY_FREE).unwrap();
    let done = work();
    MEMORY.set_limit(usize::MAX).unwrap();
    done
}

/// The file with this body, and a valid header and checksum.
fn with_checksum(body: &[u8]) -> Vec<u8> {
    let (format, len) = (2_u32.to_le_bytes(), (body.len() as u64).to_le_bytes());
    let mut file = [MAGIC, &format, &len, body].concat();
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    file.extend(file.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes());
    file
}

fn check(snapshot: &Snapshot) {
    assert_eq!(Snapshot::from_bytes(&snapshot.to_bytes().unwrap()).unwrap(), *snapshot);
    assert_eq!(
        serde_json::from_value::<Snapshot>(serde_json::to_value(snapshot).unwrap()).unwrap(),
        *snapshot
    );
    for schema in SCHEMAS {
        check_restored(&schema, snapshot);
        let mut known = snapshot.clone();
        for lost in snapshot.orphaned(&schema) {
            // A counter that is listed twice was dropped the first time.
            let _ = known.drop_counter(&lost);
        }
        assert!(known.orphaned(&schema).is_empty());
        check_restored(&schema, &known);
    }
}

/// A restored store equals the store restored from its own snapshot, and works.
fn check_restored(schema: &Schema, snapshot: &Snapshot) {
    let store = match MemoryStore::restore(schema, snapshot) {
        Ok(store) => store,
        Err(Error::Snapshot { reason }) => return assert!(!reason.is_empty()),
        Err(other) => panic!("{other}"),
    };
    let taken = store.snapshot();
    assert_eq!(MemoryStore::restore(schema, &taken).unwrap().snapshot(), taken);
    let mut batch = Batch::new();
    if schema.position(&SET_DAYS.id()).is_ok() {
        batch.add(SET_VOTES, 1, 1);
        batch.add(SET_SHOW, (1, "a"), 1);
        batch.add(SET_DAYS, (1, 1), 1);
        store.prune(SET_DAYS, 0).unwrap();
    } else if schema.position(&WORDS.id()).is_ok() {
        batch.add(WORDS, "a", 1);
    }
    let before = store.snapshot();
    match store.apply(&mut batch) {
        Ok(_) => {}
        Err(Error::Overflow { .. }) => assert_eq!(store.snapshot(), before),
        Err(other) => panic!("{other}"),
    }
}

/// A file with bytes flipped, removed, inserted, or taken from another file is refused.
fn check_damaged(file: &[u8], other: &[u8]) {
    let mixed = other.iter().fold(0_usize, |sum, byte| (sum * 31 + usize::from(*byte)) % 65_521);
    for at in [0, 16, 20, 28, file.len() - 8, mixed % file.len()] {
        let at = at.min(file.len() - 1);
        let (prefix, suffix) = file.split_at(at);
        let mut flipped = file.to_vec();
        flipped[at] ^= 1 << (mixed % 8);
        let put_in = [prefix, &[0], suffix].concat();
        let cut_out = [prefix, &suffix[1..]].concat();
        let ours = |range: std::ops::Range<usize>| other.get(range).unwrap_or_default();
        let spliced = [prefix, ours(0..suffix.len())].concat();
        for damaged in [&flipped, &put_in, &cut_out, prefix, &[prefix, file].concat(), &spliced] {
            let found = Snapshot::from_bytes(damaged);
            assert!(
                matches!(found, Err(Error::Snapshot { .. })) || damaged == file,
                "{at}: {found:?}"
            );
        }
    }
}
