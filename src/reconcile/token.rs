//! The resume token: where a run stopped, with its scope and settings, in one short string.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::options::Mode;
use crate::counter::{FNV_OFFSET, fnv1a};
use crate::error::{Error, Result};
use crate::key::KeyBuf;

/// Where a stopped run resumes: a string of `0-9a-v`.
///
/// Using one twice, or late, is harmless. What a run found or filled before its token counts only
/// if the totals' own database confirms it, in `keepcount_runs`. On a backup that was restored
/// since, a backfill continues from where the backup is. A verify or repair continues too, but
/// calls nothing clean that it did not compare itself.
///
/// # Examples
///
/// ```
/// use keepcount::reconcile::Token;
///
/// assert!("no token".parse::<Token>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[allow(clippy::struct_excessive_bools)] // each says one thing about the run, apart from the others
pub struct Token {
    pub(super) mode: Mode,
    pub(super) force: bool,
    /// The fixed page; 0 for an adaptive one.
    pub(super) page: u32,
    pub(super) samples: u32,
    pub(super) schema: u64,
    pub(super) identity: u64,
    /// Distinguishes the run, in all of its legs, from every other.
    pub(super) run: u64,
    /// The counters in scope, as positions among the schema's counters by name.
    pub(super) scope: Vec<u16>,
    /// The position in `scope`.
    pub(super) at: u16,
    /// The positions before `at` of counters that were not clean, in order.
    pub(super) unclean: Vec<u16>,
    /// The positions before `at` of counters that were left out because their rows could not be
    /// counted; all of them are unclean.
    pub(super) failed: Vec<u16>,
    /// The positions before `at` of counters that were not checked because they have no source; all
    /// of them are unclean.
    pub(super) unchecked: Vec<u16>,
    /// The positions of counters that the run names, which must have a source.
    pub(super) named: Vec<u16>,
    pub(super) after: Option<KeyBuf>,
    pub(super) part: Option<Part>,
    /// Whether drift was found in the counter at `at`, as far as it was compared.
    pub(super) dirty: bool,
    /// Whether keys of the counter at `at` were skipped, as far as it was compared.
    pub(super) unsettled: bool,
}

/// For a run over a part of a counter: its last key, if that is not the counter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) until: Option<KeyBuf>,
}

const VERSION: u8 = 4;
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

impl Token {
    /// Returns the number of the run, the same in all of its legs; an [`Audit`](super::Audit) of
    /// your own keeps the run's progress under it.
    #[must_use]
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// Returns the keys that it has: the last that is done, and the last to compare.
    pub(super) fn keys(&self) -> impl Iterator<Item = &KeyBuf> {
        self.after.iter().chain(self.until())
    }

    fn until(&self) -> Option<&KeyBuf> {
        self.part.as_ref().and_then(|part| part.until.as_ref())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let until = self.until();
        let flags = u8::from(self.mode == Mode::Repair)
            | u8::from(self.force) << 1
            | u8::from(self.after.is_some()) << 2
            | u8::from(self.dirty) << 3
            | u8::from(self.mode == Mode::Backfill) << 4
            | u8::from(self.unsettled) << 5
            | u8::from(self.part.is_some()) << 6
            | u8::from(until.is_some()) << 7;
        let mut bytes = vec![VERSION, flags];
        bytes.extend(self.page.to_be_bytes());
        bytes.extend(self.samples.to_be_bytes());
        bytes.extend(self.schema.to_be_bytes());
        bytes.extend(self.identity.to_be_bytes());
        bytes.extend(self.at.to_be_bytes());
        bytes.extend(u16::try_from(self.scope.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(self.scope.iter().flat_map(|at| at.to_be_bytes()));
        bytes.extend(self.run.to_be_bytes());
        for list in [&self.unclean, &self.failed, &self.unchecked, &self.named] {
            bytes.extend(u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes());
            bytes.extend(list.iter().flat_map(|at| at.to_be_bytes()));
        }
        if let Some(until) = until {
            bytes.extend(u32::try_from(until.as_bytes().len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend(until.as_bytes());
        }
        bytes.extend(self.after.iter().flat_map(KeyBuf::as_bytes));
        bytes.extend(checksum(&bytes));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut raw, sum) = bytes.split_last_chunk::<4>()?;
        if checksum(raw) != *sum {
            return None;
        }
        let [version, flags] = take(&mut raw)?;
        let mode = match flags & 0b1_0001 {
            0 => Mode::Verify,
            1 => Mode::Repair,
            0b1_0000 => Mode::Backfill,
            _ => return None,
        };
        let (part, has_until) = (flags & 64 != 0, flags & 128 != 0);
        if version != VERSION || (has_until && !part) {
            return None;
        }
        let page = u32::from_be_bytes(take(&mut raw)?);
        let samples = u32::from_be_bytes(take(&mut raw)?);
        let schema = u64::from_be_bytes(take(&mut raw)?);
        let identity = u64::from_be_bytes(take(&mut raw)?);
        let at = u16::from_be_bytes(take(&mut raw)?);
        let scope_len = u16::from_be_bytes(take(&mut raw)?);
        let scope = positions(&mut raw, scope_len)?;
        let run = u64::from_be_bytes(take(&mut raw)?);
        let [unclean, failed, unchecked, named] = [(); 4].map(|()| {
            let len = u16::from_be_bytes(take(&mut raw)?);
            positions(&mut raw, len).filter(|list| list.is_sorted_by(|one, next| one < next))
        });
        let (unclean, failed, unchecked, named) = (unclean?, failed?, unchecked?, named?);
        let until = if has_until {
            let len = usize::try_from(u32::from_be_bytes(take(&mut raw)?)).ok()?;
            let (until, rest) = raw.split_at_checked(len)?;
            raw = rest;
            Some(KeyBuf::from_bytes(until))
        } else {
            None
        };
        let has_key = flags & 4 != 0;
        let unclean_are_done = unclean.last().is_none_or(|last| *last < at);
        let left_out_are_unclean =
            failed.iter().chain(&unchecked).all(|at| unclean.binary_search(at).is_ok());
        let named_are_in_scope = named.last().is_none_or(|last| *last < scope_len);
        let are_positions = unclean_are_done && left_out_are_unclean && named_are_in_scope;
        if at >= scope_len || !are_positions || (!has_key && !raw.is_empty()) {
            return None;
        }
        Some(Self {
            mode,
            force: flags & 2 != 0,
            page,
            samples,
            schema,
            identity,
            run,
            scope,
            at,
            unclean,
            failed,
            unchecked,
            named,
            after: has_key.then(|| KeyBuf::from_bytes(raw)),
            part: part.then_some(Part { until }),
            dirty: flags & 8 != 0,
            unsettled: flags & 32 != 0,
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Base 32: five bits a digit, the last one padded with zeros.
        let (mut bits, mut count) = (0_u32, 0_u32);
        let mut text = String::new();
        for byte in self.to_bytes() {
            bits = bits << 8 | u32::from(byte);
            count += 8;
            while count >= 5 {
                count -= 5;
                text.extend(digit(bits >> count));
            }
        }
        if count > 0 {
            text.extend(digit(bits << (5 - count)));
        }
        f.write_str(&text)
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let corrupt = Error::Token { reason: "it is corrupt, or not a token of keepcount" };
        let (mut bits, mut count) = (0_u32, 0_u32);
        let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
        for char in text.bytes() {
            let Some(value) = DIGITS.iter().position(|digit| *digit == char) else {
                return Err(corrupt);
            };
            bits = (bits << 5 | u32::try_from(value).unwrap_or(0)) & 0xfff;
            count += 5;
            if count >= 8 {
                count -= 8;
                bytes.extend(u8::try_from(bits >> count & 0xff));
            }
        }
        // One text for one token: the padding of the last digit is zero, and there is no extra
        // digit.
        let filled = count < 5 && bits & ((1 << count) - 1) == 0;
        Self::from_bytes(&bytes).filter(|_| filled).ok_or(corrupt)
    }
}

impl TryFrom<String> for Token {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.to_string()
    }
}

fn positions(raw: &mut &[u8], count: u16) -> Option<Vec<u16>> {
    (0..count).map(|_| Some(u16::from_be_bytes(take(raw)?))).collect()
}

fn digit(bits: u32) -> Option<char> {
    DIGITS.get((bits & 31) as usize).map(|digit| char::from(*digit))
}

fn take<const N: usize>(raw: &mut &[u8]) -> Option<[u8; N]> {
    let (prefix, rest) = raw.split_first_chunk::<N>()?;
    *raw = rest;
    Some(*prefix)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let hash = fnv1a(FNV_OFFSET, bytes);
    #[allow(clippy::cast_possible_truncation)] // both halves are folded in
    let folded = (hash ^ hash >> 32) as u32;
    folded.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            mode: Mode::Repair,
            force: true,
            page: 7,
            samples: 20,
            schema: 0x0123_4567_89ab_cdef,
            identity: u64::MAX,
            run: 0xfedc_ba98_7654_3210,
            scope: vec![0, 2, 5],
            at: 1,
            unclean: vec![0],
            failed: vec![0],
            unchecked: vec![0],
            named: vec![2],
            after: Some(KeyBuf::of::<String>("se\0 1")),
            part: None,
            dirty: true,
            unsettled: false,
        }
    }

    #[test]
    fn a_token_reads_back() {
        let verify = Token { after: None, mode: Mode::Verify, force: false, ..token() };
        let backfill = Token { mode: Mode::Backfill, dirty: false, unsettled: true, ..token() };
        let part =
            Token { part: Some(Part { until: Some(KeyBuf::of::<String>("t\0")) }), ..token() };
        let last_part = Token { part: Some(Part { until: None }), ..token() };
        for token in [token(), verify, backfill, part, last_part] {
            let text = token.to_string();
            assert!(text.bytes().all(|byte| DIGITS.contains(&byte)), "{text}");
            assert_eq!(text.parse::<Token>().unwrap(), token);
            let json = serde_json::to_string(&token).unwrap();
            assert_eq!(serde_json::from_str::<Token>(&json).unwrap(), token);
        }
    }

    #[test]
    fn a_token_from_before_runs_had_numbers_is_refused() {
        let old = "047g00000s00000k04hkaps9lf6uvvvvvvvvvvvvvs002003000000g00lpma08140og171ilhrg";
        assert!(old.parse::<Token>().is_err(), "it does not say which run it belongs to");
    }

    #[test]
    fn a_token_of_two_modes_or_of_unknown_flags_is_refused() {
        for flags in [0b1_0001, 0b1000_0000] {
            let bytes = token().to_bytes();
            let mut raw = bytes[..bytes.len() - 4].to_vec();
            raw[1] |= flags;
            raw.extend(checksum(&raw));
            assert!(Token::from_bytes(&raw).is_none());
        }
        assert!(Token::from_bytes(&token().to_bytes()).is_some());
    }

    #[test]
    fn every_token_with_one_digit_changed_dropped_or_added_is_refused() {
        let part = Token { part: Some(Part { until: Some(KeyBuf::of::<String>("t")) }), ..token() };
        for text in [token(), Token { mode: Mode::Backfill, ..token() }, part]
            .map(|token| token.to_string())
        {
            every_other_digit_is_refused(&text);
        }
        for bad in ["", "x", "resume", "\u{e4}", &"0".repeat(100_000)] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_of_another_version_or_with_a_place_that_is_none_is_refused() {
        let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut raw = token().to_bytes();
            raw.truncate(raw.len() - 4);
            change(&mut raw);
            raw.extend(checksum(&raw));
            Token::from_bytes(&raw)
        };
        assert_eq!(sealed(&|_| ()), Some(token()));
        assert_eq!(sealed(&|raw| raw[0] = 1), None);
        // No counter after the scope's last one, and no key although the flags declare one.
        assert_eq!(sealed(&|raw| raw[27] = 3), None);
        assert_eq!(sealed(&|raw| raw[1] &= !4), None);
        // A counter that was not clean, and is not done yet.
        assert_eq!(sealed(&|raw| raw[47] = 1), None);
        // Counters that were left out but are marked clean.
        assert_eq!(sealed(&|raw| raw[51] = 1), None);
        assert_eq!(sealed(&|raw| raw[55] = 1), None);
        // A counter that the run names, and that is not in its scope.
        assert_eq!(sealed(&|raw| raw[59] = 3), None);
    }

    #[test]
    fn a_token_that_lists_a_counter_twice_is_refused() {
        for twice in [
            Token { unclean: vec![0, 0], ..token() },
            Token { failed: vec![0, 0], ..token() },
            Token { unchecked: vec![0, 0], ..token() },
            Token { named: vec![2, 2], ..token() },
        ] {
            assert_eq!(Token::from_bytes(&twice.to_bytes()), None);
        }
    }

    #[test]
    fn a_digit_too_many_is_refused_at_any_length() {
        for key in ["", "a", "ab", "abc", "abcd"] {
            let token = Token { after: Some(KeyBuf::of::<String>(key)), ..token() };
            let text = token.to_string();
            assert_eq!(text.parse::<Token>().unwrap(), token);
            assert!(format!("{text}0").parse::<Token>().is_err(), "{text}0");
        }
    }

    fn every_other_digit_is_refused(text: &str) {
        for at in 0..text.len() {
            for digit in DIGITS {
                let mut changed = text.to_owned().into_bytes();
                changed[at] = *digit;
                let changed = String::from_utf8(changed).unwrap();
                assert_eq!(changed.parse::<Token>().is_ok(), changed == text, "{changed}");
            }
            assert!(text[..at].parse::<Token>().is_err());
        }
        for more in ["0", "00", "v"] {
            assert!(format!("{text}{more}").parse::<Token>().is_err());
        }
    }
}
