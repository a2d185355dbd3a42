//! The clock of a store, for the rare moment that it must remember: handed in, or the process's own.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Gives the time since some moment.
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

/// The time since this process first asked.
impl Default for Clock {
    #[allow(clippy::disallowed_methods)] // the one real clock of the stores
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
