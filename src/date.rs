//! A calendar day, as a key whose text sorts as the days do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::shortened;
use crate::key::{AsKey, Key, KeyBuf, KeyError, KeyPart, KeyParts};

/// A day of the proleptic Gregorian calendar, from 0001-01-01 to 9999-12-31.
///
/// As a key it is encoded as its text, `YYYY-MM-DD`. So it joins with an application's own date
/// columns, and dates sort as texts.
///
/// # Examples
///
/// ```
/// use keepcount::Date;
///
/// let date: Date = "2024-02-28".parse()?;
/// assert_eq!(date.plus(2).map(|date| date.to_string()).as_deref(), Some("2024-03-01"));
/// assert!("2023-02-29".parse::<Date>().is_err());
/// # Ok::<(), keepcount::NoDate>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    /// Days since 1970-01-01.
    days: i32,
}

const SECONDS_A_DAY: i64 = 86_400;

impl Date {
    /// 0001-01-01.
    pub const MIN: Self = Self { days: -719_162 };
    /// 9999-12-31.
    pub const MAX: Self = Self { days: 2_932_896 };

    /// The day with this year, month and day of the month; `None` if there is no such day.
    #[must_use]
    pub const fn new(year: i32, month: u8, day: u8) -> Option<Self> {
        if year < 1 || year > 9999 || day < 1 || day > days_of(year, month) {
            return None;
        }
        Some(Self { days: days_from_civil(year, month as i32, day as i32) })
    }

    /// Days since 1970-01-01; negative before it.
    #[must_use]
    pub const fn days(self) -> i32 {
        self.days
    }

    /// The day this many days after 1970-01-01; `None` outside the calendar.
    #[must_use]
    pub const fn from_days(days: i32) -> Option<Self> {
        if days < Self::MIN.days || days > Self::MAX.days { None } else { Some(Self { days }) }
    }

    /// The day this many days later; `None` outside the calendar.
    #[must_use]
    pub const fn plus(self, days: i32) -> Option<Self> {
        match self.days.checked_add(days) {
            Some(days) => Self::from_days(days),
            None => None,
        }
    }

    /// The day's last second in UTC, in seconds since 1970.
    #[must_use]
    pub fn last_second(self) -> i64 {
        (i64::from(self.days) + 1) * SECONDS_A_DAY - 1
    }
}

/// The number of days of a month; 0 if there is no such month.
const fn days_of(year: i32, month: u8) -> u8 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    }
}

// In these two functions years begin in March, so that a leap day is the last day of a year. 400
// years are an era of 146,097 days, and 0000-03-01 is 719,468 days before 1970. After Howard
// Hinnant, "chrono-Compatible Low-Level Date Algorithms".

const fn days_from_civil(year: i32, month: i32, day: i32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

const fn civil_from_days(days: i32) -> (i32, i32, i32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * of_era + of_era / 4 - of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let (month, day) = ((from_march + 2) % 12 + 1, day_of_year - (153 * from_march + 2) / 5 + 1);
    (era * 400 + of_era + if month <= 2 { 1 } else { 0 }, month, day)
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.days);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl fmt::Debug for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The error when a text is not a [`Date`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a date from 0001-01-01 to 9999-12-31, written YYYY-MM-DD")]
pub struct NoDate(String);

impl FromStr for Date {
    type Err = NoDate;

    fn from_str(text: &str) -> Result<Self, NoDate> {
        parse(text).ok_or_else(|| NoDate(shortened(text)))
    }
}

fn parse(text: &str) -> Option<Date> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text.as_bytes() else { return None };
    let number = |digits: &[u8]| {
        let all_digits = digits.iter().all(u8::is_ascii_digit);
        all_digits.then(|| {
            digits.iter().fold(0_u16, |number, digit| number * 10 + u16::from(digit - b'0'))
        })
    };
    let (year, month, day) =
        (number(&[*y1, *y2, *y3, *y4])?, number(&[*m1, *m2])?, number(&[*d1, *d2])?);
    Date::new(year.into(), u8::try_from(month).ok()?, u8::try_from(day).ok()?)
}

impl Key for Date {
    const PARTS: KeyParts = KeyParts::one(KeyPart::Text);

    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
        String::decode(raw)?.parse().map_err(|_| KeyError::Malformed)
    }
}

impl AsKey<Self> for Date {
    fn encode(&self, to: &mut KeyBuf) {
        // The same bytes as the encoding of its text, without allocating one: ten digits and
        // dashes, and the terminator.
        let (year, month, day) = civil_from_days(self.days);
        let digit = |number: i32, unit: i32| b'0' + u8::try_from(number / unit % 10).unwrap_or(0);
        let [thousands, hundreds, tens, ones] = [1000, 100, 10, 1].map(|unit| digit(year, unit));
        let [m1, m2, d1, d2] = [digit(month, 10), digit(month, 1), digit(day, 10), digit(day, 1)];
        to.push(&[thousands, hundreds, tens, ones, b'-', m1, m2, b'-', d1, d2, 0]);
    }

    #[inline]
    fn is_trusted(&self) -> bool {
        true
    }
}

/// Serializes as its text.
impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
