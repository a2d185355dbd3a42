//! A disk that fills up under the server: first under its tables, then under its WAL, which stops
//! the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keepcount::reconcile::{Mode, Options, Reconciler, TokioRuntime, run_async};
use keepcount::{AsyncStore as _, PostgresStore, Recovery};

use super::super::{Ends, deliver, open, rounds};
use crate::support::postgres::{Server, connect};
use crate::support::postgres_app::{SCHEMA, assert_exact, audit, create, differences};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_under_tables_or_wal_loses_nothing_and_counts_nothing_twice() {
    let Some(mut server) = Server::on_small_disks() else { return };
    let config = server.database().await;
    let mut client = connect(&config).await;
    let small = server.small_disk();
    client
        .batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", small.display()))
        .await
        .unwrap();
    let database = config.get_dbname().unwrap();
    client
        .batch_execute(&format!("ALTER DATABASE {database} SET default_tablespace = 'small'"))
        .await
        .unwrap();
    client = connect(&config).await;
    create(&mut client).await;
    let ends = Arc::new(Ends { disk_may_fill: true, ..Ends::default() });
    let writers: Vec<_> = (1..=4)
        .map(|stream| tokio::spawn(deliver(config.clone(), stream, Arc::clone(&ends))))
        .collect();
    let (mut full, mut stopped, mut failed) = (0, 0, 0);
    for round in 0..rounds().div_ceil(3).min(4) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.fill(if round % 2 == 0 { "tables" } else { "wal" });
        full += 1;
        tokio::time::sleep(Duration::from_millis(300)).await;
        if round % 2 == 1 {
            // Uses up the WAL segments that exist, until there is no room for another.
            for _ in 0..40 {
                let Some(client) = open(&config).await else { break };
                let _ = client.batch_execute("SELECT pg_switch_wal()").await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        // A repair meanwhile finds no drift, or returns an error.
        if let Some(mut client) = open(&config).await {
            let mut repair =
                Reconciler::new(Mode::Repair, &SCHEMA, Options::default().retries(0)).unwrap();
            if let Ok(mut audit) = audit(&mut client).await {
                match run_async(&mut repair, &mut audit, &mut TokioRuntime::new()).await {
                    Ok(report) => assert_eq!(report.drift(), 0, "{report}"),
                    Err(error) => {
                        assert!(
                            matches!(
                                error.recovery(),
                                Recovery::Permanent | Recovery::Retry | Recovery::Indeterminate
                            ),
                            "{error:?}"
                        );
                        failed += 1;
                    }
                }
            }
        }
        server.make_room();
        tokio::time::sleep(Duration::from_millis(300)).await;
        if open(&config).await.is_none() {
            stopped += 1;
            server.start_again();
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    ends.done.store(true, Ordering::Relaxed);
    let mut client = connect(&config).await;
    for (stream, writer) in (1..=4_u64).zip(writers) {
        let last = writer.await.unwrap();
        let offset = PostgresStore::new(&mut client, &SCHEMA)
            .offset(&format!("stream {stream}"))
            .await
            .unwrap();
        assert!(offset >= last, "stream {stream}: {last} was committed, the offset says {offset}");
    }
    assert_exact(&differences(&client).await);
    println!(
        "{full} times full; the server stopped {stopped} times; {failed} repairs failed; {ends:?}"
    );
    assert!(ends.committed.load(Ordering::Relaxed) > 20, "{ends:?}");
}
