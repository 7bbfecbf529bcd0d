//! The result of a loader that chooses the expiry.

use crate::cache::Expiry;

/// The result of a loader of [`fetch_loaded`](crate::Cache::fetch_loaded): a value and its expiry, if it is to be
/// stored.
///
/// ```
/// use prefork_cache::{Expiry, Loaded};
/// use std::time::Duration;
///
/// let page = Loaded::new("hello", Duration::from_secs(60));
/// let partial = Loaded::uncached("half a page");
/// assert_eq!(page.expiry(), Some(Expiry::after(Duration::from_secs(60))));
/// assert_eq!(partial.expiry(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Loaded<T> {
    pub(super) value: T,
    pub(super) expiry: Option<Expiry>,
}

impl<T> Loaded<T> {
    /// Returns a value to be stored.
    pub fn new(value: T, expiry: impl Into<Expiry>) -> Loaded<T> {
        Loaded { value, expiry: Some(expiry.into()) }
    }

    /// Returns a value that is not stored. Its caller gets it, and callers in the same process that wait for this load.
    pub fn uncached(value: T) -> Loaded<T> {
        Loaded { value, expiry: None }
    }

    /// Returns the value.
    pub fn value(&self) -> &T {
        &self.value
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Loaded<U> {
        Loaded { value: change(self.value), expiry: self.expiry }
    }

    /// Returns the expiry, or `None` if the value is not to be stored.
    pub fn expiry(&self) -> Option<Expiry> {
        self.expiry
    }
}
