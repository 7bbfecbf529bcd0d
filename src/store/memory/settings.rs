//! The settings of a memory store.

use std::fmt;
use std::sync::Arc;

use super::MemoryStore;

/// The default bound of a [`MemoryStore`], in bytes: 64 MiB.
const DEFAULT_BYTES: u64 = 64 << 20;

/// The size of an entry without its key and value, in bytes: measured, including moka's part.
const OVERHEAD: usize = 384;

/// The bound of a [`MemoryStore`].
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

    /// Returns the weight of an entry, in the unit of the bound.
    pub(super) fn weigh(self, key: &str, value_length: usize) -> u64 {
        match self {
            Bound::Bytes(_) => (key.len() + value_length + OVERHEAD) as u64,
            Bound::Entries(_) => 1,
        }
    }
}

/// Which entries of a [`MemoryStore`] a forked child starts with.
///
/// ```
/// use prefork_cache::stores::{AtFork, MemoryStore};
///
/// let store = MemoryStore::builder().at_fork(AtFork::Fresh).build();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AtFork {
    /// The child inherits its parent's entries, if they can be used safely. The default.
    #[default]
    Inherit,
    /// The child starts empty.
    Fresh,
}

/// A builder of a [`MemoryStore`]; see [`MemoryStore::builder`].
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
    pub(super) weigh_shared: Weigh,
}

/// Estimates the size of a decoded value from the encoded one.
#[derive(Clone)]
pub(super) struct Weigh(Arc<Weigher>);

type Weigher = dyn Fn(&[u8]) -> usize + Send + Sync;

impl Weigh {
    pub(super) fn of(&self, encoded: &[u8]) -> usize {
        (self.0)(encoded)
    }
}

impl fmt::Debug for Weigh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weigh")
    }
}

impl MemoryBuilder {
    pub(super) fn new() -> MemoryBuilder {
        MemoryBuilder {
            bound: Bound::Bytes(DEFAULT_BYTES),
            at_fork: AtFork::default(),
            weigh_shared: Weigh(Arc::new(<[u8]>::len)),
        }
    }

    /// Sets the bound in bytes, of values, keys and 384 bytes for each entry. Defaults to 64 MiB. A value that is
    /// larger than the bound is refused.
    ///
    /// While entries are overwritten, up to a quarter more may be in use, and one value for each thread that writes;
    /// see [`MemoryStore`].
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

    /// Sets the bound as a number of entries (at least 1) of any size, instead of bytes.
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

    /// Sets which entries a forked child starts with. Defaults to [`AtFork::Inherit`].
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

    /// Sets a function that estimates the size in bytes of the decoded value of a [shared
    /// read](crate::Cache::get_shared), given the encoded value. The size counts toward
    /// [`max_bytes`](MemoryBuilder::max_bytes), from the first shared read of an entry on. Defaults to the length of
    /// the encoded value. A value that would not fit is decoded at each read.
    ///
    /// ```
    /// use prefork_cache::stores::MemoryStore;
    ///
    /// // Decoded, these take three times as much.
    /// let store = MemoryStore::builder().weigh_shared(|encoded| 3 * encoded.len()).build();
    /// ```
    pub fn weigh_shared(mut self, weigh: impl Fn(&[u8]) -> usize + Send + Sync + 'static) -> MemoryBuilder {
        self.weigh_shared = Weigh(Arc::new(weigh));
        self
    }

    /// Builds the store, which is empty.
    pub fn build(self) -> MemoryStore {
        MemoryStore::from_settings(self)
    }
}
