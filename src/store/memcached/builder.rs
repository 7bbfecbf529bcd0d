//! The builder of a Memcached store: a URL, and a method for each option.

use std::fmt;

use super::MemcachedStore;
use crate::error::Result;
use crate::store::builder::{Given, common_setters, setters, text};

/// A builder of a [`MemcachedStore`]; see [`MemcachedStore::builder`].
///
/// Each method sets the option of the same name, and overrides the URL.
///
/// ```
/// use prefork_cache::stores::MemcachedStore;
///
/// let store = MemcachedStore::builder("memcached://10.0.0.1,10.0.0.2").weights([2, 1]).failover(false).build()?;
/// assert_eq!(store.to_string(), "memcached://10.0.0.1,10.0.0.2?weights=2,1&failover=false");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
pub struct MemcachedBuilder {
    given: Given,
}

common_setters!(MemcachedBuilder, "MemcachedStore", "memcached://localhost", "memcacheds://localhost");

setters! {
    MemcachedBuilder, "MemcachedStore", "memcached://localhost", OWN:
    /// Sets whether the keys of a server that is down go to the other servers until it is back. Defaults to `true`.
    failover: bool = text, "false";
    /// Sets the weight of each server, in order: its share of the keys. Defaults to 1 each.
    weights: impl IntoIterator<Item = u32> = weights, "[10, 5, 1]";
}

fn weights(weights: impl IntoIterator<Item = u32>) -> String {
    weights.into_iter().map(|weight| weight.to_string()).collect::<Vec<_>>().join(",")
}

impl MemcachedBuilder {
    pub(super) fn new(url: &str) -> MemcachedBuilder {
        MemcachedBuilder { given: Given::new(url) }
    }

    /// Returns the names of the methods that set an option.
    #[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
    pub(in crate::store) fn options() -> Vec<&'static str> {
        [MemcachedBuilder::COMMON, MemcachedBuilder::TLS, MemcachedBuilder::OWN].concat()
    }

    /// Builds the store, and reads its certificates. Does no I/O with the servers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for an invalid URL or option, and
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a file that cannot be used.
    ///
    /// ```
    /// use prefork_cache::stores::MemcachedStore;
    ///
    /// assert!(MemcachedStore::builder("memcached://localhost").build().is_ok());
    /// assert!(MemcachedStore::builder("memcached://localhost").weights([1, 2]).build().is_err());
    /// ```
    pub fn build(self) -> Result<MemcachedStore> {
        let (url, callback) = self.given.finish()?;
        MemcachedStore::open(url, callback)
    }
}

/// No fields: the URL may contain a password.
impl fmt::Debug for MemcachedBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedBuilder").finish_non_exhaustive()
    }
}
