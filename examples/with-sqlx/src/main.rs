//! keepcount with sqlx, in SQLite: writes, a batch that is rolled back, events that are delivered
//! twice, and a repair by the application's own pool.
//!
//! docs/libraries.md shows the function between the markers; a test compares both.

use keepcount::reconcile::{Columns, repair};
use keepcount::{AsyncStore as _, Batch, Record, StreamRange, Tally};
use keepcount_sqlx::{SqliteAudit, SqliteRows, SqliteStore};
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Row as _, SqlitePool};

keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }

struct Vote {
    show: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SHOW_VOTES, self.show, 1);
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

// docs/libraries.md: begin
async fn vote(pool: &SqlitePool, vote: &Vote) -> Result<()> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO votes (show_id) VALUES (?)").bind(vote.show).execute(&mut *tx).await?;
    let mut batch = Batch::new();
    batch.insert(vote);
    SqliteStore::new(&mut tx, &SCHEMA).apply(&mut batch).await?;
    Ok(tx.commit().await?)
}

async fn nightly(pool: &SqlitePool) -> Result<()> {
    let mut conn = pool.acquire().await?;
    let mut audit = SqliteAudit::new(&mut conn, &SCHEMA).await?;
    let votes = SqliteRows::of("votes", |row| Ok(Vote { show: row.try_get("show_id")? }));
    audit.add(votes.key(SHOW_VOTES, Columns::of(["show_id"]).count())).await?;
    println!("{}", repair(&SCHEMA).run_async(&mut audit).await?);
    Ok(())
}
// docs/libraries.md: end

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    let tables = "CREATE TABLE votes (id INTEGER PRIMARY KEY, show_id INTEGER NOT NULL);
                  CREATE INDEX votes_by_show ON votes (show_id)";
    sqlx::raw_sql(tables).execute(&pool).await?;
    SqliteStore::new(&mut *pool.acquire().await?, &SCHEMA).create().await?;

    // Committed: the vote and its total.
    vote(&pool, &Vote { show: 7 }).await?;

    // Rolled back: neither.
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&mut *tx).await?;
    let mut batch = Batch::new();
    batch.insert(&Vote { show: 7 });
    SqliteStore::new(&mut tx, &SCHEMA).apply(&mut batch).await?;
    tx.rollback().await?;

    // Delivered twice: written once.
    let event = StreamRange::new("votes", 1, 1)?;
    for delivered in 1..=2 {
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.insert(&Vote { show: 7 });
        let mut store = SqliteStore::new(&mut tx, &SCHEMA);
        let applied = store.apply_idempotent(&mut batch, &event).await?;
        assert_eq!(applied.skipped, delivered == 2);
        if applied.skipped { tx.rollback().await? } else { tx.commit().await? }
    }

    // A row that no hook counted.
    sqlx::query("INSERT INTO votes (show_id) VALUES (7)").execute(&pool).await?;
    nightly(&pool).await?;
    let mut conn = pool.acquire().await?;
    let total = SqliteStore::new(&mut conn, &SCHEMA).total(SHOW_VOTES, 7).await?;
    let votes: i64 = sqlx::query_scalar("SELECT count(*) FROM votes").fetch_one(&mut *conn).await?;
    assert_eq!((total, votes), (3, 3));
    println!("show 7: {total} votes");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn docs_page_shows_the_compiled_functions() {
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
        assert!(page.contains(source), "docs/libraries.md does not show what main.rs compiles");
    }

    #[test]
    fn totals_commit_and_roll_back_with_the_rows_and_are_repaired() {
        super::main().unwrap();
    }
}
