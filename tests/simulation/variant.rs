//! The preconditions of pending writes, offsets and snapshots, each dropped by one variant of the
//! world.

/// What a variant's world does against the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// A pending write begins after its rows are visible.
    BeginAfterVisible,
    /// A pending write is committed before its rows are.
    CommitBeforeRows,
    /// A pending write is aborted although its rows are committed later.
    AbortThoughCommits,
    /// One writer has no pending writes; audits are made while it is between its commit and its
    /// apply.
    UnguardedWriter,
    /// Recounts read a transaction from before they were asked for.
    OldRead,
    /// Recounts read a replica that lags.
    StaleReplica,
    /// Whoever finds out late what became of a dropped pending write's rows applies them after the
    /// grace period.
    ResolvedTooLate,
    /// The grace period is shorter than commits are on their way.
    GraceTooShort,
    /// Old rows come from a read before the lock.
    OldFromEarlierRead,
    /// Offsets are kept apart from the totals, and are newer after a crash.
    OffsetsApart,
    /// Events that are delivered twice are applied, not applied once.
    DuplicateByApply,
    /// A restored store does not know its offsets.
    SnapshotWithoutOffsets,
    /// Rows that were written for an event delivered twice are kept although the store skips it.
    SkippedRowsKept,
    /// A repair runs while a restored store is not caught up with its streams.
    RepairBeforeCaughtUp,
    /// A backfill runs while a writer has no hooks yet.
    BackfillBeforeHooks,
}

impl Variant {
    pub const ALL: [Self; 15] = [
        Self::BeginAfterVisible,
        Self::CommitBeforeRows,
        Self::AbortThoughCommits,
        Self::UnguardedWriter,
        Self::OldRead,
        Self::StaleReplica,
        Self::ResolvedTooLate,
        Self::GraceTooShort,
        Self::OldFromEarlierRead,
        Self::OffsetsApart,
        Self::DuplicateByApply,
        Self::SnapshotWithoutOffsets,
        Self::SkippedRowsKept,
        Self::RepairBeforeCaughtUp,
        Self::BackfillBeforeHooks,
    ];
}
