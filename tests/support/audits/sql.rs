//! The rows and totals in SQL, in both dialects.

use std::fmt::Display;

use keepcount::CounterId;
use keepcount::reconcile::Columns;

use super::recount::names;
use super::{Row, id};

/// The seconds of a day.
const DAY: i64 = 86_400;

/// The tables of rows; `BYTES` stands for the collation that sorts by bytes.
pub const TABLES: &str = "
    CREATE TABLE votes (setlist INT4, song TEXT, day INT2, at BIGINT, stars BIGINT, spam BOOL);
    CREATE INDEX votes_by_day ON votes (setlist, day);
    CREATE INDEX votes_by_time ON votes (setlist, at);
    CREATE INDEX votes_by_song ON votes (song BYTES, day);
    CREATE TABLE setlists (id INT4, show BIGINT);
    CREATE INDEX setlists_by_id ON setlists (id, show);
    CREATE TABLE shows (id BIGINT, artist TEXT);
    CREATE INDEX shows_by_id ON shows (id, artist BYTES);
";

/// The statements that delete all rows and totals, and leave the counters ready or pending.
pub fn empty(pending: bool) -> String {
    let totals = names().map(|name| name.replace('.', "_"));
    let tables = ["votes", "setlists", "shows", "keepcount_runs"].map(str::to_owned);
    let tables = tables.into_iter().chain(totals);
    let empty = tables.map(|table| format!("DELETE FROM {table};")).collect::<Vec<_>>().join(" ");
    let ready = i32::from(!pending);
    format!("{empty} UPDATE keepcount_counters SET ready = {ready}, cutoff = NULL")
}

/// The statements that write rows.
pub fn insert(rows: &[Row]) -> String {
    fn or_null<T: Display>(value: Option<&T>) -> String {
        value.map_or_else(|| "NULL".to_owned(), |value| format!("'{value}'"))
    }
    let insert = |row: &Row| match row {
        Row::Vote { setlist, song, day, stars, spam } => {
            let (setlist, at) = (or_null(setlist.as_ref()), day * DAY + 5);
            format!("INSERT INTO votes VALUES ({setlist}, '{song}', {day}, {at}, {stars}, {spam});")
        }
        Row::Setlist { id, show } => {
            format!("INSERT INTO setlists VALUES ({id}, {});", or_null(show.as_ref()))
        }
        Row::Show { id, artist } => {
            format!("INSERT INTO shows VALUES ({id}, {});", or_null(artist.as_ref()))
        }
    };
    rows.iter().map(insert).collect()
}

/// The statements that write one total.
pub fn plant(counter: CounterId, key: &str, total: i64) -> String {
    let table = counter.name().replace('.', "_");
    let columns = if counter.parts().len() < 2 { "key" } else { "key_1, key_2" };
    let values = match key {
        "()" => "0".to_owned(),
        key => key.split(',').map(|part| format!("'{part}'")).collect::<Vec<_>>().join(", "),
    };
    let delete = format!("DELETE FROM {table} WHERE ({columns}) = ({values})");
    format!("{delete}; INSERT INTO {table} VALUES ({values}, {total})")
}

/// The query of all totals: counter, key as text, total.
pub fn stored() -> String {
    let of = |name: &'static str| {
        let key = match id(name).parts().len() {
            0 => "CAST('()' AS TEXT)",
            1 => "CAST(key AS TEXT)",
            _ => "CAST(key_1 AS TEXT) || ',' || CAST(key_2 AS TEXT)",
        };
        format!("SELECT CAST('{name}' AS TEXT), {key}, total FROM {}", name.replace('.', "_"))
    };
    names().map(of).collect::<Vec<_>>().join(" UNION ALL ")
}

/// The query of the counters that are not ready.
pub const UNREADY: &str = "SELECT name FROM keepcount_counters WHERE ready = 0";

/// A counter's key columns, and how it is counted: by SQL with this amount and filter of the stars
/// by setlist, or by tally.
pub fn columns(counter: &str, by_tally: bool, (amount, filter): (&str, &str)) -> Columns {
    let columns = match counter {
        "setlist.stars" => Columns::of(["setlist"]).sum(amount).filter(filter),
        "setlist.days" if by_tally => Columns::of(["setlist", "at"]).per(DAY),
        "setlist.days" => Columns::of(["setlist", "day"]).sum("stars").filter("NOT spam"),
        "song.days" => Columns::of(["song", "day"]).count().filter("NOT spam"),
        "all.stars" => Columns::of([]).sum("stars").filter("NOT spam"),
        "setlist.show" => Columns::of(["id", "show"]).count().parent("shows", ["id"]),
        "show.artist" => Columns::of(["id", "artist"]).count(),
        "show.tour" => Columns::of(["id"]).count(),
        other => panic!("{other} has no rows"),
    };
    if by_tally { columns.by_tally() } else { columns }
}

/// The sources of all rows, in either dialect: its type of rows, the method that reads a column,
/// and what [`columns`] needs to know.
#[allow(unused_macros)] // like the rest of `support`
macro_rules! sources {
    ($rows:ident, $get:ident, $by_tally:expr, $source:expr) => {{
        use $crate::support::audits::*;
        let of = |counter| sql::columns(counter, $by_tally, $source);
        let votes = $rows::of("votes", |row| {
            let (setlist, song): (_, String) = (row.$get(0)?, row.$get(1)?);
            let (day, stars, spam) = (row.$get(2)?, row.$get(3)?, row.$get(4)?);
            Ok(Row::Vote { setlist, song: song.into(), day, stars, spam })
        })
        .columns("CAST(setlist AS BIGINT), song, CAST(day AS BIGINT), stars, spam")
        .key(SETLIST_STARS, of("setlist.stars"))
        .key(SETLIST_DAYS, of("setlist.days"))
        .key(SONG_DAYS, of("song.days"))
        .key(ALL_STARS, of("all.stars"));
        let setlists =
            $rows::of("setlists", |row| Ok(Row::Setlist { id: row.$get(0)?, show: row.$get(1)? }))
                .columns("CAST(id AS BIGINT), show")
                .key(SETLIST_SHOW, of("setlist.show"));
        let shows = $rows::of("shows", |row| {
            let artist: Option<String> = row.$get(1)?;
            Ok(Row::Show { id: row.$get(0)?, artist: artist.map(Into::into) })
        })
        .columns("id, artist")
        .key(SHOW_ARTIST, of("show.artist"))
        .key(SHOW_TOUR, of("show.tour"));
        [votes, setlists, shows]
    }};
}

pub(crate) use sources;
