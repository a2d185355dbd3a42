//! The conformance suite that every [`Store`] must pass, your own included: scripts as data, so
//! that a store of any kind can follow them.
//!
//! [`conformance_tests!`](crate::conformance_tests) makes a test of each case. For a store that is
//! neither a [`Store`] nor an [`AsyncStore`], take [`cases`], answer each step's [`Call`] yourself,
//! and pass the answer to [`Step::check`].
//!
//! Refusals for a store's own reasons (a text that is too long, a lock, a disk) are not part of the
//! suite.

mod cases;

use crate::batch::Batch;
use crate::counter::CounterId;
use crate::counter::key_range::KeyRange;
use crate::error::{Error, Recovery, Result};
use crate::key::KeyBuf;
use crate::schema::Schema;
use crate::store::{Applied, AsyncStore, Store};
use crate::stream_range::StreamRange;
use cases::{
    CHILD, DAYS, ID, LARGE, MEMBERSHIP, NUMBER, ONE, OTHER, PAIR, PARENT, PARENT_DAYS, SCRIPTS,
    SMALL, Script, TEXT, TOP, TOP_MEMBERSHIP, TRIPLE, WIDE, WIDEST, Write,
};

/// The counters that the cases use.
///
/// A store under test has exactly these counters, and no totals.
pub const SCHEMA: Schema = Schema::new(&[
    NUMBER.table(),
    TEXT.table(),
    SMALL.table(),
    LARGE.table(),
    PAIR.table(),
    TRIPLE.table(),
    ID.table(),
    ONE.table(),
    WIDE.table(),
    WIDEST.table(),
    OTHER.table(),
    MEMBERSHIP.table(),
    TOP_MEMBERSHIP.table(),
    CHILD.table(),
    DAYS.table(),
    PARENT.table(),
    PARENT_DAYS.table(),
    TOP.table(),
]);

/// A script for a store that is empty at its start.
#[derive(Debug, Clone)]
pub struct Case {
    /// What the case shows; also the name of its test.
    pub name: &'static str,
    /// The calls and the expected answers, in order.
    pub steps: Vec<Step>,
}

/// A call and its expected answer.
#[derive(Debug, Clone)]
pub struct Step {
    /// The call to make on the store.
    pub call: Call,
    expect: Expect,
}

/// A call of a method of [`Store`].
#[derive(Debug, Clone)]
pub enum Call {
    /// [`Store::apply`].
    Apply(Batch),
    /// [`Store::apply_idempotent`], with a [`StreamRange`] of these fields.
    ApplyIdempotent {
        /// The batch.
        batch: Batch,
        /// The stream.
        stream: String,
        /// The first event that the batch covers.
        first: u64,
        /// The last event that the batch covers.
        last: u64,
    },
    /// [`Store::offset`] of this stream.
    Offset(String),
    /// [`Store::read_keys`].
    Read(CounterId, Vec<KeyBuf>),
    /// [`Store::read_range`].
    Range {
        /// The counter.
        counter: CounterId,
        /// The range.
        range: KeyRange,
        /// The maximum number of totals.
        limit: usize,
    },
    /// [`Store::sum_range`].
    Sum(CounterId, KeyRange),
}

/// A store's answer to a [`Call`].
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Call::Apply`] and [`Call::ApplyIdempotent`].
    Applied(Applied),
    /// To [`Call::Offset`].
    Offset(u64),
    /// To [`Call::Read`].
    Read(Vec<i64>),
    /// To [`Call::Range`].
    Page(Vec<(KeyBuf, i64)>),
    /// To [`Call::Sum`].
    Sum(i64),
}

#[derive(Debug, Clone)]
enum Expect {
    Applied(u64),
    Skipped,
    /// The call's events leave a gap after this last applied event.
    Gap(u64),
    /// Some of the call's events were applied, up to this one.
    Overlap(u64),
    Offset(u64),
    Read(Vec<i64>),
    /// The totals other than 0 after the page's start, as many as its limit. A page that also shows
    /// zeros shows fewer of them.
    Following(Vec<(KeyBuf, i64)>),
    Sum(i64),
    SumOverflow(CounterId),
    Rollup(CounterId),
    Overflow(CounterId, KeyBuf, &'static str),
    UnknownCounter(CounterId),
    TwoRecords(CounterId),
    DefinitionConflict(CounterId),
}

impl Call {
    /// Whether this call applies these events, as an error names them.
    fn is_of(&self, named: &str, from: u64, to: Option<u64>) -> bool {
        matches!(self, Self::ApplyIdempotent { stream, first, last, .. }
            if stream == named && *first == from && to.is_none_or(|to| to == *last))
    }
}

impl Step {
    /// Compares a store's answer with the expected one.
    ///
    /// # Errors
    ///
    /// The difference, in words.
    pub fn check(&self, answer: &Result<Answer>) -> Result<(), String> {
        match (&self.expect, &self.call, answer) {
            (Expect::Applied(totals), _, Ok(Answer::Applied(applied)))
                if applied.totals == *totals && !applied.skipped =>
            {
                Ok(())
            }
            (
                Expect::Skipped,
                Call::ApplyIdempotent { batch, .. },
                Ok(Answer::Applied(applied)),
            ) if applied.skipped
                && applied.totals == 0
                && applied.deltas(batch).next().is_none() =>
            {
                Ok(())
            }
            (Expect::Offset(last), _, Ok(Answer::Offset(found))) if last == found => Ok(()),
            (Expect::Read(totals), Call::Read(counter, keys), Ok(Answer::Read(read))) => {
                check_read(counter, keys, totals, read)
            }
            (
                Expect::Following(totals),
                Call::Range { counter, range, limit },
                Ok(Answer::Page(page)),
            ) => match page.iter().find(|(key, _)| !range.contains(key)) {
                Some((key, _)) => {
                    Err(format!("{counter:?}: key {} is outside the range", counter.show(key)))
                }
                None => check_page(counter, *limit, totals, page),
            },
            (Expect::Sum(sum), _, Ok(Answer::Sum(found))) if sum == found => Ok(()),
            (expect, call, Err(error)) if expect.is_refusal(call, error) => Ok(()),
            (Expect::Read(_) | Expect::Following(_), _, Err(error)) => {
                Err(format!("it was refused: {error}"))
            }
            (expect, _, answer) => Err(format!("expected {expect:?}, got {answer:?}")),
        }
    }

    /// Compares the batch of [`Call::Apply`] or [`Call::ApplyIdempotent`] after the call with what
    /// must be left of it.
    ///
    /// Nothing may be left if it was applied or skipped; all of it if it was refused.
    /// [`Applied::deltas`] must still return what was applied.
    ///
    /// # Errors
    ///
    /// The difference, in words.
    pub fn check_batch(&self, left: &Batch, answer: &Result<Answer>) -> Result<(), String> {
        let (Call::Apply(batch) | Call::ApplyIdempotent { batch, .. }) = &self.call else {
            return Ok(());
        };
        match answer {
            Ok(_) if !left.is_empty() => {
                Err(format!("{} deltas are left in a batch that was applied", left.len()))
            }
            Ok(Answer::Applied(applied))
                if !applied.skipped && applied.deltas(left).count() < batch.len() =>
            {
                Err("the answer no longer has all deltas of the batch that was applied".to_owned())
            }
            Err(error) if sorted(left.deltas()) != sorted(batch.deltas()) => {
                Err(format!("a batch was changed although it was refused: {error}"))
            }
            _ => Ok(()),
        }
    }
}

/// Every delta, sorted by counter name and key.
fn sorted<'b>(
    deltas: impl Iterator<Item = (CounterId, &'b KeyBuf, i128)>,
) -> Vec<(&'static str, &'b KeyBuf, i128)> {
    let mut all: Vec<_> =
        deltas.map(|(counter, key, delta)| (counter.name(), key, delta)).collect();
    all.sort_unstable();
    all
}

impl Expect {
    fn is_refusal(&self, call: &Call, error: &Error) -> bool {
        let named = match (self, error) {
            (Self::Gap(last), Error::Gap { stream, first, applied }) => {
                applied == last && call.is_of(stream, *first, None)
            }
            (Self::Overlap(known), Error::Overlap { stream, first, last, applied }) => {
                applied == known && call.is_of(stream, *first, Some(*last))
            }
            (Self::Overflow(id, raw, sum), Error::Overflow { counter, key, what }) => {
                *counter == id.name() && *key == id.show(raw) && what == sum
            }
            (Self::SumOverflow(id), Error::Overflow { counter, what, .. }) => {
                *counter == id.name() && *what == "sum"
            }
            (Self::UnknownCounter(id), Error::UnknownCounter { counter, .. }) => {
                counter == id.name()
            }
            (Self::Rollup(id), Error::Rollup { counter, .. })
            | (Self::TwoRecords(id), Error::TwoRecords { counter, .. })
            | (Self::DefinitionConflict(id), Error::DefinitionConflict { counter, .. }) => {
                *counter == id.name()
            }
            _ => false,
        };
        named && error.recovery() == Recovery::Permanent
    }
}

fn check_read(
    counter: &CounterId,
    keys: &[KeyBuf],
    expected: &[i64],
    read: &[i64],
) -> Result<(), String> {
    if read.len() != keys.len() {
        return Err(format!("{} totals of {counter:?} for {} keys", read.len(), keys.len()));
    }
    let differing =
        keys.iter().zip(expected.iter().zip(read)).find(|(_, (expected, read))| expected != read);
    differing.map_or(Ok(()), |(key, (expected, read))| {
        Err(format!("{counter:?}, key {}: {read} was read, not {expected}", counter.show(key)))
    })
}

fn check_page(
    counter: &CounterId,
    limit: usize,
    following: &[(KeyBuf, i64)],
    page: &[(KeyBuf, i64)],
) -> Result<(), String> {
    if page.len() > limit {
        return Err(format!("{} totals of {counter:?} in a page of {limit}", page.len()));
    }
    let mut before: Option<&KeyBuf> = None;
    for (key, _) in page {
        if let Some(before) = before.filter(|before| key <= *before) {
            return Err(format!(
                "{counter:?}: key {} after key {}",
                counter.show(key),
                counter.show(before)
            ));
        }
        before = Some(key);
    }
    // A page that is not full reaches to the end; a full page reaches to its last key.
    let last = page.last().map(|(key, _)| key);
    let mut due = following.iter().take_while(|(key, _)| page.len() < limit || Some(key) <= last);
    let mut shown = page.iter().filter(|(_, total)| *total != 0);
    let text = |one: Option<&(KeyBuf, i64)>| {
        one.map_or_else(
            || "none".to_owned(),
            |(key, total)| format!("{total} at key {}", counter.show(key)),
        )
    };
    loop {
        match (due.next(), shown.next()) {
            (None, None) => return Ok(()),
            (due, shown) if due == shown => {}
            (due, shown) => {
                return Err(format!(
                    "{counter:?}: the next total is {}, not {}",
                    text(shown),
                    text(due)
                ));
            }
        }
    }
}

/// All cases.
///
/// # Examples
///
/// ```
/// use keepcount::{MemoryStore, conformance};
///
/// for case in conformance::cases() {
///     conformance::run(&case, &MemoryStore::new(&conformance::SCHEMA));
/// }
/// ```
#[must_use]
pub fn cases() -> Vec<Case> {
    SCRIPTS.iter().map(|script| build(*script)).collect()
}

/// The case with this name.
///
/// # Panics
///
/// If there is no such case.
#[must_use]
pub fn case(name: &str) -> Case {
    let found = SCRIPTS.iter().find(|(known, _)| *known == name);
    found.map_or_else(|| panic!("there is no conformance case {name}"), |script| build(*script))
}

fn build((name, write): (&'static str, Write)) -> Case {
    let mut script = Script::default();
    write(&mut script);
    Case { name, steps: script.into_steps() }
}

/// Runs a case on a store of [`SCHEMA`] without totals.
///
/// # Panics
///
/// If an answer differs from the expected one. The message has the case's name, the step's number
/// and the difference.
pub fn run(case: &Case, mut store: impl Store) {
    for (number, step) in case.steps.iter().enumerate() {
        let mut left = Batch::new();
        let answer = match &step.call {
            Call::Apply(batch) => {
                left.clone_from(batch);
                store.apply(&mut left).map(Answer::Applied)
            }
            Call::ApplyIdempotent { batch, stream, first, last } => {
                left.clone_from(batch);
                let stream_range = StreamRange::new(stream, *first, *last);
                stream_range
                    .and_then(|stream_range| store.apply_idempotent(&mut left, &stream_range))
                    .map(Answer::Applied)
            }
            Call::Offset(stream) => store.offset(stream).map(Answer::Offset),
            Call::Read(counter, keys) => store.read_keys(*counter, keys).map(Answer::Read),
            Call::Range { counter, range, limit } => {
                store.read_range(*counter, range, *limit).map(Answer::Page)
            }
            Call::Sum(counter, range) => store.sum_range(*counter, range).map(Answer::Sum),
        };
        case.check(number, &left, &answer);
    }
}

/// Like [`run`], on an asynchronous store.
///
/// # Panics
///
/// As [`run`].
pub async fn run_async(case: &Case, mut store: impl AsyncStore) {
    for (number, step) in case.steps.iter().enumerate() {
        let mut left = Batch::new();
        let answer = match &step.call {
            Call::Apply(batch) => {
                left.clone_from(batch);
                store.apply(&mut left).await.map(Answer::Applied)
            }
            Call::ApplyIdempotent { batch, stream, first, last } => {
                left.clone_from(batch);
                match StreamRange::new(stream, *first, *last) {
                    Ok(stream_range) => {
                        store.apply_idempotent(&mut left, &stream_range).await.map(Answer::Applied)
                    }
                    Err(error) => Err(error),
                }
            }
            Call::Offset(stream) => store.offset(stream).await.map(Answer::Offset),
            Call::Read(counter, keys) => store.read_keys(*counter, keys).await.map(Answer::Read),
            Call::Range { counter, range, limit } => {
                store.read_range(*counter, range, *limit).await.map(Answer::Page)
            }
            Call::Sum(counter, range) => store.sum_range(*counter, range).await.map(Answer::Sum),
        };
        case.check(number, &left, &answer);
    }
}

impl Case {
    fn check(&self, number: usize, left: &Batch, answer: &Result<Answer>) {
        let check = |step: &Step| step.check(answer).and_then(|()| step.check_batch(left, answer));
        if let Some(Err(difference)) = self.steps.get(number).map(check) {
            panic!("conformance case {}, step {}: {difference}", self.name, number + 1);
        }
    }
}

/// Makes a `#[test]` of each conformance case.
///
/// The argument is a function or closure that makes a store of
/// [`SCHEMA`](crate::conformance::SCHEMA) without totals.
///
/// # Examples
///
/// ```
/// mod memory {
///     fn empty() -> keepcount::MemoryStore {
///         keepcount::MemoryStore::new(&keepcount::conformance::SCHEMA)
///     }
///
///     keepcount::conformance_tests!(empty);
/// }
/// ```
///
/// Or pass `each` and a function that runs one case, for an asynchronous store for instance:
///
/// ```
/// mod memory {
///     use keepcount::conformance::{Case, SCHEMA, run};
///
///     fn runs(case: &Case) {
///         run(case, &mut keepcount::MemoryStore::new(&SCHEMA));
///     }
///
///     keepcount::conformance_tests!(each runs);
/// }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    (@scripts $($case:ident)*) => { &[$((stringify!($case), $case as Write)),*] };
    (@tests ($make:expr) $($case:ident)*) => {$(
        #[test]
        fn $case() {
            $crate::conformance::run(&$crate::conformance::case(stringify!($case)), &mut ($make)());
        }
    )*};
    (@each ($run:expr) $($case:ident)*) => {$(
        #[test]
        fn $case() {
            ($run)(&$crate::conformance::case(stringify!($case)));
        }
    )*};
    (@list $($then:tt)*) => {
        $crate::conformance_tests! { $($then)*
            an_empty_batch_writes_nothing
            one_delta_is_one_total
            a_batch_writes_all_counters
            deltas_of_one_key_are_one_total
            plus_and_minus_one_are_nothing
            negative_totals_are_kept
            zero_and_absent_are_the_same
            totals_are_read_in_the_order_of_the_request
            signed_keys_are_paged_in_order
            unsigned_keys_are_paged_in_order
            text_keys_are_paged_in_order
            texts_with_zero_bytes_are_kept
            pair_keys_are_paged_in_order
            triple_keys_are_paged_in_order
            id_keys_are_paged_in_order
            wide_keys_are_paged_in_order
            the_only_key_is_paged
            a_page_holds_at_most_its_limit
            a_page_starts_after_an_absent_key_too
            totals_reach_the_ends_of_64_bits
            an_overflow_upwards_applies_nothing
            an_overflow_downwards_applies_nothing
            an_overflow_of_one_delta_applies_nothing
            an_overflow_in_a_large_batch_applies_nothing
            a_delta_beyond_64_bits_applies_nothing
            the_least_delta_is_undone
            an_unknown_counter_is_refused
            a_counter_of_two_record_types_is_refused
            another_version_is_refused
            another_key_is_refused
            merged_batches_are_one
            an_applied_batch_is_empty_and_a_refused_one_is_kept
            a_range_is_what_lies_between_its_bounds
            a_range_holds_at_most_its_limit
            a_sum_is_that_of_its_range
            a_sum_beyond_64_bits_is_refused
            a_rollup_follows_what_it_sums
            a_rollup_follows_its_memberships
            a_rollup_by_suffix_keeps_the_suffix
            a_rollup_is_nobody_s_to_add_to
            an_overflow_of_a_rollup_applies_nothing
            events_are_applied_once
            a_repeat_is_skipped
            a_part_of_what_was_applied_is_skipped
            a_gap_applies_nothing
            an_overlap_applies_nothing
            an_empty_batch_moves_the_offset
            plus_and_minus_one_move_the_offset
            streams_are_apart
            batches_of_every_kind_move_the_offset
            a_refused_batch_leaves_the_offset
            a_repeat_of_an_invalid_batch_is_refused
            an_invalid_batch_behind_a_gap_is_refused_as_invalid
            a_rollup_beyond_64_bits_leaves_the_offset
            a_repeat_is_skipped_where_it_has_no_room_any_more
            apply_leaves_offsets_alone
            rollups_climb_once
            random_streams_follow_a_model
            random_batches_follow_a_model
            random_large_batches_are_refused_as_by_a_model
        }
    };
    (each $run:expr) => { $crate::conformance_tests! { @list @each ($run) } };
    ($make:expr) => { $crate::conformance_tests! { @list @tests ($make) } };
}
