//! The DDL of the tables of totals, offsets and locks, and of their catalogue.

use super::leaderboard;
#[cfg(feature = "sql")]
use super::table_descriptions;
use super::{Dialect, column_kind, columns, key_columns};
use crate::counter::{CounterId, CounterSpec};
use crate::error::{Error, Result};
use crate::schema::Schema;

/// The catalogue of the counters that a database has, by their full names.
///
/// Its column `identity` is random, so that a resume token of one database is recognized in
/// another. `ready` is 0 while a counter's totals lack rows from before its hooks ran everywhere.
pub const CATALOGUE: &str = "keepcount_counters";

/// The table of the last applied event of each stream.
pub const OFFSETS: &str = "keepcount_offsets";

/// The table of the reconciler's runs that can be resumed, with the progress of each as its token.
///
/// The token is as old as the totals in the same database, even after a backup was restored.
pub const RUNS: &str = "keepcount_runs";

/// The table of PostgreSQL's locks.
///
/// A transaction that changes what a rollup or leaderboard is made of locks a row of it until it
/// ends.
pub const LOCKS: &str = "keepcount_locks";

/// What a release changes in a database, as [`migration`] returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migration {
    /// The statements that create what is new, in order. Run them in one transaction.
    pub statements: Vec<String>,
    /// What the schema no longer has, in an order in which it can be dropped. Run these once no
    /// process of the previous release is left.
    pub drops: Vec<DropTotals>,
}

/// The statements that drop the totals of a counter, or the lines of a leaderboard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropTotals {
    /// The full name of the counter or leaderboard.
    pub name: String,
    /// The statements. Run them in one transaction.
    pub statements: Vec<String>,
}

/// The statements that create the catalogue and every counter's table **in a new database**,
/// before it has any rows.
///
/// Run them in one transaction. All counters are ready to be read then. In a database that
/// already has keepcount's tables the first statement fails, and none of the others makes a
/// counter ready.
///
/// If there are rows already, use [`ddl_pending_backfill`](ddl_pending_backfill); for a
/// later release, use [`migration`](migration). `SqliteStore::create` and
/// `PostgresStore::create` do all three.
///
/// # Examples
///
/// ```
/// use keepcount::sql::{self, Dialect};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
/// let script = sql::ddl(Dialect::Postgres, &SCHEMA).join(";\n");
/// assert!(script.contains(r#"CREATE TABLE "show_votes""#));
/// ```
#[must_use]
pub fn ddl(dialect: Dialect, schema: &Schema) -> Vec<String> {
    ddl_where(dialect, schema, true)
}

/// Like [`ddl`](ddl), for the first release of keepcount in a database **that already has
/// rows**: no counter is ready before its [backfill](crate::reconcile::Mode::Backfill).
///
/// # Examples
///
/// ```
/// use keepcount::sql::{self, Dialect};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
/// let [ready, pending] = [sql::ddl(Dialect::Sqlite, &SCHEMA), sql::ddl_pending_backfill(Dialect::Sqlite, &SCHEMA)];
/// assert_ne!(ready, pending);
/// ```
#[must_use]
pub fn ddl_pending_backfill(dialect: Dialect, schema: &Schema) -> Vec<String> {
    ddl_where(dialect, schema, false)
}

fn ddl_where(dialect: Dialect, schema: &Schema, ready: bool) -> Vec<String> {
    let tables = schema.counters().iter().flat_map(|spec| {
        let index =
            schema.child_parts(&spec.id()).map(|child| create_by_parent(dialect, spec, child));
        [create(dialect, spec)].into_iter().chain(index)
    });
    let leaderboards = schema
        .leaderboard_ids()
        .iter()
        .flat_map(|leaderboard| leaderboard::create(dialect, leaderboard));
    let counters = schema.counters().iter().map(|spec| listed(spec, ready));
    // A leaderboard is empty, like what it ranks; a backfill updates it.
    let lines = counters.chain(
        schema.leaderboard_ids().iter().map(|leaderboard| leaderboard::listed(leaderboard, true)),
    );
    let lines = lines.collect::<Vec<_>>();
    // If anything is already listed, this makes none of them ready. New tables are then listed
    // as pending, since it is unknown whether they have rows.
    let all = (!lines.is_empty()).then(|| enlist_first(&lines));
    let pending = lines.iter().map(|line| line.replace(", 1)", ", 0)")).collect::<Vec<_>>();
    let pending = all.is_some().then(|| format!("{} ON CONFLICT DO NOTHING", enlist_all(&pending)));
    // A catalogue that already exists is an error.
    let catalogue = create_catalogue(dialect).replacen("IF NOT EXISTS ", "", 1);
    std::iter::once(catalogue)
        .chain(tables)
        .chain(leaderboards)
        .chain([create_offsets(dialect), create_runs(dialect), create_unready(dialect)])
        .chain(create_locks(dialect))
        .chain(all)
        .chain(pending)
        .collect()
}

/// The statements **for a release** that adds, raises or drops counters or leaderboards, in a
/// database with the schema `before`.
///
/// What is new is not ready: [backfill](crate::reconcile::Mode::Backfill) a counter, rebuild a
/// leaderboard (docs/deploy.md). What is gone is listed separately, since you drop it later, if
/// at all. In a database that does not have the schema `before`, or where the statements
/// already ran, a statement fails.
///
/// Keep each release's schema together with its migration.
///
/// # Errors
///
/// [`Error::DefinitionConflict`] for a counter or leaderboard that both schemas have with
/// different keys, or with different storage: it needs another name or version. A counter that
/// becomes prunable is not such a difference.
///
/// # Examples
///
/// ```
/// use keepcount::sql::{self, Dialect};
/// use keepcount::{Counter, Schema};
///
/// const VOTES: Counter<i64> = Counter::new("show.votes");
/// const STARS: Counter<i64> = Counter::new("show.stars");
/// const BEFORE: Schema = Schema::new(&[VOTES.table()]);
/// const SCHEMA: Schema = Schema::new(&[VOTES.version(2).table(), STARS.table()]);
///
/// let migration = sql::migration(Dialect::Postgres, &SCHEMA, &BEFORE)?;
/// assert_eq!(migration.statements.len(), 4); // a table and a catalogue row for each
/// assert_eq!(migration.drops[0].name, "show.votes");
/// # Ok::<(), keepcount::Error>(())
/// ```
pub fn migration(dialect: Dialect, schema: &Schema, before: &Schema) -> Result<Migration> {
    let mut statements = Vec::new();
    for spec in schema.counters() {
        let name = spec.id().full_name();
        match before.counters().iter().find(|known| known.id().full_name() == name) {
            None => {
                statements.push(create(dialect, spec));
                statements.push(enlist(spec, false));
                statements.extend(take_over_cutoff(spec));
            }
            Some(known) if !known.id().same(&spec.id()) => {
                return Err(conflict(
                    spec.id().name(),
                    format!("{:?}", spec.id()),
                    format!("{:?}", known.id()),
                ));
            }
            Some(known) if spec.only_became_prunable(&known.storage_clause()) => {
                statements.push(replace(spec));
            }
            Some(known) if known.storage_clause() != spec.storage_clause() => {
                return Err(conflict(
                    spec.id().name(),
                    spec.storage_clause(),
                    known.storage_clause(),
                ));
            }
            Some(_) => {}
        }
    }
    for spec in schema.counters() {
        // Also for a counter that existed before it became a membership.
        let child =
            schema.child_parts(&spec.id()).filter(|_| before.child_parts(&spec.id()).is_none());
        statements.extend(child.map(|child| create_by_parent(dialect, spec, child)));
    }
    for leaderboard in schema.leaderboard_ids() {
        match before.leaderboard_ids().iter().find(|known| known.name() == leaderboard.name()) {
            None => {
                statements.extend(leaderboard::create(dialect, leaderboard));
                statements.push(enlist_all(&[leaderboard::listed(leaderboard, false)]));
            }
            Some(known)
                if leaderboard::create(dialect, known)
                    != leaderboard::create(dialect, leaderboard) =>
            {
                let [wanted, found] = [known, leaderboard]
                    .map(|leaderboard| leaderboard::create(dialect, leaderboard).concat());
                return Err(conflict(leaderboard.name(), found, wanted));
            }
            // Its lines have the old score until it is rebuilt.
            Some(known)
                if leaderboard::listed(known, false) != leaderboard::listed(leaderboard, false) =>
            {
                statements.push(leaderboard::enlist_anew(leaderboard, false));
            }
            Some(_) => {}
        }
    }
    Ok(Migration { statements, drops: drops(schema, before) })
}

/// Whether the schema has a counter or leaderboard of this full name.
pub(crate) fn lists(schema: &Schema, name: &str) -> bool {
    schema.counters().iter().any(|spec| spec.id().full_name() == name)
        || schema.leaderboard_ids().iter().any(|leaderboard| leaderboard.name() == name)
}

/// Leaderboards first, then rollups before what they sum.
fn drops(schema: &Schema, before: &Schema) -> Vec<DropTotals> {
    let leaderboards = before
        .leaderboard_ids()
        .iter()
        .map(|leaderboard| (leaderboard.name().to_owned(), leaderboard.table_name()));
    let counters = before.counters().iter().rev();
    let counters = counters.map(|spec| (spec.id().full_name().into_owned(), spec.table_name()));
    let gone = leaderboards.chain(counters).filter(|(name, _)| !lists(schema, name));
    gone.map(|(name, table)| {
        let statements = vec![
            format!(r#"DELETE FROM "{CATALOGUE}" WHERE "name" = '{name}'"#),
            format!(r#"DROP TABLE "{table}""#),
        ];
        DropTotals { name, statements }
    })
    .collect()
}

fn conflict(counter: &'static str, found: String, wanted: String) -> Error {
    Error::DefinitionConflict { counter, found, wanted, record: None }
}

pub(crate) fn create_catalogue(dialect: Dialect) -> String {
    let text = dialect.text();
    let (integer, cutoff, random, options) = match dialect {
        Dialect::Sqlite => ("INTEGER", "BLOB", "random()", " STRICT, WITHOUT ROWID"),
        Dialect::Postgres => {
            ("BIGINT", "BYTEA", "hashtextextended(gen_random_uuid()::text, 0)", "")
        }
    };
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{CATALOGUE}" ("name" {text} NOT NULL PRIMARY KEY, "key" {text} NOT NULL, "version" {integer} NOT NULL, "placement" {text} NOT NULL, "identity" {integer} NOT NULL DEFAULT ({random}), "cutoff" {cutoff}, "ready" {integer} NOT NULL DEFAULT 1){options}"#
    )
}

/// The index of what is not ready, which is usually empty. Every read of a total looks there first.
pub(crate) fn create_unready(_: Dialect) -> String {
    format!(
        r#"CREATE INDEX IF NOT EXISTS "keepcount_unready" ON "{CATALOGUE}" ("name") WHERE "ready" = 0"#
    )
}

pub(crate) fn create_offsets(dialect: Dialect) -> String {
    let (text, integer, options) =
        (dialect.text(), column_kind(dialect, None), dialect.table_options());
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{OFFSETS}" ("stream" {text} NOT NULL PRIMARY KEY, "last" {integer} NOT NULL){options}"#
    )
}

pub(crate) fn create_runs(dialect: Dialect) -> String {
    let (text, integer, options) =
        (dialect.text(), column_kind(dialect, None), dialect.table_options());
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{RUNS}" ("run" {integer} NOT NULL PRIMARY KEY, "token" {text} NOT NULL, "turn" {integer} NOT NULL){options}"#
    )
}

/// The tables of keepcount other than the catalogue, with their columns as [`table_descriptions::column`]
/// spells them.
#[cfg(feature = "sql")]
pub(crate) fn own_tables(dialect: Dialect) -> Vec<(&'static str, Vec<String>)> {
    let text =
        |name: &str, in_key| table_descriptions::column(dialect, name, dialect.text(), in_key);
    let number = |name: &str, in_key| {
        table_descriptions::column(dialect, name, column_kind(dialect, None), in_key)
    };
    let mut tables = vec![
        (OFFSETS, vec![text("stream", Some(1)), number("last", None)]),
        (RUNS, vec![number("run", Some(1)), text("token", None), number("turn", None)]),
    ];
    if dialect == Dialect::Postgres {
        let key = table_descriptions::column(dialect, "key", "BYTEA", Some(3));
        tables.push((
            LOCKS,
            vec![text("of", Some(1)), number("level", Some(2)), key, number("turns", None)],
        ));
    }
    tables
}

/// The table of PostgreSQL's locks; SQLite has one lock for the whole database.
pub(crate) fn create_locks(dialect: Dialect) -> Option<String> {
    let text = format!(
        r#"CREATE TABLE IF NOT EXISTS "{LOCKS}" ("of" TEXT COLLATE "C" NOT NULL, "level" BIGINT NOT NULL, "key" BYTEA NOT NULL, "turns" BIGINT NOT NULL, PRIMARY KEY ("of", "level", "key")) WITH (fillfactor = 80)"#
    );
    (dialect == Dialect::Postgres).then_some(text)
}

/// The table of a counter's totals. In SQLite it is WITHOUT ROWID: a key is stored once, and
/// writing totals does not change the application's `last_insert_rowid()`. In PostgreSQL its pages
/// have free room, so that a total that changes stays in its page and the index is not written.
pub(crate) fn create(dialect: Dialect, spec: &CounterSpec) -> String {
    let columns = columns(dialect, spec.id().parts());
    let columns = columns
        .iter()
        .map(|(name, kind)| format!("{name} {kind} NOT NULL"))
        .collect::<Vec<_>>()
        .join(", ");
    let keys = key_columns(spec.id().parts()).join(", ");
    let (table, total, options) =
        (spec.table_name(), column_kind(dialect, None), dialect.table_options());
    format!(
        r#"CREATE TABLE "{table}" ({columns}, "total" {total} NOT NULL, PRIMARY KEY ({keys})){options}"#
    )
}

/// The name of the index of a membership's table by parent, from which a rollup is recounted.
pub(crate) fn by_parent(spec: &CounterSpec) -> String {
    format!("{}_by_parent", spec.table_name())
}

/// The index of the membership's key, parent first, with its total: everything that a recount reads
/// of it.
pub(crate) fn create_by_parent(_: Dialect, spec: &CounterSpec, child: usize) -> String {
    let columns = key_columns(spec.id().parts());
    let (child, parent) = columns.split_at_checked(child).unwrap_or_default();
    let columns = [parent, child].concat().join(", ");
    format!(
        r#"CREATE INDEX IF NOT EXISTS "{}" ON "{}" ({columns}, "total")"#,
        by_parent(spec),
        spec.table_name()
    )
}

/// Inserts a counter into the catalogue.
pub(crate) fn enlist(spec: &CounterSpec, ready: bool) -> String {
    enlist_all(&[listed(spec, ready)])
}

/// The catalogue's values for a counter.
fn listed(spec: &CounterSpec, ready: bool) -> String {
    listed_as(&spec.id().full_name(), &spec.id(), &spec.storage_clause(), ready)
}

/// The catalogue's values for a counter or leaderboard. Names consist of a-z, 0-9, _ and ., so
/// nothing needs quoting.
pub(crate) fn listed_as(name: &str, id: &CounterId, placement: &str, ready: bool) -> String {
    let (key, version, ready) = (id.parts(), id.version(), i64::from(ready));
    format!("('{name}', '{key}', {version}, '{placement}', {ready})")
}

/// Inserts counters and leaderboards into the catalogue.
pub(crate) fn enlist_all(lines: &[String]) -> String {
    format!(
        r#"INSERT INTO "{CATALOGUE}" ("name", "key", "version", "placement", "ready") VALUES {}"#,
        lines.join(", ")
    )
}

/// The same, if the catalogue is empty.
fn enlist_first(lines: &[String]) -> String {
    enlist_all(lines).replacen(" VALUES ", " SELECT * FROM (VALUES ", 1)
        + &format!(r#") AS l WHERE NOT EXISTS (SELECT 1 FROM "{CATALOGUE}")"#)
}

/// Gives a new prunable rollup the cutoff of what it sums: below it there is nothing left to sum.
pub(crate) fn take_over_cutoff(spec: &CounterSpec) -> Option<String> {
    let rollup = spec.rollup().filter(|_| spec.is_prunable())?;
    let (name, base) = (spec.id().full_name(), rollup.base().full_name());
    Some(format!(
        r#"UPDATE "{CATALOGUE}" AS c SET "cutoff" = (SELECT f."cutoff" FROM "{CATALOGUE}" AS f WHERE f."name" = '{base}') WHERE c."name" = '{name}'"#
    ))
}

/// Updates a counter's storage clause in the catalogue.
pub(crate) fn replace(spec: &CounterSpec) -> String {
    let (storage_clause, name) = (spec.storage_clause(), spec.id().full_name());
    format!(
        r#"UPDATE "{CATALOGUE}" AS c SET "placement" = '{storage_clause}' WHERE c."name" = '{name}'"#
    )
}
