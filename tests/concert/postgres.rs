//! The concert example on PostgreSQL. Each command prints, byte for byte, what it prints on SQLite.
//! Replays that are concurrent, killed or disconnected from their server count each event once.
#![cfg(unix)]

use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, Config};

use crate::support::concert::{
    COUNTERS, LONGEST, Ran, Random, SABOTAGE, Site, Writer, artist, delete, finish, history, lines,
    setlist, show, start, update, vote, votes, with_member,
};
use crate::support::postgres::{DURABLE, Server, connect, shared, wait_until};

/// An empty database on a server, and the directory that commands run in.
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

    /// The database's URL as messages show it: without the password.
    fn shown_url(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap();
        let (user, place) = rest.split_once('@').unwrap();
        format!("{scheme}://{}@{place}", user.split(':').next().unwrap())
    }

    /// A client without hooks and with foreign keys off.
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

    /// Fails unless a verify is clean, and all output equals that of a site on SQLite with the same
    /// events.
    #[track_caller]
    fn assert_same_as(&self, files: &Site) {
        self.run("verify --json").exits(0);
        files.assert_exact();
        for words in lists().chain(totals()) {
            self.assert_same_output(files, &words);
        }
    }

    /// Fails unless a command prints, and exits with, the same as on SQLite.
    #[track_caller]
    fn assert_same_output(&self, files: &Site, words: &str) {
        let (here, there) = (self.run(words), files.run(words));
        assert_eq!(here.code, there.code, "{words}: {here:?}, {there:?}");
        assert_eq!(here.out.replace(&self.shown_url(), "site.db"), there.out, "{words}");
        assert_eq!(here.err.replace(&self.shown_url(), "site.db"), there.err, "{words}");
    }

    /// Writes events into both directories and replays them into both databases. All but the number
    /// of statements is the same.
    #[track_caller]
    fn replay_on_both(&self, files: &Site, name: &str, events: &[String]) {
        self.site.write(name, events);
        files.write(name, events);
        let words = format!("replay {name}");
        let (here, there) = (self.run(&words), files.run(&words));
        assert_eq!(here.code, there.code, "{here:?}, {there:?}");
        assert_eq!(without_statements(&here.out), without_statements(&there.out));
        // The lines before the last may show progress, which depends on the clock.
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

/// The remaining commands that read. Ids with characters that a command line would need to quote
/// are compared by the totals alone.
#[track_caller]
fn assert_all_reads_agree(remote: &Remote, files: &Site) {
    for words in lists().chain(totals()) {
        remote.assert_same_output(files, &words);
    }
    for list in ["artists", "shows", "trending"] {
        let top = files.run(&format!("top {list} --at 2025-05-20 --limit 500")).exits(0).out;
        let ids = top.lines().filter_map(|line| line.split('\t').nth(1));
        for id in
            ids.filter(|id| id.chars().all(char::is_alphanumeric)).step_by(40).chain(["nobody"])
        {
            remote.assert_same_output(files, &format!("rank {list} {id} --at 2025-05-20"));
        }
    }
    remote.assert_same_output(files, "watch --at 2025-05-20");
    for words in [
        "totals nope",
        "totals user.votes --at 2025-05-20",
        "totals artist.shows_ahead",
        "verify --counter nope",
    ] {
        remote.assert_same_output(files, words);
    }
}

#[test]
fn every_command_prints_what_it_prints_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let mut writer = Writer::new(11, "x");
    remote.replay_on_both(&files, "one.jsonl", &writer.lines(2_300));
    remote.replay_on_both(&files, "one.jsonl", &writer.lines(0));
    remote.replay_on_both(&files, "two.jsonl", &writer.lines(700));
    assert_all_reads_agree(&remote, &files);
    for words in [
        "verify --page 50",
        "verify --json --page 7",
        "repair --page 50",
        "backfill --page 50 --counter show.votes",
    ] {
        remote.assert_same_output(&files, words);
    }
    // Every counter was found clean by now. The ages depend on the clock, so they are not compared.
    assert!(!remote.run("watch --at 2025-05-20").exits(0).out.contains("never"));
    // Tokens of the two databases differ, so reports are compared.
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
fn long_history_has_the_same_totals_as_on_sqlite() {
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
    remote.replay_on_both(&files, "votes.jsonl", &votes(5, &known, 3_000));
    remote.assert_same_as(&files);
}

#[test]
fn damage_is_found_and_repaired_as_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replay_on_both(&files, "one.jsonl", &Writer::new(7, "x").lines(1_500));
    // The other statements use SQLite's own functions.
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
    remote.assert_same_output(&files, "verify --page 100");
    remote.assert_same_output(&files, "repair --page 100");
    remote.assert_same_output(&files, "verify --page 100");
    remote.assert_same_as(&files);
}

/// The audit queried the parents of an empty list of memberships without parameters, although the
/// statement has two. A site without setlists could not be verified.
#[test]
fn site_without_setlists_is_verified() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replay_on_both(&files, "none.jsonl", &[]);
    remote.assert_same_output(&files, "verify");
    remote.replay_on_both(&files, "one.jsonl", &lines(&[artist("a")]));
    for words in ["verify", "repair", "backfill"] {
        remote.assert_same_output(&files, words);
    }
    remote.assert_same_as(&files);
}

#[test]
fn an_emptied_source_is_not_repaired_without_force_as_on_sqlite() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let more = (0..200).map(|at| vote(&format!("v{at}"), "l", &format!("u{at}"), "up").to_string());
    remote.replay_on_both(
        &files,
        "known.jsonl",
        &known_rows()
            .into_iter()
            .filter(|line| !line.contains("votes"))
            .chain(more)
            .collect::<Vec<_>>(),
    );
    remote.sql("DELETE FROM votes");
    files.sql("DELETE FROM votes");
    let (here, there) =
        (remote.run("repair --page 50").exits(1), files.run("repair --page 50").exits(1));
    let last = |ran: &Ran| ran.err.lines().last().unwrap().to_owned();
    assert_eq!(last(&here).replace(&remote.shown_url(), "site.db"), last(&there));
    assert!(last(&here).contains("user.votes: the source is empty"), "{here:?}");
    remote.assert_same_output(&files, "repair --page 50 --force");
    remote.assert_same_as(&files);
}

#[test]
fn repairs_during_a_replay_correct_nothing() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    let mut writer = Writer::new(51, "x");
    remote.replay_on_both(&files, "one.jsonl", &writer.lines(1_000));
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
    remote.assert_same_as(&files);
}

/// Rows that the invalid lines refer to.
fn known_rows() -> Vec<String> {
    lines(&[
        artist("a"),
        show("s", Some("a"), "upcoming"),
        setlist("l", Some("s")),
        vote("v", "l", "u", "up"),
        vote("w", "l", "u", "down"),
    ])
}

#[test]
fn invalid_line_ends_the_replay_and_keeps_the_lines_before_it() {
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
    remote.replay_on_both(&files, "known.jsonl", &known_rows());
    for (at, bad) in bad.iter().enumerate() {
        let name = format!("bad{at}.jsonl");
        let good = |id: &str| artist(&format!("{id} {at}")).to_string();
        // The bad line is among lines that are sent at once, with valid lines behind it.
        let mut events: Vec<String> = (0..30).map(|id| good(&id.to_string())).collect();
        events.push(bad.clone());
        events.extend([delete("votes", "w").to_string(), good("behind")]);
        remote.replay_on_both(&files, &name, &events);
        let again = remote.run(&format!("replay {name}")).fails(&["line 31: "]);
        assert_eq!(
            Some(again.err.lines().last()),
            Some(files.run(&format!("replay {name}")).err.lines().last())
        );
        assert_eq!(remote.offset(&name), 30, "{bad}");
    }
    assert_eq!(remote.number("SELECT count(*) FROM votes"), 2);
    remote.assert_same_as(&files);
    // With the line corrected, the replay continues from it.
    let mut events: Vec<String> =
        (0..30).map(|id| artist(&format!("{id} 0")).to_string()).collect();
    events.push(artist("corrected").to_string());
    remote.replay_on_both(&files, "bad0.jsonl", &events);
    remote.assert_same_as(&files);
}

#[test]
fn overflow_of_a_total_refuses_the_events_and_names_counter_and_key() {
    let Some(server) = shared() else { return };
    let (remote, files) = (Remote::new(server), Site::new());
    remote.replay_on_both(&files, "known.jsonl", &known_rows());
    let damage = "UPDATE user_votes SET total = 9223372036854775807";
    remote.sql(damage);
    files.sql(damage);
    let more: Vec<Value> =
        ["a", "u", "z"].map(|user| vote(&format!("of {user}"), "l", user, "up")).into();
    remote.replay_on_both(&files, "more.jsonl", &lines(&more));
    remote
        .run("replay more.jsonl")
        .fails(&["counter user.votes, key u: ", "none of lines 1 to 3 is applied"]);
    assert_eq!((remote.offset("more.jsonl"), remote.number("SELECT count(*) FROM votes")), (0, 2));
    remote.run("repair").exits(0);
    files.run("repair").exits(0);
    remote.replay_on_both(&files, "more.jsonl", &lines(&more));
    remote.assert_same_as(&files);
}

/// SQLite stores any text. PostgreSQL stores none that contains U+0000. Ids never contain it.
#[test]
fn text_that_postgresql_cannot_store_is_refused_with_its_line() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    let events = [
        (
            "zero",
            with_member(artist("b"), "name", Some(json!("n\0n"))),
            "line 2: artist \"b\": PostgreSQL stores no text that contains U+0000",
        ),
        (
            "long",
            with_member(vote("x", "l", "u", "up"), "id", Some(json!(long_text()))),
            "index row",
        ),
    ];
    remote.site.write("known.jsonl", &known_rows());
    remote.run("replay known.jsonl").exits(0);
    for (name, event, reason) in events {
        remote.site.write(name, &lines(&[update(artist("a")), event, delete("votes", "v")]));
        remote.run(&format!("replay {name}")).fails(&["line 2: ", reason]);
        assert_eq!(remote.offset(name), 1);
    }
    assert_eq!(remote.number("SELECT count(*) FROM votes"), 2);
    remote.run("verify").exits(0);
}

/// Too long for an index entry, even compressed.
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
    // The first of the three replays creates the tables.
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
    remote.assert_same_as(&files);
}

/// Two transactions that lock the same rows in opposite order deadlock. The replay whose
/// transaction the server rolls back tries again.
#[test]
fn deadlocked_replays_retry_and_count_each_event_once() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    let ids: Vec<String> = (0..700).map(|at| format!("a{at}")).collect();
    let artists: Vec<Value> = ids.iter().map(|id| artist(id)).collect();
    remote.site.write("base.jsonl", &lines(&artists));
    remote.run("replay base.jsonl").exits(0);
    let famous = |id: &String| update(with_member(artist(id), "followers", Some(json!(3_000_000))));
    let forth: Vec<Value> = ids.iter().cycle().take(2_100).map(famous).collect();
    let back: Vec<Value> = ids.iter().rev().cycle().take(2_100).map(famous).collect();
    remote.site.write("forth.jsonl", &lines(&forth));
    remote.site.write("back.jsonl", &lines(&back));
    // Both reach the row in the middle and hold locks on what they have written. From there they
    // deadlock.
    let client = remote.client();
    remote
        .runtime
        .block_on(client.batch_execute("BEGIN; SELECT FROM artists WHERE id = 'a350' FOR UPDATE"))
        .unwrap();
    let children =
        ["forth.jsonl", "back.jsonl"].map(|name| remote.spawn(&format!("replay {name}")));
    let watcher = remote.client();
    let waiting =
        "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    remote.runtime.block_on(wait_until(&watcher, &format!("SELECT count(*) = 2 {waiting}")));
    remote.runtime.block_on(client.batch_execute("COMMIT")).unwrap();
    for child in children {
        let ran = finish(child, LONGEST).exits(0);
        assert!(ran.out.contains(" 2,100 events applied in 3 commits"), "{ran:?}");
    }
    let deadlocked =
        "SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = current_database()";
    remote.runtime.block_on(wait_until(&watcher, deadlocked));
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
        // The slower replay fails if it finds that lines were applied since it began.
        assert!(
            ran.code == Some(0) || ran.err.contains("somebody else is replaying it"),
            "{ran:?}"
        );
    }
    remote.run("replay one.jsonl").exits(0);
    files.write("one.jsonl", &events);
    files.run("replay one.jsonl").exits(0);
    assert_eq!(remote.offset("one.jsonl"), 4_000);
    remote.assert_same_as(&files);
}

#[test]
fn killed_replays_resume_and_count_each_event_once() {
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
    assert!(killed > 2, "{killed} kills: the replays ended before them");
    for (name, _) in &streams {
        remote.run(&format!("replay {name}")).exits(0);
        assert_eq!(remote.offset(name), 6_000);
    }
    remote.assert_same_as(&files);
}

#[test]
fn replay_continues_after_its_server_crashes() {
    let Some(mut server) = Server::with(DURABLE) else { return };
    let (remote, files) = (Remote::new(&server), Site::new());
    let events = Writer::new(41, "x").lines(15_000);
    remote.site.write("one.jsonl", &events);
    let child = remote.spawn("replay one.jsonl");
    for wanted in [1, 6_000] {
        let reached = (0..600).any(|_| {
            thread::sleep(Duration::from_millis(20));
            table_exists(&remote, "keepcount_offsets") && remote.offset("one.jsonl") >= wanted
        });
        assert!(reached);
        server.crash();
        server.start();
    }
    let ran = finish(child, LONGEST).exits(0);
    assert!(ran.out.contains(" 15,000 events applied in "), "{ran:?}");
    files.write("one.jsonl", &events);
    files.run("replay one.jsonl").exits(0);
    remote.assert_same_as(&files);
}

fn table_exists(remote: &Remote, name: &str) -> bool {
    remote.number(&format!("SELECT (to_regclass('{name}') IS NOT NULL)::int::bigint")) == 1
}

#[test]
fn unusable_database_is_refused_with_its_name_and_the_reason() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    remote.site.write("known.jsonl", &known_rows());
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
        // Nothing listens on port 1.
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
            &[&remote.shown_url(), "password authentication failed"],
        );
        if !words.starts_with("replay") {
            fails(words, &remote.url, &[&remote.shown_url(), "keepcount_counters", "it is absent"]);
        }
    }
    assert!(
        !table_exists(&remote, "keepcount_counters") && !table_exists(&remote, "artists"),
        "a command created tables"
    );
    fails("replay absent.jsonl", &remote.url, &["absent.jsonl: "]);

    remote
        .sql("CREATE TABLE votes (id bigint PRIMARY KEY, setlist_id text, user_id text, kind text, created_at bigint)");
    fails(
        "replay known.jsonl",
        &remote.url,
        &[&remote.shown_url(), "table votes is not this application's", "int8"],
    );
    assert!(
        !table_exists(&remote, "artists"),
        "tables were created in another application's database"
    );
    remote.sql("DROP TABLE votes");
    remote.run("replay known.jsonl").exits(0);
    remote.sql("DROP TABLE replay_prefix");
    fails(
        "totals user.votes",
        &remote.url,
        &["table replay_prefix is not this application's", "does not exist"],
    );
    remote.sql("DROP TABLE user_votes");
    fails("verify", &remote.url, &[&remote.shown_url(), "table user_votes", "it is absent"]);
}

#[test]
fn both_url_schemes_connect_and_other_names_are_files() {
    let Some(server) = shared() else { return };
    let remote = Remote::new(server);
    remote.site.write("known.jsonl", &known_rows());
    let url = remote.url.replace("postgres://", "postgresql://");
    finish(start(&mut remote.command_on("replay known.jsonl", &url)), LONGEST).exits(0);
    finish(start(&mut remote.command_on("replay known.jsonl", "postgres:")), LONGEST).exits(0);
    assert!(remote.site.path("postgres:").is_file());
    let here = remote.run("totals setlist.score").exits(0).out;
    assert_eq!(here, "");
    assert_eq!(remote.run("totals setlist.votes").exits(0).out, "l\t2\n");
}
