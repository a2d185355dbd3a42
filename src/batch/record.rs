//! Records: what a row adds to which totals, stated once, and the hooks that use it.

use std::any::type_name;
use std::marker::PhantomData;

use super::{Batch, Driver};
use crate::counter::Counter;
use crate::key::{AsKey, Key};

/// A row that counts.
///
/// `tally` states what it adds, and both the hooks and the recount use it.
///
/// A condition is an `if`, a sum is an amount, two parents are two lines. `tally` must be pure: it
/// depends on the row alone, not on a clock, a setting or another row.
///
/// Each counter belongs to one record type, so that its rows can be recounted. If the tallies of
/// two types add to one counter in one batch, every store refuses that batch
/// ([`Error::TwoRecords`](crate::Error::TwoRecords)). A reference, an `Option`, a slice and a `Vec`
/// count as the type inside, and so does a record that passes on another's tally by
/// [`Tally::record`]. The types that one generic type makes count as one.
///
/// # Examples
///
/// ```
/// use keepcount::{Counter, Record, Tally};
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
    /// Adds what this row counts for, and nothing else.
    fn tally(&self, to: &mut Tally<'_>);
}

impl<R: Record + ?Sized> Record for &R {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(*self);
    }
}

impl<R: Record> Record for Option<R> {
    fn tally(&self, to: &mut Tally<'_>) {
        if let Some(row) = self {
            to.record(row);
        }
    }
}

impl<R: Record> Record for [R] {
    fn tally(&self, to: &mut Tally<'_>) {
        for row in self {
            to.record(row);
        }
    }
}

impl<R: Record> Record for Vec<R> {
    fn tally(&self, to: &mut Tally<'_>) {
        to.record(self.as_slice());
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
    const DRIVER: &'static Driver = &Driver { name: type_name::<R> };
}

impl Tally<'_> {
    /// Adds `amount` to the total of `key`.
    #[inline]
    pub fn add<K: Key>(&mut self, counter: Counter<K>, key: impl AsKey<K>, amount: i64) {
        self.batch.add_driven(counter, key, self.sign * i128::from(amount), self.by);
    }

    /// Adds what `row` counts for, as a record of its own type.
    ///
    /// Use it where one record stands for another: several types for the rows of one table, or an
    /// enum of rows.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::{Batch, MemoryStore, Record, Tally};
    ///
    /// keepcount::counters! { SCHEMA { SHOW_VOTES: i64 = "show.votes"; } }
    ///
    /// struct Vote(i64);
    /// # impl Record for Vote {
    /// #     fn tally(&self, to: &mut Tally<'_>) { to.add(SHOW_VOTES, self.0, 1); }
    /// # }
    /// /// A vote as the queue delivers it.
    /// struct Delivered {
    ///     vote: Vote,
    ///     _at: i64,
    /// }
    ///
    /// impl Record for Delivered {
    ///     fn tally(&self, to: &mut Tally<'_>) {
    ///         to.record(&self.vote);
    ///     }
    /// }
    ///
    /// let store = MemoryStore::new(&SCHEMA);
    /// let mut batch = Batch::new();
    /// batch.insert(&Vote(7));
    /// batch.insert(&Delivered { vote: Vote(7), _at: 0 });
    /// store.apply(&mut batch)?;
    /// assert_eq!(store.total(SHOW_VOTES, 7)?, 2);
    /// # Ok::<(), keepcount::Error>(())
    /// ```
    #[inline]
    pub fn record<R: Record + ?Sized>(&mut self, row: &R) {
        row.tally(&mut Tally { batch: self.batch, sign: self.sign, by: DriverOf::<R>::DRIVER });
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
