//! Votes that decay: one half-life by default, others by choice.

use std::fmt;
use std::marker::PhantomData;

use super::{Concert, Id, Vote};
use crate::batch::{Record, Tally};
use crate::counter::Counter;
use crate::decay::{Decayed, HalfLife};
use crate::key::Key;
use crate::leaderboard::Leaderboard;

/// The half-lives that a site's votes decay with.
///
/// [`Week`] is the default. Implement this trait for your own type to choose others. Each half-life
/// costs each vote one more total of its setlist, its show and its artist, and one more leaderboard
/// entry.
///
/// # Examples
///
/// ```
/// use keepcount::concert::{Concert, Setlist, Trend, Trends, Vote};
/// use keepcount::{Batch, HalfLife, Key, MemoryStore};
///
/// struct DayAndMonth;
///
/// impl<K: Key> Trends<K> for DayAndMonth {
///     const TRENDS: &'static [Trend<K>] = &[
///         Trend::DAY,
///         Trend::new(HalfLife::days(30), "setlist.trend_30d", "show.trend_30d", "artist.trend_30d", "show.trending_30d"),
///     ];
/// }
///
/// type C = Concert<String, DayAndMonth>;
///
/// let store = MemoryStore::new(&C::SCHEMA);
/// let mut batch = Batch::new();
/// batch.insert(&Setlist::new("se1", Some("sh1")));
/// batch.insert(&Vote::stored(Some("se1"), Some("ann"), true, 1_750_000_000).decaying::<DayAndMonth>());
/// store.apply(&mut batch)?;
/// for trend in C::TRENDS {
///     assert_eq!(store.range(trend.shows.all(), 10)?.len(), 1);
/// }
/// # Ok::<(), keepcount::Error>(())
/// ```
pub trait Trends<K: Key> {
    /// The half-lives, at most 16.
    const TRENDS: &'static [Trend<K>];
}

/// One half-life of 7 days: the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Week;

impl<K: Key> Trends<K> for Week {
    const TRENDS: &'static [Trend<K>] = &[Trend::WEEK];
}

/// Votes that decay with one half-life: their counters, and the leaderboard of shows by them.
#[non_exhaustive]
pub struct Trend<K> {
    /// The time after which a vote weighs half.
    pub half_life: HalfLife,
    /// Decayed votes on a setlist, by epoch.
    pub setlists: Counter<(K, i64)>,
    /// Decayed votes on the setlists of a show.
    pub shows: Counter<(K, i64)>,
    /// Decayed votes on the setlists of an artist's shows.
    pub artists: Counter<(K, i64)>,
    /// Shows by decayed votes.
    pub leaderboard: Leaderboard<K, Decayed>,
}

impl<K: Key> Trend<K> {
    /// A half-life of 6 hours.
    pub const HOURS_6: Self = Self::new(
        HalfLife::hours(6),
        "setlist.trend_6h",
        "show.trend_6h",
        "artist.trend_6h",
        "show.trending_6h",
    );
    /// A half-life of 1 day.
    pub const DAY: Self = Self::new(
        HalfLife::days(1),
        "setlist.trend_1d",
        "show.trend_1d",
        "artist.trend_1d",
        "show.trending_1d",
    );
    /// A half-life of 7 days.
    pub const WEEK: Self = Self::new(
        HalfLife::days(7),
        "setlist.trend_7d",
        "show.trend_7d",
        "artist.trend_7d",
        "show.trending_7d",
    );

    /// A half-life with the names of its counters of setlists, shows and artists, and of its
    /// leaderboard.
    ///
    /// # Panics
    ///
    /// When a name is not valid for a counter. In a `const`, where trends belong, that is a compile
    /// error.
    #[must_use]
    pub const fn new(
        half_life: HalfLife,
        setlists: &'static str,
        shows: &'static str,
        artists: &'static str,
        leaderboard: &'static str,
    ) -> Self {
        let setlists = Counter::new(setlists);
        let shows =
            Counter::<(K, i64)>::new(shows).sum_of_suffix(setlists, Concert::<K>::SETLIST_SHOW);
        let artists =
            Counter::<(K, i64)>::new(artists).sum_of_suffix(shows, Concert::<K>::SHOW_ARTIST);
        Self {
            half_life,
            setlists,
            shows,
            artists,
            leaderboard: Leaderboard::decayed(leaderboard, shows),
        }
    }
}

impl<K> fmt::Debug for Trend<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trend").field("half_life", &self.half_life).finish_non_exhaustive()
    }
}

impl<I: Id> Vote<I> {
    /// This vote with the half-lives of `T` instead of the default.
    ///
    /// All votes of a site must decay alike.
    #[must_use]
    pub const fn decaying<T: Trends<I::Key>>(self) -> Decaying<I, T> {
        Decaying { vote: self, trends: PhantomData }
    }
}

/// A [`Vote`] that decays with the half-lives of `T`, made by [`Vote::decaying`].
pub struct Decaying<I, T> {
    vote: Vote<I>,
    trends: PhantomData<fn() -> T>,
}

impl<I: fmt::Debug, T> fmt::Debug for Decaying<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Decaying").field(&self.vote).finish()
    }
}

impl<I: Id, T: Trends<I::Key>> Record for Decaying<I, T> {
    fn tally(&self, to: &mut Tally<'_>) {
        self.vote.tally_with(T::TRENDS, to);
    }
}

/// The counters without half-lives, and three for each of 16 half-lives.
const MAX: usize = 64;

/// A list that is built at compile time, with room for the longest one.
#[derive(Clone, Copy)]
pub(super) struct Listed<X> {
    all: [X; MAX],
    len: usize,
}

#[allow(clippy::indexing_slicing)] // const fn: no iterators
impl<X: Copy> Listed<X> {
    pub(super) const fn of(first: &[X]) -> Self {
        let mut list = Self { all: [first[0]; MAX], len: 0 };
        list.extend(first);
        list
    }

    pub(super) const fn push(&mut self, one: X) {
        assert!(self.len < MAX, "there are too many half-lives");
        self.all[self.len] = one;
        self.len += 1;
    }

    pub(super) const fn extend(&mut self, mut more: &[X]) {
        while let [one, rest @ ..] = more {
            self.push(*one);
            more = rest;
        }
    }

    pub(super) const fn as_slice(&self) -> &[X] {
        let all: &[X] = &self.all;
        all.split_at(self.len).0
    }
}
