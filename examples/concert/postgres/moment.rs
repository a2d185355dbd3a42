//! A database at one moment: a snapshot whose reads block until the answer.

use std::collections::HashMap;

use keepcount::backend::KeyRange;
use keepcount::{
    Applied, AsKey, AsyncStore as _, Batch, CounterId, Key, KeyBuf, Leaderboard, PostgresStore,
    PreparedStatements, Ranked, Score, Standing, Store, StreamRange,
};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::{position, verified};
use crate::error::{Error, Result};
use crate::schema::C;
use crate::site::{Leaderboards, Moment};

/// Begins a transaction whose reads are all of one moment. It blocks no writer.
pub async fn begin_snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    Ok(client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?)
}

pub struct Snapshot<'c> {
    runtime: &'c Runtime,
    tx: Transaction<'c>,
    prepared: &'c PreparedStatements,
}

impl<'c> Snapshot<'c> {
    pub fn begin(
        runtime: &'c Runtime,
        client: &'c mut Client,
        prepared: &'c PreparedStatements,
    ) -> Result<Self> {
        Ok(Self { runtime, tx: runtime.block_on(begin_snapshot(client))?, prepared })
    }

    fn blocking(&self) -> Blocking<'_, 'c> {
        Blocking { runtime: self.runtime, tx: &self.tx, prepared: self.prepared }
    }
}

impl Moment for Snapshot<'_> {
    fn store(&mut self) -> impl Store + Leaderboards {
        self.blocking()
    }

    fn version(&mut self) -> Result<String> {
        // A snapshot is named by the transactions that it sees.
        let row =
            self.runtime.block_on(self.tx.query_one("SELECT pg_current_snapshot()::text", &[]))?;
        Ok(row.try_get(0)?)
    }

    fn lines(&mut self) -> Result<i128> {
        let mut lines = 0;
        for stream in self.runtime.block_on(position::streams(&self.tx))? {
            lines += i128::from(self.blocking().offset(&stream)?);
        }
        Ok(lines)
    }

    fn verified(&mut self) -> Result<HashMap<String, i64>> {
        self.runtime.block_on(verified::read(&self.tx))
    }

    fn count(&mut self, table: &str) -> Result<(i64, i128)> {
        // The sum of many totals may leave 64 bits.
        let text = format!(
            r#"SELECT count(*), coalesce(sum(total), 0)::text FROM "{table}" WHERE total <> 0"#
        );
        let row = self.runtime.block_on(self.tx.query_one(&text, &[]))?;
        let sum: String = row.try_get(1)?;
        let sum = sum.parse().map_err(|error| {
            Error::Foreign(format!("table {table}: the sum is {sum:?}: {error}"))
        })?;
        Ok((row.try_get(0)?, sum))
    }
}

/// The totals and leaderboards in a transaction, for blocking code.
struct Blocking<'m, 'c> {
    runtime: &'m Runtime,
    tx: &'m Transaction<'c>,
    prepared: &'m PreparedStatements,
}

impl<'m> Blocking<'m, '_> {
    fn store(&self) -> PostgresStore<'m> {
        PostgresStore::in_transaction(self.tx, &C::SCHEMA).prepared(self.prepared)
    }
}

impl Store for Blocking<'_, '_> {
    fn apply(&mut self, batch: &mut Batch) -> keepcount::Result<Applied> {
        self.runtime.block_on(self.store().apply(batch))
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> keepcount::Result<Applied> {
        self.runtime.block_on(self.store().apply_idempotent(batch, stream_range))
    }

    fn offset(&mut self, stream: &str) -> keepcount::Result<u64> {
        self.runtime.block_on(self.store().offset(stream))
    }

    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> keepcount::Result<Vec<i64>> {
        self.runtime.block_on(self.store().read_keys(counter, keys))
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> keepcount::Result<Vec<(KeyBuf, i64)>> {
        self.runtime.block_on(self.store().read_range(counter, range, limit))
    }
}

impl Leaderboards for Blocking<'_, '_> {
    fn top<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        limit: usize,
    ) -> keepcount::Result<Vec<Ranked<K, S>>> {
        self.runtime.block_on(self.store().top(leaderboard, limit))
    }

    fn rank<K: Key, S: Score>(
        &mut self,
        leaderboard: Leaderboard<K, S>,
        key: impl AsKey<K>,
    ) -> keepcount::Result<Standing<K, S>> {
        self.runtime.block_on(self.store().rank(leaderboard, key))
    }
}
