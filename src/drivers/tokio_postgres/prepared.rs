//! The statements that a connection has prepared, by the driver's names and by names in SQL.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{GenericClient, Statement};

use super::is_refused;
use crate::counter::{FNV_OFFSET, fnv1a};
use crate::sql;

/// The statements that a connection has prepared: kept beside it, they spare the server from planning each of them anew.
///
/// Belongs to one connection: the statements of another are unknown to the server. So they are not for a pooler that gives each transaction another connection, unless it keeps
/// prepared statements apart itself: what is lost is prepared anew, and what another process left under the same name of the driver's may be run instead. Keeps at most 256; what comes later is planned each time. As many again have
/// a name in SQL, for [`write`](crate::PostgresStore::write); those stay on the server until the connection ends.
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
/// ) -> PostgresStore<'c, Transaction<'c>> {
///     PostgresStore::in_transaction(tx, schema).prepared(prepared)
/// }
/// ```
#[derive(Debug, Default)]
pub struct PreparedStatements {
    by_text: Mutex<HashMap<String, Statement>>,
    names: Mutex<Names>,
}

/// Statements that have a name in SQL beside the driver's, so that one message can run several of them.
#[derive(Debug, Default)]
struct Names {
    of: HashMap<String, Named>,
    /// Given up: the caller wants parameters, or what was prepared was not there when it was run, since a pooler hands out another connection to each message.
    forgone: bool,
    /// How often they were not there.
    lost: u32,
}

#[derive(Debug)]
struct Named {
    kinds: Vec<Type>,
    /// None for what SQL's PREPARE does not take.
    name: Option<String>,
}

/// How names begin.
pub(super) const NAME: &str = "keepcount_";
const MAX_PREPARED: usize = 256;
/// How often names are prepared anew before they are given up.
const MAX_LOST: u32 = 16;

impl PreparedStatements {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// None yet; values are only ever sent as parameters. [`write`](crate::PostgresStore::write) then takes several messages, and the server's log and
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

    /// The name under which SQL's EXECUTE runs a text, which is prepared where it has none yet; none where there is no room, or where that is not possible.
    ///
    /// It is made of the text: where several share a connection, a name does not come to be another statement's.
    pub(super) async fn name(
        &self,
        client: &impl GenericClient,
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
        let types: Vec<String> =
            kinds.iter().map(|kind| format!("{}.{}", sql::quote(kind.schema()), sql::quote(kind.name()))).collect();
        let types = if types.is_empty() { String::new() } else { format!(" ({})", types.join(", ")) };
        let name = format!("{NAME}{:016x}", fnv1a(fnv1a(FNV_OFFSET, types.as_bytes()), text.as_bytes()));
        let prepare = format!("PREPARE {name}{types} AS {text}");
        let mut prepared = client.batch_execute(&prepare).await;
        if prepared.as_ref().is_err_and(|error| error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT)) {
            // Of this text, but of types that may have been made anew since. One message, since a pooler may have another connection for each.
            prepared = client.batch_execute(&format!("DEALLOCATE {name}; {prepare}")).await;
        }
        let name = match prepared {
            Ok(()) => Some(name),
            Err(error) if error.code() == Some(&SqlState::SYNTAX_ERROR) => None,
            // Whatever is the matter, it is said where the statement itself is run.
            Err(error) if is_refused(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut names = self.names.lock();
        let name = name.filter(|name| names.of.values().all(|named| named.name.as_ref() != Some(name)));
        names.of.insert(text.to_owned(), Named { kinds: kinds.to_vec(), name: name.clone() });
        Ok(name)
    }

    pub(super) fn has_names(&self) -> bool {
        !self.names.lock().forgone
    }

    /// Gives no names from now on.
    pub(super) fn forgo_names(&self) {
        self.names.lock().forgone = true;
    }

    /// Prepares names anew when they are wanted, as they were not there; false where that was in vain too often.
    pub(super) fn lose_names(&self) -> bool {
        let mut names = self.names.lock();
        names.of.clear();
        names.lost += 1;
        names.lost < MAX_LOST
    }

    /// Prepares all anew when it is wanted: the server has forgotten it.
    pub(super) fn forget(&self) {
        self.by_text.lock().clear();
        self.names.lock().of.clear();
    }
}
