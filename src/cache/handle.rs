//! Handles: where they come from, what is derived from them, and their connections.

use std::sync::Arc;
use std::time::Duration;

use super::builder::LONGEST_WAIT;
use super::{Blocking, Builder, Cache, Stats};
use crate::error::Result;
use crate::lifecycle::Registry;
use crate::store::{CacheStore, stores};

pub(super) static CACHES: Registry<(String, Cache)> = Registry::new();

impl Cache {
    /// Registers a store under the name "default", for the life of the process and of its children. No I/O.
    ///
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) refreshes it. Where several are registered under one name,
    /// [`named`](Cache::named) gives the last, and all are refreshed;
    /// [`Builder::register_if_absent`] and [`Builder::register_instead`] keep to one.
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

    /// Registers the store of a URL, as [`register`](Cache::register) does; the guide has
    /// [all URLs and options](crate::guide::urls). No I/O with a server.
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

    /// Settings for a cache: name, namespace, codec and more.
    ///
    /// ```
    /// use prefork_cache::{Cache, Codec, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).name("words").namespace("v1").codec(Codec::Json).register();
    /// ```
    pub fn builder(store: impl CacheStore) -> Builder {
        Builder::new(Arc::new(store))
    }

    /// The cache that was registered last under a name, in this process or in one that it was forked from.
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

    /// Has [`named`](Cache::named) no longer find a cache by this name. Answers whether there was one. It lives on as long
    /// as its handles.
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

    /// What the cache is called, by [`Builder::name`], whether or not it is registered.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// assert_eq!(Cache::builder(MemoryStore::new()).name("words").build().name(), "words");
    /// ```
    pub fn name(&self) -> &str {
        self.shared.registration.name()
    }

    /// A handle whose keys are all under `part` and a colon, inside of this handle's own namespace.
    ///
    /// Any text is a part of its own, a user's input too: within a part `%` and `:` become `%25` and `%3A`, so that no
    /// two namespaces share an entry unless one contains the other. A namespace contains what is in its sub-namespaces:
    /// [`clear`](Cache::clear) removes it, and the key "7:motd" in "tenant" is "motd" in "tenant", "7". An empty part is
    /// refused by every operation of the handle, with [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey).
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

    /// A handle whose exchanges with a server may take so long, instead of the `timeout` in the store's URL: less for a
    /// page that would rather do without, more for a batch job. It holds for each exchange, of which an operation may
    /// make several, and for the wait for a pooled connection; not for dialling. More than a day is a day.
    ///
    /// An exchange that takes longer is [`ErrorKind::Timeout`](crate::ErrorKind::Timeout). One that had less time than
    /// the store's `timeout` says nothing of the server, and does not count as its failure. A store without servers has
    /// no exchanges.
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

    /// A handle whose loads may take so long before others no longer wait for them, instead of
    /// [`Builder::load_timeout`]. At most a year.
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let report = cache.load_timeout(Duration::from_secs(600));
    /// let Begun::Claim(claim) = report.blocking().fetch_raw_begin("report") else { panic!("nobody has stored it") };
    /// claim.blocking_complete("took five minutes".into(), Duration::from_secs(3_600));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn load_timeout(&self, timeout: Duration) -> Cache {
        Cache { load_timeout: Some(timeout.min(LONGEST_WAIT)), ..self.clone() }
    }

    /// A handle whose values carry a version: what was written under another version, or under none, is a miss.
    ///
    /// As in Rails' `cache.fetch(key, version:)`, the key stays the same, so that a new version overwrites the old one. The
    /// version is looked at by what reads a value: `get`, `fetch`, `exists`, `take` and `update` and their kin. An entry of
    /// another version is there for `add`, `replace`, `touch`, `expire` and `delete`.
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

    /// A handle whose fetches always load, and store what they have loaded, as Rails' `force: true`. Defaults to `false`.
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

    /// A handle whose [`fetch_detached`](Cache::fetch_detached) waits this long for a load before it answers with a stale
    /// value. Defaults to zero: a stale value is answered at once.
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

    /// The same verbs, inline on the calling thread, without a runtime; also on a thread of a tokio runtime.
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

    /// Forgets every connection of the store; the next use dials. No I/O, no waiting.
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
        // What may fail here is the store's own refresh after a fork; the next operation reports it.
        if let Ok(store) = self.store() {
            store.reset();
            self.local().counters.reconnected();
        }
    }

    /// Has forked children read what this process has in memory now without copying it; see
    /// [`MemoryStore::freeze`](crate::stores::MemoryStore::freeze). Returns whether anything was frozen: never on a
    /// store that keeps nothing in memory.
    ///
    /// For a master that has warmed its cache, before it forks. The whole store is frozen, whatever the namespace of
    /// this handle; of a [`TieredStore`](crate::stores::TieredStore), both stores. Takes some 10 us for each entry.
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
        // What may fail here is the store's own refresh after a fork; the next operation reports it.
        self.store().is_ok_and(CacheStore::freeze)
    }

    /// Forgets every connection, dials now and proves that the server answers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Connect`](crate::ErrorKind::Connect) and the store's others.
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

    /// What this process has done through this cache so far. Handles of other namespaces count together.
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
