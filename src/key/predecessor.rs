//! A key just before another one.

use super::{KeyBuf, KeyPart, KeyParts, KeyValue};

/// The last character, in key order.
const LAST: char = '\u{10ffff}';
/// The longest text of a key in a SQL store, in bytes: `sql::MAX_TEXT`.
const MAX_TEXT: usize = 1024;

impl KeyParts {
    /// Returns a key that sorts before `key`, with no other key in between that an application is
    /// likely to have; `None` if there is none. It fits every store that `key` fits.
    ///
    /// A text has no last text before it, so there may be keys in between.
    pub(crate) fn before(&self, key: &KeyBuf) -> Option<KeyBuf> {
        let values = self.values(key).ok()?;
        let parts = self.as_slice();
        (0..parts.len()).rev().find_map(|at| {
            let mut before = KeyBuf::new();
            for (index, (part, value)) in parts.iter().zip(&values).enumerate() {
                let value = match index {
                    index if index < at => value.clone(),
                    index if index == at => part.value_before(value)?,
                    _ => part.late_value(),
                };
                part.push(&value, &mut before).ok()?;
            }
            Some(before)
        })
    }
}

impl KeyPart {
    fn value_before(self, value: &KeyValue<'_>) -> Option<KeyValue<'static>> {
        Some(match value {
            KeyValue::Signed(value) => {
                KeyValue::Signed(value.checked_sub(1).filter(|less| self.holds(*less))?)
            }
            KeyValue::Unsigned(value) => KeyValue::Unsigned(value.checked_sub(1)?),
            KeyValue::Bytes16(id) | KeyValue::Uuid(id) => {
                KeyValue::Bytes16(u128::from_be_bytes(*id).checked_sub(1)?.to_be_bytes())
            }
            KeyValue::Text(text) => KeyValue::Text(text_before(text)?.into()),
        })
    }

    /// Returns a late value of this part: not the last one, where SQL stores cannot hold that.
    fn late_value(self) -> KeyValue<'static> {
        match self {
            Self::Signed(bytes) => {
                KeyValue::Signed((i128::MAX >> (128 - u32::from(bytes) * 8)).min(i64::MAX.into()))
            }
            Self::Unsigned(bytes) => KeyValue::Unsigned(
                (u128::MAX >> (128 - u32::from(bytes) * 8)).min(i64::MAX.unsigned_abs().into()),
            ),
            Self::Bytes16 | Self::Uuid => KeyValue::Bytes16([u8::MAX; 16]),
            Self::Text => KeyValue::Text(LAST.to_string().into()),
        }
    }

    fn holds(self, value: i128) -> bool {
        let Self::Signed(bytes) = self else { return false };
        let shift = 128 - u32::from(bytes) * 8;
        (value << shift) >> shift == value
    }
}

fn text_before(text: &str) -> Option<String> {
    let last = text.chars().next_back()?;
    let mut before = text.get(..text.len() - last.len_utf8())?.to_owned();
    // A text with a zero byte does not fit PostgreSQL.
    if last > '\u{1}' {
        let code = u32::from(last) - 1;
        before.push(char::from_u32(code).unwrap_or('\u{d7ff}')); // before the surrogates
        if before.len() + LAST.len_utf8() <= MAX_TEXT {
            before.push(LAST);
        }
    }
    Some(before)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{AsKey, Key};

    fn before<K: Key>(key: impl AsKey<K>) -> Option<K> {
        K::PARTS.before(&KeyBuf::of::<K>(key)).map(|before| before.decode().unwrap())
    }

    #[test]
    fn key_before_another_sorts_before_it_with_nothing_likely_in_between() {
        assert_eq!(before::<i64>(7), Some(6));
        assert_eq!(before::<i8>(-128), None);
        assert_eq!(before::<u64>(0), None);
        assert_eq!(before::<()>(()), None);
        assert_eq!(before::<[u8; 16]>([0; 16]), None);
        assert_eq!(before::<(i64, u32)>((7, 0_u32)), Some((6, u32::MAX)));
        assert_eq!(before::<(i64, u64)>((7, 0_u64)), Some((6, i64::MAX.unsigned_abs())));
        assert_eq!(before::<(i64, i64)>((i64::MIN, i64::MIN)), None);
        assert_eq!(before::<String>(""), None);
        assert_eq!(before::<String>("b").unwrap(), "a\u{10ffff}");
        assert_eq!(before::<String>("a\u{1}").unwrap(), "a");
        assert_eq!(before::<String>("a\0").unwrap(), "a");
        assert_eq!(before::<String>("\u{e000}").unwrap(), "\u{d7ff}\u{10ffff}");
        assert_eq!(
            before::<(String, String)>(("b", "")).unwrap(),
            ("a\u{10ffff}".to_owned(), "\u{10ffff}".to_owned())
        );
        assert_eq!(MAX_TEXT, crate::sql::MAX_TEXT);
        let long = "b".repeat(MAX_TEXT);
        assert_eq!(before::<String>(&long).unwrap().len(), MAX_TEXT);
        let texts = [
            "",
            "a",
            "aa",
            "ab",
            "b",
            "b\0",
            "b\u{1}",
            "b\u{2}",
            "ba",
            "\u{e4}",
            "\u{e000}",
            "\u{10ffff}",
        ];
        for (at, text) in texts.iter().enumerate().skip(1) {
            let before = KeyBuf::of::<String>(before::<String>(*text).unwrap());
            assert!(before < KeyBuf::of::<String>(*text), "{text:?}");
            if !text.contains(['\0', '\u{1}']) {
                assert!(before >= KeyBuf::of::<String>(texts[at - 1]), "{text:?}");
            }
        }
    }
}
