//! Opening any store by its URL.

use std::sync::Arc;

use super::CacheStore;
use super::stores::NullStore;
use super::url::{StoreUrl, invalid};
use crate::error::Result;

/// Opens the store that a URL describes, so that a program's configuration can choose it. Does no I/O with a server,
/// but reads the files that TLS options name. The scheme of a store whose feature is off is unknown.
///
/// The guide has [a table of all URLs and options](crate::guide::urls).
///
/// # Errors
///
/// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for an unknown scheme or option, and for any part that
/// cannot be parsed. The error names the part, and never contains a password.
///
/// ```
/// use prefork_cache::{Cache, stores};
///
/// let cache = Cache::builder(stores::from_url("memory://?max_entries=1000")?).build();
///
/// let refused = stores::from_url("memory://?max_entires=1000").unwrap_err();
/// assert_eq!(refused.to_string(), "unknown option \"max_entires\": known are at_fork, max_bytes, max_entries");
/// # Ok::<(), prefork_cache::Error>(())
/// ```
pub fn from_url(url: &str) -> Result<Arc<dyn CacheStore>> {
    let parsed = StoreUrl::parse(url)?;
    match parsed.scheme.as_str() {
        #[cfg(feature = "memory")]
        "memory" => memory(parsed),
        "null" => {
            expect_nothing_but_options(&parsed)?;
            parsed.options.finish()?;
            Ok(Arc::new(NullStore::new()))
        }
        #[cfg(feature = "redis")]
        scheme if super::redis::SCHEMES.contains(&scheme) => Ok(Arc::new(super::stores::RedisStore::new(url)?)),
        #[cfg(feature = "memcached")]
        scheme if super::memcached::SCHEMES.contains(&scheme) => Ok(Arc::new(super::stores::MemcachedStore::new(url)?)),
        other => Err(invalid(format!("unknown scheme {other:?}: this build knows {}", schemes().join(", ")))),
    }
}

/// The known schemes, in the order of the match above.
fn schemes() -> Vec<&'static str> {
    let of_stores: &[&[&str]] = &[
        #[cfg(feature = "memory")]
        &["memory"],
        #[cfg(feature = "redis")]
        super::redis::SCHEMES,
        #[cfg(feature = "memcached")]
        super::memcached::SCHEMES,
        &["null"],
    ];
    of_stores.concat()
}

#[cfg(feature = "memory")]
fn memory(mut url: StoreUrl) -> Result<Arc<dyn CacheStore>> {
    use super::stores::{AtFork, MemoryStore};

    expect_nothing_but_options(&url)?;
    let bytes = url.options.take_number("max_bytes")?;
    let entries = url.options.take_number("max_entries")?;
    let at_fork = match url.options.take_text("at_fork").as_deref() {
        None | Some("inherit") => AtFork::Inherit,
        Some("fresh") => AtFork::Fresh,
        Some(other) => return Err(invalid(format!("the option at_fork={other:?} is not inherit or fresh"))),
    };
    url.options.finish()?;
    let builder = MemoryStore::builder().at_fork(at_fork);
    let builder = match (bytes, entries) {
        (None, None) => builder,
        (Some(bytes), None) => builder.max_bytes(bytes),
        (None, Some(entries)) => builder.max_entries(entries),
        (Some(_), Some(_)) => return Err(invalid("max_bytes and max_entries are given: a memory store has one bound")),
    };
    Ok(Arc::new(builder.build()))
}

fn expect_nothing_but_options(url: &StoreUrl) -> Result<()> {
    let scheme = &url.scheme;
    if url.username.is_some() || url.password.is_some() {
        return Err(invalid(format!("a {scheme} URL has no user name or password")));
    }
    if !url.hosts.is_empty() || !matches!(url.path.as_str(), "" | "/") {
        return Err(invalid(format!("a {scheme} URL names no host and no path: write {scheme}://")));
    }
    Ok(())
}

#[cfg(all(test, feature = "memory", feature = "redis", feature = "memcached", feature = "tls"))]
mod tests;
