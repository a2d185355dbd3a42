//! Offsets: reads the last applied event of each stream, and drops that of a stream that ended.

use super::rows::text;
use super::{OrFailed as _, Whose, after_reads, transact};
use crate::error::{Error, Result};
use crate::executor::{Column, Executor};
use crate::sql::{self, Dialect, Query, Value};

/// Refuses a stream's name that the database cannot store.
fn check_stream(dialect: Dialect, stream: &str) -> Result<()> {
    if dialect == Dialect::Postgres && stream.contains('\0') {
        return Err(Error::invalid_use(
            "stream",
            format!("{stream:?} has a zero byte, which PostgreSQL cannot store"),
        ));
    }
    Ok(())
}

/// Decodes a stream's offset from a column.
fn offset_of(stream: &str, column: &Column<'_>) -> Result<u64> {
    let foreign = |what: String| {
        let reason =
            format!("the offset of stream {stream} is {what}, which keepcount did not write");
        Err(Error::SchemaMismatch { table: sql::OFFSETS.to_owned(), reason })
    };
    match column {
        Column::Integer(last) => {
            u64::try_from(*last).or_else(|_| foreign(format!("{last}, below 0")))
        }
        other => foreign(format!("{other}, not an integer")),
    }
}

/// The last applied event of a stream; 0 if there is none.
pub(crate) async fn offset<E: Executor + ?Sized>(executor: &mut E, stream: &str) -> Result<u64> {
    let nested = executor.is_nested();
    let query = Query::new(sql::read_offset(executor.dialect()), vec![Value::Text(stream.into())]);
    let read =
        offset_by(executor, query, stream, &format!("reading the offset of stream {stream}")).await;
    after_reads(executor, nested, read)
}

/// The offset that a query returns.
pub(crate) async fn offset_by<E: Executor + ?Sized>(
    executor: &mut E,
    query: Query<'_>,
    stream: &str,
    operation: &str,
) -> Result<u64> {
    check_stream(executor.dialect(), stream)?;
    let mut last = 0;
    let read = executor
        .fetch(&[query], &mut |_, row| {
            last = offset_of(stream, &row.column(0))?;
            Ok(())
        })
        .await;
    read.or_failed(Whose::Table(sql::OFFSETS), operation)?;
    Ok(last)
}

/// The streams after `after` and their offsets.
pub(crate) async fn offsets<E: Executor + ?Sized>(
    executor: &mut E,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<(String, u64)>> {
    check_stream(executor.dialect(), after.unwrap_or_default())?;
    let nested = executor.is_nested();
    let limit = Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX));
    let query = Query::new(
        sql::read_offsets(executor.dialect()),
        vec![Value::Text(after.unwrap_or_default().into()), limit],
    );
    let mut all = Vec::new();
    let read = executor
        .fetch(&[query], &mut |_, row| {
            let stream = text(row, 0, sql::OFFSETS)?.unwrap_or_default();
            let last = offset_of(&stream, &row.column(1))?;
            all.push((stream, last));
            Ok(())
        })
        .await;
    let read = read.or_failed(Whose::Table(sql::OFFSETS), "reading offsets");
    after_reads(executor, nested, read)?;
    Ok(all)
}

/// Drops the offset of a stream that ended, and returns it.
pub(crate) async fn forget_offset<E: Executor + ?Sized>(
    executor: &mut E,
    stream: &str,
) -> Result<u64> {
    check_stream(executor.dialect(), stream)?;
    let operation = format!("forgetting the offset of stream {stream}");
    transact!(executor, &operation, forget_in(executor, stream, &operation))
}

async fn forget_in<E: Executor + ?Sized>(
    executor: &mut E,
    stream: &str,
    operation: &str,
) -> Result<u64> {
    // Read first: an offset that somebody else wrote is left alone.
    let text = match executor.dialect() {
        Dialect::Sqlite => sql::read_offset(Dialect::Sqlite),
        // Waits for a transaction that is applying the stream.
        Dialect::Postgres => format!("{} FOR UPDATE", sql::read_offset(Dialect::Postgres)),
    };
    let stream_value = || vec![Value::Text(stream.into())];
    let last = offset_by(executor, Query::new(text, stream_value()), stream, operation).await?;
    let forgotten = executor
        .execute(&[Query::new(sql::forget_offset(executor.dialect()), stream_value())])
        .await;
    forgotten.or_failed(Whose::Table(sql::OFFSETS), operation)?;
    Ok(last)
}
