//! A query with its parameters, as an executor runs it.

use super::Value;

/// A query with its parameters.
///
/// The function that makes it documents what it returns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Query<'a> {
    /// The query; its parameters are `?1`, `?2`, .., in PostgreSQL `$1`, `$2`, ..
    pub text: String,
    /// The parameters of all its executions, one after the other.
    pub values: Vec<Value<'a>>,
    /// The number of parameters of one execution.
    width: usize,
    exact: bool,
    single: bool,
    bounded: bool,
}

impl<'a> Query<'a> {
    /// A query that is executed once.
    #[must_use]
    pub fn new(text: impl Into<String>, values: Vec<Value<'a>>) -> Self {
        let width = values.len();
        Self { text: text.into(), values, width, exact: false, single: false, bounded: false }
    }

    /// A query that is executed once for each `width` values; not at all if there are no values.
    #[must_use]
    pub fn of_rows(text: impl Into<String>, values: Vec<Value<'a>>, width: usize) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width));
        Self { text: text.into(), values, width, exact: false, single: false, bounded: false }
    }

    /// Requires each execution to write as many rows as it has parameters for: one, or as many as
    /// its arrays have values.
    #[cfg(feature = "sql")]
    pub(crate) const fn exact(mut self) -> Self {
        self.exact = true;
        self
    }

    /// Reads at most one row, and makes the queries after it read the same snapshot.
    #[cfg(feature = "sql")]
    pub(crate) const fn single(mut self) -> Self {
        self.single = true;
        self
    }

    /// Says that the rows of an answer are few, so that a scan may read them all at once.
    #[cfg(feature = "sql")]
    pub(crate) const fn bounded(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// The parameters of each execution, in their order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Value<'a>]> {
        let rows = self.values.len().checked_div(self.width).unwrap_or(1);
        (0..rows).map(|row| {
            self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default()
        })
    }

    /// Whether an execution wrote another number of rows than it must, because a trigger or rule
    /// interfered.
    #[must_use]
    pub fn is_skipped(&self, row: &[Value<'_>], written: u64) -> bool {
        self.exact && row.first().map_or(1, Value::len) != written
    }

    /// Whether an executor must read at most one row, and keep its cursor open until the queries
    /// after it are read.
    #[must_use]
    pub const fn is_single(&self) -> bool {
        self.single
    }

    /// Whether a scan may read all rows of an answer at once, because the query itself limits them.
    #[must_use]
    pub const fn is_bounded(&self) -> bool {
        self.bounded
    }
}
