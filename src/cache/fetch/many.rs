//! Many keys fetched together.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::form::Typed;
use super::{Fetching, Loaded};
use crate::cache::{Cache, Expiry};
use crate::error::Result;

impl Cache {
    /// [`fetch`](Cache::fetch) for many keys: one read, one call of the loader with the keys that are to be loaded
    /// (each once, in the order of their first occurrence), one write. The loader answers for each of them, in that
    /// order; where nothing is to be loaded it is not called.
    ///
    /// The results stand in the order of `keys`, each key with its own. A stale value is answered where its load fails.
    ///
    /// Each key is loaded as by `fetch`: by one caller among all processes, refreshed ahead by one while the others get
    /// the current value, and not stored over a value that was set or after a delete that came meanwhile. Keys that
    /// others are loading are waited for after this caller's own were loaded; the loader is called again only for keys
    /// whose loaders have given up.
    ///
    /// # Errors
    ///
    /// The loader's, for each key. Where one failure is that of all, answer with as many clones of it; an error that is
    /// not `Clone` can be put into an [`Arc`](std::sync::Arc).
    ///
    /// # Panics
    ///
    /// If the loader answers for another number of keys than it was asked for.
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
    pub async fn fetch_many<T, E>(
        &self,
        keys: &[&str],
        expiry: impl Into<Expiry>,
        mut load: impl AsyncFnMut(&[&str]) -> Vec<Result<T, E>>,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
    {
        let expiry = expiry.into();
        let mut places = HashMap::new();
        let mut once: Vec<&str> = Vec::new();
        for &key in keys {
            places.entry(key).or_insert_with(|| {
                once.push(key);
                once.len() - 1
            });
        }
        let mut fetching = Fetching::new(self, "fetch_many", &once, self.local().flights.landed());
        if !self.is_forced {
            fetching.look().await;
        }
        while let Some(asked) = Box::pin(fetching.next_loads()).await {
            let keys: Vec<&str> = asked.iter().map(|place| once[*place]).collect();
            let loading = async {
                let loaded = load(&keys).await;
                let (wanted, answered) = (keys.len(), loaded.len());
                assert!(answered == wanted, "the loader was asked for {wanted} keys, and has answered for {answered}");
                loaded.into_iter().map(|loaded| loaded.map(|value| Loaded::new(Typed(value), expiry))).collect()
            };
            Box::pin(fetching.load_and_settle(asked, loading)).await;
        }
        let answers: Vec<Result<T, E>> =
            fetching.into_answers().map(|(answer, _)| answer.map(|Typed(value)| value)).collect();
        keys.iter().map(|key| answers[places[key]].clone()).collect()
    }
}
