//! A site on which the cost of a day is measured: its events are applied with their hooks, and the
//! jobs of the replaced system run when they are due.
//!
//! Its votes decay with the single half-life that is the default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepcount::concert::{Concert, Week};
use keepcount::reconcile::verify;
use keepcount::{Batch, Date, SqliteStore, Store as _};
use rusqlite::{Connection, TransactionBehavior, params};

use crate::clock::now;
use crate::days::Day;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::replaced::{COLUMNS, Cost, JOBS};
use crate::schema::{INDICES, TABLES};
use crate::traced::{Detail, trace};
use crate::{app, audit};

type C = Concert<String, Week>;

/// The steps of a day: the replaced system looked for due jobs every 5 minutes.
const TICKS: u32 = 288;

/// The key columns of totals that are dates; all other texts are ids.
const DATES: [(&str, &str); 2] = [("artist_shows_ahead", "key_2"), ("show_upcoming", "key_1")];

pub struct MeasuredSite {
    conn: Connection,
    path: PathBuf,
}

/// The cost of a day.
pub struct DayCost {
    pub day: Day,
    /// In the order of [`JOBS`], all runs of the day.
    pub jobs: Vec<Cost>,
    pub hooks: Cost,
    /// The part of the hooks' cost that leaderboards caused.
    pub leaderboards: Cost,
    /// One verification after the day; zero if the jobs ran only once.
    pub verification: Cost,
    /// Artists, shows, setlists and votes, after the day.
    pub rows: u64,
}

impl DayCost {
    /// Returns the cost of all jobs of the replaced system.
    pub fn replaced(&self) -> Cost {
        self.jobs.iter().fold(Cost::default(), |sum, cost| sum.plus(cost))
    }
}

/// How often jobs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Each time that they are due.
    All,
    /// Once, after the day's events. The cost is multiplied by the runs of a day.
    Once,
}

impl MeasuredSite {
    pub fn create(path: &Path) -> Result<Self> {
        let site = Self::without_indices(path)?;
        site.conn.execute_batch(INDICES)?;
        Ok(site)
    }

    fn without_indices(path: &Path) -> Result<Self> {
        let conn = Connection::open(path)?;
        // Nothing waits for the disk: there would be as many waits with counters as without.
        conn.execute_batch(
            "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA cache_size = -200000",
        )?;
        conn.set_prepared_statement_cache_capacity(512);
        conn.execute_batch(TABLES)?;
        conn.execute_batch(COLUMNS)?;
        SqliteStore::new(&conn, &C::SCHEMA).create()?;
        Ok(Self { conn, path: path.to_owned() })
    }

    /// Creates a site with `times` copies of each artist, show, setlist, vote and user of this one,
    /// with new ids and matching totals.
    pub fn grown(&self, path: &Path, times: u32) -> Result<Self> {
        let grown = Self::without_indices(path)?;
        let conn = &grown.conn;
        conn.execute("ATTACH ?1 AS base", [self.path.to_string_lossy()])?;
        conn.execute_batch("BEGIN; CREATE TEMP TABLE copies (id TEXT NOT NULL)")?;
        for copy in 1..times {
            conn.execute("INSERT INTO copies VALUES (?1)", [format!("{copy:02}.")])?;
        }
        let rows = [
            ("artists", &["id"][..], &["name", "followers", "popularity"][..]),
            ("shows", &["id", "artist_id"], &["date", "status"]),
            ("setlists", &["id", "show_id"], &[]),
            ("votes", &["id", "setlist_id", "user_id"], &["kind", "created_at"]),
        ];
        for (table, ids, others) in rows {
            grown.copy(table, ids, others)?;
        }
        let totals = C::SCHEMA.counters().iter().map(keepcount::backend::CounterSpec::table_name);
        let leaderboards = C::SCHEMA
            .leaderboard_ids()
            .iter()
            .map(|leaderboard| leaderboard.name().replace('.', "_"));
        for table in totals.chain(leaderboards) {
            let columns: Vec<String> = grown.columns(&table)?;
            let is_id =
                |column: &str| column.starts_with("key") && !DATES.contains(&(&table, column));
            let (ids, others): (Vec<&str>, Vec<&str>) =
                columns.iter().map(String::as_str).partition(|name| is_id(name));
            grown.copy(&table, &ids, &others)?;
        }
        conn.execute_batch("COMMIT; DETACH base")?;
        conn.execute_batch(INDICES)?;
        Ok(grown)
    }

    /// Copies rows in the order of ids, so that each row is appended at the end of its index.
    fn copy(&self, table: &str, ids: &[&str], others: &[&str]) -> Result<()> {
        let names = [ids, others].concat().join(", ");
        // Keys that are not texts are epochs and stay as they are.
        let copied = |id: &&str| {
            format!("iif(typeof(base.{id}) = 'text', copies.id || base.{id}, base.{id})")
        };
        let copied: Vec<String> = ids
            .iter()
            .map(copied)
            .chain(others.iter().map(|name| format!("base.{name}")))
            .collect();
        self.conn.execute_batch(&format!(
            "INSERT INTO main.{table} ({names}) SELECT {} FROM copies CROSS JOIN base.{table} AS base;
             INSERT INTO main.{table} ({names}) SELECT {names} FROM base.{table}",
            copied.join(", ")
        ))?;
        Ok(())
    }

    fn columns(&self, table: &str) -> Result<Vec<String>> {
        let mut all = self.conn.prepare("SELECT name FROM pragma_table_info(?1)")?;
        Ok(all.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Applies events that are not measured, all in one transaction.
    pub fn apply(&mut self, events: &[Event]) -> Result<()> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut batch = Batch::new();
        for event in events {
            app::apply::<Week>(&tx, event, &mut batch)?;
        }
        SqliteStore::new(&tx, &C::SCHEMA).apply(&mut batch)?;
        Ok(tx.commit()?)
    }

    /// Runs a day: its events are spread over it, and jobs run when they are due.
    pub fn run_day(&mut self, day: Day, events: &[Event], runs: Runs) -> Result<DayCost> {
        let today = day.date.unwrap_or(Date::MIN);
        let mut done = DayCost {
            day,
            jobs: vec![Cost::default(); JOBS.len()],
            hooks: Cost::default(),
            leaderboards: Cost::default(),
            verification: Cost::default(),
            rows: 0,
        };
        let mut left = events;
        for tick in 1..=TICKS {
            let until = events.len() * tick as usize / TICKS as usize;
            let (due, rest) = left.split_at(until + left.len() - events.len());
            self.apply_with_hooks(due, &mut done)?;
            left = rest;
            for (job, cost) in JOBS.iter().zip(&mut done.jobs) {
                if runs == Runs::All && tick % (TICKS / job.a_day) == 0 {
                    *cost = cost.plus(&(job.run)(&mut self.conn, today)?);
                }
            }
        }
        if runs == Runs::Once {
            for (job, cost) in JOBS.iter().zip(&mut done.jobs) {
                *cost = (job.run)(&mut self.conn, today)?.times(job.a_day);
            }
        }
        if runs == Runs::All {
            done.verification = self.verify_totals()?;
        }
        done.rows = self.rows()?;
        Ok(done)
    }

    /// Applies events with their hooks, one transaction each.
    fn apply_with_hooks(&mut self, events: &[Event], done: &mut DayCost) -> Result<()> {
        let mut time = Duration::ZERO;
        let ((), traced) = trace(&mut self.conn, Detail::Rows, |conn| {
            for event in events {
                let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let mut batch = Batch::new();
                app::apply::<Week>(&tx, event, &mut batch)?;
                let started = now();
                SqliteStore::new(&tx, &C::SCHEMA).apply(&mut batch)?;
                time += started.elapsed();
                tx.commit()?;
            }
            Ok(())
        })?;
        // An update reads its old row.
        let updates =
            events.iter().filter(|event| matches!(event, Event::Update(_))).count() as u64;
        let old_rows = Cost { statements: updates, rows_read: updates, time, ..Cost::default() };
        done.hooks = done.hooks.plus(&traced.all).plus(&old_rows);
        done.leaderboards = done.leaderboards.plus(&traced.leaderboards);
        Ok(())
    }

    /// Runs one full verification. It is an error if it finds drift.
    fn verify_totals(&mut self) -> Result<Cost> {
        let started = now();
        let (report, traced) = trace(&mut self.conn, Detail::Statements, |conn| {
            Ok(verify(&C::SCHEMA).run(&mut audit::sources::<Week>(conn)?)?)
        })?;
        let time = started.elapsed();
        if report.drift() > 0 || !report.complete() {
            return Err(Error::said(format!(
                "after a day, totals are not what rows say: {report}"
            )));
        }
        let mut totals = 0;
        for spec in C::SCHEMA.counters() {
            totals += self.count(&spec.table_name())?;
        }
        Ok(Cost {
            statements: traced.statements,
            rows_read: report.rows + totals,
            rows_written: 0,
            time,
        })
    }

    /// Returns the number of artists, shows, setlists and votes.
    pub fn rows(&self) -> Result<u64> {
        ["artists", "shows", "setlists", "votes"].into_iter().map(|table| self.count(table)).sum()
    }

    fn count(&self, table: &str) -> Result<u64> {
        let rows: i64 =
            self.conn
                .query_row(&format!("SELECT count(*) FROM {table}"), params![], |row| row.get(0))?;
        Ok(rows.unsigned_abs())
    }
}
