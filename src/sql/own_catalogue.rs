//! Compares what a database's catalogue records about counters and leaderboards with the schema; no
//! I/O.

use std::fmt;

use super::value::column_value;
use super::{Dialect, Value, lists};
use crate::counter::{CounterId, CounterSpec, without_prunable};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyParts};
use crate::leaderboard::LeaderboardId;
use crate::schema::Schema;

/// A counter or leaderboard as the catalogue records it.
pub(crate) struct Known {
    pub(crate) row: CatalogueRow,
    pub(crate) identity: i64,
    pub(crate) ready: bool,
}

/// The part of a catalogue row that must match the schema.
#[derive(PartialEq, Eq)]
pub(crate) struct CatalogueRow {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) version: u32,
    pub(crate) placement: String,
}

impl CatalogueRow {
    pub(crate) fn of(spec: &CounterSpec) -> Self {
        let id = spec.id();
        Self {
            name: id.full_name().into_owned(),
            key: id.parts().to_string(),
            version: id.version(),
            placement: spec.storage_clause(),
        }
    }

    pub(crate) fn of_leaderboard(leaderboard: &LeaderboardId) -> Self {
        let id = leaderboard.counter_id();
        Self {
            name: id.name().to_owned(),
            key: id.parts().to_string(),
            version: id.version(),
            placement: super::leaderboard::storage_clause(leaderboard),
        }
    }

    pub(crate) fn table_name(&self) -> String {
        self.name.replace('.', "_")
    }

    /// Returns the base and membership of a rollup, or the counters of a leaderboard; nothing for a
    /// counter that rows feed directly.
    pub(crate) fn made_of(&self) -> impl Iterator<Item = &str> {
        let leaderboard = self.placement.strip_prefix("leaderboard of ");
        let sum = self
            .placement
            .strip_prefix("table, sum")
            .and_then(|sum| sum.split_once(" of "))
            .map(|(_, of)| of);
        let sum = sum.map(without_prunable);
        let counters = leaderboard.into_iter().flat_map(|counters| counters.split(", "));
        counters.chain(sum.into_iter().flat_map(|of| of.split(" along ")))
    }
}

impl fmt::Display for CatalogueRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({}) in a {}", self.name, self.version, self.key, self.placement)
    }
}

/// Refuses a database that has a ready rollup or leaderboard which this schema lacks, but would
/// have to maintain.
///
/// Such a one is fed by a counter of this schema, or is a later version of one of its counters.
/// This happens if, for example, an older version of the application starts. One that is not ready
/// is no reason to refuse: it may miss what this schema writes, because it is backfilled after this
/// schema is gone.
pub(crate) fn check_others(schema: &Schema, known: &[Known], forget: &str) -> Result<()> {
    for Known { row, .. } in
        known.iter().filter(|known| known.ready && !lists(schema, &known.row.name))
    {
        let fed_by = row.made_of().find(|name| lists(schema, name));
        let because = match fed_by {
            Some(counter) => format!(
                "is a {} and ready to be read, and counter {counter} feeds it",
                row.placement
            ),
            None if is_later(schema, row) => {
                "is a later version of a counter of this schema, and ready to be read".to_owned()
            }
            None => continue,
        };
        let reason = format!(
            "{} {because}, but this schema does not have it and would not keep it: an older version of the application must not start \
             beside a newer one that reads it; if nobody has it, drop it by {forget}",
            row.name
        );
        return Err(Error::SchemaMismatch { table: row.table_name(), reason });
    }
    Ok(())
}

/// Returns whether this is a version of a counter of which the schema has only earlier versions.
fn is_later(schema: &Schema, row: &CatalogueRow) -> bool {
    let name = row.name.strip_suffix(&format!(".v{}", row.version));
    let ours = schema.counters().iter().map(CounterSpec::id).filter(|id| Some(id.name()) == name);
    ours.map(|id| id.version()).max().is_some_and(|ours| ours < row.version)
}

/// Returns a number that distinguishes this database's totals from those of another.
pub(crate) fn identity(schema: &Schema, known: &[Known]) -> u64 {
    let ours = |name: &str| schema.counters().iter().any(|spec| spec.id().full_name() == name);
    let ours = known.iter().filter(|known| ours(&known.row.name));
    ours.fold(0, |all, known| all ^ known.identity.cast_unsigned())
}

/// Returns the catalogue row of an orphaned counter or leaderboard.
///
/// # Errors
///
/// [`Error::InvalidUse`] if the schema has it or something else is made of it;
/// [`Error::UnknownCounter`] if the catalogue does not have it.
pub(crate) fn orphaned<'k>(
    schema: &Schema,
    known: &'k [Known],
    name: &str,
) -> Result<&'k CatalogueRow> {
    let refused = |reason: String| Err(Error::invalid_use("drop_counter", reason));
    if lists(schema, name) {
        return refused(format!(
            "{name} is in the schema, whose hooks would still count it; remove it there first"
        ));
    }
    let Some(orphan) = known.iter().find(|known| known.row.name == name) else {
        return Err(Error::UnknownCounter { counter: name.to_owned(), record: None });
    };
    if let Some(of) = known.iter().find(|known| known.row.made_of().any(|part| part == name)) {
        return refused(format!("{} is computed from {name}; drop that first", of.row.name));
    }
    Ok(&orphan.row)
}

/// Returns the value of an encoded key suffix, as the catalogue stores a counter's cutoff.
pub(crate) fn suffix_value<'a>(
    dialect: Dialect,
    counter: &CounterId,
    suffix: &'a KeyBuf,
) -> Result<Value<'a>> {
    let failed = |cause| Error::key(counter, suffix, cause);
    let parts = counter.parts();
    let part = parts.as_slice().last().ok_or_else(|| failed(KeyError::Malformed))?;
    let mut values = KeyParts::one(*part).values(suffix).map_err(failed)?;
    column_value(dialect, *part, values.pop().ok_or_else(|| failed(KeyError::Malformed))?)
        .map_err(failed)
}
