//! Resume tokens: any text is refused as a token, or is the one text of one; what is damaged is
//! refused; and one that somebody forged, checksum and all, is no way to a panic in a run that
//! resumes it.
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

/// Where a token's bytes hold the fingerprint of the schema.
const SCHEMA: std::ops::Range<usize> = 10..18;
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(token) = read(text)
    {
        check_damaged(text);
        SCHEMAS.iter().for_each(|schema| check_resumed(&token, schema));
    }
    // The same as a token's bytes, with the checksum that a mutation seldom hits; of each schema in
    // turn.
    read(&sealed(data));
    for schema in SCHEMAS {
        let mut raw = data.to_vec();
        if let Some(fingerprint) = raw.get_mut(SCHEMA) {
            fingerprint.copy_from_slice(&schema.fingerprint().to_be_bytes());
            if let Some(token) = read(&sealed(&raw)) {
                check_resumed(&token, &schema);
            }
        }
    }
});

/// A token has one text, in words and in JSON.
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

/// Whatever becomes of one byte of a token, or of its length, the checksum tells.
fn check_damaged(text: &str) {
    let whole = opened(text);
    let (raw, sum) = whole.split_last_chunk::<4>().unwrap();
    for at in 0..raw.len() {
        let mut damaged = raw.to_vec();
        damaged[at] ^= 1 << (raw[at] % 8);
        // 32 bits are not enough for all that can be forged.
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

/// A run goes on from a token to its end, or says why not.
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
                    "where it is, there it goes on"
                );
                let raw = opened(&again.to_string());
                let identity = u64::from_be_bytes(*raw[SCHEMA.end..].first_chunk().unwrap());
                let report =
                    run(&mut resumed, &mut Nothing { identity }, &mut SystemRuntime::new())
                        .unwrap();
                assert!(report.complete() && report.token.is_none());
                let other = run(
                    &mut resume(mode, token).unwrap(),
                    &mut Nothing { identity: !identity },
                    &mut SystemRuntime::new(),
                );
                assert!(matches!(other, Err(Error::Token { .. })), "of other totals");
            }
            Err(Error::Token { .. } | Error::InvalidUse { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(modes < 2, "a token is of one mode");
}

/// Totals and rows of which there are none.
struct Nothing {
    identity: u64,
}

impl Audit for Nothing {
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
        panic!("nothing is to be repaired: {ask:?}");
    }
}

/// A token of these bytes, checksum and all.
fn sealed(raw: &[u8]) -> String {
    encoded(&[raw, &checksum(raw)].concat())
}

/// 64-bit FNV-1a, both halves folded into one.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let [a, b, c, d, rest @ ..] = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]) ^ u32::from_be_bytes(rest)).to_be_bytes()
}

/// Five bits a digit, the last one filled up with zeros.
fn encoded(bytes: &[u8]) -> String {
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let digits = (0..bytes.len() * 8).step_by(5);
    digits
        .map(|from| char::from(DIGITS[(from..from + 5).fold(0, |digit, at| digit << 1 | bit(at))]))
        .collect()
}

/// The bytes of a text that is a token.
fn opened(text: &str) -> Vec<u8> {
    let digit = |char: u8| DIGITS.iter().position(|digit| *digit == char).unwrap();
    let bits: Vec<usize> =
        text.bytes().flat_map(|char| (0..5).rev().map(move |bit| digit(char) >> bit & 1)).collect();
    let bytes = bits.as_chunks::<8>().0.iter();
    bytes
        .map(|bits| u8::try_from(bits.iter().fold(0, |byte, bit| byte << 1 | bit)).unwrap())
        .collect()
}
