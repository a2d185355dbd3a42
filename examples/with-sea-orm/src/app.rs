//! The write paths of the application: each takes a row's old values from the write itself, never
//! from an earlier read.

use keepcount::{AsyncStore as _, Batch, StreamRange};
use keepcount_sea_orm::SeaOrmStore;
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, Database, DatabaseConnection,
    DatabaseTransaction, DbErr, EntityTrait as _, QueryFilter as _, QuerySelect as _, SqlErr,
    TransactionTrait as _, TryInsertResult,
};

use crate::counters::{SCHEMA, Setlist, TABLES, Vote};
use crate::entities::{date_of, setlists, show_votes, shows, votes};
use crate::{Error, Result};

/// A pool of connections: writes that belong together go through one transaction.
pub struct App {
    pool: DatabaseConnection,
}

impl App {
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self { pool: Database::connect(url).await? })
    }

    /// Runs the first migration: the application's tables and those of its counters.
    pub async fn migrate(&self) -> Result<()> {
        let tx = self.pool.begin().await?;
        tx.execute_unprepared(TABLES).await?;
        SeaOrmStore::new(&tx, &SCHEMA).create().await?;
        Ok(tx.commit().await?)
    }

    /// Adds a show. No counter counts shows, so this needs no hook.
    pub async fn add_show(&self, slug: &str) -> Result<()> {
        let show = shows::ActiveModel { slug: Set(slug.to_owned()) };
        shows::Entity::insert(show).exec(&self.pool).await?;
        Ok(())
    }

    pub async fn add_setlist(&self, setlist: &Setlist) -> Result<()> {
        let tx = self.pool.begin().await?;
        let row =
            setlists::ActiveModel { id: Set(setlist.id), show_slug: Set(setlist.show.clone()) };
        setlists::Entity::insert(row).exec(&tx).await?;
        let mut batch = Batch::new();
        batch.insert(setlist);
        apply_and_commit(tx, batch).await
    }

    /// Moves a setlist with its votes to another show.
    pub async fn move_setlist(&self, id: i64, show: &str) -> Result<bool> {
        let tx = self.pool.begin().await?;
        let locked = setlists::Entity::find_by_id(id).lock_exclusive().one(&tx).await?;
        let Some(old) = locked else { return Ok(false) };
        let update = setlists::ActiveModel { id: Set(id), show_slug: Set(show.to_owned()) };
        let new = setlists::Entity::update(update).exec(&tx).await?;
        let mut batch = Batch::new();
        batch.update(&Setlist::from(old), &Setlist::from(new));
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    /// Deletes a setlist with its votes. The setlist's lock keeps new votes out; one batch has all
    /// deltas.
    pub async fn delete_setlist(&self, id: i64) -> Result<bool> {
        let tx = self.pool.begin().await?;
        if setlists::Entity::find_by_id(id).lock_exclusive().one(&tx).await?.is_none() {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let children = votes::Entity::delete_many().filter(votes::Column::SetlistId.eq(id));
        for vote in children.exec_with_returning(&tx).await? {
            batch.delete(&Vote::try_from(vote)?);
        }
        if let Some(setlist) = setlists::Entity::delete_by_id(id).exec_with_returning(&tx).await? {
            batch.delete(&Setlist::from(setlist));
        }
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    pub async fn vote(&self, vote: &Vote) -> Result<i64> {
        let tx = self.pool.begin().await?;
        let mut batch = Batch::new();
        let id = upsert_vote(&tx, vote, &mut batch).await?;
        apply_and_commit(tx, batch).await?;
        Ok(id)
    }

    pub async fn move_vote(&self, id: i64, setlist: i64) -> Result<bool> {
        let tx = self.pool.begin().await?;
        let locked = votes::Entity::find_by_id(id).lock_exclusive().one(&tx).await?;
        let Some(old) = locked else { return Ok(false) };
        let update =
            votes::ActiveModel { id: Set(id), setlist_id: Set(setlist), ..Default::default() };
        let new = votes::Entity::update(update).exec(&tx).await?;
        let mut batch = Batch::new();
        batch.update(&Vote::try_from(old)?, &Vote::try_from(new)?);
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    pub async fn delete_vote(&self, id: i64) -> Result<bool> {
        let tx = self.pool.begin().await?;
        let deleted = votes::Entity::delete_by_id(id).exec_with_returning(&tx).await?;
        let Some(deleted) = deleted else { return Ok(false) };
        let mut batch = Batch::new();
        batch.delete(&Vote::try_from(deleted)?);
        apply_and_commit(tx, batch).await?;
        Ok(true)
    }

    /// Writes the votes whose setlist exists, each in a savepoint with its own batch, and returns
    /// their number. A preview rolls all of them back.
    pub async fn import(&self, votes: &[Vote], preview: bool) -> Result<usize> {
        let tx = self.pool.begin().await?;
        let (mut batch, mut written) = (Batch::new(), 0);
        for vote in votes {
            let savepoint = tx.begin().await?;
            let mut inner = Batch::new();
            match upsert_vote(&savepoint, vote, &mut inner).await {
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
        SeaOrmStore::new(&tx, &SCHEMA).apply(&mut batch).await?;
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
        let tx = self.pool.begin().await?;
        let mut batch = Batch::new();
        for vote in votes {
            upsert_vote(&tx, vote, &mut batch).await?;
        }
        let mut store = SeaOrmStore::new(&tx, &SCHEMA);
        if store.apply_idempotent(&mut batch, &stream_range).await?.skipped {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    pub async fn show_votes(&self, show: &str) -> Result<i64> {
        let total = show_votes::Entity::find_by_id(show).one(&self.pool).await?;
        Ok(total.map_or(0, |row| row.total))
    }
}

async fn apply_and_commit(tx: DatabaseTransaction, mut batch: Batch) -> Result<()> {
    SeaOrmStore::new(&tx, &SCHEMA).apply(&mut batch).await?;
    Ok(tx.commit().await?)
}

/// Inserts the vote, or updates the one that exists. It takes two statements and not one with
/// `ON CONFLICT DO UPDATE`, which does not say which of the two hooks to call.
async fn upsert_vote(tx: &DatabaseTransaction, vote: &Vote, batch: &mut Batch) -> Result<i64> {
    // Another transaction may delete the vote between the two statements: then try again.
    for _ in 0..10 {
        let row = votes::ActiveModel {
            setlist_id: Set(vote.setlist),
            user_id: Set(vote.user),
            day: Set(date_of(vote)?),
            ..Default::default()
        };
        let unique = OnConflict::columns([votes::Column::SetlistId, votes::Column::UserId])
            .do_nothing()
            .to_owned();
        let insert = votes::Entity::insert(row.clone()).on_conflict(unique).try_insert();
        // Do not use `exec_with_returning`: it treats an existing row as an error.
        if let TryInsertResult::Inserted(inserted) = insert.exec(tx).await? {
            batch.insert(vote);
            return Ok(inserted.last_insert_id);
        }
        let same = votes::Entity::find().filter(votes::Column::SetlistId.eq(vote.setlist));
        let locked =
            same.filter(votes::Column::UserId.eq(vote.user)).lock_exclusive().one(tx).await?;
        if let Some(old) = locked {
            let id = old.id;
            votes::Entity::update(votes::ActiveModel { id: Set(id), ..row }).exec(tx).await?;
            batch.update(&Vote::try_from(old)?, vote);
            return Ok(id);
        }
    }
    Err("others inserted and deleted the vote in each of 10 tries".into())
}

fn no_such_setlist(error: &Error) -> bool {
    let error = error.downcast_ref::<DbErr>().and_then(DbErr::sql_err);
    matches!(error, Some(SqlErr::ForeignKeyConstraintViolation(_)))
}
