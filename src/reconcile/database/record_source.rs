//! Says where the rows of a record are, and how they count for each counter.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::row_source::RowSource;
use super::source_statements::{From as Origin, Name, Target};
use crate::batch::Record;
use crate::counter::{Counter, CounterId};
use crate::error::{Cause, Result};
use crate::executor::{Driver, Reader};
use crate::key::Key;
use crate::schema::Schema;
use crate::sql::Dialect;

/// The rows of a record: where they are, how each is read, and which columns are the keys of the
/// counters that they count for.
///
/// State the rows of a record once, with [`key`](Self::key) for each of its counters. Use it as
/// [`SqliteRows`](crate::reconcile::SqliteRows) or
/// [`PostgresRows`](crate::reconcile::PostgresRows).
pub struct Rows<D: Driver> {
    from: Origin,
    columns: String,
    reader: Arc<Reader>,
    keys: Vec<(CounterId, Columns)>,
    of: PhantomData<D>,
}

impl<D: Driver> Rows<D> {
    /// Creates the source of a table's rows, without a counter yet. `read` makes a record of a row.
    ///
    /// The table may have a schema prefix, as in `app.votes`; put a name with a dot in it in double
    /// quotes. A bare name that several schemas have is refused.
    #[must_use]
    pub fn of<R: Record>(
        table: &str,
        read: impl Fn(&D::Row<'_>) -> Result<R, Cause> + Send + Sync + 'static,
    ) -> Self {
        Self::over(Origin::Table(Name::new(table)), read)
    }

    /// Creates the source of the rows of a query, if a table alone is not enough: a row that adds
    /// to two keys of one counter is returned twice by `UNION ALL`. Whether pages can be read from
    /// an index then depends on the query.
    #[must_use]
    pub fn query<R: Record>(
        query: &str,
        read: impl Fn(&D::Row<'_>) -> Result<R, Cause> + Send + Sync + 'static,
    ) -> Self {
        Self::over(Origin::Query(query.to_owned()), read)
    }

    fn over<R: Record>(
        from: Origin,
        read: impl Fn(&D::Row<'_>) -> Result<R, Cause> + Send + Sync + 'static,
    ) -> Self {
        let reader = Arc::new(Reader::new::<D>(move |row, to| {
            to.insert(&read(row)?);
            Ok(())
        }));
        Self { from, columns: "r.*".to_owned(), reader, keys: Vec::new(), of: PhantomData }
    }

    /// Sets the columns that are read of a row, as a select list; the default is all.
    ///
    /// Write names of columns bare or as `r."name"`.
    #[must_use]
    pub fn columns(mut self, list: &str) -> Self {
        list.clone_into(&mut self.columns);
        self
    }

    /// Adds a counter that these rows count for, and the columns of its key, one for each part.
    ///
    /// With columns alone, the counter is recounted by reading every row and its `tally`. With
    /// [`Columns::count`] or [`Columns::sum`] the database recounts it, which is faster; a repair
    /// then checks rows against their `tally` first.
    #[must_use]
    pub fn key<K: Key>(mut self, counter: Counter<K>, columns: impl Into<Columns>) -> Self {
        self.keys.push((counter.id(), columns.into()));
        self
    }

    /// The source of each counter, with names of tables that are not found yet.
    pub(in crate::reconcile) fn sources(self, schema: &Schema) -> Result<Vec<Unfound>> {
        let Self { from, columns, reader, keys, .. } = self;
        let source = |(counter, of): (CounterId, Columns)| {
            let target = of.target(from.clone(), &columns);
            target.check(schema, &counter, of.is_by_tally())?;
            Ok(Unfound { counter, target, by_tally: of.is_by_tally(), reader: Arc::clone(&reader) })
        };
        keys.into_iter().map(source).collect()
    }
}

impl<D: Driver> fmt::Debug for Rows<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("from", &self.from)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// One counter's source, before its tables are found.
pub(in crate::reconcile) struct Unfound {
    pub(in crate::reconcile) counter: CounterId,
    pub(in crate::reconcile) target: Target,
    by_tally: bool,
    reader: Arc<Reader>,
}

impl Unfound {
    /// The source, now that its tables are found.
    pub(in crate::reconcile) fn found(self, dialect: Dialect) -> Result<RowSource> {
        RowSource::of(dialect, self.counter, self.target, self.by_tally, self.reader)
    }
}

/// The columns of a counter's key in a source, and how the database recounts the counter, if it
/// does.
///
/// Columns are plain names; for expressions, use [`Rows::query`]. They need an index, from which
/// pages are read in key order. In SQLite a text column's index must be collated BINARY, as it is
/// by default; in PostgreSQL it must be `COLLATE "C"`, unless the column is.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::Columns;
///
/// let by_tally = Columns::of(["show_id"]);
/// let by_sql = Columns::of(["show_id"]).sum("stars").filter("NOT spam");
/// # let _ = (by_tally, by_sql);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    key: Vec<String>,
    recount: Recount,
    filter: Option<String>,
    per: Option<i64>,
    parent: Option<(Name, Vec<String>)>,
}

/// How a counter is recounted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Recount {
    /// By reading every row and its `tally`.
    Tally,
    /// In SQL: each row adds 1.
    Count,
    /// In SQL: each row adds this expression.
    Sum(String),
}

impl Columns {
    /// The columns of a key, one for each part; none for the key `()`, whose only page is the whole
    /// table.
    #[must_use]
    pub fn of<const N: usize>(key: [&str; N]) -> Self {
        let key = key.map(str::to_owned).to_vec();
        Self { key, recount: Recount::Tally, filter: None, per: None, parent: None }
    }

    /// Recounts in SQL: each row adds 1.
    #[must_use]
    pub fn count(mut self) -> Self {
        self.recount = Recount::Count;
        self
    }

    /// Recounts in SQL: each row adds this expression of integers, and null adds nothing.
    ///
    /// Write names of columns bare or as `r."name"`: SQLite reads a name in double quotes that no
    /// column has as a string.
    #[must_use]
    pub fn sum(mut self, amount: &str) -> Self {
        self.recount = Recount::Sum(amount.to_owned());
        self
    }

    /// Sets which rows count, as an SQL condition, for [`count`](Self::count) and
    /// [`sum`](Self::sum); the default is every row. Write names as for `sum`.
    ///
    /// A recount by `tally` ignores it: the `tally` says which rows count.
    #[must_use]
    pub fn filter(mut self, condition: &str) -> Self {
        self.filter = Some(condition.to_owned());
        self
    }

    /// Recounts by reading every row and its `tally`, as without [`count`](Self::count) and
    /// [`sum`](Self::sum).
    #[must_use]
    pub fn by_tally(mut self) -> Self {
        self.recount = Recount::Tally;
        self
    }

    /// Says that the last parts of the key, one for each column here, refer to a row of this table,
    /// such as the parent of a membership. A verify then reports dangling memberships, whose parent
    /// does not exist.
    #[must_use]
    pub fn parent<const N: usize>(mut self, table: &str, columns: [&str; N]) -> Self {
        self.parent = Some((Name::new(table), columns.map(str::to_owned).to_vec()));
        self
    }

    /// Makes the last part of the key an epoch: the last key column, a time in seconds, divided by
    /// `seconds` and rounded down. Pages are read from an index on the columns as they are. Only
    /// for counters that are recounted by `tally`.
    ///
    /// # Panics
    ///
    /// If `seconds` is not greater than 0.
    #[must_use]
    pub fn per(mut self, seconds: i64) -> Self {
        assert!(seconds > 0, "an epoch must be longer than zero");
        self.per = Some(seconds);
        self
    }

    const fn is_by_tally(&self) -> bool {
        matches!(self.recount, Recount::Tally)
    }

    fn target(&self, from: Origin, columns: &str) -> Target {
        let mut target = Target::over(from, &self.key);
        columns.clone_into(&mut target.columns);
        target.amount = match &self.recount {
            Recount::Sum(amount) => Some(amount.clone()),
            Recount::Tally | Recount::Count => None,
        };
        target.filter.clone_from(&self.filter);
        (target.per, target.parent) = (self.per, self.parent.clone());
        target
    }
}

impl<const N: usize> From<[&str; N]> for Columns {
    fn from(key: [&str; N]) -> Self {
        Self::of(key)
    }
}
