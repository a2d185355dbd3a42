//! Which counters and boards may be read: what the catalogue says of them and of all that they are made of.

use std::borrow::Cow;

use tokio_postgres::{GenericClient, Row};

use super::{PostgresStore, Session, Whose, failed};
use crate::board::BoardDef;
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::sql::{self, Dialect, Query, Value};

impl<C: GenericClient + Send + Sync> PostgresStore<'_, C> {
    /// Whether a counter may be read: it, and all that it sums, are ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::Conflict`] for a counter that is not the layout's, and what the database says.
    pub async fn is_ready(&mut self, counter: Def) -> Result<bool> {
        match self.session().when_ready(&counter, &[]).await {
            Err(Error::NotReady { .. }) => Ok(false),
            ready => ready.map(|_| true),
        }
    }

    /// The counters of the layout that are to be backfilled, in the order of names; for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped). A rollup above them may be ready itself, and is refused to readers
    /// until they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn unready(&mut self) -> Result<Vec<Def>> {
        let known = self.session().catalogue().await?;
        let mut counters = self.layout.by_name();
        counters.retain(|def| known.iter().any(|known| !known.ready && known.row.name == def.full_name()));
        Ok(counters)
    }
}

impl<C: GenericClient + Send + Sync> Session<'_, C> {
    /// Says that a counter is ready from now on.
    pub(crate) async fn set_ready(&self, counter: &Def) -> Result<()> {
        let values = vec![Value::Text(counter.full_name())];
        let set = self.execute(&Query { text: sql::set_ready(Dialect::Postgres), values }).await;
        let doing = format!("ending the backfill of counter {}", counter.full_name());
        set.map(drop).map_err(|error| failed(Whose::Table(sql::CATALOGUE), &doing, error))
    }

    /// The rows of some queries about a counter, if it may be read. What is ready stays ready: so it is looked for first, in the same round trip.
    pub(super) async fn when_ready(&self, counter: &Def, queries: &[Query<'_>]) -> Result<Vec<Vec<Row>>> {
        self.layout.position(counter)?;
        let needs = || Ok(self.layout.with_finer(&[*counter])?.iter().map(Def::full_name).collect());
        self.when_all_ready(counter.name(), &counter.table_name(), needs, queries).await
    }

    /// The rows of some queries about a board, if it, and what it is made of, may be read.
    pub(crate) async fn when_board_ready(&self, board: &BoardDef, queries: &[Query<'_>]) -> Result<Vec<Vec<Row>>> {
        let needs = || {
            let counters = self.layout.with_finer(board.counters())?;
            Ok(std::iter::once(Cow::Borrowed(board.name())).chain(counters.iter().map(Def::full_name)).collect())
        };
        self.when_all_ready(board.name(), &board.table_name(), needs, queries).await
    }

    async fn when_all_ready(
        &self,
        what: &'static str,
        table: &str,
        needs: impl FnOnce() -> Result<Vec<Cow<'static, str>>>,
        queries: &[Query<'_>],
    ) -> Result<Vec<Vec<Row>>> {
        let look = Query { text: sql::unready(Dialect::Postgres), values: Vec::new() };
        let all: Vec<Query<'_>> = std::iter::once(look).chain(queries.iter().cloned()).collect();
        let not_looked =
            |error| failed(Whose::Table(sql::CATALOGUE), &format!("looking whether {what} is ready"), error);
        let rows = self.query_all(&all).await.map_err(|(at, error)| match at {
            0 => not_looked(error),
            _ => failed(Whose::Table(table), &format!("reading {what}"), error),
        })?;
        let mut rows = rows.into_iter();
        let looked = rows.next().unwrap_or_default();
        let unready = looked.first().map_or(Ok(None), |row| row.try_get::<_, Option<String>>(0));
        let unready = unready.map_err(not_looked)?;
        if let Some(unready) = unready {
            let is_unready = |name: &Cow<'_, str>| unready.split(',').any(|unready| unready == name);
            if let Some(unready) = needs()?.into_iter().find(is_unready) {
                return Err(Error::NotReady { counter: what, unready: unready.into_owned() });
            }
        }
        Ok(rows.collect())
    }
}
