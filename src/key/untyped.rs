//! Keys without their Rust type: their parts and values, for errors, reports and SQL.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

use super::encoding::{
    push_signed, push_text, push_unsigned, take_array, take_text, take_unsigned,
};
use super::{KeyBuf, KeyError};

/// One part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyPart {
    /// A signed integer of this many bytes: 1, 2, 4, 8 or 16.
    Signed(u8),
    /// An unsigned integer of this many bytes: 1, 2, 4, 8 or 16.
    Unsigned(u8),
    /// A 16-byte id.
    Bytes16,
    /// A UUID.
    Uuid,
    /// A UTF-8 text, sorted by its bytes.
    Text,
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed(bytes) => write!(f, "i{}", bytes * 8),
            Self::Unsigned(bytes) => write!(f, "u{}", bytes * 8),
            Self::Bytes16 => f.write_str("bytes16"),
            Self::Uuid => f.write_str("uuid"),
            Self::Text => f.write_str("text"),
        }
    }
}

/// The parts of a key, at most eight: those of a tuple one after the other, none for `()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyParts {
    len: u8,
    parts: [KeyPart; Self::MAX],
}

impl KeyParts {
    const MAX: usize = 8;

    /// The parts of `()`.
    pub const NONE: Self = Self { len: 0, parts: [KeyPart::Text; Self::MAX] };

    /// A key of one part.
    ///
    /// # Panics
    ///
    /// If it is an integer whose width is not 1, 2, 4, 8 or 16 bytes. In a `const` that is a
    /// compile error.
    #[must_use]
    pub const fn one(part: KeyPart) -> Self {
        assert!(part.has_width(), "an integer has 1, 2, 4, 8 or 16 bytes");
        Self { len: 1, parts: [part; Self::MAX] }
    }

    /// These parts, then `more`.
    ///
    /// # Panics
    ///
    /// If there would be more than eight. In a `const`, as for every counter, that is a compile
    /// error.
    #[must_use]
    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // const fn: no try_from
    pub const fn and(mut self, more: Self) -> Self {
        assert!(
            self.len as usize + more.len as usize <= Self::MAX,
            "a key has at most eight parts"
        );
        let mut at = 0;
        while at < more.len as usize {
            self.parts[self.len as usize] = more.parts[at];
            self.len += 1;
            at += 1;
        }
        self
    }

    /// The parts in order.
    #[must_use]
    pub fn as_slice(&self) -> &[KeyPart] {
        self.parts.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The parts as one number, one byte each. Only equal parts have equal numbers.
    pub(crate) const fn code(&self) -> u64 {
        let mut code = 0;
        let mut rest: &[KeyPart] = self.parts.split_at(self.len as usize).0;
        while let [part, more @ ..] = rest {
            let byte = match part {
                KeyPart::Text => 1,
                KeyPart::Bytes16 => 2,
                KeyPart::Uuid => 3,
                KeyPart::Signed(bytes) => 0x40 | *bytes,
                KeyPart::Unsigned(bytes) => 0x80 | *bytes,
            };
            code = code << 8 | byte as u64;
            rest = more;
        }
        code
    }

    /// The number of bytes of every key with these parts, if it is always the same.
    pub(crate) fn fixed_len(&self) -> Option<usize> {
        self.as_slice().iter().try_fold(0, |len, part| match part {
            KeyPart::Signed(bytes) | KeyPart::Unsigned(bytes) => Some(len + usize::from(*bytes)),
            KeyPart::Bytes16 | KeyPart::Uuid => Some(len + 16),
            KeyPart::Text => None,
        })
    }

    /// The number of bytes of the first `parts` parts of an encoded key, which may end after them.
    /// `None` if the key is too short or does not have these parts.
    pub(crate) fn prefix_len(&self, key: &[u8], parts: usize) -> Option<usize> {
        let mut rest = key;
        for part in self.as_slice().get(..parts)? {
            part.skip(&mut rest).ok()?;
        }
        Some(key.len() - rest.len())
    }

    /// The values of a prefix of a key, for as many parts as it has.
    pub(crate) fn values_of_prefix<'a>(
        &self,
        prefix: &'a KeyBuf,
    ) -> Result<Vec<KeyValue<'a>>, KeyError> {
        let mut raw = prefix.as_bytes();
        let mut values = Vec::new();
        for part in self.as_slice() {
            if raw.is_empty() {
                break;
            }
            values.push(part.take(&mut raw)?);
        }
        if raw.is_empty() { Ok(values) } else { Err(KeyError::Malformed) }
    }

    /// The number of parts.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether this is the key `()`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values of an encoded key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] if `key` does not consist of exactly these parts.
    pub fn values<'a>(&self, key: &'a KeyBuf) -> Result<Vec<KeyValue<'a>>, KeyError> {
        let mut raw = key.as_bytes();
        let values = self
            .as_slice()
            .iter()
            .map(|part| part.take(&mut raw))
            .collect::<Result<Vec<_>, _>>()?;
        if raw.is_empty() { Ok(values) } else { Err(KeyError::Malformed) }
    }

    /// Checks what [`values`](Self::values) decodes, without an allocation for it.
    pub(crate) fn check(&self, key: &KeyBuf) -> Result<(), KeyError> {
        let mut raw = key.as_bytes();
        for part in self.as_slice() {
            part.take(&mut raw)?;
        }
        if raw.is_empty() { Ok(()) } else { Err(KeyError::Malformed) }
    }
}

impl fmt::Display for KeyParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.as_slice().iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl KeyPart {
    /// Skips one value at the front of an encoded key, without checking it.
    fn skip(self, raw: &mut &[u8]) -> Result<(), KeyError> {
        let len = match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) => usize::from(bytes),
            Self::Bytes16 | Self::Uuid => 16,
            Self::Text => raw.iter().position(|byte| *byte == 0).ok_or(KeyError::Malformed)? + 1,
        };
        *raw = raw.get(len..).ok_or(KeyError::Malformed)?;
        Ok(())
    }

    /// Takes one value off the front of an encoded key.
    fn take<'a>(self, raw: &mut &'a [u8]) -> Result<KeyValue<'a>, KeyError> {
        Ok(match self {
            Self::Unsigned(bytes) => KeyValue::Unsigned(take_unsigned(raw, bytes)?),
            Self::Signed(bytes) => {
                let biased = take_unsigned(raw, bytes)?;
                // Shift the sign bit up to bit 127, flip it, and let an arithmetic shift extend it
                // again.
                let shift = 128 - u32::from(bytes) * 8;
                KeyValue::Signed(((biased << shift) ^ (1 << 127)).cast_signed() >> shift)
            }
            Self::Bytes16 => KeyValue::Bytes16(take_array(raw)?),
            Self::Uuid => KeyValue::Uuid(take_array(raw)?),
            Self::Text => KeyValue::Text(take_text(raw)?),
        })
    }

    const fn has_width(self) -> bool {
        match self {
            Self::Signed(bytes) | Self::Unsigned(bytes) => matches!(bytes, 1 | 2 | 4 | 8 | 16),
            Self::Bytes16 | Self::Uuid | Self::Text => true,
        }
    }

    /// Appends a value to a key that is being encoded.
    ///
    /// # Errors
    ///
    /// [`KeyError::Type`] or [`KeyError::Range`] if the value does not belong to this part, and
    /// [`KeyError::Malformed`] if the part has an invalid width.
    pub fn push(self, value: &KeyValue<'_>, to: &mut KeyBuf) -> Result<(), KeyError> {
        if !self.has_width() {
            return Err(KeyError::Malformed);
        }
        match (self, value) {
            (Self::Signed(bytes), KeyValue::Signed(value)) => push_signed(to, bytes, *value),
            (Self::Signed(bytes), KeyValue::Unsigned(value)) => {
                let value = i128::try_from(*value).map_err(|_| self.range(value))?;
                push_signed(to, bytes, value)
            }
            (Self::Unsigned(bytes), KeyValue::Unsigned(value)) => push_unsigned(to, bytes, *value),
            (Self::Unsigned(bytes), KeyValue::Signed(value)) => {
                let value = u128::try_from(*value).map_err(|_| self.range(value))?;
                push_unsigned(to, bytes, value)
            }
            (Self::Bytes16 | Self::Uuid, KeyValue::Bytes16(value) | KeyValue::Uuid(value)) => {
                to.push(value);
                Ok(())
            }
            (Self::Text, KeyValue::Text(text)) => {
                push_text(to, text);
                Ok(())
            }
            (wanted, value) => Err(KeyError::Type { wanted, found: value.type_name().to_owned() }),
        }
    }

    pub(super) fn range(self, value: &impl ToString) -> KeyError {
        let wanted = match self {
            Self::Signed(1) => "i8",
            Self::Signed(2) => "i16",
            Self::Signed(4) => "i32",
            Self::Signed(8) => "i64",
            Self::Signed(_) => "i128",
            Self::Unsigned(1) => "u8",
            Self::Unsigned(2) => "u16",
            Self::Unsigned(4) => "u32",
            Self::Unsigned(8) => "u64",
            _ => "u128",
        };
        KeyError::Range { wanted, value: value.to_string() }
    }
}

/// One value of a key without its Rust type, as errors, reports and SQL use it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyValue<'a> {
    /// A signed integer of any width.
    Signed(i128),
    /// An unsigned integer of any width.
    Unsigned(u128),
    /// A 16-byte id.
    Bytes16([u8; 16]),
    /// A UUID.
    Uuid([u8; 16]),
    /// A text.
    Text(Cow<'a, str>),
}

impl KeyValue<'_> {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Signed(_) | Self::Unsigned(_) => "an integer",
            Self::Bytes16(_) => "16 bytes",
            Self::Uuid(_) => "a UUID",
            Self::Text(_) => "a text",
        }
    }

    /// The same value, owning its text.
    #[must_use]
    pub fn into_owned(self) -> KeyValue<'static> {
        match self {
            Self::Signed(value) => KeyValue::Signed(value),
            Self::Unsigned(value) => KeyValue::Unsigned(value),
            Self::Bytes16(value) => KeyValue::Bytes16(value),
            Self::Uuid(value) => KeyValue::Uuid(value),
            Self::Text(value) => KeyValue::Text(Cow::Owned(value.into_owned())),
        }
    }
}

/// Human-readable: a tab, newline or backslash in a text is written `\t`, `\n` or `\\`.
impl fmt::Display for KeyValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed(value) => value.fmt(f),
            Self::Unsigned(value) => value.fmt(f),
            Self::Bytes16(id) => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Uuid(id) => id.iter().enumerate().try_for_each(|(at, byte)| {
                let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(f, "{dash}{byte:02x}")
            }),
            Self::Text(text) => text.chars().try_for_each(|c| match c {
                '\t' => f.write_str("\\t"),
                '\n' => f.write_str("\\n"),
                '\\' => f.write_str("\\\\"),
                c => fmt::Write::write_char(f, c),
            }),
        }
    }
}

/// Integers are numbers if they fit 64 bits. Everything else is text, unescaped.
impl Serialize for KeyValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Signed(value) => match i64::try_from(*value) {
                Ok(value) => serializer.serialize_i64(value),
                Err(_) => serializer.collect_str(value),
            },
            Self::Unsigned(value) => match u64::try_from(*value) {
                Ok(value) => serializer.serialize_u64(value),
                Err(_) => serializer.collect_str(value),
            },
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes16(_) | Self::Uuid(_) => serializer.collect_str(self),
        }
    }
}
