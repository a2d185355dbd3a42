//! The conformance cases, in the order of [`conformance_tests!`](crate::conformance_tests), which
//! lists their names.

mod stream_offsets;

use std::collections::BTreeMap;

use stream_offsets::{
    a_gap_applies_nothing, a_part_of_what_was_applied_is_skipped,
    a_refused_batch_leaves_the_offset, a_repeat_is_skipped,
    a_repeat_is_skipped_where_it_has_no_room_any_more, a_repeat_of_an_invalid_batch_is_refused,
    a_rollup_beyond_64_bits_leaves_the_offset, an_empty_batch_moves_the_offset,
    an_invalid_batch_behind_a_gap_is_refused_as_invalid, an_overlap_applies_nothing,
    apply_leaves_offsets_alone, batches_of_every_kind_move_the_offset, events_are_applied_once,
    plus_and_minus_one_move_the_offset, random_streams_follow_a_model, rollups_climb_once,
    streams_are_apart,
};

use super::{Call, Expect, Step};
use crate::batch::Batch;
use crate::batch::{Record, Tally};
use crate::counter::Counter;
use crate::counter::key_range::KeyRange;
use crate::key::{AsKey, Key, KeyBuf};

pub(super) const NUMBER: Counter<i64> = Counter::new("conformance.number");
pub(super) const OTHER: Counter<i64> = Counter::new("conformance.other");
pub(super) const SMALL: Counter<u32> = Counter::new("conformance.small");
pub(super) const LARGE: Counter<u64> = Counter::new("conformance.large");
pub(super) const TEXT: Counter<String> = Counter::new("conformance.text");
pub(super) const PAIR: Counter<(String, i64)> = Counter::new("conformance.pair");
pub(super) const TRIPLE: Counter<(i8, [u8; 16], String)> = Counter::new("conformance.triple");
pub(super) const ID: Counter<[u8; 16]> = Counter::new("conformance.id");
pub(super) const ONE: Counter<()> = Counter::new("conformance.one");
pub(super) const WIDE: Counter<i128> = Counter::new("conformance.wide");
pub(super) const WIDEST: Counter<u128> = Counter::new("conformance.widest");
/// Links children to parents; `TOP_MEMBERSHIP` links parents to the top.
pub(super) const MEMBERSHIP: Counter<(i64, String)> = Counter::new("conformance.link");
pub(super) const TOP_MEMBERSHIP: Counter<(String, ())> = Counter::new("conformance.top_link");
pub(super) const CHILD: Counter<i64> = Counter::new("conformance.child");
pub(super) const DAYS: Counter<(i64, i32)> = Counter::new("conformance.days");
pub(super) const PARENT: Counter<String> =
    Counter::new("conformance.parent").sum_of(CHILD, MEMBERSHIP);
pub(super) const PARENT_DAYS: Counter<(String, i32)> =
    Counter::<(String, i32)>::new("conformance.parent_days").sum_of_suffix(DAYS, MEMBERSHIP);
pub(super) const TOP: Counter<()> = Counter::new("conformance.top").sum_of(PARENT, TOP_MEMBERSHIP);

/// Writes a case's steps.
pub(super) type Write = fn(&mut Script);

pub(super) const SCRIPTS: &[(&str, Write)] = crate::conformance_tests!(@list @scripts);

/// A case that is being written.
#[derive(Default)]
pub(super) struct Script {
    steps: Vec<Step>,
}

impl Script {
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    fn call(&mut self, call: Call, expect: Expect) {
        self.steps.push(Step { call, expect });
    }

    /// A batch is applied and writes this many totals.
    fn apply(&mut self, totals: u64, fill: impl FnOnce(&mut Batch)) {
        self.call(Call::Apply(batch(fill)), Expect::Applied(totals));
    }

    /// A batch is refused.
    fn refuse(&mut self, expect: Expect, fill: impl FnOnce(&mut Batch)) {
        self.call(Call::Apply(batch(fill)), expect);
    }

    /// A counter is refused by `read_keys` and `read_range`.
    fn refuse_reading<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, expect: &Expect) {
        let counter = counter.id();
        self.call(Call::Read(counter, vec![KeyBuf::of::<K>(key)]), expect.clone());
        self.call(Call::Range { counter, range: KeyRange::ALL, limit: 1 }, expect.clone());
    }

    /// Reading these keys returns these totals.
    fn read<K: Key, A: AsKey<K>>(&mut self, counter: Counter<K>, totals: &[(A, i64)]) {
        let (keys, totals) =
            totals.iter().map(|(key, total)| (KeyBuf::of::<K>(key), total)).unzip();
        self.call(Call::Read(counter.id(), keys), Expect::Read(totals));
    }

    /// A page shows as many of these totals as its limit allows. They are all the totals after its
    /// start.
    fn page<K: Key, A: AsKey<K>>(
        &mut self,
        counter: Counter<K>,
        after: Option<A>,
        limit: usize,
        all: &[(A, i64)],
    ) {
        let first =
            all.iter().take(limit).map(|(key, total)| (KeyBuf::of::<K>(key), *total)).collect();
        let range = KeyRange::after(after.map(KeyBuf::of::<K>).as_ref());
        self.call(Call::Range { counter: counter.id(), range, limit }, Expect::Following(first));
    }

    /// A counter has these totals, given in key order, and no others.
    fn holds<K: Key, A: AsKey<K>>(&mut self, counter: Counter<K>, totals: &[(A, i64)]) {
        self.read(counter, totals);
        self.page(counter, None, usize::MAX, totals);
    }

    /// A range shows as many of these totals as its limit allows, and its sum is theirs. They are
    /// all the totals in the range.
    fn range<K: Key, A: AsKey<K>>(
        &mut self,
        counter: Counter<K>,
        range: &KeyRange,
        all: &[(A, i64)],
    ) {
        let totals: Vec<_> =
            all.iter().map(|(key, total)| (KeyBuf::of::<K>(key), *total)).collect();
        for limit in [0, 1, totals.len(), totals.len() + 1, usize::MAX] {
            let expect = Expect::Following(totals.iter().take(limit).cloned().collect());
            self.call(Call::Range { counter: counter.id(), range: range.clone(), limit }, expect);
        }
        self.call(
            Call::Sum(counter.id(), range.clone()),
            Expect::Sum(all.iter().map(|(_, total)| total).sum()),
        );
    }

    /// Pages of one size, from the first to the empty one after the last, show these totals.
    fn walk<K: Key, A: AsKey<K> + Clone>(
        &mut self,
        counter: Counter<K>,
        size: usize,
        totals: &[(A, i64)],
    ) {
        self.page(counter, None, size, totals);
        for at in (size..=totals.len()).step_by(size) {
            let (before, behind) = totals.split_at(at);
            self.page(counter, before.last().map(|(key, _)| key.clone()), size, behind);
        }
    }

    /// Keys applied from the last to the first come back sorted as their own type sorts them.
    fn in_order<K: Key + Ord + Clone + AsKey<K>>(&mut self, counter: Counter<K>, mut keys: Vec<K>) {
        keys.sort_unstable();
        keys.dedup();
        let totals: Vec<(K, i64)> = keys.into_iter().zip(1..).collect();
        let all = |batch: &mut Batch| {
            totals.iter().rev().for_each(|(key, total)| batch.add(counter, key, *total));
        };
        self.apply(totals.len() as u64, all);
        self.holds(counter, &totals);
        for size in [1, 3, totals.len(), totals.len() + 1] {
            self.walk(counter, size, &totals);
        }
    }

    /// Totals that a refused batch must leave unchanged, some of them at an end of their range.
    /// [`touch`] would create some, change some, and bring some to 0.
    fn before(&mut self, end: i64) {
        self.apply(307, |batch| {
            (0..300).for_each(|key| batch.add(NUMBER, key, 1 + key % 2));
            for key in EDGES {
                batch.add(NUMBER, key, end);
            }
            batch.add(TEXT, "kept", 5);
            batch.add(SMALL, 7, end);
            batch.add(ONE, (), -3);
            batch.add(OTHER, 7, end);
        });
        self.unchanged(end);
    }

    fn unchanged(&mut self, end: i64) {
        let mut totals: Vec<(i64, i64)> =
            (0..300).map(|key| (key, 1 + key % 2)).chain(EDGES.map(|key| (key, end))).collect();
        totals.sort_unstable();
        self.holds(NUMBER, &totals);
        self.holds(TEXT, &[("kept", 5)]);
        self.holds(SMALL, &[(7, end)]);
        self.holds(ONE, &[((), -3)]);
        self.holds(OTHER, &[(7, end)]);
        self.holds::<i128, i128>(WIDE, &[]);
    }

    /// Batches of several sizes that move one total of each kind beyond its end are refused and
    /// change nothing.
    fn overflows(&mut self, end: i64, beyond: i64, keys: i64) {
        self.before(end);
        for edge in EDGES {
            self.refuse(overflow(NUMBER, edge, "total"), |batch| {
                touch(batch, keys);
                batch.add(NUMBER, edge, beyond);
            });
            self.unchanged(end);
        }
        self.refuse(overflow(SMALL, 7, "total"), |batch| {
            batch.add(SMALL, 7, beyond);
            touch(batch, keys);
        });
        self.unchanged(end);
        self.refuse(overflow(OTHER, 7, "total"), |batch| {
            touch(batch, keys);
            batch.add(OTHER, 7, beyond);
        });
        self.unchanged(end);
    }
}

/// Keys before, among and after those that [`touch`] writes.
const EDGES: [i64; 3] = [-5, 1_000, 3_000];

/// Deltas on keys and counters that come before and after those in the middle, in any order that a
/// store may choose.
fn touch(batch: &mut Batch, keys: i64) {
    (0..keys).for_each(|key| batch.add(NUMBER, key * 7 % 400, -1));
    batch.add(NUMBER, 2_000, 1);
    batch.add(TEXT, "kept", -5);
    batch.add(TEXT, "new", 1);
    batch.add(ONE, (), 3);
    batch.add(OTHER, 1, 1);
    batch.add(WIDE, -1, 1);
}

fn add_all<K: Key, A: AsKey<K>>(batch: &mut Batch, counter: Counter<K>, amounts: &[(A, i64)]) {
    for (key, amount) in amounts {
        batch.add(counter, key, *amount);
    }
}

fn batch(fill: impl FnOnce(&mut Batch)) -> Batch {
    let mut batch = Batch::new();
    fill(&mut batch);
    batch
}

fn overflow<K: Key>(counter: Counter<K>, key: impl AsKey<K>, what: &'static str) -> Expect {
    Expect::Overflow(counter.id(), KeyBuf::of::<K>(key), what)
}

fn an_empty_batch_writes_nothing(script: &mut Script) {
    script.apply(0, |_| {});
    script.before(9);
    script.apply(0, |_| {});
    script.unchanged(9);
}

fn one_delta_is_one_total(script: &mut Script) {
    script.apply(1, |batch| batch.add(NUMBER, 7, 2));
    script.holds(NUMBER, &[(7, 2)]);
    script.apply(1, |batch| batch.add(NUMBER, 7, 3));
    script.holds(NUMBER, &[(7, 5)]);
    script.holds::<i64, i64>(OTHER, &[]);
}

fn a_batch_writes_all_counters(script: &mut Script) {
    for round in 1..=2 {
        script.apply(13, |batch| {
            batch.add(WIDEST, 7, 10);
            batch.add(NUMBER, 7, 1);
            batch.add(OTHER, 7, 2);
            batch.add(SMALL, 7, 3);
            batch.add(LARGE, 7, 4);
            batch.add(TEXT, "7", 5);
            batch.add(TEXT, "", -5);
            batch.add(PAIR, ("7", 7), 6);
            batch.add(TRIPLE, (7, [7; 16], "7"), 7);
            batch.add(ID, [7; 16], 8);
            batch.add(ONE, (), 9);
            batch.add(WIDE, 7, -10);
            batch.add(NUMBER, -7, -1);
        });
        script.holds(NUMBER, &[(-7, -round), (7, round)]);
        script.holds(OTHER, &[(7, 2 * round)]);
        script.holds(SMALL, &[(7, 3 * round)]);
        script.holds(LARGE, &[(7, 4 * round)]);
        script.holds(TEXT, &[("", -5 * round), ("7", 5 * round)]);
        script.holds(PAIR, &[(("7", 7), 6 * round)]);
        script.holds(TRIPLE, &[((7, [7; 16], "7"), 7 * round)]);
        script.holds(ID, &[([7; 16], 8 * round)]);
        script.holds(ONE, &[((), 9 * round)]);
        script.holds(WIDE, &[(7, -10 * round)]);
        script.holds(WIDEST, &[(7, 10 * round)]);
    }
}

fn deltas_of_one_key_are_one_total(script: &mut Script) {
    script.apply(2, |batch| {
        for amount in [5, 1, -2] {
            batch.add(NUMBER, 7, amount);
            batch.add(TEXT, "a", -amount);
        }
    });
    script.holds(NUMBER, &[(7, 4)]);
    script.holds(TEXT, &[("a", -4)]);
}

fn plus_and_minus_one_are_nothing(script: &mut Script) {
    let both = |batch: &mut Batch| {
        batch.add(NUMBER, 7, 1);
        batch.add(NUMBER, 7, -1);
    };
    script.apply(0, both);
    script.holds::<i64, i64>(NUMBER, &[]);
    script.apply(1, |batch| batch.add(NUMBER, 7, 5));
    script.apply(1, |batch| {
        both(batch);
        batch.add(NUMBER, 8, 1);
    });
    script.holds(NUMBER, &[(7, 5), (8, 1)]);
}

fn negative_totals_are_kept(script: &mut Script) {
    script.apply(1, |batch| batch.add(NUMBER, 7, -1));
    script.holds(NUMBER, &[(7, -1)]);
    script.apply(2, |batch| {
        batch.add(NUMBER, 7, -2);
        batch.add(ONE, (), -9);
    });
    script.holds(NUMBER, &[(7, -3)]);
    script.holds(ONE, &[((), -9)]);
    script.apply(1, |batch| batch.add(NUMBER, 7, 5));
    script.holds(NUMBER, &[(7, 2)]);
}

fn zero_and_absent_are_the_same(script: &mut Script) {
    script.apply(3, |batch| (1..=3).for_each(|key| batch.add(NUMBER, key, 5)));
    script.apply(1, |batch| batch.add(NUMBER, 2, -5));
    script.read(NUMBER, &[(1, 5), (2, 0), (3, 5), (4, 0)]);
    script.walk(NUMBER, 1, &[(1, 5), (3, 5)]);
    script.apply(2, |batch| {
        batch.add(NUMBER, 2, -1);
        batch.add(NUMBER, 3, -5);
    });
    script.holds(NUMBER, &[(1, 5), (2, -1)]);
    script.apply(2, |batch| {
        batch.add(NUMBER, 1, -5);
        batch.add(NUMBER, 2, 1);
    });
    script.holds::<i64, i64>(NUMBER, &[]);
}

fn totals_are_read_in_the_order_of_the_request(script: &mut Script) {
    script.read::<i64, i64>(NUMBER, &[]);
    script.read(NUMBER, &[(1, 0)]);
    script.read(ONE, &[((), 0)]);
    script.read(PAIR, &[(("", 0), 0)]);
    script.apply(3, |batch| (1..=3).for_each(|key| batch.add(NUMBER, key, key * 10)));
    script.read(NUMBER, &[(3, 30), (9, 0), (1, 10), (-1, 0), (3, 30), (2, 20)]);
}

const SIGNED: [i64; 14] = [
    i64::MIN,
    i64::MIN + 1,
    i64::MAX,
    i64::MAX - 1,
    0,
    1,
    -1,
    2,
    -2,
    255,
    256,
    -255,
    -256,
    1 << 32,
];

/// Texts that would each sort or end wrongly under some encoding.
fn all_texts() -> Vec<String> {
    let short = [
        "",
        "\0",
        "\0\0",
        "\0\u{1}",
        "\0a",
        "\u{1}",
        "\u{1}\0",
        "\u{1}\u{1}",
        "\u{2}",
        "\u{1}\u{2}",
        "\u{2}\0",
    ];
    let plain = [
        "a", "a\0", "a\0b", "a\u{1}", "a\u{2}", "aa", "ab", "B", "b", "7", "\u{7f}", "'", "\"",
        "\\", "%", "\n",
    ];
    let beyond = [
        "\u{80}",
        "\u{7ff}",
        "\u{800}",
        "\u{e9}",
        "e\u{301}",
        "\u{d7ff}",
        "\u{ffff}",
        "\u{10000}",
        "\u{10ffff}",
    ];
    let inline = (20..=24).map(|len| "x".repeat(len));
    let long =
        ["x", "\0", "\u{1}"].into_iter().flat_map(|one| [one.repeat(1023), one.repeat(1024)]);
    let last = ["x".repeat(1023) + "y", "x".repeat(1023) + "\0", "\u{10ffff}".repeat(256)];
    let listed = short.iter().chain(&plain).chain(&beyond).map(|text| (*text).to_owned());
    listed.chain(inline).chain(long).chain(last).collect()
}

/// Those without zero bytes, which not every store can store.
fn texts() -> Vec<String> {
    all_texts().into_iter().filter(|text| !text.contains('\0')).collect()
}

fn ids() -> Vec<[u8; 16]> {
    let bits = (0..16).flat_map(|at| [1, 0x7f, 0x80, 0xff_u128].map(|byte| byte << (8 * at)));
    bits.chain([0, u128::MAX]).map(u128::to_be_bytes).collect()
}

fn signed_keys_are_paged_in_order(script: &mut Script) {
    script.in_order(NUMBER, SIGNED.into());
}

fn unsigned_keys_are_paged_in_order(script: &mut Script) {
    script.in_order(SMALL, vec![u32::MAX, 0, 1, 255, 256, 1 << 31, (1 << 31) - 1]);
    script.in_order(LARGE, vec![i64::MAX.cast_unsigned(), 0, 1, 255, 256, 1 << 32, 1 << 31]);
}

fn text_keys_are_paged_in_order(script: &mut Script) {
    script.in_order(TEXT, texts());
}

/// Not run on PostgreSQL: its texts cannot contain zero bytes, so they are refused there.
fn texts_with_zero_bytes_are_kept(script: &mut Script) {
    script.in_order(TEXT, all_texts());
    script.in_order(
        PAIR,
        all_texts()
            .into_iter()
            .flat_map(|text| [-1, 1].map(|number| (text.clone(), number)))
            .collect(),
    );
    script.apply(3, |batch| {
        for text in &["zero", "zero\0", "zero\u{1}"] {
            batch.add(PAIR, (*text, 7), 1);
        }
    });
    script.range(PAIR, PAIR.under("zero\0").keys(), &[(("zero\0", 7), 1)]);
}

fn pair_keys_are_paged_in_order(script: &mut Script) {
    let numbers = [i64::MIN, -1, 0, 1, i64::MAX];
    script.in_order(
        PAIR,
        texts().into_iter().flat_map(|text| numbers.map(|number| (text.clone(), number))).collect(),
    );
}

fn triple_keys_are_paged_in_order(script: &mut Script) {
    let texts = ["", "\u{1}", "\u{2}", "a", "\u{10ffff}"];
    let pairs = [i8::MIN, -1, 0, i8::MAX]
        .into_iter()
        .flat_map(|number| [[0; 16], [0x7f; 16], [0xff; 16]].map(|id| (number, id)));
    script.in_order(
        TRIPLE,
        pairs.flat_map(|(number, id)| texts.map(|text| (number, id, text.to_owned()))).collect(),
    );
}

fn id_keys_are_paged_in_order(script: &mut Script) {
    script.in_order(ID, ids());
}

fn wide_keys_are_paged_in_order(script: &mut Script) {
    script.in_order(WIDEST, ids().into_iter().map(u128::from_be_bytes).collect());
    script.in_order(
        WIDE,
        ids().into_iter().map(i128::from_be_bytes).chain(SIGNED.map(i128::from)).collect(),
    );
}

fn the_only_key_is_paged(script: &mut Script) {
    script.in_order(ONE, vec![()]);
}

fn a_page_holds_at_most_its_limit(script: &mut Script) {
    let totals: Vec<(i64, i64)> = (1..=10).map(|key| (key, -key)).collect();
    script.page::<i64, i64>(NUMBER, None, 3, &[]);
    script
        .apply(10, |batch| totals.iter().for_each(|(key, total)| batch.add(NUMBER, *key, *total)));
    for limit in [0, 1, 2, 9, 10, 11, usize::MAX] {
        script.page(NUMBER, None, limit, &totals);
        script.page(NUMBER, Some(10), limit, &[]);
        script.page(NUMBER, Some(11), limit, &[]);
    }
    (1..=11).for_each(|size| script.walk(NUMBER, size, &totals));
}

fn a_page_starts_after_an_absent_key_too(script: &mut Script) {
    script.apply(2, |batch| [10, 30].iter().for_each(|key| batch.add(NUMBER, key, 1)));
    for (after, left) in [(i64::MIN, 2), (9, 2), (10, 1), (11, 1), (29, 1), (30, 0), (i64::MAX, 0)]
    {
        let (_, behind) = [(10, 1), (30, 1)].split_at(2 - left);
        script.page(NUMBER, Some(after), 5, behind);
        script.page(NUMBER, Some(after), 1, behind);
    }
    script.apply(2, |batch| ["b", "b\u{1}"].iter().for_each(|key| batch.add(TEXT, key, 1)));
    let after_both = ["b\u{1}", "b\u{1}\u{1}", "b\u{2}", "c"].map(|after| (after, 0));
    for (after, left) in [("", 2), ("a\u{10ffff}", 2), ("b", 1)].into_iter().chain(after_both) {
        let (_, behind) = [("b", 1), ("b\u{1}", 1)].split_at(2 - left);
        script.page(TEXT, Some(after), 5, behind);
    }
}

fn totals_reach_the_ends_of_64_bits(script: &mut Script) {
    script.apply(2, |batch| {
        batch.add(NUMBER, 1, i64::MAX);
        batch.add(NUMBER, 2, i64::MIN);
    });
    script.holds(NUMBER, &[(1, i64::MAX), (2, i64::MIN)]);
    script.apply(2, |batch| {
        batch.add(NUMBER, 1, i64::MIN);
        batch.add(NUMBER, 2, i64::MAX);
    });
    script.holds(NUMBER, &[(1, -1), (2, -1)]);
}

fn an_overflow_upwards_applies_nothing(script: &mut Script) {
    script.overflows(i64::MAX, 1, 4);
}

fn an_overflow_downwards_applies_nothing(script: &mut Script) {
    script.overflows(i64::MIN, -1, 4);
}

fn an_overflow_of_one_delta_applies_nothing(script: &mut Script) {
    for (key, end, beyond) in [(1, i64::MAX, i64::MAX), (2, i64::MIN, i64::MIN)] {
        script.apply(1, |batch| batch.add(OTHER, key, end));
        for by in [beyond, beyond.signum()] {
            script.refuse(overflow(OTHER, key, "total"), |batch| batch.add(OTHER, key, by));
        }
        script.read(OTHER, &[(key, end)]);
    }
    script.holds(OTHER, &[(1, i64::MAX), (2, i64::MIN)]);
}

fn an_overflow_in_a_large_batch_applies_nothing(script: &mut Script) {
    script.overflows(i64::MAX, 5, 400);
}

fn a_delta_beyond_64_bits_applies_nothing(script: &mut Script) {
    script.before(-7);
    for (amount, more) in [(i64::MAX, 1), (i64::MAX, i64::MAX), (i64::MIN, -1)] {
        let twice = |batch: &mut Batch, key| {
            for amount in &[amount, more] {
                batch.add(NUMBER, key, *amount);
            }
        };
        // Also where the total would have come back into its range.
        for key in EDGES {
            script.refuse(overflow(NUMBER, key, "delta"), |batch| twice(batch, key));
            script.refuse(overflow(NUMBER, key, "delta"), |batch| {
                touch(batch, 4);
                twice(batch, key);
            });
            script.unchanged(-7);
        }
    }
    // Intermediate sums may leave 64 bits if the delta is within them.
    script.apply(1, |batch| {
        for by in &[i64::MAX, i64::MAX, -i64::MAX, -5] {
            batch.add(SMALL, 8, *by);
        }
    });
    script.read(SMALL, &[(8, i64::MAX - 5)]);
}

fn the_least_delta_is_undone(script: &mut Script) {
    script.before(i64::MAX);
    script.apply(1, |batch| batch.add(WIDE, 1, 5));
    for least in [i64::MIN, i64::MAX] {
        script.refuse(overflow(SMALL, 7, "total"), |batch| {
            batch.add(SMALL, 7, 1);
            for key in [-9, -8, 2_500] {
                batch.add(NUMBER, key, least);
            }
            batch.add(TEXT, "new", least);
            batch.add(ONE, (), if least < 0 { i64::MAX } else { i64::MIN + 3 });
            batch.add(WIDE, 1, i64::MIN);
        });
        script.holds(WIDE, &[(1, 5)]);
        script.read(NUMBER, &[(-9, 0), (-8, 0), (2_500, 0)]);
        script.holds(ONE, &[((), -3)]);
        script.holds(TEXT, &[("kept", 5)]);
    }
}

/// A counter that is not in the store's schema is refused by every method, alone and among others.
fn is_refused(script: &mut Script, counter: Counter<i64>, expect: &Expect) {
    script.before(9);
    script.refuse(expect.clone(), |batch| batch.add(counter, 7, 1));
    script.refuse(expect.clone(), |batch| {
        touch(batch, 20);
        batch.add(counter, 7, 1);
    });
    script.refuse(expect.clone(), |batch| {
        batch.add(counter, 7, 1);
        touch(batch, 4);
    });
    script.refuse_reading(counter, 7, expect);
    script.unchanged(9);
}

fn an_unknown_counter_is_refused(script: &mut Script) {
    let unknown = Counter::new("conformance.unknown");
    is_refused(script, unknown, &Expect::UnknownCounter(unknown.id()));
}

/// Adds to one counter, and from key 8 on to that of another record type.
struct Stray(i64);

impl Record for Stray {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(NUMBER, self.0, 1);
        if self.0 > 7 {
            to.add(OTHER, self.0, 1);
        }
    }
}

/// The record that the other counter belongs to.
struct Owner(i64);

impl Record for Owner {
    fn tally(&self, to: &mut Tally<'_>) {
        to.add(OTHER, self.0, 1);
    }
}

/// Both record types add to one counter.
fn two_records(batch: &mut Batch) {
    batch.insert(&Owner(6));
    batch.insert(&Stray(8));
}

fn a_counter_of_two_record_types_is_refused(script: &mut Script) {
    script.apply(2, |batch| {
        batch.insert(&Owner(6));
        batch.insert(&Stray(7));
    });
    let refused = Expect::TwoRecords(OTHER.id());
    script.refuse(refused.clone(), two_records);
    script.refuse(refused.clone(), |batch| {
        batch.insert(&Stray(8));
        batch.delete(&Stray(8));
        batch.insert(&[Owner(8)][..]);
        batch.delete(&Some(&Owner(8)));
    });
    script.refuse(refused, |batch| {
        (0..20).for_each(|key| batch.add(OTHER, key, 1));
        batch.insert(&Owner(8));
        let mut released = Batch::new();
        released.insert(&Stray(8));
        batch.merge(&mut released);
    });
    script.apply(1, |batch| {
        batch.add(OTHER, 6, 1);
        batch.insert(&vec![Owner(6)]);
        batch.update(&Some(Owner(6)), &None);
        batch.insert(&&Owner(6));
    });
    script.holds(NUMBER, &[(7, 1)]);
    script.holds::<i64, i64>(OTHER, &[(6, 3)]);
}

fn another_version_is_refused(script: &mut Script) {
    is_refused(script, NUMBER.version(2), &Expect::DefinitionConflict(NUMBER.id()));
}

fn another_key_is_refused(script: &mut Script) {
    is_refused(script, Counter::new(LARGE.id().name()), &Expect::DefinitionConflict(LARGE.id()));
}

fn merged_batches_are_one(script: &mut Script) {
    let mut released = batch(|batch| (1..=20).for_each(|key| batch.add(NUMBER, key, 1)));
    script.apply(20, |batch| {
        batch.add(TEXT, "a", 1);
        batch.add(NUMBER, 1, -1);
        batch.add(NUMBER, 2, 5);
        batch.merge(&mut released);
        batch.merge(&mut Batch::new());
    });
    script.holds(TEXT, &[("a", 1)]);
    script.holds(
        NUMBER,
        &(2..=20).map(|key| (key, if key == 2 { 6 } else { 1 })).collect::<Vec<_>>(),
    );
}

/// Every step checks this; here is one of each kind.
fn an_applied_batch_is_empty_and_a_refused_one_is_kept(script: &mut Script) {
    script.apply(1, |batch| batch.add(NUMBER, 7, 1));
    script.apply(21, |batch| {
        batch.add(TEXT, "a", 1);
        (1..=20).for_each(|key| batch.add(NUMBER, key, i64::MAX - 1));
    });
    script.refuse(overflow(NUMBER, 7, "total"), |batch| batch.add(NUMBER, 7, 5));
    script.refuse(overflow(NUMBER, 7, "total"), |batch| {
        batch.add(TEXT, "a", 1);
        batch.add(NUMBER, 7, 5);
    });
    script.holds(TEXT, &[("a", 1)]);
}

/// Steele, Lea, Flood: `SplitMix64`. The seed is fixed, so that every store sees the same batches.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// One of 10,000 keys.
    fn key(&mut self) -> (String, i64) {
        let text = "\u{1}r\u{e9}x"
            .chars()
            .cycle()
            .take(4 * usize::try_from(self.below(20)).unwrap_or(0))
            .collect();
        (text, self.below(500).cast_signed() - 250)
    }
}

fn a_range_is_what_lies_between_its_bounds(script: &mut Script) {
    let all: Vec<((&str, i64), i64)> = ["", "a", "a\u{1}", "b"]
        .into_iter()
        .flat_map(|text| [i64::MIN, -1, 0, 7, i64::MAX].map(|number| (text, number)))
        .zip(1..)
        .collect();
    script.apply(all.len() as u64, |batch| {
        all.iter().rev().for_each(|(key, total)| batch.add(PAIR, key, *total));
    });
    let mut check = |range: KeyRange, inside: &dyn Fn(&(&str, i64)) -> bool| {
        let wanted: Vec<_> = all.iter().filter(|(key, _)| inside(key)).copied().collect();
        script.range(PAIR, &range, &wanted);
    };
    check(KeyRange::ALL, &|_| true);
    for prefix in ["", "a", "a\u{1}", "aa", "c"] {
        check(PAIR.under(prefix).keys().clone(), &|(text, _)| *text == prefix);
        for suffix in [i64::MIN, -1, 3, i64::MAX] {
            check(PAIR.suffixes(prefix, suffix..).keys().clone(), &|(text, number)| {
                *text == prefix && *number >= suffix
            });
            check(PAIR.suffixes(prefix, ..suffix).keys().clone(), &|(text, number)| {
                *text == prefix && *number < suffix
            });
            check(PAIR.suffixes(prefix, -1..=suffix).keys().clone(), &|(text, number)| {
                *text == prefix && (-1..=suffix).contains(number)
            });
        }
        check(PAIR.prefixes(prefix..).keys().clone(), &|(text, _)| *text >= prefix);
        check(PAIR.prefixes(..prefix).keys().clone(), &|(text, _)| *text < prefix);
        check(PAIR.prefixes(..=prefix).keys().clone(), &|(text, _)| *text <= prefix);
        check(PAIR.prefixes(prefix.."b").keys().clone(), &|(text, _)| (prefix.."b").contains(text));
        let key = KeyBuf::of::<(String, i64)>((prefix, -1));
        check(KeyRange::after(Some(&key)), &|key| *key > (prefix, -1));
    }
}

fn a_range_holds_at_most_its_limit(script: &mut Script) {
    script.apply(300, |batch| (0..300).for_each(|number| batch.add(PAIR, ("a", number), 1)));
    script.apply(300, |batch| (0..300).for_each(|number| batch.add(NUMBER, number, 1)));
    let numbers: Vec<(i64, i64)> = (100..200).map(|number| (number, 1)).collect();
    script.range(NUMBER, &KeyRange::of::<i64>(100..200), &numbers);
    let pairs: Vec<((&str, i64), i64)> = (100..200).map(|number| (("a", number), 1)).collect();
    script.range(PAIR, PAIR.suffixes("a", 100..200).keys(), &pairs);
}

fn a_sum_is_that_of_its_range(script: &mut Script) {
    script.range::<i64, i64>(NUMBER, &KeyRange::ALL, &[]);
    script.apply(4, |batch| {
        add_all(batch, NUMBER, &[(1, i64::MAX), (2, i64::MAX), (3, -i64::MAX), (4, -i64::MAX)]);
    });
    script.call(Call::Sum(NUMBER.id(), KeyRange::of::<i64>(2..=3)), Expect::Sum(0));
    script.range::<(), ()>(ONE, &KeyRange::ALL, &[]);
    script.apply(1, |batch| batch.add(ONE, (), -7));
    script.range(ONE, &KeyRange::ALL, &[((), -7)]);
}

fn a_sum_beyond_64_bits_is_refused(script: &mut Script) {
    script.apply(2, |batch| add_all(batch, NUMBER, &[(1, i64::MAX), (2, i64::MAX)]));
    script.call(Call::Sum(NUMBER.id(), KeyRange::ALL), Expect::SumOverflow(NUMBER.id()));
    script.call(Call::Sum(NUMBER.id(), KeyRange::of::<i64>(2..)), Expect::Sum(i64::MAX));
}

fn a_rollup_follows_what_it_sums(script: &mut Script) {
    script.apply(3, |batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "a"), 1), ((3, "b"), 1)]);
    });
    script.holds::<String, &str>(PARENT, &[]);
    script.apply(6, |batch| add_all(batch, CHILD, &[(1, 5), (2, 7), (3, -1), (4, 9)]));
    script.holds(PARENT, &[("a", 12), ("b", -1)]);
    script.apply(2, |batch| add_all(batch, CHILD, &[(1, -5), (2, 5)]));
    script.holds(PARENT, &[("a", 12), ("b", -1)]);
    script.apply(4, |batch| {
        batch.add(TOP_MEMBERSHIP, ("a", ()), 1);
        batch.add(CHILD, 2_i64, 100);
    });
    script.holds(TOP, &[((), 112)]);
    script.apply(3, |batch| batch.add(CHILD, 1_i64, 1));
    script.holds(TOP, &[((), 113)]);
}

fn a_rollup_follows_its_memberships(script: &mut Script) {
    script.apply(4, |batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "b"), 1)]);
        add_all(batch, TOP_MEMBERSHIP, &[(("a", ()), 1), (("b", ()), 1)]);
    });
    script.apply(5, |batch| add_all(batch, CHILD, &[(1, 5), (2, 7)]));
    // One child moves, and its total changes in the same batch.
    script.apply(6, |batch| {
        batch.add(MEMBERSHIP, (1_i64, "a"), -1);
        batch.add(MEMBERSHIP, (1_i64, "b"), 1);
        batch.add(CHILD, 1_i64, 10);
    });
    script.holds(PARENT, &[("b", 22)]);
    script.holds(TOP, &[((), 22)]);
    // A child with two parents, or twice under one, counts twice. Its parent leaves the top, and
    // the child stays.
    script.apply(3, |batch| batch.add(MEMBERSHIP, (2_i64, "b"), 1));
    script.holds(PARENT, &[("b", 29)]);
    script.apply(2, |batch| batch.add(TOP_MEMBERSHIP, ("b", ()), -1));
    script.holds::<(), ()>(TOP, &[]);
    script.apply(2, |batch| batch.add(MEMBERSHIP, (2_i64, "b"), -2));
    script.holds(PARENT, &[("b", 15)]);
    script.holds(MEMBERSHIP, &[((1_i64, "b"), 1)]);
}

fn a_rollup_by_suffix_keeps_the_suffix(script: &mut Script) {
    script.apply(2, |batch| add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "a"), 1)]));
    script.apply(5, |batch| add_all(batch, DAYS, &[((1, -3), 4), ((1, 8), 4), ((2, 8), 4)]));
    script.holds(PARENT_DAYS, &[(("a", -3), 4), (("a", 8), 8)]);
    script.apply(6, |batch| {
        batch.add(MEMBERSHIP, (1_i64, "a"), -1);
        batch.add(MEMBERSHIP, (1_i64, "b"), 1);
        batch.add(DAYS, (1_i64, -3), -4);
    });
    // Nothing arrives at ("b", -3): the same batch takes it away.
    script.holds(PARENT_DAYS, &[(("a", 8), 4), (("b", 8), 4)]);
}

fn a_rollup_is_nobody_s_to_add_to(script: &mut Script) {
    script.apply(3, |batch| {
        batch.add(MEMBERSHIP, (1_i64, "a"), 1);
        batch.add(CHILD, 1_i64, 3);
    });
    script.refuse(Expect::Rollup(PARENT.id()), |batch| {
        batch.add(CHILD, 1_i64, 1);
        batch.add(PARENT, "a", 1);
    });
    script.holds(CHILD, &[(1, 3)]);
    script.holds(PARENT, &[("a", 3)]);
}

fn an_overflow_of_a_rollup_applies_nothing(script: &mut Script) {
    script.apply(3, |batch| {
        add_all(batch, MEMBERSHIP, &[((1, "a"), 1), ((2, "a"), 1), ((3, "b"), 2)]);
    });
    script.apply(2, |batch| batch.add(CHILD, 1_i64, i64::MAX));
    script.refuse(overflow(PARENT, "a", "total"), |batch| {
        batch.add(CHILD, 1_i64, -1);
        batch.add(CHILD, 2_i64, 2);
        batch.add(NUMBER, 7, 1);
    });
    script.refuse(overflow(PARENT, "b", "delta"), |batch| batch.add(CHILD, 3_i64, i64::MAX));
    script.refuse(overflow(PARENT, "a", "delta"), |batch| batch.add(MEMBERSHIP, (1_i64, "a"), 9));
    script.holds(CHILD, &[(1, i64::MAX)]);
    script.holds(PARENT, &[("a", i64::MAX)]);
    script.holds(MEMBERSHIP, &[((1_i64, "a"), 1), ((2_i64, "a"), 1), ((3_i64, "b"), 2)]);
    script.holds::<i64, i64>(NUMBER, &[]);
}

fn random_batches_follow_a_model(script: &mut Script) {
    let mut random = Random(0x6b65_6570);
    let mut model: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for _ in 0..40 {
        let mut deltas: BTreeMap<(String, i64), i64> = BTreeMap::new();
        for _ in 0..random.below(1_200) {
            *deltas.entry(random.key()).or_default() += random.below(5).cast_signed() - 2;
        }
        let written = deltas.values().filter(|delta| **delta != 0).count();
        script.apply(written as u64, |batch| {
            for (key, delta) in &deltas {
                batch.add(PAIR, key, *delta);
            }
        });
        for (key, delta) in &deltas {
            *model.entry(key.clone()).or_default() += delta;
        }
        let touched: Vec<_> = deltas
            .into_keys()
            .map(|key| (key.clone(), model.get(&key).copied().unwrap_or(0)))
            .collect();
        script.read(PAIR, &touched);
        model.retain(|_, total| *total != 0);
    }
    let totals: Vec<_> = model.into_iter().collect();
    script.holds(PAIR, &totals);
    script.walk(PAIR, 997, &totals);
}

/// Amounts of every size on few keys: totals wander to the ends of 64 bits, and batches that go
/// beyond are refused whole.
fn random_large_batches_are_refused_as_by_a_model(script: &mut Script) {
    let mut random = Random(0x6f76_6572);
    let mut model: BTreeMap<i64, i64> = BTreeMap::new();
    for _ in 0..400 {
        let mut deltas: BTreeMap<i64, i64> = BTreeMap::new();
        for _ in 0..=random.below(12) {
            let size = (1_i128 << random.below(64)) - i128::from(random.below(2));
            let amount = if random.below(2) == 0 { -size } else { size };
            deltas
                .insert(random.below(30).cast_signed(), i64::try_from(amount).unwrap_or(i64::MAX));
        }
        let sum = |key: &i64, delta: &i64| {
            model.get(key).map_or(Some(*delta), |total| total.checked_add(*delta))
        };
        let mut beyond: Vec<i64> = deltas
            .iter()
            .filter(|(key, delta)| sum(key, delta).is_none())
            .map(|(key, _)| *key)
            .collect();
        // Of several overflows a store may report any, so only one is left.
        for key in beyond.split_off(beyond.len().min(1)) {
            deltas.remove(&key);
        }
        let written = deltas.values().filter(|delta| **delta != 0).count();
        let fill = |batch: &mut Batch| {
            for (key, delta) in &deltas {
                batch.add(NUMBER, *key, *delta);
            }
        };
        if let Some(key) = beyond.first() {
            script.refuse(overflow(NUMBER, *key, "total"), fill);
        } else {
            script.apply(written as u64, fill);
            for (key, delta) in deltas {
                *model.entry(key).or_default() += delta;
            }
        }
        model.retain(|_, total| *total != 0);
        script.holds(NUMBER, &model.iter().map(|(key, total)| (*key, *total)).collect::<Vec<_>>());
    }
}
