//! Every store passes one suite: in memory, in SQLite inside and outside a transaction, and a naive
//! store that a third party might write. The suite fails for every planted fault.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};

use keepcount::backend::{KeyRange, RollupUpdate};
use keepcount::conformance::{self, Call, SCHEMA};
use keepcount::{
    Applied, Batch, Counter, CounterId, Error, KeyBuf, MemoryStore, Result, SqliteStore, Store,
    StreamRange,
};
use rusqlite::Connection;

mod memory {
    keepcount::conformance_tests!(|| keepcount::MemoryStore::new(&keepcount::conformance::SCHEMA));
}

mod memory_shared {
    use keepcount::MemoryStore;

    keepcount::conformance_tests!(|| &*Box::leak(Box::new(MemoryStore::new(
        &keepcount::conformance::SCHEMA
    ))));
}

/// A `&mut MemoryStore`, which a caller passes to a function that takes `impl Store`.
mod memory_lent {
    use keepcount::MemoryStore;

    keepcount::conformance_tests!(|| Box::leak(Box::new(MemoryStore::new(
        &keepcount::conformance::SCHEMA
    ))));
}

mod sqlite_on_its_own {
    keepcount::conformance_tests!(|| super::SqliteStore::new(super::tables(), &super::SCHEMA));
}

mod sqlite_in_a_transaction {
    keepcount::conformance_tests!(super::InTransaction::new);
}

mod third_party {
    keepcount::conformance_tests!(super::Naive::default);
}

/// A new database for each case. It is leaked, because a store borrows it.
fn tables() -> &'static Connection {
    let conn = Box::leak(Box::new(Connection::open_in_memory().unwrap()));
    conn.set_prepared_statement_cache_capacity(64);
    SqliteStore::new(conn, &SCHEMA).create().unwrap();
    conn
}

/// A store in a caller's transaction. The transaction and its rows stay, whatever is applied or
/// refused. At the end it commits.
struct InTransaction {
    conn: &'static Connection,
    store: SqliteStore<'static>,
}

impl InTransaction {
    fn new() -> Self {
        let conn = tables();
        conn.execute_batch(
            "CREATE TABLE votes (id INTEGER PRIMARY KEY); BEGIN IMMEDIATE; INSERT INTO votes VALUES (7)",
        )
        .unwrap();
        Self { conn, store: SqliteStore::new(conn, &SCHEMA) }
    }
}

impl Store for InTransaction {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        let applied = self.store.apply(batch);
        assert!(!self.conn.is_autocommit(), "the caller's transaction is still open");
        applied
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        let applied = self.store.apply_idempotent(batch, stream_range);
        assert!(!self.conn.is_autocommit(), "the caller's transaction is still open");
        applied
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        self.store.offset(stream)
    }

    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        self.store.read_keys(counter, keys)
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        self.store.read_range(counter, range, limit)
    }
}

impl Drop for InTransaction {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.conn.execute_batch("COMMIT").unwrap();
            assert_eq!(
                self.conn.query_row("SELECT count(*) FROM votes", (), |row| row.get(0)),
                Ok(1)
            );
        }
    }
}

/// A simple store: a map that is copied before each batch. It keeps totals of 0 and returns them in
/// pages.
#[derive(Default)]
struct Naive {
    totals: BTreeMap<(&'static str, KeyBuf), i64>,
    offsets: BTreeMap<String, u64>,
}

impl Naive {
    fn set_offset(&mut self, stream: &str, last: u64) {
        self.offsets.insert(stream.to_owned(), last);
    }
}

impl Store for Naive {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        let mut totals = self.totals.clone();
        let expanded = RollupUpdate::run(&SCHEMA, batch, |request| {
            self.read_range(request.counter, &request.range, usize::MAX)
        })?;
        for (counter, key, delta) in expanded.deltas() {
            SCHEMA.position(&counter)?;
            let overflow =
                |what| Error::Overflow { counter: counter.name(), key: counter.show(key), what };
            let delta = i64::try_from(delta).map_err(|_| overflow("delta"))?;
            let total = totals.entry((counter.name(), key.clone())).or_default();
            *total = total.checked_add(delta).ok_or_else(|| overflow("total"))?;
        }
        self.totals = totals;
        let mut applied = Applied::default();
        applied.totals = expanded.len() as u64;
        batch.spend();
        Ok(applied)
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        SCHEMA.check_batch(batch)?;
        if !stream_range.follows(self.offset(stream_range.stream())?)? {
            batch.spend();
            return Ok(Applied::skipped());
        }
        let applied = self.apply(batch)?;
        self.set_offset(stream_range.stream(), stream_range.last());
        Ok(applied)
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        Ok(self.offsets.get(stream).copied().unwrap_or(0))
    }

    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        SCHEMA.position(&counter)?;
        let total =
            |key: &KeyBuf| self.totals.get(&(counter.name(), key.clone())).copied().unwrap_or(0);
        Ok(keys.iter().map(total).collect())
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        SCHEMA.position(&counter)?;
        let of_counter = self.totals.iter().filter(|((name, _), _)| *name == counter.name());
        let inside = of_counter.filter(|((_, key), _)| range.contains(key));
        Ok(inside.take(limit).map(|((_, key), total)| (key.clone(), *total)).collect())
    }
}

/// A correct store with one fault.
struct Broken {
    inner: Naive,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The last delta of a batch of several is dropped.
    DropsADelta,
    /// The deltas before the one that overflows are kept.
    KeepsHalfABatch,
    /// An overflow is not reported.
    SwallowsOverflow,
    /// Totals below zero are read as zero.
    HidesNegatives,
    /// A page starts with the key that it should follow.
    RepeatsAKey,
    /// A page holds more keys than its limit.
    IgnoresTheLimit,
    /// Texts sort by their length first.
    SortsOtherwise,
    /// A batch with an unknown counter is not refused.
    AcceptsUnknownCounters,
    /// A batch in which two record types add to one counter is not refused.
    IgnoresRecords,
    /// A batch for another version of a counter is not refused.
    IgnoresVersions,
    /// An empty batch counts as a write.
    CountsEmptyBatches,
    /// A total is the sum of all counters at its key.
    MixesCounters,
    /// A single delta is assigned to its total, not added.
    AssignsSingles,
    /// Totals come in key order, not in the order of the request.
    SortsTheRequest,
    /// A refused batch moves its offset.
    MovesOffsetsOfRefusals,
    /// A repeated batch is applied again.
    AppliesRepeats,
    /// A repeated batch is skipped, but the result does not say so.
    HidesSkips,
    /// The result of a skipped batch reports a written total.
    TellsSkippedDeltas,
    /// A repeated batch sets the offset back.
    LowersOffsets,
    /// A batch that leaves a gap is skipped.
    SkipsGaps,
    /// A batch that leaves a gap is applied.
    AppliesGaps,
    /// A batch that was applied in part is skipped.
    SkipsOverlaps,
    /// A batch that was applied in part is applied.
    AppliesOverlaps,
    /// An empty batch does not move the offset.
    ForgetsEmptyBatches,
    /// An offset moves by one for each batch, not by the number of its events.
    CountsBatches,
    /// All streams share one offset.
    SharesOneOffset,
    /// Stream names are compared without case.
    FoldsStreams,
    /// A batch without an offset moves all offsets.
    MovesOffsetsOfEveryApply,
    /// Rollups are updated, and may overflow, before the offset is checked.
    UpdatesRollupsBeforeItLooks,
    /// The offset is checked before the batch.
    LooksAtOffsetsFirst,
    /// An applied batch keeps its deltas, so it can be applied again.
    KeepsAppliedBatches,
    /// A skipped batch keeps its deltas, so it can be applied again.
    KeepsSkippedBatches,
    /// A refused batch is emptied.
    EmptiesRefusedBatches,
    /// An applied batch forgets its deltas before a leaderboard can follow them.
    ClearsAppliedBatches,
}

impl Store for Broken {
    fn apply(&mut self, batch: &mut Batch) -> Result<Applied> {
        let given = batch.clone();
        let applied = self.apply_wrongly(batch);
        match (self.fault, &applied) {
            (Fault::KeepsAppliedBatches, Ok(_)) => *batch = given,
            (Fault::ClearsAppliedBatches, Ok(_)) => batch.clear(),
            (Fault::EmptiesRefusedBatches, Err(_)) | (_, Ok(_)) => batch.spend(),
            _ => {}
        }
        applied
    }

    fn apply_idempotent(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        let given = batch.clone();
        let applied = self.apply_idempotent_wrongly(batch, stream_range);
        match &applied {
            Ok(applied) if applied.skipped && self.fault == Fault::KeepsSkippedBatches => {
                *batch = given;
            }
            Ok(_) => batch.spend(),
            Err(_) => {}
        }
        applied
    }

    fn offset(&mut self, stream: &str) -> Result<u64> {
        match self.fault {
            Fault::SharesOneOffset => self.inner.offset("all"),
            Fault::FoldsStreams => self.inner.offset(&stream.to_lowercase()),
            _ => self.inner.offset(stream),
        }
    }

    fn read_keys(&mut self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let mut totals = self.inner.read_keys(counter, keys)?;
        match self.fault {
            Fault::HidesNegatives => totals.iter_mut().for_each(|total| *total = (*total).max(0)),
            Fault::SortsTheRequest => {
                let mut keys = keys.to_vec();
                keys.sort();
                totals = self.inner.read_keys(counter, &keys)?;
            }
            Fault::MixesCounters => {
                let every = &self.inner.totals;
                let sum = |key| {
                    every
                        .iter()
                        .filter(|((_, known), _)| known == key)
                        .map(|(_, total)| *total)
                        .sum()
                };
                totals = keys.iter().map(sum).collect();
            }
            _ => {}
        }
        Ok(totals)
    }

    fn read_range(
        &mut self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        match self.fault {
            Fault::RepeatsAKey => {
                let last = match range.start() {
                    Bound::Excluded(last) => Some(last),
                    _ => None,
                };
                let all = self.inner.read_range(counter, &KeyRange::ALL, usize::MAX)?.into_iter();
                Ok(all
                    .filter(|(key, _)| range.contains(key) || Some(key) == last)
                    .take(limit)
                    .collect())
            }
            Fault::IgnoresTheLimit => self.inner.read_range(counter, range, usize::MAX),
            Fault::SortsOtherwise => {
                let mut all = self.inner.read_range(counter, range, usize::MAX)?;
                all.sort_by_key(|(key, _)| (key.as_bytes().len(), key.clone()));
                all.truncate(limit);
                Ok(all)
            }
            _ => self.inner.read_range(counter, range, limit),
        }
    }
}

impl Broken {
    fn apply_wrongly(&mut self, batch: &mut Batch) -> Result<Applied> {
        let deltas: Vec<(CounterId, KeyBuf, i64)> = batch
            .deltas()
            .map(|(counter, key, delta)| (counter, key.clone(), i64::try_from(delta).unwrap_or(0)))
            .collect();
        let applied = match self.fault {
            Fault::DropsADelta if deltas.len() > 2 => {
                let applied = self.inner.apply(batch)?;
                let (counter, key, delta) = &deltas[deltas.len() - 1];
                *self.inner.totals.get_mut(&(counter.name(), key.clone())).unwrap() -= delta;
                return Ok(applied);
            }
            Fault::AssignsSingles if deltas.len() == 1 => {
                self.inner.totals.remove(&(deltas[0].0.name(), deltas[0].1.clone()));
                self.inner.apply(batch)
            }
            Fault::MovesOffsetsOfEveryApply => {
                self.inner.offsets.values_mut().for_each(|offset| *offset += 1);
                self.inner.apply(batch)
            }
            _ => self.inner.apply(batch),
        };
        match (self.fault, applied) {
            (Fault::KeepsHalfABatch, Err(error)) => {
                for (counter, key, delta) in deltas {
                    let total = self.inner.totals.entry((counter.name(), key)).or_default();
                    let Some(sum) = total.checked_add(delta) else { break };
                    *total = sum;
                }
                Err(error)
            }
            (Fault::SwallowsOverflow, Err(Error::Overflow { .. }))
            | (Fault::AcceptsUnknownCounters, Err(Error::UnknownCounter { .. }))
            | (Fault::IgnoresVersions, Err(Error::DefinitionConflict { .. }))
            | (Fault::IgnoresRecords, Err(Error::TwoRecords { .. })) => Ok(Applied::default()),
            (Fault::CountsEmptyBatches, Ok(mut applied)) => {
                applied.totals = applied.totals.max(1);
                Ok(applied)
            }
            (_, applied) => applied,
        }
    }

    fn apply_idempotent_wrongly(
        &mut self,
        batch: &mut Batch,
        stream_range: &StreamRange<'_>,
    ) -> Result<Applied> {
        let given = batch.clone();
        let stream = match self.fault {
            Fault::SharesOneOffset => "all".to_owned(),
            Fault::FoldsStreams => stream_range.stream().to_lowercase(),
            _ => stream_range.stream().to_owned(),
        };
        let (first, last) = (stream_range.first(), stream_range.last());
        let before = self.inner.offset(&stream)?;
        if self.fault == Fault::LooksAtOffsetsFirst && !stream_range.follows(before)? {
            return Ok(Applied::skipped());
        }
        if self.fault == Fault::UpdatesRollupsBeforeItLooks {
            let inner = &mut self.inner;
            RollupUpdate::run(&SCHEMA, batch, |request| {
                inner.read_range(request.counter, &request.range, usize::MAX)
            })?;
        }
        let applied = self.inner.apply_idempotent(batch, &StreamRange::new(&stream, first, last)?);
        match (self.fault, &applied) {
            (Fault::MovesOffsetsOfRefusals, Err(Error::Overflow { .. })) => {
                self.inner.set_offset(&stream, last);
            }
            (Fault::ForgetsEmptyBatches, Ok(_)) if given.is_empty() => {
                self.inner.set_offset(&stream, before);
            }
            (Fault::CountsBatches, Ok(applied)) if !applied.skipped => {
                self.inner.set_offset(&stream, before + 1);
            }
            (Fault::LowersOffsets, Ok(applied)) if applied.skipped => {
                self.inner.set_offset(&stream, last);
            }
            (Fault::AppliesRepeats, Ok(applied)) if applied.skipped => {
                return self.inner.apply(&mut given.clone());
            }
            (Fault::HidesSkips, Ok(applied)) if applied.skipped => return Ok(Applied::default()),
            (Fault::TellsSkippedDeltas, Ok(applied)) if applied.skipped => {
                let mut told = Applied::default();
                (told.skipped, told.totals) = (true, 1);
                return Ok(told);
            }
            (Fault::SkipsGaps, Err(Error::Gap { .. }))
            | (Fault::SkipsOverlaps, Err(Error::Overlap { .. })) => {
                return Ok(Applied::skipped());
            }
            (Fault::AppliesGaps, Err(Error::Gap { .. }))
            | (Fault::AppliesOverlaps, Err(Error::Overlap { .. })) => {
                self.inner.set_offset(&stream, last);
                return self.inner.apply(&mut given.clone());
            }
            _ => {}
        }
        applied
    }
}

/// The message with which a case fails on a store with this fault, if it fails.
fn failure(fault: Fault, case: &str) -> Option<String> {
    let mut store = Broken { inner: Naive::default(), fault };
    let panic =
        catch_unwind(AssertUnwindSafe(|| conformance::run(&conformance::case(case), &mut store)))
            .err()?;
    Some(panic.downcast_ref::<String>().expect("a message").clone())
}

#[test]
fn the_suite_fails_for_every_fault() {
    for (fault, case) in [
        (Fault::DropsADelta, "a_batch_writes_all_counters"),
        (Fault::DropsADelta, "random_batches_follow_a_model"),
        (Fault::KeepsHalfABatch, "an_overflow_upwards_applies_nothing"),
        (Fault::KeepsHalfABatch, "an_overflow_in_a_large_batch_applies_nothing"),
        (Fault::SwallowsOverflow, "an_overflow_downwards_applies_nothing"),
        (Fault::SwallowsOverflow, "a_delta_beyond_64_bits_applies_nothing"),
        (Fault::HidesNegatives, "negative_totals_are_kept"),
        (Fault::RepeatsAKey, "a_page_holds_at_most_its_limit"),
        (Fault::RepeatsAKey, "a_page_starts_after_an_absent_key_too"),
        (Fault::IgnoresTheLimit, "a_page_holds_at_most_its_limit"),
        (Fault::SortsOtherwise, "text_keys_are_paged_in_order"),
        (Fault::AcceptsUnknownCounters, "an_unknown_counter_is_refused"),
        (Fault::IgnoresRecords, "a_counter_of_two_record_types_is_refused"),
        (Fault::IgnoresVersions, "another_version_is_refused"),
        (Fault::IgnoresVersions, "another_key_is_refused"),
        (Fault::CountsEmptyBatches, "an_empty_batch_writes_nothing"),
        (Fault::CountsEmptyBatches, "plus_and_minus_one_are_nothing"),
        (Fault::MixesCounters, "a_batch_writes_all_counters"),
        (Fault::AssignsSingles, "one_delta_is_one_total"),
        (Fault::SortsTheRequest, "totals_are_read_in_the_order_of_the_request"),
        (Fault::MovesOffsetsOfRefusals, "a_refused_batch_leaves_the_offset"),
        (Fault::MovesOffsetsOfRefusals, "a_rollup_beyond_64_bits_leaves_the_offset"),
        (Fault::AppliesRepeats, "events_are_applied_once"),
        (Fault::AppliesRepeats, "a_repeat_is_skipped"),
        (Fault::AppliesRepeats, "rollups_climb_once"),
        (Fault::HidesSkips, "a_repeat_is_skipped"),
        (Fault::TellsSkippedDeltas, "a_repeat_is_skipped"),
        (Fault::LowersOffsets, "a_part_of_what_was_applied_is_skipped"),
        (Fault::SkipsGaps, "a_gap_applies_nothing"),
        (Fault::AppliesGaps, "a_gap_applies_nothing"),
        (Fault::SkipsOverlaps, "an_overlap_applies_nothing"),
        (Fault::AppliesOverlaps, "an_overlap_applies_nothing"),
        (Fault::AppliesOverlaps, "random_streams_follow_a_model"),
        (Fault::ForgetsEmptyBatches, "an_empty_batch_moves_the_offset"),
        (Fault::ForgetsEmptyBatches, "plus_and_minus_one_move_the_offset"),
        (Fault::CountsBatches, "events_are_applied_once"),
        (Fault::CountsBatches, "batches_of_every_kind_move_the_offset"),
        (Fault::SharesOneOffset, "streams_are_apart"),
        (Fault::SharesOneOffset, "random_streams_follow_a_model"),
        (Fault::FoldsStreams, "streams_are_apart"),
        (Fault::MovesOffsetsOfEveryApply, "apply_leaves_offsets_alone"),
        (Fault::UpdatesRollupsBeforeItLooks, "a_repeat_is_skipped_where_it_has_no_room_any_more"),
        (Fault::LooksAtOffsetsFirst, "a_repeat_of_an_invalid_batch_is_refused"),
        (Fault::LooksAtOffsetsFirst, "an_invalid_batch_behind_a_gap_is_refused_as_invalid"),
        (Fault::KeepsAppliedBatches, "an_applied_batch_is_empty_and_a_refused_one_is_kept"),
        (Fault::EmptiesRefusedBatches, "an_applied_batch_is_empty_and_a_refused_one_is_kept"),
        (Fault::ClearsAppliedBatches, "an_applied_batch_is_empty_and_a_refused_one_is_kept"),
        (Fault::KeepsSkippedBatches, "a_repeat_is_skipped"),
    ] {
        assert_eq!(failure(Fault::None, case), None);
        let message = failure(fault, case).unwrap_or_else(|| panic!("{fault:?} passes {case}"));
        assert!(message.starts_with(&format!("conformance case {case}, step ")), "{message}");
    }
}

#[test]
fn failure_message_names_case_step_and_difference() {
    assert_eq!(
        failure(Fault::AssignsSingles, "one_delta_is_one_total").unwrap(),
        "conformance case one_delta_is_one_total, step 5: conformance.number v1 (i64), key 7: 3 was read, not 5"
    );
}

#[test]
fn every_case_applies_and_reads_and_has_a_unique_name() {
    let cases = conformance::cases();
    for case in &cases {
        let is_apply = |call: &Call| matches!(call, Call::Apply(_) | Call::ApplyIdempotent { .. });
        let applies = case.steps.iter().filter(|step| is_apply(&step.call)).count();
        assert!(applies > 0 && applies < case.steps.len(), "{}", case.name);
        assert_eq!(conformance::case(case.name).steps.len(), case.steps.len());
    }
    let mut names: Vec<_> = cases.iter().map(|case| case.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len());
}

/// `Store::totals` reads pages of 4,096 and leaves totals of 0 out. It could end too early at
/// numbers of keys around multiples of the page size.
#[test]
fn totals_are_complete_around_the_size_of_a_page() {
    const NUMBER: Counter<i64> = Counter::new("conformance.number");

    fn all(mut store: impl Store) {
        for (from, to) in
            [(0, 1), (1, 4_095), (4_095, 4_096), (4_096, 4_097), (4_097, 8_192), (8_192, 8_193)]
        {
            let mut batch = Batch::new();
            (from..to).for_each(|key| batch.add(NUMBER, key, key + 1));
            store.apply(&mut batch).unwrap();
            assert_eq!(
                store.totals(NUMBER).unwrap(),
                (0..to).map(|key| (key, key + 1)).collect::<Vec<_>>()
            );
            assert_eq!(store.total(NUMBER, to - 1).unwrap(), to);
            assert_eq!(store.total(NUMBER, to).unwrap(), 0);
        }
        let mut batch = Batch::new();
        (0..8_193).filter(|key| *key != 4_096).for_each(|key| batch.add(NUMBER, key, -key - 1));
        store.apply(&mut batch).unwrap();
        assert_eq!(store.totals(NUMBER).unwrap(), [(4_096, 4_097)]);
    }
    all(MemoryStore::new(&SCHEMA));
    all(SqliteStore::new(tables(), &SCHEMA));
    all(Naive::default());
}
