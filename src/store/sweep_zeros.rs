//! The progress of a sweep and the result of one call; no I/O, and the same for both databases.

// Only PostgreSQL has locks.
#![cfg_attr(not(feature = "postgres"), allow(dead_code))]

use super::TOTALS_PAGE;
use crate::counter::CounterSpec;
use crate::counter::key_range::KeyRange;
use crate::key::KeyBuf;
use crate::schema::Schema;
use crate::sql::LockKey;

/// Removes rows that no longer mean anything, a bounded number at each call; holds where the next
/// call begins and how many rows it checks.
///
/// It removes totals of 0, which read like absent ones, and in PostgreSQL the lock rows of children
/// and of keys of leaderboards. What is left are totals other than 0, so the size of a table
/// follows the keys that exist now, not those that ever existed.
///
/// A sweep belongs to one store and schema. Keep it between calls: a new one begins at the first
/// row, so a new one for each call would check the same rows each time.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use keepcount::{Batch, SqliteStore, Store, Sweep};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// let conn = rusqlite::Connection::open_in_memory()?;
/// let mut store = SqliteStore::new(&conn, &SCHEMA);
/// store.create()?;
/// for delta in [1, -1] {
///     let mut batch = Batch::new();
///     batch.add(SHOW_VOTES, 7, delta);
///     store.apply(&mut batch)?;
/// }
///
/// let mut sweep = Sweep::new().rows(500);
/// let mut totals = 0;
/// loop {
///     // One short transaction for each page; check a stop flag here.
///     let swept = store.sweep(&mut sweep)?;
///     totals += swept.totals;
///     if swept.complete {
///         break;
///     }
/// }
/// assert_eq!(totals, 1);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sweep {
    rows: usize,
    at: At,
}

/// The next table, and the last key in it that was checked.
#[derive(Debug, Clone)]
enum At {
    /// The counter's position in the schema.
    Totals(usize, Option<KeyBuf>),
    Locks(LockKey),
}

/// The result of one call of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Swept {
    /// Rows checked.
    pub looked: u64,
    /// Totals of 0 removed.
    pub totals: u64,
    /// Locks removed; 0 in SQLite, which has none.
    pub locks: u64,
    /// Whether the last row was reached: the next call begins at the first.
    pub complete: bool,
}

/// Rows of one table that are checked together, after a key.
pub(crate) struct Page {
    pub(crate) spec: &'static CounterSpec,
    pub(crate) range: KeyRange,
    pub(crate) rows: usize,
}

const ROWS: usize = 1000;

impl Sweep {
    /// Creates a sweep from the first row on, with 1,000 rows a call.
    #[must_use]
    pub const fn new() -> Self {
        Self { rows: ROWS, at: At::Totals(0, None) }
    }

    /// Sets how many rows a call checks, at least 1; the default is 1,000.
    ///
    /// A call removes no more rows than that, and each transaction only a part of them, so no
    /// writer waits for long.
    #[must_use]
    pub const fn rows(mut self, rows: usize) -> Self {
        self.rows = if rows == 0 { 1 } else { rows };
        self
    }

    /// Returns the next page of totals, if this call may check more rows and there are more tables.
    pub(crate) fn totals(&self, schema: &Schema, swept: &Swept) -> Option<Page> {
        let At::Totals(position, after) = &self.at else { return None };
        let spec = schema.counters().get(*position)?;
        Some(Page { spec, range: KeyRange::after(after.as_ref()), rows: self.left(swept)? })
    }

    /// Returns the next page of locks: the key that it comes after, and the number of rows.
    pub(crate) fn locks(&self, swept: &Swept) -> Option<(Option<&LockKey>, usize)> {
        let after = match &self.at {
            At::Totals(..) => None,
            At::Locks(after) => Some(after),
        };
        Some((after, self.left(swept)?))
    }

    fn left(&self, swept: &Swept) -> Option<usize> {
        let looked = usize::try_from(swept.looked).unwrap_or(usize::MAX);
        let left = self.rows.saturating_sub(looked).min(TOTALS_PAGE);
        (left > 0).then_some(left)
    }

    /// Records that a page was checked up to this key. A page shorter than its limit was the
    /// table's last.
    pub(crate) fn passed(&mut self, page: &Page, keys: usize, last: Option<&KeyBuf>) {
        if let At::Totals(position, after) = &mut self.at {
            if keys < page.rows {
                (*position, *after) = (*position + 1, None);
            } else {
                *after = last.cloned();
            }
        }
    }

    /// Returns whether all tables of totals were checked.
    pub(crate) fn is_through(&self, schema: &Schema) -> bool {
        match &self.at {
            At::Totals(position, _) => *position >= schema.counters().len(),
            At::Locks(_) => true,
        }
    }

    /// Records that a page of locks was checked up to this one.
    pub(crate) fn passed_locks(&mut self, last: LockKey) {
        self.at = At::Locks(last);
    }

    /// Goes back to the first row, because the last one was reached.
    pub(crate) fn begin_anew(&mut self) {
        self.at = At::Totals(0, None);
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Self::new()
    }
}
