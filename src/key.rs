//! What counters are grouped by: the key traits, and the types that implement them.

mod buf;
mod encoding;
mod from_text;
mod predecessor;
mod untyped;

use std::borrow::Cow;
use std::sync::Arc;

pub use self::buf::KeyBuf;
use self::encoding::{push_text, take_array, take_text};
pub use self::untyped::{KeyPart, KeyParts, KeyValue};

/// A type that a counter can be grouped by.
///
/// Keys are integers of every width, `[u8; 16]`, `uuid::Uuid` (feature `uuid`), `String`, tuples of
/// up to four keys, `()` for a counter with a single total, and newtypes of these made with
/// [`key!`](crate::key).
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be used as a counter key",
    note = "make a newtype a key with `keepcount::key!`; for text use `String`"
)]
pub trait Key: Sized + 'static {
    /// The parts of the key, in order.
    const PARTS: KeyParts;

    /// Takes one key off the front of `raw`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`] if `raw` does not start with an encoded key of this type.
    fn decode(raw: &mut &[u8]) -> Result<Self, KeyError>;
}

/// A value that can stand for a key of type `K`: `K` itself, a reference to it, a `&str` for a
/// `String`, or a tuple of borrowed values for a tuple.
///
/// An implementation of your own must encode what `K` itself would. Every store refuses a key that
/// does not decode ([`Error::Key`](crate::Error::Key)).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand for a key of type `{K}`",
    note = "make a newtype a key with `keepcount::key!`; for an optional parent write `if let Some(..)` in the tally; an integer literal without a type is an i32"
)]
pub trait AsKey<K: Key> {
    /// Appends the encoded key.
    fn encode(&self, to: &mut KeyBuf);

    /// Whether the encoding needs no check, as that of this crate's types.
    #[doc(hidden)]
    #[inline]
    fn is_trusted(&self) -> bool {
        false
    }
}

impl<K: Key, T: AsKey<K> + ?Sized> AsKey<K> for &T {
    #[inline]
    fn encode(&self, to: &mut KeyBuf) {
        T::encode(self, to);
    }

    #[inline]
    fn is_trusted(&self) -> bool {
        T::is_trusted(self)
    }
}

/// The error when bytes or a value do not decode to the expected key type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The bytes are not an encoding of this key type.
    #[error("malformed key")]
    Malformed,
    /// The value has another type than the key's part.
    #[error("{found} instead of {wanted}")]
    Type {
        /// The part's type.
        wanted: KeyPart,
        /// The value's type, as its source names it.
        found: String,
    },
    /// The integer does not fit the key's part, or SQL's integers.
    #[error("{value} does not fit {wanted}")]
    Range {
        /// The type that is too narrow.
        wanted: &'static str,
        /// The value.
        value: String,
    },
    /// The text is longer than SQL stores accept, in bytes.
    #[error("a text of {bytes} bytes is longer than {most}")]
    TooLong {
        /// The text's length in bytes.
        bytes: usize,
        /// The maximum length in bytes.
        most: usize,
    },
    /// The text contains a zero byte, which PostgreSQL's texts cannot.
    #[error("a text with a zero byte, which PostgreSQL cannot store")]
    ZeroByte,
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
            #[allow(clippy::cast_lossless, trivial_numeric_casts)] // usize, isize: as 64 bits
            fn encode(&self, to: &mut KeyBuf) {
                to.push(&(*self as $wide ^ $flip).to_be_bytes());
            }

            #[inline]
            fn is_trusted(&self) -> bool {
                true
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

    #[inline]
    fn is_trusted(&self) -> bool {
        true
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

    #[inline]
    fn is_trusted(&self) -> bool {
        true
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

            #[inline]
            fn is_trusted(&self) -> bool {
                true
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

    #[inline]
    fn is_trusted(&self) -> bool {
        true
    }
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

            #[inline]
            fn is_trusted(&self) -> bool {
                true $(&& self.$at.is_trusted())*
            }
        }
    };
}

tuple_keys!(A X 0);
tuple_keys!(A X 0, B Y 1);
tuple_keys!(A X 0, B Y 1, C Z 2);
tuple_keys!(A X 0, B Y 1, C Z 2, D W 3);

/// Makes a newtype a key that is encoded like the type it wraps.
///
/// After a comma, list borrowed types that can stand for it.
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
            const PARTS: $crate::backend::KeyParts = <$inner as $crate::Key>::PARTS;

            fn decode(raw: &mut &[u8]) -> ::core::result::Result<Self, $crate::KeyError> {
                <$inner as $crate::Key>::decode(raw).map($name)
            }
        }

        impl $crate::AsKey<$name> for $name {
            fn encode(&self, to: &mut $crate::KeyBuf) {
                $crate::AsKey::<$inner>::encode(&self.0, to);
            }

            fn is_trusted(&self) -> bool {
                $crate::AsKey::<$inner>::is_trusted(&self.0)
            }
        }

        $(impl $crate::AsKey<$name> for $borrowed {
            fn encode(&self, to: &mut $crate::KeyBuf) {
                $crate::AsKey::<$inner>::encode(self, to);
            }

            fn is_trusted(&self) -> bool {
                $crate::AsKey::<$inner>::is_trusted(self)
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
        assert!(matches!(
            KeyPart::Unsigned(8).push(&KeyValue::Signed(-1), &mut to),
            Err(KeyError::Range { .. })
        ));
        assert!(matches!(
            KeyPart::Text.push(&KeyValue::Signed(1), &mut to),
            Err(KeyError::Type { .. })
        ));
        assert_eq!(to, KeyBuf::new());
    }

    #[test]
    fn malformed_bytes_are_refused() {
        for raw in [&[][..], b"a", &[1, 3, 0], &[1, 0], &[0xff, 0]] {
            assert_eq!(
                KeyBuf::from_bytes(raw).decode::<String>(),
                Err(KeyError::Malformed),
                "{raw:?}"
            );
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
