//! Operations on many entries: one round trip per server.
//!
//! Each entry has a result of its own, since one of several servers may be down.

use std::borrow::Cow;
use std::future::Future;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, Expiry, Lifetime, Sealed};
use crate::error::{Error, Result};
use crate::store::{Op, Outcome, batch, wrong_count};

impl Cache {
    /// [`get`](Cache::get) for many keys (`&["a", "b"]`, a `Vec<String>`, ...). The results are in the order of the
    /// keys.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("one", &1, Duration::from_secs(60))?;
    /// let found: Vec<Option<i32>> = cache.blocking().get_many(&["one", "two"]).into_iter().collect::<Result<_, _>>()?;
    /// assert_eq!(found, [Some(1), None]);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[impl AsRef<str>]) -> Vec<Result<Option<T>>> {
        let found = self.get_many_raw(keys).await;
        let found = found.into_iter().zip(keys);
        found.map(|(found, key)| Ok(found?.and_then(|bytes| self.value("get_many", key.as_ref(), &bytes)))).collect()
    }

    /// [`get_raw`](Cache::get_raw) for many keys. The results are in the order of the keys.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set_raw("one", "1", Duration::from_secs(60))?;
    /// let found = cache.blocking().get_many_raw(&["one", ""]);
    /// assert_eq!(found[0].as_ref().unwrap().as_deref(), Some(&b"1"[..]));
    /// assert!(found[1].is_err(), "the empty key spoils no other");
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn get_many_raw(&self, keys: &[impl AsRef<str>]) -> Vec<Result<Option<Bytes>>> {
        let prepared = keys.iter().map(|key| self.prefix.checked_full_key(key.as_ref())).collect();
        let found = batch(prepared, |keys: Vec<Cow<'_, str>>| async move {
            let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
            self.fork_guarded(self.store()?.get_many(&keys)).await
        });
        let found = self.counted_each(found.await);
        let hits = found.iter().flatten().flatten().count();
        self.local().counters.looked_up_many(hits, found.iter().flatten().count() - hits);
        found
    }

    /// Runs operations on full keys, with one write to each server.
    pub(super) async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let outcomes = self.batch_uncounted(operations).await;
        self.counted_each(outcomes)
    }

    pub(super) async fn batch_uncounted(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        if operations.is_empty() {
            return Vec::new();
        }
        let outcomes = match self.store() {
            Ok(store) => self.fork_guarded(store.batch(operations)).await,
            Err(error) => Err(error),
        };
        let failed = |error: Error| operations.iter().map(|_| Err(error.clone())).collect();
        match outcomes {
            Ok(outcomes) if outcomes.len() == operations.len() => outcomes,
            Ok(_) => failed(wrong_count()),
            Err(error) => failed(error),
        }
    }

    /// [`set`](Cache::set) for many entries. The results are in the order of the entries.
    ///
    /// With [jitter](Expiry::jitter) each value has its own expiry, after which no read returns it. The store gets one
    /// TTL for all, and keeps the bytes until the last value has expired.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let stored = cache.blocking().set_many(&[("one", 1), ("two", 2)], Duration::from_secs(60));
    /// stored.into_iter().collect::<Result<(), _>>()?;
    /// assert_eq!(cache.blocking().get::<i32>("two")?, Some(2));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn set_many<'a, K, T, E>(
        &'a self,
        entries: &[(K, T)],
        expiry: E,
    ) -> impl Future<Output = Vec<Result<()>>> + Send + use<'a, K, T, E>
    where
        K: AsRef<str>,
        T: Serialize,
        E: Into<Expiry>,
    {
        let expiry = self.resolved(expiry.into());
        let prepare = |(key, value): &(K, T)| {
            let key = key.as_ref();
            let full_key = self.prefix.checked_full_key(key)?.into_owned();
            let Lifetime { ttl, times, .. } = expiry.begin_in_batch(self.clock())?;
            Ok((full_key, Sealed { bytes: self.encode(key, value, times)?, ttl }))
        };
        self.put_many(entries.iter().map(prepare).collect())
    }

    /// Stores values encoded by [`set_many`](Cache::set_many) under full keys.
    pub(super) async fn put_many(&self, prepared: Vec<Result<(String, Sealed)>>) -> Vec<Result<()>> {
        let stored = batch(prepared, |entries: Vec<(String, Sealed)>| async move {
            // With an expiry at a fixed time, each entry has a shorter TTL than the one before: the first is the
            // longest.
            let Some(ttl) = entries.first().map(|(_, sealed)| sealed.ttl) else { return Ok(Vec::new()) };
            let entries: Vec<(&str, Bytes)> =
                entries.iter().map(|(key, sealed)| (key.as_str(), sealed.bytes.clone())).collect();
            self.fork_guarded(self.store()?.set_many(&entries, ttl)).await
        });
        self.counted_each(stored.await)
    }

    pub(super) fn counted_each<T>(&self, results: Vec<Result<T>>) -> Vec<Result<T>> {
        results.into_iter().map(|result| self.counted(result)).collect()
    }
}
