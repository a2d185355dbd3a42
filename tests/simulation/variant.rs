//! The preconditions of pending writes, offsets and snapshots. Each variant of the world drops one
//! of them.

/// How a variant's world violates the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// A pending write begins after its rows are visible.
    BeginAfterVisible,
    /// A pending write is committed before its rows are.
    CommitBeforeRows,
    /// A pending write is aborted although its rows are committed later.
    AbortThoughCommits,
    /// One writer uses no pending writes, so audits run between its commit and its apply.
    UnguardedWriter,
    /// Recounts read in a transaction that began before they were requested.
    OldRead,
    /// Recounts read a lagging replica.
    StaleReplica,
    /// A writer learns the outcome of a dropped pending write late, and applies it after the grace
    /// period.
    ResolvedTooLate,
    /// The grace period is shorter than a commit can take.
    GraceTooShort,
    /// Old rows come from a read before the lock.
    OldFromEarlierRead,
    /// Offsets are kept apart from the totals, and are newer after a crash.
    OffsetsApart,
    /// Events that are delivered twice go through `apply` instead of `apply_idempotent`.
    DuplicateByApply,
    /// A restored store does not know its offsets.
    SnapshotWithoutOffsets,
    /// Rows that were written for an event delivered twice are kept although the store skips it.
    SkippedRowsKept,
    /// A repair runs before a restored store has caught up with its streams.
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
