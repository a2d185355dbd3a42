//! The naive model: every total in one map. It computes rollups anew from their definition after
//! every batch, in 128 bits.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Unstructured};

/// A counter and one of its keys. Memberships and bases come before the rollups that sum them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Arbitrary)]
pub enum Cell {
    All,
    Word(Name),
    SetVotes(Id),
    SetDays(Id, Day),
    SetShow(Id, Name),
    SetSite(Id),
    ShowArtist(Name, Id),
    SiteVotes,
    ShowVotes(Name),
    ShowDays(Name, Day),
    ArtistVotes(Id),
    ArtistDays(Id, Day),
}

/// Few of each, so that a script uses the same keys again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(pub u8);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub i8);
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub &'static str);

const DAYS: std::ops::RangeInclusive<i8> = -2..=2;
/// One name needs an escape in its encoding, and one is too long for the inline form of a key.
const NAMES: [&str; 4] = ["", "\0", "a", "a name that is too long to live inline"];

impl<'a> Arbitrary<'a> for Id {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(input.int_in_range(0..=3)?))
    }
}

impl<'a> Arbitrary<'a> for Day {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(input.int_in_range(DAYS)?))
    }
}

impl<'a> Arbitrary<'a> for Name {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(input.choose(&NAMES)?))
    }
}

impl Name {
    pub fn of(text: &str) -> Self {
        Self(NAMES.iter().find(|name| **name == text).unwrap())
    }
}

impl Cell {
    pub const fn counter(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Word(_) => "words",
            Self::SetVotes(_) => "set.votes",
            Self::SetDays(..) => "set.days",
            Self::SetShow(..) => "set.show",
            Self::SetSite(_) => "set.site",
            Self::ShowArtist(..) => "show.artist",
            Self::SiteVotes => "site.votes",
            Self::ShowVotes(_) => "show.votes",
            Self::ShowDays(..) => "show.days",
            Self::ArtistVotes(_) => "artist.votes",
            Self::ArtistDays(..) => "artist.days",
        }
    }

    pub const fn is_rollup(&self) -> bool {
        matches!(
            self,
            Self::SiteVotes
                | Self::ShowVotes(_)
                | Self::ShowDays(..)
                | Self::ArtistVotes(_)
                | Self::ArtistDays(..)
        )
    }

    const fn day(&self) -> Option<Day> {
        match self {
            Self::SetDays(_, day) | Self::ShowDays(_, day) | Self::ArtistDays(_, day) => Some(*day),
            _ => None,
        }
    }

    /// For a membership: the cells that are summed along it, each with the cell of the sum.
    fn joins(&self) -> Vec<(Self, Self)> {
        let days = || DAYS.map(Day);
        match *self {
            Self::SetSite(set) => vec![(Self::SetVotes(set), Self::SiteVotes)],
            Self::SetShow(set, show) => {
                let by_day = days().map(|day| (Self::SetDays(set, day), Self::ShowDays(show, day)));
                by_day.chain([(Self::SetVotes(set), Self::ShowVotes(show))]).collect()
            }
            Self::ShowArtist(show, artist) => {
                let by_day =
                    days().map(|day| (Self::ShowDays(show, day), Self::ArtistDays(artist, day)));
                by_day.chain([(Self::ShowVotes(show), Self::ArtistVotes(artist))]).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The counters that each rollup depends on, itself included.
const DEPENDS_ON: [(&str, &[&str]); 5] = [
    ("site.votes", &["site.votes", "set.votes", "set.site"]),
    ("show.votes", &["show.votes", "set.votes", "set.show"]),
    ("show.days", &["show.days", "set.days", "set.show"]),
    ("artist.votes", &["artist.votes", "show.votes", "set.votes", "set.show", "show.artist"]),
    ("artist.days", &["artist.days", "show.days", "set.days", "set.show", "show.artist"]),
];

/// Whether a counter is `part`, or a rollup that depends on it.
pub fn depends_on(counter: &str, part: &str) -> bool {
    counter == part
        || DEPENDS_ON.iter().any(|(sum, parts)| *sum == counter && parts.contains(&part))
}

/// Totals that are not 0.
pub type Totals = BTreeMap<Cell, i64>;
type Sums = BTreeMap<Cell, i128>;

pub fn at(totals: &Totals, cell: &Cell) -> i64 {
    totals.get(cell).copied().unwrap_or(0)
}

/// The totals of rollups by the totals one level below as stored. None on overflow of 128 bits.
fn sums(totals: &Totals) -> Option<Sums> {
    let mut sums = Sums::new();
    for (membership, weight) in totals {
        for (base, sum) in membership.joins() {
            let part = i128::from(at(totals, &base)).checked_mul((*weight).into())?;
            let total = sums.entry(sum).or_insert(0);
            *total = total.checked_add(part)?;
        }
    }
    Some(sums)
}

/// The totals of these rows, level by level. None on overflow of 64 bits.
pub fn with_rollups(rows: Totals) -> Option<Totals> {
    let mut totals = rows;
    for _level in 1..=2 {
        for (cell, sum) in sums(&totals)? {
            put(&mut totals, cell, sum)?;
        }
    }
    Some(totals)
}

/// Sets a total. None if it overflows 64 bits.
fn put(totals: &mut Totals, cell: Cell, total: i128) -> Option<()> {
    match i64::try_from(total).ok()? {
        0 => totals.remove(&cell),
        total => totals.insert(cell, total),
    };
    Some(())
}

/// What one batch adds.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    /// Includes sums of 0: the batch still names their counters.
    pub deltas: BTreeMap<Cell, i128>,
    /// Whether the batch names a counter that is not the schema's.
    pub foreign: bool,
}

impl Pending {
    pub fn add(&mut self, cell: Cell, amount: i128) {
        *self.deltas.entry(cell).or_insert(0) += amount;
    }

    pub fn merge(&mut self, other: &Self) {
        other.deltas.iter().for_each(|(cell, delta)| self.add(*cell, *delta));
        self.foreign |= other.foreign;
    }
}

/// The expected result of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It names counters that are not the schema's, and perhaps a rollup too.
    Foreign {
        rollup: bool,
    },
    Rollup,
    Overflow,
    /// The totals afterwards. If `split`, an intermediate change of a rollup is so large that the
    /// store may refuse the batch, although the sum fits.
    Applied {
        totals: Totals,
        split: bool,
    },
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Includes rollups.
    pub totals: Totals,
    /// Totals of earlier days are not kept.
    pub cutoff: Option<Day>,
    /// The last event of each stream.
    pub offsets: BTreeMap<String, u64>,
    /// Counters that are not ready.
    pub unready: BTreeSet<&'static str>,
}

impl Model {
    pub fn offset(&self, stream: &str) -> u64 {
        self.offsets.get(stream).copied().unwrap_or(0)
    }

    /// The expected result of a batch. A rollup changes by the difference of its sums before and
    /// after the batch, so its drift stays.
    pub fn judge(&self, pending: &Pending) -> Verdict {
        let rollup = pending.deltas.keys().any(Cell::is_rollup);
        if pending.foreign {
            return Verdict::Foreign { rollup };
        }
        if rollup {
            return Verdict::Rollup;
        }
        let then = self.after(pending);
        let fits =
            |then: &Totals| self.changes(then).values().all(|delta| i64::try_from(*delta).is_ok());
        match then.filter(fits) {
            Some(totals) => Verdict::Applied { split: self.is_far(&totals), totals },
            None => Verdict::Overflow,
        }
    }

    fn after(&self, pending: &Pending) -> Option<Totals> {
        let mut then = self.totals.clone();
        for (cell, delta) in pending.deltas.iter().filter(|(cell, _)| self.keeps(cell)) {
            put(&mut then, *cell, delta.checked_add(at(&self.totals, cell).into())?)?;
        }
        let now = sums(&self.totals)?;
        for _level in 1..=2 {
            let afterwards = sums(&then)?;
            let cells: BTreeSet<Cell> = now.keys().chain(afterwards.keys()).copied().collect();
            for cell in cells {
                let sum = |sums: &Sums| sums.get(&cell).copied().unwrap_or(0);
                let by = sum(&afterwards).checked_sub(sum(&now))?;
                put(&mut then, cell, by.checked_add(at(&self.totals, &cell).into())?)?;
            }
        }
        Some(then)
    }

    /// The totals that rows drive.
    pub fn rows(&self) -> Totals {
        self.totals
            .iter()
            .filter(|(cell, _)| !cell.is_rollup())
            .map(|(cell, total)| (*cell, *total))
            .collect()
    }

    /// The number of rollups' totals that differ from their sums. None on overflow of 64 bits.
    pub fn wrong_sums(&self) -> Option<usize> {
        let mut sums = sums(&self.totals)?;
        for cell in self.totals.keys().filter(|cell| cell.is_rollup()) {
            sums.entry(*cell).or_insert(0);
        }
        let wrong =
            |(cell, sum): (&Cell, &i128)| Some(i64::try_from(*sum).ok()? != at(&self.totals, cell));
        sums.iter()
            .map(wrong)
            .collect::<Option<Vec<bool>>>()
            .map(|wrong| wrong.into_iter().filter(|is| *is).count())
    }

    /// Whether a cell is not before the cutoff.
    pub fn keeps(&self, cell: &Cell) -> bool {
        self.cutoff.is_none_or(|cutoff| cell.day().is_none_or(|day| day >= cutoff))
    }

    /// The change of each total.
    pub fn changes(&self, then: &Totals) -> BTreeMap<Cell, i128> {
        let cells: BTreeSet<Cell> = self.totals.keys().chain(then.keys()).copied().collect();
        let change =
            |cell| (cell, i128::from(at(then, &cell)) - i128::from(at(&self.totals, &cell)));
        cells.into_iter().map(change).filter(|(_, delta)| *delta != 0).collect()
    }

    /// Whether the change of one child's part in a sum exceeds 2^94.
    pub fn is_far(&self, then: &Totals) -> bool {
        let now_and_by = |cell: &Cell| {
            let now = i128::from(at(&self.totals, cell));
            (now, i128::from(at(then, cell)) - now)
        };
        let memberships: BTreeSet<&Cell> = self.totals.keys().chain(then.keys()).collect();
        memberships.into_iter().any(|membership| {
            let (membership_now, membership_by) = now_and_by(membership);
            membership.joins().iter().any(|(base, _)| {
                let (base_now, base_by) = now_and_by(base);
                let products = [
                    (membership_now, base_by),
                    (membership_by, base_now),
                    (membership_by, base_by),
                ];
                products.iter().any(|(one, two)| {
                    one.checked_mul(*two).is_none_or(|by| by.unsigned_abs() > 1 << 94)
                })
            })
        })
    }

    pub fn prune(&mut self, before: Day) -> usize {
        if self.cutoff.is_none_or(|cutoff| before > cutoff) {
            self.cutoff = Some(before);
        }
        let (cutoff, all) = (self.cutoff, self.totals.len());
        self.totals.retain(|cell, _| cell.day().is_none_or(|day| Some(day) >= cutoff));
        all - self.totals.len()
    }

    /// Drops a counter, and every rollup that depends on it. Both start from nothing.
    pub fn drop_counter(&mut self, counter: &'static str) {
        self.totals.retain(|cell, _| !depends_on(cell.counter(), counter));
        self.unready.extend(
            DEPENDS_ON
                .map(|(sum, _)| sum)
                .into_iter()
                .chain([counter])
                .filter(|sum| depends_on(sum, counter)),
        );
        if counter == "set.days" {
            self.cutoff = None;
        }
    }

    /// Whether a counter, and all that it depends on, is ready.
    pub fn is_ready(&self, counter: &str) -> bool {
        !self.unready.iter().any(|unready| depends_on(counter, unready))
    }
}
