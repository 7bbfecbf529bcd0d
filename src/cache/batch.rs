//! Many entries at once: one round trip per server.
//!
//! Each entry has its own result, since one of several servers may be down.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, Expiry, settled};
use crate::error::Result;
use crate::store::batch;

impl Cache {
    /// [`get`](Cache::get) for many keys, in their order.
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
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[&str]) -> Vec<Result<Option<T>>> {
        let found = self.get_many_raw(keys).await;
        found.into_iter().map(|found| Ok(found?.and_then(|bytes| self.decode(&bytes)))).collect()
    }

    /// [`get_raw`](Cache::get_raw) for many keys, in their order.
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
    pub async fn get_many_raw(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        let prepared = keys.iter().map(|key| self.prefix.owned_key(key)).collect();
        let found = batch(prepared, |keys: Vec<String>| async move {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            settled(self.store()?.get_many(&keys)).await
        });
        let found = self.counted_each(found.await);
        for found in found.iter().flatten() {
            self.local().counters.looked_up(found.is_some());
        }
        found
    }

    /// [`set`](Cache::set) for many entries, in their order.
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
    pub fn set_many<'a, T, E>(
        &'a self,
        entries: &'a [(&'a str, T)],
        expiry: E,
    ) -> impl Future<Output = Vec<Result<()>>> + Send + use<'a, T, E>
    where
        T: Serialize,
        E: Into<Expiry>,
    {
        let ttl = expiry.into().ttl();
        let prepare = |(key, value): &(&'a str, T)| Ok((self.prefix.owned_key(key)?, self.encode(key, value)?));
        let prepared: Vec<Result<(String, Bytes)>> = entries.iter().map(prepare).collect();
        async move {
            let stored = batch(prepared, |entries: Vec<(String, Bytes)>| async move {
                let entries: Vec<(&str, Bytes)> =
                    entries.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
                settled(self.store()?.set_many(&entries, ttl)).await
            });
            self.counted_each(stored.await)
        }
    }

    /// [`delete`](Cache::delete) for many keys, in their order. A key that is given twice is deleted once.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("one", &1, Duration::from_secs(60))?;
    /// let deleted: Vec<bool> = cache.blocking().delete_many(&["one", "two"]).into_iter().collect::<Result<_, _>>()?;
    /// assert_eq!(deleted, [true, false]);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let prepared = keys.iter().map(|key| self.prefix.owned_key(key)).collect();
        let deleted = batch(prepared, |keys: Vec<String>| async move {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            settled(self.store()?.delete_many(&keys)).await
        });
        self.counted_each(deleted.await)
    }

    fn counted_each<T>(&self, results: Vec<Result<T>>) -> Vec<Result<T>> {
        results.into_iter().map(|result| self.counted(result)).collect()
    }
}
