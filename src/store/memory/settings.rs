//! The settings of a memory store.

use super::MemoryStore;

/// What a [`MemoryStore`] holds by default, in bytes: 64 MiB.
const DEFAULT_BYTES: u64 = 64 << 20;

/// What an entry takes beside its key and value, in bytes: measured, with moka's share.
const OVERHEAD: usize = 384;

/// How much a [`MemoryStore`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    Bytes(u64),
    Entries(u64),
}

impl Bound {
    pub(super) fn limit(self) -> u64 {
        match self {
            Bound::Bytes(limit) | Bound::Entries(limit) => limit,
        }
    }

    /// What an entry counts for.
    pub(super) fn weigh(self, key: &str, value_length: usize) -> u64 {
        match self {
            Bound::Bytes(_) => (key.len() + value_length + OVERHEAD) as u64,
            Bound::Entries(_) => 1,
        }
    }
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
    pub(super) bound: Bound,
    pub(super) at_fork: AtFork,
}

impl MemoryBuilder {
    pub(super) fn new() -> MemoryBuilder {
        MemoryBuilder { bound: Bound::Bytes(DEFAULT_BYTES), at_fork: AtFork::default() }
    }

    /// Holds at most so many bytes: values, keys, and 384 for each entry. Defaults to 64 MiB. A value that is larger
    /// than all of it is refused.
    ///
    /// While entries are overwritten there may be up to a quarter more, and one value for each thread that writes; see
    /// [`MemoryStore`].
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
        MemoryStore::with(self)
    }
}
