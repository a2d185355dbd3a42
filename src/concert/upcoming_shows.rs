//! The list of upcoming shows by the exact formula, at any time: reads only the shows in its
//! window, never all shows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use super::{Concert, Trends};
use crate::counter::key_range::KeyRange;
use crate::date::Date;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::store::Store;

/// A show's score: (30 - d)(10 + v + 2s) / 300, where d is the days to its date, clamped to 0..=30,
/// v its votes and s its setlists.
///
/// The number is kept exactly, in 300ths. `Display` shows four decimals, rounded half up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShowScore(i128);

/// A show is listed from this many days before its date. An overdue show keeps the value of its
/// day.
const WINDOW: i32 = 30;

impl ShowScore {
    fn new(date: Date, at: Date, votes: i64, setlists: i64) -> Self {
        let left = WINDOW - (date.days() - at.days()).clamp(0, WINDOW);
        Self(i128::from(left) * (10 + i128::from(votes) + 2 * i128::from(setlists)))
    }

    /// The score in 300ths.
    #[must_use]
    pub const fn in_300ths(self) -> i128 {
        self.0
    }
}

impl fmt::Display for ShowScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Ten-thousandths, half up: floor(score x 10,000 / 300 + 1/2).
        let rounded = (self.0 * 10_000 + 150).div_euclid(300);
        let sign = if rounded < 0 { "-" } else { "" };
        let (whole, rest) = (rounded.unsigned_abs() / 10_000, rounded.unsigned_abs() % 10_000);
        write!(f, "{sign}{whole}.{rest:04}")
    }
}

/// A line of the list of upcoming shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShowStanding<K> {
    /// The rank, from 1 on.
    pub rank: u64,
    /// The show.
    pub show: K,
    /// Its date.
    pub date: Date,
    /// Its score.
    pub score: ShowScore,
}

/// The sort key of the list: the highest score first, then by date, then by id. The greatest comes
/// first.
type Place = (ShowScore, Reverse<KeyBuf>);

/// How many candidates are read at once.
const PAGE: usize = 1024;

impl<K: Key, T: Trends<K>> Concert<K, T> {
    /// The first upcoming shows by [`ShowScore`] on a day, ties by date, then id.
    ///
    /// Shows whose score is 0 are left out.
    ///
    /// Reads every upcoming show up to 29 days ahead, overdue shows included, and its votes and
    /// setlists. Takes memory for `limit` lines.
    ///
    /// # Errors
    ///
    /// The store's errors.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::concert::{Concert, Show, Status};
    /// use keepcount::{Batch, Date, MemoryStore};
    ///
    /// type C = Concert<String>;
    ///
    /// let store = MemoryStore::new(&C::SCHEMA);
    /// let (today, then): (Date, Date) = ("2026-06-01".parse()?, "2026-06-11".parse()?);
    /// let mut batch = Batch::new();
    /// batch.insert(&Show::new("sh1", None, then, Status::Upcoming));
    /// store.apply(&mut batch)?;
    /// let top = C::top_shows(&store, today, 10)?;
    /// assert_eq!((top[0].show.as_str(), top[0].score.to_string().as_str()), ("sh1", "0.6667"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn top_shows(store: impl Store, at: Date, limit: usize) -> Result<Vec<ShowStanding<K>>> {
        let mut best: BinaryHeap<Reverse<Place>> = BinaryHeap::new();
        each_candidate::<K>(store, at, |place| {
            best.push(Reverse(place));
            if best.len() > limit {
                best.pop();
            }
        })?;
        // The greatest place is the least reversed one.
        (1..)
            .zip(best.into_sorted_vec())
            .map(|(rank, Reverse(place))| standing(rank, place))
            .collect()
    }

    /// The line of one show as [`top_shows`](Self::top_shows) would list it; `None` if it is not
    /// listed.
    ///
    /// Reads the candidates once, and a second time if the show is listed. Takes no memory for
    /// lines.
    ///
    /// # Errors
    ///
    /// The store's errors.
    pub fn rank_of_show(
        mut store: impl Store,
        at: Date,
        show: impl AsKey<K>,
    ) -> Result<Option<ShowStanding<K>>> {
        let wanted = KeyBuf::of::<K>(show);
        let mut own: Option<Place> = None;
        each_candidate::<K>(&mut store, at, |place| {
            if id_of(&place.1.0) == wanted.as_bytes() && own.as_ref().is_none_or(|own| place > *own)
            {
                own = Some(place);
            }
        })?;
        let Some(own) = own else { return Ok(None) };
        let mut rank = 1;
        each_candidate::<K>(store, at, |place| rank += u64::from(place > own))?;
        standing(rank, own).map(Some)
    }
}

fn standing<K: Key>(rank: u64, (score, Reverse(key)): Place) -> Result<ShowStanding<K>> {
    let counter = Concert::<K>::SHOW_UPCOMING.id();
    let (date, show) =
        key.decode::<(Date, K)>().map_err(|cause| Error::key(&counter, &key, cause))?;
    Ok(ShowStanding { rank, show, date, score })
}

/// Calls `each` with every show that has a score, read as a range of the counter by date.
fn each_candidate<K: Key>(
    mut store: impl Store,
    at: Date,
    mut each: impl FnMut(Place),
) -> Result<()> {
    let upcoming = Concert::<K>::SHOW_UPCOMING;
    let mut range = at.plus(WINDOW - 1).map_or(KeyRange::ALL, |last| KeyRange::of::<Date>(..=last));
    loop {
        let page = store.read_range(upcoming.id(), &range, PAGE)?;
        let shows: Vec<KeyBuf> =
            page.iter().map(|(key, _)| KeyBuf::from_bytes(id_of(key))).collect();
        let votes = store.read_keys(Concert::<K>::SHOW_VOTES.id(), &shows)?;
        let setlists = store.read_keys(Concert::<K>::SHOW_SETLISTS.id(), &shows)?;
        for (((key, listed), votes), setlists) in page.iter().zip(votes).zip(setlists) {
            let (date, _) = key
                .decode::<(Date, K)>()
                .map_err(|cause| Error::key(&upcoming.id(), key, cause))?;
            let exact = ShowScore::new(date, at, votes, setlists);
            if *listed > 0 && exact.0 > 0 {
                each((exact, Reverse(key.clone())));
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => range = range.behind(last),
            _ => return Ok(()),
        }
    }
}

/// The bytes of the show in an encoded (date, show).
fn id_of(key: &KeyBuf) -> &[u8] {
    let len = Concert::<()>::SHOW_UPCOMING.id().parts().prefix_len(key.as_bytes(), 1);
    len.and_then(|len| key.as_bytes().get(len..)).unwrap_or_default()
}
