//! The one lock of this crate.
//!
//! A `std::sync::Mutex` that shrugs off poisoning (what it guards is valid between any two statements) and that a test can
//! hold at a chosen moment. It lives only in values that belong to a generation, see
//! [`ProcessLocal`](crate::lifecycle::ProcessLocal): a child never meets one that a vanished thread has locked.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(crate) struct Lock<T> {
    #[cfg(feature = "__injection")]
    name: &'static str,
    mutex: Mutex<T>,
}

impl<T> Lock<T> {
    /// `name` is what a fork test calls the lock by.
    #[cfg_attr(not(feature = "__injection"), expect(unused_variables))]
    pub(crate) const fn new(name: &'static str, value: T) -> Lock<T> {
        Lock {
            #[cfg(feature = "__injection")]
            name,
            mutex: Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(feature = "__injection")]
        crate::injection::reach(self.name);
        guard
    }
}
