//! A site whose processes are killed and whose disk fails: votes for setlists of shows of artists,
//! the events that write their rows, their counters at three levels, and a recount of everything in
//! plain SQL that is independent of the crate.

pub mod child;
pub mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use super::random::Random;
use child::{ChildProgress, Phase};
use keepcount::backend::CounterSpec;
use keepcount::reconcile::{
    Columns, Mode, Options, Reconciler, Report, SqliteAudit, SqliteRows, SystemRuntime, run,
};
use keepcount::{
    Batch, Counter, CounterId, Leaderboard, Record, Schema, SqliteStore, StreamRange, Tally,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};
use tempfile::TempDir;
use writer::{FEED, ROWS, progress_file};

pub const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
pub const SETLIST_DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
pub const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
pub const SHOW_ARTIST: Counter<(i64, i64)> = Counter::new("show.artist");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
const SHOW_DAYS: Counter<(i64, i64)> =
    Counter::new("show.days").sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
/// Totals without rows: the sum of the numbers of a feed's events.
pub const FEED_SUM: Counter<i64> = Counter::new("feed.sum");
pub const SHOWS: Leaderboard<i64> =
    Leaderboard::new("show.board", [SHOW_VOTES]).by(|[votes]| (votes > 0).then_some(votes));

pub const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_ARTIST.table(),
    SHOW_VOTES.table(),
    SHOW_DAYS.table().prunable(),
    ARTIST_VOTES.table(),
    FEED_SUM.table(),
])
.leaderboards(&[SHOWS.id()]);

const TABLES: &str = "
    CREATE TABLE votes (id INTEGER PRIMARY KEY, setlist INTEGER NOT NULL, stars INTEGER NOT NULL, day INTEGER NOT NULL);
    CREATE INDEX votes_in_order ON votes (setlist, day, stars);
    CREATE TABLE setlists (id INTEGER PRIMARY KEY, show INTEGER NOT NULL);
    CREATE INDEX setlists_in_order ON setlists (id, show);
    CREATE TABLE shows (id INTEGER PRIMARY KEY, artist INTEGER NOT NULL);
    CREATE INDEX shows_in_order ON shows (id, artist);
    CREATE TABLE events (stream TEXT NOT NULL, number INTEGER NOT NULL);";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Vote { setlist: i64, stars: i64, day: i64 },
    Setlist { id: i64, show: i64 },
    Show { id: i64, artist: i64 },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match *self {
            Self::Vote { setlist, stars, day } => {
                to.add(SETLIST_VOTES, setlist, stars);
                to.add(SETLIST_DAYS, (setlist, day), stars);
            }
            Self::Setlist { id, show } => to.add(SETLIST_SHOW, (id, show), 1),
            Self::Show { id, artist } => to.add(SHOW_ARTIST, (id, artist), 1),
        }
    }
}

fn read_vote(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Vote { setlist: row.get(0)?, stars: row.get(1)?, day: row.get(2)? })
}

fn read_setlist(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Setlist { id: row.get(0)?, show: row.get(1)? })
}

fn read_show(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row::Show { id: row.get(0)?, artist: row.get(1)? })
}

pub fn audit(conn: &Connection) -> keepcount::Result<SqliteAudit<'_>> {
    let votes = SqliteRows::of("votes", |row| Ok(read_vote(row)?))
        .columns("setlist, stars, day")
        .key(SETLIST_VOTES, Columns::of(["setlist"]).sum("stars"))
        .key(SETLIST_DAYS, Columns::of(["setlist", "day"]).sum("stars"));
    let setlists = SqliteRows::of("setlists", |row| Ok(read_setlist(row)?)).columns("id, show");
    let shows = SqliteRows::of("shows", |row| Ok(read_show(row)?)).columns("id, artist");
    let mut audit = SqliteAudit::new(conn, &SCHEMA)?;
    audit.add(votes)?;
    audit.add(setlists.key(SETLIST_SHOW, Columns::of(["id", "show"]).count()))?;
    audit.add(shows.key(SHOW_ARTIST, Columns::of(["id", "artist"]).count()))?;
    Ok(audit)
}

/// A repair of all counters.
pub fn repair(conn: &Connection) -> keepcount::Result<Report> {
    let mut audit = audit(conn)?;
    let mut repair =
        Reconciler::scoped(Mode::Repair, &SCHEMA, &audit.counters(), Options::default().page(200))?;
    run(&mut repair, &mut audit, &mut SystemRuntime::new())
}

/// Repairs what was broken on purpose. Fails unless everything is exact then.
#[track_caller]
pub fn settle(conn: &Connection) {
    assert!(repair(conn).unwrap().complete());
    SqliteStore::new(conn, &SCHEMA).rebuild(SHOWS).unwrap();
    assert_exact(conn);
}

// Events.

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    Votes,
    Setlists,
    Shows,
}

/// An event puts one row in place, whatever was there before, or removes it.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub table: Table,
    pub id: i64,
    pub row: Option<Row>,
}

/// The number of ids of one writer in each table. A writer writes its own rows alone, but its votes
/// and setlists may refer to rows of other writers.
const OWN: i64 = 1_000;

impl Event {
    /// An event of a writer's stream. The same number always gives the same event.
    pub fn of(writer: i64, number: u64) -> Self {
        let mut random = Random(writer.unsigned_abs() << 48 | number);
        let own = |random: &mut Random, most| writer * OWN + random.int(0, most);
        let any = |random: &mut Random, most| random.int(1, 3) * OWN + random.int(0, most);
        let table = match random.below(16) {
            0..12 => Table::Votes,
            12..15 => Table::Setlists,
            _ => Table::Shows,
        };
        let id = own(&mut random, [160, 40, 8][table as usize]);
        let row = (random.below(5) > 0).then(|| match table {
            Table::Votes => Row::Vote {
                setlist: any(&mut random, 40),
                stars: random.int(-2, 6),
                day: (number.cast_signed() / 64 - random.int(0, 8)).max(0),
            },
            Table::Setlists => Row::Setlist { id, show: any(&mut random, 8) },
            Table::Shows => Row::Show { id, artist: random.int(0, 4) },
        });
        Self { table, id, row }
    }

    /// Writes the row. Returns the row that was there before, as the statement itself returned it.
    fn write(self, conn: &Connection) -> rusqlite::Result<Option<Row>> {
        let (delete, read): (_, fn(&rusqlite::Row<'_>) -> rusqlite::Result<Row>) = match self.table
        {
            Table::Votes => {
                ("DELETE FROM votes WHERE id = ?1 RETURNING setlist, stars, day", read_vote)
            }
            Table::Setlists => {
                ("DELETE FROM setlists WHERE id = ?1 RETURNING id, show", read_setlist)
            }
            Table::Shows => ("DELETE FROM shows WHERE id = ?1 RETURNING id, artist", read_show),
        };
        let mut delete = conn.prepare_cached(delete)?;
        let old = delete.query_map([self.id], read)?.collect::<rusqlite::Result<Vec<Row>>>()?;
        match self.row {
            Some(Row::Vote { setlist, stars, day }) => conn
                .prepare_cached("INSERT INTO votes VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![self.id, setlist, stars, day]),
            Some(Row::Setlist { id, show }) => {
                conn.prepare_cached("INSERT INTO setlists VALUES (?1, ?2)")?.execute([id, show])
            }
            Some(Row::Show { id, artist }) => {
                conn.prepare_cached("INSERT INTO shows VALUES (?1, ?2)")?.execute([id, artist])
            }
            None => Ok(0),
        }?;
        Ok(old.into_iter().next())
    }
}

/// The stream of a writer's events that write rows.
pub fn rows_stream(writer: i64) -> String {
    format!("rows {writer}")
}

/// The stream of a writer's events that change totals alone.
pub fn feed_stream(writer: i64) -> String {
    format!("feed {writer}")
}

pub fn stream_range(stream: &str, first: u64, last: u64) -> StreamRange<'_> {
    StreamRange::new(stream, first, last).unwrap()
}

/// Writes the rows of some events in the caller's transaction. Returns their batch.
pub fn write_rows(
    conn: &Connection,
    writer: i64,
    first: u64,
    last: u64,
) -> rusqlite::Result<Batch> {
    let (mut batch, stream) = (Batch::new(), rows_stream(writer));
    for number in first..=last {
        let event = Event::of(writer, number);
        batch.update(&event.write(conn)?, &event.row);
        conn.prepare_cached("INSERT INTO events VALUES (?1, ?2)")?
            .execute((&stream, number.cast_signed()))?;
    }
    Ok(batch)
}

/// The batch of some events of a feed.
pub fn feed(writer: i64, first: u64, last: u64) -> Batch {
    let mut batch = Batch::new();
    (first..=last).for_each(|number| batch.add(FEED_SUM, writer, number.cast_signed()));
    batch
}

// Files.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    Wal,
    Delete,
}

pub struct Site {
    pub dir: TempDir,
    pub journal: Journal,
}

impl Site {
    /// A site with tables of totals and no rows.
    pub fn new(journal: Journal) -> Self {
        let site = Self::without_totals(journal);
        SqliteStore::new(&site.open_quickly(), &SCHEMA).create().unwrap();
        site
    }

    fn without_totals(journal: Journal) -> Self {
        let site = Self { dir: crate::support::temp_dir(), journal };
        let conn = Connection::open(site.path()).unwrap();
        // Small pages, so that a few rows touch many.
        conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA page_size = 1024").unwrap();
        let mode = if journal == Journal::Wal { "WAL" } else { "DELETE" };
        conn.execute_batch(&format!("PRAGMA journal_mode = {mode}; {TABLES}")).unwrap();
        site
    }

    /// A site with the rows of an older application without hooks, which are those of writer 2. The
    /// totals are empty, and no counter is ready.
    pub fn pending_backfill(journal: Journal, events: u64) -> Self {
        let site = Self::without_totals(journal);
        let conn = site.open_quickly();
        conn.execute_batch("BEGIN").unwrap();
        for number in 1..=events {
            Event::of(2, number).write(&conn).unwrap();
        }
        conn.execute_batch("COMMIT").unwrap();
        SqliteStore::new(&conn, &SCHEMA).create_pending_backfill().unwrap();
        site
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("site.db")
    }

    pub fn open(&self) -> Connection {
        open(&self.path()).unwrap()
    }

    /// A connection that waits neither for the disk nor for locks.
    pub fn open_quickly(&self) -> Connection {
        let conn = self.open();
        conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA busy_timeout = 0").unwrap();
        conn
    }
}

/// A connection as an application opens it that must not lose a commit. The cache is so small that
/// pages are written before the commit, and checkpoints are frequent.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(60))?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA cache_size = 12; PRAGMA wal_autocheckpoint = 40",
    )?;
    Ok(conn)
}

// The recount, in plain SQL.

/// The cutoff is the encoded day: eight bytes, of which the site's days use the last two.
const CUTOFF: &str =
    "(SELECT coalesce(max(4096 * instr('123456789ABCDEF', substr(hex(cutoff), 13, 1))
    + 256 * instr('123456789ABCDEF', substr(hex(cutoff), 14, 1))
    + 16 * instr('123456789ABCDEF', substr(hex(cutoff), 15, 1))
    + instr('123456789ABCDEF', substr(hex(cutoff), 16, 1))), 0)
    FROM keepcount_counters WHERE name = 'setlist.days' AND cutoff IS NOT NULL)";

/// For each counter: its table, the query for its totals by the rows, and for a rollup the query
/// for its totals by the level below.
const EXPECTED: [(&str, &str, &str); 8] = [
    ("setlist_votes", "SELECT setlist, sum(stars) FROM votes GROUP BY 1", ""),
    (
        "setlist_days",
        "SELECT setlist, day, sum(stars) FROM votes WHERE day >= $CUT GROUP BY 1, 2",
        "",
    ),
    ("setlist_show", "SELECT id, show, 1 FROM setlists", ""),
    ("show_artist", "SELECT id, artist, 1 FROM shows", ""),
    (
        "show_votes",
        "SELECT show, sum(stars) FROM votes JOIN setlists ON setlists.id = setlist GROUP BY 1",
        "SELECT l.key_2, sum(l.total * f.total) FROM setlist_show AS l JOIN setlist_votes AS f ON f.key = l.key_1 GROUP BY 1",
    ),
    (
        "show_days",
        "SELECT show, day, sum(stars) FROM votes JOIN setlists ON setlists.id = setlist WHERE day >= $CUT GROUP BY 1, 2",
        "SELECT l.key_2, f.key_2, sum(l.total * f.total) FROM setlist_show AS l JOIN setlist_days AS f ON f.key_1 = l.key_1 GROUP BY 1, 2",
    ),
    (
        "artist_votes",
        "SELECT artist, sum(stars) FROM votes JOIN setlists ON setlists.id = setlist JOIN shows ON shows.id = show GROUP BY 1",
        "SELECT l.key_2, sum(l.total * f.total) FROM show_artist AS l JOIN show_votes AS f ON f.key = l.key_1 GROUP BY 1",
    ),
    (
        "feed_sum",
        "SELECT substr(stream, 6) + 0, last * (last + 1) / 2 FROM keepcount_offsets WHERE stream LIKE 'feed %'",
        "",
    ),
];

/// Totals by table and key, without those of 0.
pub type Totals = BTreeMap<(&'static str, Vec<i64>), i64>;

fn read_totals(
    conn: &Connection,
    table: &'static str,
    text: &str,
    to: &mut Totals,
) -> rusqlite::Result<()> {
    let mut statement = conn.prepare(&text.replace("$CUT", CUTOFF))?;
    let width = statement.column_count() - 1;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let key = (0..width).map(|at| row.get(at)).collect::<rusqlite::Result<Vec<i64>>>()?;
        let total = row.get(width)?;
        if total != 0 {
            to.insert((table, key), total);
        }
    }
    Ok(())
}

pub fn stored(conn: &Connection) -> rusqlite::Result<Totals> {
    let mut totals = Totals::new();
    for (table, ..) in EXPECTED {
        read_totals(conn, table, &format!("SELECT * FROM {table}"), &mut totals)?;
    }
    Ok(totals)
}

/// The correct totals: by the rows alone, or each level by the level below as stored.
fn recounted(conn: &Connection, by_level: bool) -> rusqlite::Result<Totals> {
    let mut totals = Totals::new();
    for (table, rows, level) in EXPECTED {
        read_totals(
            conn,
            table,
            if by_level && !level.is_empty() { level } else { rows },
            &mut totals,
        )?;
    }
    Ok(totals)
}

/// Stored minus true, of every key that differs.
fn difference(mut stored: Totals, expected: Totals) -> Totals {
    for (name, total) in expected {
        let off = stored.entry(name).or_insert(0);
        *off = off.wrapping_sub(total); // a damaged total may be any number
    }
    stored.retain(|_, total| *total != 0);
    stored
}

/// The drift of each key, each level compared with the level below as stored. Runs in the caller's
/// transaction.
pub fn drift_inside(conn: &Connection) -> rusqlite::Result<Totals> {
    Ok(difference(stored(conn)?, recounted(conn, true)?))
}

/// Like [`drift_inside`], in a transaction of its own.
pub fn drift(conn: &Connection) -> rusqlite::Result<Totals> {
    drift_inside(&*conn.unchecked_transaction()?)
}

/// Fails unless each counter that is ready equals the rows. Returns how many are ready.
#[track_caller]
pub fn assert_ready_exact(conn: &Connection) -> usize {
    let snapshot = conn.unchecked_transaction().unwrap();
    let mut store = SqliteStore::new(&snapshot, &SCHEMA);
    let ready = SCHEMA.counters().iter().filter(|spec| store.is_ready(spec.id()).unwrap());
    let ready: Vec<String> = ready.map(CounterSpec::table_name).collect();
    let mut off = difference(stored(&snapshot).unwrap(), recounted(&snapshot, false).unwrap());
    off.retain(|(table, _), _| ready.iter().any(|ready| ready == table));
    assert_eq!(off, Totals::new(), "a ready counter differs from the rows");
    ready.len()
}

/// Fails unless rows, totals of every level, both cutoffs and the leaderboard agree. Runs in the
/// caller's transaction, or in one of its own.
#[track_caller]
pub fn assert_exact(conn: &Connection) {
    let snapshot = conn.is_autocommit().then(|| conn.unchecked_transaction().unwrap());
    assert_eq!(
        difference(stored(conn).unwrap(), recounted(conn, false).unwrap()),
        Totals::new(),
        "totals differ from the rows"
    );
    let leaderboard = |text| {
        let mut lines = Totals::new();
        read_totals(conn, "show_board", text, &mut lines).unwrap();
        lines
    };
    assert_eq!(
        leaderboard("SELECT key, score FROM show_board"),
        leaderboard("SELECT key, total FROM show_votes WHERE total > 0"),
        "the leaderboard differs from the totals"
    );
    let cutoffs = "SELECT count(DISTINCT coalesce(cutoff, -1)) FROM keepcount_counters WHERE name IN ('setlist.days', 'show.days')";
    assert_eq!(
        conn.query_row(cutoffs, (), |row| row.get(0)),
        Ok(1),
        "the cutoffs of the base and its rollup differ"
    );
    drop(snapshot);
}

/// Every row of every table, without totals of 0 and random columns.
pub fn dump(conn: &Connection) -> Vec<String> {
    // The progress of runs is not compared.
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'keepcount_runs' ORDER BY name";
    let mut tables = conn.prepare(tables).unwrap();
    let tables = tables
        .query_map((), |row| row.get(0))
        .unwrap()
        .collect::<rusqlite::Result<Vec<String>>>()
        .unwrap();
    let mut all = Vec::new();
    for table in tables {
        let mut statement = conn.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
        let is_totals = statement.column_names().any(|name| name == "total");
        let width = statement.column_count();
        let random = statement.column_index("identity").ok();
        let mut rows = statement.query(()).unwrap();
        while let Some(row) = rows.next().unwrap() {
            if !is_totals || row.get_ref(width - 1).unwrap() != ValueRef::Integer(0) {
                let cells =
                    (0..width).filter(|at| Some(*at) != random).map(|at| row.get_ref(at).unwrap());
                all.push(format!("{table} {:?}", cells.collect::<Vec<_>>()));
            }
        }
    }
    all
}

/// The offsets of a writer's two streams. Fails unless each event of the first stream has written
/// its row of `events` once.
#[track_caller]
pub fn offsets(conn: &Connection, writer: i64) -> [u64; 2] {
    let snapshot = conn.is_autocommit().then(|| conn.unchecked_transaction().unwrap());
    let last = |stream: String| -> i64 {
        let text = "SELECT coalesce(max(last), 0) FROM keepcount_offsets WHERE stream = ?1";
        conn.query_row(text, [stream], |row| row.get(0)).unwrap()
    };
    let text = "SELECT count(*), count(DISTINCT number), coalesce(max(number), 0) FROM events WHERE stream = ?1";
    let rows = last(rows_stream(writer));
    let events = conn
        .query_row(text, [rows_stream(writer)], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    assert_eq!(
        events,
        Ok((rows, rows, rows)),
        "the offset of writer {writer} is not the number of its events"
    );
    let both = [rows, last(feed_stream(writer))].map(i64::unsigned_abs);
    drop(snapshot);
    both
}

/// The rows that events have written, in a map.
#[derive(Debug, Default)]
pub struct Model {
    rows: BTreeMap<(Table, i64), Row>,
    events: BTreeMap<i64, u64>,
}

impl Model {
    /// The number of events of a writer in the model.
    pub fn events(&self, writer: i64) -> u64 {
        self.events.get(&writer).copied().unwrap_or(0)
    }

    /// Applies a writer's events up to this one.
    pub fn apply_up_to(&mut self, writer: i64, last: u64) {
        let events = self.events(writer);
        assert!(last >= events, "events of writer {writer} were lost: {last} of {events} are left");
        for number in events + 1..=last {
            let Event { table, id, row } = Event::of(writer, number);
            match row {
                Some(row) => self.rows.insert((table, id), row),
                None => self.rows.remove(&(table, id)),
            };
        }
        self.events.insert(writer, last);
    }

    /// Fails unless the file has exactly these rows.
    #[track_caller]
    pub fn assert_in(&self, conn: &Connection) {
        let mut found = BTreeMap::new();
        for (table, text) in [
            (Table::Votes, "SELECT id, setlist, stars, day FROM votes"),
            (Table::Setlists, "SELECT id, show, 0, 0 FROM setlists"),
            (Table::Shows, "SELECT id, artist, 0, 0 FROM shows"),
        ] {
            let mut statement = conn.prepare(text).unwrap();
            let mut rows = statement.query(()).unwrap();
            while let Some(row) = rows.next().unwrap() {
                let [id, parent, stars, day] = [0, 1, 2, 3].map(|at| row.get(at).unwrap());
                let read = match table {
                    Table::Votes => Row::Vote { setlist: parent, stars, day },
                    Table::Setlists => Row::Setlist { id, show: parent },
                    Table::Shows => Row::Show { id, artist: parent },
                };
                found.insert((table, id), read);
            }
        }
        assert!(
            found == self.rows,
            "rows differ: {} in the file, {} in the model",
            found.len(),
            self.rows.len()
        );
    }
}

/// The number of rounds of a test: `KEEPCOUNT_CRASH_ROUNDS`, or `least`.
pub fn rounds(least: u64) -> u64 {
    std::env::var("KEEPCOUNT_CRASH_ROUNDS").map_or(least, |rounds| rounds.parse().unwrap())
}

/// Compares the progress of a writer that died or failed with the file: nothing that it knew to be
/// applied is missing, and nothing is there that it did not try. Returns the phase in which it
/// ended.
#[track_caller]
pub fn check_writer(conn: &Connection, site: &Site, writer: i64, model: &mut Model) -> String {
    let told = ChildProgress::open(&progress_file(site.dir.path(), writer));
    let found = offsets(conn, writer);
    for stream in [ROWS, FEED] {
        let (known, tried) = (told.known(stream), told.tried(stream));
        assert!(
            found[stream] == known || found[stream] == tried,
            "{:?}: {known} {found:?} {tried}",
            told.phase()
        );
    }
    model.apply_up_to(writer, found[ROWS]);
    let commits = [(Phase::Commit, ROWS), (Phase::Alone, FEED)]
        .into_iter()
        .find(|(phase, _)| *phase == told.phase());
    let stands = commits.is_some_and(|(_, stream)| found[stream] != told.known(stream));
    format!("{:?}{}", told.phase(), if stands { ", committed" } else { "" })
}

/// Counts how often each thing happened.
#[derive(Default)]
pub struct Hits(BTreeMap<String, u64>);

impl Hits {
    pub fn note(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_insert(0) += 1;
    }

    /// Prints the counts. Fails unless each of `wanted` happened.
    #[track_caller]
    pub fn end(&self, test: &str, wanted: &[&str]) {
        println!("{test}: {:?}", self.0);
        for wanted in wanted {
            assert!(
                self.0.contains_key(*wanted),
                "{test}: `{wanted}` never happened: {:?}",
                self.0
            );
        }
    }
}
