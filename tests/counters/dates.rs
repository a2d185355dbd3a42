//! The arithmetic of `Date`, checked against a count of every day of the calendar.

use keepcount::{Date, KeyBuf};

fn days_of(year: i32, month: u8) -> u8 {
    match month {
        2 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[test]
fn every_day_of_the_calendar_follows_the_one_before() {
    let (mut expected, mut before) = (Date::MIN.days(), None);
    for year in 1..=9999 {
        for month in 1..=12 {
            for day in 1..=days_of(year, month) {
                let date = Date::new(year, month, day).unwrap();
                assert_eq!(date.days(), expected, "{year}-{month}-{day}");
                assert_eq!(Date::from_days(expected), Some(date));
                // Only every seventh day and the ends of months are tested as texts, which take
                // most of the time in a debug build.
                if expected % 7 == 0 || day > 27 {
                    let text = format!("{year:04}-{month:02}-{day:02}");
                    assert_eq!(date.to_string(), text);
                    assert_eq!(text.parse(), Ok(date));
                    let key = KeyBuf::of::<Date>(date);
                    assert_eq!(key, KeyBuf::of::<String>(&text));
                    assert_eq!(key.decode::<Date>(), Ok(date));
                    assert!(before.is_none_or(|before| before < key));
                    before = Some(key);
                }
                expected += 1;
            }
        }
    }
    assert_eq!(Date::MAX.days() + 1, expected);
    assert_eq!(Date::new(1970, 1, 1).unwrap().days(), 0);
    assert_eq!(Date::new(1970, 1, 1).unwrap().last_second(), 86_399);
    assert_eq!(Date::new(1969, 12, 31).unwrap().last_second(), -1);
}

#[test]
fn text_that_is_not_a_date_is_refused_and_named() {
    for text in [
        "",
        "2024-02-30",
        "2023-02-29",
        "1900-02-29",
        "2024-00-10",
        "2024-13-01",
        "2024-01-00",
        "0000-12-31",
        "10000-01-01",
        "-001-01-01",
        "2024-1-01",
        "2024/01/01",
        " 2024-01-01",
        "2024-01-01 ",
        "2024-01-01T00",
        "+024-01-01",
        "20240101",
        "\u{0662}024-01-0",
        "yesterday",
    ] {
        let error = text.parse::<Date>().unwrap_err();
        assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        assert!(KeyBuf::of::<String>(text).decode::<Date>().is_err(), "{text}");
    }
    assert!("x".repeat(10_000).parse::<Date>().unwrap_err().to_string().len() < 200);
}

#[test]
fn days_outside_the_calendar_are_none() {
    assert_eq!((Date::MIN.plus(-1), Date::MAX.plus(1)), (None, None));
    assert_eq!((Date::MIN.plus(i32::MIN), Date::MAX.plus(i32::MAX)), (None, None));
    assert_eq!((Date::from_days(i32::MIN), Date::from_days(i32::MAX)), (None, None));
    assert_eq!(Date::new(0, 12, 31), None);
    assert_eq!(Date::new(10_000, 1, 1), None);
    assert_eq!(Date::MIN.plus(Date::MAX.days() - Date::MIN.days()), Some(Date::MAX));
    let json = serde_json::to_string(&Date::MAX).unwrap();
    assert_eq!(
        (json.as_str(), serde_json::from_str::<Date>(&json).unwrap()),
        ("\"9999-12-31\"", Date::MAX)
    );
}
