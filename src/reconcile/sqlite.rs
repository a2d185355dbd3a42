//! The audit of a SQLite database, live: rows and totals in one snapshot, mends under the write lock.

mod declared;
mod source;
mod statements;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use self::declared::Declared;
pub use self::source::{Source, TypedSource};
use super::audit::{Ask, Audit, Look, Looked, Measured, Mend, Mended, merge};
use crate::counter::{Counter, Def};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::layout::Layout;
use crate::store::sqlite::{Scope, failed_on};
use crate::store::{SqliteStore, Store};

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
            self.conn.prepare(text).map_err(|error| failed_on("preparing the source", &counter, error))?;
        }
        if let Some(index) = source.target.wanted_index(&counter) {
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

    /// The counters that have a source, for [`Reconciler::scoped`](super::Reconciler::scoped).
    #[must_use]
    pub fn counters(&self) -> Vec<Def> {
        self.sources.iter().map(|declared| declared.counter).collect()
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
        plan().map_err(|error| failed_on("planning the source", counter, error))
    }

    fn declared(&self, counter: &Def) -> Result<&Declared<'a>> {
        let found = self.sources.iter().find(|declared| declared.counter == *counter);
        found.ok_or_else(|| Error::source(counter, None, "there is none: add it to the audit"))
    }
}

impl Audit for SqliteAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    fn look(&mut self, ask: &Look) -> Result<Looked> {
        refuse_transaction(self.conn)?;
        let declared = self.declared(&ask.counter)?;
        declared.check_sample(self.conn)?;
        let empty = declared.is_empty(self.conn)?;
        let totals =
            if empty { SqliteStore::new(self.conn, self.layout).count_non_zero(&ask.counter, ask.totals)? } else { 0 };
        Ok(Looked { empty, totals })
    }

    fn measure(&mut self, ask: &Ask) -> Result<Measured> {
        refuse_transaction(self.conn)?;
        let declared = self.declared(&ask.counter)?;
        // The first read fixes the snapshot that the second reads too; deferred, whatever the connection's default: no lock is taken.
        let snapshot = Transaction::new_unchecked(self.conn, TransactionBehavior::Deferred);
        let snapshot = snapshot.map_err(|error| failed_on("measuring", &ask.counter, error))?;
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
        declared.check_keys(self.conn, &ask.keys)?;
        let mut store = SqliteStore::new(self.conn, self.layout);
        let hold = Scope::open(self.conn, format!("mending totals of counter {}", ask.counter.name()))?;
        let mut corrected = 0;
        for (key, stored) in ask.keys.iter().zip(store.read(ask.counter, &ask.keys)?) {
            let truth = declared.recount_one(self.conn, key)?;
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

fn refuse_transaction(conn: &Connection) -> Result<()> {
    if conn.is_autocommit() {
        return Ok(());
    }
    Err(Error::setting("connection", "it is inside a transaction; an audit needs one of its own"))
}
