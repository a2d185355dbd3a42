//! Where a counter's rows are in PostgreSQL, as an application says it.

use std::sync::Arc;

use tokio_postgres::Row;

use crate::batch::Batch;
use crate::counter::CounterId;
use crate::drivers::tokio_postgres::TokioPostgres;
use crate::error::Result;
use crate::reconcile::database::row_source::Reader;
use crate::reconcile::database::statements::{Name, Target};
use crate::reconcile::recount::check_driven;
use crate::record::Record;

/// Where a counter's rows are, said in SQL: a table, its key's columns, an amount, a filter.
///
/// [`rows`](Self::rows) completes it. The key's columns need an index, from which pages are read in key order; a text column's must be
/// `COLLATE "C"`, unless the column is. Integers are of any of PostgreSQL's three widths, texts `text` or `varchar`, ids `uuid`, all else `bytea`; amounts
/// are integers, or `numeric` without a fraction.
///
/// # Examples
///
/// ```no_run
/// use keepcount::reconcile::{Mode, Options, PostgresAudit, PostgresSource, Reconciler, TokioRuntime, run_async};
/// use keepcount::{Counter, CounterId, PostgresStore, Record, Schema, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const SCHEMA: Schema = Schema::new(&[SHOW_SCORE.table()]);
///
/// struct Vote { show: i64, stars: i32, spam: bool }
///
/// impl Record for Vote {
///     const COUNTERS: &'static [CounterId] = &[SHOW_SCORE.id()];
///
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_SCORE, self.show, self.stars.into());
///         }
///     }
/// }
///
/// # async fn verify(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// client.batch_execute(
///     "CREATE TABLE votes (show_id BIGINT, stars INT, spam BOOLEAN);
///      CREATE INDEX votes_by_show ON votes (show_id)",
/// ).await?;
/// PostgresStore::new(&mut client, &SCHEMA).create().await?;
///
/// let mut audit = PostgresAudit::new(&mut client, &SCHEMA).await?;
/// let source = PostgresSource::table("votes", ["show_id"]).amount("stars").filter("NOT spam");
/// audit.add(SHOW_SCORE, source.rows("show_id, stars, spam", |row| {
///     Ok(Vote { show: row.try_get(0)?, stars: row.try_get(1)?, spam: row.try_get(2)? })
/// })).await?;
/// let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// let report = run_async(&mut verify, &mut audit, &mut TokioRuntime::new()).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSource(Target);

crate::reconcile::database::source::builder!(PostgresSource, TypedPostgresSource);

impl PostgresSource {
    /// The columns of a row, as a select list, and how they make a record, for holding rows against their `tally`: a repair does so with the
    /// first and last rows of the source and with the rows of the keys that it is about to repair, all of them up to 10,000 a repair (no fewer
    /// than 64 a key). A verify trusts the SQL. [`by_tally`](TypedPostgresSource::by_tally) leaves no second definition to trust.
    #[must_use]
    pub fn rows<'a, R: Record>(
        self,
        columns: &str,
        read: impl Fn(&Row) -> Result<R, tokio_postgres::Error> + Send + Sync + 'a,
    ) -> TypedPostgresSource<'a> {
        let reader = move |row: &Row, to: &mut Batch| {
            to.insert(&read(row)?);
            Ok(())
        };
        let mut target = self.0;
        columns.clone_into(&mut target.columns);
        TypedPostgresSource { target, by_tally: false, reader: Arc::new(reader), check_driven: check_driven::<R> }
    }
}

/// A [`PostgresSource`] whose rows can be read as records.
pub struct TypedPostgresSource<'a> {
    pub(super) target: Target,
    pub(super) by_tally: bool,
    pub(super) reader: Arc<Reader<'a, TokioPostgres>>,
    pub(super) check_driven: fn(&CounterId) -> Result<()>,
}
