//! The write paths of the application: each takes a row's old values from the write itself, never
//! from an earlier read.

use keepcount::sql::{self, Dialect};
use keepcount::{Batch, Date, StreamRange};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgPool, Postgres, Row as _, Transaction};

use crate::counters::{SCHEMA, Setlist, TABLES, Vote};
use crate::{Error, Result, totals};

/// A pool of connections: writes that belong together go through one transaction.
///
/// A dropped transaction is rolled back when its connection returns to the pool. A dropped
/// transaction over a single connection is rolled back only when that is used again, and holds its
/// locks until then.
pub struct App {
    pool: PgPool,
}

impl App {
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self { pool: PgPool::connect(url).await? })
    }

    /// Runs the first migration: the application's tables and those of its counters.
    pub async fn migrate(&self) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        for statement in sql::ddl(Dialect::Postgres, &SCHEMA) {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    /// Shows count for no counter.
    pub async fn add_show(&self, slug: &str) -> Result<()> {
        sqlx::query("INSERT INTO shows (slug) VALUES ($1)").bind(slug).execute(&self.pool).await?;
        Ok(())
    }

    pub async fn add_setlist(&self, setlist: &Setlist) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let insert = sqlx::query("INSERT INTO setlists (id, show_slug) VALUES ($1, $2)");
        insert.bind(setlist.id).bind(&setlist.show).execute(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.insert(setlist);
        finish(tx, &batch).await
    }

    /// Moves a setlist with its votes to another show; the row's lock serializes conflicting
    /// changes of its membership.
    pub async fn move_setlist(&self, id: i64, show: &str) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let held =
            sqlx::query("SELECT id, show_slug FROM setlists WHERE id = $1 FOR UPDATE").bind(id);
        let Some(row) = held.fetch_optional(&mut *tx).await? else { return Ok(false) };
        let update =
            sqlx::query("UPDATE setlists SET show_slug = $2 WHERE id = $1 RETURNING id, show_slug");
        let new = update.bind(id).bind(show).fetch_one(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.update(&setlist_of(&row)?, &setlist_of(&new)?);
        finish(tx, &batch).await?;
        Ok(true)
    }

    /// Deletes a setlist with its votes: the parent's lock keeps new votes out, and one batch has
    /// all of it.
    pub async fn delete_setlist(&self, id: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let held = sqlx::query("SELECT id FROM setlists WHERE id = $1 FOR UPDATE").bind(id);
        if held.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let votes = sqlx::query(
            "DELETE FROM votes WHERE setlist_id = $1 RETURNING setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day",
        );
        for row in votes.bind(id).fetch_all(&mut *tx).await? {
            batch.delete(&vote_of(&row)?);
        }
        let setlist = sqlx::query("DELETE FROM setlists WHERE id = $1 RETURNING id, show_slug");
        batch.delete(&setlist_of(&setlist.bind(id).fetch_one(&mut *tx).await?)?);
        finish(tx, &batch).await?;
        Ok(true)
    }

    pub async fn vote(&self, vote: &Vote) -> Result<i64> {
        let mut tx = self.pool.begin().await?;
        let mut batch = Batch::new();
        let id = cast(&mut tx, vote, &mut batch).await?;
        finish(tx, &batch).await?;
        Ok(id)
    }

    pub async fn move_vote(&self, id: i64, setlist: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let held = sqlx::query(
            "SELECT setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day FROM votes WHERE id = $1 FOR UPDATE",
        )
        .bind(id);
        let Some(row) = held.fetch_optional(&mut *tx).await? else { return Ok(false) };
        let update = sqlx::query(
            "UPDATE votes SET setlist_id = $2 WHERE id = $1 RETURNING setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day",
        );
        let new = update.bind(id).bind(setlist).fetch_one(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.update(&vote_of(&row)?, &vote_of(&new)?);
        finish(tx, &batch).await?;
        Ok(true)
    }

    pub async fn delete_vote(&self, id: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let delete = sqlx::query(
            "DELETE FROM votes WHERE id = $1 RETURNING setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day",
        )
        .bind(id);
        let Some(row) = delete.fetch_optional(&mut *tx).await? else { return Ok(false) };
        let mut batch = Batch::new();
        batch.delete(&vote_of(&row)?);
        finish(tx, &batch).await?;
        Ok(true)
    }

    /// Takes the votes that can be taken, each in a savepoint with its own batch, and returns their
    /// number; a preview takes none.
    pub async fn import(&self, votes: &[Vote], preview: bool) -> Result<usize> {
        let mut tx = self.pool.begin().await?;
        let (mut batch, mut taken) = (Batch::new(), 0);
        for vote in votes {
            let mut savepoint = tx.begin().await?;
            let mut inner = Batch::new();
            match cast(&mut savepoint, vote, &mut inner).await {
                Ok(_) => {
                    savepoint.commit().await?;
                    batch.merge(&mut inner);
                    taken += 1;
                }
                Err(error) if no_such_setlist(&error) => savepoint.rollback().await?,
                // A lost connection or a deadlock fails the whole transaction.
                Err(error) => return Err(error),
            }
        }
        totals::apply(&mut tx, &SCHEMA, &batch).await?;
        if preview {
            tx.rollback().await?
        } else {
            tx.commit().await?
        }
        Ok(taken)
    }

    /// Takes the votes of a feed from number `first` on, once however often they are delivered;
    /// returns `false` if they were taken before.
    pub async fn deliver(&self, first: u64, votes: &[Vote]) -> Result<bool> {
        let stream_range = StreamRange::new("votes", first, first + votes.len() as u64 - 1)?;
        let mut tx = self.pool.begin().await?;
        let hold =
            sqlx::query_scalar(AssertSqlSafe(sql::lock_offset())).bind(stream_range.stream());
        let last: i64 = hold.fetch_one(&mut *tx).await?;
        if !stream_range.follows(last.try_into()?)? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        for vote in votes {
            cast(&mut tx, vote, &mut batch).await?;
        }
        totals::apply(&mut tx, &SCHEMA, &batch).await?;
        let set = sqlx::query(AssertSqlSafe(sql::set_offset(Dialect::Postgres)))
            .bind(stream_range.stream());
        set.bind(i64::try_from(stream_range.last())?).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Reads a total: it is a row like any other, so you can join with it.
    pub async fn show_votes(&self, show: &str) -> Result<i64> {
        let total = sqlx::query_scalar("SELECT total FROM show_votes WHERE key = $1").bind(show);
        Ok(total.fetch_optional(&self.pool).await?.unwrap_or(0))
    }
}

async fn finish(mut tx: Transaction<'_, Postgres>, batch: &Batch) -> Result<()> {
    totals::apply(&mut tx, &SCHEMA, batch).await?;
    Ok(tx.commit().await?)
}

/// Inserts or updates. Which of the two it was decides the hook, so it is two statements and not
/// `ON CONFLICT DO UPDATE`.
async fn cast(tx: &mut Transaction<'_, Postgres>, vote: &Vote, batch: &mut Batch) -> Result<i64> {
    let (user, day) = (vote.user, vote.day.to_string());
    // Between the two statements a vote may be deleted; then it is inserted after all.
    for _ in 0..10 {
        let insert = sqlx::query_scalar(
            "INSERT INTO votes (setlist_id, user_id, day) VALUES ($1, $2, $3::text::date) ON CONFLICT (setlist_id, user_id) DO NOTHING RETURNING id",
        );
        let inserted =
            insert.bind(vote.setlist).bind(user).bind(&day).fetch_optional(&mut **tx).await?;
        if let Some(id) = inserted {
            batch.insert(vote);
            return Ok(id);
        }
        let held = sqlx::query(
            "SELECT id, setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day FROM votes WHERE setlist_id = $1 AND user_id = $2 FOR UPDATE",
        );
        if let Some(old) = held.bind(vote.setlist).bind(user).fetch_optional(&mut **tx).await? {
            let id: i64 = old.try_get("id")?;
            let update = sqlx::query("UPDATE votes SET day = $2::text::date WHERE id = $1");
            update.bind(id).bind(&day).execute(&mut **tx).await?;
            batch.update(&vote_of(&old)?, vote);
            return Ok(id);
        }
    }
    Err("a vote that is given and taken again and again".into())
}

fn no_such_setlist(error: &Error) -> bool {
    let error = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.is_some_and(DatabaseError::is_foreign_key_violation)
}

/// A date's key is its text; without a date library the column is read as text too.
fn vote_of(row: &PgRow) -> Result<Vote> {
    let day: Date = row.try_get::<String, _>("day")?.parse()?;
    Ok(Vote { setlist: row.try_get("setlist_id")?, user: row.try_get("user_id")?, day })
}

fn setlist_of(row: &PgRow) -> Result<Setlist> {
    Ok(Setlist { id: row.try_get("id")?, show: row.try_get("show_slug")? })
}
