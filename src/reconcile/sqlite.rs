//! The audit of a SQLite database, live: rows and totals in one snapshot, repairs under the write lock.

mod rollup_source;
mod row_source;
mod sight;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use self::rollup_source::RollupSource;
use self::row_source::RowSource;
use self::sight::source_failed;
pub use self::source::{Source, TypedSource};
use super::audit::{
    self, Audit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, RepairRequest, Repaired,
};
use super::spans::{Plan, merge_up_to};
use super::token::Token;
use crate::counter::{Counter, CounterId};
use crate::drivers::rusqlite::{Rusqlite, in_snapshot, under_lock};
use crate::engine::{self, failed_on, now, read, retention, write};
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf};
use crate::schema::Schema;
use crate::sql::{self, Dialect};

/// A SQLite database's rows and totals.
///
/// A measure reads both in one snapshot and blocks nobody in WAL mode; where rows are in another file, which is attached, it holds the write locks of all
/// files instead, since each has a snapshot of its own. A repair takes the write lock, measures its keys
/// again, adds what they lack, and commits.
#[derive(Debug)]
pub struct SqliteAudit<'a> {
    conn: &'a Connection,
    schema: &'a Schema,
    identity: u64,
    sources: Vec<RowSource<'a>>,
    /// Of the rollup whose pages are compared just now.
    plan: Option<Plan>,
}

impl<'a> SqliteAudit<'a> {
    /// An audit without sources; checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] when the connection is inside a transaction, and what [`SqliteStore::check`](crate::SqliteStore::check) finds.
    pub fn new(conn: &'a Connection, schema: &'a Schema) -> Result<Self> {
        refuse_transaction(conn)?;
        let mut executor = Rusqlite::new(conn);
        now(engine::schema::check(&mut executor, schema))?;
        let identity = now(engine::schema::identity(&mut executor, schema))?;
        Ok(Self { conn, schema, identity, sources: Vec::new(), plan: None })
    }

    /// Where a counter's rows are; a second call for one counter takes the first's place.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] when the table is absent; [`Error::Source`] when records of this type do not drive the counter, the key has another number of
    /// columns, the rows of a table do not come out of an index in key order, several schemas have the table, as where a temporary one hides it, rows are in an
    /// attached file that can only be read, in WAL mode, or SQLite refuses the SQL.
    pub fn add<K: Key>(&mut self, counter: Counter<K>, mut source: TypedSource<'a>) -> Result<()> {
        let counter = counter.id();
        source.target.check(self.schema, &counter, source.by_tally)?;
        (source.check_driven)(&counter)?;
        source.target.names().try_for_each(|name| sight::find(self.conn, &counter, name))?;
        let statements = source.target.statements(Dialect::Sqlite, &counter, None)?;
        for text in statements.all() {
            self.conn.prepare(text).map_err(|error| source_failed("preparing its SQL", &counter, error))?;
        }
        if let Some(index) = source.target.wanted_index(Dialect::Sqlite, &counter) {
            let page = if source.by_tally { &statements.rows_next } else { &statements.sums_next };
            if self.sorts(&counter, page)? {
                let reason =
                    format!("its rows do not come out of an index in key order; make one: CREATE INDEX .. ON {index}");
                return Err(Error::source(&counter, None, reason));
            }
        }
        let files = self.files(&counter, statements.all())?;
        let own_file = files.iter().all(|(index, _)| *index == 0);
        if !own_file {
            self.refuse_unlockable(&counter, &files)?;
        }
        self.sources.retain(|known| known.counter != counter);
        self.sources.push(RowSource { counter, source, statements, cutoff: None, own_file });
        Ok(())
    }

    /// The rows of a counter's source that cannot be counted, or that SQL counts otherwise than their tally: an error each, which names the key and what is the
    /// matter, up to `most`; to repair them by hand. Reads every row.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when the counter has no source, and what the database says.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{Source, SqliteAudit};
    /// use keepcount::{Counter, CounterId, Record, Schema, SqliteStore, Tally};
    ///
    /// const VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[VOTES.table()]);
    ///
    /// struct Vote(i64);
    /// # impl Record for Vote {
    /// #     const COUNTERS: &'static [CounterId] = &[VOTES.id()];
    /// #     fn tally(&self, to: &mut Tally<'_>) { to.add(VOTES, self.0, 1); }
    /// # }
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// conn.execute_batch("CREATE TABLE votes (show); CREATE INDEX i ON votes (show); INSERT INTO votes VALUES (7), (x'07'), ('7')")?;
    /// SqliteStore::new(&conn, &SCHEMA).create()?;
    /// let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
    /// audit.add(VOTES, Source::table("votes", ["show"]).rows("show", |row| Ok(Vote(row.get(0)?))))?;
    /// for row in audit.faulty_rows(VOTES.id(), 100)? {
    ///     eprintln!("{row}");
    /// }
    /// # assert_eq!(audit.faulty_rows(VOTES.id(), 100)?.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn faulty_rows(&mut self, counter: CounterId, most: usize) -> Result<Vec<Error>> {
        let conn = self.conn;
        match self.expected(conn, &counter)? {
            Expected::Rows(row_source) => row_source.faults(conn, most),
            Expected::Totals(_) => Ok(Vec::new()),
        }
    }

    /// The counters that have a source, and the rollups of them, for [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<CounterId> {
        audit::with_rollups(self.schema, self.sources.iter().map(|row_source| row_source.counter).collect())
    }

    /// The files that statements read, and that of the totals: the index and the name of each database. What is temporary is this connection's alone.
    fn files<'t>(&self, counter: &CounterId, texts: impl Iterator<Item = &'t String>) -> Result<Vec<(i64, String)>> {
        let read = || -> rusqlite::Result<Vec<(i64, String)>> {
            let mut read = BTreeSet::from([0]);
            for text in texts {
                let mut program = self.conn.prepare(&format!("EXPLAIN {text}"))?;
                let mut steps = program.raw_query();
                while let Some(step) = steps.next()? {
                    if step.get_ref("opcode")?.as_str().is_ok_and(|opcode| opcode == "Transaction") {
                        read.insert(step.get("p1")?);
                    }
                }
            }
            let mut all = self.conn.prepare("SELECT seq, name FROM pragma_database_list WHERE name <> 'temp'")?;
            let all = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(all.into_iter().filter(|(index, _)| read.contains(index)).collect())
        };
        read().map_err(|error| failed_on("looking for the files of the source", counter, error))
    }

    /// In WAL mode each file has a snapshot of its own, so that several of them are read under their write locks, which a file that can only be read does not have.
    fn refuse_unlockable(&self, counter: &CounterId, files: &[(i64, String)]) -> Result<()> {
        for (index, name) in files {
            let unlockable = || -> rusqlite::Result<bool> {
                let mode = format!("PRAGMA {}.journal_mode", sql::quote(name));
                let mode: String = self.conn.query_row(&mode, (), |row| row.get(0))?;
                Ok(mode == "wal" && !self.locks(*index)?)
            };
            if unlockable().map_err(|error| failed_on("looking for the files of the source", counter, error))? {
                let reason = format!(
                    "its rows and totals are in different files, and database {name} is in WAL mode and can only be read: so it \
                     cannot be locked, and both cannot be read as of one moment"
                );
                return Err(Error::source(counter, None, reason));
            }
        }
        Ok(())
    }

    /// Whether a transaction that locks takes a file's write lock. The driver's own question, `is_readonly`, takes another type up to rusqlite 0.35.
    fn locks(&self, file: i64) -> rusqlite::Result<bool> {
        let mut program = self.conn.prepare("EXPLAIN BEGIN IMMEDIATE")?;
        let mut steps = program.raw_query();
        while let Some(step) = steps.next()? {
            if step.get_ref("opcode")?.as_str().is_ok_and(|opcode| opcode == "Transaction")
                && step.get::<_, i64>("p1")? == file
            {
                return Ok(step.get::<_, i64>("p2")? != 0);
            }
        }
        Ok(true)
    }

    /// Whether SQLite would sort for this statement.
    fn sorts(&self, counter: &CounterId, text: &str) -> Result<bool> {
        let plan = || -> rusqlite::Result<bool> {
            let mut plan = self.conn.prepare(&format!("EXPLAIN QUERY PLAN {text}"))?;
            let mut rows = plan.raw_query();
            while let Some(row) = rows.next()? {
                if row.get_ref(3)?.as_str().unwrap_or_default().contains("TEMP B-TREE") {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        plan().map_err(|error| source_failed("planning the source", counter, error))
    }

    /// What a counter is recounted from, as far as it was pruned.
    fn expected(&mut self, conn: &Connection, counter: &CounterId) -> Result<Expected<'_, 'a>> {
        let spec = self.schema.spec(counter)?;
        if let Some(rollup) = spec.rollup() {
            return Ok(Expected::Totals(Box::new(RollupSource::of(self.schema, *counter, rollup)?)));
        }
        let cutoffs = now(retention::cutoffs(&mut Rusqlite::new(conn), self.schema, &[*counter], false))?;
        let cutoff = cutoffs.into_iter().next().map(|(_, cutoff)| cutoff);
        let found = self.sources.iter_mut().find(|row_source| row_source.counter == *counter);
        let row_source = found.ok_or_else(|| Error::no_source(counter))?;
        row_source.cutoff_at(cutoff)?;
        Ok(Expected::Rows(row_source))
    }
}

/// What a counter is recounted from: its rows, or the totals that a rollup sums.
enum Expected<'s, 'a> {
    Rows(&'s RowSource<'a>),
    Totals(Box<RollupSource>),
}

impl Expected<'_, '_> {
    /// The sums of some keys; 0 for those that are left out.
    fn recount(&self, conn: &Connection, keys: &[KeyBuf]) -> Result<BTreeMap<KeyBuf, i64>> {
        match self {
            Self::Rows(row_source) => {
                keys.iter().map(|key| Ok((key.clone(), row_source.recount_one(conn, key)?))).collect()
            }
            Self::Totals(rollup_source) => rollup_source.recount(conn, keys),
        }
    }

    fn is_empty(&self, conn: &Connection) -> Result<bool> {
        match self {
            Self::Rows(row_source) => row_source.is_empty(conn),
            Self::Totals(rollup_source) => rollup_source.is_empty(conn),
        }
    }
}

impl Audit for SqliteAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        refuse_transaction(self.conn)?;
        let (conn, schema) = (self.conn, self.schema);
        let expected = self.expected(conn, &ask.counter)?;
        if let Expected::Rows(row_source) = &expected {
            row_source.check_sample(conn)?;
        }
        let empty = expected.is_empty(conn)?;
        let count = |executor: &mut Rusqlite<'_>| now(read::count_non_zero(executor, schema, &ask.counter, ask.totals));
        let totals = if empty { count(&mut Rusqlite::new(conn))? } else { 0 };
        Ok(ProbeResult { empty, totals })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        refuse_transaction(self.conn)?;
        let (conn, schema) = (self.conn, self.schema);
        let operation = format!("measuring counter {}", ask.counter.full_name());
        let own_file = self.sources.iter().all(|row_source| row_source.counter != ask.counter || row_source.own_file);
        // A counter's first page begins anew.
        let mut plan = self.plan.take().filter(|_| ask.after.is_some());
        let read = || {
            let (behind, limit) = (crate::store::behind(&ask.counter, ask.after.as_ref())?, ask.keys.saturating_add(1));
            let totals = now(read::range_unchecked(&mut Rusqlite::new(conn), schema, &ask.counter, &behind, limit))?;
            let expected = self.expected(conn, &ask.counter)?;
            let (recounts, end) = match &expected {
                Expected::Rows(row_source) => (row_source.recounts(conn, ask)?, None),
                Expected::Totals(rollup_source) => rollup_source.page(conn, &mut plan, ask, &totals)?,
            };
            let dangling = match &expected {
                Expected::Rows(row_source) => {
                    row_source.dangling(conn, recounts.get(..ask.keys).unwrap_or(&recounts))?
                }
                Expected::Totals(_) => Vec::new(),
            };
            Ok((totals, recounts, end, dangling))
        };
        let read = if own_file { in_snapshot(conn, &operation, read) } else { under_lock(conn, &operation, read) };
        let (totals, recounts, end, mut dangling) = read?;
        self.plan = plan;
        let mut diff = merge_up_to(ask, end, recounts, totals)?;
        dangling.retain(|key| diff.next.as_ref().or(ask.until.as_ref()).is_none_or(|last| key <= last));
        diff.dangling = dangling;
        Ok(diff)
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        refuse_transaction(self.conn)?;
        let (conn, schema) = (self.conn, self.schema);
        if let Expected::Rows(row_source) = self.expected(conn, &ask.counter)? {
            row_source.check_keys(conn, &ask.keys)?;
        }
        let operation = format!("repairing totals of counter {}", ask.counter.full_name());
        self.transact(&operation, |audit, executor| {
            let expected_all = audit.expected(conn, &ask.counter)?.recount(conn, &ask.keys)?;
            let stored = now(write::lock_totals(executor, schema, &ask.counter, &ask.keys))?;
            now(engine::audit::repair(executor, schema, &ask.counter, (&ask.keys, &stored), &expected_all))
        })
    }

    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        refuse_transaction(self.conn)?;
        now(engine::audit::kept_of(&mut Rusqlite::new(self.conn), token.run()))
    }

    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        refuse_transaction(self.conn)?;
        now(engine::audit::keep(&mut Rusqlite::new(self.conn), ask))
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        refuse_transaction(self.conn)?;
        let operation = format!("ending the backfill of counter {}", ask.counter.full_name());
        self.transact(&operation, |_, executor| now(engine::audit::ready_in(executor, ask)))
    }
}

impl<'a> SqliteAudit<'a> {
    /// Runs `work` in a transaction with the write lock from its start, and commits it. The connection is in none.
    fn transact<T>(
        &mut self,
        operation: &str,
        work: impl FnOnce(&mut Self, &mut Rusqlite<'a>) -> Result<T>,
    ) -> Result<T> {
        let mut executor = Rusqlite::new(self.conn);
        let nested = now(engine::begin(&mut executor, || operation.to_owned()))?;
        let done = work(self, &mut executor);
        now(engine::end(&mut executor, nested, || operation.to_owned(), done))
    }
}

fn refuse_transaction(conn: &Connection) -> Result<()> {
    if conn.is_autocommit() {
        return Ok(());
    }
    Err(Error::invalid_use("connection", "it is inside a transaction; an audit needs one of its own"))
}
