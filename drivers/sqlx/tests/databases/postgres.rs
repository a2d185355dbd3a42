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
