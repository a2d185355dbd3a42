//! The naive recount: loops over rows and totals in plain maps, without anything of keepcount.

use std::collections::{BTreeMap, BTreeSet};

use super::{Amount, Row};

/// A counter's name, and a key as text.
pub type Name = (&'static str, String);
pub type Totals = BTreeMap<Name, i128>;

/// The counters that rows feed.
const FED: [&str; 7] = [
    "all.stars",
    "setlist.days",
    "setlist.show",
    "setlist.stars",
    "show.artist",
    "show.tour",
    "song.days",
];

/// A rollup, what it sums, and along what; lower levels first.
const SUMS: [[&str; 3]; 5] = [
    ["show.stars", "setlist.stars", "setlist.show"],
    ["show.days", "setlist.days", "setlist.show"],
    ["artist.stars", "show.stars", "show.artist"],
    ["artist.days", "show.days", "show.artist"],
    ["tour.stars", "show.stars", "show.tour"],
];

/// All counters, each after what it sums.
pub fn names() -> impl Iterator<Item = &'static str> {
    FED.into_iter().chain(SUMS.into_iter().map(|[rollup, ..]| rollup))
}

/// What rows add to the counters that they feed, without what was pruned.
pub fn recount(rows: &[Row], cutoff: Option<i64>) -> Totals {
    let mut all = Totals::new();
    let mut add = |counter, key, amount: i64| {
        *all.entry((counter, key)).or_default() += i128::from(amount);
    };
    for row in rows {
        match row {
            Row::Vote { spam: true, .. } | Row::Setlist { show: None, .. } => {}
            Row::Vote { setlist, song, day, stars, .. } => {
                add("song.days", format!("{song},{day}"), 1);
                add("all.stars", "()".to_owned(), *stars);
                if let Some(setlist) = setlist {
                    add("setlist.stars", format!("{setlist}"), *stars);
                    if cutoff.is_none_or(|cutoff| *day >= cutoff) {
                        add("setlist.days", format!("{setlist},{day}"), *stars);
                    }
                }
            }
            Row::Setlist { id, show: Some(show) } => add("setlist.show", format!("{id},{show}"), 1),
            Row::Show { id, artist } => {
                add("show.tour", format!("{id}"), 1);
                if let Some(artist) = artist {
                    add("show.artist", format!("{id},{artist}"), 1);
                }
            }
        }
    }
    not_0(all)
}

/// What each counter should be: what the rows say, and for a rollup what the totals say that are
/// stored a level below.
pub fn expected(truth: &Totals, stored: &Totals) -> Totals {
    let mut all = truth.clone();
    for sum in SUMS {
        all.extend(summed(stored, sum));
    }
    all
}

/// All totals, where each is so far from what it should be.
pub fn standing(truth: &Totals, drift: &Totals) -> Totals {
    let of = |counter: &'static str| {
        let drift = drift.iter().filter(move |(name, _)| name.0 == counter);
        drift.map(|(name, off)| (name.clone(), *off))
    };
    let mut all = plus(truth.clone(), &FED.into_iter().flat_map(of).collect(), 1);
    for sum in SUMS {
        let rollup = plus(summed(&all, sum), &of(sum[0]).collect(), 1);
        all.extend(rollup);
    }
    all
}

/// A rollup: of each pair of a membership (child, parent) and a total (child, suffix), the product
/// at (parent, suffix).
fn summed(totals: &Totals, [rollup, base, membership]: [&'static str; 3]) -> Totals {
    let of = |counter: &'static str| {
        move |begin: &str| {
            let begin = begin.to_owned();
            let all = totals.range((counter, begin.clone())..);
            all.take_while(move |((name, key), _)| *name == counter && key.starts_with(&begin))
        }
    };
    let mut sums = Totals::new();
    for ((_, link), weight) in of(membership)("") {
        let (child, parent) = link.split_once(',').unwrap_or((link, "()"));
        for ((_, key), total) in of(base)(child) {
            let (owner, suffix) = key.split_at(key.find(',').unwrap_or(key.len()));
            if owner == child {
                *sums.entry((rollup, format!("{parent}{suffix}"))).or_default() += weight * total;
            }
        }
    }
    not_0(sums)
}

/// The sum of both, or their difference, without what is 0.
pub fn plus(mut one: Totals, other: &Totals, sign: i128) -> Totals {
    for (name, amount) in other {
        *one.entry(name.clone()).or_default() += sign * amount;
    }
    not_0(one)
}

pub fn not_0(mut totals: Totals) -> Totals {
    totals.retain(|_, total| *total != 0);
    totals
}

pub fn at(totals: &Totals, name: &Name) -> i128 {
    totals.get(name).copied().unwrap_or(0)
}

pub fn totals(amounts: &[Amount]) -> Totals {
    amounts.iter().map(|(counter, key, amount)| ((*counter, (*key).to_owned()), *amount)).collect()
}

/// Counters and all that they sum.
pub fn with_bases(counters: &[&'static str]) -> BTreeSet<&'static str> {
    let mut all: BTreeSet<&'static str> = counters.iter().copied().collect();
    for [rollup, base, membership] in SUMS.into_iter().rev() {
        if all.contains(rollup) {
            all.extend([base, membership]);
        }
    }
    all
}
