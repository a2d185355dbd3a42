//! Reads the application's rows from SQLite: `COLUMNS` is the select list that `read` reads.

use std::error::Error;
use std::str::FromStr;

use rusqlite::Row;
use rusqlite::types::Type;

use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};

impl ArtistRow {
    pub const COLUMNS: &'static str = "id, name, followers, popularity";

    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            name: row.get(1)?,
            followers: row.get(2)?,
            popularity: row.get(3)?,
        })
    }
}

impl ShowRow {
    pub const COLUMNS: &'static str = "id, artist_id, date, status";

    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            artist_id: row.get(1)?,
            date: parsed(row, 2)?,
            status: parsed(row, 3)?,
        })
    }
}

/// Parses a text column.
fn parsed<T: FromStr<Err: Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

impl SetlistRow {
    pub const COLUMNS: &'static str = "id, show_id";

    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, show_id: row.get(1)? })
    }
}

impl VoteRow {
    pub const COLUMNS: &'static str = "id, setlist_id, user_id, kind, created_at";

    pub fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            setlist_id: row.get(1)?,
            user_id: row.get(2)?,
            kind: row.get(3)?,
            created_at: row.get(4)?,
        })
    }
}
