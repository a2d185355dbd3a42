//! keepcount over SeaORM, on both databases: the conformance suite with a transaction for each call,
//! and the job on SeaORM's pool.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../../../tests/support/postgres/mod.rs"]
mod postgres;

use keepcount::backend::KeyRange;
use keepcount::conformance::{self, Call, Case};
use keepcount::reconcile::{Columns, Report, repair};
use keepcount::{
    Applied, AsyncStore, Batch, CounterId, Error, KeyBuf, KeyError, Leaderboard, Record, Result,
    Schema, StreamRange, Tally,
};
use keepcount_sea_orm::SeaOrmStore;
use sea_orm::{
    ConnectOptions, ConnectionTrait as _, Database, DatabaseConnection, TransactionTrait as _,
};
use sqlx::Row as _;

/// A store with a transaction for each call.
struct EachCall<'a>(&'a DatabaseConnection, &'static Schema);

/// Runs a call in a transaction, and commits it even if the call fails.
macro_rules! in_transaction {
    ($self:ident, $store:ident, $call:expr) => {{
        let tx = $self.0.begin().await.unwrap();
        let done = {
            let mut $store = SeaOrmStore::new(&tx, $self.1);
            $call.await
        };
        tx.commit().await.unwrap();
        done
    }};
}

impl AsyncStore for EachCall<'_> {
    async fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        in_transaction!(self, store, store.apply(batch))
    }

    async fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        in_transaction!(self, store, store.apply_idempotent(batch, stream_range))
    }

    async fn offset(&mut self, stream: &str) -> Result<u64> {
        in_transaction!(self, store, store.offset(stream))
    }

    async fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        in_transaction!(self, store, store.read_keys(counter, keys))
    }

    async fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        in_transaction!(self, store, store.read_range(counter, range, limit))
    }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work);
}

async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(2).sqlx_logging(false);
    Database::connect(options).await.unwrap()
}

async fn create(db: &DatabaseConnection, schema: &Schema) {
    let tx = db.begin().await.unwrap();
    SeaOrmStore::new(&tx, schema).create().await.unwrap();
    tx.commit().await.unwrap();
}

keepcount::counters! {
    SCHEMA { SHOW_VOTES: i64 = "show.votes"; prunable SHOW_DAYS: (i64, i64) = "show.days"; }
    leaderboards [TOP]
}
const TOP: Leaderboard<i64> =
    Leaderboard::new("show.top", [SHOW_VOTES]).by(|[votes]| (votes > 0).then_some(votes));

struct Vote {
    show: i64,
    day: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
        to.add(SHOW_DAYS, (self.show, self.day), 1);
    }
}

/// Writes votes with and without their hooks, and a batch that fails; ranks and prunes.
async fn write(db: &DatabaseConnection, has_savepoints: bool) {
    let tables = "CREATE TABLE votes (show_id BIGINT NOT NULL, day BIGINT NOT NULL);
                  CREATE INDEX votes_by_show ON votes (show_id, day)";
    db.execute_unprepared(tables).await.unwrap();
    create(db, &SCHEMA).await;
    let mut batch = Batch::new();
    let tx = db.begin().await.unwrap();
    for vote in [Vote { show: 7, day: 1 }, Vote { show: 7, day: 2 }, Vote { show: 8, day: 2 }] {
        let text = format!("INSERT INTO votes VALUES ({}, {})", vote.show, vote.day);
        tx.execute_unprepared(&text).await.unwrap();
        batch.insert(&vote);
    }
    let mut store = SeaOrmStore::new(&tx, &SCHEMA);
    store.apply(&mut batch).await.unwrap();
    assert_eq!(store.top(TOP, 1).await.unwrap()[0].key, 7);
    tx.commit().await.unwrap();

    let tx = db.begin().await.unwrap();
    tx.execute_unprepared("INSERT INTO votes VALUES (9, 9)").await.unwrap();
    batch.add(SHOW_VOTES, 9, 1);
    batch.add(SHOW_VOTES, 7, i64::MAX);
    let failed = SeaOrmStore::new(&tx, &SCHEMA).apply(&mut batch).await.unwrap_err();
    assert!(matches!(failed, Error::Overflow { counter: "show.votes", .. }), "{failed:?}");
    let _ = tx.commit().await;
    let row = db.query_one_raw(sea_orm::Statement::from_string(
        db.get_database_backend(),
        "SELECT count(*) FROM votes WHERE show_id = 9",
    ));
    let rows: i64 = row.await.unwrap().unwrap().try_get_by_index(0).unwrap();
    assert_eq!(rows, i64::from(has_savepoints));

    let mut store = EachCall(db, &SCHEMA);
    assert_eq!(store.totals_of(SHOW_VOTES, [7, 8, 9]).await.unwrap(), [2, 1, 0]);
    let tx = db.begin().await.unwrap();
    assert_eq!(SeaOrmStore::new(&tx, &SCHEMA).prune(SHOW_DAYS, 2).await.unwrap(), 1);
    tx.commit().await.unwrap();
    db.execute_unprepared("INSERT INTO votes VALUES (8, 3)").await.unwrap();
}

/// What the job found: a vote without its hook, of a show and of a day, and with a savepoint one more.
fn check(report: &Report, has_savepoints: bool) {
    assert!(report.complete(), "{report}");
    assert_eq!(report.drift(), 2 + 2 * u64::from(has_savepoints), "{report}");
}

mod on_postgres {
    use super::*;
    use keepcount_sqlx::{PostgresAudit, PostgresRows};

    async fn database() -> Option<DatabaseConnection> {
        let server = postgres::shared()?;
        let config = server.database_of_language("en-US").await;
        Some(connect(&server.url(config.get_dbname().unwrap())).await)
    }

    /// In the caller's transaction PostgreSQL does not say which of many totals left 64 bits, and
    /// after it has failed there nothing can be read: the error names the counter.
    const UNNAMED: [&str; 4] = [
        "an_overflow_upwards_applies_nothing",
        "an_overflow_downwards_applies_nothing",
        "an_overflow_in_a_large_batch_applies_nothing",
        "random_large_batches_are_refused_as_by_a_model",
    ];

    fn each(case: &Case) {
        let run = std::panic::AssertUnwindSafe(|| follow(case));
        if !UNNAMED.contains(&case.name) || postgres::installed::find_programs().is_none() {
            return run();
        }
        let panicked = std::panic::catch_unwind(run).unwrap_err();
        let says = panicked.downcast_ref::<String>().unwrap();
        let names = r#"got Err(Overflow { counter: "conformance.number", key: ""#;
        assert!(says.contains(names) && says.contains(" or another of "), "{says}");
    }

    fn follow(case: &Case) {
        block_on(async {
            let Some(db) = database().await else { return };
            create(&db, &conformance::SCHEMA).await;
            let store = &mut EachCall(&db, &conformance::SCHEMA);
            if case.name != "texts_with_zero_bytes_are_kept" {
                return conformance::run_async(case, store).await;
            }
            let Call::Apply(batch) = &case.steps[0].call else { panic!("{:?}", case.steps[0]) };
            let refused = store.apply(&mut batch.clone()).await;
            assert!(matches!(refused, Err(Error::Key { cause: KeyError::ZeroByte, .. })));
        });
    }

    keepcount::conformance_tests!(each each);

    #[test]
    fn job_on_the_pool_repairs_what_was_written_without_hooks() {
        block_on(async {
            let Some(db) = database().await else { return };
            write(&db, false).await;
            let mut conn = db.get_postgres_connection_pool().acquire().await.unwrap();
            let mut audit = PostgresAudit::new(&mut conn, &SCHEMA).await.unwrap();
            let votes = PostgresRows::of("votes", |row| {
                Ok(Vote { show: row.try_get("show_id")?, day: row.try_get("day")? })
            });
            let votes = votes.key(SHOW_VOTES, Columns::of(["show_id"]).count());
            audit.add(votes.key(SHOW_DAYS, ["show_id", "day"])).await.unwrap();
            check(&repair(&SCHEMA).run_async(&mut audit).await.unwrap(), false);
        });
    }
}

mod on_sqlite {
    use super::*;
    use keepcount_sqlx::{SqliteAudit, SqliteRows};

    async fn database(folder: &tempfile::TempDir) -> DatabaseConnection {
        connect(&format!("sqlite://{}?mode=rwc", folder.path().join("db").display())).await
    }

    fn each(case: &Case) {
        block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let db = database(&folder).await;
            create(&db, &conformance::SCHEMA).await;
            conformance::run_async(case, &mut EachCall(&db, &conformance::SCHEMA)).await;
        });
    }

    keepcount::conformance_tests!(each each);

    #[test]
    fn job_on_the_pool_repairs_what_was_written_without_hooks() {
        block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let db = database(&folder).await;
            write(&db, true).await;
            let mut conn = db.get_sqlite_connection_pool().acquire().await.unwrap();
            let mut audit = SqliteAudit::new(&mut conn, &SCHEMA).await.unwrap();
            let votes = SqliteRows::of("votes", |row| {
                Ok(Vote { show: row.try_get("show_id")?, day: row.try_get("day")? })
            });
            let votes = votes.key(SHOW_VOTES, Columns::of(["show_id"]).count());
            audit.add(votes.key(SHOW_DAYS, ["show_id", "day"])).await.unwrap();
            check(&repair(&SCHEMA).run_async(&mut audit).await.unwrap(), true);
        });
    }
}
