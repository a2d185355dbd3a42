//! The cases: what is off, the run, and what it finds.

use keepcount::reconcile::Mode;

use super::{Amount, Case, Ends, Finds, RIGHT, Row, Scope};

const MAX: i128 = i64::MAX as i128;
const MIN: i128 = i64::MIN as i128;

pub fn vote(setlist: i64, song: &'static str, day: i64, stars: i64) -> Row {
    Row::Vote { setlist: Some(setlist), song: song.into(), day, stars, spam: false }
}

fn spam(setlist: i64, song: &'static str, day: i64, stars: i64) -> Row {
    Row::Vote { setlist: Some(setlist), song: song.into(), day, stars, spam: true }
}

fn vote_without_setlist(song: &'static str, day: i64, stars: i64) -> Row {
    Row::Vote { setlist: None, song: song.into(), day, stars, spam: false }
}

pub fn setlist(id: i64, show: Option<i64>) -> Row {
    Row::Setlist { id, show }
}

pub fn show(id: i64, artist: Option<&'static str>) -> Row {
    Row::Show { id, artist: artist.map(Into::into) }
}

/// Setlist 5 is of two shows, 6 of none, 7 is not there; show 73 has no artist and no setlist.
///
/// | | -2 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | without | in all |
/// | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
/// | setlist's stars | 6 | 8 | 3 | 7 | 4 | 4 | 9 | 8 | 10 | 59 |
///
/// | | -7 | 70 | 71 | 72 | in all |
/// | --- | --- | --- | --- | --- | --- |
/// | show's stars | 6 | 11 | 11 | 8 | 36 |
fn season() -> Vec<Row> {
    vec![
        vote(-2, "a", -1, 4),
        vote(-2, "B", 0, 2),
        vote(1, "a", 0, 3),
        vote(1, "\u{c9}", 2, 5),
        spam(1, "a", 0, 100),
        vote(2, "\u{e9}", 2, 1),
        vote(2, "a", 3, 2),
        vote(3, "B", 1, 7),
        vote(4, "_", 5, -2),
        vote(4, "a", 2, 6),
        vote(5, "\u{c9}", 2, 3),
        vote(5, "\u{c9}", 4, 1),
        spam(5, "Z", 3, -50),
        vote(6, "a", 1, 9),
        vote(7, "Z", 3, 8),
        vote_without_setlist("a", 1, 10),
        setlist(-2, Some(-7)),
        setlist(1, Some(70)),
        setlist(2, Some(70)),
        setlist(3, Some(71)),
        setlist(4, Some(72)),
        setlist(5, Some(72)),
        setlist(5, Some(71)),
        setlist(6, None),
        show(-7, Some("a")),
        show(70, Some("\u{c9}")),
        show(71, Some("\u{e9}")),
        show(72, Some("B")),
        show(73, None),
    ]
}

/// 30 setlists of 10 shows of 6 artists, with votes on 12 days.
fn long_season() -> Vec<Row> {
    const ARTISTS: [&str; 6] = ["a", "B", "\u{c9}", "\u{e9}", "Z", "_"];
    const SONGS: [&str; 4] = ["ab", "B", "\u{c9}", "zz"];
    let votes = (0..300_i64).map(|at| {
        let song = SONGS[usize::try_from(at % 4).unwrap()];
        vote(at % 31 - 10, song, at * 7 % 12 - 4, at % 5 - 1)
    });
    let setlists = (-10..20).map(|id| setlist(id, Some((id + 10) * 7 % 10)));
    let shows = (0..10_usize).map(|id| show(i64::try_from(id).unwrap(), Some(ARTISTS[id % 6])));
    votes.chain(setlists).chain(shows).collect()
}

/// A vote on each of these setlists.
fn votes(setlists: std::ops::RangeInclusive<i64>) -> Vec<Row> {
    setlists.map(|setlist| vote(setlist, "a", setlist % 3, 1)).collect()
}

fn is_vote(row: &Row) -> bool {
    matches!(row, Row::Vote { .. })
}

// Pages. Counters of the season have up to 13 keys; runs over single keys have pages of their own.
const EVERY: &[usize] = &[1, 2, 7, 1_000];
const LARGE: &[usize] = &[7, 1_000];
const ANY: &[usize] = &[1_000];

/// A repair of the season, in which nothing is off.
const CLEAN: Case = Case {
    name: "",
    rows: season,
    unhooked: Vec::new,
    deleted: |_| false,
    planted: &[],
    cutoff: None,
    source: RIGHT,
    mode: Mode::Repair,
    scope: Scope::All,
    force: false,
    max_wrong_percent: None,
    pages: &[7],
    legs: false,
    finds: Finds::Planted,
    ends: Ends::Complete,
};
/// From nothing: no row was written with its hooks.
const BACKFILL: Case =
    Case { rows: Vec::new, unhooked: season, mode: Mode::Backfill, finds: Finds::Naive, ..CLEAN };
const OF_STARS: Scope = Scope::Counters(&["setlist.stars"]);
const EMPTIED: Case = Case {
    rows: || votes(1..=120),
    deleted: is_vote,
    scope: OF_STARS,
    pages: LARGE,
    finds: Finds::Naive,
    ..CLEAN
};
/// The last 20 of 120 keys are off.
const LATE: Case = Case {
    rows: || votes(1..=120),
    unhooked: || votes(101..=120),
    scope: OF_STARS,
    pages: EVERY,
    finds: Finds::Naive,
    ..CLEAN
};

/// An error in each counter.
const ALL_OFF: &[Amount] = &[
    ("all.stars", "()", -9),
    ("song.days", "a,1", 2),
    ("setlist.stars", "3", 5),
    ("setlist.days", "5,2", 4),
    ("setlist.show", "1,70", 1),
    ("show.artist", "71,\u{e9}", -1),
    ("show.stars", "72", 3),
    ("show.days", "70,3", -2),
    ("artist.stars", "a", 1),
    ("artist.days", "B,2", 7),
    ("tour.stars", "()", -36),
];
/// What a run finds then: a rollup is off by its own error, less what is off below it.
const ALL_FOUND: &[Amount] = &[
    ("all.stars", "()", -9),
    ("song.days", "a,1", 2),
    ("setlist.stars", "3", 5),
    ("setlist.days", "5,2", 4),
    ("setlist.show", "1,70", 1),
    ("show.artist", "71,\u{e9}", -1),
    ("show.stars", "70", -8),
    ("show.stars", "71", -5),
    ("show.stars", "72", 3),
    ("show.days", "70,0", -3),
    ("show.days", "70,2", -5),
    ("show.days", "70,3", -2),
    ("show.days", "71,2", -4),
    ("show.days", "72,2", -4),
    ("artist.stars", "a", 1),
    ("artist.stars", "B", -3),
    ("artist.stars", "\u{e9}", 11),
    ("artist.days", "B,2", 7),
    ("artist.days", "\u{c9},3", 2),
    ("artist.days", "\u{e9},1", 7),
    ("artist.days", "\u{e9},2", 3),
    ("artist.days", "\u{e9},4", 1),
    ("tour.stars", "()", -39),
];

pub const CASES: &[Case] = &[
    Case { name: "clean_database_has_no_drift", ..CLEAN },
    Case { name: "empty_database_has_no_drift", rows: Vec::new, ..CLEAN },
    // One level.
    Case {
        name: "total_off_by_rows_shows_there_and_in_its_rollup",
        planted: &[("setlist.stars", "3", 5)],
        finds: Finds::These(&[("setlist.stars", "3", 5), ("show.stars", "71", -5)]),
        ..CLEAN
    },
    Case {
        name: "total_off_of_text_and_number_is_repaired",
        planted: &[("song.days", "\u{c9},2", 3), ("song.days", "\u{e9},2", -2)],
        ..CLEAN
    },
    Case {
        name: "total_off_of_a_child_of_two_parents_shows_in_both",
        planted: &[("setlist.days", "5,2", 4)],
        finds: Finds::These(&[
            ("setlist.days", "5,2", 4),
            ("show.days", "71,2", -4),
            ("show.days", "72,2", -4),
        ]),
        ..CLEAN
    },
    Case {
        name: "membership_counted_twice_shows_in_every_rollup_along_it",
        planted: &[("setlist.show", "1,70", 1)],
        finds: Finds::These(&[
            ("setlist.show", "1,70", 1),
            ("show.stars", "70", -8),
            ("show.days", "70,0", -3),
            ("show.days", "70,2", -5),
        ]),
        ..CLEAN
    },
    Case {
        name: "membership_without_a_total_shows_in_every_rollup_along_it",
        planted: &[("show.artist", "71,\u{e9}", -1)],
        finds: Finds::These(&[
            ("show.artist", "71,\u{e9}", -1),
            ("artist.stars", "\u{e9}", 11),
            ("artist.days", "\u{e9},1", 7),
            ("artist.days", "\u{e9},2", 3),
            ("artist.days", "\u{e9},4", 1),
        ]),
        ..CLEAN
    },
    Case {
        name: "rollup_off_shows_there_and_a_level_above",
        planted: &[("show.stars", "72", 3)],
        finds: Finds::These(&[
            ("show.stars", "72", 3),
            ("artist.stars", "B", -3),
            ("tour.stars", "()", -3),
        ]),
        ..CLEAN
    },
    Case {
        name: "rollup_by_suffix_off_shows_there_and_a_level_above",
        planted: &[("show.days", "70,3", -2), ("show.days", "70,8", 1)],
        finds: Finds::These(&[
            ("show.days", "70,3", -2),
            ("show.days", "70,8", 1),
            ("artist.days", "\u{c9},3", 2),
            ("artist.days", "\u{c9},8", -1),
        ]),
        ..CLEAN
    },
    Case {
        name: "last_level_off_shows_there_alone",
        planted: &[("artist.stars", "a", 1), ("artist.days", "B,2", 7), ("tour.stars", "()", 5)],
        ..CLEAN
    },
    // Every level.
    Case {
        name: "every_level_off_is_found_and_repaired",
        planted: ALL_OFF,
        pages: EVERY,
        finds: Finds::These(ALL_FOUND),
        ..CLEAN
    },
    Case {
        name: "every_level_off_is_found_once_by_runs_of_one_page",
        planted: ALL_OFF,
        pages: &[2],
        legs: true,
        finds: Finds::These(ALL_FOUND),
        ..CLEAN
    },
    Case {
        name: "every_level_off_is_verified_once_by_runs_of_one_page",
        planted: ALL_OFF,
        mode: Mode::Verify,
        pages: &[3],
        legs: true,
        finds: Finds::These(ALL_FOUND),
        ..CLEAN
    },
    Case {
        name: "rollup_alone_takes_in_what_it_sums_and_nothing_else",
        planted: ALL_OFF,
        scope: Scope::Counters(&["artist.stars"]),
        finds: Finds::These(&[
            ("setlist.stars", "3", 5),
            ("setlist.show", "1,70", 1),
            ("show.artist", "71,\u{e9}", -1),
            ("show.stars", "70", -8),
            ("show.stars", "71", -5),
            ("show.stars", "72", 3),
            ("artist.stars", "a", 1),
            ("artist.stars", "B", -3),
            ("artist.stars", "\u{e9}", 11),
        ]),
        ..CLEAN
    },
    Case {
        name: "counter_alone_is_repaired_and_what_sums_it_stays_as_far_off",
        planted: ALL_OFF,
        scope: OF_STARS,
        finds: Finds::These(&[("setlist.stars", "3", 5)]),
        ..CLEAN
    },
    Case {
        name: "long_season_is_verified_and_repaired",
        rows: long_season,
        unhooked: || long_season().into_iter().filter(is_vote).step_by(9).collect(),
        deleted: |row| match row {
            Row::Vote { setlist: Some(setlist), stars, .. } => setlist % 3 == 0 && *stars == 3,
            Row::Setlist { id, .. } | Row::Show { id, .. } => id % 7 == 5,
            Row::Vote { .. } => false,
        },
        planted: &[
            ("show.stars", "3", 4),
            ("show.days", "3,2", -6),
            ("show.days", "3,77", 1),
            ("show.days", "9,-4", 2),
            ("artist.stars", "B", 9),
            ("artist.days", "\u{c9},6", 1),
        ],
        finds: Finds::Naive,
        ..CLEAN
    },
    // Rows without hooks.
    Case {
        name: "vote_without_hooks_is_missing_in_the_counters_of_votes",
        unhooked: || vec![vote(3, "B", 6, 7)],
        finds: Finds::These(&[
            ("all.stars", "()", -7),
            ("song.days", "B,6", -1),
            ("setlist.stars", "3", -7),
            ("setlist.days", "3,6", -7),
        ]),
        ..CLEAN
    },
    Case {
        name: "vote_lost_without_hooks_is_too_much_in_the_counters_of_votes",
        deleted: |row| matches!(row, Row::Vote { setlist: Some(3), .. }),
        finds: Finds::These(&[
            ("all.stars", "()", 7),
            ("song.days", "B,1", 1),
            ("setlist.stars", "3", 7),
            ("setlist.days", "3,1", 7),
        ]),
        ..CLEAN
    },
    Case {
        name: "setlist_moved_without_hooks_shows_as_two_memberships",
        deleted: |row| matches!(row, Row::Setlist { id: 3, .. }),
        unhooked: || vec![setlist(3, Some(72))],
        finds: Finds::These(&[("setlist.show", "3,71", 1), ("setlist.show", "3,72", -1)]),
        ..CLEAN
    },
    Case {
        name: "row_without_a_parent_counts_where_it_has_a_key",
        unhooked: || vec![vote_without_setlist("a", 6, 2), setlist(8, None), show(74, None)],
        finds: Finds::These(&[
            ("all.stars", "()", -2),
            ("song.days", "a,6", -1),
            ("show.tour", "74", -1),
        ]),
        ..CLEAN
    },
    Case {
        name: "membership_of_a_show_that_is_not_there_dangles_and_is_no_drift",
        unhooked: || vec![setlist(9, Some(-80))],
        deleted: |row| matches!(row, Row::Show { id: 72, .. }),
        pages: &[1, 1_000],
        finds: Finds::These(&[
            ("setlist.show", "9,-80", -1),
            ("show.artist", "72,B", 1),
            ("show.tour", "72", 1),
        ]),
        ..CLEAN
    },
    // Totals without rows, and rows without totals.
    Case {
        name: "total_without_rows_is_removed_and_one_of_0_is_no_drift",
        planted: &[
            ("setlist.stars", "94", 4),
            ("setlist.stars", "95", 0),
            ("song.days", "zz,-3", -1),
            ("setlist.show", "900,7", 1),
            ("show.artist", "901,x", 1),
            ("show.stars", "902", 3),
            ("show.days", "903,2", -4),
            ("artist.stars", "nobody", 1),
            ("artist.days", "nobody,9", 2),
        ],
        finds: Finds::These(&[
            ("setlist.stars", "94", 4),
            ("song.days", "zz,-3", -1),
            ("setlist.show", "900,7", 1),
            ("show.artist", "901,x", 1),
            ("show.stars", "902", 3),
            ("show.days", "903,2", -4),
            ("artist.stars", "nobody", 1),
            ("artist.days", "nobody,9", 2),
        ]),
        ..CLEAN
    },
    Case {
        name: "total_of_0_with_rows_is_missing",
        planted: &[
            ("all.stars", "()", -59),
            ("song.days", "\u{c9},2", -2),
            ("setlist.stars", "3", -7),
            ("tour.stars", "()", -36),
        ],
        finds: Finds::These(&[
            ("all.stars", "()", -59),
            ("song.days", "\u{c9},2", -2),
            ("setlist.stars", "3", -7),
            ("show.stars", "71", 7),
            ("tour.stars", "()", -36),
        ]),
        ..CLEAN
    },
    // One total.
    Case {
        name: "counter_of_one_total_off_is_repaired",
        scope: Scope::Counters(&["all.stars"]),
        planted: &[("all.stars", "()", -62)],
        pages: EVERY,
        ..CLEAN
    },
    Case {
        name: "counter_of_one_total_whose_rows_sum_to_0_is_removed",
        rows: || vec![vote(1, "a", 0, 4), vote(2, "a", 0, -4)],
        scope: Scope::Counters(&["all.stars"]),
        planted: &[("all.stars", "()", -3)],
        pages: EVERY,
        ..CLEAN
    },
    Case {
        name: "counter_of_one_total_without_a_total_is_repaired",
        rows: Vec::new,
        unhooked: season,
        scope: Scope::Counters(&["all.stars"]),
        finds: Finds::These(&[("all.stars", "()", -59)]),
        ..CLEAN
    },
    Case {
        name: "counter_of_one_total_without_a_total_whose_rows_sum_to_0_has_no_drift",
        rows: Vec::new,
        unhooked: || vec![vote(1, "a", 0, 4), vote(2, "a", 0, -4)],
        scope: Scope::Counters(&["all.stars"]),
        ..CLEAN
    },
    // The ends of 64 bits.
    Case {
        name: "drift_beyond_64_bits_is_repaired",
        unhooked: || {
            vec![
                vote(11, "x", 0, -2),
                vote(12, "x", 0, i64::MAX),
                vote(13, "x", 0, i64::MIN),
                vote(14, "x", 0, 1),
            ]
        },
        planted: &[
            ("setlist.stars", "11", MAX),
            ("setlist.stars", "12", MIN),
            ("setlist.stars", "13", MAX),
            ("setlist.stars", "14", MIN),
            ("setlist.stars", "15", MIN),
        ],
        scope: OF_STARS,
        finds: Finds::These(&[
            ("setlist.stars", "11", MAX + 2),
            ("setlist.stars", "12", MIN - MAX),
            ("setlist.stars", "13", MAX - MIN),
            ("setlist.stars", "14", MIN - 1),
            ("setlist.stars", "15", MIN),
        ]),
        ..CLEAN
    },
    Case {
        name: "drift_beyond_64_bits_of_counters_without_rollups_is_repaired",
        unhooked: || vec![vote_without_setlist("x", 0, i64::MAX - 100)],
        planted: &[("all.stars", "()", MIN - 59), ("song.days", "B,1", MIN - 1)],
        scope: Scope::Counters(&["all.stars", "song.days"]),
        finds: Finds::These(&[
            ("all.stars", "()", MIN - (MAX - 41)),
            ("song.days", "B,1", MIN - 1),
            ("song.days", "x,0", -1),
        ]),
        ..CLEAN
    },
    Case {
        name: "sum_above_64_bits_names_its_key",
        unhooked: || vec![vote(4, "x", 0, i64::MAX), vote(9, "x", 0, 1)],
        scope: OF_STARS,
        pages: EVERY,
        finds: Finds::Naive,
        ends: Ends::Fails("Overflow setlist.stars 4 recount"),
        ..CLEAN
    },
    Case {
        name: "sum_below_64_bits_names_its_key",
        unhooked: || vec![vote(9, "x", 0, i64::MIN), vote(9, "x", 0, -1)],
        mode: Mode::Verify,
        scope: OF_STARS,
        pages: EVERY,
        finds: Finds::Naive,
        ends: Ends::Fails("Overflow setlist.stars 9 recount"),
        ..CLEAN
    },
    Case {
        name: "sum_beyond_64_bits_leaves_the_other_counters_to_be_repaired",
        unhooked: || vec![vote(9, "x", 0, i64::MAX), vote(9, "x", 0, 1)],
        scope: Scope::Counters(&["setlist.stars", "song.days"]),
        finds: Finds::These(&[("song.days", "x,0", -2)]),
        ends: Ends::Incomplete(&[("setlist.stars", "key 9")]),
        ..CLEAN
    },
    Case {
        name: "rollup_beyond_64_bits_names_its_key",
        planted: &[("setlist.stars", "1", MAX - 8), ("setlist.stars", "2", MAX - 3)],
        mode: Mode::Verify,
        scope: Scope::Counters(&["show.stars"]),
        finds: Finds::Naive,
        ends: Ends::Fails("Overflow show.stars 70 recount"),
        ..CLEAN
    },
    Case {
        name: "key_of_a_rollup_beyond_64_bits_is_not_repaired",
        planted: &[("setlist.stars", "1", MAX - 8), ("setlist.stars", "2", MAX - 3)],
        scope: Scope::Keys("show.stars", &["70"]),
        pages: ANY,
        finds: Finds::Naive,
        ends: Ends::Fails("Overflow show.stars 70 recount"),
        ..CLEAN
    },
    // The guards.
    Case {
        name: "emptied_source_is_refused",
        ends: Ends::Fails("SourceEmpty setlist.stars 100"),
        ..EMPTIED
    },
    Case {
        name: "emptied_source_with_rows_that_do_not_count_is_refused",
        unhooked: || vec![spam(1, "a", 0, 100), vote_without_setlist("a", 0, 1)],
        ends: Ends::Fails("SourceEmpty setlist.stars 100"),
        ..EMPTIED
    },
    Case {
        name: "emptied_source_is_refused_to_a_key",
        scope: Scope::Keys("setlist.stars", &["7"]),
        pages: ANY,
        ends: Ends::Fails("SourceEmpty setlist.stars 100"),
        ..EMPTIED
    },
    Case { name: "emptied_source_is_verified", mode: Mode::Verify, ..EMPTIED },
    Case {
        name: "emptied_source_of_fewer_than_100_totals_is_repaired",
        rows: || votes(1..=99),
        ..EMPTIED
    },
    Case { name: "emptied_source_is_repaired_by_force", force: true, ..EMPTIED },
    Case {
        name: "drift_over_the_limit_is_refused",
        max_wrong_percent: Some(0),
        ends: Ends::Fails("DriftLimit setlist.stars"),
        ..LATE
    },
    Case {
        name: "drift_under_the_limit_is_repaired",
        max_wrong_percent: Some(17),
        pages: ANY,
        ..LATE
    },
    Case {
        name: "drift_over_the_limit_is_repaired_by_force",
        max_wrong_percent: Some(0),
        force: true,
        pages: ANY,
        ..LATE
    },
    Case {
        name: "drift_of_fewer_than_100_keys_has_no_limit",
        planted: &[("setlist.stars", "3", 5)],
        max_wrong_percent: Some(0),
        scope: OF_STARS,
        ..CLEAN
    },
    // The source and the tally.
    Case {
        name: "source_without_the_filter_is_refused",
        source: ("stars", "1 = 1"),
        planted: &[("setlist.stars", "4", 1)],
        scope: OF_STARS,
        finds: Finds::Naive,
        ends: Ends::Fails("DefinitionMismatch setlist.stars 1"),
        ..CLEAN
    },
    Case {
        name: "source_that_counts_where_the_tally_sums_is_refused",
        source: ("1", "NOT spam"),
        planted: &[("setlist.stars", "4", 1)],
        scope: OF_STARS,
        finds: Finds::Naive,
        ends: Ends::Fails("DefinitionMismatch setlist.stars -2"),
        ..CLEAN
    },
    Case {
        name: "source_of_the_other_sign_is_refused",
        source: ("-stars", "NOT spam"),
        planted: &[("setlist.stars", "4", 1)],
        finds: Finds::Naive,
        ends: Ends::Fails("DefinitionMismatch setlist.stars -2"),
        ..CLEAN
    },
    Case {
        name: "source_that_differs_in_the_middle_is_refused_where_its_key_is_repaired",
        rows: || votes(1..=200),
        source: ("CASE WHEN setlist = 100 THEN 7 ELSE stars END", "NOT spam"),
        planted: &[("setlist.stars", "100", 1)],
        scope: OF_STARS,
        pages: LARGE,
        finds: Finds::Naive,
        ends: Ends::Fails("DefinitionMismatch setlist.stars 100"),
        ..CLEAN
    },
    Case {
        name: "source_as_wrong_as_the_totals_is_refused",
        source: ("stars", "1 = 1"),
        planted: &[("setlist.stars", "1", 100), ("setlist.stars", "5", -50)],
        scope: OF_STARS,
        finds: Finds::Naive,
        ends: Ends::Fails("DefinitionMismatch setlist.stars 1"),
        ..CLEAN
    },
    Case {
        name: "source_as_wrong_as_the_totals_is_trusted_by_a_verify",
        source: ("stars", "1 = 1"),
        planted: &[("setlist.stars", "1", 100), ("setlist.stars", "5", -50)],
        mode: Mode::Verify,
        scope: OF_STARS,
        ..CLEAN
    },
    // Retention.
    Case { name: "rows_that_were_pruned_are_not_counted", cutoff: Some(2), ..CLEAN },
    Case {
        name: "row_without_hooks_is_counted_from_the_cutoff_on",
        unhooked: || vec![vote(1, "a", 1, 4), vote(1, "a", 2, 4)],
        cutoff: Some(2),
        finds: Finds::These(&[
            ("all.stars", "()", -8),
            ("song.days", "a,1", -1),
            ("song.days", "a,2", -1),
            ("setlist.stars", "1", -8),
            ("setlist.days", "1,2", -4),
        ]),
        ..CLEAN
    },
    Case {
        name: "total_below_the_cutoff_is_removed_with_rows_or_without",
        planted: &[
            ("setlist.days", "3000,1", 5),
            ("setlist.days", "6,1", 9),
            ("artist.days", "a,-3", 5),
        ],
        cutoff: Some(2),
        ..CLEAN
    },
    Case {
        name: "total_below_the_cutoff_shows_in_its_rollup_until_it_is_removed",
        planted: &[("setlist.days", "3,1", 5)],
        cutoff: Some(2),
        finds: Finds::These(&[("setlist.days", "3,1", 5), ("show.days", "71,1", -5)]),
        ..CLEAN
    },
    // Single keys.
    Case {
        name: "keys_of_a_number_are_repaired_alone",
        planted: &[
            ("setlist.stars", "3", 5),
            ("setlist.stars", "4", 1),
            ("setlist.stars", "-2", -6),
        ],
        scope: Scope::Keys("setlist.stars", &["3", "55", "-2"]),
        pages: ANY,
        finds: Finds::These(&[("setlist.stars", "3", 5), ("setlist.stars", "-2", -6)]),
        ..CLEAN
    },
    Case {
        name: "key_of_text_and_number_is_repaired_alone",
        planted: &[("song.days", "\u{c9},2", 3), ("song.days", "\u{e9},2", 1)],
        scope: Scope::Keys("song.days", &["\u{c9},2"]),
        pages: ANY,
        finds: Finds::These(&[("song.days", "\u{c9},2", 3)]),
        ..CLEAN
    },
    Case {
        name: "key_of_a_text_is_repaired_without_what_sorts_close_before_it",
        planted: &[("artist.stars", "a\u{10ffff}z", 1), ("artist.stars", "b", 2)],
        scope: Scope::Keys("artist.stars", &["b"]),
        pages: ANY,
        finds: Finds::These(&[("artist.stars", "b", 2)]),
        ..CLEAN
    },
    Case {
        name: "key_of_one_total_is_repaired",
        planted: &[("all.stars", "()", -59)],
        scope: Scope::Keys("all.stars", &["()"]),
        pages: ANY,
        ..CLEAN
    },
    Case {
        name: "key_of_a_membership_is_repaired_with_the_rollups_along_it",
        deleted: |row| matches!(row, Row::Setlist { id: 5, show: Some(71) }),
        scope: Scope::Keys("setlist.show", &["5,71"]),
        pages: ANY,
        finds: Finds::These(&[("setlist.show", "5,71", 1)]),
        ..CLEAN
    },
    Case {
        name: "keys_of_a_rollup_are_repaired_to_what_is_stored_below",
        planted: &[("setlist.stars", "3", 5), ("show.stars", "70", 2), ("show.stars", "72", 1)],
        scope: Scope::Keys("show.stars", &["71", "70"]),
        pages: ANY,
        finds: Finds::These(&[("show.stars", "70", 2), ("show.stars", "71", -5)]),
        ..CLEAN
    },
    Case {
        name: "key_of_a_rollup_by_suffix_is_repaired_alone",
        planted: &[("show.days", "70,2", 1), ("show.days", "70,3", 1)],
        scope: Scope::Keys("show.days", &["70,2"]),
        pages: ANY,
        finds: Finds::These(&[("show.days", "70,2", 1)]),
        ..CLEAN
    },
    Case {
        name: "key_of_a_rollup_of_one_total_is_repaired",
        planted: &[("tour.stars", "()", -31)],
        scope: Scope::Keys("tour.stars", &["()"]),
        pages: ANY,
        ..CLEAN
    },
    // Backfills.
    Case { name: "backfill_fills_every_level_and_makes_it_ready", pages: &[1, 7], ..BACKFILL },
    Case { name: "backfill_by_runs_of_one_page_makes_ready", pages: &[7], legs: true, ..BACKFILL },
    Case {
        name: "backfill_beside_hooks_fills_what_they_did_not_count",
        rows: season,
        unhooked: || vec![vote(3, "B", 6, 7), setlist(6, Some(73))],
        finds: Finds::These(&[
            ("all.stars", "()", -7),
            ("song.days", "B,6", -1),
            ("setlist.stars", "3", -7),
            ("setlist.days", "3,6", -7),
            ("setlist.show", "6,73", -1),
        ]),
        ..BACKFILL
    },
    Case {
        name: "backfill_of_some_counters_makes_these_ready",
        scope: Scope::Counters(&["show.stars", "all.stars"]),
        ..BACKFILL
    },
    Case {
        name: "backfill_has_no_limit_of_drift",
        unhooked: || votes(1..=120),
        max_wrong_percent: Some(0),
        scope: OF_STARS,
        pages: ANY,
        ..BACKFILL
    },
    Case {
        name: "backfill_of_an_emptied_source_is_refused",
        rows: || votes(1..=120),
        unhooked: Vec::new,
        deleted: is_vote,
        scope: OF_STARS,
        pages: ANY,
        ends: Ends::Fails("SourceEmpty setlist.stars 100"),
        ..BACKFILL
    },
    Case {
        name: "backfill_of_a_sum_beyond_64_bits_does_not_make_it_ready",
        unhooked: || vec![vote(9, "x", 0, i64::MAX), vote(9, "x", 0, 1)],
        scope: Scope::Counters(&["setlist.stars", "song.days"]),
        finds: Finds::These(&[("song.days", "x,0", -2)]),
        ends: Ends::Incomplete(&[("setlist.stars", "key 9")]),
        ..BACKFILL
    },
];
