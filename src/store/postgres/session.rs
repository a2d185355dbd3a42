//! Runs statements on the caller's client or transaction, one by one or many in one round trip, and says what its errors mean.

use std::collections::HashMap;
use std::error::Error as _;

use futures_util::TryStreamExt;
use futures_util::future::{ready, try_join_all};
use parking_lot::Mutex;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{GenericClient, Row, Statement};

use crate::counter::{Def, FNV_OFFSET, fnv1a};
use crate::error::{Cause, Error, Result, brief};
use crate::key::{KeyBuf, KeyError, KeyPart};
use crate::layout::Layout;
use crate::sql::{self, Query, Value};

/// The statements that a connection has prepared: kept beside it, they spare the server from planning each of them anew.
///
/// Belongs to one connection: the statements of another are unknown to the server. Keeps at most 256; what comes later is planned each time. As many again have
/// a name in SQL, for [`write`](crate::PostgresStore::write); those stay on the server until the connection ends.
///
/// # Examples
///
/// ```
/// use keepcount::{Layout, PostgresStore, PreparedStatements};
/// use tokio_postgres::Transaction;
///
/// fn store<'c>(
///     tx: &'c Transaction<'c>,
///     prepared: &'c PreparedStatements,
///     layout: &'c Layout,
/// ) -> PostgresStore<'c, Transaction<'c>> {
///     PostgresStore::within(tx, layout).prepared(prepared)
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
}

#[derive(Debug)]
struct Named {
    kinds: Vec<Type>,
    /// None for what SQL's PREPARE does not take.
    name: Option<String>,
}

/// How names begin.
pub(super) const NAME: &str = "keepcount_";
const PREPARED_MOST: usize = 256;

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

    fn known(&self, text: &str) -> Option<Statement> {
        self.by_text.lock().get(text).cloned()
    }

    fn has_room(&self) -> bool {
        self.by_text.lock().len() < PREPARED_MOST
    }

    fn keep(&self, text: &str, statement: Statement) {
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
                None if names.of.len() >= PREPARED_MOST => return Ok(None),
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
            // Of this text, but of types that may have been made anew since.
            client.batch_execute(&format!("DEALLOCATE {name}")).await?;
            prepared = client.batch_execute(&prepare).await;
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

    /// Gives no names from now on.
    pub(super) fn forgo_names(&self) {
        self.names.lock().forgone = true;
    }
}

/// A client or transaction, and the layout of the totals behind it.
pub(crate) struct Session<'c, C> {
    pub(crate) client: &'c C,
    pub(crate) layout: &'c Layout,
    pub(super) prepared: Option<&'c PreparedStatements>,
}

impl<C> Clone for Session<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Session<'_, C> {}

/// Statements that are sent in one go; the server runs them one after the other.
pub(super) const PIPELINE_MOST: usize = 16;

impl<'c, C: GenericClient + Sync> Session<'c, C> {
    pub(crate) const fn new(client: &'c C, layout: &'c Layout) -> Self {
        Self { client, layout, prepared: None }
    }

    pub(super) async fn prepare_all(&self, queries: &[Query<'_>]) -> Result<(), (usize, tokio_postgres::Error)> {
        let Some(prepared) = self.prepared else { return Ok(()) };
        for (at, query) in queries.iter().enumerate() {
            if prepared.known(&query.text).is_none() && prepared.has_room() {
                let kinds: Vec<Type> = query.values.iter().map(Value::kind).collect();
                let statement = self.client.prepare_typed(&query.text, &kinds).await;
                prepared.keep(&query.text, statement.map_err(|error| (at, error))?);
            }
        }
        Ok(())
    }

    /// The statement of a text of the application's own: as it was prepared before, or now.
    pub(super) async fn statement(&self, text: &str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(known) = self.prepared.and_then(|prepared| prepared.known(text)) {
            return Ok(known);
        }
        let statement = self.client.prepare(text).await?;
        if let Some(prepared) = self.prepared.filter(|prepared| prepared.has_room()) {
            prepared.keep(text, statement.clone());
        }
        Ok(statement)
    }

    /// The statement of a query, if it was prepared.
    fn known(&self, query: &Query<'_>) -> Option<Statement> {
        self.prepared.and_then(|prepared| prepared.known(&query.text))
    }

    async fn rows_of(&self, query: &Query<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self.known(query) {
            Some(statement) => self.client.query(&statement, &params(query)).await,
            None => self.client.query_typed(&query.text, &typed(query)).await,
        }
    }

    async fn written_by(&self, query: &Query<'_>) -> Result<u64, tokio_postgres::Error> {
        match self.known(query) {
            Some(statement) => self.client.execute(&statement, &params(query)).await,
            None => self.client.execute_typed(&query.text, &typed(query)).await,
        }
    }

    /// What `run` gives for each query, in their order; or the first that failed, and why.
    async fn run_all<'q, T, F: Future<Output = Result<T, tokio_postgres::Error>>>(
        &self,
        queries: &'q [Query<'q>],
        run: impl Fn(&'q Query<'q>) -> F,
    ) -> Result<Vec<T>, (usize, tokio_postgres::Error)> {
        self.prepare_all(queries).await?;
        let mut all = Vec::with_capacity(queries.len());
        for (chunk, at) in queries.chunks(PIPELINE_MOST).zip((0..).step_by(PIPELINE_MOST)) {
            let sent = chunk.iter().zip(at..).map(|(query, at)| {
                let answer = run(query);
                async move { answer.await.map_err(|error| (at, error)) }
            });
            all.extend(try_join_all(sent).await?);
        }
        Ok(all)
    }

    /// The rows of one query.
    pub(crate) async fn query(&self, query: &Query<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
        let rows = self.query_all(std::slice::from_ref(query)).await.map_err(|(_, error)| error)?;
        Ok(rows.into_iter().next().unwrap_or_default())
    }

    /// The rows of each query, run in their order; or the first that failed, and why.
    pub(crate) async fn query_all(
        &self,
        queries: &[Query<'_>],
    ) -> Result<Vec<Vec<Row>>, (usize, tokio_postgres::Error)> {
        self.run_all(queries, |query| self.rows_of(query)).await
    }

    /// What `read` makes of the rows of one query that is not prepared, without its nones. Rows are read as they come: the server goes on meanwhile,
    /// and nobody holds them all as they were sent.
    pub(crate) async fn read<T>(
        &self,
        query: &Query<'_>,
        failed: impl Fn(tokio_postgres::Error) -> Error,
        read: impl Fn(&Row) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        let rows = self.client.query_typed_raw(&query.text, typed(query)).await.map_err(&failed)?;
        rows.map_err(failed).try_filter_map(|row| ready(read(&row))).try_collect().await
    }

    /// How many rows each statement wrote, run in their order; or the first that failed, and why.
    pub(crate) async fn execute_all(&self, queries: &[Query<'_>]) -> Result<Vec<u64>, (usize, tokio_postgres::Error)> {
        self.run_all(queries, |query| self.written_by(query)).await
    }

    /// Runs one statement; gives how many rows it wrote.
    pub(crate) async fn execute(&self, query: &Query<'_>) -> Result<u64, tokio_postgres::Error> {
        let written = self.execute_all(std::slice::from_ref(query)).await.map_err(|(_, error)| error)?;
        Ok(written.first().copied().unwrap_or(0))
    }
}

/// The parameters of a query that is prepared.
pub(crate) fn params<'q>(query: &'q Query<'_>) -> Vec<&'q (dyn ToSql + Sync)> {
    query.values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

/// The parameters of a query that is not prepared.
pub(crate) fn typed<'q>(query: &'q Query<'_>) -> Vec<(&'q (dyn ToSql + Sync), Type)> {
    query.values.iter().map(|value| (value as &(dyn ToSql + Sync), value.kind())).collect()
}

impl Value<'_> {
    pub(crate) const fn kind(&self) -> Type {
        match self {
            Self::Integer(_) => Type::INT8,
            Self::Text(_) => Type::TEXT,
            Self::Blob(_) => Type::BYTEA,
            Self::Uuid(_) => Type::UUID,
            Self::Integers(_) => Type::INT8_ARRAY,
            Self::Texts(_) => Type::TEXT_ARRAY,
            Self::Blobs(_) => Type::BYTEA_ARRAY,
            Self::Uuids(_) => Type::UUID_ARRAY,
        }
    }
}

/// Sixteen bytes as the driver sends a UUID.
#[derive(Debug)]
struct Uuid<'a>(&'a [u8; 16]);

impl ToSql for Uuid<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::UUID
    }

    to_sql_checked!();
}

impl ToSql for Value<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Integer(value) => value.to_sql(kind, out),
            Self::Text(text) => text.as_ref().to_sql(kind, out),
            Self::Blob(bytes) => bytes.as_slice().to_sql(kind, out),
            Self::Uuid(bytes) => Uuid(bytes).to_sql(kind, out),
            Self::Integers(column) => column.to_sql(kind, out),
            Self::Texts(column) => column.to_sql(kind, out),
            Self::Blobs(column) => column.iter().map(AsRef::<[u8]>::as_ref).collect::<Vec<_>>().to_sql(kind, out),
            Self::Uuids(column) => column.iter().map(Uuid).collect::<Vec<_>>().to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(
            *kind,
            Type::INT8
                | Type::TEXT
                | Type::BYTEA
                | Type::UUID
                | Type::INT8_ARRAY
                | Type::TEXT_ARRAY
                | Type::BYTEA_ARRAY
                | Type::UUID_ARRAY
        )
    }

    fn to_sql_checked(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        if *kind == self.kind() {
            return self.to_sql(kind, out);
        }
        Err(format!("a {kind} where keepcount gives a {}", self.kind()).into())
    }
}

/// A column as it came.
enum Cell {
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
    Uuid([u8; 16]),
}

impl<'a> FromSql<'a> for Cell {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match *kind {
            Type::INT8 => Self::Integer(i64::from_sql(kind, raw)?),
            Type::INT4 => Self::Integer(i32::from_sql(kind, raw)?.into()),
            Type::INT2 => Self::Integer(i16::from_sql(kind, raw)?.into()),
            Type::UUID => Self::Uuid(raw.try_into()?),
            Type::BYTEA => Self::Bytes(raw.to_vec()),
            _ => Self::Text(String::from_sql(kind, raw)?),
        })
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT8 | Type::INT4 | Type::INT2 | Type::UUID | Type::BYTEA)
            || <String as FromSql>::accepts(kind)
    }
}

/// Reads a key's columns, the first of them at `first`.
pub(crate) fn read_key(counter: &Def, row: &Row, first: usize) -> Result<KeyBuf> {
    read_parts(counter.name(), counter.parts().as_slice(), row, first)
}

/// Reads columns as these parts of a key.
pub(crate) fn read_parts(name: &'static str, parts: &[KeyPart], row: &Row, first: usize) -> Result<KeyBuf> {
    let mut key = KeyBuf::new();
    for (at, part) in parts.iter().enumerate() {
        let cell = row.try_get::<_, Option<Cell>>(first + at);
        let mut push = || {
            let wrong = |found: String| KeyError::Type { wanted: *part, found };
            let kind = || row.columns().get(first + at).map_or("nothing", |column| column.type_().name()).to_owned();
            let value = match cell.as_ref().map_err(|_| wrong(format!("a column of type {}", kind())))? {
                None => return Err(wrong("null".to_owned())),
                Some(Cell::Integer(value)) => Value::Integer(*value),
                Some(Cell::Text(text)) => Value::Text(text.as_str().into()),
                Some(Cell::Uuid(bytes)) => Value::Uuid(*bytes),
                Some(Cell::Bytes(bytes)) => {
                    let bytes = bytes.as_slice().try_into();
                    Value::Blob(bytes.map_err(|_| wrong("a bytea not of 16 bytes".to_owned()))?)
                }
            };
            sql::push_key_part(*part, &value, &mut key)
        };
        push().map_err(|cause| Error::Key { counter: name, key: raw_text(row, first), cause })?;
    }
    Ok(key)
}

/// The first column of a key that could not be read, for the error's text.
fn raw_text(row: &Row, first: usize) -> String {
    match row.try_get::<_, Option<Cell>>(first) {
        Ok(Some(Cell::Integer(value))) => value.to_string(),
        Ok(Some(Cell::Text(text))) => brief(&text.escape_debug().to_string()),
        Ok(Some(Cell::Bytes(bytes))) => format!("a bytea of {} bytes", bytes.len()),
        Ok(Some(Cell::Uuid(bytes))) => crate::key::KeyValue::Uuid(bytes).to_string(),
        Ok(None) | Err(_) => "null".to_owned(),
    }
}

/// What a driver's error means to the caller, who was doing something to a counter.
pub(crate) fn failed_on(what: &str, counter: &Def, error: tokio_postgres::Error) -> Error {
    failed(&format!("{what} of counter {}", counter.full_name()), error)
}

/// What a driver's error means to the caller, other than one of a commit.
pub(crate) fn failed(doing: &str, error: tokio_postgres::Error) -> Error {
    let doing = doing.to_owned();
    if let Some(reason) = busy(&error) {
        return Error::Busy { doing, reason, cause: cause_of(error) };
    }
    let Some(db) = error.as_db_error() else { return Error::Database { doing, cause: cause_of(error) } };
    match *db.code() {
        SqlState::UNDEFINED_TABLE => {
            let table = quoted(db.message()).unwrap_or_default();
            let reason = format!("it is absent ({doing}); those of totals are made by PostgresStore::create");
            Error::Schema { table, reason }
        }
        SqlState::UNDEFINED_COLUMN | SqlState::DATATYPE_MISMATCH | SqlState::UNDEFINED_FUNCTION => {
            let table = quoted(db.message()).unwrap_or_default();
            Error::Schema { table, reason: format!("{} ({doing})", db.message()) }
        }
        _ => Error::Database { doing, cause: cause_of(error) },
    }
}

/// What the server said; the driver's own text says only that there was an error.
#[derive(Debug, thiserror::Error)]
#[error("{severity}: {message} ({code}){more}")]
struct Said {
    severity: String,
    message: String,
    code: String,
    more: String,
    #[source]
    cause: tokio_postgres::Error,
}

fn cause_of(cause: tokio_postgres::Error) -> Cause {
    let Some(db) = cause.as_db_error() else { return cause.into() };
    let more = [db.detail(), db.hint()].into_iter().flatten().map(|more| format!("; {more}")).collect::<Vec<_>>();
    let (severity, message, code) = (db.severity().to_owned(), db.message().to_owned(), db.code().code().to_owned());
    Said { severity, message, code, more: more.concat(), cause }.into()
}

/// Why nothing was applied and a retry helps, if so. Whoever lost the connection before a commit applied nothing either.
fn busy(error: &tokio_postgres::Error) -> Option<&'static str> {
    let Some(db) = error.as_db_error() else {
        let lost = error.is_closed() || error.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
        return lost.then_some("the connection was lost; open another, and try the whole transaction again");
    };
    match *db.code() {
        SqlState::T_R_SERIALIZATION_FAILURE => {
            Some("another transaction changed what this one had read; roll it back and try it again whole")
        }
        SqlState::T_R_DEADLOCK_DETECTED => {
            Some("it and another transaction waited for each other; roll it back and try it again whole")
        }
        SqlState::LOCK_NOT_AVAILABLE => {
            Some("what it needs is held by another transaction for longer than lock_timeout")
        }
        SqlState::QUERY_CANCELED => Some("it was cancelled, or took longer than statement_timeout"),
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => {
            Some("the server ended the connection; open another, and try the whole transaction again")
        }
        SqlState::TOO_MANY_CONNECTIONS | SqlState::OUT_OF_MEMORY => Some("the server has no room for it just now"),
        _ => None,
    }
}

/// What a commit's error means: unless the server itself says that it took the transaction back, nobody knows.
pub(crate) fn commit_failed(doing: &str, error: tokio_postgres::Error) -> Error {
    if is_refused(&error) { failed(doing, error) } else { unknown(doing, error) }
}

/// An error after which nobody knows whether it was applied.
pub(super) fn unknown(doing: &str, error: tokio_postgres::Error) -> Error {
    Error::Unknown { doing: doing.to_owned(), cause: cause_of(error) }
}

/// Whether the server says so itself, and goes on: then what the statement belongs to is taken back.
pub(super) fn is_refused(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.parsed_severity() == Some(Severity::Error))
}

/// Whether a sum left 64 bits.
pub(crate) fn overflowed(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::NUMERIC_VALUE_OUT_OF_RANGE)
}

/// The first name in quotes of a message.
fn quoted(message: &str) -> Option<String> {
    message.split('"').nth(1).map(str::to_owned)
}
