//! Removes totals of 0 and locks beside writers, lists marks, and forgets them.

use tokio_postgres::{Client, GenericClient, Row};

use super::writing::{Failed, check_stream};
use super::{AsyncWork, PostgresStore, Session, Whose, failed, failed_on, read_total};
use crate::error::Result;
use crate::key::KeyBuf;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::sweep::{LockKey, Page, Sweep, Swept, mark_row};

impl PostgresStore<'_, Client> {
    /// Removes rows of totals that are 0, and locks of children and of keys of boards, a bounded part a call, beside writers: they read as absent ones do,
    /// so no total, board or report changes. Call it from the job that repairs until it is [complete](Swept::complete).
    ///
    /// One transaction a page, which waits for no row that another holds, and leaves that one for a later sweep; so nobody deadlocks with it. What the
    /// oldest transaction that runs may not have seen stays too, one that reads in this database or writes in any of the server's: a transaction above
    /// READ COMMITTED that is older than a row's last change must meet the row when it writes. Where one stays open for hours, or is prepared and
    /// forgotten, nothing that changed since goes.
    ///
    /// # Errors
    ///
    /// What the database says; what was removed before stays removed, and the next call goes on there.
    pub async fn sweep(&mut self, sweep: &mut Sweep) -> Result<Swept> {
        let mut swept = Swept::default();
        while let Some(page) = sweep.totals(self.layout, &swept) {
            let counter = page.placed.def();
            let query = sql::range(Dialect::Postgres, page.placed, &page.range, page.rows)?;
            let rows = self.session().query(&query).await;
            let rows = rows.map_err(|error| failed_on("reading totals", &counter, error))?;
            let totals = rows.iter().map(|row| read_total(&counter, row)).collect::<Result<Vec<(KeyBuf, i64)>>>()?;
            let last = totals.last().map(|(key, _)| key.clone());
            if totals.iter().any(|(_, total)| *total == 0) {
                swept.totals += self.remove_zeros_of(&page, last.as_ref()).await?;
            }
            swept.looked += totals.len() as u64;
            sweep.passed(&page, totals.len(), last.as_ref());
        }
        while sweep.is_through(self.layout) && !swept.complete {
            let Some((after, limit)) = sweep.locks(&swept) else { break };
            let after = after.cloned();
            let locks = self.locks(after.as_ref(), limit).await?;
            swept.looked += locks.len() as u64;
            swept.complete = locks.len() < limit;
            if let Some(last) = locks.into_iter().next_back() {
                swept.locks += self.remove_locks(after.as_ref(), &last).await?;
                sweep.passed_locks(last);
            }
        }
        if swept.complete {
            sweep.begin_anew();
        }
        Ok(swept)
    }

    /// Of a page that was read up to its last key; what became 0 since goes too, and what is not 0 any more stays.
    async fn remove_zeros_of(&mut self, page: &Page, last: Option<&KeyBuf>) -> Result<u64> {
        let counter = page.placed.def();
        let Some(last) = last else { return Ok(0) };
        let range = page.range.clone().up_to(last);
        let query = sql::remove_zeros_of(Dialect::Postgres, page.placed, &range)?;
        let doing = format!("removing totals of 0 of counter {}", counter.full_name());
        self.transact(|| doing.clone(), Remove { query, table: &counter.table_name(), doing: &doing }).await
    }

    async fn remove_locks(&mut self, after: Option<&LockKey>, last: &LockKey) -> Result<u64> {
        let (query, doing) = (sql::remove_locks(after, last), "removing locks");
        self.transact(|| doing.to_owned(), Remove { query, table: sql::LOCKS, doing }).await
    }

    async fn locks(&self, after: Option<&LockKey>, limit: usize) -> Result<Vec<LockKey>> {
        let failed = |error| failed(Whose::Table(sql::LOCKS), "reading locks", error);
        let rows = self.session().query(&sql::locks(after, limit)).await.map_err(failed)?;
        let lock = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        rows.iter().map(|row| lock(row).map_err(failed)).collect()
    }
}

/// Removes rows of one page, in a transaction that sees what is committed, whatever the session's default is: above READ COMMITTED a row that another changed
/// meanwhile would fail it.
struct Remove<'q> {
    query: Query<'q>,
    table: &'q str,
    doing: &'q str,
}

impl AsyncWork<u64> for Remove<'_> {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<u64, Failed> {
        let set = session.client.batch_execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
        set.map_err(|error| failed(Whose::Connection, self.doing, error))?;
        let gone = session.execute(&self.query).await;
        Ok(gone.map_err(|error| failed(Whose::Table(self.table), self.doing, error))?)
    }
}

impl<C: GenericClient + Send + Sync> PostgresStore<'_, C> {
    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    ///
    /// # Errors
    ///
    /// What the database says, and [`Error::Schema`](crate::Error::Schema) for a mark that somebody else wrote.
    pub async fn marks(&mut self, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>> {
        let failed = |error| failed(Whose::Table(sql::MARKS), "reading marks", error);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        check_stream(after.unwrap_or_default())?;
        let values = vec![Value::Text(after.unwrap_or_default().into()), Value::Integer(limit)];
        let query = Query { text: sql::read_marks(Dialect::Postgres), values };
        let rows = self.session().query(&query).await.map_err(failed)?;
        let mark = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?));
        rows.iter().map(|row| mark(row).map_err(failed).and_then(mark_row)).collect()
    }

    /// Forgets the mark of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are. Whoever applies the stream just now
    /// is waited for.
    ///
    /// A store without a mark takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`marks`](Self::marks); the mark stays then.
    pub async fn forget_mark(&mut self, stream: &str) -> Result<u64> {
        check_stream(stream)?;
        self.transact(|| format!("forgetting the mark of stream {stream}"), ForgetMark { stream }).await
    }
}

struct ForgetMark<'s> {
    stream: &'s str,
}

impl AsyncWork<u64> for ForgetMark<'_> {
    async fn run<C: GenericClient + Send + Sync>(&self, session: &Session<'_, C>) -> Result<u64, Failed> {
        let doing = format!("forgetting the mark of stream {}", self.stream);
        let failed = |error| failed(Whose::Table(sql::MARKS), &doing, error);
        let values = vec![Value::Text(self.stream.into())];
        let rows = session.query(&Query { text: sql::forget_mark(Dialect::Postgres), values }).await.map_err(failed)?;
        let last = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
        Ok(mark_row((self.stream.to_owned(), last))?.1)
    }
}
