//! The contract of a store: [`CacheStore`], and the types of its arguments.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::Refresh;
use crate::server_stats::ServerStats;

#[cfg(any(feature = "redis", feature = "memcached"))]
mod builder;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod credentials;
#[cfg(any(feature = "memcached", feature = "redis"))]
mod error_reply;
mod forward;
mod hash_slot;
mod kept;
pub(crate) mod lease_holder;
mod lease_key;
#[cfg(feature = "memcached")]
mod memcached;
#[cfg(feature = "memory")]
mod memory;
mod null;
mod open;
mod operation;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod scatter_gather;
mod tiered;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod tls;
mod url;

pub use kept::Kept;
#[cfg(feature = "memcached")]
use lease_key::{key_of_lease, settling_key};
pub(crate) use lease_key::{lease_key, lock_key, reserved_for};
pub use operation::{Op, Outcome, Replacement, Settle};

/// The stores of this crate.
pub mod stores {
    #[cfg(any(feature = "redis", feature = "memcached"))]
    pub use super::credentials::Credentials;
    #[cfg(feature = "memcached")]
    pub use super::memcached::{MemcachedBuilder, MemcachedStore};
    #[cfg(feature = "memory")]
    pub use super::memory::{AtFork, MemoryBuilder, MemoryStore, MemoryUsage};
    pub use super::null::NullStore;
    pub use super::open::from_url;
    #[cfg(feature = "redis")]
    pub use super::redis::{RedisBuilder, RedisStore, Replicas};
    pub use super::tiered::TieredStore;
}

/// How long an entry lives in a store.
///
/// ```
/// use prefork_cache::Ttl;
/// use std::time::Duration;
///
/// assert_eq!(Ttl::from(Duration::from_secs(60)), Ttl::After(Duration::from_secs(60)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ttl {
    /// The entry stays until it is deleted or evicted.
    Never,
    /// The entry expires after this duration. It is rounded up to the store's unit: a millisecond for Redis and memory,
    /// a second for Memcached, whose clock ticks in seconds, so that an entry may expire up to a second early. Zero is
    /// refused.
    After(Duration),
}

impl Ttl {
    pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    /// Returns the duration, or `None` for [`Ttl::Never`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidTtl`] for a duration of zero, or of more than a hundred years.
    ///
    /// ```
    /// use prefork_cache::Ttl;
    /// use std::time::Duration;
    ///
    /// assert_eq!(Ttl::Never.duration()?, None);
    /// assert_eq!(Ttl::After(Duration::from_secs(1)).duration()?, Some(Duration::from_secs(1)));
    /// assert!(Ttl::After(Duration::ZERO).duration().is_err());
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn duration(self) -> Result<Option<Duration>> {
        match self {
            Ttl::Never => Ok(None),
            Ttl::After(duration) if duration > Ttl::LONGEST => Err(Error::new(
                ErrorKind::InvalidTtl,
                format!(
                    "a TTL of {} s is longer than a hundred years: an entry that does not expire has Ttl::Never, or Expiry::NEVER",
                    duration.as_secs()
                ),
            )),
            Ttl::After(Duration::ZERO) => Err(Error::new(
                ErrorKind::InvalidTtl,
                "a TTL of zero: an entry that does not expire has Ttl::Never, or Expiry::NEVER",
            )),
            Ttl::After(duration) => Ok(Some(duration)),
        }
    }
}

impl From<Duration> for Ttl {
    fn from(duration: Duration) -> Ttl {
        Ttl::After(duration)
    }
}

/// The condition under which a value is stored.
///
/// ```
/// use prefork_cache::{CacheStore, Ttl, When, stores::MemoryStore};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let store = MemoryStore::new();
/// assert!(!store.set("motd", "hello".into(), Ttl::Never, When::IfPresent).await?);
/// assert!(store.set("motd", "hello".into(), Ttl::Never, When::IfAbsent).await?);
/// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// Stores the value whether or not there is an entry.
    Always,
    /// Stores the value only if there is no entry.
    IfAbsent,
    /// Stores the value only if there is an entry to replace.
    IfPresent,
}

/// A key-value store of bytes, on which a [`Cache`](crate::Cache) is built.
///
/// Implement it, with the crates `async-trait` and `bytes`, to build a cache on something other than Redis, Memcached
/// or memory. The example `custom_store` does so, and the feature `conformance` has a test for every rule below. A
/// wrapper around another store should forward every method, the provided ones too: otherwise the inner store's own
/// batches and counters are not used, and its [`refresh`](CacheStore::refresh) is not called.
///
/// ```
/// use prefork_cache::{CacheStore, Ttl, When, stores};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let store = stores::from_url("memory://")?;
/// store.set("motd", "hello".into(), Ttl::Never, When::Always).await?;
/// assert_eq!(store.get("motd").await?.as_deref(), Some(&b"hello"[..]));
/// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
/// ```
///
/// # Contract
///
/// - A key is any non-empty string. An empty key is refused with [`ErrorKind::InvalidKey`]. Two different keys name two
///   different entries, whatever characters they contain. A value is any sequence of bytes, including an empty one.
/// - A stored value is visible to every later call until the entry expires, is evicted, overwritten or deleted.
/// - Every wait has a time limit that the store sets.
/// - Conditional writes, counters and [`compare_and_set`](CacheStore::compare_and_set) are atomic among all clients of
///   the same server.
/// - Dropping a future before it is ready leaves the store usable: no later call receives the reply to the dropped
///   call. The dropped call itself may or may not have taken effect.
/// - After a fork, the child does not use the parent's connections. The stores of this crate ensure this themselves.
///   For any other store, the cache calls [`refresh`](CacheStore::refresh) once in each new process, before any other
///   method.
#[async_trait]
pub trait CacheStore: Debug + Send + Sync + 'static {
    /// Returns the kind of the store for reports and errors: "redis", "memcached", "memory".
    fn name(&self) -> &str;

    /// Returns the value under a key, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// Returns the value under a key from the authoritative store, bypassing any nearer copy. A fetch calls it before
    /// it loads, since another process may have loaded the value in the meantime.
    ///
    /// Provided: calls [`get`](CacheStore::get).
    async fn get_latest(&self, key: &str) -> Result<Option<Bytes>> {
        self.get(key).await
    }

    /// Stores a value. Returns whether it was stored, which is `true` for [`When::Always`].
    ///
    /// With [`When::Always`], a store may write the value a second time if the connection breaks before the reply. A
    /// write by another client between the two is then overwritten.
    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool>;

    /// Removes an entry. Returns whether there was one.
    async fn delete(&self, key: &str) -> Result<bool>;

    /// Stores `new` if the value of the entry is `expected`, or, for an `expected` of `None`, if there is no entry. A
    /// `new` of `None` removes the entry instead. Returns whether the entry was as expected.
    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool>;

    /// Removes every entry whose key starts with `prefix`, and no other. An empty prefix means every entry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if the server cannot list its keys.
    async fn clear(&self, prefix: &str) -> Result<()>;

    /// Discards every connection; the next operation dials. Does no I/O and does not wait. Entries that the store has
    /// in memory are kept.
    fn reset(&self);

    /// Calls [`reset`](CacheStore::reset), then dials and checks that the server responds.
    async fn reconnect(&self) -> Result<()>;

    /// Returns whether other processes see the entries that this one stores. If so, a fetch takes a lease, so that one
    /// process loads for all of them.
    ///
    /// Provided: returns `true`.
    fn is_shared(&self) -> bool {
        true
    }

    /// Prepares the store for use in a forked process, and returns how it was done. Called once in each forked process:
    /// by [`lifecycle::after_fork`](crate::lifecycle::after_fork), or before the first operation.
    ///
    /// Provided: calls [`reset`](CacheStore::reset).
    fn refresh(&self) -> Refresh {
        self.reset();
        Refresh::Reset
    }

    /// Sets the time to live of an entry. Returns whether there is such an entry.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated if another
    /// client changes the entry in between.
    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        ttl.duration()?;
        for _ in 0..CONFLICT_ATTEMPTS {
            let Some(value) = self.get(key).await? else { return Ok(false) };
            if self.compare_and_set(key, Some(&value), Some(value.clone()), ttl).await? {
                return Ok(true);
            }
        }
        Err(conflict("touching", key))
    }

    /// Adds to a counter, which is stored as a decimal number, and returns the sum. A missing counter starts at 0 and
    /// gets `ttl`; an existing counter keeps its remaining time to live.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated if another
    /// client changes the entry in between. These cannot keep the remaining time to live, so an existing counter gets
    /// `ttl` too.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotANumber`] if the entry is not a decimal number, or the sum does not fit into an `i64`.
    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        for _ in 0..CONFLICT_ATTEMPTS {
            let current = self.get(key).await?;
            let number = current.as_deref().map_or(Ok(0), |digits| parse_counter(key, digits))?;
            let sum = number.checked_add(by).ok_or_else(|| counter_overflow(key, by))?;
            if self.compare_and_set(key, current.as_deref(), Some(sum.to_string().into()), ttl).await? {
                return Ok(sum);
            }
        }
        Err(conflict("counting", key))
    }

    /// Returns the remaining time to live of an entry by the server's clock, or `None` if there is no entry.
    ///
    /// Provided: returns [`ErrorKind::Unsupported`].
    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key)?;
        let context = format!("{} does not report the time to live of {key:?}", self.name());
        Err(Error::new(ErrorKind::Unsupported, context))
    }

    /// Appends bytes to an entry. A missing entry is created and gets `ttl`; an existing entry keeps its remaining time
    /// to live.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated if another
    /// client changes the entry in between. If [`ttl`](CacheStore::ttl) does not return the remaining time, an existing
    /// entry gets `ttl` too.
    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        for _ in 0..CONFLICT_ATTEMPTS {
            let current = self.get(key).await?;
            let (new, new_ttl) = match &current {
                Some(old) => ([&old[..], &value].concat().into(), self.ttl(key).await.ok().flatten().unwrap_or(ttl)),
                None => (value.clone(), ttl),
            };
            if self.compare_and_set(key, current.as_deref(), Some(new), new_ttl).await? {
                return Ok(());
            }
        }
        Err(conflict("appending to", key))
    }

    /// Returns the entry under a key if the store has it in this process's memory, with a slot for its decoded value.
    /// Neither waits nor sends a request: after a `None`, [`get`](CacheStore::get) may still return a value.
    ///
    /// A [shared read](crate::Cache::get_shared) calls it first.
    ///
    /// Provided: returns `None`.
    fn kept(&self, key: &str) -> Option<Kept> {
        let _ = key;
        None
    }

    /// Moves the entries that the store has in this process's memory into a table that forked children read without
    /// copying it; see [`MemoryStore::freeze`](crate::stores::MemoryStore::freeze). Returns whether any were moved.
    ///
    /// [`Cache::freeze`](crate::Cache::freeze) calls it.
    ///
    /// Provided: returns `false`.
    fn freeze(&self) -> bool {
        false
    }

    /// Carries out several operations, and returns a result for each, in the same order. Operations on the same key, or
    /// on a key and its [lease](Settle), take effect in order. A batch is not atomic. If an operation fails, the others
    /// are still carried out, unless their server has failed.
    ///
    /// Provided: carries out one operation after the other. A store with servers overrides it, to send one write to
    /// each server.
    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        for operation in operations {
            outcomes.push(operation::carry_out(self, operation).await);
        }
        outcomes
    }

    /// Returns the values under several keys, in the order of the keys; see [`get`](CacheStore::get).
    ///
    /// Provided: a [`batch`](CacheStore::batch).
    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        operation::get_many(self, keys).await
    }

    /// Stores several entries, and returns a result for each, in the same order; see [`set`](CacheStore::set).
    ///
    /// Provided: a [`batch`](CacheStore::batch).
    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        operation::set_many(self, entries, ttl).await
    }

    /// Removes several entries, and returns a result for each, in the order of the keys; see
    /// [`delete`](CacheStore::delete).
    ///
    /// Provided: a [`batch`](CacheStore::batch).
    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let operations: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key }).collect();
        let outcomes = self.batch(&operations).await;
        outcomes.into_iter().map(|outcome| outcome.map(|outcome| outcome.is_done())).collect()
    }

    /// Returns this process's statistics for each server of the store, for [`Stats`](crate::Stats).
    ///
    /// Provided: returns none.
    fn servers(&self) -> Vec<ServerStats> {
        Vec::new()
    }

    /// Returns a number that identifies the store in this process. Caches on the same store share their single-flight
    /// loads, and revoke each other's. A wrapper that only forwards calls returns the inner store's identity.
    ///
    /// Provided: returns the address of the store, or `None` if its type has a size of zero.
    fn identity(&self) -> Option<usize> {
        (size_of_val(self) > 0).then(|| std::ptr::from_ref(self).cast::<()>().addr())
    }
}

/// How often a read-modify-write is attempted before it fails with [`ErrorKind::Conflict`].
pub(crate) const CONFLICT_ATTEMPTS: usize = 64;

pub(crate) fn conflict(doing: &str, key: &str) -> Error {
    let context = format!("{doing} {key:?}: other writers won {CONFLICT_ATTEMPTS} times");
    Error::new(ErrorKind::Conflict, context)
}

/// Checks that a key is not empty.
#[inline]
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() { Err(empty_key()) } else { Ok(()) }
}

#[cold]
fn empty_key() -> Error {
    Error::new(ErrorKind::InvalidKey, "the key is empty")
}

/// Checks that a value is not larger than the server's limit.
#[cfg(feature = "__servers")]
pub(crate) fn check_value(key: &str, value: &[u8], limit: usize, server: &dyn std::fmt::Display) -> Result<()> {
    let size = value.len();
    if size <= limit {
        return Ok(());
    }
    let context = format!("the value of {key:?} has {size} bytes, and {server} takes at most {limit}");
    Err(Error::new(ErrorKind::ValueTooLarge, context))
}

/// Calls `send` once with the valid items of a batch. Returns a result for each item, in the order of the items. If
/// `send` itself fails, each item that was passed to it gets that error.
pub(crate) async fn batch<I, T, F>(items: Vec<Result<I>>, send: impl FnOnce(Vec<I>) -> F) -> Vec<Result<T>>
where
    F: Future<Output = Result<Vec<Result<T>>>>,
{
    let mut valid = Vec::with_capacity(items.len());
    let mut refused = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Ok(item) => valid.push(item),
            Err(error) => refused.push((index, error)),
        }
    }
    let count = valid.len();
    let sent = if count == 0 { Ok(Vec::new()) } else { send(valid).await };
    let mut results = match sent {
        Ok(results) => results,
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    };
    results.resize_with(count, || Err(wrong_count()));
    insert_errors(results, refused)
}

/// Inserts each error at its index.
fn insert_errors<T>(results: Vec<Result<T>>, errors: Vec<(usize, Error)>) -> Vec<Result<T>> {
    if errors.is_empty() {
        return results;
    }
    let mut all = Vec::with_capacity(results.len() + errors.len());
    let mut results = results.into_iter();
    for (index, error) in errors {
        let before = index - all.len();
        all.extend(results.by_ref().take(before));
        all.push(Err(error));
    }
    all.extend(results);
    all
}

pub(crate) fn wrong_count() -> Error {
    Error::new(ErrorKind::Protocol, "a batch returned a wrong number of results")
}

pub(crate) fn milliseconds_rounded_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Parses a counter that may end in spaces: Memcached pads with them after a decrement.
pub(crate) fn read_counter(key: &str, text: &[u8]) -> Result<i64> {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    parse_counter(key, &text[..end])
}

/// Parses a counter as Redis does: a decimal number without a plus sign, leading zeros or spaces.
pub(crate) fn parse_counter(key: &str, text: &[u8]) -> Result<i64> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    number.filter(|number| number.to_string().as_bytes() == text).ok_or_else(|| not_a_number(key))
}

pub(crate) fn not_a_number(key: &str) -> Error {
    Error::new(ErrorKind::NotANumber, format!("the entry {key:?} is not a decimal number of 64 bits"))
}

pub(crate) fn counter_overflow(key: &str, by: i64) -> Error {
    Error::new(ErrorKind::NotANumber, format!("adding {by} to the counter {key:?} does not fit into 64 bits"))
}
