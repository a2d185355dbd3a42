//! The encoding of values as bytes that sort as the values do and delimit themselves, and its
//! inverse.

use std::borrow::Cow;

use super::{KeyBuf, KeyError, KeyPart};

pub(super) fn take_array<const N: usize>(raw: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let (prefix, rest) = raw.split_first_chunk::<N>().ok_or(KeyError::Malformed)?;
    *raw = rest;
    Ok(*prefix)
}

pub(super) fn take_unsigned(raw: &mut &[u8], bytes: u8) -> Result<u128, KeyError> {
    let (prefix, rest) = raw.split_at_checked(usize::from(bytes)).ok_or(KeyError::Malformed)?;
    *raw = rest;
    Ok(prefix.iter().fold(0, |value, byte| value << 8 | u128::from(*byte)))
}

pub(super) fn push_unsigned(to: &mut KeyBuf, bytes: u8, value: u128) -> Result<(), KeyError> {
    let wide = value.to_be_bytes();
    let (unused, used) = wide.split_at(wide.len() - usize::from(bytes));
    if unused.iter().any(|byte| *byte != 0) {
        return Err(KeyPart::Unsigned(bytes).range(&value));
    }
    to.push(used);
    Ok(())
}

pub(super) fn push_signed(to: &mut KeyBuf, bytes: u8, value: i128) -> Result<(), KeyError> {
    let shift = 128 - u32::from(bytes) * 8;
    if (value << shift) >> shift != value {
        return Err(KeyPart::Signed(bytes).range(&value));
    }
    let biased = ((value << shift).cast_unsigned() ^ (1 << 127)) >> shift;
    push_unsigned(to, bytes, biased)
}

/// Appends text as its bytes, with 00 and 01 escaped, and a terminating 00. It sorts as the bytes
/// do and delimits itself.
pub(super) fn push_text(to: &mut KeyBuf, text: &str) {
    if text.bytes().all(|byte| byte > 1) {
        to.push(text.as_bytes());
    } else {
        let mut escaped = Vec::with_capacity(text.len() + 8);
        for byte in text.bytes() {
            match byte {
                0 | 1 => escaped.extend([1, byte + 1]),
                _ => escaped.push(byte),
            }
        }
        to.push(&escaped);
    }
    to.push(&[0]);
}

pub(super) fn take_text<'a>(raw: &mut &'a [u8]) -> Result<Cow<'a, str>, KeyError> {
    let end = raw.iter().position(|byte| *byte == 0).ok_or(KeyError::Malformed)?;
    let (text, rest) = raw.split_at_checked(end).ok_or(KeyError::Malformed)?;
    *raw = rest.get(1..).unwrap_or_default();
    if !text.contains(&1) {
        return std::str::from_utf8(text).map(Cow::Borrowed).map_err(|_| KeyError::Malformed);
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            1 => match bytes.next() {
                Some(escaped @ 1..=2) => escaped - 1,
                _ => return Err(KeyError::Malformed),
            },
            byte => *byte,
        });
    }
    String::from_utf8(plain).map(Cow::Owned).map_err(|_| KeyError::Malformed)
}
