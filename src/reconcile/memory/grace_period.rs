//! How long an audit waits for concurrent writers, and for what.

use std::time::Duration;

/// The waits of an audit that runs next to writers; each of them is bounded.
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
    /// Sets the grace period: for this long, keys of dropped pending writes are not compared.
    ///
    /// By its end it must be certain what became of their rows. If you resolve a dropped pending
    /// write by hand, do so within this time.
    #[must_use]
    pub const fn after(time: Duration) -> Self {
        Self { time, barrier_time: Duration::from_millis(100), tries: 8 }
    }

    /// Sets how long a barrier may stay shut before the open pending writes have ended; the default
    /// is 100 ms. After that it opens, and the key is unsettled and skipped for the grace period.
    #[must_use]
    pub const fn barrier_time(mut self, time: Duration) -> Self {
        self.barrier_time = time;
        self
    }

    /// Sets how often the audit looks for a moment with no pending write open over a key's stripe,
    /// before it shuts the barrier; the default is 8. It waits in between, from 100 us on, doubling
    /// up to 2 ms.
    #[must_use]
    pub const fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }
}
