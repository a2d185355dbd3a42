//! Replays with the concert example are exact: of a long real history, of random events, of files
//! that are damaged, changed, or read by two replays at once. Verify then reports exactly the
//! damage that bypassed the hooks, and repair repairs exactly that.
#![allow(clippy::format_collect)] // the expected output is built line by line

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::concert::{
    COUNTERS, Key, LONGEST, Model, NEW_YEAR, Part, Random, SABOTAGE, Site, Totals, Writer, artist,
    delete, drifts, dump, expected, finish, gzip, history, in_epoch, is_rollup, key, key_json,
    lines, non_zero, now, number, on_day, recount, sabotage, setlist, show, stored, text, update,
    vote, votes, with_member,
};

/// The number of lines of a stream that were applied.
fn applied_lines(conn: &Connection, stream: &str) -> usize {
    number(
        conn,
        &format!(
            "SELECT coalesce((SELECT last FROM keepcount_offsets WHERE stream = '{stream}'), 0)"
        ),
    )
}

/// A site with the history replayed, and votes for its setlists as a second stream; and the model
/// of both.
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
    model.assert_in(&site.open());
    assert_eq!(applied_lines(&site.open(), "events.jsonl"), history.lines.len());

    let setlists: Vec<String> = model.setlists.keys().cloned().collect();
    let voted = votes(1842, &setlists, 8_000);
    site.write("votes.jsonl", &voted);
    site.run("replay votes.jsonl").exits(0);
    model.apply_lines(&voted);
    (site, model)
}

#[test]
fn long_history_has_the_totals_of_a_plain_sql_recount() {
    let (site, model) = replayed_history();
    model.assert_in(&site.open());
    site.assert_exact();
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
fn verify_and_repair_of_a_long_history_find_exactly_the_sabotage() {
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
        assert!(
            of_kind(&wanted, kind) >= 3,
            "the sabotage leaves too few counters {kind}: {wanted}"
        );
    }
    // The next test has short pages, over a short history: here they take a minute.
    for page in [100, 1_000] {
        assert_found_and_repaired_exactly(&whole.copy(), page);
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
                "{kind} causes no drift"
            );
            println!("{kind}, page {page}");
            assert_found_and_repaired_exactly(&site, page);
        }
    }
}

#[track_caller]
fn assert_found_and_repaired_exactly(site: &Site, page: usize) {
    let conn = site.open();
    let (before, true_totals, broken) = (stored(&conn), recount(&conn), drifts(&conn));
    let wanted = |samples, repaired| expected(&conn, &COUNTERS, samples, repaired);

    let untouched = dump(&conn);
    let verify = site.run(&format!("verify --json --page {page} --samples 100000")).exits(2).json();
    assert_eq!(verify["counters"], wanted(100_000, false), "page {page}");
    assert_eq!((&verify["complete"], &verify["resume"]), (&json!(true), &Value::Null));
    assert_eq!(dump(&conn), untouched, "a verify wrote to the database");

    let repaired = wanted(20, true);
    let repair = site.run(&format!("repair --json --page {page}")).exits(0).json();
    assert_eq!(repair["counters"], repaired, "page {page}");
    let after = stored(&conn);
    assert_eq!(recount(&conn), true_totals, "a repair wrote rows");
    assert_eq!(non_zero(&after), true_totals);
    for counter in COUNTERS.into_iter().filter(|counter| !is_rollup(counter)) {
        // A total that was right is unchanged, even if it is stored as 0. Rollups are left out: a
        // repair of their base changes them.
        let broken: BTreeSet<&Key> = broken[counter].iter().map(|(key, ..)| key).collect();
        let right = |totals: &BTreeMap<Key, i64>| {
            let kept = totals.iter().filter(|(key, _)| !broken.contains(key));
            kept.map(|(key, total)| (key.clone(), *total)).collect::<Vec<_>>()
        };
        assert_eq!(
            right(&after[counter]),
            right(&before[counter]),
            "{counter}: a repair changed a correct total"
        );
    }
    let clean = site.run(&format!("verify --json --page {page}")).exits(0).json();
    assert_eq!(clean["counters"], wanted(20, false));
}

/// The samples of one counter in a verify's report: key, stored, true.
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

/// One setlist of one show of one artist, with votes: few enough to state the totals of each level
/// by hand.
fn one_setlist_site() -> Site {
    let day = |at: usize| NEW_YEAR + i64::try_from(at).unwrap() * 86_400;
    let timed = |at| {
        with_member(vote(&format!("v{at}"), "l", "u", "up"), "created_at", Some(json!(day(at))))
    };
    let mut events = vec![artist("a"), show("s", Some("a"), "upcoming"), setlist("l", Some("s"))];
    events.extend((0..5).map(timed));
    Site::with(&lines(&events))
}

/// A rollup is compared with its base as stored, so each kind of damage has its own lines in the
/// report.
#[test]
fn damage_is_reported_at_its_level_and_at_rollups_that_no_longer_sum_it() {
    type Line = (&'static str, Value, i64, i64);
    let (weight, epoch) = (1 << 30, NEW_YEAR / 86_400);
    let key_on_day = |id: &str, at: i64| key_json(&in_epoch(id, epoch + at));
    let (a, s, l) = (json!("a"), json!("s"), json!("l"));
    // The damage; some samples of the report; all counters with drift.
    let cases: [(&str, Vec<Line>, &[&str]); 7] = [
        // A vote is deleted without a hook. The rollups equal the sums of what is stored, so they
        // have no drift.
        (
            "DELETE FROM votes WHERE id = 'v0'",
            vec![
                ("setlist.votes", l.clone(), 5, 4),
                ("setlist.upvotes", l.clone(), 5, 4),
                ("setlist.score", l.clone(), 5, 4),
                ("user.votes", json!("u"), 5, 4),
                ("setlist.trend_1d", key_on_day("l", 0), weight, 0),
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
        // A base total is wrong, so its rollup drifts. The rollup of that rollup does not.
        (
            "UPDATE setlist_votes SET total = 7",
            vec![("setlist.votes", l, 7, 5), ("show.votes", s.clone(), 5, 7)],
            &["setlist.votes", "show.votes"],
        ),
        (
            "DELETE FROM setlist_trend_1d WHERE key_2 = (SELECT min(key_2) FROM setlist_trend_1d)",
            vec![
                ("setlist.trend_1d", key_on_day("l", 0), 0, weight),
                ("show.trend_1d", key_on_day("s", 0), weight, 0),
            ],
            &["setlist.trend_1d", "show.trend_1d"],
        ),
        // A rollup of the middle level is wrong, so it drifts, and so does the rollup above it.
        (
            "UPDATE show_votes SET total = 8",
            vec![("show.votes", s.clone(), 8, 5), ("artist.votes", a.clone(), 5, 8)],
            &["artist.votes", "show.votes"],
        ),
        ("DELETE FROM artist_votes", vec![("artist.votes", a.clone(), 0, 5)], &["artist.votes"]),
        // Memberships.
        (
            "UPDATE setlist_show SET total = 2",
            vec![
                ("setlist.show", json!(["l", "s"]), 2, 1),
                ("show.votes", s, 5, 10),
                ("show.trend_1d", key_on_day("s", 0), weight, 2 * weight),
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
                ("artist.trend_1d", key_on_day("b", 4), 0, weight),
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
    let whole = one_setlist_site();
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
        assert_found_and_repaired_exactly(&site, 7);
        if !damage.contains("votes WHERE id") {
            assert_eq!(non_zero(&stored(&site.open())), totals, "{damage}");
        }
    }
}

/// Hooked writes change memberships and base totals while the rollups that sum them have drift.
#[test]
fn hooked_writes_do_not_change_the_drift_of_rollups() {
    let mut writer = Writer::new(77, "h");
    let site = Site::with(&writer.lines(800));
    sabotage_totals(&site);
    let deficits = |site: &Site| -> Totals {
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
    let before = deficits(&site);
    assert!(
        before
            .iter()
            .filter(|(counter, _)| is_rollup(counter))
            .all(|(_, deficits)| !deficits.is_empty()),
        "{before:?}"
    );
    site.write("more.jsonl", &writer.lines(800));
    site.run("replay more.jsonl").exits(0);
    assert_eq!(deficits(&site), before);
    assert_found_and_repaired_exactly(&site, 50);
    writer.model.assert_in(&site.open());
}

/// Does the sabotage that changes totals, and none that changes rows.
fn sabotage_totals(site: &Site) {
    for (_, statement) in SABOTAGE.into_iter().filter(|(kind, _)| !kind.starts_with("rows")) {
        site.sql(statement);
    }
}

#[test]
fn random_events_have_the_totals_of_a_model() {
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
                applied_lines(&site.open(), "events.jsonl") + usize::try_from(blanks).unwrap(),
                events.len()
            );
            println!("seed {seed}, part {part}: {} votes", writer.model.votes.len());
            writer.model.assert_in(&site.open());
            site.run("verify --page 3").exits(0);
        }
        assert!(!writer.model.votes.is_empty());
        let empty: Vec<_> =
            writer.model.totals().into_iter().filter(|(_, totals)| totals.is_empty()).collect();
        assert!(empty.is_empty(), "seed {seed}: no totals of {empty:?}");
        site.assert_exact();
    }
}

#[test]
fn moves_cascades_and_long_keys_are_counted_correctly() {
    let long = "k".repeat(1_024);
    let events = [
        artist("a"),
        artist("b"),
        artist(""),
        artist(&"i".repeat(1_024)), // the longest key
        show("s", Some("a"), "upcoming"),
        update(show("s", Some("b"), "completed")), // parent and condition at once
        update(show("s", None, "upcoming")),
        update(show("s", Some(""), "upcoming")),
        show("t", None, "cancelled"),
        setlist("l", Some("s")),
        setlist("m", None),
        update(setlist("m", Some("t"))),
        update(setlist("l", None)),
        update(setlist("l", None)), // changes nothing
        vote("v", "l", &long, "up"),
        vote("w", "l", "u", "up"),
        update(vote("w", "l", "u", "down")),
        update(vote("v", "m", "u", "down")),
        vote("gone", "m", "u2", "up"),
        delete("votes", "gone"),
        vote("gone", "m", "u3", "down"),
        delete("artists", "a"),
        delete("shows", "t"), // with setlist m, and votes v and gone
        artist("a"),
        show("t", Some("a"), "upcoming"),
    ];
    let events = lines(&events);
    let site = Site::with(&events);
    let model = Model::of(&events);
    assert_eq!((model.votes.len(), model.totals()["setlist.score"].get(&key("l"))), (1, Some(&-1)));
    model.assert_in(&site.open());
    site.assert_exact();
}

#[test]
fn json_members_are_decoded_and_unknown_ones_ignored() {
    let row = r#"{"popularity":100,"followers":9223372036854775807,"name":"\u0000","id":"q\u0041","more":1e999}"#;
    let events = [
        format!(
            r#"  {{"at":{{"a":[1e999,null]}},"x":[[]],"op":"\u0069nsert","table":"artists","row":{row}}} {}"#,
            '\r'
        ),
        show("s1", Some("qA"), "upcoming").to_string().replace("2025-06-01", "2024-02-29"),
        show("s2", Some("qA"), "upcoming").to_string().replace("2025-06-01", "9999-12-31"),
        with_member(vote("v", "l", "u", "up"), "created_at", Some(json!(i64::MIN))).to_string(),
        with_member(delete("shows", "s2"), "status", Some(json!(["of no interest"]))).to_string(),
    ];
    let site =
        Site::with(&[&events[..3], &[setlist("l", None).to_string()], &events[3..]].concat());
    let conn = site.open();
    assert_eq!(stored(&conn)["artist.shows"][&key("qA")], 1);
    // One for each of 9,223,372,036,854 million followers, plus 10 for popularity; and a vote in
    // the lowest epoch.
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

/// Lines that violate the format, or do not fit the rows of `base`; each with what the error must
/// name.
fn invalid_lines() -> Vec<(Vec<u8>, &'static str)> {
    let with = |event: Value, member: &str, value: Value| with_member(event, member, Some(value));
    let without = |event: Value, member: &str| with_member(event, member, None);
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
        (without(update(setlist("l1", None)), "show_id"), "show_id"), // an update has the whole row
        (on_day(v(), "2024-12-31"), "1735689600, later than now, 1735689599"),
        (
            on_day(update(vote("v1", "l1", "u", "up")), "2024-12-31"),
            "1735689600, later than now, 1735689599",
        ),
        (on_day(v(), "2025-02-30"), "at"),
        (on_day(v(), ""), "at"),
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
    // Every column is required, and only two may be null.
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
        ([b"\xef\xbb\xbf", valid.as_bytes()].concat(), "JSON"), // a byte order mark
        (valid.bytes().map(|byte| if byte == b'x' { 0xff } else { byte }).collect(), "UTF-8"),
    ]);
    invalid
}

/// The last second of 2025-06-01.
const LAST_SECOND: i64 = 1_748_822_399;

#[test]
fn vote_later_than_the_day_of_its_event_is_refused() {
    let given = |created_at: i64| {
        with_member(vote("x", "l1", "u", "up"), "created_at", Some(json!(created_at)))
    };
    let changed = |created_at: i64| {
        update(with_member(vote("v1", "l1", "u1", "down"), "created_at", Some(json!(created_at))))
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
        let event = on_day(event, day);
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
fn vote_in_the_last_second_of_its_day_or_without_a_day_counts() {
    let given = |id: &str, created_at: i64| {
        with_member(vote(id, "l1", "u", "up"), "created_at", Some(json!(created_at)))
    };
    let in_the_future = LAST_SECOND + 100 * 365 * 86_400;
    let events = [
        on_day(given("last", LAST_SECOND), "2025-06-01"),
        on_day(update(given("v1", LAST_SECOND)), "2025-06-01"),
        on_day(given("before 1970", -1), "1969-12-31"),
        given("unchecked", in_the_future),
        on_day(given("null", in_the_future), "2025-06-01"), // its day is set to null below
        update(given("v2", in_the_future)),
        given("to go", in_the_future),
        on_day(delete("votes", "to go"), "2025-06-01"), // a deleted vote is not checked
        on_day(artist("of no interest"), "a day, more or less"),
    ];
    let mut events = events.to_vec();
    events[4]["at"] = Value::Null;
    let events = [base(), lines(&events)].concat();
    let site = Site::with(&events);
    assert_eq!(LAST_SECOND, keepcount::Date::new(2025, 6, 1).unwrap().last_second());
    Model::of(&events).assert_in(&site.open());
    let trend = &stored(&site.open())["artist.trend_1d"];
    let epochs: Vec<(i64, bool)> = [-1, LAST_SECOND, in_the_future]
        .map(|at| at.div_euclid(86_400))
        .map(|epoch| (epoch, trend.contains_key(&in_epoch("a1", epoch))))
        .to_vec();
    assert!(epochs.iter().all(|(_, counted)| *counted), "{epochs:?}");
    site.assert_exact();
}

#[test]
fn every_invalid_line_ends_the_replay_and_a_corrected_file_continues() {
    let (base, after) = (base(), artist("after").to_string());
    // Blank lines count, so the next line is the 10th.
    let before = [&base[..3], &[String::new()], &base[3..], &[" \t".to_owned()]].concat();
    let applied_alone = Site::with(&before);
    let (wanted, wanted_totals) = (recount(&applied_alone.open()), stored(&applied_alone.open()));
    let invalid = invalid_lines();
    println!("{} invalid lines", invalid.len());
    // Two threads, because each process works for milliseconds and mostly waits.
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
                        "{shown}: rows and totals of the lines before it"
                    );
                    assert_eq!(
                        applied_lines(&conn, "base.jsonl"),
                        8,
                        "{shown}: the last line that was applied"
                    );

                    let corrected =
                        [before.as_slice(), &[artist("mid").to_string(), after.clone()]].concat();
                    site.write("base.jsonl", &corrected);
                    let ran = site.run("replay base.jsonl").exits(0);
                    assert!(ran.out.contains(" 2 events applied"), "{shown}: {ran:?}");
                    Model::of(&corrected).assert_in(&conn);
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
    writer.model.assert_in(&site.open());
    site.write("events.jsonl", &[good.as_slice(), &[artist("later").to_string()]].concat());
    site.run("replay events.jsonl").exits(0);
    writer.model.artists.insert("later".to_owned(), (0, 0));
    writer.model.assert_in(&site.open());
    site.assert_exact();
}

#[test]
fn line_of_a_megabyte_is_refused_and_the_last_line_needs_no_newline() {
    let site = Site::new();
    let long = with_member(artist("x"), "name", Some(json!("y".repeat(1 << 20)))).to_string();
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
fn overflow_of_a_total_refuses_the_events_and_names_counter_and_key() {
    let site = Site::with(&base());
    site.sql("UPDATE artist_shows SET total = 9223372036854775807 WHERE key = 'a1'");
    let before = site.dump();
    site.write("more.jsonl", &lines(&[artist("b"), show("s9", Some("a1"), "upcoming")]));
    site.run("replay more.jsonl").fails(&["artist.shows", "a1", "lines 1 to 2"]);
    assert_eq!(site.dump(), before);
    site.run("repair").exits(0);
    site.run("replay more.jsonl").exits(0);
    site.assert_exact();
}

// Files that are damaged, changed, or read by two replays.

#[test]
fn truncated_or_corrupt_gzip_ends_at_its_line_and_a_whole_one_continues() {
    let events: Vec<String> = {
        let mut random = Random(9); // names that do not compress
        let name = |random: &mut Random| {
            (0..8).map(|_| format!("{:x}", random.below(1 << 30))).collect::<String>()
        };
        (0..4_000)
            .map(|at| {
                with_member(artist(&format!("g{at}")), "name", Some(json!(name(&mut random))))
                    .to_string()
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
    let truncated = [0, 5, 12, whole.len() / 3, whole.len() * 2 / 3, whole.len() - 3]
        .map(|at| whole[..at].to_vec());
    for broken in truncated.into_iter().chain([corrupt, bad_checksum]) {
        fs::write(site.path("events.jsonl.gz"), &broken).unwrap();
        let ran = site.run("replay events.jsonl.gz").fails(&["line "]);
        let conn = site.open();
        let count = number(&conn, "SELECT count(*) FROM artists");
        assert!(
            ran.err.lines().last().unwrap().starts_with(&format!("line {}: ", count + 1)),
            "{count}: {ran:?}"
        );
        assert_eq!(applied_lines(&conn, "events.jsonl"), count);
        Model::of(&events[..count]).assert_in(&conn);
        seen.push(count);
        if broken.len() + 3 >= whole.len() {
            drop(conn);
            fs::remove_file(site.path("site.db")).unwrap(); // from the beginning for the next one
        }
    }
    assert!(
        seen.iter().any(|count| (1..3_999).contains(count)),
        "no file was cut between its first and last event: {seen:?}"
    );
    fs::write(site.path("events.jsonl.gz"), &whole).unwrap();
    site.run("replay events.jsonl.gz").exits(0);
    Model::of(&events).assert_in(&site.open());
}

#[test]
fn gzip_is_detected_by_its_first_bytes_and_may_have_several_members() {
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
        Model::of(&events).assert_in(&site.open());
        assert_eq!(
            applied_lines(&site.open(), name.strip_suffix(".gz").unwrap_or(name)),
            events.len()
        );
    }
    let site = Site::new();
    site.write("plain.jsonl.gz", &events);
    site.run("replay plain.jsonl.gz").fails(&["line 1: "]);
    assert!(stored(&site.open()).values().all(BTreeMap::is_empty));
}

#[test]
fn compressing_a_file_or_naming_its_stream_does_not_apply_it_again() {
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
    // Under its own name the file is another stream, whose first event does not fit the rows.
    site.run("replay copy").fails(&["line 1: ", "a1"]);
    assert_eq!(applied_lines(&site.open(), "copy"), 0);
}

#[test]
fn each_stream_has_its_own_position() {
    let site = Site::with(&base());
    site.write("two.jsonl", &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming")]));
    site.run("replay two.jsonl --stream second").exits(0);
    site.write("base.jsonl", &[base(), lines(&[show("b3", Some("b1"), "upcoming")])].concat());
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 1 events applied"));
    let conn = site.open();
    let positions =
        ["base.jsonl", "second", "two.jsonl"].map(|stream| applied_lines(&conn, stream));
    assert_eq!((positions, stored(&conn)["artist.shows"][&key("b1")]), ([8, 2, 0], 2));
    site.assert_exact();
}

#[test]
fn stream_name_that_is_empty_or_too_long_is_refused_before_any_work() {
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
    // The name is checked before the events file is opened.
    site.run_args(&["replay", "absent.jsonl", "--db", "site.db", "--stream", ""])
        .fails(&["1 to 256 bytes"]);
    assert_eq!(site.files(), files);
    let longest = "\u{e9}".repeat(128);
    named(&longest).exits(0);
    assert_eq!(applied_lines(&site.open(), &longest), base().len());
    site.run("replay .gz --stream other").fails(&["line 1: "]);
}

/// Changes a database to the layout of older releases, which kept positions in `replay_position`.
fn downgrade_positions(site: &Site) {
    site.sql(
        "CREATE TABLE replay_position (stream TEXT NOT NULL PRIMARY KEY, lines INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
         INSERT INTO replay_position SELECT stream, last, hash FROM keepcount_offsets JOIN replay_prefix USING (stream);
         DROP TABLE keepcount_offsets; DROP TABLE replay_prefix",
    );
}

#[test]
fn replay_migrates_old_positions_to_offsets() {
    let site = Site::with(&base());
    site.write("two.jsonl", &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming")]));
    site.run("replay two.jsonl --stream second").exits(0);
    let before = site.dump();
    downgrade_positions(&site);

    let old = fs::read(site.path("site.db")).unwrap();
    for words in ["totals artist.shows", "verify", "repair"] {
        site.run(words).fails(&["site.db", "replay_position", "before there were offsets"]);
        assert!(fs::read(site.path("site.db")).unwrap() == old, "{words} wrote to the file");
    }
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 0 events applied"));
    assert_eq!(site.dump(), before);
    assert_eq!(
        number(&site.open(), "SELECT count(*) FROM sqlite_schema WHERE name = 'replay_position'"),
        0
    );

    // Each stream continues at its position, and its applied lines are still checked.
    site.write(
        "two.jsonl",
        &lines(&[artist("b1"), show("b2", Some("b1"), "upcoming"), artist("b3")]),
    );
    assert!(
        site.run("replay two.jsonl --stream second").exits(0).out.contains(" 1 events applied")
    );
    site.write("base.jsonl", &base()[1..]);
    site.run("replay base.jsonl").fails(&["base.jsonl", "7 lines"]);
    site.assert_exact();
}

#[test]
fn old_positions_that_cannot_be_offsets_are_refused_and_not_changed() {
    let long = "s".repeat(257);
    for (change, names) in [
        ("UPDATE replay_position SET stream = ''".to_owned(), "1 to 256 bytes"),
        (format!("UPDATE replay_position SET stream = '{long}'"), "1 to 256 bytes"),
        ("UPDATE replay_position SET hash = x'00'".to_owned(), "32 byte"),
        // An older release of the example ran after a newer one had replayed the stream.
        (
            "CREATE TABLE keepcount_offsets (stream TEXT NOT NULL PRIMARY KEY, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
             INSERT INTO keepcount_offsets VALUES ('base.jsonl', 9)"
                .to_owned(),
            "it has an offset already",
        ),
    ] {
        let site = Site::with(&base());
        downgrade_positions(&site);
        site.sql(&change);
        let old = fs::read(site.path("site.db")).unwrap();
        site.run("replay base.jsonl").fails(&["site.db", "replay_position", names]);
        assert!(fs::read(site.path("site.db")).unwrap() == old, "it wrote to the file after {change}");
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

/// The offset range of an event begins after the event before it, so blank lines between events
/// leave no gap. Blank lines at the end belong to the next event.
#[test]
fn blank_lines_belong_to_the_offset_of_the_next_event() {
    let spaced: Vec<String> =
        base().into_iter().flat_map(|line| [String::new(), " \t".to_owned(), line]).collect();
    let last = [spaced.clone(), vec![String::new(); 4]].concat();
    let site = Site::with(&last);
    assert_eq!(applied_lines(&site.open(), "base.jsonl"), 21);
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 0 events applied"));
    site.write("base.jsonl", &[last, lines(&[artist("b1")])].concat());
    assert!(site.run("replay base.jsonl").exits(0).out.contains(" 1 events applied"));
    assert_eq!(applied_lines(&site.open(), "base.jsonl"), 26);
    site.assert_exact();

    // The demonstration applies one offset for each event.
    site.write("spaced.jsonl", &spaced);
    let files = site.files();
    site.run_args(&["--events", "spaced.jsonl"]).exits(0);
    let made = site.files().into_iter().find(|name| !files.contains(name)).unwrap();
    assert_eq!(applied_lines(&Connection::open(site.path(&made)).unwrap(), "demonstration"), 21);
}

#[test]
fn file_changed_or_cut_before_its_position_is_refused() {
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
        // The second starts while the first is creating the database, or at one of its commits.
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
        writer.model.assert_in(&site.open());
        assert_eq!(applied_lines(&site.open(), "events.jsonl"), events.len());
        site.assert_exact();
    }
    println!("in {both_worked} of 5 rounds both replays ended well");
}
