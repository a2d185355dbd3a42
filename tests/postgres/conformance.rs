//! The suite that every store passes, on PostgreSQL: over a client, over a transaction in
//! savepoints, within a transaction, and with statements prepared or not; and what this store
//! refuses for reasons of its own.

use crate::support::postgres::{connect, shared};
use keepcount::conformance::{Call, Case, SCHEMA, run_async};
use keepcount::{AsyncStore, Error, KeyError, PostgresStore, PreparedStatements};
use tokio_postgres::Client;

/// Runs something on a database with the suite's tables.
fn with_tables(work: impl AsyncFnOnce(Client)) {
    let Some(server) = shared() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&server.database().await).await;
        PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
        work(client).await;
    });
}

/// PostgreSQL's texts cannot have zero bytes: the whole batch is refused, and the error says why.
async fn is_refused(case: &Case, store: &mut impl AsyncStore) {
    let Call::Apply(batch) = &case.steps[0].call else { panic!("{:?}", case.steps[0]) };
    match store.apply(&mut batch.clone()).await {
        Err(Error::Key { counter: "conformance.text", cause: KeyError::ZeroByte, .. }) => {}
        other => panic!("{other:?}"),
    }
}

async fn follows(case: &Case, store: &mut impl AsyncStore) {
    if case.name == "texts_with_zero_bytes_are_kept" {
        is_refused(case, store).await;
    } else {
        run_async(case, store).await;
    }
}

mod over_a_client {
    use super::*;

    fn runs(case: &Case) {
        with_tables(async |mut client| {
            follows(case, &mut PostgresStore::new(&mut client, &SCHEMA)).await;
        });
    }

    keepcount::conformance_tests!(each runs);
}

mod in_savepoints {
    use super::*;

    fn runs(case: &Case) {
        with_tables(async |mut client| {
            let prepared = PreparedStatements::new();
            let mut tx = client.transaction().await.unwrap();
            tx.batch_execute("CREATE TABLE votes (id BIGINT); INSERT INTO votes VALUES (7)")
                .await
                .unwrap();
            follows(case, &mut PostgresStore::new(&mut tx, &SCHEMA).prepared(&prepared)).await;
            // Whatever was applied or refused, the transaction stays, with its rows.
            let rows = tx.query("SELECT id FROM votes", &[]).await.unwrap();
            assert_eq!(rows.len(), 1);
            tx.commit().await.unwrap();
        });
    }

    keepcount::conformance_tests!(each runs);
}
