//! What differs from seed to seed: how many take part, what may happen to them, and how long audits
//! wait.

use super::support::random::Random;
use super::variant::Variant;

/// Times are in microseconds.
#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools)] // switches
pub struct Setup {
    pub seed: u64,
    pub variant: Option<Variant>,
    /// Steps of all who take part, also those that run while an audit waits.
    pub steps: u32,
    pub writers: usize,
    pub jobs: usize,
    /// Writers have until then to find out what became of a dropped pending write's rows.
    pub settle: u64,
    pub throttle: u64,
    pub tries: u32,
    /// How many of a hundred transactions are events of a stream.
    pub streamed: u64,
    /// Outcomes may be unknown.
    pub unknowns: bool,
    /// Rows and totals may change behind the hooks' back.
    pub plants: bool,
    pub crashes: bool,
    pub prunes: bool,
    /// Reading rows may fail.
    pub read_errors: bool,
    /// The store begins over rows that are there, with a writer that has no hooks yet.
    pub pending_backfill: bool,
    /// Rows are read one by one as they are by then, instead of all at one moment.
    pub cursors: bool,
    /// Audits read all rows in an order of no key, instead of a page's rows in key order.
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
            throttle: 300 + below(3_000),
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

    /// What audits are told.
    pub fn audit_grace(&self) -> u64 {
        if self.is(Variant::GraceTooShort) { self.settle / 50 } else { self.settle }
    }

    pub fn is(&self, variant: Variant) -> bool {
        self.variant == Some(variant)
    }
}
