//! The system that keepcount replaces: its recount jobs, run for real on the same rows, and counted.
//!
//! They kept counts in columns of `shows` and `artists`, which this schema does not have: a job adds them, works, and all
//! of it is rolled back.

use std::collections::HashMap;

use rusqlite::{Connection, Params, Row, Transaction, TransactionBehavior, params};

use crate::error::Result;

/// What a job costs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub statements: u64,
    pub rows_read: u64,
    pub rows_written: u64,
}

impl Cost {
    pub fn times(&self, times: u64) -> Self {
        Self {
            statements: self.statements * times,
            rows_read: self.rows_read * times,
            rows_written: self.rows_written * times,
        }
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self {
            statements: self.statements + other.statements,
            rows_read: self.rows_read + other.rows_read,
            rows_written: self.rows_written + other.rows_written,
        }
    }
}

/// The hourly engagement recount: reads all setlists, votes and shows, and patches every show, changed or not.
pub fn engagement(conn: &mut Connection) -> Result<Cost> {
    let columns = "ALTER TABLE shows ADD COLUMN setlist_count INTEGER; ALTER TABLE shows ADD COLUMN vote_count INTEGER";
    let mut job = Job::begin(conn, columns)?;
    let mut show_of: HashMap<String, String> = HashMap::new();
    let mut counts: HashMap<String, (i64, i64)> = HashMap::new();
    for (setlist, show) in job.read("SELECT id, show_id FROM setlists", (), pair)? {
        if let Some(show) = show {
            counts.entry(show.clone()).or_default().0 += 1;
            show_of.insert(setlist, show);
        }
    }
    for (_, setlist) in job.read("SELECT id, setlist_id FROM votes", (), pair)? {
        if let Some(show) = setlist.and_then(|setlist| show_of.get(&setlist)) {
            counts.entry(show.clone()).or_default().1 += 1;
        }
    }
    for (show, _) in job.read("SELECT id, artist_id FROM shows", (), pair)? {
        let (setlists, votes) = counts.get(&show).copied().unwrap_or_default();
        job.write(
            "UPDATE shows SET setlist_count = ?2, vote_count = ?3 WHERE id = ?1",
            params![show, setlists, votes],
        )?;
    }
    Ok(job.cost)
}

/// The two-hourly artist recount: reads all artists, asks for the shows of each, and patches every artist.
pub fn artists(conn: &mut Connection) -> Result<Cost> {
    let mut job = Job::begin(conn, "ALTER TABLE artists ADD COLUMN upcoming_shows_count INTEGER")?;
    for (artist, _) in job.read("SELECT id, name FROM artists", (), pair)? {
        let shows = job.read("SELECT id, status FROM shows WHERE artist_id = ?1", [&artist], pair)?;
        let upcoming: i64 = shows.iter().map(|(_, status)| i64::from(status.as_deref() == Some("upcoming"))).sum();
        job.write("UPDATE artists SET upcoming_shows_count = ?2 WHERE id = ?1", params![artist, upcoming])?;
    }
    Ok(job.cost)
}

/// A job's transaction, rolled back when dropped, and what was done in it.
struct Job<'c> {
    tx: Transaction<'c>,
    cost: Cost,
}

impl<'c> Job<'c> {
    /// The columns are not counted: the replaced system had them.
    fn begin(conn: &'c mut Connection, columns: &str) -> Result<Self> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(columns)?;
        Ok(Self { tx, cost: Cost::default() })
    }

    fn read<R>(
        &mut self,
        text: &str,
        params: impl Params,
        read: fn(&Row<'_>) -> rusqlite::Result<R>,
    ) -> Result<Vec<R>> {
        let rows: Vec<R> = self.tx.prepare_cached(text)?.query_map(params, read)?.collect::<rusqlite::Result<_>>()?;
        self.cost.statements += 1;
        self.cost.rows_read += rows.len() as u64;
        Ok(rows)
    }

    fn write(&mut self, text: &str, params: impl Params) -> Result<()> {
        self.cost.statements += 1;
        self.cost.rows_written += self.tx.prepare_cached(text)?.execute(params)? as u64;
        Ok(())
    }
}

fn pair(row: &Row<'_>) -> rusqlite::Result<(String, Option<String>)> {
    Ok((row.get(0)?, row.get(1)?))
}
