//! Conversions between the model's cells and the crate's counters and keys, and comparisons of a
//! store with the model.

use std::collections::BTreeMap;

use keepcount::backend::KeyRange;
use keepcount::{CounterId, Error, Key, KeyBuf, MemoryStore, Record, Store, Tally};

use crate::model::{Cell, Day, Id, Model, Name};
use crate::schemas::{
    ALL, ARTIST_DAYS, ARTIST_VOTES, ROLLED, SET_DAYS, SET_SHOW, SET_SITE, SET_VOTES, SHOW_ARTIST,
    SHOW_DAYS, SHOW_VOTES, SITE_VOTES, WORDS,
};

/// A row, given by what it adds.
#[derive(Debug, Clone)]
pub struct Row(pub Vec<(Cell, i64)>);

impl Record for Row {
    // Includes rollups, which are refused when the batch is applied.
    fn tally(&self, to: &mut Tally<'_>) {
        for (cell, amount) in &self.0 {
            match *cell {
                Cell::All => to.add(ALL, (), *amount),
                Cell::Word(Name(word)) => to.add(WORDS, word, *amount),
                Cell::SetVotes(Id(set)) => to.add(SET_VOTES, set, *amount),
                Cell::SetDays(Id(set), Day(day)) => to.add(SET_DAYS, (set, day), *amount),
                Cell::SetShow(Id(set), Name(show)) => to.add(SET_SHOW, (set, show), *amount),
                Cell::SetSite(Id(set)) => to.add(SET_SITE, (set, ()), *amount),
                Cell::ShowArtist(Name(show), Id(artist)) => {
                    to.add(SHOW_ARTIST, (show, u16::from(artist)), *amount)
                }
                Cell::SiteVotes => to.add(SITE_VOTES, (), *amount),
                Cell::ShowVotes(Name(show)) => to.add(SHOW_VOTES, show, *amount),
                Cell::ShowDays(Name(show), Day(day)) => to.add(SHOW_DAYS, (show, day), *amount),
                Cell::ArtistVotes(Id(artist)) => to.add(ARTIST_VOTES, u16::from(artist), *amount),
                Cell::ArtistDays(Id(artist), Day(day)) => {
                    to.add(ARTIST_DAYS, (u16::from(artist), day), *amount)
                }
            }
        }
    }
}

/// The cell of a counter's key.
pub fn cell(counter: &CounterId, key: &KeyBuf) -> Cell {
    fn of<K: Key>(key: &KeyBuf) -> K {
        key.decode().unwrap()
    }
    let id = |number: u16| Id(number.try_into().unwrap());
    let (name, day) = (|text: String| Name::of(&text), Day);
    match counter.name() {
        "all" => Cell::All,
        "words" => Cell::Word(name(of(key))),
        "set.votes" => Cell::SetVotes(Id(of(key))),
        "set.days" => {
            let (set, at): (u8, i8) = of(key);
            Cell::SetDays(Id(set), day(at))
        }
        "set.show" => {
            let (set, show): (u8, String) = of(key);
            Cell::SetShow(Id(set), name(show))
        }
        "set.site" => Cell::SetSite(Id(of::<(u8, ())>(key).0)),
        "show.artist" => {
            let (show, artist): (String, u16) = of(key);
            Cell::ShowArtist(name(show), id(artist))
        }
        "site.votes" => Cell::SiteVotes,
        "show.votes" => Cell::ShowVotes(name(of(key))),
        "show.days" => {
            let (show, at): (String, i8) = of(key);
            Cell::ShowDays(name(show), day(at))
        }
        "artist.votes" => Cell::ArtistVotes(id(of(key))),
        "artist.days" => {
            let (artist, at): (u16, i8) = of(key);
            Cell::ArtistDays(id(artist), day(at))
        }
        other => panic!("not a counter of the schema: {other}"),
    }
}

/// Deltas by cell. Each cell occurs once.
pub fn cells<'a>(
    deltas: impl Iterator<Item = (CounterId, &'a KeyBuf, i128)>,
) -> BTreeMap<Cell, i128> {
    let mut cells = BTreeMap::new();
    for (counter, key, delta) in deltas {
        assert!(
            cells.insert(cell(&counter, key), delta).is_none(),
            "{counter:?} {key:?} comes twice"
        );
    }
    cells
}

/// The store equals the model in every way of reading. Reads of a counter that is not ready are
/// refused.
pub fn check(store: &MemoryStore, model: &Model) {
    for spec in ROLLED.counters() {
        let counter = spec.id();
        let wanted = || model.totals.iter().filter(|(cell, _)| cell.counter() == counter.name());
        assert_eq!(store.len(counter).unwrap(), wanted().count());
        assert_eq!(store.is_ready(counter).unwrap(), model.is_ready(counter.name()));
        match Store::read_range(&mut &*store, counter, &KeyRange::ALL, usize::MAX) {
            Ok(page) => {
                assert!(model.is_ready(counter.name()) && page.is_sorted());
                let (keys, totals): (Vec<KeyBuf>, Vec<i64>) = page.into_iter().unzip();
                assert!(
                    keys.iter().map(|key| cell(&counter, key)).eq(wanted().map(|(cell, _)| *cell)),
                    "{keys:?}"
                );
                assert!(
                    totals.iter().eq(wanted().map(|(_, total)| total)),
                    "{counter:?}: {keys:?}, {totals:?}"
                );
                assert_eq!(Store::read_keys(&mut &*store, counter, &keys).unwrap(), totals);
            }
            Err(Error::NotReady { .. }) => assert!(!model.is_ready(counter.name()), "{counter:?}"),
            Err(other) => panic!("{other}"),
        }
    }
    for stream in ["a", "b"] {
        assert_eq!(store.offset(stream), model.offset(stream));
    }
}

/// The sum of a set's days, from a day on. A range that includes pruned days is refused.
pub fn check_sum(store: &MemoryStore, model: &Model, set: Id, from: Option<Day>) {
    let range = match from {
        Some(Day(from)) => SET_DAYS.suffixes(set.0, from..),
        None => SET_DAYS.under(set.0),
    };
    let is_inside =
        |cell: &Cell| matches!(cell, Cell::SetDays(of, day) if *of == set && from <= Some(*day));
    let inside = model.totals.iter().filter(|(cell, _)| is_inside(cell));
    let sum: i128 = inside.map(|(_, total)| i128::from(*total)).sum();
    match store.sum(range) {
        Ok(found) => {
            assert!(
                i128::from(found) == sum && (model.cutoff.is_none() || from >= model.cutoff),
                "{found}, {sum}"
            )
        }
        Err(Error::Pruned { .. }) => assert!(from < model.cutoff, "{from:?}"),
        Err(Error::Overflow { .. }) => assert!(i64::try_from(sum).is_err()),
        Err(Error::NotReady { .. }) => assert!(!model.is_ready("set.days")),
        Err(other) => panic!("{other}"),
    }
}
