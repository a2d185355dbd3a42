//! The locks and atomics of everything that threads share, named once, so that a model checker can take their place
//! (`--cfg keepcount_shuttle`, see tests/concurrency).

#[cfg(not(keepcount_shuttle))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
#[cfg(not(keepcount_shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(keepcount_shuttle)]
pub(crate) use self::checked::{Mutex, MutexGuard, RwLock};
#[cfg(keepcount_shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The checker's locks under the interface that is used here: no poisoning.
#[cfg(keepcount_shuttle)]
mod checked {
    use std::sync::{LockResult, PoisonError, TryLockError};

    pub(crate) use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            whole(self.0.lock())
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            whole(self.0.read())
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            whole(self.0.write())
        }

        pub(crate) fn get_mut(&mut self) -> &mut T {
            whole(self.0.get_mut())
        }
    }

    fn whole<G>(guard: LockResult<G>) -> G {
        guard.unwrap_or_else(PoisonError::into_inner)
    }
}
