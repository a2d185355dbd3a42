//! The statements of offsets: reads, locks, sets, lists and drops them.

use super::{Dialect, OFFSETS};

/// Reads the last applied event of the stream `?1`; no row if there is none.
#[must_use]
pub fn read_offset(dialect: Dialect) -> String {
    format!(r#"SELECT m."last" FROM "{OFFSETS}" AS m WHERE m."stream" = {}"#, dialect.param(1))
}

/// Locks a stream's offset until the transaction ends, and reads it.
///
/// `$1` is the stream; for PostgreSQL only.
#[must_use]
pub fn lock_offset() -> String {
    format!(
        r#"INSERT INTO "{OFFSETS}" AS m ("stream", "last") VALUES ($1, 0) ON CONFLICT ("stream") DO UPDATE SET "last" = m."last" RETURNING m."last""#
    )
}

/// Records that the events of the stream `?1` are applied up to `?2`.
///
/// Run it in the transaction that applies them.
#[must_use]
pub fn set_offset(dialect: Dialect) -> String {
    format!(
        r#"INSERT INTO "{OFFSETS}" ("stream", "last") VALUES ({}) ON CONFLICT ("stream") DO UPDATE SET "last" = excluded."last""#,
        dialect.params(2)
    )
}

/// Reads at most `?2` streams after `?1` and their last applied events, in the order of their
/// names' bytes.
///
/// Every stream has a name, so start after the empty one. An offset of 0 is not listed: it is the
/// lock of a stream of which nothing was applied.
#[must_use]
pub fn read_offsets(dialect: Dialect) -> String {
    let (after, limit) = (dialect.param(1), dialect.param(2));
    format!(
        r#"SELECT m."stream", m."last" FROM "{OFFSETS}" AS m WHERE m."stream" > {after} AND m."last" <> 0 ORDER BY m."stream" LIMIT {limit}"#
    )
}

/// Drops the offset of the stream `?1`.
///
/// Its events count again from then on.
#[must_use]
pub fn forget_offset(dialect: Dialect) -> String {
    format!(r#"DELETE FROM "{OFFSETS}" AS m WHERE m."stream" = {}"#, dialect.param(1))
}
