//! Checks which counters and leaderboards are ready to be read, from the catalogue's entries for
//! them and for everything they are made of.

use std::borrow::Cow;

use super::rows;
use super::{OrFailed as _, Whose, after_reads, failed, of_catalogue, tables};
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::executor::{Executor, Row};
use crate::leaderboard::LeaderboardId;
use crate::schema::Schema;
use crate::sql::own_catalogue::Known;
use crate::sql::{self, Query, Value};

/// What is read, which determines what must be ready.
pub(crate) enum Subject<'a> {
    Counter(&'a Schema, CounterId),
    Leaderboard(&'a Schema, &'a LeaderboardId),
}

impl Subject<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Counter(_, counter) => counter.name(),
            Self::Leaderboard(_, leaderboard) => leaderboard.name(),
        }
    }

    fn table(&self) -> String {
        match self {
            Self::Counter(_, counter) => counter.table_name(),
            Self::Leaderboard(_, leaderboard) => leaderboard.table_name(),
        }
    }

    /// The names of everything that it needs.
    fn needs(&self) -> Result<Vec<Cow<'static, str>>> {
        let (schema, leaderboard, counters) = match self {
            Self::Counter(schema, counter) => (schema, None, std::slice::from_ref(counter)),
            Self::Leaderboard(schema, leaderboard) => {
                (schema, Some(Cow::Borrowed(leaderboard.name())), leaderboard.counters())
            }
        };
        let counters = schema.with_bases(counters)?;
        Ok(leaderboard.into_iter().chain(counters.iter().map(CounterId::full_name)).collect())
    }
}

/// Runs queries about a counter or leaderboard if it is ready, and passes each row with the
/// position of its query to `each`. The check is the first query of the same round trip. That is
/// enough, because what is ready stays ready.
pub(crate) async fn fetch<E: Executor + ?Sized>(
    executor: &mut E,
    subject: Subject<'_>,
    queries: Vec<Query<'_>>,
    mut each: impl FnMut(usize, &dyn Row) -> Result<()> + Send,
) -> Result<()> {
    let look = Query::new(sql::unready(executor.dialect()), Vec::new()).single();
    let all: Vec<Query<'_>> = std::iter::once(look).chain(queries).collect();
    let nested = executor.is_nested();
    let done = executor
        .fetch(&all, &mut |at, row| match at.checked_sub(1) {
            Some(at) => each(at, row),
            None => refuse_unready(&subject, rows::text(row, 0, sql::CATALOGUE)?.as_deref()),
        })
        .await;
    let done = done.map_err(|stopped| {
        stopped.or(|at, error| match at {
            0 => failed(
                of_catalogue(),
                &format!("asking whether {} is ready", subject.name()),
                error,
            ),
            _ => failed(
                Whose::Table(&subject.table()),
                &format!("reading {}", subject.name()),
                error,
            ),
        })
    });
    after_reads(executor, nested, done)
}

fn refuse_unready(subject: &Subject<'_>, unready: Option<&str>) -> Result<()> {
    let Some(unready) = unready else { return Ok(()) };
    let is_unready = |name: &Cow<'_, str>| unready.split(',').any(|unready| unready == name);
    match subject.needs()?.into_iter().find(is_unready) {
        Some(unready) => {
            Err(Error::NotReady { counter: subject.name(), unready: unready.into_owned() })
        }
        None => Ok(()),
    }
}

/// Whether the database has a counter and everything that it sums, and all of it is ready to be
/// read.
pub(crate) async fn is_ready<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    counter: CounterId,
) -> Result<bool> {
    schema.position(&counter)?;
    let needs = schema.with_bases(&[counter])?;
    let known = catalogue(executor).await?;
    let is_ready =
        |id: &CounterId| known.iter().any(|known| known.ready && known.row.name == id.full_name());
    Ok(needs.iter().all(is_ready))
}

async fn catalogue<E: Executor + ?Sized>(executor: &mut E) -> Result<Vec<Known>> {
    let nested = executor.is_nested();
    let known = tables::catalogue(executor).await;
    after_reads(executor, nested, known)
}

/// The counters of the schema that need a backfill, in the order of names.
pub(crate) async fn unready<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
) -> Result<Vec<CounterId>> {
    let known = catalogue(executor).await?;
    let mut counters = schema.by_name();
    counters
        .retain(|id| known.iter().any(|known| !known.ready && known.row.name == id.full_name()));
    Ok(counters)
}

/// Marks a counter as ready, in the current transaction.
pub(crate) async fn set_ready<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
) -> Result<()> {
    let set =
        Query::new(sql::set_ready(executor.dialect()), vec![Value::Text(counter.full_name())]);
    let operation = format!("ending the backfill of counter {}", counter.full_name());
    let set = executor.execute(&[set]).await;
    let set = set.or_failed(of_catalogue(), &operation)?;
    let (name, table) = (counter.full_name(), counter.table_name());
    tables::check_updated(executor, &set, ("counter", &name), table).await
}
