//! One line of an event file: parsed and checked, or refused with a reason.

use std::borrow::Cow;
use std::collections::HashMap;

use keepcount::Date;
use keepcount::concert::Status;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::rows::{ArtistRow, SetlistRow, ShowRow, VoteRow};

/// A write of the application. Its values are valid in the event format. Whether it fits the
/// existing rows is checked when it is applied.
#[derive(Debug)]
pub enum Event {
    Insert(Row),
    Update(Row),
    Delete(Table, String),
}

#[derive(Debug)]
pub enum Row {
    Artist(ArtistRow),
    Show(ShowRow),
    Setlist(SetlistRow),
    Vote(VoteRow),
}

#[derive(Debug, Clone, Copy)]
pub enum Table {
    Artists,
    Shows,
    Setlists,
    Votes,
}

/// The reason why a line is not a valid event.
type Reason = String;

impl Event {
    pub fn parse(line: &str) -> Result<Self, Reason> {
        let event = Members::parse("the line", line)?;
        let table = match event.text("table")?.as_str() {
            "artists" => Table::Artists,
            "shows" => Table::Shows,
            "setlists" => Table::Setlists,
            "votes" => Table::Votes,
            other => return Err(format!("unknown table {other:?}")),
        };
        let row = Members::parse("row", event.raw("row")?)?;
        // The latest time at which the event can have happened, if its day is given. Only votes
        // have a time to compare with it.
        let now = |table| match table {
            Table::Votes => event.date_if_any("at").map(|at| at.map(Date::last_second)),
            _ => Ok(None),
        };
        match event.text("op")?.as_str() {
            "insert" => Ok(Self::Insert(Row::parse(table, &row, now(table)?)?)),
            "update" => Ok(Self::Update(Row::parse(table, &row, now(table)?)?)),
            "delete" => Ok(Self::Delete(table, row.id("id")?)),
            other => Err(format!("unknown op {other:?}")),
        }
    }
}

impl Row {
    fn parse(table: Table, row: &Members<'_>, now: Option<i64>) -> Result<Self, Reason> {
        let id = row.id("id")?;
        Ok(match table {
            Table::Artists => Self::Artist(ArtistRow {
                id,
                name: row.text("name")?,
                followers: row.integer("followers", 0, i64::MAX)?,
                popularity: row.integer("popularity", 0, 100)?,
            }),
            Table::Shows => Self::Show(ShowRow {
                id,
                artist_id: row.id_or_null("artist_id")?,
                date: row.date("date")?,
                status: row.status("status")?,
            }),
            Table::Setlists => {
                Self::Setlist(SetlistRow { id, show_id: row.id_or_null("show_id")? })
            }
            Table::Votes => {
                let vote = VoteRow {
                    id,
                    setlist_id: row.id("setlist_id")?,
                    user_id: row.id("user_id")?,
                    kind: row.kind("kind")?,
                    created_at: row.integer("created_at", i64::MIN, i64::MAX)?,
                };
                Self::Vote(match now {
                    Some(now) => vote.not_after(now).map_err(|future| future.to_string())?,
                    None => vote,
                })
            }
        })
    }
}

/// The members of a JSON object, unparsed, so that unknown members are ignored whatever their
/// values are.
struct Members<'a>(HashMap<Cow<'a, str>, &'a RawValue>);

impl<'a> Members<'a> {
    fn parse(what: &str, json: &'a str) -> Result<Self, Reason> {
        if !json.trim_start().starts_with('{') {
            return Err(format!("{what} is not a JSON object"));
        }
        serde_json::from_str(json).map(Self).map_err(|error| {
            let text = error.to_string();
            // serde_json counts lines in its input, which is one line.
            let reason = text.split(" at line ").next().unwrap_or(&text);
            format!("{what} is broken JSON at column {}: {reason}", error.column())
        })
    }

    fn raw(&self, name: &str) -> Result<&'a str, Reason> {
        self.0.get(name).map(|raw| raw.get()).ok_or_else(|| format!("{name} is missing"))
    }

    fn value<T: DeserializeOwned>(&self, name: &str, wanted: &str) -> Result<T, Reason> {
        serde_json::from_str(self.raw(name)?).map_err(|_| format!("{name} is not {wanted}"))
    }

    fn text(&self, name: &str) -> Result<String, Reason> {
        self.value(name, "a string")
    }

    fn id(&self, name: &str) -> Result<String, Reason> {
        without_zero(name, self.text(name)?)
    }

    fn id_or_null(&self, name: &str) -> Result<Option<String>, Reason> {
        let id: Option<String> = self.value(name, "a string or null")?;
        id.map(|id| without_zero(name, id)).transpose()
    }

    fn integer(&self, name: &str, least: i64, most: i64) -> Result<i64, Reason> {
        let value: i64 = self.value(name, "an integer of 64 bits")?;
        if (least..=most).contains(&value) {
            Ok(value)
        } else if most == i64::MAX {
            Err(format!("{name} is {value}, less than {least}"))
        } else {
            Err(format!("{name} is {value}, not in {least} to {most}"))
        }
    }

    fn date(&self, name: &str) -> Result<Date, Reason> {
        self.text(name)?.parse().map_err(|error| format!("{name}: {error}"))
    }

    /// Returns `None` if it is absent or null.
    fn date_if_any(&self, name: &str) -> Result<Option<Date>, Reason> {
        if !self.0.contains_key(name) {
            return Ok(None);
        }
        let text: Option<String> = self.value(name, "a string or null")?;
        text.map(|text| text.parse().map_err(|error| format!("{name}: {error}"))).transpose()
    }

    fn status(&self, name: &str) -> Result<Status, Reason> {
        self.text(name)?.parse().map_err(|unknown| format!("{name}: {unknown}"))
    }

    fn kind(&self, name: &str) -> Result<String, Reason> {
        let kind = self.text(name)?;
        if kind == "up" || kind == "down" {
            Ok(kind)
        } else {
            Err(format!("{name}: {kind:?} is not one of up, down"))
        }
    }
}

fn without_zero(name: &str, id: String) -> Result<String, Reason> {
    if id.contains('\0') { Err(format!("{name} contains U+0000")) } else { Ok(id) }
}
