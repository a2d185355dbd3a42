//! Where a counter's rows are, as an application says it.

use std::sync::Arc;

use rusqlite::Row;

use crate::batch::Batch;
use crate::counter::CounterId;
use crate::drivers::rusqlite::Sqlite;
use crate::error::Result;
use crate::reconcile::database::row_source::Reader;
use crate::reconcile::database::statements::{Name, Target};
use crate::reconcile::recount::check_driven;
use crate::record::Record;

/// Where a counter's rows are, said in SQL: a table, its key's columns, an amount, a filter.
///
/// [`rows`](Self::rows) completes it. The key's columns need an index, from which pages are read in key order; a text column's
/// index must be collated BINARY, as it is by default.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::{Mode, Options, Reconciler, Source, SqliteAudit, SystemRuntime, run};
/// use keepcount::{Counter, CounterId, Record, Schema, SqliteStore, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const SCHEMA: Schema = Schema::new(&[SHOW_SCORE.table()]);
///
/// struct Vote { show: i64, stars: i64, spam: bool }
///
/// impl Record for Vote {
///     const COUNTERS: &'static [CounterId] = &[SHOW_SCORE.id()];
///
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_SCORE, self.show, self.stars);
///         }
///     }
/// }
///
/// let conn = rusqlite::Connection::open_in_memory()?;
/// conn.execute_batch(
///     "CREATE TABLE votes (show_id INTEGER, stars INTEGER, spam INTEGER);
///      CREATE INDEX votes_by_show ON votes (show_id);
///      INSERT INTO votes VALUES (7, 5, 0), (7, 3, 0), (7, 1, 1)",
/// )?;
/// SqliteStore::new(&conn, &SCHEMA).create()?;
///
/// let mut audit = SqliteAudit::new(&conn, &SCHEMA)?;
/// let source = Source::table("votes", ["show_id"]).amount("stars").filter("NOT spam");
/// audit.add(SHOW_SCORE, source.rows("show_id, stars, spam", |row| {
///     Ok(Vote { show: row.get(0)?, stars: row.get(1)?, spam: row.get(2)? })
/// }))?;
/// let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// let report = run(&mut verify, &mut audit, &mut SystemRuntime::new())?;
/// assert_eq!((report.drift(), report.counters[0].samples[0].expected), (1, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Target);

crate::reconcile::database::source::builder!(Source, TypedSource);

impl Source {
    /// The columns of a row, as a select list, and how they make a record, for holding rows against their `tally`: a repair does so with the
    /// first and last rows of the source and with the rows of the keys that it is about to repair, all of them up to 10,000 a repair (no fewer
    /// than 64 a key). A verify trusts the SQL. [`by_tally`](TypedSource::by_tally) leaves no second definition to trust.
    #[must_use]
    pub fn rows<'a, R: Record>(
        self,
        columns: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<R> + Send + Sync + 'a,
    ) -> TypedSource<'a> {
        let reader = move |row: &Row<'_>, to: &mut Batch| {
            to.insert(&read(row)?);
            Ok(())
        };
        let mut target = self.0;
        columns.clone_into(&mut target.columns);
        TypedSource { target, by_tally: false, reader: Arc::new(reader), check_driven: check_driven::<R> }
    }
}

/// A [`Source`] whose rows can be read as records.
pub struct TypedSource<'a> {
    pub(super) target: Target,
    pub(super) by_tally: bool,
    pub(super) reader: Arc<Reader<'a, Sqlite>>,
    pub(super) check_driven: fn(&CounterId) -> Result<()>,
}
