//! A cache that survives `fork()`.

mod error;
pub mod lifecycle;
mod net;
mod store;
mod sync;

/// The stores of this crate.
#[cfg(feature = "memcached")]
pub mod stores {
    pub use crate::store::memcached::MemcachedStore;
}

pub use error::{Error, ErrorKind, Result};
pub use store::{CacheStore, Ttl, When};

#[cfg(feature = "__injection")]
#[doc(hidden)]
pub use lifecycle::injection;
