//! The days of an event file: how many events each has, which one is the busiest, and which one is
//! nearest to the mean.

use std::path::Path;

use keepcount::Date;
use serde::Deserialize;

use crate::error::Result;
use crate::event::Event;
use crate::lines::Lines;
use crate::progress::Progress;
use crate::season;

/// The source of events, which can be read again.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Generated from this seed.
    Season(u64),
    File(&'a Path),
}

impl Source<'_> {
    pub fn lines(&self, progress: &mut Progress) -> Result<Lines> {
        match self {
            Self::Season(seed) => Ok(Lines::made(season::make(*seed))),
            Self::File(path) => Lines::open(path, progress),
        }
    }

    pub fn events(&self) -> Result<DatedEvents> {
        Ok(DatedEvents { lines: self.lines(&mut Progress::hidden())?, day: None })
    }
}

/// Events, each with its day.
pub struct DatedEvents {
    lines: Lines,
    day: Option<Date>,
}

impl DatedEvents {
    /// Returns the next event and its day. An event without a day has the day of the event before.
    pub fn next_event(&mut self) -> Result<Option<(Option<Date>, Event)>> {
        let Some(event) = self.lines.next_event()? else { return Ok(None) };
        self.day = day_of(self.lines.line()).or(self.day);
        Ok(Some((self.day, event)))
    }
}

/// Returns the day in a line, if it has one.
fn day_of(line: &[u8]) -> Option<Date> {
    #[derive(Deserialize)]
    struct Line {
        at: Option<String>,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    line.at?.parse().ok()
}

/// Consecutive events of one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    pub date: Option<Date>,
    pub events: u64,
}

/// The days that have events, in the order of the file.
pub struct Days(Vec<Day>);

impl Days {
    pub fn of(source: &Source<'_>) -> Result<Self> {
        let mut days: Vec<Day> = Vec::new();
        let mut events = source.events()?;
        while let Some((date, _)) = events.next_event()? {
            match days.last_mut().filter(|day| day.date == date) {
                Some(day) => day.events += 1,
                None => days.push(Day { date, events: 1 }),
            }
        }
        Ok(Self(days))
    }

    pub fn iter(&self) -> impl Iterator<Item = Day> {
        self.0.iter().copied()
    }

    pub fn events(&self) -> u64 {
        self.iter().map(|day| day.events).sum()
    }

    /// Returns the number of days from the first to the last, including days without events.
    pub fn span(&self) -> u64 {
        let dates = || self.iter().filter_map(|day| day.date).map(|date| i64::from(date.days()));
        dates()
            .max()
            .zip(dates().min())
            .map_or(1, |(last, first)| (last - first).unsigned_abs() + 1)
    }

    /// Returns the index of the day with the most events; of several, the last one, which has the
    /// most rows before it.
    pub fn busiest(&self) -> Option<usize> {
        self.0.iter().enumerate().max_by_key(|(_, day)| day.events).map(|(at, _)| at)
    }

    /// Returns the index of the last day whose number of events is within a tenth of the mean, or
    /// else is nearest to it.
    pub fn nearest_to_mean(&self) -> Option<usize> {
        let (events, span) = (u128::from(self.events()), u128::from(self.span()));
        let distance =
            |day: &Day| (u128::from(day.events) * span).abs_diff(events).max(events / 10);
        self.0.iter().enumerate().rev().min_by_key(|(_, day)| distance(day)).map(|(at, _)| at)
    }
}
