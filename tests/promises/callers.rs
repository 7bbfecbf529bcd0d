//! The blocking and the asynchronous API behind one type.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prefork_cache::{Builder, Cache, Expiry, Result, stores};
use tokio::runtime::Runtime;

use crate::harness::Mode;
use support::proxy::Proxy;
use support::servers::{Kind, Server, url_of};
use support::wait::PATIENCE;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Store options with long timeouts, so that a busy machine is not an outage.
pub(crate) const PATIENT: &str = "timeout=20s&connect_timeout=20s";

pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// Returns a registered cache on a server.
pub(crate) fn cache_on(server: &Server, options: &str) -> Cache {
    builder_on(server, options).register()
}

/// Returns a builder of a cache on a server.
pub(crate) fn builder_on(server: &Server, options: &str) -> Builder {
    Cache::builder(stores::from_url(&server.url(options)).expect("a good URL"))
}

/// Returns a registered cache on the server that listens on `port`.
pub(crate) fn cache_at(kind: Kind, port: u16, options: &str) -> Cache {
    Cache::register(stores::from_url(&url_of(kind, port, options)).expect("a good URL"))
}

/// Calls a cache in one mode, in one process.
pub(crate) struct Caller<'a> {
    cache: &'a Cache,
    /// A current-thread runtime, in tokio mode.
    runtime: Option<Runtime>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(mode: Mode, cache: &'a Cache) -> Caller<'a> {
        let runtime = (mode == Mode::Tokio).then(current_thread_runtime);
        Caller { cache, runtime }
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<String>> {
        match &self.runtime {
            None => self.cache.blocking().get(key),
            Some(runtime) => runtime.block_on(self.cache.get(key)),
        }
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<()> {
        match &self.runtime {
            None => self.cache.blocking().set(key, &value, MINUTE),
            Some(runtime) => runtime.block_on(self.cache.set(key, &value, MINUTE)),
        }
    }

    /// Fetches with a loader that returns this value.
    pub(crate) fn fetch(&self, key: &str, loaded: &str) -> String {
        self.fetch_with(key, MINUTE, || loaded.to_owned(), async || loaded.to_owned())
    }

    /// Fetches with a loader for each mode.
    pub(crate) fn fetch_with(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> String,
        load_async: impl AsyncFnOnce() -> String,
    ) -> String {
        let fetched = match &self.runtime {
            None => self.cache.blocking().fetch(key, expiry, || Ok::<_, Infallible>(load())),
            Some(runtime) => runtime.block_on(self.cache.fetch(key, expiry, async || Ok(load_async().await))),
        };
        match fetched {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    pub(crate) fn increment(&self, key: &str) -> Result<i64> {
        match &self.runtime {
            None => self.cache.blocking().increment(key, 1, MINUTE),
            Some(runtime) => runtime.block_on(self.cache.increment(key, 1, MINUTE)),
        }
    }

    pub(crate) fn reconnect(&self) -> Result<()> {
        match &self.runtime {
            None => self.cache.blocking().reconnect(),
            Some(runtime) => runtime.block_on(self.cache.reconnect()),
        }
    }

    /// Runs this many operations, in pairs of a set and a get. Each value names its key and its side, so a reply to
    /// another request is noticed.
    pub(crate) fn converse(&self, side: &str, operations: usize) {
        for round in 0..operations / 2 {
            let key = format!("{side}:{}", round % 64);
            let value = format!("{key} in round {round}");
            self.set(&key, &value).unwrap_or_else(|error| panic!("{side}, set {key}: {error:?}"));
            let answer = self.get(&key).unwrap_or_else(|error| panic!("{side}, get {key}: {error:?}"));
            assert_eq!(answer.as_deref(), Some(&*value), "{side} asked for {key}");
        }
    }
}

pub(crate) fn current_thread_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Like [`until`](support::wait::until), without blocking the runtime.
pub(crate) async fn until_async(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Drives a future until the proxy holds this many replies, one of which is for the future.
pub(crate) async fn until_held<F: Future<Output: Debug>>(proxy: &Proxy, count: usize, awaited: Pin<&mut F>) {
    let held = async {
        while proxy.held() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        held = tokio::time::timeout(PATIENCE, held) => held.expect("timed out waiting until the proxy holds the reply"),
        early = awaited => panic!("the future completed without a reply: {early:?}"),
    }
}

/// Writes and resets in a loop, so that every write dials, until `done` is set. The key is this thread's own.
pub(crate) fn dial_until_done(cache: &Cache, thread: usize, done: &AtomicBool, dials: &AtomicUsize) {
    let key = format!("thread {thread}");
    while !done.load(Ordering::Relaxed) {
        cache.blocking().set(&key, &key, MINUTE).expect("the server is running");
        cache.reset();
        dials.fetch_add(1, Ordering::Relaxed);
    }
}
