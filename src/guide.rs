//! A guide beside the reference.
//!
//! - [Choosing an expiry](choosing_an_expiry): the life of an entry, and what each setting is for.
//! - [URLs, TLS and credentials](urls): all URLs and options, how servers are recognized, and passwords that change.
//! - [Coming from](coming_from) Rails, Dalli, FusionCache, `cached` or deadpool-redis: what is called what here.
//! - [The behaviours of ActiveSupport's cache](rails_behaviours), one by one: which hold here, and which do not, and why.

#[doc = include_str!("guide/choosing_an_expiry.md")]
pub mod choosing_an_expiry {}

#[doc = include_str!("guide/coming_from.md")]
pub mod coming_from {}

#[cfg(all(feature = "redis", feature = "memcached"))]
#[doc = include_str!("guide/urls.md")]
pub mod urls {}

#[doc = include_str!("guide/rails_behaviours.md")]
pub mod rails_behaviours {}
