//! The clock for the waits of fetches.

use std::time::Instant;

#[cfg(feature = "tokio")]
use crate::execution::is_inline;

/// Returns the current time of the clock that ends a wait: inside tokio the runtime's, which a test may have paused.
pub(super) fn now() -> Instant {
    #[cfg(feature = "tokio")]
    if !is_inline() {
        return tokio::time::Instant::now().into_std();
    }
    Instant::now()
}
