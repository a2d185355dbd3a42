//! Votes -> setlists -> shows -> artists: rows in plain maps and in SQLite, their counters and
//! rollups, and a recount by nested loops that is independent of the crate.

pub mod cases;
pub mod shapes;
pub mod subjects;

use std::collections::BTreeMap;

pub use super::random::Random;
use keepcount::backend::KeyRange;
use keepcount::reconcile::CounterReport;
use keepcount::{Batch, Counter, CounterId, Key, KeyBuf, Record, Schema, Store, Tally};

pub const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
pub const SETLIST_DAYS: Counter<(i64, i8)> = Counter::new("setlist.days");
pub const SETLIST_SHOW: Counter<(i64, String)> = Counter::new("setlist.show");
/// A show can be billed to several artists, with shares other than 1.
pub const SHOW_ARTIST: Counter<(String, i16)> = Counter::new("show.artist");
pub const SHOW_VOTES: Counter<String> =
    Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
pub const SHOW_DAYS: Counter<(String, i8)> =
    Counter::new("show.days").sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
pub const ARTIST_VOTES: Counter<i16> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);
pub const ARTIST_DAYS: Counter<(i16, i8)> =
    Counter::new("artist.days").sum_of_suffix(SHOW_DAYS, SHOW_ARTIST);
/// The order is neither that of names nor that of levels.
pub const SCHEMA: Schema = Schema::new(&[
    SETLIST_SHOW.table(),
    SETLIST_VOTES.table(),
    SHOW_VOTES.table(),
    SETLIST_DAYS.table(),
    SHOW_DAYS.table(),
    SHOW_ARTIST.table(),
    ARTIST_DAYS.table(),
    ARTIST_VOTES.table(),
]);
/// Each rollup with its base and its membership. A base comes before its rollups.
const SUMS: [(&str, &str, &str); 4] = [
    ("show.votes", "setlist.votes", "setlist.show"),
    ("show.days", "setlist.days", "setlist.show"),
    ("artist.votes", "show.votes", "show.artist"),
    ("artist.days", "show.days", "show.artist"),
];

#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    Vote { setlist: Option<i64>, weight: i64, day: Option<i8> },
    Setlist { id: i64, show: Option<String> },
    Billing { show: String, artist: Option<i16>, share: i64 },
}

impl Record for Row {
    fn tally(&self, to: &mut Tally<'_>) {
        match self {
            Self::Vote { setlist: Some(setlist), weight, day } => {
                to.add(SETLIST_VOTES, setlist, *weight);
                if let Some(day) = day {
                    to.add(SETLIST_DAYS, (setlist, *day), *weight);
                }
            }
            Self::Setlist { id, show: Some(show) } => to.add(SETLIST_SHOW, (id, show), 1),
            Self::Billing { show, artist: Some(artist), share } => {
                to.add(SHOW_ARTIST, (show, *artist), *share);
            }
            _ => {}
        }
    }
}

#[derive(Debug, Clone)]
pub enum Change {
    Put(i64, Row),
    DropVote(i64),
    /// With its votes.
    DropSetlist(i64),
    DropBilling(i64),
    /// With its billings, its setlists, and their votes.
    DropShow(String),
    /// With its billings, and the shows that they name.
    DropArtist(i16),
    MoveVotes(i64, Option<i64>),
    MoveSetlists(String, Option<String>),
    MoveBillings(i16, Option<i16>),
}

/// A part of a key without the crate's types, in the order in which the crate must sort it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Int(i64),
    Text(String),
}

/// A counter's name and one of its keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub &'static str, pub Vec<Part>);

fn int(value: impl Into<i64>) -> Part {
    Part::Int(value.into())
}

impl Name {
    pub fn of(counter: &'static str, key: &KeyBuf) -> Self {
        fn decoded<K: Key>(key: &KeyBuf) -> K {
            key.decode().unwrap()
        }
        let parts = match counter {
            "setlist.votes" => vec![int(decoded::<i64>(key))],
            "artist.votes" => vec![int(decoded::<i16>(key))],
            "show.votes" => vec![Part::Text(decoded(key))],
            "setlist.days" => {
                let (setlist, day) = decoded::<(i64, i8)>(key);
                vec![int(setlist), int(day)]
            }
            "artist.days" => {
                let (artist, day) = decoded::<(i16, i8)>(key);
                vec![int(artist), int(day)]
            }
            "show.days" => {
                let (show, day) = decoded::<(String, i8)>(key);
                vec![Part::Text(show), int(day)]
            }
            "setlist.show" => {
                let (setlist, show) = decoded::<(i64, String)>(key);
                vec![int(setlist), Part::Text(show)]
            }
            _ => {
                let (show, artist) = decoded::<(String, i16)>(key);
                vec![Part::Text(show), int(artist)]
            }
        };
        Self(counter, parts)
    }

    /// The key as the crate encodes it, to plant totals.
    pub fn key(&self) -> KeyBuf {
        fn small<T: TryFrom<i64>>(value: i64) -> T {
            T::try_from(value).ok().unwrap()
        }
        match (self.0, self.1.as_slice()) {
            ("artist.votes", [Part::Int(artist)]) => KeyBuf::of::<i16>(small::<i16>(*artist)),
            ("artist.days", [Part::Int(one), Part::Int(two)]) => {
                KeyBuf::of::<(i16, i8)>((small::<i16>(*one), small::<i8>(*two)))
            }
            (_, [Part::Int(setlist)]) => KeyBuf::of::<i64>(*setlist),
            (_, [Part::Text(show)]) => KeyBuf::of::<String>(show),
            (_, [Part::Int(one), Part::Int(two)]) => {
                KeyBuf::of::<(i64, i8)>((*one, small::<i8>(*two)))
            }
            (_, [Part::Int(one), Part::Text(two)]) => KeyBuf::of::<(i64, String)>((*one, two)),
            ("show.days", [Part::Text(one), Part::Int(two)]) => {
                KeyBuf::of::<(String, i8)>((one, small::<i8>(*two)))
            }
            (_, [Part::Text(one), Part::Int(two)]) => {
                KeyBuf::of::<(String, i16)>((one, small::<i16>(*two)))
            }
            _ => panic!("not a key of this schema: {self:?}"),
        }
    }
}

/// Totals that are not 0.
pub type Totals = BTreeMap<Name, i64>;

pub fn at(totals: &Totals, name: &Name) -> i64 {
    totals.get(name).copied().unwrap_or(0)
}

fn add(totals: &mut Totals, counter: &'static str, parts: &[Part], amount: i64) {
    *totals.entry(Name(counter, parts.to_vec())).or_insert(0) += amount;
}

/// The rows alone, without counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    pub votes: BTreeMap<i64, Row>,
    pub setlists: BTreeMap<i64, Row>,
    pub billings: BTreeMap<i64, Row>,
}

impl Rows {
    fn table(&mut self, row: &Row) -> &mut BTreeMap<i64, Row> {
        match row {
            Row::Vote { .. } => &mut self.votes,
            Row::Setlist { .. } => &mut self.setlists,
            Row::Billing { .. } => &mut self.billings,
        }
    }

    /// Makes a change. Returns the old rows and the new ones.
    pub fn change(&mut self, change: &Change) -> (Vec<Row>, Vec<Row>) {
        let take = |table: &mut BTreeMap<i64, Row>, is: &dyn Fn(&Row) -> bool| -> Vec<Row> {
            let taken = table.values().filter(|row| is(row)).cloned().collect();
            table.retain(|_, row| !is(row));
            taken
        };
        let moves = |table: &mut BTreeMap<i64, Row>, new: &dyn Fn(&Row) -> Option<Row>| {
            let (mut old, mut came) = (Vec::new(), Vec::new());
            for row in table.values_mut() {
                if let Some(new) = new(row) {
                    came.push(new.clone());
                    old.push(std::mem::replace(row, new));
                }
            }
            (old, came)
        };
        match change.clone() {
            Change::Put(id, row) => {
                (self.table(&row).insert(id, row.clone()).into_iter().collect(), vec![row])
            }
            Change::DropVote(id) => (self.votes.remove(&id).into_iter().collect(), Vec::new()),
            Change::DropBilling(id) => {
                (self.billings.remove(&id).into_iter().collect(), Vec::new())
            }
            Change::DropSetlist(gone) => {
                let mut old = take(
                    &mut self.votes,
                    &|row| matches!(row, Row::Vote { setlist, .. } if *setlist == Some(gone)),
                );
                old.extend(self.setlists.remove(&gone));
                (old, Vec::new())
            }
            Change::DropShow(gone) => {
                let mut old = take(
                    &mut self.billings,
                    &|row| matches!(row, Row::Billing { show, .. } if *show == gone),
                );
                let ids: Vec<i64> = self
                    .setlists
                    .iter()
                    .filter(|(_, row)| matches!(row, Row::Setlist { show, .. } if show.as_ref() == Some(&gone)))
                    .map(|(id, _)| *id)
                    .collect();
                for id in ids {
                    old.extend(self.change(&Change::DropSetlist(id)).0);
                }
                (old, Vec::new())
            }
            Change::DropArtist(gone) => {
                let shows = self.billings.values().filter_map(|row| match row {
                    Row::Billing { show, artist, .. } if *artist == Some(gone) => {
                        Some(show.clone())
                    }
                    _ => None,
                });
                let shows: Vec<String> = shows.collect();
                (
                    shows
                        .into_iter()
                        .flat_map(|show| self.change(&Change::DropShow(show)).0)
                        .collect(),
                    Vec::new(),
                )
            }
            Change::MoveVotes(from, to) => moves(&mut self.votes, &|row| match row {
                Row::Vote { setlist, weight, day } if *setlist == Some(from) => {
                    Some(Row::Vote { setlist: to, weight: *weight, day: *day })
                }
                _ => None,
            }),
            Change::MoveSetlists(from, to) => moves(&mut self.setlists, &|row| match row {
                Row::Setlist { id, show } if show.as_ref() == Some(&from) => {
                    Some(Row::Setlist { id: *id, show: to.clone() })
                }
                _ => None,
            }),
            Change::MoveBillings(from, to) => moves(&mut self.billings, &|row| match row {
                Row::Billing { show, artist, share } if *artist == Some(from) => {
                    Some(Row::Billing { show: show.clone(), artist: to, share: *share })
                }
                _ => None,
            }),
        }
    }

    /// The totals of every counter and rollup, from the rows alone.
    pub fn recount(&self) -> Totals {
        let mut totals = Totals::new();
        for row in self.votes.values() {
            let Row::Vote { setlist: Some(of), weight, day } = row else { continue };
            let suffix: Vec<Part> = day.iter().map(|day| int(*day)).collect();
            add(&mut totals, "setlist.votes", &[int(*of)], *weight);
            if day.is_some() {
                add(
                    &mut totals,
                    "setlist.days",
                    &[&[int(*of)], suffix.as_slice()].concat(),
                    *weight,
                );
            }
            for row in self.setlists.values() {
                let Row::Setlist { id, show: Some(in_show) } = row else { continue };
                if id != of {
                    continue;
                }
                let show = [Part::Text(in_show.clone())];
                add(&mut totals, "show.votes", &show, *weight);
                if day.is_some() {
                    add(&mut totals, "show.days", &[&show, suffix.as_slice()].concat(), *weight);
                }
                for row in self.billings.values() {
                    let Row::Billing { show, artist: Some(artist), share } = row else { continue };
                    if show == in_show {
                        add(&mut totals, "artist.votes", &[int(*artist)], weight * share);
                        if day.is_some() {
                            add(
                                &mut totals,
                                "artist.days",
                                &[&[int(*artist)], suffix.as_slice()].concat(),
                                weight * share,
                            );
                        }
                    }
                }
            }
        }
        for row in self.setlists.values() {
            if let Row::Setlist { id, show: Some(show) } = row {
                add(&mut totals, "setlist.show", &[int(*id), Part::Text(show.clone())], 1);
            }
        }
        for row in self.billings.values() {
            if let Row::Billing { show, artist: Some(artist), share } = row {
                add(&mut totals, "show.artist", &[Part::Text(show.clone()), int(*artist)], *share);
            }
        }
        totals.retain(|_, total| *total != 0);
        totals
    }
}

/// The expected state: the rows, and the totals that hooks and planted drift leave.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub rows: Rows,
    pub stored: Totals,
}

impl Model {
    /// The true totals of a counter, by its rows. Those of a rollup are the sum over stored
    /// memberships of membership times stored base total.
    pub fn recounted(&self, counter: &str) -> Totals {
        let Some((rollup, base, membership)) = SUMS.iter().find(|(rollup, ..)| *rollup == counter)
        else {
            let mut expected = self.rows.recount();
            expected.retain(|name, _| name.0 == counter);
            return expected;
        };
        let mut expected = Totals::new();
        for (joins, weight) in self.stored.iter().filter(|(name, _)| name.0 == *membership) {
            for (fine, total) in
                self.stored.iter().filter(|(name, _)| name.0 == *base && name.1[0] == joins.1[0])
            {
                add(&mut expected, rollup, &[&joins.1[1..], &fine.1[1..]].concat(), weight * total);
            }
        }
        expected.retain(|_, total| *total != 0);
        expected
    }

    /// Changes totals, and the rollups that sum them.
    pub fn shift(&mut self, changes: &Totals) {
        let before = SUMS.map(|(rollup, ..)| self.recounted(rollup));
        let move_by = |stored: &mut Totals, name: &Name, amount: i64| {
            *stored.entry(name.clone()).or_insert(0) += amount;
            stored.retain(|_, total| *total != 0);
        };
        for (name, amount) in changes {
            move_by(&mut self.stored, name, *amount);
        }
        for ((rollup, ..), before) in SUMS.iter().zip(before) {
            for (name, moved) in difference(&self.recounted(rollup), &before) {
                move_by(&mut self.stored, &name, moved);
            }
        }
    }

    /// A hooked write changes totals as much as it changes what the rows say.
    pub fn hooked(&mut self, rows: Rows) {
        let mut moved = difference(&rows.recount(), &self.rows.recount());
        moved.retain(|name, _| SUMS.iter().all(|(rollup, ..)| *rollup != name.0));
        self.rows = rows;
        self.shift(&moved);
    }

    pub fn set_total(&mut self, name: &Name, total: Option<i64>) {
        match total {
            None | Some(0) => drop(self.stored.remove(name)),
            Some(total) => drop(self.stored.insert(name.clone(), total)),
        }
    }

    /// Stored minus true, of every key where that is not 0.
    pub fn drift(&self) -> Totals {
        let mut expected = Totals::new();
        for spec in SCHEMA.counters() {
            expected.extend(self.recounted(spec.id().name()));
        }
        difference(&self.stored, &expected)
    }

    /// What a verify of a counter must find now.
    pub fn expected(&self, counter: &'static str, samples: usize) -> Found {
        let true_totals = self.recounted(counter);
        let mut found = Found { counter, ..Found::default() };
        let mut names: Vec<&Name> =
            self.stored.keys().filter(|name| name.0 == counter).chain(true_totals.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let (stored, true_totals) = (at(&self.stored, name), at(&true_totals, name));
            found.keys += 1;
            match (stored, true_totals) {
                (stored, true_totals) if stored == true_totals => continue,
                (0, _) => found.missing += 1,
                (_, 0) => found.orphan += 1,
                _ => found.wrong += 1,
            }
            if found.samples.len() < samples {
                found.samples.push((name.clone(), stored, true_totals));
            }
        }
        found
    }

    /// Repairs one counter, which updates its rollups.
    pub fn repair(&mut self, counter: &str) {
        let mut drift = self.drift();
        drift.retain(|name, _| name.0 == counter);
        for drift in drift.values_mut() {
            *drift = -*drift;
        }
        self.shift(&drift);
    }
}

pub fn difference(one: &Totals, two: &Totals) -> Totals {
    let mut all = one.clone();
    for (name, total) in two {
        *all.entry(name.clone()).or_insert(0) -= total;
    }
    all.retain(|_, total| *total != 0);
    all
}

/// A counter's part of a report, with the model's names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub counter: &'static str,
    pub keys: u64,
    pub wrong: u64,
    pub missing: u64,
    pub orphan: u64,
    pub samples: Vec<(Name, i64, i64)>,
}

impl Found {
    pub fn of(report: &CounterReport) -> Self {
        let counter = report.counter.name();
        let CounterReport { keys, wrong, missing, orphan, ref samples, .. } = *report;
        let samples = samples
            .iter()
            .map(|sample| (Name::of(counter, &sample.key), sample.stored, sample.expected))
            .collect();
        Self { counter, keys, wrong, missing, orphan, samples }
    }
}

/// Every total that is not 0, of every counter and rollup.
pub fn totals_of(mut store: impl Store) -> Totals {
    let mut totals = Totals::new();
    for spec in SCHEMA.counters() {
        let id = spec.id();
        let mut range = KeyRange::ALL;
        loop {
            let page = store.read_range(id, &range, 3).unwrap();
            let Some((last, _)) = page.last() else { break };
            range = range.behind(last);
            totals.extend(page.iter().map(|(key, total)| (Name::of(id.name(), key), *total)));
        }
    }
    totals.retain(|_, total| *total != 0);
    totals
}

pub fn add_by_name(batch: &mut Batch, Name(counter, parts): &Name, amount: i64) {
    match (*counter, parts.as_slice()) {
        ("setlist.votes", [Part::Int(id)]) => batch.add(SETLIST_VOTES, id, amount),
        ("setlist.days", [Part::Int(id), Part::Int(day)]) => {
            batch.add(SETLIST_DAYS, (id, i8::try_from(*day).unwrap()), amount);
        }
        ("setlist.show", [Part::Int(id), Part::Text(show)]) => {
            batch.add(SETLIST_SHOW, (id, show), amount);
        }
        (_, [Part::Text(show), Part::Int(by)]) => {
            batch.add(SHOW_ARTIST, (show, i16::try_from(*by).unwrap()), amount);
        }
        _ => panic!("{counter}"),
    }
}

pub fn batch_of(names: &[(Name, i64)]) -> Batch {
    let mut batch = Batch::new();
    for (name, amount) in names {
        add_by_name(&mut batch, name, *amount);
    }
    batch
}

pub fn votes(setlist: i64) -> Name {
    Name("setlist.votes", vec![Part::Int(setlist)])
}

pub fn membership(setlist: i64, show: &str) -> Name {
    Name("setlist.show", vec![Part::Int(setlist), Part::Text(show.to_owned())])
}

pub fn billing(show: &str, artist: i64) -> Name {
    Name("show.artist", vec![Part::Text(show.to_owned()), Part::Int(artist)])
}
