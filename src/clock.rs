//! The clock of a store: passed in, or the process's monotonic clock.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Returns the time since some fixed moment.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    pub(crate) fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> Duration {
        (self.0)()
    }
}

/// The time since the first call in this process.
impl Default for Clock {
    #[allow(clippy::disallowed_methods)] // the only real clock of the stores
    fn default() -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        Self::new(|| FIRST.get_or_init(Instant::now).elapsed())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
