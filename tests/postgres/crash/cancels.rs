//! Statements cancelled at any moment, of every call that writes: it is done whole or not at all,
//! and its client is idle afterwards, or the error says that the connection must go. Futures are
//! dropped too: what they left behind, the next call cleans up.
//!
//! `KEEPCOUNT_CANCELS` says how many cancels there are (`just postgres-cancels`); some in `cargo
//! test`.
#![allow(clippy::disallowed_methods)] // moments, which no virtual clock has

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keepcount::reconcile::{Mode, Options, Reconciler, TokioRuntime, run_async};
use keepcount::{
    AsyncStore, Batch, Counter, Error, PostgresStore, PreparedStatements, Recovery, Schema,
    StreamRange, Sweep,
};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config};

use super::{BALLOTS, BOX, CAST, HOME};
use crate::support::postgres::{connect, shared};
use crate::support::postgres_app::{self, Change, SHOWS, assert_exact, differences, write};
use crate::support::random::Random;

fn cancels() -> u64 {
    std::env::var("KEEPCOUNT_CANCELS").map_or(400, |cancels| cancels.parse().unwrap())
}

const APPLIED: Counter<i64> = Counter::new("applied.all");
const PLAIN: Schema = Schema::new(&[BALLOTS.table(), APPLIED.table()]);
const DAYS: Counter<(i64, i64)> = Counter::new("days.all");
const PRUNED: Schema = Schema::new(&[DAYS.table().prunable()]);
const ORPHAN: Counter<i64> = Counter::new("orphan.all");
const OLDER: Schema = Schema::new(&[ORPHAN.table()]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Apply,
    ApplyIdempotent,
    Within,
    OneMessage,
    Messages,
    WriteIdempotent,
    Transaction,
    Prune,
    Sweep,
    Create,
    ForgetOffset,
    DropCounter,
    Rebuild,
    Backfill,
    Repair,
    Verify,
}

const CALLS: [Call; 16] = [
    Call::Apply,
    Call::ApplyIdempotent,
    Call::Within,
    Call::OneMessage,
    Call::Messages,
    Call::WriteIdempotent,
    Call::Transaction,
    Call::Prune,
    Call::Sweep,
    Call::Create,
    Call::ForgetOffset,
    Call::DropCounter,
    Call::Rebuild,
    Call::Backfill,
    Call::Repair,
    Call::Verify,
];

/// Why a call did not come through: an error of keepcount's, or of a statement of the application's
/// own.
enum Failed {
    Ours(Error),
    Own,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<tokio_postgres::Error> for Failed {
    fn from(_: tokio_postgres::Error) -> Self {
        Self::Own
    }
}

async fn audited(client: &mut Client, mode: Mode) -> Result<(), Failed> {
    let mut audit = postgres_app::audit(client).await?;
    let options = Options::default().retries(0);
    let mut run = Reconciler::new(mode, &postgres_app::SCHEMA, options)?;
    run_async(&mut run, &mut audit, &mut TokioRuntime::new()).await?;
    Ok(())
}

/// Makes a call, of this number; `last` is what was applied of the stream, and written once, by
/// now.
async fn make(
    call: Call,
    client: &mut Client,
    prepared: &PreparedStatements,
    id: i64,
    last: &BTreeMap<Call, u64>,
) -> Result<(), Failed> {
    let next = last.get(&call).copied().unwrap_or(0) + 1;
    let mut ballot = Batch::new();
    ballot.add(BALLOTS, (), 1);
    let mut applied = Batch::new();
    applied.add(APPLIED, i64::from(call == Call::ApplyIdempotent), 1);
    let mut plain = PostgresStore::new(client, &PLAIN).prepared(prepared);
    let values: [&(dyn ToSql + Sync); 2] = [&id, &HOME];
    match call {
        Call::Apply => drop(plain.apply(&mut applied).await?),
        Call::ApplyIdempotent => {
            let done = plain
                .apply_idempotent(&mut applied, &StreamRange::new("applied", next, next)?)
                .await?;
            assert!(!done.skipped);
        }
        Call::OneMessage => drop(plain.write(&[(CAST[0], &values[..1])], &mut ballot).await?),
        Call::Messages => drop(plain.write(&[(CAST[1], &values)], &mut ballot).await?),
        Call::WriteIdempotent => {
            let stream_range = StreamRange::new("written", next, next)?;
            let (_, done) =
                plain.write_idempotent(&[(CAST[1], &values)], &mut ballot, &stream_range).await?;
            assert!(!done.skipped);
        }
        Call::Transaction => {
            plain
                .transaction(async |tx, batch| {
                    tx.execute(CAST[0], &values[..1]).await?;
                    batch.add(BALLOTS, (), 1);
                    Ok::<_, Failed>(())
                })
                .await?;
        }
        Call::Sweep => drop(plain.sweep(&mut Sweep::new()).await?),
        Call::Create => plain.create().await?,
        Call::ForgetOffset => {
            let forgotten = plain.forget_offset("ended").await?;
            assert_eq!(forgotten, u64::try_from(id).unwrap());
        }
        Call::DropCounter => plain.drop_counter(ORPHAN.id().name()).await?,
        Call::Within => {
            let tx = client.transaction().await?;
            let mut batch = Batch::new();
            write(&tx, &Change::Vote(id, id % 7, 1, id % 3), &mut batch).await?;
            write(&tx, &Change::Place(id % 7, Some(id % 5)), &mut batch).await?;
            PostgresStore::in_transaction(&tx, &postgres_app::SCHEMA).apply(&mut batch).await?;
            tx.commit().await?;
        }
        Call::Prune => {
            let mut pruned = PostgresStore::new(client, &PRUNED).prepared(prepared);
            pruned.prune(DAYS, id).await?;
        }
        Call::Rebuild => {
            PostgresStore::new(client, &postgres_app::SCHEMA).rebuild(SHOWS).await?;
        }
        Call::Backfill => audited(client, Mode::Backfill).await?,
        Call::Repair => audited(client, Mode::Repair).await?,
        Call::Verify => audited(client, Mode::Verify).await?,
    }
    Ok(())
}

/// Lets some time pass, a hundredth of a millisecond or many of them.
async fn pass(random: &mut Random) {
    let most = 1 << (5 + random.below(8));
    let micros = random.below(most);
    let until = Instant::now() + Duration::from_micros(micros);
    while Instant::now() < until {
        tokio::task::yield_now().await;
    }
}

async fn one(client: &Client, text: &str) -> i64 {
    client.query_one(text, &[]).await.unwrap().get(0)
}

/// How many rows and totals there are of what a call writes.
async fn counted(watcher: &Client) -> [i64; 4] {
    let text = "SELECT count(*), (SELECT coalesce(sum(total), 0)::bigint FROM ballots_all),
                (SELECT coalesce(sum(total), 0)::bigint FROM applied_all WHERE key = 0),
                (SELECT coalesce(sum(total), 0)::bigint FROM applied_all WHERE key = 1) FROM ballots";
    let row = watcher.query_one(text, &[]).await.unwrap();
    [row.get(0), row.get(1), row.get(2), row.get(3)]
}

async fn open(config: &Config) -> (Client, i32) {
    let client = connect(config).await;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    (client, pid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_cancelled_write_all_or_nothing_and_leave_their_client_idle() {
    let Some(server) = shared() else { return };
    let config = server.database().await;
    let (mut client, mut pid) = open(&config).await;
    postgres_app::create(&mut client).await;
    client.batch_execute(BOX).await.unwrap();
    PostgresStore::new(&mut client, &PLAIN).create().await.unwrap();
    PostgresStore::new(&mut client, &PRUNED).create().await.unwrap();
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    let watcher = connect(&config).await;
    let cancel = watcher.prepare("SELECT pg_cancel_backend($1)").await.unwrap();
    let mut prepared = PreparedStatements::new();
    let mut random = Random(17);
    let mut last = BTreeMap::new();
    let mut ends: BTreeMap<(Call, &str), u64> = BTreeMap::new();
    let (mut sent, mut id) = (0, 0);
    while sent < cancels() {
        id += 1;
        let call = CALLS[usize::try_from(random.below(CALLS.len() as u64)).unwrap()];
        // The whole runs take long: some of them are enough.
        if call >= Call::Rebuild && random.below(4) > 0 {
            continue;
        }
        match call {
            Call::Backfill => {
                let unready =
                    "UPDATE keepcount_counters SET ready = 0 WHERE name = 'show.setlists'";
                watcher.batch_execute(unready).await.unwrap();
            }
            Call::Repair => {
                let damage =
                    format!("UPDATE setlist_votes SET total = total + 3 WHERE key = {}", id % 7);
                watcher.batch_execute(&damage).await.unwrap();
            }
            Call::Prune => {
                let plant = format!(
                    "INSERT INTO days_all VALUES (1, {}, 1), (1, {}, 1)",
                    id - 1,
                    id + 1_000_000_000
                );
                watcher.batch_execute(&plant).await.unwrap();
            }
            Call::ForgetOffset => {
                let plant = format!(
                    "INSERT INTO keepcount_offsets VALUES ('ended', {id})
                     ON CONFLICT (stream) DO UPDATE SET last = {id}"
                );
                watcher.batch_execute(&plant).await.unwrap();
            }
            Call::DropCounter => {
                PostgresStore::new(&mut client, &OLDER).create().await.unwrap();
            }
            _ => {}
        }
        let before = counted(&watcher).await;
        let (often, is_dropped) = (1 + random.below(3), random.below(5) == 0);
        let mut patience = Random(random.below(1 << 40));
        let cancelling = async {
            for _ in 0..often {
                pass(&mut random).await;
                watcher.query_one(&cancel, &[&pid]).await.unwrap();
            }
        };
        let made = async {
            let making = make(call, &mut client, &prepared, id, &last);
            if !is_dropped {
                return Some(making.await);
            }
            tokio::select! { made = making => Some(made), () = pass(&mut patience) => None }
        };
        let ((), made) = tokio::join!(cancelling, made);
        sent += often;
        let mut done = false;
        let end = match &made {
            Some(Ok(())) => {
                done = true;
                "done"
            }
            Some(Err(Failed::Own)) => "own",
            Some(Err(Failed::Ours(Error::TransactionOpen { .. }))) => "must go",
            Some(Err(Failed::Ours(error))) => {
                assert_eq!(error.recovery(), Recovery::Retry, "{call:?} {id}: {error}");
                assert!(error.to_string().contains("cancel"), "{call:?} {id}: {error}");
                "cancelled"
            }
            None => "dropped",
        };
        *ends.entry((call, end)).or_default() += 1;
        if end == "must go" {
            (client, pid) = open(&config).await;
            prepared = PreparedStatements::new();
        }
        // Transactions of the application's own end when it says so, and those of dropped futures
        // when the next call comes.
        if call == Call::Within {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        if end == "dropped" {
            PostgresStore::new(&mut client, &PLAIN).offset("applied").await.unwrap();
        } else {
            let is_served = client.batch_execute("SELECT 1").await;
            assert!(is_served.is_ok(), "{call:?} {id}, {end}: {is_served:?}");
        }
        let state = watcher
            .query_one("SELECT state FROM pg_stat_activity WHERE pid = $1", &[&pid])
            .await
            .unwrap();
        assert_eq!(state.get::<_, &str>(0), "idle", "{call:?} {id}, {end}");
        // Whole, or not at all.
        let after = counted(&watcher).await;
        let steps: [i64; 4] = std::array::from_fn(|at| after[at] - before[at]);
        let whole = match call {
            Call::Apply => [0, 0, 1, 0],
            Call::ApplyIdempotent => [0, 0, 0, 1],
            Call::OneMessage | Call::Messages | Call::WriteIdempotent | Call::Transaction => {
                [1, 1, 0, 0]
            }
            _ => [0; 4],
        };
        let is_known = made.is_some();
        assert!(
            steps == if done { whole } else { [0; 4] } || !is_known && steps == whole,
            "{call:?} {id}, {end}: {steps:?}"
        );
        for (stream, of) in [("applied", Call::ApplyIdempotent), ("written", Call::WriteIdempotent)]
        {
            let offset = PostgresStore::new(&mut client, &PLAIN).offset(stream).await.unwrap();
            let known = last.insert(of, offset).unwrap_or(0);
            let moved = u64::from(of == call && steps == whole);
            assert_eq!(offset, known + moved, "{stream}, {call:?} {id}, {end}");
        }
        if call == Call::Prune {
            let below =
                one(&watcher, &format!("SELECT count(*) FROM days_all WHERE key_2 < {id}")).await;
            assert!(below == 0 || !done, "{below} below {id}");
            let above = one(
                &watcher,
                &format!("SELECT count(*) FROM days_all WHERE key_2 = {}", id + 1_000_000_000),
            )
            .await;
            assert_eq!(above, 1);
        }
        if call == Call::ForgetOffset {
            let left = "SELECT count(*) FROM keepcount_offsets WHERE stream = 'ended'";
            let left = one(&watcher, left).await;
            assert!(if done { left == 0 } else { left == 1 || !is_known }, "{id}, {end}: {left}");
        }
        if call == Call::DropCounter {
            let tables = "SELECT count(to_regclass('orphan_all'))";
            let listed = "SELECT count(*) FROM keepcount_counters WHERE name = 'orphan.all'";
            let left = [one(&watcher, tables).await, one(&watcher, listed).await];
            assert!(
                if done { left == [0; 2] } else { left == [1; 2] || !is_known && left == [0; 2] },
                "{id}, {end}: {left:?}"
            );
        }
    }
    audited(&mut client, Mode::Backfill).await.ok().unwrap();
    audited(&mut client, Mode::Repair).await.ok().unwrap();
    assert_exact(&differences(&client).await);
    println!("{sent} cancels in {} calls: {ends:?}", ends.values().sum::<u64>());
}
