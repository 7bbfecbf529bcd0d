//! Counters: stored as decimal strings, not as typed values, so that other programs can read and change them.

use super::{Cache, Expiry, KeyBuffer};
use crate::error::Result;
use crate::store::{counter_overflow, read_counter};

impl Cache {
    /// Adds to a counter and returns the sum. A missing counter starts from 0 and lives for `expiry`; an existing one
    /// keeps its remaining time.
    ///
    /// The range from 0 to [`i64::MAX`] works the same on every store. On Memcached a counter does not go below 0.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotANumber`](crate::ErrorKind::NotANumber) if the entry is not a counter or the sum is out of
    /// range, and the store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert_eq!(cache.blocking().increment("visits", 2, Duration::from_secs(60))?, 2);
    /// assert_eq!(cache.blocking().decrement("visits", 1, Duration::from_secs(60))?, 1);
    /// assert_eq!(cache.blocking().counter("visits")?, Some(1));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn increment(&self, key: &str, by: i64, expiry: impl Into<Expiry>) -> Result<i64> {
        let ttl = self.counted(self.begin(expiry.into()))?.raw_ttl;
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.increment(key, by, ttl)).await)
    }

    /// Subtracts from a counter and returns the difference, otherwise like [`increment`](Cache::increment).
    ///
    /// # Errors
    ///
    /// As [`increment`](Cache::increment).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().increment("seats", 10, Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().decrement("seats", 3, Duration::from_secs(60))?, 7);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn decrement(&self, key: &str, by: i64, expiry: impl Into<Expiry>) -> Result<i64> {
        let by = self.counted(by.checked_neg().ok_or_else(|| counter_overflow(key, by)))?;
        self.increment(key, by, expiry).await
    }

    /// Returns the value of a counter.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotANumber`](crate::ErrorKind::NotANumber) if the entry is not a counter, and the store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert_eq!(cache.blocking().counter("visits")?, None);
    /// cache.blocking().increment("visits", 1, Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().counter("visits")?, Some(1));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn counter(&self, key: &str) -> Result<Option<i64>> {
        let found = self.get_raw(key).await?;
        self.counted(found.map(|text| read_counter(key, &text)).transpose())
    }
}
