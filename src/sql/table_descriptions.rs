//! Queries that read a database's own description of its tables as texts, and the expected texts.

use super::{CATALOGUE, Dialect, Query, Value, columns, quote};
use crate::key::{KeyPart, KeyParts};

/// The kind of object that a name stands for: `table`, `index` or something else; no row if there
/// is none.
pub(crate) fn kind_of(dialect: Dialect, name: &str) -> Query<'_> {
    about(
        dialect,
        name,
        match dialect {
            // Names are case-insensitive.
            Dialect::Sqlite => "SELECT type FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE",
            Dialect::Postgres => {
                "SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'i' THEN 'index' ELSE 'relation of another kind' END
                 FROM pg_class AS c WHERE c.oid = to_regclass($1)"
            }
        },
    )
}

/// Each column of a table, in order, as [`column`] spells it.
pub(crate) fn columns_of(dialect: Dialect, table: &str) -> Query<'_> {
    about(
        dialect,
        table,
        match dialect {
            Dialect::Sqlite => {
                "SELECT name || ' ' || type || iif(\"notnull\" OR pk > 0, ' NOT NULL', '') || iif(pk > 0, ' PRIMARY KEY ' || pk, '')
                 FROM pragma_table_xinfo(?1) ORDER BY cid"
            }
            Dialect::Postgres => {
                "SELECT a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
                 || coalesce((SELECT ' COLLATE \"' || c.collname || '\"' FROM pg_collation AS c WHERE c.oid = a.attcollation), '')
                 || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
                 || coalesce((SELECT ' PRIMARY KEY ' || array_position(i.indkey::int2[], a.attnum) + 1 FROM pg_index AS i
                              WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)), '')
                 FROM pg_attribute AS a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
            }
        },
    )
}

/// A NOT NULL column with its declared type and its position in the primary key, from 1.
pub(crate) fn column(dialect: Dialect, name: &str, kind: &str, in_key: Option<usize>) -> String {
    let kind = match (dialect, kind.split_once(' ')) {
        (Dialect::Sqlite, _) => kind.to_owned(),
        (Dialect::Postgres, None) => kind.to_lowercase(),
        (Dialect::Postgres, Some(_)) => r#"text COLLATE "C""#.to_owned(),
    };
    let key = in_key.map(|at| format!(" PRIMARY KEY {at}")).unwrap_or_default();
    format!("{} {kind} NOT NULL{key}", name.replace('"', ""))
}

/// The columns of the table of a counter or leaderboard: those of its key, and the last.
pub(crate) fn keyed(dialect: Dialect, parts: KeyParts, (name, kind): (&str, &str)) -> Vec<String> {
    let keys = columns(dialect, parts).into_iter().zip(1..);
    let keys = keys.map(|((name, kind), at)| column(dialect, &name, kind, Some(at)));
    keys.chain([column(dialect, name, kind, None)]).collect()
}

/// Everything that could skip or change writes to a table, or that does not sort its texts by
/// bytes, as one text each. With `texts`, includes those that concern texts in keys.
pub(crate) fn faults(
    dialect: Dialect,
    table: &str,
    texts: bool,
) -> impl Iterator<Item = Query<'_>> {
    let faults = match dialect {
        Dialect::Sqlite => SQLITE_FAULTS,
        Dialect::Postgres => POSTGRES_FAULTS,
    };
    faults
        .iter()
        .filter(move |(of_texts, _)| texts || !of_texts)
        .map(move |(_, text)| about(dialect, table, text))
}

/// Whether keys of these parts include texts.
pub(crate) fn has_texts(parts: KeyParts) -> bool {
    parts.as_slice().contains(&KeyPart::Text)
}

/// In PostgreSQL, a text if the catalogue is in another schema than the first of the search path,
/// where tables would be created.
pub(crate) fn elsewhere() -> Query<'static> {
    about(
        Dialect::Postgres,
        CATALOGUE,
        "SELECT 'it is in schema ' || n.nspname || ', and what is missing would be made in ' || current_schema()
            || ', the first of search_path; put ' || n.nspname || ' there for this call'
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1) AND n.nspname <> current_schema()",
    )
}

fn about<'n>(dialect: Dialect, name: &'n str, text: &str) -> Query<'n> {
    let name = match dialect {
        Dialect::Sqlite => name.into(),
        Dialect::Postgres => quote(name).into(),
    };
    Query::new(text, vec![Value::Text(name)])
}

const SQLITE_FAULTS: &[(bool, &str)] = &[
    (
        false,
        "SELECT 'it is not STRICT, so a total beyond 64 bits would turn into a float'
         FROM pragma_table_list(?1) WHERE schema = 'main' AND NOT strict",
    ),
    (
        false,
        "SELECT 'it is not WITHOUT ROWID, so writing totals would change last_insert_rowid()'
         FROM pragma_table_list(?1) WHERE schema = 'main' AND NOT wr",
    ),
    (
        false,
        "SELECT 'its trigger ' || name || ' could skip or change what is written; it must have none'
         FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE",
    ),
    (
        false,
        "SELECT 'a temporary ' || type || ' of its name hides it'
         FROM sqlite_temp_schema WHERE name = ?1 COLLATE NOCASE",
    ),
    (
        true,
        "SELECT 'its key is collated ' || x.coll || ', not BINARY'
         FROM pragma_index_list(?1) AS l, pragma_index_xinfo(l.name) AS x
         WHERE l.origin = 'pk' AND x.key AND x.coll <> 'BINARY'",
    ),
    (
        true,
        // Streams and runs are looked up, not sorted.
        "SELECT 'the database is encoded in ' || encoding || ', where texts do not sort as UTF-8'
         FROM pragma_encoding WHERE encoding <> 'UTF-8' AND ?1 NOT IN ('keepcount_offsets', 'keepcount_runs')",
    ),
];

const POSTGRES_FAULTS: &[(bool, &str)] = &[(
    false,
    "SELECT 'its trigger ' || t.tgname || ' could skip or change what is written; it must have none'
     FROM pg_trigger AS t WHERE t.tgrelid = to_regclass($1) AND NOT t.tgisinternal
     UNION ALL SELECT 'its rule ' || r.rulename || ' could skip or change what is written; it must have none'
     FROM pg_rewrite AS r WHERE r.ev_class = to_regclass($1)
     UNION ALL SELECT 'it has row security, which could hide totals'
     FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relrowsecurity
     UNION ALL SELECT CASE c.relpersistence WHEN 't' THEN 'it is temporary, so that other sessions do not see its totals'
                      ELSE 'it is unlogged, so that its totals would be gone after a crash, and their rows not' END
     FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relpersistence <> 'p'
     UNION ALL SELECT 'it has children, whose rows would be read as its totals'
     FROM pg_class AS c WHERE c.oid = to_regclass($1) AND c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid)
     UNION ALL SELECT 'it is in schema ' || c.relnamespace::regnamespace || ', and keepcount_counters in ' || k.relnamespace::regnamespace
     FROM pg_class AS c, pg_class AS k WHERE c.oid = to_regclass($1) AND k.oid = to_regclass('keepcount_counters') AND c.relnamespace <> k.relnamespace",
)];
