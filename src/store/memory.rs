//! A store in this process's memory: a moka cache behind the fork gate.
//!
//! A child inherits its parent's entries as they were at the fork, copy-on-write, under two conditions: no thread was
//! inside moka at the fork, which the [gate] knows; and moka's garbage collector is not waiting for a thread that does
//! not exist in the child, which a probe finds out (see [`collector`]). Otherwise the child starts empty, with a
//! [`fallback`] cache. A second moka cache would not help, since all of them share one collector. [`per_process`]
//! makes this decision.
//!
//! Every access to an engine is a section of the gate: short, and without the user's code. Reads access the engine
//! directly. Everything else is a [`Change`] that is computed under the lock of its entry, so that it is atomic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::{CacheStore, Kept, Ttl, When, check_key, counter_overflow, parse_counter};
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::{ProcessLocal, Refresh, gate};
use change::Change;
use engine::Engine;
use entry::{Entry, compacted, drop_decoded};
use per_process::PerProcess;
use settings::{Bound, Weigh};

pub use settings::{AtFork, MemoryBuilder};
pub use usage::MemoryUsage;

mod account;
mod change;
mod collector;
mod engine;
mod entry;
mod fallback;
mod freeze;
mod frozen;
mod per_process;
mod settings;
mod usage;

/// A store in this process's memory.
///
/// Each entry has its own time to live, in milliseconds. A forked child inherits the entries of its parent (*warm*), or
/// starts empty (*cold*) if they cannot be used safely; [`after_fork`](crate::lifecycle::after_fork) reports which, and
/// why. After the fork, parent and child change their entries independently.
///
/// # The bound
///
/// The store is bounded by bytes or by entries, and evicts the least used entries first ([moka]'s TinyLFU). The bound
/// counts the memory in use, including entries that were overwritten or evicted and are not freed yet. Above the
/// bound, each writer frees as many of these as it can. More than a sixteenth above the bound, a writer waits for at
/// most 5 ms and then stores nothing: the entry is gone, as if it had been evicted immediately, and the write counts
/// as [refused](MemoryUsage::refused). At most a quarter more than the bound is ever in use, plus one value for each
/// thread that writes.
///
/// A new entry may be evicted immediately: a full store keeps it only if it has been read more often than the entries
/// that it would replace. With random keys at the bound, this happens to about 0.3 to 0.6 % of the entries. A cold
/// child never keeps an entry of more than 97 % of the bound.
///
/// An expired entry is not returned. Its memory is freed by any later operation; without one, it stays allocated.
///
/// [moka]: https://docs.rs/moka
///
/// ```
/// use prefork_cache::{Cache, stores::MemoryStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(MemoryStore::new()).build();
/// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
/// assert_eq!(cache.blocking().get::<String>("motd")?.as_deref(), Some("hello"));
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    bound: Bound,
    at_fork: AtFork,
    weigh_shared: Weigh,
    local: ProcessLocal<PerProcess>,
}

impl MemoryStore {
    /// Creates a store of at most 64 MiB.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::register(MemoryStore::new());
    /// ```
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Returns a builder, for a store of another size.
    ///
    /// ```
    /// use prefork_cache::stores::{AtFork, MemoryStore};
    ///
    /// let store = MemoryStore::builder().max_entries(10_000).at_fork(AtFork::Fresh).build();
    /// ```
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder::new()
    }

    fn from_settings(settings: MemoryBuilder) -> MemoryStore {
        let MemoryBuilder { bound, at_fork, weigh_shared } = settings;
        MemoryStore { bound, at_fork, weigh_shared, local: ProcessLocal::new() }
    }

    fn local(&self) -> &PerProcess {
        self.local.get_or_inherit(|inherited| self.build_local(inherited))
    }

    /// Builds the state of this process from the state that it inherited, if any.
    fn build_local(&self, inherited: Option<&PerProcess>) -> PerProcess {
        match inherited {
            None => PerProcess::empty(self.bound, Refresh::Warm),
            Some(parent) => parent.inherited(self.bound, self.at_fork),
        }
    }

    fn read(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let local = self.local();
        if let Some(value) = local.read_frozen(key) {
            return Ok(Some(value));
        }
        let found = in_gate(|| local.engine().get(key).map(|entry| entry.value.clone()));
        // The entry may have been frozen between the two reads.
        Ok(found.or_else(|| local.read_frozen(key)))
    }

    /// Returns an entry, with a slot for its decoded value if there is room for that.
    fn read_shared(&self, key: &str) -> Option<Arc<Entry>> {
        let local = self.local();
        if local.read_frozen(key).is_some() {
            if !local.engine().account().has_room() {
                return None;
            }
            local.lift(key);
        }
        let entry = in_gate(|| local.engine().get(key))?;
        Some(if entry.has_slot() { entry } else { self.add_slot(key, entry) })
    }

    #[cold]
    fn add_slot(&self, key: &str, entry: Arc<Entry>) -> Arc<Entry> {
        let decoded = self.weigh_shared.of(&entry.value);
        let engine = self.local().engine_to_write();
        let fits = self.bound.weigh(key, entry.value.len() + decoded) <= self.bound.limit();
        if !fits || !engine.account().has_room() {
            return entry;
        }
        in_gate(|| {
            engine.change(key, |current| match current {
                Some(current) if Arc::ptr_eq(current, &entry) => (Change::AddSlot { decoded }, ()),
                _ => (Change::Keep, ()),
            });
            engine.collect_if_full();
            engine.get(key)
        })
        .unwrap_or(entry)
    }

    /// Applies the change that `decide` computes from the live entry under `key`, and returns the other result of
    /// `decide`. `weight` is the weight of a new value, or 0 for one whose size hardly matters.
    ///
    /// If there is no room, a new value is not stored and the entry is removed, as if it had been evicted.
    fn change<R>(&self, key: &str, weight: u64, decide: impl FnOnce(Option<&Arc<Entry>>) -> (Change, R)) -> R {
        let local = self.local();
        let (engine, reserved) = local.engine_with_room(weight);
        change_lifted(local, engine, key, |current| match decide(current) {
            (Change::Put { .. }, result) if reserved.is_none() => {
                engine.account().count_refusal();
                (Change::Remove, result)
            }
            decided => decided,
        })
    }

    fn write(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        let (value, expires_at) = self.checked(key, value, ttl)?;
        let weight = self.bound.weigh(key, value.len());
        Ok(self.change(key, weight, |current| match (when, current) {
            (When::IfAbsent, Some(_)) | (When::IfPresent, None) => (Change::Keep, false),
            _ => (Change::Put { value, expires_at }, true),
        }))
    }

    fn remove(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        let local = self.local();
        Ok(change_lifted(local, local.engine_to_write(), key, |current| match current {
            Some(_) => (Change::Remove, true),
            None => (Change::Keep, false),
        }))
    }

    /// Checks a key, value and time to live. Returns the value, in memory of its own, and the time of its expiry.
    fn checked(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<(Bytes, Option<Instant>)> {
        check_key(key)?;
        let expires_at = expires_at(ttl)?;
        let weight = self.bound.weigh(key, value.len());
        match self.bound {
            Bound::Bytes(limit) if weight > limit => {
                let size = value.len();
                let context = format!(
                    "the value of {key:?} has {size} bytes ({weight} with its key and upkeep), and the memory store \
                     holds {limit} in all"
                );
                Err(Error::new(ErrorKind::ValueTooLarge, context))
            }
            _ => Ok((compacted(value), expires_at)),
        }
    }
}

/// Lifts an entry if it is frozen, and changes the live entry. If another thread freezes it between the two, it is
/// outside_inline again.
fn change_lifted<R>(
    local: &PerProcess,
    engine: &Engine,
    key: &str,
    decide: impl FnOnce(Option<&Arc<Entry>>) -> (Change, R),
) -> R {
    let mut decide = Some(decide);
    loop {
        local.lift(key);
        let result = in_gate(|| {
            let result = engine.change(key, |current| match decide.take_if(|_| local.read_frozen(key).is_none()) {
                Some(decide) => {
                    let (change, result) = decide(current);
                    (change, Some(result))
                }
                None => (Change::Keep, None),
            });
            engine.collect_if_full();
            result
        });
        if let Some(result) = result {
            return result;
        }
    }
}

/// Calls `work`, which accesses an engine, inside the gate. Decoded values that it dropped are dropped after leaving
/// the gate, since that runs the user's code.
#[inline]
fn in_gate<R>(work: impl FnOnce() -> R) -> R {
    let pass = gate::enter();
    let result = work();
    drop(pass);
    drop_decoded();
    result
}

/// Returns the time of expiry. The time to live is rounded up to whole milliseconds, as in the other stores.
fn expires_at(ttl: Ttl) -> Result<Option<Instant>> {
    let whole_milliseconds = |duration| Duration::from_millis(super::milliseconds_rounded_up(duration));
    Ok(ttl.duration()?.map(|duration| Instant::now() + whole_milliseconds(duration)))
}

#[async_trait]
impl CacheStore for MemoryStore {
    fn name(&self) -> &str {
        "memory"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.read(key)
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        self.write(key, value, ttl, when)
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        self.remove(key)
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        let new = new.map(|value| self.checked(key, value, ttl)).transpose()?;
        let weight = new.as_ref().map_or(0, |(value, _)| self.bound.weigh(key, value.len()));
        Ok(self.change(key, weight, |current| {
            if current.map(|entry| &*entry.value) != expected {
                return (Change::Keep, false);
            }
            let put = |(value, expires_at)| Change::Put { value, expires_at };
            (new.map_or(Change::Remove, put), true)
        }))
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.local().clear(prefix);
        drop_decoded();
        Ok(())
    }

    /// Does nothing: there are no connections, and the entries are kept.
    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn kept(&self, key: &str) -> Option<Kept> {
        check_key(key).ok()?;
        self.read_shared(key).map(|entry| Kept::new(entry))
    }

    fn freeze(&self) -> bool {
        MemoryStore::freeze(self)
    }

    fn refresh(&self) -> Refresh {
        self.local().refresh()
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        let expires_at = expires_at(ttl)?;
        Ok(self.change(key, 0, |current| match current {
            Some(entry) => (Change::Put { value: entry.value.clone(), expires_at }, true),
            None => (Change::Keep, false),
        }))
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        check_key(key)?;
        let (missing, expires_at) = self.checked(key, Bytes::from_static(b"0"), ttl)?;
        self.change(key, 0, |current| {
            let (number, expires_at) = current.map_or((&missing, expires_at), |entry| (&entry.value, entry.expires_at));
            match sum(key, number, by) {
                Ok(sum) => {
                    let digits = sum.to_string().into_boxed_str().into_boxed_bytes();
                    (Change::Put { value: digits.into(), expires_at }, Ok(sum))
                }
                Err(error) => (Change::Keep, Err(error)),
            }
        })
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key)?;
        let left = |until: Instant| until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let ttl = |entry: &Arc<Entry>| entry.expires_at.map_or(Ttl::Never, |until| Ttl::After(left(until)));
        Ok(self.change(key, 0, |current| (Change::Keep, current.map(ttl))))
    }

    async fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<Bytes>>> {
        keys.iter().map(|key| self.read(key)).collect()
    }
}

fn sum(key: &str, number: &[u8], by: i64) -> Result<i64> {
    let number = parse_counter(key, number)?;
    number.checked_add(by).ok_or_else(|| counter_overflow(key, by))
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}
