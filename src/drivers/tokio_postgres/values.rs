//! Parameters and columns as the driver sends and reads them.

use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::TokioPostgres;
use crate::batch::Batch;
use crate::error::Cause;
use crate::executor::{Column, Reader, Row};
use crate::sql::Value;

/// The parameters of a prepared query.
pub(crate) fn params<'q>(values: &'q [Value<'q>]) -> Vec<&'q (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// The parameters of an unprepared query, with their types.
pub(crate) fn typed<'q>(values: &'q [Value<'q>]) -> Vec<(&'q (dyn ToSql + Sync), Type)> {
    values.iter().map(|value| (value as &(dyn ToSql + Sync), kind_of(value))).collect()
}

/// The type as which a value is sent.
pub(crate) const fn kind_of(value: &Value<'_>) -> Type {
    match value {
        Value::Integer(_) => Type::INT8,
        Value::Text(_) => Type::TEXT,
        Value::Blob(_) | Value::Bytes(_) => Type::BYTEA,
        Value::Uuid(_) => Type::UUID,
        Value::Integers(_) => Type::INT8_ARRAY,
        Value::Texts(_) => Type::TEXT_ARRAY,
        Value::Blobs(_) => Type::BYTEA_ARRAY,
        Value::Uuids(_) => Type::UUID_ARRAY,
    }
}

/// Sixteen bytes, sent as a UUID.
#[derive(Debug)]
struct Uuid<'a>(&'a [u8; 16]);

impl ToSql for Uuid<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }

    to_sql_checked!();
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Integer(value) => value.to_sql(kind, out),
            Self::Text(text) => text.as_ref().to_sql(kind, out),
            Self::Blob(bytes) => bytes.as_slice().to_sql(kind, out),
            Self::Bytes(bytes) => bytes.as_ref().to_sql(kind, out),
            Self::Uuid(bytes) => Uuid(bytes).to_sql(kind, out),
            Self::Integers(column) => column.to_sql(kind, out),
            Self::Texts(column) => column.to_sql(kind, out),
            Self::Blobs(column) => {
                column.iter().map(AsRef::<[u8]>::as_ref).collect::<Vec<_>>().to_sql(kind, out)
            }
            Self::Uuids(column) => column.iter().map(Uuid).collect::<Vec<_>>().to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(
            *kind,
            Type::INT8
                | Type::TEXT
                | Type::BYTEA
                | Type::UUID
                | Type::INT8_ARRAY
                | Type::TEXT_ARRAY
                | Type::BYTEA_ARRAY
                | Type::UUID_ARRAY
        )
    }

    fn to_sql_checked(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        if *kind == kind_of(self) {
            return self.to_sql(kind, out);
        }
        Err(format!(
            "the server expects a value of type {kind}, and keepcount gives one of type {}",
            kind_of(self)
        )
        .into())
    }
}

/// A received column. Types that keepcount does not write are not decoded.
struct Received<'a>(Column<'a>);

impl<'a> FromSql<'a> for Received<'a> {
    fn from_sql(
        kind: &Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(match *kind {
            Type::INT8 => Column::Integer(i64::from_sql(kind, raw)?),
            Type::INT4 => Column::Integer(i32::from_sql(kind, raw)?.into()),
            Type::INT2 => Column::Integer(i16::from_sql(kind, raw)?.into()),
            Type::UUID => Column::Uuid(raw.try_into()?),
            Type::BYTEA => Column::Bytes(raw.into()),
            _ if <&str as FromSql<'_>>::accepts(kind) => match std::str::from_utf8(raw) {
                Ok(text) => Column::Text(text.into()),
                // From a database that accepts texts in any encoding.
                Err(_) => Column::NoText(raw.into()),
            },
            _ => Column::Other("".into()),
        }))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl Row for tokio_postgres::Row {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn column(&self, index: usize) -> Column<'_> {
        let kind = || self.columns().get(index).map_or("nothing", |column| column.type_().name());
        match self.try_get::<_, Option<Received<'_>>>(index) {
            Ok(Some(Received(Column::Other(_)))) | Err(_) => Column::Other(kind().into()),
            Ok(Some(Received(column))) => column,
            Ok(None) => Column::Null,
        }
    }
    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause> {
        reader.read::<TokioPostgres>(self, to)
    }
}
