//! Prints a counter's totals as lines; for `artist.shows_ahead`, the sums from a day on.

use std::io::Write;

use keepcount::backend::KeyRange;
use keepcount::{CounterId, Date, KeyBuf, Store};

use crate::error::{Error, Result};
use crate::schema::C;

/// The number of totals that are read at a time.
const PAGE: usize = 4096;

/// Prints key TAB total, in key order, without zeros. Only `artist.shows_ahead` is read at a day.
pub fn print(
    out: &mut impl Write,
    store: &mut impl Store,
    counter: CounterId,
    at: Option<Date>,
) -> Result<()> {
    let ahead = C::ARTIST_SHOWS_AHEAD.id();
    match at {
        Some(at) if counter == ahead => print_shows_ahead(out, store, at),
        Some(_) => Err(Error::said(format!(
            "counter {} is not read at a day: --at goes with {} only",
            counter.name(),
            ahead.name()
        ))),
        None if counter == ahead => Err(Error::said(format!(
            "counter {} counts from a day on: give it as --at YYYY-MM-DD",
            counter.name()
        ))),
        None => each_total(store, counter, |key, total| {
            Ok(writeln!(out, "{}\t{total}", counter.show(key))?)
        }),
    }
}

/// Prints artist TAB shows from this day on. In key order an artist's dates are adjacent, so only
/// one sum is held at a time.
fn print_shows_ahead(out: &mut impl Write, store: &mut impl Store, at: Date) -> Result<()> {
    let counter = C::ARTIST_SHOWS_AHEAD.id();
    let artists = C::ARTIST_SHOWS.id();
    let mut print = |artist: &str, shows: i128| match shows {
        0 => Ok(()),
        _ => writeln!(out, "{}\t{shows}", artists.show(&KeyBuf::of::<String>(artist))),
    };
    let mut current = (String::new(), 0_i128);
    each_total(store, counter, |key, total| {
        let decoded = key.decode::<(String, Date)>();
        let (artist, date) =
            decoded.map_err(|cause| keepcount::Error::key(&counter, key, cause))?;
        if artist != current.0 {
            print(&current.0, current.1)?;
            current = (artist, 0);
        }
        if date >= at {
            current.1 += i128::from(total);
        }
        Ok(())
    })?;
    print(&current.0, current.1)?;
    Ok(())
}

/// Calls `each` with every total other than 0, in key order.
fn each_total(
    store: &mut impl Store,
    counter: CounterId,
    mut each: impl FnMut(&KeyBuf, i64) -> Result<()>,
) -> Result<()> {
    let mut range = KeyRange::ALL;
    loop {
        let page = store.read_range(counter, &range, PAGE)?;
        for (key, total) in page.iter().filter(|(_, total)| *total != 0) {
            each(key, *total)?;
        }
        match page.last() {
            Some((key, _)) if page.len() == PAGE => range = range.behind(key),
            _ => return Ok(()),
        }
    }
}
