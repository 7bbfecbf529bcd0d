//! Removing entries, and revoking the loads that are under way.
//!
//! Whoever changes the truth and then removes the entry does not want to see what a loader had read before. So a removal
//! revokes the flight of this process and deletes the lease of all processes, before it deletes the entry: the leader, which
//! looks at both after it has stored its value, then takes that back.

use super::key::lease_key;
use super::{Cache, settled};
use crate::error::Result;
use crate::store::{CacheStore, batch, wrong_count};

impl Cache {
    /// Removes an entry. Answers whether there was one.
    ///
    /// What a fetch is loading for this key at the same time is not kept, in any process on the same store: it may be what was
    /// there before the change that this delete is for. On a server that takes two requests, for the key's
    /// [lease](crate::Builder::lease) and for the entry. Out of reach are, in other processes, loads that have outlived their
    /// lease and those of [`fetch_many`](Cache::fetch_many); and everywhere, [forced](Cache::force) ones.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// assert!(cache.blocking().delete("motd")?);
    /// assert!(!cache.blocking().delete("motd")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn delete(&self, key: &str) -> Result<bool> {
        let full_key = self.counted(self.prefix.owned_key(key))?;
        let mut deleted = self.remove_each(vec![full_key]).await?;
        self.counted(deleted.pop().unwrap_or_else(|| Err(wrong_count())))
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
        self.counted_each(batch(prepared, |keys| self.remove_each(keys)).await)
    }

    /// Removes every entry of this handle's namespace; without a namespace, every entry of the store. What is being loaded
    /// meanwhile is not kept, as with [`delete`](Cache::delete); for that a server is gone through twice.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the server cannot list its keys, and the store's.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let tenant = cache.namespace("tenant");
    /// tenant.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// cache.blocking().set("motd", "good evening", Duration::from_secs(60))?;
    /// tenant.blocking().clear()?;
    /// assert!(!tenant.blocking().exists("motd")?);
    /// assert!(cache.blocking().exists("motd")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn clear(&self) -> Result<()> {
        let store = self.store()?;
        self.local().flights.revoke_all(self.prefix.as_str());
        if self.takes_leases() {
            // A server lists an entry and its lease in any order. What was loaded until now is removed by the second round;
            // what ends later finds its lease gone.
            self.answered(settled(store.clear(self.prefix.as_str())).await)?;
        }
        self.answered(settled(store.clear(self.prefix.as_str())).await)
    }

    /// Removes what is under these full keys, with their leases.
    async fn remove_each(&self, full_keys: Vec<String>) -> Result<Vec<Result<bool>>> {
        let store = self.store()?;
        full_keys.iter().for_each(|key| self.local().flights.revoke(key));
        let leases: Vec<String> =
            if self.takes_leases() { full_keys.iter().map(|key| lease_key(key)).collect() } else { Vec::new() };
        // One after the other: a batch has no order among several servers.
        let leases = delete_all(store, &leases).await?;
        let entries = delete_all(store, &full_keys).await?;
        for (lease, _) in leases.into_iter().zip(&entries).filter(|(_, entry)| entry.is_ok()) {
            if let Err(error) = lease {
                self.report(&error);
            }
        }
        Ok(entries)
    }

    /// Has nothing that is being loaded for this key be kept.
    pub(super) async fn revoke(&self, key: &str) -> Result<()> {
        let store = self.store()?;
        let full_key = self.counted(self.prefix.owned_key(key))?;
        self.local().flights.revoke(&full_key);
        if self.takes_leases() {
            self.answered(settled(store.delete(&lease_key(&full_key))).await)?;
        }
        Ok(())
    }
}

async fn delete_all(store: &dyn CacheStore, keys: &[String]) -> Result<Vec<Result<bool>>> {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let deleted = match *keys {
        [] => Vec::new(),
        [key] => vec![settled(store.delete(key)).await?],
        _ => settled(store.delete_many(&keys)).await?,
    };
    if deleted.len() == keys.len() { Ok(deleted) } else { Err(wrong_count()) }
}
