//! keepcount with sqlx: runs the statements of `keepcount::sql` in the application's own
//! transaction.
//!
//! docs/libraries.md shows the function between the markers; a test compares both.

use keepcount::{Batch, Record, StreamRange, Tally};
use sqlx::{Connection as _, Row as _};

keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }

struct Vote {
    show: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
    }
}

// docs/libraries.md: begin
use keepcount::sql::{self, Dialect, Value};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, query::Query, sqlite::SqliteArguments};

async fn apply(
    conn: &mut SqliteConnection,
    batch: &Batch,
) -> Result<(), Box<dyn std::error::Error>> {
    for statement in sql::apply(Dialect::Sqlite, &SCHEMA, batch)? {
        for row in statement.rows() {
            let mut query: Query<'_, Sqlite, SqliteArguments> =
                sqlx::query(AssertSqlSafe(statement.text.as_str()));
            for value in row {
                query = match value {
                    Value::Integer(number) => query.bind(*number),
                    Value::Text(text) => query.bind(text.to_string()),
                    Value::Blob(bytes) | Value::Uuid(bytes) => query.bind(bytes.to_vec()),
                    other => unreachable!("{other:?} is in no batch on SQLite"),
                };
            }
            query.execute(&mut *conn).await?;
        }
    }
    Ok(()) // behind the commit: `batch.spend()`, if the batch is used again
}
// docs/libraries.md: end

/// Applies events once, in the transaction that wrote their rows. Returns `false` if they were
/// applied before: roll back then.
async fn apply_idempotent(
    conn: &mut SqliteConnection,
    batch: &Batch,
    stream_range: &StreamRange<'_>,
) -> Result<bool, Box<dyn std::error::Error>> {
    let read = sqlx::query_scalar(AssertSqlSafe(sql::read_offset(Dialect::Sqlite)))
        .bind(stream_range.stream().to_owned());
    let last: Option<i64> = read.fetch_optional(&mut *conn).await?;
    if !stream_range.follows(last.unwrap_or(0).try_into()?)? {
        return Ok(false);
    }
    apply(conn, batch).await?;
    let set = sqlx::query(AssertSqlSafe(sql::set_offset(Dialect::Sqlite)))
        .bind(stream_range.stream().to_owned());
    set.bind(i64::try_from(stream_range.last())?).execute(&mut *conn).await?;
    Ok(true)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut conn = SqliteConnection::connect("sqlite::memory:").await?;
    sqlx::query("CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL)")
        .execute(&mut conn)
        .await?;
    for statement in sql::ddl(Dialect::Sqlite, &SCHEMA) {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut conn).await?;
    }

    // Committed: the vote and its total.
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    let mut batch = Batch::new();
    sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&mut *tx).await?;
    batch.insert(&Vote { show: 7 });
    apply(&mut tx, &batch).await?;
    tx.commit().await?;

    // Rolled back: neither.
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&mut *tx).await?;
    apply(&mut tx, &batch).await?;
    tx.rollback().await?;

    // Delivered twice: applied once.
    let event = StreamRange::new("votes", 1, 1)?;
    for delivered in 1..=2 {
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&mut *tx).await?;
        let applied = apply_idempotent(&mut tx, &batch, &event).await?;
        assert_eq!(applied, delivered == 1);
        if applied { tx.commit().await? } else { tx.rollback().await? }
    }

    let total: i64 = sqlx::query("SELECT total FROM show_votes WHERE key = 7")
        .fetch_one(&mut conn)
        .await?
        .get(0);
    let votes: i64 = sqlx::query("SELECT count(*) FROM votes").fetch_one(&mut conn).await?.get(0);
    assert_eq!((total, votes), (2, 2));
    println!("show 7: {total} votes");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn docs_page_shows_the_compiled_function() {
        let shown = |text: &'static str, begin: &str, end: &str| {
            text.split_once(begin)
                .and_then(|(_, rest)| rest.split_once(end))
                .map(|(shown, _)| shown.trim())
                .unwrap()
        };
        let source = shown(
            include_str!("main.rs"),
            "// docs/libraries.md: begin\n",
            "// docs/libraries.md: end\n",
        );
        let page = include_str!("../../../docs/libraries.md");
        assert!(page.contains(source), "docs/libraries.md does not show src/main.rs's `apply`");
    }

    #[test]
    fn totals_commit_and_roll_back_with_the_rows() {
        super::main().unwrap();
    }
}
