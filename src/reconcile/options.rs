//! The settings of a run: its mode, page, samples, limits and pace.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// Whether a run only verifies, repairs, or fills new counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Compares and reports. What a grouped source counts in SQL is not checked against `tally`.
    Verify,
    /// Compares, reports, and repairs what differs.
    Repair,
    /// Repairs like [`Repair`](Self::Repair), and makes each counter ready that it compared from
    /// its first key to its last without an unsettled key.
    ///
    /// **Run a backfill only after every writer runs these hooks: nothing can check that for you.**
    /// If a writer without them changes a key after it was compared, the total lacks that change
    /// and can be read all the same; a later repair finds it.
    /// [`max_wrong_percent`](Options::max_wrong_percent) has no effect: at first every key is
    /// missing.
    Backfill,
}

impl Mode {
    pub(super) const fn repairs(self) -> bool {
        !matches!(self, Self::Verify)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verify",
            Self::Repair => "repair",
            Self::Backfill => "backfill",
        })
    }
}

/// The settings of a run. Every one has a default, and pages and waits are always bounded.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use keepcount::reconcile::Options;
///
/// let nightly = Options::default().duty_percent(25).max_time(Duration::from_secs(3600));
/// # let _ = nightly;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub(super) page: Option<usize>,
    pub(super) page_time: Duration,
    pub(super) samples: usize,
    pub(super) force: bool,
    pub(super) max_pages: Option<u64>,
    pub(super) max_rows: Option<u64>,
    pub(super) max_time: Option<Duration>,
    pub(super) max_wrong_percent: Option<u8>,
    pub(super) rows_per_second: Option<u64>,
    pub(super) duty_percent: u8,
    pub(super) retries: u32,
    pub(super) stall_after: Duration,
}

/// The largest page, in keys.
pub(super) const MAX_PAGE: usize = 100_000;
/// The most samples of drift in a counter's report.
pub(super) const MAX_SAMPLES: usize = 100_000;

impl Default for Options {
    fn default() -> Self {
        Self {
            page: None,
            page_time: Duration::from_millis(50),
            samples: 20,
            force: false,
            max_pages: None,
            max_rows: None,
            max_time: None,
            max_wrong_percent: None,
            rows_per_second: None,
            duty_percent: 100,
            retries: 5,
            stall_after: Duration::from_secs(5 * 60),
        }
    }
}

impl Options {
    /// Sets the page to this many keys, 1 to 100,000. By default pages adapt to
    /// [`page_time`](Self::page_time).
    #[must_use]
    pub const fn page(mut self, keys: usize) -> Self {
        self.page = Some(keys);
        self
    }

    /// Sets how long comparing an adaptive page should take; the default is 50 ms.
    ///
    /// Such a page has 16 to 8,192 keys. It grows to up to 100,000 keys if most of its time is a
    /// fixed cost of every page, as under a rollup's parent with very many children.
    #[must_use]
    pub const fn page_time(mut self, time: Duration) -> Self {
        self.page_time = time;
        self
    }

    /// Sets how many drifting keys of each counter the report shows, the first in key order, at
    /// most 100,000; the default is 20.
    #[must_use]
    pub const fn samples(mut self, keys: usize) -> Self {
        self.samples = keys;
        self
    }

    /// Repairs even if a source is empty while 100 or more of its totals are not 0; the default is
    /// `false`.
    #[must_use]
    pub const fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Ends the run after this many pages, 1 or more, over all counters; unlimited by default.
    #[must_use]
    pub const fn max_pages(mut self, pages: u64) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Ends the run at the end of the page that reaches this many rows, 1 or more; unlimited by
    /// default.
    #[must_use]
    pub const fn max_rows(mut self, rows: u64) -> Self {
        self.max_rows = Some(rows);
        self
    }

    /// Ends the run at the end of the first page after this time, but not before one page is done;
    /// unlimited by default.
    #[must_use]
    pub const fn max_time(mut self, time: Duration) -> Self {
        self.max_time = Some(time);
        self
    }

    /// Refuses to repair a counter if more than this share of its keys is wrong, once this run has
    /// compared 100 or more; unlimited by default. Forced runs and backfills ignore it.
    #[must_use]
    pub const fn max_wrong_percent(mut self, percent: u8) -> Self {
        self.max_wrong_percent = Some(percent);
        self
    }

    /// Waits between pages so that on average no more rows than this are read a second; unlimited
    /// by default.
    #[must_use]
    pub const fn rows_per_second(mut self, rows: u64) -> Self {
        self.rows_per_second = Some(rows);
        self
    }

    /// Waits between pages so that work takes this share of the time, 1 to 100; the default is 100.
    #[must_use]
    pub const fn duty_percent(mut self, percent: u8) -> Self {
        self.duty_percent = percent;
        self
    }

    /// Sets how often in a row a step is retried if another connection is in the way; the default
    /// is 5, with waits from 50 ms doubling to 1 s.
    #[must_use]
    pub const fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Ends the run as stalled if throttles have delayed it this long; the default is 5 minutes.
    #[must_use]
    pub const fn stall_after(mut self, time: Duration) -> Self {
        self.stall_after = time;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let within = |setting, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                let bounds = if most == u64::MAX {
                    format!("{least} or more")
                } else {
                    format!("within {least} to {most}")
                };
                Err(Error::invalid_use(setting, format!("{value} is not {bounds}")))
            }
        };
        if let Some(page) = self.page {
            within("page", page as u64, 1, MAX_PAGE as u64)?;
        }
        within("samples", self.samples as u64, 0, MAX_SAMPLES as u64)?;
        within("duty percent", u64::from(self.duty_percent), 1, 100)?;
        within("max wrong percent", u64::from(self.max_wrong_percent.unwrap_or(0)), 0, 100)?;
        within("max pages", self.max_pages.unwrap_or(1), 1, u64::MAX)?;
        within("max rows", self.max_rows.unwrap_or(1), 1, u64::MAX)?;
        within("rows per second", self.rows_per_second.unwrap_or(1), 1, u64::MAX)
    }
}
