//! The statements of SQL stores as text and parameters: pure, no driver; for stores and for applications that run them
//! through a library of their own.

use std::borrow::Cow;
use std::ops::Bound;

use crate::batch::Batch;
use crate::board;
use crate::counter::{Def, Placed};
use crate::error::{Error, Result};
use crate::key::{KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};
use crate::layout::Layout;
use crate::range::KeyRange;
use crate::rollup;
use crate::store::steps;

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
    /// Whether each row of parameters ends in a delta, and writes one total; else it removes one that is 0, if it is.
    pub(crate) adds: bool,
}

impl<'a> Statement<'a> {
    /// The rows of parameters, in key order: the key's columns, then the delta, if it is one that adds.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[Value<'a>]> {
        self.values.chunks_exact(self.width)
    }
}

/// The statements that apply a batch: one for each counter, in the layout's order; nothing for an empty batch.
///
/// Run them as the last statements of the transaction that wrote the rows. Where counters of the batch feed a rollup, let a [`Climb`](crate::Climb) make
/// the statements: it has to ask the database first. Boards and prunable counters are `SqliteStore`'s alone.
///
/// # Errors
///
/// [`Error::Key`] for a key that SQL cannot hold, [`Error::Overflow`] for a delta beyond 64 bits, [`Error::Rollup`] where a counter of the
/// batch is a rollup or feeds one, [`Error::Setting`] where one is prunable or moves a board, and what [`Layout::position`] says of a counter that the layout does not have.
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
    if !layout.is_plain() {
        rollup::refuse_rollups(layout, batch)?;
        if let Some((counter, rollup)) = rollup::first_fed(layout, batch) {
            let reason = "a Climb reads what it needs and makes the statements";
            return Err(Error::Rollup {
                counter: counter.name(),
                reason: format!("it feeds {}; {reason}", rollup.full_name()),
            });
        }
    }
    check_text_alone(layout, batch)?;
    statements(dialect, layout, batch, false)
}

/// Refuses counters that statements alone do not keep right.
pub(crate) fn check_text_alone(layout: &Layout, batch: &Batch) -> Result<()> {
    for counter in batch.counters() {
        let boards = layout.board_defs().iter().find(|board| board.counters().iter().any(|known| known.same(counter)));
        let reason = match boards {
            Some(board) => format!("counter {} moves board {}", counter.full_name(), board.name()),
            None if layout.placed(counter)?.is_prunable() => format!("counter {} is prunable", counter.full_name()),
            None => continue,
        };
        return Err(Error::setting("statements", format!("{reason}, which SqliteStore alone looks after")));
    }
    Ok(())
}

/// As [`apply`], for a batch that has climbed. With `far`, a delta beyond 64 bits becomes two steps: what one total lacks may be that much.
pub(crate) fn statements<'a>(
    dialect: Dialect,
    layout: &Layout,
    batch: &'a Batch,
    far: bool,
) -> Result<Vec<Statement<'a>>> {
    let positions = batch.counters().iter().map(|counter| layout.position(counter)).collect::<Result<Vec<usize>>>()?;
    let mut deltas: Vec<(usize, &KeyBuf, i128)> = batch
        .entries()
        .iter()
        .filter(|entry| entry.delta != 0)
        .filter_map(|entry| Some((*positions.get(entry.counter as usize)?, &entry.key, entry.delta)))
        .collect();
    deltas.sort_unstable_by(|one, two| (one.0, one.1).cmp(&(two.0, two.1)));
    let mut statements = Vec::new();
    for run in deltas.chunk_by(|one, two| one.0 == two.0) {
        let Some(placed) = run.first().and_then(|(at, ..)| layout.counters().get(*at)) else { continue };
        statements.push(upserts(dialect, placed, run, far)?);
        if layout.child_parts(&placed.def()).is_some() {
            statements.extend(removals(dialect, placed, run)?);
        }
    }
    Ok(statements)
}

fn upserts<'a>(
    dialect: Dialect,
    placed: &Placed,
    deltas: &[(usize, &'a KeyBuf, i128)],
    far: bool,
) -> Result<Statement<'a>> {
    let counter = placed.def();
    let width = key_columns(counter.parts()).len() + 1;
    let mut values = Vec::with_capacity(deltas.len() * width);
    for (_, key, delta) in deltas {
        if !far && i64::try_from(*delta).is_err() {
            return Err(Error::overflow(&counter, key, "delta"));
        }
        for step in steps(*delta) {
            push_key_values(&counter, key, &mut values)?;
            values.push(Value::Integer(step));
        }
    }
    Ok(Statement { counter, text: upsert(dialect, placed), values, width, adds: true })
}

/// A link that is gone leaves no row behind: every climb of its child would read it.
fn removals<'a>(
    dialect: Dialect,
    placed: &Placed,
    deltas: &[(usize, &'a KeyBuf, i128)],
) -> Result<Option<Statement<'a>>> {
    let counter = placed.def();
    let mut values = Vec::new();
    for (_, key, _) in deltas.iter().filter(|(.., delta)| *delta < 0) {
        push_key_values(&counter, key, &mut values)?;
    }
    let width = key_columns(counter.parts()).len();
    let text = remove_zero(dialect, placed);
    Ok((!values.is_empty()).then_some(Statement { counter, text, values, width, adds: false }))
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

/// A query with its parameters; what it returns, the function that makes it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query<'a> {
    /// The query; its parameters are `?1`, `?2`, ..
    pub text: String,
    /// The parameters.
    pub values: Vec<Value<'a>>,
}

/// Reads the first totals of a range in key order: the key's columns and the total.
///
/// # Errors
///
/// As [`key_values`], of a bound.
pub fn range<'a>(dialect: Dialect, placed: &Placed, range: &'a KeyRange, limit: usize) -> Result<Query<'a>> {
    let mut terms = Terms::of(dialect, placed, range)?;
    let keys = own_key_columns(placed.def().parts()).join(", ");
    // SQLite plans a statement anew whenever a parameter of its LIMIT is bound: without a limit there is none.
    let cut = if let Ok(limit) = i64::try_from(limit) {
        terms.values.push(Value::Integer(limit));
        format!(" LIMIT {}", dialect.param(terms.values.len()))
    } else {
        String::new()
    };
    let (table, condition) = (placed.table_name(), terms.condition());
    let text = format!(r#"SELECT {keys}, t."total" FROM "{table}" AS t{condition} ORDER BY {keys}{cut}"#);
    Ok(Query { text, values: terms.values })
}

/// Sums the totals of a range: null where there are none.
///
/// # Errors
///
/// As [`range`].
pub fn sum<'a>(dialect: Dialect, placed: &Placed, range: &'a KeyRange) -> Result<Query<'a>> {
    let terms = Terms::of(dialect, placed, range)?;
    let text = format!(r#"SELECT sum(t."total") FROM "{}" AS t{}"#, placed.table_name(), terms.condition());
    Ok(Query { text, values: terms.values })
}

/// Conditions on key columns, and their parameters.
struct Terms<'a> {
    texts: Vec<String>,
    values: Vec<Value<'a>>,
}

impl<'a> Terms<'a> {
    /// Parts on which both bounds agree become equalities, so that the range is one of the index's.
    fn of(dialect: Dialect, placed: &Placed, range: &'a KeyRange) -> Result<Self> {
        let def = placed.def();
        let columns = own_key_columns(def.parts());
        let parts = |bound: &'a Bound<KeyBuf>| match bound {
            Bound::Unbounded => Ok(None),
            Bound::Included(head) => head_values(&def, head).map(|values| Some((values, true))),
            Bound::Excluded(head) => head_values(&def, head).map(|values| Some((values, false))),
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
                terms.compare(dialect, columns.get(same..).unwrap_or_default(), values, same, (operator, included));
            }
        }
        Ok(terms)
    }

    /// One side of a range, of the parts behind the first `same`.
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
            // All that begin so, or none of them.
            self.texts.extend((!included).then(|| "0".to_owned()));
            return;
        }
        let from = self.values.len() + 1;
        let params: Vec<String> = (from..from + rest.len()).map(|at| dialect.param(at)).collect();
        let equals = if included { "=" } else { "" };
        self.texts.push(format!("({columns}) {operator}{equals} ({})", params.join(", ")));
        self.values.extend(rest);
    }

    fn condition(&self) -> String {
        if self.texts.is_empty() { String::new() } else { format!(" WHERE {}", self.texts.join(" AND ")) }
    }
}

/// Looks whether there are as many totals other than 0 as `?1` says: their number, counted up to there.
#[must_use]
pub fn count_non_zero(dialect: Dialect, placed: &Placed) -> String {
    let (table, most) = (placed.table_name(), dialect.param(1));
    format!(r#"SELECT count(*) FROM (SELECT 1 FROM "{table}" AS t WHERE t."total" <> 0 LIMIT {most})"#)
}

/// The catalogue of the counters that a database has, by their full names. Its column `identity` is random, so that a resume token of one
/// database is known in another; `ready` is 0 while a counter's totals lack rows from before its hooks ran everywhere.
pub const CATALOGUE: &str = "keepcount_counters";

/// Says which counters and boards are not ready to be read: one row of their full names with commas between, or null where all are ready. A
/// counter needs what it sums too, a board what it is made of.
#[must_use]
pub fn unready(_: Dialect) -> String {
    format!(r#"SELECT group_concat(c."name") FROM "{CATALOGUE}" AS c WHERE c."ready" = 0"#)
}

/// Says that the counter or board `?1` is ready to be read from now on.
#[must_use]
pub fn set_ready(dialect: Dialect) -> String {
    let name = dialect.param(1);
    format!(r#"UPDATE "{CATALOGUE}" AS c SET "ready" = 1 WHERE c."name" = {name} AND c."ready" = 0"#)
}

/// The table of the last event of each stream that was applied.
pub const MARKS: &str = "keepcount_marks";

/// Reads the last event of the stream `?1` that was applied: no row where there was none.
#[must_use]
pub fn read_mark(dialect: Dialect) -> String {
    format!(r#"SELECT m."last" FROM "{MARKS}" AS m WHERE m."stream" = {}"#, dialect.param(1))
}

/// Says that the events of the stream `?1` are applied up to `?2`; run it in the transaction that applies them.
#[must_use]
pub fn set_mark(dialect: Dialect) -> String {
    format!(
        r#"INSERT INTO "{MARKS}" ("stream", "last") VALUES ({}) ON CONFLICT ("stream") DO UPDATE SET "last" = excluded."last""#,
        dialect.params(2)
    )
}

impl Layout {
    /// The statements that make the catalogue and every counter's table, for the first migration; run them in one transaction.
    /// `SqliteStore::create` does the same, and leaves what is there.
    ///
    /// All counters are ready to be read then. One that a later migration adds, or that counts rows from before, is not: set its `ready` to 0
    /// in [`sql::CATALOGUE`](crate::sql::CATALOGUE), until a backfill sets it to 1.
    #[must_use]
    pub fn ddl(&self, dialect: Dialect) -> Vec<String> {
        let tables = self.counters().iter().flat_map(|placed| {
            let index = self.child_parts(&placed.def()).map(|child| create_by_parent(dialect, placed, child));
            [create(dialect, placed)].into_iter().chain(index).chain([enlist(placed, true)])
        });
        let boards = self.board_defs().iter().flat_map(|board| board::ddl(dialect, board, true));
        let catalogue = std::iter::once(create_catalogue(dialect));
        catalogue.chain(tables).chain(boards).chain([create_marks(dialect), create_unready(dialect)]).collect()
    }
}

pub(crate) fn create_catalogue(_: Dialect) -> String {
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{CATALOGUE}" ("name" TEXT NOT NULL PRIMARY KEY, "key" TEXT NOT NULL, "version" INTEGER NOT NULL, "placement" TEXT NOT NULL, "identity" INTEGER NOT NULL DEFAULT (random()), "cut" ANY, "ready" INTEGER NOT NULL DEFAULT 1) STRICT, WITHOUT ROWID"#
    )
}

/// The index of what is not ready, most often empty: whoever reads a total looks there first.
pub(crate) fn create_unready(_: Dialect) -> String {
    format!(r#"CREATE INDEX IF NOT EXISTS "keepcount_unready" ON "{CATALOGUE}" ("name") WHERE "ready" = 0"#)
}

pub(crate) fn create_marks(_: Dialect) -> String {
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{MARKS}" ("stream" TEXT NOT NULL PRIMARY KEY, "last" INTEGER NOT NULL) STRICT, WITHOUT ROWID"#
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

/// The name of the index of a link's table by parent, from which a rollup is recounted.
pub(crate) fn by_parent(placed: &Placed) -> String {
    format!("{}_by_parent", placed.table_name())
}

/// The link's key from its other end, and its total: all that a recount reads of it.
pub(crate) fn create_by_parent(_: Dialect, placed: &Placed, child: usize) -> String {
    let columns = key_columns(placed.def().parts());
    let (child, parent) = columns.split_at_checked(child).unwrap_or_default();
    let columns = [parent, child].concat().join(", ");
    format!(r#"CREATE INDEX IF NOT EXISTS "{}" ON "{}" ({columns}, "total")"#, by_parent(placed), placed.table_name())
}

/// Writes a counter into the catalogue.
pub(crate) fn enlist(placed: &Placed, ready: bool) -> String {
    enlist_as(&placed.def().full_name(), &placed.def(), &placed.place(), ready)
}

/// Writes a counter or board into the catalogue. Names consist of a-z, 0-9, _ and ., so nothing needs quoting.
pub(crate) fn enlist_as(name: &str, def: &Def, placement: &str, ready: bool) -> String {
    let (key, version, ready) = (def.parts(), def.version(), i64::from(ready));
    format!(
        r#"INSERT INTO "{CATALOGUE}" ("name", "key", "version", "placement", "ready") VALUES ('{name}', '{key}', {version}, '{placement}', {ready})"#
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

pub(crate) fn key_columns(parts: KeyParts) -> Vec<String> {
    match parts.len() {
        0 | 1 => vec![r#""key""#.to_owned()],
        many => (1..=many).map(|at| format!(r#""key_{at}""#)).collect(),
    }
}

/// The key columns with their table's name: SQLite takes a quoted name alone that no column has for a text.
pub(crate) fn own_key_columns(parts: KeyParts) -> Vec<String> {
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
        to.push(column_value(*part, value).map_err(failed)?);
    }
    Ok(())
}

/// The beginning of a key as parameters, one for each part that it has.
pub(crate) fn head_values<'a>(counter: &Def, head: &'a KeyBuf) -> Result<Vec<Value<'a>>> {
    let parts = counter.parts();
    let values = parts.values_of_head(head).map_err(|cause| Error::key(counter, head, cause))?;
    let columns = parts.as_slice().iter().zip(values);
    columns.map(|(part, value)| column_value(*part, value).map_err(|cause| Error::key(counter, head, cause))).collect()
}

pub(crate) fn column_value(part: KeyPart, value: KeyValue<'_>) -> Result<Value<'_>, KeyError> {
    Ok(match value {
        KeyValue::Signed(value) if part == KeyPart::Signed(16) => {
            Value::Blob((value.cast_unsigned() ^ (1 << 127)).to_be_bytes())
        }
        KeyValue::Unsigned(value) if part == KeyPart::Unsigned(16) => Value::Blob(value.to_be_bytes()),
        KeyValue::Signed(value) => Value::Integer(i64::try_from(value).map_err(|_| wide(&value))?),
        KeyValue::Unsigned(value) => Value::Integer(i64::try_from(value).map_err(|_| wide(&value))?),
        KeyValue::Text(text) if text.len() > TEXT_MOST => {
            return Err(KeyError::TooLong { bytes: text.len(), most: TEXT_MOST });
        }
        KeyValue::Text(text) => Value::Text(text),
        KeyValue::Bytes16(id) | KeyValue::Uuid(id) => Value::Blob(id),
    })
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
