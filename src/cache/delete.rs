//! Removing entries, and revoking the loads that are under way.
//!
//! A caller that changes the truth and then removes the entry does not want to see what a loader had read before. So a
//! removal revokes the flights of this process, and sends in one write: a mark in the place of the lease, if there is
//! one, and then the delete of the entry. A loader that finds either does not store its value. One of this process that
//! is already storing is waited for: it removes the value again. The entry is on the same server as its lease, and its
//! operations in order; where a server cannot store and end a lease in one, its store waits for what is between the
//! two, and deletes behind it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::fetch::{DELETED, Flight, MARK_TTL};
use super::{Cache, wait_clock};
use crate::error::Result;
use crate::store::{Op, When, batch, lease_key, wrong_count};

impl Cache {
    /// Removes an entry. Returns whether there was one.
    ///
    /// What a fetch is loading for this key at the same time is not stored, in any process on the same store: it may be
    /// what was there before the change that this delete is for. On a server that takes one more command in the same
    /// write, for the key's [lease](crate::Builder::lease), and on Memcached a look at a second key. Memcached cannot
    /// store one entry on the condition of another: a delete that meets a load just as it is stored waits there until
    /// it is, about a round trip and at most the store's timeout, and then deletes. Out of reach are, in other
    /// processes, loads without a lease: where leases are turned off, and where an account may not run the scripts that
    /// they need; and everywhere, [forced](Cache::force) ones.
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
        let full_key = self.counted(self.prefix.key_among_others(key))?;
        let mut deleted = self.remove_each("delete", vec![full_key]).await?;
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
    pub async fn delete_many(&self, keys: &[impl AsRef<str>]) -> Vec<Result<bool>> {
        let prepared = keys.iter().map(|key| self.prefix.key_among_others(key.as_ref())).collect();
        self.counted_each(batch(prepared, |keys| self.remove_each("delete_many", keys)).await)
    }

    /// Removes every entry of this handle's [namespace](Cache::namespace) and of those inside of it; without a namespace,
    /// every entry of the store. What is being
    /// loaded meanwhile is not kept, as with [`delete`](Cache::delete); for that a server is gone through twice. What
    /// another process stores on Memcached at that very moment may be seen for about a round trip, until it is removed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where the server cannot list its keys, and the
    /// store's.
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
        let prefix = self.counted(self.prefix.checked())?;
        let storing = self.local().flights.revoke_all(prefix);
        if self.takes_leases() {
            // A server lists an entry and its lease in any order. What was loaded until now is removed by the second
            // round; what ends later finds its lease gone.
            self.answered(self.fork_guarded(store.clear(prefix)).await)?;
        }
        let cleared = self.answered(self.fork_guarded(store.clear(prefix)).await);
        self.until_removed(storing).await;
        cleared
    }

    /// Removes what is under these full keys, and revokes what is being loaded for them.
    async fn remove_each(&self, verb: &'static str, full_keys: Vec<Cow<'_, str>>) -> Result<Vec<Result<bool>>> {
        let flights = &self.local().flights;
        let storing = full_keys.iter().flat_map(|key| flights.revoke(key)).collect();
        let leases: Vec<String> =
            if self.takes_leases() { full_keys.iter().map(|key| lease_key(key)).collect() } else { Vec::new() };
        let mut operations = Vec::with_capacity(2 * full_keys.len());
        for (place, key) in full_keys.iter().enumerate() {
            operations.extend(leases.get(place).map(|lease| mark(lease)));
            operations.push(Op::Delete { key });
        }
        let mut outcomes = self.batch_uncounted(&operations).await.into_iter();
        let mut removed = Vec::with_capacity(full_keys.len());
        for place in 0..full_keys.len() {
            let marked = leases.get(place).and_then(|_| outcomes.next());
            let entry = outcomes.next().unwrap_or_else(|| Err(wrong_count()));
            if let (Some(Err(error)), Ok(_)) = (marked, &entry) {
                self.report(verb, &error);
            }
            removed.push(entry.map(|entry| entry.is_done()));
        }
        self.until_removed(storing).await;
        Ok(removed)
    }

    /// Has nothing stored that is being loaded for this key.
    pub(super) async fn revoke(&self, key: &str) -> Result<()> {
        let full_key = self.counted(self.prefix.key_among_others(key))?;
        let storing = self.local().flights.revoke(&full_key);
        if self.takes_leases() {
            let marked = self.batch(&[mark(&lease_key(&full_key))]).await.pop();
            marked.unwrap_or_else(|| Err(wrong_count()))?;
        }
        self.until_removed(storing).await;
        Ok(())
    }

    /// Waits for flights that were storing when they were revoked.
    async fn until_removed(&self, storing: Vec<Arc<Flight>>) {
        let until = wait_clock::now() + self.shared.settings.fetch_wait;
        for flight in storing.iter().filter(|flight| !flight.would_block_its_leader()) {
            flight.landed(until).await;
        }
    }
}

/// Takes the lease of a delete's key from its holder, if there is one.
fn mark(lease: &str) -> Op<'_> {
    Op::Set { key: lease, value: Bytes::from_static(DELETED), ttl: MARK_TTL, when: When::IfPresent }
}
