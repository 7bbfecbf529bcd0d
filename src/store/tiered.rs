//! Two stores as one: a near store in front of an authoritative far store.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{CacheStore, Kept, Op, Outcome, Ttl, When};
use crate::error::Result;
use crate::lifecycle::Refresh;
use crate::server_stats::ServerStats;

/// The default time to live of entries in the near store.
const DEFAULT_NEAR_TTL: Duration = Duration::from_secs(5);

/// A near store, usually memory, in front of a far store, which is the authoritative one.
///
/// - A read looks in the near store, then in the far one. A value from the far store is stored in the near one, for at
///   most [`near_ttl`](TieredStore::near_ttl).
/// - `set` writes to the far store, then to the near one. If either write fails, the near entry is removed.
/// - Conditional writes, counters, compare-and-set, `append` and `touch` go to the far store only, and the near entry
///   is removed.
/// - `delete` and `clear` go to both.
///
/// Errors of the near store are ignored, except in `clear` and `reconnect`, which return them. A write by another
/// process, or by this one while a read is in progress, becomes visible here when the near entry has expired: a read
/// may be outdated by up to the near time to live.
///
/// ```
/// use prefork_cache::{Cache, stores::{MemoryStore, RedisStore, TieredStore}};
/// use std::time::Duration;
///
/// let far = RedisStore::new("redis://127.0.0.1:6379")?;
/// let store = TieredStore::new(MemoryStore::new(), far).near_ttl(Duration::from_secs(1));
/// let cache = Cache::builder(store).build();
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Debug)]
pub struct TieredStore<N, F> {
    near: N,
    far: F,
    near_ttl: Duration,
}

impl<N: CacheStore, F: CacheStore> TieredStore<N, F> {
    /// Creates a store that puts `near` in front of `far`.
    ///
    /// ```
    /// use prefork_cache::stores::{self, MemoryStore, TieredStore};
    ///
    /// let store = TieredStore::new(MemoryStore::new(), stores::from_url("memcached://10.0.0.1,10.0.0.2")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn new(near: N, far: F) -> TieredStore<N, F> {
        TieredStore { near, far, near_ttl: DEFAULT_NEAR_TTL }
    }

    /// Sets the longest time to live of an entry in the near store, from a millisecond to a hundred years. Defaults to
    /// 5 s.
    ///
    /// ```
    /// use prefork_cache::stores::{MemoryStore, NullStore, TieredStore};
    /// use std::time::Duration;
    ///
    /// let store = TieredStore::new(MemoryStore::new(), NullStore::new()).near_ttl(Duration::from_millis(500));
    /// ```
    #[must_use]
    pub fn near_ttl(mut self, ttl: Duration) -> TieredStore<N, F> {
        self.near_ttl = ttl.clamp(Duration::from_millis(1), Ttl::LONGEST);
        self
    }

    /// Returns the time to live of a near entry, given that of the far entry.
    fn bounded(&self, ttl: Ttl) -> Ttl {
        match ttl {
            Ttl::Never => Ttl::After(self.near_ttl),
            Ttl::After(duration) => Ttl::After(duration.min(self.near_ttl)),
        }
    }

    async fn near_get(&self, key: &str) -> Option<Bytes> {
        self.near.get(key).await.unwrap_or(None)
    }

    async fn fill(&self, key: &str, value: Bytes) {
        // Only if there is no entry: one that was stored in the meantime is newer than this value.
        let _ = self.near.set(key, value, Ttl::After(self.near_ttl), When::IfAbsent).await;
    }

    async fn drop_near(&self, key: &str) {
        let _ = self.near.delete(key).await;
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<N: CacheStore, F: CacheStore> CacheStore for TieredStore<N, F> {
    fn name(&self) -> &str {
        "tiered"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        if let Some(value) = self.near_get(key).await {
            return Ok(Some(value));
        }
        let value = self.far.get(key).await?;
        if let Some(value) = &value {
            self.fill(key, value.clone()).await;
        }
        Ok(value)
    }

    async fn get_latest(&self, key: &str) -> Result<Option<Bytes>> {
        // The near entry is removed first. If it is written while this read is in progress, `fill` does not replace it.
        self.drop_near(key).await;
        let value = self.far.get_latest(key).await?;
        if let Some(value) = &value {
            self.fill(key, value.clone()).await;
        }
        Ok(value)
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        let written = self.far.set(key, value.clone(), ttl, when).await;
        let refreshed = when == When::Always
            && written.is_ok()
            && self.near.set(key, value, self.bounded(ttl), When::Always).await.is_ok();
        if !refreshed {
            self.drop_near(key).await;
        }
        written
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let deleted = self.far.delete(key).await;
        self.drop_near(key).await;
        deleted
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        let swapped = self.far.compare_and_set(key, expected, new, ttl).await;
        self.drop_near(key).await;
        swapped
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        let far = self.far.clear(prefix).await;
        let near = self.near.clear(prefix).await;
        far.and(near)
    }

    fn reset(&self) {
        self.near.reset();
        self.far.reset();
    }

    async fn reconnect(&self) -> Result<()> {
        let near = self.near.reconnect().await;
        self.far.reconnect().await.and(near)
    }

    fn is_shared(&self) -> bool {
        self.far.is_shared()
    }

    fn refresh(&self) -> Refresh {
        Refresh::Tiered { near: self.near.refresh().into(), far: self.far.refresh().into() }
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        let touched = self.far.touch(key, ttl).await;
        self.drop_near(key).await;
        touched
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        let counted = self.far.increment(key, by, ttl).await;
        self.drop_near(key).await;
        counted
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        self.far.ttl(key).await
    }

    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        let appended = self.far.append(key, value, ttl).await;
        self.drop_near(key).await;
        appended
    }

    fn kept(&self, key: &str) -> Option<Kept> {
        self.near.kept(key)
    }

    /// Freezes both stores. A frozen entry of the near store keeps its time to live.
    fn freeze(&self) -> bool {
        let near = self.near.freeze();
        self.far.freeze() || near
    }

    /// Carries out the batch on the far store. The near entries are removed before it, and those that it writes after
    /// it.
    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let keys: Vec<&str> = operations.iter().map(Op::key).collect();
        let _ = self.near.delete_many(&keys).await;
        let outcomes = self.far.batch(operations).await;
        let written: Vec<&str> = operations.iter().filter(|operation| !operation.is_read()).map(Op::key).collect();
        let _ = self.near.delete_many(&written).await;
        for (operation, outcome) in operations.iter().zip(&outcomes) {
            if let (Op::Get { key }, Ok(Outcome::Value(Some(value)))) = (operation, outcome)
                && !written.contains(key)
            {
                self.fill(key, value.clone()).await;
            }
        }
        outcomes
    }

    fn servers(&self) -> Vec<ServerStats> {
        [self.near.servers(), self.far.servers()].concat()
    }

    /// Returns an identity of its own, not the far store's: a value that is loaded through one pair is not in the near
    /// store of another.
    fn identity(&self) -> Option<usize> {
        Some(std::ptr::from_ref(self).addr())
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        let mut results = self.near.get_many(keys).await;
        let missing: Vec<usize> = (0..keys.len()).filter(|&index| !matches!(results[index], Ok(Some(_)))).collect();
        if missing.is_empty() {
            return results;
        }
        let missing_keys: Vec<&str> = missing.iter().map(|&index| keys[index]).collect();
        for (&index, found) in missing.iter().zip(self.far.get_many(&missing_keys).await) {
            if let Ok(Some(value)) = &found {
                self.fill(keys[index], value.clone()).await;
            }
            results[index] = found;
        }
        results
    }

    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        let written = self.far.set_many(entries, ttl).await;
        let (stored, failed): (Vec<_>, Vec<_>) = entries.iter().zip(&written).partition(|(_, written)| written.is_ok());
        let stored: Vec<(&str, Bytes)> = stored.into_iter().map(|(entry, _)| entry.clone()).collect();
        let refreshed = self.near.set_many(&stored, self.bounded(ttl)).await;
        let unrefreshed = stored.iter().zip(&refreshed).filter(|(_, refreshed)| refreshed.is_err());
        let stale: Vec<&str> =
            failed.iter().map(|(entry, _)| entry.0).chain(unrefreshed.map(|(entry, _)| entry.0)).collect();
        let _ = self.near.delete_many(&stale).await;
        written
    }

    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let deleted = self.far.delete_many(keys).await;
        let _ = self.near.delete_many(keys).await;
        deleted
    }
}
