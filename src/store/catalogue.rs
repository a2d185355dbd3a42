//! What a database's catalogue says of counters and leaderboards, beside what a schema says; pure.

use std::fmt;

use crate::counter::{CounterId, CounterSpec};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyParts};
use crate::leaderboard::{self, LeaderboardId};
use crate::schema::Schema;
use crate::sql::value::column_value;
use crate::sql::{Dialect, Value};

/// What the catalogue says of a counter or leaderboard.
pub(crate) struct Known {
    pub(crate) row: CatalogueRow,
    pub(crate) identity: i64,
    pub(crate) ready: bool,
}

/// What has to be as a schema says it.
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
            placement: leaderboard::storage_clause(leaderboard),
        }
    }

    pub(crate) fn table_name(&self) -> String {
        self.name.replace('.', "_")
    }

    /// What a rollup sums and its membership, or the counters of a leaderboard; nothing for what rows drive.
    pub(crate) fn made_of(&self) -> impl Iterator<Item = &str> {
        let leaderboard = self.placement.strip_prefix("leaderboard of ");
        let sum = self.placement.strip_prefix("table, sum").and_then(|sum| sum.split_once(" of ")).map(|(_, of)| of);
        let sum = sum.map(|of| of.strip_suffix(", prunable").unwrap_or(of));
        let counters = leaderboard.into_iter().flat_map(|counters| counters.split(", "));
        counters.chain(sum.into_iter().flat_map(|of| of.split(" along ")))
    }
}

impl fmt::Display for CatalogueRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({}) in a {}", self.name, self.version, self.key, self.placement)
    }
}

/// Refuses a database where somebody else's rollup or leaderboard is fed by a counter of this schema, or is a later version of one, and this schema
/// would not keep it: an older version of the application, say. One that is not ready may miss what this schema writes: it is made whole
/// when this schema is gone.
pub(crate) fn check_others(schema: &Schema, known: &[Known], forget: &str) -> Result<()> {
    for Known { row, .. } in known.iter().filter(|known| known.ready && !has(schema, &known.row.name)) {
        let fed_by = row.made_of().find(|name| has(schema, name));
        let because = match fed_by {
            Some(counter) => format!("is a {} and ready to be read, and counter {counter} feeds it", row.placement),
            None if is_later(schema, row) => {
                "is a later version of one of this schema's and ready to be read".to_owned()
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

/// Whether this is a version of a counter of which the schema has earlier ones alone.
fn is_later(schema: &Schema, row: &CatalogueRow) -> bool {
    let name = row.name.strip_suffix(&format!(".v{}", row.version));
    let ours = schema.counters().iter().map(CounterSpec::id).filter(|id| Some(id.name()) == name);
    ours.map(|id| id.version()).max().is_some_and(|ours| ours < row.version)
}

/// Whether the schema has a counter of this full name, or a leaderboard.
pub(crate) fn has(schema: &Schema, name: &str) -> bool {
    schema.counters().iter().any(|spec| spec.id().full_name() == name)
        || schema.leaderboard_ids().iter().any(|leaderboard| leaderboard.name() == name)
}

/// What tells a database's totals from another's.
pub(crate) fn identity(schema: &Schema, known: &[Known]) -> u64 {
    let ours = |name: &str| schema.counters().iter().any(|spec| spec.id().full_name() == name);
    let ours = known.iter().filter(|known| ours(&known.row.name));
    ours.fold(0, |all, known| all ^ known.identity.cast_unsigned())
}

/// The catalogue's row of a lost counter or leaderboard, of this name.
///
/// # Errors
///
/// [`Error::InvalidUse`] where the schema has it, or something else is made of it; [`Error::UnknownCounter`] where there is none.
pub(crate) fn orphaned<'k>(schema: &Schema, known: &'k [Known], name: &str) -> Result<&'k CatalogueRow> {
    let refused = |reason: String| Err(Error::invalid_use("forget", reason));
    if has(schema, name) {
        return refused(format!("{name} is in the schema, which would go on counting it; take it out first"));
    }
    let Some(orphan) = known.iter().find(|known| known.row.name == name) else {
        return Err(Error::UnknownCounter { counter: name.to_owned(), record: None });
    };
    if let Some(of) = known.iter().find(|known| known.row.made_of().any(|part| part == name)) {
        return refused(format!("{} is made of {name}; drop that first", of.row.name));
    }
    Ok(&orphan.row)
}

/// The value of an encoded last part, as a counter's cut is kept.
pub(crate) fn suffix_value<'a>(dialect: Dialect, counter: &CounterId, suffix: &'a KeyBuf) -> Result<Value<'a>> {
    let failed = |cause| Error::key(counter, suffix, cause);
    let parts = counter.parts();
    let part = parts.as_slice().last().ok_or_else(|| failed(KeyError::Malformed))?;
    let mut values = KeyParts::one(*part).values(suffix).map_err(failed)?;
    column_value(dialect, *part, values.pop().ok_or_else(|| failed(KeyError::Malformed))?).map_err(failed)
}
