//! Events into the database: rows, totals and the position in the file, in one transaction each time.
//!
//! Killed at any moment, a replay goes on after its last commit and counts nothing twice.

use keepcount::{Batch, SqliteStore, Store as _};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::app;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Lines, Position, Refused};
use crate::progress::Progress;
use crate::schema::C;

/// A commit costs a write to the disk that is waited for: many events share one, but other writers wait meanwhile.
const EVENTS_PER_COMMIT: usize = 1_000;
/// A commit's events are held in memory: long lines make it a shorter one.
const BYTES_PER_COMMIT: usize = 1 << 20;

/// What a replay did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    pub lines_before: u64,
    pub events: u64,
    pub updates: u64,
    pub commits: u64,
    /// Statements that wrote totals and lines of boards.
    pub statements: u64,
}

/// When totals are written; their rows always are event by event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Once a commit: what its events do to one total becomes one statement.
    EachCommit,
    /// As a site does, where every event is a transaction of its own.
    EachEvent,
}

/// Applies the events that an earlier replay of this stream has not applied yet.
pub fn replay(
    conn: &mut Connection,
    stream: &str,
    lines: &mut Lines,
    progress: &mut Progress,
    count: Count,
) -> Result<Done> {
    let mut applied = position(conn, stream)?;
    lines.skip_to(&applied, stream)?;
    let mut done = Done { lines_before: applied.lines.unsigned_abs(), ..Done::default() };
    loop {
        // Read and parsed before the transaction, so that a slow file keeps no lock.
        let chunk = Chunk::read(lines);
        let refused = commit(conn, stream, &mut applied, &chunk, &mut done, count)?;
        progress.tell(applied.lines);
        if let Some(refused) = refused.or(chunk.refused) {
            return Err(refused.into());
        }
        if chunk.last {
            progress.end(applied.lines);
            return Ok(done);
        }
    }
}

/// The events of one transaction, each with the position after it.
struct Chunk {
    events: Vec<(Position, Event)>,
    last: bool,
    /// The line behind the events is none that can be applied.
    refused: Option<Refused>,
}

impl Chunk {
    fn read(lines: &mut Lines) -> Self {
        let mut chunk = Self { events: Vec::new(), last: false, refused: None };
        let mut bytes = 0;
        while chunk.events.len() < EVENTS_PER_COMMIT && bytes < BYTES_PER_COMMIT {
            match lines.next_event() {
                Ok(Some(event)) => chunk.events.push((lines.position(), event)),
                Ok(None) => {
                    chunk.last = true;
                    break;
                }
                Err(refused) => {
                    chunk.refused = Some(refused);
                    break;
                }
            }
            bytes += lines.line_bytes();
        }
        chunk
    }
}

/// Applies a chunk and moves the position, in one transaction. A refused event ends it early: what came before stays.
fn commit(
    conn: &mut Connection,
    stream: &str,
    applied: &mut Position,
    chunk: &Chunk,
    done: &mut Done,
    count: Count,
) -> Result<Option<Refused>> {
    let mut tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if position(&tx, stream)? != *applied {
        return Err(Error::Said(format!("stream {stream}: somebody else is replaying it into this database")));
    }
    let mut batch = Batch::new();
    let mut hooks = Batch::new();
    let mut refused = None;
    let mut end = *applied;
    let mut now = *done;
    for (after, event) in &chunk.events {
        // An event is applied whole or not at all: a savepoint for its rows, a batch of its own for its totals.
        let savepoint = tx.savepoint()?;
        hooks.clear();
        match app::apply(&savepoint, event, &mut hooks) {
            Ok(()) => savepoint.commit()?,
            Err(Error::Refused(reason)) => {
                refused = Some(Refused { line: after.lines, reason });
                break;
            }
            Err(error) => return Err(error),
        }
        batch.merge(&hooks);
        if count == Count::EachEvent {
            now.statements += write_totals(&tx, &batch, after.lines, after.lines)?;
            batch.clear();
        }
        end = *after;
        now.events += 1;
        now.updates += u64::from(matches!(event, Event::Update(_)));
    }
    if end != *applied {
        set_position(&tx, stream, &end)?;
        // Totals last: their rows, which everybody wants, are held for the shortest time.
        now.statements += write_totals(&tx, &batch, applied.lines + 1, end.lines)?;
        tx.commit()?;
        now.commits += 1;
        (*applied, *done) = (end, now);
    }
    Ok(refused)
}

/// Says how many statements it took; after an error nothing of the transaction may stay.
fn write_totals(tx: &Connection, batch: &Batch, first: i64, last: i64) -> Result<u64> {
    let applied = SqliteStore::new(tx, &C::LAYOUT).apply(batch);
    let applied =
        applied.map_err(|error| Error::Said(format!("{error}; none of lines {first} to {last} is applied")))?;
    Ok(applied.statements)
}

fn position(conn: &Connection, stream: &str) -> Result<Position> {
    let mut find = conn.prepare_cached("SELECT lines, hash FROM replay_position WHERE stream = ?1")?;
    let found = find.query_row([stream], |row| Ok(Position { lines: row.get(0)?, hash: row.get(1)? }));
    Ok(found.optional()?.unwrap_or_default())
}

fn set_position(conn: &Connection, stream: &str, position: &Position) -> Result<()> {
    let text = "INSERT INTO replay_position (stream, lines, hash) VALUES (?1, ?2, ?3)
                ON CONFLICT (stream) DO UPDATE SET lines = excluded.lines, hash = excluded.hash";
    conn.prepare_cached(text)?.execute(params![stream, position.lines, position.hash])?;
    Ok(())
}
