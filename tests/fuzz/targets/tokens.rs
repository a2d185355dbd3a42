//! Resume tokens. Any text is refused, or is the only text of a token. A damaged token is refused.
//! A forged one with a valid checksum never makes a run that resumes it panic.
#![no_main]
#![allow(clippy::unwrap_used)]

mod schemas;

use keepcount::reconcile::audit::{
    PageDiff, PageRequest, Probe, ProbeResult, RepairRequest, Repaired,
};
use keepcount::reconcile::{Audit, Mode, Options, Reconciler, SystemRuntime, Token, run};
use keepcount::{Error, Result, Schema};
use libfuzzer_sys::fuzz_target;

use schemas::SCHEMAS;

/// The bytes of a token that hold the schema's fingerprint.
const SCHEMA: std::ops::Range<usize> = 10..18;
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(token) = read(text)
    {
        check_damaged(text);
        SCHEMAS.iter().for_each(|schema| check_resumed(&token, schema));
    }
    // The input as a token's bytes, with the checksum that a mutation rarely hits; and with the
    // fingerprint of each schema.
    read(&with_checksum(data));
    for schema in SCHEMAS {
        let mut raw = data.to_vec();
        if let Some(fingerprint) = raw.get_mut(SCHEMA) {
            fingerprint.copy_from_slice(&schema.fingerprint().to_be_bytes());
            if let Some(token) = read(&with_checksum(&raw)) {
                check_resumed(&token, &schema);
            }
        }
    }
});

/// Parses a token. It has one text, also in JSON.
fn read(text: &str) -> Option<Token> {
    let parsed = text.parse::<Token>();
    assert_eq!(serde_json::from_value::<Token>(text.into()).is_ok(), parsed.is_ok());
    match parsed {
        Ok(token) => {
            assert_eq!(token.to_string(), text);
            assert_eq!(serde_json::to_value(&token).unwrap(), text);
            Some(token)
        }
        Err(error) => {
            assert!(matches!(error, Error::Token { .. }), "{error}");
            None
        }
    }
}

/// The checksum detects a change of any one byte of a token, or of its length.
fn check_damaged(text: &str) {
    let whole = token_bytes(text);
    let (raw, sum) = whole.split_last_chunk::<4>().unwrap();
    for at in 0..raw.len() {
        let mut damaged = raw.to_vec();
        damaged[at] ^= 1 << (raw[at] % 8);
        // A checksum of 32 bits cannot detect every change.
        if checksum(&damaged) != *sum {
            let damaged = encoded(&[&damaged[..], sum].concat());
            assert!(damaged.parse::<Token>().is_err(), "{text}, {damaged}");
        }
    }
    let (all_but_one, _) = text.split_at(text.len() - 1);
    for other in [all_but_one.to_owned(), format!("{text}0"), text.to_uppercase() + "V"] {
        assert!(other.parse::<Token>().is_err(), "{text}, {other}");
    }
}

/// A run resumes from a token and reaches its end, or is refused with a reason.
fn check_resumed(token: &Token, schema: &Schema) {
    let resume = |mode, token: &Token| Reconciler::resume(mode, schema, token, Options::default());
    let mut modes = 0;
    for mode in [Mode::Verify, Mode::Repair, Mode::Backfill] {
        match resume(mode, token) {
            Ok(mut resumed) => {
                modes += 1;
                let again = resumed.token().unwrap();
                assert_eq!(
                    resume(mode, &again).unwrap().token(),
                    Some(again.clone()),
                    "a token resumes where it was taken"
                );
                let raw = token_bytes(&again.to_string());
                let identity = u64::from_be_bytes(*raw[SCHEMA.end..].first_chunk().unwrap());
                let report =
                    run(&mut resumed, &mut EmptyAudit { identity }, &mut SystemRuntime::new())
                        .unwrap();
                assert!(report.complete() && report.token.is_none());
                let other = run(
                    &mut resume(mode, token).unwrap(),
                    &mut EmptyAudit { identity: !identity },
                    &mut SystemRuntime::new(),
                );
                assert!(
                    matches!(other, Err(Error::Token { .. })),
                    "a token of other totals is refused"
                );
            }
            Err(Error::Token { .. } | Error::InvalidUse { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(modes < 2, "a token belongs to one mode");
}

/// An audit without totals and rows.
struct EmptyAudit {
    identity: u64,
}

impl Audit for EmptyAudit {
    fn identity(&mut self) -> Result<u64> {
        Ok(self.identity)
    }

    fn probe(&mut self, _: &Probe) -> Result<ProbeResult> {
        Ok(ProbeResult { empty: true, totals: 0 })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        assert!(
            ask.after.as_ref().is_none_or(|key| ask.counter.parts().values(key).is_ok()),
            "{ask:?}"
        );
        Ok(PageDiff::default())
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        panic!("a repair without drift: {ask:?}");
    }
}

/// The token with these bytes and a valid checksum.
fn with_checksum(raw: &[u8]) -> String {
    encoded(&[raw, &checksum(raw)].concat())
}

/// 64-bit FNV-1a, the XOR of its halves.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let [a, b, c, d, rest @ ..] = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes(rest)).to_be_bytes()
}

/// Five bits a digit, the last digit padded with zeros.
fn encoded(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let digits = (0..bytes.len() * 8).step_by(5);
    digits
        .map(|from| char::from(DIGITS[(from..from + 5).fold(0, |digit, at| digit << 1 | bit(at))]))
        .collect()
}

/// The bytes of a token's text.
fn token_bytes(text: &str) -> Vec<u8> {
    let digit = |char: u8| DIGITS.iter().position(|digit| *digit == char).unwrap();
    let bits: Vec<usize> =
        text.bytes().flat_map(|char| (0..5).rev().map(move |bit| digit(char) >> bit & 1)).collect();
    let bytes = bits.as_chunks::<8>().0.iter();
    bytes
        .map(|bits| u8::try_from(bits.iter().fold(0, |byte, bit| byte << 1 | bit)).unwrap())
        .collect()
}
