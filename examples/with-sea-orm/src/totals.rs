//! The file that an application copies: it applies a batch in a transaction of SeaORM.

use std::time::Instant;

use keepcount::backend::{KeyPart, RollupUpdate};
use keepcount::sql::{self, Dialect};
use keepcount::{Batch, CounterId, KeyBuf, Schema};
use sea_orm::prelude::Uuid;
use sea_orm::{
    ConnectionTrait as _, DatabaseTransaction, DbBackend, QueryResult, Statement, Value,
};

use crate::Result;

/// Applies the deltas that the hooks have collected. Call it last before the commit.
pub async fn apply(tx: &DatabaseTransaction, schema: &Schema, batch: &Batch) -> Result<()> {
    let began = Instant::now();
    let mut update = RollupUpdate::new(schema, batch)?;
    while let Some(request) = update.next()? {
        if let Some(lock) = request.lock(Dialect::Postgres) {
            tx.execute_raw(query(&lock.text, &lock.values)).await?;
        }
        // The query is a statement of its own, because it must begin after the lock is granted.
        let ask = request.query(Dialect::Postgres, schema)?;
        for row in tx.query_all_raw(query(&ask.text, &ask.values)).await? {
            let (key, total) = read(&request.counter, &row)?;
            update.take(&key, total)?;
        }
    }
    for statement in update.statements(Dialect::Postgres)? {
        for row in statement.rows() {
            tx.execute_raw(query(&statement.text, row)).await?;
        }
    }
    update.observe_applied(Dialect::Postgres, began.elapsed());
    Ok(())
}

/// Binds the values of a statement. Arrays need SeaORM's feature `postgres-array`.
fn query(text: &str, values: &[sql::Value<'_>]) -> Statement {
    let values = values.iter().map(|value| match value {
        sql::Value::Integer(number) => Value::from(*number),
        sql::Value::Text(text) => Value::from(text.as_ref()),
        sql::Value::Blob(bytes) => Value::from(bytes.to_vec()),
        sql::Value::Bytes(bytes) => Value::from(bytes.to_vec()),
        sql::Value::Uuid(bytes) => Value::from(Uuid::from_bytes(*bytes)),
        sql::Value::Integers(column) => Value::from(column.clone()),
        sql::Value::Texts(column) => {
            Value::from(column.iter().map(ToString::to_string).collect::<Vec<String>>())
        }
        sql::Value::Blobs(column) => {
            Value::from(column.iter().map(|bytes| bytes.to_vec()).collect::<Vec<Vec<u8>>>())
        }
        sql::Value::Uuids(column) => {
            Value::from(column.iter().copied().map(Uuid::from_bytes).collect::<Vec<Uuid>>())
        }
    });
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

/// Reads one row of an answer: the key's columns and the total.
fn read(counter: &CounterId, row: &QueryResult) -> Result<(KeyBuf, i64)> {
    let (parts, mut key) = (counter.parts(), KeyBuf::new());
    let parts = parts.as_slice();
    for (at, part) in parts.iter().enumerate() {
        let column = match part {
            KeyPart::Text => sql::Value::Text(row.try_get_by_index::<String>(at)?.into()),
            KeyPart::Uuid => sql::Value::Uuid(row.try_get_by_index::<Uuid>(at)?.into_bytes()),
            KeyPart::Bytes16 | KeyPart::Signed(16) | KeyPart::Unsigned(16) => {
                sql::Value::Blob(row.try_get_by_index::<Vec<u8>>(at)?.as_slice().try_into()?)
            }
            _ => sql::Value::Integer(row.try_get_by_index(at)?),
        };
        sql::push_key_part(*part, &column, &mut key)?;
    }
    Ok((key, row.try_get_by_index(row.column_names().len() - 1)?))
}
