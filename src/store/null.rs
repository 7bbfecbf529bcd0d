//! A store that keeps nothing.

use async_trait::async_trait;
use bytes::Bytes;

use super::{CacheStore, Ttl, When, check_key};
use crate::error::Result;

/// A store that accepts every write and keeps nothing: every read is a miss. It switches a cache off without a change
/// to the program.
///
/// Keys and times to live are checked as in the other stores. A conditional [`set`](CacheStore::set) returns what it
/// would if there were no entry, and [`increment`](CacheStore::increment) always starts at 0.
///
/// ```
/// use prefork_cache::{Cache, stores::NullStore};
/// use std::time::Duration;
///
/// let cache = Cache::builder(NullStore::new()).build();
/// cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
/// assert_eq!(cache.blocking().get::<String>("motd")?, None);
/// # Ok::<(), prefork_cache::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct NullStore {}

impl NullStore {
    /// Creates the store.
    pub const fn new() -> NullStore {
        NullStore {}
    }
}

#[async_trait]
impl CacheStore for NullStore {
    fn name(&self) -> &str {
        "null"
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        check_key(key).map(|()| None)
    }

    async fn set(&self, key: &str, _value: Bytes, ttl: Ttl, when: When) -> Result<bool> {
        check_key(key)?;
        ttl.duration()?;
        Ok(when != When::IfPresent)
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        check_key(key).map(|()| false)
    }

    async fn compare_and_set(&self, key: &str, expected: Option<&[u8]>, _new: Option<Bytes>, ttl: Ttl) -> Result<bool> {
        check_key(key)?;
        ttl.duration()?;
        Ok(expected.is_none())
    }

    async fn ttl(&self, key: &str) -> Result<Option<Ttl>> {
        check_key(key).map(|()| None)
    }

    async fn clear(&self, _prefix: &str) -> Result<()> {
        Ok(())
    }

    fn reset(&self) {}

    async fn reconnect(&self) -> Result<()> {
        Ok(())
    }

    fn is_shared(&self) -> bool {
        false
    }
}
