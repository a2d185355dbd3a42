//! The audit of a SQLite database, live: rows and totals in one snapshot, mends under the write lock.

use std::fmt;
use std::ops::Bound;

use rusqlite::types::{Value as Cell, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};

use super::audit::{Ask, Audit, Look, Looked, Measured, Mend, Mended, Recount, merge};
use super::source::{check_driven, share, sum_by_key};
use super::source_sql::{Statements, Target};
use crate::batch::Batch;
use crate::counter::{Counter, Def};
use crate::error::{Error, Result};
use crate::key::{Key, KeyBuf};
use crate::layout::Layout;
use crate::record::Record;
use crate::sql::{self, Value};
use crate::store::sqlite::{Scope, failed, read_key};
use crate::store::{SqliteStore, Store};

/// Where a counter's rows are, said in SQL: a table, its key's columns, an amount, a filter.
///
/// [`rows`](Self::rows) completes it. The key's columns need an index, from which pages are read in key order; a text column's
/// index must be collated BINARY, as it is by default.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Mode, Options, Reconciler, Source, SqliteAudit, Live, run};
/// use keepcount::{Counter, Def, Layout, Record, SqliteStore, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const LAYOUT: Layout = Layout::new(&[SHOW_SCORE.table()]);
///
/// struct Vote { show: i64, stars: i64, spam: bool }
///
/// impl Record for Vote {
///     const COUNTERS: &'static [Def] = &[SHOW_SCORE.def()];
///
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_SCORE, self.show, self.stars);
///         }
///     }
/// }
///
/// let conn = rusqlite::Connection::open_in_memory()?;
/// conn.execute_batch(
///     "CREATE TABLE votes (show_id INTEGER, stars INTEGER, spam INTEGER);
///      CREATE INDEX votes_by_show ON votes (show_id);
///      INSERT INTO votes VALUES (7, 5, 0), (7, 3, 0), (7, 1, 1)",
/// )?;
/// SqliteStore::new(&conn, &LAYOUT).create()?;
///
/// let mut audit = SqliteAudit::new(&conn, &LAYOUT)?;
/// let source = Source::table("votes", ["show_id"]).amount("stars").filter("NOT spam");
/// audit.add(SHOW_SCORE, source.rows("show_id, stars, spam", |row| {
///     Ok(Vote { show: row.get(0)?, stars: row.get(1)?, spam: row.get(2)? })
/// }))?;
/// let mut verify = Reconciler::new(Mode::Verify, &LAYOUT, Options::default())?;
/// let report = run(&mut verify, &mut audit, &mut Live::new())?;
/// assert_eq!((report.drift(), report.counters[0].samples[0].truth), (1, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Target);

impl Source {
    /// Rows of a table, grouped by these columns: one for each part of the counter's key, none for the key `()`.
    #[must_use]
    pub fn table<const N: usize>(table: &str, key: [&str; N]) -> Self {
        Self(Target::table(table, &key))
    }

    /// Rows of a query, where a table alone does not say it: a row that adds to two keys of one counter is given twice by
    /// `UNION ALL`. Whether pages can be read from an index is then up to the query.
    #[must_use]
    pub fn query<const N: usize>(query: &str, key: [&str; N]) -> Self {
        Self(Target::query(query, &key))
    }

    /// What a row adds, as an SQL expression of integers; 1 by default.
    #[must_use]
    pub fn amount(mut self, expression: &str) -> Self {
        self.0.amount = Some(expression.to_owned());
        self
    }

    /// Which rows count, as an SQL condition; every row by default.
    #[must_use]
    pub fn filter(mut self, condition: &str) -> Self {
        self.0.filter = Some(condition.to_owned());
        self
    }

    /// The columns of a row, as a select list, and how they make a record: so that a sample of rows can be held against their
    /// `tally` before a mend trusts what the SQL says.
    #[must_use]
    pub fn rows<'a, R: Record>(
        self,
        columns: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<R> + 'a,
    ) -> TypedSource<'a> {
        let share = move |counter: &Def, row: &Row<'_>, scratch: &mut Batch| {
            let record =
                read(row).map_err(|error| failed(&format!("reading a row of counter {}", counter.name()), error))?;
            share(counter, &record, scratch)
        };
        let mut target = self.0;
        columns.clone_into(&mut target.columns);
        TypedSource { target, by_tally: false, share: Box::new(share), check_driven: check_driven::<R> }
    }
}

/// A [`Source`] whose rows can be read as records.
pub struct TypedSource<'a> {
    target: Target,
    by_tally: bool,
    share: Box<Share<'a>>,
    check_driven: fn(&Def) -> Result<()>,
}

type Share<'a> = dyn Fn(&Def, &Row<'_>, &mut Batch) -> Result<Option<(KeyBuf, i64)>> + 'a;

impl TypedSource<'_> {
    /// Recounts by reading every row and its `tally`, instead of by `GROUP BY`: slower, and nothing is said twice; amount and filter
    /// are not used.
    #[must_use]
    pub fn by_tally(mut self) -> Self {
        self.by_tally = true;
        self
    }
}

impl fmt::Debug for TypedSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedSource")
            .field("target", &self.target)
            .field("by_tally", &self.by_tally)
            .finish_non_exhaustive()
    }
}

/// A SQLite database's rows and totals.
///
/// A measure reads both in one snapshot and blocks nobody in WAL mode. A mend takes the write lock, measures its keys
/// again, adds what they lack, and commits.
#[derive(Debug)]
pub struct SqliteAudit<'a> {
    conn: &'a Connection,
    layout: &'a Layout,
    identity: u64,
    sources: Vec<Declared<'a>>,
}

#[derive(Debug)]
struct Declared<'a> {
    counter: Def,
    source: TypedSource<'a>,
    statements: Statements,
}

/// How many rows of each end of a source, and of each key to be mended, are held against their `tally`.
const SAMPLE: i64 = 64;
/// Of how many of the keys of a mend rows are sampled.
const SAMPLED_KEYS: usize = 16;

impl<'a> SqliteAudit<'a> {
    /// An audit without sources; checks the tables of totals.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when the connection is inside a transaction, and what [`SqliteStore::check`] finds.
    pub fn new(conn: &'a Connection, layout: &'a Layout) -> Result<Self> {
        refuse_transaction(conn)?;
        let store = SqliteStore::new(conn, layout);
        store.check()?;
        Ok(Self { conn, layout, identity: store.identity()?, sources: Vec::new() })
    }

    /// Where a counter's rows are; a second call for one counter takes the first's place.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] when records of this type do not drive the counter, the key has another number of columns, or the rows of a
    /// table do not come out of an index in key order; [`Error::Schema`] when the table is absent; what SQLite says of the SQL.
    pub fn add<K: Key>(&mut self, counter: Counter<K>, source: TypedSource<'a>) -> Result<()> {
        let counter = counter.def();
        self.layout.position(&counter)?;
        (source.check_driven)(&counter)?;
        let statements = source.target.statements(&counter)?;
        for text in statements.all() {
            self.conn.prepare(text).map_err(|error| failed(&doing("preparing the source", &counter), error))?;
        }
        if let Some(index) = &source.target.wanted_index {
            let page = if source.by_tally { &statements.rows_next } else { &statements.sums_next };
            if self.sorts(&counter, page)? {
                let reason =
                    format!("its rows do not come out of an index in key order; make one: CREATE INDEX .. ON {index}");
                return Err(Error::source(&counter, None, reason));
            }
        }
        self.sources.retain(|known| known.counter != counter);
        self.sources.push(Declared { counter, source, statements });
        Ok(())
    }

    /// Whether SQLite would sort for this statement.
    fn sorts(&self, counter: &Def, text: &str) -> Result<bool> {
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
        plan().map_err(|error| failed(&doing("planning the source", counter), error))
    }

    fn declared(&self, counter: &Def) -> Result<&Declared<'a>> {
        let found = self.sources.iter().find(|declared| declared.counter == *counter);
        found.ok_or_else(|| Error::source(counter, None, "there is none: add it to the audit"))
    }
}

impl Declared<'_> {
    /// The next keys' sums, one more than a page holds.
    fn recounts(&self, conn: &Connection, ask: &Ask) -> Result<Vec<Recount>> {
        let limit = ask.keys.saturating_add(1);
        if self.counter.parts().is_empty() && ask.after.is_some() {
            return Ok(Vec::new());
        }
        let mut values = ask.after.as_ref().map_or(Ok(Vec::new()), |after| sql::key_values(&self.counter, after))?;
        if self.source.by_tally {
            let text = if values.is_empty() { &self.statements.rows_first } else { &self.statements.rows_next };
            return self.sums_by_tally(conn, text, &values, limit);
        }
        let text = if values.is_empty() { &self.statements.sums_first } else { &self.statements.sums_next };
        values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
        self.sums(conn, text, &values).map_err(|error| match error {
            Failure::Known(error) => error,
            Failure::Sqlite(error) if overflowed(&error) => self.overflowing_key(conn, ask, limit, error),
            Failure::Sqlite(error) => failed(&doing("recounting", &self.counter), error),
        })
    }

    fn sums(&self, conn: &Connection, text: &str, values: &[Value<'_>]) -> Result<Vec<Recount>, Failure> {
        let mut statement = conn.prepare_cached(text)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let mut sums = Vec::new();
        while let Some(row) = rows.next()? {
            let recount = self.recount(row)?;
            // Without a key's columns there is no group to be absent: one row of nothing.
            if recount.rows > 0 {
                sums.push(recount);
            }
        }
        Ok(sums)
    }

    /// Reads `key .., sum, rows`, or `key .., rows` where every row adds 1.
    fn recount(&self, row: &Row<'_>) -> Result<Recount, Failure> {
        let key = read_key(&self.counter, row, 0)?;
        let at = self.counter.parts().len();
        let rows: i64 = row.get(if self.source.target.amount.is_some() { at + 1 } else { at })?;
        let total = match row.get_ref(at)? {
            ValueRef::Integer(total) => total,
            ValueRef::Null => 0,
            other => {
                let reason = format!("its amounts add up to a {}, not to an integer", other.data_type());
                return Err(Error::source(&self.counter, Some(&key), reason).into());
            }
        };
        Ok(Recount { key, total, rows: rows.unsigned_abs() })
    }

    fn sums_by_tally(&self, conn: &Connection, text: &str, values: &[Value<'_>], limit: usize) -> Result<Vec<Recount>> {
        let counter = &self.counter;
        let failed = |error| failed(&doing("reading rows", counter), error);
        let mut statement = conn.prepare_cached(text).map_err(failed)?;
        let key_at = statement.column_count() - counter.parts().len();
        let mut rows = statement.query(params_from_iter(values)).map_err(failed)?;
        let mut scratch = Batch::new();
        let shares = std::iter::from_fn(|| {
            let row = match rows.next() {
                Ok(row) => row?,
                Err(error) => return Some(Err(failed(error))),
            };
            Some((self.source.share)(counter, row, &mut scratch).and_then(|share| match share {
                Some((key, _)) if key != read_key(counter, row, key_at)? => {
                    Err(Error::source(counter, Some(&key), "the source lists the row under another key than its tally"))
                }
                share => Ok(share),
            }))
        });
        sum_by_key(counter, Bound::Unbounded, limit, shares)
    }

    /// The sum of one key's rows.
    fn recount_one(&self, conn: &Connection, key: &KeyBuf) -> Result<i64> {
        let values = sql::key_values(&self.counter, key)?;
        let sums = if self.source.by_tally {
            self.sums_by_tally(conn, &self.statements.rows_of_key, &values, 1)?
        } else {
            self.sums(conn, &self.statements.sum_of_key, &values).map_err(|error| match error {
                Failure::Known(error) => error,
                Failure::Sqlite(error) if overflowed(&error) => Error::overflow(&self.counter, key, "recount"),
                Failure::Sqlite(error) => failed(&doing("recounting", &self.counter), error),
            })?
        };
        Ok(sums.first().map_or(0, |sum| sum.total))
    }

    /// SQLite says that a sum left 64 bits, and not which: asks for each key of the page alone.
    #[cold]
    fn overflowing_key(&self, conn: &Connection, ask: &Ask, limit: usize, error: rusqlite::Error) -> Error {
        let mut after = ask.after.clone();
        for _ in 0..limit {
            let Ok(Some(key)) = self.key_behind(conn, after.as_ref()) else { break };
            if let Err(error) = self.recount_one(conn, &key) {
                return error;
            }
            after = Some(key);
        }
        failed(&doing("recounting", &self.counter), error)
    }

    fn key_behind(&self, conn: &Connection, after: Option<&KeyBuf>) -> Result<Option<KeyBuf>> {
        let values = after.map_or(Ok(Vec::new()), |after| sql::key_values(&self.counter, after))?;
        let text = if values.is_empty() { &self.statements.key_first } else { &self.statements.key_next };
        let read = || -> Result<Option<KeyBuf>, Failure> {
            let mut statement = conn.prepare(text)?;
            let mut rows = statement.query(params_from_iter(values))?;
            Ok(rows.next()?.map(|row| read_key(&self.counter, row, 0)).transpose()?)
        };
        read().map_err(|error| error.known(&self.counter))
    }

    /// Whether any row counts.
    fn is_empty(&self, conn: &Connection) -> Result<bool> {
        if self.source.by_tally {
            return Ok(self.sums_by_tally(conn, &self.statements.rows_first, &[], 1)?.is_empty());
        }
        let exists = conn.prepare(&self.statements.any).and_then(|mut any| any.exists(()));
        Ok(!exists.map_err(|error| failed(&doing("looking for rows", &self.counter), error))?)
    }

    /// Holds rows as SQL counts them against their `tally`.
    fn check_skew(&self, conn: &Connection, text: &str, mut values: Vec<Value<'_>>) -> Result<()> {
        values.push(Value::Integer(SAMPLE));
        let read = || -> Result<(), Failure> {
            let mut statement = conn.prepare_cached(text)?;
            let width = self.counter.parts().len();
            let key_at = statement.column_count() - width - 2;
            let mut rows = statement.query(params_from_iter(values))?;
            let mut scratch = Batch::new();
            while let Some(row) = rows.next()? {
                let tally = (self.source.share)(&self.counter, row, &mut scratch)?;
                let included: bool = row.get(key_at + width + 1)?;
                let amount: Cell = row.get(key_at + width)?;
                let has_key =
                    (key_at..key_at + width).all(|at| row.get_ref(at).is_ok_and(|part| part != ValueRef::Null));
                let sql = match amount {
                    _ if !included || !has_key => None,
                    Cell::Null | Cell::Integer(0) => None,
                    Cell::Integer(amount) => Some((read_key(&self.counter, row, key_at)?, amount)),
                    other => {
                        let key = read_key(&self.counter, row, key_at)?;
                        let reason = format!("a row's amount is {other:?}, not an integer");
                        return Err(Error::source(&self.counter, Some(&key), reason).into());
                    }
                };
                if tally != sql {
                    return Err(self.skew(tally.as_ref(), sql.as_ref()).into());
                }
            }
            Ok(())
        };
        read().map_err(|error| error.known(&self.counter))
    }

    fn skew(&self, tally: Option<&(KeyBuf, i64)>, sql: Option<&(KeyBuf, i64)>) -> Error {
        let key = tally.or(sql).map_or_else(String::new, |(key, _)| self.counter.show(key));
        let text = |share: Option<&(KeyBuf, i64)>| {
            share
                .map_or_else(|| "nothing".to_owned(), |(key, amount)| format!("{amount} at {}", self.counter.show(key)))
        };
        Error::Skew { counter: self.counter.name(), key, sql: text(sql), tally: text(tally) }
    }
}

impl Audit for SqliteAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    fn look(&mut self, ask: &Look) -> Result<Looked> {
        refuse_transaction(self.conn)?;
        let declared = self.declared(&ask.counter)?;
        if !declared.source.by_tally {
            for text in declared.statements.samples() {
                declared.check_skew(self.conn, text, Vec::new())?;
            }
        }
        let empty = declared.is_empty(self.conn)?;
        let totals =
            if empty { SqliteStore::new(self.conn, self.layout).count_non_zero(&ask.counter, ask.totals)? } else { 0 };
        Ok(Looked { empty, totals })
    }

    fn measure(&mut self, ask: &Ask) -> Result<Measured> {
        refuse_transaction(self.conn)?;
        let declared = self.declared(&ask.counter)?;
        // One deferred transaction: the first read fixes the snapshot that the second reads too.
        let snapshot = self.conn.unchecked_transaction();
        let snapshot = snapshot.map_err(|error| failed(&doing("measuring", &ask.counter), error))?;
        let recounts = declared.recounts(&snapshot, ask)?;
        let totals = SqliteStore::new(&snapshot, self.layout).page(
            ask.counter,
            ask.after.as_ref(),
            ask.keys.saturating_add(1),
        )?;
        drop(snapshot);
        merge(ask, recounts, totals)
    }

    fn mend(&mut self, ask: &Mend) -> Result<Mended> {
        refuse_transaction(self.conn)?;
        let declared = self.declared(&ask.counter)?;
        if !declared.source.by_tally {
            for key in ask.keys.iter().take(SAMPLED_KEYS) {
                let values = sql::key_values(&ask.counter, key)?;
                declared.check_skew(self.conn, &declared.statements.sample_of_key, values)?;
            }
        }
        let mut store = SqliteStore::new(self.conn, self.layout);
        let hold = Scope::open(self.conn)?;
        let mut corrected = 0;
        for key in &ask.keys {
            let truth = declared.recount_one(self.conn, key)?;
            let stored = store.read(ask.counter, std::slice::from_ref(key))?.first().copied().unwrap_or(0);
            let lacking = i128::from(truth) - i128::from(stored);
            if lacking != 0 {
                store.add(&ask.counter, key, lacking)?;
                corrected += 1;
            }
            if truth == 0 {
                store.remove_zero(&ask.counter, key)?;
            }
        }
        hold.commit()?;
        Ok(Mended { corrected })
    }
}

/// Either this crate's error, or SQLite's, whose meaning depends on who asked.
enum Failure {
    Known(Error),
    Sqlite(rusqlite::Error),
}

impl Failure {
    fn known(self, counter: &Def) -> Error {
        match self {
            Self::Known(error) => error,
            Self::Sqlite(error) => failed(&doing("reading the source", counter), error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Known(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn overflowed(error: &rusqlite::Error) -> bool {
    error.to_string().contains("integer overflow")
}

fn doing(what: &str, counter: &Def) -> String {
    format!("{what} of counter {}", counter.name())
}

fn refuse_transaction(conn: &Connection) -> Result<()> {
    if conn.is_autocommit() {
        return Ok(());
    }
    Err(Error::setting("connection", "it is inside a transaction; an audit needs one of its own"))
}
