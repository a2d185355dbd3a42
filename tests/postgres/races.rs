//! Concurrent transactions on one database: every race of memberships, leaderboards, cutoffs and
//! offsets, stepped by hand with two connections; the variants that must lose changes; and sixteen
//! writers for a while. Each test ends with totals compared with plain SQL.
#![allow(clippy::disallowed_methods, clippy::similar_names)]

use std::time::{Duration, Instant};

use crate::support::postgres::{connect, shared, wait_until};
use crate::support::postgres_app::{
    self, Change, SCHEMA, SETLIST_DAYS, assert_exact, changes, create, differences, hunt_duration,
    write,
};
use crate::support::random::Random;
use keepcount::backend::RollupUpdate;
use keepcount::sql::{Dialect, Query};
use keepcount::{
    AsyncStore, Batch, Counter, Decayed, Error, Leaderboard, PostgresStore, PreparedStatements,
    Recovery, Schema, StreamRange, Sweep,
};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, IsolationLevel, Transaction};

/// A database with the application's tables.
async fn application() -> Option<(Config, Client)> {
    let config = shared()?.database().await;
    let mut client = connect(&config).await;
    create(&mut client).await;
    Some((config, client))
}

/// Writes changes in one transaction and commits it.
async fn commit(client: &mut Client, changes: &[Change]) {
    let tx = client.transaction().await.unwrap();
    apply(&tx, changes).await.unwrap();
    tx.commit().await.unwrap();
}

async fn apply(tx: &Transaction<'_>, changes: &[Change]) -> keepcount::Result<()> {
    let mut batch = Batch::new();
    for change in changes {
        write(tx, change, &mut batch).await.unwrap();
    }
    PostgresStore::in_transaction(tx, &SCHEMA).apply(&mut batch).await.map(drop)
}

/// Runs two transactions, each of which writes its changes and applies them. The second applies
/// after the first has applied and before it commits. Returns whether the second had to wait.
async fn overlap(config: &Config, first: &[Change], second: &[Change]) -> bool {
    let (mut one, mut two) = (connect(config).await, connect(config).await);
    let tx = one.transaction().await.unwrap();
    apply(&tx, first).await.unwrap();
    let later = async {
        let tx = two.transaction().await.unwrap();
        apply(&tx, second).await.unwrap();
        tx.commit().await.unwrap();
        Instant::now()
    };
    let earlier = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let before = Instant::now();
        tx.commit().await.unwrap();
        before
    };
    let (ended, committed) = tokio::join!(later, earlier);
    ended > committed
}

fn vote(id: i64, setlist: i64) -> Change {
    Change::Vote(id, setlist, 1, id % 3)
}

#[tokio::test]
async fn every_race_of_a_membership_is_exact_in_either_order() {
    let Some((config, mut client)) = application().await else { return };
    let before = [
        Change::Bill(70, Some(7)),
        Change::Bill(71, Some(8)),
        Change::Place(1, Some(70)),
        vote(1, 1),
        vote(2, 1),
    ];
    let races: [(&str, [Vec<Change>; 2]); 8] = [
        ("a vote and a move of its setlist", [vec![vote(10, 1)], vec![Change::Place(1, Some(71))]]),
        (
            "a vote of a new day and a move",
            [vec![Change::Vote(11, 1, 5, 99)], vec![Change::Place(1, Some(71))]],
        ),
        (
            "a first vote and a first membership",
            [vec![vote(12, 2)], vec![Change::Place(2, Some(70))]],
        ),
        ("a vote and the end of its membership", [vec![vote(13, 1)], vec![Change::Place(1, None)]]),
        ("a vote and a move of its show", [vec![vote(14, 1)], vec![Change::Bill(70, Some(9))]]),
        ("a vote and its setlist's end", [vec![vote(15, 1)], vec![Change::Drop(1)]]),
        (
            "a moved vote and a move",
            [vec![vote(1, 2)], vec![Change::Place(1, Some(71)), Change::Place(2, Some(71))]],
        ),
        (
            "moves of both levels",
            [
                vec![Change::Place(1, Some(71))],
                vec![Change::Bill(71, Some(7)), Change::Bill(70, None)],
            ],
        ),
    ];
    for (name, [one, two]) in races {
        for (first, second) in [(&one, &two), (&two, &one)] {
            client.batch_execute("TRUNCATE votes, setlists, shows, keepcount_locks").await.unwrap();
            for table in SCHEMA
                .counters()
                .iter()
                .map(keepcount::backend::CounterSpec::table_name)
                .chain(["show_board".to_owned()])
            {
                client.batch_execute(&format!("TRUNCATE {table}")).await.unwrap();
            }
            commit(&mut client, &before).await;
            assert!(overlap(&config, first, second).await, "{name}: the second did not wait");
            assert_exact(&differences(&client).await);
        }
    }
}

/// Applies a batch by a rollup update that reads a child's memberships, and locks the child only if
/// `lock`.
async fn apply_by_statements(tx: &Transaction<'_>, batch: &Batch, lock: bool) {
    let run = async |query: &Query<'_>| {
        let values: Vec<&(dyn ToSql + Sync)> =
            query.values.iter().map(|value| value as &(dyn ToSql + Sync)).collect();
        tx.query(&query.text, &values).await.unwrap()
    };
    let mut update = RollupUpdate::new(&PLAIN, batch).unwrap();
    while let Some(request) = update.next().unwrap() {
        if lock {
            run(&request.lock(Dialect::Postgres).unwrap()).await;
        }
        for row in run(&request.query(Dialect::Postgres, &PLAIN).unwrap()).await {
            let key =
                keepcount::KeyBuf::of::<(i64, i64)>((row.get::<_, i64>(0), row.get::<_, i64>(1)));
            let key = if row.len() == 2 {
                keepcount::KeyBuf::of::<i64>(row.get::<_, i64>(0))
            } else {
                key
            };
            update.take(&key, row.get(row.len() - 1)).unwrap();
        }
    }
    for statement in update.statements(Dialect::Postgres).unwrap() {
        for row in statement.rows() {
            run(&Query::new(statement.text.clone(), row.to_vec())).await;
        }
    }
}

/// The counters of [`SCHEMA`] that [`apply_by_statements`] can keep.
const PLAIN: keepcount::Schema = keepcount::Schema::new(&[
    postgres_app::SETLIST_VOTES.table(),
    postgres_app::SETLIST_SHOW.table(),
    postgres_app::SHOW_VOTES.table(),
]);

#[tokio::test]
async fn rollup_update_loses_a_vote_unless_it_locks_the_child() {
    let Some((config, mut client)) = application().await else { return };
    for (lock, votes) in [(true, Some(2)), (false, Some(1))] {
        client
            .batch_execute("TRUNCATE setlist_votes, setlist_show, show_votes, keepcount_locks")
            .await
            .unwrap();
        let mut batch = Batch::new();
        batch.add(postgres_app::SETLIST_VOTES, 1, 1);
        batch.add(postgres_app::SETLIST_SHOW, (1, 70), 1);
        let tx = client.transaction().await.unwrap();
        apply_by_statements(&tx, &batch, lock).await;
        tx.commit().await.unwrap();
        let (mut one, mut two) = (connect(&config).await, connect(&config).await);
        let (mut vote, mut moved) = (Batch::new(), Batch::new());
        vote.add(postgres_app::SETLIST_VOTES, 1, 1);
        moved.add(postgres_app::SETLIST_SHOW, (1, 70), -1);
        moved.add(postgres_app::SETLIST_SHOW, (1, 71), 1);
        let voter = one.transaction().await.unwrap();
        apply_by_statements(&voter, &vote, lock).await;
        let mover = async {
            let tx = two.transaction().await.unwrap();
            apply_by_statements(&tx, &moved, lock).await;
            tx.commit().await.unwrap();
        };
        let ((), ()) = tokio::join!(mover, async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            voter.commit().await.unwrap();
        });
        let row =
            client.query_opt("SELECT total FROM show_votes WHERE key = 71", &[]).await.unwrap();
        assert_eq!(row.map(|row| row.get::<_, i64>(0)), votes, "locked: {lock}");
    }
}

#[tokio::test]
async fn a_transaction_older_than_a_move_fails_to_serialize_and_does_not_drift() {
    let Some((config, mut client)) = application().await else { return };
    commit(&mut client, &[Change::Place(1, Some(70)), vote(1, 1)]).await;
    for (old, new) in
        [(vote(2, 1), Change::Place(1, Some(71))), (Change::Place(1, Some(72)), vote(3, 1))]
    {
        let mut stale = connect(&config).await;
        let tx = stale
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()
            .await
            .unwrap();
        tx.query("SELECT count(*) FROM votes", &[]).await.unwrap(); // takes its snapshot
        commit(&mut client, &[new]).await;
        let mut batch = Batch::new();
        let written = write(&tx, &old, &mut batch).await;
        if written.is_ok() {
            let error =
                PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await.unwrap_err();
            assert_eq!(error.recovery(), Recovery::Retry, "{error}");
        }
        drop(tx);
        assert_exact(&differences(&client).await);
    }
}

/// Sweeps to the end, and asserts that it looked at every lock. Returns how many totals of 0 and
/// how many locks it removed.
async fn sweep(client: &mut Client, schema: &Schema, rows: usize) -> (u64, u64) {
    let count = "SELECT count(*) FROM keepcount_locks";
    let locks: i64 = client.query_one(count, &[]).await.unwrap().get(0);
    let (mut sweep, mut gone, mut looked) = (Sweep::new().rows(rows), (0, 0), 0);
    loop {
        let swept = PostgresStore::new(client, schema).sweep(&mut sweep).await.unwrap();
        assert!(
            swept.looked <= rows as u64 && swept.totals + swept.locks <= swept.looked,
            "{swept:?}"
        );
        gone = (gone.0 + swept.totals, gone.1 + swept.locks);
        looked += swept.looked;
        if swept.complete {
            assert!(looked >= locks.cast_unsigned(), "{looked} of {locks}");
            return gone;
        }
    }
}

/// Sweeps until `enough` is removed: a transaction of another test's database, on the same server,
/// may be older than what is to be removed.
async fn sweep_until(
    client: &mut Client,
    schema: &Schema,
    rows: usize,
    enough: (u64, u64),
) -> (u64, u64) {
    let mut gone = (0, 0);
    for _ in 0..600 {
        let swept = sweep(client, schema, rows).await;
        gone = (gone.0 + swept.0, gone.1 + swept.1);
        if gone.0 >= enough.0 && gone.1 >= enough.1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gone
}

/// The number of locks, and of totals that are 0.
async fn left(client: &Client) -> (i64, i64) {
    let zeros: Vec<String> = SCHEMA
        .counters()
        .iter()
        .map(|spec| format!("(SELECT count(*) FROM {} WHERE total = 0)", spec.table_name()))
        .collect();
    let text = format!("SELECT (SELECT count(*) FROM keepcount_locks), {}", zeros.join(" + "));
    let row = client.query_one(&text, &[]).await.unwrap();
    (row.get(0), row.get(1))
}

const CHILDREN: Counter<i64> = Counter::new("child");
const PARENTS: Counter<(i64, i64)> = Counter::new("child.parent");
const FAMILIES: Counter<i64> = Counter::new("parent").sum_of(CHILDREN, PARENTS);
const FAMILY: Schema = Schema::new(&[CHILDREN.table(), PARENTS.table(), FAMILIES.table()]);

/// A child without a total moves, and a transaction that is older than the move adds to it: its
/// lock is all that they share. If the lock is removed too early, the addition goes to the former
/// parent. The control removes it by a plain DELETE, which shows this.
#[tokio::test]
async fn sweep_keeps_a_lock_that_an_older_snapshot_needs() {
    for by_hand in [false, true] {
        let Some(server) = shared() else { return };
        let config = server.database().await;
        let (mut client, mut stale) = (connect(&config).await, connect(&config).await);
        let mut store = PostgresStore::new(&mut client, &FAMILY);
        store.create().await.unwrap();
        let mut batch = Batch::new();
        batch.add(PARENTS, (1, 70), 1);
        store.apply(&mut batch).await.unwrap();

        let tx = stale
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()
            .await
            .unwrap();
        // Takes a snapshot here, and gets no transaction id.
        tx.query("SELECT count(*) FROM parent", &[]).await.unwrap();
        batch.add(PARENTS, (1, 70), -1);
        batch.add(PARENTS, (1, 71), 1);
        store.apply(&mut batch).await.unwrap();
        if by_hand {
            assert_eq!(client.execute("DELETE FROM keepcount_locks", &[]).await.unwrap(), 1);
        } else {
            assert_eq!(sweep(&mut client, &FAMILY, 2).await, (0, 0));
        }
        batch.add(CHILDREN, 1, 1);
        let added = PostgresStore::in_transaction(&tx, &FAMILY).apply(&mut batch).await;
        let wanted = if by_hand {
            added.unwrap();
            tx.commit().await.unwrap();
            [(70, 1)]
        } else {
            assert_eq!(added.unwrap_err().recovery(), Recovery::Retry);
            drop(tx);
            PostgresStore::new(&mut stale, &FAMILY).apply(&mut batch).await.unwrap();
            [(71, 1)]
        };
        assert_eq!(
            PostgresStore::new(&mut client, &FAMILY).totals(FAMILIES).await.unwrap(),
            wanted
        );
        if !by_hand {
            assert_eq!(sweep_until(&mut client, &FAMILY, 2, (0, 1)).await, (0, 1));
        }
    }
}

/// Locks and totals of 0 used to stay as rows for ever.
#[tokio::test]
async fn sweep_removes_all_locks_and_totals_of_0_and_later_writes_are_exact() {
    let Some((config, mut client)) = application().await else { return };
    commit(&mut client, &[Change::Place(1, Some(70)), Change::Place(2, Some(70)), vote(1, 1)])
        .await;
    for (old, new) in
        [(vote(2, 1), Change::Place(1, Some(71))), (Change::Place(1, Some(72)), vote(3, 1))]
    {
        let mut stale = connect(&config).await;
        let tx = stale
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .start()
            .await
            .unwrap();
        tx.query("SELECT count(*) FROM votes", &[]).await.unwrap();
        commit(&mut client, &[new]).await;
        sweep(&mut client, &SCHEMA, 2).await;
        assert!(left(&client).await.0 > 0);
        let mut batch = Batch::new();
        if write(&tx, &old, &mut batch).await.is_ok() {
            let error =
                PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await.unwrap_err();
            assert_eq!(error.recovery(), Recovery::Retry, "{error}");
        }
    }
    assert_exact(&differences(&client).await);
    commit(&mut client, &[Change::Unvote(1), Change::Unvote(3)]).await;
    let (locks, zeros) = left(&client).await;
    assert!(locks > 1 && zeros > 3, "{locks} {zeros}");
    let all = (zeros.cast_unsigned(), locks.cast_unsigned());
    assert_eq!(sweep_until(&mut client, &SCHEMA, 3, all).await, all);
    assert_eq!(left(&client).await, (0, 0));
    assert_exact(&differences(&client).await);
    commit(&mut client, &[vote(5, 2), Change::Place(2, Some(71))]).await;
    assert_exact(&differences(&client).await);
}

/// A transaction above READ COMMITTED reads that one is left and takes it. If another took it
/// meanwhile, it must not be taken twice.
#[tokio::test]
async fn sweep_keeps_a_total_of_0_that_an_older_snapshot_read_as_another_number() {
    let Some((config, mut client)) = application().await else { return };
    let add = |key: i64, delta: i64| {
        let mut batch = Batch::new();
        batch.add(postgres_app::SHOW_SETLISTS, key, delta);
        batch
    };
    PostgresStore::new(&mut client, &SCHEMA).apply(&mut add(7, 1)).await.unwrap();
    // A role that sees of other sessions only what every role sees.
    client
        .batch_execute(
            "DROP ROLE IF EXISTS sweeping; CREATE ROLE sweeping LOGIN;
             GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO sweeping",
        )
        .await
        .unwrap();
    let mut other = connect(config.clone().user("sweeping")).await;
    let mut stale = connect(&config).await;
    let mut tx = stale
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()
        .await
        .unwrap();
    assert_eq!(
        PostgresStore::with_savepoints(&mut tx, &SCHEMA)
            .total(postgres_app::SHOW_SETLISTS, 7)
            .await
            .unwrap(),
        1
    );
    PostgresStore::new(&mut client, &SCHEMA).apply(&mut add(7, -1)).await.unwrap();
    assert_eq!(
        (sweep(&mut client, &SCHEMA, 9).await.0, sweep(&mut other, &SCHEMA, 9).await.0),
        (0, 0)
    );
    assert_eq!(left(&client).await.1, 1);
    let error =
        PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut add(7, -1)).await.unwrap_err();
    assert_eq!(error.recovery(), Recovery::Retry, "{error}");
    drop(tx);
    stale.execute("SELECT 1", &[]).await.unwrap();
    assert_eq!(sweep_until(&mut other, &SCHEMA, 9, (1, 0)).await.0, 1);
    assert_eq!(left(&client).await.1, 0);
    drop(other);
    client.batch_execute("DROP OWNED BY sweeping; DROP ROLE sweeping").await.unwrap();
}

#[tokio::test]
async fn sweep_waits_for_no_row_at_any_isolation_level() {
    let Some((config, mut client)) = application().await else { return };
    commit(&mut client, &[Change::Place(1, Some(70)), vote(1, 1)]).await;
    commit(&mut client, &[Change::Unvote(1), vote(2, 2)]).await;
    commit(&mut client, &[Change::Unvote(2)]).await;
    let mut writer = connect(&config).await;
    let tx = writer.transaction().await.unwrap();
    apply(&tx, &[vote(3, 1)]).await.unwrap();
    let mut other = connect(&config).await;
    other.batch_execute("SET default_transaction_isolation = 'serializable'").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), sweep(&mut other, &SCHEMA, 100))
        .await
        .expect("the sweep does not wait");
    assert!(left(&other).await.0 > 0, "what is locked stays");
    tx.commit().await.unwrap();
    assert_exact(&differences(&client).await);
    let (locks, zeros) = left(&client).await;
    sweep_until(&mut other, &SCHEMA, 100, (zeros.cast_unsigned(), locks.cast_unsigned())).await;
    assert_eq!(left(&client).await, (0, 0));
    assert_exact(&differences(&client).await);
}

#[tokio::test]
async fn leaderboard_scores_the_changes_of_two_concurrent_transactions() {
    let Some((config, mut client)) = application().await else { return };
    commit(&mut client, &[Change::Place(1, Some(70)), vote(1, 1)]).await;
    // One changes the show's votes, the other its setlists: two counters, one line.
    assert!(overlap(&config, &[vote(2, 1)], &[Change::Place(2, Some(70))]).await);
    assert_exact(&differences(&client).await);
    assert!(overlap(&config, &[Change::Place(3, Some(70))], &[vote(3, 1)]).await);
    assert_exact(&differences(&client).await);
}

#[tokio::test]
async fn a_prune_waits_for_writers_and_writers_for_a_prune() {
    let Some((config, mut client)) = application().await else { return };
    commit(
        &mut client,
        &[Change::Place(1, Some(70)), Change::Vote(1, 1, 1, 5), Change::Vote(2, 1, 1, 15)],
    )
    .await;
    let mut writer = connect(&config).await;
    let tx = writer.transaction().await.unwrap();
    apply(&tx, &[Change::Vote(3, 1, 1, 6), Change::Vote(4, 1, 1, 16)]).await.unwrap();
    let pruned =
        async { PostgresStore::new(&mut client, &SCHEMA).prune(SETLIST_DAYS, 10).await.unwrap() };
    let (gone, ()) = tokio::join!(pruned, async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        tx.commit().await.unwrap();
    });
    assert_eq!(gone, 4, "days 5 and 6 of the setlist and its show");
    commit(&mut client, &[Change::Vote(5, 1, 1, 7), Change::Vote(6, 1, 1, 17)]).await;
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    let days = store.totals(SETLIST_DAYS).await.unwrap();
    assert_eq!(days, [((1, 15), 1), ((1, 16), 1), ((1, 17), 1)]);
    let show = store.totals(postgres_app::SHOW_DAYS).await.unwrap();
    assert_eq!(show, [((70, 15), 1), ((70, 16), 1), ((70, 17), 1)]);
    assert!(matches!(store.sum(SETLIST_DAYS.under(1)).await, Err(Error::Pruned { .. })));
    assert_eq!(store.sum(SETLIST_DAYS.suffixes(1, 10..)).await.unwrap(), 3);
    assert_eq!(store.prune(SETLIST_DAYS, 10).await.unwrap(), 0);
}

/// A membership that moves takes a base total along, and writes a rollup's total at the same
/// suffix. If a cutoff came in between, that total used to be an orphan below it.
const PLAYS: Counter<(i64, i64)> = Counter::new("song.plays");
const TREND: Leaderboard<i64, Decayed> = Leaderboard::decayed("song.trend", PLAYS);
const TRENDS: Schema = Schema::new(&[PLAYS.table().prunable()]).leaderboards(&[TREND.id()]);

/// A prune locked the catalogue and then the tables of a leaderboard, a rebuild the other way
/// round.
#[tokio::test]
async fn prune_waits_for_a_rebuild_of_its_leaderboard() {
    let Some(server) = shared() else { return };
    let config = server.database().await;
    let (mut client, mut other, watch) =
        (connect(&config).await, connect(&config).await, connect(&config).await);
    let mut store = PostgresStore::new(&mut client, &TRENDS);
    store.create().await.unwrap();
    let mut batch = Batch::new();
    batch.add(PLAYS, (1, 5), 1);
    batch.add(PLAYS, (1, 15), 1);
    store.apply(&mut batch).await.unwrap();
    let waiting = |sessions: u8| {
        format!(
            "SELECT count(*) = {sessions} FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    };
    let mut holder = connect(&config).await;
    let tx = holder.transaction().await.unwrap();
    tx.batch_execute("LOCK TABLE song_trend IN ROW EXCLUSIVE MODE").await.unwrap();
    let pruned = async {
        wait_until(&watch, &waiting(1)).await;
        PostgresStore::new(&mut other, &TRENDS).prune(PLAYS, 10).await
    };
    let released = async {
        wait_until(&watch, &waiting(2)).await;
        tx.commit().await.unwrap();
    };
    let (rebuilt, pruned, ()) = tokio::join!(store.rebuild(TREND), pruned, released);
    assert_eq!((rebuilt.unwrap(), pruned.unwrap()), (0, 1));
    assert_eq!(store.listed(TREND).await.unwrap(), 1);
}

#[tokio::test]
async fn prune_and_move_of_a_membership_wait_for_each_other() {
    for prune_first in [false, true] {
        let Some((config, mut client)) = application().await else { return };
        let days = [Change::Vote(1, 1, 1, 5), Change::Vote(2, 1, 1, 15)];
        commit(&mut client, &[vec![Change::Place(1, Some(70))], days.to_vec()].concat()).await;
        let (mut mover, mut pruner) = (connect(&config).await, connect(&config).await);
        let moved = [Change::Place(1, Some(71))];
        let pause = Duration::from_millis(150);
        if prune_first {
            let mut tx = pruner.transaction().await.unwrap();
            PostgresStore::with_savepoints(&mut tx, &SCHEMA).prune(SETLIST_DAYS, 10).await.unwrap();
            let ((), ()) = tokio::join!(commit(&mut mover, &moved), async {
                tokio::time::sleep(pause).await;
                tx.commit().await.unwrap();
            });
        } else {
            let tx = mover.transaction().await.unwrap();
            apply(&tx, &moved).await.unwrap();
            let mut store = PostgresStore::new(&mut pruner, &SCHEMA);
            let (gone, ()) = tokio::join!(store.prune(SETLIST_DAYS, 10), async {
                tokio::time::sleep(pause).await;
                tx.commit().await.unwrap();
            });
            gone.unwrap();
        }
        let mut store = PostgresStore::new(&mut client, &SCHEMA);
        assert_eq!(
            store.totals(postgres_app::SHOW_DAYS).await.unwrap(),
            [((71, 15), 1)],
            "prune first: {prune_first}"
        );
        assert_eq!(store.totals(SETLIST_DAYS).await.unwrap(), [((1, 15), 1)]);
    }
}

#[tokio::test]
async fn appliers_of_one_stream_take_turns_and_each_event_counts_once() {
    let Some((config, mut client)) = application().await else { return };
    let once = async |client: &mut Client, first: u64, last: u64| {
        let mut batch = Batch::new();
        batch.add(postgres_app::SHOW_SETLISTS, 7, i64::try_from(last - first + 1).unwrap());
        PostgresStore::new(client, &SCHEMA)
            .apply_idempotent(&mut batch, &StreamRange::new("feed", first, last).unwrap())
            .await
    };
    let mut appliers = Vec::new();
    for _ in 0..4 {
        let mut client = connect(&config).await;
        appliers.push(tokio::spawn(async move {
            let mut applied = 0;
            for first in (1..=400).step_by(4) {
                // An applier that is behind skips what is applied. One that is ahead meets a gap
                // until the one before has committed.
                loop {
                    match once(&mut client, first, first + 3).await {
                        Ok(done) => break applied += u32::from(!done.skipped),
                        Err(Error::Gap { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            applied
        }));
    }
    let mut applied = 0;
    for applier in appliers {
        applied += applier.await.unwrap();
    }
    assert_eq!(applied, 100);
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert_eq!(store.offset("feed").await.unwrap(), 400);
    assert_eq!(store.total(postgres_app::SHOW_SETLISTS, 7).await.unwrap(), 400);
}

/// How one writer's transactions ended.
#[derive(Debug, Default)]
struct Met {
    committed: u64,
    rolled_back: u64,
    deadlocks: u64,
    serializations: u64,
}

async fn writer(config: Config, seed: u64, isolation: IsolationLevel, until: Instant) -> Met {
    let mut client = connect(&config).await;
    let prepared = PreparedStatements::new();
    let (mut random, mut met) = (Random(seed), Met::default());
    let number = i64::try_from(seed).unwrap();
    while Instant::now() < until {
        let changes = changes(&mut random, number);
        let tx = client.build_transaction().isolation_level(isolation).start().await.unwrap();
        let mut batch = Batch::new();
        let mut failed = None;
        for change in &changes {
            if let Err(error) = write(&tx, change, &mut batch).await {
                failed = error.code().map(|code| code.code().to_owned());
                break;
            }
        }
        if failed.is_none() {
            match PostgresStore::in_transaction(&tx, &SCHEMA)
                .prepared(&prepared)
                .apply(&mut batch)
                .await
            {
                Ok(_) if random.below(10) == 0 => {
                    tx.rollback().await.unwrap();
                    met.rolled_back += 1;
                    continue;
                }
                Ok(_) => match tx.commit().await {
                    Ok(()) => {
                        met.committed += 1;
                        continue;
                    }
                    Err(error) => failed = error.code().map(|code| code.code().to_owned()),
                },
                Err(error) => {
                    assert_eq!(error.recovery(), Recovery::Retry, "{error:?}");
                    failed = Some(
                        if format!("{error:?}").contains("40P01") { "40P01" } else { "40001" }
                            .to_owned(),
                    );
                }
            }
        }
        match failed.as_deref() {
            Some("40P01") => met.deadlocks += 1,
            Some("40001") => met.serializations += 1,
            other => panic!("{other:?}"),
        }
    }
    met
}

/// Sweeps totals of 0 and locks, as fast as it can.
async fn sweeper(config: Config, until: Instant) -> (u64, u64) {
    let mut client = connect(&config).await;
    let (mut sweep, mut gone) = (Sweep::new().rows(20), (0, 0));
    while Instant::now() < until {
        let swept = PostgresStore::new(&mut client, &SCHEMA).sweep(&mut sweep).await.unwrap();
        gone = (gone.0 + swept.totals, gone.1 + swept.locks);
    }
    gone
}

async fn writers(isolation: IsolationLevel) -> Option<Met> {
    let (config, client) = application().await?;
    let until = Instant::now() + hunt_duration();
    let writers: Vec<_> =
        (1..=16).map(|seed| tokio::spawn(writer(config.clone(), seed, isolation, until))).collect();
    let (totals, locks) = tokio::spawn(sweeper(config, until)).await.unwrap();
    println!("beside them {totals} totals of 0 and {locks} locks were removed");
    assert!(totals > 0 && locks > 0);
    let mut all = Met::default();
    for writer in writers {
        let met = writer.await.unwrap();
        all.committed += met.committed;
        all.rolled_back += met.rolled_back;
        all.deadlocks += met.deadlocks;
        all.serializations += met.serializations;
    }
    assert_exact(&differences(&client).await);
    println!("{isolation:?}: {all:?}");
    Some(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_writers_of_fifty_parents_never_deadlock_and_end_exact() {
    let Some(met) = writers(IsolationLevel::ReadCommitted).await else { return };
    assert_eq!((met.deadlocks, met.serializations), (0, 0), "{met:?}");
    assert!(met.committed > 200, "{met:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_writers_at_repeatable_read_fail_to_serialize_and_end_exact() {
    let Some(met) = writers(IsolationLevel::RepeatableRead).await else { return };
    assert!(met.committed > 50 && met.serializations > 0, "{met:?}");
}

/// The control: what most applications write, one UPDATE for each change, in the order of the
/// changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_in_the_order_of_changes_deadlock() {
    let Some((config, client)) = application().await else { return };
    client
        .batch_execute("INSERT INTO setlist_votes SELECT n, 0 FROM generate_series(0, 49) AS n")
        .await
        .unwrap();
    let until = Instant::now() + hunt_duration();
    let mut writers = Vec::new();
    for seed in 1..=16 {
        let mut client = connect(&config).await;
        writers.push(tokio::spawn(async move {
            let (mut random, mut met) = (Random(seed), Met::default());
            'transaction: while Instant::now() < until && met.deadlocks == 0 {
                let tx = client.transaction().await.unwrap();
                for _ in 0..5 {
                    let update = "UPDATE setlist_votes SET total = total + 1 WHERE key = $1";
                    match tx.execute(update, &[&random.int(0, 50)]).await {
                        Ok(_) => {}
                        Err(error) => {
                            assert_eq!(error.code().unwrap().code(), "40P01");
                            met.deadlocks += 1;
                            continue 'transaction;
                        }
                    }
                }
                tx.commit().await.unwrap();
                met.committed += 1;
            }
            met
        }));
    }
    let mut all = Met::default();
    for writer in writers {
        let met = writer.await.unwrap();
        all.committed += met.committed;
        all.deadlocks += met.deadlocks;
    }
    println!("in the order of changes: {all:?}");
    assert!(all.deadlocks > 0, "{all:?}");
}
