//! The contract of the concert example's command line: exit codes, what goes to stdout and what to
//! stderr, the JSON, tokens. A file that is not the example's own is refused with its name, and is
//! not changed.
#![allow(clippy::format_collect)] // the expected output is built line by line

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::{Value, json};

use crate::support::concert::{
    self, COUNTERS, Part, Ran, Site, Writer, artist, drifts, expected, finish, lines, now, recount,
    sabotage, show, start, stored, vote,
};

/// A few hundred rows with correct totals.
fn clean_site() -> Site {
    Site::with(&Writer::new(11, "c").lines(700))
}

/// The same site, with every kind of drift in several counters.
fn broken_site() -> Site {
    let site = clean_site();
    sabotage(&site);
    site
}

/// Resumes a stopped run, `pages` pages at a time, until it completes. Returns the report of every
/// run.
fn run_to_the_end(site: &Site, command: &str, first: Ran, pages: usize) -> Vec<Value> {
    let mut last = first;
    let mut reports = vec![last.json()];
    while last.code == Some(3) {
        last = site.run(&format!("{command} --resume {} --max-pages {pages} --json", last.token()));
        reports.push(last.json());
        assert!(reports.len() < 5_000, "the run does not end");
    }
    // What earlier runs found is not in the last run's report.
    let counters = reports.last().unwrap()["counters"].as_array().unwrap();
    let found = command == "verify" && counters.iter().any(|counter| drift(counter) > 0);
    last.exits(if found { 2 } else { 0 });
    reports
}

fn drift(counter: &Value) -> u64 {
    ["wrong", "missing", "orphan"].iter().map(|kind| counter[kind].as_u64().unwrap()).sum()
}

fn sum(runs: &[Value], member: impl Fn(&Value) -> &Value) -> u64 {
    runs.iter().map(|run| member(run).as_u64().unwrap()).sum()
}

// Usage and exit codes.

#[test]
fn wrong_usage_exits_1_says_why_on_stderr_and_touches_nothing() {
    let site = broken_site();
    let before = (site.dump(), site.files());
    let verify = site.run("verify --page 1 --max-pages 1").exits(3).token();
    let repair = site.run("repair --page 1 --max-pages 1 --counter artist.fame").exits(3).token();
    let dump = site.dump();
    let resumed =
        |command: &str, token: &str, rest: &str| format!("{command} --resume {token} {rest}");
    let usages = [
        ("frob".to_owned(), "frob"),
        ("--frob".to_owned(), "--frob"),
        ("verify --frob".to_owned(), "--frob"),
        ("verify --force".to_owned(), "--force"),
        ("verify extra".to_owned(), "extra"),
        ("totals".to_owned(), "COUNTER"),
        ("totals nope".to_owned(), "nope"),
        ("totals user.votes setlist.votes".to_owned(), "setlist.votes"),
        ("totals artist.shows_ahead".to_owned(), "--at"),
        ("totals artist.shows --at 2025-06-01".to_owned(), "--at"),
        ("totals artist.shows_ahead --at 2025-02-30".to_owned(), "2025-02-30"),
        ("replay".to_owned(), "EVENTS"),
        ("replay absent.jsonl".to_owned(), "absent.jsonl"),
        ("verify --counter nope".to_owned(), "nope"),
        ("repair --counter user.votes --counter artist_shows".to_owned(), "artist_shows"),
        ("verify --counter".to_owned(), "--counter"),
        ("verify --page 0".to_owned(), "--page"),
        ("repair --page 100001".to_owned(), "--page"),
        ("verify --page x".to_owned(), "--page"),
        ("verify --page=-1".to_owned(), "--page"),
        ("verify --page 1.5".to_owned(), "--page"),
        ("verify --max-pages 0".to_owned(), "--max-pages"),
        ("repair --max-pages x".to_owned(), "--max-pages"),
        ("verify --samples=-1".to_owned(), "--samples"),
        ("verify --samples x".to_owned(), "--samples"),
        // With a token, only --max-pages and --json are accepted, even if another option repeats
        // what the token says.
        (resumed("verify", &verify, "--counter user.votes"), "--counter"),
        (resumed("verify", &verify, "--page 1"), "--page"),
        (resumed("verify", &verify, "--samples 20"), "--samples"),
        (resumed("repair", &repair, "--force"), "--force"),
        (resumed("repair", &repair, "--page 1"), "--page"),
        (resumed("repair", &repair, "--counter artist.fame"), "--counter"),
        (resumed("repair", &repair, "--samples 0"), "--samples"),
        (resumed("verify", &verify, "--max-pages 0"), "--max-pages"),
        (resumed("repair", &verify, ""), "token"),
        (resumed("verify", &repair, ""), "token"),
    ];
    for (words, names) in usages {
        println!("{words}");
        site.run(&words).fails(&[names]);
        assert_eq!(site.dump(), dump, "{words}");
    }
    for args in [
        vec!["verify"],
        vec!["totals", "user.votes"],
        vec!["replay", "base.jsonl"],
        vec!["repair", "--db"],
        vec!["--events", "base.jsonl", "verify", "--db", "site.db"],
        vec!["--events", "absent.jsonl"],
        vec!["verify", "--db", "site.db", "--resume", ""],
    ] {
        site.run_args(&args).fails(&[]);
    }
    assert_eq!(site.files(), before.1);
    assert_ne!(dump, before.0, "one page of repair repaired nothing");
    site.run(&resumed("verify", &verify, "--json")).exits(2);
    site.run(&resumed("repair", &repair, "--max-pages 100000 --json")).exits(0);
}

#[test]
fn help_and_version_print_to_stdout_and_exit_0() {
    let site = Site::new();
    for (words, names) in [
        ("--help", "repair"),
        ("-h", "replay"),
        ("help", "verify"),
        ("verify --help", "--max-pages"),
        ("repair -h", "--force"),
        ("help totals", "COUNTER"),
        ("replay --help", "--stream"),
        ("--version", "concert"),
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = site.run_args(&args).exits(0);
        assert!(ran.out.contains(names) && ran.err.is_empty(), "{words}: {ran:?}");
    }
    assert_eq!(site.files(), [""; 0]);
}

#[test]
fn exit_codes_distinguish_clean_drift_stopped_and_repaired() {
    let site = clean_site();
    for (words, code) in [
        ("verify", 0),
        ("verify --json", 0),
        ("repair", 0),
        ("verify --page 1 --max-pages 3", 3),
        ("repair --page 1 --max-pages 3", 3),
    ] {
        let ran = site.run(words).exits(code);
        assert!(!ran.out.is_empty() && ran.err.is_empty(), "{words}: {ran:?}");
    }
    sabotage(&site);
    assert!(!drifts(&site.open())["artist.shows"].is_empty());
    for (words, code) in [
        ("verify", 2),
        ("verify --json", 2),
        ("verify --page 1000 --max-pages 1", 3), // stopped, whatever it found
        ("verify --samples 0", 2),
        ("repair --page 1000 --max-pages 1", 3),
        ("repair", 0), // repaired
        ("verify", 0),
        ("repair --json", 0),
    ] {
        let ran = site.run(words).exits(code);
        assert!(!ran.out.is_empty() && ran.err.is_empty(), "{words}: {ran:?}");
    }
    site.assert_exact();
}

#[test]
fn verify_of_named_counters_ignores_drift_in_others() {
    let site = clean_site();
    site.sql(
        "UPDATE user_votes SET total = total + 1 WHERE key = (SELECT min(key) FROM user_votes)",
    );
    site.run("verify --counter setlist.votes --counter artist.shows").exits(0);
    site.run("verify --counter setlist.votes --counter user.votes").exits(2);
    let before = site.dump();
    site.run("repair --counter setlist.votes").exits(0);
    assert_eq!(site.dump(), before);
    site.run("repair --counter user.votes").exits(0);
    site.assert_exact();
}

/// A verify compares a rollup with its base as stored, even if the base is wrong. So a repair of a
/// rollup repairs its base and membership too.
#[test]
fn verify_and_repair_of_a_rollup_include_the_counters_it_sums() {
    let site = clean_site();
    site.sql(
        "UPDATE show_votes SET total = total + 1
         WHERE key = (SELECT min(key) FROM show_votes JOIN show_artist ON key_1 = key WHERE show_votes.total <> 0)",
    );
    let family = ["setlist.show", "setlist.votes", "show.votes"];
    let verify = site.run("verify --json --counter show.votes").exits(2).json();
    assert_eq!(verify["counters"], expected(&site.open(), &family, 20, false));
    site.run("verify --counter setlist.votes --counter setlist.show --counter show.artist")
        .exits(0);
    site.run("verify --counter artist.votes").exits(2); // it sums what is wrong now
    let names = |report: &Value| -> Vec<String> {
        let counters = report["counters"].as_array().unwrap();
        counters.iter().map(|counter| counter["name"].as_str().unwrap().to_owned()).collect()
    };
    let wanted = expected(&site.open(), &family, 20, true);
    let repair = site.run("repair --json --counter show.votes").exits(0).json();
    assert_eq!(
        (names(&repair), &repair["counters"]),
        (family.map(str::to_owned).to_vec(), &wanted)
    );
    // artist.votes was right before, but is not the sum of show.votes as stored. The repair changed
    // it by what it corrected below, so it still drifts.
    let left: Vec<&str> = drifts(&site.open())
        .into_iter()
        .filter(|(_, left)| !left.is_empty())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(left, ["artist.votes"]);
    site.run("verify --counter artist.votes").exits(2);
    site.run("repair --counter artist.votes").exits(0);
    site.assert_exact();

    // The base is wrong, and the rollup is the sum of what the base stores. The rollup's own line
    // has no drift, but the verify is not clean.
    let votes_off = "UPDATE setlist_votes SET total = total + 2 WHERE key IN
                     (SELECT key FROM setlist_votes JOIN setlist_show ON key_1 = key ORDER BY key LIMIT 3)";
    site.sql(votes_off);
    site.sql(
        "UPDATE show_votes AS s SET total = (SELECT sum(v.total) FROM setlist_show JOIN setlist_votes AS v ON v.key = key_1 WHERE key_2 = s.key)
         WHERE key IN (SELECT key_2 FROM setlist_show JOIN setlist_votes AS v ON v.key = key_1)",
    );
    site.run("verify --counter show.votes").exits(2);
    let (rows, before) = (recount(&site.open()), stored(&site.open()));
    assert_ne!(before["show.votes"], rows["show.votes"]);
    let wanted = expected(&site.open(), &family, 20, true);
    let repair = site.run("repair --json --counter show.votes").exits(0).json();
    assert_eq!(repair["counters"], wanted);
    assert_eq!(repair["counters"][2]["corrected"], 0, "repairing the base updated the rollup");
    let after = concert::non_zero(&stored(&site.open()));
    assert_eq!(
        (&after["show.votes"], &after["setlist.votes"]),
        (&rows["show.votes"], &rows["setlist.votes"])
    );

    // All levels.
    let site = broken_site();
    let ladder = ["artist.votes", "setlist.show", "setlist.votes", "show.artist", "show.votes"];
    let wanted = expected(&site.open(), &ladder, 20, true);
    let repair = site.run("repair --json --counter artist.votes").exits(0).json();
    assert_eq!(
        (names(&repair), &repair["counters"]),
        (ladder.map(str::to_owned).to_vec(), &wanted)
    );
    let (after, rows) = (concert::non_zero(&stored(&site.open())), recount(&site.open()));
    for counter in &ladder {
        assert_eq!(after[counter], rows[counter], "{counter}");
    }
}

// Reports.

#[test]
fn json_has_the_members_of_the_contract_and_no_others() {
    let members =
        |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>();
    let set =
        |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let site = broken_site();
    for words in ["verify --json", "verify --json --page 1 --max-pages 2", "repair --json"] {
        let wanted = expected(&site.open(), &COUNTERS, 20, words == "repair --json");
        let ran = site.run(words);
        let report = ran.json();
        assert_eq!(members(&report), set(&["counters", "pages", "complete", "resume"]), "{words}");
        let counters = report["counters"].as_array().unwrap();
        let names: Vec<&str> =
            counters.iter().map(|counter| counter["name"].as_str().unwrap()).collect();
        assert_eq!(names, COUNTERS, "{words}: every counter, in name order, reached or not");
        for counter in counters {
            assert_eq!(
                members(counter),
                set(&["name", "keys", "wrong", "missing", "orphan", "corrected", "samples"]),
                "{words}"
            );
            for sample in counter["samples"].as_array().unwrap() {
                assert_eq!(members(sample), set(&["key", "stored", "true"]), "{words}");
            }
        }
        if ran.code == Some(3) {
            assert_eq!((&report["complete"], &report["pages"]), (&json!(false), &json!(2)));
            assert_eq!(counters[23]["keys"], 0, "not reached");
            assert!(!ran.token().is_empty());
        } else {
            assert_eq!((&report["complete"], &report["resume"]), (&json!(true), &Value::Null));
            assert_eq!(report["counters"], wanted, "{words}");
        }
    }
}

#[test]
fn samples_are_the_first_20_in_key_order_or_as_many_as_asked() {
    let site = broken_site();
    assert!(drifts(&site.open())["artist.upcoming_shows"].len() > 22);
    for (option, samples) in [
        ("", 20),
        ("--samples 0", 0),
        ("--samples 1", 1),
        ("--samples 22", 22),
        ("--samples 5000", 5_000),
    ] {
        for page in [1, 7, 1_000] {
            let report = site.run(&format!("verify --json --page {page} {option}")).exits(2).json();
            assert_eq!(
                report["counters"],
                expected(&site.open(), &COUNTERS, samples, false),
                "{option}, page {page}"
            );
        }
    }
}

#[test]
fn only_named_counters_are_verified_and_repaired_in_name_order() {
    let site = broken_site();
    let words = "--json --counter user.votes --counter artist.shows --counter user.votes --counter setlist.score";
    let scope = ["artist.shows", "setlist.score", "user.votes"];
    let wanted = expected(&site.open(), &scope, 20, false);
    assert_eq!(site.run(&format!("verify {words}")).exits(2).json()["counters"], wanted);
    let (before, wanted) = (stored(&site.open()), expected(&site.open(), &scope, 20, true));
    assert_eq!(site.run(&format!("repair {words}")).exits(0).json()["counters"], wanted);
    let (after, left) = (stored(&site.open()), drifts(&site.open()));
    for counter in COUNTERS {
        let in_scope = scope.contains(&counter);
        assert_eq!(after[counter] == before[counter], !in_scope, "{counter}");
        assert_eq!(left[counter].is_empty(), in_scope, "{counter}");
    }
}

#[test]
fn table_ends_with_a_token_only_if_the_run_stopped() {
    let site = broken_site();
    for command in ["verify", "repair"] {
        let ran = site.run(&format!("{command} --page 1 --max-pages 2")).exits(3);
        let tokens = ran.out.lines().filter(|line| line.starts_with("resume ")).count();
        assert_eq!((tokens, ran.out.ends_with('\n')), (1, true), "{ran:?}");
        assert!(ran.out.lines().last().unwrap().starts_with("resume "), "{ran:?}");
        assert!(COUNTERS.iter().all(|counter| ran.out.contains(counter)), "{ran:?}");
        let ran = site.run(&format!("{command} --resume {}", ran.token()));
        assert!(!ran.out.contains("resume") && ran.code != Some(3), "{ran:?}");
    }
    let json = site.run("verify --page 1 --max-pages 2 --json").exits(3);
    assert!(!json.out.contains("resume "), "{json:?}");
}

// Limits and tokens.

#[test]
fn a_run_that_ends_on_its_last_allowed_page_is_complete() {
    let site = clean_site();
    for page in [1, 7, 1_000] {
        let whole = site.run(&format!("verify --json --page {page}")).exits(0).json();
        let pages = usize::try_from(whole["pages"].as_u64().unwrap()).unwrap();
        let keys = whole["counters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|counter| counter["keys"].as_u64().unwrap());
        let least: u64 = keys.map(|keys| keys.div_ceil(page).max(1)).sum();
        assert!(pages as u64 >= least, "{pages} pages of {page} keys for {whole}");
        let run =
            |most: usize| site.run(&format!("verify --json --page {page} --max-pages {most}"));
        let report = run(pages).exits(0).json();
        assert_eq!(
            (&report["pages"], &report["complete"], &report["resume"]),
            (&json!(pages), &json!(true), &Value::Null)
        );
        assert_eq!(run(pages + 1).exits(0).json(), report);
        if pages > 1 {
            let report = run(pages - 1).exits(3).json();
            assert_eq!((&report["pages"], &report["complete"]), (&json!(pages - 1), &json!(false)));
        }
    }
}

#[test]
fn resumed_runs_add_up_to_one_whole_run() {
    let site = broken_site();
    let scopes = [
        "",
        "--counter artist.upcoming_shows",
        "--counter user.votes --counter artist.shows --counter show.setlists",
    ];
    for scope in scopes {
        for (page, at_once) in [(1, 13), (7, 1), (7, 2), (1_000, 1)] {
            for command in ["verify", "repair"] {
                let (whole, pieces) = (site.copy(), site.copy());
                let words = format!("{command} {scope} --page {page} --samples 3 --json");
                let whole = whole.run(&words).json();
                let first = pieces.run(&format!("{words} --max-pages {at_once}"));
                let reports = run_to_the_end(&pieces, command, first, at_once);
                assert_eq!(sum(&reports, |report| &report["pages"]), whole["pages"], "{words}");
                for (at, counter) in whole["counters"].as_array().unwrap().iter().enumerate() {
                    for member in ["keys", "wrong", "missing", "orphan", "corrected"] {
                        let all = sum(&reports, |report| &report["counters"][at][member]);
                        assert_eq!(all, counter[member], "{words}: {member} of {counter}");
                    }
                    // The token keeps the number of samples. It applies to each run.
                    for report in &reports {
                        let one = &report["counters"][at];
                        let listed = one["samples"].as_array().unwrap().len();
                        assert_eq!(listed as u64, drift(one).min(3), "{words}: {one}");
                    }
                }
                let few = reports.iter().rev().skip(1).all(|report| report["pages"] == at_once);
                assert!(few, "{words}: a stopped run did fewer pages than its limit");
            }
        }
    }
}

#[test]
fn a_token_may_be_used_twice_or_late() {
    let site = broken_site();
    let token = site.run("verify --page 7 --max-pages 3").exits(3).token();
    let once = site.run(&format!("verify --json --resume {token}")).exits(2);
    assert_eq!(site.run(&format!("verify --json --resume {token}")).exits(2).json(), once.json());
    let token = site.run("repair --page 7 --max-pages 1").exits(3).token();
    site.run(&format!("repair --resume {token}")).exits(0);
    site.run(&format!("repair --resume {token}")).exits(0);
    // The key at which the token stands may be gone, with all others.
    site.sql("DELETE FROM artist_shows; DELETE FROM shows; DELETE FROM artist_upcoming_shows");
    site.run(&format!("repair --resume {token}")).exits(0);
    site.assert_exact();
}

#[test]
fn tokens_that_are_corrupt_or_of_another_database_are_refused() {
    let site = broken_site();
    for command in ["verify", "repair"] {
        let token = site.run(&format!("{command} --page 7 --max-pages 2")).exits(3).token();
        let before = site.dump();
        let mut corrupt: Vec<String> = (0..token.len())
            .map(|at| {
                let other = if &token[at..=at] == "0" { "1" } else { "0" };
                format!("{}{other}{}", &token[..at], &token[at + 1..])
            })
            .collect();
        corrupt.extend((1..4).map(|cut| token[..token.len() - cut].to_owned()));
        corrupt.extend([
            format!("{token}0"),
            format!("0{token}"),
            token.to_uppercase(),
            "zz".to_owned(),
            "%".to_owned(),
        ]);
        corrupt.extend(["x".repeat(70_000), "\u{e9}".to_owned()]);
        for corrupt in &corrupt {
            let ran = site.run(&format!("{command} --resume {corrupt} --json")).fails(&["token"]);
            assert!(ran.err.len() < 1_000, "{ran:?}");
        }
        assert_eq!(site.dump(), before, "{command}");

        let foreign = clean_site();
        foreign.run(&format!("{command} --resume {token}")).fails(&[
            "token",
            "another database",
            "site.db",
        ]);
        // A stale token: its database was made anew at the same path.
        let anew = site.copy();
        fs::remove_file(anew.path("site.db")).unwrap();
        anew.write("base.jsonl", &Writer::new(11, "c").lines(700));
        anew.run("replay base.jsonl").exits(0);
        anew.run(&format!("{command} --resume {token}")).fails(&["token", "another database"]);
        // A token of a schema with other counters.
        let other = site.copy();
        other
            .sql("UPDATE keepcount_counters SET identity = identity + 1 WHERE name = 'user.votes'");
        other.run(&format!("{command} --resume {token}")).fails(&["token"]);
        let ran = site.copy().run(&format!("{command} --resume {token}"));
        assert!(ran.code != Some(1), "a copy of the database accepts its tokens: {ran:?}");
    }
}

// Totals.

#[test]
fn totals_are_printed_in_key_order_escaped_and_without_zeros() {
    let users = [
        "b",
        "a\tb",
        "a\nb",
        "a\\b",
        "a",
        "",
        "\u{e9}",
        "Z",
        "z",
        "\u{10ffff}",
        "\u{ffff}",
        "\\t",
        "a b",
        "zero",
    ];
    let mut events =
        vec![artist("a"), show("s", Some("a"), "upcoming"), concert::setlist("l", Some("s"))];
    for (at, user) in users.iter().enumerate() {
        events.push(vote(&format!("v{at}"), "l", user, "down"));
    }
    events.push(concert::delete("votes", "v13"));
    let site = Site::with(&lines(&events));
    site.sql("INSERT INTO user_votes VALUES ('kept at zero', 0)");
    let ran = site.run("totals user.votes").exits(0);
    let printed = [
        "",
        "Z",
        "a",
        r"a\tb",
        r"a\nb",
        "a b",
        r"a\\b",
        "b",
        r"\\t",
        "z",
        "\u{e9}",
        "\u{ffff}",
        "\u{10ffff}",
    ];
    let mut wanted: Vec<(Vec<u8>, &str)> = printed
        .iter()
        .map(|key| {
            (
                key.replace("\\\\", "\0")
                    .replace("\\t", "\t")
                    .replace("\\n", "\n")
                    .replace('\0', "\\")
                    .into_bytes(),
                *key,
            )
        })
        .collect();
    wanted.sort();
    let wanted: String = wanted.iter().map(|(_, key)| format!("{key}\t1\n")).collect();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), (wanted.as_str(), ""));
    assert_eq!(site.run("totals setlist.score").exits(0).out, "l\t-13\n");
    assert_eq!(site.run("totals setlist.upvotes").exits(0).out, "");
    assert_eq!(site.run("totals artist.upcoming_shows").exits(0).out, "a\t1\n");
    site.run("verify").exits(0);
}

/// Thousands of totals, some pages of them all 0.
const MANY: &str =
    "INSERT INTO user_votes WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 30000)
                    SELECT format('user %06d', n), n % 20000 - 10000 FROM n;
                    UPDATE user_votes SET total = 0 WHERE key BETWEEN 'user 003000' AND 'user 012000'";

#[test]
fn totals_of_many_pages_are_all_printed() {
    let site = Site::with(&[]);
    site.sql(MANY);
    let ran = site.run("totals user.votes").exits(0);
    let wanted: String = stored(&site.open())["user.votes"]
        .iter()
        .filter(|(_, total)| **total != 0)
        .map(|(key, total)| match key.as_slice() {
            [Part::Text(key)] => format!("{key}\t{total}\n"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(ran.out == wanted, "{} lines for {}", ran.out.lines().count(), wanted.lines().count());
}

#[test]
fn totals_exits_0_if_the_reader_closes_the_pipe() {
    let site = Site::with(&[]);
    site.sql(MANY);
    let mut child = site.spawn("totals user.votes");
    let mut first = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut first).unwrap();
    assert_eq!(first, "user 000001\t-9999\n");
    drop(out);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
    assert_eq!(site.files(), ["base.jsonl", "site.db"]);
}

#[cfg(target_os = "linux")]
#[test]
fn failed_write_to_stdout_is_an_error() {
    let site = clean_site();
    for words in ["totals user.votes", "verify", "verify --json"] {
        let args: Vec<&str> = words.split(' ').chain(["--db", "site.db"]).collect();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran =
            site.command(&args).stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        assert!(
            ran.status.code() == Some(1) && said.contains("stdout"),
            "{words}: {:?}: {said}",
            ran.status
        );
    }
}

// Sources that are empty.

#[test]
fn an_emptied_source_is_not_repaired_without_force() {
    let site = broken_site();
    let insert = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100) SELECT 'l' || n, 1 FROM n";
    site.sql(&format!(
        "DELETE FROM votes; DELETE FROM setlist_votes; INSERT INTO setlist_votes {insert}"
    ));
    let before = site.dump();
    assert!(
        !drifts(&site.open())["artist.shows"].is_empty(),
        "another counter to repair comes first"
    );
    for words in [
        "repair",
        "repair --json",
        "repair --counter setlist.votes",
        "repair --page 1 --max-pages 1",
    ] {
        site.run(words).fails(&["setlist.votes", "site.db"]);
        assert_eq!(site.dump(), before, "{words}");
    }
    site.run("verify").exits(2);
    site.run("repair --counter artist.shows").exits(0);
    let forced = site.copy();
    forced.run("repair --force").exits(0);
    forced.assert_exact();
    // The token of a forced run keeps the force.
    let token = site.run("repair --force --page 10 --max-pages 1").exits(3).token();
    site.run(&format!("repair --resume {token}")).exits(0);
    site.assert_exact();
}

#[test]
fn a_source_emptied_between_two_runs_is_refused_by_the_second() {
    let site = Site::with(&[]);
    site.sql(
        "INSERT INTO artists VALUES ('a', 'n', 0, 0); INSERT INTO shows VALUES ('s', 'a', '2025-01-01', 'upcoming')",
    );
    site.sql(MANY);
    site.sql("INSERT INTO votes VALUES ('v', 'l', 'user 000001', 'up', 0)");
    let token = site.run("repair --page 1 --max-pages 1").exits(3).token();
    site.sql("DELETE FROM votes");
    let before = site.dump();
    site.run(&format!("repair --resume {token}")).fails(&["user.votes"]);
    assert_eq!(site.dump(), before);
}

#[test]
fn few_totals_of_an_empty_source_are_repaired_without_force() {
    let site = Site::with(&[]);
    site.sql("INSERT INTO user_votes WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 99) SELECT n, n FROM n");
    site.run("repair").exits(0);
    assert!(stored(&site.open())["user.votes"].is_empty());
}

// Files that are not the example's own.

const READERS: [&str; 4] = ["totals artist.shows", "verify", "repair", "repair --force --json"];

#[test]
fn only_replay_creates_a_database_file() {
    let site = Site::new();
    for words in READERS {
        site.run(words).fails(&["site.db"]);
        assert_eq!(site.files(), [""; 0], "{words}");
    }
    for path in [":memory:", "file:site.db", "file:site.db?mode=memory", "absent/site.db"] {
        for words in READERS {
            let args: Vec<&str> = words.split(' ').chain(["--db", path]).collect();
            site.run_args(&args).fails(&[]);
            assert_eq!(site.files(), [""; 0], "{words} {path}");
        }
    }
    // Nor does replay create one if the events file cannot be read.
    for events in ["absent.jsonl", "."] {
        site.run(&format!("replay {events}")).fails(&[events]);
        assert_eq!(site.files(), [""; 0]);
    }
    site.write("base.jsonl", &lines(&[artist("a")]));
    site.run_args(&["replay", "base.jsonl", "--db", "absent/site.db"]).fails(&["absent"]);
    site.run("replay base.jsonl").exits(0);
    assert_eq!(site.files(), ["base.jsonl", "site.db"]);
}

#[test]
fn commands_leave_no_files_behind() {
    let site = broken_site();
    for words in [
        "totals user.votes",
        "verify",
        "verify --page 1 --max-pages 1",
        "repair --page 3 --max-pages 3",
        "repair",
        "replay base.jsonl",
    ] {
        site.run(words);
        assert_eq!(site.files(), ["base.jsonl", "site.db"], "{words}");
    }
    let bytes = fs::read(site.path("site.db")).unwrap();
    for words in [
        "totals user.votes",
        "totals artist.shows_ahead --at 2025-06-01",
        "verify --page 1 --max-pages 1",
    ] {
        site.run(words);
        assert!(fs::read(site.path("site.db")).unwrap() == bytes, "{words} wrote to the file");
    }
    // A verify writes to one table only: it notes which counters were clean, and when.
    let before = site.dump();
    site.run("verify --json").exits(0);
    assert_eq!(site.dump(), before);
    let noted = "SELECT count(*) FROM verifications";
    assert_eq!(concert::number(&site.open(), noted), COUNTERS.len());
}

#[test]
fn file_that_is_not_a_database_is_refused_and_not_changed() {
    let text = "This is a letter, and no database. ".repeat(200).into_bytes();
    let mut damaged = b"SQLite format 3\0".to_vec();
    damaged.extend(&text);
    for (name, bytes, replayed) in
        [("empty", Vec::new(), true), ("text", text, false), ("damaged", damaged, false)]
    {
        let site = Site::new();
        site.write("base.jsonl", &lines(&[artist("a")]));
        fs::write(site.path("site.db"), &bytes).unwrap();
        let refuse = |words: &str| {
            site.run(words).fails(&["site.db"]);
            assert!(
                fs::read(site.path("site.db")).unwrap() == bytes,
                "{name}: {words} wrote to the file"
            );
            assert_eq!(site.files(), ["base.jsonl", "site.db"], "{name}: {words}");
        };
        READERS.into_iter().for_each(refuse);
        if !replayed {
            refuse("replay base.jsonl");
        }
    }
    let site = Site::new();
    site.write("base.jsonl", &lines(&[artist("a")]));
    fs::create_dir(site.path("site.db")).unwrap();
    for words in READERS.into_iter().chain(["replay base.jsonl"]) {
        site.run(words).fails(&["site.db"]);
    }
    assert_eq!(fs::read_dir(site.path("site.db")).unwrap().count(), 0);
}

#[test]
fn database_without_the_tables_is_refused_and_not_changed() {
    let site = Site::new();
    site.sql("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')");
    let bytes = fs::read(site.path("site.db")).unwrap();
    for words in READERS {
        site.run(words).fails(&["site.db", "keepcount_counters"]);
        assert!(fs::read(site.path("site.db")).unwrap() == bytes, "{words} wrote to the file");
    }
    // Tables of totals, but no table of rows.
    let site = clean_site();
    site.sql("DROP TABLE votes");
    for words in READERS {
        site.run(words).fails(&["site.db", "votes"]);
    }
    let site = clean_site();
    site.sql("DROP TABLE user_votes");
    for words in READERS.into_iter().chain(["replay base.jsonl"]) {
        site.run(words).fails(&["site.db", "user_votes"]);
    }
    assert_eq!(site.files(), ["base.jsonl", "site.db"]);
}

#[test]
fn tables_of_another_schema_are_refused() {
    let like = "(key TEXT NOT NULL PRIMARY KEY, total INTEGER NOT NULL)";
    let remade =
        |columns: &str| format!("DROP TABLE user_votes; CREATE TABLE user_votes {columns}");
    let changes = [
        "UPDATE keepcount_counters SET version = version + 1 WHERE name = 'user.votes'".to_owned(),
        "UPDATE keepcount_counters SET key = 'i64' WHERE name = 'user.votes'".to_owned(),
        "DELETE FROM keepcount_counters WHERE name = 'user.votes'".to_owned(),
        "ALTER TABLE user_votes ADD COLUMN more INTEGER".to_owned(),
        "ALTER TABLE user_votes RENAME COLUMN total TO amount".to_owned(),
        remade(&format!("{like} WITHOUT ROWID")), // not STRICT
        remade("(key INTEGER NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT"),
        remade("(key TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, total INTEGER NOT NULL) STRICT, WITHOUT ROWID"),
        remade("(key TEXT NOT NULL, total INTEGER NOT NULL) STRICT"),
        "ALTER TABLE user_votes RENAME TO elsewhere; CREATE VIEW user_votes AS SELECT * FROM elsewhere".to_owned(),
    ];
    let clean = clean_site();
    clean.write("more.jsonl", &lines(&[artist("more")]));
    for change in changes {
        let site = clean.copy();
        site.write("more.jsonl", &lines(&[artist("more")]));
        site.sql(&change);
        let bytes = fs::read(site.path("site.db")).unwrap();
        for words in READERS.into_iter().chain(["replay more.jsonl"]) {
            println!("{words} after {change}");
            site.run(words).fails(&["site.db", "user_votes"]);
            assert!(
                fs::read(site.path("site.db")).unwrap() == bytes,
                "{words} wrote to the file after {change}"
            );
        }
    }
}

#[test]
fn foreign_table_of_the_same_name_is_refused_and_not_changed() {
    for (table, ddl) in [
        ("votes", "CREATE TABLE votes (id INTEGER PRIMARY KEY)"),
        ("shows", "CREATE VIEW shows AS SELECT 1 AS id"),
        ("replay_prefix", "CREATE TABLE replay_prefix (at INTEGER)"),
        ("replay_position", "CREATE TABLE replay_position (at INTEGER)"),
        ("keepcount_offsets", "CREATE TABLE keepcount_offsets (stream TEXT PRIMARY KEY, last)"),
        ("artist_shows", "CREATE TABLE artist_shows (key TEXT PRIMARY KEY, total INTEGER)"),
        (
            "artist_shows",
            "CREATE TABLE artist_shows (key TEXT NOT NULL PRIMARY KEY, total INTEGER NOT NULL) STRICT, WITHOUT ROWID",
        ),
        ("USER_VOTES", "CREATE TABLE USER_VOTES (a)"),
        ("setlist_score", "CREATE VIEW setlist_score AS SELECT 'k' AS key, 1 AS total"),
        ("keepcount_counters", "CREATE TABLE keepcount_counters (name TEXT)"),
    ] {
        let site = Site::new();
        site.write("base.jsonl", &lines(&[artist("a")]));
        site.sql(ddl);
        let bytes = fs::read(site.path("site.db")).unwrap();
        for words in READERS.into_iter().chain(["replay base.jsonl"]) {
            println!("{words} beside {ddl}");
            let ran = site.run(words).fails(&["site.db"]);
            let replays = words.starts_with("replay");
            let named = ran.err.to_lowercase().contains(&table.to_lowercase());
            assert!(named || !replays, "{table} is not named: {ran:?}");
            assert!(
                fs::read(site.path("site.db")).unwrap() == bytes,
                "{words} wrote to the file beside {ddl}"
            );
            assert_eq!(site.files(), ["base.jsonl", "site.db"]);
        }
    }
}

/// Root may write every file, so as root the command runs as the user nobody.
#[cfg(unix)]
#[test]
fn read_only_file_is_verified_and_not_repaired() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;

    let site = broken_site();
    let before = site.dump();
    site.write("more.jsonl", &lines(&[artist("more")]));
    // A copy, because the user nobody cannot enter every directory that the binary may be in.
    let binary = site.path("concert");
    fs::copy(concert::binary(), &binary).unwrap();
    let mode = |path: &str, mode| {
        fs::set_permissions(site.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("site.db", 0o444);
    mode("", 0o777); // files can be created beside it
    let is_root = fs::metadata(site.dir()).unwrap().uid() == 0;
    let run = |words: &str| {
        let mut command = std::process::Command::new(&binary);
        command.args(words.split(' ')).args(["--db", "site.db"]).current_dir(site.dir());
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        finish(start(&mut command), concert::LONGEST)
    };
    for words in ["repair", "repair --json", "replay more.jsonl"] {
        run(words).fails(&["site.db", "readonly"]);
    }
    assert!(run("totals show.setlists").exits(0).out.contains('\t'));
    assert_eq!(run("verify --json").exits(2).json()["complete"], true);
    mode("site.db", 0o644);
    assert_eq!(site.dump(), before);
}

// Other connections to the same file.

#[test]
fn held_write_lock_fails_a_replay_and_does_not_block_a_verify() {
    let site = broken_site();
    site.write("more.jsonl", &lines(&[artist("more")]));
    let before = site.dump();
    let held = site.open();
    held.execute_batch("BEGIN IMMEDIATE; UPDATE user_votes SET total = total + 1").unwrap();
    // A verify reads what is committed.
    let verified = site.run("verify --json").exits(2).json();
    site.run("totals user.votes").exits(0);
    let started = now();
    site.run("replay more.jsonl").fails(&["site.db", "locked"]);
    assert!(started.elapsed().as_secs() < 60, "it waited for {:?}", started.elapsed());
    held.execute_batch("ROLLBACK").unwrap();
    drop(held);
    assert_eq!(site.dump(), before);
    assert_eq!(verified["counters"], expected(&site.open(), &COUNTERS, 20, false));
    site.run("replay more.jsonl").exits(0);
}

/// The last three numbers of each line of the demonstration's tables that starts with `label`:
/// statements, rows read, rows written. The first number, a count or a size, is left out.
fn costs_of(ran: &Ran, label: &str) -> Vec<[u64; 3]> {
    let numbers = |line: &str| -> Vec<u64> {
        let words =
            line.split_whitespace().filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        words.filter_map(|word| word.replace(',', "").parse().ok()).collect()
    };
    let lines = ran.out.lines().filter(|line| line.trim_start().starts_with(label));
    lines
        .map(|line| numbers(line).last_chunk().copied().unwrap_or_else(|| panic!("{line}")))
        .collect()
}

/// The cost of the hooks depends on the events of a day alone. The cost of the replaced jobs grows
/// with the rows. No day here has all events of the season.
#[track_caller]
fn assert_hook_cost_depends_on_events_alone(ran: &Ran) {
    let (jobs, hooks) = (costs_of(ran, "the replaced system"), costs_of(ran, "keepcount"));
    assert_eq!(
        (jobs.len(), hooks.len()),
        (5, 5),
        "the busiest day, the mean one, and that one at three sizes: {}",
        ran.out
    );
    for (jobs, hooks) in jobs.iter().zip(&hooks) {
        assert!(hooks[0] > 0 && jobs[0] > 10 * hooks[0] && jobs[2] > 10 * hooks[2], "{}", ran.out);
    }
    for pair in [[2, 3], [3, 4]] {
        let [jobs_grow, hooks_grow] = [&jobs, &hooks].map(|costs| pair.map(|at| costs[at]));
        for at in 0..3 {
            let tenths = 10 * jobs_grow[1][at] / jobs_grow[0][at];
            assert!((90..=105).contains(&tenths), "{tenths} tenths: {}", ran.out);
            assert!(
                hooks_grow[0][at].abs_diff(hooks_grow[1][at]) * 20 <= hooks_grow[0][at],
                "{}",
                ran.out
            );
        }
    }
}

#[test]
fn demonstration_runs_without_arguments_and_shows_every_step() {
    let site = Site::new();
    let shows = |ran: &Ran, words: &[&str]| {
        for word in words {
            assert!(ran.out.contains(word), "{word:?} is not shown: {ran:?}");
        }
    };
    let ran = site.run_args(&[]).exits(0);
    shows(
        &ran,
        &[
            "Verify",
            "Repair",
            "sqlite3 ",
            "What a day costs",
            "hourly engagement recount",
            "full verification",
        ],
    );
    let files = site.files();
    assert_eq!(files.len(), 1, "{files:?}");
    shows(&ran, &[&files[0]]);
    assert_hook_cost_depends_on_events_alone(&ran);
    fs::rename(site.path(&files[0]), site.path("site.db")).unwrap();
    let conn = site.open();
    let rows = |table: &str| concert::number(&conn, &format!("SELECT count(*) FROM {table}"));
    // The size of the season, less what the demonstration deletes.
    assert_eq!(
        (rows("artists"), rows("shows"), rows("setlists"), rows("votes")),
        (1_000, 5_000, 1_998, 9_997)
    );
    drop(conn);
    site.assert_exact();

    site.write("base.jsonl", &Writer::new(5, "d").lines(300));
    let ran = site.run_args(&["--events", "base.jsonl"]).exits(0);
    shows(&ran, &["base.jsonl", "300 events", "What a day costs"]);
}
