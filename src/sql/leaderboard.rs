//! The tables of leaderboards, and their rows in the catalogue.

use super::Dialect;
use crate::counter::CounterId;
use crate::key::KeyPart;
use crate::leaderboard::LeaderboardId;

/// The statements that create a leaderboard's table and index and insert its row into the
/// catalogue.
#[cfg(feature = "sql")]
pub(crate) fn ddl(dialect: Dialect, leaderboard: &LeaderboardId, ready: bool) -> [String; 3] {
    let [table, index] = create(dialect, leaderboard);
    [table, index, super::enlist_all(&[listed(leaderboard, ready)])]
}

/// The catalogue's values for a leaderboard.
pub(crate) fn listed(leaderboard: &LeaderboardId, ready: bool) -> String {
    super::listed_as(
        leaderboard.name(),
        leaderboard.counter_id(),
        &storage_clause(leaderboard),
        ready,
    )
}

/// The statements that create a leaderboard's table and index.
pub(crate) fn create(dialect: Dialect, leaderboard: &LeaderboardId) -> [String; 2] {
    let table = leaderboard.table_name();
    let columns = super::columns(dialect, leaderboard.parts());
    let columns = columns
        .iter()
        .map(|(name, kind)| format!("{name} {kind} NOT NULL"))
        .collect::<Vec<_>>()
        .join(", ");
    let keys = super::key_columns(leaderboard.parts()).join(", ");
    let (score, options) = (score_column(dialect, leaderboard), dialect.table_options());
    [
        format!(
            r#"CREATE TABLE "{table}" ({columns}, "score" {score} NOT NULL, PRIMARY KEY ({keys})){options}"#
        ),
        format!(r#"CREATE INDEX "{table}_order" ON "{table}" ("score" DESC, {keys})"#),
    ]
}

/// The statement that updates a leaderboard's version, storage clause and readiness in the
/// catalogue.
pub(crate) fn enlist_anew(leaderboard: &LeaderboardId, ready: bool) -> String {
    let (name, version, storage_clause, ready) = (
        leaderboard.name(),
        leaderboard.counter_id().version(),
        storage_clause(leaderboard),
        i64::from(ready),
    );
    let table = super::CATALOGUE;
    format!(
        r#"UPDATE "{table}" AS c SET "version" = {version}, "placement" = '{storage_clause}', "ready" = {ready} WHERE c."name" = '{name}'"#
    )
}

pub(crate) const fn score_column(dialect: Dialect, leaderboard: &LeaderboardId) -> &'static str {
    super::column_kind(
        dialect,
        if leaderboard.has_epochs() { Some(KeyPart::Bytes16) } else { None },
    )
}

/// A leaderboard's storage and what it is computed from, as the catalogue spells it.
pub(crate) fn storage_clause(leaderboard: &LeaderboardId) -> String {
    let names: Vec<_> = leaderboard.counters().iter().map(CounterId::full_name).collect();
    format!("leaderboard of {}", names.join(", "))
}
