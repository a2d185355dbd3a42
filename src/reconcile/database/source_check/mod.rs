//! Checks a source when it is added: where its tables are, whether its pages come out of an index,
//! and whether all its rows can be read as of one moment.

mod postgres;
mod sqlite;

use super::{RowSource, Unfound};
use crate::counter::CounterId;
use crate::error::Result;
use crate::executor::{Column, Executor, Stopped};
use crate::key::KeyPart;
use crate::sql::{Dialect, Query, Value};

/// Finds the tables of a source and checks it.
pub(super) async fn look<E: Executor + ?Sized>(
    executor: &mut E,
    source: Unfound,
) -> Result<RowSource> {
    match executor.dialect() {
        Dialect::Sqlite => sqlite::look(executor, source).await,
        Dialect::Postgres => postgres::look(executor, source).await,
    }
}

/// Statements of a source, one of each shape, with some values: to be planned, not to be run.
fn shapes(dialect: Dialect, source: &RowSource) -> Vec<(&String, Vec<Value<'static>>)> {
    let statements = &source.statements;
    let key = || some_key(&source.counter);
    let keys = || match dialect {
        Dialect::Sqlite => key(),
        Dialect::Postgres => key().into_iter().map(Value::into_column).collect(),
    };
    let limited = || [key(), vec![some_limit()]].concat();
    let (next, of_keys) = if source.by_tally {
        ((&statements.rows_next, key()), &statements.rows_of_keys)
    } else {
        ((&statements.sums_next, limited()), &statements.sums_of_keys)
    };
    let mut shapes = vec![
        (&statements.sample_first, vec![some_limit()]),
        next,
        (of_keys, keys()),
        (&statements.sample_of_key, limited()),
    ];
    shapes.extend(statements.parent.as_ref().map(|parent| (parent, keys())));
    shapes
}

/// A page's statement, after some key.
fn next_page(source: &RowSource) -> (&String, Vec<Value<'static>>) {
    let mut values = some_key(&source.counter);
    values.extend((!source.by_tally).then(some_limit));
    (source.page_text(true), values)
}

const fn some_limit() -> Value<'static> {
    Value::Integer(1_024)
}

/// A key as parameters, of the right types.
fn some_key(counter: &CounterId) -> Vec<Value<'static>> {
    let value = |part: &KeyPart| match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => Value::Integer(0),
        KeyPart::Text => Value::Text("".into()),
        KeyPart::Uuid => Value::Uuid([0; 16]),
        _ => Value::Blob([0; 16]),
    };
    counter.parts().as_slice().iter().map(value).collect()
}

/// The texts that a query answers, row by row.
async fn texts<E: Executor + ?Sized>(
    executor: &mut E,
    query: &Query<'_>,
) -> Result<Vec<String>, Stopped> {
    let mut texts = Vec::new();
    executor
        .fetch(std::slice::from_ref(query), &mut |_, row| {
            texts.extend((0..row.len()).filter_map(|at| match row.column(at) {
                Column::Text(text) => Some(text.into_owned()),
                _ => None,
            }));
            Ok(())
        })
        .await?;
    Ok(texts)
}
