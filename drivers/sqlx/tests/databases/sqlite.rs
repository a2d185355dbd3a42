//! SQLite.

use keepcount_sqlx::{SqliteAudit, SqliteRows, SqliteStore};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Sqlite, SqliteConnection};
use tempfile::TempDir;

tests!(Sqlite, SqliteStore, SqliteAudit, SqliteRows, database);

/// It sorts texts by their bytes.
const COLLATION: &str = "";

const HAS_SAVEPOINTS: bool = true;
const BEGIN: &str = "BEGIN IMMEDIATE";
const WRITERS: i64 = 4;

struct Database(TempDir);

impl Database {
    async fn connect(&self) -> SqliteConnection {
        // Writers wait for each other, as long as a busy machine takes.
        let options = SqliteConnectOptions::new()
            .filename(self.0.path().join("db"))
            .create_if_missing(true)
            .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
            .busy_timeout(std::time::Duration::from_secs(60));
        options.connect().await.unwrap()
    }
}

async fn database() -> Option<Database> {
    Some(Database(tempfile::tempdir().unwrap()))
}

async fn run_case(case: &Case, store: &mut impl keepcount::AsyncStore) {
    conformance::run_async(case, store).await;
}

/// A batch that is refused leaves the caller's transaction as it was.
mod in_a_transaction {
    use super::*;

    fn each(case: &Case) {
        block_on(async {
            let Some(database) = database().await else { return };
            let mut conn = database.connect().await;
            SqliteStore::new(&mut conn, &conformance::SCHEMA).create().await.unwrap();
            run(&mut conn, "CREATE TABLE votes (id BIGINT)").await;
            let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.unwrap();
            run(&mut tx, "INSERT INTO votes VALUES (7)").await;
            run_case(case, &mut SqliteStore::new(&mut tx, &conformance::SCHEMA)).await;
            let rows: i64 =
                sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&mut *tx).await.unwrap();
            assert_eq!(rows, 1);
            tx.commit().await.unwrap();
        });
    }

    keepcount::conformance_tests!(each each);
}

/// SQLite rolls the whole transaction back, here by a trigger, as it does on a full disk.
#[test]
fn transaction_that_sqlite_rolls_back_is_reported_as_lost_and_does_not_commit() {
    block_on(async {
        let Some(database) = database().await else { return };
        let mut conn = database.connect().await;
        run(&mut conn, TABLES).await;
        SqliteStore::new(&mut conn, &LIFE).create().await.unwrap();
        let trigger = "CREATE TRIGGER t BEFORE INSERT ON show_votes BEGIN SELECT RAISE(ROLLBACK, 'gone'); END";
        run(&mut conn, trigger).await;
        let mut batch = Batch::new();
        batch.add(SHOW_VOTES, 7, 1);
        let mut tx = conn.begin_with(BEGIN).await.unwrap();
        insert(&mut tx, &Vote { show: 7, day: 1 }).await;
        let lost = SqliteStore::new(&mut tx, &LIFE).apply(&mut batch).await.unwrap_err();
        assert!(matches!(lost, Error::TransactionLost { .. }), "{lost:?}");
        tx.commit().await.unwrap_err();
        drop(conn);
        let mut conn = database.connect().await;
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&mut conn).await.unwrap();
        assert_eq!(rows, 0);
        // In a transaction of its own, nothing but the error is left.
        let gone = SqliteStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap_err();
        assert!(matches!(gone, Error::Database { .. }), "{gone:?}");
        run(&mut conn, "DROP TRIGGER t").await;
        SqliteStore::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap();
        assert!(!conn.is_in_transaction());
        assert_eq!(SqliteStore::new(&mut conn, &LIFE).total(SHOW_VOTES, 7).await.unwrap(), 1);
    });
}
