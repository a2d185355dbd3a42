//! What the tests of offsets share: two schemas, events of streams, the application's rows of these
//! events, and the expected totals.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepcount::{
    Applied, Batch, Counter, Leaderboard, MemoryStore, Schema, SqliteStore, Store, StreamRange,
};
use rusqlite::{Connection, TransactionBehavior};
use tempfile::TempDir;

pub use super::random::Random;

pub const VOTES: Counter<i64> = Counter::new("show.votes");
pub const SUM: Counter<String> = Counter::new("stream.sum");
pub const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("show.artist");
pub const ARTIST: Counter<i64> = Counter::new("artist.votes").sum_of(VOTES, MEMBERSHIP);
pub const LEADERBOARD: Leaderboard<i64> =
    Leaderboard::new("artist.board", [ARTIST]).by(|[total]| Some(total));
/// `PLAIN` has no rollups and no leaderboards. `RISING` has both, so stores take another path for
/// it.
pub const PLAIN: Schema = Schema::new(&[VOTES.table(), SUM.table(), MEMBERSHIP.table()]);
pub const RISING: Schema =
    Schema::new(&[VOTES.table(), SUM.table(), MEMBERSHIP.table(), ARTIST.table()])
        .leaderboards(&[LEADERBOARD.id()]);
pub const SCHEMAS: [&Schema; 2] = [&PLAIN, &RISING];

const SHOWS: i64 = 13;

/// Adds the totals of these events of a stream. `SUM` adds up their numbers, so that an event
/// applied twice instead of another shows too.
fn add_events(batch: &mut Batch, stream: &str, first: u64, last: u64) {
    for event in first..=last {
        let (number, show) = (event.cast_signed(), event.cast_signed() % SHOWS);
        batch.add(VOTES, show, 1);
        batch.add(SUM, stream, number);
        if event % 31 == 0 {
            batch.add(MEMBERSHIP, (show, number % 3), 1);
        }
    }
}

pub fn events(stream: &str, first: u64, last: u64) -> Batch {
    let mut batch = Batch::new();
    add_events(&mut batch, stream, first, last);
    batch
}

pub fn stream_range(stream: &str, first: u64, last: u64) -> StreamRange<'_> {
    StreamRange::new(stream, first, last).unwrap()
}

/// Fails unless the totals are those of each stream's events up to the given one, each counted
/// once.
#[track_caller]
pub fn assert_applied(mut store: impl Store, schema: &Schema, streams: &[(&str, u64)]) {
    let mut all = Batch::new();
    for (stream, last) in streams {
        assert_eq!(store.offset(stream).unwrap(), *last, "the offset of {stream}");
        add_events(&mut all, stream, 1, *last);
    }
    let once = MemoryStore::new(schema);
    once.apply(&mut all).unwrap();
    assert_eq!(store.totals(VOTES).unwrap(), once.totals(VOTES).unwrap());
    assert_eq!(store.totals(SUM).unwrap(), once.totals(SUM).unwrap());
    assert_eq!(store.totals(MEMBERSHIP).unwrap(), once.totals(MEMBERSHIP).unwrap());
    if !schema.leaderboard_ids().is_empty() {
        assert_eq!(store.totals(ARTIST).unwrap(), once.totals(ARTIST).unwrap());
    }
}

/// Like [`assert_applied`], for SQLite. The leaderboard must equal the totals too.
#[track_caller]
pub fn assert_applied_in(conn: &Connection, schema: &Schema, streams: &[(&str, u64)]) {
    let mut store = SqliteStore::new(conn, schema);
    assert_applied(&mut store, schema, streams);
    if !schema.leaderboard_ids().is_empty() {
        let mut scores = store.totals(ARTIST).unwrap();
        scores.sort_by_key(|(key, score)| (-score, *key));
        let top = store
            .top(LEADERBOARD, 10)
            .unwrap()
            .into_iter()
            .map(|ranked| (ranked.key, ranked.score));
        assert_eq!(top.collect::<Vec<_>>(), scores);
    }
}

fn prepare(conn: &Connection, schema: &Schema) {
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch("CREATE TABLE votes (stream TEXT NOT NULL, event INTEGER NOT NULL)")
        .unwrap();
    SqliteStore::new(conn, schema).create().unwrap();
}

pub fn database(schema: &Schema) -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    prepare(&conn, schema);
    conn
}

pub fn write_rows(conn: &Connection, stream: &str, first: u64, last: u64) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached("INSERT INTO votes VALUES (?1, ?2)")?;
    (first..=last).try_for_each(|event| insert.execute((stream, event.cast_signed())).map(drop))
}

/// The application's rows of each stream: how many there are, and the highest event.
pub fn rows(conn: &Connection) -> Vec<(String, i64, i64)> {
    let mut all = conn
        .prepare("SELECT stream, count(*), max(event) FROM votes GROUP BY stream ORDER BY stream")
        .unwrap();
    let rows = all.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

pub fn stored_offset(conn: &Connection, stream: &str) -> u64 {
    SqliteStore::new(conn, &PLAIN).offset(stream).unwrap()
}

/// Writes the rows and totals of these events in one transaction of the application. Rolls it back
/// if the store skips the events.
pub fn deliver(
    conn: &mut Connection,
    schema: &Schema,
    stream: &str,
    first: u64,
    last: u64,
) -> Applied {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    write_rows(&tx, stream, first, last).unwrap();
    let applied = SqliteStore::new(&tx, schema)
        .apply_idempotent(&mut events(stream, first, last), &stream_range(stream, first, last))
        .unwrap();
    if applied.skipped {
        tx.rollback().unwrap();
    } else {
        tx.commit().unwrap();
    }
    applied
}

pub struct File {
    _dir: TempDir,
    pub path: PathBuf,
}

impl File {
    pub fn new(schema: &Schema) -> Self {
        let dir = crate::support::temp_dir();
        let file = Self { path: dir.path().join("app.db"), _dir: dir };
        let conn = open(&file.path, Duration::ZERO);
        conn.query_row("PRAGMA journal_mode = WAL", (), |_| Ok(())).unwrap();
        prepare(&conn, schema);
        file
    }
}

pub fn open(path: &Path, wait: Duration) -> Connection {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(wait).unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch("PRAGMA synchronous = OFF").unwrap();
    conn
}
