//! The conformance suite on PostgreSQL: over a client, and in savepoints of a transaction with
//! prepared statements. PostgreSQL must refuse one of its cases.

use crate::support::postgres::{connect, shared};
use keepcount::conformance::{Call, Case, SCHEMA, run_async};
use keepcount::{AsyncStore, Error, KeyError, PostgresStore, PreparedStatements};
use tokio_postgres::Client;

/// Runs `work` on a new database with the suite's tables.
fn with_tables(work: impl AsyncFnOnce(Client)) {
    let Some(server) = shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&server.database().await).await;
        PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
        work(client).await;
    });
}

/// A text in PostgreSQL cannot have a zero byte: the store refuses the whole batch, and the error
/// says why.
async fn assert_zero_byte_is_refused(case: &Case, store: &mut impl AsyncStore) {
    let Call::Apply(batch) = &case.steps[0].call else { panic!("{:?}", case.steps[0]) };
    match store.apply(&mut batch.clone()).await {
        Err(Error::Key { counter: "conformance.text", cause: KeyError::ZeroByte, .. }) => {}
        other => panic!("{other:?}"),
    }
}

async fn run_case(case: &Case, store: &mut impl AsyncStore) {
    if case.name == "texts_with_zero_bytes_are_kept" {
        assert_zero_byte_is_refused(case, store).await;
    } else {
        run_async(case, store).await;
    }
}

mod over_a_client {
    use super::*;

    fn run(case: &Case) {
        with_tables(async |mut client| {
            run_case(case, &mut PostgresStore::new(&mut client, &SCHEMA)).await;
        });
    }

    keepcount::conformance_tests!(each run);
}

mod in_savepoints {
    use super::*;

    fn run(case: &Case) {
        with_tables(async |mut client| {
            let prepared = PreparedStatements::new();
            let mut tx = client.transaction().await.unwrap();
            tx.batch_execute("CREATE TABLE votes (id BIGINT); INSERT INTO votes VALUES (7)")
                .await
                .unwrap();
            run_case(
                case,
                &mut PostgresStore::with_savepoints(&mut tx, &SCHEMA).prepared(&prepared),
            )
            .await;
            // The transaction stays open with its rows, whether the case was applied or refused.
            let rows = tx.query("SELECT id FROM votes", &[]).await.unwrap();
            assert_eq!(rows.len(), 1);
            tx.commit().await.unwrap();
        });
    }

    keepcount::conformance_tests!(each run);
}
