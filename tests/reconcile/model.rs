//! Random writes, sabotage, pages, stops and resumes, compared with a naive recount in plain maps,
//! for both stores. The model predicts every total, what a verify finds, and what a repair leaves.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::support::world::{World, through_text};
use keepcount::reconcile::{
    Audit, Columns, CounterReport, MemoryAudit, Mode, Options, Reconciler, Report, Sample,
    SqliteAudit, SqliteRows, run,
};
use keepcount::{
    Batch, Counter, CounterId, KeyBuf, MemoryStore, Record, Schema, SqliteStore, Store, Tally,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use rusqlite::{Connection, OptionalExtension, Row, params};

const ALL_SALES: Counter<()> = Counter::new("all.sales");
const SHOP_DAYS: Counter<(i64, i8)> = Counter::new("shop.days");
const SHOP_SALES: Counter<i64> = Counter::new("shop.sales");
const SHOP_SUM: Counter<i64> = Counter::new("shop.sum");
const TAG_USES: Counter<String> = Counter::new("tag.uses");
const TAG_YEARS: Counter<(String, u16)> = Counter::new("tag.years");
/// Not in the order of names.
const SCHEMA: Schema = Schema::new(&[
    TAG_YEARS.table(),
    SHOP_SUM.table(),
    SHOP_SALES.table(),
    ALL_SALES.table(),
    TAG_USES.table(),
    SHOP_DAYS.table(),
]);

#[derive(Debug, Clone, PartialEq)]
struct Sale {
    shop: Option<i64>,
    day: Option<i8>,
    amount: i64,
    open: bool,
}

impl Record for Sale {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(ALL_SALES, (), 1);
        if let Some(shop) = self.shop {
            if self.open {
                to.add(SHOP_SALES, shop, 1);
                to.add(SHOP_SUM, shop, self.amount);
            }
            if let Some(day) = self.day {
                to.add(SHOP_DAYS, (shop, day), self.amount);
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Tag {
    name: Option<String>,
    year: u16,
    weight: i64,
}

impl Record for Tag {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(name) = &self.name {
            to.add(TAG_USES, name, 1);
            to.add(TAG_YEARS, (name, self.year), self.weight);
        }
    }
}

/// A change of one row, or of all rows of a parent.
#[derive(Debug, Clone)]
enum Change {
    PutSale(u8, Sale),
    DropSale(u8),
    PutTag(u8, Tag),
    DropTag(u8),
    CloseShop(i64),
}

#[derive(Debug, Clone)]
enum Op {
    /// A transaction through the hooks.
    Write { changes: Vec<Change>, commit: bool },
    /// A transaction with a savepoint that has its own batch. That batch is merged, applied inside
    /// the savepoint, or dropped.
    Nested { outer: Vec<Change>, inner: Vec<Change>, early: bool, release: bool, commit: bool },
    /// A row changed without hooks.
    Sabotage(Change),
    /// A total changed without hooks; `None` deletes its row.
    SetTotal(Name, Option<i64>),
}

/// A counter's key without the crate's types. It sorts as the crate must sort it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    AllSales,
    ShopDays(i64, i8),
    ShopSales(i64),
    ShopSum(i64),
    TagUses(String),
    TagYears(String, u16),
}

impl Name {
    fn counter(&self) -> &'static str {
        match self {
            Self::AllSales => "all.sales",
            Self::ShopDays(..) => "shop.days",
            Self::ShopSales(..) => "shop.sales",
            Self::ShopSum(..) => "shop.sum",
            Self::TagUses(..) => "tag.uses",
            Self::TagYears(..) => "tag.years",
        }
    }

    fn of(counter: &str, key: &KeyBuf) -> Self {
        match counter {
            "all.sales" => {
                key.decode::<()>().unwrap();
                Self::AllSales
            }
            "shop.days" => {
                let (shop, day) = key.decode().unwrap();
                Self::ShopDays(shop, day)
            }
            "shop.sales" => Self::ShopSales(key.decode().unwrap()),
            "shop.sum" => Self::ShopSum(key.decode().unwrap()),
            "tag.uses" => Self::TagUses(key.decode().unwrap()),
            _ => {
                let (name, year) = key.decode().unwrap();
                Self::TagYears(name, year)
            }
        }
    }
}

/// Totals that are not 0.
type Totals = BTreeMap<Name, i64>;

/// The rows, without any totals.
#[derive(Debug, Clone, Default)]
struct Rows {
    sales: BTreeMap<u8, Sale>,
    tags: BTreeMap<u8, Tag>,
}

impl Rows {
    fn change(&mut self, change: &Change) {
        match change.clone() {
            Change::PutSale(id, sale) => drop(self.sales.insert(id, sale)),
            Change::DropSale(id) => drop(self.sales.remove(&id)),
            Change::PutTag(id, tag) => drop(self.tags.insert(id, tag)),
            Change::DropTag(id) => drop(self.tags.remove(&id)),
            Change::CloseShop(shop) => self.sales.retain(|_, sale| sale.shop != Some(shop)),
        }
    }

    /// Recounts every counter from all rows.
    fn recount(&self) -> Totals {
        let mut totals = Totals::new();
        let mut add = |name, amount| *totals.entry(name).or_insert(0) += amount;
        for sale in self.sales.values() {
            add(Name::AllSales, 1);
            if let Sale { shop: Some(shop), amount, open: true, .. } = sale {
                add(Name::ShopSales(*shop), 1);
                add(Name::ShopSum(*shop), *amount);
            }
            if let Sale { shop: Some(shop), day: Some(day), amount, .. } = sale {
                add(Name::ShopDays(*shop, *day), *amount);
            }
        }
        for tag in self.tags.values() {
            if let Tag { name: Some(name), year, weight } = tag {
                add(Name::TagUses(name.clone()), 1);
                add(Name::TagYears(name.clone(), *year), *weight);
            }
        }
        totals.retain(|_, total| *total != 0);
        totals
    }
}

/// The expected state: the rows, and the totals that hooks and sabotage leave.
#[derive(Debug, Clone, Default)]
struct Model {
    rows: Rows,
    stored: Totals,
}

impl Model {
    /// A hooked write changes a stored total by as much as the true one.
    fn hooked(&mut self, rows: Rows) {
        let (before, after) = (self.rows.recount(), rows.recount());
        self.rows = rows;
        for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(name))) {
            let moved = at(&after, name) - at(&before, name);
            *self.stored.entry(name.clone()).or_insert(0) += moved;
        }
        self.stored.retain(|_, total| *total != 0);
    }

    fn set_total(&mut self, name: &Name, total: Option<i64>) {
        match total {
            None | Some(0) => drop(self.stored.remove(name)),
            Some(total) => drop(self.stored.insert(name.clone(), total)),
        }
    }

    fn drift(&self) -> Totals {
        let expected = self.rows.recount();
        let mut drift = self.stored.clone();
        for (name, total) in expected {
            *drift.entry(name).or_insert(0) -= total;
        }
        drift.retain(|_, drift| *drift != 0);
        drift
    }

    /// What a verify must find, counter by counter in the order of names.
    fn expected(&self, samples: usize) -> Vec<Found> {
        let true_totals = self.rows.recount();
        let mut ids = SCHEMA.by_name();
        ids.sort_by_key(CounterId::name);
        let found = ids.iter().map(|id| {
            let mut found = Found { counter: id.name(), ..Found::default() };
            let mut names: Vec<&Name> = self
                .stored
                .keys()
                .chain(true_totals.keys())
                .filter(|name| name.counter() == id.name())
                .collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let (stored, true_totals) = (at(&self.stored, name), at(&true_totals, name));
                found.keys += 1;
                match (stored, true_totals) {
                    (stored, true_totals) if stored == true_totals => continue,
                    (0, _) => found.missing += 1,
                    (_, 0) => found.orphan += 1,
                    _ => found.wrong += 1,
                }
                if found.samples.len() < samples {
                    found.samples.push((name.clone(), stored, true_totals));
                }
            }
            found
        });
        found.collect()
    }
}

fn at(totals: &Totals, name: &Name) -> i64 {
    totals.get(name).copied().unwrap_or(0)
}

/// The results of one counter in a report, in the types of the model.
#[derive(Debug, Clone, Default, PartialEq)]
struct Found {
    counter: &'static str,
    keys: u64,
    wrong: u64,
    missing: u64,
    orphan: u64,
    samples: Vec<(Name, i64, i64)>,
}

impl Found {
    fn of(report: &CounterReport) -> Self {
        let counter = report.counter.name();
        let sample =
            |sample: &Sample| (Name::of(counter, &sample.key), sample.stored, sample.expected);
        let CounterReport { keys, wrong, missing, orphan, ref samples, .. } = *report;
        Self {
            counter,
            keys,
            wrong,
            missing,
            orphan,
            samples: samples.iter().map(sample).collect(),
        }
    }

    fn add(&mut self, other: Self) {
        assert_eq!(self.counter, other.counter);
        self.keys += other.keys;
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.orphan += other.orphan;
        self.samples.extend(other.samples);
    }
}

fn found(report: &Report) -> Vec<Found> {
    report.counters.iter().map(Found::of).collect()
}

/// A store with its rows, and an application's ways to write.
trait Subject {
    fn new() -> Self;
    fn begin(&mut self);
    /// Applies the batch, which is the last statement of the transaction, and ends the transaction.
    fn end(&mut self, batch: &Batch, commit: bool);
    fn savepoint(&mut self);
    /// Applies the batch of a savepoint inside it. Returns whether the store can do that.
    fn apply_inside(&mut self, batch: &Batch) -> bool;
    fn leave_savepoint(&mut self, release: bool);
    /// Returns the old row.
    fn put_sale(&mut self, id: u8, sale: &Sale) -> Option<Sale>;
    fn drop_sale(&mut self, id: u8) -> Option<Sale>;
    fn put_tag(&mut self, id: u8, tag: &Tag) -> Option<Tag>;
    fn drop_tag(&mut self, id: u8) -> Option<Tag>;
    fn close_shop(&mut self, shop: i64) -> Vec<Sale>;
    fn set_total(&mut self, name: &Name, total: Option<i64>);
    fn totals(&mut self) -> Totals;
    /// With `other`, SQL sources count by tally instead of by SQL, and memory sources return all
    /// rows instead of those from the bound on.
    fn reconcile(&mut self, run: &mut Reconciler, other: bool) -> Report;

    fn change(&mut self, change: &Change, batch: &mut Batch) {
        match change {
            Change::PutSale(id, sale) => match self.put_sale(*id, sale) {
                Some(old) => batch.update(&old, sale),
                None => batch.insert(sale),
            },
            Change::DropSale(id) => batch.delete(&self.drop_sale(*id)),
            Change::PutTag(id, tag) => match self.put_tag(*id, tag) {
                Some(old) => batch.update(&old, tag),
                None => batch.insert(tag),
            },
            Change::DropTag(id) => batch.delete(&self.drop_tag(*id)),
            Change::CloseShop(shop) => batch.delete(&self.close_shop(*shop)),
        }
    }
}

fn totals_of(store: &mut impl Store) -> Totals {
    let mut totals = Totals::new();
    totals.extend(
        store.totals(ALL_SALES).unwrap().into_iter().map(|((), total)| (Name::AllSales, total)),
    );
    let days = store.totals(SHOP_DAYS).unwrap().into_iter();
    totals.extend(days.map(|((shop, day), total)| (Name::ShopDays(shop, day), total)));
    totals.extend(
        store
            .totals(SHOP_SALES)
            .unwrap()
            .into_iter()
            .map(|(shop, total)| (Name::ShopSales(shop), total)),
    );
    totals.extend(
        store
            .totals(SHOP_SUM)
            .unwrap()
            .into_iter()
            .map(|(shop, total)| (Name::ShopSum(shop), total)),
    );
    totals.extend(
        store
            .totals(TAG_USES)
            .unwrap()
            .into_iter()
            .map(|(name, total)| (Name::TagUses(name), total)),
    );
    let years = store.totals(TAG_YEARS).unwrap().into_iter();
    totals.extend(years.map(|((name, year), total)| (Name::TagYears(name, year), total)));
    totals
}

struct Sqlite(Connection);

const TABLES: &str = "
    CREATE TABLE sales (id INTEGER PRIMARY KEY, shop INTEGER, day INTEGER, amount INTEGER NOT NULL, open INTEGER NOT NULL);
    CREATE INDEX sales_by_shop ON sales (shop, day);
    CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT, year INTEGER NOT NULL, weight INTEGER NOT NULL);
    CREATE INDEX tags_by_name ON tags (name, year);
";
const SALE: &str = "shop, day, amount, open";
const TAG: &str = "name, year, weight";

fn read_sale(row: &Row<'_>) -> rusqlite::Result<Sale> {
    Ok(Sale { shop: row.get(0)?, day: row.get(1)?, amount: row.get(2)?, open: row.get(3)? })
}

fn read_tag(row: &Row<'_>) -> rusqlite::Result<Tag> {
    Ok(Tag { name: row.get(0)?, year: row.get(1)?, weight: row.get(2)? })
}

impl Sqlite {
    fn one<T>(&self, text: &str, id: u8, read: fn(&Row<'_>) -> rusqlite::Result<T>) -> Option<T> {
        self.0.prepare_cached(text).unwrap().query_row([id], read).optional().unwrap()
    }

    fn run(&self, text: &str) {
        self.0.execute_batch(text).unwrap();
    }

    fn store(&self) -> SqliteStore<'_> {
        SqliteStore::new(&self.0, &SCHEMA)
    }
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
        let applied = self.store().apply(&mut batch.clone()).unwrap();
        assert_eq!((applied.totals, applied.statements), (batch.len() as u64, batch.len() as u64));
        self.run(if commit { "COMMIT" } else { "ROLLBACK" });
    }

    fn savepoint(&mut self) {
        self.run("SAVEPOINT inner");
    }

    fn apply_inside(&mut self, batch: &Batch) -> bool {
        self.store().apply(&mut batch.clone()).unwrap();
        true
    }

    fn leave_savepoint(&mut self, release: bool) {
        self.run(if release { "RELEASE inner" } else { "ROLLBACK TO inner; RELEASE inner" });
    }

    fn put_sale(&mut self, id: u8, sale: &Sale) -> Option<Sale> {
        let old =
            self.one("SELECT shop, day, amount, open FROM sales WHERE id = ?1", id, read_sale);
        let write = if old.is_some() {
            "UPDATE sales SET shop = ?2, day = ?3, amount = ?4, open = ?5 WHERE id = ?1"
        } else {
            "INSERT INTO sales VALUES (?1, ?2, ?3, ?4, ?5)"
        };
        let Sale { shop, day, amount, open } = sale;
        self.0.execute(write, params![id, shop, day, amount, open]).unwrap();
        old
    }

    fn drop_sale(&mut self, id: u8) -> Option<Sale> {
        self.one("DELETE FROM sales WHERE id = ?1 RETURNING shop, day, amount, open", id, read_sale)
    }

    fn put_tag(&mut self, id: u8, tag: &Tag) -> Option<Tag> {
        let old = self.one("SELECT name, year, weight FROM tags WHERE id = ?1", id, read_tag);
        let write = if old.is_some() {
            "UPDATE tags SET name = ?2, year = ?3, weight = ?4 WHERE id = ?1"
        } else {
            "INSERT INTO tags VALUES (?1, ?2, ?3, ?4)"
        };
        self.0.execute(write, params![id, tag.name, tag.year, tag.weight]).unwrap();
        old
    }

    fn drop_tag(&mut self, id: u8) -> Option<Tag> {
        self.one("DELETE FROM tags WHERE id = ?1 RETURNING name, year, weight", id, read_tag)
    }

    fn close_shop(&mut self, shop: i64) -> Vec<Sale> {
        let mut delete =
            self.0.prepare(&format!("DELETE FROM sales WHERE shop = ?1 RETURNING {SALE}")).unwrap();
        delete.query_map([shop], read_sale).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    fn set_total(&mut self, name: &Name, total: Option<i64>) {
        let set = |table: &str, keys: &str, key: &[&dyn rusqlite::ToSql]| {
            let offsets = (1..=key.len()).map(|at| format!("?{at}")).collect::<Vec<_>>().join(", ");
            let text = match total {
                None => format!("DELETE FROM {table} WHERE ({keys}) = ({offsets})"),
                Some(total) => {
                    format!("INSERT OR REPLACE INTO {table} VALUES ({offsets}, {total})")
                }
            };
            self.0.execute(&text, key).unwrap();
        };
        match name {
            Name::AllSales => set("all_sales", "key", &[&0]),
            Name::ShopDays(shop, day) => set("shop_days", "key_1, key_2", &[shop, day]),
            Name::ShopSales(shop) => set("shop_sales", "key", &[shop]),
            Name::ShopSum(shop) => set("shop_sum", "key", &[shop]),
            Name::TagUses(name) => set("tag_uses", "key", &[name]),
            Name::TagYears(name, year) => set("tag_years", "key_1, key_2", &[name, year]),
        }
    }

    fn totals(&mut self) -> Totals {
        totals_of(&mut self.store())
    }

    fn reconcile(&mut self, reconciler: &mut Reconciler, other: bool) -> Report {
        let mut audit = SqliteAudit::new(&self.0, &SCHEMA).unwrap();
        let counted = |columns: Columns| if other { columns.by_tally() } else { columns };
        let sales = SqliteRows::of("sales", |row| Ok(read_sale(row)?))
            .columns(SALE)
            .key(ALL_SALES, counted(Columns::of([]).count()))
            .key(SHOP_DAYS, counted(Columns::of(["shop", "day"]).sum("amount")))
            .key(SHOP_SALES, counted(Columns::of(["shop"]).count().filter("open")))
            .key(SHOP_SUM, counted(Columns::of(["shop"]).sum("amount").filter("open")));
        let tags = SqliteRows::of("tags", |row| Ok(read_tag(row)?))
            .columns(TAG)
            .key(TAG_USES, counted(Columns::of(["name"]).count()))
            .key(TAG_YEARS, counted(Columns::of(["name", "year"]).sum("weight")));
        audit.add(sales).unwrap();
        audit.add(tags).unwrap();
        run_to_end(reconciler, &mut audit)
    }
}

struct Memory {
    store: MemoryStore,
    rows: Rows,
    saved: Vec<Rows>,
}

/// The rows in the order of `key`, those without a key first: from the bound on, or all of them
/// each time.
fn in_order<'a, R: 'a, K: Ord + 'a>(
    rows: impl Iterator<Item = &'a R>,
    key: impl Fn(&R) -> Option<K> + 'a,
    all: bool,
) -> impl FnMut(Bound<K>) -> Vec<&'a R> + 'a {
    let mut rows: Vec<&R> = rows.collect();
    rows.sort_by_key(|row| key(row));
    move |from| {
        let start = match from {
            _ if all => 0,
            Bound::Unbounded => 0,
            Bound::Included(from) => {
                rows.partition_point(|row| key(row).is_none_or(|key| key < from))
            }
            Bound::Excluded(from) => {
                rows.partition_point(|row| key(row).is_none_or(|key| key <= from))
            }
        };
        rows[start..].to_vec()
    }
}

impl Subject for Memory {
    fn new() -> Self {
        Self { store: MemoryStore::new(&SCHEMA), rows: Rows::default(), saved: Vec::new() }
    }

    fn begin(&mut self) {
        self.saved.push(self.rows.clone());
    }

    fn end(&mut self, batch: &Batch, commit: bool) {
        let saved = self.saved.pop().unwrap();
        if commit {
            self.store.apply(&mut batch.clone()).unwrap();
        } else {
            self.rows = saved;
        }
    }

    fn savepoint(&mut self) {
        self.begin();
    }

    fn apply_inside(&mut self, _: &Batch) -> bool {
        false
    }

    fn leave_savepoint(&mut self, release: bool) {
        let saved = self.saved.pop().unwrap();
        if !release {
            self.rows = saved;
        }
    }

    fn put_sale(&mut self, id: u8, sale: &Sale) -> Option<Sale> {
        self.rows.sales.insert(id, sale.clone())
    }

    fn drop_sale(&mut self, id: u8) -> Option<Sale> {
        self.rows.sales.remove(&id)
    }

    fn put_tag(&mut self, id: u8, tag: &Tag) -> Option<Tag> {
        self.rows.tags.insert(id, tag.clone())
    }

    fn drop_tag(&mut self, id: u8) -> Option<Tag> {
        self.rows.tags.remove(&id)
    }

    fn close_shop(&mut self, shop: i64) -> Vec<Sale> {
        let gone = |sale: &Sale| sale.shop == Some(shop);
        let sales = self.rows.sales.values().filter(|sale| gone(sale)).cloned().collect();
        self.rows.sales.retain(|_, sale| !gone(sale));
        sales
    }

    fn set_total(&mut self, name: &Name, total: Option<i64>) {
        let change = total.unwrap_or(0) - at(&self.totals(), name);
        let mut batch = Batch::new();
        match name {
            Name::AllSales => batch.add(ALL_SALES, (), change),
            Name::ShopDays(shop, day) => batch.add(SHOP_DAYS, (*shop, *day), change),
            Name::ShopSales(shop) => batch.add(SHOP_SALES, shop, change),
            Name::ShopSum(shop) => batch.add(SHOP_SUM, shop, change),
            Name::TagUses(name) => batch.add(TAG_USES, name, change),
            Name::TagYears(name, year) => batch.add(TAG_YEARS, (name, *year), change),
        }
        self.store.apply(&mut batch).unwrap();
    }

    fn totals(&mut self) -> Totals {
        totals_of(&mut self.store)
    }

    fn reconcile(&mut self, reconciler: &mut Reconciler, other: bool) -> Report {
        let Rows { sales, tags } = &self.rows;
        let mut audit = MemoryAudit::new(&mut self.store);
        audit.add(ALL_SALES, in_order(sales.values(), |_| Some(()), other)).unwrap();
        audit
            .add(SHOP_DAYS, in_order(sales.values(), |sale| sale.shop.zip(sale.day), other))
            .unwrap();
        audit.add(SHOP_SALES, in_order(sales.values(), |sale| sale.shop, other)).unwrap();
        audit.add(SHOP_SUM, in_order(sales.values(), |sale| sale.shop, other)).unwrap();
        audit.add(TAG_USES, in_order(tags.values(), |tag| tag.name.clone(), other)).unwrap();
        audit
            .add(
                TAG_YEARS,
                in_order(tags.values(), |tag| Some((tag.name.clone()?, tag.year)), other),
            )
            .unwrap();
        run_to_end(reconciler, &mut audit)
    }
}

fn run_to_end(reconciler: &mut Reconciler, audit: &mut impl Audit) -> Report {
    run(reconciler, audit, &mut World::default()).unwrap()
}

/// The operations, and how their result is audited.
#[derive(Debug, Clone)]
struct Case {
    ops: Vec<Op>,
    page: Option<usize>,
    samples: usize,
    /// The number of pages of one leg.
    leg: u64,
    /// Hooked writes between the legs of the repair.
    between: Vec<Vec<Change>>,
    other: bool,
}

fn shop() -> impl Strategy<Value = i64> {
    prop_oneof![0..3_i64, Just(-1), Just(i64::MIN), Just(i64::MAX)]
}

fn name() -> impl Strategy<Value = String> {
    const NAMES: [&str; 9] = [
        "",
        "\0",
        "\u{1}",
        "a",
        "a\0",
        "ab",
        "\u{e9}",
        "z\\\t\n'\"",
        "far longer than any key that lives inline",
    ];
    (0..NAMES.len()).prop_map(|at| NAMES[at].to_owned())
}

fn amount() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -2..=2_i64, 1 => Just(1 << 44), 1 => Just(-(1 << 44))]
}

fn sale() -> impl Strategy<Value = Sale> {
    let day = prop_oneof![Just(i8::MIN), Just(-1), Just(0), Just(i8::MAX)];
    (weighted(0.8, shop()), weighted(0.8, day), amount(), any::<bool>())
        .prop_map(|(shop, day, amount, open)| Sale { shop, day, amount, open })
}

fn tag() -> impl Strategy<Value = Tag> {
    let year = prop_oneof![Just(0), Just(1999), Just(u16::MAX)];
    (weighted(0.8, name()), year, amount()).prop_map(|(name, year, weight)| Tag {
        name,
        year,
        weight,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let id = || 0..6_u8;
    prop_oneof![
        4 => (id(), sale()).prop_map(|(id, sale)| Change::PutSale(id, sale)),
        2 => id().prop_map(Change::DropSale),
        4 => (id(), tag()).prop_map(|(id, tag)| Change::PutTag(id, tag)),
        2 => id().prop_map(Change::DropTag),
        1 => shop().prop_map(Change::CloseShop),
    ]
}

fn key() -> impl Strategy<Value = Name> {
    prop_oneof![
        Just(Name::AllSales),
        (shop(), -1..2_i8).prop_map(|(shop, day)| Name::ShopDays(shop, day)),
        shop().prop_map(Name::ShopSales),
        shop().prop_map(Name::ShopSum),
        name().prop_map(Name::TagUses),
        (name(), 0..3_u16).prop_map(|(name, year)| Name::TagYears(name, year)),
    ]
}

fn write_op() -> impl Strategy<Value = Op> {
    let changes = || vec(change(), 0..5);
    prop_oneof![
        (changes(), any::<bool>(), any::<bool>())
            .prop_map(|(changes, one, two)| Op::Write { changes, commit: one || two }),
        (changes(), changes(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(outer, inner, early, release, commit)| Op::Nested {
                outer,
                inner,
                early,
                release,
                commit
            }
        ),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => write_op(),
        1 => change().prop_map(Op::Sabotage),
        2 => (key(), weighted(0.8, amount())).prop_map(|(name, total)| Op::SetTotal(name, total)),
    ]
}

fn case(op: impl Strategy<Value = Op>) -> impl Strategy<Value = Case> {
    let page =
        prop_oneof![4 => (1..5_usize).prop_map(Some), 1 => Just(Some(1000)), 1 => Just(None)];
    (vec(op, 0..14), page, 0..6_usize, 1..5_u64, vec(vec(change(), 0..3), 0..6), any::<bool>())
        .prop_map(|(ops, page, samples, leg, between, other)| Case {
            ops,
            page,
            samples,
            leg,
            between,
            other,
        })
}

fn apply_op(op: &Op, subject: &mut impl Subject, model: &mut Model) {
    match op {
        Op::Write { changes, commit } => {
            let (mut batch, mut rows) = (Batch::new(), model.rows.clone());
            subject.begin();
            for change in changes {
                subject.change(change, &mut batch);
                rows.change(change);
            }
            subject.end(&batch, *commit);
            if *commit {
                model.hooked(rows);
            }
        }
        Op::Nested { outer, inner, early, release, commit } => {
            let (mut batch, mut rows) = (Batch::new(), model.rows.clone());
            subject.begin();
            for change in outer {
                subject.change(change, &mut batch);
                rows.change(change);
            }
            subject.savepoint();
            let (mut inside, mut rows_inside) = (Batch::new(), rows.clone());
            for change in inner {
                subject.change(change, &mut inside);
                rows_inside.change(change);
            }
            let applied = *early && subject.apply_inside(&inside);
            subject.leave_savepoint(*release);
            if *release {
                rows = rows_inside;
                if !applied {
                    batch.merge(&mut inside);
                }
            }
            subject.end(&batch, *commit);
            if *commit {
                model.hooked(rows);
            }
        }
        Op::Sabotage(change) => {
            subject.change(change, &mut Batch::new());
            model.rows.change(change);
        }
        Op::SetTotal(name, total) => {
            subject.set_total(name, *total);
            model.set_total(name, *total);
        }
    }
}

/// Runs leg after leg, each from the token of the one before, with writes between them.
fn run_in_legs<S: Subject>(
    mode: Mode,
    case: &Case,
    subject: &mut S,
    mut between: impl FnMut(&mut S),
) -> Vec<Report> {
    let limits = Options::default().max_pages(case.leg);
    let options = limits.samples(case.samples);
    let options = case.page.map_or(options, |page| options.page(page));
    let mut reconciler = Reconciler::new(mode, &SCHEMA, options).unwrap();
    let mut reports: Vec<Report> = Vec::new();
    loop {
        let report = subject.reconcile(&mut reconciler, case.other);
        let token = report.token.clone();
        assert_eq!(report.complete(), token.is_none());
        assert!(
            report.pages == case.leg || (report.complete() && report.pages < case.leg),
            "{report}"
        );
        reports.push(report);
        let Some(token) = token else { return reports };
        between(subject);
        reconciler = Reconciler::resume(mode, &SCHEMA, &through_text(&token), limits).unwrap();
    }
}

/// What several legs found. The samples of each leg are the first of its own keys.
fn found_in_all(reports: &[Report]) -> Vec<Found> {
    let mut all = found(&reports[0]);
    for report in &reports[1..] {
        all.iter_mut().zip(found(report)).for_each(|(all, more)| all.add(more));
    }
    all
}

fn without_samples(mut found: Vec<Found>) -> Vec<Found> {
    for found in &mut found {
        found.samples.clear();
    }
    found
}

fn check<S: Subject>(case: &Case) {
    let (mut subject, mut model) = (S::new(), Model::default());
    for op in &case.ops {
        let drift = model.drift();
        apply_op(op, &mut subject, &mut model);
        assert_eq!(subject.totals(), model.stored, "the totals after {op:?}");
        if matches!(op, Op::Write { .. } | Op::Nested { .. }) {
            assert_eq!(model.drift(), drift, "{op:?} changed the drift");
        }
    }

    // One whole verify, and the same in several legs.
    let options = Options::default().samples(case.samples);
    let options = case.page.map_or(options, |page| options.page(page));
    let whole = subject
        .reconcile(&mut Reconciler::new(Mode::Verify, &SCHEMA, options).unwrap(), case.other);
    assert!(whole.complete());
    assert_eq!(found(&whole), model.expected(case.samples), "a whole verification");
    let legs = run_in_legs(Mode::Verify, case, &mut subject, |_| ());
    assert_eq!(
        without_samples(found_in_all(&legs)),
        without_samples(found(&whole)),
        "resumed verifications together"
    );
    for (leg, whole) in found_in_all(&legs).iter().zip(found(&whole)) {
        assert_eq!(
            leg.samples[..whole.samples.len()],
            whole.samples,
            "the first samples are the whole run's"
        );
    }
    assert_eq!(legs.iter().map(|leg| leg.rows).sum::<u64>(), whole.rows);
    if case.page.is_some() {
        assert_eq!(legs.iter().map(|leg| leg.pages).sum::<u64>(), whole.pages);
    }
    assert_eq!(subject.totals(), model.stored, "a verification writes nothing");

    // A repair in several legs. The writes between them change true and stored totals alike, so
    // they never change the drift.
    let drifting = model.drift().len() as u64;
    let expected = model.expected(case.samples);
    let mut between = case.between.iter();
    let legs = run_in_legs(Mode::Repair, case, &mut subject, |subject| {
        let Some(changes) = between.next() else { return };
        apply_op(&Op::Write { changes: changes.clone(), commit: true }, subject, &mut model);
    });
    assert_eq!(legs.iter().map(Report::drift).sum::<u64>(), drifting, "what a repair reports");
    let corrected =
        legs.iter().flat_map(|leg| &leg.counters).map(|counter| counter.corrected).sum::<u64>();
    assert_eq!(corrected, drifting, "what a repair corrects");
    if case.between.is_empty() {
        assert_eq!(
            without_samples(found_in_all(&legs)),
            without_samples(expected),
            "a repair reports as a verification"
        );
    }
    assert_eq!(subject.totals(), model.rows.recount(), "the totals after the repair");

    let again = subject
        .reconcile(&mut Reconciler::new(Mode::Repair, &SCHEMA, options).unwrap(), case.other);
    assert_eq!((again.drift(), again.complete()), (0, true), "{again}");
    let true_totals = subject.totals();
    let verify = subject
        .reconcile(&mut Reconciler::new(Mode::Verify, &SCHEMA, options).unwrap(), !case.other);
    assert_eq!((verify.drift(), subject.totals()), (0, true_totals), "{verify}");
}

/// Asserts that hooks alone leave no drift.
fn check_hooks<S: Subject>(case: &Case) {
    let (mut subject, mut model) = (S::new(), Model::default());
    for op in &case.ops {
        apply_op(op, &mut subject, &mut model);
        assert_eq!(subject.totals(), model.rows.recount(), "after {op:?}");
    }
    let report = subject.reconcile(
        &mut Reconciler::new(Mode::Verify, &SCHEMA, Options::default()).unwrap(),
        case.other,
    );
    assert_eq!((report.drift(), report.complete()), (0, true), "{report}");
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 3_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(160))]

    #[test]
    fn sqlite_hooks_alone_leave_no_drift(case in case(write_op())) {
        check_hooks::<Sqlite>(&case);
    }

    #[test]
    fn memory_hooks_alone_leave_no_drift(case in case(write_op())) {
        check_hooks::<Memory>(&case);
    }

    #[test]
    fn sqlite_verify_matches_a_naive_recount_and_repair_removes_all_drift(case in case(op())) {
        check::<Sqlite>(&case);
    }

    #[test]
    fn memory_verify_matches_a_naive_recount_and_repair_removes_all_drift(case in case(op())) {
        check::<Memory>(&case);
    }
}
