//! `PostgresStore::write`: rows and totals in one message, in several, or in an ordinary
//! transaction, with the same result. Values arrive as they would as parameters, and a refused
//! write leaves nothing behind.

use std::error::Error as StdError;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::postgres::{LOCK_WAIT_EXISTS, connect, shared, wait_until};
use crate::support::random::Random;
use keepcount::{
    AsyncStore, Batch, Counter, Error, Leaderboard, PostgresStore, PreparedStatements, Recovery,
    Schema, StreamRange,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Config};

const VOTES: Counter<i64> = Counter::new("show.votes");
const TAGS: Counter<(String, u128)> = Counter::new("show.tags");
const SCHEMA: Schema = Schema::new(&[VOTES.table(), TAGS.table()]);
const INSERT: &str = "INSERT INTO votes VALUES ($1)";
/// keepcount has no text for an address: these rows are sent in several messages.
const INSERT_FROM: &str = "INSERT INTO votes (id, address) VALUES ($1, $2)";
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn open() -> Option<(Config, Client)> {
    let config = shared()?.database().await;
    let mut client = connect(&config).await;
    PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
    client.batch_execute("CREATE TABLE votes (id BIGINT PRIMARY KEY, address INET)").await.unwrap();
    Some((config, client))
}

fn store<'c>(
    client: &'c mut Client,
    prepared: Option<&'c PreparedStatements>,
) -> PostgresStore<'c> {
    let store = PostgresStore::new(client, &SCHEMA);
    match prepared {
        Some(prepared) => store.prepared(prepared),
        None => store,
    }
}

fn one(key: i64, delta: i64) -> Batch {
    let mut batch = Batch::new();
    batch.add(VOTES, key, delta);
    batch
}

/// The number of rows, and the sum of the totals.
async fn written(client: &Client) -> (i64, i64) {
    let row = client.query_one(
        "SELECT count(*), (SELECT coalesce(sum(total), 0)::bigint FROM show_votes) FROM votes",
        &[],
    );
    let row = row.await.unwrap();
    (row.get(0), row.get(1))
}

/// The number of prepared statements.
async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM pg_prepared_statements", &[]).await.unwrap().get(0)
}

/// The number of keepcount's named statements, and how often they were run.
async fn named_statements(client: &Client) -> (i64, i64) {
    let text = "SELECT count(*), coalesce(sum(generic_plans + custom_plans), 0)::bigint
                FROM pg_prepared_statements WHERE name LIKE 'keepcount%'";
    let row = client.query_one(text, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn rows_and_totals_are_written_in_one_round_trip_or_not_at_all() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    let mut next = 0;
    for prepared in [None, Some(&prepared)] {
        for from in [false, true] {
            let text = if from { INSERT_FROM } else { INSERT };
            let id = next * 10;
            let values: [&(dyn ToSql + Sync); 2] = [&id, &HOME];
            let values = &values[..=usize::from(from)];
            let runs = named_statements(&client).await.1;
            let (rows, applied) = store(&mut client, prepared)
                .write(&[(text, values)], &mut one(7, 1))
                .await
                .unwrap();
            assert_eq!((rows, applied.totals), (vec![1], 1));
            let is_message = prepared.is_some() && !from;
            assert_eq!(named_statements(&client).await.1 - runs, if is_message { 2 } else { 0 });
            next += 1;
            assert_eq!(written(&client).await, (next, next));
            // A total beyond 64 bits: the error names its key.
            let error = store(&mut client, prepared)
                .write(&[(INSERT, &[&(id + 1)])], &mut one(7, i64::MAX))
                .await;
            assert!(
                matches!(&error, Err(Error::Overflow { counter: "show.votes", key, .. }) if key == "7"),
                "{error:?}"
            );
            // A row that exists already: its delta is not added.
            let error = store(&mut client, prepared)
                .write(&[(text, values)], &mut one(7, 1))
                .await
                .unwrap_err();
            assert!(
                error.recovery() == Recovery::Permanent
                    && error.to_string().contains("duplicate key value"),
                "{error}"
            );
            let says = "writing rows, statement 1 of the application's own";
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(written(&client).await, (next, next));
        }
    }
    assert_eq!(named_statements(&client).await.0, 3);
}

#[tokio::test]
async fn several_rows_and_several_totals_are_one_transaction() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    let mut batch = one(1, 3);
    batch.add(VOTES, 2, -1);
    for (nasty, id) in [("", 1), ("it's \\ \"{},NULL\"", 2), ("NULL\n", u128::MAX)] {
        batch.add(TAGS, (nasty, id), 2);
    }
    let ids: Vec<i64> = (0..17).collect();
    let values: Vec<[&(dyn ToSql + Sync); 1]> =
        ids.iter().map(|id| [id as &(dyn ToSql + Sync)]).collect();
    let rows: Vec<(&str, &[&(dyn ToSql + Sync)])> =
        values.iter().map(|values| (INSERT, &values[..])).collect();
    let all = ("UPDATE votes SET id = id + 100", &[][..]);
    // The last write is too much for a single round trip, and succeeds all the same.
    for (rows, wanted) in [(&rows[..3], 3), (&rows[3..], 14), (&rows[..], 17)] {
        let rows: Vec<_> = rows.iter().copied().chain([all]).collect();
        let (written, applied) =
            store(&mut client, Some(&prepared)).write(&rows, &mut batch.clone()).await.unwrap();
        assert_eq!(written[..wanted], vec![1; wanted]);
        assert_eq!((written.len(), applied.totals), (wanted + 1, 5));
    }
    assert_eq!(written(&client).await, (34, 6));
    let mut store = store(&mut client, None);
    for (key, wanted) in [(1, 9), (2, -3)] {
        assert_eq!(store.total(VOTES, key).await.unwrap(), wanted);
    }
    for key in [("", 1_u128), ("it's \\ \"{},NULL\"", 2), ("NULL\n", u128::MAX)] {
        assert_eq!(store.total(TAGS, key).await.unwrap(), 6, "{key:?}");
    }
    assert_eq!(named_statements(&client).await, (4, 6 + 17));
    // A statement may return rows, and a write may be empty.
    let returning =
        "INSERT INTO votes SELECT n + $1::bigint FROM generate_series(1, 3) AS n RETURNING id";
    let mut store = PostgresStore::new(&mut client, &SCHEMA).prepared(&prepared);
    assert_eq!(store.write(&[(returning, &[&1_000_i64])], &mut one(1, 3)).await.unwrap().0, [3]);
    assert_eq!(store.write(&[], &mut Batch::new()).await.unwrap().0, Vec::<u64>::new());
}

/// The bytes that the driver sends for a value, whatever its type.
#[derive(Debug, Clone)]
struct Sent(Option<Vec<u8>>);

impl ToSql for Sent {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        let Some(bytes) = &self.0 else { return Ok(IsNull::Yes) };
        out.extend_from_slice(bytes);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// An array as the driver sends it, whose elements are numbered from `first`.
fn array(kind: &Type, first: i32, elements: &[Sent]) -> Sent {
    let has_nulls = elements.iter().any(|element| element.0.is_none());
    let length = i32::try_from(elements.len()).unwrap();
    let mut prefix =
        vec![1, i32::from(has_nulls), i32::try_from(kind.oid()).unwrap(), length, first];
    if elements.is_empty() {
        prefix = vec![0, 0, i32::try_from(kind.oid()).unwrap()];
    }
    let mut bytes: Vec<u8> = prefix.into_iter().flat_map(i32::to_be_bytes).collect();
    for element in elements {
        let length = element.0.as_ref().map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap());
        bytes.extend(length.to_be_bytes());
        bytes.extend(element.0.iter().flatten());
    }
    Sent(Some(bytes))
}

/// A text with backslashes or with letters beyond ASCII, but not with both: those are sent as
/// parameters.
fn text(random: &mut Random) -> String {
    const CHARS: [&str; 14] =
        ["\\", "a", "'", "\"", "{", "}", ",", "NULL", "\n", " ", "$1", ";", "\u{e9}", "\u{1f3b5}"];
    let first = random.below(3);
    (0..random.below(8))
        .map(|_| CHARS[usize::try_from(first + random.below(12)).unwrap()])
        .collect()
}

/// Random bits, often special ones.
fn bits(random: &mut Random) -> u64 {
    let special = [
        0,
        1,
        u64::MAX,
        1 << 63,
        i64::MAX as u64,
        f64::NAN.to_bits(),
        f64::INFINITY.to_bits(),
        1 << 52,
    ];
    if random.below(2) == 0 {
        random.below(u64::MAX)
    } else {
        special[usize::try_from(random.below(8)).unwrap()]
    }
}

fn some(bytes: &[u8]) -> Sent {
    Sent(Some(bytes.to_vec()))
}

/// Microseconds from 2000-01-01 to the years 1 and 9999.
const MOMENTS: (i64, i64) = (-63_082_281_600_000_000, 252_455_615_999_999_999);

/// Columns of types that keepcount has a text for, and a value for each.
fn values(random: &mut Random) -> Vec<(&'static str, Sent)> {
    let suffix = |bits: u64, bytes: usize| some(&bits.to_be_bytes()[8 - bytes..]);
    let nasty = |random: &mut Random| some(text(random).as_bytes());
    let json = |random: &mut Random| format!("{{\"it's\":[\"\\\\\",{}]}}", random.int(-9, 9));
    let day = i32::try_from(random.int(-730_119, 2_921_940)).unwrap();
    let moment = random.int(MOMENTS.0, MOMENTS.1 + 1);
    let double = bits(random);
    let single = u32::try_from(bits(random) >> 32).unwrap();
    let numbers: Vec<Sent> = (0..random.below(4)).map(|_| suffix(bits(random), 8)).collect();
    let texts: Vec<Sent> = (0..random.below(4))
        .map(|_| some(text(random).replace(|c| c > '~', "").as_bytes()))
        .collect();
    vec![
        ("bool", suffix(random.below(2), 1)),
        ("int2", suffix(bits(random), 2)),
        ("int4", suffix(bits(random), 4)),
        ("int8", suffix(bits(random), 8)),
        ("float4", some(&single.to_be_bytes())),
        ("float8", some(&double.to_be_bytes())),
        ("text", nasty(random)),
        ("varchar(99)", nasty(random)),
        ("char(70)", nasty(random)),
        ("json", some(json(random).as_bytes())),
        ("jsonb", some(&[&[1], json(random).as_bytes()].concat())),
        ("bytea", some(&bits(random).to_be_bytes())),
        ("uuid", some(&[bits(random).to_be_bytes(), bits(random).to_be_bytes()].concat())),
        ("date", some(&day.to_be_bytes())),
        ("timestamp", some(&moment.to_be_bytes())),
        ("timestamptz", some(&moment.to_be_bytes())),
        ("int8[]", array(&Type::INT8, 1, &numbers)),
        ("text[]", array(&Type::TEXT, 1, &texts)),
        ("bytea[]", array(&Type::BYTEA, 1, &numbers)),
        (
            "\"odd \"\"mood\"",
            some([&b"it's \\"[..], b"calm"][usize::try_from(random.below(2)).unwrap()]),
        ),
        ("small", suffix(random.below(9), 4)),
        ("text", Sent(None)),
    ]
}

/// Values that keepcount has no text for, or one that the server may read differently.
fn values_without_text() -> Vec<(&'static str, Sent)> {
    let element = some(&7_i64.to_be_bytes());
    vec![
        ("name", some(b"as a text it would be cut off")),
        ("numeric", some(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 7])),
        ("date", some(&i32::MAX.to_be_bytes())),
        ("date", some(&2_921_940_i32.to_be_bytes())),
        ("timestamp", some(&i64::MAX.to_be_bytes())),
        ("timestamptz", some(&i64::MIN.to_be_bytes())),
        ("timestamp", some(&(MOMENTS.1 + 1).to_be_bytes())),
        ("timestamp", some(&(MOMENTS.0 - 1).to_be_bytes())),
        ("int8[]", array(&Type::INT8, 0, &[element])),
        ("text[]", array(&Type::TEXT, 1, &[some(b"NULL"), Sent(None)])),
        ("text", some("\u{e9}\\".as_bytes())),
        ("text", some(&b"long ".repeat(300_000))),
    ]
}

/// Writes the values as parameters and by the store, and asserts that the rows are equal. Returns
/// how often named statements were run for it.
async fn assert_same_both_ways(client: &mut Client, values: &[(&str, Sent)]) -> i64 {
    let columns: Vec<String> =
        (0..).zip(values).map(|(at, (column, _))| format!("c{at} {column}")).collect();
    client
        .batch_execute(&format!(
            "CREATE TABLE IF NOT EXISTS every (way INT, {})",
            columns.join(", ")
        ))
        .await
        .unwrap();
    let places: Vec<String> = (1..=values.len()).map(|at| format!("${at}")).collect();
    let insert = |way: i32| format!("INSERT INTO every VALUES ({way}, {})", places.join(", "));
    let params: Vec<&(dyn ToSql + Sync)> =
        values.iter().map(|(_, value)| value as &(dyn ToSql + Sync)).collect();
    client.execute(&insert(0), &params).await.unwrap();
    // New prepared statements take the same names, as those of another connection would. The server
    // forgets how often the old ones of these names were run.
    let prepared = PreparedStatements::new();
    store(client, Some(&prepared)).write(&[(&insert(1), &params)], &mut one(1, 1)).await.unwrap();
    let runs = named_statements(client).await.1;
    let texts: Vec<String> =
        (0..values.len()).map(|at| format!("coalesce(c{at}::text, 'nothing')")).collect();
    let texts = format!("SELECT ARRAY[{}] FROM every ORDER BY way", texts.join(", "));
    let rows = client.query(&texts, &[]).await.unwrap();
    let (sent, written): (Vec<String>, Vec<String>) = (rows[0].get(0), rows[1].get(0));
    for ((column, value), (sent, written)) in values.iter().zip(sent.iter().zip(&written)) {
        assert_eq!(sent, written, "{column}: {value:?}");
    }
    client.batch_execute("DELETE FROM every").await.unwrap();
    runs
}

/// Also on a server that reads a backslash as an escape, or writes dates and numbers differently.
#[tokio::test]
async fn values_arrive_as_they_would_as_parameters() {
    let Some((_, mut client)) = open().await else { return };
    let mut random = Random(9);
    client
        .batch_execute("CREATE TYPE \"odd \"\"mood\" AS ENUM ('it''s \\', 'calm')")
        .await
        .unwrap();
    client.batch_execute("CREATE DOMAIN small AS int4 CHECK (value < 10)").await.unwrap();
    let settings = [
        "SET standard_conforming_strings = on",
        "SET standard_conforming_strings = off; SET escape_string_warning = off; SET DateStyle = 'German, DMY'",
        "SET standard_conforming_strings = on; SET bytea_output = 'escape'; SET TimeZone = 'Asia/Kathmandu';
         SET extra_float_digits = 0",
    ];
    for setting in settings {
        client.batch_execute(setting).await.unwrap();
        for _ in 0..100 {
            let values = values(&mut random);
            assert_eq!(assert_same_both_ways(&mut client, &values).await, 2);
        }
    }
    assert_eq!(store(&mut client, None).total(VOTES, 1).await.unwrap(), 300);
}

#[tokio::test]
async fn values_without_a_text_are_sent_as_parameters() {
    let Some((_, mut client)) = open().await else { return };
    for value in values_without_text() {
        assert_eq!(assert_same_both_ways(&mut client, &[value]).await, 0);
        client.batch_execute("DROP TABLE every").await.unwrap();
    }
    // Beside a value with a text, and for a value that the caller sends as text.
    let number = ("int8", some(&7_i64.to_be_bytes()));
    assert_eq!(
        assert_same_both_ways(&mut client, &[number, values_without_text().remove(0)]).await,
        0
    );
    client.batch_execute("CREATE TABLE numbers (number INT8)").await.unwrap();
    let insert = "INSERT INTO numbers VALUES ($1)";
    store(&mut client, Some(&PreparedStatements::new()))
        .write(&[(insert, &[&Digits])], &mut one(1, 1))
        .await
        .unwrap();
    let number: i64 = client.query_one("SELECT number FROM numbers", &[]).await.unwrap().get(0);
    assert_eq!(number, 12_345_678);
}

/// A number that is sent as its digits: eight bytes, as many as in binary.
#[derive(Debug)]
struct Digits;

impl ToSql for Digits {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(b"12345678");
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A statement and its values.
type Given<'v> = (&'v str, Vec<&'v (dyn ToSql + Sync)>);

/// The driver skips a statement whose values it cannot send, and sends the ones after it: totals
/// used to be committed without their row.
#[tokio::test]
async fn rows_with_values_that_do_not_fit_write_nothing() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    client.batch_execute("CREATE TABLE notes (small INT2, note TEXT)").await.unwrap();
    let values = |value: &'static (dyn ToSql + Sync)| vec![value];
    let narrow = "INSERT INTO notes (small) VALUES (($1::int8)::int2)";
    let note = "INSERT INTO notes (note) VALUES ($1)";
    let cases: [(Vec<Given<'_>>, &str); 6] = [
        (vec![(INSERT, vec![])], "1 parameters, and 0 were given"),
        (vec![(INSERT, values(&7_i32))], "statement 1"),
        (vec![(INSERT, values(&7_i64)), (INSERT, values(&7_i32))], "statement 2"),
        (vec![(note, values(&"\0"))], "0x00"),
        // The row's value is too large, not a total.
        (vec![(narrow, values(&70_000_i64))], "smallint out of range"),
        (vec![("INSERT INTO vote VALUES ($1)", values(&7_i64))], "vote"),
    ];
    for (rows, says) in &cases {
        let rows: Vec<(&str, &[&(dyn ToSql + Sync)])> =
            rows.iter().map(|(text, values)| (*text, &values[..])).collect();
        for prepared in [None, Some(&prepared)] {
            let error =
                store(&mut client, prepared).write(&rows, &mut one(7, 1)).await.unwrap_err();
            assert!(
                !matches!(error, Error::Overflow { .. }) && error.recovery() == Recovery::Permanent,
                "{error:?}"
            );
            assert!(error.to_string().contains(says), "{error} does not say {says}");
            assert_eq!(written(&client).await, (0, 0));
        }
    }
    // The connection still works.
    store(&mut client, Some(&prepared))
        .write(&[(INSERT, &[&7_i64])], &mut one(7, 1))
        .await
        .unwrap();
    assert_eq!(written(&client).await, (1, 1));
}

#[tokio::test]
async fn failure_at_the_commit_has_a_known_outcome() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    let late = "ALTER TABLE votes ADD UNIQUE (address) DEFERRABLE INITIALLY DEFERRED";
    client.batch_execute(late).await.unwrap();
    let home = "INSERT INTO votes VALUES ($1, '::1')";
    store(&mut client, Some(&prepared)).write(&[(home, &[&1_i64])], &mut one(7, 1)).await.unwrap();
    let error = store(&mut client, Some(&prepared))
        .write(&[(home, &[&2_i64])], &mut one(7, 1))
        .await
        .unwrap_err();
    assert!(
        error.recovery() == Recovery::Permanent
            && error.to_string().contains("duplicate key value"),
        "{error}"
    );
    assert_eq!(written(&client).await, (1, 1));
}

#[tokio::test]
async fn connection_without_the_named_statements_can_be_written_to() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    let (by_parameters, others) = (PreparedStatements::by_parameters(), PreparedStatements::new());
    let mut wanted = 0;
    // Statements are run by name, and prepared anew if the server does not have them. A second set
    // of statements on one connection takes the names over, and the server counts their runs from
    // there.
    let turns = [
        (false, &prepared, 2),
        (true, &prepared, 2),
        (false, &prepared, 2),
        (false, &by_parameters, 0),
        (false, &others, 2 - 4),
    ];
    for (gone, prepared, runs) in turns {
        let names = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'keepcount%'";
        for row in client.query(names, &[]).await.unwrap().iter().filter(|_| gone) {
            client.batch_execute(&format!("DEALLOCATE {}", row.get::<_, &str>(0))).await.unwrap();
        }
        let before = named_statements(&client).await.1;
        store(&mut client, Some(prepared))
            .write(&[(INSERT, &[&wanted])], &mut one(7, 1))
            .await
            .unwrap();
        wanted += 1;
        assert_eq!(written(&client).await, (wanted, wanted));
        assert_eq!(named_statements(&client).await.1 - before, runs);
    }
    // A third set takes the names over, too.
    store(&mut client, Some(&PreparedStatements::new()))
        .write(&[(INSERT, &[&wanted])], &mut one(7, 1))
        .await
        .unwrap();
    wanted += 1;
    assert_eq!(named_statements(&client).await, (2, 2));
    // A statement that cannot be prepared now can be prepared later. The error is that of the
    // statement itself.
    let later = PreparedStatements::new();
    client.batch_execute("DEALLOCATE ALL; ALTER TABLE show_votes RENAME TO away").await.unwrap();
    let error = store(&mut client, Some(&later))
        .write(&[(INSERT, &[&wanted])], &mut one(7, 1))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "show_votes"),
        "{error}"
    );
    assert!(error.to_string().contains("writing totals of counter show.votes"), "{error}");
    client.batch_execute("ALTER TABLE away RENAME TO show_votes").await.unwrap();
    store(&mut client, Some(&later)).write(&[(INSERT, &[&wanted])], &mut one(7, 1)).await.unwrap();
    wanted += 1;
    assert_eq!(named_statements(&client).await, (2, 2));
    // PREPARE does not accept this statement; it is written all the same.
    let notify = "NOTIFY votes";
    store(&mut client, Some(&PreparedStatements::new()))
        .write(&[(notify, &[])], &mut one(7, 1))
        .await
        .unwrap();
    assert_eq!(written(&client).await, (wanted, wanted + 1));
    // At most 256 statements of each kind are prepared.
    client.batch_execute("DEALLOCATE ALL").await.unwrap();
    let (prepared, before) = (PreparedStatements::new(), count(&client).await);
    for at in 0..300 {
        let text = format!("INSERT INTO votes VALUES ($1::bigint + {at})");
        store(&mut client, Some(&prepared))
            .write(&[(&text, &[&1_000_i64])], &mut one(7, 1))
            .await
            .unwrap();
    }
    assert_eq!(written(&client).await, (wanted + 300, wanted + 301));
    assert_eq!(count(&client).await - before, 2 * 256);
}

const MEMBERSHIP: Counter<(i64, i64)> = Counter::new("show.artist");
const SUM: Counter<i64> = Counter::new("artist.votes").sum_of(VOTES, MEMBERSHIP);
const LEADERBOARD: Leaderboard<i64> =
    Leaderboard::new("show.board", [VOTES]).by(|[total]| Some(total));

/// A write that must read totals first is an ordinary transaction.
#[tokio::test]
async fn rollups_leaderboards_and_cutoffs_are_written_too() {
    const SUMMED: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SUM.table()]);
    const RANKED: Schema = Schema::new(&[VOTES.table()]).leaderboards(&[LEADERBOARD.id()]);
    const PRUNED: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table().prunable()]);
    for schema in [&SUMMED, &RANKED, &PRUNED] {
        let Some(server) = shared() else { return };
        let mut client = connect(&server.database().await).await;
        client.batch_execute("CREATE TABLE votes (id BIGINT PRIMARY KEY)").await.unwrap();
        let prepared = PreparedStatements::new();
        let mut store = PostgresStore::new(&mut client, schema).prepared(&prepared);
        store.create().await.unwrap();
        let mut batch = one(7, 1);
        if schema.counters().len() > 1 {
            batch.add(MEMBERSHIP, (7, 70), 1);
        }
        if schema.counters().len() == 2 {
            store.prune(MEMBERSHIP, 100).await.unwrap();
        }
        assert_eq!(store.write(&[(INSERT, &[&1_i64])], &mut batch).await.unwrap().0, [1]);
        assert_eq!(store.total(VOTES, 7).await.unwrap(), 1);
        match schema.counters().len() {
            1 => assert_eq!(store.listed(LEADERBOARD).await.unwrap(), 1),
            2 => assert_eq!(
                store.total(MEMBERSHIP, (7, 70)).await.unwrap(),
                0,
                "it is below the cutoff"
            ),
            _ => assert_eq!(store.total(SUM, 70).await.unwrap(), 1),
        }
    }
}

/// A transaction that deletes a parent locks it, and then needs the total. A write that held the
/// total while it waits for the parent would cause a deadlock.
#[tokio::test]
async fn total_is_not_locked_while_a_row_waits_for_its_parent() {
    let Some((config, mut client)) = open().await else { return };
    client.batch_execute("CREATE TABLE shows (id BIGINT PRIMARY KEY)").await.unwrap();
    client.batch_execute("ALTER TABLE votes ADD FOREIGN KEY (id) REFERENCES shows").await.unwrap();
    for (id, from) in [(1_i64, false), (2, true)] {
        client.execute("INSERT INTO shows VALUES ($1)", &[&id]).await.unwrap();
        let tx = client.transaction().await.unwrap();
        tx.execute("DELETE FROM shows WHERE id = $1", &[&id]).await.unwrap();
        let mut voter = connect(&config).await;
        let voting = tokio::spawn(async move {
            let prepared = PreparedStatements::new();
            let values: [&(dyn ToSql + Sync); 2] = [&id, &HOME];
            let text = if from { INSERT_FROM } else { INSERT };
            store(&mut voter, Some(&prepared))
                .write(&[(text, &values[..=usize::from(from)])], &mut one(id, 1))
                .await
        });
        let watcher = connect(&config).await;
        wait_until(&watcher, LOCK_WAIT_EXISTS).await;
        tx.batch_execute("SET LOCAL lock_timeout = '2s'").await.unwrap();
        PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut one(id, -5)).await.unwrap();
        tx.commit().await.unwrap();
        let error = tokio::time::timeout(Duration::from_secs(20), voting)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err();
        assert!(error.to_string().contains("violates foreign key constraint"), "{error}");
        assert_eq!(store(&mut client, None).total(VOTES, id).await.unwrap(), -5);
    }
}

/// Connects through a proxy. While `words` is set to `from` and `to`, of the same length, the proxy
/// replaces the next `from` that the client sends.
async fn connect_tampered(
    config: &Config,
    words: Arc<Mutex<Option<(&'static str, &'static str)>>>,
) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let network: Config = shared().unwrap().url(config.get_dbname().unwrap()).parse().unwrap();
    let server = ("127.0.0.1", network.get_ports()[0]);
    let mut to_server = TcpStream::connect(server).await.unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = to_server.split();
        let there = async {
            let mut bytes = vec![0; 1 << 16];
            loop {
                let read = from_client.read(&mut bytes).await.unwrap_or(0);
                if read == 0 {
                    break;
                }
                let said = &mut bytes[..read];
                {
                    let mut armed = words.lock().unwrap();
                    if let Some((from, to)) = *armed
                        && let Some(at) =
                            said.windows(from.len()).position(|said| said == from.as_bytes())
                    {
                        said[at..at + to.len()].copy_from_slice(to.as_bytes());
                        *armed = None;
                    }
                }
                if to_server.write_all(said).await.is_err() {
                    break;
                }
            }
        };
        let back = tokio::io::copy(&mut from_server, &mut to_client);
        tokio::select! { () = there => {} _ = back => {} }
    });
    let mut way = Config::new();
    way.host("127.0.0.1").port(port).dbname(config.get_dbname().unwrap());
    way.user(network.get_user().unwrap()).password(network.get_password().unwrap());
    connect(&way).await
}

/// A COMMIT that the server refuses before it runs it (because it was cancelled, for example) used
/// to leave the client in an aborted transaction. All later calls on it failed, as
/// [`Recovery::Permanent`], for ever.
#[tokio::test]
async fn commit_refused_before_it_runs_leaves_the_client_idle() {
    let Some((config, watcher)) = open().await else { return };
    let words = Arc::new(Mutex::new(None));
    let mut client = connect_tampered(&config, Arc::clone(&words)).await;
    for (turn, refused) in (0..).zip(["COMMIT", "BEGIN"]) {
        for call in 0..6 {
            let words_of_way = match refused {
                "COMMIT" => ("COMMIT\0", "COMMIX\0"),
                _ => ("BEGIN\0", "BEGIX\0"),
            };
            let id: i64 = turn * 10 + call;
            let before = written(&watcher).await;
            let stream_range = StreamRange::new("events", 1, 1).unwrap();
            let values: [&(dyn ToSql + Sync); 2] = [&id, &HOME];
            *words.lock().unwrap() = Some(words_of_way);
            let mut by = store(&mut client, None);
            let error = match call {
                0 => by.apply(&mut one(7, 1)).await.map(drop),
                1 => by.apply_idempotent(&mut one(7, 1), &stream_range).await.map(drop),
                2 => by.write(&[(INSERT_FROM, &values)], &mut one(7, 1)).await.map(drop),
                3 => by.create().await,
                4 => by.drop_counter("nothing").await,
                _ => by.write(&[], &mut one(7, 1)).await.map(drop),
            };
            assert!(
                *words.lock().unwrap() != Some(words_of_way) || call == 4,
                "{call}: the client did not send {refused}"
            );
            *words.lock().unwrap() = None;
            let error = error.unwrap_err();
            assert!(call == 4 || error.to_string().contains("syntax error"), "{call}: {error}");
            assert_ne!(error.recovery(), Recovery::Indeterminate, "{call}: {error}");
            assert_eq!(written(&watcher).await, before, "{call}: {error}");
            let state = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
            assert_eq!(
                watcher.query_one(state, &[]).await.unwrap().get::<_, i64>(0),
                0,
                "{call}: {error}"
            );
            // The client works as before.
            let prepared = PreparedStatements::new();
            let mut by = store(&mut client, Some(&prepared));
            by.write(&[(INSERT, &[&id])], &mut one(7, 1)).await.unwrap();
            by.total(VOTES, 7).await.unwrap();
            let after = written(&watcher).await;
            assert_eq!(after, (before.0 + 1, before.1 + 1));
        }
    }
}

/// A future that is dropped sends a ROLLBACK and waits for nothing. If that ROLLBACK is cancelled,
/// the client stays in an aborted transaction, and no error reports it.
#[tokio::test]
async fn client_left_in_an_aborted_transaction_works_again() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    let parameters = PreparedStatements::by_parameters();
    store(&mut client, Some(&prepared))
        .write(&[(INSERT, &[&0_i64])], &mut one(7, 1))
        .await
        .unwrap();
    for (turn, prepared) in (1_i64..).zip([None, Some(&prepared), Some(&parameters)]) {
        for call in 0..5 {
            client.batch_execute("BEGIN").await.unwrap();
            client.batch_execute("SELECT 1 / 0").await.unwrap_err();
            let before = turn * 10;
            let mut by = store(&mut client, prepared);
            match call {
                0 => drop(by.write(&[(INSERT, &[&before])], &mut one(7, 1)).await.unwrap()),
                1 => drop(by.apply(&mut one(8, 1)).await.unwrap()),
                2 => assert!(by.total(VOTES, 7).await.unwrap() > 0),
                3 => assert_eq!(by.offset("none").await.unwrap(), 0),
                _ => by.create().await.unwrap(),
            }
            client.batch_execute("SAVEPOINT outside").await.unwrap_err();
        }
        assert_eq!(written(&client).await, (turn + 1, 2 * turn + 1));
    }
}

/// Statements that a connection forgot, by DISCARD ALL as poolers send it, used to fail for ever.
#[tokio::test]
async fn statements_that_the_server_forgot_are_prepared_anew() {
    let Some((_, mut client)) = open().await else { return };
    let (named, parameters) = (PreparedStatements::new(), PreparedStatements::by_parameters());
    let mut id = 0_i64;
    for forget in ["DISCARD ALL", "DEALLOCATE ALL"] {
        for prepared in [&named, &parameters] {
            for call in 0..5 {
                let before = written(&client).await;
                // The server knows the statements, and then has forgotten them.
                for turn in [0, 1] {
                    let mut by = store(&mut client, Some(prepared));
                    id += 1;
                    match call {
                        0 => drop(by.write(&[(INSERT, &[&id])], &mut one(7, 1)).await.unwrap()),
                        1 => drop(by.apply(&mut one(7, 1)).await.unwrap()),
                        2 => assert_eq!(by.total(VOTES, 7).await.unwrap(), before.1),
                        3 => by.create().await.unwrap(),
                        _ => {
                            // In the caller's transaction only the caller can begin anew.
                            let tx = client.transaction().await.unwrap();
                            let mut by =
                                PostgresStore::in_transaction(&tx, &SCHEMA).prepared(prepared);
                            match (turn, by.apply(&mut one(7, 1)).await) {
                                (0, applied) => drop(applied.unwrap()),
                                (_, applied) => {
                                    assert_eq!(applied.unwrap_err().recovery(), Recovery::Retry);
                                }
                            }
                            drop(tx);
                            let tx = client.transaction().await.unwrap();
                            let mut by =
                                PostgresStore::in_transaction(&tx, &SCHEMA).prepared(prepared);
                            by.apply(&mut one(7, 1)).await.unwrap();
                            tx.commit().await.unwrap();
                        }
                    }
                    if turn == 0 {
                        client.batch_execute(forget).await.unwrap();
                    }
                }
                let after = written(&client).await;
                let (rows, totals) = [(2, 2), (0, 2), (0, 0), (0, 0), (0, 2)][call];
                assert_eq!(after, (before.0 + rows, before.1 + totals), "{forget}, call {call}");
            }
        }
    }
    // The server knows them again, by name too.
    let before = named_statements(&client).await.1;
    store(&mut client, Some(&named)).write(&[(INSERT, &[&-1_i64])], &mut one(7, 1)).await.unwrap();
    store(&mut client, Some(&named)).write(&[(INSERT, &[&-2_i64])], &mut one(7, 1)).await.unwrap();
    assert_eq!(named_statements(&client).await.1 - before, 4);
}

/// With `array_nulls = off` the server reads the null of an array's literal as the text NULL. Arrays
/// with nulls used to arrive like that.
#[tokio::test]
async fn null_in_an_array_arrives_as_a_null_with_any_settings() {
    let Some((_, mut client)) = open().await else { return };
    for setting in ["SET array_nulls = on", "SET array_nulls = off"] {
        client.batch_execute(setting).await.unwrap();
        let texts = array(&Type::TEXT, 1, &[some(b"a"), Sent(None), some(b"NULL")]);
        assert_same_both_ways(&mut client, &[("text[]", texts)]).await;
        client.batch_execute("DROP TABLE every").await.unwrap();
    }
}

/// A write of unknown outcome could not be repeated: the repeat was written twice, or refused
/// because the row existed.
#[tokio::test]
async fn write_with_an_offset_is_written_once_however_often_repeated() {
    let Some((_, mut client)) = open().await else { return };
    let prepared = PreparedStatements::new();
    for (turn, prepared) in (0_i64..).zip([None, Some(&prepared)]) {
        let stream = format!("votes {turn}");
        for number in 1..=3 {
            let id = turn * 10 + i64::try_from(number).unwrap();
            let stream_range = StreamRange::new(&stream, number, number).unwrap();
            for again in [false, true, true] {
                let mut batch = one(7, 1);
                let done = store(&mut client, prepared)
                    .write_idempotent(&[(INSERT, &[&id])], &mut batch, &stream_range)
                    .await;
                let (rows, applied) = done.unwrap();
                assert_eq!((rows, applied.skipped), (if again { vec![] } else { vec![1] }, again));
                assert!(batch.is_empty());
                assert_eq!(written(&client).await, (turn * 3 + id % 10, turn * 3 + id % 10));
            }
        }
        // A gap, or a row that is refused, writes nothing and does not move the offset.
        let stream_range = StreamRange::new(&stream, 9, 9).unwrap();
        let done = store(&mut client, prepared)
            .write_idempotent(&[(INSERT, &[&99_i64])], &mut one(7, 1), &stream_range)
            .await;
        assert!(matches!(done, Err(Error::Gap { applied: 3, .. })), "{done:?}");
        let stream_range = StreamRange::new(&stream, 4, 4).unwrap();
        let done = store(&mut client, prepared)
            .write_idempotent(&[(INSERT, &[&1_i64])], &mut one(7, 1), &stream_range)
            .await;
        assert_eq!(done.unwrap_err().recovery(), Recovery::Permanent);
        assert_eq!(store(&mut client, prepared).offset(&stream).await.unwrap(), 3);
        assert_eq!(written(&client).await, (turn * 3 + 3, turn * 3 + 3));
    }
}
