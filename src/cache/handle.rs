//! Handles of a cache: registered, built and derived; and the connections of their store.

use std::sync::Arc;
use std::time::Duration;

use super::{Blocking, Builder, CACHES, Cache, LONGEST_WAIT, Stats};
use crate::error::Result;
use crate::store::{CacheStore, stores};

impl Cache {
    /// Registers a store under the name "default", for the life of the process and of its children. No I/O.
    ///
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) refreshes it. If several stores are registered under one
    /// name, [`named`](Cache::named) returns the last, and all are refreshed. [`Builder::register_if_absent`] and
    /// [`Builder::register_instead`] register only one.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::register(MemoryStore::new());
    /// assert!(Cache::named("default").is_some());
    /// ```
    pub fn register(store: impl CacheStore) -> Cache {
        Cache::builder(store).register()
    }

    /// Registers the store of a URL, as [`register`](Cache::register) does. No I/O with a server. The guide lists
    /// [all URLs and options](crate::guide::urls).
    ///
    /// # Errors
    ///
    /// As [`stores::from_url`](crate::stores::from_url).
    ///
    /// ```
    /// use prefork_cache::Cache;
    ///
    /// let url = std::env::var("CACHE_URL").unwrap_or_else(|_| "memory://".to_owned());
    /// let cache = Cache::from_url(&url)?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn from_url(url: &str) -> Result<Cache> {
        Ok(Cache::register(stores::from_url(url)?))
    }

    /// Returns a builder for a cache with a name, namespace, codec and other settings.
    ///
    /// ```
    /// use prefork_cache::{Cache, Codec, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).name("words").namespace("v1").codec(Codec::Json).register();
    /// ```
    pub fn builder(store: impl CacheStore) -> Builder {
        Builder::new(Arc::new(store))
    }

    /// Returns the last cache registered under a name, in this process or in one that it was forked from.
    ///
    /// ```
    /// use prefork_cache::Cache;
    ///
    /// assert!(Cache::named("never registered").is_none());
    /// ```
    pub fn named(name: &str) -> Option<Cache> {
        let mut newest_first = CACHES.snapshot().into_iter().rev();
        newest_first.find(|registered| registered.0 == name).map(|registered| registered.1.clone())
    }

    /// Removes all caches of this name from the registry, so that [`named`](Cache::named) no longer finds them. Returns
    /// whether there was one. They live as long as their handles.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// Cache::builder(MemoryStore::new()).name("for a while").register();
    /// assert!(Cache::unregister("for a while"));
    /// assert!(Cache::named("for a while").is_none());
    /// assert!(!Cache::unregister("for a while"));
    /// ```
    pub fn unregister(name: &str) -> bool {
        CACHES.remove(|registered| registered.0 == name)
    }

    /// Returns the name of the cache, set by [`Builder::name`], whether or not it is registered.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// assert_eq!(Cache::builder(MemoryStore::new()).name("words").build().name(), "words");
    /// ```
    pub fn name(&self) -> &str {
        self.shared.registration.name()
    }

    /// Returns a handle whose keys are all under `part` and a colon, inside this handle's own namespace.
    ///
    /// Any string can be a part, a user's input too: within a part `%` and `:` become `%25` and `%3A`, so that no two
    /// namespaces share an entry unless one contains the other. A namespace contains its sub-namespaces:
    /// [`clear`](Cache::clear) removes their entries too, and the key "7:motd" in "tenant" is "motd" in "tenant", "7".
    /// With an empty part, every operation of the handle fails with
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let tenant = cache.namespace("tenant").namespace("7");
    /// tenant.blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
    /// assert!(cache.blocking().exists("tenant:7:motd")?);
    /// assert!(!cache.namespace("tenant:7").blocking().exists("motd")?, "another one");
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn namespace(&self, part: &str) -> Cache {
        Cache { prefix: self.prefix.join(part), ..self.clone() }
    }

    /// Returns a handle with another timeout for its exchanges with a server, in place of the `timeout` in the store's
    /// URL: a shorter one for a page that can do without the value, a longer one for a batch job. The timeout applies
    /// to each exchange, of which an operation may make several, and to the wait for a pooled connection, but not to
    /// dialling. More than a day counts as a day.
    ///
    /// An exchange that takes longer fails with [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). If its timeout was
    /// shorter than the store's, this does not count as a failure of the server. A store without servers has no
    /// exchanges.
    ///
    /// ```no_run
    /// use prefork_cache::{Cache, stores::RedisStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::register(RedisStore::new("redis://localhost?timeout=1s")?);
    /// let hurried = cache.timeout(Duration::from_millis(20));
    /// let price: Option<u32> = hurried.blocking().get("price:1")?;
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn timeout(&self, timeout: Duration) -> Cache {
        Cache { timeout: Some(timeout), ..self.clone() }
    }

    /// Returns a handle with another limit on how long a load may take before other callers stop waiting for it, in
    /// place of [`Builder::load_timeout`]. At most a year.
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let report = cache.load_timeout(Duration::from_secs(600));
    /// let Begun::Claim(claim) = report.blocking().fetch_raw_begin("report") else { panic!("it is not stored") };
    /// claim.blocking_complete("took five minutes".into(), Duration::from_secs(3_600));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn load_timeout(&self, timeout: Duration) -> Cache {
        Cache { load_timeout: Some(timeout.min(LONGEST_WAIT)), ..self.clone() }
    }

    /// Returns a handle whose values carry a version: a value written under another version, or under none, is a miss.
    ///
    /// As in Rails' `cache.fetch(key, version:)`, the key stays the same, so a new version overwrites the old one.
    /// Methods that read a value compare the version: `get`, `fetch`, `exists`, `take`, `update` and their variants.
    /// For `add`, `replace`, `touch`, `expire` and `delete`, an entry of another version exists.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.version("1").blocking().set("widget", "round", Duration::from_secs(60))?;
    /// assert_eq!(cache.version("2").blocking().get::<String>("widget")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn version(&self, version: &str) -> Cache {
        Cache { version: Some(version.into()), ..self.clone() }
    }

    /// Returns a handle whose fetches always load, and store the loaded value, like Rails' `force: true`. Defaults to
    /// `false`.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let fetch = |force, value: u32| {
    ///     cache.force(force).blocking().fetch("price", Duration::from_secs(60), || Ok::<_, std::io::Error>(value))
    /// };
    /// assert_eq!(fetch(false, 100)?, 100);
    /// assert_eq!(fetch(false, 200)?, 100);
    /// assert_eq!(fetch(true, 300)?, 300);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn force(&self, force: bool) -> Cache {
        Cache { is_forced: force, ..self.clone() }
    }

    /// Returns a handle whose [`fetch_detached`](Cache::fetch_detached) waits this long for a load before it returns a
    /// stale value. Defaults to zero: a stale value is returned at once.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let expiry = Expiry::after(Duration::from_secs(60)).stale_for(Duration::from_secs(3_600));
    /// cache.set("price", &100, expiry).await?;
    /// cache.expire("price").await?;
    ///
    /// let patient = cache.soft_timeout(Duration::from_secs(10));
    /// let price = patient.fetch_detached("price", expiry, async || Ok::<_, std::io::Error>(200)).await;
    /// assert_eq!(price.unwrap(), 200);
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn soft_timeout(&self, wait: Duration) -> Cache {
        Cache { soft_timeout: wait, ..self.clone() }
    }

    /// Returns the blocking API: the same operations inline on the calling thread, without a runtime. It may be used on
    /// a thread of a tokio runtime too.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert_eq!(cache.blocking().get::<String>("nothing")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[inline]
    pub fn blocking(&self) -> Blocking<'_> {
        Blocking::new(self)
    }

    /// Discards every connection of the store; the next use dials. No I/O, no waiting.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::RedisStore};
    ///
    /// let cache = Cache::builder(RedisStore::new("redis://127.0.0.1:6379")?).build();
    /// cache.reset();
    /// assert_eq!(cache.stats().reconnects, 1);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn reset(&self) {
        // Only the store's own refresh after a fork can fail here. The next operation reports that.
        if let Ok(store) = self.store() {
            store.reset();
            self.local().counters.reconnected();
        }
    }

    /// Moves the entries that this process has in memory into a table that forked children read without copying it; see
    /// [`MemoryStore::freeze`](crate::stores::MemoryStore::freeze). Returns whether anything was frozen, which is never
    /// the case on a store that keeps nothing in memory.
    ///
    /// Call it in a master that has warmed its cache, before it forks. The whole store is frozen, whatever the namespace
    /// of this handle; of a [`TieredStore`](crate::stores::TieredStore), both stores. Takes about 10 us per entry.
    ///
    /// ```
    /// use prefork_cache::Cache;
    /// use std::time::Duration;
    ///
    /// let cache = Cache::from_url("memory://")?;
    /// cache.blocking().set("motd", "hello", Duration::from_secs(3_600))?;
    /// assert!(cache.freeze());
    /// // ... fork the workers ...
    /// assert_eq!(cache.blocking().get::<String>("motd")?.as_deref(), Some("hello"));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn freeze(&self) -> bool {
        // An error of the store's refresh after a fork is reported by the next operation.
        self.store().is_ok_and(CacheStore::freeze)
    }

    /// Discards every connection, dials now, and checks that the server responds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Connect`](crate::ErrorKind::Connect), and the store's other errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, ErrorKind, stores::RedisStore};
    ///
    /// // Nothing listens on port 1.
    /// let cache = Cache::builder(RedisStore::new("redis://127.0.0.1:1")?).build();
    /// let error = cache.blocking().reconnect().unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::Connect);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn reconnect(&self) -> Result<()> {
        let store = self.store()?;
        self.local().counters.reconnected();
        self.answered(self.fork_guarded(store.reconnect()).await)
    }

    /// Returns the statistics of this process's use of the cache. Handles of all its namespaces count together.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// cache.blocking().get::<String>("motd")?;
    /// cache.blocking().get::<String>("other")?;
    /// assert_eq!((cache.stats().hits, cache.stats().misses), (1, 1));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn stats(&self) -> Stats {
        let servers = self.store().map_or_else(|_| Vec::new(), CacheStore::servers);
        self.local().counters.read(self.shared.registration.refreshed(), servers)
    }
}
