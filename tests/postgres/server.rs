//! Tests of the harness `support::postgres`: its servers start, stop, crash and replicate,
//! databases are separate, and nothing is left of a server whose process is gone.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use crate::support::full_test_name;
use crate::support::postgres::{DURABLE, Server, connect, shared, wait_until};
use tokio_postgres::{Client, Config, NoTls};

/// Tells a child process of these tests what to do.
const CHILD: &str = "KEEPCOUNT_SERVER_CHILD";

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM votes", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn databases_of_two_tests_are_separate() {
    let Some(server) = shared() else { return };
    let (one, other) = (server.database().await, server.database().await);
    let (one, other) = (connect(&one).await, connect(&other).await);
    one.batch_execute("CREATE TABLE votes (show BIGINT); INSERT INTO votes VALUES (7)")
        .await
        .unwrap();
    assert!(other.query("SELECT * FROM votes", &[]).await.is_err());
    other.batch_execute("CREATE TABLE votes (show BIGINT)").await.unwrap();
    assert_eq!((count(&one).await, count(&other).await), (1, 0));
}

#[tokio::test]
async fn a_database_sorts_by_bytes_or_as_a_language() {
    let Some(server) = shared() else { return };
    for (database, by_bytes) in
        [(server.database().await, true), (server.database_of_language("en-US").await, false)]
    {
        let client = connect(&database).await;
        let row = client.query_one(
            "SELECT 'B' < 'a', 'B' < 'a' COLLATE \"C\", current_setting('server_encoding')",
            &[],
        );
        let row = row.await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (by_bytes, true), "{database:?}");
        assert_eq!(row.get::<_, &str>(2), "UTF8");
    }
}

#[tokio::test]
async fn network_connection_needs_the_password() {
    let Some(server) = shared() else { return };
    let mut network: Config = server.url("postgres").parse().unwrap();
    let client = connect(&network).await;
    assert_eq!(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
    assert!(network.password("wrong").connect(NoTls).await.is_err());
}

#[tokio::test]
async fn server_has_the_settings_of_the_caller() {
    let Some(server) = Server::with(&[("max_connections", "17"), ("search_path", "it's, public")])
    else {
        return;
    };
    let client = connect(&server.config("postgres")).await;
    for (name, value) in
        [("max_connections", "17"), ("fsync", "off"), ("search_path", "it's, public")]
    {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{name}");
    }
}

#[test]
fn server_that_does_not_start_reports_the_reason() {
    if shared().is_none() {
        return;
    }
    let failed = thread::spawn(|| Server::with(&[("max_connections", "many")])).join().unwrap_err();
    let why = failed.downcast_ref::<String>().unwrap();
    assert!(why.starts_with("start failed:") && why.contains("max_connections"), "{why}");
}

#[tokio::test]
async fn crash_keeps_only_committed_rows() {
    let Some(mut server) = Server::with(DURABLE) else { return };
    let database = server.database().await;
    let client = connect(&database).await;
    assert_eq!(client.query_one("SHOW fsync", &[]).await.unwrap().get::<_, &str>(0), "on");
    client
        .batch_execute("CREATE TABLE votes (show BIGINT); INSERT INTO votes VALUES (7), (8)")
        .await
        .unwrap();
    client.batch_execute("BEGIN; INSERT INTO votes VALUES (9)").await.unwrap();
    server.crash();
    assert!(client.query("SELECT 1", &[]).await.is_err());
    assert!(database.connect(NoTls).await.is_err());
    server.start();
    assert_eq!(count(&connect(&database).await).await, 2);
    let log = std::fs::read_to_string(server.folder().join("log")).unwrap();
    assert!(log.contains("was not properly shut down"), "{log}");
    server.stop();
    server.start();
    assert_eq!(count(&connect(&database).await).await, 2);
}

#[tokio::test]
async fn a_replica_follows_pauses_and_refuses_writes() {
    let Some(server) = Server::new() else { return };
    let database = server.database().await;
    let client = connect(&database).await;
    let replica = server.replica();
    client
        .batch_execute("CREATE TABLE votes (show BIGINT); INSERT INTO votes VALUES (7)")
        .await
        .unwrap();
    replica.wait_until_caught_up().await;
    let reader = connect(&replica.server.config(database.get_dbname().unwrap())).await;
    assert_eq!(count(&reader).await, 1);
    assert!(reader.batch_execute("INSERT INTO votes VALUES (8)").await.is_err());
    replica.pause().await;
    client.batch_execute("INSERT INTO votes VALUES (8)").await.unwrap();
    // The replica has received the change, and does not replay it.
    let written: String =
        client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
    wait_until(&reader, &format!("SELECT pg_last_wal_receive_lsn() >= '{written}'")).await;
    assert_eq!(count(&reader).await, 1);
    replica.resume().await;
    replica.wait_until_caught_up().await;
    assert_eq!(count(&reader).await, 2);
}

/// The traces of a running server.
struct Traces {
    folder: PathBuf,
    pid: u32,
    address: String,
}

impl Traces {
    fn of(server: &Server) -> Self {
        let url = server.url("");
        let address = url.split(['@', '/']).nth(3).unwrap().to_owned();
        Self { folder: server.folder().to_owned(), pid: server.pid(), address }
    }

    #[track_caller]
    fn assert_there(&self) {
        assert!(
            self.folder.join("data").is_dir()
                && is_running(self.pid)
                && TcpStream::connect(&self.address).is_ok()
        );
    }

    /// The folder is removed last. PostgreSQL notices by itself that its folder is gone, but only
    /// once a minute: the process must have ended before that.
    #[track_caller]
    fn assert_gone(&self) {
        assert_within(Duration::from_secs(60), "the folder still exists", || !self.folder.exists());
        assert_within(Duration::from_secs(10), "the process still runs", || !is_running(self.pid));
        assert!(TcpStream::connect(&self.address).is_err());
    }
}

#[track_caller]
#[allow(clippy::disallowed_methods)]
fn assert_within(time: Duration, otherwise: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < time, "{otherwise}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_running(pid: u32) -> bool {
    let asked = Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status();
    // A zombie does not count as running.
    let about = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    asked.unwrap().success() && !about.contains(") Z ")
}

#[test]
fn dropped_server_leaves_nothing_behind() {
    let Some(server) = Server::new() else { return };
    let traces = Traces::of(&server);
    traces.assert_there();
    let panicked = thread::spawn(move || {
        let _server = server;
        panic!("like a failing test");
    });
    panicked.join().unwrap_err();
    assert!(!traces.folder.exists());
    traces.assert_gone();
}

/// Body of the child process: a shared server, one of its own, and a session that is busy.
#[tokio::test]
async fn a_child_with_servers() {
    let Ok(what) = env::var(CHILD) else { return };
    let Some(server) = shared() else { return };
    let own = Server::with(DURABLE).unwrap();
    for server in [server, &own] {
        let Traces { folder, pid, address } = Traces::of(server);
        println!("\ntraces {} {pid} {address}", folder.display());
    }
    let client = connect(&server.config("postgres")).await;
    let busy = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(600)").await });
    if what == "killed" {
        println!("\nready");
        busy.await.unwrap().unwrap();
    }
    // Otherwise the child ends as every test binary does: nothing drops the shared server.
    std::mem::forget(own);
}

fn child(what: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            &full_test_name(module_path!(), "a_child_with_servers"),
            "--quiet",
            "--nocapture",
        ])
        .env(CHILD, what)
        .stdout(Stdio::piped());
    command
}

/// The traces of the servers that a child reports.
fn read_traces(child: &mut Child) -> Vec<Traces> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(io::Result::unwrap);
    let lines = lines.take_while(|line| line != "ready");
    let traces = lines.filter_map(|line| {
        let words: Vec<&str> = line.strip_prefix("traces ")?.split(' ').collect();
        Some(Traces {
            folder: words[0].into(),
            pid: words[1].parse().unwrap(),
            address: words[2].into(),
        })
    });
    traces.collect()
}

#[test]
fn servers_of_a_killed_process_leave_nothing_behind() {
    if shared().is_none() {
        return;
    }
    let mut child = child("killed").spawn().unwrap();
    let traces = read_traces(&mut child);
    assert_eq!(traces.len(), 2);
    traces.iter().for_each(Traces::assert_there);
    child.kill().unwrap();
    child.wait().unwrap();
    traces.iter().for_each(Traces::assert_gone);
}

#[test]
fn servers_of_an_ended_process_leave_nothing_behind() {
    if shared().is_none() {
        return;
    }
    let mut child = child("ended").spawn().unwrap();
    let traces = read_traces(&mut child);
    assert!(child.wait().unwrap().success());
    assert_eq!(traces.len(), 2);
    traces.iter().for_each(Traces::assert_gone);
}

#[test]
fn test_without_postgresql_is_skipped_or_fails_as_configured() {
    for (required, passes) in [("0", true), ("1", false)] {
        let mut command = child("skipped");
        command
            .env("KEEPCOUNT_PG_BIN", Path::new("/nonexistent"))
            .env("KEEPCOUNT_REQUIRE_SERVERS", required);
        let ended = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(ended.status.success(), passes, "{ended:?}");
        let told = [ended.stdout, ended.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(
            told.contains(
                "no PostgreSQL binaries (initdb, postgres) found; looked in /nonexistent"
            ),
            "{told}"
        );
        assert_eq!(told.contains("skipped: "), passes, "{told}");
    }
}

/// `just postgres`: a server to play with, until Ctrl-C.
#[test]
#[ignore = "waits for Ctrl-C"]
fn a_server_to_play_with() {
    let Some(server) = Server::new() else { return };
    let url = server.url("postgres");
    println!(
        "\n{url}\npsql '{url}'\nPostgreSQL runs in {} until Ctrl-C or the end of the input.",
        server.folder().display()
    );
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
