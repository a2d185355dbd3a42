//! Tests of the audit over a script: which statements run, in which order.

#![allow(clippy::unwrap_used)]

use super::{Columns, Database, Rows, Unfound, merge_up_to};
use crate::batch::{Record, Tally};
use crate::engine::now;
use crate::engine::scripted::{Refused, Script, Scripted};
use crate::error::Error;
use crate::executor::{Column, ErrorKind, Row as _};
use crate::reconcile::audit::{PageRequest, Probe, Ready, RepairRequest};
use crate::sql::{Dialect, Query};
use crate::{Counter, CounterId, KeyBuf, Schema};

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, SHOW);
const SCHEMA: Schema = Schema::new(&[VOTES.table(), SHOW.table(), SHOWS.table()]);

struct Vote(i64);

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(VOTES, self.0, 1);
    }
}

/// The source of votes, whose columns are the setlist and then the setlist as their key.
fn unfound(columns: Columns) -> Vec<Unfound> {
    let rows = Rows::<Scripted>::of("votes", |row| match row.column(0) {
        Column::Integer(setlist) => Ok(Vote(setlist)),
        other => Err(format!("a setlist is {other}").into()),
    });
    rows.columns("setlist").key(VOTES, columns).sources(&SCHEMA).unwrap()
}

fn audit_of_nothing(dialect: Dialect) -> Database<'static> {
    Database {
        dialect,
        schema: &SCHEMA,
        identity: 1,
        sources: Vec::new(),
        plan: None,
        limits: super::Limits::default(),
    }
}

/// An audit of votes.
fn audit(dialect: Dialect, columns: Columns) -> Database<'static> {
    let sources = unfound(columns).into_iter().map(|source| source.found(dialect).unwrap());
    Database { sources: sources.collect(), ..audit_of_nothing(dialect) }
}

fn by_sql() -> Columns {
    Columns::of(["setlist"]).count()
}

fn page(counter: CounterId) -> PageRequest {
    PageRequest { counter, after: None, until: None, keys: 2 }
}

/// A row with one text.
fn text(text: &'static str) -> Vec<Vec<Column<'static>>> {
    vec![vec![Column::Text(text.into())]]
}

/// Rows of integers.
fn rows(rows: &[&[i64]]) -> Vec<Vec<Column<'static>>> {
    rows.iter().map(|row| row.iter().copied().map(Column::Integer).collect()).collect()
}

#[test]
fn page_of_rows_reads_totals_and_sums_in_one_snapshot() {
    let mut script = Script::<true>::answering([
        ("SELECT t.", Ok(rows(&[&[7, 5], &[8, 1]]))),
        ("SELECT k_1, count", Ok(rows(&[&[7, 3], &[8, 1]]))),
    ]);
    let diff =
        now(audit(Dialect::Postgres, by_sql()).compare(&mut script, &page(VOTES.id()))).unwrap();
    assert_eq!(script.verbs(), ["BEGIN", "SELECT", "SELECT", "ROLLBACK"]);
    let drifts: Vec<_> =
        diff.drifts.iter().map(|drift| (drift.stored, drift.expected, drift.rows)).collect();
    assert_eq!((drifts, diff.keys), (vec![(5, 3, 3)], 2));
}

#[test]
fn page_by_tally_stops_reading_at_the_first_key_too_many() {
    let votes = rows(&[&[7, 7], &[7, 7], &[8, 8], &[9, 9], &[10, 10], &[11, 11]]);
    let mut script = Script::<false>::answering([("SELECT setlist", Ok(votes))]);
    let diff =
        now(audit(Dialect::Postgres, ["setlist"].into()).compare(&mut script, &page(VOTES.id())))
            .unwrap();
    assert_eq!(script.verbs(), ["BEGIN", "SELECT", "SELECT", "ROLLBACK"]);
    assert_eq!((diff.keys, diff.rows, script.scanned), (2, 3, 5));
}

#[test]
fn page_of_a_rollup_sums_pairs_in_sqlite_and_sums_in_postgres() {
    let mut sqlite = Script::<false>::answering([
        ("SELECT t.", Ok(rows(&[&[70, 9]]))),
        (
            r#"SELECT l."key_2", l."total", f."total""#,
            Ok(rows(&[&[70, 1, 4], &[70, 1, 5], &[80, 2, 3]])),
        ),
    ]);
    let diff =
        now(audit(Dialect::Sqlite, by_sql()).compare(&mut sqlite, &page(SHOWS.id()))).unwrap();
    let drifts: Vec<_> =
        diff.drifts.iter().map(|drift| (drift.stored, drift.expected, drift.rows)).collect();
    assert_eq!(drifts, [(0, 6, 1)]);
    let part = vec![Column::Integer(70), Column::Integer(2), Column::Text("9".into())];
    let mut postgres = Script::<true>::answering([
        ("SELECT t.", Ok(rows(&[&[70, 9]]))),
        (r#"SELECT l."key_2", count(*)"#, Ok(vec![part])),
    ]);
    assert_eq!(
        now(audit(Dialect::Postgres, by_sql()).compare(&mut postgres, &page(SHOWS.id())))
            .unwrap()
            .drifts,
        []
    );
    assert!(
        postgres.ran.iter().any(|ran| ran.starts_with("BEGIN") && ran.contains("enable_seqscan"))
    );
}

#[test]
fn repair_in_postgres_locks_totals_before_it_recounts_them() {
    let ask = RepairRequest { counter: VOTES.id(), keys: vec![KeyBuf::of::<i64>(7)] };
    let mut script = Script::<true>::default();
    now(audit(Dialect::Postgres, by_sql()).repair(&mut script, &ask)).unwrap();
    let at = |text: &str| script.ran.iter().position(|ran| ran.contains(text)).unwrap();
    assert!(
        at("read committed") < at("RETURNING") && at("RETURNING") < at("LATERAL"),
        "{:?}",
        script.ran
    );
    assert_eq!(script.verbs().last(), Some(&"COMMIT"));
}

#[test]
fn failed_page_ends_its_snapshot() {
    let verbs = ["BEGIN", "SELECT", "SELECT", "ROLLBACK"];
    for (fails, verbs) in
        [("SELECT t.", &[verbs[0], verbs[1], verbs[3]][..]), ("SELECT k_1, count", &verbs)]
    {
        let mut script = Script::<false>::failing(fails);
        let error = now(audit(Dialect::Postgres, by_sql()).compare(&mut script, &page(VOTES.id())))
            .unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error:?}");
        assert_eq!(script.verbs(), verbs);
    }
}

#[test]
fn page_with_drift_is_busy_if_what_its_source_watches_changed_after_it() {
    for (after, busy) in [("1>2", false), ("1>2 1>3", true)] {
        let mut audit = audit(Dialect::Postgres, by_sql());
        audit.sources[0].watch = Some(Query::new("SELECT kin", Vec::new()));
        let mut script = Script::<true>::answering([
            ("SELECT t.", Ok(rows(&[&[7, 5]]))),
            ("SELECT k_1, count", Ok(rows(&[&[7, 3]]))),
            ("SELECT kin", Ok(text("1>2"))),
            ("SELECT kin", Ok(text(after))),
        ]);
        let compared = now(audit.compare(&mut script, &page(VOTES.id())));
        assert_eq!(matches!(compared, Err(Error::Busy { .. })), busy, "{compared:?}");
    }
}

#[test]
fn repair_in_sqlite_tells_a_sum_beyond_64_bits_from_other_failures_of_the_recount() {
    let ask = RepairRequest { counter: VOTES.id(), keys: vec![KeyBuf::of::<i64>(7)] };
    for (kind, beyond) in [(ErrorKind::Overflow, true), (ErrorKind::Busy("a lock"), false)] {
        let recount = r#"SELECT r."setlist", count"#;
        let mut script = Script::<false>::answering([(recount, Err(Refused(kind)))]);
        let error = now(audit(Dialect::Sqlite, by_sql()).repair(&mut script, &ask)).unwrap_err();
        match error {
            Error::Overflow { key, .. } => assert!(beyond && key == "7"),
            Error::Busy { .. } => assert!(!beyond),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn faulty_rows_are_read_up_to_as_many_as_are_wanted() {
    let sample = || rows(&[&[7, 7, 1, 1], &[7, 8, 1, 1], &[8, 8, 1, 0], &[9, 8, 1, 1]]);
    for (most, scanned) in [(1, 2), (2, 3), (3, 4), (4, 4)] {
        let mut script = Script::<false>::answering([("SELECT setlist", Ok(sample()))]);
        let mut audit = audit(Dialect::Sqlite, by_sql());
        let faults = now(audit.faulty_rows(&mut script, &VOTES.id(), most)).unwrap();
        assert_eq!((faults.len(), script.scanned), (most.min(3), scanned));
    }
}

#[test]
fn row_that_is_no_record_is_named_by_its_key_if_it_has_one() {
    for (key, named) in [(Column::Integer(7), Some("7")), (Column::Null, None)] {
        let row = vec![Column::Text("x".into()), key, Column::Integer(1), Column::Integer(1)];
        let mut script = Script::<false>::answering([("SELECT setlist", Ok(vec![row]))]);
        let mut audit = audit(Dialect::Sqlite, by_sql());
        let faults = now(audit.faulty_rows(&mut script, &VOTES.id(), 1)).unwrap();
        let Error::Source { key, reason, .. } = &faults[0] else { panic!("{faults:?}") };
        assert_eq!(key.as_deref(), named);
        assert!(reason.contains("a setlist is"), "{reason}");
    }
}

#[test]
fn end_of_a_backfill_in_postgres_has_its_settings_before_it_does_anything() {
    let ask = Ready { counter: VOTES.id(), run: 1, kept: None };
    let isolation = "SELECT current_setting('transaction_isolation')";
    let mut script = Script::<true>::answering([(isolation, Ok(text("read committed")))]);
    now(audit(Dialect::Postgres, by_sql()).ready(&mut script, &ask)).unwrap();
    let settings = &script.ran[1];
    for setting in ["'read committed'", "transaction_read_only = off", "lock_timeout = 5000"] {
        assert!(settings.contains(setting), "{settings}");
    }
}

#[test]
fn probe_of_a_replica_in_postgres_says_what_it_is() {
    let mut script = Script::<true>::answering([("SELECT CASE", Ok(text("it is a replica")))]);
    let ask = Probe { counter: VOTES.id(), totals: 1 };
    let error = now(audit(Dialect::Postgres, by_sql()).probe(&mut script, &ask)).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidUse { reason, .. } if reason == "it is a replica"),
        "{error:?}"
    );
}

/// Such a role may be one that reads some columns only.
#[test]
fn source_in_postgres_that_the_role_may_not_lock_is_read_without_its_lock() {
    for (locks, opening) in [(Ok(Vec::new()), "LOCK TABLE"), (Err(ErrorKind::ReadOnly), "SET")] {
        let place = vec![Column::Text("public".into()), Column::Integer(1)];
        let mut script = Script::<true>::answering([
            ("SELECT n.nspname", Ok(vec![place])),
            ("LOCK TABLE", locks.map_err(Refused)),
        ]);
        let mut audit = audit_of_nothing(Dialect::Postgres);
        now(audit.add(&mut script, unfound(by_sql()))).unwrap();
        let begins = &audit.sources[0].opening.script;
        assert!(begins.starts_with(opening), "{begins}");
    }
    let place = vec![Column::Text("public".into()), Column::Integer(1)];
    let mut script = Script::<true>::answering([
        ("SELECT n.nspname", Ok(vec![place])),
        ("LOCK TABLE", Err(Refused(ErrorKind::Busy("a lock")))),
    ]);
    let refused = now(audit_of_nothing(Dialect::Postgres).add(&mut script, unfound(by_sql())));
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
}

#[test]
fn source_in_sqlite_is_locked_if_its_statements_read_another_file_and_only_then() {
    for (opcode, is_locked) in [("Transaction", true), ("OpenRead", false)] {
        let [one, two] = [1, 2].map(Column::Integer);
        let step = vec![one.clone(), Column::Text(opcode.into()), two.clone(), Column::Integer(0)];
        let file = |at, name: &'static str| vec![Column::Integer(at), Column::Text(name.into())];
        let mut script = Script::<false>::answering([
            ("SELECT schema", Ok(text("app"))),
            ("EXPLAIN SELECT", Ok(vec![step])),
            ("SELECT seq", Ok(vec![file(0, "main"), file(2, "app"), file(3, "other")])),
        ]);
        let mut audit = audit_of_nothing(Dialect::Sqlite);
        now(audit.add(&mut script, unfound(by_sql()))).unwrap();
        assert_eq!(audit.sources[0].opening.is_locked, is_locked, "{opcode}");
    }
}

#[test]
fn audit_refuses_a_connection_inside_a_transaction() {
    let mut script = Script::<true>::default().within();
    let ask = Probe { counter: VOTES.id(), totals: 1 };
    let error = now(audit(Dialect::Postgres, by_sql()).probe(&mut script, &ask)).unwrap_err();
    assert!(matches!(error, Error::InvalidUse { .. }) && script.ran.is_empty(), "{error:?}");
}

#[test]
fn page_ends_at_its_bound_or_where_it_is_truncated_whichever_is_first() {
    let key = |key: i64| KeyBuf::of::<i64>(key);
    let ask = PageRequest { until: Some(key(5)), ..page(VOTES.id()) };
    for (end, next) in [(None, None), (Some(3), Some(3)), (Some(5), None), (Some(9), None)] {
        let diff = merge_up_to(&ask, end.map(key), Vec::new(), Vec::new()).unwrap();
        assert_eq!(diff.next, next.map(key), "{end:?}");
    }
}
