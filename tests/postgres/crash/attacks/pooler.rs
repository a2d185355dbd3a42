//! PgBouncer in transaction mode: each transaction may run on another connection to the server,
//! with the session state that others left there.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keepcount::reconcile::{Mode, Options, Reconciler, TokioRuntime, run_async};
use keepcount::{AsyncStore as _, Batch, Error, PostgresStore, PreparedStatements, StreamRange};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls};

use super::super::{BALLOTS, BOX, PLAIN};
use crate::support::postgres::installed::{self, User};
use crate::support::postgres::{Server, connect, shared};
use crate::support::postgres_app::{
    SCHEMA, SHOW_ARTIST, Vote, assert_exact, audit, create, differences,
};
use crate::support::random::Random;

/// A pooler with three connections to the server. It ends when this value is dropped.
struct Pooler {
    child: Child,
    folder: PathBuf,
    port: u16,
}

impl Pooler {
    /// Starts a pooler in front of a server. If it is not installed, returns None and prints so.
    fn start(server: &Server, database: &str) -> Option<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
            .into_iter()
            .find(|path| fs::metadata(path).is_ok());
        let Some(program) = program else {
            let required = std::env::var("KEEPCOUNT_REQUIRE_SERVERS").as_deref() == Ok("1");
            assert!(!required, "pgbouncer is not installed");
            eprintln!("skipped: pgbouncer is not installed");
            return None;
        };
        let url: Config = server.url(database).parse().unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let folder = installed::folder("keepcount-pooler-");
        let password = String::from_utf8(url.get_password().unwrap().to_vec()).unwrap();
        let settings = format!(
            "[databases]\n{database} = host=127.0.0.1 port={} user={} password={password}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
             default_pool_size = 3\nmax_client_conn = 100\nlogfile = {}\n",
            url.get_ports()[0],
            url.get_user().unwrap(),
            folder.join("log").display(),
        );
        fs::write(folder.join("settings.ini"), settings).unwrap();
        let mut command = Command::new(program);
        command
            .arg(folder.join("settings.ini"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = User::instead_of_root() {
            command.uid(user.uid).gid(user.gid);
        }
        Some(Self { child: command.spawn().unwrap(), folder, port })
    }

    fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("keepcount").dbname(database);
        config
    }

    /// Connects through the pooler, once it listens.
    async fn connect(&self, database: &str) -> Client {
        for _ in 0..500 {
            if let Ok((client, connection)) = self.config(database).connect(NoTls).await {
                tokio::spawn(connection);
                return client;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "the pooler did not start:\n{}",
            fs::read_to_string(self.folder.join("log")).unwrap_or_default()
        );
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Writes one row and its totals in a transaction of the application; about every fourth is rolled
/// back. Returns whether it was committed.
async fn vote(
    client: &mut Client,
    random: &mut Random,
    id: i64,
    stream: &str,
    number: u64,
) -> Result<bool, Error> {
    let tx = client.transaction().await.unwrap();
    let vote = Vote { setlist: random.int(0, 20), weight: random.int(1, 4), day: random.int(0, 4) };
    // A pooler in transaction mode does not support statements that are prepared by name.
    let text = "INSERT INTO votes VALUES ($1, $2, $3, $4)";
    tx.execute_typed(
        text,
        &[
            (&id, Type::INT8),
            (&vote.setlist, Type::INT8),
            (&vote.weight, Type::INT8),
            (&vote.day, Type::INT8),
        ],
    )
    .await
    .unwrap();
    let mut batch = Batch::new();
    batch.insert(&vote);
    let stream_range = StreamRange::new(stream, number, number).unwrap();
    let applied = PostgresStore::in_transaction(&tx, &SCHEMA)
        .apply_idempotent(&mut batch, &stream_range)
        .await;
    if applied.is_err() || random.below(4) == 0 {
        tx.rollback().await.unwrap();
        return applied.map(|_| false);
    }
    tx.commit().await.unwrap();
    Ok(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_behind_a_transaction_pooler_are_exact_and_audits_leave_no_settings() {
    let Some(server) = shared() else { return };
    let direct = server.database().await;
    let database = direct.get_dbname().unwrap().to_owned();
    let mut client = connect(&direct).await;
    create(&mut client).await;
    client.batch_execute(BOX).await.unwrap();
    PostgresStore::new(&mut client, &PLAIN).create().await.unwrap();
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    client
        .batch_execute("INSERT INTO setlists SELECT s, s % 5 FROM generate_series(0, 19) AS s; INSERT INTO shows SELECT s, s % 2 FROM generate_series(0, 4) AS s")
        .await
        .unwrap();
    let Some(pooler) = Pooler::start(server, &database) else { return };
    let pooler = Arc::new(pooler);

    // Memberships and rollups are repaired through the pooler too.
    let repair = |mut client: Client| async move {
        let mut repair =
            Reconciler::new(Mode::Repair, &SCHEMA, Options::default().page(7).retries(20)).unwrap();
        let mut audit = audit(&mut client).await.unwrap();
        run_async(&mut repair, &mut audit, &mut TokioRuntime::new()).await.unwrap()
    };
    let first = repair(pooler.connect(&database).await).await;
    assert!(first.drift() > 0, "{first}");

    let done = Arc::new(AtomicBool::new(false));
    let (voted, cast) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for writer in 0..4_i64 {
        let (pooler, database, done, voted) =
            (Arc::clone(&pooler), database.clone(), Arc::clone(&done), Arc::clone(&voted));
        writers.push(tokio::spawn(async move {
            let mut client = pooler.connect(&database).await;
            let mut random = Random(u64::try_from(writer).unwrap());
            let (stream, mut number, mut id) = (format!("pooled {writer}"), 1, writer * 1_000_000);
            while !done.load(Ordering::Relaxed) {
                id += 1;
                match vote(&mut client, &mut random, id, &stream, number).await {
                    Ok(true) => {
                        number += 1;
                        voted.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(false) | Err(Error::Busy { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        }));
    }
    // One writer uses prepared statements, the other does not: neither is affected by what the
    // other left on a connection.
    for writer in 0..2_i64 {
        let (pooler, database, done, cast) =
            (Arc::clone(&pooler), database.clone(), Arc::clone(&done), Arc::clone(&cast));
        writers.push(tokio::spawn(async move {
            let mut client = pooler.connect(&database).await;
            let prepared = PreparedStatements::new();
            let mut id = writer * 1_000_000;
            while !done.load(Ordering::Relaxed) {
                id += 1;
                let mut batch = Batch::new();
                batch.add(BALLOTS, (), 1);
                let mut store = PostgresStore::new(&mut client, &PLAIN);
                if writer == 0 {
                    store = store.prepared(&prepared);
                }
                // A prepared statement that this connection of the pool does not know is no error.
                store
                    .write(&[("INSERT INTO ballots VALUES ($1)", &[&id])], &mut batch)
                    .await
                    .unwrap();
                cast.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut runs = 0;
    for _ in 0..10 {
        let report = repair(pooler.connect(&database).await).await;
        assert_eq!(report.drift(), 0, "{report}");
        runs += 1;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    // An audit's settings end with its transaction: no connection of the pool keeps them.
    for _ in 0..3 {
        let text = "SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN ('client_encoding', 'application_name')";
        let client = pooler.connect(&database).await;
        let tables = client.simple_query(text).await.unwrap();
        let left: Vec<_> = tables
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .filter(|name| {
                !["DateStyle", "TimeZone", "standard_conforming_strings"].contains(&name.as_str())
            })
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert_exact(&differences(&client).await);
    let rows: i64 = client.query_one("SELECT count(*) FROM ballots", &[]).await.unwrap().get(0);
    let (voted, cast) = (voted.load(Ordering::Relaxed), cast.load(Ordering::Relaxed));
    assert_eq!(u64::try_from(rows).unwrap(), cast);
    assert_eq!(PostgresStore::new(&mut client, &PLAIN).total(BALLOTS, ()).await.unwrap(), rows);
    assert_eq!(
        PostgresStore::new(&mut client, &SCHEMA).total(SHOW_ARTIST, (0, 0)).await.unwrap(),
        1
    );
    println!(
        "{voted} votes and {cast} ballots through three pooled connections; {runs} repairs beside them found nothing"
    );
    assert!(voted > 20 && cast > 20, "{voted} votes, {cast} ballots");
}
