//! What the reconciler requests of rows and totals, and the one function that compares them.

#[cfg(feature = "sql")]
pub use super::database::Rows;
use super::step::{Answer, Request};
use super::token::Token;
use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
#[cfg(feature = "sql")]
use crate::schema::Schema;

/// Passes a request to its method.
macro_rules! answer {
    ($audit:ident, $request:ident $(, $wait:tt)?) => {
        match $request {
            Request::Identify => $audit.identity()$(.$wait)?.map(Answer::Identified),
            Request::Recall(token) => $audit.recall(token)$(.$wait)?.map(Answer::Recalled),
            Request::Probe(probe) => $audit.probe(probe)$(.$wait)?.map(Answer::Probed),
            Request::Compare(ask) => $audit.compare(ask)$(.$wait)?.map(Answer::Compared),
            Request::Repair(repair) => $audit.repair(repair)$(.$wait)?.map(Answer::Repaired),
            Request::Ready(ready) => $audit.ready(ready)$(.$wait)?.map(Answer::Readied),
            Request::Keep(keep) => $audit.keep(keep)$(.$wait)?.map(Answer::Kept),
        }
        .unwrap_or_else(Answer::Failed)
    };
}

/// Rows and totals in one value, so that both can be read in one consistent snapshot.
pub trait Audit {
    /// Returns a number that distinguishes these totals from others of the same schema; 0 if
    /// nothing does.
    ///
    /// A token of one set of totals is refused by another.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn identity(&mut self) -> Result<u64>;

    /// Probes a counter, before a repair may trust its source.
    ///
    /// # Errors
    ///
    /// [`Error::DefinitionMismatch`] if a sampled row's tally differs from what the source counts
    /// for it; [`Error::NoSource`] if there is no source.
    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult>;

    /// Compares the next keys of rows and totals, read in one snapshot.
    ///
    /// # Errors
    ///
    /// [`Error::Source`], [`Error::Key`] and [`Error::Overflow`] for rows or totals that cannot be
    /// compared; [`Error::NoSource`] if there is no source; errors of the database.
    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff>;

    /// Locks the totals of some keys, compares those keys again, and adds the differences.
    ///
    /// # Errors
    ///
    /// As [`compare`](Self::compare), and [`Error::DefinitionMismatch`]. What was repaired before
    /// the error stays repaired: in memory, keys are repaired one by one; in a database, all or
    /// none.
    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired>;

    /// Returns what [`keep`](Self::keep) last stored of a token's [run](Token::run), from the same
    /// place as these totals.
    ///
    /// So it is as old as they are, also after a backup was restored. The default is `None`:
    /// nothing is kept. Then a resumed backfill begins again, and a verify or repair calls no
    /// counter clean of which an earlier leg compared the first keys. A run that is driven again
    /// after an error asks this too.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        let _ = token;
        Ok(None)
    }

    /// Stores how far a run has come, in the same place as the totals.
    ///
    /// A backfill requests it after each page, once all of the page is repaired; a verify or repair
    /// when it ends before its last key. The default keeps nothing.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn keep(&mut self, ask: &Keep) -> Result<Kept> {
        let _ = ask;
        Ok(Kept::Nowhere)
    }

    /// Makes a counter ready that a backfill has compared from its first key to its last.
    ///
    /// The same transaction checks that what was kept is still there. It does nothing if readiness
    /// is not stored.
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        let _ = ask;
        Ok(Kept::Nowhere)
    }

    /// Answers a request by the method that it names.
    fn answer(&mut self, request: &Request) -> Answer {
        answer!(self, request)
    }
}

/// Rows and totals behind a connection; [`Audit`] specifies each method and its
/// errors.
///
/// If you drop a future before it is ready, its work may be done or not; asking again is harmless.
pub trait AsyncAudit: Send {
    /// As [`Audit::identity`].
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn identity(&mut self) -> impl Future<Output = Result<u64>> + Send;

    /// As [`Audit::probe`].
    ///
    /// # Errors
    ///
    /// As [`Audit::probe`].
    fn probe(&mut self, ask: &Probe) -> impl Future<Output = Result<ProbeResult>> + Send;

    /// As [`Audit::compare`].
    ///
    /// # Errors
    ///
    /// As [`Audit::compare`].
    fn compare(&mut self, ask: &PageRequest) -> impl Future<Output = Result<PageDiff>> + Send;

    /// As [`Audit::repair`]: in a database, all of the keys or none.
    ///
    /// # Errors
    ///
    /// As [`Audit::repair`].
    fn repair(&mut self, ask: &RepairRequest) -> impl Future<Output = Result<Repaired>> + Send;

    /// As [`Audit::recall`].
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn recall(&mut self, token: &Token) -> impl Future<Output = Result<Option<Token>>> + Send {
        let _ = token;
        async { Ok(None) }
    }

    /// As [`Audit::keep`].
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn keep(&mut self, ask: &Keep) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }

    /// As [`Audit::ready`].
    ///
    /// # Errors
    ///
    /// Errors of the database.
    fn ready(&mut self, ask: &Ready) -> impl Future<Output = Result<Kept>> + Send {
        let _ = ask;
        async { Ok(Kept::Nowhere) }
    }

    /// Answers a request by the method that it names.
    fn answer(&mut self, request: &Request) -> impl Future<Output = Answer> + Send {
        async move { answer!(self, request, await) }
    }
}

/// How far a run has come, to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The number of the run.
    pub run: u64,
    /// What was kept of it before; `None` if nothing was.
    pub from: Option<Token>,
    /// What to keep instead; `None` to keep nothing, because the run is complete.
    pub to: Option<Token>,
}

/// A counter to make ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The counter.
    pub counter: CounterId,
    /// The number of the run.
    pub run: u64,
    /// What was last kept of it, if anything.
    pub kept: Option<Token>,
}

/// The result of a [`Keep`] or [`Ready`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is done.
    Here,
    /// It is not done, because what is stored differs from what was kept before: these are older
    /// totals, or another process continues the same run.
    Lost,
    /// Nothing is kept here, or nothing can be written.
    Nowhere,
}

/// A probe of one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The counter.
    pub counter: CounterId,
    /// The number of totals other than 0 up to which to count, if the source is empty.
    pub totals: u64,
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeResult {
    /// Whether the source has no row that counts for any key.
    pub empty: bool,
    /// How many totals are not 0, counted up to the requested number; 0 if the source is not empty.
    pub totals: u64,
}

/// A request to compare one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// The counter.
    pub counter: CounterId,
    /// The last key compared before.
    pub after: Option<KeyBuf>,
    /// The last key to compare; `None` for all keys after `after`.
    pub until: Option<KeyBuf>,
    /// The most keys of rows to read, and the most keys of totals.
    pub keys: usize,
}

/// One key whose total differs from its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The key.
    pub key: KeyBuf,
    /// Its stored total; 0 if it has none.
    pub stored: i64,
    /// The sum of its rows; 0 if it has none.
    pub expected: i64,
    /// The number of rows in the sum.
    pub rows: u64,
}

/// The result of comparing a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageDiff {
    /// Keys compared whose total or sum of rows is not 0.
    pub keys: u64,
    /// Rows added up.
    pub rows: u64,
    /// The keys that differ, in key order; in an audit that runs next to writers, unresolved keys
    /// come first.
    pub drifts: Vec<Drift>,
    /// The last key compared, if there may be more after it.
    pub next: Option<KeyBuf>,
    /// Keys of rows that refer to a parent that does not exist, if the source says where parents
    /// are.
    pub dangling: Vec<KeyBuf>,
    /// Keys that could not be compared now, because writers kept them busy or the outcome of a
    /// write is unknown.
    pub unsettled: Vec<KeyBuf>,
}

impl PageDiff {
    /// The numbers of wrong, missing and orphaned keys, as reports distinguish them.
    pub(super) fn kinds(&self) -> [u64; 3] {
        let count =
            |is: fn(&Drift) -> bool| self.drifts.iter().filter(|drift| is(drift)).count() as u64;
        let (missing, orphan) =
            (count(|drift| drift.stored == 0), count(|drift| drift.expected == 0));
        [self.drifts.len() as u64 - missing - orphan, missing, orphan]
    }
}

/// A repair of some keys, in the order in which they were found: that of
/// [`PageDiff::drifts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRequest {
    /// The counter.
    pub counter: CounterId,
    /// The keys.
    pub keys: Vec<KeyBuf>,
}

/// The result of a repair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// How many totals were corrected; the others had been repaired meanwhile.
    pub corrected: u64,
    /// Keys that were not compared or repaired; see [`PageDiff::unsettled`].
    pub unsettled: Vec<KeyBuf>,
}

/// The sum of the rows of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recount {
    /// The key.
    pub key: KeyBuf,
    /// The sum.
    pub total: i64,
    /// The number of rows in the sum.
    pub rows: u64,
}

/// Compares a page of recounts with a page of totals: a full outer merge of two lists in key order.
///
/// Read each list after `ask.after` with a limit of `ask.keys + 1`, so that a truncated list is
/// recognized by its length. The page ends at the smaller last key of the truncated lists, or
/// nowhere if neither was truncated. What lies beyond is left to the next page.
///
/// # Errors
///
/// [`Error::Source`] if the keys of a list do not rise from `ask.after` on.
pub fn merge(
    ask: &PageRequest,
    mut recounts: Vec<Recount>,
    mut totals: Vec<(KeyBuf, i64)>,
) -> Result<PageDiff> {
    let unordered = |key: &KeyBuf, what: &str| {
        Err(Error::source(
            &ask.counter,
            Some(key),
            format!("the {what} are not in key order, or a key comes twice"),
        ))
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
    // Everything after `ask.until` was read in vain.
    let end = ask.until.as_ref().filter(|until| next.as_ref().is_none_or(|next| next >= *until));
    let inside = |key: &KeyBuf| end.or(next.as_ref()).is_none_or(|last| key <= last);

    let mut diff = PageDiff::default();
    let mut recounts = recounts.into_iter().take_while(|recount| inside(&recount.key)).peekable();
    let mut totals = totals.into_iter().take_while(|(key, _)| inside(key)).peekable();
    loop {
        let drift = match (recounts.peek(), totals.peek()) {
            (None, None) => break,
            (Some(recount), Some((key, _))) if recount.key == *key => {
                both(recounts.next(), totals.next())
            }
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

/// Adds to the counters that have a source the rollups over them.
#[cfg(feature = "sql")]
pub(super) fn with_rollups(schema: &Schema, mut known: Vec<CounterId>) -> Vec<CounterId> {
    // A rollup comes after what it sums.
    for spec in schema.counters() {
        let feeds = |id: &CounterId| known.iter().any(|known| known.same(id));
        if spec.rollup().is_some_and(|rollup| feeds(&rollup.base()) && feeds(&rollup.membership()))
        {
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

/// Returns the first key that is not greater than the one before it.
fn not_rising<'a>(
    after: Option<&'a KeyBuf>,
    keys: impl Iterator<Item = &'a KeyBuf>,
) -> Option<&'a KeyBuf> {
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
        list.iter()
            .map(|&(key, total)| Recount { key: KeyBuf::of::<i64>(key), total, rows: 1 })
            .collect()
    }

    fn totals(list: &[(i64, i64)]) -> Vec<(KeyBuf, i64)> {
        list.iter().map(|&(key, total)| (KeyBuf::of::<i64>(key), total)).collect()
    }

    fn drifts(diff: &PageDiff) -> Vec<(i64, i64, i64)> {
        diff.drifts
            .iter()
            .map(|drift| (drift.key.decode().unwrap(), drift.stored, drift.expected))
            .collect()
    }

    #[test]
    fn both_lists_whole_is_the_last_page() {
        let found = merge(
            &ask(None, 3),
            rows(&[(1, 5), (2, 1), (4, 1)]),
            totals(&[(1, 5), (2, 3), (3, 0)]),
        )
        .unwrap();
        assert_eq!((found.keys, found.rows, found.next.as_ref()), (3, 3, None));
        assert_eq!(drifts(&found), [(2, 3, 1), (4, 0, 1)]);
    }

    #[test]
    fn the_page_ends_where_the_shorter_reaching_list_was_shortened() {
        let found = merge(
            &ask(None, 2),
            rows(&[(1, 1), (9, 1), (10, 1)]),
            totals(&[(2, 1), (3, 1), (4, 1)]),
        )
        .unwrap();
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
            assert!(
                matches!(merge(&ask(Some(0), 9), rows(list), vec![]), Err(Error::Source { .. })),
                "{list:?}"
            );
            assert!(
                matches!(merge(&ask(Some(0), 9), vec![], totals(list)), Err(Error::Source { .. })),
                "{list:?}"
            );
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
