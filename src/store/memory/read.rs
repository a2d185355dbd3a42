//! Reads of a memory store: totals, ranges and their sums, what rollup updates read, and whether a
//! counter may be read.

use std::collections::BinaryHeap;
use std::ops::Bound;

use super::MemoryStore;
use super::stripe::Stripe;
use super::table::Table;
use crate::counter::key_range::{CounterRange, KeyRange};
use crate::counter::{Counter, CounterId};
use crate::cutoff;
use crate::error::{Error, Result};
use crate::key::{AsKey, Key, KeyBuf};
use crate::locks::Ordering;
use crate::rollup_update::TotalsRequest;
use crate::store::{Store, behind, sum_overflow};

impl MemoryStore {
    /// Returns the total of one key; 0 if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownCounter`](crate::Error::UnknownCounter),
    /// [`Error::DefinitionConflict`](crate::Error::DefinitionConflict),
    /// [`Error::NotReady`](crate::Error::NotReady), and [`Error::Key`](crate::Error::Key) for a key
    /// that does not decode.
    pub fn total<K: Key>(&self, counter: Counter<K>, key: impl AsKey<K>) -> Result<i64> {
        let position = self.readable(&counter.id())?;
        let is_trusted = key.is_trusted();
        let key = KeyBuf::of::<K>(key);
        if !is_trusted {
            check_key(&counter.id(), &key)?;
        }
        Ok(self.get(position, &key))
    }

    pub(super) fn get(&self, position: usize, key: &KeyBuf) -> i64 {
        let hash = key.hash64();
        let stripe = self.stripe(self.spread(position, key, hash));
        stripe.map_or(0, |stripe| {
            stripe.lock().tables.get(position).map_or(0, |table| table.get(hash, key))
        })
    }

    /// Returns the totals of these keys, in the same order; 0 for a key without a total.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn totals_of<K: Key>(
        &self,
        counter: Counter<K>,
        keys: impl IntoIterator<Item: AsKey<K>>,
    ) -> Result<Vec<i64>> {
        Store::totals_of(&mut &*self, counter, keys)
    }

    pub(super) fn read(&self, counter: CounterId, keys: &[KeyBuf]) -> Result<Vec<i64>> {
        let position = self.readable(&counter)?;
        let total = |key: &KeyBuf| check_key(&counter, key).map(|()| self.get(position, key));
        keys.iter().map(total).collect()
    }

    /// Returns the first totals of a range, in key order, at most `limit`.
    ///
    /// It takes memory for `limit` keys. If keys have one part, it costs a scan of the counter's
    /// totals. If they have several, it costs O(log totals) a stripe plus the keys read; a range
    /// under one prefix is in one stripe.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn range<K: Key>(&self, range: CounterRange<K>, limit: usize) -> Result<Vec<(K, i64)>> {
        Store::range(&mut &*self, range, limit)
    }

    pub(super) fn read_range(
        &self,
        counter: CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        self.readable(&counter)?;
        self.range_unchecked(&counter, range, limit)
    }

    /// The next totals after a key, of a counter that need not be ready.
    pub(crate) fn page_unchecked(
        &self,
        counter: &CounterId,
        after: Option<&KeyBuf>,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        self.range_unchecked(counter, &behind(counter, after)?, limit)
    }

    /// As [`read_range`](Self::read_range), for a counter that need not be ready.
    fn range_unchecked(
        &self,
        counter: &CounterId,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(KeyBuf, i64)>> {
        let position = self.schema.position(counter)?;
        check_bounds(counter, range)?;
        let in_order = self.plans.get(position).is_some_and(|plan| plan.prefix.is_some());
        let mut smallest: BinaryHeap<(KeyBuf, i64)> = BinaryHeap::new();
        if limit > 0 {
            self.visit(position, range, |key, total| {
                if smallest.len() < limit {
                    smallest.push((key.clone(), total));
                    return true;
                }
                match smallest.peek_mut() {
                    Some(mut largest) if *key < largest.0 => {
                        *largest = (key.clone(), total);
                        true
                    }
                    // In an ordered stripe, all that follows is larger still.
                    _ => !in_order,
                }
            });
        }
        Ok(smallest.into_sorted_vec())
    }

    /// Returns the sum of the totals in a range; costs as [`range`](Self::range), without the
    /// memory.
    ///
    /// # Errors
    ///
    /// As [`Store::sum`].
    pub fn sum<K: Key>(&self, range: CounterRange<K>) -> Result<i64> {
        Store::sum(&mut &*self, range)
    }

    pub(super) fn sum_range(&self, counter: CounterId, range: &KeyRange) -> Result<i64> {
        let position = self.readable(&counter)?;
        check_bounds(&counter, range)?;
        let mut sum = 0_i128;
        self.visit(position, range, |_, total| {
            sum += i128::from(total);
            true
        });
        // Check this afterwards: a cutoff never goes back, so what it keeps now was kept all along.
        if self.plans.get(position).is_some_and(|plan| !plan.plain) {
            cutoff::check_range(&counter, range, self.cutoff(position).as_ref())?;
        }
        i64::try_from(sum).map_err(|_| sum_overflow(&counter))
    }

    /// Calls `each` with the totals of a range, stripe by stripe; `false` skips the rest of a
    /// stripe.
    pub(super) fn visit(
        &self,
        position: usize,
        range: &KeyRange,
        mut each: impl FnMut(&KeyBuf, i64) -> bool,
    ) {
        let stripes = match self.stripe_of_range(position, range) {
            Some(at) => self.stripes.get(at..=at),
            None => self.stripes.get(..),
        };
        for stripe in stripes.unwrap_or_default() {
            if let Some(table) = stripe.lock().tables.get(position) {
                table.visit(range, &mut each);
            }
        }
    }

    /// Returns the stripe that contains a whole range, if its keys share a prefix.
    fn stripe_of_range(&self, position: usize, range: &KeyRange) -> Option<usize> {
        let (plan, spec) = (self.plans.get(position)?, self.schema.counters().get(position)?);
        let shared = range.shared();
        let prefix = shared.get(..spec.id().parts().prefix_len(shared, plan.prefix?)?)?;
        Some(self.stripe_of(KeyBuf::from_bytes(prefix).hash64()))
    }

    /// Returns all totals other than 0, in key order; it holds all of them in memory.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total).
    pub fn totals<K: Key>(&self, counter: Counter<K>) -> Result<Vec<(K, i64)>> {
        Store::totals(&mut &*self, counter)
    }

    /// Returns how many totals other than 0 a counter has; it need not be ready.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total), except [`Error::NotReady`](crate::Error::NotReady).
    pub fn len(&self, counter: impl Into<CounterId>) -> Result<usize> {
        let position = self.schema.position(&counter.into())?;
        let len = |stripe: &Stripe| stripe.lock().tables.get(position).map_or(0, Table::len);
        Ok(self.stripes.iter().map(len).sum())
    }

    /// Calls `each` with every total that a rollup update requests: one key, or all keys under a
    /// child, which are in one stripe.
    pub(super) fn answer(
        &self,
        request: &TotalsRequest,
        each: &mut dyn FnMut(&KeyBuf, i64) -> Result<()>,
    ) -> Result<()> {
        let position = self.schema.position(&request.counter)?;
        let key = KeyBuf::from_bytes(request.range.shared());
        if request.counter.parts().values(&key).is_ok() {
            let total = self.get(position, &key);
            return if total == 0 { Ok(()) } else { each(&key, total) };
        }
        let mut done = Ok(());
        self.visit(position, &request.range, |key, total| {
            done = each(key, total);
            done.is_ok()
        });
        done
    }

    /// Returns whether a counter may be read: it and all counters that it sums are ready.
    ///
    /// # Errors
    ///
    /// As [`total`](Self::total), except [`Error::NotReady`](crate::Error::NotReady).
    pub fn is_ready(&self, counter: impl Into<CounterId>) -> Result<bool> {
        Ok(self.first_unready(self.schema.position(&counter.into())?)?.is_none())
    }

    /// Returns the position of a counter, if it may be read.
    fn readable(&self, counter: &CounterId) -> Result<usize> {
        let position = self.schema.position(counter)?;
        if self.unready.load(Ordering::Acquire) == 0 {
            return Ok(position);
        }
        match self.first_unready(position)? {
            None => Ok(position),
            Some(unready) => Err(Error::NotReady {
                counter: counter.name(),
                unready: unready.full_name().into_owned(),
            }),
        }
    }

    /// Returns the first counter that is not ready, of this one and all that it is computed from.
    fn first_unready(&self, position: usize) -> Result<Option<CounterId>> {
        let Some(spec) = self.schema.counters().get(position) else { return Ok(None) };
        let is_ready = |id: &CounterId| {
            let at = self.schema.position(id).ok();
            at.and_then(|at| self.ready.get(at)).is_none_or(|ready| ready.load(Ordering::Acquire))
        };
        Ok(self.schema.with_bases(&[spec.id()])?.into_iter().find(|id| !is_ready(id)))
    }
}

/// Refuses what is no key of the counter.
fn check_key(counter: &CounterId, key: &KeyBuf) -> Result<()> {
    counter.parts().check(key).map_err(|cause| Error::key(counter, key, cause))
}

/// Refuses a bound that is neither a key of the counter nor the first parts of one.
fn check_bounds(counter: &CounterId, range: &KeyRange) -> Result<()> {
    for bound in [range.start(), range.end()] {
        if let Bound::Included(prefix) | Bound::Excluded(prefix) = bound {
            counter
                .parts()
                .values_of_prefix(prefix)
                .map_err(|cause| Error::key(counter, prefix, cause))?;
        }
    }
    Ok(())
}
