//! The contract of a store: bytes in, bytes out, `reset` and `reconnect`.

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
    /// Until it is deleted or evicted.
    Never,
    /// For this long. Rounded up to the server's unit (a millisecond for Redis and memory, a second for Memcached,
    /// whose clock ticks in seconds: an expiry may come up to a second early). Zero is refused.
    After(Duration),
}

impl Ttl {
    pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

    /// The duration, unless it is for ever.
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

/// On what condition a value is stored.
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
    /// Whether or not there is an entry.
    Always,
    /// Only where there is none.
    IfAbsent,
    /// Only over an existing one.
    IfPresent,
}

/// Where a cache keeps its bytes.
///
/// Implement it, with the crates `async-trait` and `bytes`, to put a [`Cache`](crate::Cache) on something else than
/// Redis, Memcached or memory; the example `custom_store` does, and the feature `conformance` has a test of every
/// promise below. A wrapper around another store forwards every method, the provided ones too, or that store's own
/// batches and counters go unused, and its [`refresh`](CacheStore::refresh) is not heard.
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
/// - A key is any non-empty text. An empty one is refused with [`ErrorKind::InvalidKey`]. Two different keys are two
///   different entries, whatever characters they hold. Values are any bytes, the empty ones included.
/// - What one call has stored, every later call sees until the entry expires, is evicted, overwritten or deleted.
/// - Every wait has a bound of the store's own.
/// - Conditional verbs, counters and [`compare_and_set`](CacheStore::compare_and_set) are atomic among all users of the
///   same server.
/// - Dropping a future before it is ready leaves the store usable: no later call receives the dropped call's reply. The
///   dropped call itself may or may not have taken effect.
/// - After a fork, no connection of the parent's is used by the child. The stores of this crate see to that themselves;
///   for any other store the cache calls [`refresh`](CacheStore::refresh) once in each new process, before any other
///   method.
#[async_trait]
pub trait CacheStore: Debug + Send + Sync + 'static {
    /// What kind of store this is, for reports and errors: "redis", "memcached", "memory".
    fn name(&self) -> &str;

    /// The value under a key, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// The value under a key as whoever holds the truth has it, past any nearer copy. Provided:
    /// [`get`](CacheStore::get).
    ///
    /// A fetch asks for it before it loads, since another process may have loaded meanwhile.
    async fn get_latest(&self, key: &str) -> Result<Option<Bytes>> {
        self.get(key).await
    }

    /// Stores a value. Answers whether it was stored: `true` for [`When::Always`].
    ///
    /// With [`When::Always`] a store may write twice where a connection breaks before the answer. A write of somebody
    /// else's that came between the two is then overwritten.
    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool>;

    /// Removes an entry. Answers whether there was one.
    async fn delete(&self, key: &str) -> Result<bool>;

    /// Stores (or with `new` of `None` removes) an entry if it still holds `expected` (`None`: if there is no entry).
    /// Answers whether it did.
    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool>;

    /// Removes every entry whose key starts with `prefix`, and no other. An empty prefix means every entry.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where the server cannot list its keys.
    async fn clear(&self, prefix: &str) -> Result<()>;

    /// Forgets every connection; the next use dials. No I/O, no waiting. What the store holds in memory it keeps.
    fn reset(&self);

    /// [`reset`](CacheStore::reset), then dials now and proves that the server answers.
    async fn reconnect(&self) -> Result<()>;

    /// Whether other processes see what this one stores. A fetch then takes a lease, so that one process loads for all.
    ///
    /// Provided: `true`.
    fn is_shared(&self) -> bool {
        true
    }

    /// Brings the store into a new process, and says how. Called once in each process that was forked, by
    /// [`lifecycle::after_fork`](crate::lifecycle::after_fork) or before the first operation.
    ///
    /// Provided: calls [`reset`](CacheStore::reset).
    fn refresh(&self) -> Refresh {
        self.reset();
        Refresh::Reset
    }

    /// Sets a new time to live. Answers whether there is such an entry.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated while other
    /// writers interfere.
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

    /// Adds to a counter (decimal text) and answers the sum. A missing counter starts from 0 and gets `ttl`; an
    /// existing one keeps the time it has left.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated while other
    /// writers interfere; without a way to read the time left, an existing counter gets `ttl` anew.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotANumber`] where the entry is no decimal number or the sum does not fit.
    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        for _ in 0..CONFLICT_ATTEMPTS {
            let current = self.get(key).await?;
            let number = current.as_deref().map_or(Ok(0), |text| parse_counter(key, text))?;
            let sum = number.checked_add(by).ok_or_else(|| counter_overflow(key, by))?;
            if self.compare_and_set(key, current.as_deref(), Some(sum.to_string().into()), ttl).await? {
                return Ok(sum);
            }
        }
        Err(conflict("counting", key))
    }

    /// How long an entry still lives, as the server counts it; `None` where there is none.
    ///
    /// Provided: [`ErrorKind::Unsupported`].
    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key)?;
        let context = format!("{} does not tell how long {key:?} lives", self.name());
        Err(Error::new(ErrorKind::Unsupported, context))
    }

    /// Puts bytes behind those of an entry. A missing entry is made, and gets `ttl`; an existing one keeps the time it has
    /// left.
    ///
    /// Provided: [`get`](CacheStore::get) and [`compare_and_set`](CacheStore::compare_and_set), repeated while other
    /// writers interfere; where [`ttl`](CacheStore::ttl) does not tell, an existing entry gets `ttl` anew.
    async fn append(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<()> {
        for _ in 0..CONFLICT_ATTEMPTS {
            let held = self.get(key).await?;
            let (whole, left) = match &held {
                Some(held) => ([&held[..], &value].concat().into(), self.ttl(key).await.ok().flatten().unwrap_or(ttl)),
                None => (value.clone(), ttl),
            };
            if self.compare_and_set(key, held.as_deref(), Some(whole), left).await? {
                return Ok(());
            }
        }
        Err(conflict("appending to", key))
    }

    /// The entry under a key, if this store has it in this process's memory, with a place for what it decodes to.
    /// Neither waits nor asks a server: `None` says nothing of what [`get`](CacheStore::get) returns.
    ///
    /// A [shared read](crate::Cache::get_shared) asks for it first. Provided: `None`.
    fn kept(&self, key: &str) -> Option<Kept> {
        let _ = key;
        None
    }

    /// Moves what the store has in this process's memory to where forked children read it without copying it; see
    /// [`MemoryStore::freeze`](crate::stores::MemoryStore::freeze). Returns whether anything was moved.
    ///
    /// [`Cache::freeze`](crate::Cache::freeze) calls it. Provided: `false`.
    fn freeze(&self) -> bool {
        false
    }

    /// Several operations in one go, with a result for each, in their order. Those on one key, and those on a key and
    /// its [lease](Settle), take effect in their order; a batch is not atomic. An operation that fails keeps no other
    /// from being carried out, unless their server has failed.
    ///
    /// Provided: one after the other. A store with servers overrides it, to send one write to each.
    async fn batch(&self, operations: &[Op<'_>]) -> Vec<Result<Outcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        for operation in operations {
            outcomes.push(operation::carry_out(self, operation).await);
        }
        outcomes
    }

    /// [`get`](CacheStore::get) for many keys, in their order. Provided: a [`batch`](CacheStore::batch).
    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        operation::get_many(self, keys).await
    }

    /// [`set`](CacheStore::set) for many entries, in their order. Provided: a [`batch`](CacheStore::batch).
    async fn set_many(&self, entries: &[(&str, Bytes)], ttl: Ttl) -> Vec<Result<()>> {
        operation::set_many(self, entries, ttl).await
    }

    /// [`delete`](CacheStore::delete) for many keys, in their order. Provided: a [`batch`](CacheStore::batch).
    async fn delete_many(&self, keys: &[&str]) -> Vec<Result<bool>> {
        let operations: Vec<Op<'_>> = keys.iter().map(|key| Op::Delete { key }).collect();
        let outcomes = self.batch(&operations).await;
        outcomes.into_iter().map(|outcome| outcome.map(|outcome| outcome.is_done())).collect()
    }

    /// What this process has to do with the servers of the store, for [`Stats`](crate::Stats).
    ///
    /// Provided: none.
    fn servers(&self) -> Vec<ServerStats> {
        Vec::new()
    }

    /// Which store this is, among those of this process: the caches on one store coalesce their loads and revoke each
    /// other's. A wrapper that only passes calls on returns what the store inside returns.
    ///
    /// Provided: the address of the store; `None` for one without a size.
    fn identity(&self) -> Option<usize> {
        (size_of_val(self) > 0).then(|| std::ptr::from_ref(self).cast::<()>().addr())
    }
}

/// How often a read-modify-write is tried before it gives up.
pub(crate) const CONFLICT_ATTEMPTS: usize = 64;

pub(crate) fn conflict(doing: &str, key: &str) -> Error {
    let context = format!("{doing} {key:?}: other writers won {CONFLICT_ATTEMPTS} times");
    Error::new(ErrorKind::Conflict, context)
}

/// Refuses the empty key, in the name of every store.
#[inline]
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() { Err(empty_key()) } else { Ok(()) }
}

#[cold]
fn empty_key() -> Error {
    Error::new(ErrorKind::InvalidKey, "the key is empty")
}

/// Refuses a value that the server would not take.
#[cfg(feature = "__servers")]
pub(crate) fn check_value(key: &str, value: &[u8], limit: usize, server: &dyn std::fmt::Display) -> Result<()> {
    let size = value.len();
    if size <= limit {
        return Ok(());
    }
    let context = format!("the value of {key:?} has {size} bytes, and {server} takes at most {limit}");
    Err(Error::new(ErrorKind::ValueTooLarge, context))
}

/// Has `send` deal with those items of a batch that are in order, all of them in one go. The results stand in the order
/// of the items; a failure of `send` as a whole is the failure of each that it dealt with.
pub(crate) async fn batch<I, T, F>(items: Vec<Result<I>>, send: impl FnOnce(Vec<I>) -> F) -> Vec<Result<T>>
where
    F: Future<Output = Result<Vec<Result<T>>>>,
{
    let mut in_order = Vec::with_capacity(items.len());
    let mut refused = Vec::new();
    for (place, item) in items.into_iter().enumerate() {
        match item {
            Ok(item) => in_order.push(item),
            Err(error) => refused.push((place, error)),
        }
    }
    let count = in_order.len();
    let sent = if count == 0 { Ok(Vec::new()) } else { send(in_order).await };
    let mut results = match sent {
        Ok(results) => results,
        Err(error) => (0..count).map(|_| Err(error.clone())).collect(),
    };
    results.resize_with(count, || Err(wrong_count()));
    put_in(results, refused)
}

/// Puts errors at their places.
fn put_in<T>(results: Vec<Result<T>>, errors: Vec<(usize, Error)>) -> Vec<Result<T>> {
    if errors.is_empty() {
        return results;
    }
    let mut all = Vec::with_capacity(results.len() + errors.len());
    let mut results = results.into_iter();
    for (place, error) in errors {
        let before = place - all.len();
        all.extend(results.by_ref().take(before));
        all.push(Err(error));
    }
    all.extend(results);
    all
}

pub(crate) fn wrong_count() -> Error {
    Error::new(ErrorKind::Protocol, "a batch was answered with another number of results")
}

pub(crate) fn milliseconds_rounded_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Reads a counter, with the spaces that Memcached pads with after a decrement.
pub(crate) fn read_counter(key: &str, text: &[u8]) -> Result<i64> {
    let end = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    parse_counter(key, &text[..end])
}

/// What a counter is to Redis: a number as it would be written, without a plus sign, leading zeros or spaces.
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
