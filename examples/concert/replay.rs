//! Events into the database: rows, totals and the mark of the last line, in one transaction each time.
//!
//! Killed at any moment, a replay goes on after its last commit and counts nothing twice. An event's number is that of its line; blank lines
//! before it are part of its mark.

use keepcount::{Batch, Mark, SqliteStore, Store as _};
use rusqlite::{Connection, TransactionBehavior};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Lines, Position, Refused};
use crate::progress::Progress;
use crate::schema::C;
use crate::{app, position};

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
    let moment = conn.transaction()?;
    let mut applied = position::read(&moment, stream)?;
    moment.finish()?;
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

/// Applies a chunk and moves the mark, in one transaction. A refused event ends it early: what came before stays.
fn commit(
    conn: &mut Connection,
    stream: &str,
    applied: &mut Position,
    chunk: &Chunk,
    done: &mut Done,
    count: Count,
) -> Result<Option<Refused>> {
    let mut tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Before the rows: one that is there already is refused for that.
    if position::read(&tx, stream)? != *applied {
        return Err(overtaken(stream));
    }
    let mut batch = Batch::new();
    let mut hooks = Batch::new();
    let mut refused = None;
    let mut end = *applied;
    let mut counted = applied.lines;
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
            now.statements += write_totals(&tx, &batch, stream, counted, after.lines)?;
            batch.clear();
            counted = after.lines;
        }
        end = *after;
        now.events += 1;
        now.updates += u64::from(matches!(event, Event::Update(_)));
    }
    if end != *applied {
        position::set_hash(&tx, stream, &end)?;
        if counted < end.lines {
            // Totals last: their rows, which everybody wants, are held for the shortest time.
            now.statements += write_totals(&tx, &batch, stream, counted, end.lines)?;
        }
        tx.commit()?;
        now.commits += 1;
        (*applied, *done) = (end, now);
    }
    Ok(refused)
}

/// Totals of the lines behind `before` up to `last`, once. Says how many statements it took; after an error nothing of the transaction may
/// stay.
fn write_totals(tx: &Connection, batch: &Batch, stream: &str, before: i64, last: i64) -> Result<u64> {
    let first = before + 1;
    let once = Mark::new(stream, first.unsigned_abs(), last.unsigned_abs())
        .and_then(|mark| SqliteStore::new(tx, &C::LAYOUT).apply_once(batch, &mark));
    match once {
        Ok(applied) if applied.skipped => Err(overtaken(stream)),
        Ok(applied) => Ok(applied.statements),
        Err(error) => Err(Error::Said(format!("{error}; none of lines {first} to {last} is applied"))),
    }
}

fn overtaken(stream: &str) -> Error {
    Error::Said(format!("stream {stream}: somebody else is replaying it into this database"))
}
