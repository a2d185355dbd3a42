//! Measures what a vote costs in PostgreSQL with each way of counting: 16 connections, each vote in
//! its own transaction that waits for the disk, for one hot show and for 1,000 shows by Zipf's law.
//!
//! It starts a private server (tests/support/postgres), and is skipped if PostgreSQL is not
//! installed.
//!
//! Every way has prepared statements and one round trip a vote (except `Within`), and takes the
//! total's lock as late as it can.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;
#[cfg(unix)]
#[path = "../tests/support/postgres/mod.rs"]
mod servers;

#[cfg(unix)]
fn main() {
    postgres::main();
}

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod postgres {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use keepcount::{AsyncStore, Batch, Counter, PostgresStore, PreparedStatements, Schema};
    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::Mutex;
    use tokio::task::JoinSet;
    use tokio_postgres::types::ToSql;
    use tokio_postgres::{Client, Statement};

    use super::common::sides::{Side, interleaved_medians, print_table};
    use super::common::{Random, is_test_run};
    use super::servers::{DURABLE, Server, connect};

    const CONNECTIONS: u64 = 16;
    const SHOWS: u64 = 1_000;

    /// Each page has free room, so that totals are updated in place.
    const TABLES: &str = "
        CREATE TABLE votes (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, show_id BIGINT NOT NULL);
        CREATE INDEX votes_by_show ON votes (show_id);
        CREATE TABLE show_votes (key BIGINT PRIMARY KEY, total BIGINT NOT NULL) WITH (fillfactor = 50);
        INSERT INTO show_votes SELECT n, 0 FROM generate_series(0, 999) AS n;";
    const TRIGGER: &str = "
        CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO show_votes VALUES (NEW.show_id, 1) ON CONFLICT (key) DO UPDATE SET total = show_votes.total + 1;
            RETURN NULL;
        END $$;
        CREATE TRIGGER counted AFTER INSERT ON votes FOR EACH ROW EXECUTE FUNCTION counted();";
    const INSERT: &str = "INSERT INTO votes (show_id) VALUES ($1)";
    const UPDATE: &str = "UPDATE show_votes SET total = total + 1 WHERE key = $1";

    const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);

    /// What keeps the totals.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Keeper {
        /// Nothing: this measures the row alone.
        NoCounters,
        /// An UPDATE in the transaction, with all statements sent at once.
        Update,
        /// An UPDATE in the same statement.
        OneStatement,
        /// An AFTER INSERT trigger that upserts.
        Trigger,
        /// keepcount, with row and totals in one message.
        Write,
        /// keepcount in a transaction as most applications write it: four round trips.
        Within,
    }

    const KEEPERS: [(Keeper, &str); 6] = [
        (Keeper::NoCounters, "no counters"),
        (Keeper::Update, "UPDATE, pipelined"),
        (Keeper::OneStatement, "UPDATE in one statement"),
        (Keeper::Trigger, "trigger"),
        (Keeper::Write, "keepcount, write"),
        (Keeper::Within, "keepcount, within"),
    ];

    /// One connection that votes.
    struct Voter {
        client: Client,
        keeper: Keeper,
        insert: Statement,
        update: Statement,
        prepared: PreparedStatements,
    }

    impl Voter {
        async fn vote(&mut self, show: i64) {
            let Self { client, insert, update, prepared, .. } = self;
            let key: [&(dyn ToSql + Sync); 1] = [&show];
            let mut batch = Batch::new();
            batch.add(SHOW_VOTES, show, 1);
            if self.keeper == Keeper::Write {
                let rows: [(&str, &[&(dyn ToSql + Sync)]); 1] = [(INSERT, &key)];
                let (written, _) = PostgresStore::new(client, &SCHEMA)
                    .prepared(prepared)
                    .write(&rows, &mut batch)
                    .await
                    .unwrap();
                assert_eq!(written, [1]);
            } else if self.keeper == Keeper::Within {
                let tx = client.transaction().await.unwrap();
                assert_eq!(tx.execute(insert, &key).await.unwrap(), 1);
                PostgresStore::in_transaction(&tx, &SCHEMA)
                    .prepared(prepared)
                    .apply(&mut batch)
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            } else if self.keeper == Keeper::Update {
                // Sent in this order, before the first answer arrives.
                let (begun, inserted, updated, committed) = tokio::join!(
                    biased;
                    client.batch_execute("BEGIN"),
                    client.execute(insert, &key),
                    client.execute(update, &key),
                    client.batch_execute("COMMIT"),
                );
                begun.and(committed).unwrap();
                assert_eq!((inserted.unwrap(), updated.unwrap()), (1, 1));
            } else {
                assert_eq!(client.execute(insert, &key).await.unwrap(), 1);
            }
        }
    }

    /// A database of votes, with connections that stay open for the whole run.
    struct Site {
        keeper: Keeper,
        voters: Vec<Arc<Mutex<Voter>>>,
    }

    impl Site {
        async fn open(server: &Server, keeper: Keeper) -> Self {
            let database = server.database().await;
            let setup = connect(&database).await;
            setup.batch_execute(TABLES).await.unwrap();
            if keeper == Keeper::Trigger {
                setup.batch_execute(TRIGGER).await.unwrap();
            }
            let mut voters = Vec::new();
            for _ in 0..CONNECTIONS {
                let client = connect(&database).await;
                // The main statement inserts the row; the UPDATE in WITH runs after it.
                let one = format!("WITH counted AS ({UPDATE}) {INSERT}");
                let text = if keeper == Keeper::OneStatement { &one } else { INSERT };
                let (insert, update) =
                    (client.prepare(text).await.unwrap(), client.prepare(UPDATE).await.unwrap());
                let prepared = PreparedStatements::new();
                voters.push(Arc::new(Mutex::new(Voter {
                    client,
                    keeper,
                    insert,
                    update,
                    prepared,
                })));
            }
            Self { keeper, voters }
        }

        /// Every connection votes for its shows, one after the other.
        async fn round(&self, shows: Vec<Vec<i64>>) {
            let mut running = JoinSet::new();
            for (voter, shows) in self.voters.iter().cloned().zip(shows) {
                running.spawn(async move {
                    let mut voter = voter.lock().await;
                    for show in shows {
                        voter.vote(show).await;
                    }
                });
            }
            running.join_all().await;
        }

        /// Checks that totals equal their rows; without counters they must differ.
        async fn check(&self) {
            let voter = self.voters.first().unwrap().lock().await;
            let query = "SELECT count(*) FROM show_votes LEFT JOIN (SELECT show_id, count(*) AS votes FROM votes GROUP BY 1) AS rows
                       ON show_id = key WHERE total <> coalesce(votes, 0)";
            let differing: i64 = voter.client.query_one(query, &[]).await.unwrap().get(0);
            assert_eq!(
                differing > 0,
                self.keeper == Keeper::NoCounters,
                "{:?}: {differing} shows differ",
                self.keeper
            );
        }
    }

    /// Show `n` has a share in proportion to 1 / (n + 1).
    struct Zipf(Vec<f64>);

    impl Zipf {
        #[allow(clippy::cast_precision_loss)]
        fn new(shows: u64) -> Self {
            let shares = (1..=shows).map(|rank| 1.0 / rank as f64);
            Self(
                shares
                    .scan(0.0, |sum, share| {
                        *sum += share;
                        Some(*sum)
                    })
                    .collect(),
            )
        }

        #[allow(clippy::cast_precision_loss)]
        fn show(&self, random: &mut Random) -> i64 {
            let whole = self.0.last().copied().unwrap_or_default();
            let at = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 * whole;
            i64::try_from(self.0.partition_point(|sum| *sum <= at)).unwrap()
        }
    }

    #[allow(clippy::disallowed_methods)]
    fn time_round(
        runtime: &Runtime,
        site: &Site,
        zipf: &Zipf,
        random: &mut Random,
        votes: u64,
    ) -> Duration {
        let shows: Vec<Vec<i64>> =
            (0..CONNECTIONS).map(|_| (0..votes).map(|_| zipf.show(random)).collect()).collect();
        let begun = Instant::now();
        runtime.block_on(site.round(shows));
        begun.elapsed()
    }

    pub fn main() {
        let settings = [
            DURABLE,
            &[("shared_buffers", "256MB"), ("max_wal_size", "4GB"), ("checkpoint_timeout", "1h")],
        ];
        let Some(server) = Server::with(&settings.concat()) else { return };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (times, votes) = if is_test_run() { (1, 5) } else { (9, 100) };
        for (what, shows) in [("one hot show", 1), ("1,000 shows by Zipf", SHOWS)] {
            let opened =
                KEEPERS.map(|(keeper, name)| (name, runtime.block_on(Site::open(&server, keeper))));
            let zipf = Zipf::new(shows);
            let side = |(name, site)| {
                let (runtime, zipf, mut random) = (&runtime, &zipf, Random(7));
                let run = move || time_round(runtime, site, zipf, &mut random, votes);
                Side { name, operations: CONNECTIONS * votes, run: Box::new(run) }
            };
            let mut sides: Vec<Side<'_>> =
                opened.iter().map(|(name, site)| side((*name, site))).collect();
            let medians = interleaved_medians(times, &mut sides);
            print_table(
                &format!("PostgreSQL, {CONNECTIONS} connections, {what}: a vote"),
                &sides,
                &medians,
            );
            for (_, site) in &opened {
                runtime.block_on(site.check());
            }
        }
    }
}
