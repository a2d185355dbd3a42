//! Measuring and mending beside writers that bracket their writes: exactly, key by key where a page was not left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::super::audit::{Ask, Drift, Measured, Mend, Mended, merge};
use super::super::drive::Control;
use super::{Settling, Sources, WINDOWS, Window};
use crate::counter::Def;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::store::MemoryStore;
use crate::store::memory::{Before, Lone, Reading, Shut};

pub(super) struct Bracketed<'a> {
    settling: Settling,
    /// This audit's number, for noticing hooks without brackets.
    audit: u64,
    control: Box<dyn Control + 'a>,
    /// Lives as long as the window of totals that was fetched after it began.
    reading: Option<Reading<'a>>,
    /// Suspects of the counter at hand that were measured before their pages.
    early: BTreeSet<KeyBuf>,
    /// Keys whose gate was shut in vain, and until when they are left alone.
    left_alone: BTreeMap<(usize, KeyBuf), Duration>,
}

const WAIT_LEAST: Duration = Duration::from_micros(100);
const WAIT_MOST: Duration = Duration::from_millis(2);
/// A gate is waited for this often at most, whatever the clock says.
const GATE_WAITS_MOST: u32 = 100_000;
/// Behind a gate only a prune comes between, and few do.
const PRUNES_MOST: u32 = 8;
/// Keys that are left alone are remembered up to this many.
const LEFT_ALONE_MOST: usize = 10_000;

impl<'a> Bracketed<'a> {
    pub(super) fn new(store: &MemoryStore, settling: Settling, control: Box<dyn Control + 'a>) -> Self {
        let audit = store.count_audit();
        Self { settling, audit, control, reading: None, early: BTreeSet::new(), left_alone: BTreeMap::new() }
    }

    pub(super) fn measure(
        &mut self,
        store: &'a MemoryStore,
        sources: &mut Sources<'_>,
        window: &mut Window,
        ask: &Ask,
    ) -> Result<Measured> {
        self.refuse_bare_hooks(store, &ask.counter)?;
        let position = store.layout().position(&ask.counter)?;
        if ask.after.is_none() {
            self.early.clear();
        }
        let mut measured = Measured::default();
        // Remembered when all has come well: who asks again after an error has not been told what was found.
        let mut early = BTreeSet::new();
        for key in store.due_suspects(position, self.settled(store)) {
            if !self.early.contains(&key) {
                self.look_at(store, sources, &Lone { counter: ask.counter, position, key: &key }, &mut measured)?;
                early.insert(key);
            }
        }
        let (page, touched) = self.read_page(store, sources, window, ask)?;
        let mut suspects: BTreeSet<KeyBuf> = touched.into_iter().collect();
        suspects.extend(page.drifts.into_iter().map(|drift| drift.key));
        suspects.extend(store.suspects(position, ask.after.as_ref(), page.next.as_ref()));
        suspects.retain(|key| !self.early.contains(key) && !early.contains(key));
        for key in &suspects {
            self.look_at(store, sources, &Lone { counter: ask.counter, position, key }, &mut measured)?;
        }
        self.early.append(&mut early);
        (measured.keys, measured.rows, measured.next) = (page.keys, page.rows, page.next);
        if measured.next.is_none() {
            self.reading = None;
        }
        Ok(measured)
    }

    pub(super) fn mend(&mut self, store: &MemoryStore, sources: &mut Sources<'_>, ask: &Mend) -> Result<Mended> {
        let position = store.layout().position(&ask.counter)?;
        let mut mended = Mended::default();
        for key in &ask.keys {
            self.refuse_bare_hooks(store, &ask.counter)?;
            match self.settle(store, sources, &Lone { counter: ask.counter, position, key }, true)? {
                Some(found) => mended.corrected += u64::from(found.stored != found.truth),
                None => mended.unsettled.push(key.clone()),
            }
        }
        Ok(mended)
    }

    /// What was dropped by this time is settled by now.
    fn settled(&self, store: &MemoryStore) -> Option<Duration> {
        store.now().checked_sub(self.settling.settle_time)
    }

    /// Whether a key's bracket was dropped, and what became of its rows may not be known yet.
    fn is_suspect(&self, store: &MemoryStore, of: &Lone<'_>) -> bool {
        store.is_suspect(of, self.settled(store))
    }

    fn refuse_bare_hooks(&self, store: &MemoryStore, counter: &Def) -> Result<()> {
        if !store.ran_bare_since(self.audit) {
            return Ok(());
        }
        let reason = "a hook ran without a bracket since the audit was made; where one writer does, totals are verified only, by MemoryAudit::watching";
        Err(Error::setting("audit", format!("counter {}: {reason}", counter.name())))
    }

    /// A page of rows beside totals that were read after everybody who had begun before was done; and the keys that were touched since.
    fn read_page(
        &mut self,
        store: &'a MemoryStore,
        sources: &mut Sources<'_>,
        window: &mut Window,
        ask: &Ask,
    ) -> Result<(Measured, Vec<KeyBuf>)> {
        let position = store.layout().position(&ask.counter)?;
        let wanted = ask.keys.saturating_add(1);
        for more in [store.len(ask.counter)? / WINDOWS, 0] {
            if self.reading.is_none() || !window.has(ask, wanted) || more == 0 {
                self.begin_reading(store, &ask.counter)?;
                window.fetch(store, ask, wanted + more)?;
            }
            let from = ask.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let recounts = sources.recount(store, &ask.counter, from, wanted)?;
            let page = merge(ask, recounts, window.totals.iter().take(wanted).cloned().collect())?;
            let touched = self.reading.as_ref().and_then(|reading| {
                let after = ask.after.as_ref();
                reading.touched(position, after, page.next.as_ref())
            });
            if let Some(touched) = touched {
                // Behind the notes: a bracket that is not among them was dropped before.
                if store.are_suspects_lost(self.settled(store)) {
                    let reason = "the outcome of too many writes is not known; wait for the settle time";
                    return Err(busy(&ask.counter, reason));
                }
                return Ok((page, touched));
            }
        }
        // While one reads, nobody's notes are forgotten.
        self.reading = None;
        Err(busy(&ask.counter, "too many writes began while a page was read; make pages smaller"))
    }

    /// Brackets note their keys from now on; those that began before have ended when this returns.
    fn begin_reading(&mut self, store: &'a MemoryStore, counter: &Def) -> Result<()> {
        // First: while anybody reads, no note is forgotten, and what was noted before is of totals that are fetched anew.
        self.reading = None;
        let reading = store.reading();
        for stripe in 0..store.stripe_count() {
            if !self.wait_for_quiet(store, stripe) && self.shut(store, stripe).is_none() {
                return Err(busy(counter, "a bracket was open for longer than the gate time; end it, or raise that"));
            }
        }
        self.reading = Some(reading);
        Ok(())
    }

    /// Measures one key.
    fn look_at(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        of: &Lone<'_>,
        into: &mut Measured,
    ) -> Result<()> {
        let settled = self.settled(store);
        match self.settle(store, sources, of, false)? {
            Some(found) => {
                store.clear_suspect(of, settled);
                into.drifts.extend((found.stored != found.truth).then_some(found));
            }
            None => into.unsettled.push(of.key.clone()),
        }
        Ok(())
    }

    /// Compares a key with its rows while nobody writes it, and mends it where that is wanted; none where that could not be had, or a bracket over
    /// it was dropped too short a time ago.
    fn settle(
        &mut self,
        store: &MemoryStore,
        sources: &mut Sources<'_>,
        of: &Lone<'_>,
        mend: bool,
    ) -> Result<Option<Drift>> {
        let (stripe, now) = (store.stripe_at(of), self.control.now());
        self.left_alone.retain(|_, until| *until > now);
        if self.left_alone.contains_key(&(of.position, of.key.clone())) || self.is_suspect(store, of) {
            return Ok(None);
        }
        let mut wait = WAIT_LEAST;
        for _ in 0..self.settling.tries {
            if let Some(before) = store.quiet(stripe) {
                // After the look: what was open until then may have been dropped.
                if self.is_suspect(store, of) {
                    return Ok(None);
                }
                if let Some(found) = attempt(store, sources, of, before, mend)? {
                    return Ok(Some(found));
                }
            }
            self.control.wait(wait, "a key's writers");
            wait = (wait * 2).min(WAIT_MOST);
        }
        if let Some(_shut) = self.shut(store, stripe) {
            if self.is_suspect(store, of) {
                return Ok(None);
            }
            for _ in 0..=PRUNES_MOST {
                if let Some(found) = attempt(store, sources, of, Before::Shut, mend)? {
                    return Ok(Some(found));
                }
            }
        }
        if self.left_alone.len() < LEFT_ALONE_MOST {
            self.left_alone.insert((of.position, of.key.clone()), self.control.now() + self.settling.settle_time);
        }
        Ok(None)
    }

    /// Whether no bracket was open over a stripe at some moment.
    fn wait_for_quiet(&mut self, store: &MemoryStore, stripe: usize) -> bool {
        let mut wait = WAIT_LEAST;
        for _ in 0..self.settling.tries {
            if store.quiet(stripe).is_some() {
                return true;
            }
            self.control.wait(wait, "a key's writers");
            wait = (wait * 2).min(WAIT_MOST);
        }
        store.quiet(stripe).is_some()
    }

    /// Shuts a stripe's gate and waits for the brackets that are open; none where they do not end in time, or another audit has it shut all the while.
    fn shut<'s>(&mut self, store: &'s MemoryStore, stripe: usize) -> Option<Shut<'s>> {
        let since = self.control.now();
        let mut shut = store.shut(stripe);
        for _ in 0..GATE_WAITS_MOST {
            if shut.is_some() && store.quiet(stripe).is_some() {
                return shut;
            }
            if self.control.now().saturating_sub(since) >= self.settling.gate_time {
                break;
            }
            self.control.wait(WAIT_LEAST, "a gate");
            shut = shut.or_else(|| store.shut(stripe));
        }
        None
    }
}

/// Recounts a key's rows and compares; none where a writer or a prune came between.
fn attempt(
    store: &MemoryStore,
    sources: &mut Sources<'_>,
    of: &Lone<'_>,
    before: Before,
    mend: bool,
) -> Result<Option<Drift>> {
    // The recount asks for the cut itself, later: where that is another, it is another still when the two are compared.
    let cut = store.cut(of.position);
    let recount = sources.recount_one(store, of)?;
    let stored = store.compare(of, before, (recount.total, cut.as_ref()), mend)?;
    Ok(stored.map(|stored| Drift { key: recount.key, stored, truth: recount.total, rows: recount.rows }))
}

fn busy(counter: &Def, reason: &'static str) -> Error {
    Error::Busy {
        doing: format!("measuring counter {}", counter.name()),
        reason,
        cause: "writers are in the way".into(),
    }
}
