//! Shows what a day costs: the replaced system's jobs, as often as they ran, and the hooks; on real
//! days, and as the site grows.

use std::io::Write;
use std::iter;
use std::time::Duration;

use crate::days::{Days, Source};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::replaced::{Cost, JOBS};
use crate::text::{Table, number, took};
use crate::worked::{DayCost, Runs, Worked};

/// The factors by which a site grows.
const GROWTH: [u32; 2] = [10, 100];
/// A demonstration makes no site with more rows than this.
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
        "{} events in {} days are {} on the mean day. Days are worked through for real, the votes of one half-life: each event with its hooks in\n\
         a transaction of its own, and every job of the replaced system each time that it was due.\n",
        number(days.events()),
        number(days.span()),
        number((days.events() + days.span() / 2) / days.span()),
    )?;
    if let Some(busiest) = &study.busiest {
        writeln!(
            out,
            "What a day costs: the busiest, {}\n\n{}",
            named(busiest),
            detailed(busiest)
        )?;
    }
    writeln!(
        out,
        "What a day costs: the mean one, {}\n\n{}",
        named(&study.mean),
        detailed(&study.mean)
    )?;
    out.flush()?;
    if !study.grown.is_empty() {
        return growth(out, &study);
    }
    writeln!(
        out,
        "A hundred times these rows are too many for a demonstration; how both sides grow is shown on a season that is made.\n"
    )?;
    let season = Source::Season(seed);
    growth(out, &Study::of(&season, &Days::of(&season)?)?)
}

fn named(cost: &DayCost) -> String {
    let date = cost.day.date.map_or_else(|| "of no date".to_owned(), |date| date.to_string());
    format!("{date}, {} events on a site of {} rows", number(cost.day.events), number(cost.rows))
}

/// A day, part by part.
fn detailed(day: &DayCost) -> Table {
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
fn growth(out: &mut impl Write, study: &Study) -> Result<()> {
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
             What keepcount does is SQLite's own count of statements on totals, memberships and leaderboards, and the read of each updated row's old\n  \
             state; its time is that of these statements, a job's is all of it, and nobody waits for the disk. At 1x each of the {} runs\n  \
             was run; at 10x and 100x each job ran once, and its figures are multiplied by its runs a day. A full verification reads\n  \
             every row and total and so grows with the rows too. Totals are right without it; the one after each day found no drift.",
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
    let time = if cost.time.is_zero() { String::new() } else { took(cost.time) };
    let numbers = [cost.statements, cost.rows_read, cost.rows_written].map(number);
    let [statements, rows_read, rows_written] = numbers;
    [name.to_owned(), times.to_owned(), statements, rows_read, rows_written, time]
}

/// The days that are shown.
struct Study {
    /// `None` if it is the mean one.
    busiest: Option<DayCost>,
    mean: DayCost,
    /// The mean day again, on sites this many times as large; without the sites that would be too
    /// large.
    grown: Vec<(u32, DayCost)>,
}

impl Study {
    /// Applies all events up to the later of the days that are shown, and works through both days
    /// when they come.
    fn of(source: &Source<'_>, days: &Days) -> Result<Self> {
        let folder = tempfile::tempdir()
            .map_err(|error| Error::said(format!("a temporary folder: {error}")))?;
        let mut site = Worked::create(&folder.path().join("site.db"))?;
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
                    grown.push((times, site.grown(&path, times)?.work(day, &waiting, Runs::Once)?));
                }
            }
            if is_busiest || is_mean {
                let cost = site.work(day, &waiting, Runs::All)?;
                *(if is_mean { &mut mean } else { &mut busiest }) = Some(cost);
                waiting.clear();
            }
        }
        let mean = mean.ok_or_else(|| Error::said("there is no day"))?;
        Ok(Self { busiest, mean, grown })
    }
}
