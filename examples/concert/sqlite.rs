//! The site on an SQLite file: rows, totals and offset in one transaction, and the reads of the
//! other commands.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use keepcount::reconcile::{self, Reconciler, Report, SystemRuntime};
use keepcount::{
    AsKey, Batch, Key, Leaderboard, Ranked, Score, SqliteStore, Standing, Store, StreamRange,
};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::lines::{Lines, Position, Refused};
use crate::progress::Progress;
use crate::replay::{self, Done, Target};
use crate::rows::HalfLives;
use crate::schema::{self, C};
use crate::site::{Database, Leaderboards, Moment, Site};
use crate::{app, audit, position, verified};

pub struct File(pub PathBuf);

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Database for File {
    type Site = Connection;

    fn create(&self) -> Result<Connection> {
        schema::create(&self.0)
    }

    fn open(&self) -> Result<Connection> {
        schema::open(&self.0)
    }

    fn open_to_read(&self) -> Result<Connection> {
        schema::open_to_read(&self.0)
    }

    fn open_to_note(&self) -> Result<Connection> {
        schema::open_to_note(&self.0)
    }
}

impl Site for Connection {
    fn replay(&mut self, stream: &str, lines: &mut Lines, progress: &mut Progress) -> Result<Done> {
        replay::replay(
            &mut Writes { conn: self, count: Count::EachCommit },
            stream,
            lines,
            progress,
        )
    }

    fn moment(&mut self) -> Result<impl Moment> {
        Ok(self.transaction()?)
    }

    fn audit(&mut self, run: &mut Reconciler) -> Result<Report> {
        let mut audit = audit::sources::<HalfLives>(self)?;
        let result = reconcile::run(run, &mut audit, &mut SystemRuntime::new());
        audit::finish(run, result)
    }

    fn note(&mut self, report: &Report, now: i64) -> Result<()> {
        verified::note(self, report, now)
    }
}

impl Moment for Transaction<'_> {
    fn store(&mut self) -> impl Store + Leaderboards {
        SqliteStore::new(self, &C::SCHEMA)
    }

    fn version(&mut self) -> Result<String> {
        // Changes whenever another connection has written.
        let version: i64 = self.pragma_query_value(None, "data_version", |row| row.get(0))?;
        Ok(version.to_string())
    }

    fn lines(&mut self) -> Result<i128> {
        position::lines(self)
    }

    fn verified(&mut self) -> Result<HashMap<String, i64>> {
        verified::read(self)
    }

    fn count(&mut self, table: &str) -> Result<(i64, i128)> {
        // Sums the two halves of each total, because the sum of many totals may leave 64 bits.
        let text = format!(
            r#"SELECT count(*), coalesce(sum(total >> 32), 0), coalesce(sum(total & 4294967295), 0) FROM "{table}" WHERE total <> 0"#
        );
        let mut count = self.prepare_cached(&text)?;
        let (keys, high, low) = count
            .query_row((), |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
        Ok((keys, (i128::from(high) << 32) + i128::from(low)))
    }
}

impl Leaderboards for SqliteStore<'_> {
    fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> keepcount::Result<Vec<Ranked<K, S>>> {
        (**self).top(leaderboard, limit)
    }

    fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> keepcount::Result<Standing<K, S>> {
        (**self).rank(leaderboard, key)
    }
}

/// When totals are written. Rows are always written event by event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Once for each commit: one statement for each total, however many events add to it.
    EachCommit,
    /// After each event, as on a site where every event is a transaction.
    EachEvent,
}

/// The target of a replay.
pub struct Writes<'c> {
    pub conn: &'c mut Connection,
    pub count: Count,
}

impl Target for Writes<'_> {
    fn applied(&mut self, stream: &str) -> Result<Position> {
        let moment = self.conn.transaction()?;
        let applied = position::read(&moment, stream)?;
        moment.finish()?;
        Ok(applied)
    }

    fn commit(
        &mut self,
        stream: &str,
        applied: &mut Position,
        events: &[(Position, Event)],
        done: &mut Done,
    ) -> Result<Option<Refused>> {
        let mut tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Check this before writing rows: for an event that was applied already, the error would be
        // that its row exists.
        if position::read(&tx, stream)? != *applied {
            return Err(replay::overtaken(stream));
        }
        let mut batch = Batch::new();
        let mut hooks = Batch::new();
        let mut refused = None;
        let mut end = *applied;
        let mut counted = applied.lines;
        let mut now = *done;
        for (after, event) in events {
            // An event is applied whole or not at all: its rows have a savepoint, its totals their
            // own batch.
            let savepoint = tx.savepoint()?;
            hooks.clear();
            match app::apply::<HalfLives>(&savepoint, event, &mut hooks) {
                Ok(()) => savepoint.commit()?,
                Err(Error::Refused(reason)) => {
                    refused = Some(Refused { line: after.lines, reason });
                    break;
                }
                Err(error) => return Err(error),
            }
            batch.merge(&mut hooks);
            if self.count == Count::EachEvent {
                now.statements += write_totals(&tx, &mut batch, stream, counted, after.lines)?;
                counted = after.lines;
            }
            end = *after;
            now.events += 1;
        }
        if end != *applied {
            position::set_hash(&tx, stream, &end)?;
            if counted < end.lines {
                // Write totals last: many transactions need their rows, so lock them for the
                // shortest time.
                now.statements += write_totals(&tx, &mut batch, stream, counted, end.lines)?;
            }
            tx.commit()?;
            now.commits += 1;
            (*applied, *done) = (end, now);
        }
        Ok(refused)
    }
}

/// Writes the totals of the lines after `before` up to `last`, once. Returns the number of its
/// statements. After an error, roll the transaction back.
fn write_totals(
    tx: &Connection,
    batch: &mut Batch,
    stream: &str,
    before: i64,
    last: i64,
) -> Result<u64> {
    let first = before + 1;
    let result = StreamRange::new(stream, first.unsigned_abs(), last.unsigned_abs()).and_then(
        |stream_range| SqliteStore::new(tx, &C::SCHEMA).apply_idempotent(batch, &stream_range),
    );
    match result {
        Ok(applied) if applied.skipped => Err(replay::overtaken(stream)),
        Ok(applied) => Ok(applied.statements),
        Err(error) => Err(replay::unapplied(&error, first, last)),
    }
}
