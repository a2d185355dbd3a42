//! Checks what a source shows in PostgreSQL: where its tables are, of which types its columns are,
//! whether its pages come out of an index, and whether the server shows all rows, to this role and
//! in one snapshot.

use super::super::source_statements::Name;
use super::super::transaction_settings::of_page;
use super::super::{
    Opening, RowSource, Unfound, begin_read, end_read, source_failed, source_stopped,
};
use super::{next_page, shapes, texts};
use crate::counter::CounterId;
use crate::engine::{OrFailed as _, failed_on};
use crate::error::{Error, Result};
use crate::executor::{Column, ErrorKind, Executor, Reading};
use crate::key::KeyPart;
use crate::sql::{Dialect, Query, Value};

const PREPARING: &str = "preparing its SQL";
const PLANNING: &str = "planning the source";

/// Finds the tables of a source and checks it.
pub(super) async fn look<E: Executor + ?Sized>(
    executor: &mut E,
    source: Unfound,
) -> Result<RowSource> {
    let counter = source.counter;
    begin_read(executor, Reading::default(), &counter).await?;
    let looked = look_in(executor, source).await;
    end_read(executor, &counter, looked).await
}

async fn look_in<E: Executor + ?Sized>(executor: &mut E, mut source: Unfound) -> Result<RowSource> {
    let counter = source.counter;
    for name in source.target.names() {
        find(executor, &counter, name).await?;
    }
    let mut source = source.found(Dialect::Postgres)?;
    let mut script = of_page();
    let set = executor.run(&script).await;
    set.map_err(|error| failed_on("reading the source", &counter, error))?;
    check_types(executor, &source).await?;
    // The first page is not limited to some partitions by its key.
    let limit = (!source.by_tally).then(super::some_limit);
    let first = format!("EXPLAIN (VERBOSE) {}", source.page_text(false));
    let first = answer(executor, &counter, PLANNING, first, limit.into_iter().collect()).await?;
    refuse_part(executor, &counter, &first).await?;
    let (text, values) = next_page(&source);
    let next = answer(executor, &counter, PLANNING, format!("EXPLAIN {text}"), values).await?;
    if let Some(index) = source.target.wanted_index(Dialect::Postgres, &counter)
        && next.iter().any(|line| sorts(line))
    {
        let reason =
            format!("no index gives its rows in key order; create one: CREATE INDEX .. ON {index}");
        return Err(Error::source(&counter, None, reason));
    }
    // Partitions and children come without waiting for readers.
    let kinship = Query::new(KINSHIP, Vec::new());
    let kin = texts(executor, &kinship).await;
    let kin = kin.or_failed_on("inspecting the tables of the source", &counter)?;
    source.watch = kin.iter().any(|kin| !kin.is_empty()).then_some(kinship);
    // The tables are locked before the snapshot, which does not see what TRUNCATE, a partition that
    // comes or goes, or a rewrite of a table does to it later.
    let names: Vec<String> = source.target.names().map(|name| name.quoted()).collect();
    if !names.is_empty() {
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        match executor.run(&lock).await {
            Ok(()) => script = format!("{lock}; {script}"),
            // A role that may read some columns only locks nothing.
            Err(error) if error.kind == ErrorKind::ReadOnly => {}
            Err(error) => return Err(source_failed("locking the source", &counter, error)),
        }
    }
    source.opening = Opening { script, is_locked: false };
    Ok(source)
}

/// Finds what PostgreSQL cannot prepare, and columns that do not have the types of the key and of
/// amounts, before anything runs.
async fn check_types<E: Executor + ?Sized>(executor: &mut E, source: &RowSource) -> Result<()> {
    let counter = &source.counter;
    let kinds =
        answer(executor, counter, PREPARING, source.statements.types.clone(), Vec::new()).await?;
    for (part, kind) in counter.parts().as_slice().iter().zip(&kinds) {
        if !fits(*part, kind) {
            let reason = format!("a key of {part} cannot be read from a column of type {kind}");
            return Err(Error::source(counter, None, reason));
        }
    }
    let amount = kinds.last().filter(|_| !source.by_tally && source.target.amount.is_some());
    if let Some(kind) = amount.filter(|kind| !is_amount(kind)) {
        let reason = format!("its amounts are of type {kind}, and must be integers");
        return Err(Error::source(counter, None, reason));
    }
    for (text, values) in shapes(Dialect::Postgres, source) {
        answer(executor, counter, PREPARING, format!("EXPLAIN {text}"), values).await?;
    }
    Ok(())
}

/// The texts that a statement about the source answers, such as the lines of a plan. `what` is for
/// errors.
async fn answer<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    what: &str,
    text: String,
    values: Vec<Value<'_>>,
) -> Result<Vec<String>> {
    let texts = texts(executor, &Query::new(text, values)).await;
    texts.map_err(source_stopped(what, counter))
}

/// Whether a column of this type holds such a part of a key, and compares as it does.
fn fits(part: KeyPart, kind: &str) -> bool {
    match part {
        KeyPart::Signed(..=8) | KeyPart::Unsigned(..=8) => {
            matches!(kind, "smallint" | "integer" | "bigint")
        }
        KeyPart::Text => matches!(kind, "text" | "character varying"),
        KeyPart::Uuid => kind == "uuid",
        _ => kind == "bytea",
    }
}

fn is_amount(kind: &str) -> bool {
    matches!(kind, "smallint" | "integer" | "bigint" | "numeric")
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
    "SELECT n.nspname::text, (array_position(current_schemas(true), n.nspname) IS NOT NULL)::int, (n.oid = pg_my_temp_schema())::int, c.relispartition::int
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relname::text = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT pg_is_other_temp_schema(n.oid)
    ORDER BY array_position(current_schemas(true), n.nspname), 1";

/// Finds the one schema that a table's name stands for.
async fn find<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    name: &mut Name,
) -> Result<()> {
    let query = Query::new(NAMED.to_owned(), vec![Value::Text(name.table.clone().into())]);
    let (mut meant, mut others, mut is_part) = (Vec::new(), Vec::new(), false);
    let read = executor
        .fetch(std::slice::from_ref(&query), &mut |_, row| {
            let is = |at| row.column(at) == Column::Integer(1);
            let Column::Text(schema) = row.column(0) else { return Ok(()) };
            let is_meant = match name.schema.as_deref() {
                None => is(1),
                Some("pg_temp") => is(2),
                Some(wanted) => wanted == schema,
            };
            is_part |= is_meant && is(3);
            if is_meant { &mut meant } else { &mut others }.push(schema.into_owned());
            Ok(())
        })
        .await;
    read.or_failed_on("finding the tables of the source", counter)?;
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
async fn refuse_part<E: Executor + ?Sized>(
    executor: &mut E,
    counter: &CounterId,
    plan: &[String],
) -> Result<()> {
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
    let query = Query::new(text.to_owned(), vec![Value::Texts(names)]);
    let found = texts(executor, &query).await;
    let found = found.or_failed_on("inspecting the tables of the source", counter)?;
    let Some(name) = found.first() else { return Ok(()) };
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
