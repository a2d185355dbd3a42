//! keepcount over sqlx, on both databases: the conformance suite, the cases of audits, what a schema
//! goes through from its first release on, and what an application may do wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use keepcount::{Leaderboard, Record, Tally};

keepcount::counters! {
    pub LIFE { pub SHOW_VOTES: i64 = "show.votes"; pub prunable SHOW_DAYS: (i64, i64) = "show.days"; }
    leaderboards [TOP]
}
pub const TOP: Leaderboard<i64> =
    Leaderboard::new("show.top", [SHOW_VOTES]).by(|[votes]| (votes > 0).then_some(votes));
/// A later release.
pub const LATER: keepcount::Schema =
    keepcount::Schema::new(&[SHOW_VOTES.table()]).leaderboards(&[TOP.id()]);

pub struct Vote {
    pub show: i64,
    pub day: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
        to.add(SHOW_DAYS, (self.show, self.day), 1);
    }
}

const TABLES: &str = "
    CREATE TABLE votes (show_id BIGINT NOT NULL, day BIGINT NOT NULL);
    CREATE INDEX votes_by_show ON votes (show_id, day);
";

/// The tests of a database: its types, and how a test gets connections to a database of its own.
macro_rules! tests {
    ($library:ty, $Store:ident, $Audit:ident, $Rows:ident, $database:ident) => {
        use std::collections::BTreeSet;

        use keepcount::conformance::{self, Case};
        use keepcount::reconcile::{
            Columns, Reconciler, Report, TokioRuntime, backfill, repair, run_async, verify,
        };
        use keepcount::{AsyncStore as _, Batch, CounterId, Error, Result, StreamRange, Sweep};
        use keepcount_sqlx::Library as _;
        use sqlx::{Connection as _, Row as _};
        use tokio::runtime::{Builder, Runtime};

        use crate::support::audits::{self, Backend, RIGHT, SCHEMA, Source, Totals, check, id, sql};
        use crate::{LATER, LIFE, SHOW_DAYS, SHOW_VOTES, TABLES, TOP, Vote};

        type Connection = <$library as sqlx::Database>::Connection;

        async fn run(conn: &mut Connection, script: &str) {
            <$library>::run(conn, script).await.unwrap();
        }

        pub fn block_on(work: impl Future<Output = ()>) {
            Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work);
        }

        mod over_a_connection {
            use super::*;

            fn each(case: &Case) {
                block_on(async {
                    let Some(database) = $database().await else { return };
                    let mut conn = database.connect().await;
                    let mut store = $Store::new(&mut conn, &conformance::SCHEMA);
                    store.create().await.unwrap();
                    run_case(case, &mut store).await;
                });
            }

            keepcount::conformance_tests!(each each);
        }

        struct OnSqlx<'a> {
            runtime: &'a Runtime,
            /// Of the application.
            conn: Connection,
            audit: $Audit<'a>,
            by_tally: bool,
            source: Source,
        }

        impl OnSqlx<'_> {
            fn execute(&mut self, statements: &str) {
                self.runtime.block_on(run(&mut self.conn, statements));
            }

            fn count_by(&mut self, source: Source) {
                for rows in sql::sources!($Rows, try_get, self.by_tally, source) {
                    self.runtime.block_on(self.audit.add(rows)).unwrap();
                }
                self.source = source;
            }
        }

        impl Backend for OnSqlx<'_> {
            fn begin(&mut self, pending: bool) {
                self.execute(&sql::empty(pending));
            }

            fn write(&mut self, rows: &[audits::Row]) {
                self.execute(&sql::insert(rows));
            }

            fn hook(&mut self, batch: &mut Batch) {
                let mut store = $Store::new(&mut self.conn, &SCHEMA);
                self.runtime.block_on(store.apply(batch)).unwrap();
            }

            fn prune(&mut self, cutoff: i64) {
                let mut store = $Store::new(&mut self.conn, &SCHEMA);
                self.runtime.block_on(store.prune(audits::SETLIST_DAYS, cutoff)).unwrap();
            }

            fn plant(&mut self, counter: CounterId, key: &str, total: i64) {
                self.execute(&sql::plant(counter, key, total));
            }

            fn stored(&mut self) -> (Totals, BTreeSet<&'static str>) {
                let conn = &mut self.conn;
                self.runtime.block_on(async {
                    let totals = sqlx::raw_sql(sqlx::AssertSqlSafe(sql::stored()));
                    let totals = totals.fetch_all(&mut *conn).await.unwrap();
                    let unready = sqlx::raw_sql(sql::UNREADY).fetch_all(conn).await.unwrap();
                    let name = |row: &<$library as sqlx::Database>::Row| {
                        id(&row.get::<String, _>(0)).name()
                    };
                    let total = |row| ((name(row), row.get(1)), row.get::<i64, _>(2).into());
                    (totals.iter().map(total).collect(), unready.iter().map(name).collect())
                })
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

        fn check_audits(by_tally: bool, name: &str) {
            let runtime = &Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let Some(database) = runtime.block_on($database()) else { return };
            let mut conn = runtime.block_on(database.connect());
            let of_audit = &mut runtime.block_on(database.connect());
            let audit = runtime.block_on(async {
                run(&mut conn, &sql::TABLES.replace("BYTES", COLLATION)).await;
                $Store::new(&mut conn, &SCHEMA).create().await.unwrap();
                $Audit::new(of_audit, &SCHEMA).await.unwrap()
            });
            let mut backend = OnSqlx { runtime, conn, audit, by_tally, source: RIGHT };
            backend.count_by(RIGHT);
            assert_eq!(backend.audit.counters().len(), SCHEMA.counters().len());
            check(&mut backend, name);
        }

        #[test]
        fn cases_by_columns_match_the_naive_recount() {
            check_audits(false, "by columns");
        }

        #[test]
        fn cases_by_tally_match_the_naive_recount() {
            check_audits(true, "by tally");
        }

        fn votes() -> $Rows {
            let read = |row: &<$library as sqlx::Database>::Row| {
                Ok(Vote { show: row.try_get("show_id")?, day: row.try_get("day")? })
            };
            $Rows::of("votes", read)
                .key(SHOW_VOTES, Columns::of(["show_id"]).count())
                .key(SHOW_DAYS, ["show_id", "day"])
        }

        async fn insert(conn: &mut Connection, vote: &Vote) {
            let insert = sqlx::query("INSERT INTO votes (show_id, day) VALUES ($1, $2)");
            insert.bind(vote.show).bind(vote.day).execute(conn).await.unwrap();
        }

        #[test]
        fn schema_over_existing_rows_is_backfilled_read_ranked_pruned_repaired_and_dropped() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let (mut conn, mut of_audit) = (database.connect().await, database.connect().await);
                run(&mut conn, TABLES).await;
                for vote in [Vote { show: 7, day: 1 }, Vote { show: 7, day: 2 }, Vote { show: 8, day: 2 }]
                {
                    insert(&mut conn, &vote).await;
                }
                let mut store = $Store::new(&mut conn, &LIFE);
                let absent = store.check().await.unwrap_err();
                assert!(matches!(absent, Error::SchemaMismatch { .. }), "{absent}");
                store.create_pending_backfill().await.unwrap();
                assert_eq!(store.unready().await.unwrap(), [SHOW_DAYS.id(), SHOW_VOTES.id()]);
                assert!(!store.is_ready(SHOW_VOTES).await.unwrap());
                let unready = store.total(SHOW_VOTES, 7).await.unwrap_err();
                assert!(matches!(unready, Error::NotReady { .. }), "{unready}");

                let mut audit = $Audit::new(&mut of_audit, &LIFE).await.unwrap();
                audit.add(votes()).await.unwrap();
                let report = backfill(&LIFE).run_async(&mut audit).await.unwrap();
                assert!(report.complete(), "{report}");
                assert_eq!(store.totals_of(SHOW_VOTES, [7, 8, 9]).await.unwrap(), [2, 1, 0]);
                assert_eq!(store.sum(SHOW_DAYS.suffixes(7, 2..)).await.unwrap(), 1);
                assert_eq!(store.rebuild(TOP).await.unwrap(), 0, "a hook of the backfill listed them");
                let top = store.top(TOP, 10).await.unwrap();
                assert_eq!(top.iter().map(|line| (line.key, line.score)).collect::<Vec<_>>(), [(7, 2), (8, 1)]);
                assert_eq!(store.rank(TOP, 8).await.unwrap().rank, 2);
                assert_eq!(store.listed(TOP).await.unwrap(), 2);

                let mut batch = Batch::new();
                batch.add(SHOW_VOTES, 9, 5);
                let range = StreamRange::new("s", 1, 3).unwrap();
                store.apply_idempotent(&mut batch, &range).await.unwrap();
                assert_eq!(store.offsets(None, 9).await.unwrap(), [("s".to_owned(), 3)]);
                assert_eq!(store.forget_offset("s").await.unwrap(), 3);
                // Nobody wrote votes of show 9.
                let report = verify(&LIFE).run_async(&mut audit).await.unwrap();
                assert_eq!((report.complete(), report.drift()), (true, 1), "{report}");
                let report = repair(&LIFE).key(SHOW_VOTES, 9).run_async(&mut audit).await.unwrap();
                assert_eq!(report.counters[0].corrected, 1);
                assert_eq!(verify(&LIFE).run_async(&mut audit).await.unwrap().drift(), 0);
                assert!(audit.faulty_rows(SHOW_VOTES.id(), 9).await.unwrap().is_empty());

                assert_eq!(store.prune(SHOW_DAYS, 2).await.unwrap(), 1);
                batch.add(SHOW_VOTES, 8, -1);
                store.apply(&mut batch).await.unwrap();
                let (mut sweep, mut removed) = (Sweep::new(), 0);
                // In PostgreSQL a total stays while another test reads.
                for _ in 0..600 {
                    removed += store.sweep(&mut sweep).await.unwrap().totals;
                    if removed > 0 {
                        break;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                assert_eq!(removed, 1);
                store.check().await.unwrap();

                let mut store = $Store::new(&mut conn, &LATER);
                store.create().await.unwrap();
                assert_eq!(store.orphaned().await.unwrap(), ["show.days"]);
                store.drop_counter("show.days").await.unwrap();
                assert!(store.orphaned().await.unwrap().is_empty());
            });
        }

        #[test]
        fn batch_that_fails_in_a_transaction_is_not_committed_with_it() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let mut conn = database.connect().await;
                run(&mut conn, TABLES).await;
                $Store::new(&mut conn, &LIFE).create().await.unwrap();
                for (fails, rows) in [(false, 1), (true, 1 + i64::from(HAS_SAVEPOINTS))] {
                    let mut tx = conn.begin().await.unwrap();
                    insert(&mut tx, &Vote { show: 7, day: 1 }).await;
                    let mut batch = Batch::new();
                    batch.add(SHOW_VOTES, 7, 1);
                    batch.add(SHOW_VOTES, 8, if fails { i64::MAX } else { 1 });
                    let done = $Store::new(&mut tx, &LIFE).apply(&mut batch).await;
                    match done {
                        Err(Error::Overflow { counter: "show.votes", .. }) if fails => {}
                        done => assert!(!fails && done.is_ok(), "{done:?}"),
                    }
                    let _ = tx.commit().await;
                    let found: i64 =
                        sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&mut conn).await.unwrap();
                    assert_eq!(found, rows);
                    let totals = $Store::new(&mut conn, &LIFE).totals_of(SHOW_VOTES, [7, 8]).await;
                    assert_eq!(totals.unwrap(), [1, 1]);
                }
            });
        }

        #[test]
        fn what_a_connection_is_not_fit_for_is_refused_with_a_reason() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let mut conn = database.connect().await;
                run(&mut conn, TABLES).await;
                $Store::new(&mut conn, &LIFE).create().await.unwrap();
                {
                    let mut tx = conn.begin().await.unwrap();
                    let refused = $Audit::new(&mut tx, &LIFE).await.unwrap_err();
                    assert!(matches!(refused, Error::InvalidUse { what: "connection", .. }), "{refused}");
                }
                // A transaction that sqlx does not know of.
                run(&mut conn, "BEGIN").await;
                let refused = $Audit::new(&mut conn, &LIFE).await.unwrap_err();
                assert!(matches!(refused, Error::InvalidUse { what: "connection", .. }), "{refused}");
                run(&mut conn, "ROLLBACK").await;
                let mut audit = $Audit::new(&mut conn, &LIFE).await.unwrap();
                let refused = audit.add($Rows::of("nowhere", |_| Ok(Vote { show: 1, day: 1 })).key(SHOW_VOTES, ["k"]));
                let refused = refused.await.unwrap_err();
                assert!(refused.to_string().contains("nowhere"), "{refused}");
                drop(audit);
                run(&mut conn, "DROP TABLE show_votes").await;
                let mut batch = Batch::new();
                batch.add(SHOW_VOTES, 7, 1);
                let refused = $Store::new(&mut conn, &LIFE).apply(&mut batch).await.unwrap_err();
                assert!(matches!(&refused, Error::SchemaMismatch { table, .. } if table == "show_votes"), "{refused:?}");
            });
        }

        /// Events are applied once, whatever the point is at which a future is dropped, if what was
        /// dropped is delivered again.
        #[test]
        fn dropped_futures_leave_the_connection_fit_for_the_next_call() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let mut conn = database.connect().await;
                $Store::new(&mut conn, &LIFE).create().await.unwrap();
                for event in 1..=60_u64 {
                    let range = StreamRange::new("s", event, event).unwrap();
                    let mut batch = Batch::new();
                    batch.add(SHOW_VOTES, 7, 1);
                    let mut store = $Store::new(&mut conn, &LIFE);
                    {
                        let mut apply = std::pin::pin!(store.apply_idempotent(&mut batch, &range));
                        for _ in 0..event / 2 {
                            let polled = std::future::poll_fn(|context| {
                                std::task::Poll::Ready(apply.as_mut().poll(context).is_ready())
                            });
                            if polled.await {
                                break;
                            }
                            tokio::time::sleep(std::time::Duration::from_micros(200 * (event % 3))).await;
                        }
                    }
                    let mut again = Batch::new();
                    again.add(SHOW_VOTES, 7, 1);
                    store.apply_idempotent(&mut again, &range).await.unwrap();
                    assert_eq!(store.total(SHOW_VOTES, 7).await.unwrap().unsigned_abs(), event);
                }
                assert_eq!($Store::new(&mut conn, &LIFE).total(SHOW_VOTES, 7).await.unwrap(), 60);
                assert!(!conn.is_in_transaction());
            });
        }

        #[test]
        fn transaction_in_which_a_future_was_dropped_can_be_rolled_back_at_any_point() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let mut conn = database.connect().await;
                run(&mut conn, TABLES).await;
                $Store::new(&mut conn, &LIFE).create().await.unwrap();
                for polls in 0..40_u64 {
                    let mut tx = conn.begin_with(BEGIN).await.unwrap();
                    insert(&mut tx, &Vote { show: 7, day: 1 }).await;
                    let mut batch = Batch::new();
                    batch.add(SHOW_VOTES, 7, 1);
                    batch.add(SHOW_DAYS, (7, 1), 1);
                    {
                        let mut store = $Store::new(&mut tx, &LIFE);
                        let mut apply = std::pin::pin!(store.apply(&mut batch));
                        for _ in 0..polls / 3 {
                            let polled = std::future::poll_fn(|context| {
                                std::task::Poll::Ready(apply.as_mut().poll(context).is_ready())
                            });
                            if polled.await {
                                break;
                            }
                            let pause = std::time::Duration::from_micros(150 * (polls % 3));
                            tokio::time::sleep(pause).await;
                        }
                    }
                    tx.rollback().await.unwrap();
                    assert!(!conn.is_in_transaction(), "{polls}");
                    let mut store = $Store::new(&mut conn, &LIFE);
                    assert_eq!(store.total(SHOW_VOTES, 7).await.unwrap(), 0, "{polls}");
                    let rows: i64 =
                        sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&mut conn).await.unwrap();
                    assert_eq!(rows, 0, "{polls}");
                }
            });
        }

        #[test]
        fn totals_that_are_spoilt_under_writers_are_repaired() {
            block_on(async {
                let Some(database) = $database().await else { return };
                let (mut conn, mut of_audit) = (database.connect().await, database.connect().await);
                run(&mut conn, TABLES).await;
                $Store::new(&mut conn, &LIFE).create().await.unwrap();
                let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let mut writers = tokio::task::JoinSet::new();
                for writer in 0..WRITERS {
                    let (mut conn, stop) = (database.connect().await, stop.clone());
                    writers.spawn(async move {
                        let mut written = 0;
                        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                            let vote = Vote { show: (writer + written) % 5, day: written % 3 };
                            let mut tx = conn.begin_with(BEGIN).await.unwrap();
                            insert(&mut tx, &vote).await;
                            let mut batch = Batch::new();
                            batch.insert(&vote);
                            $Store::new(&mut tx, &LIFE).apply(&mut batch).await.unwrap();
                            tx.commit().await.unwrap();
                            written += 1;
                        }
                        written
                    });
                }
                let mut audit = $Audit::new(&mut of_audit, &LIFE).await.unwrap();
                audit.add(votes()).await.unwrap();
                let (mut spoilt, mut repaired) = (0, 0);
                for round in 0..10 {
                    let spoil = format!("UPDATE show_votes SET total = total + 3 WHERE key = {}", round % 5);
                    spoilt += <$library>::execute(&mut conn, &spoil, Default::default(), false).await.unwrap();
                    let report = repair(&LIFE).run_async(&mut audit).await.unwrap();
                    assert!(report.complete(), "{report}");
                    repaired += report.counters.iter().map(|counter| counter.corrected).sum::<u64>();
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                let written: i64 = writers.join_all().await.into_iter().sum();
                assert_eq!(repaired, spoilt);
                let report = verify(&LIFE).run_async(&mut audit).await.unwrap();
                assert_eq!((report.complete(), report.drift()), (true, 0), "{report}");
                let totals = $Store::new(&mut conn, &LIFE).totals_of(SHOW_VOTES, 0..5).await.unwrap();
                assert_eq!(totals.iter().sum::<i64>(), written);
                assert!(written > WRITERS);
            });
        }
    };
}

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
