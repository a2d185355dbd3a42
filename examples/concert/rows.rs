//! The application's own rows, and the tally of each.

use keepcount::concert::{
    Artist, Decaying, FutureVote, Setlist, Show, Status, Trend, Trends, Vote,
};
use keepcount::{Date, Key, Record, Tally};

#[derive(Debug)]
pub struct ArtistRow {
    pub id: String,
    pub name: String,
    pub followers: i64,
    pub popularity: i64,
}

#[derive(Debug)]
pub struct ShowRow {
    pub id: String,
    pub artist_id: Option<String>,
    pub date: Date,
    pub status: Status,
}

#[derive(Debug)]
pub struct SetlistRow {
    pub id: String,
    pub show_id: Option<String>,
}

#[derive(Debug)]
pub struct VoteRow {
    pub id: String,
    pub setlist_id: String,
    pub user_id: String,
    /// `up` or `down`.
    pub kind: String,
    pub created_at: i64,
}

/// The half-lives that this site has chosen. The default is one half-life.
pub struct HalfLives;

impl<K: Key> Trends<K> for HalfLives {
    const TRENDS: &'static [Trend<K>] = &[Trend::HOURS_6, Trend::DAY, Trend::WEEK];
}

// The tallies: the hooks of `app.rs` and the recounts of `audit.rs` both use them.

impl Record for ArtistRow {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(&Artist::new(self.id.as_str(), self.followers, self.popularity));
    }
}

impl Record for ShowRow {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(&Show::new(self.id.as_str(), self.artist_id.as_deref(), self.date, self.status));
    }
}

impl Record for SetlistRow {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(&Setlist::new(self.id.as_str(), self.show_id.as_deref()));
    }
}

impl Record for VoteRow {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(&self.decaying::<HalfLives>());
    }
}

impl VoteRow {
    /// Refuses a vote whose time is later than `now`, when it is given or changed. A stored vote
    /// counts whatever its time is.
    pub fn not_after(self, now: i64) -> Result<Self, FutureVote> {
        let vote = self.view();
        Vote::new(vote.setlist, vote.user, vote.up, vote.created_at, now)?;
        Ok(self)
    }

    /// Returns the record whose tally lets the vote decay with the half-lives `T`.
    pub fn decaying<T: Trends<String>>(&self) -> Decaying<&str, T> {
        self.view().decaying()
    }

    fn view(&self) -> Vote<&str> {
        Vote::stored(
            Some(&self.setlist_id),
            Some(&self.user_id),
            self.kind == "up",
            self.created_at,
        )
    }
}
