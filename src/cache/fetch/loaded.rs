//! What a loader that chooses the expiry returns.

use crate::cache::Expiry;

/// What the loader of [`fetch_loaded`](crate::Cache::fetch_loaded) returns: a value, and how long it serves, if at all.
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
    /// A value to be stored.
    pub fn new(value: T, expiry: impl Into<Expiry>) -> Loaded<T> {
        Loaded { value, expiry: Some(expiry.into()) }
    }

    /// A value that is not to be stored: for its caller, and for those who wait for this load in the same process.
    pub fn uncached(value: T) -> Loaded<T> {
        Loaded { value, expiry: None }
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Loaded<U> {
        Loaded { value: change(self.value), expiry: self.expiry }
    }

    /// How long it serves; `None` if it is not to be stored.
    pub fn expiry(&self) -> Option<Expiry> {
        self.expiry
    }
}
