//! SQLite: its values, its errors by their code, and how its transactions end.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use keepcount::Cause;
use keepcount::executor::{Column, ErrorKind, NotCommitted, RolledBack};
use keepcount::sql::{Dialect, Value};
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow, SqliteValueRef};
use sqlx::{Arguments as _, Decode, Row as _, Sqlite, TypeInfo as _, ValueRef as _};
use sqlx_core::database::Database;
use sqlx_core::transaction::TransactionManager;

use crate::executor::{Library, not_committed, statements};

type Manager = <Sqlite as Database>::TransactionManager;

impl Library for Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;
    const BEGIN: &'static str = "BEGIN IMMEDIATE";
    const BEGIN_READ: &'static str = "BEGIN";
    const HAS_SAVEPOINTS: bool = true;

    statements!();

    fn bind(to: &mut SqliteArguments, value: &Value<'_>) -> Result<(), Cause> {
        match value {
            Value::Integer(value) => to.add(*value),
            Value::Text(text) => to.add(text.as_ref()),
            Value::Blob(bytes) | Value::Uuid(bytes) => to.add(bytes.as_slice()),
            Value::Bytes(bytes) => to.add(bytes.as_ref()),
            Value::Integers(_) | Value::Texts(_) | Value::Blobs(_) | Value::Uuids(_) => {
                Err("only PostgreSQL has arrays".into())
            }
        }
    }

    fn column(row: &SqliteRow, index: usize) -> Column<'_> {
        match row.try_get_raw(index) {
            Ok(value) if !value.is_null() => column(value),
            Ok(_) | Err(_) => Column::Null,
        }
    }

    fn kind(error: &sqlx::Error) -> ErrorKind {
        match error {
            sqlx::Error::Database(said) => ErrorKind::of_sqlite(code(&**said), said.message()),
            sqlx::Error::WorkerCrashed => ErrorKind::LOST,
            _ => ErrorKind::Other,
        }
    }

    /// An error of SQL has a code that has no name of its own.
    fn fault(error: &sqlx::Error) -> Option<String> {
        let said = error.as_database_error()?;
        let is_of_statement = matches!(code(said).map(|code| code & 0xff), Some(1 | 18 | 20));
        is_of_statement.then(|| said.message().to_owned())
    }

    /// A commit that fails and leaves the transaction open did nothing: SQLite then refuses to
    /// begin another. If another can begin, or nothing can be asked, its outcome is unknown.
    fn not_committed(
        conn: &mut SqliteConnection,
        error: sqlx::Error,
    ) -> BoxFuture<'_, NotCommitted> {
        Box::pin(async move {
            let is_open = match Self::run(conn, "BEGIN").await {
                Err(sqlx::Error::Database(said)) => code(&*said) == Some(1),
                _ => false,
            };
            not_committed::<Self>(error, is_open)
        })
    }

    /// If SQLite has rolled back by itself, sqlx still counts the transaction: another begins, to
    /// be rolled back. A savepoint in the caller's transaction that cannot be rolled back takes
    /// that with it, and the caller's commit fails.
    fn roll_back_failed(conn: &mut SqliteConnection, _: sqlx::Error) -> BoxFuture<'_, RolledBack> {
        Box::pin(async move {
            if Manager::get_transaction_depth(conn) > 1 {
                let _ = Self::run(conn, "ROLLBACK").await;
                return RolledBack::Lost;
            }
            let _ = Self::run(conn, "BEGIN").await;
            RolledBack::Open
        })
    }
}

fn column(value: SqliteValueRef<'_>) -> Column<'_> {
    fn read<'r, T: Decode<'r, Sqlite>>(value: SqliteValueRef<'r>) -> Option<T> {
        T::decode(value).ok()
    }
    let kind = value.type_info().name().to_owned();
    let read = match kind.as_str() {
        "INTEGER" => read(value).map(Column::Integer),
        "REAL" => read(value).map(Column::Real),
        "TEXT" => read::<&[u8]>(value).map(|bytes| {
            std::str::from_utf8(bytes)
                .map_or_else(|_| Column::NoText(bytes.into()), |text| Column::Text(text.into()))
        }),
        "BLOB" => read::<&[u8]>(value).map(|bytes| Column::Bytes(bytes.into())),
        _ => None,
    };
    read.unwrap_or_else(|| Column::Other(kind.to_lowercase().into()))
}

/// The extended code of SQLite's error.
fn code(said: &dyn DatabaseError) -> Option<i32> {
    said.code()?.parse().ok()
}
