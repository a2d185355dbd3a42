//! The locks and atomics of everything that threads share, named in one place, so that a model
//! checker can replace them (`--cfg keepcount_shuttle`, see tests/concurrency).

#[cfg(not(keepcount_shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(keepcount_shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(keepcount_shuttle))]
pub(crate) use std::thread::{ThreadId, current};

#[cfg(keepcount_shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(keepcount_shuttle)]
pub(crate) use shuttle::thread::{ThreadId, current};
#[cfg(keepcount_shuttle)]
pub(crate) use shuttle_parking_lot::{Mutex, MutexGuard, RwLock};
