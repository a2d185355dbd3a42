//! The standing of keys on a leaderboard, listed or not. The same cases run on every store.

use keepcount::{Batch, Counter, Leaderboard, Schema, Standing};

pub const UP: Counter<(i64, String)> = Counter::new("song.up");
pub const DOWN: Counter<(i64, String)> = Counter::new("song.down");
pub const SONGS: Leaderboard<(i64, String)> = Leaderboard::new("song.board", [UP, DOWN])
    .by(|[up, down]| (up + down > 0).then_some(up - down));
pub const SCHEMA: Schema = Schema::new(&[UP.table(), DOWN.table()]).leaderboards(&[SONGS.id()]);

pub type Song = (i64, &'static str);

/// Votes for and against songs, and the standing of some songs after they are applied.
pub struct Step {
    pub votes: &'static [(Song, i64, i64)],
    pub stand: &'static [(Song, u64, Option<i64>)],
}

pub const STEPS: &[Step] = &[
    // On an empty leaderboard the rank is 1.
    Step { votes: &[], stand: &[((1, "a"), 1, None), ((0, ""), 1, None)] },
    Step {
        votes: &[((1, "b"), 2, 0)],
        stand: &[((1, "b"), 1, Some(2)), ((1, "a"), 2, None), ((1, "c"), 2, None)],
    },
    // Ties are ordered by key. A key that is not listed ranks behind all that are.
    Step {
        votes: &[((1, "a"), 2, 0), ((2, ""), 0, 5), ((-7, "z"), 9, 1)],
        stand: &[
            ((-7, "z"), 1, Some(8)),
            ((1, "a"), 2, Some(2)),
            ((1, "b"), 3, Some(2)),
            ((2, ""), 4, Some(-5)),
            ((-9, ""), 5, None),
            ((1, "aa"), 5, None),
            ((i64::MAX, "z"), 5, None),
        ],
    },
    // A key that leaves the leaderboard ranks behind all that stay. A score of 0 is listed.
    Step {
        votes: &[((-7, "z"), -9, -1), ((1, "b"), 0, 2)],
        stand: &[
            ((1, "a"), 1, Some(2)),
            ((1, "b"), 2, Some(0)),
            ((2, ""), 3, Some(-5)),
            ((-7, "z"), 4, None),
        ],
    },
];

impl Step {
    pub fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for (song, up, down) in self.votes {
            batch.add(UP, song, *up);
            batch.add(DOWN, song, *down);
        }
        batch
    }

    #[track_caller]
    pub fn check(&self, whose: &str, at: usize, found: &Standing<(i64, String), i64>) {
        let ((number, name), rank, score) = self.stand[at];
        let (key, line) = ((number, name.to_owned()), found.clone().line());
        assert_eq!((found.rank, &found.key, found.score), (rank, &key, score), "{whose}");
        assert_eq!(
            line.map(|line| (line.rank, line.key, line.score)),
            score.map(|score| (rank, key, score)),
            "{whose}"
        );
    }
}
