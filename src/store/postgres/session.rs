//! Runs statements on the caller's client or transaction, one by one or many in one round trip, and says what its errors mean.

use std::collections::HashMap;
use std::error::Error as _;

use futures_util::TryStreamExt;
use futures_util::future::{ready, try_join_all};
use parking_lot::Mutex;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, WrongType, to_sql_checked};
use tokio_postgres::{GenericClient, Row, Statement};

use crate::counter::{Def, FNV_OFFSET, fnv1a};
use crate::error::{Error, Result, brief, chain};
use crate::key::{KeyBuf, KeyError, KeyPart};
use crate::layout::Layout;
use crate::sql::{self, Query, Value};

/// The statements that a connection has prepared: kept beside it, they spare the server from planning each of them anew.
///
/// Belongs to one connection: the statements of another are unknown to the server. So they are not for a pooler that gives each transaction another connection, unless it keeps
/// prepared statements apart itself: what is lost is prepared anew, and what another process left under the same name of the driver's may be run instead. Keeps at most 256; what comes later is planned each time. As many again have
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
const PREPARED_MOST: usize = 256;
/// How often names are prepared anew before they are given up.
const LOST_MOST: u32 = 16;

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
        names.lost < LOST_MOST
    }

    /// Prepares all anew when it is wanted: the server has forgotten it.
    fn forget(&self) {
        self.by_text.lock().clear();
        self.names.lock().of.clear();
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
        let mut rows = self.run_all(queries, |query| self.rows_of(query)).await;
        // On a client it was a transaction of its own, of which nothing is left.
        if let Err((_, error)) = &rows
            && is_client(self.client)
            && may_run_again(self.client, self.prepared, error).await
        {
            rows = self.run_all(queries, |query| self.rows_of(query)).await;
        }
        rows
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

/// Whether this is a client, and not a transaction of the caller's.
fn is_client<C: GenericClient>(client: &C) -> bool {
    std::ptr::addr_eq(client, client.client())
}

/// How often a ROLLBACK is tried that is cancelled.
const ROLLBACKS_MOST: u32 = 8;

/// Ends whatever transaction a client was left in. One of the caller's is left to the caller.
pub(super) async fn end_transaction<C: GenericClient>(client: &C) -> Result<(), tokio_postgres::Error> {
    if !is_client(client) {
        return Ok(());
    }
    let mut ended = client.batch_execute("ROLLBACK").await;
    for _ in 1..ROLLBACKS_MOST {
        // It is cancelled as any statement is, and then it has done nothing.
        if !ended.as_ref().is_err_and(is_refused) {
            break;
        }
        ended = client.batch_execute("ROLLBACK").await;
    }
    ended
}

/// What a failed call says, after its client was brought out of any transaction: a BEGIN, COMMIT or ROLLBACK that is refused before it runs leaves it in an
/// aborted one. Where that is not possible, the error says that the connection must go.
pub(crate) async fn settled<C: GenericClient>(client: &C, doing: &str, error: Error) -> Error {
    match end_transaction(client).await {
        Err(_) if !client.client().is_closed() && !matches!(error, Error::Unknown { .. }) => {
            Error::TransactionOpen { doing: doing.to_owned(), cause: error.into() }
        }
        _ => error,
    }
}

/// Whether what failed may be run again at once, after what it met is out of the way: the server has forgotten what was prepared, or the client was left
/// in an aborted transaction by a future that was dropped and a ROLLBACK that was cancelled.
async fn may_run_again<C: GenericClient>(
    client: &C,
    prepared: Option<&PreparedStatements>,
    error: &tokio_postgres::Error,
) -> bool {
    if let Some(prepared) = prepared.filter(|_| is_forgotten(error)) {
        prepared.forget();
        return true;
    }
    is_aborted(error) && is_client(client) && end_transaction(client).await.is_ok()
}

/// The same for a call that was taken back whole.
pub(super) async fn may_call_again<C: GenericClient>(
    client: &C,
    prepared: Option<&PreparedStatements>,
    error: &Error,
) -> bool {
    let Error::Busy { cause, .. } = error else { return false };
    match cause.downcast_ref() {
        Some(error) => may_run_again(client, prepared, error).await,
        None => false,
    }
}

/// Whether an earlier error has aborted the transaction, and nothing is done in it.
fn is_aborted(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// Whether the server does not know a statement that was prepared, by the driver (s and a number) or by its name in SQL.
fn is_forgotten(error: &tokio_postgres::Error) -> bool {
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let is_ours = |word: &str| word.starts_with(NAME) || word.strip_prefix('s').is_some_and(is_number);
    // Behind a pooler another connection may have one of the same name, too.
    let codes = [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];
    let said = error.as_db_error().filter(|db| codes.contains(db.code()));
    said.is_some_and(|db| db.message().split(|c: char| !c.is_alphanumeric() && c != '_').any(is_ours))
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
    /// Of a database that takes texts in any encoding.
    NoText(Vec<u8>),
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
            _ => match std::str::from_utf8(raw) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => Self::NoText(raw.to_vec()),
            },
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
                Some(Cell::NoText(_)) => return Err(wrong("a text that is not UTF-8".to_owned())),
                Some(Cell::Bytes(bytes)) => {
                    let bytes = bytes.as_slice().try_into();
                    Value::Blob(bytes.map_err(|_| wrong("a bytea not of 16 bytes".to_owned()))?)
                }
            };
            sql::push_key_part(*part, &value, &mut key)
        };
        push().map_err(|cause| Error::Key { counter: name, key: raw_text(row, first, parts.len()), cause })?;
    }
    Ok(key)
}

/// The columns of a key that could not be read, for the error's text.
fn raw_text(row: &Row, first: usize, parts: usize) -> String {
    let hex = |bytes: &[u8]| brief(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
    let column = |at: usize| match row.try_get::<_, Option<Cell>>(at) {
        Ok(Some(Cell::Integer(value))) => value.to_string(),
        Ok(Some(Cell::Text(text))) => brief(&text.escape_debug().to_string()),
        Ok(Some(Cell::NoText(bytes))) => format!("a text of the bytes {}", hex(&bytes)),
        Ok(Some(Cell::Bytes(bytes))) => format!("a bytea of {} bytes, {}", bytes.len(), hex(&bytes)),
        Ok(Some(Cell::Uuid(bytes))) => crate::key::KeyValue::Uuid(bytes).to_string(),
        Ok(None) | Err(_) => "null".to_owned(),
    };
    let text = (first..first + parts).map(column).collect::<Vec<_>>().join(", ");
    if parts == 1 { text } else { format!("({text})") }
}

/// Whose statement failed: that says what a name belongs to which the server does not know. Its messages may be translated, and are not read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    /// The connection's: BEGIN, COMMIT, a setting.
    Connection,
    /// keepcount's, over this table.
    Table(&'a str),
    /// The application's own, of those that a write was given, from 0.
    Row(usize),
}

/// What a driver's error means to the caller, who was doing something to the totals of a counter.
pub(crate) fn failed_on(what: &str, counter: &Def, error: tokio_postgres::Error) -> Error {
    failed(Whose::Table(&counter.table_name()), &format!("{what} of counter {}", counter.full_name()), error)
}

/// What a driver's error means to the caller, other than one of a commit.
pub(crate) fn failed(whose: Whose<'_>, doing: &str, error: tokio_postgres::Error) -> Error {
    let doing = match whose {
        Whose::Row(at) => format!("{doing}, statement {} of the application's own", at + 1),
        _ => doing.to_owned(),
    };
    if let Some(reason) = busy(&error) {
        return Error::Busy { doing, reason, cause: error.into() };
    }
    let said = chain(&error);
    match (whose, error.code()) {
        // The server gives the name of a table that is absent in the message alone; in whatever language, it is the name.
        (Whose::Table(table), Some(&SqlState::UNDEFINED_TABLE)) if said.contains(table) => {
            let reason = format!("it is absent ({doing}: {said}); those of totals are made by PostgresStore::create");
            Error::Schema { table: table.to_owned(), reason }
        }
        (Whose::Table(table), _) if is_misfit(&error) => {
            Error::Schema { table: table.to_owned(), reason: format!("{said} ({doing})") }
        }
        _ => Error::Database { doing, cause: error.into() },
    }
}

/// Whether a table is not what a statement takes it for: it lacks a column, or has one of another type.
fn is_misfit(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => {
            let others = [SqlState::UNDEFINED_TABLE, SqlState::INSUFFICIENT_PRIVILEGE];
            code.code().starts_with("42") && !others.contains(code)
        }
        None => error.source().is_some_and(<dyn std::error::Error>::is::<WrongType>),
    }
}

const ENDED: &str = "the server ended the connection; open another, and try the whole transaction again";

/// Why nothing was applied and a retry helps, if so. Whoever lost the connection before a commit applied nothing either.
fn busy(error: &tokio_postgres::Error) -> Option<&'static str> {
    let Some(db) = error.as_db_error() else {
        let lost = error.is_closed() || error.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
        return lost.then_some("the connection was lost; open another, and try the whole transaction again");
    };
    if is_forgotten(error) {
        return Some(
            "the server has forgotten what was prepared, which is prepared anew; roll back and try it again whole",
        );
    }
    match *db.code() {
        SqlState::IN_FAILED_SQL_TRANSACTION => {
            Some("an earlier error has aborted the transaction; roll it back and try it again whole")
        }
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
        SqlState::TOO_MANY_CONNECTIONS | SqlState::OUT_OF_MEMORY => Some("the server has no room for it just now"),
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Some(ENDED),
        // Whatever it is, another of its timeouts say.
        _ if matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) => Some(ENDED),
        _ => None,
    }
}

/// What a commit's error means: unless the server itself says that it took the transaction back, nobody knows.
pub(crate) fn commit_failed(doing: &str, error: tokio_postgres::Error) -> Error {
    if is_refused(&error) { failed(Whose::Connection, doing, error) } else { unknown(doing, error) }
}

/// An error after which nobody knows whether it was applied.
pub(super) fn unknown(doing: &str, error: tokio_postgres::Error) -> Error {
    Error::Unknown { doing: doing.to_owned(), cause: error.into() }
}

/// Whether the server says so itself, and goes on: then what the statement belongs to is taken back.
pub(super) fn is_refused(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| db.parsed_severity() == Some(Severity::Error))
}

/// Whether a sum left 64 bits.
pub(crate) fn overflowed(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::NUMERIC_VALUE_OUT_OF_RANGE)
}
