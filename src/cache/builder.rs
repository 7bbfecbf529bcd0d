//! The settings of a cache.

use std::sync::Arc;
use std::time::Duration;

use super::codec::Codec;
use super::key::Prefix;
use super::{CACHES, Cache, Observer, Shared};
use crate::error::Error;
use crate::lifecycle::{ProcessLocal, Registration};
use crate::store::CacheStore;

const DEFAULT_NAME: &str = "default";
const DEFAULT_FETCH_WAIT: Duration = Duration::from_secs(10);
/// A clock has an end.
const LONGEST_FETCH_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Makes a [`Cache`]; see [`Cache::builder`].
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
    codec: Codec,
    fetch_wait: Duration,
    on_error: Option<Observer>,
}

impl Builder {
    pub(super) fn new(store: Arc<dyn CacheStore>) -> Builder {
        Builder {
            store,
            name: DEFAULT_NAME.to_owned(),
            prefix: Prefix::none(),
            codec: Codec::default(),
            fetch_wait: DEFAULT_FETCH_WAIT,
            on_error: None,
        }
    }

    /// What [`Cache::named`] finds it by, and reports call it. Defaults to "default".
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

    /// How values are written. Defaults to [`Codec::MessagePack`].
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
        self.codec = codec;
        self
    }

    /// How long a [`fetch`](Cache::fetch) waits for the loader of another, from its own arrival on, before it runs its own.
    /// At most a year. Defaults to 10 s. An asynchronous caller outside of tokio has no clock, and waits for the other to end.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).fetch_wait(Duration::from_millis(500)).build();
    /// ```
    pub fn fetch_wait(mut self, wait: Duration) -> Builder {
        self.fetch_wait = wait.min(LONGEST_FETCH_WAIT);
        self
    }

    /// Calls `observe` with each failure that a caller of [`fetch`](Cache::fetch) does not hear of, for a log. It must not
    /// panic. While a server is down that is once for each fetch. Defaults to counting them only, see
    /// [`Stats::errors`](crate::Stats::errors).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::RedisStore};
    /// use std::time::Duration;
    ///
    /// // Nothing listens on port 1: the loader's value comes all the same.
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

    /// The cache, registered for the life of the process: [`Cache::named`] finds it, and
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) refreshes it. No I/O.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// Cache::builder(MemoryStore::new()).register();
    /// assert!(Cache::named("default").is_some());
    /// ```
    pub fn register(self) -> Cache {
        let name = self.name.clone();
        let store = Arc::clone(&self.store);
        let registration = Registration::listed(&name, move || store.refresh());
        let cache = self.make(registration);
        CACHES.insert(Arc::new((name, cache.clone())));
        cache
    }

    /// The cache, not registered: it lives as long as its handles, and is brought into a forked process at its first use
    /// there. No I/O.
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

    fn make(self, registration: Registration) -> Cache {
        Cache {
            shared: Arc::new(Shared {
                store: self.store,
                registration,
                codec: self.codec,
                fetch_wait: self.fetch_wait,
                on_error: self.on_error,
                local: ProcessLocal::new(),
            }),
            prefix: self.prefix,
            version: None,
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("name", &self.name).field("store", &self.store).finish_non_exhaustive()
    }
}
