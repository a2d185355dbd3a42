//! The statements that a connection has prepared, under the driver's names and under names in SQL.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

use super::is_refused;
use crate::counter::{FNV_OFFSET, fnv1a};
use crate::sql;

/// The statements that a connection has prepared.
///
/// Keep it together with the connection: it saves the server from planning each statement again.
///
/// It belongs to one connection, because the server does not know the statements of another. Do not
/// use it behind a pooler that gives each transaction another connection, unless the pooler tracks
/// prepared statements itself. Statements that are missing are prepared again, but a statement that
/// another process left under the same driver's name may be run instead.
///
/// Keeps at most 256 statements; later ones are planned each time. Up to 256 more have a name in
/// SQL, for [`write`](crate::PostgresStore::write); those stay on the server until the connection
/// ends.
///
/// # Examples
///
/// ```
/// use keepcount::{PostgresStore, PreparedStatements, Schema};
/// use tokio_postgres::Transaction;
///
/// fn store<'c>(
///     tx: &'c Transaction<'c>,
///     prepared: &'c PreparedStatements,
///     schema: &'c Schema,
/// ) -> PostgresStore<'c> {
///     PostgresStore::in_transaction(tx, schema).prepared(prepared)
/// }
/// ```
#[derive(Debug, Default)]
pub struct PreparedStatements {
    by_text: Mutex<HashMap<String, Statement>>,
    names: Mutex<Names>,
}

/// Statements that also have a name in SQL, so that one message can run several of them.
#[derive(Debug, Default)]
struct Names {
    of: HashMap<String, Named>,
    /// Whether names are no longer used: the caller wants parameters, or prepared statements were
    /// missing when they were run, because a pooler hands out another connection for each message.
    forgone: bool,
    /// How often they were missing.
    lost: u32,
}

#[derive(Debug)]
struct Named {
    kinds: Vec<Type>,
    /// `None` for a statement that SQL's PREPARE does not accept.
    name: Option<String>,
}

/// The prefix of all names.
pub(super) const NAME: &str = "keepcount_";
const MAX_PREPARED: usize = 256;
/// How often names are prepared again before they are given up.
const MAX_LOST: u32 = 16;

impl PreparedStatements {
    /// No statements yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// No statements yet, and values are only ever sent as parameters.
    ///
    /// [`write`](crate::PostgresStore::write) then takes several messages, and the server's log and
    /// `pg_stat_activity` show no values.
    #[must_use]
    pub fn by_parameters() -> Self {
        let prepared = Self::default();
        prepared.forgo_names();
        prepared
    }

    pub(super) fn known(&self, text: &str) -> Option<Statement> {
        self.by_text.lock().get(text).cloned()
    }

    pub(super) fn has_room(&self) -> bool {
        self.by_text.lock().len() < MAX_PREPARED
    }

    pub(super) fn keep(&self, text: &str, statement: Statement) {
        self.by_text.lock().insert(text.to_owned(), statement);
    }

    /// The name under which SQL's EXECUTE runs a text; prepares it if it has none yet. `None` if
    /// there is no room or the text cannot be prepared.
    ///
    /// The name is derived from the text, so that it cannot become another statement's where
    /// several share a connection.
    pub(super) async fn name(
        &self,
        client: &Client,
        text: &str,
        kinds: &[Type],
    ) -> Result<Option<String>, tokio_postgres::Error> {
        {
            let names = self.names.lock();
            match names.of.get(text) {
                _ if names.forgone => return Ok(None),
                Some(known) => return Ok(known.name.clone().filter(|_| known.kinds == kinds)),
                None if names.of.len() >= MAX_PREPARED => return Ok(None),
                None => {}
            }
        }
        let types: Vec<String> = kinds
            .iter()
            .map(|kind| format!("{}.{}", sql::quote(kind.schema()), sql::quote(kind.name())))
            .collect();
        let types =
            if types.is_empty() { String::new() } else { format!(" ({})", types.join(", ")) };
        let name =
            format!("{NAME}{:016x}", fnv1a(fnv1a(FNV_OFFSET, types.as_bytes()), text.as_bytes()));
        let prepare = format!("PREPARE {name}{types} AS {text}");
        let mut prepared = client.batch_execute(&prepare).await;
        if prepared
            .as_ref()
            .is_err_and(|error| error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT))
        {
            // It is the same text, but its types may have been recreated since. One message, since
            // a pooler may give each another connection.
            prepared = client.batch_execute(&format!("DEALLOCATE {name}; {prepare}")).await;
        }
        let name = match prepared {
            Ok(()) => Some(name),
            Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => None,
            // The statement itself will report the problem when it is run.
            Err(error) if is_refused(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut names = self.names.lock();
        let name =
            name.filter(|name| names.of.values().all(|named| named.name.as_ref() != Some(name)));
        names.of.insert(text.to_owned(), Named { kinds: kinds.to_vec(), name: name.clone() });
        Ok(name)
    }

    pub(super) fn has_names(&self) -> bool {
        !self.names.lock().forgone
    }

    /// Returns no names from now on.
    pub(super) fn forgo_names(&self) {
        self.names.lock().forgone = true;
    }

    /// Drops the names, which were missing on the server, so that they are prepared again. Returns
    /// false if that happened too often.
    pub(super) fn lose_names(&self) -> bool {
        let mut names = self.names.lock();
        names.of.clear();
        names.lost += 1;
        names.lost < MAX_LOST
    }

    /// Drops all statements, which the server has forgotten, so that they are prepared again when
    /// needed.
    pub(super) fn forget(&self) {
        self.by_text.lock().clear();
        self.names.lock().of.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_missing_again_and_again_are_given_up() {
        let prepared = PreparedStatements::new();
        for time in 1..MAX_LOST {
            assert!(prepared.lose_names(), "{time}");
        }
        assert!(!prepared.lose_names());
    }

    #[test]
    fn values_sent_by_parameters_alone_need_no_names() {
        assert!(PreparedStatements::new().has_names());
        assert!(!PreparedStatements::by_parameters().has_names());
    }
}
