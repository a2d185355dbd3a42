//! An event file, plain or gzip, read line by line, with the position that a replay keeps.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read as _};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::progress::Progress;

/// Longer lines are refused, so that a file of another kind does not fill the memory.
const MAX_LINE: u64 = 1 << 20;

/// How far a file was read, and a hash of every line up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Including blank lines.
    pub lines: i64,
    /// `h = SHA-256(h of the line before, then the line's bytes without its newline)`, starting
    /// from 32 zeros.
    pub hash: [u8; 32],
}

/// The line at which reading or applying ends, and the reason.
#[derive(Debug)]
pub struct Refused {
    pub line: i64,
    pub reason: String,
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Said(format!("line {}: {}", refused.line, refused.reason))
    }
}

pub struct Lines {
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    at: Position,
}

impl Lines {
    /// Opens a file and reads its beginning. It is read as gzip if it begins like gzip or has such
    /// a name.
    pub fn open(path: &Path, progress: &mut Progress) -> Result<Self> {
        let failed = |error: io::Error| Error::said(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut input = BufReader::with_capacity(1 << 16, progress.watch(file, bytes));
        let begins_as_gzip = input.fill_buf().map_err(failed)?.starts_with(&[0x1f, 0x8b]);
        if begins_as_gzip || path.extension().is_some_and(|extension| extension == "gz") {
            Ok(Self::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input))))
        } else {
            Ok(Self::new(input))
        }
    }

    /// Creates lines from bytes in memory.
    pub fn made(lines: Vec<u8>) -> Self {
        Self::new(Cursor::new(lines))
    }

    fn new(input: impl BufRead + 'static) -> Self {
        Self { input: Box::new(input), line: Vec::new(), at: Position::default() }
    }

    /// Returns the position of the last line that was read.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Returns the last line that was read.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Returns the length of the last line that was read.
    pub fn line_bytes(&self) -> usize {
        self.line.len()
    }

    /// Reads on to the position of an earlier replay, and checks that the applied lines are still
    /// there.
    pub fn skip_to(&mut self, applied: &Position, stream: &str) -> Result<()> {
        while self.at.lines < applied.lines {
            if !self.read()? {
                return Err(Error::Said(format!(
                    "stream {stream}: the file ends after line {}, but {} lines of it were applied already",
                    self.at.lines, applied.lines
                )));
            }
        }
        if self.at != *applied {
            return Err(Error::Said(format!(
                "stream {stream}: lines 1 to {} were applied already, and are not what they were then",
                applied.lines
            )));
        }
        Ok(())
    }

    /// Returns the next event; `None` at the end of the file.
    pub fn next_event(&mut self) -> Result<Option<Event>, Refused> {
        while self.read()? {
            let refused = |reason| Refused { line: self.at.lines, reason };
            let text = std::str::from_utf8(&self.line)
                .map_err(|error| refused(format!("not UTF-8: {error}")))?;
            if !text.trim_ascii().is_empty() {
                return Event::parse(text).map(Some).map_err(refused);
            }
        }
        Ok(None)
    }

    /// Reads one line; returns `false` at the end of the file.
    fn read(&mut self) -> Result<bool, Refused> {
        let refused = |reason| Refused { line: self.at.lines + 1, reason };
        self.line.clear();
        let mut limited = (&mut self.input).take(MAX_LINE + 1);
        if let Err(error) = limited.read_until(b'\n', &mut self.line) {
            return Err(refused(format!("the file is broken or cut off here: {error}")));
        }
        if self.line.is_empty() {
            return Ok(false);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() as u64 > MAX_LINE {
            return Err(refused(format!("it is longer than {MAX_LINE} bytes")));
        }
        let hash = Sha256::new().chain_update(self.at.hash).chain_update(&self.line).finalize();
        self.at = Position { lines: self.at.lines + 1, hash: hash.into() };
        Ok(true)
    }
}
