//! A writer of the site: rows and totals in one transaction with offsets, totals alone, prunes,
//! rebuilds, checkpoints, in an order that a seed decides; it says what it is doing, so that it can
//! be killed or starved at any moment and go on.

use std::path::{Path, PathBuf};

use keepcount::{Error, Recovery, SqliteStore, Store as _};
use rusqlite::Connection;

use super::child::{Phase, Told};
use super::{
    Random, SCHEMA, SETLIST_DAYS, SETLIST_VOTES, SHOWS, feed, feed_stream, open, rows_stream,
    stream_range, write_rows,
};

/// Of the streams of a writer, the one whose events are rows, and the one whose events are totals
/// alone.
pub const ROWS: usize = 0;
pub const FEED: usize = 1;

/// Why a turn did not come to its end.
#[derive(Debug)]
pub enum Failure {
    Ours(Error),
    Driver(rusqlite::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Driver(error)
    }
}

pub type Turned = Result<(), Failure>;

pub struct Writer {
    number: i64,
    path: PathBuf,
    pub conn: Connection,
    pub told: Told,
    pub random: Random,
}

impl Writer {
    /// A writer that goes on where it was, at a site in this folder.
    pub fn start(dir: &Path, writer: i64, seed: u64) -> rusqlite::Result<Self> {
        Self::start_at(dir.join("site.db"), dir, writer, seed)
    }

    /// As [`start`](Self::start), with the file's own path, or its URI.
    pub fn start_at(path: PathBuf, dir: &Path, writer: i64, seed: u64) -> rusqlite::Result<Self> {
        let told = Told::open(&told_by(dir, writer));
        Ok(Self { number: writer, conn: open(&path)?, path, told, random: Random(seed) })
    }

    fn store(&self) -> SqliteStore<'_> {
        SqliteStore::new(&self.conn, &SCHEMA)
    }

    /// The events to apply next: those whose outcome is not known, as they were, else new ones, or
    /// some that were applied before; and whether they are to be skipped, where that is known.
    fn next(&mut self, stream: usize, most: u64) -> (u64, u64, Option<bool>) {
        let (known, tried) = (self.told.known(stream), self.told.tried(stream));
        if tried > known {
            (known + 1, tried, None)
        } else if known > 0 && self.random.below(8) == 0 {
            (known - self.random.below(known.min(9)), known, Some(true))
        } else {
            (known + 1, known + 1 + self.random.below(most), Some(false))
        }
    }

    /// Does one thing.
    pub fn turn(&mut self) -> Turned {
        match self.random.below(16) {
            0 => self.prune(),
            1 => self.rebuild(),
            2 => self.checkpoint(),
            3 => self.reopen(),
            4..7 => self.totals_alone(),
            _ => self.rows(),
        }?;
        self.told.at(Phase::Between);
        Ok(())
    }

    fn rows(&mut self) -> Turned {
        let (first, last, skips) = self.next(ROWS, 40);
        self.told.at(Phase::Rows);
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let mut batch = write_rows(&self.conn, self.number, first, last)?;
        self.told.at(Phase::Apply);
        let setlist = 1_000 + self.random.int(0, 40);
        match self.store().total(SETLIST_VOTES, setlist) {
            Err(Error::NotReady { .. }) => {}
            total => drop(total?),
        }
        let applied = self
            .store()
            .apply_idempotent(&mut batch, &stream_range(&rows_stream(self.number), first, last))?;
        assert!(
            skips.is_none_or(|skips| skips == applied.skipped),
            "{first} to {last}: {applied:?}"
        );
        if applied.skipped {
            self.conn.execute_batch("ROLLBACK")?;
            self.told.applied(ROWS);
        } else if self.random.below(10) == 0 {
            self.conn.execute_batch("ROLLBACK")?;
            self.told.refused(ROWS);
        } else {
            self.told.tries(Phase::Commit, ROWS, last);
            self.conn.execute_batch("COMMIT")?;
            self.told.applied(ROWS);
        }
        Ok(())
    }

    /// Applies events that are totals alone, in a transaction of the store's own.
    pub fn totals_alone(&mut self) -> Turned {
        let (first, last, skips) = self.next(FEED, 12);
        self.told.tries(Phase::Alone, FEED, last);
        let mut batch = feed(self.number, first, last);
        let applied = self
            .store()
            .apply_idempotent(&mut batch, &stream_range(&feed_stream(self.number), first, last));
        if applied.as_ref().is_err_and(|error| error.recovery() != Recovery::Indeterminate)
            && skips.is_some()
        {
            self.told.refused(FEED);
        }
        let applied = applied?;
        assert!(
            skips.is_none_or(|skips| skips == applied.skipped),
            "{first} to {last}: {applied:?}"
        );
        self.told.applied(FEED);
        Ok(())
    }

    /// Forgets old days, some time after votes for them came in; alone or in a transaction.
    fn prune(&mut self) -> Turned {
        let before = (self.told.known(ROWS) / 64).saturating_sub(10).cast_signed();
        let alone = self.random.below(2) == 0;
        self.told.at(Phase::Prune);
        if !alone {
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
        }
        self.store().prune(SETLIST_DAYS, before)?;
        if !alone {
            self.conn.execute_batch("COMMIT")?;
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Turned {
        self.told.at(Phase::Rebuild);
        self.store().rebuild(SHOWS)?;
        Ok(())
    }

    fn checkpoint(&mut self) -> Turned {
        self.told.at(Phase::Checkpoint);
        self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
        Ok(())
    }

    fn reopen(&mut self) -> Turned {
        self.told.at(Phase::Reopen);
        // The last one to close it takes the log into the file.
        self.conn = Connection::open_in_memory()?;
        self.conn = open(&self.path)?;
        Ok(())
    }
}

/// Where a writer says what it is doing.
pub fn told_by(dir: &Path, writer: i64) -> PathBuf {
    dir.join(format!("writer-{writer}.told"))
}
