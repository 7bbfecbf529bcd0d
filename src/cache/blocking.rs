//! The blocking API: the operations of a cache, inline on the calling thread.

use std::future::{Future, ready};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Begun, Cache, Expiry, Loaded, LockGuard, Stats};
use crate::error::Result;
use crate::execution::{inline, outside_inline};
use crate::store::Ttl;

/// The operations of a [`Cache`], run inline on the calling thread, without a runtime or another thread. See
/// [`Cache::blocking`].
///
/// For a master that warms its caches before it forks, and for any thread that runs no asynchronous code, a tokio
/// runtime's own threads included. Each method does the same as the one of [`Cache`]. Its waits block the thread,
/// within the store's timeouts.
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// let warm = cache.blocking();
/// warm.set("motd", "hello", Duration::from_secs(60))?;
/// warm.increment("warmed", 1, Duration::from_secs(60))?;
/// assert_eq!(warm.get::<String>("motd")?.as_deref(), Some("hello"));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Blocking<'a> {
    cache: &'a Cache,
}

/// Runs an operation that never suspends, since every wait in it blocks. It is a macro so that the operation's future
/// is created where it is polled: the future is large, and a hit in memory is short.
macro_rules! now {
    ($operation:expr) => {
        at_once(pin!($operation))
    };
}

#[inline]
pub(super) fn at_once<F: Future>(mut operation: Pin<&mut F>) -> F::Output {
    match inline(|| operation.as_mut().poll(&mut Context::from_waker(Waker::noop()))) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("an inline operation has suspended"),
    }
}

impl<'a> Blocking<'a> {
    #[inline]
    pub(super) fn new(cache: &'a Cache) -> Blocking<'a> {
        Blocking { cache }
    }

    #[inline]
    pub(super) fn cache(self) -> &'a Cache {
        self.cache
    }

    /// Runs any future of this crate inline on the calling thread, [`octets`](Cache::octets) for example.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert_eq!(cache.blocking().run(cache.octets().get("motd"))?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    #[inline]
    pub fn run<F: Future>(self, operation: F) -> F::Output {
        now!(operation)
    }

    /// As [`Cache::get`].
    ///
    /// # Errors
    ///
    /// The same as for the method of [`Cache`]; so for all methods below.
    pub fn get<T: DeserializeOwned>(self, key: &str) -> Result<Option<T>> {
        now!(self.cache.get(key))
    }

    /// As [`Cache::get_raw`].
    pub fn get_raw(self, key: &str) -> Result<Option<Bytes>> {
        now!(self.cache.get_raw(key))
    }

    /// As [`Cache::set`].
    pub fn set<T: Serialize + ?Sized>(self, key: &str, value: &T, expiry: impl Into<Expiry>) -> Result<()> {
        now!(self.cache.set(key, value, expiry))
    }

    /// As [`Cache::set_raw`].
    pub fn set_raw(self, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>) -> Result<()> {
        now!(self.cache.set_raw(key, value, expiry))
    }

    /// As [`Cache::add_raw`].
    pub fn add_raw(self, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>) -> Result<bool> {
        now!(self.cache.add_raw(key, value, expiry))
    }

    /// As [`Cache::add`].
    pub fn add<T: Serialize + ?Sized>(self, key: &str, value: &T, expiry: impl Into<Expiry>) -> Result<bool> {
        now!(self.cache.add(key, value, expiry))
    }

    /// As [`Cache::replace`].
    pub fn replace<T: Serialize + ?Sized>(self, key: &str, value: &T, expiry: impl Into<Expiry>) -> Result<bool> {
        now!(self.cache.replace(key, value, expiry))
    }

    /// As [`Cache::delete`].
    pub fn delete(self, key: &str) -> Result<bool> {
        now!(self.cache.delete(key))
    }

    /// As [`Cache::exists`].
    pub fn exists(self, key: &str) -> Result<bool> {
        now!(self.cache.exists(key))
    }

    /// As [`Cache::take`].
    pub fn take<T: DeserializeOwned>(self, key: &str) -> Result<Option<T>> {
        now!(self.cache.take(key))
    }

    /// As [`Cache::touch`].
    pub fn touch(self, key: &str, expiry: impl Into<Expiry>) -> Result<bool> {
        now!(self.cache.touch(key, expiry))
    }

    /// As [`Cache::expire`].
    pub fn expire(self, key: &str) -> Result<bool> {
        now!(self.cache.expire(key))
    }

    /// As [`Cache::append`].
    pub fn append(self, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>) -> Result<()> {
        now!(self.cache.append(key, value, expiry))
    }

    /// As [`Cache::expires_in`].
    pub fn expires_in(self, key: &str) -> Result<Option<Ttl>> {
        now!(self.cache.expires_in(key))
    }

    /// As [`Cache::update`].
    pub fn update<T: Serialize + DeserializeOwned>(
        self,
        key: &str,
        expiry: impl Into<Expiry>,
        change: impl FnMut(Option<T>) -> Option<T>,
    ) -> Result<Option<T>> {
        now!(self.cache.update(key, expiry, change))
    }

    /// As [`Cache::increment`].
    pub fn increment(self, key: &str, by: i64, expiry: impl Into<Expiry>) -> Result<i64> {
        now!(self.cache.increment(key, by, expiry))
    }

    /// As [`Cache::decrement`].
    pub fn decrement(self, key: &str, by: i64, expiry: impl Into<Expiry>) -> Result<i64> {
        now!(self.cache.decrement(key, by, expiry))
    }

    /// As [`Cache::counter`].
    pub fn counter(self, key: &str) -> Result<Option<i64>> {
        now!(self.cache.counter(key))
    }

    /// As [`Cache::get_many`].
    pub fn get_many<T: DeserializeOwned>(self, keys: &[impl AsRef<str>]) -> Vec<Result<Option<T>>> {
        now!(self.cache.get_many(keys))
    }

    /// As [`Cache::get_many_raw`].
    pub fn get_many_raw(self, keys: &[impl AsRef<str>]) -> Vec<Result<Option<Bytes>>> {
        now!(self.cache.get_many_raw(keys))
    }

    /// As [`Cache::set_many`].
    pub fn set_many<T: Serialize>(
        self,
        entries: &[(impl AsRef<str>, T)],
        expiry: impl Into<Expiry>,
    ) -> Vec<Result<()>> {
        now!(self.cache.set_many(entries, expiry))
    }

    /// As [`Cache::delete_many`].
    pub fn delete_many(self, keys: &[impl AsRef<str>]) -> Vec<Result<bool>> {
        now!(self.cache.delete_many(keys))
    }

    /// As [`Cache::fetch`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's.
    pub fn fetch<T, E>(self, key: &str, expiry: impl Into<Expiry>, load: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        now!(self.cache.fetch(key, expiry, async move || outside_inline(load)))
    }

    /// As [`Cache::fetch_raw`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's.
    pub fn fetch_raw<V: Into<Bytes>, E>(
        self,
        key: &str,
        expiry: impl Into<Expiry>,
        load: impl FnOnce() -> Result<V, E>,
    ) -> Result<Bytes, E> {
        now!(self.cache.fetch_raw(key, expiry, async move || outside_inline(load)))
    }

    /// As [`Cache::fetch_loaded`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's.
    pub fn fetch_loaded<T, E>(self, key: &str, load: impl FnOnce() -> Result<Loaded<T>, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        now!(self.cache.fetch_loaded(key, async move || outside_inline(load)))
    }

    /// As [`Cache::fetch_many`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's, for each key.
    pub fn fetch_many<'k, T, E>(
        self,
        keys: &'k [impl AsRef<str>],
        expiry: impl Into<Expiry>,
        mut load: impl FnMut(&[&'k str]) -> Vec<Result<T, E>>,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
    {
        now!(self.cache.fetch_many(keys, expiry, |missing| ready(outside_inline(|| load(&missing)))))
    }

    /// As [`Cache::fetch_many_loaded`], with a loader that blocks.
    ///
    /// # Errors
    ///
    /// The loader's, for each key.
    pub fn fetch_many_loaded<'k, T, E>(
        self,
        keys: &'k [impl AsRef<str>],
        mut load: impl FnMut(&[&'k str]) -> Vec<Result<Loaded<T>, E>>,
    ) -> Vec<Result<T, E>>
    where
        T: Serialize + DeserializeOwned + Clone,
        E: Clone,
    {
        now!(self.cache.fetch_many_loaded(keys, |missing| ready(outside_inline(|| load(&missing)))))
    }

    /// As [`Cache::fetch_begin`]. Complete the claim with [`Claim::blocking_complete`](crate::Claim::blocking_complete)
    /// and the methods beside it.
    pub fn fetch_begin<T>(self, key: &str) -> Begun<T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        now!(self.cache.fetch_begin(key))
    }

    /// As [`Cache::fetch_raw_begin`].
    pub fn fetch_raw_begin(self, key: &str) -> Begun<Bytes> {
        now!(self.cache.fetch_raw_begin(key))
    }

    /// As [`Cache::lock`].
    pub fn lock(self, key: &str, ttl: Duration) -> Result<Option<LockGuard>> {
        now!(self.cache.lock(key, ttl))
    }

    /// As [`Cache::close`].
    pub fn close(self, within: Duration) -> Result<()> {
        now!(self.cache.close(within))
    }

    /// As [`Cache::clear`].
    pub fn clear(self) -> Result<()> {
        now!(self.cache.clear())
    }

    /// As [`Cache::reset`].
    pub fn reset(self) {
        self.cache.reset();
    }

    /// As [`Cache::reconnect`].
    pub fn reconnect(self) -> Result<()> {
        now!(self.cache.reconnect())
    }

    /// As [`Cache::stats`].
    pub fn stats(self) -> Stats {
        self.cache.stats()
    }
}
