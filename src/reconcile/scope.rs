//! The counters of a run in the order in which they are compared, and how far the run has come in
//! them.

use std::time::Duration;

use super::report::CounterReport;
use super::token::Token;
use crate::counter::CounterId;
use crate::error::Result;
use crate::key::KeyBuf;
use crate::schema::Schema;

/// The failure of a counter that an earlier leg left out; only that leg's report has the reason.
const LEFT_OUT_BEFORE: &str =
    "it was left out by an earlier leg of this run, whose report says why";

/// The counters of a run: those before the current one are done.
#[derive(Debug)]
pub(super) struct Scope {
    /// By level, then by name: a rollup is compared with the stored totals of its base.
    counters: Vec<ScopedCounter>,
    /// Their positions among the schema's counters by name, by which a token lists them.
    positions: Vec<u16>,
    /// How many of them, at the front, are not rollups.
    driven_by_rows: usize,
    at: usize,
    /// How far the current counter is compared.
    pub(super) place: Place,
}

/// One counter of a run.
#[derive(Debug)]
pub(super) struct ScopedCounter {
    /// What this run has found.
    pub(super) report: CounterReport,
    /// Whether the caller named it: then it must have a source.
    is_named: bool,
    /// The indices of all that it sums.
    below: Vec<usize>,
    /// Whether it is done and was not clean, in this run or in those that it resumes.
    is_unclean: bool,
    /// When its first page was handed out, if by this run.
    pub(super) begun: Option<Duration>,
    /// Keys that this run is expected to compare.
    pub(super) expected: Option<u64>,
}

/// A place within a counter; the default is before its first key.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The last key that is done.
    pub(super) after: Option<KeyBuf>,
    /// Whether the runs that this one resumes found drift before it.
    is_dirty: bool,
    /// Whether they skipped keys before it.
    is_unsettled: bool,
    /// Orphans that were repaired since the source was last probed.
    pub(super) orphans: u64,
}

impl Scope {
    /// Returns the scope of a run over `wanted`, of which the caller names some.
    pub(super) fn new(schema: &Schema, wanted: &[CounterId], named: &[CounterId]) -> Result<Self> {
        let all = schema.by_name();
        let mut ids: Vec<CounterId> =
            all.iter().filter(|id| wanted.contains(id)).copied().collect();
        ids.sort_by_key(|id| schema.level(id)); // stable: by name within a level
        let index_in = |list: &[CounterId], id: &CounterId| list.iter().position(|one| one == id);
        let scoped = |id: &CounterId| {
            let mut sums = schema.with_bases(&[*id])?;
            sums.retain(|below| below != id);
            Ok(ScopedCounter {
                is_named: named.contains(id),
                below: sums.iter().filter_map(|below| index_in(&ids, below)).collect(),
                is_unclean: false,
                begun: None,
                expected: None,
                report: CounterReport::new(*id, sums),
            })
        };
        let position = |id: &CounterId| index_in(&all, id).and_then(|at| u16::try_from(at).ok());
        Ok(Self {
            counters: ids.iter().map(scoped).collect::<Result<_>>()?,
            positions: ids.iter().filter_map(position).collect(),
            driven_by_rows: ids.iter().take_while(|id| schema.level(id) == 0).count(),
            at: 0,
            place: Place::default(),
        })
    }

    pub(super) const fn len(&self) -> usize {
        self.counters.len()
    }

    /// Returns the index of the current counter, which is also how many are done.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) const fn is_done(&self) -> bool {
        self.at >= self.counters.len()
    }

    pub(super) const fn is_driven_by_rows(&self, at: usize) -> bool {
        at < self.driven_by_rows
    }

    pub(super) fn id(&self, at: usize) -> Option<CounterId> {
        self.counters.get(at).map(|counter| counter.report.counter)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut ScopedCounter> {
        self.counters.get_mut(at)
    }

    pub(super) fn current(&self) -> Option<&ScopedCounter> {
        self.counters.get(self.at)
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut ScopedCounter> {
        self.counters.get_mut(self.at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ScopedCounter> {
        self.counters.iter()
    }

    pub(super) fn reports(&self) -> impl Iterator<Item = &CounterReport> {
        self.counters.iter().map(|counter| &counter.report)
    }

    /// Sets about how many keys of a counter will be compared; ignores one that is not in scope.
    pub(super) fn expect(&mut self, id: &CounterId, keys: u64) {
        let known = self.counters.iter_mut().find(|counter| counter.report.counter == *id);
        if let Some(counter) = known {
            counter.expected = Some(keys);
        }
    }

    /// Returns whether a counter may lack a source: the caller does not name it, and another
    /// counter is checked.
    pub(super) fn may_lack_source(&self, at: usize) -> bool {
        let mut others = self.reports().enumerate().filter(|(other, _)| *other != at);
        self.counters.get(at).is_some_and(|counter| !counter.is_named)
            && others.any(|(_, report)| !report.unchecked)
    }

    /// Returns whether drift was found in the current counter, by this run or those that it
    /// resumes.
    pub(super) fn is_dirty(&self) -> bool {
        self.place.is_dirty || self.current().is_some_and(|counter| !counter.report.is_clean())
    }

    /// Returns whether keys of the current counter were skipped, by this run or those that it
    /// resumes.
    pub(super) fn is_unsettled(&self) -> bool {
        self.place.is_unsettled
            || self.current().is_some_and(|counter| counter.report.unsettled > 0)
    }

    /// Takes over from a token which counters the caller named.
    pub(super) fn name(&mut self, token: &Token) {
        for (at, counter) in self.counters.iter_mut().enumerate() {
            counter.is_named = is_in(&token.named, at);
        }
    }

    /// Checks that a token is of these counters, and that its keys are keys of its counter; returns
    /// what is wrong with it.
    pub(super) fn check(&self, token: &Token) -> std::result::Result<(), &'static str> {
        if token.scope != self.positions {
            return Err("its counters are not those of such a run");
        }
        let Some(id) = self.id(usize::from(token.at)) else {
            return Err("its position is after its last counter");
        };
        if token.keys().any(|key| id.parts().values(key).is_err()) {
            return Err("its position is not a key of its counter");
        }
        Ok(())
    }

    /// Continues from a token's place.
    pub(super) fn go_to(&mut self, token: &Token) {
        self.back_to(usize::from(token.at));
        self.place = Place {
            after: token.after.clone(),
            is_dirty: token.dirty,
            is_unsettled: token.unsettled,
            orphans: 0,
        };
        for (at, counter) in self.counters.iter_mut().enumerate() {
            counter.is_unclean = is_in(&token.unclean, at);
            if is_in(&token.failed, at) {
                counter.report.failure.get_or_insert_with(|| LEFT_OUT_BEFORE.to_owned());
            }
            counter.report.unchecked |= is_in(&token.unchecked, at);
        }
    }

    /// Goes back to the first key of a counter, as if nothing of it or of later counters were done.
    pub(super) fn back_to(&mut self, at: usize) {
        (self.at, self.place) = (at, Place::default());
        for counter in self.counters.iter_mut().skip(at) {
            let report = &mut counter.report;
            (report.complete, report.clean) = (false, false);
            // It is compared again.
            (report.failure, report.unchecked) = (None, false);
            counter.is_unclean = false;
        }
    }

    /// Calls nothing clean that is done: nothing confirms that it holds for the totals as they are
    /// now.
    pub(super) fn disown(&mut self) {
        self.place.is_dirty |= self.place.after.is_some();
        self.counters.iter_mut().take(self.at).for_each(|counter| counter.is_unclean = true);
        self.counters.iter_mut().for_each(|counter| counter.report.clean = false);
    }

    /// Ends the current counter. If it was compared `whole`, it is complete, and clean if it and
    /// all that it sums are; if not, what sums it is not known to be clean either.
    pub(super) fn close(&mut self, whole: bool) {
        let is_clean = !self.is_dirty();
        let is_unclean = |below: &usize| self.counters.get(*below).is_none_or(|it| it.is_unclean);
        let over_clean =
            self.current().is_some_and(|counter| !counter.below.iter().any(is_unclean));
        if let Some(counter) = self.current_mut() {
            let whole = whole && !counter.report.is_left_out();
            if whole {
                (counter.report.complete, counter.report.clean) = (true, is_clean && over_clean);
            }
            counter.is_unclean = !(whole && is_clean);
        }
        (self.at, self.place) = (self.at + 1, Place::default());
    }

    /// Ends the counters that were left out before their first page, up to one that was not.
    pub(super) fn skip_left_out(&mut self) {
        while self.current().is_some_and(|counter| counter.report.is_left_out()) {
            self.close(false);
        }
    }

    /// Returns the counters, as a token lists them.
    pub(super) fn positions(&self) -> Vec<u16> {
        self.positions.clone()
    }

    /// Returns the indices of counters that the caller named, as a token lists them.
    pub(super) fn named(&self) -> Vec<u16> {
        indices(&self.counters, |counter| counter.is_named)
    }

    /// Returns the indices of counters that are done and were not clean, as a token lists them.
    pub(super) fn unclean(&self) -> Vec<u16> {
        indices(&self.counters, |counter| counter.is_unclean)
    }

    /// Returns the indices of counters that are done and of which a report says this, as a token
    /// lists them.
    pub(super) fn reported(&self, wanted: impl Fn(&CounterReport) -> bool) -> Vec<u16> {
        let done = self.counters.get(..self.at).unwrap_or_default();
        indices(done, |counter| wanted(&counter.report))
    }
}

fn indices(counters: &[ScopedCounter], wanted: impl Fn(&ScopedCounter) -> bool) -> Vec<u16> {
    let wanted = counters.iter().enumerate().filter(|(_, counter)| wanted(counter));
    wanted.filter_map(|(at, _)| u16::try_from(at).ok()).collect()
}

/// Returns whether a list of a token has this position of the scope.
fn is_in(list: &[u16], at: usize) -> bool {
    list.iter().any(|known| usize::from(*known) == at)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Counter;
    use crate::reconcile::Mode;

    #[test]
    fn token_of_other_counters_or_of_a_place_that_is_not_theirs_is_refused() {
        const A: Counter<i64> = Counter::new("a");
        const B: Counter<String> = Counter::new("b");
        const SCHEMA: Schema = Schema::new(&[A.table(), B.table()]);
        let scope = Scope::new(&SCHEMA, &[A.id(), B.id()], &[]).unwrap();
        let number = KeyBuf::of::<i64>(7);
        let token = |counters: &[u16], at: u16, after: &KeyBuf| Token {
            mode: Mode::Verify,
            force: false,
            page: 0,
            samples: 20,
            schema: SCHEMA.fingerprint(),
            identity: 1,
            run: 1,
            scope: counters.to_vec(),
            at,
            unclean: Vec::new(),
            failed: Vec::new(),
            unchecked: Vec::new(),
            named: Vec::new(),
            after: Some(after.clone()),
            part: None,
            dirty: false,
            unsettled: false,
        };
        assert_eq!(scope.check(&token(&[0, 1], 0, &number)), Ok(()));
        assert_eq!(scope.check(&token(&[0, 1], 1, &KeyBuf::of::<String>("seven"))), Ok(()));
        for (token, reason) in [
            (token(&[0], 0, &number), "its counters are not those of such a run"),
            (token(&[1, 0], 0, &number), "its counters are not those of such a run"),
            (token(&[0, 1], 2, &number), "its position is after its last counter"),
            (token(&[0, 1], 0, &KeyBuf::of::<i32>(7)), "its position is not a key of its counter"),
        ] {
            assert_eq!(scope.check(&token), Err(reason));
        }
    }
}
