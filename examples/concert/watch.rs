//! A table of the whole site: redrawn in place every second on a terminal, printed once elsewhere.
//! It writes nothing to the database.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal as _, Write};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keepcount::Date;

use crate::clock::seconds_now;
use crate::error::{Error, Result};
use crate::figures::{Figures, Gauge};
use crate::site::Site;
use crate::text::{Table, ago, number};

const PERIOD: Duration = Duration::from_secs(1);
/// The time that a refresh may take, apart from the last counter that it reads.
const BUDGET: Duration = Duration::from_millis(100);

/// Shows lists as of the given day, or of the current one; on a terminal, until interrupted.
pub fn run(
    out: &mut impl Write,
    site: &mut impl Site,
    db: &impl Display,
    at: Option<Date>,
) -> Result<()> {
    let mut figures = Figures::new();
    if !io::stdout().is_terminal() {
        let at = day_or_today(at)?;
        figures.refresh(site, at, Duration::MAX)?;
        out.write_all(text(&figures, db, at).as_bytes())?;
        return Ok(());
    }
    let screen = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    screen.set_style(
        ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    // The loop ends when the terminal is closed.
    while io::stdout().is_terminal() {
        let at = day_or_today(at)?;
        figures.refresh(site, at, BUDGET)?;
        screen.set_message(text(&figures, db, at));
        thread::sleep(PERIOD);
    }
    Ok(())
}

/// Returns the given day, or today in UTC.
fn day_or_today(at: Option<Date>) -> Result<Date> {
    let today = || i32::try_from(seconds_now().div_euclid(86_400)).ok().and_then(Date::from_days);
    at.or_else(today)
        .ok_or_else(|| Error::said("the clock is outside the years 1 to 9999: give a day as --at"))
}

// The lists come first, because a terminal with few lines cuts off the end.
fn text(figures: &Figures, db: &impl Display, at: Date) -> String {
    let lines = figures.lines.value().map_or_else(String::new, number);
    let rate = rate(&figures.lines);
    let rate = if rate.is_empty() { rate } else { format!(", {rate} a second") };
    let mut text = format!("{db} on {at}: {lines} lines replayed{rate}\n\n{}\n", figures.lists);
    let _ = write!(text, "{}", counters(figures)); // writing to a String does not fail
    text
}

fn counters(figures: &Figures) -> Table {
    let now = seconds_now();
    let mut table = Table::new(["counter", "keys", "sum of totals", "a second", "found clean"]);
    for counter in &figures.counters {
        let verified = figures.verified.get(counter.name);
        table.row([
            counter.name.to_owned(),
            counter.keys.map_or_else(String::new, number),
            counter.sum.value().map_or_else(String::new, number),
            rate(&counter.sum),
            verified.map_or_else(|| "never".to_owned(), |at| ago(now.saturating_sub(*at))),
        ]);
    }
    table
}

/// Returns the change a second; empty before the second reading.
fn rate(gauge: &Gauge) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "it saturates")]
    gauge.per_second.map_or_else(String::new, |per_second| number(per_second.round() as i128))
}
