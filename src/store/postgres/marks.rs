//! Lists marks, and forgets them.

use tokio_postgres::{GenericClient, Row};

use super::writing::{Failed, check_stream};
use super::{AsyncWork, PostgresStore, Session, Whose, failed};
use crate::error::Result;
use crate::sql::{self, Dialect, Query, Value};
use crate::store::sweep::mark_row;

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
