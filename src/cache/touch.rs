//! Changing the expiry of entries.
//!
//! A typed value carries its times. To change them, the value is written back, unless another writer has changed it in
//! the meantime.

use super::envelope::{Envelope, with_times};
use super::freshness::{Freshness, Times};
use super::{Cache, Expiry, KeyBuffer, Lifetime, Sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{CONFLICT_ATTEMPTS, Ttl, conflict};

impl Cache {
    /// Gives an entry a new expiry, as if it were stored now, including [stale and refresh-ahead times](Expiry).
    /// Returns whether there is an entry.
    ///
    /// A typed value of any version is read, and written back if it is unchanged. It is then fresh, even if it was
    /// [expired](Cache::expire) explicitly.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if other writers changed it at all 64 attempts, and the
    /// store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("session", "7", Duration::from_secs(60))?;
    /// assert!(cache.blocking().touch("session", Duration::from_secs(600))?);
    /// assert!(!cache.blocking().touch("no session", Duration::from_secs(600))?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn touch(&self, key: &str, expiry: impl Into<Expiry>) -> Result<bool> {
        let Lifetime { ttl, raw_ttl, times } = self.counted(self.begin(expiry.into()))?;
        for _ in 0..CONFLICT_ATTEMPTS {
            let Some(held) = self.read(key).await? else { return Ok(false) };
            match Envelope::open(self.prefix.mark(key), &held) {
                Err(_) => return self.touch_raw(key, raw_ttl).await,
                Ok(envelope) if envelope.is_expired(self.clock()) => return Ok(false),
                Ok(_) => {}
            }
            if self.swap(key, Some(&held), Some(Sealed { bytes: with_times(&held, times), ttl })).await? {
                return Ok(true);
            }
        }
        self.counted(Err(conflict("touching", key)))
    }

    /// Returns how long an entry still lives, its [stale time](Expiry) included, or `None` if there is none. The
    /// remaining time of a typed value is computed from the times that it carries; that of raw bytes and counters comes
    /// from the store.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for raw bytes in a store that does not report the
    /// time, and the store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, Ttl, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// let Some(Ttl::After(left)) = cache.blocking().expires_in("motd")? else { panic!("it expires") };
    /// assert!(left <= Duration::from_secs(60));
    /// cache.blocking().set("motd", "hello", Expiry::NEVER)?;
    /// assert_eq!(cache.blocking().expires_in("motd")?, Some(Ttl::Never));
    /// assert_eq!(cache.blocking().expires_in("nothing")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn expires_in(&self, key: &str) -> Result<Option<Ttl>> {
        let Some(held) = self.read(key).await? else { return Ok(None) };
        if let Ok(envelope) = Envelope::open(self.prefix.mark(key), &held) {
            let ttl = envelope.times.map_or(Ttl::Never, |times| times.ttl(self.clock()));
            return Ok(Some(ttl).filter(|_| !envelope.is_expired(self.clock())));
        }
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.ttl(key)).await)
    }

    /// Makes a value stale: the next [`fetch`](Cache::fetch) reloads it, and until then reads still return it. It
    /// expires at the same time as before. As with [`delete`](Cache::delete), a value that is being loaded at the same
    /// time is not stored. Returns whether there was a value. Raw bytes and counters are not changed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if other writers changed it at all 64 attempts, and the
    /// store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let cache = cache.blocking();
    /// cache.set("price", &100, Duration::from_secs(60))?;
    /// assert!(cache.expire("price")?);
    /// assert_eq!(cache.get::<u32>("price")?, Some(100));
    /// let fetched = cache.fetch("price", Duration::from_secs(60), || Ok::<u32, std::io::Error>(200));
    /// assert_eq!(fetched.unwrap(), 200);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn expire(&self, key: &str) -> Result<bool> {
        self.revoke(key).await?;
        for _ in 0..CONFLICT_ATTEMPTS {
            let Some(held) = self.read(key).await? else { return Ok(false) };
            let Ok(envelope) = Envelope::open(self.prefix.mark(key), &held) else { return Ok(false) };
            let times = envelope.times.unwrap_or(Times::ALWAYS_FRESH);
            match times.freshness(self.clock()) {
                Freshness::Expired => return Ok(false),
                Freshness::Stale => return Ok(true),
                Freshness::Fresh | Freshness::RefreshAhead | Freshness::RetryDelayed => {}
            }
            if self.swap(key, Some(&held), Some(self.retimed(&held, times.expired(self.clock())))).await? {
                return Ok(true);
            }
        }
        self.counted(Err(conflict("expiring", key)))
    }

    /// Reports a failed reload. Returns the old value with times that delay the next attempt, or every caller would
    /// retry at once.
    pub(super) fn delay_retry(&self, verb: &'static str, key: &str, held: &[u8]) -> Option<Sealed> {
        let context = format!("loading {key:?} again failed: the value that was there goes on serving");
        self.report(verb, &Error::new(ErrorKind::Loader, context));
        let pause = self.shared.settings.load_retry_delay;
        let times = Envelope::open(self.prefix.mark(key), held).ok()?.times.filter(|_| !pause.is_zero())?;
        Some(self.retimed(held, times.with_retry_delay(pause, self.clock())))
    }

    async fn touch_raw(&self, key: &str, ttl: Ttl) -> Result<bool> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.touch(key, ttl)).await)
    }

    /// Returns a value with other times, and the TTL that belongs to them.
    fn retimed(&self, held: &[u8], times: Times) -> Sealed {
        Sealed { bytes: with_times(held, Some(times)), ttl: times.ttl(self.clock()) }
    }
}
