//! What `watch` shows, read in short transactions: counting all keys of a large counter takes its time, so that a refresh counts as many
//! counters as its budget allows, and the next one goes on from there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use keepcount::{Date, Placed, SqliteStore};
use rusqlite::{Connection, Transaction};

use crate::clock::now;
use crate::error::Result;
use crate::schema::C;
use crate::text::Table;
use crate::{lists, position, verified};

const LIST_LINES: usize = 10;
/// Lists that took long to make are made anew after so many times as long.
const LISTS_REST: u32 = 10;

pub struct Figures {
    /// Lines of all streams that were replayed.
    pub lines: Gauge,
    pub counters: Vec<Counted>,
    /// The counter to go on from.
    next: usize,
    pub lists: Table,
    /// The day and the version of the data that the lists are of.
    lists_of: Option<(Date, i64)>,
    lists_due: Instant,
    pub verified: HashMap<String, i64>,
}

/// A counter as a whole.
pub struct Counted {
    pub name: &'static str,
    text: String,
    /// None until it was counted for the first time.
    pub keys: Option<i64>,
    pub sum: Gauge,
    /// The version of the data that was counted.
    of: Option<i64>,
}

/// A number that is read again and again, and what it has changed by since it was read before.
#[derive(Default)]
pub struct Gauge {
    last: Option<(Instant, i128)>,
    pub a_second: Option<f64>,
}

impl Figures {
    pub fn new() -> Self {
        Self {
            lines: Gauge::default(),
            counters: C::LAYOUT.counters().iter().map(Counted::new).collect(),
            next: 0,
            lists: Table::new([]),
            lists_of: None,
            lists_due: now(),
            verified: HashMap::new(),
        }
    }

    /// Reads what has changed, as of one moment; counters only until the budget is spent.
    pub fn refresh(&mut self, conn: &Connection, at: Date, budget: Duration) -> Result<()> {
        let started = now();
        // Only as long as it must be: while it is open, the log of a writer cannot be emptied.
        let moment = conn.unchecked_transaction()?;
        // Changes whenever another connection has written.
        let version: i64 = moment.pragma_query_value(None, "data_version", |row| row.get(0))?;
        self.lines.set(position::lines(&moment)?);
        self.verified = verified::read(&moment)?;
        if self.lists_of != Some((at, version)) && now() >= self.lists_due {
            self.lists = lists::side_by_side(&mut SqliteStore::new(&moment, &C::LAYOUT), at, LIST_LINES)?;
            self.lists_of = Some((at, version));
            self.lists_due = now() + started.elapsed() * LISTS_REST;
        }
        let (first, many) = (self.next, self.counters.len());
        for place in (first..first + many).map(|place| place % many) {
            if started.elapsed() >= budget {
                self.next = place;
                break;
            }
            if let Some(counter) = self.counters.get_mut(place) {
                counter.count(&moment, version)?;
            }
        }
        Ok(())
    }
}

impl Counted {
    fn new(placed: &Placed) -> Self {
        // In two halves, since the sum of many totals may leave 64 bits.
        let text = format!(
            r#"SELECT count(*), coalesce(sum(total >> 32), 0), coalesce(sum(total & 4294967295), 0) FROM "{}" WHERE total <> 0"#,
            placed.table_name()
        );
        Self { name: placed.def().name(), text, keys: None, sum: Gauge::default(), of: None }
    }

    fn count(&mut self, moment: &Transaction<'_>, version: i64) -> Result<()> {
        if self.of == Some(version) {
            self.sum.stay();
            return Ok(());
        }
        let mut count = moment.prepare_cached(&self.text)?;
        let (keys, high, low) =
            count.query_row((), |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
        self.keys = Some(keys);
        self.sum.set((i128::from(high) << 32) + i128::from(low));
        self.of = Some(version);
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
            self.a_second = (seconds > 0.0).then(|| (value - known) as f64 / seconds);
        }
        self.last = Some((at, value));
    }

    /// Nobody has written.
    fn stay(&mut self) {
        if let Some(value) = self.value() {
            self.set(value);
        }
    }
}
