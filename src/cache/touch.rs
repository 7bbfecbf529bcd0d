//! Giving a value other times.
//!
//! A typed value carries its times, so they are changed by writing it back, unless somebody else has changed it
//! meanwhile.

use super::envelope::{Envelope, with_times};
use super::freshness::{Freshness, Times};
use super::{Cache, Expiry, KeyBuffer, Lifetime, Sealed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{CONFLICT_ATTEMPTS, Ttl, conflict};

impl Cache {
    /// Has an entry expire as if it had been stored just now with this expiry, the times of [staleness](Expiry)
    /// included. Answers whether there is one.
    ///
    /// A typed value is read for that, and written back if it is unchanged. It is fresh again, even if it was
    /// [expired](Cache::expire) on purpose; on whatever version it is of.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) where others changed it 64 times meanwhile, and the store's.
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
        let Lifetime { ttl, bare, times } = self.counted(self.begin(expiry.into()))?;
        for _ in 0..CONFLICT_ATTEMPTS {
            let Some(held) = self.read(key).await? else { return Ok(false) };
            match Envelope::open(self.prefix.mark(key), &held) {
                Err(_) => return self.touch_bare(key, bare).await,
                Ok(envelope) if envelope.is_expired(self.clock()) => return Ok(false),
                Ok(_) => {}
            }
            if self.swap(key, Some(&held), Some(Sealed { bytes: with_times(&held, times), ttl })).await? {
                return Ok(true);
            }
        }
        self.counted(Err(conflict("touching", key)))
    }

    /// How long an entry still lives, the times of [staleness](Expiry) included; `None` where there is none. Of a typed
    /// value by the times that it carries, of raw bytes and counters as the store counts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for raw bytes in a store that does not tell, and the
    /// store's.
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

    /// Makes a value stale from now on: the next [`fetch`](Cache::fetch) loads it again, and until then reads still
    /// return it. It is gone when it would have been. As with [`delete`](Cache::delete), what is being loaded meanwhile
    /// is not stored. Returns whether there was a value to make stale; raw bytes and counters are none, and stay as
    /// they are.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) where others changed it 64 times meanwhile, and the store's.
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

    /// A value could not be loaded again, which is reported. As it is to be stored so that it counts as fresh for a
    /// while, or every caller would try at once what has just failed.
    pub(super) fn put_off(&self, verb: &'static str, key: &str, held: &[u8]) -> Option<Sealed> {
        let context = format!("loading {key:?} again failed: the value that was there goes on serving");
        self.report(verb, &Error::new(ErrorKind::Loader, context));
        let pause = self.shared.settings.load_retry_delay;
        let times = Envelope::open(self.prefix.mark(key), held).ok()?.times.filter(|_| !pause.is_zero())?;
        Some(self.retimed(held, times.put_off(pause, self.clock())))
    }

    async fn touch_bare(&self, key: &str, ttl: Ttl) -> Result<bool> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.touch(key, ttl)).await)
    }

    /// A value with other times, and the end that it had.
    fn retimed(&self, held: &[u8], times: Times) -> Sealed {
        Sealed { bytes: with_times(held, Some(times)), ttl: times.ttl(self.clock()) }
    }
}
