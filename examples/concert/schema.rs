//! The application's tables, and how a database is opened or created.

use std::path::Path;
use std::time::Duration;

use keepcount::SqliteStore;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::{Error, Result};
use crate::rows::{ArtistRow, HalfLives, SetlistRow, ShowRow, VoteRow};
use crate::{position, verified};

/// The counters, keyed by the application's ids, which are texts.
pub type C = keepcount::concert::Concert<String, HalfLives>;

pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS artists (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        followers INTEGER NOT NULL CHECK (followers >= 0),
        popularity INTEGER NOT NULL CHECK (popularity BETWEEN 0 AND 100)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS shows (
        id TEXT NOT NULL PRIMARY KEY,
        artist_id TEXT REFERENCES artists (id),
        date TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('upcoming', 'completed', 'cancelled'))
    ) STRICT;
    CREATE TABLE IF NOT EXISTS setlists (
        id TEXT NOT NULL PRIMARY KEY,
        show_id TEXT REFERENCES shows (id)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS votes (
        id TEXT NOT NULL PRIMARY KEY,
        setlist_id TEXT NOT NULL REFERENCES setlists (id),
        user_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('up', 'down')),
        created_at INTEGER NOT NULL
    ) STRICT;
";

/// The indices serve the cascading deletes of `app.rs`, and the sources of `audit.rs`, which page
/// by the first columns.
pub const INDICES: &str = "
    CREATE INDEX IF NOT EXISTS shows_by_artist ON shows (artist_id, date, status);
    CREATE INDEX IF NOT EXISTS shows_by_date ON shows (date, id, status);
    CREATE INDEX IF NOT EXISTS setlists_by_show ON setlists (show_id);
    CREATE INDEX IF NOT EXISTS votes_by_setlist ON votes (setlist_id, created_at, kind);
    CREATE INDEX IF NOT EXISTS votes_by_user ON votes (user_id);
";

/// Opens a database and creates what does not exist yet: the file, the application's tables, the
/// tables of totals.
pub fn create(path: &Path) -> Result<Connection> {
    let make = || {
        let mut conn = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(TABLES)?;
        tx.execute_batch(verified::TABLE)?;
        tx.execute_batch(position::TABLE)?;
        check_rows(&tx)?;
        tx.execute_batch(INDICES)?;
        SqliteStore::new(&tx, &C::SCHEMA).create()?;
        if is_old(&tx)? {
            check_table(&tx, position::OLD_TABLE, position::OLD_COLUMNS)?;
            position::migrate(&tx)?;
        }
        tx.commit()?;
        // Set this after the commit, so that a refused database stays unchanged.
        conn.execute_batch("PRAGMA journal_mode = WAL")?;
        Ok(conn)
    };
    make().map_err(|error: Error| error.in_db(path.display()))
}

/// Opens an existing database, and checks that it is this application's. It creates nothing.
pub fn open(path: &Path) -> Result<Connection> {
    let open = || {
        let conn = connect(path, OpenFlags::empty())?;
        if is_old(&conn)? {
            let reason =
                "is from before there were offsets: a replay into this database takes it over";
            return Err(Error::Foreign(format!("table {} {reason}", position::OLD_TABLE)));
        }
        SqliteStore::new(&conn, &C::SCHEMA).check()?;
        check_rows(&conn)?;
        Ok(conn)
    };
    open().map_err(|error: Error| error.in_db(path.display()))
}

/// Opens a database like [`open`], for commands that must not write.
pub fn open_to_read(path: &Path) -> Result<Connection> {
    let conn = open(path)?;
    conn.execute_batch("PRAGMA query_only = ON")?;
    Ok(conn)
}

/// Opens a database to write a short note about a run. It waits only a second for another writer.
pub fn open_to_note(path: &Path) -> Result<Connection> {
    let conn = connect(path, OpenFlags::empty())?;
    conn.busy_timeout(Duration::from_secs(1))?;
    Ok(conn)
}

/// Opens a database read-write even if only reads follow, so that the last connection of a WAL
/// removes its files. SQLite itself opens a write-protected file as read-only.
fn connect(path: &Path, more: OpenFlags) -> Result<Connection> {
    // An absolute path is never taken for a URI or for `:memory:`.
    let path = std::path::absolute(path)
        .map_err(|error| Error::said(format!("{}: {error}", path.display())))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.execute_batch("PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL")?;
    // The application and keepcount have fewer statements, so each is prepared once.
    conn.set_prepared_statement_cache_capacity(512);
    Ok(conn)
}

/// Returns whether the database still has the old table of positions.
fn is_old(conn: &Connection) -> Result<bool> {
    Ok(conn.table_exists(None, position::OLD_TABLE)?)
}

fn check_rows(conn: &Connection) -> Result<()> {
    for (table, columns) in [
        ("artists", ArtistRow::COLUMNS),
        ("shows", ShowRow::COLUMNS),
        ("setlists", SetlistRow::COLUMNS),
        ("votes", VoteRow::COLUMNS),
        ("replay_prefix", "stream, hash"),
        ("verifications", "counter, at"),
    ] {
        check_table(conn, table, columns)?;
    }
    Ok(())
}

/// Checks that a table of the application has its columns; another application may use the same
/// name.
fn check_table(conn: &Connection, table: &str, columns: &str) -> Result<()> {
    let checked = conn.prepare(&format!("SELECT {columns} FROM {table}"));
    checked.map(drop).map_err(|error| match error {
        rusqlite::Error::SqlInputError { msg, .. } => {
            Error::Foreign(format!("table {table} is not this application's: {msg}"))
        }
        other => Error::Sql(other),
    })
}
