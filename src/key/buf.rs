//! The encoded bytes of a key: up to 22 inline, sorted as the keys are.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::SeedableRandomState;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{AsKey, Key, KeyError};
use crate::nondeterminism;

/// The encoded bytes of a key: up to 22 of them without an allocation, sorted as the keys are.
#[derive(Clone)]
pub struct KeyBuf(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    /// The bytes, then zeros, and their number in the last byte. So equality is one comparison of
    /// fixed size.
    Inline([u8; INLINE + 1]),
    /// More than `INLINE` bytes.
    Heap(Box<[u8]>),
}

const INLINE: usize = 22;

impl KeyBuf {
    /// The key of `()`, and the start of every other key.
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

    /// Decodes the key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] if these bytes are not exactly one key of this type.
    pub fn decode<K: Key>(&self) -> Result<K, KeyError> {
        let mut raw = self.as_bytes();
        let key = K::decode(&mut raw)?;
        if raw.is_empty() { Ok(key) } else { Err(KeyError::Malformed) }
    }

    /// Appends bytes.
    ///
    /// The parts of this crate delimit themselves; bytes that you push must do so too.
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

    /// The key whose encoding is `bytes`, without any check.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut key = Self::new();
        key.push(bytes);
        key
    }

    /// The first eight bytes, padded with zeros. For a key of at most eight bytes this is the whole
    /// key.
    #[inline]
    pub(crate) fn word(&self) -> u64 {
        let word = match &self.0 {
            Repr::Inline(bytes) => bytes.first_chunk(),
            Repr::Heap(bytes) => bytes.first_chunk(),
        };
        word.map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// The key of `len` bytes, at most eight, whose [`word`](Self::word) is `word`.
    #[inline]
    pub(crate) fn from_word(word: u64, len: usize) -> Self {
        let mut bytes = [0; INLINE + 1];
        let [first @ .., last] = &mut bytes;
        if let Some(first) = first.first_chunk_mut() {
            *first = word.to_le_bytes(); // zeros after `len`
        }
        *last = len.to_le_bytes()[0];
        Self(Repr::Inline(bytes))
    }

    /// The hash that batches and memory stores share. It is seeded once per process, because keys
    /// may come from an attacker.
    #[inline]
    pub(crate) fn hash64(&self) -> u64 {
        let (start, seed) = nondeterminism::seed();
        let mut hasher = SeedableRandomState::with_seed(start, seed).build_hasher();
        match &self.0 {
            // Most keys are one integer: hash one word without a slice.
            Repr::Inline([.., len]) if *len == 8 => hasher.write_u64(self.word()),
            _ => hasher.write(self.as_bytes()),
        }
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

/// A string of hexadecimal digits, or bytes if the format is not human-readable.
impl Serialize for KeyBuf {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&format_args!("{self:?}"))
        } else {
            serializer.serialize_bytes(self.as_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for KeyBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return deserializer.deserialize_bytes(Raw);
        }
        let digits = <Cow<'de, str>>::deserialize(deserializer)?;
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
            return Err(de::Error::custom("a key has an odd number of hexadecimal digits"));
        };
        let bytes = pairs
            .iter()
            .map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?))
            .collect::<Option<Vec<u8>>>();
        bytes
            .map(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| de::Error::custom("a key is not hexadecimal"))
    }
}

/// Deserializes a key from bytes.
struct Raw;

impl de::Visitor<'_> for Raw {
    type Value = KeyBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bytes of a key")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<KeyBuf, E> {
        Ok(KeyBuf::from_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 4_096;

    /// Keys that an attacker may choose without knowing the seed: few bits differ, at any position,
    /// in either byte order, after any prefix.
    fn chosen() -> Vec<(String, Vec<Vec<u8>>)> {
        let mut families = Vec::new();
        for shift in 0..=52 {
            let step = |key: u64| key << shift;
            families.push((
                format!("step 2^{shift}"),
                (0..KEYS).map(|key| step(key).to_be_bytes().to_vec()).collect(),
            ));
            families.push((
                format!("bytes turned, {shift}"),
                (0..KEYS).map(|key| step(key).to_le_bytes().to_vec()).collect(),
            ));
            let halves = |key: u64| [step(key).to_be_bytes(), (!step(key)).to_be_bytes()].concat();
            families.push((
                format!("a half undoes the other, {shift}"),
                (0..KEYS).map(halves).collect(),
            ));
        }
        for long in [0, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 200, 3_000] {
            let behind = |key: u64| [vec![b'a'; long], key.to_string().into_bytes()].concat();
            let before = |key: u64| [key.to_string().into_bytes(), vec![b'a'; long]].concat();
            let middle = |key: u64| {
                [vec![b'a'; long / 2], key.to_string().into_bytes(), vec![b'z'; long / 2]].concat()
            };
            families.push((format!("behind {long} bytes"), (0..KEYS).map(behind).collect()));
            families.push((format!("before {long} bytes"), (0..KEYS).map(before).collect()));
            families.push((format!("between {long} bytes"), (0..KEYS).map(middle).collect()));
        }
        let zeros = (0..KEYS).map(|key| vec![0; usize::try_from(key).unwrap_or(0)]).collect();
        families.push(("zeros of every length".to_owned(), zeros));
        families
    }

    /// No family fills a stripe, or a bucket of a table, whatever the seed. The hash is not
    /// perfect: it maps an arithmetic series nearly to another one. So some of its bits take fewer
    /// values than random ones, and the keys of a bucket are searched a few at a time, but never
    /// hundreds.
    #[test]
    fn chosen_keys_flood_no_stripe_and_no_bucket() {
        let (mut fullest, mut longest) = (0, 0);
        for (family, keys) in chosen() {
            let hashes: Vec<u64> =
                keys.iter().map(|key| KeyBuf::from_bytes(key).hash64()).collect();
            let most = |low: u32, bits: u32| {
                let mut counts = vec![0; 1 << bits];
                for hash in &hashes {
                    if let Some(count) = usize::try_from(hash >> low & ((1 << bits) - 1))
                        .ok()
                        .and_then(|at| counts.get_mut(at))
                    {
                        *count += 1;
                    }
                }
                counts.into_iter().max().unwrap_or(0)
            };
            // Out of 64 stripes and of 4,096 buckets. An even spread would give 64 keys and 1.
            let (stripe, bucket) = (most(48, 6), most(0, 12));
            (fullest, longest) = (fullest.max(stripe), longest.max(bucket));
            assert!(
                stripe < 2_048 && bucket < 256,
                "{family}: {stripe} keys in one stripe, {bucket} in one bucket"
            );
        }
        println!(
            "{fullest} keys of {KEYS} at most in one of 64 stripes, {longest} in one of 4,096 buckets"
        );
    }
}
