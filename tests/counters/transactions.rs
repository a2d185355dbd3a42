//! `SqliteStore::transaction`: rows and totals commit together, or neither does.

use std::panic::{AssertUnwindSafe, catch_unwind};

use keepcount::{Batch, Error, Recovery, SqliteStore, Store};
use rusqlite::Connection;

keepcount::counters! { SCHEMA { VOTES: i64 = "show.votes"; } }

type Failure = Box<dyn std::error::Error>;

fn database(conn: Connection) -> Connection {
    conn.execute_batch(
        "PRAGMA foreign_keys = ON;
        CREATE TABLE shows (id INTEGER PRIMARY KEY);
        INSERT INTO shows VALUES (7);
        CREATE TABLE votes (show_id INTEGER NOT NULL REFERENCES shows DEFERRABLE INITIALLY DEFERRED)",
    )
    .unwrap();
    SqliteStore::new(&conn, &SCHEMA).create().unwrap();
    conn
}

fn vote(conn: &Connection, batch: &mut Batch, show: i64) -> Result<(), Failure> {
    conn.execute("INSERT INTO votes VALUES (?1)", [show])?;
    batch.add(VOTES, show, 1);
    Ok(())
}

/// The number of rows, and the totals.
#[track_caller]
fn state(conn: &Connection) -> (i64, Vec<(i64, i64)>) {
    assert!(conn.is_autocommit(), "no transaction is left open");
    let rows = conn.query_row("SELECT count(*) FROM votes", (), |row| row.get(0)).unwrap();
    (rows, SqliteStore::new(conn, &SCHEMA).totals(VOTES).unwrap())
}

#[test]
fn transaction_commits_rows_and_totals_and_returns_the_value_of_its_work() {
    let conn = database(Connection::open_in_memory().unwrap());
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    for round in 1..=2 {
        let value = store.transaction(|conn, batch| vote(conn, batch, 7).map(|()| "done")).unwrap();
        assert_eq!((value, state(&conn)), ("done", (round, vec![(7, round)])));
    }
    // Work that calls no hook commits too.
    let changed =
        store.transaction(|conn, _| conn.execute("DELETE FROM votes", ()).map_err(Failure::from));
    assert_eq!((changed.unwrap(), state(&conn)), (2, (0, vec![(7, 2)])));
}

#[test]
fn failure_of_the_work_the_apply_or_the_commit_commits_nothing() {
    let conn = database(Connection::open_in_memory().unwrap());
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    store.transaction(|conn, batch| vote(conn, batch, 7)).unwrap();
    let before = state(&conn);
    let mut fails = |work: &dyn Fn(&Connection, &mut Batch) -> Result<(), Failure>| {
        let failed = store.transaction(|conn, batch| {
            vote(conn, batch, 7)?;
            work(conn, batch)
        });
        assert_eq!(state(&conn), before);
        failed.unwrap_err()
    };
    assert_eq!(fails(&|_, _| Err("it is spam".into())).to_string(), "it is spam");
    assert!(fails(&|conn, _| Ok(conn.execute_batch("nonsense")?)).is::<rusqlite::Error>());
    let kept = |error: Failure| *error.downcast::<Error>().unwrap();
    let overflow = fails(&|_, batch| {
        batch.add(VOTES, 7, i64::MAX);
        Ok(())
    });
    assert!(matches!(kept(overflow), Error::Overflow { counter: "show.votes", .. }));
    let unknown = fails(&|_, batch| {
        batch.add(keepcount::Counter::<i64>::new("nowhere"), 7, 1);
        Ok(())
    });
    assert!(matches!(kept(unknown), Error::UnknownCounter { .. }));
    // The commit checks the deferred foreign key, and fails.
    let refused = kept(fails(&|conn, batch| vote(conn, batch, 8)));
    assert!(
        matches!(&refused, Error::Database { operation, .. } if operation.contains("transaction")),
        "{refused}"
    );
    // The work ended the transaction itself, so its batch has no transaction to commit in.
    let lost = kept(fails(&|conn, _| Ok(conn.execute_batch("ROLLBACK")?)));
    assert!(matches!(lost, Error::TransactionLost { .. }), "{lost}");
}

#[test]
fn a_panic_rolls_the_transaction_back() {
    let conn = database(Connection::open_in_memory().unwrap());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        SqliteStore::new(&conn, &SCHEMA).transaction(|conn, batch| {
            vote(conn, batch, 7)?;
            assert!(batch.is_empty(), "the work panics");
            Ok::<(), Failure>(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(state(&conn), (0, vec![]));
    SqliteStore::new(&conn, &SCHEMA).transaction(|conn, batch| vote(conn, batch, 7)).unwrap();
    assert_eq!(state(&conn), (1, vec![(7, 1)]));
}

/// A commit hook that vetoes a commit ends the transaction. An interrupt after the commit ends it
/// too. `transaction` cannot tell the two apart, so the caller must check the outcome.
#[test]
fn commit_vetoed_by_a_hook_is_indeterminate() {
    let mut conn = database(Connection::open_in_memory().unwrap());
    conn.commit_hook(Some(|| true)).unwrap();
    let failed = SqliteStore::new(&conn, &SCHEMA)
        .transaction(|conn, batch| vote(conn, batch, 7))
        .unwrap_err();
    conn.commit_hook(None::<fn() -> bool>).unwrap();
    assert_eq!(failed.downcast::<Error>().unwrap().recovery(), Recovery::Indeterminate);
    assert_eq!(state(&conn), (0, vec![]));
}

#[test]
fn transaction_is_refused_under_a_held_lock_or_inside_another() {
    let dir = crate::support::temp_dir();
    let open = || Connection::open(dir.path().join("app.db")).unwrap();
    let (conn, other) = (database(open()), open());
    conn.busy_timeout(std::time::Duration::ZERO).unwrap();
    let mut store = SqliteStore::new(&conn, &SCHEMA);
    let never = |_: &Connection, _: &mut Batch| -> keepcount::Result<()> {
        unreachable!("the transaction must not begin")
    };
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(store.transaction(never).unwrap_err().recovery(), Recovery::Retry);
    other.execute_batch("ROLLBACK").unwrap();
    conn.execute_batch("BEGIN; INSERT INTO votes VALUES (7)").unwrap();
    assert!(matches!(store.transaction(never), Err(Error::InvalidUse { what: "transaction", .. })));
    assert!(!conn.is_autocommit(), "the caller's transaction goes on");
    conn.execute_batch("COMMIT").unwrap();
    assert_eq!(state(&conn), (1, vec![]));
}
