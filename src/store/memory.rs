//! A store in this process's memory: moka behind the gate.
//!
//! A child inherits the entries of its parent as they were at the fork, copy-on-write, if two things are known: that no
//! thread was inside moka at the fork (the [gate] knows), and that moka's collector of garbage is
//! not waiting for a thread that vanished (a probe knows, see [`collector`]). Where one of them fails the child starts
//! empty, on the [`cold`] stand-in: a second moka would not do, since all of them share the one collector.
//!
//! Every touch of a backing is a section of the gate, short and without a user's code in it. Only reads go straight to
//! it; all else is a [`Change`] computed under the lock of its entry, so that no verb comes between the two halves of
//! another.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::{CacheStore, Ttl, When, check_key, counter_overflow, parse_counter};
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::{FIRST_GENERATION, ProcessLocal, Refresh, gate, generation};
use backing::{Backing, Change, Entry};

mod backing;
mod cold;
mod collector;

/// What a [`MemoryStore`] holds by default, in bytes: 64 MiB.
const DEFAULT_BYTES: u64 = 64 << 20;

/// Keeps its entries in this process's memory.
///
/// Bounded by bytes or by entries; what is used least goes first ([moka]'s TinyLFU). Each entry has its own time to
/// live, in milliseconds. A forked child inherits the entries that were there at the fork (*warm*), or starts empty
/// (*cold*) where they cannot be trusted; [`after_fork`](crate::lifecycle::after_fork) says which, and why. From then
/// on parent and child change their entries apart.
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
    local: ProcessLocal<Local>,
}

/// How much a [`MemoryStore`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Bytes(u64),
    Entries(u64),
}

/// What becomes of a [`MemoryStore`]'s entries in a forked child.
///
/// ```
/// use prefork_cache::stores::{AtFork, MemoryStore};
///
/// let store = MemoryStore::builder().at_fork(AtFork::Fresh).build();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtFork {
    /// The child has what its parent had, where that can be trusted. The default.
    #[default]
    Inherit,
    /// The child starts empty.
    Fresh,
}

/// Makes a [`MemoryStore`]; see [`MemoryStore::builder`].
///
/// ```
/// use prefork_cache::{Cache, stores::{AtFork, MemoryStore}};
///
/// let store = MemoryStore::builder().max_bytes(16 << 20).at_fork(AtFork::Fresh).build();
/// let cache = Cache::register(store);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryBuilder {
    bound: Bound,
    at_fork: AtFork,
}

/// What this process uses.
#[derive(Debug)]
struct Local {
    backing: Backing,
    /// The generation in which the backing was last known to be whole.
    whole_in: u64,
    came: Refresh,
}

impl MemoryStore {
    /// A store of at most 64 MiB.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    ///
    /// let cache = Cache::register(MemoryStore::new());
    /// ```
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Settings for a store of another size.
    ///
    /// ```
    /// use prefork_cache::stores::{AtFork, MemoryStore};
    ///
    /// let store = MemoryStore::builder().max_entries(10_000).at_fork(AtFork::Fresh).build();
    /// ```
    pub fn builder() -> MemoryBuilder {
        MemoryBuilder { bound: Bound::Bytes(DEFAULT_BYTES), at_fork: AtFork::default() }
    }

    fn local(&self) -> &Local {
        self.local.get_or_inherit(|inherited| self.bring_in(inherited))
    }

    /// What a process uses, given what its parent used.
    fn bring_in(&self, inherited: Option<&Local>) -> Local {
        let whole_in = generation();
        let Some(parent) = inherited else {
            return Local { backing: self.fresh(), whole_in, came: Refresh::Warm };
        };
        if self.at_fork == AtFork::Fresh {
            let came = Refresh::Cold { reason: "it was asked to start fresh" };
            return Local { backing: self.fresh(), whole_in, came };
        }
        match trust_since(parent.whole_in) {
            Ok(()) => Local { backing: parent.backing.clone(), whole_in, came: Refresh::Warm },
            Err(reason) => Local { backing: Backing::cold(self.bound), whole_in, came: Refresh::Cold { reason } },
        }
    }

    /// An empty backing: moka, unless its collector is not to be trusted in this process.
    fn fresh(&self) -> Backing {
        if trust_since(FIRST_GENERATION).is_ok() { Backing::moka(self.bound) } else { Backing::cold(self.bound) }
    }

    fn read(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key)?;
        let backing = &self.local().backing;
        let _pass = gate::enter();
        Ok(backing.get(key))
    }

    /// Computes a change from the live entry under `key`, and answers what `decide` says beside it.
    fn change<R>(&self, key: &str, decide: impl FnOnce(Option<&Entry>) -> (Change, R)) -> R {
        let backing = &self.local().backing;
        let _pass = gate::enter();
        backing.change(key, decide)
    }

    fn write(&self, key: &str, value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        check_key(key)?;
        let entry = self.entry(key, value, ttl)?;
        Ok(self.change(key, |current| match (when, current) {
            (When::IfAbsent, Some(_)) | (When::IfPresent, None) => (Change::Keep, false),
            _ => (Change::Put(entry), true),
        }))
    }

    fn remove(&self, key: &str) -> Result<bool> {
        check_key(key)?;
        Ok(self.change(key, |current| match current {
            Some(_) => (Change::Remove, true),
            None => (Change::Keep, false),
        }))
    }

    fn entry(&self, key: &str, value: Bytes, ttl: Ttl) -> Result<Entry> {
        let entry = Entry { value, expires_at: expires_at(ttl)? };
        match self.bound {
            Bound::Bytes(limit) if u64::from(entry.weight(key)) > limit => {
                let (size, weight) = (entry.value.len(), entry.weight(key));
                let context = format!(
                    "the value of {key:?} has {size} bytes ({weight} with its key and upkeep), and the memory store \
                     holds {limit} in all"
                );
                Err(Error::new(ErrorKind::ValueTooLarge, context))
            }
            _ => Ok(entry),
        }
    }
}

/// Whether moka, as it was in generation `whole_in`, can be used in this process; if not, why.
fn trust_since(whole_in: u64) -> Result<(), &'static str> {
    if generation() == FIRST_GENERATION {
        return Ok(());
    }
    gate::intact_since(whole_in)?;
    if collector::is_alive() { Ok(()) } else { Err("a vanished thread holds up the collector of garbage") }
}

/// In whole milliseconds, rounded up as the other stores do.
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
        let entry = new.map(|value| self.entry(key, value, ttl)).transpose()?;
        Ok(self.change(key, |current| {
            if current.map(|entry| &*entry.value) != expected {
                return (Change::Keep, false);
            }
            (entry.map_or(Change::Remove, Change::Put), true)
        }))
    }

    async fn clear(&self, prefix: &str) -> Result<()> {
        self.local().backing.clear(prefix);
        Ok(())
    }

    /// There is no connection to forget; the entries stay.
    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn refresh(&self) -> Refresh {
        self.local().came.clone()
    }

    async fn touch(&self, key: &str, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        let expires_at = expires_at(ttl)?;
        Ok(self.change(key, |current| match current {
            Some(entry) => (Change::Put(Entry { value: entry.value.clone(), expires_at }), true),
            None => (Change::Keep, false),
        }))
    }

    async fn increment(&self, key: &str, by: i64, ttl: Ttl) -> Result<i64> {
        check_key(key)?;
        let missing = self.entry(key, Bytes::from_static(b"0"), ttl)?;
        self.change(key, |current| {
            let entry = current.unwrap_or(&missing);
            match sum(key, &entry.value, by) {
                Ok(sum) => {
                    let counted = Entry { value: sum.to_string().into(), expires_at: entry.expires_at };
                    (Change::Put(counted), Ok(sum))
                }
                Err(error) => (Change::Keep, Err(error)),
            }
        })
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

impl MemoryBuilder {
    /// Holds at most so many bytes: values, keys, and 64 for each entry. Defaults to 64 MiB. A value that is larger
    /// than all of it is refused.
    ///
    /// ```
    /// use prefork_cache::{Cache, ErrorKind, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::builder().max_bytes(1 << 20).build()).build();
    /// let refused = cache.blocking().set_raw("film", vec![0; 2 << 20], Duration::from_secs(60)).unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::ValueTooLarge);
    /// ```
    pub fn max_bytes(mut self, bytes: u64) -> MemoryBuilder {
        self.bound = Bound::Bytes(bytes);
        self
    }

    /// Holds at most so many entries (at least one), however large, instead of so many bytes.
    ///
    /// ```
    /// use prefork_cache::stores::MemoryStore;
    ///
    /// let store = MemoryStore::builder().max_entries(10_000).build();
    /// ```
    pub fn max_entries(mut self, entries: u64) -> MemoryBuilder {
        self.bound = Bound::Entries(entries.max(1));
        self
    }

    /// What becomes of the entries in a forked child. Defaults to [`AtFork::Inherit`].
    ///
    /// ```
    /// use prefork_cache::stores::{AtFork, MemoryStore};
    ///
    /// let sessions = MemoryStore::builder().at_fork(AtFork::Fresh).build();
    /// ```
    pub fn at_fork(mut self, at_fork: AtFork) -> MemoryBuilder {
        self.at_fork = at_fork;
        self
    }

    /// The store, empty.
    pub fn build(self) -> MemoryStore {
        MemoryStore { bound: self.bound, at_fork: self.at_fork, local: ProcessLocal::new() }
    }
}
