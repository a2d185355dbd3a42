//! The figures of `watch`, read in short transactions. Counting all keys of a large counter takes
//! time, so a refresh counts as many counters as its time budget allows, and the next refresh
//! continues from there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use keepcount::Date;
use keepcount::backend::CounterSpec;

use crate::clock::now;
use crate::error::Result;
use crate::lists;
use crate::schema::C;
use crate::site::{Moment, Site};
use crate::text::Table;

const LIST_LINES: usize = 10;
/// Lists are read again after this many times the time that reading them took.
const LISTS_PAUSE: u32 = 10;

pub struct Figures {
    /// Lines of all streams that were replayed.
    pub lines: Gauge,
    pub counters: Vec<CounterFigures>,
    /// The index of the counter to continue with.
    next: usize,
    pub lists: Table,
    /// The day and the version of the data for which the lists were read.
    lists_of: Option<(Date, String)>,
    lists_due: Instant,
    pub verified: HashMap<String, i64>,
}

/// The figures of a whole counter.
pub struct CounterFigures {
    pub name: &'static str,
    table: String,
    /// `None` until it is counted for the first time.
    pub keys: Option<i64>,
    pub sum: Gauge,
    /// The version of the data that was counted.
    of: Option<String>,
}

/// A number that is read repeatedly, and its change since it was last read.
#[derive(Default)]
pub struct Gauge {
    last: Option<(Instant, i128)>,
    pub per_second: Option<f64>,
}

impl Figures {
    pub fn new() -> Self {
        Self {
            lines: Gauge::default(),
            counters: C::SCHEMA.counters().iter().map(CounterFigures::new).collect(),
            next: 0,
            lists: Table::new([]),
            lists_of: None,
            lists_due: now(),
            verified: HashMap::new(),
        }
    }

    /// Reads what has changed, as of one moment; counters only until the time budget is spent.
    pub fn refresh(&mut self, site: &mut impl Site, at: Date, budget: Duration) -> Result<()> {
        let started = now();
        // Keep the transaction short: while it is open, SQLite cannot reset the write-ahead log.
        let mut moment = site.moment()?;
        let version = moment.version()?;
        self.lines.set(moment.lines()?);
        self.verified = moment.verified()?;
        let of = Some((at, version.clone()));
        if self.lists_of != of && now() >= self.lists_due {
            self.lists = lists::side_by_side(&mut moment.store(), at, LIST_LINES)?;
            self.lists_of = of;
            self.lists_due = now() + started.elapsed() * LISTS_PAUSE;
        }
        let (first, many) = (self.next, self.counters.len());
        for place in (first..first + many).map(|place| place % many) {
            if started.elapsed() >= budget {
                self.next = place;
                break;
            }
            if let Some(counter) = self.counters.get_mut(place) {
                counter.count(&mut moment, &version)?;
            }
        }
        Ok(())
    }
}

impl CounterFigures {
    fn new(spec: &CounterSpec) -> Self {
        Self {
            name: spec.id().name(),
            table: spec.table_name(),
            keys: None,
            sum: Gauge::default(),
            of: None,
        }
    }

    fn count(&mut self, moment: &mut impl Moment, version: &str) -> Result<()> {
        if self.of.as_deref() == Some(version) {
            self.sum.set_unchanged();
            return Ok(());
        }
        let (keys, sum) = moment.count(&self.table)?;
        self.keys = Some(keys);
        self.sum.set(sum);
        self.of = Some(version.to_owned());
        Ok(())
    }
}

impl Gauge {
    pub fn value(&self) -> Option<i128> {
        self.last.map(|(_, value)| value)
    }

    #[allow(clippy::cast_precision_loss, reason = "shown to people, in whole numbers a second")]
    fn set(&mut self, value: i128) {
        let at = now();
        if let Some((before, known)) = self.last {
            let seconds = (at - before).as_secs_f64();
            self.per_second = (seconds > 0.0).then(|| (value - known) as f64 / seconds);
        }
        self.last = Some((at, value));
    }

    /// Records that the value has not changed, because nothing was written.
    fn set_unchanged(&mut self) {
        if let Some(value) = self.value() {
            self.set(value);
        }
    }
}
