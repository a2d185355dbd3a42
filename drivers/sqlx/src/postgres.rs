//! PostgreSQL: its values, its errors by their SQLSTATE, and how its transactions end.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use keepcount::Cause;
use keepcount::executor::{
    Column, ErrorKind, NotCommitted, RolledBack, fault_of_sqlstate, server_text,
};
use keepcount::sql::{Dialect, Value};
use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError, PgRow, PgSeverity, PgValueRef};
use sqlx::{Arguments as _, Decode, Postgres, Row as _, Type, TypeInfo as _, ValueRef as _};
use uuid::Uuid;

use crate::executor::{Library, not_committed, statements};

impl Library for Postgres {
    const DIALECT: Dialect = Dialect::Postgres;
    const BEGIN: &'static str = "BEGIN";
    const BEGIN_READ: &'static str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    const HAS_SAVEPOINTS: bool = false;

    statements!();

    fn bind(to: &mut PgArguments, value: &Value<'_>) -> Result<(), Cause> {
        match value {
            Value::Integer(value) => to.add(*value),
            Value::Text(text) => to.add(text.as_ref()),
            Value::Blob(bytes) => to.add(bytes.as_slice()),
            Value::Bytes(bytes) => to.add(bytes.as_ref()),
            Value::Uuid(bytes) => to.add(Uuid::from_bytes(*bytes)),
            Value::Integers(column) => to.add(column.as_slice()),
            Value::Texts(column) => to.add(column.iter().map(AsRef::as_ref).collect::<Vec<&str>>()),
            Value::Blobs(column) => {
                to.add(column.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>())
            }
            Value::Uuids(column) => {
                to.add(column.iter().copied().map(Uuid::from_bytes).collect::<Vec<Uuid>>())
            }
        }
    }

    fn column(row: &PgRow, index: usize) -> Column<'_> {
        match row.try_get_raw(index) {
            Ok(value) if !value.is_null() => column(value),
            Ok(_) | Err(_) => Column::Null,
        }
    }

    fn kind(error: &sqlx::Error) -> ErrorKind {
        match (said(error), error) {
            (Some(said), _) if is_forgotten(said) => ErrorKind::FORGOTTEN,
            (Some(said), _) if is_fatal(said) => ErrorKind::of_fatal(said.code()),
            (Some(said), _) => ErrorKind::of_sqlstate(said.code()),
            (None, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) => {
                ErrorKind::LOST
            }
            _ => ErrorKind::Other,
        }
    }

    fn fault(error: &sqlx::Error) -> Option<String> {
        let said = said(error)?;
        let text = server_text(said.code(), said.message(), [said.detail(), said.hint()]);
        fault_of_sqlstate(said.code(), &text)
    }

    /// Outside a transaction, a statement begins when its transaction does, if it is sent by the
    /// simple protocol.
    fn is_idle(conn: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<bool>> {
        Box::pin(async move {
            let idle = sqlx::raw_sql("SELECT now() = statement_timestamp()").fetch_one(conn).await;
            match idle {
                Ok(row) => row.try_get(0),
                Err(error) if said(&error).is_some_and(|said| said.code() == "25P02") => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    /// The outcome is unknown unless the server itself reports that it rolled the transaction back.
    fn not_committed(_: &mut PgConnection, error: sqlx::Error) -> BoxFuture<'_, NotCommitted> {
        let is_certain = said(&error).is_some_and(|said| !is_fatal(said));
        Box::pin(std::future::ready(not_committed::<Self>(error, is_certain)))
    }

    /// A ROLLBACK can be cancelled like any statement, and then it has done nothing. Nothing is
    /// left of a connection that was lost.
    fn roll_back_failed(_: &mut PgConnection, error: sqlx::Error) -> BoxFuture<'_, RolledBack> {
        let is_open = said(&error).is_some_and(|said| !is_fatal(said));
        let failed = if is_open { RolledBack::Open } else { RolledBack::Over };
        Box::pin(std::future::ready(failed))
    }
}

fn column(value: PgValueRef<'_>) -> Column<'_> {
    fn read<'r, T: Decode<'r, Postgres>>(value: PgValueRef<'r>) -> Option<T> {
        T::decode(value).ok()
    }
    let info = value.type_info().into_owned();
    let read = match info.name() {
        "INT8" => read(value).map(Column::Integer),
        "INT4" => read::<i32>(value).map(|value| Column::Integer(value.into())),
        "INT2" => read::<i16>(value).map(|value| Column::Integer(value.into())),
        "UUID" => read::<Uuid>(value).map(|value| Column::Uuid(value.into_bytes())),
        "BYTEA" => read::<&[u8]>(value).map(|bytes| Column::Bytes(bytes.into())),
        _ if <&str as Type<Postgres>>::compatible(&info) => value.as_bytes().ok().map(|bytes| {
            // A database may accept texts in any encoding.
            std::str::from_utf8(bytes)
                .map_or_else(|_| Column::NoText(bytes.into()), |text| Column::Text(text.into()))
        }),
        _ => None,
    };
    read.unwrap_or_else(|| Column::Other(info.name().to_lowercase().into()))
}

fn said(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

fn is_fatal(said: &PgDatabaseError) -> bool {
    matches!(said.severity(), PgSeverity::Fatal | PgSeverity::Panic)
}

/// Whether the server does not know a prepared statement of sqlx any more, or it returns other
/// columns since a table changed. Behind a pooler, another connection may have one with its name.
fn is_forgotten(said: &PgDatabaseError) -> bool {
    match said.code() {
        "26000" | "42P05" => said.message().contains("sqlx_s_"),
        "0A000" => said.routine() == Some("RevalidateCachedQuery"),
        _ => false,
    }
}
