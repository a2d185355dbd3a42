//! Artists, shows, setlists and votes: the rows, the counters that they drive, and a second
//! definition of the correct totals without the hooks.

use std::collections::BTreeMap;

use keepcount::{Counter, CounterId, KeyBuf, Record, Schema, Tally};

/// The stars of votes that are not spam. Two levels of rollups sum it.
pub const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
/// The number of votes by day that are not spam. Prunable.
pub const SETLIST_DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
pub const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
pub const SHOW_ARTIST: Counter<(i64, i64)> = Counter::new("show.artist");
/// An amount of money.
pub const USER_SPENT: Counter<i64> = Counter::new("user.spent");
/// A single key, which every vote writes.
pub const ALL_VOTES: Counter<()> = Counter::new("all.votes");
/// Counts a setlist only if it is listed.
pub const SHOW_SETLISTS: Counter<i64> = Counter::new("show.setlists");
pub const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
pub const SHOW_DAYS: Counter<(i64, i64)> =
    Counter::new("show.days").sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
pub const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);

pub const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_ARTIST.table(),
    USER_SPENT.table(),
    ALL_VOTES.table(),
    SHOW_SETLISTS.table(),
    SHOW_VOTES.table(),
    SHOW_DAYS.table().prunable(),
    ARTIST_VOTES.table(),
]);

/// Positions in [`SCHEMA`].
pub mod at {
    pub const SETLIST_VOTES: usize = 0;
    pub const SETLIST_DAYS: usize = 1;
    pub const SETLIST_SHOW: usize = 2;
    pub const SHOW_ARTIST: usize = 3;
    pub const USER_SPENT: usize = 4;
    pub const ALL_VOTES: usize = 5;
    pub const SHOW_SETLISTS: usize = 6;
    pub const SHOW_VOTES: usize = 7;
    pub const SHOW_DAYS: usize = 8;
    pub const ARTIST_VOTES: usize = 9;
    /// The number of counters that are not rollups. They come first.
    pub const BASE: usize = 7;
}

/// Upper bounds of the ids, exclusive.
pub const ARTISTS: u64 = 3;
pub const SHOWS: u64 = 5;
pub const SETLISTS: u64 = 7;
pub const USERS: u64 = 4;
pub const DAYS: u64 = 6;

/// A counter, by its position in [`SCHEMA`], and one of its keys.
pub type Name = (usize, KeyBuf);
/// Amounts by name, without those of 0.
pub type Totals = BTreeMap<Name, i64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    Vote { setlist: i64, user: i64, day: i64, stars: i64, spam: bool },
    Setlist { id: i64, show: i64, listed: bool },
    Show { id: i64, artist: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowId {
    Show(i64),
    Setlist(i64),
    Vote(i64),
}

pub type Tables = BTreeMap<RowId, Row>;

/// The counters that rows add to.
pub const DRIVEN: [CounterId; 7] = [
    SETLIST_VOTES.id(),
    SETLIST_DAYS.id(),
    SETLIST_SHOW.id(),
    SHOW_ARTIST.id(),
    USER_SPENT.id(),
    ALL_VOTES.id(),
    SHOW_SETLISTS.id(),
];

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match *self {
            Self::Vote { setlist, user, day, stars, spam } => {
                to.add(USER_SPENT, user, stars * 100);
                if !spam {
                    to.add(SETLIST_VOTES, setlist, stars);
                    to.add(SETLIST_DAYS, (setlist, day), 1);
                    to.add(ALL_VOTES, (), 1);
                }
            }
            Self::Setlist { id, show, listed } => {
                to.add(SETLIST_SHOW, (id, show), 1);
                if listed {
                    to.add(SHOW_SETLISTS, show, 1);
                }
            }
            Self::Show { id, artist } => to.add(SHOW_ARTIST, (id, artist), 1),
        }
    }
}

pub fn one(key: i64) -> KeyBuf {
    KeyBuf::of::<i64>(key)
}

pub fn two(prefix: i64, suffix: i64) -> KeyBuf {
    KeyBuf::of::<(i64, i64)>((prefix, suffix))
}

/// What a row adds to one counter, and at which key. A second definition of [`Record::tally`].
pub fn share(row: &Row, counter: usize) -> Option<(KeyBuf, i64)> {
    match (*row, counter) {
        (Row::Vote { user, stars, .. }, at::USER_SPENT) => Some((one(user), 100 * stars)),
        (Row::Vote { spam: true, .. }, _) => None,
        (Row::Vote { setlist, stars, .. }, at::SETLIST_VOTES) => Some((one(setlist), stars)),
        (Row::Vote { setlist, day, .. }, at::SETLIST_DAYS) => Some((two(setlist, day), 1)),
        (Row::Vote { .. }, at::ALL_VOTES) => Some((KeyBuf::new(), 1)),
        (Row::Setlist { id, show, .. }, at::SETLIST_SHOW) => Some((two(id, show), 1)),
        (Row::Setlist { show, listed: true, .. }, at::SHOW_SETLISTS) => Some((one(show), 1)),
        (Row::Show { id, artist }, at::SHOW_ARTIST) => Some((two(id, artist), 1)),
        _ => None,
    }
}

/// Adds an amount. A sum of 0 is removed.
pub fn add(totals: &mut Totals, name: &Name, amount: i64) {
    let sum = totals.get(name).copied().unwrap_or(0) + amount;
    if sum == 0 {
        totals.remove(name);
    } else {
        totals.insert(name.clone(), sum);
    }
}

pub fn add_all(totals: &mut Totals, more: &Totals, sign: i64) {
    for (name, amount) in more {
        add(totals, name, sign * amount);
    }
}

/// Adds what a row adds, or subtracts it if `sign` is -1.
pub fn add_row(totals: &mut Totals, row: Option<&Row>, sign: i64) {
    if let Some(row) = row {
        for counter in 0..at::BASE {
            if let Some((key, amount)) = share(row, counter) {
                add(totals, &(counter, key), sign * amount);
            }
        }
    }
}

/// Every total from the rows alone, rollups by nested loops. Pruned keys are included.
pub fn recount(tables: &Tables) -> Totals {
    let mut totals = Totals::new();
    for row in tables.values() {
        add_row(&mut totals, Some(row), 1);
    }
    for vote in tables.values() {
        let Row::Vote { setlist: of, day, stars, spam: false, .. } = *vote else { continue };
        for setlist in tables.values() {
            let Row::Setlist { id, show: of_show, .. } = *setlist else { continue };
            if id != of {
                continue;
            }
            add(&mut totals, &(at::SHOW_VOTES, one(of_show)), stars);
            add(&mut totals, &(at::SHOW_DAYS, two(of_show, day)), 1);
            for show in tables.values() {
                if let Row::Show { id, artist } = *show
                    && id == of_show
                {
                    add(&mut totals, &(at::ARTIST_VOTES, one(artist)), stars);
                }
            }
        }
    }
    totals
}

/// The totals of rollups by the stored totals of the level below.
pub fn sums_of(stored: &Totals) -> Totals {
    let mut sums = Totals::new();
    let rollups = [
        (at::SHOW_VOTES, at::SETLIST_VOTES, at::SETLIST_SHOW),
        (at::SHOW_DAYS, at::SETLIST_DAYS, at::SETLIST_SHOW),
        (at::ARTIST_VOTES, at::SHOW_VOTES, at::SHOW_ARTIST),
    ];
    for (rollup, base, membership) in rollups {
        for ((_, key), weight) in of_counter(stored, membership) {
            let (child, parent) = key.decode::<(i64, i64)>().unwrap();
            if rollup == at::SHOW_DAYS {
                for ((_, key), total) in stored.range((base, one(child))..(base, one(child + 1))) {
                    let (_, day) = key.decode::<(i64, i64)>().unwrap();
                    add(&mut sums, &(rollup, two(parent, day)), weight * total);
                }
            } else if let Some(total) = stored.get(&(base, one(child))) {
                add(&mut sums, &(rollup, one(parent)), weight * total);
            }
        }
    }
    sums
}

/// The totals of one counter.
pub fn of_counter(totals: &Totals, counter: usize) -> impl Iterator<Item = (&Name, &i64)> {
    totals.range((counter, KeyBuf::new())..(counter + 1, KeyBuf::new()))
}

/// Whether a name is before the cutoff of days.
pub fn is_pruned(name: &Name, cutoff: i64) -> bool {
    matches!(name.0, at::SETLIST_DAYS | at::SHOW_DAYS)
        && name.1.decode::<(i64, i64)>().unwrap().1 < cutoff
}

pub fn id(counter: usize) -> CounterId {
    SCHEMA.counters()[counter].id()
}

/// For traces: `setlist.votes[3]`.
pub fn show(name: &Name) -> String {
    format!("{}[{}]", id(name.0).name(), id(name.0).show(&name.1))
}

/// For traces: every name with its amount.
pub fn show_all(totals: &Totals) -> String {
    let shown: Vec<String> =
        totals.iter().map(|(name, amount)| format!("{}{amount:+}", show(name))).collect();
    shown.join(" ")
}
