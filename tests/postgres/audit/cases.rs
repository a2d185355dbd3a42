//! The cases of every store's audit, on PostgreSQL: one database for all of them.

use std::collections::BTreeSet;

use crate::support::audits::{self, Backend, RIGHT, SCHEMA, Source, Totals, check, id, sql};
use crate::support::postgres::{connect, shared};
use keepcount::reconcile::{
    PostgresAudit, PostgresRows, Reconciler, Report, TokioRuntime, run_async,
};
use keepcount::{AsyncStore, Batch, CounterId, PostgresStore, PreparedStatements, Result};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Row, Statement};

struct Postgres<'a> {
    runtime: &'a Runtime,
    /// Of the application.
    client: Client,
    prepared: PreparedStatements,
    /// What asks for all totals.
    stored: Statement,
    audit: PostgresAudit<'a>,
    by_tally: bool,
    source: Source,
}

impl Postgres<'_> {
    fn execute(&self, statements: &str) {
        self.runtime.block_on(self.client.batch_execute(statements)).unwrap();
    }

    fn count_by(&mut self, source: Source) {
        for rows in sql::sources!(PostgresRows, try_get, self.by_tally, source) {
            self.runtime.block_on(self.audit.add(rows)).unwrap();
        }
        self.source = source;
    }
}

impl Backend for Postgres<'_> {
    fn begin(&mut self, pending: bool) {
        self.execute(&sql::empty(pending));
    }

    fn write(&mut self, rows: &[audits::Row]) {
        self.execute(&sql::insert(rows));
    }

    fn hook(&mut self, batch: &mut Batch) {
        let mut store = PostgresStore::new(&mut self.client, &SCHEMA).prepared(&self.prepared);
        self.runtime.block_on(store.apply(batch)).unwrap();
    }

    fn prune(&mut self, cutoff: i64) {
        let mut store = PostgresStore::new(&mut self.client, &SCHEMA);
        self.runtime.block_on(store.prune(audits::SETLIST_DAYS, cutoff)).unwrap();
    }

    fn plant(&mut self, counter: CounterId, key: &str, total: i64) {
        self.execute(&sql::plant(counter, key, total));
    }

    fn stored(&mut self) -> (Totals, BTreeSet<&'static str>) {
        let client = &self.client;
        let stored = async {
            tokio::try_join!(client.query(&self.stored, &[]), client.query(sql::UNREADY, &[]))
        };
        let (totals, unready) = self.runtime.block_on(stored).unwrap();
        let total = |row: &Row| ((id(row.get(0)).name(), row.get(1)), row.get::<_, i64>(2).into());
        (
            totals.iter().map(total).collect(),
            unready.iter().map(|row| id(row.get(0)).name()).collect(),
        )
    }

    fn run(&mut self, reconciler: &mut Reconciler, source: Source) -> Result<Report> {
        if self.source != source {
            self.count_by(source);
        }
        let mut runtime = TokioRuntime::new();
        self.runtime.block_on(run_async(reconciler, &mut self.audit, &mut runtime))
    }

    fn knows_parents(&self) -> bool {
        true
    }

    fn counts_by_sql(&self) -> bool {
        !self.by_tally
    }
}

fn check_on_postgres(by_tally: bool, name: &str) {
    let Some(server) = shared() else { return };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    // The order of texts is the bytes', whatever the database's is.
    let config = runtime.block_on(server.database_of_language("en-US"));
    let mut client = runtime.block_on(connect(&config));
    let of_audit = &mut runtime.block_on(connect(&config));
    let (stored, audit) = runtime.block_on(async {
        client.batch_execute(&sql::TABLES.replace("BYTES", r#"COLLATE "C""#)).await.unwrap();
        PostgresStore::new(&mut client, &SCHEMA).create().await.unwrap();
        let stored = client.prepare(&sql::stored()).await.unwrap();
        (stored, PostgresAudit::new(of_audit, &SCHEMA).await.unwrap())
    });
    let (prepared, source) = (PreparedStatements::new(), RIGHT);
    let mut postgres =
        Postgres { runtime: &runtime, client, prepared, stored, audit, by_tally, source };
    postgres.count_by(RIGHT);
    assert_eq!(postgres.audit.counters().len(), SCHEMA.counters().len());
    check(&mut postgres, name);
}

#[test]
fn cases_by_columns_match_the_naive_recount() {
    check_on_postgres(false, "PostgreSQL by columns");
}

#[test]
fn cases_by_tally_match_the_naive_recount() {
    check_on_postgres(true, "PostgreSQL by tally");
}
