//! An application on PostgreSQL for tests: votes on setlists, which belong to shows, which belong
//! to artists. It has its write paths, and a recount by plain SQL that is independent of keepcount.

use std::time::Duration;

use keepcount::reconcile::{Columns, PostgresAudit, PostgresRows};
use keepcount::{Batch, Counter, CounterId, Leaderboard, PostgresStore, Record, Schema, Tally};
use tokio_postgres::{Client, Error, GenericClient, Row, Transaction};

use super::random::Random;

pub const SETLIST_VOTES: Counter<i64> = Counter::new("setlist.votes");
pub const SETLIST_DAYS: Counter<(i64, i64)> = Counter::new("setlist.days");
pub const SETLIST_SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
pub const SHOW_SETLISTS: Counter<i64> = Counter::new("show.setlists");
pub const SHOW_ARTIST: Counter<(i64, i64)> = Counter::new("show.artist");
pub const SHOW_VOTES: Counter<i64> = Counter::new("show.votes").sum_of(SETLIST_VOTES, SETLIST_SHOW);
pub const SHOW_DAYS: Counter<(i64, i64)> =
    Counter::new("show.days").sum_of_suffix(SETLIST_DAYS, SETLIST_SHOW);
pub const ARTIST_VOTES: Counter<i64> = Counter::new("artist.votes").sum_of(SHOW_VOTES, SHOW_ARTIST);

/// The score uses totals of two counters, which concurrent transactions change.
pub const SHOWS: Leaderboard<i64> = Leaderboard::new("show.board", [SHOW_VOTES, SHOW_SETLISTS])
    .by(|[votes, setlists]| (setlists != 0).then(|| votes * 10 + setlists));

pub const SCHEMA: Schema = Schema::new(&[
    SETLIST_VOTES.table(),
    SETLIST_DAYS.table().prunable(),
    SETLIST_SHOW.table(),
    SHOW_SETLISTS.table(),
    SHOW_ARTIST.table(),
    SHOW_VOTES.table(),
    SHOW_DAYS.table().prunable(),
    ARTIST_VOTES.table(),
])
.leaderboards(&[SHOWS.id()]);

pub const TABLES: &str = "
    CREATE TABLE votes (id BIGINT PRIMARY KEY, setlist BIGINT NOT NULL, weight BIGINT NOT NULL, day BIGINT NOT NULL);
    CREATE INDEX votes_by_setlist ON votes (setlist);
    CREATE INDEX votes_by_day ON votes (setlist, day);
    CREATE TABLE setlists (id BIGINT PRIMARY KEY, show BIGINT);
    CREATE INDEX setlists_by_show ON setlists (show, id);
    CREATE INDEX setlists_by_id ON setlists (id, show);
    CREATE TABLE shows (id BIGINT PRIMARY KEY, artist BIGINT);
    CREATE INDEX shows_by_id ON shows (id, artist);
";

#[derive(Debug, Clone)]
pub struct Vote {
    pub setlist: i64,
    pub weight: i64,
    pub day: i64,
}

impl Record for Vote {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(SETLIST_VOTES, self.setlist, self.weight);
        to.add(SETLIST_DAYS, (self.setlist, self.day), self.weight);
    }
}

#[derive(Debug, Clone)]
pub struct Setlist {
    pub id: i64,
    pub show: Option<i64>,
}

impl Record for Setlist {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(show) = self.show {
            to.add(SETLIST_SHOW, (self.id, show), 1);
            to.add(SHOW_SETLISTS, show, 1);
        }
    }
}

#[derive(Debug, Clone)]
pub struct Show {
    pub id: i64,
    pub artist: Option<i64>,
}

impl Record for Show {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(artist) = self.artist {
            to.add(SHOW_ARTIST, (self.id, artist), 1);
        }
    }
}

fn vote(row: &Row) -> Result<Vote, Error> {
    Ok(Vote { setlist: row.try_get(0)?, weight: row.try_get(1)?, day: row.try_get(2)? })
}

fn setlist(row: &Row) -> Result<Setlist, Error> {
    Ok(Setlist { id: row.try_get(0)?, show: row.try_get(1)? })
}

fn show(row: &Row) -> Result<Show, Error> {
    Ok(Show { id: row.try_get(0)?, artist: row.try_get(1)? })
}

/// An audit with the sources of all counters.
pub async fn audit(client: &mut Client) -> keepcount::Result<PostgresAudit<'_>> {
    let votes = PostgresRows::of("votes", |row| Ok(vote(row)?))
        .columns("setlist, weight, day")
        .key(SETLIST_VOTES, Columns::of(["setlist"]).sum("weight"))
        .key(SETLIST_DAYS, Columns::of(["setlist", "day"]).sum("weight"));
    let setlists = PostgresRows::of("setlists", |row| Ok(setlist(row)?))
        .columns("id, show")
        .key(SETLIST_SHOW, Columns::of(["id", "show"]).count())
        .key(SHOW_SETLISTS, Columns::of(["show"]).count());
    let shows = PostgresRows::of("shows", |row| Ok(show(row)?)).columns("id, artist");
    let mut audit = PostgresAudit::new(client, &SCHEMA).await?;
    audit.add(votes).await?;
    audit.add(setlists).await?;
    audit.add(shows.key(SHOW_ARTIST, Columns::of(["id", "artist"]).count())).await?;
    Ok(audit)
}

/// A user's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets or clears the artist of a show.
    Bill(i64, Option<i64>),
    /// Sets or clears the show of a setlist.
    Place(i64, Option<i64>),
    /// Deletes a setlist with its votes.
    Drop(i64),
    /// Inserts or changes a vote.
    Vote(i64, i64, i64, i64),
    /// Deletes a vote.
    Unvote(i64),
}

/// Makes a change and adds its hooks to the batch. Old values come from the statement itself, or
/// were read under the row's lock. A row that conflicts with the INSERT may be gone before the
/// SELECT, and be inserted again before the UPDATE, which would then change a row that nobody has
/// read. So the change starts over.
pub async fn write(tx: &Transaction<'_>, change: &Change, batch: &mut Batch) -> Result<(), Error> {
    match *change {
        Change::Bill(id, artist) => {
            let new = Show { id, artist };
            let text = "INSERT INTO shows VALUES ($1, $2) ON CONFLICT DO NOTHING";
            if tx.execute(text, &[&id, &artist]).await? == 1 {
                batch.insert(&new);
                return Ok(());
            }
            let old = tx
                .query_opt("SELECT id, artist FROM shows WHERE id = $1 FOR UPDATE", &[&id])
                .await?;
            let Some(old) = old else { return Box::pin(write(tx, change, batch)).await };
            tx.execute("UPDATE shows SET artist = $2 WHERE id = $1", &[&id, &artist]).await?;
            batch.update(&show(&old)?, &new);
        }
        Change::Place(id, show) => {
            let new = Setlist { id, show };
            let text = "INSERT INTO setlists VALUES ($1, $2) ON CONFLICT DO NOTHING";
            if tx.execute(text, &[&id, &show]).await? == 1 {
                batch.insert(&new);
                return Ok(());
            }
            let old = tx
                .query_opt("SELECT id, show FROM setlists WHERE id = $1 FOR UPDATE", &[&id])
                .await?;
            let Some(old) = old else { return Box::pin(write(tx, change, batch)).await };
            tx.execute("UPDATE setlists SET show = $2 WHERE id = $1", &[&id, &show]).await?;
            batch.update(&setlist(&old)?, &new);
        }
        Change::Drop(id) => {
            // A setlist that is inserted after this stays. Waiting for it while votes are locked
            // would deadlock with a transaction that has inserted it and needs one of the votes.
            let there = tx
                .query_opt("SELECT id FROM setlists WHERE id = $1 FOR UPDATE", &[&id])
                .await?
                .is_some();
            let text = "WITH gone AS (SELECT id FROM votes WHERE setlist = $1 ORDER BY id FOR UPDATE)
                        DELETE FROM votes USING gone WHERE votes.id = gone.id RETURNING setlist, weight, day";
            let votes: Vec<Vote> =
                tx.query(text, &[&id]).await?.iter().map(vote).collect::<Result<_, _>>()?;
            batch.delete(&votes);
            if there {
                let parent = tx
                    .query_opt("DELETE FROM setlists WHERE id = $1 RETURNING id, show", &[&id])
                    .await?;
                batch.delete(&parent.as_ref().map(setlist).transpose()?);
            }
        }
        Change::Vote(id, setlist, weight, day) => {
            let new = Vote { setlist, weight, day };
            let text = "INSERT INTO votes VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
            if tx.execute(text, &[&id, &setlist, &weight, &day]).await? == 1 {
                batch.insert(&new);
                return Ok(());
            }
            let old = tx
                .query_opt(
                    "SELECT setlist, weight, day FROM votes WHERE id = $1 FOR UPDATE",
                    &[&id],
                )
                .await?;
            let Some(old) = old else { return Box::pin(write(tx, change, batch)).await };
            let text = "UPDATE votes SET setlist = $2, weight = $3, day = $4 WHERE id = $1";
            tx.execute(text, &[&id, &setlist, &weight, &day]).await?;
            batch.update(&vote(&old)?, &new);
        }
        Change::Unvote(id) => {
            let gone = tx
                .query_opt("DELETE FROM votes WHERE id = $1 RETURNING setlist, weight, day", &[&id])
                .await?;
            batch.delete(&gone.as_ref().map(vote).transpose()?);
        }
    }
    Ok(())
}

/// Random changes of few parents, so that writers conflict. They are ordered so that the
/// application's own rows do not deadlock. The votes are this writer's own.
pub fn changes(random: &mut Random, writer: i64) -> Vec<Change> {
    let mut changes: Vec<Change> = (0..=random.below(5))
        .map(|_| {
            let (setlist, show) = (random.int(0, 50), random.int(0, 12));
            let id = writer * 1_000 + random.int(0, 60);
            match random.below(20) {
                0..10 => Change::Vote(id, setlist, random.int(-2, 4), random.int(0, 4)),
                10..14 => Change::Unvote(id),
                14..17 => Change::Place(setlist, (random.below(5) > 0).then_some(show)),
                17 => Change::Bill(show, (random.below(5) > 0).then(|| random.int(0, 3))),
                18 => Change::Drop(setlist),
                _ => Change::Vote(id, setlist, 1, 0),
            }
        })
        .collect();
    // A cascade locks other writers' votes too, so it is the only change of its transaction: the
    // setlist first, then the votes in id order.
    if let Some(cascade) = changes.iter().find(|change| matches!(change, Change::Drop(_))) {
        return vec![cascade.clone()];
    }
    changes.sort_by_key(|change| match change {
        Change::Bill(id, _) => (0, *id),
        Change::Place(id, _) | Change::Drop(id) => (1, *id),
        Change::Vote(id, ..) | Change::Unvote(id) => (2, *id),
    });
    changes
}

/// How long a hunt runs: 6 seconds, or `KEEPCOUNT_HUNT_SECONDS`.
pub fn hunt_duration() -> Duration {
    let seconds =
        std::env::var("KEEPCOUNT_HUNT_SECONDS").map_or(6, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Creates the application's tables, and keepcount's.
pub async fn create(client: &mut Client) {
    client.batch_execute(TABLES).await.unwrap();
    PostgresStore::new(client, &SCHEMA).create().await.unwrap();
}

/// A query for the stored totals of each table, and plain SQL for the correct ones: keys first,
/// then the total.
const EXPECTED: [(&str, &str); 9] = [
    ("SELECT key, total FROM setlist_votes", "SELECT setlist, sum(weight)::bigint FROM votes GROUP BY 1"),
    ("SELECT key_1, key_2, total FROM setlist_days", "SELECT setlist, day, sum(weight)::bigint FROM votes GROUP BY 1, 2"),
    ("SELECT key_1, key_2, total FROM setlist_show", "SELECT id, show, 1::bigint FROM setlists WHERE show IS NOT NULL"),
    ("SELECT key, total FROM show_setlists", "SELECT show, count(*) FROM setlists WHERE show IS NOT NULL GROUP BY 1"),
    ("SELECT key_1, key_2, total FROM show_artist", "SELECT id, artist, 1::bigint FROM shows WHERE artist IS NOT NULL"),
    (
        "SELECT key, total FROM show_votes",
        "SELECT show, sum(weight)::bigint FROM votes JOIN setlists AS s ON s.id = setlist WHERE show IS NOT NULL GROUP BY 1",
    ),
    (
        "SELECT key_1, key_2, total FROM show_days",
        "SELECT show, day, sum(weight)::bigint FROM votes JOIN setlists AS s ON s.id = setlist WHERE show IS NOT NULL GROUP BY 1, 2",
    ),
    (
        "SELECT key, total FROM artist_votes",
        "SELECT artist, sum(weight)::bigint FROM votes JOIN setlists AS s ON s.id = setlist JOIN shows AS c ON c.id = show
         WHERE artist IS NOT NULL GROUP BY 1",
    ),
    (
        "SELECT key, score AS total FROM show_board",
        "SELECT show, (SELECT coalesce(sum(weight), 0) FROM votes JOIN setlists AS o ON o.id = setlist WHERE o.show = s.show)::bigint * 10
                + count(*) FROM setlists AS s WHERE show IS NOT NULL GROUP BY 1",
    ),
];

/// The lines in which totals differ from the rows, each with the query for the totals.
pub async fn differences(client: &(impl GenericClient + Sync)) -> Vec<String> {
    let mut all = Vec::new();
    for (totals, expected) in EXPECTED {
        let zero = if totals.contains("score") { "" } else { " WHERE total <> 0" };
        let (totals, expected) = (
            format!("SELECT * FROM ({totals}) AS t{zero}"),
            format!("SELECT * FROM ({expected}) AS t (a, b)"),
        );
        let expected = if totals.contains("key_2") {
            expected.replace("(a, b)", "(a, b, c) WHERE c <> 0")
        } else {
            expected
        };
        let expected = if zero.is_empty() {
            expected
        } else {
            expected.replace("(a, b)", "(a, b) WHERE b <> 0")
        };
        for (name, one, other) in
            [("too much", &totals, &expected), ("lacking", &expected, &totals)]
        {
            let text = format!("SELECT d::text FROM ({one} EXCEPT {other}) AS d");
            let lines =
                client.query(&text, &[]).await.unwrap_or_else(|why| panic!("{text}: {why:?}"));
            all.extend(
                lines
                    .iter()
                    .map(|line| format!("{name}: {} in {totals}", line.get::<_, String>(0))),
            );
        }
    }
    all
}

/// Fails if any total or line of the leaderboard differs from the rows.
#[track_caller]
pub fn assert_exact(differences: &[String]) {
    assert!(differences.is_empty(), "{differences:#?}");
}
