//! Writes the application's rows and their totals: in one message that is a transaction by itself,
//! or as a pipeline up to COMMIT after an answered BEGIN.

use std::fmt::Write as _;
use std::pin::pin;

use futures_util::TryStreamExt;
use futures_util::future::{join3, try_join_all};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use super::prepared::{NAME, PreparedStatements};
use super::{
    Execution, MAX_PIPELINE, Postgres, commit_failed, executions, is_refused, is_refused_by,
    kind_of, literal, params, unknown,
};
use crate::batch::Batch;
use crate::engine::write::{self, Failed, Writes, operation};
use crate::engine::{Whose, begin, failed, run_again, still_open};
use crate::error::{Cause, Error, Result};
use crate::executor::{Executor as _, Stopped};
use crate::schema::Schema;
use crate::sql::Dialect;
use crate::store::Applied;
use crate::stream_range::StreamRange;

/// The values of one statement.
type Values<'r> = [&'r (dyn ToSql + Sync)];

/// A statement of the application, with its values.
pub(crate) type Given<'r> = (&'r str, &'r Values<'r>);

/// The same, prepared.
struct Row<'r> {
    text: &'r str,
    statement: Statement,
    values: &'r Values<'r>,
}

/// Runs the application's statements in one round trip.
async fn run_rows(
    client: &Client,
    rows: &[Row<'_>],
) -> Result<Vec<u64>, (usize, tokio_postgres::Error)> {
    try_join_all(rows.iter().enumerate().map(async |(at, row)| {
        let written = client.execute(&row.statement, row.values).await;
        written.map_err(|error| (at, error))
    }))
    .await
}

/// The error of a failed statement of the application.
fn row_failed((at, error): (usize, tokio_postgres::Error)) -> Error {
    failed(Whose::Row(at), "writing rows", error)
}

/// Refuses values that the driver would not send for a statement. It would skip that statement and
/// send those after it.
fn check_rows(rows: &[Row<'_>]) -> Result<()> {
    for (at, Row { statement, values, .. }) in rows.iter().enumerate() {
        let refused = |cause: Cause| Error::Database {
            operation: format!("writing rows, statement {} of the application's own", at + 1),
            cause,
        };
        if statement.params().len() != values.len() {
            let (wanted, given) = (statement.params().len(), values.len());
            return Err(refused(
                format!("it has {wanted} parameters, and {given} were given").into(),
            ));
        }
        for (kind, value) in statement.params().iter().zip(*values) {
            value.to_sql_checked(kind, &mut BytesMut::new()).map_err(refused)?;
        }
    }
    Ok(())
}

/// Whether the server did not know a name that had been prepared, so that nothing was done.
fn is_nameless(error: &tokio_postgres::Error) -> bool {
    if !is_refused(error) {
        return false;
    }
    let said = error.as_db_error().filter(|db| *db.code() == SqlState::INVALID_SQL_STATEMENT_NAME);
    said.is_some_and(|db| db.message().contains(NAME))
}

impl Postgres<'_> {
    /// Rows with their statements, known or prepared now.
    async fn rows<'r>(&self, rows: &[Given<'r>]) -> Result<Vec<Row<'r>>> {
        let mut all = Vec::with_capacity(rows.len());
        for (at, (text, values)) in rows.iter().enumerate() {
            let operation = |error| failed(Whose::Row(at), "preparing rows", error);
            all.push(Row {
                text,
                statement: self.statement(text).await.map_err(operation)?,
                values,
            });
        }
        Ok(all)
    }

    /// Writes rows and their batch in one message or a few. Returns `None` if totals must be read
    /// first, or if there are too many statements.
    async fn write_at_once(
        &mut self,
        schema: &Schema,
        rows: &[Given<'_>],
        batch: &Batch,
    ) -> Result<Option<(Vec<u64>, Applied)>, Failed> {
        if !write::is_plain(schema) {
            return Ok(None);
        }
        let writes = Writes::of(Dialect::Postgres, schema, batch, false)?;
        let all = executions(&writes.queries);
        if all.len() > MAX_PIPELINE || rows.len() > MAX_PIPELINE {
            return Ok(None);
        }
        let (written, totals) = match self.by_message(rows, batch, &writes, &all).await? {
            Some(written) => written,
            None => self.by_pipeline(rows, batch, &writes, &all).await?,
        };
        for (execution, written) in all.iter().zip(totals) {
            if let Err(skipped) = execution.check(written) {
                // By now everything is committed except what was skipped.
                let error = writes.failed(batch, None, skipped).unnamed();
                return Err(Error::Indeterminate {
                    operation: operation(batch, None),
                    cause: error.into(),
                }
                .into());
            }
        }
        Ok(Some((written, Applied::new(batch.len() as u64, all.len() as u64))))
    }

    /// Sends everything in one message, which the server treats as one transaction. Returns how
    /// many rows each statement wrote, and how many totals. `None` if nothing was written and
    /// sending the statements one by one can succeed, or can report why it fails.
    async fn by_message(
        &self,
        rows: &[Given<'_>],
        batch: &Batch,
        writes: &Writes<'_>,
        all: &[Execution<'_>],
    ) -> Result<Option<(Vec<u64>, Vec<u64>)>, Failed> {
        let prepared = self.prepared.filter(|prepared| prepared.has_names() && !self.was_forgotten);
        let Some(prepared) = prepared else { return Ok(None) };
        let rows = self.rows(rows).await?;
        let Some(message) = self.message(prepared, &rows, all).await? else { return Ok(None) };
        let (mut written, mut error) = self.send(&message).await;
        if error.as_ref().is_some_and(is_nameless) && prepared.lose_names() {
            // The names were dropped by DISCARD or DEALLOCATE. Nothing was done, and new names can
            // be tried.
            let Some(message) = self.message(prepared, &rows, all).await? else { return Ok(None) };
            (written, error) = self.send(&message).await;
        }
        match error {
            None => {
                let totals = written.split_off(rows.len().min(written.len()));
                Ok(Some((written, totals)))
            }
            Some(error) if is_nameless(&error) => {
                // Behind a pooler, what was prepared outside a transaction may be on another
                // connection.
                prepared.forgo_names();
                prepared.forget();
                Ok(None)
            }
            // The first statement that was not done, or else the commit of all.
            Some(error) if is_refused(&error) => match written.len().checked_sub(rows.len()) {
                None => Err(row_failed((written.len(), error)).into()),
                Some(at) => Err(match all.get(at) {
                    Some(execution) => writes.failed(batch, None, execution.failed(error)),
                    None => commit_failed(&operation(batch, None), error).into(),
                }),
            },
            Some(error) => Err(unknown(&operation(batch, None), error).into()),
        }
    }

    /// Sends one message of several statements. Returns how many rows each completed statement
    /// wrote, and the error that stopped the rest.
    async fn send(&self, message: &str) -> (Vec<u64>, Option<tokio_postgres::Error>) {
        let mut written = Vec::new();
        let mut answers = match self.client().simple_query_raw(message).await {
            Ok(answers) => pin!(answers),
            Err(error) => return (written, Some(error)),
        };
        loop {
            match answers.try_next().await {
                Ok(Some(SimpleQueryMessage::CommandComplete(rows))) => written.push(rows),
                Ok(Some(_)) => {}
                Ok(None) => return (written, None),
                Err(error) => return (written, Some(error)),
            }
        }
    }

    /// The message that runs all of these statements by their names; `None` if a statement has no
    /// name or a value has no literal.
    async fn message(
        &self,
        prepared: &PreparedStatements,
        rows: &[Row<'_>],
        all: &[Execution<'_>],
    ) -> Result<Option<String>> {
        let mut message = String::new();
        let own = all.iter().map(|execution| {
            let kinds = execution.values.iter().map(kind_of).collect::<Vec<_>>();
            (execution.of.text.as_str(), kinds, params(execution.values))
        });
        let rows =
            rows.iter().map(|row| (row.text, row.statement.params().to_vec(), row.values.to_vec()));
        for (text, kinds, values) in rows.chain(own) {
            let named = prepared.name(self.client(), text, &kinds).await;
            let Some(name) =
                named.map_err(|error| failed(Whose::Connection, "preparing a statement", error))?
            else {
                return Ok(None);
            };
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

    /// Does the same in several messages: first BEGIN, and all the others once it is answered,
    /// since without a transaction each would be committed by itself. After a failure in the
    /// middle, the server turns COMMIT into a rollback.
    async fn by_pipeline(
        &mut self,
        rows: &[Given<'_>],
        batch: &Batch,
        writes: &Writes<'_>,
        all: &[Execution<'_>],
    ) -> Result<(Vec<u64>, Vec<u64>), Failed> {
        let begun = self.begin().await;
        let begun = begun.map_err(|error| {
            Failed::from(failed(Whose::Connection, &operation(batch, None), error))
        });
        let rows = match begun {
            // After BEGIN, since a pooler may use another connection before it. Before the rest,
            // since preparing later would come after COMMIT.
            Ok(()) => self.prepare(rows, batch, writes, all).await,
            Err(failed) => Err(failed),
        };
        let (written, totals, committed) = match rows {
            Ok(rows) => {
                let (rows, totals) = (run_rows(self.client(), &rows), self.written_by_all(all));
                join3(rows, totals, self.client().batch_execute("COMMIT")).await
            }
            Err(failed) => return Err(self.ended(batch, failed).await),
        };
        let is_over = committed.is_ok();
        self.is_open = !is_over;
        // COMMIT is sent whatever becomes of the others. Only if the server itself refused one of
        // them was nothing committed.
        let written = written.map_err(|(at, error)| {
            if is_refused(&error) {
                row_failed((at, error))
            } else {
                unknown(&operation(batch, None), error)
            }
            .into()
        });
        let totals = totals.map_err(|stopped| match stopped {
            Stopped::Failed { error, .. } if !is_refused_by(&error.cause) => {
                unknown(&operation(batch, None), error).into()
            }
            stopped => writes.failed(batch, None, stopped),
        });
        let committed =
            committed.map_err(|error| commit_failed(&operation(batch, None), error).into());
        let failed: Failed = match (written, totals, committed) {
            (Ok(written), Ok(totals), Ok(())) => return Ok((written, totals)),
            (Err(failed), ..) | (_, Err(failed), _) | (.., Err(failed)) => failed,
        };
        Err(if is_over { failed } else { self.ended(batch, failed).await })
    }

    /// Checks that the rows can be sent, and prepares all statements.
    async fn prepare<'r>(
        &self,
        rows: &[Given<'r>],
        batch: &Batch,
        writes: &Writes<'_>,
        all: &[Execution<'_>],
    ) -> Result<Vec<Row<'r>>, Failed> {
        let rows = self.rows(rows).await?;
        check_rows(&rows)?;
        self.prepare_all(all).await.map_err(|stopped| writes.failed(batch, None, stopped))?;
        Ok(rows)
    }

    /// Rolls back a failed transaction and returns its failure.
    async fn ended(&mut self, batch: &Batch, failed: Failed) -> Failed {
        if self.roll_back().await {
            failed
        } else {
            still_open(&operation(batch, None), failed.unnamed()).into()
        }
    }
}

/// Writes rows and their batch in its own transaction, in as few messages as possible.
pub(crate) async fn write_in_own(
    executor: &mut Postgres<'_>,
    schema: &Schema,
    rows: &[Given<'_>],
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
) -> Result<(Vec<u64>, Applied)> {
    run_again!(executor, {
        let done = write_whole(executor, schema, rows, batch, stream_range).await;
        if let Err(error) = &done {
            executor.recover_from(error).await;
        }
        done
    })
}

async fn write_whole(
    executor: &mut Postgres<'_>,
    schema: &Schema,
    rows: &[Given<'_>],
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
) -> Result<(Vec<u64>, Applied)> {
    if stream_range.is_none() {
        match executor.write_at_once(schema, rows, batch).await {
            Ok(None) => {}
            Ok(Some(done)) => return Ok(done),
            Err(Failed::Overflow(counter, batch)) => {
                return Err(write::find_overflow(executor, schema, &counter, &batch).await);
            }
            Err(failed) => return Err(failed.unnamed()),
        }
    }
    let operation = || operation(batch, stream_range);
    let nested = begin(executor, operation).await?;
    let done = write_rows(executor, schema, rows, batch, stream_range).await;
    write::finish(executor, schema, nested, operation, done).await
}

/// Writes the application's rows and applies their batch; does neither if the events were applied
/// before.
async fn write_rows(
    executor: &mut Postgres<'_>,
    schema: &Schema,
    rows: &[Given<'_>],
    batch: &Batch,
    stream_range: Option<&StreamRange<'_>>,
) -> Result<(Vec<u64>, Applied), Failed> {
    // Check the offset first: rows that are already there would be refused before the repeat is
    // detected.
    if let Some(stream_range) = stream_range
        && !write::follows(executor, batch, stream_range).await?
    {
        return Ok((Vec::new(), Applied::skipped()));
    }
    let rows = executor.rows(rows).await?;
    let written = run_rows(executor.client(), &rows).await.map_err(row_failed)?;
    if batch.is_empty() && stream_range.is_none() {
        return Ok((written, Applied::default()));
    }
    Ok((written, write::write_following(executor, schema, batch, stream_range, None).await?))
}
