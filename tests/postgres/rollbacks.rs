//! Errors of calls whose transaction cannot be rolled back, because the server refuses each
//! ROLLBACK.

use crate::support::postgres::{Server, connect, shared};
use keepcount::{AsyncStore as _, Batch, Counter, Error, PostgresStore, Schema, StreamRange};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{Client, Config};

const VOTES: Counter<i64> = Counter::new("show.votes");
const SCHEMA: Schema = Schema::new(&[VOTES.table()]);

/// Passes messages on to the server, and spoils each ROLLBACK on its way. The server refuses it, as
/// it does one that is cancelled, and the transaction stays open.
async fn pass(mut client: OwnedReadHalf, mut server: OwnedWriteHalf) -> std::io::Result<()> {
    let mut has_kind = false; // the first message has none
    loop {
        let kind = if has_kind { Some(client.read_u8().await?) } else { None };
        let len = client.read_u32().await?;
        let mut body = vec![0; len as usize - 4];
        client.read_exact(&mut body).await?;
        if body == b"ROLLBACK\0" {
            body = b"CALLBACK\0".to_vec();
        }
        server.write_all(kind.as_slice()).await?;
        server.write_u32(len).await?;
        server.write_all(&body).await?;
        has_kind = true;
    }
}

/// A connection on which no ROLLBACK does anything.
async fn connect_without_rollbacks(server: &Server, database: &str) -> Client {
    let direct: Config = server.url(database).parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let upstream = TcpStream::connect(("127.0.0.1", direct.get_ports()[0])).await.unwrap();
    let mut config = Config::new();
    config.host("127.0.0.1").port(listener.local_addr().unwrap().port()).dbname(database);
    config.user(direct.get_user().unwrap()).password(direct.get_password().unwrap());
    tokio::spawn(async move {
        let (client, mut answers) = listener.accept().await.unwrap().0.into_split();
        let (mut server, requests) = upstream.into_split();
        tokio::spawn(pass(client, requests));
        tokio::io::copy(&mut server, &mut answers).await
    });
    connect(&config).await
}

/// A database with a total that is nearly full, and a constraint that is checked at the commit.
async fn database(server: &Server) -> String {
    let config = server.database().await;
    let mut client = connect(&config).await;
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    store.create().await.unwrap();
    store.apply(&mut near_the_end()).await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE parents (id bigint PRIMARY KEY);
             CREATE TABLE children (parent bigint REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        )
        .await
        .unwrap();
    config.get_dbname().unwrap().to_owned()
}

/// Two keys, so that the server does not name the one that overflows.
fn near_the_end() -> Batch {
    let mut batch = Batch::new();
    batch.add(VOTES, 1, i64::MAX - 1);
    batch.add(VOTES, 2, i64::MAX - 1);
    batch
}

#[track_caller]
fn assert_open(error: &Error, says: &str) {
    assert!(matches!(error, Error::TransactionOpen { .. }), "{error:?}");
    assert!(error.to_string().contains(says), "`{error}` does not say {says}");
}

/// The error that the transaction could not be rolled back replaced the one for which it was to be.
#[tokio::test]
async fn error_of_an_open_transaction_includes_why_it_was_to_be_rolled_back() {
    let Some(server) = shared() else { return };
    let database = database(server).await;
    for says in ["64 bits", "foreign key", "its work failed"] {
        let mut client = connect_without_rollbacks(server, &database).await;
        let mut store = PostgresStore::new(&mut client, &SCHEMA);
        let done = store.transaction(async |tx, batch| {
            match says {
                "64 bits" => batch.merge(&mut near_the_end()),
                "foreign key" => {
                    tx.execute("INSERT INTO children VALUES (7)", &[]).await.unwrap();
                }
                _ => return Err(Error::NoSource { counter: "show.votes" }),
            }
            Ok(())
        });
        assert_open(&done.await.unwrap_err(), says);
    }
}

/// An overflow was then reported as an aborted transaction that is worth another try.
#[tokio::test]
async fn overflow_in_a_transaction_that_stays_open_says_so() {
    let Some(server) = shared() else { return };
    let database = database(server).await;
    let mut client = connect_without_rollbacks(server, &database).await;
    let applied = PostgresStore::new(&mut client, &SCHEMA).apply(&mut near_the_end()).await;
    assert_open(&applied.unwrap_err(), "64 bits");
    let mut client = connect_without_rollbacks(server, &database).await;
    let events = StreamRange::new("votes", 1, 1).unwrap();
    let mut store = PostgresStore::new(&mut client, &SCHEMA);
    let written = store.write_idempotent(&[], &mut near_the_end(), &events).await;
    assert_open(&written.unwrap_err(), "64 bits");
}
