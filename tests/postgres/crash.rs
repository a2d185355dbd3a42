//! Connections are cut and servers killed while events are applied idempotently. Whatever result a
//! writer got, nothing is lost and nothing counts twice.
//!
//! `KEEPCOUNT_CRASH_ROUNDS` sets how many cuts and crashes there are (`just postgres-crash`);
//! `cargo test` makes a few.

mod attacks;
mod cancels;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::postgres::{DURABLE, Server, connect, shared};
use crate::support::postgres_app::{
    self, Change, SCHEMA, assert_exact, create, differences, write,
};
use crate::support::random::Random;
use keepcount::{
    AsyncStore, Batch, Counter, Error, PostgresStore, PreparedStatements, Schema, StreamRange,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, NoTls};

/// How many connections are cut or servers killed. A third as many disks are filled, at most four,
/// and a sixth as many standbys promoted, at most two.
fn rounds() -> u64 {
    std::env::var("KEEPCOUNT_CRASH_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap())
}

/// How the writers' attempts ended, and how many events were applied.
#[derive(Debug, Default)]
struct Ends {
    committed: AtomicU64,
    skipped: AtomicU64,
    unknown: AtomicU64,
    retried: AtomicU64,
    full: AtomicU64,
    done: AtomicBool,
    /// Whether an apply for which the server has no room is tried again later.
    disk_may_fill: bool,
}

/// The change of one event of a stream. It is the same at every delivery.
fn event(stream: u64, number: u64) -> Change {
    let mut random = Random(stream * 1_000_003 + number);
    let id = i64::try_from(stream * 1_000_000 + number).unwrap();
    let setlist = random.int(0, 20);
    match random.below(12) {
        0 => Change::Place(setlist, Some(random.int(0, 5))),
        1 => Change::Bill(random.int(0, 5), Some(random.int(0, 3))),
        2 => Change::Unvote(id - 1),
        _ => Change::Vote(id, setlist, random.int(1, 4), random.int(0, 4)),
    }
}

/// Opens a connection; None while the server is down.
async fn open(config: &Config) -> Option<Client> {
    let (client, connection) = config.connect(NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

/// Delivers a stream's events until told to stop, after each new connection from the stored offset
/// on: rows, totals and offset in one transaction. Returns the last event whose commit was
/// confirmed.
async fn deliver(config: Config, stream: u64, ends: Arc<Ends>) -> u64 {
    let name = format!("stream {stream}");
    let mut random = Random(stream);
    let mut last = 0;
    'connect: while !ends.done.load(Ordering::Relaxed) {
        let Some(mut client) = open(&config).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        // Only the stored offset says what was applied.
        let Ok(applied) = PostgresStore::new(&mut client, &SCHEMA).offset(&name).await else {
            continue;
        };
        assert!(applied >= last, "{name}: {last} was committed, the offset says {applied}");
        let mut next = applied + 1;
        while !ends.done.load(Ordering::Relaxed) {
            let until = next + random.below(3);
            let Ok(tx) = client.transaction().await else { continue 'connect };
            let mut batch = Batch::new();
            for number in next..=until {
                if write(&tx, &event(stream, number), &mut batch).await.is_err() {
                    ends.retried.fetch_add(1, Ordering::Relaxed);
                    continue 'connect;
                }
            }
            let stream_range = StreamRange::new(&name, next, until).unwrap();
            match PostgresStore::in_transaction(&tx, &SCHEMA)
                .apply_idempotent(&mut batch, &stream_range)
                .await
            {
                Ok(done) => assert!(!done.skipped),
                Err(Error::Busy { .. }) => {
                    ends.retried.fetch_add(1, Ordering::Relaxed);
                    continue 'connect;
                }
                Err(error @ Error::Database { .. })
                    if ends.disk_may_fill && error.to_string().contains("No space left") =>
                {
                    ends.full.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue 'connect;
                }
                Err(error) => panic!("{error:?}"),
            }
            if tx.commit().await.is_err() {
                // The commit may have happened; the offset will say.
                ends.unknown.fetch_add(1, Ordering::Relaxed);
                continue 'connect;
            }
            ends.committed.fetch_add(1, Ordering::Relaxed);
            last = until;
            next = until + 1;
        }
    }
    last
}

/// Applies a stream without rows, in the store's own transactions. Delivers events of unknown
/// outcome again: a repeat is reported as skipped. Returns the last event.
async fn apply_stream(config: Config, ends: Arc<Ends>) -> u64 {
    let (mut next, mut sure) = (1, 0);
    while !ends.done.load(Ordering::Relaxed) || sure + 1 < next {
        let Some(mut client) = open(&config).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        loop {
            let mut batch = Batch::new();
            batch.add(postgres_app::SHOW_ARTIST, (1_000_000, 1_000_000), 1);
            let stream_range = StreamRange::new("counted", next, next).unwrap();
            match PostgresStore::new(&mut client, &SCHEMA)
                .apply_idempotent(&mut batch, &stream_range)
                .await
            {
                Ok(done) => {
                    ends.skipped.fetch_add(done.skipped.into(), Ordering::Relaxed);
                    sure = next;
                    next += 1;
                }
                Err(Error::Indeterminate { .. }) => {
                    ends.unknown.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(Error::Busy { .. }) => break,
                Err(error) => panic!("{error:?}"),
            }
            if ends.done.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    sure
}

/// Writes rows and totals in one round trip, without offsets. Repeats a busy write; looks for the
/// row of a write of unknown outcome.
async fn cast_ballots(config: Config, ends: Arc<Ends>) -> i64 {
    let mut next = 1_i64;
    'connect: while !ends.done.load(Ordering::Relaxed) {
        let Some(mut client) = open(&config).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        // Looks whether the last ballot was written, whose outcome may be unknown.
        let Ok(row) = client.query_one("SELECT coalesce(max(id), 0) FROM ballots", &[]).await
        else {
            continue;
        };
        let last: i64 = row.get(0);
        assert!(last == next || last + 1 == next, "{next} was to be written, {last} is there");
        next = last + 1;
        let prepared = PreparedStatements::new();
        while !ends.done.load(Ordering::Relaxed) {
            let mut batch = Batch::new();
            batch.add(BALLOTS, (), 1);
            let mut store = PostgresStore::new(&mut client, &PLAIN).prepared(&prepared);
            let (way, values): (usize, [&(dyn ToSql + Sync); 2]) =
                (usize::from(next % 2 == 0), [&next, &HOME]);
            match store.write(&[(CAST[way], &values[..=way])], &mut batch).await {
                Ok(_) => next += 1,
                Err(Error::Indeterminate { .. }) => {
                    ends.unknown.fetch_add(1, Ordering::Relaxed);
                    continue 'connect;
                }
                Err(Error::Busy { .. }) => {
                    // A busy error means that nothing was written.
                    let look = loop {
                        let Some(client) = open(&config).await else { continue };
                        let look = client
                            .query_one("SELECT count(*) FROM ballots WHERE id = $1", &[&next])
                            .await;
                        if let Ok(look) = look {
                            break look.get::<_, i64>(0);
                        }
                    };
                    assert_eq!(look, 0, "ballot {next} was written");
                    continue 'connect;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    next
}

/// A counter that can be written in one round trip: it has no rollup and no leaderboard.
const BALLOTS: Counter<()> = Counter::new("ballots.all");
const PLAIN: Schema = Schema::new(&[BALLOTS.table()]);
const BOX: &str = "CREATE TABLE ballots (id BIGINT PRIMARY KEY, address INET)";
/// The first is sent in one message, the second in several, since keepcount has no text for an
/// address.
const CAST: [&str; 2] = ["INSERT INTO ballots VALUES ($1)", "INSERT INTO ballots VALUES ($1, $2)"];
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_are_cut_off_lose_nothing_and_count_nothing_twice() {
    let Some(mut server) = Server::with(DURABLE) else { return };
    let config = server.database().await;
    let mut client = connect(&config).await;
    create(&mut client).await;
    client.batch_execute(BOX).await.unwrap();
    PostgresStore::new(&mut client, &PLAIN).create().await.unwrap();
    client.batch_execute("UPDATE keepcount_counters SET ready = 1").await.unwrap();
    drop(client);
    let ends = Arc::new(Ends::default());
    let writers: Vec<_> = (1..=4)
        .map(|stream| tokio::spawn(deliver(config.clone(), stream, Arc::clone(&ends))))
        .collect();
    let counting = tokio::spawn(apply_stream(config.clone(), Arc::clone(&ends)));
    let voting = tokio::spawn(cast_ballots(config.clone(), Arc::clone(&ends)));
    let mut random = Random(11);
    let (mut cuts, mut crashes) = (0_i64, 0);
    for round in 1..=rounds() {
        tokio::time::sleep(Duration::from_millis(20 + random.below(80))).await;
        if round % 6 == 0 {
            server.crash();
            server.start();
            crashes += 1;
        } else {
            let killer = connect(&config).await;
            let text = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE datname = current_database() AND pid <> pg_backend_pid()";
            cuts += killer.query_one(text, &[]).await.unwrap().get::<_, i64>(0);
        }
    }
    ends.done.store(true, Ordering::Relaxed);
    let mut client = connect(&config).await;
    for (stream, writer) in (1..=4_u64).zip(writers) {
        let last = writer.await.unwrap();
        let offset = PostgresStore::new(&mut client, &SCHEMA)
            .offset(&format!("stream {stream}"))
            .await
            .unwrap();
        assert!(offset >= last, "stream {stream}: {last} was committed, the offset says {offset}");
        // Rows and offset commit together: the votes that exist are those up to the offset.
        let first = i64::try_from(stream * 1_000_000).unwrap();
        let wanted = (1..=offset).filter(|number| {
            matches!(event(stream, *number), Change::Vote(..))
                && event(stream, number + 1)
                    != Change::Unvote(first + i64::try_from(*number).unwrap())
                || *number == offset && matches!(event(stream, *number), Change::Vote(..))
        });
        let there = "SELECT count(*) FROM votes WHERE id BETWEEN $1 AND $2";
        let there: i64 =
            client.query_one(there, &[&first, &(first + 999_999)]).await.unwrap().get(0);
        assert_eq!(there, i64::try_from(wanted.count()).unwrap(), "votes of stream {stream}");
    }
    voting.await.unwrap();
    let cast: i64 = client.query_one("SELECT count(*) FROM ballots", &[]).await.unwrap().get(0);
    assert_eq!(PostgresStore::new(&mut client, &PLAIN).total(BALLOTS, ()).await.unwrap(), cast);
    let counted = counting.await.unwrap();
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    assert_eq!(store.offset("counted").await.unwrap(), counted);
    assert_eq!(
        store.total(postgres_app::SHOW_ARTIST, (1_000_000, 1_000_000)).await.unwrap(),
        i64::try_from(counted).unwrap()
    );
    client.execute("DELETE FROM show_artist WHERE key_1 = 1000000", &[]).await.unwrap();
    assert_exact(&differences(&client).await);
    println!("{cast} rows written with their totals at once");
    println!("{cuts} connections cut, {crashes} crashes of the server; {ends:?}");
    assert!(ends.committed.load(Ordering::Relaxed) > 20, "{ends:?}");
}

/// Starts a proxy to a server and returns its port. Once `deaf` is set, the proxy drops what the
/// server sends, and closes the connection after a while. What the client sends arrives.
async fn start_deaf_proxy(deaf: Arc<AtomicBool>, server: (String, u16)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) =
            TcpStream::connect(server).await.unwrap().into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
        let mut bytes = [0; 4096];
        loop {
            let read = from_server.read(&mut bytes).await.unwrap();
            // The client waits for the answer to BEGIN before it sends more.
            let is_begun = bytes[..read].windows(6).any(|said| said == b"BEGIN\0");
            if deaf.load(Ordering::Relaxed) && !is_begun {
                tokio::time::sleep(Duration::from_millis(300)).await;
                return;
            }
            to_client.write_all(&bytes[..read]).await.unwrap();
        }
    });
    port
}

/// The error used to say that nothing was applied, because the connection had ended before the
/// answer to the rows. The COMMIT that was sent with them had succeeded.
#[tokio::test]
async fn round_trip_whose_answers_are_lost_has_an_unknown_outcome() {
    let Some(server) = shared() else { return };
    let direct = server.database().await;
    let mut client = connect(&direct).await;
    client.batch_execute(BOX).await.unwrap();
    PostgresStore::new(&mut client, &PLAIN).create().await.unwrap();
    let mut batch = Batch::new();
    batch.add(BALLOTS, (), 1);
    for (by, id) in [(0_usize, 0_i64), (1, 2)] {
        let network: Config = server.url(direct.get_dbname().unwrap()).parse().unwrap();
        let deaf = Arc::new(AtomicBool::new(false));
        let port =
            start_deaf_proxy(Arc::clone(&deaf), ("127.0.0.1".to_owned(), network.get_ports()[0]))
                .await;
        let mut way = Config::new();
        way.host("127.0.0.1").port(port).dbname(direct.get_dbname().unwrap());
        way.user(network.get_user().unwrap()).password(network.get_password().unwrap());
        let mut proxied = connect(&way).await;
        let statements = PreparedStatements::new();
        let mut store = PostgresStore::new(&mut proxied, &PLAIN).prepared(&statements);
        let rows = |id| -> [&(dyn ToSql + Sync); 2] { [id, &HOME] };
        store.write(&[(CAST[by], &rows(&id)[..=by])], &mut batch.clone()).await.unwrap();
        deaf.store(true, Ordering::Relaxed);
        let error = store.write(&[(CAST[by], &rows(&(id + 1))[..=by])], &mut batch.clone()).await;
        assert!(matches!(error, Err(Error::Indeterminate { .. })), "{error:?}");
        let there = client
            .query_one("SELECT count(*), (SELECT total FROM ballots_all) FROM ballots", &[])
            .await
            .unwrap();
        assert_eq!(
            (there.get::<_, i64>(0), there.get::<_, i64>(1)),
            (id + 2, id + 2),
            "it was committed"
        );
    }
}
