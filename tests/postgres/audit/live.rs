//! Runs in parts, backfills, and repairs beside writers.

use super::items::*;
use crate::support::postgres::shared;
use keepcount::reconcile::audit::{
    Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, RepairRequest, Repaired,
};
use keepcount::reconcile::{
    AsyncAudit, Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, Token,
    TokioRuntime, run_async,
};
use keepcount::{AsyncStore, Batch, Error, KeyBuf, PostgresStore, Recovery, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::Client;

#[tokio::test]
async fn a_run_of_many_parts_resumes_by_its_token_and_is_exact() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    damage::<Integer>(&client).await;
    let planted = drift::<Integer>(&client).await;
    let foreign = database(server).await;
    let mut foreign = foreign;
    fill::<Integer>(&mut foreign).await;
    let options = Options::default().page(10).max_pages(4);
    let (mut place, mut parts, mut found) = (None::<String>, 0, 0);
    loop {
        // Each part has only the token, like a process of its own.
        let mut audit = audit::<Integer>(&mut client).await;
        let mut run = match &place {
            Some(token) => {
                let token: Token = token.parse().unwrap();
                let mut run =
                    Reconciler::resume(Mode::Repair, &Integer::SCHEMA, &token, options).unwrap();
                let mut other = super::items::audit::<Integer>(&mut foreign).await;
                let refused = run_async(&mut run, &mut other, &mut TokioRuntime::new()).await;
                assert!(matches!(refused, Err(Error::Token { .. })), "{refused:?}");
                Reconciler::resume(Mode::Repair, &Integer::SCHEMA, &token, options).unwrap()
            }
            None => Reconciler::new(Mode::Repair, &Integer::SCHEMA, options).unwrap(),
        };
        let report = run_async(&mut run, &mut audit, &mut TokioRuntime::new()).await.unwrap();
        parts += 1;
        found += report.drift();
        match report.token {
            Some(token) => place = Some(token.to_string()),
            None => break,
        }
    }
    assert!(parts > 5, "{parts}");
    assert_eq!(found, planted.0 + planted.1 + planted.2);
    assert_eq!(drift::<Integer>(&client).await, (0, 0, 0));
}

#[tokio::test]
async fn backfill_makes_a_counter_ready_once_it_is_complete() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Text>(&mut client).await;
    client.batch_execute("DROP TABLE of_text, keepcount_counters").await.unwrap();
    PostgresStore::new(&mut client, &Text::SCHEMA).create_pending_backfill().await.unwrap();
    let counter = Text::COUNTER.id();
    let mut other = connect_again(&client, server).await;
    let mut reader = PostgresStore::new(&mut other, &Text::SCHEMA);
    assert!(matches!(reader.total(Text::COUNTER, "A-72").await, Err(Error::NotReady { .. })));
    let options = Options::default().page(64).max_pages(2);
    let mut audit = audit::<Text>(&mut client).await;
    let mut report = run_whole(Mode::Backfill, &Text::SCHEMA, options, &mut audit).await.unwrap();
    while let Some(token) = report.token {
        assert!(!reader.is_ready(counter).await.unwrap());
        let mut run = Reconciler::resume(Mode::Backfill, &Text::SCHEMA, &token, options).unwrap();
        report = run_async(&mut run, &mut audit, &mut TokioRuntime::new()).await.unwrap();
    }
    assert!(reader.is_ready(counter).await.unwrap());
    drop(audit);
    assert_eq!(drift::<Text>(&client).await, (0, 0, 0));
}

/// Acts before each repair, so that what was compared is outdated.
struct Before<A, F> {
    audit: A,
    act: F,
}

impl<A: AsyncAudit, F: AsyncFnMutSend> AsyncAudit for Before<A, F> {
    async fn identity(&mut self) -> Result<u64> {
        self.audit.identity().await
    }

    async fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        self.audit.probe(ask).await
    }

    async fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        self.audit.compare(ask).await
    }

    async fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        self.act.act(ask).await;
        self.audit.repair(ask).await
    }
}

trait AsyncFnMutSend: Send {
    fn act(&mut self, repair: &RepairRequest) -> impl Future<Output = ()> + Send;
}

fn item(key: i64, amount: i64) -> Item<Integer> {
    Item { key: Some(key), amount, counts: true }
}

/// Writes items in one transaction, with their hooks.
async fn write(client: &mut Client, items: &[(i64, i32)]) {
    let mut batch = Batch::new();
    let tx = client.transaction().await.unwrap();
    for &(key, amount) in items {
        let insert = "INSERT INTO items (k, amount, spam) VALUES ($1::int8, $2, false)";
        tx.execute(insert, &[&key, &amount]).await.unwrap();
        batch.insert(&item(key, amount.into()));
    }
    PostgresStore::in_transaction(&tx, &Integer::SCHEMA).apply(&mut batch).await.unwrap();
    tx.commit().await.unwrap();
}

/// Deletes all rows of a key in one transaction, with their hooks.
async fn delete(client: &mut Client, key: i64) {
    let mut batch = Batch::new();
    let tx = client.transaction().await.unwrap();
    let rows = tx
        .query("DELETE FROM items WHERE k = $1::int8 RETURNING amount, NOT spam", &[&key])
        .await
        .unwrap();
    for row in rows {
        batch.delete(&Item::<Integer> {
            key: Some(key),
            amount: row.get::<_, i32>(0).into(),
            counts: row.get(1),
        });
    }
    PostgresStore::in_transaction(&tx, &Integer::SCHEMA).apply(&mut batch).await.unwrap();
    tx.commit().await.unwrap();
}

struct Writes(Client, usize);

impl AsyncFnMutSend for Writes {
    async fn act(&mut self, repair: &RepairRequest) {
        for key in &repair.keys {
            let key: i64 = key.decode().unwrap();
            self.1 += 1;
            match key.rem_euclid(3) {
                0 => write(&mut self.0, &[(key, 7), (key, -2)]).await,
                1 => delete(&mut self.0, key).await,
                _ => write(&mut self.0, &[(key + 1, 1)]).await,
            }
        }
    }
}

#[tokio::test]
async fn repair_is_exact_whatever_was_written_since_the_comparison() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    damage::<Integer>(&client).await;
    let planted = drift::<Integer>(&client).await;
    let (writer, reader) =
        (connect_again(&client, server).await, connect_again(&client, server).await);
    let mut live = Before { audit: audit::<Integer>(&mut client).await, act: Writes(writer, 0) };
    let report = run_whole(Mode::Repair, &Integer::SCHEMA, Options::default().page(9), &mut live)
        .await
        .unwrap();
    assert_eq!(live.act.1 as u64, report.drift());
    // The writes changed the rows and the totals together, so the same number of keys was off.
    assert_eq!(report.counters[0].corrected, planted.0 + planted.1 + planted.2);
    assert_eq!(drift::<Integer>(&reader).await, (0, 0, 0));
}

/// Four writers, whose transactions are open while repairs lock totals, and two repairs at once,
/// over few keys.
#[tokio::test]
async fn repeated_repairs_beside_writers_leave_exact_totals() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let mut writers = Vec::new();
    for which in 0..4 {
        let mut writer = connect_again(&client, server).await;
        writers.push(tokio::spawn(async move {
            let mut wrote = 0_i64;
            while !STOP.load(Ordering::Relaxed) {
                let key = (wrote * 7 + which * 3) % 12 - 39;
                if wrote % 5 == which {
                    delete(&mut writer, key).await;
                } else {
                    write(&mut writer, &[(key, 3), (key + 1, -1)]).await;
                }
                wrote += 1;
            }
            wrote
        }));
    }
    let mut corrected = 0;
    let (mut one, mut two) =
        (connect_again(&client, server).await, connect_again(&client, server).await);
    for round in 0..12 {
        // In key order, as every writer.
        let text = format!(
            "BEGIN; SELECT 1 FROM of_integer WHERE key < 20 ORDER BY key FOR UPDATE;
             UPDATE of_integer SET total = total + {} WHERE key < 20; COMMIT",
            round + 1
        );
        client.batch_execute(&text).await.unwrap();
        let (mut left, mut right) =
            (audit::<Integer>(&mut one).await, audit::<Integer>(&mut two).await);
        let options = Options::default().page(16);
        let (left, right) = tokio::join!(
            run_whole(Mode::Repair, &Integer::SCHEMA, options, &mut left),
            run_whole(Mode::Repair, &Integer::SCHEMA, options, &mut right)
        );
        corrected += left.unwrap().counters[0].corrected + right.unwrap().counters[0].corrected;
    }
    STOP.store(true, Ordering::Relaxed);
    let mut wrote = 0;
    for writer in writers {
        wrote += writer.await.unwrap();
    }
    assert!(wrote > 100 && corrected > 12 * 40, "{wrote} transactions, {corrected} repairs");
    assert_eq!(drift::<Integer>(&client).await, (0, 0, 0));
}

#[tokio::test]
async fn total_locked_by_a_writer_makes_the_repair_busy_and_nothing_is_repaired() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client
        .batch_execute("UPDATE of_integer SET total = total + 1 WHERE key IN (3, 4)")
        .await
        .unwrap();
    let (mut holder, reader) =
        (connect_again(&client, server).await, connect_again(&client, server).await);
    let held = holder.transaction().await.unwrap();
    held.batch_execute("UPDATE of_integer SET total = total WHERE key = 4").await.unwrap();
    let mut patient = audit::<Integer>(&mut client).await.lock_timeout(Duration::from_millis(60));
    let refused =
        run_whole(Mode::Repair, &Integer::SCHEMA, Options::default().retries(1), &mut patient)
            .await;
    let error = refused.unwrap_err();
    assert!(
        matches!(error, Error::Busy { .. }) && error.recovery() == Recovery::Retry,
        "{error:?}"
    );
    assert!(error.to_string().contains("of.integer"), "{error}");
    assert_eq!(drift::<Integer>(&reader).await, (2, 0, 0));
    held.rollback().await.unwrap();
    run_whole(Mode::Repair, &Integer::SCHEMA, Options::default(), &mut patient).await.unwrap();
    assert_eq!(drift::<Integer>(&reader).await, (0, 0, 0));
}

/// A repair that takes too long is rolled back whole.
#[tokio::test]
async fn statement_timeout_makes_the_repair_busy() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    client.batch_execute("UPDATE of_integer SET total = total + 1 WHERE key = 3").await.unwrap();
    let mut hasty = PostgresAudit::new(&mut client, &Integer::SCHEMA).await.unwrap();
    // Only the repair's transaction has written, so only that one sleeps.
    let slow = "SELECT k, amount, spam FROM items WHERE k <> 3 OR pg_current_xact_id_if_assigned() IS NULL OR pg_sleep(5) IS NOT NULL";
    let rows = PostgresRows::query(slow, |row| {
        Ok(Item::<Integer> {
            key: Some(row.try_get::<_, i32>(0)?.into()),
            amount: row.try_get::<_, i32>(1)?.into(),
            counts: !row.try_get::<_, bool>(2)?,
        })
    });
    let columns = Columns::of(["k"]).sum("amount").filter("NOT spam");
    hasty.add(rows.columns("k, amount, spam").key(Integer::COUNTER, columns)).await.unwrap();
    let mut hasty = hasty.statement_timeout(Duration::from_millis(80));
    let keys = vec![KeyBuf::of::<i64>(3)];
    let error =
        hasty.repair(&RepairRequest { counter: Integer::COUNTER.id(), keys }).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    drop(hasty);
    assert_eq!(drift::<Integer>(&client).await, (1, 0, 0));
}

/// A future that is dropped may have stored what it was asked to; asked again, it answered as if
/// another process had taken over the run.
#[tokio::test]
async fn progress_that_is_stored_twice_is_still_the_runs_own() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    let mut audit = audit::<Integer>(&mut client).await;
    let mut tokens = Vec::new();
    for pages in [1, 2] {
        let options = Options::default().page(4).max_pages(pages);
        let leg = run_whole(Mode::Verify, &Integer::SCHEMA, options, &mut audit).await.unwrap();
        tokens.push(leg.token.unwrap());
    }
    let keep = |from: Option<usize>, to: Option<usize>| Keep {
        run: 7,
        from: from.map(|at| tokens[at].clone()),
        to: to.map(|at| tokens[at].clone()),
    };
    for ask in [keep(None, Some(0)), keep(Some(0), Some(1))] {
        for _ in 0..2 {
            assert_eq!(audit.keep(&ask).await.unwrap(), Kept::Here);
        }
    }
    for another in [keep(None, Some(0)), keep(Some(0), None)] {
        assert_eq!(audit.keep(&another).await.unwrap(), Kept::Lost);
    }
    let last = keep(Some(1), None);
    assert_eq!(audit.keep(&last).await.unwrap(), Kept::Here);
    // These may also be totals from before anything was kept.
    assert_eq!(audit.keep(&last).await.unwrap(), Kept::Lost);
}
