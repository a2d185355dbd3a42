//! An audit does not take the rows that it sees for all rows: policies, views, other schemas, other
//! servers, and tables that change beside it.

use super::items::*;
use crate::support::postgres::{Server, connect, shared};
use keepcount::reconcile::{Columns, Mode, Options, Outcome, PostgresAudit, PostgresRows};
use keepcount::{Cause, Counter, Error, PostgresStore, Record, Recovery, Result, Schema, Tally};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_postgres::{Client, Row};

/// Creates a role that may read rows and write totals. Returns its name and a connection.
async fn role(client: &Client, server: &Server) -> (String, Client) {
    static MADE: AtomicU64 = AtomicU64::new(1);
    let role = format!("auditor_{}", MADE.fetch_add(1, Ordering::Relaxed));
    let text = format!(
        "CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
         GRANT ALL ON of_integer, keepcount_counters, keepcount_offsets, keepcount_locks TO {role}"
    );
    client.batch_execute(&text).await.unwrap();
    let name: String =
        client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    let auditor = connect(server.config(&name).user(&role)).await;
    (role, auditor)
}

fn read(row: &Row) -> Result<Item<Integer>, Cause> {
    let key = row.try_get::<_, Option<i32>>(0)?.map(i64::from);
    Ok(Item { key, amount: row.try_get::<_, i32>(1)?.into(), counts: !row.try_get::<_, bool>(2)? })
}

/// The items of a table or of a query, by `key`.
fn items(rows: PostgresRows, key: Columns) -> PostgresRows {
    rows.columns("k, amount, spam").key(Integer::COUNTER, key.sum("amount").filter("NOT spam"))
}

fn items_of(table: &str) -> PostgresRows {
    items(PostgresRows::of(table, read), Columns::of(["k"]))
}

fn items_of_query(query: &str) -> PostgresRows {
    items(PostgresRows::query(query, read), Columns::of(["k"]))
}

async fn add(client: &mut Client, rows: PostgresRows) -> Result<()> {
    PostgresAudit::new(client, &Integer::SCHEMA).await?.add(rows).await
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, says: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Source { counter: "of.integer", .. }), "{error:?}");
    assert_eq!(error.recovery(), Recovery::Permanent);
    for says in says {
        assert!(error.to_string().contains(says), "`{error}` does not say {says}");
    }
}

/// A repair by a role to which a policy shows a part of the rows used to remove the totals of the
/// others, and to report that it was complete.
#[tokio::test]
async fn rows_that_a_policy_hides_are_not_taken_for_missing() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let (role, mut auditor) = role(&client, server).await;
    for by_tally in [false, true] {
        for mode in [Mode::Verify, Mode::Repair] {
            client
                .batch_execute("ALTER TABLE items DISABLE ROW LEVEL SECURITY; DROP POLICY IF EXISTS low ON items")
                .await
                .unwrap();
            let mut audit = PostgresAudit::new(&mut auditor, &Integer::SCHEMA).await.unwrap();
            audit.add(source::<Integer>(by_tally)).await.unwrap();
            let report =
                run_whole(mode, &Integer::SCHEMA, Options::default(), &mut audit).await.unwrap();
            assert_eq!(report.drift(), 0);
            // The policy is noticed by an audit that has its source, and when a source is added.
            let hide = format!(
                "CREATE POLICY low ON items TO {role} USING (k % 100 <> 7); ALTER TABLE items ENABLE ROW LEVEL SECURITY"
            );
            client.batch_execute(&hide).await.unwrap();
            let run = run_whole(mode, &Integer::SCHEMA, Options::default(), &mut audit).await;
            assert_eq!(drift::<Integer>(&client).await, (0, 0, 0), "{run:?}");
            assert_refused(run, &["row-level security", "items"]);
            assert_refused(
                audit.add(source::<Integer>(by_tally)).await,
                &["row-level security", "items"],
            );
        }
    }
    // A role that sees all rows may continue.
    client.batch_execute(&format!("ALTER ROLE {role} BYPASSRLS")).await.unwrap();
    let mut audit = PostgresAudit::new(&mut auditor, &Integer::SCHEMA).await.unwrap();
    audit.add(source::<Integer>(false)).await.unwrap();
    let report =
        run_whole(Mode::Repair, &Integer::SCHEMA, Options::default(), &mut audit).await.unwrap();
    assert_eq!((report.drift(), report.complete()), (0, true));
    drop(audit);
    // The application's setting is as before.
    assert_eq!(text_of(&auditor, "SHOW row_security").await, "on");
}

/// A view that depends on the role or session that asks shows it a part of the rows. A view whose
/// owner sees all rows shows all.
#[tokio::test]
async fn view_that_depends_on_the_role_or_session_is_refused() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client
        .batch_execute(
            "ALTER TABLE items ADD owner TEXT DEFAULT 'somebody';
             CREATE FUNCTION tenant() RETURNS TEXT LANGUAGE sql STABLE AS $$ SELECT current_setting('app.tenant', true) $$;
             CREATE VIEW by_user AS SELECT * FROM items WHERE owner = current_user;
             CREATE VIEW above AS SELECT * FROM by_user;
             CREATE VIEW by_setting AS SELECT * FROM items WHERE owner = tenant();
             CREATE VIEW by_right AS SELECT * FROM items WHERE has_table_privilege('items', 'DELETE');
             CREATE VIEW plain AS SELECT * FROM items WHERE owner <> 'current_user';
             CREATE MATERIALIZED VIEW once AS SELECT * FROM items;
             CREATE INDEX ON once (k);
             CREATE VIEW of_once AS SELECT * FROM once",
        )
        .await
        .unwrap();
    let (role, mut auditor) = role(&client, server).await;
    for (view, says) in [
        ("by_user", "CURRENT_USER"),
        ("above", "CURRENT_USER"),
        ("by_setting", "current_setting"),
        ("by_right", "has_table_privilege"),
        ("once", "public.once is a materialized view"),
        ("of_once", "public.once is a materialized view"),
    ] {
        assert_refused(add(&mut auditor, items_of(view)).await, &[says]);
        let query = format!("SELECT * FROM {view}");
        assert_refused(add(&mut auditor, items_of_query(&query)).await, &[says]);
    }
    add(&mut auditor, items_of("plain")).await.unwrap();

    // A view reads as its owner, or as the role that asks. A policy hides nothing from the owner.
    client
        .batch_execute(&format!(
            "CREATE VIEW invoked WITH (security_invoker) AS SELECT * FROM items; GRANT SELECT ON invoked TO {role};
             CREATE POLICY low ON items USING (k % 100 <> 7); ALTER TABLE items ENABLE ROW LEVEL SECURITY"
        ))
        .await
        .unwrap();
    assert_refused(add(&mut auditor, items_of("invoked")).await, &["row-level security"]);
    let mut audit = PostgresAudit::new(&mut auditor, &Integer::SCHEMA).await.unwrap();
    audit.add(items_of("plain")).await.unwrap();
    let report =
        run_whole(Mode::Repair, &Integer::SCHEMA, Options::default(), &mut audit).await.unwrap();
    assert_eq!((report.drift(), report.complete()), (0, true));
    // Parents that a policy hides are not missing either.
    drop(audit);
    client
        .batch_execute(
            "CREATE TABLE parents (id INT); ALTER TABLE parents ENABLE ROW LEVEL SECURITY",
        )
        .await
        .unwrap();
    client.batch_execute(&format!("GRANT SELECT ON parents TO {role}")).await.unwrap();
    let rows = items(PostgresRows::of("plain", read), Columns::of(["k"]).parent("parents", ["id"]));
    assert_refused(add(&mut auditor, rows).await, &["row-level security", "parents"]);
}

/// Rows of another server are of another snapshot, and its policies apply to another role.
#[tokio::test]
async fn table_of_another_server_is_refused() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let name = text_of(&client, "SELECT current_database()::text").await;
    let user = text_of(&client, "SELECT current_user::text").await;
    if client.batch_execute("CREATE EXTENSION postgres_fdw").await.is_err() {
        return; // the extension is in another package than the server
    }
    let folder = server.folder().display();
    let port = text_of(&client, "SELECT current_setting('port')").await;
    client
        .batch_execute(&format!(
            "CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{folder}', port '{port}', dbname '{name}');
             CREATE USER MAPPING FOR CURRENT_USER SERVER loop OPTIONS (user '{user}');
             CREATE FOREIGN TABLE far (k INT, amount INT, spam BOOL) SERVER loop OPTIONS (table_name 'items');
             CREATE VIEW near AS SELECT * FROM far;
             CREATE TABLE parts (k INT, amount INT, spam BOOL) PARTITION BY RANGE (k);
             CREATE TABLE high PARTITION OF parts FOR VALUES FROM (0) TO (1000); CREATE INDEX ON high (k);
             CREATE FOREIGN TABLE low PARTITION OF parts FOR VALUES FROM (-1000) TO (0) SERVER loop OPTIONS (table_name 'items')"
        ))
        .await
        .unwrap();
    for table in ["far", "near", "parts"] {
        assert_refused(
            add(&mut client, items_of(table)).await,
            &["on another server", "Foreign Scan"],
        );
    }
}

/// `search_path` decides what a bare name means: here the table, or an empty one before it.
#[tokio::test]
async fn name_in_several_schemas_is_refused_unless_it_has_its_schema() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let empty = "(k INT, amount INT, spam BOOL); CREATE INDEX ON";
    client
        .batch_execute(&format!(
            r#"CREATE SCHEMA app; CREATE TABLE app.items {empty} app.items (k); CREATE TABLE app."of.items" {empty} app."of.items" (k);
               SET search_path = app, public"#
        ))
        .await
        .unwrap();
    assert_refused(
        add(&mut client, items_of("items")).await,
        &["items is in app and in public", "app.items"],
    );
    client
        .batch_execute(&format!(
            "SET search_path = public; CREATE TEMP TABLE items {empty} items (k)"
        ))
        .await
        .unwrap();
    assert_refused(
        add(&mut client, items_of("items")).await,
        &["items is in pg_temp", "and in public"],
    );
    for name in [r#"app."of.items""#, "app.items", "pg_temp.items", r#""public"."items""#] {
        add(&mut client, items_of(name)).await.unwrap();
    }
    client.batch_execute("DISCARD TEMP").await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
    audit.add(items_of("items")).await.unwrap();
    let report =
        run_whole(Mode::Repair, &Integer::SCHEMA, Options::default(), &mut audit).await.unwrap();
    assert_eq!((report.drift(), report.complete()), (0, true));
}

#[tokio::test]
async fn missing_source_is_named_and_the_store_is_not_blamed() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client
        .batch_execute("CREATE SCHEMA app; CREATE TABLE app.votes (k INT, amount INT, spam BOOL)")
        .await
        .unwrap();
    for (name, says) in [
        ("itmes", "no table or view of this name is there; the source of counter of.integer"),
        (
            "public.itmes",
            "no table or view of this name is there; the source of counter of.integer",
        ),
        ("app.items", "one is in public"),
        ("votes", "one is in app"),
    ] {
        let error = add(&mut client, items_of(name)).await.unwrap_err();
        assert!(
            matches!(&error, Error::SchemaMismatch { table, .. } if table == name),
            "{error:?}"
        );
        assert!(
            error.to_string().contains(says) && !error.to_string().contains("PostgresStore"),
            "{error}"
        );
    }
    let by = |key: Columns| items(PostgresRows::of("items", read), key);
    for (rows, says) in [
        (by(Columns::of(["key"])), "column r.key does not exist"),
        (by(Columns::of(["spam"])), "cannot be read from a column of type bool"),
        (items_of_query("SELECT * FROM itmes"), "relation \"itmes\" does not exist"),
        (by(Columns::of(["k"]).parent("itmes", ["k"])), "itmes"),
        (items_of("a.b.c"), "a.b.c is not a table's name"),
    ] {
        let error = add(&mut client, rows).await.unwrap_err();
        assert!(
            error.to_string().contains("source of counter of.integer")
                && error.to_string().contains(says),
            "{error}"
        );
        assert!(!error.to_string().contains("PostgresStore"), "{error}");
    }
    let broken =
        PostgresRows::of("items", |_| Ok(Item::<Integer> { key: None, amount: 0, counts: false }));
    let broken =
        broken.columns("k").key(Integer::COUNTER, Columns::of(["k"]).count().filter("spam AND"));
    assert_refused(add(&mut client, broken).await, &["preparing its SQL", "syntax error"]);
}

/// Totals in a temporary table, or in a table with children, would be lost or counted twice.
#[tokio::test]
async fn totals_are_found_only_in_the_schema_of_the_catalogue() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    client.batch_execute("CREATE SCHEMA counts; SET search_path = counts, public").await.unwrap();
    fill::<Integer>(&mut client).await;
    assert_eq!(
        text_of(&client, "SELECT schemaname::text FROM pg_tables WHERE tablename = 'of_integer'")
            .await,
        "counts"
    );
    damage::<Integer>(&client).await;
    let report = run_whole(
        Mode::Repair,
        &Integer::SCHEMA,
        Options::default(),
        &mut audit::<Integer>(&mut client).await,
    )
    .await
    .unwrap();
    assert!(report.complete() && report.drift() > 0, "{report}");
    assert_eq!(drift::<Integer>(&client).await, (0, 0, 0));

    let check = async |client: &mut Client, setup: &str, undo: &str| {
        client.batch_execute(setup).await.unwrap();
        let error = PostgresStore::new(client, &Integer::SCHEMA).check().await.unwrap_err();
        client.batch_execute(undo).await.unwrap();
        PostgresStore::new(client, &Integer::SCHEMA).check().await.unwrap();
        error.to_string()
    };
    for (setup, undo, says) in [
        (
            "CREATE TEMP TABLE of_integer (LIKE counts.of_integer INCLUDING ALL)",
            "DROP TABLE pg_temp.of_integer",
            "it is temporary",
        ),
        (
            "ALTER TABLE of_integer SET UNLOGGED",
            "ALTER TABLE of_integer SET LOGGED",
            "it is unlogged",
        ),
        ("CREATE TABLE more () INHERITS (of_integer)", "DROP TABLE more", "it has children"),
        (
            "CREATE SCHEMA other; CREATE TABLE other.of_integer (LIKE counts.of_integer INCLUDING ALL); SET search_path = other, counts, public",
            "SET search_path = counts, public; DROP SCHEMA other CASCADE",
            "it is in schema other, and keepcount_counters in counts",
        ),
        (
            "ALTER TABLE of_integer ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE of_integer DISABLE ROW LEVEL SECURITY",
            "row security",
        ),
        (
            "ALTER TABLE keepcount_counters ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE keepcount_counters DISABLE ROW LEVEL SECURITY",
            "row security",
        ),
    ] {
        let error = check(&mut client, setup, undo).await;
        assert!(error.contains(says), "{setup}: {error}");
    }
    // `create` makes no tables in front of existing ones.
    client
        .batch_execute("CREATE SCHEMA front; SET search_path = front, counts, public")
        .await
        .unwrap();
    PostgresStore::new(&mut client, &Integer::SCHEMA).create().await.unwrap();
    let tables = "SELECT count(*)::text FROM pg_tables WHERE schemaname = 'front'";
    assert_eq!(text_of(&client, tables).await, "0");
    let error = PostgresStore::new(&mut client, &Text::SCHEMA).create().await.unwrap_err();
    assert!(error.to_string().contains("would be made in front"), "{error}");
    assert_eq!(text_of(&client, tables).await, "0");
}

/// Rows in partitions and in children, and their exact totals.
const PARTS: &str = "CREATE TABLE parts (k INT, amount INT, spam BOOL) PARTITION BY RANGE (k); CREATE INDEX ON parts (k);
    CREATE TABLE low PARTITION OF parts FOR VALUES FROM (-1000) TO (0); CREATE TABLE high PARTITION OF parts FOR VALUES FROM (0) TO (1000);
    CREATE TABLE kin (k INT, amount INT, spam BOOL); CREATE INDEX ON kin (k); CREATE TABLE child () INHERITS (kin); CREATE INDEX ON child (k);
    INSERT INTO parts SELECT k, amount, spam FROM items WHERE k IS NOT NULL;
    INSERT INTO kin SELECT * FROM parts WHERE k % 2 = 0; INSERT INTO child SELECT * FROM parts WHERE k % 2 <> 0;
    CREATE TABLE right_totals AS SELECT * FROM of_integer";

#[tokio::test]
async fn rows_of_partitions_and_child_tables_count_for_the_parent_table() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client.batch_execute(PARTS).await.unwrap();
    let reader = connect_again(&client, server).await;
    for table in ["parts", "kin"] {
        for page in [7, 1_000] {
            damage::<Integer>(&reader).await;
            let mut audit = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
            audit.add(items_of(table)).await.unwrap();
            let planted = drift::<Integer>(&reader).await;
            let report = run_whole(
                Mode::Repair,
                &Integer::SCHEMA,
                Options::default().page(page),
                &mut audit,
            )
            .await
            .unwrap();
            assert_eq!(
                (drift_kinds(&report), drift::<Integer>(&reader).await),
                (planted, (0, 0, 0)),
                "{table}, {page}"
            );
        }
    }
    // One partition has a part of the rows.
    assert_refused(add(&mut client, items_of("high")).await, &["high is a partition"]);
    add(&mut client, items_of_query("SELECT * FROM high")).await.unwrap();
}

/// A snapshot does not keep a table as it was: what is truncated, detached, attached or rewritten
/// after it is seen as it is now.
#[tokio::test]
async fn tables_that_change_as_a_whole_beside_a_verify_cause_no_drift() {
    let rounds: u64 =
        std::env::var("KEEPCOUNT_SIGHT_ROUNDS").map_or(25, |rounds| rounds.parse().unwrap());
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client.batch_execute(PARTS).await.unwrap();
    let (role, auditor) = role(&client, server).await;
    // A role that has rights on columns only cannot lock the table.
    let some = std::env::var("KEEPCOUNT_SIGHT_UNLOCKED").is_ok();
    let grants = format!(
        "REVOKE SELECT ON parts FROM {role}; GRANT SELECT (k, amount, spam) ON parts TO {role}"
    );
    client.batch_execute(if some { &grants } else { "SELECT" }).await.unwrap();
    let writer = connect_again(&client, server).await;
    let changes = tokio::spawn(async move {
        for round in 0..rounds {
            let kind = if round % 2 == 0 { "BIGINT" } else { "INT" };
            for text in [
                "BEGIN; ALTER TABLE parts DETACH PARTITION low; DELETE FROM of_integer WHERE key < 0; COMMIT",
                "BEGIN; ALTER TABLE parts ATTACH PARTITION low FOR VALUES FROM (-1000) TO (0);
                 INSERT INTO of_integer SELECT * FROM right_totals WHERE key < 0; COMMIT",
                "BEGIN; TRUNCATE parts; DELETE FROM of_integer; COMMIT",
                "BEGIN; INSERT INTO parts SELECT k, amount, spam FROM items WHERE k IS NOT NULL;
                 INSERT INTO of_integer SELECT * FROM right_totals; COMMIT",
                &format!("ALTER TABLE parts ALTER amount TYPE {kind}"),
            ] {
                writer.batch_execute(text).await.unwrap();
            }
        }
    });
    let mut auditor = auditor;
    let mut audit = PostgresAudit::new(&mut auditor, &Integer::SCHEMA).await.unwrap();
    audit.add(items_of("parts")).await.unwrap();
    let (mut verifies, mut wrong) = (0, 0);
    while !changes.is_finished() {
        let report =
            run_whole(Mode::Verify, &Integer::SCHEMA, Options::default().page(200), &mut audit)
                .await
                .unwrap();
        verifies += 1;
        wrong += u64::from(report.drift() > 0);
    }
    changes.await.unwrap();
    println!("{verifies} verifies beside {} changes, {wrong} saw false drift", rounds * 5);
    assert!(verifies > rounds);
    assert!(some || wrong == 0, "{wrong} of {verifies}");
}

const NAMES: Counter<String> = Counter::new("a.names");
const SHARES: Counter<[u8; 16]> = Counter::new("b.shares");
const PLAIN: Counter<i64> = Counter::new("c.plain");
const THREE: Schema = Schema::new(&[NAMES.table(), SHARES.table(), PLAIN.table()]);

struct Named(String);

struct Share([u8; 16], i64);

struct Plain(i64);

impl Record for Named {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(NAMES, &self.0, 1);
    }
}

impl Record for Share {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHARES, self.0, self.1);
    }
}

impl Record for Plain {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(PLAIN, self.0, 1);
    }
}

/// An invalid text, an id that is too short, an amount that cannot be computed: each in the rows of
/// one counter.
#[tokio::test]
async fn unreadable_row_fails_only_its_own_counter_and_is_named() {
    let Some(server) = shared() else { return };
    let admin = connect(&server.config("postgres")).await;
    admin
        .batch_execute(
            "CREATE DATABASE any_bytes TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'",
        )
        .await
        .unwrap();
    let mut client = connect(&server.config("any_bytes")).await;
    client
        .batch_execute(
            r#"CREATE TABLE names (name TEXT); CREATE INDEX ON names (name COLLATE "C"); INSERT INTO names VALUES ('a'), (E'\xff\x41');
              CREATE TABLE shares (id BYTEA, n INT, of INT); CREATE INDEX ON shares (id);
              INSERT INTO shares VALUES (decode(md5('1'), 'hex'), 6, 2), (decode('0aff', 'hex'), 6, 2);
              CREATE TABLE plain (k BIGINT); CREATE INDEX ON plain (k); INSERT INTO plain VALUES (1), (2)"#,
        )
        .await
        .unwrap();
    PostgresStore::new(&mut client, &THREE).create_pending_backfill().await.unwrap();
    let other = connect(&server.config("any_bytes")).await;
    let mut audit = PostgresAudit::new(&mut client, &THREE).await.unwrap();
    let names = PostgresRows::of("names", |row| Ok(Named(row.try_get(0)?)));
    audit.add(names.key(NAMES, Columns::of(["name"]).count())).await.unwrap();
    let shares = PostgresRows::of("shares", |row| {
        let id = row.try_get::<_, &[u8]>(0)?.try_into().unwrap_or([9; 16]);
        Ok(Share(id, row.try_get::<_, i32>(1)?.into()))
    });
    audit
        .add(shares.columns("id, n / of").key(SHARES, Columns::of(["id"]).sum("n / of")))
        .await
        .unwrap();
    let plain = PostgresRows::of("plain", |row| Ok(Plain(row.try_get(0)?)));
    audit.add(plain.key(PLAIN, Columns::of(["k"]).count())).await.unwrap();
    for says in ["a blob of 2 bytes, 0aff", "division by zero"] {
        for (mode, found) in [(Mode::Verify, 2), (Mode::Backfill, 2), (Mode::Repair, 0)] {
            let report = run_whole(mode, &THREE, Options::default(), &mut audit).await.unwrap();
            let why = |at: usize| {
                report.counters[at].failure.clone().unwrap_or_else(|| panic!("{report}"))
            };
            // The server does not send such a text, so the error does not name the row.
            assert!(
                why(0).contains("counter a.names") && why(0).contains("invalid byte sequence"),
                "{}",
                why(0)
            );
            assert!(why(1).contains("counter b.shares") && why(1).contains(says), "{}", why(1));
            assert_eq!(
                (report.outcome.clone(), report.counters[2].drift(), report.counters[2].complete),
                (Outcome::Incomplete, found, true)
            );
        }
        let names = audit.faulty_rows(NAMES.id(), 9).await.unwrap();
        assert!(names.len() == 1 && names[0].to_string().contains("0xff"), "{names:?}");
        let shares = audit.faulty_rows(SHARES.id(), 9).await.unwrap();
        assert!(shares.len() == 1 && shares[0].to_string().contains(says), "{shares:?}");
        assert!(audit.faulty_rows(PLAIN.id(), 9).await.unwrap().is_empty());
        other
            .batch_execute(
                "UPDATE shares SET id = decode(md5('2'), 'hex'), of = 0 WHERE length(id) < 16; DELETE FROM c_plain",
            )
            .await
            .unwrap();
    }
    other
        .batch_execute("DELETE FROM shares WHERE of = 0; DELETE FROM names WHERE name <> 'a'")
        .await
        .unwrap();
    let report = run_whole(Mode::Repair, &THREE, Options::default(), &mut audit).await.unwrap();
    assert_eq!((report.complete(), report.drift()), (true, 4));
}
