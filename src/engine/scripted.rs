//! A scripted executor, and tests of the engine over it: without a database, and every statement
//! that ran can be inspected.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::fmt;

use super::{leaderboard, now, read, sweep_zeros, tables, write};
use crate::error::{Cause, Error, Result};
use crate::executor::{
    Column, Driver, Each, EachOf, ErrorKind, Executor, Failure, NotCommitted, Reader, Reading,
    Reply, Row, Stopped,
};
use crate::leaderboard::Leaderboard;
use crate::sql::{Dialect, Query};
use crate::store::Sweep;
use crate::{Batch, Counter, KeyBuf, Schema, StreamRange};

const VOTES: Counter<i64> = Counter::new("setlist.votes");
const SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
const SHOWS: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, SHOW);
const PLAIN: Schema = Schema::new(&[VOTES.table()]);
const SUMMED: Schema = Schema::new(&[VOTES.table(), SHOW.table(), SHOWS.table()]);
const TOP: Leaderboard<i64> =
    Leaderboard::new("setlist.top", [VOTES]).by(|[n]| (n > 0).then_some(n));
const RANKED: Schema = Schema::new(&[VOTES.table()]).leaderboards(&[TOP.id()]);

#[derive(Debug, Clone)]
pub(crate) struct Refused(pub(crate) ErrorKind);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} says the script", self.0)
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self { kind: refused.0.clone(), fault: None, cause: refused.into() }
    }
}

pub(crate) struct Line(Vec<Column<'static>>);

impl Row for Line {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn column(&self, index: usize) -> Column<'_> {
        self.0.get(index).cloned().unwrap_or(Column::Null)
    }

    fn read(&self, reader: &Reader, to: &mut Batch) -> Result<(), Cause> {
        reader.read::<Scripted>(self, to)
    }
}

/// The answer to the next query whose text begins with this prefix.
pub(crate) type Answer = (&'static str, Result<Vec<Vec<Column<'static>>>, Refused>);

/// Records what runs and answers with the script. Without a scripted answer a query returns
/// nothing, and each execution writes one row.
#[derive(Default)]
pub(crate) struct Script<const POSTGRES: bool> {
    nested: bool,
    pub(crate) ran: Vec<String>,
    answers: VecDeque<Answer>,
    commit: Option<NotCommitted>,
    cannot_roll_back: bool,
    /// How many rows were scanned.
    pub(crate) scanned: usize,
}

impl<const POSTGRES: bool> Script<POSTGRES> {
    pub(crate) fn answering(answers: impl IntoIterator<Item = Answer>) -> Self {
        Self { answers: answers.into_iter().collect(), ..Self::default() }
    }

    pub(crate) fn within(mut self) -> Self {
        self.nested = true;
        self
    }

    /// Is busy at the next query whose text begins with this prefix.
    pub(crate) fn failing(begins: &'static str) -> Self {
        Self::answering([(begins, Err(busy()))])
    }

    fn answer(&mut self, query: &Query<'_>) -> Result<Vec<Vec<Column<'static>>>, Refused> {
        self.ran.push(format!("{} <{}>", query.text, query.rows().len()));
        match self.answers.front() {
            Some((begins, _)) if query.text.starts_with(begins) => {
                self.answers.pop_front().map_or(Ok(Vec::new()), |(_, answer)| answer)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The first word of each statement that ran.
    pub(crate) fn verbs(&self) -> Vec<&str> {
        self.ran.iter().map(|text| text.split([' ', ';']).next().unwrap_or_default()).collect()
    }
}

pub(crate) enum Scripted {}

impl Driver for Scripted {
    type Row<'r> = Line;
}

fn failed_at(query: usize) -> impl FnOnce(Refused) -> Stopped {
    move |refused| Stopped::Failed { query, row: 0, error: refused.into() }
}

impl<const POSTGRES: bool> Script<POSTGRES> {
    fn fetched(&mut self, queries: &[Query<'_>], each: &mut EachOf<'_>) -> Result<(), Stopped> {
        for (query, text) in queries.iter().enumerate() {
            for line in self.answer(text).map_err(failed_at(query))? {
                each(query, &Line(line)).map_err(Stopped::Refused)?;
            }
        }
        Ok(())
    }

    fn scanned(&mut self, query: &Query<'_>, each: &mut Each<'_>) -> Result<(), Stopped> {
        for line in self.answer(query).map_err(failed_at(0))? {
            self.scanned += 1;
            if !each(&Line(line)).map_err(Stopped::Refused)? {
                break;
            }
        }
        Ok(())
    }

    fn executed(&mut self, queries: &[Query<'_>]) -> Result<Vec<u64>, Stopped> {
        let mut written = Vec::new();
        for (query, text) in queries.iter().enumerate() {
            let rows = self.answer(text).map_err(failed_at(query))?;
            // An answer with a row means that nothing was written.
            if !rows.is_empty() && text.rows().any(|row| text.is_skipped(row, 0)) {
                return Err(Stopped::Skipped { query, row: 0 });
            }
            written.push(text.rows().len() as u64);
        }
        Ok(written)
    }
}

impl<const POSTGRES: bool> Executor for Script<POSTGRES> {
    fn dialect(&self) -> Dialect {
        if POSTGRES { Dialect::Postgres } else { Dialect::Sqlite }
    }

    fn kind_of(&self, cause: &Cause) -> ErrorKind {
        let refused = cause.downcast_ref::<Refused>();
        refused.map_or(ErrorKind::Other, |refused| refused.0.clone())
    }

    fn is_nested(&self) -> bool {
        self.nested
    }

    fn fetch<'x>(
        &'x mut self,
        queries: &'x [Query<'_>],
        each: &'x mut EachOf<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::now(self.fetched(queries, each))
    }

    fn scan<'x>(
        &'x mut self,
        query: &'x Query<'_>,
        each: &'x mut Each<'_>,
    ) -> Reply<'x, Result<(), Stopped>> {
        Reply::now(self.scanned(query, each))
    }

    fn execute<'x>(&'x mut self, queries: &'x [Query<'_>]) -> Reply<'x, Result<Vec<u64>, Stopped>> {
        Reply::now(self.executed(queries))
    }

    fn run<'x>(&'x mut self, script: &'x str) -> Reply<'x, Result<(), Failure>> {
        let answer = self.answer(&Query::new(script, Vec::new()));
        Reply::now(answer.map(drop).map_err(Into::into))
    }

    fn begin(&mut self) -> Reply<'_, Result<(), Failure>> {
        self.run("BEGIN")
    }

    fn begin_read<'x>(&'x mut self, reading: Reading<'x>) -> Reply<'x, Result<(), Failure>> {
        let begun = self.answer(&Query::new(format!("BEGIN; {}", reading.script), Vec::new()));
        Reply::now(begun.map(drop).map_err(Into::into))
    }

    fn is_idle(&mut self) -> Reply<'_, Result<bool, Failure>> {
        Reply::now(Ok(!self.nested))
    }

    fn commit(&mut self) -> Reply<'_, Result<(), NotCommitted>> {
        self.ran.push("COMMIT".to_owned());
        Reply::now(self.commit.take().map_or(Ok(()), Err))
    }

    fn roll_back(&mut self) -> Reply<'_, bool> {
        self.ran.push("ROLLBACK".to_owned());
        Reply::now(!self.cannot_roll_back)
    }

    fn finish(&mut self) {}
}

fn votes(keys: impl IntoIterator<Item = i64>) -> Batch {
    let mut batch = Batch::new();
    keys.into_iter().for_each(|key| batch.add(VOTES, key, 1));
    batch
}

fn busy() -> Refused {
    Refused(ErrorKind::Busy("the script is busy"))
}

#[test]
fn a_plain_batch_is_one_statement_in_a_transaction() {
    let mut sqlite = Script::<false>::default();
    let applied = now(write::apply(&mut sqlite, &PLAIN, &mut votes([7, 8, 9]), None)).unwrap();
    assert_eq!((applied.totals, applied.statements), (3, 3));
    assert_eq!(sqlite.verbs(), ["BEGIN", "INSERT", "COMMIT"]);
    assert!(
        sqlite.ran.iter().any(|ran| ran.ends_with("<3>")),
        "executed for each total: {:?}",
        sqlite.ran
    );
    let mut postgres = Script::<true>::default();
    let applied = now(write::apply(&mut postgres, &PLAIN, &mut votes([7, 8, 9]), None)).unwrap();
    assert_eq!((applied.totals, applied.statements), (3, 1));
    assert!(
        postgres.ran.iter().any(|ran| ran.contains("unnest") && ran.ends_with("<1>")),
        "{:?}",
        postgres.ran
    );
}

#[test]
fn an_empty_batch_and_one_that_is_nested_begin_nothing() {
    let mut script = Script::<true>::default();
    now(write::apply(&mut script, &PLAIN, &mut Batch::new(), None)).unwrap();
    assert!(script.ran.is_empty());
    let mut script = Script::<true>::default().within();
    now(write::apply(&mut script, &PLAIN, &mut votes([7]), None)).unwrap();
    assert_eq!(script.verbs(), ["INSERT"]);
}

#[test]
fn an_offset_is_read_first_and_moved_last() {
    let last = |last: i64| vec![vec![Column::Integer(last)]];
    let stream_range = StreamRange::new("votes", 4, 5).unwrap();
    let mut script = Script::<false>::answering([("SELECT m.\"last\"", Ok(last(3)))]);
    assert!(
        !now(write::apply(&mut script, &RANKED, &mut votes([7]), Some(&stream_range)))
            .unwrap()
            .skipped
    );
    assert_eq!(
        script.verbs(),
        ["BEGIN", "SELECT", "INSERT", "SELECT", "SELECT", "INSERT", "COMMIT"]
    );
    assert!(
        script.ran.iter().rev().nth(1).unwrap().contains("keepcount_offsets"),
        "{:?}",
        script.ran
    );
    let mut script = Script::<false>::answering([("SELECT m.\"last\"", Ok(last(5)))]);
    let mut batch = votes([7]);
    assert!(
        now(write::apply(&mut script, &RANKED, &mut batch, Some(&stream_range))).unwrap().skipped
    );
    assert_eq!((script.verbs(), batch.is_empty()), (vec!["BEGIN", "SELECT", "COMMIT"], true));
    let mut script = Script::<false>::answering([("SELECT m.\"last\"", Ok(last(1)))]);
    let error =
        now(write::apply(&mut script, &RANKED, &mut votes([7]), Some(&stream_range))).unwrap_err();
    assert!(matches!(error, Error::Gap { applied: 1, .. }));
    assert_eq!(script.verbs(), ["BEGIN", "SELECT", "ROLLBACK"]);
}

#[test]
fn postgres_locks_children_before_it_reads_them_and_sqlite_does_not() {
    let mut script = Script::<true>::default();
    now(write::apply(&mut script, &SUMMED, &mut votes([7, 8]), None)).unwrap();
    let locks = script.ran.iter().position(|ran| ran.contains("keepcount_locks")).unwrap();
    let reads = script
        .ran
        .iter()
        .position(|ran| ran.starts_with("SELECT") && ran.contains("setlist_show"))
        .unwrap();
    assert!(locks < reads);
    assert_eq!(script.verbs(), ["BEGIN", "INSERT", "SELECT", "INSERT", "COMMIT"]);
    let mut script = Script::<false>::default();
    now(write::apply(&mut script, &SUMMED, &mut votes([7, 8]), None)).unwrap();
    assert_eq!(script.verbs(), ["BEGIN", "SELECT", "INSERT", "COMMIT"]);
}

#[test]
fn what_fails_in_a_transaction_of_its_own_is_rolled_back_and_may_be_tried_again() {
    let mut script = Script::<true>::answering([("INSERT", Err(busy()))]);
    let mut batch = votes([7]);
    let error = now(write::apply(&mut script, &PLAIN, &mut batch, None)).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert_eq!((script.verbs(), batch.len()), (vec!["BEGIN", "INSERT", "ROLLBACK"], 1));
    let mut script = Script::<true>::answering([("BEGIN", Err(busy()))]);
    assert!(matches!(
        now(write::apply(&mut script, &PLAIN, &mut batch, None)),
        Err(Error::Busy { .. })
    ));
    assert_eq!(script.verbs(), ["BEGIN", "ROLLBACK"], "a BEGIN that failed may have begun");
}

#[test]
fn an_error_says_what_stands() {
    for (commit, rolls_back) in [(true, true), (false, true), (true, false), (false, false)] {
        let refused = if commit {
            NotCommitted::Refused(busy().into())
        } else {
            NotCommitted::Unknown(busy().into())
        };
        let mut script = Script::<true> {
            commit: Some(refused),
            cannot_roll_back: !rolls_back,
            ..Script::default()
        };
        let error = now(write::apply(&mut script, &PLAIN, &mut votes([7]), None)).unwrap_err();
        match (commit, rolls_back) {
            (false, _) => assert!(matches!(error, Error::Indeterminate { .. }), "{error:?}"),
            (true, true) => assert!(matches!(error, Error::Busy { .. }), "{error:?}"),
            (true, false) => assert!(matches!(error, Error::TransactionOpen { .. }), "{error:?}"),
        }
        assert_eq!(script.verbs(), ["BEGIN", "INSERT", "COMMIT", "ROLLBACK"]);
    }
}

#[test]
fn what_fails_within_the_caller_s_transaction_cannot_be_committed() {
    // SQLite's transaction goes on, and what was added is subtracted again.
    let mut script = Script::<false>::answering([("SELECT t.\"key\"", Err(busy()))]).within();
    let error = now(write::apply(&mut script, &RANKED, &mut votes([7]), None)).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert_eq!(script.verbs(), ["INSERT", "SELECT", "INSERT", "SELECT", "SELECT"]);
    // If that fails too, nothing of the transaction may stay.
    let reads = || ("SELECT t.\"key\"", Err(busy()));
    let mut script = Script::<false>::answering([reads(), ("INSERT", Err(busy()))]).within();
    now(write::apply(&mut script, &RANKED, &mut votes([7]), None)).unwrap_err();
    assert_eq!(script.verbs(), ["INSERT", "SELECT", "INSERT", "ROLLBACK"]);
    let mut script = Script::<true>::answering([reads()]).within();
    now(write::apply(&mut script, &RANKED, &mut votes([7]), None)).unwrap_err();
    assert_eq!(script.verbs().last(), Some(&"ROLLBACK"));
}

#[test]
fn a_write_that_is_skipped_is_an_error_that_names_the_table() {
    let mut script = Script::<false>::answering([("INSERT", Ok(vec![Vec::new()]))]);
    let error = now(write::apply(&mut script, &PLAIN, &mut votes([7]), None)).unwrap_err();
    assert!(
        matches!(&error, Error::SchemaMismatch { table, .. } if table == "setlist_votes"),
        "{error:?}"
    );
}

#[test]
fn a_total_without_room_is_named_by_its_row_or_looked_for() {
    let full = || ("INSERT", Err(Refused(ErrorKind::Overflow)));
    let mut script = Script::<false>::answering([full()]);
    let error = now(write::apply(&mut script, &PLAIN, &mut votes([7, 8]), None)).unwrap_err();
    assert!(matches!(&error, Error::Overflow { key, .. } if key == "7"), "{error:?}");
    let totals = vec![vec![Column::Integer(8), Column::Integer(i64::MAX)]];
    let mut script = Script::<true>::answering([full(), ("SELECT t.\"key\"", Ok(totals))]);
    let error = now(write::apply(&mut script, &PLAIN, &mut votes([7, 8]), None)).unwrap_err();
    assert!(matches!(&error, Error::Overflow { key, .. } if key == "8"), "{error:?}");
    assert_eq!(script.verbs(), ["BEGIN", "INSERT", "ROLLBACK", "SELECT"]);
    let mut script = Script::<true>::answering([full()]).within();
    let error = now(write::apply(&mut script, &PLAIN, &mut votes([7, 8]), None)).unwrap_err();
    assert!(
        matches!(&error, Error::Overflow { key, .. } if key == "7 or another of 2"),
        "{error:?}"
    );
}

#[test]
fn readiness_is_looked_for_in_the_same_fetch_as_what_is_read() {
    let total = vec![vec![Column::Integer(3)]];
    let mut script = Script::<true>::answering([("SELECT t.\"total\"", Ok(total))]);
    assert_eq!(
        now(read::read(&mut script, &PLAIN, VOTES.id(), &[KeyBuf::of::<i64>(7)])).unwrap(),
        [3]
    );
    assert_eq!(script.ran.len(), 2);
    let unready = vec![vec![Column::Text("setlist.show,other".into())]];
    let mut script = Script::<true>::answering([("SELECT string_agg", Ok(unready))]);
    let read = now(read::read(&mut script, &SUMMED, SHOWS.id(), &[KeyBuf::of::<i64>(7)]));
    assert!(matches!(read, Err(Error::NotReady { unready, .. }) if unready == "setlist.show"));
    assert_eq!(script.ran.len(), 1, "nothing is read that may not be");
}

#[test]
fn a_leaderboard_writes_only_where_a_score_changes() {
    let line = |cells: [i64; 2]| vec![cells.map(Column::Integer).to_vec()];
    for (stored, total, verbs) in [
        (Some(4), 4, &["SELECT", "SELECT"][..]),
        (Some(4), 5, &["SELECT", "SELECT", "INSERT"]),
        (None, 5, &["SELECT", "SELECT", "INSERT"]),
        (Some(4), 0, &["SELECT", "SELECT", "DELETE"]),
        (None, 0, &["SELECT", "SELECT"]),
    ] {
        let stored = stored.map_or_else(Vec::new, |score| line([7, score]));
        let answers =
            [("SELECT t.\"key\"", Ok(stored)), ("SELECT t.\"key\"", Ok(line([7, total])))];
        let mut script = Script::<false>::answering(answers);
        let moved = leaderboard::moved(&RANKED, &votes([7])).unwrap();
        let changed = now(leaderboard::follow(&mut script, &RANKED, &moved)).unwrap();
        assert_eq!((script.verbs(), changed), (verbs.to_vec(), u64::from(verbs.len() == 3)));
    }
}

#[test]
fn a_sweep_writes_only_where_there_is_something_to_remove() {
    let totals = |total: i64| vec![vec![Column::Integer(7), Column::Integer(total)]];
    for (total, begins) in [(1, false), (0, true)] {
        let mut script = Script::<false>::answering([("SELECT t.\"key\"", Ok(totals(total)))]);
        let swept = now(sweep_zeros::sweep(&mut script, &PLAIN, &mut Sweep::new())).unwrap();
        assert!(swept.complete);
        assert_eq!(script.verbs().contains(&"BEGIN"), begins, "{:?}", script.ran);
    }
}

#[test]
fn a_check_only_reads() {
    for nested in [false, true] {
        let mut script = Script::<true> { nested, ..Script::default() };
        assert!(matches!(
            now(tables::check(&mut script, &PLAIN)),
            Err(Error::SchemaMismatch { .. })
        ));
        assert!(script.verbs().iter().all(|verb| *verb == "SELECT"), "{:?}", script.ran);
    }
}
