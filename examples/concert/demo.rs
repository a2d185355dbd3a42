//! The demonstration: a season replayed, broken behind the hooks' back, verified, repaired, and what a day of it costs.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keepcount::reconcile::{Mode, Report};
use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use crate::audit::{self, Scope};
use crate::error::{Error, Result};
use crate::lines::Lines;
use crate::progress::{self, Progress};
use crate::replaced::{self, Cost};
use crate::replay::{self, Done};
use crate::schema::C;
use crate::text::{Table, number};
use crate::{schema, season};

const SEED: u64 = 1842;

/// What happens behind the hooks' back: in words, and the statement. Each takes what there is, be it nothing.
const SABOTAGE: &[(&str, &str)] = &[
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

/// Shows everything on these events, or on a season made for the purpose.
pub fn run(out: &mut impl Write, events: Option<&Path>) -> Result<()> {
    let db = fresh_file()?;
    run_in(out, events, &db).map_err(|error| error.in_file(&db))
}

fn run_in(out: &mut impl Write, events: Option<&Path>, db: &Path) -> Result<()> {
    let mut progress = Progress::new();
    let mut lines = match events {
        Some(events) => Lines::open(events, &mut progress)?,
        None => Lines::made(season::make(SEED)),
    };
    let mut conn = schema::create(db)?;

    let started = progress::now();
    let done = replay::replay(&mut conn, "demonstration", &mut lines, &mut progress)?;
    let seconds = started.elapsed().as_secs_f64();
    let source = events.map_or_else(|| "A season, made with a seed".to_owned(), |events| events.display().to_string());
    writeln!(out, "{source}: {} events replayed in {seconds:.1} s, each with its hooks\n", number(done.events))?;
    writeln!(out, "{}", rows(&conn)?)?;

    writeln!(out, "Broken behind the hooks' back, by SQL alone\n\n{}", break_it(&conn)?)?;
    let found = reconcile(out, &conn, Mode::Verify)?;
    let mended = reconcile(out, &conn, Mode::Repair)?;
    let verified = reconcile(out, &conn, Mode::Verify)?;
    if mended.drift() != found.drift() || verified.drift() > 0 {
        return Err(Error::said("the repair did not mend what the verify had found"));
    }

    writeln!(
        out,
        "The database is {0}; delete it when you are done. Ask it yourself:\n\n  sqlite3 {0} \"SELECT a.name, t.total FROM artist_upcoming_shows AS t \
         JOIN artists AS a ON a.id = t.key WHERE t.total <> 0 ORDER BY t.total DESC LIMIT 5\"\n",
        db.display()
    )?;
    writeln!(out, "What a day costs\n\n{}", costs(&mut conn, &done)?)?;
    writeln!(
        out,
        "  The hooks' day has all {} events above, each in a transaction of its own; the rows that they read are the\n  \
         totals that they add to, and the old row of each of {} updates.",
        number(done.events),
        number(done.updates),
    )?;
    Ok(())
}

/// A file of this process's own, without what an earlier process of the same number has left.
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

fn rows(conn: &Connection) -> Result<Table> {
    let mut table = Table::new(["table", "rows"]);
    for name in ["artists", "shows", "setlists", "votes"] {
        let rows: i64 = conn.query_row(&format!("SELECT count(*) FROM {name}"), (), |row| row.get(0))?;
        table.row([name.to_owned(), number(rows.unsigned_abs())]);
    }
    Ok(table)
}

fn break_it(conn: &Connection) -> Result<Table> {
    let mut table = Table::new(["what", "rows"]);
    for (what, statement) in SABOTAGE {
        let rows = conn.execute(statement, ())?;
        table.row([(*what).to_owned(), number(rows as u64)]);
    }
    Ok(table)
}

/// Every key that differs is listed by the verify; the repair need not repeat them.
fn reconcile(out: &mut impl Write, conn: &Connection, mode: Mode) -> Result<Report> {
    let (title, samples) = if mode == Mode::Verify { ("Verify", 20) } else { ("Repair", 0) };
    let report = audit::run(conn, mode, &Scope { samples: Some(samples), ..Scope::default() })?;
    writeln!(out, "{title}\n\n{}\n", report.table())?;
    out.flush()?;
    Ok(report)
}

/// The replaced system's jobs, as often as they ran, beside hooks and one verification.
fn costs(conn: &mut Connection, done: &Done) -> Result<Table> {
    let engagement = replaced::engagement(conn)?;
    let artists = replaced::artists(conn)?;
    let hooks = Cost {
        statements: done.statements_one_by_one,
        rows_read: done.statements_one_by_one + done.updates,
        rows_written: done.statements_one_by_one,
    };
    let verification = verification(conn)?;

    let mut table = Table::new(["", "a day", "statements", "rows read", "rows written"]);
    let mut system = |name: &str, parts: [(&str, u64, Cost); 2]| {
        let mut sum = Cost::default();
        for (part, times, cost) in parts {
            let day = cost.times(times);
            table.row(cells(part, &format!("{times}x"), &day));
            sum = sum.plus(&day);
        }
        table.row(cells(name, "", &sum));
    };
    system(
        "the replaced system",
        [("hourly engagement recount", 24, engagement), ("two-hourly artist recount", 12, artists)],
    );
    system("keepcount", [("hooks", 1, hooks), ("full verification", 1, verification)]);
    Ok(table)
}

/// One full verification: SQLite itself tells every statement that it runs.
fn verification(conn: &mut Connection) -> Result<Cost> {
    let statements = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&statements);
    let count = move |_: TraceEvent<'_>| {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    conn.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(count))?;
    let report = audit::run(conn, Mode::Verify, &Scope::default())?;
    conn.trace_v2(TraceEventCodes::empty(), None::<fn(TraceEvent<'_>)>)?;

    let mut totals = 0;
    for placed in C::LAYOUT.counters() {
        let count = format!("SELECT count(*) FROM {}", placed.table_name());
        totals += conn.query_row(&count, (), |row| row.get::<_, i64>(0))?.unsigned_abs();
    }
    Ok(Cost { statements: statements.load(Ordering::Relaxed), rows_read: report.rows + totals, rows_written: 0 })
}

fn cells(name: &str, times: &str, cost: &Cost) -> [String; 5] {
    [name.to_owned(), times.to_owned(), number(cost.statements), number(cost.rows_read), number(cost.rows_written)]
}
