//! Measures verifying totals in PostgreSQL, 10 million votes over 100,000 shows: by pages, by two
//! parts in parallel, by one GROUP BY with and without parallel workers, and by a COUNT for each
//! show, as the replaced jobs did.
//!
//! It starts a private server (tests/support/postgres), and is skipped if PostgreSQL is not
//! installed.

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod common;
#[cfg(unix)]
#[path = "../tests/support/postgres/mod.rs"]
mod servers;

#[cfg(unix)]
fn main() {
    verify::main();
}

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod verify {
    use std::time::{Duration, Instant};

    use keepcount::reconcile::{
        Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, Report, TokioRuntime,
        run_async,
    };
    use keepcount::{Counter, KeyBuf, PostgresStore, Record, Schema, Tally};
    use tokio::runtime::{Builder, Runtime};
    use tokio_postgres::Client;

    use super::common::is_test_run;
    use super::common::sides::{Side, interleaved_medians, print_table};
    use super::servers::{Server, connect};

    const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);

    struct Vote(i64);

    impl Record for Vote {
        fn tally(&self, to: &mut Tally<'_>) {
            to.add(SHOW_VOTES, self.0, 1);
        }
    }

    /// Verifies the shows behind the first key up to the second; without them, all shows.
    async fn verify(client: &mut Client, part: [Option<i64>; 2]) -> Report {
        let mut audit = PostgresAudit::new(client, &SCHEMA).await.unwrap();
        let votes = PostgresRows::of("votes", |row| Ok(Vote(row.try_get(0)?))).columns("show_id");
        audit.add(votes.key(SHOW_VOTES, Columns::of(["show_id"]).count())).await.unwrap();
        let options = Options::default();
        let [after, until] = part.map(|key| key.map(KeyBuf::of::<i64>));
        let id = SHOW_VOTES.id();
        let mut run =
            Reconciler::part(Mode::Verify, &SCHEMA, id, after.as_ref(), until.as_ref(), options)
                .unwrap();
        run_async(&mut run, &mut audit, &mut TokioRuntime::new()).await.unwrap()
    }

    fn keys_compared(reports: &[Report]) -> u64 {
        reports.iter().flat_map(|report| &report.counters).map(|counter| counter.keys).sum()
    }

    /// Returns the number of shows with votes. It counts by the fastest plan, which reads the index
    /// alone; the planner would choose a hash table, which misses the caches for each row.
    async fn group_by(client: &Client, workers: u32) -> i64 {
        let settings = format!(
            "SET enable_hashagg = off; SET jit = off; SET max_parallel_workers_per_gather = {workers}"
        );
        client.batch_execute(&settings).await.unwrap();
        let text =
            "SELECT count(*) FROM (SELECT show_id, count(*) FROM votes GROUP BY show_id) AS shows";
        client.query_one(text, &[]).await.unwrap().get(0)
    }

    async fn count_each_show(client: &Client, shows: i64) -> i64 {
        let count = client.prepare("SELECT count(*) FROM votes WHERE show_id = $1").await.unwrap();
        let mut votes = 0;
        for show in 0..shows {
            votes += client.query_one(&count, &[&show]).await.unwrap().get::<_, i64>(0);
        }
        votes
    }

    async fn fill(client: &mut Client, votes: i64, shows: i64) {
        client
            .batch_execute(
                "CREATE TABLE votes (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, show_id BIGINT NOT NULL)",
            )
            .await
            .unwrap();
        PostgresStore::new(client, &SCHEMA).create().await.unwrap();
        let text = "INSERT INTO votes (show_id) SELECT hashint8(n)::bigint & 2147483647 FROM generate_series(1, $1::bigint) AS n";
        let text = text.replace(
            "hashint8(n)::bigint & 2147483647",
            &format!("(hashint8(n)::bigint & 2147483647) % {shows}"),
        );
        client.execute(&text, &[&votes]).await.unwrap();
        client
            .batch_execute(
                "CREATE INDEX votes_by_show ON votes (show_id);
                 INSERT INTO show_votes SELECT show_id, count(*) FROM votes GROUP BY show_id ORDER BY show_id",
            )
            .await
            .unwrap();
        client.batch_execute("VACUUM ANALYZE").await.unwrap();
    }

    /// Returns the peak memory of this process; 0 if it is unknown.
    fn peak_memory_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    #[allow(clippy::disallowed_methods)]
    fn timed<T>(runtime: &Runtime, work: impl Future<Output = T>) -> (Duration, T) {
        let begun = Instant::now();
        let done = runtime.block_on(work);
        (begun.elapsed(), done)
    }

    pub fn main() {
        let settings = [
            ("shared_buffers", "1GB"),
            ("max_wal_size", "8GB"),
            ("work_mem", "64MB"),
            ("autovacuum", "off"),
        ];
        let Some(server) = Server::with(&settings) else { return };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (times, votes, shows) =
            if is_test_run() { (1, 20_000, 200) } else { (5, 10_000_000, 100_000) };
        let database = runtime.block_on(server.database());
        let mut one = runtime.block_on(connect(&database));
        let (mut two, mut three) =
            (runtime.block_on(connect(&database)), runtime.block_on(connect(&database)));
        let peer = runtime.block_on(connect(&database));
        runtime.block_on(fill(&mut one, votes, shows));
        let whole = u64::try_from(shows).unwrap();
        let before = peak_memory_kib();
        let operations = u64::try_from(votes).unwrap();
        let all = runtime.block_on(verify(&mut one, [None, None]));
        println!(
            "memory of the process for the first verify: {} KiB more than before",
            peak_memory_kib() - before
        );
        assert_eq!((keys_compared(&[all]), count_shows(&runtime, &peer)), (whole, shows));
        let mut sides = [
            Side {
                name: "GROUP BY, not parallel",
                operations,
                run: Box::new(|| timed(&runtime, group_by(&peer, 0)).0),
            },
            Side {
                name: "GROUP BY, parallel",
                operations,
                run: Box::new(|| timed(&runtime, group_by(&peer, 2)).0),
            },
            Side {
                name: "keepcount",
                operations,
                run: Box::new(|| {
                    let (time, report) = timed(&runtime, verify(&mut one, [None, None]));
                    assert_eq!(
                        (keys_compared(std::slice::from_ref(&report)), report.drift()),
                        (whole, 0)
                    );
                    time
                }),
            },
            Side {
                name: "keepcount, two parts at once",
                operations,
                run: Box::new(|| {
                    let middle = Some(shows / 2 - 1);
                    let parts = async {
                        tokio::join!(
                            verify(&mut two, [None, middle]),
                            verify(&mut three, [middle, None])
                        )
                    };
                    let (time, (one, other)) = timed(&runtime, parts);
                    assert_eq!(keys_compared(&[one, other]), whole);
                    time
                }),
            },
            Side {
                name: "a COUNT for each show",
                operations,
                run: Box::new(|| {
                    let (time, counted) = timed(&runtime, count_each_show(&peer, shows));
                    assert_eq!(counted, votes);
                    time
                }),
            },
        ];
        let medians = interleaved_medians(times, &mut sides);
        print_table(
            &format!("PostgreSQL, {votes} votes over {shows} shows verified: a vote"),
            &sides,
            &medians,
        );
    }

    fn count_shows(runtime: &Runtime, peer: &Client) -> i64 {
        runtime.block_on(group_by(peer, 0))
    }
}
