//! How long an audit beside writers waits, and for what.

use std::time::Duration;

/// The waits of an audit beside writers; every one is bounded.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use keepcount::reconcile::GracePeriod;
///
/// // No write's outcome is unknown for longer: statements time out after 5 s.
/// let grace_period = GracePeriod::after(Duration::from_secs(10)).barrier_time(Duration::from_millis(20));
/// # let _ = grace_period;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GracePeriod {
    pub(super) time: Duration,
    pub(super) barrier_time: Duration,
    pub(super) tries: u32,
}

impl GracePeriod {
    /// Keys of dropped pending writes are left alone for this long, the grace period: by then it must be certain what became of their rows, and whoever resolves a dropped
    /// pending write by hand must have done so.
    #[must_use]
    pub const fn after(time: Duration) -> Self {
        Self { time, barrier_time: Duration::from_millis(100), tries: 8 }
    }

    /// How long a barrier may be shut before the pending writes that are open have ended; 100 ms by default. Then it opens, and the key is unsettled and left
    /// alone for the grace period.
    #[must_use]
    pub const fn barrier_time(mut self, time: Duration) -> Self {
        self.barrier_time = time;
        self
    }

    /// How often a key is looked for with no pending write open over its stripe before its barrier is shut; 8 by default. In between it waits from 100 us on,
    /// doubling up to 2 ms.
    #[must_use]
    pub const fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }
}
