//! The interface of a database to the commands, which SQLite files and PostgreSQL databases
//! implement.

use std::collections::HashMap;
use std::fmt;

use keepcount::reconcile::{Reconciler, Report};
use keepcount::{AsKey, Key, Leaderboard, Ranked, Score, Standing, Store};

use crate::error::Result;
use crate::lines::Lines;
use crate::progress::Progress;
use crate::replay::Done;

/// The address of a database. Errors print it.
pub trait Database: fmt::Display {
    type Site: Site;

    /// Opens the database, and creates what does not exist yet: the application's tables, the
    /// tables of totals.
    fn create(&self) -> Result<Self::Site>;

    /// Opens an existing database, and checks that it is this application's. It creates nothing.
    fn open(&self) -> Result<Self::Site>;

    /// Opens a database like [`open`](Self::open), for commands that must not write.
    fn open_to_read(&self) -> Result<Self::Site>;

    /// Opens a database to write a short note about a run. It waits only a second for another
    /// writer.
    fn open_to_note(&self) -> Result<Self::Site>;
}

/// An open database.
pub trait Site {
    /// Applies the events that an earlier replay of this stream has not applied yet.
    fn replay(&mut self, stream: &str, lines: &mut Lines, progress: &mut Progress) -> Result<Done>;

    /// Begins reads that are all of one moment.
    fn moment(&mut self) -> Result<impl Moment>;

    /// Drives a run over all sources.
    fn audit(&mut self, run: &mut Reconciler) -> Result<Report>;

    /// Notes every counter that a run found clean from its first key to its last, at a time in
    /// seconds since 1970.
    fn note(&mut self, report: &Report, now: i64) -> Result<()>;
}

/// A database at one moment.
pub trait Moment {
    fn store(&mut self) -> impl Store + Leaderboards;

    /// Returns a version of the data, which changes with every write.
    fn version(&mut self) -> Result<String>;

    /// Returns the number of applied lines, over all streams.
    fn lines(&mut self) -> Result<i128>;

    /// Returns when each counter was last found clean.
    fn verified(&mut self) -> Result<HashMap<String, i64>>;

    /// Returns how many totals of a table are not 0, and their sum.
    fn count(&mut self, table: &str) -> Result<(i64, i128)>;
}

/// The leaderboards that a store keeps with its totals.
pub trait Leaderboards {
    fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> keepcount::Result<Vec<Ranked<K, S>>>;

    fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> keepcount::Result<Standing<K, S>>;
}
