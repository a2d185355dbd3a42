//! Removes totals of 0 and PostgreSQL's lock rows while writers go on.

use super::{OrFailed as _, Whose, after_reads, failed, read, transact};
use crate::error::{Error, Result};
use crate::executor::{Column, Executor};
use crate::key::KeyBuf;
use crate::schema::Schema;
use crate::sql::{self, Dialect, LockKey, Query};
use crate::store::sweep_zeros::{Page, Sweep, Swept};

/// Removes a bounded part of the rows that no longer mean anything.
pub(crate) async fn sweep<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    sweep: &mut Sweep,
) -> Result<Swept> {
    let mut swept = Swept::default();
    while let Some(page) = sweep.totals(schema, &swept) {
        let counter = page.spec.id();
        let nested = executor.is_nested();
        let totals =
            read::range_unchecked(executor, schema, &counter, &page.range, page.rows).await;
        let totals = after_reads(executor, nested, totals)?;
        let last = totals.last().map(|(key, _)| key);
        if totals.iter().any(|(_, total)| *total == 0) {
            swept.totals += remove_zeros_of(executor, &page, last).await?;
        }
        swept.looked += totals.len() as u64;
        sweep.passed(&page, totals.len(), last);
    }
    swept.complete = sweep.is_through(schema) && executor.dialect() == Dialect::Sqlite;
    while sweep.is_through(schema) && !swept.complete {
        let Some((after, limit)) = sweep.locks(&swept) else { break };
        let after = after.cloned();
        let locks = locks(executor, after.as_ref(), limit).await?;
        swept.looked += locks.len() as u64;
        swept.complete = locks.len() < limit;
        if let Some(last) = locks.into_iter().next_back() {
            let (query, operation) = (sql::remove_locks(after.as_ref(), &last), "removing locks");
            swept.locks += remove(executor, query, sql::LOCKS, operation).await?;
            sweep.passed_locks(last);
        }
    }
    if swept.complete {
        sweep.begin_anew();
    }
    Ok(swept)
}

/// Removes the zeros of a page that was read up to its last key. Totals that became 0 since are
/// removed too; totals that are no longer 0 stay.
async fn remove_zeros_of<E: Executor + ?Sized>(
    executor: &mut E,
    page: &Page,
    last: Option<&KeyBuf>,
) -> Result<u64> {
    let Some(last) = last else { return Ok(0) };
    let range = page.range.clone().up_to(last);
    let query = sql::remove_zeros_of(executor.dialect(), page.spec, &range)?;
    let operation = format!("removing totals of 0 of counter {}", page.spec.id().full_name());
    remove(executor, query, &page.spec.table_name(), &operation).await
}

async fn locks<E: Executor + ?Sized>(
    executor: &mut E,
    after: Option<&LockKey>,
    limit: usize,
) -> Result<Vec<LockKey>> {
    let query = sql::locks(after, limit);
    let mut locks = Vec::new();
    let read = executor
        .fetch(&[query], &mut |_, row| match (row.column(0), row.column(1), row.column(2)) {
            (Column::Text(of), Column::Integer(level), Column::Bytes(key)) => {
                locks.push((of.into_owned(), level, key.into_owned()));
                Ok(())
            }
            _ => Err(Error::SchemaMismatch {
                table: sql::LOCKS.to_owned(),
                reason: "it has a row that keepcount did not write".to_owned(),
            }),
        })
        .await;
    read.or_failed(Whose::Table(sql::LOCKS), "reading locks")?;
    Ok(locks)
}

/// Removes rows of one page in a transaction that sees what is committed, whatever the session's
/// default is. Above READ COMMITTED, a row that another transaction changed meanwhile would make it
/// fail.
async fn remove<E: Executor + ?Sized>(
    executor: &mut E,
    query: Query<'_>,
    table: &str,
    operation: &str,
) -> Result<u64> {
    transact!(executor, operation, remove_in(executor, &query, table, operation))
}

async fn remove_in<E: Executor + ?Sized>(
    executor: &mut E,
    query: &Query<'_>,
    table: &str,
    operation: &str,
) -> Result<u64> {
    if executor.dialect() == Dialect::Postgres {
        let set = executor.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await;
        set.map_err(|error| failed(Whose::Connection, operation, error))?;
    }
    let gone = executor.execute(std::slice::from_ref(query)).await;
    let gone = gone.or_failed(Whose::Table(table), operation)?;
    Ok(gone.first().copied().unwrap_or(0))
}
