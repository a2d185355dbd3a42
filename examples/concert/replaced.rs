//! The system that keepcount replaces: its recount jobs, which run on the same rows, and their
//! costs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use keepcount::Date;
use rusqlite::{Connection, Params, Row, Transaction, TransactionBehavior, params};

use crate::clock::now;
use crate::error::Result;

/// What that system stored next to the rows: counts and ranks in columns, and a table that says
/// when each job is due.
pub const COLUMNS: &str = "
    ALTER TABLE shows ADD COLUMN setlist_count INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE shows ADD COLUMN vote_count INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE shows ADD COLUMN trending_score REAL;
    ALTER TABLE shows ADD COLUMN trending_rank INTEGER;
    ALTER TABLE artists ADD COLUMN upcoming_shows_count INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE artists ADD COLUMN trending_score REAL;
    ALTER TABLE artists ADD COLUMN trending_rank INTEGER;
    CREATE TABLE settings (job TEXT PRIMARY KEY, last_run INTEGER) STRICT;
    INSERT INTO settings (job) VALUES ('engagement'), ('artists'), ('artist trending'), ('show trending');
";

/// The cost of an operation.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub statements: u64,
    pub rows_read: u64,
    pub rows_written: u64,
    pub time: Duration,
}

impl Cost {
    pub fn times(&self, times: u32) -> Self {
        Self {
            statements: self.statements * u64::from(times),
            rows_read: self.rows_read * u64::from(times),
            rows_written: self.rows_written * u64::from(times),
            time: self.time * times,
        }
    }

    pub fn plus(&self, other: &Self) -> Self {
        Self {
            statements: self.statements + other.statements,
            rows_read: self.rows_read + other.rows_read,
            rows_written: self.rows_written + other.rows_written,
            time: self.time + other.time,
        }
    }
}

/// A job, and how often it ran each day.
pub struct Job {
    pub name: &'static str,
    pub a_day: u32,
    pub run: fn(&mut Connection, Date) -> Result<Cost>,
}

pub const JOBS: [Job; 5] = [
    Job { name: "hourly engagement recount", a_day: 24, run: engagement },
    Job { name: "two-hourly artist recount", a_day: 12, run: artists },
    Job { name: "four-hourly artist trending", a_day: 6, run: artist_trending },
    Job { name: "four-hourly show trending", a_day: 6, run: show_trending },
    Job { name: "polling for due jobs, every 5 min", a_day: 288, run: poll },
];

/// The hourly engagement recount: reads all setlists, votes and shows, and patches every show,
/// changed or not.
fn engagement(conn: &mut Connection, _today: Date) -> Result<Cost> {
    let mut job = JobRun::begin(conn)?;
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
    job.commit()
}

/// The two-hourly artist recount: reads all artists, queries the shows of each, and patches every
/// artist.
fn artists(conn: &mut Connection, _today: Date) -> Result<Cost> {
    let mut job = JobRun::begin(conn)?;
    for (artist, _) in job.read("SELECT id, name FROM artists", (), pair)? {
        let shows =
            job.read("SELECT id, status FROM shows WHERE artist_id = ?1", [&artist], pair)?;
        let upcoming: i64 =
            shows.iter().map(|(_, status)| i64::from(status.as_deref() == Some("upcoming"))).sum();
        job.write(
            "UPDATE artists SET upcoming_shows_count = ?2 WHERE id = ?1",
            params![artist, upcoming],
        )?;
    }
    job.commit()
}

/// The four-hourly trending of artists: reads all of them, and patches the score and the rank of
/// every one.
fn artist_trending(conn: &mut Connection, _today: Date) -> Result<Cost> {
    let mut job = JobRun::begin(conn)?;
    let all =
        "SELECT id, upcoming_shows_count + followers / 1000000 + popularity / 10 FROM artists";
    let mut scored =
        job.read(all, (), |row| Ok((row.get::<_, String>(0)?, row.get::<_, f64>(1)?.max(1.0))))?;
    scored.sort_by(|one, other| other.1.total_cmp(&one.1));
    job.rank("UPDATE artists SET trending_score = ?2, trending_rank = ?3 WHERE id = ?1", &scored)?;
    job.commit()
}

/// The four-hourly trending of shows: reads all upcoming ones, and patches the score and the rank
/// of every one.
fn show_trending(conn: &mut Connection, at: Date) -> Result<Cost> {
    let mut job = JobRun::begin(conn)?;
    let upcoming = "SELECT id, julianday(date) - julianday(?1), vote_count + 2 * setlist_count FROM shows WHERE status = 'upcoming'";
    let mut scored = job.read(upcoming, [at.to_string()], |row| {
        let (days, weight): (f64, f64) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, String>(0)?, (30.0 - days).max(0.0) * (10.0 + weight) / 300.0))
    })?;
    scored.sort_by(|one, other| other.1.total_cmp(&one.1));
    job.rank("UPDATE shows SET trending_score = ?2, trending_rank = ?3 WHERE id = ?1", &scored)?;
    job.commit()
}

/// One poll of the orchestrator for due jobs; it has four jobs.
fn poll(conn: &mut Connection, _today: Date) -> Result<Cost> {
    let mut job = JobRun::begin(conn)?;
    job.read("SELECT job, last_run FROM settings", (), |row| row.get::<_, String>(0))?;
    job.commit()
}

/// A run of a job: its transaction, and its cost so far.
struct JobRun<'c> {
    tx: Transaction<'c>,
    cost: Cost,
    started: Instant,
}

impl<'c> JobRun<'c> {
    fn begin(conn: &'c mut Connection) -> Result<Self> {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        Ok(Self { tx, cost: Cost::default(), started: now() })
    }

    fn commit(self) -> Result<Cost> {
        self.tx.commit()?;
        Ok(Cost { time: self.started.elapsed(), ..self.cost })
    }

    fn read<R>(
        &mut self,
        text: &str,
        params: impl Params,
        read: fn(&Row<'_>) -> rusqlite::Result<R>,
    ) -> Result<Vec<R>> {
        let rows: Vec<R> = self
            .tx
            .prepare_cached(text)?
            .query_map(params, read)?
            .collect::<rusqlite::Result<_>>()?;
        self.cost.statements += 1;
        self.cost.rows_read += rows.len() as u64;
        Ok(rows)
    }

    /// Patches every row, whether its score or rank has changed or not.
    fn rank(&mut self, text: &str, scored: &[(String, f64)]) -> Result<()> {
        (1_i64..)
            .zip(scored)
            .try_for_each(|(rank, (id, score))| self.write(text, params![id, score, rank]))
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
