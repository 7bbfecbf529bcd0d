//! Read, or load and store: one key.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, Expiry};
use crate::error::Result;
use crate::telemetry::{self, Span};
use form::{Bare, Form, Typed};
use loading::{Fetching, Found};

pub(super) use flight::Flights;
pub use loaded::Loaded;

#[cfg(feature = "tokio")]
mod detached;
mod flight;
mod form;
mod lease;
mod loaded;
mod loading;
mod many;
mod storing;

impl Cache {
    /// The value under a key, or else what `load` returns, which is then stored.
    ///
    /// - *There is a fresh value*: it is returned.
    /// - *There is an old value*, [stale or to be refreshed ahead](Expiry): one caller, among all processes on the same server,
    ///   runs its loader and waits for it. Every other caller gets the old value at once. If the loader fails, its caller
    ///   gets the old value too, [`Builder::on_error`](crate::Builder::on_error) is told that it failed (not why: the loader's
    ///   error is the loader's to log), and the next try comes after [`Builder::retry_after`](crate::Builder::retry_after).
    /// - *There is none*: one caller, among all processes on the same server (on
    ///   [`MemoryStore`](crate::stores::MemoryStore), in the process), runs its loader. The other callers wait for its value,
    ///   each for [`Builder::fetch_wait`](crate::Builder::fetch_wait) at most; then they run their own loaders and store what
    ///   these return. If the caller that loads fails, panics or is cancelled, another one takes over: at once in the same
    ///   process, within about 0.1 s in another one. If its process is killed, another one takes over when the
    ///   [lease](crate::Builder::lease) ends.
    ///
    /// What is loaded takes the place of what was there when the load began. A value that somebody sets meanwhile stays, and
    /// after a [`delete`](Cache::delete) nothing is kept.
    ///
    /// The cache's own failures are not the caller's: a store that cannot be reached, a key that is refused or a value that
    /// cannot be encoded are counted, and told to [`Builder::on_error`](crate::Builder::on_error), and the loader's value is
    /// returned. A store that did not answer the read is not asked to keep the value.
    ///
    /// A loader may fetch other keys. If it fetches the very key that it loads: a blocking one runs the inner loader; an
    /// asynchronous one waits for `fetch_wait` (10 s), and then runs it.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller, if there is no old value; it is not stored.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the loader's, and hands the loading on to somebody who waits.
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
    pub async fn fetch<T, E>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        let expiry = expiry.into();
        self.fetch_loaded(key, async move || load().await.map(|value| Loaded::new(value, expiry))).await
    }

    /// [`fetch`](Cache::fetch) with a loader that chooses the expiry, or declines to have the value stored.
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
    /// // What Rails calls `skip_nil`: nothing is stored for a user who does not exist.
    /// let user = || Ok::<_, std::io::Error>(Loaded::uncached(None));
    /// assert_eq!(cache.blocking().fetch_loaded::<Option<String>, _>("user:7", user)?, None);
    /// assert!(!cache.blocking().exists("user:7").unwrap());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_loaded<T, E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<Loaded<T>, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        let fetched = self.fetch_as(key, async move || load().await.map(|loaded| loaded.map(Typed))).await;
        fetched.map(|Typed(value)| value)
    }

    /// [`fetch`](Cache::fetch) for bytes as they are, for other programs to read. Bare bytes carry no times: they are fresh until
    /// `after` has passed, and then gone. `stale_for` and `refresh_ahead` mean nothing for them.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller; it is not stored.
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
    pub async fn fetch_raw<V: Into<Bytes>, E>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl AsyncFnOnce() -> Result<V, E>,
    ) -> Result<Bytes, E> {
        let expiry = expiry.into();
        let load = async move || load().await.map(|value| Loaded::new(Bare(value.into()), expiry));
        self.fetch_as(key, load).await.map(|Bare(bytes)| bytes)
    }

    async fn fetch_as<V: Form, E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<Loaded<V>, E>) -> Result<V, E> {
        let span = Span::fetch(self.shared.registration.name());
        telemetry::instrumented(&span, self.fetch_within(&span, key, load)).await
    }

    async fn fetch_within<V: Form, E>(
        &self,
        span: &Span,
        key: &str,
        load: impl AsyncFnOnce() -> Result<Loaded<V>, E>,
    ) -> Result<V, E> {
        let mut fetching = match Fetching::new(self, key, span) {
            Ok(fetching) => fetching,
            Err(error) => {
                self.report(&error);
                return self.load(load).await;
            }
        };
        if self.is_forced {
            return Box::pin(fetching.load_anyway(load)).await;
        }
        match fetching.look().await {
            Found::Settled { value, is_stale, .. } => Ok(fetching.served(value, is_stale)),
            Found::Old { value: old, is_stale, .. } => match fetching.try_lead() {
                Some(lead) => match Box::pin(fetching.refresh(lead, load)).await {
                    Some(value) => Ok(value),
                    None => Ok(fetching.served(old, is_stale)),
                },
                None => Ok(fetching.served(old, is_stale)),
            },
            Found::Nothing => Box::pin(fetching.load_missing(load)).await,
        }
    }
}
