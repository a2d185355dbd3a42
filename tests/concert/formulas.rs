//! The leaderboards of the concert counters against an independent computation from the rows:
//! artists, upcoming shows, shows ahead and decayed trending. The rows are prefixes of a long real
//! history, with followers, popularity and votes added, and one completion in ten left out.
#![allow(clippy::cast_precision_loss)]

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use keepcount::concert::{
    Artist, Concert, Setlist, Show, ShowStanding, Status, Trend, Trends, Vote,
};
use keepcount::{
    Batch, Date, Decayed, HalfLife, Key, MemoryLeaderboard, MemoryStore, Ranked, SqliteStore,
};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::concert::{
    self, Random, Site, delete, history, now, on_day, setlist, update, vote, with_member,
};

type C = Concert<String, HalfLives>;

/// The half-lives of the example.
struct HalfLives;

impl<K: Key> Trends<K> for HalfLives {
    const TRENDS: &'static [Trend<K>] = &[Trend::HOURS_6, Trend::DAY, Trend::WEEK];
}

// The events.

fn is_completion(event: &Value) -> bool {
    event["table"] == "shows" && event["op"] == "update" && event["row"]["status"] == "completed"
}

/// The percentages of the history that are compared.
const SHARES: [usize; 3] = [11, 45, 100];

/// The history with votes and other missing data added, in the order of days; and the number of
/// events in each share of it.
fn events(site: &Site) -> (Vec<String>, Vec<usize>) {
    let history = history(site);
    let lines = if history.is_real { history.lines } else { synthetic_history() };
    let mut writer = Writer {
        random: Random(1842),
        events: Vec::new(),
        artists: Vec::new(),
        shows: Vec::new(),
        setlists: Vec::new(),
        votes: Vec::new(),
        made: 0,
    };
    let mut ends = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let event: Value = serde_json::from_str(line).unwrap();
        let day = event["at"].as_str().unwrap().to_owned();
        let completed = is_completion(&event);
        if !completed || !writer.random.one_in(10) {
            writer.add_event(event, &day);
        }
        if SHARES.iter().any(|share| number + 1 == lines.len() * share / 100) {
            // Many votes at the end, so that some trending shows have not decayed to nothing.
            (0..150).for_each(|_| writer.vote(&day, 20 * 86_400));
            ends.push(writer.events.len());
        }
    }
    (writer.events, ends)
}

/// A synthetic history for machines without the real one. Shows are announced 60 days ahead, get
/// their setlist 30 days ahead, and are completed on their day.
fn synthetic_history() -> Vec<String> {
    const SHOWS: usize = 2_000;
    let mut random = Random(1842);
    let mut events: Vec<(i32, Value)> =
        (0..70).map(|id| (-800, concert::artist(&format!("ar{id}")))).collect();
    for number in 0..SHOWS {
        let day = i32::try_from(number * 3 / 4).unwrap() - 700; // over both sides of 1970
        let (id, by) = (format!("sh{number}"), format!("ar{}", random.skewed_below(70)));
        let show = |status| {
            let date = Date::from_days(day + 60).unwrap().to_string();
            with_member(concert::show(&id, Some(&by), status), "date", Some(json!(date)))
        };
        events.push((day, show("upcoming")));
        events.push((day + 30, setlist(&format!("se{number}"), Some(&id))));
        events.push((day + 60, update(show("completed"))));
    }
    events.sort_by_key(|(day, _)| *day);
    events
        .into_iter()
        .map(|(day, event)| on_day(event, &Date::from_days(day).unwrap().to_string()).to_string())
        .collect()
}

struct Writer {
    random: Random,
    events: Vec<String>,
    artists: Vec<String>,
    /// Shows that have setlists.
    shows: Vec<String>,
    setlists: Vec<String>,
    votes: Vec<Value>,
    made: usize,
}

impl Writer {
    fn add_event(&mut self, mut event: Value, day: &str) {
        if is_completion(&event) && self.random.one_in(60) {
            event["row"]["status"] = json!("cancelled");
        }
        if event["table"] == "artists" && event["op"] == "insert" {
            self.artists.push(event["row"]["id"].as_str().unwrap().to_owned());
            self.make_famous(&mut event);
        }
        if event["table"] == "setlists" && event["op"] == "insert" {
            let show = event["row"]["show_id"].as_str().unwrap().to_owned();
            self.shows.push(show.clone());
            self.setlists.push(event["row"]["id"].as_str().unwrap().to_owned());
            self.events.push(event.to_string());
            for more in 0..if self.random.one_in(4) { self.random.below(3) + 1 } else { 0 } {
                let id = format!("{}-more{more}", event["row"]["id"].as_str().unwrap());
                self.put(setlist(&id, Some(&show)), day);
                self.setlists.push(id);
            }
        } else {
            self.events.push(event.to_string());
        }
        if self.random.one_in(200) {
            let mut known = concert::artist(&self.artists[self.random.below(self.artists.len())]);
            self.make_famous(&mut known);
            self.put(update(known), day);
        }
        if !self.setlists.is_empty() && self.random.one_in(6) {
            self.vote(day, 5 * 86_400);
        }
        if !self.setlists.is_empty() && self.random.one_in(300) {
            // Moves a setlist, with its votes, to another show.
            let to = self.shows[self.random.below(self.shows.len())].clone();
            let moved = self.random_setlist();
            self.put(update(setlist(&moved, Some(&to))), day);
        }
    }

    fn put(&mut self, event: Value, day: &str) {
        self.events.push(on_day(event, day).to_string());
    }

    fn make_famous(&mut self, event: &mut Value) {
        let edge = [999_999, 1_000_000, 1_000_001, 1_999_999, 2_000_000];
        let followers = match self.random.below(6) {
            0 => 0,
            1 => edge[self.random.below(edge.len())],
            2 => self.random.below(200_000_000),
            _ => self.random.skewed_below(8_000_000),
        };
        event["row"]["followers"] = json!(followers);
        event["row"]["popularity"] = json!(self.random.below(101));
    }

    /// A setlist, skewed so that few get most votes: among the newest 60, or among all.
    fn random_setlist(&mut self) -> String {
        let there = self.setlists.len();
        let at = if self.random.one_in(3) {
            self.random.skewed_below(there)
        } else {
            there - 1 - self.random.skewed_below(there.min(60))
        };
        self.setlists[at].clone()
    }

    /// Mostly inserts a vote of this day or a few days before. Some votes are deleted, moved or
    /// changed.
    fn vote(&mut self, day: &str, past: usize) {
        for _ in 0..=self.random.skewed_below(4) {
            let kind = if self.random.one_in(5) { "down" } else { "up" };
            let to = self.random_setlist();
            match self.random.below(12) {
                0 if !self.votes.is_empty() => {
                    let gone = self.votes.swap_remove(self.random.below(self.votes.len()));
                    self.put(delete("votes", gone["row"]["id"].as_str().unwrap()), day);
                }
                1 if !self.votes.is_empty() => {
                    let moved = self.random.below(self.votes.len());
                    self.votes[moved] =
                        with_member(self.votes[moved].clone(), "setlist_id", Some(json!(to)));
                    self.put(update(self.votes[moved].clone()), day);
                }
                2 if !self.votes.is_empty() => {
                    let turned = self.random.below(self.votes.len());
                    self.votes[turned] =
                        with_member(self.votes[turned].clone(), "kind", Some(json!(kind)));
                    self.put(update(self.votes[turned].clone()), day);
                }
                _ => {
                    self.made += 1;
                    let ends = day.parse::<Date>().unwrap().last_second();
                    let before = match self.random.below(4) {
                        0 => 0, // the day's last second
                        1 => self.random.below(past),
                        _ => self.random.below(86_400),
                    };
                    let user = format!("us{}", self.random.skewed_below(500));
                    let vote = vote(&format!("vo{}", self.made), &to, &user, kind);
                    let vote = with_member(
                        vote,
                        "created_at",
                        Some(json!(ends - i64::try_from(before).unwrap())),
                    );
                    self.put(vote.clone(), day);
                    self.votes.push(vote);
                }
            }
        }
    }
}

// The expected results, by plain SQL and integers.

fn rows<T>(
    conn: &Connection,
    text: &str,
    mut read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let mut all = conn.prepare(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    all.query_map((), |row| read(row)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Every artist with its score, sorted.
fn artists(conn: &Connection) -> Vec<(String, i64)> {
    rows(
        conn,
        "SELECT id, max(1, (SELECT count(*) FROM shows WHERE shows.artist_id = artists.id AND status = 'upcoming')
                 + (followers - followers % 1000000) / 1000000 + (popularity - popularity % 10) / 10) AS score
         FROM artists ORDER BY score DESC, id",
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// A show of status upcoming: its id, its date, the days since 1970 by SQLite's calendar, and 10 +
/// votes + 2 for each setlist.
struct Candidate {
    id: String,
    date: String,
    day: i64,
    factor: i64,
}

fn candidates(conn: &Connection) -> Vec<Candidate> {
    rows(
        conn,
        "WITH v AS (SELECT show_id, count(*) AS n FROM votes JOIN setlists ON setlists.id = setlist_id GROUP BY 1),
              s AS (SELECT show_id, count(*) AS n FROM setlists GROUP BY 1)
         SELECT id, date, CAST(round(julianday(date) - julianday('1970-01-01')) AS INTEGER),
                10 + coalesce(v.n, 0) + 2 * coalesce(s.n, 0)
         FROM shows LEFT JOIN v ON v.show_id = id LEFT JOIN s ON s.show_id = id WHERE status = 'upcoming'",
        |row| Ok(Candidate { id: row.get(0)?, date: row.get(1)?, day: row.get(2)?, factor: row.get(3)? }),
    )
}

/// A line of the upcoming shows: the score in 300ths, the date, the id.
type ShowLine = (i64, String, String);

/// All upcoming shows with a score other than 0 on a day, sorted.
fn shows(candidates: &[Candidate], day: i64) -> Vec<ShowLine> {
    let mut all: Vec<ShowLine> = Vec::new();
    for show in candidates {
        let left = match show.day - day {
            ..0 => 30,
            days @ 0..30 => 30 - days,
            _ => 0,
        };
        if left * show.factor > 0 {
            all.push((left * show.factor, show.date.clone(), show.id.clone()));
        }
    }
    all.sort_by(|one, two| two.0.cmp(&one.0).then_with(|| (&one.1, &one.2).cmp(&(&two.1, &two.2))));
    all
}

/// A number of 300ths as a decimal of four digits, by long division, rounded half up.
fn decimals(in_300ths: i64) -> String {
    let (mut whole, mut rest) = (in_300ths / 300, in_300ths % 300);
    let mut digits = [0; 4];
    for digit in &mut digits {
        rest *= 10;
        *digit = rest / 300;
        rest %= 300;
    }
    if 2 * rest >= 300 {
        for digit in digits.iter_mut().rev() {
            *digit += 1;
            if *digit < 10 {
                break;
            }
            *digit = 0;
        }
        whole += i64::from(digits == [0; 4]);
    }
    format!("{whole}.{}", digits.map(|digit| digit.to_string()).concat())
}

#[test]
fn decimals_have_known_values() {
    for (in_300ths, wanted) in [
        (1, "0.0033"),
        (2, "0.0067"),
        (300, "1.0000"),
        (299, "0.9967"),
        (7, "0.0233"),
        (30 * 13, "1.3000"),
        (1_000_001, "3333.3367"),
    ] {
        assert_eq!(decimals(in_300ths), wanted);
    }
}

/// The times of the votes that count for each show.
fn votes(conn: &Connection) -> BTreeMap<String, Vec<i64>> {
    let mut all: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let text = "SELECT show_id, created_at FROM votes JOIN setlists ON setlists.id = setlist_id WHERE show_id IS NOT NULL";
    for (show, created_at) in rows(conn, text, |row| Ok((row.get(0)?, row.get(1)?))) {
        all.entry(show).or_default().push(created_at);
    }
    all
}

/// The sums of votes' weights by epoch, in units of 2^-30.
fn by_epoch(half_life: HalfLife, votes: &[i64]) -> BTreeMap<i64, i64> {
    let mut sums = BTreeMap::new();
    for created_at in votes {
        *sums.entry(created_at.div_euclid(half_life.as_seconds())).or_default() +=
            half_life.weight(*created_at);
    }
    sums
}

/// Compares two sums of total x 2^epoch: from the highest epoch down, until the rest cannot change
/// the result. Totals are below 2^44.
fn compare(one: &BTreeMap<i64, i64>, two: &BTreeMap<i64, i64>) -> Ordering {
    let mut differences: BTreeMap<i64, i128> = BTreeMap::new();
    for (sums, sign) in [(one, 1), (two, -1)] {
        for (epoch, total) in sums {
            assert!(total.unsigned_abs() < 1 << 44);
            *differences.entry(*epoch).or_default() += sign * i128::from(*total);
        }
    }
    let (mut sum, mut last) = (0_i128, i64::MAX);
    for (epoch, difference) in differences.into_iter().rev() {
        // The rest is below 2^46 in units of this epoch.
        if sum != 0 && (last.abs_diff(epoch) >= 60 || sum.unsigned_abs() >= 1 << 60) {
            break;
        }
        let up = if sum == 0 { 0 } else { last.abs_diff(epoch) };
        sum = (sum << up) + difference;
        last = epoch;
    }
    sum.cmp(&0)
}

/// Every show with votes, the highest score first, by exact comparison.
fn trending(half_life: HalfLife, votes: &BTreeMap<String, Vec<i64>>) -> Vec<String> {
    let mut all: Vec<(&String, BTreeMap<i64, i64>)> =
        votes.iter().map(|(show, votes)| (show, by_epoch(half_life, votes))).collect();
    all.sort_by(|(one, first), (two, second)| compare(second, first).then_with(|| one.cmp(two)));
    all.into_iter().map(|(show, _)| show.clone()).collect()
}

/// The formula itself: the sum of 2^((created_at - at) / H).
fn decayed(half_life: HalfLife, votes: &[i64], at: i64) -> f64 {
    votes
        .iter()
        .map(|created_at| 2_f64.powf((created_at - at) as f64 / half_life.as_seconds() as f64))
        .sum()
}

#[test]
fn compare_of_sums_has_known_results() {
    let sum = |totals: &[(i64, i64)]| totals.iter().copied().collect::<BTreeMap<i64, i64>>();
    for (one, two, wanted) in [
        (&[(0, 2)][..], &[(1, 1)][..], Ordering::Equal),
        (&[(0, 2), (-900, 1)], &[(1, 1)], Ordering::Greater),
        (&[(0, 1 << 40)], &[(39, 1)], Ordering::Greater),
        (&[(0, 1 << 40)], &[(41, 1)], Ordering::Less),
        (&[(-300_000, 5)], &[], Ordering::Greater),
        (&[(10, 1)], &[(9, 1), (8, 1), (7, 1), (6, 2)], Ordering::Equal),
        (&[(10, 1)], &[(9, 1), (8, 1), (7, 1), (6, 1), (5, 3)], Ordering::Less),
    ] {
        assert_eq!(compare(&sum(one), &sum(two)), wanted, "{one:?} {two:?}");
        assert_eq!(compare(&sum(two), &sum(one)), wanted.reverse());
    }
}

// The comparisons with the crate.

/// A memory store with all rows of the database, and its leaderboards.
struct Memory {
    store: MemoryStore,
    artists: MemoryLeaderboard<String>,
    trending: Vec<MemoryLeaderboard<String, Decayed>>,
}

impl Memory {
    fn of(conn: &Connection) -> Self {
        let store = MemoryStore::new(&C::SCHEMA);
        let mut batch = Batch::new();
        let optional = |row: &rusqlite::Row<'_>, at: usize| row.get::<_, Option<String>>(at);
        for (id, followers, popularity) in
            rows(conn, "SELECT id, followers, popularity FROM artists", |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
            })
        {
            batch.insert(&Artist::new(id.as_str(), followers, popularity));
        }
        for (id, artist, date, status) in
            rows(conn, "SELECT id, artist_id, date, status FROM shows", |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    optional(row, 1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, String>(3)?,
                ))
            })
        {
            let (date, status) = (date.parse().unwrap(), status.parse::<Status>().unwrap());
            batch.insert(&Show::new(id.as_str(), artist.as_deref(), date, status));
        }
        for (id, show) in rows(conn, "SELECT id, show_id FROM setlists", |row| {
            Ok((row.get::<_, String>(0)?, optional(row, 1)?))
        }) {
            batch.insert(&Setlist::new(id.as_str(), show.as_deref()));
        }
        for (setlist, user, kind, created_at) in
            rows(conn, "SELECT setlist_id, user_id, kind, created_at FROM votes", |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get(3)?,
                ))
            })
        {
            let vote =
                Vote::stored(Some(setlist.as_str()), Some(user.as_str()), kind == "up", created_at);
            batch.insert(&vote.decaying::<HalfLives>());
        }
        store.apply(&mut batch).unwrap();
        let mut artists = MemoryLeaderboard::new(C::ARTISTS);
        artists.rebuild(&store).unwrap();
        let ranked = C::TRENDS.iter().map(|trend| {
            let mut ranking = MemoryLeaderboard::new(trend.leaderboard);
            ranking.rebuild(&store).unwrap();
            ranking
        });
        let trending = ranked.collect();
        Self { store, artists, trending }
    }
}

/// The lines that a command prints.
fn printed(site: &Site, words: &str) -> Vec<String> {
    site.run(words).exits(0).out.lines().map(str::to_owned).collect()
}

fn assert_artists(site: &Site, conn: &Connection, memory: &Memory, day: Date) {
    let wanted = artists(conn);
    let lines = |lines: Vec<Ranked<String, i64>>| -> Vec<(String, i64)> {
        let ranks: Vec<u64> = lines.iter().map(|line| line.rank).collect();
        assert!(ranks.iter().copied().eq(1..=lines.len() as u64));
        lines.into_iter().map(|line| (line.key, line.score)).collect()
    };
    let mut store = SqliteStore::new(conn, &C::SCHEMA);
    assert_eq!(lines(store.top(C::ARTISTS, usize::MAX).unwrap()), wanted);
    assert_eq!(lines(memory.artists.top(usize::MAX).unwrap()), wanted);
    for (rank, (id, score)) in (1..).zip(&wanted) {
        let (found, other) =
            (store.rank(C::ARTISTS, id).unwrap(), memory.artists.rank(id).unwrap());
        assert_eq!((found.rank, found.score), (rank, Some(*score)));
        assert_eq!(other, found);
    }
    let text: Vec<String> =
        (1..).zip(&wanted).map(|(rank, (id, score))| format!("{rank}\t{id}\t{score}")).collect();
    assert_eq!(printed(site, &format!("top artists --at {day} --limit 1000000")), text);
    assert_eq!(printed(site, &format!("top artists --at {day}")), text[..text.len().min(10)]);
    for line in [0, text.len() / 2, text.len() - 1] {
        assert_eq!(
            printed(site, &format!("rank artists {} --at {day}", wanted[line].0)),
            [text[line].as_str()]
        );
    }
    site.run(&format!("rank artists nobody --at {day}")).fails(&["nobody"]);
}

fn assert_shows(
    site: &Site,
    conn: &Connection,
    memory: &Memory,
    candidates: &[Candidate],
    day: Date,
    random: &mut Random,
    prints: bool,
) -> usize {
    let wanted = shows(candidates, day.days().into());
    let lines = |lines: Vec<ShowStanding<String>>| -> Vec<(u64, String, ShowLine)> {
        let line = |line: ShowStanding<String>| {
            let in_300ths = i64::try_from(line.score.in_300ths()).unwrap();
            (line.rank, line.score.to_string(), (in_300ths, line.date.to_string(), line.show))
        };
        lines.into_iter().map(line).collect()
    };
    let wanted: Vec<(u64, String, ShowLine)> =
        (1..).zip(wanted).map(|(rank, line)| (rank, decimals(line.0), line)).collect();
    let (mut store, mut other) = (SqliteStore::new(conn, &C::SCHEMA), &memory.store);
    assert!(lines(C::top_shows(&mut store, day, usize::MAX).unwrap()) == wanted, "{day}");
    assert!(
        lines(C::top_shows(&mut other, day, usize::MAX).unwrap()) == wanted,
        "{day}, in memory"
    );
    for limit in if prints { vec![0, 1, 10] } else { vec![7] } {
        assert_eq!(
            lines(C::top_shows(&mut store, day, limit).unwrap()),
            wanted[..limit.min(wanted.len())],
            "{day}"
        );
    }
    for _ in 0..if prints { 3 } else { 1 } {
        if let Some(line) = (!wanted.is_empty()).then(|| &wanted[random.below(wanted.len())]) {
            let ranks = [
                C::rank_of_show(&mut store, day, &line.2.2),
                C::rank_of_show(&mut other, day, &line.2.2),
            ];
            for found in ranks {
                assert_eq!(lines(vec![found.unwrap().unwrap()]), std::slice::from_ref(line));
            }
        }
    }
    // A show that is upcoming but too far away, or an id that does not exist.
    let listed: BTreeSet<&String> = wanted.iter().map(|(.., line)| &line.2).collect();
    let unlisted = candidates
        .iter()
        .find(|show| !listed.contains(&show.id))
        .map_or("nothing", |show| &show.id);
    assert_eq!(C::rank_of_show(&mut store, day, unlisted).unwrap(), None);
    if prints {
        let text: Vec<String> = wanted
            .iter()
            .map(|(rank, score, line)| format!("{rank}\t{}\t{score}", line.2))
            .collect();
        assert_eq!(printed(site, &format!("top shows --at {day} --limit 1000000")), text, "{day}");
        assert_eq!(
            printed(site, &format!("top shows --at {day}")),
            text[..text.len().min(10)],
            "{day}"
        );
        if let Some(line) = text.last() {
            let id = &wanted.last().unwrap().2.2;
            assert_eq!(printed(site, &format!("rank shows {id} --at {day}")), [line.as_str()]);
        }
        site.run(&format!("rank shows {unlisted} --at {day}")).fails(&[unlisted]);
    }
    wanted.len()
}

fn assert_trending(site: &Site, conn: &Connection, memory: &Memory, days: &[Date]) {
    let votes = votes(conn);
    let mut store = SqliteStore::new(conn, &C::SCHEMA);
    for (trend, ranking) in C::TRENDS.iter().zip(&memory.trending) {
        let half_life = trend.half_life;
        let wanted = trending(half_life, &votes);
        let found = store.top(trend.leaderboard, usize::MAX).unwrap();
        assert!(found.iter().map(|line| &line.key).eq(&wanted), "{half_life}");
        assert!(found.iter().map(|line| line.rank).eq(1..=wanted.len() as u64));
        assert!(ranking.top(usize::MAX).unwrap() == found, "{half_life}: in memory");
        // By the formula alone, without weights of 30 bits: each value is at least the next, up to
        // rounding.
        for pair in found.windows(2) {
            let latest = *votes[&pair[0].key].iter().max().unwrap();
            let [more, less] =
                [&pair[0], &pair[1]].map(|line| decayed(half_life, &votes[&line.key], latest));
            assert!(more >= less * (1.0 - 3e-9), "{half_life}: {more} {less}: {pair:?}");
        }
        let text = half_life.to_string();
        for day in days {
            let lines = printed(
                site,
                &format!("top trending --at {day} --limit 1000000 --half-life {text}"),
            );
            assert_eq!(lines.len(), wanted.len());
            let mut above = 0;
            for (rank, (line, printed)) in (1..).zip(found.iter().zip(&lines)) {
                let value = decayed(half_life, &votes[&line.key], day.last_second());
                let thousandths = line.score.at(half_life, day.last_second(), 1_000);
                let fields: Vec<&str> = printed.split('\t').collect();
                assert_eq!(fields[..2], [rank.to_string().as_str(), &line.key], "{printed}");
                if value < 1e12 {
                    let found = thousandths.unwrap() as f64 / 1_000.0;
                    assert!(
                        (found - value).abs() <= 0.000_5 + value * 2e-9 + 1e-9,
                        "{half_life} {day}: {found} {value}"
                    );
                    let (whole, rest) = fields[2].split_once('.').unwrap();
                    assert_eq!(rest.len(), 3, "{printed}");
                    assert_eq!(
                        format!("{whole}{rest}").parse::<i128>().unwrap(),
                        thousandths.unwrap(),
                        "{printed}"
                    );
                    above += usize::from(value >= 0.001);
                } else if let Some(thousandths) = thousandths {
                    let found = thousandths as f64 / 1_000.0;
                    assert!(
                        (found / value - 1.0).abs() < 1e-6,
                        "{half_life} {day}: {found} {value}"
                    );
                } else {
                    assert!(value > 1e35, "{half_life} {day}: {value}");
                }
            }
            println!("{half_life} at {day}: {above} of {} from 0.001 to 1e12", lines.len());
        }
        let default = printed(site, &format!("top trending --at {}", days[0]));
        if text == "7d" {
            assert_eq!(
                default,
                printed(site, &format!("top trending --at {} --half-life 7d --limit 10", days[0]))
            );
        }
    }
}

/// Compares shows ahead of every artist on each of these days.
fn assert_shows_ahead(conn: &Connection, memory: &Memory, days: &[Date]) {
    let ids: Vec<String> = rows(conn, "SELECT id FROM artists", |row| row.get(0));
    let mut store = SqliteStore::new(conn, &C::SCHEMA);
    let mut recount = conn
        .prepare("SELECT artist_id, count(*) FROM shows WHERE date >= ?1 AND artist_id IS NOT NULL GROUP BY 1")
        .unwrap();
    let mut all = 0;
    for day in days {
        let counted =
            recount.query_map([day.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let counted: BTreeMap<String, i64> = counted.collect::<Result<_, _>>().unwrap();
        for id in &ids {
            let wanted = counted.get(id).copied().unwrap_or(0);
            assert_eq!(C::shows_ahead(&mut store, id, *day).unwrap(), wanted, "{id} {day}");
            assert_eq!(
                C::shows_ahead(&memory.store, id, *day).unwrap(),
                wanted,
                "{id} {day}, in memory"
            );
            all += wanted;
        }
    }
    println!("{} artists on {} days: {all} shows ahead", ids.len(), days.len());
    assert!(all > 0);
}

#[test]
fn every_list_equals_a_computation_from_the_rows_on_prefixes_of_a_long_history() {
    let site = Site::new();
    let random = &mut Random(7);
    let (events, ends) = events(&site);
    for (share, end) in SHARES.into_iter().zip(ends) {
        let prefix = &events[..end];
        site.write("formulas.jsonl", prefix);
        let started = now();
        site.run("replay formulas.jsonl").exits(0);
        println!("{share} %: {} events, replayed after {:.1?}", prefix.len(), started.elapsed());
        let conn = site.open();
        let memory = Memory::of(&conn);
        let last = serde_json::from_str::<Value>(prefix.last().unwrap()).unwrap()["at"]
            .as_str()
            .unwrap()
            .to_owned();
        let last: Date = last.parse().unwrap();
        let span = |query: &str| -> i32 {
            let text: String = conn.query_row(query, (), |row| row.get(0)).unwrap();
            text.parse::<Date>().unwrap().days()
        };
        let (first, end) =
            (span("SELECT min(date) FROM shows") - 90, span("SELECT max(date) FROM shows") + 40);
        let some_day = |random: &mut Random| {
            Date::from_days(
                first + i32::try_from(random.below(usize::try_from(end - first).unwrap())).unwrap(),
            )
            .unwrap()
        };

        assert_artists(&site, &conn, &memory, last);
        println!("  artists after {:.1?}", started.elapsed());

        let candidates = candidates(&conn);
        let overdue = candidates.iter().filter(|show| show.day < last.days().into()).count();
        let mut days =
            vec![last, last.plus(1).unwrap(), last.plus(-1).unwrap(), Date::MIN, Date::MAX];
        days.extend((0..6).map(|_| some_day(random)));
        days.extend((2..6).map(|days| last.plus(10 * days).unwrap()));
        let mut most = 0;
        for (number, day) in days.iter().enumerate() {
            most = most.max(assert_shows(
                &site,
                &conn,
                &memory,
                &candidates,
                *day,
                random,
                number < 5,
            ));
        }
        println!(
            "  shows after {:.1?}: {} upcoming, {overdue} overdue, at most {most} listed",
            started.elapsed(),
            candidates.len()
        );
        assert!(overdue > 10 && (most > overdue || share == 100));

        assert_trending(
            &site,
            &conn,
            &memory,
            &[last, last.plus(-40).unwrap(), last.plus(10).unwrap()],
        );
        println!("  trending after {:.1?}", started.elapsed());

        if share == 100 {
            // Every day of a season and a half, then random days.
            let start = last.plus(-180).unwrap();
            let mut days: Vec<Date> = (0..270).map(|day| start.plus(day).unwrap()).collect();
            days.extend((0..226).map(|_| some_day(random)));
            days.extend([
                Date::MIN,
                Date::MAX,
                Date::from_days(first).unwrap(),
                Date::from_days(end).unwrap(),
            ]);
            assert_eq!(days.len(), 500);
            assert_shows_ahead(&conn, &memory, &days);
        } else {
            let days: Vec<Date> = (0..10).map(|_| some_day(random)).collect();
            assert_shows_ahead(&conn, &memory, &days);
        }
        println!("  shows ahead after {:.1?}", started.elapsed());
    }
}
