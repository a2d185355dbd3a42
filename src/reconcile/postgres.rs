//! The audit of a PostgreSQL database over tokio-postgres.

use super::database::Rows;
use super::sql_audit::AsyncSqlAudit;
use crate::drivers::tokio_postgres::{Postgres, TokioPostgres};

/// The rows of a record in PostgreSQL.
///
/// A key of integers is read from columns of any of PostgreSQL's three widths, texts from `text` or
/// `varchar`, UUIDs from `uuid`, all else from `bytea`. Amounts are integers, or `numeric` without
/// a fraction.
///
/// # Examples
///
/// ```no_run
/// use keepcount::reconcile::{
///     Columns, Mode, Options, PostgresAudit, PostgresRows, Reconciler, TokioRuntime, run_async,
/// };
/// use keepcount::{Counter, CounterId, PostgresStore, Record, Schema, Tally};
///
/// const SHOW_SCORE: Counter<i64> = Counter::new("show.score");
/// const SCHEMA: Schema = Schema::new(&[SHOW_SCORE.table()]);
///
/// struct Vote { show: i64, stars: i32, spam: bool }
///
/// impl Record for Vote {
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
/// let votes = PostgresRows::of("votes", |row| {
///     Ok(Vote { show: row.try_get("show_id")?, stars: row.try_get("stars")?, spam: row.try_get("spam")? })
/// });
/// let mut audit = PostgresAudit::new(&mut client, &SCHEMA).await?;
/// audit.add(votes.key(SHOW_SCORE, Columns::of(["show_id"]).sum("stars").filter("NOT spam"))).await?;
/// let mut verify = Reconciler::new(Mode::Verify, &SCHEMA, Options::default())?;
/// let report = run_async(&mut verify, &mut audit, &mut TokioRuntime::new()).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
pub type PostgresRows = Rows<TokioPostgres>;

/// A PostgreSQL database's rows and totals, over a client of its own.
///
/// A page is compared in one snapshot, which blocks nobody, on a hot standby too. A repair locks
/// the totals of its keys, recounts the keys in a statement that begins after that, adds the
/// differences, and commits: a writer waits for the repair of a key that it writes, and for no
/// other. See [`PostgresRows`] for an example.
pub type PostgresAudit<'a> = AsyncSqlAudit<'a, Postgres<'a>>;
