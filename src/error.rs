//! The crate's one error type, which tells the caller what to do next.

use crate::counter::CounterId;
use crate::key::{KeyBuf, KeyError};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cause from outside the crate, as the driver returned it.
///
/// It is boxed so that no driver's version is part of this crate's interface.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What the caller of a failed call does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was applied. The same call fails again until something is repaired: data, schema,
    /// code or disk.
    Permanent,
    /// Nothing was applied. Roll back and try the whole transaction again.
    Retry,
    /// The commit may or may not have happened. Check before you try again. You may repeat
    /// [`Store::apply_idempotent`](crate::Store::apply_idempotent) as it is: it checks.
    Indeterminate,
}

/// Everything that can go wrong.
///
/// [`Error::recovery`] tells you what to do about it.
///
/// An error's text contains its whole chain of causes, each once. So
/// [`source`](std::error::Error::source) returns nothing: if you print an error with its sources,
/// no cause is printed twice. The driver's own error is the field `cause`.
///
/// # Examples
///
/// ```
/// use keepcount::{Error, Recovery};
///
/// fn again(error: &Error) -> bool {
///     error.recovery() == Recovery::Retry
/// }
/// # assert!(!again(&Error::UnknownCounter { counter: "x".into(), record: None }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A total, a delta or a recount would leave 64 bits.
    #[error("counter {counter}, key {key}: the {what} leaves 64 bits")]
    Overflow {
        /// The counter's name.
        counter: &'static str,
        /// The key, as text.
        key: String,
        /// Which sum it was: `total`, `delta` or `recount`.
        what: &'static str,
    },
    /// A key that this store cannot store, or that does not belong to this counter.
    #[error("counter {counter}, key {key}: {cause}")]
    Key {
        /// The counter's name.
        counter: &'static str,
        /// The key, as text.
        key: String,
        /// What is wrong with it.
        cause: KeyError,
    },
    /// A counter that the schema does not have.
    #[error("counter {counter}{} is not in the schema", added_by(*record))]
    UnknownCounter {
        /// The counter's name.
        counter: String,
        /// The type of the record whose `tally` added to it, if one did.
        record: Option<&'static str>,
    },
    /// A counter to which the tallies of two record types added in one batch. It belongs to one of
    /// them: a recount sums the rows of one type.
    #[error("counter {counter}: the tallies of two record types add to it, {first} and {second}")]
    TwoRecords {
        /// The counter's name.
        counter: &'static str,
        /// The type that added to it first.
        first: &'static str,
        /// The other type.
        second: &'static str,
    },
    /// A counter that the schema has with another key or version.
    #[error("counter {counter}{} is {found} here, but {wanted} in the schema", added_by(*record))]
    DefinitionConflict {
        /// The counter's name.
        counter: &'static str,
        /// How the caller declares it.
        found: String,
        /// How the schema declares it.
        wanted: String,
        /// The type of the record whose `tally` added to it, if one did.
        record: Option<&'static str>,
    },
    /// A rollup that you added to, or that the call cannot maintain.
    #[error("counter {counter}: {reason}")]
    Rollup {
        /// The counter's name.
        counter: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A counter whose totals do not yet include rows from before its hooks ran everywhere, or that
    /// is made of such a counter; or a leaderboard that was newly created.
    #[error(
        "{}{unready} is not ready to be read: backfill it (a repair does not make it ready), or rebuild it if it is a leaderboard",
        made_of(counter, unready)
    )]
    NotReady {
        /// The name of the counter or leaderboard that you asked for.
        counter: &'static str,
        /// What is not ready, by its full name: this counter or leaderboard, or a counter that it
        /// is made of.
        unready: String,
    },
    /// Events of a stream that do not follow the last applied one. Deliver those in between first.
    #[error("stream {stream}: event {first} leaves a gap, the last one applied is {applied}")]
    Gap {
        /// The stream's name.
        stream: String,
        /// The first event of the refused batch.
        first: u64,
        /// The last event that was applied.
        applied: u64,
    },
    /// Events of a stream of which some were applied before and some were not. Deliver them from
    /// `applied + 1` on.
    #[error("stream {stream}: events {first} to {last} overlap what was applied, up to {applied}")]
    Overlap {
        /// The stream's name.
        stream: String,
        /// The first event of the refused batch.
        first: u64,
        /// Its last event.
        last: u64,
        /// The last event that was applied.
        applied: u64,
    },
    /// A stream whose log ends before the last event that a store applied: the log was truncated
    /// and the store was not. New events with the numbers of the lost ones would be skipped.
    #[error(
        "stream {stream}: events up to {applied} were applied, and its log ends at {end}; restore an older snapshot or begin with an empty store, and replay, or number new events from {applied} + 1 on"
    )]
    LogTruncated {
        /// The stream's name.
        stream: String,
        /// The last event that was applied.
        applied: u64,
        /// The last event in the log; 0 if there is none.
        end: u64,
    },
    /// A sum over a range that was pruned in part.
    #[error("counter {counter}: it was pruned before {cutoff}; read one prefix, from there on")]
    Pruned {
        /// The counter's name.
        counter: &'static str,
        /// The last part of the keys at which totals begin, as text.
        cutoff: String,
    },
    /// A table that is absent, or does not match the schema.
    #[error("table {table}: {reason}")]
    SchemaMismatch {
        /// The table's name.
        table: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Source rows that cannot be recounted.
    #[error("source of counter {counter}{}: {reason}", at_key(key.as_deref()))]
    Source {
        /// The counter's name.
        counter: &'static str,
        /// The key concerned, as text, if there is one.
        key: Option<String>,
        /// What is wrong, and why.
        reason: String,
        /// The driver's error, if that is the cause. The reason includes its text.
        cause: Option<Cause>,
    },
    /// A counter that an audit has no source for.
    #[error("source of counter {counter}: the audit has none; add it")]
    NoSource {
        /// The counter's name.
        counter: &'static str,
    },
    /// A row that the source's SQL counts differently from its `tally`. No recount of this source
    /// can be trusted.
    #[error(
        "counter {counter}, key {key}: the source's SQL adds {sql} and the tally adds {tally} for the same row; the source's key, amount or filter contradicts the tally, so nothing is repaired"
    )]
    DefinitionMismatch {
        /// The counter's name.
        counter: &'static str,
        /// The key concerned, as text.
        key: String,
        /// What SQL counts for the row: an amount, or that the row is excluded.
        sql: String,
        /// What the row's tally counts.
        tally: String,
    },
    /// The source is empty while many totals are not zero: more likely a broken source than a true
    /// one.
    #[error(
        "counter {counter}: the source is empty while {totals} or more totals are not zero; they are not repaired unless the repair is forced"
    )]
    SourceEmpty {
        /// The counter's name.
        counter: &'static str,
        /// How many totals other than zero were seen before counting stopped.
        totals: u64,
    },
    /// More keys are wrong than the run was allowed to repair.
    #[error(
        "counter {counter}: {wrong} of {keys} keys are wrong, over the limit of {limit}%; the page was not repaired"
    )]
    DriftLimit {
        /// The counter's name.
        counter: &'static str,
        /// The number of keys found wrong in this run so far.
        wrong: u64,
        /// The number of keys compared in this run so far.
        keys: u64,
        /// The limit in percent.
        limit: u8,
    },
    /// A resume token that cannot be used here.
    #[error("resume token: {reason}")]
    Token {
        /// The reason.
        reason: &'static str,
    },
    /// A snapshot that cannot be restored here, or bytes that are not a snapshot.
    #[error("snapshot: {reason}")]
    Snapshot {
        /// The reason.
        reason: String,
    },
    /// A setting that cannot be used.
    #[error("{what}: {reason}")]
    InvalidUse {
        /// The setting's name.
        what: &'static str,
        /// The reason.
        reason: String,
    },
    /// Nothing was applied, and a retry can succeed: another connection has locked what this call
    /// needs, the transaction conflicts with another, or the connection was lost.
    #[error("{operation}: {}; {reason}", chain_of(cause))]
    Busy {
        /// What was being done, and on which counter or table.
        operation: String,
        /// What to do about it.
        reason: &'static str,
        /// The driver's error.
        cause: Cause,
    },
    /// Another failure of the database, or of the disk of a snapshot: read-only, full, not a
    /// database, a failing disk, a missing file.
    #[error("{operation}: {}", chain_of(cause))]
    Database {
        /// What was being done, and on which counter or table.
        operation: String,
        /// The driver's error.
        cause: Cause,
    },
    /// The database failed in the middle of a call, and the caller's whole transaction was rolled
    /// back, including the application's rows. The connection is now outside a transaction: do not
    /// go on writing what belonged to it.
    #[error("{operation}: {}; the whole transaction was rolled back", chain_of(cause))]
    TransactionLost {
        /// What was being done, and on which counter or table.
        operation: String,
        /// The driver's error.
        cause: Cause,
    },
    /// What a call had done before it failed could neither be taken back nor rolled back. Its
    /// transaction is still open, with a part of it inside. Roll it back or close the connection
    /// before anything else: whatever you apply on this connection until then is part of that
    /// transaction.
    #[error(
        "{operation}: {}; its transaction could not be rolled back and is still open: roll it back, or close the connection",
        chain_of(cause)
    )]
    TransactionOpen {
        /// What was being done, and on which counter or table.
        operation: String,
        /// The driver's error.
        cause: Cause,
    },
    /// The commit failed in a way that leaves its outcome unknown; or a snapshot's file was put in
    /// place, but may be lost in a crash.
    #[error("{operation}: {}; whether it was committed is not known", chain_of(cause))]
    Indeterminate {
        /// What was being done.
        operation: String,
        /// The driver's error.
        cause: Cause,
    },
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Busy { .. } => Recovery::Retry,
            Self::Indeterminate { .. } => Recovery::Indeterminate,
            _ => Recovery::Permanent,
        }
    }

    /// An [`Error::Overflow`] of a counter's key, for your own store.
    #[must_use]
    pub fn overflow(counter: &CounterId, key: &KeyBuf, what: &'static str) -> Self {
        Self::Overflow { counter: counter.name(), key: shortened(&counter.show(key)), what }
    }

    /// An [`Error::Key`] of a counter's key, for your own store.
    #[must_use]
    pub fn key(counter: &CounterId, key: &KeyBuf, cause: KeyError) -> Self {
        Self::Key { counter: counter.name(), key: shortened(&counter.show(key)), cause }
    }

    pub(crate) fn source(
        counter: &CounterId,
        key: Option<&KeyBuf>,
        reason: impl Into<String>,
    ) -> Self {
        let (counter, key) = (counter.name(), key.map(|key| shortened(&counter.show(key))));
        Self::Source { counter, key, reason: reason.into(), cause: None }
    }

    pub(crate) const fn no_source(counter: &CounterId) -> Self {
        Self::NoSource { counter: counter.name() }
    }

    /// Like [`source`](Self::source), with a cause whose text the reason includes.
    #[cfg(feature = "sql")]
    pub(crate) fn source_of(counter: &CounterId, reason: String, cause: impl Into<Cause>) -> Self {
        Self::Source { counter: counter.name(), key: None, reason, cause: Some(cause.into()) }
    }

    /// Whether the cause is the rows that a counter is recounted from. Then another counter can
    /// still be recounted.
    pub(crate) fn is_of_rows(&self) -> bool {
        matches!(
            self,
            Self::Source { .. } | Self::Key { .. } | Self::Overflow { what: "recount", .. }
        )
    }

    pub(crate) fn invalid_use(what: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidUse { what, reason: reason.into() }
    }
}

fn made_of(asked: &str, unready: &str) -> String {
    if asked == unready { String::new() } else { format!("{asked}: ") }
}

fn added_by(record: Option<&str>) -> String {
    record.map(|record| format!(", to which the tally of {record} adds,")).unwrap_or_default()
}

fn chain_of(cause: &Cause) -> String {
    chain(&**cause)
}

/// The text of an error and of its sources, each once: some errors include the text of their
/// source, some do not.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let said = said(error);
        if !text.contains(&said) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&said);
        }
    }
    text
}

fn said(error: &(dyn std::error::Error + 'static)) -> String {
    #[cfg(feature = "postgres")]
    {
        use tokio_postgres::error::DbError;

        // Its text says only that the server reported an error, which is its source.
        if error
            .downcast_ref()
            .is_some_and(|error: &tokio_postgres::Error| error.as_db_error().is_some())
        {
            return String::new();
        }
        if let Some(db) = error.downcast_ref::<DbError>() {
            return format!("{}: {}", db.severity(), of_db_error(db));
        }
    }
    error.to_string()
}

#[cfg(feature = "postgres")]
pub(crate) fn of_db_error(said: &tokio_postgres::error::DbError) -> String {
    server_text(said.code().code(), said.message(), [said.detail(), said.hint()])
}

/// What a PostgreSQL server said: its message with the SQLSTATE, and its detail and hint.
#[cfg(feature = "sql")]
#[must_use]
pub fn server_text(code: &str, message: &str, more: [Option<&str>; 2]) -> String {
    let first = format!("{message} ({code})");
    std::iter::once(first.as_str()).chain(more.into_iter().flatten()).collect::<Vec<_>>().join("; ")
}

fn at_key(key: Option<&str>) -> String {
    key.map(|key| format!(", key {key}")).unwrap_or_default()
}

/// A key's text, truncated if it would swamp the message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(KEY_SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The number of a key's characters that a message shows.
const KEY_SHOWN: usize = 80;

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// An error that includes the text of its source, or does not.
    #[derive(Debug)]
    struct Hop(&'static str, bool, Option<Cause>);

    impl fmt::Display for Hop {
        fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            match &self.2 {
                Some(source) if self.1 => write!(to, "{}: {source}", self.0),
                _ => to.write_str(self.0),
            }
        }
    }

    impl std::error::Error for Hop {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.2.as_ref().map(|source| &**source as _)
        }
    }

    #[test]
    fn an_error_says_each_of_its_causes_once() {
        for says in [false, true] {
            let cause = || -> Cause {
                Hop("outer", says, Some(Hop("inner", false, Some("why".into())).into())).into()
            };
            let operation = || "writing".to_owned();
            let errors = [
                Error::Database { operation: operation(), cause: cause() },
                Error::Busy { operation: operation(), reason: "try again", cause: cause() },
                Error::TransactionLost { operation: operation(), cause: cause() },
                Error::TransactionOpen { operation: operation(), cause: cause() },
                Error::Indeterminate { operation: operation(), cause: cause() },
            ];
            for error in errors {
                let printed =
                    std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
                        error.source()
                    });
                let printed = printed.map(ToString::to_string).collect::<Vec<_>>().join(": ");
                assert!(printed.starts_with("writing: outer: inner: why"), "{printed}");
                for once in ["writing", "outer", "inner", "why"] {
                    assert_eq!(printed.matches(once).count(), 1, "{once} in {printed}");
                }
            }
        }
    }
}
