//! Which counters and boards may be read: what the catalogue says of them and of all that they are made of.

use std::borrow::Cow;

use super::{SqliteStore, Unready, failed, failed_on, transaction};
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
        let known = self.or_lost(|| self.catalogue())?;
        let mut counters = self.layout.by_name();
        counters.retain(|def| known.iter().any(|known| !known.ready && known.row.name == def.full_name()));
        Ok(counters)
    }

    /// Says that a counter is ready from now on; in the transaction that is open.
    pub(crate) fn set_ready(&self, counter: &Def) -> Result<()> {
        let set = self.conn.prepare_cached(&sql::set_ready(Dialect::Sqlite));
        let set = set.and_then(|mut set| transaction::write(self.conn, &mut set, [counter.full_name()]));
        set.map(drop).map_err(|error| failed_on("ending the backfill", counter, error))
    }

    /// Reads a counter if it may be read.
    pub(super) fn when_ready<T>(&self, counter: &Def, read: impl FnOnce(&mut Unready<'c>) -> Result<T>) -> Result<T> {
        self.layout.position(counter)?;
        let needs = || Ok(self.layout.with_finer(&[*counter])?.iter().map(Def::full_name).collect());
        self.or_lost(|| self.when_all_ready(counter.name(), needs, || read(&mut Unready(*self))))
    }

    /// Reads a board if it, and what it is made of, may be read.
    pub(crate) fn when_board_ready<T>(&self, board: &BoardDef, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let needs = || {
            let counters = self.layout.with_finer(board.counters())?;
            Ok(std::iter::once(Cow::Borrowed(board.name())).chain(counters.iter().map(Def::full_name)).collect())
        };
        self.or_lost(|| self.when_all_ready(board.name(), needs, read))
    }

    /// One lookup. Its row is held while `read` runs, so that both read one snapshot, and outside a transaction begin and end one between them.
    fn when_all_ready<T>(
        &self,
        what: &'static str,
        needs: impl FnOnce() -> Result<Vec<Cow<'static, str>>>,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let failed = |error| failed(&format!("looking whether {what} is ready"), error);
        let mut statement = self.conn.prepare_cached(&sql::unready(Dialect::Sqlite)).map_err(failed)?;
        let mut rows = statement.query(()).map_err(failed)?;
        let row = rows.next().map_err(failed)?;
        let unready = row.map_or(Ok(None), |row| row.get::<_, Option<String>>(0)).map_err(failed)?;
        if let Some(unready) = unready {
            let is_unready = |name: &Cow<'_, str>| unready.split(',').any(|unready| unready == name);
            if let Some(unready) = needs()?.into_iter().find(is_unready) {
                return Err(Error::NotReady { counter: what, unready: unready.into_owned() });
            }
        }
        read()
    }
}
