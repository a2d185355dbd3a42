//! The PostgreSQL store compared with the SQLite store: leaderboards and their lines, counters that
//! are added and dropped, readiness. And what the store refuses, with its reason: tables that are
//! not as expected, held locks, servers that do not write, keys and names that do not fit.

use std::time::Duration;

use crate::support::postgres::{connect, shared};
use crate::support::random::Random;
use crate::support::standings;
use keepcount::{
    AsyncStore, Batch, Counter, CounterId, Decayed, Error, HalfLife, KeyError, Leaderboard,
    PostgresStore, PreparedStatements, Recovery, Schema, SqliteStore, Store, StreamRange, Sweep,
};
use rusqlite::Connection;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, IsolationLevel};

const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
const SETLIST_SHOW: Counter<(i64, String)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<String> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
const SHOW_FANS: Counter<String> = Counter::new("show.fans");
const HOT: HalfLife = HalfLife::days(1);
const SHOW_HEAT: Counter<(String, i64)> = Counter::new("show.heat");
const SHOWS: Leaderboard<String> = Leaderboard::new("show.board", [SHOW_VOTES, SHOW_FANS])
    .by(|[votes, fans]| Some(votes + fans).filter(|sum| *sum != 0));
const HEAT: Leaderboard<String, Decayed> = Leaderboard::decayed("show.heat_board", SHOW_HEAT);
const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_SHOW.table(),
    SHOW_VOTES.table(),
    SHOW_FANS.table(),
    SHOW_HEAT.table().prunable(),
])
.leaderboards(&[SHOWS.id(), HEAT.id()]);

async fn open(schema: &Schema) -> Option<(Config, Client)> {
    let config = shared()?.database().await;
    let mut client = connect(&config).await;
    PostgresStore::new(&mut client, schema).create().await.unwrap();
    Some((config, client))
}

fn batch(random: &mut Random) -> Batch {
    let mut batch = Batch::new();
    for _ in 0..=random.below(6) {
        let show = ["a", "B", "\u{e9}", "", "b_1", "zz"][usize::try_from(random.below(6)).unwrap()];
        match random.below(4) {
            0 => batch.add(SETLIST_VOTES, random.int(0, 9), random.int(-3, 9)),
            1 => batch.add(SETLIST_SHOW, (random.int(0, 9), show), random.int(-1, 2)),
            2 => batch.add(SHOW_FANS, show, random.int(-2, 3)),
            _ => {
                let time = random.int(0, 40) * 43_200;
                batch.add(SHOW_HEAT, (show, HOT.epoch(time)), HOT.weight(time));
            }
        }
    }
    batch
}

#[tokio::test]
async fn listed_key_has_its_rank_and_unlisted_key_comes_after_all_lines() {
    let Some((_, mut client)) = open(&standings::SCHEMA).await else { return };
    let mut store = PostgresStore::new(&mut client, &standings::SCHEMA);
    for step in standings::STEPS {
        store.apply(&mut step.batch()).await.unwrap();
        for (at, (song, ..)) in step.stand.iter().enumerate() {
            step.check("in PostgreSQL", at, &store.rank(standings::SONGS, song).await.unwrap());
        }
    }
}

#[tokio::test]
async fn leaderboards_rollups_and_prunes_match_sqlite() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let conn = Connection::open_in_memory().unwrap();
    let mut sqlite = SqliteStore::new(&conn, &SCHEMA);
    sqlite.create().unwrap();
    let (mut random, prepared) = (Random(4), PreparedStatements::new());
    for turn in 0..150 {
        let mut batch = batch(&mut random);
        let mut store = PostgresStore::new(&mut client, &SCHEMA).prepared(&prepared);
        let (ours, theirs) =
            (store.apply(&mut batch.clone()).await.unwrap(), sqlite.apply(&mut batch).unwrap());
        assert_eq!(ours.totals, theirs.totals);
        if turn % 40 == 39 {
            let cutoff = i64::from(turn) / 10;
            assert_eq!(
                store.prune(SHOW_HEAT, cutoff).await.unwrap(),
                sqlite.prune(SHOW_HEAT, cutoff).unwrap()
            );
        }
        if turn % 10 != 9 {
            continue;
        }
        assert_eq!(store.totals(SHOW_VOTES).await.unwrap(), sqlite.totals(SHOW_VOTES).unwrap());
        assert_eq!(store.totals(SETLIST_SHOW).await.unwrap(), sqlite.totals(SETLIST_SHOW).unwrap());
        assert_eq!(store.totals(SHOW_HEAT).await.unwrap(), sqlite.totals(SHOW_HEAT).unwrap());
        let (top, heat) =
            (store.top(SHOWS, 100).await.unwrap(), store.top(HEAT, 100).await.unwrap());
        assert_eq!(
            (&top, &heat),
            (&sqlite.top(SHOWS, 100).unwrap(), &sqlite.top(HEAT, 100).unwrap())
        );
        assert_eq!(store.listed(SHOWS).await.unwrap(), top.len() as u64);
        for (at, line) in top.iter().enumerate() {
            assert_eq!(
                store.rank(SHOWS, line.key.as_str()).await.unwrap().line().as_ref(),
                Some(line)
            );
            assert_eq!(
                store.top_after(SHOWS, line, 2).await.unwrap(),
                top[at + 1..].iter().take(2).cloned().collect::<Vec<_>>()
            );
        }
        for (at, line) in heat.iter().enumerate() {
            assert_eq!(
                store.rank(HEAT, line.key.as_str()).await.unwrap().line().as_ref(),
                Some(line)
            );
            assert_eq!(store.top_after(HEAT, line, 9).await.unwrap(), heat[at + 1..]);
        }
        let nobody = store.rank(SHOWS, "nobody").await.unwrap();
        assert_eq!((nobody.rank, nobody.score), (top.len() as u64 + 1, None));
        // A rebuild finds nothing to change.
        assert_eq!(store.rebuild(SHOWS).await.unwrap(), 0);
        assert_eq!(store.rebuild(HEAT).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn rebuild_repairs_damaged_lines() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut one = Batch::new();
    for show in ["a", "b", "c"] {
        one.add(SHOW_FANS, show, 2);
    }
    PostgresStore::new(&mut client, &SCHEMA).apply(&mut one).await.unwrap();
    client
        .batch_execute(
            "UPDATE show_board SET score = 7 WHERE key = 'a'; DELETE FROM show_board WHERE key = 'b';
             INSERT INTO show_board VALUES ('nobody', 9)",
        )
        .await
        .unwrap();
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert_eq!(store.rebuild(SHOWS).await.unwrap(), 3);
    let top = store.top(SHOWS, 9).await.unwrap();
    assert_eq!(
        top.iter().map(|line| (line.key.as_str(), line.score)).collect::<Vec<_>>(),
        [("a", 2), ("b", 2), ("c", 2)]
    );
}

const VOTES: Counter<i64> = Counter::new("show.votes");
const LINKED: Counter<(i64, i64)> = Counter::new("show.artist");
const ARTIST: Counter<i64> = Counter::new("artist.votes").sum_of(VOTES, LINKED);
const FIRST: Schema = Schema::new(&[VOTES.table()]);
const SECOND: Schema = Schema::new(&[VOTES.table(), LINKED.table(), ARTIST.table()]);
const RAISED: Schema = Schema::new(&[VOTES.version(2).table()]);

#[tokio::test]
async fn new_counters_are_unready_and_old_ones_are_dropped_by_hand() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let mut store = PostgresStore::new(&mut client, &FIRST);
    assert!(store.is_ready(VOTES.id()).await.unwrap());
    let mut later = PostgresStore::new(&mut client, &SECOND);
    // The database does not have its counters yet.
    let is_ready = async |store: &mut PostgresStore<'_>, counter: CounterId| {
        store.is_ready(counter).await.unwrap()
    };
    assert!(is_ready(&mut later, VOTES.id()).await && !is_ready(&mut later, ARTIST.id()).await);
    later.create().await.unwrap();
    later.create().await.unwrap(); // changes nothing
    assert_eq!(later.unready().await.unwrap(), [ARTIST.id(), LINKED.id()]);
    assert!(matches!(later.total(ARTIST, 7).await, Err(Error::NotReady { .. })));
    assert!(matches!(later.sum(LINKED.all()).await, Err(Error::NotReady { .. })));
    assert!(is_ready(&mut later, VOTES.id()).await && !is_ready(&mut later, ARTIST.id()).await);
    // An unready counter counts already.
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 5);
    batch.add(LINKED, (1, 7), 1);
    later.apply(&mut batch).await.unwrap();
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    let mut later = PostgresStore::new(&mut client, &SECOND);
    assert_eq!(later.total(ARTIST, 7).await.unwrap(), 5);
    // An older process must not start if it would not keep these counters.
    let mut older = PostgresStore::new(&mut client, &FIRST);
    assert!(
        matches!(older.check().await, Err(Error::SchemaMismatch { table, .. }) if table == "artist_votes")
    );
    assert_eq!(older.orphaned().await.unwrap(), ["artist.votes", "show.artist"]);
    assert!(
        matches!(older.drop_counter("show.artist").await, Err(Error::InvalidUse { .. })),
        "a rollup sums along it"
    );
    older.drop_counter("artist.votes").await.unwrap();
    older.drop_counter("show.artist").await.unwrap();
    assert!(matches!(older.drop_counter("show.artist").await, Err(Error::UnknownCounter { .. })));
    older.check().await.unwrap();
    let mut raised = PostgresStore::new(&mut client, &RAISED);
    raised.create().await.unwrap();
    assert_eq!(raised.orphaned().await.unwrap(), ["show.votes"]);
}

const LISTED: Leaderboard<i64> =
    Leaderboard::new("show.votes_board", [VOTES]).by(|[total]| Some(total));

/// A counter may become prunable, and a leaderboard of existing counters may be added; both use the
/// existing tables.
#[tokio::test]
async fn counter_may_become_prunable_or_ranked_later() {
    const KEPT: Schema = Schema::new(&[VOTES.table(), LINKED.table()]);
    const PRUNED: Schema = Schema::new(&[VOTES.table(), LINKED.table().prunable()]);
    const BOTH: Schema =
        Schema::new(&[VOTES.table(), LINKED.table().prunable()]).leaderboards(&[LISTED.id()]);
    let Some((_, mut client)) = open(&KEPT).await else { return };
    for schema in [&PRUNED, &BOTH, &BOTH] {
        PostgresStore::new(&mut client, schema).create().await.unwrap();
    }
    let mut store = PostgresStore::new(&mut client, &BOTH);
    let (mut one, mut two) = (Batch::new(), Batch::new());
    one.add(VOTES, 1, 5);
    two.add(VOTES, 1, 1);
    two.add(VOTES, 2, 1);
    two.add(LINKED, (1, 7), 1);
    // One statement for each counter, and one for the line of each key.
    for (batch, totals, statements) in [(&one, 1, 2), (&two, 3, 4)] {
        let applied = store.apply(&mut batch.clone()).await.unwrap();
        assert_eq!((applied.totals, applied.statements), (totals, statements));
    }
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    let mut store = PostgresStore::new(&mut client, &BOTH);
    assert_eq!(store.listed(LISTED).await.unwrap(), 2);
    assert_eq!(store.prune(LINKED, 8).await.unwrap(), 1);
}

#[tokio::test]
async fn rollup_of_a_child_key_without_parts_is_kept() {
    const BASE: Counter<()> = Counter::new("finer");
    const MEMBERSHIP: Counter<((), i64)> = Counter::new("link");
    const SUM: Counter<i64> = Counter::new("sum").sum_of(BASE, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[BASE.table(), MEMBERSHIP.table(), SUM.table()]);
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    for (memberships, votes) in [(&[(7, 1)][..], 3), (&[(7, -1), (8, 2)], 2), (&[], -1)] {
        let mut batch = Batch::new();
        batch.add(BASE, (), votes);
        for (parent, amount) in memberships {
            batch.add(MEMBERSHIP, ((), *parent), *amount);
        }
        store.apply(&mut batch).await.unwrap();
    }
    assert_eq!((store.total(SUM, 7).await.unwrap(), store.total(SUM, 8).await.unwrap()), (0, 8));
}

#[tokio::test]
async fn processes_that_create_at_once_all_succeed() {
    let Some(server) = shared() else { return };
    let config = server.database().await;
    let mut creating = Vec::new();
    for _ in 0..8 {
        let mut client = connect(&config).await;
        creating.push(tokio::spawn(async move {
            PostgresStore::new(&mut client, &SCHEMA).create().await
        }));
    }
    for created in creating {
        created.await.unwrap().unwrap();
    }
}

/// The table and the reason in the error of `check`.
async fn check_error(client: &mut Client) -> (String, String) {
    match PostgresStore::new(client, &SCHEMA).check().await {
        Err(Error::SchemaMismatch { table, reason }) => (table, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn tables_that_are_not_as_expected_are_refused_by_name() {
    for (damage, table, says) in [
        ("DROP TABLE setlist_votes", "setlist_votes", "absent"),
        (
            "ALTER TABLE setlist_votes ALTER total TYPE int",
            "setlist_votes",
            "total integer NOT NULL",
        ),
        ("ALTER TABLE setlist_votes ALTER total DROP NOT NULL", "setlist_votes", "total bigint)"),
        ("ALTER TABLE setlist_votes ADD note text", "setlist_votes", "note text"),
        (
            "ALTER TABLE setlist_votes DROP CONSTRAINT setlist_votes_pkey",
            "setlist_votes",
            "PRIMARY KEY",
        ),
        ("ALTER TABLE show_fans ALTER key TYPE text COLLATE \"default\"", "show_fans", "COLLATE"),
        ("CREATE RULE r AS ON INSERT TO show_fans DO INSTEAD NOTHING", "show_fans", "its rule r"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER t BEFORE INSERT ON show_fans FOR EACH ROW EXECUTE FUNCTION f()",
            "show_fans",
            "its trigger t",
        ),
        ("ALTER TABLE show_fans ENABLE ROW LEVEL SECURITY", "show_fans", "row security"),
        (
            "DROP INDEX setlist_show_by_parent",
            "setlist_show",
            "index setlist_show_by_parent is absent",
        ),
        ("DROP INDEX show_board_order", "show_board", "index show_board_order is absent"),
        ("DROP TABLE keepcount_offsets", "keepcount_offsets", "absent"),
        ("ALTER TABLE keepcount_locks DROP turns", "keepcount_locks", "turns"),
        ("DROP TABLE keepcount_counters", "keepcount_counters", "no keepcount tables yet"),
        (
            "DELETE FROM keepcount_counters WHERE name = 'show.fans'",
            "show_fans",
            "not in the catalogue",
        ),
        (
            "UPDATE keepcount_counters SET key = 'i64' WHERE name = 'show.fans'",
            "show_fans",
            "the catalogue says",
        ),
        (
            "UPDATE keepcount_counters SET version = -1 WHERE name = 'show.fans'",
            "show_fans",
            "the catalogue says",
        ),
        (
            "ALTER TABLE keepcount_counters DROP identity CASCADE",
            "keepcount_counters",
            "not keepcount's catalogue",
        ),
    ] {
        let Some((_, mut client)) = open(&SCHEMA).await else { return };
        client.batch_execute(damage).await.unwrap();
        let (name, reason) = check_error(&mut client).await;
        assert!(name == table && reason.contains(says), "{damage}: {name}: {reason}");
    }
}

#[tokio::test]
async fn create_does_not_touch_another_applications_table() {
    let Some(server) = shared() else { return };
    let mut client = connect(&server.database().await).await;
    client
        .batch_execute("CREATE TABLE show_fans (mine int); INSERT INTO show_fans VALUES (7)")
        .await
        .unwrap();
    let error = PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "show_fans"),
        "{error}"
    );
    let made = client
        .query_one("SELECT count(*) FROM pg_class WHERE relname LIKE 'keepcount%'", &[])
        .await
        .unwrap();
    assert_eq!(made.get::<_, i64>(0), 0, "no table was created");
}

#[tokio::test]
async fn name_that_postgresql_would_truncate_is_refused() {
    const MEMBERSHIP: Counter<(i64, i64)> =
        Counter::new("a.very.long.name.of.a.counter.of.forty.eight.let").version(12_345);
    const SUM: Counter<i64> = Counter::new("sum").sum_of(VOTES, MEMBERSHIP);
    const SCHEMA: Schema = Schema::new(&[VOTES.table(), MEMBERSHIP.table(), SUM.table()]);
    const SHORTER: Counter<(i64, i64)> =
        Counter::new("a.very.long.name.of.a.counter.of.forty.eight.l").version(12_345);
    const FITS: Schema = Schema::new(&[
        VOTES.table(),
        SHORTER.table(),
        Counter::<i64>::new("sum").sum_of(VOTES, SHORTER).table(),
    ]);
    let Some(server) = shared() else { return };
    let mut client = connect(&server.database().await).await;
    let error = PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { reason, .. } if reason.contains("63")),
        "{error}"
    );
    // The name of its index has the maximum length.
    PostgresStore::new(&mut client, &FITS).create().await.unwrap();
}

#[tokio::test]
async fn held_lock_and_outdated_snapshot_are_busy() {
    let Some((config, mut client)) = open(&FIRST).await else { return };
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    let mut other = connect(&config).await;
    let holder = other.transaction().await.unwrap();
    PostgresStore::in_transaction(&holder, &FIRST).apply(&mut batch.clone()).await.unwrap();
    client.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let error =
        PostgresStore::new(&mut client, &FIRST).apply(&mut batch.clone()).await.unwrap_err();
    assert!(
        error.recovery() == Recovery::Retry && error.to_string().contains("counter show.votes"),
        "{error}"
    );
    client.batch_execute("SET lock_timeout = 0; SET statement_timeout = '50ms'").await.unwrap();
    let error =
        PostgresStore::new(&mut client, &FIRST).apply(&mut batch.clone()).await.unwrap_err();
    assert!(
        error.recovery() == Recovery::Retry && error.to_string().contains("statement_timeout"),
        "{error}"
    );
    client.batch_execute("SET statement_timeout = 0").await.unwrap();
    let stale = client
        .build_transaction()
        .isolation_level(IsolationLevel::Serializable)
        .start()
        .await
        .unwrap();
    stale.query("SELECT * FROM show_votes", &[]).await.unwrap();
    holder.commit().await.unwrap();
    let error = PostgresStore::in_transaction(&stale, &FIRST).apply(&mut batch).await.unwrap_err();
    assert!(
        error.recovery() == Recovery::Retry
            && error.to_string().contains("try the whole transaction again"),
        "{error}"
    );
    drop(stale);
    assert_eq!(PostgresStore::new(&mut client, &FIRST).total(VOTES, 1).await.unwrap(), 1);
}

#[tokio::test]
async fn read_only_server_refuses_writes_and_serves_reads() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    client.batch_execute("SET default_transaction_read_only = on").await.unwrap();
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    let mut store = PostgresStore::new(&mut client, &FIRST);
    let error = store.apply(&mut batch).await.unwrap_err();
    assert!(
        error.recovery() == Recovery::Permanent
            && error.to_string().contains("cannot execute INSERT in a read-only transaction"),
        "{error}"
    );
    assert_eq!(store.total(VOTES, 1).await.unwrap(), 0);
    store.check().await.unwrap();
}

#[tokio::test]
async fn keys_and_totals_that_do_not_fit_are_named() {
    const LARGE: Counter<u64> = Counter::new("large");
    const TEXT: Counter<String> = Counter::new("text");
    const KEYS: Schema = Schema::new(&[LARGE.table(), TEXT.table()]);
    let Some((_, mut client)) = open(&KEYS).await else { return };
    let mut large = Batch::new();
    large.add(LARGE, u64::MAX, 1);
    let error = PostgresStore::new(&mut client, &KEYS).apply(&mut large.clone()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Key { counter: "large", cause: KeyError::Range { .. }, .. }),
        "{error}"
    );
    for text in ["x".repeat(1_025), "a\0b".to_owned()] {
        let mut batch = Batch::new();
        batch.add(TEXT, text.as_str(), 1);
        let error =
            PostgresStore::new(&mut client, &KEYS).apply(&mut batch.clone()).await.unwrap_err();
        assert!(matches!(&error, Error::Key { counter: "text", .. }), "{error}");
        let read = PostgresStore::new(&mut client, &KEYS).total(TEXT, text.as_str()).await;
        assert!(matches!(read, Err(Error::Key { counter: "text", .. })));
    }
    let mut most = Batch::new();
    (0..3_u64).for_each(|key| most.add(LARGE, key, i64::MAX));
    PostgresStore::new(&mut client, &KEYS).apply(&mut most).await.unwrap();
    let (mut one, mut many) = (Batch::new(), Batch::new());
    one.add(LARGE, 1_u64, 1);
    many.add(LARGE, 0_u64, -1);
    many.add(LARGE, 2_u64, 1);
    many.add(LARGE, 9_u64, 1);
    let error = PostgresStore::new(&mut client, &KEYS).apply(&mut many.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "counter large, key 2: the total leaves 64 bits");
    // In a transaction that the error has aborted, the store cannot look which key it was; it knows
    // if there is only one.
    for (batch, says) in [(&one, "key 1:"), (&many, "key 0 or another of 3:")] {
        let tx = client.transaction().await.unwrap();
        let error =
            PostgresStore::in_transaction(&tx, &KEYS).apply(&mut batch.clone()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Overflow { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
    assert_eq!(PostgresStore::new(&mut client, &KEYS).total(LARGE, 0_u64).await.unwrap(), i64::MAX);
}

/// Every error of the server on a write becomes one that says what to do, and to which counter or
/// stream it happened.
#[tokio::test]
async fn every_error_of_the_server_says_what_to_do() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let refuse = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN RAISE EXCEPTION USING ERRCODE = current_setting(''test.code''), MESSAGE = ''no \"such\" thing''; END';
                  CREATE TRIGGER t BEFORE INSERT OR UPDATE ON show_votes FOR EACH ROW WHEN (NEW.key = 7) EXECUTE FUNCTION f();
                  CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE ON keepcount_offsets DEFERRABLE INITIALLY DEFERRED
                  FOR EACH ROW EXECUTE FUNCTION f()";
    client.batch_execute(refuse).await.unwrap();
    let (mut batch, mut other) = (Batch::new(), Batch::new());
    batch.add(VOTES, 7, 1);
    other.add(VOTES, 8, 1);
    let busy =
        ["40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "25P03", "53300", "53200"];
    let schema = ["42P01", "42703", "42804", "42883"];
    let stream_range = keepcount::StreamRange::new("imports", 1, 1).unwrap();
    for code in busy.into_iter().chain(schema).chain(["23514", "XX000"]) {
        client.batch_execute(&format!("SET test.code = '{code}'")).await.unwrap();
        let mut store = PostgresStore::new(&mut client, &FIRST);
        for (error, says, deferred) in [
            (
                store.apply(&mut batch.clone()).await.unwrap_err(),
                "writing totals of counter show.votes",
                false,
            ),
            (
                store.apply_idempotent(&mut Batch::new(), &stream_range).await.unwrap_err(),
                "moving the offset of stream imports",
                true,
            ),
            (
                store.apply_idempotent(&mut other.clone(), &stream_range).await.unwrap_err(),
                "writing totals of counter show.votes",
                true,
            ),
        ] {
            let text = error.to_string();
            match &error {
                Error::Busy { .. } => assert!(busy.contains(&code), "{code}: {text}"),
                Error::SchemaMismatch { table, .. } => {
                    assert!(schema.contains(&code) && table == "show_votes", "{code}: {text}");
                }
                // The error names no table of totals, or comes from the commit.
                Error::Database { .. } => {
                    let is_other = ["23514", "XX000", "42P01"].contains(&code) || deferred;
                    assert!(is_other, "{code}: {text}");
                }
                _ => panic!("{code}: {text}"),
            }
            assert!(text.contains(says), "{code}: {text}");
        }
    }
    let mut store = PostgresStore::new(&mut client, &FIRST);
    assert_eq!(
        (store.total(VOTES, 8).await.unwrap(), store.offset("imports").await.unwrap()),
        (0, 0)
    );
}

#[tokio::test]
async fn column_whose_type_changed_is_named() {
    let Some((_, mut client)) = open(&SECOND).await else { return };
    let mut batch = Batch::new();
    batch.add(LINKED, (1, 7), 1);
    PostgresStore::new(&mut client, &SECOND).apply(&mut batch).await.unwrap();
    client
        .batch_execute("ALTER TABLE show_artist ALTER key_2 TYPE float8; UPDATE keepcount_counters SET ready = 1")
        .await
        .unwrap();
    let error = PostgresStore::new(&mut client, &SECOND).range(LINKED.all(), 9).await.unwrap_err();
    assert!(matches!(&error, Error::Key { counter: "show.artist", .. }), "{error:?}");
    assert!(error.to_string().contains("a column of type float8"), "{error}");
}

#[tokio::test]
async fn prepared_statements_are_run_without_preparing_again() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let prepared = PreparedStatements::new();
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    for _ in 0..3 {
        store(&mut client, Some(&prepared)).apply(&mut batch.clone()).await.unwrap();
        store(&mut client, None).apply(&mut batch.clone()).await.unwrap();
    }
    let runs =
        "SELECT count(*), sum(generic_plans + custom_plans)::bigint FROM pg_prepared_statements
                WHERE statement LIKE 'INSERT INTO \"show_votes\"%'";
    let row = client.query_one(runs, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 3));
}

fn store<'c>(
    client: &'c mut Client,
    prepared: Option<&'c PreparedStatements>,
) -> PostgresStore<'c> {
    let store = PostgresStore::new(client, &FIRST);
    match prepared {
        Some(prepared) => store.prepared(prepared),
        None => store,
    }
}

#[tokio::test]
async fn calls_that_begin_a_transaction_are_refused_within_one() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let mut tx = client.transaction().await.unwrap();
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    for has_savepoints in [false, true] {
        let mut store = if has_savepoints {
            PostgresStore::with_savepoints(&mut tx, &FIRST)
        } else {
            PostgresStore::in_transaction(&tx, &FIRST)
        };
        let written = store.write(&[], &mut batch).await.map(drop);
        let delivered = StreamRange::new("votes", 1, 1).unwrap();
        let again = store.write_idempotent(&[], &mut batch, &delivered).await.map(drop);
        let swept = store.sweep(&mut Sweep::new()).await.map(drop);
        let ran = store.transaction(async |_, _| Ok::<(), Error>(())).await;
        let all = [
            ("write", written),
            ("write_idempotent", again),
            ("sweep", swept),
            ("transaction", ran),
        ];
        for (what, done) in all {
            let error = done.unwrap_err();
            assert!(
                matches!(error, Error::InvalidUse { what: refused, .. } if refused == what),
                "{error}"
            );
        }
    }
    assert_eq!(batch.len(), 1);
    tx.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn error_of_an_absent_table_names_that_table_and_no_other() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut batch = Batch::new();
    batch.add(SHOW_FANS, "a", 1);
    // The store's own, which it writes before totals.
    client.batch_execute("ALTER TABLE keepcount_locks RENAME TO gone").await.unwrap();
    let error = PostgresStore::new(&mut client, &SCHEMA).apply(&mut batch).await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "keepcount_locks"),
        "{error}"
    );
    // Another one, of a trigger on a table of totals.
    let trigger = "ALTER TABLE gone RENAME TO keepcount_locks;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO audit_log VALUES (1); RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON show_fans FOR EACH ROW EXECUTE FUNCTION f()";
    client.batch_execute(trigger).await.unwrap();
    let error = PostgresStore::new(&mut client, &SCHEMA).apply(&mut batch).await.unwrap_err();
    assert!(
        matches!(&error, Error::Database { .. }) && error.to_string().contains("audit_log"),
        "{error:?}"
    );
}

/// Only the savepoint is rolled back.
#[tokio::test]
async fn apply_dropped_in_a_savepoint_leaves_the_transaction_as_it_was() {
    let Some((config, mut client)) = open(&FIRST).await else { return };
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    PostgresStore::new(&mut client, &FIRST).apply(&mut batch.clone()).await.unwrap();
    client.batch_execute("CREATE TABLE votes (id BIGINT)").await.unwrap();
    let mut locker = connect(&config).await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("UPDATE show_votes SET total = total").await.unwrap();

    let mut tx = client.transaction().await.unwrap();
    tx.batch_execute("INSERT INTO votes VALUES (1)").await.unwrap();
    let mut store = PostgresStore::with_savepoints(&mut tx, &FIRST);
    let waited = tokio::time::timeout(Duration::from_millis(200), store.apply(&mut batch)).await;
    assert!(waited.is_err(), "the total is locked");
    lock.rollback().await.unwrap();
    tx.batch_execute("INSERT INTO votes VALUES (2)").await.unwrap();
    PostgresStore::with_savepoints(&mut tx, &FIRST).apply(&mut batch).await.unwrap();
    tx.commit().await.unwrap();

    let rows = client.query_one("SELECT count(*) FROM votes", &[]).await.unwrap();
    let total = PostgresStore::new(&mut client, &FIRST).total(VOTES, 7).await.unwrap();
    assert_eq!((rows.get::<_, i64>(0), total), (2, 2));
}

#[tokio::test]
async fn write_that_a_trigger_skips_is_refused_or_unknown_once_committed() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let skip = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                CREATE TRIGGER t BEFORE INSERT ON show_votes FOR EACH ROW EXECUTE FUNCTION f()";
    client.batch_execute(skip).await.unwrap();
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    let error = store(&mut client, None).apply(&mut batch.clone()).await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "show_votes"),
        "{error}"
    );
    for prepared in [None, Some(&PreparedStatements::new())] {
        let error = store(&mut client, prepared)
            .write(&[("SELECT $1::text", &[&"a row"])], &mut batch)
            .await
            .unwrap_err();
        assert_eq!(error.recovery(), Recovery::Indeterminate, "{error}");
    }
    // In the caller's transaction, what is written of it cannot be committed.
    let tx = client.transaction().await.unwrap();
    assert!(PostgresStore::in_transaction(&tx, &FIRST).apply(&mut batch).await.is_err());
    assert!(tx.query("SELECT 1", &[]).await.is_err());
}

#[tokio::test]
async fn prunes_and_rebuilds_at_repeatable_read_are_refused() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()
        .await
        .unwrap();
    let error =
        PostgresStore::with_savepoints(&mut tx, &SCHEMA).prune(SHOW_HEAT, 3).await.unwrap_err();
    assert!(matches!(error, Error::InvalidUse { what: "transaction_isolation", .. }), "{error}");
    let error = PostgresStore::with_savepoints(&mut tx, &SCHEMA).rebuild(SHOWS).await.unwrap_err();
    assert!(matches!(error, Error::InvalidUse { what: "transaction_isolation", .. }), "{error}");
}

const HEAT_COUNTER: Counter<(i64, i64)> = Counter::new("setlist.heat");
const HEAT_MEMBERSHIP: Counter<(i64, i64)> = Counter::new("setlist.of_show");
const HEAT_SUM: Counter<(i64, i64)> =
    Counter::new("show.heat_sum").sum_of_suffix(HEAT_COUNTER, HEAT_MEMBERSHIP);
const COOL: Schema = Schema::new(&[HEAT_COUNTER.table().prunable(), HEAT_MEMBERSHIP.table()]);
const WARM: Schema = Schema::new(&[
    HEAT_COUNTER.table().prunable(),
    HEAT_MEMBERSHIP.table(),
    HEAT_SUM.table().prunable(),
]);

/// A new rollup used to have no cutoff: a sum over what its base counter had pruned was a number,
/// and not an error.
#[tokio::test]
async fn new_rollup_has_the_cutoff_of_its_base() {
    let Some((_, mut client)) = open(&COOL).await else { return };
    PostgresStore::new(&mut client, &COOL).prune(HEAT_COUNTER, 5).await.unwrap();
    let mut store = PostgresStore::new(&mut client, &WARM);
    store.create().await.unwrap();
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    let mut store = PostgresStore::new(&mut client, &WARM);
    assert!(matches!(store.sum(HEAT_SUM.under(7)).await, Err(Error::Pruned { .. })));
    let conn = Connection::open_in_memory().unwrap();
    SqliteStore::new(&conn, &COOL).create().unwrap();
    SqliteStore::new(&conn, &COOL).prune(HEAT_COUNTER, 5).unwrap();
    SqliteStore::new(&conn, &WARM).create().unwrap();
    conn.execute_batch("UPDATE keepcount_counters SET ready = 1").unwrap();
    let mut sqlite = SqliteStore::new(&conn, &WARM);
    assert!(matches!(sqlite.sum(HEAT_SUM.under(7)), Err(Error::Pruned { .. })));
}

#[tokio::test]
async fn create_with_nothing_to_do_does_not_wait_for_writers() {
    let Some((config, mut client)) = open(&SECOND).await else { return };
    let mut other = connect(&config).await;
    let writer = other.transaction().await.unwrap();
    let mut batch = Batch::new();
    batch.add(LINKED, (1, 7), 1);
    PostgresStore::in_transaction(&writer, &SECOND).apply(&mut batch).await.unwrap();
    client.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    PostgresStore::new(&mut client, &SECOND).create().await.unwrap();
    writer.commit().await.unwrap();
}

#[tokio::test]
async fn a_stream_with_a_zero_byte_is_refused() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let stream_range = keepcount::StreamRange::new("a\0b", 1, 1).unwrap();
    let mut store = PostgresStore::new(&mut client, &FIRST);
    assert!(matches!(
        store.apply_idempotent(&mut Batch::new(), &stream_range).await,
        Err(Error::InvalidUse { what: "stream", .. })
    ));
    assert!(matches!(store.offset("a\0b").await, Err(Error::InvalidUse { what: "stream", .. })));
}

#[tokio::test]
async fn offsets_are_listed_by_pages_and_forgotten() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    let mut sorted = vec![("a", 1), ("b", 2), ("b\u{1}", 3), ("ba", 4), ("\u{e9}", 5), ("Z", 6)];
    for (stream, last) in &sorted {
        let stream_range = StreamRange::new(stream, 1, *last).unwrap();
        store.apply_idempotent(&mut Batch::new(), &stream_range).await.unwrap();
    }
    sorted.sort_unstable();
    for limit in [0, 1, 2, 100] {
        for after in [None, Some(""), Some("a"), Some("b"), Some("c"), Some("\u{e9}")] {
            let wanted: Vec<_> = sorted
                .iter()
                .filter(|(stream, _)| Some(*stream) > after)
                .take(limit)
                .map(|(stream, last)| ((*stream).to_owned(), *last))
                .collect();
            assert_eq!(store.offsets(after, limit).await.unwrap(), wanted, "{after:?} {limit}");
        }
    }
    assert_eq!(store.replay_from("b", 2).await.unwrap(), 3);
    assert!(matches!(
        store.replay_from("b", 1).await,
        Err(Error::LogTruncated { applied: 2, end: 1, .. })
    ));
    assert_eq!(
        (store.forget_offset("b").await.unwrap(), store.forget_offset("b").await.unwrap()),
        (2, 0)
    );
    assert_eq!(
        (store.offset("b").await.unwrap(), store.offsets(None, 100).await.unwrap().len()),
        (0, 5)
    );
    for error in [
        store.offsets(Some("\0"), 1).await.unwrap_err(),
        store.forget_offset("\0").await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("zero byte"), "{error}");
    }
    client
        .batch_execute("UPDATE keepcount_offsets SET last = -1 WHERE stream = 'a'")
        .await
        .unwrap();
    let error = PostgresStore::new(&mut client, &SCHEMA).offsets(None, 9).await.unwrap_err();
    assert!(error.to_string().contains("the offset of stream a is -1, below 0"), "{error}");
}

/// The lock of a stream is a row of its own, which stayed if the transaction was committed after
/// its events had been refused.
#[tokio::test]
async fn stream_of_which_nothing_was_applied_is_not_listed() {
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let tx = client.transaction().await.unwrap();
    let gap = StreamRange::new("a", 2, 2).unwrap();
    let refused =
        PostgresStore::in_transaction(&tx, &SCHEMA).apply_idempotent(&mut Batch::new(), &gap).await;
    assert!(matches!(refused, Err(Error::Gap { applied: 0, .. })), "{refused:?}");
    tx.commit().await.unwrap();
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert_eq!(store.offsets(None, 9).await.unwrap(), []);
    let first = StreamRange::new("a", 1, 3).unwrap();
    assert!(!store.apply_idempotent(&mut Batch::new(), &first).await.unwrap().skipped);
    assert_eq!(store.offsets(None, 9).await.unwrap(), [("a".to_owned(), 3)]);
}

#[tokio::test]
async fn leaderboard_that_the_schema_does_not_list_is_neither_read_nor_rebuilt() {
    const BARE: Schema = Schema::new(SCHEMA.counters());
    let Some((_, mut client)) = open(&SCHEMA).await else { return };
    let mut store = PostgresStore::new(&mut client, &BARE);
    let errors = [
        store.rebuild(SHOWS).await.unwrap_err(),
        store.top(SHOWS, 1).await.unwrap_err(),
        store.rank(SHOWS, "a").await.unwrap_err(),
        store.listed(SHOWS).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::InvalidUse { what: "leaderboard", .. }), "{error:?}");
    }
}

#[tokio::test]
async fn reads_and_writes_without_tables_say_to_create_them() {
    let Some(server) = shared() else { return };
    let mut client = connect(&server.database().await).await;
    let mut batch = Batch::new();
    batch.add(VOTES, 1, 1);
    let mut store = PostgresStore::new(&mut client, &FIRST);
    let total = store.total(VOTES, 1).await.unwrap_err();
    assert!(total.to_string().contains("asking whether show.votes is ready"), "{total}");
    for error in [
        total,
        store.apply(&mut batch.clone()).await.unwrap_err(),
        store.offset("x").await.unwrap_err(),
        store.check().await.unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::SchemaMismatch { .. }) && error.to_string().contains("create"),
            "{error}"
        );
    }
}

/// The text for your own migrations leaves the same as `create`: tables, indexes and readiness.
#[tokio::test]
async fn text_for_migrations_does_the_same_as_create() {
    const BOTH: Schema = SECOND.leaderboards(&[LISTED.id()]);
    const MADE: &str = "SELECT string_agg(line, E'\\n' ORDER BY line COLLATE \"C\") FROM (
        SELECT concat_ws(' ', name, key, version, placement, encode(cutoff, 'hex'), ready) AS line FROM keepcount_counters
        UNION ALL SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, collation_name) FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public') AS lines";
    async fn made(client: &Client) -> String {
        client.query_one(MADE, &[]).await.unwrap().get(0)
    }
    async fn run(client: &Client, statements: &[String]) {
        client.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join(";\n"))).await.unwrap();
    }
    let dialect = keepcount::sql::Dialect::Postgres;
    for pending_backfill in [false, true] {
        let Some(server) = shared() else { return };
        let by_text = connect(&server.database().await).await;
        let mut by_create = connect(&server.database().await).await;
        let mut store = PostgresStore::new(&mut by_create, &FIRST);
        if pending_backfill {
            store.create_pending_backfill().await.unwrap();
            run(&by_text, &keepcount::sql::ddl_pending_backfill(dialect, &FIRST)).await;
        } else {
            store.create().await.unwrap();
            run(&by_text, &keepcount::sql::ddl(dialect, &FIRST)).await;
        }
        assert_eq!(made(&by_text).await, made(&by_create).await);
        let before = made(&by_text).await;
        let mut steps = vec![&FIRST];
        for schema in [&SECOND, &BOTH] {
            // The text for a new database is refused here, and makes no counter ready.
            assert!(
                by_text
                    .batch_execute(&format!(
                        "BEGIN; {}",
                        keepcount::sql::ddl(dialect, schema).join(";\n")
                    ))
                    .await
                    .is_err()
            );
            by_text.batch_execute("ROLLBACK").await.unwrap();
            if steps.len() == 1 {
                assert_eq!(made(&by_text).await, before);
            }
            PostgresStore::new(&mut by_create, schema).create().await.unwrap();
            run(
                &by_text,
                &keepcount::sql::migration(dialect, schema, steps[steps.len() - 1])
                    .unwrap()
                    .statements,
            )
            .await;
            assert_eq!(made(&by_text).await, made(&by_create).await);
            steps.push(schema);
        }
        // The statements for a dropped counter do the same as `drop_counter`.
        let gone = keepcount::sql::migration(dialect, &FIRST, &BOTH).unwrap();
        assert!(gone.statements.is_empty());
        for gone in gone.drops {
            run(&by_text, &gone.statements).await;
            PostgresStore::new(&mut by_create, &FIRST).drop_counter(&gone.name).await.unwrap();
            assert_eq!(made(&by_text).await, made(&by_create).await);
        }
    }
}

/// An error names the table of the statement that failed. It used to take the first quoted name in
/// the server's message for the table, whatever it named and in whatever language.
#[tokio::test]
async fn refused_statement_names_its_table_or_says_it_is_the_applications() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    client.batch_execute("CREATE TABLE notes (note TEXT)").await.unwrap();
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    let prepared = PreparedStatements::new();
    for (text, names) in [
        ("INSERT INTO notes (nota) VALUES ('a')", "\"nota\""),
        ("INSERT INTO note VALUES ('a')", "\"note\""),
        ("INSERT INTO notes VALUES (absent('a'))", "absent"),
        ("INSERT INTO notes VALUES", "syntax"),
    ] {
        for prepared in [None, Some(&prepared)] {
            let ok = ("INSERT INTO notes VALUES ('b')", &[][..]);
            let error = store(&mut client, prepared)
                .write(&[ok, (text, &[])], &mut batch)
                .await
                .unwrap_err();
            assert!(
                matches!(error, Error::Database { .. }) && error.recovery() == Recovery::Permanent,
                "{error:?}"
            );
            let said = error.to_string();
            assert!(
                said.contains("statement 2 of the application's own") && said.contains(names),
                "{said}"
            );
        }
    }
    // Statements that fail only when they are run, by every way of a write. The server's message
    // quotes a name of keepcount's all the same.
    let raise = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN RAISE EXCEPTION USING ERRCODE = NEW.note, MESSAGE = ''column \"show_votes\" is not there''; END';
                 CREATE TRIGGER t BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION f()";
    client.batch_execute(raise).await.unwrap();
    let parameters = PreparedStatements::by_parameters();
    for code in ["42P01", "42703", "42883"] {
        for prepared in [None, Some(&prepared), Some(&parameters)] {
            let rows: [(&str, &[&(dyn ToSql + Sync)]); 1] =
                [("INSERT INTO notes VALUES ($1)", &[&code])];
            let error = store(&mut client, prepared).write(&rows, &mut batch).await.unwrap_err();
            assert!(matches!(error, Error::Database { .. }), "{error:?}");
            assert!(error.to_string().contains("statement 1 of the application's own"), "{error}");
        }
    }
    // A table of totals without its column, by every way.
    client
        .batch_execute("DROP TRIGGER t ON notes; ALTER TABLE show_votes RENAME total TO sum")
        .await
        .unwrap();
    let rows: [(&str, &[&(dyn ToSql + Sync)]); 1] = [("INSERT INTO notes VALUES ($1)", &[&"a"])];
    let is_named = |error: &Error| matches!(error, Error::SchemaMismatch { table, .. } if table == "show_votes");
    for prepared in [None, Some(&prepared), Some(&parameters)] {
        let errors = [
            store(&mut client, prepared).write(&rows, &mut batch).await.unwrap_err(),
            store(&mut client, prepared).apply(&mut batch).await.unwrap_err(),
            store(&mut client, prepared).total(VOTES, 7).await.unwrap_err(),
        ];
        for error in errors {
            assert!(is_named(&error) && error.to_string().contains("show.votes"), "{error:?}");
        }
    }
    let notes = client.query_one("SELECT count(*) FROM notes", &[]).await.unwrap();
    assert_eq!(notes.get::<_, i64>(0), 0);
}

/// The error used to be "error deserializing column 1", without the reason, which was in a source
/// that no message showed.
#[tokio::test]
async fn total_of_another_type_names_the_type_and_the_table() {
    let Some((_, mut client)) = open(&FIRST).await else { return };
    let mut batch = Batch::new();
    batch.add(VOTES, 7, 1);
    PostgresStore::new(&mut client, &FIRST).apply(&mut batch).await.unwrap();
    client.batch_execute("ALTER TABLE show_votes ALTER total TYPE numeric").await.unwrap();
    let error = PostgresStore::new(&mut client, &FIRST).total(VOTES, 7).await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "show_votes"),
        "{error:?}"
    );
    assert!(error.to_string().contains("numeric"), "{error}");
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the work does after it has written a row and called its hook.
#[derive(Clone, Copy, Debug)]
enum Then {
    Commits,
    Fails,
    Overflows,
    BreaksAForeignKey,
    SwallowsAnError,
}

async fn run(client: &mut tokio_postgres::Client, then: Then) -> Result<i64, Failure> {
    let mut store = PostgresStore::new(client, &SCHEMA);
    store
        .transaction(async |tx, batch| {
            let parent = if matches!(then, Then::BreaksAForeignKey) { 2_i64 } else { 1 };
            tx.execute("INSERT INTO children VALUES ($1)", &[&parent]).await?;
            batch.add(
                SETLIST_VOTES,
                parent,
                if matches!(then, Then::Overflows) { i64::MAX } else { 1 },
            );
            match then {
                Then::Fails => return Err("the work failed".into()),
                Then::SwallowsAnError => {
                    batch.clear();
                    tx.execute("nonsense", &[]).await.unwrap_err();
                }
                _ => {}
            }
            Ok(tx.query_one("SELECT count(*) FROM children", &[]).await.map_or(0, |row| row.get(0)))
        })
        .await
}

async fn state(client: &mut tokio_postgres::Client) -> (i64, Vec<(i64, i64)>) {
    let rows = client.query_one("SELECT count(*) FROM children", &[]).await.unwrap().get(0);
    (rows, PostgresStore::new(client, &SCHEMA).totals(SETLIST_VOTES).await.unwrap())
}

#[tokio::test]
async fn a_transaction_commits_rows_and_totals_or_neither() {
    let Some((config, mut client)) = open(&SCHEMA).await else { return };
    let tables = "CREATE TABLE parents (id bigint PRIMARY KEY); INSERT INTO parents VALUES (1);
        CREATE TABLE children (parent bigint NOT NULL REFERENCES parents DEFERRABLE INITIALLY DEFERRED)";
    client.batch_execute(tables).await.unwrap();
    assert_eq!(run(&mut client, Then::Commits).await.unwrap(), 1);
    let before = (1, vec![(1, 1)]);
    assert_eq!(state(&mut client).await, before);
    for then in [Then::Fails, Then::Overflows, Then::BreaksAForeignKey, Then::SwallowsAnError] {
        let failed = run(&mut client, then).await.unwrap_err();
        assert_eq!(state(&mut client).await, before, "{then:?}");
        match (then, failed.downcast_ref::<Error>()) {
            (Then::Fails, None) => assert_eq!(failed.to_string(), "the work failed"),
            (Then::Overflows, Some(Error::Overflow { .. })) => {}
            (Then::BreaksAForeignKey, Some(Error::Database { operation, .. }))
            | (Then::SwallowsAnError, Some(Error::Busy { operation, .. })) => {
                assert!(operation.contains("transaction"), "{operation}");
            }
            (then, _) => panic!("{then:?}: {failed}"),
        }
    }
    // The work panics, in a task of its own.
    let panicked = tokio::spawn(async move {
        let mut store = PostgresStore::new(&mut client, &SCHEMA);
        let done = store.transaction(async |tx, batch| {
            tx.execute("INSERT INTO children VALUES (1)", &[]).await?;
            batch.add(SETLIST_VOTES, 1, 1);
            assert!(batch.is_empty(), "the work panics");
            Ok::<(), Failure>(())
        });
        done.await
    });
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(state(&mut connect(&config).await).await, before);
}
