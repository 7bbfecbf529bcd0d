//! An entry that is kept in this process's memory, and what it decodes to.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;

use crate::lifecycle::ProcessSlot;

/// A place for a decoded value.
pub(crate) type Slot = ProcessSlot<Box<dyn Any + Send + Sync>>;

/// An entry as a store [keeps](crate::CacheStore::kept) it in this process's memory: its bytes, and a place beside them
/// for what they decode to.
///
/// Only the [`Cache`](crate::Cache) fills that place. A store that wraps another passes it on.
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

/// What keeps an entry.
pub(crate) trait Keep: Debug + Send + Sync {
    fn bytes(&self) -> &Bytes;

    /// `None` where a decoded value has no room.
    fn slot(&self) -> Option<&Slot>;
}

impl Kept {
    #[cfg_attr(not(feature = "memory"), expect(dead_code, reason = "only memory keeps entries"))]
    pub(crate) fn new(entry: Arc<dyn Keep>) -> Kept {
        Kept(entry)
    }

    /// The value, encoded.
    pub fn bytes(&self) -> &Bytes {
        self.0.bytes()
    }

    /// What this process has decoded, if it is a `T`.
    #[inline]
    pub(crate) fn decoded<T: 'static>(&self) -> Option<&T> {
        self.0.slot()?.get()?.downcast_ref()
    }

    /// Keeps what was decoded, for as long as the entry is kept, unless there is such a value.
    pub(crate) fn keep<T: Send + Sync + 'static>(&self, decoded: T) {
        if let Some(slot) = self.0.slot() {
            slot.fill(Box::new(decoded));
        }
    }
}
