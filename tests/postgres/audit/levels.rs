//! Rollups: what a repair locks, what verifies and repairs cost, and sums beyond 64 bits. What they
//! find and leave is shown by `cases.rs`.

use keepcount::reconcile::audit::{PageRequest, Probe, RepairRequest};
use keepcount::reconcile::{
    AsyncAudit, Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, TokioRuntime,
    run_async,
};
use keepcount::{AsyncStore, Batch, Counter, Error, KeyBuf, PostgresStore, Record, Schema, Tally};
use tokio_postgres::Client;

use super::items::{connect_again, database, run_whole, text_of};
use crate::support::postgres::{LOCK_WAIT_EXISTS, shared, wait_until};

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, SETLIST_SHOW);
const SCHEMA: Schema = Schema::new(&[VOTES.table(), SETLIST_SHOW.table(), SHOW_VOTES.table()]);

struct Vote {
    setlist: i64,
    amount: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.setlist, self.amount);
    }
}

struct Setlist {
    id: i64,
    show: Option<i64>,
}

impl Record for Setlist {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(show) = self.show {
            to.add(SETLIST_SHOW, (self.id, show), 1);
        }
    }
}

/// 150 setlists of 40 shows, with votes; some setlists have no show.
const ROWS: &str = "
    CREATE TABLE votes (setlist INT, amount INT);
    CREATE INDEX ON votes (setlist);
    CREATE TABLE setlists (id INT PRIMARY KEY, show BIGINT);
    CREATE UNIQUE INDEX ON setlists (id, show);
    CREATE TABLE shows (id INT PRIMARY KEY);
    INSERT INTO votes SELECT i % 150, i % 5 - 1 FROM generate_series(1, 2000) AS i;
    INSERT INTO setlists SELECT i, nullif(i * 7 % 41, 0) FROM generate_series(0, 149) AS i;
    INSERT INTO shows SELECT generate_series(1, 40);
";

async fn audit(client: &mut Client) -> PostgresAudit<'_> {
    let mut audit = PostgresAudit::new(client, &SCHEMA).await.unwrap();
    let votes = PostgresRows::of("votes", |row| {
        let (setlist, amount): (i32, i32) = (row.try_get("setlist")?, row.try_get("amount")?);
        Ok(Vote { setlist: setlist.into(), amount: amount.into() })
    });
    let setlists = PostgresRows::of("setlists", |row| {
        Ok(Setlist { id: row.try_get::<_, i32>("id")?.into(), show: row.try_get("show")? })
    });
    audit.add(votes.key(VOTES, Columns::of(["setlist"]).sum("amount"))).await.unwrap();
    let of_shows = Columns::of(["id", "show"]).count().parent("shows", ["id"]);
    audit.add(setlists.key(SETLIST_SHOW, of_shows)).await.unwrap();
    audit
}

async fn filled(server: &crate::support::postgres::Server) -> Client {
    let mut client = database(server).await;
    client.batch_execute(ROWS).await.unwrap();
    PostgresStore::new(&mut client, &SCHEMA).create_pending_backfill().await.unwrap();
    run_whole(Mode::Backfill, &SCHEMA, Options::default(), &mut audit(&mut client).await)
        .await
        .unwrap();
    client
}

/// A run over a part of the memberships used to report those after its last key too, which belong
/// to another run.
#[tokio::test]
async fn dangling_memberships_after_the_last_requested_key_are_not_reported() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    client.batch_execute("DELETE FROM shows").await.unwrap();
    let mut audit = audit(&mut client).await;
    let until = Some(KeyBuf::of::<(i64, i64)>((20_i64, i64::MAX)));
    let ask =
        PageRequest { counter: SETLIST_SHOW.id(), after: None, until: until.clone(), keys: 1000 };
    let diff = audit.compare(&ask).await.unwrap();
    assert!(diff.next.is_none() && diff.dangling.last() <= until.as_ref(), "{diff:?}");
    assert_eq!(diff.dangling.len() as u64, diff.keys);
}

/// A writer locks a child first, then its totals. A repair that held the total while it waits for
/// the child would cause a deadlock.
#[tokio::test]
async fn repair_locks_no_total_while_it_waits_for_the_child() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let mut batch = Batch::new();
    batch.insert(&Vote { setlist: 3, amount: 4 });
    PostgresStore::new(&mut client, &SCHEMA).apply(&mut batch).await.unwrap();
    client.batch_execute("INSERT INTO votes VALUES (3, 4)").await.unwrap();
    client.batch_execute("UPDATE setlist_votes SET total = total + 1 WHERE key = 3").await.unwrap();
    let (mut writer, reader) =
        (connect_again(&client, server).await, connect_again(&client, server).await);
    let held = writer.transaction().await.unwrap();
    let locks = held
        .query(r#"SELECT 1 FROM keepcount_locks WHERE "of" = 'setlist.show' FOR UPDATE"#, &[])
        .await
        .unwrap();
    assert!(!locks.is_empty());
    let stepping = async {
        wait_until(&reader, LOCK_WAIT_EXISTS).await;
        let update =
            "SET LOCAL lock_timeout = '2s'; UPDATE setlist_votes SET total = total WHERE key = 3";
        held.batch_execute(update).await.unwrap();
        held.commit().await.unwrap();
    };
    let mut audit = audit(&mut client).await;
    let repair = RepairRequest { counter: VOTES.id(), keys: vec![KeyBuf::of::<i64>(3)] };
    let (repaired, ()) = tokio::join!(audit.repair(&repair), stepping);
    assert_eq!(repaired.unwrap().corrected, 1);
    drop(audit);
    let exact = "SELECT (SELECT total FROM setlist_votes WHERE key = 3) = (SELECT sum(amount) FROM votes WHERE setlist = 3)";
    assert!(reader.query_one(exact, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn a_rollup_beyond_64_bits_names_its_key() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let text = "UPDATE setlist_votes SET total = 9223372036854775807 WHERE key IN (SELECT id FROM setlists WHERE show = 5)";
    client.batch_execute(text).await.unwrap();
    let mut audit = audit(&mut client).await;
    let ask = PageRequest { counter: SHOW_VOTES.id(), after: None, until: None, keys: 1000 };
    let error = audit.compare(&ask).await.unwrap_err();
    assert!(
        matches!(&error, Error::Overflow { key, counter: "show.votes", .. } if key == "5"),
        "{error:?}"
    );
    let repair = RepairRequest { counter: SHOW_VOTES.id(), keys: vec![KeyBuf::of::<i64>(5)] };
    assert!(matches!(audit.repair(&repair).await, Err(Error::Overflow { .. })));
}

const CHILD_DAYS: Counter<(i64, i64)> = Counter::new("child.days");
const CHILD_PARENT: Counter<(i64, i64)> = Counter::new("child.parent");
const PARENT_DAYS: Counter<(i64, i64)> =
    Counter::new("parent.days").sum_of_suffix(CHILD_DAYS, CHILD_PARENT);
const WIDE: Schema = Schema::new(&[CHILD_DAYS.table(), CHILD_PARENT.table(), PARENT_DAYS.table()]);

/// Creates parent 1 with `children` children, between two parents of one child. Each child has
/// `days` days, the first of which is the SQL `first` of the child `c`. The rollup's totals are
/// there if `stored`.
async fn wide(
    server: &crate::support::postgres::Server,
    children: i64,
    days: i64,
    first: &str,
    stored: bool,
) -> Client {
    let mut client = database(server).await;
    PostgresStore::new(&mut client, &WIDE).create().await.unwrap();
    let text = format!(
        "INSERT INTO child_parent VALUES (-1, 0, 1), (-2, 2, 1); INSERT INTO child_days VALUES (-1, 5, 1), (-2, 5, 1);
         INSERT INTO child_parent SELECT c, 1, 1 FROM generate_series(0, {children} - 1) AS c;
         INSERT INTO child_days SELECT c, {first} + n, 1 FROM generate_series(0, {children} - 1) AS c, generate_series(0, {days} - 1) AS n;"
    );
    client.batch_execute(&text).await.unwrap();
    if stored {
        let sums = "SELECT l.key_2, f.key_2, sum(l.total * f.total) FROM child_parent AS l JOIN child_days AS f ON f.key_1 = l.key_1 GROUP BY 1, 2";
        client.batch_execute(&format!("INSERT INTO parent_days {sums}")).await.unwrap();
    }
    client
}

/// The searches in the index of the base totals so far, and the entries that they read.
async fn index_work(client: &Client, reader: &Client) -> i64 {
    let version: i32 = client
        .query_one("SELECT current_setting('server_version_num')::int", &[])
        .await
        .unwrap()
        .get(0);
    if version < 150_000 {
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    } else {
        client.batch_execute("SELECT pg_stat_force_next_flush()").await.unwrap();
    }
    let work = "SELECT (idx_scan + idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'child_days_pkey'";
    reader.query_one(work, &[]).await.unwrap().get(0)
}

/// A page used to read the rest of its parent again, so that the work of a wide parent grew with
/// the square of its keys.
#[tokio::test]
async fn work_of_a_rollups_verify_grows_with_its_keys_at_any_width_of_parents() {
    let Some(server) = shared() else { return };
    let shapes = [
        ("ten children of the same days", 10, 1, "0"),
        ("one child", 1, 1, "0"),
        ("fifty children, one after the other", 50, 50, "c * 1000"),
        ("fifty children, the last first", 50, 50, "c * -1000"),
    ];
    for (what, children, distinct, first) in shapes {
        for stored in [true, false] {
            let mut costs = Vec::new();
            for keys in [4_000, 8_000] {
                let mut client = wide(server, children, keys / distinct, first, stored).await;
                let reader = connect_again(&client, server).await;
                let before = index_work(&client, &reader).await;
                let mut audit = PostgresAudit::new(&mut client, &WIDE).await.unwrap();
                let options = Options::default().page(500);
                let run = Reconciler::scoped(Mode::Verify, &WIDE, &[PARENT_DAYS.id()], options);
                let report = run_async(&mut run.unwrap(), &mut audit, &mut TokioRuntime::new())
                    .await
                    .unwrap();
                drop(audit);
                let wanted = if stored { 0 } else { keys.unsigned_abs() + 2 };
                // The counters that it sums have no source here, and are left out.
                let rollup = report.counters.last().unwrap();
                assert_eq!(
                    (rollup.counter, rollup.complete, rollup.drift()),
                    (PARENT_DAYS.id(), true, wanted),
                    "{what}"
                );
                costs.push(index_work(&client, &reader).await - before);
            }
            println!("{what}, totals {stored}: {costs:?} entries");
            assert!(
                costs[1] * 2 <= costs[0] * 5,
                "{what}, totals {stored}: {costs:?} entries of 4,000 and 8,000 keys"
            );
            assert!(
                costs[1] <= 8_000 * children / distinct * 5,
                "{what}, totals {stored}: {costs:?}"
            );
        }
    }
}

/// A repair used to look up every key at every child of its parent, while it held their totals.
#[tokio::test]
async fn work_of_a_repair_grows_with_children_and_not_with_keys_times_children() {
    let Some(server) = shared() else { return };
    let mut client = wide(server, 3_000, 1, "c", false).await;
    let reader = connect_again(&client, server).await;
    let before = index_work(&client, &reader).await;
    let keys = (100..356).map(|day| KeyBuf::of::<(i64, i64)>((1_i64, day))).collect();
    let mut audit = PostgresAudit::new(&mut client, &WIDE).await.unwrap();
    let repaired = audit.repair(&RepairRequest { counter: PARENT_DAYS.id(), keys }).await.unwrap();
    drop(audit);
    assert_eq!(repaired.corrected, 256);
    let done = index_work(&client, &reader).await - before;
    println!("{done} entries for a repair of 256 keys of 3,000 children");
    assert!(done <= 15_000, "{done}");
    assert_eq!(
        text_of(&reader, "SELECT count(*) || ' ' || sum(total) FROM parent_days").await,
        "256 256"
    );
}

#[tokio::test]
async fn probe_of_a_rollup_says_whether_it_sums_anything() {
    let Some(server) = shared() else { return };
    let mut client = wide(server, 200, 1, "c", true).await;
    let reader = connect_again(&client, server).await;
    let mut audit = PostgresAudit::new(&mut client, &WIDE).await.unwrap();
    let ask = Probe { counter: PARENT_DAYS.id(), totals: 100 };
    assert!(!audit.probe(&ask).await.unwrap().empty);
    reader.batch_execute("DELETE FROM child_days").await.unwrap();
    let looked = audit.probe(&ask).await.unwrap();
    assert!(looked.empty && looked.totals == 100);
}
