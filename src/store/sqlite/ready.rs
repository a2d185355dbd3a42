//! Which counters and boards may be read: what the catalogue says of them and of all that they are made of.

use std::borrow::Cow;

use rusqlite::params_from_iter;

use super::{SqliteStore, Unready, failed, failed_on};
use crate::board::BoardDef;
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::sql::{self, Dialect};

impl<'c> SqliteStore<'c> {
    /// Whether a counter may be read: it, and all that it sums, are ready.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`] and [`Error::Conflict`] for a counter that is not the layout's, and what the database says.
    pub fn is_ready(&self, counter: Def) -> Result<bool> {
        match self.when_ready(&counter, |_| Ok(())) {
            Err(Error::NotReady { .. }) => Ok(false),
            ready => ready.map(|()| true),
        }
    }

    /// The counters of the layout that are to be backfilled, in the order of names; for
    /// [`Reconciler::scoped`](crate::reconcile::Reconciler::scoped). A rollup above them may be ready itself, and is refused to readers
    /// until they are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn unready(&self) -> Result<Vec<Def>> {
        let known = self.catalogue()?;
        let mut counters = self.layout.by_name();
        counters.retain(|def| known.iter().any(|known| !known.ready && known.row.name == def.full_name()));
        Ok(counters)
    }

    /// Says that a counter is ready from now on.
    pub(crate) fn set_ready(&self, counter: &Def) -> Result<()> {
        let set = self.conn.prepare_cached(&sql::set_ready(Dialect::Sqlite));
        let set = set.and_then(|mut set| set.execute([counter.full_name()]));
        set.map(drop).map_err(|error| failed_on("ending the backfill", counter, error))
    }

    /// Reads a counter if it may be read.
    pub(super) fn when_ready<T>(&self, counter: &Def, read: impl FnOnce(&mut Unready<'c>) -> Result<T>) -> Result<T> {
        let placed = self.layout.placed(counter)?;
        let parts = if placed.rollup().is_some() { self.layout.with_finer(&[*counter])? } else { vec![*counter] };
        let names: Vec<Cow<'_, str>> = parts.iter().map(Def::full_name).collect();
        self.when_all_ready(counter.name(), &names, || read(&mut Unready(*self)))
    }

    /// Reads a board if it, and what it is made of, may be read.
    pub(crate) fn when_board_ready<T>(&self, board: &BoardDef, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let parts = self.layout.with_finer(board.counters())?;
        let names = std::iter::once(Cow::Borrowed(board.name())).chain(parts.iter().map(Def::full_name));
        self.when_all_ready(board.name(), &names.collect::<Vec<_>>(), read)
    }

    /// One lookup. Its row is held while `read` runs, so that both read one snapshot, and outside a transaction begin and end one between them.
    fn when_all_ready<T>(
        &self,
        what: &'static str,
        names: &[Cow<'_, str>],
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let failed = |error| failed(&format!("looking whether {what} is ready"), error);
        let mut statement = self.conn.prepare_cached(&sql::unready(Dialect::Sqlite, names.len())).map_err(failed)?;
        let mut rows = statement.query(params_from_iter(names)).map_err(failed)?;
        let row = rows.next().map_err(failed)?;
        let unready = row.map_or(Ok(None), |row| row.get::<_, Option<String>>(0)).map_err(failed)?;
        match unready {
            Some(unready) => Err(Error::NotReady { counter: what, unready }),
            None => read(),
        }
    }
}
