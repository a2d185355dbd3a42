//! The SQL of a source: pages of sums from an index in key order, rows, single keys, samples; pure text.

use crate::counter::Def;
use crate::error::{Error, Result};
use crate::key::KeyPart;
use crate::sql::Dialect;

/// What a source reads, as its author said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    from: String,
    key: Vec<String>,
    /// For an error's advice: the table that needs an index on its key; none for a query.
    indexed: Option<String>,
    pub(super) amount: Option<String>,
    pub(super) filter: Option<String>,
    pub(super) columns: String,
}

impl Target {
    pub(super) fn table(table: &str, key: &[&str]) -> Self {
        let indexed = (!key.is_empty()).then(|| quote(table));
        Self { indexed, ..Self::over(&quote(table), key) }
    }

    /// The index that pages of a table are read from, as one would make it.
    pub(super) fn wanted_index(&self, counter: &Def) -> Option<String> {
        let parts = counter.parts();
        let keys = self
            .key
            .iter()
            .zip(parts.as_slice())
            .map(|(column, part)| collated(column.trim_start_matches("r."), *part));
        self.indexed.as_ref().map(|table| format!("{table} ({})", keys.collect::<Vec<_>>().join(", ")))
    }

    pub(super) fn query(query: &str, key: &[&str]) -> Self {
        Self::over(&format!("({query})"), key)
    }

    /// Key columns carry the table's name: SQLite takes a quoted name alone that no column has for a text.
    fn over(from: &str, key: &[&str]) -> Self {
        let (from, key) = (format!("{from} AS r"), key.iter().map(|column| format!("r.{}", quote(column))).collect());
        Self { from, key, indexed: None, amount: None, filter: None, columns: String::new() }
    }

    /// The statements for a counter.
    ///
    /// Every use of a text column names the collation BINARY: a column declared otherwise would fold keys together. The filter is
    /// wrapped in IS TRUE, which makes null false, and keeps SQLite from reading by an index on the filter and sorting each page.
    pub(super) fn statements(&self, counter: &Def) -> Result<Statements> {
        let parts = counter.parts();
        if parts.len() != self.key.len() {
            let reason = format!(
                "the source names {} key columns, the counter's key ({parts}) has {} parts",
                self.key.len(),
                parts.len()
            );
            return Err(Error::source(counter, None, reason));
        }
        let keys: Vec<String> =
            self.key.iter().zip(parts.as_slice()).map(|(column, part)| collated(column, *part)).collect();
        let key = keys.join(", ");
        let from = &self.from;
        let amount = self.amount.as_ref().map_or_else(|| "1".to_owned(), |amount| format!("({amount})"));
        let counts = self.filter.as_ref().map_or_else(|| "1".to_owned(), |filter| format!("(({filter}) IS TRUE)"));
        let sums = self.amount.as_ref().map_or_else(
            || "count(*)".to_owned(),
            |amount| format!("count(*), sum(typeof({amount}) NOT IN ('integer', 'null')), sum({amount})"),
        );

        let has_key = all(keys.iter().map(|key| format!("{key} IS NOT NULL")));
        let is_key = all(keys.iter().enumerate().map(|(at, key)| format!("{key} = ?{}", at + 1)));
        let lacks_key = keys.iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        let behind = match keys.as_slice() {
            [] => "1".to_owned(),
            [one] => format!("{one} > ?1"),
            many => format!("({key}) > ({}) AND {has_key}", Dialect::Sqlite.params(many.len())),
        };
        let (selected, grouped, ordered) = if keys.is_empty() {
            (String::new(), String::new(), String::new())
        } else {
            (format!("{key}, "), format!(" GROUP BY {key} ORDER BY {key}"), format!(" ORDER BY {key}"))
        };
        let descending = keys.iter().map(|key| format!("{key} DESC")).collect::<Vec<_>>().join(", ");
        let after = keys.len() + 1;
        let row = format!("{}{}", self.columns, if keys.is_empty() { String::new() } else { format!(", {key}") });
        let sample = format!("SELECT {row}, {amount}, {counts} FROM {from}");
        let backwards = if keys.is_empty() { String::new() } else { format!(" ORDER BY {descending}") };
        Ok(Statements {
            sums_first: format!("SELECT {selected}{sums} FROM {from} WHERE {has_key} AND {counts}{grouped} LIMIT ?1"),
            sums_next: format!(
                "SELECT {selected}{sums} FROM {from} WHERE {behind} AND {counts}{grouped} LIMIT ?{after}"
            ),
            sum_of_key: format!("SELECT {selected}{sums} FROM {from} WHERE {is_key} AND {counts}{grouped}"),
            rows_first: format!("SELECT {row} FROM {from} WHERE {has_key}{ordered}"),
            rows_next: format!("SELECT {row} FROM {from} WHERE {behind}{ordered}"),
            rows_of_key: format!("SELECT {row} FROM {from} WHERE {is_key}"),
            key_first: format!("SELECT {} FROM {from} WHERE {has_key} AND {counts}{ordered} LIMIT 1", or_one(&key)),
            key_next: format!("SELECT {} FROM {from} WHERE {behind} AND {counts}{ordered} LIMIT 1", or_one(&key)),
            any: format!("SELECT 1 FROM {from} WHERE {has_key} AND {counts} LIMIT 1"),
            sample_first: format!("{sample} WHERE {has_key}{ordered} LIMIT ?1"),
            sample_last: format!("{sample} WHERE {has_key}{backwards} LIMIT ?1"),
            sample_without_key: (!keys.is_empty()).then(|| format!("{sample} WHERE {lacks_key} LIMIT ?1")),
            sample_of_key: format!("{sample} WHERE {is_key} LIMIT ?{after}"),
        })
    }
}

/// The statements of one counter's source. `_first` starts at the first key, `_next` behind the key given as `?1 ..`; samples take
/// their number of rows last, and give columns, key, amount, and whether the row counts.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) sums_first: String,
    pub(super) sums_next: String,
    pub(super) sum_of_key: String,
    pub(super) rows_first: String,
    pub(super) rows_next: String,
    pub(super) rows_of_key: String,
    pub(super) key_first: String,
    pub(super) key_next: String,
    pub(super) any: String,
    pub(super) sample_first: String,
    pub(super) sample_last: String,
    pub(super) sample_without_key: Option<String>,
    pub(super) sample_of_key: String,
}

impl Statements {
    /// One statement of each shape, to find what SQLite cannot prepare before anything is run.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        [&self.sums_next, &self.rows_next, &self.sample_of_key].into_iter()
    }
}

fn collated(column: &str, part: KeyPart) -> String {
    if part == KeyPart::Text { format!("{column} COLLATE BINARY") } else { column.to_owned() }
}

fn all(terms: impl Iterator<Item = String>) -> String {
    let terms = terms.collect::<Vec<_>>().join(" AND ");
    or_one(&terms)
}

fn or_one(text: &str) -> String {
    if text.is_empty() { "1".to_owned() } else { text.to_owned() }
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
