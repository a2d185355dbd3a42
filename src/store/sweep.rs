//! How far a clean-up has come, and what one call of it did: pure, the same for both databases.

// Locks are PostgreSQL's.
#![cfg_attr(not(feature = "postgres"), allow(dead_code))]

use super::TOTALS_PAGE;
use crate::counter::CounterSpec;
use crate::key::KeyBuf;
use crate::range::KeyRange;
use crate::schema::Schema;

/// A clean-up of rows that mean nothing any more, a bounded part a call: the place of the next call, and how many rows one looks at.
///
/// What goes: totals of 0, which read as absent totals do; and in PostgreSQL, locks of children and of keys of leaderboards. The rows that are
/// left are those of totals other than 0, so a table grows with what there is and not with what there ever was.
///
/// It belongs to one store and schema. Keep it between calls: a new one begins at the first row, and one a call would come to the same rows
/// each time.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use keepcount::{Batch, Counter, Schema, SqliteStore, Store, Sweep};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
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
///     let swept = store.sweep(&mut sweep)?; // one short transaction a page; look at a stop flag in between
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

/// The table that is next, and the last key of it that was looked at.
#[derive(Debug, Clone)]
enum At {
    /// The counter's position in the schema.
    Totals(usize, Option<KeyBuf>),
    Locks(LockKey),
}

/// The key of a lock: what it is of, its level, and the encoded key.
pub(crate) type LockKey = (String, i64, Vec<u8>);

/// What one call of a clean-up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Swept {
    /// Rows that were looked at.
    pub looked: u64,
    /// Totals of 0 that went.
    pub totals: u64,
    /// Locks that went; 0 in SQLite, which has none.
    pub locks: u64,
    /// Whether the last row was reached: the next call begins at the first.
    pub complete: bool,
}

/// Rows of one table that are looked at together, behind a key.
pub(crate) struct Page {
    pub(crate) spec: &'static CounterSpec,
    pub(crate) range: KeyRange,
    pub(crate) rows: usize,
}

const ROWS: usize = 1000;

impl Sweep {
    /// From the first row on, 1,000 rows a call.
    #[must_use]
    pub const fn new() -> Self {
        Self { rows: ROWS, at: At::Totals(0, None) }
    }

    /// How many rows a call looks at, at least 1; 1,000 by default. A call removes no more than that, a part in each transaction: so no writer
    /// waits for long.
    #[must_use]
    pub const fn rows(mut self, rows: usize) -> Self {
        self.rows = if rows == 0 { 1 } else { rows };
        self
    }

    /// The next page of totals, where this call may look at more rows and there are more tables.
    pub(crate) fn totals(&self, schema: &Schema, swept: &Swept) -> Option<Page> {
        let At::Totals(position, after) = &self.at else { return None };
        let spec = schema.counters().get(*position)?;
        Some(Page { spec, range: KeyRange::after(after.as_ref()), rows: self.left(swept)? })
    }

    /// The next page of locks: behind which, and how many rows.
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

    /// A page was looked at, to this key; one that is shorter than it might be was the table's last.
    pub(crate) fn passed(&mut self, page: &Page, keys: usize, last: Option<&KeyBuf>) {
        if let At::Totals(position, after) = &mut self.at {
            if keys < page.rows {
                (*position, *after) = (*position + 1, None);
            } else {
                *after = last.cloned();
            }
        }
    }

    /// Whether every table of totals is behind.
    pub(crate) fn is_through(&self, schema: &Schema) -> bool {
        match &self.at {
            At::Totals(position, _) => *position >= schema.counters().len(),
            At::Locks(_) => true,
        }
    }

    /// A page of locks was looked at, to this one.
    pub(crate) fn passed_locks(&mut self, last: LockKey) {
        self.at = At::Locks(last);
    }

    /// The last row was reached.
    pub(crate) fn begin_anew(&mut self) {
        self.at = At::Totals(0, None);
    }
}

impl Default for Sweep {
    fn default() -> Self {
        Self::new()
    }
}
