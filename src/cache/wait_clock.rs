//! The clock by which fetches wait.

use std::time::Instant;

#[cfg(feature = "tokio")]
use crate::execution::is_inline;

/// Now, by the clock that wakes whoever waits here: inside tokio that of the runtime, which a test may have paused.
pub(super) fn now() -> Instant {
    #[cfg(feature = "tokio")]
    if !is_inline() {
        return tokio::time::Instant::now().into_std();
    }
    Instant::now()
}
