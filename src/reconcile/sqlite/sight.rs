//! Where a source's tables are, and what an error means while they are read.

use rusqlite::{Connection, ErrorCode};

use crate::counter::CounterId;
use crate::engine::failed_on;
use crate::error::{Error, Result, chain};
use crate::reconcile::statements::Name;

/// Finds the one schema that a table's name stands for: the file's own, an attached one, or what is temporary.
pub(super) fn find(conn: &Connection, counter: &CounterId, name: &mut Name) -> Result<()> {
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut places =
            conn.prepare("SELECT schema FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE ORDER BY 1")?;
        places.query_map([&name.table], |row| row.get(0))?.collect()
    };
    let places = read().map_err(|error| failed_on("finding the tables of the source", counter, error))?;
    let is_meant = |schema: &String| name.schema.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(schema));
    let (meant, others): (Vec<String>, Vec<String>) = places.into_iter().partition(is_meant);
    name.find(counter, &meant, &others)
}

/// What an error means while a source is read: what SQLite says of the SQL, or the driver of what a row has, is the source's.
pub(super) fn source_failed(what: &str, counter: &CounterId, error: rusqlite::Error) -> Error {
    // Without a code the driver says it, of a column or of SQL at some place; and SQLITE_ERROR has no name of its own.
    let of_source = matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::Unknown | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    );
    if of_source {
        Error::source_of(counter, format!("{what}: {}", chain(&error)), error)
    } else {
        failed_on(what, counter, error)
    }
}
