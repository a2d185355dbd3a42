//! The three lists that `top`, `rank` and `watch` print: artists and trending from leaderboards,
//! shows by their formula at a day.

use clap::ValueEnum;
use keepcount::concert::{ShowStanding, Trend};
use keepcount::{CounterId, Date, Decayed, HalfLife, KeyBuf, Ranked, Store};

use crate::error::{Error, Result};
use crate::schema::C;
use crate::site::Leaderboards;
use crate::text::Table;

/// A list by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Every artist, by upcoming shows, followers and popularity
    Artists,
    /// Upcoming shows up to 29 days ahead, and overdue ones, by nearness, votes and setlists
    Shows,
    /// Shows by votes that halve with each half-life
    Trending,
}

/// A list that can be read.
pub enum List {
    Artists,
    Shows,
    Trending(&'static Trend<String>),
}

/// A line of a list.
pub struct Line {
    pub rank: u64,
    /// Escaped as `totals` prints it.
    pub id: String,
    pub score: String,
}

impl List {
    pub const HALF_LIFE: HalfLife = HalfLife::days(7);

    /// Returns the list. Only trending has a half-life, which must be one with which votes are
    /// counted.
    pub fn new(name: Name, half_life: Option<HalfLife>) -> Result<Self> {
        match (name, half_life) {
            (Name::Artists, None) => Ok(Self::Artists),
            (Name::Shows, None) => Ok(Self::Shows),
            (Name::Artists | Name::Shows, Some(_)) => Err(Error::said(
                "--half-life goes with trending only: artists and shows do not decay",
            )),
            (Name::Trending, half_life) => Self::trending(half_life.unwrap_or(Self::HALF_LIFE)),
        }
    }

    fn trending(half_life: HalfLife) -> Result<Self> {
        C::TRENDS.iter().find(|trend| trend.half_life == half_life).map(Self::Trending).ok_or_else(
            || {
                let known: Vec<String> =
                    C::TRENDS.iter().map(|trend| trend.half_life.to_string()).collect();
                let known = known.join(", ");
                Error::said(format!(
                    "no votes are counted with a half-life of {half_life}; there is {known}"
                ))
            },
        )
    }

    /// Returns the name of the things that are listed.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Artists => "artist",
            Self::Shows | Self::Trending(_) => "show",
        }
    }

    pub fn top(
        &self,
        store: &mut (impl Store + Leaderboards),
        at: Date,
        limit: usize,
    ) -> Result<Vec<Line>> {
        Ok(match self {
            Self::Artists => store.top(C::ARTISTS, limit)?.iter().map(artist).collect(),
            Self::Shows => C::top_shows(store, at, limit)?.iter().map(show).collect(),
            Self::Trending(of) => store
                .top(of.leaderboard, limit)?
                .iter()
                .map(|line| trending(line, of.half_life, at))
                .collect(),
        })
    }

    /// Returns the line of one id as `top` has it; `None` if it is not listed.
    pub fn rank(
        &self,
        store: &mut (impl Store + Leaderboards),
        at: Date,
        id: &str,
    ) -> Result<Option<Line>> {
        Ok(match self {
            Self::Artists => store.rank(C::ARTISTS, id)?.line().as_ref().map(artist),
            Self::Shows => C::rank_of_show(store, at, id)?.as_ref().map(show),
            Self::Trending(of) => {
                store.rank(of.leaderboard, id)?.line().map(|line| trending(&line, of.half_life, at))
            }
        })
    }
}

/// Returns the first lines of all three lists side by side.
pub fn side_by_side(
    store: &mut (impl Store + Leaderboards),
    at: Date,
    limit: usize,
) -> Result<Table> {
    let mut columns = Vec::new();
    for list in [List::Artists, List::Shows, List::trending(List::HALF_LIFE)?] {
        columns.push(list.top(store, at, limit)?.into_iter());
    }
    let trending = format!("trending {}", List::HALF_LIFE);
    let mut table = Table::new(["rank", "artist", "score", "show", "score", &trending, "score"]);
    for rank in 1..=limit {
        let lines: Vec<Option<Line>> = columns.iter_mut().map(Iterator::next).collect();
        if lines.iter().all(Option::is_none) {
            break;
        }
        let cells = lines
            .into_iter()
            .flat_map(|line| line.map_or_else(Default::default, |line| [line.id, line.score]));
        table.row([rank.to_string()].into_iter().chain(cells));
    }
    Ok(table)
}

fn artist(line: &Ranked<String, i64>) -> Line {
    Line {
        rank: line.rank,
        id: escaped(C::ARTIST_LISTED.id(), &line.key),
        score: line.score.to_string(),
    }
}

fn show(line: &ShowStanding<String>) -> Line {
    Line {
        rank: line.rank,
        id: escaped(C::SHOW_VOTES.id(), &line.show),
        score: line.score.to_string(),
    }
}

fn trending(line: &Ranked<String, Decayed>, half_life: HalfLife, at: Date) -> Line {
    let score = match line.score.at(half_life, at.last_second(), 1000) {
        Some(score) => thousandths(score),
        // The votes are from hundreds of half-lives after that day. Their ranking is exact, but the
        // score leaves the range of the number.
        None if line.score < Decayed::sum([]) => format!("<{}", thousandths(i128::MIN)),
        None => format!(">{}", thousandths(i128::MAX)),
    };
    Line { rank: line.rank, id: escaped(C::SHOW_VOTES.id(), &line.key), score }
}

fn escaped(counter: CounterId, id: &str) -> String {
    counter.show(&KeyBuf::of::<String>(id))
}

fn thousandths(score: i128) -> String {
    let sign = if score < 0 { "-" } else { "" };
    let size = score.unsigned_abs();
    format!("{sign}{}.{:03}", size / 1000, size % 1000)
}
