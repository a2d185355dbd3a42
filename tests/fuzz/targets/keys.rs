//! Keys. Bytes are refused, or are the only encoding of a key. Bytes, values, SQL columns and texts
//! agree about it, and sort in the same order. Any two pieces of the input are tried as keys of
//! every type.
#![no_main]
#![allow(clippy::unwrap_used)]

use std::cmp::Ordering;
use std::fmt::Debug;

use keepcount::backend::{KeyPart, KeyValue};
use keepcount::sql::{self, MAX_TEXT, Value};
use keepcount::{AsKey, Counter, Date, Error, Key, KeyBuf, KeyError};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slug(String);
keepcount::key!(Slug(String), str);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place((u16, Slug));
keepcount::key!(Place((u16, Slug)));

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Nested(Place);
keepcount::key!(Nested(Place));

fuzz_target!(|data: &[u8]| {
    let Some((split, data)) = data.split_first() else { return };
    let (one, two) = data.split_at(usize::from(*split).min(data.len()));
    let pair = [one, two].map(key);
    integers(&pair);
    check::<[u8; 16]>(&pair);
    check::<Uuid>(&pair);
    check::<String>(&pair);
    check::<Date>(&pair);
    check::<()>(&pair);
    check::<Slug>(&pair);
    check::<Nested>(&pair);
    check::<(String,)>(&pair);
    check::<(String, i8)>(&pair);
    check::<(u8, String)>(&pair);
    check::<(String, String)>(&pair);
    check::<(Slug, (), (i16, String))>(&pair);
    check::<(i64, Uuid, u8)>(&pair);
    check::<((String, u8), (Date, i32), ([u8; 16], ()), Nested)>(&pair);
    hexadecimal(data);
});

fn integers(pair: &[KeyBuf; 2]) {
    check::<u8>(pair);
    check::<u16>(pair);
    check::<u32>(pair);
    check::<u64>(pair);
    check::<u128>(pair);
    check::<usize>(pair);
    check::<i8>(pair);
    check::<i16>(pair);
    check::<i32>(pair);
    check::<i64>(pair);
    check::<i128>(pair);
    check::<isize>(pair);
}

fn key(bytes: &[u8]) -> KeyBuf {
    let mut key = KeyBuf::new();
    key.push(bytes);
    assert_eq!(key.as_bytes(), bytes);
    key
}

/// Compares two keys of one type, if both pieces are such keys.
fn check<K: Key + AsKey<K> + Ord + Debug>([one, two]: &[KeyBuf; 2]) {
    let (first, second) = (check_one::<K>(one), check_one::<K>(two));
    let Some((first, second)) = first.zip(second) else { return };
    let order = first.cmp(&second);
    assert_eq!(one.cmp(two), order, "{first:?}, {second:?}");
    assert_eq!(one == two, order.is_eq(), "{first:?}, {second:?}");
    let id = Counter::<K>::new("c").id();
    if let (Ok(one), Ok(two)) = (
        sql::key_values(sql::Dialect::Sqlite, &id, one),
        sql::key_values(sql::Dialect::Sqlite, &id, two),
    ) {
        assert_eq!(columns_order(&one, &two), order, "{first:?}, {second:?}");
    }
}

/// Decodes the bytes and checks every form of the key.
fn check_one<K: Key + AsKey<K> + Debug>(raw: &KeyBuf) -> Option<K> {
    let id = Counter::<K>::new("c").id();
    let shown = id.show(raw);
    let typed = raw.decode::<K>();
    let values = K::PARTS.values(raw);
    if let Err(error) = &typed {
        assert_eq!(*error, KeyError::Malformed);
    }
    let Ok(values) = values else {
        assert_eq!(values, Err(KeyError::Malformed));
        assert!(typed.is_err(), "{typed:?}");
        assert_eq!(shown, format!("0x{raw:?}"));
        let refused = sql::key_values(sql::Dialect::Sqlite, &id, raw);
        assert!(
            matches!(refused, Err(Error::Key { counter: "c", cause: KeyError::Malformed, .. })),
            "{refused:?}"
        );
        return None;
    };
    let mut back = KeyBuf::new();
    for (part, value) in K::PARTS.as_slice().iter().zip(&values) {
        part.push(value, &mut back).unwrap();
    }
    assert_eq!(back, *raw, "no key has two encodings: {values:?}");
    assert!(!shown.contains(['\t', '\n']), "{shown:?}");
    check_columns(
        raw,
        K::PARTS.as_slice(),
        &values,
        sql::key_values(sql::Dialect::Sqlite, &id, raw),
    );
    // The parts of a date are a text, and not every text is a date.
    let key = typed.ok()?;
    assert_eq!(KeyBuf::of::<K>(&key), *raw, "{key:?}");
    Some(key)
}

/// SQL columns hold a key and return it, unless a part is too long or too wide.
fn check_columns(
    raw: &KeyBuf,
    parts: &[KeyPart],
    values: &[KeyValue<'_>],
    columns: keepcount::Result<Vec<Value<'_>>>,
) {
    let too_long =
        values.iter().any(|value| matches!(value, KeyValue::Text(text) if text.len() > MAX_TEXT));
    let is_wide = |(part, value): (&KeyPart, &KeyValue<'_>)| matches!((part, value), (KeyPart::Unsigned(8), KeyValue::Unsigned(value)) if i64::try_from(*value).is_err());
    let too_wide = parts.iter().zip(values).any(is_wide);
    match columns {
        Ok(columns) => {
            assert!(!too_long && !too_wide, "{columns:?}");
            let mut back = KeyBuf::new();
            for (part, column) in parts.iter().zip(&columns) {
                sql::push_key_part(*part, column, &mut back).unwrap();
            }
            assert_eq!(back, *raw, "{columns:?}");
            assert_eq!(columns.len(), parts.len().max(1));
        }
        Err(Error::Key { cause: KeyError::TooLong { .. }, .. }) => assert!(too_long),
        Err(Error::Key { cause: KeyError::Range { .. }, .. }) => assert!(too_wide),
        Err(other) => panic!("{other}"),
    }
}

/// The order in which a table sorts rows by its key columns.
fn columns_order(one: &[Value<'_>], two: &[Value<'_>]) -> Ordering {
    let column = |(one, two): (&Value<'_>, &Value<'_>)| match (one, two) {
        (Value::Integer(one), Value::Integer(two)) => one.cmp(two),
        (Value::Text(one), Value::Text(two)) => one.as_bytes().cmp(two.as_bytes()),
        (Value::Blob(one), Value::Blob(two)) | (Value::Uuid(one), Value::Uuid(two)) => one.cmp(two),
        _ => panic!("the types of one column differ: {one:?}, {two:?}"),
    };
    one.iter().zip(two).map(column).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// In JSON a key is hexadecimal, in lower case, and nothing else.
fn hexadecimal(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let is_key =
        text.len() % 2 == 0 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let read = serde_json::from_value::<KeyBuf>(text.into());
    assert_eq!(read.is_ok(), is_key, "{text:?}");
    if let Ok(key) = read {
        assert_eq!(serde_json::to_value(&key).unwrap(), text);
    }
    let raw = key(data);
    assert_eq!(serde_json::from_value::<KeyBuf>(serde_json::to_value(&raw).unwrap()).unwrap(), raw);
}
