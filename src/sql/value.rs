//! The values of keys as SQL parameters and columns.

use std::borrow::Cow;

use super::Dialect;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyPart, KeyValue};

/// The maximum length of a text key in SQL stores, in bytes.
pub const MAX_TEXT: usize = 1024;

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A 64-bit integer.
    Integer(i64),
    /// A text.
    Text(Cow<'a, str>),
    /// A 16-byte id, or a 128-bit integer: big-endian, and biased if signed, so that bytes sort as
    /// the numbers do.
    Blob([u8; 16]),
    /// A UUID: PostgreSQL's `uuid`, and 16 bytes in SQLite.
    Uuid([u8; 16]),
    /// Bytes of any length that are not part of a key: PostgreSQL's `bytea`.
    Bytes(Cow<'a, [u8]>),
    /// A column of many rows, for PostgreSQL only: `bigint[]`.
    Integers(Vec<i64>),
    /// A column of texts: `text[]`.
    Texts(Vec<Cow<'a, str>>),
    /// A column of bytes: `bytea[]`.
    Blobs(Vec<Cow<'a, [u8]>>),
    /// A column of UUIDs: `uuid[]`.
    Uuids(Vec<[u8; 16]>),
}

impl Value<'_> {
    /// Turns the values of many rows, `width` each, into columns: one array for each position. All
    /// values at one position have the same kind.
    pub(crate) fn columns(rows: Vec<Self>, width: usize) -> Vec<Self> {
        let mut columns: Vec<Self> = Vec::with_capacity(width);
        for (at, value) in rows.into_iter().enumerate() {
            match columns.get_mut(at % width.max(1)) {
                Some(column) => column.push(value),
                None => columns.push(value.into_column()),
            }
        }
        columns
    }

    /// The number of rows that it has values for.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Integers(column) => column.len() as u64,
            Self::Texts(column) => column.len() as u64,
            Self::Blobs(column) => column.len() as u64,
            Self::Uuids(column) => column.len() as u64,
            Self::Integer(_) | Self::Text(_) | Self::Blob(_) | Self::Uuid(_) | Self::Bytes(_) => 1,
        }
    }

    pub(crate) fn into_column(self) -> Self {
        match self {
            Self::Integer(value) => Self::Integers(vec![value]),
            Self::Text(text) => Self::Texts(vec![text]),
            Self::Blob(bytes) => Self::Blobs(vec![Cow::Owned(bytes.to_vec())]),
            Self::Uuid(bytes) => Self::Uuids(vec![bytes]),
            Self::Bytes(bytes) => Self::Blobs(vec![bytes]),
            column => column,
        }
    }

    fn push(&mut self, value: Self) {
        match (self, value) {
            (Self::Integers(column), Self::Integer(value)) => column.push(value),
            (Self::Texts(column), Self::Text(text)) => column.push(text),
            (Self::Blobs(column), Self::Blob(bytes)) => column.push(Cow::Owned(bytes.to_vec())),
            (Self::Uuids(column), Self::Uuid(bytes)) => column.push(bytes),
            (Self::Blobs(column), Self::Bytes(bytes)) => column.push(bytes),
            (column, value) => debug_assert!(false, "{value:?} in a column of {column:?}"),
        }
    }
}

/// A key as parameters.
///
/// # Errors
///
/// [`Error::Key`] for an unsigned integer above `i64::MAX` in a part of at most 64 bits, a text
/// over [`MAX_TEXT`] bytes or, in PostgreSQL, with a zero byte, or bytes that are not a key of this
/// counter.
pub fn key_values<'a>(
    dialect: Dialect,
    counter: &CounterId,
    key: &'a KeyBuf,
) -> Result<Vec<Value<'a>>> {
    let mut values = Vec::with_capacity(counter.parts().len() + 1);
    push_key_values(dialect, counter, key, &mut values)?;
    Ok(values)
}

pub(crate) fn push_key_values<'a>(
    dialect: Dialect,
    counter: &CounterId,
    key: &'a KeyBuf,
    to: &mut Vec<Value<'a>>,
) -> Result<()> {
    let failed = |cause| Error::key(counter, key, cause);
    let parts = counter.parts();
    if parts.is_empty() {
        to.push(Value::Integer(0));
    }
    for (part, value) in parts.as_slice().iter().zip(parts.values(key).map_err(failed)?) {
        to.push(column_value(dialect, *part, value).map_err(failed)?);
    }
    Ok(())
}

/// A prefix of a key as parameters, one for each part that it has.
pub(crate) fn prefix_values<'a>(
    dialect: Dialect,
    counter: &CounterId,
    prefix: &'a KeyBuf,
) -> Result<Vec<Value<'a>>> {
    let parts = counter.parts();
    let values =
        parts.values_of_prefix(prefix).map_err(|cause| Error::key(counter, prefix, cause))?;
    let columns = parts.as_slice().iter().zip(values);
    columns
        .map(|(part, value)| {
            column_value(dialect, *part, value).map_err(|cause| Error::key(counter, prefix, cause))
        })
        .collect()
}

pub(crate) fn column_value(
    dialect: Dialect,
    part: KeyPart,
    value: KeyValue<'_>,
) -> Result<Value<'_>, KeyError> {
    Ok(match value {
        KeyValue::Signed(value) if part == KeyPart::Signed(16) => {
            Value::Blob((value.cast_unsigned() ^ (1 << 127)).to_be_bytes())
        }
        KeyValue::Unsigned(value) if part == KeyPart::Unsigned(16) => {
            Value::Blob(value.to_be_bytes())
        }
        KeyValue::Signed(value) => Value::Integer(i64::try_from(value).map_err(|_| wide(&value))?),
        KeyValue::Unsigned(value) => {
            Value::Integer(i64::try_from(value).map_err(|_| wide(&value))?)
        }
        KeyValue::Text(text) if text.len() > MAX_TEXT => {
            return Err(KeyError::TooLong { bytes: text.len(), most: MAX_TEXT });
        }
        KeyValue::Text(text) if dialect == Dialect::Postgres && text.contains('\0') => {
            return Err(KeyError::ZeroByte);
        }
        KeyValue::Text(text) => Value::Text(text),
        KeyValue::Bytes16(id) => Value::Blob(id),
        KeyValue::Uuid(id) => Value::Uuid(id),
    })
}

fn wide(value: &impl ToString) -> KeyError {
    KeyError::Range { wanted: "the integers of SQL", value: value.to_string() }
}

/// Appends a column's value to a key that is being read.
///
/// # Errors
///
/// [`KeyError`] if the value does not fit the part, or is a text over [`MAX_TEXT`] bytes.
pub fn push_key_part(part: KeyPart, value: &Value<'_>, to: &mut KeyBuf) -> Result<(), KeyError> {
    match (part, value) {
        (_, Value::Text(text)) if text.len() > MAX_TEXT => {
            Err(KeyError::TooLong { bytes: text.len(), most: MAX_TEXT })
        }
        (_, Value::Integer(value)) => part.push(&KeyValue::Signed(i128::from(*value)), to),
        (_, Value::Text(text)) => part.push(&KeyValue::Text(Cow::Borrowed(text)), to),
        (KeyPart::Signed(16), Value::Blob(bytes)) => part
            .push(&KeyValue::Signed((u128::from_be_bytes(*bytes) ^ (1 << 127)).cast_signed()), to),
        (KeyPart::Unsigned(16), Value::Blob(bytes)) => {
            part.push(&KeyValue::Unsigned(u128::from_be_bytes(*bytes)), to)
        }
        (_, Value::Blob(bytes) | Value::Uuid(bytes)) => part.push(&KeyValue::Bytes16(*bytes), to),
        (wanted, _) => Err(KeyError::Type { wanted, found: "bytes, or an array".to_owned() }),
    }
}
