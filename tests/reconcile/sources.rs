//! Sources: pages need an index, recounts by SQL and by tally agree, a source that differs from the
//! tally is refused before any repair, and rows that cannot be counted are errors that name their
//! key.

use std::ops::Bound;

use crate::support::world::{Trace, World, run_whole};
use keepcount::reconcile::audit::{PageDiff, PageRequest};
use keepcount::reconcile::{
    Audit, Columns, MemoryAudit, Mode, Options, Outcome, Reconciler, Report, SqliteAudit,
    SqliteRows,
};
use keepcount::{
    Batch, Counter, Error, Key, KeyBuf, MemoryStore, Record, Recovery, Result, Schema, SqliteStore,
    Store, Tally,
};
use rusqlite::{Connection, Row};

/// The signed amounts of open sales, by shop.
const SUM: Counter<i64> = Counter::new("shop.sum");
const SUMS: Schema = Schema::new(&[SUM.table()]);

#[derive(Debug, Clone, PartialEq)]
struct Sale {
    shop: Option<i64>,
    amount: i64,
    open: bool,
}

impl Record for Sale {
    fn tally(&self, to: &mut Tally<'_>) {
        if let (Some(shop), true) = (self.shop, self.open) {
            to.add(SUM, shop, self.amount);
        }
    }
}

fn read_sale(row: &Row<'_>) -> rusqlite::Result<Sale> {
    Ok(Sale { shop: row.get(0)?, amount: row.get(1)?, open: row.get(2)? })
}

/// The sales of this table, without a counter.
fn sales_of(table: &str) -> SqliteRows {
    SqliteRows::of(table, |row| Ok(read_sale(row)?)).columns("shop, amount, open")
}

fn sales(columns: Columns) -> SqliteRows {
    sales_of("sales").key(SUM, columns)
}

fn by_shop() -> Columns {
    Columns::of(["shop"]).sum("amount").filter("open")
}

/// A database with these tables and the tables of totals.
fn database(schema: &Schema, ddl: &str) -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    conn.set_prepared_statement_cache_capacity(64);
    conn.execute_batch(ddl).unwrap();
    SqliteStore::new(&conn, schema).create().unwrap();
    conn
}

const SALES: &str = "CREATE TABLE sales (shop INTEGER, amount, open INTEGER);";
const INDEX: &str = "CREATE INDEX sales_by_shop ON sales (shop);";

fn sales_database(rows: &str) -> Connection {
    let conn = database(&SUMS, &format!("{SALES} {INDEX}"));
    if !rows.is_empty() {
        conn.execute_batch(&format!("INSERT INTO sales VALUES {rows}")).unwrap();
    }
    conn
}

fn audit_of<'a>(
    conn: &'a Connection,
    schema: &'a Schema,
    rows: SqliteRows,
) -> Result<SqliteAudit<'a>> {
    let mut audit = SqliteAudit::new(conn, schema).unwrap();
    audit.add(rows).map(|()| audit)
}

fn add_source(conn: &Connection, schema: &Schema, rows: SqliteRows) -> Result<()> {
    SqliteAudit::new(conn, schema).unwrap().add(rows)
}

fn run_over(
    conn: &Connection,
    schema: &Schema,
    rows: SqliteRows,
    mode: Mode,
    page: usize,
) -> Result<Report> {
    let mut audit = audit_of(conn, schema, rows)?;
    run_whole(mode, schema, Options::default().page(page), &mut audit)
}

/// The recounts of a verify over empty totals, with keys as text.
fn expected_all<K: Key>(
    conn: &Connection,
    schema: &Schema,
    counter: Counter<K>,
    rows: SqliteRows,
    page: usize,
) -> Vec<(String, i64)> {
    let report = run_over(conn, schema, rows, Mode::Verify, page).unwrap();
    let samples = &report.counters[0].samples;
    samples.iter().map(|sample| (counter.id().show(&sample.key), sample.expected)).collect()
}

#[track_caller]
fn assert_source<T: std::fmt::Debug>(result: Result<T>, names: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
    assert_eq!(error.recovery(), Recovery::Permanent);
    for name in names {
        assert!(error.to_string().contains(name), "`{error}` does not name {name}");
    }
}

// Plans.

#[test]
fn source_needs_an_index_on_the_key() {
    let conn = database(&SUMS, SALES);
    for columns in [by_shop(), by_shop().by_tally(), Columns::of(["shop"]).count()] {
        let made = add_source(&conn, &SUMS, sales(columns));
        assert_source(made, &["shop.sum", "CREATE INDEX", "\"sales\" (\"shop\")"]);
    }
    // An index on other columns, with the key not first, on a part of the rows, or with another
    // collation cannot be used.
    for index in [
        "(open)",
        "(amount, shop)",
        "(open, shop)",
        "(shop) WHERE amount > 5",
        "(shop COLLATE NOCASE)",
    ] {
        conn.execute_batch(&format!("DROP INDEX IF EXISTS i; CREATE INDEX i ON sales {index}"))
            .unwrap();
        assert_source(add_source(&conn, &SUMS, sales(by_shop())), &["CREATE INDEX"]);
    }
    for index in ["(shop)", "(shop, open)", "(shop, open, amount)", "(shop DESC)"] {
        conn.execute_batch(&format!("DROP INDEX IF EXISTS i; CREATE INDEX i ON sales {index}"))
            .unwrap();
        add_source(&conn, &SUMS, sales(by_shop())).unwrap();
        add_source(&conn, &SUMS, sales(by_shop().by_tally())).unwrap();
    }
}

/// Inserts `each` sales for every one of `shops` shops.
fn insert_sales(conn: &Connection, shops: i64, each: i64) {
    conn.execute(
        "WITH RECURSIVE n (at) AS (SELECT 0 UNION ALL SELECT at + 1 FROM n WHERE at < ?1 * ?2 - 1)
         INSERT INTO sales SELECT at % ?1, at % 7 * 2 - 7, at % 3 > 0 FROM n",
        (shops, each),
    )
    .unwrap();
}

/// An index on the filter's column selects few rows, but with it every page would have to sort all
/// of them.
#[test]
fn index_on_the_filter_is_not_used_for_pages() {
    for analyze in ["", "ANALYZE"] {
        let conn = database(&SUMS, SALES);
        insert_sales(&conn, 200, 10);
        conn.execute_batch(
            "UPDATE sales SET open = (rowid % 50 = 0); CREATE INDEX sales_by_open ON sales (open)",
        )
        .unwrap();
        conn.execute_batch(analyze).unwrap();
        assert_source(add_source(&conn, &SUMS, sales(by_shop())), &["CREATE INDEX"]);
        conn.execute_batch(INDEX).unwrap();
        conn.execute_batch(analyze).unwrap();
        for filter in ["open", "open = 1", "open = TRUE", "open AND amount <> 0"] {
            let columns = || Columns::of(["shop"]).sum("amount").filter(filter);
            add_source(&conn, &SUMS, sales(columns())).unwrap();
            assert_eq!(
                expected_all(&conn, &SUMS, SUM, sales(columns()), 7),
                expected_all(&conn, &SUMS, SUM, sales(columns()), 1_000),
                "{filter}"
            );
        }
    }
}

/// Only the audit knows its statements, so the test takes them from SQLite's trace and asks for
/// their plans.
#[test]
fn no_statement_of_a_run_sorts() {
    for tally in [false, true] {
        let mut conn = sales_database("");
        insert_sales(&conn, 60, 4);
        conn.execute_batch("CREATE INDEX sales_by_open ON sales (open)").unwrap();
        let trace = Trace::on(&mut conn);
        let columns = if tally { by_shop().by_tally() } else { by_shop() };
        let mut audit = audit_of(&conn, &SUMS, sales(columns)).unwrap();
        trace.take();
        run_whole(Mode::Repair, &SUMS, Options::default().page(9), &mut audit).unwrap();
        let mut texts = trace.take();
        // The probe for an empty source reads the table without an order.
        texts.retain(|text| {
            text.starts_with("SELECT") && text.contains("sales") && !text.starts_with("SELECT 1 ")
        });
        texts.sort_unstable();
        texts.dedup();
        assert!(texts.len() >= 3, "{texts:?}");
        for text in texts {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
            let lines: Vec<String> =
                plan.raw_query().mapped(|row| row.get(3)).collect::<rusqlite::Result<_>>().unwrap();
            assert!(lines.iter().all(|line| !line.contains("TEMP B-TREE")), "{text}: {lines:?}");
            assert!(
                lines.iter().any(|line| line.contains("USING") && line.contains("sales_by_shop")),
                "{text}: {lines:?}"
            );
        }
    }
}

const DAYS: Counter<(i64, String)> = Counter::new("shop.days");
const NAMES: Counter<String> = Counter::new("tag.names");
const TEXTS: Schema = Schema::new(&[DAYS.table(), NAMES.table()]);

/// A row that counts under a text and under a tuple.
#[derive(Debug, Clone)]
struct Tag {
    name: Option<String>,
    shop: Option<i64>,
}

impl Record for Tag {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(name) = &self.name {
            to.add(NAMES, name, 1);
            if let Some(shop) = self.shop {
                to.add(DAYS, (shop, name), 1);
            }
        }
    }
}

fn read_tag(row: &Row<'_>) -> rusqlite::Result<Tag> {
    Ok(Tag { name: row.get(0)?, shop: row.get(1)? })
}

fn tags() -> SqliteRows {
    SqliteRows::of("tags", |row| Ok(read_tag(row)?)).columns("name, shop")
}

fn by_day() -> SqliteRows {
    tags().key(DAYS, Columns::of(["shop", "name"]).count())
}

fn by_day_by_tally() -> SqliteRows {
    tags().key(DAYS, ["shop", "name"])
}

fn by_name() -> SqliteRows {
    tags().key(NAMES, Columns::of(["name"]).count())
}

fn by_name_by_tally() -> SqliteRows {
    tags().key(NAMES, ["name"])
}

#[test]
fn source_of_a_tuple_or_a_text_needs_an_index_on_the_whole_key() {
    let conn = database(&TEXTS, "CREATE TABLE tags (name TEXT, shop INTEGER)");
    let advice = "\"tags\" (\"shop\", \"name\" COLLATE BINARY)";
    for index in
        ["", "(shop)", "(name)", "(name, shop)", "(shop, name COLLATE NOCASE)", "(shop, name DESC)"]
    {
        conn.execute_batch("DROP INDEX IF EXISTS i").unwrap();
        if !index.is_empty() {
            conn.execute_batch(&format!("CREATE INDEX i ON tags {index}")).unwrap();
        }
        assert_source(add_source(&conn, &TEXTS, by_day()), &["shop.days", advice]);
    }
    for index in ["(shop, name)", "(shop DESC, name DESC)"] {
        conn.execute_batch(&format!("DROP INDEX IF EXISTS i; CREATE INDEX i ON tags {index}"))
            .unwrap();
        add_source(&conn, &TEXTS, by_day()).unwrap();
    }
    let made = add_source(&conn, &TEXTS, by_name());
    assert_source(made, &["\"tags\" (\"name\" COLLATE BINARY)"]);
}

/// Every page but the first starts with an index search for the end of the page before. A text with
/// its collation on the wrong side of the comparison once made every page read from the first row
/// on.
#[test]
fn page_of_tuples_starts_with_a_search_in_its_index() {
    for (ddl, tally) in
        [("name TEXT", false), ("name TEXT", true), ("name TEXT COLLATE NOCASE", false)]
    {
        let ddl = format!(
            "CREATE TABLE tags ({ddl}, shop INTEGER); CREATE INDEX i ON tags (shop, name COLLATE BINARY)"
        );
        let mut conn = database(&TEXTS, &ddl);
        conn.execute_batch("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO tags SELECT 'n' || i, i % 3 FROM n")
            .unwrap();
        let trace = Trace::on(&mut conn);
        let rows = if tally { by_day_by_tally() } else { by_day() };
        assert_eq!(scoped_to(&conn, DAYS, rows, Mode::Verify, 9).unwrap().counters[0].keys, 40);
        let mut texts = trace.take();
        texts.retain(|text| {
            text.starts_with("SELECT") && text.contains("\"tags\"") && text.contains(") > (")
        });
        assert!(!texts.is_empty());
        for text in texts {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
            let lines: Vec<String> =
                plan.raw_query().mapped(|row| row.get(3)).collect::<rusqlite::Result<_>>().unwrap();
            assert!(
                lines
                    .iter()
                    .any(|line| line.contains("SEARCH") && line.contains("(shop,name)>(?,?)")),
                "{text}: {lines:?}"
            );
        }
    }
}

/// An error while SQL sums rows is not always an overflow. This one belongs to the source, not to
/// the database.
#[test]
fn amount_that_cannot_be_computed_is_an_error_of_the_source() {
    let conn = sales_database("(1, 'x', 1)");
    let rows = sales(Columns::of(["shop"]).sum("json_extract(amount, '$')"));
    let error = run_over(&conn, &SUMS, rows, Mode::Verify, 9).unwrap_err();
    assert!(
        matches!(error, Error::Source { .. }) && error.to_string().contains("malformed JSON"),
        "{error:?}"
    );
}

/// A column that folds case would put two keys into one group, under the name of either.
#[test]
fn a_nocase_column_needs_a_binary_index_and_is_then_exact() {
    let conn = database(
        &TEXTS,
        "CREATE TABLE tags (name TEXT COLLATE NOCASE, shop INTEGER); CREATE INDEX i ON tags (name)",
    );
    assert_source(add_source(&conn, &TEXTS, by_name()), &["tag.names", "CREATE INDEX"]);
    conn.execute_batch(
        "CREATE INDEX j ON tags (name COLLATE BINARY);
         INSERT INTO tags VALUES ('a', 1), ('A', 1), ('b', 1), ('B', 1), ('a', 1), ('', 1), (NULL, 1)",
    )
    .unwrap();
    let wanted = [("", 1), ("A", 1), ("B", 1), ("a", 2), ("b", 1)]
        .map(|(key, total)| (key.to_owned(), total));
    for page in [1, 2, 1_000] {
        let only = |rows: SqliteRows| expected_of_names(&conn, rows, page);
        assert_eq!(only(by_name()), wanted);
        assert_eq!(only(by_name_by_tally()), wanted);
    }
    repair_names(&conn, by_name()).unwrap();
    let totals = SqliteStore::new(&conn, &TEXTS).totals(NAMES).unwrap();
    assert_eq!(totals, wanted);
    // A page of tuples ends between two keys that differ by case only.
    conn.execute_batch("CREATE INDEX k ON tags (shop, name COLLATE BINARY)").unwrap();
    for page in [1, 2, 1_000] {
        for rows in [by_day(), by_day_by_tally()] {
            let report = scoped_to(&conn, DAYS, rows, Mode::Verify, page).unwrap();
            let found: Vec<(String, i64)> = report.counters[0]
                .samples
                .iter()
                .map(|sample| (sample.key.decode::<(i64, String)>().unwrap().1, sample.expected))
                .collect();
            assert_eq!(found, wanted, "page {page}");
        }
    }
}

/// Runs over one of the schema's two counters.
fn expected_of_names(conn: &Connection, rows: SqliteRows, page: usize) -> Vec<(String, i64)> {
    let report = scoped_to(conn, NAMES, rows, Mode::Verify, page).unwrap();
    report.counters[0]
        .samples
        .iter()
        .map(|sample| (sample.key.decode().unwrap(), sample.expected))
        .collect()
}

fn repair_names(conn: &Connection, rows: SqliteRows) -> Result<Report> {
    scoped_to(conn, NAMES, rows, Mode::Repair, 2)
}

fn scoped_to<K: Key>(
    conn: &Connection,
    counter: Counter<K>,
    rows: SqliteRows,
    mode: Mode,
    page: usize,
) -> Result<Report> {
    let mut audit = audit_of(conn, &TEXTS, rows)?;
    let options = Options::default().page(page);
    let mut run = keepcount::reconcile::Reconciler::scoped(mode, &TEXTS, &[counter.id()], options)?;
    keepcount::reconcile::run(&mut run, &mut audit, &mut World::default())
}

#[test]
fn row_with_null_in_any_part_of_its_key_is_not_counted() {
    let conn = database(
        &TEXTS,
        "CREATE TABLE tags (name TEXT, shop INTEGER); CREATE INDEX i ON tags (shop, name)",
    );
    conn.execute_batch(
        "INSERT INTO tags VALUES ('a', 1), (NULL, 1), ('a', NULL), (NULL, NULL), ('', 1), ('b', 1), (NULL, 2), ('a', 2), ('', 2)",
    )
    .unwrap();
    let wanted = ["1,", "1,a", "1,b", "2,", "2,a"].map(|key| (key.to_owned(), 1));
    for page in [1, 2, 3, 1_000] {
        for rows in [by_day(), by_day_by_tally()] {
            let report = scoped_to(&conn, DAYS, rows, Mode::Verify, page).unwrap();
            let samples = report.counters[0].samples.iter();
            let found: Vec<_> =
                samples.map(|sample| (DAYS.id().show(&sample.key), sample.expected)).collect();
            assert_eq!(found, wanted, "page {page}");
        }
    }
    assert_eq!(scoped_to(&conn, DAYS, by_day(), Mode::Repair, 2).unwrap().counters[0].corrected, 5);
    assert_eq!(scoped_to(&conn, DAYS, by_day(), Mode::Verify, 2).unwrap().drift(), 0);
}

// Recounts by SQL and by tally.

#[test]
fn recounts_by_sql_and_by_tally_are_equal() {
    let conn = sales_database("(NULL, 5, 1), (NULL, 5, 0)");
    insert_sales(&conn, 41, 13);
    let ask = |audit: &mut SqliteAudit<'_>, after: Option<i64>, keys| -> PageDiff {
        audit
            .compare(&PageRequest {
                counter: SUM.id(),
                after: after.map(KeyBuf::of::<i64>),
                until: None,
                keys,
            })
            .unwrap()
    };
    let mut by_sql = audit_of(&conn, &SUMS, sales(by_shop())).unwrap();
    let mut by_tally = audit_of(&conn, &SUMS, sales(by_shop().by_tally())).unwrap();
    for keys in [1, 2, 7, 41, 1_000] {
        for after in
            [None, Some(-1), Some(0), Some(17), Some(39), Some(40), Some(41), Some(i64::MAX)]
        {
            assert_eq!(
                ask(&mut by_sql, after, keys),
                ask(&mut by_tally, after, keys),
                "{keys} keys after {after:?}"
            );
        }
    }
    let whole = ask(&mut by_sql, None, 1_000);
    let text = "SELECT count(*), sum(amount) FROM sales WHERE open AND shop IS NOT NULL";
    let open: (i64, i64) = conn.query_row(text, (), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(
        (whole.rows.cast_signed(), whole.drifts.iter().map(|drift| drift.expected).sum::<i64>()),
        open
    );
}

const FRIENDS: Counter<i64> = Counter::new("user.friends");
const FRIENDS_SCHEMA: Schema = Schema::new(&[FRIENDS.table()]);

/// A row that adds to two keys of one counter: each of the friends has one more.
#[derive(Debug, Clone, Copy)]
struct Pair(i64, i64);

impl Record for Pair {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(FRIENDS, self.0, 1);
        to.add(FRIENDS, self.1, 1);
    }
}

/// One end of a pair: what a source must return for each of its keys.
#[derive(Debug, Clone, Copy)]
struct End(i64);

impl Record for End {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(FRIENDS, self.0, 1);
    }
}

const FRIENDS_TABLE: &str = "CREATE TABLE friends (one INTEGER, two INTEGER);
     CREATE INDEX by_one ON friends (one); CREATE INDEX by_two ON friends (two);
     INSERT INTO friends VALUES (1, 2), (1, 3), (2, 3), (4, 4), (9, 1)";

#[test]
fn row_that_adds_to_two_keys_is_counted_if_a_query_returns_it_twice() {
    let conn = database(&FRIENDS_SCHEMA, FRIENDS_TABLE);
    let ends = |columns: Columns| {
        let query = "SELECT one AS end FROM friends UNION ALL SELECT two FROM friends";
        SqliteRows::query(query, |row| Ok(End(row.get(0)?))).key(FRIENDS, columns)
    };
    let (by_sql, by_tally) = (|| ends(Columns::of(["end"]).count()), || ends(Columns::of(["end"])));
    let wanted = [("1", 3), ("2", 2), ("3", 2), ("4", 2), ("9", 1)]
        .map(|(key, total)| (key.to_owned(), total));
    for page in [1, 2, 100] {
        assert_eq!(expected_all(&conn, &FRIENDS_SCHEMA, FRIENDS, by_sql(), page), wanted);
        assert_eq!(expected_all(&conn, &FRIENDS_SCHEMA, FRIENDS, by_tally(), page), wanted);
    }
    run_over(&conn, &FRIENDS_SCHEMA, by_sql(), Mode::Repair, 2).unwrap();
    // The hooks use the record that adds to both keys.
    let mut batch = Batch::new();
    conn.execute_batch("INSERT INTO friends VALUES (3, 9)").unwrap();
    batch.insert(&Pair(3, 9));
    SqliteStore::new(&conn, &FRIENDS_SCHEMA).apply(&mut batch).unwrap();
    let report = run_over(&conn, &FRIENDS_SCHEMA, by_sql(), Mode::Verify, 2).unwrap();
    assert_eq!((report.drift(), report.counters[0].keys), (0, 5));
}

#[test]
fn row_that_adds_to_two_keys_is_refused_if_a_source_returns_it_once() {
    let conn = database(&FRIENDS_SCHEMA, FRIENDS_TABLE);
    let run = |columns: Columns, mode| {
        let pairs = SqliteRows::of("friends", |row| Ok(Pair(row.get(0)?, row.get(1)?)));
        run_over(&conn, &FRIENDS_SCHEMA, pairs.key(FRIENDS, columns), mode, 10)
    };
    let (by_sql, by_tally) = (Columns::of(["one"]).count(), Columns::of(["one"]));
    assert_source(run(by_sql, Mode::Repair), &["user.friends", "several keys"]);
    assert_source(run(by_tally.clone(), Mode::Repair), &["user.friends", "several keys"]);
    assert_source(run(by_tally, Mode::Verify), &["user.friends", "several keys"]);
    assert_eq!(SqliteStore::new(&conn, &FRIENDS_SCHEMA).totals(FRIENDS).unwrap(), []);

    let mut store = MemoryStore::new(&FRIENDS_SCHEMA);
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(FRIENDS, |_| [Pair(1, 2), Pair(3, 4)]).unwrap();
    for mode in [Mode::Verify, Mode::Repair] {
        let result = run_whole(mode, &FRIENDS_SCHEMA, Options::default(), &mut audit);
        assert_source(result, &["user.friends", "several keys"]);
    }
}

// Amounts.

#[test]
fn null_amounts_add_nothing_and_no_key() {
    let conn = sales_database("(1, NULL, 1), (1, 4, 1), (2, NULL, 1), (3, 0, 1), (4, 7, 0)");
    let amounts = |columns: Columns| sales(columns).columns("shop, coalesce(amount, 0), open");
    for page in [1, 1_000] {
        assert_eq!(
            expected_all(&conn, &SUMS, SUM, amounts(by_shop()), page),
            [("1".to_owned(), 4)]
        );
        assert_eq!(
            expected_all(&conn, &SUMS, SUM, amounts(by_shop().by_tally()), page),
            [("1".to_owned(), 4)]
        );
    }
    let report = run_over(&conn, &SUMS, amounts(by_shop()), Mode::Repair, 1).unwrap();
    assert_eq!((report.counters[0].keys, report.counters[0].corrected), (1, 1));
}

#[test]
fn amount_that_is_not_an_integer_is_refused_with_its_key() {
    for amount in ["2.5", "2.0", "1e300", "'many'", "'7.5'", "x'00'"] {
        let conn = sales_database(&format!("(1, 1, 1), (2, {amount}, 1), (2, 1, 1), (3, 1, 1)"));
        for mode in [Mode::Verify, Mode::Repair] {
            let rows = sales(by_shop()).columns("shop, 1, open");
            assert_source(
                run_over(&conn, &SUMS, rows, mode, 10),
                &["shop.sum", "key 2", "integer"],
            );
        }
        assert_eq!(SqliteStore::new(&conn, &SUMS).totals(SUM).unwrap(), []);
    }
}

#[test]
fn a_recount_beyond_64_bits_names_its_key() {
    let big = i64::MAX;
    for (rows, key, by_tally_too) in [
        (format!("(1, 1, 1), (2, {big}, 1), (2, 1, 1), (3, 1, 1)"), "2", true),
        (format!("(1, 1, 1), (2, 1, 1), (5, -{big}, 1), (5, -{big}, 1)"), "5", true),
        // The final sum fits and an intermediate one does not. SQLite's sum refuses it.
        (format!("(7, {big}, 1), (7, 1, 1), (7, -1, 1)"), "7", false),
    ] {
        let conn = sales_database(&rows);
        for columns in
            [by_shop(), by_shop().by_tally()].into_iter().take(1 + usize::from(by_tally_too))
        {
            for page in [1, 2, 1_000] {
                let error =
                    run_over(&conn, &SUMS, sales(columns.clone()), Mode::Verify, page).unwrap_err();
                match &error {
                    Error::Overflow { counter, key: named, what } => {
                        assert_eq!((*counter, named.as_str(), *what), ("shop.sum", key, "recount"));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let error = run_over(&conn, &SUMS, sales(by_shop()), Mode::Repair, 1).unwrap_err();
        assert!(matches!(error, Error::Overflow { .. }), "{error}");
        // A repair of that key fails in the same way.
        let mut audit = audit_of(&conn, &SUMS, sales(by_shop())).unwrap();
        let keys = vec![KeyBuf::of::<i64>(key.parse::<i64>().unwrap())];
        let error = audit
            .repair(&keepcount::reconcile::audit::RepairRequest { counter: SUM.id(), keys })
            .unwrap_err();
        assert!(matches!(&error, Error::Overflow { key: named, .. } if named == key), "{error}");
        assert!(conn.is_autocommit());
    }
}

/// The order of a key's rows decided whether its counter could be recounted by the tally.
#[test]
fn sum_by_tally_may_leave_64_bits_before_its_last_row() {
    let amounts = [(7, i64::MAX), (7, 1), (7, -5), (8, i64::MIN), (8, -1), (8, 5)];
    let rows = amounts.map(|(shop, amount)| format!("({shop}, {amount}, 1)")).join(", ");
    let wanted = [(7, i64::MAX - 4), (8, i64::MIN + 4)];
    for page in [1, 2, 1_000] {
        let conn = sales_database(&rows);
        let rows = || sales(by_shop().by_tally());
        let verified = expected_all(&conn, &SUMS, SUM, rows(), page);
        assert_eq!(verified, wanted.map(|(shop, sum)| (shop.to_string(), sum)));
        run_over(&conn, &SUMS, rows(), Mode::Repair, page).unwrap();
        assert_eq!(SqliteStore::new(&conn, &SUMS).totals(SUM).unwrap(), wanted);
        let mut store = MemoryStore::new(&SUMS);
        let mut audit = MemoryAudit::new(&mut store);
        audit.add(SUM, |_| amounts.map(|(shop, amount)| sale(shop, amount))).unwrap();
        run_whole(Mode::Repair, &SUMS, Options::default().page(page), &mut audit).unwrap();
        drop(audit);
        assert_eq!(store.totals(SUM).unwrap(), wanted);
    }
}

// Sources that differ from the tally.

/// Asserts that a repair refuses a source that differs from the hooks, and changes nothing. A
/// verify reports what it finds.
#[track_caller]
fn assert_mismatch(rows: &str, source: impl Fn() -> SqliteRows, says: &[&str]) {
    let conn = sales_database(rows);
    conn.execute_batch("INSERT INTO shop_sum VALUES (1, 99), (77, 5)").unwrap();
    let changes = conn.total_changes();
    for page in [1, 1_000] {
        let error = run_over(&conn, &SUMS, source(), Mode::Repair, page).unwrap_err();
        assert!(
            matches!(error, Error::DefinitionMismatch { counter: "shop.sum", .. }),
            "{error:?}"
        );
        assert_eq!(error.recovery(), Recovery::Permanent);
        for said in says {
            assert!(error.to_string().contains(said), "`{error}` does not say {said}");
        }
    }
    assert_eq!(conn.total_changes(), changes);
    let report = run_over(&conn, &SUMS, source(), Mode::Verify, 10).unwrap();
    assert!(report.complete() && report.drift() >= 2, "{report}");
}

const SOME: &str = "(1, 4, 1), (1, 5, 0), (2, -3, 1), (3, 1, 1)";

#[test]
fn a_filter_that_counts_other_rows_is_refused() {
    let over =
        |filter: &'static str| move || sales(Columns::of(["shop"]).sum("amount").filter(filter));
    assert_mismatch(SOME, over("NOT open"), &["SQL adds nothing", "tally adds 4 to key 1"]);
    assert_mismatch(SOME, over("1"), &["SQL adds 5 to key 1", "tally adds nothing"]);
    assert_mismatch(
        SOME,
        over("open AND amount > 0"),
        &["key 2", "SQL adds nothing", "-3 to key 2"],
    );
    // The hooks count a row that SQL excludes because its condition is null.
    assert_mismatch(
        SOME,
        over("open AND (amount <> 1 OR NULL)"),
        &["key 3", "SQL adds nothing", "1 to key 3"],
    );
    assert_mismatch(SOME, || sales(Columns::of(["shop"]).sum("amount")), &["5 to key 1"]);
}

#[test]
fn amount_that_differs_from_the_tally_is_refused() {
    let over =
        |amount: &'static str| move || sales(Columns::of(["shop"]).sum(amount).filter("open"));
    assert_mismatch(SOME, over("abs(amount)"), &["key 2", "adds 3 to key 2", "-3 to key 2"]);
    assert_mismatch(SOME, over("amount * 2"), &["adds 8 to key 1", "4 to key 1"]);
    assert_mismatch(
        SOME,
        || sales(Columns::of(["shop"]).count().filter("open")),
        &["adds 1 to key 1", "4 to key 1"],
    );
}

#[test]
fn key_column_that_differs_from_the_tally_is_refused() {
    let other = || sales(by_shop()).columns("shop + 1, amount, open");
    assert_mismatch(SOME, other, &["adds 4 to key 1", "4 to key 2"]);
    // A row that has a key in the tally and none in SQL.
    let without = || sales(by_shop()).columns("coalesce(shop, 8), amount, open");
    assert_mismatch("(1, 4, 1), (NULL, 6, 1)", without, &["adds nothing", "6 to key 8"]);
}

/// The probe samples the first and the last rows only. A repair also samples rows of its own keys.
#[test]
fn a_mismatch_in_the_middle_is_found_by_the_repair_of_its_key() {
    let conn = sales_database("");
    insert_sales(&conn, 300, 3);
    conn.execute_batch(
        "UPDATE sales SET open = 1, amount = 1;
         INSERT INTO shop_sum SELECT shop, count(*) FROM sales GROUP BY shop;
         UPDATE sales SET amount = -1 WHERE shop = 150;
         UPDATE shop_sum SET total = -3 WHERE key = 150",
    )
    .unwrap();
    // SQL counts 3 where the hooks counted -3.
    let columns = Columns::of(["shop"]).sum("abs(amount)").filter("open");
    let changes = conn.total_changes();
    let error = run_over(&conn, &SUMS, sales(columns.clone()), Mode::Repair, 1_000).unwrap_err();
    assert!(matches!(&error, Error::DefinitionMismatch { key, .. } if key == "150"), "{error}");
    assert_eq!(conn.total_changes(), changes + 1, "the run wrote nothing but its own row");
    assert!(conn.is_autocommit());
    // By tally there is only one definition, so nothing can differ.
    assert_eq!(
        run_over(&conn, &SUMS, sales(columns.by_tally()), Mode::Repair, 1_000).unwrap().drift(),
        0
    );
}

// What a source consists of.

#[test]
fn a_source_that_does_not_fit_its_counter_is_refused_when_it_is_added() {
    const OTHER: Counter<i64> = Counter::new("shop.sum_other");
    const BOTH: Schema = Schema::new(&[SUM.table(), OTHER.table()]);
    let conn = database(&BOTH, &format!("{SALES} {INDEX}"));
    let rows = sales(Columns::of(["shop", "open"]).count());
    assert_source(add_source(&conn, &BOTH, rows), &["shop.sum", "2 key columns", "1 parts"]);
    assert_source(
        add_source(&conn, &BOTH, sales(Columns::of([]).count())),
        &["shop.sum", "0 key columns"],
    );
    for (rows, names) in [
        (sales_of("sold").key(SUM, Columns::of(["shop"]).count()), vec!["sold"]),
        (sales(Columns::of(["store"]).count()), vec!["shop.sum", "store"]),
        (sales(by_shop().filter("nonsense(")), vec!["shop.sum"]),
        (sales(by_shop().sum("cents")), vec!["shop.sum", "cents"]),
        (sales(by_shop()).columns("shop, cents"), vec!["shop.sum", "cents"]),
    ] {
        let error = add_source(&conn, &BOTH, rows).unwrap_err();
        assert_eq!(error.recovery(), Recovery::Permanent);
        for name in names {
            assert!(error.to_string().contains(name), "`{error}` does not name {name}");
        }
    }
    let rows = sales_of("sales").key(Counter::<i64>::new("shop.nowhere"), by_shop());
    let error = add_source(&conn, &BOTH, rows).unwrap_err();
    assert!(matches!(error, Error::UnknownCounter { .. }), "{error}");
    // A counter without a source is found when its turn comes.
    let mut audit = audit_of(&conn, &BOTH, sales(by_shop())).unwrap();
    for mode in [Mode::Verify, Mode::Repair] {
        let report = run_whole(mode, &BOTH, Options::default(), &mut audit).unwrap();
        assert!(report.counters[1].unchecked, "{report}");
        assert_eq!((report.outcome, report.counters[0].complete), (Outcome::Unchecked, true));
    }
}

const FIRST: Counter<i64> = Counter::new("a.n");
const SECOND: Counter<i64> = Counter::new("b.n");
const TWO: Schema = Schema::new(&[FIRST.table(), SECOND.table()]);

struct One(i64);

struct Other(i64);

impl Record for One {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(FIRST, self.0, 1);
    }
}

impl Record for Other {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SECOND, self.0, 1);
    }
}

/// One such row once ended a repair of all counters before its first page.
#[test]
fn unreadable_row_fails_only_its_own_counter_and_is_reported() {
    for (bad, says) in [
        ("x'00ff'", "a blob of 2 bytes, 00ff"),
        ("2.5", "2.5"),
        ("'seven'", "seven"),
        ("CAST(x'ff41' AS TEXT)", "a text of the bytes ff41"),
    ] {
        for by_tally in [false, true] {
            let conn = Connection::open_in_memory().unwrap();
            let rows = "CREATE TABLE a (k); CREATE INDEX i ON a (k); CREATE TABLE b (k); CREATE INDEX j ON b (k);
                INSERT INTO a VALUES (1), (2); INSERT INTO b VALUES (1), (1), (3)";
            conn.execute_batch(&format!("{rows}; INSERT INTO a VALUES ({bad})")).unwrap();
            let mut store = SqliteStore::new(&conn, &TWO);
            store.create_pending_backfill().unwrap();
            let mut audit = audit_of_two(&conn, by_tally);
            for (mode, found) in [(Mode::Verify, 2), (Mode::Backfill, 2), (Mode::Repair, 0)] {
                let report = run_whole(mode, &TWO, Options::default(), &mut audit).unwrap();
                let why =
                    report.counters[0].failure.clone().unwrap_or_else(|| panic!("{bad}: {report}"));
                assert!(why.contains("counter a.n, key") && why.contains(says), "{why}");
                assert_eq!(
                    (report.outcome.clone(), report.complete()),
                    (Outcome::Incomplete, false)
                );
                assert_eq!((report.counters[0].complete, report.counters[0].clean), (false, false));
                assert_eq!(
                    (report.counters[1].drift(), report.counters[1].complete),
                    (found, true)
                );
                assert!(
                    report.to_string().contains("1 failed counter")
                        && report.table().to_string().contains(says),
                    "{}",
                    report.table()
                );
            }
            assert_eq!(
                (store.is_ready(FIRST.id()).unwrap(), store.is_ready(SECOND.id()).unwrap()),
                (false, true)
            );
            let faulty = audit.faulty_rows(FIRST.id(), 9).unwrap();
            let bad_row = faulty.iter().map(ToString::to_string).find(|row| row.contains(says));
            assert!(bad_row.is_some(), "{faulty:?}");
            assert_eq!(
                (
                    audit.faulty_rows(FIRST.id(), 1).unwrap().len(),
                    audit.faulty_rows(SECOND.id(), 9).unwrap().len()
                ),
                (1, 0)
            );
            // A run over this counter alone returns the error.
            let mut alone =
                Reconciler::scoped(Mode::Repair, &TWO, &[FIRST.id()], Options::default()).unwrap();
            let error = keepcount::reconcile::run(
                &mut alone,
                &mut audit,
                &mut keepcount::reconcile::SystemRuntime::new(),
            )
            .unwrap_err();
            assert!(matches!(error, Error::Key { counter: "a.n", .. }), "{error:?}");
            conn.execute_batch("DELETE FROM a WHERE typeof(k) NOT IN ('integer', 'null')").unwrap();
            let report = run_whole(Mode::Backfill, &TWO, Options::default(), &mut audit).unwrap();
            assert_eq!((report.complete(), report.counters[0].corrected), (true, 2));
        }
    }
}

/// The unreadable row is one of the first counter.
fn database_with_one_unreadable_row() -> Connection {
    let conn = Connection::open_in_memory().unwrap();
    let rows =
        "CREATE TABLE a (k); CREATE INDEX i ON a (k); CREATE TABLE b (k); CREATE INDEX j ON b (k);
        INSERT INTO a VALUES (1), (x'00ff'); INSERT INTO b VALUES (1), (1), (3), (5)";
    conn.execute_batch(rows).unwrap();
    conn
}

/// The first counter is counted by SQL or by tally, the second one by SQL.
fn audit_of_two(conn: &Connection, by_tally: bool) -> SqliteAudit<'_> {
    let columns = Columns::of(["k"]).count();
    let first = if by_tally { columns.clone().by_tally() } else { columns.clone() };
    let mut audit = SqliteAudit::new(conn, &TWO).unwrap();
    audit.add(SqliteRows::of("a", |row| Ok(One(row.get(0)?))).key(FIRST, first)).unwrap();
    audit.add(SqliteRows::of("b", |row| Ok(Other(row.get(0)?))).key(SECOND, columns)).unwrap();
    audit
}

/// The last leg once reported the run as complete.
#[test]
fn counter_that_an_earlier_leg_left_out_leaves_the_run_incomplete() {
    let conn = database_with_one_unreadable_row();
    SqliteStore::new(&conn, &TWO).create().unwrap();
    let mut audit = audit_of_two(&conn, false);
    let options = Options::default().page(1).max_pages(1);
    let mut reports = Vec::new();
    let mut run = Reconciler::new(Mode::Repair, &TWO, options).unwrap();
    loop {
        reports.push(
            keepcount::reconcile::run(
                &mut run,
                &mut audit,
                &mut keepcount::reconcile::SystemRuntime::new(),
            )
            .unwrap(),
        );
        // Through its text, as the next process reads it from a file.
        let Some(token) = run.token() else { break };
        let token = token.to_string().parse().unwrap();
        run = Reconciler::resume(Mode::Repair, &TWO, &token, options).unwrap();
    }
    assert!(reports.len() > 2, "{reports:?}");
    for report in &reports {
        assert!(!report.complete() && report.counters[0].failure.is_some(), "{report}");
    }
    let last = reports.last().unwrap();
    assert_eq!((&last.outcome, last.counters[1].complete), (&Outcome::Incomplete, true));
    assert!(last.counters[0].failure.as_ref().unwrap().contains("earlier leg"), "{last}");
}

/// The counter was once skipped again, although its rows were repaired.
#[test]
fn restarted_backfill_includes_a_counter_that_an_earlier_leg_left_out() {
    let conn = database_with_one_unreadable_row();
    let mut store = SqliteStore::new(&conn, &TWO);
    store.create_pending_backfill().unwrap();
    let mut audit = audit_of_two(&conn, false);
    let options = Options::default().page(1).max_pages(1);
    let mut run = Reconciler::new(Mode::Backfill, &TWO, options).unwrap();
    let live = || keepcount::reconcile::SystemRuntime::new();
    assert!(
        keepcount::reconcile::run(&mut run, &mut audit, &mut live()).unwrap().counters[0]
            .failure
            .is_some()
    );
    // A backup from before the leg is restored, and the row is deleted.
    conn.execute_batch("DELETE FROM keepcount_runs; DELETE FROM a WHERE typeof(k) = 'blob'")
        .unwrap();
    let mut run =
        Reconciler::resume(Mode::Backfill, &TWO, &run.token().unwrap(), options.max_pages(99))
            .unwrap();
    let report = keepcount::reconcile::run(&mut run, &mut audit, &mut live()).unwrap();
    assert!(report.complete() && report.counters[0].failure.is_none(), "{report}");
    assert_eq!((store.unready().unwrap(), store.total(FIRST, 1).unwrap()), (vec![], 1));
}

/// The error once claimed that `SqliteStore::create` makes the table, and it did not handle a name
/// qualified by its schema.
#[test]
fn missing_source_is_named_and_the_error_does_not_mention_the_store() {
    let conn = sales_database("(1, 1, 1)");
    conn.execute_batch(
        "ATTACH ':memory:' AS old; CREATE TABLE old.archive (shop INTEGER, amount, open INTEGER)",
    )
    .unwrap();
    for (name, says) in [
        ("slaes", "no table or view of this name is there; the source of counter shop.sum"),
        ("main.slaes", "no table or view of this name is there"),
        ("main.archive", "one is in old"),
        ("public.sales", "one is in main"),
    ] {
        let error =
            add_source(&conn, &SUMS, sales_of(name).key(SUM, Columns::of(["shop"]).count()))
                .unwrap_err();
        assert!(
            matches!(&error, Error::SchemaMismatch { table, .. } if table == name),
            "{error:?}"
        );
        assert!(
            error.to_string().contains(says) && !error.to_string().contains("SqliteStore"),
            "{error}"
        );
    }
    let shop = || Columns::of(["shop"]).count();
    for (rows, says) in [
        (sales(Columns::of(["store"]).count()), "no such column: r.store"),
        (
            SqliteRows::query("SELECT * FROM slaes", |row| Ok(read_sale(row)?))
                .columns("shop, amount, open")
                .key(SUM, shop()),
            "no such table: slaes",
        ),
        (sales(by_shop().filter("open AND")), "syntax error"),
        (sales_of("main.").key(SUM, shop()), "main. is not a table's name"),
        (
            SqliteRows::of("sales", |row| {
                Ok(Sale { shop: row.get("store")?, amount: 1, open: true })
            })
            .columns("shop, amount, open")
            .key(SUM, by_shop()),
            "store",
        ),
    ] {
        let refused = run_over(&conn, &SUMS, rows, Mode::Repair, 9);
        assert!(!format!("{refused:?}").contains("SqliteStore"), "{refused:?}");
        assert_source(refused, &["source of counter shop.sum", says]);
    }
}

#[test]
fn source_table_may_be_qualified_and_must_be_if_another_hides_it() {
    let conn = sales_database("(1, 5, 1), (2, 6, 1)");
    let as_before = [("1".to_owned(), 5), ("2".to_owned(), 6)];
    let of = |name| sales_of(name).key(SUM, Columns::of(["shop"]).sum("amount"));
    for name in ["sales", "main.sales", "MAIN.Sales", r#""main"."sales""#] {
        assert_eq!(expected_all(&conn, &SUMS, SUM, of(name), 9), as_before, "{name}");
    }
    conn.execute_batch(
        r#"ATTACH ':memory:' AS old; CREATE TABLE old."of.sales" (shop INTEGER, amount, open INTEGER); CREATE INDEX old.i ON "of.sales" (shop);
           INSERT INTO old."of.sales" VALUES (3, 7, 1); CREATE TEMP TABLE scratch (shop INTEGER, amount, open INTEGER);
           CREATE INDEX temp.j ON scratch (shop)"#,
    )
    .unwrap();
    assert_eq!(expected_all(&conn, &SUMS, SUM, of(r#"old."of.sales""#), 9), [("3".to_owned(), 7)]);
    assert_eq!(expected_all(&conn, &SUMS, SUM, of(r#""of.sales""#), 9), [("3".to_owned(), 7)]);
    assert_eq!(expected_all(&conn, &SUMS, SUM, of("scratch"), 9), []);
    // A repair once took the hidden table for an empty source.
    for hides in [
        "TABLE sales (shop INTEGER, amount, open INTEGER)",
        "VIEW sales AS SELECT * FROM main.sales WHERE shop < 2",
    ] {
        let mut before = audit_of(&conn, &SUMS, sales(by_shop())).unwrap();
        conn.execute_batch(&format!("CREATE TEMP {hides}")).unwrap();
        assert_source(
            add_source(&conn, &SUMS, sales(by_shop())),
            &["sales is in main and in temp", "main.sales"],
        );
        assert_eq!(expected_all(&conn, &SUMS, SUM, of("main.sales"), 9), as_before);
        // An audit keeps the table that it resolved when the source was added.
        let report = run_whole(Mode::Verify, &SUMS, Options::default(), &mut before).unwrap();
        assert_eq!(report.counters[0].missing, 2);
        drop(before);
        conn.execute_batch(&format!("DROP {} temp.sales", hides.split(' ').next().unwrap()))
            .unwrap();
    }
}

#[test]
fn a_key_of_another_type_is_an_error_that_names_counter_and_value() {
    for (value, names) in [
        ("'seven'", ["shop.sum", "seven"]),
        ("2.5", ["shop.sum", "2.5"]),
        ("x'0102'", ["shop.sum", "a blob of 2 bytes"]),
    ] {
        let conn = sales_database(&format!("(1, 1, 1), ({value}, 1, 1)"));
        let rows = sales(by_shop()).columns("1, amount, open");
        let error = run_over(&conn, &SUMS, rows, Mode::Verify, 10).unwrap_err();
        assert!(matches!(error, Error::Key { .. }), "{error:?}");
        for name in names {
            assert!(error.to_string().contains(name), "`{error}` does not name {name}");
        }
    }
    let conn =
        database(&TEXTS, "CREATE TABLE tags (name, shop INTEGER); CREATE INDEX i ON tags (name)");
    conn.execute_batch("INSERT INTO tags VALUES ('a', 1), (5, 1)").unwrap();
    let error = repair_names(&conn, by_name().columns("name || '', shop")).unwrap_err();
    assert!(matches!(error, Error::Key { counter: "tag.names", .. }), "{error:?}");
    assert!(error.to_string().contains("key 5"), "{error}");
}

#[test]
fn a_text_key_of_1025_bytes_in_a_row_is_an_error_and_one_of_1024_is_a_key() {
    let conn = database(
        &TEXTS,
        "CREATE TABLE tags (name TEXT, shop INTEGER); CREATE INDEX i ON tags (name)",
    );
    conn.execute("INSERT INTO tags VALUES (?1, 1), ('b', 1)", ["x".repeat(1024)]).unwrap();
    assert_eq!(repair_names(&conn, by_name()).unwrap().counters[0].corrected, 2);
    conn.execute("INSERT INTO tags VALUES (?1, 1), ('c', 1)", ["x".repeat(1025)]).unwrap();
    for rows in [by_name(), by_name_by_tally()] {
        let error = repair_names(&conn, rows).unwrap_err();
        assert!(matches!(error, Error::Key { counter: "tag.names", .. }), "{error:?}");
        assert!(
            error.to_string().contains("1025 bytes") && error.to_string().len() < 300,
            "{error}"
        );
    }
    let totals = SqliteStore::new(&conn, &TEXTS).totals(NAMES).unwrap();
    assert!(totals.iter().all(|(name, total)| name.len() <= 1024 && *total == 1), "{totals:?}");
}

#[test]
fn a_database_in_utf_16_is_refused_where_keys_are_texts() {
    for encoding in ["UTF-16le", "UTF-16be"] {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!(
            "PRAGMA encoding = '{encoding}'; CREATE TABLE tags (name TEXT)"
        ))
        .unwrap();
        let error = SqliteStore::new(&conn, &TEXTS).create().unwrap_err();
        assert!(
            matches!(error, Error::SchemaMismatch { .. }) && error.to_string().contains(encoding),
            "{error}"
        );
        for statement in keepcount::sql::ddl(keepcount::sql::Dialect::Sqlite, &TEXTS) {
            conn.execute_batch(&statement).unwrap();
        }
        let error = SqliteStore::new(&conn, &TEXTS).check().unwrap_err();
        assert!(
            matches!(error, Error::SchemaMismatch { .. }) && error.to_string().contains(encoding),
            "{error}"
        );
        assert!(SqliteAudit::new(&conn, &TEXTS).is_err());
        // Integer keys do not depend on the encoding.
        SqliteStore::new(&conn, &SUMS).create().unwrap();
    }
}

// In memory.

fn sale(shop: i64, amount: i64) -> Sale {
    Sale { shop: Some(shop), amount, open: true }
}

/// A store with the totals of the rows and some drift.
fn drifted(rows: &[Sale]) -> MemoryStore {
    let store = MemoryStore::new(&SUMS);
    let mut batch = Batch::new();
    batch.insert(rows);
    batch.add(SUM, 2, 10);
    batch.add(SUM, -7, 1);
    batch.add(SUM, 500, -1);
    store.apply(&mut batch).unwrap();
    store
}

#[test]
fn rows_in_memory_that_come_out_of_key_order_are_refused() {
    for rows in [
        vec![sale(2, 1), sale(1, 1)],
        vec![sale(1, 1), sale(2, 1), sale(1, 1)],
        vec![sale(i64::MAX, 1), sale(i64::MIN, 1)],
    ] {
        for page in [1, 1_000] {
            let mut store = MemoryStore::new(&SUMS);
            let mut audit = MemoryAudit::new(&mut store);
            audit.add(SUM, |_| rows.iter()).unwrap();
            let result = run_whole(Mode::Repair, &SUMS, Options::default().page(page), &mut audit);
            assert_source(result, &["shop.sum", "not in key order"]);
        }
    }
    // Rows that are not counted may be anywhere.
    let rows = [
        sale(1, 4),
        Sale { open: false, ..sale(-9, 1) },
        sale(1, 5),
        Sale { shop: None, ..sale(0, 1) },
        sale(2, 1),
    ];
    let mut store = drifted(&rows);
    let mut audit = MemoryAudit::new(&mut store);
    audit.add(SUM, |_| rows.iter()).unwrap();
    let report = run_whole(Mode::Repair, &SUMS, Options::default().page(1), &mut audit).unwrap();
    assert_eq!((report.counters[0].keys, report.counters[0].corrected), (4, 3));
    drop(audit);
    assert_eq!(Store::totals(&mut store, SUM).unwrap(), [(1, 9), (2, 1)]);
}

#[test]
fn memory_source_that_ignores_its_bound_is_still_exact() {
    let rows: Vec<Sale> = (0..60).map(|at| sale(at / 3, at % 4 + 1)).collect();
    let whole = |page: usize, honour: bool| {
        let mut store = drifted(&rows);
        let (mut asked, mut read) = (0, 0);
        let mut audit = MemoryAudit::new(&mut store);
        audit
            .add(SUM, |from: Bound<i64>| {
                asked += 1;
                let start = match from {
                    Bound::Unbounded => 0,
                    Bound::Included(from) => rows.partition_point(|row| row.shop.unwrap() < from),
                    Bound::Excluded(from) => rows.partition_point(|row| row.shop.unwrap() <= from),
                };
                let rows = if honour { &rows[start..] } else { &rows[..] };
                read += rows.len();
                rows
            })
            .unwrap();
        let report =
            run_whole(Mode::Repair, &SUMS, Options::default().page(page), &mut audit).unwrap();
        drop(audit);
        assert_eq!(
            asked,
            1 + report.pages + report.counters[0].corrected,
            "one read for the probe, for each page and for each repaired key"
        );
        assert!(read >= rows.len());
        (report.to_string(), Store::totals(&mut store, SUM).unwrap())
    };
    for page in [1, 2, 7, 1_000] {
        let (honest, other) = (whole(page, true), whole(page, false));
        assert_eq!(honest, other);
        assert_eq!(honest.1.len(), 20);
        assert!(honest.0.contains("1 wrong, 0 missing, 2 orphan; 3 corrected"), "{}", honest.0);
    }
}

#[test]
fn error_of_a_row_in_memory_keeps_its_cause() {
    let good = drifted(&[sale(1, 1)]);
    let mut store = good;
    let before = Store::totals(&mut store, SUM).unwrap();
    let mut audit = MemoryAudit::new(&mut store);
    audit
        .add_fallible(SUM, |_| [Ok(sale(1, 1)), Err("the line is not JSON".into()), Ok(sale(2, 1))])
        .unwrap();
    for mode in [Mode::Verify, Mode::Repair] {
        let error = run_whole(mode, &SUMS, Options::default(), &mut audit).unwrap_err();
        assert_eq!(error.to_string(), "reading rows of counter shop.sum: the line is not JSON");
        let Error::Database { cause, .. } = error else { panic!("{error:?}") };
        assert_eq!(cause.to_string(), "the line is not JSON");
    }
    drop(audit);
    assert_eq!(Store::totals(&mut store, SUM).unwrap(), before);
}

#[test]
fn counter_in_memory_without_a_source_is_named_in_the_error() {
    let mut store = MemoryStore::new(&SUMS);
    let mut audit = MemoryAudit::new(&mut store);
    for mode in [Mode::Verify, Mode::Repair] {
        let error = run_whole(mode, &SUMS, Options::default(), &mut audit).unwrap_err();
        assert!(matches!(error, Error::NoSource { counter: "shop.sum" }), "{error}");
    }
    // A second source replaces the first one.
    audit.add(SUM, |_| [sale(1, 5)]).unwrap();
    audit.add(SUM, |_| [sale(1, 6)]).unwrap();
    let report = run_whole(Mode::Repair, &SUMS, Options::default(), &mut audit).unwrap();
    assert_eq!(report.counters[0].samples[0].expected, 6);
}

// Order.

/// SQLite groups in key order, whatever the order of the rows. The order of records, and of the
/// lists of a user's own audit, is checked.
#[test]
fn unordered_keys_are_sorted_by_sql_and_refused_elsewhere() {
    let conn = sales_database("(3, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1)");
    let query = |columns: Columns| {
        let text = "SELECT * FROM sales ORDER BY shop DESC";
        SqliteRows::query(text, |row| Ok(read_sale(row)?))
            .columns("shop, amount, open")
            .key(SUM, columns)
    };
    let wanted = [("1", 2), ("2", 1), ("3", 1)].map(|(key, total)| (key.to_owned(), total));
    for page in [1, 2, 10] {
        assert_eq!(expected_all(&conn, &SUMS, SUM, query(by_shop()), page), wanted);
        assert_eq!(expected_all(&conn, &SUMS, SUM, query(by_shop().by_tally()), page), wanted);
    }
    // By tally, with rows whose record has another key than the column that orders them.
    let lying = || sales(by_shop().by_tally()).columns("-shop, amount, open");
    for mode in [Mode::Verify, Mode::Repair] {
        let result = run_over(&conn, &SUMS, lying(), mode, 10);
        assert_source(result, &["shop.sum", "another key than its tally"]);
    }
    // A user's own audit calls `merge`, which checks the order of both lists.
    let key = |key: i64| KeyBuf::of::<i64>(key);
    let recount =
        |at: i64| keepcount::reconcile::audit::Recount { key: key(at), total: 1, rows: 1 };
    let ask = PageRequest { counter: SUM.id(), after: None, until: None, keys: 5 };
    for pair in [[2, 1], [1, 1]] {
        assert_source(
            keepcount::reconcile::audit::merge(&ask, pair.map(recount).to_vec(), Vec::new()),
            &["rows", "key order"],
        );
        let totals = pair.map(|at| (key(at), 1)).to_vec();
        assert_source(
            keepcount::reconcile::audit::merge(&ask, Vec::new(), totals),
            &["totals", "key order"],
        );
    }
}
