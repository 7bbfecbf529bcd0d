//! Fetches whose load runs in a task of its own.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::form::{Form, Typed};
use super::{Fetching, Loaded};
use crate::cache::{Cache, Expiry, fork_guarded};
use crate::execution::{Execution, execution};
use crate::sync::Lock;
use crate::telemetry::{self, Span};

/// The outcome of a load. The error is `None` if the loader panicked.
type Detached<T, E> = (Result<Typed<T>, Option<E>>, &'static str);

impl Cache {
    /// [`fetch`](Cache::fetch) with a loader that runs in a tokio task of its own.
    ///
    /// A value in its refresh-ahead time is returned at once, and a stale one at once or after
    /// [`soft_timeout`](Cache::soft_timeout), while the load goes on. Cancelling the caller does not cancel the load.
    /// If there is no value yet, and outside a tokio runtime, the caller waits as in `fetch`. A panic of a loader that
    /// no caller waits for counts as a failure of the loader.
    ///
    /// # Errors
    ///
    /// The loader's error, to its own caller, if there is no old value.
    ///
    /// # Panics
    ///
    /// If there is no old value and the loader panics, or its runtime is shut down after the loader has begun, or a
    /// child process polls the future of its parent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the load running. The loaded value is stored.
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
        if !matches!(execution(), Ok(Execution::Tokio(_))) {
            return self.fetch(key, expiry, async move || load().await).await;
        }
        let span = Span::fetch(self.shared.registration.name());
        let landed = self.local().flights.landed();
        let mut fetching: Fetching<Typed<T>, Option<E>> = Fetching::new(self, "fetch_detached", &[key], landed);
        if !self.is_forced {
            telemetry::instrumented(&span, fetching.look()).await;
            fetching.lead();
        }
        let loader = Loader::new(load);
        let old = match &fetching.wanted[0] {
            wanted if wanted.answer.is_some() => {
                let (answer, outcome) = fetching.into_answers().next().expect("an answer for the key");
                span.outcome(outcome);
                return Ok(answer.ok().expect("nothing was loaded").0);
            }
            wanted if wanted.old.is_none() => {
                let running = self.local().background.begin();
                let loading = loaded(fetching, loader.clone(), expiry, false);
                let loading = async move {
                    let loaded = loading.await;
                    drop(running);
                    loaded
                };
                let task = tokio::spawn(telemetry::instrumented(&span, loading));
                let (answer, outcome) = joined(task, loader).await;
                span.outcome(outcome);
                return answer.map(|Typed(value)| value).map_err(|error| error.expect("a panic was resumed"));
            }
            // `old` itself moves into the task: decode the entry again for the caller.
            wanted => {
                wanted.seen.as_ref().and_then(|held| Typed::<T>::decode(self, key, held)).map(|(Typed(old), _)| old)
            }
        };
        let is_stale = fetching.wanted[0].old.as_ref().is_some_and(|(_, is_stale)| *is_stale);
        let own = Span::fetch(self.shared.registration.name());
        let refreshing = {
            let (own, loading) = (own.clone(), loaded(fetching, loader, expiry, true));
            let running = self.local().background.begin();
            async move {
                let (answer, outcome) = loading.await;
                drop(running);
                own.outcome(outcome);
                // If the load fails, the caller already has the old value.
                answer.ok().filter(|_| outcome == "loaded" || outcome == "coalesced")
            }
        };
        let task = tokio::spawn(telemetry::instrumented(&own, refreshing));
        let patience = if is_stale { self.soft_timeout } else { Duration::ZERO };
        let (value, outcome) = match (joined_within(patience, task).await, old) {
            (Some(Typed(value)), _) => (value, "loaded"),
            (None, Some(old)) => (old, super::lookup::outcome(is_stale)),
            (None, None) => unreachable!("an entry that was decoded decodes again"),
        };
        span.outcome(outcome);
        Ok(value)
    }
}

/// A loader, run either by a task or by the caller that spawned it.
struct Loader<L>(Arc<Lock<Option<L>>>);

impl<L> Loader<L> {
    fn new(load: L) -> Loader<L> {
        Loader(Arc::new(Lock::new("detached loader", Some(load))))
    }

    /// Returns the loader, to the first caller.
    fn take(&self) -> Option<L> {
        self.0.lock().take()
    }
}

impl<L> Clone for Loader<L> {
    fn clone(&self) -> Loader<L> {
        Loader(Arc::clone(&self.0))
    }
}

/// Claims, loads, settles and waits, after the read. With `catches`, a panic counts as a failure of the loader: no
/// caller would see it, or the next caller would panic at once as well.
async fn loaded<T, E, L, F>(
    fetching: Fetching<Typed<T>, Option<E>>,
    loader: Loader<L>,
    expiry: Expiry,
    catches: bool,
) -> Detached<T, E>
where
    T: Serialize + DeserializeOwned,
    L: FnOnce() -> F,
    F: Future<Output = Result<T, E>>,
{
    let load = async move || {
        let load = loader.take().expect("the loader runs once");
        let loaded = if catches { caught(load()).await } else { Some(load().await) };
        loaded.map_or(Err(None), |loaded| loaded.map_err(Some)).map(|value| Loaded::new(Typed(value), expiry))
    };
    fetching.one(load).await
}

/// Runs a load, and returns `None` if it panics.
async fn caught<T>(load: impl Future<Output = T>) -> Option<T> {
    let mut load = pin!(load);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_panic) => Poll::Ready(None),
    })
    .await
}

/// Returns the output of a task of this process. If its runtime is shut down before the loader has begun, the caller
/// runs the loader.
async fn joined<T, E, L, F>(task: JoinHandle<Detached<T, E>>, loader: Loader<L>) -> Detached<T, E>
where
    T: Send,
    E: Send,
    L: FnOnce() -> F,
    F: Future<Output = Result<T, E>>,
{
    match fork_guarded(Box::pin(task)).await {
        Ok(Ok(output)) => output,
        Ok(Err(failure)) => match (failure.try_into_panic(), loader.take()) {
            (Ok(panic), _) => resume_unwind(panic),
            (Err(_), Some(load)) => (load().await.map(Typed).map_err(Some), "loaded"),
            (Err(_), None) => panic!("the tokio runtime of a detached load was shut down before the load had ended"),
        },
        Err(forked) => panic!("{forked}"),
    }
}

/// Returns the output of a task if it ends within `patience`.
async fn joined_within<T: Send>(patience: Duration, task: JoinHandle<Option<T>>) -> Option<T> {
    if patience.is_zero() {
        return None;
    }
    let in_time = fork_guarded(Box::pin(tokio::time::timeout(patience, task))).await;
    in_time.ok()?.ok()?.ok()?
}
