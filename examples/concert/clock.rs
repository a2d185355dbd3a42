//! The clocks, for output and for the times of verifications. Totals never depend on them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

#[allow(
    clippy::disallowed_methods,
    reason = "only keepcount's pure modules must not look at a clock"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// Returns the seconds since 1970.
#[allow(
    clippy::disallowed_methods,
    reason = "only keepcount's pure modules must not look at a clock"
)]
pub fn seconds_now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
        }
    }
}
