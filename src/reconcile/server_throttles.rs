//! Throttles that ask a PostgreSQL server how busy it is.

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::tokio_runtime::ThrottleAnswer;

/// Creates a throttle that is closed while a replica of this server replays more than `most` behind
/// it.
///
/// Give it its own connection, to the primary. Its role needs `pg_monitor`: it is also closed if it
/// cannot see something.
///
/// # Examples
///
/// ```no_run
/// use std::time::Duration;
/// use keepcount::reconcile::{TokioRuntime, active_connections, replay_lag};
///
/// # fn runtime(client: &tokio_postgres::Client) {
/// let mut runtime = TokioRuntime::new()
///     .throttle(replay_lag(client, Duration::from_secs(2)))
///     .throttle(active_connections(client, 50));
/// # let _ = &mut runtime;
/// # }
/// ```
pub fn replay_lag<'a>(
    client: &'a Client,
    most: Duration,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const LAG: &str = "SELECT coalesce(bool_or(state IS NULL), false),
        coalesce(max(extract(epoch FROM replay_lag) * 1000), 0)::bigint FROM pg_stat_replication";
    move || {
        let reason = move |millis: u64| {
            format!(
                "a replica replays {millis} ms behind, over the bound of {} ms",
                most.as_millis()
            )
        };
        Box::pin(async move { over(client, LAG, millis(most), reason).await })
    }
}

/// Creates a throttle that is closed while a replica of this server has more than `most` bytes of
/// the log to replay; see [`replay_lag`].
pub fn replay_lag_bytes<'a>(
    client: &'a Client,
    most: u64,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const LAG: &str = "SELECT coalesce(bool_or(state IS NULL), false), coalesce(max(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, replay_lsn)), 0)::bigint
        FROM pg_stat_replication";
    move || {
        let reason = move |bytes: u64| {
            format!("a replica has {bytes} bytes to replay, over the bound of {most}")
        };
        Box::pin(async move { over(client, LAG, most, reason).await })
    }
}

/// Creates a throttle that is closed while more than `most` connections of this server are active,
/// not counting its own.
///
/// Give it its own connection. Its role needs `pg_monitor`: it is also closed if it cannot see
/// something.
pub fn active_connections<'a>(
    client: &'a Client,
    most: u64,
) -> impl FnMut() -> ThrottleAnswer<'a> + Send + use<'a> {
    const ACTIVE: &str =
        "SELECT coalesce(bool_or(state IS NULL), false), count(*) FILTER (WHERE state = 'active')
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    move || {
        let reason = move |active: u64| {
            format!("{active} connections are at work, over the bound of {most}")
        };
        Box::pin(async move { over(client, ACTIVE, most, reason).await })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Queries whether something is hidden, and a number that must be at most `most`.
async fn over(
    client: &Client,
    text: &str,
    most: u64,
    reason: impl Fn(u64) -> String,
) -> Option<String> {
    const NONE: &[&(dyn ToSql + Sync)] = &[];
    let read = |row: Row| Ok((row.try_get::<_, bool>(0)?, row.try_get::<_, i64>(1)?));
    match client.query_one(text, NONE).await.and_then(read) {
        Ok((true, _)) => Some(
            "the throttle cannot see what other roles do; grant its role pg_monitor".to_owned(),
        ),
        Ok((false, number)) => {
            let number = u64::try_from(number).unwrap_or(0);
            (number > most).then(|| reason(number))
        }
        Err(error) => Some(format!("the throttle's query failed: {error}")),
    }
}
