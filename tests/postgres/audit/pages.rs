//! Verify and repair are exact at pages of one key, a few, and all, for kinds of keys that `cases.rs`
//! does not have.

use super::items::*;
use crate::support::postgres::{connect, shared};
use keepcount::PostgresStore;
use keepcount::reconcile::{Mode, Options, PostgresAudit};

async fn assert_exact_at_every_page<T: Kind>(by_tally: bool) {
    let Some(server) = shared() else { return };
    // Texts sort by bytes, whatever the collation of the database.
    let mut client = connect(&server.database_of_language("en-US").await).await;
    fill::<T>(&mut client).await;
    assert_eq!(drift::<T>(&client).await, (0, 0, 0));
    for page in [1, 7, 1000] {
        refill::<T>(&client).await;
        damage::<T>(&client).await;
        let planted = drift::<T>(&client).await;
        assert!(planted.0 > 20 && planted.1 > 20 && planted.2 > 20, "{planted:?}");
        let options = Options::default().page(page).samples(1_000);
        let mut other = connect_again(&client, server).await;
        let mut audit = PostgresAudit::new(&mut client, &T::SCHEMA).await.unwrap();
        audit.add(source::<T>(by_tally)).await.unwrap();
        let dry = run_whole(Mode::Verify, &T::SCHEMA, options, &mut audit).await.unwrap();
        assert_eq!((drift_kinds(&dry), dry.complete()), (planted, true));
        assert_eq!(drift::<T>(&other).await, planted);
        let wet = run_whole(Mode::Repair, &T::SCHEMA, options, &mut audit).await.unwrap();
        assert_eq!(drift_kinds(&wet), planted);
        assert_eq!(wet.counters[0].samples, dry.counters[0].samples);
        assert_eq!((wet.counters[0].keys, wet.rows), (dry.counters[0].keys, dry.rows));
        assert_eq!(wet.counters[0].corrected, planted.0 + planted.1 + planted.2);
        assert_eq!(drift::<T>(&other).await, (0, 0, 0));
        let zeros = format!(
            "SELECT count(*) FROM {} WHERE total = 0",
            T::COUNTER.id().name().replace('.', "_")
        );
        assert_eq!(other.query_one(&zeros, &[]).await.unwrap().get::<_, i64>(0), 0);
        let clean = run_whole(Mode::Verify, &T::SCHEMA, options, &mut audit).await.unwrap();
        assert!(clean.counters[0].clean, "{clean}");
        assert!(
            PostgresStore::new(&mut other, &T::SCHEMA).is_ready(T::COUNTER.id()).await.unwrap()
        );
    }
}

#[tokio::test]
async fn verify_and_repair_are_exact_for_text_keys() {
    assert_exact_at_every_page::<Text>(false).await;
    assert_exact_at_every_page::<Text>(true).await;
}

#[tokio::test]
async fn verify_and_repair_are_exact_for_ids() {
    assert_exact_at_every_page::<Id>(false).await;
    assert_exact_at_every_page::<Bytes>(false).await;
    assert_exact_at_every_page::<Wide>(false).await;
}

#[tokio::test]
async fn verify_and_repair_are_exact_for_pairs() {
    assert_exact_at_every_page::<Pair>(false).await;
    assert_exact_at_every_page::<Pair>(true).await;
}
