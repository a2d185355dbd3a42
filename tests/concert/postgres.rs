//! The concert example on PostgreSQL: each command says there, byte for byte, what it says on
//! SQLite; replays at once, killed, and cut off from their server count each event once.
#![cfg(unix)]

use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config};

use crate::support::concert::{
    COUNTERS, LONGEST, Ran, Random, SABOTAGE, Site, Writer, artist, but, delete, finish, history,
    lines, setlist, show, start, update, vote, votes,
};
use crate::support::postgres::{DURABLE, Server, connect, shared, wait_until};

/// An empty database on a server, and the folder that commands run in.
struct Remote {
    site: Site,
    config: Config,
    url: String,
    runtime: Runtime,
}

impl Remote {
    fn new(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = runtime.block_on(server.database());
        let url = server.url(config.get_dbname().unwrap());
        Self { site: Site::new(), config, url, runtime }
    }

    fn command(&self, words: &str) -> Command {
        self.command_on(words, &self.url)
    }

    fn command_on(&self, words: &str, db: &str) -> Command {
        let args: Vec<&str> = words.split_whitespace().chain(["--db", db]).collect();
        self.site.command(&args)
    }

    #[track_caller]
    fn run(&self, words: &str) -> Ran {
        finish(self.spawn(words), LONGEST)
    }

    fn spawn(&self, words: &str) -> Child {
        start(&mut self.command(words))
    }

    /// The database as messages name it: without its password.
    fn shown(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap();
        let (user, place) = rest.split_once('@').unwrap();
        format!("{scheme}://{}@{place}", user.split(':').next().unwrap())
    }

    /// A client that does what it likes: neither hooks nor foreign keys.
    fn client(&self) -> Client {
        self.runtime.block_on(async {
            let client = connect(&self.config).await;
            client.batch_execute("SET session_replication_role = replica").await.unwrap();
            client
        })
    }

    #[track_caller]
    fn sql(&self, statements: &str) {
        let client = self.client();
        let ran = self.runtime.block_on(client.batch_execute(statements));
        ran.unwrap_or_else(|error| panic!("{error:?}: {statements}"));
    }

    fn number(&self, query: &str) -> i64 {
        let client = self.client();
        self.runtime
            .block_on(client.query_one(query, &[]))
            .unwrap_or_else(|error| panic!("{error:?}: {query}"))
            .get(0)
    }

    fn offset(&self, stream: &str) -> i64 {
        self.number(&format!(
            "SELECT coalesce((SELECT last FROM keepcount_offsets WHERE stream = '{stream}'), 0)"
        ))
    }

    /// Fails unless a verify, and a site on SQLite with the same events, agree.
    #[track_caller]
    fn is_exactly(&self, files: &Site) {
        self.run("verify --json").exits(0);
        files.is_exact();
        for words in lists().chain(totals()) {
            self.says_what(files, &words);
        }
    }

    /// Fails unless a command says, and exits, as on SQLite.
    #[track_caller]
    fn says_what(&self, files: &Site, words: &str) {
        let (here, there) = (self.run(words), files.run(words));
        assert_eq!(here.code, there.code, "{words}: {here:?}, {there:?}");
        assert_eq!(here.out.replace(&self.shown(), "site.db"), there.out, "{words}");
        assert_eq!(here.err.replace(&self.shown(), "site.db"), there.err, "{words}");
    }

    /// Writes events into both folders and replays them into both databases; everything but the
    /// number of statements is the same.
    #[track_caller]
    fn replays_as(&self, files: &Site, name: &str, events: &[String]) {
        self.site.write(name, events);
        files.write(name, events);
        let words = format!("replay {name}");
        let (here, there) = (self.run(&words), files.run(&words));
        assert_eq!(here.code, there.code, "{here:?}, {there:?}");
        assert_eq!(without_statements(&here.out), without_statements(&there.out));
        // Before the last line there may be some of the progress, by the clock.
        assert_eq!(here.err.lines().last(), there.err.lines().last());
    }
}

fn without_statements(said: &str) -> String {
    let Some((before, rest)) = said.split_once(" commits, ") else { return said.to_owned() };
    format!("{before}{}", rest.split_once(" statements").unwrap().1)
}

fn totals() -> impl Iterator<Item = String> {
    let at = |counter: &str| if counter == "artist.shows_ahead" { " --at 2025-05-20" } else { "" };
    COUNTERS.into_iter().map(move |counter| format!("totals {counter}{}", at(counter)))
}

fn lists() -> impl Iterator<Item = String> {
    let lists =
        ["artists", "shows", "trending", "trending --half-life 6h", "trending --half-life 1d"];
    lists.into_iter().map(|list| format!("top {list} --at 2025-05-20 --limit 100000"))
}

/// The rest of what reads; ids that are no plain words are in the totals.
#[track_caller]
fn all_reads_agree(remote: &Remote, files: &Site) {
    for words in lists().chain(totals()) {
        remote.says_what(files, &words);
    }
    for list in ["artists", "shows", "trending"] {
        let top = files.run(&format!("top {list} --at 2025-05-20 --limit 500")).exits(0).out;
        let ids = top.lines().filter_map(|line| line.split('\t').nth(1));
        for id in
            ids.filter(|id| id.chars().all(char::is_alphanumeric)).step_by(40).chain(["nobody"])
        {
            remote.says_what(files, &format!("rank {list} {id} --at 2025-05-20"));
        }
    }
    remote.says_what(files, "watch --at 2025-05-20");
    for words in [
        "totals nope",
        "totals user.votes --at 2025-05-20",
        "totals artist.shows_ahead",
        "verify --counter nope",
    ] {
        remote.says_what(files, words);
    }
}

#[test]
fn every_command_says_what_it_says_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let mut writer = Writer::new(11, "x");
    remote.replays_as(&files, "one.jsonl", &writer.lines(2_300));
    remote.replays_as(&files, "one.jsonl", &writer.lines(0));
    remote.replays_as(&files, "two.jsonl", &writer.lines(700));
    all_reads_agree(&remote, &files);
    for words in [
        "verify --page 50",
        "verify --json --page 7",
        "repair --page 50",
        "backfill --page 50 --counter show.votes",
    ] {
        remote.says_what(&files, words);
    }
    // Found clean by now; a name's width is the database's.
    assert!(!remote.run("watch --at 2025-05-20").exits(0).out.contains("never"));
    // Nobody reads a token but whoever made it.
    let stopped = remote.run("verify --json --page 50 --max-pages 3").exits(3);
    let stopped_there = files.run("verify --json --page 50 --max-pages 3").exits(3);
    assert_eq!(stopped.json()["counters"], stopped_there.json()["counters"]);
    let ended = remote.run(&format!("verify --json --resume {}", stopped.token())).exits(0).json();
    let ended_there =
        files.run(&format!("verify --json --resume {}", stopped_there.token())).exits(0).json();
    assert_eq!(ended["counters"], ended_there["counters"]);
    assert_eq!(ended["complete"], true);
}

#[test]
fn a_long_history_counts_what_it_counts_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let history = history(&remote.site);
    let path = history.path.to_str().unwrap();
    let ran = [
        remote.run(&format!("replay {path}")).exits(0),
        files.run(&format!("replay {path}")).exits(0),
    ];
    assert_eq!(without_statements(&ran[0].out), without_statements(&ran[1].out));
    let known: Vec<String> = history
        .lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["table"] == "setlists" && event["op"] == "insert")
        .filter_map(|event| event["row"]["id"].as_str().map(str::to_owned))
        .take(300)
        .collect();
    remote.replays_as(&files, "votes.jsonl", &votes(5, &known, 3_000));
    remote.is_exactly(&files);
}

#[test]
fn damage_is_found_and_repaired_as_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replays_as(&files, "one.jsonl", &Writer::new(7, "x").lines(1_500));
    // The rest is said in SQLite's own words.
    let both = SABOTAGE
        .iter()
        .filter(|(_, text)| !["iif(", "char("].iter().any(|word| text.contains(word)));
    let mut done = 0;
    for (_, damage) in both {
        remote.sql(damage);
        files.sql(damage);
        done += 1;
    }
    assert!(done > 25, "{done}");
    for page in [7, 1_000] {
        let words = format!("verify --json --page {page} --samples 100000");
        let (here, there) = (remote.run(&words).exits(2).json(), files.run(&words).exits(2).json());
        assert_eq!(here, there, "page {page}");
    }
    remote.says_what(&files, "verify --page 100");
    remote.says_what(&files, "repair --page 100");
    remote.says_what(&files, "verify --page 100");
    remote.is_exactly(&files);
}

/// The audit looked for the parents of no memberships with no parameters, where the statement has
/// two: a site without setlists could not be verified.
#[test]
fn a_site_that_has_only_just_begun_is_verified() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replays_as(&files, "none.jsonl", &[]);
    remote.says_what(&files, "verify");
    remote.replays_as(&files, "one.jsonl", &lines(&[artist("a")]));
    for words in ["verify", "repair", "backfill"] {
        remote.says_what(&files, words);
    }
    remote.is_exactly(&files);
}

#[test]
fn an_emptied_source_is_not_repaired_without_force_as_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let more = (0..200).map(|at| vote(&format!("v{at}"), "l", &format!("u{at}"), "up").to_string());
    remote.replays_as(
        &files,
        "known.jsonl",
        &known().into_iter().filter(|line| !line.contains("votes")).chain(more).collect::<Vec<_>>(),
    );
    remote.sql("DELETE FROM votes");
    files.sql("DELETE FROM votes");
    let (here, there) =
        (remote.run("repair --page 50").exits(1), files.run("repair --page 50").exits(1));
    let last = |ran: &Ran| ran.err.lines().last().unwrap().to_owned();
    assert_eq!(last(&here).replace(&remote.shown(), "site.db"), last(&there));
    assert!(last(&here).contains("user.votes: the source is empty"), "{here:?}");
    remote.says_what(&files, "repair --page 50 --force");
    remote.is_exactly(&files);
}

#[test]
fn repairs_beside_a_replay_repair_nothing_that_is_right() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let mut writer = Writer::new(51, "x");
    remote.replays_as(&files, "one.jsonl", &writer.lines(1_000));
    let events = writer.lines(8_000);
    remote.site.write("two.jsonl", &events);
    let mut child = remote.spawn("replay two.jsonl");
    let mut beside = 0;
    while child.try_wait().unwrap().is_none() {
        let report = remote.run("repair --json --page 50").exits(0).json();
        let corrected = report["counters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|counter| counter["corrected"].as_u64().unwrap());
        assert_eq!(corrected.sum::<u64>(), 0, "{report}");
        beside += 1;
    }
    assert!(beside > 1, "{beside}");
    finish(child, LONGEST).exits(0);
    files.write("two.jsonl", &events);
    files.run("replay two.jsonl").exits(0);
    remote.is_exactly(&files);
}

/// Rows that every line below may meet.
fn known() -> Vec<String> {
    lines(&[
        artist("a"),
        show("s", Some("a"), "upcoming"),
        setlist("l", Some("s")),
        vote("v", "l", "u", "up"),
        vote("w", "l", "u", "down"),
    ])
}

#[test]
fn a_line_that_does_not_fit_ends_the_replay_as_on_sqlite_and_leaves_what_came_before() {
    let Some(server) = shared() else { return };
    let long = "k".repeat(1_100);
    let bad = [
        "{\"op\":".to_owned(),
        artist("a").to_string(),
        vote("v", "nowhere", "u", "up").to_string(),
        show("t", Some("nobody"), "upcoming").to_string(),
        setlist("m", Some("nothing")).to_string(),
        vote("x", "nowhere", "u", "up").to_string(),
        update(artist("b")).to_string(),
        update(show("t", Some("nobody"), "upcoming")).to_string(),
        update(show("s", Some("nobody"), "upcoming")).to_string(),
        update(setlist("l", Some("nothing"))).to_string(),
        update(vote("v", "nowhere", "u", "up")).to_string(),
        delete("artists", "b").to_string(),
        delete("shows", "b").to_string(),
        delete("setlists", "b").to_string(),
        delete("votes", "b").to_string(),
        vote("x", "l", &long, "up").to_string(),
        artist("z\0").to_string(),
    ];
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replays_as(&files, "known.jsonl", &known());
    for (at, bad) in bad.iter().enumerate() {
        let name = format!("bad{at}.jsonl");
        let good = |id: &str| artist(&format!("{id} {at}")).to_string();
        // In the middle of what is under way at once, and with lines behind it that would fit.
        let mut events: Vec<String> = (0..30).map(|id| good(&id.to_string())).collect();
        events.push(bad.clone());
        events.extend([delete("votes", "w").to_string(), good("behind")]);
        remote.replays_as(&files, &name, &events);
        let again = remote.run(&format!("replay {name}")).fails(&["line 31: "]);
        assert_eq!(
            Some(again.err.lines().last()),
            Some(files.run(&format!("replay {name}")).err.lines().last())
        );
        assert_eq!(remote.offset(&name), 30, "{bad}");
    }
    assert_eq!(remote.number("SELECT count(*) FROM votes"), 2);
    remote.is_exactly(&files);
    // Repaired, it goes on from there.
    let mut events: Vec<String> =
        (0..30).map(|id| artist(&format!("{id} 0")).to_string()).collect();
    events.push(artist("mended").to_string());
    remote.replays_as(&files, "bad0.jsonl", &events);
    remote.is_exactly(&files);
}

#[test]
fn a_total_beyond_64_bits_refuses_the_events_and_names_counter_and_key_as_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replays_as(&files, "known.jsonl", &known());
    let damage = "UPDATE user_votes SET total = 9223372036854775807";
    remote.sql(damage);
    files.sql(damage);
    let more: Vec<Value> =
        ["a", "u", "z"].map(|user| vote(&format!("of {user}"), "l", user, "up")).into();
    remote.replays_as(&files, "more.jsonl", &lines(&more));
    remote
        .run("replay more.jsonl")
        .fails(&["counter user.votes, key u: ", "none of lines 1 to 3 is applied"]);
    assert_eq!((remote.offset("more.jsonl"), remote.number("SELECT count(*) FROM votes")), (0, 2));
    remote.run("repair").exits(0);
    files.run("repair").exits(0);
    remote.replays_as(&files, "more.jsonl", &lines(&more));
    remote.is_exactly(&files);
}

/// SQLite stores any text, PostgreSQL none with U+0000 in it; ids have none anywhere.
#[test]
fn what_postgresql_cannot_store_is_refused_by_line() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    let events = [
        (
            "zero",
            but(artist("b"), "name", Some(json!("n\0n"))),
            "line 2: artist \"b\": PostgreSQL stores no text that contains U+0000",
        ),
        ("long", but(vote("x", "l", "u", "up"), "id", Some(json!(long_text()))), "index row"),
    ];
    remote.site.write("known.jsonl", &known());
    remote.run("replay known.jsonl").exits(0);
    for (name, event, reason) in events {
        remote.site.write(name, &lines(&[update(artist("a")), event, delete("votes", "v")]));
        remote.run(&format!("replay {name}")).fails(&["line 2: ", reason]);
        assert_eq!(remote.offset(name), 1);
    }
    assert_eq!(remote.number("SELECT count(*) FROM votes"), 2);
    remote.run("verify").exits(0);
}

/// Too long for an index, also when it is compressed.
fn long_text() -> String {
    let mut random = Random(3);
    (0..9_000).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap())).collect()
}

#[test]
fn replays_of_different_streams_at_once_count_each_event_once() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let setlists: Vec<String> = (0..60).map(|at| format!("l{at}")).collect();
    let mut events: Vec<Value> = (0..5).map(|at| artist(&format!("a{at}"))).collect();
    events.extend(
        (0..20).map(|at| show(&format!("s{at}"), Some(&format!("a{}", at % 5)), "upcoming")),
    );
    events.extend(
        setlists.iter().enumerate().map(|(at, id)| setlist(id, Some(&format!("s{}", at % 20)))),
    );
    // Made by whoever comes first.
    let streams =
        [("base.jsonl", lines(&events)), ("left.jsonl", Vec::new()), ("right.jsonl", Vec::new())];
    for (name, events) in &streams {
        remote.site.write(name, events);
    }
    let children: Vec<Child> =
        streams.iter().map(|(name, _)| remote.spawn(&format!("replay {name}"))).collect();
    for child in children {
        finish(child, LONGEST).exits(0);
    }
    files.write("base.jsonl", &streams[0].1);
    files.run("replay base.jsonl").exits(0);

    let streams: Vec<(String, Vec<String>)> =
        (1..=3).map(|seed| (format!("votes{seed}.jsonl"), votes(seed, &setlists, 2_500))).collect();
    for (name, events) in &streams {
        remote.site.write(name, events);
        files.write(name, events);
    }
    let children: Vec<Child> =
        streams.iter().map(|(name, _)| remote.spawn(&format!("replay {name}"))).collect();
    for child in children {
        finish(child, LONGEST).exits(0);
    }
    for (name, _) in &streams {
        files.run(&format!("replay {name}")).exits(0);
    }
    remote.is_exactly(&files);
}

/// Two transactions that lock the same rows the other way round wait for each other in a circle;
/// the one that the server takes back comes again.
#[test]
fn replays_that_meet_in_a_circle_come_again_and_count_each_event_once() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    let ids: Vec<String> = (0..700).map(|at| format!("a{at}")).collect();
    let artists: Vec<Value> = ids.iter().map(|id| artist(id)).collect();
    remote.site.write("base.jsonl", &lines(&artists));
    remote.run("replay base.jsonl").exits(0);
    let famous = |id: &String| update(but(artist(id), "followers", Some(json!(3_000_000))));
    let forth: Vec<Value> = ids.iter().cycle().take(2_100).map(famous).collect();
    let back: Vec<Value> = ids.iter().rev().cycle().take(2_100).map(famous).collect();
    remote.site.write("forth.jsonl", &lines(&forth));
    remote.site.write("back.jsonl", &lines(&back));
    // Both come as far as the row in the middle, and hold what they have written: from there,
    // neither can pass the other.
    let client = remote.client();
    remote
        .runtime
        .block_on(client.batch_execute("BEGIN; SELECT FROM artists WHERE id = 'a350' FOR UPDATE"))
        .unwrap();
    let children =
        ["forth.jsonl", "back.jsonl"].map(|name| remote.spawn(&format!("replay {name}")));
    let watcher = remote.client();
    let is_ours =
        "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    remote.runtime.block_on(wait_until(&watcher, &format!("SELECT count(*) = 2 {is_ours}")));
    remote.runtime.block_on(client.batch_execute("COMMIT")).unwrap();
    for child in children {
        let ran = finish(child, LONGEST).exits(0);
        assert!(ran.out.contains(" 2,100 events applied in 3 commits"), "{ran:?}");
    }
    let circles = "SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = current_database()";
    remote.runtime.block_on(wait_until(&watcher, circles));
    assert_eq!((remote.offset("forth.jsonl"), remote.offset("back.jsonl")), (2_100, 2_100));
    assert_eq!(remote.number("SELECT sum(total)::bigint FROM artist_fame"), 3 * 700);
    remote.run("verify").exits(0);
}

#[test]
fn two_replays_of_one_stream_apply_it_once() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let events = Writer::new(23, "x").lines(4_000);
    remote.site.write("one.jsonl", &events);
    let children = [(); 2].map(|()| remote.spawn("replay one.jsonl"));
    for ran in children.map(|child| finish(child, LONGEST)) {
        // Who finds lines applied that were not when it began has been overtaken.
        assert!(
            ran.code == Some(0) || ran.err.contains("somebody else is replaying it"),
            "{ran:?}"
        );
    }
    remote.run("replay one.jsonl").exits(0);
    files.write("one.jsonl", &events);
    files.run("replay one.jsonl").exits(0);
    assert_eq!(remote.offset("one.jsonl"), 4_000);
    remote.is_exactly(&files);
}

#[test]
fn replays_that_are_killed_go_on_where_they_were() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let streams = [
        ("x.jsonl", Writer::new(31, "x").lines(6_000)),
        ("y.jsonl", Writer::new(32, "y").lines(6_000)),
    ];
    for (name, events) in &streams {
        remote.site.write(name, events);
        files.write(name, events);
        files.run(&format!("replay {name}")).exits(0);
    }
    let mut random = Random(5);
    let mut killed = 0;
    for _ in 0..12 {
        let children = ["x.jsonl", "y.jsonl"].map(|name| remote.spawn(&format!("replay {name}")));
        for mut child in children {
            thread::sleep(Duration::from_millis(20 + u64::try_from(random.below(150)).unwrap()));
            killed += i32::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    assert!(killed > 2, "{killed}: they were too fast to be killed");
    for (name, _) in &streams {
        remote.run(&format!("replay {name}")).exits(0);
        assert_eq!(remote.offset(name), 6_000);
    }
    remote.is_exactly(&files);
}

#[test]
fn a_replay_outlives_its_server() {
    let Some(mut server) = Server::with(DURABLE) else { return };
    let (remote, files) = (Remote::new(&server), Site::new());
    let events = Writer::new(41, "x").lines(15_000);
    remote.site.write("one.jsonl", &events);
    let child = remote.spawn("replay one.jsonl");
    for wanted in [1, 6_000] {
        let reached = (0..600).any(|_| {
            thread::sleep(Duration::from_millis(20));
            is_table(&remote, "keepcount_offsets") && remote.offset("one.jsonl") >= wanted
        });
        assert!(reached);
        server.crash();
        server.start();
    }
    let ran = finish(child, LONGEST).exits(0);
    assert!(ran.out.contains(" 15,000 events applied in "), "{ran:?}");
    files.write("one.jsonl", &events);
    files.run("replay one.jsonl").exits(0);
    remote.is_exactly(&files);
}

fn is_table(remote: &Remote, name: &str) -> bool {
    remote.number(&format!("SELECT (to_regclass('{name}') IS NOT NULL)::int::bigint")) == 1
}

#[test]
fn what_is_no_database_of_this_application_is_named_with_the_reason() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    remote.site.write("known.jsonl", &known());
    let password =
        remote.url.split(['/', '@']).nth(2).unwrap().split(':').nth(1).unwrap().to_owned();
    let fails = |words: &str, db: &str, naming: &[&str]| {
        let ran = finish(start(&mut remote.command_on(words, db)), LONGEST).fails(naming);
        assert!(!ran.err.contains(&password), "{ran:?}");
    };
    let commands = [
        "replay known.jsonl",
        "totals user.votes",
        "top artists --at 2025-05-20",
        "rank artists a --at 2025-05-20",
        "watch",
        "verify",
        "repair",
        "backfill",
    ];
    let (place, name) = remote.url.rsplit_once('/').unwrap();
    let port = place.rsplit_once(':').unwrap().0;
    for words in commands {
        // Nobody listens on port 1.
        fails(
            words,
            &format!("{port}:1/{name}"),
            &["postgres://keepcount@127.0.0.1:1/", "error connecting"],
        );
        fails(
            words,
            &format!("{port}:none/{name}"),
            &["--db", "invalid connection string", "port"],
        );
        fails(
            words,
            &format!("{place}/nowhere"),
            &["/nowhere: ", "database \"nowhere\" does not exist"],
        );
        fails(
            words,
            &remote.url.replace(&password, "wrong"),
            &[&remote.shown(), "password authentication failed"],
        );
        if !words.starts_with("replay") {
            fails(words, &remote.url, &[&remote.shown(), "keepcount_counters", "it is absent"]);
        }
    }
    assert!(
        !is_table(&remote, "keepcount_counters") && !is_table(&remote, "artists"),
        "a command has made tables"
    );
    fails("replay absent.jsonl", &remote.url, &["absent.jsonl: "]);

    remote
        .sql("CREATE TABLE votes (id bigint PRIMARY KEY, setlist_id text, user_id text, kind text, created_at bigint)");
    fails(
        "replay known.jsonl",
        &remote.url,
        &[&remote.shown(), "table votes is not this application's", "int8"],
    );
    assert!(!is_table(&remote, "artists"), "tables were made in another's database");
    remote.sql("DROP TABLE votes");
    remote.run("replay known.jsonl").exits(0);
    remote.sql("DROP TABLE replay_prefix");
    fails(
        "totals user.votes",
        &remote.url,
        &["table replay_prefix is not this application's", "does not exist"],
    );
    remote.sql("DROP TABLE user_votes");
    fails("verify", &remote.url, &[&remote.shown(), "table user_votes", "it is absent"]);
}

#[test]
fn a_url_has_either_scheme_and_a_file_may_be_named_almost_so() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    remote.site.write("known.jsonl", &known());
    let url = remote.url.replace("postgres://", "postgresql://");
    finish(start(&mut remote.command_on("replay known.jsonl", &url)), LONGEST).exits(0);
    finish(start(&mut remote.command_on("replay known.jsonl", "postgres:")), LONGEST).exits(0);
    assert!(remote.site.path("postgres:").is_file());
    let here = remote.run("totals setlist.score").exits(0).out;
    assert_eq!(here, "");
    assert_eq!(remote.run("totals setlist.votes").exits(0).out, "l\t2\n");
}
