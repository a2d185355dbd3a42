//! The two tables whose pairs a rollup sums, and which of their columns form its key; for both
//! dialects.

use crate::counter::{CounterId, CounterSpec, Rollup};
use crate::error::Result;
use crate::schema::Schema;
use crate::sql;

/// A rollup's memberships, named `l`, and base totals, named `f`.
pub(super) struct RollupJoin {
    pub(super) membership: &'static CounterSpec,
    pub(super) base: &'static CounterSpec,
    /// The conditions that both are of one child, column by column.
    pub(super) joins: Vec<String>,
    /// The columns of the rollup's key: the membership's parent, and the base counter's suffix.
    pub(super) parent: Vec<String>,
    pub(super) suffix: Vec<String>,
}

impl RollupJoin {
    pub(super) fn of(schema: &Schema, rollup: &Rollup) -> Result<Self> {
        let (membership, base) = (schema.spec(&rollup.membership())?, schema.spec(&rollup.base())?);
        let columns = |table: &str, id: CounterId| -> Vec<String> {
            let columns = sql::key_columns(id.parts()).into_iter().take(id.parts().len());
            columns.map(|column| format!("{table}.{column}")).collect()
        };
        let (memberships, bases) = (columns("l", membership.id()), columns("f", base.id()));
        let (child, parent) =
            memberships.split_at_checked(rollup.child_parts()).unwrap_or_default();
        let (base_child, suffix) = bases.split_at_checked(rollup.child_parts()).unwrap_or_default();
        let joins =
            child.iter().zip(base_child).map(|(one, two)| format!("{one} = {two}")).collect();
        Ok(Self { membership, base, joins, parent: parent.to_vec(), suffix: suffix.to_vec() })
    }
}
