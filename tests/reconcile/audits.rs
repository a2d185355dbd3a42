//! The cases of every store's audit, in memory and on SQLite.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use crate::support::audits::{self, Backend, RIGHT, Row, SCHEMA, Source, Totals, check, id, sql};
use crate::support::rollups::subjects::plant_in_memory;
use crate::support::world::World;
use keepcount::backend::CounterSpec;
use keepcount::reconcile::{
    GracePeriod, MemoryAudit, Reconciler, Report, SqliteAudit, SqliteRows, SystemRuntime, run,
};
use keepcount::{Batch, Counter, CounterId, Key, KeyBuf, MemoryStore, Result, SqliteStore, Store};
use rusqlite::Connection;

/// Next to no writers, with rows in key order; or next to writers, with rows in any order.
struct Memory {
    store: MemoryStore,
    rows: Vec<Row>,
    is_live: bool,
}

impl Memory {
    fn new(is_live: bool) -> Self {
        Self { store: MemoryStore::new(&SCHEMA), rows: Vec::new(), is_live }
    }
}

impl Backend for Memory {
    fn begin(&mut self, pending: bool) {
        let new = if pending { MemoryStore::pending_backfill } else { MemoryStore::new };
        (self.store, self.rows) = (new(&SCHEMA), Vec::new());
    }

    fn write(&mut self, rows: &[Row]) {
        self.rows.extend_from_slice(rows);
    }

    fn hook(&mut self, batch: &mut Batch) {
        if self.is_live {
            self.store.begin(batch).unwrap().commit().unwrap();
        } else {
            self.store.apply(batch).unwrap();
        }
    }

    fn prune(&mut self, cutoff: i64) {
        self.store.prune(audits::SETLIST_DAYS, cutoff).unwrap();
    }

    fn plant(&mut self, counter: CounterId, key: &str, total: i64) {
        let key = counter.parse_key(key).unwrap();
        plant_in_memory(&mut self.store, &SCHEMA, counter.name(), &key, total);
    }

    fn stored(&mut self) -> (Totals, BTreeSet<&'static str>) {
        let snapshot = serde_json::to_value(self.store.snapshot()).unwrap();
        let (mut totals, mut unready) = (Totals::new(), BTreeSet::new());
        for counter in snapshot["counters"].as_array().unwrap() {
            let id = id(counter["name"].as_str().unwrap());
            unready.extend((counter["ready"] == false).then(|| id.name()));
            for total in counter["totals"].as_array().unwrap() {
                let key: KeyBuf = serde_json::from_value(total[0].clone()).unwrap();
                totals.insert((id.name(), id.show(&key)), total[1].as_i64().unwrap().into());
            }
        }
        (totals, unready)
    }

    fn run(&mut self, reconciler: &mut Reconciler, _: Source) -> Result<Report> {
        let rows = &self.rows;
        if self.is_live {
            let grace_period = GracePeriod::after(Duration::from_secs(1));
            let mut audit = MemoryAudit::live(&self.store, grace_period, SystemRuntime::new());
            let counters = SCHEMA.counters().iter().filter(|spec| spec.rollup().is_none());
            let counters: Vec<_> = counters.map(CounterSpec::id).collect();
            audit.rows(&counters, || rows.iter().rev()).unwrap();
            return run(reconciler, &mut audit, &mut World::default());
        }
        let mut audit = MemoryAudit::new(&mut self.store);
        add_in_order(&mut audit, audits::SETLIST_STARS, rows);
        add_in_order(&mut audit, audits::SETLIST_DAYS, rows);
        add_in_order(&mut audit, audits::SONG_DAYS, rows);
        add_in_order(&mut audit, audits::ALL_STARS, rows);
        add_in_order(&mut audit, audits::SETLIST_SHOW, rows);
        add_in_order(&mut audit, audits::SHOW_ARTIST, rows);
        add_in_order(&mut audit, audits::SHOW_TOUR, rows);
        run(reconciler, &mut audit, &mut World::default())
    }
}

fn add_in_order<K: Key>(audit: &mut MemoryAudit<'_>, counter: Counter<K>, rows: &[Row]) {
    let mut rows = rows.to_vec();
    rows.sort_by_cached_key(|row| {
        let mut batch = Batch::new();
        batch.insert(row);
        let mut deltas = batch.deltas();
        deltas.find(|(id, ..)| *id == counter.id()).map(|(_, key, _)| key.clone())
    });
    audit.add(counter, move |_: Bound<K>| rows.clone()).unwrap();
}

struct Sqlite<'a> {
    conn: &'a Connection,
    audit: SqliteAudit<'a>,
    by_tally: bool,
    source: Source,
}

impl Sqlite<'_> {
    fn execute(&self, statements: &str) {
        self.conn.execute_batch(statements).unwrap();
    }

    fn count_by(&mut self, source: Source) {
        for rows in sql::sources!(SqliteRows, get, self.by_tally, source) {
            self.audit.add(rows).unwrap();
        }
        self.source = source;
    }
}

impl Backend for Sqlite<'_> {
    fn begin(&mut self, pending: bool) {
        self.execute(&sql::empty(pending));
    }

    fn write(&mut self, rows: &[Row]) {
        self.execute(&sql::insert(rows));
    }

    fn hook(&mut self, batch: &mut Batch) {
        SqliteStore::new(self.conn, &SCHEMA).apply(batch).unwrap();
    }

    fn prune(&mut self, cutoff: i64) {
        let mut store = SqliteStore::new(self.conn, &SCHEMA);
        store.prune(audits::SETLIST_DAYS, cutoff).unwrap();
    }

    fn plant(&mut self, counter: CounterId, key: &str, total: i64) {
        self.execute(&sql::plant(counter, key, total));
    }

    fn stored(&mut self) -> (Totals, BTreeSet<&'static str>) {
        let mut unready = self.conn.prepare_cached(sql::UNREADY).unwrap();
        let unready = unready.query_map((), |row| row.get::<_, String>(0)).unwrap();
        let mut totals = self.conn.prepare_cached(&sql::stored()).unwrap();
        let totals = totals.query_map((), |row| {
            let (counter, total): (String, i64) = (row.get(0)?, row.get(2)?);
            Ok(((id(&counter).name(), row.get(1)?), total.into()))
        });
        (
            totals.unwrap().collect::<rusqlite::Result<_>>().unwrap(),
            unready.map(|name| id(&name.unwrap()).name()).collect(),
        )
    }

    fn run(&mut self, reconciler: &mut Reconciler, source: Source) -> Result<Report> {
        if self.source != source {
            self.count_by(source);
        }
        run(reconciler, &mut self.audit, &mut World::default())
    }

    fn knows_parents(&self) -> bool {
        true
    }

    fn counts_by_sql(&self) -> bool {
        !self.by_tally
    }
}

fn check_on_sqlite(by_tally: bool, name: &str) {
    let conn = Connection::open_in_memory().unwrap();
    conn.set_prepared_statement_cache_capacity(512);
    conn.execute_batch(&sql::TABLES.replace("BYTES", "")).unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    let audit = SqliteAudit::new(&conn, &SCHEMA).unwrap();
    let mut sqlite = Sqlite { conn: &conn, audit, by_tally, source: RIGHT };
    sqlite.count_by(RIGHT);
    check(&mut sqlite, name);
}

#[test]
fn cases_in_memory_match_the_naive_recount() {
    check(&mut Memory::new(false), "memory");
}

#[test]
fn cases_in_memory_live_match_the_naive_recount() {
    check(&mut Memory::new(true), "memory, live");
}

#[test]
fn cases_on_sqlite_by_columns_match_the_naive_recount() {
    check_on_sqlite(false, "SQLite by columns");
}

#[test]
fn cases_on_sqlite_by_tally_match_the_naive_recount() {
    check_on_sqlite(true, "SQLite by tally");
}
