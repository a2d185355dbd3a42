//! Records: what a row adds to which totals, stated once, and the hooks that use it.

use std::any::type_name;
use std::marker::PhantomData;

use crate::batch::{Batch, Driver};
use crate::counter::{Counter, CounterId};
use crate::key::{AsKey, Key};

/// A row that counts.
///
/// `tally` states what it adds, and both the hooks and the recount use it.
///
/// A condition is an `if`, a sum is an amount, two parents are two lines. `tally` must be pure: it
/// depends on the row alone, not on a clock, a setting or another row. Each counter belongs to one
/// record type, which lists it. If a `tally` adds to a counter that its record does not list, every
/// store refuses the batch ([`Error::Undeclared`](crate::Error::Undeclared)).
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, CounterId, Record, Tally};
///
/// const SHOW_VOTES: Counter<i64> = Counter::new("show.votes");
/// const USER_VOTES: Counter<String> = Counter::new("user.votes");
///
/// struct Vote {
///     show: i64,
///     user: Option<String>,
///     spam: bool,
/// }
///
/// impl Record for Vote {
///     const COUNTERS: &'static [CounterId] = &[SHOW_VOTES.id(), USER_VOTES.id()];
///
///     fn tally(&self, to: &mut Tally<'_>) {
///         if !self.spam {
///             to.add(SHOW_VOTES, self.show, 1);
///             if let Some(user) = &self.user {
///                 to.add(USER_VOTES, user, 1);
///             }
///         }
///     }
/// }
/// ```
pub trait Record {
    /// The counters that rows of this type add to.
    const COUNTERS: &'static [CounterId];

    /// Adds what this row counts for, and nothing else.
    fn tally(&self, to: &mut Tally<'_>);
}

impl<R: Record + ?Sized> Record for &R {
    const COUNTERS: &'static [CounterId] = R::COUNTERS;

    fn tally(&self, to: &mut Tally<'_>) {
        (**self).tally(to);
    }
}

impl<R: Record> Record for Option<R> {
    const COUNTERS: &'static [CounterId] = R::COUNTERS;

    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(row) = self {
            row.tally(to);
        }
    }
}

impl<R: Record> Record for [R] {
    const COUNTERS: &'static [CounterId] = R::COUNTERS;

    fn tally(&self, to: &mut Tally<'_>) {
        for row in self {
            row.tally(to);
        }
    }
}

impl<R: Record> Record for Vec<R> {
    const COUNTERS: &'static [CounterId] = R::COUNTERS;

    fn tally(&self, to: &mut Tally<'_>) {
        self.as_slice().tally(to);
    }
}

/// The receiver of a row's amounts.
#[derive(Debug)]
pub struct Tally<'a> {
    batch: &'a mut Batch,
    sign: i128,
    by: &'static Driver,
}

/// The one driver of a record type.
struct DriverOf<R: ?Sized>(PhantomData<R>);

impl<R: Record + ?Sized> DriverOf<R> {
    const DRIVER: &'static Driver = &Driver { counters: R::COUNTERS, name: type_name::<R> };
}

impl Tally<'_> {
    /// Adds `amount` to the total of `key`.
    #[inline]
    pub fn add<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, amount: i64) {
        self.batch.add_driven(counter, key, self.sign * i128::from(amount), self.by);
    }
}

/// The hooks. Call each next to the statement that writes the row, with the row as that statement
/// saw it.
impl Batch {
    /// Counts a row that was inserted.
    #[inline]
    pub fn insert<R: Record + ?Sized>(&mut self, row: &R) {
        row.tally(&mut Tally { batch: self, sign: 1, by: DriverOf::<R>::DRIVER });
    }

    /// Counts a row that was deleted.
    ///
    /// `row` must be what the delete itself removed (`DELETE .. RETURNING`), never an earlier read:
    /// if two connections delete the same row, one of them removes nothing and must count nothing.
    #[inline]
    pub fn delete<R: Record + ?Sized>(&mut self, row: &R) {
        row.tally(&mut Tally { batch: self, sign: -1, by: DriverOf::<R>::DRIVER });
    }

    /// Counts a row that changed.
    ///
    /// `old` must be read under the lock that the update takes (`SELECT .. FOR UPDATE`, or after
    /// `BEGIN IMMEDIATE`).
    #[inline]
    pub fn update<R: Record + ?Sized>(&mut self, old: &R, new: &R) {
        self.delete(old);
        self.insert(new);
    }
}
