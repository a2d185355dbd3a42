//! Which sources, amounts, keys and servers are refused, and how pages are read.

use super::items::*;
use crate::support::postgres::{Server, connect, shared, wait_until};
use keepcount::reconcile::audit::{PageRequest, RepairRequest};
use keepcount::reconcile::{
    AsyncAudit, Columns, Mode, Options, Outcome, PostgresAudit, PostgresRows, Reconciler,
    TokioRuntime, active_connections, replay_lag, replay_lag_bytes, run_async,
};
use keepcount::{Counter, Error, KeyBuf, PostgresStore, Record, Recovery, Schema, Tally};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn rows(table: &str, columns: Columns) -> PostgresRows {
    let rows = PostgresRows::of(table, |row| {
        let key = row.try_get::<_, Option<i32>>(0)?.map(i64::from);
        let (amount, spam): (i32, bool) = (row.try_get(1)?, row.try_get(2)?);
        Ok(Item::<Integer> { key, amount: amount.into(), counts: !spam })
    });
    rows.columns("k, amount, spam").key(Integer::COUNTER, columns)
}

/// The server sends rows in portions.
#[tokio::test]
async fn a_page_of_many_rows_is_read_to_its_end() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let more = "INSERT INTO items (k, amount, spam) SELECT i % 300, 1, false FROM generate_series(1, 5000) AS i";
    client.batch_execute(more).await.unwrap();
    refill::<Integer>(&client).await;
    for by_tally in [false, true] {
        let mut audit = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
        audit.add(source::<Integer>(by_tally)).await.unwrap();
        let report = run_whole(Mode::Verify, &Integer::SCHEMA, Options::default(), &mut audit)
            .await
            .unwrap();
        assert_eq!(report.drift(), 0);
        assert!(report.counters[0].keys > 250, "{report}");
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_read_in_key_order_is_refused_with_the_index_to_make() {
    let Some(server) = shared() else { return };
    let mut client = connect(&server.database_of_language("en-US").await).await;
    fill::<Text>(&mut client).await;
    client.batch_execute("DROP INDEX items_k_idx; CREATE INDEX ON items (k)").await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &Text::SCHEMA).await.unwrap();
    for by_tally in [false, true] {
        let error = audit.add(source::<Text>(by_tally)).await.unwrap_err();
        assert!(matches!(error, Error::Source { .. }), "{error:?}");
        assert!(
            error.to_string().contains(r#"CREATE INDEX .. ON "items" ("k" COLLATE "C")"#),
            "{error}"
        );
    }
    drop(audit);
    client.batch_execute(r#"CREATE INDEX ON "items" ("k" COLLATE "C")"#).await.unwrap();
    assert!(
        run_whole(
            Mode::Verify,
            &Text::SCHEMA,
            Options::default(),
            &mut super::items::audit::<Text>(&mut client).await
        )
        .await
        .unwrap()
        .counters[0]
            .clean
    );

    // A column with the collation "C" needs no other index.
    client.batch_execute(r#"DROP INDEX items_k_idx, items_k_idx1; ALTER TABLE items ALTER k TYPE TEXT COLLATE "C"; CREATE INDEX ON items (k)"#).await.unwrap();
    super::items::audit::<Text>(&mut client).await;

    // For a pair, an index of only its first part is refused: it leaves the rest of each page to be
    // sorted.
    let mut client = connect(&server.database_of_language("en-US").await).await;
    fill::<Pair>(&mut client).await;
    client
        .batch_execute("DROP INDEX items_one_two_idx; CREATE INDEX ON items (one)")
        .await
        .unwrap();
    let mut audit = PostgresAudit::new(&mut client, &Pair::SCHEMA).await.unwrap();
    let error = audit.add(source::<Pair>(false)).await.unwrap_err();
    assert!(error.to_string().contains(r#"ON "items" ("one", "two" COLLATE "C")"#), "{error}");
}

/// If each page began at the index's first row, a run would read the whole index over and over.
#[tokio::test]
async fn a_page_reads_no_more_of_the_index_than_its_own_rows() {
    let Some(server) = shared() else { return };
    let mut client = connect(&server.database_of_language("en-US").await).await;
    fill::<Pair>(&mut client).await;
    let reader = connect_again(&client, server).await;
    let read = "SELECT coalesce(sum(idx_tup_read), 0)::int8 FROM pg_stat_user_indexes WHERE relname = 'items'";
    let mut audit = audit::<Pair>(&mut client).await;
    let before: i64 = reader.query_one(read, &[]).await.unwrap().get(0);
    let report = run_whole(Mode::Verify, &Pair::SCHEMA, Options::default().page(10), &mut audit)
        .await
        .unwrap();
    assert_eq!((report.pages, report.counters[0].clean), (30, true));
    drop(audit);
    client.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    drop(client);
    wait_until(&reader, &format!("SELECT ({read}) > {before}")).await;
    let read = reader.query_one(read, &[]).await.unwrap().get::<_, i64>(0) - before;
    // 1,800 rows, those after each page's last key once more, and 6 for each page of look-ahead.
    assert!((1_800..1_800 * 2).contains(&read), "{read} rows of the index");
}

#[tokio::test]
async fn columns_of_other_types_are_refused_when_the_source_is_added() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let table = "CREATE DOMAIN id AS BIGINT; CREATE DOMAIN show_id AS id;
                 CREATE TABLE others (k BIGINT, s SHOW_ID, n NUMERIC, f FLOAT8, t TEXT, c CHAR(9), amount INT, spam BOOL);
                 CREATE INDEX ON others (k); CREATE INDEX ON others (s); CREATE INDEX ON others (n); CREATE INDEX ON others (t);";
    client.batch_execute(table).await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
    let others = |key| Columns::of([key]).count();
    let cases = [
        ("others", others("n"), "numeric"),
        ("others", others("t"), "text"),
        ("others", others("k").sum("f"), "double precision"),
        ("others", others("k").sum("spam"), "boolean"),
        ("others", others("k").sum("f::int4 / 0.5::float4"), "double precision"),
        ("others", others("absent"), "absent"),
        ("nowhere", others("k"), "nowhere"),
        ("others", others("k").filter("absent > 3"), "absent"),
        (
            "others",
            others("k").filter("amount >"),
            "source of counter of.integer: preparing its SQL: syntax error",
        ),
    ];
    for (table, columns, says) in cases {
        let error = audit.add(rows(table, columns)).await.unwrap_err();
        let whole =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let whole = whole.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        assert!(whole.contains(says), "{whole}");
        assert_eq!(error.recovery(), Recovery::Permanent);
    }
    audit.add(rows("others", others("k"))).await.unwrap();
    // A domain is what it is over.
    audit.add(rows("others", others("s"))).await.unwrap();
}

#[tokio::test]
async fn sum_that_is_not_a_64_bit_integer_names_its_key() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client
        .batch_execute(
            "CREATE TABLE sums (k INT, amount NUMERIC, spam BOOL DEFAULT false); CREATE INDEX ON sums (k);
             INSERT INTO sums VALUES (1, 3), (2, 0.5), (2, 0.5)",
        )
        .await
        .unwrap();
    let other = connect_again(&client, server).await;
    let mut audit = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
    let sums = PostgresRows::of("sums", |row| {
        Ok(Item::<Integer> {
            key: Some(row.try_get::<_, i32>(0)?.into()),
            amount: row.try_get(1)?,
            counts: true,
        })
    });
    let sums = sums.columns("k, amount::int8, spam");
    audit.add(sums.key(Integer::COUNTER, Columns::of(["k"]).sum("amount"))).await.unwrap();
    let ask = PageRequest { counter: Integer::COUNTER.id(), after: None, until: None, keys: 100 };
    let error = audit.compare(&ask).await.unwrap_err();
    assert!(matches!(&error, Error::Source { key: Some(key), .. } if key == "2"), "{error:?}");
    other.batch_execute("UPDATE sums SET amount = 9223372036854775807 WHERE k = 2").await.unwrap();
    let error = audit.compare(&ask).await.unwrap_err();
    assert!(
        matches!(&error, Error::Overflow { key, what: "recount", .. } if key == "2"),
        "{error:?}"
    );
    // A sum that leaves 64 bits only on the way is right.
    other.batch_execute("INSERT INTO sums VALUES (2, -9223372036854775807)").await.unwrap();
    assert!(audit.compare(&ask).await.is_ok());
    let repair = RepairRequest { counter: Integer::COUNTER.id(), keys: vec![KeyBuf::of::<i64>(2)] };
    other.batch_execute("INSERT INTO sums VALUES (2, 5)").await.unwrap();
    let error = audit.repair(&repair).await.unwrap_err();
    assert!(matches!(&error, Error::Overflow { key, .. } if key == "2"), "{error:?}");
}

const UNSIGNED: Counter<u64> = Counter::new("of.unsigned");
const UNSIGNED_SCHEMA: Schema = Schema::new(&[UNSIGNED.table()]);

struct Unsigned(i64);

impl Record for Unsigned {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(UNSIGNED, self.0.cast_unsigned(), 1);
    }
}

#[tokio::test]
async fn integer_outside_the_key_type_is_named() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    client
        .batch_execute(
            "CREATE TABLE rows (k BIGINT); CREATE INDEX ON rows (k); INSERT INTO rows VALUES (-5)",
        )
        .await
        .unwrap();
    PostgresStore::new(&mut client, &UNSIGNED_SCHEMA).create().await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &UNSIGNED_SCHEMA).await.unwrap();
    let rows = PostgresRows::of("rows", |row| Ok(Unsigned(row.try_get(0)?)));
    audit.add(rows.key(UNSIGNED, Columns::of(["k"]).count())).await.unwrap();
    let error = run_whole(Mode::Verify, &UNSIGNED_SCHEMA, Options::default(), &mut audit)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Key { key, counter: "of.unsigned", .. } if key == "-5"),
        "{error:?}"
    );
    // A position beyond bigint is such an error too, and not a page from the beginning.
    let beyond = KeyBuf::of::<u64>(u64::MAX);
    let ask = PageRequest { counter: UNSIGNED.id(), after: Some(beyond), until: None, keys: 5 };
    assert!(matches!(audit.compare(&ask).await, Err(Error::Key { .. })));
}

/// The plan of a merge of partitions also says "Sort Key", though each partition is read from its
/// index.
#[tokio::test]
async fn pages_are_read_from_the_indexes_of_partitions() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    client
        .batch_execute(
            "CREATE TABLE parts (k BIGINT) PARTITION BY HASH (k); CREATE INDEX ON parts (k);
             CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             INSERT INTO parts SELECT i % 50 FROM generate_series(1, 200) AS i",
        )
        .await
        .unwrap();
    PostgresStore::new(&mut client, &UNSIGNED_SCHEMA).create().await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &UNSIGNED_SCHEMA).await.unwrap();
    let parts = PostgresRows::of("parts", |row| Ok(Unsigned(row.try_get(0)?)));
    audit.add(parts.key(UNSIGNED, Columns::of(["k"]).count())).await.unwrap();
    let options = Options::default().page(7);
    let report = run_whole(Mode::Repair, &UNSIGNED_SCHEMA, options, &mut audit).await.unwrap();
    assert_eq!((report.drift(), report.counters[0].corrected), (50, 50));
}

#[tokio::test]
async fn a_client_inside_a_transaction_is_refused() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client.batch_execute("BEGIN").await.unwrap();
    let refused = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.map(drop);
    assert!(matches!(refused, Err(Error::InvalidUse { what: "connection", .. })), "{refused:?}");
    client.batch_execute("SELECT absent").await.unwrap_err();
    let refused = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.map(drop);
    assert!(matches!(refused, Err(Error::InvalidUse { what: "connection", .. })), "{refused:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    audit::<Integer>(&mut client).await;
    client.batch_execute("DROP TABLE of_integer").await.unwrap();
    let refused = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.map(drop);
    assert!(
        matches!(&refused, Err(Error::SchemaMismatch { table, .. }) if table == "of_integer"),
        "{refused:?}"
    );
    // A client whose connection is gone is not inside a transaction.
    let mut gone = connect_again(&client, server).await;
    let pid: i32 = gone.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    let refused = PostgresAudit::new(&mut gone, &Integer::SCHEMA).await.map(drop);
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
}

#[tokio::test]
async fn read_only_servers_are_verified_and_not_repaired() {
    let Some(server) = Server::new() else { return };
    let primary = server.database().await;
    let mut client = connect(&primary).await;
    fill::<Integer>(&mut client).await;
    damage::<Integer>(&client).await;
    let planted = drift::<Integer>(&client).await;
    let replica = server.replica();
    replica.wait_until_caught_up().await;
    let mut standby = connect(&replica.server.config(primary.get_dbname().unwrap())).await;
    let mut read_only = connect(&primary).await;
    read_only.batch_execute("SET default_transaction_read_only = on").await.unwrap();
    for (client, says) in [(&mut standby, "replica"), (&mut read_only, "read-only")] {
        let mut audit = audit::<Integer>(client).await;
        let report = run_whole(Mode::Verify, &Integer::SCHEMA, Options::default(), &mut audit)
            .await
            .unwrap();
        assert_eq!(drift_kinds(&report), planted);
        for mode in [Mode::Repair, Mode::Backfill] {
            let error = run_whole(mode, &Integer::SCHEMA, Options::default(), &mut audit)
                .await
                .unwrap_err();
            assert!(
                matches!(error, Error::InvalidUse { .. }) && error.to_string().contains(says),
                "{error:?}"
            );
        }
    }

    // A replica that does not replay closes the throttle, with the figures in the reason.
    replica.pause().await;
    client
        .batch_execute(
            "INSERT INTO items (k, amount, spam) SELECT 1, 1, false FROM generate_series(1, 2000)",
        )
        .await
        .unwrap();
    // The replica reports its position from time to time, and right after it has connected.
    let behind = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)) > 4096, false) FROM pg_stat_replication";
    wait_until(&client, behind).await;
    let asker = connect(&primary).await;
    let options = Options::default().stall_after(Duration::ZERO);
    let mut run = Reconciler::new(Mode::Verify, &Integer::SCHEMA, options).unwrap();
    let mut held = TokioRuntime::new().throttle(replay_lag_bytes(&asker, 4_096));
    let report =
        run_async(&mut run, &mut audit::<Integer>(&mut client).await, &mut held).await.unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Stalled(why) if why.contains("over the bound of 4096")),
        "{report}"
    );
    replica.resume().await;
    replica.wait_until_caught_up().await;
    let mut open = TokioRuntime::new()
        .throttle(replay_lag_bytes(&asker, 100_000_000))
        .throttle(replay_lag(&asker, Duration::from_secs(3600)))
        .throttle(active_connections(&asker, 0));
    let busy = connect(&primary).await;
    let sleeping = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(60)").await });
    wait_until(
        &client,
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'",
    )
    .await;
    let mut run = Reconciler::new(Mode::Verify, &Integer::SCHEMA, options).unwrap();
    let report =
        run_async(&mut run, &mut audit::<Integer>(&mut client).await, &mut open).await.unwrap();
    assert!(
        matches!(&report.outcome, Outcome::Stalled(why) if why == "1 connections are at work, over the bound of 0"),
        "{report}"
    );
    sleeping.abort();
}

/// Compiles only for a future that an application can spawn.
fn assert_send<F: Future + Send>(run: F) -> F {
    run
}

#[tokio::test]
async fn a_stop_flag_ends_a_run_before_its_next_page_and_progress_is_shown() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let mut audit = audit::<Integer>(&mut client).await;
    let mut runtime = TokioRuntime::new().stop_flag(&STOP).on_progress(|progress| {
        STOP.store(progress.pages == 3, Ordering::Relaxed);
    });
    let mut run =
        Reconciler::new(Mode::Verify, &Integer::SCHEMA, Options::default().page(10)).unwrap();
    let report = assert_send(run_async(&mut run, &mut audit, &mut runtime)).await.unwrap();
    assert_eq!((report.outcome, report.pages), (Outcome::Stopped, 3));
}
