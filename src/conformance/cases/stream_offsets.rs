//! The conformance cases of events that are applied once.

use std::collections::BTreeMap;

use super::{
    CHILD, DAYS, Expect, LARGE, MEMBERSHIP, NUMBER, OTHER, PAIR, PARENT, PARENT_DAYS, Random,
    SMALL, Script, TEXT, TOP, TOP_MEMBERSHIP, add_all, batch, overflow, two_records,
};
use crate::batch::Batch;
use crate::conformance::Call;
use crate::counter::Counter;

/// A stream, and the first and last event that a batch covers.
type Events<'a> = (&'a str, u64, u64);

/// The largest number that an event can have.
const MAX_LAST: u64 = i64::MAX.unsigned_abs();

impl Script {
    fn deliver(
        &mut self,
        (stream, first, last): Events<'_>,
        expect: Expect,
        fill: impl FnOnce(&mut Batch),
    ) {
        self.call(
            Call::ApplyIdempotent { batch: batch(fill), stream: stream.to_owned(), first, last },
            expect,
        );
    }

    /// Events are applied, write this many totals, and advance the offset of their stream.
    fn apply_idempotent(&mut self, events: Events<'_>, totals: u64, fill: impl FnOnce(&mut Batch)) {
        self.deliver(events, Expect::Applied(totals), fill);
        self.offset(events.0, events.2);
    }

    /// Events are skipped or refused and leave the offset at `applied`.
    fn stays(
        &mut self,
        events: Events<'_>,
        applied: u64,
        expect: Expect,
        fill: impl FnOnce(&mut Batch),
    ) {
        self.deliver(events, expect, fill);
        self.offset(events.0, applied);
    }

    fn offset(&mut self, stream: &str, last: u64) {
        self.call(Call::Offset(stream.to_owned()), Expect::Offset(last));
    }
}

/// A delta that would be visible.
fn seven(batch: &mut Batch) {
    batch.add(NUMBER, 7, 1);
}

/// Three events of the stream `votes`, which leave 3 at key 7.
fn three_votes(script: &mut Script) {
    script.apply_idempotent(("votes", 1, 3), 1, |batch| batch.add(NUMBER, 7, 3));
}

pub(super) fn events_are_applied_once(script: &mut Script) {
    script.offset("votes", 0);
    script.apply_idempotent(("votes", 1, 1), 1, seven);
    script.apply_idempotent(("votes", 2, 6), 2, |batch| add_all(batch, NUMBER, &[(7, 1), (8, 5)]));
    script.apply_idempotent(("votes", 7, MAX_LAST), 1, seven);
    script.holds(NUMBER, &[(7, 3), (8, 5)]);
    script.stays(("votes", MAX_LAST, MAX_LAST), MAX_LAST, Expect::Skipped, seven);
    script.holds(NUMBER, &[(7, 3), (8, 5)]);
}

pub(super) fn a_repeat_is_skipped(script: &mut Script) {
    three_votes(script);
    for _ in 0..3 {
        script.stays(("votes", 1, 3), 3, Expect::Skipped, |batch| batch.add(NUMBER, 7, 3));
    }
    // Whatever the repeat contains by now, even nothing.
    script.stays(("votes", 1, 3), 3, Expect::Skipped, |_| {});
    script.stays(("votes", 1, 3), 3, Expect::Skipped, |batch| batch.add(OTHER, 9, 9));
    script.holds(NUMBER, &[(7, 3)]);
    script.holds::<i64, i64>(OTHER, &[]);
    script.apply_idempotent(("votes", 4, 4), 1, seven);
    script.stays(("votes", 4, 4), 4, Expect::Skipped, seven);
    script.stays(("votes", 1, 3), 4, Expect::Skipped, |batch| batch.add(NUMBER, 7, 3));
    script.holds(NUMBER, &[(7, 4)]);
}

pub(super) fn a_part_of_what_was_applied_is_skipped(script: &mut Script) {
    script.apply_idempotent(("votes", 1, 10), 1, |batch| batch.add(NUMBER, 7, 10));
    for (first, last) in [(1, 1), (1, 9), (3, 7), (10, 10), (2, 10)] {
        script.stays(("votes", first, last), 10, Expect::Skipped, seven);
    }
    script.holds(NUMBER, &[(7, 10)]);
}

pub(super) fn a_gap_applies_nothing(script: &mut Script) {
    for (first, last) in [(2, 2), (2, 9), (MAX_LAST, MAX_LAST)] {
        script.stays(("votes", first, last), 0, Expect::Gap(0), seven);
    }
    three_votes(script);
    for (first, last) in [(5, 5), (5, 9), (MAX_LAST, MAX_LAST)] {
        script.stays(("votes", first, last), 3, Expect::Gap(3), seven);
        script.stays(("votes", first, last), 3, Expect::Gap(3), |_| {});
    }
    script.holds(NUMBER, &[(7, 3)]);
    // The missing event arrives, then the refused ones.
    script.apply_idempotent(("votes", 4, 4), 1, seven);
    script.apply_idempotent(("votes", 5, 9), 1, seven);
    script.holds(NUMBER, &[(7, 5)]);
}

pub(super) fn an_overlap_applies_nothing(script: &mut Script) {
    three_votes(script);
    for (first, last) in [(1, 4), (2, 4), (3, 4), (3, 9), (1, MAX_LAST)] {
        script.stays(("votes", first, last), 3, Expect::Overlap(3), seven);
        script.stays(("votes", first, last), 3, Expect::Overlap(3), |_| {});
    }
    script.holds(NUMBER, &[(7, 3)]);
    script.apply_idempotent(("votes", 4, 9), 1, seven);
    script.holds(NUMBER, &[(7, 4)]);
}

pub(super) fn an_empty_batch_moves_the_offset(script: &mut Script) {
    script.apply_idempotent(("votes", 1, 2), 0, |_| {});
    script.stays(("votes", 1, 2), 2, Expect::Skipped, seven);
    script.apply_idempotent(("votes", 3, 3), 1, seven);
    script.apply_idempotent(("votes", 4, 9), 0, |_| {});
    script.stays(("votes", 9, 9), 9, Expect::Skipped, |_| {});
    script.holds(NUMBER, &[(7, 1)]);
}

pub(super) fn plus_and_minus_one_move_the_offset(script: &mut Script) {
    let both = |batch: &mut Batch| add_all(batch, NUMBER, &[(7, 1), (7, -1)]);
    script.apply_idempotent(("votes", 1, 2), 0, both);
    script.stays(("votes", 1, 2), 2, Expect::Skipped, both);
    script.apply_idempotent(("votes", 3, 5), 1, |batch| {
        both(batch);
        batch.add(NUMBER, 8, 1);
    });
    script.holds(NUMBER, &[(8, 1)]);
}

pub(super) fn streams_are_apart(script: &mut Script) {
    let long = "s".repeat(256);
    let names = [
        "a",
        "A",
        "a ",
        " a",
        "aa",
        "b",
        "1",
        "'",
        "\"",
        "%",
        "\u{e9}",
        "e\u{301}",
        &long[1..],
        &long,
    ];
    for (at, name) in (1..).zip(names) {
        script.offset(name, 0);
        script.apply_idempotent((name, 1, at), 1, seven);
    }
    let streams = names.len();
    script.holds(NUMBER, &[(7, i64::try_from(streams).unwrap_or(0))]);
    for (at, name) in (1..).zip(names) {
        script.offset(name, at);
        script.stays((name, 1, at), at, Expect::Skipped, seven);
        script.stays((name, at + 2, at + 2), at, Expect::Gap(at), seven);
    }
    script.offset("c", 0);
    script.offset("", 0);
    script.holds(NUMBER, &[(7, i64::try_from(streams).unwrap_or(0))]);
}

/// A store may take different paths for one delta, many, large ones, memberships, and deltas that
/// propagate to rollups.
pub(super) fn batches_of_every_kind_move_the_offset(script: &mut Script) {
    let many: Vec<(i64, i64)> = (0..400).map(|key| (key, 1)).collect();
    script.apply_idempotent(("votes", 1, 1), 1, |batch| batch.add(NUMBER, 0, 1));
    script.apply_idempotent(("votes", 2, 401), 400, |batch| add_all(batch, NUMBER, &many));
    script.apply_idempotent(("votes", 402, 402), 1, |batch| batch.add(OTHER, 1, i64::MAX));
    script.apply_idempotent(("votes", 403, 404), 2, |batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "b"), 1)]);
    });
    script
        .apply_idempotent(("votes", 405, 406), 4, |batch| add_all(batch, CHILD, &[(1, 5), (2, 6)]));
    script.apply_idempotent(("votes", 407, 407), 2, |batch| batch.add(DAYS, (1_i64, -3), 4));
    script.apply_idempotent(("votes", 408, 500), 401, |batch| {
        add_all(batch, NUMBER, &many);
        batch.add(OTHER, 1, i64::MIN);
    });
    for (first, last) in
        [(1, 1), (2, 401), (402, 402), (403, 404), (405, 406), (407, 407), (408, 500)]
    {
        script.stays(("votes", first, last), 500, Expect::Skipped, |batch| {
            add_all(batch, NUMBER, &many);
        });
    }
    script.holds(
        NUMBER,
        &(0..400).map(|key| (key, if key == 0 { 3 } else { 2 })).collect::<Vec<_>>(),
    );
    script.holds(OTHER, &[(1, -1)]);
    script.holds(PARENT, &[("a", 5), ("b", 6)]);
    script.holds(PARENT_DAYS, &[(("a", -3), 4)]);
}

pub(super) fn a_refused_batch_leaves_the_offset(script: &mut Script) {
    three_votes(script);
    script.apply_idempotent(("others", 1, 5), 2, |batch| {
        batch.add(OTHER, 9, i64::MAX);
        batch.add(SMALL, 9, i64::MIN);
    });
    let unknown = Counter::<i64>::new("conformance.unknown");
    let mut refuse = |expect: Expect, last: &dyn Fn(&mut Batch)| {
        for stream in ["votes", "new"] {
            let applied = if stream == "votes" { 3 } else { 0 };
            script.stays((stream, applied + 1, applied + 2), applied, expect.clone(), |batch| {
                add_all(batch, NUMBER, &[(7, 1), (8, 1)]);
                batch.add(TEXT, "a", 1);
                last(batch);
            });
        }
    };
    refuse(overflow(OTHER, 9, "total"), &|batch| batch.add(OTHER, 9, 1));
    refuse(overflow(SMALL, 9, "total"), &|batch| batch.add(SMALL, 9, -1));
    refuse(overflow(OTHER, 1, "delta"), &|batch| add_all(batch, OTHER, &[(1, i64::MAX), (1, 1)]));
    refuse(Expect::UnknownCounter(unknown.id()), &|batch| batch.add(unknown, 7, 1));
    refuse(Expect::DefinitionConflict(NUMBER.id()), &|batch| batch.add(NUMBER.version(2), 7, 1));
    refuse(Expect::DefinitionConflict(LARGE.id()), &|batch| {
        batch.add(Counter::<i64>::new(LARGE.id().name()), 7, 1);
    });
    refuse(Expect::Rollup(PARENT.id()), &|batch| batch.add(PARENT, "a", 1));
    script.offset("others", 5);
    script.holds(NUMBER, &[(7, 3)]);
    script.holds::<String, &str>(TEXT, &[]);
    // The same events, without what was wrong.
    script.apply_idempotent(("votes", 4, 5), 1, seven);
    script.apply_idempotent(("new", 1, 2), 1, seven);
    script.holds(NUMBER, &[(7, 5)]);
}

/// Batches that no store may accept, whatever its totals are.
fn invalid() -> Vec<(Expect, Batch)> {
    let unknown = Counter::<i64>::new("conformance.unknown");
    vec![
        (Expect::UnknownCounter(unknown.id()), batch(|batch| batch.add(unknown, 7, 1))),
        (
            Expect::DefinitionConflict(NUMBER.id()),
            batch(|batch| batch.add(NUMBER.version(2), 7, 1)),
        ),
        (Expect::Rollup(PARENT.id()), batch(|batch| batch.add(PARENT, "a", 1))),
        (Expect::TwoRecords(OTHER.id()), batch(two_records)),
    ]
}

/// A batch is checked before its events are: a repeat of an invalid batch shows a bug as well as
/// the batch itself does.
pub(super) fn a_repeat_of_an_invalid_batch_is_refused(script: &mut Script) {
    three_votes(script);
    for (expect, batch) in invalid() {
        for (first, last) in [(1, 3), (2, 2)] {
            script.stays(("votes", first, last), 3, expect.clone(), |to| *to = batch.clone());
        }
    }
    script.stays(("votes", 1, 3), 3, Expect::Skipped, seven);
    script.holds(NUMBER, &[(7, 3)]);
}

pub(super) fn an_invalid_batch_behind_a_gap_is_refused_as_invalid(script: &mut Script) {
    three_votes(script);
    for (expect, batch) in invalid() {
        for (stream, first, last) in [("votes", 5, 6), ("votes", 3, 4), ("new", 2, 2)] {
            let applied = if stream == "votes" { 3 } else { 0 };
            script.stays((stream, first, last), applied, expect.clone(), |to| *to = batch.clone());
        }
    }
    script.holds(NUMBER, &[(7, 3)]);
}

pub(super) fn a_rollup_beyond_64_bits_leaves_the_offset(script: &mut Script) {
    script.apply_idempotent(("links", 1, 2), 2, |batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "a"), 1)]);
    });
    script.apply_idempotent(("votes", 1, 1), 2, |batch| batch.add(CHILD, 1_i64, i64::MAX));
    script.stays(("votes", 2, 3), 1, overflow(PARENT, "a", "total"), |batch| {
        add_all(batch, NUMBER, &[(7, 1)]);
        batch.add(CHILD, 2_i64, 1);
    });
    script.stays(("links", 3, 3), 2, overflow(PARENT, "a", "delta"), |batch| {
        batch.add(MEMBERSHIP, (1_i64, "a"), 9);
    });
    script.holds(CHILD, &[(1, i64::MAX)]);
    script.holds::<i64, i64>(NUMBER, &[]);
    script.apply_idempotent(("votes", 2, 3), 2, |batch| batch.add(CHILD, 2_i64, -1));
    script.holds(PARENT, &[("a", i64::MAX - 1)]);
}

pub(super) fn a_repeat_is_skipped_where_it_has_no_room_any_more(script: &mut Script) {
    let membership = |batch: &mut Batch| batch.add(MEMBERSHIP, (1_i64, "a"), 3);
    let vote = |batch: &mut Batch| batch.add(CHILD, 1_i64, i64::MAX / 3);
    script.apply_idempotent(("links", 1, 1), 1, membership);
    script.apply_idempotent(("votes", 1, 1), 2, vote);
    script.apply_idempotent(("numbers", 1, 1), 1, |batch| batch.add(NUMBER, 7, i64::MAX));
    // Applied again, each would leave 64 bits: as a total, or in a rollup.
    script.stays(("links", 1, 1), 1, Expect::Skipped, membership);
    script.stays(("votes", 1, 1), 1, Expect::Skipped, vote);
    script.stays(("numbers", 1, 1), 1, Expect::Skipped, |batch| batch.add(NUMBER, 7, i64::MAX));
    script.apply(2, |batch| batch.add(MEMBERSHIP, (1_i64, "a"), -3));
    script.apply_idempotent(("links", 2, 2), 2, membership);
    script.apply(2, |batch| batch.add(CHILD, 1_i64, -5));
    script.stays(("links", 2, 2), 2, Expect::Skipped, |batch| {
        batch.add(MEMBERSHIP, (1_i64, "a"), i64::MAX);
    });
    script.holds(CHILD, &[(1, i64::MAX / 3 - 5)]);
    script.holds(PARENT, &[("a", (i64::MAX / 3 - 5) * 3)]);
}

pub(super) fn apply_leaves_offsets_alone(script: &mut Script) {
    script.apply(1, seven);
    script.offset("votes", 0);
    three_votes(script);
    script.apply(1, seven);
    script.apply(0, |_| {});
    script.offset("votes", 3);
    script.apply_idempotent(("votes", 4, 4), 1, seven);
    script.holds(NUMBER, &[(7, 6)]);
}

pub(super) fn rollups_climb_once(script: &mut Script) {
    let membership = |batch: &mut Batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "a"), 1)]);
        batch.add(TOP_MEMBERSHIP, ("a", ()), 1);
    };
    let votes = |batch: &mut Batch| add_all(batch, CHILD, &[(1, 5), (2, 7)]);
    let moves = |batch: &mut Batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), -1), ((1, "b"), 1)]);
        batch.add(DAYS, (1_i64, 8), 2);
    };
    script.apply_idempotent(("site", 1, 3), 3, membership);
    script.apply_idempotent(("site", 4, 5), 4, votes);
    script.apply_idempotent(("site", 6, 8), 7, moves);
    for _ in 0..2 {
        script.stays(("site", 1, 3), 8, Expect::Skipped, membership);
        script.stays(("site", 4, 5), 8, Expect::Skipped, votes);
        script.stays(("site", 6, 8), 8, Expect::Skipped, moves);
        script.stays(("site", 10, 10), 8, Expect::Gap(8), votes);
        script.stays(("site", 8, 9), 8, Expect::Overlap(8), moves);
    }
    script.holds(MEMBERSHIP, &[((1_i64, "b"), 1), ((2_i64, "a"), 1)]);
    script.holds(PARENT, &[("a", 7), ("b", 5)]);
    script.holds(PARENT_DAYS, &[(("b", 8), 2)]);
    script.holds(TOP, &[((), 7)]);
}

/// Streams in which each event is one delta, delivered in chunks that follow, repeat, leave a gap
/// or overlap.
pub(super) fn random_streams_follow_a_model(script: &mut Script) {
    const STREAMS: [&str; 3] = ["a", "b", "votes of a site"];
    let mut random = Random(0x6d61_726b);
    let mut offsets = [0_u64; STREAMS.len()];
    let mut model: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for _ in 0..400 {
        let at = usize::try_from(random.below(STREAMS.len() as u64)).unwrap_or(0);
        let Some((name, applied)) = STREAMS.iter().zip(&mut offsets).nth(at) else { break };
        let first = (*applied + random.below(8)).saturating_sub(3).max(1);
        let last = first + random.below(9);
        // Each event adds a distinct amount, so that one applied twice or lost is visible.
        let event = |number: u64| {
            ((format!("{name} {}", number % 7), number.cast_signed() % 3), number.cast_signed())
        };
        let deltas: Vec<_> = (first..=last).map(event).collect();
        let fill =
            |batch: &mut Batch| deltas.iter().for_each(|(key, delta)| batch.add(PAIR, key, *delta));
        if last <= *applied {
            script.stays((name, first, last), *applied, Expect::Skipped, fill);
        } else if first > *applied + 1 {
            script.stays((name, first, last), *applied, Expect::Gap(*applied), fill);
        } else if first <= *applied {
            script.stays((name, first, last), *applied, Expect::Overlap(*applied), fill);
        } else {
            let mut keys: Vec<_> = deltas.iter().map(|(key, _)| key).collect();
            keys.sort_unstable();
            keys.dedup();
            script.apply_idempotent((name, first, last), keys.len() as u64, fill);
            *applied = last;
            for (key, delta) in deltas {
                *model.entry(key).or_default() += delta;
            }
        }
    }
    for (name, applied) in STREAMS.iter().zip(offsets) {
        script.offset(name, applied);
    }
    script.holds(PAIR, &model.into_iter().collect::<Vec<_>>());
}
