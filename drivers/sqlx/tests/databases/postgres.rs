//! PostgreSQL.

use keepcount::KeyError;
use keepcount::conformance::Call;
use keepcount_sqlx::{PostgresAudit, PostgresRows, PostgresStore};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection, Postgres};

use crate::support::postgres::shared;

tests!(Postgres, PostgresStore, PostgresAudit, PostgresRows, database);

/// The order of texts is the bytes', whatever the database's is.
const COLLATION: &str = r#"COLLATE "C""#;

const HAS_SAVEPOINTS: bool = false;
const BEGIN: &str = "BEGIN";
const WRITERS: i64 = 8;

struct Database(PgConnectOptions);

impl Database {
    async fn connect(&self) -> PgConnection {
        self.0.connect().await.unwrap()
    }
}

async fn database() -> Option<Database> {
    let server = shared()?;
    let config = server.database_of_language("en-US").await;
    let url = server.url(config.get_dbname().unwrap());
    Some(Database(url.parse().unwrap()))
}

/// A text in PostgreSQL cannot have a zero byte: the store refuses the whole batch, and the error
/// says why.
async fn run_case(case: &Case, store: &mut impl keepcount::AsyncStore) {
    if case.name != "texts_with_zero_bytes_are_kept" {
        return conformance::run_async(case, store).await;
    }
    let Call::Apply(batch) = &case.steps[0].call else { panic!("{:?}", case.steps[0]) };
    match store.apply(&mut batch.clone()).await {
        Err(Error::Key { counter: "conformance.text", cause: KeyError::ZeroByte, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// What the server forgets, and what a migration makes stale, is prepared again. In a transaction of
/// the caller's, the error says to repeat that.
#[test]
fn statements_that_the_server_has_forgotten_are_prepared_again() {
    block_on(async {
        let Some(database) = database().await else { return };
        let (mut conn, mut of_audit) = (database.connect().await, database.connect().await);
        run(&mut conn, TABLES).await;
        let mut store = PostgresStore::new(&mut conn, &LIFE);
        store.create().await.unwrap();
        let mut batch = Batch::new();
        let mut add = async |conn: &mut Connection| {
            batch.add(SHOW_VOTES, 7, 1);
            PostgresStore::new(conn, &LIFE).apply(&mut batch).await
        };
        add(&mut conn).await.unwrap();
        run(&mut conn, "DEALLOCATE ALL").await;
        add(&mut conn).await.unwrap();
        assert_eq!(PostgresStore::new(&mut conn, &LIFE).total(SHOW_VOTES, 7).await.unwrap(), 2);
        run(&mut conn, "DEALLOCATE ALL").await;
        assert_eq!(PostgresStore::new(&mut conn, &LIFE).total(SHOW_VOTES, 7).await.unwrap(), 2);

        add(&mut conn).await.unwrap();
        run(&mut conn, "DEALLOCATE ALL").await;
        let mut tx = conn.begin().await.unwrap();
        let forgotten = add(&mut tx).await.unwrap_err();
        assert_eq!(forgotten.recovery(), keepcount::Recovery::Retry, "{forgotten}");
        tx.rollback().await.unwrap();
        let mut tx = conn.begin().await.unwrap();
        add(&mut tx).await.unwrap();
        tx.commit().await.unwrap();

        let mut audit = PostgresAudit::new(&mut of_audit, &LIFE).await.unwrap();
        audit.add(votes()).await.unwrap();
        for column in ["a", "b"] {
            let report = repair(&LIFE).run_async(&mut audit).await.unwrap();
            assert!(report.complete(), "{report}");
            run(&mut conn, &format!("ALTER TABLE votes ADD COLUMN {column} BIGINT DEFAULT 7"))
                .await;
            insert(&mut conn, &Vote { show: 9, day: 1 }).await;
        }
        let report = repair(&LIFE).run_async(&mut audit).await.unwrap();
        assert!(report.complete(), "{report}");
        assert_eq!(PostgresStore::new(&mut conn, &LIFE).total(SHOW_VOTES, 9).await.unwrap(), 2);
    });
}

#[test]
fn pool_without_a_cache_of_statements_applies_and_reads() {
    block_on(async {
        let Some(database) = database().await else { return };
        let options = database.0.clone().statement_cache_capacity(0);
        let pool = sqlx::PgPool::connect_with(options).await.unwrap();
        PostgresStore::new(&mut *pool.acquire().await.unwrap(), &LIFE).create().await.unwrap();
        for _ in 0..3 {
            let mut tx = pool.begin().await.unwrap();
            let mut batch = Batch::new();
            batch.add(SHOW_VOTES, 7, 1);
            batch.add(SHOW_DAYS, (7, 1), 1);
            PostgresStore::new(&mut tx, &LIFE).apply(&mut batch).await.unwrap();
            tx.commit().await.unwrap();
        }
        let mut conn = pool.acquire().await.unwrap();
        assert_eq!(PostgresStore::new(&mut conn, &LIFE).total(SHOW_VOTES, 7).await.unwrap(), 3);
    });
}

/// An error keeps sqlx's as its source, and says what to do.
#[test]
fn errors_keep_that_of_sqlx_and_say_what_to_do() {
    block_on(async {
        let Some(database) = database().await else { return };
        let (mut conn, mut other) = (database.connect().await, database.connect().await);
        PostgresStore::new(&mut conn, &LIFE).create().await.unwrap();
        let mut batch = Batch::new();
        batch.add(SHOW_VOTES, 7, 1);
        PostgresStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap();
        let mut tx = other.begin().await.unwrap();
        run(&mut tx, "UPDATE show_votes SET total = total").await;
        run(&mut conn, "SET lock_timeout = '50ms'").await;
        batch.add(SHOW_VOTES, 7, 1);
        let busy = PostgresStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap_err();
        let Error::Busy { cause, .. } = &busy else { panic!("{busy:?}") };
        let code = cause.downcast_ref::<sqlx::Error>().unwrap().as_database_error().unwrap().code();
        assert_eq!(code.as_deref(), Some("55P03"));
        assert_eq!(busy.recovery(), keepcount::Recovery::Retry);
        tx.rollback().await.unwrap();
        PostgresStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap();
        run(&mut other, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
        batch.add(SHOW_VOTES, 7, 1);
        let lost = PostgresStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap_err();
        assert!(matches!(lost, Error::Busy { .. }), "{lost:?}");
    });
}
