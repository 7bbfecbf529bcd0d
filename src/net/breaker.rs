//! A server that is down is not dialled on every call.
//!
//! After a number of failures in a row the breaker opens, and calls fail at once. When the delay has passed, one caller is
//! let through to try; the delay starts over for everybody else meanwhile. A success closes the breaker. Nothing but
//! atomics, so a child inherits what its parent knew.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

#[derive(Debug)]
pub(crate) struct Breaker {
    failures: AtomicU32,
    /// When the next caller may try, in milliseconds of the monotonic clock; 0 while the breaker is closed.
    retry_at: AtomicU64,
    threshold: u32,
    delay: Duration,
}

impl Breaker {
    /// Opens after `threshold` failures in a row, for `delay`.
    pub(crate) fn new(threshold: u32, delay: Duration) -> Breaker {
        Breaker { failures: AtomicU32::new(0), retry_at: AtomicU64::new(0), threshold: threshold.max(1), delay }
    }

    /// Whether a call may go ahead; if not, how long until one may try.
    #[inline]
    pub(crate) fn admit(&self) -> Result<(), Duration> {
        let retry_at = self.retry_at.load(Ordering::Relaxed);
        if retry_at == 0 { Ok(()) } else { self.admit_one(retry_at) }
    }

    #[cold]
    fn admit_one(&self, retry_at: u64) -> Result<(), Duration> {
        let now = milliseconds();
        if now < retry_at {
            return Err(Duration::from_millis(retry_at - now));
        }
        let again = self.deadline(now);
        let won = self.retry_at.compare_exchange(retry_at, again, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if won { Ok(()) } else { Err(self.delay) }
    }

    /// Answers whether it was open.
    #[inline]
    pub(crate) fn succeeded(&self) -> bool {
        // Both: a failure that opens the breaker may be counted before, and noted after, another caller's success.
        if self.failures.load(Ordering::Relaxed) != 0 || self.retry_at.load(Ordering::Relaxed) != 0 {
            return self.reset();
        }
        false
    }

    /// Answers whether that opened it.
    pub(crate) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        failures >= self.threshold && self.retry_at.swap(self.deadline(milliseconds()), Ordering::Relaxed) == 0
    }

    /// Closes it, and forgets the failures. Answers whether it was open.
    pub(crate) fn reset(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.retry_at.swap(0, Ordering::Relaxed) != 0
    }

    fn deadline(&self, now: u64) -> u64 {
        let delay = u64::try_from(self.delay.as_millis()).unwrap_or(u64::MAX);
        now.saturating_add(delay).max(1)
    }
}

fn milliseconds() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Breaker;

    #[test]
    fn it_opens_at_the_threshold_and_closes_with_a_success() {
        let breaker = Breaker::new(2, Duration::from_secs(3600));
        assert!(!breaker.failed());
        assert!(breaker.admit().is_ok());
        assert!(breaker.failed(), "this one opens it");
        assert!(!breaker.failed());
        assert!(breaker.admit().is_err());
        assert!(breaker.succeeded(), "this one closes it");
        assert!(!breaker.succeeded());
        assert!(breaker.admit().is_ok());
    }

    #[test]
    fn a_success_closes_it_also_if_a_late_failure_has_opened_it_again() {
        let breaker = Breaker::new(1, Duration::from_secs(3600));
        breaker.failed();
        breaker.failures.store(0, std::sync::atomic::Ordering::Relaxed);
        breaker.succeeded();
        assert!(breaker.admit().is_ok());
    }

    #[test]
    fn after_the_delay_one_caller_tries() {
        let breaker = Breaker::new(1, Duration::from_secs(3600));
        breaker.failed();
        breaker.retry_at.store(1, std::sync::atomic::Ordering::Relaxed);
        assert!(breaker.admit().is_ok());
        assert!(breaker.admit().is_err());
    }
}
