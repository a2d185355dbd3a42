//! Ready-made counters for concert sites: artists, shows, setlists and votes.
//!
//! Nothing here is special: an application in any other domain declares its own counters the same
//! way.

mod trends;
mod upcoming_shows;

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use self::trends::Listed;
pub use self::trends::{Decaying, Trend, Trends, Week};
pub use self::upcoming_shows::{ShowScore, ShowStanding};
use crate::batch::{Record, Tally};
use crate::counter::{Counter, CounterSpec};
use crate::date::Date;
use crate::error::Result;
use crate::key::{AsKey, Key};
use crate::leaderboard::{Leaderboard, LeaderboardId};
use crate::schema::Schema;
use crate::store::Store;

/// An id type in the form in which a row lends it: integers, 16-byte ids and UUIDs by value, text
/// as `&str`.
pub trait Id: AsKey<Self::Key> {
    /// The key type of the counters.
    type Key: Key;
}

macro_rules! ids {
    ($($id:ty),*) => {$(
        impl Id for $id {
            type Key = $id;
        }
    )*};
}

ids!(i32, i64, u32, u64, [u8; 16]);

#[cfg(feature = "uuid")]
ids!(uuid::Uuid);

impl Id for &str {
    type Key = String;
}

/// The counters and leaderboards over keys of type `K`, and their schema.
///
/// Votes decay with one half-life of 7 days ([`Week`]) unless you pass your own [`Trends`] as `T`.
///
/// # Examples
///
/// ```
/// use keepcount::concert::{Concert, Setlist, Vote};
/// use keepcount::{Batch, MemoryStore};
///
/// type C = Concert<String>;
///
/// let store = MemoryStore::new(&C::SCHEMA);
/// let mut batch = Batch::new();
/// let now = 1_750_000_000; // seconds since 1970
/// batch.insert(&Setlist::new("se1", Some("sh1")));
/// batch.insert(&Vote::new(Some("se1"), Some("ann"), true, now - 60, now)?);
/// batch.insert(&Vote::new(Some("se1"), Some("bob"), false, now - 30, now)?);
/// store.apply(&mut batch)?;
/// assert_eq!(store.total(C::SETLIST_SCORE, "se1")?, 0);
/// assert_eq!(store.total(C::SHOW_VOTES, "sh1")?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Concert<K, T = Week>(PhantomData<fn() -> (K, T)>);

impl<K, T> fmt::Debug for Concert<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Concert")
    }
}

impl<K: Key, T: Trends<K>> Concert<K, T> {
    /// Votes on a setlist, up and down.
    pub const SETLIST_VOTES: Counter<K> = Counter::new("setlist.votes");
    /// Upvotes on a setlist.
    pub const SETLIST_UPVOTES: Counter<K> = Counter::new("setlist.upvotes");
    /// Upvotes minus downvotes on a setlist.
    pub const SETLIST_SCORE: Counter<K> = Counter::new("setlist.score");
    /// Setlists of a show.
    pub const SHOW_SETLISTS: Counter<K> = Counter::new("show.setlists");
    /// Shows of an artist.
    pub const ARTIST_SHOWS: Counter<K> = Counter::new("artist.shows");
    /// Shows of an artist whose status is [`Status::Upcoming`].
    pub const ARTIST_UPCOMING_SHOWS: Counter<K> = Counter::new("artist.upcoming_shows");
    /// Votes of a user.
    pub const USER_VOTES: Counter<K> = Counter::new("user.votes");

    /// Membership: the show of a setlist.
    pub const SETLIST_SHOW: Counter<(K, K)> = Counter::new("setlist.show");
    /// Membership: the artist of a show.
    pub const SHOW_ARTIST: Counter<(K, K)> = Counter::new("show.artist");
    /// Votes on the setlists of a show.
    pub const SHOW_VOTES: Counter<K> =
        Counter::new("show.votes").sum_of(Self::SETLIST_VOTES, Self::SETLIST_SHOW);
    /// Votes on the setlists of an artist's shows.
    pub const ARTIST_VOTES: Counter<K> =
        Counter::new("artist.votes").sum_of(Self::SHOW_VOTES, Self::SHOW_ARTIST);

    /// Shows of an artist by date, whatever their status.
    ///
    /// Summed from today on, they are [`shows_ahead`](Self::shows_ahead).
    pub const ARTIST_SHOWS_AHEAD: Counter<(K, Date)> = Counter::new("artist.shows_ahead");
    /// Shows whose status is [`Status::Upcoming`], by date: the candidates of
    /// [`top_shows`](Self::top_shows).
    pub const SHOW_UPCOMING: Counter<(Date, K)> = Counter::new("show.upcoming");
    /// 1 for every artist.
    pub const ARTIST_LISTED: Counter<K> = Counter::new("artist.listed");
    /// The points that an artist gets on the leaderboard for followers and popularity.
    pub const ARTIST_FAME: Counter<K> = Counter::new("artist.fame");

    /// The half-lives that votes decay with, each with its counters and its leaderboard of shows.
    pub const TRENDS: &'static [Trend<K>] = T::TRENDS;

    /// Every artist by max(1, upcoming shows + floor(followers / 1,000,000) + floor(popularity /
    /// 10)), ties by id.
    pub const ARTISTS: Leaderboard<K> = Leaderboard::new(
        "artist.board",
        [Self::ARTIST_LISTED, Self::ARTIST_UPCOMING_SHOWS, Self::ARTIST_FAME],
    )
    .by(artist_score);

    const SPEC: &'static Listed<CounterSpec> = &{
        let mut spec = Listed::of(&[
            Self::ARTIST_LISTED.table(),
            Self::ARTIST_FAME.table(),
            Self::ARTIST_SHOWS.table(),
            Self::ARTIST_UPCOMING_SHOWS.table(),
            Self::ARTIST_SHOWS_AHEAD.table().prunable(),
            Self::SHOW_UPCOMING.table(),
            Self::SHOW_ARTIST.table(),
            Self::SHOW_SETLISTS.table(),
            Self::SETLIST_SHOW.table(),
            Self::SETLIST_VOTES.table(),
            Self::SETLIST_UPVOTES.table(),
            Self::SETLIST_SCORE.table(),
        ]);
        let mut trends = T::TRENDS;
        while let [trend, rest @ ..] = trends {
            spec.push(trend.setlists.table());
            trends = rest;
        }
        spec.extend(&[Self::USER_VOTES.table(), Self::SHOW_VOTES.table()]);
        trends = T::TRENDS;
        while let [trend, rest @ ..] = trends {
            spec.push(trend.shows.table());
            trends = rest;
        }
        spec.push(Self::ARTIST_VOTES.table());
        trends = T::TRENDS;
        while let [trend, rest @ ..] = trends {
            spec.push(trend.artists.table());
            trends = rest;
        }
        spec
    };
    const LEADERBOARDS: &'static Listed<LeaderboardId> = &{
        let mut leaderboards = Listed::of(&[Self::ARTISTS.id()]);
        let mut trends = T::TRENDS;
        while let [trend, rest @ ..] = trends {
            leaderboards.push(trend.leaderboard.id());
            trends = rest;
        }
        leaderboards
    };

    /// All of these counters, each in its own table, and the leaderboards.
    pub const SCHEMA: Schema =
        Schema::new(Self::SPEC.as_slice()).leaderboards(Self::LEADERBOARDS.as_slice());

    /// The number of shows of an artist on this day and later, whatever their status.
    ///
    /// No write is needed when a day passes.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`].
    pub fn shows_ahead(mut store: impl Store, artist: impl AsKey<K>, at: Date) -> Result<i64> {
        store.sum(Self::ARTIST_SHOWS_AHEAD.suffixes(artist, at..))
    }
}

/// The score of the leaderboard of artists, from the totals of listed, upcoming shows and fame.
fn artist_score([listed, upcoming, fame]: [i64; 3]) -> Option<i64> {
    (listed > 0).then(|| upcoming.saturating_add(fame).max(1))
}

/// The status of a show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The show has yet to take place.
    Upcoming,
    /// The show took place.
    Completed,
    /// The show was called off.
    Cancelled,
}

impl Status {
    /// The status as applications store it: `upcoming`, `completed` or `cancelled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Upcoming => "upcoming",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error when a text is not a [`Status`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of upcoming, completed, cancelled")]
pub struct UnknownStatus(String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        [Self::Upcoming, Self::Completed, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// The fields of an artist that counters use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Artist<I> {
    /// The artist's id.
    pub id: I,
    /// The number of followers.
    pub followers: i64,
    /// The popularity, from 0 to 100.
    pub popularity: i64,
}

impl<I: Id> Artist<I> {
    /// An artist with these fields.
    pub const fn new(id: I, followers: i64, popularity: i64) -> Self {
        Self { id, followers, popularity }
    }

    /// The points for followers and popularity. They are one total, so a change that moves neither
    /// quotient writes nothing.
    fn fame(&self) -> i64 {
        self.followers.div_euclid(1_000_000) + self.popularity.div_euclid(10)
    }
}

impl<I: Id> Record for Artist<I> {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(Concert::<I::Key>::ARTIST_LISTED, &self.id, 1);
        to.add(Concert::<I::Key>::ARTIST_FAME, &self.id, self.fame());
    }
}

/// The fields of a show that counters use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Show<I> {
    /// The show's id.
    pub id: I,
    /// The artist who plays. A show without one counts for no artist.
    pub artist: Option<I>,
    /// The day of the show.
    pub date: Date,
    /// The status of the show.
    pub status: Status,
}

impl<I: Id> Show<I> {
    /// A show with these fields.
    pub const fn new(id: I, artist: Option<I>, date: Date, status: Status) -> Self {
        Self { id, artist, date, status }
    }
}

impl<I: Id> Record for Show<I> {
    fn tally(&self, to: &mut Tally<'_>) {
        let upcoming = self.status == Status::Upcoming;
        if let Some(artist) = &self.artist {
            to.add(Concert::<I::Key>::ARTIST_SHOWS, artist, 1);
            if upcoming {
                to.add(Concert::<I::Key>::ARTIST_UPCOMING_SHOWS, artist, 1);
            }
            to.add(Concert::<I::Key>::ARTIST_SHOWS_AHEAD, (artist, self.date), 1);
            to.add(Concert::<I::Key>::SHOW_ARTIST, (&self.id, artist), 1);
        }
        if upcoming {
            to.add(Concert::<I::Key>::SHOW_UPCOMING, (self.date, &self.id), 1);
        }
    }
}

/// The fields of a setlist that counters use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setlist<I> {
    /// The setlist's id.
    pub id: I,
    /// The show it belongs to. A setlist without a show is not counted.
    pub show: Option<I>,
}

impl<I: Id> Setlist<I> {
    /// A setlist with these fields.
    pub const fn new(id: I, show: Option<I>) -> Self {
        Self { id, show }
    }
}

impl<I: Id> Record for Setlist<I> {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(show) = &self.show {
            to.add(Concert::<I::Key>::SHOW_SETLISTS, show, 1);
            to.add(Concert::<I::Key>::SETLIST_SHOW, (&self.id, show), 1);
        }
    }
}

/// The fields of a vote that counters use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vote<I> {
    /// The setlist voted on. Without one, the vote counts for its user only.
    pub setlist: Option<I>,
    /// The user who voted. Without one, the vote counts for its setlist only.
    pub user: Option<I>,
    /// Whether it is an upvote; otherwise it is a downvote.
    pub up: bool,
    /// The time of the vote, in seconds since 1970.
    pub created_at: i64,
}

impl<I: Id> Vote<I> {
    /// A vote that is given or changed now; `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`FutureVote`] if `created_at` is later than `now`: the vote would weigh twice as much for
    /// each half-life that it is ahead.
    pub fn new(
        setlist: Option<I>,
        user: Option<I>,
        up: bool,
        created_at: i64,
        now: i64,
    ) -> Result<Self, FutureVote> {
        if created_at > now {
            return Err(FutureVote { created_at, now });
        }
        Ok(Self::stored(setlist, user, up, created_at))
    }

    /// A vote as it is stored.
    ///
    /// Use it for a vote that is deleted or recounted: it counts as it did when it was given,
    /// whatever the time is now.
    pub const fn stored(setlist: Option<I>, user: Option<I>, up: bool, created_at: i64) -> Self {
        Self { setlist, user, up, created_at }
    }
}

/// The error when a vote's time is in the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("created_at is {created_at}, later than now, {now}")]
pub struct FutureVote {
    /// The time that the vote claims, in seconds since 1970.
    pub created_at: i64,
    /// The time that it was compared with, in seconds since 1970.
    pub now: i64,
}

impl<I: Id> Record for Vote<I> {
    fn tally(&self, to: &mut Tally<'_>) {
        self.tally_with(<Week as Trends<I::Key>>::TRENDS, to);
    }
}

impl<I: Id> Vote<I> {
    fn tally_with(&self, trends: &[Trend<I::Key>], to: &mut Tally<'_>) {
        if let Some(setlist) = &self.setlist {
            to.add(Concert::<I::Key>::SETLIST_VOTES, setlist, 1);
            if self.up {
                to.add(Concert::<I::Key>::SETLIST_UPVOTES, setlist, 1);
            }
            to.add(Concert::<I::Key>::SETLIST_SCORE, setlist, if self.up { 1 } else { -1 });
            for Trend { half_life, setlists, .. } in trends {
                to.add(
                    *setlists,
                    (setlist, half_life.epoch(self.created_at)),
                    half_life.weight(self.created_at),
                );
            }
        }
        if let Some(user) = &self.user {
            to.add(Concert::<I::Key>::USER_VOTES, user, 1);
        }
    }
}
