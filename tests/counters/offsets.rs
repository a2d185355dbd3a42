//! Each event of a stream is applied once, with its rows: after rollbacks, batches that fail in
//! their middle, damaged or missing offsets, overtaken transactions, and unknown outcomes.

use std::time::Duration;

use crate::support::offsets::{
    File, PLAIN, RISING, Random, SCHEMAS, SUM, VOTES, assert_applied_in, database, deliver, events,
    open, rows, stored_offset, stream_range, write_rows,
};
use crate::support::world::{Kinds, Trace};
use keepcount::sql::{self, Dialect};
use keepcount::{Batch, Error, MemoryStore, Recovery, Schema, SqliteStore, Store, StreamRange};
use rusqlite::{Connection, StatementStatus, TransactionBehavior};

#[test]
fn rows_totals_and_offset_roll_back_together_and_skips_are_reported() {
    for schema in SCHEMAS {
        let mut conn = database(schema);
        assert!(!deliver(&mut conn, schema, "votes", 1, 40).skipped);

        let tx = conn.transaction().unwrap();
        write_rows(&tx, "votes", 41, 50).unwrap();
        SqliteStore::new(&tx, schema)
            .apply_idempotent(&mut events("votes", 41, 50), &stream_range("votes", 41, 50))
            .unwrap();
        assert_eq!(stored_offset(&tx, "votes"), 50);
        tx.rollback().unwrap();
        assert_applied_in(&conn, schema, &[("votes", 40)]);

        for (first, last, skipped) in
            [(41, 50, false), (41, 50, true), (1, 40, true), (45, 46, true), (51, 93, false)]
        {
            let applied = deliver(&mut conn, schema, "votes", first, last);
            assert_eq!((applied.skipped, applied.totals == 0), (skipped, skipped));
        }
        assert_applied_in(&conn, schema, &[("votes", 93)]);
        assert_eq!(rows(&conn), [("votes".to_owned(), 93, 93)]);
    }
}

#[test]
fn rollback_of_a_savepoint_undoes_only_its_events() {
    let mut conn = database(&RISING);
    let mut tx = conn.transaction().unwrap();
    let apply = |conn: &Connection, stream, first, last| {
        SqliteStore::new(conn, &RISING)
            .apply_idempotent(&mut events(stream, first, last), &stream_range(stream, first, last))
            .unwrap()
    };
    apply(&tx, "a", 1, 5);
    let savepoint = tx.savepoint().unwrap();
    apply(&savepoint, "a", 6, 9);
    apply(&savepoint, "b", 1, 70);
    savepoint.finish().unwrap(); // rolls back
    assert!(!apply(&tx, "a", 6, 8).skipped);
    tx.commit().unwrap();
    assert_applied_in(&conn, &RISING, &[("a", 8), ("b", 0)]);
}

#[test]
fn outside_a_transaction_offset_and_totals_share_one_transaction() {
    for schema in SCHEMAS {
        let mut conn = database(schema);
        let trace = Trace::on(&mut conn);
        let mut store = SqliteStore::new(&conn, schema);
        let mut ran = |batch: &Batch, stream_range: StreamRange<'_>| {
            let applied = store.apply_idempotent(&mut batch.clone(), &stream_range).unwrap();
            (applied.skipped, applied.statements, trace.kinds())
        };
        let own = |writes| Kinds {
            reads: 1,
            writes,
            others: vec!["BEGIN IMMEDIATE".to_owned(), "COMMIT".to_owned()],
        };
        if schema.leaderboard_ids().is_empty() {
            assert_eq!(
                ran(&events("votes", 1, 3), stream_range("votes", 1, 3)),
                (false, 4, own(5))
            );
        }
        assert_eq!(ran(&Batch::new(), stream_range("others", 1, 3)), (false, 0, own(1)));
        assert_eq!(ran(&events("others", 1, 3), stream_range("others", 1, 3)), (true, 0, own(0)));
        let refused = store
            .apply_idempotent(&mut events("others", 9, 9), &stream_range("others", 9, 9))
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "stream others: event 9 leaves a gap, the last one applied is 3"
        );
        let refused = store
            .apply_idempotent(&mut events("others", 3, 4), &stream_range("others", 3, 4))
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "stream others: events 3 to 4 overlap what was applied, up to 3"
        );
        assert_eq!(trace.kinds().writes, 0);
        assert!(conn.is_autocommit());
        assert_eq!(stored_offset(&conn, "others"), 3);
    }
}

#[test]
fn the_statements_of_an_offset_are_prepared_once() {
    let conn = database(&PLAIN);
    let mut store = SqliteStore::new(&conn, &PLAIN);
    for event in 1..=50 {
        store
            .apply_idempotent(
                &mut events("votes", event, event),
                &stream_range("votes", event, event),
            )
            .unwrap();
    }
    for text in [sql::read_offset(Dialect::Sqlite), sql::set_offset(Dialect::Sqlite)] {
        let runs = conn.prepare_cached(&text).unwrap().get_status(StatementStatus::Run);
        assert_eq!(runs, 50, "{text}");
    }
}

#[test]
fn stream_names_with_special_characters_stay_apart() {
    let long = "\u{e9}".repeat(128);
    let names = ["a\0", "a", "a\0b", "'; DROP TABLE votes --", "\"", "a\nb", &long];
    let conn = database(&PLAIN);
    let memory = MemoryStore::new(&PLAIN);
    for store in [&mut SqliteStore::new(&conn, &PLAIN) as &mut dyn Store, &mut &memory] {
        for (last, name) in (1..).zip(names) {
            assert!(
                !store
                    .apply_idempotent(&mut Batch::new(), &stream_range(name, 1, last))
                    .unwrap()
                    .skipped,
                "{name:?}"
            );
        }
        for (last, name) in (1..).zip(names) {
            assert_eq!(store.offset(name).unwrap(), last, "{name:?}");
        }
    }
}

// Batches that fail.

/// Applies a batch that fails, in a transaction that has applied events before. Checks that the
/// batch leaves nothing, and that the transaction goes on. Returns the error.
#[track_caller]
fn assert_failure_leaves_nothing(
    schema: &Schema,
    breaks: &str,
    repairs: &str,
    batch: &Batch,
) -> Error {
    let mut conn = database(schema);
    deliver(&mut conn, schema, "votes", 1, 40);
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    write_rows(&tx, "votes", 41, 41).unwrap();
    let mut store = SqliteStore::new(&tx, schema);
    store.apply_idempotent(&mut events("votes", 41, 41), &stream_range("votes", 41, 41)).unwrap();
    tx.execute_batch(breaks).unwrap();
    let error =
        store.apply_idempotent(&mut batch.clone(), &stream_range("votes", 42, 45)).unwrap_err();
    assert!(!tx.is_autocommit(), "{error}");
    tx.execute_batch(repairs).unwrap();
    assert_applied_in(&tx, schema, &[("votes", 41)]);
    tx.commit().unwrap();
    assert_eq!(rows(&conn), [("votes".to_owned(), 41, 41)]);

    // The same outside a transaction.
    conn.execute_batch(breaks).unwrap();
    let mut store = SqliteStore::new(&conn, schema);
    assert_eq!(
        store
            .apply_idempotent(&mut batch.clone(), &stream_range("votes", 42, 45))
            .unwrap_err()
            .to_string(),
        error.to_string()
    );
    conn.execute_batch(repairs).unwrap();
    assert_applied_in(&conn, schema, &[("votes", 41)]);
    deliver(&mut conn, schema, "votes", 42, 45);
    assert_applied_in(&conn, schema, &[("votes", 45)]);
    error
}

#[test]
fn batch_that_fails_in_its_middle_leaves_totals_and_offset_unchanged() {
    for schema in SCHEMAS {
        let mut beyond = events("votes", 42, 45);
        beyond.add(SUM, "votes", i64::MAX - 500);
        let error = assert_failure_leaves_nothing(schema, "", "", &beyond);
        assert!(
            matches!(error, Error::Overflow { counter: "stream.sum", what: "total", .. }),
            "{error:?}"
        );
    }
}

#[test]
fn offset_that_cannot_be_written_takes_the_totals_back() {
    let trigger = |event: &str, what: &str| {
        let when = format!(
            "CREATE TRIGGER odd BEFORE {event} ON keepcount_offsets BEGIN SELECT RAISE({what}); END"
        );
        (when, "DROP TRIGGER odd".to_owned())
    };
    let renamed = (
        "ALTER TABLE keepcount_offsets RENAME TO elsewhere;
         CREATE VIEW keepcount_offsets AS SELECT stream, last FROM elsewhere"
            .to_owned(),
        "DROP VIEW keepcount_offsets; ALTER TABLE elsewhere RENAME TO keepcount_offsets".to_owned(),
    );
    for ((breaks, repairs), names) in [
        (trigger("UPDATE", "ABORT, 'not today'"), ["stream votes", "not today"]),
        (trigger("INSERT", "FAIL, 'not today'"), ["stream votes", "not today"]),
        (trigger("UPDATE", "IGNORE"), ["table keepcount_offsets", "it must have no triggers"]),
        (renamed, ["stream votes", "view"]),
    ] {
        for schema in SCHEMAS {
            let text =
                assert_failure_leaves_nothing(schema, &breaks, &repairs, &events("votes", 42, 45))
                    .to_string();
            assert!(names.iter().all(|name| text.contains(name)), "{text}");
        }
    }
}

#[test]
fn offset_write_that_rolls_back_the_transaction_is_transaction_lost() {
    let mut conn = database(&PLAIN);
    deliver(&mut conn, &PLAIN, "votes", 1, 5);
    let gone = "CREATE TRIGGER odd BEFORE UPDATE ON keepcount_offsets BEGIN SELECT RAISE(ROLLBACK, 'gone'); END";
    conn.execute_batch(gone).unwrap();
    conn.execute_batch("BEGIN IMMEDIATE").unwrap();
    write_rows(&conn, "votes", 6, 7).unwrap();
    let error = SqliteStore::new(&conn, &PLAIN)
        .apply_idempotent(&mut events("votes", 6, 7), &stream_range("votes", 6, 7))
        .unwrap_err();
    assert!(
        matches!(error, Error::TransactionLost { .. })
            && error.to_string().contains("stream votes"),
        "{error}"
    );
    assert!(conn.is_autocommit());
    assert_applied_in(&conn, &PLAIN, &[("votes", 5)]);
    assert_eq!(rows(&conn), [("votes".to_owned(), 5, 5)]);
}

#[test]
fn absent_or_foreign_table_of_offsets_is_named() {
    let table = |columns: &str| {
        format!("DROP TABLE keepcount_offsets; CREATE TABLE keepcount_offsets {columns};")
    };
    let holding = |value: &str| {
        format!(
            "{}INSERT INTO keepcount_offsets VALUES ('votes', {value})",
            table("(stream, last)")
        )
    };
    // The message of `check`, and that of applying.
    for (breaks, checked, applied) in [
        (
            "DROP TABLE keepcount_offsets".to_owned(),
            "it is absent",
            "table keepcount_offsets: it is absent",
        ),
        (
            table("(stream TEXT PRIMARY KEY, upto INTEGER)"),
            "its columns are",
            "no such column: m.last",
        ),
        (
            table("(stream TEXT, last INTEGER)")
                + "INSERT INTO keepcount_offsets VALUES ('votes', 5)",
            "its columns are",
            "ON CONFLICT",
        ),
        (
            table("(stream TEXT PRIMARY KEY NOT NULL, last INTEGER NOT NULL)"),
            "it is not STRICT",
            "",
        ),
        (
            table("(stream TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID"),
            "collated NOCASE",
            "",
        ),
        (
            holding("'three'"),
            "its columns are",
            "the offset of stream votes is three, not an integer",
        ),
        (holding("3.5"), "its columns are", "the offset of stream votes is 3.5, not an integer"),
        (holding("NULL"), "its columns are", "the offset of stream votes is null, not an integer"),
        (
            "UPDATE keepcount_offsets SET last = -3".to_owned(),
            "",
            "the offset of stream votes is -3, below 0",
        ),
        (
            "CREATE TEMP TABLE keepcount_offsets (stream TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID"
                .to_owned(),
            "hides it",
            "",
        ),
        (
            "CREATE TRIGGER odd AFTER INSERT ON keepcount_offsets BEGIN SELECT 1; END".to_owned(),
            "its trigger odd",
            "",
        ),
    ] {
        let mut conn = database(&PLAIN);
        deliver(&mut conn, &PLAIN, "votes", 1, 5);
        conn.execute_batch(&breaks).unwrap();
        let mut store = SqliteStore::new(&conn, &PLAIN);
        match store.check() {
            Ok(()) => assert_eq!(checked, "", "{breaks}"),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    text.contains("keepcount_offsets")
                        && text.contains(checked)
                        && !checked.is_empty(),
                    "{text}"
                );
                assert!(matches!(error, Error::SchemaMismatch { .. }));
            }
        }
        if !applied.is_empty() {
            let error = store
                .apply_idempotent(&mut events("votes", 6, 6), &stream_range("votes", 6, 6))
                .unwrap_err();
            assert!(error.to_string().contains(applied), "{breaks}: {error}");
            assert_eq!(error.recovery(), Recovery::Permanent);
            assert!(
                applied == "ON CONFLICT"
                    || store.offset("votes").unwrap_err().to_string().contains(applied)
            );
        }
        // `apply` without offsets needs no table of them.
        let before = store.total(VOTES, 1).unwrap();
        store.apply(&mut events("votes", 1, 1)).unwrap();
        assert_eq!(
            store.total(VOTES, 1).unwrap(),
            before + 1,
            "{breaks}: nothing but this was applied"
        );
    }
}

// With other connections.

/// A deferred transaction reads the offset as of its own snapshot. If another connection moved the
/// offset since, the same events would still seem to follow it.
#[test]
fn overtaken_deferred_transaction_is_busy_and_says_to_begin_immediate() {
    for (schema, batch, operation) in [
        (&PLAIN, events("votes", 6, 9), "writing totals of counter show.votes"),
        (&RISING, events("votes", 6, 9), "writing totals of counter show.votes"),
        (&PLAIN, Batch::new(), "moving the offset of stream votes"),
    ] {
        let file = File::new(schema);
        let (mut ours, mut theirs) =
            (open(&file.path, Duration::ZERO), open(&file.path, Duration::ZERO));
        deliver(&mut theirs, schema, "votes", 1, 5);
        let tx = ours.transaction_with_behavior(TransactionBehavior::Deferred).unwrap();
        assert_eq!(stored_offset(&tx, "votes"), 5);
        deliver(&mut theirs, schema, "votes", 6, 9);
        let error = SqliteStore::new(&tx, schema)
            .apply_idempotent(&mut batch.clone(), &stream_range("votes", 6, 9))
            .unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Busy { .. }) && error.recovery() == Recovery::Retry,
            "{error:?}"
        );
        for part in [operation, "roll it back and repeat it whole", "BEGIN IMMEDIATE"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!tx.is_autocommit());
        tx.rollback().unwrap();
        assert!(deliver(&mut ours, schema, "votes", 6, 9).skipped);
        assert_applied_in(&ours, schema, &[("votes", 9)]);
        assert_eq!(rows(&ours), [("votes".to_owned(), 9, 9)]);
    }
}

#[test]
fn error_of_a_held_lock_names_the_operation_that_was_refused() {
    let file = File::new(&PLAIN);
    let (ours, theirs) = (open(&file.path, Duration::ZERO), open(&file.path, Duration::ZERO));
    theirs.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut store = SqliteStore::new(&ours, &PLAIN);
    for (batch, operation) in [
        (
            events("votes", 1, 2),
            "writing totals of counter show.votes, stream.sum: database is locked",
        ),
        (Batch::new(), "moving the offset of stream votes: database is locked"),
    ] {
        let error =
            store.apply_idempotent(&mut batch.clone(), &stream_range("votes", 1, 2)).unwrap_err();
        assert!(
            error.to_string().starts_with(operation) && error.recovery() == Recovery::Retry,
            "{error}"
        );
    }
    theirs.execute_batch("COMMIT").unwrap();
    assert!(
        !store
            .apply_idempotent(&mut events("votes", 1, 2), &stream_range("votes", 1, 2))
            .unwrap()
            .skipped
    );
}

#[test]
fn repeat_after_an_unknown_outcome_applies_each_event_once() {
    for schema in SCHEMAS {
        let mut conn = database(schema);
        let mut random = Random(5);
        let (mut last, mut committed) = (0, 0);
        while last < 600 {
            let (first, end) = (last + 1, last + 1 + random.below(9));
            let mut stands = false;
            for _ in 0..random.below(4) {
                let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
                write_rows(&tx, "votes", first, end).unwrap();
                let mut store = SqliteStore::new(&tx, schema);
                let applied = store
                    .apply_idempotent(
                        &mut events("votes", first, end),
                        &stream_range("votes", first, end),
                    )
                    .unwrap();
                assert_eq!(applied.skipped, stands, "whether it was committed");
                if applied.skipped || random.coin() {
                    tx.rollback().unwrap();
                } else {
                    tx.commit().unwrap();
                    stands = true;
                }
            }
            committed += u64::from(stands);
            assert_eq!(deliver(&mut conn, schema, "votes", first, end).skipped, stands);
            last = end;
        }
        assert!(committed > 10);
        assert_applied_in(&conn, schema, &[("votes", last)]);
        assert_eq!(rows(&conn), [("votes".to_owned(), last.cast_signed(), last.cast_signed())]);
    }
}

fn names(offsets: &[(String, u64)]) -> Vec<(&str, u64)> {
    offsets.iter().map(|(stream, last)| (stream.as_str(), *last)).collect()
}

#[test]
fn offsets_are_listed_by_pages_and_a_forgotten_stream_counts_again() {
    let conn = database(&PLAIN);
    let mut sqlite = SqliteStore::new(&conn, &PLAIN);
    let memory = MemoryStore::new(&PLAIN);
    let long = "s".repeat(256);
    let streams = ["a", "b", "b\u{1}", "ba", "\u{e9}", long.as_str(), "Z"];
    for (stream, last) in streams.iter().zip(1..) {
        let (stream_range, mut batch) = (stream_range(stream, 1, last), events(stream, 1, last));
        sqlite.apply_idempotent(&mut batch, &stream_range).unwrap();
        memory.apply_idempotent(&mut events(stream, 1, last), &stream_range).unwrap();
    }
    // A stream of which nothing was applied has no offset.
    assert!(memory.apply_idempotent(&mut Batch::new(), &stream_range("gap", 2, 2)).is_err());
    let mut sorted: Vec<(&str, u64)> = streams.iter().copied().zip(1..).collect();
    sorted.sort_unstable();
    for limit in [0, 1, 2, 3, 7, 100] {
        for after in
            [None, Some(""), Some("a"), Some("b"), Some("c"), Some("\u{e9}"), Some("\u{ffff}")]
        {
            let wanted: Vec<_> = sorted
                .iter()
                .filter(|(stream, _)| Some(*stream) > after)
                .take(limit)
                .copied()
                .collect();
            assert_eq!(names(&sqlite.offsets(after, limit).unwrap()), wanted, "{after:?} {limit}");
            assert_eq!(names(&memory.offsets(after, limit)), wanted, "{after:?} {limit}");
        }
    }
    assert_eq!((sqlite.forget_offset("b").unwrap(), memory.forget_offset("b")), (2, 2));
    assert_eq!((sqlite.forget_offset("b").unwrap(), memory.forget_offset("b")), (0, 0));
    assert_eq!((sqlite.offsets(None, 100).unwrap().len(), memory.offsets(None, 100).len()), (6, 6));
    assert!(!memory.snapshot().to_bytes().unwrap().windows(3).any(|bytes| bytes == b"\x01b\x02"));
    // Totals stay, and an event that is delivered again counts again.
    let sum = |store: &mut SqliteStore<'_>| store.total(SUM, "b").unwrap();
    assert_eq!((sum(&mut sqlite), memory.total(SUM, "b").unwrap()), (3, 3));
    assert!(
        !sqlite.apply_idempotent(&mut events("b", 1, 2), &stream_range("b", 1, 2)).unwrap().skipped
    );
    assert!(
        !memory.apply_idempotent(&mut events("b", 1, 2), &stream_range("b", 1, 2)).unwrap().skipped
    );
    assert_eq!((sum(&mut sqlite), memory.total(SUM, "b").unwrap()), (6, 6));
    conn.execute_batch("UPDATE keepcount_offsets SET last = -1 WHERE stream = 'a'").unwrap();
    for error in [sqlite.offsets(None, 100).unwrap_err(), sqlite.forget_offset("a").unwrap_err()] {
        assert_eq!(
            error.to_string(),
            "table keepcount_offsets: the offset of stream a is -1, below 0, which keepcount did not write"
        );
    }
    assert_eq!(sqlite.offsets(Some("a"), 100).unwrap().len(), 5);
}

#[test]
fn forgotten_offset_comes_back_when_its_transaction_rolls_back() {
    let mut conn = database(&PLAIN);
    deliver(&mut conn, &PLAIN, "votes", 1, 40);
    let tx = conn.transaction().unwrap();
    assert_eq!(SqliteStore::new(&tx, &PLAIN).forget_offset("votes").unwrap(), 40);
    tx.rollback().unwrap();
    assert_eq!(stored_offset(&conn, "votes"), 40);
}

/// A log lost its end, and the totals did not. The next events of the log were skipped one by one,
/// without an error.
#[test]
fn an_offset_that_is_ahead_of_its_log_is_refused_before_events_are_delivered() {
    let mut conn = database(&PLAIN);
    deliver(&mut conn, &PLAIN, "votes", 1, 40);
    let mut store = SqliteStore::new(&conn, &PLAIN);
    let memory = MemoryStore::new(&PLAIN);
    memory.apply_idempotent(&mut events("votes", 1, 40), &stream_range("votes", 1, 40)).unwrap();
    let memory = MemoryStore::restore(&PLAIN, &memory.snapshot()).unwrap();
    // The log has 35 events; another gets the number 36.
    assert!(
        store
            .apply_idempotent(&mut events("votes", 36, 36), &stream_range("votes", 36, 36))
            .unwrap()
            .skipped
    );
    for (end, from) in [(40, Some(41)), (41, Some(41)), (u64::MAX, Some(41)), (39, None), (0, None)]
    {
        for found in [store.replay_from("votes", end), memory.replay_from("votes", end)] {
            match (found, from) {
                (Ok(found), Some(from)) => assert_eq!(found, from),
                (Err(error), None) => {
                    assert_eq!(error.recovery(), Recovery::Permanent);
                    let (wanted, found) = (
                        format!(
                            "stream votes: events up to 40 were applied, and its log ends at {end}; "
                        ),
                        error.to_string(),
                    );
                    assert!(found.starts_with(&wanted), "{found}");
                    assert!(
                        matches!(error, Error::LogTruncated { applied: 40, end: known, .. } if known == end)
                    );
                }
                (found, _) => panic!("{end}: {found:?}"),
            }
        }
    }
    assert_eq!(
        (store.replay_from("new", 0).unwrap(), memory.replay_from("new", 7).unwrap()),
        (1, 1)
    );
}
