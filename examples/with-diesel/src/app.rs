//! The write paths of the application: each takes a row's old values from the write itself, never
//! from an earlier read.

use diesel::data_types::PgDate;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error::DatabaseError, Error::RollbackTransaction};
use diesel::sql_types::{BigInt, Text};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use keepcount::sql::{self, Dialect};
use keepcount::{Batch, Date, StreamRange};
use uuid::Uuid;

use self::schema::{setlists, show_votes, shows, votes};
use crate::counters::{SCHEMA, Setlist, TABLES, Vote};
use crate::{Error, Result, totals};

mod schema {
    diesel::table! {
        shows (slug) { slug -> Text, }
    }
    diesel::table! {
        setlists (id) { id -> BigInt, show_slug -> Text, }
    }
    diesel::table! {
        votes (id) { id -> BigInt, setlist_id -> BigInt, user_id -> Uuid, day -> Date, }
    }
    diesel::table! {
        /// You can read a counter's table like any other.
        show_votes (key) { key -> Text, total -> BigInt, }
    }
}

/// A connection; one from a pool works too.
pub struct App {
    conn: AsyncPgConnection,
}

impl App {
    pub async fn connect(url: &str) -> Result<Self> {
        Ok(Self { conn: AsyncPgConnection::establish(url).await? })
    }

    /// Runs the first migration: the application's tables and those of its counters.
    pub async fn migrate(&mut self) -> Result<()> {
        let migrated = self.conn.transaction(async |conn| {
            conn.batch_execute(TABLES).await?;
            conn.batch_execute(&sql::ddl(Dialect::Postgres, &SCHEMA).join(";")).await
        });
        Ok(migrated.await?)
    }

    /// Adds a show. No counter counts shows, so this needs no hook.
    pub async fn add_show(&mut self, slug: &str) -> Result<()> {
        diesel::insert_into(shows::table)
            .values(shows::slug.eq(slug))
            .execute(&mut self.conn)
            .await?;
        Ok(())
    }

    pub async fn add_setlist(&mut self, setlist: &Setlist) -> Result<()> {
        let added = self.conn.transaction(async |conn| {
            let values = (setlists::id.eq(setlist.id), setlists::show_slug.eq(&setlist.show));
            diesel::insert_into(setlists::table).values(values).execute(conn).await?;
            let mut batch = Batch::new();
            batch.insert(setlist);
            totals::apply(conn, &SCHEMA, &batch).await
        });
        added.await
    }

    /// Moves a setlist with its votes to another show.
    pub async fn move_setlist(&mut self, id: i64, show: &str) -> Result<bool> {
        let moved = self.conn.transaction(async |conn| {
            let locked =
                setlists::table.find(id).for_update().first::<SetlistRow>(conn).await.optional()?;
            let Some(old) = locked else { return Ok(false) };
            let update = diesel::update(setlists::table.find(id)).set(setlists::show_slug.eq(show));
            let new: SetlistRow = update.get_result(conn).await?;
            let mut batch = Batch::new();
            batch.update(&setlist_from(old), &setlist_from(new));
            totals::apply(conn, &SCHEMA, &batch).await?;
            Ok(true)
        });
        moved.await
    }

    /// Deletes a setlist with its votes. The setlist's lock keeps new votes out; one batch has all
    /// deltas.
    pub async fn delete_setlist(&mut self, id: i64) -> Result<bool> {
        let deleted = self.conn.transaction(async |conn| {
            let locked =
                setlists::table.find(id).for_update().first::<SetlistRow>(conn).await.optional()?;
            if locked.is_none() {
                return Ok(false);
            }
            let mut batch = Batch::new();
            let rows: Vec<VoteRow> = diesel::delete(votes::table.filter(votes::setlist_id.eq(id)))
                .get_results(conn)
                .await?;
            for vote in rows {
                batch.delete(&vote_from(vote)?);
            }
            batch.delete(&setlist_from(
                diesel::delete(setlists::table.find(id)).get_result(conn).await?,
            ));
            totals::apply(conn, &SCHEMA, &batch).await?;
            Ok(true)
        });
        deleted.await
    }

    pub async fn vote(&mut self, vote: &Vote) -> Result<i64> {
        let voted = self.conn.transaction(async |conn| {
            let mut batch = Batch::new();
            let id = upsert_vote(conn, vote, &mut batch).await?;
            totals::apply(conn, &SCHEMA, &batch).await?;
            Ok(id)
        });
        voted.await
    }

    pub async fn move_vote(&mut self, id: i64, setlist: i64) -> Result<bool> {
        let moved = self.conn.transaction(async |conn| {
            let locked =
                votes::table.find(id).for_update().first::<VoteRow>(conn).await.optional()?;
            let Some(old) = locked else { return Ok(false) };
            let update = diesel::update(votes::table.find(id)).set(votes::setlist_id.eq(setlist));
            let new: VoteRow = update.get_result(conn).await?;
            let mut batch = Batch::new();
            batch.update(&vote_from(old)?, &vote_from(new)?);
            totals::apply(conn, &SCHEMA, &batch).await?;
            Ok(true)
        });
        moved.await
    }

    pub async fn delete_vote(&mut self, id: i64) -> Result<bool> {
        let deleted = self.conn.transaction(async |conn| {
            let row = diesel::delete(votes::table.find(id))
                .get_result::<VoteRow>(conn)
                .await
                .optional()?;
            let Some(row) = row else { return Ok(false) };
            let mut batch = Batch::new();
            batch.delete(&vote_from(row)?);
            totals::apply(conn, &SCHEMA, &batch).await?;
            Ok(true)
        });
        deleted.await
    }

    /// Writes the votes whose setlist exists, each in a savepoint with its own batch, and returns
    /// their number. A preview rolls all of them back.
    pub async fn import(&mut self, votes: &[Vote], preview: bool) -> Result<usize> {
        let mut written = 0;
        let imported = self.conn.transaction(async |conn| {
            let mut batch = Batch::new();
            for vote in votes {
                let savepoint = conn.transaction(async |conn| {
                    let mut inner = Batch::new();
                    upsert_vote(conn, vote, &mut inner).await?;
                    Ok::<_, Error>(inner)
                });
                match savepoint.await {
                    Ok(mut inner) => {
                        batch.merge(&mut inner);
                        written += 1;
                    }
                    Err(error) if no_such_setlist(&error) => {}
                    // A lost connection or a deadlock fails the whole transaction.
                    Err(error) => return Err(error),
                }
            }
            totals::apply(conn, &SCHEMA, &batch).await?;
            if preview { Err(RollbackTransaction.into()) } else { Ok(()) }
        });
        match imported.await {
            Err(error) if preview && matches!(error.downcast_ref(), Some(RollbackTransaction)) => {
                Ok(written)
            }
            imported => imported.map(|()| written),
        }
    }

    /// Writes the votes of a feed, numbered from `first`, once however often they are delivered.
    /// Returns `false` if they were written before.
    pub async fn deliver(&mut self, first: u64, votes: &[Vote]) -> Result<bool> {
        let stream_range = StreamRange::new("votes", first, first + votes.len() as u64 - 1)?;
        let delivered = self.conn.transaction(async |conn| {
            let lock = diesel::sql_query(sql::lock_offset()).bind::<Text, _>(stream_range.stream());
            let Offset { last } = lock.get_result(conn).await?;
            if !stream_range.follows(last.try_into()?)? {
                return Ok(false);
            }
            let mut batch = Batch::new();
            for vote in votes {
                upsert_vote(conn, vote, &mut batch).await?;
            }
            totals::apply(conn, &SCHEMA, &batch).await?;
            let set = diesel::sql_query(sql::set_offset(Dialect::Postgres))
                .bind::<Text, _>(stream_range.stream());
            set.bind::<BigInt, _>(i64::try_from(stream_range.last())?).execute(conn).await?;
            Ok(true)
        });
        delivered.await
    }

    pub async fn show_votes(&mut self, show: &str) -> Result<i64> {
        let total =
            show_votes::table.find(show).select(show_votes::total).first(&mut self.conn).await;
        Ok(total.optional()?.unwrap_or(0))
    }
}

/// Inserts the vote, or updates the one that exists. It takes two statements and not one with
/// `ON CONFLICT DO UPDATE`, which does not say which of the two hooks to call.
async fn upsert_vote(conn: &mut AsyncPgConnection, vote: &Vote, batch: &mut Batch) -> Result<i64> {
    let day = votes::day.eq(PgDate(vote.day.days() - EPOCH));
    // Another transaction may delete the vote between the two statements: then try again.
    for _ in 0..10 {
        let insert = diesel::insert_into(votes::table)
            .values((votes::setlist_id.eq(vote.setlist), votes::user_id.eq(vote.user), day))
            .on_conflict((votes::setlist_id, votes::user_id))
            .do_nothing()
            .returning(votes::id);
        if let Some(id) = insert.get_result(conn).await.optional()? {
            batch.insert(vote);
            return Ok(id);
        }
        let same = votes::table
            .filter(votes::setlist_id.eq(vote.setlist))
            .filter(votes::user_id.eq(vote.user));
        if let Some(old) = same.for_update().first::<VoteRow>(conn).await.optional()? {
            diesel::update(votes::table.find(old.0)).set(day).execute(conn).await?;
            batch.update(&vote_from(old)?, vote);
            return Ok(old.0);
        }
    }
    Err("others inserted and deleted the vote in each of 10 tries".into())
}

/// The offset of a stream.
#[derive(QueryableByName)]
struct Offset {
    #[diesel(sql_type = BigInt)]
    last: i64,
}

fn no_such_setlist(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(DatabaseError(DatabaseErrorKind::ForeignKeyViolation, _)))
}

type SetlistRow = (i64, String);
type VoteRow = (i64, i64, Uuid, PgDate);

fn setlist_from((id, show): SetlistRow) -> Setlist {
    Setlist { id, show }
}

/// PostgreSQL counts days from 2000-01-01.
const EPOCH: i32 = 10_957;

fn vote_from((_, setlist, user, PgDate(days)): VoteRow) -> Result<Vote> {
    let day =
        days.checked_add(EPOCH).and_then(Date::from_days).ok_or("a day outside the calendar")?;
    Ok(Vote { setlist, user, day })
}
