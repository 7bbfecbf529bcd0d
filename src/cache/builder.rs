//! The builder of a [`Cache`] and its settings.

use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::codec::Codec;
use super::key::Prefix;
use super::{CACHES, Cache, Expiry, LONGEST_WAIT, Observe, Settings, Shared};
use crate::error::Error;
use crate::lifecycle::{ProcessLocal, Registration};
use crate::store::CacheStore;

const DEFAULT_NAME: &str = "default";

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            codec: Codec::default(),
            default_expiry: None,
            compress_above: None,
            max_inflated: 64 << 20,
            fetch_wait: Duration::from_secs(10),
            load_timeout: Duration::from_secs(60),
            lease: Duration::from_secs(5),
            load_retry_delay: Duration::from_secs(5),
        }
    }
}

/// Builder of a [`Cache`]; see [`Cache::builder`].
///
/// ```
/// use prefork_cache::{Cache, Codec, stores::MemoryStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(MemoryStore::new())
///     .name("words")
///     .namespace("shop")
///     .codec(Codec::Json)
///     .fetch_wait(Duration::from_secs(2))
///     .on_error(|error| eprintln!("cache: {error:#}"))
///     .register();
/// ```
#[must_use]
pub struct Builder {
    store: Arc<dyn CacheStore>,
    name: String,
    prefix: Prefix,
    settings: Settings,
    clock: Clock,
    on_error: Option<Observe>,
}

impl Builder {
    pub(super) fn new(store: Arc<dyn CacheStore>) -> Builder {
        Builder {
            store,
            name: DEFAULT_NAME.to_owned(),
            prefix: Prefix::none(),
            settings: Settings::default(),
            clock: Clock::system(),
            on_error: None,
        }
    }

    /// Sets the name by which [`Cache::named`] finds the cache, and which appears in reports. Defaults to "default".
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let words = Cache::builder(MemoryStore::new()).name("words").register();
    /// assert!(Cache::named("words").is_some());
    /// ```
    pub fn name(mut self, name: &str) -> Builder {
        name.clone_into(&mut self.name);
        self
    }

    /// Puts all keys under `part` and a colon; may be repeated. Defaults to no namespace.
    ///
    /// This is the first part of a [`Cache::namespace`]. A namespace of Rails or Dalli that has colons, `app:v2`, is
    /// given as `.namespace("app").namespace("v2")`.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let store = Arc::new(MemoryStore::new());
    /// let cache = Cache::builder(store.clone()).namespace("shop").build();
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// assert!(Cache::builder(store).build().blocking().exists("shop:motd")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn namespace(mut self, part: &str) -> Builder {
        self.prefix = self.prefix.join(part);
        self
    }

    /// Sets the expiry that [`Expiry::DEFAULT`] stands for. Defaults to none: `Expiry::DEFAULT` is then refused.
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let hour = Duration::from_secs(3_600);
    /// let cache = Cache::builder(MemoryStore::new()).default_expiry(Expiry::after(hour).stale_for(hour)).build();
    /// let load = || Ok::<_, std::io::Error>("hello".to_owned());
    /// assert_eq!(cache.blocking().fetch("motd", Expiry::DEFAULT, load)?, "hello");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn default_expiry(mut self, expiry: impl Into<Expiry>) -> Builder {
        self.settings.default_expiry = Some(expiry.into());
        self
    }

    /// Sets the clock by which values are fresh, stale or expired. Tests use one that they can move. Defaults to
    /// [`Clock::system`].
    ///
    /// ```
    /// use prefork_cache::{Cache, Clock, Expiry, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let clock = Clock::manual();
    /// let cache = Cache::builder(MemoryStore::new()).clock(clock.clone()).build();
    /// let minute = Duration::from_secs(60);
    /// let price = |price: u32| {
    ///     cache.blocking().fetch("price", Expiry::after(minute).stale_for(minute), || Ok::<_, std::io::Error>(price))
    /// };
    /// assert_eq!(price(100)?, 100);
    /// assert_eq!(price(200)?, 100);
    /// clock.advance(minute);
    /// assert_eq!(price(200)?, 200, "it was stale");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn clock(mut self, clock: Clock) -> Builder {
        self.clock = clock;
        self
    }

    /// Sets the format of stored values. Defaults to [`Codec::MessagePack`].
    ///
    /// ```
    /// use prefork_cache::{Cache, Codec, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).codec(Codec::Json).build();
    /// cache.blocking().set("sizes", &[1, 2], Duration::from_secs(60))?;
    /// assert!(cache.blocking().get_raw("sizes")?.unwrap().ends_with(b"[1,2]"));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn codec(mut self, codec: Codec) -> Builder {
        self.settings.codec = codec;
        self
    }

    /// Compresses encoded values (not raw ones) longer than this many bytes, with zlib at its fastest level. The
    /// compressed form is kept only if it is smaller. Every reader understands both forms, whatever its own setting.
    /// Defaults to no compression.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).compress_above(1024).build();
    /// cache.blocking().set("page", &"<br>".repeat(10_000), Duration::from_secs(60))?;
    /// assert!(cache.blocking().get_raw("page")?.unwrap().len() < 1_000);
    /// assert_eq!(cache.blocking().get::<String>("page")?.unwrap().len(), 40_000);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn compress_above(mut self, bytes: usize) -> Builder {
        self.settings.compress_above = Some(bytes);
        self
    }

    /// Sets the size in bytes above which an inflated value is a miss, whichever program wrote it. Defaults to 64 MiB.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// let store = Arc::new(MemoryStore::new());
    /// let writer = Cache::builder(store.clone()).compress_above(1024).build();
    /// writer.blocking().set("page", &"<br>".repeat(10_000), Duration::from_secs(60))?;
    /// let careful = Cache::builder(store).max_inflated(10_000).build();
    /// assert_eq!(careful.blocking().get::<String>("page")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn max_inflated(mut self, bytes: usize) -> Builder {
        self.settings.max_inflated = bytes;
        self
    }

    /// Sets how long a process that loads a key may go without renewing its lease before another process takes the load
    /// over. At most a year; defaults to 5 s. Zero turns leases off: each process then loads for itself.
    ///
    /// Inside tokio a task renews the lease every third of this time, for at most
    /// [`load_timeout`](Builder::load_timeout). Elsewhere nothing can renew it, so the lease lasts for `load_timeout`,
    /// if that is longer. The end of a process on the same host is noticed at once.
    ///
    /// A lease is kept on the server beside its key, under the key followed by `:prefork-lease`, or by
    /// `:prefork-lease:` and five letters that lead a cluster to the slot of the key. A key that ends like that is
    /// refused. On Redis, leases need the permission to run scripts (`+@scripting`). An account without it gets no
    /// leases, which is reported to [`on_error`](Builder::on_error) once.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let reports = Cache::builder(MemoryStore::new())
    ///     .lease(Duration::from_secs(20))
    ///     .load_timeout(Duration::from_secs(300))
    ///     .build();
    /// ```
    pub fn lease(mut self, lease: Duration) -> Builder {
        self.settings.lease = lease.min(LONGEST_WAIT);
        self
    }

    /// Sets how long the old value is returned after its loader has failed, before the next attempt to load. At most a
    /// year; defaults to 5 s. With zero each fetch tries to load.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).load_retry_delay(Duration::from_secs(30)).build();
    /// ```
    pub fn load_retry_delay(mut self, pause: Duration) -> Builder {
        self.settings.load_retry_delay = pause.min(LONGEST_WAIT);
        self
    }

    /// Sets how long a load may take before other callers stop waiting for it. At most a year; defaults to 60 s.
    ///
    /// A [`fetch`](Cache::fetch) that finds no value waits this long, from its start, for the loader of another caller,
    /// in this process or in another one. Then one caller of the process loads, and the others wait for that load,
    /// again for at most this long. The timeout ends the lease, not the loader. Outside tokio, an asynchronous caller
    /// that waits for a load of its own process has no timer, and waits until that load ends.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let reports = Cache::builder(MemoryStore::new()).load_timeout(Duration::from_secs(300)).build();
    /// ```
    pub fn load_timeout(mut self, timeout: Duration) -> Builder {
        self.settings.load_timeout = timeout.min(LONGEST_WAIT);
        self
    }

    /// Sets how long a [`fetch`](Cache::fetch) inside a loader waits for the loader of another caller, in place of
    /// [`load_timeout`](Builder::load_timeout), since two loaders may be waiting for each other. At most a year;
    /// defaults to 10 s.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).fetch_wait(Duration::from_millis(500)).build();
    /// ```
    pub fn fetch_wait(mut self, wait: Duration) -> Builder {
        self.settings.fetch_wait = wait.min(LONGEST_WAIT);
        self
    }

    /// Calls `observe` with each failure that the caller does not see, for a log. [`Error::cache`] and [`Error::verb`]
    /// return which cache and method failed, [`Error::kind`] how. While a server is down, `observe` is called for each
    /// fetch. Defaults to counting failures only, see [`Stats::errors`](crate::Stats::errors),
    /// [`Stats::failed_loads`](crate::Stats::failed_loads) and [`Stats::undecodable`](crate::Stats::undecodable). With
    /// the feature `tracing`, each failure is an event as well.
    ///
    /// - A failed loader whose caller gets an old value is reported as [`ErrorKind::Loader`](crate::ErrorKind::Loader).
    /// - A value that does not decode is reported as [`ErrorKind::Decode`](crate::ErrorKind::Decode), once for each
    ///   type.
    ///
    /// `observe` must not panic. It may use this cache: failures of its own calls, on its thread, are counted and not
    /// reported, and its fetches do not wait for other loads.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::RedisStore};
    /// use std::time::Duration;
    ///
    /// // Nothing listens on port 1: the loaded value is returned nevertheless.
    /// let store = RedisStore::new("redis://127.0.0.1:1")?;
    /// let cache = Cache::builder(store).on_error(|error| eprintln!("cache: {error:#}")).build();
    /// let load = || Ok::<_, prefork_cache::Error>("hello".to_owned());
    /// let motd = cache.blocking().fetch("motd", Duration::from_secs(60), load)?;
    /// assert_eq!(motd, "hello");
    /// assert!(cache.stats().errors > 0);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn on_error(mut self, observe: impl Fn(&Error) + Send + Sync + 'static) -> Builder {
        self.on_error = Some(Box::new(observe));
        self
    }

    /// Builds the cache and registers it for the life of the process: [`Cache::named`] finds it, and
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) refreshes it. No I/O.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// Cache::builder(MemoryStore::new()).register();
    /// assert!(Cache::named("default").is_some());
    /// ```
    pub fn register(self) -> Cache {
        let (name, cache) = self.listed();
        CACHES.insert(Arc::new((name, cache.clone())));
        cache
    }

    /// [Registers](Builder::register) the cache unless one of this name exists, and else returns the existing one,
    /// whatever its store and settings. For hosts that run their configuration more than once in a process.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let words = || Cache::builder(MemoryStore::new()).name("words").register_if_absent();
    /// let (first, again) = (words(), words());
    /// again.blocking().increment("visits", 1, std::time::Duration::from_secs(60))?;
    /// assert_eq!(first.blocking().counter("visits")?, Some(1));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn register_if_absent(self) -> Cache {
        let (name, cache) = self.listed();
        let is_same = |registered: &(String, Cache)| registered.0 == name;
        let present = CACHES.insert_unless(Arc::new((name.clone(), cache.clone())), is_same);
        present.map_or(cache, |present| present.1.clone())
    }

    /// [Registers](Builder::register) the cache in place of all caches of this name. The replaced caches live, and are
    /// refreshed after a fork, as long as their handles.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let words = || Cache::builder(MemoryStore::new()).name("words").register_instead();
    /// words().blocking().increment("visits", 1, std::time::Duration::from_secs(60))?;
    /// words();
    /// assert_eq!(Cache::named("words").unwrap().blocking().counter("visits")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn register_instead(self) -> Cache {
        let (name, cache) = self.listed();
        CACHES.insert_instead(Arc::new((name.clone(), cache.clone())), |registered| registered.0 == name);
        cache
    }

    /// Builds the cache without registering it. It lives as long as its handles, and is refreshed in a forked process
    /// at its first use there. No I/O.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).name("private").build();
    /// assert!(Cache::named("private").is_none());
    /// ```
    pub fn build(self) -> Cache {
        let store = Arc::clone(&self.store);
        let registration = Registration::unlisted(&self.name, move || store.refresh());
        self.make(registration)
    }

    /// Builds the cache so that `after_fork` refreshes it, and returns it with its name.
    fn listed(self) -> (String, Cache) {
        let name = self.name.clone();
        let store = Arc::clone(&self.store);
        let registration = Registration::listed(&name, move || store.refresh());
        (name, self.make(registration))
    }

    fn make(self, registration: Registration) -> Cache {
        Cache {
            shared: Arc::new(Shared {
                store: self.store,
                registration,
                settings: self.settings,
                clock: self.clock,
                on_error: self.on_error,
                local: ProcessLocal::new(),
            }),
            prefix: self.prefix,
            version: None,
            is_forced: false,
            soft_timeout: Duration::ZERO,
            timeout: None,
            load_timeout: None,
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("store", &self.store).finish_non_exhaustive()
    }
}
