//! What a source shows: where its tables are, and whether the server shows all of their rows, to this role and in this snapshot.

use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{GenericClient, Row};

use crate::counter::CounterId;
use crate::drivers::tokio_postgres::Postgres;
use crate::engine::failed_on;
use crate::error::{Error, Result};
use crate::reconcile::statements::Name;
use crate::sql::{Query, Value};

/// Where there are relations of the name `$1`: the schema, whether a bare name reaches it, whether it is this session's for what is temporary; and
/// whether the relation is a partition.
const NAMED: &str =
    "SELECT n.nspname::text, array_position(current_schemas(true), n.nspname) IS NOT NULL, n.oid = pg_my_temp_schema(), c.relispartition
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname::text = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT pg_is_other_temp_schema(n.oid)
    ORDER BY array_position(current_schemas(true), n.nspname), 1";

/// Finds the one schema that a table's name stands for.
pub(super) async fn find<C: GenericClient + Send + Sync>(
    session: &Postgres<'_, C>,
    counter: &CounterId,
    name: &mut Name,
) -> Result<()> {
    let failed = |error| failed_on("finding the tables of the source", counter, error);
    let query = Query::new(NAMED.to_owned(), vec![Value::Text(name.table.clone().into())]);
    let (mut meant, mut others, mut is_part) = (Vec::new(), Vec::new(), false);
    for row in session.query(&query).await.map_err(failed)? {
        let place = |row: &Row| Ok((row.try_get::<_, String>(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
        let (schema, reached, temporary, partition): (_, _, _, bool) = place(&row).map_err(failed)?;
        let is_meant = match name.schema.as_deref() {
            None => reached,
            Some("pg_temp") => temporary,
            Some(wanted) => wanted == schema,
        };
        is_part |= is_meant && partition;
        if is_meant { meant.push(schema) } else { others.push(schema) }
    }
    name.find(counter, &meant, &others)?;
    if is_part {
        let reason =
            format!("{} is a partition, which has a part of the rows; name the table that it is a part of", name.text);
        return Err(Error::source(counter, None, reason));
    }
    Ok(())
}

/// Refuses a source of which the plan, as EXPLAIN VERBOSE gives it, reads what is not all there is, or is not of the snapshot.
pub(super) async fn refuse_part<C: GenericClient + Send + Sync>(
    session: &Postgres<'_, C>,
    counter: &CounterId,
    plan: &[String],
) -> Result<()> {
    let refused = |what: String| Err(Error::source(counter, None, what));
    for line in plan.iter().map(|line| line.trim_start().trim_start_matches("->").trim_start()) {
        if let Some((node, _)) = line.split_once("  (cost=") {
            if node.contains("Foreign ") {
                return refused(format!(
                    "its rows are another server's ({node}), of another snapshot than its totals, and as far as that server shows them"
                ));
            }
        } else if depends_on_session(line) {
            return refused(format!(
                "which of its rows there are depends on who asks, by a view or condition ({line}); name what has all of them"
            ));
        }
    }
    let names = plan.iter().filter_map(|line| relation(line)).map(Into::into).collect();
    let text = "SELECT n FROM unnest($1::text[]) AS n JOIN pg_class AS c ON c.oid = to_regclass(n) WHERE c.relkind = 'm' LIMIT 1";
    let failed = |error| failed_on("looking at the tables of the source", counter, error);
    let query = Query::new(text.to_owned(), vec![Value::Texts(names)]);
    let Some(row) = session.query(&query).await.map_err(failed)?.into_iter().next() else { return Ok(()) };
    let name: String = row.try_get(0).map_err(failed)?;
    refused(format!("{name} is a materialized view, which has the rows of its last refresh"))
}

/// Which tables are partitions or children of which, in the snapshot; empty where there are none, nor any that may have some.
pub(super) async fn kinship<C: GenericClient + Send + Sync>(
    session: &Postgres<'_, C>,
    counter: &CounterId,
) -> Result<String> {
    let text = "SELECT coalesce(string_agg(i.inhparent || '>' || i.inhrelid, ' ' ORDER BY i.inhparent, i.inhrelid),
        CASE WHEN EXISTS (SELECT FROM pg_class AS c WHERE c.relkind = 'p') THEN 'none' ELSE '' END) FROM pg_inherits AS i";
    let failed = |error| failed_on("looking at the tables of the source", counter, error);
    let rows = session.query(&Query::new(text.to_owned(), Vec::new())).await.map_err(failed)?;
    rows.first().map_or(Ok(String::new()), |row| row.try_get(0)).map_err(failed)
}

/// Refuses to say that keys differ where a table's partitions or children do since the snapshot of the page, which was read from those that there were then.
pub(super) async fn refuse_change<C: GenericClient + Send + Sync>(
    session: &Postgres<'_, C>,
    counter: &CounterId,
    before: &str,
) -> Result<()> {
    if kinship(session, counter).await? == before {
        return Ok(());
    }
    let reason = "a table's partitions or children changed meanwhile; measure again";
    let operation = format!("measuring rows of counter {}", counter.full_name());
    Err(Error::Busy { operation, reason, cause: reason.into() })
}

/// Whether a line of a plan has an expression of who asks, or of a setting.
fn depends_on_session(line: &str) -> bool {
    // Neither texts nor names: both may be anything.
    let outside = |text: &str, quote: char| text.split(quote).step_by(2).collect::<Vec<_>>().join(" ");
    let line = outside(&outside(line, '\''), '"');
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut words = line.match_indices(is_word).map(|(at, _)| at).peekable();
    while let Some(start) = words.next() {
        let mut end = start + 1;
        while words.next_if_eq(&end).is_some() {
            end += 1;
        }
        let (word, rest) = (line.get(start..end).unwrap_or_default(), line.get(end..).unwrap_or_default());
        let called = rest.starts_with('(');
        let of_role = called && word.starts_with("has_") && word.ends_with("_privilege");
        if of_role || WHO.contains(&word) || called && CALLED.contains(&word) {
            return true;
        }
    }
    false
}

/// As PostgreSQL writes them in a plan; a column of such a name stands in quotes.
const WHO: &[&str] = &["CURRENT_USER", "SESSION_USER", "CURRENT_ROLE", "USER", "CURRENT_SCHEMA"];
const CALLED: &[&str] = &[
    "current_setting",
    "pg_has_role",
    "current_schema",
    "current_schemas",
    "inet_client_addr",
    "pg_backend_pid",
    "row_security_active",
];

/// The relation that a line of a plan scans, with its schema; not the names of parts of the query.
fn relation(line: &str) -> Option<&str> {
    let (node, _) = line.split_once("  (cost=")?;
    let (_, name) = node.split_once(" on ")?;
    let mut quoted = false;
    let end = name.find(|letter: char| {
        quoted ^= letter == '"';
        letter == ' ' && !quoted
    });
    let name = name.get(..end.unwrap_or(name.len()))?;
    name.contains('.').then_some(name)
}

/// What an error means while a source is read: what the server says of the SQL, or of what it makes of a row, is the source's.
pub(super) fn source_failed(what: &str, counter: &CounterId, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(said) if is_of_source(said) => Error::source_of(counter, format!("{what}: {}", text_of(said)), error),
        _ => failed_on(what, counter, error),
    }
}

/// Of the classes "cardinality violation", "data exception", and "syntax error or access rule violation".
fn is_of_source(said: &DbError) -> bool {
    ["21", "22", "42"].iter().any(|class| said.code().code().starts_with(class))
}

fn text_of(said: &DbError) -> String {
    let more = [said.detail(), said.hint()].into_iter().flatten().map(|more| format!("; {more}"));
    let who =
        if *said.code() == SqlState::INSUFFICIENT_PRIVILEGE { "; read it as a role that sees all rows" } else { "" };
    format!("{} ({}){}{who}", said.message(), said.code().code(), more.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_plan_depends_on_who_asks_by_words_outside_of_quotes() {
        for line in [
            "Filter: (o.tenant = CURRENT_USER)",
            "Filter: (tenant = (current_setting('app.tenant'::text))::integer)",
            "Filter: has_table_privilege((name)::text, 'select'::text)",
            "Output: k, (USER)",
        ] {
            assert!(depends_on_session(line), "{line}");
        }
        for line in [
            "Filter: ((kind)::text = 'CURRENT_USER'::text)",
            r#"Filter: (r."USER" = 3)"#,
            "Filter: (r.current_setting = 3)",
            "Output: r.has_privilege, (r.user_id)::bigint, r.\u{e9}t\u{e9}",
        ] {
            assert!(!depends_on_session(line), "{line}");
        }
    }

    #[test]
    fn a_scan_names_its_relation() {
        let line = |node: &str| format!("  ->  {node}  (cost=0.15..8.17 rows=1 width=4)");
        for (node, name) in [
            ("Seq Scan on public.items r", Some("public.items")),
            (r#"Index Scan using items_k on "my app"."the items" r"#, Some(r#""my app"."the items""#)),
            ("Seq Scan on public.items", Some("public.items")),
            ("Subquery Scan on o", None),
            ("Result", None),
        ] {
            assert_eq!(relation(&line(node)), name, "{node}");
        }
        assert_eq!(relation("  Output: a on public.b"), None);
    }
}
