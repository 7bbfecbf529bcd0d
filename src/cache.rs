//! The handle that people hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::lifecycle::{ProcessLocal, Registration, Registry};
use crate::store::{CacheStore, Ttl};
use codec::Decoded;
use envelope::Cover;
use expiry::Lifetime;
use fetch::Flights;
use key::{KeyBuffer, Prefix};
use settled::settled;
use stats::Counters;
use times::{Age, Times};

pub use blocking::Blocking;
pub use builder::Builder;
pub use codec::Codec;
pub use expiry::Expiry;
pub use fetch::Loaded;
pub use stats::Stats;

mod batch;
mod blocking;
mod builder;
mod codec;
mod compression;
mod counter;
mod entry;
mod envelope;
mod expiry;
mod fetch;
mod key;
mod removal;
mod renewal;
mod settled;
mod stats;
mod times;
mod update;

/// Typed values in a [store](crate::stores), in any process, whether it was forked or not.
///
/// A handle is cheap to clone, and every clone speaks to the same store. Values are encoded as MessagePack unless the
/// [builder](Cache::builder) says otherwise, inside an envelope that tells them from what other programs write: what does not
/// decode to the wanted type is a miss.
///
/// The methods here are asynchronous inside a tokio runtime (which needs its I/O and time drivers: `enable_all`). Through
/// [`blocking`](Cache::blocking), and where there is no runtime, they run inline on the calling thread. Every wait for a
/// server is bounded by the store's timeouts.
///
/// - A handle: [`register`](Cache::register), [`builder`](Cache::builder), [`named`](Cache::named); one derived from another:
///   [`namespace`](Cache::namespace), [`version`](Cache::version), [`force`](Cache::force),
///   [`soft_timeout`](Cache::soft_timeout), [`blocking`](Cache::blocking).
/// - Read, or load and store: [`fetch`](Cache::fetch), [`fetch_loaded`](Cache::fetch_loaded),
///   [`fetch_raw`](Cache::fetch_raw), [`fetch_detached`](Cache::fetch_detached), [`fetch_many`](Cache::fetch_many).
/// - One entry: [`get`](Cache::get), [`set`](Cache::set), [`add`](Cache::add), [`replace`](Cache::replace),
///   [`update`](Cache::update), [`take`](Cache::take), [`touch`](Cache::touch), [`expire`](Cache::expire),
///   [`exists`](Cache::exists), [`delete`](Cache::delete).
/// - As bytes, for other programs: [`get_raw`](Cache::get_raw), [`set_raw`](Cache::set_raw).
/// - Counters: [`increment`](Cache::increment), [`decrement`](Cache::decrement), [`counter`](Cache::counter).
/// - Many entries in one round trip: [`get_many`](Cache::get_many), [`get_many_raw`](Cache::get_many_raw),
///   [`set_many`](Cache::set_many), [`delete_many`](Cache::delete_many); all of a namespace: [`clear`](Cache::clear).
/// - The connections: [`reset`](Cache::reset), [`reconnect`](Cache::reconnect), [`stats`](Cache::stats).
///
/// # Cancel safety
///
/// Any future of this type may be dropped at any time. Its operation then has taken effect or not; no later operation is
/// disturbed.
///
/// # Examples
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let cache = Cache::builder(MemoryStore::new()).namespace("shop").build();
/// let price: u32 = cache.fetch("price:1", Duration::from_secs(60), async || Ok::<_, std::io::Error>(100)).await?;
/// assert_eq!(price, 100);
/// assert_eq!(cache.get::<u32>("price:1").await?, Some(100));
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    prefix: Prefix,
    version: Option<Arc<str>>,
    is_forced: bool,
    soft_timeout: Duration,
}

/// What the clones of a cache have in common.
struct Shared {
    store: Arc<dyn CacheStore>,
    registration: Registration,
    settings: Settings,
    on_error: Option<Observer>,
    local: ProcessLocal<Local>,
}

/// What the builder sets.
#[derive(Clone, Copy, Debug)]
struct Settings {
    codec: Codec,
    compress_above: Option<usize>,
    max_inflated: usize,
    fetch_wait: Duration,
    lease: Duration,
    retry_after: Duration,
}

/// Is told of failures that no caller hears of.
type Observer = Box<dyn Fn(&Error) + Send + Sync>;

/// What belongs to one process.
#[derive(Default)]
struct Local {
    counters: Counters,
    flights: Arc<Flights>,
}

static CACHES: Registry<(String, Cache)> = Registry::new();

impl Cache {
    /// Registers a store under the name "default", for the life of the process and of its children. No I/O.
    ///
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) refreshes it. Where several are registered under one name,
    /// [`named`](Cache::named) gives the last, and all are refreshed.
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

    /// A handle whose keys are all under `part` and a colon, inside of this handle's own namespace.
    ///
    /// A part is taken as it is: one with a colon of its own, which a user's input may have, is two parts.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let tenant = cache.namespace("tenant").namespace("7");
    /// tenant.blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
    /// assert!(cache.blocking().exists("tenant:7:motd")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[must_use]
    pub fn namespace(&self, part: &str) -> Cache {
        Cache { prefix: self.prefix.join(part), ..self.clone() }
    }

    /// A handle whose values carry a version: what was written under another version, or under none, is a miss.
    ///
    /// As in Rails' `cache.fetch(key, version:)`, the key stays the same, so that a new version overwrites the old one.
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
        self.answered(settled(store.reconnect()).await)
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
        self.local().counters.read(self.shared.registration.refreshed())
    }

    /// The store, brought into this process.
    #[inline]
    fn store(&self) -> Result<&dyn CacheStore> {
        self.shared.registration.ensure_current()?;
        Ok(&*self.shared.store)
    }

    /// The key as the store sees it.
    #[inline]
    fn key<'a>(&self, key: &'a str, buffer: &'a mut KeyBuffer) -> Result<&'a str> {
        self.counted(self.prefix.key(key, buffer))
    }

    #[inline]
    fn local(&self) -> &Local {
        self.shared.local.get_or_init(Local::default)
    }

    /// A value as it goes into the store, its time beginning now.
    fn seal<T: Serialize + ?Sized>(&self, key: &str, value: &T, expiry: Expiry) -> Result<Sealed> {
        let Lifetime { ttl, times, .. } = expiry.begin()?;
        Ok(Sealed { bytes: self.encode(key, value, times)?, ttl })
    }

    fn encode<T: Serialize + ?Sized>(&self, key: &str, value: &T, times: Option<Times>) -> Result<Bytes> {
        let Settings { codec, compress_above, .. } = self.shared.settings;
        codec::encode(Cover { codec, times, version: self.version.as_deref(), compress_above }, key, value)
    }

    /// A value as it came out of the store, with its state. `None` for what is no value of this handle's.
    #[inline]
    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Option<(T, Age)> {
        let decoded = codec::decode(self.version.as_deref(), self.shared.settings.max_inflated, bytes);
        decoded.map(|Decoded { value, times }| (value, times.age()))
    }

    /// The same, for a read that counts.
    #[inline]
    fn open<T: DeserializeOwned>(&self, bytes: &[u8]) -> Option<(T, Age)> {
        let decoded = self.decode(bytes);
        match &decoded {
            None => self.local().counters.undecodable(),
            Some((_, Age::Stale | Age::Resting)) => self.local().counters.stale(),
            Some(_) => {}
        }
        decoded
    }

    /// A value that serves, stale or not.
    #[inline]
    fn value<T: DeserializeOwned>(&self, bytes: &[u8]) -> Option<T> {
        match self.open(bytes) {
            Some((_, Age::Gone)) | None => None,
            Some((value, _)) => Some(value),
        }
    }

    /// What a store's future has answered, if it could be waited for.
    #[inline]
    fn answered<T>(&self, settled: Result<Result<T>>) -> Result<T> {
        self.counted(settled.and_then(|answer| answer))
    }

    /// Counts an operation that failed.
    #[inline]
    fn counted<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.count_failure();
        }
        outcome
    }

    #[cold]
    fn count_failure(&self) {
        self.local().counters.failed();
    }
}

/// A value as it goes into a store.
#[derive(Clone, Debug)]
struct Sealed {
    bytes: Bytes,
    ttl: Ttl,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("store", &self.shared.store)
            .field("namespace", &self.prefix.as_str())
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
