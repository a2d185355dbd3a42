//! How far each stream was applied, on PostgreSQL: its offset, and the hash of its lines.

use keepcount::{AsyncStore as _, PostgresStore};
use tokio_postgres::{GenericClient, Transaction};

use crate::error::{Error, Result};
use crate::lines::Position;
use crate::position;
use crate::schema::C;

/// Reads a position. Call it in a transaction whose reads are of one moment, because offset and
/// hash must belong together.
pub async fn read(tx: &Transaction<'_>, stream: &str) -> Result<Position> {
    let last = PostgresStore::in_transaction(tx, &C::SCHEMA).offset(stream).await?;
    let row = tx.query_opt("SELECT hash FROM replay_prefix WHERE stream = $1", &[&stream]).await?;
    let hash = row.map(|row| row.try_get::<_, Vec<u8>>(0)).transpose()?;
    let hash = hash.map(|hash| {
        let foreign = |_| {
            Error::Foreign(format!(
                "table replay_prefix: the hash of stream {stream} is not 32 bytes long"
            ))
        };
        hash.try_into().map_err(foreign)
    });
    position::of(stream, last, hash.transpose()?)
}

/// Stores the hash; the offset moves with the totals.
pub async fn set_hash(tx: &Transaction<'_>, stream: &str, position: &Position) -> Result<()> {
    let text = "INSERT INTO replay_prefix (stream, hash) VALUES ($1, $2)
                ON CONFLICT (stream) DO UPDATE SET hash = excluded.hash";
    tx.execute(text, &[&stream, &position.hash.as_slice()]).await?;
    Ok(())
}

/// Returns the streams that were replayed.
pub async fn streams(client: &impl GenericClient) -> Result<Vec<String>> {
    let rows = client.query("SELECT stream FROM replay_prefix", &[]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}
