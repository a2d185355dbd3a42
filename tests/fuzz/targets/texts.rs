//! Texts that people and files give: dates, half-lives, states of shows, ages of verifications. An
//! accepted text means what a plain reading of it says, and is the only text of its value.
#![no_main]
#![allow(clippy::unwrap_used)]

mod schemas;

use keepcount::concert::Status;
use keepcount::reconcile::Freshness;
use keepcount::{Date, Error, HalfLife, KeyBuf};
use libfuzzer_sys::fuzz_target;

use schemas::SCHEMAS;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    date(text);
    half_life(text);
    if let Ok(status) = text.parse::<Status>() {
        assert_eq!(status.as_str(), text);
    }
    if let Ok(saved) = serde_json::from_str::<Freshness>(text) {
        freshness(&saved);
    }
});

fn date(text: &str) {
    let parsed = text.parse::<Date>();
    assert_eq!(parsed.is_ok(), is_date(text), "{text:?}");
    let key = serde_json::from_value::<Date>(text.into());
    assert_eq!(key.is_ok(), parsed.is_ok());
    let as_key = KeyBuf::of::<String>(text);
    assert_eq!(as_key.decode::<Date>().ok(), parsed.clone().ok());
    let Ok(date) = parsed else { return };
    assert_eq!(date.to_string(), text);
    assert_eq!(KeyBuf::of::<Date>(date), as_key);
    assert_eq!(Date::from_days(date.days()), Some(date));
    assert!((Date::MIN..=Date::MAX).contains(&date));
    if let Some(next) = date.plus(1) {
        assert!(next > date && next.to_string().as_str() > text && next.plus(-1) == Some(date));
        assert_eq!(next.last_second() - date.last_second(), 86_400);
    } else {
        assert_eq!(date, Date::MAX);
    }
}

/// Four digits, two and two, and a day that the calendar has.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return false };
    let number = |part: &str, digits| {
        let is_number = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { part.parse::<u32>().ok() } else { None }
    };
    let (Some(year), Some(month), Some(day)) = (number(year, 4), number(month, 2), number(day, 2))
    else {
        return false;
    };
    let leap = if year % 100 == 0 { year % 400 == 0 } else { year % 4 == 0 };
    let days = [31, 28 + u32::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let most = (month as usize).checked_sub(1).and_then(|at| days.get(at));
    year > 0 && day > 0 && most.is_some_and(|most| day <= *most)
}

fn half_life(text: &str) {
    let seconds = seconds_of(text);
    match text.parse::<HalfLife>() {
        Ok(half_life) => {
            assert_eq!(Some(half_life.as_seconds()), seconds, "{text:?}");
            assert_eq!(half_life.to_string().parse::<HalfLife>().unwrap(), half_life);
        }
        Err(Error::InvalidUse { what: "half-life", .. }) => assert_eq!(seconds, None, "{text:?}"),
        Err(other) => panic!("{other}"),
    }
}

/// A number above 0 with its unit.
fn seconds_of(text: &str) -> Option<i64> {
    let (number, unit) = [("s", 1), ("h", 3_600), ("d", 86_400)]
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds = number
        .bytes()
        .try_fold(0_i64, |sum, digit| sum.checked_mul(10)?.checked_add((digit - b'0').into()))?;
    seconds.checked_mul(unit).filter(|seconds| *seconds > 0)
}

/// Entries for counters that are not the schema's are ignored.
fn freshness(saved: &Freshness) {
    let json = serde_json::to_string(saved).unwrap();
    assert_eq!(serde_json::from_str::<Freshness>(&json).unwrap(), *saved);
    let _ = saved.oldest(i64::MIN);
    for schema in &SCHEMAS {
        let resumed = Freshness::resume(schema, saved);
        assert_eq!(resumed.iter().count(), schema.counters().len());
        assert_eq!(Freshness::resume(schema, &resumed), resumed);
        for now in [i64::MIN, 0, i64::MAX] {
            let ages = schema.counters().iter().map(|spec| resumed.age(&spec.id(), now));
            let is_oldest = |oldest| {
                ages.clone()
                    .all(|age| age.is_none_or(|age| Some(age) <= oldest) || oldest.is_none())
            };
            assert!(resumed.oldest(now).is_none_or(|(_, oldest)| is_oldest(oldest)));
        }
    }
}
