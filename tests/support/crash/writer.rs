//! A writer of the site. In an order that a seed decides, it writes rows and totals in one
//! transaction with offsets, applies totals alone, prunes, rebuilds leaderboards, checkpoints and
//! reopens. It records its progress, so that it can be killed or fail at any moment and continue.

use std::path::{Path, PathBuf};

use keepcount::{Error, Recovery, SqliteStore, Store as _};
use rusqlite::Connection;

use super::child::{ChildProgress, Phase};
use super::{
    Random, SCHEMA, SETLIST_DAYS, SETLIST_VOTES, SHOWS, feed, feed_stream, open, rows_stream,
    stream_range, write_rows,
};

/// A writer's two streams: events that write rows, and events that change totals alone.
pub const ROWS: usize = 0;
pub const FEED: usize = 1;

/// Why a turn failed.
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
    pub told: ChildProgress,
    pub random: Random,
}

impl Writer {
    /// A writer of the site in this directory, which continues at its recorded progress.
    pub fn start(dir: &Path, writer: i64, seed: u64) -> rusqlite::Result<Self> {
        Self::start_at(dir.join("site.db"), dir, writer, seed)
    }

    /// Like [`start`](Self::start), with the path of the database file, or its URI.
    pub fn start_at(path: PathBuf, dir: &Path, writer: i64, seed: u64) -> rusqlite::Result<Self> {
        let told = ChildProgress::open(&progress_file(dir, writer));
        Ok(Self { number: writer, conn: open(&path)?, path, told, random: Random(seed) })
    }

    fn store(&self) -> SqliteStore<'_> {
        SqliteStore::new(&self.conn, &SCHEMA)
    }

    /// The events to apply next, and whether the store must skip them, if that is known. Events
    /// with unknown outcome are repeated unchanged; otherwise the events are new, or some that were
    /// applied before.
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

    /// Performs one random operation.
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

    /// Applies events that change totals alone, in a transaction of the store.
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

    /// Prunes old days, some time after votes for them came in. Runs in a transaction of the store
    /// or of the caller.
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
        // The last connection that closes the file copies the log into it.
        self.conn = Connection::open_in_memory()?;
        self.conn = open(&self.path)?;
        Ok(())
    }
}

/// The file in which a writer records its progress.
pub fn progress_file(dir: &Path, writer: i64) -> PathBuf {
    dir.join(format!("writer-{writer}.told"))
}
