//! Values as SQL literals, for statements sent as text: the text that the server reads as the same
//! value that the driver would send in binary.

use std::error::Error;
use std::fmt::Write as _;

use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type};

use crate::date::Date;
use crate::key::KeyValue;

/// The maximum length of a message in bytes. Longer values are sent as parameters, which costs less
/// then.
const MAX: usize = 1 << 20;

/// Appends a value of this type. Returns `None` if the driver would refuse it, if keepcount knows
/// no text for its type, or if the message gets too long.
///
/// The literal has no type of its own: the server gives it the type of the parameter.
pub(super) fn push(out: &mut String, kind: &Type, value: &(dyn ToSql + Sync)) -> Option<()> {
    let mut bytes = BytesMut::new();
    if !matches!(value.encode_format(kind), Format::Binary) {
        return None;
    }
    match value.to_sql_checked(kind, &mut bytes).ok()? {
        IsNull::Yes => out.push_str("NULL"),
        IsNull::No if bytes.len() > MAX.saturating_sub(out.len()) => return None,
        IsNull::No => quote(out, &text_of(kind, &bytes)?)?,
    }
    Some(())
}

/// Appends a text in quotes. It means the same whether or not the server treats a backslash in
/// plain quotes as an escape.
fn quote(out: &mut String, text: &str) -> Option<()> {
    let has_backslash = text.contains('\\');
    // For a server with another client encoding, a backslash can be the second byte of a character.
    if text.contains('\0') || has_backslash && !text.is_ascii() {
        return None;
    }
    out.push_str(if has_backslash { "E'" } else { "'" });
    for char in text.chars() {
        if char == '\'' || char == '\\' {
            out.push(char);
        }
        out.push(char);
    }
    out.push('\'');
    Some(())
}

fn text_of(kind: &Type, bytes: &[u8]) -> Option<String> {
    fn read<'a, T: FromSql<'a>>(kind: &Type, bytes: &'a [u8]) -> Option<T> {
        T::from_sql(kind, bytes).ok()
    }
    Some(match *kind {
        Type::BOOL => read::<bool>(kind, bytes)?.to_string(),
        Type::INT2 => read::<i16>(kind, bytes)?.to_string(),
        Type::INT4 => read::<i32>(kind, bytes)?.to_string(),
        Type::INT8 => read::<i64>(kind, bytes)?.to_string(),
        // The shortest digits that are read back as the same number.
        Type::FLOAT4 => format!("{:e}", read::<f32>(kind, bytes)?),
        Type::FLOAT8 => format!("{:e}", read::<f64>(kind, bytes)?),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::JSON => read(kind, bytes)?,
        Type::JSONB => match bytes {
            [1, text @ ..] => read(&Type::TEXT, text)?,
            _ => return None,
        },
        Type::BYTEA => bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
        Type::UUID => KeyValue::Uuid(bytes.try_into().ok()?).to_string(),
        Type::DATE => date(read::<i32>(kind, bytes)?.into())?.to_string(),
        Type::TIMESTAMP => timestamp(read(kind, bytes)?)?,
        Type::TIMESTAMPTZ => timestamp(read(kind, bytes)?)? + "+00",
        _ => match kind.kind() {
            Kind::Array(of) => array(kind, of, bytes)?,
            Kind::Domain(of) => text_of(of, bytes)?,
            Kind::Enum(_) => read(&Type::TEXT, bytes)?,
            _ => return None,
        },
    })
}

/// The day this many days after 2000-01-01; `None` outside the calendar, as an infinity is.
fn date(days: i64) -> Option<Date> {
    const DAYS_TO_2000: i64 = 10_957;
    Date::from_days(i32::try_from(days.checked_add(DAYS_TO_2000)?).ok()?)
}

/// The time this many microseconds after 2000-01-01.
fn timestamp(micros: i64) -> Option<String> {
    const DAY: i64 = 86_400_000_000;
    let (day, micros) = (date(micros.div_euclid(DAY))?, micros.rem_euclid(DAY));
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    Some(format!("{day} {hour:02}:{minute:02}:{second:02}.{micros:06}"))
}

/// An element's bytes, undecoded.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// An array of one dimension, without nulls, indexed from 1, as the driver makes it from a slice.
fn array(kind: &Type, of: &Type, bytes: &[u8]) -> Option<String> {
    // The header: number of dimensions, whether there are nulls, element type, number of elements,
    // lower bound.
    let first = bytes.get(16..20).map_or(Ok(1), |first| i32::from_sql(&Type::INT4, first)).ok()?;
    let elements = Vec::<Option<Raw<'_>>>::from_sql(kind, bytes).ok().filter(|_| first == 1)?;
    let mut text = "{".to_owned();
    for (at, element) in elements.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        // A server with `array_nulls = off` would read a null as the text NULL.
        let Some(Raw(element)) = element else { return None };
        text.push('"');
        for char in text_of(of, element)?.chars() {
            if char == '"' || char == '\\' {
                text.push('\\');
            }
            text.push(char);
        }
        text.push('"');
    }
    text.push('}');
    Some(text)
}
