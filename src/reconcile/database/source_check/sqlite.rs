//! Checks what a source shows in SQLite: where its tables are, whether its pages come out of an
//! index, and whether its files can be read as of one moment.

use std::collections::BTreeSet;

use super::super::source_statements::Name;
use super::super::{Opening, RowSource, Unfound, source_stopped};
use super::{next_page, shapes, texts};
use crate::counter::CounterId;
use crate::engine::OrFailed as _;
use crate::error::{Error, Result};
use crate::executor::{Column, Executor, Stopped};
use crate::sql::{self, Dialect, Query, Value};

/// Finds the tables of a source, and refuses one that cannot be read page by page, or not in one
/// snapshot with the totals.
///
/// In WAL mode each file has a snapshot of its own. Several of them are read under their write
/// locks, which a file that can only be read does not have.
pub(super) async fn look<E: Executor + ?Sized>(
    executor: &mut E,
    mut source: Unfound,
) -> Result<RowSource> {
    let counter = source.counter;
    for name in source.target.names() {
        find(executor, &counter, name).await?;
    }
    let mut source = source.found(Dialect::Sqlite)?;
    let mut read = BTreeSet::from([0]);
    for (text, values) in shapes(Dialect::Sqlite, &source) {
        let files = transactions(executor, text, values).await;
        let files = files.map_err(source_stopped("preparing its SQL", &counter))?;
        read.extend(files.into_iter().map(|(file, _)| file));
    }
    if let Some(index) = source.target.wanted_index(Dialect::Sqlite, &counter)
        && sorts(executor, &source).await?
    {
        let reason =
            format!("no index gives its rows in key order; create one: CREATE INDEX .. ON {index}");
        return Err(Error::source(&counter, None, reason));
    }
    let files = named(executor, &read).await;
    let files = files.or_failed_on("finding the files of the source", &counter)?;
    let is_locked = files.iter().any(|(index, _)| *index != 0);
    if is_locked {
        refuse_unlockable(executor, &counter, &files).await?;
    }
    source.opening = Opening { is_locked, ..Opening::default() };
    Ok(source)
}

/// Finds the one schema that a table's name stands for: the file's own, an attached one, or what
/// is temporary.
async fn find<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    name: &mut Name,
) -> Result<()> {
    let text = "SELECT schema FROM pragma_table_list WHERE name = ?1 COLLATE NOCASE ORDER BY 1";
    let places =
        texts(executor, &Query::new(text, vec![Value::Text(name.table.clone().into())])).await;
    let places = places.or_failed_on("finding the tables of the source", counter)?;
    let is_meant = |schema: &String| {
        name.schema.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(schema))
    };
    let (meant, others): (Vec<String>, Vec<String>) = places.into_iter().partition(is_meant);
    name.find(counter, &meant, &others)
}

/// Whether SQLite would sort for a page.
async fn sorts<E: Executor + ?Sized>(executor: &mut E, source: &RowSource) -> Result<bool> {
    let (text, values) = next_page(source);
    let plan = texts(executor, &Query::new(format!("EXPLAIN QUERY PLAN {text}"), values)).await;
    let plan = plan.map_err(source_stopped("planning the source", &source.counter))?;
    Ok(plan.iter().any(|line| line.contains("TEMP B-TREE")))
}

/// The first two operands of each step `Transaction` of a statement: the index of a database, and
/// whether its write lock is taken.
async fn transactions<E: Executor + ?Sized>(
    executor: &mut E,
    text: &str,
    values: Vec<Value<'_>>,
) -> Result<Vec<(i64, i64)>, Stopped> {
    let (query, mut steps) = (Query::new(format!("EXPLAIN {text}"), values), Vec::new());
    executor
        .fetch(std::slice::from_ref(&query), &mut |_, row| {
            if let (Column::Text(opcode), Column::Integer(first), Column::Integer(second)) =
                (row.column(1), row.column(2), row.column(3))
                && opcode == "Transaction"
            {
                steps.push((first, second));
            }
            Ok(())
        })
        .await?;
    Ok(steps)
}

/// The files among these, by the indexes and names of their databases. What is temporary is this
/// connection's alone.
async fn named<E: Executor + ?Sized>(
    executor: &mut E,
    read: &BTreeSet<i64>,
) -> Result<Vec<(i64, String)>, Stopped> {
    let text = "SELECT seq, name FROM pragma_database_list WHERE name <> 'temp'";
    let mut files = Vec::new();
    executor
        .fetch(&[Query::new(text, Vec::new())], &mut |_, row| {
            if let (Column::Integer(index), Column::Text(name)) = (row.column(0), row.column(1))
                && read.contains(&index)
            {
                files.push((index, name.into_owned()));
            }
            Ok(())
        })
        .await?;
    Ok(files)
}

async fn refuse_unlockable<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    files: &[(i64, String)],
) -> Result<()> {
    const WHAT: &str = "finding the files of the source";
    for (index, name) in files {
        let mode = format!("PRAGMA {}.journal_mode", sql::quote(name));
        let mode = texts(executor, &Query::new(mode, Vec::new())).await;
        if mode.or_failed_on(WHAT, counter)? != ["wal"] {
            continue;
        }
        // A library's own question whether a file can only be read differs between versions.
        let locks = transactions(executor, "BEGIN IMMEDIATE", Vec::new()).await;
        if !locks
            .or_failed_on(WHAT, counter)?
            .iter()
            .any(|(file, locks)| file == index && *locks != 0)
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
