//! Totals in PostgreSQL's tables, over the caller's own client or transaction: runs what `sql` says.

mod at_once;
mod literal;
pub(crate) mod queries;
mod ready;
mod schema;
mod session;
mod sweep;
mod writing;

use std::fmt;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, GenericClient, Row};

pub use self::session::PreparedStatements;
pub(crate) use self::session::{
    Session, Whose, commit_failed, failed, failed_on, params, read_key, read_parts, settled, typed,
};
use self::session::{end_transaction, may_call_again};
pub(crate) use self::writing::Failed;
use super::{Applied, AsyncStore};
use crate::batch::Batch;
use crate::counter::{Counter, Def};
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::layout::Layout;
use crate::mark::Mark;
use crate::observe;
use crate::prune;
use crate::range::KeyRange;
use crate::sql::{self, Dialect, Query, Value};

/// Totals in tables beside the application's rows; borrows its client or transaction, so it is made where it is used.
///
/// [`new`](Self::new) takes whatever can begin a transaction, a client or a transaction, and applies in a transaction or savepoint of its own: a
/// batch that fails leaves the caller's transaction as it was, unless the end of its savepoint is cancelled too: then the transaction is aborted, and
/// commits nothing. [`within`](Self::within) takes a transaction and applies in it, which spares two round trips;
/// after an apply that failed, or whose future was dropped before it was ready, roll the transaction back. Apply once a transaction, as its last
/// statement before the commit: then rows are locked for the shortest time, in one order for all, and own tables do not deadlock.
///
/// Works at any isolation level; above READ COMMITTED a transaction that is older than what it meets fails to serialize ([`Error::Busy`]), and never
/// drifts.
///
/// # Examples
///
/// ```no_run
/// use keepcount::{AsyncStore, Batch, Counter, Layout, PostgresStore};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// # async fn vote(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// PostgresStore::new(&mut client, &LAYOUT).create().await?;
///
/// let tx = client.transaction().await?;
/// let mut batch = Batch::new();
/// tx.execute("INSERT INTO votes (show_id) VALUES (7)", &[]).await?;
/// batch.add(SHOW_VOTES, 7, 1);
/// PostgresStore::within(&tx, &LAYOUT).apply(&mut batch).await?;
/// tx.commit().await?;
///
/// assert_eq!(PostgresStore::new(&mut client, &LAYOUT).total(SHOW_VOTES, 7).await?, 1);
/// # Ok(())
/// # }
/// ```
pub struct PostgresStore<'c, C> {
    conn: Conn<'c, C>,
    layout: &'c Layout,
    prepared: Option<&'c PreparedStatements>,
}

enum Conn<'c, C> {
    /// Begins transactions, or savepoints, of its own.
    Own(&'c mut C),
    /// A transaction that is the caller's.
    Within(&'c C),
}

impl<C> fmt::Debug for PostgresStore<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl<'c, 't> PostgresStore<'c, tokio_postgres::Transaction<'t>> {
    /// The store of these counters in a transaction: what is applied commits, or rolls back, with it. Does no I/O.
    #[must_use]
    pub const fn within(tx: &'c tokio_postgres::Transaction<'t>, layout: &'c Layout) -> Self {
        Self { conn: Conn::Within(tx), layout, prepared: None }
    }
}

impl<'c, C: GenericClient + Send + Sync> PostgresStore<'c, C> {
    /// The store of these counters over a client, each apply in a transaction of its own, or over a transaction, in a savepoint of its own. Does no
    /// I/O: call [`check`](Self::check) once at start.
    ///
    /// A client on which a transaction was begun by a statement, and not by `Client::transaction`, looks as one without, and is not for a store: what it commits
    /// would be that one's.
    #[must_use]
    pub const fn new(client: &'c mut C, layout: &'c Layout) -> Self {
        Self { conn: Conn::Own(client), layout, prepared: None }
    }

    /// Keeps prepared statements in what stands beside the connection.
    #[must_use]
    pub const fn prepared(mut self, prepared: &'c PreparedStatements) -> Self {
        self.prepared = Some(prepared);
        self
    }

    pub(crate) fn session(&self) -> Session<'_, C> {
        let client = match &self.conn {
            Conn::Own(client) => &**client,
            Conn::Within(client) => client,
        };
        Session { client, layout: self.layout, prepared: self.prepared }
    }

    async fn apply_with(&mut self, batch: &mut Batch, mark: Option<&Mark<'_>>) -> Result<Applied> {
        self.layout.check_batch(batch)?;
        if batch.is_empty() && mark.is_none() {
            batch.spend();
            return Ok(Applied::default());
        }
        let began = observe::begin(observe::Place::Postgres, batch);
        let work = writing::Apply { batch: &*batch, mark };
        let applied = self.transact(|| writing::doing(work.batch, mark), work).await?;
        if !applied.skipped {
            observe::stored(observe::Place::Postgres, began, batch, &applied);
        }
        batch.spend();
        Ok(applied)
    }

    /// Runs `work` in a transaction of its own, or in the caller's.
    pub(crate) async fn transact<T>(
        &mut self,
        doing: impl Fn() -> String + Send + Sync,
        work: impl AsyncWork<T>,
    ) -> Result<T> {
        let (layout, prepared) = (self.layout, self.prepared);
        match &mut self.conn {
            Conn::Within(client) => {
                let done = work.run(&Session { client: *client, layout, prepared }).await.map_err(Failed::unnamed);
                if let Err(error) = &done {
                    // What can be mended is; the transaction is the caller's to begin anew.
                    may_call_again(*client, prepared, error).await;
                }
                done
            }
            Conn::Own(client) => {
                let mut done = in_own(&mut **client, layout, prepared, &doing, &work).await;
                if let Err(error) = &done
                    && may_call_again(&**client, prepared, error).await
                {
                    done = in_own(&mut **client, layout, prepared, &doing, &work).await;
                }
                done
            }
        }
    }

    /// Forgets the totals of a counter, and of the rollups by its tail, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cut-off never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// One transaction, whose cost grows with the counter's totals; writers of the counter wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when the counter is not placed as [`prunable`](crate::Placed::prunable), or `T` has several parts, [`Error::Rollup`] for a rollup, and what the
    /// database says.
    pub async fn prune<H: Key, T: Key>(&mut self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let (cut, counter) = (KeyBuf::of::<T>(before), counter.def());
        let family = prune::family(self.layout, &counter, T::PARTS)?;
        let doing = || format!("pruning counter {}", counter.full_name());
        self.transact(doing, writing::Prune { family, cut }).await
    }
}

impl PostgresStore<'_, Client> {
    /// Writes rows of the application's own and applies their batch in one transaction. With [`prepared`](Self::prepared) statements that takes one round trip or two, once
    /// they are known, where no total has to be read first: where the layout has no rollup, board or prunable counter. So totals are locked for no longer
    /// than the commit takes. Gives how many rows each statement wrote.
    ///
    /// It is one round trip of a single message, up to a mebibyte, where values are booleans, integers, floats, texts, bytes, days and moments from the year 1 to 9999, UUIDs, JSON, enums, or
    /// arrays of these without nulls. They are literals of that message then, and so in what the server logs of a statement that fails;
    /// [`PreparedStatements::by_parameters`] does without. Else BEGIN is answered before anything else is sent.
    ///
    /// The client must not be in a transaction that was begun by a statement: this one would be part of it, committed or not.
    ///
    /// For writes whose batch is known before they run, such as inserts: an update or delete has to learn from the database what was there. Each statement must
    /// fail where it does not write what was counted: an `INSERT .. ON CONFLICT DO NOTHING` writes no row, and its total is counted all the same.
    ///
    /// # Errors
    ///
    /// As [`apply`](AsyncStore::apply), and what the database says of the rows; nothing is written then, unless it is [`Error::Unknown`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, Counter, Layout, PostgresStore, PreparedStatements};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    /// # async fn vote(client: &mut tokio_postgres::Client, prepared: &PreparedStatements) -> Result<(), Box<dyn std::error::Error>> {
    /// let insert = "INSERT INTO votes (show_id) VALUES ($1)";
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// PostgresStore::new(client, &LAYOUT).prepared(prepared).write(&[(insert, &[&7_i64])], &mut batch).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
    ) -> Result<(Vec<u64>, Applied)> {
        self.write_with(rows, batch, None).await
    }

    /// As [`write`](Self::write), and moves a stream's mark in the same transaction: events that were applied before write neither rows nor totals. So a write
    /// whose outcome is [unknown](Error::Unknown) is given again as it is, and is written or [skipped](Applied::skipped). Takes two round trips more, as the mark is looked at
    /// first.
    ///
    /// # Errors
    ///
    /// As [`apply_once`](AsyncStore::apply_once), and what the database says of the rows; nothing is written then, unless it is [`Error::Unknown`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, Counter, Error, Layout, Mark, PostgresStore};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
    /// # async fn vote(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// let rows: [(&str, &[&(dyn tokio_postgres::types::ToSql + Sync)]); 1] =
    ///     [("INSERT INTO votes (show_id) VALUES ($1)", &[&7_i64])];
    /// let mark = Mark::new("votes", 1, 1)?;
    /// let (_, applied) = PostgresStore::new(client, &LAYOUT).write_once(&rows, &mut batch, &mark).await?;
    /// println!("{}", if applied.skipped { "it was there" } else { "written" });
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write_once(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
        mark: &Mark<'_>,
    ) -> Result<(Vec<u64>, Applied)> {
        self.write_with(rows, batch, Some(mark)).await
    }

    async fn write_with(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
        mark: Option<&Mark<'_>>,
    ) -> Result<(Vec<u64>, Applied)> {
        self.layout.check_batch(batch)?;
        let prepared = self.prepared;
        let Conn::Own(client) = &mut self.conn else {
            return Err(Error::setting("write", "it begins a transaction, and the store is within one"));
        };
        if client.is_closed() {
            // Nothing was sent, so nothing is in doubt.
            let reason = "the connection was lost before; open another";
            let cause = "connection closed".into();
            return Err(Error::Busy { doing: writing::doing(batch, mark), reason, cause });
        }
        let began = observe::begin(observe::Place::Postgres, batch);
        let mut done = write_in_own(client, self.layout, prepared, rows, batch, mark).await;
        if let Err(error) = &done
            && may_call_again(&**client, prepared, error).await
        {
            done = write_in_own(client, self.layout, prepared, rows, batch, mark).await;
        }
        let (written, applied) = done?;
        if !applied.skipped {
            observe::stored(observe::Place::Postgres, began, batch, &applied);
        }
        batch.spend();
        Ok((written, applied))
    }
}

/// Writes rows and their batch in a transaction of its own, in as few messages as it can.
async fn write_in_own(
    client: &mut Client,
    layout: &Layout,
    prepared: Option<&PreparedStatements>,
    rows: &[(&str, &[&(dyn ToSql + Sync)])],
    batch: &Batch,
    mark: Option<&Mark<'_>>,
) -> Result<(Vec<u64>, Applied)> {
    let session = Session { client: &*client, layout, prepared };
    if mark.is_none() {
        match session.write_at_once(rows, batch).await {
            Ok(None) => {}
            Ok(Some(done)) => return Ok(done),
            Err(Failed::Overflow(counter, batch)) => return Err(session.find_overflow(&counter, &batch).await),
            Err(failed) => return Err(failed.unnamed()),
        }
    }
    let doing = || writing::doing(batch, mark);
    in_own(client, layout, prepared, &doing, &writing::WriteRows { rows, batch, mark }).await
}

/// Runs `work` in a transaction, or savepoint, of its own. Whatever comes of it, a client is outside of it afterwards, or the error says that it is not.
async fn in_own<C: GenericClient + Send + Sync, T>(
    client: &mut C,
    layout: &Layout,
    prepared: Option<&PreparedStatements>,
    doing: &(impl Fn() -> String + Send + Sync),
    work: &impl AsyncWork<T>,
) -> Result<T> {
    let (failed, is_over) = match client.transaction().await {
        Ok(tx) => match work.run(&Session { client: &tx, layout, prepared }).await {
            Ok(done) => match tx.commit().await {
                Ok(()) => return Ok(done),
                Err(error) => (commit_failed(&doing(), error).into(), false),
            },
            Err(failed) => (failed, tx.rollback().await.is_ok()),
        },
        Err(error) => (failed(Whose::Connection, &doing(), error).into(), false),
    };
    match failed {
        Failed::Known(error) if is_over => Err(error),
        Failed::Known(error) => Err(settled(&*client, &doing(), error).await),
        Failed::Overflow(counter, batch) => {
            if !is_over {
                // What stays open is refused to be read, which says so.
                let _ = end_transaction(&*client).await;
            }
            Err(Session { client: &*client, layout, prepared }.find_overflow(&counter, &batch).await)
        }
    }
}

/// What is done in one transaction.
pub(crate) trait AsyncWork<T>: Send + Sync {
    fn run<C: GenericClient + Send + Sync>(
        &self,
        session: &Session<'_, C>,
    ) -> impl Future<Output = Result<T, Failed>> + Send;
}

impl<C: GenericClient + Send + Sync> AsyncStore for PostgresStore<'_, C> {
    async fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        self.apply_with(batch, None).await
    }

    async fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        self.apply_with(batch, Some(mark)).await
    }

    async fn mark(&mut self, stream: &str) -> Result<u64> {
        writing::check_stream(stream)?;
        let query = Query { text: sql::read_mark(Dialect::Postgres), values: vec![Value::Text(stream.into())] };
        let rows = self.session().query(&query).await;
        let doing = format!("reading the mark of stream {stream}");
        let rows = rows.map_err(|error| failed(Whose::Table(sql::MARKS), &doing, error))?;
        rows.first().map_or(Ok(0), |row| writing::mark_of(stream, row))
    }

    async fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let (placed, session) = (self.layout.placed(&counter)?, self.session());
        let reads = queries::read_many(placed, keys)?;
        let rows = session.when_ready(&counter, &reads).await?;
        let rows: Vec<&Row> = rows.iter().flatten().collect();
        totals_in_order(&counter, keys, &rows)
    }

    async fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        let query = sql::range(Dialect::Postgres, self.layout.placed(&counter)?, range, limit)?;
        let rows = self.session().when_ready(&counter, &[query]).await?;
        rows.iter().flatten().map(|row| read_total(&counter, row)).collect()
    }

    async fn sum(&mut self, counter: Def, range: &KeyRange) -> Result<i64> {
        let query = sql::sum(Dialect::Postgres, self.layout.placed(&counter)?, range)?;
        let rows = self.session().when_ready(&counter, &[query]).await?;
        let sum = rows.iter().flatten().next().map_or(Ok(None), |row| row.try_get::<_, Option<String>>(0));
        let sum = sum.map_err(|error| failed_on("summing totals", &counter, error))?;
        let sum = sum.map_or(Ok(0), |sum| sum.parse().map_err(|_| super::sum_overflow(&counter)))?;
        // Afterwards: a cut never goes back, so what it spares now was spared all along.
        let cuts = self.session().cuts(&[counter], false).await?;
        prune::check_range(&counter, range, cuts.first().map(|(_, cut)| cut))?;
        Ok(sum)
    }
}

/// Reads a key and its total.
pub(crate) fn read_total(counter: &Def, row: &Row) -> Result<(KeyBuf, i64)> {
    let total = row.try_get(row.len().saturating_sub(1));
    Ok((read_key(counter, row, 0)?, total.map_err(|error| failed_on("reading totals", counter, error))?))
}

/// The totals of these keys, in their order, out of rows that came in any.
fn totals_in_order(counter: &Def, keys: &[KeyBuf], rows: &[&Row]) -> Result<Vec<i64>> {
    let known =
        rows.iter().map(|row| read_total(counter, row)).collect::<Result<std::collections::BTreeMap<_, _>>>()?;
    Ok(keys.iter().map(|key| known.get(key).copied().unwrap_or(0)).collect())
}
