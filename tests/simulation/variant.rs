//! The preconditions of brackets, marks and snapshots, each dropped by one variant of the world.

/// What a variant's world does against the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// A bracket begins after its rows are visible.
    BeginAfterVisible,
    /// A bracket is committed before its rows are.
    CommitBeforeRows,
    /// A bracket is aborted although its rows are committed later.
    AbortThoughCommits,
    /// One writer has no brackets; audits are made while it is between its commit and its apply.
    BareWriter,
    /// Recounts read a transaction from before they were asked for.
    OldRead,
    /// Recounts read a replica that lags.
    StaleReplica,
    /// Whoever finds out late what became of a dropped bracket's rows applies them after the settle time.
    ResolvedTooLate,
    /// The settle time is shorter than commits are on their way.
    SettleTooShort,
    /// Old rows come from a read before the lock.
    OldFromEarlierRead,
    /// Marks are kept apart from the totals, and are newer after a crash.
    MarksApart,
    /// Events that are delivered twice are applied, not applied once.
    DuplicateByApply,
    /// A restored store does not know its marks.
    SnapshotWithoutMarks,
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
        Self::BareWriter,
        Self::OldRead,
        Self::StaleReplica,
        Self::ResolvedTooLate,
        Self::SettleTooShort,
        Self::OldFromEarlierRead,
        Self::MarksApart,
        Self::DuplicateByApply,
        Self::SnapshotWithoutMarks,
        Self::SkippedRowsKept,
        Self::RepairBeforeCaughtUp,
        Self::BackfillBeforeHooks,
    ];
}
