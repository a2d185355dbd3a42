//! Ready-made counters for concert sites: artists, shows, setlists, votes.
//!
//! Nothing here is special: an application of any other domain declares its own in the same way.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use crate::counter::{Counter, Def, Placed};
use crate::key::{AsKey, Key};
use crate::layout::Layout;
use crate::record::{Record, Tally};

/// A type of id, in the form in which a row lends it: integers, 16-byte ids and UUIDs as they are, texts as `&str`.
pub trait Id: AsKey<Self::Key> {
    /// The key that the counters are grouped by.
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

/// The counters over keys of type `K`, and their layout.
///
/// # Examples
///
/// ```
/// use keepcount::concert::{Concert, Vote};
/// use keepcount::{Batch, MemoryStore};
///
/// let store = MemoryStore::new(&Concert::<String>::LAYOUT);
/// let mut batch = Batch::new();
/// batch.insert(&Vote::new(Some("se1"), Some("ann"), true));
/// batch.insert(&Vote::new(Some("se1"), Some("bob"), false));
/// store.apply(&batch)?;
/// assert_eq!(store.total(Concert::<String>::SETLIST_VOTES, "se1")?, 2);
/// assert_eq!(store.total(Concert::<String>::SETLIST_SCORE, "se1")?, 0);
/// # Ok::<(), keepcount::Error>(())
/// ```
pub struct Concert<K>(PhantomData<fn() -> K>);

impl<K> fmt::Debug for Concert<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Concert")
    }
}

impl<K: Key> Concert<K> {
    /// Votes on a setlist, up and down.
    pub const SETLIST_VOTES: Counter<K> = Counter::new("setlist.votes");
    /// Votes up on a setlist.
    pub const SETLIST_UPVOTES: Counter<K> = Counter::new("setlist.upvotes");
    /// Votes up minus votes down on a setlist.
    pub const SETLIST_SCORE: Counter<K> = Counter::new("setlist.score");
    /// Setlists of a show.
    pub const SHOW_SETLISTS: Counter<K> = Counter::new("show.setlists");
    /// Shows of an artist.
    pub const ARTIST_SHOWS: Counter<K> = Counter::new("artist.shows");
    /// Shows of an artist whose status is [`Status::Upcoming`].
    pub const ARTIST_UPCOMING_SHOWS: Counter<K> = Counter::new("artist.upcoming_shows");
    /// Votes of a user.
    pub const USER_VOTES: Counter<K> = Counter::new("user.votes");

    const PLACED: &'static [Placed] = &[
        Self::ARTIST_SHOWS.table(),
        Self::ARTIST_UPCOMING_SHOWS.table(),
        Self::SHOW_SETLISTS.table(),
        Self::SETLIST_VOTES.table(),
        Self::SETLIST_UPVOTES.table(),
        Self::SETLIST_SCORE.table(),
        Self::USER_VOTES.table(),
    ];

    /// All of these counters, each in a table of its own.
    pub const LAYOUT: Layout = Layout::new(Self::PLACED);
}

/// What has become of a show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is to come.
    Upcoming,
    /// It took place.
    Completed,
    /// It was called off.
    Cancelled,
}

impl Status {
    /// The status as applications store it: `upcoming`, `completed`, `cancelled`.
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

/// A text that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of upcoming, completed, cancelled")]
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

/// An artist, as far as counters look at it: no counter counts artists yet, and its hooks cost nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Artist<I> {
    /// The artist's id.
    pub id: I,
}

impl<I: Id> Artist<I> {
    /// The view of an artist.
    pub const fn new(id: I) -> Self {
        Self { id }
    }
}

impl<I: Id> Record for Artist<I> {
    const COUNTERS: &'static [Def] = &[];

    fn tally(&self, _: &mut Tally<'_>) {}
}

/// A show, as far as counters look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Show<I> {
    /// Who plays; a show of nobody counts nowhere.
    pub artist: Option<I>,
    /// What has become of it.
    pub status: Status,
}

impl<I: Id> Show<I> {
    /// The view of a show.
    pub const fn new(artist: Option<I>, status: Status) -> Self {
        Self { artist, status }
    }
}

impl<I: Id> Record for Show<I> {
    const COUNTERS: &'static [Def] =
        &[Concert::<I::Key>::ARTIST_SHOWS.def(), Concert::<I::Key>::ARTIST_UPCOMING_SHOWS.def()];

    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(artist) = &self.artist {
            to.add(Concert::<I::Key>::ARTIST_SHOWS, artist, 1);
            if self.status == Status::Upcoming {
                to.add(Concert::<I::Key>::ARTIST_UPCOMING_SHOWS, artist, 1);
            }
        }
    }
}

/// A setlist, as far as counters look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setlist<I> {
    /// The show it belongs to; a setlist of none counts nowhere.
    pub show: Option<I>,
}

impl<I: Id> Setlist<I> {
    /// The view of a setlist.
    pub const fn new(show: Option<I>) -> Self {
        Self { show }
    }
}

impl<I: Id> Record for Setlist<I> {
    const COUNTERS: &'static [Def] = &[Concert::<I::Key>::SHOW_SETLISTS.def()];

    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(show) = &self.show {
            to.add(Concert::<I::Key>::SHOW_SETLISTS, show, 1);
        }
    }
}

/// A vote, as far as counters look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vote<I> {
    /// The setlist voted on; without one, the vote counts for its user only.
    pub setlist: Option<I>,
    /// Who voted; without one, the vote counts for its setlist only.
    pub user: Option<I>,
    /// Up, or down.
    pub up: bool,
}

impl<I: Id> Vote<I> {
    /// The view of a vote.
    pub const fn new(setlist: Option<I>, user: Option<I>, up: bool) -> Self {
        Self { setlist, user, up }
    }
}

impl<I: Id> Record for Vote<I> {
    const COUNTERS: &'static [Def] = &[
        Concert::<I::Key>::SETLIST_VOTES.def(),
        Concert::<I::Key>::SETLIST_UPVOTES.def(),
        Concert::<I::Key>::SETLIST_SCORE.def(),
        Concert::<I::Key>::USER_VOTES.def(),
    ];

    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(setlist) = &self.setlist {
            to.add(Concert::<I::Key>::SETLIST_VOTES, setlist, 1);
            if self.up {
                to.add(Concert::<I::Key>::SETLIST_UPVOTES, setlist, 1);
            }
            to.add(Concert::<I::Key>::SETLIST_SCORE, setlist, if self.up { 1 } else { -1 });
        }
        if let Some(user) = &self.user {
            to.add(Concert::<I::Key>::USER_VOTES, user, 1);
        }
    }
}
