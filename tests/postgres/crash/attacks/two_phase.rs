//! Two-phase commit: a prepared transaction keeps its totals locked, survives a crash, and counts
//! when any connection commits it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keepcount::reconcile::{Mode, Options, Reconciler, TokioRuntime, run_async};
use keepcount::{AsyncStore as _, Batch, Error, PostgresStore};
use tokio_postgres::Config;

use crate::support::postgres::{Server, connect};
use crate::support::postgres_app::{
    SCHEMA, assert_exact, audit, changes, create, differences, write,
};
use crate::support::random::Random;

/// Prepares one transaction after the other. Most are committed or rolled back, at once or later;
/// some are left prepared for [`resolve`].
async fn prepare(config: Config, writer: i64, done: Arc<AtomicBool>, prepared: Arc<AtomicU64>) {
    let mut client = connect(&config).await;
    let other = connect(&config).await;
    // The longest wait for a row that a prepared transaction has locked.
    client.batch_execute("SET lock_timeout = '200ms'").await.unwrap();
    let mut random = Random(u64::try_from(writer).unwrap());
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        number += 1;
        let tx = client.transaction().await.unwrap();
        let mut batch = Batch::new();
        let mut written = true;
        for change in changes(&mut random, writer) {
            written = written && write(&tx, &change, &mut batch).await.is_ok();
        }
        let applied = if written {
            PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await.map(drop)
        } else {
            Ok(())
        };
        match applied {
            Ok(()) if written => {}
            Ok(()) | Err(Error::Busy { .. }) => continue,
            Err(error) => panic!("{error:?}"),
        }
        let name = format!("w{writer}-{number}");
        tx.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await.unwrap();
        drop(tx);
        prepared.fetch_add(1, Ordering::Relaxed);
        match random.below(20) {
            0 => {} // left prepared
            1..=5 => other.batch_execute(&format!("ROLLBACK PREPARED '{name}'")).await.unwrap(),
            _ => {
                tokio::time::sleep(Duration::from_millis(random.below(4))).await;
                other.batch_execute(&format!("COMMIT PREPARED '{name}'")).await.unwrap();
            }
        }
    }
}

/// Ends the transactions that were left prepared: commits every second one, rolls the others back.
/// Returns how many there were.
async fn resolve(config: &Config) -> usize {
    let client = connect(config).await;
    let text = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid";
    let left = client.query(text, &[]).await.unwrap();
    for (at, row) in left.iter().enumerate() {
        let how = if at % 2 == 0 { "COMMIT" } else { "ROLLBACK" };
        client
            .batch_execute(&format!("{how} PREPARED '{}'", row.get::<_, String>(0)))
            .await
            .unwrap();
    }
    left.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_transactions_count_once_committed_despite_crashes_and_repairs() {
    let Some(mut server) = Server::with(&[("max_prepared_transactions", "100"), ("fsync", "on")])
    else {
        return;
    };
    let config = server.database().await;
    create(&mut connect(&config).await).await;
    let (mut left, mut runs, mut busy) = (0, 0, 0);
    let prepared = Arc::new(AtomicU64::new(0));
    for round in 0..2 {
        let done = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (1..=4)
            .map(|writer| {
                prepare(
                    config.clone(),
                    round * 10 + writer,
                    Arc::clone(&done),
                    Arc::clone(&prepared),
                )
            })
            .map(tokio::spawn)
            .collect();
        // Repairs find nothing: neither the rows nor the totals of a prepared transaction are
        // visible yet.
        let mut client = connect(&config).await;
        for _ in 0..8 {
            let mut repair =
                Reconciler::new(Mode::Repair, &SCHEMA, Options::default().page(7).retries(20))
                    .unwrap();
            let mut audit = audit(&mut client).await.unwrap();
            let report =
                run_async(&mut repair, &mut audit, &mut TokioRuntime::new()).await.unwrap();
            assert_eq!(report.drift(), 0, "{report}");
            runs += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        done.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        // A repair that needs a total which a prepared transaction has locked is busy after its
        // lock timeout, and changes nothing.
        let plant = "UPDATE setlist_votes SET total = total + 5
                     WHERE key IN (SELECT key FROM setlist_votes ORDER BY key FOR UPDATE SKIP LOCKED)";
        let planted = connect(&config).await.execute(plant, &[]).await.unwrap();
        let mut found = 0;
        if round == 1 {
            server.crash();
            server.start();
            client = connect(&config).await;
        }
        let mut repair =
            Reconciler::new(Mode::Repair, &SCHEMA, Options::default().retries(1)).unwrap();
        let mut audited = audit(&mut client).await.unwrap();
        match run_async(&mut repair, &mut audited, &mut TokioRuntime::new()).await {
            Ok(report) => found += report.drift(),
            Err(Error::Busy { .. }) => busy += 1,
            Err(error) => panic!("{error:?}"),
        }
        left += resolve(&config).await;
        let mut client = connect(&config).await;
        let mut repair = Reconciler::new(Mode::Repair, &SCHEMA, Options::default()).unwrap();
        let mut audited = audit(&mut client).await.unwrap();
        found +=
            run_async(&mut repair, &mut audited, &mut TokioRuntime::new()).await.unwrap().drift();
        drop(audited);
        assert!(found >= planted, "{found} of {planted} found");
        assert_exact(&differences(&client).await);
    }
    let prepared = prepared.load(Ordering::Relaxed);
    println!(
        "{prepared} transactions prepared, {left} of them left; {runs} repairs beside them found nothing; {busy} met a lock"
    );
    assert!(prepared > 20 && left > 0, "{prepared} prepared, {left} left");
}
