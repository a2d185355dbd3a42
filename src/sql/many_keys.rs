//! Statements over many keys: in SQLite executed once for each key, in PostgreSQL with an array for
//! each column.

use std::borrow::Cow;

use super::{
    CATALOGUE, Dialect, Query, Value, column_kind, columns, key_columns, own_key_columns,
    prefix_values, push_key_column, push_key_is, push_key_values,
};
use crate::counter::{CounterId, CounterSpec};
use crate::error::Result;
use crate::key::{KeyBuf, KeyParts};

/// The maximum number of rows that one execution of a PostgreSQL statement reads or writes.
pub(crate) const MAX_ARRAY: usize = 10_000;

/// Appends rows of parameters: as they are, or as rows of arrays.
pub(crate) fn push_rows<'a>(
    arrays: bool,
    mut rows: Vec<Value<'a>>,
    width: usize,
    to: &mut Vec<Value<'a>>,
) {
    if !arrays {
        to.append(&mut rows);
        return;
    }
    while !rows.is_empty() {
        let rest = rows.split_off(rows.len().min(MAX_ARRAY * width));
        to.extend(Value::columns(std::mem::replace(&mut rows, rest), width));
    }
}

/// A query with some rows of parameters.
pub(crate) fn of_rows(
    dialect: Dialect,
    text: String,
    rows: Vec<Value<'_>>,
    width: usize,
) -> Query<'_> {
    let mut values = Vec::new();
    push_rows(dialect == Dialect::Postgres, rows, width, &mut values);
    Query::of_rows(text, values, width)
}

/// Keys as rows of parameters.
pub(crate) fn key_rows<'a>(
    dialect: Dialect,
    counter: &CounterId,
    keys: &'a [KeyBuf],
) -> Result<Vec<Value<'a>>> {
    let mut rows = Vec::with_capacity(keys.len() * counter.parts().len());
    for key in keys {
        push_key_values(dialect, counter, key, &mut rows)?;
    }
    Ok(rows)
}

/// Reads these keys: the key's columns and another column, in any order.
pub(crate) fn read_keys<'a>(
    dialect: Dialect,
    table: &str,
    counter: &CounterId,
    column: &str,
    keys: &'a [KeyBuf],
) -> Result<Query<'a>> {
    let parts = counter.parts();
    let width = parts.len().max(1);
    let text = select(dialect, table, parts, (width, column));
    Ok(of_rows(dialect, text, key_rows(dialect, counter, keys)?, width))
}

/// Reads all totals under some prefixes with this many parts: the key's columns and the total, in
/// any order.
pub(crate) fn read_under<'a>(
    dialect: Dialect,
    spec: &CounterSpec,
    parts: usize,
    prefixes: &[&'a KeyBuf],
) -> Result<Query<'a>> {
    let (id, table) = (spec.id(), spec.table_name());
    let text = select(dialect, &table, id.parts(), (parts, "total"));
    let mut rows = Vec::with_capacity(prefixes.len() * parts);
    for prefix in prefixes {
        rows.extend(prefix_values(dialect, &id, prefix)?);
    }
    if parts == 0 {
        return Ok(Query::new(text, Vec::new()));
    }
    Ok(of_rows(dialect, text, rows, parts))
}

/// Selects the key's columns and another one of the rows whose first `prefix` key columns are those
/// of a row of parameters.
fn select(
    dialect: Dialect,
    table: &str,
    parts: KeyParts,
    (prefix, column): (usize, &str),
) -> String {
    let width = parts.len().max(1);
    let mut text = String::with_capacity(192);
    text.push_str("SELECT t.");
    for at in 1..=width {
        text.push_str(if at == 1 { "" } else { ", t." });
        push_key_column(at, width, &mut text);
    }
    for piece in [r#", t.""#, column, r#"" FROM "#] {
        text.push_str(piece);
    }
    if dialect == Dialect::Postgres && prefix > 0 {
        let columns = columns(dialect, parts);
        let columns = columns.get(..prefix).unwrap_or(&columns);
        let join =
            format!(r#"{} JOIN "{table}" AS t ON {}"#, unnested(columns), same_as_k(columns));
        text.push_str(&join);
        return text;
    }
    for piece in ["\"", table, r#"" AS t"#] {
        text.push_str(piece);
    }
    if prefix > 0 {
        text.push_str(" WHERE ");
        push_key_is(dialect, (prefix, width), &mut text);
    }
    text
}

/// Deletes the rows that have one of the keys in the parameters.
pub(crate) fn delete_keys(dialect: Dialect, table: &str, parts: KeyParts) -> String {
    if dialect == Dialect::Postgres {
        let columns = columns(dialect, parts);
        return format!(
            r#"DELETE FROM "{table}" AS t USING {} WHERE {}"#,
            unnested(&columns),
            same_as_k(&columns)
        );
    }
    let width = parts.len().max(1);
    let mut text = format!(r#"DELETE FROM "{table}" AS t WHERE "#);
    push_key_is(dialect, (width, width), &mut text);
    text
}

fn same_as_k(columns: &[(String, &str)]) -> String {
    let same = columns.iter().map(|(column, _)| format!("t.{column} = k.{column}"));
    same.collect::<Vec<_>>().join(" AND ")
}

fn unnested(columns: &[(String, &str)]) -> String {
    let names = columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    format!("unnest({}) AS k({names})", array_params(columns.iter().map(|(_, kind)| *kind)))
}

/// PostgreSQL's parameters for many keys, an array for each column.
pub(crate) fn arrays(parts: KeyParts) -> String {
    array_params(columns(Dialect::Postgres, parts).into_iter().map(|(_, kind)| kind))
}

fn array_params<'k>(kinds: impl Iterator<Item = &'k str>) -> String {
    kinds.enumerate().map(|(at, kind)| array_param(at, kind)).collect::<Vec<_>>().join(", ")
}

/// PostgreSQL's parameter after the first `index`, an array of this type.
fn array_param(index: usize, kind: &str) -> String {
    format!("${}::{}[]", index + 1, kind.split(' ').next().unwrap_or(kind))
}

/// Writes one column of the rows of the keys in the parameters. The value comes after its key; an
/// existing row gets the value of the expression `set`.
pub(crate) fn write_keys(
    dialect: Dialect,
    table: &str,
    parts: KeyParts,
    (column, kind): (&str, &'static str),
    set: &str,
) -> String {
    let (keys, mut kinds) = (key_columns(parts).join(", "), columns(dialect, parts));
    kinds.push((String::new(), kind));
    let rows = match dialect {
        Dialect::Sqlite => format!("VALUES ({})", dialect.params(kinds.len())),
        Dialect::Postgres => {
            format!("SELECT * FROM unnest({})", array_params(kinds.iter().map(|(_, kind)| *kind)))
        }
    };
    format!(
        r#"INSERT INTO "{table}" AS t ({keys}, "{column}") {rows} ON CONFLICT ({keys}) DO UPDATE SET "{column}" = {set}"#
    )
}

/// PostgreSQL's [`upsert`](super::upsert) of many totals: the parameters are arrays of each key
/// column, and of the deltas.
pub(crate) fn upsert_many(spec: &CounterSpec) -> String {
    let kind = ("total", column_kind(Dialect::Postgres, None));
    write_keys(
        Dialect::Postgres,
        &spec.table_name(),
        spec.id().parts(),
        kind,
        r#"t."total" + excluded."total""#,
    )
}

/// Removes those of some totals that are 0.
pub(crate) fn remove_zeros(dialect: Dialect, spec: &CounterSpec) -> String {
    format!(r#"{} AND t."total" = 0"#, delete_keys(dialect, &spec.table_name(), spec.id().parts()))
}

/// Locks these totals in PostgreSQL, in key order, until the transaction ends. An absent one is
/// created with 0. Returns the key's columns and the total.
pub(crate) fn lock_totals<'a>(spec: &CounterSpec, keys: &'a [KeyBuf]) -> Result<Query<'a>> {
    let parts = spec.id().parts();
    let mut rows = Vec::with_capacity(keys.len() * (parts.len() + 1));
    for key in keys {
        push_key_values(Dialect::Postgres, &spec.id(), key, &mut rows)?;
        rows.push(Value::Integer(0));
    }
    let text = format!(
        r#"{} RETURNING {}, t."total""#,
        upsert_many(spec),
        own_key_columns(parts).join(", ")
    );
    Ok(of_rows(Dialect::Postgres, text, rows, key_columns(parts).len() + 1))
}

/// The cutoffs of some counters, with their names. In PostgreSQL they are in the order of names,
/// and `lock` locks them until the transaction ends.
pub(crate) fn read_cutoffs(
    dialect: Dialect,
    names: Vec<Cow<'static, str>>,
    lock: bool,
) -> Query<'static> {
    let read = format!(r#"SELECT c."name", c."cutoff" FROM "{CATALOGUE}" AS c WHERE c."name" ="#);
    match dialect {
        Dialect::Sqlite => {
            Query::of_rows(format!("{read} ?1"), names.into_iter().map(Value::Text).collect(), 1)
        }
        Dialect::Postgres => {
            let lock = if lock { " FOR SHARE" } else { "" };
            Query::new(
                format!(r#"{read} ANY($1) ORDER BY c."name"{lock}"#),
                vec![Value::Texts(names)],
            )
        }
    }
}

/// Sets the cutoff of the counter in the second parameter, unless it already is as late.
pub(crate) fn set_cutoff(dialect: Dialect) -> String {
    let (cutoff, name) = (dialect.param(1), dialect.param(2));
    format!(
        r#"UPDATE "{CATALOGUE}" AS c SET "cutoff" = {cutoff} WHERE c."name" = {name} AND (c."cutoff" IS NULL OR c."cutoff" < {cutoff})"#
    )
}

/// Removes the totals whose last key column is before the parameter.
pub(crate) fn prune(dialect: Dialect, spec: &CounterSpec) -> String {
    let last = own_key_columns(spec.id().parts()).pop().unwrap_or_default();
    format!(r#"DELETE FROM "{}" AS t WHERE {last} < {}"#, spec.table_name(), dialect.param(1))
}
