//! The builder of a store on Redis, from a URL and options given by methods.

use std::fmt;

use super::RedisStore;
use super::config::Config;
use crate::error::Result;
use crate::store::builder::{Given, common_setters, duration, path, setters, text};

/// A builder for a [`RedisStore`], created by [`RedisStore::builder`].
///
/// Each method sets the URL option of the same name and overrides its value in the URL.
///
/// ```
/// use prefork_cache::stores::RedisStore;
/// use std::time::Duration;
///
/// let store = RedisStore::builder("redis://cache.internal").timeout(Duration::from_millis(250)).database(2).build()?;
/// assert_eq!(store.to_string(), "redis://cache.internal?timeout=250ms&database=2");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
pub struct RedisBuilder {
    given: Given,
}

common_setters!(RedisBuilder, "RedisStore", "redis://localhost", "rediss://localhost");

setters! {
    RedisBuilder, "RedisStore", "redis://localhost", OWN:
    /// Sets the number of the database. Defaults to 0.
    database: u32 = text, "2";
    /// Sets the protocol version: 2 for RESP2, or 3 for RESP3 if the server supports it. Defaults to 3.
    protocol: u8 = text, "2";
    /// Sets whether the replicas of a cluster are read. Defaults to `Replicas::Never`.
    replicas: super::Replicas = text, "prefork_cache::stores::Replicas::Never";
    /// Sets the name that `CLIENT LIST` shows. The process id is appended: `widgets` becomes `widgets-4711`. Defaults
    /// to none.
    client_name: impl Into<String> = Into::into, "\"widgets\"";
}

setters! {
    RedisBuilder, "RedisStore", "redis+sentinel://localhost/mymaster", SENTINEL:
    /// Sets the user for the login to the sentinels. Defaults to their default user.
    sentinel_username: impl Into<String> = Into::into, "\"worker\"";
    /// Sets the password for the login to the sentinels, without percent-encoding. The password in the URL is the
    /// master's. Defaults to no login.
    sentinel_password: impl Into<String> = Into::into, "\"s3cret\"";
    /// Sets a file with the password for the sentinels. It is read each time a sentinel is asked. Defaults to none.
    sentinel_password_file: impl AsRef<std::path::Path> = path, "\"/run/secrets/sentinels\"";
    /// Sets how often, while there are calls, the sentinels are asked whether the master has changed. Defaults to five
    /// seconds.
    topology_refresh: std::time::Duration = duration, "Duration::from_secs(2)";
}

impl RedisBuilder {
    pub(super) fn new(url: &str) -> RedisBuilder {
        RedisBuilder { given: Given::new(url) }
    }

    /// Returns the names of the methods that set an option.
    #[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
    pub(in crate::store) fn options() -> Vec<&'static str> {
        [RedisBuilder::COMMON, RedisBuilder::TLS, RedisBuilder::OWN, RedisBuilder::SENTINEL].concat()
    }

    /// Builds the store and reads its certificate files. Does not connect to the server.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for an invalid URL or option, and
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a file that cannot be used.
    ///
    /// ```
    /// use prefork_cache::stores::RedisStore;
    /// use std::time::Duration;
    ///
    /// assert!(RedisStore::builder("redis://localhost").build().is_ok());
    /// assert!(RedisStore::builder("redis://localhost").timeout(Duration::ZERO).build().is_err());
    /// ```
    pub fn build(self) -> Result<RedisStore> {
        let replaces_database = self.given.has("database");
        let (mut url, callback) = self.given.finish()?;
        if replaces_database {
            url.options.remove("db");
            Config::clear_database(&mut url);
        }
        RedisStore::open(url, callback)
    }
}

/// Writes no field, since the URL may contain a password.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}
