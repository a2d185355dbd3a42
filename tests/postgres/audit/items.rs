//! Rows and totals for every kind of key, damage to the totals, and their drift by plain SQL.

use crate::support::postgres::{Server, connect};
use keepcount::reconcile::{
    AsyncAudit, Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, Report,
    TokioRuntime, run_async,
};
use keepcount::{AsKey, Counter, Key, PostgresStore, Record, Result, Schema, Tally};
use tokio_postgres::{Client, Row};
use uuid::Uuid;

/// A kind of key: the columns of its rows, and the expressions that compute them from a number `i`.
pub trait Kind: Sized + Send + Sync + 'static {
    type Key: Key + AsKey<Self::Key> + Clone + Send + Sync;
    const COUNTER: Counter<Self::Key>;
    const SCHEMA: Schema;
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)];

    fn read(row: &Row) -> std::result::Result<Self::Key, tokio_postgres::Error>;

    fn columns() -> Columns {
        match Self::COLUMNS {
            [(one, ..)] => Columns::of([one]),
            [(one, ..), (two, ..)] => Columns::of([one, two]),
            _ => Columns::of([]),
        }
    }
}

macro_rules! kind {
    ($name:ident, $key:ty, $counter:literal, $columns:expr, $read:expr) => {
        pub struct $name;

        impl Kind for $name {
            type Key = $key;
            const COUNTER: Counter<$key> = Counter::new($counter);
            const SCHEMA: Schema = Schema::new(const { &[Self::COUNTER.table()] });
            const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &$columns;

            fn read(row: &Row) -> std::result::Result<$key, tokio_postgres::Error> {
                let read: fn(&Row) -> std::result::Result<$key, tokio_postgres::Error> = $read;
                read(row)
            }
        }
    };
}

kind!(Whole, (), "of.all", [], |_| Ok(()));
kind!(Integer, i64, "of.integer", [("k", "INT4", "i - 40")], |row| Ok(row
    .try_get::<_, i32>(0)?
    .into()));
// Upper and lower case, letters beyond ASCII, and characters that languages ignore when they sort.
kind!(
    Text,
    String,
    "of.text",
    [("k", "VARCHAR(40)", "chr(33 + i * 5 % 400) || '-' || i")],
    |row| row.try_get(0)
);
kind!(Id, Uuid, "of.uuid", [("k", "UUID", "md5(i::text)::uuid")], |row| {
    Ok(Uuid::parse_str(row.try_get(0)?).unwrap())
});
kind!(Bytes, [u8; 16], "of.bytes", [("k", "BYTEA", "decode(md5(i::text), 'hex')")], |row| {
    Ok(row.try_get::<_, &[u8]>(0)?.try_into().unwrap())
});
kind!(Wide, i128, "of.wide", [("k", "BYTEA", "decode(md5(i::text), 'hex')")], |row| {
    let bytes: [u8; 16] = row.try_get::<_, &[u8]>(0)?.try_into().unwrap();
    Ok((u128::from_be_bytes(bytes) ^ (1 << 127)).cast_signed())
});
kind!(
    Pair,
    (i16, String),
    "of.pair",
    [("one", "INT2", "i % 7"), ("two", "TEXT", "chr(65 + i % 58) || i")],
    |row| Ok((row.try_get(0)?, row.try_get(1)?))
);

pub struct Item<T: Kind> {
    pub key: Option<T::Key>,
    pub amount: i64,
    pub counts: bool,
}

impl<T: Kind> Record for Item<T> {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(key) = self.key.as_ref().filter(|_| self.counts) {
            to.add(T::COUNTER, key.clone(), self.amount);
        }
    }
}

/// Joins a text for each column, with a comma after each.
fn join_columns<T: Kind>(
    what: impl Fn(&(&'static str, &'static str, &'static str)) -> String,
) -> String {
    T::COLUMNS.iter().map(|column| what(column) + ", ").collect()
}

/// The key columns of the totals' table, and of a row, in the same order.
pub fn key_columns<T: Kind>() -> (Vec<String>, Vec<&'static str>) {
    let keys = match T::COLUMNS.len() {
        0 => Vec::new(),
        1 => vec!["key".to_owned()],
        many => (1..=many).map(|at| format!("key_{at}")).collect(),
    };
    (keys, T::COLUMNS.iter().map(|(name, ..)| *name).collect())
}

pub fn source<T: Kind>(by_tally: bool) -> PostgresRows {
    let columns = T::COLUMNS.iter().map(|(name, kind, _)| match *kind {
        "UUID" => format!("{name}::text, "),
        _ => format!("{name}, "),
    });
    let there = T::COLUMNS
        .first()
        .map_or_else(|| "true".to_owned(), |(name, ..)| format!("{name} IS NOT NULL"));
    let columns = format!("{}amount, spam, {there}", columns.collect::<String>());
    let width = T::COLUMNS.len();
    let rows = PostgresRows::of("items", move |row| {
        Ok(Item::<T> {
            key: if row.try_get(width + 2)? { Some(T::read(row)?) } else { None },
            amount: row.try_get::<_, i32>(width)?.into(),
            counts: !row.try_get::<_, bool>(width + 1)?,
        })
    });
    let key = if by_tally { T::columns() } else { T::columns().sum("amount").filter("NOT spam") };
    rows.columns(&columns).key(T::COUNTER, key)
}

/// Writes rows of 300 keys and one row without a key, and exact totals.
pub async fn fill<T: Kind>(client: &mut Client) {
    let columns: String = join_columns::<T>(|(name, kind, _)| format!("{name} {kind}"));
    let indexed: Vec<String> = T::COLUMNS
        .iter()
        .map(|(name, kind, _)| match *kind {
            "TEXT" | "VARCHAR(40)" => format!("{name} COLLATE \"C\""),
            _ => (*name).to_owned(),
        })
        .collect();
    let index = if indexed.is_empty() {
        String::new()
    } else {
        format!("CREATE INDEX ON items ({});", indexed.join(", "))
    };
    let made: String = join_columns::<T>(|(.., made)| (*made).to_owned());
    let names = join_columns::<T>(|(name, ..)| (*name).to_owned());
    let nothing = join_columns::<T>(|_| "NULL".to_owned());
    let text = format!(
        "CREATE TABLE items (id BIGSERIAL, {columns}amount INT, spam BOOL NOT NULL); {index}
         INSERT INTO items ({names}amount, spam) SELECT {made}(n * 7 + i) % 11 - 3, (i + n) % 9 = 0
         FROM generate_series(1, 300) AS i, generate_series(1, 6) AS n;"
    );
    client.batch_execute(&text).await.unwrap();
    if !T::COLUMNS.is_empty() {
        let text = format!("INSERT INTO items ({names}amount, spam) VALUES ({nothing}5, false)");
        client.batch_execute(&text).await.unwrap();
    }
    PostgresStore::new(client, &T::SCHEMA).create().await.unwrap();
    refill::<T>(client).await;
}

pub async fn refill<T: Kind>(client: &Client) {
    let table = T::COUNTER.id().name().replace('.', "_");
    let (_, names) = key_columns::<T>();
    let text = if names.is_empty() {
        format!(
            "DELETE FROM {table}; INSERT INTO {table} SELECT 0, sum(amount) FROM items WHERE NOT spam"
        )
    } else {
        let listed = names.join(", ");
        format!(
            "DELETE FROM {table}; INSERT INTO {table} SELECT {listed}, sum(amount) FROM items
             WHERE NOT spam AND {} IS NOT NULL GROUP BY {listed} HAVING sum(amount) <> 0",
            names[0]
        )
    };
    client.batch_execute(&text).await.unwrap();
}

/// Makes totals wrong, deletes totals, and adds orphans.
pub async fn damage<T: Kind>(client: &Client) {
    let table = T::COUNTER.id().name().replace('.', "_");
    let made: String = join_columns::<T>(|(.., made)| (*made).to_owned());
    let text = if T::COLUMNS.is_empty() {
        format!("UPDATE {table} SET total = total + 5")
    } else {
        format!(
            "UPDATE {table} SET total = total + 5 WHERE total % 3 = 0; DELETE FROM {table} WHERE total % 5 = 1;
             INSERT INTO {table} SELECT {made}i - 521 FROM generate_series(471, 520) AS i"
        )
    };
    client.batch_execute(&text).await.unwrap();
}

/// The numbers of keys that are wrong, missing and orphans, by plain SQL; all 0 if totals are
/// exact.
pub async fn drift<T: Kind>(client: &Client) -> (u64, u64, u64) {
    let table = T::COUNTER.id().name().replace('.', "_");
    let (keys, names) = key_columns::<T>();
    let own: Vec<String> =
        keys.iter().zip(&names).map(|(key, name)| format!("{key} AS {name}, ")).collect();
    let (own, theirs) = (own.concat(), join_columns::<T>(|(name, ..)| (*name).to_owned()));
    let (given, group) = match names.first() {
        None => (String::new(), String::new()),
        Some(first) => {
            (format!("AND {first} IS NOT NULL"), format!("GROUP BY {}", names.join(", ")))
        }
    };
    let text = format!(
        "SELECT count(*) FILTER (WHERE s <> t AND s <> 0 AND t <> 0), count(*) FILTER (WHERE s = 0 AND t <> 0),
         count(*) FILTER (WHERE s <> 0 AND t = 0) FROM (SELECT sum(s) AS s, sum(t) AS t FROM
         (SELECT {own}total AS s, 0 AS t FROM {table}
          UNION ALL SELECT {theirs}0, amount FROM items WHERE NOT spam {given}) AS a {group}) AS b"
    );
    let row = client.query_one(&text, &[]).await.unwrap();
    let count = |at: usize| row.get::<_, i64>(at).unsigned_abs();
    (count(0), count(1), count(2))
}

pub async fn run_whole(
    mode: Mode,
    schema: &Schema,
    options: Options,
    audit: &mut impl AsyncAudit,
) -> Result<Report> {
    let mut reconciler = Reconciler::new(mode, schema, options)?;
    run_async(&mut reconciler, audit, &mut TokioRuntime::new()).await
}

pub fn drift_kinds(report: &Report) -> (u64, u64, u64) {
    let counter = &report.counters[0];
    (counter.wrong, counter.missing, counter.orphan)
}

pub async fn text_of(client: &Client, query: &str) -> String {
    client.query_one(query, &[]).await.unwrap().get(0)
}

pub async fn database(server: &Server) -> Client {
    connect(&server.database().await).await
}

/// An audit whose source is the items of one kind.
pub async fn audit<T: Kind>(client: &mut Client) -> PostgresAudit<'_> {
    let mut audit = PostgresAudit::new(client, &T::SCHEMA).await.unwrap();
    audit.add(source::<T>(false)).await.unwrap();
    audit
}

/// Another connection to the same database.
pub async fn connect_again(client: &Client, server: &Server) -> Client {
    let name: String =
        client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    connect(&server.config(&name)).await
}
