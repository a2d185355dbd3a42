//! The demonstration: a season is replayed, changed without hooks, verified and repaired; then the
//! cost of a day is shown.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;

use keepcount::reconcile::{Mode, Report};
use keepcount::{Date, SqliteStore};
use rusqlite::{Connection, OptionalExtension as _};

use crate::audit::{self, Scope};
use crate::clock::{now, seconds_now};
use crate::days::Source;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::replay;
use crate::schema::C;
use crate::sqlite::{Count, Writes};
use crate::text::{Table, number};
use crate::{costs, lists, schema, verified};

const SEED: u64 = 1842;

/// Writes that bypass the hooks: a description and the statement of each. They work on any rows,
/// and also on none.
const WRITES_WITHOUT_HOOKS: &[(&str, &str)] = &[
    ("votes deleted", "DELETE FROM votes WHERE id IN (SELECT id FROM votes ORDER BY id LIMIT 3)"),
    (
        "votes moved to another setlist",
        "UPDATE votes SET setlist_id = (SELECT max(id) FROM setlists)
         WHERE id IN (SELECT id FROM votes ORDER BY id DESC LIMIT 4)",
    ),
    (
        "setlists without votes deleted",
        "DELETE FROM setlists WHERE id IN
         (SELECT id FROM setlists WHERE id NOT IN (SELECT setlist_id FROM votes) ORDER BY id LIMIT 2)",
    ),
    (
        "shows moved to another artist",
        "UPDATE shows SET artist_id = (SELECT max(id) FROM artists) WHERE id IN (SELECT id FROM shows ORDER BY id LIMIT 5)",
    ),
    (
        "shows called off",
        "UPDATE shows SET status = 'cancelled'
         WHERE id IN (SELECT id FROM shows WHERE status = 'upcoming' ORDER BY id DESC LIMIT 2)",
    ),
    (
        "totals changed",
        "UPDATE show_setlists SET total = total + 7 WHERE key IN (SELECT key FROM show_setlists ORDER BY key DESC LIMIT 2)",
    ),
    ("total removed", "DELETE FROM artist_shows WHERE key = (SELECT min(key) FROM artist_shows)"),
    ("total invented", "INSERT OR IGNORE INTO user_votes (key, total) VALUES ('nobody', 42)"),
];

/// Runs the demonstration on these events, or on a generated season.
pub fn run(out: &mut impl Write, events: Option<&Path>) -> Result<()> {
    let db = fresh_file()?;
    run_in(out, events, &db).map_err(|error| error.in_db(db.display()))
}

fn run_in(out: &mut impl Write, events: Option<&Path>, db: &Path) -> Result<()> {
    let mut progress = Progress::new();
    let source = events.map_or(Source::Season(SEED), Source::File);
    let mut lines = source.lines(&mut progress)?;
    let mut conn = schema::create(db)?;

    let started = now();
    let mut target = Writes { conn: &mut conn, count: Count::EachEvent };
    let done = replay::replay(&mut target, "demonstration", &mut lines, &mut progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let from = events.map_or_else(
        || "A season, made with a seed".to_owned(),
        |events| events.display().to_string(),
    );
    writeln!(
        out,
        "{from}: {} events replayed in {seconds:.1} s, each with its hooks\n",
        number(done.events)
    )?;
    writeln!(out, "{}", row_counts(&conn)?)?;
    let today = last_day(&conn)?;
    let lists = lists::side_by_side(&mut SqliteStore::new(&conn, &C::SCHEMA), today, 3)?;
    writeln!(out, "The first of the lists on {today}\n\n{lists}")?;

    writeln!(out, "Writes without hooks, by SQL alone\n\n{}", write_without_hooks(&conn)?)?;
    let found = reconcile(out, &mut conn, Mode::Verify)?;
    let repaired = reconcile(out, &mut conn, Mode::Repair)?;
    let verified = reconcile(out, &mut conn, Mode::Verify)?;
    if repaired.drift() != found.drift() || verified.drift() > 0 {
        return Err(Error::said("the repair did not repair what the verify had found"));
    }

    writeln!(
        out,
        "The database is {0}; delete it when you are done. Ask it yourself:\n\n  sqlite3 {0} \"SELECT a.name, t.total FROM artist_upcoming_shows AS t \
         JOIN artists AS a ON a.id = t.key WHERE t.total <> 0 ORDER BY t.total DESC LIMIT 5\"\n",
        db.display()
    )?;
    out.flush()?;
    costs::show(out, &source, done.events, SEED)
}

/// Returns the day on which the events end, as far as their rows show: a show is completed on its
/// date.
fn last_day(conn: &Connection) -> Result<Date> {
    let text = "SELECT date FROM shows ORDER BY status = 'completed' DESC, date DESC LIMIT 1";
    let date: Option<String> = conn.query_row(text, (), |row| row.get(0)).optional()?;
    date.map_or(Ok(Date::MIN), |date| {
        date.parse().map_err(|error| Error::said(format!("a show's date: {error}")))
    })
}

/// Returns the path of this process's database, after removing the files that an earlier process
/// with the same id left there.
fn fresh_file() -> Result<PathBuf> {
    let db = env::temp_dir().join(format!("keepcount-concert-{}.db", process::id()));
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut stale = db.clone().into_os_string();
        stale.push(suffix);
        match fs::remove_file(&stale) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::said(format!("{}: {error}", Path::new(&stale).display())));
            }
            _ => {}
        }
    }
    Ok(db)
}

fn row_counts(conn: &Connection) -> Result<Table> {
    let mut table = Table::new(["table", "rows"]);
    for name in ["artists", "shows", "setlists", "votes"] {
        let rows: i64 =
            conn.query_row(&format!("SELECT count(*) FROM {name}"), (), |row| row.get(0))?;
        table.row([name.to_owned(), number(rows.unsigned_abs())]);
    }
    Ok(table)
}

fn write_without_hooks(conn: &Connection) -> Result<Table> {
    let mut table = Table::new(["what", "rows"]);
    for (what, statement) in WRITES_WITHOUT_HOOKS {
        let rows = conn.execute(statement, ())?;
        table.row([(*what).to_owned(), number(rows as u64)]);
    }
    Ok(table)
}

/// Runs a verify or a repair and prints its report. A verify lists one key of each counter that
/// differs, which the repair need not repeat. A clean verify prints one line.
fn reconcile(out: &mut impl Write, conn: &mut Connection, mode: Mode) -> Result<Report> {
    let (title, samples) = if mode == Mode::Verify { ("Verify", 1) } else { ("Repair", 0) };
    let report = audit::run(conn, mode, &Scope { samples: Some(samples), ..Scope::default() })?;
    verified::note(conn, &report, seconds_now())?;
    if mode == Mode::Verify && report.drift() == 0 {
        writeln!(out, "{title}\n\n{report}\n")?;
    } else {
        writeln!(out, "{title}\n\n{}\n", report.table())?;
    }
    out.flush()?;
    Ok(report)
}
