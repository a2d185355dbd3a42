//! Offsets: which events of a stream a batch covers, so that each event is applied once however
//! often it is delivered.

use crate::error::{Error, Result};

/// The events of one stream that a batch covers: the numbers `first` to `last`, counted from 1 on.
///
/// For each stream, a store keeps the number of the last applied event, written in the same
/// transaction as the totals. [`Store::apply_idempotent`](crate::Store::apply_idempotent) applies
/// events that follow it, skips events up to it, and refuses events that leave a gap or overlap it.
///
/// # Examples
///
/// ```
/// use keepcount::{Batch, Error, MemoryStore, StreamRange};
///
/// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
///
/// let store = MemoryStore::new(&SCHEMA);
/// let mut batch = Batch::new();
/// batch.add(SHOW_VOTES, 7, 3);
/// let events = StreamRange::new("votes", 1, 3)?;
/// let mut again = batch.clone();
/// assert!(!store.apply_idempotent(&mut batch, &events)?.skipped);
/// assert!(store.apply_idempotent(&mut again, &events)?.skipped); // delivered again
/// assert_eq!((store.total(SHOW_VOTES, 7)?, store.offset("votes")), (3, 3));
/// assert!(matches!(store.apply_idempotent(&mut batch, &StreamRange::new("votes", 5, 6)?), Err(Error::Gap { applied: 3, .. })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamRange<'a> {
    stream: &'a str,
    first: u64,
    last: u64,
}

/// The maximum length of a stream's name, in bytes.
pub(crate) const MAX_STREAM: usize = 256;
/// The largest number that an event can have: SQL stores numbers up to here.
const MAX_LAST: u64 = i64::MAX.unsigned_abs();

impl<'a> StreamRange<'a> {
    /// The events `first` to `last` of a stream.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] if the stream's name is empty or longer than 256 bytes, `first` is 0
    /// or greater than `last`, or `last` is above 2^63 - 1.
    pub fn new(stream: &'a str, first: u64, last: u64) -> Result<Self> {
        let refused = |reason| Err(Error::invalid_use("stream range", reason));
        if stream.is_empty() || stream.len() > MAX_STREAM {
            return refused(format!(
                "a stream's name has 1 to {MAX_STREAM} bytes, not {}",
                stream.len()
            ));
        }
        if first == 0 || first > last || last > MAX_LAST {
            return refused(format!(
                "stream {stream}: events {first} to {last} are not a range: events are numbered from 1 to 2^63 - 1"
            ));
        }
        Ok(Self { stream, first, last })
    }

    /// The stream's name.
    #[must_use]
    pub const fn stream(&self) -> &'a str {
        self.stream
    }

    /// The number of the first event.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The number of the last event.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Whether to apply these events if `applied` is the last applied one: true if they follow it,
    /// false if all of them were applied.
    ///
    /// For your own store.
    ///
    /// # Errors
    ///
    /// [`Error::Gap`] if events in between are missing, [`Error::Overlap`] if some of these were
    /// applied and some were not.
    pub fn follows(&self, applied: u64) -> Result<bool> {
        let Self { stream, first, last } = *self;
        if last <= applied {
            Ok(false)
        } else if first == applied + 1 {
            Ok(true)
        } else if first > applied {
            Err(Error::Gap { stream: stream.to_owned(), first, applied })
        } else {
            Err(Error::Overlap { stream: stream.to_owned(), first, last, applied })
        }
    }
}

/// The first event to deliver, if `applied` is the last applied one and the stream's log ends at
/// `end`.
pub(crate) fn replay_from(stream: &str, applied: u64, end: u64) -> Result<u64> {
    if applied > end {
        return Err(Error::LogTruncated { stream: stream.to_owned(), applied, end });
    }
    Ok(applied.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_follow_are_known_leave_a_gap_or_overlap() {
        for applied in 0..8 {
            for first in 1..9 {
                for last in first..9 {
                    let found = StreamRange::new("votes", first, last).unwrap().follows(applied);
                    match found {
                        Ok(true) => assert_eq!(first, applied + 1),
                        Ok(false) => assert!(last <= applied),
                        Err(Error::Gap { .. }) => assert!(first > applied + 1),
                        Err(Error::Overlap { .. }) => assert!(first <= applied && last > applied),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_offset_is_refused() {
        let long = "s".repeat(MAX_STREAM + 1);
        for (stream, first, last) in [
            ("", 1, 1),
            (&long, 1, 1),
            ("s", 0, 1),
            ("s", 2, 1),
            ("s", 1, MAX_LAST + 1),
            ("s", 0, 0),
        ] {
            assert!(matches!(
                StreamRange::new(stream, first, last),
                Err(Error::InvalidUse { what: "stream range", .. })
            ));
        }
        assert!(
            StreamRange::new(&long[1..], MAX_LAST, MAX_LAST)
                .unwrap()
                .follows(MAX_LAST - 1)
                .unwrap()
        );
    }
}
