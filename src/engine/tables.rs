//! Creates the catalogue and the tables of totals, compares them with the schema, and drops
//! orphaned tables.

use super::rows::{integer, text};
use super::{OrFailed as _, Whose, after_reads, failed, of_catalogue, transact};
use crate::error::{Error, Result};
use crate::executor::{ErrorKind, Executor, Failure, Stopped};
use crate::key::KeyParts;
use crate::leaderboard::LeaderboardId;
use crate::schema::Schema;
use crate::sql::own_catalogue::{self, CatalogueRow, Known};
use crate::sql::{self, Dialect, Query, Value, table_descriptions};

/// The maximum length of a table's or index's name in PostgreSQL, in bytes. It truncates longer
/// ones.
const MAX_NAME: usize = 63;

/// Creates what is missing and checks what exists. With `rows`, the application already has rows,
/// so no new counter is ready.
pub(crate) async fn create<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    rows: bool,
) -> Result<()> {
    let nested = executor.is_nested();
    let journal = check_journal(executor).await;
    after_reads(executor, nested, journal)?;
    let operation = "making tables";
    transact!(executor, operation, create_all(executor, schema, rows))
}

async fn create_all<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    rows: bool,
) -> Result<()> {
    check_names(executor.dialect(), schema)?;
    if executor.dialect() == Dialect::Postgres {
        // "IF NOT EXISTS" fails in the second of two concurrent transactions, so a lock guards it:
        // one number for all that keepcount creates.
        make(executor, "SELECT pg_advisory_xact_lock(7809644625271157621)").await?;
    }
    let fresh = kind_of(executor, sql::CATALOGUE).await?.is_none();
    if let Some(reason) = elsewhere(executor).await? {
        return match check_all(executor, schema).await {
            Err(Error::SchemaMismatch { .. }) => {
                Err(Error::SchemaMismatch { table: sql::CATALOGUE.to_owned(), reason })
            }
            nothing_is_missing => nothing_is_missing,
        };
    }
    let own = [sql::create_catalogue, sql::create_offsets, sql::create_runs]
        .map(|create| create(executor.dialect()));
    for text in own.into_iter().chain(sql::create_locks(executor.dialect())) {
        make(executor, &text).await?;
    }
    // A table of that name that is not keepcount's is named before anything is made on it.
    let known = catalogue(executor).await?;
    make(executor, &sql::create_unready(executor.dialect())).await?;
    for spec in schema.counters() {
        if let Some(known) = known.iter().find(|known| known.row.name == spec.id().full_name()) {
            if spec.only_became_prunable(&known.row.placement) {
                make(executor, &sql::replace(spec)).await?;
            }
            continue;
        }
        refuse_foreign(executor, &spec.table_name(), "counter").await?;
        make(executor, &sql::create(executor.dialect(), spec)).await?;
        make(executor, &sql::enlist(spec, fresh && !rows)).await?;
        if let Some(text) = sql::take_over_cutoff(spec) {
            make(executor, &text).await?;
        }
    }
    for spec in schema.counters() {
        // Also for a counter that existed before it became a membership. An existing index is not
        // touched: even a CREATE that finds it would make writers in PostgreSQL wait for each
        // other.
        let child = schema.child_parts(&spec.id());
        if let (Some(child), None) = (child, kind_of(executor, &sql::by_parent(spec)).await?) {
            make(executor, &sql::create_by_parent(executor.dialect(), spec, child)).await?;
        }
    }
    for leaderboard in schema.leaderboard_ids() {
        if known.iter().any(|known| known.row.name == leaderboard.name()) {
            continue;
        }
        refuse_foreign(executor, &leaderboard.table_name(), "leaderboard").await?;
        for text in sql::leaderboard::ddl(executor.dialect(), leaderboard, fresh) {
            make(executor, &text).await?;
        }
    }
    check_all(executor, schema).await
}

async fn make<E: Executor + ?Sized>(executor: &mut E, text: &str) -> Result<()> {
    executor.run(text).await.map_err(|error| failed(Whose::Connection, "making tables", error))
}

async fn refuse_foreign<E: Executor + ?Sized>(
    executor: &mut E,
    table: &str,
    whose: &str,
) -> Result<()> {
    match kind_of(executor, table).await? {
        None => Ok(()),
        Some(_) => Err(Error::SchemaMismatch {
            table: table.to_owned(),
            reason: format!("it exists already, and is not keepcount's; rename it or the {whose}"),
        }),
    }
}

/// Compares the catalogue and the tables with the schema.
pub(crate) async fn check<E: Executor + ?Sized>(executor: &mut E, schema: &Schema) -> Result<()> {
    let nested = executor.is_nested();
    let checked = check_all(executor, schema).await;
    after_reads(executor, nested, checked)
}

async fn check_all<E: Executor + ?Sized>(executor: &mut E, schema: &Schema) -> Result<()> {
    check_names(executor.dialect(), schema)?;
    check_journal(executor).await?;
    if kind_of(executor, sql::CATALOGUE).await?.is_none() {
        return Err(Error::SchemaMismatch {
            table: sql::CATALOGUE.to_owned(),
            reason: "it is absent: this database has no keepcount tables yet; make them with the store's create() or \
                     the statements of sql::ddl"
                .to_owned(),
        });
    }
    let known = catalogue(executor).await?;
    refuse_faults(executor, sql::CATALOGUE, false).await?;
    for spec in schema.counters() {
        let id = spec.id();
        let table = spec.table_name();
        check_row(&known, "counter", &CatalogueRow::of(spec), &table)?;
        check_keyed(
            executor,
            &table,
            id.parts(),
            ("total", sql::column_kind(executor.dialect(), None)),
        )
        .await?;
        if schema.child_parts(&id).is_some() {
            check_index(executor, table, &sql::by_parent(spec)).await?;
        }
    }
    for (table, columns) in sql::own_tables(executor.dialect()) {
        check_table(executor, table, &columns, true).await?;
    }
    own_catalogue::check_others(schema, &known, "the store's drop_counter()")?;
    for leaderboard in schema.leaderboard_ids() {
        let table = leaderboard.table_name();
        check_row(&known, "leaderboard", &CatalogueRow::of_leaderboard(leaderboard), &table)?;
        check_keyed(
            executor,
            &table,
            leaderboard.parts(),
            ("score", sql::leaderboard::score_column(executor.dialect(), leaderboard)),
        )
        .await?;
        let index = format!("{table}_order");
        check_index(executor, table, &index).await?;
    }
    Ok(())
}

fn not_in_catalogue(what: &str, name: &str, table: String) -> Error {
    let reason = format!(
        "{what} {name} is not in the catalogue {}; the store's create() adds it",
        sql::CATALOGUE
    );
    Error::SchemaMismatch { table, reason }
}

/// After an update of the catalogue: refuses one that wrote nothing because there is no row for
/// this counter or leaderboard.
pub(crate) async fn check_updated<E: Executor + ?Sized>(
    executor: &mut E,
    written: &[u64],
    (what, name): (&str, &str),
    table: String,
) -> Result<()> {
    if written.first() > Some(&0)
        || catalogue(executor).await?.iter().any(|known| known.row.name == name)
    {
        return Ok(());
    }
    Err(not_in_catalogue(what, name, table))
}

/// Compares the catalogue's entry for a counter or leaderboard with the schema's.
fn check_row(known: &[Known], what: &str, wanted: &CatalogueRow, table: &str) -> Result<()> {
    match known.iter().find(|known| known.row.name == wanted.name) {
        None => Err(not_in_catalogue(what, &wanted.name, table.to_owned())),
        Some(Known { row, .. }) if row != wanted => Err(Error::SchemaMismatch {
            table: table.to_owned(),
            reason: format!("the catalogue says {row}, the schema {wanted}"),
        }),
        Some(_) => Ok(()),
    }
}

async fn check_index<E: Executor + ?Sized>(
    executor: &mut E,
    table: String,
    index: &str,
) -> Result<()> {
    if kind_of(executor, index).await?.as_deref() == Some("index") {
        return Ok(());
    }
    Err(Error::SchemaMismatch {
        table,
        reason: format!("its index {index} is absent; the store's create() makes it"),
    })
}

async fn check_keyed<E: Executor + ?Sized>(
    executor: &mut E,
    table: &str,
    parts: KeyParts,
    last: (&str, &str),
) -> Result<()> {
    check_table(
        executor,
        table,
        &table_descriptions::keyed(executor.dialect(), parts, last),
        table_descriptions::has_texts(parts),
    )
    .await
}

/// Refuses a table that does not have exactly these columns, or that could write something else
/// than it is told.
async fn check_table<E: Executor + ?Sized>(
    executor: &mut E,
    table: &str,
    wanted: &[String],
    texts: bool,
) -> Result<()> {
    let schema = |reason: String| Err(Error::SchemaMismatch { table: table.to_owned(), reason });
    match kind_of(executor, table).await?.as_deref() {
        Some("table") => {}
        Some(other) => return schema(format!("it is a {other}, not a table")),
        None => return schema("it is absent; the store's create() makes it".to_owned()),
    }
    let columns = said(executor, table_descriptions::columns_of(executor.dialect(), table)).await?;
    if columns != wanted {
        return schema(format!(
            "its columns are ({}), not ({})",
            columns.join(", "),
            wanted.join(", ")
        ));
    }
    refuse_faults(executor, table, texts).await
}

async fn refuse_faults<E: Executor + ?Sized>(
    executor: &mut E,
    table: &str,
    texts: bool,
) -> Result<()> {
    for query in table_descriptions::faults(executor.dialect(), table, texts) {
        if let Some(reason) = said(executor, query).await?.into_iter().next() {
            return Err(Error::SchemaMismatch { table: table.to_owned(), reason });
        }
    }
    Ok(())
}

/// Refuses a SQLite connection that cannot roll back: a batch that fails midway would stay half
/// applied, or damage the file.
async fn check_journal<E: Executor + ?Sized>(executor: &mut E) -> Result<()> {
    if executor.dialect() != Dialect::Sqlite {
        return Ok(());
    }
    let mode = said(executor, Query::new("PRAGMA main.journal_mode", Vec::new())).await?;
    if mode.iter().any(|mode| mode.eq_ignore_ascii_case("off")) {
        let reason = "it is OFF, so that nothing can be rolled back; choose another before this connection writes";
        return Err(Error::invalid_use("journal_mode", reason));
    }
    Ok(())
}

/// Refuses names that PostgreSQL would truncate: two of them could become the same.
fn check_names(dialect: Dialect, schema: &Schema) -> Result<()> {
    if dialect != Dialect::Postgres {
        return Ok(());
    }
    let counters = schema.counters().iter().map(|spec| match schema.child_parts(&spec.id()) {
        Some(_) => sql::by_parent(spec),
        None => spec.table_name(),
    });
    let leaderboards = schema
        .leaderboard_ids()
        .iter()
        .map(|leaderboard| format!("{}_order", LeaderboardId::table_name(leaderboard)));
    let long = counters.chain(leaderboards).find(|name| name.len() > MAX_NAME);
    long.map_or(Ok(()), |table| {
        let reason =
            format!("its name has {} bytes, PostgreSQL's have at most {MAX_NAME}", table.len());
        Err(Error::SchemaMismatch { table, reason })
    })
}

/// The reason, if PostgreSQL's catalogue is in another schema than the one in which tables would be
/// created.
async fn elsewhere<E: Executor + ?Sized>(executor: &mut E) -> Result<Option<String>> {
    match executor.dialect() {
        Dialect::Sqlite => Ok(None),
        Dialect::Postgres => {
            Ok(said(executor, table_descriptions::elsewhere()).await?.into_iter().next())
        }
    }
}

/// The kind of object that a name stands for, if any.
async fn kind_of<E: Executor + ?Sized>(executor: &mut E, name: &str) -> Result<Option<String>> {
    Ok(said(executor, table_descriptions::kind_of(executor.dialect(), name))
        .await?
        .into_iter()
        .next())
}

/// The texts that a query about the schema returns.
async fn said<E: Executor + ?Sized>(executor: &mut E, query: Query<'_>) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let read = executor
        .fetch(&[query], &mut |_, row| {
            texts.extend(text(row, 0, "of the database's schema tables")?);
            Ok(())
        })
        .await;
    read.or_failed(Whose::Connection, "reading the schema")?;
    Ok(texts)
}

/// The catalogue's rows, in the order of names. It names every column, although nothing here reads
/// the cutoff: a catalogue without one is of another build, and is refused.
pub(crate) async fn catalogue<E: Executor + ?Sized>(executor: &mut E) -> Result<Vec<Known>> {
    let query = Query::new(
        format!(
            r#"SELECT c."name", c."key", c."version", c."placement", c."identity", c."ready", c."cutoff" FROM "{}" AS c ORDER BY c."name""#,
            sql::CATALOGUE
        ),
        Vec::new(),
    );
    let mut known = Vec::new();
    let read = executor
        .fetch(&[query], &mut |_, row| {
            let text = |at| Ok(text(row, at, sql::CATALOGUE)?.unwrap_or_default());
            let integer = |at| integer(row, at, sql::CATALOGUE);
            // A version that is not a u32 matches no counter.
            let version = u32::try_from(integer(2)?).unwrap_or(u32::MAX);
            let declared =
                CatalogueRow { name: text(0)?, key: text(1)?, version, placement: text(3)? };
            known.push(Known { row: declared, identity: integer(4)?, ready: integer(5)? != 0 });
            Ok(())
        })
        .await;
    read.map_err(|stopped| match stopped {
        Stopped::Failed { error, .. } if is_foreign(&error) => Error::SchemaMismatch {
            table: sql::CATALOGUE.to_owned(),
            reason: format!(
                "it is not keepcount's catalogue: {}",
                crate::error::chain(&*error.cause)
            ),
        },
        stopped => stopped.or(|_, error| failed(of_catalogue(), "reading the catalogue", error)),
    })?;
    Ok(known)
}

/// Locks PostgreSQL's catalogue table until the transaction ends. In mode `EXCLUSIVE` it waits for
/// transactions that lock cutoffs, and keeps others from locking them. A row lock could starve
/// behind new `FOR SHARE` holders; table locks queue. In mode `ROW EXCLUSIVE` it waits for those in
/// mode `EXCLUSIVE`, and they for it. What an older snapshot read may be outdated by now, so the
/// transaction must see what is committed.
pub(crate) async fn lock_catalogue<E: Executor + ?Sized>(
    executor: &mut E,
    mode: &str,
) -> Result<()> {
    if executor.dialect() != Dialect::Postgres {
        return Ok(());
    }
    let lock = format!(r#"LOCK TABLE "{}" IN {mode} MODE"#, sql::CATALOGUE);
    let locked = executor.run(&lock).await;
    locked
        .map_err(|error| failed(of_catalogue(), &format!("locking {}", sql::CATALOGUE), error))?;
    refuse_snapshot(executor).await
}

/// Refuses a PostgreSQL transaction that sees what was committed when it began instead of what is
/// committed now.
async fn refuse_snapshot<E: Executor + ?Sized>(executor: &mut E) -> Result<()> {
    if executor.dialect() != Dialect::Postgres {
        return Ok(());
    }
    let query = Query::new("SELECT current_setting('transaction_isolation')", Vec::new());
    let mut isolation = None;
    let read = executor
        .fetch(&[query], &mut |_, row| {
            isolation = text(row, 0, "transaction_isolation")?;
            Ok(())
        })
        .await;
    read.or_failed(Whose::Connection, "inspecting the transaction")?;
    match isolation.unwrap_or_default().as_str() {
        "read committed" | "read uncommitted" => Ok(()),
        isolation => Err(Error::invalid_use(
            "transaction_isolation",
            format!("it is {isolation}; prunes and rebuilds need read committed"),
        )),
    }
}

/// Whether a column is missing.
fn is_foreign(error: &Failure) -> bool {
    error.kind == ErrorKind::Misfit
}

/// A number that tells this database's totals from another's.
pub(crate) async fn identity<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
) -> Result<u64> {
    Ok(own_catalogue::identity(schema, &catalogue(executor).await?))
}

/// The counters and leaderboards of this database that the schema does not have, by their full
/// names.
pub(crate) async fn orphaned<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
) -> Result<Vec<String>> {
    let nested = executor.is_nested();
    let known = catalogue(executor).await;
    let known = after_reads(executor, nested, known)?.into_iter().map(|known| known.row.name);
    Ok(known.filter(|name| !sql::lists(schema, name)).collect())
}

/// Drops the table of an orphaned counter or leaderboard, and its row in the catalogue.
pub(crate) async fn drop_counter<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    name: &str,
) -> Result<()> {
    let operation = format!("dropping {name}");
    transact!(executor, &operation, drop_orphan(executor, schema, name, &operation))
}

async fn drop_orphan<E: Executor + ?Sized>(
    executor: &mut E,
    schema: &Schema,
    name: &str,
    operation: &str,
) -> Result<()> {
    let known = catalogue(executor).await?;
    let table = own_catalogue::orphaned(schema, &known, name)?.table_name();
    // Before the table, as a prune does.
    let text = format!(
        r#"DELETE FROM "{}" AS c WHERE c."name" = {}"#,
        sql::CATALOGUE,
        executor.dialect().param(1)
    );
    let gone = executor.execute(&[Query::new(text, vec![Value::Text(name.into())])]).await;
    gone.or_failed(of_catalogue(), operation)?;
    let dropped = executor.run(&format!("DROP TABLE IF EXISTS {}", sql::quote(&table))).await;
    dropped.map_err(|error| failed(Whose::Connection, operation, error))
}
