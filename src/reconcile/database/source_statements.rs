//! The SQL of a source: pages of sums from an index in key order, rows, keys, samples; text only.

use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::{KeyPart, KeyParts};
use crate::schema::Schema;
use crate::sql::{self, Dialect, Value, quote};

/// What a source reads, as its author declared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) struct Target {
    from: From,
    key: Vec<String>,
    pub(in crate::reconcile) amount: Option<String>,
    pub(in crate::reconcile) filter: Option<String>,
    pub(in crate::reconcile) columns: String,
    /// The last part of the key is the last column divided by this, rounded down: an epoch.
    pub(in crate::reconcile) per: Option<i64>,
    /// The table whose rows the last parts of the key refer to, and its columns.
    pub(in crate::reconcile) parent: Option<(Name, Vec<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) enum From {
    Table(Name),
    Query(String),
}

impl Target {
    /// Returns the tables that it names, the rows' table first, for the database to locate.
    pub(in crate::reconcile) fn names(&mut self) -> impl Iterator<Item = &mut Name> {
        let rows = match &mut self.from {
            From::Table(name) => Some(name),
            From::Query(_) => None,
        };
        rows.into_iter().chain(self.parent.as_mut().map(|(name, _)| name))
    }

    /// Returns the index that pages of a table are best read from, as in CREATE INDEX.
    pub(in crate::reconcile) fn wanted_index(
        &self,
        dialect: Dialect,
        counter: &CounterId,
    ) -> Option<String> {
        let parts = counter.parts();
        let columns = self.key.iter().zip(parts.as_slice());
        let keys =
            columns.map(|(column, part)| collated(dialect, column.trim_start_matches("r."), *part));
        match &self.from {
            From::Table(name) if !self.key.is_empty() => {
                Some(format!("{} ({})", name.shown(dialect), keys.collect::<Vec<_>>().join(", ")))
            }
            _ => None,
        }
    }

    /// Refuses a source that cannot be this counter's.
    pub(in crate::reconcile) fn check(
        &self,
        schema: &Schema,
        counter: &CounterId,
        by_tally: bool,
    ) -> Result<()> {
        if let Some(rollup) = schema.spec(counter)?.rollup() {
            let reason = format!(
                "it is the sum of {}, and has no rows of its own",
                rollup.base().full_name()
            );
            return Err(Error::source(counter, None, reason));
        }
        if self.per.is_some() && !by_tally {
            return Err(Error::source(
                counter,
                None,
                "a key with an epoch needs Columns::by_tally",
            ));
        }
        let mut known = self.clone();
        let wrong = known.names().find(|name| !name.is_name()).map(|name| name.text.clone());
        wrong.map_or(Ok(()), |text| {
            let reason = format!(
                "{text} is not a table's name; write a name, or a schema's name, a dot and a name"
            );
            Err(Error::source(counter, None, reason))
        })
    }

    /// Returns whether rows are read from an index of a table; a query gives no such order.
    pub(in crate::reconcile) fn is_indexed(&self) -> bool {
        matches!(self.from, From::Table(_)) && !self.key.is_empty()
    }

    /// Key columns carry the table's name: SQLite reads a quoted name alone that no column has as a
    /// string.
    pub(in crate::reconcile) fn over(from: From, key: &[String]) -> Self {
        let key = key.iter().map(|column| format!("r.{}", quote(column))).collect();
        Self {
            from,
            key,
            amount: None,
            filter: None,
            columns: String::new(),
            per: None,
            parent: None,
        }
    }

    /// Returns the statements for a counter.
    ///
    /// Every use of a text column names the collation that sorts bytes: a column declared otherwise
    /// would fold keys together, or sort them as a language does. The filter is wrapped in IS TRUE.
    /// That makes null false, and keeps SQLite from reading by an index on the filter and sorting
    /// each page. Rows whose last part is before `cutoff` are treated as rows without a key.
    pub(in crate::reconcile) fn statements(
        &self,
        dialect: Dialect,
        counter: &CounterId,
        cutoff: Option<&Value<'_>>,
    ) -> Result<Statements> {
        let (parts, yes) = (counter.parts(), dialect.everything());
        let (ordered, keys) = self.key_columns(dialect, counter)?;
        let (key, order) = (keys.join(", "), ordered.join(", "));
        let from = match &self.from {
            From::Table(name) => format!("{} AS r", name.quoted()),
            From::Query(query) => format!("({query}) AS r"),
        };
        let amount =
            self.amount.as_ref().map_or_else(|| "1".to_owned(), |amount| format!("({amount})"));
        let counts = self
            .filter
            .as_ref()
            .map_or_else(|| yes.to_owned(), |filter| format!("(({filter}) IS TRUE)"));
        let sums = Self::sums(dialect, self.amount.as_deref());

        let is_kept = cutoff
            .zip(keys.last())
            .map(|(cutoff, last)| format!("{last} >= {}", literal(dialect, cutoff)));
        let not_null = |key: &String| format!("{key} IS NOT NULL");
        let has_key = all(dialect, ordered.iter().map(not_null).chain(is_kept.clone()));
        let counts_of_row =
            all(dialect, [counts.clone()].into_iter().chain(ordered.iter().map(not_null)));
        let lacks_key =
            ordered.iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        // A value after a given one is not null. To repeat that costs PostgreSQL a third of a
        // page's time.
        let said = usize::from(dialect == Dialect::Postgres);
        let rest = ordered.iter().skip(said).map(not_null).chain(is_kept.clone());
        let behind = all(dialect, self.behind(dialect, &ordered).into_iter().chain(rest));
        let is_key = self.is_key(dialect, &ordered, |at| dialect.param(at));
        let (selected, grouped, sorted) = if keys.is_empty() {
            (String::new(), String::new(), String::new())
        } else {
            (
                format!("{key}, "),
                format!(" GROUP BY {key} ORDER BY {key}"),
                format!(" ORDER BY {order}"),
            )
        };
        let descending =
            ordered.iter().map(|key| format!("{key} DESC")).collect::<Vec<_>>().join(", ");
        let (first, after) = (dialect.param(1), dialect.param(keys.len() + 1));
        let row = format!(
            "{}{}",
            self.columns,
            if keys.is_empty() { String::new() } else { format!(", {key}") }
        );
        let sample = match dialect {
            Dialect::Sqlite => format!("SELECT {row}, {amount}, {counts_of_row} FROM {from}"),
            Dialect::Postgres => {
                format!("SELECT {row}, {amount}::text, ({counts_of_row})::int FROM {from}")
            }
        };
        let many = dialect == Dialect::Postgres && !keys.is_empty();
        let page = |condition: &str, limit: &str| {
            if many {
                let sums = Self::sums(dialect, self.amount.as_ref().map(|_| "o.n"));
                // Do not select an unused column: it costs half as much again as the rest of the
                // page.
                let amount =
                    self.amount.as_ref().map_or_else(String::new, |_| format!(", {amount} AS n"));
                let rows = format!("{amount} FROM {from} WHERE {condition} AND {counts}{sorted}");
                return ordered_page(&keys, &sums, &rows, limit);
            }
            format!(
                "SELECT {selected}{sums} FROM {from} WHERE {condition} AND {counts}{grouped} LIMIT {limit}"
            )
        };
        let (sums_of_keys, rows_of_keys) = if many {
            let is_key = self.is_key(dialect, &ordered, |at| format!("k.k_{at}"));
            let by_key = all(dialect, [is_key].into_iter().chain(is_kept));
            let sums = format!("SELECT {sums} FROM {from} WHERE {by_key} AND {counts}");
            let rows = format!("SELECT {row} FROM {from} WHERE {by_key} OFFSET 0");
            (of_each_key(parts, "k.*, o.*", &sums), of_each_key(parts, "o.*", &rows))
        } else {
            let by_key = all(dialect, [is_key.clone()].into_iter().chain(is_kept));
            let sums =
                format!("SELECT {selected}{sums} FROM {from} WHERE {by_key} AND {counts}{grouped}");
            (sums, format!("SELECT {row} FROM {from} WHERE {by_key}"))
        };
        let backwards =
            if keys.is_empty() { String::new() } else { format!(" ORDER BY {descending}") };
        Ok(Statements {
            sums_first: page(&has_key, &first),
            sums_next: page(&behind, &after),
            sums_of_keys,
            rows_first: format!("SELECT {row} FROM {from} WHERE {has_key}{sorted}"),
            rows_next: format!("SELECT {row} FROM {from} WHERE {behind}{sorted}"),
            rows_of_keys,
            key_first: format!(
                "SELECT {} FROM {from} WHERE {has_key} AND {counts}{sorted} LIMIT 1",
                or(&key, "1")
            ),
            key_next: format!(
                "SELECT {} FROM {from} WHERE {behind} AND {counts}{sorted} LIMIT 1",
                or(&key, "1")
            ),
            any: format!("SELECT 1 FROM {from} WHERE {has_key} AND {counts} LIMIT 1"),
            sample_all: sample.clone(),
            sample_first: format!("{sample} WHERE {has_key}{sorted} LIMIT {first}"),
            sample_last: format!("{sample} WHERE {has_key}{backwards} LIMIT {first}"),
            sample_without_key: (!keys.is_empty())
                .then(|| format!("{sample} WHERE {lacks_key} LIMIT {first}")),
            sample_of_key: format!("{sample} WHERE {is_key} LIMIT {after}"),
            types: types(&keys, &amount, &from),
            parent: self
                .parent
                .as_ref()
                .map(|(table, columns)| parent(dialect, counter, table, columns)),
        })
    }

    /// Returns the columns that an index has in order, and the key's parts, of which the last may
    /// be computed from its column.
    fn key_columns(
        &self,
        dialect: Dialect,
        counter: &CounterId,
    ) -> Result<(Vec<String>, Vec<String>)> {
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
        let ordered: Vec<String> =
            columns.map(|(column, part)| collated(dialect, column, *part)).collect();
        let mut keys = ordered.clone();
        if let (Some(per), Some(last)) = (self.per, keys.last_mut()) {
            *last = match dialect {
                Dialect::Sqlite => format!("({last} / {per} - ({last} % {per} < 0))"),
                Dialect::Postgres => format!("({last} / {per} - ({last} % {per} < 0)::int)"),
            };
        }
        Ok((ordered, keys))
    }

    /// Returns the number of rows; and, if they do not all add 1, what reveals amounts that are not
    /// integers, and their sum.
    fn sums(dialect: Dialect, amount: Option<&str>) -> String {
        match (amount, dialect) {
            (None, _) => "count(*)".to_owned(),
            (Some(amount), Dialect::Sqlite) => {
                format!("count(*), sum(typeof({amount}) NOT IN ('integer', 'null')), sum({amount})")
            }
            // The sum of integers is a numeric whose text has no point; beyond 64 bits it is still
            // right.
            (Some(amount), Dialect::Postgres) => format!("count(*), sum({amount})::text"),
        }
    }

    /// Returns the condition that a row comes after the key in the first parameters; nothing
    /// without key columns.
    fn behind(&self, dialect: Dialect, ordered: &[String]) -> Option<String> {
        let param = |at: usize| match dialect {
            // Collate the parameters, not the columns: SQLite's planner of row values ignores a
            // column that carries a collation, and would then read every page from the index's
            // first row on.
            Dialect::Sqlite if self.is_text(at, ordered) => {
                format!("{} COLLATE BINARY", dialect.param(at))
            }
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

    /// Returns the condition that the parts of the key are these values.
    fn is_key(
        &self,
        dialect: Dialect,
        ordered: &[String],
        value: impl Fn(usize) -> String,
    ) -> String {
        let is_part = |(column, at): (&String, usize)| match (self.per, dialect) {
            (Some(per), Dialect::Sqlite) if at == self.key.len() => {
                let value = value(at);
                format!("{column} >= {value} * {per} AND {column} < ({value} + 1) * {per}")
            }
            (Some(per), Dialect::Postgres) if at == self.key.len() => {
                let value = value(at);
                let (first, last) =
                    (second(&value, per, Second::First), second(&value, per, Second::Last));
                format!("{column} >= {first} AND {column} <= {last}")
            }
            _ => format!("{column} = {}", value(at)),
        };
        all(dialect, ordered.iter().zip(1..).map(is_part))
    }
}

/// A table's name, with its schema if the author gave one, and the schema in which the database
/// found it.
///
/// All statements name the found schema, because the meaning of a bare name may change between two
/// of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) struct Name {
    /// As its author wrote it.
    pub(in crate::reconcile) text: String,
    pub(in crate::reconcile) schema: Option<String>,
    pub(in crate::reconcile) table: String,
    pub(in crate::reconcile) found: Option<String>,
}

impl Name {
    /// Parses `votes`, `app.votes` or `app."a.dot"`: each as it is, without case folding.
    pub(in crate::reconcile) fn new(text: &str) -> Self {
        let (first, second) = match Self::part(text) {
            (first, Some(rest)) => match Self::part(rest) {
                (second, None) => (Some(first), second),
                // With too many parts it is no name.
                (_, Some(_)) => (Some(String::new()), String::new()),
            },
            (table, None) => (None, table),
        };
        Self { text: text.to_owned(), schema: first, table: second, found: None }
    }

    /// Splits off the part before the first dot that is not in quotes; returns also what comes
    /// after it.
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

    /// Returns what comes before the closing quote, and what comes after it.
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

    /// Returns the name as SQL needs it.
    pub(in crate::reconcile) fn quoted(&self) -> String {
        let schema = self.found.as_ref().or(self.schema.as_ref());
        schema.map_or_else(
            || quote(&self.table),
            |schema| format!("{}.{}", quote(schema), quote(&self.table)),
        )
    }

    /// Returns the name as CREATE INDEX needs it: SQLite takes no schema there.
    fn shown(&self, dialect: Dialect) -> String {
        match (&self.schema, dialect) {
            (Some(schema), Dialect::Postgres) => {
                format!("{}.{}", quote(schema), quote(&self.table))
            }
            _ => quote(&self.table),
        }
    }

    /// Sets the found schema, or returns the error for a name that no table has, or several have.
    /// `schemas` are those that have the table and that a bare name reaches; `others` are the rest
    /// that have it.
    pub(in crate::reconcile) fn find(
        &mut self,
        counter: &CounterId,
        schemas: &[String],
        others: &[String],
    ) -> Result<()> {
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
                let reason = format!(
                    "no table or view of this name is there{elsewhere}; the {whose} names it"
                );
                Err(Error::SchemaMismatch { table: text.clone(), reason })
            }
            [first, ..] => {
                let reason = format!(
                    "{text} is in {}, and one hides the other; write {first}.{text} or another",
                    schemas.join(" and in ")
                );
                Err(Error::source(counter, None, reason))
            }
        }
    }
}

/// A statement in PostgreSQL that returns one row, with the names of the types of these columns, and
/// reads none. The type of a domain is what it is over.
fn types(keys: &[String], amount: &str, from: &str) -> String {
    let names: Vec<String> = (0..=keys.len()).map(|at| format!("c_{at}")).collect();
    let kind = |name: &String| {
        format!(
            "(SELECT coalesce(nullif(b.typbasetype, 0), nullif(t.typbasetype, 0), t.oid)::regtype::text
            FROM pg_type AS t LEFT JOIN pg_type AS b ON b.oid = t.typbasetype WHERE t.oid = pg_typeof(q.{name}))"
        )
    };
    let kinds: Vec<String> = names.iter().map(kind).collect();
    let columns: Vec<&str> = keys.iter().map(String::as_str).chain([amount]).collect();
    format!(
        "SELECT {} FROM (SELECT 1) AS one LEFT JOIN (SELECT {} FROM {from}) AS q ({}) ON false",
        kinds.join(", "),
        columns.join(", "),
        names.join(", ")
    )
}

/// Returns PostgreSQL's page of sums over rows in key order.
///
/// The inner query prevents a sort: if the key's columns contain the primary key, PostgreSQL would
/// group by that alone and then sort, but it does not if the columns come from a query.
fn ordered_page(keys: &[String], sums: &str, rows: &str, limit: &str) -> String {
    let names = names(keys.len());
    let columns: Vec<String> =
        keys.iter().zip(1..).map(|(key, at)| format!("{key} AS k_{at}")).collect();
    let columns = columns.join(", ");
    format!(
        "SELECT {names}, {sums} FROM (SELECT {columns}{rows}) AS o GROUP BY {names} ORDER BY {names} LIMIT {limit}"
    )
}

/// Returns PostgreSQL's query for many keys in one statement: it finds each key separately,
/// whatever the planner estimates of the table.
pub(in crate::reconcile) fn of_each_key(parts: KeyParts, what: &str, of_key: &str) -> String {
    let (arrays, names) = (sql::arrays(parts), names(parts.len()));
    format!("SELECT {what} FROM unnest({arrays}) AS k({names}), LATERAL ({of_key}) AS o")
}

/// Returns the names of a key's parts in these statements.
fn names(parts: usize) -> String {
    (1..=parts).map(|at| format!("k_{at}")).collect::<Vec<_>>().join(", ")
}

/// Which second of an epoch.
#[derive(Clone, Copy)]
enum Second {
    First,
    Last,
}

/// Returns PostgreSQL's first or last second of an epoch, limited to what a column can hold, so
/// that no epoch causes an error.
fn second(epoch: &str, per: i64, which: Second) -> String {
    let second = match which {
        Second::First => format!("{epoch}::numeric * {per}"),
        Second::Last => format!("({epoch}::numeric + 1) * {per} - 1"),
    };
    format!("greatest(least({second}, {}), {})::bigint", i64::MAX, i64::MIN)
}

/// Returns the query for the keys whose last parts refer to no row. In SQLite it takes one key, in
/// PostgreSQL arrays of keys.
fn parent(dialect: Dialect, counter: &CounterId, table: &Name, columns: &[String]) -> String {
    let parts = counter.parts();
    let first = parts.len().saturating_sub(columns.len()) + 1;
    let is = |value: &dyn Fn(usize) -> String| {
        let terms = columns
            .iter()
            .enumerate()
            .map(|(at, column)| format!("p.{} = {}", quote(column), value(at)));
        format!("SELECT 1 FROM {} AS p WHERE {}", table.quoted(), all(dialect, terms))
    };
    match dialect {
        Dialect::Sqlite => {
            let found = is(&|at| dialect.param(first + at));
            format!("SELECT {} WHERE NOT EXISTS ({found})", dialect.params(parts.len()))
        }
        Dialect::Postgres => {
            let names = names(parts.len());
            let found = is(&|at| format!("k.k_{}", first + at));
            let arrays = sql::arrays(parts);
            format!("SELECT {names} FROM unnest({arrays}) AS k({names}) WHERE NOT EXISTS ({found})")
        }
    }
}

/// Returns a value as an SQL literal.
fn literal(dialect: Dialect, value: &Value<'_>) -> String {
    match (value, dialect) {
        (Value::Integer(value), _) => value.to_string(),
        (Value::Text(text), _) => format!("'{}'", text.replace('\'', "''")),
        (Value::Blob(bytes) | Value::Uuid(bytes), Dialect::Sqlite) => {
            format!("x'{:032x}'", u128::from_be_bytes(*bytes))
        }
        (Value::Blob(bytes), Dialect::Postgres) => {
            format!("'\\x{:032x}'::bytea", u128::from_be_bytes(*bytes))
        }
        (Value::Uuid(bytes), Dialect::Postgres) => {
            format!("'{:032x}'::uuid", u128::from_be_bytes(*bytes))
        }
        // A cutoff is one value.
        (
            Value::Bytes(_)
            | Value::Integers(_)
            | Value::Texts(_)
            | Value::Blobs(_)
            | Value::Uuids(_),
            _,
        ) => "NULL".to_owned(),
    }
}

/// The statements of one counter's source. `_first` starts at the first key, `_next` after the key
/// given as the first parameters. Samples take their number of rows as the last parameter, and
/// return columns, key, amount, and whether the row counts for a key.
#[derive(Debug)]
pub(in crate::reconcile) struct Statements {
    pub(in crate::reconcile) sums_first: String,
    pub(in crate::reconcile) sums_next: String,
    /// In SQLite for the key given as the parameters, in PostgreSQL for all keys given as arrays;
    /// `rows_of_keys` and `parent` too.
    pub(in crate::reconcile) sums_of_keys: String,
    pub(in crate::reconcile) rows_first: String,
    pub(in crate::reconcile) rows_next: String,
    pub(in crate::reconcile) rows_of_keys: String,
    pub(in crate::reconcile) key_first: String,
    pub(in crate::reconcile) key_next: String,
    pub(in crate::reconcile) any: String,
    /// Every row, in the form of a sample.
    pub(in crate::reconcile) sample_all: String,
    pub(in crate::reconcile) sample_first: String,
    pub(in crate::reconcile) sample_last: String,
    pub(in crate::reconcile) sample_without_key: Option<String>,
    pub(in crate::reconcile) sample_of_key: String,
    /// Asks PostgreSQL for the types of the key's columns and of what a row adds.
    pub(in crate::reconcile) types: String,
    /// Finds the keys whose last parts refer to no row, if the source names their table.
    pub(in crate::reconcile) parent: Option<String>,
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
    fn rows_come_from_an_index_if_they_are_of_a_table_and_have_a_key() {
        let (table, query) = (From::Table(Name::new("votes")), From::Query("SELECT 1".to_owned()));
        for (from, key, is_indexed) in [
            (&table, &["show".to_owned()][..], true),
            (&table, &[], false),
            (&query, &["show".to_owned()], false),
            (&query, &[], false),
        ] {
            assert_eq!(
                Target::over(from.clone(), key).is_indexed(),
                is_indexed,
                "{from:?} {key:?}"
            );
        }
    }

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
            assert_eq!(
                (name.schema.as_deref(), name.table.as_str(), name.is_name()),
                (schema, table, true),
                "{text}"
            );
        }
        for text in ["", ".", "a.", ".b", "a.b.c", r#""""#] {
            assert!(!Name::new(text).is_name(), "{text}");
        }
        assert_eq!(Name::new(r#"app."say ""hi""""#).quoted(), r#""app"."say ""hi""""#);
    }
}
