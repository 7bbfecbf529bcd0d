//! Typed reads that share one decoded value.

use std::pin::pin;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::blocking::at_once;
use super::envelope::{Envelope, Label};
use super::{Blocking, Cache, Freshness, KeyBuffer};
use crate::error::Result;
use crate::store::Kept;

/// What an entry decodes to, with what each hit looks at before it is returned.
struct Opened<T> {
    label: Label,
    value: Arc<T>,
}

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
        match self.get_kept(key)? {
            Some(found) => Ok(found),
            None => Ok(self.get(key).await?.map(Arc::new)),
        }
    }

    /// The value of an entry that the store keeps in memory, which serves or not; `None` where it keeps none.
    #[inline]
    fn get_kept<T>(&self, key: &str) -> Result<Option<Option<Arc<T>>>>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let value = |kept: Kept| match self.open_shared("get_shared", key, &kept) {
            Some((_, Freshness::Expired)) | None => None,
            Some((value, _)) => Some(value),
        };
        Ok(self.kept(key)?.map(value))
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
        match kept.decoded::<Opened<T>>() {
            Some(opened) if self.reads(key, &opened.label) => {
                let freshness = opened.label.times.freshness(self.clock());
                if matches!(freshness, Freshness::Stale | Freshness::RetryDelayed) {
                    self.local().counters.stale();
                }
                Some((Arc::clone(&opened.value), freshness))
            }
            _ => self.decode_shared(verb, key, kept),
        }
    }

    /// Returns whether this handle reads an entry with this label.
    #[inline]
    fn reads(&self, key: &str, label: &Label) -> bool {
        label.mark == self.prefix.mark(key)
            && label.is_of(self.version.as_deref())
            && label.inflated <= self.shared.settings.max_inflated
    }

    #[cold]
    fn decode_shared<T>(&self, verb: &'static str, key: &str, kept: &Kept) -> Option<(Arc<T>, Freshness)>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let (value, freshness) = self.open(verb, key, kept.bytes())?;
        let value = Arc::new(value);
        let mark = self.prefix.mark(key);
        if let Ok(envelope) = Envelope::open(mark, kept.bytes()) {
            kept.keep(Opened { label: envelope.label(mark), value: Arc::clone(&value) });
        }
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
        match self.cache().get_kept(key)? {
            Some(found) => Ok(found),
            None => Ok(at_once(pin!(self.cache().get(key)))?.map(Arc::new)),
        }
    }
}
