//! What a clean-up removes: totals of 0; and marks, listed and forgotten.

use super::{Dialect, MARKS};
#[cfg(feature = "sqlite")]
use super::{Query, Terms};
#[cfg(feature = "sqlite")]
use crate::{counter::Placed, error::Result, range::KeyRange};

/// Removes the totals of 0 of a range, in SQLite.
#[cfg(feature = "sqlite")]
pub(crate) fn remove_zeros_of<'a>(placed: &Placed, range: &'a KeyRange) -> Result<Query<'a>> {
    let mut terms = Terms::of(Dialect::Sqlite, placed, range)?;
    terms.texts.push(r#"t."total" = 0"#.to_owned());
    let text = format!(r#"DELETE FROM "{}" AS t{}"#, placed.table_name(), terms.condition());
    Ok(Query { text, values: terms.values })
}

/// Reads the streams behind `?1` and their last events that were applied, in the order of their names' bytes, at most `?2`: every stream has a name, so
/// they begin behind the empty one.
#[must_use]
pub fn read_marks(dialect: Dialect) -> String {
    let (after, limit) = (dialect.param(1), dialect.param(2));
    format!(
        r#"SELECT m."stream", m."last" FROM "{MARKS}" AS m WHERE m."stream" > {after} ORDER BY m."stream" LIMIT {limit}"#
    )
}

/// Forgets the mark of the stream `?1`, whose events count again from then on; in PostgreSQL gives what it was.
#[must_use]
pub fn forget_mark(dialect: Dialect) -> String {
    let gives = match dialect {
        Dialect::Sqlite => "",
        Dialect::Postgres => r#" RETURNING m."last""#,
    };
    format!(r#"DELETE FROM "{MARKS}" AS m WHERE m."stream" = {}{gives}"#, dialect.param(1))
}
