//! Checks what a source shows in SQLite: where its tables are, whether its pages come out of an
//! index, and whether its files can be read as of one moment.

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::counter::CounterId;
use crate::drivers::rusqlite::Sqlite;
use crate::engine::failed_on;
use crate::error::{Error, Result};
use crate::reconcile::database::source_statements::Name;
use crate::reconcile::database::{Opening, RowSource, source_failed};
use crate::sql;

/// Finds the one schema that a table's name stands for: the file's own, an attached one, or what
/// is temporary.
pub(super) fn find(conn: &Connection, counter: &CounterId, name: &mut Name) -> Result<()> {
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut places = conn.prepare(
            "SELECT schema FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE ORDER BY 1",
        )?;
        places.query_map([&name.table], |row| row.get(0))?.collect()
    };
    let places =
        read().map_err(|error| failed_on("finding the tables of the source", counter, error))?;
    let is_meant = |schema: &String| {
        name.schema.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(schema))
    };
    let (meant, others): (Vec<String>, Vec<String>) = places.into_iter().partition(is_meant);
    name.find(counter, &meant, &others)
}

/// Refuses a source that cannot be read page by page, or not in one snapshot with the totals.
///
/// In WAL mode each file has a snapshot of its own. Several of them are read under their write
/// locks, which a file that can only be read does not have.
pub(super) fn check(conn: &Connection, source: &mut RowSource<'_, Sqlite>) -> Result<()> {
    let counter = source.counter;
    for text in source.statements.all() {
        conn.prepare(text).map_err(|error| source_failed("preparing its SQL", &counter, error))?;
    }
    if let Some(index) = source.target.wanted_index(sql::Dialect::Sqlite, &counter)
        && sorts(conn, &counter, source.page_text(true))?
    {
        let reason =
            format!("no index gives its rows in key order; create one: CREATE INDEX .. ON {index}");
        return Err(Error::source(&counter, None, reason));
    }
    let files = files(conn, source.statements.all());
    let files =
        files.map_err(|error| failed_on("finding the files of the source", &counter, error))?;
    let is_locked = files.iter().any(|(index, _)| *index != 0);
    if is_locked {
        refuse_unlockable(conn, &counter, &files)?;
    }
    source.opening = Opening { is_locked, ..Opening::default() };
    Ok(())
}

/// Whether SQLite would sort for this statement.
fn sorts(conn: &Connection, counter: &CounterId, text: &str) -> Result<bool> {
    let plan = || -> rusqlite::Result<bool> {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {text}"))?;
        let mut rows = plan.raw_query();
        while let Some(row) = rows.next()? {
            if String::from_utf8_lossy(row.get_ref(3)?.as_bytes()?).contains("TEMP B-TREE") {
                return Ok(true);
            }
        }
        Ok(false)
    };
    plan().map_err(|error| source_failed("planning the source", counter, error))
}

/// The files that statements read, and that of the totals: the index and the name of each database.
/// What is temporary is this connection's alone.
fn files<'t>(
    conn: &Connection,
    texts: impl Iterator<Item = &'t String>,
) -> rusqlite::Result<Vec<(i64, String)>> {
    let mut read = BTreeSet::from([0]);
    for text in texts {
        let mut program = conn.prepare(&format!("EXPLAIN {text}"))?;
        let mut steps = program.raw_query();
        while let Some(step) = steps.next()? {
            if step.get_ref("opcode")?.as_bytes()? == b"Transaction" {
                read.insert(step.get("p1")?);
            }
        }
    }
    let mut all =
        conn.prepare("SELECT seq, name FROM pragma_database_list WHERE name <> 'temp'")?;
    let all = all
        .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|(index, _)| read.contains(index)).collect())
}

fn refuse_unlockable(
    conn: &Connection,
    counter: &CounterId,
    files: &[(i64, String)],
) -> Result<()> {
    for (index, name) in files {
        let is_unlockable = || -> rusqlite::Result<bool> {
            let mode = format!("PRAGMA {}.journal_mode", sql::quote(name));
            let mode: String = conn.query_row(&mode, (), |row| row.get(0))?;
            Ok(mode == "wal" && !locks(conn, *index)?)
        };
        if is_unlockable()
            .map_err(|error| failed_on("finding the files of the source", counter, error))?
        {
            let reason = format!(
                "its rows and totals are in different files, and database {name} is in WAL mode and can only be read: so it \
                 cannot be locked, and both cannot be read as of one moment"
            );
            return Err(Error::source(counter, None, reason));
        }
    }
    Ok(())
}

/// Whether a transaction that locks takes a file's write lock. The driver's own question,
/// `is_readonly`, takes another type up to rusqlite 0.35.
fn locks(conn: &Connection, file: i64) -> rusqlite::Result<bool> {
    let mut program = conn.prepare("EXPLAIN BEGIN IMMEDIATE")?;
    let mut steps = program.raw_query();
    while let Some(step) = steps.next()? {
        if step.get_ref("opcode")?.as_bytes()? == b"Transaction"
            && step.get::<_, i64>("p1")? == file
        {
            return Ok(step.get::<_, i64>("p2")? != 0);
        }
    }
    Ok(false)
}
