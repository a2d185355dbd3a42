//! The two stores with their rows, and an application's write paths.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use keepcount::backend::RollupUpdate;
use keepcount::reconcile::{
    Audit, Columns, MemoryAudit, Reconciler, Report, Runtime, SqliteAudit, SqliteRows, run,
};
use keepcount::sql::{Dialect, Value};
use keepcount::{Batch, KeyBuf, MemoryStore, Schema, Snapshot, SqliteStore, Store};
use rusqlite::types::Value as Cell;
use rusqlite::{Connection, params, params_from_iter};

use super::{
    Change, Name, Part, Row, Rows, SCHEMA, SETLIST_DAYS, SETLIST_SHOW, SETLIST_VOTES, SHOW_ARTIST,
    Totals, totals_of,
};

/// A store with its rows, and an application's write paths.
pub trait Subject {
    fn new() -> Self;
    fn begin(&mut self);
    /// Applies the batch, then ends the transaction.
    fn end(&mut self, batch: &Batch, commit: bool);
    /// Applies a savepoint's batch inside it, if the store supports that. Returns whether it did.
    fn apply_inside(&mut self, batch: &Batch) -> bool;
    fn savepoint(&mut self);
    fn leave_savepoint(&mut self, release: bool);
    /// Makes a change. Returns the old rows and the new ones, as the write itself returns them.
    fn change(&mut self, change: &Change) -> (Vec<Row>, Vec<Row>);
    /// Sets a total and nothing else.
    fn plant(&mut self, name: &Name, total: Option<i64>);
    fn totals(&mut self) -> Totals;
    fn reconcile(&mut self, run: &mut Reconciler, by_tally: bool) -> Report;

    fn write(&mut self, changes: &[Change], batch: &mut Batch) {
        for change in changes {
            let (old, new) = self.change(change);
            batch.update(&old, &new);
        }
    }
}

/// A clock that stands still.
pub struct Still;

impl Runtime for Still {
    fn now(&mut self) -> Duration {
        Duration::ZERO
    }

    fn wait(&mut self, _: Duration, reason: &str) {
        panic!("unexpected wait: {reason}");
    }
}

fn go(reconciler: &mut Reconciler, audit: &mut impl Audit) -> Report {
    run(reconciler, audit, &mut Still).unwrap()
}

pub struct Memory {
    pub store: MemoryStore,
    pub rows: Rows,
    saved: Vec<Rows>,
}

impl Subject for Memory {
    fn new() -> Self {
        Self { store: MemoryStore::new(&SCHEMA), rows: Rows::default(), saved: Vec::new() }
    }

    fn begin(&mut self) {
        self.saved.push(self.rows.clone());
    }

    fn end(&mut self, batch: &Batch, commit: bool) {
        if commit {
            self.store.apply(&mut batch.clone()).unwrap();
        }
        self.leave_savepoint(commit);
    }

    fn apply_inside(&mut self, _: &Batch) -> bool {
        false
    }

    fn savepoint(&mut self) {
        self.begin();
    }

    fn leave_savepoint(&mut self, release: bool) {
        let saved = self.saved.pop().unwrap();
        if !release {
            self.rows = saved;
        }
    }

    fn change(&mut self, change: &Change) -> (Vec<Row>, Vec<Row>) {
        self.rows.change(change)
    }

    fn plant(&mut self, name: &Name, total: Option<i64>) {
        plant_in_memory(&mut self.store, &SCHEMA, name.0, &name.key(), total.unwrap_or(0));
    }

    fn totals(&mut self) -> Totals {
        totals_of(&mut self.store)
    }

    fn reconcile(&mut self, reconciler: &mut Reconciler, _: bool) -> Report {
        let mut audit = MemoryAudit::new(&mut self.store);
        audit.add(SETLIST_VOTES, in_order(&self.rows.votes)).unwrap();
        audit.add(SETLIST_DAYS, in_order(&self.rows.votes)).unwrap();
        audit.add(SETLIST_SHOW, in_order(&self.rows.setlists)).unwrap();
        audit.add(SHOW_ARTIST, in_order(&self.rows.billings)).unwrap();
        go(reconciler, &mut audit)
    }
}

/// All rows in key order, at each call.
fn in_order<K>(rows: &BTreeMap<i64, Row>) -> impl FnMut(Bound<K>) -> Vec<Row> + use<K> {
    let key = |row: &Row| match row.clone() {
        Row::Vote { setlist, day, .. } => (setlist, String::new(), day.map(i64::from)),
        Row::Setlist { id, show } => (Some(id), show.unwrap_or_default(), None),
        Row::Billing { show, artist, .. } => (None, show, artist.map(i64::from)),
    };
    let mut rows: Vec<Row> = rows.values().cloned().collect();
    rows.sort_by_key(key);
    move |_| rows.clone()
}

/// Sets one total of a memory store and nothing else, by editing a snapshot's JSON.
pub fn plant_in_memory(
    store: &mut MemoryStore,
    schema: &Schema,
    counter: &str,
    key: &KeyBuf,
    total: i64,
) {
    let mut json = serde_json::to_value(store.snapshot()).unwrap();
    let key = serde_json::to_value(key).unwrap();
    let counters = json["counters"].as_array_mut().unwrap();
    let counter = counters.iter_mut().find(|known| known["name"] == counter).unwrap();
    let totals = counter["totals"].as_array_mut().unwrap();
    totals.retain(|entry| entry[0] != key);
    if total != 0 {
        totals.push(serde_json::json!([key, total]));
    }
    *store =
        MemoryStore::restore(schema, &serde_json::from_value::<Snapshot>(json).unwrap()).unwrap();
}

pub const TABLES: &str = "
    CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER, weight INTEGER NOT NULL, day INTEGER);
    CREATE INDEX votes_by_setlist ON votes (setlist, day);
    CREATE TABLE setlists (id INTEGER PRIMARY KEY, show TEXT);
    CREATE INDEX setlists_by_id ON setlists (id, show);
    CREATE TABLE billings (id INTEGER PRIMARY KEY, show TEXT NOT NULL, artist INTEGER, share INTEGER NOT NULL);
    CREATE INDEX billings_by_show ON billings (show, artist);
";

pub fn read_vote(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Vote { setlist: row.get(0)?, weight: row.get(1)?, day: row.get(2)? })
}

pub fn read_setlist(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Setlist { id: row.get(0)?, show: row.get(1)? })
}

pub fn read_billing(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Billing { show: row.get(0)?, artist: row.get(1)?, share: row.get(2)? })
}

pub const VOTE: &str = "setlist, weight, day";
pub const SETLIST: &str = "id, show";
pub const BILLING: &str = "show, artist, share";

/// An audit with every source, summed by SQL or by the tally.
pub fn audit(conn: &Connection, by_tally: bool) -> SqliteAudit<'_> {
    let counted = |columns: Columns| if by_tally { columns.by_tally() } else { columns };
    let votes = SqliteRows::of("votes", |row| Ok(read_vote(row)?))
        .columns(VOTE)
        .key(SETLIST_VOTES, counted(Columns::of(["setlist"]).sum("weight")))
        .key(SETLIST_DAYS, counted(Columns::of(["setlist", "day"]).sum("weight")));
    let setlists = SqliteRows::of("setlists", |row| Ok(read_setlist(row)?))
        .columns(SETLIST)
        .key(SETLIST_SHOW, counted(Columns::of(["id", "show"]).count()));
    let billings = SqliteRows::of("billings", |row| Ok(read_billing(row)?))
        .columns(BILLING)
        .key(SHOW_ARTIST, counted(Columns::of(["show", "artist"]).sum("share")));
    let mut audit = SqliteAudit::new(conn, &SCHEMA).unwrap();
    for rows in [votes, setlists, billings] {
        audit.add(rows).unwrap();
    }
    audit
}

pub struct Sqlite(pub Connection);

impl Sqlite {
    fn run(&self, text: &str) {
        self.0.execute_batch(text).unwrap();
    }

    pub fn store(&self) -> SqliteStore<'_> {
        SqliteStore::new(&self.0, &SCHEMA)
    }
}

/// The rows that a query gives.
pub fn rows_of(conn: &Connection, text: &str, values: impl rusqlite::Params) -> Vec<Row> {
    let read = if text.contains("billings") {
        read_billing
    } else if text.contains("FROM votes") {
        read_vote
    } else {
        read_setlist
    };
    let mut statement = conn.prepare_cached(text).unwrap();
    statement.query_map(values, read).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

impl Subject for Sqlite {
    fn new() -> Self {
        let conn = Connection::open_in_memory().unwrap();
        conn.set_prepared_statement_cache_capacity(128);
        conn.execute_batch(TABLES).unwrap();
        SqliteStore::new(&conn, &SCHEMA).create().unwrap();
        Self(conn)
    }

    fn begin(&mut self) {
        self.run("BEGIN IMMEDIATE");
    }

    fn end(&mut self, batch: &Batch, commit: bool) {
        self.store().apply(&mut batch.clone()).unwrap();
        self.run(if commit { "COMMIT" } else { "ROLLBACK" });
    }

    fn apply_inside(&mut self, batch: &Batch) -> bool {
        self.store().apply(&mut batch.clone()).unwrap();
        true
    }

    fn savepoint(&mut self) {
        self.run("SAVEPOINT inner");
    }

    fn leave_savepoint(&mut self, release: bool) {
        self.run(if release { "RELEASE inner" } else { "ROLLBACK TO inner; RELEASE inner" });
    }

    fn change(&mut self, change: &Change) -> (Vec<Row>, Vec<Row>) {
        change_in_sqlite(&self.0, change)
    }

    fn plant(&mut self, name: &Name, total: Option<i64>) {
        let keys = if name.1.len() == 1 { "key" } else { "key_1, key_2" };
        let placeholders = if name.1.len() == 1 { "?1" } else { "?1, ?2" };
        let table = name.0.replace('.', "_");
        let text = match total {
            None => format!("DELETE FROM {table} WHERE ({keys}) = ({placeholders})"),
            Some(total) => {
                format!("INSERT OR REPLACE INTO {table} VALUES ({placeholders}, {total})")
            }
        };
        let values = name.1.iter().map(|part| match part {
            Part::Int(value) => rusqlite::types::Value::Integer(*value),
            Part::Text(text) => rusqlite::types::Value::Text(text.clone()),
        });
        self.0.execute(&text, rusqlite::params_from_iter(values)).unwrap();
    }

    fn totals(&mut self) -> Totals {
        totals_of(&mut self.store())
    }

    fn reconcile(&mut self, reconciler: &mut Reconciler, by_tally: bool) -> Report {
        go(reconciler, &mut audit(&self.0, by_tally))
    }
}

/// The same as [`Rows::change`], in SQL.
pub fn change_in_sqlite(conn: &Connection, change: &Change) -> (Vec<Row>, Vec<Row>) {
    let put = |select: &str, insert: &str, id: i64, values: &[&dyn rusqlite::ToSql], row: &Row| {
        let old = rows_of(conn, select, [id]);
        conn.prepare_cached(insert).unwrap().execute(values).unwrap();
        (old, vec![row.clone()])
    };
    let moved =
        |select: &str, update: &str, from: &dyn rusqlite::ToSql, to: &dyn rusqlite::ToSql| {
            let old = rows_of(conn, select, [from]);
            conn.prepare_cached(update).unwrap().execute([from, to]).unwrap();
            old
        };
    match change {
        Change::Put(id, row @ Row::Vote { setlist, weight, day }) => put(
            "SELECT setlist, weight, day FROM votes WHERE id = ?1",
            "INSERT OR REPLACE INTO votes VALUES (?1, ?2, ?3, ?4)",
            *id,
            params![id, setlist, weight, day],
            row,
        ),
        Change::Put(id, row @ Row::Setlist { show, .. }) => put(
            "SELECT id, show FROM setlists WHERE id = ?1",
            "INSERT OR REPLACE INTO setlists VALUES (?1, ?2)",
            *id,
            params![id, show],
            row,
        ),
        Change::Put(id, row @ Row::Billing { show, artist, share }) => put(
            "SELECT show, artist, share FROM billings WHERE id = ?1",
            "INSERT OR REPLACE INTO billings VALUES (?1, ?2, ?3, ?4)",
            *id,
            params![id, show, artist, share],
            row,
        ),
        Change::DropVote(id) => (
            rows_of(conn, "DELETE FROM votes WHERE id = ?1 RETURNING setlist, weight, day", [id]),
            vec![],
        ),
        Change::DropBilling(id) => (
            rows_of(conn, "DELETE FROM billings WHERE id = ?1 RETURNING show, artist, share", [id]),
            vec![],
        ),
        Change::DropSetlist(id) => {
            let mut old = rows_of(
                conn,
                "DELETE FROM votes WHERE setlist = ?1 RETURNING setlist, weight, day",
                [id],
            );
            old.extend(rows_of(
                conn,
                "DELETE FROM setlists WHERE id = ?1 RETURNING id, show",
                [id],
            ));
            (old, vec![])
        }
        Change::DropShow(show) => {
            let mut old = rows_of(
                conn,
                "DELETE FROM billings WHERE show = ?1 RETURNING show, artist, share",
                [show],
            );
            let votes = "DELETE FROM votes WHERE setlist IN (SELECT id FROM setlists WHERE show = ?1) RETURNING setlist, weight, day";
            old.extend(rows_of(conn, votes, [show]));
            old.extend(rows_of(
                conn,
                "DELETE FROM setlists WHERE show = ?1 RETURNING id, show",
                [show],
            ));
            (old, vec![])
        }
        Change::DropArtist(artist) => {
            let mut old = Vec::new();
            for row in rows_of(
                conn,
                "SELECT show, artist, share FROM billings WHERE artist = ?1",
                [artist],
            ) {
                let Row::Billing { show, .. } = row else { continue };
                old.extend(change_in_sqlite(conn, &Change::DropShow(show)).0);
            }
            (old, vec![])
        }
        Change::MoveVotes(from, to) => {
            let select = "SELECT setlist, weight, day FROM votes WHERE setlist = ?1";
            let old = moved(select, "UPDATE votes SET setlist = ?2 WHERE setlist = ?1", from, to);
            let mut new = old.clone();
            for row in &mut new {
                if let Row::Vote { setlist, .. } = row {
                    *setlist = *to;
                }
            }
            (old, new)
        }
        Change::MoveSetlists(from, to) => {
            let select = "SELECT id, show FROM setlists WHERE show = ?1";
            let old = moved(select, "UPDATE setlists SET show = ?2 WHERE show = ?1", from, to);
            let mut new = old.clone();
            for row in &mut new {
                if let Row::Setlist { show, .. } = row {
                    show.clone_from(to);
                }
            }
            (old, new)
        }
        Change::MoveBillings(from, to) => {
            let select = "SELECT show, artist, share FROM billings WHERE artist = ?1";
            let old = moved(select, "UPDATE billings SET artist = ?2 WHERE artist = ?1", from, to);
            let mut new = old.clone();
            for row in &mut new {
                if let Row::Billing { artist, .. } = row {
                    *artist = *to;
                }
            }
            (old, new)
        }
    }
}

fn cell(value: &Value<'_>) -> Cell {
    match value {
        Value::Integer(value) => Cell::Integer(*value),
        Value::Text(text) => Cell::Text(text.clone().into_owned()),
        Value::Blob(bytes) | Value::Uuid(bytes) => Cell::Blob(bytes.to_vec()),
        arrays => panic!("{arrays:?} in SQLite"),
    }
}

/// Applies a batch as an application does that uses another library for the database.
pub fn update_by_hand(conn: &Connection, batch: &Batch) {
    let mut update = RollupUpdate::new(&SCHEMA, batch).unwrap();
    while let Some(request) = update.next().unwrap() {
        let query = request.query(Dialect::Sqlite, &SCHEMA).unwrap();
        let mut statement = conn.prepare(&query.text).unwrap();
        let mut rows = statement.query(params_from_iter(query.values.iter().map(cell))).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (key, total) = match request.counter.name() {
                "setlist.votes" => (KeyBuf::of::<i64>(row.get::<_, i64>(0).unwrap()), row.get(1)),
                "show.votes" => {
                    (KeyBuf::of::<String>(row.get::<_, String>(0).unwrap()), row.get(1))
                }
                "setlist.days" => {
                    let key: (i64, i8) = (row.get(0).unwrap(), row.get(1).unwrap());
                    (KeyBuf::of::<(i64, i8)>(key), row.get(2))
                }
                "show.days" => {
                    let key: (String, i8) = (row.get(0).unwrap(), row.get(1).unwrap());
                    (KeyBuf::of::<(String, i8)>(key), row.get(2))
                }
                "setlist.show" => {
                    let key: (i64, String) = (row.get(0).unwrap(), row.get(1).unwrap());
                    (KeyBuf::of::<(i64, String)>(key), row.get(2))
                }
                _ => {
                    let key: (String, i16) = (row.get(0).unwrap(), row.get(1).unwrap());
                    (KeyBuf::of::<(String, i16)>(key), row.get(2))
                }
            };
            update.take(&key, total.unwrap()).unwrap();
        }
    }
    for statement in update.statements(Dialect::Sqlite).unwrap() {
        let mut prepared = conn.prepare(&statement.text).unwrap();
        for row in statement.rows() {
            prepared.execute(params_from_iter(row.iter().map(cell))).unwrap();
        }
    }
}

/// Every row of every table of totals, with those of 0.
pub fn dump(conn: &Connection) -> Vec<(&'static str, Vec<Cell>)> {
    let mut all = Vec::new();
    for spec in SCHEMA.counters() {
        let mut statement = conn.prepare(&format!("SELECT * FROM {}", spec.table_name())).unwrap();
        let width = statement.column_count();
        let rows =
            statement.query_map((), |row| (0..width).map(|at| row.get(at)).collect()).unwrap();
        all.extend(rows.map(|row| (spec.id().name(), row.unwrap())));
    }
    all
}
