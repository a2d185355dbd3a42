//! Keys sort like their type in every encoding, decode to the same key, and are never mixed up. A
//! total under a wrong key cannot be told from a right one.

use std::cmp::Ordering;
use std::fmt::Debug;

use keepcount::sql::{self, Value};
use keepcount::{AsKey, Counter, Error, Key, KeyBuf, KeyError};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slug(String);
keepcount::key!(Slug(String), str);

/// Characters that are difficult to encode, and all others.
fn character() -> impl Strategy<Value = char> {
    prop_oneof![
        4 => prop_oneof![Just('\0'), Just('\u{1}'), Just('\u{2}'), Just('a')],
        1 => prop_oneof![
            Just('\u{7f}'),
            Just('\u{80}'),
            Just('\u{ffff}'),
            Just('\u{10000}'),
            Just('\u{10ffff}')
        ],
        2 => any::<char>(),
    ]
}

fn text(most: usize) -> impl Strategy<Value = String> {
    vec(character(), 0..=most).prop_map(String::from_iter)
}

/// Two texts with a common prefix, which may be longer than a key holds inline.
fn texts() -> impl Strategy<Value = (String, String)> {
    (text(30), text(3), text(3))
        .prop_map(|(start, one, two)| (format!("{start}{one}"), start + &two))
}

/// Two integers: any, near each other, or at the ends.
macro_rules! integers {
    ($type:ty) => {
        prop_oneof![
            any::<($type, $type)>(),
            any::<$type>().prop_map(|one| (one, one.wrapping_add(1))),
            any::<$type>().prop_map(|one| (one, <$type>::MAX)),
            any::<$type>().prop_map(|one| (<$type>::MIN, one)),
            (0..4_i8, 0..4_i8).prop_map(|(one, two)| {
                let middle = <$type>::MAX / 2 + <$type>::MIN / 2;
                (
                    middle.wrapping_add(<$type>::try_from(one).unwrap()),
                    middle.wrapping_add(<$type>::try_from(two).unwrap()),
                )
            }),
        ]
    };
}

fn ids() -> impl Strategy<Value = ([u8; 16], [u8; 16])> {
    let near = (any::<[u8; 16]>(), 0..16_usize, any::<u8>()).prop_map(|(one, at, byte)| {
        let mut two = one;
        two[at] = byte;
        (one, two)
    });
    prop_oneof![any::<([u8; 16], [u8; 16])>(), near]
}

fn sql_order(one: &[Value<'_>], two: &[Value<'_>]) -> Ordering {
    let column = |(one, two): (&Value<'_>, &Value<'_>)| match (one, two) {
        (Value::Integer(one), Value::Integer(two)) => one.cmp(two),
        (Value::Text(one), Value::Text(two)) => one.as_bytes().cmp(two.as_bytes()),
        (Value::Blob(one), Value::Blob(two)) | (Value::Uuid(one), Value::Uuid(two)) => one.cmp(two),
        _ => panic!("one column has one type: {one:?}, {two:?}"),
    };
    one.iter().zip(two).map(column).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// A key as SQL parameters, after a check that they decode to the same key. `None` if SQL cannot
/// hold the key.
fn through_sql<K: Key>(raw: &KeyBuf) -> Option<Vec<Value<'_>>> {
    let id = Counter::<K>::new("c").id();
    let values = match sql::key_values(sql::Dialect::Sqlite, &id, raw) {
        Ok(values) => values,
        Err(Error::Key {
            counter: "c",
            key,
            cause: KeyError::Range { .. } | KeyError::TooLong { .. },
        }) => {
            assert_eq!(key, id.show(raw));
            return None;
        }
        Err(other) => panic!("{other}"),
    };
    let mut back = KeyBuf::new();
    let parts = K::PARTS;
    assert_eq!(values.len(), parts.len().max(1));
    for (part, value) in parts.as_slice().iter().zip(&values) {
        sql::push_key_part(*part, value, &mut back).unwrap();
    }
    assert_eq!(back, *raw);
    Some(values)
}

/// Checks all laws for two keys: they survive a round trip typed, untyped, in JSON and in SQL, and
/// have one order in all encodings.
fn check_laws<K: Key + AsKey<K> + Ord + Debug>(one: &K, two: &K) {
    let encoded = [one, two].map(|key| {
        let raw = KeyBuf::of::<K>(key);
        assert_eq!(raw.decode::<K>().as_ref(), Ok(key));
        assert_eq!(
            serde_json::from_str::<KeyBuf>(&serde_json::to_string(&raw).unwrap()).unwrap(),
            raw
        );
        let mut untyped = KeyBuf::new();
        for (part, value) in K::PARTS.as_slice().iter().zip(K::PARTS.values(&raw).unwrap()) {
            part.push(&value, &mut untyped).unwrap();
        }
        assert_eq!(untyped, raw, "{key:?}");
        raw
    });
    let [first, second] = &encoded;
    assert_eq!(first.cmp(second), one.cmp(two), "{one:?}, {two:?}");
    assert_eq!(first == second, one == two, "{one:?}, {two:?}");
    if let (Some(first), Some(second)) = (through_sql::<K>(first), through_sql::<K>(second)) {
        assert_eq!(sql_order(&first, &second), one.cmp(two), "{one:?}, {two:?}");
    }
}

proptest! {
    #[test]
    fn signed_integers_keep_order(
        a in integers!(i8), b in integers!(i16), c in integers!(i32), d in integers!(i64),
        e in integers!(i128), f in integers!(isize),
    ) {
        check_laws(&a.0, &a.1);
        check_laws(&b.0, &b.1);
        check_laws(&c.0, &c.1);
        check_laws(&d.0, &d.1);
        check_laws(&e.0, &e.1);
        check_laws(&f.0, &f.1);
    }

    #[test]
    fn unsigned_integers_keep_order(
        a in integers!(u8), b in integers!(u16), c in integers!(u32), d in integers!(u64),
        e in integers!(u128), f in integers!(usize),
    ) {
        check_laws(&a.0, &a.1);
        check_laws(&b.0, &b.1);
        check_laws(&c.0, &c.1);
        check_laws(&d.0, &d.1);
        check_laws(&e.0, &e.1);
        check_laws(&f.0, &f.1);
    }

    #[test]
    fn ids_keep_order((one, two) in ids()) {
        check_laws(&one, &two);
        check_laws(&Uuid::from_bytes(one), &Uuid::from_bytes(two));
    }

    #[test]
    fn texts_and_newtypes_keep_order((one, two) in texts()) {
        check_laws(&one, &two);
        check_laws(&Slug(one), &Slug(two));
    }

    #[test]
    fn tuples_keep_order(
        a in texts(), b in texts(), n in integers!(i64), m in integers!(u8), id in ids()
    ) {
        check_laws(&((),), &((),));
        check_laws(&(a.0.clone(),), &(a.1.clone(),));
        check_laws(&(n.0, m.0), &(n.1, m.1));
        check_laws(&(a.0.clone(), n.0), &(a.1.clone(), n.1));
        check_laws(&(a.0.clone(), b.0.clone()), &(a.1.clone(), b.1.clone()));
        check_laws(
            &(n.0, a.0.clone(), Uuid::from_bytes(id.0)),
            &(n.1, a.1.clone(), Uuid::from_bytes(id.1)),
        );
        check_laws(
            &((a.0.clone(), m.0), (), (b.0.clone(), n.0), id.0),
            &((a.1.clone(), m.1), (), (b.1.clone(), n.1), id.1),
        );
        // The same with a first part that is equal, so that the later ones decide.
        check_laws(&(a.0.clone(), b.0.clone(), n.0), &(a.0.clone(), b.1.clone(), n.1));
        check_laws(&(m.0, (a.0.clone(), (n.0, Slug(b.0)))), &(m.0, (a.0, (n.1, Slug(b.1)))));
    }

    #[test]
    fn borrowed_keys_encode_like_owned_keys(text in text(40), number in any::<i64>()) {
        let owned = KeyBuf::of::<(String, i64)>((text.clone(), number));
        prop_assert_eq!(&KeyBuf::of::<(String, i64)>((text.as_str(), number)), &owned);
        prop_assert_eq!(&KeyBuf::of::<(String, i64)>(&(&text, &number)), &owned);
        prop_assert_eq!(KeyBuf::of::<Slug>(text.as_str()), KeyBuf::of::<Slug>(Slug(text.clone())));
        let cow: std::borrow::Cow<'_, str> = std::borrow::Cow::from(&text);
        prop_assert_eq!(KeyBuf::of::<String>(cow), KeyBuf::of::<String>(&text));
    }

    /// Bytes that decode give a key that encodes to the same bytes: no key has two encodings.
    #[test]
    fn arbitrary_bytes_are_refused_or_decode_to_one_key(
        bytes in vec(prop_oneof![0..3_u8, Just(b'a'), any::<u8>()], 0..40)
    ) {
        fn decode<K: Key + AsKey<K>>(bytes: &[u8]) {
            let mut raw = KeyBuf::new();
            raw.push(bytes);
            let id = Counter::<K>::new("c").id();
            let _ = id.show(&raw);
            let typed = raw.decode::<K>();
            assert_eq!(typed.is_ok(), K::PARTS.values(&raw).is_ok());
            match typed {
                Ok(key) => assert_eq!(KeyBuf::of::<K>(key).as_bytes(), bytes),
                Err(error) => {
                    assert_eq!(error, KeyError::Malformed);
                    let refused = sql::key_values(sql::Dialect::Sqlite, &id, &raw);
                    assert!(matches!(
                        refused,
                        Err(Error::Key { counter: "c", cause: KeyError::Malformed, .. })
                    ));
                }
            }
        }
        decode::<()>(&bytes);
        decode::<i8>(&bytes);
        decode::<u16>(&bytes);
        decode::<i64>(&bytes);
        decode::<u64>(&bytes);
        decode::<i128>(&bytes);
        decode::<[u8; 16]>(&bytes);
        decode::<Uuid>(&bytes);
        decode::<String>(&bytes);
        decode::<Slug>(&bytes);
        decode::<(String, String)>(&bytes);
        decode::<(String, u8)>(&bytes);
        decode::<((u8, String), (), i16)>(&bytes);
    }

    #[test]
    fn arbitrary_columns_are_refused_or_decode_to_one_key(
        number in any::<i64>(), text in text(20), blob in any::<[u8; 16]>()
    ) {
        fn read<K: Key + AsKey<K>>(value: &Value<'_>) {
            let mut raw = KeyBuf::new();
            match sql::push_key_part(K::PARTS.as_slice()[0], value, &mut raw) {
                Ok(()) => assert_eq!(KeyBuf::of::<K>(raw.decode::<K>().unwrap()), raw),
                Err(KeyError::Type { .. } | KeyError::Range { .. }) => {
                    assert_eq!(raw, KeyBuf::new());
                }
                Err(other) => panic!("{other}"),
            }
        }
        for value in [
            Value::Integer(number),
            Value::Integer(number % 300),
            Value::Text(text.into()),
            Value::Blob(blob),
        ] {
            read::<i8>(&value);
            read::<u8>(&value);
            read::<i64>(&value);
            read::<u64>(&value);
            read::<i128>(&value);
            read::<u128>(&value);
            read::<[u8; 16]>(&value);
            read::<Uuid>(&value);
            read::<String>(&value);
        }
    }

    /// A key is shown to people in one line and one column.
    #[test]
    fn shown_keys_have_no_tab_or_newline(text in text(20), number in any::<i8>()) {
        let id = Counter::<(String, i8)>::new("c").id();
        let shown = id.show(&KeyBuf::of::<(String, i8)>((format!("{text}\t\n\\"), number)));
        prop_assert!(!shown.contains(['\t', '\n']));
        prop_assert!(shown.ends_with(&format!("\\t\\n\\\\,{number}")), "{}", shown);
    }
}

/// Random texts seldom differ in one escaped byte only. So this tests all pairs of short texts over
/// the bytes that matter.
#[test]
fn all_pairs_of_short_texts_with_escaped_bytes_sort_strictly() {
    let mut texts = vec![String::new()];
    let mut from = 0;
    for _ in 0..3 {
        let to = texts.len();
        for at in from..to {
            for more in ['\0', '\u{1}', '\u{2}', '\u{3}', 'a'] {
                texts.push(format!("{}{more}", texts[at]));
            }
        }
        from = to;
    }
    assert_eq!(texts.len(), 1 + 5 + 25 + 125);
    let mut pairs: Vec<(&str, &str)> =
        texts.iter().flat_map(|one| texts.iter().map(move |two| (&**one, &**two))).collect();
    pairs.sort_unstable();
    let encoded: Vec<KeyBuf> = pairs.iter().map(KeyBuf::of::<(String, String)>).collect();
    let unsorted = encoded.windows(2).position(|pair| pair[0] >= pair[1]);
    assert_eq!(unsorted.map(|at| (pairs[at], pairs[at + 1])), None);
}

/// Tables of blobs, snapshots and tokens hold the encoding, so it never changes.
#[test]
fn encodings_never_change() {
    let hex = |key: KeyBuf| format!("{key:?}");
    assert_eq!(hex(KeyBuf::of::<()>(())), "");
    assert_eq!(hex(KeyBuf::of::<u8>(7)), "07");
    assert_eq!(hex(KeyBuf::of::<i8>(-1)), "7f");
    assert_eq!(hex(KeyBuf::of::<u32>(258)), "00000102");
    assert_eq!(hex(KeyBuf::of::<i64>(1)), "8000000000000001");
    assert_eq!(hex(KeyBuf::of::<isize>(-1)), "7fffffffffffffff");
    assert_eq!(hex(KeyBuf::of::<i128>(0)), format!("80{}", "00".repeat(15)));
    assert_eq!(hex(KeyBuf::of::<String>("a\0\u{1}\u{2}")), "61010101020200");
    assert_eq!(hex(KeyBuf::of::<(String, u8)>(("a", 0))), "610000");
    assert_eq!(hex(KeyBuf::of::<Uuid>(Uuid::from_u128(1))), format!("{}01", "00".repeat(15)));
}

/// SQL stores hold texts of at most 1,024 bytes, counted before escaping.
#[test]
fn longest_text_of_sql_is_measured_in_unescaped_bytes() {
    let id = Counter::<(u8, String)>::new("c").id();
    for one in ["x", "\0", "\u{e9}", "\u{10ffff}"] {
        let longest = one.repeat(1024 / one.len());
        let fits = KeyBuf::of::<(u8, String)>((1, &longest));
        assert_eq!(
            through_sql::<(u8, String)>(&fits).unwrap()[1],
            Value::Text(longest.as_str().into())
        );
        let beyond = KeyBuf::of::<(u8, String)>((1, longest + "x"));
        let error = sql::key_values(sql::Dialect::Sqlite, &id, &beyond).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Key { cause: KeyError::TooLong { bytes: 1025, most: 1024 }, .. }
            ),
            "{error}"
        );
    }
    let mut to = KeyBuf::new();
    let read = sql::push_key_part(
        keepcount::backend::KeyPart::Text,
        &Value::Text("x".repeat(1025).into()),
        &mut to,
    );
    assert_eq!(read, Err(KeyError::TooLong { bytes: 1025, most: 1024 }));
}
