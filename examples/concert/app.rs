//! The write paths: every insert, update and delete of the application, each with its hook next to
//! its statement.
//!
//! They run in the caller's transaction, which began with BEGIN IMMEDIATE, so the old row that an
//! update reads is the row that it replaces. A delete calls the hook of each row that it removed
//! (RETURNING). All deltas go to the caller's batch.

use keepcount::concert::Trends;
use keepcount::{Batch, Record, sql};
use rusqlite::{Connection, OptionalExtension as _, Params, ffi, params};

use crate::error::{Error, Result};
use crate::event::{Event, Row, Table};
use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};

/// Applies one event to the rows, and adds its deltas to the batch; votes decay with the half-lives
/// `T`. After an error, rows and batch may contain a part of the event: the caller rolls back its
/// savepoint and drops its batch.
pub fn apply<T: Trends<String>>(db: &Connection, event: &Event, batch: &mut Batch) -> Result<()> {
    match event {
        Event::Insert(Row::Artist(row)) => insert_artist(db, row, batch),
        Event::Insert(Row::Show(row)) => insert_show(db, row, batch),
        Event::Insert(Row::Setlist(row)) => insert_setlist(db, row, batch),
        Event::Insert(Row::Vote(row)) => insert_vote::<T>(db, row, batch),
        Event::Update(Row::Artist(row)) => update_artist(db, row, batch),
        Event::Update(Row::Show(row)) => update_show(db, row, batch),
        Event::Update(Row::Setlist(row)) => update_setlist(db, row, batch),
        Event::Update(Row::Vote(row)) => update_vote::<T>(db, row, batch),
        Event::Delete(Table::Artists, id) => delete_artist::<T>(db, id, batch),
        Event::Delete(Table::Shows, id) => delete_show::<T>(db, id, batch),
        Event::Delete(Table::Setlists, id) => delete_setlist::<T>(db, id, batch),
        Event::Delete(Table::Votes, id) => delete_vote::<T>(db, id, batch),
    }?;
    check_keys(sql::Dialect::Sqlite, batch)
}

/// Refuses an event whose keys are too long for a total. An id may be any text, but a total's key
/// has a maximum length. The check is here, where the error can still name the event.
pub fn check_keys(dialect: sql::Dialect, batch: &Batch) -> Result<()> {
    for (counter, key, _) in batch.deltas() {
        sql::key_values(dialect, &counter, key)
            .map_err(|error| Error::Refused(error.to_string()))?;
    }
    Ok(())
}

fn insert_artist(db: &Connection, artist: &ArtistRow, batch: &mut Batch) -> Result<()> {
    execute(
        db,
        "INSERT INTO artists (id, name, followers, popularity) VALUES (?1, ?2, ?3, ?4)",
        params![artist.id, artist.name, artist.followers, artist.popularity],
    )
    .map_err(|error| write_error(error, "artist", &artist.id, None))?;
    batch.insert(artist);
    Ok(())
}

fn insert_show(db: &Connection, show: &ShowRow, batch: &mut Batch) -> Result<()> {
    execute(
        db,
        "INSERT INTO shows (id, artist_id, date, status) VALUES (?1, ?2, ?3, ?4)",
        params![show.id, show.artist_id, show.date.to_string(), show.status.as_str()],
    )
    .map_err(|error| {
        write_error(error, "show", &show.id, parent("artist", show.artist_id.as_deref()))
    })?;
    batch.insert(show);
    Ok(())
}

fn insert_setlist(db: &Connection, setlist: &SetlistRow, batch: &mut Batch) -> Result<()> {
    execute(
        db,
        "INSERT INTO setlists (id, show_id) VALUES (?1, ?2)",
        params![setlist.id, setlist.show_id],
    )
    .map_err(|error| {
        write_error(error, "setlist", &setlist.id, parent("show", setlist.show_id.as_deref()))
    })?;
    batch.insert(setlist);
    Ok(())
}

fn insert_vote<T: Trends<String>>(
    db: &Connection,
    vote: &VoteRow,
    batch: &mut Batch,
) -> Result<()> {
    execute(
        db,
        "INSERT INTO votes (id, setlist_id, user_id, kind, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![vote.id, vote.setlist_id, vote.user_id, vote.kind, vote.created_at],
    )
    .map_err(|error| {
        write_error(error, "vote", &vote.id, parent("setlist", Some(&vote.setlist_id)))
    })?;
    batch.insert(&vote.decaying::<T>());
    Ok(())
}

fn update_artist(db: &Connection, artist: &ArtistRow, batch: &mut Batch) -> Result<()> {
    let find = "SELECT id, name, followers, popularity FROM artists WHERE id = ?1";
    let old = find_one(db, find, &artist.id, ArtistRow::read)?
        .ok_or_else(|| missing("artist", &artist.id))?;
    execute(
        db,
        "UPDATE artists SET name = ?2, followers = ?3, popularity = ?4 WHERE id = ?1",
        params![artist.id, artist.name, artist.followers, artist.popularity],
    )?;
    batch.update(&old, artist);
    Ok(())
}

fn update_show(db: &Connection, show: &ShowRow, batch: &mut Batch) -> Result<()> {
    let find = "SELECT id, artist_id, date, status FROM shows WHERE id = ?1";
    let old =
        find_one(db, find, &show.id, ShowRow::read)?.ok_or_else(|| missing("show", &show.id))?;
    execute(
        db,
        "UPDATE shows SET artist_id = ?2, date = ?3, status = ?4 WHERE id = ?1",
        params![show.id, show.artist_id, show.date.to_string(), show.status.as_str()],
    )
    .map_err(|error| {
        write_error(error, "show", &show.id, parent("artist", show.artist_id.as_deref()))
    })?;
    batch.update(&old, show);
    Ok(())
}

fn update_setlist(db: &Connection, setlist: &SetlistRow, batch: &mut Batch) -> Result<()> {
    let find = "SELECT id, show_id FROM setlists WHERE id = ?1";
    let old = find_one(db, find, &setlist.id, SetlistRow::read)?
        .ok_or_else(|| missing("setlist", &setlist.id))?;
    execute(
        db,
        "UPDATE setlists SET show_id = ?2 WHERE id = ?1",
        params![setlist.id, setlist.show_id],
    )
    .map_err(|error| {
        write_error(error, "setlist", &setlist.id, parent("show", setlist.show_id.as_deref()))
    })?;
    batch.update(&old, setlist);
    Ok(())
}

fn update_vote<T: Trends<String>>(
    db: &Connection,
    vote: &VoteRow,
    batch: &mut Batch,
) -> Result<()> {
    let find = "SELECT id, setlist_id, user_id, kind, created_at FROM votes WHERE id = ?1";
    let old =
        find_one(db, find, &vote.id, VoteRow::read)?.ok_or_else(|| missing("vote", &vote.id))?;
    execute(
        db,
        "UPDATE votes SET setlist_id = ?2, user_id = ?3, kind = ?4, created_at = ?5 WHERE id = ?1",
        params![vote.id, vote.setlist_id, vote.user_id, vote.kind, vote.created_at],
    )
    .map_err(|error| {
        write_error(error, "vote", &vote.id, parent("setlist", Some(&vote.setlist_id)))
    })?;
    batch.update(&old.decaying::<T>(), &vote.decaying::<T>());
    Ok(())
}

// Deletes remove children before their parents, and call the hook of each row that they removed.

fn delete_artist<T: Trends<String>>(db: &Connection, id: &str, batch: &mut Batch) -> Result<()> {
    let votes = "DELETE FROM votes WHERE setlist_id IN (
                     SELECT setlists.id FROM shows JOIN setlists ON setlists.show_id = shows.id WHERE shows.artist_id = ?1
                 ) RETURNING id, setlist_id, user_id, kind, created_at";
    let setlists =
        "DELETE FROM setlists WHERE show_id IN (SELECT id FROM shows WHERE artist_id = ?1)
                    RETURNING id, show_id";
    let shows = "DELETE FROM shows WHERE artist_id = ?1 RETURNING id, artist_id, date, status";
    let artist = "DELETE FROM artists WHERE id = ?1 RETURNING id, name, followers, popularity";
    delete_votes::<T>(db, votes, id, batch)?;
    delete(db, setlists, id, SetlistRow::read, batch)?;
    delete(db, shows, id, ShowRow::read, batch)?;
    let deleted = delete(db, artist, id, ArtistRow::read, batch)?;
    if deleted == 0 { Err(missing("artist", id)) } else { Ok(()) }
}

fn delete_show<T: Trends<String>>(db: &Connection, id: &str, batch: &mut Batch) -> Result<()> {
    let votes = "DELETE FROM votes WHERE setlist_id IN (SELECT id FROM setlists WHERE show_id = ?1)
                 RETURNING id, setlist_id, user_id, kind, created_at";
    let setlists = "DELETE FROM setlists WHERE show_id = ?1 RETURNING id, show_id";
    let show = "DELETE FROM shows WHERE id = ?1 RETURNING id, artist_id, date, status";
    delete_votes::<T>(db, votes, id, batch)?;
    delete(db, setlists, id, SetlistRow::read, batch)?;
    let deleted = delete(db, show, id, ShowRow::read, batch)?;
    if deleted == 0 { Err(missing("show", id)) } else { Ok(()) }
}

fn delete_setlist<T: Trends<String>>(db: &Connection, id: &str, batch: &mut Batch) -> Result<()> {
    let votes = "DELETE FROM votes WHERE setlist_id = ?1 RETURNING id, setlist_id, user_id, kind, created_at";
    let setlist = "DELETE FROM setlists WHERE id = ?1 RETURNING id, show_id";
    delete_votes::<T>(db, votes, id, batch)?;
    let deleted = delete(db, setlist, id, SetlistRow::read, batch)?;
    if deleted == 0 { Err(missing("setlist", id)) } else { Ok(()) }
}

fn delete_vote<T: Trends<String>>(db: &Connection, id: &str, batch: &mut Batch) -> Result<()> {
    let vote =
        "DELETE FROM votes WHERE id = ?1 RETURNING id, setlist_id, user_id, kind, created_at";
    let deleted = delete_votes::<T>(db, vote, id, batch)?;
    if deleted == 0 { Err(missing("vote", id)) } else { Ok(()) }
}

// Shared by the write paths.

type Read<R> = fn(&rusqlite::Row<'_>) -> rusqlite::Result<R>;

fn execute(db: &Connection, text: &str, params: impl Params) -> rusqlite::Result<usize> {
    db.prepare_cached(text)?.execute(params)
}

fn find_one<R>(
    db: &Connection,
    text: &str,
    id: &str,
    read: Read<R>,
) -> rusqlite::Result<Option<R>> {
    db.prepare_cached(text)?.query_row([id], read).optional()
}

/// Runs a DELETE .. RETURNING and the hook of every row that it removed; returns their number.
fn delete<R: Record>(
    db: &Connection,
    text: &str,
    id: &str,
    read: Read<R>,
    batch: &mut Batch,
) -> Result<u64> {
    each_deleted(db, text, id, read, |row| batch.delete(&row))
}

fn delete_votes<T: Trends<String>>(
    db: &Connection,
    text: &str,
    id: &str,
    batch: &mut Batch,
) -> Result<u64> {
    each_deleted(db, text, id, VoteRow::read, |vote| batch.delete(&vote.decaying::<T>()))
}

fn each_deleted<R>(
    db: &Connection,
    text: &str,
    id: &str,
    read: Read<R>,
    mut hook: impl FnMut(R),
) -> Result<u64> {
    let mut deleted = 0;
    for row in db.prepare_cached(text)?.query_map([id], read)? {
        hook(row?);
        deleted += 1;
    }
    Ok(deleted)
}

pub fn missing(what: &str, id: &str) -> Error {
    Error::Refused(format!("{what} {id:?} does not exist"))
}

/// Returns the parent that a row refers to, if any, as `write_error` takes it.
pub fn parent<'a>(what: &'static str, id: Option<&'a str>) -> Option<(&'static str, &'a str)> {
    id.map(|id| (what, id))
}

/// Returns the error for a failed write. The event is refused if its id exists already, or if its
/// parent does not exist.
fn write_error(
    error: rusqlite::Error,
    what: &str,
    id: &str,
    parent: Option<(&str, &str)>,
) -> Error {
    let constraint = error.sqlite_error().map(|error| error.extended_code);
    match (constraint, parent) {
        (Some(ffi::SQLITE_CONSTRAINT_PRIMARYKEY), _) => {
            Error::Refused(format!("{what} {id:?} exists already"))
        }
        (Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY), Some((what, id))) => missing(what, id),
        _ => Error::Sql(error),
    }
}
