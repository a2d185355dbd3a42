//! The system that keepcount replaces: its recount jobs, run for real on the same rows, and counted.
//!
//! They kept counts in columns of `shows` and `artists`, which this schema does not have: a job adds them, works, and all
//! of it is rolled back.

use std::collections::HashMap;

use keepcount::Date;
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

/// The four-hourly trending of artists: reads all of them, and patches the score and the rank of every one.
pub fn artist_trending(conn: &mut Connection) -> Result<Cost> {
    let columns = "ALTER TABLE artists ADD COLUMN upcoming_shows_count INTEGER NOT NULL DEFAULT 0;
                   ALTER TABLE artists ADD COLUMN trending_score REAL; ALTER TABLE artists ADD COLUMN trending_rank INTEGER";
    let mut job = Job::begin(conn, columns)?;
    let all = "SELECT id, upcoming_shows_count + followers / 1000000 + popularity / 10 FROM artists";
    let mut scored = job.read(all, (), |row| Ok((row.get::<_, String>(0)?, row.get::<_, f64>(1)?.max(1.0))))?;
    scored.sort_by(|one, other| other.1.total_cmp(&one.1));
    job.rank("UPDATE artists SET trending_score = ?2, trending_rank = ?3 WHERE id = ?1", &scored)?;
    Ok(job.cost)
}

/// The four-hourly trending of shows: reads all upcoming ones, and patches the score and the rank of every one.
pub fn show_trending(conn: &mut Connection, at: Date) -> Result<Cost> {
    let columns = "ALTER TABLE shows ADD COLUMN setlist_count INTEGER NOT NULL DEFAULT 0;
                   ALTER TABLE shows ADD COLUMN vote_count INTEGER NOT NULL DEFAULT 0;
                   ALTER TABLE shows ADD COLUMN trending_score REAL; ALTER TABLE shows ADD COLUMN trending_rank INTEGER";
    let mut job = Job::begin(conn, columns)?;
    let upcoming = "SELECT id, julianday(date) - julianday(?1), vote_count + 2 * setlist_count FROM shows WHERE status = 'upcoming'";
    let mut scored = job.read(upcoming, [at.to_string()], |row| {
        let (days, weight): (f64, f64) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, String>(0)?, (30.0 - days).max(0.0) * (10.0 + weight) / 300.0))
    })?;
    scored.sort_by(|one, other| other.1.total_cmp(&one.1));
    job.rank("UPDATE shows SET trending_score = ?2, trending_rank = ?3 WHERE id = ?1", &scored)?;
    Ok(job.cost)
}

/// One of the orchestrator's looks at what is due; it has four jobs.
pub fn poll(conn: &mut Connection) -> Result<Cost> {
    let settings = "CREATE TABLE settings (job TEXT PRIMARY KEY, last_run INTEGER) STRICT;
                    INSERT INTO settings (job) VALUES ('engagement'), ('artists'), ('artist trending'), ('show trending')";
    let mut job = Job::begin(conn, settings)?;
    job.read("SELECT job, last_run FROM settings", (), |row| row.get::<_, String>(0))?;
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

    /// Patches all of them, whether their score or rank has changed or not.
    fn rank(&mut self, text: &str, scored: &[(String, f64)]) -> Result<()> {
        (1_i64..).zip(scored).try_for_each(|(rank, (id, score))| self.write(text, params![id, score, rank]))
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
