//! Reads the application's rows from PostgreSQL; the select lists are those for SQLite.

use std::error::Error;
use std::str::FromStr;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};

pub trait ReadRow: Sized {
    fn read_row(row: &Row) -> Result<Self, tokio_postgres::Error>;
}

impl ReadRow for ArtistRow {
    fn read_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            followers: row.try_get(2)?,
            popularity: row.try_get(3)?,
        })
    }
}

impl ReadRow for ShowRow {
    fn read_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let (Parsed(date), Parsed(status)) = (row.try_get(2)?, row.try_get(3)?);
        Ok(Self { id: row.try_get(0)?, artist_id: row.try_get(1)?, date, status })
    }
}

impl ReadRow for SetlistRow {
    fn read_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self { id: row.try_get(0)?, show_id: row.try_get(1)? })
    }
}

impl ReadRow for VoteRow {
    fn read_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            setlist_id: row.try_get(1)?,
            user_id: row.try_get(2)?,
            kind: row.try_get(3)?,
            created_at: row.try_get(4)?,
        })
    }
}

/// Parses a text column.
struct Parsed<T>(T);

impl<'a, T: FromStr<Err: Error + Send + Sync + 'static>> FromSql<'a> for Parsed<T> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(<&str as FromSql>::from_sql(kind, raw)?.parse()?))
    }

    fn accepts(kind: &Type) -> bool {
        <&str as FromSql>::accepts(kind)
    }
}
