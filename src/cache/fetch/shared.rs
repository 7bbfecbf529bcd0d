//! Fetches that share one decoded value.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Loaded;
use super::form::{FirstRead, Form, Found};
use crate::cache::blocking::at_once;
use crate::cache::freshness::Freshness;
use crate::cache::{Blocking, Cache, Expiry, Sealed};
use crate::error::Result;
use crate::execution::outside_inline;

impl Cache {
    /// [`fetch`](Cache::fetch) that returns a shared value, as [`get_shared`](Cache::get_shared) does: decoded once in
    /// each process. A caller whose own loader has run gets the loader's value, which is not shared with others.
    ///
    /// # Errors
    ///
    /// As [`fetch`](Cache::fetch).
    ///
    /// # Cancel safety
    ///
    /// As [`fetch`](Cache::fetch).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let load = || Ok::<_, std::io::Error>(vec![1, 2, 3]);
    /// let sizes = cache.blocking().fetch_shared("sizes", Duration::from_secs(60), load)?;
    /// assert_eq!(*sizes, [1, 2, 3]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn fetch_shared<T, E, F>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> F,
    ) -> Result<Arc<T>, E>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let expiry = expiry.into();
        let load = async move || load().await.map(|value| Loaded::new(Shared(Arc::new(value)), expiry));
        self.fetch_as("fetch_shared", key, load).await.map(|Shared(value)| value)
    }
}

impl Blocking<'_> {
    /// As [`Cache::fetch_shared`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's error.
    pub fn fetch_shared<T, E>(
        self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E>
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        at_once(pin!(self.cache().fetch_shared(key, expiry, async move || outside_inline(load))))
    }
}

struct Shared<T>(Arc<T>);

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Form for Shared<T> {
    type Value = Arc<T>;

    fn of(value: Arc<T>) -> Shared<T> {
        Shared(value)
    }

    fn value(&self) -> &Arc<T> {
        &self.0
    }

    fn into_value(self) -> Arc<T> {
        self.0
    }

    fn read_in_memory(cache: &Cache, verb: &'static str, key: &str) -> Option<FirstRead<Shared<T>>> {
        // A failure is reported by the read that follows.
        let kept = cache.kept(key).ok()??;
        let found = Found::of(cache.open_shared(verb, key, &kept).map(|(value, freshness)| (Shared(value), freshness)));
        Some(FirstRead { read: Ok(Some(kept.bytes().clone())), found })
    }

    fn seal(&self, cache: &Cache, key: &str, expiry: Expiry) -> Result<Sealed> {
        cache.seal_readable(key, &*self.0, expiry)
    }

    fn share(&self, cache: &Cache, key: &str) -> Result<Bytes> {
        cache.encode_readable(key, &*self.0, None)
    }

    fn decode(cache: &Cache, key: &str, bytes: &Bytes) -> Option<(Shared<T>, Freshness)> {
        cache.decode(key, bytes).ok().map(|(value, freshness)| (Shared(Arc::new(value)), freshness))
    }

    fn open(cache: &Cache, verb: &'static str, key: &str, bytes: &Bytes) -> Option<(Shared<T>, Freshness)> {
        cache.open(verb, key, bytes).map(|(value, freshness)| (Shared(Arc::new(value)), freshness))
    }
}
