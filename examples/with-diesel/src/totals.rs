//! The file that an application copies: it applies a batch in a transaction of diesel-async.

use std::time::Instant;

use diesel::deserialize::{self, FromSql, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::row::{Field as _, NamedRow, Row};
use diesel::sql_types::{Array, BigInt, Binary, Text, Uuid};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _};
use keepcount::backend::RollupUpdate;
use keepcount::sql::{self, Dialect, Value};
use keepcount::{Batch, KeyBuf, Schema};

use crate::Result;

/// Applies the deltas that the hooks have collected. Call it last in the closure that you pass to
/// `transaction`.
pub async fn apply(conn: &mut AsyncPgConnection, schema: &Schema, batch: &Batch) -> Result<()> {
    let began = Instant::now();
    let mut update = RollupUpdate::new(schema, batch)?;
    while let Some(request) = update.next()? {
        if let Some(lock) = request.lock(Dialect::Postgres) {
            query(&lock.text, &lock.values).execute(conn).await?;
        }
        // The query is a statement of its own, because it must begin after the lock is granted.
        let ask = request.query(Dialect::Postgres, schema)?;
        for answer in query(&ask.text, &ask.values).load::<Answer>(conn).await? {
            let mut key = KeyBuf::new();
            for (part, column) in request.counter.parts().as_slice().iter().zip(&answer.key) {
                sql::push_key_part(*part, column, &mut key)?;
            }
            update.take(&key, answer.total)?;
        }
    }
    for statement in update.statements(Dialect::Postgres)? {
        for row in statement.rows() {
            query(&statement.text, row).execute(conn).await?;
        }
    }
    update.observe_applied(Dialect::Postgres, began.elapsed());
    Ok(())
}

/// Binds the values of a statement. diesel prepares an `sql_query` each time it runs.
fn query<'q>(text: &str, values: &'q [Value<'_>]) -> BoxedSqlQuery<'q, Pg, SqlQuery> {
    let query = diesel::sql_query(text).into_boxed();
    values.iter().fold(query, |query, value| match value {
        Value::Integer(number) => query.bind::<BigInt, _>(*number),
        Value::Text(text) => query.bind::<Text, _>(text.as_ref()),
        Value::Blob(bytes) => query.bind::<Binary, _>(bytes.as_slice()),
        Value::Bytes(bytes) => query.bind::<Binary, _>(bytes.as_ref()),
        Value::Uuid(bytes) => query.bind::<Uuid, _>(uuid::Uuid::from_bytes(*bytes)),
        Value::Integers(column) => query.bind::<Array<BigInt>, _>(column.as_slice()),
        Value::Texts(column) => {
            query.bind::<Array<Text>, _>(column.iter().map(AsRef::as_ref).collect::<Vec<&str>>())
        }
        Value::Blobs(column) => {
            query.bind::<Array<Binary>, _>(column.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>())
        }
        Value::Uuids(column) => query.bind::<Array<Uuid>, _>(
            column.iter().copied().map(uuid::Uuid::from_bytes).collect::<Vec<_>>(),
        ),
    })
}

/// One row of an answer: the key's columns and the total. Only the request knows the key's columns,
/// so their types come from the database.
struct Answer {
    key: Vec<Value<'static>>,
    total: i64,
}

impl QueryableByName<Pg> for Answer {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let (mut key, total) = (Vec::new(), row.field_count() - 1);
        for at in 0..total {
            let field = Row::get(row, at).ok_or("a column is missing")?;
            let value = field.value().ok_or("a column of a key is null")?;
            // The type numbers of pg_type, the same in every database.
            key.push(match value.get_oid().get() {
                17 => Value::Blob(
                    <Vec<u8> as FromSql<Binary, Pg>>::from_sql(value)?.as_slice().try_into()?,
                ),
                25 => Value::Text(<String as FromSql<Text, Pg>>::from_sql(value)?.into()),
                2950 => {
                    Value::Uuid(<uuid::Uuid as FromSql<Uuid, Pg>>::from_sql(value)?.into_bytes())
                }
                _ => Value::Integer(<i64 as FromSql<BigInt, Pg>>::from_sql(value)?),
            });
        }
        Ok(Self { key, total: row.get_value::<BigInt, _, _>(total)? })
    }
}
