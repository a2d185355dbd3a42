//! The statements that store how far runs have come in the same database as the totals that they
//! compare and repair, so that both are always of one age.

use crate::reconcile::audit::Keep;
use crate::reconcile::token::Token;
use crate::sql::{Dialect, Query, RUNS, Value};

/// The most runs kept. Beyond that, the ones written longest ago are removed: a removed backfill
/// begins again, and a removed verify or repair calls nothing clean that its own leg did not
/// compare.
const MAX_RUNS: usize = 256;

/// Reads what is kept of a run: its token's text.
pub(super) fn recall(dialect: Dialect, run: u64) -> Query<'static> {
    let text =
        format!(r#"SELECT r."token" FROM "{RUNS}" AS r WHERE r."run" = {}"#, dialect.param(1));
    Query::new(text, vec![number(run)])
}

/// Writes one row, if the stored token is the expected one. Returns `None` if nothing is kept and
/// nothing is to be.
pub(super) fn keep(dialect: Dialect, ask: &Keep) -> Option<Query<'static>> {
    let [one, two, three] = [1, 2, 3].map(|at| dialect.param(at));
    let turn = format!(r#"(SELECT coalesce(max(m."turn"), 0) + 1 FROM "{RUNS}" AS m)"#);
    let text = match (&ask.from, &ask.to) {
        (None, None) => return None,
        (None, Some(_)) => format!(
            r#"INSERT INTO "{RUNS}" ("run", "token", "turn") VALUES ({one}, {two}, {turn}) ON CONFLICT ("run") DO NOTHING"#
        ),
        (Some(_), Some(_)) => format!(
            r#"UPDATE "{RUNS}" AS r SET "token" = {three}, "turn" = {turn} WHERE r."run" = {one} AND r."token" = {two}"#
        ),
        (Some(_), None) => {
            format!(r#"DELETE FROM "{RUNS}" AS r WHERE r."run" = {one} AND r."token" = {two}"#)
        }
    };
    let tokens = ask.from.iter().chain(&ask.to).map(|token| Value::Text(token.to_string().into()));
    Some(Query::new(text, std::iter::once(number(ask.run)).chain(tokens).collect()))
}

/// Removes the runs beyond the limit, after a new run was kept.
pub(super) fn forget(dialect: Dialect) -> Query<'static> {
    let text = format!(
        r#"DELETE FROM "{RUNS}" AS r WHERE r."turn" < (SELECT m."turn" FROM "{RUNS}" AS m ORDER BY m."turn" DESC LIMIT 1 OFFSET {})"#,
        dialect.param(1)
    );
    Query::new(text, vec![Value::Integer(i64::try_from(MAX_RUNS - 1).unwrap_or(i64::MAX))])
}

/// Parses a row's token. A text that is no token is not ours, and reads as nothing.
pub(super) fn read(text: Option<String>) -> Option<Token> {
    text.and_then(|text| text.parse().ok())
}

fn number(run: u64) -> Value<'static> {
    Value::Integer(run.cast_signed())
}
