//! What a memory store holds, for reports.

use super::MemoryStore;

/// What a [`MemoryStore`] holds in this process.
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
    /// In the unit of the bound, bytes or entries: what there is, with what was given up and is not freed yet.
    pub held: u64,
    /// How much of it is [frozen](MemoryStore::freeze).
    pub frozen: u64,
    /// How many writes have stored nothing, since there was no room for 5 ms.
    pub refused: u64,
}

impl MemoryStore {
    /// What the store holds in this process, and how often it had no room.
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
