//! Generates a season of a concert site as an event file, which is the same for the same seed.

use std::fmt::Write as _;

/// The rows of the site at the end of the season: the size of the system that keepcount replaces.
const ARTISTS: u64 = 1_000;
const SHOWS: u64 = 5_000;
const SETLISTS: u64 = 2_000;
const VOTES: u64 = 10_000;
const USERS: u64 = 2_500;

/// Rows that are inserted in addition and deleted again, the children with their parents.
const DELETED_ARTISTS: u64 = 5;
const DELETED_SHOWS: u64 = 25;
const DELETED_SETLISTS: u64 = 50;
const DELETED_VOTES: u64 = 600;

/// Days of the season. Artists are signed before `SIGNED`. Then shows are announced before
/// `POSTED`, setlists are posted before `VOTED`, and votes are given. On `END`, the additional rows
/// are deleted.
const SIGNED: u64 = 20;
const POSTED: u64 = 100;
const VOTED: u64 = 130;
const END: u64 = 300;
/// The day of the great festival, on which one vote in twenty is given.
const FESTIVAL: u64 = 230;

/// Returns the season's events, one JSON object a line, in the order of their days.
pub fn make(seed: u64) -> Vec<u8> {
    let mut season = Season { random: Random(seed), events: Vec::new() };
    season.artists();
    season.shows();
    season.setlists();
    season.votes();
    season.deletes();
    // A stable sort: on one day, parents stay before their children.
    season.events.sort_by_key(|(day, _)| *day);
    season.events.iter().flat_map(|(_, line)| [line.as_bytes(), b"\n"]).flatten().copied().collect()
}

struct Season {
    random: Random,
    events: Vec<(u64, String)>,
}

impl Season {
    fn put(&mut self, day: u64, op: &str, table: &str, row: &str) {
        let line = format!(r#"{{"at":"{}","op":"{op}","table":"{table}","row":{row}}}"#, date(day));
        self.events.push((day, line));
    }

    fn artists(&mut self) {
        for artist in 0..ARTISTS + DELETED_ARTISTS {
            // The first artists are famous. A thousand more followers never complete another
            // million.
            let followers = 40 / (artist + 1) * 1_000_000 + self.random.below(999_000);
            let popularity = self.random.below(101);
            let row = |followers| {
                format!(
                    r#"{{"id":"ar{artist}","name":"Artist {artist}","followers":{followers},"popularity":{popularity}}}"#
                )
            };
            let signed = self.random.below(SIGNED);
            self.put(signed, "insert", "artists", &row(followers));
            if self.random.one_in(10) {
                // An update that changes no total.
                let day = self.random.between(SIGNED, END);
                self.put(day, "update", "artists", &row(followers + 1_000));
            }
        }
    }

    fn shows(&mut self) {
        let famous = Zipf::new(ARTISTS);
        for show in 0..SHOWS + DELETED_SHOWS {
            let mut artist = match show.checked_sub(SHOWS) {
                None => Some(famous.pick(&mut self.random)),
                // Deleted with its artist.
                Some(deleted) if deleted % 2 == 0 => Some(ARTISTS + deleted % DELETED_ARTISTS),
                Some(_) => Some(self.random.below(ARTISTS)),
            };
            if show < SHOWS && self.random.one_in(50) {
                artist = None;
            }
            let announced = self.random.between(SIGNED, POSTED);
            let mut held = announced + self.random.between(20, 240);
            let row = |artist: Option<u64>, held, status: &str| {
                let (artist, date) = (id_or_null("ar", artist), date(held));
                format!(
                    r#"{{"id":"sh{show}","artist_id":{artist},"date":"{date}","status":"{status}"}}"#
                )
            };
            self.put(announced, "insert", "shows", &row(artist, held, "upcoming"));
            if show < SHOWS && self.random.one_in(30) {
                // Another artist plays the show, which may have had none.
                artist = Some(famous.pick(&mut self.random));
                let day = self.random.between(announced, held);
                self.put(day, "update", "shows", &row(artist, held, "upcoming"));
            }
            if self.random.one_in(20) {
                held -= 1;
                self.put(held, "update", "shows", &row(artist, held, "cancelled"));
            } else if held < END {
                self.put(held, "update", "shows", &row(artist, held, "completed"));
            }
        }
    }

    fn setlists(&mut self) {
        for setlist in 0..SETLISTS + DELETED_SETLISTS {
            let deleted = setlist.checked_sub(SETLISTS);
            let mut show = Some(match deleted {
                // Deleted with its show or artist.
                Some(deleted) if deleted % 2 == 0 => SHOWS + deleted % DELETED_SHOWS,
                _ => self.random.below(SHOWS),
            });
            if deleted.is_none() && self.random.one_in(40) {
                show = None;
            }
            let row =
                |show| format!(r#"{{"id":"se{setlist}","show_id":{}}}"#, id_or_null("sh", show));
            let posted = self.random.between(POSTED, VOTED);
            self.put(posted, "insert", "setlists", &row(show));
            if deleted.is_none() && self.random.one_in(25) {
                let to = (!self.random.one_in(10)).then(|| self.random.below(SHOWS));
                let day = self.random.between(posted, END);
                self.put(day, "update", "setlists", &row(to));
            }
        }
    }

    fn votes(&mut self) {
        let (popular, busy) = (Zipf::new(SETLISTS), Zipf::new(USERS));
        for vote in 0..VOTES + DELETED_VOTES {
            let deleted = vote.checked_sub(VOTES);
            let mut setlist = match deleted {
                // Deleted with its setlist.
                Some(deleted) if deleted % 2 == 0 => SETLISTS + deleted % DELETED_SETLISTS,
                _ => popular.pick(&mut self.random),
            };
            let (user, mut up) = (busy.pick(&mut self.random), !self.random.one_in(5));
            let day = if self.random.one_in(20) {
                FESTIVAL
            } else {
                self.random.between(VOTED, END - 10)
            };
            let row = |setlist, up| {
                let (kind, at) =
                    (if up { "up" } else { "down" }, 1_735_689_600 + day * 86_400 + vote % 86_400);
                format!(
                    r#"{{"id":"vo{vote}","setlist_id":"se{setlist}","user_id":"us{user}","kind":"{kind}","created_at":{at}}}"#
                )
            };
            self.put(day, "insert", "votes", &row(setlist, up));
            if self.random.one_in(15) {
                up = !up;
                self.put(day + 1, "update", "votes", &row(setlist, up));
            }
            if deleted.is_none() && self.random.one_in(30) {
                setlist = popular.pick(&mut self.random);
                self.put(day + 2, "update", "votes", &row(setlist, up));
            }
            if deleted.is_some_and(|deleted| deleted % 2 == 1) {
                // The user withdraws the vote.
                self.put(day + 10, "delete", "votes", &format!(r#"{{"id":"vo{vote}"}}"#));
            }
        }
    }

    /// Deletes setlists, shows and artists that have children, in this order. Each step deletes the
    /// children that the step before left.
    fn deletes(&mut self) {
        for setlist in (SETLISTS..SETLISTS + DELETED_SETLISTS).filter(|setlist| setlist % 4 != 0) {
            self.put(END, "delete", "setlists", &format!(r#"{{"id":"se{setlist}"}}"#));
        }
        for show in (SHOWS..SHOWS + DELETED_SHOWS).filter(|show| show % 4 != 0) {
            self.put(END, "delete", "shows", &format!(r#"{{"id":"sh{show}"}}"#));
        }
        for artist in ARTISTS..ARTISTS + DELETED_ARTISTS {
            self.put(END, "delete", "artists", &format!(r#"{{"id":"ar{artist}"}}"#));
        }
    }
}

fn id_or_null(prefix: &str, number: Option<u64>) -> String {
    number.map_or_else(|| "null".to_owned(), |number| format!("\"{prefix}{number}\""))
}

/// Returns the day of 2025 with this number, from 0.
fn date(day: u64) -> String {
    let mut day = day;
    let mut text = String::from("2025-");
    for (month, days) in (1..).zip([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]) {
        if day < days {
            let _ = write!(text, "{month:02}-{:02}", day + 1); // writing to a String does not fail
            break;
        }
        day -= days;
    }
    text
}

/// Splitmix64: small, and the same on every platform.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// Numbers from 0, of which the n-th is picked about 1/n as often as the first.
struct Zipf {
    sums: Vec<u64>,
}

impl Zipf {
    fn new(numbers: u64) -> Self {
        let mut sum = 0;
        let mut next = |rank: u64| {
            sum += 1_000_000 / (rank + 1);
            sum
        };
        Self { sums: (0..numbers).map(&mut next).collect() }
    }

    fn pick(&self, random: &mut Random) -> u64 {
        let at = random.below(self.sums.last().copied().unwrap_or(1));
        self.sums.partition_point(|sum| *sum <= at) as u64
    }
}
