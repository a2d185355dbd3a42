//! The application's tables on PostgreSQL, and how they are checked or created.

use keepcount::PostgresStore;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient};

use crate::error::{Error, Result};
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};
use crate::schema::C;

/// Texts that are keys are compared by their bytes, as keepcount's keys are, so that the pages of
/// an audit are read from the indices below.
const TABLES: &str = r#"
    CREATE TABLE IF NOT EXISTS artists (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        name text NOT NULL,
        followers bigint NOT NULL CHECK (followers >= 0),
        popularity bigint NOT NULL CHECK (popularity BETWEEN 0 AND 100)
    );
    CREATE TABLE IF NOT EXISTS shows (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        artist_id text COLLATE "C" REFERENCES artists (id),
        date text COLLATE "C" NOT NULL,
        status text NOT NULL CHECK (status IN ('upcoming', 'completed', 'cancelled'))
    );
    CREATE TABLE IF NOT EXISTS setlists (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        show_id text COLLATE "C" REFERENCES shows (id)
    );
    CREATE TABLE IF NOT EXISTS votes (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        setlist_id text COLLATE "C" NOT NULL REFERENCES setlists (id),
        user_id text COLLATE "C" NOT NULL,
        kind text NOT NULL CHECK (kind IN ('up', 'down')),
        created_at bigint NOT NULL
    );
    CREATE TABLE IF NOT EXISTS replay_prefix (
        stream text COLLATE "C" NOT NULL PRIMARY KEY,
        hash bytea NOT NULL
    );
    CREATE TABLE IF NOT EXISTS verifications (
        counter text COLLATE "C" NOT NULL PRIMARY KEY,
        at bigint NOT NULL
    );
"#;

/// The indices serve the cascading deletes of `app.rs`, and the sources of `audit.rs`, which page
/// by the first columns.
const INDICES: &str = "
    CREATE INDEX IF NOT EXISTS shows_by_artist ON shows (artist_id, date, status);
    CREATE INDEX IF NOT EXISTS shows_by_date ON shows (date, id, status);
    CREATE INDEX IF NOT EXISTS setlists_by_show ON setlists (show_id);
    CREATE INDEX IF NOT EXISTS votes_by_setlist ON votes (setlist_id, created_at, kind);
    CREATE INDEX IF NOT EXISTS votes_by_user ON votes (user_id);
    CREATE INDEX IF NOT EXISTS shows_by_id ON shows (id, artist_id);
    CREATE INDEX IF NOT EXISTS setlists_by_id ON setlists (id, show_id);
";

/// The advisory lock for creating tables. One process holds it at a time, so that no other checks
/// for tables that are still being created.
const CREATE_LOCK: i64 = 1_842_001;

/// Creates what does not exist yet: the application's tables, the tables of totals.
pub async fn create(client: &mut Client) -> Result<()> {
    if is_created(client).await? {
        return Ok(());
    }
    client.execute("SELECT pg_advisory_lock($1)", &[&CREATE_LOCK]).await?;
    let created = create_locked(client).await;
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&CREATE_LOCK]).await;
    created?;
    unlocked?;
    Ok(())
}

async fn create_locked(client: &mut Client) -> Result<()> {
    // The process that held the lock before may have created them.
    if is_created(client).await? {
        return Ok(());
    }
    let tx = client.transaction().await?;
    tx.batch_execute(TABLES).await?;
    check_rows(&tx).await?;
    tx.batch_execute(INDICES).await?;
    PostgresStore::in_transaction(&tx, &C::SCHEMA).create().await?;
    Ok(tx.commit().await?)
}

async fn is_created(client: &mut Client) -> Result<bool> {
    match check(client).await {
        Ok(()) => Ok(true),
        // If the database is not this application's, creating the tables fails with the reason.
        Err(Error::Foreign(_) | Error::Count(keepcount::Error::SchemaMismatch { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks that a database is this application's.
pub async fn check(client: &mut Client) -> Result<()> {
    PostgresStore::new(client, &C::SCHEMA).check().await?;
    check_rows(client).await
}

async fn check_rows(client: &impl GenericClient) -> Result<()> {
    for (table, columns, kinds) in [
        ("artists", ArtistRow::COLUMNS, "text, text, int8, int8"),
        ("shows", ShowRow::COLUMNS, "text, text, text, text"),
        ("setlists", SetlistRow::COLUMNS, "text, text"),
        ("votes", VoteRow::COLUMNS, "text, text, text, text, int8"),
        ("replay_prefix", "stream, hash", "text, bytea"),
        ("verifications", "counter, at", "text, int8"),
    ] {
        let foreign =
            |why: &str| Error::Foreign(format!("table {table} is not this application's: {why}"));
        let checked = client.prepare(&format!("SELECT {columns} FROM {table}")).await;
        let checked = checked.map_err(|error| match error.as_db_error() {
            Some(db)
                if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(db.code()) =>
            {
                foreign(db.message())
            }
            _ => Error::Postgres(error),
        })?;
        let found: Vec<&str> =
            checked.columns().iter().map(|column| column.type_().name()).collect();
        if found.join(", ") != kinds {
            return Err(foreign(&format!(
                "its columns {columns} are {}, not {kinds}",
                found.join(", ")
            )));
        }
    }
    Ok(())
}
