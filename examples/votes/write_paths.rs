//! Tests of the application's write paths, the same for each library: after each write, every total
//! equals a plain SQL recount.

use keepcount::sql::Dialect;
use keepcount::{Batch, Counter, Date, Schema};
use tokio_postgres::Client;
use uuid::Uuid;

use super::counters::{Setlist, Vote};
use super::postgres::{connect, shared, wait_until};
use super::{App, apply};

/// A recount of each counter in plain SQL: its table, its key columns, and a query over the rows.
const RECOUNTS: [(&str, &str, &str); 5] = [
    ("setlist_votes", "key::text", "SELECT setlist_id::text, count(*) FROM votes GROUP BY 1"),
    ("user_votes", "key::text", "SELECT user_id::text, count(*) FROM votes GROUP BY 1"),
    ("day_votes", "key", "SELECT to_char(day, 'YYYY-MM-DD'), count(*) FROM votes GROUP BY 1"),
    (
        "setlist_show",
        "key_1 || ' ' || key_2",
        "SELECT id || ' ' || show_slug, count(*) FROM setlists GROUP BY 1",
    ),
    (
        "show_votes",
        "key",
        "SELECT show_slug, count(*) FROM votes JOIN setlists ON setlists.id = setlist_id GROUP BY 1",
    ),
];

/// Runs a test with two applications on one database of two shows: `a` with the setlists 1 and 2,
/// and `b` with the setlist 3. Then checks every total.
fn on_two_shows(test: impl AsyncFnOnce(&mut App, &mut App, &Client)) {
    let Some(server) = shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = server.database().await;
        let name = config.get_dbname().unwrap();
        let lock_timeout = format!("ALTER DATABASE {name} SET lock_timeout = '60s'");
        connect(&config).await.batch_execute(&lock_timeout).await.unwrap();
        let (url, db) = (server.url(name), connect(&config).await);
        let (mut one, mut two) =
            (App::connect(&url).await.unwrap(), App::connect(&url).await.unwrap());
        one.migrate().await.unwrap();
        for show in ["a", "b"] {
            one.add_show(show).await.unwrap();
        }
        for (id, show) in [(1, "a"), (2, "a"), (3, "b")] {
            one.add_setlist(&Setlist { id, show: show.into() }).await.unwrap();
        }
        test(&mut one, &mut two, &db).await;
        check_totals(&db).await;
    });
}

async fn sorted_rows(db: &Client, query: &str) -> Vec<(String, i64)> {
    let rows = db.query(&format!("{query} ORDER BY 1"), &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Checks that every total equals its recount.
async fn check_totals(db: &Client) {
    for (table, key, rows) in RECOUNTS {
        let totals =
            sorted_rows(db, &format!("SELECT {key}, total FROM {table} WHERE total <> 0")).await;
        assert_eq!(totals, sorted_rows(db, rows).await, "{table}");
    }
}

/// Checks that every total equals its recount; returns the votes of the setlists 1 to 3 and of the
/// shows `a` and `b`.
async fn checked_votes(db: &Client) -> ([i64; 3], [i64; 2]) {
    check_totals(db).await;
    let total = async |table, key| {
        let query = format!(
            "SELECT coalesce(sum(total), 0)::bigint FROM {table} WHERE key::text = '{key}'"
        );
        db.query_one(&query, &[]).await.unwrap().get::<_, i64>(0)
    };
    let setlists = [
        total("setlist_votes", "1").await,
        total("setlist_votes", "2").await,
        total("setlist_votes", "3").await,
    ];
    (setlists, [total("show_votes", "a").await, total("show_votes", "b").await])
}

fn vote(setlist: i64, user: u128, day: &str) -> Vote {
    Vote { setlist, user: Uuid::from_u128(user), day: day.parse::<Date>().unwrap() }
}

/// Runs two writes concurrently. Both wait for rows that a third transaction locks with `lock`, so
/// that neither begins to write before both have read.
async fn run_concurrently(
    db: &Client,
    lock: &str,
    writes: (impl Future<Output = bool>, impl Future<Output = bool>),
) -> (bool, bool) {
    db.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
    let release = async {
        let waiting = "SELECT count(*) = 2 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        wait_until(db, waiting).await;
        db.batch_execute("COMMIT").await.unwrap();
    };
    let (one, two, ()) = tokio::join!(writes.0, writes.1, release);
    (one, two)
}

#[test]
fn inserts_updates_and_deletes_count() {
    on_two_shows(async |app, _, db| {
        let id = app.vote(&vote(1, 7, "2026-06-01")).await.unwrap();
        app.vote(&vote(1, 8, "2026-06-01")).await.unwrap();
        assert_eq!(checked_votes(db).await, ([2, 0, 0], [2, 0]));
        assert!(app.move_vote(id, 3).await.unwrap());
        assert_eq!(checked_votes(db).await, ([1, 0, 1], [1, 1]));
        assert!(app.delete_vote(id).await.unwrap());
        assert!(!app.delete_vote(id).await.unwrap());
        assert!(!app.move_vote(id, 2).await.unwrap());
        assert_eq!(checked_votes(db).await, ([1, 0, 0], [1, 0]));
        assert_eq!(
            (app.show_votes("a").await.unwrap(), app.show_votes("b").await.unwrap()),
            (1, 0)
        );
    });
}

#[test]
fn repeated_vote_counts_once_on_its_new_day() {
    on_two_shows(async |app, _, db| {
        let id = app.vote(&vote(1, 7, "2026-06-01")).await.unwrap();
        assert_eq!(app.vote(&vote(1, 7, "2026-06-02")).await.unwrap(), id);
        assert_eq!(checked_votes(db).await, ([1, 0, 0], [1, 0]));
        let days = sorted_rows(db, "SELECT key, total FROM day_votes WHERE total <> 0").await;
        assert_eq!(days, [("2026-06-02".to_owned(), 1)]);
    });
}

#[test]
fn delete_of_setlist_subtracts_its_votes() {
    on_two_shows(async |app, _, db| {
        for user in 1..=5 {
            app.vote(&vote(1, user, "2026-06-01")).await.unwrap();
        }
        app.vote(&vote(2, 1, "2026-06-01")).await.unwrap();
        assert!(app.delete_setlist(1).await.unwrap());
        assert!(!app.delete_setlist(1).await.unwrap());
        assert_eq!(checked_votes(db).await, ([0, 1, 0], [1, 0]));
    });
}

#[test]
fn moved_setlist_moves_its_votes_to_the_other_show() {
    on_two_shows(async |app, _, db| {
        for (setlist, user) in [(1, 7), (1, 8), (2, 7)] {
            app.vote(&vote(setlist, user, "2026-06-01")).await.unwrap();
        }
        assert!(app.move_setlist(1, "b").await.unwrap());
        assert!(!app.move_setlist(9, "b").await.unwrap());
        assert_eq!(checked_votes(db).await, ([2, 1, 0], [1, 2]));
        // Later votes count at the new show.
        app.vote(&vote(1, 9, "2026-06-01")).await.unwrap();
        assert_eq!(checked_votes(db).await, ([3, 1, 0], [1, 3]));
    });
}

#[test]
fn rollback_leaves_rows_and_totals_unchanged() {
    on_two_shows(async |app, _, db| {
        app.vote(&vote(1, 7, "2026-06-01")).await.unwrap();
        let before = checked_votes(db).await;
        assert_eq!(
            app.import(&[vote(1, 8, "2026-06-01"), vote(3, 8, "2026-06-02")], true).await.unwrap(),
            2
        );
        assert_eq!(checked_votes(db).await, before);
        // A total would leave 64 bits; that fails after the row was written.
        db.execute("UPDATE user_votes SET total = 9223372036854775807", &[]).await.unwrap();
        app.vote(&vote(3, 7, "2026-06-01")).await.unwrap_err();
        db.execute("UPDATE user_votes SET total = 1", &[]).await.unwrap();
        assert_eq!(checked_votes(db).await, before);
        // The connection is still usable.
        app.vote(&vote(3, 7, "2026-06-01")).await.unwrap();
        assert_eq!(checked_votes(db).await, ([1, 0, 1], [1, 1]));
    });
}

#[test]
fn rolled_back_savepoint_drops_only_its_own_batch() {
    on_two_shows(async |app, _, db| {
        let of = |setlist, user| vote(setlist, user, "2026-06-01");
        // There is no setlist 99. One vote comes twice: first an insert, then an update.
        let again = vote(1, 7, "2026-06-02");
        let given = [of(1, 7), of(99, 7), of(2, 7), of(1, 8), again, of(99, 8), of(3, 8)];
        assert_eq!(app.import(&given, false).await.unwrap(), 5);
        assert_eq!(checked_votes(db).await, ([2, 1, 1], [3, 1]));
    });
}

#[test]
fn concurrent_moves_of_one_vote_are_serialized() {
    on_two_shows(async |one, two, db| {
        let id = one.vote(&vote(1, 7, "2026-06-01")).await.unwrap();
        let moves = (async { one.move_vote(id, 2).await.unwrap() }, async {
            two.move_vote(id, 3).await.unwrap()
        });
        let moved =
            run_concurrently(db, &format!("SELECT FROM votes WHERE id = {id} FOR UPDATE"), moves)
                .await;
        assert_eq!(moved, (true, true));
        let (setlists, _) = checked_votes(db).await;
        assert_eq!((setlists[0], setlists[1] + setlists[2]), (0, 1));
    });
}

#[test]
fn concurrent_deletes_of_one_vote_subtract_it_once() {
    on_two_shows(async |one, two, db| {
        let id = one.vote(&vote(1, 7, "2026-06-01")).await.unwrap();
        let deletes = (async { one.delete_vote(id).await.unwrap() }, async {
            two.delete_vote(id).await.unwrap()
        });
        let deleted =
            run_concurrently(db, &format!("SELECT FROM votes WHERE id = {id} FOR UPDATE"), deletes)
                .await;
        assert!(deleted.0 ^ deleted.1, "{deleted:?}");
        assert_eq!(checked_votes(db).await, ([0, 0, 0], [0, 0]));
    });
}

#[test]
fn vote_during_move_of_its_setlist_counts_at_the_new_show() {
    on_two_shows(async |one, two, db| {
        let writes = (async { one.vote(&vote(1, 7, "2026-06-01")).await.is_ok() }, async {
            two.move_setlist(1, "b").await.unwrap()
        });
        assert_eq!(
            run_concurrently(db, "SELECT FROM setlists WHERE id = 1 FOR UPDATE", writes).await,
            (true, true)
        );
        assert_eq!(checked_votes(db).await, ([1, 0, 0], [0, 1]));
    });
}

#[test]
fn vote_during_delete_of_its_setlist_is_refused_or_deleted() {
    on_two_shows(async |one, two, db| {
        let writes = (async { one.vote(&vote(1, 7, "2026-06-01")).await.is_ok() }, async {
            two.delete_setlist(1).await.unwrap()
        });
        assert!(
            run_concurrently(db, "SELECT FROM setlists WHERE id = 1 FOR UPDATE", writes).await.1
        );
        assert_eq!(checked_votes(db).await, ([0, 0, 0], [0, 0]));
    });
}

#[test]
fn concurrent_votes_and_setlist_moves_cause_no_drift() {
    on_two_shows(async |one, two, db| {
        let votes_given = async {
            for user in 1..=60 {
                let id = one.vote(&vote(1 + (user % 3) as i64, user, "2026-06-01")).await.unwrap();
                assert!(user % 2 == 0 || one.delete_vote(id).await.unwrap());
            }
        };
        let moves = async {
            for turn in 0..60 {
                let show = if turn % 2 == 0 { "b" } else { "a" };
                assert!(two.move_setlist(1 + turn % 3, show).await.unwrap());
            }
        };
        tokio::join!(votes_given, moves);
        let (setlists, shows) = checked_votes(db).await;
        assert_eq!((setlists, shows.iter().sum::<i64>()), ([10, 10, 10], 30));
    });
}

#[test]
fn redelivered_events_count_once() {
    on_two_shows(async |one, two, db| {
        let feed: Vec<Vote> = (1..=4).map(|user| vote(1, user, "2026-06-01")).collect();
        assert!(one.deliver(1, &feed[..2]).await.unwrap());
        assert!(!one.deliver(1, &feed[..2]).await.unwrap());
        one.deliver(4, &feed[3..]).await.unwrap_err(); // 3 comes first
        assert_eq!(checked_votes(db).await, ([2, 0, 0], [2, 0]));
        let both = (async { one.deliver(3, &feed[2..]).await.unwrap() }, async {
            two.deliver(3, &feed[2..]).await.unwrap()
        });
        let delivered =
            run_concurrently(db, "SELECT FROM keepcount_offsets FOR UPDATE", both).await;
        assert!(delivered.0 ^ delivered.1, "{delivered:?}");
        assert_eq!(checked_votes(db).await, ([4, 0, 0], [4, 0]));
    });
}

type Track = (Uuid, i128);
type Work = (String, u128, [u8; 16], u8);
const TRACK: Counter<Track> = Counter::new("track.plays");
const TRACK_WORK: Counter<(Track, Work)> = Counter::new("track.work");
const WORK: Counter<Work> = Counter::new("work.plays").sum_of(TRACK, TRACK_WORK);
const EVERY_TYPE: Schema = Schema::new(&[TRACK.table(), TRACK_WORK.table(), WORK.table()]);

#[test]
fn keys_of_every_type_are_written_and_read() {
    let Some(server) = shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = server.database().await;
        let (url, db) = (server.url(config.get_dbname().unwrap()), connect(&config).await);
        db.batch_execute(&keepcount::sql::ddl(Dialect::Postgres, &EVERY_TYPE).join(";")).await.unwrap();
        let tracks = [(Uuid::from_u128(1), -1_i128), (Uuid::from_u128(2), i128::MAX)];
        let works = [("one", 1_u128, [1_u8; 16], 1_u8), ("two", u128::MAX, [2; 16], 2)];
        // First single values, then arrays of them. Each batch of plays reads the memberships of
        // its tracks.
        for (tracks, works) in [(&tracks[..1], &works[..1]), (&tracks[1..], &works[1..])] {
            let mut batch = Batch::new();
            batch.add(TRACK_WORK, (tracks[0], works[0]), 1);
            apply(&url, &EVERY_TYPE, &batch).await;
        }
        for played in [&tracks[..1], &tracks[..]] {
            let mut batch = Batch::new();
            played.iter().for_each(|track| batch.add(TRACK, *track, 10));
            apply(&url, &EVERY_TYPE, &batch).await;
        }
        let read = "SELECT key_1 || ' ' || encode(key_2, 'hex') || ' ' || encode(key_3, 'hex') || ' ' || key_4, total FROM work_plays";
        let wanted = [
            (format!("one {:032x} {} 1", 1, "01".repeat(16)), 20),
            (format!("two {:032x} {} 2", u128::MAX, "02".repeat(16)), 10),
        ];
        assert_eq!(sorted_rows(&db, read).await, wanted);
    });
}
