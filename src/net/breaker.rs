//! A server that is down is not dialled on every call.
//!
//! After a number of failures in a row the breaker opens, and calls fail at once. When the delay has passed, one caller is
//! let through to try; the delay starts over for everybody else meanwhile. A success closes the breaker.
//!
//! That a reused connection gives no answer may be the connection's fault: a firewall has dropped it. So it makes the
//! server *suspect*, and counts once something else fails too.
//!
//! What decides is in atomics, so a child inherits what its parent knew. Only the cause, for the error's text, does not
//! come along.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{later, milliseconds};
use crate::error::Error;
use crate::lifecycle::ProcessLocal;
use crate::sync::Lock;

#[derive(Debug)]
pub(super) struct Breaker {
    /// How many failures, times two, and one more if the server is suspect.
    record: AtomicU32,
    /// When the next caller may try, in milliseconds of the monotonic clock; 0 while the breaker is closed.
    retry_at: AtomicU64,
    /// The first failure in a row.
    cause: ProcessLocal<Lock<Option<Error>>>,
    threshold: u32,
    delay: Duration,
}

/// What a breaker said when it let a caller through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    retry_at: u64,
}

const SUSPECT: u32 = 1;
const FAILURE: u32 = 2;

impl Breaker {
    /// Opens after `threshold` failures in a row, for `delay`.
    pub(super) fn new(threshold: u32, delay: Duration) -> Breaker {
        Breaker {
            record: AtomicU32::new(0),
            retry_at: AtomicU64::new(0),
            cause: ProcessLocal::new(),
            threshold: threshold.max(1),
            delay,
        }
    }

    /// Lets a call go ahead, or not.
    #[inline]
    pub(super) fn admit(&self) -> Option<Admission> {
        let retry_at = self.retry_at.load(Ordering::Relaxed);
        if retry_at == 0 { Some(Admission { retry_at }) } else { self.admit_one(retry_at) }
    }

    #[cold]
    fn admit_one(&self, retry_at: u64) -> Option<Admission> {
        let now = milliseconds();
        let again = self.deadline(now);
        let is_first = now >= retry_at
            && self.retry_at.compare_exchange(retry_at, again, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        is_first.then_some(Admission { retry_at: again })
    }

    /// Whether what was admitted may still go ahead: nothing has failed since that opened the breaker.
    pub(super) fn still_admits(&self, admission: Admission) -> bool {
        let retry_at = self.retry_at.load(Ordering::Relaxed);
        retry_at == 0 || retry_at == admission.retry_at
    }

    /// Returns whether it was open.
    #[inline]
    pub(super) fn succeeded(&self) -> bool {
        // Both: a failure that opens the breaker may be counted before, and noted after, another caller's success.
        if self.record.load(Ordering::Relaxed) != 0 || self.retry_at.load(Ordering::Relaxed) != 0 {
            return self.reset();
        }
        false
    }

    /// Returns whether that opened it.
    pub(super) fn failed(&self, error: &Error) -> bool {
        let counted = |record: u32| match record & SUSPECT {
            0 => record.saturating_add(FAILURE),
            _ => (record - SUSPECT).saturating_add(2 * FAILURE),
        };
        let before = self.record.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |record| Some(counted(record)));
        let before = before.unwrap_or_else(|record| record);
        if before < FAILURE {
            *self.cause.get_or_init(|| Lock::new("cause", None)).lock() = Some(error.clone());
        }
        let failures = counted(before) / FAILURE;
        failures >= self.threshold && self.retry_at.swap(self.deadline(milliseconds()), Ordering::Relaxed) == 0
    }

    /// What comes next decides whether the server has failed.
    pub(super) fn suspect(&self) {
        self.record.fetch_or(SUSPECT, Ordering::Relaxed);
    }

    /// Whether something has failed since the last success.
    pub(super) fn has_failed(&self) -> bool {
        self.record.load(Ordering::Relaxed) >= FAILURE
    }

    pub(super) fn is_open(&self) -> bool {
        self.retry_at.load(Ordering::Relaxed) != 0
    }

    /// The first failure in a row, if it was in this process.
    pub(super) fn cause(&self) -> Option<Error> {
        self.cause.get()?.lock().clone()
    }

    /// Closes it, and forgets the failures. Returns whether it was open.
    pub(super) fn reset(&self) -> bool {
        self.record.store(0, Ordering::Relaxed);
        self.retry_at.swap(0, Ordering::Relaxed) != 0
    }

    fn deadline(&self, now: u64) -> u64 {
        later(now, self.delay)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::Breaker;
    use crate::error::{Error, ErrorKind};

    const HOUR: Duration = Duration::from_secs(3600);

    fn error(text: &str) -> Error {
        Error::new(ErrorKind::Io, text)
    }

    #[test]
    fn it_opens_at_the_threshold_and_closes_with_a_success() {
        let breaker = Breaker::new(2, HOUR);
        assert!(!breaker.failed(&error("the first")));
        assert!(breaker.admit().is_some());
        assert!(breaker.failed(&error("the second")), "this one opens it");
        assert!(!breaker.failed(&error("the third")));
        assert_eq!(breaker.admit(), None);
        assert_eq!(breaker.cause().unwrap().to_string(), "the first");
        assert!(breaker.succeeded(), "this one closes it");
        assert!(!breaker.succeeded());
        assert!(breaker.admit().is_some());
    }

    #[test]
    fn a_success_closes_it_also_if_a_late_failure_has_opened_it_again() {
        let breaker = Breaker::new(1, HOUR);
        breaker.failed(&error("late"));
        breaker.record.store(0, Ordering::Relaxed);
        breaker.succeeded();
        assert!(breaker.admit().is_some());
    }

    #[test]
    fn after_the_delay_one_caller_tries() {
        let breaker = Breaker::new(1, HOUR);
        let before = breaker.admit().unwrap();
        breaker.failed(&error("down"));
        assert!(!breaker.still_admits(before));
        breaker.retry_at.store(1, Ordering::Relaxed);
        let tries = breaker.admit().unwrap();
        assert!(breaker.still_admits(tries));
        assert_eq!(breaker.admit(), None);
    }

    #[test]
    fn a_suspicion_counts_once_and_with_the_next_failure() {
        let breaker = Breaker::new(3, HOUR);
        breaker.suspect();
        breaker.suspect();
        assert!(!breaker.has_failed());
        assert!(!breaker.failed(&error("the second")));
        assert!(breaker.failed(&error("the third")));
        breaker.reset();
        breaker.suspect();
        breaker.succeeded();
        assert!(!breaker.failed(&error("the first")));
        assert!(!breaker.failed(&error("the second")));
        assert!(breaker.failed(&error("the third")));
    }
}
