//! Read-modify-write of a value that other callers may change too.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cache, Expiry};
use crate::error::Result;
use crate::execution::outside_inline;
use crate::store::{CONFLICT_ATTEMPTS, conflict};

impl Cache {
    /// Changes a value, and returns the new one.
    ///
    /// `change` gets the current value, or `None` if there is none of this type; an entry of another type is replaced.
    /// It returns the new value, or `None` to remove the entry. It is called again if another writer changed the entry
    /// in the meantime.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if other writers changed it at all 64 attempts,
    /// [`ErrorKind::Encode`](crate::ErrorKind::Encode), and the store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// let add_one = |words: Option<Vec<String>>| {
    ///     let mut words = words.unwrap_or_default();
    ///     words.push("widget".to_owned());
    ///     Some(words)
    /// };
    /// assert_eq!(cache.blocking().update("words", Duration::from_secs(60), add_one)?.unwrap().len(), 1);
    /// assert_eq!(cache.blocking().update("words", Duration::from_secs(60), add_one)?.unwrap().len(), 2);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        expiry: impl Into<Expiry>,
        mut change: impl FnMut(Option<T>) -> Option<T>,
    ) -> Result<Option<T>> {
        let expiry = expiry.into();
        for _ in 0..CONFLICT_ATTEMPTS {
            let held = self.get_raw(key).await?;
            let current = held.as_ref().and_then(|held| self.value("update", key, held));
            let new = outside_inline(|| change(current));
            let sealed = self.counted(new.as_ref().map(|new| self.seal_readable(key, new, expiry)).transpose())?;
            if (held.is_none() && sealed.is_none()) || self.swap(key, held.as_deref(), sealed).await? {
                return Ok(new);
            }
        }
        self.counted(Err(conflict("updating", key)))
    }

    /// Removes a value and returns it. If several callers take it at once, one of them gets it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) if other writers changed it at all 64 attempts, and the
    /// store's errors.
    ///
    /// ```
    /// use prefork_cache::{Cache, stores::MemoryStore};
    /// use std::time::Duration;
    ///
    /// let cache = Cache::builder(MemoryStore::new()).build();
    /// cache.blocking().set("ticket", &7, Duration::from_secs(60))?;
    /// assert_eq!(cache.blocking().take::<u32>("ticket")?, Some(7));
    /// assert_eq!(cache.blocking().take::<u32>("ticket")?, None);
    /// # Ok::<(), prefork_cache::Error>(())
    /// ```
    pub async fn take<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        for _ in 0..CONFLICT_ATTEMPTS {
            let Some(held) = self.get_raw(key).await? else { return Ok(None) };
            let Some(value) = self.value("take", key, &held) else { return Ok(None) };
            if self.swap(key, Some(&held), None).await? {
                return Ok(Some(value));
            }
        }
        self.counted(Err(conflict("taking", key)))
    }
}
