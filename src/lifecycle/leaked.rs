//! A pointer to a value that lives as long as the process and its children.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The value is never freed, so it can be read at any time, in a child too. A fork finds the old or the new pointer.
pub(crate) struct Leaked<T: 'static>(AtomicPtr<T>);

impl<T: Sync> Leaked<T> {
    pub(crate) fn new(value: Option<&'static T>) -> Leaked<T> {
        Leaked(AtomicPtr::new(value.map_or(ptr::null_mut(), |value| ptr::from_ref(value).cast_mut())))
    }

    #[inline]
    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: null, or made from a `'static` reference; nothing writes through the pointer.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn set(&self, value: &'static T) {
        self.0.store(ptr::from_ref(value).cast_mut(), Ordering::Release);
    }
}

impl<T> fmt::Debug for Leaked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaked").finish_non_exhaustive()
    }
}
