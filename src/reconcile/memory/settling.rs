//! How long an audit beside writers waits, and for what.

use std::time::Duration;

/// The waits of an audit beside writers; every one is bounded.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use keepcount::reconcile::Settling;
///
/// // No write's outcome is unknown for longer: statements time out after 5 s.
/// let settling = Settling::after(Duration::from_secs(10)).gate_time(Duration::from_millis(20));
/// # let _ = settling;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settling {
    pub(super) settle_time: Duration,
    pub(super) gate_time: Duration,
    pub(super) tries: u32,
}

impl Settling {
    /// Keys of dropped brackets are left alone for this long, the settle time: by then it must be certain what became of their rows, and whoever resolves a dropped
    /// bracket by hand must have done so.
    #[must_use]
    pub const fn after(settle_time: Duration) -> Self {
        Self { settle_time, gate_time: Duration::from_millis(100), tries: 8 }
    }

    /// How long a gate may be shut before the brackets that are open have ended; 100 ms by default. Then it opens, and the key is unsettled and left
    /// alone for the settle time.
    #[must_use]
    pub const fn gate_time(mut self, time: Duration) -> Self {
        self.gate_time = time;
        self
    }

    /// How often a key is looked for with no bracket open over its stripe before its gate is shut; 8 by default. In between it waits from 100 us on,
    /// doubling up to 2 ms.
    #[must_use]
    pub const fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }
}
