//! What a counter is grouped by: keys, their encoding to bytes that sort as the keys do, and back.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A type that a counter can be grouped by.
///
/// Integers of every width, `[u8; 16]`, `uuid::Uuid` (feature `uuid`), `String`, tuples of up to four keys, `()` for a counter
/// with a single total, and newtypes of these by [`key!`](crate::key).
///
/// # Examples
///
/// ```
/// use keepcount::{AsKey, Key, KeyBuf};
///
/// let mut raw = KeyBuf::new();
/// AsKey::<(i64, String)>::encode(&(7, "encore"), &mut raw);
/// assert_eq!(<(i64, String)>::decode(&mut raw.as_bytes()).unwrap(), (7, "encore".to_owned()));
/// ```
pub trait Key: Sized + 'static {
    /// The parts that the key consists of, in order.
    const PARTS: KeyParts;

    /// Takes one key off the front of `raw`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] when `raw` does not start with an encoded key of this type.
    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError>;
}

/// A value that can stand where the key `K` is wanted: `K` itself, a reference to it, a `&str` for a `String`, a tuple
/// of borrows for a tuple.
pub trait AsKey<K: Key> {
    /// Appends the encoded key.
    fn encode(&self, to: &mut KeyBuf);
}

impl<K: Key, T: AsKey<K> + ?Sized> AsKey<K> for &T {
    #[inline]
    fn encode(&self, to: &mut KeyBuf) {
        T::encode(self, to);
    }
}

/// Why bytes, or a value, are no key of the wanted type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The bytes are not what a key of this type encodes to.
    #[error("malformed key")]
    Malformed,
    /// The value has another type than the key's part.
    #[error("{found} where {wanted} is wanted")]
    Type {
        /// The part's type.
        wanted: KeyPart,
        /// The value's type, in the source's words.
        found: String,
    },
    /// The integer does not fit the key's part, or not the integers of SQL.
    #[error("{value} does not fit {wanted}")]
    Range {
        /// The type that is too narrow.
        wanted: &'static str,
        /// The value.
        value: String,
    },
    /// The text is longer than SQL stores take, in bytes.
    #[error("a text of {bytes} bytes is longer than {most}")]
    TooLong {
        /// The text's length in bytes.
        bytes: usize,
        /// The longest that is allowed, in bytes.
        most: usize,
    },
}

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

/// The parts of a key, at most eight: a tuple's parts one after the other, nothing for `()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyParts {
    len: u8,
    parts: [KeyPart; Self::MOST],
}

impl KeyParts {
    const MOST: usize = 8;

    /// The parts of `()`.
    pub const NONE: Self = Self { len: 0, parts: [KeyPart::Text; Self::MOST] };

    /// A key of one part.
    #[must_use]
    pub const fn one(part: KeyPart) -> Self {
        Self { len: 1, parts: [part; Self::MOST] }
    }

    /// These parts, then `more`.
    ///
    /// # Panics
    ///
    /// When there would be more than eight; in a `const`, as for every counter, that is a compile error.
    #[must_use]
    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // const fn: neither iterators nor try_from
    pub const fn and(mut self, more: Self) -> Self {
        assert!(self.len as usize + more.len as usize <= Self::MOST, "a key has at most eight parts");
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

    /// The parts as one number, a byte each: equal for equal parts only.
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

    /// How many bytes every key of these parts takes, where that is always the same.
    pub(crate) fn fixed_len(&self) -> Option<usize> {
        self.as_slice().iter().try_fold(0, |len, part| match part {
            KeyPart::Signed(bytes) | KeyPart::Unsigned(bytes) => Some(len + usize::from(*bytes)),
            KeyPart::Bytes16 | KeyPart::Uuid => Some(len + 16),
            KeyPart::Text => None,
        })
    }

    /// How many parts there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether this is the key `()`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in an encoded key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] when `key` does not consist of exactly these parts.
    pub fn values<'a>(&self, key: &'a KeyBuf) -> Result<Vec<KeyValue<'a>>, KeyError> {
        let mut raw = key.as_bytes();
        let values = self.as_slice().iter().map(|part| part.take(&mut raw)).collect::<Result<Vec<_>, _>>()?;
        if raw.is_empty() { Ok(values) } else { Err(KeyError::Malformed) }
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
    /// Takes one value off the front of an encoded key.
    fn take<'a>(self, raw: &mut &'a [u8]) -> Result<KeyValue<'a>, KeyError> {
        Ok(match self {
            Self::Unsigned(bytes) => KeyValue::Unsigned(take_unsigned(raw, bytes)?),
            Self::Signed(bytes) => {
                let biased = take_unsigned(raw, bytes)?;
                // Shift the sign bit up to bit 127, flip it, and let an arithmetic shift spread it again.
                let shift = 128 - u32::from(bytes) * 8;
                KeyValue::Signed(((biased << shift) ^ (1 << 127)).cast_signed() >> shift)
            }
            Self::Bytes16 => KeyValue::Bytes16(take_array(raw)?),
            Self::Uuid => KeyValue::Uuid(take_array(raw)?),
            Self::Text => KeyValue::Text(take_text(raw)?),
        })
    }

    /// Appends a value to a key that is being encoded.
    ///
    /// # Errors
    ///
    /// [`KeyError::Type`] or [`KeyError::Range`] when the value is none of this part.
    pub fn push(self, value: &KeyValue<'_>, to: &mut KeyBuf) -> Result<(), KeyError> {
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

    fn range(self, value: &impl ToString) -> KeyError {
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

/// One value of a key without its Rust type: what errors, reports and SQL work with.
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

/// For people and logs: a tab, newline or backslash in a text is written `\t`, `\n`, `\\`.
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

/// Integers as numbers, where 64 bits hold them; everything else as text, unescaped.
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

/// The bytes of a key, at most 22 of them without an allocation, sorted as the keys are.
#[derive(Clone)]
pub struct KeyBuf(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    /// The bytes, zeros behind them, and their number in the last byte: equality is one comparison of fixed size.
    Inline([u8; INLINE + 1]),
    /// More than `INLINE` bytes.
    Heap(Box<[u8]>),
}

const INLINE: usize = 22;

impl KeyBuf {
    /// The key of `()`, and the start of every other.
    #[must_use]
    #[inline]
    pub const fn new() -> Self {
        Self(Repr::Inline([0; INLINE + 1]))
    }

    /// The encoding of a key.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::KeyBuf;
    ///
    /// assert!(KeyBuf::of::<i32>(-5) < KeyBuf::of::<i32>(3));
    /// assert!(KeyBuf::of::<String>("a") < KeyBuf::of::<String>("a\0"));
    /// ```
    #[must_use]
    #[inline]
    pub fn of<K: Key>(key: impl AsKey<K>) -> Self {
        let mut raw = Self::new();
        key.encode(&mut raw);
        raw
    }

    /// The encoded bytes.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline(bytes) => {
                let [text @ .., len] = bytes;
                text.get(..usize::from(*len)).unwrap_or_default()
            }
            Repr::Heap(bytes) => bytes,
        }
    }

    /// Reads the key back.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] when these bytes are not one key of this type.
    pub fn decode<K: Key>(&self) -> Result<K, KeyError> {
        let mut raw = self.as_bytes();
        let key = K::decode(&mut raw)?;
        if raw.is_empty() { Ok(key) } else { Err(KeyError::Malformed) }
    }

    /// Appends bytes. The parts of this module delimit themselves; bytes of a caller's own must too.
    #[inline]
    pub fn push(&mut self, more: &[u8]) {
        if let Repr::Inline(bytes) = &mut self.0 {
            let [text @ .., len] = bytes;
            let end = usize::from(*len) + more.len();
            if let Some(free) = text.get_mut(usize::from(*len)..end) {
                free.copy_from_slice(more);
                *len = end.to_le_bytes()[0]; // at most INLINE
                return;
            }
        }
        self.push_heap(more);
    }

    #[cold]
    fn push_heap(&mut self, more: &[u8]) {
        self.0 = Repr::Heap([self.as_bytes(), more].concat().into_boxed_slice());
    }

    /// The key whose encoding is `bytes`; nothing is checked.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut key = Self::new();
        key.push(bytes);
        key
    }

    /// The first eight bytes, zeros behind a shorter key: all there is of a key of at most eight bytes.
    #[inline]
    pub(crate) fn word(&self) -> u64 {
        let word = match &self.0 {
            Repr::Inline(bytes) => bytes.first_chunk(),
            Repr::Heap(bytes) => bytes.first_chunk(),
        };
        word.map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// The key of `len` bytes, at most eight, of which `word` is [`word`](Self::word).
    pub(crate) fn from_word(word: u64, len: usize) -> Self {
        Self::from_bytes(word.to_le_bytes().get(..len).unwrap_or_default())
    }

    /// The hash that batches and memory stores share; seeded once per process, because keys may come from an attacker.
    #[inline]
    pub(crate) fn hash64(&self) -> u64 {
        let mut hasher = SeedableRandomState::with_seed(0, SharedSeed::global_random()).build_hasher();
        hasher.write(self.as_bytes());
        hasher.finish()
    }
}

impl Default for KeyBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for KeyBuf {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for KeyBuf {}

impl Ord for KeyBuf {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for KeyBuf {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for KeyBuf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

/// The bytes in hexadecimal.
impl fmt::Debug for KeyBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// As a string of hexadecimal digits.
impl Serialize for KeyBuf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for KeyBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = <Cow<'de, str>>::deserialize(deserializer)?;
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
            return Err(de::Error::custom("a key has an odd number of hexadecimal digits"));
        };
        let bytes =
            pairs.iter().map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?)).collect::<Option<Vec<u8>>>();
        bytes.map(|bytes| Self::from_bytes(&bytes)).ok_or_else(|| de::Error::custom("a key is not hexadecimal"))
    }
}

fn take_array<const N: usize>(raw: &mut &[u8]) -> Result<[u8; N], KeyError> {
    let (head, rest) = raw.split_first_chunk::<N>().ok_or(KeyError::Malformed)?;
    *raw = rest;
    Ok(*head)
}

fn take_unsigned(raw: &mut &[u8], bytes: u8) -> Result<u128, KeyError> {
    let (head, rest) = raw.split_at_checked(usize::from(bytes)).ok_or(KeyError::Malformed)?;
    *raw = rest;
    Ok(head.iter().fold(0, |value, byte| value << 8 | u128::from(*byte)))
}

fn push_unsigned(to: &mut KeyBuf, bytes: u8, value: u128) -> Result<(), KeyError> {
    let wide = value.to_be_bytes();
    let (unused, used) = wide.split_at(wide.len() - usize::from(bytes));
    if unused.iter().any(|byte| *byte != 0) {
        return Err(KeyPart::Unsigned(bytes).range(&value));
    }
    to.push(used);
    Ok(())
}

fn push_signed(to: &mut KeyBuf, bytes: u8, value: i128) -> Result<(), KeyError> {
    let shift = 128 - u32::from(bytes) * 8;
    if (value << shift) >> shift != value {
        return Err(KeyPart::Signed(bytes).range(&value));
    }
    let biased = ((value << shift).cast_unsigned() ^ (1 << 127)) >> shift;
    push_unsigned(to, bytes, biased)
}

/// Text as its bytes with 00 and 01 escaped, then one 00: sorts as the bytes do, and ends itself.
fn push_text(to: &mut KeyBuf, text: &str) {
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

fn take_text<'a>(raw: &mut &'a [u8]) -> Result<Cow<'a, str>, KeyError> {
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

macro_rules! integer_keys {
    ($($type:ty as $wide:ty, $part:ident, $flip:expr;)*) => {$(
        impl Key for $type {
            #[allow(clippy::cast_possible_truncation)] // at most 16
            const PARTS: KeyParts = KeyParts::one(KeyPart::$part(size_of::<$wide>() as u8));

            fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
                let value = <$wide>::from_be_bytes(take_array(raw)?) ^ $flip;
                Self::try_from(value).map_err(|_| KeyError::Malformed)
            }
        }

        impl AsKey<$type> for $type {
            #[inline]
            #[allow(clippy::cast_lossless, trivial_numeric_casts)] // usize and isize travel as 64 bits
            fn encode(&self, to: &mut KeyBuf) {
                to.push(&(*self as $wide ^ $flip).to_be_bytes());
            }
        }
    )*};
}

integer_keys! {
    u8 as u8, Unsigned, 0;
    u16 as u16, Unsigned, 0;
    u32 as u32, Unsigned, 0;
    u64 as u64, Unsigned, 0;
    u128 as u128, Unsigned, 0;
    usize as u64, Unsigned, 0;
    i8 as i8, Signed, i8::MIN;
    i16 as i16, Signed, i16::MIN;
    i32 as i32, Signed, i32::MIN;
    i64 as i64, Signed, i64::MIN;
    i128 as i128, Signed, i128::MIN;
    isize as i64, Signed, i64::MIN;
}

impl Key for [u8; 16] {
    const PARTS: KeyParts = KeyParts::one(KeyPart::Bytes16);

    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
        take_array(raw)
    }
}

impl AsKey<[u8; 16]> for [u8; 16] {
    #[inline]
    fn encode(&self, to: &mut KeyBuf) {
        to.push(self);
    }
}

#[cfg(feature = "uuid")]
impl Key for uuid::Uuid {
    const PARTS: KeyParts = KeyParts::one(KeyPart::Uuid);

    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
        take_array(raw).map(Self::from_bytes)
    }
}

#[cfg(feature = "uuid")]
impl AsKey<Self> for uuid::Uuid {
    #[inline]
    fn encode(&self, to: &mut KeyBuf) {
        to.push(self.as_bytes());
    }
}

impl Key for String {
    const PARTS: KeyParts = KeyParts::one(KeyPart::Text);

    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
        take_text(raw).map(Cow::into_owned)
    }
}

macro_rules! text_keys {
    ($($type:ty),*) => {$(
        impl AsKey<String> for $type {
            #[inline]
            fn encode(&self, to: &mut KeyBuf) {
                push_text(to, self);
            }
        }
    )*};
}

text_keys!(str, String, Cow<'_, str>, Box<str>, Arc<str>);

impl Key for () {
    const PARTS: KeyParts = KeyParts::NONE;

    fn decode(_: &mut &[u8]) -> Result<Self, KeyError> {
        Ok(())
    }
}

impl AsKey<()> for () {
    #[inline]
    fn encode(&self, _: &mut KeyBuf) {}
}

macro_rules! tuple_keys {
    ($($key:ident $value:ident $at:tt),*) => {
        impl<$($key: Key),*> Key for ($($key,)*) {
            const PARTS: KeyParts = KeyParts::NONE$(.and($key::PARTS))*;

            fn decode(raw: &mut &[u8]) -> Result<Self, KeyError> {
                Ok(($($key::decode(raw)?,)*))
            }
        }

        impl<$($key: Key, $value: AsKey<$key>),*> AsKey<($($key,)*)> for ($($value,)*) {
            #[inline]
            fn encode(&self, to: &mut KeyBuf) {
                $(self.$at.encode(to);)*
            }
        }
    };
}

tuple_keys!(A X 0);
tuple_keys!(A X 0, B Y 1);
tuple_keys!(A X 0, B Y 1, C Z 2);
tuple_keys!(A X 0, B Y 1, C Z 2, D W 3);

/// Makes a newtype a key, encoded as what it wraps; after a comma, borrowed types that may stand for it.
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, KeyBuf};
///
/// struct ShowId(i64);
/// keepcount::key!(ShowId(i64));
///
/// struct Slug(String);
/// keepcount::key!(Slug(String), str);
///
/// const SHOW_VOTES: Counter<ShowId> = Counter::new("show.votes");
/// assert_eq!(KeyBuf::of::<ShowId>(ShowId(7)), KeyBuf::of::<i64>(7));
/// assert_eq!(KeyBuf::of::<Slug>("opening"), KeyBuf::of::<Slug>(Slug("opening".into())));
/// ```
#[macro_export]
macro_rules! key {
    ($name:ident($inner:ty) $(, $borrowed:ty)* $(,)?) => {
        impl $crate::Key for $name {
            const PARTS: $crate::KeyParts = <$inner as $crate::Key>::PARTS;

            fn decode(raw: &mut &[u8]) -> ::core::result::Result<Self, $crate::KeyError> {
                <$inner as $crate::Key>::decode(raw).map($name)
            }
        }

        impl $crate::AsKey<$name> for $name {
            fn encode(&self, to: &mut $crate::KeyBuf) {
                $crate::AsKey::<$inner>::encode(&self.0, to);
            }
        }

        $(impl $crate::AsKey<$name> for $borrowed {
            fn encode(&self, to: &mut $crate::KeyBuf) {
                $crate::AsKey::<$inner>::encode(self, to);
            }
        })*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_takes_24_bytes() {
        assert_eq!(size_of::<KeyBuf>(), 24);
    }

    #[test]
    fn values_and_types_encode_alike() {
        fn same<K: Key>(key: impl AsKey<K>, value: &KeyValue<'_>) {
            let typed = KeyBuf::of::<K>(key);
            let mut untyped = KeyBuf::new();
            for part in K::PARTS.as_slice() {
                part.push(value, &mut untyped).unwrap();
            }
            assert_eq!(typed, untyped);
            assert_eq!(K::PARTS.values(&typed).unwrap(), std::slice::from_ref(value));
        }
        same::<i8>(-128, &KeyValue::Signed(-128));
        same::<i64>(i64::MIN, &KeyValue::Signed(i64::MIN.into()));
        same::<i128>(-1, &KeyValue::Signed(-1));
        same::<i32>(7, &KeyValue::Signed(7));
        same::<u64>(u64::MAX, &KeyValue::Unsigned(u64::MAX.into()));
        same::<u128>(u128::MAX, &KeyValue::Unsigned(u128::MAX));
        same::<String>("a\0\u{1}b", &KeyValue::Text("a\0\u{1}b".into()));
        same::<[u8; 16]>([9; 16], &KeyValue::Bytes16([9; 16]));
    }

    #[test]
    fn a_value_that_does_not_fit_its_part_is_refused() {
        let mut to = KeyBuf::new();
        assert!(matches!(
            KeyPart::Signed(1).push(&KeyValue::Signed(128), &mut to),
            Err(KeyError::Range { wanted: "i8", .. })
        ));
        assert!(matches!(KeyPart::Unsigned(8).push(&KeyValue::Signed(-1), &mut to), Err(KeyError::Range { .. })));
        assert!(matches!(KeyPart::Text.push(&KeyValue::Signed(1), &mut to), Err(KeyError::Type { .. })));
        assert_eq!(to, KeyBuf::new());
    }

    #[test]
    fn malformed_bytes_are_refused() {
        for raw in [&[][..], b"a", &[1, 3, 0], &[1, 0], &[0xff, 0]] {
            assert_eq!(KeyBuf::from_bytes(raw).decode::<String>(), Err(KeyError::Malformed), "{raw:?}");
        }
        assert_eq!(KeyBuf::from_bytes(&[0; 9]).decode::<i64>(), Err(KeyError::Malformed));
    }

    #[test]
    fn long_keys_move_to_the_heap_and_back() {
        for len in 0..64 {
            let text = "x".repeat(len);
            let key = KeyBuf::of::<(String, i64)>((text.as_str(), 5));
            assert_eq!(key.decode::<(String, i64)>().unwrap(), (text, 5));
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<KeyBuf>(&json).unwrap(), key);
        }
        assert!(serde_json::from_str::<KeyBuf>("\"0g\"").is_err());
        assert!(serde_json::from_str::<KeyBuf>("\"012\"").is_err());
    }
}
