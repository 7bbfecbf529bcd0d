//! The memory usage of a store, for reports.

use super::MemoryStore;

/// The usage of a [`MemoryStore`] in this process.
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
/// use std::{sync::Arc, time::Duration};
///
/// let store = Arc::new(MemoryStore::new());
/// let cache = Cache::builder(store.clone()).build();
/// cache.blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
/// assert_eq!(store.usage().held, 4 + 5 + 384);
/// assert_eq!(store.usage().refused, 0);
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// The entries, including removed ones that are not freed yet, in the unit of the bound: bytes or entries.
    pub held: u64,
    /// The part of `held` that is [frozen](MemoryStore::freeze).
    pub frozen: u64,
    /// The number of writes that stored nothing, since there was no room for 5 ms.
    pub refused: u64,
}

impl MemoryStore {
    /// Returns the store's usage in this process, and how often it had no room.
    ///
    /// ```
    /// use prefork_cache::stores::MemoryStore;
    ///
    /// assert_eq!(MemoryStore::new().usage().held, 0);
    /// ```
    pub fn usage(&self) -> MemoryUsage {
        let account = self.local().engine().account();
        MemoryUsage { held: account.total(), frozen: account.frozen(), refused: account.refused() }
    }
}
