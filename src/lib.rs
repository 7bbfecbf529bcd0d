//! A cache that survives `fork()`.

mod error;
pub mod lifecycle;
mod net;
mod store;
mod sync;

pub use error::{Error, ErrorKind, Result};
pub use store::{CacheStore, Ttl, When};

#[cfg(feature = "__injection")]
#[doc(hidden)]
pub use lifecycle::injection;
