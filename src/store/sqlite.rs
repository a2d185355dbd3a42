//! Totals in SQLite tables, over the caller's own connection, transaction or savepoint: runs what `sql` says.

pub(crate) mod cut;
mod lost;
mod ready;
mod schema;
mod sweep;
pub(crate) mod transaction;
mod unready;

pub(crate) use self::unready::Unready;

use rusqlite::ffi;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Statement, params_from_iter};

use super::{Applied, Store, steps};
use crate::batch::Batch;
use crate::counter::{Counter, Def, Placed};
use crate::error::{Error, Result, brief};
use crate::key::{AsKey, Key, KeyBuf, KeyError, KeyPart};
use crate::layout::Layout;
use crate::mark::Mark;
use crate::observe;
use crate::prune;
use crate::range::KeyRange;
use crate::rollup::{self, Question};
use crate::sql::{self, Dialect, Value};
use crate::store::catalogue;

/// Totals in tables beside the application's rows; borrows its connection, so it is made where it is used.
///
/// In a transaction, totals commit or roll back with the rows; a batch that fails in the middle is taken back, and the transaction
/// may go on. Outside one, apply is a transaction (`BEGIN IMMEDIATE`). Statements are prepared once a connection, as long as its statement
/// cache has room: `Connection::set_prepared_statement_cache_capacity` should exceed the number of counters and
/// statements in use.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Counter, Layout, SqliteStore, Store};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const LAYOUT: Layout = Layout::new(&[SHOW_VOTES.table()]);
///
/// let mut conn = rusqlite::Connection::open_in_memory()?;
/// conn.execute_batch("CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL)")?;
/// SqliteStore::new(&conn, &LAYOUT).create()?;
///
/// let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
/// let mut batch = Batch::new();
/// tx.execute("INSERT INTO votes (show_id) VALUES (7)", ())?;
/// batch.add(SHOW_VOTES, 7, 1);
/// SqliteStore::new(&tx, &LAYOUT).apply(&mut batch)?;
/// tx.commit()?;
///
/// assert_eq!(SqliteStore::new(&conn, &LAYOUT).total(SHOW_VOTES, 7)?, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct SqliteStore<'c> {
    conn: &'c Connection,
    layout: &'c Layout,
}

impl<'c> SqliteStore<'c> {
    /// The store of these counters over a connection; a transaction or savepoint is one too. Does no I/O: call
    /// [`check`](Self::check) once at start.
    #[must_use]
    pub const fn new(conn: &'c Connection, layout: &'c Layout) -> Self {
        Self { conn, layout }
    }

    pub(crate) const fn conn(&self) -> &'c Connection {
        self.conn
    }

    pub(crate) const fn layout(&self) -> &'c Layout {
        self.layout
    }

    fn apply_with(&self, batch: &mut Batch, mark: Option<&Mark<'_>>) -> Result<Applied> {
        self.layout.check_batch(batch)?;
        if batch.is_empty() && mark.is_none() {
            batch.spend();
            return Ok(Applied::default());
        }
        let began = observe::begin(observe::Place::Sqlite, batch);
        let plain = self.layout.is_plain() && self.layout.board_defs().is_empty();
        let applied = if plain { self.write_plainly(batch, mark) } else { self.write_climbing(batch, mark) }?;
        if !applied.skipped {
            observe::stored(observe::Place::Sqlite, began, batch, &applied);
        }
        batch.spend();
        Ok(applied)
    }

    /// Writes a batch as it is: no counter is a rollup or prunable, and there is no board. What cannot be written is refused before a
    /// transaction begins.
    fn write_plainly(&self, batch: &Batch, mark: Option<&Mark<'_>>) -> Result<Applied> {
        let statements = sql::statements(Dialect::Sqlite, self.layout, batch, false)?;
        self.in_transaction(batch, mark, |nested| self.write(&statements, batch, nested, || self.move_mark(mark)))
    }

    /// Leaves out what is pruned, lets the rest climb, writes all of it, and brings boards along.
    fn write_climbing(&self, batch: &Batch, mark: Option<&Mark<'_>>) -> Result<Applied> {
        self.in_transaction(batch, mark, |nested| {
            let kept = self.above_cuts(batch)?;
            let climbed = rollup::climb(self.layout, kept, |question, each| self.answer(question, each))?;
            let statements = sql::statements(Dialect::Sqlite, self.layout, &climbed, false)?;
            let applied = self.write(&statements, &climbed, nested, || self.move_mark(mark))?;
            drop(statements);
            Ok(applied.of(climbed))
        })
    }

    /// Writes a batch in a transaction; does nothing where its events were applied before. The mark is read first of all: what climbs from a
    /// batch that is delivered again may be beyond 64 bits by now.
    fn in_transaction(
        &self,
        batch: &Batch,
        mark: Option<&Mark<'_>>,
        write: impl FnOnce(bool) -> Result<Applied>,
    ) -> Result<Applied> {
        self.transact(
            || doing(batch, mark),
            |nested| match mark {
                Some(mark) if !mark.follows(self.read_mark(mark.stream())?)? => Ok(Applied::skipped()),
                _ => write(nested),
            },
        )
    }

    /// Runs `work` in the caller's transaction, or in one of its own, and tells it whether it is the caller's.
    pub(crate) fn transact<T>(
        &self,
        doing: impl FnOnce() -> String,
        work: impl FnOnce(bool) -> Result<T>,
    ) -> Result<T> {
        if !self.conn.is_autocommit() {
            return self.or_lost(|| work(true));
        }
        transaction::commit_after(self.conn, doing(), || work(false))
    }

    /// Where the caller's transaction is gone when an error comes back, the error says so: SQLite rolls back by itself when a disk is full or
    /// fails, also under a statement that only reads, since pages that were changed may have to be written to make room for what it reads.
    fn or_lost<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let inside = !self.conn.is_autocommit();
        work().map_err(|error| if inside && self.conn.is_autocommit() { lost(error) } else { error })
    }

    fn read_mark(&self, stream: &str) -> Result<u64> {
        let read = self.conn.prepare_cached(&sql::read_mark(Dialect::Sqlite));
        let read = read.and_then(|mut read| read.query_row([stream], |row| row.get::<_, i64>(0)).optional());
        let foreign = |what: String| {
            let reason = format!("the mark of stream {stream} is {what}; somebody else wrote it");
            Err(Error::Schema { table: sql::MARKS.to_owned(), reason })
        };
        let last = match read {
            Ok(last) => last.unwrap_or(0),
            Err(rusqlite::Error::InvalidColumnType(_, _, kind)) => return foreign(format!("{kind}, not an integer")),
            Err(error) => return Err(failed(&format!("reading the mark of stream {stream}"), error)),
        };
        u64::try_from(last).or_else(|_| foreign(format!("{last}, below 0")))
    }

    /// Says that a batch's events are applied; the last of what is written, so that where it fails, totals are taken back as ever.
    fn move_mark(&self, mark: Option<&Mark<'_>>) -> Result<()> {
        let Some(mark) = mark else { return Ok(()) };
        let last = i64::try_from(mark.last()).unwrap_or(i64::MAX); // `Mark::new` refuses more
        let moved = self.conn.prepare_cached(&sql::set_mark(Dialect::Sqlite));
        let moved = moved.and_then(|mut set| transaction::write(self.conn, &mut set, (mark.stream(), last)));
        match moved.map_err(|error| failed(&moving(mark), error))? {
            1 => Ok(()),
            _ => Err(skipped_write(sql::MARKS.to_owned())),
        }
    }

    /// Writes what totals lack, in the caller's transaction: also of rollups, of keys below a cut, and beyond 64 bits.
    pub(crate) fn mend(&self, batch: &Batch) -> Result<()> {
        let mut store = Unready(*self);
        let answer =
            |question: &Question, each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>| self.answer(question, each);
        let total = |counter: Def, key: &KeyBuf| {
            Ok(store.read(counter, std::slice::from_ref(key))?.first().copied().unwrap_or(0))
        };
        let climbed = rollup::climb_where_room(self.layout, batch.clone(), answer, total)?;
        let statements = sql::statements(Dialect::Sqlite, self.layout, &climbed, true)?;
        self.write(&statements, &climbed, false, || Ok(())).map(drop)
    }

    /// Executes a batch's statements, and `last` behind them; where the transaction is the caller's, what fails in its middle is taken back.
    fn write(
        &self,
        statements: &[sql::Statement<'_>],
        batch: &Batch,
        nested: bool,
        last: impl FnOnce() -> Result<()>,
    ) -> Result<Applied> {
        let (mut done, mut applied) = (0, Applied::default());
        let written = run(self.conn, statements, &mut done, &mut applied).and_then(|()| self.follow(batch));
        let written = written.and_then(|scores| last().map(|()| scores));
        match written {
            Ok(scores) => {
                applied.statements += scores;
                Ok(applied)
            }
            Err(error) if nested => Err(self.take_back(statements, done, batch, error)),
            Err(error) => Err(error),
        }
    }

    /// Undoes the first `done` rows of a batch that failed inside the caller's transaction, by adding what they took away: as exact
    /// as a savepoint, which would copy every page that a batch touches to a temporary file, and made batches of a few hundred
    /// totals slower than triggers. Where that fails too, nothing of the transaction may stay.
    #[cold]
    fn take_back(&self, statements: &[sql::Statement<'_>], done: usize, batch: &Batch, error: Error) -> Error {
        // Where SQLite rolled back by itself, there is nothing left to undo.
        let done = if self.conn.is_autocommit() { 0 } else { done };
        let rows = statements.iter().flat_map(|statement| statement.rows().map(move |row| (statement, row)));
        let mut undone = rows.take(done).filter(|(statement, _)| statement.adds).try_for_each(|(statement, row)| {
            let Some((Value::Integer(delta), key)) = row.split_last() else { return Ok(()) };
            self.add_values(&statement.counter, &statement.text, key, -i128::from(*delta))
        });
        if undone.is_ok() && !self.conn.is_autocommit() {
            undone = self.follow(batch).map(drop);
        }
        if undone.is_err() && !self.conn.is_autocommit() {
            return transaction::give_up(self.conn, error);
        }
        error
    }

    fn add_values(&self, counter: &Def, upsert: &str, key: &[Value<'_>], change: i128) -> Result<()> {
        let mut prepared = self.conn.prepare_cached(upsert).map_err(|error| writing(counter, error))?;
        for step in steps(change) {
            let row: Vec<Value<'_>> = key.iter().cloned().chain([Value::Integer(step)]).collect();
            write(self.conn, &mut prepared, counter, &row)?;
        }
        Ok(())
    }

    /// The batch without what is below a cut; reads nothing where no counter of it is prunable.
    fn above_cuts(&self, batch: &Batch) -> Result<Batch> {
        let mut cuts = Vec::new();
        for counter in batch.counters() {
            if let Some(cut) = self.cut(counter)? {
                cuts.push((*counter, cut));
            }
        }
        if cuts.is_empty() {
            return Ok(batch.clone());
        }
        let cut_of = |counter: &Def| cuts.iter().find(|(known, _)| known.same(counter)).map(|(_, cut)| cut);
        Ok(batch.filtered(|counter, key| cut_of(counter).is_none_or(|cut| prune::keeps(counter, key, cut))))
    }

    /// The encoded last part below which a counter was pruned.
    pub(crate) fn cut(&self, counter: &Def) -> Result<Option<KeyBuf>> {
        let parts = counter.parts();
        let last = parts.as_slice().last().filter(|_| self.layout.placed(counter).is_ok_and(Placed::is_prunable));
        let Some(last) = last else { return Ok(None) };
        let failed = |error| failed_on("reading the cut", counter, error);
        let mut statement = self.conn.prepare_cached(cut::READ_CUT).map_err(failed)?;
        let mut rows = statement.query([counter.full_name()]).map_err(failed)?;
        let Some(row) = rows.next().map_err(failed)? else { return Ok(None) };
        if row.get_ref(0).map_err(failed)? == ValueRef::Null {
            return Ok(None);
        }
        read_parts(counter.name(), std::slice::from_ref(last), row, 0).map(Some)
    }

    /// Forgets the totals of a counter, and of the rollups by its tail, whose last part is before `before`; from now on hooks and audits
    /// leave such keys alone. The cut-off never goes back; an earlier one than before changes nothing. Gives how many totals went.
    ///
    /// One transaction, whose cost grows with the counter's totals.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] when the counter is not placed as [`prunable`](Placed::prunable), or `T` has several parts, [`Error::Rollup`] for a rollup, and what the
    /// database says; inside a caller's transaction, which is then to be rolled back.
    pub fn prune<H: Key, T: Key>(&self, counter: Counter<(H, T)>, before: impl AsKey<T>) -> Result<u64> {
        let (cut, counter) = (KeyBuf::of::<T>(before), counter.def());
        let family = prune::family(self.layout, &counter, T::PARTS)?;
        self.transact(|| format!("pruning counter {}", counter.full_name()), |_| self.prune_family(&family, &cut))
    }

    fn prune_family(&self, family: &[Def], cut: &KeyBuf) -> Result<u64> {
        let mut gone = 0;
        for def in family {
            if self.cut(def)?.is_some_and(|known| known >= *cut) {
                continue;
            }
            let value = catalogue::tail_value(Dialect::Sqlite, def, cut)?;
            let delete = cut::prune(self.layout.placed(def)?);
            let prune = || -> rusqlite::Result<usize> {
                let mut set_cut = self.conn.prepare_cached(cut::SET_CUT)?;
                transaction::write(self.conn, &mut set_cut, (&value, def.full_name()))?;
                transaction::write(self.conn, &mut *self.conn.prepare_cached(&delete)?, [&value])
            };
            gone += prune().map_err(|error| failed_on("pruning totals", def, error))? as u64;
        }
        for board in self.layout.board_defs() {
            if board.counters().iter().any(|of| family.iter().any(|def| def.same(of))) {
                self.rescore_all(board)?;
            }
        }
        Ok(gone)
    }

    /// Gives every total of a climb's question.
    fn answer(&self, question: &Question, each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>) -> Result<()> {
        let counter = question.counter;
        let query = question.query(Dialect::Sqlite, self.layout)?;
        let doing = |error| failed_on("reading totals", &counter, error);
        let mut statement = self.conn.prepare_cached(&query.text).map_err(doing)?;
        let width = statement.column_count() - 1;
        let mut rows = statement.query(params_from_iter(query.values)).map_err(doing)?;
        while let Some(row) = rows.next().map_err(doing)? {
            each(&read_key(&counter, row, 0)?, row.get(width).map_err(doing)?)?;
        }
        Ok(())
    }

    /// Removes one total if it is 0.
    pub(crate) fn remove_zero(&self, counter: &Def, key: &KeyBuf) -> Result<()> {
        let text = sql::remove_zero(Dialect::Sqlite, self.layout.placed(counter)?);
        let values = sql::key_values(Dialect::Sqlite, counter, key)?;
        let remove = self.conn.prepare_cached(&text);
        let removed =
            remove.and_then(|mut remove| transaction::write(self.conn, &mut remove, params_from_iter(values)));
        removed.map(drop).map_err(|error| writing(counter, error))
    }

    /// How many totals are not 0, counted up to `most`.
    pub(crate) fn count_non_zero(&self, counter: &Def, most: u64) -> Result<u64> {
        let text = sql::count_non_zero(Dialect::Sqlite, self.layout.placed(counter)?);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let count = self.conn.query_row(&text, [most], |row| row.get::<_, i64>(0));
        count.map(i64::unsigned_abs).map_err(|error| failed_on("counting totals", counter, error))
    }
}

impl Store for SqliteStore<'_> {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        self.apply_with(batch, None)
    }

    fn apply_once(&mut self, batch: &mut Batch, mark: &Mark<'_>) -> Result<Applied> {
        self.apply_with(batch, Some(mark))
    }

    fn mark(&mut self, stream: &str) -> Result<u64> {
        self.or_lost(|| self.read_mark(stream))
    }

    fn read(&mut self, counter: Def, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        self.when_ready(&counter, |totals| totals.read(counter, keys))
    }

    fn range(&mut self, counter: Def, range: &KeyRange, limit: usize) -> Result<Vec<(KeyBuf, i64)>> {
        self.when_ready(&counter, |totals| totals.range(counter, range, limit))
    }

    fn sum(&mut self, counter: Def, range: &KeyRange) -> Result<i64> {
        self.when_ready(&counter, |totals| totals.sum(counter, range))
    }
}

/// Whether SQLite's `sum` left 64 bits, which it says in words only.
pub(crate) fn overflowed(error: &rusqlite::Error) -> bool {
    error.to_string().contains("integer overflow")
}

/// Executes statements once for each of their rows; counts in `done` the rows that were.
fn run(conn: &Connection, statements: &[sql::Statement<'_>], done: &mut usize, applied: &mut Applied) -> Result<()> {
    for statement in statements {
        let counter = statement.counter;
        let mut prepared = conn.prepare_cached(&statement.text).map_err(|error| writing(&counter, error))?;
        for row in statement.rows() {
            if statement.adds {
                write(conn, &mut prepared, &counter, row)?;
                applied.totals += 1;
            } else {
                let removed = transaction::write(conn, &mut prepared, params_from_iter(row));
                removed.map_err(|error| writing(&counter, error))?;
            }
            *done += 1;
            applied.statements += 1;
        }
    }
    Ok(())
}

/// Executes an upsert for one row; it writes one total, or fails.
fn write(conn: &Connection, upsert: &mut Statement<'_>, counter: &Def, row: &[Value<'_>]) -> Result<()> {
    match transaction::write(conn, upsert, params_from_iter(row)) {
        Ok(1) => Ok(()),
        Ok(_) => Err(skipped_write(counter.table_name())),
        Err(error) => Err(write_failed(counter, row, error)),
    }
}

fn skipped_write(table: String) -> Error {
    Error::Schema { table, reason: "a write to it was skipped; it must have no triggers".to_owned() }
}

/// An error after which the caller's transaction is gone.
fn lost(error: Error) -> Error {
    match error {
        Error::Database { doing, cause } | Error::Busy { doing, cause, .. } => Error::TransactionLost { doing, cause },
        other => Error::TransactionLost { doing: "writing totals".to_owned(), cause: other.into() },
    }
}

/// What applying a batch does, for errors.
fn doing(batch: &Batch, mark: Option<&Mark<'_>>) -> String {
    if let (Some(mark), true) = (mark, batch.is_empty()) {
        return moving(mark);
    }
    let mut names: Vec<_> = batch.deltas().map(|(counter, ..)| counter.full_name()).collect();
    names.sort_unstable();
    names.dedup();
    format!("writing totals of counter {}", names.join(", "))
}

fn moving(mark: &Mark<'_>) -> String {
    format!("moving the mark of stream {}", mark.stream())
}

fn writing(counter: &Def, error: rusqlite::Error) -> Error {
    failed_on("writing totals", counter, error)
}

/// `SQLITE_CONSTRAINT_DATATYPE`, which the driver knows only where it brings its own SQLite.
const CONSTRAINT_DATATYPE: i32 = ffi::SQLITE_CONSTRAINT | (12 << 8);

/// A sum beyond 64 bits turns REAL, which a STRICT column refuses; other errors are the database's.
fn write_failed(counter: &Def, row: &[Value<'_>], error: rusqlite::Error) -> Error {
    if error.sqlite_error().is_none_or(|error| error.extended_code != CONSTRAINT_DATATYPE) {
        return writing(counter, error);
    }
    let mut key = KeyBuf::new();
    for (part, value) in counter.parts().as_slice().iter().zip(row) {
        if let Err(cause) = sql::push_key_part(*part, value, &mut key) {
            return Error::key(counter, &key, cause);
        }
    }
    Error::overflow(counter, &key, "total")
}

/// Reads a key's columns, the first of them at `first`.
pub(crate) fn read_key(counter: &Def, row: &rusqlite::Row<'_>, first: usize) -> Result<KeyBuf> {
    read_parts(counter.name(), counter.parts().as_slice(), row, first)
}

/// Reads columns as these parts of a key.
pub(crate) fn read_parts(
    name: &'static str,
    parts: &[KeyPart],
    row: &rusqlite::Row<'_>,
    first: usize,
) -> Result<KeyBuf> {
    let mut key = KeyBuf::new();
    for (at, part) in parts.iter().enumerate() {
        let mut push = || {
            let value = row.get_ref(first + at).map_err(|_| KeyError::Malformed)?;
            let found = |found: &str| KeyError::Type { wanted: *part, found: found.to_owned() };
            let value = match value {
                ValueRef::Integer(value) => Value::Integer(value),
                ValueRef::Text(text) => {
                    Value::Text(std::str::from_utf8(text).map_err(|_| found("a text that is not UTF-8"))?.into())
                }
                ValueRef::Blob(bytes) => Value::Blob(bytes.try_into().map_err(|_| found("a blob not of 16 bytes"))?),
                ValueRef::Real(value) => return Err(found(&format!("the number {value}"))),
                ValueRef::Null => return Err(found("null")),
            };
            sql::push_key_part(*part, &value, &mut key)
        };
        push().map_err(|cause| Error::Key { counter: name, key: raw_text(row, first, parts.len()), cause })?;
    }
    Ok(key)
}

/// The columns of a key that could not be read, for the error's text.
fn raw_text(row: &rusqlite::Row<'_>, first: usize, parts: usize) -> String {
    let columns: Vec<String> =
        (first..first + parts).map(|at| row.get_ref(at).map_or_else(|_| "null".to_owned(), shown)).collect();
    let text = columns.join(", ");
    if parts == 1 { text } else { format!("({text})") }
}

/// A value as a message shows it: what is no text as its bytes.
pub(crate) fn shown(value: ValueRef<'_>) -> String {
    let hex = |bytes: &[u8]| brief(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
    match value {
        ValueRef::Integer(value) => value.to_string(),
        ValueRef::Real(value) => value.to_string(),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => brief(&text.escape_debug().to_string()),
            Err(_) => format!("a text of the bytes {}", hex(text)),
        },
        ValueRef::Blob(bytes) => format!("a blob of {} bytes, {}", bytes.len(), hex(bytes)),
        ValueRef::Null => "null".to_owned(),
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Integer(value) => ValueRef::Integer(*value),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) | Self::Uuid(bytes) => ValueRef::Blob(bytes),
            Self::Integers(_) | Self::Texts(_) | Self::Blobs(_) | Self::Uuids(_) => {
                return Err(rusqlite::Error::ToSqlConversionFailure("an array is PostgreSQL's alone".into()));
            }
        }))
    }
}

/// What a driver's error means to the caller, who was doing something to a counter.
pub(crate) fn failed_on(what: &str, counter: &Def, error: rusqlite::Error) -> Error {
    failed(&format!("{what} of counter {}", counter.full_name()), error)
}

/// What a driver's error means to the caller.
pub(crate) fn failed(doing: &str, error: rusqlite::Error) -> Error {
    let doing = doing.to_owned();
    let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) if extended == ffi::SQLITE_BUSY_SNAPSHOT => Error::Busy {
            doing,
            reason: "another connection wrote after this transaction had read; roll it back and repeat it whole, and begin \
                     transactions that write with BEGIN IMMEDIATE",
            cause: error.into(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::Busy {
            doing,
            reason: "the database is locked by another connection; roll back and try again, or set a busy timeout",
            cause: error.into(),
        },
        _ => match missing_table(&error) {
            Some(table) => Error::Schema {
                table,
                reason: format!("it is absent ({doing}); SqliteStore::create makes the tables of totals"),
            },
            None => Error::Database { doing, cause: error.into() },
        },
    }
}

/// The table that a statement did not find; SQLite says it in words only.
fn missing_table(error: &rusqlite::Error) -> Option<String> {
    let text = error.to_string();
    let (_, table) = text.split_once("no such table: ")?;
    Some(table.split([' ', ',']).next().unwrap_or(table).trim_start_matches("main.").to_owned())
}
