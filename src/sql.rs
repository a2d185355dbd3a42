//! The statements of SQL stores as text and parameters: pure, no driver; for stores and for applications that run them
//! through a library of their own.

use std::borrow::Cow;

use crate::batch::Batch;
use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};
use crate::layout::Layout;

/// The longest text key of SQL stores, in bytes.
pub const TEXT_MOST: usize = 1024;

/// Which database's SQL is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// SQLite 3.37 or later (STRICT tables).
    Sqlite,
}

impl Dialect {
    /// The text of the parameter at this place, from 1 on.
    fn param(self, at: usize) -> String {
        match self {
            Self::Sqlite => format!("?{at}"),
        }
    }

    /// The first parameters, with commas between.
    pub(crate) fn params(self, count: usize) -> String {
        (1..=count).map(|at| self.param(at)).collect::<Vec<_>>().join(", ")
    }
}

/// A parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// A 64-bit integer.
    Integer(i64),
    /// A text.
    Text(Cow<'a, str>),
    /// A 16-byte id, or a 128-bit integer, big-endian, biased where it is signed, so that bytes sort as the numbers do.
    Blob([u8; 16]),
}

/// One statement, to be executed once for each row of parameters, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The counter whose totals it writes.
    pub counter: Def,
    /// The statement; its parameters are `?1`, `?2`, ..
    pub text: String,
    values: Vec<Value<'a>>,
    width: usize,
}

impl<'a> Statement<'a> {
    /// The rows of parameters: the key's columns, then the delta; in key order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Value<'a>]> {
        self.values.chunks_exact(self.width)
    }
}

/// The statements that apply a batch: one for each counter, in the layout's order; nothing for an empty batch.
///
/// Run them as the last statements of the transaction that wrote the rows.
///
/// # Errors
///
/// [`Error::Key`] for a key that SQL cannot hold, [`Error::Overflow`] for a delta beyond 64 bits, and what
/// [`Layout::position`] says of a counter that the layout does not have.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Layout, sql};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 2);
/// for statement in sql::apply(sql::Dialect::Sqlite, &LAYOUT, &batch)? {
///     for row in statement.rows() {
///         println!("{} {row:?}", statement.text);
///     }
/// }
/// # Ok::<(), keepcount::Error>(())
/// ```
pub fn apply<'a>(dialect: Dialect, layout: &Layout, batch: &'a Batch) -> Result<Vec<Statement<'a>>> {
    let positions = batch.counters().iter().map(|counter| layout.position(counter)).collect::<Result<Vec<usize>>>()?;
    let mut deltas: Vec<(usize, &KeyBuf, i128)> = batch
        .entries()
        .iter()
        .filter(|entry| entry.delta != 0)
        .filter_map(|entry| Some((*positions.get(entry.counter as usize)?, &entry.key, entry.delta)))
        .collect();
    deltas.sort_unstable_by(|one, two| (one.0, one.1).cmp(&(two.0, two.1)));
    deltas
        .chunk_by(|one, two| one.0 == two.0)
        .filter_map(|run| {
            let placed = layout.counters().get(run.first()?.0)?;
            Some(upserts(dialect, placed, run))
        })
        .collect()
}

fn upserts<'a>(dialect: Dialect, placed: &Placed, deltas: &[(usize, &'a KeyBuf, i128)]) -> Result<Statement<'a>> {
    let counter = placed.def();
    let width = key_columns(counter.parts()).len() + 1;
    let mut values = Vec::with_capacity(deltas.len() * width);
    for (_, key, delta) in deltas {
        push_key_values(&counter, key, &mut values)?;
        let delta = i64::try_from(*delta).map_err(|_| Error::overflow(&counter, key, "delta"))?;
        values.push(Value::Integer(delta));
    }
    Ok(Statement { counter, text: upsert(dialect, placed), values, width })
}

/// Adds one delta to one total; a total that is absent starts at 0.
#[must_use]
pub fn upsert(dialect: Dialect, placed: &Placed) -> String {
    let columns = key_columns(placed.def().parts());
    let keys = columns.join(", ");
    let params = dialect.params(columns.len() + 1);
    format!(
        r#"INSERT INTO "{}" AS t ({keys}, "total") VALUES ({params}) ON CONFLICT ({keys}) DO UPDATE SET "total" = t."total" + excluded."total""#,
        placed.table_name()
    )
}

/// Removes one total if it is 0.
#[must_use]
pub fn remove_zero(dialect: Dialect, placed: &Placed) -> String {
    format!(r#"DELETE FROM "{}" AS t WHERE {} AND t."total" = 0"#, placed.table_name(), key_is(dialect, placed))
}

/// Reads one total: no row where it is absent.
#[must_use]
pub fn read(dialect: Dialect, placed: &Placed) -> String {
    format!(r#"SELECT t."total" FROM "{}" AS t WHERE {}"#, placed.table_name(), key_is(dialect, placed))
}

/// Reads totals in key order: the key's columns and the total; parameters are the key's columns when `after`, then the
/// number of rows.
#[must_use]
pub fn page(dialect: Dialect, placed: &Placed, after: bool) -> String {
    let columns = own_key_columns(placed.def().parts());
    let keys = columns.join(", ");
    let (range, limit) = if after {
        (format!(" WHERE ({keys}) > ({})", dialect.params(columns.len())), columns.len() + 1)
    } else {
        (String::new(), 1)
    };
    format!(
        r#"SELECT {keys}, t."total" FROM "{}" AS t{range} ORDER BY {keys} LIMIT {}"#,
        placed.table_name(),
        dialect.param(limit)
    )
}

/// Looks whether there are as many totals other than 0 as `?1` says: their number, counted up to there.
#[must_use]
pub fn count_non_zero(dialect: Dialect, placed: &Placed) -> String {
    let (table, most) = (placed.table_name(), dialect.param(1));
    format!(r#"SELECT count(*) FROM (SELECT 1 FROM "{table}" AS t WHERE t."total" <> 0 LIMIT {most})"#)
}

/// The catalogue of the counters that a database has. Its column `identity` is random, so that a resume token of one database is
/// known in another.
pub const CATALOGUE: &str = "keepcount_counters";

impl Layout {
    /// The statements that make the catalogue and every counter's table, for a migration; run them in one transaction.
    /// `SqliteStore::create` does the same, and leaves what is there.
    #[must_use]
    pub fn ddl(&self, dialect: Dialect) -> Vec<String> {
        let tables = self.counters().iter().flat_map(|placed| [create(dialect, placed), enlist(placed)]);
        std::iter::once(create_catalogue(dialect)).chain(tables).collect()
    }
}

pub(crate) fn create_catalogue(_: Dialect) -> String {
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{CATALOGUE}" ("name" TEXT NOT NULL PRIMARY KEY, "key" TEXT NOT NULL, "version" INTEGER NOT NULL, "placement" TEXT NOT NULL, "identity" INTEGER NOT NULL DEFAULT (random())) STRICT, WITHOUT ROWID"#
    )
}

/// WITHOUT ROWID: a key is stored once, and writing totals leaves the application's `last_insert_rowid()` alone.
pub(crate) fn create(_: Dialect, placed: &Placed) -> String {
    let columns = columns(placed.def().parts());
    let columns = columns.iter().map(|(name, kind)| format!("{name} {kind} NOT NULL")).collect::<Vec<_>>().join(", ");
    let keys = key_columns(placed.def().parts()).join(", ");
    format!(
        r#"CREATE TABLE "{}" ({columns}, "total" INTEGER NOT NULL, PRIMARY KEY ({keys})) STRICT, WITHOUT ROWID"#,
        placed.table_name()
    )
}

/// Writes a counter into the catalogue. Names consist of a-z, 0-9, _ and ., so nothing needs quoting.
pub(crate) fn enlist(placed: &Placed) -> String {
    let def = placed.def();
    format!(
        r#"INSERT INTO "{CATALOGUE}" ("name", "key", "version", "placement") VALUES ('{}', '{}', {}, '{}')"#,
        def.name(),
        def.parts(),
        def.version(),
        placed.place()
    )
}

/// The quoted key columns and their types.
pub(crate) fn columns(parts: KeyParts) -> Vec<(String, &'static str)> {
    let kind = |part: &KeyPart| match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => "INTEGER",
        KeyPart::Text => "TEXT",
        _ => "BLOB",
    };
    let names = key_columns(parts);
    let kinds = parts.as_slice().iter().map(kind).chain(parts.is_empty().then_some("INTEGER"));
    names.into_iter().zip(kinds).collect()
}

fn key_columns(parts: KeyParts) -> Vec<String> {
    match parts.len() {
        0 | 1 => vec![r#""key""#.to_owned()],
        many => (1..=many).map(|at| format!(r#""key_{at}""#)).collect(),
    }
}

/// The key columns with their table's name: SQLite takes a quoted name alone that no column has for a text.
fn own_key_columns(parts: KeyParts) -> Vec<String> {
    key_columns(parts).iter().map(|column| format!("t.{column}")).collect()
}

fn key_is(dialect: Dialect, placed: &Placed) -> String {
    let columns = own_key_columns(placed.def().parts());
    let terms = columns.iter().enumerate().map(|(at, column)| format!("{column} = {}", dialect.param(at + 1)));
    terms.collect::<Vec<_>>().join(" AND ")
}

/// A key as parameters.
///
/// # Errors
///
/// [`Error::Key`] for an unsigned integer above `i64::MAX`, a text over [`TEXT_MOST`] bytes, or bytes that are no key of
/// this counter.
pub fn key_values<'a>(counter: &Def, key: &'a KeyBuf) -> Result<Vec<Value<'a>>> {
    let mut values = Vec::with_capacity(counter.parts().len() + 1);
    push_key_values(counter, key, &mut values)?;
    Ok(values)
}

fn push_key_values<'a>(counter: &Def, key: &'a KeyBuf, to: &mut Vec<Value<'a>>) -> Result<()> {
    let failed = |cause| Error::key(counter, key, cause);
    let parts = counter.parts();
    if parts.is_empty() {
        to.push(Value::Integer(0));
    }
    for (part, value) in parts.as_slice().iter().zip(parts.values(key).map_err(failed)?) {
        to.push(match value {
            KeyValue::Signed(value) if *part == KeyPart::Signed(16) => {
                Value::Blob((value.cast_unsigned() ^ (1 << 127)).to_be_bytes())
            }
            KeyValue::Unsigned(value) if *part == KeyPart::Unsigned(16) => Value::Blob(value.to_be_bytes()),
            KeyValue::Signed(value) => Value::Integer(i64::try_from(value).map_err(|_| failed(wide(&value)))?),
            KeyValue::Unsigned(value) => Value::Integer(i64::try_from(value).map_err(|_| failed(wide(&value)))?),
            KeyValue::Text(text) if text.len() > TEXT_MOST => {
                return Err(failed(KeyError::TooLong { bytes: text.len(), most: TEXT_MOST }));
            }
            KeyValue::Text(text) => Value::Text(text),
            KeyValue::Bytes16(id) | KeyValue::Uuid(id) => Value::Blob(id),
        });
    }
    Ok(())
}

fn wide(value: &impl ToString) -> KeyError {
    KeyError::Range { wanted: "the integers of SQL", value: value.to_string() }
}

/// Appends a column's value to a key that is being read.
///
/// # Errors
///
/// [`KeyError`] when the value does not fit the part, or is a text over [`TEXT_MOST`] bytes.
pub fn push_key_part(part: KeyPart, value: &Value<'_>, to: &mut KeyBuf) -> Result<(), KeyError> {
    match (part, value) {
        (_, Value::Text(text)) if text.len() > TEXT_MOST => {
            Err(KeyError::TooLong { bytes: text.len(), most: TEXT_MOST })
        }
        (_, Value::Integer(value)) => part.push(&KeyValue::Signed(i128::from(*value)), to),
        (_, Value::Text(text)) => part.push(&KeyValue::Text(Cow::Borrowed(text)), to),
        (KeyPart::Signed(16), Value::Blob(bytes)) => {
            part.push(&KeyValue::Signed((u128::from_be_bytes(*bytes) ^ (1 << 127)).cast_signed()), to)
        }
        (KeyPart::Unsigned(16), Value::Blob(bytes)) => part.push(&KeyValue::Unsigned(u128::from_be_bytes(*bytes)), to),
        (_, Value::Blob(bytes)) => part.push(&KeyValue::Bytes16(*bytes), to),
    }
}
