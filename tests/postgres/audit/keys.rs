//! Single keys of every kind, and counters without a source, through the usual runs.

use super::items::*;
use crate::support::postgres::shared;
use keepcount::reconcile::{Options, Outcome, PostgresAudit, repair, verify};
use keepcount::{Counter, Error, PostgresStore, Schema};

async fn single_keys_are_repaired_alone<T: Kind>() {
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<T>(&mut client).await;
    damage::<T>(&client).await;
    let mut audit = PostgresAudit::new(&mut client, &T::SCHEMA).await.unwrap();
    audit.add(source::<T>(false)).await.unwrap();
    let all = verify(&T::SCHEMA).options(Options::default().samples(1_000));
    let report = all.run_async(&mut audit).await.unwrap();
    let samples = report.counters[0].samples.clone();
    let mut left = samples.len();
    assert!(left > 0, "{report}");
    for sample in samples.iter().step_by(left.div_ceil(8)) {
        let one = repair(&T::SCHEMA)
            .key_text(&T::COUNTER.id(), sample.key_text())
            .run_async(&mut audit)
            .await
            .unwrap();
        assert_eq!(
            (&one.counters[0].samples[..], one.counters[0].corrected),
            (&[sample.clone()][..], 1)
        );
        assert!(one.complete() && one.token.is_none() && !one.counters[0].complete, "{one}");
        left -= 1;
        assert_eq!(
            all.run_async(&mut audit).await.unwrap().drift(),
            left as u64,
            "{}",
            sample.key_text()
        );
    }
}

#[tokio::test]
async fn single_keys_of_every_kind_are_repaired_alone() {
    single_keys_are_repaired_alone::<Whole>().await;
    single_keys_are_repaired_alone::<Integer>().await;
    single_keys_are_repaired_alone::<Text>().await;
    single_keys_are_repaired_alone::<Id>().await;
    single_keys_are_repaired_alone::<Bytes>().await;
    single_keys_are_repaired_alone::<Wide>().await;
    single_keys_are_repaired_alone::<Pair>().await;
}

#[tokio::test]
async fn counter_without_a_source_is_unchecked_unless_it_is_named() {
    const OTHER: Counter<i64> = Counter::new("of.nothing");
    const BOTH: Schema = Schema::new(&[Integer::COUNTER.table(), OTHER.table()]);
    let Some(server) = shared() else { return };
    let mut client = database(server).await;
    fill::<Integer>(&mut client).await;
    PostgresStore::new(&mut client, &BOTH).create().await.unwrap();
    let mut audit = PostgresAudit::new(&mut client, &BOTH).await.unwrap();
    audit.add(source::<Integer>(false)).await.unwrap();
    for run in [verify(&BOTH), repair(&BOTH)] {
        let report = run.run_async(&mut audit).await.unwrap();
        assert_eq!(report.outcome, Outcome::Unchecked);
        let found = report
            .counters
            .iter()
            .map(|counter| (counter.unchecked, counter.clean))
            .collect::<Vec<_>>();
        assert_eq!(found, [(false, true), (true, false)], "{report}");
        let named = run.counters(&[Integer::COUNTER.id(), OTHER.id()]).run_async(&mut audit).await;
        assert!(matches!(named, Err(Error::NoSource { counter: "of.nothing" })), "{named:?}");
    }
}
