//! Rows of the application's own and their totals, in one round trip: one message that is a transaction by itself, or else all from BEGIN to COMMIT,
//! sent before the first answer.

use std::fmt::Write as _;

use futures_util::future::{join4, try_join_all};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::{GenericClient, SimpleQueryMessage, Statement};

use super::session::{NAME, PIPELINE_MOST, PreparedStatements, is_refused, overflowed, unknown};
use super::writing::{Failed, Writes, doing};
use super::{Session, commit_failed, failed, literal, params};
use crate::batch::Batch;
use crate::error::{Cause, Error, Result};
use crate::sql::Value;
use crate::store::Applied;

/// The values of one statement.
pub(super) type Values<'r> = [&'r (dyn ToSql + Sync)];

/// A statement of the application's own, prepared, with its values.
pub(super) struct Row<'r> {
    text: &'r str,
    statement: Statement,
    values: &'r Values<'r>,
}

/// Runs the application's own statements, in one round trip.
pub(super) async fn run_rows(client: &impl GenericClient, rows: &[Row<'_>]) -> Result<Vec<u64>, tokio_postgres::Error> {
    try_join_all(rows.iter().map(|row| client.execute(&row.statement, row.values))).await
}

/// Refuses values that the driver would not send for a statement: it would leave that one out, and send what comes behind it.
fn check_rows(rows: &[Row<'_>]) -> Result<()> {
    for (at, Row { statement, values, .. }) in rows.iter().enumerate() {
        let refused = |cause: Cause| Error::Database { doing: format!("writing rows, statement {}", at + 1), cause };
        if statement.params().len() != values.len() {
            let (wanted, given) = (statement.params().len(), values.len());
            return Err(refused(format!("it has {wanted} parameters, and {given} were given").into()));
        }
        for (kind, value) in statement.params().iter().zip(*values) {
            value.to_sql_checked(kind, &mut BytesMut::new()).map_err(refused)?;
        }
    }
    Ok(())
}

/// Whether a name was not known that had been prepared: it was on another connection.
fn is_nameless(error: &tokio_postgres::Error) -> bool {
    let said = error.as_db_error().filter(|db| *db.code() == SqlState::INVALID_SQL_STATEMENT_NAME);
    said.is_some_and(|db| db.message().contains(NAME))
}

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Rows with their statements, known or prepared now.
    pub(super) async fn rows<'r>(&self, rows: &[(&'r str, &'r Values<'r>)]) -> Result<Vec<Row<'r>>> {
        let mut all = Vec::with_capacity(rows.len());
        for (at, (text, values)) in rows.iter().enumerate() {
            let doing = |error| failed(&format!("preparing rows, statement {}", at + 1), error);
            all.push(Row { text, statement: self.statement(text).await.map_err(doing)?, values });
        }
        Ok(all)
    }

    /// Writes rows and their batch in one round trip; none where totals have to be read first, or there is too much of it.
    pub(super) async fn write_at_once(
        &self,
        rows: &[Row<'_>],
        batch: &Batch,
    ) -> Result<Option<(Vec<u64>, Applied)>, Failed> {
        if !self.layout.is_plain() || !self.layout.board_defs().is_empty() {
            return Ok(None);
        }
        let writes = self.writes(batch, false)?;
        if writes.queries.len() > PIPELINE_MOST || rows.len() > PIPELINE_MOST {
            return Ok(None);
        }
        let (written, totals) = match self.by_message(rows, batch, &writes).await? {
            Some(written) => written,
            None => self.by_pipeline(rows, batch, &writes).await?,
        };
        // It is committed by now, all but what was skipped.
        let skipped = |error: Error| Error::Unknown { doing: doing(batch, None), cause: error.into() };
        writes.check(&totals).map_err(skipped)?;
        Ok(Some((written, Applied::new(batch.len() as u64, writes.totals.len() as u64))))
    }

    /// How many rows each statement wrote, and how many totals; all in one message, which the server takes for one transaction. None where nothing
    /// was written, and sending the statements one by one can do it, or says why it cannot be done.
    async fn by_message(
        &self,
        rows: &[Row<'_>],
        batch: &Batch,
        writes: &Writes<'_>,
    ) -> Result<Option<(Vec<u64>, Vec<u64>)>> {
        let Some(prepared) = self.prepared else { return Ok(None) };
        let Some(message) = self.message(prepared, rows, writes).await? else { return Ok(None) };
        match self.client.simple_query(&message).await {
            Ok(said) => {
                let done = said.iter().filter_map(|said| match said {
                    SimpleQueryMessage::CommandComplete(written) => Some(*written),
                    _ => None,
                });
                let mut written: Vec<u64> = done.collect();
                let totals = written.split_off(rows.len().min(written.len()));
                Ok(Some((written, totals)))
            }
            Err(error) if is_refused(&error) && is_nameless(&error) => {
                prepared.forgo_names();
                Ok(None)
            }
            // One by one they say which total is too large.
            Err(error) if is_refused(&error) && overflowed(&error) => Ok(None),
            Err(error) => Err(commit_failed(&format!("writing rows, or {}", doing(batch, None)), error)),
        }
    }

    /// The message that runs all of these statements by their names; none where one of them has no name, or a value no text.
    async fn message(
        &self,
        prepared: &PreparedStatements,
        rows: &[Row<'_>],
        writes: &Writes<'_>,
    ) -> Result<Option<String>> {
        let mut message = String::new();
        let own = writes.queries.iter().map(|query| {
            let kinds = query.values.iter().map(Value::kind).collect::<Vec<_>>();
            (query.text.as_str(), kinds, params(query))
        });
        let rows = rows.iter().map(|row| (row.text, row.statement.params().to_vec(), row.values.to_vec()));
        for (text, kinds, values) in rows.chain(own) {
            let named = prepared.name(self.client, text, &kinds).await;
            let Some(name) = named.map_err(|error| failed("preparing a statement", error))? else { return Ok(None) };
            let _ = write!(message, "EXECUTE {name}");
            if kinds.len() != values.len() {
                return Ok(None);
            }
            for (at, (kind, value)) in kinds.iter().zip(values).enumerate() {
                message.push(if at == 0 { '(' } else { ',' });
                if literal::push(&mut message, kind, value).is_none() {
                    return Ok(None);
                }
            }
            message.push_str(if kinds.is_empty() { ";" } else { ");" });
        }
        Ok(Some(message))
    }

    /// The same in several messages, from BEGIN to COMMIT. What fails in the middle makes the server's COMMIT a rollback.
    async fn by_pipeline(
        &self,
        rows: &[Row<'_>],
        batch: &Batch,
        writes: &Writes<'_>,
    ) -> Result<(Vec<u64>, Vec<u64>), Failed> {
        check_rows(rows)?;
        // Before BEGIN: what has to be prepared would come behind COMMIT.
        let prepared = self.prepare_all(&writes.queries).await;
        prepared.map_err(|(at, error)| writes.failed(at, batch, None, error))?;
        let (begun, written, totals, committed) = join4(
            self.client.batch_execute("BEGIN"),
            run_rows(self.client, rows),
            self.execute_all(&writes.queries),
            self.client.batch_execute("COMMIT"),
        )
        .await;
        // The others are on their way whatever comes of it: without a transaction each is committed by itself.
        begun.map_err(|error| unknown(&doing(batch, None), error))?;
        // COMMIT is on its way whatever comes of the others: only where the server itself refused one of them was nothing committed.
        let unless_refused = |error: tokio_postgres::Error, refused: &dyn Fn(tokio_postgres::Error) -> Failed| {
            if is_refused(&error) { refused(error) } else { commit_failed(&doing(batch, None), error).into() }
        };
        let written = written.map_err(|error| unless_refused(error, &|error| failed("writing rows", error).into()))?;
        let totals =
            totals.map_err(|(at, error)| unless_refused(error, &|error| writes.failed(at, batch, None, error)))?;
        committed.map_err(|error| commit_failed(&doing(batch, None), error))?;
        Ok((written, totals))
    }
}
