//! Decayed sums in integers: what is counted now weighs twice what was counted one half-life ago,
//! exactly and forever.
//!
//! Time is divided into epochs of one half-life. An event at time t adds
//! `2^(fraction of its epoch)` to the key's total for that epoch, in fixed point. That is an
//! ordinary amount, so it is added, taken back and recounted like any other, in any order. A
//! decayed sum is then `sum(total x 2^epoch)`, whatever the time is: as time passes, all sums
//! shrink by the same factor. So leaderboards change only where events happen.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, shortened};

/// The time in which a weight halves, in seconds; also the length of an epoch.
///
/// # Examples
///
/// ```
/// use keepcount::HalfLife;
///
/// const WEEK: HalfLife = HalfLife::days(7);
/// assert_eq!(WEEK.epoch(604_800), 1);
/// assert_eq!(WEEK.weight(604_800), 1 << 30);
/// assert_eq!("7d".parse::<HalfLife>()?, WEEK);
/// # Ok::<(), keepcount::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HalfLife(i64);

impl HalfLife {
    /// Weights are in units of 2^-30: each is at most about 2^-31 off, and a total has room for
    /// 2^32 - 1 events of one key in one epoch.
    pub const SCALE_BITS: u32 = 30;

    /// A half-life of this many seconds.
    ///
    /// # Panics
    ///
    /// When the number is not above 0. In a `const` that is a compile error.
    #[must_use]
    pub const fn seconds(seconds: i64) -> Self {
        Self::units(seconds, 1)
    }

    /// A half-life of this many hours.
    ///
    /// # Panics
    ///
    /// When the number is not above 0, or exceeds 64 bits in seconds. In a `const` that is a
    /// compile error.
    #[must_use]
    pub const fn hours(hours: i64) -> Self {
        Self::units(hours, HOUR)
    }

    /// A half-life of this many days.
    ///
    /// # Panics
    ///
    /// When the number is not above 0, or exceeds 64 bits in seconds. In a `const` that is a
    /// compile error.
    #[must_use]
    pub const fn days(days: i64) -> Self {
        Self::units(days, DAY)
    }

    const fn units(number: i64, unit: i64) -> Self {
        assert!(number > 0, "a half-life must be longer than zero"); // or the product might wrap
        assert!(number <= i64::MAX / unit, "a half-life in seconds must fit in 64 bits");
        Self(number * unit)
    }

    /// The half-life in seconds.
    #[must_use]
    pub const fn as_seconds(self) -> i64 {
        self.0
    }

    /// The epoch of a time in seconds: the number of half-lives since 1970, rounded down.
    #[must_use]
    pub const fn epoch(self, at: i64) -> i64 {
        at.div_euclid(self.0)
    }

    /// The weight of an event at a time in seconds within its epoch: `2^(fraction of the epoch)`,
    /// in units of 2^-30, to the nearest.
    ///
    /// It is from 2^30 up to 2^31.
    #[must_use]
    pub fn weight(self, at: i64) -> i64 {
        let whole = power_of_two(at.rem_euclid(self.0).unsigned_abs(), self.0.unsigned_abs());
        let dropped = POWER_BITS - Self::SCALE_BITS;
        i64::try_from((whole + (1 << (dropped - 1))) >> dropped).unwrap_or(i64::MAX)
    }
}

const HOUR: i64 = 3_600;
const DAY: i64 = 86_400;

impl fmt::Display for HalfLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds if seconds % DAY == 0 => write!(f, "{}d", seconds / DAY),
            seconds if seconds % HOUR == 0 => write!(f, "{}h", seconds / HOUR),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

impl FromStr for HalfLife {
    type Err = Error;

    /// Parses `90s`, `6h` or `7d`.
    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
            let unit = match unit {
                "s" => 1,
                "h" => HOUR,
                "d" => DAY,
                _ => return None,
            };
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let seconds = number.parse::<i64>().ok().filter(|_| digits)?.checked_mul(unit)?;
            (seconds > 0).then_some(Self(seconds))
        };
        parse().ok_or_else(|| {
            let text = shortened(text);
            Error::invalid_use(
                "half-life",
                format!("{text:?} is not a number above 0 followed by s, h or d, such as 6h"),
            )
        })
    }
}

/// The number of fraction bits of the powers of two below.
const POWER_BITS: u32 = 62;
/// ln 2.
const LN_2: u128 = 3_196_577_161_300_663_915;
/// `DIGITS[j][v]` is 2^(v / 16^(j+1)). A power of two is the product of these values for the
/// hexadecimal digits of its exponent.
const DIGITS: [[u64; 16]; 8] = digits();

/// Computed from 2 by square roots: the k-th root is 2^(2^-k).
#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // const fn; powers below 2^63
const fn digits() -> [[u64; 16]; 8] {
    let mut table = [[1 << POWER_BITS; 16]; 8];
    let mut root: u128 = 2 << POWER_BITS;
    let mut position = 0;
    while position < 8 {
        let mut bit = 4;
        while bit > 0 {
            bit -= 1;
            root = (root << POWER_BITS).isqrt();
            let mut value = 0;
            while value < 16 {
                if value & (1 << bit) != 0 {
                    table[position][value] = times(table[position][value] as u128, root) as u64;
                }
                value += 1;
            }
        }
        position += 1;
    }
    table
}

/// The product of two fixed-point numbers below 4, to the nearest.
const fn times(a: u128, b: u128) -> u128 {
    (a * b + (1 << (POWER_BITS - 1))) >> POWER_BITS
}

/// 2^(part / whole) as fixed point of 62 bits, for a part below the whole. Its relative error is
/// below 2^-57.
fn power_of_two(part: u64, whole: u64) -> u128 {
    let exponent = (u128::from(part) << 64) / u128::from(whole.max(1));
    let mut power = 1_u128 << POWER_BITS;
    for (position, powers) in DIGITS.iter().enumerate() {
        let digit = exponent >> (60 - 4 * position) & 15;
        power = times(
            power,
            powers
                .get(usize::try_from(digit).unwrap_or(0))
                .copied()
                .map_or(1 << POWER_BITS, u128::from),
        );
    }
    // The rest of the exponent is below 2^-32: 2^x is 1 + x ln 2, and what is left out is below
    // 2^-65.
    let rest = exponent & u128::from(u32::MAX);
    times(power, (1 << POWER_BITS) + ((LN_2 * rest) >> 64))
}

/// An exact decayed sum: the sum of totals by epoch, each times 2 to the power of its epoch.
///
/// Compares by value, whatever the epochs; its bytes sort in the same order. Memory grows with its
/// digits: about 16 bytes for each 32 neighbouring epochs that have totals, however far apart those
/// are.
///
/// # Examples
///
/// ```
/// use keepcount::{Decayed, HalfLife};
///
/// const WEEK: HalfLife = HalfLife::days(7);
/// let vote = |at| (WEEK.epoch(at), WEEK.weight(at));
/// let (now, week_ago) = (1_750_000_000, 1_750_000_000 - 604_800);
/// let old = Decayed::sum([vote(week_ago), vote(week_ago)]);
/// let new = Decayed::sum([vote(now)]);
/// assert_eq!(old, new);
/// assert_eq!(new.at(WEEK, now, 1000), Some(1000)); // one vote, in thousandths
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decayed {
    /// The digits other than 0 with their positions, the highest first: the number is the sum of
    /// digit x 2^(32 position). Digits are from -2^31 to 2^31 - 1. So a number has exactly one
    /// form, and a number just above or just below a power of two needs no long row of digits.
    digits: Vec<(i64, i32)>,
}

const DIGIT_BITS: u32 = 32;

impl Decayed {
    /// The sum of these totals, each given with its epoch, in any order.
    ///
    /// An epoch may occur several times.
    #[must_use]
    pub fn sum(totals: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let mut positions: BTreeMap<i64, i128> = BTreeMap::new();
        for (epoch, total) in totals {
            let position = epoch.div_euclid(i64::from(DIGIT_BITS));
            // At most 2^94 each: room for 2^33 of them.
            let sum = positions.entry(position).or_default();
            *sum = sum.saturating_add(i128::from(total) << epoch.rem_euclid(i64::from(DIGIT_BITS)));
        }
        let mut digits = Vec::new();
        while let Some((position, sum)) = positions.pop_first() {
            #[allow(clippy::cast_possible_truncation)] // the low 32 bits, as a signed number
            let digit = sum as i32;
            let carry = (sum - i128::from(digit)) >> DIGIT_BITS;
            if carry != 0 {
                *positions.entry(position + 1).or_default() += carry;
            }
            if digit != 0 {
                digits.push((position, digit));
            }
        }
        digits.reverse();
        Self { digits }
    }

    /// Whether the sum is 0: everything that was counted was taken back.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// The value that the sum has decayed to at a time in seconds, times `scale`, rounded half up:
    /// `at(.., 1000)` is in thousandths.
    ///
    /// `None` if that exceeds 128 bits. The relative error before rounding is below 2^-50.
    #[must_use]
    pub fn at(&self, half_life: HalfLife, at: i64, scale: u32) -> Option<i128> {
        let Some((top, _)) = self.digits.first() else { return Some(0) };
        // The highest three digits: the digits after them are below 2^-62 of the whole.
        let base = top - 2;
        let leading = self.digits.iter().take_while(|(position, _)| *position >= base);
        let sum: i128 = leading
            .map(|(position, digit)| {
                i128::from(*digit) << (i64::from(DIGIT_BITS) * (position - base))
            })
            .sum();
        let mut exponent =
            i128::from(base) * i128::from(DIGIT_BITS) - i128::from(HalfLife::SCALE_BITS);

        // 2^(-at / H) = 2^(-epoch) / 2^(fraction) = 2^(-epoch - 1) x 2^(1 - fraction).
        let into = at.rem_euclid(half_life.0).unsigned_abs();
        let left = half_life.0.unsigned_abs() - into;
        exponent -= i128::from(half_life.epoch(at));
        let mut factor = 1 << POWER_BITS;
        if into > 0 {
            factor = power_of_two(left, half_life.0.unsigned_abs());
            exponent -= 1;
        }
        exponent -= i128::from(POWER_BITS);

        let mut size = sum.unsigned_abs();
        shorten(&mut size, 63, &mut exponent);
        size *= factor;
        shorten(&mut size, 94, &mut exponent);
        round_half_up(sum < 0, size * u128::from(scale), exponent)
    }

    /// The number as bytes that sort as the numbers do, for an SQL blob for instance.
    ///
    /// Equal numbers have equal bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.digits.len() * 13 + 1);
        for (position, digit) in &self.digits {
            // A positive digit at a higher position is more; a negative digit at a higher position
            // is less.
            let position = (position.cast_unsigned() ^ 1 << 63).to_be_bytes();
            if *digit > 0 {
                bytes.push(MORE);
                bytes.extend(position);
            } else {
                bytes.push(LESS);
                bytes.extend(position.map(|byte| !byte));
            }
            bytes.extend((digit.cast_unsigned() ^ 1 << 31).to_be_bytes());
        }
        bytes.push(END);
        bytes
    }

    /// The number with these bytes; `None` if [`to_bytes`](Self::to_bytes) never returns them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (end, entries) = bytes.split_last()?;
        let (entries, []) = entries.as_chunks::<13>() else { return None };
        let mut digits: Vec<(i64, i32)> = Vec::with_capacity(entries.len());
        for [sign, entry @ ..] in entries {
            let (position, digit) = entry.split_first_chunk::<8>()?;
            let position = if *sign == MORE { *position } else { position.map(|byte| !byte) };
            let position = (u64::from_be_bytes(position) ^ 1 << 63).cast_signed();
            let digit = (u32::from_be_bytes(*digit.first_chunk()?) ^ 1 << 31).cast_signed();
            let signed = (*sign == MORE && digit > 0) || (*sign == LESS && digit < 0);
            let falling = digits.last().is_none_or(|(before, _)| position < *before);
            if !signed || !falling || !(MIN_POSITION..=MAX_POSITION).contains(&position) {
                return None;
            }
            digits.push((position, digit));
        }
        (*end == END).then_some(Self { digits })
    }
}

const LESS: u8 = 0;
const END: u8 = 1;
const MORE: u8 = 2;
/// The positions that epochs of 64 bits, and carries from them, can reach.
const MIN_POSITION: i64 = i64::MIN / 32;
const MAX_POSITION: i64 = i64::MAX / 32 + 4;

/// Drops low bits until at most `bits` are left.
fn shorten(size: &mut u128, bits: u32, exponent: &mut i128) {
    let excess = (u128::BITS - size.leading_zeros()).saturating_sub(bits);
    *size >>= excess;
    *exponent += i128::from(excess);
}

/// floor(+-size x 2^exponent + 1/2), or `None` if it does not fit. The size is below 2^126.
fn round_half_up(negative: bool, size: u128, exponent: i128) -> Option<i128> {
    if size == 0 {
        return Some(0);
    }
    let rounded = match u32::try_from(-exponent) {
        Err(_) if exponent > 0 => {
            size.checked_mul(1_u128.checked_shl(u32::try_from(exponent).ok()?)?)?
        }
        Ok(0) => size,
        Ok(shift @ 1..=127) => (size + ((1 << (shift - 1)) - u128::from(negative))) >> shift,
        _ => 0, // below a quarter
    };
    if negative { 0_i128.checked_sub_unsigned(rounded) } else { i128::try_from(rounded).ok() }
}

/// The highest position where two numbers differ decides: the digits after it amount to less than
/// one there.
impl Ord for Decayed {
    fn cmp(&self, other: &Self) -> Ordering {
        let mut others = other.digits.iter();
        for (position, digit) in &self.digits {
            match others.next() {
                Some((known, other)) if known == position && other == digit => {}
                Some((known, other)) if known == position => return digit.cmp(other),
                // One of the two has a digit where the other has 0.
                Some((known, other)) if known > position => return 0.cmp(other),
                _ => return digit.cmp(&0),
            }
        }
        others.next().map_or(Ordering::Equal, |(_, other)| 0.cmp(other))
    }
}

impl PartialOrd for Decayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
