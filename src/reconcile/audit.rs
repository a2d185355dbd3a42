//! What the reconciler asks of rows and totals, and the one function that compares them.

use super::token::Token;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use crate::schema::Schema;

/// Rows and totals in one value, so that both can be read in one consistent cut.
pub trait Audit {
    /// What tells this set of totals from another of the same schema, so that a token of one is refused by the other; 0
    /// where nothing does.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn identity(&mut self) -> Result<u64>;

    /// Looks at a counter before a repair may trust its source.
    ///
    /// # Errors
    ///
    /// [`Error::DefinitionMismatch`] when a sampled row's tally is not what the source counts for it; [`Error::Source`] when there is
    /// no source.
    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult>;

    /// Compares the next keys of rows and totals, read in one cut.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Key`] and [`Error::Overflow`] for rows or totals that cannot be compared; what the
    /// database says.
    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff>;

    /// Holds the totals of some keys, measures those keys again, and adds what they lack.
    ///
    /// # Errors
    ///
    /// As [`compare`](Self::compare), and [`Error::DefinitionMismatch`]. What was repaired before the error came stays repaired: in memory keys are repaired one by
    /// one, in a database all or none.
    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired>;

    /// What [`keep`](Self::keep) was told last of a token's [run](Token::run), in these totals' own place: it is as old as they are, also where a
    /// backup was restored. None where nothing is kept, which is the default: then a backfill that is resumed begins anew, and a verify or
    /// repair calls no counter clean of which a run before has compared the first keys. It is asked too where a run is driven again after an error.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        let _ = token;
        Ok(None)
    }

    /// Keeps how far a run has come, beside the totals. A backfill asks for it after each page, when all of the page is repaired; a verify or repair when it
    /// ends before its last key. Nothing is kept by default.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        let _ = ask;
        Ok(Kept::Nowhere)
    }

    /// Makes a counter ready to be read, which a backfill has compared from its first key to its last, in one transaction with a look whether what was
    /// kept is still there; does nothing where readiness is not kept.
    ///
    /// # Errors
    ///
    /// What the database says.
    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        let _ = ask;
        Ok(Kept::Nowhere)
    }
}

/// How far a run has come, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The number of the run.
    pub run: u64,
    /// What was kept of it before; none: nothing.
    pub from: Option<Token>,
    /// What is to be kept instead; none: nothing, as the run is complete.
    pub to: Option<Token>,
}

/// A counter that is to be ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The counter.
    pub counter: CounterId,
    /// The number of the run.
    pub run: u64,
    /// What was kept of it last, if anything.
    pub kept: Option<Token>,
}

/// What became of a [`Keep`] or [`Ready`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is done.
    Here,
    /// It is not, because what is kept is not what was kept before: these are older totals, or somebody else goes on with the same run.
    Lost,
    /// Nothing is kept here, or nothing can be written.
    Nowhere,
}

/// A look at one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The counter.
    pub counter: CounterId,
    /// Up to how many totals other than 0 to count, where the source is empty.
    pub totals: u64,
}

/// What a look saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeResult {
    /// Whether the source has no row that counts for any key.
    pub empty: bool,
    /// How many totals are not 0, counted up to the number asked; 0 where the source is not empty.
    pub totals: u64,
}

/// A measure of one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The counter.
    pub counter: CounterId,
    /// The last key that was compared before.
    pub after: Option<KeyBuf>,
    /// The last key that is to be compared; none: all behind `after`.
    pub until: Option<KeyBuf>,
    /// How many keys of the rows, and how many of the totals, to read at most.
    pub keys: usize,
}

/// One key whose rows and total disagree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The key.
    pub key: KeyBuf,
    /// Its stored total; 0 where there is none.
    pub stored: i64,
    /// What its rows add up to; 0 where there are none.
    pub expected: i64,
    /// How many rows were added up.
    pub rows: u64,
}

/// What a measure found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageDiff {
    /// Keys compared whose total or sum of rows is not 0.
    pub keys: u64,
    /// Rows added up.
    pub rows: u64,
    /// The keys that disagree, in key order; where totals are audited beside writers, unresolved keys before them.
    pub drifts: Vec<Drift>,
    /// The last key compared, where there may be more behind it.
    pub next: Option<KeyBuf>,
    /// Keys of rows that refer to a parent that is not there, where the source says where parents are.
    pub dangling: Vec<KeyBuf>,
    /// Keys that could not be compared just now, because writers did not let go of them or the outcome of a write is not known.
    pub unsettled: Vec<KeyBuf>,
}

/// A repair of some keys, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRequest {
    /// The counter.
    pub counter: CounterId,
    /// The keys.
    pub keys: Vec<KeyBuf>,
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// How many totals were corrected; the others had been repaired meanwhile.
    pub corrected: u64,
    /// Keys that were left alone; see [`PageDiff::unsettled`].
    pub unsettled: Vec<KeyBuf>,
}

/// What the rows of one key add up to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// The key.
    pub key: KeyBuf,
    /// The sum.
    pub total: i64,
    /// How many rows were added up.
    pub rows: u64,
}

/// Compares a page of recounts with a page of totals: a full outer merge of two lists in key order.
///
/// Each list was read behind `ask.after` with a limit of `ask.keys + 1`, so that a list that was cut shows it. The page
/// ends at the smaller last key of the lists that were cut, or nowhere when neither was; what lies beyond is left to the
/// next page.
///
/// # Errors
///
/// [`Error::Source`] when the keys of a list do not rise from `ask.after` on.
pub fn merge(ask: &PageRequest, mut recounts: Vec<Recount>, mut totals: Vec<(KeyBuf, i64)>) -> Result<PageDiff> {
    let unordered = |key: &KeyBuf, what: &str| {
        Err(Error::source(&ask.counter, Some(key), format!("the {what} come out of key order, or a key comes twice")))
    };
    if let Some(key) = not_rising(ask.after.as_ref(), recounts.iter().map(|recount| &recount.key)) {
        return unordered(key, "rows");
    }
    if let Some(key) = not_rising(ask.after.as_ref(), totals.iter().map(|(key, _)| key)) {
        return unordered(key, "totals");
    }
    let truncated_rows = recounts.len() > ask.keys;
    let truncated_totals = totals.len() > ask.keys;
    recounts.truncate(ask.keys);
    totals.truncate(ask.keys);
    let last_row = recounts.last().filter(|_| truncated_rows).map(|recount| recount.key.clone());
    let last_total = totals.last().filter(|_| truncated_totals).map(|(key, _)| key.clone());
    let next = match (last_row, last_total) {
        (Some(row), Some(total)) => Some(row.min(total)),
        (row, total) => row.or(total),
    };
    // What is behind the last key that is wanted was read in vain.
    let end = ask.until.as_ref().filter(|until| next.as_ref().is_none_or(|next| next >= *until));
    let inside = |key: &KeyBuf| end.or(next.as_ref()).is_none_or(|last| key <= last);

    let mut diff = PageDiff::default();
    let mut recounts = recounts.into_iter().take_while(|recount| inside(&recount.key)).peekable();
    let mut totals = totals.into_iter().take_while(|(key, _)| inside(key)).peekable();
    loop {
        let drift = match (recounts.peek(), totals.peek()) {
            (None, None) => break,
            (Some(recount), Some((key, _))) if recount.key == *key => both(recounts.next(), totals.next()),
            (Some(recount), Some((key, _))) if recount.key > *key => both(None, totals.next()),
            (None, Some(_)) => both(None, totals.next()),
            (Some(_), _) => both(recounts.next(), None),
        };
        let Some(drift) = drift else { break };
        diff.rows += drift.rows;
        diff.keys += u64::from(drift.stored != 0 || drift.expected != 0);
        if drift.stored != drift.expected {
            diff.drifts.push(drift);
        }
    }
    diff.next = if end.is_some() { None } else { next };
    Ok(diff)
}

/// Counters that have a source, and the rollups of them.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) fn with_rollups(schema: &Schema, mut known: Vec<CounterId>) -> Vec<CounterId> {
    // A rollup stands behind what it sums.
    for spec in schema.counters() {
        let feeds = |id: &CounterId| known.iter().any(|known| known.same(id));
        if spec.rollup().is_some_and(|rollup| feeds(&rollup.base()) && feeds(&rollup.membership())) {
            known.push(spec.id());
        }
    }
    known
}

fn both(recount: Option<Recount>, total: Option<(KeyBuf, i64)>) -> Option<Drift> {
    let (expected, rows) = recount.as_ref().map_or((0, 0), |recount| (recount.total, recount.rows));
    let stored = total.as_ref().map_or(0, |(_, total)| *total);
    let key = recount.map(|recount| recount.key).or_else(|| total.map(|(key, _)| key))?;
    Some(Drift { key, stored, expected, rows })
}

/// The first key that is not greater than the one before it.
fn not_rising<'a>(after: Option<&'a KeyBuf>, keys: impl Iterator<Item = &'a KeyBuf>) -> Option<&'a KeyBuf> {
    let mut before = after;
    for key in keys {
        if before.is_some_and(|before| key <= before) {
            return Some(key);
        }
        before = Some(key);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;

    const VOTES: Counter<i64> = Counter::new("votes");

    fn ask(after: Option<i64>, keys: usize) -> PageRequest {
        PageRequest { counter: VOTES.id(), after: after.map(KeyBuf::of::<i64>), until: None, keys }
    }

    fn rows(list: &[(i64, i64)]) -> Vec<Recount> {
        list.iter().map(|&(key, total)| Recount { key: KeyBuf::of::<i64>(key), total, rows: 1 }).collect()
    }

    fn totals(list: &[(i64, i64)]) -> Vec<(KeyBuf, i64)> {
        list.iter().map(|&(key, total)| (KeyBuf::of::<i64>(key), total)).collect()
    }

    fn drifts(diff: &PageDiff) -> Vec<(i64, i64, i64)> {
        diff.drifts.iter().map(|drift| (drift.key.decode().unwrap(), drift.stored, drift.expected)).collect()
    }

    #[test]
    fn both_lists_whole_is_the_last_page() {
        let found = merge(&ask(None, 3), rows(&[(1, 5), (2, 1), (4, 1)]), totals(&[(1, 5), (2, 3), (3, 0)])).unwrap();
        assert_eq!((found.keys, found.rows, found.next.as_ref()), (3, 3, None));
        assert_eq!(drifts(&found), [(2, 3, 1), (4, 0, 1)]);
    }

    #[test]
    fn the_page_ends_where_the_shorter_reaching_list_was_shortened() {
        let found = merge(&ask(None, 2), rows(&[(1, 1), (9, 1), (10, 1)]), totals(&[(2, 1), (3, 1), (4, 1)])).unwrap();
        assert_eq!(found.next.unwrap().decode::<i64>().unwrap(), 3);
        assert_eq!(found.keys, 3);
    }

    #[test]
    fn a_page_goes_no_further_than_it_is_asked_to() {
        let (rows, totals) = (rows(&[(1, 1), (5, 1), (6, 1)]), totals(&[(2, 1), (6, 1), (7, 1)]));
        for (until, keys, differing, next) in
            [(5, 3, 3, None), (4, 3, 2, None), (9, 2, 3, Some(5)), (5, 2, 3, None), (0, 2, 0, None)]
        {
            let ask = PageRequest { until: Some(KeyBuf::of::<i64>(until)), ..ask(None, keys) };
            let found = merge(&ask, rows.clone(), totals.clone()).unwrap();
            let at = found.next.as_ref().map(|key| key.decode::<i64>().unwrap());
            assert_eq!((found.drifts.len(), at), (differing, next), "until {until}, {keys} keys");
        }
    }

    #[test]
    fn a_page_of_orphans_only_is_a_page() {
        let found = merge(&ask(Some(0), 2), rows(&[]), totals(&[(1, 1), (2, 0), (3, 1)])).unwrap();
        assert_eq!(drifts(&found), [(1, 1, 0)]);
        assert_eq!(found.next.unwrap().decode::<i64>().unwrap(), 2);
    }

    #[test]
    fn keys_that_do_not_rise_are_refused() {
        for list in [&[(2, 1), (1, 1)][..], &[(1, 1), (1, 1)], &[(0, 1)]] {
            assert!(matches!(merge(&ask(Some(0), 9), rows(list), vec![]), Err(Error::Source { .. })), "{list:?}");
            assert!(matches!(merge(&ask(Some(0), 9), vec![], totals(list)), Err(Error::Source { .. })), "{list:?}");
        }
    }

    #[cfg(feature = "sqlite")]
    #[test]
    fn a_rollup_is_audited_where_both_that_it_is_made_of_are() {
        const VOTES: Counter<i64> = Counter::new("setlist.votes");
        const SHOW: Counter<(i64, i64)> = Counter::new("setlist.show");
        const SUM: Counter<i64> = Counter::new("show.votes").sum_of(VOTES, SHOW);
        const SCHEMA: Schema = Schema::new(&[VOTES.table(), SHOW.table(), SUM.table()]);
        for alone in [VOTES.id(), SHOW.id()] {
            assert_eq!(with_rollups(&SCHEMA, vec![alone]), [alone]);
        }
        let both = vec![SHOW.id(), VOTES.id()];
        assert_eq!(with_rollups(&SCHEMA, both), [SHOW.id(), VOTES.id(), SUM.id()]);
    }
}
