//! Events into the database: rows, totals and the offset of the last line, in one transaction each time.
//!
//! Killed at any moment, a replay goes on after its last commit and counts nothing twice. An event's number is that of its line; blank lines
//! before it are part of its offset.

use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Lines, Position, Refused};
use crate::progress::Progress;

/// A commit costs a write to the disk that is waited for: many events share one, but other writers wait meanwhile.
const EVENTS_PER_COMMIT: usize = 1_000;
/// A commit's events are held in memory: long lines make it a shorter one.
const BYTES_PER_COMMIT: usize = 1 << 20;

/// What a replay did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    pub lines_before: u64,
    pub events: u64,
    pub commits: u64,
    /// Statements that wrote totals and lines of leaderboards.
    pub statements: u64,
}

/// Where a replay writes.
pub trait Target {
    /// How far an earlier replay of the stream has come.
    fn applied(&mut self, stream: &str) -> Result<Position>;

    /// Applies events and moves the offset, in one transaction; counts what it did. A refused event ends it early: what came before stays.
    fn commit(
        &mut self,
        stream: &str,
        applied: &mut Position,
        events: &[(Position, Event)],
        done: &mut Done,
    ) -> Result<Option<Refused>>;
}

/// Applies the events that an earlier replay of this stream has not applied yet.
pub fn replay(target: &mut impl Target, stream: &str, lines: &mut Lines, progress: &mut Progress) -> Result<Done> {
    let mut applied = target.applied(stream)?;
    lines.skip_to(&applied, stream)?;
    let mut done = Done { lines_before: applied.lines.unsigned_abs(), ..Done::default() };
    loop {
        // Read and parsed before the transaction, so that a slow file keeps no lock.
        let chunk = Chunk::read(lines);
        let refused = target.commit(stream, &mut applied, &chunk.events, &mut done)?;
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

/// Totals that could not be written: their transaction is taken back.
pub fn unapplied(error: &keepcount::Error, first: i64, last: i64) -> Error {
    Error::Said(format!("{error}; none of lines {first} to {last} is applied"))
}

pub fn overtaken(stream: &str) -> Error {
    Error::Said(format!("stream {stream}: somebody else is replaying it into this database"))
}
