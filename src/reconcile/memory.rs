//! The audit of a memory store: rows come from the application's closures, totals from the store,
//! with or without concurrent writers.

mod grace_period;
mod guarded_writers;
mod sources;
mod unguarded_writers;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::time::Duration;

pub use self::grace_period::GracePeriod;
use self::guarded_writers::Guarded;
use self::sources::{Shares, Sources, Visitor};
use self::unguarded_writers::Unguarded;
use super::audit::{
    Audit, Keep, Kept, PageDiff, PageRequest, Probe, ProbeResult, Ready, Recount, RepairRequest,
    Repaired, merge,
};
use super::recount::{share, tally};
use super::runtime::Runtime;
use super::token::Token;
use crate::batch::Batch;
use crate::batch::Record;
use crate::counter::{Counter, CounterId, Rollup};
use crate::error::{Cause, Error, Result};
use crate::key::{Key, KeyBuf};
use crate::store::MemoryStore;
use crate::store::memory::{Before, CounterKey, RollupSnapshot};

/// A [`MemoryStore`] and the rows that it counts.
///
/// - [`new`](Self::new): the store is borrowed exclusively, and no hook runs until you drop the
///   audit.
/// - [`live`](Self::live): every writer guards its writes ([`MemoryStore::begin`]); totals are
///   compared exactly and repaired meanwhile.
/// - [`watching`](Self::watching): hooks run without pending writes; totals are only verified.
pub struct MemoryAudit<'a> {
    store: &'a MemoryStore,
    sources: Sources<'a>,
    writers: Writers<'a>,
    window: Window,
    /// The snapshot of the rollup that is being compared.
    rollup: Option<RollupSnapshot>,
}

/// The writers that may run while the audit exists.
enum Writers<'a> {
    Nobody,
    Guarded(Guarded<'a>),
    Unguarded(Unguarded<'a>),
}

/// The next totals in key order, fetched for many pages at once: finding the smallest keys of a
/// hash table costs a scan of all of it.
#[derive(Debug, Default)]
struct Window {
    counter: Option<CounterId>,
    after: Option<KeyBuf>,
    totals: VecDeque<(KeyBuf, i64)>,
    whole: bool,
}

/// A window holds one part in `WINDOWS` of a counter's totals, plus a page, so a run makes at most
/// about that many scans.
const WINDOWS: usize = 16;
/// How many snapshots a repair of a rollup takes, if other repairs and prunes come in between.
const MAX_SNAPSHOTS: usize = 8;

impl<'a> MemoryAudit<'a> {
    /// Creates an audit without concurrent writers and without sources; add a source for each
    /// counter in scope.
    pub fn new(store: &'a mut MemoryStore) -> Self {
        Self::of(store, Writers::Nobody)
    }

    /// Creates an audit that runs next to guarded writers.
    ///
    /// Every write of a key that the audit may repair must have a pending write, since before you
    /// made the audit. `runtime` provides the time and the waits;
    /// [`SystemRuntime`](super::SystemRuntime) is the default one.
    ///
    /// The comparison is exact, in a verify's report too. A key that stays busy, or whose pending
    /// write was dropped less than the grace period ago, is listed as unsettled. For this the audit
    /// may make the writers of a few keys wait, at the barrier of their stripe, for the recount of
    /// one key.
    ///
    /// Over a [restored](MemoryStore::restore) store, make the audit after you have replayed the
    /// streams, and once no commit from before the crash is still in progress: an event that is
    /// replayed after it was repaired counts twice.
    ///
    /// The closures that read rows must begin to read when they are called, and must see what is
    /// committed by then: do not read in an older transaction or from a replica that lags. They
    /// must not need a connection that a writer at the barrier may hold: give the audit its own.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::Mutex;
    /// use std::time::Duration;
    /// use keepcount::{Batch, Counter, MemoryStore, Record, Schema, Tally};
    /// use keepcount::reconcile::{GracePeriod, MemoryAudit, SystemRuntime, repair};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table()]);
    ///
    /// #[derive(Clone)]
    /// struct Vote(i64);
    /// # impl Record for Vote {
    /// #     fn tally(&self, to: &mut Tally<'_>) { to.add(SHOW_VOTES, self.0, 1); }
    /// # }
    ///
    /// // This stands for a database; its row was written without the hooks.
    /// let votes = Mutex::new(vec![Vote(1)]);
    /// let store = MemoryStore::new(&SCHEMA);
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| -> keepcount::Result<()> {
    ///         for _ in 0..100 {
    ///             let mut batch = Batch::new();
    ///             batch.insert(&Vote(1));
    ///             let pending_write = store.begin(&mut batch)?;
    ///             votes.lock().unwrap().push(Vote(1)); // visible to all from here on
    ///             pending_write.commit()?;
    ///         }
    ///         Ok(())
    ///     });
    ///     let mut audit = MemoryAudit::live(&store, GracePeriod::after(Duration::from_secs(10)), SystemRuntime::new());
    ///     audit.add(SHOW_VOTES, |_| votes.lock().unwrap().clone())?;
    ///     repair(&SCHEMA).run(&mut audit)
    /// })?;
    /// assert_eq!(store.total(SHOW_VOTES, 1)?, 101);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn live(
        store: &'a MemoryStore,
        grace_period: GracePeriod,
        runtime: impl Runtime + 'a,
    ) -> Self {
        Self::of(store, Writers::Guarded(Guarded::new(store, grace_period, Box::new(runtime))))
    }

    /// Creates an audit that only verifies, next to writers without pending writes.
    ///
    /// A difference is listed if it is found twice, further apart than `longest_delay`, the longest
    /// time from a row's commit to the end of its `apply`. Every page with a difference waits that
    /// long.
    ///
    /// A key that is written all the time may be listed as unsettled, or, by chance, as drift.
    pub fn watching(
        store: &'a MemoryStore,
        longest_delay: Duration,
        runtime: impl Runtime + 'a,
    ) -> Self {
        Self::of(store, Writers::Unguarded(Unguarded::new(longest_delay, Box::new(runtime))))
    }

    fn of(store: &'a MemoryStore, writers: Writers<'a>) -> Self {
        Self {
            store,
            sources: Sources::default(),
            writers,
            window: Window::default(),
            rollup: None,
        }
    }

    /// Gives the rows of one record type, in any order, for these counters, to which its tally
    /// adds: anything iterable.
    ///
    /// If several record types drive a counter, call it for each: their rows add up, so give no row
    /// twice. For one of the counters, [`add`](Self::add) takes the place of all of them.
    ///
    /// **Cost.** For each page, `rows` is called and read to its end, and only the page's keys are
    /// kept. Pages that take long grow to 100,000 keys, so a counter is read about once for every
    /// 100,000 keys, and some times more at first; with a fixed
    /// [`Options::page`](super::Options::page) once for every page. A repair reads all rows once
    /// for 256 keys. Next to writers, the keys of a page that differ or are written meanwhile are
    /// read together once, and each that a writer gets in the way of is read alone, again all rows:
    /// give a counter with many such keys a sorted source. Memory: one page's keys.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUse`] without a counter; [`Error::UnknownCounter`] and
    /// [`Error::DefinitionConflict`] for one that the store does not have; [`Error::Source`] for a
    /// rollup.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::reconcile::{MemoryAudit, repair};
    /// use keepcount::{Counter, MemoryStore, Record, Schema, Tally};
    ///
    /// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
    /// const USER_VOTES: Counter<i64> = Counter::new("user.votes");
    /// const SCHEMA: Schema = Schema::new(&[SHOW_VOTES.table(), USER_VOTES.table()]);
    ///
    /// struct Vote { show: i64, user: i64 }
    ///
    /// impl Record for Vote {
    ///     fn tally(&self, to: &mut Tally<'_>) {
    ///         to.add(SHOW_VOTES, self.show, 1);
    ///         to.add(USER_VOTES, self.user, 1);
    ///     }
    /// }
    ///
    /// let votes = [Vote { show: 7, user: 2 }, Vote { show: 7, user: 1 }]; // in any order
    /// let mut store = MemoryStore::new(&SCHEMA);
    /// let mut audit = MemoryAudit::new(&mut store);
    /// audit.rows(&[SHOW_VOTES.id(), USER_VOTES.id()], || votes.iter())?;
    /// assert!(repair(&SCHEMA).run(&mut audit)?.complete());
    /// drop(audit);
    /// assert_eq!((store.total(SHOW_VOTES, 7)?, store.total(USER_VOTES, 2)?), (2, 1));
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    pub fn rows<R: Record, I: IntoIterator<Item = R>>(
        &mut self,
        counters: &[CounterId],
        mut rows: impl FnMut() -> I + 'a,
    ) -> Result<()> {
        self.rows_fallible(counters, move || rows().into_iter().map(Ok))
    }

    /// Gives rows like [`rows`](Self::rows), whose reading can fail. Such an error ends the run,
    /// because the next counter's rows may be unreadable too.
    ///
    /// # Errors
    ///
    /// As [`rows`](Self::rows).
    pub fn rows_fallible<R, I>(
        &mut self,
        counters: &[CounterId],
        mut rows: impl FnMut() -> I + 'a,
    ) -> Result<()>
    where
        R: Record,
        I: IntoIterator<Item = Result<R, Cause>>,
    {
        if counters.is_empty() {
            let reason = format!(
                "the rows of type {} need at least one counter",
                std::any::type_name::<R>()
            );
            return Err(Error::invalid_use("rows", reason));
        }
        let counters =
            counters.iter().map(|id| self.driven_by_rows(id)).collect::<Result<Vec<_>>>()?;
        let mut scratch = Batch::new();
        let scan = move |counter: &CounterId, each: &mut Visitor<'_>| {
            for row in rows() {
                let row = row.map_err(|cause| unreadable(counter, cause))?;
                tally(&row, &mut scratch)?;
                for (_, key, amount) in scratch.deltas().filter(|(id, ..)| id == counter) {
                    if !each(key, amount)? {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        self.sources.scan(counters, Box::new(scan));
        Ok(())
    }

    /// Sets where one counter's rows come from: anything iterable, in key order, in which each row
    /// adds to at most one key. Unlike [`rows`](Self::rows), it reads only what a page needs.
    ///
    /// `rows` receives the key from which on rows are wanted. It may start earlier, even at the
    /// first row. It is called once for each page and once for each repaired key. A second source
    /// of a counter takes the first's place.
    ///
    /// # Errors
    ///
    /// [`Error::Source`] for a rollup; [`Error::UnknownCounter`] and [`Error::DefinitionConflict`]
    /// for a counter that the store does not have.
    pub fn add<K, R, I>(
        &mut self,
        counter: Counter<K>,
        mut rows: impl FnMut(Bound<K>) -> I + 'a,
    ) -> Result<()>
    where
        K: Key,
        R: Record + 'a,
        I: IntoIterator<Item = R>,
        I::IntoIter: 'a,
    {
        self.add_fallible::<K, R, _>(counter, move |from| rows(from).into_iter().map(Ok))
    }

    /// Sets a source like [`add`](Self::add), for rows whose reading can fail. Such an error ends
    /// the run, because the next counter's rows may be unreadable too.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add).
    pub fn add_fallible<K, R, I>(
        &mut self,
        counter: Counter<K>,
        mut rows: impl FnMut(Bound<K>) -> I + 'a,
    ) -> Result<()>
    where
        K: Key,
        R: Record + 'a,
        I: IntoIterator<Item = Result<R, Cause>>,
        I::IntoIter: 'a,
    {
        let id = self.driven_by_rows(&counter.id())?;
        let shares = move |from: Bound<&KeyBuf>| {
            let from = match from {
                Bound::Unbounded => Bound::Unbounded,
                Bound::Included(key) => Bound::Included(decode(&id, key)?),
                Bound::Excluded(key) => Bound::Excluded(decode(&id, key)?),
            };
            let mut scratch = Batch::new();
            let shares = rows(from).into_iter().map(move |row| match row {
                Ok(row) => share(&id, &row, &mut scratch),
                Err(cause) => Err(unreadable(&id, cause)),
            });
            Ok(Box::new(shares) as Shares<'a>)
        };
        self.sources.set(id, Box::new(shares));
        Ok(())
    }

    /// Refuses a rollup, and what is not in the schema.
    fn driven_by_rows(&self, id: &CounterId) -> Result<CounterId> {
        let Some(rollup) = self.store.schema().spec(id)?.rollup() else { return Ok(*id) };
        let reason =
            format!("it is the sum of {}, and has no rows of its own", rollup.base().name());
        Err(Error::source(id, None, reason))
    }

    /// Compares a rollup's totals with what they should be; one snapshot serves all of its pages.
    fn compare_rollup(&mut self, ask: &PageRequest, rollup: &Rollup) -> Result<PageDiff> {
        let kept = self
            .rollup
            .take()
            .filter(|snapshot| snapshot.is_of(&ask.counter) && ask.after.is_some());
        let snapshot = kept.map_or_else(|| self.store.rollup_snapshot(&ask.counter, rollup), Ok)?;
        let wanted = ask.keys.saturating_add(1);
        let expected_all = snapshot.expected_all(ask.after.as_ref(), wanted)?.into_iter();
        let recounts =
            expected_all.map(|(key, total, rows)| Recount { key, total, rows }).collect();
        let diff = merge(ask, recounts, snapshot.totals(ask.after.as_ref(), wanted));
        self.rollup = Some(snapshot);
        diff
    }

    fn repair_rollup(&mut self, ask: &RepairRequest, rollup: &Rollup) -> Result<Repaired> {
        let mut snapshot = self.rollup.take().filter(|snapshot| snapshot.is_of(&ask.counter));
        for _ in 0..MAX_SNAPSHOTS {
            let mut of =
                snapshot.map_or_else(|| self.store.rollup_snapshot(&ask.counter, rollup), Ok)?;
            if let Some(corrected) = self.store.repair_rollup(&mut of, &ask.keys)? {
                self.rollup = Some(of);
                return Ok(Repaired { corrected, unsettled: Vec::new() });
            }
            snapshot = None;
        }
        Ok(Repaired { corrected: 0, unsettled: ask.keys.clone() })
    }
}

impl Window {
    /// Returns the next totals after `ask.after`: one more than a page has.
    fn totals(&mut self, store: &MemoryStore, ask: &PageRequest) -> Result<Vec<(KeyBuf, i64)>> {
        let wanted = ask.keys.saturating_add(1);
        if !self.has(ask, wanted) {
            self.fetch(store, ask, wanted + store.len(ask.counter)? / WINDOWS)?;
        }
        Ok(self.totals.iter().take(wanted).cloned().collect())
    }

    /// Returns whether what was fetched before serves for this page.
    fn has(&mut self, ask: &PageRequest, wanted: usize) -> bool {
        self.pass(&ask.counter, ask.after.as_ref());
        self.counter == Some(ask.counter) && (self.whole || self.totals.len() >= wanted)
    }

    fn fetch(&mut self, store: &MemoryStore, ask: &PageRequest, size: usize) -> Result<()> {
        self.totals = store.page_unchecked(&ask.counter, ask.after.as_ref(), size)?.into();
        self.whole = self.totals.len() < size;
        self.counter = Some(ask.counter);
        self.after.clone_from(&ask.after);
        Ok(())
    }

    /// Drops the totals up to `after`. Going back, or to another counter, discards the window.
    fn pass(&mut self, counter: &CounterId, after: Option<&KeyBuf>) {
        if self.counter != Some(*counter) || self.after.as_ref() > after {
            self.counter = None;
            return;
        }
        while self.totals.front().is_some_and(|(key, _)| Some(key) <= after) {
            self.totals.pop_front();
        }
        self.after = after.cloned();
    }
}

impl Audit for MemoryAudit<'_> {
    fn identity(&mut self) -> Result<u64> {
        // A run begins: what an earlier one read of a rollup may be of other totals.
        self.rollup = None;
        Ok(self.store.identity())
    }

    fn probe(&mut self, ask: &Probe) -> Result<ProbeResult> {
        if let Writers::Unguarded(_) = self.writers {
            return Err(unguarded_writers::refuse_repairing(&ask.counter));
        }
        let empty = match self.store.schema().spec(&ask.counter)?.rollup() {
            Some(rollup) => {
                self.store.rollup_snapshot(&ask.counter, rollup)?.expected_all(None, 1)?.is_empty()
            }
            None => self.sources.is_empty(self.store, &ask.counter)?,
        };
        let totals = if empty { self.store.len(ask.counter)? as u64 } else { 0 };
        Ok(ProbeResult { empty, totals: totals.min(ask.totals) })
    }

    fn compare(&mut self, ask: &PageRequest) -> Result<PageDiff> {
        if let Some(rollup) = self.store.schema().spec(&ask.counter)?.rollup() {
            return self.compare_rollup(ask, rollup);
        }
        match &mut self.writers {
            Writers::Nobody => compare_pages(self.store, &mut self.sources, &mut self.window, ask),
            Writers::Guarded(live) => {
                live.compare(self.store, &mut self.sources, &mut self.window, ask)
            }
            Writers::Unguarded(watch) => {
                // Do not keep a window here: a total must not be older than its rows.
                let once =
                    compare_pages(self.store, &mut self.sources, &mut Window::default(), ask)?;
                watch.look_again(self.store, &mut self.sources, ask, once)
            }
        }
    }

    fn repair(&mut self, ask: &RepairRequest) -> Result<Repaired> {
        if let Some(rollup) = self.store.schema().spec(&ask.counter)?.rollup() {
            return self.repair_rollup(ask, rollup);
        }
        self.window.pass(&ask.counter, ask.keys.last());
        match &mut self.writers {
            Writers::Nobody => repair_alone(self.store, &mut self.sources, ask),
            Writers::Guarded(live) => live.repair(self.store, &mut self.sources, ask),
            Writers::Unguarded(_) => Err(unguarded_writers::refuse_repairing(&ask.counter)),
        }
    }

    /// Every store has its own identity, also a restored one. So totals are never older than a
    /// token of theirs.
    fn recall(&mut self, token: &Token) -> Result<Option<Token>> {
        Ok(Some(token.clone()))
    }

    fn keep(&mut self, _: &Keep) -> Result<Kept> {
        Ok(Kept::Here)
    }

    fn ready(&mut self, ask: &Ready) -> Result<Kept> {
        if let Writers::Unguarded(_) = &self.writers {
            return Err(unguarded_writers::refuse_repairing(&ask.counter));
        }
        self.store.set_ready(self.store.schema().position(&ask.counter)?, true);
        Ok(Kept::Here)
    }
}

/// Compares a page of rows with a page of totals.
fn compare_pages(
    store: &MemoryStore,
    sources: &mut Sources<'_>,
    window: &mut Window,
    ask: &PageRequest,
) -> Result<PageDiff> {
    let from = ask.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let recounts = sources.page(store, &ask.counter, from, ask.keys.saturating_add(1))?;
    merge(ask, recounts, window.totals(store, ask)?)
}

/// Repairs without concurrent writers. All recounts come first, so that a failing one leaves all
/// totals unchanged.
fn repair_alone(
    store: &MemoryStore,
    sources: &mut Sources<'_>,
    ask: &RepairRequest,
) -> Result<Repaired> {
    let position = store.schema().position(&ask.counter)?;
    let keys: Vec<&KeyBuf> = ask.keys.iter().collect();
    let recounts = sources.keys(store, &ask.counter, &keys)?;
    let cutoff = store.cutoff(position);
    let mut repaired = Repaired::default();
    for Recount { key, total: expected, .. } in &recounts {
        let of = CounterKey { counter: ask.counter, position, key };
        let stored = store.compare(&of, Before::Shut, (*expected, cutoff.as_ref()), true)?;
        repaired.corrected += u64::from(stored.is_some_and(|stored| stored != *expected));
    }
    Ok(repaired)
}

fn unreadable(counter: &CounterId, cause: Cause) -> Error {
    Error::Database { operation: format!("reading rows of counter {}", counter.name()), cause }
}

fn decode<K: Key>(counter: &CounterId, key: &KeyBuf) -> Result<K> {
    key.decode().map_err(|cause| Error::key(counter, key, cause))
}

impl fmt::Debug for MemoryAudit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryAudit")
            .field("sources", &self.sources.names())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Schema;

    /// 320 keys, so that a window has 20 more than a page. Each page is asked for twice, as after
    /// an error.
    #[test]
    fn a_window_serves_several_pages_and_the_last_one_serves_to_the_end() {
        const VOTES: Counter<i64> = Counter::new("votes");
        const SCHEMA: Schema = Schema::new(&[VOTES.table()]);
        let store = MemoryStore::new(&SCHEMA);
        let mut batch = Batch::new();
        (0..320).for_each(|key: i64| batch.add(VOTES, key, 1));
        store.apply(&mut batch).unwrap();
        let (mut window, mut sizes, mut read) = (Window::default(), Vec::new(), 0);
        let mut ask = PageRequest { counter: VOTES.id(), after: None, until: None, keys: 10 };
        while read < 320 {
            let page = window.totals(&store, &ask).unwrap();
            let size = window.totals.len();
            assert_eq!(window.totals(&store, &ask).unwrap(), page);
            assert_eq!((page.len(), window.totals.len()), (11.min(320 - read), size));
            sizes.push(size);
            (ask.after, read) = (page.get(9).map(|(key, _)| key.clone()), read + 10);
        }
        // A fetch, and two pages of what is left of it; the last window has the 20 last totals.
        let wanted: Vec<usize> =
            [31, 21, 11].into_iter().cycle().take(30).chain([20, 10]).collect();
        assert_eq!(sizes, wanted);
        // What is left is known to be all there is, and is not looked for again.
        batch.add(VOTES, 400, 1);
        store.apply(&mut batch).unwrap();
        assert_eq!(window.totals(&store, &ask).unwrap(), []);
    }
}
