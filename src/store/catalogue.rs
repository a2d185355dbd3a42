//! What a database's catalogue says of counters and boards, beside what a layout says; pure.

use std::fmt;

use crate::board::{self, BoardDef};
use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyParts};
use crate::layout::Layout;
use crate::sql::value::column_value;
use crate::sql::{Dialect, Value};

/// What the catalogue says of a counter or board.
pub(crate) struct Known {
    pub(crate) row: CatalogueRow,
    pub(crate) identity: i64,
    pub(crate) ready: bool,
}

/// What has to be as a layout says it.
#[derive(PartialEq, Eq)]
pub(crate) struct CatalogueRow {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) version: u32,
    pub(crate) placement: String,
}

impl CatalogueRow {
    pub(crate) fn of(placed: &Placed) -> Self {
        let def = placed.def();
        Self {
            name: def.full_name().into_owned(),
            key: def.parts().to_string(),
            version: def.version(),
            placement: placed.place(),
        }
    }

    pub(crate) fn of_board(board: &BoardDef) -> Self {
        let id = board.id();
        Self {
            name: id.name().to_owned(),
            key: id.parts().to_string(),
            version: id.version(),
            placement: board::place(board),
        }
    }

    pub(crate) fn table_name(&self) -> String {
        self.name.replace('.', "_")
    }

    /// What a rollup sums and its link, or the counters of a board; nothing for what rows drive.
    pub(crate) fn made_of(&self) -> impl Iterator<Item = &str> {
        let board = self.placement.strip_prefix("board of ");
        let sum = self.placement.strip_prefix("table, sum").and_then(|sum| sum.split_once(" of ")).map(|(_, of)| of);
        let sum = sum.map(|of| of.strip_suffix(", prunable").unwrap_or(of));
        let counters = board.into_iter().flat_map(|counters| counters.split(", "));
        counters.chain(sum.into_iter().flat_map(|of| of.split(" along ")))
    }
}

impl fmt::Display for CatalogueRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} ({}) in a {}", self.name, self.version, self.key, self.placement)
    }
}

/// Refuses a database where somebody else's rollup or board is fed by a counter of this layout, or is a later version of one, and this layout
/// would not keep it: an older version of the application, say. One that is not ready may miss what this layout writes: it is made whole
/// when this layout is gone.
pub(crate) fn check_others(layout: &Layout, known: &[Known], forget: &str) -> Result<()> {
    for Known { row, .. } in known.iter().filter(|known| known.ready && !has(layout, &known.row.name)) {
        let fed_by = row.made_of().find(|name| has(layout, name));
        let because = match fed_by {
            Some(counter) => format!("is a {} and ready to be read, and counter {counter} feeds it", row.placement),
            None if is_later(layout, row) => {
                "is a later version of one of this layout's and ready to be read".to_owned()
            }
            None => continue,
        };
        let reason = format!(
            "{} {because}, but this layout does not have it and would not keep it: an older version of the application must not start \
             beside a newer one that reads it; if nobody has it, drop it by {forget}",
            row.name
        );
        return Err(Error::Schema { table: row.table_name(), reason });
    }
    Ok(())
}

/// Whether this is a version of a counter of which the layout has earlier ones alone.
fn is_later(layout: &Layout, row: &CatalogueRow) -> bool {
    let name = row.name.strip_suffix(&format!(".v{}", row.version));
    let ours = layout.counters().iter().map(Placed::def).filter(|def| Some(def.name()) == name);
    ours.map(|def| def.version()).max().is_some_and(|ours| ours < row.version)
}

/// Whether the layout has a counter of this full name, or a board.
pub(crate) fn has(layout: &Layout, name: &str) -> bool {
    layout.counters().iter().any(|placed| placed.def().full_name() == name)
        || layout.board_defs().iter().any(|board| board.name() == name)
}

/// What tells a database's totals from another's.
pub(crate) fn identity(layout: &Layout, known: &[Known]) -> u64 {
    let ours = |name: &str| layout.counters().iter().any(|placed| placed.def().full_name() == name);
    let ours = known.iter().filter(|known| ours(&known.row.name));
    ours.fold(0, |all, known| all ^ known.identity.cast_unsigned())
}

/// The catalogue's row of a lost counter or board, of this name.
///
/// # Errors
///
/// [`Error::Setting`] where the layout has it, or something else is made of it; [`Error::UnknownCounter`] where there is none.
pub(crate) fn lost<'k>(layout: &Layout, known: &'k [Known], name: &str) -> Result<&'k CatalogueRow> {
    let refused = |reason: String| Err(Error::setting("forget", reason));
    if has(layout, name) {
        return refused(format!("{name} is in the layout, which would go on counting it; take it out first"));
    }
    let Some(lost) = known.iter().find(|known| known.row.name == name) else {
        return Err(Error::UnknownCounter { counter: name.to_owned(), record: None });
    };
    if let Some(of) = known.iter().find(|known| known.row.made_of().any(|part| part == name)) {
        return refused(format!("{} is made of {name}; drop that first", of.row.name));
    }
    Ok(&lost.row)
}

/// The value of an encoded last part, as a counter's cut is kept.
pub(crate) fn tail_value<'a>(dialect: Dialect, counter: &Def, tail: &'a KeyBuf) -> Result<Value<'a>> {
    let failed = |cause| Error::key(counter, tail, cause);
    let parts = counter.parts();
    let part = parts.as_slice().last().ok_or_else(|| failed(KeyError::Malformed))?;
    let mut values = KeyParts::one(*part).values(tail).map_err(failed)?;
    column_value(dialect, *part, values.pop().ok_or_else(|| failed(KeyError::Malformed))?).map_err(failed)
}
