//! Typed reads that share one decoded value.

use std::pin::pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::blocking::at_once;
use super::envelope::Envelope;
use super::{Blocking, Cache, Freshness, KeyBuffer, Times};
use crate::error::Result;
use crate::store::Kept;

impl Cache {
    /// Returns the decoded value, shared: the bytes are decoded once in each process, and the value is kept beside
    /// them.
    ///
    /// Callers share the value, and see each other's changes to anything mutable in it, an `Arc<Mutex<_>>` for example.
    /// It is never the value that was passed to [`set`](Cache::set), and never the parent's: only bytes cross a fork.
    /// Version, times and limits are checked at each call, as of this handle.
    ///
    /// Values are kept by a [`MemoryStore`](crate::stores::MemoryStore), also as the near store of a
    /// [`TieredStore`](crate::stores::TieredStore). There an entry that is read this way weighs more, see
    /// [`weigh_shared`](crate::stores::MemoryBuilder::weigh_shared). One value is kept for each entry: if callers read
    /// the same entry as another type, it is decoded at each call. On any other store, values are decoded at each call
    /// too.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::{sync::Arc, time::Duration};
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("sizes", &[1, 2, 3], Duration::from_secs(60))?;
    /// let first = cache.blocking().get_shared::<Vec<u32>>("sizes")?.unwrap();
    /// let second = cache.blocking().get_shared::<Vec<u32>>("sizes")?.unwrap();
    /// assert!(Arc::ptr_eq(&first, &second));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn get_shared<T>(&self, key: &str) -> Result<Option<Arc<T>>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        if let Some(kept) = self.kept(key)? {
            return Ok(match self.open_shared("get_shared", key, &kept) {
                Some((_, Freshness::Expired)) | None => None,
                Some((value, _)) => Some(value),
            });
        }
        Ok(self.get(key).await?.map(Arc::new))
    }

    /// Returns the entry if the store keeps it in memory, and counts a hit.
    #[inline]
    pub(super) fn kept(&self, key: &str) -> Result<Option<Kept>> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let kept = store.kept(self.key(key, &mut buffer)?);
        if kept.is_some() {
            self.local().counters.looked_up(true);
        }
        Ok(kept)
    }

    /// Returns the shared value of an entry and its freshness, for a read that is counted in the statistics.
    #[inline]
    pub(super) fn open_shared<T>(&self, verb: &'static str, key: &str, kept: &Kept) -> Option<(Arc<T>, Freshness)>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let Some((freshness, value)) = self.freshness_for_this_handle(key, kept).zip(kept.decoded()) else {
            return self.decode_shared(verb, key, kept);
        };
        if matches!(freshness, Freshness::Stale | Freshness::RetryDelayed) {
            self.local().counters.stale();
        }
        Some((value, freshness))
    }

    /// Returns the freshness of an entry, or `None` if this handle does not read it.
    #[inline]
    fn freshness_for_this_handle(&self, key: &str, kept: &Kept) -> Option<Freshness> {
        let envelope = Envelope::open(self.prefix.mark(key), kept.bytes()).ok()?;
        let is_readable =
            envelope.is_of(self.version.as_deref()) && envelope.inflates_to_at_most(self.shared.settings.max_inflated);
        is_readable.then(|| envelope.times.unwrap_or(Times::ALWAYS_FRESH).freshness(self.clock()))
    }

    #[cold]
    fn decode_shared<T>(&self, verb: &'static str, key: &str, kept: &Kept) -> Option<(Arc<T>, Freshness)>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let (value, freshness) = self.open(verb, key, kept.bytes())?;
        let value = Arc::new(value);
        kept.keep(&value);
        Some((value, freshness))
    }
}

impl Blocking<'_> {
    /// As [`Cache::get_shared`].
    ///
    /// # Errors
    ///
    /// As for [`Cache::get_shared`].
    pub fn get_shared<T>(self, key: &str) -> Result<Option<Arc<T>>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        at_once(pin!(self.cache().get_shared(key)))
    }
}
