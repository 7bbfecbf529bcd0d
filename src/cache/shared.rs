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
    /// [`get`](Cache::get) without the decoding: what the bytes decode to, decoded once in each process and kept beside
    /// them.
    ///
    /// Callers share the value, and see each other's changes to what can be changed in it, an `Arc<Mutex<_>>`, say. It is
    /// never the value that was handed to [`set`](Cache::set), and never one of the parent's: only bytes cross a fork.
    /// Version, times and limits are looked at with each call, those of this handle.
    ///
    /// Values are kept by a [`MemoryStore`](crate::stores::MemoryStore), also as the near store of a
    /// [`TieredStore`](crate::stores::TieredStore); there an entry that is read like this counts for more, see
    /// [`weigh_shared`](crate::stores::MemoryBuilder::weigh_shared). One value is kept for each entry: callers that read
    /// the same entry as another type have it decoded each time, and so have those on any other store.
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

    /// The entry, if the store keeps it in memory: a hit, which counts as one.
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

    /// The value in an entry, with its state; for a read that counts.
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

    /// `None` for what this handle does not read.
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
    /// As there.
    pub fn get_shared<T>(self, key: &str) -> Result<Option<Arc<T>>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        at_once(pin!(self.cache().get_shared(key)))
    }
}
