//! Locks among processes, built on the leases of loads.

use std::fmt;
use std::time::{Duration, Instant};

use super::lease::{Lease, LeaseState, Leases};
use super::lease_holder;
use crate::cache::{Cache, blocking, wait_clock};
use crate::error::Result;
use crate::store::{Op, Ttl, lock_key, wrong_count};

impl Cache {
    /// Takes a lock for at most `ttl`. Returns `None`, without waiting, if it is held. The returned guard releases the
    /// lock when it is dropped or [released](LockGuard::release).
    ///
    /// The lock is held among all processes on the same Redis or Memcached server; on
    /// [`MemoryStore`](crate::stores::MemoryStore), in the process. It ends after `ttl`, even if its holder is still
    /// working. If its holder's process has ended, a process on the same host can take it at once. A forked child does
    /// not hold its parent's locks.
    ///
    /// Use it for work that should not be done twice, not for work that must never be: a holder that is stopped for
    /// longer than `ttl` goes on without the lock, a cache server may evict the lock or lose it with all its entries,
    /// and [`clear`](Cache::clear) removes it. The lock is independent of the entry under `key`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl), and the store's errors:
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if it takes no [leases](crate::Builder::lease).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future releases a lock that it may have taken.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let minute = Duration::from_secs(60);
    /// if let Some(_lock) = cache.blocking().lock("nightly report", minute)? {
    ///     assert!(cache.blocking().lock("nightly report", minute)?.is_none(), "it is being written");
    /// }
    /// assert!(cache.blocking().lock("nightly report", minute)?.is_some());
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn lock(&self, key: &str, ttl: Duration) -> Result<Option<LockGuard>> {
        let lock_key = lock_key(&self.counted(self.prefix.checked_full_key(key))?);
        self.counted(Ttl::After(ttl).duration())?;
        let lease = Lease::new(&lock_key, ttl);
        // From here on it is released, even if no reply comes.
        let mut leases = Leases::none(self, "lock");
        leases.add(0, lease.clone());
        let mut stored = None;
        for _ in 0..ATTEMPTS {
            let until = wait_clock::now() + ttl;
            let operations = [lease.take_for(Ttl::After(ttl), stored.as_deref()), Op::Get { key: lease.key() }];
            let mut outcomes = self.batch(&operations).await.into_iter();
            let mut outcome = || outcomes.next().unwrap_or_else(|| Err(wrong_count()));
            if outcome()?.is_done() {
                return Ok(Some(LockGuard { key: key.to_owned(), leases, until }));
            }
            stored = outcome()?.into_value();
            match LeaseState::of(stored.as_ref()) {
                LeaseState::Held { holder, .. } if !lease_holder::has_ended(&holder) => break,
                _ => {}
            }
        }
        leases.forget(0);
        Ok(None)
    }
}

/// Attempts to take a lock whose holder has ended.
const ATTEMPTS: usize = 3;

/// A held lock; see [`Cache::lock`].
#[must_use = "a lock ends with its guard"]
pub struct LockGuard {
    key: String,
    leases: Leases,
    until: Instant,
}

impl LockGuard {
    /// Returns the key of the lock.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the remaining time of the lock, by this process's clock. At zero, another holder may have it.
    pub fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(wait_clock::now())
    }

    /// Releases the lock. Returns whether it was held until now: `false` if its time was over, or a parent process
    /// holds it.
    ///
    /// # Errors
    ///
    /// The store's.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let lock = cache.lock("nightly report", Duration::from_secs(60)).await?.expect("the lock is free");
    /// assert!(lock.release().await?);
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    pub async fn release(mut self) -> Result<bool> {
        self.leases.end(0).await
    }

    /// [`release`](LockGuard::release), inline on the calling thread.
    ///
    /// # Errors
    ///
    /// As for [`release`](LockGuard::release).
    pub fn blocking_release(self) -> Result<bool> {
        blocking::at_once(std::pin::pin!(self.release()))
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard").field("key", &self.key).finish_non_exhaustive()
    }
}
