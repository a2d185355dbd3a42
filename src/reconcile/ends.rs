//! The two tables whose pairs a rollup sums, and which of their columns are its key: for both dialects.

use crate::counter::{Def, Placed, Rollup};
use crate::error::Result;
use crate::layout::Layout;
use crate::sql;

/// A rollup's links, named `l`, and finer totals, named `f`.
pub(super) struct Ends {
    pub(super) link: &'static Placed,
    pub(super) finer: &'static Placed,
    /// That both are of one child, column by column.
    pub(super) joins: Vec<String>,
    /// The columns of the rollup's key: the link's parent, and the finer counter's tail.
    pub(super) parent: Vec<String>,
    pub(super) tail: Vec<String>,
}

impl Ends {
    pub(super) fn of(layout: &Layout, rollup: &Rollup) -> Result<Self> {
        let (link, finer) = (layout.placed(&rollup.link())?, layout.placed(&rollup.finer())?);
        let columns = |table: &str, def: Def| -> Vec<String> {
            let columns = sql::key_columns(def.parts()).into_iter().take(def.parts().len());
            columns.map(|column| format!("{table}.{column}")).collect()
        };
        let (links, finers) = (columns("l", link.def()), columns("f", finer.def()));
        let (child, parent) = links.split_at_checked(rollup.child_parts()).unwrap_or_default();
        let (finer_child, tail) = finers.split_at_checked(rollup.child_parts()).unwrap_or_default();
        let joins = child.iter().zip(finer_child).map(|(one, two)| format!("{one} = {two}")).collect();
        Ok(Self { link, finer, joins, parent: parent.to_vec(), tail: tail.to_vec() })
    }
}
