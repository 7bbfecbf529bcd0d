//! The monotonic clock in milliseconds, which fit into an atomic and mean the same in a child.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time now.
pub(super) fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    whole_milliseconds(now)
}

/// Returns `now + delay`; never 0.
pub(super) fn later(now: u64, delay: Duration) -> u64 {
    now.saturating_add(whole_milliseconds(delay)).max(1)
}

fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
