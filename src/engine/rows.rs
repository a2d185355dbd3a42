//! Decodes rows: keys, totals and texts.

use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::executor::{Column, Row};
use crate::key::{KeyBuf, KeyError, KeyPart};
use crate::sql::{self, Value};

/// Reads a key's columns, starting at column `first`.
pub(crate) fn read_key(counter: &CounterId, row: &dyn Row, first: usize) -> Result<KeyBuf> {
    read_parts(counter.name(), counter.parts().as_slice(), row, first)
}

/// Reads columns as these parts of a key.
pub(crate) fn read_parts(
    name: &'static str,
    parts: &[KeyPart],
    row: &dyn Row,
    first: usize,
) -> Result<KeyBuf> {
    let mut key = KeyBuf::new();
    for (at, part) in parts.iter().enumerate() {
        let found =
            |found: &dyn ToString| KeyError::Type { wanted: *part, found: found.to_string() };
        let value = match row.column(first + at) {
            Column::Integer(value) => Ok(Value::Integer(value)),
            Column::Text(text) => Ok(Value::Text(text)),
            Column::Uuid(bytes) => Ok(Value::Uuid(bytes)),
            Column::Bytes(bytes) => {
                (&*bytes).try_into().map(Value::Blob).map_err(|_| found(&"a blob not of 16 bytes"))
            }
            Column::NoText(_) => Err(found(&"a text that is not UTF-8")),
            Column::Real(value) => Err(found(&format!("the number {value}"))),
            other @ (Column::Null | Column::Other(_)) => Err(found(&other)),
        };
        value.and_then(|value| sql::push_key_part(*part, &value, &mut key)).map_err(|cause| {
            Error::Key { counter: name, key: raw_text(row, first, parts.len()), cause }
        })?;
    }
    Ok(key)
}

/// The columns of a key that could not be read, for the error's text.
fn raw_text(row: &dyn Row, first: usize, parts: usize) -> String {
    let text =
        (first..first + parts).map(|at| row.column(at).to_string()).collect::<Vec<_>>().join(", ");
    if parts == 1 { text } else { format!("({text})") }
}

/// Reads a key and, in the last column, its total.
pub(crate) fn read_total(counter: &CounterId, row: &dyn Row) -> Result<(KeyBuf, i64)> {
    Ok((read_key(counter, row, 0)?, last_total(counter, row)?))
}

/// Reads the total in the last column. Only an error costs the table's name, not every row.
pub(crate) fn last_total(counter: &CounterId, row: &dyn Row) -> Result<i64> {
    match row.column(row.len().saturating_sub(1)) {
        Column::Integer(total) => Ok(total),
        other => Err(foreign(&counter.table_name(), &other)),
    }
}

/// An integer from a table of keepcount.
pub(crate) fn integer(row: &dyn Row, index: usize, table: &str) -> Result<i64> {
    match row.column(index) {
        Column::Integer(value) => Ok(value),
        other => Err(foreign(table, &other)),
    }
}

/// A text from a table of keepcount; `None` for NULL.
pub(crate) fn text(row: &dyn Row, index: usize, table: &str) -> Result<Option<String>> {
    match row.column(index) {
        Column::Null => Ok(None),
        Column::Text(text) => Ok(Some(text.into_owned())),
        other => Err(foreign(table, &other)),
    }
}

fn foreign(table: &str, found: &Column<'_>) -> Error {
    Error::SchemaMismatch {
        table: table.to_owned(),
        reason: format!("it has {found} where keepcount writes something else"),
    }
}
