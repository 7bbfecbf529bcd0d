//! A guide: chapters on how to use the crate, in addition to the reference.
//!
//! - [Choosing an expiry](choosing_an_expiry): the states of an entry, and what each setting is for.
//! - [URLs, TLS and credentials](urls): all URLs and options, how servers are verified, and changing passwords.
//! - [Invalidation](invalidation): how a change of the original reaches the cache.
//! - [Tiers](tiers): memory in front of a server.
//! - [Scale](scale): from memory to a cluster by a change of the URL, and what to know about clusters.
//! - [Outages](outages): what a program sees when the server is slow or unreachable, and how to shut down.
//! - [Testing](testing): stores, time and failures in tests.
//! - [Sizing and server settings](sizing): memory, connections, Redis and Memcached.
//! - [Coming from](coming_from) Rails, Dalli, FusionCache, `cached` or deadpool-redis: equivalents for each name and
//!   option.
//! - From other languages: the C interface, in `capi/README.md`; for an extension in Rust,
//!   [`Resumable`](crate::Resumable) and [`Cache::octets`](crate::Cache::octets).
//! - [The behaviours of ActiveSupport's cache](rails_behaviours), one by one: which hold here, which do not, and why.

#[doc = include_str!("guide/choosing_an_expiry.md")]
pub mod choosing_an_expiry {}

#[doc = include_str!("guide/invalidation.md")]
pub mod invalidation {}

#[doc = include_str!("guide/tiers.md")]
pub mod tiers {}

#[cfg(all(feature = "redis", feature = "memcached"))]
#[doc = include_str!("guide/scale.md")]
pub mod scale {}

#[doc = include_str!("guide/outages.md")]
pub mod outages {}

#[doc = include_str!("guide/testing.md")]
pub mod testing {}

#[doc = include_str!("guide/sizing.md")]
pub mod sizing {}

#[doc = include_str!("guide/coming_from.md")]
pub mod coming_from {}

#[cfg(all(feature = "redis", feature = "memcached"))]
#[doc = include_str!("guide/urls.md")]
pub mod urls {}

#[doc = include_str!("guide/rails_behaviours.md")]
pub mod rails_behaviours {}
