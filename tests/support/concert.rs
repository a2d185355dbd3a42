//! What the end-to-end tests of the concert example share: the binary, built once in a process; a
//! temporary site to run it in; event streams; and three definitions of the correct result that are
//! independent of the crate: a model in maps, a recount in plain SQL (of decayed votes, in plain
//! Rust over the rows), and the report that a verify must print.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use keepcount::{Date, HalfLife};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use super::random::Random;

/// A limit that no command of these tests reaches, on any machine. The demonstration, the longest,
/// takes half a minute beside other tests.
pub const LONGEST: Duration = Duration::from_secs(5 * 60);
const LONGEST_BUILD: Duration = Duration::from_secs(15 * 60);

#[allow(clippy::disallowed_methods, reason = "a test that waits for processes needs the clock")]
pub fn now() -> Instant {
    Instant::now()
}

// The binary.

/// The example's binary, in the profile of the tests.
pub fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

/// Builds the example, because `cargo test --test ..` builds none. Cargo holds no lock while tests
/// run, and its own lock serializes test processes that build at once. A build that is up to date
/// takes a fraction of a second.
fn build() -> PathBuf {
    let release = !cfg!(debug_assertions);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--message-format=json-render-diagnostics",
        "--example",
        "concert",
    ]);
    cargo.args(release.then_some("--release"));
    cargo.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo.arg("--target-dir").arg(target_dir());
    let ran = finish(start(&mut cargo), LONGEST_BUILD);
    assert_eq!(ran.code, Some(0), "the build of the example failed: {}", ran.err);
    let built =
        ran.out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(
            |message| {
                let is_example = message["target"]["name"] == "concert"
                    && message["target"]["kind"] == json!(["example"]);
                message["executable"].as_str().filter(|_| is_example).map(PathBuf::from)
            },
        );
    built.expect("cargo reports the path of the example")
}

/// The target directory of the running test (`TARGET/debug/deps/NAME`), so that nothing is built
/// twice.
fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    match exe.parent().filter(|dir| dir.ends_with("deps")).and_then(|deps| deps.ancestors().nth(2))
    {
        Some(dir) => dir.to_owned(),
        None => std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from),
    }
}

// Processes and sites.

/// How a process ended, and its output.
#[derive(Debug)]
pub struct Ran {
    /// None if it was killed.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Fails unless the process ended with this code. Returns the output for further checks.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Fails unless the process failed: exit code 1, nothing on stdout, and on stderr one message
    /// that contains all of `naming`.
    #[track_caller]
    pub fn fails(self, naming: &[&str]) -> Self {
        let ran = self.exits(1);
        assert_eq!(ran.out, "", "{ran:#?}");
        assert!(!ran.err.is_empty() && !ran.err.contains("panicked"), "{ran:#?}");
        for name in naming {
            assert!(ran.err.contains(name), "{name:?} is not named: {ran:#?}");
        }
        ran
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "one JSON object on one line: {self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The token of a stopped run, from its JSON or from its last line.
    #[track_caller]
    pub fn token(&self) -> String {
        let last = self.out.lines().last().unwrap_or_default();
        let token = match last.strip_prefix("resume ") {
            Some(token) => token.to_owned(),
            None => self.json()["resume"]
                .as_str()
                .unwrap_or_else(|| panic!("no token: {self:#?}"))
                .to_owned(),
        };
        let fits = |char: char| char.is_ascii_digit() || char.is_ascii_lowercase();
        assert!(
            !token.is_empty() && token.chars().all(fits),
            "not a string of [0-9a-z]: {token:?}"
        );
        token
    }
}

pub fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A binary that this process has just copied can be busy: a child that another test's thread
    // forked during the copy has not reached its own exec yet.
    for _ in 0..200 {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                thread::sleep(Duration::from_millis(10));
            }
            started => return started.unwrap(),
        }
    }
    panic!("the binary was busy for two seconds: {command:?}");
}

/// Waits until a process ends, at most `most`.
#[track_caller]
pub fn finish(mut child: Child, most: Duration) -> Ran {
    let (out, err) =
        (read_all(child.stdout.take().unwrap()), read_all(child.stderr.take().unwrap()));
    let until = now() + most;
    let mut receive =
        |from: Receiver<Vec<u8>>| match from.recv_timeout(until.saturating_duration_since(now())) {
            Ok(bytes) => String::from_utf8(bytes).unwrap(),
            Err(error) => {
                child.kill().unwrap();
                panic!("the process did not end within {most:?}: {error}");
            }
        };
    let (out, err) = (receive(out), receive(err));
    Ran { code: child.wait().unwrap().code(), out, err }
}

fn read_all(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        // The receiver is gone if the test has failed meanwhile.
        let _ = send.send(bytes);
    });
    receive
}

/// A temporary directory with a database `site.db`, in which commands run.
pub struct Site {
    dir: TempDir,
}

impl Site {
    pub fn new() -> Self {
        Self { dir: crate::support::temp_dir() }
    }

    /// A site with these events replayed, from `base.jsonl`.
    #[track_caller]
    pub fn with(lines: &[String]) -> Self {
        let site = Self::new();
        site.write("base.jsonl", lines);
        site.run("replay base.jsonl").exits(0);
        site
    }

    /// Another site with a copy of this one's database, which no connection may have open.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        assert!(!self.path("site.db-wal").exists(), "the database is still open");
        fs::copy(self.path("site.db"), copy.path("site.db")).unwrap();
        copy
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, lines: &[String]) {
        fs::write(self.path(name), text(lines)).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir()).env("TMPDIR", self.dir());
        command
    }

    /// Runs a command, given as words, on `site.db`.
    #[track_caller]
    pub fn run(&self, words: &str) -> Ran {
        finish(self.spawn(words), LONGEST)
    }

    #[track_caller]
    pub fn run_args(&self, args: &[&str]) -> Ran {
        finish(start(&mut self.command(args)), LONGEST)
    }

    pub fn spawn(&self, words: &str) -> Child {
        let args: Vec<&str> = words.split_whitespace().chain(["--db", "site.db"]).collect();
        start(&mut self.command(&args))
    }

    /// A connection without hooks and with foreign keys off.
    pub fn open(&self) -> Connection {
        let conn = Connection::open(self.path("site.db")).unwrap();
        conn.busy_timeout(Duration::from_secs(20)).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF").unwrap();
        conn
    }

    #[track_caller]
    pub fn sql(&self, statements: &str) {
        self.open()
            .execute_batch(statements)
            .unwrap_or_else(|error| panic!("{error}: {statements}"));
    }

    /// The names in the directory, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every row of every table, as text.
    pub fn dump(&self) -> Vec<String> {
        dump(&self.open())
    }

    /// Fails unless the totals equal a recount of the rows that is independent of the crate, and a
    /// verify is clean.
    #[track_caller]
    pub fn assert_exact(&self) {
        let conn = self.open();
        assert_same(&non_zero(&stored(&conn)), &recount(&conn));
        drop(conn);
        let ran = self.run("verify --json").exits(0);
        assert_eq!(ran.json()["complete"], true, "{ran:?}");
    }
}

pub fn dump(conn: &Connection) -> Vec<String> {
    let tables = [
        "artists",
        "shows",
        "setlists",
        "votes",
        "replay_prefix",
        "keepcount_offsets",
        "keepcount_counters",
    ];
    let tables = tables
        .map(str::to_owned)
        .into_iter()
        .chain(total_tables())
        .chain(LEADERBOARD_TABLES.into_iter().map(str::to_owned));
    let mut rows = Vec::new();
    for table in tables {
        let mut all = conn.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let width = all.column_count();
        let mut found = all.query(()).unwrap();
        while let Some(row) = found.next().unwrap() {
            let cells: Vec<String> =
                (0..width).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect();
            rows.push(format!("{table}: {}", cells.join(", ")));
        }
    }
    rows
}

/// The tables of totals, in the order of their counters' names.
pub fn total_tables() -> impl Iterator<Item = String> {
    COUNTERS.iter().map(|counter| counter.replace('.', "_"))
}

pub const LEADERBOARD_TABLES: [&str; 4] =
    ["artist_board", "show_trending_6h", "show_trending_1d", "show_trending_7d"];

/// The number that a query returns.
pub fn number(conn: &Connection, query: &str) -> usize {
    let number: i64 = conn.query_row(query, (), |row| row.get(0)).unwrap();
    usize::try_from(number).unwrap()
}

pub fn text(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

// Events.

pub fn artist(id: &str) -> Value {
    json!({"op": "insert", "table": "artists", "row": {"id": id, "name": "n", "followers": 0, "popularity": 0}})
}

pub fn show(id: &str, artist: Option<&str>, status: &str) -> Value {
    let row = json!({"id": id, "artist_id": artist, "date": "2025-06-01", "status": status});
    json!({"op": "insert", "table": "shows", "row": row})
}

pub fn setlist(id: &str, show: Option<&str>) -> Value {
    json!({"op": "insert", "table": "setlists", "row": {"id": id, "show_id": show}})
}

pub fn vote(id: &str, setlist: &str, user: &str, kind: &str) -> Value {
    let row = json!({"id": id, "setlist_id": setlist, "user_id": user, "kind": kind, "created_at": NEW_YEAR});
    json!({"op": "insert", "table": "votes", "row": row})
}

/// The event with the day on which it happened.
pub fn on_day(mut event: Value, day: &str) -> Value {
    event["at"] = json!(day);
    event
}

/// The day of a time in seconds since 1970.
pub fn day_of(seconds: i64) -> Date {
    Date::from_days(i32::try_from(seconds.div_euclid(86_400)).unwrap()).unwrap()
}

pub fn delete(table: &str, id: &str) -> Value {
    json!({"op": "delete", "table": table, "row": {"id": id}})
}

/// An insert turned into an update with the same row.
pub fn update(mut insert: Value) -> Value {
    insert["op"] = json!("update");
    insert
}

/// The event with one member of its row changed, or removed.
pub fn with_member(mut event: Value, member: &str, value: Option<Value>) -> Value {
    let row = event["row"].as_object_mut().unwrap();
    match value {
        Some(value) => row.insert(member.to_owned(), value),
        None => row.remove(member),
    };
    event
}

pub fn lines(events: &[Value]) -> Vec<String> {
    events.iter().map(Value::to_string).collect()
}

/// The rows that some events must leave: maps, and a second implementation of the event format's
/// rules.
#[derive(Debug, Default, Clone)]
pub struct Model {
    /// Followers and popularity, by id.
    pub artists: BTreeMap<String, (i64, i64)>,
    /// Artist, date, and whether it is upcoming, by id.
    pub shows: BTreeMap<String, (Option<String>, String, bool)>,
    pub setlists: BTreeMap<String, Option<String>>,
    /// Setlist, user, whether it is an upvote, and its time, by id.
    pub votes: BTreeMap<String, (String, String, bool, i64)>,
}

impl Model {
    pub fn of(lines: &[String]) -> Self {
        let mut model = Self::default();
        model.apply_lines(lines);
        model
    }

    pub fn apply_lines(&mut self, lines: &[String]) {
        for line in lines.iter().filter(|line| !line.trim().is_empty()) {
            self.apply(&serde_json::from_str(line).unwrap());
        }
    }

    pub fn apply(&mut self, event: &Value) {
        let row = &event["row"];
        let text = |name: &str| row[name].as_str().map(str::to_owned);
        let id = text("id").unwrap();
        match (event["table"].as_str().unwrap(), event["op"] == "delete") {
            ("artists", false) => {
                self.artists.insert(
                    id,
                    (row["followers"].as_i64().unwrap(), row["popularity"].as_i64().unwrap()),
                );
            }
            ("shows", false) => {
                let show = (text("artist_id"), text("date").unwrap(), row["status"] == "upcoming");
                self.shows.insert(id, show);
            }
            ("setlists", false) => drop(self.setlists.insert(id, text("show_id"))),
            ("votes", false) => {
                let (setlist, user) = (text("setlist_id").unwrap(), text("user_id").unwrap());
                let vote =
                    (setlist, user, row["kind"] == "up", row["created_at"].as_i64().unwrap());
                self.votes.insert(id, vote);
            }
            ("artists", true) => {
                self.artists.remove(&id);
                self.shows.retain(|_, (artist, ..)| artist.as_ref() != Some(&id));
            }
            ("shows", true) => drop(self.shows.remove(&id)),
            ("setlists", true) => drop(self.setlists.remove(&id)),
            ("votes", true) => drop(self.votes.remove(&id)),
            other => panic!("{other:?}"),
        }
        if event["op"] == "delete" && event["table"] != "votes" {
            // A row whose parent is gone is deleted too.
            self.setlists
                .retain(|_, show| show.as_ref().is_none_or(|show| self.shows.contains_key(show)));
            self.votes.retain(|_, (setlist, ..)| self.setlists.contains_key(setlist));
        }
    }

    /// The totals other than 0.
    pub fn totals(&self) -> Totals {
        let mut totals: Totals =
            COUNTERS.iter().map(|counter| (*counter, BTreeMap::new())).collect();
        let mut add = |counter: &str, key: Key, amount: i64| {
            *totals.get_mut(counter).unwrap().entry(key).or_default() += amount;
        };
        for (id, (followers, popularity)) in &self.artists {
            add("artist.listed", key(id), 1);
            add("artist.fame", key(id), followers / 1_000_000 + popularity / 10);
        }
        for (id, (artist, date, upcoming)) in &self.shows {
            if *upcoming {
                add("show.upcoming", pair(date, id), 1);
            }
            let Some(artist) = artist else { continue };
            add("artist.shows", key(artist), 1);
            add("artist.upcoming_shows", key(artist), i64::from(*upcoming));
            add("artist.shows_ahead", pair(artist, date), 1);
            add("show.artist", pair(id, artist), 1);
        }
        for (id, show) in &self.setlists {
            let Some(show) = show else { continue };
            add("show.setlists", key(show), 1);
            add("setlist.show", pair(id, show), 1);
        }
        for (setlist, user, up, created_at) in self.votes.values() {
            add("setlist.votes", key(setlist), 1);
            add("setlist.upvotes", key(setlist), i64::from(*up));
            add("setlist.score", key(setlist), if *up { 1 } else { -1 });
            add("user.votes", key(user), 1);
            let show = self.setlists[setlist].as_ref();
            let artist = show.and_then(|show| self.shows[show].0.as_ref());
            for (show, artist) in show.iter().map(|show| (show, artist)) {
                add("show.votes", key(show), 1);
                if let Some(artist) = artist {
                    add("artist.votes", key(artist), 1);
                }
            }
            for (half_life, of_setlist, of_show, of_artist) in TRENDS {
                let (epoch, weight) = epoch_and_weight(half_life, *created_at);
                add(of_setlist, in_epoch(setlist, epoch), weight);
                if let Some(show) = show {
                    add(of_show, in_epoch(show, epoch), weight);
                }
                if let Some(artist) = artist {
                    add(of_artist, in_epoch(artist, epoch), weight);
                }
            }
        }
        non_zero(&totals)
    }

    /// Fails unless the database has exactly the ids of these rows, and their totals.
    #[track_caller]
    pub fn assert_in(&self, conn: &Connection) {
        assert_same(&recount(conn), &self.totals());
        assert_same(&non_zero(&stored(conn)), &self.totals());
        let ids = |table: &str| -> BTreeSet<String> {
            let mut all = conn.prepare(&format!("SELECT id FROM {table}")).unwrap();
            all.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
        };
        assert!(ids("artists").iter().eq(self.artists.keys()), "artists differ");
        assert!(ids("shows").iter().eq(self.shows.keys()), "shows differ");
        assert!(ids("setlists").iter().eq(self.setlists.keys()), "setlists differ");
        assert!(ids("votes").iter().eq(self.votes.keys()), "votes differ");
    }
}

/// Generates valid random events: parents that become null and back, moves, flips, cascades, ids
/// that need escapes.
pub struct Writer {
    pub random: Random,
    pub model: Model,
    /// Distinguishes the ids of several writers.
    prefix: &'static str,
    made: usize,
    pub deletes: bool,
}

impl Writer {
    pub fn new(seed: u64, prefix: &'static str) -> Self {
        Self { random: Random(seed), model: Model::default(), prefix, made: 0, deletes: true }
    }

    pub fn lines(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.event().to_string()).collect()
    }

    fn event(&mut self) -> Value {
        let event = loop {
            if let Some(event) = self.try_event() {
                break event;
            }
        };
        self.model.apply(&event);
        event
    }

    fn new_id(&mut self) -> String {
        const ODD: [&str; 8] = [
            "\t",
            "\n",
            "\\",
            "\"'",
            "\u{e9}\u{10ffff}",
            "\u{1}",
            "%_",
            "a longer id than is kept inline",
        ];
        self.made += 1;
        let odd = if self.random.one_in(5) { ODD[self.random.below(ODD.len())] } else { "" };
        format!("{odd}{}{}", self.prefix, self.made)
    }

    fn any<T>(&mut self, from: &BTreeMap<String, T>) -> Option<String> {
        if from.is_empty() {
            None
        } else {
            from.keys().nth(self.random.skewed_below(from.len())).cloned()
        }
    }

    fn parent(&mut self, from: Option<String>) -> Option<String> {
        from.filter(|_| !self.random.one_in(6))
    }

    fn try_event(&mut self) -> Option<Value> {
        let model = std::mem::take(&mut self.model);
        let event = self.draw_event(&model).map(|event| self.with_random_fields(event, &model));
        self.model = model;
        event
    }

    fn draw_event(&mut self, model: &Model) -> Option<Value> {
        let artists: Vec<&String> = model.artists.keys().collect();
        let any_artist = |random: &mut Random| {
            (!artists.is_empty()).then(|| (*random.pick_skewed(&artists)).clone())
        };
        let status = ["upcoming", "upcoming", "completed", "cancelled"][self.random.below(4)];
        let kind = if self.random.one_in(3) { "down" } else { "up" };
        let user = format!("u{}", self.random.skewed_below(40));
        Some(match self.random.below(100) {
            0..8 => artist(&self.new_id()),
            8..20 => {
                let parent = any_artist(&mut self.random);
                show(&self.new_id(), self.parent(parent).as_deref(), status)
            }
            20..34 => {
                let parent = self.any(&model.shows);
                setlist(&self.new_id(), self.parent(parent).as_deref())
            }
            34..66 => vote(&self.new_id(), &self.any(&model.setlists)?, &user, kind),
            66..68 => update(artist(&any_artist(&mut self.random)?)),
            68..76 => {
                let parent = any_artist(&mut self.random);
                update(show(&self.any(&model.shows)?, self.parent(parent).as_deref(), status))
            }
            76..82 => {
                let parent = self.any(&model.shows);
                update(setlist(&self.any(&model.setlists)?, self.parent(parent).as_deref()))
            }
            82..91 => {
                update(vote(&self.any(&model.votes)?, &self.any(&model.setlists)?, &user, kind))
            }
            _ if !self.deletes => return None,
            91..97 => delete("votes", &self.any(&model.votes)?),
            97 => delete("setlists", &self.any(&model.setlists)?),
            98 => delete("shows", &self.any(&model.shows)?),
            _ => delete("artists", &any_artist(&mut self.random)?),
        })
    }

    /// The event with random followers and popularity, date, or time, and perhaps the day of the
    /// event.
    fn with_random_fields(&mut self, event: Value, model: &Model) -> Value {
        const FOLLOWERS: [i64; 6] = [1_999_999, 0, 999_999, 1_000_000, 40_000_000, i64::MAX];
        const DATES: [&str; 6] =
            ["2025-06-01", "2025-06-02", "2025-07-01", "2024-02-29", "0001-01-01", "9999-12-31"];
        if event["op"] == "delete" {
            return event;
        }
        match event["table"].as_str().unwrap() {
            "artists" => {
                let (followers, popularity) =
                    (*self.random.pick_skewed(&FOLLOWERS), self.random.below(101));
                with_member(
                    with_member(event, "followers", Some(json!(followers))),
                    "popularity",
                    Some(json!(popularity)),
                )
            }
            "shows" => with_member(event, "date", Some(json!(self.random.pick_skewed(&DATES)))),
            "votes" => {
                let old = model.votes.get(event["row"]["id"].as_str().unwrap()).map(|vote| vote.3);
                self.with_random_time(event, old)
            }
            _ => event,
        }
    }

    /// The vote with a random time: in the first weeks of 2025, or before 1970. If the event has a
    /// day, the time is not later than that day's last second.
    fn with_random_time(&mut self, vote: Value, old: Option<i64>) -> Value {
        let within = self.random.below(20 * 86_400);
        let new = match self.random.below(12) {
            0 => -within, // before 1970
            1 => NEW_YEAR + within / 86_400 * 86_400 + 86_399,
            2 => NEW_YEAR + within / 21_600 * 21_600, // an epoch's first second
            _ => NEW_YEAR + within,
        };
        // Most updates leave the time unchanged.
        let created_at = old.filter(|_| !self.random.one_in(3)).unwrap_or(new);
        let vote = with_member(vote, "created_at", Some(json!(created_at)));
        match self.random.below(3) {
            0 => vote,
            later => on_day(vote, &day_of(created_at).plus(later - 1).unwrap().to_string()),
        }
    }
}

/// The first second of 2025.
pub const NEW_YEAR: i64 = 1_735_689_600;

/// The New York Philharmonic's history, if the project's shared data are available; otherwise a
/// synthetic history of the same shape.
pub struct History {
    pub path: PathBuf,
    pub lines: Vec<String>,
    pub is_real: bool,
}

pub fn history(site: &Site) -> History {
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/nyphil/events.jsonl.gz");
    let is_real = real.is_file();
    let path = if is_real { real } else { site.path("events.jsonl.gz") };
    if !is_real {
        fs::write(&path, gzip(&text(&synthetic_history()))).unwrap();
    }
    println!("events: {} ({})", path.display(), if is_real { "real" } else { "synthetic" });
    let reader = BufReader::new(MultiGzDecoder::new(File::open(&path).unwrap()));
    History { lines: reader.lines().collect::<Result<_, _>>().unwrap(), path, is_real }
}

/// Artists with skew. Each show is announced, given its setlist, and completed.
fn synthetic_history() -> Vec<String> {
    const ARTISTS: usize = 80;
    const SHOWS: usize = 2_500;
    let mut random = Random(1842);
    let mut events: Vec<(usize, Value)> =
        (0..ARTISTS).map(|at| (0, artist(&format!("ar{at}")))).collect();
    for at in 0..SHOWS {
        let (day, id, by) =
            (1 + at / 3, format!("sh{at}"), format!("ar{}", random.skewed_below(ARTISTS)));
        events.push((day, show(&id, Some(&by), "upcoming")));
        events.push((day + 30, setlist(&format!("se{at}"), Some(&id))));
        events.push((day + 60, update(show(&id, Some(&by), "completed"))));
    }
    events.sort_by_key(|(day, _)| *day);
    events.iter().map(|(_, event)| event.to_string()).collect()
}

/// Votes for these setlists, few of which get most. Some votes are deleted, some flipped, some
/// moved.
pub fn votes(seed: u64, setlists: &[String], count: usize) -> Vec<String> {
    let mut random = Random(seed);
    let mut lines = Vec::new();
    for at in 0..count {
        let (id, user) =
            (format!("vo{seed}-{at}"), format!("us{}", random.skewed_below(count / 4 + 1)));
        let (to, kind) =
            (random.pick_skewed(setlists), if random.one_in(5) { "down" } else { "up" });
        // The votes are spread over four days, in order.
        let created_at = NEW_YEAR + i64::try_from(at * 4 * 86_400 / count).unwrap();
        let day = day_of(created_at).to_string();
        let vote = |to: &str, kind: &str| {
            self::on_day(
                with_member(
                    self::vote(&id, to, &user, kind),
                    "created_at",
                    Some(json!(created_at)),
                ),
                &day,
            )
        };
        lines.push(vote(to, kind).to_string());
        match random.below(20) {
            0 => lines.push(delete("votes", &id).to_string()),
            1 => lines.push(update(vote(to, "down")).to_string()),
            2 => lines.push(update(vote(random.pick_skewed::<String>(setlists), kind)).to_string()),
            _ => {}
        }
    }
    lines
}

// The correct results.

/// All counters, in name order.
pub const COUNTERS: [&str; 24] = [
    "artist.fame",
    "artist.listed",
    "artist.shows",
    "artist.shows_ahead",
    "artist.trend_1d",
    "artist.trend_6h",
    "artist.trend_7d",
    "artist.upcoming_shows",
    "artist.votes",
    "setlist.score",
    "setlist.show",
    "setlist.trend_1d",
    "setlist.trend_6h",
    "setlist.trend_7d",
    "setlist.upvotes",
    "setlist.votes",
    "show.artist",
    "show.setlists",
    "show.trend_1d",
    "show.trend_6h",
    "show.trend_7d",
    "show.upcoming",
    "show.votes",
    "user.votes",
];

/// Decayed votes: the half-life, and the counters of setlists, shows and artists.
pub const TRENDS: [(HalfLife, &str, &str, &str); 3] = [
    (HalfLife::hours(6), "setlist.trend_6h", "show.trend_6h", "artist.trend_6h"),
    (HalfLife::days(1), "setlist.trend_1d", "show.trend_1d", "artist.trend_1d"),
    (HalfLife::days(7), "setlist.trend_7d", "show.trend_7d", "artist.trend_7d"),
];

/// Each rollup with its base and its membership. A base comes before its rollups.
pub const ROLLUPS: [(&str, &str, &str); 8] = [
    ("show.votes", "setlist.votes", "setlist.show"),
    ("show.trend_6h", "setlist.trend_6h", "setlist.show"),
    ("show.trend_1d", "setlist.trend_1d", "setlist.show"),
    ("show.trend_7d", "setlist.trend_7d", "setlist.show"),
    ("artist.votes", "show.votes", "show.artist"),
    ("artist.trend_6h", "show.trend_6h", "show.artist"),
    ("artist.trend_1d", "show.trend_1d", "show.artist"),
    ("artist.trend_7d", "show.trend_7d", "show.artist"),
];

pub fn is_rollup(counter: &str) -> bool {
    ROLLUPS.iter().any(|(rollup, ..)| *rollup == counter)
}

/// A part of a key. Integers sort as numbers and texts by bytes, which is key order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Int(i64),
    Text(String),
}

pub type Key = Vec<Part>;

pub fn key(text: &str) -> Key {
    vec![Part::Text(text.to_owned())]
}

pub fn pair(one: &str, two: &str) -> Key {
    [key(one), key(two)].concat()
}

pub fn in_epoch(text: &str, epoch: i64) -> Key {
    [key(text), vec![Part::Int(epoch)]].concat()
}

/// A key as JSON shows it: a key of one part is that part, a longer one a list.
pub fn key_json(key: &Key) -> Value {
    let part = |part: &Part| match part {
        Part::Int(value) => json!(value),
        Part::Text(text) => json!(text),
    };
    match key.as_slice() {
        [one] => part(one),
        many => many.iter().map(part).collect(),
    }
}

/// The totals of every counter, by key.
pub type Totals = BTreeMap<&'static str, BTreeMap<Key, i64>>;

/// The epoch in which a vote of this time counts, and its weight there.
fn epoch_and_weight(half_life: HalfLife, created_at: i64) -> (i64, i64) {
    (created_at.div_euclid(half_life.as_seconds()), half_life.weight(created_at))
}

const VOTES_OF_SHOWS: &str = "votes JOIN setlists ON setlists.id = votes.setlist_id";

/// The correct totals other than 0: by plain SQL over the rows, and for decayed votes by plain
/// Rust.
pub fn recount(conn: &Connection) -> Totals {
    let votes_of_artists = format!("{VOTES_OF_SHOWS} JOIN shows ON shows.id = setlists.show_id");
    let asked = [
        ("artist.fame", "SELECT id, followers / 1000000 + popularity / 10 FROM artists".to_owned()),
        ("artist.listed", "SELECT id, 1 FROM artists".to_owned()),
        ("artist.shows", "SELECT artist_id, count(*) FROM shows GROUP BY 1".to_owned()),
        (
            "artist.shows_ahead",
            "SELECT artist_id, date, count(*) FROM shows GROUP BY 1, 2".to_owned(),
        ),
        (
            "artist.upcoming_shows",
            "SELECT artist_id, sum(status = 'upcoming') FROM shows GROUP BY 1".to_owned(),
        ),
        ("artist.votes", format!("SELECT artist_id, count(*) FROM {votes_of_artists} GROUP BY 1")),
        (
            "setlist.score",
            "SELECT setlist_id, 2 * sum(kind = 'up') - count(*) FROM votes GROUP BY 1".to_owned(),
        ),
        ("setlist.show", "SELECT id, show_id, 1 FROM setlists".to_owned()),
        (
            "setlist.upvotes",
            "SELECT setlist_id, count(*) FILTER (WHERE kind = 'up') FROM votes GROUP BY 1"
                .to_owned(),
        ),
        ("setlist.votes", "SELECT setlist_id, count(*) FROM votes GROUP BY 1".to_owned()),
        ("show.artist", "SELECT id, artist_id, 1 FROM shows".to_owned()),
        ("show.setlists", "SELECT show_id, count(*) FROM setlists GROUP BY 1".to_owned()),
        (
            "show.upcoming",
            "SELECT date, id, count(*) FROM shows WHERE status = 'upcoming' GROUP BY 1, 2"
                .to_owned(),
        ),
        ("show.votes", format!("SELECT show_id, count(*) FROM {VOTES_OF_SHOWS} GROUP BY 1")),
        ("user.votes", "SELECT user_id, count(*) FROM votes GROUP BY 1".to_owned()),
    ];
    let mut totals: Totals =
        asked.into_iter().map(|(counter, query)| (counter, query_totals(conn, &query))).collect();
    totals.extend(recount_trends(conn));
    assert!(totals.keys().eq(COUNTERS.iter()));
    non_zero(&totals)
}

fn recount_trends(conn: &Connection) -> Totals {
    let mut totals: Totals = TRENDS
        .into_iter()
        .flat_map(|(_, one, two, three)| [one, two, three])
        .map(|name| (name, BTreeMap::new()))
        .collect();
    let query = "SELECT votes.setlist_id, setlists.show_id, shows.artist_id, votes.created_at FROM votes
                 LEFT JOIN setlists ON setlists.id = votes.setlist_id LEFT JOIN shows ON shows.id = setlists.show_id";
    let mut all = conn.prepare(query).unwrap();
    let mut rows = all.query(()).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let id = |at: usize| row.get::<_, Option<String>>(at).unwrap();
        let (of, created_at) = ([id(0), id(1), id(2)], row.get(3).unwrap());
        for (half_life, setlists, shows, artists) in TRENDS {
            let (epoch, weight) = epoch_and_weight(half_life, created_at);
            for (counter, id) in [setlists, shows, artists].into_iter().zip(&of) {
                if let Some(id) = id {
                    *totals.get_mut(counter).unwrap().entry(in_epoch(id, epoch)).or_default() +=
                        weight;
                }
            }
        }
    }
    totals
}

/// The stored totals, with those of 0.
pub fn stored(conn: &Connection) -> Totals {
    COUNTERS
        .into_iter()
        .zip(total_tables())
        .map(|(name, table)| (name, query_totals(conn, &format!("SELECT * FROM {table}"))))
        .collect()
}

/// The rows of a query: the columns of the key, then the total. Rows with a null in the key are
/// left out.
fn query_totals(conn: &Connection, query: &str) -> BTreeMap<Key, i64> {
    let mut all = conn.prepare(query).unwrap();
    let width = all.column_count() - 1;
    let mut rows = all.query(()).unwrap();
    let mut totals = BTreeMap::new();
    while let Some(row) = rows.next().unwrap() {
        let part = |at: usize| match row.get_ref(at).unwrap() {
            ValueRef::Null => None,
            ValueRef::Integer(value) => Some(Part::Int(value)),
            ValueRef::Text(text) => Some(Part::Text(String::from_utf8(text.to_vec()).unwrap())),
            other => panic!("{other:?}"),
        };
        if let Some(key) = (0..width).map(part).collect() {
            assert_eq!(totals.insert(key, row.get(width).unwrap()), None, "{query}: a key twice");
        }
    }
    totals
}

pub fn non_zero(totals: &Totals) -> Totals {
    let kept = |totals: &BTreeMap<Key, i64>| {
        totals
            .iter()
            .filter(|(_, total)| **total != 0)
            .map(|(key, total)| (key.clone(), *total))
            .collect()
    };
    totals.iter().map(|(counter, totals)| (*counter, kept(totals))).collect()
}

/// What a verify compares the stored totals with: the totals by the rows, and for a rollup the sum
/// of its base as stored.
pub fn definition(rows: &Totals, stored: &Totals) -> Totals {
    let mut expected = rows.clone();
    for (rollup, base, membership) in ROLLUPS {
        expected.insert(rollup, rolled_up(&stored[base], &stored[membership]));
    }
    non_zero(&expected)
}

/// The sum over memberships (child, parent) of membership times base total, from keys (child,
/// suffix) to keys (parent, suffix).
fn rolled_up(base: &BTreeMap<Key, i64>, memberships: &BTreeMap<Key, i64>) -> BTreeMap<Key, i64> {
    let mut sums: BTreeMap<Key, i64> = BTreeMap::new();
    for (membership, weight) in memberships {
        let [child, parent] = membership.as_slice() else { panic!("{membership:?}") };
        for (key, total) in
            base.range(vec![child.clone()]..).take_while(|(key, _)| key[0] == *child)
        {
            let key = [std::slice::from_ref(parent), &key[1..]].concat();
            *sums.entry(key).or_default() += weight * total;
        }
    }
    sums
}

/// Fails unless the totals are equal, and then prints the differing keys alone, because whole maps
/// are too long.
#[track_caller]
pub fn assert_same(found: &Totals, wanted: &Totals) {
    for counter in COUNTERS {
        let (found, wanted) = (&found[counter], &wanted[counter]);
        let keys: BTreeSet<&Key> = found.keys().chain(wanted.keys()).collect();
        let differs: Vec<_> =
            keys.into_iter().filter(|key| found.get(*key) != wanted.get(*key)).collect();
        let first: Vec<_> =
            differs.iter().take(5).map(|key| (key, found.get(*key), wanted.get(*key))).collect();
        assert!(
            differs.is_empty(),
            "{counter}: {} keys differ: (key, found, wanted) {first:?}",
            differs.len()
        );
    }
}

/// A key whose stored total differs from `definition`: key, stored, true.
pub type Drift = (Key, i64, i64);

/// Every key that differs, in key order. Rollups are compared with their base as stored.
pub fn drifts(conn: &Connection) -> BTreeMap<&'static str, Vec<Drift>> {
    drifts_of(&recount(conn), &stored(conn))
}

pub fn drifts_of(rows: &Totals, stored: &Totals) -> BTreeMap<&'static str, Vec<Drift>> {
    let expected = definition(rows, stored);
    COUNTERS
        .into_iter()
        .map(|counter| (counter, differing(&expected[counter], &stored[counter])))
        .collect()
}

fn differing(expected: &BTreeMap<Key, i64>, stored: &BTreeMap<Key, i64>) -> Vec<Drift> {
    let keys: BTreeSet<&Key> = expected.keys().chain(stored.keys()).collect();
    let both = keys
        .into_iter()
        .map(|key| (key, stored.get(key).unwrap_or(&0), expected.get(key).unwrap_or(&0)));
    both.filter(|(_, stored, expected)| stored != expected)
        .map(|(key, stored, expected)| (key.clone(), *stored, *expected))
        .collect()
}

/// The stored totals at the time when a repair compares each counter. It repairs bases first, and
/// that updates their rollups. So when it comes to a rollup, the true totals are those by the rows,
/// and the stored ones still have the drift that the rollup had in the beginning.
fn stored_when_repaired(rows: &Totals, stored: &Totals) -> Totals {
    let mut met = stored.clone();
    for (counter, drifts) in
        drifts_of(rows, stored).into_iter().filter(|(counter, _)| is_rollup(counter))
    {
        let mut totals = rows[counter].clone();
        for (key, stored, expected) in drifts {
            *totals.entry(key).or_default() += stored - expected;
        }
        met.insert(counter, totals);
    }
    met
}

/// The member `counters` in the JSON of a complete verify of these counters; or of a repair if
/// `repaired`, which must include the bases of its rollups.
pub fn expected(
    conn: &Connection,
    counters: &[&'static str],
    samples: usize,
    repaired: bool,
) -> Value {
    let (rows, stored) = (recount(conn), non_zero(&stored(conn)));
    let (true_totals, stored) = if repaired {
        let met = non_zero(&stored_when_repaired(&rows, &stored));
        (rows, met)
    } else {
        (definition(&rows, &stored), stored)
    };
    let one = |counter: &&'static str| {
        let (true_totals, stored) = (&true_totals[counter], &stored[counter]);
        let drifts = differing(true_totals, stored);
        let of_kind = |kind: fn(&&Drift) -> bool| drifts.iter().filter(kind).count();
        let listed = drifts.iter().take(samples);
        let sample = |(key, stored, true_totals): &Drift| json!({"key": key_json(key), "stored": stored, "true": true_totals});
        let keys: BTreeSet<&Key> = true_totals.keys().chain(stored.keys()).collect();
        json!({
            "name": counter,
            "keys": keys.len(),
            "wrong": of_kind(|(_, stored, true_totals)| *stored != 0 && *true_totals != 0),
            "missing": of_kind(|(_, stored, _)| *stored == 0),
            "orphan": of_kind(|(_, _, true_totals)| *true_totals == 0),
            "corrected": if repaired { drifts.len() } else { 0 },
            "samples": listed.map(sample).collect::<Vec<_>>(),
        })
    };
    counters.iter().map(one).collect()
}

/// Changes that bypass the hooks: every kind, in several counters. Each statement affects as many
/// rows as exist.
pub const SABOTAGE: [(&str, &str); 31] = [
    ("wrong shows", "UPDATE artist_shows SET total = total + 7 WHERE key IN (SELECT key FROM artist_shows ORDER BY key LIMIT 3)"),
    ("wrong votes", "UPDATE user_votes SET total = -total WHERE key IN (SELECT key FROM user_votes ORDER BY key DESC LIMIT 4)"),
    ("wrong scores", "UPDATE setlist_score SET total = total - 1 WHERE key IN (SELECT key FROM setlist_score ORDER BY key LIMIT 5)"),
    ("missing setlists", "DELETE FROM show_setlists WHERE key IN (SELECT key FROM show_setlists ORDER BY key DESC LIMIT 30)"),
    ("missing votes", "DELETE FROM setlist_votes WHERE key IN (SELECT key FROM setlist_votes ORDER BY key LIMIT 6)"),
    ("zeroed upvotes", "UPDATE setlist_upvotes SET total = 0 WHERE key IN (SELECT key FROM setlist_upvotes ORDER BY key DESC LIMIT 7)"),
    (
        "orphan shows",
        "INSERT INTO artist_upcoming_shows WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 30)
         SELECT 'nobody ' || n, n - 40 FROM n",
    ),
    ("orphan users", "INSERT INTO user_votes VALUES ('', 1), (char(1114111), -9223372036854775807), ('nobody', 2)"),
    ("orphan setlists", "INSERT INTO show_setlists VALUES ('sh nobody', 3), ('zzz', 4)"),
    ("rows of votes deleted", "DELETE FROM votes WHERE id IN (SELECT id FROM votes ORDER BY id LIMIT 9)"),
    (
        "rows of votes moved",
        "UPDATE votes SET setlist_id = (SELECT max(id) FROM setlists), user_id = 'somebody new', kind = 'down'
         WHERE id IN (SELECT id FROM votes ORDER BY id DESC LIMIT 8)",
    ),
    ("rows of setlists deleted", "DELETE FROM setlists WHERE id IN (SELECT id FROM setlists ORDER BY id LIMIT 5)"),
    (
        "rows of setlists moved",
        "UPDATE setlists SET show_id = iif(rowid % 2, NULL, (SELECT min(id) FROM shows))
         WHERE id IN (SELECT id FROM setlists ORDER BY id DESC LIMIT 6)",
    ),
    (
        "rows of shows moved",
        "UPDATE shows SET artist_id = iif(rowid % 2, NULL, (SELECT max(id) FROM artists))
         WHERE id IN (SELECT id FROM shows WHERE artist_id IS NOT NULL ORDER BY id LIMIT 8)",
    ),
    (
        "rows of shows called on and off",
        "UPDATE shows SET status = iif(status = 'upcoming', 'cancelled', 'upcoming')
         WHERE id IN (SELECT id FROM shows WHERE artist_id IS NOT NULL ORDER BY id DESC LIMIT 10)",
    ),
    (
        "rows of shows put off",
        "UPDATE shows SET date = '2031-12-24' WHERE id IN (SELECT id FROM shows WHERE artist_id IS NOT NULL ORDER BY id LIMIT 3)",
    ),
    (
        "rows of votes put back",
        "UPDATE votes SET created_at = created_at - 700000 WHERE id IN (SELECT id FROM votes ORDER BY id LIMIT 5 OFFSET 12)",
    ),
    ("rows of artists grown famous", "UPDATE artists SET followers = followers / 2 + 7000000 WHERE id IN (SELECT id FROM artists ORDER BY id LIMIT 4)"),
    ("rows of artists added", "INSERT INTO artists VALUES ('new to the hooks', 'n', 3000000, 10)"),
    // Memberships.
    ("wrong memberships", "UPDATE setlist_show SET total = 3 WHERE key_1 IN (SELECT key FROM setlist_votes ORDER BY key LIMIT 4 OFFSET 8)"),
    ("missing memberships", "DELETE FROM setlist_show WHERE key_1 IN (SELECT key FROM setlist_votes ORDER BY key DESC LIMIT 5)"),
    (
        "orphan memberships",
        "INSERT INTO show_artist SELECT key, 'nobody at all', 2 FROM show_votes WHERE total <> 0 ORDER BY key LIMIT 3;
         INSERT INTO setlist_show VALUES ('no setlist', 'no show', 1)",
    ),
    // Bases, whose rollups then differ from their sums.
    ("wrong trends", "UPDATE setlist_trend_1d SET total = total + 5 WHERE key_1 IN (SELECT key FROM setlist_votes ORDER BY key LIMIT 6 OFFSET 3)"),
    ("missing trends", "DELETE FROM setlist_trend_6h WHERE key_1 IN (SELECT key FROM setlist_votes ORDER BY key DESC LIMIT 4)"),
    ("orphan trends", "INSERT INTO setlist_trend_7d SELECT key_1, -40, -9 FROM setlist_show ORDER BY 1 LIMIT 5"),
    // Rollups.
    ("wrong rollups", "UPDATE show_votes SET total = total + 11 WHERE key IN (SELECT key FROM show_votes ORDER BY key LIMIT 4)"),
    ("missing rollups", "DELETE FROM artist_votes WHERE key IN (SELECT key FROM artist_votes ORDER BY key LIMIT 3); DELETE FROM show_trend_7d"),
    (
        "orphan rollups",
        "INSERT INTO artist_votes VALUES ('nobody voted', 5); INSERT INTO show_votes VALUES ('no show either', -5);
         INSERT INTO artist_trend_1d VALUES ('nobody voted', -3, 1), ('nobody voted', 4, 1)",
    ),
    ("wrong dates", "UPDATE artist_shows_ahead SET total = total - 2 WHERE key_1 IN (SELECT key FROM artist_shows ORDER BY key DESC LIMIT 3)"),
    (
        "dates missing and orphan",
        "DELETE FROM show_upcoming WHERE key_2 IN (SELECT id FROM shows WHERE status = 'upcoming' ORDER BY id LIMIT 6);
         INSERT INTO show_upcoming SELECT '2030-01-01', id, 1 FROM shows ORDER BY id LIMIT 2",
    ),
    ("fame and lists", "UPDATE artist_fame SET total = total + 1; DELETE FROM artist_listed WHERE key IN (SELECT key FROM artist_listed ORDER BY key LIMIT 2)"),
];

/// Runs every statement of `SABOTAGE`.
pub fn sabotage(site: &Site) {
    for (_, statement) in SABOTAGE {
        site.sql(statement);
    }
}
