//! Totals in PostgreSQL's tables, over the caller's own client or transaction: the engine's face for those who wait.

use std::fmt;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, GenericClient};

use crate::batch::Batch;
use crate::counter::{Counter, CounterId};
use crate::drivers::tokio_postgres::{Postgres, PreparedStatements, write_in_own};
use crate::engine;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::leaderboard::{Leaderboard, Ranked, Score};
use crate::observe;
use crate::offset::StreamRange;
use crate::range::KeyRange;
use crate::schema::Schema;
use crate::store::{Applied, AsyncStore, Sweep, Swept};

/// Totals in tables beside the application's rows; borrows its client or transaction, so it is made where it is used.
///
/// [`new`](Self::new) takes whatever can begin a transaction, a client or a transaction, and applies in a transaction or savepoint of its own: a
/// batch that fails leaves the caller's transaction as it was, unless the end of its savepoint is cancelled too: then the transaction is aborted, and
/// commits nothing. [`in_transaction`](Self::in_transaction) takes a transaction and applies in it, which spares two round trips;
/// after an apply that failed, or whose future was dropped before it was ready, roll the transaction back. Apply once a transaction, as its last
/// statement before the commit: then rows are locked for the shortest time, in one order for all, and own tables do not deadlock.
///
/// Works at any isolation level; above READ COMMITTED a transaction that is older than what it meets fails to serialize ([`Error::Busy`]), and never
/// drifts.
///
/// # Examples
///
/// ```no_run
/// use keepcount::{AsyncStore, Batch, Counter, PostgresStore, Schema};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
///
/// # async fn vote(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// PostgresStore::new(&mut client, &SCHEMA).create().await?;
///
/// let tx = client.transaction().await?;
/// let mut batch = Batch::new();
/// tx.execute("INSERT INTO votes (show_id) VALUES (7)", &[]).await?;
/// batch.add(SHOW_VOTES, 7, 1);
/// PostgresStore::in_transaction(&tx, &SCHEMA).apply(&mut batch).await?;
/// tx.commit().await?;
///
/// assert_eq!(PostgresStore::new(&mut client, &SCHEMA).total(SHOW_VOTES, 7).await?, 1);
/// # Ok(())
/// # }
/// ```
pub struct PostgresStore<'c, C> {
    conn: Conn<'c, C>,
    schema: &'c Schema,
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
        f.debug_struct("PostgresStore").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl<'c, 't> PostgresStore<'c, tokio_postgres::Transaction<'t>> {
    /// The store of these counters in a transaction: what is applied commits, or rolls back, with it. Does no I/O.
    #[must_use]
    pub const fn in_transaction(tx: &'c tokio_postgres::Transaction<'t>, schema: &'c Schema) -> Self {
        Self { conn: Conn::Within(tx), schema, prepared: None }
    }
}

impl<'c, C: GenericClient + Send + Sync> PostgresStore<'c, C> {
    /// The store of these counters over a client, each apply in a transaction of its own, or over a transaction, in a savepoint of its own. Does no
    /// I/O: call [`check`](Self::check) once at start.
    ///
    /// A client on which a transaction was begun by a statement, and not by `Client::transaction`, looks as one without, and is not for a store: what it commits
    /// would be that one's.
    #[must_use]
    pub const fn new(client: &'c mut C, schema: &'c Schema) -> Self {
        Self { conn: Conn::Own(client), schema, prepared: None }
    }

    /// Keeps prepared statements in what stands beside the connection.
    #[must_use]
    pub const fn prepared(mut self, prepared: &'c PreparedStatements) -> Self {
        self.prepared = Some(prepared);
        self
    }

    fn executor(&self) -> Postgres<'_, C> {
        match &self.conn {
            Conn::Own(client) => Postgres::own(client, self.prepared),
            Conn::Within(client) => Postgres::within(client, self.prepared),
        }
    }

    /// Makes the catalogue and the tables that are not there yet, and checks those that are; in the first schema of the search path. Processes that
    /// call it at once come one after the other.
    ///
    /// In a database without a catalogue every counter is ready to be read at once, as there are no rows yet; where there are, call
    /// [`create_pending_backfill`](Self::create_pending_backfill). Where the catalogue is there already, a counter that comes new is not ready: there may be
    /// rows from before, and processes that do not know it may still write. (A counter with many totals that becomes a membership gets its index while its writers
    /// wait; make it CONCURRENTLY before, by the statement in [`Schema::ddl`](crate::Schema::ddl).) From now on it counts, and once every writer runs its hooks, a
    /// [backfill](crate::reconcile::Mode::Backfill) makes it ready. A leaderboard that comes new is empty and not ready until it is
    /// [rebuilt](Self::rebuild). docs/deploy.md has the steps.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`] when a table of a counter's name is there and is not in the catalogue, or is not what the schema
    /// wants, or a name is longer than PostgreSQL's, or the catalogue is in another schema than the first of `search_path`; nothing is made then.
    pub async fn create(&mut self) -> Result<()> {
        engine::schema::create(&mut self.executor(), self.schema, false).await
    }

    /// As [`create`](Self::create), for counters of rows that are there already: no counter that comes new is ready, in a database without a
    /// catalogue either.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn create_pending_backfill(&mut self) -> Result<()> {
        engine::schema::create(&mut self.executor(), self.schema, true).await
    }

    /// Compares catalogue and tables with the schema.
    ///
    /// # Errors
    ///
    /// [`Error::SchemaMismatch`], naming the table, when one is absent, has other columns or another primary key, has triggers, rules, row security or children, is
    /// temporary or unlogged or in another schema than the catalogue, sorts texts otherwise than by bytes, or holds another version or key than the schema says.
    pub async fn check(&mut self) -> Result<()> {
        engine::schema::check(&mut self.executor(), self.schema).await
    }

    /// The counters and leaderboards of this database that the schema does not have, by their full names: those that an older schema had, and, seen from
    /// an older schema, those that are new. Nobody who writes by this schema keeps their totals.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn orphaned(&mut self) -> Result<Vec<String>> {
        engine::schema::lost(&mut self.executor(), self.schema).await
    }

    /// Drops the table of a counter or leaderboard that is [lost](Self::orphaned), and its row in the catalogue, in one transaction. A process that still has
    /// it fails from then on with each write to it: call it by hand, once the last of them is gone.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] when the database has none of this name, [`Error::InvalidUse`] when the schema has it, or a rollup or leaderboard is made of
    /// it, which is to be dropped first; and what the database says. Nothing is dropped then.
    pub async fn drop_counter(&mut self, name: &str) -> Result<()> {
        engine::schema::forget(&mut self.executor(), self.schema, name).await
    }

    /// Whether a counter may be read: it, and all that it sums, are ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::DefinitionConflict`] for a counter that is not the schema's, and what the database says.
    pub async fn is_ready(&mut self, counter: CounterId) -> Result<bool> {
        engine::readiness::is_ready(&mut self.executor(), self.schema, counter).await
    }

    /// The counters of the schema that are to be backfilled, in the order of names; for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped). A rollup above them may be ready itself, and is refused to readers
    /// until they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn unready(&mut self) -> Result<Vec<CounterId>> {
        engine::readiness::unready(&mut self.executor(), self.schema).await
    }

    /// Forgets the totals of a counter, and of the rollups by its suffix, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cutoff never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// One transaction, whose cost grows with the counter's totals; writers of the counter wait for it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] when the counter is not placed as [`prunable`](crate::CounterSpec::prunable), or `T` has several parts, [`Error::Rollup`] for a rollup, and what the
    /// database says.
    pub async fn prune<H: Key, T: Key>(&mut self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let cutoff = KeyBuf::of::<T>(before);
        engine::retention::prune(&mut self.executor(), self.schema, counter.id(), T::PARTS, &cutoff).await
    }

    /// The streams behind one, in the order of their names' bytes, at most `limit`, each with its last event that was applied; from the first where
    /// `after` is none.
    ///
    /// # Errors
    ///
    /// What the database says, and [`Error::SchemaMismatch`](crate::Error::SchemaMismatch) for an offset that somebody else wrote.
    pub async fn offsets(&mut self, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>> {
        engine::read::offsets(&mut self.executor(), after, limit).await
    }

    /// Forgets the offset of a stream that ended; gives what it was, 0 where there was none. Totals stay as they are. Whoever applies the stream just now
    /// is waited for.
    ///
    /// A store without an offset takes every event for a new one: if one of the stream is ever delivered again, from the first on, it counts again.
    ///
    /// # Errors
    ///
    /// As [`offsets`](Self::offsets); the offset stays then.
    pub async fn forget_offset(&mut self, stream: &str) -> Result<u64> {
        engine::sweep::forget_offset(&mut self.executor(), stream).await
    }

    /// The first lines of a leaderboard: one range of its index.
    ///
    /// # Errors
    ///
    /// What the database says; [`Error::Key`] for a key that is none of the leaderboard's type; [`Error::NotReady`] while the leaderboard came new and is
    /// not [rebuilt](Self::rebuild), or a counter that it is made of is not ready.
    pub async fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        engine::leaderboard::top(&mut self.executor(), self.schema, leaderboard, limit).await
    }

    /// The lines behind one that was read before: ranks go on from its rank, whatever has changed meanwhile.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn top_after<K: Key + AsKey<K>, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        after: &Ranked<K, S>,
        limit: usize,
    ) -> Result<Vec<Ranked<K, S>>> {
        engine::leaderboard::top_after(&mut self.executor(), self.schema, leaderboard, after, limit).await
    }

    /// The line of one key; none where it is not listed. Counts the lines before it: costs O(rank).
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> Result<Option<Ranked<K, S>>> {
        let key = KeyBuf::of::<K>(key);
        engine::leaderboard::rank(&mut self.executor(), self.schema, leaderboard, &key).await
    }

    /// How many keys a leaderboard lists.
    ///
    /// # Errors
    ///
    /// As [`top`](Self::top).
    pub async fn listed<K: Key, S: Score>(&mut self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        engine::leaderboard::listed(&mut self.executor(), self.schema, &leaderboard.id()).await
    }

    /// Makes every score of a leaderboard anew from totals, in one transaction, and the leaderboard ready to be read; says how many lines were not as they should
    /// be. Needed once for a leaderboard that came new to a database, after a leaderboard's version was raised, which it writes into the catalogue, and after
    /// totals were changed behind keepcount's back. Writers of the leaderboard's counters wait for it.
    ///
    /// Whoever calls it states that every process which writes has this leaderboard in its schema by now: one that has not leaves lines as they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn rebuild<K: Key, S: Score>(&mut self, leaderboard: Leaderboard<K, S>) -> Result<u64> {
        engine::leaderboard::rebuild(&mut self.executor(), self.schema, &leaderboard.id()).await
    }
}

impl PostgresStore<'_, Client> {
    /// Writes rows of the application's own and applies their batch in one transaction. With [`prepared`](Self::prepared) statements that takes one round trip or two, once
    /// they are known, where no total has to be read first: where the schema has no rollup, leaderboard or prunable counter. So totals are locked for no longer
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
    /// As [`apply`](AsyncStore::apply), and what the database says of the rows; nothing is written then, unless it is [`Error::Indeterminate`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, Counter, PostgresStore, PreparedStatements, Schema};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    /// # async fn vote(client: &mut tokio_postgres::Client, prepared: &PreparedStatements) -> Result<(), Box<dyn std::error::Error>> {
    /// let insert = "INSERT INTO votes (show_id) VALUES ($1)";
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// PostgresStore::new(client, &SCHEMA).prepared(prepared).write(&[(insert, &[&7_i64])], &mut batch).await?;
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

    /// As [`write`](Self::write), and moves a stream's offset in the same transaction: events that were applied before write neither rows nor totals. So a write
    /// whose outcome is [unknown](Error::Indeterminate) is given again as it is, and is written or [skipped](Applied::skipped). Takes two round trips more, as the offset is looked at
    /// first.
    ///
    /// # Errors
    ///
    /// As [`apply_idempotent`](AsyncStore::apply_idempotent), and what the database says of the rows; nothing is written then, unless it is [`Error::Indeterminate`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use keepcount::{Batch, Counter, Error, PostgresStore, Schema, StreamRange};
    /// # const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// # const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    /// # async fn vote(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut batch = Batch::new();
    /// batch.add(SHOW_VOTES, 7, 1);
    /// let rows: [(&str, &[&(dyn tokio_postgres::types::ToSql + Sync)]); 1] =
    ///     [("INSERT INTO votes (show_id) VALUES ($1)", &[&7_i64])];
    /// let stream_range = StreamRange::new("votes", 1, 1)?;
    /// let (_, applied) = PostgresStore::new(client, &SCHEMA).write_idempotent(&rows, &mut batch, &stream_range).await?;
    /// println!("{}", if applied.skipped { "it was there" } else { "written" });
    /// # Ok(())
    /// # }
    /// ```
    pub async fn write_idempotent(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<(Vec<u64>, Applied)> {
        self.write_with(rows, batch, Some(stream_range)).await
    }

    async fn write_with(
        &mut self,
        rows: &[(&str, &[&(dyn ToSql + Sync)])],
        batch: &mut Batch,
        stream_range: Option<&StreamRange<'_>>,
    ) -> Result<(Vec<u64>, Applied)> {
        self.schema.check_batch(batch)?;
        let Conn::Own(client) = &self.conn else {
            return Err(Error::invalid_use("write", "it begins a transaction, and the store is within one"));
        };
        if client.is_closed() {
            // Nothing was sent, so nothing is in doubt.
            let reason = "the connection was lost before; open another";
            let cause = "connection closed".into();
            return Err(Error::Busy { operation: engine::write::operation(batch, stream_range), reason, cause });
        }
        let began = observe::begin(observe::Backend::Postgres, batch);
        let (written, applied) = write_in_own(&mut self.executor(), self.schema, rows, batch, stream_range).await?;
        if !applied.skipped {
            observe::stored(observe::Backend::Postgres, began, batch, &applied);
        }
        batch.spend();
        Ok((written, applied))
    }

    /// Removes rows of totals that are 0, and locks of children and of keys of leaderboards, a bounded part a call, beside writers: they read as absent ones do,
    /// so no total, leaderboard or report changes. Call it from the job that repairs until it is [complete](Swept::complete).
    ///
    /// One transaction a page, which waits for no row that another holds, and leaves that one for a later sweep; so nobody deadlocks with it. What the
    /// oldest transaction that runs may not have seen stays too, one that reads in this database or writes in any of the server's: a transaction above
    /// READ COMMITTED that is older than a row's last change must meet the row when it writes. Where one stays open for hours, or is prepared and
    /// forgotten, nothing that changed since goes.
    ///
    /// # Errors
    ///
    /// What the database says; what was removed before stays removed, and the next call goes on there.
    pub async fn sweep(&mut self, sweep: &mut Sweep) -> Result<Swept> {
        engine::sweep::sweep(&mut self.executor(), self.schema, sweep).await
    }
}

impl<C: GenericClient + Send + Sync> AsyncStore for PostgresStore<'_, C> {
    async fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        engine::write::apply(&mut self.executor(), self.schema, batch, None).await
    }

    async fn apply_idempotent(&mut self, batch: &mut Batch, stream_range: &StreamRange<'_>) -> Result<Applied> {
        engine::write::apply(&mut self.executor(), self.schema, batch, Some(stream_range)).await
    }

    async fn offset(&mut self, stream: &str) -> Result<u64> {
        engine::read::offset(&mut self.executor(), stream).await
    }

    async fn read(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        engine::read::read(&mut self.executor(), self.schema, counter, keys).await
    }

    async fn range(&mut self, counter: CounterId, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        engine::read::range(&mut self.executor(), self.schema, counter, range, limit).await
    }

    async fn sum(&mut self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        engine::read::sum(&mut self.executor(), self.schema, counter, range).await
    }
}
