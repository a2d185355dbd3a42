//! What the store of PostgreSQL asks of many totals at once: keys as arrays, one for each column.

use crate::counter::{Def, Placed};
use crate::error::Result;
use crate::key::KeyBuf;
use crate::sql::{
    ARRAY_MOST, Dialect, Query, Value, among, array_param, columns, head_values, key_columns, own_key_columns,
    push_key_values, upsert_many,
};

/// Reads of these keys: the key's columns and the total, in any order.
pub(crate) fn read_many<'a>(placed: &Placed, keys: &'a [KeyBuf]) -> Result<Vec<Query<'a>>> {
    let parts = placed.def().parts();
    let (own, table) = (own_key_columns(parts).join(", "), placed.table_name());
    let text = format!(r#"SELECT {own}, t."total" FROM "{table}" AS t JOIN {}"#, among(parts, "ON"));
    let read = |keys| Ok(Query { text: text.clone(), values: key_arrays(&placed.def(), keys)? });
    keys.chunks(ARRAY_MOST).map(read).collect()
}

/// Keys as parameters, an array for each column.
pub(crate) fn key_arrays<'a>(counter: &Def, keys: &'a [KeyBuf]) -> Result<Vec<Value<'a>>> {
    let mut rows = Vec::with_capacity(keys.len() * counter.parts().len());
    for key in keys {
        push_key_values(Dialect::Postgres, counter, key, &mut rows)?;
    }
    Ok(Value::columns(rows, key_columns(counter.parts()).len()))
}

/// A read of all totals under some heads of keys, of as many parts: the key's columns and the total, in any order.
pub(crate) fn read_under<'a>(placed: &Placed, head: usize, heads: &[&'a KeyBuf]) -> Result<Query<'a>> {
    let (def, table) = (placed.def(), placed.table_name());
    let own = own_key_columns(def.parts());
    let mut rows = Vec::with_capacity(heads.len() * head);
    for head in heads {
        rows.extend(head_values(Dialect::Postgres, &def, head)?);
    }
    let kinds: Vec<&str> = columns(Dialect::Postgres, def.parts()).into_iter().map(|(_, kind)| kind).collect();
    let columns = (0..head).map(|at| array_param(at, kinds.get(at).copied().unwrap_or_default()));
    let names: Vec<String> = (1..=head).map(|at| format!("k_{at}")).collect();
    let same: Vec<String> = own.iter().zip(&names).map(|(own, name)| format!("{own} = k.{name}")).collect();
    let (columns, names, same) = (columns.collect::<Vec<_>>().join(", "), names.join(", "), same.join(" AND "));
    let own = own.join(", ");
    let text = if head == 0 {
        format!(r#"SELECT {own}, t."total" FROM "{table}" AS t"#)
    } else {
        format!(r#"SELECT {own}, t."total" FROM unnest({columns}) AS k({names}) JOIN "{table}" AS t ON {same}"#)
    };
    Ok(Query { text, values: Value::columns(rows, head) })
}

/// A hold of these totals, in key order, until the transaction ends; one that is absent is made, at 0. Gives the key's columns and the
/// total.
pub(crate) fn hold<'a>(placed: &Placed, keys: &'a [KeyBuf]) -> Result<Query<'a>> {
    let parts = placed.def().parts();
    let mut rows = Vec::with_capacity(keys.len() * (parts.len() + 1));
    for key in keys {
        push_key_values(Dialect::Postgres, &placed.def(), key, &mut rows)?;
        rows.push(Value::Integer(0));
    }
    let text = format!(r#"{} RETURNING {}, t."total""#, upsert_many(placed), own_key_columns(parts).join(", "));
    Ok(Query { text, values: Value::columns(rows, key_columns(parts).len() + 1) })
}
