//! A fetch whose load goes on without its caller.

use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::Loaded;
use super::form::Typed;
use super::loading::{Fetching, Found};
use crate::cache::{Cache, Expiry, settled};
use crate::net::{Drive, drive};
use crate::telemetry::{self, Span};

impl Cache {
    /// [`fetch`](Cache::fetch) with a loader that runs as a tokio task of its own. A value that is to be refreshed ahead is
    /// answered at once, and a stale one at once or after [`soft_timeout`](Cache::soft_timeout), while the load goes on; a
    /// caller that is cancelled does not cancel it. Where there is no value yet, and outside of a tokio runtime, the caller
    /// waits as for `fetch`. A panic of a loader that nobody waits for is a failure like any other.
    ///
    /// # Errors
    ///
    /// The loader's, to its own caller, if there is no old value.
    ///
    /// # Panics
    ///
    /// If there is no old value: when the loader panics, and in a child process that polls the future of its parent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the load running; what it loads is stored.
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
    /// let never = async || std::future::pending::<Result<u32, std::io::Error>>().await;
    /// let price = cache.fetch_detached("price", expiry, never).await;
    /// assert_eq!(price.unwrap(), 100, "the load goes on");
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    pub async fn fetch_detached<T, E, F>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> F + Send + 'static,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let expiry = expiry.into();
        if !matches!(drive(), Ok(Drive::Tokio(_))) {
            return self.fetch(key, expiry, async move || load().await).await;
        }
        let load = async move || load().await.map(|value| Loaded::new(Typed(value), expiry));
        let span = Span::fetch(self.shared.registration.name());
        let mut fetching = match Fetching::new(self, key, &span) {
            Ok(fetching) => fetching,
            Err(error) => {
                self.report(&error);
                return self.load(load).await.map(|Typed(value)| value);
            }
        };
        let found = if self.is_forced { Found::Nothing } else { telemetry::instrumented(&span, fetching.look()).await };
        let (cache, key) = (self.clone(), key.to_owned());
        match found {
            Found::Settled { value: Typed(value), is_stale, .. } => Ok(fetching.served(value, is_stale)),
            Found::Nothing => {
                let terms = fetching.into_terms();
                let loading = async move {
                    let fetching = terms.by(&cache, &key);
                    if cache.is_forced { fetching.load_anyway(load).await } else { fetching.load_missing(load).await }
                };
                let task = tokio::spawn(telemetry::instrumented(&span, loading));
                joined(task).await.map(|Typed(value)| value)
            }
            Found::Old { value: Typed(old), is_stale, .. } => {
                let Some(lead) = fetching.try_lead() else { return Ok(fetching.served(old, is_stale)) };
                let own = Span::fetch(self.shared.registration.name());
                let terms = fetching.into_terms().within(own.clone());
                // A panic is a failure like any other here: nobody would hear of it, and the next one would follow at once.
                let load = async move || caught(load()).await.map_or(Err(None), |loaded| loaded.map_err(Some));
                let refreshing = async move { terms.by(&cache, &key).refresh(lead, load).await };
                let task = tokio::spawn(telemetry::instrumented(&own, refreshing));
                let patience = if is_stale { self.soft_timeout } else { Duration::ZERO };
                let (value, outcome) = match joined_within(patience, task).await {
                    Some(Typed(value)) => (value, "loaded"),
                    None if is_stale => (old, "stale"),
                    None => (old, "hit"),
                };
                span.outcome(outcome);
                Ok(value)
            }
        }
    }
}

/// A load, or nothing if it panics.
async fn caught<T>(load: impl Future<Output = T>) -> Option<T> {
    let mut load = pin!(load);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_panic) => Poll::Ready(None),
    })
    .await
}

/// What a task of this process's own returns.
async fn joined<R: Send>(task: JoinHandle<R>) -> R {
    match settled(Box::pin(task)).await {
        Ok(Ok(output)) => output,
        Ok(Err(failure)) => match failure.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is being shut down, and this caller with it.
            Err(_) => pending().await,
        },
        Err(forked) => panic!("{forked}"),
    }
}

/// The same, if it comes in time.
async fn joined_within<T: Send>(patience: Duration, task: JoinHandle<Option<T>>) -> Option<T> {
    if patience.is_zero() {
        return None;
    }
    let in_time = settled(Box::pin(tokio::time::timeout(patience, task))).await;
    in_time.ok()?.ok()?.ok()?
}
