//! The statements of SQL stores as text and parameters, without a driver: for stores, and for
//! applications that run them through another library.

mod ddl;
pub(crate) mod leaderboard;
#[cfg_attr(not(feature = "sql"), allow(dead_code))]
mod many_keys;
mod offsets;
#[cfg(feature = "sql")]
pub(crate) mod own_catalogue;
mod query;
#[cfg(feature = "sql")]
mod sweep_zeros;
#[cfg(feature = "sql")]
pub(crate) mod table_descriptions;
pub(crate) mod value;

use std::borrow::Cow;
use std::ops::Bound;

pub(crate) use self::ddl::*;
pub use self::ddl::{
    CATALOGUE, DropTotals, LOCKS, Migration, OFFSETS, RUNS, ddl, ddl_pending_backfill, migration,
};
pub(crate) use self::many_keys::*;
pub use self::offsets::{forget_offset, lock_offset, read_offset, read_offsets, set_offset};
pub use self::query::Query;
#[cfg(feature = "sql")]
pub(crate) use self::sweep_zeros::*;
pub use self::value::{MAX_TEXT, Value, key_values, push_key_part};
pub(crate) use self::value::{prefix_values, push_key_values};
use crate::batch::Batch;
use crate::batch::steps;
use crate::counter::key_range::KeyRange;
use crate::counter::{CounterId, CounterSpec};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyPart, KeyParts};
use crate::observe::Backend;
use crate::schema::Schema;

/// The dialect of a database's SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// SQLite 3.37 or later (STRICT tables).
    Sqlite,
    /// PostgreSQL 13 or later.
    Postgres,
}

impl Dialect {
    /// Appends the text of the parameter at this position, from 1 on.
    fn push_param(self, index: usize, text: &mut String) {
        text.push(match self {
            Self::Sqlite => '?',
            Self::Postgres => '$',
        });
        push_number(index, text);
    }

    /// The store that speaks it, for metrics and events.
    pub(crate) const fn backend(self) -> Backend {
        match self {
            Self::Sqlite => Backend::Sqlite,
            Self::Postgres => Backend::Postgres,
        }
    }

    /// The text of the parameter at this position, from 1 on.
    pub(crate) fn param(self, index: usize) -> String {
        match self {
            Self::Sqlite => format!("?{index}"),
            Self::Postgres => format!("${index}"),
        }
    }

    /// The type of texts that sort by their bytes.
    const fn text(self) -> &'static str {
        match self {
            Self::Sqlite => "TEXT",
            Self::Postgres => r#"TEXT COLLATE "C""#,
        }
    }

    /// The end of the declaration of a table whose rows are looked up and updated.
    pub(crate) const fn table_options(self) -> &'static str {
        match self {
            Self::Sqlite => " STRICT, WITHOUT ROWID",
            Self::Postgres => " WITH (fillfactor = 80)",
        }
    }

    /// A condition that no row meets.
    pub(crate) const fn nothing(self) -> &'static str {
        match self {
            Self::Sqlite => "0",
            Self::Postgres => "false",
        }
    }

    /// A condition that every row meets.
    #[cfg_attr(not(feature = "sql"), allow(dead_code))]
    pub(crate) const fn everything(self) -> &'static str {
        match self {
            Self::Sqlite => "1",
            Self::Postgres => "true",
        }
    }

    /// The first parameters, separated by commas.
    pub(crate) fn params(self, count: usize) -> String {
        (1..=count).map(|at| self.param(at)).collect::<Vec<_>>().join(", ")
    }
}

/// One statement, to be executed once for each row of parameters, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The counter whose totals it writes.
    pub counter: CounterId,
    /// The statement; its parameters are `?1`, `?2`, .., in PostgreSQL `$1`, `$2`, ..
    pub text: String,
    values: Vec<Value<'a>>,
    width: usize,
    /// Whether each row of parameters ends in a delta and writes one total. If not, each row
    /// removes one total if it is 0.
    pub(crate) adds: bool,
}

impl<'a> Statement<'a> {
    /// The same for an executor, which makes sure that each execution writes what it must write.
    #[cfg(feature = "sql")]
    pub(crate) fn into_query(self) -> Query<'a> {
        let query = Query::of_rows(self.text, self.values, self.width);
        if self.adds { query.exact() } else { query }
    }

    /// The rows of parameters, in key order: the key's columns, then the delta if the statement
    /// adds.
    ///
    /// In PostgreSQL a row may stand for many totals, with an array for each column.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Value<'a>]> {
        self.values.chunks_exact(self.width)
    }
}

/// The statements that apply a batch: one for each counter, in the schema's order; none for an
/// empty batch.
///
/// Run them as the last statements of the transaction that wrote the rows. If counters of the batch
/// feed a rollup, use a [`RollupUpdate`](crate::backend::RollupUpdate) for the statements: it must
/// read from the database first. Only `SqliteStore` and `PostgresStore` maintain leaderboards and
/// prunable counters.
///
/// # Errors
///
/// [`Error::Key`] for a key that SQL cannot store, [`Error::Overflow`] for a delta beyond 64 bits,
/// [`Error::Rollup`] if a counter of the batch feeds a rollup, [`Error::InvalidUse`] if one is
/// prunable or moves a leaderboard, and those of [`Schema::check_batch`].
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, sql};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 2);
/// for statement in sql::apply(sql::Dialect::Sqlite, &SCHEMA, &batch)? {
///     for row in statement.rows() {
///         println!("{} {row:?}", statement.text);
///     }
/// }
/// # Ok::<(), keepcount::Error>(())
/// ```
pub fn apply<'a>(
    dialect: Dialect,
    schema: &Schema,
    batch: &'a Batch,
) -> Result<Vec<Statement<'a>>> {
    schema.check_batch(batch)?;
    if let Some((counter, rollup)) = schema.first_fed(batch) {
        let reason = "a RollupUpdate reads what it needs and makes the statements";
        return Err(Error::Rollup {
            counter: counter.name(),
            reason: format!("it feeds {}; {reason}", rollup.full_name()),
        });
    }
    check_text_alone(schema, batch)?;
    statements(dialect, schema, batch, false)
}

/// Refuses counters that statements alone cannot maintain.
pub(crate) fn check_text_alone(schema: &Schema, batch: &Batch) -> Result<()> {
    for counter in batch.counters() {
        let leaderboards = schema
            .leaderboard_ids()
            .iter()
            .find(|leaderboard| leaderboard.counters().iter().any(|known| known.same(counter)));
        let reason = match leaderboards {
            Some(leaderboard) => {
                format!("counter {} moves leaderboard {}", counter.full_name(), leaderboard.name())
            }
            None if schema.spec(counter)?.is_prunable() => {
                format!("counter {} is prunable", counter.full_name())
            }
            None => continue,
        };
        return Err(Error::invalid_use(
            "statements",
            format!("{reason}, which only SqliteStore and PostgresStore handle"),
        ));
    }
    Ok(())
}

/// Like [`apply`], for a batch that includes its rollup deltas. If `split`, a delta outside `i64`
/// is written in steps; a repair can need one.
pub(crate) fn statements<'a>(
    dialect: Dialect,
    schema: &Schema,
    batch: &'a Batch,
    split: bool,
) -> Result<Vec<Statement<'a>>> {
    let positions = batch
        .counters()
        .iter()
        .map(|counter| schema.position_in(counter))
        .collect::<Result<Vec<usize>>>()?;
    let mut deltas: Vec<(usize, &KeyBuf, i128)> = batch
        .entries()
        .iter()
        .filter(|entry| entry.delta != 0)
        .filter_map(|entry| {
            Some((*positions.get(entry.counter as usize)?, &entry.key, entry.delta))
        })
        .collect();
    deltas.sort_unstable_by(|one, two| (one.0, one.1).cmp(&(two.0, two.1)));
    let mut statements = Vec::new();
    for run in deltas.chunk_by(|one, two| one.0 == two.0) {
        let Some(spec) = run.first().and_then(|(at, ..)| schema.counters().get(*at)) else {
            continue;
        };
        statements.push(upserts(dialect, spec, run, split)?);
        if schema.child_parts(&spec.id()).is_some() {
            statements.extend(removals(dialect, spec, run)?);
        }
    }
    Ok(statements)
}

fn upserts<'a>(
    dialect: Dialect,
    spec: &CounterSpec,
    deltas: &[(usize, &'a KeyBuf, i128)],
    split: bool,
) -> Result<Statement<'a>> {
    let counter = spec.id();
    let width = key_columns(counter.parts()).len() + 1;
    let arrays = dialect == Dialect::Postgres && deltas.len() > 1;
    let mut values = Vec::with_capacity(deltas.len() * width);
    // One PostgreSQL statement can write a total only once.
    for round in 0..if split { MAX_STEPS } else { 1 } {
        let mut rows = Vec::new();
        for (_, key, delta) in deltas {
            if !split && i64::try_from(*delta).is_err() {
                return Err(Error::overflow(&counter, key, "delta"));
            }
            if let Some(step) = steps(*delta).nth(round) {
                push_key_values(dialect, &counter, key, &mut rows)?;
                rows.push(Value::Integer(step));
            }
        }
        push_rows(arrays, rows, width, &mut values);
    }
    let text = if arrays { upsert_many(spec) } else { upsert(dialect, spec) };
    Ok(Statement { counter, text, values, width, adds: true })
}

/// The maximum number of steps: a change from one 64-bit integer to another takes two, and a
/// repair's, from a sum that a batch adds to, one more.
const MAX_STEPS: usize = 3;

/// Removes memberships that became 0: each update of a child reads all of its rows.
fn removals<'a>(
    dialect: Dialect,
    spec: &CounterSpec,
    deltas: &[(usize, &'a KeyBuf, i128)],
) -> Result<Option<Statement<'a>>> {
    let counter = spec.id();
    let mut rows = Vec::new();
    for (_, key, _) in deltas.iter().filter(|(.., delta)| *delta < 0) {
        push_key_values(dialect, &counter, key, &mut rows)?;
    }
    let width = key_columns(counter.parts()).len();
    let arrays = dialect == Dialect::Postgres && rows.len() > width;
    let text = if arrays { remove_zeros(dialect, spec) } else { remove_zero(dialect, spec) };
    let mut values = Vec::new();
    push_rows(arrays, rows, width, &mut values);
    Ok((!values.is_empty()).then_some(Statement { counter, text, values, width, adds: false }))
}

/// Adds one delta to one total; an absent total starts at 0.
#[must_use]
pub fn upsert(dialect: Dialect, spec: &CounterSpec) -> String {
    let width = spec.id().parts().len().max(1);
    let mut text = String::with_capacity(256);
    for piece in [r#"INSERT INTO ""#, &spec.table_name(), r#"" AS t ("#] {
        text.push_str(piece);
    }
    push_key_columns(width, &mut text);
    text.push_str(r#", "total") VALUES ("#);
    for at in 1..=width {
        dialect.push_param(at, &mut text);
        text.push_str(", ");
    }
    dialect.push_param(width + 1, &mut text);
    text.push_str(") ON CONFLICT (");
    push_key_columns(width, &mut text);
    text.push_str(r#") DO UPDATE SET "total" = t."total" + excluded."total""#);
    text
}

/// Appends the key columns, with commas between.
fn push_key_columns(width: usize, text: &mut String) {
    for at in 1..=width {
        text.push_str(if at == 1 { "" } else { ", " });
        push_key_column(at, width, text);
    }
}

/// Appends the key column at this place, from 1 on.
fn push_key_column(at: usize, width: usize, text: &mut String) {
    text.push_str(r#""key"#);
    if width > 1 {
        text.push('_');
        push_number(at, text);
    }
    text.push('"');
}

/// Appends a number without the machinery of `format!`: a statement's text is made in every apply.
fn push_number(number: usize, text: &mut String) {
    if number >= 10 {
        push_number(number / 10, text);
    }
    text.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or(0)));
}

/// Removes one total if it is 0.
#[must_use]
pub fn remove_zero(dialect: Dialect, spec: &CounterSpec) -> String {
    format!(
        r#"DELETE FROM "{}" AS t WHERE {} AND t."total" = 0"#,
        spec.table_name(),
        key_is(dialect, spec)
    )
}

/// Reads one total; no row if it is absent.
#[must_use]
pub fn read(dialect: Dialect, spec: &CounterSpec) -> String {
    format!(r#"SELECT t."total" FROM "{}" AS t WHERE {}"#, spec.table_name(), key_is(dialect, spec))
}

/// Reads the first totals of a range in key order: the key's columns and the total.
///
/// # Errors
///
/// As [`key_values`], for a bound.
pub fn range<'a>(
    dialect: Dialect,
    spec: &CounterSpec,
    range: &'a KeyRange,
    limit: usize,
) -> Result<Query<'a>> {
    let mut terms = Terms::of(dialect, spec, range)?;
    let keys = own_key_columns(spec.id().parts()).join(", ");
    // SQLite prepares a statement again whenever a parameter of its LIMIT is bound, so without a
    // limit there is none.
    let limit_clause = if let Ok(limit) = i64::try_from(limit) {
        terms.values.push(Value::Integer(limit));
        format!(" LIMIT {}", dialect.param(terms.values.len()))
    } else {
        String::new()
    };
    let (table, condition) = (spec.table_name(), terms.condition());
    let text = format!(
        r#"SELECT {keys}, t."total" FROM "{table}" AS t{condition} ORDER BY {keys}{limit_clause}"#
    );
    Ok(Query::new(text, terms.values))
}

/// Sums the totals of a range: null if there are none.
///
/// In PostgreSQL the sum is a text, since it may exceed 64 bits.
///
/// # Errors
///
/// As [`range`].
pub fn sum<'a>(dialect: Dialect, spec: &CounterSpec, range: &'a KeyRange) -> Result<Query<'a>> {
    let terms = Terms::of(dialect, spec, range)?;
    let sum = match dialect {
        Dialect::Sqlite => r#"sum(t."total")"#,
        // A sum beyond 64 bits would be an error, which aborts the caller's transaction.
        Dialect::Postgres => r#"sum(t."total")::text"#,
    };
    let text = format!(r#"SELECT {sum} FROM "{}" AS t{}"#, spec.table_name(), terms.condition());
    Ok(Query::new(text, terms.values))
}

/// Conditions on key columns, and their parameters.
struct Terms<'a> {
    texts: Vec<String>,
    values: Vec<Value<'a>>,
}

impl<'a> Terms<'a> {
    /// Parts on which both bounds agree become equalities, so that the range is one range of the
    /// index.
    fn of(dialect: Dialect, spec: &CounterSpec, range: &'a KeyRange) -> Result<Self> {
        let id = spec.id();
        let columns = own_key_columns(id.parts());
        let parts = |bound: &'a Bound<KeyBuf>| match bound {
            Bound::Unbounded => Ok(None),
            Bound::Included(prefix) => {
                prefix_values(dialect, &id, prefix).map(|values| Some((values, true)))
            }
            Bound::Excluded(prefix) => {
                prefix_values(dialect, &id, prefix).map(|values| Some((values, false)))
            }
        };
        let (start, end) = (parts(range.start())?, parts(range.end())?);
        let mut terms = Self { texts: Vec::new(), values: Vec::new() };
        let mut same = 0;
        if let (Some((start, _)), Some((end, _))) = (&start, &end) {
            for ((column, one), two) in columns.iter().zip(start).zip(end) {
                if one != two {
                    break;
                }
                terms.values.push(one.clone());
                terms.texts.push(format!("{column} = {}", dialect.param(terms.values.len())));
                same += 1;
            }
        }
        for (bound, operator) in [(start, '>'), (end, '<')] {
            if let Some((values, included)) = bound {
                terms.compare(
                    dialect,
                    columns.get(same..).unwrap_or_default(),
                    values,
                    same,
                    (operator, included),
                );
            }
        }
        Ok(terms)
    }

    /// One side of a range, for the parts after the first `same`.
    fn compare(
        &mut self,
        dialect: Dialect,
        columns: &[String],
        values: Vec<Value<'a>>,
        same: usize,
        (operator, included): (char, bool),
    ) {
        let rest: Vec<Value<'a>> = values.into_iter().skip(same).collect();
        let columns = columns.get(..rest.len()).unwrap_or_default().join(", ");
        if rest.is_empty() {
            // All keys with this prefix, or none of them.
            self.texts.extend((!included).then(|| dialect.nothing().to_owned()));
            return;
        }
        let from = self.values.len() + 1;
        let params: Vec<String> = (from..from + rest.len()).map(|at| dialect.param(at)).collect();
        let equals = if included { "=" } else { "" };
        self.texts.push(format!("({columns}) {operator}{equals} ({})", params.join(", ")));
        self.values.extend(rest);
    }

    fn condition(&self) -> String {
        if self.texts.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", self.texts.join(" AND "))
        }
    }
}

/// Counts the totals other than 0, up to the number `?1`.
#[must_use]
pub fn count_non_zero(dialect: Dialect, spec: &CounterSpec) -> String {
    let (table, most) = (spec.table_name(), dialect.param(1));
    format!(
        r#"SELECT count(*) FROM (SELECT 1 FROM "{table}" AS t WHERE t."total" <> 0 LIMIT {most}) AS n"#
    )
}

/// Reads which counters and leaderboards are not ready to be read: one row of their full names,
/// separated by commas, or null if all are ready.
///
/// A counter also needs what it sums, a leaderboard what it is made of.
#[must_use]
pub fn unready(dialect: Dialect) -> String {
    let names = match dialect {
        Dialect::Sqlite => r#"group_concat(c."name")"#,
        Dialect::Postgres => r#"string_agg(c."name", ',')"#,
    };
    format!(r#"SELECT {names} FROM "{CATALOGUE}" AS c WHERE c."ready" = 0"#)
}

/// Marks the counter or leaderboard `?1` as ready to be read.
#[must_use]
pub fn set_ready(dialect: Dialect) -> String {
    let name = dialect.param(1);
    format!(
        r#"UPDATE "{CATALOGUE}" AS c SET "ready" = 1 WHERE c."name" = {name} AND c."ready" = 0"#
    )
}

/// Takes some of PostgreSQL's lock rows until the transaction ends, given as encoded keys in their
/// order. An existing row is written too, so that a transaction with an older snapshot fails to
/// serialize.
pub(crate) fn lock<'a>(of: &str, level: usize, keys: Vec<Cow<'a, [u8]>>) -> Query<'a> {
    let text = format!(
        r#"INSERT INTO "{LOCKS}" AS l ("of", "level", "key", "turns") SELECT $1, $2, k, 1 FROM unnest($3::bytea[]) AS k ON CONFLICT ("of", "level", "key") DO UPDATE SET "turns" = l."turns" + 1"#
    );
    let level = i64::try_from(level).unwrap_or(i64::MAX);
    Query::new(
        text,
        vec![Value::Text(of.to_owned().into()), Value::Integer(level), Value::Blobs(keys)],
    )
}

/// A name quoted for SQL, whatever characters it has.
#[cfg(feature = "sql")]
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The quoted key columns and their types.
pub(crate) fn columns(dialect: Dialect, parts: KeyParts) -> Vec<(String, &'static str)> {
    let kinds = parts.as_slice().iter().copied().map(Some).chain(parts.is_empty().then_some(None));
    key_columns(parts).into_iter().zip(kinds.map(|part| column_kind(dialect, part))).collect()
}

/// The type of a column for a part of a key, or for one of keepcount's own numbers.
pub(crate) const fn column_kind(dialect: Dialect, part: Option<KeyPart>) -> &'static str {
    match (dialect, part) {
        (Dialect::Sqlite, None | Some(KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8))) => {
            "INTEGER"
        }
        (Dialect::Postgres, None | Some(KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8))) => {
            "BIGINT"
        }
        (_, Some(KeyPart::Text)) => dialect.text(),
        (Dialect::Sqlite, _) => "BLOB",
        (Dialect::Postgres, Some(KeyPart::Uuid)) => "UUID",
        (Dialect::Postgres, _) => "BYTEA",
    }
}

pub(crate) fn key_columns(parts: KeyParts) -> Vec<String> {
    match parts.len() {
        0 | 1 => vec![r#""key""#.to_owned()],
        many => (1..=many).map(|at| format!(r#""key_{at}""#)).collect(),
    }
}

/// The key columns, qualified with their table's alias: SQLite takes an unqualified quoted name
/// that no column has for a text.
pub(crate) fn own_key_columns(parts: KeyParts) -> Vec<String> {
    key_columns(parts).iter().map(|column| format!("t.{column}")).collect()
}

fn key_is(dialect: Dialect, spec: &CounterSpec) -> String {
    let width = spec.id().parts().len().max(1);
    let mut text = String::with_capacity(64);
    push_key_is(dialect, (width, width), &mut text);
    text
}

/// Appends the condition that the first key columns, of so many, are those in the parameters.
fn push_key_is(dialect: Dialect, (prefix, width): (usize, usize), text: &mut String) {
    for at in 1..=prefix {
        text.push_str(if at == 1 { "t." } else { " AND t." });
        push_key_column(at, width, text);
        text.push_str(" = ");
        dialect.push_param(at, text);
    }
}
