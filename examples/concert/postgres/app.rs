//! The write paths on PostgreSQL: every insert, update and delete of the application, each with its
//! hook next to its statements.
//!
//! Old values are read under the row's lock, or come from the write itself (RETURNING). A delete
//! locks its row and then the rows below it, each level in the order of ids. After that, no child
//! can be added or removed. No statement waits for the answer to an earlier one, so the statements
//! of many events are in flight at once. The server runs them in the order in which they were sent.

use std::collections::HashMap;

use futures_util::future::{join, join_all};
use keepcount::sql::Dialect;
use keepcount::{Batch, Record};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement, Transaction};

use super::columns::ReadRow;
use super::is_data_error;
use crate::app::{check_keys, missing, parent};
use crate::error::{Error, Result};
use crate::event::{self, Event, Table};
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};

/// A transaction, and the statements of its connection.
pub struct Db<'t> {
    pub tx: &'t Transaction<'t>,
    pub statements: &'t Statements,
}

/// Applies one event to the rows, and returns its deltas. After an error the transaction can only
/// be rolled back.
pub async fn apply(db: &Db<'_>, event: &Event) -> Result<Batch> {
    let mut batch = Batch::new();
    match event {
        Event::Insert(event::Row::Artist(row)) => insert_artist(db, row, &mut batch).await,
        Event::Insert(event::Row::Show(row)) => insert_show(db, row, &mut batch).await,
        Event::Insert(event::Row::Setlist(row)) => insert_setlist(db, row, &mut batch).await,
        Event::Insert(event::Row::Vote(row)) => insert_vote(db, row, &mut batch).await,
        Event::Update(event::Row::Artist(row)) => update_artist(db, row, &mut batch).await,
        Event::Update(event::Row::Show(row)) => update_show(db, row, &mut batch).await,
        Event::Update(event::Row::Setlist(row)) => update_setlist(db, row, &mut batch).await,
        Event::Update(event::Row::Vote(row)) => update_vote(db, row, &mut batch).await,
        Event::Delete(table, id) => delete(db, *table, id, &mut batch).await,
    }?;
    check_keys(Dialect::Postgres, &batch)?;
    Ok(batch)
}

const INSERT_ARTIST: &str =
    "INSERT INTO artists (id, name, followers, popularity) VALUES ($1, $2, $3, $4)";
const INSERT_SHOW: &str = "INSERT INTO shows (id, artist_id, date, status) VALUES ($1, $2, $3, $4)";
const INSERT_SETLIST: &str = "INSERT INTO setlists (id, show_id) VALUES ($1, $2)";
const INSERT_VOTE: &str =
    "INSERT INTO votes (id, setlist_id, user_id, kind, created_at) VALUES ($1, $2, $3, $4, $5)";

async fn insert_artist(db: &Db<'_>, artist: &ArtistRow, batch: &mut Batch) -> Result<()> {
    let inserted = db
        .rows(INSERT_ARTIST, &[&artist.id, &artist.name, &artist.followers, &artist.popularity])
        .await;
    inserted.map_err(|error| write_error(error, "artist", &artist.id, None))?;
    batch.insert(artist);
    Ok(())
}

async fn insert_show(db: &Db<'_>, show: &ShowRow, batch: &mut Batch) -> Result<()> {
    let (date, status) = (show.date.to_string(), show.status.as_str());
    let inserted = db.rows(INSERT_SHOW, &[&show.id, &show.artist_id, &date, &status]).await;
    inserted.map_err(|error| {
        write_error(error, "show", &show.id, parent("artist", show.artist_id.as_deref()))
    })?;
    batch.insert(show);
    Ok(())
}

async fn insert_setlist(db: &Db<'_>, setlist: &SetlistRow, batch: &mut Batch) -> Result<()> {
    let inserted = db.rows(INSERT_SETLIST, &[&setlist.id, &setlist.show_id]).await;
    inserted.map_err(|error| {
        write_error(error, "setlist", &setlist.id, parent("show", setlist.show_id.as_deref()))
    })?;
    batch.insert(setlist);
    Ok(())
}

async fn insert_vote(db: &Db<'_>, vote: &VoteRow, batch: &mut Batch) -> Result<()> {
    let values: [Value<'_>; 5] =
        [&vote.id, &vote.setlist_id, &vote.user_id, &vote.kind, &vote.created_at];
    let inserted = db.rows(INSERT_VOTE, &values).await;
    inserted.map_err(|error| {
        write_error(error, "vote", &vote.id, parent("setlist", Some(&vote.setlist_id)))
    })?;
    batch.insert(vote);
    Ok(())
}

// Ids never change, so FOR NO KEY UPDATE is enough: it does not block inserts of children.
const FIND_ARTIST: &str =
    "SELECT id, name, followers, popularity FROM artists WHERE id = $1 FOR NO KEY UPDATE";
const FIND_SHOW: &str =
    "SELECT id, artist_id, date, status FROM shows WHERE id = $1 FOR NO KEY UPDATE";
const FIND_SETLIST: &str = "SELECT id, show_id FROM setlists WHERE id = $1 FOR NO KEY UPDATE";
const FIND_VOTE: &str =
    "SELECT id, setlist_id, user_id, kind, created_at FROM votes WHERE id = $1 FOR NO KEY UPDATE";
const UPDATE_ARTIST: &str =
    "UPDATE artists SET name = $2, followers = $3, popularity = $4 WHERE id = $1";
const UPDATE_SHOW: &str = "UPDATE shows SET artist_id = $2, date = $3, status = $4 WHERE id = $1";
const UPDATE_SETLIST: &str = "UPDATE setlists SET show_id = $2 WHERE id = $1";
const UPDATE_VOTE: &str =
    "UPDATE votes SET setlist_id = $2, user_id = $3, kind = $4, created_at = $5 WHERE id = $1";

async fn update_artist(db: &Db<'_>, artist: &ArtistRow, batch: &mut Batch) -> Result<()> {
    let values: [Value<'_>; 4] = [&artist.id, &artist.name, &artist.followers, &artist.popularity];
    let (old, updated) =
        join(db.rows(FIND_ARTIST, &[&artist.id]), db.rows(UPDATE_ARTIST, &values)).await;
    let old: ArtistRow = read_one(old, "artist", &artist.id)?;
    updated.map_err(|error| write_error(error, "artist", &artist.id, None))?;
    batch.update(&old, artist);
    Ok(())
}

async fn update_show(db: &Db<'_>, show: &ShowRow, batch: &mut Batch) -> Result<()> {
    let (date, status) = (show.date.to_string(), show.status.as_str());
    let values: [Value<'_>; 4] = [&show.id, &show.artist_id, &date, &status];
    let (old, updated) = join(db.rows(FIND_SHOW, &[&show.id]), db.rows(UPDATE_SHOW, &values)).await;
    let old: ShowRow = read_one(old, "show", &show.id)?;
    updated.map_err(|error| {
        write_error(error, "show", &show.id, parent("artist", show.artist_id.as_deref()))
    })?;
    batch.update(&old, show);
    Ok(())
}

async fn update_setlist(db: &Db<'_>, setlist: &SetlistRow, batch: &mut Batch) -> Result<()> {
    let values: [Value<'_>; 2] = [&setlist.id, &setlist.show_id];
    let (old, updated) =
        join(db.rows(FIND_SETLIST, &[&setlist.id]), db.rows(UPDATE_SETLIST, &values)).await;
    let old: SetlistRow = read_one(old, "setlist", &setlist.id)?;
    updated.map_err(|error| {
        write_error(error, "setlist", &setlist.id, parent("show", setlist.show_id.as_deref()))
    })?;
    batch.update(&old, setlist);
    Ok(())
}

async fn update_vote(db: &Db<'_>, vote: &VoteRow, batch: &mut Batch) -> Result<()> {
    let values: [Value<'_>; 5] =
        [&vote.id, &vote.setlist_id, &vote.user_id, &vote.kind, &vote.created_at];
    let (old, updated) = join(db.rows(FIND_VOTE, &[&vote.id]), db.rows(UPDATE_VOTE, &values)).await;
    let old: VoteRow = read_one(old, "vote", &vote.id)?;
    updated.map_err(|error| {
        write_error(error, "vote", &vote.id, parent("setlist", Some(&vote.setlist_id)))
    })?;
    batch.update(&old, vote);
    Ok(())
}

const LOCK_ARTIST: &str = "SELECT id FROM artists WHERE id = $1 FOR UPDATE";
const LOCK_SHOW: &str = "SELECT id FROM shows WHERE id = $1 FOR UPDATE";
const LOCK_SETLIST: &str = "SELECT id FROM setlists WHERE id = $1 FOR UPDATE";
const LOCK_SHOWS_OF_ARTIST: &str =
    "SELECT id FROM shows WHERE artist_id = $1 ORDER BY id FOR UPDATE";
const LOCK_SETLISTS_OF_ARTIST: &str = "SELECT id FROM setlists WHERE show_id IN (SELECT id FROM shows WHERE artist_id = $1) ORDER BY id FOR UPDATE";
const LOCK_SETLISTS_OF_SHOW: &str =
    "SELECT id FROM setlists WHERE show_id = $1 ORDER BY id FOR UPDATE";

const DELETE_VOTES_OF_ARTIST: &str = "DELETE FROM votes WHERE setlist_id IN (
        SELECT setlists.id FROM shows JOIN setlists ON setlists.show_id = shows.id WHERE shows.artist_id = $1
    ) RETURNING id, setlist_id, user_id, kind, created_at";
const DELETE_VOTES_OF_SHOW: &str =
    "DELETE FROM votes WHERE setlist_id IN (SELECT id FROM setlists WHERE show_id = $1)
    RETURNING id, setlist_id, user_id, kind, created_at";
const DELETE_VOTES_OF_SETLIST: &str =
    "DELETE FROM votes WHERE setlist_id = $1 RETURNING id, setlist_id, user_id, kind, created_at";
const DELETE_VOTE: &str =
    "DELETE FROM votes WHERE id = $1 RETURNING id, setlist_id, user_id, kind, created_at";
const DELETE_SETLISTS_OF_ARTIST: &str = "DELETE FROM setlists WHERE show_id IN (SELECT id FROM shows WHERE artist_id = $1) RETURNING id, show_id";
const DELETE_SETLISTS_OF_SHOW: &str =
    "DELETE FROM setlists WHERE show_id = $1 RETURNING id, show_id";
const DELETE_SETLIST: &str = "DELETE FROM setlists WHERE id = $1 RETURNING id, show_id";
const DELETE_SHOWS_OF_ARTIST: &str =
    "DELETE FROM shows WHERE artist_id = $1 RETURNING id, artist_id, date, status";
const DELETE_SHOW: &str = "DELETE FROM shows WHERE id = $1 RETURNING id, artist_id, date, status";
const DELETE_ARTIST: &str =
    "DELETE FROM artists WHERE id = $1 RETURNING id, name, followers, popularity";

/// A DELETE .. RETURNING, and the function that calls the hook of each removed row.
type Removal = (&'static str, fn(&Row, &mut Batch) -> Result<(), tokio_postgres::Error>);

/// How a row is deleted: what it is called, the statements that lock it and the rows below it, and
/// the removals, children first and the row itself last.
type Deletion = (&'static str, &'static [&'static str], &'static [Removal]);

const fn deletion(table: Table) -> Deletion {
    match table {
        Table::Artists => (
            "artist",
            &[LOCK_ARTIST, LOCK_SHOWS_OF_ARTIST, LOCK_SETLISTS_OF_ARTIST],
            &[
                (DELETE_VOTES_OF_ARTIST, call_delete_hook::<VoteRow>),
                (DELETE_SETLISTS_OF_ARTIST, call_delete_hook::<SetlistRow>),
                (DELETE_SHOWS_OF_ARTIST, call_delete_hook::<ShowRow>),
                (DELETE_ARTIST, call_delete_hook::<ArtistRow>),
            ],
        ),
        Table::Shows => (
            "show",
            &[LOCK_SHOW, LOCK_SETLISTS_OF_SHOW],
            &[
                (DELETE_VOTES_OF_SHOW, call_delete_hook::<VoteRow>),
                (DELETE_SETLISTS_OF_SHOW, call_delete_hook::<SetlistRow>),
                (DELETE_SHOW, call_delete_hook::<ShowRow>),
            ],
        ),
        Table::Setlists => (
            "setlist",
            &[LOCK_SETLIST],
            &[
                (DELETE_VOTES_OF_SETLIST, call_delete_hook::<VoteRow>),
                (DELETE_SETLIST, call_delete_hook::<SetlistRow>),
            ],
        ),
        Table::Votes => ("vote", &[], &[(DELETE_VOTE, call_delete_hook::<VoteRow>)]),
    }
}

async fn delete(db: &Db<'_>, table: Table, id: &str, batch: &mut Batch) -> Result<()> {
    let (what, locks, removals) = deletion(table);
    let texts = locks.iter().chain(removals.iter().map(|(text, _)| text));
    let values: [Value<'_>; 1] = [&id];
    let results = join_all(texts.map(|text| db.rows(text, &values))).await;
    let results: Vec<Vec<Row>> = results.into_iter().collect::<Result<_, _>>()?;
    for (rows, (_, call_hook)) in results.iter().skip(locks.len()).zip(removals) {
        rows.iter().try_for_each(|row| call_hook(row, batch))?;
    }
    // The last removal is of the row itself.
    if results.last().is_none_or(Vec::is_empty) { Err(missing(what, id)) } else { Ok(()) }
}

fn call_delete_hook<R: Record + ReadRow>(
    row: &Row,
    batch: &mut Batch,
) -> Result<(), tokio_postgres::Error> {
    batch.delete(&R::read_row(row)?);
    Ok(())
}

// Shared by the write paths.

type Value<'v> = &'v (dyn ToSql + Sync);

/// The write paths' statements, each prepared once for a connection.
#[derive(Default)]
pub struct Statements(HashMap<&'static str, Statement>);

impl Statements {
    pub async fn prepare(client: &Client) -> Result<Self> {
        let mut texts = vec![INSERT_ARTIST, INSERT_SHOW, INSERT_SETLIST, INSERT_VOTE];
        texts.extend([FIND_ARTIST, FIND_SHOW, FIND_SETLIST, FIND_VOTE]);
        texts.extend([UPDATE_ARTIST, UPDATE_SHOW, UPDATE_SETLIST, UPDATE_VOTE]);
        for table in [Table::Artists, Table::Shows, Table::Setlists, Table::Votes] {
            let (_, locks, removals) = deletion(table);
            texts.extend(locks.iter().chain(removals.iter().map(|(text, _)| text)));
        }
        let mut statements = HashMap::new();
        for text in texts {
            statements.insert(text, client.prepare(text).await?);
        }
        Ok(Self(statements))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Db<'_> {
    /// Runs a statement, prepared if there is one. It is sent when the future is first polled.
    async fn rows(
        &self,
        text: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self.statements.0.get(text) {
            Some(statement) => self.tx.query(statement, values).await,
            None => self.tx.query(text, values).await,
        }
    }
}

fn read_one<R: ReadRow>(
    rows: Result<Vec<Row>, tokio_postgres::Error>,
    what: &str,
    id: &str,
) -> Result<R> {
    let rows = rows.map_err(|error| write_error(error, what, id, None))?;
    Ok(R::read_row(rows.first().ok_or_else(|| missing(what, id))?)?)
}

/// Returns the error for a failed statement. The event is refused if its id exists already, if its
/// parent does not exist, or if the server cannot store its values.
fn write_error(
    error: tokio_postgres::Error,
    what: &str,
    id: &str,
    parent: Option<(&str, &str)>,
) -> Error {
    let Some(db) = error.as_db_error() else { return Error::Postgres(error) };
    match (db.code(), parent) {
        (&SqlState::UNIQUE_VIOLATION, _) => Error::Refused(format!("{what} {id:?} exists already")),
        (&SqlState::FOREIGN_KEY_VIOLATION, Some((what, id))) => missing(what, id),
        (&SqlState::CHARACTER_NOT_IN_REPERTOIRE, _) => {
            Error::Refused(format!("{what} {id:?}: PostgreSQL stores no text that contains U+0000"))
        }
        (code, _) if is_data_error(code) => {
            Error::Refused(format!("{what} {id:?}: {}", db.message()))
        }
        _ => Error::Postgres(error),
    }
}
