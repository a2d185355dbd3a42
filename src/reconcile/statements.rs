//! The SQL of a source: pages of sums from an index in key order, rows, keys, samples; pure text.

use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::{KeyPart, KeyParts};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Value, quote};

/// What a source reads, as its author said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    from: Rows,
    key: Vec<String>,
    pub(super) amount: Option<String>,
    pub(super) filter: Option<String>,
    pub(super) columns: String,
    /// The last part of the key is the last column divided by this, rounded down: an epoch.
    pub(super) per: Option<i64>,
    /// The table that the last parts of the key name a row of, and its columns.
    pub(super) parent: Option<(Name, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rows {
    Table(Name),
    Query(String),
}

impl Target {
    pub(super) fn table(table: &str, key: &[&str]) -> Self {
        Self::over(Rows::Table(Name::new(table)), key)
    }

    /// The tables that it names, the rows' first, of which the database says where they are.
    pub(super) fn names(&mut self) -> impl Iterator<Item = &mut Name> {
        let rows = match &mut self.from {
            Rows::Table(name) => Some(name),
            Rows::Query(_) => None,
        };
        rows.into_iter().chain(self.parent.as_mut().map(|(name, _)| name))
    }

    /// The index that pages of a table are read from, as one would make it.
    pub(super) fn wanted_index(&self, dialect: Dialect, counter: &CounterId) -> Option<String> {
        let parts = counter.parts();
        let columns = self.key.iter().zip(parts.as_slice());
        let keys = columns.map(|(column, part)| collated(dialect, column.trim_start_matches("r."), *part));
        match &self.from {
            Rows::Table(name) if !self.key.is_empty() => {
                Some(format!("{} ({})", name.shown(dialect), keys.collect::<Vec<_>>().join(", ")))
            }
            _ => None,
        }
    }

    pub(super) fn query(query: &str, key: &[&str]) -> Self {
        Self::over(Rows::Query(query.to_owned()), key)
    }

    /// Refuses a source that cannot be this counter's.
    pub(super) fn check(&self, schema: &Schema, counter: &CounterId, by_tally: bool) -> Result<()> {
        if let Some(rollup) = schema.spec(counter)?.rollup() {
            let reason = format!("it is the sum of {}, and has no rows of its own", rollup.base().full_name());
            return Err(Error::source(counter, None, reason));
        }
        if self.per.is_some() && !by_tally {
            return Err(Error::source(counter, None, "a key by epoch is recounted by_tally"));
        }
        let mut known = self.clone();
        let wrong = known.names().find(|name| !name.is_name()).map(|name| name.text.clone());
        wrong.map_or(Ok(()), |text| {
            let reason = format!("{text} names no table: a name, or a schema's, a dot, and a name");
            Err(Error::source(counter, None, reason))
        })
    }

    /// Whether rows come out of an index of a table; a query's come as they may.
    #[cfg(feature = "postgres")]
    pub(super) fn is_indexed(&self) -> bool {
        matches!(self.from, Rows::Table(_)) && !self.key.is_empty()
    }

    /// Key columns carry the table's name: SQLite takes a quoted name alone that no column has for a text.
    fn over(from: Rows, key: &[&str]) -> Self {
        let key = key.iter().map(|column| format!("r.{}", quote(column))).collect();
        Self { from, key, amount: None, filter: None, columns: String::new(), per: None, parent: None }
    }

    /// The statements for a counter.
    ///
    /// Every use of a text column names the collation that sorts bytes: a column declared otherwise would fold keys together, or sort them as a
    /// language does. The filter is wrapped in IS TRUE, which makes null false, and keeps SQLite from reading by an index on the filter and
    /// sorting each page. Rows whose last part is before `cutoff` are as rows without a key.
    pub(super) fn statements(
        &self,
        dialect: Dialect,
        counter: &CounterId,
        cutoff: Option<&Value<'_>>,
    ) -> Result<Statements> {
        let (parts, yes) = (counter.parts(), dialect.everything());
        let (ordered, keys) = self.key_columns(dialect, counter)?;
        let (key, order) = (keys.join(", "), ordered.join(", "));
        let from = match &self.from {
            Rows::Table(name) => format!("{} AS r", name.quoted()),
            Rows::Query(query) => format!("({query}) AS r"),
        };
        let amount = self.amount.as_ref().map_or_else(|| "1".to_owned(), |amount| format!("({amount})"));
        let counts = self.filter.as_ref().map_or_else(|| yes.to_owned(), |filter| format!("(({filter}) IS TRUE)"));
        let sums = Self::sums(dialect, self.amount.as_deref());

        let is_kept = cutoff.zip(keys.last()).map(|(cutoff, last)| format!("{last} >= {}", literal(dialect, cutoff)));
        let not_null = |key: &String| format!("{key} IS NOT NULL");
        let has_key = all(dialect, ordered.iter().map(not_null).chain(is_kept.clone()));
        let counts_of_row = all(dialect, [counts.clone()].into_iter().chain(ordered.iter().map(not_null)));
        let lacks_key = ordered.iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        // What is behind a value is not null; to say so once more costs PostgreSQL a third of a page's time.
        let said = usize::from(dialect == Dialect::Postgres);
        let rest = ordered.iter().skip(said).map(not_null).chain(is_kept.clone());
        let behind = all(dialect, self.behind(dialect, &ordered).into_iter().chain(rest));
        let is_key = self.is_key(dialect, &ordered, |at| dialect.param(at));
        let (selected, grouped, sorted) = if keys.is_empty() {
            (String::new(), String::new(), String::new())
        } else {
            (format!("{key}, "), format!(" GROUP BY {key} ORDER BY {key}"), format!(" ORDER BY {order}"))
        };
        let descending = ordered.iter().map(|key| format!("{key} DESC")).collect::<Vec<_>>().join(", ");
        let (first, after) = (dialect.param(1), dialect.param(keys.len() + 1));
        let row = format!("{}{}", self.columns, if keys.is_empty() { String::new() } else { format!(", {key}") });
        let of_sample = if dialect == Dialect::Postgres { format!("{amount}::text") } else { amount.clone() };
        let sample = format!("SELECT {row}, {of_sample}, {counts_of_row} FROM {from}");
        let many = dialect == Dialect::Postgres && !keys.is_empty();
        let page = |condition: &str, limit: &str| {
            if many {
                let sums = Self::sums(dialect, self.amount.as_ref().map(|_| "o.n"));
                // A column that nobody reads costs half as much again as the rest of the page.
                let amount = self.amount.as_ref().map_or_else(String::new, |_| format!(", {amount} AS n"));
                let rows = format!("{amount} FROM {from} WHERE {condition} AND {counts}{sorted}");
                return ordered_page(&keys, &sums, &rows, limit);
            }
            format!("SELECT {selected}{sums} FROM {from} WHERE {condition} AND {counts}{grouped} LIMIT {limit}")
        };
        let (sums_of_keys, rows_of_keys) = if many {
            let is_key = self.is_key(dialect, &ordered, |at| format!("k.k_{at}"));
            let by_key = all(dialect, [is_key].into_iter().chain(is_kept));
            let sums = format!("SELECT {sums} FROM {from} WHERE {by_key} AND {counts}");
            let rows = format!("SELECT {row} FROM {from} WHERE {by_key} OFFSET 0");
            (of_each_key(parts, "k.*, o.*", &sums), of_each_key(parts, "o.*", &rows))
        } else {
            let by_key = all(dialect, [is_key.clone()].into_iter().chain(is_kept));
            let sums = format!("SELECT {selected}{sums} FROM {from} WHERE {by_key} AND {counts}{grouped}");
            (sums, format!("SELECT {row} FROM {from} WHERE {by_key}"))
        };
        let backwards = if keys.is_empty() { String::new() } else { format!(" ORDER BY {descending}") };
        Ok(Statements {
            sums_first: page(&has_key, &first),
            sums_next: page(&behind, &after),
            sums_of_keys,
            rows_first: format!("SELECT {row} FROM {from} WHERE {has_key}{sorted}"),
            rows_next: format!("SELECT {row} FROM {from} WHERE {behind}{sorted}"),
            rows_of_keys,
            key_first: format!("SELECT {} FROM {from} WHERE {has_key} AND {counts}{sorted} LIMIT 1", or(&key, "1")),
            key_next: format!("SELECT {} FROM {from} WHERE {behind} AND {counts}{sorted} LIMIT 1", or(&key, "1")),
            any: format!("SELECT 1 FROM {from} WHERE {has_key} AND {counts} LIMIT 1"),
            sample_all: sample.clone(),
            sample_first: format!("{sample} WHERE {has_key}{sorted} LIMIT {first}"),
            sample_last: format!("{sample} WHERE {has_key}{backwards} LIMIT {first}"),
            sample_without_key: (!keys.is_empty()).then(|| format!("{sample} WHERE {lacks_key} LIMIT {first}")),
            sample_of_key: format!("{sample} WHERE {is_key} LIMIT {after}"),
            amount: self.amount.as_ref().map(|amount| format!("SELECT {amount} FROM {from}")),
            parent: self.parent.as_ref().map(|(table, columns)| parent(dialect, counter, table, columns)),
        })
    }

    /// What an index has in order; and the key's parts, of which the last may be made of its column.
    fn key_columns(&self, dialect: Dialect, counter: &CounterId) -> Result<(Vec<String>, Vec<String>)> {
        let parts = counter.parts();
        if parts.len() != self.key.len() {
            let reason = format!(
                "the source names {} key columns, the counter's key ({parts}) has {} parts",
                self.key.len(),
                parts.len()
            );
            return Err(Error::source(counter, None, reason));
        }
        let columns = self.key.iter().zip(parts.as_slice());
        let ordered: Vec<String> = columns.map(|(column, part)| collated(dialect, column, *part)).collect();
        let mut keys = ordered.clone();
        if let (Some(per), Some(last)) = (self.per, keys.last_mut()) {
            *last = match dialect {
                Dialect::Sqlite => format!("({last} / {per} - ({last} % {per} < 0))"),
                Dialect::Postgres => format!("({last} / {per} - ({last} % {per} < 0)::int)"),
            };
        }
        Ok((ordered, keys))
    }

    /// How many rows; and, where they do not all add 1, what tells that amounts are no integers, and their sum.
    fn sums(dialect: Dialect, amount: Option<&str>) -> String {
        match (amount, dialect) {
            (None, _) => "count(*)".to_owned(),
            (Some(amount), Dialect::Sqlite) => {
                format!("count(*), sum(typeof({amount}) NOT IN ('integer', 'null')), sum({amount})")
            }
            // Of integers a numeric, whose text has no point; beyond 64 bits it is still right.
            (Some(amount), Dialect::Postgres) => format!("count(*), sum({amount})::text"),
        }
    }

    /// That a row is behind the key given by the first parameters; nothing without key columns.
    fn behind(&self, dialect: Dialect, ordered: &[String]) -> Option<String> {
        let param = |at: usize| match dialect {
            // The collation stands with the parameters: a column that carries one is no column to SQLite's planner of row values, which would
            // then read every page from the index's first row on.
            Dialect::Sqlite if self.is_text(at, ordered) => format!("{} COLLATE BINARY", dialect.param(at)),
            _ => dialect.param(at),
        };
        let (last, prefixes) = ordered.split_last()?;
        let at = ordered.len();
        let mut params: Vec<String> = (1..at).map(param).collect();
        let columns = match dialect {
            Dialect::Sqlite => self.key.join(", "),
            Dialect::Postgres => ordered.join(", "),
        };
        Some(match (self.per, dialect) {
            (None, _) if prefixes.is_empty() => format!("{last} > {}", dialect.param(1)),
            (None, _) => {
                params.push(param(at));
                format!("({columns}) > ({})", params.join(", "))
            }
            (Some(per), Dialect::Sqlite) => {
                params.push(format!("({} + 1) * {per}", dialect.param(at)));
                format!("({columns}) >= ({})", params.join(", "))
            }
            (Some(per), Dialect::Postgres) => {
                params.push(second(&dialect.param(at), per, Second::Last));
                format!("({columns}) > ({})", params.join(", "))
            }
        })
    }

    fn is_text(&self, index: usize, ordered: &[String]) -> bool {
        self.key.get(index - 1) != ordered.get(index - 1)
    }

    /// That the parts of the key are these values.
    fn is_key(&self, dialect: Dialect, ordered: &[String], value: impl Fn(usize) -> String) -> String {
        let is_part = |(column, at): (&String, usize)| match (self.per, dialect) {
            (Some(per), Dialect::Sqlite) if at == self.key.len() => {
                let value = value(at);
                format!("{column} >= {value} * {per} AND {column} < ({value} + 1) * {per}")
            }
            (Some(per), Dialect::Postgres) if at == self.key.len() => {
                let value = value(at);
                let (first, last) = (second(&value, per, Second::First), second(&value, per, Second::Last));
                format!("{column} >= {first} AND {column} <= {last}")
            }
            _ => format!("{column} = {}", value(at)),
        };
        all(dialect, ordered.iter().zip(1..).map(is_part))
    }
}

/// A table's name, with its schema's where that is said; and the schema that the database found it in, which all statements name: what stands for a
/// bare name may change between two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// As its author wrote it.
    pub(super) text: String,
    pub(super) schema: Option<String>,
    pub(super) table: String,
    pub(super) found: Option<String>,
}

impl Name {
    /// `votes`, `app.votes`, `app."a.dot"`: each as it is, without folding case.
    pub(super) fn new(text: &str) -> Self {
        let (first, second) = match Self::part(text) {
            (first, Some(rest)) => match Self::part(rest) {
                (second, None) => (Some(first), second),
                // None that is too long.
                (_, Some(_)) => (Some(String::new()), String::new()),
            },
            (table, None) => (None, table),
        };
        Self { text: text.to_owned(), schema: first, table: second, found: None }
    }

    /// The part before the first dot that is not in quotes, and what is behind it.
    fn part(text: &str) -> (String, Option<&str>) {
        if let Some((part, behind)) = text.strip_prefix('"').and_then(Self::quoted_part) {
            match behind.strip_prefix('.') {
                Some(behind) => return (part, Some(behind)),
                None if behind.is_empty() => return (part, None),
                None => {}
            }
        }
        match text.split_once('.') {
            Some((part, behind)) => (part.to_owned(), Some(behind)),
            None => (text.to_owned(), None),
        }
    }

    /// What stands before the closing quote, and what behind it.
    fn quoted_part(text: &str) -> Option<(String, &str)> {
        let (mut part, mut rest) = (String::new(), text);
        loop {
            let (before, behind) = rest.split_once('"')?;
            part.push_str(before);
            let Some(more) = behind.strip_prefix('"') else { return Some((part, behind)) };
            part.push('"');
            rest = more;
        }
    }

    fn is_name(&self) -> bool {
        !self.table.is_empty() && self.schema.as_ref().is_none_or(|schema| !schema.is_empty())
    }

    /// As SQL names it.
    pub(super) fn quoted(&self) -> String {
        let schema = self.found.as_ref().or(self.schema.as_ref());
        schema.map_or_else(|| quote(&self.table), |schema| format!("{}.{}", quote(schema), quote(&self.table)))
    }

    /// As an index is made on it: SQLite takes no schema there.
    fn shown(&self, dialect: Dialect) -> String {
        match (&self.schema, dialect) {
            (Some(schema), Dialect::Postgres) => format!("{}.{}", quote(schema), quote(&self.table)),
            _ => quote(&self.table),
        }
    }

    /// The error of a name that nothing has, or several; `schemas` are those that have it and a bare name reaches, `others` the rest that have it.
    pub(super) fn find(&mut self, counter: &CounterId, schemas: &[String], others: &[String]) -> Result<()> {
        let (text, whose) = (&self.text, format!("source of counter {}", counter.full_name()));
        match schemas {
            [schema] => {
                self.found = Some(schema.clone());
                Ok(())
            }
            [] => {
                let elsewhere = match others {
                    [] => String::new(),
                    others => format!("; one is in {}", others.join(", ")),
                };
                let reason = format!("no table or view of this name is there{elsewhere}; the {whose} names it");
                Err(Error::SchemaMismatch { table: text.clone(), reason })
            }
            [first, ..] => {
                let reason = format!(
                    "{text} is in {}; say which is meant, as in {first}.{text}: one would hide the other",
                    schemas.join(" and in ")
                );
                Err(Error::source(counter, None, reason))
            }
        }
    }
}

/// PostgreSQL's page of sums over rows that come in key order. Where the key's columns have the primary key among them, it would group by that alone, and
/// then sort; not what comes out of a query.
fn ordered_page(keys: &[String], sums: &str, rows: &str, limit: &str) -> String {
    let names = names(keys.len());
    let columns: Vec<String> = keys.iter().zip(1..).map(|(key, at)| format!("{key} AS k_{at}")).collect();
    let columns = columns.join(", ");
    format!("SELECT {names}, {sums} FROM (SELECT {columns}{rows}) AS o GROUP BY {names} ORDER BY {names} LIMIT {limit}")
}

/// PostgreSQL's query for each of many keys, in one statement: it finds them one by one, whatever its planner thinks of the table.
pub(super) fn of_each_key(parts: KeyParts, what: &str, of_key: &str) -> String {
    let (arrays, names) = (sql::arrays(parts), names(parts.len()));
    format!("SELECT {what} FROM unnest({arrays}) AS k({names}), LATERAL ({of_key}) AS o")
}

/// What the parts of a key are called here.
fn names(parts: usize) -> String {
    (1..=parts).map(|at| format!("k_{at}")).collect::<Vec<_>>().join(", ")
}

/// Which second of an epoch.
#[derive(Clone, Copy)]
enum Second {
    First,
    Last,
}

/// PostgreSQL's first or last second of an epoch, or the nearest that a column can hold: no epoch fails to be asked for.
fn second(epoch: &str, per: i64, which: Second) -> String {
    let second = match which {
        Second::First => format!("{epoch}::numeric * {per}"),
        Second::Last => format!("({epoch}::numeric + 1) * {per} - 1"),
    };
    format!("greatest(least({second}, {}), {})::bigint", i64::MAX, i64::MIN)
}

/// Looks for the row that the last parts of a key name. SQLite: finds it, by the parts as parameters. PostgreSQL: of many keys, gives those that name
/// none.
fn parent(dialect: Dialect, counter: &CounterId, table: &Name, columns: &[String]) -> String {
    let parts = counter.parts();
    let first = parts.len().saturating_sub(columns.len()) + 1;
    let is = |value: &dyn Fn(usize) -> String| {
        let terms = columns.iter().enumerate().map(|(at, column)| format!("p.{} = {}", quote(column), value(at)));
        format!("SELECT 1 FROM {} AS p WHERE {}", table.quoted(), all(dialect, terms))
    };
    match dialect {
        Dialect::Sqlite => is(&|at| dialect.param(at + 1)),
        Dialect::Postgres => {
            let names = names(parts.len());
            let found = is(&|at| format!("k.k_{}", first + at));
            let arrays = sql::arrays(parts);
            format!("SELECT {names} FROM unnest({arrays}) AS k({names}) WHERE NOT EXISTS ({found})")
        }
    }
}

/// A value as SQL says it.
fn literal(dialect: Dialect, value: &Value<'_>) -> String {
    match (value, dialect) {
        (Value::Integer(value), _) => value.to_string(),
        (Value::Text(text), _) => format!("'{}'", text.replace('\'', "''")),
        (Value::Blob(bytes) | Value::Uuid(bytes), Dialect::Sqlite) => {
            format!("x'{:032x}'", u128::from_be_bytes(*bytes))
        }
        (Value::Blob(bytes), Dialect::Postgres) => format!("'\\x{:032x}'::bytea", u128::from_be_bytes(*bytes)),
        (Value::Uuid(bytes), Dialect::Postgres) => format!("'{:032x}'::uuid", u128::from_be_bytes(*bytes)),
        // A cutoff is one value.
        (Value::Bytes(_) | Value::Integers(_) | Value::Texts(_) | Value::Blobs(_) | Value::Uuids(_), _) => {
            "NULL".to_owned()
        }
    }
}

/// The statements of one counter's source. `_first` starts at the first key, `_next` behind the key given as the first parameters; samples take
/// their number of rows last, and give columns, key, amount, and whether the row counts for a key.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) sums_first: String,
    pub(super) sums_next: String,
    /// In SQLite of the key given as the parameters, in PostgreSQL of all keys in them, as arrays; so too `rows_of_keys`.
    pub(super) sums_of_keys: String,
    pub(super) rows_first: String,
    pub(super) rows_next: String,
    pub(super) rows_of_keys: String,
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(super) key_first: String,
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(super) key_next: String,
    pub(super) any: String,
    /// Every row, as a sample gives it.
    pub(super) sample_all: String,
    pub(super) sample_first: String,
    pub(super) sample_last: String,
    pub(super) sample_without_key: Option<String>,
    pub(super) sample_of_key: String,
    /// What each row adds, where they do not all add 1.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(super) amount: Option<String>,
    /// Looks for rows that the last parts of keys name, where the source says of which table.
    pub(super) parent: Option<String>,
}

impl Statements {
    /// One statement of each shape, to find what SQLite cannot prepare before anything is run.
    #[cfg(feature = "sqlite")]
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        [&self.sums_next, &self.rows_next, &self.sample_of_key].into_iter().chain(&self.parent)
    }
}

fn collated(dialect: Dialect, column: &str, part: KeyPart) -> String {
    match dialect {
        _ if part != KeyPart::Text => column.to_owned(),
        Dialect::Sqlite => format!("{column} COLLATE BINARY"),
        Dialect::Postgres => format!("{column} COLLATE \"C\""),
    }
}

fn all(dialect: Dialect, terms: impl Iterator<Item = String>) -> String {
    let terms = terms.collect::<Vec<_>>().join(" AND ");
    or(&terms, dialect.everything())
}

fn or(text: &str, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_the_dot_that_is_not_in_quotes() {
        let cases = [
            ("votes", None, "votes"),
            ("app.votes", Some("app"), "votes"),
            (r#""a.b""#, None, "a.b"),
            (r#"app."a.b""#, Some("app"), "a.b"),
            (r#""the app".votes"#, Some("the app"), "votes"),
            (r#""say ""hi""""#, None, r#"say "hi""#),
            (r#"5" disks"#, None, r#"5" disks"#),
            (r#""open"#, None, r#""open"#),
        ];
        for (text, schema, table) in cases {
            let name = Name::new(text);
            assert_eq!((name.schema.as_deref(), name.table.as_str(), name.is_name()), (schema, table, true), "{text}");
        }
        for text in ["", ".", "a.", ".b", "a.b.c", r#""""#] {
            assert!(!Name::new(text).is_name(), "{text}");
        }
        assert_eq!(Name::new(r#"app."say ""hi""""#).quoted(), r#""app"."say ""hi""""#);
    }
}
