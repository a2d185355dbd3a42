//! Counters and boards that the layout does not have any more: named, and dropped on demand.

use super::{SqliteStore, failed, transaction};
use crate::error::Result;
use crate::sql;
use crate::store::catalogue;

impl SqliteStore<'_> {
    /// The counters and boards of this database that the layout does not have, by their full names: those that an older layout had, and, seen from
    /// an older layout, those that are new. Nobody who writes by this layout keeps their totals.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn lost(&self) -> Result<Vec<String>> {
        let known = self.or_lost(|| self.catalogue())?.into_iter().map(|known| known.row.name);
        Ok(known.filter(|name| !catalogue::has(self.layout, name)).collect())
    }

    /// Drops the table of a counter or board that is [lost](Self::lost), and its row in the catalogue, in one transaction. A process that still has
    /// it fails from then on with each write to it: call it by hand, once the last of them is gone.
    ///
    /// # Errors
    ///
    /// [`UnknownCounter`](crate::Error::UnknownCounter) when the database has none of this name, [`Setting`](crate::Error::Setting) when the layout
    /// has it, or a rollup or board is made of it, which is to be dropped first; and what the database says. Nothing is dropped then; inside a caller's
    /// transaction it is to be rolled back.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Counter, Layout, SqliteStore};
    ///
    /// const VOTES: Counter<i64> = Counter::new("show.votes");
    /// const BEFORE: Layout = Layout::new(&[VOTES.table()]);
    /// const NOW: Layout = Layout::new(&[VOTES.version(2).table()]);
    ///
    /// let conn = rusqlite::Connection::open_in_memory()?;
    /// SqliteStore::new(&conn, &BEFORE).create()?;
    /// let store = SqliteStore::new(&conn, &NOW);
    /// store.create()?;
    /// assert_eq!(store.lost()?, ["show.votes"]);
    /// store.forget("show.votes")?;
    /// assert!(store.lost()?.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn forget(&self, name: &str) -> Result<()> {
        self.transact(|| format!("forgetting {name}"), |_| self.drop_lost(name))
    }

    fn drop_lost(&self, name: &str) -> Result<()> {
        let known = self.catalogue()?;
        let lost = catalogue::lost(self.layout, &known, name)?;
        let table = sql::quote(&lost.table_name());
        let gone = self.conn.execute_batch(&format!("DROP TABLE IF EXISTS {table}")).and_then(|()| {
            let delete = format!(r#"DELETE FROM "{}" AS c WHERE c."name" = ?1"#, sql::CATALOGUE);
            transaction::write(self.conn, &mut self.conn.prepare(&delete)?, [name])
        });
        gone.map(drop).map_err(|error| failed(&format!("forgetting {name}"), error))
    }
}
