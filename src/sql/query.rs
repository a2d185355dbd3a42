//! A query with its parameters, as an executor runs it.

use super::Value;

/// A query with its parameters; what it returns, the function that makes it says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query<'a> {
    /// The query; its parameters are `?1`, `?2`, .., in PostgreSQL `$1`, `$2`, ..
    pub text: String,
    /// The parameters of all its executions, one after the other.
    pub values: Vec<Value<'a>>,
    /// How many parameters one execution has.
    width: usize,
    exact: bool,
    single: bool,
}

impl<'a> Query<'a> {
    /// A query that is executed once.
    #[must_use]
    pub fn new(text: impl Into<String>, values: Vec<Value<'a>>) -> Self {
        let width = values.len();
        Self { text: text.into(), values, width, exact: false, single: false }
    }

    /// A query that is executed once for each `width` values; not at all where there are none.
    #[must_use]
    pub fn of_rows(text: impl Into<String>, values: Vec<Value<'a>>, width: usize) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width));
        Self { text: text.into(), values, width, exact: false, single: false }
    }

    /// Each execution is to write as many rows as it has parameters for: one, or as many as its arrays have values.
    pub(crate) const fn exact(mut self) -> Self {
        self.exact = true;
        self
    }

    /// No more than one row is read, and what the queries behind it read is of the same snapshot.
    pub(crate) const fn single(mut self) -> Self {
        self.single = true;
        self
    }

    /// The parameters of each execution, in their order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Value<'a>]> {
        let rows = if self.width == 0 { 1 } else { self.values.len() / self.width };
        (0..rows).map(|row| self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default())
    }

    /// Whether an execution wrote another number of rows than it was to write: a trigger or rule was in its way.
    #[must_use]
    pub fn is_skipped(&self, row: &[Value<'_>], written: u64) -> bool {
        self.exact && row.first().map_or(1, Value::len) != written
    }

    /// Whether an executor reads no more than one row, and keeps what it read it from open until the queries behind it are read.
    #[must_use]
    pub const fn is_single(&self) -> bool {
        self.single
    }
}
