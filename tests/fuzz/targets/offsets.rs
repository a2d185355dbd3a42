//! Offsets: which ranges of events are valid, and whether they follow what was applied, compared
//! with the plain rule.
#![no_main]
#![allow(clippy::unwrap_used)]

use arbitrary::Arbitrary;
use keepcount::{Error, StreamRange};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    stream: &'a str,
    /// Repetitions of `stream`, so that names come near the maximum length.
    times: u8,
    first: Number,
    last: Number,
    applied: Number,
}

/// Near an end of the range, or arbitrary.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Low(u8),
    High(u8),
    Over(u8),
    Any(u64),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Low(more) => more.into(),
            Self::High(less) => (1 << 63) - 1 - u64::from(less),
            Self::Over(more) => (1 << 63) + u64::from(more),
            Self::Any(any) => any,
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let stream = input.stream.repeat(input.times.into());
    let [first, last, applied] = [input.first, input.last, input.applied].map(Number::value);
    let is_valid = (1..=256).contains(&stream.len())
        && first >= 1
        && first <= last
        && i64::try_from(last).is_ok();
    let stream_range = match StreamRange::new(&stream, first, last) {
        Ok(stream_range) => stream_range,
        Err(Error::InvalidUse { what: "stream range", .. }) => {
            return assert!(!is_valid, "{first} to {last}");
        }
        Err(other) => panic!("{other}"),
    };
    assert!(is_valid, "{stream_range:?}");
    assert_eq!(
        (stream_range.stream(), stream_range.first(), stream_range.last()),
        (stream.as_str(), first, last)
    );
    // How many of its events are new, and how many before it are missing.
    let (known, new) =
        (i128::from(applied), i128::from(last) - i128::from(applied).max(i128::from(first) - 1));
    let missing = i128::from(first) - 1 - known;
    match stream_range.follows(applied) {
        Ok(true) => assert!(missing == 0 && new == i128::from(last) - i128::from(first) + 1),
        Ok(false) => assert!(new <= 0),
        Err(Error::Gap { stream: of, first: from, applied: to }) => {
            assert!((of.as_str(), from, to) == (&stream, first, applied) && missing > 0);
        }
        Err(Error::Overlap { stream: of, first: from, last: until, applied: to }) => {
            assert!(
                (of.as_str(), from, until, to) == (&stream, first, last, applied)
                    && missing < 0
                    && new > 0
            );
        }
        Err(other) => panic!("{other}"),
    }
});
