//! Removes totals of 0 beside writers, lists marks, and forgets them.

use rusqlite::params_from_iter;

use super::{SqliteStore, Unready, failed, failed_on, transaction};
use crate::error::Result;
use crate::key::KeyBuf;
use crate::sql::{self, Dialect};
use crate::store::Store;
use crate::store::sweep::{Page, Sweep, Swept, mark_row};

impl SqliteStore<'_> {
    /// Removes rows of totals that are 0, a bounded part a call, beside writers: they read as absent totals do, so no total, board or report changes.
    /// Call it from the job that repairs until it is [complete](Swept::complete).
    ///
    /// Reads a page without the write lock, and takes that only where there is something to remove: one transaction a page. In the caller's
    /// transaction all is part of that.
    ///
    /// # Errors
    ///
    /// What the database says, [`Error::Busy`](crate::Error::Busy) while another connection writes; what was removed before stays removed, and the
    /// next call goes on there.
    pub fn sweep(&self, sweep: &mut Sweep) -> Result<Swept> {
        let mut swept = Swept::default();
        while let Some(page) = sweep.totals(self.layout, &swept) {
            let totals = self.or_lost(|| Unready(*self).range(page.placed.def(), &page.range, page.rows))?;
            let last = totals.last().map(|(key, _)| key.clone());
            if totals.iter().any(|(_, total)| *total == 0) {
                swept.totals += self.remove_zeros_of(&page, last.as_ref())?;
            }
            swept.looked += totals.len() as u64;
            sweep.passed(&page, totals.len(), last.as_ref());
        }
        swept.complete = sweep.is_through(self.layout);
        if swept.complete {
            sweep.begin_anew();
        }
        Ok(swept)
    }

    /// Of a page that was read up to its last key; what became 0 since goes too, and what is not 0 any more stays.
    fn remove_zeros_of(&self, page: &Page, last: Option<&KeyBuf>) -> Result<u64> {
        let counter = page.placed.def();
        let Some(last) = last else { return Ok(0) };
        let range = page.range.clone().up_to(last);
        let query = sql::remove_zeros_of(Dialect::Sqlite, page.placed, &range)?;
        let doing = || format!("removing totals of 0 of counter {}", counter.full_name());
        self.transact(doing, |_| {
            let gone = self.conn.prepare_cached(&query.text);
            let gone =
                gone.and_then(|mut delete| transaction::write(self.conn, &mut delete, params_from_iter(&query.values)));
            gone.map(|gone| gone as u64).map_err(|error| failed_on("removing totals of 0", &counter, error))
        })
    }

    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    ///
    /// # Errors
    ///
    /// What the database says, and [`Error::Schema`](crate::Error::Schema) for a mark that somebody else wrote.
    pub fn marks(&self, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>> {
        let failed = |error| failed("reading marks", error);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.or_lost(|| {
            let mut read = self.conn.prepare_cached(&sql::read_marks(Dialect::Sqlite)).map_err(failed)?;
            let rows = read.query_map((after.unwrap_or_default(), limit), |row| Ok((row.get(0)?, row.get(1)?)));
            rows.map_err(failed)?.map(|row| row.map_err(failed).and_then(mark_row)).collect()
        })
    }

    /// Forgets the mark of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are.
    ///
    /// A store without a mark takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`marks`](Self::marks); the mark stays then.
    pub fn forget_mark(&self, stream: &str) -> Result<u64> {
        let doing = || format!("forgetting the mark of stream {stream}");
        self.transact(doing, |_| {
            let last = self.read_mark(stream)?;
            let forgotten = self.conn.prepare_cached(&sql::forget_mark(Dialect::Sqlite));
            let forgotten = forgotten.and_then(|mut delete| transaction::write(self.conn, &mut delete, [stream]));
            forgotten.map(|_| last).map_err(|error| failed(&doing(), error))
        })
    }
}
