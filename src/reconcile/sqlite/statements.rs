//! The SQL of a source: pages of sums from an index in key order, rows, single keys, samples; pure text.

use crate::counter::Def;
use crate::error::{Error, Result};
use crate::key::KeyPart;
use crate::sql::Value;

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
    /// The last part of the key is the last column divided by this, rounded down: an epoch.
    pub(super) per: Option<i64>,
    /// The table that the last parts of the key name a row of, and its columns.
    pub(super) parent: Option<(String, Vec<String>)>,
}

impl Target {
    pub(super) fn table(table: &str, key: &[&str]) -> Self {
        let indexed = (!key.is_empty()).then(|| quote(table));
        Self { indexed, ..Self::over(&quote(table), key) }
    }

    /// The index that pages of a table are read from, as one would make it.
    pub(super) fn wanted_index(&self, counter: &Def) -> Option<String> {
        let parts = counter.parts();
        let columns = self.key.iter().zip(parts.as_slice());
        let keys = columns.map(|(column, part)| collated(column.trim_start_matches("r."), *part));
        self.indexed.as_ref().map(|table| format!("{table} ({})", keys.collect::<Vec<_>>().join(", ")))
    }

    pub(super) fn query(query: &str, key: &[&str]) -> Self {
        Self::over(&format!("({query})"), key)
    }

    /// Key columns carry the table's name: SQLite takes a quoted name alone that no column has for a text.
    fn over(from: &str, key: &[&str]) -> Self {
        let (from, key) = (format!("{from} AS r"), key.iter().map(|column| format!("r.{}", quote(column))).collect());
        Self { from, key, indexed: None, amount: None, filter: None, columns: String::new(), per: None, parent: None }
    }

    /// The statements for a counter.
    ///
    /// Every use of a text column names the collation BINARY: a column declared otherwise would fold keys together. The filter is
    /// wrapped in IS TRUE, which makes null false, and keeps SQLite from reading by an index on the filter and sorting each page. Rows whose
    /// last part is before `cut` are as rows without a key.
    pub(super) fn statements(&self, counter: &Def, cut: Option<&Value<'_>>) -> Result<Statements> {
        let parts = counter.parts();
        if parts.len() != self.key.len() {
            let reason = format!(
                "the source names {} key columns, the counter's key ({parts}) has {} parts",
                self.key.len(),
                parts.len()
            );
            return Err(Error::source(counter, None, reason));
        }
        // What an index has in order; the key's parts, of which the last may be made of its column; and the bounds of one such part.
        let ordered: Vec<String> =
            self.key.iter().zip(parts.as_slice()).map(|(column, part)| collated(column, *part)).collect();
        let mut keys = ordered.clone();
        if let (Some(per), Some(last)) = (self.per, keys.last_mut()) {
            *last = format!("({last} / {per} - ({last} % {per} < 0))");
        }
        let (key, order) = (keys.join(", "), ordered.join(", "));
        let from = &self.from;
        let amount = self.amount.as_ref().map_or_else(|| "1".to_owned(), |amount| format!("({amount})"));
        let counts = self.filter.as_ref().map_or_else(|| "1".to_owned(), |filter| format!("(({filter}) IS TRUE)"));
        let sums = self.amount.as_ref().map_or_else(
            || "count(*)".to_owned(),
            |amount| format!("count(*), sum(typeof({amount}) NOT IN ('integer', 'null')), sum({amount})"),
        );

        let uncut = cut.zip(keys.last()).map(|(cut, last)| format!("{last} >= {}", literal(cut)));
        let has_key = all(ordered.iter().map(|key| format!("{key} IS NOT NULL")).chain(uncut));
        let is_key = all(ordered.iter().enumerate().map(|(at, column)| self.is_part(at, column)));
        let lacks_key = ordered.iter().map(|key| format!("{key} IS NULL")).collect::<Vec<_>>().join(" OR ");
        // The collation stands with the parameters: a column that carries one is no column to the planner of row values, which would then read
        // every page from the index's first row on.
        let bare = self.key.join(", ");
        let param = |(at, part): (usize, &KeyPart)| collated(&format!("?{}", at + 1), *part);
        let params: Vec<String> = parts.as_slice().iter().enumerate().map(param).collect();
        let behind = match (ordered.as_slice(), self.per) {
            ([], _) => "1".to_owned(),
            ([one], None) => format!("{one} > ?1 AND {has_key}"),
            (_, None) => format!("({bare}) > ({}) AND {has_key}", params.join(", ")),
            (many, Some(per)) => {
                let last = many.len();
                let before = params.iter().take(last - 1).cloned();
                let from = before.chain([format!("(?{last} + 1) * {per}")]).collect::<Vec<_>>().join(", ");
                format!("({bare}) >= ({from}) AND {has_key}")
            }
        };
        let (selected, grouped, sorted) = if keys.is_empty() {
            (String::new(), String::new(), String::new())
        } else {
            (format!("{key}, "), format!(" GROUP BY {key} ORDER BY {key}"), format!(" ORDER BY {order}"))
        };
        let descending = ordered.iter().map(|key| format!("{key} DESC")).collect::<Vec<_>>().join(", ");
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
            rows_first: format!("SELECT {row} FROM {from} WHERE {has_key}{sorted}"),
            rows_next: format!("SELECT {row} FROM {from} WHERE {behind}{sorted}"),
            rows_of_key: format!("SELECT {row} FROM {from} WHERE {is_key}"),
            key_first: format!("SELECT {} FROM {from} WHERE {has_key} AND {counts}{sorted} LIMIT 1", or_one(&key)),
            key_next: format!("SELECT {} FROM {from} WHERE {behind} AND {counts}{sorted} LIMIT 1", or_one(&key)),
            any: format!("SELECT 1 FROM {from} WHERE {has_key} AND {counts} LIMIT 1"),
            sample_first: format!("{sample} WHERE {has_key}{sorted} LIMIT ?1"),
            sample_last: format!("{sample} WHERE {has_key}{backwards} LIMIT ?1"),
            sample_without_key: (!keys.is_empty()).then(|| format!("{sample} WHERE {lacks_key} LIMIT ?1")),
            parent: self.parent.as_ref().map(|(table, columns)| {
                let terms = columns.iter().enumerate().map(|(at, column)| format!("p.{} = ?{}", quote(column), at + 1));
                format!("SELECT 1 FROM {} AS p WHERE {}", quote(table), all(terms))
            }),
            sample_of_key: format!("{sample} WHERE {is_key} LIMIT ?{after}"),
        })
    }
}

impl Target {
    /// That the part of the key at this place is the parameter of this place.
    fn is_part(&self, at: usize, column: &str) -> String {
        let param = at + 1;
        match self.per {
            Some(per) if param == self.key.len() => {
                format!("{column} >= ?{param} * {per} AND {column} < (?{param} + 1) * {per}")
            }
            _ => format!("{column} = ?{param}"),
        }
    }
}

/// A value as SQL says it.
fn literal(value: &Value<'_>) -> String {
    match value {
        Value::Integer(value) => value.to_string(),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) | Value::Uuid(bytes) => format!("x'{:032x}'", u128::from_be_bytes(*bytes)),
        Value::Integers(_) | Value::Texts(_) | Value::Blobs(_) | Value::Uuids(_) => "NULL".to_owned(), // a cut is one value
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
    /// Finds a row that the last parts of a key name, where the source says of which table.
    pub(super) parent: Option<String>,
}

impl Statements {
    /// One statement of each shape, to find what SQLite cannot prepare before anything is run.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        [&self.sums_next, &self.rows_next, &self.sample_of_key].into_iter().chain(&self.parent)
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
