//! The statements of a sweep, which removes totals of 0 and, in PostgreSQL, lock rows older than
//! every snapshot.

// Only PostgreSQL has locks.
#![cfg_attr(not(feature = "postgres"), allow(dead_code))]

use super::{Dialect, LOCKS, Query, Terms, Value, key_columns};
use crate::counter::CounterSpec;
use crate::counter::key_range::KeyRange;
use crate::error::Result;

/// The key of a lock row in PostgreSQL: what it locks, the level, and the encoded key.
pub(crate) type LockKey = (String, i64, Vec<u8>);

/// The age of the oldest snapshot of the transactions of this database that have one, and of those
/// that write. A row that an older transaction wrote last looks the same to all transactions,
/// running and future.
///
/// A transaction above READ COMMITTED that has written nothing yet has no number, so it is not in
/// `pg_current_snapshot`. Its snapshot's number is in `pg_stat_activity`, which shows that column
/// of every session to everybody.
const OLDEST: &str = "(SELECT greatest(max(age(a.backend_xmin)), age(pg_snapshot_xmin(pg_current_snapshot())::xid)) \
                      FROM pg_catalog.pg_stat_activity AS a WHERE a.datname = current_database())";

/// Removes the totals of 0 of a range. In PostgreSQL only those that nobody has locked and that are
/// older than every snapshot: a transaction above READ COMMITTED that read such a total before it
/// became 0 must find the row when it writes, and fail to serialize.
pub(crate) fn remove_zeros_of<'a>(
    dialect: Dialect,
    spec: &CounterSpec,
    range: &'a KeyRange,
) -> Result<Query<'a>> {
    let mut terms = Terms::of(dialect, spec, range)?;
    terms.texts.push(r#"t."total" = 0"#.to_owned());
    let (table, condition) = (spec.table_name(), terms.condition());
    let text = match dialect {
        Dialect::Sqlite => format!(r#"DELETE FROM "{table}" AS t{condition}"#),
        Dialect::Postgres => remove_seen(&table, &condition, &key_columns(spec.id().parts())),
    };
    Ok(Query::new(text, terms.values))
}

/// Removes rows that nobody has locked and that are older than every snapshot. It waits for no row,
/// so a transaction that waits for one of these rows waits for nothing else.
fn remove_seen(table: &str, condition: &str, keys: &[String]) -> String {
    let own = keys.iter().map(|key| format!("t.{key}")).collect::<Vec<_>>().join(", ");
    let same =
        keys.iter().map(|key| format!("t.{key} = free.{key}")).collect::<Vec<_>>().join(" AND ");
    let seen = format!("{condition} AND age(t.xmin) > {OLDEST}");
    format!(
        r#"WITH free AS MATERIALIZED (SELECT {own} FROM "{table}" AS t{seen} ORDER BY {own} FOR UPDATE SKIP LOCKED) DELETE FROM "{table}" AS t USING free{seen} AND {same}"#
    )
}

/// PostgreSQL's lock rows after one, in order, at most `limit`.
pub(crate) fn locks(after: Option<&LockKey>, limit: usize) -> Query<'_> {
    let (mut values, condition) = behind_lock(after);
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let limit = Dialect::Postgres.param(values.len());
    let text = format!(
        r#"SELECT t."of", t."level", t."key" FROM "{LOCKS}" AS t WHERE {condition} ORDER BY t."of", t."level", t."key" LIMIT {limit}"#
    );
    Query::new(text, values)
}

/// Removes lock rows after one and up to another, those that nobody has locked and that are older
/// than every snapshot. A transaction whose snapshot is older than the last use of a lock must find
/// its row, and fail to serialize.
pub(crate) fn remove_locks<'a>(after: Option<&'a LockKey>, last: &'a LockKey) -> Query<'a> {
    let (mut values, condition) = behind_lock(after);
    let params = lock_values(last, &mut values);
    let condition = format!(r#" WHERE {condition} AND (t."of", t."level", t."key") <= ({params})"#);
    let keys = [r#""of""#, r#""level""#, r#""key""#].map(str::to_owned);
    Query::new(remove_seen(LOCKS, &condition, &keys), values)
}

fn behind_lock(after: Option<&LockKey>) -> (Vec<Value<'_>>, String) {
    let mut values = Vec::new();
    let condition = after.map_or_else(
        || Dialect::Postgres.everything().to_owned(),
        |after| format!(r#"(t."of", t."level", t."key") > ({})"#, lock_values(after, &mut values)),
    );
    (values, condition)
}

fn lock_values<'a>((of, level, key): &'a LockKey, values: &mut Vec<Value<'a>>) -> String {
    let at = values.len();
    values.extend([
        Value::Text(of.as_str().into()),
        Value::Integer(*level),
        Value::Bytes(key.as_slice().into()),
    ]);
    format!("${}, ${}, ${}", at + 1, at + 2, at + 3)
}
