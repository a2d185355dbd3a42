//! The switches of the faults. This file becomes `src/mutant.rs` of the crate's copy. It reads the
//! environment, so that child processes of a test have the fault too.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

const NONE: u32 = u32::MAX - 2;
/// No fault is on, and the faults that are asked for are recorded.
const LISTENING: u32 = u32::MAX - 1;
const UNKNOWN: u32 = u32::MAX;
static ON: AtomicU32 = AtomicU32::new(UNKNOWN);

/// In code that the compiler evaluates, no fault is on.
#[inline(always)]
pub const fn on(id: u32) -> bool {
    core::intrinsics::const_eval_select((id,), never, is_on)
}

const fn never(_: u32) -> bool {
    false
}

#[inline(always)]
fn is_on(id: u32) -> bool {
    let on = ON.load(Ordering::Relaxed);
    on == id || (on > NONE && ask(id))
}

/// Whether a fault is recorded already: some are reached millions of times. `main` refuses more
/// than these.
static SEEN: [AtomicBool; 1 << 13] = [const { AtomicBool::new(false) }; 1 << 13];

#[cold]
fn ask(id: u32) -> bool {
    let seen = &SEEN[id as usize];
    if seen.load(Ordering::Relaxed) {
        return false;
    }
    static REACHED: LazyLock<Option<Mutex<(BTreeSet<u32>, File)>>> = LazyLock::new(|| {
        let path = std::env::var("KEEPCOUNT_MUTANTS_REACHED").ok()?;
        let file = OpenOptions::new().create(true).append(true).open(path).expect("a file to write to");
        Some(Mutex::new((BTreeSet::new(), file)))
    });
    let Some(reached) = &*REACHED else {
        let on = std::env::var("KEEPCOUNT_MUTANT").ok().and_then(|id| id.parse().ok()).unwrap_or(NONE);
        ON.store(on, Ordering::Relaxed);
        return on == id;
    };
    ON.store(LISTENING, Ordering::Relaxed);
    seen.store(true, Ordering::Relaxed);
    if let Ok(mut reached) = reached.lock()
        && reached.0.insert(id)
    {
        let _ = reached.1.write_all(format!("{id}\n").as_bytes());
    }
    false
}
