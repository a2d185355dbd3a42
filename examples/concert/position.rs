//! How far each stream was applied: the offset of its last line, and a hash of the lines up to it,
//! which detects a changed file.

use keepcount::{Batch, SqliteStore, Store as _, StreamRange};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::error::{Error, Result};
use crate::lines::Position;
use crate::schema::C;

pub const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS replay_prefix (
        stream TEXT NOT NULL PRIMARY KEY,
        hash BLOB NOT NULL
    ) STRICT;
";

/// The table of positions in older databases, from before keepcount kept offsets.
pub const OLD_TABLE: &str = "replay_position";
pub const OLD_COLUMNS: &str = "stream, lines, hash";

/// Checks that this is a valid name of a stream.
pub fn check_name(stream: &str) -> Result<()> {
    let checked = StreamRange::new(stream, 1, 1).map(drop);
    checked.map_err(|error| {
        Error::said(format!("stream {stream:?}: {error}; give another as --stream NAME"))
    })
}

/// Reads a position. Call it in a transaction, because offset and hash must be of one moment.
pub fn read(conn: &Connection, stream: &str) -> Result<Position> {
    let last = SqliteStore::new(conn, &C::SCHEMA).offset(stream)?;
    let mut find = conn.prepare_cached("SELECT hash FROM replay_prefix WHERE stream = ?1")?;
    of(stream, last, find.query_row([stream], |row| row.get(0)).optional()?)
}

/// Returns the position that the offset and the hash of a stream describe.
pub fn of(stream: &str, last: u64, hash: Option<[u8; 32]>) -> Result<Position> {
    match (i64::try_from(last), hash) {
        (Ok(0), None) => Ok(Position::default()),
        (Ok(lines @ 1..), Some(hash)) => Ok(Position { lines, hash }),
        (_, hash) => Err(Error::Foreign(format!(
            "table replay_prefix has {} of stream {stream}, whose offset is {last}: another program wrote one of them",
            if hash.is_some() { "a hash" } else { "no hash" }
        ))),
    }
}

/// Stores the hash; the offset moves with the totals.
pub fn set_hash(conn: &Connection, stream: &str, position: &Position) -> Result<()> {
    let text = "INSERT INTO replay_prefix (stream, hash) VALUES (?1, ?2)
                ON CONFLICT (stream) DO UPDATE SET hash = excluded.hash";
    conn.prepare_cached(text)?.execute(params![stream, position.hash])?;
    Ok(())
}

/// Returns the number of applied lines, over all streams.
pub fn lines(conn: &Connection) -> Result<i128> {
    let mut streams = conn.prepare_cached("SELECT stream FROM replay_prefix")?;
    let mut store = SqliteStore::new(conn, &C::SCHEMA);
    let mut lines = 0;
    for stream in streams.query_map((), |row| row.get::<_, String>(0))? {
        lines += i128::from(store.offset(&stream?)?);
    }
    Ok(lines)
}

/// Turns the positions of an older database into offsets, and drops their table.
pub fn migrate(tx: &Connection) -> Result<()> {
    let read = || -> rusqlite::Result<Vec<(String, Position)>> {
        let mut find =
            tx.prepare(&format!("SELECT {OLD_COLUMNS} FROM {OLD_TABLE} WHERE lines > 0"))?;
        let rows = find.query_map((), |row| {
            Ok((row.get(0)?, Position { lines: row.get(1)?, hash: row.get(2)? }))
        })?;
        rows.collect()
    };
    let positions =
        read().map_err(|error| Error::Foreign(format!("table {OLD_TABLE}: {error}")))?;
    let mut store = SqliteStore::new(tx, &C::SCHEMA);
    for (stream, position) in positions {
        let refused = |why: &dyn std::fmt::Display| {
            Error::Foreign(format!("table {OLD_TABLE}, stream {stream:?}: {why}"))
        };
        // The totals contain these lines already.
        let stream_range = StreamRange::new(&stream, 1, position.lines.unsigned_abs())
            .map_err(|error| refused(&error))?;
        if store
            .apply_idempotent(&mut Batch::new(), &stream_range)
            .map_err(|error| refused(&error))?
            .skipped
        {
            return Err(refused(&"it has an offset already"));
        }
        set_hash(tx, &stream, &position)?;
    }
    Ok(tx.execute_batch(&format!("DROP TABLE {OLD_TABLE}"))?)
}
