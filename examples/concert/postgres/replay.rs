//! Replays events into PostgreSQL: rows, totals, offset and hash in one transaction each time,
//! which is repeated if it was rolled back.

use std::time::Duration;

use futures_util::future::join_all;
use keepcount::{AsyncStore as _, Batch, PostgresStore, StreamRange};
use tokio::time::sleep;
use tokio_postgres::Transaction;

use super::app::{self, Db, Statements};
use super::moment::begin_snapshot;
use super::{Connection, LOCK_TIMEOUT, connect, is_transient, position};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Position, Refused};
use crate::replay::{Done, Target, overtaken, unapplied};
use crate::schema::C;

/// The number of events whose statements are in flight at once.
const EVENTS_IN_FLIGHT: usize = 25;
/// A transaction is tried this many times, with pauses that double from the first to the longest:
/// in all, long enough for a restart of the server.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// The classes of the advisory locks that replays take, besides the row locks.
const ALL_REPLAYS: i32 = 1_842_002;
const ONE_STREAM: i32 = 1_842_003;

impl Target for Connection {
    fn applied(&mut self, stream: &str) -> Result<Position> {
        let Self { runtime, client, .. } = self;
        runtime.block_on(async { position::read(&begin_snapshot(client).await?, stream).await })
    }

    fn commit(
        &mut self,
        stream: &str,
        applied: &mut Position,
        events: &[(Position, Event)],
        done: &mut Done,
    ) -> Result<Option<Refused>> {
        let mut events = events;
        let mut refused = None;
        let mut tried = 0;
        loop {
            let chunk = Chunk { stream, applied: *applied, events, is_retry: tried > 0 };
            match self.try_to_commit(&chunk) {
                Ok(statements) => {
                    if let Some((end, _)) = events.last() {
                        *applied = *end;
                        done.events += events.len() as u64;
                        done.commits += 1;
                        done.statements += statements;
                    }
                    return Ok(refused);
                }
                // Retries with the events before the refused one. Each retry has fewer events.
                Err(Stop::Refused(at, reason)) => {
                    let (before, rest) = events.split_at(at);
                    refused = rest.first().map(|(after, _)| Refused { line: after.lines, reason });
                    events = before;
                }
                Err(Stop::Failed(error)) if tried + 1 < TRIES && is_transient(&error) => {
                    let pause = MAX_PAUSE.min(PAUSE * 2_u32.pow(tried));
                    self.runtime.block_on(async { sleep(pause).await });
                    tried += 1;
                }
                Err(Stop::Failed(Error::Count(error))) => {
                    let last = events.last().map_or(applied.lines, |(end, _)| end.lines);
                    return Err(unapplied(&error, applied.lines + 1, last));
                }
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }
}

/// The events of one transaction.
struct Chunk<'e> {
    stream: &'e str,
    /// The position before the events.
    applied: Position,
    events: &'e [(Position, Event)],
    /// Whether there was an earlier try. It was rolled back, or the answer to its commit was lost.
    is_retry: bool,
}

/// Why a transaction was not committed.
enum Stop {
    /// The event with this number, from 0 on, does not fit the rows.
    Refused(usize, String),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Connection {
    /// Returns the number of statements that wrote totals and leaderboards.
    fn try_to_commit(&mut self, chunk: &Chunk<'_>) -> Result<u64, Stop> {
        let Self { runtime, url, client, prepared, statements } = self;
        runtime.block_on(async {
            if client.is_closed() {
                *client = connect(url, LOCK_TIMEOUT).await?;
                // Prepared statements belonged to the lost connection.
                (*prepared, *statements) = <_>::default();
            }
            if statements.is_empty() {
                *statements = Statements::prepare(client).await?;
            }
            let mut tx = client.transaction().await?;
            lock_stream(&tx, chunk).await?;
            // Check this before writing rows: for an event that was applied already, the error
            // would be that its row exists.
            let applied = position::read(&tx, chunk.stream).await?;
            if applied != chunk.applied {
                let is_done =
                    chunk.is_retry && chunk.events.last().is_some_and(|(end, _)| *end == applied);
                return if is_done { Ok(0) } else { Err(overtaken(chunk.stream).into()) };
            }
            let Some((end, _)) = chunk.events.last() else { return Ok(0) };
            let mut batch = write_rows(&Db { tx: &tx, statements }, chunk.events).await?;
            position::set_hash(&tx, chunk.stream, end).await?;
            // Write totals last: many transactions need their rows, so lock them for the shortest
            // time.
            let first = applied.lines + 1;
            let stream_range =
                StreamRange::new(chunk.stream, first.unsigned_abs(), end.lines.unsigned_abs())?;
            // The store writes in its own savepoint, so that after an overflow it can still find
            // out which counter it was.
            let written = PostgresStore::with_savepoints(&mut tx, &C::SCHEMA)
                .prepared(prepared)
                .apply_idempotent(&mut batch, &stream_range)
                .await?;
            if written.skipped {
                return Err(overtaken(chunk.stream).into());
            }
            tx.commit().await?;
            Ok(written.statements)
        })
    }
}

/// Locks out other replays of the same stream. Replays of other streams go on, except during a
/// retry: it runs alone, because it deadlocked with one of them or waited too long for one.
async fn lock_stream(tx: &Transaction<'_>, chunk: &Chunk<'_>) -> Result<()> {
    let all = if chunk.is_retry { "pg_advisory_xact_lock" } else { "pg_advisory_xact_lock_shared" };
    tx.execute(&format!("SELECT {all}($1, 0)"), &[&ALL_REPLAYS]).await?;
    tx.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", &[&ONE_STREAM, &chunk.stream])
        .await?;
    Ok(())
}

/// Applies events to the rows; returns their deltas.
async fn write_rows(db: &Db<'_>, events: &[(Position, Event)]) -> Result<Batch, Stop> {
    let mut batch = Batch::new();
    for (chunk, at) in events.chunks(EVENTS_IN_FLIGHT).zip((0..).step_by(EVENTS_IN_FLIGHT)) {
        // Events are sent in order. The first one that fails is the cause; the later ones fail
        // because the transaction is aborted.
        let applied = join_all(chunk.iter().map(|(_, event)| app::apply(db, event))).await;
        for (hooks, at) in applied.into_iter().zip(at..) {
            match hooks {
                Ok(mut hooks) => batch.merge(&mut hooks),
                Err(Error::Refused(reason)) => return Err(Stop::Refused(at, reason)),
                Err(error) => return Err(Stop::Failed(error)),
            }
        }
    }
    Ok(batch)
}
