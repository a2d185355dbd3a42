//! Tests of the audit over a script: which statements run, in which order.

#![allow(clippy::unwrap_used)]

use super::{Columns, Database, Rows, merge_up_to};
use crate::batch::{Record, Tally};
use crate::engine::now;
use crate::engine::scripted::{Script, Scripted};
use crate::error::Error;
use crate::executor::{Column, Row as _};
use crate::reconcile::audit::{PageRequest, Probe, RepairRequest};
use crate::sql::Dialect;
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

/// An audit of votes, whose columns are the setlist and then the setlist as their key.
fn audit(dialect: Dialect, columns: Columns) -> Database<'static> {
    let rows = Rows::<Scripted>::of("votes", |row| match row.column(0) {
        Column::Integer(setlist) => Ok(Vote(setlist)),
        other => Err(format!("a setlist is {other}").into()),
    });
    let mut audit = Database {
        dialect,
        schema: &SCHEMA,
        identity: 1,
        sources: Vec::new(),
        plan: None,
        limits: super::Limits::default(),
    };
    let sources = rows.columns("setlist").key(VOTES, columns).sources(&SCHEMA).unwrap();
    audit.sources = sources.into_iter().map(|source| source.found(dialect).unwrap()).collect();
    audit
}

fn by_sql() -> Columns {
    Columns::of(["setlist"]).count()
}

fn page(counter: CounterId) -> PageRequest {
    PageRequest { counter, after: None, until: None, keys: 2 }
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
    let mut script = Script::<false>::failing("SELECT t.");
    let error = now(audit(Dialect::Postgres, by_sql()).compare(&mut script, &page(VOTES.id())))
        .unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert_eq!(script.verbs(), ["BEGIN", "SELECT", "ROLLBACK"]);
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
