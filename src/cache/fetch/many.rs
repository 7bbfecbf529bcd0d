//! Fetches of many keys.

use std::collections::HashMap;
use std::future::Future;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::form::Typed;
use super::{Fetching, Loaded};
use crate::cache::{Cache, Expiry};
use crate::error::Result;

impl Cache {
    /// [`fetch`](Cache::fetch) for many keys (`&["a", "b"]`, a `Vec<String>`, ...): one read, one call of the loader
    /// with the keys to load, one write.
    ///
    /// The loader gets each key once, in the order of first occurrence, and returns one result for each, in the same
    /// order. It is not called if there is nothing to load.
    ///
    /// The results are in the order of `keys`. For a key whose load fails, a stale value is returned if there is one.
    ///
    /// Each key is loaded as by `fetch`: by one caller among all processes. One caller refreshes it ahead while the
    /// others get the current value. The loaded value is not stored over a value that was set during the load, nor
    /// after a delete. Keys that other callers are loading are awaited after this caller has loaded its own. The loader
    /// is called again only for keys that their loaders have failed to load.
    ///
    /// # Errors
    ///
    /// The loader's error, for each key. If one failure concerns all keys, return a clone of it for each. An error that
    /// is not `Clone` can be put into an [`Arc`](std::sync::Arc).
    ///
    /// # Panics
    ///
    /// If the loader returns another number of results than it got keys.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("one", &1, Duration::from_secs(60))?;
    /// let keys = ["one", "three", "seven", "three"];
    /// let lengths = cache.blocking().fetch_many(&keys, Duration::from_secs(60), |missing| {
    ///     assert_eq!(missing, ["three", "seven"]);
    ///     missing.iter().map(|key| Ok::<usize, String>(key.len())).collect()
    /// });
    /// assert_eq!(lengths, [Ok(1), Ok(5), Ok(5), Ok(5)]);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn fetch_many<'k, T, E, F>(
        &self,
        keys: &'k [impl AsRef<str>],
        expiry: impl Into<Expiry>,
        mut load: impl FnMut(Vec<&'k str>) -> F,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
        F: Future<Output = Vec<Result<T, E>>>,
    {
        let expiry = expiry.into();
        let load = |missing| {
            let loading = load(missing);
            async move {
                let loaded = loading.await.into_iter();
                loaded.map(|loaded| loaded.map(|value| Loaded::new(value, expiry))).collect()
            }
        };
        self.fetch_each("fetch_many", keys, load).await
    }

    /// [`fetch_many`](Cache::fetch_many) with a loader that chooses the expiry of each value, or whether it is stored
    /// at all.
    ///
    /// # Errors
    ///
    /// As [`fetch_many`](Cache::fetch_many).
    ///
    /// # Panics
    ///
    /// As [`fetch_many`](Cache::fetch_many).
    ///
    /// ```
    /// use prefork_cache::{Cache, Loaded, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let users = vec!["user:1".to_owned(), "nobody".to_owned()];
    /// let found = cache.blocking().fetch_many_loaded(&users, |missing| {
    ///     let user = |key: &str| key.strip_prefix("user:").map(str::to_owned);
    ///     let load = |key| match user(key) {
    ///         Some(user) => Loaded::new(Some(user), Duration::from_secs(600)),
    ///         None => Loaded::uncached(None),
    ///     };
    ///     missing.iter().copied().map(load).map(Ok::<_, std::io::ErrorKind>).collect()
    /// });
    /// assert_eq!(found, [Ok(Some("1".to_owned())), Ok(None)]);
    /// assert!(!cache.blocking().exists("nobody")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn fetch_many_loaded<'k, T, E, F>(
        &self,
        keys: &'k [impl AsRef<str>],
        load: impl FnMut(Vec<&'k str>) -> F,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
        F: Future<Output = Vec<Result<Loaded<T>, E>>>,
    {
        self.fetch_each("fetch_many_loaded", keys, load).await
    }

    async fn fetch_each<'k, T, E, F>(
        &self,
        verb: &'static str,
        keys: &'k [impl AsRef<str>],
        mut load: impl FnMut(Vec<&'k str>) -> F,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
        F: Future<Output = Vec<Result<Loaded<T>, E>>>,
    {
        let mut indices = HashMap::new();
        let mut unique: Vec<&'k str> = Vec::new();
        for key in keys.iter().map(AsRef::as_ref) {
            indices.entry(key).or_insert_with(|| {
                unique.push(key);
                unique.len() - 1
            });
        }
        let mut fetching = Fetching::new(self, verb, &unique, self.local().flights.landed());
        if !self.is_forced {
            fetching.look().await;
        }
        while let Some(to_load) = Box::pin(fetching.next_loads()).await {
            let missing: Vec<&'k str> = to_load.iter().map(|index| unique[*index]).collect();
            let wanted = missing.len();
            let loading = async {
                let loaded = load(missing).await;
                let answered = loaded.len();
                assert!(answered == wanted, "the loader was asked for {wanted} keys, and has answered for {answered}");
                loaded.into_iter().map(|loaded| loaded.map(|loaded| loaded.map(Typed))).collect()
            };
            Box::pin(fetching.load_and_settle(to_load, loading)).await;
        }
        let results: Vec<Result<T, E>> =
            fetching.into_answers().map(|(answer, _)| answer.map(|Typed(value)| value)).collect();
        keys.iter().map(|key| results[indices[key.as_ref()]].clone()).collect()
    }
}
