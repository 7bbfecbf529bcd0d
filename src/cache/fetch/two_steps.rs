//! Fetches in two steps, for callers that cannot pass a closure: first the read and the claim, then the settling.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::form::{ByteString, FirstRead, Form, Raw, Typed};
use super::lookup;
use super::{Fetching, Loaded, nesting};
use crate::cache::{Cache, Expiry, blocking};
use crate::execution::{Execution, execution};
use crate::lifecycle::generation;
use crate::telemetry::{self, Span};

impl Cache {
    /// [`fetch`](Cache::fetch) in two steps, for callers that cannot pass a loader, such as a binding to another
    /// language. Returns either a value, or a [`Claim`]: the caller then loads the value, and completes or fails the
    /// claim. Meanwhile other callers wait, as for a loader of `fetch`.
    ///
    /// The claim holds the key's [lease](crate::Builder::lease); inside tokio a task renews it. A claim behaves like a
    /// load of `fetch`: after a [`delete`](Cache::delete) its value is not stored, dropping it lets a waiting caller
    /// take over, and other callers wait for it for at most [`load_timeout`](crate::Builder::load_timeout). In a child
    /// of the process that made the claim, completing, failing and dropping it do nothing: the load belongs to the
    /// parent.
    ///
    /// Through the blocking API, a fetch of the same key on the thread that has the claim does not wait for it.
    /// Elsewhere such a fetch would wait for itself: complete the claim first.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, a waiting caller takes over the load.
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let price: u32 = match cache.fetch_begin("price").await {
    ///     Begun::Hit(price) => price,
    ///     Begun::Claim(claim) => claim.complete(100, Duration::from_secs(60)).await,
    /// };
    /// assert_eq!(price, 100);
    /// assert!(matches!(cache.fetch_begin::<u32>("price").await, Begun::Hit(100)));
    /// # });
    /// ```
    pub async fn fetch_begin<T>(&self, key: &str) -> Begun<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        Begun::of(self.begin_as::<Typed<T>>("fetch_begin", key).await)
    }

    /// [`fetch_raw`](Cache::fetch_raw) in two steps, like [`fetch_begin`](Cache::fetch_begin).
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let Begun::Claim(claim) = cache.blocking().fetch_raw_begin("page") else { panic!("the page is not stored") };
    /// let page = claim.blocking_complete("<h1>hello</h1>".into(), Duration::from_secs(60));
    /// assert_eq!(cache.blocking().get_raw("page")?, Some(page));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn fetch_raw_begin(&self, key: &str) -> Begun<Bytes> {
        Begun::of(self.begin_as::<Raw>("fetch_raw_begin", key).await)
    }

    /// Returns a byte string and whether it is stale, or the claim to load it.
    pub(in crate::cache) async fn begin_octets(&self, key: &str) -> Result<(Bytes, bool), Claim<Bytes>> {
        let begun = self.begin_as::<ByteString>("fetch_begin", key).await;
        begun.map(|(value, outcome)| (value, outcome == lookup::outcome(true)))
    }

    async fn begin_as<V: Form + Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
    ) -> Result<(V::Value, &'static str), Claim<V::Value>>
    where
        V::Value: Send,
    {
        let span = Span::fetch(self.name());
        let beginning = self.begin_within::<V>(&span, verb, key);
        match telemetry::instrumented(&span, beginning).await {
            Ok((value, outcome)) => {
                span.outcome(outcome);
                Ok((value, outcome))
            }
            Err(open) => Err(Claim { key: key.to_owned(), open }),
        }
    }

    async fn begin_within<V: Form>(
        &self,
        span: &Span,
        verb: &'static str,
        key: &str,
    ) -> Result<(V::Value, &'static str), Box<Open<V>>> {
        let mut fetching: Fetching<V, ()> = Fetching::new(self, verb, &[key], self.local().flights.landed());
        if !self.is_forced {
            let read = self.get_raw(key).await;
            fetching.record_read(0, FirstRead::of(self, verb, key, read));
        }
        match Box::pin(fetching.next_loads()).await {
            None => {
                let (answer, outcome) = fetching.into_answers().next().expect("an answer for the key");
                let Ok(value) = answer else { unreachable!("nothing was loaded") };
                Ok((value.into_value(), outcome))
            }
            Some(to_load) => {
                let flights = fetching.begin_loads(&to_load);
                let own = matches!(execution(), Ok(Execution::Inline)).then_some(flights).unwrap_or_default();
                own.iter().for_each(|flight| nesting::claimed(*flight));
                Err(Box::new(Open { fetching, to_load, own, generation: generation(), span: span.clone() }))
            }
        }
    }
}

/// The result of the first step of a fetch in two steps; see [`Cache::fetch_begin`].
#[derive(Debug)]
#[must_use = "a claim that is dropped is failed"]
pub enum Begun<T> {
    /// A value was found.
    Hit(T),
    /// The caller is to load the value.
    Claim(Claim<T>),
}

impl<T> Begun<T> {
    fn of(begun: Result<(T, &'static str), Claim<T>>) -> Begun<T> {
        begun.map_or_else(Begun::Claim, |(value, _)| Begun::Hit(value))
    }
}

/// The claim to load a value for all callers that wait for it; see [`Cache::fetch_begin`]. Dropping it fails it.
#[must_use = "a claim that is dropped is failed"]
pub struct Claim<T> {
    key: String,
    open: Box<dyn Pending<T>>,
}

impl<T> Claim<T> {
    /// Returns the key to load, without the namespace.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the old value, if there is one. Other callers get it during the load, and this one if the load fails.
    pub fn old(&self) -> Option<&T> {
        self.open.old()
    }

    /// Stores the loaded value, passes it to waiting callers, and returns it. As with [`fetch`](Cache::fetch), failures
    /// of the store are counted and reported, not returned.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the value unstored. Waiting callers are woken.
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// if let Begun::Claim(claim) = cache.blocking().fetch_begin("motd") {
    ///     let motd = format!("the message of {:?}", claim.key());
    ///     claim.blocking_complete(motd, Duration::from_secs(60));
    /// }
    /// assert_eq!(cache.blocking().get::<String>("motd")?.as_deref(), Some("the message of \"motd\""));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn complete(self, value: T, expiry: impl Into<Expiry>) -> T {
        self.complete_loaded(Loaded::new(value, expiry)).await
    }

    /// [`complete`](Claim::complete) for a value that may be [not to be stored](Loaded::uncached). Waiting callers in
    /// this process get it.
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, Loaded, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// if let Begun::Claim(claim) = cache.blocking().fetch_begin("user:7") {
    ///     claim.blocking_complete_loaded(Loaded::uncached(None::<String>));
    /// }
    /// assert!(!cache.blocking().exists("user:7")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn complete_loaded(self, loaded: Loaded<T>) -> T {
        self.open.settle(Some(loaded)).await.expect("a loaded value is returned")
    }

    /// Fails the claim: a waiting caller loads next. Returns the [old](Claim::old) value, if there is one. Reads go on
    /// returning it, and the next attempt to load comes after [`load_retry_delay`](crate::Builder::load_retry_delay).
    ///
    /// ```
    /// use prefork_cache::{Begun, Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// if let Begun::Claim(claim) = cache.blocking().fetch_begin::<u32>("price") {
    ///     assert_eq!(claim.blocking_fail(), None);
    /// }
    /// assert_eq!(cache.stats().failed_loads, 1);
    /// ```
    pub async fn fail(self) -> Option<T> {
        self.open.settle(None).await
    }

    /// [`complete`](Claim::complete), inline on the calling thread.
    pub fn blocking_complete(self, value: T, expiry: impl Into<Expiry>) -> T {
        blocking::at_once(std::pin::pin!(self.complete(value, expiry)))
    }

    /// [`complete_loaded`](Claim::complete_loaded), inline on the calling thread.
    pub fn blocking_complete_loaded(self, loaded: Loaded<T>) -> T {
        blocking::at_once(std::pin::pin!(self.complete_loaded(loaded)))
    }

    /// [`fail`](Claim::fail), inline on the calling thread.
    pub fn blocking_fail(self) -> Option<T> {
        blocking::at_once(std::pin::pin!(self.fail()))
    }
}

impl<T> fmt::Debug for Claim<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A claim, without the type of the stored form.
trait Pending<T>: Send {
    fn old(&self) -> Option<&T>;

    fn settle(self: Box<Self>, loaded: Option<Loaded<T>>) -> Pin<Box<dyn Future<Output = Option<T>> + Send>>;
}

struct Open<V: Form> {
    fetching: Fetching<V, ()>,
    to_load: Vec<usize>,
    /// The flights that this thread must not wait for, because it leads them.
    own: Vec<u64>,
    generation: u64,
    span: Span,
}

impl<V: Form + Send + 'static> Pending<V::Value> for Open<V>
where
    V::Value: Send,
{
    fn old(&self) -> Option<&V::Value> {
        self.fetching.wanted[0].old.as_ref().map(|(old, _)| old.value())
    }

    fn settle(
        mut self: Box<Self>,
        loaded: Option<Loaded<V::Value>>,
    ) -> Pin<Box<dyn Future<Output = Option<V::Value>> + Send>> {
        Box::pin(async move {
            self.own.iter().for_each(|flight| nesting::settled(*flight));
            if self.generation != generation() {
                let old = self.fetching.wanted[0].old.take().map(|(old, _)| old.into_value());
                return loaded.map(|loaded| loaded.value).or(old);
            }
            let Open { mut fetching, to_load, span, .. } = *self;
            let loaded = loaded.map(|loaded| loaded.map(V::of)).ok_or(());
            telemetry::instrumented(&span, fetching.settle_loads(to_load, vec![loaded])).await;
            let (answer, outcome) = fetching.into_answers().next().expect("an answer for the key");
            span.outcome(outcome);
            answer.ok().map(V::into_value)
        })
    }
}
