//! The tables of totals, marks and locks, and the catalogue of them.

use super::{Dialect, column_kind, columns, key_columns};
use crate::board;
use crate::counter::{Def, Placed};
use crate::layout::Layout;

/// The catalogue of the counters that a database has, by their full names. Its column `identity` is random, so that a resume token of one
/// database is known in another; `ready` is 0 while a counter's totals lack rows from before its hooks ran everywhere.
pub const CATALOGUE: &str = "keepcount_counters";

/// The table of the last event of each stream that was applied.
pub const MARKS: &str = "keepcount_marks";

/// The table of PostgreSQL's locks: who changes what a rollup or board is made of holds a row of it until the transaction ends.
pub const LOCKS: &str = "keepcount_locks";

impl Layout {
    /// The statements that make the catalogue and every counter's table, for the first migration; run them in one transaction.
    /// `SqliteStore::create` and `PostgresStore::create` do the same, and leave what is there.
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
        catalogue
            .chain(tables)
            .chain(boards)
            .chain([create_marks(dialect), create_unready(dialect)])
            .chain(create_locks(dialect))
            .collect()
    }
}

pub(crate) fn create_catalogue(dialect: Dialect) -> String {
    let text = dialect.text();
    let (integer, cut, random, ends) = match dialect {
        Dialect::Sqlite => ("INTEGER", "ANY", "random()", " STRICT, WITHOUT ROWID"),
        Dialect::Postgres => ("BIGINT", "BYTEA", "hashtextextended(gen_random_uuid()::text, 0)", ""),
    };
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{CATALOGUE}" ("name" {text} NOT NULL PRIMARY KEY, "key" {text} NOT NULL, "version" {integer} NOT NULL, "placement" {text} NOT NULL, "identity" {integer} NOT NULL DEFAULT ({random}), "cut" {cut}, "ready" {integer} NOT NULL DEFAULT 1){ends}"#
    )
}

/// The index of what is not ready, most often empty: whoever reads a total looks there first.
pub(crate) fn create_unready(_: Dialect) -> String {
    format!(r#"CREATE INDEX IF NOT EXISTS "keepcount_unready" ON "{CATALOGUE}" ("name") WHERE "ready" = 0"#)
}

pub(crate) fn create_marks(dialect: Dialect) -> String {
    let (text, integer, ends) = (dialect.text(), column_kind(dialect, None), dialect.table_ends());
    format!(
        r#"CREATE TABLE IF NOT EXISTS "{MARKS}" ("stream" {text} NOT NULL PRIMARY KEY, "last" {integer} NOT NULL){ends}"#
    )
}

/// PostgreSQL's locks; SQLite has one for the whole database.
pub(crate) fn create_locks(dialect: Dialect) -> Option<String> {
    let text = format!(
        r#"CREATE TABLE IF NOT EXISTS "{LOCKS}" ("of" TEXT COLLATE "C" NOT NULL, "level" BIGINT NOT NULL, "key" BYTEA NOT NULL, "turns" BIGINT NOT NULL, PRIMARY KEY ("of", "level", "key")) WITH (fillfactor = 80)"#
    );
    (dialect == Dialect::Postgres).then_some(text)
}

/// In SQLite WITHOUT ROWID: a key is stored once, and writing totals leaves the application's `last_insert_rowid()` alone. In PostgreSQL with room in
/// its pages, so that a total that changes stays in its page and leaves the index alone.
pub(crate) fn create(dialect: Dialect, placed: &Placed) -> String {
    let columns = columns(dialect, placed.def().parts());
    let columns = columns.iter().map(|(name, kind)| format!("{name} {kind} NOT NULL")).collect::<Vec<_>>().join(", ");
    let keys = key_columns(placed.def().parts()).join(", ");
    let (table, total, ends) = (placed.table_name(), column_kind(dialect, None), dialect.table_ends());
    format!(r#"CREATE TABLE "{table}" ({columns}, "total" {total} NOT NULL, PRIMARY KEY ({keys})){ends}"#)
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
