//! Fetches of one key.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::form::{FirstRead, Form, Found, Raw, Typed};
use super::lookup;
use super::{Fetching, Loaded};
use crate::cache::{Cache, Expiry};
use crate::error::Result;
use crate::telemetry::{self, Span};

impl Cache {
    /// Returns the value under a key. If there is none, calls `load`, and stores and returns the loaded value.
    ///
    /// - *A fresh value*: it is returned.
    /// - *An old value*, [stale or in its refresh-ahead time](Expiry): one caller, among all processes on the same
    ///   server, runs its loader and waits for it. Every other caller gets the old value at once. If the loader fails,
    ///   its caller gets the old value too. [`Builder::on_error`](crate::Builder::on_error) is then called, without the
    ///   loader's error (logging that is up to the loader), and the next attempt to load comes after
    ///   [`Builder::load_retry_delay`](crate::Builder::load_retry_delay).
    /// - *No value*: one caller, among all processes on the same server (on
    ///   [`MemoryStore`](crate::stores::MemoryStore), in the process), runs its loader. The others wait for its value
    ///   as long as its process lives, at most for [`Builder::load_timeout`](crate::Builder::load_timeout). Then one
    ///   caller of each process loads, and the others of that process wait for it, again for at most that long. After
    ///   that, each loads for itself. If the caller that loads fails, panics or is cancelled, another one takes over:
    ///   at once in the same process, within about 0.1 s in another one. If its process is killed, a caller on the same
    ///   host takes over within about 0.1 s, and one on another host when the process has not renewed its lease for
    ///   [`Builder::lease`](crate::Builder::lease).
    ///
    /// The loaded value replaces the entry that was there when the load began. A value that is set during the load
    /// stays, and after a [`delete`](Cache::delete) the loaded value is not stored.
    ///
    /// Failures of the cache are not returned to the caller. If the store cannot be reached, the key is refused, or the
    /// value cannot be encoded, the failure is counted and reported to [`Builder::on_error`](crate::Builder::on_error),
    /// and the loaded value is returned. If the store did not respond to the read, the value is not sent to it either.
    ///
    /// A loader may fetch other keys. Such a fetch waits for another loader for at most
    /// [`Builder::fetch_wait`](crate::Builder::fetch_wait), since that loader may be waiting for this one. If a loader
    /// fetches the key that it loads, the inner loader runs at once, and its value is not stored.
    ///
    /// Through the [blocking](Cache::blocking) API on a thread of a tokio runtime, a caller does not wait for a load
    /// that runs in a task of the same runtime, since that task may need this thread. The caller loads for itself. An
    /// asynchronous loader that blocks the only thread of its runtime for longer than
    /// [`Builder::lease`](crate::Builder::lease) loses its lease, as if its process had died.
    ///
    /// # Errors
    ///
    /// The loader's error, to its own caller, if there is no old value. Errors are not stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the loader's future. A waiting caller then takes over the load.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let load = || Ok::<_, std::io::Error>("loaded".to_owned());
    /// let motd: String = cache.blocking().fetch("motd", Duration::from_secs(60), load)?;
    /// assert_eq!(motd, "loaded");
    /// assert!(cache.blocking().exists("motd")?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// A loader is anything that can be called once and returns a future: `async ||`, `|| async {}`, generic or boxed.
    /// With an error type of the program's own, `?` works in it as usual:
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::{num::ParseIntError, time::Duration};
    ///
    /// #[derive(Debug)]
    /// enum ShopError {
    ///     Price(ParseIntError),
    ///     Io(std::io::Error),
    /// }
    /// # impl From<ParseIntError> for ShopError { fn from(error: ParseIntError) -> Self { ShopError::Price(error) } }
    /// # impl From<std::io::Error> for ShopError { fn from(error: std::io::Error) -> Self { ShopError::Io(error) } }
    ///
    /// async fn ask_the_shop(widget: u32) -> std::io::Result<String> {
    ///     Ok(format!("{widget}00"))
    /// }
    ///
    /// async fn price(cache: &Cache, widget: u32) -> Result<u64, ShopError> {
    ///     let load = async || {
    ///         let price = ask_the_shop(widget).await?;
    ///         Ok(price.parse()?)
    ///     };
    ///     cache.fetch(&format!("price:{widget}"), Duration::from_secs(60), load).await
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert_eq!(price(&cache, 7).await?, 700);
    /// # Ok::<(), ShopError>(()) }).unwrap();
    /// ```
    pub async fn fetch<T, E, F>(&self, key: &str, expiry: impl Into<Expiry>, load: impl FnOnce() -> F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, E>>,
    {
        let expiry = expiry.into();
        let load = async move || load().await.map(|value| Loaded::new(Typed(value), expiry));
        self.fetch_as("fetch", key, load).await.map(|Typed(value)| value)
    }

    /// [`fetch`](Cache::fetch) with a loader that chooses the expiry, or whether the value is stored at all.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Cache::fetch).
    ///
    /// ```
    /// use prefork_cache::{Cache, Expiry, Loaded, stores::MemoryStore};
    /// use std::time::{Duration, SystemTime};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let token = || {
    ///     let expires = SystemTime::now() + Duration::from_secs(3_600);
    ///     Ok::<_, std::io::Error>(Loaded::new("token".to_owned(), Expiry::at(expires)))
    /// };
    /// assert_eq!(cache.blocking().fetch_loaded("token", token)?, "token");
    ///
    /// // Like Rails' `skip_nil`: nothing is stored for a user who does not exist.
    /// let user = || Ok::<_, std::io::Error>(Loaded::uncached(None));
    /// assert_eq!(cache.blocking().fetch_loaded::<Option<String>, _>("user:7", user)?, None);
    /// assert!(!cache.blocking().exists("user:7").unwrap());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_loaded<T, E, F>(&self, key: &str, load: impl FnOnce() -> F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<Loaded<T>, E>>,
    {
        let load = async move || load().await.map(|loaded| loaded.map(Typed));
        self.fetch_as("fetch_loaded", key, load).await.map(|Typed(value)| value)
    }

    /// [`fetch`](Cache::fetch) for raw bytes that other programs can read. Raw bytes carry no times: they are fresh
    /// until `after` has passed, and then expired. `stale_for` and `refresh_ahead` have no effect on them.
    ///
    /// # Errors
    ///
    /// The loader's error, to its own caller. Errors are not stored.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let render = || Ok::<_, std::io::Error>("<h1>hello</h1>");
    /// let page = cache.blocking().fetch_raw("page", Duration::from_secs(60), render)?;
    /// assert_eq!(page, "<h1>hello</h1>");
    /// assert_eq!(cache.blocking().get_raw("page").unwrap(), Some(page));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_raw<V, E, F>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> F,
    ) -> Result<Bytes, E>
    where
        V: Into<Bytes>,
        F: Future<Output = Result<V, E>>,
    {
        let expiry = expiry.into();
        let load = async move || load().await.map(|value| Loaded::new(Raw(value.into()), expiry));
        self.fetch_as("fetch_raw", key, load).await.map(|Raw(bytes)| bytes)
    }

    pub(super) async fn fetch_as<V: Form, E, F: Future<Output = Result<Loaded<V>, E>>>(
        &self,
        verb: &'static str,
        key: &str,
        load: impl FnOnce() -> F,
    ) -> Result<V, E> {
        let span = Span::fetch(self.shared.registration.name());
        telemetry::instrumented(&span, self.fetch_within(&span, verb, key, load)).await
    }

    async fn fetch_within<V: Form, E, F: Future<Output = Result<Loaded<V>, E>>>(
        &self,
        span: &Span,
        verb: &'static str,
        key: &str,
        load: impl FnOnce() -> F,
    ) -> Result<V, E> {
        let landed = self.local().flights.landed();
        let first_read = if self.is_forced {
            None
        } else if let Some(in_memory) = V::read_in_memory(self, verb, key) {
            Some(in_memory)
        } else {
            Some(FirstRead::of(self, verb, key, self.get_raw(key).await))
        };
        // The hot path: most fetches end here.
        if let Some(FirstRead { found: Found::Current { value, is_stale }, .. }) = first_read {
            span.outcome(lookup::outcome(is_stale));
            return Ok(value);
        }
        let mut fetching = Fetching::new(self, verb, &[key], landed);
        if let Some(first_read) = first_read {
            fetching.record_read(0, first_read);
        }
        let (answer, outcome) = Box::pin(fetching.one(load)).await;
        span.outcome(outcome);
        answer
    }
}
