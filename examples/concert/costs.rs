//! What a day costs: the replaced system's jobs, as often as they ran, beside hooks and one verification.

use keepcount::Date;
use keepcount::reconcile::Mode;
use rusqlite::Connection;

use crate::audit::{self, Scope};
use crate::error::Result;
use crate::replaced::{self, Cost};
use crate::replay::Done;
use crate::schema::C;
use crate::text::{Table, number};
use crate::traced::{Traced, trace};

/// Every part with the times a day that it runs, and what it costs each time.
pub struct Day {
    replaced: [Part; 5],
    keepcount: [Part; 2],
    boards: Vec<(&'static str, Cost)>,
    events: u64,
    updates: u64,
}

type Part = (&'static str, u64, Cost);

impl Day {
    /// Runs the jobs and the verification; the hooks ran before, with a transaction for every event.
    pub fn measure(conn: &mut Connection, done: &Done, hooks: &Traced, today: Date) -> Result<Self> {
        let replaced = [
            ("hourly engagement recount", 24, replaced::engagement(conn)?),
            ("two-hourly artist recount", 12, replaced::artists(conn)?),
            ("four-hourly artist trending", 6, replaced::artist_trending(conn)?),
            ("four-hourly show trending", 6, replaced::show_trending(conn, today)?),
            ("polling for due jobs, every 5 min", 288, replaced::poll(conn)?),
        ];
        // An update reads its old row.
        let old_rows = Cost { statements: done.updates, rows_read: done.updates, rows_written: 0 };
        let keepcount = [("hooks", 1, hooks.all.plus(&old_rows)), ("full verification", 1, verification(conn)?)];
        Ok(Self { replaced, keepcount, boards: hooks.boards.clone(), events: done.events, updates: done.updates })
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new(["", "a day", "statements", "rows read", "rows written"]);
        let mut sum = Cost::default();
        for (name, times, cost) in &self.replaced {
            let day = cost.times(*times);
            table.row(cells(name, &format!("{times}x"), &day));
            sum = sum.plus(&day);
        }
        table.row(cells("the replaced system", "", &sum));
        let mut sum = Cost::default();
        for (name, times, cost) in &self.keepcount {
            let day = cost.times(*times);
            table.row(cells(name, &format!("{times}x"), &day));
            if *name == "hooks" {
                for (board, cost) in &self.boards {
                    table.row(cells(&format!("  of which {board}"), "", cost));
                }
            }
            sum = sum.plus(&day);
        }
        table.row(cells("keepcount", "", &sum));
        table
    }

    /// What the table's figures are of, and from how many events a day on hooks cost what the jobs cost on any day.
    pub fn explained(&self) -> String {
        let [rest @ .., (_, artists_times, artists), (_, shows_times, shows), polling] = &self.replaced;
        let trending = artists.times(*artists_times).plus(&shows.times(*shows_times));
        let jobs = rest.iter().chain([polling]).map(|(_, times, cost)| cost.times(*times));
        let jobs = jobs.fold(trending, |sum, cost| sum.plus(&cost));
        let hooks = self.keepcount.first().map(|(_, _, hooks)| *hooks).unwrap_or_default();
        let lines = self.boards.iter().fold(Cost::default(), |sum, (_, cost)| sum.plus(cost)).rows_written;
        let as_many = |jobs: u64, hooks: u64| number((jobs * self.events).checked_div(hooks).unwrap_or(0));
        format!(
            "  The hooks' day has all {} events above, each in a transaction of its own: SQLite's own count of its statements on\n  \
             totals, links and boards, {:.1} an event, and the old row of each of {} updates. The jobs cost the same on a day\n  \
             without any event: their statements are those of {} events a day, their rows written those of {}.\n  \
             Boards wrote {} lines, {:.1} an event, where the trending jobs patched {} rows.",
            number(self.events),
            ratio(hooks.statements, self.events),
            number(self.updates),
            as_many(jobs.statements, hooks.statements),
            as_many(jobs.rows_written, hooks.rows_written),
            number(lines),
            ratio(lines, self.events),
            number(trending.rows_written),
        )
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown to people, with one decimal")]
fn ratio(one: u64, other: u64) -> f64 {
    if other == 0 { 0.0 } else { one as f64 / other as f64 }
}

/// One full verification: SQLite itself tells every statement that it runs.
fn verification(conn: &mut Connection) -> Result<Cost> {
    let (report, traced) = trace(conn, |conn| audit::run(conn, Mode::Verify, &Scope::default()))?;
    let mut totals = 0;
    for placed in C::LAYOUT.counters() {
        let count = format!("SELECT count(*) FROM {}", placed.table_name());
        totals += conn.query_row(&count, (), |row| row.get::<_, i64>(0))?.unsigned_abs();
    }
    Ok(Cost { statements: traced.statements, rows_read: report.rows + totals, rows_written: 0 })
}

fn cells(name: &str, times: &str, cost: &Cost) -> [String; 5] {
    [name.to_owned(), times.to_owned(), number(cost.statements), number(cost.rows_read), number(cost.rows_written)]
}
