//! The write paths of the application: each takes a row's old values from the write itself, never
//! from an earlier read.

use keepcount::{AsyncStore as _, Batch, Date, StreamRange};
use keepcount_sqlx::PostgresStore;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgPool, Postgres, Row as _, Transaction};

use crate::counters::{SCHEMA, SHOW_VOTES, Setlist, TABLES, Vote};
use crate::{Error, Result};

/// A pool of connections: writes that belong together go through one transaction.
///
/// A dropped transaction is rolled back when its connection returns to the pool. Over a single
/// connection, it is rolled back only when that connection is used again, and holds its locks until
/// then.
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
        PostgresStore::new(&mut tx, &SCHEMA).create().await?;
        Ok(tx.commit().await?)
    }

    /// Adds a show. No counter counts shows, so this needs no hook.
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
        apply_and_commit(tx, batch).await
    }

    /// Moves a setlist with its votes to another show; the row's lock serializes conflicting
    /// changes of its membership.
    pub async fn move_setlist(&self, id: i64, show: &str) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let select =
            sqlx::query("SELECT id, show_slug FROM setlists WHERE id = $1 FOR UPDATE").bind(id);
        let Some(old) = select.fetch_optional(&mut *tx).await? else { return Ok(false) };
        let update =
            sqlx::query("UPDATE setlists SET show_slug = $2 WHERE id = $1 RETURNING id, show_slug");
        let new = update.bind(id).bind(show).fetch_one(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.update(&setlist_from(&old)?, &setlist_from(&new)?);
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    /// Deletes a setlist with its votes. The setlist's lock keeps new votes out; one batch has all
    /// deltas.
    pub async fn delete_setlist(&self, id: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let lock = sqlx::query("SELECT id FROM setlists WHERE id = $1 FOR UPDATE").bind(id);
        if lock.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let votes = sqlx::query(
            "DELETE FROM votes WHERE setlist_id = $1 RETURNING setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day",
        );
        for row in votes.bind(id).fetch_all(&mut *tx).await? {
            batch.delete(&vote_from(&row)?);
        }
        let setlist = sqlx::query("DELETE FROM setlists WHERE id = $1 RETURNING id, show_slug");
        batch.delete(&setlist_from(&setlist.bind(id).fetch_one(&mut *tx).await?)?);
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    pub async fn vote(&self, vote: &Vote) -> Result<i64> {
        let mut tx = self.pool.begin().await?;
        let mut batch = Batch::new();
        let id = upsert_vote(&mut tx, vote, &mut batch).await?;
        apply_and_commit(tx, batch).await?;
        Ok(id)
    }

    pub async fn move_vote(&self, id: i64, setlist: i64) -> Result<bool> {
        let mut tx = self.pool.begin().await?;
        let select = sqlx::query(
            "SELECT setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day FROM votes WHERE id = $1 FOR UPDATE",
        )
        .bind(id);
        let Some(old) = select.fetch_optional(&mut *tx).await? else { return Ok(false) };
        let update = sqlx::query(
            "UPDATE votes SET setlist_id = $2 WHERE id = $1 RETURNING setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day",
        );
        let new = update.bind(id).bind(setlist).fetch_one(&mut *tx).await?;
        let mut batch = Batch::new();
        batch.update(&vote_from(&old)?, &vote_from(&new)?);
        apply_and_commit(tx, batch).await?;
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
        batch.delete(&vote_from(&row)?);
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    /// Writes the votes whose setlist exists, each in a savepoint with its own batch, and returns
    /// their number. A preview rolls all of them back.
    pub async fn import(&self, votes: &[Vote], preview: bool) -> Result<usize> {
        let mut tx = self.pool.begin().await?;
        let (mut batch, mut written) = (Batch::new(), 0);
        for vote in votes {
            let mut savepoint = tx.begin().await?;
            let mut inner = Batch::new();
            match upsert_vote(&mut savepoint, vote, &mut inner).await {
                Ok(_) => {
                    savepoint.commit().await?;
                    batch.merge(&mut inner);
                    written += 1;
                }
                Err(error) if no_such_setlist(&error) => savepoint.rollback().await?,
                // A lost connection or a deadlock fails the whole transaction.
                Err(error) => return Err(error),
            }
        }
        PostgresStore::new(&mut tx, &SCHEMA).apply(&mut batch).await?;
        if preview {
            tx.rollback().await?
        } else {
            tx.commit().await?
        }
        Ok(written)
    }

    /// Writes the votes of a feed, numbered from `first`, once however often they are delivered.
    /// Returns `false` if they were written before.
    pub async fn deliver(&self, first: u64, votes: &[Vote]) -> Result<bool> {
        let stream_range = StreamRange::new("votes", first, first + votes.len() as u64 - 1)?;
        let mut tx = self.pool.begin().await?;
        let mut batch = Batch::new();
        for vote in votes {
            upsert_vote(&mut tx, vote, &mut batch).await?;
        }
        let mut store = PostgresStore::new(&mut tx, &SCHEMA);
        if store.apply_idempotent(&mut batch, &stream_range).await?.skipped {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Reads a total. It is a row like any other, so a query of your own can join with it.
    pub async fn show_votes(&self, show: &str) -> Result<i64> {
        let mut conn = self.pool.acquire().await?;
        Ok(PostgresStore::new(&mut conn, &SCHEMA).total(SHOW_VOTES, show).await?)
    }
}

async fn apply_and_commit(mut tx: Transaction<'_, Postgres>, mut batch: Batch) -> Result<()> {
    PostgresStore::new(&mut tx, &SCHEMA).apply(&mut batch).await?;
    Ok(tx.commit().await?)
}

/// Inserts the vote, or updates the one that exists. It takes two statements and not one with
/// `ON CONFLICT DO UPDATE`, which does not say which of the two hooks to call.
async fn upsert_vote(
    tx: &mut Transaction<'_, Postgres>,
    vote: &Vote,
    batch: &mut Batch,
) -> Result<i64> {
    let (user, day) = (vote.user, vote.day.to_string());
    // Another transaction may delete the vote between the two statements: then try again.
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
        let select = sqlx::query(
            "SELECT id, setlist_id, user_id, to_char(day, 'YYYY-MM-DD') AS day FROM votes WHERE setlist_id = $1 AND user_id = $2 FOR UPDATE",
        );
        if let Some(old) = select.bind(vote.setlist).bind(user).fetch_optional(&mut **tx).await? {
            let id: i64 = old.try_get("id")?;
            let update = sqlx::query("UPDATE votes SET day = $2::text::date WHERE id = $1");
            update.bind(id).bind(&day).execute(&mut **tx).await?;
            batch.update(&vote_from(&old)?, vote);
            return Ok(id);
        }
    }
    Err("others inserted and deleted the vote in each of 10 tries".into())
}

fn no_such_setlist(error: &Error) -> bool {
    let error = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.is_some_and(DatabaseError::is_foreign_key_violation)
}

/// A date's key is its text; without a date library the column is read as text too.
fn vote_from(row: &PgRow) -> Result<Vote> {
    let day: Date = row.try_get::<String, _>("day")?.parse()?;
    Ok(Vote { setlist: row.try_get("setlist_id")?, user: row.try_get("user_id")?, day })
}

fn setlist_from(row: &PgRow) -> Result<Setlist> {
    Ok(Setlist { id: row.try_get("id")?, show: row.try_get("show_slug")? })
}
