//! An entry in this process's memory, with its decoded value.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;

use crate::lifecycle::ProcessSlot;

/// A slot for a decoded value.
pub(crate) type Slot = ProcessSlot<Box<dyn Any + Send + Sync>>;

/// An entry that a store [keeps](crate::CacheStore::kept) in this process's memory: its bytes, and a slot for the
/// decoded value.
///
/// Only the [`Cache`](crate::Cache) fills the slot. A store that wraps another returns the inner store's.
///
/// ```
/// use prefork_cache::{Cache, CacheStore, stores::MemoryStore};
/// use std::{sync::Arc, time::Duration};
///
/// let store = Arc::new(MemoryStore::new());
/// Cache::builder(store.clone()).build().blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
/// assert_eq!(store.kept("motd").unwrap().bytes(), "hello");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Kept(Arc<dyn Keep>);

/// The owner of an entry's bytes and slot.
pub(crate) trait Keep: Debug + Send + Sync {
    fn bytes(&self) -> &Bytes;

    /// Returns the slot, or `None` if there is no room for a decoded value.
    fn slot(&self) -> Option<&Slot>;
}

impl Kept {
    #[cfg_attr(not(feature = "memory"), expect(dead_code, reason = "only memory keeps entries"))]
    pub(crate) fn new(entry: Arc<dyn Keep>) -> Kept {
        Kept(entry)
    }

    /// Returns the encoded value.
    pub fn bytes(&self) -> &Bytes {
        self.0.bytes()
    }

    /// Returns the value that this process has decoded, if it is a `T`.
    #[inline]
    pub(crate) fn decoded<T: 'static>(&self) -> Option<&T> {
        self.0.slot()?.get()?.downcast_ref()
    }

    /// Stores a decoded value in the slot, for as long as the entry is kept, unless the slot is full.
    pub(crate) fn keep<T: Send + Sync + 'static>(&self, decoded: T) {
        if let Some(slot) = self.0.slot() {
            slot.fill(Box::new(decoded));
        }
    }
}
