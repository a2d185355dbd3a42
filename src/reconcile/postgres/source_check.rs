//! Checks what a source shows in PostgreSQL: where its tables are, of which types its columns are,
//! whether its pages come out of an index, and whether the server shows all rows, to this role and
//! in one snapshot.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use crate::counter::CounterId;
use crate::drivers::tokio_postgres::{Postgres, TokioPostgres, kind_of, typed};
use crate::engine::failed_on;
use crate::error::{Error, Result};
use crate::executor::Reading;
use crate::key::KeyPart;
use crate::reconcile::database::source_statements::Name;
use crate::reconcile::database::{
    Opening, RowSource, Unfound, begin_read, end_read, of_page, source_failed,
};
use crate::sql::{Dialect, Query, Value};

/// Finds the tables of a source and checks it.
pub(super) async fn look<'a>(
    session: &mut Postgres<'_>,
    source: Unfound<'a, TokioPostgres>,
) -> Result<RowSource<'a, TokioPostgres>> {
    let counter = source.counter;
    begin_read(session, Reading::default(), &counter).await?;
    let looked = look_in(session.client, source).await;
    end_read(session, &counter, looked).await
}

async fn look_in<'a>(
    client: &Client,
    mut source: Unfound<'a, TokioPostgres>,
) -> Result<RowSource<'a, TokioPostgres>> {
    let counter = source.counter;
    for name in source.target.names() {
        find(client, &counter, name).await?;
    }
    let mut source = source.found()?;
    let mut script = of_page();
    client
        .batch_execute(&script)
        .await
        .map_err(|error| failed_on("reading the source", &counter, error))?;
    check_types(client, &source).await?;
    // The first page is not limited to some partitions by its key.
    let first = plan_of(client, &source, "EXPLAIN (VERBOSE)", false).await?;
    refuse_part(client, &counter, &first).await?;
    let next = plan_of(client, &source, "EXPLAIN", true).await?;
    if let Some(index) = source.target.wanted_index(Dialect::Postgres, &counter)
        && next.iter().any(|line| sorts(line))
    {
        let reason =
            format!("no index gives its rows in key order; create one: CREATE INDEX .. ON {index}");
        return Err(Error::source(&counter, None, reason));
    }
    // Partitions and children come without waiting for readers.
    let kinship = Query::new(KINSHIP, Vec::new());
    let failed = |error| failed_on("inspecting the tables of the source", &counter, error);
    let rows = rows(client, &kinship).await.map_err(failed)?;
    let kin: String =
        rows.first().map_or(Ok(String::new()), |row| row.try_get(0)).map_err(failed)?;
    source.watch = (!kin.is_empty()).then_some(kinship);
    // The tables are locked before the snapshot, which does not see what TRUNCATE, a partition that
    // comes or goes, or a rewrite of a table does to it later.
    let names: Vec<String> = source.target.names().map(|name| name.quoted()).collect();
    if !names.is_empty() {
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        match client.batch_execute(&lock).await {
            Ok(()) => script = format!("{lock}; {script}"),
            // A role that may read some columns only locks nothing.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
            Err(error) => return Err(source_failed("locking the source", &counter, error)),
        }
    }
    source.opening = Opening { script, is_locked: false };
    Ok(source)
}

/// The rows of one query.
async fn rows(client: &Client, query: &Query<'_>) -> Result<Vec<Row>, tokio_postgres::Error> {
    client.query_typed(&query.text, &typed(&query.values)).await
}

/// Finds what PostgreSQL cannot prepare, and columns that do not have the types of the key and of
/// amounts, before anything runs.
async fn check_types(client: &Client, source: &RowSource<'_, TokioPostgres>) -> Result<()> {
    let (counter, statements) = (&source.counter, &source.statements);
    let kinds: Vec<Type> = some_key(counter).iter().map(kind_of).collect();
    let arrays: Vec<Type> =
        some_key(counter).into_iter().map(|value| kind_of(&value.into_column())).collect();
    let limited = [kinds.as_slice(), &[Type::INT8]].concat();
    let prepare = async |text: &str, kinds: &[Type]| {
        let prepared = client.prepare_typed(text, kinds).await;
        prepared.map_err(|error| source_failed("preparing its SQL", counter, error))
    };
    let sample = prepare(&statements.sample_first, &[Type::INT8]).await?;
    let (parts, columns) = (counter.parts(), sample.columns());
    let key_at = columns.len().saturating_sub(parts.len() + 2);
    for (part, column) in parts.as_slice().iter().zip(columns.iter().skip(key_at)) {
        if !fits(*part, column.type_()) {
            let reason =
                format!("a key of {part} cannot be read from a column of type {}", column.type_());
            return Err(Error::source(counter, None, reason));
        }
    }
    if source.by_tally {
        prepare(&statements.rows_next, &kinds).await?;
        prepare(&statements.rows_of_keys, &arrays).await?;
    } else {
        prepare(&statements.sums_next, &limited).await?;
        prepare(&statements.sums_of_keys, &arrays).await?;
        if let Some(amount) = &statements.amount {
            let amount = prepare(amount, &[]).await?;
            let kind = amount.columns().first().map(|column| column.type_().clone());
            check_amount(counter, kind.as_ref())?;
        }
    }
    if let Some(parent) = &statements.parent {
        prepare(parent, &arrays).await?;
    }
    prepare(&statements.sample_of_key, &limited).await?;
    Ok(())
}

/// A key as parameters, of the right types.
fn some_key(counter: &CounterId) -> Vec<Value<'static>> {
    let value = |part: &KeyPart| match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => Value::Integer(0),
        KeyPart::Text => Value::Text("".into()),
        KeyPart::Uuid => Value::Uuid([0; 16]),
        _ => Value::Blob([0; 16]),
    };
    counter.parts().as_slice().iter().map(value).collect()
}

/// Whether a column of this type holds such a part of a key, and compares as it does.
fn fits(part: KeyPart, kind: &Type) -> bool {
    match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => {
            matches!(*kind, Type::INT2 | Type::INT4 | Type::INT8)
        }
        KeyPart::Text => matches!(*kind, Type::TEXT | Type::VARCHAR),
        KeyPart::Uuid => *kind == Type::UUID,
        _ => *kind == Type::BYTEA,
    }
}

fn check_amount(counter: &CounterId, kind: Option<&Type>) -> Result<()> {
    match kind {
        Some(&(Type::INT2 | Type::INT4 | Type::INT8 | Type::NUMERIC)) => Ok(()),
        kind => {
            let kind = kind.map_or("nothing", Type::name);
            Err(Error::source(
                counter,
                None,
                format!("its amounts are of type {kind}, and must be integers"),
            ))
        }
    }
}

/// The plan of a page, a line a row.
async fn plan_of(
    client: &Client,
    source: &RowSource<'_, TokioPostgres>,
    explain: &str,
    is_behind: bool,
) -> Result<Vec<String>> {
    let mut values = if is_behind { some_key(&source.counter) } else { Vec::new() };
    if !source.by_tally {
        values.push(Value::Integer(1024));
    }
    let query = Query::new(format!("{explain} {}", source.page_text(is_behind)), values);
    let plan = rows(client, &query).await;
    plan.and_then(|plan| plan.iter().map(|row| row.try_get(0)).collect())
        .map_err(|error| source_failed("planning the source", &source.counter, error))
}

/// Whether a line of a plan says that rows are sorted, or come in no order.
fn sorts(line: &str) -> bool {
    let node = line.trim_start().trim_start_matches("->").trim_start();
    // Of a merge of partitions too there is a line "Sort Key".
    ["Sort  (", "Incremental Sort  (", "HashAggregate  ("].iter().any(|name| node.starts_with(name))
}

/// Where there are relations of the name `$1`: the schema, whether a bare name reaches it, whether
/// it is this session's for what is temporary; and whether the relation is a partition.
const NAMED: &str =
    "SELECT n.nspname::text, array_position(current_schemas(true), n.nspname) IS NOT NULL, n.oid = pg_my_temp_schema(), c.relispartition
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname::text = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT pg_is_other_temp_schema(n.oid)
    ORDER BY array_position(current_schemas(true), n.nspname), 1";

/// Finds the one schema that a table's name stands for.
async fn find(client: &Client, counter: &CounterId, name: &mut Name) -> Result<()> {
    let failed = |error| failed_on("finding the tables of the source", counter, error);
    let query = Query::new(NAMED.to_owned(), vec![Value::Text(name.table.clone().into())]);
    let (mut meant, mut others, mut is_part) = (Vec::new(), Vec::new(), false);
    for row in rows(client, &query).await.map_err(failed)? {
        let place = |row: &Row| {
            Ok((row.try_get::<_, String>(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
        };
        let (schema, reached, temporary, partition): (_, _, _, bool) =
            place(&row).map_err(failed)?;
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
        let reason = format!(
            "{} is a partition, which has some of the rows only; name the partitioned table",
            name.text
        );
        return Err(Error::source(counter, None, reason));
    }
    Ok(())
}

/// Refuses a source whose plan, as EXPLAIN VERBOSE gives it, does not read all rows, or reads some
/// of another snapshot.
async fn refuse_part(client: &Client, counter: &CounterId, plan: &[String]) -> Result<()> {
    let refused = |what: String| Err(Error::source(counter, None, what));
    for line in plan.iter().map(|line| line.trim_start().trim_start_matches("->").trim_start()) {
        if let Some((node, _)) = line.split_once("  (cost=") {
            if node.contains("Foreign ") {
                return refused(format!(
                    "its rows are on another server ({node}), which reads them in another snapshot than the totals and may hide some"
                ));
            }
        } else if depends_on_session(line) {
            return refused(format!(
                "which rows it shows depends on who asks, because of a view or condition ({line}); name a source that shows all rows"
            ));
        }
    }
    let names = plan.iter().filter_map(|line| relation(line)).map(Into::into).collect();
    let text = "SELECT n FROM unnest($1::text[]) AS n JOIN pg_class AS c ON c.oid = to_regclass(n) WHERE c.relkind = 'm' LIMIT 1";
    let failed = |error| failed_on("inspecting the tables of the source", counter, error);
    let query = Query::new(text.to_owned(), vec![Value::Texts(names)]);
    let Some(row) = rows(client, &query).await.map_err(failed)?.into_iter().next() else {
        return Ok(());
    };
    let name: String = row.try_get(0).map_err(failed)?;
    refused(format!("{name} is a materialized view, which has the rows of its last refresh"))
}

/// Which tables are partitions or children of which, in the snapshot; empty if there are none, nor
/// any that may have some.
const KINSHIP: &str =
    "SELECT coalesce(string_agg(i.inhparent || '>' || i.inhrelid, ' ' ORDER BY i.inhparent, i.inhrelid),
    CASE WHEN EXISTS (SELECT FROM pg_class AS c WHERE c.relkind = 'p') THEN 'none' ELSE '' END) FROM pg_inherits AS i";

/// Whether a line of a plan has an expression of who asks, or of a setting.
fn depends_on_session(line: &str) -> bool {
    // Neither texts nor names: both may be anything.
    let outside =
        |text: &str, quote: char| text.split(quote).step_by(2).collect::<Vec<_>>().join(" ");
    let line = outside(&outside(line, '\''), '"');
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut words = line.match_indices(is_word).map(|(at, _)| at).peekable();
    while let Some(start) = words.next() {
        let mut end = start + 1;
        while words.next_if_eq(&end).is_some() {
            end += 1;
        }
        let (word, rest) =
            (line.get(start..end).unwrap_or_default(), line.get(end..).unwrap_or_default());
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
            (
                r#"Index Scan using items_k on "my app"."the items" r"#,
                Some(r#""my app"."the items""#),
            ),
            ("Seq Scan on public.items", Some("public.items")),
            ("Subquery Scan on o", None),
            ("Result", None),
        ] {
            assert_eq!(relation(&line(node)), name, "{node}");
        }
        assert_eq!(relation("  Output: a on public.b"), None);
    }
}
