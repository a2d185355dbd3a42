//! Rollups with and without suffixes, dangling memberships, keys by day, and pruned totals.

use keepcount::reconcile::audit::{PageRequest, Probe, RepairRequest};
use keepcount::reconcile::{
    AsyncAudit, Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, TokioRuntime,
    run_async,
};
use keepcount::{AsyncStore, Batch, Counter, Error, KeyBuf, PostgresStore, Record, Schema, Tally};
use tokio_postgres::Client;

use super::items::{connect_again, database, run_whole, text_of};
use crate::support::postgres::{LOCK_WAIT_EXISTS, connect, shared, wait_until};

const DAY: i64 = 86_400;
const VOTES: Counter<i64> = Counter::new("setlist.votes");
const DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOW_ARTIST: Counter<(i64, String)> = Counter::new("show.artist");
const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, SETLIST_SHOW);
const SHOW_DAYS: Counter<(i64, i64)> = Counter::new("show.days").sum_of_suffix(DAYS, SETLIST_SHOW);
const ARTIST_VOTES: Counter<String> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
const ARTIST_DAYS: Counter<(String, i64)> =
    Counter::new("artist.days").sum_of_suffix(SHOW_DAYS, SHOW_ARTIST);
const SCHEMA: Schema = Schema::new(&[
    VOTES.table(),
    DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_ARTIST.table(),
    SHOW_VOTES.table(),
    SHOW_DAYS.table().prunable(),
    ARTIST_VOTES.table(),
    ARTIST_DAYS.table().prunable(),
]);

struct Vote {
    setlist: i64,
    at: i64,
    amount: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.setlist, self.amount);
        to.add(DAYS, (self.setlist, self.at.div_euclid(DAY)), self.amount);
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

struct Show {
    id: i64,
    artist: String,
}

impl Record for Show {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_ARTIST, (self.id, &self.artist), 1);
    }
}

/// 150 setlists of 40 shows of 9 artists, with votes on days before 1970 and after; some setlists
/// have no show.
const ROWS: &str = r#"
    CREATE TABLE votes (setlist INT, at BIGINT, amount INT);
    CREATE INDEX ON votes (setlist, at);
    CREATE TABLE setlists (id INT PRIMARY KEY, show BIGINT);
    CREATE UNIQUE INDEX ON setlists (id, show);
    CREATE TABLE shows (id INT PRIMARY KEY, artist TEXT);
    CREATE INDEX ON shows (id, artist COLLATE "C");
    INSERT INTO votes SELECT i % 150, (i * 37 % 12 - 4) * 86400 + i % 3 - 1, i % 5 - 1 FROM generate_series(1, 2000) AS i;
    INSERT INTO setlists SELECT i, nullif(i * 7 % 41, 0) FROM generate_series(0, 149) AS i;
    INSERT INTO shows SELECT i, (ARRAY['a', 'B', 'c', 'É', 'é', 'Z', '-a', '_', 'ab'])[i % 9 + 1] FROM generate_series(1, 40) AS i;
"#;

/// Each counter's table, and the same totals by plain SQL.
const EXPECTED: &[(&str, &str)] = &[
    ("setlist_votes", "SELECT setlist, sum(amount) FROM votes GROUP BY 1"),
    ("setlist_days", "SELECT setlist, floor(at / 86400.0)::int8, sum(amount) FROM votes GROUP BY 1, 2"),
    ("setlist_show", "SELECT id, show, count(*) FROM setlists WHERE show IS NOT NULL GROUP BY 1, 2"),
    ("show_artist", "SELECT id, artist, count(*) FROM shows GROUP BY 1, 2"),
    (
        "show_votes",
        "SELECT show, sum(amount) FROM votes JOIN setlists ON id = setlist WHERE show IS NOT NULL GROUP BY 1",
    ),
    (
        "show_days",
        "SELECT show, floor(at / 86400.0)::int8, sum(amount) FROM votes JOIN setlists ON id = setlist
         WHERE show IS NOT NULL GROUP BY 1, 2",
    ),
    (
        "artist_votes",
        "SELECT artist, sum(amount) FROM votes JOIN setlists ON id = setlist JOIN shows ON show = shows.id GROUP BY 1",
    ),
    (
        "artist_days",
        "SELECT artist, floor(at / 86400.0)::int8, sum(amount) FROM votes JOIN setlists ON id = setlist
         JOIN shows ON show = shows.id GROUP BY 1, 2",
    ),
];

/// The number of totals that are not exact, of each table.
async fn drift(client: &Client) -> Vec<i64> {
    let mut all = Vec::new();
    for (table, expected) in EXPECTED {
        let columns = if expected.ends_with("1, 2") { "k, t, n" } else { "k, n" };
        let text = format!(
            "SELECT count(*) FROM ((SELECT * FROM {table} WHERE total <> 0 EXCEPT SELECT * FROM ({expected}) AS a ({columns}) WHERE n <> 0)
             UNION ALL (SELECT * FROM ({expected}) AS a ({columns}) WHERE n <> 0 EXCEPT SELECT * FROM {table} WHERE total <> 0)) AS b"
        );
        all.push(client.query_one(&text, &[]).await.unwrap().get(0));
    }
    all
}

async fn audit(client: &mut Client) -> PostgresAudit<'_> {
    let mut audit = PostgresAudit::new(client, &SCHEMA).await.unwrap();
    let votes = PostgresRows::of("votes", |row| {
        let (setlist, amount): (i32, i32) = (row.try_get("setlist")?, row.try_get("amount")?);
        Ok(Vote { setlist: setlist.into(), at: row.try_get("at")?, amount: amount.into() })
    });
    let votes = votes
        .key(VOTES, Columns::of(["setlist"]).sum("amount"))
        .key(DAYS, Columns::of(["setlist", "at"]).per(DAY));
    let setlists = PostgresRows::of("setlists", |row| {
        Ok(Setlist { id: row.try_get::<_, i32>("id")?.into(), show: row.try_get("show")? })
    });
    let shows = PostgresRows::of("shows", |row| {
        Ok(Show { id: row.try_get::<_, i32>("id")?.into(), artist: row.try_get("artist")? })
    });
    audit.add(votes).await.unwrap();
    let of_shows = Columns::of(["id", "show"]).count().parent("shows", ["id"]);
    audit.add(setlists.key(SETLIST_SHOW, of_shows)).await.unwrap();
    audit.add(shows.key(SHOW_ARTIST, Columns::of(["id", "artist"]).count())).await.unwrap();
    audit
}

async fn filled(server: &crate::support::postgres::Server) -> Client {
    // Texts sort by bytes, whatever the collation of the database.
    let mut client = connect(&server.database_of_language("en-US").await).await;
    client.batch_execute(ROWS).await.unwrap();
    PostgresStore::new(&mut client, &SCHEMA).create_pending_backfill().await.unwrap();
    run_whole(Mode::Backfill, &SCHEMA, Options::default(), &mut audit(&mut client).await)
        .await
        .unwrap();
    client
}

#[tokio::test]
async fn a_backfill_fills_every_level_and_makes_it_ready() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    assert_eq!(drift(&client).await, [0; 8]);
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert!(store.unready().await.unwrap().is_empty());
    // The hooks keep it ready and exact.
    let mut batch = Batch::new();
    batch.insert(&Vote { setlist: 3, at: 5 * DAY, amount: 4 });
    store.apply(&mut batch).await.unwrap();
    client.batch_execute("INSERT INTO votes VALUES (3, 5 * 86400, 4)").await.unwrap();
    assert_eq!(drift(&client).await, [0; 8]);
    let audit = audit(&mut client).await;
    assert_eq!(audit.counters().len(), 8);
}

#[tokio::test]
async fn rollups_are_verified_and_repaired_level_by_level_at_every_page() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let reader = connect_again(&client, server).await;
    for page in [1, 7, 1000] {
        for (at, (table, expected)) in EXPECTED.iter().enumerate() {
            if matches!(at, 2 | 3) {
                // A membership is 1 or absent, so none is made wrong.
                let orphan = if at == 2 { "SELECT 7, 900 + k, 1" } else { "SELECT k, 'nobody', 1" };
                let text = format!(
                    "DELETE FROM {table} WHERE key_1 % 5 = 2; INSERT INTO {table} {orphan} FROM generate_series(1, 3) AS k"
                );
                client.batch_execute(&text).await.unwrap();
                continue;
            }
            let pair = expected.ends_with("1, 2");
            let key = if table.starts_with("artist") { "'zz' || i" } else { "i" };
            let orphans = if pair { format!("{key}, i % 7 - 3") } else { key.to_owned() };
            let text = format!(
                "UPDATE {table} SET total = total + 3 WHERE total % 4 = 1; DELETE FROM {table} WHERE total % 7 = 2;
                 INSERT INTO {table} SELECT {orphans}, i FROM generate_series(901, 920) AS i"
            );
            client.batch_execute(&text).await.unwrap();
        }
        assert!(drift(&client).await.into_iter().all(|off| off > 3), "{:?}", drift(&client).await);
        let options = Options::default().page(page);
        let mut audit = audit(&mut client).await;
        let report = run_whole(Mode::Repair, &SCHEMA, options, &mut audit).await.unwrap();
        assert_eq!(drift(&reader).await, [0; 8], "{}", report.table());
        assert!(report.complete());
        let clean = run_whole(Mode::Verify, &SCHEMA, options, &mut audit).await.unwrap();
        assert!(clean.counters.iter().all(|counter| counter.clean), "{}", clean.table());
    }
}

/// The keys of a rollup are compared with the stored totals one level below: each kind of damage is
/// one drift, at its key.
#[tokio::test]
async fn a_rollup_with_a_suffix_pages_through_the_suffixes_of_one_parent() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let text = "DELETE FROM artist_days WHERE key_1 = 'ab' AND key_2 = 0; INSERT INTO artist_days VALUES ('ab', 77, 4)";
    client.batch_execute(text).await.unwrap();
    let wrong = "UPDATE artist_days SET total = total + 1 WHERE key_1 = 'É' AND total <> -1 AND key_2 > 1 RETURNING key_2";
    let mut wrong: Vec<i64> =
        client.query(wrong, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    wrong.sort_unstable();
    assert!(wrong.len() > 1);
    let wrong = wrong.into_iter().map(|day| ("É", day));
    let wanted: Vec<(&str, i64)> = [("ab", 0), ("ab", 77)].into_iter().chain(wrong).collect();
    let mut audit = audit(&mut client).await;
    for keys in [1, 2, 5, 300] {
        let (mut after, mut found, mut pages) = (None, Vec::new(), 0);
        loop {
            let ask = PageRequest { counter: ARTIST_DAYS.id(), after, until: None, keys };
            let diff = audit.compare(&ask).await.unwrap();
            assert!(diff.keys <= 2 * keys as u64);
            found.extend(
                diff.drifts.into_iter().map(|drift| drift.key.decode::<(String, i64)>().unwrap()),
            );
            after = diff.next;
            pages += 1;
            if after.is_none() {
                break;
            }
        }
        let found: Vec<(&str, i64)> =
            found.iter().map(|(artist, day)| (artist.as_str(), *day)).collect();
        assert_eq!(found, wanted);
        assert!(pages > 80 / keys, "{pages}");
    }
}

#[tokio::test]
async fn memberships_whose_parent_is_missing_are_reported_as_dangling() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    client.batch_execute("DELETE FROM shows WHERE id IN (7, 12)").await.unwrap();
    let wanted: i64 = client
        .query_one("SELECT count(*) FROM setlists WHERE show IN (7, 12)", &[])
        .await
        .unwrap()
        .get(0);
    for page in [1, 10, 1000] {
        let mut audit = audit(&mut client).await;
        let options = Options::default().page(page);
        let report = run_whole(Mode::Verify, &SCHEMA, options, &mut audit).await.unwrap();
        let memberships =
            report.counters.iter().find(|counter| counter.counter == SETLIST_SHOW.id()).unwrap();
        assert_eq!(i64::try_from(memberships.dangling).unwrap(), wanted);
        let keys: Vec<(i64, i64)> =
            memberships.dangling_keys.iter().map(|key| key.decode().unwrap()).collect();
        assert!(
            keys.is_sorted() && keys.iter().all(|(_, show)| matches!(show, 7 | 12)),
            "{keys:?}"
        );
    }
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

#[tokio::test]
async fn totals_below_the_cutoff_are_not_counted_and_are_repaired_away() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert!(store.prune(DAYS, 2).await.unwrap() > 100);
    let all = "SELECT count(*)::text || ' ' || count(*) FILTER (WHERE key_2 < 2) FROM setlist_days";
    let left = text_of(&client, all).await;
    assert!(left.ends_with(" 0"), "{left}");
    // Totals below the cutoff, with rows and without, and after it.
    let text =
        "INSERT INTO setlist_days SELECT setlist, floor(at / 86400.0)::int8, 5 FROM votes WHERE at < 86400 LIMIT 1;
         INSERT INTO setlist_days VALUES (3000, 1, 5), (3, 9, 5); INSERT INTO artist_days VALUES ('a', -3, 5)";
    client.batch_execute(text).await.unwrap();
    let reader = connect_again(&client, server).await;
    for page in [1, 1000] {
        let mut audit = audit(&mut client).await;
        let report = run_whole(Mode::Repair, &SCHEMA, Options::default().page(page), &mut audit)
            .await
            .unwrap();
        assert_eq!(report.drift() > 0, page == 1, "{}", report.table());
        let clean = run_whole(Mode::Verify, &SCHEMA, Options::default().page(page), &mut audit)
            .await
            .unwrap();
        assert_eq!(clean.drift(), 0, "{}", clean.table());
        assert_eq!(text_of(&reader, all).await, left);
    }
}

/// A writer locks a child first, then its totals. A repair that held the total while it waits for
/// the child would cause a deadlock.
#[tokio::test]
async fn repair_locks_no_total_while_it_waits_for_the_child() {
    let Some(server) = shared() else { return };
    let mut client = filled(server).await;
    let mut batch = Batch::new();
    batch.insert(&Vote { setlist: 3, at: DAY, amount: 4 });
    PostgresStore::new(&mut client, &SCHEMA).apply(&mut batch).await.unwrap();
    client.batch_execute("INSERT INTO votes VALUES (3, 86400, 4)").await.unwrap();
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
    assert_eq!(drift(&reader).await[0], 0);
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

const ALL: Counter<()> = Counter::new("all").sum_of(BASE, TO_ALL);
const BASE: Counter<i64> = Counter::new("finer");
const TO_ALL: Counter<(i64, ())> = Counter::new("to.all");
const ONE: Schema = Schema::new(&[BASE.table(), TO_ALL.table(), ALL.table()]);

#[tokio::test]
async fn a_rollup_of_one_key_is_repaired() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    let mut store = PostgresStore::new(&mut client, &ONE);
    store.create().await.unwrap();
    let mut batch = Batch::new();
    for child in 0..9 {
        batch.add(BASE, child, child);
        batch.add(TO_ALL, (child, ()), 1);
    }
    store.apply(&mut batch).await.unwrap();
    assert_eq!(store.total(ALL, ()).await.unwrap(), 36);
    client.batch_execute("UPDATE \"all\" SET total = 5").await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &ONE).await.unwrap();
    let diff = audit
        .compare(&PageRequest { counter: ALL.id(), after: None, until: None, keys: 1 })
        .await
        .unwrap();
    assert_eq!((diff.drifts[0].stored, diff.drifts[0].expected, diff.next), (5, 36, None));
    let repair = RepairRequest { counter: ALL.id(), keys: vec![diff.drifts[0].key.clone()] };
    assert_eq!(audit.repair(&repair).await.unwrap().corrected, 1);
    drop(audit);
    assert_eq!(PostgresStore::new(&mut client, &ONE).total(ALL, ()).await.unwrap(), 36);
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
