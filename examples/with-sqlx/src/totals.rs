//! The file that an application copies: it applies a batch in a transaction of sqlx.

use std::time::Instant;

use keepcount::backend::{KeyPart, RollupUpdate};
use keepcount::sql::{self, Dialect, Value};
use keepcount::{Batch, CounterId, KeyBuf, Schema};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, Postgres, Row as _, Transaction, query::Query};
use uuid::Uuid;

use crate::Result;

/// Applies the deltas that the hooks have collected. Call it last before the commit.
pub async fn apply(
    tx: &mut Transaction<'_, Postgres>,
    schema: &Schema,
    batch: &Batch,
) -> Result<()> {
    let began = Instant::now();
    let mut update = RollupUpdate::new(schema, batch)?;
    while let Some(request) = update.next()? {
        if let Some(lock) = request.lock(Dialect::Postgres) {
            query(&lock.text, &lock.values).execute(&mut **tx).await?;
        }
        // The query is a statement of its own, because it must begin after the lock is granted.
        let ask = request.query(Dialect::Postgres, schema)?;
        for row in query(&ask.text, &ask.values).fetch_all(&mut **tx).await? {
            let (key, total) = read(&request.counter, &row)?;
            update.take(&key, total)?;
        }
    }
    for statement in update.statements(Dialect::Postgres)? {
        for row in statement.rows() {
            query(&statement.text, row).execute(&mut **tx).await?;
        }
    }
    update.observe_applied(Dialect::Postgres, began.elapsed());
    Ok(())
}

/// Binds the values of a statement. There are few texts, so sqlx keeps them prepared. Behind a
/// pooler in transaction mode, add `.persistent(false)`.
fn query<'q>(text: &str, values: &'q [Value<'_>]) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(text.to_owned()));
    values.iter().fold(query, |query, value| match value {
        Value::Integer(number) => query.bind(*number),
        Value::Text(text) => query.bind(text.as_ref()),
        Value::Blob(bytes) => query.bind(bytes.as_slice()),
        Value::Bytes(bytes) => query.bind(bytes.as_ref()),
        Value::Uuid(bytes) => query.bind(Uuid::from_bytes(*bytes)),
        Value::Integers(column) => query.bind(column.as_slice()),
        Value::Texts(column) => query.bind(column.iter().map(AsRef::as_ref).collect::<Vec<&str>>()),
        Value::Blobs(column) => {
            query.bind(column.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>())
        }
        Value::Uuids(column) => {
            query.bind(column.iter().copied().map(Uuid::from_bytes).collect::<Vec<Uuid>>())
        }
    })
}

/// Reads one row of an answer: the key's columns and the total.
fn read(counter: &CounterId, row: &PgRow) -> Result<(KeyBuf, i64)> {
    let (parts, mut key) = (counter.parts(), KeyBuf::new());
    for (at, part) in parts.as_slice().iter().enumerate() {
        let column = match part {
            KeyPart::Text => Value::Text(row.try_get::<String, _>(at)?.into()),
            KeyPart::Uuid => Value::Uuid(row.try_get::<Uuid, _>(at)?.into_bytes()),
            KeyPart::Bytes16 | KeyPart::Signed(16) | KeyPart::Unsigned(16) => {
                Value::Blob(row.try_get(at)?)
            }
            _ => Value::Integer(row.try_get(at)?),
        };
        sql::push_key_part(*part, &column, &mut key)?;
    }
    Ok((key, row.try_get(row.len() - 1)?))
}
