//! Replays through the concert example are exact: on a long real history, on random events, on
//! files that are broken, changed or read by two at once; and what is then broken behind the hooks'
//! back, verify reports and repair repairs, that and nothing else.
#![allow(clippy::format_collect)] // what a command prints is written down as its lines are

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::concert::{
    COUNTERS, Key, LONGEST, Model, NEW_YEAR, Part, Random, SABOTAGE, Site, Totals, Writer, artist,
    at, but, delete, drifts, dump, expected, finish, gzip, history, in_epoch, is_rollup, key,
    key_json, lines, non_zero, now, number, recount, sabotage, setlist, show, stored, text, update,
    vote, votes,
};

/// How many lines of a stream are applied.
fn applied(conn: &Connection, stream: &str) -> usize {
    number(
        conn,
        &format!(
            "SELECT coalesce((SELECT last FROM keepcount_offsets WHERE stream = '{stream}'), 0)"
        ),
    )
}

/// The history, and votes over its setlists as a second stream; the model of both.
fn replayed_history() -> (Site, Model) {
    let site = Site::new();
    let history = history(&site);
    let path = history.path.to_str().unwrap();
    let started = now();
    let ran = site.run(&format!("replay {path}")).exits(0);
    println!(
        "{} events replayed in {:.2?}: {}",
        history.lines.len(),
        started.elapsed(),
        ran.out.trim()
    );

    let mut model = Model::of(&history.lines);
    if history.is_real {
        let rows =
            (history.lines.len(), model.artists.len(), model.shows.len(), model.setlists.len());
        assert_eq!(rows, (69_573, 717, 22_952, 22_952));
    }
    model.is_in(&site.open());
    assert_eq!(applied(&site.open(), "events.jsonl"), history.lines.len());

    let setlists: Vec<String> = model.setlists.keys().cloned().collect();
    let voted = votes(1842, &setlists, 8_000);
    site.write("votes.jsonl", &voted);
    site.run("replay votes.jsonl").exits(0);
    model.apply_lines(&voted);
    (site, model)
}

#[test]
fn a_long_history_counts_what_plain_sql_recounts() {
    let (site, model) = replayed_history();
    model.is_in(&site.open());
    site.is_exact();
    let all = recount(&site.open());
    for day in ["1900-01-01", "2025-06-01", "2025-06-02", "9999-12-31"] {
        // Shows ahead are printed as of a day.
        let mut ahead: BTreeMap<&Part, i64> = BTreeMap::new();
        for (key, total) in
            all["artist.shows_ahead"].iter().filter(|(key, _)| key[1] >= Part::Text(day.to_owned()))
        {
            *ahead.entry(&key[0]).or_default() += total;
        }
        let line = |(artist, total): (&&Part, &i64)| match artist {
            Part::Text(artist) => format!("{artist}\t{total}\n"),
            Part::Int(_) => panic!("{artist:?}"),
        };
        let wanted: String = ahead.iter().map(line).collect();
        assert_eq!(
            site.run(&format!("totals artist.shows_ahead --at {day}")).exits(0).out,
            wanted,
            "{day}"
        );
    }
    for counter in COUNTERS.into_iter().filter(|counter| *counter != "artist.shows_ahead") {
        let printed = site.run(&format!("totals {counter}")).exits(0).out;
        let part = |part: &Part| match part {
            Part::Int(value) => value.to_string(),
            Part::Text(text) => text.clone(), // no id of these needs escapes
        };
        let line = |(key, total): (&Key, &i64)| {
            format!("{}\t{total}\n", key.iter().map(part).collect::<Vec<_>>().join(","))
        };
        let wanted: String = all[counter].iter().map(line).collect();
        assert_eq!(printed, wanted, "{counter}");
    }
    let before = site.dump();
    let again = site.run("replay votes.jsonl").exits(0);
    assert!(again.out.contains(" 0 events applied in 0 commits"), "{again:?}");
    assert_eq!(site.dump(), before);
}

#[test]
fn verify_reports_exactly_what_was_broken_in_a_long_history_and_repair_repairs_exactly_that() {
    let (whole, _) = replayed_history();
    sabotage(&whole);
    let of_kind = |counters: &Value, kind: &str| {
        counters
            .as_array()
            .unwrap()
            .iter()
            .filter(|counter| counter[kind].as_u64().unwrap() > 0)
            .count()
    };
    let wanted = expected(&whole.open(), &COUNTERS, 20, false);
    for kind in ["wrong", "missing", "orphan"] {
        assert!(of_kind(&wanted, kind) >= 3, "the sabotage is too tame: {kind} in {wanted}");
    }
    for page in [1, 7, 1_000] {
        finds_and_repairs_exactly(&whole.copy(), page);
    }
}

#[test]
fn each_kind_of_damage_is_reported_alone_and_repaired_alone() {
    let whole = Site::with(&Writer::new(7, "x").lines(900));
    for (kind, statement) in SABOTAGE {
        for page in [1, 7, 1_000] {
            let site = whole.copy();
            site.sql(statement);
            assert!(
                drifts(&site.open()).values().any(|drifts| !drifts.is_empty()),
                "{kind} breaks nothing"
            );
            println!("{kind}, page {page}");
            finds_and_repairs_exactly(&site, page);
        }
    }
}

#[track_caller]
fn finds_and_repairs_exactly(site: &Site, page: usize) {
    let conn = site.open();
    let (before, true_totals, broken) = (stored(&conn), recount(&conn), drifts(&conn));
    let wanted = |samples, repaired| expected(&conn, &COUNTERS, samples, repaired);

    let untouched = dump(&conn);
    let verify = site.run(&format!("verify --json --page {page} --samples 100000")).exits(2).json();
    assert_eq!(verify["counters"], wanted(100_000, false), "page {page}");
    assert_eq!((&verify["complete"], &verify["resume"]), (&json!(true), &Value::Null));
    assert_eq!(dump(&conn), untouched, "a verify has written");

    let repaired = wanted(20, true);
    let repair = site.run(&format!("repair --json --page {page}")).exits(0).json();
    assert_eq!(repair["counters"], repaired, "page {page}");
    let after = stored(&conn);
    assert_eq!(recount(&conn), true_totals, "a repair has written rows");
    assert_eq!(non_zero(&after), true_totals);
    for counter in COUNTERS.into_iter().filter(|counter| !is_rollup(counter)) {
        // Also what is 0 is as it was, where it was right. (What is added to a base level climbs:
        // rollups follow it.)
        let broken: BTreeSet<&Key> = broken[counter].iter().map(|(key, ..)| key).collect();
        let right = |totals: &BTreeMap<Key, i64>| {
            let kept = totals.iter().filter(|(key, _)| !broken.contains(key));
            kept.map(|(key, total)| (key.clone(), *total)).collect::<Vec<_>>()
        };
        assert_eq!(
            right(&after[counter]),
            right(&before[counter]),
            "{counter}: a total that was right was touched"
        );
    }
    let clean = site.run(&format!("verify --json --page {page}")).exits(0).json();
    assert_eq!(clean["counters"], wanted(20, false));
}

/// What a verify says of one counter: key, stored, true.
fn reported(report: &Value, counter: &str) -> Vec<(Value, i64, i64)> {
    let found = report["counters"]
        .as_array()
        .unwrap()
        .iter()
        .find(|found| found["name"] == counter)
        .unwrap();
    let sample = |sample: &Value| {
        (
            sample["key"].clone(),
            sample["stored"].as_i64().unwrap(),
            sample["true"].as_i64().unwrap(),
        )
    };
    found["samples"].as_array().unwrap().iter().map(sample).collect()
}

/// One setlist of one show of one artist, and votes: small enough to say by hand what each level
/// shows.
fn ladder() -> Site {
    let day = |at: usize| NEW_YEAR + i64::try_from(at).unwrap() * 86_400;
    let timed =
        |at| but(vote(&format!("v{at}"), "l", "u", "up"), "created_at", Some(json!(day(at))));
    let mut events = vec![artist("a"), show("s", Some("a"), "upcoming"), setlist("l", Some("s"))];
    events.extend((0..5).map(timed));
    Site::with(&lines(&events))
}

/// Each of these lies on one line of the report: a rollup is compared with the base level as it is
/// stored.
#[test]
fn damage_of_one_level_is_reported_at_that_level_and_at_what_no_longer_sums_it() {
    type Line = (&'static str, Value, i64, i64);
    let (weight, epoch) = (1 << 30, NEW_YEAR / 86_400);
    let on_day = |id: &str, at: i64| key_json(&in_epoch(id, epoch + at));
    let (a, s, l) = (json!("a"), json!("s"), json!("l"));
    // The damage; some lines of the report; all counters that have any.
    let cases: [(&str, Vec<Line>, &[&str]); 7] = [
        // Behind the hooks, a vote is gone: the rollups sum what is stored, and are right.
        (
            "DELETE FROM votes WHERE id = 'v0'",
            vec![
                ("setlist.votes", l.clone(), 5, 4),
                ("setlist.upvotes", l.clone(), 5, 4),
                ("setlist.score", l.clone(), 5, 4),
                ("user.votes", json!("u"), 5, 4),
                ("setlist.trend_1d", on_day("l", 0), weight, 0),
            ],
            &[
                "setlist.score",
                "setlist.trend_1d",
                "setlist.trend_6h",
                "setlist.trend_7d",
                "setlist.upvotes",
                "setlist.votes",
                "user.votes",
            ],
        ),
        // A base total is wrong, so that the rollup does not sum it any more; the rollup's rollup
        // does.
        (
            "UPDATE setlist_votes SET total = 7",
            vec![("setlist.votes", l, 7, 5), ("show.votes", s.clone(), 5, 7)],
            &["setlist.votes", "show.votes"],
        ),
        (
            "DELETE FROM setlist_trend_1d WHERE key_2 = (SELECT min(key_2) FROM setlist_trend_1d)",
            vec![
                ("setlist.trend_1d", on_day("l", 0), 0, weight),
                ("show.trend_1d", on_day("s", 0), weight, 0),
            ],
            &["setlist.trend_1d", "show.trend_1d"],
        ),
        // A rollup in the middle: wrong itself, and what is above does not sum it.
        (
            "UPDATE show_votes SET total = 8",
            vec![("show.votes", s.clone(), 8, 5), ("artist.votes", a.clone(), 5, 8)],
            &["artist.votes", "show.votes"],
        ),
        ("DELETE FROM artist_votes", vec![("artist.votes", a.clone(), 0, 5)], &["artist.votes"]),
        // Links.
        (
            "UPDATE setlist_show SET total = 2",
            vec![
                ("setlist.show", json!(["l", "s"]), 2, 1),
                ("show.votes", s, 5, 10),
                ("show.trend_1d", on_day("s", 0), weight, 2 * weight),
            ],
            &["setlist.show", "show.trend_1d", "show.trend_6h", "show.trend_7d", "show.votes"],
        ),
        (
            "UPDATE show_artist SET key_2 = 'b'",
            vec![
                ("show.artist", json!(["s", "a"]), 0, 1),
                ("show.artist", json!(["s", "b"]), 1, 0),
                ("artist.votes", a, 5, 0),
                ("artist.votes", json!("b"), 0, 5),
                ("artist.trend_1d", on_day("b", 4), 0, weight),
            ],
            &[
                "artist.trend_1d",
                "artist.trend_6h",
                "artist.trend_7d",
                "artist.votes",
                "show.artist",
            ],
        ),
    ];
    let whole = ladder();
    let totals = stored(&whole.open());
    for (damage, wanted, counters) in cases {
        let site = whole.copy();
        site.sql(damage);
        let report = site.run("verify --json").exits(2).json();
        for (counter, key, stored, expected) in wanted {
            let found = reported(&report, counter);
            assert!(found.contains(&(key, stored, expected)), "{damage}: {counter}: {found:?}");
        }
        let found: Vec<&str> =
            COUNTERS.into_iter().filter(|counter| !reported(&report, counter).is_empty()).collect();
        assert_eq!(found, counters, "{damage}");
        finds_and_repairs_exactly(&site, 7);
        if !damage.contains("votes WHERE id") {
            assert_eq!(non_zero(&stored(&site.open())), totals, "{damage}");
        }
    }
}

/// The whole law on both sides: memberships and base totals move while what sums them is broken.
#[test]
fn hooked_writes_leave_the_drift_of_rollups_as_it_is() {
    let mut writer = Writer::new(77, "h");
    let site = Site::with(&writer.lines(800));
    sabotage_totals(&site);
    let lacks = |site: &Site| -> Totals {
        let drifts = drifts(&site.open());
        drifts
            .into_iter()
            .map(|(counter, drifts)| {
                (
                    counter,
                    drifts
                        .into_iter()
                        .map(|(key, stored, expected)| (key, expected - stored))
                        .collect(),
                )
            })
            .collect()
    };
    let before = lacks(&site);
    assert!(
        before.iter().filter(|(counter, _)| is_rollup(counter)).all(|(_, lacks)| !lacks.is_empty()),
        "{before:?}"
    );
    site.write("more.jsonl", &writer.lines(800));
    site.run("replay more.jsonl").exits(0);
    assert_eq!(lacks(&site), before);
    finds_and_repairs_exactly(&site, 50);
    writer.model.is_in(&site.open());
}

/// Of every kind of damage, that to totals.
fn sabotage_totals(site: &Site) {
    for (_, statement) in SABOTAGE.into_iter().filter(|(kind, _)| !kind.starts_with("rows")) {
        site.sql(statement);
    }
}

#[test]
fn random_events_count_as_a_model_in_maps_says() {
    for seed in 0..6 {
        let site = Site::new();
        let mut writer = Writer::new(seed, "r");
        let mut events = Vec::new();
        for part in 1..=3 {
            events.extend(writer.lines(if seed == 0 { 1_200 } else { 250 }));
            let blanks = seed % 3;
            events.extend((0..blanks).map(|at| " \t".repeat(usize::try_from(at).unwrap())));
            site.write("events.jsonl", &events);
            site.run("replay events.jsonl").exits(0);
            assert_eq!(
                applied(&site.open(), "events.jsonl") + usize::try_from(blanks).unwrap(),
                events.len()
            );
            println!("seed {seed}, part {part}: {} votes", writer.model.votes.len());
            writer.model.is_in(&site.open());
            site.run("verify --page 3").exits(0);
        }
        assert!(!writer.model.votes.is_empty());
        let empty: Vec<_> =
            writer.model.totals().into_iter().filter(|(_, totals)| totals.is_empty()).collect();
        assert!(empty.is_empty(), "seed {seed}: nothing counts for {empty:?}");
        site.is_exact();
    }
}

#[test]
fn writes_that_are_easily_miscounted_are_counted_right() {
    let long = "k".repeat(1_024);
    let events = [
        artist("a"),
        artist("b"),
        artist(""),
        artist(&"i".repeat(1_024)), // a key is no longer than that
        show("s", Some("a"), "upcoming"),
        update(show("s", Some("b"), "completed")), // parent and condition in one
        update(show("s", None, "upcoming")),
        update(show("s", Some(""), "upcoming")),
        show("t", None, "cancelled"),
        setlist("l", Some("s")),
        setlist("m", None),
        update(setlist("m", Some("t"))),
        update(setlist("l", None)),
        update(setlist("l", None)), // touches nothing
        vote("v", "l", &long, "up"),
        vote("w", "l", "u", "up"),
        update(vote("w", "l", "u", "down")),
        update(vote("v", "m", "u", "down")),
        vote("gone", "m", "u2", "up"),
        delete("votes", "gone"),
        vote("gone", "m", "u3", "down"),
        delete("artists", "a"),
        delete("shows", "t"), // and setlist m, and votes v and gone
        artist("a"),
        show("t", Some("a"), "upcoming"),
    ];
    let events = lines(&events);
    let site = Site::with(&events);
    let model = Model::of(&events);
    assert_eq!((model.votes.len(), model.totals()["setlist.score"].get(&key("l"))), (1, Some(&-1)));
    model.is_in(&site.open());
    site.is_exact();
}

#[test]
fn members_are_read_as_json_means_them_and_others_ignored() {
    let row = r#"{"popularity":100,"followers":9223372036854775807,"name":"\u0000","id":"q\u0041","more":1e999}"#;
    let events = [
        format!(
            r#"  {{"at":{{"a":[1e999,null]}},"x":[[]],"op":"\u0069nsert","table":"artists","row":{row}}} {}"#,
            '\r'
        ),
        show("s1", Some("qA"), "upcoming").to_string().replace("2025-06-01", "2024-02-29"),
        show("s2", Some("qA"), "upcoming").to_string().replace("2025-06-01", "9999-12-31"),
        but(vote("v", "l", "u", "up"), "created_at", Some(json!(i64::MIN))).to_string(),
        but(delete("shows", "s2"), "status", Some(json!(["of no interest"]))).to_string(),
    ];
    let site =
        Site::with(&[&events[..3], &[setlist("l", None).to_string()], &events[3..]].concat());
    let conn = site.open();
    assert_eq!(stored(&conn)["artist.shows"][&key("qA")], 1);
    // 9,223,372,036,854 followers by the million, and 10; and a vote in the first epoch of all.
    assert_eq!(stored(&conn)["artist.fame"][&key("qA")], 9_223_372_036_864);
    assert_eq!(
        stored(&conn)["setlist.trend_1d"].keys().collect::<Vec<_>>(),
        [&in_epoch("l", -106_751_991_167_301)]
    );
    let kept: (String, i64, i64) = conn
        .query_row(
            "SELECT hex(name), followers, (SELECT created_at FROM votes) FROM artists WHERE id = 'qA'",
            (),
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert_eq!(kept, ("00".to_owned(), i64::MAX, i64::MIN));
}

// Lines that are refused.

fn base() -> Vec<String> {
    lines(&[
        artist("a1"),
        artist(""),
        show("s1", Some("a1"), "upcoming"),
        show("s2", None, "completed"),
        setlist("l1", Some("s1")),
        vote("v1", "l1", "u1", "up"),
        vote("v2", "l1", "u2", "down"),
    ])
}

/// Lines that are none of the format, or do not fit the base's rows; with what the reason must
/// name.
fn invalid() -> Vec<(Vec<u8>, &'static str)> {
    let with = |event: Value, member: &str, value: Value| but(event, member, Some(value));
    let without = |event: Value, member: &str| but(event, member, None);
    let (a, s) = (|| artist("x"), || show("x", Some("a1"), "upcoming"));
    let (l, v) = (|| setlist("x", Some("s1")), || vote("x", "l1", "u", "up"));
    let mut events = vec![
        (json!({"op": "upsert", "table": "artists", "row": {"id": "x"}}), "upsert"),
        (json!({"op": "insert", "table": "venues", "row": {"id": "x"}}), "venues"),
        (json!({"op": 3, "table": "artists", "row": {"id": "x"}}), "op"),
        (json!({"op": {"insert": null}, "table": "artists", "row": {"id": "x"}}), "op"),
        (json!({"op": "delete", "table": null, "row": {"id": "x"}}), "table"),
        (json!({"table": "votes", "row": {"id": "v1"}}), "op"),
        (json!({"op": "delete", "row": {"id": "v1"}}), "table"),
        (json!({"op": "delete", "table": "votes"}), "row"),
        (json!({"op": "delete", "table": "votes", "row": null}), "row"),
        (json!({"op": "delete", "table": "votes", "row": ["v1"]}), "row"),
        (json!({"op": "delete", "table": "votes", "row": {"setlist_id": "l1"}}), "id"),
        (with(a(), "id", json!(3)), "id"),
        (with(a(), "id", json!("a\0b")), "id"),
        (with(s(), "artist_id", json!("a\0")), "artist_id"),
        (with(s(), "artist_id", json!(1)), "artist_id"),
        (with(l(), "show_id", json!(["s1"])), "show_id"),
        (with(v(), "user_id", json!("u\0")), "user_id"),
        (with(a(), "followers", json!(-1)), "followers"),
        (with(a(), "followers", json!(1.0)), "followers"),
        (with(a(), "followers", json!("1")), "followers"),
        (with(a(), "followers", json!(true)), "followers"),
        (with(a(), "followers", json!(9_223_372_036_854_775_808_u64)), "followers"),
        (with(a(), "popularity", json!(101)), "popularity"),
        (with(a(), "popularity", json!(-1)), "popularity"),
        (with(v(), "created_at", json!(9_223_372_036_854_775_808_u64)), "created_at"),
        (with(v(), "created_at", json!("2025")), "created_at"),
        (with(s(), "status", json!("Upcoming")), "status"),
        (with(s(), "status", json!("done")), "done"),
        (with(v(), "kind", json!("UP")), "UP"),
        (with(s(), "artist_id", json!("nope")), "nope"),
        (with(l(), "show_id", json!("nope")), "nope"),
        (with(v(), "setlist_id", json!("nope")), "nope"),
        (update(with(s(), "id", json!("nope"))), "nope"),
        (update(with(show("s1", None, "upcoming"), "artist_id", json!("nope"))), "nope"),
        (update(with(setlist("l1", None), "show_id", json!("nope"))), "nope"),
        (update(vote("v1", "nope", "u", "up")), "nope"),
        (artist("a1"), "a1"),
        (show("s1", None, "upcoming"), "s1"),
        (setlist("l1", None), "l1"),
        (vote("v1", "l1", "u", "up"), "v1"),
        (update(artist("nope")), "nope"),
        (update(setlist("nope", None)), "nope"),
        (update(vote("nope", "l1", "u", "up")), "nope"),
        (without(update(setlist("l1", None)), "show_id"), "show_id"), // an update holds the whole row
        (at(v(), "2024-12-31"), "1735689600, later than now, 1735689599"),
        (
            at(update(vote("v1", "l1", "u", "up")), "2024-12-31"),
            "1735689600, later than now, 1735689599",
        ),
        (at(v(), "2025-02-30"), "at"),
        (at(v(), ""), "at"),
        (vote("x", "l1", &"u".repeat(1_025), "up"), "1025"),
        (artist(&"i".repeat(1_025)), "1025"),
        (show(&"i".repeat(1_025), None, "upcoming"), "1025"),
        (show(&"i".repeat(1_025), Some("a1"), "completed"), "1025"),
        (setlist(&"i".repeat(1_025), Some("s1")), "1025"),
    ];
    for table in ["artists", "shows", "setlists", "votes"] {
        events.push((delete(table, "nope"), "nope"));
    }
    for date in [
        "2025-02-30",
        "1900-02-29",
        "2025-1-01",
        "0000-01-01",
        "2025-00-01",
        "2025-13-01",
        "2025-06-31",
        "2025-06-00",
        " 2025-06-01",
        "+025-06-01",
        "20250601",
        "",
    ] {
        events.push((with(s(), "date", json!(date)), "date"));
    }
    // Every column is needed, and only two may be null.
    for event in [a(), s(), l(), v()] {
        let columns: Vec<String> = event["row"].as_object().unwrap().keys().cloned().collect();
        for column in columns {
            let name: &'static str = column.clone().leak();
            events.push((without(event.clone(), name), name));
            if name != "artist_id" && name != "show_id" {
                events.push((with(event.clone(), name, Value::Null), name));
            }
        }
    }
    let valid = a().to_string();
    let mut invalid: Vec<(Vec<u8>, &str)> =
        events.into_iter().map(|(event, names)| (event.to_string().into_bytes(), names)).collect();
    invalid.extend([
        (br#"{"op":"#.to_vec(), "JSON"),
        (b"[1]".to_vec(), "JSON"),
        (b"3".to_vec(), "JSON"),
        (format!("{valid} x").into_bytes(), "JSON"),
        (format!("{valid}{valid}").into_bytes(), "JSON"),
        (valid.replace('x', "a\tb").into_bytes(), "JSON"),
        (valid.replace('x', r"\ud800").into_bytes(), "id"),
        (valid.replace("\"followers\":0", "\"followers\":1e2").into_bytes(), "followers"),
        ([b"\xef\xbb\xbf", valid.as_bytes()].concat(), "JSON"), // a byte order offset
        (valid.bytes().map(|byte| if byte == b'x' { 0xff } else { byte }).collect(), "UTF-8"),
    ]);
    invalid
}

/// The last second of 2025-06-01.
const LAST_SECOND: i64 = 1_748_822_399;

#[test]
fn a_vote_from_after_the_day_of_its_event_is_refused() {
    let given =
        |created_at: i64| but(vote("x", "l1", "u", "up"), "created_at", Some(json!(created_at)));
    let changed = |created_at: i64| {
        update(but(vote("v1", "l1", "u1", "down"), "created_at", Some(json!(created_at))))
    };
    let late = [
        (given(LAST_SECOND + 1), "2025-06-01"),
        (given(i64::MAX), "2025-06-01"),
        (given(NEW_YEAR), "2024-12-31"),
        (given(0), "1969-12-31"),
        (changed(LAST_SECOND + 1), "2025-06-01"),
        (changed(NEW_YEAR), "2024-12-31"),
    ];
    for (event, day) in late {
        let site = Site::with(&base());
        let before = site.dump();
        let event = at(event, day);
        let created_at = event["row"]["created_at"].as_i64().unwrap();
        let now = keepcount::Date::last_second(day.parse().unwrap());
        site.write("more.jsonl", &[event.to_string(), artist("after").to_string()]);
        let ran = site
            .run("replay more.jsonl")
            .fails(&[&format!("created_at is {created_at}, later than now, {now}")]);
        assert!(ran.err.starts_with("line 1: "), "{event}: {ran:?}");
        assert_eq!(site.dump(), before, "{event}");
    }
}

#[test]
fn a_vote_from_the_last_second_of_its_day_counts_and_so_does_any_without_a_day() {
    let given = |id: &str, created_at: i64| {
        but(vote(id, "l1", "u", "up"), "created_at", Some(json!(created_at)))
    };
    let in_the_future = LAST_SECOND + 100 * 365 * 86_400;
    let events = [
        at(given("last", LAST_SECOND), "2025-06-01"),
        at(update(given("v1", LAST_SECOND)), "2025-06-01"),
        at(given("before 1970", -1), "1969-12-31"),
        given("unchecked", in_the_future),
        at(given("null", in_the_future), "2025-06-01"), // its day is taken away below
        update(given("v2", in_the_future)),
        given("to go", in_the_future),
        at(delete("votes", "to go"), "2025-06-01"), // what is deleted counts as it did
        at(artist("of no interest"), "a day, more or less"),
    ];
    let mut events = events.to_vec();
    events[4]["at"] = Value::Null;
    let events = [base(), lines(&events)].concat();
    let site = Site::with(&events);
    assert_eq!(LAST_SECOND, keepcount::Date::new(2025, 6, 1).unwrap().last_second());
    Model::of(&events).is_in(&site.open());
    let trend = &stored(&site.open())["artist.trend_1d"];
    let epochs: Vec<(i64, bool)> = [-1, LAST_SECOND, in_the_future]
        .map(|at| at.div_euclid(86_400))
        .map(|epoch| (epoch, trend.contains_key(&in_epoch("a1", epoch))))
        .to_vec();
    assert!(epochs.iter().all(|(_, counted)| *counted), "{epochs:?}");
    site.is_exact();
}

#[test]
fn every_invalid_line_ends_the_replay_and_a_corrected_file_continues() {
    let (base, after) = (base(), artist("after").to_string());
    // Blank lines count, so the line that follows is the 10th.
    let before = [&base[..3], &[String::new()], &base[3..], &[" \t".to_owned()]].concat();
    let applied_alone = Site::with(&before);
    let (wanted, wanted_totals) = (recount(&applied_alone.open()), stored(&applied_alone.open()));
    let invalid = invalid();
    println!("{} invalid lines", invalid.len());
    // A process is a few milliseconds of work and much waiting.
    let (left, right) = invalid.split_at(invalid.len() / 2);
    thread::scope(|scope| {
        for half in [left, right] {
            let (before, after, wanted, wanted_totals) = (&before, &after, &wanted, &wanted_totals);
            scope.spawn(move || {
                for (line, names) in half {
                    let shown = String::from_utf8_lossy(line);
                    let site = Site::new();
                    let broken =
                        [&text(before), line.as_slice(), b"\n", &text(std::slice::from_ref(after))]
                            .concat();
                    fs::write(site.path("base.jsonl"), broken).unwrap();
                    let ran = site.run("replay base.jsonl").fails(&[names]);
                    assert!(ran.err.starts_with("line 10: "), "{shown}: {ran:?}");
                    assert_eq!(ran.err.lines().count(), 1, "{shown}: {ran:?}");
                    let conn = site.open();
                    assert_eq!(
                        (&recount(&conn), &stored(&conn)),
                        (wanted, wanted_totals),
                        "{shown}: applied"
                    );
                    assert_eq!(
                        applied(&conn, "base.jsonl"),
                        8,
                        "{shown}: the last line that was applied"
                    );

                    let corrected =
                        [before.as_slice(), &[artist("mid").to_string(), after.clone()]].concat();
                    site.write("base.jsonl", &corrected);
                    let ran = site.run("replay base.jsonl").exits(0);
                    assert!(ran.out.contains(" 2 events applied"), "{shown}: {ran:?}");
                    Model::of(&corrected).is_in(&conn);
                }
            });
        }
    });
}

#[test]
fn an_invalid_line_far_into_a_file_loses_nothing_before_it() {
    let mut writer = Writer::new(3, "w");
    let good = writer.lines(2_345);
    let site = Site::new();
    site.write(
        "events.jsonl",
        &[good.as_slice(), &["{}".to_owned(), artist("later").to_string()]].concat(),
    );
    let ran = site.run("replay events.jsonl").fails(&["line 2346: "]);
    assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    writer.model.is_in(&site.open());
    site.write("events.jsonl", &[good.as_slice(), &[artist("later").to_string()]].concat());
    site.run("replay events.jsonl").exits(0);
    writer.model.artists.insert("later".to_owned(), (0, 0));
    writer.model.is_in(&site.open());
    site.is_exact();
}

#[test]
fn a_line_of_a_megabyte_is_refused_and_one_without_a_newline_at_the_end_is_read() {
    let site = Site::new();
    let long = but(artist("x"), "name", Some(json!("y".repeat(1 << 20)))).to_string();
    site.write("events.jsonl", &[artist("a").to_string(), long]);
    site.run("replay events.jsonl").fails(&["line 2: ", "1048576"]);

    let all = text(&lines(&[artist("a"), artist("b")]));
    fs::write(site.path("events.jsonl"), &all[..all.len() - 1]).unwrap();
    let ran = site.run("replay events.jsonl").exits(0);
    assert!(ran.out.contains(" 1 events applied"), "{ran:?}");
    site.write("events.jsonl", &lines(&[artist("a"), artist("b"), artist("c")]));
    let ran = site.run("replay events.jsonl").exits(0);
    assert!(ran.out.contains(" 1 events applied"), "{ran:?}");
    site.write("empty.jsonl", &[]);
    site.run("replay empty.jsonl").exits(0);
    assert_eq!(number(&site.open(), "SELECT count(*) FROM artists"), 3);
}

#[test]
fn a_total_beyond_64_bits_refuses_the_events_and_names_counter_and_key() {
    let site = Site::with(&base());
    site.sql("UPDATE artist_shows SET total = 9223372036854775807 WHERE key = 'a1'");
    let before = site.dump();
    site.write("more.jsonl", &lines(&[artist("b"), show("s9", Some("a1"), "upcoming")]));
    site.run("replay more.jsonl").fails(&["artist.shows", "a1", "lines 1 to 2"]);
    assert_eq!(site.dump(), before);
    site.run("repair").exits(0);
    site.run("replay more.jsonl").exits(0);
    site.is_exact();
}

// Files that are broken, changed, or read by two.

#[test]
fn a_gzip_that_is_shortened_off_or_corrupt_ends_at_its_line_and_a_whole_one_continues() {
    let events: Vec<String> = {
        let mut random = Random(9); // names that do not compress
        let name = |random: &mut Random| {
            (0..8).map(|_| format!("{:x}", random.below(1 << 30))).collect::<String>()
        };
        (0..4_000)
            .map(|at| {
                but(artist(&format!("g{at}")), "name", Some(json!(name(&mut random)))).to_string()
            })
            .collect()
    };
    let whole = gzip(&text(&events));
    let site = Site::new();
    let mut seen = Vec::new();
    let mut corrupt = whole.clone();
    corrupt[whole.len() / 2] ^= 0xff;
    let mut bad_checksum = whole.clone();
    bad_checksum[whole.len() - 6] ^= 1;
    let cutoffs = [0, 5, 12, whole.len() / 3, whole.len() * 2 / 3, whole.len() - 3]
        .map(|at| whole[..at].to_vec());
    for broken in cutoffs.into_iter().chain([corrupt, bad_checksum]) {
        fs::write(site.path("events.jsonl.gz"), &broken).unwrap();
        let ran = site.run("replay events.jsonl.gz").fails(&["line "]);
        let conn = site.open();
        let count = number(&conn, "SELECT count(*) FROM artists");
        assert!(
            ran.err.lines().last().unwrap().starts_with(&format!("line {}: ", count + 1)),
            "{count}: {ran:?}"
        );
        assert_eq!(applied(&conn, "events.jsonl"), count);
        Model::of(&events[..count]).is_in(&conn);
        seen.push(count);
        if broken.len() + 3 >= whole.len() {
            drop(conn);
            fs::remove_file(site.path("site.db")).unwrap(); // from the beginning for the next one
        }
    }
    assert!(
        seen.iter().any(|count| (1..3_999).contains(count)),
        "none was cut off in its middle: {seen:?}"
    );
    fs::write(site.path("events.jsonl.gz"), &whole).unwrap();
    site.run("replay events.jsonl.gz").exits(0);
    Model::of(&events).is_in(&site.open());
}

#[test]
fn gzip_is_known_by_its_first_bytes_and_may_have_several_members() {
    let events = base();
    let members = [
        gzip(&text(&events[..2])),
        gzip(&text(&events[2..5])),
        gzip(&[]),
        gzip(&text(&events[5..])),
    ]
    .concat();
    for name in ["members.jsonl.gz", "members", "members.jsonl"] {
        let site = Site::new();
        fs::write(site.path(name), &members).unwrap();
        site.run(&format!("replay {name}")).exits(0);
        Model::of(&events).is_in(&site.open());
        assert_eq!(applied(&site.open(), name.strip_suffix(".gz").unwrap_or(name)), events.len());
    }
    let site = Site::new();
    site.write("plain.jsonl.gz", &events);
    site.run("replay plain.jsonl.gz").fails(&["line 1: "]);
    assert!(stored(&site.open()).values().all(BTreeMap::is_empty));
}

#[test]
fn packing_a_file_or_naming_its_stream_does_not_apply_it_again() {
    let events = base();
    let site = Site::with(&events);
    let before = site.dump();
    let longer = [events.as_slice(), &[artist("z").to_string()]].concat();
    fs::write(site.path("base.jsonl.gz"), gzip(&text(&events))).unwrap();
    assert!(site.run("replay base.jsonl.gz").exits(0).out.contains(" 0 events applied"));
    site.write("copy", &events);
    assert!(site.run("replay copy --stream base.jsonl").exits(0).out.contains(" 0 events applied"));
    assert_eq!(site.dump(), before);
    site.write("copy", &longer);
    assert!(site.run("replay copy --stream base.jsonl").exits(0).out.contains(" 1 events applied"));
    // Under a name of its own it is another stream, whose first event does not fit.
    site.run("replay copy").fails(&["line 1: ", "a1"]);
    assert_eq!(applied(&site.open(), "copy"), 0);
}

#[test]
fn streams_have_positions_of_their_own() {
    let site = Site::with(&base());
    site.write("two.jsonl", &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming")]));
    site.run("replay two.jsonl --stream second").exits(0);
    site.write("base.jsonl", &[base(), lines(&[show("b3", Some("b1"), "upcoming")])].concat());
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 1 events applied"));
    let conn = site.open();
    let positions = ["base.jsonl", "second", "two.jsonl"].map(|stream| applied(&conn, stream));
    assert_eq!((positions, stored(&conn)["artist.shows"][&key("b1")]), ([8, 2, 0], 2));
    site.is_exact();
}

#[test]
fn a_stream_without_a_name_or_with_one_that_is_too_long_is_refused_before_anything_is_done() {
    let site = Site::new();
    fs::write(site.path(".gz"), gzip(&text(&base()))).unwrap();
    site.write("base.jsonl", &base());
    let files = site.files();
    let long = "\u{e9}".repeat(129);
    let named = |stream: &str| {
        site.run_args(&["replay", "base.jsonl", "--db", "site.db", "--stream", stream])
    };
    named("").fails(&["stream \"\"", "1 to 256 bytes", "--stream"]);
    named(&long).fails(&[&long, "1 to 256 bytes, not 258"]);
    site.run("replay .gz").fails(&["stream \"\"", "--stream"]);
    // Before the events are looked at, too.
    site.run_args(&["replay", "absent.jsonl", "--db", "site.db", "--stream", ""])
        .fails(&["1 to 256 bytes"]);
    assert_eq!(site.files(), files);
    let longest = "\u{e9}".repeat(128);
    named(&longest).exits(0);
    assert_eq!(applied(&site.open(), &longest), base().len());
    site.run("replay .gz --stream other").fails(&["line 1: "]);
}

/// A database whose positions are where they were before there were offsets.
fn with_old_positions(site: &Site) {
    site.sql(
        "CREATE TABLE replay_position (stream TEXT NOT NULL PRIMARY KEY, lines INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
         INSERT INTO replay_position SELECT stream, last, hash FROM keepcount_offsets JOIN replay_prefix USING (stream);
         DROP TABLE keepcount_offsets; DROP TABLE replay_prefix",
    );
}

#[test]
fn positions_from_before_there_were_offsets_are_taken_over_by_a_replay() {
    let site = Site::with(&base());
    site.write("two.jsonl", &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming")]));
    site.run("replay two.jsonl --stream second").exits(0);
    let before = site.dump();
    with_old_positions(&site);

    let old = fs::read(site.path("site.db")).unwrap();
    for words in ["totals artist.shows", "verify", "repair"] {
        site.run(words).fails(&["site.db", "replay_position", "before there were offsets"]);
        assert!(fs::read(site.path("site.db")).unwrap() == old, "{words} has written");
    }
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 0 events applied"));
    assert_eq!(site.dump(), before);
    assert_eq!(
        number(&site.open(), "SELECT count(*) FROM sqlite_schema WHERE name = 'replay_position'"),
        0
    );

    // Each goes on where it was, and still knows the lines that were applied.
    site.write(
        "two.jsonl",
        &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming"), artist("b3")]),
    );
    assert!(
        site.run("replay two.jsonl --stream second").exits(0).out.contains(" 1 events applied")
    );
    site.write("base.jsonl", &base()[1..]);
    site.run("replay base.jsonl").fails(&["base.jsonl", "7 lines"]);
    site.is_exact();
}

#[test]
fn old_positions_that_cannot_be_offsets_are_refused_and_left_alone() {
    let long = "s".repeat(257);
    for (change, names) in [
        ("UPDATE replay_position SET stream = ''".to_owned(), "1 to 256 bytes"),
        (format!("UPDATE replay_position SET stream = '{long}'"), "1 to 256 bytes"),
        ("UPDATE replay_position SET hash = x'00'".to_owned(), "32 byte"),
        // An older version of the example came back, after a newer one had replayed the stream.
        (
            "CREATE TABLE keepcount_offsets (stream TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
             INSERT INTO keepcount_offsets VALUES ('base.jsonl', 9)"
                .to_owned(),
            "it has an offset already",
        ),
    ] {
        let site = Site::with(&base());
        with_old_positions(&site);
        site.sql(&change);
        let old = fs::read(site.path("site.db")).unwrap();
        site.run("replay base.jsonl").fails(&["site.db", "replay_position", names]);
        assert!(fs::read(site.path("site.db")).unwrap() == old, "it has written after {change}");
    }
}

#[test]
fn an_offset_without_the_hash_of_its_lines_is_refused() {
    for (change, names) in [
        ("DELETE FROM replay_prefix", "no hash of stream base.jsonl, whose offset is 7"),
        ("DELETE FROM keepcount_offsets", "a hash of stream base.jsonl, whose offset is 0"),
        ("UPDATE keepcount_offsets SET last = 6", "lines 1 to 6"),
        ("UPDATE keepcount_offsets SET last = 8", "8 lines"),
        ("UPDATE keepcount_offsets SET last = -1", "the offset of stream base.jsonl is -1"),
    ] {
        let site = Site::with(&base());
        site.sql(change);
        let before = site.dump();
        site.run("replay base.jsonl").fails(&[names]);
        assert_eq!(site.dump(), before, "{change}");
    }
}

/// An event's offset begins behind the event before, so that blank lines between leave no gap;
/// those at the end belong to the next event.
#[test]
fn blank_lines_are_part_of_the_next_event_s_offset() {
    let spaced: Vec<String> =
        base().into_iter().flat_map(|line| [String::new(), " \t".to_owned(), line]).collect();
    let last = [spaced.clone(), vec![String::new(); 4]].concat();
    let site = Site::with(&last);
    assert_eq!(applied(&site.open(), "base.jsonl"), 21);
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 0 events applied"));
    site.write("base.jsonl", &[last, lines(&[artist("b1")])].concat());
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 1 events applied"));
    assert_eq!(applied(&site.open(), "base.jsonl"), 26);
    site.is_exact();

    // With an offset for each event.
    site.write("spaced.jsonl", &spaced);
    let files = site.files();
    site.run_args(&["--events", "spaced.jsonl"]).exits(0);
    let made = site.files().into_iter().find(|name| !files.contains(name)).unwrap();
    assert_eq!(applied(&Connection::open(site.path(&made)).unwrap(), "demonstration"), 21);
}

#[test]
fn a_file_that_is_shorter_or_changed_where_it_was_applied_is_an_error() {
    let events = base();
    let site = Site::with(&events);
    let before = site.dump();
    let changed_at = |at: usize, line: &str| {
        let mut changed = [events.as_slice(), &[artist("new").to_string()]].concat();
        line.clone_into(&mut changed[at]);
        changed
    };
    let mut swapped = changed_at(0, &events[1]);
    events[0].clone_into(&mut swapped[1]);
    let with_blank = [&[String::new()], events.as_slice()].concat();
    let spaced = changed_at(2, &format!("{} ", events[2]));
    for changed in [
        changed_at(0, &artist("other").to_string()),
        changed_at(6, ""),
        swapped,
        with_blank,
        spaced,
    ] {
        site.write("base.jsonl", &changed);
        site.run("replay base.jsonl").fails(&["base.jsonl", "lines 1 to 7"]);
    }
    for length in [0, 1, 6] {
        site.write("base.jsonl", &events[..length]);
        site.run("replay base.jsonl").fails(&["base.jsonl", &format!("line {length}"), "7 lines"]);
    }
    assert_eq!(site.dump(), before);
    site.write("base.jsonl", &changed_at(7, &artist("newer").to_string()));
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 1 events applied"));
}

#[test]
fn two_replays_of_one_stream_at_once_count_nothing_twice() {
    let mut both_worked = 0;
    for round in 0..5_u64 {
        let mut writer = Writer::new(100 + round, "c");
        let events = writer.lines(4_000);
        let site = Site::new();
        site.write("events.jsonl", &events);
        let first = site.spawn("replay events.jsonl");
        // The second comes while the first is making the database, or at one of its commits.
        thread::sleep(Duration::from_millis(round * 25));
        let second = site.spawn("replay events.jsonl");
        let (first, second) = (finish(first, LONGEST), finish(second, LONGEST));
        for ran in [&first, &second] {
            match ran.code {
                Some(0) => {}
                _ => assert!(
                    ran.code == Some(1) && ran.err.contains("somebody else is replaying"),
                    "{ran:?}"
                ),
            }
        }
        both_worked += u64::from(first.code == second.code);
        site.run("replay events.jsonl").exits(0);
        writer.model.is_in(&site.open());
        assert_eq!(applied(&site.open(), "events.jsonl"), events.len());
        site.is_exact();
    }
    println!("of 5 rounds, {both_worked} let both replays end well");
}
