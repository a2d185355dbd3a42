//! Makes the catalogue and the tables of totals, compares them with the layout, and drops what the layout lost.

use super::rows::{integer, of_catalogue, text};
use super::{Whose, after_reads, begin, end, failed};
use crate::board::{self, BoardDef};
use crate::error::{Error, Result};
use crate::executor::{DriverError, ErrorKind, Executor, Stopped};
use crate::key::KeyParts;
use crate::layout::Layout;
use crate::sql::{self, Dialect, Query, Value, inspect};
use crate::store::catalogue::{self, CatalogueRow, Known};

/// The longest name of a table or index of PostgreSQL's, which cuts longer ones.
const NAME_MOST: usize = 63;

/// Makes what is not there yet, and checks what is. With `rows` that are there already, nothing that comes new is ready.
pub(crate) async fn create<E: Executor>(executor: &mut E, layout: &Layout, rows: bool) -> Result<()> {
    let nested = executor.is_nested();
    let journal = check_journal(executor).await;
    after_reads(executor, nested, journal)?;
    let doing = "making tables";
    let nested = begin(executor, doing).await?;
    let made = create_all(executor, layout, rows).await;
    end(executor, nested, doing, made).await
}

async fn create_all<E: Executor>(executor: &mut E, layout: &Layout, rows: bool) -> Result<()> {
    check_names(E::DIALECT, layout)?;
    if E::DIALECT == Dialect::Postgres {
        // "IF NOT EXISTS" of two transactions at once fails in the second; one number for all that keepcount makes.
        make(executor, "SELECT pg_advisory_xact_lock(7809644625271157621)").await?;
    }
    let fresh = kind_of(executor, sql::CATALOGUE).await?.is_none();
    if let Some(reason) = elsewhere(executor).await? {
        return match check_all(executor, layout).await {
            Err(Error::Schema { .. }) => Err(Error::Schema { table: sql::CATALOGUE.to_owned(), reason }),
            nothing_is_missing => nothing_is_missing,
        };
    }
    let own = [sql::create_catalogue, sql::create_marks, sql::create_runs].map(|create| create(E::DIALECT));
    for text in own.into_iter().chain(sql::create_locks(E::DIALECT)).chain([sql::create_unready(E::DIALECT)]) {
        make(executor, &text).await?;
    }
    let known = catalogue(executor).await?;
    for placed in layout.counters() {
        if let Some(known) = known.iter().find(|known| known.row.name == placed.def().full_name()) {
            if format!("{}, prunable", known.row.placement) == placed.place() {
                // Only what apply looks for is new.
                make(executor, &sql::replace(placed)).await?;
            }
            continue;
        }
        refuse_foreign(executor, &placed.table_name(), "counter").await?;
        make(executor, &sql::create(E::DIALECT, placed)).await?;
        make(executor, &sql::enlist(placed, fresh && !rows)).await?;
        if let Some(text) = sql::take_over_cut(placed) {
            make(executor, &text).await?;
        }
    }
    for placed in layout.counters() {
        // Also of a counter that was there before it became a link.
        // Where it is there, not even to look: that alone would make writers of PostgreSQL's wait for one another.
        let child = layout.child_parts(&placed.def());
        if let (Some(child), None) = (child, kind_of(executor, &sql::by_parent(placed)).await?) {
            make(executor, &sql::create_by_parent(E::DIALECT, placed, child)).await?;
        }
    }
    for board in layout.board_defs() {
        if known.iter().any(|known| known.row.name == board.name()) {
            continue;
        }
        refuse_foreign(executor, &board.table_name(), "board").await?;
        for text in board::ddl(E::DIALECT, board, fresh) {
            make(executor, &text).await?;
        }
    }
    check_all(executor, layout).await
}

async fn make<E: Executor>(executor: &mut E, text: &str) -> Result<()> {
    executor.run(text).await.map_err(|error| failed(Whose::Connection, "making tables", error))
}

async fn refuse_foreign<E: Executor>(executor: &mut E, table: &str, whose: &str) -> Result<()> {
    match kind_of(executor, table).await? {
        None => Ok(()),
        Some(_) => Err(Error::Schema {
            table: table.to_owned(),
            reason: format!("it is there already, and is not one of keepcount's; rename it or the {whose}"),
        }),
    }
}

/// Compares catalogue and tables with the layout.
pub(crate) async fn check<E: Executor>(executor: &mut E, layout: &Layout) -> Result<()> {
    let nested = executor.is_nested();
    let checked = check_all(executor, layout).await;
    after_reads(executor, nested, checked)
}

async fn check_all<E: Executor>(executor: &mut E, layout: &Layout) -> Result<()> {
    check_names(E::DIALECT, layout)?;
    check_journal(executor).await?;
    if kind_of(executor, sql::CATALOGUE).await?.is_none() {
        return Err(Error::Schema {
            table: sql::CATALOGUE.to_owned(),
            reason: "it is absent: this database has no keepcount tables yet; make them with the store's create() or \
                     the statements of Layout::ddl"
                .to_owned(),
        });
    }
    refuse_faults(executor, sql::CATALOGUE, true).await?;
    let known = catalogue(executor).await?;
    for placed in layout.counters() {
        let def = placed.def();
        let table = placed.table_name();
        check_row(&known, &CatalogueRow::of(placed), &table)?;
        check_keyed(executor, &table, def.parts(), ("total", sql::column_kind(E::DIALECT, None))).await?;
        if layout.child_parts(&def).is_some() {
            check_index(executor, table, &sql::by_parent(placed)).await?;
        }
    }
    for (table, columns) in sql::own_tables(E::DIALECT) {
        check_table(executor, table, &columns, true).await?;
    }
    catalogue::check_others(layout, &known, "the store's forget()")?;
    for board in layout.board_defs() {
        let table = board.table_name();
        check_row(&known, &CatalogueRow::of_board(board), &table)?;
        check_keyed(executor, &table, board.parts(), ("score", board::score_column(E::DIALECT, board))).await?;
        let index = format!("{table}_order");
        check_index(executor, table, &index).await?;
    }
    Ok(())
}

/// Compares what the catalogue says of a counter or leaderboard with what the layout says.
fn check_row(known: &[Known], wanted: &CatalogueRow, table: &str) -> Result<()> {
    let schema = |reason: String| Err(Error::Schema { table: table.to_owned(), reason });
    match known.iter().find(|known| known.row.name == wanted.name) {
        None => {
            let (name, catalogue) = (&wanted.name, sql::CATALOGUE);
            schema(format!("{name} is not in the catalogue {catalogue}; the store's create() adds it"))
        }
        Some(Known { row, .. }) if row != wanted => schema(format!("the catalogue says {row}, the layout {wanted}")),
        Some(_) => Ok(()),
    }
}

async fn check_index<E: Executor>(executor: &mut E, table: String, index: &str) -> Result<()> {
    if kind_of(executor, index).await?.as_deref() == Some("index") {
        return Ok(());
    }
    Err(Error::Schema { table, reason: format!("its index {index} is absent; the store's create() makes it") })
}

async fn check_keyed<E: Executor>(executor: &mut E, table: &str, parts: KeyParts, last: (&str, &str)) -> Result<()> {
    check_table(executor, table, &inspect::keyed(E::DIALECT, parts, last), inspect::has_texts(parts)).await
}

/// Refuses a table that has not just these columns, or that could write otherwise than it is told.
async fn check_table<E: Executor>(executor: &mut E, table: &str, wanted: &[String], texts: bool) -> Result<()> {
    let schema = |reason: String| Err(Error::Schema { table: table.to_owned(), reason });
    match kind_of(executor, table).await?.as_deref() {
        Some("table") => {}
        Some(other) => return schema(format!("it is a {other}, not a table")),
        None => return schema("it is absent; the store's create() makes it".to_owned()),
    }
    let columns = said(executor, inspect::columns_of(E::DIALECT, table)).await?;
    if columns != wanted {
        return schema(format!("its columns are ({}), not ({})", columns.join(", "), wanted.join(", ")));
    }
    refuse_faults(executor, table, texts).await
}

async fn refuse_faults<E: Executor>(executor: &mut E, table: &str, texts: bool) -> Result<()> {
    for query in inspect::faults(E::DIALECT, table, texts) {
        if let Some(reason) = said(executor, query).await?.into_iter().next() {
            return Err(Error::Schema { table: table.to_owned(), reason });
        }
    }
    Ok(())
}

/// Refuses a connection of SQLite's that cannot roll back: a batch that fails in its middle would stay half applied, or damage the file.
async fn check_journal<E: Executor>(executor: &mut E) -> Result<()> {
    if E::DIALECT != Dialect::Sqlite {
        return Ok(());
    }
    let mode = said(executor, Query::new("PRAGMA main.journal_mode", Vec::new())).await?;
    if mode.iter().any(|mode| mode.eq_ignore_ascii_case("off")) {
        let reason = "it is OFF, so that nothing can be rolled back; choose another before this connection writes";
        return Err(Error::setting("journal_mode", reason));
    }
    Ok(())
}

/// Refuses names that PostgreSQL would cut: two of them could become one.
fn check_names(dialect: Dialect, layout: &Layout) -> Result<()> {
    if dialect != Dialect::Postgres {
        return Ok(());
    }
    let counters = layout.counters().iter().map(|placed| match layout.child_parts(&placed.def()) {
        Some(_) => sql::by_parent(placed),
        None => placed.table_name(),
    });
    let boards = layout.board_defs().iter().map(|board| format!("{}_order", BoardDef::table_name(board)));
    let long = counters.chain(boards).find(|name| name.len() > NAME_MOST);
    long.map_or(Ok(()), |table| {
        let reason = format!("its name has {} bytes, PostgreSQL's have at most {NAME_MOST}", table.len());
        Err(Error::Schema { table, reason })
    })
}

/// That PostgreSQL's catalogue is in another schema than the one in which tables would be made.
async fn elsewhere<E: Executor>(executor: &mut E) -> Result<Option<String>> {
    match E::DIALECT {
        Dialect::Sqlite => Ok(None),
        Dialect::Postgres => Ok(said(executor, inspect::elsewhere()).await?.into_iter().next()),
    }
}

/// What a name stands for, if anything.
async fn kind_of<E: Executor>(executor: &mut E, name: &str) -> Result<Option<String>> {
    Ok(said(executor, inspect::kind_of(E::DIALECT, name)).await?.into_iter().next())
}

/// The texts that a query about the schema gives.
async fn said<E: Executor>(executor: &mut E, query: Query<'_>) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let read = executor
        .fetch(&[query], |_, row| {
            texts.extend(text(row, 0, "of the database's own schema")?);
            Ok(())
        })
        .await;
    read.map_err(|stopped| stopped.or(|_, error| failed(Whose::Connection, "reading the schema", error)))?;
    Ok(texts)
}

/// The catalogue's rows, in the order of names.
pub(crate) async fn catalogue<E: Executor>(executor: &mut E) -> Result<Vec<Known>> {
    let query = Query::new(
        format!(
            r#"SELECT c."name", c."key", c."version", c."placement", c."identity", c."ready", c."cut" FROM "{}" AS c ORDER BY c."name""#,
            sql::CATALOGUE
        ),
        Vec::new(),
    );
    let mut known = Vec::new();
    let read = executor
        .fetch(&[query], |_, row| {
            let text = |at| Ok(text(row, at, sql::CATALOGUE)?.unwrap_or_default());
            let integer = |at| integer(row, at, sql::CATALOGUE);
            // A version that is no u32 is nobody's.
            let version = u32::try_from(integer(2)?).unwrap_or(u32::MAX);
            let declared = CatalogueRow { name: text(0)?, key: text(1)?, version, placement: text(3)? };
            known.push(Known { row: declared, identity: integer(4)?, ready: integer(5)? != 0 });
            Ok(())
        })
        .await;
    read.map_err(|stopped| match stopped {
        Stopped::Failed { error, .. } if is_foreign(&error) => Error::Schema {
            table: sql::CATALOGUE.to_owned(),
            reason: format!("it is not keepcount's catalogue: {}", crate::error::chain(&*error.into_cause())),
        },
        stopped => stopped.or(|_, error| failed(of_catalogue(), "reading the catalogue", error)),
    })?;
    Ok(known)
}

/// Whether a column is not there.
fn is_foreign<E: DriverError>(error: &E) -> bool {
    error.kind() == ErrorKind::Misfit
}

/// What tells this database's totals from another's.
pub(crate) async fn identity<E: Executor>(executor: &mut E, layout: &Layout) -> Result<u64> {
    Ok(catalogue::identity(layout, &catalogue(executor).await?))
}

/// The counters and leaderboards of this database that the layout does not have, by their full names.
pub(crate) async fn lost<E: Executor>(executor: &mut E, layout: &Layout) -> Result<Vec<String>> {
    let nested = executor.is_nested();
    let known = catalogue(executor).await;
    let known = after_reads(executor, nested, known)?.into_iter().map(|known| known.row.name);
    Ok(known.filter(|name| !catalogue::has(layout, name)).collect())
}

/// Drops the table of a counter or leaderboard that is lost, and its row in the catalogue.
pub(crate) async fn forget<E: Executor>(executor: &mut E, layout: &Layout, name: &str) -> Result<()> {
    let doing = format!("forgetting {name}");
    let nested = begin(executor, &doing).await?;
    let forgotten = drop_lost(executor, layout, name, &doing).await;
    end(executor, nested, &doing, forgotten).await
}

async fn drop_lost<E: Executor>(executor: &mut E, layout: &Layout, name: &str, doing: &str) -> Result<()> {
    let known = catalogue(executor).await?;
    let table = catalogue::lost(layout, &known, name)?.table_name();
    let dropped = executor.run(&format!("DROP TABLE IF EXISTS {}", sql::quote(&table))).await;
    dropped.map_err(|error| failed(Whose::Connection, doing, error))?;
    let text = format!(r#"DELETE FROM "{}" AS c WHERE c."name" = {}"#, sql::CATALOGUE, E::DIALECT.param(1));
    let gone = executor.execute(&[Query::new(text, vec![Value::Text(name.into())])]).await;
    gone.map(drop).map_err(|stopped| stopped.or(|_, error| failed(of_catalogue(), doing, error)))
}
