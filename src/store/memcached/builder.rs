//! A store on Memcached, from a URL and options that are methods.

use std::fmt;

use super::MemcachedStore;
use crate::error::Result;
use crate::store::builder::{Given, common_setters, setters, text};

/// What a [`MemcachedStore`] is made of; from [`MemcachedStore::builder`].
///
/// A method sets the option of the same name, over what the URL says.
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
    /// Whether the keys of a server that is down go to the others meanwhile. Defaults to `true`.
    failover: bool = text, "false";
    /// How many shares of the keys each server has, in their order. Defaults to one each.
    weights: impl IntoIterator<Item = u32> = weights, "[10, 5, 1]";
}

fn weights(weights: impl IntoIterator<Item = u32>) -> String {
    weights.into_iter().map(|weight| weight.to_string()).collect::<Vec<_>>().join(",")
}

impl MemcachedBuilder {
    pub(super) fn new(url: &str) -> MemcachedBuilder {
        MemcachedBuilder { given: Given::new(url) }
    }

    /// The names of the methods that are options.
    #[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
    pub(in crate::store) fn options() -> Vec<&'static str> {
        [MemcachedBuilder::COMMON, MemcachedBuilder::TLS, MemcachedBuilder::OWN].concat()
    }

    /// Builds the store, and reads its certificates. No I/O with the servers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for what is not understood, in the URL or among the
    /// options, and [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a file that cannot be used.
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

/// Nothing of it: the URL may have a password.
impl fmt::Debug for MemcachedBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcachedBuilder").finish_non_exhaustive()
    }
}
