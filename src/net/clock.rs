//! The monotonic clock: in milliseconds, which fit into an atomic and mean the same in a child, and as a stopwatch.

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

/// Measures the time of a call, by a clock that is faster to read and advances in steps of at most 10 ms: for calls
/// that hardly ever need to know their time.
#[cfg(feature = "redis")]
#[derive(Clone, Copy)]
pub(crate) struct Stopwatch(Duration);

#[cfg(feature = "redis")]
impl Stopwatch {
    #[inline]
    pub(crate) fn start() -> Stopwatch {
        Stopwatch(Stopwatch::read())
    }

    pub(crate) fn elapsed(self) -> Duration {
        Stopwatch::read().saturating_sub(self.0)
    }

    #[inline]
    fn read() -> Duration {
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from).unwrap_or_default()
    }
}
