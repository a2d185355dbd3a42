//! Replays events into the database. Each transaction writes the rows and totals of many events and
//! the offset of the last line.
//!
//! A replay that was killed at any moment resumes after its last commit and counts nothing twice.
//! An event's number is that of its line, so an offset counts blank lines too.

use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Lines, Position, Refused};
use crate::progress::Progress;

/// A commit waits for a write to the disk, so many events share one. Not more, because other
/// writers wait for the transaction.
const EVENTS_PER_COMMIT: usize = 1_000;
/// The events of a commit are held in memory, so a commit of long lines has fewer events.
const BYTES_PER_COMMIT: usize = 1 << 20;

/// What a replay did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    pub lines_before: u64,
    pub events: u64,
    pub commits: u64,
    /// Statements that wrote totals and rows of leaderboards.
    pub statements: u64,
}

/// The target of a replay.
pub trait Target {
    /// Returns how far an earlier replay of the stream has come.
    fn applied(&mut self, stream: &str) -> Result<Position>;

    /// Applies events and moves the offset in one transaction, and adds its figures to `done`. A
    /// refused event ends it early: the events before it are applied.
    fn commit(
        &mut self,
        stream: &str,
        applied: &mut Position,
        events: &[(Position, Event)],
        done: &mut Done,
    ) -> Result<Option<Refused>>;
}

/// Applies the events that an earlier replay of this stream has not applied yet.
pub fn replay(
    target: &mut impl Target,
    stream: &str,
    lines: &mut Lines,
    progress: &mut Progress,
) -> Result<Done> {
    let mut applied = target.applied(stream)?;
    lines.skip_to(&applied, stream)?;
    let mut done = Done { lines_before: applied.lines.unsigned_abs(), ..Done::default() };
    loop {
        // Events are read and parsed before the transaction, so that a slow file holds no lock.
        let chunk = Chunk::read(lines);
        let refused = target.commit(stream, &mut applied, &chunk.events, &mut done)?;
        progress.show(applied.lines);
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
    /// Set if the line after the events cannot be applied.
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

/// Returns the error for totals that could not be written. Their transaction is rolled back.
pub fn unapplied(error: &keepcount::Error, first: i64, last: i64) -> Error {
    Error::Said(format!("{error}; none of lines {first} to {last} is applied"))
}

/// Returns the error for a stream whose offset another replay has moved.
pub fn overtaken(stream: &str) -> Error {
    Error::Said(format!("stream {stream}: somebody else is replaying it into this database"))
}
