//! The values that batches and memory stores take from the process and the machine, the hash's seed
//! and the number of stripes, and a way to fix them so that a run can be replayed.
//!
//! For tests that print a seed; not part of the public interface.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

use foldhash::SharedSeed;

struct Taken {
    seed: SharedSeed,
    /// The start value of the hash. It is not part of the shared seed and must be secret too: with
    /// it, an attacker could choose a first word that makes the product of the words 0, whatever
    /// the second is.
    start: u64,
    /// `None` if the number of processors decides.
    stripes: Option<usize>,
}

static TAKEN: OnceLock<Taken> = OnceLock::new();

/// Fixes both for the life of the process, so that the same keys share a stripe in every run.
///
/// Returns false if a key was hashed, or a store made, before.
///
/// # Panics
///
/// If `stripes` is not a power of two.
pub fn fix(stripes: usize) -> bool {
    assert!(stripes.is_power_of_two(), "a hash is masked to a stripe");
    TAKEN
        .set(Taken { seed: SharedSeed::global_fixed().clone(), start: 0, stripes: Some(stripes) })
        .is_ok()
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
