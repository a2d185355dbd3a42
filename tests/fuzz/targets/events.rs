//! Lines of an event file. Each is an event or is refused with a reason, exactly as a second
//! implementation of the format decides from plain JSON values. An accepted event is within its
//! bounds, and written out it is the same event.
#![no_main]
#![allow(clippy::unwrap_used)]

#[path = "../../../examples/concert/event.rs"]
mod event;
#[path = "../../../examples/concert/rows.rs"]
mod rows;

use keepcount::{Batch, Date, Record};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

use event::{Event, Row, Table};

fuzz_target!(|line: &str| {
    let parsed = Event::parse(line);
    match &parsed {
        Ok(event) => {
            check(event);
            let written = written(event).to_string();
            assert_eq!(format!("{:?}", Event::parse(&written)), format!("{parsed:?}"), "{written}");
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
    // Only a line whose JSON has a value is compared: some is nested too deeply, or has too large a
    // number.
    if let Ok(value) = serde_json::from_str::<Value>(line) {
        assert_eq!(parsed.is_ok(), is_event(&value).is_some(), "{parsed:?}");
    }
});

/// Every value is within its bounds, and an insert followed by its delete counts nothing.
fn check(event: &Event) {
    let is_id = |id: &str| !id.contains('\0');
    match event {
        Event::Delete(_, id) => assert!(is_id(id)),
        Event::Insert(Row::Artist(artist)) | Event::Update(Row::Artist(artist)) => {
            assert!(
                is_id(&artist.id)
                    && artist.followers >= 0
                    && (0..=100).contains(&artist.popularity)
            );
            check_counted(artist);
        }
        Event::Insert(Row::Show(show)) | Event::Update(Row::Show(show)) => {
            assert!(is_id(&show.id) && show.artist_id.as_deref().is_none_or(is_id));
            check_counted(show);
        }
        Event::Insert(Row::Setlist(setlist)) | Event::Update(Row::Setlist(setlist)) => {
            assert!(is_id(&setlist.id) && setlist.show_id.as_deref().is_none_or(is_id));
            check_counted(setlist);
        }
        Event::Insert(Row::Vote(vote)) | Event::Update(Row::Vote(vote)) => {
            assert!(is_id(&vote.id) && is_id(&vote.setlist_id) && is_id(&vote.user_id));
            assert!(matches!(vote.kind.as_str(), "up" | "down"));
            check_counted(vote);
        }
    }
}

fn check_counted(row: &impl Record) {
    let mut batch = Batch::new();
    batch.insert(row);
    batch.delete(row);
    assert!(batch.is_empty());
}

/// The event as a line of the format, without the day that its times were checked against.
fn written(event: &Event) -> Value {
    let (op, table, row) = match event {
        Event::Insert(row) => ("insert", None, Some(row)),
        Event::Update(row) => ("update", None, Some(row)),
        Event::Delete(table, _) => ("delete", Some(*table), None),
    };
    let (of_row, columns) = match (row, event) {
        (Some(Row::Artist(row)), _) => (
            Table::Artists,
            json!({"id": row.id, "name": row.name, "followers": row.followers, "popularity": row.popularity}),
        ),
        (Some(Row::Show(row)), _) => (
            Table::Shows,
            json!({"id": row.id, "artist_id": row.artist_id, "date": row.date, "status": row.status.as_str()}),
        ),
        (Some(Row::Setlist(row)), _) => {
            (Table::Setlists, json!({"id": row.id, "show_id": row.show_id}))
        }
        (Some(Row::Vote(row)), _) => (
            Table::Votes,
            json!({
                "id": row.id, "setlist_id": row.setlist_id, "user_id": row.user_id, "kind": row.kind,
                "created_at": row.created_at,
            }),
        ),
        (None, Event::Delete(_, id)) => (Table::Votes, json!({ "id": id })),
        (None, _) => panic!("an event without a row"),
    };
    let table = match table.unwrap_or(of_row) {
        Table::Artists => "artists",
        Table::Shows => "shows",
        Table::Setlists => "setlists",
        Table::Votes => "votes",
    };
    json!({"op": op, "table": table, "row": columns})
}

/// A second implementation of the format.
fn is_event(line: &Value) -> Option<()> {
    let (op, row) = (line.get("op")?.as_str()?, line.get("row")?);
    let text = |name| row.get(name)?.as_str();
    let id = |name| text(name).filter(|id| !id.contains('\0'));
    let id_or_null = |name| if row.get(name)?.is_null() { Some("") } else { id(name) };
    let integer = |name| row.get(name)?.as_i64();
    row.as_object()?;
    id("id")?;
    let table = line.get("table")?.as_str()?;
    match (op, table) {
        ("delete", "artists" | "shows" | "setlists" | "votes") => return Some(()),
        ("insert" | "update", _) => {}
        _ => return None,
    }
    let is = match table {
        "artists" => {
            text("name")?;
            integer("followers")? >= 0 && (0..=100).contains(&integer("popularity")?)
        }
        "shows" => {
            id_or_null("artist_id")?;
            text("date")?.parse::<Date>().ok()?;
            matches!(text("status")?, "upcoming" | "completed" | "cancelled")
        }
        "setlists" => id_or_null("show_id").is_some(),
        "votes" => {
            let (_, _, at) = (id("setlist_id")?, id("user_id")?, integer("created_at")?);
            let now = match line.get("at") {
                None | Some(Value::Null) => i64::MAX,
                Some(day) => day.as_str()?.parse::<Date>().ok()?.last_second(),
            };
            matches!(text("kind")?, "up" | "down") && at <= now
        }
        _ => false,
    };
    is.then_some(())
}
