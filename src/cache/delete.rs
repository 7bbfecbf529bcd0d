//! Deletes: removing entries and revoking their loads.
//!
//! A caller that changes the source of the data and then removes the entry does not want to see data that a loader had
//! read before. So a delete revokes the flights of this process, and sends in one write a mark that replaces the lease,
//! if there is one, and the delete of the entry. A loader that finds its flight revoked or its lease replaced does not
//! store its value. If a loader of this process is already storing, the delete waits until it has removed the value
//! again.
//!
//! The entry is on the same server as its lease, which runs the operations in order. Where a server cannot store a
//! value and end the lease in one operation, its store waits for a load that is between the two, and deletes after it.

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
    /// A value that a fetch is loading for this key at the same time is not stored, in any process on the same store,
    /// since the loader may have read the data before the change. On a server, this takes one more command in the same
    /// write, for the key's [lease](crate::Builder::lease), and on Memcached the read of a second key.
    ///
    /// Memcached cannot store one entry depending on another. A delete that meets a load while its value is being
    /// stored waits there until it is stored, for about a round trip and at most the store's timeout, and then deletes.
    ///
    /// Not covered are loads without a lease in other processes (if leases are turned off, or the account may not run
    /// the scripts that they need), and [forced](Cache::force) loads in any process.
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
        let full_key = self.counted(self.prefix.checked_full_key(key))?;
        let mut deleted = self.remove_each("delete", vec![full_key]).await?;
        self.counted(deleted.pop().unwrap_or_else(|| Err(wrong_count())))
    }

    /// [`delete`](Cache::delete) for many keys. The results are in the order of the keys. A key that is given twice is
    /// deleted once.
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
        let prepared = keys.iter().map(|key| self.prefix.checked_full_key(key.as_ref())).collect();
        self.counted_each(batch(prepared, |keys| self.remove_each("delete_many", keys)).await)
    }

    /// Removes every entry of this handle's [namespace](Cache::namespace) and of the namespaces inside it; without a
    /// namespace, every entry of the store.
    ///
    /// As with [`delete`](Cache::delete), values that are being loaded are not stored. For that, the keys of a server
    /// are listed twice. On Memcached, a value that another process is just storing may be visible for about a round
    /// trip, until it is removed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the server cannot list its keys, and the store's
    /// errors.
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
            // A server lists an entry and its lease in any order. The second round removes values loaded until now. A
            // load that ends later finds its lease gone.
            self.answered(self.fork_guarded(store.clear(prefix)).await)?;
        }
        let cleared = self.answered(self.fork_guarded(store.clear(prefix)).await);
        self.until_removed(storing).await;
        cleared
    }

    /// Removes the entries under these full keys, and revokes their loads.
    async fn remove_each(&self, verb: &'static str, full_keys: Vec<Cow<'_, str>>) -> Result<Vec<Result<bool>>> {
        let flights = &self.local().flights;
        let storing = full_keys.iter().flat_map(|key| flights.revoke(key)).collect();
        let leases: Vec<String> =
            if self.takes_leases() { full_keys.iter().map(|key| lease_key(key)).collect() } else { Vec::new() };
        let mut operations = Vec::with_capacity(2 * full_keys.len());
        for (index, key) in full_keys.iter().enumerate() {
            operations.extend(leases.get(index).map(|lease| mark(lease)));
            operations.push(Op::Delete { key });
        }
        let mut outcomes = self.batch_uncounted(&operations).await.into_iter();
        let mut removed = Vec::with_capacity(full_keys.len());
        for index in 0..full_keys.len() {
            let marked = leases.get(index).and_then(|_| outcomes.next());
            let entry = outcomes.next().unwrap_or_else(|| Err(wrong_count()));
            if let (Some(Err(error)), Ok(_)) = (marked, &entry) {
                self.report(verb, &error);
            }
            removed.push(entry.map(|entry| entry.is_done()));
        }
        self.until_removed(storing).await;
        Ok(removed)
    }

    /// Revokes the loads of this key, so that their values are not stored.
    pub(super) async fn revoke(&self, key: &str) -> Result<()> {
        let full_key = self.counted(self.prefix.checked_full_key(key))?;
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

/// Returns the operation that replaces the lease of a deleted key by a mark, if there is a lease.
fn mark(lease: &str) -> Op<'_> {
    Op::Set { key: lease, value: Bytes::from_static(DELETED), ttl: MARK_TTL, when: When::IfPresent }
}
