//! The parameters of a seed: how many writers and jobs there are, what may happen to them, and how
//! long audits wait.

use super::support::random::Random;
use super::variant::Variant;

/// Times are in microseconds.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // switches
pub struct Setup {
    pub seed: u64,
    pub variant: Option<Variant>,
    /// The steps of all participants, including those during an audit's waits.
    pub steps: u32,
    pub writers: usize,
    pub jobs: usize,
    /// The time in which writers find out the outcome of a dropped pending write.
    pub settle: u64,
    pub barrier_time: u64,
    pub tries: u32,
    /// The percentage of transactions that are events of a stream.
    pub streamed: u64,
    /// Commits may have an unknown outcome.
    pub unknowns: bool,
    /// Rows and totals may change without hooks.
    pub plants: bool,
    pub crashes: bool,
    pub prunes: bool,
    /// Reads of rows may fail.
    pub read_errors: bool,
    /// The store starts over existing rows, and one writer has no hooks yet.
    pub pending_backfill: bool,
    /// Rows are read one by one, each as it is then, instead of all at one moment.
    pub cursors: bool,
    /// Audits read all rows, not in key order, instead of a page's rows in key order.
    pub scans: bool,
}

impl Setup {
    pub fn of(seed: u64, variant: Option<Variant>) -> Self {
        let mut random = Random(seed);
        let mut below = |most: u64| random.below(most);
        let replays = matches!(variant, Some(Variant::RepairBeforeCaughtUp));
        Self {
            seed,
            variant,
            steps: 600,
            writers: 1 + below(4) as usize,
            jobs: 1 + below(3) as usize,
            settle: 8_000 + below(32_000),
            barrier_time: 300 + below(3_000),
            tries: below(6) as u32,
            streamed: if replays { 100 } else { [0, 50, 50, 100][below(4) as usize] },
            unknowns: below(4) > 0,
            plants: below(4) > 0,
            crashes: below(3) > 0 || replays,
            prunes: below(3) > 0,
            read_errors: below(3) == 0,
            cursors: below(2) == 0,
            pending_backfill: below(10) == 0 || variant == Some(Variant::BackfillBeforeHooks),
            scans: below(3) == 0,
        }
    }

    /// The grace period of audits.
    pub fn audit_grace(&self) -> u64 {
        if self.is(Variant::GraceTooShort) { self.settle / 50 } else { self.settle }
    }

    pub fn is(&self, variant: Variant) -> bool {
        self.variant == Some(variant)
    }
}
