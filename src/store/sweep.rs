//! How far a clean-up has come, and what one call of it did: pure, the same for both databases.

// Without SQLite marks alone are read.
#![cfg_attr(not(feature = "sqlite"), allow(dead_code, unused_imports))]

use super::TOTALS_PAGE;
use crate::counter::Placed;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::layout::Layout;
use crate::range::KeyRange;
use crate::sql;

/// A clean-up of rows that mean nothing any more, a bounded part a call: the place of the next call, and how many rows one looks at.
///
/// What goes: totals of 0 in SQLite, which read as absent totals do. The rows that are
/// left are those of totals other than 0, so a table grows with what there is and not with what there ever was.
///
/// It belongs to one store and layout. Keep it between calls; a new one begins at the first row, which does no harm.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use keepcount::{Batch, Counter, Layout, SqliteStore, Store, Sweep};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// let conn = rusqlite::Connection::open_in_memory()?;
/// let mut store = SqliteStore::new(&conn, &LAYOUT);
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
    /// The counter that is next, by its position in the layout, and the last key of it that was looked at.
    position: usize,
    after: Option<KeyBuf>,
}

/// What one call of a clean-up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Swept {
    /// Rows that were looked at.
    pub looked: u64,
    /// Totals of 0 that went.
    pub totals: u64,
    /// Whether the last row was reached: the next call begins at the first.
    pub complete: bool,
}

/// Rows of one table that are looked at together, behind a key.
pub(crate) struct Page {
    pub(crate) placed: &'static Placed,
    pub(crate) range: KeyRange,
    pub(crate) rows: usize,
}

const ROWS: usize = 1000;

impl Sweep {
    /// From the first row on, 1,000 rows a call.
    #[must_use]
    pub const fn new() -> Self {
        Self { rows: ROWS, position: 0, after: None }
    }

    /// How many rows a call looks at, at least 1; 1,000 by default. A call removes no more than that, a part in each transaction: so no writer
    /// waits for long.
    #[must_use]
    pub const fn rows(mut self, rows: usize) -> Self {
        self.rows = if rows == 0 { 1 } else { rows };
        self
    }

    /// The next page of totals, where this call may look at more rows and there are more tables.
    pub(crate) fn totals(&self, layout: &Layout, swept: &Swept) -> Option<Page> {
        let placed = layout.counters().get(self.position)?;
        Some(Page { placed, range: KeyRange::after(self.after.as_ref()), rows: self.left(swept)? })
    }

    fn left(&self, swept: &Swept) -> Option<usize> {
        let looked = usize::try_from(swept.looked).unwrap_or(usize::MAX);
        let left = self.rows.saturating_sub(looked).min(TOTALS_PAGE);
        (left > 0).then_some(left)
    }

    /// A page was looked at, to this key; one that is shorter than it might be was the table's last.
    pub(crate) fn passed(&mut self, page: &Page, keys: usize, last: Option<&KeyBuf>) {
        if keys < page.rows {
            (self.position, self.after) = (self.position + 1, None);
        } else {
            self.after = last.cloned();
        }
    }

    /// Whether every table of totals is behind.
    pub(crate) const fn is_through(&self, layout: &Layout) -> bool {
        self.position >= layout.counters().len()
    }

    /// The last row was reached.
    pub(crate) fn begin_anew(&mut self) {
        (self.position, self.after) = (0, None);
    }
}

/// A mark as a row of its table has it.
pub(crate) fn mark_row((stream, last): (String, i64)) -> Result<(String, u64)> {
    let Ok(last) = u64::try_from(last) else {
        let reason = format!("the mark of stream {stream} is {last}, below 0; somebody else wrote it");
        return Err(Error::Schema { table: sql::MARKS.to_owned(), reason });
    };
    Ok((stream, last))
}

impl Default for Sweep {
    fn default() -> Self {
        Self::new()
    }
}
