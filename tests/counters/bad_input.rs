//! Bad input and bad conditions, from a key that is too long to a disk that is full. Each is a
//! clear error that names its subject and says what to do next. Nothing is applied, nothing is
//! lost, nothing panics.

use std::fs;
use std::path::PathBuf;

use keepcount::backend::KeyRange;
use keepcount::{
    AsKey, Batch, Counter, CounterId, Error, Key, KeyBuf, KeyError, MemoryStore, Recovery, Result,
    Schema, SqliteStore, Store, StreamRange,
};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

const VOTES: Counter<i64> = Counter::new("show.votes");
const USES: Counter<String> = Counter::new("tag.uses");
const LIKES: Counter<u64> = Counter::new("user.likes");
const PAIRS: Counter<(String, u8)> = Counter::new("tag.pairs");
const SCHEMA: Schema = Schema::new(&[VOTES.table(), USES.table(), LIKES.table(), PAIRS.table()]);
const TABLES: [&str; 4] = ["show_votes", "tag_uses", "user_likes", "tag_pairs"];

/// Fills an application's database: a table of its own, and totals that must not change.
fn fill(conn: &Connection) {
    conn.execute_batch("CREATE TABLE votes (id INTEGER PRIMARY KEY)").unwrap();
    SqliteStore::new(conn, &SCHEMA).create().unwrap();
    store(conn).apply(&mut batch(&[(1, 10), (2, 20), (3, 30)], &["rock", "pop"])).unwrap();
}

fn database() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    fill(&conn);
    conn
}

/// The same database in a file that several connections open. None of them waits for a lock.
struct File {
    _dir: TempDir,
    path: PathBuf,
}

impl File {
    fn new(journal: &str) -> Self {
        let dir = crate::support::temp_dir();
        let file = Self { path: dir.path().join("app.db"), _dir: dir };
        let conn = file.open();
        conn.query_row(&format!("PRAGMA journal_mode = {journal}"), (), |_| Ok(())).unwrap();
        fill(&conn);
        file
    }

    fn open(&self) -> Connection {
        let conn = Connection::open(&self.path).unwrap();
        conn.busy_timeout(std::time::Duration::ZERO).unwrap();
        conn
    }
}

fn store(conn: &Connection) -> SqliteStore<'_> {
    SqliteStore::new(conn, &SCHEMA)
}

fn batch(votes: &[(i64, i64)], tags: &[&str]) -> Batch {
    let mut batch = Batch::new();
    for (key, amount) in votes {
        batch.add(VOTES, *key, *amount);
    }
    for tag in tags {
        batch.add(USES, tag, 1);
    }
    batch
}

/// A batch of several totals on several tables.
fn several() -> Batch {
    batch(&[(1, 1), (2, 1), (3, 1), (4, 1)], &["folk", "rock"])
}

/// A batch of one total.
fn single() -> Batch {
    batch(&[(2, 1)], &[])
}

/// Everything in the database, as text, read without the crate.
fn dump(conn: &Connection) -> String {
    let rows = |text: &str| {
        let mut statement = conn.prepare(text).unwrap();
        let width = statement.column_count();
        let column = |value: ValueRef<'_>| match value {
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
            other => format!("{other:?}"),
        };
        let line = |row: &rusqlite::Row<'_>| {
            Ok((0..width).map(|at| column(row.get_ref(at).unwrap())).collect::<Vec<_>>().join(" "))
        };
        statement.query_map((), line).unwrap().collect::<rusqlite::Result<Vec<String>>>().unwrap()
    };
    let schema = rows("SELECT type, name, sql FROM sqlite_schema ORDER BY name");
    let tables = conn
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
        .unwrap()
        .query_map((), |row| row.get::<_, String>(0))
        .unwrap()
        .collect::<rusqlite::Result<Vec<_>>>()
        .unwrap();
    let contents =
        tables.iter().flat_map(|table| rows(&format!("SELECT '{table}', * FROM \"{table}\"")));
    schema.into_iter().chain(contents).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_error<T: std::fmt::Debug>(result: Result<T>, next: Recovery, names: &[&str]) -> Error {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.recovery(), next, "{error:?}");
    for name in names {
        assert!(text.contains(name), "`{text}` does not name {name}");
    }
    assert!(!text.contains('\n') && !text.contains("SqliteFailure"), "{text}");
    error
}

#[track_caller]
fn assert_schema<T: std::fmt::Debug>(result: Result<T>, wanted: &str, names: &[&str]) {
    match assert_error(result, Recovery::Permanent, names) {
        Error::SchemaMismatch { table, .. } => assert_eq!(table, wanted),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_database<T: std::fmt::Debug>(result: Result<T>, names: &[&str]) {
    let error = assert_error(result, Recovery::Permanent, names);
    assert!(matches!(error, Error::Database { .. }), "{error:?}");
}

#[track_caller]
fn assert_busy<T: std::fmt::Debug>(result: Result<T>, names: &[&str]) {
    let error = assert_error(result, Recovery::Retry, names);
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
}

#[track_caller]
fn assert_lost<T: std::fmt::Debug>(result: Result<T>, names: &[&str]) {
    let error = assert_error(result, Recovery::Permanent, names);
    assert!(matches!(error, Error::TransactionLost { .. }), "{error:?}");
}

fn votes(conn: &Connection) -> i64 {
    conn.query_row("SELECT count(*) FROM votes", (), |row| row.get(0)).unwrap()
}

// Counters and keys.

#[test]
fn an_unknown_counter_is_named() {
    const UNKNOWN: Counter<i64> = Counter::new("show.comments");

    fn refused(store: &mut impl Store) {
        let mut with_unknown = several();
        with_unknown.add(UNKNOWN, 7, 1);
        let unknown =
            |error: Error| assert!(matches!(error, Error::UnknownCounter { .. }), "{error:?}");
        let names = ["counter show.comments", "not in the schema"];
        unknown(assert_error(store.apply(&mut with_unknown), Recovery::Permanent, &names));
        unknown(assert_error(store.read_keys(UNKNOWN.id(), &[]), Recovery::Permanent, &names));
        unknown(assert_error(
            store.read_range(UNKNOWN.id(), &KeyRange::ALL, 1),
            Recovery::Permanent,
            &names,
        ));
        unknown(assert_error(store.total(UNKNOWN, 7), Recovery::Permanent, &names));
        unknown(assert_error(store.totals(UNKNOWN), Recovery::Permanent, &names));
    }
    let conn = database();
    let before = dump(&conn);
    refused(&mut store(&conn));
    assert_eq!(dump(&conn), before);
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    refused(&mut store(&conn));
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(dump(&conn), before);

    let mut memory = MemoryStore::new(&SCHEMA);
    refused(&mut memory);
    assert!(memory.totals(VOTES).unwrap().is_empty());
    assert_error(SCHEMA.find("show.comments"), Recovery::Permanent, &["show.comments"]);
}

/// Checks that a batch with one key that SQL cannot hold is refused before anything is written,
/// inside and outside a transaction.
#[track_caller]
fn assert_refused_by_sql<K: Key + Clone + keepcount::AsKey<K>>(
    counter: Counter<K>,
    key: &K,
    cause: &KeyError,
    names: &[&str],
) {
    let conn = database();
    let before = dump(&conn);
    let check = |error: Error| match error {
        Error::Key { counter: name, cause: found, .. } => {
            assert_eq!((name, &found), (counter.id().name(), cause));
        }
        other => panic!("{other:?}"),
    };
    let mut with_key = several();
    with_key.add(counter, key, 1);
    check(assert_error(store(&conn).apply(&mut with_key.clone()), Recovery::Permanent, names));
    check(assert_error(store(&conn).total(counter, key), Recovery::Permanent, names));
    check(assert_error(
        store(&conn).read_range(counter.id(), &KeyRange::after(Some(&KeyBuf::of::<K>(key))), 1),
        Recovery::Permanent,
        names,
    ));
    conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
    check(assert_error(store(&conn).apply(&mut with_key), Recovery::Permanent, names));
    conn.execute_batch("DELETE FROM votes; COMMIT").unwrap();
    assert_eq!(dump(&conn), before);
}

#[test]
fn a_text_over_1024_bytes_is_refused_and_one_of_1024_is_not() {
    let cause = |bytes| KeyError::TooLong { bytes, most: 1024 };
    let names = ["counter tag.uses", "1025 bytes", "1024"];
    assert_refused_by_sql(USES, &"x".repeat(1025), &cause(1025), &names);
    assert_refused_by_sql(USES, &("\u{e9}".repeat(512) + "x"), &cause(1025), &names);
    assert_refused_by_sql(
        USES,
        &"\0".repeat(5_000),
        &cause(5_000),
        &["counter tag.uses", "5000 bytes"],
    );
    assert_refused_by_sql(
        PAIRS,
        &("y".repeat(1025), 7),
        &cause(1025),
        &["counter tag.pairs", "yyy...", "1025 bytes"],
    );

    let conn = database();
    for longest in ["x".repeat(1024), "\u{e9}".repeat(512), "\0".repeat(1024), "\u{1}".repeat(1024)]
    {
        let mut fits = several();
        fits.add(USES, &longest, 1);
        fits.add(PAIRS, (&longest, 7), 1);
        store(&conn).apply(&mut fits).unwrap();
        assert_eq!(store(&conn).total(USES, &longest).unwrap(), 1);
        assert!(store(&conn).totals(PAIRS).unwrap().contains(&((longest, 7), 1)));
    }
}

#[test]
fn an_unsigned_key_beyond_the_integers_of_sql_is_refused() {
    for key in [i64::MAX.cast_unsigned() + 1, u64::MAX] {
        let cause = KeyError::Range { wanted: "the integers of SQL", value: key.to_string() };
        assert_refused_by_sql(
            LIKES,
            &key,
            &cause,
            &["counter user.likes", &key.to_string(), "the integers of SQL"],
        );
    }
    let conn = database();
    let mut fits = Batch::new();
    fits.add(LIKES, i64::MAX.cast_unsigned(), 1);
    store(&conn).apply(&mut fits).unwrap();
    assert_eq!(store(&conn).totals(LIKES).unwrap(), [(i64::MAX.cast_unsigned(), 1)]);
}

#[track_caller]
fn assert_malformed<T: std::fmt::Debug>(result: Result<T>, counter: CounterId) {
    let error = assert_error(result, Recovery::Permanent, &[counter.name(), "malformed key"]);
    assert!(
        matches!(&error, Error::Key { counter: name, cause: KeyError::Malformed, .. } if *name == counter.name()),
        "{error:?}"
    );
}

/// In memory, the total of a key that is none of the counter's was read as 0.
#[test]
fn read_of_a_key_of_another_type_is_refused_by_every_store() {
    fn check(mut store: impl Store) {
        for (counter, key) in [
            (VOTES.id(), KeyBuf::of::<i32>(1)),
            (VOTES.id(), KeyBuf::of::<i128>(1)),
            (VOTES.id(), KeyBuf::new()),
            (USES.id(), KeyBuf::of::<i64>(1)),
            (USES.id(), KeyBuf::of::<(String, u8)>(("rock", 1))),
            (PAIRS.id(), KeyBuf::of::<String>("rock")),
        ] {
            assert_malformed(store.read_keys(counter, std::slice::from_ref(&key)), counter);
        }
        let right = KeyBuf::of::<i64>(1);
        assert_malformed(
            store.read_keys(VOTES.id(), &[right.clone(), KeyBuf::of::<i32>(1)]),
            VOTES.id(),
        );
        assert_malformed(store.total(VOTES, Short(1)), VOTES.id());
        assert_eq!(store.read_keys(VOTES.id(), &[right]).unwrap(), [10]);
        assert_eq!(store.total(PAIRS, ("rock", 1)).unwrap(), 0);
    }
    let conn = database();
    check(store(&conn));
    let memory = MemoryStore::new(&SCHEMA);
    memory.apply(&mut batch(&[(1, 10)], &[])).unwrap();
    assert_malformed(memory.total(VOTES, Short(1)), VOTES.id());
    check(&memory);
}

/// Stands for a key of eight bytes, and encodes only four.
#[derive(Clone, Copy)]
struct Short(i32);

impl AsKey<i64> for Short {
    fn encode(&self, to: &mut KeyBuf) {
        AsKey::<i32>::encode(&self.0, to);
    }
}

/// Stands for a text, and encodes it without its end.
struct Open(&'static str);

impl AsKey<String> for Open {
    fn encode(&self, to: &mut KeyBuf) {
        to.push(self.0.as_bytes());
    }
}

/// In memory, a short key was taken for a longer one. Once its table grew, nobody found its total
/// any more, and one key could have two totals. A text without an end was kept, and then no page
/// could be read that it was in.
#[test]
fn batch_with_a_key_that_does_not_decode_is_refused_by_every_store() {
    fn check(mut store: impl Store, begin: impl Fn(&mut Batch)) {
        let fill: [fn(&mut Batch); 4] = [
            |batch| batch.add(VOTES, Short(1), 1),
            |batch| {
                (0..20).for_each(|key| batch.add(VOTES, key, 1));
                batch.add(VOTES, Short(1), 1);
                batch.add(USES, "rock", 1);
            },
            |batch| {
                batch.add(USES, "rock", 1);
                let mut released = Batch::new();
                released.add(VOTES, Short(1), 1);
                batch.merge(&mut released);
            },
            // Even if it sums to nothing.
            |batch| {
                batch.add(VOTES, Short(1), 1);
                batch.add(VOTES, Short(1), -1);
            },
        ];
        for fill in fill {
            let mut batch = Batch::new();
            fill(&mut batch);
            let deltas = batch.len();
            assert_malformed(SCHEMA.check_batch(&batch), VOTES.id());
            assert_malformed(store.apply(&mut batch), VOTES.id());
            let events = StreamRange::new("votes", 1, 1).unwrap();
            assert_malformed(store.apply_idempotent(&mut batch, &events), VOTES.id());
            begin(&mut batch);
            assert_eq!(batch.len(), deltas, "a refused batch is unchanged");
            batch.clear();
            store.apply(&mut batch).unwrap();
        }
        let mut open = Batch::new();
        open.add(USES, "rock", 1);
        open.add(USES, Open("rock"), 1);
        assert_malformed(store.apply(&mut open), USES.id());
        assert_malformed(store.total(USES, Open("rock")), USES.id());
        assert_eq!(store.offset("votes").unwrap(), 0);
    }
    let conn = database();
    let before = dump(&conn);
    check(store(&conn), |_| {});
    assert_eq!(dump(&conn), before);
    let memory = MemoryStore::new(&SCHEMA);
    check(&memory, |batch| assert_malformed(memory.begin(batch), VOTES.id()));
    assert_eq!((memory.len(VOTES).unwrap(), memory.len(USES).unwrap()), (0, 0));
}

#[test]
fn an_overflow_in_a_transaction_names_counter_and_key_and_the_transaction_goes_on() {
    let conn = database();
    conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
    let mut beyond = several();
    beyond.add(USES, "pop\t", i64::MAX);
    store(&conn).apply(&mut beyond.clone()).unwrap();
    let before = dump(&conn);
    let error = assert_error(
        store(&conn).apply(&mut beyond),
        Recovery::Permanent,
        &["counter tag.uses, key pop\\t", "64 bits"],
    );
    assert!(matches!(error, Error::Overflow { what: "total", .. }));
    assert_eq!(dump(&conn), before);
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(dump(&conn), before);
}

#[test]
fn stored_key_that_does_not_fit_its_counter_is_an_error_not_a_panic() {
    for (insert, counter, names) in [
        ("INSERT INTO user_likes VALUES (-1, 5)", LIKES.id(), ["user.likes", "-1"]),
        ("INSERT INTO tag_pairs VALUES ('rock', 300, 5)", PAIRS.id(), ["tag.pairs", "300"]),
        (
            "INSERT INTO tag_uses VALUES (CAST(x'ff61' AS TEXT), 5)",
            USES.id(),
            ["tag.uses", "UTF-8"],
        ),
        (
            "INSERT INTO tag_uses VALUES (printf('%.1025c', 'x'), 5)",
            USES.id(),
            ["tag.uses", "1025 bytes"],
        ),
    ] {
        let conn = database();
        conn.execute_batch(insert).unwrap();
        let error = assert_error(
            store(&conn).read_range(counter, &KeyRange::ALL, 100),
            Recovery::Permanent,
            &names,
        );
        assert!(matches!(error, Error::Key { .. }), "{error:?}");
        assert_eq!(store(&conn).total(VOTES, 1).unwrap(), 10, "other counters are readable");
    }
}

// Tables.

#[test]
fn missing_tables_are_an_error_that_says_how_to_create_them() {
    let conn = Connection::open_in_memory().unwrap();
    assert_schema(store(&conn).check(), "keepcount_counters", &["create()", "sql::ddl"]);
    assert_schema(store(&conn).apply(&mut single()), "show_votes", &["absent", "show.votes"]);
    assert_schema(store(&conn).apply(&mut several()), "show_votes", &["absent", "show.votes"]);
    assert_schema(store(&conn).total(USES, "rock"), "keepcount_counters", &["absent", "tag.uses"]);
    assert_schema(store(&conn).totals(PAIRS), "keepcount_counters", &["absent", "tag.pairs"]);
    assert!(conn.is_autocommit());
    assert_eq!(dump(&conn), "");
    store(&conn).create().unwrap();
    conn.execute_batch("DROP TABLE tag_uses; DROP TABLE tag_pairs").unwrap();
    assert_schema(store(&conn).total(USES, "rock"), "tag_uses", &["absent", "tag.uses"]);
    assert_schema(store(&conn).totals(PAIRS), "tag_pairs", &["absent", "tag.pairs"]);
}

#[test]
fn a_zero_byte_file_is_an_empty_database() {
    let dir = crate::support::temp_dir();
    let path = dir.path().join("empty.db");
    fs::write(&path, "").unwrap();
    let conn = Connection::open(&path).unwrap();
    assert_schema(store(&conn).check(), "keepcount_counters", &["absent"]);
    assert_schema(store(&conn).apply(&mut several()), "show_votes", &["absent"]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    store(&conn).create().unwrap();
    store(&conn).apply(&mut several()).unwrap();
}

#[test]
fn file_that_is_not_a_database_is_refused_and_unchanged() {
    let dir = crate::support::temp_dir();
    let path = dir.path().join("letter.txt");
    let letter = "Dear Sir or Madam, ".repeat(500);
    fs::write(&path, &letter).unwrap();
    let conn = Connection::open(&path).unwrap();
    assert_database(store(&conn).check(), &["not a database"]);
    assert_database(store(&conn).create(), &["not a database"]);
    assert_database(store(&conn).apply(&mut single()), &["show.votes", "not a database"]);
    assert_database(store(&conn).apply(&mut several()), &["totals", "not a database"]);
    assert_database(store(&conn).total(VOTES, 1), &["show.votes", "not a database"]);
    assert_database(store(&conn).totals(USES), &["tag.uses", "not a database"]);
    drop(conn);
    assert_eq!(fs::read_to_string(&path).unwrap(), letter);
}

const ANOTHER_TABLE: &str = "DROP TABLE show_votes; CREATE TABLE show_votes";

#[test]
fn tables_of_another_schema_are_refused_and_left_alone() {
    for (alter, names) in [
        (
            format!(
                "{ANOTHER_TABLE} (key TEXT NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT, WITHOUT ROWID"
            ),
            ["key TEXT", "key INTEGER"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (key INTEGER NOT NULL PRIMARY KEY, total REAL NOT NULL) STRICT, WITHOUT ROWID"
            ),
            ["total REAL", "total INTEGER"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (key INTEGER NOT NULL PRIMARY KEY, total INTEGER) STRICT, WITHOUT ROWID"
            ),
            ["total INTEGER", "NOT NULL"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (key INTEGER NOT NULL, total INTEGER NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID"
            ),
            ["columns", "PRIMARY KEY"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (key INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL) WITHOUT ROWID"
            ),
            ["not STRICT", "float"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (k INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT"
            ),
            ["k INTEGER", "key INTEGER"],
        ),
        (
            format!(
                "{ANOTHER_TABLE} (key INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL, twice INTEGER AS (total * 2)) STRICT"
            ),
            ["columns", "twice"],
        ),
        ("ALTER TABLE show_votes ADD COLUMN note TEXT".to_owned(), ["note TEXT", "columns"]),
        ("DROP TABLE show_votes".to_owned(), ["show_votes", "absent"]),
        (
            "DROP TABLE show_votes; CREATE VIEW show_votes AS SELECT 1 AS key, 2 AS total"
                .to_owned(),
            ["a view", "not a table"],
        ),
        (
            "UPDATE keepcount_counters SET version = 2 WHERE name = 'show.votes'".to_owned(),
            ["show.votes v2", "show.votes v1"],
        ),
        (
            "UPDATE keepcount_counters SET key = 'u64' WHERE name = 'show.votes'".to_owned(),
            ["(u64)", "(i64)"],
        ),
        (
            "UPDATE keepcount_counters SET placement = 'column' WHERE name = 'show.votes'"
                .to_owned(),
            ["in a column", "in a table"],
        ),
    ] {
        let conn = database();
        conn.execute_batch(&alter).unwrap();
        let before = dump(&conn);
        assert_schema(store(&conn).check(), "show_votes", &names);
        assert_schema(store(&conn).create(), "show_votes", &names);
        assert!(conn.is_autocommit());
        assert_eq!(dump(&conn), before, "{alter}");
    }
}

#[test]
fn a_text_key_that_does_not_sort_by_bytes_is_refused() {
    let conn = database();
    conn.execute_batch(
        "DROP TABLE tag_uses;
         CREATE TABLE tag_uses (key TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, total INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    )
    .unwrap();
    assert_schema(store(&conn).check(), "tag_uses", &["NOCASE", "BINARY"]);

    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch("PRAGMA encoding = 'UTF-16le'").unwrap();
    assert_schema(store(&conn).create(), "tag_uses", &["UTF-16le"]);
    assert_eq!(dump(&conn), "");
}

#[test]
fn counter_missing_from_the_catalogue_is_named() {
    let conn = database();
    conn.execute_batch("DELETE FROM keepcount_counters WHERE name = 'tag.uses'").unwrap();
    let before = dump(&conn);
    assert_schema(store(&conn).check(), "tag_uses", &["counter tag.uses", "keepcount_counters"]);
    assert_schema(store(&conn).create(), "tag_uses", &["is not keepcount's"]);
    assert_eq!(dump(&conn), before);
}

#[test]
fn foreign_table_of_the_same_name_is_refused_and_nothing_is_created() {
    for (foreign, table) in [
        (
            "CREATE TABLE show_votes (show INTEGER, votes INTEGER); INSERT INTO show_votes VALUES (1, 2)",
            "show_votes",
        ),
        ("CREATE TABLE tag_pairs (key_1 TEXT)", "tag_pairs"),
        ("CREATE TABLE Tag_Uses (id INTEGER PRIMARY KEY)", "tag_uses"),
        ("CREATE VIEW tag_uses AS SELECT 'rock' AS key, 1 AS total", "tag_uses"),
        ("CREATE TABLE t (a); CREATE INDEX USER_LIKES ON t (a)", "user_likes"),
        // One that looks like keepcount's, but is not in its catalogue.
        (
            "CREATE TABLE show_votes (key INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT",
            "show_votes",
        ),
    ] {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(foreign).unwrap();
        let before = dump(&conn);
        assert_schema(store(&conn).create(), table, &["exists already", "is not keepcount's"]);
        assert!(conn.is_autocommit());
        assert_eq!(dump(&conn), before, "{foreign}");
        conn.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_schema(store(&conn).create(), table, &["exists already"]);
        conn.execute_batch("ROLLBACK").unwrap();
        assert_eq!(dump(&conn), before, "{foreign}");
    }
}

#[test]
fn a_catalogue_that_is_not_keepcounts_is_refused() {
    let columns = "name TEXT PRIMARY KEY, key, version, placement, identity DEFAULT 1";
    for catalogue in [
        "CREATE TABLE keepcount_counters (a, b)".to_owned(),
        format!(
            "CREATE TABLE keepcount_counters ({columns}); INSERT INTO keepcount_counters VALUES ('a', 'i64', 'one', 'table', 1)"
        ),
        format!(
            "CREATE TABLE keepcount_counters ({columns}); INSERT INTO keepcount_counters VALUES ('a', NULL, 1, 'table', 1)"
        ),
        format!(
            "CREATE TABLE keepcount_counters ({columns}); INSERT INTO keepcount_counters VALUES ('a', 'i64', 5000000000, 'table', 1)"
        ),
        "CREATE VIEW keepcount_counters AS SELECT 1 AS name".to_owned(),
    ] {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&catalogue).unwrap();
        let before = dump(&conn);
        println!("{catalogue}");
        assert_schema(store(&conn).check(), "keepcount_counters", &["not keepcount's catalogue"]);
        assert_schema(store(&conn).create(), "keepcount_counters", &["not keepcount's catalogue"]);
        assert_eq!(dump(&conn), before, "{catalogue}");
    }
}

/// Connections with a shared cache lock single tables. So here only the catalogue is locked.
#[test]
fn locked_catalogue_is_busy_and_not_taken_for_a_foreign_table() {
    let uri = "file:locked-catalogue?mode=memory&cache=shared";
    let (conn, other) = (Connection::open(uri).unwrap(), Connection::open(uri).unwrap());
    fill(&conn);
    other.execute_batch("BEGIN; UPDATE keepcount_counters SET placement = 'elsewhere'").unwrap();
    assert_busy(store(&conn).check(), &["locked"]);
    other.execute_batch("ROLLBACK").unwrap();
    store(&conn).check().unwrap();
}

/// A table of this name in the connection's temporary schema would hide the real one from every
/// statement.
#[test]
fn temporary_table_of_the_same_name_does_not_receive_totals() {
    let conn = database();
    conn.execute_batch(
        "CREATE TEMP TABLE show_votes (key INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    )
    .unwrap();
    let refused = store(&conn).check().is_err();
    let _ = store(&conn).apply(&mut single());
    let total =
        conn.query_row("SELECT total FROM main.show_votes WHERE key = 2", (), |row| row.get(0));
    assert!(refused || total == Ok(21), "check found nothing, and the total went elsewhere");
}

#[test]
fn dropped_table_of_totals_is_named_and_the_batch_is_taken_back() {
    for table in TABLES {
        let conn = database();
        conn.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        let before = dump(&conn);
        let mut all = several();
        all.add(LIKES, 1, 1);
        all.add(PAIRS, ("rock", 1), 1);
        assert_schema(
            store(&conn).apply(&mut all.clone()),
            table,
            &["absent", &table.replace('_', ".")],
        );
        assert!(conn.is_autocommit());
        assert_eq!(dump(&conn), before.as_str(), "{table}");

        conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
        assert_schema(store(&conn).apply(&mut all), table, &["absent"]);
        assert!(!conn.is_autocommit());
        conn.execute_batch("DELETE FROM votes; COMMIT").unwrap();
        let zeros: usize = TABLES
            .iter()
            .filter(|one| **one != table)
            .map(|one| conn.execute(&format!("DELETE FROM {one} WHERE total = 0"), ()).unwrap())
            .sum();
        assert!(zeros <= 4, "only totals of new keys may be left, at 0");
        assert_eq!(dump(&conn), before, "{table}");
    }
    let conn = database();
    conn.execute_batch("DROP TABLE show_votes").unwrap();
    assert_schema(
        store(&conn).read_keys(VOTES.id(), &[KeyBuf::of::<i64>(1)]),
        "show_votes",
        &["show.votes", "absent"],
    );
    assert_schema(
        store(&conn).read_range(VOTES.id(), &KeyRange::ALL, 1),
        "show_votes",
        &["show.votes", "absent"],
    );
    assert_eq!(store(&conn).total(USES, "rock").unwrap(), 1);
}

// Locks.

#[test]
fn a_held_write_lock_is_busy_and_a_retry_helps() {
    for journal in ["WAL", "DELETE"] {
        let file = File::new(journal);
        let (conn, other) = (file.open(), file.open());
        let before = dump(&conn);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_busy(store(&conn).apply(&mut single()), &["show.votes", "locked", "try again"]);
        assert_busy(store(&conn).apply(&mut several()), &["totals", "locked", "try again"]);
        assert_busy(store(&conn).create(), &["locked"]);
        assert!(conn.is_autocommit());
        // A transaction that has not read yet may wait and go on.
        conn.execute_batch("BEGIN").unwrap();
        assert_busy(store(&conn).apply(&mut several()), &["show.votes", "locked"]);
        assert_busy(store(&conn).apply(&mut single()), &["show.votes", "locked"]);
        assert!(!conn.is_autocommit());
        conn.execute_batch("ROLLBACK").unwrap();
        assert_eq!(dump(&conn), before);

        other.execute_batch("ROLLBACK").unwrap();
        store(&conn).apply(&mut single()).unwrap();
        store(&conn).apply(&mut several()).unwrap();
        assert_eq!(store(&other).total(VOTES, 2).unwrap(), 22);
    }
}

#[test]
fn an_exclusive_lock_makes_reading_busy() {
    let file = File::new("DELETE");
    let (conn, other) = (file.open(), file.open());
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_busy(store(&conn).total(VOTES, 1), &["show.votes", "locked"]);
    assert_busy(store(&conn).totals(USES), &["tag.uses", "locked"]);
    assert_busy(store(&conn).check(), &["locked"]);
}

/// Without WAL, a reader keeps a writer from committing, after the writer has written everything.
#[test]
fn commit_blocked_by_a_reader_is_busy_and_leaves_nothing() {
    let file = File::new("DELETE");
    let (conn, reader) = (file.open(), file.open());
    let before = dump(&reader);
    reader.execute_batch("BEGIN; SELECT count(*) FROM votes").unwrap();
    assert_busy(store(&conn).apply(&mut several()), &["show.votes, tag.uses", "locked"]);
    assert!(conn.is_autocommit(), "no transaction is left open");
    assert_busy(store(&conn).apply(&mut single()), &["show.votes", "locked"]);
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(dump(&conn), before);
    store(&conn).apply(&mut several()).unwrap();
}

#[test]
fn error_of_an_overtaken_transaction_says_to_begin_immediate() {
    let file = File::new("WAL");
    let (conn, other) = (file.open(), file.open());
    conn.execute_batch("BEGIN; SELECT count(*) FROM votes").unwrap();
    store(&other).apply(&mut single()).unwrap();
    for batch in [single(), several()] {
        assert_busy(
            store(&conn).apply(&mut batch.clone()),
            &["show.votes", "BEGIN IMMEDIATE", "roll it back", "repeat it whole"],
        );
        assert!(!conn.is_autocommit());
    }
    conn.execute_batch("ROLLBACK; BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
    store(&conn).apply(&mut single()).unwrap();
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!((votes(&other), store(&other).total(VOTES, 2).unwrap()), (1, 22));
}

// Disks.

#[test]
fn a_read_only_connection_reads_and_refuses_to_write() {
    for by_pragma in [false, true] {
        let file = File::new("WAL");
        let conn = if by_pragma {
            let conn = file.open();
            conn.execute_batch("PRAGMA query_only = ON").unwrap();
            conn
        } else {
            Connection::open_with_flags(&file.path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
        };
        let before = dump(&conn);
        assert_database(store(&conn).apply(&mut single()), &["show.votes", "readonly"]);
        assert_database(store(&conn).apply(&mut several()), &["totals", "readonly"]);
        assert!(conn.is_autocommit());
        conn.execute_batch("BEGIN").unwrap();
        assert_database(store(&conn).apply(&mut several()), &["show.votes", "readonly"]);
        assert!(!conn.is_autocommit());
        conn.execute_batch("COMMIT").unwrap();
        store(&conn).check().unwrap();
        assert_eq!(store(&conn).total(VOTES, 2).unwrap(), 20);
        assert_eq!(dump(&conn), before);
    }
    let file = File::new("WAL");
    file.open().execute_batch("DROP TABLE show_votes; DELETE FROM keepcount_counters").unwrap();
    let conn = Connection::open_with_flags(&file.path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_database(store(&conn).create(), &["readonly"]);
}

/// More than fits on the disk: the first totals of the batch fit, later ones do not.
fn too_many() -> Batch {
    let mut batch = several();
    (0..500).for_each(|tag| batch.add(USES, format!("{tag:0>1000}"), 1));
    batch
}

fn fill_disk(conn: &Connection) {
    let pages: i64 = conn.query_row("PRAGMA page_count", (), |row| row.get(0)).unwrap();
    conn.query_row(&format!("PRAGMA max_page_count = {}", pages + 4), (), |_| Ok(())).unwrap();
}

#[test]
fn a_full_disk_outside_a_transaction_leaves_nothing() {
    for journal in ["WAL", "DELETE"] {
        let file = File::new(journal);
        let conn = file.open();
        let before = dump(&conn);
        fill_disk(&conn);
        assert_database(store(&conn).apply(&mut too_many()), &["tag.uses", "full"]);
        assert!(conn.is_autocommit());
        assert_eq!(dump(&conn), before);
        assert_eq!(dump(&file.open()), before);
        store(&conn).apply(&mut single()).unwrap();
    }
}

#[test]
fn a_full_disk_in_a_transaction_loses_the_transaction_and_says_so() {
    for journal in ["WAL", "DELETE"] {
        let file = File::new(journal);
        let conn = file.open();
        let before = dump(&conn);
        fill_disk(&conn);
        conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
        store(&conn).apply(&mut single()).unwrap();
        assert_lost(
            store(&conn).apply(&mut too_many()),
            &["tag.uses", "full", "the whole transaction was rolled back"],
        );
        assert!(conn.is_autocommit());
        assert!(conn.execute_batch("COMMIT").is_err(), "there is nothing to commit");
        assert_eq!(dump(&conn), before);
        assert_eq!(dump(&file.open()), before);
    }
}

/// A batch of one total has no savepoint or transaction of its own that would reveal the loss.
#[test]
fn full_disk_in_a_transaction_is_detected_by_a_batch_of_one() {
    let file = File::new("WAL");
    let conn = file.open();
    fill_disk(&conn);
    let before = dump(&conn);
    conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
    let full = (0..500).find_map(|tag| {
        let mut one = Batch::new();
        one.add(USES, format!("{tag:0>1000}"), 1);
        store(&conn).apply(&mut one).err()
    });
    assert_lost(full.map_or(Ok(()), Err), &["tag.uses", "full"]);
    assert!(conn.is_autocommit());
    assert_eq!(dump(&conn), before);
}

// Failures in the middle of a batch.

/// Totals other than 0 of two counters, and the number of rows. A batch that was taken back may
/// leave new keys at 0.
type NonzeroState = (Vec<(i64, i64)>, Vec<(String, i64)>, i64);

fn nonzero_state(conn: &Connection) -> NonzeroState {
    (store(conn).totals(VOTES).unwrap(), store(conn).totals(USES).unwrap(), votes(conn))
}

/// Triggers that refuse a key after others were written: of a counter in the middle, and of the
/// last one.
const REFUSALS: [(&str, &str); 2] = [
    (
        "CREATE TRIGGER t BEFORE UPDATE ON show_votes WHEN NEW.key = 3 BEGIN SELECT RAISE",
        "show.votes",
    ),
    (
        "CREATE TRIGGER t AFTER INSERT ON tag_uses WHEN NEW.key = 'folk' BEGIN SELECT RAISE",
        "tag.uses",
    ),
];

#[test]
fn refused_total_takes_its_batch_back_and_the_transaction_goes_on() {
    for (trigger, counter) in REFUSALS {
        for file in [File::new("WAL"), File::new("DELETE")] {
            let conn = file.open();
            conn.execute_batch(&format!("{trigger} (ABORT, 'not this one'); END")).unwrap();
            conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
            store(&conn).apply(&mut batch(&[(1, 5), (9, 9)], &["pop"])).unwrap();
            let before = nonzero_state(&conn);
            assert_database(store(&conn).apply(&mut several()), &[counter, "not this one"]);
            assert!(!conn.is_autocommit());
            assert_eq!(nonzero_state(&conn), before, "{trigger}");
            store(&conn).apply(&mut batch(&[(2, 1)], &["rock"])).unwrap();
            conn.execute_batch("COMMIT").unwrap();

            let (totals, tags, rows) = nonzero_state(&file.open());
            assert_eq!(totals, [(1, 15), (2, 21), (3, 30), (9, 9)]);
            assert_eq!(tags, [("pop".to_owned(), 2), ("rock".to_owned(), 2)]);
            assert_eq!(rows, 1);
        }
    }
}

#[test]
fn a_refused_total_outside_a_transaction_leaves_nothing() {
    for (trigger, counter) in REFUSALS {
        for how in ["ABORT", "ROLLBACK"] {
            let conn = database();
            conn.execute_batch(&format!("{trigger} ({how}, 'not this one'); END")).unwrap();
            let before = dump(&conn);
            assert_database(store(&conn).apply(&mut several()), &[counter, "not this one"]);
            assert!(conn.is_autocommit());
            assert_eq!(dump(&conn), before, "{trigger} {how}");
        }
    }
}

#[test]
fn a_trigger_that_rolls_back_loses_the_transaction() {
    for (trigger, counter) in REFUSALS {
        let conn = database();
        let before = nonzero_state(&conn);
        conn.execute_batch(&format!("{trigger} (ROLLBACK, 'not this one'); END")).unwrap();
        conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)").unwrap();
        assert_lost(
            store(&conn).apply(&mut several()),
            &[counter, "not this one", "the whole transaction was rolled back"],
        );
        assert!(conn.is_autocommit());
        assert_eq!(nonzero_state(&conn), before);
    }
}

/// If written deltas cannot be taken back, the rows that belong to them must not stay either.
#[test]
fn a_batch_that_cannot_be_taken_back_loses_the_transaction() {
    let conn = database();
    let before = nonzero_state(&conn);
    conn.execute_batch(
        "CREATE TRIGGER grows BEFORE UPDATE ON show_votes WHEN NEW.total < OLD.total BEGIN SELECT RAISE(ABORT, 'less'); END;
         CREATE TRIGGER t BEFORE INSERT ON tag_uses WHEN NEW.key = 'folk' BEGIN SELECT RAISE(ABORT, 'not this one'); END;
         BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)",
    )
    .unwrap();
    assert_lost(
        store(&conn).apply(&mut several()),
        &["tag.uses", "not this one", "the whole transaction was rolled back"],
    );
    assert!(conn.is_autocommit());
    assert_eq!(nonzero_state(&conn), before);
}

/// `i64::MIN` has no negation in 64 bits.
#[test]
fn deltas_at_the_ends_of_64_bits_are_taken_back() {
    for amount in [i64::MIN, i64::MAX] {
        let conn = database();
        conn.execute_batch(&format!(
            "{} (ABORT, 'not this one'); END; BEGIN IMMEDIATE",
            REFUSALS[1].0
        ))
        .unwrap();
        let before = nonzero_state(&conn);
        assert_database(
            store(&conn).apply(&mut batch(&[(-5, amount), (77, amount)], &["folk"])),
            &["tag.uses"],
        );
        assert_eq!(nonzero_state(&conn), before);
        assert!(!conn.is_autocommit());
    }
}

/// SQLite returns no error if a trigger skips a write. The delta would be lost silently.
#[test]
fn write_that_a_trigger_skips_is_an_error() {
    let conn = database();
    let before = nonzero_state(&conn);
    conn.execute_batch(&format!("{} (IGNORE); END", REFUSALS[0].0)).unwrap();
    let applied = store(&conn).apply(&mut several());
    let skipped = store(&conn).total(VOTES, 3).unwrap() == 30;
    assert!(skipped && applied.is_err(), "{applied:?}");
    assert_eq!(nonzero_state(&conn), before);
}

/// A trigger may fail a statement and keep its write (RAISE(FAIL)), or write something else. Totals
/// could not be trusted then.
#[test]
fn a_table_of_totals_with_a_trigger_is_refused_by_check() {
    let conn = database();
    store(&conn).check().unwrap();
    conn.execute_batch(&format!("{} (FAIL, 'not this one'); END", REFUSALS[1].0)).unwrap();
    let error = assert_error(store(&conn).check(), Recovery::Permanent, &["tag_uses", "trigger"]);
    assert!(matches!(error, Error::SchemaMismatch { .. }), "{error:?}");
}

/// SQLite takes a quoted name that is not a column for a text. A read would find no key, and return
/// 0.
#[test]
fn reading_a_table_of_other_columns_is_an_error_and_not_zero() {
    for columns in ["show INTEGER, total INTEGER", "key INTEGER, votes INTEGER", "a, b"] {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!(
            "CREATE TABLE show_votes ({columns}); INSERT INTO show_votes VALUES (1, 2)"
        ))
        .unwrap();
        assert_error(store(&conn).total(VOTES, 1), Recovery::Permanent, &["show.votes"]);
        assert_error(store(&conn).total(VOTES, 5), Recovery::Permanent, &["show.votes"]);
        assert_error(store(&conn).totals(VOTES), Recovery::Permanent, &["show.votes"]);
        assert_error(store(&conn).apply(&mut single()), Recovery::Permanent, &["show.votes"]);
        assert_eq!(conn.query_row("SELECT count(*) FROM show_votes", (), |row| row.get(0)), Ok(1));
    }
}
