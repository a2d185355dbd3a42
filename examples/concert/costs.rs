//! Shows what a day costs with the jobs of the replaced system, as often as they ran, and with
//! hooks; on days of the event file, and as the site grows.

use std::io::Write;
use std::iter;
use std::time::Duration;

use crate::days::{Days, Source};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::replaced::{Cost, JOBS};
use crate::text::{Table, duration, number};
use crate::worked::{DayCost, MeasuredSite, Runs};

/// The factors by which a site grows.
const GROWTH: [u32; 2] = [10, 100];
/// The rows of the largest site that a demonstration creates.
const MAX_ROWS: u64 = 2_500_000;
/// Events that are not measured are applied this many at a time.
const EVENTS_AT_ONCE: usize = 1_000;

/// Shows what the busiest and the mean day of these events cost, and what the mean one costs on
/// larger sites.
pub fn show(out: &mut impl Write, source: &Source<'_>, events: u64, seed: u64) -> Result<()> {
    let days = Days::of(source)?;
    if days.events() != events || events == 0 {
        writeln!(out, "What a day costs is not shown: the events could not be read a second time")?;
        return Ok(());
    }
    let study = Study::of(source, &days)?;
    writeln!(
        out,
        "{} events in {} days are {} on the mean day. Each day really runs, with votes of one half-life: each event with its hooks in a\n\
         transaction of its own, and every job of the replaced system each time that it is due.\n",
        number(days.events()),
        number(days.span()),
        number((days.events() + days.span() / 2) / days.span()),
    )?;
    if let Some(busiest) = &study.busiest {
        writeln!(
            out,
            "What a day costs: the busiest, {}\n\n{}",
            day_title(busiest),
            day_table(busiest)
        )?;
    }
    writeln!(
        out,
        "What a day costs: the mean one, {}\n\n{}",
        day_title(&study.mean),
        day_table(&study.mean)
    )?;
    out.flush()?;
    if !study.grown.is_empty() {
        return show_growth(out, &study);
    }
    writeln!(
        out,
        "A hundred times these rows are too many for a demonstration. A generated season shows how both sides grow.\n"
    )?;
    let season = Source::Season(seed);
    show_growth(out, &Study::of(&season, &Days::of(&season)?)?)
}

fn day_title(cost: &DayCost) -> String {
    let date = cost.day.date.map_or_else(|| "of no date".to_owned(), |date| date.to_string());
    format!("{date}, {} events on a site of {} rows", number(cost.day.events), number(cost.rows))
}

/// Returns a table of what each part of a day costs.
fn day_table(day: &DayCost) -> Table {
    let mut table = Table::new(["", "a day", "statements", "rows read", "rows written", "time"]);
    for (job, cost) in JOBS.iter().zip(&day.jobs) {
        table.row(cells(job.name, &format!("{}x", job.a_day), cost));
    }
    table.row(cells("the replaced system", "", &day.replaced()));
    table.row(cells(
        "keepcount, the hooks of its events",
        &format!("{}x", number(day.day.events)),
        &day.hooks,
    ));
    table.row(cells("  of which boards", "", &Cost { time: Duration::ZERO, ..day.leaderboards }));
    table.row(cells("a full verification, when wanted", "1x", &day.verification));
    table
}

/// Shows the mean day on sites of three sizes.
fn show_growth(out: &mut impl Write, study: &Study) -> Result<()> {
    let sizes: Vec<(u32, &DayCost)> = iter::once((1, &study.mean))
        .chain(study.grown.iter().map(|(times, day)| (*times, day)))
        .collect();
    let mut table = Table::new(["", "rows", "statements", "rows read", "rows written", "time"]);
    for (label, cost) in [
        ("the replaced system", DayCost::replaced as fn(&DayCost) -> Cost),
        ("keepcount", |day| day.hooks),
    ] {
        for (times, day) in &sizes {
            table.row(cells(&format!("{label}, {times}x"), &number(day.rows), &cost(day)));
        }
    }
    writeln!(
        out,
        "The mean day, {} events, with artists, shows, setlists and votes 10 and 100 times as many\n\n{table}",
        number(study.mean.day.events)
    )?;
    if let Some((times, last)) = sizes.last() {
        let growth = |cost: fn(&DayCost) -> Cost| {
            let (one, many) = (cost(&study.mean), cost(last));
            let (statements, rows) =
                (ratio(many.statements, one.statements), ratio(many.rows_read, one.rows_read));
            format!(
                "{statements:.1} times as many statements and {rows:.1} times as many rows read"
            )
        };
        writeln!(
            out,
            "  From 1x to {times}x, the jobs grow with the rows: {}.\n  \
             The hooks grow with the events alone: {}.\n  \
             The figures of keepcount are SQLite's own count of statements on totals, memberships and leaderboards, and the read of each updated\n  \
             row's old state. Its time is that of these statements; a job's time is that of the whole job. Nothing waits for the disk. At 1x all {} runs\n  \
             took place. At 10x and 100x each job ran once, and its figures are multiplied by its runs a day. A full verification reads every\n  \
             row and total, so it grows with the rows too. Totals are right without it: the one after each day found no drift.",
            growth(DayCost::replaced),
            growth(|day| day.hooks),
            JOBS.iter().map(|job| job.a_day).sum::<u32>(),
        )?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "shown to people, with one decimal")]
fn ratio(one: u64, other: u64) -> f64 {
    if other == 0 { 0.0 } else { one as f64 / other as f64 }
}

fn cells(name: &str, times: &str, cost: &Cost) -> [String; 6] {
    let time = if cost.time.is_zero() { String::new() } else { duration(cost.time) };
    let numbers = [cost.statements, cost.rows_read, cost.rows_written].map(number);
    let [statements, rows_read, rows_written] = numbers;
    [name.to_owned(), times.to_owned(), statements, rows_read, rows_written, time]
}

/// The days that are shown.
struct Study {
    /// `None` if the mean day is also the busiest.
    busiest: Option<DayCost>,
    mean: DayCost,
    /// The mean day on sites this many times as large; empty if they would be too large.
    grown: Vec<(u32, DayCost)>,
}

impl Study {
    /// Applies all events up to the later of the two days that are shown, and measures those days.
    fn of(source: &Source<'_>, days: &Days) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|error| Error::said(format!("a temporary folder: {error}")))?;
        let mut site = MeasuredSite::create(&folder.path().join("site.db"))?;
        let (at_busiest, at_mean) = (days.busiest(), days.nearest_to_mean());
        let (mut busiest, mut mean, mut grown) = (None, None, Vec::new());
        let mut events = source.events()?;
        let mut waiting: Vec<Event> = Vec::new();
        for (at, day) in days.iter().enumerate() {
            let (is_busiest, is_mean) = (at_busiest == Some(at), at_mean == Some(at));
            if is_busiest || is_mean || waiting.len() >= EVENTS_AT_ONCE {
                site.apply(&waiting)?;
                waiting.clear();
            }
            for _ in 0..day.events {
                waiting.extend(events.next_event()?.map(|(_, event)| event));
            }
            if is_mean && site.rows()? * 100 <= MAX_ROWS {
                for times in GROWTH {
                    let path = folder.path().join(format!("{times}.db"));
                    grown.push((
                        times,
                        site.grown(&path, times)?.run_day(day, &waiting, Runs::Once)?,
                    ));
                }
            }
            if is_busiest || is_mean {
                let cost = site.run_day(day, &waiting, Runs::All)?;
                *(if is_mean { &mut mean } else { &mut busiest }) = Some(cost);
                waiting.clear();
            }
        }
        let mean = mean.ok_or_else(|| Error::said("there is no day"))?;
        Ok(Self { busiest, mean, grown })
    }
}
