//! The circuit breaker: a server that is down is not dialled on every call.
//!
//! # States
//!
//! | state | calls | next |
//! | --- | --- | --- |
//! | closed | go ahead | *open*, after `threshold` consecutive failures |
//! | open | fail at once | *trial*, when a caller asks after `delay` |
//! | trial | one caller goes ahead, the others fail at once | *closed*, after a success; *open*, after a failure; another *trial*, if there is no outcome within `delay` |
//!
//! A trial is an open breaker whose delay has started again. A success closes the breaker in every state.
//!
//! A timeout on a reused connection may be a fault of the connection, such as a firewall that has dropped it. So it
//! only makes the server *suspect*, and is counted as a failure together with the next one.
//!
//! # Forks
//!
//! The state is in atomics, which a child inherits. The cause, for the error's source, is process-local.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{later, milliseconds};
use crate::error::Error;
use crate::lifecycle::ProcessLocal;
use crate::sync::Lock;

/// A circuit breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    /// The number of consecutive failures times [`FAILURE`], plus [`SUSPECT`] if the server is suspect.
    record: AtomicU32,
    /// When the next caller may try, in milliseconds of the monotonic clock; 0 while the breaker is closed.
    retry_at: AtomicU64,
    /// The first of the consecutive failures.
    cause: ProcessLocal<Lock<Option<Error>>>,
    threshold: u32,
    delay: Duration,
}

/// Proof that a breaker admitted a caller, with the state in which it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    retry_at: u64,
}

const SUSPECT: u32 = 1;
const FAILURE: u32 = 2;

impl Breaker {
    /// Creates a breaker that opens after `threshold` consecutive failures, for `delay`.
    pub(super) fn new(threshold: u32, delay: Duration) -> Breaker {
        Breaker {
            record: AtomicU32::new(0),
            retry_at: AtomicU64::new(0),
            cause: ProcessLocal::new(),
            threshold: threshold.max(1),
            delay,
        }
    }

    /// Admits a call, or returns `None`.
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

    /// Returns whether an admitted caller may still go ahead: the breaker has not opened since.
    pub(super) fn still_admits(&self, admission: Admission) -> bool {
        let retry_at = self.retry_at.load(Ordering::Relaxed);
        retry_at == 0 || retry_at == admission.retry_at
    }

    /// Records a success. Returns whether the breaker was open.
    #[inline]
    pub(super) fn succeeded(&self) -> bool {
        // Both are checked: `failed` may count before another caller's success and store `retry_at` after it.
        if self.record.load(Ordering::Relaxed) != 0 || self.retry_at.load(Ordering::Relaxed) != 0 {
            return self.reset();
        }
        false
    }

    /// Records a failure. Returns whether it opened the breaker.
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

    /// Makes the server suspect: the next failure counts twice, and a success clears it.
    pub(super) fn suspect(&self) {
        self.record.fetch_or(SUSPECT, Ordering::Relaxed);
    }

    /// Returns whether a failure was recorded since the last success.
    pub(super) fn has_failed(&self) -> bool {
        self.record.load(Ordering::Relaxed) >= FAILURE
    }

    /// Returns whether the server has failed or become suspect since the last success.
    pub(super) fn is_doubtful(&self) -> bool {
        self.record.load(Ordering::Relaxed) != 0
    }

    pub(super) fn is_open(&self) -> bool {
        self.retry_at.load(Ordering::Relaxed) != 0
    }

    /// The first of the consecutive failures, if it was in this process.
    pub(super) fn cause(&self) -> Option<Error> {
        self.cause.get()?.lock().clone()
    }

    /// Closes the breaker and clears the failures. Returns whether it was open.
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
    fn the_breaker_opens_at_the_threshold_and_closes_after_a_success() {
        let breaker = Breaker::new(2, HOUR);
        assert!(!breaker.failed(&error("the first")));
        assert!(breaker.admit().is_some());
        assert!(breaker.failed(&error("the second")), "the second failure opens it");
        assert!(!breaker.failed(&error("the third")));
        assert_eq!(breaker.admit(), None);
        assert_eq!(breaker.cause().unwrap().to_string(), "the first");
        assert!(breaker.succeeded(), "the success closes it");
        assert!(!breaker.succeeded());
        assert!(breaker.admit().is_some());
    }

    #[test]
    fn a_success_closes_a_breaker_that_a_late_failure_has_opened() {
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
        let trial = breaker.admit().unwrap();
        assert!(breaker.still_admits(trial));
        assert_eq!(breaker.admit(), None);
    }

    #[test]
    fn suspect_timeouts_count_as_one_failure_together_with_the_next() {
        let breaker = Breaker::new(3, HOUR);
        assert!(!breaker.is_doubtful());
        breaker.suspect();
        breaker.suspect();
        assert!(breaker.is_doubtful() && !breaker.has_failed());
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
