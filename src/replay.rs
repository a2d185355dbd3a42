//! What batches and memory stores take from the process and the machine, the hash's seed and the number of stripes: fixed where a run must be
//! replayed. For tests that print a seed; not part of the interface.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

use foldhash::SharedSeed;

struct Taken {
    seed: SharedSeed,
    /// What the hash starts from. It is not in the shared seed, and must be secret too: whoever knows it chooses a first word that makes the
    /// product of the words 0, whatever the second.
    start: u64,
    /// None where the machine's processors say.
    stripes: Option<usize>,
}

static TAKEN: OnceLock<Taken> = OnceLock::new();

/// Fixes both for the life of the process, so that the same keys share a stripe in every run; false where a key was hashed, or a store made, before.
///
/// # Panics
///
/// When `stripes` is no power of two.
pub fn fix(stripes: usize) -> bool {
    assert!(stripes.is_power_of_two(), "a hash is masked to a stripe");
    TAKEN.set(Taken { seed: SharedSeed::global_fixed().clone(), start: 0, stripes: Some(stripes) }).is_ok()
}

#[inline]
fn taken() -> &'static Taken {
    TAKEN.get_or_init(|| {
        let (seed, start) = (SharedSeed::global_random().clone(), RandomState::new().hash_one(()));
        Taken { seed, start, stripes: None }
    })
}

#[inline]
pub(crate) fn seed() -> (u64, &'static SharedSeed) {
    let taken = taken();
    (taken.start, &taken.seed)
}

pub(crate) fn stripes() -> Option<usize> {
    taken().stripes
}
