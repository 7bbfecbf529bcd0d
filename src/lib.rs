//! A cache that survives `fork()`.
//!
//! A preforking server (Passenger, Unicorn, Puma, gunicorn, uWSGI, PHP-FPM, nginx, or one written in Rust) loads a
//! program once and forks its workers from it. Every worker inherits the connection to the cache server, and reads
//! replies that belong to another worker. With this crate that cannot happen: a process notices that it was forked,
//! cuts the inherited sockets, and dials its own, whether or not a hook is called.
//!
//! ```
//! use prefork_cache::{Cache, lifecycle, stores};
//! use std::time::Duration;
//!
//! // In the master, before any fork and without any runtime.
//! let cache = Cache::register(stores::MemoryStore::new());
//! cache.blocking().set("motd", "hello", Duration::from_secs(60))?;
//!
//! // In each worker; optional.
//! println!("{}", lifecycle::after_fork());
//! assert_eq!(cache.blocking().get::<String>("motd")?.as_deref(), Some("hello"));
//! # Ok::<(), prefork_cache::Error>(())
//! ```
//!
//! - [`Cache`] is the handle that a program holds: typed values, [`fetch`](Cache::fetch), counters, batches,
//!   namespaces.
//! - [`stores`] has Redis, Memcached and memory, and [`stores::from_url`] to choose one in a configuration.
//! - [`lifecycle`] detects forks, and is useful without a cache: [`ProcessLocal`](lifecycle::ProcessLocal) holds a
//!   value that each process builds for itself.
//! - [`CacheStore`] is the trait to implement for another store.
//! - [`guide`] has chapters: choosing an expiry, invalidation, tiers, outages, testing, sizing, and migrating from
//!   another cache.
//!
//! Inside a tokio runtime the methods of [`Cache`] are asynchronous. Through [`Cache::blocking`], and where there is no
//! runtime, the same operations run inline on the calling thread. They start no thread and no runtime.
//!
//! # Features
//!
//! `memory`, `redis`, `memcached`, `tls` and `tokio` are on by default. Without `tokio` everything runs inline. `tls`
//! is rustls with ring. `conformance` is the test suite for stores that you write.
//!
//! `tracing`, off by default, emits spans and events of the `tracing` crate, under the target `prefork_cache`:
//!
//! | what | level | fields |
//! | --- | --- | --- |
//! | span `fetch` | debug | `cache.name`; `cache.outcome`: `hit`, `stale`, `coalesced`, `loaded` or `failed` |
//! | span `exchange`, with a server | debug | those of OpenTelemetry's conventions for database clients: `db.system.name`, `db.operation.name`, `db.operation.batch.size`, `db.namespace`, `server.address`, `server.port`, `network.transport`, `error.type` |
//! | "connected" | debug | `server.address`, `server.port` |
//! | "refreshed after a fork" | debug | `cache.name`, `refresh`, `generation`, `sockets_cut` |
//! | a failure that the caller does not see | warn; debug if it is transient | `cache.name`, `cache.verb`, `error.type` |
//! | a server is down, or up again | warn, info | `server.address`, `server.port` |
//! | the master behind sentinels has changed | info | `server.address`, `server.port`: the new one's |
//!
//! Keys and values are never recorded. The feature is off by default because a forked child inherits a subscriber's
//! locks in whatever state they are; only the host can judge whether that is safe.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "prefork-cache runs on Linux alone: it notices forks by MADV_WIPEONFORK, and cuts inherited sockets with O_PATH"
);

mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod endpoint;
mod error;
mod execution;
pub mod guide;
// A build without memory, or without any server, leaves a part of the ground floor unused.
#[cfg_attr(not(all(feature = "memory", feature = "redis", feature = "memcached")), allow(dead_code, unused_imports))]
pub mod lifecycle;
// One of the two protocols does not use all that the other one needs.
#[cfg(feature = "__servers")]
#[cfg_attr(
    not(all(feature = "redis", feature = "memcached", feature = "tls", feature = "tokio")),
    allow(dead_code, unused_imports)
)]
mod net;
mod server_stats;
mod store;
mod sync;
#[cfg_attr(not(all(feature = "redis", feature = "tls")), allow(dead_code, unused_imports))]
mod telemetry;

pub use cache::{
    Begun, Blocking, Builder, Cache, Claim, Clock, Codec, Expiry, Loaded, LockGuard, Octets, Resumable, Stats,
};
pub use error::{Error, ErrorKind, Result};
pub use server_stats::ServerStats;
pub use store::{CacheStore, Kept, Op, Outcome, Replacement, Settle, Ttl, When, stores};

/// The programs of the README, run with the other examples.
#[cfg(all(doctest, feature = "memory", feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "__injection")]
#[doc(hidden)]
pub use lifecycle::injection;
