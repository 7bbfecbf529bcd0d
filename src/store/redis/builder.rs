//! A store on Redis, from a URL and options that are methods.

use std::fmt;

use super::RedisStore;
use super::config::Config;
use crate::error::Result;
use crate::store::builder::{Given, common_setters, duration, path, setters, text};

/// What a [`RedisStore`] is made of; from [`RedisStore::builder`].
///
/// A method sets the option of the same name, over what the URL says.
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
    /// The database. Defaults to 0.
    database: u32 = text, "2";
    /// 2 for RESP2, or 3 for RESP3 where the server knows it. Defaults to 3.
    protocol: u8 = text, "2";
    /// Whether the replicas of a cluster are read. Defaults to `Replicas::Never`.
    replicas: super::Replicas = text, "prefork_cache::stores::Replicas::Never";
    /// What `CLIENT LIST` shows, with the process id behind it: `widgets` becomes `widgets-4711`. Defaults to none.
    client_name: impl Into<String> = Into::into, "\"widgets\"";
}

setters! {
    RedisBuilder, "RedisStore", "redis+sentinel://localhost/mymaster", SENTINEL:
    /// Who logs in to the sentinels, where they want to know. Defaults to their default user.
    sentinel_username: impl Into<String> = Into::into, "\"worker\"";
    /// The password for the sentinels, where they want one; as it is, without percent-encoding. That of the URL is the
    /// master's.
    sentinel_password: impl Into<String> = Into::into, "\"s3cret\"";
    /// A file with the password for the sentinels, read each time that they are asked.
    sentinel_password_file: impl AsRef<std::path::Path> = path, "\"/run/secrets/sentinels\"";
    /// How often the sentinels are asked, while there are calls, whether another server is the master by now. Defaults
    /// to five seconds.
    topology_refresh: std::time::Duration = duration, "Duration::from_secs(2)";
}

impl RedisBuilder {
    pub(super) fn new(url: &str) -> RedisBuilder {
        RedisBuilder { given: Given::new(url) }
    }

    /// The names of the methods that are options.
    #[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
    pub(in crate::store) fn options() -> Vec<&'static str> {
        [RedisBuilder::COMMON, RedisBuilder::TLS, RedisBuilder::OWN, RedisBuilder::SENTINEL].concat()
    }

    /// Builds the store, and reads its certificates. No I/O with the server.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for what is not understood, in the URL or among the
    /// options, and [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) for a file that cannot be used.
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

/// Nothing of it: the URL may have a password.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}
