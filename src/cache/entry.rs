//! Operations on one entry.

use std::future::Future;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::envelope::Envelope;
use super::{Cache, Expiry, KeyBuffer, Sealed};
use crate::error::Result;
use crate::store::{CacheStore, Ttl, When};

impl Cache {
    /// Returns the value under a key, a [stale](Expiry) one too, or `None` if there is none of this type and version.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.set("price", &100, Duration::from_secs(60)).await?;
    /// assert_eq!(cache.get::<u32>("price").await?, Some(100));
    /// assert_eq!(cache.get::<String>("price").await?, None, "a number is not a string");
    /// # Ok::<(), prefork_cache::Error>(()) }).unwrap();
    /// ```
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let found = self.get_raw(key).await?;
        Ok(found.and_then(|bytes| self.value("get", key, &bytes)))
    }

    /// Returns the raw bytes under a key, whichever program wrote them.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set_raw("motd", "hello", Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().get_raw("motd")?.as_deref(), Some(&b"hello"[..]));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn get_raw(&self, key: &str) -> Result<Option<Bytes>> {
        // Like `read`, but inlined for a smaller future: this is the hottest path.
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        let found = self.answered(self.fork_guarded(store.get(key)).await)?;
        self.local().counters.looked_up(found.is_some());
        Ok(found)
    }

    /// Stores a value. It is encoded before the future is returned, so it need not outlive the call or be `Sync`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Encode`](crate::ErrorKind::Encode) if the value cannot be encoded, and the store's.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("sizes", &[1, 2, 3], Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().get::<Vec<u32>>("sizes")?, Some(vec![1, 2, 3]));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn set<'a, T, E>(
        &'a self,
        key: &'a str,
        value: &T,
        expiry: E,
    ) -> impl Future<Output = Result<()>> + Send + use<'a, T, E>
    where
        T: Serialize + ?Sized,
        E: Into<Expiry>,
    {
        self.put(key, self.seal(key, value, expiry.into()), When::Always, |_| ())
    }

    /// Stores a value if there is no entry, not even a stale one. Returns whether it was stored.
    ///
    /// # Errors
    ///
    /// As [`set`](Cache::set).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert!(cache.blocking().add("owner", "first", Duration::from_secs(60))?);
    /// assert!(!cache.blocking().add("owner", "second", Duration::from_secs(60))?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn add<'a, T, E>(
        &'a self,
        key: &'a str,
        value: &T,
        expiry: E,
    ) -> impl Future<Output = Result<bool>> + Send + use<'a, T, E>
    where
        T: Serialize + ?Sized,
        E: Into<Expiry>,
    {
        self.put(key, self.seal(key, value, expiry.into()), When::IfAbsent, |stored| stored)
    }

    /// Stores a value if there is an entry to replace. Returns whether it was stored.
    ///
    /// # Errors
    ///
    /// As [`set`](Cache::set).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert!(!cache.blocking().replace("motd", "hello", Duration::from_secs(60))?, "nothing to replace");
    /// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
    /// assert!(cache.blocking().replace("motd", "good evening", Duration::from_secs(60))?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn replace<'a, T, E>(
        &'a self,
        key: &'a str,
        value: &T,
        expiry: E,
    ) -> impl Future<Output = Result<bool>> + Send + use<'a, T, E>
    where
        T: Serialize + ?Sized,
        E: Into<Expiry>,
    {
        self.put(key, self.seal(key, value, expiry.into()), When::IfPresent, |stored| stored)
    }

    /// Stores raw bytes, without an envelope, for other programs to read.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set_raw("page", "<h1>hello</h1>", Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().get::<String>("page")?, None, "raw bytes are no typed value");
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn set_raw<'a, V, E>(
        &'a self,
        key: &'a str,
        value: V,
        expiry: E,
    ) -> impl Future<Output = Result<()>> + Send + use<'a, V, E>
    where
        V: Into<Bytes>,
        E: Into<Expiry>,
    {
        self.put(key, self.raw(value.into(), expiry.into()), When::Always, |_| ())
    }

    /// Stores raw bytes if there is no entry. Returns whether they were stored.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// assert!(cache.blocking().add_raw("seen:7", "1", Duration::from_secs(60))?);
    /// assert!(!cache.blocking().add_raw("seen:7", "1", Duration::from_secs(60))?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub fn add_raw<'a, V, E>(
        &'a self,
        key: &'a str,
        value: V,
        expiry: E,
    ) -> impl Future<Output = Result<bool>> + Send + use<'a, V, E>
    where
        V: Into<Bytes>,
        E: Into<Expiry>,
    {
        self.put(key, self.raw(value.into(), expiry.into()), When::IfAbsent, |stored| stored)
    }

    /// Appends bytes to a [raw](Cache::set_raw) entry. A missing entry is created, and lives for `expiry`; an existing
    /// one keeps its remaining time. A typed value that is appended to becomes a miss.
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().append("log", "one,", Duration::from_secs(60))?;
    /// cache.blocking().append("log", "two,", Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().get_raw("log")?.as_deref(), Some(&b"one,two,"[..]));
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn append(&self, key: &str, value: impl Into<Bytes>, expiry: impl Into<Expiry>) -> Result<()> {
        let store = self.store()?;
        let Sealed { bytes, ttl } = self.counted(self.raw(value.into(), expiry.into()))?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.append(key, bytes, ttl)).await)
    }

    /// Returns whether there is an entry, of any type, written by any program. On a handle with a
    /// [`version`](Cache::version), returns whether there is a value of that version. The entry is read, which counts
    /// as a read in the [`stats`](Cache::stats).
    ///
    /// # Errors
    ///
    /// The store's; see [`ErrorKind`](crate::ErrorKind).
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().increment("visits", 1, Duration::from_secs(60))?;
    /// assert!(cache.blocking().exists("visits")?);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn exists(&self, key: &str) -> Result<bool> {
        let found = self.get_raw(key).await?;
        Ok(found.is_some_and(|bytes| match Envelope::open(self.prefix.mark(key), &bytes) {
            Ok(envelope) => envelope.serves(self.version.as_deref(), self.clock()),
            Err(_) => self.version.is_none(),
        }))
    }

    /// Reads the bytes under a key without counting a hit or a miss.
    #[inline]
    pub(super) async fn read(&self, key: &str) -> Result<Option<Bytes>> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        self.answered(self.fork_guarded(store.get(key)).await)
    }

    fn raw(&self, bytes: Bytes, expiry: Expiry) -> Result<Sealed> {
        Ok(Sealed { bytes, ttl: self.begin(expiry)?.raw_ttl })
    }

    /// Stores an encoded value.
    pub(super) async fn put<R>(
        &self,
        key: &str,
        sealed: Result<Sealed>,
        when: When,
        answer: impl FnOnce(bool) -> R,
    ) -> Result<R> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        let Sealed { bytes, ttl } = self.counted(sealed)?;
        if when != When::Always {
            self.remove_gone(key, store).await?;
        }
        self.answered(self.fork_guarded(store.set(key, bytes, ttl, when)).await).map(answer)
    }

    /// Removes an entry that has expired by the cache's clock, before a conditional write. Does nothing where the store
    /// expires entries by the same clock.
    async fn remove_gone(&self, full_key: &str, store: &dyn CacheStore) -> Result<()> {
        if self.clock().is_the_stores() {
            return Ok(());
        }
        let Some(held) = self.answered(self.fork_guarded(store.get(full_key)).await)? else { return Ok(()) };
        if Envelope::open(crc32fast::hash(full_key.as_bytes()), &held).is_ok_and(|held| held.is_expired(self.clock())) {
            self.answered(self.fork_guarded(store.compare_and_set(full_key, Some(&held), None, Ttl::Never)).await)?;
        }
        Ok(())
    }

    /// Replaces the entry, or removes it if `new` is `None`, if it still holds `expected`.
    pub(super) async fn swap(&self, key: &str, expected: Option<&[u8]>, new: Option<Sealed>) -> Result<bool> {
        let store = self.store()?;
        let mut buffer = KeyBuffer::default();
        let key = self.key(key, &mut buffer)?;
        let (new, ttl) = new.map_or((None, Ttl::Never), |Sealed { bytes, ttl }| (Some(bytes), ttl));
        self.answered(self.fork_guarded(store.compare_and_set(key, expected, new, ttl)).await)
    }
}
