//! Two processes repair all the time while sixteen connections write; they are killed and started
//! again. They never find drift if none is planted; if totals are damaged without hooks, all is
//! repaired in the end. A table shows the writers' latencies.
#![allow(clippy::disallowed_methods, clippy::similar_names)]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::support::full_test_name;
use crate::support::postgres::{connect, shared};
use crate::support::postgres_app::{
    SCHEMA, assert_exact, audit, changes, create, differences, hunt_duration, write,
};
use crate::support::random::Random;
use keepcount::reconcile::{Mode, Options, Reconciler, TokioRuntime, run_async};
use keepcount::{AsyncStore as _, Batch, PostgresStore, PreparedStatements};
use tokio_postgres::Config;

/// The database in which a child process of these tests repairs.
const CHILD: &str = "KEEPCOUNT_REPAIRS_AT";

/// Body of the child process: repairs until it is killed, and prints each run's drift and samples.
#[test]
fn a_child_repairs_until_it_is_killed() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(&url.parse().unwrap()).await;
        let mut audit = audit(&mut client).await.unwrap();
        loop {
            let options = Options::default().page(7).retries(20);
            let mut repair = Reconciler::new(Mode::Repair, &SCHEMA, options).unwrap();
            let report =
                run_async(&mut repair, &mut audit, &mut TokioRuntime::new()).await.unwrap();
            let drifts: Vec<String> = report
                .counters
                .iter()
                .flat_map(|counter| {
                    counter
                        .samples
                        .iter()
                        .map(move |sample| format!("{:?} {sample:?}", counter.counter))
                })
                .collect();
            println!("run {} {}", report.drift(), drifts.join("; "));
        }
    });
}

/// One process that repairs.
struct Repairs {
    child: Child,
    runs: Receiver<(u64, String)>,
}

impl Repairs {
    fn start(url: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                &full_test_name(module_path!(), "a_child_repairs_until_it_is_killed"),
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, runs) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Some(run) = line.strip_prefix("run ") else { continue };
                let (drift, text) = run.split_once(' ').unwrap();
                if sender.send((drift.parse().unwrap(), text.to_owned())).is_err() {
                    break;
                }
            }
        });
        Self { child, runs }
    }

    fn kill(mut self) -> Vec<(u64, String)> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.runs.iter().collect()
    }
}

impl Drop for Repairs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes until `until`. Returns how long each transaction took, from BEGIN to the answer to
/// COMMIT.
async fn writer(config: Config, seed: u64, until: Instant) -> Vec<Duration> {
    let mut client = connect(&config).await;
    let prepared = PreparedStatements::new();
    let (mut random, mut times) = (Random(seed), Vec::new());
    let number = i64::try_from(seed).unwrap();
    while Instant::now() < until {
        let changes = changes(&mut random, number);
        let begun = Instant::now();
        let tx = client.transaction().await.unwrap();
        let mut batch = Batch::new();
        for change in &changes {
            write(&tx, change, &mut batch).await.unwrap();
        }
        match PostgresStore::in_transaction(&tx, &SCHEMA)
            .prepared(&prepared)
            .apply(&mut batch)
            .await
        {
            Ok(_) => tx.commit().await.unwrap(),
            Err(error) => panic!("{error:?}"),
        }
        times.push(begun.elapsed());
        // A pause, so that writers wait for locks and not for the processor.
        tokio::time::sleep(Duration::from_millis(random.below(4))).await;
    }
    times
}

/// Damages a total without hooks every few milliseconds, and returns how many rows it changed.
async fn saboteur(config: Config, until: Instant) -> u64 {
    let client = connect(&config).await;
    let (mut random, mut planted) = (Random(5), 0);
    let tables = [
        "setlist_votes",
        "setlist_show",
        "show_setlists",
        "show_votes",
        "artist_votes",
        "show_artist",
    ];
    while Instant::now() < until {
        let table = tables[usize::try_from(random.below(6)).unwrap()];
        let key = if table == "setlist_show" || table == "show_artist" { "key_1" } else { "key" };
        let text = match random.below(3) {
            0 => format!("DELETE FROM {table} WHERE {key} = $1"),
            1 => format!("UPDATE {table} SET total = total + 3 WHERE {key} = $1"),
            _ if key == "key" => {
                format!("INSERT INTO {table} VALUES ($1 + 100, 5) ON CONFLICT DO NOTHING")
            }
            _ => format!("INSERT INTO {table} VALUES ($1 + 100, $1, 5) ON CONFLICT DO NOTHING"),
        };
        planted += client.execute(&text, &[&random.int(0, 50)]).await.unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    planted
}

/// What `load` measured.
struct Seen {
    times: Vec<Duration>,
    planted: u64,
    kills: u64,
    /// The drift of every run, and its samples.
    runs: Vec<(u64, String)>,
}

async fn load(config: &Config, url: Option<&str>, sabotage: bool, time: Duration) -> Seen {
    let until = Instant::now() + time;
    let writers: Vec<_> =
        (1..=16).map(|seed| tokio::spawn(writer(config.clone(), seed, until))).collect();
    let saboteur = sabotage.then(|| tokio::spawn(saboteur(config.clone(), until)));
    let mut repairs: Vec<Repairs> =
        url.into_iter().flat_map(|url| [Repairs::start(url), Repairs::start(url)]).collect();
    let (mut kills, mut runs, mut random) = (0, Vec::new(), Random(3));
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(300 + random.below(700))).await;
        if let Some(url) = url.filter(|_| Instant::now() < until) {
            let killed = repairs.swap_remove(usize::try_from(random.below(2)).unwrap());
            runs.extend(killed.kill());
            kills += 1;
            repairs.push(Repairs::start(url));
        }
    }
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.unwrap());
    }
    let planted = match saboteur {
        Some(saboteur) => saboteur.await.unwrap(),
        None => 0,
    };
    // The writers have ended. The repairs that run repair what is left.
    for repairs in &repairs {
        let before: Vec<_> = repairs.runs.try_iter().collect();
        runs.extend(before);
        let clean = (0..50).any(|_| {
            let run = repairs.runs.recv_timeout(Duration::from_secs(60)).unwrap();
            let clean = run.0 == 0;
            runs.push(run);
            clean
        });
        assert!(clean, "no repair ended clean: {:?}", runs.last());
    }
    runs.extend(repairs.into_iter().flat_map(Repairs::kill));
    times.sort_unstable();
    Seen { times, planted, kills, runs }
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_beside_sixteen_writers_find_only_planted_drift() {
    let Some(server) = shared() else { return };
    let config = server.database().await;
    let url = server.url(config.get_dbname().unwrap());
    let mut client = connect(&config).await;
    create(&mut client).await;
    println!(
        "| beside the writers | transactions | p50 | p99 | longest | runs | kills | planted |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, url, sabotage) in [
        ("nothing", None, false),
        ("two processes that repair", Some(url.as_str()), false),
        ("the same, and damage", Some(url.as_str()), true),
    ] {
        let seen = load(&config, url, sabotage, hunt_duration()).await;
        let times = &seen.times;
        println!(
            "| {name} | {} | {:.1?} | {:.1?} | {:.1?} | {} | {} | {} |",
            times.len(),
            percentile(times, 50),
            percentile(times, 99),
            percentile(times, 100),
            seen.runs.len(),
            seen.kills,
            seen.planted
        );
        assert_exact(&differences(&client).await);
        if url.is_some() {
            assert!(seen.runs.len() > 2, "some runs ended");
        }
        // Each page is compared in one snapshot, so all that a run finds is planted drift.
        let found: Vec<_> = seen.runs.iter().filter(|(drift, _)| *drift > 0).collect();
        assert_eq!(found.is_empty(), !sabotage, "{found:?}");
        assert_eq!(seen.planted > 0, sabotage);
    }
}
