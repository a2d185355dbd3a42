//! Keys from the texts that show them.

use super::{KeyBuf, KeyError, KeyPart, KeyParts, KeyValue};

impl KeyParts {
    /// Parses a key from the text that shows it: parts with commas between them, `()` for the empty
    /// key. One text part may have commas of its own.
    pub(crate) fn parse(&self, text: &str) -> Result<KeyBuf, KeyError> {
        let parts = self.as_slice();
        let mut key = KeyBuf::new();
        if parts.is_empty() {
            return if text == "()" { Ok(key) } else { Err(KeyError::Malformed) };
        }
        let pieces: Vec<&str> = text.split(',').collect();
        let more = pieces.len().checked_sub(parts.len()).ok_or(KeyError::Malformed)?;
        let texts = parts.iter().filter(|part| **part == KeyPart::Text).count();
        if more > 0 && texts != 1 {
            // Nothing says which of the texts has the commas.
            return Err(KeyError::Malformed);
        }
        let mut rest = pieces.iter();
        for part in parts {
            let count = if *part == KeyPart::Text { more + 1 } else { 1 };
            let piece = rest.by_ref().take(count).copied().collect::<Vec<_>>().join(",");
            part.push(&part.parse(&piece)?, &mut key)?;
        }
        Ok(key)
    }
}

impl KeyPart {
    fn parse(self, text: &str) -> Result<KeyValue<'static>, KeyError> {
        let other = || KeyError::Type { wanted: self, found: format!("{text:?}") };
        Ok(match self {
            Self::Signed(_) => KeyValue::Signed(text.parse().map_err(|_| other())?),
            Self::Unsigned(_) => KeyValue::Unsigned(text.parse().map_err(|_| other())?),
            Self::Bytes16 | Self::Uuid => KeyValue::Bytes16(id(text).ok_or_else(other)?),
            Self::Text => KeyValue::Text(unescaped(text).ok_or_else(other)?.into()),
        })
    }
}

/// Parses 32 hexadecimal digits, with or without the dashes of a UUID.
fn id(text: &str) -> Option<[u8; 16]> {
    let digits: String = match text.len() {
        36 => text.split('-').collect(),
        _ => text.to_owned(),
    };
    let all = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

fn unescaped(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => match chars.next()? {
                't' => '\t',
                'n' => '\n',
                '\\' => '\\',
                _ => return None,
            },
            char => char,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{AsKey, Counter, Key};

    #[test]
    fn shown_key_parses_to_itself() {
        fn same<K: Key>(key: impl AsKey<K>) {
            let (id, key) = (Counter::<K>::new("votes").id(), KeyBuf::of::<K>(key));
            assert_eq!(id.parse_key(&id.show(&key)).unwrap(), key);
        }
        same::<()>(());
        same::<i8>(-128);
        same::<u128>(u128::MAX);
        same::<[u8; 16]>([0xa7; 16]);
        for text in ["", "a", "\t\n\\n", "a,b,", "0x12", "()", "\u{1}\0\u{e4}"] {
            same::<String>(text);
            same::<(i64, String)>((-7, text));
            same::<(String, i64, [u8; 16])>((text, 7, [1; 16]));
        }
        same::<(String, String)>(("a", ""));
        #[cfg(feature = "uuid")]
        same::<uuid::Uuid>(uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        fn refused<K: Key>(texts: &[&str]) {
            for text in texts {
                assert!(Counter::<K>::new("votes").id().parse_key(text).is_err(), "{text:?}");
            }
        }
        refused::<()>(&["", "( )", "1"]);
        refused::<i8>(&["", "x", "128", "1,2", " 1", "1.0"]);
        refused::<u64>(&["-1", "18446744073709551616"]);
        refused::<[u8; 16]>(&[
            "",
            "a7",
            "+0000000000000000000000000000000",
            "zz000000000000000000000000000000",
        ]);
        refused::<String>(&["\\", "\\x", "a\\"]);
        refused::<(i64, i64)>(&["1", "1,", "1,2,3"]);
        refused::<(String, String)>(&["a", "a,b,c"]);
    }
}
