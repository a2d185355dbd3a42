//! The tables, rows and counters of one application. `with-sqlx`, `with-diesel` and `with-sea-orm`
//! write them, each with its library.

use keepcount::{Date, Record, Tally};
use uuid::Uuid;

keepcount::counters! {
    pub SCHEMA {
        pub SETLIST_VOTES: i64 = "setlist.votes";
        pub USER_VOTES: Uuid = "user.votes";
        pub DAY_VOTES: Date = "day.votes";
        /// The membership: which show a setlist belongs to.
        pub SETLIST_SHOW: (i64, String) = "setlist.show";
        /// The rollup: a show's votes are those of its setlists. If a setlist moves to another
        /// show, its votes move with it.
        pub SHOW_VOTES: String = "show.votes".sum_of(SETLIST_VOTES, SETLIST_SHOW);
    }
}

/// The application's own tables; `keepcount::sql::ddl(.., &SCHEMA)` has those of the counters.
pub const TABLES: &str = "
    CREATE TABLE shows (slug TEXT PRIMARY KEY);
    CREATE TABLE setlists (id BIGINT PRIMARY KEY, show_slug TEXT NOT NULL REFERENCES shows);
    CREATE TABLE votes (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        setlist_id BIGINT NOT NULL REFERENCES setlists,
        user_id UUID NOT NULL,
        day DATE NOT NULL,
        UNIQUE (setlist_id, user_id)
    );
";

/// A user's vote for a setlist; voting again changes its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    pub setlist: i64,
    pub user: Uuid,
    pub day: Date,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_VOTES, self.setlist, 1);
        to.add(USER_VOTES, self.user, 1);
        to.add(DAY_VOTES, self.day, 1);
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setlist {
    pub id: i64,
    pub show: String,
}

impl Record for Setlist {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_SHOW, (self.id, self.show.as_str()), 1);
    }
}
