//! A database as it was at one moment: a snapshot, read by waiting for each answer.

use std::collections::HashMap;

use keepcount::{
    Applied, AsKey, AsyncStore as _, Batch, Board, Def, Key, KeyBuf, KeyRange, Mark, PostgresStore, PreparedStatements,
    Ranked, Score, Store,
};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::{position, verified};
use crate::error::{Error, Result};
use crate::schema::C;
use crate::site::{Boards, Moment};

/// What is read in it is of one moment; blocks nobody.
pub async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    Ok(client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?)
}

pub struct Snapshot<'c> {
    runtime: &'c Runtime,
    tx: Transaction<'c>,
    prepared: &'c PreparedStatements,
}

impl<'c> Snapshot<'c> {
    pub fn begin(runtime: &'c Runtime, client: &'c mut Client, prepared: &'c PreparedStatements) -> Result<Self> {
        Ok(Self { runtime, tx: runtime.block_on(snapshot(client))?, prepared })
    }

    fn blocking(&self) -> Blocking<'_, 'c> {
        Blocking { runtime: self.runtime, tx: &self.tx, prepared: self.prepared }
    }
}

impl Moment for Snapshot<'_> {
    fn store(&mut self) -> impl Store + Boards {
        self.blocking()
    }

    fn version(&mut self) -> Result<String> {
        // Which transactions it sees.
        let row = self.runtime.block_on(self.tx.query_one("SELECT pg_current_snapshot()::text", &[]))?;
        Ok(row.try_get(0)?)
    }

    fn lines(&mut self) -> Result<i128> {
        let mut lines = 0;
        for stream in self.runtime.block_on(position::streams(&self.tx))? {
            lines += i128::from(self.blocking().mark(&stream)?);
        }
        Ok(lines)
    }

    fn verified(&mut self) -> Result<HashMap<String, i64>> {
        self.runtime.block_on(verified::read(&self.tx))
    }

    fn count(&mut self, table: &str) -> Result<(i64, i128)> {
        // The sum of many totals may leave 64 bits.
        let text = format!(r#"SELECT count(*), coalesce(sum(total), 0)::text FROM "{table}" WHERE total <> 0"#);
        let row = self.runtime.block_on(self.tx.query_one(&text, &[]))?;
        let sum: String = row.try_get(1)?;
        let sum = sum.parse().map_err(|error| Error::Foreign(format!("table {table}: the sum is {sum:?}: {error}")))?;
        Ok((row.try_get(0)?, sum))
    }
}

/// The totals and boards in a transaction, for code that does not wait by itself.
struct Blocking<'m, 'c> {
    runtime: &'m Runtime,
    tx: &'m Transaction<'c>,
    prepared: &'m PreparedStatements,
}

impl<'m, 'c> Blocking<'m, 'c> {
    fn store(&self) -> PostgresStore<'m, Transaction<'c>> {
        PostgresStore::within(self.tx, &C::LAYOUT).prepared(self.prepared)
    }
}

impl Store for Blocking<'_, '_> {
    fn apply(&mut self, batch: &mut Batch) -> keepcount::Result<Applied> {
        self.runtime.block_on(self.store().apply(batch))
    }

    fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> keepcount::Result<Applied> {
        self.runtime.block_on(self.store().apply_once(batch, mark))
    }

    fn mark(&mut self, stream: &str) -> keepcount::Result<u64> {
        self.runtime.block_on(self.store().mark(stream))
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> keepcount::Result<Vec<i64>> {
        self.runtime.block_on(self.store().read(counter, keys))
    }

    fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> keepcount::Result<Vec<(KeyBuf, i64)>> {
        self.runtime.block_on(self.store().range(counter, range, limit))
    }
}

impl Boards for Blocking<'_, '_> {
    fn top<K: Key, S: Score>(&mut self, board: Board<K, S>, limit: usize) -> keepcount::Result<Vec<Ranked<K, S>>> {
        self.runtime.block_on(self.store().top(board, limit))
    }

    fn rank<K: Key, S: Score>(
        &mut self,
        board: Board<K, S>,
        key: impl AsKey<K>,
    ) -> keepcount::Result<Option<Ranked<K, S>>> {
        self.runtime.block_on(self.store().rank(board, key))
    }
}
